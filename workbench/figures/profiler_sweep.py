"""The profiler tab's sweep: times along one axis, their ratio beside what the counts expect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workbench.figures.theme import Json, curve_layout, significant
from workbench.labels import scan_in_text, scan_short
from workbench.profiler_results import SweepPoint, SweepResult

TONES = ("a", "b", "c", "d")  # of the first lines; more than four names share a neutral colour
PASSES = {"forward": "one forward", "train": "one forward and backward"}
SUBJECTS = {"model": "the whole network", "scan": "the scan of its first block"}
EXPECTATIONS = (("tokens", "tokens read", "dash"), ("depth", "serial depth", "dot"))


@dataclass(frozen=True, slots=True)
class RatioPoint:
    """Second line over the first, at one place of the axis."""

    x: float
    label: str
    ratio: float  # of the medians; nan where one of the two was not measured
    low: float  # fastest fifth of the second over the slowest fifth of the first
    high: float
    tokens: float  # what the counts expect; nan where a count is 0
    depth: float


def tone_of(result: SweepResult, series: str) -> str:
    i = result.series.index(series)
    return TONES[i] if i < 2 or len(result.series) <= len(TONES) else "plain"


def colour_of(tone: str) -> str:
    return "@conv" if tone == "plain" else f"@{tone}"


def series_points(result: SweepResult, series: str) -> list[SweepPoint]:
    """The measured points of one line, along the axis."""
    found = [p for p in result.points if p.series == series and p.is_measured]
    return sorted(found, key=lambda p: p.x)


def ratios(result: SweepResult) -> list[RatioPoint]:
    """The second line over the first, wherever both have a point; none with fewer than two."""
    if len(result.series) < 2:
        return []
    first, second = (
        {p.label: p for p in result.points if p.series == s} for s in result.series[:2]
    )
    found = []
    for label, b in second.items():
        a = first.get(label)
        if a is None:
            continue
        is_known = a.is_measured and b.is_measured
        found.append(
            RatioPoint(
                x=b.x,
                label=label,
                ratio=b.p50_ms / a.p50_ms if is_known else math.nan,
                low=b.p20_ms / a.p80_ms if is_known else math.nan,
                high=b.p80_ms / a.p20_ms if is_known else math.nan,
                tokens=b.tokens / a.tokens if a.tokens and b.tokens else math.nan,
                depth=b.depth / a.depth if a.depth and b.depth else math.nan,
            )
        )
    return sorted(found, key=lambda p: p.x)


def slope_text(result: SweepResult, series: str) -> str:
    """ "slope 1.94 [1.90, 1.98]"; "" where there is no fit."""
    fit = next((f for f in result.fits if f.series == series), None)
    if fit is None or not math.isfinite(fit.slope):
        return ""
    text = f"slope {fit.slope:.2f}"
    if math.isfinite(fit.low) and math.isfinite(fit.high):
        text += f" [{fit.low:.2f}, {fit.high:.2f}]"
    return text


def bytes_text(n: float) -> str:
    """Three significant digits with a decimal prefix: "1.23 GB"."""
    if not math.isfinite(n):
        return "n/a"
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(n) >= size:
            return f"{significant(n / size)} {unit}"
    return f"{n:,.0f} B"


def sweep_panel(result: SweepResult) -> Json:
    """Lines with bands, their ratio, every point as a row, and what it was measured on."""
    p = result.provenance
    subject = SUBJECTS.get(result.subject, result.subject)
    how = f"{subject}, {PASSES.get(result.passes, result.passes)}"
    measured = [point for point in result.points if point.is_measured]
    panel: Json = {
        "id": "lab_prof_sweep",
        "title": "Sweep",
        "badges": [{"text": f"{how} · {p.device}", "tone": "muted", "tip": result.clock}],
        "is_live": not result.is_final,
        "notes": [note for note in (_which(result), result.note) if note],
    }
    if not result.points:
        panel["empty"] = {
            "title": "Nothing is measured yet",
            "text": "Choose an axis and press Run: each point is checked against the reference, "
            "then both scans are timed in turns.",
        }
        panel["sentence"] = "A time is shown only for an output that agrees with the reference."
        return panel
    if errors := [point.error for point in measured if math.isfinite(point.error)]:
        worst = max(errors)
        panel["badges"].append(
            {
                "text": f"✓ within {worst:.0e} of the reference",
                "tone": "ok",
                "tip": "Largest relative L2 distance of any point that is shown",
            }
        )
    panel |= {
        "charts": _charts(result),
        "columns": _columns(result),
        "rows": [_row(result, point) for point in result.points],
        "csv_name": f"sweep-{result.subject}-{result.axis}-{result.passes}.csv",
        "environment": [[key, value] for key, value in result.environment.items()],
        "environment_title": _card(result),
        "sentence": _sentence(result),
    }
    return panel


def _which(result: SweepResult) -> str:
    """Which of the two expectations to hold the measured ratio against."""
    if len(result.series) != 2:
        return ""
    is_gpu = any(point.backend not in ("cpu", "reference") for point in result.points)
    if is_gpu:
        return (
            "Many images fill a GPU: then the tokens read count. Few leave it idle: then the steps "
            "that wait for each other, the serial depth. What is no scan follows neither."
        )
    return (
        "On a CPU the tokens read count, as its cores are busy anyway; the serial depth would on a "
        "GPU with few images. What is no scan follows neither."
    )


def _card(result: SweepResult) -> str:
    backend = f", backend {result.provenance.backend}" if result.provenance.backend else ""
    return f"Measured on {result.provenance.device or 'an unnamed device'}{backend}"


def _charts(result: SweepResult) -> list[Json]:
    charts = [_lines(result) if result.is_numeric else _bars(result)]
    found = [r for r in ratios(result) if math.isfinite(r.ratio)]
    if found:
        charts.append(_ratio_chart(result))
    return charts


def _lines(result: SweepResult) -> Json:
    data: list[Json] = []
    legend = []
    for series in result.series:
        points = series_points(result, series)
        tone = tone_of(result, series)
        name = scan_short(series)
        slope = slope_text(result, series)
        legend.append({"text": f"{name}, {slope}" if slope else name, "colour": colour_of(tone)})
        data += _band([q.x for q in points], [(q.p20_ms, q.p80_ms) for q in points], tone)
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [q.x for q in points],
                "y": [q.p50_ms for q in points],
                "name": name,
                "line": {"color": colour_of(tone), "width": 2},
                "marker": {"size": 6, "color": colour_of(tone)},
                "customdata": [
                    f"{significant(q.p50_ms)} ms ({significant(q.p20_ms)} to "
                    f"{significant(q.p80_ms)})"
                    for q in points
                ],
                "hovertemplate": f"{name} %{{customdata}}<extra></extra>",
            }
        )
    layout = curve_layout(result.axis_label, "")
    layout["margin"] = {"l": 46, "r": 12, "t": 8, "b": 32}
    layout["xaxis"] |= log_axis(result)
    layout["yaxis"] |= log_values(
        [v for q in result.points if q.is_measured for v in (q.p20_ms, q.p50_ms, q.p80_ms)]
    )
    return {
        "kind": "plot",
        "key": "sweep",
        "figure": {"data": data, "layout": layout},
        "alt": f"Median time against {result.axis_label}, both on log scales",
        "heading": "ms, 20 to 80 %, log scales",
        "legend": legend,
    }


def _band(x: Sequence[float], ends: Sequence[tuple[float, float]], tone: str) -> list[Json]:
    if not x:
        return []
    fill = "rgba(120,130,145,.2)" if tone == "plain" else f"@{tone}20"
    bare: Json = {
        "type": "scatter",
        "mode": "lines",
        "x": list(x),
        "line": {"width": 0},
        "hoverinfo": "skip",
    }
    return [
        bare | {"y": [low for low, _ in ends]},
        bare | {"y": [high for _, high in ends], "fill": "tonexty", "fillcolor": fill},
    ]


def log_axis(result: SweepResult) -> Json:
    """A tick at every value of the axis: they are few, and they are what was measured."""
    places = {q.x: q.label for q in result.points if q.x > 0}
    return {
        "type": "log",
        "tickvals": list(places),
        "ticktext": list(places.values()),
        "tickangle": 0,
    }


def log_values(values: Sequence[float]) -> Json:
    """Ticks at 1, 2 and 5 of each decade in plain numbers."""
    finite = [v for v in values if math.isfinite(v) and v > 0]
    if not finite:
        return {"type": "log"}
    low, high = math.floor(math.log10(min(finite))), math.ceil(math.log10(max(finite)))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [m * 10.0**e for e in range(low, high + 1) for m in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{t:,.10g}" for t in ticks]}


def _bars(result: SweepResult) -> Json:
    """Bars from zero, a group for each name of the axis; a missing time says why."""
    longest = max((q.p80_ms for q in result.points if q.is_measured), default=0.0)
    groups: dict[tuple[float, str], list[SweepPoint]] = {}
    for point in result.points:
        groups.setdefault((point.x, point.label), []).append(point)
    is_grouped = any(len(points) > 1 for points in groups.values())
    rows = []
    for _, label in sorted(groups):
        points = groups[next(key for key in groups if key[1] == label)]
        points = sorted(points, key=lambda q: result.series.index(q.series))
        rows.append({"text": scan_short(label), "bars": [_bar(result, q, longest) for q in points]})
    legend = [
        {"text": scan_short(series), "colour": colour_of(tone_of(result, series))}
        for series in result.series
    ]
    return {
        "kind": "bars",
        "heading": "ms from zero, median with 20 to 80 %",
        "legend": legend if is_grouped else [],
        "rows": rows,
    }


def _bar(result: SweepResult, point: SweepPoint, longest: float) -> Json:
    name = scan_short(point.series)
    if not point.is_measured:
        return {
            "tone": "plain",
            "name": name,
            "text": point.status,
            "tip": f"{name}, {point.label}: {point.status}",
            "share": None,
        }
    ends = f"{significant(point.p20_ms)} to {significant(point.p80_ms)}"
    return {
        "tone": tone_of(result, point.series),
        "name": name,
        "text": f"{significant(point.p50_ms)} ms",
        "tip": f"{name}, {point.label}: {significant(point.p50_ms)} ms, 20 to 80 %: {ends}",
        "share": point.p50_ms / longest,
        "low": point.p20_ms / longest,
        "high": point.p80_ms / longest,
    }


def _ratio_chart(result: SweepResult) -> Json:
    found = ratios(result)
    known = [r for r in found if math.isfinite(r.ratio)]
    places = [r.x if result.is_numeric else scan_short(r.label) for r in known]
    names = [scan_short(series) for series in result.series[:2]]
    measured: Json = {
        "type": "scatter",
        "mode": "lines+markers" if result.is_numeric else "markers",
        "x": places,
        "y": [r.ratio for r in known],
        "name": "measured",
        "line": {"color": "@ink", "width": 2},
        "marker": {"size": 7, "color": "@ink"},
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [r.high - r.ratio for r in known],
            "arrayminus": [r.ratio - r.low for r in known],
            "color": "@muted",
            "thickness": 1,
            "width": 3,
        },
        "hovertemplate": "measured %{y:.3g}<extra></extra>",
    }
    data = []
    annotations = []
    for text, dash, colour, expected in _expectations(known):
        x = places
        data.append(
            {
                "type": "scatter",
                "mode": "lines" if result.is_numeric and len(x) > 1 else "markers",
                "x": x,
                "y": expected,
                "name": text,
                "line": {"color": colour, "width": 1.4, "dash": dash},
                "marker": {
                    "symbol": "line-ew-open",
                    "size": 18,
                    "color": colour,
                    "line": {"width": 2},
                },
                "hovertemplate": f"expected by {text} %{{y:.3g}}<extra></extra>",
            }
        )
        annotations.append(_end_label(known, expected, text, colour, result.is_numeric))
    layout = curve_layout(result.axis_label if result.is_numeric else "", "")
    layout["margin"] = {"l": 40, "r": 12, "t": 12, "b": 32}
    layout["xaxis"] |= log_axis(result) if result.is_numeric else {"type": "category"}
    ends = [v for r in known for v in (r.low, r.high, r.tokens, r.depth, 1.0) if math.isfinite(v)]
    layout["yaxis"] |= {"range": [0, 1.12 * max(ends)]}
    layout["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": 1,
            "y1": 1,
            "line": {"color": "@muted", "width": 1},
        }
    ]
    layout["annotations"] = _apart(annotations, 1.12 * max(ends))
    return {
        "kind": "plot",
        "key": "ratio",
        "figure": {"data": [*data, measured], "layout": layout},
        "alt": f"Time of {names[1]} over that of {names[0]}, beside what the counts expect",
        "heading": f"{names[1]} : {names[0]}, beside what the counts of its scans expect",
        "legend": [{"text": "measured", "colour": "@ink"}],
    }


def _expectations(known: Sequence[RatioPoint]) -> list[tuple[str, str, str, list[float]]]:
    """(words, dash, colour, ratio at each point); one line where both counts say the same."""
    found = []
    for (key, text, dash), colour in zip(EXPECTATIONS, ("@c", "@d"), strict=True):
        values = [float(getattr(r, key)) for r in known]
        if all(math.isfinite(v) for v in values):
            found.append((text, dash, colour, values))
    if len(found) == 2 and found[0][3] == found[1][3]:
        text, dash, colour, values = found[0]
        return [(f"{text} and {found[1][0]}", dash, colour, values)]
    return found


def _end_label(
    known: Sequence[RatioPoint], expected: Sequence[float], text: str, colour: str, is_numeric: bool
) -> Json:
    """The line's name at that end, and on that side of it, which is farther from what was
    measured."""
    apart = [e - r.ratio for r, e in zip(known, expected, strict=True)]
    at = 0 if is_numeric and abs(apart[0]) > abs(apart[-1]) else -1
    x = known[at].x
    place: float | str = scan_short(known[at].label)
    if is_numeric:
        place = math.log10(x) if x > 0 else x
    return {
        "x": place,
        "y": expected[at],
        "text": f"{text} {significant(expected[at])}",
        "showarrow": False,
        "xanchor": "left" if is_numeric and at == 0 and len(known) > 1 else "right",
        "yanchor": "bottom" if apart[at] >= 0 else "top",
        "font": {"size": 10.5, "color": colour},
    }


def _apart(annotations: list[Json], span: float) -> list[Json]:
    """Labels of lines that lie close together go above the upper and below the lower one."""
    ordered = sorted(annotations, key=lambda a: float(a["y"]))
    for low, high in zip(ordered, ordered[1:], strict=False):
        if high["y"] - low["y"] < 0.09 * span:
            low["yanchor"], high["yanchor"] = "top", "bottom"
    return ordered


def _columns(result: SweepResult) -> list[Json]:
    def column(key: str, text: str, unit: str, kind: str, tip: str, **more: object) -> Json:
        return {"key": key, "text": text, "unit": unit, "kind": kind, "tip": tip, **more}

    columns = [
        column("series", "line", "", "text", "The line that the point belongs to"),
        column("label", result.axis_label, "", "text", "Place on the axis"),
        column("p50", "median", "ms", "bar", "Of one call on the whole batch"),
        column("p20", "20 %", "ms", "number", "A fifth of the calls was faster"),
        column("p80", "80 %", "ms", "number", "A fifth of the calls was slower"),
        column("repeats", "calls", "timed", "int", "Calls that were timed, after the warm-up"),
        column("throughput", "images", "per s", "number", "Batch over the median"),
        column("peak", "peak memory", "beyond the inputs", "bytes", "Most that one call needs"),
        column("error", "checked", "rel. L2", "check", "Distance from the reference"),
        column("tokens", "tokens", "read", "int", "By all scans of one image, pads included"),
        column("depth", "depth", "steps", "int", "Longest sequence of dependent steps"),
    ]
    for key in ("model", "scan", "size", "batch", "dtype", "backend", "status"):
        columns.append(column(key, key, "", "text", key, hidden=True))
    return columns


def _row(result: SweepResult, q: SweepPoint) -> Json:
    missing = {"value": None, "text": "–", "tip": q.status}
    cells: Json = {
        "series": {"value": scan_short(q.series), "tip": q.series},
        "label": {"value": q.label, "order": q.x},
        "p50": _finite(q.p50_ms) if q.is_measured else {"value": None, "text": q.status},
        "repeats": int(q.samples_ms.size) if q.is_measured else missing,
        "tokens": q.tokens or None,
        "depth": q.depth or None,
        "peak": _finite(q.peak_bytes) if q.is_measured else missing,
        "error": _finite(q.error),
    }
    for key, value in (("p20", q.p20_ms), ("p80", q.p80_ms), ("throughput", q.images_per_second)):
        cells[key] = _finite(value) if q.is_measured else missing
    for key in ("model", "scan", "size", "batch", "dtype", "backend", "status"):
        cells[key] = getattr(q, key)
    return {
        "id": f"{q.series}|{q.label}",
        "cells": cells,
        "tone": tone_of(result, q.series),
        "faint": not q.is_measured,
        "note": q.status,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _sentence(result: SweepResult) -> str:
    known = [r for r in ratios(result) if math.isfinite(r.ratio)]
    parts = []
    if known:
        names = [scan_in_text(series) for series in result.series[:2]]
        last = known[-1]
        if result.is_numeric:
            text = f"at {last.label} ({result.axis_label})" if last.label else "at the last point"
        else:
            text = f"with {scan_short(last.label)}"
        parts.append(
            f"{names[1][0].upper()}{names[1][1:]} takes {significant(last.ratio)} times as long "
            f"as {names[0]} {text}"
        )
        expected = [
            f"{significant(getattr(last, key))} times by {words}"
            for key, words, _ in EXPECTATIONS
            if math.isfinite(getattr(last, key))
        ]
        if expected:
            parts[-1] += f"; the counts of its scans alone say {' and '.join(expected)}"
    measured = sorted((q for q in result.points if q.is_measured), key=lambda q: q.p50_ms)
    if len(result.series) == 1 and not result.is_numeric and len(measured) > 1:
        first, last_one = measured[0], measured[-1]
        parts.append(
            f"{first.label} is the fastest with {significant(first.p50_ms)} ms; {last_one.label} "
            f"takes {significant(last_one.p50_ms / first.p50_ms)} times as long"
        )
    slopes = [
        f"{scan_in_text(f.series)} with the power {f.slope:.2f}"
        for f in result.fits[:2]
        if math.isfinite(f.slope)
    ]
    if slopes:
        parts.append(f"time grows for {', for '.join(slopes)} of the axis")
    missing = [q for q in result.points if not q.is_measured]
    if missing:
        parts.append(
            f"{len(missing)} of {len(result.points)} points "
            f"{'was' if len(missing) == 1 else 'were'} not measured; the table says why"
        )
    if not result.is_final:
        parts.append("the sweep goes on")
    text = ". ".join(part[0].upper() + part[1:] for part in parts)
    return f"{text}." if text else "No two points can be compared yet."
