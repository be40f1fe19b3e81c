"""Our own Gradio components: panels that keep Plotly nodes, zoom and clicks, and small views.

`gr.Plot` drops animation frames, clicks and zoom (Gradio 6.31), so a panel is a `gr.HTML` with a
static template; plotly_panel.js writes all that it shows, with textContent, from one JSON string.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from workbench.view import TABS

SCRIPTS = tuple(
    Path(__file__).with_name(name)
    for name in (
        "plotly_panel.js",
        "panel_parts.js",
        "map_view.js",
        "scan_path.js",
        "scan_strip.js",
        "scan_player.js",
        "scan_lab.js",
        "data_table.js",
        "erf_lab.js",
        "attribution_lab.js",
        "profiler_timeline.js",
        "profiler.js",
        "kernel_floors.js",
        "kernel_roofline.js",
        "kernel_token.js",
        "kernel_lines.js",
        "kernel_diff.js",
        "kernel_code.js",
        "kernel_listing.js",
        "story.js",
        "page_parts.js",
    )
)
STYLES = tuple(
    Path(__file__).with_name(name)
    for name in (
        "plotly_panel.css",
        "profiler.css",
        "kernel_roofline.css",
        "kernel_listing.css",
    )
)
PLOTLY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
MAX_PANEL_BYTES = 1_000_000  # one panel's JSON


def static_files() -> list[Path]:
    """Files that the browser may read, listed singly."""
    return [PLOTLY, *SCRIPTS]


def head() -> str:
    """What Gradio loads once, before any component: Plotly as installed, our panels, tab rules."""
    scripts = "".join(
        f'<script src="/gradio_api/file={path}?v={int(path.stat().st_mtime)}"></script>'
        for path in static_files()
    )
    # Rules about the body do not survive in Gradio's stylesheet, which it scopes to its container.
    hidden = ",".join(
        f'body:not([data-wb-tab="{tab}"]) .wb-tab-{tab},'
        f'body:not([data-wb-tab="{tab}"]) .wb-only-{tab}'
        for tab in TABS
    )
    return f"<style>{hidden} {{ display: none !important; }}</style>{scripts}"


class Json(gr.HTML):
    """A component whose value is a JSON string drawn by plotly_panel.js."""

    kind = "status"

    def __init__(self, value: dict[str, Any] | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("html_template", '<div class="wb-host"></div>')
        kwargs.setdefault("js_on_load", self.script())
        kwargs.setdefault("apply_default_css", False)
        kwargs.setdefault("head", head())
        super().__init__(dump(value) if value is not None else None, **kwargs)

    @classmethod
    def script(cls) -> str:
        # The names of the custom events must stand in this string for Gradio to accept listeners.
        events = "['pick', 'choose', 'save']"
        return (
            f"/* events {events} */ window.Workbench.mount('{cls.kind}', "
            "element.querySelector('.wb-host'), props, trigger, watch);"
        )

    def get_block_name(self) -> str:
        return "html"

    def api_info(self) -> dict[str, Any]:
        return {"type": "string"}


class PlotlyPanel(Json):
    """One panel. Event `pick`: {stage, y, x} in tokens, {stage, keep} or {stage, clear}."""

    kind = "panel"


class ScanLab(Json):
    """Schemes side by side under one player. Event `pick` as a panel's."""

    kind = "scanlab"


class DataTable(Json):
    """A sortable table with CSV download.

    Event `choose`: what the payload's "choose" says, for schemes {id: "scheme", scan, slot}.
    """

    kind = "datatable"


class ErfLab(Json):
    """Receptive fields side by side, with a difference to choose. Event `pick` as a panel's."""

    kind = "erflab"


class BlockPaths(Json):
    """Shares of the paths per block; a click on a bar shows that block's maps, in the browser."""

    kind = "erfpaths"


class AttributionMaps(Json):
    """Maps of a method over the photo, a rival's below, differences. Event `pick` as a panel's."""

    kind = "attrmaps"


class Story(Json):
    """The seed paper's figure as a guided view, without events."""

    kind = "story"


class PhotoPicker(Json):
    """Gallery thumbnails. Event `choose`: {id}."""

    kind = "photos"


class Header(Json):
    """Tabs, facts, Link, Export, help. Events `pick`: {tab}, `choose`: {id: "export"}."""

    kind = "header"


class Sidebox(Json):
    """Label and value rows with one sentence. Event `choose`: {id}."""

    kind = "sidebox"


class TabParts(Json):
    """The switch between the parts of a tab. Event `pick`: {tab}."""

    kind = "tabparts"


class Status(Json):
    """Invisible: link, progress of each panel."""

    kind = "status"


def dump(payload: dict[str, Any]) -> str:
    """Compact JSON; a panel over the byte budget is a defect of ours, so it fails loudly."""
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False)
    if len(text) > MAX_PANEL_BYTES:
        raise ValueError(f"panel {payload.get('id')}: {len(text):,} bytes of JSON, over 1 MB")
    return text
