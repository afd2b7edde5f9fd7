"""Documents that hold items of benchmarks go, whatever was done to the items; others stay."""

from __future__ import annotations

import builtins
import gzip
import io
import json
import keyword
import os
import random
import re
import textwrap
import tokenize
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.benchmark_table import RunTable
from data_prep.code_words import KEPT_NAMES, NAME, code_words
from data_prep.documents import Document, Drop, Tally
from data_prep.steps import decontaminate
from data_prep.steps.decontaminate import Decontaminator, benchmark_counts, compared_against, prepare
from data_prep.words import windows, word_blocks, words
from megatron_codemix.config import Decontaminate, SourceSpec
from megatron_codemix.errors import UserError

QUESTION = "A farmer sells seventeen geese at the market and buys three goats, two ropes and a very small red wagon."
SOLUTION = """def pair_sums(numbers, wanted):
    found = []
    for first in range(len(numbers)):
        for second in range(first + 1, len(numbers)):
            if numbers[first] + numbers[second] == wanted and first not in found:
                found.append((first, second))
    return sorted(found)
"""
HOST = "\n".join(
    f"line {number} of a file that has nothing to do with any benchmark, number{number * 7} = {number}" for number in range(200)
)
KINDS = {kind: SourceSpec(kind="jsonl", paths=[Path("x")], modality=kind) for kind in ("code", "text")}


def make(folder: Path, rows: list, modality: str = "code", **more) -> Decontaminator:
    """A step that compares with a benchmark of these rows."""
    file = folder / "bench.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = Decontaminate(against=[file], **more)
    prepare(chosen, folder / "work")
    return Decontaminator(chosen, KINDS[modality], folder=folder / "work")


def embedded(text: str) -> str:
    return HOST + "\n" + text + "\n" + HOST


def verdict(step: Decontaminator, text: str) -> Document | Drop:
    return step.apply(Document("a", text), Tally())


def test_an_item_laid_out_anew_is_found(tmp_path: Path) -> None:
    step = make(tmp_path, [{"question": QUESTION}])
    changed = "\n> ".join(textwrap.wrap(QUESTION.upper().replace(",", " – "), 30))
    found = verdict(step, embedded(changed))
    assert isinstance(found, Drop)
    assert found.reason == "holds text of bench.jsonl"
    assert found.detail.startswith("A FARMER SELLS SEVENTEEN GEESE > AT THE MARKET")
    clean = Document("a", HOST)
    assert step.apply(clean, Tally()) is clean


@pytest.mark.parametrize("shared, found", [(9, False), (10, True), (11, True)])
def test_a_run_of_ten_words_is_a_leak(tmp_path: Path, shared: int, found: bool) -> None:
    step = make(tmp_path, [{"question": QUESTION}])
    assert isinstance(verdict(step, "other words " + " ".join(QUESTION.split()[:shared]) + " more words"), Drop) == found


def test_the_number_of_words_is_a_setting(tmp_path: Path) -> None:
    step = make(tmp_path, [{"question": QUESTION}], ngram_words=13)
    assert not isinstance(verdict(step, " ".join(QUESTION.split()[:12])), Drop)
    assert isinstance(verdict(step, " ".join(QUESTION.split()[:13])), Drop)


def test_renamed_code_is_found_in_code_only(tmp_path: Path) -> None:
    renamed = re.sub(r"\b(numbers|wanted|found|first|second|pair_sums)\b", lambda match: f"{match[0][::-1]}_{len(match[0])}", SOLUTION)
    renamed = renamed.replace("    ", "\t").replace(" + ", "+").replace("\n", "\n\n")
    step = make(tmp_path, [{"solution": SOLUTION}])
    assert not set(windows(words(renamed).hashes, 10)) & set(windows(words(SOLUTION).hashes, 10))
    found = verdict(step, embedded(renamed))
    assert isinstance(found, Drop)
    assert found.reason == "holds code of bench.jsonl"
    assert found.detail.startswith("def smus_riap_9(srebmun_7, detnaw_6): dnuof_5 = []")
    assert not isinstance(verdict(make(tmp_path, [{"solution": SOLUTION}], "text"), embedded(renamed)), Drop)


@pytest.mark.parametrize(
    "common",
    [
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24",
        "[[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]",
        "for i in range(1, m + 1):\n    for j in range(1, n + 1):\n        for k in range(n):",
        "'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l'",
    ],
)
def test_what_stands_everywhere_tells_nothing(tmp_path: Path, common: str) -> None:
    step = make(tmp_path, [{"prompt": f"{common}\n{QUESTION}"}, {"prompt": common}])
    assert not isinstance(verdict(step, embedded(common)), Drop)
    assert benchmark_counts(tmp_path / "work")[0]["compared"] == 1
    assert isinstance(verdict(step, embedded(f"{common}\n{QUESTION}")), Drop)


def test_short_questions_are_looked_for_whole(tmp_path: Path) -> None:
    rows = [{"text": "Write a function to swap two numbers.", "choices": ["the distance between Earth and the Sun", "yes"]}]
    step = make(tmp_path, rows)
    found = verdict(step, embedded("# WRITE a function\n# to swap two numbers"))
    assert isinstance(found, Drop)
    assert found.detail == "WRITE a function # to swap two numbers"
    assert not isinstance(verdict(step, embedded("write a function to swap three numbers")), Drop)
    assert not isinstance(verdict(step, embedded("the distance between Earth and the Sun")), Drop), "a choice is not the question"


def test_items_that_are_too_short_count_together_with_their_answers(tmp_path: Path) -> None:
    step = make(tmp_path, [{"q": "who wrote it", "a": ["an old man called Herbert", "perhaps his sister"]}, {"q": "2 + 2", "a": "4"}])
    assert benchmark_counts(tmp_path / "work")[0] | {"sha256": ""} == {"name": "bench.jsonl", "sha256": "", "items": 2, "compared": 1}
    assert isinstance(verdict(step, "Who wrote it? An old man called Herbert, perhaps his sister."), Drop)


def test_only_the_fields_that_are_named(tmp_path: Path) -> None:
    rows = [{"question": QUESTION, "source": "The Goose Fair by an unknown author from the north of somewhere cold"}]
    step = make(tmp_path, rows, fields=["question"])
    assert isinstance(verdict(step, QUESTION), Drop)
    assert not isinstance(verdict(step, rows[0]["source"]), Drop)


def test_leaks_across_the_blocks_of_a_long_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = make(tmp_path, [{"question": QUESTION}, {"solution": SOLUTION}])
    monkeypatch.setattr(decontaminate, "BLOCK_CHARACTERS", 60)
    monkeypatch.setattr(decontaminate, "word_blocks", lambda text, overlap: word_blocks(text, overlap, 25))
    renamed = re.sub(r"\b(numbers|wanted|found|first|second|pair_sums)\b", lambda match: match[0].upper() + "x", SOLUTION)
    for start in range(0, 60, 7):
        assert isinstance(verdict(step, "a" * start + " " + QUESTION), Drop)
        found = verdict(step, "b" * start + "\n" + renamed)
        assert isinstance(found, Drop)
        assert found.reason.startswith("holds code of")


def test_tables_are_made_once_and_anew_when_a_file_changes(tmp_path: Path) -> None:
    make(tmp_path, [{"question": QUESTION}])
    chosen = Decontaminate(against=[tmp_path / "bench.jsonl"])
    record = tmp_path / "work" / "benchmarks" / "record.json"
    before, made = record.read_bytes(), record.stat().st_mtime_ns
    prepare(chosen, tmp_path / "work")
    assert record.stat().st_mtime_ns == made
    step = make(tmp_path, [{"question": SOLUTION}])
    assert record.read_bytes() != before
    assert not isinstance(verdict(step, QUESTION), Drop)


def test_another_task_that_was_faster_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bench.jsonl"
    file.write_text(json.dumps({"question": QUESTION}))
    chosen, make_ = Decontaminate(against=[file]), decontaminate._make

    def slowly(*arguments) -> None:
        monkeypatch.setattr(decontaminate, "_make", make_)
        prepare(chosen, tmp_path / "work")
        make_(*arguments)

    monkeypatch.setattr(decontaminate, "_make", slowly)
    prepare(chosen, tmp_path / "work")
    assert isinstance(verdict(Decontaminator(chosen, KINDS["text"], folder=tmp_path / "work"), QUESTION), Drop)
    assert [one.name for one in (tmp_path / "work").iterdir()] == ["benchmarks"]


def test_what_is_recorded_names_the_files_and_their_content(tmp_path: Path) -> None:
    (tmp_path / "sets" / "math").mkdir(parents=True)
    (tmp_path / "sets" / "math" / "a.csv").write_text("x,y\n")
    (tmp_path / "sets" / "b.json").write_text("[]")
    (tmp_path / "sets" / "README.md").write_text("no benchmark")
    recorded = compared_against(Decontaminate(against=[tmp_path / "sets"]))
    assert [line.split(" sha256:")[0] for line in recorded] == ["b.json", "math/a.csv"]
    assert all(len(line.split(" sha256:")[1]) == 64 for line in recorded)


def test_the_table_finds_what_is_in_it() -> None:
    drawn = np.random.default_rng(0).integers(0, 2**64, 5000, np.uint64)
    inside, outside = drawn[:3000], drawn[3000:]
    table = RunTable.of(np.concatenate([inside, inside[:5]]), np.arange(3005, dtype=np.uint32))
    mixed = np.concatenate([outside, inside])
    places, files = table.find(mixed)
    assert places.tolist() == list(range(2000, 5000))
    assert files.tolist() == list(range(3000))
    empty = RunTable.of(inside[:0], np.empty(0, np.uint32))
    assert len(empty.find(mixed)[0]) == 0


def test_code_words_keep_what_cannot_be_renamed() -> None:
    text = 'for größe in range(10): print(f"{x_1}", größe2)  # naïve'
    other = "for _a in  range ( 10 ):\n\tprint('F{ y }' ; b) naive"
    first, second = code_words(text), code_words(other.replace("'F", "'f"))
    assert first.hashes.tolist() == second.hashes.tolist()
    assert (first.hashes == NAME).tolist().count(True) == 5
    assert [text.encode()[place : place + 3] for place in first.places[:4]] == [b"for", b"gr\xc3", b"in ", b"ran"]
    assert not np.isin(NAME, code_words(" ".join(KEPT_NAMES)).hashes)
    assert len(np.unique(code_words(" ".join(KEPT_NAMES)).hashes)) == len(KEPT_NAMES)


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> list[Decontaminator]:
    folder = tmp_path_factory.mktemp("steps")
    return [make(folder, [{"question": QUESTION, "solution": SOLUTION}], modality) for modality in ("code", "text")]


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60), st.text(max_size=60), st.booleans())
def test_anything_around_an_item_changes_nothing(steps: list[Decontaminator], before: str, behind: str, leaks: bool) -> None:
    middle = QUESTION if leaks else "nothing of interest"
    for step in steps:
        found = verdict(step, f"{before} {middle} {behind}")
        assert isinstance(found, Drop) == leaks
        if isinstance(found, Drop):
            found.detail.encode()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["for", "x", "été", "_y1", "12", "0x1F", "(", ")", "==", "+", "\ud800", "len"]), max_size=40), st.data())
def test_layout_of_code_does_not_count(tokens: list[str], data: st.DataObject) -> None:
    space = st.sampled_from([" ", "\n", "\t ", ", ", "; ", " \x00", "' "])
    texts = ["".join(token + data.draw(space) for token in tokens) for _ in range(2)]
    first, second = map(code_words, texts)
    assert first.hashes.tolist() == second.hashes.tolist()
    assert len(first.hashes) == sum(2 if token == "==" else 1 for token in tokens)


@pytest.mark.parametrize(
    "against, message", [("missing.jsonl", "does not exist"), ("notes.md", "is no benchmark file"), ("empty", "holds none")]
)
def test_paths_without_benchmarks_are_told(tmp_path: Path, against: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UserError, match=message):
        prepare(Decontaminate(against=[tmp_path / against]), tmp_path / "work")
    assert not (tmp_path / "work").exists()


# -- planted leaks of real benchmarks in real files ------------------------------------------------------------------------------


def _renamed(code: str, drawn: random.Random) -> str:
    """Code whose own names are changed, outside of its docstrings and comments."""
    known = {*keyword.kwlist, *dir(builtins), *re.findall(r"import\s+(\w+)", code)}
    before, names, tokens = "", {}, []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        text = token.string
        if token.type == tokenize.NAME and text not in known and before != ".":
            text = names.setdefault(text, f"{drawn.choice(['value', 'item', 'thing'])}{len(names)}")
        before = token.string
        tokens.append((token.type, text))
    return tokenize.untokenize(tokens)


def _relaid(code: str, drawn: random.Random) -> str:
    lines = []
    for line in code.replace("\r", "").split("\n"):
        body = line.strip()
        indent = len(line) - len(line.lstrip())
        body = re.sub(r" *([=+*/%<>-]+) *", r" \1 " if drawn.random() < 0.5 else r"\1", body.replace("'", '"'))
        lines.append("\t" * (indent // 2) + body + ("\n" if drawn.random() < 0.1 else ""))
    return "\n".join(lines)


def _wrapped(text: str, drawn: random.Random, prefix: str) -> str:
    return "\n".join(prefix + line for line in textwrap.wrap(" ".join(text.split()), drawn.randrange(30, 90)))


def _rows(path: Path) -> list[dict]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


@pytest.mark.slow
@pytest.mark.skipif("CODEMIX_DATA" not in os.environ, reason="CODEMIX_DATA names no folder with the corpora and benchmarks")
def test_all_planted_leaks_are_found(tmp_path: Path) -> None:
    """HumanEval, MBPP and GSM8K: laid out anew, names changed, embedded in larger files: all of them."""
    data, drawn = Path(os.environ["CODEMIX_DATA"]), random.Random(0)
    human, mbpp = data / "benchmarks/humaneval/HumanEval.jsonl.gz", data / "benchmarks/mbpp/mbpp.jsonl"
    school = data / "benchmarks/nl_reasoning/symbolic_problem_solving/gsm8k_official_test.jsonl.gz"
    chosen = Decontaminate(against=[human, mbpp, school])
    prepare(chosen, tmp_path)
    planted = {
        "code": [
            *(_relaid(_renamed(row["prompt"] + row["canonical_solution"], drawn), drawn) for row in _rows(human)),
            *(_wrapped(row["text"], drawn, "# ") + "\n" + _relaid(_renamed(row["code"], drawn), drawn) for row in _rows(mbpp)),
        ],
        "text": [_wrapped(row["question"] + " " + row["answer"], drawn, "> ") for row in _rows(school)],
    }
    for modality, corpus in (("code", "code_python"), ("text", "nl_techdocs")):
        step = Decontaminator(chosen, KINDS[modality], folder=tmp_path)
        hosts = [row["text"][:8000] for row in _rows(data / f"corpus/{corpus}.jsonl.gz")[:1200]]
        clean = [text for text in hosts if not isinstance(verdict(step, text), Drop)]
        assert len(clean) >= 0.95 * len(hosts), "too much goes that holds nothing"
        missed = []
        for text in planted[modality]:
            host = drawn.choice(clean)
            place = host.rfind("\n", 0, drawn.randrange(1, len(host))) + 1
            if not isinstance(verdict(step, host[:place] + text + "\n" + host[place:]), Drop):
                missed.append(text)
        assert not missed, (len(missed), missed[:3])
