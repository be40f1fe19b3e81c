"""Panels of the ERF tab: what is drawn is what the results hold, and they stay small and valid."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.figures.conftest import erf_result, paths_result, phases_result, provenance
from tests.figures.test_panels import array
from tests.figures.test_scan_lab import in_node
from workbench.figures.erf_curves import erf_curves_panel, uniform_radial
from workbench.figures.erf_lab import erf_lab_panel
from workbench.figures.erf_maps import (
    DECADES,
    contour_cell,
    density_level,
    field_names,
    mass_contours,
    outline,
    scale_of,
    weights_note,
)
from workbench.figures.erf_numbers import erf_numbers_panel, uniform_metrics, with_band
from workbench.figures.erf_paths import LEVELS, default_block, erf_paths_panel, signed_limits
from workbench.figures.erf_phases import erf_phases_panel
from workbench.figures.theme import block_sum
from workbench.results import ErfResult
from workbench.ui.components.plotly_panel import MAX_PANEL_BYTES, dump


def trained(scan: str, trained_scan: str, sha: str = "aa", **changes: object) -> ErfResult:
    p = provenance(
        scan, is_random=False, trained_scan=trained_scan, weights=sha, weights_sha256=sha
    )
    return erf_result(scan, provenance=p, **changes)


def four(size: int = 64) -> list[ErfResult]:
    """Networks whose fields differ; the third looks like another family's, without scan."""
    other = provenance("", size, model="timm:resnet18", is_random=False, trained_scan="")
    scans = ("es2d:step=2", "ss2d")
    own = [
        provenance(scan, size, is_random=False, trained_scan=scan, weights_sha256=scan)
        for scan in scans
    ]
    timm: dict = {"network": "resnet18", "provenance": other, "stride": 8, "gates": "none"}
    return [
        erf_result("es2d:step=2", 5.0, size, provenance=own[0]),
        erf_result("ss2d", 8.0, size, provenance=own[1]),
        erf_result("ss2d", 11.0, size, **timm),
        erf_result("es2d:step=2", 14.0, size, network="Base", provenance=own[0]),
    ]


def drawn(spec: dict) -> dict:
    return spec["figure"]["data"][0]


@pytest.mark.parametrize("scale", ["log", "linear", "power"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_fields_share_one_scale_that_gives_their_numbers_back(n: int, scale: str) -> None:
    fields = four()[:n]
    panel = erf_lab_panel(fields, scale=scale, keys="abcd"[:n])
    dump(panel)
    assert [m["key"] for m in panel["maps"]] == [f"erf-{key}" for key in "abcd"[:n]]
    assert len({(drawn(m)["zmin"], drawn(m)["zmax"]) for m in panel["maps"]}) == 1
    top = max(block_sum(r.mass, 2).max() for r in fields)
    back = {"log": lambda z: 10**z, "linear": lambda z: z, "power": lambda z: z**5}[scale]
    assert back(drawn(panel["maps"][0])["zmax"]) == pytest.approx(top, rel=1e-6)
    for spec, result in zip(panel["maps"], fields, strict=True):
        mass = block_sum(result.mass.astype(float), 2)
        shown = back(array(drawn(spec)["z"]).astype(float))
        least = top * 10.0**-DECADES if scale == "log" else 0.0
        np.testing.assert_allclose(shown, np.maximum(mass, least), rtol=1e-4, atol=1e-12)
    assert len(panel["differences"]) == n - 1


def test_the_difference_is_the_first_less_the_rival() -> None:
    fields = four()
    panel = erf_lab_panel(fields, scale="log", keys="abcd")
    for difference, rival, key in zip(panel["differences"], fields[1:], "bcd", strict=True):
        assert difference["key"] == key
        trace = drawn(difference["map"])
        assert trace["zmin"] == -trace["zmax"]
        z = array(trace["z"]).astype(float)
        assert difference["map"]["read"]["power"] == -2
        delta = block_sum(fields[0].mass.astype(float), 2) - block_sum(rival.mass.astype(float), 2)
        np.testing.assert_allclose(-np.sign(z) * z**2, delta, atol=1e-8)
        assert z[17, 17] < 0, "the first field is the narrowest: at the centre its colour"
        assert trace["colorscale"][0][1] == "@d0"
        assert trace["colorscale"][-1][1] == {"b": "@d8", "c": "@c", "d": "@d"}[key]
        moved = np.abs(delta).sum() / 2
        assert f"{100 * moved:.1f} %" in difference["map"]["right"]["text"]
    ends = [end["text"] for end in panel["differences"][1]["scale"]["ends"]]
    assert ends == ["more: Test, ES2D", "more: resnet18"]


def test_each_map_marks_its_own_token() -> None:
    moved = erf_result("ss2d", centre=(24.0, 40.0), stride=16, network="resnet18")
    panel = erf_lab_panel([erf_result("es2d:step=2"), moved], scale="log", keys="ab")
    assert panel["maps"][0]["token"] == {"centre": [34.0, 34.0], "stride": 4}
    assert panel["maps"][1]["token"] == {"centre": [24.0, 40.0], "stride": 16}


def test_contours_hold_the_mass_they_say() -> None:
    result = erf_result("es2d:step=2", 9.0)
    cell = contour_cell(result)
    mass = block_sum(result.mass.astype(float), cell)
    for share in (0.5, 0.9):
        (line,) = mass_contours(result, share)
        y, x = np.array(line).T
        radius = np.hypot(y - 34, x - 34)
        # Of a Gaussian, the share s lies within sigma * sqrt(-2 log(1 - s)).
        assert radius.mean() == pytest.approx(9 * math.sqrt(-2 * math.log(1 - share)), rel=0.1)
        level = density_level(mass, share)
        assert mass[mass >= level].sum() >= share * mass.sum()


def test_outline_of_the_reach_is_exact() -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[3:9, 4:20] = 1
    mask[5:7, 8:10] = 0
    mask[9, 20] = 1  # touches a corner only
    lines, cell = outline(mask)
    assert cell == 1
    assert sorted(len(line) for line in lines) == [5, 5, 5]
    inside = np.zeros_like(mask, bool)
    for line in lines:  # even-odd rule over the centres of the pixels
        points = np.array(line)
        for y in range(20):
            for x in range(30):
                left = 0
                for (y0, x0), (y1, x1) in zip(points, points[1:], strict=False):
                    if x0 == x1 and x0 < x + 0.5 and min(y0, y1) < y + 0.5 < max(y0, y1):
                        left += 1
                inside[y, x] ^= bool(left % 2)
    np.testing.assert_array_equal(inside, mask.astype(bool))


def test_an_outline_with_too_many_edges_is_coarser_and_it_is_said() -> None:
    comb = np.zeros((224, 224), np.uint8)
    comb[::2] = 1
    assert outline(comb)[1] > 1
    panel = erf_lab_panel(
        [erf_result("ss2d", size=224, reach=comb, reach_share=0.5)], scale="log", keys="a"
    )
    assert "drawn to 2 px" in panel["legend"][2]["tip"]
    assert "50.0 %" in panel["legend"][2]["text"]


def test_a_reach_of_everything_is_no_line_but_words() -> None:
    everything = {"reach": np.ones((64, 64), np.uint8), "reach_share": 1.0}
    panel = erf_lab_panel([erf_result("ss2d", **everything)], scale="log", keys="a")
    assert [t.get("name") for t in panel["maps"][0]["figure"]["data"][1:]] == [
        "50% of the mass",
        "90% of the mass",
    ]
    assert "every pixel can matter" in panel["legend"][2]["text"]
    unknown = {"reach": np.zeros((0, 0), np.uint8), "reach_share": math.nan}
    panel = erf_lab_panel([erf_result("ss2d", **unknown)], scale="log", keys="a")
    assert len(panel["legend"]) == 2


def test_badges_say_definition_gates_images_and_what_went_wrong() -> None:
    result = erf_result(
        "es2d:step=2",
        gates="frozen",
        skipped=("a.jpg: cannot be read", "b.jpg: too small"),
        saturation="the map cannot be told from a uniform one",
    )
    panel = erf_lab_panel([result, erf_result("ss2d")], scale="log", keys="ab")
    first, *warnings = panel["badges"]
    assert first["text"] == (
        "stage 1, token (8, 8) · scale-invariant mass · gates frozen, gates live · "
        "8 images of 64 × 64 px"
    )
    assert "objective: sum over channels" in first["tip"]
    assert [b["text"] for b in warnings] == ["2 images skipped", "saturated", "random weights"]
    assert warnings[0]["tip"] == "a.jpg: cannot be read\nb.jpg: too small"
    assert panel["notes"] == ["ES2D: the map cannot be told from a uniform one."]
    assert dict(panel["parts"])["transform"] == "none"


def test_a_running_field_says_how_far_it_is() -> None:
    running = erf_result("es2d:step=2", n_images=3, is_final=False)
    panel = erf_lab_panel([running, erf_result("ss2d")], scale="log", keys="ab")
    assert panel["maps"][0]["right"]["text"] == "3 of 8 images"
    assert panel["sentence"].startswith("So far, 3 of 8 images: half of the mass lies within 7.1")
    assert panel["is_live"]
    assert not erf_lab_panel([erf_result("ss2d")], scale="log", keys="a")["is_live"]


def test_the_sentence_has_the_numbers() -> None:
    fields = [trained("es2d:step=2", "es2d:step=2"), trained("ss2d", "ss2d", "bb", sigma=9.0)]
    a, b = (f"{100 * r.metrics['area90']:.1f} %" for r in fields)
    sentence = erf_lab_panel(fields, scale="log", keys="ab")["sentence"]
    assert f"cover {a} and {b} of the image" in sentence
    assert "px with ES2D," in sentence and "px with the full scan;" in sentence
    assert sentence.endswith("Each scheme with the weights trained for it.")


@pytest.mark.parametrize(
    ("definition", "scale", "words"),
    [
        ("mass", "log", "2 × 2 px, log, 4 decades"),
        ("replknet", "log", "not RepLKNet's own"),
        ("vmamba", "power", "x^0.2: VMamba's own"),
        ("openerf", "linear", "linear: OpenERF's own"),
        ("openerf", "power", "not OpenERF's own"),
    ],
)
def test_the_scale_names_the_definitions_own_transform(
    definition: str, scale: str, words: str
) -> None:
    fields = [erf_result("ss2d", definition=definition)]
    assert erf_lab_panel(fields, scale=scale, keys="a")["scale"]["label"].endswith(words)


def test_names_tell_fields_apart_and_no_more() -> None:
    es2d, full = trained("es2d:step=2", "es2d:step=2"), trained("ss2d", "ss2d", "bb")
    swapped = trained("ss2d", "es2d:step=2")
    assert field_names([es2d, full]) == ["ES2D", "Full scan"]
    assert field_names([es2d, full, swapped]) == ["ES2D", "Full scan", "Full scan, swapped in"]
    assert field_names([es2d, erf_result("es2d:step=2")]) == ["ES2D", "ES2D, random"]
    assert field_names([es2d, replace(es2d, network="Base")]) == ["Test", "Base"]
    labelled = [
        replace(r, network=f"Test, {name}") for r, name in ((es2d, "ES2D"), (full, "Full scan"))
    ]
    assert field_names(labelled) == ["ES2D", "Full scan"]
    assert field_names(labelled[:1]) == ["ES2D"]
    random = [
        replace(erf_result("ss2d"), network=f"{n}, Full scan, random") for n in ("Tiny", "Base")
    ]
    assert field_names(random) == ["Tiny", "Base"]
    assert field_names([labelled[1], random[0]]) == ["Test", "Tiny, random"]
    assert field_names([es2d, es2d]) == ["ES2D", "ES2D"]
    assert field_names(four()) == ["Test, ES2D", "Test, Full scan", "resnet18", "Base, ES2D"]
    assert "the full scan is not what it was trained with" in weights_note([es2d, swapped])
    assert weights_note([es2d, erf_result("es2d:step=2")]).startswith("ES2D, random: nothing")


@pytest.mark.parametrize("n", [0, 5])
def test_one_to_four_fields(n: int) -> None:
    with pytest.raises(ValueError, match="1 to 4"):
        erf_lab_panel([erf_result("ss2d")] * n, scale="log", keys="abcde"[:n])


def test_fields_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="share no scale"):
        erf_lab_panel([erf_result("ss2d"), erf_result("ss2d", size=96)], scale="log", keys="ab")


def test_curves_have_a_band_where_there_is_one_and_a_uniform_reference() -> None:
    bare = np.zeros(0, np.float32)
    alone = erf_result("ss2d", radial_low=bare, radial_high=bare, n_bootstrap=0, n_images=1)
    panel = erf_curves_panel([erf_result("es2d:step=2"), alone], "ab")
    dump(panel)
    radial = [t for t in panel["plot"]["figure"]["data"] if t["xaxis"] == "x"]
    assert [t.get("name") for t in radial] == [
        "uniform map",
        None,
        "band ES2D",
        "ES2D",
        "Full scan",
    ]
    low, high, line = radial[1], radial[2], radial[3]
    assert high["fill"] == "tonexty" and high["fillcolor"] == "@a20"
    assert all(a <= b <= c for a, b, c in zip(low["y"], line["y"], high["y"], strict=True))
    result = erf_result("es2d:step=2")
    np.testing.assert_allclose(line["y"], 100 * result.radial_mass, atol=1e-3)
    rows, columns = np.mgrid[:64, :64] + 0.5
    within = [(np.hypot(rows - 34, columns - 34) <= r).mean() for r in result.radius_px]
    np.testing.assert_allclose(uniform_radial(result), within)


def test_convergence_leaves_out_what_one_image_cannot_say() -> None:
    panel = erf_curves_panel([erf_result("es2d:step=2")], "a")
    traces = panel["plot"]["figure"]["data"]
    areas = [t for t in traces if t["xaxis"] == "x2"]
    (split,) = (t for t in traces if t["xaxis"] == "x3")
    assert [t["name"] for t in areas] == ["ES2D, 50 %", "ES2D, 90 %"]
    assert areas[0]["x"] == [1, 2, 4, 8]
    assert split["x"] == [2, 4, 8], "two halves need two images"
    assert "From 4 to 8 images the 50 % area moved by 4.1 % (ES2D)" in panel["sentence"]


def test_the_table_has_values_bands_and_the_uniform_maps_numbers() -> None:
    fields = four()
    panel = erf_numbers_panel(fields, "abcd")
    dump(panel)
    shown = [c["text"] for c in panel["columns"] if not c.get("hidden")]
    names = ["Test, ES2D", "Test, Full scan", "resnet18", "Base, ES2D"]
    assert shown == ["number", "unit", *names, "uniform"]
    rows = {row["id"]: row["cells"] for row in panel["rows"]}
    value = 100 * fields[0].metrics["area90"]
    assert rows["area90"]["a"]["value"] == pytest.approx(value)
    assert rows["area90"]["a_low"] == pytest.approx(0.9 * value)
    text = with_band(value, 0.9 * value, 1.1 * value)
    assert rows["area90"]["a"]["text"] == text and "[" in text
    assert rows["uniform_distance"]["uniform"]["value"] == 0
    assert "named20" not in rows, "our definition draws the mass itself"
    assert "square99" not in rows, "nothing reaches it"
    assert {c["key"] for c in panel["columns"]} == set(rows["area50"])


def test_squares_under_the_definitions_transform_are_named_by_it() -> None:
    result = erf_result("ss2d", definition="replknet")
    rows = {r["id"]: r["cells"] for r in erf_numbers_panel([result], "a")["rows"]}
    assert rows["named20"]["metric"]["value"] == "square 20 % of log10(x + 1)"


def test_the_tables_file_holds_exact_numbers_and_bands() -> None:
    panel = erf_numbers_panel([erf_result("es2d:step=2"), erf_result("ss2d")], "ab")
    lines = str(in_node("csv(p.columns, p.rows)", panel)).split("\r\n")
    assert lines[0] == (
        "number,unit,ES2D,ES2D low,ES2D high,Full scan,Full scan low,Full scan high,uniform"
    )
    row = lines[2].split(",")
    assert row[:2] == ["densest 50 %", "%"]
    assert float(row[2]) == 100 * erf_result("es2d:step=2").metrics["area50"]


def test_the_uniform_map_has_the_squares_of_the_reference() -> None:
    """Reference, section 2.2: uniform 224 px 20.33/30.15/50.38/99.11 %, 1024 px 20.09/...."""
    for side, expected in (
        (224, (20.33, 30.15, 50.38, 99.11)),
        (1024, (20.09, 30.01, 50.13, 99.03)),
    ):
        found = uniform_metrics(side, side, (side / 2, side / 2))
        squares = [round(100 * found[f"square{t}"], 2) for t in (20, 30, 50, 99)]
        assert squares == list(expected)
    assert found["com_shift_px"] == 0 and found["anisotropy"] == 1
    assert found["radius50_px"] == pytest.approx(1024 * math.sqrt(0.5 / math.pi), rel=1e-3)


def test_phases_are_a_grid_on_one_scale() -> None:
    result = phases_result()
    panel = erf_phases_panel(result, "log")
    dump(panel)
    assert panel["columns"] == 2
    assert [m["left"]["text"] for m in panel["maps"]] == ["(8, 8)", "(8, 9)", "(9, 8)", "(9, 9)"]
    assert [m["right"]["text"] for m in panel["maps"]] == [f"group {g}" for g in (1, 3, 2, 4)]
    assert len({drawn(m)["zmax"] for m in panel["maps"]}) == 1
    assert panel["table"]["rows"][1][:2] == ["(8, 9)", "3, cols"]
    assert "one token alone shows a quarter" in panel["sentence"]


def test_a_stage_without_phases_says_why() -> None:
    note = "From stage 3 on, merging has mixed the phases."
    panel = erf_phases_panel(phases_result(phases=(), note=note, stage=3), "log")
    dump(panel)
    assert panel["empty"]["text"] == note
    assert "maps" not in panel


def int16(z: dict) -> np.ndarray:
    shape = tuple(int(n) for n in z["shape"].split(","))
    return np.frombuffer(base64.b64decode(z["bdata"]), "<i2").reshape(shape)


def test_path_bars_add_up_to_one_and_maps_to_the_gradient() -> None:
    result = paths_result()
    panel = erf_paths_panel(result)
    dump(panel)
    assert [b["text"] for b in panel["blocks"]] == ["1.1", "1.2", "2.1"]
    for bar in panel["blocks"]:
        assert sum(s["share"] for s in bar["segments"]) == pytest.approx(1)
        assert bar["sum"] == "sum +1.00"
        assert bar["sentence"].startswith(f"Through block {bar['text']}: ")
    factor = panel["total"]["read"]["factor"]
    end, largest = signed_limits(result)
    top = drawn(panel["total"])["zmax"]
    assert (top * factor) ** 2 == pytest.approx(end)
    assert largest > end and panel["scale"]["high"].startswith("≥")
    for views in panel["views"]:
        values = sum(
            np.sign(z) * (z * factor) ** 2
            for z in (int16(drawn(v)["z"]).astype(float) for v in views)
        )
        np.testing.assert_allclose(values, result.total, atol=4 * largest / LEVELS)
        assert {(drawn(v)["zmin"], drawn(v)["zmax"]) for v in views} == {(-top, top)}
    colours = {s["path"]: s["colour"] for s in panel["blocks"][0]["segments"]}
    assert colours == {"residual": "@residual", "scan": "@a", "conv": "@conv", "gate": "@gate"}


def test_paths_that_do_not_add_up_are_called_out() -> None:
    good = erf_paths_panel(paths_result())
    assert good["badges"][1] == {
        **good["badges"][1],
        "text": "✓ adds up within 3e-07",
        "tone": "ok",
    }
    result = paths_result()
    wrong = replace(result, blocks=(replace(result.blocks[0], error=0.2), *result.blocks[1:]))
    panel = erf_paths_panel(wrong)
    assert panel["badges"][1]["tone"] == "bad"
    assert "do NOT add up" in panel["sentence"]


def test_the_deepest_block_with_a_scan_is_shown_first() -> None:
    result = paths_result()
    assert default_block(result) == 1
    assert erf_paths_panel(result)["chosen"] == 1
    assert erf_paths_panel(result, 0)["chosen"] == 0
    assert erf_paths_panel(result, 99)["chosen"] == 2
    assert erf_paths_panel(replace(result, blocks=(), note="No block here."))["empty"]["text"] == (
        "No block here."
    )


@pytest.mark.parametrize("size", [224, 512, 1024])
def test_panels_of_four_noisy_fields_stay_small(size: int) -> None:
    rng = np.random.default_rng(0)
    fields = []
    for result in four(size):
        mass = (result.mass + 1e-9) * rng.gamma(0.5, 2.0, result.mass.shape)
        reach = (rng.random(result.mass.shape) < 0.5).astype(np.uint8)  # as frayed as can be
        fields.append(replace(result, mass=(mass / mass.sum()).astype(np.float32), reach=reach))
    for scale in ("log", "power"):
        panel = erf_lab_panel(fields, scale=scale, keys="abcd")
        assert len(dump(panel)) <= MAX_PANEL_BYTES
    assert len(dump(erf_curves_panel(fields, "abcd"))) < 200_000
    phases = phases_result(step=4, phases=phases_result().phases * 4)
    fields = [replace(p, field=fields[i % 4]) for i, p in enumerate(phases.phases)]
    assert len(dump(erf_phases_panel(replace(phases, phases=tuple(fields)), "log"))) <= (
        MAX_PANEL_BYTES
    )
    assert len(dump(erf_paths_panel(paths_result(size // 4, 17)))) <= MAX_PANEL_BYTES


def test_missing_numbers_never_become_nan_in_json() -> None:
    lost = dict.fromkeys(erf_result("ss2d").metrics, math.nan)
    lost |= {"area50": 0.1, "area90": 0.2, "radius50_px": 3.0}
    result = erf_result("ss2d", metrics=lost, metric_low={}, metric_high={})
    for panel in (
        erf_lab_panel([result], scale="log", keys="a"),
        erf_curves_panel([result], "a"),
        erf_numbers_panel([result], "a"),
    ):
        assert "NaN" not in json.dumps(panel, allow_nan=False)


def test_a_single_scale_for_a_field_of_one_pixel() -> None:
    mass = np.zeros((64, 64), np.float32)
    mass[34, 34] = 1
    spike = erf_result("ss2d", mass=mass)
    assert scale_of([spike], "log").top == 1
    for scale in ("log", "linear", "power"):
        dump(erf_lab_panel([spike, spike], scale=scale, keys="ab"))
