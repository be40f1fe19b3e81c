"""What picture files share: how they are written, provenance, axes in inches, signed colours."""

from __future__ import annotations

import io
import textwrap

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from workbench.figures.theme import LIGHT
from workbench.results import Provenance

DPI = 300
FOCUS = "#ff2d78"
SMALL = 6.5  # pt
# Inches: the longer side of a map, around it its title, caption and colour bar, numbers of an axis.
MAP_INCHES = 2.05
LEFT, GAP, AXIS = 0.1, 0.2, 0.5
TITLE, CAPTION, BAR, UNDER = 0.26, 0.42, 0.08, 0.86


def png(figure: Figure) -> bytes:
    return _file(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    return _file(figure, "svg", {"Date": None, "Creator": None})


def _file(figure: Figure, form: str, metadata: dict[str, None]) -> bytes:
    """The same figure gives the same bytes: no date, fixed names inside an SVG, settled axes."""
    _settle(figure)
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "workbench", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=form, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def _settle(figure: Figure) -> None:
    """The layout's solver orders its constraints by address: its last digits differ from run to
    run, and the names of an SVG's clip paths are made of all digits."""
    if figure.get_layout_engine() is None:
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        place = axes.get_position(original=True)
        left, bottom, width, height = (round(float(v), 6) for v in place.bounds)
        axes.set_position((left, bottom, width, height))


def above_the_footer() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(rect=(0.0, 0.06, 1.0, 0.94))


def footer(figure: Figure, p: Provenance, scans: str) -> None:
    parts = (p.model, p.weights, scans, f"photo {p.image}", p.device, p.backend, p.definition)
    text = " · ".join(part for part in parts if part)
    figure.text(0.01, 0.01, text, fontsize=5, color=LIGHT["@muted"], wrap=True)


def map_axes(axes: Axes, title: str, height: int, width: int, colour: str = "@ink") -> None:
    axes.set_title(title, fontsize=8, loc="left", color=LIGHT[colour])
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])


def focus(axes: Axes, y: int, x: int, stride: int) -> None:
    axes.add_patch(
        Rectangle(
            (x * stride, y * stride), stride, stride, fill=False, edgecolor=FOCUS, linewidth=1
        )
    )


class Sheet:
    """A figure whose axes are placed in inches from its top left corner."""

    def __init__(self, width: float, height: float, text: str) -> None:
        """`text` is the line of provenance, wrapped at the bottom, below `height`."""
        lines = textwrap.wrap(text, max(40, int(27 * width)))
        self.width, self.height = width, height + 0.1 + 0.09 * len(lines)
        self.figure = Figure(figsize=(self.width, self.height))
        self.figure.text(
            LEFT / self.width,
            0.05 / self.height,
            "\n".join(lines),
            fontsize=5,
            color=LIGHT["@muted"],
            va="bottom",
        )

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        bottom = self.height - top - height
        place = (left, bottom, width, height)
        w, h = self.width, self.height
        axes = self.figure.add_axes((place[0] / w, place[1] / h, place[2] / w, place[3] / h))
        for spine in axes.spines.values():
            spine.set_linewidth(0.5)
        axes.tick_params(labelsize=SMALL, width=0.5, length=2, pad=1.5)
        return axes


def caption(axes: Axes, text: str) -> None:
    axes.set_xlabel(text, fontsize=SMALL, color=LIGHT["@muted"], labelpad=3, linespacing=1.3)


def signed_norm(limit: float) -> FuncNorm:
    """Colours by the signed root, with true values at the ticks of a bar."""
    return FuncNorm((_root, _square), vmin=-limit, vmax=limit)


def _root(values: np.ndarray) -> np.ndarray:
    rooted: np.ndarray = np.sign(values) * np.sqrt(np.abs(values))
    return rooted


def _square(values: np.ndarray) -> np.ndarray:
    squared: np.ndarray = np.sign(values) * np.square(values)
    return squared
