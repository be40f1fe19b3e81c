"""The attribution tab as its user meets it: methods, their fields, what stands beside, tokens."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from tests.browser.conftest import VISIBLE
from tests.browser.test_page import choose

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
# Random weights of the test network at 64 px: every panel within a second.
QUICK = "?tab=attribution&model=efficientvmamba_test&weights=random&size=64&stage=1"
PANELS = ("lab_attr", "lab_attr_attention", "lab_attr_paths", "lab_attr_faith")


def n_asked(watched) -> int:
    """Events that the page has sent to the server."""
    return sum("queue/join" in request for request in watched.requests)


def test_the_tab_opens_fills_and_says_what_it_shows(watched) -> None:
    watched.open("?size=64")
    watched.open_tab("Attribution")
    assert "tab=attribution" in watched.page.url
    assert "Grad-CAM" in watched.text("lab_attr") and "stage 4" in watched.text("lab_attr")
    assert "is the operator within" in watched.text("lab_attr_attention")
    assert "adds up within" in watched.text("lab_attr_paths")
    assert "insertion" in watched.text("lab_attr_faith")
    for panel in PANELS:
        size = watched.page.evaluate(
            f"() => window.Workbench.panels().find((p) => p.id === '{panel}').bytes"
        )
        assert 0 < size <= 1_000_000


def test_a_methods_fields_come_and_go_and_are_in_the_link(watched) -> None:
    watched.open(QUICK)
    page = watched.page
    assert page.locator("#wb-attr-fields input:visible").count() == 0
    before = watched.ids()
    choose(watched, "Method", "Integrated gradients")
    watched.wait_changed("lab_attr", before["lab_attr"])
    assert "method=integrated_gradients" in page.url
    assert "input" in watched.text("lab_attr")
    steps = page.get_by_label("Steps", exact=True)
    assert steps.input_value() == "32"
    before = watched.ids()
    steps.fill("4")
    steps.press("Enter")
    watched.wait_changed("lab_attr", before["lab_attr"])
    assert "options=steps=4" in page.url
    assert "omplete" in watched.text("lab_attr")
    # What the method cannot take is refused in words, and nothing changes.
    before = watched.ids()
    steps.fill("0")
    steps.press("Enter")
    page.locator(".toast-body", has_text="from 1 to").first.wait_for()
    watched.finished()
    assert watched.ids() == before
    assert "options=steps=4" in page.url


def test_another_network_and_another_class_stand_beside(watched) -> None:
    watched.open(QUICK + "&target=1")
    page = watched.page
    before = watched.ids()
    choose(watched, "Beside", "Full scan, same weights")
    watched.wait_changed("lab_attr", before["lab_attr"])
    assert "beside=scan" in page.url
    assert page.locator("[data-panel='lab_attr'] .wb-map").count() == 5 + 5 + 4
    assert "correlation" in watched.text("lab_attr")
    before = watched.ids()
    page.get_by_label("Against class", exact=True).click()
    page.get_by_role("option").nth(4).click()
    watched.wait_changed("lab_attr", before["lab_attr"])
    assert "contrast=3" in page.url
    assert "against" in watched.text("lab_attr")


def test_a_token_picked_on_a_map_attends_anew(watched) -> None:
    watched.open(QUICK)
    before = watched.ids()
    watched.page.mouse.click(*watched.point("lab_attr", 0.3, 0.7, index=1))
    watched.wait_changed("lab_attr_attention", before["lab_attr_attention"])
    assert "y=4" in watched.page.url and "x=11" in watched.page.url
    assert "token (4, 11)" in watched.text("lab_attr_attention")
    assert watched.ids()["lab_attr"] == before["lab_attr"], "the maps do not depend on the token"
    watched.page.get_by_role("radio", name="is read by").click()
    assert watched.page.get_by_role("radio", name="is read by").get_attribute("aria-checked") == (
        "true"
    )
    # Opacity, readings and blocks are chosen in the browser alone.
    page = watched.page
    asked = n_asked(watched)
    page.get_by_label("Opacity of the maps over the photo").fill("1")
    opacity = page.evaluate(
        "() => document.querySelectorAll(`[data-panel='lab_attr'] .wb-map .js-plotly-plot`)[1]"
        ".data[0].opacity"
    )
    assert opacity == 1
    row = page.locator("[data-panel='lab_attr_paths'] .wb-pathrow").first
    row.click()
    assert row.get_attribute("aria-checked") == "true"
    assert "Block 1.1" in watched.text("lab_attr_paths")
    assert n_asked(watched) == asked


def test_a_stage_without_scan_says_so_and_keeps_the_rest(watched) -> None:
    watched.open(QUICK.replace("stage=1", "stage=3"))
    assert "no scan" in watched.text("lab_attr_attention").lower()
    assert "stage 3" in watched.text("lab_attr_faith")


def test_weights_made_random_on_demand_and_the_export(watched, tmp_path: Path) -> None:
    watched.open(QUICK + "&beside=random")
    before = watched.ids()
    watched.page.get_by_label("Randomise the weights").check()
    watched.wait_changed("lab_attr_faith", before["lab_attr_faith"])
    assert "sanity=1" in watched.page.url
    assert "weights made random" in watched.text("lab_attr_faith")
    with watched.page.expect_download(timeout=60_000) as download:
        watched.page.get_by_role("button", name="Export").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        names = {name for name in archive.namelist() if name.endswith(".json")}
        wanted = ("maps_a", "maps_b", "evidence", "attention_a", "attention_b", "faithfulness")
        assert {f"{name}.json" for name in (*wanted, "randomisation")} <= names
        for picture in ("maps.png", "evidence.png", "attention.png", "faithfulness.png"):
            assert archive.read(picture)[:4] == b"\x89PNG"
        made = json.load(io.BytesIO(archive.read("maps_a.json")))
        assert made["provenance"]["model"] == "efficientvmamba_test"


def test_the_tab_stacks_on_a_narrow_screen(watched) -> None:
    watched.page.set_viewport_size({"width": 700, "height": 900})
    watched.open(f"{QUICK}&__theme=dark")
    tops = watched.page.evaluate(f"() => {VISIBLE}.map((p) => p.getBoundingClientRect().top)")
    assert len(set(tops)) == 4
    assert watched.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth + 1")
