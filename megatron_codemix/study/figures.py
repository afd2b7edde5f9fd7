"""The report's figures, as self-contained SVG: no fonts, styles or data from elsewhere.

Colour stands for the share of the varied source (dark to light), the marker for the seed, everywhere.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

_INK, _MUTED, _GRID, _MEAN = "#1f2933", "#5f6c7b", "#e3e8ee", "#1f5fa8"
_MARKERS = "osD^vPX*<>hp"
_MAX_POINTS = 300
"""Points of a curve; longer ones are averaged in bins of steps."""
_UNIGRAM: dict[str, Any] = {"color": _MUTED, "linewidth": 1.2, "linestyle": (0, (4, 3))}
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "codemix",
}


@dataclass(frozen=True)
class Curve:
    """One run's numbers over target tokens."""

    share: float
    seed: int
    tokens: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Points:
    """What one domain's panel shows."""

    title: str
    measured: Mapping[tuple[float, int], float]
    """(share, seed) → value of the trained model."""
    baseline: Mapping[tuple[float, int], float]
    """(share, seed) → value of the unigram model of the same arm; may be empty."""


@dataclass(frozen=True)
class Difference:
    """How far two runs are apart, step by step."""

    label: str
    """Legend entry; empty for what is drawn as background."""
    share: float
    steps: Sequence[int]
    values: Sequence[float]
    """Absolute; zeros are left out, the axis is logarithmic."""


def marker_of(seed: int, seeds: Sequence[int]) -> str:
    """The marker that stands for a seed."""
    return _MARKERS[sorted(set(seeds)).index(seed) % len(_MARKERS)]


def _colour_of(share: float, shares: Sequence[float]) -> Any:
    ordered = sorted(set(shares))
    place = ordered.index(share) / max(1, len(ordered) - 1)
    return mpl.colormaps["plasma"](0.02 + 0.72 * place)


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def binned(tokens: Sequence[int], values: Sequence[float], points: int = _MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """Means over consecutive bins of equally many entries, at most `points` of them; short curves stay as they are."""
    x, y = np.asarray(tokens, np.float64), np.asarray(values, np.float64)
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points + 1).astype(int)
    sizes = np.diff(edges)
    return np.add.reduceat(x, edges[:-1]) / sizes, np.add.reduceat(y, edges[:-1]) / sizes


def _quantity(value: float, _: Any = None) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _percent(value: float, _: Any = None) -> str:
    return f"{100 * value:g} %"


def _share_handles(curves: Sequence[Curve], vary: str) -> list[Line2D]:
    shares = [curve.share for curve in curves]
    return [
        Line2D([], [], color=_colour_of(share, shares), linewidth=2, label=f"{vary} {_percent(share)}") for share in sorted(set(shares))
    ]


def _draw_curves(axes: Axes, curves: Sequence[Curve], markers: bool) -> None:
    shares, seeds = [curve.share for curve in curves], [curve.seed for curve in curves]
    for curve in curves:
        tokens, values = binned(curve.tokens, curve.values)
        style = {"marker": marker_of(curve.seed, seeds), "markersize": 4} if markers else {}
        axes.plot(tokens, values, color=_colour_of(curve.share, shares), linewidth=1.1, alpha=0.9, **style)
    axes.xaxis.set_major_formatter(FuncFormatter(_quantity))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("target tokens trained on")


def loss_figure(curves: Sequence[Curve], vary: str) -> str:
    """Training loss (nats per target token) of every run over tokens."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.7), layout="constrained")
        axes = figure.subplots()
        _draw_curves(axes, curves, markers=False)
        axes.set_ylabel("training loss, nats per token")
        values = np.concatenate([binned(curve.tokens, curve.values)[1] for curve in curves])
        axes.set_ylim(values.min() - 0.05 * np.ptp(values), np.quantile(values, 0.995) + 0.05 * np.ptp(values))
        axes.legend(handles=_share_handles(curves, vary), loc="upper right")
        return _svg(figure)


def validation_figure(panels: Mapping[str, Sequence[Curve]], vary: str) -> str:
    """Bits per byte on each source's validation split while training, a panel per source."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.4), layout="constrained")
        row = np.atleast_1d(figure.subplots(1, len(panels)))
        for axes, (source, curves) in zip(row, panels.items()):
            _draw_curves(axes, curves, markers=True)
            axes.set_title(source)
            axes.set_ylabel("bits per byte")
        row[-1].legend(handles=_share_handles(next(iter(panels.values())), vary), loc="upper right")
        return _svg(figure)


def agreement_figure(twins: Sequence[Difference], seeds: Sequence[Difference]) -> str:
    """|Difference of training loss| over steps, logarithmic: between twins (coloured by share) and between seeds (grey)."""
    shares = [item.share for item in twins]
    styles = ("-", (0, (5, 2)), (0, (1.5, 1.5)), "-.")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 3.6), layout="constrained")
        axes = figure.subplots()
        for item in seeds:
            axes.plot(*_above_zero(item), color="#b8c2cc", linewidth=1.0)
        handles = [Line2D([], [], color="#b8c2cc", linewidth=1.6, label="two seeds of one share")] if seeds else []
        for number, item in enumerate(twins):
            style: dict[str, Any] = {"color": _colour_of(item.share, shares), "linestyle": styles[shares[:number].count(item.share) % 4]}
            handles += axes.plot(*_above_zero(item), linewidth=1.3, label=item.label, **style)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("|difference of training loss|, nats")
        figure.legend(handles=handles, loc="outside right upper")
        return _svg(figure)


def _above_zero(item: Difference) -> tuple[np.ndarray, np.ndarray]:
    points = [(step, value) for step, value in zip(item.steps, item.values) if value > 0]
    return binned([step for step, _ in points], [value for _, value in points])


def share_figure(panels: Sequence[Points], vary: str) -> str:
    """Bits per byte against the share: a point per trained model, the mean over seeds, the unigram model."""
    with mpl.rc_context(_STYLE):
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(9.2, 4.1 * rows + 0.3), layout="constrained")
        grid = figure.add_gridspec(rows, min(2, len(panels)))
        seeds = sorted({seed for panel in panels for _, seed in panel.measured})
        for index, panel in enumerate(panels):
            _draw_panel(figure, grid[index // 2, index % 2], panel, seeds).set_xlabel(f"share of {vary} in the training tokens")
        figure.legend(handles=_point_handles(panels, seeds), loc="outside lower center", ncols=min(8, len(seeds) + 2))
        return _svg(figure)


def _means(points: Mapping[tuple[float, int], float]) -> tuple[list[float], list[float]]:
    shares = sorted({share for share, _ in points})
    return shares, [float(np.mean([value for (at, _), value in points.items() if at == share])) for share in shares]


def _draw_panel(figure: Figure, place: SubplotSpec, panel: Points, seeds: Sequence[int]) -> Axes:
    """One domain; where the unigram model is far off, it gets a strip of its own above a broken axis. Returns the main axes."""
    measured, baseline = list(panel.measured.values()), list(panel.baseline.values())
    gap = min(baseline) - max(measured) if baseline else 0.0
    if gap <= 1.5 * max(np.ptp(measured), 0.02 * max(measured)):
        main = figure.add_subplot(place)
        _draw_points(main, panel, seeds)
        _draw_baseline(main, panel)
        main.set_title(panel.title)
        return main
    halves = place.subgridspec(2, 1, height_ratios=(1, 3.4), hspace=0.06)
    strip, main = figure.add_subplot(halves[0]), figure.add_subplot(halves[1])
    _draw_points(main, panel, seeds)
    _draw_baseline(strip, panel)
    strip.set_xlim(main.get_xlim())
    strip.set_xticks(main.get_xticks(), labels=[])
    strip.tick_params(axis="x", length=0)
    strip.spines.bottom.set_visible(False)
    strip.yaxis.set_major_locator(MaxNLocator(2, min_n_ticks=2))
    slant = {"marker": [(-1, -0.5), (1, 0.5)], "markersize": 9, "color": _MUTED, "linestyle": "none", "clip_on": False}
    strip.plot(0, 0, transform=strip.transAxes, **slant)
    main.plot(0, 1, transform=main.transAxes, **slant)
    strip.set_title(panel.title)
    return main


def _draw_points(axes: Axes, panel: Points, seeds: Sequence[int]) -> None:
    shares, means = _means(panel.measured)
    axes.plot(shares, means, color=_MEAN, linewidth=1.6, zorder=2)
    spread = 0.018 * (max(shares) - min(shares) or 1.0)
    for (share, seed), value in panel.measured.items():
        # Side by side, or the points of seeds that agree would hide each other.
        place = share + spread * (list(seeds).index(seed) - (len(seeds) - 1) / 2)
        style = {"markersize": 6.5, "markerfacecolor": "white", "markeredgecolor": _MEAN, "markeredgewidth": 1.4, "zorder": 3}
        axes.plot(place, value, marker_of(seed, seeds), **style)
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_xticks(shares)
    axes.xaxis.set_major_formatter(FuncFormatter(_percent))
    axes.margins(x=0.08, y=0.12)


def _draw_baseline(axes: Axes, panel: Points) -> None:
    if not panel.baseline:
        return
    axes.plot(*_means(panel.baseline), **_UNIGRAM)
    axes.plot([share for share, _ in panel.baseline], list(panel.baseline.values()), ".", color=_MUTED, markersize=4)
    axes.margins(y=0.25)


def _point_handles(panels: Sequence[Points], seeds: Sequence[int]) -> list[Line2D]:
    style: dict[str, Any] = {"color": "none", "markerfacecolor": "white", "markeredgecolor": _MEAN, "markersize": 7}
    handles = [Line2D([], [], marker=marker_of(seed, seeds), label=f"seed {seed}", **style) for seed in seeds]
    handles.append(Line2D([], [], color=_MEAN, linewidth=1.6, label="mean over seeds"))
    if any(panel.baseline for panel in panels):
        handles.append(Line2D([], [], **_UNIGRAM, label="unigram model, mean over seeds"))
    return handles


def consumption_figure(rows: Sequence[tuple[str, Mapping[str, int]]], modalities: Mapping[str, str]) -> str:
    """Target tokens each run took from each source, stacked, from its ledger."""
    palette = {"code": ["#1f5fa8", "#5b93cf", "#9dbfe4"], "text": ["#c9772b", "#dfa168", "#efcba6"]}
    with mpl.rc_context({**_STYLE, "axes.grid.axis": "x"}):
        figure = Figure(figsize=(9.2, 0.9 + 0.26 * len(rows)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(rows))
        used = {"code": 0, "text": 0}
        for source, modality in modalities.items():
            amounts = np.array([consumed.get(source, 0) for _, consumed in rows], np.float64)
            colour = palette[modality][used[modality] % 3]
            used[modality] += 1
            axes.barh([name for name, _ in rows], amounts, left=left, height=0.66, color=colour, label=source)
            left += amounts
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(FuncFormatter(_quantity))
        axes.set_xlabel("target tokens consumed")
        figure.legend(loc="outside upper left", ncols=4)
        return _svg(figure)
