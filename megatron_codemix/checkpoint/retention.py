"""Which checkpoints of a run stay."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def doomed(steps: Iterable[int], published: int, keep: int, keep_every_steps: int, keep_steps: Collection[int] = ()) -> list[int]:
    """Steps whose checkpoints go, oldest first, after the checkpoint of step `published` has been found whole.

    The newest `keep` (at least 1) up to `published` stay, the multiples of `keep_every_steps` (0: none) and `keep_steps`. What lies
    above `published` is not counted and stays: it was found damaged, or it would have been continued from.
    """
    known = sorted(step for step in set(steps) if step <= published)
    old = known[: -max(keep, 1)]
    return [step for step in old if not (keep_every_steps and step % keep_every_steps == 0) and step not in keep_steps]
