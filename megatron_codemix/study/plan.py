"""The plan of a study: one arm per share and seed, and twins, each a whole run config with a hash; `expand.py` makes it.

plan.json is what `run`, `status` and `report` work from. An arm's hash covers everything its result
depends on: the run config without logging and checkpoint intervals, the number of data-parallel ranks, the tokenizer
and the shards.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_codemix.config import RunConfig, dump_yaml, parse_config
from megatron_codemix.config.section import exact_share
from megatron_codemix.errors import UserError
from megatron_codemix.files import read_json, sha256_json, write_json, write_text

FORMAT_VERSION = 1
ARM_FILE = "arm.json"
"""In STUDY/arms/ARM: the arm as it was when its training began."""
_WITHOUT_INFLUENCE = ("logging", "checkpoint", "timeouts")
"""Sections of a run that change what is written or waited for, not what is trained."""


@dataclass(frozen=True)
class Arm:
    """One model to train: a share, a seed, and the resolved run config."""

    name: str
    share: str
    """The share of the varied source as an exact fraction, "1/4"."""
    seed: int
    config: dict[str, Any]
    """The resolved run config, as JSON."""
    inputs: dict[str, str]
    """Fingerprints of the tokenizer and of each source's training split."""
    schedule: dict[str, Any]
    """Of the run's plan: `steps`, target `tokens`, `epochs` per source, its fingerprint as `plan`, and its `cautions`, in words."""
    layout: str | None = None
    """Name of its layout; None in a study that names none."""
    data_ranks: int = 1
    """Data-parallel ranks: processes over those that one copy of the model takes."""
    twin_of: str | None = None
    """Name of the arm whose training this repeats under another layout; None for an arm that counts as a model."""
    control: str | None = None
    """Which control it is, volume_matched or placebo; None for an arm."""
    control_of: str | None = None
    """Name of the arm that a control is compared with."""

    @property
    def processes(self) -> int:
        """Processes that its training takes."""
        layout = self.config["parallel"]
        return math.prod((self.data_ranks, layout["tensor"], layout["pipeline"], layout["context"]))

    @property
    def hash(self) -> str:
        """sha256 over what the trained weights depend on; fields at their default are left out, so that a new field changes none."""
        ranks = {} if self.data_ranks == 1 else {"data_ranks": self.data_ranks}
        config = _influential(self).model_dump(mode="json", exclude_defaults=True)
        return sha256_json({"config": config, "inputs": self.inputs, **ranks})

    @property
    def share_value(self) -> float:
        """The share as a number from 0 to 1."""
        return float(exact_share(self.share))


@dataclass(frozen=True)
class StudyPlan:
    """All arms of a study, and what is measured on each."""

    name: str
    output: Path
    vary: str
    against: str
    banner: str
    baseline_tokens: int
    evaluation: dict[str, Any]
    arms: tuple[Arm, ...] = field(default=())
    """The models that shares are compared with."""
    twins: tuple[Arm, ...] = field(default=())
    """Arms trained again under another layout; they only tell what a layout does."""
    controls: tuple[Arm, ...] = field(default=())
    """Models with something else in the place of the varied source; each is compared with its arm."""
    mode: str = "competitive"
    """What stays fixed as the share grows: competitive or additive."""

    @property
    def trained(self) -> tuple[Arm, ...]:
        """Everything that is trained: arms, their controls, and twins."""
        return self.arms + self.controls + self.twins

    def arm_folder(self, arm: Arm) -> Path:
        """STUDY/arms/ARM: the arm's run file, the logs of its stages and what is known of them."""
        return self.output / "arms" / arm.name

    def run_folder(self, arm: Arm) -> Path:
        """STUDY/runs/ARM: the run folder that `codemix train` writes."""
        return self.output / "runs" / arm.name

    def as_json(self) -> dict[str, Any]:
        """The content of plan.json."""
        document = {"format_version": FORMAT_VERSION, **asdict(self), "output": str(self.output)}
        for kind in ("arms", "controls", "twins"):
            document[kind] = [{**asdict(arm), "hash": arm.hash} for arm in getattr(self, kind)]
        return document

    def save(self) -> Path:
        """Write STUDY/plan.json; returns its path."""
        path = self.output / "plan.json"
        write_json(path, self.as_json())
        return path

    @classmethod
    def load(cls, folder: Path) -> StudyPlan:
        """Read STUDY/plan.json; raises UserError where it is missing, of another version or altered."""
        path = Path(folder) / "plan.json"
        if not path.is_file():
            raise UserError(f"{folder}: this study has no plan yet; make it with 'codemix study plan STUDY.yaml'")
        document = read_json(path, "study plan")
        if not isinstance(document, dict) or document.get("format_version") != FORMAT_VERSION:
            found = document.get("format_version") if isinstance(document, dict) else None
            raise UserError(f"{path}: format_version {found}, this codemix reads {FORMAT_VERSION}; plan the study anew")
        try:
            arms, controls, again = (
                tuple(Arm(**{key: value for key, value in arm.items() if key != "hash"}) for arm in items)
                for items in (document.pop("arms"), document.pop("controls", []), document.pop("twins", []))
            )
            document.pop("format_version")
            return cls(**{**document, "output": Path(folder), "arms": arms, "controls": controls, "twins": again})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: is not a study plan ({error}); run 'codemix study plan' anew") from None


def _influential(arm: Arm) -> RunConfig:
    """The arm's config with what has no influence at its default, as is what an earlier codemix that wrote it did not know."""
    kept = {key: value for key, value in arm.config.items() if key not in _WITHOUT_INFLUENCE}
    return parse_config(kept, RunConfig, f"arm {arm.name}")


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    """{"model.hidden_size": 64, "stages[0].tokens": …} of a nested config."""
    if isinstance(value, dict) and value:
        parts = [flatten(item, f"{path}.{key}" if path else str(key)) for key, item in value.items()]
    elif isinstance(value, list) and value:
        parts = [flatten(item, f"{path}[{index}]") for index, item in enumerate(value)]
    else:
        return {path: value}
    return {key: item for part in parts for key, item in part.items()}


def changed_fields(old: Arm, new: Arm) -> list[str]:
    """`field: was X, is Y` for all that changed between two plans of one arm and matters to its weights."""
    before, after = (flatten(_influential(arm).model_dump(mode="json")) for arm in (old, new))
    absent = "absent"
    changes = [
        f"{path}: was {before.get(path, absent)}, is {after.get(path, absent)}"
        for path in [*before, *(path for path in after if path not in before)]
        if before.get(path, absent) != after.get(path, absent)
    ]
    if old.data_ranks != new.data_ranks:
        changes.append(f"data-parallel ranks: was {old.data_ranks}, is {new.data_ranks}")
    for name in {**old.inputs, **new.inputs}:
        if old.inputs.get(name) != new.inputs.get(name):
            changes.append(f"{name}: its content was prepared anew")
    return changes


def check_against_existing(plan: StudyPlan) -> None:
    """Refuse a plan that contradicts arms begun under an earlier one in the same folder.

    New shares and seeds are welcome. Raises UserError that names each field and the remedy.
    """
    changes: dict[str, list[str]] = {}
    for arm in plan.trained:
        path = plan.arm_folder(arm) / ARM_FILE
        if path.exists():
            for change in changed_fields(read_arm(path), arm):
                changes.setdefault(change, []).append(arm.name)
    if changes:
        remedy = "restore it, give the study another 'output', or remove"
        raise UserError(
            *(f"{change}, but {_some(names)} begun with the former; {remedy} {_doomed(plan, names)}" for change, names in changes.items())
        )


def begin_arm(plan: StudyPlan, arm: Arm) -> Path:
    """Write what an arm is trained with, before it is; returns its run file for `codemix train`."""
    folder = plan.arm_folder(arm)
    write_json(folder / ARM_FILE, asdict(arm))
    path = folder / "run.yaml"
    write_text(path, dump_yaml(parse_config(arm.config, RunConfig, str(path))))
    return path


def read_arm(path: Path) -> Arm:
    """An arm as it was when its training began. Raises UserError for a file that is none."""
    try:
        return Arm(**read_json(path, "arm"))
    except TypeError as error:
        raise UserError(f"{path}: is not an arm of a study ({error}); remove the study's folder and run it anew") from None


def _some(names: list[str]) -> str:
    return f"{names[0]} was" if len(names) == 1 else f"{len(names)} arms ({names[0]}, …) were"


def _doomed(plan: StudyPlan, names: list[str]) -> str:
    if len(names) == 1:
        return f"{plan.output}/runs/{names[0]} and {plan.output}/arms/{names[0]} to train it anew"
    return f"these arms' folders below {plan.output}/runs and {plan.output}/arms to train them anew"
