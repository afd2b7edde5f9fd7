"""A comparison as lines for a terminal and as a self-contained HTML page with a forest plot."""

from __future__ import annotations

from html import escape
from math import isfinite, isnan

from eval.compare.comparison import WHAT_THIS_IS, Comparison, TaskComparison

_ROW, _LEFT, _PLOT, _TOP = 26, 190, 460, 34
"""Pixels: height of a row, width of the names, width of the plot, height of the axis."""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1a1d21;background:#fff}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .7rem;white-space:nowrap;text-align:right;border-bottom:1px solid #e3e6ea}
td:first-child,th:first-child{text-align:left}
.note{background:#fff7df;border-left:4px solid #d9a300;padding:.6rem 1rem}code{background:#f1f3f5;padding:0 .25rem}
.scroll{overflow-x:auto}
"""


def as_text(comparison: Comparison) -> str:
    """One line per task, then what was not compared, then what this is."""
    width = max(len(row.task) for row in comparison.tasks)
    lines = [f"A  {comparison.a}", f"B  {comparison.b}"]
    if comparison.same_model:
        lines.append("A and B are the same weights")
    lines += [f"measured under another {name}: A {one}, B {other}" for name, (one, other) in comparison.other_settings.items()]
    lines.append(
        f"{'task':<{width}}  {'items':>6}  {'A':>8}  {'B':>8}  {'B − A':>8}  {'95 % interval':>20}  {'p':>7}  {'p (Holm)':>8}  verdict"
    )
    for row in comparison.tasks:
        interval = _interval(row)
        lines.append(
            f"{row.task:<{width}}  {row.items:>6,}  {row.score_a:>8.4f}  {row.score_b:>8.4f}  {row.difference:>+8.4f}  {interval:>20}  "
            f"{_p(row.p):>7}  {_p(row.p_holm):>8}  {row.verdict}"
        )
    lines += [f"not compared: {name}: {reason}" for name, reason in comparison.not_compared.items()]
    return "\n".join([*lines, WHAT_THIS_IS])


def _interval(row: TaskComparison) -> str:
    return "none" if isnan(row.low) else f"[{row.low:+.4f}, {row.high:+.4f}]"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.0e}"


def as_html(comparison: Comparison) -> str:
    """A page without scripts and without anything from elsewhere."""
    gains = [row for row in comparison.tasks if not row.lower_is_better]
    costs = [row for row in comparison.tasks if row.lower_is_better]
    parts = [
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>Comparison of two checkpoints</title><style>{_STYLE}</style><h1>Comparison of two checkpoints</h1>",
        f"<p><b>A</b> <code>{escape(comparison.a)}</code><br><b>B</b> <code>{escape(comparison.b)}</code></p>",
        "<p>A and B are the same weights.</p>" if comparison.same_model else "",
        f"<p class='note'>{escape(WHAT_THIS_IS, quote=False)}</p>",
        *(
            f"<p class='note'>Measured under another {escape(name)}: A {escape(str(one))}, B {escape(str(other))}.</p>"
            for name, (one, other) in comparison.other_settings.items()
        ),
        _panel("Scores (to the right: B is better)", gains, 1.0),
        _panel("Bits per byte (to the left: B is better)", costs, 1.0),
        "<h2>Figures</h2><div class='scroll'>" + _table(comparison.tasks) + "</div>",
        f"<p>Intervals: 95 %, {comparison.resamples:,} paired bootstrap resamples, seed {comparison.seed}; exact where every item "
        "shows the same difference. "
        "Tests: McNemar's exact test where scores are 0 or 1, else a paired permutation test; items of one cluster "
        "are kept together. p (Holm): corrected for all tasks of this page; the verdict follows it. "
        "Intervals are not corrected: one that leaves out 0 can stand beside 'no difference shown'. "
        "Detectable: the difference that this many items would have shown with a power of 80 %.</p>",
    ]
    if comparison.not_compared:
        rows = "".join(f"<li>{escape(name)}: {escape(reason)}</li>" for name, reason in comparison.not_compared.items())
        parts.append(f"<h2>Not compared</h2><ul>{rows}</ul>")
    return "\n".join(part for part in parts if part)


def _table(rows: list[TaskComparison]) -> str:
    names = (
        "task",
        "verdict",
        "items",
        "A",
        "B",
        "B − A",
        "95 % interval",
        "test",
        "p",
        "p (Holm)",
        "q (BH)",
        "d",
        "odds ratio",
        "detectable",
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    body = ""
    for row in rows:
        cells = (
            escape(row.task), row.verdict, f"{row.items:,}", f"{row.score_a:.4f}", f"{row.score_b:.4f}", f"{row.difference:+.4f}",
            _interval(row), row.test, _p(row.p), _p(row.p_holm), _p(row.q), f"{row.effect:+.3f}",
            "" if row.odds_ratio is None else f"{row.odds_ratio:.2f}", f"{row.detectable:.4f}" if isfinite(row.detectable) else "–",
        )  # fmt: skip
        body += "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return f"<table><tr>{head}</tr>{body}</table>"


def _panel(title: str, rows: list[TaskComparison], scale: float) -> str:
    """A forest plot: difference and interval of each task, filled where the corrected test rejects."""
    if not rows:
        return ""
    ends = [abs(end) for row in rows for end in (row.low, row.high, row.difference) if not isnan(end)]
    reach = max(ends) * scale * 1.08 or 1.0
    step = _nice(reach)
    height = _TOP + _ROW * len(rows) + 14

    def x(value: float) -> float:
        return _LEFT + _PLOT * (value + reach) / (2 * reach)

    marks = []
    for number in range(-int(reach / step), int(reach / step) + 1):
        at, line = x(number * step), "#555" if number == 0 else "#e3e6ea"
        marks.append(f"<line x1='{at:.1f}' y1='{_TOP - 8}' x2='{at:.1f}' y2='{height - 10}' stroke='{line}'/>")
        marks.append(f"<text x='{at:.1f}' y='{_TOP - 14}' text-anchor='middle' font-size='11' fill='#555'>{number * step:+.3g}</text>")
    for index, row in enumerate(rows):
        y = _TOP + _ROW * index + _ROW / 2
        shown = row.p_holm <= 0.05
        better = (row.difference < 0) == row.lower_is_better
        colour = ("#1b7837" if better else "#b2182b") if shown else "#6c757d"
        marks.append(f"<text x='{_LEFT - 12}' y='{y + 4:.1f}' text-anchor='end' font-size='13'>{escape(row.task[:26])}</text>")
        if not isnan(row.low):
            marks.append(f"<line x1='{x(row.low):.1f}' y1='{y}' x2='{x(row.high):.1f}' y2='{y}' stroke='{colour}' stroke-width='2'/>")
        fill = colour if shown else "#fff"
        marks.append(f"<circle cx='{x(row.difference):.1f}' cy='{y}' r='4.5' fill='{fill}' stroke='{colour}' stroke-width='2'/>")
    width = _LEFT + _PLOT + 20
    return (
        f"<h2>{escape(title)}</h2><div class='scroll'><svg width='{width}' height='{height}' viewBox='0 0 {width} {height}' "
        f"role='img' aria-label='{escape(title)}'>{''.join(marks)}</svg></div>"
    )


def _nice(reach: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that gives two to five marks on each side."""
    power = 1.0
    while power > reach:
        power /= 10.0
    while power * 10.0 <= reach:
        power *= 10.0
    return next(step for step in (power * 0.2, power * 0.5, power, power * 2.0, power * 5.0) if reach / step <= 5.0)
