"""The kernel inspector in Chromium, on a page of its own that serves listings made by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from kernels.compiled import CLASSES
from tests.figures.kernel_inspections import NO_TRITON, WORDS, A, B, failed, inspection, trial
from workbench.figures.kernel_code import inspect_panel
from workbench.kernel_results import InspectResult
from workbench.ui.components.kernels import KernelInspector
from workbench.ui.components.plotly_panel import PLOTLY, STYLES, dump, static_files

pytestmark = pytest.mark.browser
STEPS, DEVICE = "kernels/_triton/steps.py", "kernels/_triton/device.py"
N_LINES = 10_000
SOURCE = "\n".join(
    ['"""A docstring', 'over lines."""', *(f"line_{i} = {i}" for i in range(3, 8)),
     "def steps_forward_kernel(", "    h = tl.exp2(dt)  # <b>not bold</b>", "    y = h + 1"]
)  # fmt: skip
MOVE, EXP = "MOV R{0}, R{1} ;", "MUFU.EX2 R{0}, R{1} ;"


def sass(first: int, extra: str = "") -> dict[str, Any]:
    """10,000 instructions: every 100th is an exp2 of line 9 of the kernel, or inlined there."""
    text, frames, kinds = [], [], []
    for i in range(N_LINES):
        is_exp = i % 100 == 50
        code = (EXP if is_exp else MOVE).format(first + i % 7, i % 5)
        text.append(f"        /*{16 * i:04x}*/                   {code}")
        frames.append(([1, 2, 0, 9] if i == 150 else [0, 9]) if is_exp else None)
        kinds.append(CLASSES.index("exp2" if is_exp else "other"))
    if extra:
        text[4000] = extra
    return {
        "files": [STEPS, DEVICE],
        "hidden": 12,
        "text": "\n".join(text),
        "frames": frames,
        "classes": list(CLASSES),
        "kinds": kinds,
        "loops": [[2000, 7000]],
    }


@lru_cache
def listing(name: str, stage: str) -> dict[str, Any]:
    if stage == "sass":
        return sass(10 if name == A else 20, "" if name == A else "  STL [R1], R2 ;")
    text = SOURCE if stage == "source" else "def softplus(x):\n    return x\n"
    n = text.count("\n") + 1
    path = STEPS if stage == "source" else DEVICE
    values = {"files": [path], "hidden": 0, "text": text, "classes": list(CLASSES), "loops": []}
    return values | {"frames": [None] * n, "kinds": [-1] * n}


@lru_cache
def answer_of(name: str, stage: str) -> str:
    return json.dumps({"stage": stage} | listing(name, stage))


@pytest.fixture(scope="module")
def opened(browser) -> Iterator[Any]:
    """A page on a host of its own; what it asks for is answered here, nothing else exists."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    scripts = {path.name: path for path in static_files() if path != PLOTLY}
    style = "".join(path.read_text("utf-8") for path in STYLES)
    tags = "".join(f'<script src="/{name}"></script>' for name in scripts)
    html = (
        f"<!doctype html><meta charset=utf-8><style>{style}</style><body>"
        f'<div class="wb-host"></div>{tags}</body>'
    )
    page.asked = []
    page.broken = set()

    def answer(route) -> None:
        path = unquote(urlsplit(route.request.url).path)
        if path == "/":
            route.fulfill(body=html, content_type="text/html")
        elif path[1:] in scripts:
            body = Path(scripts[path[1:]]).read_text("utf-8")
            route.fulfill(body=body, content_type="text/javascript; charset=utf-8")
        elif path.startswith("/kernel-listings/"):
            page.asked.append(path)
            _, _, _, name, stage = path.removesuffix(".json").split("/", 4)
            if stage in page.broken:
                route.fulfill(status=404, body=f"{name} is no longer kept <b>here</b>.")
                return
            body = answer_of(name, stage)
            route.fulfill(body=body, content_type="application/json")
        else:
            route.fulfill(status=404, body="")

    page.route("**/*", answer)
    yield page
    page.close()
    assert not errors


@pytest.fixture
def show(opened) -> Callable[..., Any]:
    def mount(result: InspectResult) -> Any:
        opened.asked.clear()
        opened.broken.clear()
        opened.goto("http://kernels.test/")
        opened.evaluate(
            "([kind, value]) => { window.events = []; window.props = {value};"
            "Workbench.mount(kind, document.querySelector('.wb-host'), props, "
            "(name, data) => events.push([name, data]), (key, f) => { window.again = f; }); }",
            [KernelInspector.kind, dump(inspect_panel(result))],
        )
        return opened

    return mount


def pane(page, n: int):
    """A listing's pane once its lines are there."""
    found = page.locator(".wb-codepane").nth(n)
    found.locator(".wb-codeline").first.wait_for()
    return found


def asked(page) -> dict:
    """What the last choice asked the server for."""
    name, data = page.evaluate("events.at(-1)")
    assert name == "choose" and data.pop("do") == "kernel"
    return data


def test_only_visible_lines_are_in_the_page(show) -> None:
    page = show(inspection(b=None))
    code = pane(page, 1)
    assert page.asked == [
        f"/kernel-listings/sm_90/{A}/{stage}.json" for stage in ("source", "sass")
    ]
    lines = code.locator(".wb-code")
    for top in (0, 80_000, 40_000, 200_000):
        lines.evaluate("(node, top) => { node.scrollTop = top; }", top)
        page.wait_for_timeout(60)
        assert 10 < code.locator(".wb-codeline").count() < 120
    assert code.locator(".wb-codeline", has_text="MOV").last.inner_text().startswith("10000")
    assert lines.evaluate("(node) => node.scrollHeight") == 17 * N_LINES + 4
    text = pane(page, 0).locator(".wb-codeline", has_text="not bold")
    assert "<b>not bold</b>" in text.inner_text() and text.locator("b").count() == 0


def test_a_line_lights_up_where_it_went(show) -> None:
    page = show(inspection(b=None))
    source, code = pane(page, 0), pane(page, 1)
    source.locator(".wb-codeline", has_text="tl.exp2").hover()
    page.wait_for_function("document.querySelectorAll('[data-linked=\"99\"]').length === 1")
    source.locator(".wb-codeline", has_text="tl.exp2").click()
    page.wait_for_timeout(80)
    lit = code.locator(".wb-linked")
    assert lit.count() >= 1 and "MUFU.EX2" in lit.first.inner_text()
    assert "kernels/_triton/steps.py:9" in page.locator(".wb-codewhere").inner_text()
    source.locator(".wb-codeline", has_text="y = h + 1").hover()
    assert page.locator(".wb-pinned").count() == 1
    assert code.get_attribute("data-linked") == "99"  # what is pinned stays lit


def test_an_inlined_line_lights_up_its_call(show) -> None:
    page = show(inspection(b=None))
    source, code = pane(page, 0), pane(page, 1)
    code.locator(".wb-code").evaluate("(node) => { node.scrollTop = 17 * 145; }")
    code.locator('.wb-codeline[data-i="150"]').click()
    page.wait_for_timeout(80)
    assert "tl.exp2" in source.locator(".wb-linked").inner_text()
    where = page.locator(".wb-codewhere")
    assert where.inner_text().split("\n")[:2] == ["SASS 151, exp2", "kernels/_triton/device.py:2"]
    where.get_by_role("button", name="device.py:2").click()
    page.wait_for_function(
        "document.querySelector('.wb-codepane').dataset.stage.includes('device')"
    )
    pane(page, 0).locator(".wb-linked", has_text="return x").wait_for()


def test_escape_unpins_before_it_clears_the_focus(show) -> None:
    page = show(inspection(b=None))
    page.evaluate(
        "document.dispatchEvent(new CustomEvent('wb', {detail: {kind: 'status', "
        "status: {focus: {stage: 1, y: 2, x: 3, stride: 8}}}}))"
    )
    pane(page, 0).locator(".wb-codeline", has_text="tl.exp2").click()
    pane(page, 1).get_by_label("Search listing 2").fill("MUFU")
    page.keyboard.press("Escape")  # empties the search
    assert page.locator(".wb-pinned").count() == 1
    assert pane(page, 1).get_by_label("Search listing 2").input_value() == ""
    pane(page, 0).locator(".wb-code").focus()
    page.keyboard.press("Escape")
    page.wait_for_function("document.querySelectorAll('.wb-pinned').length === 0")
    assert page.evaluate("events") == []
    page.keyboard.press("Escape")
    assert page.evaluate("events") == [["pick", {"stage": 1, "clear": True}]]


def test_lines_can_be_walked_by_keyboard(show) -> None:
    page = show(inspection(b=None))
    source = pane(page, 0)
    source.locator(".wb-codeline", has_text="def steps").hover()
    source.locator(".wb-code").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.wb-pinned').length === 1")
    assert "tl.exp2" in page.locator(".wb-pinned").inner_text()


def test_search_counts_and_steps(show) -> None:
    page = show(inspection(b=None))
    code = pane(page, 1)
    code.locator(".wb-code").evaluate("(node) => { node.scrollTop = 0; }")
    code.get_by_label("Search listing 2").fill("mufu.ex2")
    count = code.locator(".wb-codecount")
    assert count.inner_text() == "1 of 100"
    page.keyboard.press("Enter")
    assert count.inner_text() == "2 of 100"
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    assert count.inner_text() == "100 of 100"
    page.wait_for_function("document.querySelector('.wb-matchnow')?.dataset.i === '9950'")
    code.get_by_label("Search listing 2").fill("no such text")
    assert count.inner_text() == "none"


def test_a_listing_that_cannot_be_fetched_says_why(show) -> None:
    page = show(inspection(b=None))
    source = pane(page, 0)
    page.broken.add("ptx")
    source.get_by_label("Listing 1", exact=True).select_option("a|ptx")
    source.get_by_text(f"{A} is no longer kept <b>here</b>.").wait_for()
    page.broken.clear()
    source.get_by_role("button", name="Fetch the listing again").click()
    source.locator(".wb-codeline").first.wait_for()
    n = len(page.asked)
    source.get_by_label("Listing 1", exact=True).select_option("a|source")
    source.locator(".wb-codeline", has_text="tl.exp2").wait_for()
    assert len(page.asked) == n  # kept in memory


def test_scrolling_while_a_stage_is_on_its_way_draws_nothing_of_it(show) -> None:
    page = show(inspection(b=None))
    code = pane(page, 1)
    page.evaluate(
        "() => { const ask = window.fetch; window.fetch = (...given) =>"
        " new Promise((done) => setTimeout(() => done(ask(...given)), 400)); }"
    )
    select = code.locator("select").first
    other = select.evaluate(
        "(node) => [...node.options].map((o) => o.value).find((v) => v.includes(':'))"
    )
    select.select_option(other)
    for top in (3000, 9000, 0):
        code.locator(".wb-code").evaluate("(node, top) => { node.scrollTop = top; }", top)
        page.set_viewport_size({"width": 1280, "height": 880 + top // 100})
        page.wait_for_timeout(40)
    code.locator(".wb-codeline", has_text="softplus").wait_for()
    page.set_viewport_size({"width": 1280, "height": 900})


def test_choices_ask_for_a_kernel_by_name(show) -> None:
    page = show(inspection(b=None))
    page.get_by_label("tile of A").select_option("steps_forward-map-rank16-fp32-8x1x1")
    assert asked(page) == {
        "a": "steps_forward-map-rank16-fp32-8x1x1",
        "target": "sm_90",
        "b": "",
        "target_b": "",
    }
    groups = page.get_by_label("tile of A").locator("optgroup")
    assert [group.get_attribute("label") for group in groups.all()] == [
        "shipped",
        "candidates for tuning",
        "ruled out by the resource model",
    ]
    page.get_by_label("kernel of A").select_option("chunks_forward")
    assert asked(page)["a"] == "chunks_forward-map-rank16-fp32-4x64x8"  # layout and type kept
    page.get_by_label("target of A").select_option("gfx942")
    asked_for = asked(page)
    assert asked_for["target"] == "gfx942"
    assert asked_for["a"] == "steps_forward-map-rank16-fp32-16x1x1"  # as that target offers it


def test_a_second_kernel_comes_and_goes(show) -> None:
    page = show(inspection(b=None))
    page.get_by_role("button", name="Compare with…").click()
    assert page.evaluate("events") == []
    page.get_by_label("type of B").select_option("bf16")
    assert asked(page) == {
        "a": A,
        "target": "sm_90",
        "b": "steps_forward-map-rank16-bf16-32x1x1",
        "target_b": "",
    }
    page.get_by_role("button", name=f"Use {A} on sm_80 as B").click()
    assert asked(page) == {"a": A, "target": "sm_90", "b": A, "target_b": "sm_80"}
    page = show(inspection())
    page.get_by_role("button", name="none").click()
    assert asked(page) == {"a": A, "target": "sm_90", "b": "", "target_b": ""}


def test_a_target_without_compiler_cannot_be_chosen(show) -> None:
    why = "this triton has no AMD backend"
    result = inspection(targets={"sm_80": "", "sm_90": "", "gfx942": why}, is_final=False)
    page = show(result)
    option = page.get_by_label("target of A").locator("option[value=gfx942]")
    assert option.get_attribute("title") == why and option.is_disabled()


def test_difference_of_a_and_b(show) -> None:
    page = show(inspection())
    pane(page, 1)
    page.get_by_role("radio", name="difference of A and B").click()
    compared = page.locator(".wb-diffpane")
    compared.locator("[data-sign]").first.wait_for()
    count = compared.locator(".wb-diffcount")
    assert count.inner_text() == "−1 only in A, +1 only in B, 9,999 alike."
    assert compared.locator('[data-sign="+"]').inner_text().endswith("STL [R1], R2 ;")
    assert re.match(r"4001\s+−", compared.locator('[data-sign="-"]').inner_text())
    folds = compared.locator(".wb-difffold")
    assert [fold.inner_text() for fold in folds.all()] == [
        "⋯ 3,996 lines alike",
        "⋯ 5,995 lines alike",
    ]
    folds.first.click()
    page.wait_for_function("document.querySelectorAll('.wb-difffold').length < 2")
    started = page.evaluate("performance.now()")
    compared.get_by_label("ignore registers").uncheck()
    page.wait_for_function(
        "document.querySelector('.wb-diffcount').innerText.includes('10,000 only')"
    )
    assert page.evaluate("performance.now()") - started < 5000  # its own limit is 0.9 s
    compared.get_by_label("Stage to compare").select_option("source")
    page.wait_for_function(
        "document.querySelector('.wb-diffcount').innerText === 'No difference in 10 lines.'"
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_difference_is_the_shortest(show, seed: int) -> None:
    """Against the longest common subsequence by the textbook's table, in Python."""
    page = show(inspection(b=None))
    state = 7919 * (seed + 1)

    def lines() -> list[str]:
        nonlocal state
        found = []
        for _ in range(120):
            state = (1103515245 * state + 12345) % 2**31
            found.append("abcdefgh"[(state >> 16) % 8])
        return found

    a, b = lines(), lines()
    result = page.evaluate("([a, b]) => WorkbenchParts.diff().difference(a, b, false)", [a, b])
    rows = result["rows"]
    assert [a[r["i"]] for r in rows if r["sign"] != "+"] == a
    assert [b[r["j"]] for r in rows if r["sign"] != "-"] == b
    assert all(a[r["i"]] == b[r["j"]] for r in rows if r["sign"] == " ")
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a, 1):
        for j, right in enumerate(b, 1):
            same = table[i - 1][j - 1] + 1
            table[i][j] = same if left == right else max(table[i - 1][j], table[i][j - 1])
    assert result["equal"] == table[-1][-1]


def test_the_compilers_words_are_text(show) -> None:
    page = show(inspection(a=failed("compiler", WORDS), b=None, others=()))
    row = page.locator("tr[data-slot=a]")
    assert "The compiler refused" in row.inner_text()
    assert row.locator("pre").inner_text() == WORDS
    assert row.locator("pre b").count() == 0
    assert page.get_by_text("No listings").count() == 1
    assert page.locator(".wb-codepane").count() == 0 and page.asked == []


def test_without_triton_no_pane_is_drawn(show) -> None:
    page = show(inspection(a=failed("triton", NO_TRITON), b=None, others=()))
    text = page.locator(".wb-panel").inner_text()
    assert "No compiler here" in text and "pip install triton" in text
    assert page.locator(".wb-codepane, .wb-kerntable, select").count() == 0
    page.evaluate("(value) => { props.value = value; again(); }", dump(inspect_panel(inspection())))
    pane(page, 1)  # triton came


def test_mix_bars_start_at_zero_and_trials_show_spills(show) -> None:
    trials = (trial(32, 41.25, is_chosen=True), trial(64, float("nan"), "out of resources"))
    page = show(inspection(trials=trials))
    mix = page.locator(".wb-kernmix")
    row = mix.locator(".wb-kernbarrow", has_text="exp2")
    assert row.inner_text().split() == ["exp2", "36", "36"]
    mix.get_by_role("radio", name="in loops").click()
    row = mix.locator(".wb-kernbarrow", has_text="exp2")
    assert row.inner_text().split() == ["exp2", "20", "24"]
    widths = [bar.evaluate("(node) => node.style.width") for bar in row.locator("i[class]").all()]
    assert [round(float(width[:-1]), 2) for width in widths] == [
        round(100 * 20 / 210, 2),
        round(100 * 24 / 210, 2),
    ]
    table = page.locator(".wb-kerntrials")
    assert "✓ chosen" in table.inner_text() and "out of resources" in table.inner_text()
    assert table.locator(".wb-kernbad").inner_text() == "912"


def test_scroll_and_choice_outlive_new_rows(show) -> None:
    page = show(inspection(b=None, others=(), is_final=False))
    code = pane(page, 1)
    pane(page, 0).get_by_label("Listing 1", exact=True).select_option(
        "a|source:kernels/_triton/device.py"
    )
    code.locator(".wb-code").evaluate("(node) => { node.scrollTop = 50000; }")
    assert page.locator(".wb-spin").count() == 3
    page.evaluate(
        "(value) => { props.value = value; again(); }", dump(inspect_panel(inspection(b=None)))
    )
    page.wait_for_function("document.querySelectorAll('.wb-spin').length === 0")
    assert code.locator(".wb-code").evaluate("(node) => node.scrollTop") == 50000
    stage = page.locator(".wb-codepane").first.get_attribute("data-stage")
    assert stage == "source:kernels/_triton/device.py"


def test_a_stage_is_saved_whole(show, tmp_path: Path) -> None:
    page = show(inspection())
    with page.expect_download() as saved:
        pane(page, 1).get_by_role("button", name="Download this stage").click()
    assert saved.value.suggested_filename == f"{B}.sm_90.sass"
    saved.value.save_as(tmp_path / "listing")
    text = (tmp_path / "listing").read_text("utf-8")
    assert text == listing(B, "sass")["text"] + "\n"
