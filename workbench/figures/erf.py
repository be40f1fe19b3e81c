"""Panel 2: effective receptive fields of two schemes, their difference and the radial curve."""

from __future__ import annotations

import numpy as np

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

DECADES = 4  # shown below the peak; what lies lower gets the darkest colour, said under the maps
MAX_CELLS = 128  # cells a side sent to the browser
CONTOUR_CELL_PX = 8  # contours of a few images' gradients are noise at single pixels


def density_level(mass: np.ndarray, share: float) -> float:
    """Smallest cell mass of the densest cells that together hold `share` of the total."""
    ordered = np.sort(mass.ravel())[::-1]
    cumulative = np.cumsum(ordered, dtype=np.float64)
    reached = np.searchsorted(cumulative, share * cumulative[-1])
    return float(ordered[min(reached, len(ordered) - 1)])


def _contours(result: ErfResult, colour: str) -> list[Json]:
    """Lines around the densest cells that hold 50 % (solid) and 90 % (dotted) of the mass."""
    cell = max(CONTOUR_CELL_PX, bin_px(result))
    mass = block_sum(result.mass, cell)
    traces: list[Json] = []
    for share, dash in ((0.5, "solid"), (0.9, "dot")):
        trace = heatmap(mass, cell, 0, 1, type="contour", name=f"{share:.0%} of the mass")
        for key in ("zmin", "zmax"):
            del trace[key]
        level = density_level(mass, share)
        trace |= {
            "contours": {"type": "constraint", "operation": "=", "value": level},
            "line": {"color": colour, "width": 1.4, "dash": dash, "smoothing": 0.6},
            "fillcolor": "rgba(0,0,0,0)",
        }
        traces.append(trace)
    return traces


def bin_px(result: ErfResult) -> int:
    """Side of a drawn cell in input pixels: the smallest of 2, 4, 8, ... that fits the budget."""
    size = 2
    while max(result.mass.shape) / size > MAX_CELLS:
        size *= 2
    return size


def _log_mass(mass: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log10(mass)


def _map(key: str, result: ErfResult, zmax: float, cell: int) -> Json:
    height, width = result.mass.shape
    z = np.maximum(_log_mass(block_sum(result.mass, cell)), zmax - DECADES)
    trace = heatmap(z, cell, zmax - DECADES, zmax, colorscale=colorscale(CIVIDIS), name=key)
    return {
        "key": f"erf-{key}",
        "figure": {
            "data": [trace, *_contours(result, "#ffffff")],
            "layout": map_layout(height, width),
        },
        "left": {"text": scan_short(result.provenance.scan), "tone": key},
        "right": {"text": f"50 %: {significant(result.metrics['radius50_px'], 2)} px"},
        "read": {"trace": 0, "cell": cell, "power": 10, "unit": "of the mass"},
        "cell": result.stride,
    }


def _difference(a: ErfResult, b: ErfResult, cell: int) -> Json:
    height, width = a.mass.shape
    delta = block_sum(a.mass, cell) - block_sum(b.mass, cell)
    shown = -np.sign(delta) * np.sqrt(np.abs(delta))  # A teal at the low end, B orange at the high
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
    layout = curve_layout("distance, px", "mass within, %")
    layout["yaxis"] |= {"range": [0, 102], "tickvals": [0, 50, 90]}
    layout["xaxis"] |= {"rangemode": "tozero", "ticksuffix": "", "hoverformat": ".0f"}
    return {"data": data, "layout": layout}


def _weights_note(a: ErfResult, b: ErfResult) -> str:
    if a.provenance.is_random or b.provenance.is_random:
        return "Random weights: the imprint of the scan, nothing learned."
    same = a.provenance.weights_sha256 == b.provenance.weights_sha256
    swapped = [r for r in (a, b) if r.provenance.trained_scan != r.provenance.scan]
    if same and swapped:
        text = f"{scan_in_text(swapped[0].provenance.scan)} is not what it was trained with."
        return "Same weights; " + text
    return "Each scheme with the weights trained for it."


def _sentence(a: ErfResult, b: ErfResult) -> str:
    name_a, name_b = (scan_in_text(r.provenance.scan) for r in (a, b))
    area_a, area_b = a.metrics["area90"], b.metrics["area90"]
    text = (
        f"90 % of the mass lies on {percent(area_a)} of the image with {name_a}, "
        f"{percent(area_b)} with {name_b}. "
    )
    if not (a.is_final and b.is_final):
        return text + f"So far {a.n_images} and {b.n_images} images."
    return text + _weights_note(a, b)


def erf_panel(a: ErfResult, b: ErfResult) -> Json:
    """The panel for schemes A and B at the same token, on one colour scale."""
    height, width = a.mass.shape
    cell = bin_px(a)
    zmax = float(max(_log_mass(block_sum(r.mass, cell)).max() for r in (a, b)))
    images = f"{a.n_images} photos" if a.n_images != 1 else "1 photo"
    rows = [
        [label, *(percent(r.metrics[key]) for r in (a, b))]
        for label, key in (("densest 50 % on", "area50"), ("densest 90 % on", "area90"))
    ]
    return {
        "id": "erf",
        "title": "Effective receptive field",
        "badges": [{"text": f"stage {a.stage}, token ({a.y}, {a.x}), {images}", "tone": "muted"}],
        "stage": a.stage,
        "input": [height, width],
        "maps": [_map("a", a, zmax, cell), _map("b", b, zmax, cell), _difference(a, b, cell)],
        "scale": {
            "stops": list(CIVIDIS),
            "low": f"≤ {10 ** (zmax - DECADES):.1e}",
            "high": f"{10**zmax:.1e}",
            "label": f"share per {cell} × {cell} px, log · lines: densest 50 %, 90 %",
        },
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
