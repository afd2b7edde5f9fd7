"""Tables of runs and of whole pieces; words of code."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.benchmark_table import CodePieceTable, Piece, PieceTable, RunTable
from data_prep.code_words import KEPT_NAMES, NAME, code_words


def test_the_table_finds_what_is_in_it() -> None:
    drawn = np.random.default_rng(0).integers(0, 2**64, 5000, np.uint64)
    inside, outside = drawn[:3000], drawn[3000:]
    table = RunTable(np.concatenate([inside, inside[:5]]), np.arange(3005, dtype=np.uint32))
    mixed = np.concatenate([outside, inside])
    places, files = table.find(mixed)
    assert places.tolist() == list(range(2000, 5000))
    assert files.tolist() == list(range(3000))
    empty = RunTable(inside[:0], np.empty(0, np.uint32))
    assert len(empty.find(mixed)[0]) == 0


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 4), min_size=8, max_size=14), max_size=6),
    st.lists(st.one_of(st.integers(1, 4).map(lambda one: [one]), st.integers(0, 5)), max_size=30),
    st.sampled_from([PieceTable, CodePieceTable]),
)
def test_pieces_are_found_wherever_they_stand(pieces: list[list[int]], parts: list, kind: type[PieceTable]) -> None:
    """`parts` are words, or numbers of pieces."""
    factor = np.uint64(0x123456789ABCDEF1)
    with TemporaryDirectory() as folder:
        kind([Piece(number, np.array(piece, np.uint64) * factor) for number, piece in enumerate(pieces)]).save(Path(folder), "pieces")
        table = kind.load(Path(folder), "pieces")
        text = [word for part in parts for word in (part if isinstance(part, list) else pieces[part] if part < len(pieces) else [])]
        found = sorted(table.find(np.array(text, np.uint64) * factor))
        assert table.most_words == max(map(len, pieces), default=0)
    first = {tuple(piece): number for number, piece in reversed(list(enumerate(pieces)))}
    expected = [
        (place, len(piece), number)
        for piece, number in first.items()
        for place in range(len(text) - len(piece) + 1)
        if tuple(text[place : place + len(piece)]) == piece
    ]
    assert found == sorted(expected)


def test_code_words_keep_what_cannot_be_renamed() -> None:
    text = 'for größe in range(10): print(f"{x_1}", größe2)  # naïve'
    other = "for _a in  range ( 10 ):\n\tprint('F{ y }' ; b) naive"
    first, second = code_words(text), code_words(other.replace("'F", "'f"))
    assert first.hashes.tolist() == second.hashes.tolist()
    assert (first.hashes == NAME).tolist().count(True) == 5
    assert [text.encode()[place : place + 3] for place in first.places[:4]] == [b"for", b"gr\xc3", b"in ", b"ran"]
    assert not np.isin(NAME, code_words(" ".join(KEPT_NAMES)).hashes)
    assert len(np.unique(code_words(" ".join(KEPT_NAMES)).hashes)) == len(KEPT_NAMES)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["for", "x", "été", "_y1", "12", "0x1F", "(", ")", "==", "+", "\ud800", "len"]), max_size=40), st.data())
def test_layout_of_code_does_not_count(tokens: list[str], data: st.DataObject) -> None:
    space = st.sampled_from([" ", "\n", "\t ", ", ", "; ", " \x00", "' "])
    texts = ["".join(token + data.draw(space) for token in tokens) for _ in range(2)]
    first, second = map(code_words, texts)
    assert first.hashes.tolist() == second.hashes.tolist()
    assert len(first.hashes) == sum(2 if token == "==" else 1 for token in tokens)
