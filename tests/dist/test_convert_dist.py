"""Checkpoints of two processes, cut by tensors and by layers, convert to the same files as one process's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_codemix.cli import main
from megatron_codemix.tokenizer_training import train_tokenizer

# Initial weights are keyed by name, so every layout starts from the same model.
_PUBLISH = """
import sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
import torch
torch.set_num_threads(1)
from megatron_codemix.checkpoint import State
from megatron_codemix.checkpoint.publish import publish
from megatron_codemix.config import RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.parallel import Topology
from megatron_codemix.tokenizer import Tokenizer

def work(folder):
    tokenizer = Tokenizer.load(folder / "tokenizer.model")
    for tied in (False, True):
        for name, parallel in (("tensor", {"tensor": 2}), ("pipeline", {"pipeline": 2}), ("data", {})):
            raw = {
                "name": name, "output": str(folder / f"{name}-{tied}"), "tokenizer": str(folder), "parallel": parallel, "precision": "fp32",
                "sources": {"code": {"path": str(folder / "nowhere")}},
                "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 48,
                          "init_std": 0.3, "tied_embeddings": tied},
                "stages": [{"name": "s", "tokens": 64, "mixture": {"code": 1}, "batch_size": 2, "sequence_length": 32,
                            "learning_rate": {"shape": "constant", "peak": 0.01}}],
            }
            config = parse_config(raw, RunConfig, name)
            with Topology.join(config.parallel) as topology:
                engine = MegatronEngine(config, tokenizer.vocab_size, topology)
                state = State(1, config, tokenizer.vocab_size, tokenizer.model, "0" * 64, {"code": 0},
                              {"format_version": 1, "sources": {}}, {"format_version": 1, "plan": None, "intervals": [], "skipped": []})
                publish(config.output, state, engine.pieces(), topology)

if __name__ == "__main__":
    work(Path(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    texts = [f"def f{number}(x):\n    return x + {number}  # spam\n" for number in range(50)]
    (folder / "tokenizer.model").write_bytes(train_tokenizer(texts, 440))
    script = folder / "publish.py"
    script.write_text(_PUBLISH)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return folder


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_every_layout_gives_the_same_files(runs: Path, tmp_path: Path, tied: bool) -> None:
    weights = {}
    for name in ("data", "tensor", "pipeline"):
        assert main(["convert", "to-hf", str(runs / f"{name}-{tied}"), str(tmp_path / name)]) == 0
        weights[name] = load_file(tmp_path / name / "model.safetensors")
    for name in ("tensor", "pipeline"):
        assert weights[name].keys() == weights["data"].keys()
        assert all((weights[name][key] == weights["data"][key]).all() for key in weights["data"]), name
