"""The four panels of a view, one by one: ask the workbench, hand the result to its figure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.bundle import N_ERF_IMAGES
from workbench.figures import attribution_panel, erf_panel, profile_panel, scan_panel
from workbench.photos import prepare
from workbench.progress import CancelToken, Progress
from workbench.results import ErfResult
from workbench.runtime import Workbench
from workbench.view import View

ORDER = ("scan", "attribution", "profile", "erf")  # cheap first


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
    yield done(scan_panel(a, b, input_rgb(wb, view), view.y or 0, view.x or 0))


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


UPDATES = {
    "scan": scan_updates,
    "attribution": attribution_updates,
    "profile": profile_updates,
    "erf": erf_updates,
}
TITLES = {
    "scan": "Scan paths",
    "attribution": "Attribution",
    "profile": "Profile",
    "erf": "Effective receptive field",
}
