"""Components of the profiler tab; profiler.js and profiler_timeline.js draw them."""

from __future__ import annotations

from workbench.ui.components.plotly_panel import Json


class SweepLab(Json):
    """Times along one axis with their ratio, points and environment, without events."""

    kind = "profsweep"


class TraceTables(Json):
    """Tables of a trace to switch, search and sort. Event `pick`: {stage, keep}."""

    kind = "proftrace"


class TraceTimeline(Json):
    """Events over time with memory below, drawn and searched in the browser, without events."""

    kind = "proftimeline"


class RunsLab(Json):
    """Stored runs and the comparison of two.

    Events: `choose` {do: "compare", a, b}, {do: "rename", id, name} or {do: "delete", id};
    `save` {id}: the run as a file.
    """

    kind = "profruns"
