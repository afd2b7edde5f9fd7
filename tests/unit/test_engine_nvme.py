"""State on nvme: DeepSpeed's swapping of it under our engine, what our checkpoints read and write of it, and what it needs.

Two ways to the disk: DeepSpeed's operator, where this machine can compile it, and ordinary reads and writes in its place anywhere.
"""

from __future__ import annotations

import fcntl
import gc
import importlib.util
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_codemix.checkpoint.snapshot import Snapshot
from megatron_codemix.config import ParallelConfig, RunConfig, parse_config
from megatron_codemix.engine import factory
from megatron_codemix.errors import UserError
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import KINDS, PieceReader, write_pieces

pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed: make env")

VOCAB, LENGTH, RATE = 4096, 16, 1e-3
BOTH = {"offload_optimizer": "nvme", "offload_parameters": "nvme"}
PLACES = [{"offload_optimizer": "nvme"}, BOTH, {"offload_optimizer": "cpu", "offload_parameters": "nvme"}]
NVME = "megatron_codemix.engine.zero.nvme"


class OrdinaryFiles:
    """The methods of DeepSpeed's `aio_handle` that its swappers call."""

    _locked: dict[int, Tensor] = {}

    def __init__(self, **settings: Any) -> None:
        self._made = 0

    def new_cpu_locked_tensor(self, elements: int, like: Tensor) -> Tensor:
        made = torch.empty(elements, dtype=like.dtype)
        self._locked[made.data_ptr()] = made
        return made

    def free_cpu_locked_tensor(self, tensor: Tensor) -> bool:
        return self._locked.pop(tensor.data_ptr(), None) is not None

    def is_pinned(self, tensor: Tensor) -> bool:
        ends = [(start, start + held.nbytes) for start, held in self._locked.items()]
        return any(start <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= end for start, end in ends)

    def async_pwrite(self, tensor: Tensor, path: str, offset: int) -> int:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT), "wb") as handle:
            handle.seek(offset)
            handle.write(tensor.detach().view(torch.uint8).numpy().tobytes())
        self._made += 1
        return 0

    def async_pread(self, tensor: Tensor, path: str, offset: int) -> int:
        with open(path, "rb") as handle:
            handle.seek(offset)
            content = handle.read(tensor.nbytes)
        assert len(content) == tensor.nbytes, path
        tensor.view(torch.uint8).copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        self._made += 1
        return 0

    def wait(self) -> int:
        made, self._made = self._made, 0
        return made


@pytest.fixture(params=["ordinary files", "libaio"])
def disk(request, monkeypatch) -> None:
    """The way to the disk."""
    nvme: Any = importlib.import_module(NVME)
    if request.param == "libaio":
        importlib.import_module("megatron_codemix.engine.zero.library").import_deepspeed()
        if problem := nvme._operator_problem():
            pytest.skip(problem)
        return
    builder: Any = importlib.import_module("deepspeed.ops.op_builder.builder")
    for name, module in (("async_io", SimpleNamespace(aio_handle=OrdinaryFiles)), ("pin_memory", SimpleNamespace())):
        monkeypatch.setitem(builder.OpBuilder._loaded_ops, name, module)
    monkeypatch.setattr("sys._deepspeed_pin_memory_op_module", SimpleNamespace(), raising=False)
    monkeypatch.setattr(nvme, "_operator_problem", lambda: None)


@pytest.fixture(scope="module")
def topology():
    with Topology.join(ParallelConfig()) as joined:
        yield joined


def run_config(folder: Path | None, precision: str = "fp32", **places: str) -> RunConfig:
    model = {"num_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 768}
    plan = {
        "name": "only", "tokens": 6400, "mixture": {"a": 1}, "batch_size": 4, "sequence_length": LENGTH,
        "learning_rate": {"shape": "constant", "peak": RATE},
    }  # fmt: skip
    raw = {
        "name": "test", "output": "unused", "tokenizer": "unused", "sources": {"a": {"path": "unused"}}, "precision": precision,
        "model": model, "stages": [plan],
    }  # fmt: skip
    if folder is not None:
        zero = {"zero_stage": 3, "bucket_elements": 200_000, "persistent_elements": 0, "nvme_path": str(folder), "swap_elements": 400_000}
        raw |= {"engine": "deepspeed", "deepspeed": zero | places}
    return parse_config(raw, RunConfig, "test")


def build_engine(config: RunConfig, topology: Topology) -> Any:
    return factory.build_engine(config, VOCAB, topology)


def batches(step: int) -> list[Any]:
    tokens = torch.randint(0, VOCAB, (2, 2, LENGTH + 1), generator=torch.Generator().manual_seed(step))
    ones, zeros, positions = torch.ones(2, LENGTH), torch.zeros(2, LENGTH, dtype=torch.int64), torch.arange(LENGTH).expand(2, -1)
    fields = {"target_mask": ones.long(), "loss_weights": ones, "positions": positions, "document_ids": zeros, "prefix": None}
    return [SimpleNamespace(tokens=each[:, :-1], labels=each[:, 1:], **fields) for each in tokens]


def train(engine: Any, *steps: int) -> list[float]:
    return [engine.train_step(batches(step), RATE).loss for step in steps]


def saved(engine: Any, folder: Path) -> PieceReader:
    folder.mkdir()
    write_pieces(folder / "rank-00000-of-00001.safetensors", engine.pieces(), engine.step)
    return PieceReader(folder)


def difference(one: PieceReader, other: PieceReader) -> float:
    keys = list(one.keys())
    assert keys and set(keys) == set(other.keys()) and one.step == other.step
    return max(float((one.whole(key, kind) - other.whole(key, kind)).abs().max()) for key in keys for kind in KINDS)


@pytest.mark.parametrize("places", PLACES, ids=lambda places: "+".join(places))
def test_figures_and_checkpoints_are_the_other_engines_both_ways(disk, topology, tmp_path, places):
    swapping = build_engine(run_config(tmp_path / "nvme", **places), topology)
    plain = build_engine(run_config(None), topology)
    assert train(swapping, *range(4)) == pytest.approx(train(plain, *range(4)), abs=1e-5)
    weights = [path for path in swapping.swap_folder.rglob("*_param.tensor.swp") if path.parent.parent.name == "float32params"]
    assert bool(weights) == (places.get("offload_parameters") == "nvme"), "in the run's precision"
    if places.get("offload_optimizer") == "nvme":
        kinds = Counter(path.name.split("-")[0] for path in swapping.swap_folder.rglob("*.swp") if "exp_avg" in path.name)
        assert kinds["exp_avg"] == kinds["exp_avg_sq"] > 1, "several groups lie in files"
        assert sum(flat.numel() for flat in swapping._optimizer.fp32_partitioned_groups_flat) < 300_000, "and not in memory"
    mine, theirs = saved(swapping, tmp_path / "mine"), saved(plain, tmp_path / "theirs")
    assert difference(mine, theirs) <= 1e-5
    plain.load_pieces(mine)
    swapping.load_pieces(theirs)
    assert difference(saved(swapping, tmp_path / "taken"), theirs) == 0, "what was read lies on the disk"
    assert train(plain, 4, 5) == pytest.approx(train(swapping, 4, 5), abs=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_and_refused_to_the_bit(disk, topology, tmp_path, precision):
    engine = build_engine(run_config(tmp_path / "nvme", precision, **BOTH), topology)
    train(engine, 0, 1)
    reader = saved(engine, tmp_path / "saved")
    went_on = train(engine, 2, 3)
    resumed = build_engine(run_config(tmp_path / "nvme", precision, **BOTH), topology)
    train(resumed, 9)  # weights to gather, and moments to lose
    resumed.load_pieces(reader)
    assert resumed.evaluate(batches(2)) == resumed.evaluate(batches(2))
    assert train(resumed, 2, 3) == went_on
    assert difference(saved(engine, tmp_path / "one"), saved(resumed, tmp_path / "other")) == 0
    before = [piece.data.clone() for piece in engine.pieces()]
    assert not engine.train_step(batches(4), RATE, accept=lambda result: False).updated
    assert all(torch.equal(old, piece.data) for old, piece in zip(before, engine.pieces(), strict=True))


def test_a_snapshot_lies_where_the_state_does(disk, topology, tmp_path):
    engine = build_engine(run_config(tmp_path / "nvme", **BOTH), topology)
    train(engine, 0)
    snapshot, pieces = Snapshot(engine.swap_folder), engine.pieces()
    snapshot.reserve(pieces)
    taken = snapshot.take(pieces)
    assert (engine.swap_folder / "snapshot").stat().st_size == 4 * sum(piece.data.numel() for piece in pieces)
    held = [piece.data.clone() for piece in pieces]
    train(engine, 1)
    assert all(torch.equal(old, copy.data) for old, copy in zip(held, taken, strict=True)), "training went on meanwhile"


def test_folders_go_with_their_engine_and_those_of_killed_runs_at_the_start(disk, topology, tmp_path):
    base = tmp_path / "nvme"
    engine = build_engine(run_config(base, **BOTH), topology)
    prefix = engine.swap_folder.name.partition(".")[0]
    left, others = base / f"{prefix}.left", base / "codemix-000000000000.other"
    for folder in (left, others):
        folder.mkdir()
        (folder / "state.swp").touch()
    second = build_engine(run_config(base, **BOTH), topology)
    assert {path.name for path in base.iterdir()} == {engine.swap_folder.name, second.swap_folder.name, others.name}
    del engine, second
    gc.collect()
    assert [path.name for path in base.iterdir()] == [others.name]


def test_the_folder_goes_at_the_end_of_the_process_and_not_of_a_child(tmp_path):
    code = (
        "import os, pathlib, weakref\n"
        f"from {NVME} import SwapFolder, _remove\n"
        f"folder, held = pathlib.Path({str(tmp_path / 'mine')!r}), SwapFolder.__new__(SwapFolder)\n"
        "folder.mkdir()\n"
        "weakref.finalize(held, _remove, folder, os.open(folder / 'lock', os.O_CREAT), os.getpid())\n"
        "if os.fork() == 0: raise SystemExit\n"
        "os.wait(); assert folder.exists()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not (tmp_path / "mine").exists()


def refused(config: RunConfig, topology: Topology) -> str:
    with pytest.raises(UserError) as caught:
        build_engine(config, topology)
    (problem,) = caught.value.problems
    assert "\n" not in problem and ";" in problem, "one line, with a remedy"
    return problem


@pytest.fixture
def without(monkeypatch):
    """without(WHAT): this machine lacks it."""
    op_builder: Any = importlib.import_module("deepspeed.ops.op_builder")

    def lack(what: str) -> None:
        monkeypatch.setattr(f"{NVME}.shutil.which", lambda name: None if what == "compiler" else f"/bin/{name}")
        monkeypatch.setattr(f"{NVME}.cpp_extension.is_ninja_available", lambda: what != "ninja")
        monkeypatch.setattr(op_builder.AsyncIOBuilder, "is_compatible", lambda self, verbose: what != "libaio")

        def load(self: Any, verbose: bool) -> None:
            raise RuntimeError("Error building extension 'async_io'\nwith many\nlines")

        monkeypatch.setattr(op_builder.AsyncIOBuilder, "load", load)

    return lack


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("compiler", "needs a C++ compiler, and there is no c++; install one"),
        ("ninja", "needs ninja, which is not there"),
        ("libaio", "needs libaio with its headers, which is not there; install it (`apt-get install libaio-dev`), or offload to cpu"),
        ("nothing", "an operator that DeepSpeed could not compile (Error building extension 'async_io'); see `ds_report`"),
    ],
)
def test_what_is_missing_is_one_line_before_anything_is_trained(without, topology, tmp_path, monkeypatch, what, words):
    monkeypatch.delenv("CXX", raising=False)
    without(what)
    problem = refused(run_config(tmp_path / "nvme", **BOTH), topology)
    assert words in problem
    assert not (tmp_path / "nvme").exists()


def test_a_folder_that_will_not_do_is_one_line(disk, topology, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'} cannot be written to (" in refused(run_config(tmp_path / "file", **BOTH), topology)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(f"{NVME}.shutil.disk_usage", lambda path: usage._replace(free=1 << 20))
    problem = refused(run_config(tmp_path / "nvme", **BOTH), topology)
    assert "0.00 GiB free, and the ranks of a machine need 0.11 GiB" in problem and list((tmp_path / "nvme").iterdir()) == []


def test_memory_that_cannot_be_locked_is_one_line():
    nvme: Any = importlib.import_module(NVME)
    assert nvme._locking_problem(1 << 16) is None
    problem = nvme._locking_problem(1 << 55)
    assert problem.startswith("deepspeed.swap_elements: 33,554,432.00 GiB of host memory cannot be page-locked (") and "ulimit" in problem


def test_a_file_system_without_direct_reads_is_one_line(tmp_path, monkeypatch):
    nvme: Any = importlib.import_module(NVME)
    assert nvme._room_problem(tmp_path, 1) is None

    def refuse(descriptor: int, content: Any) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "write", refuse)
    assert "has no direct input and output; name a folder on a local disk" in nvme._room_problem(tmp_path, 1)


def test_a_lock_that_is_held_keeps_a_folder(tmp_path):
    nvme: Any = importlib.import_module(NVME)
    for name in ("p.held", "p.left"):
        (tmp_path / name).mkdir()
    held = os.open(tmp_path / "p.held" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    assert nvme._sweep(tmp_path, "p.") is None
    assert [path.name for path in tmp_path.iterdir()] == ["p.held"]
    os.close(held)
