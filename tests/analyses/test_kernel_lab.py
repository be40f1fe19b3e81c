"""The kernel lab: the cost model's setting, a token's cost, compiled kernels and their listings."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import pytest
from starlette.testclient import TestClient

from kernels import compiled
from kernels.compiled import CompileError
from workbench.analyses import inspection
from workbench.bundle import compute_all
from workbench.errors import BadInputError, CancelledError, NotAvailableError
from workbench.export import pack, unpack
from workbench.figures.paper import render
from workbench.files import tables
from workbench.kernel_results import InspectResult, RooflineResult
from workbench.listings import SHOWN, Listings, ServeListings, listing_url
from workbench.permalink import read, write
from workbench.progress import CancelToken, Progress, result_of
from workbench.runtime import Workbench
from workbench.settings import Settings
from workbench.view import HERE, View

VIEW = View(model="efficientvmamba_test", weights="random", size=64, tab="kernels", stage=1)
OTHER = "steps_forward-map-rank16-fp32-32x1x1"


@pytest.fixture(scope="module")
def wb() -> Workbench:
    return Workbench(Settings())


def without_a_compiler(monkeypatch: pytest.MonkeyPatch, words: str, kind: Any) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise CompileError(kind, words)

    monkeypatch.setattr(compiled, "cached", lambda *_: None)
    monkeypatch.setattr(compiled, "compile_config", fail)


def test_a_link_restores_the_lab(wb: Workbench) -> None:
    view = wb.resolve(
        replace(
            VIEW,
            kern_b=OTHER,
            kern_target_b="sm_80",
            what_device=HERE,
            what_size=512,
            what_batch=8,
            what_step=4,
            what_dtype="float32",
            what_passes="train",
        )
    )
    link = read(dict(parse_qsl(write(view))), wb.resolve)
    assert link.view == view and not link.ignored
    assert not write(VIEW).count("what_") and not write(VIEW).count("kernel=")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("kern_target", "sm_35", "sm_90"),
        ("kern_a", "steps_forward; import os", "kernel"),
        ("kern_b", "../../etc/passwd", "kernel"),
        ("kern_target_b", "gfx000", "gfx942"),
        ("what_device", "Voodoo 2", "H100 SXM"),
        ("what_batch", 3, "128"),
        ("what_size", 225, "224"),
        ("what_step", 0, "1, 2"),
        ("what_dtype", "int8", "bfloat16"),
        ("what_passes", "sideways", "train"),
    ],
)
def test_what_is_not_on_the_lists_is_refused(
    wb: Workbench, field: str, value: Any, words: str
) -> None:
    with pytest.raises(BadInputError, match=words):
        wb.resolve(replace(VIEW, **{field: value}))


def test_floors_of_two_schemes_at_one_setting(wb: Workbench) -> None:
    found = wb.kernel_lab.what_if(VIEW)
    assert (found.scan_a, found.scan_b) == ("es2d:step=2", "ss2d")
    # Four scans of N/4 beside four of N: everything is a quarter but the parameters.
    assert 3.5 < found.ratio <= 4
    assert {row.limiter for row in found.rows} <= {"memory", "FMA", "exp", "launch latency"}
    small = wb.kernel_lab.what_if(replace(VIEW, what_batch=1, what_size=64))
    assert small.ratio == 1 and {row.limiter for row in small.rows} == {"launch latency"}
    drawn_only = wb.kernel_lab.what_if(replace(VIEW, scan_b="cascade2d"))
    assert drawn_only.scan_b == "ss2d", "a path of another network has no scan here to cost"


def test_the_roofline_is_there_at_once_and_measures_this_machine(wb: Workbench) -> None:
    view = replace(VIEW, what_device=HERE, what_batch=1, what_size=64, what_dtype="float32")
    items = [i for i in wb.kernel_lab.roofline(view) if isinstance(i, RooflineResult)]
    assert not items[0].measured and not items[0].is_final and items[-1].is_final
    result = items[-1]
    here = [rates for rates in result.grid.devices if rates.kind == "measured"]
    assert len(here) == 1 and here[0].memory_bytes_per_s > 1e8 and not here[0].has_exp_unit
    assert {point.scan for point in result.measured} == {"es2d:step=2", "ss2d"}
    for point in result.measured:
        assert point.status == "" and point.error < 1e-4 and point.p50_ms > 0
        assert point.device == here[0].device and (point.size, point.batch) == (64, 1)
    assert result_of(wb.kernel_lab.roofline(view)) is result
    assert wb.kernel_lab.what_if(view).device == here[0]


def test_a_token_costs_its_visits(wb: Workbench) -> None:
    a, b = (wb.kernel_lab.token(VIEW, which) for which in ("a", "b"))
    assert (len(a.visits), len(b.visits)) == (1, 4)
    assert b.exps == 4 * a.exps and b.state_updates == 4 * a.state_updates
    order = wb.scan(VIEW, "a")
    visit = a.visits[0]
    assert order.index[visit.sequence, visit.step] == a.y * order.width + a.x
    assert all(0 <= program < a.n_programs for program in visit.programs)
    with pytest.raises(NotAvailableError, match="Stage 4 has no scan"):
        wb.kernel_lab.token(replace(VIEW, stage=4))


def test_a_kernel_with_its_neighbours_and_listings(wb: Workbench) -> None:
    view = replace(VIEW, kern_b=OTHER)
    items = list(wb.kernel_lab.inspect(view))
    results = [item for item in items if isinstance(item, InspectResult)]
    assert all(isinstance(item, (InspectResult, Progress)) for item in items)
    result = results[-1]
    assert result.is_final and (result.a.config, result.a.target) == (view.kern_a, "sm_90")
    assert result.a.is_compiled, result.a.status
    assert result.b is not None and result.b.config == OTHER
    assert {row.target for row in result.others} == set(compiled.TARGETS) - {"sm_90"}
    assert 0 < result.a.registers < 256 and result.a.spill_bytes == 0
    assert result.a.exp2_in_loops and result.a.limiter and result.a.stage_ms["ptx"] > 0
    assert result.a.baseline["registers"] > 0 and result.baseline_triton
    again = [i for i in wb.kernel_lab.inspect(view) if isinstance(i, InspectResult)]
    assert again[0].a.is_cached
    sass = wb.kernel_lab.listing(result.a, "sass")
    in_loop = [line for line in sass.lines if line.in_loop and line.kind == "exp2"]
    assert len(in_loop) == result.a.exp2_in_loops
    source = wb.kernel_lab.listing(result.a, "source")
    places = {line for one in in_loop for file, line in one.frames if "steps" in sass.files[file]}
    assert any("exp2" in source.lines[line - 1].text for line in places)
    with pytest.raises(BadInputError, match="ptx"):
        wb.kernel_lab.listing(result.a, "amdgcn")


def test_listings_are_served_and_nothing_else(wb: Workbench) -> None:
    result = result_of(wb.kernel_lab.inspect(VIEW))

    async def rest(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(f"{scope['path']} went on")

    client = TestClient(ServeListings(rest, SHOWN))
    answer = client.get(listing_url(result.a.key) + "sass.json").json()
    assert len(answer["frames"]) == len(answer["kinds"]) == answer["text"].count("\n") + 1
    further = next(stage for stage in result.a.stages if stage.startswith("source:"))
    assert client.get(f"{listing_url(result.a.key)}{further}.json").status_code == 200
    for path in (
        "sm_90/none/sass.json",
        f"{result.a.key}/bin.json",
        "sm_90/..%2F..%2Fetc%2Fpasswd/sass.json",
        "sm_90",
    ):
        missing = client.get(f"/kernel-listings/{path}")
        assert missing.status_code == 404 and missing.text
    assert client.post(listing_url(result.a.key) + "sass.json").status_code == 405
    # What another process compiled is found in the cache on disk.
    fresh = Listings()
    body = json.loads(gzip.decompress(fresh.answer(result.a.key, "ptx")))
    assert "ex2.approx" in body["text"] and fresh.answer(result.a.key, "ptx")


def test_a_tile_that_does_not_compile_is_shown_in_the_compilers_words(
    wb: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_a_compiler(monkeypatch, "error: out of registers\nnote: line 7", "compiler")
    result = result_of(wb.kernel_lab.inspect(VIEW))
    assert result.is_final and not result.a.is_compiled
    assert "out of registers" in result.a.status and result.a.error_kind == "compiler"
    assert len(result.others) == 3
    with pytest.raises(NotAvailableError, match="out of registers"):
        wb.kernel_lab.listing(result.a, "sass")
    assert render({"kernel": result}, None)["kernel.png"]


def test_without_triton_the_lab_says_what_to_install(
    wb: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "triton_version", lambda: None)
    monkeypatch.setattr(compiled, "cached", lambda *_: None)
    result = result_of(wb.kernel_lab.inspect(VIEW))
    assert "pip install triton" in result.a.status
    assert all("pip install triton" in why for why in result.targets.values())


def test_a_stopped_inspection_ends(wb: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "cached", lambda *_: None)
    monkeypatch.setattr(inspection, "POLL_S", 0.01)
    token = CancelToken()
    run = wb.kernel_lab.inspect(VIEW, token)
    assert isinstance(next(run), Progress)
    token.cancel()
    with pytest.raises(CancelledError):
        list(run)


def test_the_tab_is_exported_and_drawn_again(wb: Workbench) -> None:
    view = wb.resolve(replace(VIEW, what_batch=1, what_size=64))
    results = compute_all(wb, view)
    assert set(results) == {"roofline", "what_if", "kernel", "token_a", "token_b"}
    back = unpack(pack(results)).results
    assert set(render(back, None)) == {"roofline.png", "token.png", "kernel.png"}
    files = tables(back)
    assert {"roofline.csv", "what_if.csv", "kernel.csv", "token.csv"} <= set(files)
    assert len(files["roofline.csv"].splitlines()) > len(results["what_if"].rows)
    assert set(compute_all(wb, replace(view, stage=4))) == {"roofline", "what_if", "kernel"}


def test_a_cache_that_cannot_be_written_costs_time_only(
    wb: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "default_cache", lambda: compiled.Cache(None))
    result = result_of(wb.kernel_lab.inspect(replace(VIEW, kern_a="merge-bf16")))
    assert result.a.is_compiled and not result.a.is_cached
    assert "STG" in " ".join(line.text for line in wb.kernel_lab.listing(result.a, "sass").lines)


def test_a_reader_of_this_machine_sees_a_gpus_launch(wb: Workbench) -> None:
    """Without a GPU here the token's kernel is that of the default one, and says so."""
    cost = wb.kernel_lab.token(replace(VIEW, what_device=HERE))
    assert cost.device == View().what_device and cost.target == "sm_90"
