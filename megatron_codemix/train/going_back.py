"""A rewind, as the guards ask for it: the run takes over a checkpoint from before a fault, and leaves out the batches around it."""

from __future__ import annotations

from megatron_codemix.checkpoint import on_each, on_main, resume_point, whole_before
from megatron_codemix.errors import JobError
from megatron_codemix.train.changes import changes
from megatron_codemix.train.guards import give_up, plan_skip
from megatron_codemix.train.origin import Origin, verified_trunk
from megatron_codemix.train.run import Run


def go_back(run: Run, fault: int) -> None:
    """Take over a checkpoint from before the fault at step `fault`, and leave out the batches around it. Collective.

    A branch whose own checkpoints do not reach back so far takes the trunk's. Raises JobError where there is no checkpoint.
    """
    run.settle()
    config, topology = run.config, run.topology
    wanted = fault - config.guards.skip_before

    def beat() -> None:
        run.watchdog.beat(fault, "verification")

    # looked through before any is given up: what is gone back to must be whole
    base, trunk = whole_before(config.output, wanted, topology, beat), None
    if base is None or base.step > wanted:
        trunk = verified_trunk(config, run.inputs, topology, beat)
    base = trunk or base
    on_main(topology, lambda: _plan(run, fault, base and base.step, trunk is not None))
    run.guard.planned = topology.broadcast(run.guard.planned)
    checkpoint = trunk or resume_point(config.output, topology, beat)
    assert checkpoint is not None, "the one that is gone back to is not given up"
    changed = () if trunk else on_each(topology, lambda: changes(checkpoint.config(), config))
    origin = Origin(checkpoint, trunk is not None, None, changed)
    run.ledger, run.lineage, step = on_each(topology, lambda: origin.history(run.inputs, topology))
    run.changes = origin.changes  # since this checkpoint
    origin.recall(run.guard, config)
    origin.load(run.engine, topology, run.watchdog)
    run.recorder.went_back(step, run.ledger.target_tokens, run.guard.planned.last)


def _plan(run: Run, fault: int, base: int | None, to_trunk: bool) -> None:
    """In the main process: first written down, then done; a start of the run would go on from any point between."""
    folder, guard = run.config.output, run.guard
    skip = plan_skip(run.config.guards, fault, base, run.plan.num_steps, guard.verdict.why, run.config.branch is not None)
    assert run.lock is not None
    run.lock.require_held()
    guard.planned = guard.planned.with_one_more(skip)
    try:
        guard.planned.write(folder)
    except OSError as error:
        raise JobError(
            f"{folder}: no room to write down a rewind ({error.strerror}); make room, then start the same command again"
        ) from None
    give_up(folder, guard.planned, run.lock.require_held, to_trunk)
