"""A run config → a `Run` ready for the main loop, in the order in which things depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from megatron_codemix import worker
from megatron_codemix.batches import Loader
from megatron_codemix.checkpoint import Checkpoint, Layout, code_revision, on_each, on_main, open_together, step_folders
from megatron_codemix.checkpoint.publish import Saver
from megatron_codemix.config import RunConfig, data_ranks, dump_yaml, padded_vocab_size
from megatron_codemix.engine import build_engine
from megatron_codemix.errors import JobError
from megatron_codemix.files import write_json, write_text
from megatron_codemix.mixture import keep_plan
from megatron_codemix.parallel import Topology
from megatron_codemix.progress import say
from megatron_codemix.train.branch import find_trunk, keep_trunk_plans
from megatron_codemix.train.changes import changes, planned_before
from megatron_codemix.train.guards import SKIPS_NAME, Garbage, Guard, Pace, PlannedSkips, give_up
from megatron_codemix.train.initial import find_initial
from megatron_codemix.train.inputs import Inputs, open_inputs
from megatron_codemix.train.lock import RunLock
from megatron_codemix.train.log import mend_log
from megatron_codemix.train.loop import train
from megatron_codemix.train.meter import Meter, device_peak
from megatron_codemix.train.recorder import Diverged, Recorder
from megatron_codemix.train.restore import history, load, recall
from megatron_codemix.train.resume import Resume, find_checkpoint, finished_words, is_finished
from megatron_codemix.train.run import Run
from megatron_codemix.train.space import lack_of_space
from megatron_codemix.train.splits import small_files
from megatron_codemix.train.stopping import STOPPED_EXIT_CODE, StopRequest
from megatron_codemix.train.watchdog import Watchdog


def train_run(
    config: RunConfig, inputs: Inputs | None, overrides: Sequence[str] = (), resume: Resume = "auto", accept: bool = False
) -> int:
    """Train a run to its end, or until it is asked to stop; returns the command's exit code (0 or 75).

    accept: stages and optimizer may be others than before (`find_checkpoint`).

    inputs: opened by the main process at least; it sends the others what it has read of the splits.
    Collective; raises UserError as `open_run` does and where another process takes the folder over, JobError when training
    diverges or its last state cannot be saved.
    """
    with StopRequest() as stop, Topology.join(config.parallel, seed=config.seeds.init, timeouts=config.timeouts) as topology:
        inputs = _shared(config, inputs, topology)
        if worker.is_worker() and resume != "never" and is_finished(config, inputs, topology, accept):
            if topology.is_main:
                print(finished_words(config))
            return 0
        with open_run(config, inputs, topology, stop, overrides, resume, accept) as run:
            try:
                finished = train(run)
            except Diverged as diverged:  # on all ranks at once; what is in flight had a loss that was a number
                run.settle()
                raise JobError(f"{diverged}; the newest checkpoint is untouched") from None
            run.end(finished)
    return 0 if finished else STOPPED_EXIT_CODE


@contextmanager
def open_run(
    config: RunConfig,
    inputs: Inputs,
    topology: Topology,
    stop: StopRequest,
    overrides: Sequence[str] = (),
    resume: Resume = "auto",
    accept: bool = False,
) -> Iterator[Run]:
    """Take the run folder, build the engine, continue from the newest checkpoint, or from the trunk's.

    Collective. Raises UserError: the layout does not fit, another process trains into the folder, or what lies
    there is another run, or not what `resume` asks for.
    """
    with ExitStack() as stack:
        data_ranks(config, topology.world_size)  # refuses batches that do not come out even, on all ranks alike
        lock = _take_folder(config, topology, stack)
        attempt, revision = topology.broadcast((lock.attempt.number, code_revision()) if lock else None)
        watchdog = stack.enter_context(Watchdog(config.output / "stacks", topology.rank, attempt, config.timeouts.hang_seconds))
        planned = on_main(topology, lambda: _planned_skips(config, lock))
        checkpoint = find_checkpoint(config, inputs, topology, resume, lambda: watchdog.beat(0, "verification"), accept)
        trunk = None if checkpoint else _verified(lambda: find_trunk(config, inputs), topology, watchdog)
        initial = None if checkpoint else _verified(lambda: find_initial(config, inputs.tokenizer), topology, watchdog)
        changed = on_main(topology, lambda: _former(config, inputs, checkpoint, trunk))
        checkpoint = checkpoint or trunk
        ledger, lineage, first_step = on_each(topology, lambda: history(checkpoint, initial, inputs, topology, trunk is not None))
        _describe(config, inputs, topology)
        engine = build_engine(config, inputs.tokenizer.vocab_size, topology)
        if checkpoint is not None:
            load(engine, checkpoint, topology, watchdog)
        elif initial is not None:
            load(engine, initial, topology, watchdog, optimizer=False)
        guard = Guard(config.guards, inputs.plan, planned)
        on_each(topology, lambda: recall(guard, checkpoint, config, trunk is not None))
        rows = padded_vocab_size(inputs.tokenizer.vocab_size, config.model.vocab_multiple)
        peak = device_peak(config.logging.peak_tflops, topology.device, config.precision)
        meter = Meter(config.model, rows, topology.world_size, peak)
        recorder = Recorder(
            config.output,
            config.logging,
            meter,
            lock,
            first_step=first_step,
            num_steps=inputs.plan.num_steps,
            tokens=ledger.target_tokens,
            name=config.name,
        )
        stack.callback(recorder.close)
        saver = Saver(config.output, config.checkpoint, topology, lock.require_held if lock else lambda: None)
        stack.callback(saver.close)
        saver.reserve(engine.pieces())
        layout = Layout.of(config.parallel, topology.world_size)
        facts = {"plan": inputs.plan.fingerprint, "attempt": attempt, "revision": revision, "layout": layout.words()}
        if lock and (lack := lack_of_space(config, inputs.plan.num_steps, rows)):
            say(f"warning: {lack}")
        continued = f"the trunk in {trunk.folder}" if trunk else _continued(checkpoint, layout, config.engine)
        recorder.start({"run": config.name, **facts, "world_size": topology.world_size}, continued)
        loader = _loader(config, inputs, topology)
        stack.callback(loader.close)
        yield Run(
            config=config,
            inputs=inputs,
            topology=topology,
            engine=engine,
            loader=loader,
            ledger=ledger,
            lineage=lineage,
            guard=guard,
            meter=meter,
            pace=Pace(topology.device),
            garbage=stack.enter_context(Garbage(config.guards.collect_garbage_every_steps)),
            recorder=recorder,
            saver=saver,
            lock=lock,
            watchdog=watchdog,
            stop=stop,
            first_step=first_step,
            attempt=attempt,
            revision=revision,
            overrides=tuple(overrides),
            changes=changed,
        )


def _former(config: RunConfig, inputs: Inputs, checkpoint: Checkpoint | None, trunk: Checkpoint | None) -> tuple[str, ...]:
    """What was changed on purpose since the checkpoint; the plan that was followed until now is kept in the run folder."""
    if trunk is not None:
        keep_trunk_plans(config, inputs, trunk)
    if checkpoint is None:
        return ()
    changed = changes(checkpoint.config(), config)
    before = planned_before(inputs, checkpoint) if changed else None
    if before is not None and before.fingerprint != inputs.plan.fingerprint:
        keep_plan(config.output, before, checkpoint.config())
    return changed


def _verified(find: Callable[[], Checkpoint | None], topology: Topology, watchdog: Watchdog) -> Checkpoint | None:
    """What a new run begins with, every file of it verified; None where it begins without. Collective."""
    found = on_main(topology, find)
    return found and open_together(found.folder, topology, lambda: watchdog.beat(0, "verification"))


def _shared(config: RunConfig, inputs: Inputs | None, topology: Topology) -> Inputs:
    """The inputs, on every rank, after one has read the small files: manifests, and the sidecars of a store. Collective."""
    files = topology.broadcast(small_files(config, inputs.readers, inputs.validation) if topology.is_main and inputs else None)
    return on_each(topology, lambda: inputs or open_inputs(config, files))


def _loader(config: RunConfig, inputs: Inputs, topology: Topology) -> Loader:
    return Loader(
        inputs.plan,
        inputs.readers,
        token_num_bytes=inputs.tokenizer.token_num_bytes,
        micro_batch_size=config.micro_batch_size,
        dp_rank=topology.data_rank,
        dp_size=topology.data_size,
        tokenizer=inputs.tokenizer,
        data=config.data,
        near_ranks=topology.data_ranks_of_node(),
    )


def _take_folder(config: RunConfig, topology: Topology, stack: ExitStack) -> RunLock | None:
    """The run folder's lock, in the main process. Raises UserError on every rank when it cannot be had."""
    lock = None

    def take() -> None:
        nonlocal lock
        lock = stack.enter_context(RunLock(config.output))
        mend_log(config.output)

    on_main(topology, take)
    return lock


def _planned_skips(config: RunConfig, lock: RunLock | None) -> PlannedSkips:
    """What rewinds have planned to leave out; one that was cut short is carried out. In the main process, which has the lock."""
    assert lock is not None
    if not step_folders(config.output):  # begun anew
        (config.output / SKIPS_NAME).unlink(missing_ok=True)
    planned = PlannedSkips.read(config.output)
    give_up(config.output, planned, lock.require_held)
    return planned


def _describe(config: RunConfig, inputs: Inputs, topology: Topology) -> None:
    """Write what the run is. Raises JobError on every rank when the disk refuses."""

    def write() -> None:
        try:
            write_text(config.output / "config.yaml", dump_yaml(config))
            write_json(config.output / "plan.json", inputs.plan.as_json())
        except OSError as error:
            problem = f"{config.output}: cannot be written to ({error.strerror}); make room, then start the same command again"
            raise JobError(problem) from None

    on_main(topology, write)


def _continued(checkpoint: Checkpoint | None, layout: Layout, engine: str) -> str:
    """The checkpoint in words, where another layout or engine wrote it."""
    if checkpoint is None:
        return ""
    before, now = checkpoint.record.layout.words(), layout.words()
    if checkpoint.record.engine != engine:
        before, now = f"{checkpoint.record.engine}, {before}", f"{engine}, {now}"
    return f"a checkpoint of {before} as {now}" if before != now else ""
