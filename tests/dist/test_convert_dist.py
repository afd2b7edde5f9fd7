"""Checkpoints of one training state, written under every layout, convert to the same files bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_codemix.cli import main
from megatron_codemix.tokenizer.training import train_tokenizer

CASES = {
    # the first of each trains two steps, and the others take over what it saved
    "fp32, untied": ["data", "tensor", "pipeline", "distributed", "context", "virtual"],
    "fp32, tied": ["data", "tensor", "virtual"],
    "bf16, tied": ["data", "tensor", "distributed", "virtual"],
}
_PUBLISH = """
import dataclasses, json, sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
import torch
torch.set_num_threads(1)
from megatron_codemix.checkpoint import Checkpoint, State
from megatron_codemix.checkpoint.publish import publish
from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import PieceReader
from megatron_codemix.tokenizer import Tokenizer

PARALLEL = {
    "data": {}, "tensor": {"tensor": 2, "sequence": True}, "pipeline": {"pipeline": 2}, "distributed": {"distributed_optimizer": True},
    "context": {"context": 2, "tensor": 2}, "virtual": {"pipeline": 2, "virtual_stages": 2, "distributed_optimizer": True},
}

@dataclasses.dataclass(frozen=True)
class Batch:
    tokens: torch.Tensor
    labels: torch.Tensor
    target_mask: torch.Tensor
    loss_weights: torch.Tensor
    positions: torch.Tensor
    document_ids: torch.Tensor
    prefix: torch.Tensor | None = None

def batch(step, rank):
    tokens = torch.randint(0, 400, (1, 33), generator=torch.Generator().manual_seed(10 * step + rank))
    ones = torch.ones(1, 32)
    return Batch(tokens[:, :-1], tokens[:, 1:], ones.long(), ones, torch.arange(32)[None], torch.zeros(1, 32, dtype=torch.int64))

def work(folder):
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    for case, layouts in json.loads(sys.argv[2]).items():
        for name in layouts:
            raw = {
                "name": name, "output": str(folder / case / name), "tokenizer": str(folder), "parallel": PARALLEL[name],
                "precision": case[:4], "micro_batch_size": 1, "sources": {"code": {"path": str(folder / "nowhere")}},
                "model": {"num_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 48,
                          "init_std": 0.3, "tied_embeddings": not case.endswith("untied")},
                "stages": [{"name": "s", "tokens": 256, "mixture": {"code": 1}, "batch_size": 8, "sequence_length": 32,
                            "learning_rate": {"shape": "constant", "peak": 0.01}}],
            }
            config = parse_config(raw, RunConfig, name)
            with Topology.join(config.parallel) as topology:
                engine = MegatronEngine(config, tokenizer.vocab_size, topology)
                if name == layouts[0]:
                    for step in range(2):
                        engine.train_step([batch(step, topology.rank)], 0.01)
                else:
                    engine.load_pieces(PieceReader(Checkpoint.open(folder / case / layouts[0]).weights))
                state = State(2, config, tokenizer.vocab_size, tokenizer.model, "0" * 64, {"code": 0},
                              {"format_version": 1, "sources": {}}, {"format_version": 1, "plan": None, "intervals": [], "skipped": []},
                              world_size=topology.world_size)
                publish(config.output, state, engine.pieces(), topology, form="neutral" if name == "context" else "routine")
                topology.barrier()

if __name__ == "__main__":
    work(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def runs(shared: Callable[..., Path], launch: Callable[..., str]) -> Path:
    def make(folder: Path) -> None:
        texts = [f"def f{number}(x):\n    return x + {number}  # spam\n" for number in range(50)]
        (folder / "tokenizer.model").write_bytes(train_tokenizer(texts, 440))
        script = folder / "publish.py"
        script.write_text(_PUBLISH)
        launch(script, folder, json.dumps(CASES), ranks=4, seconds=600)

    return shared("published", make)


def converted(run: Path, out: Path, *options: str) -> dict[str, torch.Tensor]:
    assert main(["convert", "to-hf", str(run), str(out), *options]) == 0
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_every_layout_gives_the_same_files(runs: Path, tmp_path: Path, case: str) -> None:
    first, *others = CASES[case]
    expected = converted(runs / case / first, tmp_path / first)
    for name in others:
        weights = converted(runs / case / name, tmp_path / name)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in expected), name


def test_a_bf16_run_gives_its_master_weights_or_what_it_computed_with(runs: Path, tmp_path: Path) -> None:
    run = runs / "bf16, tied" / "distributed"
    masters = converted(run, tmp_path / "fp32")
    computed_with = converted(run, tmp_path / "bf16", "--dtype", "bf16")
    assert all(tensor.dtype == torch.float32 for tensor in masters.values())
    assert all(torch.equal(tensor, masters[name].bfloat16()) for name, tensor in computed_with.items())
    assert any(not torch.equal(tensor.float(), masters[name]) for name, tensor in computed_with.items()), "training moved the masters"
