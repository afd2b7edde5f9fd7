"""What a run's config allows, but a reader should know of before it trains: said by `codemix check` and at the start of `codemix train`."""

from __future__ import annotations

from megatron_codemix.config import RunConfig
from megatron_codemix.mixture import cautions
from megatron_codemix.train.inputs import Inputs
from megatron_codemix.train.labels import kinds_of, label_cautions


def run_cautions(config: RunConfig, inputs: Inputs) -> list[str]:
    """A line each. Raises UserError for a stage none of whose labels can be a target.

    Which segments shards have is read of their sidecars only where loss weights are declared: they alone care.
    """
    found = cautions(inputs.plan, {name: reader.manifest.modality for name, reader in inputs.readers.items()})
    if any(stage.objective.loss_weights for stage in config.stages):
        read = {name for stage in config.stages for name in stage.mixture}
        readers = [(name, reader) for name, reader in inputs.readers.items() if name in read]
        found += label_cautions(config, {name: kinds_of(reader.manifest.kind, reader.read_all_sidecars()) for name, reader in readers})
    return found
