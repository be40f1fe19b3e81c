"""The first picture: a stored result of the default view, drawn before anything is computed."""

from __future__ import annotations

import logging
import zipfile
from pathlib import Path
from typing import Any

from workbench.errors import WorkbenchError
from workbench.export import load_results
from workbench.figures import attribution_panel, erf_panel, profile_panel, scan_panel
from workbench.photos import prepare
from workbench.results import AttributionResult, ErfResult, ProfileResult, Provenance, ScanResult
from workbench.runtime import Workbench
from workbench.ui.panels import ORDER, TITLES

log = logging.getLogger(__name__)
EMPTY_SIZE = [224, 224]


def waiting_panel(name: str, title: str) -> dict[str, Any]:
    return {
        "id": name,
        "title": title,
        "badges": [],
        "input": EMPTY_SIZE,
        "empty": {"title": "", "text": "Computing…"},
        "sentence": "",
        "result_id": f"waiting-{name}",
    }


def stored_panels(wb: Workbench, path: Path) -> dict[str, dict[str, Any]]:
    """Panels of the stored example, marked as stored; empty panels where it cannot be read."""
    try:
        panels = _panels(wb, path)
    except (WorkbenchError, OSError, KeyError, zipfile.BadZipFile) as error:
        log.warning("No stored first picture: %s", error)
        return {name: waiting_panel(name, TITLES[name]) for name in ORDER["overview"]}
    return {
        name: panel | {"stored": True, "result_id": f"stored-{name}"}
        for name, panel in panels.items()
    }


def _panels(wb: Workbench, path: Path) -> dict[str, dict[str, Any]]:
    r = load_results(path).results
    scans: list[ScanResult] = [r["scan_a"], r["scan_b"]]
    erfs: list[ErfResult] = [r["erf_a"], r["erf_b"]]
    profiles: list[ProfileResult] = [r["profile_a"], r["profile_b"]]
    attribution: AttributionResult = r["attribution"]
    provenance: Provenance = scans[0].provenance
    costs = {slot: r[f"token_{slot}"] for slot in "ab" if f"token_{slot}" in r}
    photo = wb.photos.get(provenance.image)
    if photo.sha256 != provenance.image_sha256:
        raise KeyError(f"the photo {photo.id} is not the one of the stored example")
    height, width = provenance.input_size
    rgb = prepare(photo, max(height, width), "crop" if height == width else "whole").rgb
    return {
        "scan": scan_panel(scans[0], scans[1], rgb, erfs[0].y, erfs[0].x, costs),
        "erf": erf_panel(erfs[0], erfs[1]),
        "attribution": attribution_panel(attribution, rgb),
        "profile": profile_panel(profiles[0], profiles[1]),
    }
