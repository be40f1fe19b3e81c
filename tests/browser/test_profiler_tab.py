"""The profiler tab as its user meets it: a sweep, a trace, its timeline, kept runs."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
# The test network over four steps: every point within a tenth of a second.
QUICK = "?tab=profiler&model=efficientvmamba_test&weights=random&size=64&axis=step&steps=4"
UPLOAD = "input[data-testid='Open a trace-upload-button']"
PANELS = ("lab_prof_sweep", "lab_prof_trace", "lab_prof_timeline", "lab_prof_runs")


def a_trace(path: Path) -> Path:
    """One kernel that an operator launched, in the format of torch.profiler."""
    lane = {"ph": "X", "pid": 1, "tid": 1}
    events = [
        lane
        | {"cat": "cpu_op", "name": "aten::mul", "ts": 1.0, "dur": 9.5}
        | {"args": {"External id": 7}},
        lane
        | {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "ts": 2.0, "dur": 3.0}
        | {"args": {"External id": 7, "correlation": 3}},
        {"ph": "X", "pid": 0, "tid": 7, "cat": "kernel", "name": "mul_kernel", "ts": 6.0}
        | {"dur": 2.5, "args": {"correlation": 3, "device": 0, "grid": [4, 1, 1]}},
    ]
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    return path


def test_the_tab_measures_and_keeps_what_it_measured(watched) -> None:
    watched.open(QUICK)
    page = watched.page
    assert "within" in watched.text("lab_prof_sweep") and "ES2D" in watched.text("lab_prof_sweep")
    assert "efficientvmamba::scan2d" in watched.text("lab_prof_trace")
    assert "events" in watched.text("lab_prof_timeline")
    for panel in PANELS:
        size = page.evaluate(
            f"() => window.Workbench.panels().find((p) => p.id === '{panel}').bytes"
        )
        assert 0 < size <= 1_000_000
    assert page.locator("[data-panel='lab_prof_timeline'][data-drawn]").count() == 1
    rows = page.locator(".wb-runlist tbody tr")
    n_runs = rows.count()
    assert n_runs >= 2
    # Run measures anew, and the new runs are in the list.
    before = watched.ids()
    page.locator("#wb-run").click()
    watched.wait_changed("lab_prof_sweep", before["lab_prof_sweep"])
    assert watched.ids()["lab_prof_trace"] != before["lab_prof_trace"]
    assert rows.count() == n_runs + 2
    # Two sweeps beside each other, named and exported.
    sweeps = page.locator(".wb-runlist tbody tr", has_text="sweep")
    before = watched.ids()
    sweeps.nth(0).get_by_role("button", name="as run A").click()
    sweeps.nth(1).get_by_role("button", name="as run B").click()
    page.get_by_role("button", name="Compare A with B").click()
    watched.wait_changed("lab_prof_runs", before["lab_prof_runs"])
    assert "runs=" in page.url
    assert page.locator(".wb-forest .wb-ratiodot").count() >= 8
    with page.expect_download() as waiting:
        sweeps.nth(0).get_by_role("button", name="Export").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert "sweep.json" in archive.namelist()


def test_the_modules_mark_the_stage_and_pick_it(watched) -> None:
    watched.open(QUICK + "&stage=1")
    panel = watched.page.locator("[data-panel='lab_prof_trace']")
    panel.get_by_role("radio", name="Modules").click()
    assert "EVSSBlock" in panel.inner_text()
    marked = panel.locator(".wb-inblock").first
    assert "stage 1, block 1" in marked.inner_text()
    before = watched.ids()
    panel.get_by_role("button", name="stage 2").first.click()
    watched.page.wait_for_function("() => location.search.includes('stage=2')")
    watched.finished()
    assert watched.ids()["lab_prof_sweep"] == before["lab_prof_sweep"], "times are kept"


def test_a_trace_of_the_users_own_is_read_and_left_again(watched, tmp_path: Path) -> None:
    watched.open(QUICK)
    page = watched.page
    before = watched.ids()
    page.set_input_files(UPLOAD, str(a_trace(tmp_path / "mine.json.gz")))
    watched.wait_changed("lab_prof_trace", before["lab_prof_trace"])
    assert "aten::mul" in watched.text("lab_prof_trace") and "trace=" in page.url
    assert "mine.json.gz" in watched.text("lab_prof_trace")
    broken = tmp_path / "broken.json"
    broken.write_text("<html>no trace</html>")
    before = watched.ids()
    page.set_input_files(UPLOAD, str(broken))
    watched.wait_changed("lab_prof_trace", before["lab_prof_trace"])
    assert "not a trace" in watched.text("lab_prof_trace")
    before = watched.ids()
    page.locator("#wb-prof-set button").first.click()
    watched.wait_changed("lab_prof_trace", before["lab_prof_trace"])
    assert "scan2d" in watched.text("lab_prof_trace") and "trace=" not in page.url


def test_stop_keeps_the_points_that_were_measured(watched) -> None:
    watched.open("?tab=profiler&model=efficientvmamba_tiny&size=224&steps=1", is_finished=False)
    page = watched.page
    page.wait_for_function(
        "() => document.querySelectorAll(\"[data-panel='lab_prof_sweep'] tbody tr\").length >= 2",
        timeout=120_000,
    )
    page.locator("#wb-stop").click()
    watched.finished()
    n = page.locator("[data-panel='lab_prof_sweep'] tbody tr").count()
    assert 2 <= n < 14
