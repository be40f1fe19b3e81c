"""The profiler's panels and files: what is drawn is what the results hold, and they stay small."""

from __future__ import annotations

import base64
import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.figures.profiler_results import (
    SCANS,
    StoredRun,
    compared,
    comparison,
    cpu_trace,
    kernel,
    memory,
    missing,
    names_result,
    operator,
    point,
    sweep_result,
    timeline,
    trace_result,
)
from workbench.figures.paper_parts import png
from workbench.figures.paper_profiler import (
    comparison_figure,
    sweep_figure,
    trace_figure,
)
from workbench.figures.profiler_csv import comparison_csv, sweep_csv, sweep_latex, trace_csv
from workbench.figures.profiler_runs import ratio_ticks, reach, runs_panel
from workbench.figures.profiler_sweep import bytes_text, ratios, sweep_panel
from workbench.figures.profiler_trace import (
    COLOURS,
    MAX_ROWS,
    category_group,
    thinned,
    time_text,
    timeline_panel,
    trace_panel,
)
from workbench.figures.theme import LIGHT
from workbench.ui.components.plotly_panel import MAX_PANEL_BYTES, dump


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def table_of(panel: dict, key: str) -> dict:
    return next(t for t in panel["tables"] if t["key"] == key)


def column(table: dict, key: str) -> list:
    at = [c["key"] for c in table["columns"]].index(key)
    return [row[at] for row in table["rows"]]


# Sweep


def test_the_lines_are_the_measured_points() -> None:
    result = sweep_result()
    lines, ratio = sweep_panel(result)["charts"]
    drawn = [t for t in lines["figure"]["data"] if "name" in t]
    assert [t["line"]["color"] for t in drawn] == ["@a", "@b"]
    for trace, series in zip(drawn, SCANS, strict=True):
        points = [p for p in result.points if p.series == series and p.is_measured]
        assert trace["x"] == [p.x for p in points]
        assert trace["y"] == [p.p50_ms for p in points]
    assert lines["legend"][1]["text"] == "Full scan, slope 1.95 [1.90, 2.00]"
    assert lines["figure"]["layout"]["xaxis"]["ticktext"] == ["64", "128", "224", "384"]
    measured = ratio["figure"]["data"][-1]
    assert measured["y"] == pytest.approx([2, 2.75, 3.5])
    # Both counts say 4 at every point: one line with both names.
    (expected,) = ratio["figure"]["data"][:-1]
    assert expected["y"] == pytest.approx([4, 4, 4], rel=0.03)
    assert expected["name"] == "tokens read and serial depth"


def test_counts_that_differ_are_two_labelled_lines() -> None:
    points = [replace(p, depth=2 * p.depth if p.series == "ss2d" else p.depth)
              for p in sweep_result().points]  # fmt: skip
    chart = sweep_panel(sweep_result(points=tuple(points)))["charts"][1]
    assert [t["name"] for t in chart["figure"]["data"]] == [
        "tokens read",
        "serial depth",
        "measured",
    ]
    labels = [a["text"] for a in chart["figure"]["layout"]["annotations"]]
    assert labels == ["tokens read 4.00", "serial depth 8.00"]
    assert chart["figure"]["layout"]["yaxis"]["range"][0] == 0


def test_a_label_stands_where_the_measured_line_is_not() -> None:
    chart = sweep_panel(sweep_result())["charts"][1]
    (label,) = chart["figure"]["layout"]["annotations"]
    # The measured line runs from 2 to 3.5 below the 4 that is expected.
    assert label["x"] == pytest.approx(math.log10(64))
    assert (label["xanchor"], label["yanchor"]) == ("left", "bottom")


def test_the_ratio_spans_the_quotients_of_the_ends() -> None:
    last = ratios(sweep_result())[2]
    assert last.low == pytest.approx(3.5 * 0.94 / 1.06)
    assert last.high == pytest.approx(3.5 * 1.06 / 0.94)


def test_a_point_without_a_time_says_why() -> None:
    panel = sweep_panel(sweep_result())
    row = next(r for r in panel["rows"] if r["id"] == "ss2d|384")
    assert row["faint"]
    assert row["cells"]["p50"] == {
        "value": None,
        "text": "out of memory: 9.1 GB were asked for",
    }
    assert "1 of 7 points was not measured" in panel["sentence"]
    bars = sweep_panel(names_result())["charts"][0]
    assert [row["text"] for row in bars["rows"]] == ["float32", "bfloat16", "float16"]
    assert all(b["share"] is None and "float16" in b["text"] for b in bars["rows"][2]["bars"])


def test_bars_start_at_zero_and_share_one_scale() -> None:
    rows = sweep_panel(names_result())["charts"][0]["rows"]
    longest = 13.0 * 1.06
    shares = [b["share"] for row in rows[:2] for b in row["bars"]]
    assert shares == pytest.approx([4 / longest, 12 / longest, 5 / longest, 13 / longest])


def test_a_growing_sweep_is_live_and_an_empty_one_says_what_to_do() -> None:
    points = sweep_result().points[:1]
    panel = sweep_panel(sweep_result(points=points, fits=(), is_final=False))
    assert panel["is_live"]
    assert len(panel["charts"]) == 1  # nothing to compare yet
    empty = sweep_panel(sweep_result(points=(), fits=()))
    assert "Run" in empty["empty"]["text"]
    nothing = sweep_panel(sweep_result(points=(missing("ss2d", 64, "out of memory"),), fits=()))
    assert "1 of 1 points" in nothing["sentence"]
    dump(nothing)


def test_more_than_four_names_share_a_neutral_colour() -> None:
    names = ("es2d:step=2", "ss2d", "raster", "snake", "hilbert")
    points = tuple(point(name, i, 3.0 + i, label=name) for i, name in enumerate(names))
    result = sweep_result(
        axis="scan", axis_label="scan", is_numeric=False, series=names, points=points, fits=()
    )
    rows = sweep_panel(result)["charts"][0]["rows"]
    assert [row["bars"][0]["tone"] for row in rows] == ["a", "b", "plain", "plain", "plain"]


@pytest.mark.parametrize(
    ("n", "text"), [(999, "999 B"), (12_345, "12.3 kB"), (4e9, "4.00 GB"), (math.nan, "n/a")]
)
def test_bytes_in_words(n: float, text: str) -> None:
    assert bytes_text(n) == text


# Trace


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0 ns"), (870, "870 ns"), (4_200, "4.20 µs"), (1_234_567, "1.23 ms"), (2.5e9, "2.50 s")],
)
def test_time_in_words(ns: float, text: str) -> None:
    assert time_text(ns) == text


@pytest.mark.parametrize(
    ("word", "group"),
    [
        ("cpu_op", "operator"),
        ("gpu_memcpy", "memcpy"),
        ("hip_runtime", "runtime"),
        ("kernel", "kernel"),
        ("user_annotation", "module"),
        ("Trace", "other"),
    ],
)
def test_categories_have_a_colour(word: str, group: str) -> None:
    assert category_group(word) == group
    assert COLOURS[group] in LIGHT


def test_tables_hold_exact_values() -> None:
    result = trace_result()
    panel = trace_panel(result, view_stage=1)
    assert [t["key"] for t in panel["tables"]] == [
        *("operators", "kernels", "modules", "steps", "gaps", "memory"),
    ]
    operators = table_of(panel, "operators")
    assert column(operators, "share") == [0.75, 0.25]
    assert column(operators, "self_gpu") == [3_000_000, 1_000_000]
    modules = table_of(panel, "modules")
    assert modules["levels"] == [m.depth for m in result.modules]
    assert modules["stages"] == [0, 0, 1, 1, 1, 1, 2]
    assert column(modules, "path")[4] == "stages.0.blocks.0.op"
    assert panel["stage"] == 1
    steps = table_of(panel, "steps")
    assert [p["text"] for p in steps["parts"]] == ["kernel", "operator", "other"]
    assert [sum(parts) for parts in column(steps, "parts")] == column(steps, "duration")
    owners = table_of(panel, "memory")
    assert sum(column(owners, "bytes")) == result.memory[0].peak_bytes
    for table in panel["tables"]:
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_a_cpu_trace_has_no_columns_of_a_gpu() -> None:
    panel = trace_panel(cpu_trace(memory=()))
    assert [t["key"] for t in panel["tables"]] == ["operators", "modules", "steps", "gaps"]
    for table in panel["tables"]:
        assert not any("gpu" in c["key"] for c in table["columns"])
    assert "self CPU time" in panel["sentence"]


def test_unknown_facts_of_a_kernel_are_empty() -> None:
    unknown = kernel("k", 8, registers=-1, shared_bytes=-1, occupancy=math.nan, calls=0)
    table = table_of(trace_panel(trace_result(kernels=(unknown,))), "kernels")
    for key in ("registers", "shared", "occupancy", "mean"):
        assert column(table, key) == [None]


def test_long_tables_are_cut_in_words_and_stay_within_the_budget() -> None:
    many = tuple(operator(f"aten::{'µ' * 900}{i}", 5_000 - i) for i in range(3_000))
    kernels = tuple(kernel("void " + "<>" * 2_000 + str(i), 9_000 - i) for i in range(3_000))
    panel = trace_panel(trace_result(operators=many, kernels=kernels))
    table = table_of(panel, "operators")
    assert len(table["rows"]) == MAX_ROWS
    assert table["note"] == "The 500 largest of 3,000; the export holds all."
    assert len(dump(panel)) < MAX_PANEL_BYTES


def test_the_timeline_carries_every_event() -> None:
    t = timeline(3_000)
    panel = timeline_panel(trace_result(timeline=t))
    events = panel["events"]
    assert events["n"] == t.start_ns.size
    np.testing.assert_array_equal(unpacked(events["start"], "<f8"), t.start_ns)
    np.testing.assert_array_equal(unpacked(events["duration"], "<f8"), t.duration_ns)
    np.testing.assert_array_equal(unpacked(events["depth"], "<u2"), t.depth)
    names = np.array(events["names"])[unpacked(events["name"], "<u2")]
    assert names.tolist() == [t.names[i] for i in t.name]
    assert panel["sentence"] == "All 3,000 events that can be drawn."
    assert not {"perfetto", "download", "tensorboard"} & set(panel)


def test_a_reduced_timeline_says_what_is_left_out() -> None:
    panel = timeline_panel(trace_result(timeline=timeline(600, n_all=109_312)))
    assert panel["sentence"] == "600 of 109,312 events: those under 4.20 µs are left out."


def test_twenty_thousand_strange_names_fit() -> None:
    n = 19_998
    t = timeline(n)
    strange = tuple(f"\x00\ud83d漢{'字' * 300}{i}" for i in range(n))
    panel = timeline_panel(
        trace_result(timeline=replace(t, names=strange, name=np.arange(n, dtype=np.int32)))
    )
    assert len(dump(panel)) < MAX_PANEL_BYTES
    kept = panel["events"]["n"]
    assert 1_000 < kept < n
    durations = unpacked(panel["events"]["duration"], "<f8")
    assert durations.min() >= np.sort(t.duration_ns)[::-1][kept - 1]
    assert panel["sentence"].startswith(f"{kept:,} of {n:,} events: those under")


def test_a_thinned_memory_keeps_its_peak() -> None:
    m = memory(20_000)
    time, values = thinned(m.time_ns, m.n_bytes, 500)
    assert time.size <= 500
    assert values.max() == m.peak_bytes
    assert m.peak_ns in time
    assert np.all(np.diff(time) > 0)


def test_a_timeline_without_events_says_so() -> None:
    none = timeline(0)
    assert "No event" in timeline_panel(trace_result(timeline=none))["empty"]["title"]


# Runs


def test_runs_are_listed_as_given_and_the_comparison_is_drawn_around_one() -> None:
    runs = [StoredRun("a" * 12, name="before"), StoredRun("b" * 12, created="not a time")]
    sweeps = (sweep_result(), sweep_result())
    panel = runs_panel(runs, comparison(), ("3 MB of 512 MB.",), ("a" * 12, "b" * 12), sweeps)
    assert [r["when"] for r in panel["runs"]] == ["2026-11-28 12:20", "not a time"]
    assert panel["selected"] == ["a" * 12, "b" * 12]
    found = panel["comparison"]
    assert [t["text"] for t in found["ticks"]] == ["0.667", "0.8", "1", "1.25", "1.5"]
    assert found["ticks"][2]["at"] == 0
    assert found["rows"][1]["ratio_text"] == "1.31 [1.24, 1.38]"
    assert found["rows"][5] | {"ratio": None, "b": None, "b_text": "–"} == found["rows"][5]
    assert [g["key"] for g in found["groups"]] == ["total", "point"]
    dashes = [t["line"]["dash"] for t in panel["overlay"]["figure"]["data"]]
    assert dashes == ["solid", "solid", "dash", "dash"]
    assert "1.20 times the time in all; 2 slower, 1 faster" in panel["sentence"]
    dump(panel)


def test_a_small_change_looks_small_and_a_wild_one_stays_inside() -> None:
    assert reach([compared("x", 1.001)]) == pytest.approx(math.log(1.25))
    assert reach([compared("x", 1e9)]) == pytest.approx(math.log(32))
    assert reach([compared("x", math.nan), compared("y", 0.0)]) == pytest.approx(math.log(1.25))
    for far in (math.log(1.25), math.log(3), math.log(32)):
        assert all(abs(math.log(t)) <= far for t in ratio_ticks(far))


def test_an_empty_store_says_what_to_do() -> None:
    assert "sweep" in runs_panel([])["empty"]["text"]


# Files


@pytest.mark.parametrize(
    "figure",
    [
        sweep_figure(sweep_result()),
        sweep_figure(names_result()),
        sweep_figure(sweep_result(points=sweep_result().points[:1], fits=())),
        trace_figure(trace_result()),
        trace_figure(cpu_trace(steps=(), modules=())),
        comparison_figure(comparison()),
        comparison_figure(comparison(rows=())),
    ],
    ids=["sizes", "names", "one point", "gpu", "cpu", "comparison", "nothing in common"],
)
def test_figures_keep_their_text_inside(figure) -> None:
    figure.savefig(io.BytesIO(), dpi=60)
    drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert drawn.x0 >= -0.01 and drawn.x1 <= width + 0.01
    assert drawn.y0 >= -0.01 and drawn.y1 <= height + 0.01
    assert not figure.axes[0].get_window_extent().overlaps(figure.texts[0].get_window_extent())


def test_the_same_result_is_the_same_picture() -> None:
    first, again = (png(comparison_figure(comparison())) for _ in range(2))
    assert first == again


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_csv_of_a_sweep_holds_all_samples() -> None:
    result = sweep_result()
    rows = rows_of(sweep_csv(result))
    assert len(rows) == len(result.points)
    assert [float(v) for v in rows[0]["samples_ms"].split()] == list(result.points[0].samples_ms)
    assert float(rows[1]["p50_ms"]) == result.points[1].p50_ms
    assert rows[-1]["p50_ms"] == "" and rows[-1]["status"].startswith("out of memory")


def test_csv_of_a_trace_holds_all_rows_and_no_formula() -> None:
    hostile = operator('=HYPERLINK("http://x")', 5)
    rows = (*trace_result().operators, hostile, operator("half \ud800 pair", 4))
    result = trace_result(operators=rows, operator_steps_ns=np.arange(12).reshape(4, 3))
    files = trace_csv(result)
    assert set(files) == {"operators", "kernels", "modules"}
    operators = rows_of(files["operators"])
    assert operators[2]["name"] == '\'=HYPERLINK("http://x")'
    assert [operators[1][f"step_{i}_ns"] for i in range(3)] == ["3", "4", "5"]
    assert len(rows_of(files["modules"])) == len(result.modules)
    unknown = trace_csv(trace_result(kernels=(kernel("k", 8, registers=-1, occupancy=math.nan),)))
    row = rows_of(unknown["kernels"])[0]
    assert (row["registers"], row["occupancy"], row["shared_bytes"]) == ("", "", "49152")


def test_csv_of_a_comparison() -> None:
    rows = rows_of(comparison_csv(comparison()))
    assert [r["verdict"] for r in rows][:3] == ["slower", "slower", "faster"]
    assert rows[5]["ratio"] == "" and rows[5]["run_b"] == "after"


def test_latex_rows_are_the_measured_points() -> None:
    text = sweep_latex(sweep_result())
    rows = [line for line in text.splitlines() if not line.startswith("%")]
    assert len(rows) == 6
    assert rows[0].startswith("ES2D & 64 & ") and rows[0].endswith(r"\\")
    assert "% ss2d 384: out of memory" in text


def test_one_line_of_names_says_which_is_fastest() -> None:
    points = tuple(
        point("scan", i, median=ms, label=name)
        for i, (name, ms) in enumerate((("Snake", 3.0), ("Hilbert", 2.0), ("ZigMa", 8.0)))
    )
    panel = sweep_panel(
        sweep_result(axis="scan", is_numeric=False, series=("scan",), points=points, fits=())
    )
    assert panel["sentence"] == (
        "Hilbert is the fastest with 2.00 ms; ZigMa takes 4.00 times as long."
    )
    assert panel["notes"] == []
