"""The tokenizer: lossless, its two engines equal, its reserved symbols out of reach of text."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import pickle
import random
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_codemix.errors import UserError
from megatron_codemix.tokenizer import EngineMismatch, Tokenizer
from megatron_codemix.tokenizer.sentencepiece_kind import CONTROL, NORMAL, SCORE_STEP, USER_DEFINED
from megatron_codemix.tokenizer.symbols import END_OF_TEXT, NUM_RESERVED, PAD, RESERVED, SPACE, WHITESPACE
from megatron_codemix.tokenizer.training import train_tokenizer

HERE = Path(__file__).resolve().parents[2]
REAL = os.environ.get("CODEMIX_DATA", "")


def own_texts() -> list[str]:
    """This project's own sources and pages: code and prose that are always here."""
    folders = ("megatron_codemix", "data_prep", "docs")
    files = sorted(file for folder in folders for file in (HERE / folder).rglob("*") if file.suffix in (".py", ".md"))
    return [file.read_text("utf-8") for file in files]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    literals = ["<mask> <python> <|endoftext|> <0x41> ▁▁"] * 200
    texts = own_texts() if request.param == "bpe" else own_texts()[:60]  # which is slow to learn
    return Tokenizer(train_tokenizer(texts + literals, 2048, request.param))


ADVERSARIAL = [
    *("<s>hi</s>", "<pad> <unk>", "<0x0A>", "a  b", " x", "  x", "   ", "\n\n\n  a", "x\r\ny", "\u00a0a\u2003b", "日本語 🎉🎉 ñ"),
    *("▁literal▁▁under", "▁", "x▁", "▁ y", "\x00\x01", "\x002\x00", "a\u0301 é", "<fim_prefix> a<fim_suffix>", "x<|user|>y"),
    *("    <|user|>   \n", "  " * 9, "\ufeffbom", "\ud7ff", "", "  \n  \n", "12345 3.14", "A" * 3000, " " * 1000, "-" * 77, "ab" * 99),
]


def random_texts(count: int) -> list[str]:
    generator = random.Random(0)
    alphabet = [*" \n\t\r<>|_▁as0é日🎉\0", *RESERVED[:20], "</s>", "<0x41>", "    ", "▁▁", "--", "==", "self."]
    return ["".join(generator.choices(alphabet, k=generator.randint(1, 60))) for _ in range(count)]


def check(tokenizer: Tokenizer, texts: list[str]) -> None:
    for text, fast in zip(texts, tokenizer.encode_batch(texts), strict=True):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint32
        np.testing.assert_array_equal(ids, fast, err_msg=repr(text))
        assert tokenizer.decode(ids) == text
        assert int(tokenizer.token_num_bytes[ids].sum()) == len(text.encode())
        assert not np.any(ids < NUM_RESERVED), text


def test_adversarial_texts_survive_and_engines_agree(tokenizer: Tokenizer) -> None:
    check(tokenizer, ADVERSARIAL + random_texts(1500))


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=80) | st.text(alphabet=" \n\t▁<|>ab\0", max_size=80))
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    check(tokenizer, [text])


def test_reserved_symbols_have_the_same_ids_in_every_vocabulary(tokenizer: Tokenizer) -> None:
    other = Tokenizer(train_tokenizer(["some other text 123\n"] * 50 + own_texts()[:20], 900))
    for made in (tokenizer, other):
        assert list(made.special_ids) == list(RESERVED)
        assert list(made.special_ids.values()) == list(range(NUM_RESERVED))
        assert (made.end_of_text_id, made.pad_id) == (RESERVED.index(END_OF_TEXT), RESERVED.index(PAD))
    assert sum(name.startswith("<spare_") for name in RESERVED) == 64
    assert len(set(RESERVED)) == len(RESERVED)
    kinds = {piece.piece: piece.type for piece in tokenizer.reference.proto.pieces}
    expected = NORMAL if tokenizer.reference.is_unigram else USER_DEFINED
    assert all(kinds[run] == expected for run in WHITESPACE)
    assert kinds["<fim_middle>"] == CONTROL


def test_every_whitespace_run_is_one_token(tokenizer: Tokenizer) -> None:
    for run in WHITESPACE:
        assert tokenizer.encode(f"x{run.replace(SPACE, ' ')}x").size == 3, repr(run)


def test_digits_are_split(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("2024").size == 4


def test_training_is_deterministic_and_pickling_keeps_the_model(tokenizer: Tokenizer) -> None:
    texts = own_texts()[:30]
    model_type = "unigram" if tokenizer.reference.is_unigram else "bpe"
    assert train_tokenizer(texts, 1000, model_type) == train_tokenizer(texts, 1000, model_type)
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - our own bytes
    assert copy.fingerprint == tokenizer.fingerprint


def test_control_symbols_decode_to_nothing(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.end_of_text_id, *tokenizer.encode("a b"), tokenizer.special_ids["<mask>"]]
    assert tokenizer.decode(ids) == "a b"


def test_lone_surrogate_is_no_text(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("a\ud800")


def test_difference_between_engines_is_found(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.prove_fast(["fine", "a ▁ b"])
    if tokenizer.library == "sentencepiece":
        pytest.skip("unigram has one engine")
    broken = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - our own bytes
    monkeypatch.setattr(broken, "_encode_fast", lambda text: tokenizer.encode(text)[:-1])
    with pytest.raises(EngineMismatch, match="first difference at token"):
        broken.prove_fast(["some words"])


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_vocabulary_too_large_names_the_largest(model_type: Literal["bpe", "unigram"]) -> None:
    with pytest.raises(UserError, match="largest possible is") as caught:
        train_tokenizer(["def f(x): return x\n"] * 20, 50_000, model_type)
    largest = int(str(caught.value).split("largest possible is ")[1].split(":")[0])
    assert Tokenizer(train_tokenizer(["def f(x): return x\n"] * 20, largest, model_type)).vocab_size == largest


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
@pytest.mark.parametrize(("texts", "size", "message"), [(["abc"], 100, "too small"), ([], 1000, "no text"), (["", "▁"], 1000, "no text")])
def test_impossible_training_is_one_line(texts: list[str], size: int, message: str, model_type: Literal["bpe", "unigram"]) -> None:
    with pytest.raises(UserError, match=message) as caught:
        train_tokenizer(texts, size, model_type)
    assert len(caught.value.problems) == 1


def test_unigram_sums_are_exact(tokenizer: Tokenizer) -> None:
    if not tokenizer.reference.is_unigram:
        pytest.skip("BPE adds nothing up")
    scores = np.array([piece.score for piece in tokenizer.reference.proto.pieces])
    assert np.array_equal(scores * SCORE_STEP, np.round(scores * SCORE_STEP))
    # the worst part of a text, in steps, is an integer that single precision holds
    assert 512 * (10 - scores.min()) * SCORE_STEP <= 2**24
    inexact = type(tokenizer.reference.proto)()
    inexact.CopyFrom(tokenizer.reference.proto)
    inexact.pieces[-1].score += 1e-4
    with pytest.raises(UserError, match="exact sums"):
        Tokenizer(inexact.SerializeToString())


def test_unfit_models_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="codemix prep tokenizer"):
        Tokenizer.load(tmp_path / "absent")
    with pytest.raises(UserError, match="codemix prep tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x00not a model")
    with pytest.raises(UserError, match="SentencePiece model"):
        Tokenizer.load(tmp_path)
    lossy = type(tokenizer.reference.proto)()
    lossy.CopyFrom(tokenizer.reference.proto)
    lossy.normalizer_spec.add_dummy_prefix = True
    (tmp_path / "tokenizer.model").write_bytes(lossy.SerializeToString())
    with pytest.raises(UserError, match="not lossless"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(tokenizer.model)
    assert Tokenizer.load(tmp_path).fingerprint == Tokenizer.load(tmp_path / "tokenizer.model").fingerprint


@pytest.mark.skipif(not Path(REAL, "corpus").is_dir() or not REAL, reason="CODEMIX_DATA is unset or has no corpus folder")
def test_real_documents_survive_and_engines_agree() -> None:
    def documents(name: str, start: int, count: int) -> list[str]:
        with gzip.open(Path(REAL, "corpus", f"{name}.jsonl.gz"), "rb") as lines:
            return [json.loads(line)["text"][:20_000] for line in itertools.islice(lines, start, start + count)]

    names = ("code_python", "code_multi", "nl_textbooks", "nl_techdocs")
    tokenizer = Tokenizer(train_tokenizer([text for name in names for text in documents(name, 0, 60)], 8000))
    check(tokenizer, [text for name in names for text in documents(name, 100, 250)])
