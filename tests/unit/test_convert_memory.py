"""Conversion of a model that is larger than the memory it may take: measured in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open

_COMMON = """
import resource, sys, warnings
warnings.filterwarnings("ignore")
from pathlib import Path
import torch
torch.set_num_threads(1)
from megatron_codemix.checkpoint import State, hf
from megatron_codemix.checkpoint.convert import convert_to_hf
from megatron_codemix.checkpoint.publish import publish
from megatron_codemix.config import RunConfig, padded_vocab_size, parse_config
from megatron_codemix.pieces import KINDS, Block, Piece
from megatron_codemix.tokenizer import Tokenizer
from megatron_codemix.tokenizer.training import train_tokenizer
folder = Path(sys.argv[1])
SHAPES = {
    "small": {"num_layers": 1, "hidden_size": 64, "ffn_hidden_size": 128},
    "large": {"num_layers": 16, "hidden_size": 640, "ffn_hidden_size": 2560},
}
"""

_PREPARE = """
class Alone:
    is_main, rank, world_size = True, 0, 1
    broadcast = lambda self, value: value
    gather = lambda self, value: [value]
    any_of = lambda self, *flags: flags

(folder / "tokenizer.model").write_bytes(train_tokenizer([f"def f{n}(x):\\n    return x + {n}\\n" for n in range(60)], 440))
tokenizer = Tokenizer.load(folder)
for name, shape in SHAPES.items():
    raw = {
        "name": name, "output": str(folder / name), "tokenizer": str(folder), "precision": "fp32",
        "sources": {"code": {"path": str(folder / "nowhere")}},
        "model": {**shape, "num_attention_heads": 8, "init_std": 0.05},
        "stages": [{"name": "s", "tokens": 64, "mixture": {"code": 1}, "batch_size": 2, "sequence_length": 32,
                    "learning_rate": {"shape": "constant", "peak": 0.01}}],
    }
    config = parse_config(raw, RunConfig, name)
    rows = padded_vocab_size(tokenizer.vocab_size, config.model.vocab_multiple)
    pieces = []
    for entry in hf.entries(config.model):
        size = entry.shape(config.model, rows)
        data = torch.ones(size) if len(size) == 1 else torch.empty(size).normal_(0, 0.05)
        # as two ranks of a tensor-parallel run might have held it
        half = size[0] // 2
        for top, length in ((0, half), (half, size[0] - half)):
            block = Block(entry.ours, size, (top, *[0] * (len(size) - 1)), (length, *size[1:]))
            pieces += [Piece(block, kind, 0, block.num_elements, data[top : top + length].reshape(-1)) for kind in KINDS]
    state = State(1, config, tokenizer.vocab_size, tokenizer.model, "0" * 64, {"code": 0},
                  {"format_version": 1, "sources": {}}, {"format_version": 1, "plan": None, "intervals": [], "skipped": []})
    publish(config.output, state, pieces, Alone())
"""

_CONVERT = """
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
convert_to_hf(folder / "small", folder / "small-hf")
before = peak()
convert_to_hf(folder / "large", folder / "large-hf", max_shard_bytes=10**8)
print(before, peak())
"""


def _python(code: str, folder: Path) -> str:
    command = [sys.executable, "-c", _COMMON + code, str(folder)]
    # glibc keeps freed blocks below 32 MiB for later, and this model has no larger ones: count what is held, not what is kept
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_no_more_than_a_part_of_the_model_is_in_memory(tmp_path: Path) -> None:
    _python(_PREPARE, tmp_path)
    before, after = map(int, _python(_CONVERT, tmp_path).split()[-2:])
    files = sorted((tmp_path / "large-hf").glob("*.safetensors"))
    size = sum(path.stat().st_size for path in files)
    assert len(files) > 4 and size > 400e6
    with safe_open(files[0], "pt") as file:
        assert len(list(file.keys())) > 1
    assert after - before < 0.3 * size, f"converting {size:,} bytes of weights took {after - before:,} bytes more than a small model"
    print(f"{size:,} bytes of weights; {after - before:,} bytes of memory")
