"""The measured roofline on a small network: what comes first, what is compared, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from kernels import rates, scan_order
from kernels._bench.alone import ScanAlone
from workbench.analyses import roofline as module
from workbench.analyses.cost_grid import cost_grid
from workbench.analyses.roofline import machine_rates, roofline
from workbench.device import device_label
from workbench.errors import BadInputError, CancelledError
from workbench.kernel_results import CostGrid, RooflineResult
from workbench.progress import CancelToken, Progress
from workbench.results import UNKNOWN

CPU = torch.device("cpu")
A, B = "es2d:step=2", "ss2d"


@pytest.fixture(scope="module")
def grid() -> CostGrid:
    return cost_grid("efficientvmamba_test", (A, B, "hilbert"), (64, 1024), UNKNOWN)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ceilings of tiny work, anew for each test."""
    for name, value in (
        ("REPEATS", 1),
        ("SMALLEST_COPY", 1 << 16),
        ("LARGEST_COPY", 1 << 16),
        ("PRODUCT", 16),
        ("ROUNDS", 1),
        ("ITEMS", 1),
        ("TORCH_FLOATS", 1 << 10),
    ):
        monkeypatch.setattr(rates, name, value)
    module._machine_rates.cache_clear()
    yield
    module._machine_rates.cache_clear()


def run(grid: CostGrid, **changes) -> list[Progress | RooflineResult]:
    setting = {"size": 64, "batch": 2, "dtype": "float32", "passes": "forward", "device": CPU}
    setting |= {"backend": "auto", "scans": (A, B), **changes}
    return list(roofline(grid, **setting))


def test_first_the_grid_then_the_ceilings_then_the_points(grid: CostGrid) -> None:
    items = run(grid)
    results = [item for item in items if isinstance(item, RooflineResult)]
    assert items[0] is results[0] and results[0].grid is grid
    assert [(r.is_final, len(r.measured), len(r.grid.devices) - len(grid.devices))
            for r in results] == [(False, 0, 0), (False, 0, 1), (True, 4, 1)]  # fmt: skip
    last = results[-1]
    here = last.grid.devices[-1]
    assert (here.kind, here.device, here.launch_s) == ("measured", device_label(CPU), 0.0)
    assert not here.has_exp_unit and "polynomials" in last.note and "best of 1" in here.source
    assert [(m.scan, m.stage) for m in last.measured] == [(A, 1), (A, 2), (B, 1), (B, 2)]
    for point in last.measured:
        assert point.status == "" and point.backend == "cpu" and point.device == here.device
        assert (point.size, point.batch, point.passes) == (64, 2, "forward")
        assert 5 <= len(point.samples_ms) <= module.REPEATS and (point.samples_ms > 0).all()
        expected = np.percentile(point.samples_ms, [20, 50, 80])
        assert [point.p20_ms, point.p50_ms, point.p80_ms] == expected.tolist()
        assert 0 < point.error < 1e-5 and "perf_counter" in point.clock
    assert last.provenance.backend == "cpu" and last.provenance.device == here.device
    words = [item.what for item in items if isinstance(item, Progress)]
    assert any("comparing ss2d, stage 2" in text for text in words)


def test_rates_are_measured_once_and_replace_older_ones(
    grid: CostGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = machine_rates(CPU)
    monkeypatch.setattr(module, "measure", lambda device: pytest.fail("measured again"))
    assert machine_rates(CPU) is first
    old = replace(grid, devices=(*grid.devices, replace(first, exp_per_s=1.0)))
    assert run(old, scans=(A, A))[-1].grid.devices == (*grid.devices, first)


def test_both_passes_and_16_bits(grid: CostGrid) -> None:
    for dtype, limit in (("float32", 1e-5), ("bfloat16", 1e-2)):
        last = run(grid, passes="train", dtype=dtype, scans=("hilbert", A))[-1]
        assert [m.status for m in last.measured] == [""] * 4
        assert all(m.passes == "train" and 0 < m.error < limit for m in last.measured)
    assert len(run(grid, scans=(A, A))[-1].measured) == 2, "one scheme is measured once"


def test_a_wrong_scan_has_its_distance_and_no_time(
    grid: CostGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScanAlone, "compare", lambda self: 0.5)
    last = run(grid)[-1]
    for point in last.measured:
        assert point.status.startswith("wrong") and "5.0e-01" in point.status
        assert point.error == 0.5 and np.isnan(point.p50_ms) and not len(point.samples_ms)
    monkeypatch.setattr(ScanAlone, "compare", lambda self: float("nan"))
    assert all("nan" in point.status for point in run(grid)[-1].measured)


def test_a_point_that_fails_leaves_the_others(
    grid: CostGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ScanAlone.run

    def fails(self: ScanAlone):
        if self.sizes.order.name == "ss2d" and self.sizes.order.height == 16:
            raise RuntimeError("out of luck")
        return right(self)

    monkeypatch.setattr(ScanAlone, "run", fails)
    statuses = [point.status for point in run(grid)[-1].measured]
    assert statuses == ["", "", "not run: out of luck", ""]


def test_what_would_take_too_long_or_too_much_is_not_run(
    grid: CostGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LONGEST_CALL_S", 1e-9)
    assert all("one call would take about" in p.status for p in run(grid)[-1].measured)
    monkeypatch.setattr(module, "available_bytes", lambda device: 1000)
    assert all("GiB are free" in p.status for p in run(grid)[-1].measured)


def test_a_backend_that_is_no_scan_alone_says_so(grid: CostGrid) -> None:
    last = run(grid, backend="mambapy")[-1]
    assert all("mambapy has no scan alone" in point.status for point in last.measured)


def test_a_long_scan_is_compared_on_a_smaller_map_with_the_same_remainders() -> None:
    own = scan_order("ss2d", 56, 56)
    assert module.compared_order(own) is own
    for side in (57, 64, 83, 250, 256):
        smaller = module.compared_order(scan_order("ss2d", side, side))
        assert smaller.height == smaller.width < 84
        for divisor in (2, 4, 7, 8):
            assert smaller.height % divisor == side % divisor
    assert module.compared_order(scan_order("es2d:step=8", 256, 256)).height == 256


def test_it_can_be_stopped(grid: CostGrid) -> None:
    token = CancelToken()
    items = roofline(grid, size=64, batch=1, dtype="float32", passes="forward", device=CPU,
                     backend="auto", scans=(A, B), token=token)  # fmt: skip
    assert isinstance(next(items), RooflineResult)
    token.cancel()
    with pytest.raises(CancelledError):
        list(items)


def test_what_is_not_in_the_grid_is_refused_at_once(grid: CostGrid) -> None:
    with pytest.raises(BadInputError, match="64, 1024"):
        run(grid, size=65)
    with pytest.raises(BadInputError, match="es2d:step=2, ss2d, hilbert"):
        run(grid, scans=(A, "morton"))
