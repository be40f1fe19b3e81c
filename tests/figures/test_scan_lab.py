"""Panels of the scan tab: what they say and draw is what the results hold, and they stay small."""

from __future__ import annotations

import base64
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kernels
from tests.figures.conftest import provenance, scan_result
from workbench.figures.reach import reach_panel
from workbench.figures.scan_lab import scan_lab_panel, story_panel
from workbench.figures.scheme_table import scheme_table_panel
from workbench.labels import scan_label, scan_short
from workbench.results import (
    ReachResult,
    ReachStep,
    ScanResult,
    SchemeRow,
    SchemeTableResult,
)
from workbench.ui.components.plotly_panel import MAX_PANEL_BYTES, dump

COMPONENTS = Path(__file__).parents[2] / "workbench" / "ui" / "components"
NO_SCAN = "Stage 3 has no scan: its blocks are convolutions."


def random_result(size: int, seed: int, n_sequences: int) -> ScanResult:
    rng = np.random.default_rng(seed)
    n_tokens = (size // 4) ** 2
    index = np.stack([rng.permutation(n_tokens) for _ in range(n_sequences)]).astype(np.int32)
    parameter_set = np.arange(n_sequences) % 4
    return replace(scan_result("ss2d", size), index=index, parameter_set=parameter_set)


def reach_result(scan: str, size: int = 64, **changes: object) -> ReachResult:
    """Reach of the middle token of a 16 x 16 map along the first sequence that reads it."""
    found = scan_result(scan, size)
    side = found.height
    y = x = side // 2
    back = np.full(side * side, -1, np.int32)
    sequence = next(ids for ids in found.index if (ids == y * side + x).any())
    here = int(np.flatnonzero(sequence == y * side + x)[0])
    back[sequence[: here + 1]] = here - np.arange(here + 1)
    back = back.reshape(side, side)
    steps = np.arange(here + 1)
    values: dict = {
        "provenance": found.provenance,
        "stage": 1,
        "y": y,
        "x": x,
        "height": side,
        "width": side,
        "stride": 4,
        "has_scan": True,
        "note": "",
        "layer": "layers.0.blocks.0.op",
        "steps_back": back,
        "steps_on": np.where(back == 0, 0, -1).astype(np.int32),
        "decay": np.where(back >= 0, 0.5 ** np.maximum(back, 0), 0).astype(np.float32),
        "curve_steps": steps.astype(np.int32),
        "curve_p20": (0.25**steps).astype(np.float32),
        "curve_p50": (0.5**steps).astype(np.float32),
        "curve_p80": (0.8**steps).astype(np.float32),
        "half_steps": 1.0,
        "mean_reach": 0.125,
        "restored": (
            ReachStep(name="scan alone", share=0.13, mean_share=0.125),
            ReachStep(name="with the 3x3 convolution before it", share=0.5, mean_share=0.45),
        ),
    }
    return ReachResult(**(values | changes))


def table_result() -> SchemeTableResult:
    rows = []
    for scan, ms in (("es2d:step=2", 1.0), ("ss2d", 2.0), ("groupmamba", float("nan"))):
        order = kernels.scan_order(scan, 8, 8)
        rows.append(
            SchemeRow(
                scan=scan,
                label=scan_label(scan),
                definition="by hand",
                is_runnable=ms == ms,
                why_not="" if ms == ms else "needs another network: four quarters of channels",
                metrics=order.metrics(),
                n_parameter_sets=4,
                flops=123_456,
                bytes=7,
                exps=1,
                p20_ms=0.9 * ms,
                p50_ms=ms,
                p80_ms=1.1 * ms,
                error=1e-7 if ms == ms else float("nan"),
                status="measured" if ms == ms else "path only",
            )
        )
    return SchemeTableResult(
        provenance=provenance("es2d:step=2"),
        stage=1,
        height=8,
        width=8,
        channels=4,
        states=2,
        rank=1,
        rows=tuple(rows),
        clock="by hand",
    )


def values(trace: dict) -> np.ndarray:
    shape = tuple(int(n) for n in trace["z"]["shape"].split(","))
    return np.frombuffer(base64.b64decode(trace["z"]["bdata"]), "<f4").reshape(shape)


def test_lab_names_badges_and_reading_of_every_scheme(rgb: np.ndarray) -> None:
    a, b = scan_result("es2d:step=2"), scan_result("ss2d")
    wrong = replace(b, is_verified=False, disagreement="sequence 1, step 2: other")
    path_only = replace(b, is_verified=False, is_runnable=False)
    panel = scan_lab_panel([a, wrong, path_only], rgb, 3, 5)
    assert [s["tone"] for s in panel["schemes"]] == ["a", "b", "c"]
    assert [s["badge"]["text"] for s in panel["schemes"]] == [
        "✓ verified",
        "✗ sequence 1, step 2: other",
        "path only: needs another network",
    ]
    assert panel["schemes"][0]["facts"] == "4 × 64 · reach 12.7 %"
    assert panel["sentence"] == (
        "ES2D reads 256 tokens, the full scan 1,024, the full scan 1,024. "
        "The focus comes 18th in group 4, 54th in group 1, 54th in group 1."
    )


@pytest.mark.parametrize("n", [1, 4])
def test_lab_shows_two_or_three_schemes(n: int, rgb: np.ndarray) -> None:
    with pytest.raises(ValueError, match="2 or 3"):
        scan_lab_panel([scan_result("ss2d")] * n, rgb, 0, 0)


def test_pads_are_counted_where_there_are_some(rgb: np.ndarray) -> None:
    panel = scan_lab_panel([scan_result("es2d:step=3"), scan_result("ss2d")], rgb, 0, 0)
    assert "68 pads" in panel["schemes"][0]["facts"]
    assert "pad" not in panel["schemes"][1]["facts"]


def test_every_panel_of_a_stage_without_scan_is_empty_by_design(rgb: np.ndarray) -> None:
    scan = replace(scan_result("ss2d"), has_scan=False, note=NO_SCAN, stage=3)
    reach = reach_result("ss2d", has_scan=False, note=NO_SCAN, stage=3)
    table = replace(table_result(), rows=(), note=NO_SCAN, stage=3)
    panels = [
        scan_lab_panel([scan, scan], rgb, 0, 0),
        reach_panel(reach, reach, rgb),
        story_panel(scan, scan, rgb),
        scheme_table_panel(table, ("es2d:step=2", "ss2d")),
    ]
    for panel in panels:
        assert panel["empty"]["title"] == "Stage 3 has no scan"
        assert panel["sentence"] == NO_SCAN
        dump(panel)


def test_a_1024_px_photo_with_regular_schemes_is_sent_whole() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    results = [scan_result(scan, 1024) for scan in ("es2d:step=3", "ss2d", "es2d:step=4")]
    panel = scan_lab_panel(results, photo, 128, 128)
    assert [s["every"] for s in panel["schemes"]] == [1, 1, 1]
    assert len(dump(panel)) < 400_000


def test_orders_without_any_pattern_are_thinned_and_it_is_said() -> None:
    photo = np.random.default_rng(0).integers(0, 255, (1024, 1024, 3), dtype=np.uint8)
    results = [random_result(1024, seed, 4) for seed in range(3)]
    panel = scan_lab_panel(results, photo, 128, 128)
    assert len(dump(panel)) <= MAX_PANEL_BYTES
    every = panel["schemes"][0]["every"]
    assert every > 1
    assert f"every {every}" in panel["schemes"][0]["facts"]


def test_three_random_schemes_of_56_by_56_tokens_are_sent_whole(rgb: np.ndarray) -> None:
    panel = scan_lab_panel([random_result(224, seed, 4) for seed in range(3)], rgb, 28, 28)
    assert {s["every"] for s in panel["schemes"]} == {1}
    assert len(dump(panel)) < 150_000


def test_reach_maps_hold_the_steps_and_leave_the_rest_bare(rgb: np.ndarray) -> None:
    a, b = reach_result("es2d:step=2"), reach_result("ss2d")
    panel = reach_panel(a, b, rgb)
    back, decay, on = panel["variants"]
    assert [v["text"] for v in panel["variants"]] == [
        "steps back",
        "influence left",
        "whom it influences",
    ]
    drawn = values(back["maps"][0]["figure"]["data"][0])
    np.testing.assert_array_equal(drawn, np.where(a.steps_back >= 0, a.steps_back, np.nan))
    assert len({m["figure"]["data"][0]["zmax"] for m in back["maps"]}) == 1, "one scale for both"
    left = values(decay["maps"][0]["figure"]["data"][0])
    assert left[a.y, a.x] == 0  # log10 of everything
    assert np.isnan(left[a.steps_back < 0]).all()
    assert np.isfinite(values(on["maps"][0]["figure"]["data"][0])).sum() == 1
    assert panel["sentence"].startswith("One scan of ES2D lets this token see ")
    assert panel["shares"]["rows"][1]["values"][0]["share"] == 0.5
    assert len(dump(panel)) < 200_000


def test_reach_of_one_scheme_and_of_a_path_without_decay(rgb: np.ndarray) -> None:
    assert len(reach_panel(reach_result("ss2d"), None, rgb)["variants"][0]["maps"]) == 1
    none = np.zeros(0, np.float32)
    path_only = reach_result(
        "ss2d",
        decay=np.full((16, 16), np.nan, np.float32),
        curve_steps=none.astype(np.int32),
        curve_p20=none,
        curve_p50=none,
        curve_p80=none,
        half_steps=float("nan"),
    )
    panel = reach_panel(reach_result("es2d:step=2"), path_only, rgb)
    dump(panel)
    assert panel["table"]["rows"][2][1:] == ["1.0 steps", "n/a"]
    assert panel["variants"][1]["maps"][1]["read"]["none"] == "not known: path only"


def test_reach_of_a_large_map_is_binned_and_it_is_said() -> None:
    rgb = np.zeros((1024, 1024, 3), np.uint8)
    a = reach_result("ss2d", 1024)
    panel = reach_panel(a, a, rgb)
    assert "3 × 3 tokens a cell" in panel["badges"][0]["text"]
    drawn = values(panel["variants"][0]["maps"][0]["figure"]["data"][0])
    assert drawn[a.y // 3, a.x // 3] == 0, "a cell shows its nearest token"
    assert len(dump(panel)) < 600_000


def test_table_marks_the_chosen_and_the_path_only_rows() -> None:
    panel = scheme_table_panel(table_result(), ("es2d:step=2", "ss2d", "ss2d"))
    dump(panel)
    assert [row["slots"] for row in panel["rows"]] == [["a"], ["b", "c"], []]
    assert [row["tone"] for row in panel["rows"]] == ["a", "b", ""]
    last = panel["rows"][2]
    assert last["faint"]
    assert last["cells"]["p50_ms"]["text"] == "not measured"
    assert last["cells"]["why_not"].startswith("needs another network")
    assert panel["choose"] == {"id": "scheme", "key": "scan", "slots": ["a", "b", "c"]}
    assert {c["key"] for c in panel["columns"]} == set(panel["rows"][0]["cells"])
    assert "one scan of the full scan takes 2.0 times as long as one of ES2D" in panel["sentence"]


def in_node(expression: str, panel: dict) -> object:
    """`expression` over `csv`, `compare` of the table's script and the payload `p`."""
    program = (
        "const window = globalThis;"
        f"{(COMPONENTS / 'data_table.js').read_text()}\n"
        "const { csv, compare } = WorkbenchParts.table({ Panel: class {} });"
        f"const p = {json.dumps(panel)}; console.log(JSON.stringify({expression}));"
    )
    answer = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True)
    return json.loads(answer.stdout)


def test_csv_holds_exact_values_and_quotes_commas() -> None:
    panel = scheme_table_panel(table_result(), ("es2d:step=2", "ss2d"))
    lines = str(in_node("csv(p.columns, p.rows)", panel)).split("\r\n")
    assert lines[0].startswith("scheme,sequences,length [steps],tokens [read],")
    assert lines[1].startswith('"ES2D, step 2",4,16,64,0,1,1,4,')
    reach = table_result().rows[0].metrics["mean_reach"]
    assert f",{reach!r}," in lines[1]
    assert lines[3].count("not measured") == 0, "a missing number is an empty field"


@pytest.mark.parametrize(("key", "sign"), [("p50_ms", 1), ("p50_ms", -1), ("label", 1)])
def test_missing_numbers_sort_last_both_ways(key: str, sign: int) -> None:
    panel = scheme_table_panel(table_result(), ("es2d:step=2", "ss2d"))
    expression = (
        f"p.rows.sort(compare(p.columns.find((c) => c.key === '{key}'), {sign})).map((r) => r.id)"
    )
    expected = {
        ("p50_ms", 1): ["es2d:step=2", "ss2d", "groupmamba"],
        ("p50_ms", -1): ["ss2d", "es2d:step=2", "groupmamba"],
        ("label", 1): ["es2d:step=2", "ss2d", "groupmamba"],
    }[key, sign]
    assert in_node(expression, panel) == expected


def test_story_counts_n_4n_and_n_again(rgb: np.ndarray) -> None:
    real = [scan_result(scan, 224).metrics for scan in ("es2d:step=2", "ss2d")]
    small = [scan_result(scan, 32) for scan in ("es2d:step=2", "ss2d")]
    es2d, ss2d = (replace(r, metrics=m) for r, m in zip(small, real, strict=True))
    panel = story_panel(es2d, ss2d, rgb)
    assert [step["value"] for step in panel["steps"]] == [3136, 12544, 3136]
    assert [step["title"][4:] for step in panel["steps"]] == [
        "N patches",
        "full scan: 4N",
        "atrous scan: N",
    ]
    assert "256 reads" in panel["steps"][1]["text"]
    assert "64 reads" in panel["steps"][2]["text"]
    assert len(dump(panel)) < 60_000


def test_every_scheme_has_a_name_in_words() -> None:
    for name in kernels.scan_orders():
        text = str(kernels.ScanSpec(name, {}))
        assert scan_label(text)[0].isupper(), text
        assert scan_short(text)[0].isupper(), text
    assert scan_short("hilbert:reverse=2,transpose=2") == "Hilbert, both ways, + transposed"
    assert scan_short("windows:size=2") == "Windows 2"
    assert scan_label("zigma:path=3") == "ZigMa, eight snakes, path 3"
