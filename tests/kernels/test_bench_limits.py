"""Budget, estimates, clocks: no time is measured here, clocks are made up."""

from __future__ import annotations

import pytest
import torch

from kernels._bench import limits, rows
from kernels._bench.cases import Case
from kernels._bench.contenders import CONTENDERS
from kernels._bench.limits import Budget, Rates, why_too_large, why_too_long
from kernels._bench.timing import SHORTEST_WINDOW, calls_in_window, interleaved


class FakeClock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_repeats_get_fewer_and_then_none() -> None:
    clock = FakeClock()
    budget = Budget(100, ["fast", "slow"], clock)
    assert budget.repeats("slow", one_call=0.1, rows_left=10, wanted=1.0) == 10
    clock.now = 99.0  # 1 s is left: 4 * 1 / 10 for a row
    assert budget.repeats("slow", one_call=0.01, rows_left=10, wanted=1.0) == 20
    assert budget.repeats("slow", one_call=0.06, rows_left=10, wanted=1.0) == limits.MIN_REPEATS
    assert budget.repeats("slow", one_call=0.1, rows_left=10, wanted=1.0) == 0
    assert why_too_long("slow", 0.1, budget, 10) == "not run: time budget, about 0.4 s of 1 s left"
    clock.now = 200.0
    assert budget.left == 0 and budget.repeats("fast", 1e-5, 1, 1.0) == 0


def test_one_sharer_cannot_use_up_the_others_part() -> None:
    budget = Budget(100, ["fast", "slow"], FakeClock())
    budget.spend("slow", 34.0)  # of (100 - 30) / 2
    assert budget.left_of("slow") == 1.0 and budget.left_of("fast") == 35.0
    assert not budget.allows("slow", 1.0, rows_left=10)
    assert budget.allows("fast", 7.0, rows_left=10)
    assert budget.allows("slow", 1.0, rows_left=2)  # nothing else will need it
    assert budget.allows_exact(5.0, rows_left=100) and not budget.allows_exact(6.0, rows_left=100)


def test_rows_of_more_than_a_minute_say_how_long() -> None:
    budget = Budget(1e6, ["any"], FakeClock())
    assert why_too_long("any", 20.0, budget, 10) == "not run: about 80 s"
    assert why_too_long("any", 14.0, budget, 10) is None


def test_sizes_are_computed_for_every_contender() -> None:
    small, large = Case("tiny", 1, 1), Case("base", 1, 128, size=(800, 1280))
    for contender in CONTENDERS.values():
        assert why_too_large(contender, small, "forward+backward") is None
        gib = contender.bytes_needed(large, "forward+backward") / 2**30
        assert why_too_large(contender, large, "forward+backward") == f"not run: {gib:.1f} GiB"
    mambapy = CONTENDERS["mambapy"]
    even, odd = Case("tiny", 1, 1, size=128), Case("tiny", 1, 1, size=136)
    # 17 x 17 steps are padded to 512, 16 x 16 to 256.
    assert mambapy.bytes_needed(odd, "forward") > 1.9 * mambapy.bytes_needed(even, "forward")


def test_estimates_scale_the_nearest_measurement() -> None:
    rates = Rates()
    one, eight, longer = Case("tiny", 1, 1), Case("tiny", 1, 8), Case("tiny", 1, 1, size=448)
    rates.add("cpu", "forward", one, 1.0)
    assert rates.seconds("cpu", "forward", eight) == 8.0
    rates.add("cpu", "forward", eight, 4.0)
    assert rates.seconds("cpu", "forward", Case("tiny", 1, 128)) == 4.0 * 16
    rates.add("reference", "forward", eight, 1.0)
    # Half the state updates but four times the steps.
    assert rates.seconds("reference", "forward", longer) == 4.0
    assert not rates.knows("reference", "forward+backward")


def test_everything_after_the_budget_is_a_row_that_says_so(monkeypatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(rows, "CALIBRATION", Case("tiny", 2, 1, size=32))
    bench = rows.Bench(["cpu", "chunked"], torch.device("cpu"), 1000.0, 0.001, clock)
    cases = [Case("tiny", 2, 1, size=32), Case("tiny", 2, 2, size=32)]
    found = []
    for row in bench.run(cases):
        found.append(row)
        if len(found) == 3:  # the first pass of the first case
            clock.now = 1001.0
    assert [r["status"] for r in found[:3]] == ["ok"] * 3
    rest = found[3:]
    assert len(rest) == 6
    assert all("not run: time budget" in r["status"] for r in rest), rest
    assert not any("p50_ms" in r for r in rest)


def test_turns_are_spread_over_all() -> None:
    clock, order = FakeClock(), []

    def run(name: str, seconds: float):
        def once() -> None:
            order.append(name)
            clock.now += seconds

        return once

    times = interleaved({"a": run("a", 1.0), "b": run("b", 5.0)}, {"a": 6, "b": 2}, clock)
    assert "".join(order) == "aaabaaab"
    assert times["a"].seconds == (1.0,) * 6 and times["b"].seconds == (5.0, 5.0)
    columns = times["b"].columns()
    assert columns["p20_ms"] == columns["p80_ms"] == 5000.0 and columns["repeats"] == 2
    assert interleaved({}, {}) == {}


@pytest.mark.parametrize("one_call", [1e-9, 3e-6, 49e-6, 1.0])
def test_short_kernels_are_timed_in_windows(one_call: float) -> None:
    calls = calls_in_window(one_call)
    assert calls == 1000 or calls * one_call >= SHORTEST_WINDOW
    assert calls_in_window(SHORTEST_WINDOW) == 1
