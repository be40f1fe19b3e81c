"""What every picture file shares: how it is written, the line of provenance, map axes."""

from __future__ import annotations

import io

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from workbench.figures.theme import LIGHT
from workbench.results import Provenance

DPI = 300
FOCUS = "#ff2d78"


def png(figure: Figure) -> bytes:
    return _file(figure, "png", {"Software": None})


def svg(figure: Figure) -> bytes:
    return _file(figure, "svg", {"Date": None, "Creator": None})


def _file(figure: Figure, form: str, metadata: dict[str, None]) -> bytes:
    """The same figure gives the same bytes: no date, and fixed names inside an SVG."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "workbench", "svg.fonttype": "none"}):
        figure.savefig(buffer, format=form, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


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
