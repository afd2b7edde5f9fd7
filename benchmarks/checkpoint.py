"""What saving costs: steps per second with and without a save, the share of time that training waits, host memory.

    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/checkpoint.py [--every 100] [--rounds 3]
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 benchmarks/checkpoint.py --tiny        # seconds: does it work?

A model of 110 million parameters, data-parallel with the distributed optimizer, on windows so short that a step is
mostly the model's size: the hardest case for a save. In each round the same two processes train three blocks of
`--every` steps, in an order that turns with the round: without a save, with one in the background, with one that is
waited for. Targets: training waits less than 2 % of its time; a save takes less than 1.5 × its bytes of host memory.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_codemix.checkpoint import State, prepare_store
from megatron_codemix.checkpoint.publish import Outcome, Saved, Saver
from megatron_codemix.config import CheckpointConfig, RunConfig, parse_config
from megatron_codemix.engine import MegatronEngine
from megatron_codemix.parallel import Topology

MODEL = {"num_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "ffn_hidden_size": 2048, "tied_embeddings": True}
TINY = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 128, "tied_embeddings": True}
VOCABULARY, TINY_VOCABULARY = 32768, 512
MODES = ("no save", "in the background", "waited for")


@dataclass(frozen=True)
class RandomBatch:
    """The fields of `batches.Batch` that an engine reads."""

    tokens: Tensor
    labels: Tensor
    target_mask: Tensor
    loss_weights: Tensor
    positions: Tensor
    document_ids: Tensor
    prefix: Tensor | None = None


def run_config(folder: Path, options: argparse.Namespace) -> RunConfig:
    """Only the model, the layout and the batch matter here."""
    stage = {
        "name": "bench",
        "tokens": 1e9,
        "mixture": {"random": 1},
        "batch_size": options.batch,
        "sequence_length": options.length,
        "learning_rate": {"shape": "constant", "peak": 1e-4},
    }
    raw: dict[str, Any] = {
        "name": "bench",
        "output": str(folder),
        "tokenizer": "unused",
        "sources": {"random": {"path": "unused"}},
        "precision": "fp32",
        "model": TINY if options.tiny else MODEL,
        "stages": [stage],
        "parallel": {"distributed_optimizer": True},
    }
    return parse_config(raw, RunConfig, "benchmark")


class Bench:
    """A model in training, and the times of its blocks."""

    def __init__(self, config: RunConfig, vocabulary: int, topology: Topology) -> None:
        self.config, self.vocabulary, self.topology = config, vocabulary, topology
        self.engine = MegatronEngine(config, vocabulary, topology)
        self.saver = Saver(config.output, CheckpointConfig(keep=1), topology)

    def step(self) -> Outcome | None:
        """One update, and what the main loop does at its end."""
        stage = self.config.stages[0]
        generator = torch.Generator().manual_seed(self.engine.step)
        windows = torch.randint(0, self.vocabulary, (stage.batch_size, stage.sequence_length + 1), generator=generator)
        positions = torch.arange(stage.sequence_length)[None]
        ones = torch.ones(1, stage.sequence_length)
        mine = windows.split(1)[self.topology.data_rank :: self.topology.data_size]
        batches = [RandomBatch(part[:, :-1], part[:, 1:], ones.long(), ones, positions, torch.zeros_like(positions)) for part in mine]
        self.engine.train_step(batches, 1e-4)
        busy, failed = self.topology.any_of(*self.saver.flags)
        return self.saver.poll(busy, failed)

    def begin(self) -> None:
        """Start a save of the state at hand."""
        state = State(self.engine.step, self.config, self.vocabulary, b"", "0" * 64, {}, {}, {}, world_size=self.topology.world_size)
        self.saver.begin(state, self.engine.pieces())

    def block(self, mode: str, steps: int) -> tuple[float, Saved | None]:
        """Seconds of `steps` updates with a save behind the first of them, and that save."""
        self.topology.barrier()
        begun, outcome = time.perf_counter(), None
        for number in range(steps):
            outcome = self.step() or outcome
            if number == 0 and mode != MODES[0]:
                self.begin()
                if mode == MODES[2]:
                    outcome = self.saver.finish()
        outcome = self.saver.finish() or outcome  # a save longer than the block is waited for, and counted
        seconds = time.perf_counter() - begun
        assert outcome is None or isinstance(outcome, Saved), f"the disk refused: {outcome}"
        return seconds, outcome

    def memory(self) -> tuple[int, int]:
        """(bytes of a save on this rank, growth of its resident memory at the peak of its first save); Linux only."""
        saved = sum(4 * len(piece.data) for piece in self.engine.pieces())
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before = _status("VmRSS")
        self.begin()
        outcome = self.saver.finish()
        assert isinstance(outcome, Saved), f"the disk refused: {outcome}"
        return saved, _status("VmHWM") - before


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":")]
    return int(line.split()[1]) * 1024


def report(bench: Bench, options: argparse.Namespace, memory: list[tuple[int, int]], taken: dict[str, list[Any]]) -> None:
    """Print what was measured."""
    parameters = bench.config.model.num_parameters(bench.vocabulary)
    threads = f"{bench.topology.world_size} processes of {torch.get_num_threads()} thread(s)"
    print(f"{parameters:,} parameters, {options.batch} × {options.length} tokens a step, {threads}, torch {torch.__version__}")
    print(f"{options.rounds} rounds of {options.every} steps; a save lies in {bench.config.output.parent}")
    for rank, (saved, growth) in enumerate(memory):
        print(
            f"rank {rank}: a save of {saved / 2**20:,.1f} MiB takes {growth / 2**20:,.1f} MiB of memory, {growth / saved:.3f} × its bytes"
        )
    plain = [seconds for seconds, _ in taken[MODES[0]]]
    for mode, blocks in taken.items():
        speed = statistics.median(options.every / seconds for seconds, _ in blocks)
        ratio = statistics.median(seconds / without for (seconds, _), without in zip(blocks, plain))
        line = f"{mode:<18} {speed:8.3f} steps/s, time {ratio:.4f} × that without a save"
        if mode != MODES[0]:
            share = statistics.median(outcome.stall_seconds / seconds for seconds, outcome in blocks)
            whole = statistics.median(outcome.seconds for _, outcome in blocks)
            line += f"; training waits {share:.3%} of its time; a save takes {whole:.2f} s"
        print(line)


def main() -> None:
    """Alternate the blocks and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a model of some thousand parameters, 5 steps a block")
    parser.add_argument("--every", type=int, default=100, help="steps a block, and so between two saves")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=2, help="windows a step, over all processes")
    parser.add_argument("--length", type=int, default=32, help="tokens a window")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where saves go (default: the temporary folder)")
    options = parser.parse_args()
    if options.tiny:
        options.every, options.rounds = 5, 2
    folder = options.folder / "codemix-benchmark-checkpoint"
    config = run_config(folder, options)
    taken: dict[str, list[Any]] = {mode: [] for mode in MODES}
    with Topology.join(config.parallel) as topology:
        if topology.is_main:
            shutil.rmtree(folder, ignore_errors=True)
            prepare_store(folder)
        topology.barrier()
        bench = Bench(config, TINY_VOCABULARY if options.tiny else VOCABULARY, topology)
        for _ in range(2):
            bench.step()
        memory = topology.gather(bench.memory())
        for turn in range(options.rounds):
            for mode in MODES[turn % 3 :] + MODES[: turn % 3]:
                taken[mode].append(bench.block(mode, options.every))
        if topology.is_main:
            report(bench, options, memory, taken)
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
