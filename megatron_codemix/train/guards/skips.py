"""RUN/skips.json: the steps that rewinds have decided to leave out, written before anything else of a rewind is done.

Whoever continues the run obeys it, and knows by it which checkpoints a rewind has given up: those that have trained on such a
step. So a rewind that is killed at any moment has either not begun or is carried out by the next start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json, write_json
from megatron_codemix.mixture import Lineage

SKIPS_NAME = "skips.json"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class PlannedSkip:
    """Steps first ≤ s < end (0-based) are left out."""

    first: int
    end: int
    fault: int
    """The step at which the fault was seen."""
    why: str
    """What was seen, in words."""


class PlannedSkips:
    """The skips that a run has planned, one of each rewind, in the order in which it made them."""

    def __init__(self, skips: Sequence[PlannedSkip] = ()) -> None:
        self._skips = tuple(skips)

    def __len__(self) -> int:
        """Rewinds so far."""
        return len(self._skips)

    @property
    def last(self) -> PlannedSkip:
        """That of the newest rewind."""
        return self._skips[-1]

    def with_one_more(self, skip: PlannedSkip) -> PlannedSkips:
        """These and `skip`."""
        assert skip.first <= skip.fault < skip.end, skip
        return PlannedSkips([*self._skips, skip])

    def why(self, step: int) -> str | None:
        """Why a step is left out; None where it is not."""
        return next((f"rewound: {skip.why}" for skip in self._skips if skip.first <= step < skip.end), None)

    def given_up(self, lineage: Lineage) -> bool:
        """Whether weights of this lineage have been trained on a step that is to be left out."""
        trained = [(interval.first, interval.end) for interval in lineage.intervals]
        return any(first < skip.end and skip.first < end for first, end in trained for skip in self._skips)

    def write(self, run_folder: Path) -> None:
        """Write RUN/skips.json, whole or not at all. Raises OSError."""
        write_json(Path(run_folder) / SKIPS_NAME, {"format_version": _FORMAT_VERSION, "skips": [asdict(skip) for skip in self._skips]})

    @classmethod
    def read(cls, run_folder: Path) -> PlannedSkips:
        """Those of a run folder; none where there is no such file. Raises UserError where it cannot be read."""
        path = Path(run_folder) / SKIPS_NAME
        if not path.exists():
            return cls()
        value = read_json(path, "list of skipped steps")
        try:
            if value["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"format_version {value['format_version']}")
            return cls([_skip(entry) for entry in value["skips"]])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: is malformed ({error!r}); restore it, or delete it to forget what rewinds have planned") from None


def _skip(entry: Any) -> PlannedSkip:
    skip = PlannedSkip(**entry)
    steps = (skip.first, skip.fault, skip.end)
    if not (all(type(step) is int for step in steps) and isinstance(skip.why, str) and 0 <= skip.first <= skip.fault < skip.end):
        raise ValueError(f"steps {steps}")
    return skip
