"""Which arm is trained under which layout, and which arms are trained twice. Pure functions of the study's sizes.

If every arm of one share had a layout of its own, a difference between shares could be the layout's. So arms
take turns (`rotation`), and some are trained again under another layout (`twins`): the twin has the same data
and the same initial weights, so the layout is all that differs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

REFERENCE = 0
"""The layout that the others are compared with: the first."""


def rotation(num_shares: int, num_seeds: int, num_layouts: int) -> list[list[int]]:
    """[share][seed] → layout, by turns down the shares, seed after seed.

    The numbers of arms per layout differ by at most one. With two layouts or more, a share has more than one of
    them as soon as it has two seeds, and a seed as soon as it has two shares; a layout that trains two arms
    trains them for two shares, if there are two. More seeds leave what is there as it is.
    """
    # After so many seeds every layout had equally many turns, and turns would repeat: begin one layout later.
    period = num_layouts // math.gcd(num_shares, num_layouts)
    return [[(seed * num_shares + share + seed // period) % num_layouts for seed in range(num_seeds)] for share in range(num_shares)]


def keep_begun(assigned: Sequence[Sequence[int]], begun: Mapping[tuple[int, int], int]) -> list[list[int]]:
    """The rotation, but (share, seed) that have begun under a layout stay under it: more shares move the later seeds' turns."""
    return [[begun.get((share, seed), layout) for seed, layout in enumerate(row)] for share, row in enumerate(assigned)]


def twins(assigned: Sequence[Sequence[int]], num_layouts: int, per_share: int) -> list[tuple[int, int, int]]:
    """(share, seed, layout) to train again: the first `per_share` seeds of every share.

    One of the two is always the reference layout: an arm that has it gets the layout compared least so far (the last
    of several), any other arm gets the reference. So all layouts are compared with one, and each of them once
    before any twice, as far as the assignment allows.
    """
    chosen = [(share, seed) for seed in range(per_share) for share in range(len(assigned))]
    compared = [0] * num_layouts
    for share, seed in chosen:
        compared[assigned[share][seed]] += 1
    found = []
    for share, seed in chosen:
        layout = REFERENCE
        if assigned[share][seed] == REFERENCE:
            layout = min(range(num_layouts - 1, REFERENCE, -1), key=lambda other: compared[other])
            compared[layout] += 1
        found.append((share, seed, layout))
    return sorted(found)
