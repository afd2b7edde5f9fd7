"""A study: one base run, code shares × seeds, the layouts they are crossed with, and what is evaluated."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from megatron_codemix.config.load import parse_config
from megatron_codemix.config.parallel import ParallelConfig
from megatron_codemix.config.run import RunConfig
from megatron_codemix.config.section import Count, CountOrZero, FilePath, Section, Share, exact_share, is_count, whole
from megatron_codemix.config.world import data_ranks
from megatron_codemix.errors import UserError

_FILLED_IN = ("name", "output", "seeds")
"""Fields of a run that the study sets itself, for every arm."""


_LAYOUT_NAME = r"[A-Za-z0-9._-]+"


def arm_name(source: str, share: float | str, seed: int) -> str:
    """Name of one arm, usable as a folder: `code-25-seed0` for a share of a quarter."""
    percent = f"{float(exact_share(share)) * 100:.4f}".rstrip("0").rstrip(".")
    return f"{source}-{percent}-seed{seed}"


def twin_name(arm: str, layout: str) -> str:
    """Name of an arm trained again under another layout: `code-25-seed0-as-tp2`."""
    return f"{arm}-as-{layout}"


def control_name(arm: str, control: str) -> str:
    """Name of a control of an arm: `code-25-seed0-volume-matched`."""
    return f"{arm}-{control.replace('_', '-')}"


class _Mix(NamedTuple):
    """What fills in the mixture of a stage that has none."""

    vary: str
    against: str
    mode: str = "competitive"
    control: str | None = None
    placebo: str | None = None

    def stage(self, raw: dict[str, Any], share: float | str) -> dict[str, Any]:
        """A raw stage of the base at this share."""
        if "mixture" in raw or "mixing" in raw:
            return raw
        if self.mode == "competitive" and self.control is None:
            return {"mixture": {self.vary: share, self.against: str(1 - exact_share(share))}, **raw}
        fixed = "tokens" if self.mode == "competitive" else "language_tokens"
        mixing = {"mode": self.mode, "code_share": share, "code": {self.vary: 1}, "language": {self.against: 1}}
        mixing |= {fixed: raw["tokens"]} if "tokens" in raw else {}
        mixing |= {"control": self.control} if self.control else {}
        mixing |= {"placebo": {self.placebo: 1}} if self.control == "placebo" else {}
        return {**{key: value for key, value in raw.items() if key != "tokens"}, "mixing": mixing}


def _mix(raw: dict[str, Any]) -> _Mix:
    """Of a raw study, whose fields may be malformed: what is told by the field is passed over here."""
    mode = raw.get("mode", "competitive")
    return _Mix(raw["vary"], raw["against"], mode if mode in ("competitive", "additive") else "competitive")


def _arm_config(base: dict[str, Any], output: str, mix: _Mix, share: float | str, seed: int) -> dict[str, Any]:
    name = arm_name(mix.vary, share, seed)
    stages = base.get("stages", [])
    if isinstance(stages, list):
        stages = [mix.stage(stage, share) if isinstance(stage, dict) else stage for stage in stages]
    return {
        **base,
        "name": name,
        "output": f"{output}/runs/{name}",
        "seeds": {"data": seed, "init": seed, "dropout": seed},
        "stages": stages,
    }


def _under_layout(arm: dict[str, Any], layout: dict[str, Any]) -> dict[str, Any]:
    """An arm's raw run config under a raw layout."""
    micro = layout.get("micro_batch_size")
    changes = {"parallel": layout.get("parallel", {})} | ({} if micro is None else {"micro_batch_size": micro})
    return {**arm, **changes}


class StudyLayout(Section):
    """A layout that arms are trained under."""

    parallel: ParallelConfig = ParallelConfig()
    """The arm's layout."""
    processes: Count | None = None
    """Processes on this machine, a multiple of tensor × pipeline × context; null: that product. What is above it is data parallel."""
    micro_batch_size: Count | None = None
    """Windows per forward pass and rank under this layout; null: the base's."""

    @property
    def num_processes(self) -> int:
        """Processes that training starts."""
        return self.processes or self.parallel.tensor * self.parallel.pipeline * self.parallel.context


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
    mode: Literal["competitive", "additive"] = "competitive"
    """competitive: every arm has the base's tokens, and `vary` takes the place of `against`; additive: the base's tokens are those of
    `against`, in every arm, and `vary` comes on top. Stages with a mixture of their own stay as they are."""
    shares: list[Share] = Field(min_length=1)
    """Shares of `vary` to train."""
    controls: list[Literal["volume_matched", "placebo"]] = []
    """Models trained beside every arm with a share above 0, to be compared with it: volume_matched (additive): as long, all of it
    `against`; placebo: `placebo` in the place of `vary`."""
    placebo: str | None = None
    """Source of the control placebo (scrambled code, say)."""
    seeds: list[CountOrZero] = Field(min_length=1)
    """Seeds; each sets the data and the initialisation seed, the same for every share (paired)."""
    layouts: dict[str, StudyLayout] = {}
    """Layout name → layout. Arms take turns, so that layout and share are not aliased; none: all train as `base` says."""
    twins: CountOrZero = 0
    """Arms per share that are trained again under another layout, to see what the layout does; compared with their original, never
    counted as further models. The first layout is the one that others are compared with."""
    evaluation: StudyEvaluation = StudyEvaluation()
    """What is measured on each model."""
    unchecked_evaluation: Literal["warn", "refuse"] = "warn"
    """What is done about evaluation data that a source's training documents were not compared with (`decontaminated_against` in its
    manifest): say so, or plan nothing."""
    baseline_tokens: Count = 100_000_000
    """Tokens per source that the unigram baseline counts, in windows spread evenly over the training split."""
    banner: str = ""
    """A caution printed at the top of the report."""

    def run_config(
        self, share: float | str, seed: int, layout: str | None = None, twin: bool = False, control: str | None = None
    ) -> dict[str, Any]:
        """The raw run config of one arm, of its twin under `layout`, or of a control; `parse_config(…, RunConfig, …)` validates it."""
        mix = _Mix(self.vary, self.against, self.mode, control, self.placebo)
        arm = _arm_config(self.base, str(self.output), mix, share, seed)
        name = twin_name(arm["name"], layout) if twin and layout else control_name(arm["name"], control) if control else arm["name"]
        if layout is not None:
            arm = _under_layout(arm, self.layouts[layout].model_dump(mode="json"))
        return {**arm, "name": name, "output": f"{self.output}/runs/{name}"}

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
        problems += _duplicates(raw) + _control_problems(raw, sources if isinstance(sources, dict) else None)
        if isinstance(vary, str) and vary == against:
            problems.append("against: must differ from 'vary'; name the source that takes the rest")
        if isinstance(base, dict):
            problems += [f"base.{key}: the study sets it for every arm; remove it" for key in _FILLED_IN if key in base]
            if not problems and isinstance(vary, str) and isinstance(against, str):
                problems += _base_problems(base, _mix(raw), _sound_shares(raw))
        problems += _twin_problems(raw)
        if isinstance(raw.get("layouts"), dict) and raw["layouts"] and isinstance(base, dict):
            if "parallel" in base:
                problems.append("base.parallel: the layouts set it for every arm; remove it, or make it one of the layouts")
            if not problems and isinstance(vary, str) and isinstance(against, str):
                arm = _arm_config(base, "study", _mix(raw), (_sound_shares(raw) or [0])[0], 0)
                problems += _layouts_problems(arm, raw["layouts"])
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


def _control_problems(raw: dict[str, Any], sources: dict[str, Any] | None) -> list[str]:
    """Controls that the mode has not, and placebos that are no source."""
    controls = raw["controls"] if isinstance(raw.get("controls"), list) else []
    mode, placebo, problems = raw.get("mode", "competitive"), raw.get("placebo"), []
    if mode == "additive" and any(exact_share(share) == 1 for share in _sound_shares(raw)):
        problems.append("shares: at 1 no language is left to add code to; give shares below 1, or mode competitive")
    if mode == "competitive" and "volume_matched" in controls:
        problems.append("controls: volume_matched is the arm of share 0 in a competitive study; put 0 among the shares, and leave it out")
    if len(set(map(str, controls))) < len(controls):
        problems.append("controls: one is given twice; each is trained once")
    if ("placebo" in controls) != (placebo is not None):
        problems.append("placebo: goes with 'placebo' among the controls, and the control with it; give both or neither")
    if isinstance(placebo, str):
        if sources is not None and placebo not in sources:
            problems.append(f"placebo: no source '{placebo}' in base.sources ({', '.join(map(str, sources))}); use one of them")
        if placebo in (raw.get("vary"), raw.get("against")):
            problems.append("placebo: must differ from 'vary' and 'against'; name the source that takes the place of 'vary'")
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


def _base_problems(base: dict[str, Any], mix: _Mix, shares: list[float | str]) -> list[str]:
    """Mistakes of every arm's run config, told once, with their path below `base`."""
    problems: dict[str, None] = {}
    for share in shares or [0]:
        try:
            parse_config(_arm_config(base, "study", mix, share, 0), RunConfig, "base")
        except UserError as error:
            problems.update(dict.fromkeys(problem.replace("base: ", "base.", 1) for problem in error.problems))
    return list(problems)


def _twin_problems(raw: dict[str, Any]) -> list[str]:
    twins, seeds, layouts = whole(raw.get("twins", 0)), raw.get("seeds"), raw.get("layouts", {})
    if not is_count(twins):
        return []
    problems = []
    if isinstance(layouts, dict) and len(layouts) < 2:
        problems.append(f"twins: {twins} needs another layout to train under, and there are {len(layouts)}; name two in 'layouts'")
    if isinstance(seeds, list) and twins > len(seeds):
        problems.append(f"twins: {twins} is more than the arms of a share, one for each of {len(seeds)} seed(s); lower it")
    return problems


def _layouts_problems(arm: dict[str, Any], layouts: dict[Any, Any]) -> list[str]:
    """What is wrong with each layout under a run config that is sound without one; malformed fields are reported by themselves."""
    problems = []
    sound: dict[str, StudyLayout] = {}
    for name, raw in layouts.items():
        if not isinstance(name, str) or not re.fullmatch(_LAYOUT_NAME, name):
            problems.append(f"layouts.{name}: not a name for a folder; use letters, digits, '.', '_' and '-'")
            continue
        try:
            layout = StudyLayout.model_validate(raw)
        except ValidationError:
            continue
        problems += [f"layouts.{name}{problem}" for problem in _layout_problems(arm, raw, layout)]
        same = [other for other, known in sound.items() if _resolved(arm, known) == _resolved(arm, layout)]
        problems += [f"layouts.{name}: is '{other}' again; a layout has one name" for other in same]
        sound[name] = layout
    return problems


def _resolved(arm: dict[str, Any], layout: StudyLayout) -> tuple[ParallelConfig, int, int]:
    default = arm.get("micro_batch_size", RunConfig.model_fields["micro_batch_size"].default)
    return layout.parallel, layout.num_processes, layout.micro_batch_size or whole(default)


def _layout_problems(arm: dict[str, Any], raw: dict[str, Any], layout: StudyLayout) -> list[str]:
    """Mistakes of one layout, each beginning with what follows the layout's name."""
    model = math.prod((layout.parallel.tensor, layout.parallel.pipeline, layout.parallel.context))
    if layout.num_processes % model:
        return [f".processes: {layout.num_processes} is not a multiple of tensor × pipeline × context, {model}; use one, or leave it out"]
    try:
        data_ranks(parse_config(_under_layout(arm, raw), RunConfig, ""), layout.num_processes)
    except UserError as error:
        told = [problem.removeprefix(": ") for problem in error.problems]
        return [f".{problem}" if problem.startswith(("parallel.", "micro_batch_size")) else f": {problem}" for problem in told]
    return []
