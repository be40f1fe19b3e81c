"""The export of a view: every number of the open tab (JSON, npz, CSV) and its pictures (PNG)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench import permalink
from workbench.attribution_lab import PARTS
from workbench.export import save_results
from workbench.figures.paper import render
from workbench.files import tables
from workbench.photos import prepare
from workbench.progress import CancelToken, result_of
from workbench.runtime import Workbench
from workbench.view import View

N_ERF_IMAGES = 8


def compute_all(
    wb: Workbench, view: View, token: CancelToken | None = None, as_shown: bool = False
) -> dict[str, Any]:
    """Results of the view's tab by name; from the cache where the page has shown them.

    `as_shown`: fields whose run was stopped are taken as far as they came, as the page shows them.
    """
    return TABS[view.tab](wb, view, token, as_shown)


def _overview(
    wb: Workbench, view: View, token: CancelToken | None, as_shown: bool
) -> dict[str, Any]:
    profiles = result_of(wb.profile_pair(view, token))
    return {
        "scan_a": wb.scan(view, "a"),
        "scan_b": wb.scan(view, "b"),
        "prediction": wb.predict(view, "a"),
        "attribution": wb.attribution(view, "a", token),
        "profile_a": profiles[0],
        "profile_b": profiles[1],
        "erf_a": result_of(wb.erf(view, "a", N_ERF_IMAGES, token)),
        "erf_b": result_of(wb.erf(view, "b", N_ERF_IMAGES, token)),
        **_tokens(wb, view),
    }


def _tokens(wb: Workbench, view: View) -> dict[str, Any]:
    """What the token in focus costs, as the panels of the path show it."""
    return {f"token_{slot}": cost for slot, cost in wb.kernel_lab.tokens(view).items()}


def _scan_lab(
    wb: Workbench, view: View, token: CancelToken | None, as_shown: bool
) -> dict[str, Any]:
    return {
        **{f"scan_{which}": wb.scan(view, which) for which in view.scans},
        **{f"reach_{which}": wb.reach(view, which) for which in view.scans},
        "schemes": result_of(wb.scheme_table(view, token)),
        **_tokens(wb, view),
    }


def _erf_lab(
    wb: Workbench, view: View, token: CancelToken | None, as_shown: bool
) -> dict[str, Any]:
    """Fields of every network; phases and paths of the first."""
    comparison = wb.erf_lab.kept(view) if as_shown else None
    if comparison is None or len(comparison.fields) < 1 + len(view.erf_rivals):
        comparison = result_of(wb.erf_lab.compare(view, token))
    return {
        **{f"erf_{key}": field for key, field in comparison.fields.items()},
        "erf_phases": result_of(wb.erf_lab.phases(view, token)),
        "erf_paths": result_of(wb.erf_lab.paths(view, token)),
    }


def _attribution_lab(
    wb: Workbench, view: View, token: CancelToken | None, as_shown: bool
) -> dict[str, Any]:
    """Maps of the pair, paths, attention under both schemes, and the checks."""
    parts = [part for part in PARTS if part != "randomisation" or view.attr_sanity]
    return wb.attribution_lab.results(view, parts, token)


def _profiler_lab(
    wb: Workbench, view: View, token: CancelToken | None, as_shown: bool
) -> dict[str, Any]:
    """Trace, sweep and, where two runs are chosen, their comparison."""
    sweep = wb.profiler_lab.kept_sweep(view) if as_shown else None
    found = {
        "trace": result_of(wb.profiler_lab.trace(view, token)),
        "sweep": sweep or result_of(wb.profiler_lab.sweep(view, token)),
    }
    if comparison := wb.profiler_lab.compared(view):
        found["comparison"] = comparison
    return found


def _kernel_lab(
    wb: Workbench, view: View, token: CancelToken | None, as_shown: bool
) -> dict[str, Any]:
    """Roofline with its measured points, the setting's floors, the token's cost and the kernel."""
    lab = wb.kernel_lab
    return {
        "roofline": result_of(lab.roofline(view, token)),
        "what_if": lab.what_if(view),
        "kernel": result_of(lab.inspect(view, token)),
        **_tokens(wb, view),
    }


TABS = {
    "overview": _overview,
    "scan": _scan_lab,
    "erf": _erf_lab,
    "attribution": _attribution_lab,
    "profiler": _profiler_lab,
    "kernels": _kernel_lab,
}


def file_name(view: View) -> str:
    tab = "" if view.tab == "overview" else f"-{view.tab}"
    return f"{view.model}-{view.photo}{tab}-stage{view.stage}-y{view.y}-x{view.x}.zip"


def write_bundle(wb: Workbench, view: View, folder: Path, as_shown: bool = False) -> Path:
    """Write the zip of a resolved view into `folder` and return its path."""
    results = compute_all(wb, view, as_shown=as_shown)
    rgb = prepare(wb.photos.get(view.photo), view.size, view.fit).rgb
    path = folder / file_name(view)
    save_results(
        path,
        results,
        extra={"link": permalink.write(view)},
        pictures=render(results, rgb, scale=view.erf_scale),
        tables=tables(results),
    )
    return path
