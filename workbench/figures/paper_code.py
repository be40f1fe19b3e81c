"""Compiled kernels as a figure for a paper and as tables for a spreadsheet."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.figures.kernel_words import (
    CLASS_WORDS,
    NOT_RUN,
    STORED_WORDS,
    most_registers,
    tile_text,
)
from workbench.figures.paper_parts import LEFT, SMALL, TITLE, Sheet
from workbench.figures.profiler_csv import csv_table, provenance_line
from workbench.figures.theme import LIGHT, percent
from workbench.kernel_results import InspectResult, KernelChoice, KernelNumbers

PLOT_W = 2.05  # inches
NAMES_W = 1.1
UNDER = 0.36
ROW_INCHES = 0.19
CUT = 44  # characters of a reason beside a bar

NUMBERS_HEAD = (
    *("slot", "config", "target", "product", "status", "triton", "registers", "scalar_registers"),
    *("spill_bytes", "shared_bytes", "stack_bytes", "num_warps", "blocks", "warps", "occupancy"),
    *("limiter", "exp2_in_loops", "compile_s", "binary_bytes", "cached"),
)
CHOICE_HEAD = (
    *("name", "kernel", "layout", "dtype", "channels", "steps", "num_warps", "origin", "elements"),
)


def inspect_figure(result: InspectResult) -> Figure:
    """Registers and occupancy of A, B and A on the other targets; instructions of A and B."""
    rows = _rows(result)
    pair = [(slot, n) for slot, n in rows if slot and n.is_compiled]
    classes = [name for name in CLASS_WORDS if any(n.instructions.get(name, 0) for _, n in pair)]
    bars = max(len(rows), 2)
    height = max(ROW_INCHES * bars, 0.13 * len(classes) * max(1, len(pair)), 1.0)
    compiled = {n.triton_version for _, n in rows if n.is_compiled}
    named = [
        f"{slot.upper()}: {n.config} for {n.target}, {tile_text(n.config)}"
        for slot, n in rows
        if slot
    ]
    failed = [f"{n.target}: {_cut(n.status, 200)}" for _, n in rows if not n.is_compiled]
    by = [f"compiled by triton {version}, {NOT_RUN}" for version in sorted(compiled)]
    text = provenance_line(result.provenance, *named, *by, *failed)
    gap = 0.28
    mix_left = LEFT + NAMES_W + 2 * PLOT_W + gap + 1.35
    width = mix_left + (PLOT_W + 0.35 if classes else -1.0)
    sheet = Sheet(width, TITLE + height + UNDER, text)
    low = min(height, 1.8 * ROW_INCHES * bars)
    first = sheet.axes(LEFT + NAMES_W, TITLE, PLOT_W, low)
    _registers(first, rows)
    second = sheet.axes(LEFT + NAMES_W + PLOT_W + gap, TITLE, PLOT_W, low)
    _occupancy(second, rows)
    if classes:
        _mix(sheet.axes(mix_left, TITLE, PLOT_W, height), pair, classes)
    return sheet.figure


def inspect_csv(result: InspectResult) -> bytes:
    """One row per configuration and target; empty numbers where the compiler gave none."""
    classes = tuple(CLASS_WORDS)
    stages = tuple(dict.fromkeys(name for _, n in _rows(result) for name in n.stage_ms))
    head = (
        *NUMBERS_HEAD,
        *(f"instructions_{name}" for name in classes),
        *(f"in_loops_{name}" for name in classes),
        *(f"baseline_{name}" for name in STORED_WORDS),
        *(f"{name.replace(' ', '_')}_ms" for name in stages),
    )
    rows = [_numbers_row(slot, n, classes, stages) for slot, n in _rows(result)]
    return csv_table(head, rows)


def choices_csv(choices: Sequence[KernelChoice]) -> bytes:
    """Every configuration that can be inspected on a target; 0 elements: not applicable."""
    return csv_table(CHOICE_HEAD, [[getattr(c, name) for name in CHOICE_HEAD] for c in choices])


def _rows(result: InspectResult) -> list[tuple[str, KernelNumbers]]:
    second = [("b", result.b)] if result.b is not None else []
    return [("a", result.a), *second, *(("", n) for n in result.others)]


def _numbers_row(
    slot: str,
    n: KernelNumbers,
    classes: Sequence[str],
    stages: Sequence[str],
) -> list[object]:
    known = [
        *(n.triton_version, n.registers, n.scalar_registers, n.spill_bytes, n.shared_bytes),
        *(n.stack_bytes, n.num_warps, n.blocks, n.warps, n.occupancy, n.limiter),
        *(n.exp2_in_loops, n.compile_s, n.binary_bytes, n.is_cached),
        *(n.instructions.get(name, 0) for name in classes),
        *(n.loop_instructions.get(name, 0) for name in classes),
    ]
    if not n.is_compiled:
        known = [""] * len(known)
    stored = [n.baseline.get(name, "") for name in STORED_WORDS]
    times = [n.stage_ms.get(name, "") for name in stages]
    return [slot, n.config, n.target, n.product, n.status, *known, *stored, *times]


def _cut(words: str, most: int) -> str:
    line = " ".join(words.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _colour(slot: str) -> str:
    return LIGHT[f"@{slot}" if slot else "@conv"]


def _label(slot: str, n: KernelNumbers) -> str:
    return f"{slot.upper()}  {n.target}" if slot else n.target


def _registers(axes: Axes, rows: Sequence[tuple[str, KernelNumbers]]) -> None:
    """Shares of what a thread can have, so that vendors compare."""
    for y, (slot, n) in enumerate(rows):
        if not n.is_compiled:
            axes.text(0.01, y, _cut(n.status, CUT), fontsize=5, va="center", color=LIGHT["@muted"])
            continue
        most = most_registers(n.target)
        axes.barh(y, n.registers / most, height=0.7, color=_colour(slot))
        text = f"{n.registers} of {most}"
        if n.spill_bytes:
            text += f", {n.spill_bytes:,} spill bytes"
        _beside(axes, n.registers / most, y, text)
    axes.set_yticks(range(len(rows)), [_label(slot, n) for slot, n in rows])
    _share_axis(axes, len(rows), "share of the registers of a thread")
    _title(axes, "(a) registers")


def _beside(axes: Axes, value: float, y: float, text: str) -> None:
    """The number after its bar, or in it where there is no room."""
    inside = value > 0.55
    axes.annotate(
        text,
        (value, y),
        xytext=(-3 if inside else 3, 0),
        textcoords="offset points",
        fontsize=5.5,
        va="center_baseline",
        ha="right" if inside else "left",
        color="white" if inside else LIGHT["@ink"],
    )


def _occupancy(axes: Axes, rows: Sequence[tuple[str, KernelNumbers]]) -> None:
    for y, (slot, n) in enumerate(rows):
        if n.is_compiled:
            axes.barh(y, n.occupancy, height=0.7, color=_colour(slot))
            _beside(axes, n.occupancy, y, f"{percent(n.occupancy)}: {n.limiter}")
    axes.set_yticks([])
    _share_axis(axes, len(rows), "share of the warps that fit")
    _title(axes, "(b) occupancy and its limiter")


def _share_axis(axes: Axes, n: int, label: str) -> None:
    axes.set_ylim(max(n, 1) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
    axes.set_xlabel(label, fontsize=SMALL, labelpad=2)


def _mix(axes: Axes, pair: Sequence[tuple[str, KernelNumbers]], classes: Sequence[str]) -> None:
    """Whole bars pale, the part in loops full."""
    high = 0.8 / len(pair)
    for i, (slot, n) in enumerate(pair):
        places = [y - 0.4 + (i + 0.5) * high for y in range(len(classes))]
        whole = [n.instructions.get(name, 0) for name in classes]
        loops = [n.loop_instructions.get(name, 0) for name in classes]
        axes.barh(places, whole, height=0.92 * high, color=LIGHT[f"@{slot}20"])
        axes.barh(places, loops, height=0.92 * high, color=_colour(slot))
        for y, value in zip(places, whole, strict=True):
            axes.annotate(
                f"{value:,}",
                (value, y),
                xytext=(2, 0),
                textcoords="offset points",
                fontsize=5,
                va="center_baseline",
                color=LIGHT["@muted"],
            )
    axes.set_yticks(range(len(classes)), [CLASS_WORDS[name] for name in classes])
    axes.set_ylim(len(classes) - 0.4, -0.6)
    axes.margins(x=0.14)
    axes.set_xlim(left=0)
    axes.set_xlabel("machine instructions; full colour: in loops", fontsize=SMALL, labelpad=2)
    _title(axes, "(c) instruction mix")


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=8, loc="left", color=LIGHT["@ink"])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
