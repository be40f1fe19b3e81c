"""Panel 2: effective receptive fields of two schemes, their difference and the radial curve."""

from __future__ import annotations

import numpy as np

from workbench.figures.erf_maps import (
    Scale,
    contour_traces,
    scale_json,
    scale_of,
    signed_root,
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
from workbench.labels import scan_in_text, scan_short
from workbench.results import ErfResult


def _map(key: str, result: ErfResult, scale: Scale) -> Json:
    height, width = result.mass.shape
    trace = scale.trace(result, colorscale=colorscale(CIVIDIS), name=key)
    return {
        "key": f"erf-{key}",
        "figure": {
            "data": [trace, *contour_traces(result)],
            "layout": map_layout(height, width),
        },
        "left": {"text": scan_short(result.provenance.scan), "tone": key},
        "right": {"text": f"50 %: {significant(result.metrics['radius50_px'], 2)} px"},
        "read": scale.read(),
        "cell": result.stride,
    }


def _difference(a: ErfResult, b: ErfResult, cell: int) -> Json:
    height, width = a.mass.shape
    delta = block_sum(a.mass, cell) - block_sum(b.mass, cell)
    shown = -signed_root(delta)  # A teal at the low end, B orange at the high
    limit = float(np.abs(shown).max()) or 1.0
    trace = heatmap(shown, cell, -limit, limit, colorscale=colorscale(DIVERGING), name="difference")
    names = [scan_short(r.provenance.scan) for r in (a, b)]
    return {
        "key": "erf-difference",
        "figure": {"data": [trace], "layout": map_layout(height, width)},
        "left": {"text": "difference"},
        "right": {"text": "signed √"},
        "read": {"trace": 0, "cell": cell, "power": -2, "unit": f"of the mass, {names[0]} less"},
        "cell": a.stride,
    }


def _radial(a: ErfResult, b: ErfResult) -> Json:
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": np.round(r.radius_px, 2).tolist(),
            "y": np.round(100 * r.radial_mass, 3).tolist(),
            "line": {"color": f"@{key}", "width": 2},
            "name": scan_short(r.provenance.scan),
            "hovertemplate": "%{y:.1f} %",
        }
        for key, r in (("a", a), ("b", b))
    ]
    layout = curve_layout("within a distance, px", "mass, %")
    layout["yaxis"] |= {"range": [0, 102], "tickvals": [0, 50, 90]}
    layout["xaxis"] |= {"rangemode": "tozero", "ticksuffix": "", "hoverformat": ".0f"}
    return {"data": data, "layout": layout}


def _sentence(a: ErfResult, b: ErfResult) -> str:
    name_a, name_b = (scan_in_text(r.provenance.scan) for r in (a, b))
    area_a, area_b = a.metrics["area90"], b.metrics["area90"]
    text = (
        f"90 % of the mass lies on {percent(area_a)} of the image with {name_a}, "
        f"{percent(area_b)} with {name_b}. "
    )
    if not (a.is_final and b.is_final):
        return text + f"So far {a.n_images} and {b.n_images} images."
    return text + weights_note([a, b])


def erf_panel(a: ErfResult, b: ErfResult) -> Json:
    """The panel for schemes A and B at the same token, on one colour scale."""
    height, width = a.mass.shape
    scale = scale_of([a, b], "log")
    images = f"{a.n_images} photos" if a.n_images != 1 else "1 photo"
    rows = [
        [label, *(percent(r.metrics[key]) for r in (a, b))]
        for label, key in (("densest 50 % on", "area50"), ("densest 90 % on", "area90"))
    ]
    bar = scale_json(scale, "")
    bar["label"] = f"share per {scale.cell} × {scale.cell} px, log · lines: densest 50 %, 90 %"
    del bar["ticks"]
    return {
        "id": "erf",
        "title": "Effective receptive field",
        "badges": [{"text": f"stage {a.stage}, token ({a.y}, {a.x}), {images}", "tone": "muted"}],
        "stage": a.stage,
        "input": [height, width],
        "maps": [_map("a", a, scale), _map("b", b, scale), _difference(a, b, scale.cell)],
        "scale": bar,
        "plot": {"key": "radial", "figure": _radial(a, b), "alt": "Mass within a radius"},
        "table": {
            "columns": [
                {"text": "share of the image"},
                {"text": scan_short(a.provenance.scan), "tone": "a"},
                {"text": scan_short(b.provenance.scan), "tone": "b"},
            ],
            "rows": rows,
        },
        "sentence": _sentence(a, b),
        "notes": [r.note for r in (a, b) if r.note],
    }
