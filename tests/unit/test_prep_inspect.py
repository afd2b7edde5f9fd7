"""`codemix prep inspect`: its numbers are those of the documents, its words are their text."""

from __future__ import annotations

import numpy as np
import pytest

from data_prep.inspect import counts_table, histogram_lines, kind_counts, length_histogram, main_inspect
from megatron_codemix.errors import UserError
from megatron_codemix.shards import Kind, SplitReader, SplitWriter, document_id
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer

TEXTS = [f"def add_{name}(left, right):\n    return left + {number}\n" * (number + 1) for number, name in enumerate("abcdefgh")]


@pytest.fixture(scope="module")
def model():
    return train_tokenizer(TEXTS + ["plain words about functions that return numbers\n"], 500)


@pytest.fixture
def output(tmp_path, model):
    folder = tmp_path / "output"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.model").write_bytes(model)
    tokenizer = Tokenizer(model)
    with SplitWriter(
        folder / "code" / "train",
        source="code",
        split="train",
        modality="code",
        token_dtype="uint16",
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
        pack_tokens=60,
        shard_tokens=300,
        prep={},
    ) as writer:
        for number, text in enumerate(TEXTS):
            tokens = np.append(tokenizer.encode(text), tokenizer.end_of_text_id)
            segments = [(0, Kind.TEXT), (3, Kind.CODE)] if number == 1 else None
            language = "Python" if number % 2 else None
            writer.add(tokens, len(text.encode()), document_id(str(number)), segments, language, "MIT")
        writer.close(skipped={"empty": 4}, leakage={"same text": 2}, decontaminated_against=["HumanEval"])
    return folder


def printed(capsys, *arguments):
    assert main_inspect([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def value_of(output, name):
    lines = [line for line in output.splitlines() if line.startswith(f"  {name}  ")]
    assert len(lines) == 1, name
    return lines[0].removeprefix(f"  {name}").strip()


def test_the_table_holds_the_counts(output, model, capsys):
    text = printed(capsys, output, "--sequence-length", 16)
    tokens = sum(len(Tokenizer(model).encode(text)) + 1 for text in TEXTS)
    num_bytes = sum(len(text.encode()) for text in TEXTS)
    assert text.splitlines()[0] == str(output / "code" / "train")
    assert value_of(text, "documents") == "8"
    assert value_of(text, "tokens") == f"{tokens:,}"
    assert value_of(text, "bytes") == f"{num_bytes:,}"
    assert value_of(text, "bytes per token") == f"{num_bytes / tokens:.3f}"
    assert value_of(text, "languages") == "Python 4, not stated 4"
    assert value_of(text, "licences") == "MIT 8"
    assert value_of(text, "skipped") == "empty 4"
    assert value_of(text, "held out, also in train") == "same text 2"
    assert value_of(text, "decontaminated against") == "HumanEval"
    windows = SplitReader(output / "code" / "train").num_windows(16)
    assert value_of(text, "windows of 16").startswith(f"{windows}, {100 * 16 * windows / tokens:.2f} %")


def test_the_histogram_counts_every_document_once(output, model):
    reader = SplitReader(output / "code" / "train")
    lengths = [len(Tokenizer(model).encode(text)) + 1 for text in TEXTS]
    counts = length_histogram(reader)
    assert counts.tolist() == [sum(2**k <= length < 2 ** (k + 1) for length in lengths) for k in range(max(lengths).bit_length())]
    lines = histogram_lines(counts)
    assert sum(int(line.split()[-1]) for line in lines) == 8
    assert max(line.count("█") for line in lines) == 40
    assert histogram_lines(np.array([0, 0, 3, 0, 1]))[0].split()[:3] == ["4", "–", "7"]
    assert histogram_lines(np.zeros(3, np.int64)) == ["  no documents"]


def test_tokens_are_counted_by_kind(output, model, capsys):
    lengths = [len(Tokenizer(model).encode(text)) + 1 for text in TEXTS]
    counts = kind_counts(SplitReader(output / "code" / "train"))
    assert counts == {Kind.CODE: sum(lengths) - 3, Kind.TEXT: 3}
    line = f"  tokens by kind: code {counts[Kind.CODE]:,} ({100 * counts[Kind.CODE] / sum(lengths):.1f} %), text 3 ("
    assert line in printed(capsys, output / "code" / "train")


def test_samples_are_the_documents_in_words(output, capsys):
    text = printed(capsys, output / "code" / "train", "--samples", 8, "--characters", 10_000)
    for number, document in enumerate(TEXTS):
        assert f"document {number} ({document_id(str(number)):016x})" in text
        assert document + "⟨end of text⟩" in text
    assert "text from 0, code from 3" in text
    assert text == printed(capsys, output / "code" / "train", "--samples", 8, "--characters", 10_000)


def test_samples_beyond_the_split_are_all_of_it_and_long_ones_are_cut(output, capsys):
    text = printed(capsys, output, "--samples", 50, "--characters", 20)
    assert text.count("--- document") == 8
    assert "more characters)" in text
    assert TEXTS[5][:20] in text
    assert TEXTS[5][:30] not in text


def test_samples_with_a_sequence_length_are_windows(output, model, capsys):
    text = printed(capsys, output, "--samples", 2, "--sequence-length", 40, "--characters", 10_000)
    assert text.count("--- window") == 2
    reader, tokenizer = SplitReader(output / "code" / "train"), Tokenizer(model)
    number = int(text.split("--- window ")[1].split(":")[0])
    window = reader.read_windows(np.array([number]), 40)[0]
    assert tokenizer.decode(window) in text.replace("⟨end of text⟩\n", "").replace("⟨end of text⟩", "")
    starts = reader.document_starts(number, 40)
    assert (f"documents begin at {', '.join(map(str, starts))}" if starts.size else "no document begins") in text


def test_no_escape_sequence_of_a_document_reaches_the_terminal(output, model, capsys):
    hostile = "x\x1b]0;owned\x07\x1b[2J\u202ey"
    tokenizer = Tokenizer(model)
    with SplitWriter(
        output / "evil" / "train",
        source="evil",
        split="train",
        modality="text",
        token_dtype="uint16",
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
        pack_tokens=60,
        shard_tokens=300,
        prep={},
    ) as writer:
        tokens = np.append(tokenizer.encode(hostile), tokenizer.end_of_text_id)
        writer.add(tokens, len(hostile.encode()), 1, None, "en\x1b[31m")
    text = printed(capsys, output / "evil", "--samples", 1)
    assert "x\\x1b]0;owned\\x07\\x1b[2J\\u202ey" in text
    assert "\x1b" not in text
    assert "\u202e" not in text


def test_an_empty_split_has_a_table_too(output, model):
    tokenizer = Tokenizer(model)
    with SplitWriter(
        output / "none" / "valid",
        source="none",
        split="valid",
        modality="text",
        token_dtype="uint16",
        tokenizer_fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
        pack_tokens=60,
        shard_tokens=300,
        prep={},
    ):
        pass
    reader = SplitReader(output / "none" / "valid")
    assert "bytes per token" in "\n".join(counts_table(reader.manifest, 8, reader.num_windows(8)))
    assert main_inspect([str(output / "none"), "--samples", "2", "--sequence-length", "8"]) == 0


def test_numbers_need_no_tokenizer_but_words_do(output, capsys):
    (output / "tokenizer" / "tokenizer.model").unlink()
    assert value_of(printed(capsys, output), "documents") == "8"
    with pytest.raises(UserError, match="no tokenizer here"):
        main_inspect([str(output), "--samples", "1"])


@pytest.mark.parametrize(
    "arguments", [["--samples", "-1"], ["--sequence-length", "0"], ["--characters", "0"], ["--samples", "x"], ["--sample", "1"]]
)
def test_wrong_arguments_are_one_line(output, arguments):
    with pytest.raises(UserError, match=r"at least|invalid int|unknown option"):
        main_inspect([str(output), *arguments])


def test_a_damaged_split_is_refused(output):
    (output / "code" / "train" / "shard-00000.tar").unlink()
    with pytest.raises(UserError, match="missing"):
        main_inspect([str(output)])
