"""Which nodes try an all-reduce together, and what their successes and failures say about each. Pure.

An all-reduce over all nodes that fails, or is slow, says nothing about whose fault it is. So nodes try it in pairs, all pairs at
once: first (0,1) (2,3) …, then (1,2) (3,4) … and the last with the first. Whoever succeeded once is cleared. Whoever did not may
have met bad partners only: it tries again with one that is cleared, and that decides. Three rounds, however many nodes there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

Pair = tuple[str, str]


def rounds(nodes: Sequence[str]) -> list[list[Pair]]:
    """The two rounds in which each node meets two others; one where there are two nodes, none for one."""
    count = len(nodes)
    if count < 2:
        return []
    first = [(nodes[at], nodes[at + 1]) for at in range(0, count - 1, 2)]
    if count == 2:
        return [first]
    second = [(nodes[at], nodes[at + 1]) for at in range(1, count - 1, 2)]
    if count % 2 == 0:
        second.append((nodes[-1], nodes[0]))
    return [first, second]


def suspects(nodes: Sequence[str], outcomes: Mapping[Pair, bool]) -> list[str]:
    """Those without a success, in order. With none cleared, all are."""
    cleared = {node for pair, good in outcomes.items() if good for node in pair}
    return [node for node in nodes if node not in cleared]


def retry(nodes: Sequence[str], outcomes: Mapping[Pair, bool]) -> list[Pair]:
    """The third round: each suspect with a cleared node that it has not met, as far as there are any."""
    doubted = suspects(nodes, outcomes)
    cleared = [node for node in nodes if node not in doubted]
    met = {frozenset(pair) for pair in outcomes}
    pairs: list[Pair] = []
    for one in doubted:
        partner = next((other for other in cleared if frozenset((one, other)) not in met), None)
        if partner is not None:
            cleared.remove(partner)  # a partner tries one at a time
            pairs.append((one, partner))
    return pairs


def blame(nodes: Sequence[str], outcomes: Mapping[Pair, bool]) -> dict[str, list[str]]:
    """The nodes to leave out → those with which they failed.

    First the suspects. Of a pair that fails although both succeed with others (a broken way between two switches), one has to
    go: the one in more such pairs, else the later.
    """
    doubted = set(suspects(nodes, outcomes))
    blamed = {node: _failed_with(node, outcomes, ()) for node in nodes if node in doubted and _failed_with(node, outcomes, ())}
    broken = [pair for pair, good in outcomes.items() if not good and doubted.isdisjoint(pair)]
    while broken:
        often = Counter(node for pair in broken for node in pair)
        worst = max(often, key=lambda node: (often[node], nodes.index(node)))
        blamed[worst] = _failed_with(worst, outcomes, doubted)
        broken = [pair for pair in broken if worst not in pair]
    return blamed


def _failed_with(node: str, outcomes: Mapping[Pair, bool], but: Collection[str]) -> list[str]:
    others = [other for pair, good in outcomes.items() if not good and node in pair for other in pair if other != node]
    return sorted({other for other in others if other not in but})
