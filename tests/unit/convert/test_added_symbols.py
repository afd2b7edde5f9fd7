"""`convert from-hf --add-symbols`: a full vocabulary gets rows for control symbols, and the model says what it said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_codemix.checkpoint import Checkpoint, from_hf
from megatron_codemix.checkpoint.hf_weights import HfWeights
from megatron_codemix.cli import main
from megatron_codemix.pieces import PieceReader
from megatron_codemix.tokenizer import Tokenizer

ENTRIES = 330
"""Of the models that `write_model` writes."""
EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
TEXT = "def f3(x):\n    return x + 3  # spam spam\n"


@pytest.fixture
def full(tmp_path: Path, write_model: Callable[..., Path], write_tokenizer: Callable[..., None]) -> Callable[..., Path]:
    """full(family, dtype) → a directory whose tokenizer has as many ids as its model entries, none of them for infilling."""

    def write(family: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
        folder = write_model(tmp_path / "theirs", family, dtype)
        write_tokenizer(folder, ENTRIES)
        return folder

    return write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "llama tied", "qwen2"])
def test_old_rows_stay_to_the_bit_and_new_ones_are_their_mean(
    tmp_path: Path, full: Callable[..., Path], family: str, dtype: torch.dtype, capsys: pytest.CaptureFixture
) -> None:
    original = full(family, dtype)
    taken, back = tmp_path / "ours", tmp_path / "back"
    assert main(["convert", "from-hf", str(original), str(taken), "--add-symbols"]) == 0
    said = capsys.readouterr().out
    tokenizer, checkpoint = Tokenizer.load(taken), Checkpoint.open(taken)
    added = tokenizer.vocab_size - ENTRIES
    assert f"{added} of them are appended, each the mean of its rows" in said
    assert checkpoint.record.vocab_size == tokenizer.vocab_size
    assert {"<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<pad>"} <= tokenizer.special_ids.keys()
    assert min(tokenizer.special_ids[name] for name in ("<fim_prefix>", "<fim_middle>", "<fim_suffix>")) >= ENTRIES
    theirs, ours = HfWeights(original), PieceReader(checkpoint.weights)
    for mine, name in {EMBEDDING: "model.embed_tokens.weight", OUTPUT: "lm_head.weight"}.items():
        if mine in ours.keys():  # noqa: SIM118
            old, new = theirs.whole(name).float(), ours.whole(mine)
            assert torch.equal(new[:ENTRIES], old)
            assert torch.equal(new[ENTRIES : tokenizer.vocab_size], old.double().mean(dim=0).float().expand(added, -1))
            assert not new[tokenizer.vocab_size :].any()
    assert (OUTPUT in ours.keys()) == (family != "llama tied")  # noqa: SIM118
    assert json.loads((taken / "origin.json").read_text())["added_entries"] == added

    assert main(["checkpoint", "verify", str(taken)]) == 0
    assert main(["convert", "to-hf", str(taken), str(back), "--dtype", "fp32"]) == 0
    assert json.loads((back / "codemix.json").read_text())["origin"]["added_entries"] == added
    assert f"with {added} entries behind its vocabulary, each the mean of its rows" in (back / "README.md").read_text()
    before, after = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (original, back))
    assert after.lm_head.weight.shape[0] == len(AutoTokenizer.from_pretrained(back)) == tokenizer.vocab_size
    tokens = torch.tensor([tokenizer.encode(TEXT).tolist()])
    with torch.no_grad():
        old, new = (model(tokens).logits.log_softmax(-1) for model in (before, after))
    lost = old - new[..., :ENTRIES]
    assert float(lost.min()) > -1e-4, "nothing that was there becomes likelier"
    assert float(lost.max()) < math.log1p(added / ENTRIES) + 1e-4, "and it loses no more than the mean can take"


def test_a_model_with_room_for_some_gets_rows_for_the_others(
    tmp_path: Path, full: Callable[..., Path], write_tokenizer: Callable[..., None]
) -> None:
    original = full()
    write_tokenizer(original, ENTRIES - 3)
    assert main(["convert", "from-hf", str(original), str(tmp_path / "without")]) == 0
    assert main(["convert", "from-hf", str(original), str(tmp_path / "with"), "--add-symbols"]) == 0
    without, grown = Tokenizer.load(tmp_path / "without"), Tokenizer.load(tmp_path / "with")
    assert without.vocab_size == ENTRIES < grown.vocab_size
    assert [grown.special_ids[name] for name in without.special_ids if name in grown.special_ids] == [
        without.special_ids[name] for name in without.special_ids if name in grown.special_ids
    ]
    assert without.encode(TEXT).tolist() == grown.encode(TEXT).tolist()
    assert "<pad>" in grown.special_ids


def test_what_needs_no_rows_or_has_too_many_ids_is_refused(
    tmp_path: Path,
    full: Callable[..., Path],
    write_tokenizer: Callable[..., None],
    refusal: Callable[..., str],
    capsys: pytest.CaptureFixture,
) -> None:
    original = full()
    for size in (ENTRIES + 20, 290):
        write_tokenizer(original, size)
        assert f"has {size} ids, and the model 330 entries" in refusal(capsys, original, tmp_path / "out", "--add-symbols")
    write_tokenizer(original, ENTRIES)
    assert main(["convert", "from-hf", str(original), str(tmp_path / "ours"), "--add-symbols"]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    assert "leave --add-symbols out" in refusal(capsys, tmp_path / "back", tmp_path / "again", "--add-symbols")
    assert main(["convert", "from-hf", str(tmp_path / "back"), str(tmp_path / "again")]) == 0


def test_a_wrong_new_row_is_refused(
    tmp_path: Path, full: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    original, calls = from_hf.write_weights, []

    def write(weights: Path, tensors: list) -> dict:
        def wrong(name: str, data):
            for chunk in data:
                calls.append(name)
                if name == EMBEDDING and len(chunk) > ENTRIES * 32 + 5:
                    chunk = chunk.clone()
                    chunk[ENTRIES * 32 + 5] += 1e-6
                yield chunk

        return original(weights, [(name, shape, wrong(name, data)) for name, shape, data in tensors])

    monkeypatch.setattr(from_hf, "write_weights", write)
    assert main(["convert", "from-hf", str(full()), str(tmp_path / "out"), "--add-symbols"]) == 1
    assert "refused, nothing was written" in capsys.readouterr().err
    assert EMBEDDING in calls
    assert not list(tmp_path.glob("*out*"))
