"""The ERF tab: fields side by side with their differences, curves, and the phases of ES2D.

The table stands in erf_numbers.py, the paths through the blocks in erf_paths.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from workbench.figures.erf_maps import (
    DEFINITION_NAMES,
    TONES,
    Scale,
    contour_cell,
    contour_traces,
    field_names,
    images_text,
    in_text,
    line_trace,
    outline,
    outline_cell,
    scale_json,
    scale_of,
    signed_root,
    tiny,
    weights_note,
)
from workbench.figures.theme import (
    CIVIDIS,
    DIVERGING,
    Json,
    block_sum,
    colorscale,
    curve_layout,
    heatmap,
    map_layout,
    percent,
    significant,
)
from workbench.results import ErfPhase, ErfPhasesResult, ErfResult

REACH_COLOUR = "#8be9fd"  # light enough on cividis, and none of its own colours
PHASE_CELLS = 96  # cells a side of a phase's small map
MAX_CURVE_POINTS = 200
GATES = {"live": "gates live", "frozen": "gates frozen", "none": "no gates"}
PARTS = ("objective", "rectification", "averaging", "transform", "metric")
DASHES = {"a": "solid", "b": "solid", "c": "solid", "d": "dash"}  # the fourth not by colour alone


def erf_lab_panel(fields: Sequence[ErfResult], *, scale: str, keys: Sequence[str]) -> Json:
    """Two to four fields on one colour scale and the difference of each to the first.

    `keys` are the slots, whose colours the fields have: "a" to "d"; all fields have one input size.
    """
    _check(fields, keys)
    first = fields[0]
    height, width = first.mass.shape
    names = field_names(fields)
    shown = scale_of(fields, scale)
    return {
        "id": "lab_erf",
        "title": "Effective receptive fields",
        "stage": first.stage,
        "input": [height, width],
        "badges": _badges(fields, names),
        "maps": [
            _map(key, name, result, shown)
            for key, name, result in zip(keys, names, fields, strict=True)
        ],
        "differences": [
            _difference((first, result), (names[0], name), (keys[0], key), shown.cell)
            for key, name, result in zip(keys[1:], names[1:], fields[1:], strict=True)
        ],
        "scale": scale_json(shown, first.definition),
        "legend": _legend(fields, names),
        "parts": [[part, first.parts[part]] for part in PARTS if part in first.parts],
        "sentence": _sentence(fields, names),
        "notes": _notes(fields, names),
        "is_live": not all(r.is_final for r in fields),
    }


def _check(fields: Sequence[ErfResult], keys: Sequence[str]) -> None:
    if not 1 <= len(fields) <= len(TONES) or len(fields) != len(keys):
        raise ValueError(
            f"{len(fields)} fields and {len(keys)} keys given; give 1 to {len(TONES)} of each."
        )
    shapes = {r.mass.shape for r in fields}
    if len(shapes) > 1:
        raise ValueError(f"fields of different input sizes {sorted(shapes)} share no scale.")


def _map(key: str, name: str, result: ErfResult, scale: Scale) -> Json:
    height, width = result.mass.shape
    data = [scale.trace(result, colorscale=colorscale(CIVIDIS), name=name)]
    data += contour_traces(result)
    if result.reach.size and not result.reach.all():
        lines, _ = outline(result.reach)
        data.append(line_trace(lines, REACH_COLOUR, "5px,3px", 1.1) | {"name": "reach"})
    right = f"50 % in {significant(result.metrics['radius50_px'], 2)} px"
    return {
        "key": f"erf-{key}",
        "figure": {"data": data, "layout": map_layout(height, width)},
        "left": {"text": name, "tone": key},
        "right": {"text": right if result.is_final else images_text(result)},
        "read": scale.read(),
        "cell": result.stride,
        "stage": result.stage,
        "token": {"centre": list(result.centre), "stride": result.stride},
        "alt": f"Receptive field, {name}, {result.unit_label}, token ({result.y}, {result.x})",
    }


def difference_stops(key: str) -> list[list[float | str]]:
    """Teal for the first field, neutral at zero, the rival's colour at the other end."""
    stops = colorscale(DIVERGING)
    if key == "b":
        return stops
    return [*stops[: len(stops) // 2 + 1], [1.0, f"@{key}"]]


def _difference(
    fields: tuple[ErfResult, ErfResult], names: tuple[str, str], keys: tuple[str, str], cell: int
) -> Json:
    """First minus rival; `fields`, `names` and `keys` are the first's and the rival's."""
    first, rival = fields
    name, rival_name = names
    first_key, key = keys
    height, width = first.mass.shape
    delta = block_sum(first.mass.astype(np.float64), cell)
    delta -= block_sum(rival.mass.astype(np.float64), cell)
    rooted = -signed_root(delta)  # the first at the low end
    limit = float(np.abs(rooted).max()) or 1.0
    stops = difference_stops(key)
    trace = heatmap(rooted, cell, -limit, limit, colorscale=stops, name="difference")
    most = tiny(limit**2)
    moved = float(np.abs(delta).sum() / 2)
    return {
        "key": key,
        "name": rival_name,
        "map": {
            "key": "erf-difference",
            "figure": {"data": [trace], "layout": map_layout(height, width)},
            "left": {"text": "difference"},
            "right": {"text": f"{percent(moved)} lies elsewhere"},
            "read": {
                "trace": 0,
                "cell": cell,
                "power": -2,
                "unit": f"of the mass, {name} − {rival_name}",
            },
            "cell": first.stride,
            "token": {"centre": list(first.centre), "stride": first.stride},
            "alt": f"Difference between {name} and {rival_name}: {percent(moved)} of the mass "
            "lies elsewhere",
        },
        "scale": {
            "stops": [colour for _, colour in stops],
            "at": [at for at, _ in stops],
            "ticks": [{"at": 0, "text": most}, {"at": 0.5, "text": "0"}, {"at": 1, "text": most}],
            "ends": [
                {"text": f"more: {name}", "tone": first_key},
                {"text": f"more: {rival_name}", "tone": key},
            ],
            "tip": f"Share of the mass per {cell} × {cell} px, {name} minus {rival_name}, drawn as "
            f"its signed root from −{most} to {most}; neutral at zero. {percent(moved)} of the "
            "mass would have to move to turn one map into the other.",
        },
    }


def _badges(fields: Sequence[ErfResult], names: Sequence[str]) -> list[Json]:
    first = fields[0]
    height, width = first.mass.shape
    gates = ", ".join(dict.fromkeys(GATES.get(r.gates, r.gates) for r in fields))
    where = f"{first.unit_label}, token ({first.y}, {first.x})"
    definition = DEFINITION_NAMES.get(first.definition, first.definition)
    counts = " / ".join(dict.fromkeys(images_text(r) for r in fields))
    texts = [where, definition, gates, f"{counts} of {height} × {width} px"]
    parts = [f"{part}: {text}" for part, text in first.parts.items()]
    badges: list[Json] = [
        {"text": " · ".join(texts), "tone": "muted", "tip": "\n".join([*texts, *parts])}
    ]
    skipped = list(dict.fromkeys(s for r in fields for s in r.skipped))
    if skipped:
        text = f"{len(skipped)} image{'s' if len(skipped) > 1 else ''} skipped"
        badges.append({"text": text, "tone": "warn", "tip": "\n".join(skipped)})
    saturated = [(n, r.saturation) for n, r in zip(names, fields, strict=True) if r.saturation]
    if saturated:
        tip = "\n".join(f"{name}: {text}" for name, text in saturated)
        badges.append({"text": "saturated", "tone": "warn", "tip": tip})
    if any(r.provenance.is_random for r in fields):
        badges.append({"text": "random weights", "tone": "warn", "tip": weights_note(fields)})
    return badges


def _legend(fields: Sequence[ErfResult], names: Sequence[str]) -> list[Json]:
    """What the lines on the maps are."""
    cell = contour_cell(fields[0])
    tip = f"The lines run between cells of {cell} × {cell} px, so that single pixels do not fray"
    legend: list[Json] = [
        {"line": "solid", "text": "densest 50 %", "tip": tip},
        {"line": "dotted", "text": "densest 90 %", "tip": tip},
    ]
    known = [(n, r) for n, r in zip(names, fields, strict=True) if r.reach.size]
    if known:
        shares = list(dict.fromkeys(percent(r.reach_share) for _, r in known))
        if shares == ["100 %"]:
            whose = "" if len(known) == len(fields) else f" ({', '.join(n for n, _ in known)})"
            text = f"no dashed line: every pixel can matter{whose}"
        elif len(shares) == 1 and len(known) == len(fields):
            text = f"can matter at all: {shares[0]}"
        else:
            text = "can matter at all: " + ", ".join(
                f"{name} {percent(r.reach_share)}" for name, r in known
            )
        cells = [outline_cell(r.reach) for _, r in known]
        exact = f", drawn to {max(cells)} px" if max(cells) > 1 else ""
        tip = "Pixels that the layers' rules let matter for this token, with gates frozen" + exact
        legend.append({"line": "dashed", "text": text, "tip": tip})
    return legend


def _sentence(fields: Sequence[ErfResult], names: Sequence[str]) -> str:
    radii = ", ".join(
        f"{significant(r.metrics['radius50_px'], 2)} px with {in_text(name)}"
        for name, r in zip(names, fields, strict=True)
    )
    areas = " and ".join(
        ", ".join(percent(r.metrics["area90"]) for r in fields).rsplit(", ", maxsplit=1)
    )
    text = f"Half of the mass lies within {radii}; the densest 90 % cover {areas} of the image. "
    running = [r for r in fields if not r.is_final]
    if running:
        return f"So far, {images_text(running[0])}: " + text[0].lower() + text[1:].strip()
    return text + weights_note(fields)


def _notes(fields: Sequence[ErfResult], names: Sequence[str]) -> list[str]:
    """Warnings first; a note that several fields share is said once."""
    notes: dict[str, list[str]] = {}
    for kind in ("saturation", "note", "reach_note"):
        for name, result in zip(names, fields, strict=True):
            if text := getattr(result, kind):
                notes.setdefault(text, []).append(name)
    for name, result in zip(names, fields, strict=True):
        if result.unit_label != fields[0].unit_label:
            where = f"{result.unit_label}, token ({result.y}, {result.x})"
            notes.setdefault(where, []).append(name)
    return [
        (text if len(of) == len(fields) else f"{', '.join(of)}: {text}").rstrip(".") + "."
        for text, of in notes.items()
    ]


def uniform_radial(result: ErfResult) -> np.ndarray:
    """Share of a uniform map within each of the result's radii around its centre."""
    height, width = result.mass.shape
    rows, columns = np.mgrid[:height, :width] + 0.5
    distance = np.hypot(rows - result.centre[0], columns - result.centre[1])
    within = np.searchsorted(np.sort(distance, axis=None), result.radius_px, side="right")
    shares: np.ndarray = within / distance.size
    return shares


def erf_curves_panel(fields: Sequence[ErfResult], keys: Sequence[str]) -> Json:
    """Mass within a radius, with the bootstrap band, and how the numbers settled."""
    _check(fields, keys)
    first = fields[0]
    names = field_names(fields)
    legend = [
        {"colour": f"@{key}", "text": name} for key, name in zip(keys, names, strict=True)
    ] + [{"colour": "@muted", "text": "uniform map"}]
    data = _radial(fields, names, keys) + _convergence(fields, names, keys)
    n_bootstrap = max(r.n_bootstrap for r in fields)
    band = f"band: 5 to 95 % of {n_bootstrap:,} resamples"
    return {
        "id": "lab_erf_curves",
        "title": "Distance and convergence",
        "stage": first.stage,
        "input": list(first.mass.shape),
        "badges": [
            {"text": band if n_bootstrap else "no band: one image", "tone": "muted"},
        ],
        "plot": {
            "key": "erf-curves",
            "figure": {"data": data, "layout": _curves_layout(fields)},
            "alt": "Mass within a radius, areas and split-half distance by number of images",
            "heading": "mass within, %",
            "legend": legend,
        },
        "sentence": _curves_sentence(fields, names),
        "notes": [],
        "is_live": not all(r.is_final for r in fields),
    }


def _line(x: np.ndarray, y: np.ndarray, axes: str, **extra: object) -> Json:
    keep = np.isfinite(y)
    line: Json = {
        "type": "scatter",
        "mode": "lines",
        "x": np.round(np.asarray(x, float)[keep], 2).tolist(),
        "y": np.round(np.asarray(y, float)[keep], 4).tolist(),
        "xaxis": f"x{axes}",
        "yaxis": f"y{axes}",
    }
    return line | extra


def _thinned(n: int) -> np.ndarray:
    """At most MAX_CURVE_POINTS of `n` indices, evenly, ends included."""
    return np.unique(np.linspace(0, n - 1, min(n, MAX_CURVE_POINTS)).round().astype(int))


def _radial(fields: Sequence[ErfResult], names: Sequence[str], keys: Sequence[str]) -> list[Json]:
    first = fields[0]
    keep = _thinned(len(first.radius_px))
    grey: Json = {"line": {"color": "@muted", "width": 1, "dash": "dot"}, "name": "uniform map"}
    uniform = 100 * uniform_radial(first)[keep]
    data = [_line(first.radius_px[keep], uniform, "", hovertemplate="%{y:.1f} %", **grey)]
    for key, name, result in zip(keys, names, fields, strict=True):
        keep = _thinned(len(result.radius_px))
        radius = result.radius_px[keep]
        if result.radial_low.size:
            bare: Json = {"line": {"width": 0}, "hoverinfo": "skip"}
            fill: Json = {"fill": "tonexty", "fillcolor": f"@{key}20"}
            data.append(_line(radius, 100 * result.radial_low[keep], "", **bare))
            high = _line(radius, 100 * result.radial_high[keep], "", **bare, **fill)
            data.append(high | {"name": f"band {name}"})
        line: Json = {"line": {"color": f"@{key}", "width": 2, "dash": DASHES[key]}, "name": name}
        mass = 100 * result.radial_mass[keep]
        data.append(_line(radius, mass, "", hovertemplate="%{y:.1f} %", **line))
    return data


def _convergence(
    fields: Sequence[ErfResult], names: Sequence[str], keys: Sequence[str]
) -> list[Json]:
    data = []
    for key, name, result in zip(keys, names, fields, strict=True):
        n = result.convergence_n
        style: Json = {"mode": "lines+markers", "marker": {"size": 3.5, "color": f"@{key}"}}
        for values, dash, what in (
            (result.convergence_area50, DASHES[key], "50 %"),
            (result.convergence_area90, "dot", "90 %"),
        ):
            line: Json = {"line": {"color": f"@{key}", "width": 1.6, "dash": dash}}
            words: Json = {"name": f"{name}, {what}", "hovertemplate": "%{y:.3g} %"}
            data.append(_line(n, 100 * values, "2", **style, **line, **words))
        line = {"line": {"color": f"@{key}", "width": 1.6, "dash": DASHES[key]}, "name": name}
        split = 100 * result.convergence_split
        data.append(_line(n, split, "3", **style, **line, hovertemplate="%{y:.3g} %"))
    return data


def _curves_layout(fields: Sequence[ErfResult]) -> Json:
    layout = curve_layout("distance from the token, px", "")
    axis = {k: v for k, v in layout["xaxis"].items() if k != "title"}
    layout["margin"] = {"l": 30, "r": 6, "t": 20, "b": 32}
    far = max(float(r.radius_px[-1]) for r in fields)
    layout["xaxis"] |= {"domain": [0, 0.56], "range": [0, far], "hoverformat": ".0f"}
    layout["yaxis"] |= {"range": [0, 102], "tickvals": [0, 20, 50, 90, 100], "title": {"text": ""}}
    most = max(2, *(int(r.convergence_n[-1]) if r.convergence_n.size else 2 for r in fields))
    every = 1 if most <= 64 else 2 if most <= 1024 else 3
    powers = [2**i for i in range(0, 14, every) if 2**i <= most]
    title = layout["xaxis"]["title"]
    x: Json = axis | {
        "type": "log",
        "domain": [0.66, 1],
        "range": [-0.04, math.log10(most) + 0.04],
        "tickvals": powers,
        "hoverformat": ",d",
    }
    area: Json = {"domain": [0.58, 1], "anchor": "x2", "rangemode": "tozero", "nticks": 4}
    split: Json = {"domain": [0, 0.4], "anchor": "x3", "rangemode": "tozero", "nticks": 4}
    layout |= {
        "xaxis2": x | {"anchor": "y2", "showticklabels": False},
        "xaxis3": x | {"anchor": "y3", "title": title | {"text": "images, log"}},
        "yaxis2": axis | area,
        "yaxis3": axis | split,
        "annotations": [
            _heading(0.66, 1.0, "area, %: 50 solid, 90 dotted"),
            _heading(0.66, 0.4, "distance between halves, %"),
        ],
    }
    return layout


def _heading(x: float, y: float, text: str) -> Json:
    place: Json = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    look: Json = {"showarrow": False, "font": {"size": 10.5, "color": "@muted"}}
    return {"x": x, "y": y, "text": text} | place | look


def _curves_sentence(fields: Sequence[ErfResult], names: Sequence[str]) -> str:
    uniform = uniform_radial(fields[0])
    reached = np.flatnonzero(uniform >= 0.5)
    half = f"{fields[0].radius_px[reached[0]]:.0f} px" if len(reached) else "farther"
    text = f"A uniform map has half of its mass within {half}. "
    moved = []
    for name, result in zip(names, fields, strict=True):
        n = result.convergence_n
        if len(n) < 2 or not np.isfinite(result.convergence_area50[-2:]).all():
            continue
        before, now = (float(v) for v in result.convergence_area50[-2:])
        moved.append((n[-2], n[-1], name, abs(now - before) / before if before else math.inf))
    if not moved:
        return text + "One image says nothing about how settled the map is."
    n, m, *_ = moved[0]
    if len(moved) > 2:
        moved = [max(moved, key=lambda item: item[3])]
    changes = ", ".join(
        f"{significant(100 * change, 2)} % ({in_text(name)})" for *_, name, change in moved
    )
    most = "at most " if len(fields) > 2 else ""
    return f"{text}From {n:,} to {m:,} images the 50 % area moved by {most}{changes}."


def erf_phases_panel(result: ErfPhasesResult, scale: str) -> Json:
    """The fields of one step x step cell as a grid in the cell's own order, on one scale."""
    panel: Json = {
        "id": "lab_erf_phases",
        "title": "The phases of one cell",
        "stage": result.stage,
        "input": list(result.provenance.input_size),
    }
    if not result.phases:
        return panel | {
            "badges": [{"text": f"stage {result.stage}", "tone": "muted"}],
            "empty": {"title": "No phases here", "text": result.note},
            "sentence": "Pick a token of stage 1 or 2 of a network that scans with ES2D to see "
            "its neighbours' fields.",
        }
    fields = [phase.field for phase in result.phases]
    shown = scale_of(fields, scale, PHASE_CELLS)
    bar = scale_json(shown, "")
    return panel | {
        "badges": [
            {
                "text": f"{fields[0].unit_label} · {result.step} × {result.step} tokens · "
                f"{images_text(fields[0])}",
                "tone": "muted",
            }
        ],
        "columns": result.step,
        "maps": [_phase_map(phase, shown, result.step) for phase in result.phases],
        "scale": bar,
        "table": {
            "columns": [{"text": t} for t in ("token", "group", "50 % on", "90 % on")],
            "rows": [
                [
                    f"({phase.field.y}, {phase.field.x})",
                    _group(phase),
                    *(percent(phase.field.metrics[key]) for key in ("area50", "area90")),
                ]
                for phase in result.phases
            ],
        },
        "sentence": _phases_sentence(result),
        "notes": [result.note] if result.note else [],
        "is_live": not result.is_final,
    }


def _group(phase: ErfPhase) -> str:
    """ "1, rows": groups count from 1, as on the scan tab."""
    number = str(phase.group + 1) if phase.group >= 0 else "several"
    direction = {"row-major": "rows", "column-major": "cols"}.get(phase.direction, "")
    return f"{number}, {direction}" if direction else number


def phase_name(phase: ErfPhase) -> str:
    """ "token (14, 15), group 2, column-major"."""
    group = f"group {phase.group + 1}" if phase.group >= 0 else "several groups"
    parts = [f"token ({phase.field.y}, {phase.field.x})", group, phase.direction]
    return ", ".join(part for part in parts if part)


def _phase_map(phase: ErfPhase, scale: Scale, step: int) -> Json:
    result = phase.field
    height, width = result.mass.shape
    data = [scale.trace(result, colorscale=colorscale(CIVIDIS)), *contour_traces(result)]
    spec: Json = {
        "key": f"phase-{phase.row}-{phase.column}",
        "figure": {"data": data, "layout": map_layout(height, width)},
        "read": scale.read(),
        "cell": result.stride,
        "token": {"centre": list(result.centre), "stride": result.stride, "is_small": True},
        "alt": phase_name(phase),
    }
    if step <= 2:
        spec["left"] = {"text": f"({result.y}, {result.x})"}
        spec["right"] = {"text": f"group {phase.group + 1}" if phase.group >= 0 else ""}
    return spec


def _phases_sentence(result: ErfPhasesResult) -> str:
    areas = [phase.field.metrics["area50"] for phase in result.phases]
    low, high = min(areas), max(areas)
    part = {4: "a quarter", 9: "a ninth", 16: "a sixteenth"}.get(len(result.phases), "a part")
    text = (
        f"Half of the mass lies on {percent(low)} to {percent(high)} of the image, by phase: one "
        f"token alone shows {part} of what the stage does."
    )
    if not result.is_final:
        first = result.phases[0].field
        return f"So far, {images_text(first)}: " + text[0].lower() + text[1:]
    return text
