"""How long training waits for its batches when shards are not in memory, as a share of a training step of a 30M model.

    OMP_NUM_THREADS=2 python benchmarks/reading.py [--shards 60] [--steps 40] [--folder /a/disk]

Two ways of reading, each over shards that were dropped from the page cache:

- `blocks` from the disk: whole shards are read ahead, windows of 2 shards at a time.
- S3 on loopback (moto's server, a process of its own) through a cache of a tenth of the data, which begins empty.

First a training step of a 30M model is timed in this process (8 windows of 512 tokens, fp32 on CPU, or bf16 on a GPU). Then each step takes
its batch from the loader and sleeps for as long as training would compute, so that fetching has the time it would have, no more. What is
told is the median and the worst of the seconds spent in `Loader.batches`, and their sum over all steps but the first (which waits for the
first block and is told apart) as a share of the steps' time. Wanted: below 1 %. Dropping pages needs no privileges (posix_fadvise
DONTNEED, after fsync).
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_codemix.batches import Loader
from megatron_codemix.config import RunConfig, Url, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.mixture import compile_plan
from megatron_codemix.parallel import Topology
from megatron_codemix.shards import ShardCache, SplitReader, SplitWriter, open_split

VOCABULARY, END, LENGTH, BATCH, BLOCK = 12_000, 2, 512, 8, 2
MODEL = {"num_layers": 8, "hidden_size": 448, "num_attention_heads": 8, "ffn_hidden_size": 1280}
"""31 million parameters with two tables of 12,000 rows."""


def write_corpus(folder: Path, shards: int, shard_tokens: int) -> None:
    """Random documents, in shards of `shard_tokens` tokens."""
    rng = np.random.default_rng(0)
    settings = {"source": "code", "split": "train", "modality": "code", "token_dtype": "uint16", "tokenizer_fingerprint": "0" * 64}
    sizes = {"vocab_size": VOCABULARY, "end_of_text_id": END, "pack_tokens": 1 << 17, "shard_tokens": shard_tokens, "prep": {}}
    with SplitWriter(folder, **settings, **sizes) as writer:
        for number in range(shards * shard_tokens // 1024):
            ids = rng.integers(END + 1, VOCABULARY, 1024).astype(np.uint16)
            ids[-1] = END
            writer.add(ids, num_bytes=4096, document_id=number)


def drop_pages(folder: Path) -> None:
    """Have the kernel forget the files' pages, so that they are read from the disk."""
    for path in folder.iterdir():
        with open(path, "rb") as handle:
            os.fsync(handle.fileno())
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(path: str, steps: int, **data: Any) -> RunConfig:
    """A run of `steps` steps over the corpus."""
    stage = {"name": "a", "tokens": steps * BATCH * LENGTH, "mixture": {"code": 1}, "batch_size": BATCH, "sequence_length": LENGTH}
    raw = {"name": "b", "output": "o", "tokenizer": "t", "model": MODEL}
    raw |= {"sources": {"code": {"path": path, "max_epochs": 1e6}}, "micro_batch_size": BATCH, "data": data}
    raw |= {"precision": "bf16" if torch.cuda.is_available() else "fp32"}
    raw |= {"stages": [{**stage, "learning_rate": {"shape": "constant", "peak": 0.001}}]}
    return parse_config(raw, RunConfig, "benchmark")


def make_loader(config: RunConfig, reader: SplitReader) -> Loader:
    """Plan and loader over one source."""
    fingerprint = {"code": reader.manifest.fingerprint}
    plan = compile_plan(config, {"code": reader.num_windows}, fingerprint, {"code": reader.shard_windows})
    return Loader(plan, {"code": reader}, token_num_bytes=np.ones(VOCABULARY, int), micro_batch_size=BATCH, data=config.data)


def step_seconds(config: RunConfig, loader: Loader, rounds: int = 5) -> float:
    """Median seconds of a training step of the 30M model."""
    with Topology.join(config.parallel) as topology:
        engine = MegatronEngine(config, VOCABULARY, topology)
        print(f"model of {config.model.num_parameters(VOCABULARY):,} parameters on {topology.device}")
        seconds = []
        for step in range(rounds + 2):
            batches = loader.batches(step)
            begin = time.perf_counter()
            engine.train_step(batches, 1e-4)
            if topology.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        return statistics.median(seconds[2:])


def measure(name: str, loader: Loader, steps: int, compute: float) -> float:
    """Prints and returns the loader's share of the steps' time."""
    waited = []
    for step in range(steps):
        begin = time.perf_counter()
        loader.batches(step)
        waited.append(time.perf_counter() - begin)
        time.sleep(compute)
    loader.close()
    first, rest = waited[0], waited[1:]
    share = sum(rest) / (sum(rest) + compute * len(rest))
    print(
        f"{name}: first batch {first:.3f} s; then {len(rest)} steps of {compute:.3f} s: loader median "
        f"{1e3 * statistics.median(rest):.3f} ms, worst {1e3 * max(rest):.1f} ms, {share:.3%} of the time (wanted: below 1 %)"
    )
    return share


def start_s3(folder: Path) -> tuple[subprocess.Popen, str]:
    """moto's server in a process of its own, holding the corpus at s3://bucket/code/train, and its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-c", f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while True:
        try:
            _put(port, "/bucket", b"")
            break
        except OSError:
            assert time.monotonic() < end and process.poll() is None, "moto's server does not start"
            time.sleep(0.2)
    for path in sorted(folder.iterdir()):
        _put(port, f"/bucket/code/train/{path.name}", path.read_bytes())
    return process, f"http://127.0.0.1:{port}"


def _put(port: int, path: str, content: bytes) -> None:
    server = http.client.HTTPConnection("127.0.0.1", port)
    server.request("PUT", path, content)
    answer = server.getresponse()
    assert answer.status == 200, f"{path}: {answer.status} {answer.read()!r}"
    server.close()


def main() -> None:
    """Write the corpus, time a step, measure both ways, clean up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=60, help="shards of the corpus (default 60)")
    parser.add_argument("--windows", type=int, default=64, help="windows of a shard (default 64: a block lasts 16 steps)")
    parser.add_argument("--steps", type=int, default=40, help="steps to measure each way (default 40)")
    parser.add_argument("--step-seconds", type=float, help="take this for a step's time instead of measuring one: to try the script")
    parser.add_argument("--folder", type=Path, help="where to put corpus and cache (default: the temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        root = Path(name)
        folder = root / "code" / "train"
        write_corpus(folder, arguments.shards, arguments.windows * LENGTH + 1024)
        total = sum(path.stat().st_size for path in folder.glob("*.tar"))
        print(f"corpus: {total / 1e6:.1f} MB in {len(list(folder.glob('*.tar')))} shards")
        plain = run(str(root / "code"), arguments.steps + 10)
        compute = arguments.step_seconds or step_seconds(plain, make_loader(plain, SplitReader(folder)))
        blocks = run(str(root / "code"), arguments.steps, order="blocks", block_shards=BLOCK)
        reader = SplitReader(folder)
        drop_pages(folder)
        measure("blocks, cold page cache", make_loader(blocks, reader), arguments.steps, compute)
        process, address = start_s3(folder)
        try:
            os.environ |= {
                "AWS_ACCESS_KEY_ID": "k",
                "AWS_SECRET_ACCESS_KEY": "s",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_ENDPOINT_URL": address,
            }
            cache = {"folder": str(root / "cache"), "bytes": total // 10}
            stored = run("s3://bucket/code", arguments.steps, order="blocks", block_shards=BLOCK, cache=cache)
            assert stored.data.cache is not None
            reader = open_split(Url("s3://bucket/code/train"), ShardCache(stored.data.cache))
            measure(f"S3, cache of {total / 1e7:.1f} MB", make_loader(stored, reader), arguments.steps, compute)
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
