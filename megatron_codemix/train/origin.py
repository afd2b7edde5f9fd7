"""What a process takes the run up from: its newest checkpoint, the trunk's, initial weights, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from megatron_codemix.checkpoint import Checkpoint, Damaged, Layout, on_main, open_together
from megatron_codemix.config import RunConfig
from megatron_codemix.engine import Engine
from megatron_codemix.errors import UserError
from megatron_codemix.mixture import Ledger, Lineage, keep_plan
from megatron_codemix.parallel import Topology
from megatron_codemix.progress import say
from megatron_codemix.train import restore
from megatron_codemix.train.branch import find_trunk, fitting_trunk, keep_trunk_plans
from megatron_codemix.train.changes import changes, planned_before
from megatron_codemix.train.guards import Guard
from megatron_codemix.train.initial import find_initial
from megatron_codemix.train.inputs import Inputs
from megatron_codemix.train.resume import Resume, find_checkpoint
from megatron_codemix.train.watchdog import Watchdog


@dataclass(frozen=True)
class Origin:
    """Found by `find_origin`; every file of it is verified."""

    checkpoint: Checkpoint | None
    """The run's own, or that of the trunk which it leaves."""
    is_trunk: bool
    """Whether the checkpoint is the trunk's."""
    initial: Checkpoint | None
    """Weights that a new run begins with."""
    changes: tuple[str, ...]
    """What of the config was changed on purpose since the checkpoint."""

    def history(self, inputs: Inputs, topology: Topology) -> tuple[Ledger, Lineage, int]:
        """What was consumed, how the run came here, and updates done."""
        return restore.history(self.checkpoint, self.initial, inputs, topology, self.is_trunk)

    def load(self, engine: Engine, topology: Topology, watchdog: Watchdog) -> None:
        """Give the engine its weights, and moments where there are any. Collective."""
        if self.checkpoint is not None:
            restore.load(engine, self.checkpoint, topology, watchdog)
        elif self.initial is not None:
            restore.load(engine, self.initial, topology, watchdog, optimizer=False)

    def recall(self, guard: Guard, config: RunConfig) -> None:
        """Give the guard its memory."""
        restore.recall(guard, self.checkpoint, config, self.is_trunk)

    def words(self, layout: Layout, engine: str) -> str:
        """The checkpoint in words, where another run, layout or engine wrote it."""
        if self.checkpoint is None:
            return ""
        if self.is_trunk:
            return f"the trunk in {self.checkpoint.folder}"
        record = self.checkpoint.record
        before, now = record.layout.words(), layout.words()
        if record.engine != engine:
            before, now = f"{record.engine}, {before}", f"{engine}, {now}"
        return f"a checkpoint of {before} as {now}" if before != now else ""


def find_origin(config: RunConfig, inputs: Inputs, topology: Topology, watchdog: Watchdog, resume: Resume, accept: bool) -> Origin:
    """Find it, and keep in the run folder the plans that were followed until now. Collective; raises as `find_checkpoint` does."""

    def beat() -> None:
        watchdog.beat(0, "verification")

    own = find_checkpoint(config, inputs, topology, resume, beat, accept)
    trunk = None if own else _verified(lambda: find_trunk(config, inputs), topology, beat)
    initial = None if own else _verified(lambda: find_initial(config, inputs.tokenizer), topology, beat)
    changed = on_main(topology, lambda: _former(config, inputs, own, trunk))
    return Origin(own or trunk, trunk is not None, initial, changed)


def verified_trunk(config: RunConfig, inputs: Inputs, topology: Topology, beat: Callable[[], None]) -> Checkpoint | None:
    """The checkpoint that a branch left from, to begin from again; None where it is no longer whole there, or the run is no branch.

    Collective.
    """

    def found() -> Checkpoint | None:
        with suppress(UserError):
            return fitting_trunk(config, inputs)
        return None

    try:
        return _verified(found, topology, beat)
    except Damaged as damage:  # on every process alike
        if topology.is_main:
            say(f"warning: {damage.problems[0]}")
        return None


def _verified(find: Callable[[], Checkpoint | None], topology: Topology, beat: Callable[[], None]) -> Checkpoint | None:
    found = on_main(topology, find)
    return found and open_together(found.folder, topology, beat)


def _former(config: RunConfig, inputs: Inputs, own: Checkpoint | None, trunk: Checkpoint | None) -> tuple[str, ...]:
    """What was changed on purpose since the run's own checkpoint; the plan that was followed until now is kept in the run folder."""
    if trunk is not None:
        keep_trunk_plans(config, inputs, trunk)
    if own is None:
        return ()
    changed = changes(own.config(), config)
    before = planned_before(inputs, own) if changed else None
    if before is not None and before.fingerprint != inputs.plan.fingerprint:
        keep_plan(config.output, before, own.config())
    return changed
