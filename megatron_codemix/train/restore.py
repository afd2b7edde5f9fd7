"""What a process takes over from a checkpoint: weights, moments, ledger, lineage. When it starts, and when it goes back."""

from __future__ import annotations

from megatron_codemix.checkpoint import Checkpoint, as_initial_weights, on_each
from megatron_codemix.config import RunConfig
from megatron_codemix.engine import Engine
from megatron_codemix.mixture import Ledger, Lineage
from megatron_codemix.parallel import Topology
from megatron_codemix.pieces import PieceReader
from megatron_codemix.train.branch import begin_lineage
from megatron_codemix.train.changes import changes
from megatron_codemix.train.guards import Guard
from megatron_codemix.train.inputs import Inputs
from megatron_codemix.train.watchdog import Watchdog


def load(engine: Engine, checkpoint: Checkpoint, topology: Topology, watchdog: Watchdog, optimizer: bool = True) -> None:
    """Fill the engine. Collective: a disk that refuses one rank ends all of them, before they wait for it in training."""
    step = checkpoint.step if optimizer else 0
    reader = on_each(topology, lambda: PieceReader(checkpoint.weights, lambda: watchdog.beat(step, "loading")))
    on_each(topology, lambda: engine.load_pieces(reader, optimizer))
    assert engine.step == step, f"weights of step {engine.step} in a checkpoint of step {checkpoint.step}"


def recall(guard: Guard, checkpoint: Checkpoint | None, config: RunConfig, trunk: bool = False) -> None:
    """Give the guard a checkpoint's memory: but not of what was usual, if stages or optimizer have been changed since on purpose.

    trunk: the checkpoint is another run's, which this one leaves.
    """
    guard.load(checkpoint.guards() if checkpoint else None, trunk=trunk)
    if checkpoint is not None and changes(checkpoint.config(), config):
        guard.forget()


def history(
    checkpoint: Checkpoint | None, initial: Checkpoint | None, inputs: Inputs, topology: Topology, trunk: bool = False
) -> tuple[Ledger, Lineage, int]:
    """What was consumed, how the run came here, and updates done. trunk: the checkpoint is another run's, which this one leaves.

    The ledger of the past is kept by one rank, so that it is there once when the ranks' ledgers are merged.
    """
    if checkpoint is None:
        return Ledger(inputs.plan.sources), Lineage(initial_weights=initial and as_initial_weights(initial)), 0
    lineage = Lineage.from_json(checkpoint.lineage(), str(checkpoint.folder / "lineage.json"))
    if trunk:
        begin_lineage(lineage, checkpoint)
    if topology.data_rank != 0:
        return Ledger(inputs.plan.sources), lineage, checkpoint.step
    # by name: the order of samples does not depend on the lines of a YAML file, so these may have changed places, or become more
    ledger = Ledger.from_json(checkpoint.ledger(), str(checkpoint.folder / "ledger.json"))
    return ledger.extended(inputs.plan.sources), lineage, checkpoint.step
