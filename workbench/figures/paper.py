"""The four panels as PNG files by matplotlib, from results alone (no browser, no torch)."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from workbench.figures.attribution import PATHS, per_area
from workbench.figures.erf import DECADES, bin_px
from workbench.figures.profile import stage_times
from workbench.figures.theme import (
    DIVERGING,
    GROUP_COLOURS,
    LIGHT,
    block_sum,
    percent,
    resolve,
    scan_label,
    significant,
)
from workbench.results import (
    AttributionResult,
    ErfResult,
    ProfileResult,
    Provenance,
    ScanResult,
)

DPI = 200
FOCUS = "#ff2d78"


def render(results: dict[str, Any], rgb: np.ndarray) -> dict[str, bytes]:
    """PNG bytes of each panel whose results are there; `rgb` is the network input `[H, W, 3]`."""
    pictures: dict[str, bytes] = {}
    if "scan_a" in results and results["scan_a"].has_scan:
        pictures["scan.png"] = png(scan_figure(results["scan_a"], results["scan_b"], rgb))
    if "erf_a" in results:
        pictures["erf.png"] = png(erf_figure(results["erf_a"], results["erf_b"]))
    if "attribution" in results:
        pictures["attribution.png"] = png(attribution_figure(results["attribution"], rgb))
    if "profile_a" in results and all(results[f"profile_{k}"].is_correct for k in "ab"):
        pictures["profile.png"] = png(profile_figure(results["profile_a"], results["profile_b"]))
    return pictures


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _footer(figure: Figure, p: Provenance, scans: str) -> None:
    parts = (p.model, p.weights, scans, f"photo {p.image}", p.device, p.backend, p.definition)
    text = " · ".join(part for part in parts if part)
    figure.text(0.01, 0.01, text, fontsize=5, color=LIGHT["@muted"], wrap=True)


def _map_axes(axes: Axes, title: str, height: int, width: int, colour: str = "@ink") -> None:
    axes.set_title(title, fontsize=8, loc="left", color=LIGHT[colour])
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])


def _focus(axes: Axes, y: int, x: int, stride: int) -> None:
    axes.add_patch(
        Rectangle(
            (x * stride, y * stride), stride, stride, fill=False, edgecolor=FOCUS, linewidth=1
        )
    )


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


def scan_figure(a: ScanResult, b: ScanResult, rgb: np.ndarray) -> Figure:
    height, width = a.provenance.input_size
    figure = Figure(figsize=(7.2, 3.9), layout="constrained")
    for axes, result, colour in zip(figure.subplots(1, 2), (a, b), ("@a", "@b"), strict=True):
        axes.imshow(rgb, extent=(0, width, height, 0), alpha=0.45)
        _path(axes, result)
        m = result.metrics
        check = "verified" if result.is_verified else "NOT verified"
        title = (
            f"{scan_label(result.provenance.scan)}: {m['n_sequences']} x {m['length']:,} tokens, "
            f"reach {percent(float(m['mean_reach']))}, {check}"
        )
        _map_axes(axes, title, height, width, colour)
    _footer(figure, a.provenance, f"stage {a.stage}")
    return figure


def erf_figure(a: ErfResult, b: ErfResult) -> Figure:
    height, width = a.mass.shape
    cell = bin_px(a)
    with np.errstate(divide="ignore"):
        logs = [np.log10(block_sum(r.mass, cell)) for r in (a, b)]
    top = max(float(z.max()) for z in logs)
    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    axes = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.25))
    extent = (0, width, height, 0)
    for ax, z, result, colour in zip(axes, logs, (a, b), ("@a", "@b"), strict=False):
        shown = ax.imshow(z, cmap="cividis", vmin=top - DECADES, vmax=top, extent=extent)
        _map_axes(ax, scan_label(result.provenance.scan), height, width, colour)
        _focus(ax, result.y, result.x, result.stride)
    figure.colorbar(shown, ax=axes[1], shrink=0.7, label=f"log10 share per {cell}x{cell} px")
    delta = block_sum(b.mass, cell) - block_sum(a.mass, cell)
    root = np.sign(delta) * np.sqrt(np.abs(delta))
    limit = float(np.abs(root).max()) or 1.0
    colours = LinearSegmentedColormap.from_list("ab", resolve(DIVERGING))
    axes[2].imshow(root, cmap=colours, vmin=-limit, vmax=limit, extent=extent)
    _map_axes(axes[2], f"B - A, signed root, +-{limit:.1e}", height, width)
    for result, colour in ((a, "@a"), (b, "@b")):
        axes[3].plot(
            result.radius_px,
            100 * result.radial_mass,
            color=LIGHT[colour],
            label=f"{scan_label(result.provenance.scan)}: "
            f"90 % on {percent(result.metrics['area90'])}",
        )
    axes[3].set_xlabel("distance from the focus, px", fontsize=7)
    axes[3].set_ylabel("mass within, %", fontsize=7)
    axes[3].tick_params(labelsize=7)
    axes[3].legend(fontsize=6, loc="lower right")
    _footer(figure, a.provenance, f"stage {a.stage}, token ({a.y}, {a.x}), {a.n_images} photos")
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
        _map_axes(ax, f"stage {i + 1}, {rows}x{columns}", height, width)
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
    _footer(figure, result.provenance, f"{scan_label(result.provenance.scan)}, {target}")
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
    _footer(figure, a.provenance, f"batch {a.batch}, median of {a.repeats}")
    return figure
