"""The panels of a tab, one by one: ask the workbench, hand the result to its figure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.bundle import N_ERF_IMAGES
from workbench.erf_lab import DETAIL_IMAGES
from workbench.errors import BadInputError, NotAvailableError, WorkbenchError
from workbench.figures import attribution_panel, erf_panel, profile_panel, scan_panel
from workbench.figures.attention import attention_panel
from workbench.figures.attribution_lab import attribution_lab_panel
from workbench.figures.attribution_paths import attribution_paths_panel
from workbench.figures.erf_curves import erf_curves_panel
from workbench.figures.erf_lab import erf_lab_panel
from workbench.figures.erf_numbers import erf_numbers_panel
from workbench.figures.erf_paths import erf_paths_panel
from workbench.figures.erf_phases import erf_phases_panel
from workbench.figures.faithfulness import faithfulness_panel
from workbench.figures.kernel_code import inspect_panel
from workbench.figures.kernel_roofline import roofline_panel
from workbench.figures.kernel_token import token_panel
from workbench.figures.profiler_runs import runs_panel
from workbench.figures.profiler_sweep import sweep_panel
from workbench.figures.profiler_trace import timeline_panel, trace_panel
from workbench.figures.reach import reach_panel
from workbench.figures.scan_lab import scan_lab_panel, story_panel
from workbench.figures.scheme_table import scheme_table_panel
from workbench.photos import prepare
from workbench.progress import CancelToken, Progress
from workbench.results import ErfResult, FaithfulnessResult, MapsResult
from workbench.runtime import Workbench
from workbench.view import View

# Tab -> its panels in the order in which they are computed: cheap first.
ORDER = {
    "overview": ("scan", "attribution", "profile", "erf"),
    "scan": ("lab_scan", "lab_reach", "lab_story", "lab_schemes"),
    "erf": ("lab_erf", "lab_erf_curves", "lab_erf_numbers", "lab_erf_phases", "lab_erf_paths"),
    "attribution": ("lab_attr", "lab_attr_attention", "lab_attr_paths", "lab_attr_faith"),
    "profiler": ("lab_prof_runs", "lab_prof_trace", "lab_prof_timeline", "lab_prof_sweep"),
    "kernels": ("lab_kern_token", "lab_kern_roof", "lab_kern_code"),
}
# Panels that one computation fills together; it stands under the first one's name.
TOGETHER = {
    "lab_erf": ("lab_erf", "lab_erf_curves", "lab_erf_numbers"),
    "lab_prof_trace": ("lab_prof_trace", "lab_prof_timeline"),
}
STORY_SIDE = 8  # tokens of the coarse grid on which the paper's figure is told


@dataclass(frozen=True, slots=True)
class Update:
    """Something new for the page: a finished or growing panel, or the progress of one."""

    panel: str
    payload: dict[str, Any] | None = None
    text: str = ""
    share: float = 0.0
    is_done: bool = False


def result_id(payload: dict[str, Any]) -> str:
    """Digest of what a panel shows; the page redraws only when it changes."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def done(payload: dict[str, Any]) -> Update:
    return Update(payload["id"], payload | {"result_id": result_id(payload)}, is_done=True)


def focus_of(wb: Workbench, view: View) -> dict[str, int]:
    _, _, stride = wb.stage_shape(view, view.stage)
    y, x = view.y or 0, view.x or 0
    return {"stage": view.stage, "y": y, "x": x, "stride": stride}


def input_rgb(wb: Workbench, view: View) -> np.ndarray:
    """The network's input before normalisation, uint8 `[H, W, 3]`."""
    return prepare(wb.photos.get(view.photo), view.size, view.fit).rgb


def failed(panel: str, title: str, message: str) -> Update:
    payload = {
        "id": panel,
        "title": title,
        "badges": [{"text": "not computed", "tone": "bad"}],
        "input": [1, 1],
        "empty": {"title": "Not computed", "text": message},
        "sentence": "",
    }
    return done(payload)


def _words(progress: Progress) -> str:
    text = progress.what
    if progress.seconds_left is not None and progress.seconds_left >= 1:
        text += f", {progress.seconds_left:.0f} s left"
    return text


def scan_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    a, b = wb.scan(view, "a"), wb.scan(view, "b")
    place = (view.y or 0, view.x or 0)
    yield done(scan_panel(a, b, input_rgb(wb, view), *place, wb.kernel_lab.tokens(view)))


def attribution_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    yield Update("attribution", text="forward and backward", share=0.3)
    result = wb.attribution(view, "a", token)
    yield done(attribution_panel(result, input_rgb(wb, view)))


def profile_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    for item in wb.profile_pair(view, token):
        if isinstance(item, Progress):
            yield Update("profile", text=_words(item), share=item.done / max(1, item.total))
        else:
            yield done(profile_panel(*item))


def erf_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    """Both fields grow together, so the comparison is fair from the first picture on."""
    runs = [wb.erf(view, which, N_ERF_IMAGES, token) for which in ("a", "b")]
    latest: list[ErfResult | None] = [None, None]
    while True:
        for i, run in enumerate(runs):
            known = latest[i]
            if known is None or not known.is_final:
                latest[i] = next(run, known)
                count = sum(r.n_images for r in latest if r)
                yield Update(
                    "erf",
                    text=f"{count} of {2 * N_ERF_IMAGES} gradients",
                    share=count / (2 * N_ERF_IMAGES),
                )
        a, b = latest
        assert a is not None and b is not None
        update = done(erf_panel(a, b))
        if a.is_final and b.is_final:
            yield update
            return
        yield Update(
            "erf",
            update.payload,
            text=f"{a.n_images} of {N_ERF_IMAGES} photos",
            share=a.n_images / N_ERF_IMAGES,
        )


def lab_scan_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    results = [wb.scan(view, which) for which in view.scans]
    place = (view.y or 0, view.x or 0)
    yield done(scan_lab_panel(results, input_rgb(wb, view), *place, wb.kernel_lab.tokens(view)))


def lab_reach_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    yield Update("lab_reach", text="forward pass", share=0.3)
    yield done(reach_panel(wb.reach(view, "a"), wb.reach(view, "b"), input_rgb(wb, view)))


def lab_story_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    atrous, full = wb.story(view, STORY_SIDE)
    yield done(story_panel(atrous, full, input_rgb(wb, view)))


def lab_schemes_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    """The table appears at once without times, which follow."""
    current = tuple(view.scans.values())
    for item in wb.scheme_table(view, token):
        if isinstance(item, Progress):
            yield Update("lab_schemes", text=_words(item), share=item.done / max(1, item.total))
        elif item.is_final:
            yield done(scheme_table_panel(item, current))
        else:
            panel = done(scheme_table_panel(item, current)).payload
            yield Update("lab_schemes", panel, text="measuring")


def lab_erf_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    """Maps, curves and numbers of all networks grow together, photo by photo."""
    n_networks, n_images = 1 + len(view.erf_rivals), len(wb.erf_lab.images(view))
    maps, curves, numbers = TOGETHER["lab_erf"]
    for comparison in wb.erf_lab.compare(view, token):
        share = comparison.done / (n_networks * n_images)
        fields, keys = list(comparison.fields.values()), list(comparison.fields)
        if not comparison.is_shown:
            yield Update(maps, text="first photo", share=share)
            continue
        text = f"{comparison.done} of {n_networks * n_images} gradients"
        shown = erf_lab_panel(fields, scale=view.erf_scale, keys=keys)
        shown["notes"] = [*shown.get("notes", ()), *comparison.problems]
        panels = (shown, erf_curves_panel(fields, keys), erf_numbers_panel(fields, keys))
        for name, panel in zip((maps, curves, numbers), panels, strict=True):
            update = done(panel)
            if not comparison.is_final:
                update = Update(name, update.payload, text=text, share=share)
            yield update


def lab_erf_phases_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    for result in wb.erf_lab.phases(view, token):
        n = result.phases[0].field.n_images if result.phases else 0
        yield _grown(erf_phases_panel(result, view.erf_scale), result.is_final, n, view)


def lab_erf_paths_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    for result in wb.erf_lab.paths(view, token):
        yield _grown(erf_paths_panel(result), result.is_final, result.n_images, view)


def lab_attr_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    """The method's maps; a rival's follow, or the reason why there are none."""
    yield Update("lab_attr", text="forward and backward", share=0.2)
    found: dict[str, MapsResult] = {}
    photos = wb.attribution_lab.photos(view)
    try:
        for key, result in wb.attribution_lab.compare(view, token):
            found[key] = result
            update = done(attribution_lab_panel(found, photos, view.stage))
            is_last = len(found) == len(photos)
            yield update if is_last else Update("lab_attr", update.payload, "the other", 0.5)
    except (BadInputError, NotAvailableError) as error:
        if not found:
            raise
        panel = attribution_lab_panel(found, photos, view.stage)
        panel["notes"] = [*panel.get("notes", ()), str(error)]
        yield done(panel)


def lab_attr_attention_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    yield Update("lab_attr_attention", text="the scan's own inputs", share=0.3)
    found = wb.attribution_lab.attentions(view, token)
    yield done(attention_panel(found, input_rgb(wb, view)))


def lab_attr_paths_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    yield Update("lab_attr_paths", text="forward and backward", share=0.3)
    yield done(attribution_paths_panel(wb.attribution_lab.evidence(view, None, token)))


def lab_attr_faith_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    """Insertion and deletion of the map and its controls; on demand the weights made random."""
    name = "lab_attr_faith"
    result: FaithfulnessResult | None = None
    for item in wb.attribution_lab.faithfulness(view, token):
        if isinstance(item, Progress):
            yield Update(name, text=_words(item), share=item.done / max(1, item.total))
            continue
        result = item
        update = done(faithfulness_panel(result))
        if not result.is_final or view.attr_sanity:
            update = Update(name, update.payload, text="controls", share=0.5)
        yield update
    if not view.attr_sanity or result is None:
        return
    for found in wb.attribution_lab.randomisation(view, token):
        if isinstance(found, Progress):
            yield Update(name, text=_words(found), share=found.done / max(1, found.total))
            continue
        update = done(faithfulness_panel(result, found))
        if not found.is_final:
            update = Update(name, update.payload, text="weights made random", share=0.5)
        yield update


def lab_prof_runs_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    """The list of kept runs, and two of them compared."""
    lab = wb.profiler_lab
    problems: tuple[str, ...] = ()
    comparison = sweeps = None
    try:
        comparison = lab.compared(view)
        sweeps = lab.compared_sweeps(view)
    except WorkbenchError as error:
        problems = (str(error),)
    runs, notes = lab.listed(), (*lab.notes(), *problems)
    yield done(runs_panel(runs, comparison, notes, view.prof_runs, sweeps))


def lab_prof_trace_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    """Tables and timeline of one trace; the list of runs has one more."""
    for item in wb.profiler_lab.trace(view, token):
        if isinstance(item, Progress):
            share = item.done / max(1, item.total)
            yield Update("lab_prof_trace", text=_words(item), share=share)
            continue
        yield done(trace_panel(item, view.stage, view.attr_block))
        yield done(timeline_panel(item, **wb.profiler_lab.ways_out(item)))
        yield from lab_prof_runs_updates(wb, view, token)


def lab_prof_sweep_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    """The plot grows point by point; the list of runs has one more at the end."""
    name = "lab_prof_sweep"
    for item in wb.profiler_lab.sweep(view, token):
        if isinstance(item, Progress):
            yield Update(name, text=_words(item), share=item.done / max(1, item.total))
        elif item.is_final:
            yield done(sweep_panel(item))
            yield from lab_prof_runs_updates(wb, view, token)
        else:
            yield Update(name, done(sweep_panel(item)).payload, text="measuring")


def lab_kern_token_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    why, costs = "", wb.kernel_lab.tokens(view)
    if not costs:
        try:
            wb.kernel_lab.token(view)
        except (NotAvailableError, BadInputError) as error:
            why = str(error)
    yield done(token_panel(costs, wb.kernel_lab.setting(view), why))


def lab_kern_roof_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    """The cost model's floors at once; what this machine measures follows."""
    name = "lab_kern_roof"
    pair, setting = wb.kernel_lab.pair(view), wb.kernel_lab.setting(view)
    for item in wb.kernel_lab.roofline(view, token):
        if isinstance(item, Progress):
            yield Update(name, text=_words(item), share=item.done / max(1, item.total))
            continue
        update = done(roofline_panel(item, *pair, setting))
        yield update if item.is_final else Update(name, update.payload, text="measuring")


def lab_kern_code_updates(wb: Workbench, view: View, token: CancelToken) -> Iterator[Update]:
    """The chosen kernel as soon as it is compiled; the other targets follow."""
    name, lab = "lab_kern_code", wb.kernel_lab
    choices_b = lab.choices(view.kern_target_b or view.kern_target)
    for item in lab.inspect(view, token):
        if isinstance(item, Progress):
            yield Update(name, text=_words(item), share=item.done / max(1, item.total))
            continue
        update = done(inspect_panel(item, choices_b))
        yield update if item.is_final else Update(name, update.payload, text="compiling")


def _grown(panel: dict[str, Any], is_final: bool, n: int, view: View) -> Update:
    """A panel over a few photos, `n` of which are done."""
    update = done(panel)
    if is_final:
        return update
    planned = min(view.erf_images, DETAIL_IMAGES)
    text = f"{n} of {planned} photos"
    return Update(update.panel, update.payload, text=text, share=n / planned)


UPDATES = {
    "lab_attr": lab_attr_updates,
    "lab_attr_attention": lab_attr_attention_updates,
    "lab_attr_paths": lab_attr_paths_updates,
    "lab_attr_faith": lab_attr_faith_updates,
    "lab_erf": lab_erf_updates,
    "lab_erf_phases": lab_erf_phases_updates,
    "lab_erf_paths": lab_erf_paths_updates,
    "lab_scan": lab_scan_updates,
    "lab_reach": lab_reach_updates,
    "lab_story": lab_story_updates,
    "lab_schemes": lab_schemes_updates,
    "scan": scan_updates,
    "attribution": attribution_updates,
    "profile": profile_updates,
    "erf": erf_updates,
    "lab_prof_runs": lab_prof_runs_updates,
    "lab_prof_trace": lab_prof_trace_updates,
    "lab_prof_sweep": lab_prof_sweep_updates,
    "lab_kern_token": lab_kern_token_updates,
    "lab_kern_roof": lab_kern_roof_updates,
    "lab_kern_code": lab_kern_code_updates,
}
TITLES = {
    "lab_scan": "Scan paths side by side",
    "lab_reach": "Reach",
    "lab_story": "The paper's idea in three steps",
    "lab_schemes": "Every scheme on this map",
    "lab_erf": "Effective receptive fields",
    "lab_erf_curves": "Distance and convergence",
    "lab_erf_numbers": "Numbers",
    "lab_erf_phases": "The phases of one cell",
    "lab_erf_paths": "Paths by block",
    "lab_attr": "Attribution maps",
    "lab_attr_attention": "Implicit attention",
    "lab_attr_paths": "Paths by block",
    "lab_attr_faith": "Is the map faithful?",
    "lab_prof_sweep": "Latency sweep",
    "lab_prof_trace": "Where the time goes",
    "lab_prof_timeline": "Timeline",
    "lab_prof_runs": "Kept runs",
    "lab_kern_token": "From token to cost",
    "lab_kern_roof": "Roofline, and what if",
    "lab_kern_code": "Kernel inspector",
    "scan": "Scan paths",
    "attribution": "Attribution",
    "profile": "Profile",
    "erf": "Effective receptive field",
}
