"""Panels: what is drawn is what the result holds, and the JSON stays small and valid."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from tests.figures.conftest import erf_result, profile_result, scan_result
from workbench.figures import attribution_panel, erf_panel, profile_panel, scan_panel
from workbench.figures.attribution import path_shares, per_area
from workbench.figures.erf_maps import density_level
from workbench.figures.scan import locate
from workbench.figures.theme import block_sum, ordinal, percent, resolve, significant
from workbench.labels import scan_short


def size_of(panel: dict) -> int:
    return len(json.dumps(panel, allow_nan=False))


def array(z: dict) -> np.ndarray:
    shape = tuple(int(n) for n in z["shape"].split(","))
    return np.frombuffer(base64.b64decode(z["bdata"]), "<f4").reshape(shape)


def test_scan_panel_of_a_1024_px_photo_stays_small() -> None:
    a, b = scan_result("es2d:step=2", 1024), scan_result("ss2d", 1024)
    panel = scan_panel(a, b, np.zeros((1024, 1024, 3), np.uint8), 128, 128)
    assert size_of(panel) < 200_000


def test_scan_panel_says_what_is_read(rgb: np.ndarray) -> None:
    panel = scan_panel(scan_result("es2d:step=2"), scan_result("ss2d"), rgb, 3, 5)
    assert panel["sentence"] == (
        "ES2D reads each token once, in 4 groups of 64; the full scan reads 4 × 256 tokens. "
        "The focus is the 18th token of group 4."
    )
    assert panel["badges"][1]["tone"] == "ok"
    assert locate(scan_result("es2d:step=2"), 3, 5) == (3, 17)


def test_a_disagreement_is_shown_not_hidden(rgb: np.ndarray) -> None:
    from dataclasses import replace

    wrong = replace(
        scan_result("es2d:step=2"), is_verified=False, disagreement="sequence 1, step 2: other"
    )
    badge = scan_panel(wrong, scan_result("ss2d"), rgb, 0, 0)["badges"][1]
    assert badge["tone"] == "bad"
    assert "sequence 1, step 2" in badge["text"]


def test_erf_maps_share_one_scale_and_keep_the_mass() -> None:
    a, b = erf_result("es2d:step=2"), erf_result("ss2d", sigma=9)
    panel = erf_panel(a, b)
    first, second, difference = (m["figure"]["data"][0] for m in panel["maps"])
    assert (first["zmin"], first["zmax"]) == (second["zmin"], second["zmax"])
    shown = 10.0 ** array(first["z"])
    np.testing.assert_allclose(shown.max(), block_sum(a.mass, 2).max(), rtol=1e-5)
    assert difference["zmin"] == -difference["zmax"]
    delta = block_sum(a.mass, 2) - block_sum(b.mass, 2)
    drawn = array(difference["z"])
    np.testing.assert_allclose(-np.sign(drawn) * drawn**2, delta, atol=1e-7)
    assert "Random weights" in panel["sentence"]
    assert size_of(panel) < 1_000_000


def test_erf_says_when_a_scheme_is_not_what_was_trained() -> None:
    from tests.figures.conftest import provenance

    trained = {"is_random": False, "trained_scan": "es2d:step=2"}
    a = erf_result("es2d:step=2", provenance=provenance("es2d:step=2", **trained))
    b = erf_result("ss2d", provenance=provenance("ss2d", **trained))
    assert "the full scan is not what it was trained with" in erf_panel(a, b)["sentence"]


def test_density_level_holds_the_share() -> None:
    mass = np.arange(1.0, 101.0).reshape(10, 10)
    level = density_level(mass, 0.5)
    assert mass[mass >= level].sum() >= 0.5 * mass.sum()
    assert mass[mass > level].sum() < 0.5 * mass.sum()


def test_attribution_scale_compares_areas(attribution, rgb: np.ndarray) -> None:
    panel = attribution_panel(attribution, rgb)
    for values, stride in zip(attribution.maps, attribution.strides, strict=True):
        np.testing.assert_allclose(per_area(values, stride), 1.0)
    assert {m["figure"]["data"][0]["zmax"] for m in panel["maps"]} == {1.0}
    assert path_shares(attribution) == {"scan": 0.5, "conv": 0.25, "residual": 0.25}
    assert "50.0 % of the evidence" in panel["sentence"]
    assert [t["x"] for t in panel["plot"]["figure"]["data"]] == [
        [1.0, 1.0],
        [-0.5, 0.5],
        [0.5, 0.5],
    ]


def test_profile_shows_no_time_for_a_wrong_output() -> None:
    good, wrong = profile_result("es2d:step=2"), profile_result("ss2d", 2, is_correct=False)
    panel = profile_panel(good, wrong)
    assert "bars" not in panel
    assert "ms" not in json.dumps(panel["sentence"])
    assert panel["badges"][1]["tone"] == "bad"


def test_profile_bars_start_at_zero_and_add_up() -> None:
    panel = profile_panel(profile_result("es2d:step=2"), profile_result("ss2d", 2))
    segments = panel["bars"]["bars"][0]["segments"]
    assert sum(s["ms"] for s in segments) == pytest.approx(30.0)
    assert panel["sentence"] == (
        "The full scan takes 1.67 times as long as ES2D, its scans alone 2.00 times."
    )
    assert panel["expectation"]["rows"][0][1:] == ["2.00 : 1", "2.00 : 1", "2.00 : 1"]


def test_a_busy_machine_is_named_beside_the_ratio() -> None:
    calm, busy = profile_result("es2d:step=2"), profile_result("ss2d", 2, p80_ms=80.0)
    assert "busy" not in profile_panel(calm, profile_result("ss2d", 2))["sentence"]
    assert "The machine was busy" in profile_panel(calm, busy)["sentence"]


def test_words_and_numbers() -> None:
    assert [significant(v) for v in (0, 0.001234, 12.345, 12345.6)] == [
        "0",
        "0.00123",
        "12.3",
        "12,346",
    ]
    assert [percent(v) for v in (0.5, 1.0, float("nan"))] == ["50.0 %", "100 %", "not reached"]
    assert [ordinal(n) for n in (1, 2, 3, 11, 112, 1023)] == [
        "1st",
        "2nd",
        "3rd",
        "11th",
        "112th",
        "1,023rd",
    ]
    assert scan_short("es2d:step=3") == "ES2D p=3"
    assert resolve({"a": ["@a", "x"]}) == {"a": ["#0f766e", "x"]}
