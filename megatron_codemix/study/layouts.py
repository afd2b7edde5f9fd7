"""Which arm is trained under which layout, and which arms are trained twice. Pure functions of the study's sizes.

If every arm of one share had a layout of its own, a difference between shares could be the layout's. So arms
take turns (`rotation`), and some are trained again under another layout (`twins`): the twin has the same data
and the same initial weights, so the layout is all that differs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

REFERENCE = 0
"""The layout that the others are compared with: the first."""
Begun = Mapping[tuple[int, int], int]
"""(share, seed) → layout, of arms or twins whose training has begun."""


def rotation(num_shares: int, num_seeds: int, num_layouts: int) -> list[list[int]]:
    """[share][seed] → layout, by turns down the shares, seed after seed.

    The numbers of arms per layout differ by at most one. With two layouts or more, a share has more than one of
    them as soon as it has two seeds, and a seed as soon as it has two shares; a layout that trains two arms
    trains them for two shares, if there are two. More seeds leave what is there as it is.
    """
    # After so many seeds every layout had equally many turns, and turns would repeat: begin one layout later.
    period = num_layouts // math.gcd(num_shares, num_layouts)
    return [[(seed * num_shares + share + seed // period) % num_layouts for seed in range(num_seeds)] for share in range(num_shares)]


def assign(num_shares: int, num_seeds: int, num_layouts: int, begun: Begun, begun_twins: Begun) -> list[list[int]]:
    """[share][seed] → layout: what has begun stays as it is, the rest takes turns.

    That is `rotation` as long as it agrees with what has begun. Where shares were added since, each further arm takes the layout that
    has fewest arms; of several, one that is new to its share and seed. So the numbers still differ by at most one. An arm whose
    twin began before it gets the layout that the twin is to be compared with.
    """
    turns = rotation(num_shares, num_seeds, num_layouts)
    agrees = all(turns[share][seed] == layout for (share, seed), layout in begun.items())
    if agrees and all((turns[share][seed] == REFERENCE) != (layout == REFERENCE) for (share, seed), layout in begun_twins.items()):
        return turns
    fixed = dict(begun)
    fixed |= {arm: REFERENCE for arm, layout in begun_twins.items() if arm not in begun and layout != REFERENCE}
    for seed, share in product(range(num_seeds), range(num_shares)):
        if (share, seed) in fixed:
            continue
        used = Counter(fixed.values())
        near = Counter(layout for arm, layout in fixed.items() if arm[0] == share or arm[1] == seed)
        allowed = [layout for layout in range(num_layouts) if layout != begun_twins.get((share, seed))]
        fixed[share, seed] = min(allowed, key=lambda layout: (used[layout], near[layout], (layout - turns[share][seed]) % num_layouts))
    return [[fixed[share, seed] for seed in range(num_seeds)] for share in range(num_shares)]


def twins(assigned: Sequence[Sequence[int]], num_layouts: int, per_share: int, begun: Begun) -> list[tuple[int, int, int]]:
    """(share, seed, layout) to train again: in every share, what has begun and then the first seeds, `per_share` together.

    One of the two is always the reference layout: an arm that has it gets the layout compared least so far (the last
    of several), any other arm gets the reference. So all layouts are compared with one, and each of them once
    before any twice, as far as the assignment allows.
    """
    chosen = []
    for share, row in enumerate(assigned):
        seeds = sorted(range(len(row)), key=lambda seed: ((share, seed) not in begun, seed))
        chosen += [(seed, share) for seed in seeds[:per_share]]
    found = {(share, seed): begun[share, seed] for seed, share in chosen if (share, seed) in begun}
    compared = Counter(assigned[share][seed] for seed, share in chosen) + Counter(found.values())
    for seed, share in sorted(chosen):
        layout = REFERENCE
        if (share, seed) in found:
            continue
        if assigned[share][seed] == REFERENCE:
            layout = min(range(num_layouts - 1, REFERENCE, -1), key=lambda other: compared[other])
            compared[layout] += 1
        found[share, seed] = layout
    return sorted((*arm, layout) for arm, layout in found.items())
