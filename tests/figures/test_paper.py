"""PNG pictures of the export."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from PIL import Image

from tests.figures.conftest import erf_result, profile_result, provenance, scan_result
from workbench.figures.paper import render
from workbench.results import ReachResult, ReachStep, UserProbeResult


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


def test_three_schemes_reach_and_a_probe_as_svg(rgb: np.ndarray) -> None:
    reach = ReachResult(
        provenance=provenance("es2d:step=2"),
        stage=1,
        y=3,
        x=4,
        height=16,
        width=16,
        stride=4,
        has_scan=True,
        note="",
        layer="layers.0.blocks.0.op",
        steps_back=np.arange(256, dtype=np.int32).reshape(16, 16) - 40,
        steps_on=np.zeros((16, 16), np.int32),
        decay=np.full((16, 16), 0.3, np.float32),
        curve_steps=np.arange(4, dtype=np.int32),
        curve_p20=np.linspace(1, 0, 4, dtype=np.float32),
        curve_p50=np.linspace(1, 0, 4, dtype=np.float32),
        curve_p80=np.linspace(1, 0, 4, dtype=np.float32),
        half_steps=1.5,
        mean_reach=0.5,
        restored=(ReachStep(name="scan alone", share=0.4, mean_share=0.5),),
    )
    unknown = replace(
        reach,
        decay=np.full((16, 16), np.nan, np.float32),
        **{f"curve_{k}": np.zeros(0, np.float32) for k in ("p20", "p50", "p80")},
        curve_steps=np.zeros(0, np.int32),
    )
    probe = UserProbeResult(
        operator="mine:Gather",
        merge="",
        height=2,
        width=3,
        index=np.array([[0, 1, 2, -1]], np.int32),
        n_pads=1,
        lost=(3, 4, 5),
        repeated=(),
        scheme="",
        round_trip="not asked",
        backward="yes",
        merge_backward="not asked",
        other_map="",
        findings=(),
    )
    results = {
        "scan_a": scan_result("es2d:step=2"),
        "scan_b": scan_result("hilbert"),
        "scan_c": scan_result("ss2d"),
        "reach_a": reach,
        "reach_b": unknown,
        "probe": probe,
    }
    pictures = render(results, rgb, "svg")
    assert set(pictures) == {"scan.svg", "reach.svg", "probe.svg"}
    text = {name: data.decode() for name, data in pictures.items()}
    for word in ("ES2D, step 2", "Hilbert", "Full scan (SS2D)"):
        assert word in text["scan.svg"]
    assert "scan alone" in text["reach.svg"] and "path only" in text["reach.svg"]
    assert "3 tokens lost" in text["probe.svg"]
    again = render({"probe": probe}, None, "svg")
    assert again == {"probe.svg": pictures["probe.svg"]}, "the same results give the same bytes"
