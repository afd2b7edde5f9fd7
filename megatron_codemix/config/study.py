"""A study: one base run, code shares × seeds, and what is evaluated."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from megatron_codemix.config.section import CountOrZero, FilePath, Section, Share, exact_share


def arm_name(source: str, share: float | str, seed: int) -> str:
    """Name of one arm, usable as a folder: `code-25-seed0` for a share of a quarter."""
    percent = f"{float(exact_share(share)) * 100:.4f}".rstrip("0").rstrip(".")
    return f"{source}-{percent}-seed{seed}"


class StudyEvaluation(Section):
    """What `codemix eval` measures on every converted model."""

    bits_per_byte: dict[str, FilePath] = {}
    """Domain → jsonl(.gz, .zst) of held-out documents with a 'text' field."""
    tasks: FilePath | None = None
    """YAML of further tasks for `codemix eval --tasks`; null: none."""


class StudyConfig(Section):
    """Shares × seeds, everything else equal."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Name in the report."""
    output: FilePath
    """Folder of the study: plan.json, runs/, report.html."""
    base: dict[str, Any]
    """A run config without name, output, seeds and mixtures: those the study fills in."""
    vary: str
    """Source whose share is varied (the code)."""
    against: str
    """Source that takes the rest of each share (the text)."""
    shares: list[Share] = Field(min_length=1)
    """Shares of `vary` to train."""
    seeds: list[CountOrZero] = Field(min_length=1)
    """Seeds; each sets the data and the initialisation seed, the same for every share (paired)."""
    evaluation: StudyEvaluation = StudyEvaluation()
    """What is measured on each model."""
    banner: str = ""
    """A caution printed at the top of the report."""

    def run_config(self, share: float | str, seed: int) -> dict[str, Any]:
        """The raw run config of one arm; `parse_config(…, RunConfig, …)` validates it."""
        rest = 1 - exact_share(share)
        name = arm_name(self.vary, share, seed)
        mixture = {self.vary: share, self.against: str(rest)}
        return {
            **self.base,
            "name": name,
            "output": str(self.output / "runs" / name),
            "seeds": {"data": seed, "init": seed, "dropout": seed},
            "stages": [{**stage, "mixture": mixture} for stage in self.base.get("stages", [])],
        }

    @classmethod
    def cross_problems(cls, raw: dict[str, Any]) -> list[str]:
        """Names that are not sources of the base run; shares or seeds given twice."""
        problems = []
        base = raw.get("base")
        sources = base.get("sources") if isinstance(base, dict) else None
        if isinstance(sources, dict):
            for key in ("vary", "against"):
                if isinstance(raw.get(key), str) and raw[key] not in sources:
                    problems.append(f"{key}: no source '{raw[key]}' in base.sources ({', '.join(map(str, sources))}); use one of them")
        for key in ("shares", "seeds"):
            values = raw.get(key)
            if isinstance(values, list) and len({str(value) for value in values}) < len(values):
                problems.append(f"{key}: a value is given twice; each arm is trained once")
        if isinstance(raw.get("vary"), str) and raw.get("vary") == raw.get("against"):
            problems.append("against: must differ from 'vary'")
        return problems

