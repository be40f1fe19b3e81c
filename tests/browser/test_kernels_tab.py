"""The kernels half of the profiler as its user meets it: roofline, token, inspector."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
QUICK = (
    "?tab=kernels&model=efficientvmamba_test&weights=random&size=64&stage=1"
    "&what_device=here&what_size=64&what_batch=1&what_dtype=float32"
)
PANELS = ("lab_kern_roof", "lab_kern_token", "lab_kern_code")


def test_the_half_is_part_of_the_profiler(watched) -> None:
    watched.open(
        "?tab=profiler&model=efficientvmamba_test&weights=random&size=64&axis=step&steps=1"
    )
    page = watched.page
    page.locator(".wb-tab-profiler .wb-tabparts button", has_text="Kernels").click()
    page.wait_for_function("() => location.search.includes('tab=kernels')")
    watched.finished()
    header = page.locator(".wb-tabs button[aria-selected=true]")
    assert header.inner_text() == "Profiler"
    assert page.locator("#wb-lab-kern").is_visible()
    assert not page.locator("#wb-lab-prof").is_visible()
    header.click()
    page.wait_for_function("() => location.search.includes('tab=profiler')")
    assert page.locator("#wb-lab-prof").is_visible()


def test_the_panels_show_floors_a_token_and_machine_code(watched) -> None:
    watched.open(QUICK)
    page = watched.page
    assert "model" in watched.text("lab_kern_roof") and "CPU" in watched.text("lab_kern_roof")
    assert "visit" in watched.text("lab_kern_token")
    code = watched.text("lab_kern_code")
    assert "registers" in code and "sm_90" in code and "gfx942" in code
    for panel in PANELS:
        size = page.evaluate(
            f"() => window.Workbench.panels().find((p) => p.id === '{panel}').bytes"
        )
        assert 0 < size <= 1_000_000
    page.wait_for_function(
        "() => document.querySelector(\"[data-panel='lab_kern_code']\").innerText.includes('exp2')"
    )


def test_another_token_costs_other_programs(watched) -> None:
    watched.open(QUICK + "&y=0&x=0")
    before = watched.ids()
    watched.page.evaluate("() => window.Workbench.panels()[0]")
    watched.open(QUICK + "&y=1&x=2")
    after = watched.ids()
    assert after["lab_kern_token"] != before["lab_kern_token"]
    assert after["lab_kern_code"] == before["lab_kern_code"]


def test_a_stage_without_a_scan_says_so(watched) -> None:
    watched.open(QUICK.replace("stage=1", "stage=4"))
    assert "no scan" in watched.text("lab_kern_token")
    assert "registers" in watched.text("lab_kern_code")
