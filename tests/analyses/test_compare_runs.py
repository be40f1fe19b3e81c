"""Comparing runs: true ratios, honest intervals, few false verdicts, and settings that differ."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_runs import sweep, trace
from workbench.analyses.compare_runs import (
    _middles,
    compare_runs,
    lost,
    rank_sum_p,
    regressions,
    worst,
)
from workbench.errors import BadInputError
from workbench.profiler_results import (
    ComparedRow,
    RunComparison,
    StepRow,
    SweepResult,
    TraceResult,
)

ROOT = Path(__file__).parents[2]
NAN = float("nan")


def sweep_of(times: Mapping[tuple[str, str], Sequence[float] | np.ndarray]) -> SweepResult:
    """A sweep with these samples in ms by (series, label)."""
    base = sweep()
    points = tuple(
        replace(
            base.points[0],
            series=series,
            label=label,
            samples_ms=np.asarray(samples, np.float64),
            status="" if len(samples) else "out of memory",
        )
        for (series, label), samples in times.items()
    )
    return replace(base, points=points, series=tuple(dict.fromkeys(p.series for p in points)))


def trace_of(
    steps_ms: Sequence[float],
    operators: Mapping[str, Sequence[float]] | None = None,
    modules: Mapping[str, Sequence[float]] | None = None,
    kernels: Mapping[str, float] | None = None,
    **changes: Any,
) -> TraceResult:
    """A trace with these times in ms: of its steps, of rows in each step, of kernels in all."""
    base = trace()

    def table(rows: Mapping[str, Sequence[float]]) -> np.ndarray:
        numbers = np.array(list(rows.values()), np.float64).reshape(len(rows), len(steps_ms))
        return np.round(numbers * 1e6).astype(np.int64)

    operators, modules, kernels = operators or {}, modules or {}, kernels or {}
    return replace(
        base,
        steps=tuple(
            StepRow(name=f"step#{k}", start_ns=0, duration_ns=round(ms * 1e6), parts={})
            for k, ms in enumerate(steps_ms)
        ),
        operators=tuple(replace(base.operators[0], name=name) for name in operators),
        modules=tuple(replace(base.modules[0], path=path) for path in modules),
        kernels=tuple(
            replace(base.kernels[0], name=name, total_ns=round(ms * 1e6))
            for name, ms in kernels.items()
        ),
        operator_steps_ns=table(operators),
        module_steps_ns=table(modules),
        **changes,
    )


def by_name(comparison: RunComparison) -> dict[str, ComparedRow]:
    return {f"{row.table}: {row.name}": row for row in comparison.rows}


# Sweeps


def test_points_are_matched_by_line_and_label() -> None:
    rng = np.random.default_rng(0)
    a = sweep_of({(s, label): rng.normal(10, 0.1, 12) for s in "xy" for label in ("64", "96")})
    b = sweep_of(
        {
            ("x", "96"): rng.normal(12, 0.1, 12),
            ("x", "64"): rng.normal(8, 0.1, 12),
            ("y", "64"): a.points[2].samples_ms,
            ("y", "128"): rng.normal(10, 0.1, 12),
        }
    )
    comparison = compare_runs(a, b, "old", "new")
    rows = by_name(comparison)
    assert {name: row.verdict for name, row in rows.items()} == {
        "point: x, 96": "slower",
        "point: x, 64": "faster",
        "point: y, 64": "no different",
        "point: y, 96": "only a",
        "point: y, 128": "only b",
    }
    slower = rows["point: x, 96"]
    assert slower.a_ms == np.median(a.points[1].samples_ms)
    assert slower.b_ms == np.median(b.points[0].samples_ms)
    assert slower.ratio == slower.b_ms / slower.a_ms
    assert slower.low < slower.ratio < slower.high
    assert slower.low == pytest.approx(1.2, abs=0.03) == slower.high
    assert rows["point: y, 64"].ratio == 1
    only = rows["point: y, 96"]
    assert only.a_ms > 0 and all(
        math.isnan(x) for x in (only.b_ms, only.ratio, only.low, only.high)
    )
    times = [np.nanmax([row.a_ms, row.b_ms]) for row in comparison.rows]
    assert times == sorted(times, reverse=True)
    assert (comparison.a, comparison.b, comparison.kind) == ("old", "new", "sweep")
    assert any("Only in old: 1 point (y, 96)" in note for note in comparison.notes)
    assert any("spread within each run" in note for note in comparison.notes)
    assert compare_runs(a, b, "old", "new") == comparison  # seeded; nan is the same object


def test_few_samples_give_a_ratio_and_no_verdict() -> None:
    for n_a, n_b in ((3, 12), (12, 3), (1, 1)):
        comparison = compare_runs(
            sweep_of({("x", "64"): np.ones(n_a)}),
            sweep_of({("x", "64"): 2 * np.ones(n_b)}),
            "a",
            "b",
        )
        (row,) = comparison.rows
        assert (row.ratio, row.verdict) == (2, "not known")
        assert math.isnan(row.low) and math.isnan(row.high)
        assert not any("intervals" in note for note in comparison.notes)
        with pytest.raises(BadInputError, match="nothing can be judged"):
            regressions(comparison, 10)


def test_an_outlier_does_not_make_a_verdict() -> None:
    steady = np.linspace(9.9, 10.1, 12)
    disturbed = steady.copy()
    disturbed[3] = 500
    (row,) = compare_runs(
        sweep_of({("x", "64"): steady}), sweep_of({("x", "64"): disturbed}), "a", "b"
    ).rows
    assert row.verdict == "no different" and row.high < 1.05


@pytest.mark.parametrize("n", [6, 12])
def test_the_interval_covers_the_true_ratio(n: int) -> None:
    """Of 400 pairs of runs with long right tails, at least 90 % hold the true 1.3."""
    rng = np.random.default_rng(1)
    labels = [str(k) for k in range(400)]
    a = {("x", label): 10 + rng.exponential(0.3, n) for label in labels}
    b = {("x", label): 1.3 * (10 + rng.exponential(0.3, n)) for label in labels}
    rows = compare_runs(sweep_of(a), sweep_of(b), "a", "b").rows
    covered = np.mean([row.low <= 1.3 <= row.high for row in rows])
    assert 0.9 <= covered <= 0.995
    same = compare_runs(sweep_of(a), sweep_of({k: v / 1.3 for k, v in b.items()}), "a", "b").rows
    assert np.mean([row.verdict != "no different" for row in same]) <= 0.1


def test_points_that_failed() -> None:
    a = sweep_of({("x", "64"): np.full(6, 1.0), ("x", "96"): np.full(6, 2.0)})
    b = sweep_of({("x", "64"): np.full(6, 1.0), ("x", "96"): []})
    comparison = compare_runs(a, b, "old", "new")
    assert [row.name for row in lost(comparison)] == ["x, 96"]
    assert regressions(comparison, 10) == ()
    assert any("Not measured in new: x, 96 (out of memory)" in note for note in comparison.notes)
    assert lost(compare_runs(b, a, "new", "old")) == ()


def test_other_devices_and_settings_are_said() -> None:
    a = sweep()
    b = replace(
        a,
        provenance=replace(a.provenance, device="CPU, 4 threads", versions={"torch": "2.15"}),
        environment={"threads": "4", "load average": "3.1"},
        points=tuple(replace(p, batch=8) for p in a.points),
        passes="train",
        is_final=False,
    )
    comparison = compare_runs(a, b, "old", "new")
    said = " ".join(comparison.notes)
    for words in (
        "Different device: CPU, 2 threads in old, CPU, 4 threads in new.",
        "Different torch: 2.14 in old, 2.15 in new.",
        "Different threads: 2 in old, 4 in new.",
        "Different passes: forward in old, train in new.",
        "batch of some points: 1 in old, 8 in new.",
        "new was stopped",
    ):
        assert words in said
    assert said.count("batch of some points") == 1 and "load" not in said
    assert (comparison.device_a, comparison.device_b) == ("CPU, 2 threads", "CPU, 4 threads")
    assert len(compare_runs(a, a, "old", "new").notes) == 1  # the one on spread


def test_runs_that_cannot_be_compared() -> None:
    with pytest.raises(BadInputError, match="old is a sweep and new a trace"):
        compare_runs(sweep(), trace(), "old", "new")
    with pytest.raises(BadInputError, match="same axis"):
        compare_runs(sweep(), replace(sweep(), axis="batch"), "old", "new")
    nothing = compare_runs(sweep(), sweep_of({("z", "64"): np.ones(6)}), "old", "new")
    assert any("no point in common" in note for note in nothing.notes)
    assert math.isnan(worst(nothing))


# Traces

STEPS_A = [10.0, 10.2, 9.9, 10.1, 10.0, 9.8]
STEPS_B = [12.0, 12.2, 11.9, 12.1, 12.0, 11.8]


def test_steps_are_the_samples_of_traces() -> None:
    a = trace_of(
        STEPS_A,
        operators={"aten::mm": STEPS_A, "aten::add": [1, 1.01, 0.99, 1.02, 1, 1], "gone": [1] * 6},
        modules={"": STEPS_A, "stages.0": STEPS_A},
        kernels={"gemm": 30.0},
    )
    b = trace_of(
        STEPS_B,
        operators={"aten::mm": STEPS_B, "aten::add": [1.01, 1, 1, 1.02, 0.99, 1], "idle": [0] * 6},
        modules={"": STEPS_B, "stages.0": STEPS_B},
        kernels={"gemm": 60.0},
    )
    comparison = compare_runs(a, b, "old", "new")
    rows = by_name(comparison)
    assert [row.table for row in comparison.rows] == [
        *("total", "module", "module", "operator", "operator", "operator", "kernel")
    ]
    total = rows["total: one step"]
    assert (total.a_ms, total.b_ms, total.verdict) == (10.0, 12.0, "slower")
    assert rows["module: whole network"].verdict == "slower"
    assert rows["operator: aten::mm"].ratio == pytest.approx(1.2)
    assert rows["operator: aten::add"].verdict == "no different"
    assert rows["operator: gone"].verdict == "only a"
    assert "operator: idle" not in rows  # no time in any step: nothing to compare
    kernel = rows["kernel: gemm"]
    assert (kernel.a_ms, kernel.b_ms, kernel.ratio) == (5.0, 10.0, 2.0)
    assert kernel.verdict == "not known" and math.isnan(kernel.low)
    assert any(note.startswith("Kernels: mean time per step") for note in comparison.notes)
    assert regressions(comparison, 10) == (total,)
    assert worst(comparison) == pytest.approx(1.2)


def test_traces_with_few_or_other_steps() -> None:
    comparison = compare_runs(trace_of([10.0]), trace_of([30.0, 31.0]), "old", "new")
    (total,) = comparison.rows
    assert total.ratio == pytest.approx(3.05) and total.verdict == "not known"
    said = " ".join(comparison.notes)
    assert "1 steps in old, 2 in new" in said and "old has 1 step:" in said
    with pytest.raises(BadInputError, match="nothing can be judged"):
        regressions(comparison, 10)
    assert compare_runs(trace_of([]), trace_of([]), "old", "new").rows == ()


def test_an_operator_that_only_some_steps_have() -> None:
    a = trace_of([10.0] * 6, operators={"rare": [0, 0, 0, 0, 5, 5], "half": [0, 0, 1, 1, 1, 1]})
    b = trace_of([10.0] * 6, operators={"rare": [5.0] * 6, "half": [1.0] * 6})
    rows = by_name(compare_runs(a, b, "old", "new"))
    assert rows["operator: rare"].verdict == "not known"
    assert math.isnan(rows["operator: rare"].ratio)
    assert rows["operator: half"].verdict == "not known"
    assert rows["operator: half"].ratio == 1


def test_rows_of_one_name_are_added() -> None:
    base = trace_of(STEPS_A, operators={"x": STEPS_A})
    double = replace(
        base,
        operators=base.operators * 2,
        operator_steps_ns=np.concatenate([base.operator_steps_ns] * 2),
    )
    assert by_name(compare_runs(base, double, "a", "b"))["operator: x"].ratio == 2


def test_many_operators_bring_few_false_verdicts() -> None:
    """200 operators of which 5 changed: the 5 are found, of the others at most a few are named."""
    rng = np.random.default_rng(2)
    names = [f"op{k}" for k in range(200)]
    a = {name: rng.gamma(400, 1 / 400, 10) for name in names}
    b = {name: rng.gamma(400, 1 / 400, 10) * (1.5 if k < 5 else 1) for k, name in enumerate(names)}
    rows = compare_runs(trace_of([1.0] * 10, a), trace_of([1.0] * 10, b), "a", "b").rows
    named = {r.name for r in rows if r.table == "operator" and r.verdict in ("slower", "faster")}
    outside = [r for r in rows if r.table == "operator" and not r.low <= 1 <= r.high]
    assert {f"op{k}" for k in range(5)} <= named
    assert len(named) <= 7 < len(outside)  # what the intervals alone would have named


def test_rank_sum_is_exact_without_ties() -> None:
    """Against every order of 4 and 3 values."""
    ranks = range(7)
    us = [sum(a) - 6 for a in itertools.combinations(ranks, 4)]
    for a in itertools.combinations(ranks, 4):
        b = [rank for rank in ranks if rank not in a]
        u = sum(a) - 6
        extreme = min(u, 12 - u)
        expected = min(1.0, 2 * sum(x <= extreme for x in us) / len(us))
        assert rank_sum_p(np.array(a, float), np.array(b, float)) == pytest.approx(expected)
    assert rank_sum_p(np.ones(5), np.ones(7)) == 1
    with_ties = rank_sum_p(np.array([1.0, 1, 2, 3, 4]), np.array([4.0, 5, 6, 7, 8]))
    assert with_ties == pytest.approx(0.01565054, abs=1e-8)  # as scipy says
    assert rank_sum_p(np.arange(50.0), np.arange(50.0) + 100) < 1e-20


# Samples


@pytest.mark.parametrize("n", [4, 5, 12])
def test_the_short_cut_is_the_bootstrap_of_the_median(n: int) -> None:
    """Same quantiles as resampling one by one, to the noise of 2,000 resamples."""
    rng = np.random.default_rng(3)
    x = np.sort(rng.exponential(1, n))
    plain = np.median(x[rng.integers(0, n, (50_000, n))], axis=1)
    places = _middles(n, 0)
    assert places.shape == (2000, 2) and 0 <= places.min() <= places.max() < n
    for place in (places[:, 0], places[:, 1]):
        assert place.mean() == pytest.approx((n - 1) / 2, abs=0.6)
    short = x[places].mean(axis=1)
    values = np.unique(plain)
    share = [np.abs(np.mean(plain <= v + 1e-12) - np.mean(short <= v + 1e-12)) for v in values]
    assert max(share) < 0.04  # Kolmogorov-Smirnov, p < 0.01


def test_a_million_samples_need_no_memory() -> None:
    rng = np.random.default_rng(4)
    many = rng.normal(10, 1, 1_000_000)
    (found,) = compare_runs(
        sweep_of({("x", "64"): many}), sweep_of({("x", "64"): many * 1.01}), "a", "b"
    ).rows
    assert found.verdict == "slower" and found.high - found.low < 0.002
    assert rank_sum_p(many[:100_000], many[100_000:300_000]) > 1e-4


# Limits


def comparison_of(*rows: ComparedRow) -> RunComparison:
    base = compare_runs(sweep(), sweep(), "a", "b")
    return replace(base, rows=rows)


def row(table: str, ratio: float, low: float) -> ComparedRow:
    return ComparedRow(
        table=table, name="r", a_ms=1, b_ms=ratio, ratio=ratio, low=low, high=2, verdict="slower"
    )


def test_regressions_need_the_limit_and_the_interval() -> None:
    bad = row("point", 1.2, 1.05)
    comparison = comparison_of(
        bad, row("total", 1.2, 0.99), row("total", 1.09, 1.05), row("operator", 3.0, 2.5)
    )
    assert regressions(comparison, 10) == (bad,)
    assert regressions(comparison, 20) == ()
    assert len(regressions(comparison, 5)) == 2
    assert worst(comparison) == 1.2
    for wrong in (-1, NAN, float("inf")):
        with pytest.raises(BadInputError, match="Give 0 or more"):
            regressions(comparison, wrong)


def test_comparing_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'scipy', 'kernels', 'models'): sys.modules[name] = None\n"
        "import workbench.analyses.compare_runs"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
