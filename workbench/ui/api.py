"""The HTTP API: eight endpoints with stable names, each one function of names and numbers.

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
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

import kernels
from workbench.bundle import N_ERF_IMAGES, write_bundle
from workbench.errors import BadInputError, WorkbenchError
from workbench.files import FORMATS, result_files
from workbench.photos import prepare
from workbench.progress import result_of
from workbench.results import (
    AttributionResult,
    ErfResult,
    PredictionResult,
    ProfileResult,
    SchemeTableResult,
)
from workbench.runtime import Workbench
from workbench.view import View

SIGNIFICANT_DIGITS = 6
SCAN_FORMATS = tuple(form for form in FORMATS if form != "csv")  # csv is for tables of schemes
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
    "images": (int, N_ERF_IMAGES),
    "latency": (bool, True),
    "formats": (str, ""),
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
    header, _, body = image.partition(",")
    if not header.endswith(";base64"):
        raise BadInputError('image is a data URI without ";base64,"; encode the file in base64.')
    try:
        data = base64.b64decode(body, validate=True)
    except binascii.Error:
        raise BadInputError("image is a data URI whose base64 cannot be decoded.") from None
    return wb.photos.add(data, "image sent to the API").id


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


def listed_formats(text: str) -> list[str]:
    """Formats of a comma-separated list that one scan can have."""
    given = [part.strip() for part in text.split(",") if part.strip()]
    for name in given:
        if name not in SCAN_FORMATS:
            raise BadInputError(
                f"There is no format {name[:20]!r}. Choose from: {', '.join(SCAN_FORMATS)}."
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

    def view_of(image: str, scan: str, **fields: Any) -> View:
        return wb.resolve(View(photo=image_id(wb, image), scan_a=scan, **fields))

    def info() -> dict[str, Any]:
        """What can be asked for: models, their weights, scans, gallery photos, kernel backends."""
        return {
            "models": wb.models(),
            "weights": {m.name: wb.weights(m.name) for m in wb.models()},
            "scans": wb.scans(),
            "images": [
                {"id": p.id, "title": p.title, "credit": p.credit, "licence": p.licence}
                for p in wb.photos.list()
            ],
            "backends": kernels.backends(),
            "device": wb.describe(View()).device_label,
        }

    def predict(**arguments: Any) -> PredictionResult:
        """Class probabilities of one photo."""
        return wb.predict(view_of(**arguments))

    def scan(formats: str, **arguments: Any) -> dict[str, Any]:
        """Scan path of one stage, read back from the operator that runs, with its metrics; "reach":
        what can influence token (y, x), by default the centre, and how much of it is left. With
        `formats`, such as "npz,png,svg,html", also "files": {name: base64}."""
        wanted = listed_formats(formats)
        view = view_of(**arguments)
        results = {"scan_a": wb.scan(view), "reach_a": wb.reach(view)}
        answer = plain(results["scan_a"]) | {"reach": results["reach_a"]}
        if wanted:
            photo = wb.photos.get(view.photo)
            rgb = prepare(photo, view.size, view.fit).rgb
            title = f"scan: {view.model}, {photo.title}"
            files = result_files(results, wanted, name="scan", title=title, rgb=rgb)
            answer["files"] = {k: base64.b64encode(v).decode() for k, v in files.items()}
        return answer

    def schemes(latency: bool, **arguments: Any) -> SchemeTableResult:
        """Every scheme and `scan` on one stage's map: metrics, cost and, with `latency`, the time
        of one scan after a check against the reference (about ten seconds)."""
        return result_of(wb.scheme_table(view_of(**arguments), measure=latency))

    def erf(images: int, **arguments: Any) -> ErfResult:
        """Effective receptive field of token (y, x) of a stage, mean over `images` photos."""
        return result_of(wb.erf(view_of(**arguments), "a", images))

    def attribution(**arguments: Any) -> AttributionResult:
        """Grad-CAM of the four stages and the evidence through each path of each EVSS block."""
        return wb.attribution(view_of(**arguments))

    def profile(**arguments: Any) -> ProfileResult:
        """Time of one forward pass per block and operator, after a check against the reference."""
        return result_of(wb.profile(view_of(**arguments)))

    def export(**arguments: Any) -> dict[str, str]:
        """The panels of a tab, "overview" or "scan", as one zip (JSON, npz, PNG; the table of
        schemes as CSV): {"name", "base64"}."""
        with tempfile.TemporaryDirectory() as folder:
            path = write_bundle(wb, view_of(**arguments), Path(folder))
            return {"name": path.name, "base64": base64.b64encode(path.read_bytes()).decode()}

    what = ("model", "weights", "image", "size", "fit", "scan")
    for fn, names in (
        (info, ()),
        (predict, what),
        (scan, (*what, "stage", "y", "x", "formats")),
        (schemes, (*what, "stage", "latency")),
        (erf, (*what, "stage", "y", "x", "images")),
        (attribution, (*what, "target")),
        (profile, what),
        (export, (*what, "scan_b", "stage", "y", "x", "target", "scan_c", "tab")),
    ):
        gr.api(
            endpoint(fn, *names),
            api_name=fn.__name__,
            api_description=fn.__doc__,
            concurrency_id="device",
            concurrency_limit=8,
        )
