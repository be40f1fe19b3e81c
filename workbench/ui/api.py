"""The HTTP API: sixteen endpoints with stable names, each one function of names and numbers.

Names come from the lists that `/info` returns; a scan may have any of its numbers, such as
"windows:size=3,reverse=2". `image` is a gallery name or a photo as a data URI
("data:image/png;base64,..."); paths and URLs are not accepted. Arrays are nested lists, `(y, x)`.
"""

from __future__ import annotations

import base64
import binascii
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

import kernels
from workbench import permalink
from workbench.analyses.attribution.methods import METHODS, NOT_OFFERED
from workbench.analyses.erf import DEFINITIONS
from workbench.bundle import write_bundle
from workbench.cli_profile import parse_values
from workbench.errors import BadInputError, WorkbenchError
from workbench.files import FORMATS, SPECIAL, result_files
from workbench.kernel_results import WhatIfResult
from workbench.photos import prepare
from workbench.profiler_results import RunComparison
from workbench.progress import result_of
from workbench.results import (
    AttributionResult,
    PredictionResult,
    ProfileResult,
    SchemeTableResult,
)
from workbench.runtime import Workbench
from workbench.view import View

SIGNIFICANT_DIGITS = 6
SCAN_FORMATS = tuple(form for form in FORMATS if form not in SPECIAL)
DEFAULT = View()
PARAMETERS: dict[str, tuple[Any, Any]] = {  # name -> (type, default) of the published signatures
    "model": (str, DEFAULT.model),
    "weights": (str, DEFAULT.weights),
    "image": (str, DEFAULT.photo),
    "size": (int, DEFAULT.size),
    "fit": (str, DEFAULT.fit),
    "scan": (str, DEFAULT.scan_a),
    "scan_b": (str, DEFAULT.scan_b),
    "scan_c": (str | None, None),
    "tab": (str, DEFAULT.tab),
    "stage": (int, DEFAULT.stage),
    "y": (int | None, None),
    "x": (int | None, None),
    "target": (int | None, None),
    "images": (int, DEFAULT.erf_images),
    "unit": (str, DEFAULT.erf_unit),
    "definition": (str, DEFAULT.erf_definition),
    "gates": (str, DEFAULT.erf_gates),
    "scale": (str, DEFAULT.erf_scale),
    "net": (str, ""),
    "nets": (str, ",".join(DEFAULT.erf_rivals)),
    "phases": (bool, False),
    "paths": (bool, False),
    "latency": (bool, True),
    "formats": (str, ""),
    "contrast": (int | None, None),
    "method": (str, ""),
    "options": (str, DEFAULT.attr_options),
    "beside": (str, DEFAULT.attr_rival),
    "block": (int, DEFAULT.attr_block),
    "channel": (int | None, None),
    "evidence": (bool, False),
    "attention": (bool, False),
    "faithfulness": (bool, False),
    "sanity": (bool, DEFAULT.attr_sanity),
    "subject": (str, DEFAULT.prof_subject),
    "axis": (str, DEFAULT.prof_axis),
    "values": (str, ""),
    "passes": (str, DEFAULT.prof_passes),
    "batch": (int, DEFAULT.prof_batch),
    "dtype": (str, DEFAULT.prof_dtype),
    "steps": (int, DEFAULT.prof_steps),
    "trace": (str, DEFAULT.prof_trace),
    "search": (str, ""),
    "action": (str, "list"),
    "run": (str, ""),
    "name": (str, ""),
    "file": (str, ""),
    "a": (str, ""),
    "b": (str, ""),
    "kernel": (str, DEFAULT.kern_a),
    "gpu": (str, DEFAULT.kern_target),
    "kernel_b": (str, DEFAULT.kern_b),
    "gpu_b": (str, DEFAULT.kern_target_b),
    "listing": (str, ""),
    "what_device": (str, DEFAULT.what_device),
    "what_size": (int, DEFAULT.what_size),
    "what_batch": (int, DEFAULT.what_batch),
    "what_step": (int, DEFAULT.what_step),
    "what_dtype": (str, DEFAULT.what_dtype),
    "what_passes": (str, DEFAULT.what_passes),
}


def plain(value: Any) -> Any:
    """A result as JSON values; floats keep 6 significant digits, not-a-number becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if np.isfinite(value) else None
    return value


def image_id(wb: Workbench, image: str) -> str:
    """Gallery name, or the id of the photo in a data URI."""
    if not isinstance(image, str):
        raise BadInputError(f"image is {type(image).__name__}; give a gallery name or a data URI.")
    if not image.startswith("data:"):
        return image
    return wb.photos.add(data_of("image", image), "image sent to the API").id


def data_of(name: str, uri: str) -> bytes:
    """The bytes of a data URI."""
    header, _, body = uri.partition(",")
    if not header.endswith(";base64"):
        raise BadInputError(f'{name} is a data URI without ";base64,"; encode the file in base64.')
    return decoded(name, body)


def decoded(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadInputError(f"{name} is not base64; encode the file.") from None


def trace_token(wb: Workbench, trace: str) -> str:
    """Token of a trace that the page knows, or of the one in a data URI."""
    if not trace.startswith("data:"):
        return trace
    data = data_of("trace", trace)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace sent to the API"
        path.write_bytes(data)
        return wb.profiler_lab.bring(path)


def check_type(name: str, value: object) -> None:
    """Raise `BadInputError` where a client sent another type than the published one."""
    kind = PARAMETERS[name][0]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        words = {
            str: "text",
            int: "a whole number",
            bool: "true or false",
            str | None: "text or null",
        }.get(kind, "a whole number or null")
        raise BadInputError(f"{name} is {str(value)[:40]!r}; give {words}.")


def listed(text: str) -> list[str]:
    """Names of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def listed_formats(text: str, allowed: tuple[str, ...]) -> list[str]:
    """Formats of a comma-separated list, all of them allowed."""
    given = listed(text)
    for name in given:
        if name not in allowed:
            raise BadInputError(
                f"There is no format {name[:20]!r}. Choose from: {', '.join(allowed)}."
            )
    return given


def endpoint(fn: Callable[..., Any], *names: str) -> Callable[..., dict]:
    """A function with the typed signature that `gr.api` publishes; it calls `fn(**arguments)`.

    Our errors reach the client as their sentence, without a traceback.
    """

    def call(*args: Any, **kwargs: Any) -> dict:
        arguments = bound.bind(*args, **kwargs)
        arguments.apply_defaults()
        try:
            for name, value in arguments.arguments.items():
                check_type(name, value)
            return plain(fn(**arguments.arguments))
        except (WorkbenchError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from None

    parameters = [
        inspect.Parameter(
            name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=PARAMETERS[name][1],
            annotation=PARAMETERS[name][0],
        )
        for name in names
    ]
    bound = inspect.Signature(parameters, return_annotation=dict)
    call.__signature__ = bound  # type: ignore[attr-defined]
    call.__annotations__ = {name: PARAMETERS[name][0] for name in names} | {"return": dict}
    call.__doc__ = fn.__doc__
    return call


def add_api(wb: Workbench) -> None:
    """Register the endpoints; called inside the Blocks context."""

    def view_of(image: str = DEFAULT.photo, **arguments: Any) -> View:
        """The view of parameters, which have the names that they have in a link."""
        fields = {permalink.PARAMETERS[name]: value for name, value in arguments.items()}
        return wb.resolve(View(photo=image_id(wb, image), **fields))

    def files_of(view: View, results: dict[str, Any], formats: list[str], name: str) -> dict:
        photo = wb.photos.get(view.photo)
        rgb = prepare(photo, view.size, view.fit).rgb
        title = f"{name}: {view.model}, {photo.title}"
        files = result_files(
            results, formats, name=name, title=title, rgb=rgb, scale=view.erf_scale
        )
        return {k: base64.b64encode(v).decode() for k, v in files.items()}

    def info() -> dict[str, Any]:
        """What can be asked for: models, their weights, scans, gallery photos, networks to compare
        fields with, definitions of a field, attribution methods with their options, backends, GPUs
        with their published rates, targets to compile for ("" or why not)."""
        return {
            "models": wb.models(),
            "weights": {m.name: wb.weights(m.name) for m in wb.models()},
            "scans": wb.scans(),
            "images": [
                {"id": p.id, "title": p.title, "credit": p.credit, "licence": p.licence}
                for p in wb.photos.list()
            ],
            "networks": wb.erf_lab.rivals(View()),
            "definitions": {name: d.line for name, d in DEFINITIONS.items()},
            "methods": METHODS,
            "methods_not_offered": NOT_OFFERED,
            "backends": kernels.backends(),
            "gpus": wb.kernel_lab.devices(),
            "gpu_targets": wb.kernel_lab.targets(),
            "device": wb.describe(View()).device_label,
        }

    def predict(**arguments: Any) -> PredictionResult:
        """Class probabilities of one photo."""
        return wb.predict(view_of(**arguments))

    def scan(formats: str, **arguments: Any) -> dict[str, Any]:
        """Scan path of one stage, read back from the operator that runs, with its metrics; "reach":
        what can influence token (y, x), by default the centre, and how much of it is left. With
        `formats`, such as "npz,png,svg,html", also "files": {name: base64}."""
        wanted = listed_formats(formats, SCAN_FORMATS)
        view = view_of(**arguments)
        results = {"scan_a": wb.scan(view), "reach_a": wb.reach(view)}
        answer = plain(results["scan_a"]) | {"reach": results["reach_a"]}
        if wanted:
            answer["files"] = files_of(view, results, wanted, "scan")
        return answer

    def schemes(latency: bool, **arguments: Any) -> SchemeTableResult:
        """Every scheme and `scan` on one stage's map: metrics, cost and, with `latency`, the time
        of one scan after a check against the reference (about ten seconds)."""
        return result_of(wb.scheme_table(view_of(**arguments), measure=latency))

    def erf(net: str, phases: bool, paths: bool, formats: str, **arguments: Any) -> dict[str, Any]:
        """Effective receptive field of token (y, x) of a stage ("unit" stage, or block1, or a path
        of a block: block1.scan), mean over `images` photos, by one of the named definitions, with
        squeeze-excitation gates live or frozen. `net`: another network at the same image point,
        such as "scan" (scheme `scan_b`), "random" or "timm:resnet18" (`/info` lists them).
        "phases": the tokens of one ES2D cell; "paths": the gradient by its path through each block.
        With `formats`, such as "npy,npz,png,svg,tex,csv", also "files": {name: base64}."""
        wanted = listed_formats(formats, FORMATS)
        view = view_of(**arguments)
        if net:
            view = wb.resolve(replace(view, erf_rivals=(net,)))
        results: dict[str, Any] = {"erf_a": result_of(wb.erf_lab.field(view, net or None))}
        if phases:
            results["erf_phases"] = result_of(wb.erf_lab.phases(view))
        if paths:
            results["erf_paths"] = result_of(wb.erf_lab.paths(view))
        answer = plain(results["erf_a"])
        answer |= {key.removeprefix("erf_"): results[key] for key in results if key != "erf_a"}
        if wanted:
            answer["files"] = files_of(view, results, wanted, "erf")
        return answer

    def attribution(
        method: str,
        evidence: bool,
        attention: bool,
        faithfulness: bool,
        formats: str,
        **arguments: Any,
    ) -> AttributionResult | dict[str, Any]:
        """Without `method`: Grad-CAM of the four stages and the evidence through each path of each
        EVSS block. With one of `/info`'s methods and its `options` ("steps=64,baseline=mean"): its
        maps for class `target`, or for it against class `contrast`; "rival": the same of `beside`,
        a network ("scan", "random", a model) or "photo:NAME". "evidence": maps of the paths;
        "attention": implicit attention of token (y, x) in one block's scan under both schemes;
        "faithfulness" and, with `sanity`, "randomisation": the checks of the map. With `formats`,
        such as "npz,png,svg", also "files": {name: base64}."""
        asked = {
            "evidence": evidence,
            "attention": attention,
            "faithfulness": faithfulness,
            "randomisation": arguments["sanity"],
        }
        wanted = listed_formats(formats, FORMATS)
        if not method:
            extras = {name: arguments[name] for name in ("contrast", "options", "beside", "sanity")}
            extras |= {"evidence": evidence, "attention": attention, "faithfulness": faithfulness}
            for name, value in (extras | {"formats": formats}).items():
                if value != PARAMETERS[name][1]:
                    raise BadInputError(f'{name} needs a method, such as method="grad_cam".')
            return wb.attribution(view_of(**arguments))
        view = view_of(method=method, **arguments)
        parts = {"maps"} | {part for part, is_asked in asked.items() if is_asked}
        results = wb.attribution_lab.results(view, parts)
        answer = plain(results["maps_a"])
        answer |= {"rival" if key == "maps_b" else key: results[key] for key in [*results][1:]}
        if wanted:
            answer["files"] = files_of(view, results, wanted, "attribution")
        return answer

    def profile(**arguments: Any) -> ProfileResult:
        """Time of one forward pass per block and operator, after a check against the reference."""
        return result_of(wb.profile(view_of(**arguments)))

    def sweep(values: str, formats: str, **arguments: Any) -> dict[str, Any]:
        """Times of the network or of its first scan ("subject": model, scan) along one axis (size,
        batch, step, dtype, scan, model, backend), schemes `scan` and `scan_b` in turns, each point
        after a check against the reference: p20, p50, p80, images per second, peak memory, and the
        card of the machine. `values`: "64,128,224" instead of the usual ones. Kept as a run. With
        `formats`, such as "csv,png,svg", also "files": {name: base64}."""
        wanted = listed_formats(formats, FORMATS)
        view = view_of(**arguments)
        chosen = parse_values(values, view.prof_axis) if values else None
        result = result_of(wb.profiler_lab.sweep(view, values=chosen))
        answer = plain(result)
        if wanted:
            answer["files"] = files_of(view, {"sweep": result}, wanted, "sweep")
        return answer

    def trace(formats: str, trace: str, **arguments: Any) -> dict[str, Any]:
        """A trace of `steps` steps (forward, or with the backward pass: "passes": train) as tables:
        operators, kernels, modules, steps, gaps, memory; times in ns. `trace`: instead a file of
        torch.profiler as a data URI. Kept as a run. "trace_file" is the address of the trace
        itself. With `formats`, such as "csv,png", also "files": {name: base64}."""
        wanted = listed_formats(formats, FORMATS)
        view = view_of(trace=trace_token(wb, trace), **arguments)
        result = result_of(wb.profiler_lab.trace(view))
        answer = plain(replace(result, timeline=None))
        for row in answer["modules"]:  # clients of Gradio fetch what is called "path" as a file
            row["module"] = row.pop("path")
        answer["trace_file"] = wb.profiler_lab.ways_out(result).get("download", "")
        if wanted:
            answer["files"] = files_of(view, {"trace": result}, wanted, "trace")
        return answer

    def runs(search: str, action: str, run: str, name: str, file: str) -> dict[str, Any]:
        """Kept sweeps and traces, newest first; `search`: words in name, title or device. `action`:
        "rename" (`run` by id or name, `name`), "delete" (`run`), "export" (`run`: "file" is it in
        base64) or "import" (`file`: an exported run in base64)."""
        store = wb.profiler_lab.runs
        answer: dict[str, Any] = {}
        if action == "rename":
            store.rename(run, name)
        elif action == "delete":
            store.delete(run)
        elif action == "export":
            answer["file"] = base64.b64encode(store.export_bytes(run)).decode()
        elif action == "import":
            answer["run"] = store.import_bytes(decoded("file", file))
        elif action != "list":
            raise BadInputError(
                f"There is no action {action[:20]!r}. Choose list, rename, delete, export, import."
            )
        return answer | {"runs": store.list(search), "notes": wb.profiler_lab.notes()}

    def compare(a: str, b: str) -> RunComparison:
        """Two kept runs of a kind, by id or name: rows with the ratio b : a, its 95 % interval and
        a verdict."""
        return wb.profiler_lab.compare(a, b)

    def what_if(**arguments: Any) -> WhatIfResult:
        """Floors of ES2D with step `what_step` and of scheme `scan_b` by the cost model: time of
        memory, multiply-adds and exponentials for each stage's scan on `what_device` (a GPU of
        `/info`, or "here": this machine, measured), the limiter, and the ratio of both."""
        return wb.kernel_lab.what_if(view_of(**arguments))

    def roofline(formats: str, **arguments: Any) -> dict[str, Any]:
        """The cost of every scheme at every size by the cost model, the rates of all devices, and
        the scans of both schemes measured on this machine after a check against the reference.
        With `formats`, such as "csv,png,svg", also "files": {name: base64}."""
        wanted = listed_formats(formats, FORMATS)
        view = view_of(**arguments)
        results = {"roofline": result_of(wb.kernel_lab.roofline(view))}
        results["what_if"] = wb.kernel_lab.what_if(view)
        answer = plain(results["roofline"]) | {"what_if": results["what_if"]}
        if wanted:
            answer["files"] = files_of(view, results, wanted, "roofline")
        return answer

    def token(formats: str, **arguments: Any) -> dict[str, Any]:
        """What token (y, x) costs in the kernel of `what_device` under both schemes: program ids,
        bytes read and written, exponentials, FLOPs, instructions in the kernel's loops. With
        `formats`, such as "csv,png", also "files": {name: base64}."""
        wanted = listed_formats(formats, FORMATS)
        view = view_of(**arguments)
        results = {f"token_{which}": wb.kernel_lab.token(view, which) for which in ("a", "b")}
        answer: dict[str, Any] = {name[-1]: result for name, result in results.items()}
        if wanted:
            answer["files"] = files_of(view, results, wanted, "token")
        return answer

    def kernel(listing: str, formats: str, **arguments: Any) -> dict[str, Any]:
        """A Triton kernel compiled ahead of time for `gpu` (sm_80, sm_90, sm_100, gfx942), `kernel`
        by the name of one of "choices", `kernel_b` beside it: registers, spills, shared memory,
        occupancy, instructions, compile times; "others": the first on the other targets. `listing`:
        also the text of a stage (source, ttir, ttgir, llir, ptx, sass, amdgcn) with the place of
        each line. With `formats`, such as "csv,png", also "files": {name: base64}."""
        wanted = listed_formats(formats, FORMATS)
        view = view_of(**arguments)
        result = result_of(wb.kernel_lab.inspect(view))
        answer = plain(result)
        if listing:
            answer["listing"] = wb.kernel_lab.listing(result.a, listing)
        if wanted:
            answer["files"] = files_of(view, {"kernel": result}, wanted, "kernel")
        return answer

    def export(nets: str, method: str, **arguments: Any) -> dict[str, str]:
        """The panels of a tab, "overview", "scan", "erf", "attribution", "profiler" or "kernels",
        as one zip (JSON, npz, PNG; tables as CSV and LaTeX): {"name", "base64"}. `nets`: networks
        of the tab "erf" beside the first."""
        arguments["nets"] = tuple(listed(nets))
        arguments["method"] = method or DEFAULT.attr_method
        with tempfile.TemporaryDirectory() as folder:
            path = write_bundle(wb, view_of(**arguments), Path(folder))
            return {"name": path.name, "base64": base64.b64encode(path.read_bytes()).decode()}

    what = ("model", "weights", "image", "size", "fit", "scan")
    lab = ("unit", "definition", "gates", "images", "scale")
    explained = ("target", "contrast", "method", "options", "beside", "block", "channel", "sanity")
    checks = ("evidence", "attention", "faithfulness", "formats")
    on = ("what_device", "what_batch", "what_dtype")
    floors = ("model", "scan_b", *on, "what_size", "what_step", "what_passes")
    compiled = ("kernel", "gpu", "kernel_b", "gpu_b")
    for fn, names in (
        (info, ()),
        (predict, what),
        (scan, (*what, "stage", "y", "x", "formats")),
        (schemes, (*what, "stage", "latency")),
        (erf, (*what, "scan_b", "stage", "y", "x", *lab, "net", "phases", "paths", "formats")),
        (attribution, (*what, "scan_b", "stage", "y", "x", *explained, *checks)),
        (profile, what),
        (
            sweep,
            (*what, "scan_b", "subject", "axis", "values", "passes", "batch", "dtype", "formats"),
        ),
        (trace, (*what, "passes", "batch", "steps", "trace", "formats")),
        (runs, ("search", "action", "run", "name", "file")),
        (compare, ("a", "b")),
        (what_if, floors),
        (roofline, (*floors, "formats")),
        (token, (*what, "scan_b", "stage", "y", "x", *on, "formats")),
        (kernel, (*compiled, "listing", "formats")),
        (
            export,
            (
                *(*what, "scan_b", "stage", "y", "x", "scan_c", "tab"),
                *(*lab, "nets", *explained),
                *(*floors[2:], *compiled),
            ),
        ),
    ):
        gr.api(
            endpoint(fn, *names),
            api_name=fn.__name__,
            api_description=fn.__doc__,
            concurrency_id="device",
            concurrency_limit=8,
        )
