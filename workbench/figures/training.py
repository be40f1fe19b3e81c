"""Pictures of training logs by matplotlib: curves of runs, and the table of ablations as bars."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.figures.theme import GROUP_COLOURS, LIGHT
from workbench.training_log import AblationRow, TrainingCurve


def curves_figure(curves: Sequence[TrainingCurve]) -> Figure:
    """Training loss, validation top-1 and speed against the epoch, one colour for each run."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    loss, top1, speed = figure.subplots(1, 3)
    for i, curve in enumerate(curves):
        colour = GROUP_COLOURS[i % len(GROUP_COLOURS)]
        numbers = [e.number for e in curve.epochs]
        loss.plot(numbers, [e.loss for e in curve.epochs], color=colour, marker=".", linewidth=1.2)
        done = [(e.number, e.top1) for e in curve.epochs if e.top1 is not None]
        if done:
            x, y = zip(*done, strict=True)
            label = f"{curve.name}: {y[-1]:.1f} %, seed {curve.seed}"
            top1.plot(x, y, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=label)
        rates = [e.images_per_second for e in curve.epochs]
        speed.plot(numbers, rates, color=colour, marker=".", linewidth=1.2)
        for start in curve.phase_starts[1:]:
            for axes in (loss, top1, speed):
                axes.axvline(start - 0.5, color=LIGHT["@line"], linewidth=0.8, zorder=0)
    sizes = sorted({curve.eval_size for curve in curves})
    has_phases = any(len(curve.phase_starts) > 1 for curve in curves)
    title = "training loss (grey line: a new phase)" if has_phases else "training loss"
    _label(loss, title, "loss with smoothing and distillation, where used")
    _label(top1, f"validation top-1 at {' and '.join(map(str, sizes))} px", "%")
    _label(speed, "training speed", "images per second")
    speed.set_ylim(bottom=0)
    _legend(figure, *top1.get_legend_handles_labels())
    return figure


def ablations_figure(rows: Sequence[AblationRow]) -> Figure:
    """Top-1 after the same short budget, and how it was reached; one seed, no more."""
    figure = Figure(figsize=(8.4, 2.9), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    names = [f"{r.name}\n{r.n_parameters / 1e6:.2f} M, {r.macs / 1e6:.0f} M MACs" for r in rows]
    colours = [GROUP_COLOURS[i % len(GROUP_COLOURS)] for i in range(len(rows))]
    drawn = bars.barh(names, [row.top1 for row in rows], color=colours, height=0.6)
    bars.bar_label(drawn, fmt="%.1f", fontsize=7, padding=2)
    bars.invert_yaxis()
    bars.set_xlim(left=0, right=max(row.top1 for row in rows) * 1.12)
    seeds = ", ".join(str(seed) for seed in sorted({row.curve.seed for row in rows}))
    size = rows[0].curve.eval_size
    _label(bars, f"top-1 at {size} px after {len(rows[0].curve.epochs)} epochs, seed {seeds}", "")
    bars.set_xlabel("%", fontsize=7)
    for row, colour in zip(rows, colours, strict=True):
        done = [(e.number, e.top1) for e in row.curve.epochs if e.top1 is not None]
        if done:
            x, y = zip(*done, strict=True)
            lines.plot(x, y, color=colour, marker=".", linewidth=1.2, label=row.name)
    _label(lines, "validation top-1", "%")
    _legend(figure, *lines.get_legend_handles_labels())
    return figure


def _legend(figure: Figure, handles: list[Artist], labels: list[str]) -> None:
    """Below the axes, where it hides no point."""
    if handles:
        columns = min(4, len(labels))
        figure.legend(handles, labels, fontsize=6.5, loc="outside lower center", ncols=columns)


def _label(axes: Axes, title: str, y: str) -> None:
    axes.set_title(title, fontsize=8, loc="left", color=LIGHT["@ink"])
    axes.set_ylabel(y, fontsize=7)
    axes.set_xlabel("epoch", fontsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
