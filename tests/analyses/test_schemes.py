"""The table of schemes: right before it is timed, stopped when asked, honest about what is not."""

from __future__ import annotations

import math

import pytest

import kernels
import models
from kernels.cost import order_cost
from workbench.analyses import schemes
from workbench.analyses.schemes import scheme_table
from workbench.choices import ScanChoice
from workbench.errors import CancelledError
from workbench.progress import CancelToken, Progress
from workbench.results import SchemeTableResult


def choice(text: str) -> ScanChoice:
    spec = kernels.ScanSpec.parse(text)
    return ScanChoice(str(spec), str(spec), spec.scheme.definition)


LISTED = tuple(map(choice, ("es2d", "ss2d", "hilbert", "windows", "vim")))


def table(network, image, provenance, **options) -> SchemeTableResult:
    *_, last = scheme_table(network, image, 1, LISTED, provenance=provenance, repeats=3, **options)
    assert isinstance(last, SchemeTableResult) and last.is_final
    return last


def test_rows_hold_metrics_costs_and_times(network, provenance, photo):
    result = table(network, photo(72, 104), provenance)
    assert [row.scan for row in result.rows] == [c.name for c in LISTED]
    assert (result.height, result.width) == (18, 26)
    assert (result.channels, result.states, result.rank) == (32, 16, 1)
    for row in result.rows[:-1]:
        order = kernels.scan_order(row.scan, 18, 26)
        cost = order_cost(order, 1, 32, 16, 1)
        assert (row.flops, row.bytes, row.exps) == (cost.flops, cost.bytes, cost.exps)
        assert row.metrics == order.metrics()
        assert row.n_parameter_sets == len(set(order.parameter_set.tolist()))
        assert row.status == "measured" and row.error < 1e-5
        assert 0 < row.p20_ms <= row.p50_ms <= row.p80_ms
    assert "3 rounds" in result.clock and "cpu backend" in result.clock
    path = result.rows[-1]
    assert path.status == "path only" and path.why_not.startswith("needs another network")
    assert math.isnan(path.p50_ms) and path.flops == 0 and path.metrics["n_extra_steps"] == 2


def test_a_table_without_times_comes_first(network, provenance, photo):
    items = list(
        scheme_table(network, photo(), 1, LISTED, provenance=provenance, repeats=1, measure=True)
    )
    first, last = (item for item in items if isinstance(item, SchemeTableResult))
    assert not first.is_final and last.is_final
    assert {row.status for row in first.rows} == {"not measured", "path only"}
    progress = [item for item in items if isinstance(item, Progress)]
    assert all(item.done <= item.total for item in progress)
    assert progress[-1].what.startswith("timing") or progress[-1].what == "warming up"


def test_without_times(network, provenance, photo):
    result = table(network, photo(), provenance, measure=False)
    assert {row.status for row in result.rows} == {"not measured", "path only"}
    assert all(math.isnan(row.p50_ms) and math.isnan(row.error) for row in result.rows)


def test_a_wrong_scheme_is_not_timed(network, provenance, photo, monkeypatch):
    right = schemes.scan2d

    def wrong(x, *parameters, order, backend):
        y = right(x, *parameters, order=order, backend=backend)
        return y * 1.01 if order.name == "hilbert" and backend != "reference" else y

    monkeypatch.setattr(schemes, "scan2d", wrong)
    result = table(network, photo(), provenance)
    rows = {row.scan: row for row in result.rows}
    assert rows["hilbert"].status.startswith("wrong: differs from the reference by 1.0e-02")
    assert math.isnan(rows["hilbert"].p50_ms) and rows["hilbert"].error > 5e-3
    assert rows["ss2d"].status == "measured"


def test_a_large_map_is_compared_on_a_part_of_the_same_parity(network, provenance, photo):
    result = table(network, photo(132, 100), provenance)
    assert (result.height, result.width) == (33, 25)
    assert "on 17 x 17 of the 33 x 25 tokens" in result.note
    assert table(network, photo(64, 64), provenance).note == ""


@pytest.mark.parametrize(
    ("limit", "words"),
    [("LARGEST_ROW_S", "one scan would take about"), ("LARGEST_ROW_BYTES", "would take 0.0 GiB")],
)
def test_what_would_take_too_long_is_not_run(network, provenance, photo, monkeypatch, limit, words):
    monkeypatch.setattr(schemes, limit, 0)
    result = table(network, photo(), provenance)
    for row in result.rows[:-1]:
        assert row.status.startswith("not run: ") and words in row.status
        assert math.isnan(row.p50_ms) and row.error < 1e-5


def test_stop_is_heard_at_every_step(network, provenance, photo):
    token = CancelToken()
    run = scheme_table(network, photo(), 1, LISTED, provenance=provenance, token=token)
    for _ in range(4):
        next(run)
    token.cancel()
    with pytest.raises(CancelledError):
        next(run)


def test_a_stage_without_a_scan_says_so(network, provenance, photo):
    *_, last = scheme_table(network, photo(), 3, LISTED, provenance=provenance)
    assert last.rows == () and "has no scan" in last.note


def test_the_weights_of_the_stage_are_used(provenance, photo):
    """Any scan may run in the model: the first scanning block's parameters count."""
    model = models.create_model("efficientvmamba_test", seed=3, scan="ss2d").eval()
    assert table(model, photo(), provenance).rows[0].status == "measured"
