"""The ERF tab's curves: mass by distance with its band, and how the numbers settled."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from workbench.figures.erf_lab import check_fields
from workbench.figures.erf_maps import field_names, in_text
from workbench.figures.theme import Json, curve_layout, significant
from workbench.results import ErfResult

MAX_CURVE_POINTS = 200
DASHES = {"a": "solid", "b": "solid", "c": "solid", "d": "dash"}  # the fourth not by colour alone


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
    check_fields(fields, keys)
    first = fields[0]
    names = field_names(fields)
    legend = [
        {"colour": f"@{key}", "text": name} for key, name in zip(keys, names, strict=True)
    ] + [{"colour": "@muted", "text": "uniform"}]
    data = _radial(fields, names, keys) + _convergence(fields, names, keys)
    n_bootstrap = max(r.n_bootstrap for r in fields)
    band = f"band: 90 % interval, {n_bootstrap:,} resamples"
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
