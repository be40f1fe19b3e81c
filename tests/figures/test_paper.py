"""PNG pictures of the export."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from tests.figures.conftest import erf_result, profile_result, scan_result
from workbench.figures.paper import render


def test_every_panel_becomes_a_picture(attribution, rgb: np.ndarray) -> None:
    results = {
        "scan_a": scan_result("es2d:step=2"),
        "scan_b": scan_result("ss2d"),
        "erf_a": erf_result("es2d:step=2"),
        "erf_b": erf_result("ss2d", sigma=9),
        "attribution": attribution,
        "profile_a": profile_result("es2d:step=2"),
        "profile_b": profile_result("ss2d", 2),
    }
    pictures = render(results, rgb)
    assert set(pictures) == {"scan.png", "erf.png", "attribution.png", "profile.png"}
    for name, data in pictures.items():
        image = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert image.shape[1] > 1000, name
        assert image.std() > 10, f"{name} is empty"
    assert render(results, rgb) == pictures, "the same results must give the same bytes"


def test_wrong_outputs_get_no_timing_picture(rgb: np.ndarray) -> None:
    results = {
        "profile_a": profile_result("es2d:step=2"),
        "profile_b": profile_result("ss2d", is_correct=False),
    }
    assert render(results, rgb) == {}
