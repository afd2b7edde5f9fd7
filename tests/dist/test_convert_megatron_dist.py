"""Checkpoints that megatron-core wrote under several layouts, taken over: every weight is found, to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from megatron_codemix.checkpoint import Checkpoint
from megatron_codemix.checkpoint.imported import building_config
from megatron_codemix.cli import main
from megatron_codemix.model import build_model
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import PieceReader

ENTRIES, SEED = 330, 3
CASES = {
    "llama-tensor_2_and_pipeline_2": "LlamaForCausalLM",
    "llama-a_key_for_each_layer": "LlamaForCausalLM",
    "llama-tied-tensor_4": "LlamaForCausalLM",
    "qwen2-bf16-pipeline_4": "Qwen2ForCausalLM",
    "qwen3-tensor_2": "Qwen3ForCausalLM",
    "starcoder2-tensor_2": "Starcoder2ForCausalLM",
}


@pytest.fixture(scope="module")
def saved(shared: Callable[..., Path], launch: Callable[..., str]) -> Path:
    """FOLDER/CASE, as megatron_worker.py writes them, and FOLDER/tokenizer.json."""

    def make(folder: Path) -> None:
        launch("megatron_worker.py", folder, ranks=4)
        backend = Backend(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        texts = [f"def f{number}(x):\n    return x + {number}  # spam\n" for number in range(60)]
        backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]))
        backend.save(str(folder / "tokenizer.json"))

    return shared("saved", make)


@pytest.mark.parametrize("case", CASES)
def test_every_layout_gives_the_weights_that_were_saved(saved: Path, tmp_path: Path, case: str) -> None:
    taken = tmp_path / "taken"
    assert main(["convert", "from-megatron", str(saved / case), str(taken), "--tokenizer", str(saved / "tokenizer.json")]) == 0
    record = Checkpoint.open(taken).record
    is_bf16 = "bf16" in case
    # megatron-core's own norms stay in fp32
    assert (record.vocab_size, record.padded_vocab_size, record.precision) == (ENTRIES, 384, "mixed" if is_bf16 else "fp32")
    assert record.model.architecture == CASES[case]

    config = building_config("same", record.model, 96, taken)
    config = config.model_copy(update={"seeds": config.seeds.model_copy(update={"init": SEED})})
    reader = PieceReader(taken / "weights")
    with Topology.join(config.parallel):
        model = build_model(config, ENTRIES)
        for name, parameter in model.named_parameters():
            expected = parameter.bfloat16().float() if is_bf16 else parameter
            assert torch.equal(reader.whole(name), expected), name
        assert {name for name, _ in model.named_parameters()} == set(reader.keys())

    assert main(["convert", "to-hf", str(taken), str(tmp_path / "hf"), "--dtype", "bf16" if is_bf16 else "fp32"]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert type(exported).__name__ == CASES[case]
    assert exported.get_input_embeddings().weight.shape == (ENTRIES, 32)
    assert "(megatron-lm, " in (tmp_path / "hf" / "README.md").read_text()
    assert json.loads((tmp_path / "hf" / "codemix.json").read_text())["origin"]["kind"] == "megatron-lm"
