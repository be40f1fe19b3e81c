"""The cost grid against the cost model and against networks that are built."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from kernels import cost, scan_order
from kernels.gpus import GPUS
from models import create_model
from models.layers import ES2D
from models.registry import list_models, model_spec
from workbench.analyses import cost_grid as grids
from workbench.analyses.cost_grid import cost_grid, published_rates, what_if
from workbench.analyses.maps import stage_shape
from workbench.choices import scan_choices
from workbench.errors import BadInputError, NotAvailableError
from workbench.floors import WIDTHS
from workbench.kernel_results import CostGrid, Rates
from workbench.results import UNKNOWN
from workbench.view import WHAT_SIZES

TINY = "efficientvmamba_tiny"
A, B = "es2d:step=2", "ss2d"
SETTING = ("bfloat16", "forward")


@pytest.fixture(scope="module")
def grid() -> CostGrid:
    schemes = (A, B, "es2d:step=3", "windows:size=7", "raster")
    return cost_grid(TINY, schemes, (64, 224, 230), UNKNOWN)


@pytest.mark.parametrize("name", list_models())
def test_shapes_are_those_of_the_network(name: str) -> None:
    network = create_model(name, num_classes=10)
    spec = model_spec(name)
    stages = sorted({block.stage for block in network.blocks() if block.has_scan})
    assert tuple(stages) == grids.SCAN_STAGES
    for stage in stages:
        shape = grids.scan_shape(spec, stage)
        blocks = [b for b in network.blocks() if b.stage == stage]
        assert shape.blocks == len(blocks) and all(block.has_scan for block in blocks)
        for block in blocks:
            parts = network.get_submodule(block.name).modules()
            mixer = next(module for module in parts if isinstance(module, ES2D))
            assert (shape.channels, shape.rank, shape.states) == (
                *(mixer.inner, mixer.dt_rank),
                mixer.d_state,
            )
        for size in (32, 63, 64, 100, 224, 230):
            rows, columns, _ = stage_shape(network, stage, size, size)
            assert grids.map_side(size, stage) == rows == columns
    with pytest.raises(NotAvailableError, match="Stage 3 has no scan"):
        grids.scan_shape(spec, 3)


@pytest.mark.parametrize("passes", ["forward", "train"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_floors_are_those_of_the_cost_model(grid: CostGrid, passes: str, dtype: str) -> None:
    assert [rates.device for rates in published_rates()] == list(GPUS)
    for rates in published_rates():
        for scan in grid.schemes:
            for size in grid.sizes:
                for i, stage in enumerate(grid.stages):
                    for batch in (1, 3, 128):
                        side = grids.map_side(size, stage)
                        order = scan_order(scan, side, side)
                        shape = (batch, order.n_sequences, order.length, grid.channels[i],
                                 grid.states, grid.ranks[i], WIDTHS[dtype])  # fmt: skip
                        whole = cost.forward_cost(*shape)
                        if passes == "train":
                            whole += cost.backward_cost(*shape)
                        expected = cost.floors(whole, rates.device)
                        setting = (size, batch, dtype, passes, scan, scan)
                        row = what_if(grid, rates.device, *setting).rows[i]
                        assert (row.bytes, row.flops, row.fmas, row.exps) == (
                            *(whole.bytes, whole.flops),
                            *(whole.fmas, whole.exps),
                        )
                        assert (row.memory_s, row.fma_s, row.exp_s) == pytest.approx(
                            (expected.memory_s, expected.fma_s, expected.exp_s), rel=1e-12
                        )
                        assert row.seconds == pytest.approx(expected.seconds, rel=1e-12)
                        assert row.limiter == expected.limiter
                        assert (row.sequences, row.length) == order.index.shape
                        assert row.depth == whole.serial_steps


def test_what_if_by_hand(grid: CostGrid) -> None:
    found = what_if(grid, "H100 SXM", 224, 128, *SETTING, A, B)
    assert [(row.scan, row.stage) for row in found.rows] == [(A, 1), (A, 2), (B, 1), (B, 2)]
    times = [max(row.seconds, 5e-6) for row in found.rows]
    assert found.ratio == pytest.approx(
        (2 * times[2] + 2 * times[3]) / (2 * times[0] + 2 * times[1])
    )
    assert 3.9 < found.ratio <= 4.0
    assert found.rows[0].limiter == "exp" and 1e6 * found.rows[0].seconds == pytest.approx(
        166, 0.01
    )
    small = what_if(grid, "H100 SXM", 64, 1, *SETTING, A, B)
    assert small.ratio == 1 and {row.limiter for row in small.rows} == {"launch latency"}
    same = what_if(grid, "MI300X", 224, 8, *SETTING, A, A)
    assert same.ratio == 1 and same.rows[:2] == same.rows[2:]


def test_blocks_weigh_the_stages() -> None:
    """Networks whose two stages have other depths than two each."""
    small = cost_grid("efficientvmamba_test", (A, B), (224,), UNKNOWN)
    assert small.blocks == (1, 1) and small.channels == (32, 64) and small.ranks == (1, 2)
    weighted = replace(small, blocks=(3, 1))
    found = what_if(weighted, "RTX 4090", 224, 64, *SETTING, A, "ss2d")
    times = [max(row.seconds, 5e-6) for row in found.rows]
    assert found.ratio == pytest.approx((3 * times[2] + times[3]) / (3 * times[0] + times[1]))


def test_this_machine_is_a_device_without_launch(grid: CostGrid) -> None:
    machine = Rates(
        device="CPU, a processor, 2 threads",
        kind="measured",
        memory_bytes_per_s=2e10,
        fma_per_s=6e10,
        exp_per_s=9e9,
        launch_s=0.0,
        has_exp_unit=False,
        target="",
        source="measured",
    )
    own = cost_grid(TINY, (A, B), (64,), UNKNOWN, machine)
    assert own.devices == (*published_rates(), machine)
    found = what_if(own, machine.device, 64, 1, "float32", "train", A, B)
    assert found.ratio > 3 and "launch latency" not in {row.limiter for row in found.rows}


def test_pads_and_repeats_are_counted(grid: CostGrid) -> None:
    assert grid.schemes.index("windows:size=7") == 3
    # 230 px: 57 tokens, es2d with 3 reads 9 sequences of 19*19; full scan 4 of 57*57.
    at = grid.sizes.index(230)
    assert (grid.sequences[2, at, 0], grid.length[2, at, 0]) == (9, 19 * 19)
    assert (grid.sequences[1, at, 0], grid.length[1, at, 0]) == (4, 57 * 57)
    assert grid.values.shape == (5, 3, 2, 2, 6) and np.isfinite(grid.values).all()


def test_all_schemes_at_all_sizes_are_quick() -> None:
    schemes = [choice.name for choice in scan_choices() if not choice.why_not]
    grids.walk_of.cache_clear()
    grids._parts.cache_clear()
    started = time.process_time()
    found = cost_grid(TINY, schemes, WHAT_SIZES, UNKNOWN)
    assert time.process_time() - started < 2, "0.4 s when the machine is quiet"
    started = time.process_time()
    for size in WHAT_SIZES:
        what_if(found, "H100 SXM", size, 128, *SETTING, A, B)
    assert time.process_time() - started < 0.2


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("device", "H1000", "Choose one of: H100 SXM"),
        ("size", 225, "Choose one of: 64, 224, 230"),
        ("dtype", "int8", "float32, bfloat16"),
        ("passes", "sideways", "forward, train"),
        ("scan_a", "morton", "es2d:step=2, ss2d"),
        ("batch", 0, "whole number of at least 1"),
        ("batch", 2.5, "whole number"),
    ],
)
def test_what_is_not_in_the_grid_is_refused(grid: CostGrid, field: str, value, words: str) -> None:
    setting = {"device": "H100 SXM", "size": 224, "batch": 1, "dtype": "float32"}
    setting |= {"passes": "forward", "scan_a": A, "scan_b": B, field: value}
    with pytest.raises(BadInputError, match=words):
        what_if(grid, **setting)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("efficientvmamba_huge", (A,), (224,)), "efficientvmamba_tiny"),
        ((TINY, ("es3d",), (224,)), "unknown scan scheme"),
        ((TINY, ("cascade2d",), (224,)), "another network"),
        ((TINY, (A,), (16,)), "input size 16.*32 px"),
        ((TINY, (), (224,)), "no scheme"),
    ],
)
def test_a_grid_of_what_no_network_runs_is_refused(arguments, words: str) -> None:
    with pytest.raises(BadInputError, match=words):
        cost_grid(*arguments, UNKNOWN)
