"""The profiler's components in Chromium, on a page of their own, without the app."""

from __future__ import annotations

import pytest

from tests.figures.profiler_results import StoredRun, comparison, sweep_result, trace_result
from workbench.figures.profiler_runs import runs_panel
from workbench.figures.profiler_sweep import sweep_panel
from workbench.figures.profiler_trace import timeline_panel, trace_panel
from workbench.ui.components import profiler
from workbench.ui.components.plotly_panel import STYLES, dump, static_files

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory: pytest.TempPathFactory):
    """Opens the components on a page of their own; `page(kind, payload)` mounts one."""
    folder = tmp_path_factory.mktemp("profiler")
    style = "".join(path.read_text("utf-8") for path in STYLES)
    scripts = "".join(f'<script src="{path.as_uri()}"></script>' for path in static_files())
    (folder / "page.html").write_text(
        f"<!doctype html><meta charset=utf-8><style>{style}</style><body>"
        f'<div class="wb-host"></div>{scripts}<script>window.events = [];</script></body>',
        encoding="utf-8",
    )
    opened = browser.new_page(viewport={"width": 1120, "height": 760})
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))

    def mount(component: type, payload: dict):
        opened.goto((folder / "page.html").as_uri())
        opened.evaluate(
            "([kind, value]) => Workbench.mount(kind, document.querySelector('.wb-host'), "
            "{value}, (name, data) => events.push([name, data]), () => {})",
            [component.kind, dump(payload)],
        )
        return opened

    yield mount
    opened.close()
    assert not errors


def test_sweep_in_the_browser(page) -> None:
    opened = page(profiler.SweepLab, sweep_panel(sweep_result()))
    opened.wait_for_selector(".wb-profcharts .main-svg")
    assert opened.locator(".wb-profcharts .wb-chart").count() == 2
    opened.get_by_role("button", name="median").click()
    assert opened.locator(".wb-grid tbody tr").first.inner_text().split()[:3] == [
        "Full",
        "scan",
        "224",
    ]
    opened.locator("summary").click()
    assert "2.14.1" in opened.locator(".wb-card dl").inner_text()


def test_tables_in_the_browser(page) -> None:
    opened = page(profiler.TraceTables, trace_panel(trace_result(), 1))
    rows = opened.locator(".wb-grid tbody tr")
    assert rows.first.inner_text().startswith("aten::mm")
    opened.get_by_role("button", name="total CPU").click()
    opened.get_by_role("button", name="total CPU").click()
    assert rows.first.inner_text().startswith("aten::conv2d")
    opened.get_by_role("radio", name="Modules").click()
    assert rows.count() == 6  # the parts of blocks are folded
    assert opened.locator(".wb-instage").count() == 3
    opened.get_by_role("radio", name="all", exact=True).click()
    assert rows.count() == 7
    opened.get_by_label("Search").fill("es2d")
    assert rows.count() == 4  # with the parts that hold it
    opened.locator(".wb-stagechip").first.click()
    assert opened.evaluate("events") == [["pick", {"stage": 1, "keep": True}]]


def test_timeline_in_the_browser(page) -> None:
    panel = timeline_panel(trace_result(), tensorboard="tensorboard --logdir '/a b'")
    opened = page(profiler.TraceTimeline, panel)
    lab = opened.locator('[data-panel="lab_prof_timeline"]')
    opened.wait_for_function("document.querySelector('.wb-panel').dataset.drawn > 0")
    assert opened.locator(".wb-command").inner_text() == "tensorboard --logdir '/a b'"
    assert opened.get_by_role("button", name="Perfetto").count() == 0
    opened.get_by_label("Search events").fill("GEMM")
    assert lab.get_attribute("data-matches") == "20"
    opened.keyboard.press("Enter")
    assert "gemm" in (lab.get_attribute("data-selected") or "")
    assert "GPU 0, stream 7" in opened.locator(".wb-timedetail").inner_text()
    canvas = opened.locator(".wb-timecanvas")
    canvas.focus()
    for key, width in (("+", 0.5), ("+", 0.25), ("-", 0.5), ("0", 1)):
        opened.keyboard.press(key)
        opened.wait_for_timeout(60)
        span = int(lab.get_attribute("data-to")) - int(lab.get_attribute("data-from"))
        assert span == pytest.approx(width * trace_result().span_ns, rel=1e-3)
    canvas.hover(position={"x": 500, "y": 50})
    opened.mouse.wheel(0, -240)
    opened.wait_for_timeout(60)
    assert int(lab.get_attribute("data-to")) - int(lab.get_attribute("data-from")) < 5_000_000


def test_perfetto_opens_on_this_page_only(page) -> None:
    opened = page(
        profiler.TraceTimeline,
        timeline_panel(trace_result(), perfetto="https://example.org/{origin}"),
    )
    opened.get_by_role("button", name="Perfetto").click()
    assert opened.locator("iframe").count() == 0


def test_runs_in_the_browser(page) -> None:
    runs = [
        StoredRun("a" * 12, name="before"),
        StoredRun("b" * 12, name="<b>after</b>"),
        StoredRun("c" * 12, kind="trace"),
    ]
    opened = page(profiler.RunsLab, runs_panel(runs, comparison(), (), ("a" * 12, "c" * 12)))
    assert "cannot be compared" in opened.locator(".wb-count").first.inner_text()
    opened.get_by_role("button", name="Use <b>after</b> as run B").click()
    opened.get_by_role("button", name="Compare A with B").click()
    opened.get_by_role("button", name="Rename before").click()
    opened.locator(".wb-nameinput").fill("first")
    opened.keyboard.press("Enter")
    opened.get_by_role("button", name="Export before").click()
    opened.get_by_role("button", name="Delete before").click()
    opened.get_by_text("Really delete?").click()
    assert [event[1] for event in opened.evaluate("events")] == [
        {"do": "compare", "a": "a" * 12, "b": "b" * 12},
        {"do": "rename", "id": "a" * 12, "name": "first"},
        {"id": "a" * 12},
        {"do": "delete", "id": "a" * 12},
    ]
    assert opened.locator(".wb-forest .wb-ratiodot").count() == 5
    opened.get_by_label("Search runs").fill("trace")
    assert opened.locator(".wb-runlist tbody tr").count() == 1
