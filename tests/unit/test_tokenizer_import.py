"""Tokenizers taken over: every id as in the original, every text given back, what would alter one named or refused."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from megatron_codemix.errors import UserError
from megatron_codemix.tokenizer import JSON_NAME, MODEL_NAME, Tokenizer
from megatron_codemix.tokenizer.export import export_to_hf
from megatron_codemix.tokenizer.importing import Imported, import_tokenizer
from megatron_codemix.tokenizer.sentencepiece_kind import CONTROL, USER_DEFINED, parse_proto
from megatron_codemix.tokenizer.symbols import END_OF_TEXT, PAD, RESERVED, SPACE

HERE = Path(__file__).resolve().parents[2]
REAL = os.environ.get("CODEMIX_DATA", "")
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
UNKNOWN_TO_GIGATOKEN = r"\p{L}+|\s+|\p{N}+|[^\s\p{L}\p{N}]+"


def own_texts() -> list[str]:
    return [file.read_text("utf-8") for file in sorted((HERE / "megatron_codemix" / "config").glob("*.py"))]


def random_texts(count: int) -> list[str]:
    generator = random.Random(5)
    alphabet = [*" \n\t\r<>|_▁as0é日🎉\0'", *RESERVED[:10], "<|im_end|>", "</s>", "<0x41>", "    ", "▁▁", "--", "self.", " def", "<think>"]
    return ["".join(generator.choices(alphabet, k=generator.randint(1, 60))) for _ in range(count)]


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated", False), levels])


def byte_level(pre_tokenizer: Any, controls: list[str], others: list[str] = [], **changed: Any) -> Backend:  # noqa: B006
    backend = Backend(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False, special_tokens=controls[:1])
    backend.train_from_iterator(own_texts(), trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in controls[1:]])
    backend.add_tokens([AddedToken(name, special=False, normalized=False) for name in others])
    if changed:
        content = json.loads(backend.to_str())
        content["model"].update(changed)
        backend = Backend.from_str(json.dumps(content))
    return backend


def gpt2() -> Backend:
    backend = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False), [END_OF_TEXT])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def llama3() -> Backend:
    backend = byte_level(split_by(LLAMA3), ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"], ignore_merges=True)
    first = backend.token_to_id("<|begin_of_text|>")
    backend.post_processor = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", first)])
    return backend


def qwen() -> Backend:
    backend = byte_level(
        split_by(QWEN), [END_OF_TEXT, "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|file_sep|>"], ["<think>", "</think>"]
    )
    backend.normalizer = normalizers.NFC()
    return backend


def other_pattern() -> Backend:
    return byte_level(split_by(UNKNOWN_TO_GIGATOKEN), [END_OF_TEXT])


def sentencepiece_model(model_type: str = "bpe", **settings: Any) -> bytes:
    model = io.BytesIO()
    given = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False, **settings}
    sentences = (line for text in own_texts() for line in text.split("\n") if line)
    trainer = sentencepiece.SentencePieceTrainer
    trainer.train(sentence_iterator=sentences, model_writer=model, model_type=model_type, vocab_size=900, minloglevel=2, **given)
    return model.getvalue()


def as_llama2(model: bytes) -> Backend:
    """What transformers makes of a SentencePiece model with a space in front."""
    pieces = parse_proto(model, "model").pieces
    scores = {piece.piece: piece.score for piece in pieces if piece.type == 1}
    merges = [
        (-score, -cut, name[:cut], name[cut:])
        for name, score in scores.items()
        for cut in range(1, len(name))
        if name[:cut] in scores and name[cut:] in scores
    ]
    vocab = {piece.piece: number for number, piece in enumerate(pieces)}
    joined = [(left, right) for _, _, left, right in sorted(merges, key=lambda merge: merge[:2])]
    backend = Backend(models.BPE(vocab, joined, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    ending = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(ending)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def take(backend: Backend, folder: Path, end_of_text: str | None = None) -> tuple[Tokenizer, Imported]:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / JSON_NAME))
    taken = import_tokenizer(folder, end_of_text)
    return Tokenizer(taken.model), taken


def check(tokenizer: Tokenizer, texts: list[str]) -> None:
    for text, fast in zip(texts, tokenizer.encode_batch(texts), strict=True):
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint32
        np.testing.assert_array_equal(ids, fast, err_msg=repr(text))
        assert tokenizer.decode(ids) == text
        assert int(tokenizer.token_num_bytes[ids].sum()) == len(text.encode())
        assert set(ids.tolist()).isdisjoint(tokenizer.special_ids.values()), text


BYTE_LEVEL: dict[str, tuple[Callable[[], Backend], str, str]] = {
    "gpt2": (gpt2, END_OF_TEXT, "gigatoken"),
    "llama3": (llama3, "<|end_of_text|>", "gigatoken"),
    "qwen": (qwen, END_OF_TEXT, "gigatoken"),
    "other": (other_pattern, END_OF_TEXT, "tokenizers"),
}


@pytest.fixture(scope="module", params=BYTE_LEVEL)
def byte_level_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    make, closing, library = BYTE_LEVEL[request.param]
    original = make()
    tokenizer, taken = take(original, tmp_path_factory.mktemp(request.param))
    return original, closing, library, tokenizer, taken


def test_byte_level_keeps_every_id(byte_level_case) -> None:
    original, closing, library, tokenizer, taken = byte_level_case
    assert tokenizer.library == library
    assert tokenizer.end_of_text_id == original.token_to_id(closing)
    original.encode_special_tokens = True
    texts = [*own_texts(), "def f():\n\treturn 12345  # don't", "x\r\n\n  y"]
    for text in texts:
        assert tokenizer.encode(text).tolist() == original.encode(text, add_special_tokens=False).ids
    check(tokenizer, texts + random_texts(400))
    tokenizer.prove_fast(texts)
    assert set(RESERVED) <= tokenizer.special_ids.keys()
    assert tokenizer.vocab_size == max(*tokenizer.special_ids.values(), original.get_vocab_size() - 1) + 1
    assert any("closes documents" in line for line in taken.changes)


def test_byte_level_export_is_equal_and_the_same_tokenizer(byte_level_case, tmp_path: Path) -> None:
    original, closing, _, tokenizer, _ = byte_level_case
    assert export_to_hf(tokenizer, tmp_path, own_texts() + random_texts(200)) > 200
    assert not (tmp_path / MODEL_NAME).exists()
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("a b")["input_ids"] == tokenizer.encode("a b").tolist()  # nothing is added
    assert loaded.eos_token == closing and loaded.pad_token_id == tokenizer.pad_id
    assert closing in original.get_vocab()
    with pytest.raises(UserError, match="was not taken over"):
        original.save(str(tmp_path / "raw.json"))
        Tokenizer.load(tmp_path / "raw.json")


@pytest.mark.skipif(not Path(REAL, "corpus").is_dir() or not REAL, reason="CODEMIX_DATA is unset or has no corpus folder")
def test_real_documents_in_byte_level_vocabularies(byte_level_case, tmp_path: Path) -> None:
    def documents(name: str, count: int) -> list[str]:
        with gzip.open(Path(REAL, "corpus", f"{name}.jsonl.gz"), "rb") as lines:
            return [json.loads(line)["text"][:10_000] for line in itertools.islice(lines, 100, 100 + count)]

    tokenizer = byte_level_case[3]
    real = [text for name in ("code_python", "code_multi", "nl_textbooks", "nl_techdocs") for text in documents(name, 100)]
    check(tokenizer, real)
    export_to_hf(tokenizer, tmp_path, real[::4])


@pytest.fixture(scope="module")
def qwen_taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Imported]:
    return take(qwen(), tmp_path_factory.mktemp("q"))


def test_changes_and_stand_ins_are_named(qwen_taken: tuple[Tokenizer, Imported]) -> None:
    tokenizer, taken = qwen_taken
    assert any("NFC" in line for line in taken.changes)
    assert tokenizer.special_ids["<fim_prefix>"] == tokenizer.special_ids["<|fim_prefix|>"]
    assert tokenizer.special_ids["<file_sep>"] == tokenizer.special_ids["<|file_sep|>"]
    assert tokenizer.special_ids["<mask>"] > tokenizer.special_ids["<|file_sep|>"]
    assert tokenizer.decode([tokenizer.end_of_text_id, *tokenizer.encode("a <think>"), tokenizer.special_ids["<mask>"]]) == "a <think>"
    assert tokenizer.encode("<think>").size == 1  # no control symbol: a text may spell it


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60) | st.text(alphabet=" \n\t▁<|>ab\0'0", max_size=60))
def test_any_text_survives(qwen_taken: tuple[Tokenizer, Imported], text: str) -> None:
    check(qwen_taken[0], [text])


def test_pickles_and_surrogates(qwen_taken: tuple[Tokenizer, Imported]) -> None:
    tokenizer = qwen_taken[0]
    tokenizer.encode_batch(["warm"])
    copy = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301 - our own bytes
    assert (copy.fingerprint, copy.file_name) == (tokenizer.fingerprint, JSON_NAME)
    check(copy, ["a copy <|endoftext|>"])
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("a\ud800")


def test_sentencepiece_with_a_space_in_front(tmp_path: Path) -> None:
    model = sentencepiece_model(user_defined_symbols=["<think>", "\n"])
    (tmp_path / "spiece.model").write_bytes(model)
    taken = import_tokenizer(tmp_path / "spiece.model")
    tokenizer = Tokenizer(taken.model)
    original = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert any("add_dummy_prefix" in line for line in taken.changes)
    assert tokenizer.library == "gigatoken"
    assert tokenizer.end_of_text_id == original.piece_to_id("</s>")
    for text in own_texts():
        assert tokenizer.encode(" " + text).tolist() == original.encode(text)  # the space in front is now the text's own affair
    check(tokenizer, own_texts() + random_texts(600))
    assert export_to_hf(tokenizer, tmp_path / "out", own_texts() + random_texts(300)) > 300
    assert Tokenizer.load(tmp_path / "out").fingerprint == tokenizer.fingerprint
    assert tokenizer.special_ids["<mask>"] >= 900 > tokenizer.special_ids["</s>"]


def test_sentencepiece_like_json_equals_the_model_it_came_from(tmp_path: Path) -> None:
    model = sentencepiece_model(user_defined_symbols=["\n"])
    original = sentencepiece.SentencePieceProcessor(model_proto=model)
    tokenizer, taken = take(as_llama2(model), tmp_path / "json")
    assert any("Prepend" in line for line in taken.changes)
    assert (tokenizer.library, tokenizer.file_name) == ("gigatoken", JSON_NAME)
    texts = [text.replace("\n", " ") for text in own_texts()]
    for text in texts:
        assert tokenizer.encode(" " + text).tolist() == original.encode(text)
    check(tokenizer, texts + random_texts(400))
    assert export_to_hf(tokenizer, tmp_path / "out", texts + random_texts(200)) > 200


def test_unigram_with_a_normaliser(tmp_path: Path) -> None:
    model = sentencepiece_model(
        "unigram",
        normalization_rule_name="nmt_nfkc",
        remove_extra_whitespaces=True,
        add_dummy_prefix=False,
        user_defined_symbols=["<think>"],
    )
    (tmp_path / MODEL_NAME).write_bytes(model)
    taken = import_tokenizer(tmp_path)
    tokenizer = Tokenizer(taken.model)
    changes = " ".join(taken.changes)
    assert all(word in changes for word in ("nmt_nfkc", "remove_extra_whitespaces", "1/1024"))
    assert tokenizer.library == "sentencepiece"
    assert tokenizer.encode("<think>").size == 1
    check(tokenizer, own_texts() + random_texts(600))
    original = sentencepiece.SentencePieceProcessor(model_proto=model)
    lines = [" ".join(line.split()) for text in own_texts() for line in text.split("\n") if line.isascii()]
    scores = np.array([piece.score for piece in parse_proto(model, "model").pieces])
    for line in lines:
        ids, best = tokenizer.encode(line), np.array(original.encode(line), dtype=np.int64)
        # as probable as the original's best, but for what was rounded
        assert scores[ids].sum() >= scores[best].sum() - max(ids.size, best.size) / 1024
    assert sum(tokenizer.encode(line).tolist() == original.encode(line) for line in lines) >= 0.95 * len(lines)
    assert export_to_hf(tokenizer, tmp_path / "out", own_texts() + random_texts(300)) > 300


def test_reserved_names_among_pieces_become_control_symbols(tmp_path: Path) -> None:
    model = sentencepiece_model(
        user_defined_symbols=["<mask>", "<keep>"], control_symbols=["<pad>", "<|fim_middle|>"], add_dummy_prefix=False
    )
    kinds = {piece.piece: piece.type for piece in parse_proto(model, "model").pieces}
    assert (kinds["<mask>"], kinds["<pad>"]) == (USER_DEFINED, CONTROL)
    (tmp_path / MODEL_NAME).write_bytes(model)
    taken = import_tokenizer(tmp_path)
    tokenizer = Tokenizer(taken.model)
    assert any("<mask> is a control symbol now" in line for line in taken.changes)
    assert tokenizer.encode("<mask>").size > 1
    assert tokenizer.encode("<keep>").size == 1
    assert tokenizer.pad_id == tokenizer.special_ids[PAD] < 900
    assert tokenizer.special_ids["<fim_middle>"] == tokenizer.special_ids["<|fim_middle|>"]


def test_the_symbol_that_closes_documents_can_be_named(tmp_path: Path) -> None:
    backend = byte_level(split_by(QWEN), ["<|turn|>", "<|stop|>"])
    with pytest.raises(UserError, match=r"name one with tokenizer.end_of_text \(<\|turn\|>, <\|stop\|>\)"):
        take(backend, tmp_path)
    tokenizer, _ = take(backend, tmp_path, "<|stop|>")
    assert tokenizer.end_of_text_id == backend.token_to_id("<|stop|>") == tokenizer.special_ids[END_OF_TEXT]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|turn|>"}}))
    assert take(backend, tmp_path)[0].end_of_text_id == backend.token_to_id("<|turn|>")
    with pytest.raises(UserError, match="no control symbol 'x'"):
        take(backend, tmp_path, "x")
    (tmp_path / "s.model").write_bytes(sentencepiece_model(control_symbols=["<turn>"]))
    named = Tokenizer(import_tokenizer(tmp_path / "s.model", "<turn>").model)
    assert named.end_of_text_id == named.special_ids["<turn>"] == named.special_ids[END_OF_TEXT]


def altered(make: Callable[[], Backend], **parts: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        content = json.loads(make().to_str())
        for name, value in parts.items():
            content["model"].update(value) if name == "model" else content.update({name: value})
        (folder / JSON_NAME).write_text(json.dumps(content))
        return folder

    return write


def written(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def greedy(token: str) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": False}
    return [{"id": 0, "content": END_OF_TEXT, **flags, "special": True, "lstrip": False}, {"id": 900, "content": token, **flags}]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder, "holds neither tokenizer.model nor tokenizer.json"),
        (lambda folder: folder / "absent.model", "no such file"),
        (written("a.model", b"\x00garbage"), "not a SentencePiece model"),
        (written("a.json", b'{"model": 3}'), "is not a tokenizer.json"),
        (written("a.json", b'{"truncated": '), "is not a tokenizer.json"),
        (written("a.json", b'{"model": ' + b"[" * 200_000), "is not a tokenizer.json"),
        (altered(gpt2, pre_tokenizer={"type": "Whitespace"}), "loses whitespace"),
        (altered(gpt2, pre_tokenizer=None), "neither byte-level BPE nor"),
        (altered(gpt2, model={"dropout": 0.1}), "at random"),
        (altered(gpt2, model={"end_of_word_suffix": "</w>"}), "parts of words"),
        (altered(gpt2, model={"type": "WordPiece"}), "is a WordPiece tokenizer, not BPE"),
        (altered(gpt2, model={"byte_fallback": True}), "has not all 256 byte tokens"),
        (altered(gpt2, added_tokens=greedy("<x>")), "takes whitespace with it"),
        (altered(gpt2, model={"vocab": {END_OF_TEXT: 0, "a": 1}, "merges": []}), "of the 256 bytes are not in its vocabulary"),
        (written("w.model", sentencepiece_model("word", byte_fallback=False)), "neither BPE nor unigram"),
        (written("w.model", sentencepiece_model(byte_fallback=False)), "no byte fallback"),
        (written("w.model", sentencepiece_model(treat_whitespace_as_suffix=True)), "unusual way"),
    ],
)
def test_what_cannot_be_lossless_is_refused_in_one_line(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        import_tokenizer(write(tmp_path))
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith("tokenizer.from_file: ")
    assert "\n" not in caught.value.problems[0]


# Oniguruma gives up on it, and the library then panics.
BACKTRACKS = r"(a|aa)+$|(.*)*x|(\w+\s?)*!"


def test_a_pattern_that_cannot_be_run_is_refused_in_one_line(tmp_path: Path) -> None:
    pre_tokenizer = json.loads(gpt2().to_str())["pre_tokenizer"]
    split = {"type": "Split", "pattern": {"Regex": BACKTRACKS}, "behavior": "Isolated", "invert": False}
    levels = {**pre_tokenizer, "add_prefix_space": False, "use_regex": False}
    write = altered(gpt2, pre_tokenizer={"type": "Sequence", "pretokenizers": [split, levels]})
    with pytest.raises(UserError, match="pattern cannot be run") as caught:
        import_tokenizer(write(tmp_path))
    assert len(caught.value.problems) == 1 and "\n" not in caught.value.problems[0]


def test_a_configuration_nested_without_end_is_none(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(b'{"eos_token": ' + b"[" * 200_000)
    tokenizer, _ = take(gpt2(), tmp_path)
    check(tokenizer, ["a text"])
    assert tokenizer.vocab_size > len(RESERVED)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to every part of a JSON value, large tables by a few of their entries."""
    inner = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    return [path] + [found for key, one in inner[:12] for found in places(one, (*path, key))]


def problems_of(file: Path) -> tuple[str, ...]:
    """Why a file is refused; none for one that is taken over, which is then lossless."""
    try:
        tokenizer = Tokenizer(import_tokenizer(file).model)
    except UserError as error:
        return tuple(error.problems)
    check(tokenizer, ["a text ▁ <|endoftext|>\n  é"])
    return ()


@pytest.fixture(scope="module")
def gpt2_json() -> str:
    return gpt2().to_str()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_json_is_taken_whole_or_refused_in_one_line(gpt2_json: str, tmp_path_factory: Any, data: st.DataObject) -> None:
    content = json.loads(gpt2_json)
    *way, last = data.draw(st.sampled_from(places(content)[1:]))
    part = content
    for key in way:
        part = part[key]
    replacement = data.draw(st.sampled_from(["gone", None, 3, "x", [], {}, True, -1]))
    if replacement == "gone":
        del part[last]
    else:
        part[last] = replacement
    file = tmp_path_factory.mktemp("damaged") / JSON_NAME
    file.write_text(json.dumps(content))
    assert len(problems_of(file)) <= 1


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400), flipped=st.integers(0, 10**6))
def test_a_damaged_model_is_taken_whole_or_refused_in_one_line(spiece: bytes, tmp_path_factory: Any, cut: int, flipped: int) -> None:
    content = bytearray(spiece[: len(spiece) - cut])
    content[flipped % len(content)] ^= 0x15
    file = tmp_path_factory.mktemp("damaged") / MODEL_NAME
    file.write_bytes(content)
    assert len(problems_of(file)) <= 1


@pytest.fixture(scope="module")
def spiece() -> bytes:
    return sentencepiece_model(user_defined_symbols=["\n"])
