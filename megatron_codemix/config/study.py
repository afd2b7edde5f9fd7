"""A study: one base run, code shares × seeds, and what is evaluated."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from megatron_codemix.config.load import parse_config
from megatron_codemix.config.run import RunConfig
from megatron_codemix.config.section import Count, CountOrZero, FilePath, Section, Share, exact_share
from megatron_codemix.errors import UserError

_FILLED_IN = ("name", "output", "seeds")
"""Fields of a run that the study sets itself, for every arm."""


def arm_name(source: str, share: float | str, seed: int) -> str:
    """Name of one arm, usable as a folder: `code-25-seed0` for a share of a quarter."""
    percent = f"{float(exact_share(share)) * 100:.4f}".rstrip("0").rstrip(".")
    return f"{source}-{percent}-seed{seed}"


def _arm_config(base: dict[str, Any], output: str, vary: str, against: str, share: float | str, seed: int) -> dict[str, Any]:
    name = arm_name(vary, share, seed)
    mixture = {vary: share, against: str(1 - exact_share(share))}
    stages = base.get("stages", [])
    if isinstance(stages, list):
        stages = [{"mixture": mixture, **stage} if isinstance(stage, dict) else stage for stage in stages]
    return {
        **base,
        "name": name,
        "output": f"{output}/runs/{name}",
        "seeds": {"data": seed, "init": seed, "dropout": seed},
        "stages": stages,
    }


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
    """A run config without name, output and seeds: those the study fills in, and the mixture of every
    stage that has none. A stage with a mixture of its own (a cooldown) keeps it in every arm."""
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
    baseline_tokens: Count = 100_000_000
    """Tokens per source that the unigram baseline counts, in windows spread evenly over the training split."""
    banner: str = ""
    """A caution printed at the top of the report."""

    def run_config(self, share: float | str, seed: int) -> dict[str, Any]:
        """The raw run config of one arm; `parse_config(…, RunConfig, …)` validates it."""
        return _arm_config(self.base, str(self.output), self.vary, self.against, share, seed)

    @classmethod
    def cross_problems(cls, raw: dict[str, Any]) -> list[str]:
        """Everything wrong with any arm; names that are not sources of the base run; arms given twice."""
        problems = []
        base, vary, against = (raw.get(key) for key in ("base", "vary", "against"))
        sources = base.get("sources") if isinstance(base, dict) else None
        if isinstance(sources, dict):
            for key in ("vary", "against"):
                if isinstance(raw.get(key), str) and raw[key] not in sources:
                    problems.append(f"{key}: no source '{raw[key]}' in base.sources ({', '.join(map(str, sources))}); use one of them")
        problems += _duplicates(raw)
        if isinstance(vary, str) and vary == against:
            problems.append("against: must differ from 'vary'; name the source that takes the rest")
        if isinstance(base, dict):
            problems += [f"base.{key}: the study sets it for every arm; remove it" for key in _FILLED_IN if key in base]
            if not problems and isinstance(vary, str) and isinstance(against, str):
                problems += _base_problems(base, vary, against, _sound_shares(raw))
        return problems


def _duplicates(raw: dict[str, Any]) -> list[str]:
    problems = []
    shares, seeds = _sound_shares(raw), raw.get("seeds")
    if len({exact_share(share) for share in shares}) < len(shares):
        problems.append("shares: a value is given twice; each arm is trained once")
    elif len({arm_name("", share, 0) for share in shares}) < len(shares):
        problems.append("shares: two values are nearer than a millionth and would share a folder; drop one")
    if isinstance(seeds, list) and len({str(value) for value in seeds}) < len(seeds):
        problems.append("seeds: a value is given twice; each arm is trained once")
    return problems


def _sound_shares(raw: dict[str, Any]) -> list[float | str]:
    """The shares that are numbers from 0 to 1; the others are reported by their own field."""
    values, sound = raw.get("shares"), []
    for value in values if isinstance(values, list) else []:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            continue
        try:
            exact = exact_share(value)
        except (ValueError, ZeroDivisionError):
            continue
        if 0 <= exact <= 1:
            sound.append(value)
    return sound


def _base_problems(base: dict[str, Any], vary: str, against: str, shares: list[float | str]) -> list[str]:
    """Mistakes of every arm's run config, told once, with their path below `base`."""
    problems: dict[str, None] = {}
    for share in shares or [0]:
        try:
            parse_config(_arm_config(base, "study", vary, against, share, 0), RunConfig, "base")
        except UserError as error:
            problems.update(dict.fromkeys(problem.replace("base: ", "base.", 1) for problem in error.problems))
    return list(problems)
