"""A run without training: its state, pieces of a small model as several ranks hold them, and those ranks as threads."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_codemix.checkpoint import State
from megatron_codemix.checkpoint.hf import entries
from megatron_codemix.checkpoint.publish import publish
from megatron_codemix.config import CheckpointConfig, ModelConfig, RunConfig, parse_config
from megatron_codemix.pieces import KINDS, Block, Piece

MODEL: dict[str, Any] = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "ffn_hidden_size": 16}
SHAPES = {entry.ours: entry.shape(ModelConfig(**MODEL), 384) for entry in entries(ModelConfig(**MODEL))}


class Alone:
    """The ranks of a run of one process."""

    is_main, rank, world_size = True, 0, 1

    def broadcast(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        return flags


class Together:
    """Ranks that are threads of this process: each value waits for all."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.values: list[Any] = [None] * world_size
        self.barrier = threading.Barrier(world_size, timeout=60)

    def member(self, rank: int) -> "Member":
        return Member(self, rank)

    def run(self, work) -> list[Any]:
        """work(rank's Ranks) in a thread per rank; what each returned, or raised."""
        results: list[Any] = [None] * self.world_size

        def one(rank: int) -> None:
            try:
                results[rank] = work(self.member(rank))
            except BaseException as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        return results


class Member:
    def __init__(self, group: Together, rank: int) -> None:
        self.group, self.rank, self.world_size, self.is_main = group, rank, group.world_size, rank == 0

    def gather(self, value: Any) -> list[Any]:
        self.group.values[self.rank] = value
        self.group.barrier.wait()
        values = list(self.group.values)
        self.group.barrier.wait()
        return values

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(map(any, zip(*self.gather(flags))))


def config(run_folder: Path, **model: Any) -> RunConfig:
    shape = {**MODEL, **model}
    raw = {
        "name": "tiny",
        "output": str(run_folder),
        "tokenizer": "tokenizer",
        "sources": {"code": {"path": "code"}},
        "model": shape,
        "stages": [
            {
                "name": "only",
                "tokens": 1024,
                "mixture": {"code": 1.0},
                "batch_size": 2,
                "sequence_length": 16,
                "learning_rate": {"shape": "constant", "peak": 0.1},
            }
        ],
    }
    return parse_config(raw, RunConfig, "test")


def state(run_folder: Path, step: int, *, attempt: int = 0, world_size: int = 1) -> State:
    return State(
        step=step,
        config=config(run_folder),
        vocab_size=300,
        tokenizer_model=b"a model",
        plan="planhash",
        cursors={"code": step * 2},
        ledger={"code": {"windows": step * 2}},
        lineage={"plan": "planhash"},
        attempt=attempt,
        world_size=world_size,
        revision="abc",
    )


def whole(key: str, kind: str, step: int) -> torch.Tensor:
    """What a tensor of the model is at a step."""
    count = torch.Size(SHAPES[key]).numel()
    return torch.arange(count, dtype=torch.float32).view(SHAPES[key]) + 1000 * step + 100 * KINDS.index(kind)


def pieces(step: int, rank: int = 0, world_size: int = 1) -> list[Piece]:
    """The state of a step, each tensor shared out evenly over the ranks."""
    found = []
    for key, shape in SHAPES.items():
        block = Block(key, shape, (0,) * len(shape), shape)
        n = block.num_elements
        start, stop = n * rank // world_size, n * (rank + 1) // world_size
        found += [Piece(block, kind, start, stop, whole(key, kind, step).flatten()[start:stop]) for kind in KINDS]
    return found


def save(run_folder: Path, step: int, keep: int = 9, form: str = "routine", attempt: int = 0) -> Path:
    settings = CheckpointConfig(keep=keep)
    return publish(run_folder, state(run_folder, step, attempt=attempt), pieces(step), Alone(), settings, form)  # pyright: ignore


def names(run_folder: Path) -> list[str]:
    return sorted(path.name for path in (run_folder / "checkpoints").iterdir())


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The helpers above, for the tests beside this file."""
    return SimpleNamespace(
        shapes=SHAPES, Alone=Alone, Together=Together, config=config, state=state, whole=whole, pieces=pieces, save=save, names=names
    )
