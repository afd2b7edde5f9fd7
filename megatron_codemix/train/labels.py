"""Loss weights held against the kinds of segments that a run's shards have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from megatron_codemix.config import RunConfig
from megatron_codemix.errors import UserError
from megatron_codemix.shards import Kind


def kinds_of(kind: Kind, has_segments: bool) -> set[str]:
    """Kinds that a source's labels can have: with segments any, without them its modality's alone."""
    return {each.name.lower() for each in Kind} if has_segments else {kind.name.lower()}


def label_cautions(config: RunConfig, kinds: Mapping[str, Iterable[str]]) -> list[str]:
    """Loss weights that change nothing, and sources of which nothing is learnt; a line each.

    kinds: source → what `kinds_of` says. Raises UserError for a stage none of whose labels can be a target.
    """
    found, problems = [], []
    for index, stage in enumerate(config.stages):
        weights: dict[str, float] = {**stage.objective.loss_weights}
        read = [name for name in stage.mixture if name in kinds]
        where = f"stages[{index}].objective.loss_weights"
        there = {kind for name in read for kind in kinds[name]}
        silent = [name for name in read if not any(weights.get(kind, 1.0) for kind in kinds[name])]
        if silent == read:
            problems.append(f"{where}: no label of this stage would be a target, since all are {_words(there)}; give them a weight")
            continue
        found += [f"{where}: every label of '{name}' has weight 0: its tokens are read, and nothing is learnt of them" for name in silent]
        idle = [kind for kind in weights if kind not in there]
        if idle:
            found.append(
                f"{where}: {_words(idle)} change{'s' if len(idle) == 1 else ''} nothing: the shards of {_words(read)} have no such "
                "segments; 'codemix prep shards' finds them in sources with 'shape: {segments: true}'"
            )
    if problems:
        raise UserError(*problems)
    return found


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
