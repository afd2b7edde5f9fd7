"""A run config → a `Run` ready for the main loop, in the order in which things depend on each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from megatron_codemix import worker
from megatron_codemix.batches import Loader
from megatron_codemix.checkpoint import Layout, code_revision, on_each, on_main, step_folders
from megatron_codemix.checkpoint.publish import Saver
from megatron_codemix.config import RunConfig, data_ranks, dump_yaml, padded_vocab_size
from megatron_codemix.engine import Engine, build_engine
from megatron_codemix.errors import JobError
from megatron_codemix.files import write_json, write_text
from megatron_codemix.parallel import Topology
from megatron_codemix.progress import say
from megatron_codemix.train.guards import SKIPS_NAME, Garbage, Guard, Pace, PlannedSkips, give_up
from megatron_codemix.train.inputs import Inputs, open_inputs
from megatron_codemix.train.lock import RunLock
from megatron_codemix.train.log import mend_log
from megatron_codemix.train.loop import train
from megatron_codemix.train.marker import mark_again, mark_finished, unmark
from megatron_codemix.train.meter import Meter, device_peak
from megatron_codemix.train.origin import Origin, find_origin
from megatron_codemix.train.recorder import Diverged, Recorder
from megatron_codemix.train.resume import Resume, finished_words, is_finished
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
            on_main(topology, lambda: mark_again(config.output))
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
            if finished:
                on_main(topology, lambda: _mark(run))
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
        origin = find_origin(config, inputs, topology, watchdog, resume, accept)
        ledger, lineage, first_step = on_each(topology, lambda: origin.history(inputs, topology))
        _describe(config, inputs, topology)
        engine = build_engine(config, inputs.tokenizer.vocab_size, topology)
        origin.load(engine, topology, watchdog)
        guard = Guard(config.guards, inputs.plan, planned)
        on_each(topology, lambda: origin.recall(guard, config))
        meter = _meter(config, inputs, topology)
        recorder = _open_recorder(config, inputs, meter, lock, first_step, ledger.target_tokens, stack)
        saver = _open_saver(config, topology, lock, engine, stack)
        _start(recorder, config, inputs, topology, origin, attempt, revision)
        yield Run(
            config=config,
            inputs=inputs,
            topology=topology,
            engine=engine,
            loader=_open_loader(config, inputs, topology, stack),
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
            changes=origin.changes,
        )


def _mark(run: Run) -> None:
    assert run.lock is not None
    run.lock.require_held()
    facts = {"name": run.config.name, "plan": run.plan.fingerprint, "attempt": run.attempt}
    mark_finished(run.config.output, step=run.plan.num_steps, tokens=run.recorder.tokens, **facts)


def _shared(config: RunConfig, inputs: Inputs | None, topology: Topology) -> Inputs:
    """The inputs, on every rank, after one has read the small files: manifests, and the sidecars of a store. Collective."""
    files = topology.broadcast(small_files(config, inputs.readers, inputs.validation) if topology.is_main and inputs else None)
    return on_each(topology, lambda: inputs or open_inputs(config, files))


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
    if not step_folders(config.output) and config.branch is None:  # begun anew; a branch may have gone back to its trunk
        (config.output / SKIPS_NAME).unlink(missing_ok=True)
    planned = PlannedSkips.read(config.output)
    give_up(config.output, planned, lock.require_held, config.branch is not None)
    return planned


def _describe(config: RunConfig, inputs: Inputs, topology: Topology) -> None:
    """Write what the run is. Raises JobError on every rank when the disk refuses."""

    def write() -> None:
        try:
            write_text(config.output / "config.yaml", dump_yaml(config))
            write_json(config.output / "plan.json", inputs.plan.as_json())
            unmark(config.output)
        except OSError as error:
            problem = f"{config.output}: cannot be written to ({error.strerror}); make room, then start the same command again"
            raise JobError(problem) from None

    on_main(topology, write)


def _meter(config: RunConfig, inputs: Inputs, topology: Topology) -> Meter:
    peak = device_peak(config.logging.peak_tflops, topology.device, config.precision)
    return Meter(config.model, _rows(config, inputs), topology.world_size, peak)


def _rows(config: RunConfig, inputs: Inputs) -> int:
    """Rows of the embedding, padding included."""
    return padded_vocab_size(inputs.tokenizer.vocab_size, config.model.vocab_multiple)


def _open_recorder(
    config: RunConfig, inputs: Inputs, meter: Meter, lock: RunLock | None, first_step: int, tokens: int, stack: ExitStack
) -> Recorder:
    steps = {"first_step": first_step, "num_steps": inputs.plan.num_steps}
    recorder = Recorder(config.output, config.logging, meter, lock, **steps, tokens=tokens, name=config.name)
    stack.callback(recorder.close)
    return recorder


def _open_saver(config: RunConfig, topology: Topology, lock: RunLock | None, engine: Engine, stack: ExitStack) -> Saver:
    saver = Saver(config.output, config.checkpoint, topology, lock.require_held if lock else lambda: None, engine.swap_folder)
    stack.callback(saver.close)
    saver.reserve(engine.pieces())
    return saver


def _open_loader(config: RunConfig, inputs: Inputs, topology: Topology, stack: ExitStack) -> Loader:
    loader = Loader(
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
    stack.callback(loader.close)
    return loader


def _start(recorder: Recorder, config: RunConfig, inputs: Inputs, topology: Topology, origin: Origin, attempt: int, revision: str) -> None:
    """Say what begins, and from what."""
    if topology.is_main and (lack := lack_of_space(config, inputs.plan.num_steps, _rows(config, inputs))):
        say(f"warning: {lack}")
    layout = Layout.of(config.parallel, topology.world_size)
    facts = {"plan": inputs.plan.fingerprint, "attempt": attempt, "revision": revision, "layout": layout.words()}
    recorder.start({"run": config.name, **facts, "world_size": topology.world_size}, origin.words(layout, config.engine))
