"""The scan lab as its user meets it: player, keys, table, reach, story, links, honest schemes."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from tests.browser.test_page import choose
from workbench.choices import scan_choices
from workbench.export import load_results

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

QUICK = "?model=efficientvmamba_test&weights=random&size=128&stage=1&tab=scan"
LAB_PANELS = ("lab_scan", "lab_reach", "lab_story", "lab_schemes")


def lab(watched) -> dict:
    return watched.page.evaluate("() => window.Workbench.lab()")


def cells(watched, row: str) -> list[str]:
    found = watched.page.locator("[data-panel='lab_schemes'] tbody tr", has_text=row).first
    return found.locator("th, td").all_inner_texts()


def test_the_tab_opens_fills_and_is_in_the_link(watched) -> None:
    watched.open("?model=efficientvmamba_test&weights=random&size=128&stage=1")
    watched.open_tab("Scan")
    assert "tab=scan" in watched.page.url
    for panel in LAB_PANELS:
        size = watched.page.evaluate(
            f"() => window.Workbench.panels().find((p) => p.id === '{panel}').bytes"
        )
        assert 0 < size <= 1_000_000
    assert watched.text("lab_scan").count("verified") == 2
    assert [s["label"] for s in lab(watched)["schemes"]] == ["ES2D", "Full scan"]
    before = watched.ids()
    watched.open_tab("Overview")
    assert "tab=" not in watched.page.url
    watched.open_tab("Scan")
    assert watched.ids().items() >= {name: before[name] for name in LAB_PANELS}.items()


def test_one_player_moves_every_scheme(watched) -> None:
    watched.open(QUICK + "&scan_c=hilbert")
    page = watched.page
    state = lab(watched)
    lengths = [s["length"] for s in state["schemes"]]
    assert lengths == [256, 1024, 1024]
    page.locator("[data-panel='lab_scan']").click(position={"x": 200, "y": 12})
    page.keyboard.press("Home")
    assert [s["step"] for s in lab(watched)["schemes"]] == [0, 0, 0]
    before = watched.overlay("lab_scan", 2)
    page.keyboard.press("ArrowRight")
    assert lab(watched)["step"] == 1
    page.keyboard.press("End")
    assert [s["step"] for s in lab(watched)["schemes"]] == lengths
    assert watched.overlay("lab_scan", 2) != before
    page.keyboard.press("Home")
    page.keyboard.press(" ")
    page.wait_for_function("() => window.Workbench.lab().step > 20")
    assert lab(watched)["playing"]
    page.keyboard.press(" ")
    assert not lab(watched)["playing"]
    share = [s["step"] / s["length"] for s in lab(watched)["schemes"]]
    assert max(share) - min(share) < 0.01


def test_play_is_smooth_and_asks_the_server_nothing(watched) -> None:
    watched.open("?size=224&stage=1&tab=scan&scan_c=windows:size=7&weights=random")
    page = watched.page
    page.locator("[data-panel='lab_scan']").click(position={"x": 200, "y": 12})
    page.keyboard.press("Home")
    page.wait_for_timeout(1500)
    asked = len(watched.requests)
    frames = page.evaluate("() => window.Workbench.lab().frames")
    page.keyboard.press(" ")
    page.wait_for_timeout(2000)
    page.keyboard.press(" ")
    drawn = page.evaluate("() => window.Workbench.lab().frames") - frames
    # 30 frames a second on a quiet machine (the closing note has the figure); tests run on busy
    # ones, where a player that draws ever more per frame still shows.
    assert drawn >= 20, f"{drawn} frames in two seconds"
    assert len(watched.requests) == asked


def test_a_pick_in_the_lab_moves_reach_and_link(watched) -> None:
    watched.open(QUICK)
    before = watched.ids()
    watched.page.mouse.click(*watched.point("lab_scan", 0.9, 0.9))
    watched.wait_changed("lab_reach", before["lab_reach"])
    assert "y=28&x=28" in watched.page.url
    assert "token (28, 28)" in watched.text("lab_reach")
    # Row 28 is even, so ES2D read its phase row by row: 14 rows of 16 tokens and 15 of its own.
    assert f"{100 * (14 * 16 + 15) / 1024:.1f} %" in watched.text(
        "lab_reach"
    ) and "100 %" in watched.text("lab_reach")


def test_the_table_lists_every_scheme_sorts_and_downloads(watched, tmp_path: Path) -> None:
    watched.open(QUICK)
    page = watched.page
    rows = page.locator("[data-panel='lab_schemes'] tbody tr")
    assert rows.count() == len(scan_choices())
    assert "needs another network" in " ".join(cells(watched, "GroupMamba"))
    head = page.locator("[data-panel='lab_schemes'] th[data-key='mean_reach'] button")
    head.click()
    first = rows.first.inner_text()
    head.click()
    assert rows.first.inner_text() != first
    sorted_by = page.locator("[data-panel='lab_schemes'] thead [aria-sort]")
    assert sorted_by.count() == 1
    with page.expect_download() as download:
        page.locator("[data-panel='lab_schemes']").get_by_text("CSV").click()
    file = tmp_path / "table.csv"
    download.value.save_as(file)
    table = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))))
    assert len(table) == len(scan_choices())
    assert len({tuple(row) for row in table}) == 1


def test_a_scheme_of_the_table_is_put_into_a_slot(watched) -> None:
    watched.open(QUICK)
    before = watched.ids()
    row = watched.page.locator("[data-panel='lab_schemes'] tbody tr", has_text="Spiral").first
    row.hover()
    row.get_by_role("button", name="C", exact=False).last.click()
    watched.wait_changed("lab_scan", before["lab_scan"])
    assert "scan_c=spiral" in watched.page.url
    assert [s["label"] for s in lab(watched)["schemes"]][2] == "Spiral"


def test_another_networks_scheme_is_a_path_only(watched) -> None:
    watched.open(QUICK + "&scan_b=vim")
    assert "path only" in watched.text("lab_scan")
    watched.open_tab("Overview")
    assert "needs another network" in watched.text("erf")
    assert "needs another network" in watched.text("profile")
    assert watched.page.locator("[data-panel='attribution'] .wb-map").count() == 4


def test_a_stage_without_a_scan_says_so_in_every_panel(watched) -> None:
    watched.open(QUICK.replace("stage=1", "stage=3"))
    for panel in ("lab_scan", "lab_reach", "lab_schemes"):
        assert "no scan" in watched.text(panel), panel


def test_the_story_has_three_steps(watched) -> None:
    watched.open(QUICK)
    story = watched.page.locator("[data-panel='lab_story']")
    texts = [story.inner_text()]
    for _ in range(2):
        story.get_by_role("button", name="Next").click()
        watched.page.wait_for_timeout(300)
        texts.append(story.inner_text())
    assert len(set(texts)) == 3
    assert "1,024" in texts[0] + texts[2] and "4,096" in texts[1]


def test_numbers_of_a_scheme_come_from_a_link(watched) -> None:
    watched.open(QUICK + "&scan_c=windows:size=5")
    assert "Windows 5" in watched.text("lab_scan")
    choose(watched, "Scan C", "none")
    watched.page.wait_for_function("() => window.Workbench.lab().schemes.length === 2")
    watched.finished()


def test_a_player_stops_when_another_tab_opens(watched) -> None:
    watched.open(QUICK.replace("&tab=scan", ""))
    page = watched.page
    paused = page.locator("[data-panel='scan'] button[aria-label='Play']")
    page.locator("[data-panel='scan'] button[aria-label='Play']").click()
    assert paused.count() == 0
    watched.open_tab("Scan")
    page.wait_for_function(
        "() => document.querySelector(\"[data-panel='scan'] button[aria-label='Play']\")"
    )
    page.locator("[data-panel='lab_scan'] button[aria-label='Play']").click()
    assert lab(watched)["playing"]
    watched.open_tab("Overview")
    page.wait_for_function("() => !window.Workbench.lab().playing")
    step = lab(watched)["step"]
    page.wait_for_timeout(300)
    assert lab(watched)["step"] == step


def test_export_holds_what_the_tab_shows(watched, tmp_path: Path) -> None:
    watched.open(QUICK + "&scan_c=hilbert&y=3&x=4")
    with watched.page.expect_download(timeout=60_000) as download:
        watched.page.get_by_role("button", name="Export").click()
    path = tmp_path / "scan.zip"
    download.value.save_as(path)
    bundle = load_results(path)
    assert {"scan_a", "scan_b", "scan_c", "reach_a", "reach_b", "schemes"} <= set(bundle.results)
    assert bundle.results["scan_c"].provenance.scan == "hilbert"
    assert (bundle.results["reach_b"].y, bundle.results["reach_b"].x) == (3, 4)
    assert {"scan", "reach"} == set(bundle.pictures)
    assert set(bundle.tables) == {"schemes", "token"}


def test_nothing_overlaps_or_breaks_a_line(watched) -> None:
    watched.open("?model=efficientvmamba_tiny&weights=random&size=128&stage=1&tab=scan&y=1&x=0")
    for width, height in ((1440, 900), (1280, 720)):
        watched.page.set_viewport_size({"width": width, "height": height})
        watched.page.wait_for_timeout(500)
        _assert_in_line(watched)


def _assert_in_line(watched) -> None:
    boxes = watched.page.evaluate(
        """() => [...document.querySelectorAll(".wb-sharebar .wb-number")].map((n) => {
          const range = document.createRange();
          range.selectNodeContents(n);
          const { top, bottom, right } = range.getBoundingClientRect();
          const box = n.closest(".wb-body").getBoundingClientRect();
          return [top, bottom, right, box.right, box.bottom];
        })"""
    )
    assert len(boxes) == 10
    for (_, bottom, right, *limits), (top, *_) in zip(boxes, [*boxes[1:], (9e9,)], strict=True):
        # The text box of a font is about a pixel taller than its line.
        assert bottom - 1 <= top and right <= limits[0] + 1 and bottom <= limits[1] + 1
    buttons = watched.page.locator("[data-panel='lab_story'] .wb-storystep")
    heights = buttons.evaluate_all("(all) => all.map((b) => b.clientHeight)")
    assert max(heights) < 30


def test_three_wide_photos_use_the_height(watched) -> None:
    wide = QUICK + "&image=coffee&fit=whole"
    watched.open(wide)
    assert watched.page.locator(".wb-labwide").count() == 0
    watched.page.set_viewport_size({"width": 1280, "height": 720})
    rows = watched.page.locator(".wb-labrow")
    assert rows.evaluate_all("(all) => all.every((r) => r.scrollWidth <= r.clientWidth + 1)")
    watched.open(wide + "&scan_c=es2d:step=5")
    box = watched.page.locator("[data-panel='lab_scan'] .wb-map").first.bounding_box()
    column = watched.page.locator(".wb-labcolumn").first.bounding_box()
    assert box["width"] > 0.9 * column["width"]
    strips = watched.page.locator(".wb-labstrip")
    tops = strips.evaluate_all("(all) => all.map((s) => s.getBoundingClientRect().top)")
    assert max(tops) - min(tops) < 1 and tops[0] > box["y"] + box["height"]


def test_a_step_larger_than_the_map_draws_the_groups_that_read(watched) -> None:
    watched.open(QUICK.replace("stage=1", "stage=2") + "&scan=es2d:step=60&y=3&x=2")
    assert "256 groups drawn" in watched.text("lab_scan")
    rows = watched.page.locator(".wb-labcolumn").first.locator("button.wb-group")
    assert rows.count() == 256
    # Group of column 2, row 3 among 60 x 60, counted from 1.
    assert lab(watched)["schemes"][0]["group"] == 2 * 60 + 3 + 1
    assert rows.last.inner_text().startswith(str(15 * 60 + 15 + 1))
