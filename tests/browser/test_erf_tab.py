"""The receptive-field lab as its user meets it: networks, paths, phases, photos, Stop, links."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser.test_page import choose
from workbench.export import load_results

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

QUICK = "?model=efficientvmamba_test&weights=random&size=96&stage=1&images=2&tab=erf"
PANELS = ("lab_erf", "lab_erf_curves", "lab_erf_numbers", "lab_erf_phases", "lab_erf_paths")
N_MAPS = ".wb-panel[data-panel='lab_erf'] .wb-map"


def test_the_tab_opens_fills_and_says_what_it_shows(watched) -> None:
    watched.open(QUICK.replace("&tab=erf", ""))
    watched.open_tab("ERF")
    assert "tab=erf" in watched.page.url
    for panel in PANELS:
        size = watched.page.evaluate(
            f"() => window.Workbench.panels().find((p) => p.id === '{panel}').bytes"
        )
        assert 0 < size <= 1_000_000
    assert watched.page.locator(N_MAPS).count() == 3  # two networks and their difference
    fields = watched.text("lab_erf")
    assert "stage 1, token (12, 12)" in fields and "2 images of 96 × 96 px" in fields
    assert "each image divided by its own sum" in fields
    assert "resamples" in watched.text("lab_erf_curves")
    assert "densest 90 %" in watched.text("lab_erf_numbers")
    assert watched.page.locator("[data-panel='lab_erf_phases'] .wb-map").count() == 4
    assert re.search(r"adds? up.* within [\d.]+e-\d\d", watched.text("lab_erf_paths"))
    before = watched.ids()
    watched.open_tab("Overview")
    watched.open_tab("ERF")
    assert watched.ids().items() >= {name: before[name] for name in PANELS}.items()


def test_a_pick_moves_every_field_and_the_phases(watched) -> None:
    watched.open(QUICK)
    before = watched.ids()
    watched.page.mouse.click(*watched.point("lab_erf", 0.9, 0.3))
    watched.wait_changed("lab_erf", before["lab_erf"])
    assert "y=21&x=7" in watched.page.url
    assert "token (21, 7)" in watched.text("lab_erf")
    assert "(20, 6)" in watched.text("lab_erf_phases")


def test_what_is_compared_and_how_is_in_the_link_and_restored(watched) -> None:
    watched.open(QUICK)
    for label, option, part in (
        ("SE gates", "frozen", "gates=frozen"),
        ("Definition", "RepLKNet", "definition=replknet"),
        ("Token of", "block 1, scan path", "unit=block1.scan"),
    ):
        choose(watched, label, option)
        # The link and the panels' busy marks come together, with the first word of the new run.
        watched.page.wait_for_function("(part) => location.search.includes(part)", arg=part)
        watched.finished()
    text = watched.text("lab_erf")
    assert "block 1, scan path" in text and "RepLKNet" in text and "gates frozen" in text
    assert "log10" in text and "can matter" in text
    address = watched.page.url
    for part in ("gates=frozen", "definition=replknet", "unit=block1.scan", "images=2"):
        assert part in address
    ids = watched.ids()
    watched.open(address.partition("/?")[2].join(["?", ""]))
    assert watched.ids().items() >= {name: ids[name] for name in PANELS}.items()


def test_colours_are_drawn_again_without_computing(watched) -> None:
    watched.open(QUICK)
    ids = watched.ids()
    choose(watched, "Colours", "linear")
    watched.wait_changed("lab_erf", ids["lab_erf"])
    assert "linear" in watched.text("lab_erf") and "scale=linear" in watched.page.url
    assert watched.ids()["lab_erf_numbers"] == ids["lab_erf_numbers"]


def test_a_convolutional_network_stands_beside(watched) -> None:
    watched.open(QUICK + "&nets=scan,timm:resnet18")
    assert watched.page.locator(N_MAPS).count() == 4
    text = watched.text("lab_erf")
    assert "resnet18" in text and "random weights" in text
    first = watched.overlay("lab_erf", 3)
    watched.page.locator("[data-panel='lab_erf'] .wb-rival").nth(1).click()
    assert "difference to resnet18" in watched.text("lab_erf")
    assert watched.overlay("lab_erf", 3) is not None and first


def test_zoom_of_one_map_is_the_zoom_of_all(watched) -> None:
    watched.open(QUICK)
    ranges = (
        "() => [...document.querySelectorAll(\"[data-panel='lab_erf'] .wb-plot\")]"
        ".map((p) => p._fullLayout.xaxis.range.map(Math.round).join())"
    )
    page = watched.page
    assert len(set(page.evaluate(ranges))) == 1
    start, end = watched.point("lab_erf", 0.2, 0.2), watched.point("lab_erf", 0.6, 0.6)
    page.mouse.move(*start)
    page.mouse.down()
    page.mouse.move(*end, steps=6)
    page.mouse.up()
    page.wait_for_function(f"() => ({ranges})().every((r) => r !== '0,96')")
    assert len(set(page.evaluate(ranges))) == 1


def test_a_bar_of_the_paths_shows_its_blocks_maps(watched) -> None:
    watched.open(QUICK.replace("stage=1", "stage=3"))
    panel = watched.page.locator("[data-panel='lab_erf_paths']")
    rows = panel.locator(".wb-pathrow")
    assert rows.count() >= 3
    asked = len(watched.requests)
    rows.first.click()
    assert rows.first.get_attribute("aria-checked") == "true"
    assert "scan" in panel.inner_text()
    assert len(watched.requests) == asked, "a click on a bar asks the server nothing"
    assert "merging" in watched.text("lab_erf_phases")


def test_stop_keeps_the_photos_that_were_done_and_export_has_them(watched, tmp_path: Path) -> None:
    watched.open(QUICK.replace("images=2", "images=5000"), is_finished=False)
    page = watched.page
    page.wait_for_function(
        "() => /[1-9]\\d* of 5,?000/.test("
        "document.querySelector(\"[data-panel='lab_erf']\").innerText)",
        timeout=120_000,
    )
    page.locator("#wb-stop").click()
    page.wait_for_function("() => !document.querySelector('.wb-panel.wb-busy')", timeout=60_000)
    kept = watched.text("lab_erf")
    assert "of 5" in kept and page.locator(N_MAPS).count() == 3
    assert not re.search(r"not computed", kept)
    with page.expect_download() as download:
        page.get_by_role("button", name="Export").click()
    file = tmp_path / "export.zip"
    download.value.save_as(file)
    results = load_results(file).results
    for key in ("erf_a", "erf_b"):
        assert 1 <= results[key].n_images < results[key].n_planned == 5000


def test_own_photos_are_averaged(watched, tmp_path: Path) -> None:
    files = []
    for i in range(3):
        rgb = np.random.default_rng(i).integers(0, 255, (100, 120, 3), dtype=np.uint8)
        files.append(tmp_path / f"photo{i}.png")
        Image.fromarray(rgb).save(files[-1])
    (tmp_path / "notes.png").write_text("no picture")
    watched.open(QUICK)
    ids = watched.ids()
    watched.page.locator("#wb-erf-photos input[type=file]").set_input_files(
        [*files, tmp_path / "notes.png"]
    )
    watched.wait_changed("lab_erf", ids["lab_erf"])
    assert "3 images" in watched.text("lab_erf")
    assert "notes.png is not a picture" in watched.page.inner_text("body")
    ids = watched.ids()
    watched.page.locator("#wb-erf-set").get_by_text("gallery").click()
    watched.wait_changed("lab_erf", ids["lab_erf"])
    assert "32 images" in watched.text("lab_erf")


def test_the_export_of_the_tab_holds_every_field(watched, tmp_path: Path) -> None:
    watched.open(QUICK)
    with watched.page.expect_download() as download:
        watched.page.get_by_role("button", name="Export").click()
    file = tmp_path / "export.zip"
    download.value.save_as(file)
    bundle = load_results(file)
    assert set(bundle.results) == {"erf_a", "erf_b", "erf_phases", "erf_paths"}
    assert bundle.results["erf_a"].n_images == 2
    assert {"erf", "erf_phases", "erf_paths"} == set(bundle.pictures)
    assert bundle.tables["erf"].count(b"\n") >= 3 and b"&" in bundle.latex["erf"]


def test_the_tab_stacks_on_a_narrow_screen(watched) -> None:
    watched.page.set_viewport_size({"width": 700, "height": 900})
    watched.open(QUICK)
    boxes = [
        watched.page.locator(f".wb-panel[data-panel='{name}']").bounding_box() for name in PANELS
    ]
    assert all(box["width"] <= 700 for box in boxes)
    assert [box["y"] for box in boxes] == sorted(box["y"] for box in boxes)
