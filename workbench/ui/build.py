"""Layout of the page and its events. What an event does stands in handlers.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr

from workbench.analyses.attribution.methods import FIELDS
from workbench.erf_lab import MAX_RIVALS
from workbench.runtime import Workbench
from workbench.settings import Settings
from workbench.ui import texts
from workbench.ui.api import add_api
from workbench.ui.components.kernels import KernelInspector, RooflineLab, TokenCosts
from workbench.ui.components.plotly_panel import (
    AttributionMaps,
    BlockPaths,
    DataTable,
    ErfLab,
    Header,
    PhotoPicker,
    PlotlyPanel,
    ScanLab,
    Sidebox,
    Status,
    Story,
    TabParts,
    static_files,
)
from workbench.ui.components.profiler import (
    RunsLab,
    SweepLab,
    TraceTables,
    TraceTimeline,
)
from workbench.ui.first_paint import stored_panels, waiting_panel
from workbench.ui.handlers import MOST_PROBABLE, NO_SCAN, Handlers
from workbench.ui.panels import ORDER, TITLES, focus_of
from workbench.ui.state import Sessions
from workbench.view import (
    FITS,
    MAX_ERF_IMAGES,
    MAX_PROF_BATCH,
    MAX_PROF_STEPS,
    SIZES,
    STAGES,
    View,
)

SIDEBAR_PX = 232
RUNS_AT_ONCE = 8  # generators that may wait for the device's lock
Stored = dict[str, dict[str, Any]]  # panel name -> payload of the stored example
ERF_CONTROLS = [
    "erf_unit",
    "erf_definition",
    "erf_gates",
    "erf_images",
    "erf_rivals",
    "erf_scale",
]
ATTRIBUTION_CONTROLS = [
    "contrast",
    "attr_method",
    "attr_rival",
    "attr_block",
    "attr_channel",
    "attr_sanity",
]
PROFILER_CONTROLS = [
    "prof_subject",
    "prof_axis",
    "prof_passes",
    "prof_batch",
    "prof_dtype",
    "prof_steps",
]
# One control for every field that any method has; those of the method in view are shown.
FIELD_CONTROLS = [f"attr_field_{name}" for name in FIELDS]
FIT_LABELS = {"crop": "centre", "whole": "whole"}


def theme() -> gr.themes.Base:
    sans = ["system-ui", "-apple-system", "Segoe UI", "DejaVu Sans", "sans-serif"]
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        font=sans,
        font_mono=["ui-monospace", "Menlo", "monospace"],
        text_size=gr.themes.sizes.text_sm,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_md,
    ).set(
        body_background_fill="var(--wb-page)",
        body_background_fill_dark="var(--wb-page)",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e",
        button_primary_text_color="#ffffff",
    )


def _sidebar(wb: Workbench, handlers: Handlers, view: View) -> dict[str, Any]:
    scans = handlers.scan_list()
    c: dict[str, Any] = {}
    with gr.Column(elem_id="wb-controls"):
        c["photos"] = PhotoPicker(handlers.photo_choices(view), elem_id="wb-photos")
        c["upload"] = gr.UploadButton(
            "Add a photo (or paste, or drop)", file_types=["image"], size="sm", elem_id="wb-upload"
        )
        with gr.Row():
            c["size"] = gr.Dropdown(list(SIZES), value=view.size, label="Size, px", min_width=70)
            c["fit"] = gr.Dropdown(
                [(FIT_LABELS[fit], fit) for fit in FITS], value=view.fit, label="Crop", min_width=90
            )
        c["model"] = gr.Radio(
            handlers.model_list(view.model),
            value=view.model,
            label="Model",
            elem_classes="wb-seg",
        )
        weights = [(choice.label, choice.name) for choice in wb.weights(view.model)]
        c["weights"] = gr.Dropdown(weights, value=view.weights, label="Weights")
        c["scan_a"] = gr.Dropdown(
            scans, value=view.scan_a, label="Scan A", elem_classes="wb-scheme-a"
        )
        c["scan_b"] = gr.Dropdown(
            scans, value=view.scan_b, label="Scan B", elem_classes="wb-scheme-b"
        )
        c["scan_c"] = gr.Dropdown(
            handlers.scan_list(NO_SCAN),
            value=view.scan_c or NO_SCAN[1],
            label="Scan C",
            elem_classes="wb-scheme-c wb-only-scan",
        )
        c["stage"] = gr.Radio(
            [(str(stage), stage) for stage in STAGES],
            value=view.stage,
            label="Stage",
            elem_classes="wb-seg",
        )
        c["focus"] = Sidebox(texts.focus_box(view), elem_id="wb-focus")
        with gr.Row(elem_id="wb-runrow"):
            c["run"] = gr.Button(
                "Run", variant="primary", size="sm", min_width=60, elem_id="wb-run"
            )
            c["stop"] = gr.Button("Stop", size="sm", min_width=50, elem_id="wb-stop")
        c["top"] = Sidebox(elem_id="wb-top5")
        c["target"] = gr.Dropdown(
            [MOST_PROBABLE], value=MOST_PROBABLE, label="Class attributed", elem_id="wb-target"
        )
        c["download"] = gr.DownloadButton(
            "Download", elem_id="wb-download", elem_classes="wb-offscreen"
        )
    return c


def _overview(stored: Stored, handlers: Handlers, view: View) -> dict[str, Any]:
    with gr.Column(elem_id="wb-grid"):
        names = ("scan", "erf", "attribution", "profile")
        return {name: PlotlyPanel(stored.get(name), elem_id=f"wb-{name}") for name in names}


def _scan_lab(stored: Stored, handlers: Handlers, view: View) -> dict[str, Any]:
    kinds = {
        "lab_scan": ScanLab,
        "lab_reach": PlotlyPanel,
        "lab_story": Story,
        "lab_schemes": DataTable,
    }
    with gr.Column(elem_id="wb-lab-scan"):
        return {
            name: kind(waiting_panel(name, TITLES[name]), elem_id=f"wb-{name}")
            for name, kind in kinds.items()
        }


def _erf_controls(handlers: Handlers, view: View) -> dict[str, Any]:
    """What the receptive-field lab computes, in one line above its panels."""

    def pairs(words: dict[str, str]) -> list[tuple[str, str]]:
        return [(text, name) for name, text in words.items()]

    c: dict[str, Any] = {}
    with gr.Row(elem_id="wb-erf-bar"):
        c["erf_unit"] = gr.Dropdown(
            handlers.unit_list(view), value=view.erf_unit, label="Token of", min_width=150
        )
        c["erf_rivals"] = gr.Dropdown(
            handlers.rival_list(view),
            value=list(view.erf_rivals),
            multiselect=True,
            max_choices=MAX_RIVALS,
            label="Compare with",
            min_width=300,
            scale=3,
            elem_id="wb-erf-rivals",
        )
        c["erf_definition"] = gr.Dropdown(
            pairs(texts.DEFINITIONS), value=view.erf_definition, label="Definition", min_width=140
        )
        c["erf_gates"] = gr.Dropdown(
            pairs(texts.GATES), value=view.erf_gates, label="SE gates", min_width=105
        )
        c["erf_scale"] = gr.Dropdown(
            pairs(texts.SCALES), value=view.erf_scale, label="Colours", min_width=85
        )
        c["erf_images"] = gr.Number(
            view.erf_images,
            label="Photos",
            minimum=1,
            maximum=MAX_ERF_IMAGES,
            precision=0,
            min_width=70,
        )
        with gr.Column(min_width=180, elem_id="wb-erf-photos"):
            c["erf_set"] = Sidebox(
                texts.set_box(view, handlers.wb.erf_lab.images(view).words), elem_id="wb-erf-set"
            )
            c["erf_upload"] = gr.UploadButton(
                "Average over your photos",
                file_types=["image"],
                file_count="multiple",
                size="sm",
                elem_id="wb-erf-upload",
            )
    return c


def _erf_lab(stored: Stored, handlers: Handlers, view: View) -> dict[str, Any]:
    kinds = {"lab_erf": ErfLab, "lab_erf_numbers": DataTable, "lab_erf_paths": BlockPaths}
    c = _erf_controls(handlers, view)
    with gr.Column(elem_id="wb-lab-erf"):
        return c | {
            name: kinds.get(name, PlotlyPanel)(
                waiting_panel(name, TITLES[name]), elem_id=f"wb-{name}"
            )
            for name in ORDER["erf"]
        }


def _attribution_controls(handlers: Handlers, view: View) -> dict[str, Any]:
    """Method, class and what stands beside, in one line; below it the method's own fields."""
    c: dict[str, Any] = {}
    values = handlers.attribution_updates(view)
    with gr.Column(elem_id="wb-attr-bar"):
        with gr.Row():
            c["attr_method"] = gr.Dropdown(label="Method", min_width=180, **values["attr_method"])
            c["contrast"] = gr.Dropdown(label="Against class", min_width=130, **values["contrast"])
            c["attr_rival"] = gr.Dropdown(label="Beside", min_width=170, **values["attr_rival"])
            c["attr_block"] = gr.Dropdown(label="Block", min_width=90, **values["attr_block"])
            c["attr_channel"] = gr.Number(
                view.attr_channel, label="Channel", minimum=0, precision=0, min_width=80
            )
            c["attr_sanity"] = gr.Checkbox(
                view.attr_sanity, label="Randomise the weights", min_width=120
            )
        with gr.Row(elem_id="wb-attr-fields"):
            for name in FIELDS:
                shown = values[f"attr_field_{name}"]
                kind = gr.Dropdown if "choices" in shown else gr.Number
                c[f"attr_field_{name}"] = kind(min_width=90, **shown)
        c["attr_why_not"] = gr.HTML(texts.not_offered(), elem_id="wb-attr-whynot", padding=False)
    return c


def _attribution_lab(stored: Stored, handlers: Handlers, view: View) -> dict[str, Any]:
    kinds = {"lab_attr": AttributionMaps, "lab_attr_paths": BlockPaths}
    c = _attribution_controls(handlers, view)
    with gr.Column(elem_id="wb-lab-attr"):
        return c | {
            name: kinds.get(name, PlotlyPanel)(
                waiting_panel(name, TITLES[name]), elem_id=f"wb-{name}"
            )
            for name in ORDER["attribution"]
        }


def _profiler_controls(handlers: Handlers, view: View) -> dict[str, Any]:
    """What is swept and traced, in one line above the panels, and files that are brought."""
    c: dict[str, Any] = {}
    values = handlers.profiler_updates(view)
    with gr.Row(elem_id="wb-prof-bar"):
        c["prof_subject"] = gr.Dropdown(label="Sweep of", min_width=120, **values["prof_subject"])
        c["prof_axis"] = gr.Dropdown(label="Over", min_width=140, **values["prof_axis"])
        c["prof_passes"] = gr.Dropdown(label="Passes", min_width=150, **values["prof_passes"])
        c["prof_dtype"] = gr.Dropdown(label="Sweep in", min_width=105, **values["prof_dtype"])
        for name, label, high in (
            ("prof_batch", "Batch", MAX_PROF_BATCH),
            ("prof_steps", "Traced steps", MAX_PROF_STEPS),
        ):
            c[name] = gr.Number(
                label=label, minimum=1, maximum=high, precision=0, min_width=75, **values[name]
            )
        with gr.Column(min_width=170, elem_id="wb-prof-files"):
            c["prof_set"] = Sidebox(texts.trace_box(view), elem_id="wb-prof-set")
            with gr.Row():
                c["prof_upload"] = gr.UploadButton(
                    "Open a trace",
                    file_types=[".json", ".gz"],
                    size="sm",
                    min_width=80,
                    elem_id="wb-prof-upload",
                )
                c["prof_import"] = gr.UploadButton(
                    "Import a run",
                    file_types=[".zip"],
                    size="sm",
                    min_width=80,
                    elem_id="wb-prof-import",
                )
    return c


def _parts_of_profiler(current: str) -> dict[str, Any]:
    switch = TabParts(texts.profiler_parts(current), elem_classes="wb-tabswitch")
    return {f"parts_{current}": switch}


def _profiler_lab(stored: Stored, handlers: Handlers, view: View) -> dict[str, Any]:
    kinds = {
        "lab_prof_sweep": SweepLab,
        "lab_prof_trace": TraceTables,
        "lab_prof_timeline": TraceTimeline,
        "lab_prof_runs": RunsLab,
    }
    c = _parts_of_profiler("profiler") | _profiler_controls(handlers, view)
    with gr.Column(elem_id="wb-lab-prof"):
        return c | {
            name: kind(waiting_panel(name, TITLES[name]), elem_id=f"wb-{name}")
            for name, kind in kinds.items()
        }


def _kernel_lab(stored: Stored, handlers: Handlers, view: View) -> dict[str, Any]:
    kinds = {
        "lab_kern_roof": RooflineLab,
        "lab_kern_token": TokenCosts,
        "lab_kern_code": KernelInspector,
    }
    c = _parts_of_profiler("kernels")
    with gr.Column(elem_id="wb-lab-kern"):
        return c | {
            name: kind(waiting_panel(name, TITLES[name]), elem_id=f"wb-{name}")
            for name, kind in kinds.items()
        }


LAYOUTS = {
    "overview": _overview,
    "scan": _scan_lab,
    "erf": _erf_lab,
    "attribution": _attribution_lab,
    "profiler": _profiler_lab,
    "kernels": _kernel_lab,
}


def _events(handlers: Handlers, c: dict[str, Any]) -> None:
    """Wire the controls: a change sets the view, then the panels are recomputed."""
    controls = ["view", "model", "weights", "scan_a", "scan_b", "scan_c", "stage", "size", "fit"]
    controls += [*ERF_CONTROLS, *ATTRIBUTION_CONTROLS, *PROFILER_CONTROLS, *FIELD_CONTROLS]
    controls_out = [c[name] for name in [*controls, "photos", "focus", "erf_set", "prof_set"]]
    run_names = [*TITLES, "header", "top", "target", "status", "shown"]
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

    def by_name(fn: Callable[..., Any]) -> Callable[..., Any]:
        """Handlers name their outputs; Gradio wants components."""

        @wraps(fn)
        def named(*args: Any, **kwargs: Any) -> dict[Any, Any]:
            updates = fn(*args, **kwargs)
            return {c[name]: value for name, value in updates.items()}

        return named

    @wraps(handlers.run)
    def run(view: View, shown: dict[str, str], request: gr.Request) -> Iterator[dict[Any, Any]]:
        for updates in handlers.run(view, shown, request):
            yield {c[name]: value for name, value in updates.items()}

    def then_run(event: Any) -> None:
        event.then(
            run,
            inputs=[c["view"], c["shown"]],
            outputs=[c[name] for name in run_names],
            concurrency_limit=RUNS_AT_ONCE,
            concurrency_id="device",
            trigger_mode="multiple",
            **private,
        )

    quick: dict[str, Any] = private | {"trigger_mode": "multiple", "concurrency_limit": None}
    then_run(c["demo"].load(by_name(handlers.load), outputs=controls_out, **private))
    changed = [c[name].input for name in ("model", "weights", "scan_a", "scan_b", "scan_c")]
    changed += [c[name].input for name in ("stage", "size", "fit", "target")]
    changed += [c[name].input for name in ERF_CONTROLS if name != "erf_images"]
    changed += [c["erf_images"].submit, c["attr_channel"].submit]
    changed += [c[name].input for name in ATTRIBUTION_CONTROLS if name != "attr_channel"]
    for name in [*PROFILER_CONTROLS, *FIELD_CONTROLS]:
        changed.append(c[name].submit if isinstance(c[name], gr.Number) else c[name].input)
    inputs = [c[name] for name in ["target", *controls]]
    then_run(gr.on(changed, by_name(handlers.change), inputs, controls_out, **quick))
    then_run(c["run"].click(by_name(handlers.again), inputs, controls_out, **quick))
    for component, event, handler in (
        ("photos", "choose", handlers.choose_photo),
        ("top", "choose", handlers.choose_target),
        ("focus", "choose", handlers.clear_focus),
        ("erf_set", "choose", handlers.clear_set),
        ("prof_set", "choose", handlers.clear_trace),
    ):
        listen = getattr(c[component], event)
        then_run(listen(by_name(handler), [c["view"]], controls_out, **quick))
    uploads: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("upload", handlers.upload),
        ("erf_upload", handlers.upload_set),
        ("prof_upload", handlers.bring),
        ("prof_import", handlers.import_run),
    )
    for name, take in uploads:
        then_run(c[name].upload(by_name(take), [c["view"], c[name]], controls_out, **quick))
    then_run(
        c["lab_prof_runs"].choose(by_name(handlers.choose_runs), [c["view"]], controls_out, **quick)
    )
    c["lab_prof_runs"].save(handlers.export_run, [c["view"]], [c["download"]], **private).success(
        None, None, None, js=DOWNLOAD_JS, **private
    )
    for name in ("header", "parts_profiler", "parts_kernels"):
        then_run(c[name].pick(by_name(handlers.choose_tab), [c["view"]], controls_out, **quick))
    for name in ORDER["kernels"]:
        then_run(
            c[name].choose(by_name(handlers.choose_kernel), [c["view"]], controls_out, **quick)
        )
    then_run(
        c["lab_schemes"].choose(by_name(handlers.choose_scheme), [c["view"]], controls_out, **quick)
    )
    for name in TITLES:
        then_run(c[name].pick(by_name(handlers.pick), [c["view"]], controls_out, **quick))
    c["stop"].click(handlers.stop, None, None, queue=False, **private)
    c["header"].choose(
        handlers.export, [c["view"]], [c["download"]], concurrency_id="device", **private
    ).success(None, None, None, js=DOWNLOAD_JS, **private)


DOWNLOAD_JS = """() => {
  const wait = (tries) => {
    const link = document.querySelector('a#wb-download, #wb-download a, #wb-download');
    if (link && (link.href || tries <= 0)) link.click();
    else setTimeout(() => wait(tries - 1), 100);
  };
  setTimeout(() => wait(20), 150);
}"""


def build_app(settings: Settings, wb: Workbench) -> gr.Blocks:
    """The page and the HTTP API over one workbench."""
    handlers = Handlers(wb, Sessions())
    view = wb.resolve(View())
    stored = stored_panels(wb, settings.example)
    gr.set_static_paths(static_files())
    with gr.Blocks(
        title=texts.TITLE,
        fill_width=True,
        analytics_enabled=False,
        delete_cache=(3600, 86400),
    ) as demo:
        c: dict[str, Any] = {"demo": demo, "view": gr.State(view), "shown": gr.State({})}
        with gr.Sidebar(width=SIDEBAR_PX):
            c |= _sidebar(wb, handlers, view)
        c["header"] = Header(texts.header([]), elem_id="wb-header")
        for tab, layout in LAYOUTS.items():
            with gr.Column(elem_classes=f"wb-tab wb-tab-{tab}"):
                c |= layout(stored, handlers, view)
        c["status"] = Status(
            {"link": "", "focus": focus_of(wb, view), "panels": {}}, elem_id="wb-status"
        )
        add_api(wb)  # first, so that no event of the page takes a public name
        _events(handlers, c)
    return demo
