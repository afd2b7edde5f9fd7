"""`codemix train` whose workers die, or meet a full disk, where CODEMIX_FAULTS says; started by test_faults.py.

    CODEMIX_FAULTS='[{"point": "verify", "rank": 1, "call": 3, "what": "kill"}]' python fault_worker.py train RUN.yaml --nproc 2

A point is passed at each call of one function of the trainer (POINTS); `call` counts them from 1. what: "kill" (SIGKILL to this
rank), "kill launcher", "full disk" (this call and the later ones of this save raise ENOSPC), "usurp" (another start takes the
run folder), "tear" (a torn line in the log, then SIGKILL).
"""

import errno
import importlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_codemix import cli, worker

# point → (module, what is patched in it, whether the point lies before or behind the call). What only the main rank calls is marked.
POINTS = {
    "join": ("megatron_codemix.parallel.topology", "Topology.seed", "before"),
    "attempt, main": ("megatron_codemix.checkpoint.attempt", "write_json", "before"),
    "load": ("megatron_codemix.engine.megatron", "MegatronEngine.load_pieces", "behind"),
    "step begins": ("megatron_codemix.engine.megatron", "MegatronEngine.train_step", "before"),
    "update": ("megatron_codemix.engine.megatron", "set_learning_rate", "before"),
    "step ended": ("megatron_codemix.engine.megatron", "MegatronEngine.train_step", "behind"),
    "log line, main": ("megatron_codemix.train.log", "LogFile.append", "behind"),
    "snapshot": ("megatron_codemix.checkpoint.snapshot", "Snapshot.take", "behind"),
    "chunk": ("megatron_codemix.pieces.encoding", "bytes_of", "before"),
    "verify": ("megatron_codemix.pieces.files", "_verify", "before"),
    "shard": ("megatron_codemix.checkpoint.publish", "write_routine", "behind"),
    "whole": ("megatron_codemix.checkpoint.publish", "write_whole", "before"),
    "whole written": ("megatron_codemix.checkpoint.publish", "write_whole", "behind"),
    "record, main": ("megatron_codemix.checkpoint.publish", "write_state", "before"),
    "record written, main": ("megatron_codemix.checkpoint.publish", "write_state", "behind"),
    "rename, main": ("megatron_codemix.checkpoint.publish", "Saver._rename", "before"),
    "renamed, main": ("megatron_codemix.checkpoint.publish", "Saver._rename", "behind"),
    "discard, main": ("megatron_codemix.checkpoint.publish", "discard", "before"),
    "rewind planned, main": ("megatron_codemix.train.guards.skips", "PlannedSkips.write", "behind"),
    "step logged, main": ("megatron_codemix.train.recorder", "Recorder.step", "behind"),
    "given up, main": ("megatron_codemix.train.guards.rewind", "discard", "behind"),
}
_calls: Counter[str] = Counter()


def act(fault: dict, arguments: tuple) -> None:
    what = fault["what"]
    if what == "full disk":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "as tested")
    if what == "usurp":
        path = Path(os.environ["CODEMIX_FAULT_RUN"]) / "attempt.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid": 1, "host": "elsewhere"}))
        return
    print(f"fault: {fault}", file=sys.stderr, flush=True)
    if what == "tear":
        with open(Path(os.environ["CODEMIX_FAULT_RUN"]) / "log.jsonl", "ab") as log:
            log.write(b'{"kind": "step", "step"')
    if what == "kill launcher":
        os.kill(int(os.environ[worker.LAUNCHER]), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def passes(point: str, faults: list[dict], arguments: tuple) -> None:
    _calls[point] += 1
    for fault in faults:
        if fault["point"] == point and (_calls[point] == fault["call"] or (fault["what"] == "full disk" and fault["call"] == 0)):
            act(fault, arguments)


def patched(original: Callable, point: str, when: str, faults: list[dict]) -> Callable:
    def call(*arguments, **keywords):
        if when == "before":
            passes(point, faults, arguments)
        result = original(*arguments, **keywords)
        if when == "behind":
            passes(point, faults, arguments)
        return result

    return call


def place(point: str) -> tuple[Any, str]:
    """Owner and name of what is patched at a point; AttributeError where it has been renamed."""
    module, path, _ = POINTS[point]
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for attribute in owners:
        owner = getattr(owner, attribute)
    getattr(owner, name)
    return owner, name


def install(faults: list[dict]) -> None:
    for point in {fault["point"] for fault in faults}:
        (owner, name), when = place(point), POINTS[point][2]
        setattr(owner, name, patched(getattr(owner, name), point, when, faults))


def install_nan(rank: str, step: str) -> None:
    """A NaN in the gradient of this rank whenever step `step` (0-based) is made."""
    if os.environ["RANK"] != rank:
        return
    chunks = importlib.import_module("megatron_codemix.engine.chunks")
    engine = importlib.import_module("megatron_codemix.engine.megatron").MegatronEngine
    run, train_step, now = chunks.Replicas.run, engine.train_step, {}

    def remember(self: Any, *arguments: Any) -> Any:
        now["step"] = self.step
        return train_step(self, *arguments)

    def spoil(self: Any, forward: Any, batches: Any, *, mode: str) -> Any:
        spoils = mode == "train" and now["step"] == int(step)
        hook = next(iter(self.chunks[0].parameters())).register_hook(lambda gradient: gradient * float("nan")) if spoils else None
        records = run(self, forward, batches, mode=mode)
        if hook is not None:
            hook.remove()
        return records

    engine.train_step, chunks.Replicas.run = remember, spoil


def install_nan_loss(rank: str, step: str) -> None:
    """Losses that are no numbers on this rank whenever step `step` (0-based) is made, under either engine."""
    if os.environ["RANK"] != rank:
        return
    loader = importlib.import_module("megatron_codemix.batches").Loader
    batches = loader.batches

    def spoilt(self: Any, now: int) -> Any:
        made = batches(self, now)
        for batch in made if now == int(step) else ():
            batch.loss_weights = batch.loss_weights * float("nan")
        return made

    loader.batches = spoilt


def main() -> int:
    if worker.is_worker():
        faults = [fault for fault in json.loads(os.environ.get("CODEMIX_FAULTS", "[]")) if str(fault["rank"]) == os.environ["RANK"]]
        install(faults)
        if nan := os.environ.get("CODEMIX_FAULT_NAN"):
            install_nan(*nan.split(":"))
        if nan := os.environ.get("CODEMIX_FAULT_LOSS"):
            install_nan_loss(*nan.split(":"))
    else:
        command = importlib.import_module("megatron_codemix.train.command")
        original = command._worker_command
        command._worker_command = lambda arguments: [sys.executable, __file__, *original(arguments)[len(worker.codemix_command()) :]]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
