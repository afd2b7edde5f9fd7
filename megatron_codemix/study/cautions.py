"""What a reader of a study's comparison should know before any number of it."""

from __future__ import annotations

from megatron_codemix.mixture import repetition_cautions
from megatron_codemix.study.plan import StudyPlan
from megatron_codemix.study.words import listed


def study_cautions(plan: StudyPlan) -> list[str]:
    """What is said of single arms, each once, and where arms repeat a source to different degrees."""
    told: dict[str, list[str]] = {}
    for arm in (*plan.arms, *plan.controls):
        for caution in arm.schedule.get("cautions", []):
            told.setdefault(caution, []).append(arm.name)
    single = [f"{listed(names) if len(names) < 4 else f'{len(names)} arms ({names[0]}, …)'}: {caution}" for caution, names in told.items()]
    return single + repetition_cautions({arm.name: arm.schedule["epochs"] for arm in (*plan.arms, *plan.controls)})
