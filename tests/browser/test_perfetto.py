"""The viewer Perfetto in a frame of the running page, with a trace recorded here."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import assert_clean, start_app, watch
from workbench.perfetto import TraceFiles, is_installed, perfetto_url, read_viewer

pytestmark = [pytest.mark.browser, pytest.mark.timeout(420)]
DRAWN_MS = 180_000  # 11 MB of WebAssembly are compiled twice, on a busy machine
N_PRODUCTS = 3
TRACKS = {"x": 260, "y": 175, "width": 1000, "height": 300}  # px: right of their names
OPEN = """(template) => {
  const frame = document.createElement('iframe');
  frame.id = 'perfetto';
  frame.src = template.replace('{origin}', location.origin);
  Object.assign(frame.style,
    { position: 'fixed', inset: 0, width: '100%', height: '100%', zIndex: 9999 });
  document.body.append(frame);
}"""
# The ways in which the viewer could ask elsewhere.
ASK_ELSEWHERE = """async () => {
  const foreign = 'http://127.0.0.1:9/';
  const blocked = [];
  document.addEventListener('securitypolicyviolation', (e) => blocked.push(e.effectiveDirective));
  const outcomes = { fetch: await fetch(foreign).then(() => 'sent', (e) => e.message) };
  outcomes.script = await new Promise((done) => {
    const script = document.createElement('script');
    script.onload = () => done('loaded');
    script.onerror = () => done('refused');
    script.src = foreign;
    document.head.append(script);
  });
  const request = new XMLHttpRequest();
  request.open('GET', foreign);
  await new Promise((done) => { request.onerror = done; request.send(); });
  new Image().src = foreign;
  try { new WebSocket('ws://127.0.0.1:9/'); } catch { blocked.push('connect-src'); }
  try { eval('1'); outcomes.eval = 'ran'; } catch { outcomes.eval = 'refused'; }
  await new Promise((done) => setTimeout(done, 500));
  return { ...outcomes, blocked: [...new Set(blocked)].sort() };
}"""


@pytest.fixture(scope="module")
def trace_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(address of an app, address of a trace that it keeps)."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    folder = tmp_path_factory.mktemp("perfetto")
    x = torch.randn(64, 64)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(N_PRODUCTS):
            torch.mm(x, x)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    files = TraceFiles(folder / "kept")
    url = files.url(files.keep(folder / "trace.json"))
    process, app = start_app(folder / "app.log", "--traces", str(folder / "kept"))
    yield app, url
    process.terminate()
    process.wait(20)


def test_a_trace_is_drawn_and_nothing_leaves_the_machine(browser, trace_url) -> None:
    app, url = trace_url
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    watched = watch(context, app)
    page = watched.page
    page.goto(app)
    page.evaluate(OPEN, perfetto_url(url))
    frame = page.query_selector("#perfetto").content_frame()
    frame.wait_for_selector("text=main thread", timeout=DRAWN_MS)
    assert f"{app}{url}" in watched.requests
    assert frame.locator(".pf-track").count() >= 3
    # Bars are drawn: text, grid and background are grey or pale.
    assert n_bright(page.screenshot(clip=TRACKS)) > 2_000
    # The viewer found the recorded operators: its search counts and selects them.
    search = frame.locator("input").first
    search.fill("aten::mm")
    search.press("Enter")
    counted = frame.locator("[class*=omnibox]", has_text=f"/ {N_PRODUCTS}").first
    counted.wait_for(timeout=60_000)
    search.press("Enter")
    frame.wait_for_selector("text=cpu_op", timeout=60_000)
    assert frame.locator(".pf-modal-dialog, [role=dialog]").count() == 0
    failure = frame.locator("#app_load_failure")
    assert failure.count() == 0 or failure.evaluate("(e) => e.style.opacity") != "1"
    assert not frame.evaluate("() => navigator.serviceWorker.controller")
    page.wait_for_timeout(6_000)  # the longest wait of its start-up questions
    assert_clean(watched)
    context.close()


def test_the_viewer_cannot_reach_another_host(browser, trace_url) -> None:
    page = browser.new_page()
    page.goto(f"{trace_url[0]}/perfetto/index.html")
    found = page.evaluate(ASK_ELSEWHERE)
    assert found["fetch"] == "Nothing is asked of other hosts." and found["script"] == "refused"
    assert found["eval"] == "refused"
    assert found["blocked"] == ["connect-src", "img-src", "script-src"]
    page.close()


def n_bright(png: bytes) -> int:
    """Pixels of a strong colour."""
    rgb = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return int((np.ptp(rgb, axis=2) > 80).sum())


def test_the_viewer_is_in_the_pinned_package() -> None:
    viewer = read_viewer()
    assert is_installed() and viewer.folder is not None
    assert (viewer.folder / "LICENSE").is_file()
