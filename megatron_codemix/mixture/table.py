"""A plan in words: what `codemix check` prints."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_codemix.mixture.plan import Plan
from megatron_codemix.mixture.stage_plan import StagePlan


def plan_table(plan: Plan) -> list[str]:
    """Lines: each stage with its steps, its tokens and their rounding; windows of each source; epochs of the run."""
    rows = [("stage", "steps", "tokens", "rounding", "batch", "length", "source", "share", "windows", "from window")]
    for stage in plan.stages:
        rows += _stage_rows(plan, stage)
    lines = [*align(rows, left=(0, 6, 7)), ""]
    epochs, drift = plan.epochs(), plan.drift()
    rows = [("source", "windows", "tokens", "epochs", "count − declared")]
    for index, name in enumerate(plan.sources):
        windows = sum(int(stage.drawn[index]) for stage in plan.stages)
        tokens = sum(int(stage.drawn[index]) * stage.sequence_length for stage in plan.stages)
        rows.append((name, f"{windows:,}", f"{tokens:,}", f"{float(epochs[name]):.4g}", f"{float(drift[name]):+.3f}"))
    lines += align(rows, left=(0,))
    for stage in plan.stages:
        for name, overlap in zip(plan.sources, stage.overlap, strict=True):
            if overlap:
                lines.append(
                    f"note: stage '{stage.name}' cuts '{name}' anew into windows of {stage.sequence_length:,} tokens; about "
                    f"{float(overlap):,.0f} of its windows repeat tokens that this epoch has read before"
                )
        if not stage.objective.is_clm:
            lines.append(f"objective of stage '{stage.name}': {stage.objective.words()}")
    return lines


def _stage_rows(plan: Plan, stage: StagePlan) -> list[tuple[str, ...]]:
    head = (
        stage.name + (" (trunk)" if stage.inherited else "") + (" (restart)" if stage.restart else ""),
        f"{stage.num_steps:,}",
        f"{stage.tokens:,}",
        "left" if stage.whole != stage.batches else f"{stage.tokens - stage.declared_tokens:+,}",
        _batch_words(stage),
        f"{stage.sequence_length:,}",
    )
    rows = []
    for index, name in enumerate(plan.sources):
        share = stage.mixture.get(name, "0")
        words = f"{share['start']} → {share['end']}" if isinstance(share, dict) else share
        rows.append((*head, name, words, f"{int(stage.drawn[index]):,}", f"{int(stage.cursors[index]):,}"))
        head = ("",) * 6
    return rows


def _batch_words(stage: StagePlan) -> str:
    """'512', or '64 → 512'."""
    first, last = stage.batches.treads[0].size, stage.batch_size
    return f"{first:,}" if first == last else f"{first:,} → {last:,}"


def align(rows: Sequence[Sequence[str]], left: Sequence[int] = ()) -> list[str]:
    """Rows of cells → lines with aligned columns; the columns in `left` begin together, the others end together."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths))]
        lines.append("  ".join(cells).rstrip())
    return lines
