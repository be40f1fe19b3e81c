"""The ERF tab's fields side by side on one scale, with their differences to the first.

Its other panels stand in erf_curves.py, erf_numbers.py, erf_phases.py and erf_paths.py.
"""

from __future__ import annotations

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
    heatmap,
    map_layout,
    percent,
    significant,
)
from workbench.results import ErfResult

REACH_COLOUR = "#8be9fd"  # light enough on cividis, and none of its own colours
GATES = {"live": "gates live", "frozen": "gates frozen", "none": "no gates"}
PARTS = ("objective", "rectification", "averaging", "transform", "metric")


def erf_lab_panel(fields: Sequence[ErfResult], *, scale: str, keys: Sequence[str]) -> Json:
    """Two to four fields on one colour scale and the difference of each to the first.

    `keys` are the slots, whose colours the fields have: "a" to "d"; all fields have one input size.
    """
    check_fields(fields, keys)
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


def check_fields(fields: Sequence[ErfResult], keys: Sequence[str]) -> None:
    """Raises ValueError unless the fields can stand side by side."""
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
