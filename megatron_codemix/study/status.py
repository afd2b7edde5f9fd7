"""How far each arm of a study is: read from its files, whoever runs it."""

from __future__ import annotations

from megatron_codemix.study.plan import Arm, StudyPlan
from megatron_codemix.study.runlog import of_kind
from megatron_codemix.study.stages import Stage, read_records, stages_of
from megatron_codemix.train import read_log

_HEADINGS = ("arm", "share", "seed", "layout", "steps", "loss", "train", "audit", "convert", "eval")
_LAYOUT, _FIRST_STAGE = 3, 6


def status_table(plan: StudyPlan) -> str:
    """One line per arm and twin: share, seed, layout where there are several, steps, newest loss (nats per token), state of each stage."""
    rows = [_HEADINGS, *(_row(plan, arm) for arm in plan.trained)]
    if all(arm.layout is None for arm in plan.trained):
        rows = [row[:_LAYOUT] + row[_LAYOUT + 1 :] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _row(plan: StudyPlan, arm: Arm) -> tuple[str, ...]:
    run = plan.run_folder(arm)
    steps = of_kind(read_log(run), "step") if (run / "log.jsonl").exists() else []
    states = _states(plan, arm)
    return (
        arm.name,
        f"{arm.share_value:.4g}",
        str(arm.seed),
        arm.layout or "–",
        f"{steps[-1]['step'] if steps else 0}/{arm.schedule['steps']}",
        f"{steps[-1]['loss']:.4f}" if steps else "–",
        *(states.get(name, "–") for name in _HEADINGS[_FIRST_STAGE:]),
    )


def _states(plan: StudyPlan, arm: Arm) -> dict[str, str]:
    records = read_records(plan.arm_folder(arm))
    states: dict[str, str] = {}
    waiting = False
    for stage in stages_of(plan, arm):
        if not waiting and stage.is_done():
            states[stage.name] = f"done, {records[stage.name]['seconds']:.0f} s"
        else:
            states[stage.name] = "waiting" if waiting else _open_state(stage, records.get(stage.name, {}))
            waiting = True
    return states


def _open_state(stage: Stage, record: dict) -> str:
    if record.get("returncode"):
        return f"stopped ({record['returncode']})"
    return "begun" if stage.log.exists() else "open"
