"""The HTTP API: seven endpoints with stable names, each one function of names and numbers.

Names come from the lists that `/info` returns. `image` is a gallery name or a photo as a data URI
("data:image/png;base64,..."); paths and URLs are not accepted. Arrays are nested lists, `(y, x)`.
"""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

import kernels
from workbench.errors import BadInputError, WorkbenchError
from workbench.progress import Progress
from workbench.runtime import Workbench
from workbench.view import View

SIGNIFICANT_DIGITS = 6


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


def last(items: Iterator[Any]) -> Any:
    """The result at the end of a generator of progress and running results."""
    result = None
    for item in items:
        if not isinstance(item, Progress):
            result = item
    return result


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


def spoken(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Our errors reach the client as their sentence, without a traceback."""

    @wraps(fn)
    def endpoint(*args: Any, **kwargs: Any) -> Any:
        try:
            return fn(*args, **kwargs)
        except (WorkbenchError, ValueError) as error:
            raise gr.Error(str(error), print_exception=False) from None

    return endpoint


def add_api(wb: Workbench) -> None:
    """Register the endpoints; called inside the Blocks context."""
    d = View()

    def view_of(
        model: str,
        weights: str,
        image: str,
        size: int,
        fit: str,
        scan: str,
        stage: int = d.stage,
        y: int | None = None,
        x: int | None = None,
        target: int | None = None,
    ) -> View:
        view = View(
            model, weights, image_id(wb, image), size, fit, scan, d.scan_b, stage, y, x, target
        )
        return wb.resolve(view)

    def info() -> dict:
        """What can be asked for: models, their weights, scans, gallery photos, kernel backends."""
        return plain(
            {
                "models": wb.models(),
                "weights": {m.name: wb.weights(m.name) for m in wb.models()},
                "scans": wb.scans(),
                "images": [
                    {"id": p.id, "title": p.title, "credit": p.credit, "licence": p.licence}
                    for p in wb.photos.list()
                ],
                "backends": kernels.backends(),
                "device": wb.describe(wb.resolve(d)).device_label,
            }
        )

    def predict(
        model: str = d.model,
        weights: str = d.weights,
        image: str = d.photo,
        size: int = d.size,
        fit: str = d.fit,
        scan: str = d.scan_a,
    ) -> dict:
        """Class probabilities of one photo."""
        return plain(wb.predict(view_of(model, weights, image, size, fit, scan), "a"))

    def scan_(
        model: str = d.model,
        weights: str = d.weights,
        image: str = d.photo,
        size: int = d.size,
        fit: str = d.fit,
        scan: str = d.scan_a,
        stage: int = d.stage,
    ) -> dict:
        """Scan path of one stage, read back from the operator that runs, with its metrics."""
        return plain(wb.scan(view_of(model, weights, image, size, fit, scan, stage), "a"))

    def erf(
        model: str = d.model,
        weights: str = d.weights,
        image: str = d.photo,
        size: int = d.size,
        fit: str = d.fit,
        scan: str = d.scan_a,
        stage: int = d.stage,
        y: int | None = None,
        x: int | None = None,
        images: int = 8,
    ) -> dict:
        """Effective receptive field of token (y, x) of a stage, mean over `images` photos."""
        view = view_of(model, weights, image, size, fit, scan, stage, y, x)
        return plain(last(wb.erf(view, "a", images)))

    def attribution(
        model: str = d.model,
        weights: str = d.weights,
        image: str = d.photo,
        size: int = d.size,
        fit: str = d.fit,
        scan: str = d.scan_a,
        target: int | None = None,
    ) -> dict:
        """Grad-CAM of the four stages and the evidence through each path of each EVSS block."""
        view = view_of(model, weights, image, size, fit, scan, target=target)
        return plain(wb.attribution(view, "a"))

    def profile(
        model: str = d.model,
        weights: str = d.weights,
        image: str = d.photo,
        size: int = d.size,
        fit: str = d.fit,
        scan: str = d.scan_a,
    ) -> dict:
        """Time of one forward pass per block and operator, after a check against the reference."""
        return plain(last(wb.profile(view_of(model, weights, image, size, fit, scan), "a")))

    def export(
        model: str = d.model,
        weights: str = d.weights,
        image: str = d.photo,
        size: int = d.size,
        fit: str = d.fit,
        scan: str = d.scan_a,
        scan_b: str = d.scan_b,
        stage: int = d.stage,
        y: int | None = None,
        x: int | None = None,
        target: int | None = None,
    ) -> dict:
        """The four panels as one zip (JSON, npz, PNG): {"name", "base64"}."""
        from workbench.bundle import write_bundle

        view = View(
            model, weights, image_id(wb, image), size, fit, scan, scan_b, stage, y, x, target
        )
        with tempfile.TemporaryDirectory() as folder:
            path = write_bundle(wb, wb.resolve(view), Path(folder))
            return {"name": path.name, "base64": base64.b64encode(path.read_bytes()).decode()}

    endpoints = {
        "info": info,
        "predict": predict,
        "scan": scan_,
        "erf": erf,
        "attribution": attribution,
        "profile": profile,
        "export": export,
    }
    for name, fn in endpoints.items():
        gr.api(
            spoken(fn),
            api_name=name,
            api_description=fn.__doc__,
            concurrency_id="device",
            concurrency_limit=8,
        )
