"""A tiny Hugging Face directory: random Llama, byte-fallback BPE tokenizer in the manner of our export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 32
_WORDS = ("def", "return", "the", "and", "in", "er", "re", "on", "at", "th", "it", "or", "▁t", "▁a", "▁def", "▁return", "▁the")


def _tokenizer() -> PreTrainedTokenizerFast:
    """BPE with byte fallback: letters, a few merges, 256 byte pieces, one whitespace run, three control symbols."""
    pieces = ["<unk>", "<s>", "<|endoftext|>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁▁▁"]
    letters = [chr(code) for code in range(33, 127)] + ["▁", "\n"]
    merges: list[tuple[str, str]] = []
    known = set(letters)
    for word in _WORDS:
        for end in range(2, len(word) + 1):
            if word[:end] not in known:
                known.add(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    pieces += letters + [left + right for left, right in merges]
    model = models.BPE({piece: index for index, piece in enumerate(pieces)}, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=False)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in pieces[:4]])
    tokenizer.add_tokens([AddedToken("▁▁▁▁", normalized=True, special=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_model(seed=0, codemix=None, **LlamaConfig fields) → a directory."""

    def make(seed: int = 0, codemix: dict | None = None, **fields) -> Path:
        folder = tmp_path_factory.mktemp("model")
        tokenizer = _tokenizer()
        shape = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "initializer_range": 0.3,
        }
        generator_state = torch.get_rng_state()
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**shape, **fields}))
        torch.set_rng_state(generator_state)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if codemix is not None:
            (folder / "codemix.json").write_text(json.dumps(codemix))
        return folder

    return make


@pytest.fixture(scope="session")
def model_folder(make_model) -> Path:
    """A model of unknown origin: texts start behind its BOS."""
    return make_model()


@pytest.fixture(scope="session")
def codemix_folder(make_model) -> Path:
    """The same weights as a conversion of ours: texts start behind end-of-text."""
    return make_model(codemix={"format_version": 1})


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """write_rows(name, rows) → a jsonl file."""

    def write(name: str, rows: list[dict]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write
