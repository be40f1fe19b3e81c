"""The attribution tab's check: does the map say what the network uses, and does it need the
network?"""

from __future__ import annotations

import numpy as np

from workbench.figures.theme import Json, curve_layout, significant
from workbench.results import FaithfulnessCurve, FaithfulnessResult, RandomisationResult

NAMES = {"map": ("this map", "@a"), "random": ("random order", "@muted"), "edges": ("edges", "@d")}
STAGE_COLOURS = ("@b", "@c", "@gate", "@conv", "@residual")  # none of the colours above


def faithfulness_panel(
    result: FaithfulnessResult, sanity: RandomisationResult | None = None
) -> Json:
    """Insertion and deletion curves, their areas beside the controls, and the sanity check."""
    where = "the input" if result.map_name == "input" else map_words(result.map_name)
    badges = [
        {"text": f"map of {where}, “{result.target_name}”", "tone": "muted"},
        {
            "text": f"missing pixels: {result.baseline}",
            "tone": "muted",
            "tip": f"Bands: 5 to 95 % of {result.n_random} random orders",
        },
    ]
    return {
        "id": "lab_attr_faith",
        "title": "Is the map faithful?",
        "input": list(result.provenance.input_size),
        "badges": badges,
        "plot": {
            "key": "faithfulness",
            "figure": {"data": _curves(result) + _sanity(sanity), "layout": _layout(sanity)},
            "alt": "Insertion and deletion curves beside random order and edges",
            "heading": "insertion · deletion" + (" · weights made random" if sanity else ""),
            "legend": [
                {"text": NAMES[curve.name][0], "colour": NAMES[curve.name][1]}
                for curve in result.curves
            ]
            + [
                {"text": map_words(name), "colour": stage_colour(i)}
                for i, name in enumerate(sanity.map_names if sanity else ())
            ],
        },
        "table": _table(result),
        "sentence": " ".join(filter(None, (result.verdict, sanity.verdict if sanity else ""))),
        "notes": [note for note in (result.note, sanity.note if sanity else "") if note],
        "is_live": not result.is_final or bool(sanity and not sanity.is_final),
    }


def map_words(name: str) -> str:
    """ "stage2" -> "stage 2"; "input" stays."""
    return name.replace("stage", "stage ")


def stage_colour(i: int) -> str:
    return STAGE_COLOURS[i % len(STAGE_COLOURS)]


def _curves(result: FaithfulnessResult) -> list[Json]:
    data = []
    for curve in result.curves:
        name, colour = NAMES[curve.name]
        for kind, axes in (("insertion", ""), ("deletion", "2")):
            low, high = (getattr(curve, f"{kind}_{end}") for end in ("low", "high"))
            if low.size:
                bare: Json = {"line": {"width": 0}, "hoverinfo": "skip"}
                data.append(_line(result.shares, low, axes) | bare)
                fill: Json = {"fill": "tonexty", "fillcolor": "rgba(120,130,145,.2)"}
                data.append(_line(result.shares, high, axes) | bare | fill)
            width = 2 if curve.name == "map" else 1.3
            line: Json = {"line": {"color": colour, "width": width}, "name": name}
            values = getattr(curve, kind)
            data.append(_line(result.shares, values, axes) | line | {"hovertemplate": "%{y:.2f}"})
    return data


def _line(x: np.ndarray, y: np.ndarray, axes: str) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [round(100 * float(v), 2) for v in x],
        "y": _rounded(y),
        "xaxis": f"x{axes}",
        "yaxis": f"y{axes}",
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    """Four decimals; a gap in the line where there is no number."""
    return [round(float(v), 4) if np.isfinite(v) else None for v in values]


def _sanity(result: RandomisationResult | None) -> list[Json]:
    if result is None:
        return []
    steps = [step.removeprefix("stage ") for step in result.steps[: len(result.similarity)]]
    data: list[Json] = []
    # Within the band a correlation is chance; dotted, that of each map with an edge detector.
    chance = float(np.nanmax(result.chance, initial=0.0))
    bare: Json = {"line": {"width": 0}, "hoverinfo": "skip"}
    fill: Json = {"fill": "tonexty", "fillcolor": "rgba(120,130,145,.2)"}
    for sign, style in ((-1, bare), (1, bare | fill)):
        data.append(_by_step(steps, np.full(len(steps), sign * chance)) | style)
    for i, name in enumerate(result.map_names):
        for values, what, width, dash in (
            (result.similarity, map_words(name), 1.6, "solid"),
            (result.edges, f"{map_words(name)} with edges", 1.0, "dot"),
        ):
            line = {"color": stage_colour(i), "width": width, "dash": dash}
            hover = {"name": what, "hovertemplate": f"{what} %{{y:.2f}}<extra></extra>"}
            data.append(_by_step(steps, values[:, i]) | {"line": line} | hover)
    return data


def _by_step(steps: list[str], values: np.ndarray) -> Json:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": steps,
        "y": _rounded(values),
        "xaxis": "x3",
        "yaxis": "y3",
    }


def _layout(sanity: RandomisationResult | None) -> Json:
    n = 3 if sanity else 2
    gap = 0.07
    width = (1 - gap * (n - 1)) / n
    domains = [[i * (width + gap), i * (width + gap) + width] for i in range(n)]
    layout = curve_layout("pixels inserted, %", "")
    layout["hovermode"] = "closest"
    layout["xaxis"] |= {"domain": domains[0], "range": [0, 100]}
    layout["yaxis"] |= {"range": [0, 1.02]}
    other = curve_layout("pixels removed, %", "")
    layout["xaxis2"] = other["xaxis"] | {"domain": domains[1], "range": [0, 100], "anchor": "y2"}
    layout["yaxis2"] = other["yaxis"] | {"range": [0, 1.02], "anchor": "x2"}
    if sanity:
        third = curve_layout("random from the head down to (stage)", "")
        layout["xaxis3"] = third["xaxis"] | {
            "domain": domains[2],
            "anchor": "y3",
            "type": "category",
            "tickangle": 0,
        }
        layout["yaxis3"] = third["yaxis"] | {"range": [-1.02, 1.02], "anchor": "x3"}
    return layout


def _table(result: FaithfulnessResult) -> Json:
    columns = ["", "insertion ↑", "deletion ↓", "infidelity ↓", "sensitivity ↓"]
    return {
        "columns": [{"text": text} for text in columns],
        "rows": [_row(curve) for curve in result.curves],
    }


def _row(curve: FaithfulnessCurve) -> list[str]:
    numbers = (curve.insertion_auc, curve.deletion_auc, curve.infidelity, curve.sensitivity)
    return [
        NAMES[curve.name][0],
        *(significant(value) if np.isfinite(value) else "" for value in numbers),
    ]
