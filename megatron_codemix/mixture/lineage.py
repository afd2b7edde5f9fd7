"""The lineage: which steps, of which plan, by which attempt, the weights at hand have been through.

Append-only, and saved in each checkpoint: a run that falls back to an older checkpoint falls back to its
lineage too, so what is listed is what these weights have seen, never what was tried and lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from megatron_codemix.errors import UserError

_REMEDY = "it was altered; use another checkpoint"


@dataclass(frozen=True)
class Interval:
    """Steps [first, end) whose batches were consumed; none where changes on purpose ended the run there and then."""

    plan: str
    """Fingerprint of the plan they followed."""
    first: int
    end: int
    attempt: int
    """0 for the first process that trained the run, one more after each restart."""
    overrides: tuple[str, ...] = ()
    """`a.b=c` settings given on that attempt's command line."""
    changes: tuple[str, ...] = ()
    """`a.b: old → new` of each field of the config that was changed on purpose when this interval began."""


@dataclass
class Lineage:
    """Intervals in the order in which they were trained, and declared gaps."""

    intervals: list[Interval] = field(default_factory=list)
    skipped: list[tuple[int, int, str]] = field(default_factory=list)
    """(first, end, why): steps whose batches were left out on purpose."""
    initial_weights: dict[str, Any] | None = None
    """What the weights were before step 0 (`run`, `step`, `engine`, `weights`, …); None: drawn from the seed."""

    branched: list[dict[str, Any]] = field(default_factory=list)
    """Where the weights left other runs (`run`, `step`, `plan`, `weights`), the oldest first; what came before is their intervals."""

    @property
    def step(self) -> int:
        """The step that comes next."""
        return max([interval.end for interval in self.intervals] + [end for _, end, _ in self.skipped], default=0)

    def next_attempt(self) -> int:
        """The number of a process that continues from here."""
        return self.intervals[-1].attempt + 1 if self.intervals else 0

    def add_interval(
        self, plan: str, first: int, end: int, *, attempt: int = 0, overrides: Sequence[str] = (), changes: Sequence[str] = ()
    ) -> None:
        """Steps [first, end) were consumed; continues the last interval where all else is its own.

        None at all are noted only with changes: those that ended the run where it was.
        """
        if first != self.step or end < first:
            raise ValueError(f"steps {first} to {end} do not follow step {self.step}")
        if end == first and not changes:
            return
        new = Interval(plan, first, end, attempt, tuple(overrides), tuple(changes))
        last = self.intervals[-1] if self.intervals else None
        if last is not None and replace(last, first=first, end=end) == new and last.end == first:
            self.intervals[-1] = replace(last, end=end)
        else:
            self.intervals.append(new)

    def skip(self, first: int, end: int, why: str) -> None:
        """Steps [first, end) are left out, and why (a loss spike, say); continues the last gap where it adjoins and has the same reason."""
        if first != self.step or end <= first:
            raise ValueError(f"steps {first} to {end} do not follow step {self.step}")
        if self.skipped and self.skipped[-1][1:] == (first, why):
            first = self.skipped.pop()[0]
        self.skipped.append((first, end, why))

    def as_json(self) -> dict[str, Any]:
        """lineage.json of a checkpoint."""
        intervals = [_interval_json(interval) for interval in self.intervals]
        skipped = [{"first": first, "end": end, "why": why} for first, end, why in self.skipped]
        return {
            "format_version": 1,
            "plan": self.intervals[-1].plan if self.intervals else None,
            "intervals": intervals,
            "skipped": skipped,
            **({"initial_weights": self.initial_weights} if self.initial_weights else {}),
            **({"branched": self.branched} if self.branched else {}),
        }

    @classmethod
    def from_json(cls, value: Any, where: str = "lineage.json") -> Lineage:
        """Reads what `as_json` gave; raises UserError naming `where` for anything else, gaps and overlaps included."""
        if not isinstance(value, Mapping) or value.get("format_version") != 1:
            raise UserError(f"{where}: not a lineage of format_version 1; {_REMEDY}")
        branched = value.get("branched") or []
        if not isinstance(branched, list) or not all(isinstance(entry, Mapping) for entry in branched):
            raise UserError(f"{where}: its list of branches is malformed; {_REMEDY}")
        lineage = cls(initial_weights=value.get("initial_weights"), branched=[dict(entry) for entry in branched])
        try:
            events = [(int(entry["first"]), int(entry["end"]), entry) for entry in [*value["intervals"], *value["skipped"]]]
            for first, end, entry in sorted(events, key=lambda event: event[:2]):
                if "plan" in entry:
                    how = {"overrides": _texts(entry["overrides"]), "changes": _texts(entry.get("changes", []))}
                    lineage.add_interval(_text(entry["plan"]), first, end, attempt=int(entry["attempt"]), **how)
                else:
                    lineage.skip(first, end, _text(entry["why"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where}: its intervals are malformed ({error}); {_REMEDY}") from None
        return lineage


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r} is no list")
    return [_text(value) for value in values]


def _interval_json(interval: Interval) -> dict[str, Any]:
    """As lineage.json has it: "changes" only where there are some."""
    fields = {**asdict(interval), "overrides": list(interval.overrides), "changes": list(interval.changes)}
    return fields if interval.changes else {key: value for key, value in fields.items() if key != "changes"}
