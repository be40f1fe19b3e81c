"""PNG pictures of the export."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.figures.conftest import (
    erf_result,
    paths_result,
    phases_result,
    profile_result,
    provenance,
    scan_result,
)
from workbench.figures.paper import render
from workbench.figures.paper_erf import erf_figure
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


def fields(n: int, size: int = 64) -> dict:
    networks = ("Test", "Test", "resnet18", "Base")
    scans = ("es2d:step=2", "ss2d", "ss2d", "es2d:step=2")
    return {
        f"erf_{key}": erf_result(scan, 5.0 + 3 * i, size, network=network)
        for i, (key, scan, network) in enumerate(zip("abcd", scans, networks, strict=True))
        if i < n
    }


def test_a_picture_of_fields_has_300_dpi() -> None:
    (picture,) = render(fields(2), None).values()
    assert round(Image.open(io.BytesIO(picture)).info["dpi"][0]) == 300


@pytest.mark.parametrize(
    ("n", "scale"), [(1, "log"), (2, "linear"), (2, "power"), (3, "log"), (4, "log")]
)
def test_one_to_four_fields_become_a_figure(n: int, scale: str) -> None:
    figure = erf_figure(list(fields(n).values()), "abcd"[:n], scale)
    figure.savefig(io.BytesIO(), dpi=40)
    shown = [ax for ax in figure.axes if ax.images]
    assert len(shown) == n + n - 1, "each field, and each rival's difference to the first"
    norms = [ax.images[0].norm for ax in shown]
    assert len({(norm.vmin, norm.vmax) for norm in norms[:n]}) == 1, "one scale for the fields"
    assert all(norm.vmin == -norm.vmax for norm in norms[n:])
    places = [ax.get_window_extent() for ax in figure.axes if ax.get_label() != "<colorbar>"]
    assert not any(a.overlaps(b) for i, a in enumerate(places) for b in places[:i])


def test_the_difference_in_a_figure_has_the_firsts_colour_where_it_has_more() -> None:
    figure = erf_figure(list(fields(2).values()), "ab")
    image = [ax for ax in figure.axes if ax.images][2].images[0]
    a, b = (r.mass for r in fields(2).values())
    assert image.get_array()[17, 17] < 0 and a[34, 34] > b[34, 34]
    red, green, _, _ = image.cmap(0.0)
    assert green > red, "teal is the low end"


def test_fields_as_svg_keep_their_words() -> None:
    results = fields(2) | {"erf_phases": phases_result(), "erf_paths": paths_result()}
    pictures = render(results, None, "svg")
    assert set(pictures) == {"erf.svg", "erf_phases.svg", "erf_paths.svg"}
    text = {name: data.decode() for name, data in pictures.items()}
    for words in ("difference, a − b", "share of the mass per 2 × 2 px, log", "more: b"):
        assert words in text["erf.svg"]
    assert "90 % interval, 200 resamples" in text["erf.svg"].replace("\n", " ")
    assert "token (8, 9), group 3, column-major" in text["erf_phases.svg"]
    assert "adds up" in text["erf_paths.svg"] or "add up to the gradient" in text["erf_paths.svg"]
    assert render(results, None, "svg") == pictures, "the same results give the same bytes"


def test_no_phases_and_no_paths_are_no_pictures() -> None:
    results = {
        "erf_phases": phases_result(phases=(), note="none"),
        "erf_paths": paths_result(blocks=0),
    }
    assert render(results, None) == {}


def test_a_wide_input_keeps_its_shape() -> None:
    mass = np.full((32, 64), 1 / 2048, np.float32)
    field = erf_result("ss2d", mass=mass, reach=np.zeros((0, 0), np.uint8), centre=(16.0, 32.0))
    figure = erf_figure([field, field], "ab")
    for ax in (ax for ax in figure.axes if ax.images):
        box = ax.get_window_extent()
        assert box.width == pytest.approx(2 * box.height)
