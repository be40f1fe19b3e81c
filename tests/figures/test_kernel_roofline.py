"""Roofline, what-if and token panels: floors as the cost model has them, words, sizes, files."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest

import kernels
from kernels import cost, gpus
from tests.figures.conftest import provenance
from workbench.errors import BadInputError
from workbench.figures.kernel_csv import roofline_csv, token_csv, what_if_csv
from workbench.figures.kernel_floors import setting_of, time_text, what_if_sentence
from workbench.figures.kernel_roofline import roofline_panel
from workbench.figures.kernel_token import token_line, token_panel
from workbench.figures.paper_parts import png
from workbench.figures.paper_roofline import roofline_figure, token_figure
from workbench.floors import LIMITERS, floors, rates_of
from workbench.kernel_results import (
    CostGrid,
    FloorRow,
    MeasuredScan,
    Rates,
    RooflineResult,
    TokenCost,
    TokenVisit,
    WhatIfResult,
)
from workbench.ui.components.plotly_panel import dump

SIZES = (64, 96, 128, 160, 224, 320, 384, 512, 768, 1024)
SCHEMES = (
    *(f"es2d:step={p}" for p in range(1, 9)),
    *("ss2d", "raster", "bidirectional", "snake", "hilbert", "morton", "diagonal", "plainmamba"),
)
A, B = "es2d:step=2", "ss2d"
STAGES = ((1, 2, 96, 3, 4), (2, 2, 192, 6, 8))  # stage, blocks, channels, rank, stride
STATES = 16
SETTING = {
    "device": "H100 SXM",
    "size": 224,
    "batch": 128,
    "step": 2,
    "dtype": "bfloat16",
    "passes": "forward",
}
MACHINE = "CPU, AMD EPYC, 2 threads"


def shape(scan: str, size: int, stride: int) -> tuple[int, int]:
    """Sequences and length of a scan; only ES2D and simple curves, so no table is needed."""
    side = size // stride
    if scan.startswith("es2d"):
        return 4, math.ceil(side / int(scan[-1])) ** 2
    sequences = {"ss2d": 4, "plainmamba": 4, "bidirectional": 2}.get(scan, 1)
    return sequences, side * side


def rates(name: str) -> Rates:
    gpu = gpus.GPUS[name]
    return Rates(
        device=name,
        kind="published",
        memory_bytes_per_s=gpu.memory_bytes_per_s,
        fma_per_s=gpu.fma_per_s,
        exp_per_s=gpu.exp_per_s,
        launch_s=cost.LAUNCH_S,
        has_exp_unit=True,
        target=gpu.target or "",
        source=gpu.source,
    )


def machine() -> Rates:
    return Rates(
        device=MACHINE,
        kind="measured",
        memory_bytes_per_s=1.1e10,
        fma_per_s=4.1e10,
        exp_per_s=1.3e9,
        launch_s=0.0,
        has_exp_unit=False,
        target="",
        source="best of the repeats",
        seconds=1.2,
    )


def values(scan: str, size: int, stage: tuple[int, ...], one_pass: str) -> list[float]:
    """The linear coefficients by hand, to be held against `kernels.cost`."""
    _, _, channels, rank, stride = stage
    sequences, length = shape(scan, size, stride)
    steps = sequences * length
    parameters = 4 * sequences * channels * (STATES + rank + 2)
    exps = steps * channels * (STATES + 2)
    read = steps * (2 * channels + rank + 2 * STATES)
    if one_pass == "forward":
        flops = steps * channels * (6 * STATES + 2 * rank + 8)
        return [read, 0, parameters, flops, steps * channels * (4 * STATES + rank + 8), exps]
    moved = 4 * steps * channels * STATES / cost.STORED_EVERY + 8 * steps * STATES
    flops = steps * channels * (18 * STATES + 4 * rank + 16)
    fmas = steps * channels * (12 * STATES + 2 * rank + 16)
    return [read + steps * (channels + rank), moved, 2 * parameters, flops, fmas, exps]


def grid(*more: Rates) -> CostGrid:
    passes = ("forward", "backward")
    shapes = np.array([[[shape(s, n, t[4]) for t in STAGES] for n in SIZES] for s in SCHEMES])
    return CostGrid(
        provenance=provenance("", 224, model="efficientvmamba_tiny", device="model"),
        model="efficientvmamba_tiny",
        schemes=SCHEMES,
        sizes=SIZES,
        stages=tuple(t[0] for t in STAGES),
        blocks=tuple(t[1] for t in STAGES),
        channels=tuple(t[2] for t in STAGES),
        ranks=tuple(t[3] for t in STAGES),
        states=STATES,
        passes=passes,
        sequences=shapes[..., 0].astype(np.int32),
        length=shapes[..., 1].astype(np.int32),
        values=np.array(
            [
                [[[values(s, n, t, p) for p in passes] for t in STAGES] for n in SIZES]
                for s in SCHEMES
            ],
            np.float64,
        ),
        devices=(*(rates(name) for name in gpus.GPUS), *more),
    )


def measured(scan: str, stage: int, ms: float, **changes: object) -> MeasuredScan:
    fields: dict = {
        "scan": scan,
        "stage": stage,
        "passes": "forward",
        "size": 224,
        "batch": 1,
        "dtype": "float32",
        "device": MACHINE,
        "backend": "cpu",
        "status": "",
        "samples_ms": np.array([ms, 1.2 * ms]),
        "p20_ms": 0.95 * ms,
        "p50_ms": ms,
        "p80_ms": 1.2 * ms,
        "error": 2e-7,
        "clock": "time.perf_counter",
    }
    return MeasuredScan(**(fields | changes))


def roofline_result() -> RooflineResult:
    points = (
        *(measured(A, 1, 6.1), measured(B, 1, 25.0), measured(A, 2, 3.4), measured(B, 2, 12.9)),
        measured(B, 1, math.nan, status="took too long", dtype="bfloat16"),
    )
    g = grid(machine())
    return RooflineResult(provenance=g.provenance, grid=g, measured=points)


def token_cost(scan: str, visits: int) -> TokenCost:
    return TokenCost(
        provenance=provenance(scan, 224),
        scan=scan,
        stage=2,
        y=14,
        x=14,
        batch=128,
        device="H100 SXM",
        regime="steps",
        kernel="steps_forward-map-rank16-bf16-32x1x1",
        target="sm_90",
        tile_channels=32,
        tile_steps=1,
        num_warps=1,
        n_programs=3072,
        visits=tuple(
            TokenVisit(
                sequence=k,
                step=98 if visits == 1 else 406,
                parameter_set=k,
                programs=tuple(range(6 * k, 6 * k + 6)),
                chunk=6,
            )
            for k in range(visits)
        ),
        state_updates=visits * 192 * 16,
        loads={"x": visits * 384, "dt factors": visits * 72, "B": visits * 192, "C": visits * 192},
        stores={"y": visits * 384},
        least_bytes=visits * 844.0,
        flops=visits * 192 * 116,
        fmas=visits * 192 * 78,
        exps=visits * 192 * 18,
        loop_instructions={"load": 9, "store": 2, "fma": 214, "exp2": 34, "branch": 3, "other": 96},
        note="Stores of states for the backward pass are not counted.",
    )


COSTS = {"a": token_cost(A, 1), "b": token_cost(B, 4)}


@pytest.mark.parametrize("passes", ["forward", "train"])
@pytest.mark.parametrize(("size", "batch", "dtype"), [(224, 128, "bfloat16"), (96, 2, "float32")])
def test_floors_are_those_of_the_cost_model(size: int, batch: int, dtype: str, passes: str) -> None:
    g = grid()
    setting = SETTING | {"size": size, "batch": batch, "dtype": dtype, "passes": passes}
    for device in g.devices:
        found = floors(g, device, setting)
        for i, scan in enumerate(SCHEMES):
            for j, (_, _, channels, rank, stride) in enumerate(STAGES):
                width = 4 if dtype == "float32" else 2
                args = (batch, *shape(scan, size, stride), channels, STATES, rank, width)
                expected = cost.forward_cost(*args)
                if passes == "train":
                    expected += cost.backward_cost(*args)
                floor = cost.floors(expected, device.device)
                assert found.floor_s[i, j] == pytest.approx(floor.seconds, rel=1e-6)
                assert LIMITERS[found.limiter[i, j]] == floor.limiter
                assert found.depth[i, j] == expected.serial_steps
                assert found.flops[i, j] == expected.flops


def test_network_counts_each_stage_times_its_blocks() -> None:
    g = grid()
    found = floors(g, g.devices[0], SETTING)
    i = SCHEMES.index(A)
    assert found.network("exps", i, g.blocks) == 2 * found.exps[i, 0] + 2 * found.exps[i, 1]


def test_panel_holds_all_that_the_sliders_need() -> None:
    panel = roofline_panel(roofline_result(), A, B, SETTING)
    assert len(dump(panel)) < 250_000
    assert panel["steps"] == list(range(1, 9))
    assert [d["key"] for d in panel["devices"]] == [*gpus.GPUS, "here"]
    g = grid()
    numbers = np.array(panel["values"][SCHEMES.index(B)]).reshape(len(SIZES), 2, 2, 6)
    assert np.abs(numbers - g.values[SCHEMES.index(B)]).max() <= 0.5
    assert "took too long" in " ".join(panel["notes"])
    noted = roofline_panel(replace(roofline_result(), note="A CPU has none."), A, B, SETTING)
    assert noted["notes"][-1] == "A CPU has none."
    assert panel["measured"][-1]["p50"] is None
    assert "4.00 times as long" in panel["sentence"]
    assert "nothing was run" in panel["sentence"]


def test_words_where_only_the_launch_counts() -> None:
    g = grid()
    small = SETTING | {"size": 64, "batch": 1}
    words = what_if_sentence(g, g.devices[0], small, A, B)
    assert "4 launches take 20.0 µs" in words
    assert "buys no time" in words


def test_this_machine_before_it_was_measured() -> None:
    g = grid()
    result = RooflineResult(provenance=g.provenance, grid=g, measured=(), is_final=False)
    assert rates_of(g, "here") is None
    panel = roofline_panel(result, A, B, SETTING | {"device": "here"})
    assert "being measured" in panel["sentence"]
    assert panel["is_live"]


def test_a_scheme_without_steps_has_no_step_slider() -> None:
    assert roofline_panel(roofline_result(), "hilbert", B, SETTING)["steps"] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"device": "H900"}, "H100 SXM"), ({"size": 65}, "64, 96"), ({"dtype": "int8"}, "float16")],
)
def test_what_is_not_in_the_grid_is_named(changes: dict, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        roofline_panel(roofline_result(), A, B, SETTING | changes)
    with pytest.raises(BadInputError, match="no scheme spiral"):
        roofline_panel(roofline_result(), A, "spiral", SETTING | {"device": "here"})


def test_time_text() -> None:
    assert [time_text(v) for v in (2.0, 1.5e-3, 16.63e-6, 4e-10, math.nan)] == [
        "2.00 s",
        "1.50 ms",
        "16.6 µs",
        "0.400 ns",
        "n/a",
    ]


def test_token_panel_says_where_and_how_much() -> None:
    panel = token_panel(COSTS, SETTING)
    assert panel["sentence"].startswith(
        "Token (14, 14) of stage 2 is step 98 of sequence 0 in ES2D: 1 visit, 840 B read; "
        "the full scan visits it 4 times: 3.36 kB."
    )
    rows = {row["name"]: row for group in panel["groups"] for row in group["rows"]}
    assert rows["reads x"]["cells"] == ["384 B", "1.54 kB"]
    assert rows["exponentials"]["ratio"] == "4.00"
    assert rows["visits"]["cells"] == [
        "1: (0,\u00a098)",
        "4: (0,\u00a0406) (1,\u00a0406) (2,\u00a0406) (3,\u00a0406)",
    ]
    assert rows["programs"]["cells"] == ["6 of 3,072", "24 of 3,072"]
    assert rows["their ids"]["cells"][0] == {"text": "0 1 2 … 5", "tip": "0 1 2 3 4 5"}
    assert rows["exp2"]["ratio"] == ""
    bars = panel["bars"]
    assert bars["longest"] == sum(COSTS["b"].loads.values()) + sum(COSTS["b"].stores.values())
    assert token_line(COSTS["a"]).startswith(
        "Token (14, 14) costs 1 visit in steps_forward on H100"
    )
    dump(panel)


def test_token_that_no_sequence_reads_and_no_token() -> None:
    never = replace(token_cost("spiral", 0), loads={}, stores={}, loop_instructions={})
    panel = token_panel({"a": never}, SETTING)
    assert "never read" in panel["sentence"]
    assert "never reads it" in token_line(never)
    empty = token_panel({}, SETTING, "Stage 3 has no scan: its blocks are convolutions.")
    assert "Stage 3" in empty["empty"]["text"]


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode("utf-8"))))


def test_roofline_csv_has_every_scheme_stage_and_pass() -> None:
    result = roofline_result()
    rows = rows_of(roofline_csv(result, SETTING))
    model = [r for r in rows if r["kind"] == "model"]
    assert len(model) == len(SCHEMES) * 2 * 2
    one = next(r for r in model if r["scan"] == A and r["stage"] == "1" and r["passes"] == "train")
    i = SCHEMES.index(A)
    found = floors(result.grid, result.grid.devices[0], SETTING | {"passes": "train"})
    assert float(one["floor_s"]) == found.floor_s[i, 0]
    points = [r for r in rows if r["kind"] == "measured"]
    assert len(points) == 5
    assert points[0]["device"] == MACHINE
    assert points[-1]["status"] == "took too long"
    assert points[-1]["p50_ms"] == ""


def test_other_csv_files() -> None:
    g = grid()
    row = FloorRow(
        scan=A, stage=1, passes="forward", sequences=4, length=784, depth=784, bytes=1.0, flops=2.0,
        fmas=3.0, exps=4.0, memory_s=0.1, fma_s=0.2, exp_s=0.3, seconds=0.3, limiter="exp",
    )  # fmt: skip
    result = WhatIfResult(
        provenance=g.provenance, device=g.devices[0], size=224, batch=128, dtype="bfloat16",
        passes="forward", scan_a=A, scan_b=B, rows=(row, replace(row, scan=B)), ratio=4.0,
    )  # fmt: skip
    assert setting_of(result) == SETTING
    first, second = rows_of(what_if_csv(result))
    assert (first["slot"], second["slot"]) == ("a", "b")
    assert first["limiter"] == "exp"
    assert first["device"] == "H100 SXM"
    tokens = rows_of(token_csv(COSTS))
    assert {r["slot"] for r in tokens} == {"a", "b"}
    reads = next(r for r in tokens if r["slot"] == "b" and r["quantity"] == "reads x")
    assert (reads["value"], reads["unit"]) == ("1536", "B")


@pytest.mark.parametrize("device", ["H100 SXM", "here"])
def test_figures_are_drawn_and_repeat(device: str) -> None:
    setting = SETTING | {"device": device, "batch": 1, "dtype": "float32"}
    made = [png(roofline_figure(roofline_result(), A, B, setting)) for _ in range(2)]
    assert made[0] == made[1]
    assert made[0][:4] == b"\x89PNG"


def test_token_figure() -> None:
    assert png(token_figure(COSTS))[:4] == b"\x89PNG"
    assert png(token_figure({"a": COSTS["a"]}))[:4] == b"\x89PNG"


def test_schemes_of_the_grid_are_real() -> None:
    for scan in SCHEMES:
        kernels.ScanSpec.parse(scan)
