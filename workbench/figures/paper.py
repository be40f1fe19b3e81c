"""The panels as PNG or SVG files by matplotlib, from results alone (no browser, no torch)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from workbench.figures.attribution import PATHS, per_area
from workbench.figures.erf_maps import TONES
from workbench.figures.kernel_floors import setting_of
from workbench.figures.paper_attribution import (
    attention_figure,
    evidence_figure,
    faithfulness_figure,
    maps_figure,
    randomisation_figure,
)
from workbench.figures.paper_code import inspect_figure
from workbench.figures.paper_erf import erf_figure, phases_figure
from workbench.figures.paper_parts import above_the_footer, focus, footer, map_axes, png, svg
from workbench.figures.paper_paths import paths_figure
from workbench.figures.paper_profiler import comparison_figure, sweep_figure, trace_figure
from workbench.figures.paper_roofline import roofline_figure, token_figure
from workbench.figures.profile import stage_times
from workbench.figures.theme import GROUP_COLOURS, LIGHT, percent, significant
from workbench.labels import scan_label
from workbench.results import (
    AttributionResult,
    ProfileResult,
    ReachResult,
    ScanResult,
    UserProbeResult,
)

SCANS = ("scan_a", "scan_b", "scan_c")
REACHES = ("reach_a", "reach_b", "reach_c")
COLOURS = ("@a", "@b", "@c")
LEAST_LEFT = 1e-4  # of a state; less is drawn like this, which the bar says


def render(
    results: dict[str, Any], rgb: np.ndarray | None, form: str = "png", scale: str = "log"
) -> dict[str, bytes]:
    """A file of each panel whose results are there: "png" or "svg".

    `rgb` is the network input `[H, W, 3]`; the probe of a user's operator has none. `scale` is the
    colour scale of receptive fields: "log", "linear" or "power".
    """
    figures: dict[str, Figure] = {}
    scans = [results[name] for name in SCANS if name in results and results[name].has_scan]
    if scans and rgb is not None:
        figures["scan"] = scan_figure(scans, rgb)
    reaches = [results[name] for name in REACHES if name in results and results[name].has_scan]
    if reaches and rgb is not None:
        figures["reach"] = reach_figure(reaches, rgb)
    if "probe" in results:
        figures["probe"] = probe_figure(results["probe"])
    if fields := {key: results[f"erf_{key}"] for key in TONES if f"erf_{key}" in results}:
        figures["erf"] = erf_figure(list(fields.values()), list(fields), scale)
    if "erf_phases" in results and results["erf_phases"].phases:
        figures["erf_phases"] = phases_figure(results["erf_phases"], scale)
    if "erf_paths" in results and results["erf_paths"].blocks:
        figures["erf_paths"] = paths_figure(results["erf_paths"])
    if "attribution" in results and rgb is not None:
        figures["attribution"] = attribution_figure(results["attribution"], rgb)
    figures |= _attribution_lab(results, rgb)
    figures |= _profiler_lab(results)
    figures |= _kernel_lab(results)
    if "profile_a" in results and all(results[f"profile_{k}"].is_correct for k in "ab"):
        figures["profile"] = profile_figure(results["profile_a"], results["profile_b"])
    write = {"png": png, "svg": svg}[form]
    return {f"{name}.{form}": write(figure) for name, figure in figures.items()}


def _attribution_lab(results: dict[str, Any], rgb: np.ndarray | None) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    maps = {key: results[f"maps_{key}"] for key in "ab" if f"maps_{key}" in results}
    if maps and rgb is not None:
        found["maps"] = maps_figure(maps, rgb)
    if "evidence" in results and results["evidence"].blocks:
        found["evidence"] = evidence_figure(results["evidence"])
    rows = {key: results[f"attention_{key}"] for key in "ab" if f"attention_{key}" in results}
    if any(result.has_scan for result in rows.values()) and rgb is not None:
        found["attention"] = attention_figure(rows, rgb)
    sanity = results.get("randomisation")
    if "faithfulness" in results:
        found["faithfulness"] = faithfulness_figure(results["faithfulness"], sanity)
    elif sanity is not None:
        found["randomisation"] = randomisation_figure(sanity)
    return found


def _profiler_lab(results: dict[str, Any]) -> dict[str, Figure]:
    found = {}
    if "sweep" in results:
        found["sweep"] = sweep_figure(results["sweep"])
    if "trace" in results:
        found["trace"] = trace_figure(results["trace"])
    if "comparison" in results:
        found["comparison"] = comparison_figure(results["comparison"])
    return found


def _kernel_lab(results: dict[str, Any]) -> dict[str, Figure]:
    found = {}
    if "roofline" in results and "what_if" in results:
        what = results["what_if"]
        found["roofline"] = roofline_figure(
            results["roofline"], what.scan_a, what.scan_b, setting_of(what)
        )
    tokens = {slot: results[f"token_{slot}"] for slot in "abc" if f"token_{slot}" in results}
    if tokens and "scan_a" not in results:  # beside a path its numbers stand in that panel
        found["token"] = token_figure(tokens)
    if "kernel" in results:
        found["kernel"] = inspect_figure(results["kernel"])
    return found


def _path(axes: Axes, result: ScanResult) -> None:
    is_shared = result.metrics["visits_max"] > 1
    count = len(result.index)
    for k, ids in enumerate(result.index):
        shift = (k - (count - 1) / 2) * 0.17 * result.stride if is_shared else 0.0
        real = ids >= 0
        y = np.where(real, (ids // result.width + 0.5) * result.stride + shift, np.nan)
        x = np.where(real, (ids % result.width + 0.5) * result.stride + shift, np.nan)
        colour = GROUP_COLOURS[k % len(GROUP_COLOURS)]
        axes.plot(x, y, color=colour, linewidth=0.7, marker=".", markersize=1.4, alpha=0.9)


def scan_figure(results: list[ScanResult], rgb: np.ndarray) -> Figure:
    """Paths of up to three schemes side by side."""
    height, width = results[0].provenance.input_size
    figure = Figure(figsize=(3.6 * len(results), 4.2), layout=above_the_footer())
    every = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result, colour in zip(every, results, COLOURS, strict=False):
        axes.imshow(rgb, extent=(0, width, height, 0), alpha=0.45)
        _path(axes, result)
        m = result.metrics
        check = "verified" if result.is_verified else "NOT verified"
        unseen = int((result.index < 0).all(1).sum())
        title = (
            f"{scan_label(result.provenance.scan)}: {m['n_sequences']} x {m['length']:,} tokens\n"
            f"reach {percent(float(m['mean_reach']))}, "
            f"{check if result.is_runnable else 'path only'}"
            f"{f', {unseen} without tokens not drawn' if unseen else ''}"
        )
        map_axes(axes, title, height, width, colour)
    footer(figure, results[0].provenance, f"stage {results[0].stage}")
    return figure


def reach_figure(results: list[ReachResult], rgb: np.ndarray) -> Figure:
    """Who can influence the token and how much of a state is left, per scheme; then the curves."""
    height, width = results[0].provenance.input_size
    n = len(results)
    figure = Figure(figsize=(3.1 * n + 3.4, 5.6), layout=above_the_footer())
    grid = figure.add_gridspec(2, n + 1, width_ratios=[1.0] * n + [1.15])
    curves = figure.add_subplot(grid[0, n])
    bars = figure.add_subplot(grid[1, n])
    farthest = max(1, *(int(r.steps_back.max()) for r in results))
    for i, (result, colour) in enumerate(zip(results, COLOURS, strict=False)):
        extent = (0, result.width * result.stride, result.height * result.stride, 0)
        label = scan_label(result.provenance.scan)
        share = percent(float((result.steps_back >= 0).mean()))
        for row, (values, norm, bar, title) in enumerate(
            (
                (
                    np.where(result.steps_back >= 0, result.steps_back, np.nan),
                    Normalize(0, farthest),
                    "steps back",
                    f"{label}: {share} can matter",
                ),
                (
                    np.where(result.steps_back >= 0, np.maximum(result.decay, LEAST_LEFT), np.nan),
                    LogNorm(LEAST_LEFT, 1.0),
                    f"share of state left (log; below {LEAST_LEFT:.0e} as that)",
                    "what is left of a state"
                    if result.curve_steps.size
                    else "what is left is not known: path only",
                ),
            )
        ):
            axes = figure.add_subplot(grid[row, i])
            axes.imshow(rgb, extent=(0, width, height, 0), alpha=0.35)
            shown = axes.imshow(values, cmap="cividis", extent=extent, alpha=0.85, norm=norm)
            map_axes(axes, title, height, width, colour)
            focus(axes, result.y, result.x, result.stride)
            if i == n - 1:
                figure.colorbar(shown, ax=axes, shrink=0.7).set_label(bar, fontsize=6)
        if result.curve_steps.size:
            tone = LIGHT[colour]
            steps = result.curve_steps
            curves.fill_between(steps, result.curve_p20, result.curve_p80, color=tone, alpha=0.2)
            curves.plot(steps, result.curve_p50, color=tone, label=label, linewidth=1)
        names = [step.name for step in result.restored]
        place = np.arange(len(names)) + 0.8 * (i - (n - 1) / 2) / n
        shares = [100 * step.share for step in result.restored]
        bars.barh(place, shares, color=LIGHT[colour], height=0.7 / n)
    longest = max(results, key=lambda r: len(r.restored)).restored
    bars.set_yticks(range(len(longest)), [step.name for step in longest], fontsize=5)
    bars.invert_yaxis()
    bars.set_xlim(0, 100)
    bars.set_xlabel("tokens that can matter for this one, %", fontsize=7)
    curves.set_xscale("symlog", linthresh=10)
    curves.set_ylim(0, 1)
    curves.set_xlabel("steps back", fontsize=7)
    curves.set_ylabel("share of state left: p20, p50, p80", fontsize=7)
    for axes in (curves, bars):
        axes.tick_params(axis="x", labelsize=6)
    curves.tick_params(axis="y", labelsize=6)
    if any(r.curve_steps.size for r in results):
        curves.legend(fontsize=6)
    first = results[0]
    footer(figure, first.provenance, f"stage {first.stage}, token ({first.y}, {first.x})")
    return figure


def probe_figure(result: UserProbeResult) -> Figure:
    """The true path of a user's operator; tokens that it never reads are crossed out."""
    figure = Figure(figsize=(4.6, 4.4), layout=above_the_footer())
    axes = figure.subplots()
    count = len(result.index)
    for k, ids in enumerate(result.index):
        real = ids >= 0
        shift = (k - (count - 1) / 2) * 0.5 / count if result.repeated else 0.0
        y = np.where(real, ids // result.width + 0.5 + shift, np.nan)
        x = np.where(real, ids % result.width + 0.5 + shift, np.nan)
        colour = GROUP_COLOURS[k % len(GROUP_COLOURS)]
        axes.plot(x, y, color=colour, linewidth=1, marker=".", markersize=4)
    lost = np.array(result.lost, dtype=np.int64)
    axes.plot(lost % result.width + 0.5, lost // result.width + 0.5, "x", color=LIGHT["@muted"])
    title = (
        f"{result.operator}\n{count} x {result.index.shape[1]:,} steps, {len(lost)} tokens lost, "
        f"{len(result.repeated)} read more than once"
    )
    map_axes(axes, title, result.height, result.width)
    axes.set_aspect("equal")
    text = f"merge(gather(x)) = x: {result.round_trip} · backward: {result.backward}"
    figure.text(0.01, 0.01, text, fontsize=5, color=LIGHT["@muted"], wrap=True)
    return figure


def attribution_figure(result: AttributionResult, rgb: np.ndarray) -> Figure:
    height, width = result.provenance.input_size
    scaled = [per_area(m, s) for m, s in zip(result.maps, result.strides, strict=True)]
    top = max(float(m.max()) for m in scaled) or 1.0
    figure = Figure(figsize=(9.6, 2.7), layout="constrained")
    axes = figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 1.35))
    for i, (ax, values, stride) in enumerate(zip(axes, scaled, result.strides, strict=False)):
        rows, columns = values.shape
        ax.imshow(rgb, extent=(0, width, height, 0))
        extent = (0, columns * stride, rows * stride, 0)
        shown = ax.imshow(values, cmap="cividis", vmin=0, vmax=top, alpha=0.6, extent=extent)
        map_axes(ax, f"stage {i + 1}, {rows}x{columns}", height, width)
    figure.colorbar(shown, ax=axes[3], shrink=0.7, label="logit per 32x32 px")
    left = np.zeros(len(result.evidence))
    low = np.zeros(len(result.evidence))
    names = [f"{e.stage}.{e.block}" for e in result.evidence]
    for field, label, colour in PATHS:
        values = np.array([getattr(e, field) for e in result.evidence])
        start = np.where(values >= 0, left, low)
        axes[4].barh(names, values, left=start, color=LIGHT[colour], label=label, height=0.6)
        left, low = left + np.maximum(values, 0), low + np.minimum(values, 0)
    axes[4].axvline(0, color=LIGHT["@muted"], linewidth=0.6)
    axes[4].invert_yaxis()
    axes[4].set_xlabel("evidence, logit", fontsize=7)
    axes[4].tick_params(labelsize=7)
    if result.evidence:
        axes[4].legend(fontsize=6)
    target = f"{result.method} for {result.target_name} ({percent(result.probability)})"
    footer(figure, result.provenance, f"{scan_label(result.provenance.scan)}, {target}")
    return figure


def profile_figure(a: ProfileResult, b: ProfileResult) -> Figure:
    figure = Figure(figsize=(7.2, 2.2), layout="constrained")
    axes = figure.subplots()
    for result, colour in ((a, "@a"), (b, "@b")):
        start = 0.0
        label = f"{scan_label(result.provenance.scan)}\n{significant(result.p50_ms)} ms"
        for stage in stage_times(result):
            axes.barh(
                [label],
                [stage["ms"]],
                left=start,
                color=LIGHT[colour],
                edgecolor="white",
                height=0.6,
            )
            if stage["ms"] > 0.06 * a.p50_ms:
                axes.annotate(
                    stage["name"],
                    (start + stage["ms"] / 2, label),
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white",
                )
            start += stage["ms"]
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("ms per forward pass, sum of block medians", fontsize=7)
    axes.tick_params(labelsize=7)
    footer(figure, a.provenance, f"batch {a.batch}, median of {a.repeats}")
    return figure
