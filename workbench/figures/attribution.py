"""Panel 3: attribution maps of the four stages on one scale, and the paths the evidence took."""

from __future__ import annotations

import numpy as np

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
from workbench.results import AttributionResult

REFERENCE_CELL_PX = 32  # maps of different strides are compared per area of one stage-4 token
PATHS = (
    ("scan", "scan path", "@a"),
    ("conv", "convolution", "@conv"),
    ("residual", "residual", "@residual"),
)


def per_area(values: np.ndarray, stride: int) -> np.ndarray:
    """Map values per 32 x 32 input pixels, so that stages of any stride share one scale."""
    return values * (REFERENCE_CELL_PX / stride) ** 2


def _maps(result: AttributionResult, rgb: np.ndarray) -> tuple[list[Json], float]:
    height, width = result.provenance.input_size
    photo = photo_data_uri(rgb)
    scaled = [per_area(m, s) for m, s in zip(result.maps, result.strides, strict=True)]
    top = max(float(m.max()) for m in scaled) or 1.0
    maps = []
    for i, (values, stride) in enumerate(zip(scaled, result.strides, strict=True)):
        trace = heatmap(values, stride, 0, top, colorscale=colorscale(CIVIDIS), opacity=0.6)
        rows, columns = values.shape
        maps.append(
            {
                "key": f"attribution-{i + 1}",
                "figure": {"data": [trace], "layout": map_layout(height, width, photo)},
                "left": {"text": f"stage {i + 1}", "stage": i + 1},
                "right": {"text": f"{rows} × {columns}"},
                "read": {"trace": 0, "cell": stride, "unit": "logit per 32 × 32 px"},
                "cell": stride,
                "stage": i + 1,
            }
        )
    return maps, top


def _evidence(result: AttributionResult) -> Json:
    labels = [f"{e.stage}.{e.block}" for e in result.evidence]
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": labels,
            "x": [getattr(e, field) for e in result.evidence],
            "name": label,
            "marker": {"color": colour, "line": {"width": 0}},
            "hovertemplate": f"block %{{y}}, {label}: %{{x:.3g}} logit<extra></extra>",
        }
        for field, label, colour in PATHS
    ]
    layout = curve_layout("evidence for the class, logit", "")
    layout |= {"barmode": "relative", "hovermode": "closest", "bargap": 0.35}
    layout["margin"] = {"l": 34, "r": 10, "t": 2, "b": 30}
    layout["yaxis"] |= {"autorange": "reversed", "type": "category", "gridcolor": "rgba(0,0,0,0)"}
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": "@muted", "zerolinewidth": 1}
    return {"data": data, "layout": layout}


def path_shares(result: AttributionResult) -> dict[str, float]:
    """Share of each path in the summed size of the evidence over all EVSS blocks."""
    sums = {field: sum(abs(getattr(e, field)) for e in result.evidence) for field, _, _ in PATHS}
    total = sum(sums.values()) or 1.0
    return {field: value / total for field, value in sums.items()}


def _sentence(result: AttributionResult) -> str:
    if not result.evidence:
        return "No block of this network joins a scan and a convolution path."
    shares = path_shares(result)
    text = (
        f"For “{result.target_name}”, {percent(shares['scan'])} of the evidence in the EVSS blocks "
        f"came through the scan, {percent(shares['conv'])} through the convolution, "
        f"{percent(shares['residual'])} past both."
    )
    if result.provenance.is_random:
        text += " Random weights."
    return text


def attribution_panel(result: AttributionResult, rgb: np.ndarray) -> Json:
    """The panel for one class; `rgb` is the network input `[H, W, 3]` uint8."""
    height, width = result.provenance.input_size
    maps, top = _maps(result, rgb)
    target = f"“{result.target_name}” ({percent(result.probability)})"
    panel: Json = {
        "id": "attribution",
        "title": "Attribution",
        "badges": [{"text": f"{result.method} for {target}", "tone": "muted"}],
        "input": [height, width],
        "maps": maps,
        "scale": {
            "stops": list(CIVIDIS),
            "low": "0",
            "high": significant(top),
            "label": "logit per 32 × 32 px, one scale",
        },
        "sentence": _sentence(result),
        "notes": [result.note] if result.note else [],
    }
    if result.evidence:
        worst = max(e.error for e in result.evidence)
        panel["plot"] = {
            "key": "evidence",
            "figure": _evidence(result),
            "alt": "Evidence through each path of each EVSS block",
            "legend": [{"text": label, "colour": colour} for _, label, colour in PATHS],
            "heading": "evidence by EVSS block and path",
        }
        panel["badges"].append({"text": f"✓ adds up within {worst:.0e}", "tone": "ok"})
    return panel
