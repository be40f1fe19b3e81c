"""The page as its user meets it: first picture, changes, linked panels, Stop, broken files."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser.conftest import VISIBLE

UPLOAD = "input[type=file][data-testid$='-upload-button']"
pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def choose(watched, elem_id_label: str, option: str) -> None:
    """Pick an option of a Gradio dropdown by its label."""
    page = watched.page
    page.get_by_label(elem_id_label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()


def test_first_paint_is_a_finished_stored_picture_then_live(watched) -> None:
    watched.open(is_finished=False)
    first = watched.page.evaluate("() => document.body.innerText")
    assert "stored example" in first
    assert watched.page.locator(".wb-panel .js-plotly-plot").count() >= 8
    watched.finished()
    live = watched.page.evaluate("() => document.body.innerText")
    assert "stored example" not in live
    assert "verified on the running operator" in live
    for panel in ("scan", "erf", "attribution", "profile"):
        assert watched.text(panel)


def test_changing_photo_model_and_scheme_recomputes(watched) -> None:
    watched.open("?size=64")
    ids = watched.ids()
    watched.page.click(".wb-photo[data-photo='coffee']")
    watched.wait_changed("erf", ids["erf"])
    assert "image=coffee" in watched.page.url
    photo = watched.ids()
    assert all(photo[name] != ids[name] for name in ("scan", "erf", "attribution"))

    choose(watched, "Scan A", "ES2D, step 3")
    watched.wait_changed("erf", photo["erf"])
    assert "scan=es2d:step=3" in watched.page.url
    assert "9 × " in watched.text("scan")
    scheme = watched.ids()

    watched.page.locator("#wb-controls label", has_text="Small").click()
    watched.wait_changed("profile", scheme["profile"])
    assert "model=efficientvmamba_small" in watched.page.url
    assert "Small" in watched.page.inner_text("#wb-header")
    assert "random" in watched.page.inner_text("#wb-header").lower()


def test_panels_are_small_say_what_they_show_and_hover_links_them(watched) -> None:
    watched.open()
    for panel in ("scan", "erf", "attribution", "profile"):
        size = watched.page.evaluate(
            f"() => window.Workbench.panels().find((p) => p.id === '{panel}').bytes"
        )
        assert 0 < size <= 1_000_000
    assert "reads each token once, in 4 groups of 196" in watched.text("scan")
    assert "4 × 784" in watched.text("scan")
    assert "of the image" in watched.text("erf")
    assert "logit" in watched.text("attribution")
    assert "times as long as" in watched.text("profile")
    before = {name: watched.overlay(name) for name in ("scan", "erf", "attribution")}
    watched.page.wait_for_timeout(500)
    count = len(watched.requests)
    watched.page.mouse.move(*watched.point("scan", 0.25, 0.3))
    watched.page.wait_for_timeout(300)
    state = watched.state()["hover"]
    assert abs(state["y"] - 0.25 * 224) < 3
    assert abs(state["x"] - 0.3 * 224) < 3
    for name, pixels in before.items():
        assert watched.overlay(name) != pixels, f"{name} does not show the hovered token"
    assert "row 7, column 8" in watched.text("scan")
    assert len(watched.requests) == count, "hovering called the server"
    watched.page.mouse.move(5, 5)
    watched.page.wait_for_timeout(200)
    assert watched.state()["hover"] is None


def test_click_moves_the_focus_everywhere_and_recentres_the_field(watched) -> None:
    watched.open()
    ids = watched.ids()
    watched.page.mouse.click(*watched.point("scan", 0.2, 0.7))
    watched.wait_changed("erf", ids["erf"])
    assert {k: watched.state()["focus"][k] for k in ("stage", "y", "x")} == {
        "stage": 2,
        "y": 5,
        "x": 19,
    }
    assert "token (5, 19)" in watched.text("erf")
    assert "row 5, column 19" in watched.page.inner_text("#wb-focus")
    assert re.search(r"stage=2.*y=5.*x=19", watched.page.url)
    assert watched.ids()["profile"] == ids["profile"], "a pick must not measure again"
    watched.page.keyboard.press("Escape")
    watched.page.wait_for_function("() => /y=14.*x=14/.test(location.search)")
    watched.finished()


def test_keyboard_moves_the_focus_and_the_player(watched) -> None:
    watched.open()
    watched.page.locator(".wb-panel[data-panel='scan'] .wb-map").focus()
    watched.page.keyboard.press("ArrowRight")
    watched.page.wait_for_function("() => /x=15/.test(location.search)")
    watched.finished()
    player = watched.page.locator(".wb-player")
    drawn = watched.overlay("scan")
    player.get_by_label("One step back").click()
    assert "step 195 of 196" in player.inner_text()
    assert watched.overlay("scan") != drawn
    player.get_by_label("Step of the scan").fill("10")
    assert "step 10 of 196" in player.inner_text()
    player.get_by_label("Play").click()
    watched.page.wait_for_timeout(700)
    player.get_by_label("Pause").click()
    step = int(re.search(r"step (\d+) of", player.inner_text())[1])
    assert step > 10
    count = len(watched.requests)
    watched.page.get_by_role("radio", name="Full scan").click()
    assert "of 784" in player.inner_text()
    assert len(watched.requests) == count


def test_a_stage_without_scan_says_so(watched) -> None:
    watched.open()
    ids = watched.ids()
    watched.page.locator("#wb-controls label", has_text="3").last.click()
    watched.wait_changed("scan", ids["scan"])
    assert "Stage 3 has no scan" in watched.text("scan")
    assert "token (7, 7)" in watched.text("erf")
    assert "stage=3" in watched.page.url


def test_link_restores_the_view_and_reports_what_it_cannot(watched) -> None:
    query = "?image=rocket&stage=1&y=3&x=50&scan=es2d:step=4&scan_b=es2d:step=1&nonsense=1"
    watched.open(query, is_finished=False)
    watched.page.locator(".toast-body", has_text="nonsense=1 was ignored").first.wait_for()
    watched.finished()
    assert watched.page.locator(".wb-photo[data-photo='rocket']").get_attribute("aria-checked") == (
        "true"
    )
    assert "token (3, 50)" in watched.text("erf")
    assert "16 × 196" in watched.text("scan")
    assert "nonsense" not in watched.page.url


def test_stop_ends_the_work_and_keeps_what_is_done(watched) -> None:
    watched.open("?model=efficientvmamba_base&image=astronaut", is_finished=False)
    watched.page.wait_for_function(
        "() => !document.querySelector(`.wb-panel[data-panel='scan']`)"
        ".dataset.resultId.startsWith('stored')",
        timeout=60_000,
    )
    watched.page.click("#wb-stop")
    watched.page.wait_for_function("() => !document.querySelector('.wb-busy')", timeout=20_000)
    stopped = watched.ids()
    assert not stopped["scan"].startswith("stored")
    assert stopped["erf"] == "stored-erf", "the last panel must not have been computed"
    watched.page.wait_for_timeout(3000)
    assert watched.ids() == stopped, "work went on after Stop"


def test_a_broken_upload_changes_nothing_and_a_photo_is_used(watched, tmp_path: Path) -> None:
    watched.open()
    ids = watched.ids()
    buffer = io.BytesIO()
    Image.fromarray(np.full((300, 300, 3), 90, np.uint8)).save(buffer, "JPEG")
    (tmp_path / "text.png").write_text("this is no picture")
    (tmp_path / "truncated.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 3])
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    for name in ("text.png", "truncated.jpg", "tiny.png"):
        watched.page.set_input_files(UPLOAD, str(tmp_path / name))
        watched.page.locator(".toast-body", has_text=f"not used: {name}").first.wait_for()
        watched.finished()
        assert watched.ids() == ids
    rng = np.random.default_rng(0)
    path = tmp_path / "mine.png"
    Image.fromarray(rng.integers(0, 255, (80, 120, 3), dtype=np.uint8)).save(path)
    watched.page.set_input_files(UPLOAD, str(path))
    watched.wait_changed("attribution", ids["attribution"])
    assert "image=upload-" in watched.page.url


def test_a_pasted_and_a_dropped_photo_are_used(watched) -> None:
    watched.open()
    for way, shade in (("paste", 60), ("drop", 160)):
        ids = watched.ids()
        buffer = io.BytesIO()
        Image.fromarray(np.full((64, 96, 3), shade, np.uint8)).save(buffer, "PNG")
        watched.page.evaluate(HAND_OVER_JS, [way, list(buffer.getvalue())])
        watched.wait_changed("attribution", ids["attribution"])
        assert "image=upload-" in watched.page.url
        assert "64 × 64 of 96 × 64 px" in watched.page.inner_text("#wb-photos")


def test_export_holds_numbers_and_pictures(watched) -> None:
    watched.open()
    with watched.page.expect_download(timeout=60_000) as download:
        watched.page.get_by_role("button", name="Export").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        names = archive.namelist()
        pictures = [name for name in names if name.endswith(".png")]
        assert {Path(name).name for name in pictures} == {
            "scan.png",
            "erf.png",
            "attribution.png",
            "profile.png",
        }
        for name in pictures:
            assert Image.open(io.BytesIO(archive.read(name))).width > 800
        assert any(name.endswith(".npz") for name in names)
        texts = [json.loads(archive.read(name)) for name in names if name.endswith(".json")]
        assert any("efficientvmamba_tiny" in json.dumps(text) for text in texts)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_follow_the_theme_with_enough_contrast(watched, theme: str) -> None:
    watched.open(f"?__theme={theme}")
    contrast = watched.page.evaluate(CONTRAST_JS)
    assert contrast["paper"] == ("rgb(22, 29, 39)" if theme == "dark" else "rgb(255, 255, 255)")
    poor = [item for item in contrast["texts"] if item["ratio"] < 4.5]
    assert not poor, poor
    ticks = watched.page.evaluate(
        "() => getComputedStyle(document.querySelector('.wb-chart .xtick text')).fill"
    )
    assert ticks == ("rgb(154, 167, 184)" if theme == "dark" else "rgb(91, 102, 118)")


def test_narrow_screens_stack_the_panels(watched) -> None:
    watched.page.set_viewport_size({"width": 700, "height": 900})
    watched.open()
    tops = watched.page.evaluate(f"() => {VISIBLE}.map((p) => p.getBoundingClientRect().top)")
    assert sorted(tops) == tops
    assert len(set(tops)) == 4
    assert watched.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth + 1")


CONTRAST_JS = """() => {
  const parse = (c) => (c.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = getComputedStyle(document.querySelector('.wb-panel')).backgroundColor;
  const back = light(parse(paper));
  const texts = [];
  for (const node of document.querySelectorAll(
    '.wb-panel h2, .wb-badge, .wb-sentence, .wb-table th, .wb-table td, figcaption span')) {
    if (!node.textContent.trim() || !node.offsetParent) continue;
    const front = light(parse(getComputedStyle(node).color));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    texts.push({ text: node.textContent.slice(0, 40), ratio });
  }
  return { paper, texts };
}"""

HAND_OVER_JS = """([way, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], 'p.png', { type: 'image/png' }));
  const event = way === 'paste'
    ? new ClipboardEvent('paste', { clipboardData: data, bubbles: true })
    : new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true });
  document.body.dispatchEvent(event);
}"""
