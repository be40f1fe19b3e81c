"""Panel of the scan tab: which tokens can influence the token in focus, and how much is left."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.figures.scan_lab import PHOTO_OPACITY, no_scan
from workbench.figures.theme import (
    CIVIDIS,
    Json,
    colorscale,
    curve_layout,
    heatmap,
    map_layout,
    percent,
    photo_data_uri,
    significant,
)
from workbench.labels import scan_in_text, scan_short
from workbench.results import ReachResult

MAX_CELLS = 96  # cells a side sent to the browser; a larger map is binned, which the panel says
FLOOR = 1e-4  # share of a state below which the log map stays at its darkest
MAX_CURVE_POINTS = 160


def reach_panel(a: ReachResult, b: ReachResult | None, rgb: np.ndarray) -> Json:
    """The panel for scheme A and, if given, scheme B at the same token.

    `rgb` is the network input `[H, W, 3]` uint8.
    """
    height, width = a.provenance.input_size
    panel: Json = {
        "id": "lab_reach",
        "title": "Reach of one token",
        "stage": a.stage,
        "input": [height, width],
    }
    if not a.has_scan:
        return panel | no_scan(a.stage, a.note, rgb)
    results = [r for r in (a, b) if r is not None and r.has_scan]
    tones = ["a", "b"][: len(results)]
    cell = bin_tokens(a)
    binned = f"{cell} × {cell} tokens a cell, " if cell > 1 else ""
    return panel | {
        "badges": [
            {"text": f"stage {a.stage}, token ({a.y}, {a.x}), {binned}{a.layer}", "tone": "muted"}
        ],
        "photo": photo_data_uri(rgb),
        "variants": [
            _steps("back", "steps back", "steps_back", results, cell),
            _decay(results, cell),
            _steps("on", "whom it influences", "steps_on", results, cell),
        ],
        "plot": {
            "key": "decay",
            "heading": "share of state left",
            "figure": _curves(results, tones),
            "alt": "Share of the state left against steps back",
            "legend": [
                {"colour": f"@{tone}", "text": scan_short(r.provenance.scan)}
                for tone, r in zip(tones, results, strict=True)
            ],
        },
        "table": {
            "columns": [
                {"text": ""},
                *(
                    {"text": scan_short(r.provenance.scan), "tone": tone}
                    for tone, r in zip(tones, results, strict=True)
                ),
            ],
            "rows": [
                ["token", *(percent(reach_of(r)) for r in results)],
                ["mean", *(percent(r.mean_reach) for r in results)],
                ["half-life", *(_half(r) for r in results)],
            ],
        },
        "shares": _restored(results, tones),
        "sentence": _sentence(results),
        "notes": [r.note for r in results if r.note],
    }


def reach_of(result: ReachResult) -> float:
    """Share of the map's tokens that can influence the token in focus, itself included."""
    return float((result.steps_back >= 0).mean())


def bin_tokens(result: ReachResult) -> int:
    """Tokens a side of a drawn cell: 1 unless the map is larger than the budget."""
    return math.ceil(max(result.height, result.width) / MAX_CELLS)


def _binned(values: np.ndarray, cell: int, how: np.ufunc) -> np.ndarray:
    if cell == 1:
        return values
    rows = how.reduceat(values, np.arange(0, values.shape[0], cell), axis=0)
    binned: np.ndarray = how.reduceat(rows, np.arange(0, values.shape[1], cell), axis=1)
    return binned


def _map(
    key: str, result: ReachResult, z: np.ndarray, cell: int, top: float, low: float, read: Json
) -> Json:
    tone = key[-1]
    trace = heatmap(z, cell * result.stride, low, top, colorscale=colorscale(CIVIDIS), opacity=0.86)
    height, width = result.provenance.input_size
    return {
        "key": key,
        "figure": {"data": [trace], "layout": map_layout(height, width, "@photo", PHOTO_OPACITY)},
        "left": {"text": scan_short(result.provenance.scan), "tone": tone},
        "right": {"text": percent(reach_of(result))},
        "read": {"trace": 0, "cell": cell * result.stride} | read,
        "cell": result.stride,
    }


def _steps(key: str, text: str, field: str, results: list[ReachResult], cell: int) -> Json:
    """Maps of steps; binned cells show their nearest token. What cannot matter stays the photo."""
    maps = []
    for result in results:
        steps = getattr(result, field).astype(np.float64)
        steps[steps < 0] = np.inf
        binned = _binned(steps, cell, np.minimum)
        maps.append(np.where(np.isfinite(binned), binned, np.nan))
    top = max((float(np.nanmax(m)) for m in maps if np.isfinite(m).any()), default=1.0) or 1.0
    words = ("steps back", "cannot matter") if key == "back" else ("steps on", "is not reached")
    read: Json = {"unit": words[0], "none": words[1], "whole": True}
    tip = {
        "back": "How many steps of the sequence lie between a token and this one",
        "on": "How many steps later a token reads what this one left",
    }[key]
    return {
        "key": key,
        "text": text,
        "tip": tip,
        "maps": [
            _map(f"reach-{tone}", r, m, cell, top, 0.0, read)
            for tone, r, m in zip("ab", results, maps, strict=False)
        ],
        "scale": {
            "stops": list(CIVIDIS),
            "low": "0",
            "high": f"{top:,.0f}",
            "label": "bare photo: no influence",
        },
    }


def _decay(results: list[ReachResult], cell: int) -> Json:
    maps = []
    for result in results:
        left = np.where(result.steps_back >= 0, result.decay, -1.0)
        binned = _binned(left, cell, np.maximum)
        logged = np.log10(np.maximum(binned, FLOOR))
        maps.append(np.where(binned < 0, np.nan, logged))
    read: Json = {"unit": "of its state left", "none": "cannot matter", "power": 10}
    low = math.log10(FLOOR)
    return {
        "key": "decay",
        "text": "influence left",
        "tip": "Share of a token's state that is left at this one, mean over channels, log scale",
        "maps": [
            _map(f"reach-{tone}", r, m, cell, 0.0, low, read | _not_known(r))
            for tone, r, m in zip("ab", results, maps, strict=False)
        ],
        "scale": {
            "stops": list(CIVIDIS),
            "low": f"≤ {FLOOR:g}",
            "high": "1",
            "label": "log · bare photo: none",
        },
    }


def _not_known(result: ReachResult) -> Json:
    """The path of another network has no dt and A, so nothing says how much is left."""
    return {} if len(result.curve_steps) else {"none": "not known: path only"}


def _thinned(n: int) -> np.ndarray:
    """At most MAX_CURVE_POINTS indices into `n` points, evenly on a log axis, ends included."""
    if n <= MAX_CURVE_POINTS:
        return np.arange(n)
    chosen = np.geomspace(1, n, MAX_CURVE_POINTS).round().astype(int) - 1
    return np.unique(np.concatenate([chosen, [0, n - 1]]))


def _curves(results: list[ReachResult], tones: list[str]) -> Json:
    """Median and 20 to 80 % band against steps back; step 0 (everything left) is left out of the
    log axis."""
    data: list[Json] = []
    longest = 2.0
    for tone, result in zip(tones, results, strict=True):
        shown = result.curve_steps > 0
        steps = result.curve_steps[shown]
        if not len(steps):
            continue
        keep = _thinned(len(steps))
        x = steps[keep].tolist()
        low, mid, high = (
            np.round(100 * np.nan_to_num(curve[shown][keep].astype(float)), 3).tolist()
            for curve in (result.curve_p20, result.curve_p50, result.curve_p80)
        )
        longest = max(longest, float(x[-1]))
        common: Json = {"type": "scatter", "x": x, "mode": "lines"}
        data += [
            common | {"y": low, "line": {"width": 0}, "hoverinfo": "skip"},
            common
            | {
                "y": high,
                "line": {"width": 0},
                "fill": "tonexty",
                "fillcolor": f"@{tone}20",
                "hoverinfo": "skip",
            },
            common
            | {
                "y": mid,
                "line": {"color": f"@{tone}", "width": 2},
                "name": scan_short(result.provenance.scan),
                "hovertemplate": "%{y:.3g} %",
            },
        ]
    layout = curve_layout("steps back, log", "% left")
    layout["xaxis"] |= {
        "type": "log",
        "range": [0, math.log10(longest)],
        "tickvals": [v for v in (1, 10, 100, 1000, 10_000) if v <= longest],
        "hoverformat": ",d",
    }
    layout["yaxis"] |= {"range": [0, 103], "tickvals": [0, 50, 100]}
    layout["margin"] |= {"r": 6, "b": 28}
    return {"data": data, "layout": layout}


def _half(result: ReachResult) -> str:
    if not len(result.curve_steps):
        return "n/a"
    if not math.isfinite(result.half_steps):
        return "never"
    return f"{significant(result.half_steps, 2)} steps"


def _restored(results: list[ReachResult], tones: list[str]) -> Json:
    """Rows "scan alone", "+ 3x3 convolution", ... with a bar per scheme, for the token in focus."""
    names = [step.name for step in results[0].restored]
    by_name: list[dict[str, Any]] = [{s.name: s for s in r.restored} for r in results]
    rows = []
    for name in names:
        values = [
            {
                "tone": tone,
                "share": steps[name].share,
                "text": percent(steps[name].share),
                "tip": f"this token {percent(steps[name].share)}, "
                f"mean {percent(steps[name].mean_share)}",
            }
            for tone, steps in zip(tones, by_name, strict=True)
            if name in steps
        ]
        rows.append({"text": name, "values": values})
    return {"heading": "share of the map this token sees", "rows": rows}


def _sentence(results: list[ReachResult]) -> str:
    name = scan_in_text(results[0].provenance.scan)
    text = f"One scan of {name} lets this token see {percent(reach_of(results[0]))} of the map"
    if len(results) > 1:
        text += f", {scan_in_text(results[1].provenance.scan)} {percent(reach_of(results[1]))}"
    halves = [r for r in results if math.isfinite(r.half_steps)]
    if halves:
        words = " and ".join(significant(r.half_steps, 2) for r in halves)
        text += f"; half of what a token left is gone after {words} steps"
    return text + "."
