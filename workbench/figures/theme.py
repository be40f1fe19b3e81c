"""One visual language: colours, scales, number formats and the parts that every panel shares.

A panel is a plain dict (JSON): Plotly figures, tables and sentences. Colours inside it are tokens
such as "@a"; the page replaces them by the CSS variables of the light or dark theme and `resolve`
by fixed colours for files.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

Json = dict[str, Any]

LIGHT: dict[str, str] = {
    "@a": "#0f766e",
    "@b": "#c2410c",
    "@c": "#6d4aa8",
    "@d": "#1d5fd1",
    "@a20": "#0f766e33",
    "@b20": "#c2410c33",
    "@c20": "#6d4aa833",
    "@d20": "#1d5fd133",
    "@ink": "#16202e",
    "@muted": "#5b6676",
    "@line": "#d5dbe3",
    "@conv": "#64748b",
    "@residual": "#b6c2d1",
    "@gate": "#d4a017",
    "@paper": "#ffffff",
    "@d0": "#0b5e57",
    "@d1": "#2f8a80",
    "@d2": "#74b8ae",
    "@d3": "#bcdcd6",
    "@d4": "#f4f3f0",
    "@d5": "#f2d3bd",
    "@d6": "#e3a17a",
    "@d7": "#cb6a3a",
    "@d8": "#9c3408",
    "@s0": "#1b4b96",
    "@s1": "#4578bb",
    "@s2": "#86add6",
    "@s3": "#c3d7ea",
    "@s4": "#f4f3f0",
    "@s5": "#f2cfd2",
    "@s6": "#e0929d",
    "@s7": "#c2536b",
    "@s8": "#941647",
}
GROUP_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe-Ito
CIVIDIS = (
    "#00224e", "#123570", "#3b496c", "#575d6d", "#707173",
    "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
)  # fmt: skip
# Scheme A (teal) against scheme B (orange), neutral at zero; nine steps, tokens because the
# neutral is the paper's: light on the light page, dark on the dark one.
DIVERGING = tuple(f"@d{i}" for i in range(9))
# Signed values that compare no schemes: blue below zero, red above.
SIGNED = tuple(f"@s{i}" for i in range(9))


def colorscale(stops: Sequence[str]) -> list[list[float | str]]:
    return [[i / (len(stops) - 1), colour] for i, colour in enumerate(stops)]


def significant(value: float, digits: int = 3) -> str:
    """Three significant digits without exponents where a reader would not expect one."""
    if not math.isfinite(value):
        return "n/a"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude >= 5 or magnitude < -4:
        return f"{value:.{digits - 1}e}"
    decimals = max(0, digits - 1 - magnitude)
    return f"{value:,.{decimals}f}"


def percent(share: float) -> str:
    """A share 0..1 as per cent with three significant digits; exact 0 and 100 stay short."""
    if not math.isfinite(share):
        return "not reached"
    if share >= 0.99995:
        return "100 %"
    return f"{significant(100 * share)} %"


def ordinal(n: int) -> str:
    suffix = "th" if 10 <= n % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n:,}{suffix}"


def photo_data_uri(rgb: np.ndarray, longest: int = 448) -> str:
    """JPEG data URI of an RGB image `[H, W, 3]` uint8, reduced to at most `longest` px a side."""
    image = Image.fromarray(rgb)
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def typed(values: np.ndarray) -> Json:
    """A 2-D array as the base64 typed array that Plotly reads."""
    data = np.ascontiguousarray(values, dtype="<f4")
    return {
        "dtype": "f4",
        "bdata": base64.b64encode(data.tobytes()).decode(),
        "shape": ", ".join(str(n) for n in data.shape),
    }


def block_sum(values: np.ndarray, bin_px: int) -> np.ndarray:
    """Sum of `[H, W]` over `bin_px` x `bin_px` blocks; the last block of a side may be smaller."""
    rows = np.add.reduceat(values, np.arange(0, values.shape[0], bin_px), axis=0)
    return np.add.reduceat(rows, np.arange(0, values.shape[1], bin_px), axis=1)


def map_layout(height: int, width: int, photo: str | None = None, opacity: float = 1.0) -> Json:
    """Axes in input pixels, row 0 on top, square pixels, with the photo underneath."""
    layout: Json = {
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "xaxis": {
            "range": [0, width],
            "visible": False,
            "constrain": "domain",
            "fixedrange": False,
        },
        "yaxis": {
            "range": [height, 0],
            "visible": False,
            "scaleanchor": "x",
            "constrain": "domain",
            "fixedrange": False,
        },
        "dragmode": "zoom",
        "hovermode": False,
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    if photo:
        layout["images"] = [
            {
                "source": photo,
                "xref": "x",
                "yref": "y",
                "x": 0,
                "y": 0,
                "sizex": width,
                "sizey": height,
                "sizing": "stretch",
                "layer": "below",
                "opacity": opacity,
            }
        ]
    return layout


def curve_layout(x_title: str, y_title: str) -> Json:
    axis: Json = {
        "color": "@muted",
        "gridcolor": "@line",
        "linecolor": "@line",
        "zeroline": False,
        "ticks": "",
        "tickfont": {"size": 10.5},
    }
    return {
        "margin": {"l": 40, "r": 10, "t": 6, "b": 30},
        "xaxis": {**axis, "title": {"text": x_title, "font": {"size": 10.5}, "standoff": 4}},
        "yaxis": {**axis, "title": {"text": y_title, "font": {"size": 10.5}, "standoff": 2}},
        "hovermode": "x unified",
        "showlegend": False,
        "dragmode": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "@muted", "size": 11, "family": "system-ui, sans-serif"},
    }


def heatmap(values: np.ndarray, bin_px: float, zmin: float, zmax: float, **trace: Any) -> Json:
    """Heat map of `[rows, columns]` whose cells are `bin_px` input pixels wide."""
    return {
        "type": "heatmap",
        "z": typed(values),
        "x0": bin_px / 2,
        "dx": bin_px,
        "y0": bin_px / 2,
        "dy": bin_px,
        "zmin": zmin,
        "zmax": zmax,
        "showscale": False,
        "hoverinfo": "none",
        **trace,
    }


def resolve(value: Any, palette: dict[str, str] = LIGHT) -> Any:
    """The same JSON with colour tokens replaced, for files that stand without the page's CSS."""
    if isinstance(value, dict):
        return {key: resolve(item, palette) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [resolve(item, palette) for item in value]
    if isinstance(value, str):
        return palette.get(value, value)
    return value
