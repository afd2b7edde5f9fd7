"""The export to Hugging Face gives SentencePiece's ids and gives back the text, or does not finish."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
from pathlib import Path
from typing import Literal

import pytest
from tokenizers import models
from transformers import AutoTokenizer, LlamaConfig

from megatron_codemix.tokenizer import EngineMismatch, Tokenizer, export
from megatron_codemix.tokenizer.export import export_to_hf, prove_export
from megatron_codemix.tokenizer.proof_texts import PROOF_TEXTS
from megatron_codemix.tokenizer.symbols import END_OF_TEXT, PAD, RESERVED
from megatron_codemix.tokenizer.training import train_tokenizer

HERE = Path(__file__).resolve().parents[2]
REAL = os.environ.get("CODEMIX_DATA", "")


def own_texts() -> list[str]:
    files = sorted(file for folder in ("megatron_codemix", "docs") for file in (HERE / folder).rglob("*") if file.suffix in (".py", ".md"))
    return [file.read_text("utf-8") for file in files]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(train_tokenizer(own_texts()[: None if request.param == "bpe" else 60], 2048, request.param))


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hf")
    generator = random.Random(1)
    alphabet = [*" \n\t\r<>|_▁as0é日🎉\0", *RESERVED[:12], "<0x41>", "    ", "▁▁", "--", "self."]
    texts = ["".join(generator.choices(alphabet, k=generator.randint(1, 50))) for _ in range(1000)]
    runs = ["".join(generator.choices("aab-= ", k=generator.randint(1, 80))) for _ in range(500)]
    assert export_to_hf(tokenizer, place, [*own_texts()[:40], *texts, *runs]) == 1540 + len(PROOF_TEXTS)
    return place


def test_files_and_plain_loading(tokenizer: Tokenizer, folder: Path) -> None:
    names = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"}
    assert names <= {file.name for file in folder.iterdir()}
    assert (folder / "tokenizer.model").read_bytes() == tokenizer.model
    loaded = AutoTokenizer.from_pretrained(folder)
    text = "def f(x):\n    return ▁x  # 12▁\n"
    assert loaded(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(text).tolist()
    assert loaded(text)["input_ids"] == tokenizer.encode(text).tolist()
    assert set(loaded(text)) == {"input_ids", "attention_mask"}
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == (END_OF_TEXT, END_OF_TEXT, PAD)
    assert loaded.eos_token_id == tokenizer.end_of_text_id


def test_control_literals(tokenizer: Tokenizer, folder: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(folder)
    text = f"a{END_OF_TEXT}b"
    assert tokenizer.end_of_text_id in loaded(text)["input_ids"]
    assert loaded(text, split_special_tokens=True)["input_ids"] == tokenizer.encode(text).tolist()
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == "ab"


def test_beside_a_llama_config_and_saved_again(tokenizer: Tokenizer, tmp_path: Path) -> None:
    export_to_hf(tokenizer, tmp_path / "model")
    LlamaConfig(vocab_size=2048, hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path / "model")
    prove_export(tokenizer, tmp_path / "model")
    AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "again")
    assert prove_export(tokenizer, tmp_path / "again") == len(PROOF_TEXTS)


def test_a_difference_stops_the_export(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = export._backend

    def without_merges(source: Tokenizer):
        backend = made(source)
        # merges, or the whole model, gone
        backend.model = models.BPE(vocab=backend.get_vocab(), merges=[], unk_token="<unk>", byte_fallback=True)
        return backend

    monkeypatch.setattr(export, "_backend", without_merges)
    with pytest.raises(EngineMismatch, match="other ids"):
        export_to_hf(tokenizer, tmp_path)


@pytest.mark.skipif(not Path(REAL, "corpus").is_dir() or not REAL, reason="CODEMIX_DATA is unset or has no corpus folder")
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_thousand_real_documents(tmp_path: Path, model_type: Literal["bpe", "unigram"]) -> None:
    def documents(name: str, start: int, count: int) -> list[str]:
        with gzip.open(Path(REAL, "corpus", f"{name}.jsonl.gz"), "rb") as lines:
            return [json.loads(line)["text"][:20_000] for line in itertools.islice(lines, start, start + count)]

    names = ("code_python", "code_multi", "nl_textbooks", "nl_techdocs")
    learned = [text for name in names for text in documents(name, 0, 60)]
    tokenizer = Tokenizer(train_tokenizer(learned, 8000, model_type))
    real = [text for name in names for text in documents(name, 100, 250)]
    assert export_to_hf(tokenizer, tmp_path, real) == 1000 + len(PROOF_TEXTS)
