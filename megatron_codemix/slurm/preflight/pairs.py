"""Which nodes try an all-reduce together, and what their successes and failures say about each. Pure.

An all-reduce over all nodes that fails, or is slow, says nothing about whose fault it is. So nodes try it in pairs, all pairs at
once: first (0,1) (2,3) …, then (1,2) (3,4) …, and the last with the first. Of a pair that fails each side tries again with a node
that has succeeded, in the same role, and that decides: the first of a pair is who is connected to, and a wrong interface or a
firewall may hinder a node in one role alone. Five rounds at most, however many nodes there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

Pair = tuple[str, str]
"""First (whom the other connects to) and second."""
Outcomes = Mapping[Pair, bool]
RETRIES = 2
"""Rounds behind those of the ring."""


def rounds(nodes: Sequence[str]) -> list[list[Pair]]:
    """The ring: each node is first with the next one and second with the one before, and never in two pairs of a round."""
    if len(nodes) < 3:
        return [[(nodes[0], nodes[1])]] if len(nodes) == 2 else []
    ring = list(zip(nodes, [*nodes[1:], nodes[0]]))
    if len(nodes) % 2 == 0:
        return [ring[0::2], ring[1::2]]
    return [ring[0:-1:2], ring[1:-1:2], ring[-1:]]


def retry(nodes: Sequence[str], outcomes: Outcomes) -> list[Pair]:
    """One more round: sides of failed pairs that have not succeeded in their role, each with a node that has succeeded."""
    proven = [node for node in nodes if any(_succeeded(node, role, outcomes) for role in (0, 1))]
    taken: set[str] = set()
    planned: list[Pair] = []
    for pair in [pair for pair, good in outcomes.items() if not good]:
        for role, node in enumerate(pair):
            if node in taken or _succeeded(node, role, outcomes):
                continue
            # who has succeeded in the other role says most
            partners = sorted(proven, key=lambda other: not _succeeded(other, 1 - role, outcomes))
            tries = [(node, other) if role == 0 else (other, node) for other in partners if other not in taken and other not in pair]
            fresh = next((one for one in tries if one not in outcomes), None)
            if fresh is not None:
                planned.append(fresh)
                taken.update(fresh)
    return planned


def blame(nodes: Sequence[str], outcomes: Outcomes) -> dict[str, list[str]]:
    """The nodes to leave out → those with which they failed, in order.

    Of a failed pair it is the side that never succeeded in its role; where neither did, the one that never succeeded at all,
    or both. Where both did (a broken way between two switches) one has to go: the one in more such pairs, else the later.
    """
    bad: set[str] = set()
    broken: list[Pair] = []
    for pair in [pair for pair, good in outcomes.items() if not good]:
        unproven = [node for role, node in enumerate(pair) if not _succeeded(node, role, outcomes)]
        if not unproven:
            broken.append(pair)
        elif len(unproven) == 1:
            bad.update(unproven)
        else:
            never = [node for node in pair if not any(_succeeded(node, role, outcomes) for role in (0, 1))]
            bad.update(never or pair)
    broken = [pair for pair in broken if bad.isdisjoint(pair)]
    while broken:
        often = Counter(node for pair in broken for node in pair)
        worst = max(often, key=lambda node: (often[node], nodes.index(node)))
        bad.add(worst)
        broken = [pair for pair in broken if worst not in pair]
    failed = [pair for pair, good in outcomes.items() if not good]
    return {node: [other for other in nodes if (node, other) in failed or (other, node) in failed] for node in nodes if node in bad}


def _succeeded(node: str, role: int, outcomes: Outcomes) -> bool:
    return any(good and pair[role] == node for pair, good in outcomes.items())
