"""The profiler lab: what a view measures, what is kept, stopped, brought and compared."""

from __future__ import annotations

import gzip
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from workbench.bundle import compute_all
from workbench.errors import BadInputError, CancelledError, NotAvailableError, WorkbenchError
from workbench.figures.paper import render
from workbench.files import tables
from workbench.permalink import read, write
from workbench.profiler_results import SweepResult, TraceResult
from workbench.progress import CancelToken, Progress, result_of
from workbench.runtime import Workbench
from workbench.settings import Settings
from workbench.view import View

VIEW = View(
    model="efficientvmamba_test", weights="random", size=64, tab="profiler", prof_steps=2, stage=1
)
VALUES = (64, 96)


@pytest.fixture
def lab_wb(tmp_path: Path) -> Workbench:
    return Workbench(Settings(runs=tmp_path / "runs.sqlite", traces=tmp_path / "traces"))


def a_trace(path: Path, microseconds: float = 5.0) -> Path:
    event = {"ph": "X", "cat": "cpu_op", "name": "aten::mul", "pid": 1, "tid": 1, "ts": 10}
    text = json.dumps({"traceEvents": [event | {"dur": microseconds}]})
    path.write_bytes(gzip.compress(text.encode()))
    return path


def test_a_sweep_grows_is_kept_and_shared(lab_wb: Workbench) -> None:
    lab = lab_wb.profiler_lab
    items = [i for i in lab.sweep(VIEW, values=VALUES) if isinstance(i, SweepResult)]
    assert len(items) > 1 and [i.is_final for i in items] == [False] * (len(items) - 1) + [True]
    result = items[-1]
    assert result.series == (VIEW.scan_a, VIEW.scan_b)
    assert {(p.series, p.label) for p in result.points} == {
        (scan, str(size)) for scan in result.series for size in VALUES
    }
    assert all(p.is_measured and p.error < 1e-4 for p in result.points)
    (run,) = lab.listed()
    assert run.kind == "sweep" and lab.runs.result(run.id).points[0].p50_ms > 0
    assert result_of(lab.sweep(VIEW, values=VALUES)) is result and len(lab.listed()) == 1


def test_run_measures_anew(lab_wb: Workbench) -> None:
    lab = lab_wb.profiler_lab
    first = result_of(lab.trace(VIEW))
    assert result_of(lab.trace(VIEW)) is first
    lab.again(VIEW)
    assert result_of(lab.trace(VIEW)) is not first
    assert [run.kind for run in lab.listed()] == ["trace", "trace"]


def test_a_stopped_sweep_keeps_what_was_measured(lab_wb: Workbench) -> None:
    lab = lab_wb.profiler_lab
    view = replace(VIEW, prof_axis="step")
    for n_points in (2, 4):  # of 8: one value of four, then two
        token = CancelToken()
        assert not lab.listed()
        with pytest.raises(CancelledError):
            for item in lab.sweep(view, token):
                if isinstance(item, SweepResult) and len(item.points) >= n_points:
                    token.cancel()
    kept = lab.kept_sweep(view)
    assert kept is not None and not kept.is_final and len(kept.points) == 4
    assert "Stopped early" in kept.note
    (run,) = lab.listed()
    assert len(lab.runs.result(run.id).points) == len(kept.points)


@pytest.mark.parametrize("passes", ["forward", "train"])
def test_a_trace_knows_its_modules_and_steps(lab_wb: Workbench, passes: str) -> None:
    result = result_of(lab_wb.profiler_lab.trace(replace(VIEW, prof_passes=passes)))
    assert isinstance(result, TraceResult) and result.kind == "cpu" and result.passes == passes
    assert len(result.steps) == 2
    if passes == "forward":  # the passes that our kernels fuse are operators, too
        assert {"map_ops::layer_norm", "map_ops::gated_sum"} <= {r.name for r in result.operators}
    assert {(1, 1), (2, 1)} <= {(m.stage, m.block) for m in result.modules}
    assert lab_wb.profiler_lab.files.path(result.file).is_file()
    assert result.provenance.parameters["passes"] == passes
    ways = lab_wb.profiler_lab.ways_out(result)
    assert ways["tensorboard"].find("tensorboard --logdir") >= 0


def test_a_trace_that_is_brought(lab_wb: Workbench, tmp_path: Path) -> None:
    lab = lab_wb.profiler_lab
    view = replace(VIEW, prof_trace=lab.bring(a_trace(tmp_path / "mine.json.gz")))
    result = result_of(lab.trace(view))
    assert [row.name for row in result.operators] == ["aten::mul"]
    assert result_of(lab.trace(view)) is result
    with pytest.raises(WorkbenchError, match="not a trace"):
        broken = tmp_path / "broken.json"
        broken.write_text("<html></html>")
        result_of(lab.read(broken))
    with pytest.raises(WorkbenchError):
        lab_wb.resolve(replace(VIEW, prof_trace="../../etc/passwd"))


def test_two_runs_are_compared(lab_wb: Workbench, tmp_path: Path) -> None:
    lab = lab_wb.profiler_lab
    for name, time in (("one", 5.0), ("two", 10.0)):
        result_of(lab.read(a_trace(tmp_path / f"{name}.json.gz", time)))
        lab.runs.rename(lab.listed()[0].id, name)
    comparison = lab.compare("one", "two")
    (row,) = (row for row in comparison.rows if row.table == "operator")
    assert row.name == "aten::mul" and row.ratio == pytest.approx(2)
    ids = tuple(run.id for run in reversed(lab.listed()))
    assert lab.compared(lab_wb.resolve(replace(VIEW, prof_runs=ids))).b == "two"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prof_axis": "colour"}, "size, batch"),
        ({"prof_subject": "head"}, "model, scan"),
        ({"prof_passes": "backward"}, "forward, train"),
        ({"prof_dtype": "int8"}, "float32"),
        ({"prof_batch": 0}, "from 1 to 256"),
        ({"prof_steps": 51}, "from 1 to 50"),
        ({"prof_runs": ("a", "b", "c")}, "two are compared"),
        ({"prof_runs": ("nothing", "such")}, "nothing"),
    ],
)
def test_what_is_not_offered_is_refused_in_words(
    lab_wb: Workbench, change: dict, words: str
) -> None:
    with pytest.raises(WorkbenchError, match=words):
        lab_wb.resolve(replace(VIEW, **change))


def test_a_link_opens_the_lab(lab_wb: Workbench) -> None:
    view = replace(VIEW, prof_axis="batch", prof_batch=2, prof_passes="train", prof_steps=3)
    link = read(dict(parse_qsl(write(view))), lab_wb.resolve)
    assert not link.ignored and link.view.prof_axis == "batch" and link.view.prof_steps == 3


def test_a_store_that_cannot_be_opened_loses_no_result(tmp_path: Path) -> None:
    newer = tmp_path / "runs.sqlite"
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 999")
    lab = Workbench(Settings(runs=newer, traces=tmp_path / "traces")).profiler_lab
    result = result_of(lab.trace(VIEW))
    assert result.operators and lab.listed() == () and lab.problem
    assert lab.problem in lab.notes()


def test_path_only_schemes_have_no_times(lab_wb: Workbench) -> None:
    with pytest.raises(NotAvailableError, match="another network"):
        result_of(lab_wb.profiler_lab.sweep(replace(VIEW, scan_b="vim")))


def test_the_export_of_the_tab(lab_wb: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lab_wb.profiler_lab
    whole = lab.sweep
    monkeypatch.setattr(lab, "sweep", lambda view, token=None: whole(view, token, VALUES))
    results = compute_all(lab_wb, lab_wb.resolve(VIEW))
    assert set(results) == {"trace", "sweep"}
    assert set(render(results, None)) == {"trace.png", "sweep.png"}
    assert {"sweep.csv", "trace_operators.csv", "trace_modules.csv"} <= set(tables(results))


def test_progress_is_told(lab_wb: Workbench) -> None:
    steps = [i for i in lab_wb.profiler_lab.trace(VIEW) if isinstance(i, Progress)]
    assert steps and all(0 <= s.done <= s.total for s in steps)


def test_bad_files_are_refused_when_brought(lab_wb: Workbench, tmp_path: Path) -> None:
    with pytest.raises((BadInputError, NotAvailableError)):
        result_of(lab_wb.profiler_lab.read(tmp_path / "none.json"))
