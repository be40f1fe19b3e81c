"""Two runs of a kind side by side: which times changed, and by how much more than chance.

A time is the median of its samples: the repeats of a sweep's point, the steps of a trace. A ratio
is b's median over a's; its 95 % interval comes from resampling the samples of both runs, so an
outlier widens it and does not move it. "slower" and "faster" are said only where it leaves out 1.

Totals and points are few and asked for, so each is judged by its own interval. Of the hundreds of
operators and modules some intervals miss 1 by chance: there a verdict must also be among those
that keep the expected share of false ones below 5 % (Benjamini-Hochberg, rank-sum test). Kernels
have no times per step in the tables, so their ratio has no interval and no verdict.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from workbench.errors import BadInputError
from workbench.profiler_results import (
    ComparedRow,
    RunComparison,
    SweepPoint,
    SweepResult,
    TraceResult,
)

FEWEST = 4  # samples on each side for an interval
RESAMPLES = 2000
SEED = 0
FALSE_SHARE = 0.05
EXACT_PAIRS = 2500  # 50 samples on each side
TABLES = ("total", "point", "module", "operator", "kernel")  # in the order of the rows
JUDGED = ("total", "point")  # what `worst` and `regressions` look at
VOLATILE = ("load", "now", "free", "available", "start")  # of the environment: never the same
MAX_LISTED = 6

Samples = dict[str, np.ndarray]  # name of a row -> float64 [n] ms


def compare_runs(
    a: SweepResult | TraceResult, b: SweepResult | TraceResult, name_a: str, name_b: str
) -> RunComparison:
    """Run `b` beside run `a`. BadInputError where they are of two kinds or along two axes."""
    if isinstance(a, SweepResult) and isinstance(b, SweepResult):
        rows, notes = _sweeps(a, b, name_a, name_b)
        kind, devices = "sweep", (a.provenance.device, b.provenance.device)
    elif isinstance(a, TraceResult) and isinstance(b, TraceResult):
        rows, notes = _traces(a, b, name_a, name_b)
        kind, devices = "trace", (a.device, b.device)
    else:
        kinds = ["sweep" if isinstance(run, SweepResult) else "trace" for run in (a, b)]
        raise BadInputError(
            f"{name_a} is a {kinds[0]} and {name_b} a {kinds[1]}. Compare two runs of one kind."
        )
    settings = {"device": devices, **_common_settings(a, b)}
    notes = [*_differences(settings, name_a, name_b), *notes]
    if any(math.isfinite(row.low) for row in rows):
        notes.append(
            "The intervals hold the spread within each run. What changes from run to run (clock "
            "speed, other programs) comes on top: repeat both before trusting a few per cent."
        )
    rows.sort(key=lambda row: (TABLES.index(row.table), -np.nanmax([row.a_ms, row.b_ms])))
    return RunComparison(
        provenance=a.provenance,
        kind=kind,
        a=name_a,
        b=name_b,
        device_a=devices[0],
        device_b=devices[1],
        rows=tuple(rows),
        notes=tuple(notes),
    )


def worst(comparison: RunComparison) -> float:
    """Largest ratio of the totals and points; nan where none is in both runs."""
    return max((r.ratio for r in _judged(comparison) if math.isfinite(r.ratio)), default=math.nan)


def regressions(comparison: RunComparison, percent: float) -> tuple[ComparedRow, ...]:
    """Totals and points that are more than `percent` slower in b, and not by chance.

    BadInputError where no total and no point has an interval: such a check could never fail.
    """
    if not (math.isfinite(percent) and percent >= 0):
        raise BadInputError(f"The limit is {percent:g} per cent. Give 0 or more, such as 10.")
    rows = [row for row in _judged(comparison) if math.isfinite(row.low)]
    if not rows:
        raise BadInputError(
            f"{comparison.a} and {comparison.b} share no total and no point with {FEWEST} samples "
            "or more, so nothing can be judged. Measure both with the same settings."
        )
    limit = 1 + percent / 100
    return tuple(row for row in rows if row.ratio > limit and row.low > 1)


def lost(comparison: RunComparison) -> tuple[ComparedRow, ...]:
    """Totals and points that b lacks or could not measure: no time, and no reason to pass."""
    return tuple(row for row in _judged(comparison) if row.verdict == "only a")


def _judged(comparison: RunComparison) -> list[ComparedRow]:
    return [row for row in comparison.rows if row.table in JUDGED]


def _sweeps(
    a: SweepResult, b: SweepResult, name_a: str, name_b: str
) -> tuple[list[ComparedRow], list[str]]:
    if a.axis != b.axis:
        raise BadInputError(
            f"{name_a} is a sweep by {a.axis} and {name_b} one by {b.axis}. "
            "Compare two sweeps along the same axis."
        )
    points_a, points_b = _points(a), _points(b)
    rows = _table(
        "point",
        {key: p.samples_ms for key, p in points_a.items() if p.is_measured},
        {key: p.samples_ms for key, p in points_b.items() if p.is_measured},
    )
    shared = [(points_a[key], points_b[key]) for key in points_a if key in points_b]
    notes = []
    for field in ("model", "scan", "size", "batch", "dtype", "backend", "tokens", "depth"):
        if getattr(a.provenance, field, "") != getattr(b.provenance, field, ""):
            continue  # said of the whole run
        pairs = [(getattr(p, field), getattr(q, field)) for p, q in shared]
        # Once per pair of values, in the order of the points.
        for x, y in dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]):
            notes.append(f"{field} of some points: {x} in {name_a}, {y} in {name_b}.")
    for name, points in ((name_a, points_a), (name_b, points_b)):
        failed = [f"{key} ({p.status})" for key, p in points.items() if not p.is_measured]
        if failed:
            notes.append(f"Not measured in {name}: {_listed(failed)}.")
    if not shared:
        notes.append(f"{name_a} and {name_b} have no point in common.")
    for name, run in ((name_a, a), (name_b, b)):
        if not run.is_final:
            notes.append(f"{name} was stopped before its end.")
    return rows, notes + _missing(rows, name_a, name_b)


def _points(run: SweepResult) -> dict[str, SweepPoint]:
    """By series and label: the place on the axis in words, whatever its number is."""
    return {f"{point.series}, {point.label}": point for point in run.points}


def _traces(
    a: TraceResult, b: TraceResult, name_a: str, name_b: str
) -> tuple[list[ComparedRow], list[str]]:
    notes = []
    n_a, n_b = len(a.steps), len(b.steps)
    if n_a != n_b:
        notes.append(f"{n_a} steps in {name_a}, {n_b} in {name_b}: times are per step.")
    for name, n in ((name_a, n_a), (name_b, n_b)):
        if n < FEWEST:
            notes.append(
                f"{name} has {n} step{'s' if n != 1 else ''}: no intervals and no verdicts. Record "
                f"{FEWEST} or more, each marked as a step."
            )
    rows = _table("total", {"one step": _steps(a)}, {"one step": _steps(b)})
    rows += _table("module", _modules(a), _modules(b))
    rows += _table("operator", _operators(a), _operators(b))
    kernels = _table("kernel", _kernels(a), _kernels(b))
    if kernels:
        notes.append(
            "Kernels: mean time per step over the whole trace, without interval and verdict."
        )
    rows += kernels
    return rows, notes + _missing(rows, name_a, name_b)


def _steps(run: TraceResult) -> np.ndarray:
    return np.array([step.duration_ns for step in run.steps], np.float64) / 1e6


def _modules(run: TraceResult) -> Samples:
    names = [row.path or "whole network" for row in run.modules]
    return _summed(names, run.module_steps_ns)


def _operators(run: TraceResult) -> Samples:
    return _summed([row.name for row in run.operators], run.operator_steps_ns)


def _kernels(run: TraceResult) -> Samples:
    totals = np.array([[row.total_ns] for row in run.kernels], np.float64).reshape(-1, 1)
    return _summed([row.name for row in run.kernels], totals / max(1, len(run.steps)))


def _summed(names: Iterable[str], steps_ns: np.ndarray) -> Samples:
    """Times in ms by name; rows of one name together, rows that no step has left out."""
    samples: Samples = {}
    for name, row in zip(names, np.asarray(steps_ns, np.float64) / 1e6, strict=True):
        if row.any():
            samples[name] = samples[name] + row if name in samples else row
    return samples


def _table(table: str, a: Samples, b: Samples) -> list[ComparedRow]:
    """A row for every name of either run that has samples there."""
    a, b = ({k: v for k, v in side.items() if v.size} for side in (a, b))
    rows = []
    for name in dict.fromkeys((*a, *b)):
        if name not in a or name not in b:
            times = {"a_ms": math.nan, "b_ms": math.nan}
            side, verdict = ("a", "only a") if name in a else ("b", "only b")
            times[f"{side}_ms"] = float(np.median((a if name in a else b)[name]))
            ratio = low = high = math.nan
        else:
            times = {"a_ms": float(np.median(a[name])), "b_ms": float(np.median(b[name]))}
            ratio, low, high = _ratio(a[name], b[name])
            verdict = _verdict(low, high)
        rows.append(
            ComparedRow(
                table=table, name=name, **times, ratio=ratio, low=low, high=high, verdict=verdict
            )
        )
    if table in ("module", "operator"):
        return _hold_false_share(rows, a, b)
    return rows


def _ratio(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """b's median over a's, and its 95 % interval; nan where there is none."""
    median_a, median_b = float(np.median(a)), float(np.median(b))
    # An operator that most steps of a run do not have: no ratio says what happened.
    ratio = median_b / median_a if median_a > 0 and median_b > 0 else math.nan
    if min(a.size, b.size) < FEWEST or not math.isfinite(ratio):
        return ratio, math.nan, math.nan
    resampled_a, resampled_b = (
        np.sort(x)[_middles(x.size, side)].mean(axis=1) for side, x in enumerate((a, b))
    )
    if not resampled_a.all():
        return ratio, math.nan, math.nan
    low, high = np.quantile(resampled_b / resampled_a, (0.025, 0.975))
    return ratio, float(low), float(high)


@functools.lru_cache(maxsize=64)
def _middles(n: int, side: int) -> np.ndarray:
    """int `[RESAMPLES, 2]`: places, in the sorted samples, of each resample's two middle values.

    A resample is n uniform draws of a place; its middle ones are drawn here at once, as the order
    statistics of uniform numbers (beta distributed), whatever n is. One draw serves every row.
    """
    generator = np.random.Generator(np.random.Philox(key=[SEED, side]))
    k = (n + 1) // 2
    first = generator.beta(k, n - k + 1, RESAMPLES)
    second = first
    if n % 2 == 0:  # the smallest of the n - k draws above it
        second = first + (1 - first) * generator.beta(1, n - k, RESAMPLES)
    return np.minimum((np.stack([first, second], axis=1) * n).astype(np.int64), n - 1)


def _verdict(low: float, high: float) -> str:
    if not math.isfinite(low):
        return "not known"
    return "slower" if low > 1 else "faster" if high < 1 else "no different"


def _hold_false_share(rows: list[ComparedRow], a: Samples, b: Samples) -> list[ComparedRow]:
    """Take back the verdicts that many rows bring by chance (Benjamini-Hochberg)."""
    p = {row.name: rank_sum_p(a[row.name], b[row.name]) for row in rows if math.isfinite(row.low)}
    limit = 0.0
    for rank, value in enumerate(sorted(p.values()), start=1):
        if value <= FALSE_SHARE * rank / len(p):
            limit = value
    return [
        replace(row, verdict="no different") if p.get(row.name, 0.0) > limit else row
        for row in rows
    ]


def rank_sum_p(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided p of the rank-sum test: exact for few samples without ties, else by the normal
    curve."""
    n_a, n_b = a.size, b.size
    values, places, counts = np.unique(
        np.concatenate([a, b]), return_inverse=True, return_counts=True
    )
    ranks = np.cumsum(counts) - (counts - 1) / 2
    # Pairs in which a is the larger, ties by half.
    u = float(ranks[places[:n_a]].sum() - n_a * (n_a + 1) / 2)
    extreme = min(u, n_a * n_b - u)
    if values.size == n_a + n_b and n_a * n_b <= EXACT_PAIRS:
        return min(1.0, 2 * float(_rank_sum_shares(n_a, n_b)[: int(extreme) + 1].sum()))
    n = n_a + n_b
    variance = n_a * n_b / 12 * (n + 1 - float((counts**3.0 - counts).sum()) / (n * (n - 1)))
    if variance == 0:
        return 1.0
    z = max(0.0, n_a * n_b / 2 - extreme - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


@functools.lru_cache(maxsize=64)
def _rank_sum_shares(n_a: int, n_b: int) -> np.ndarray:
    """Share of all orders of n_a + n_b values that have each U, float64 `[n_a * n_b + 1]`."""
    # Ways to choose n_a of the ranks seen so far, by their number and the U they give.
    ways = np.zeros((n_a + 1, n_a * n_b + 1))
    ways[0, 0] = 1
    for rank in range(n_a + n_b):
        for chosen in range(min(rank, n_a - 1), -1, -1):
            larger = rank - chosen  # values of b below this value of a
            if larger <= n_b:
                ways[chosen + 1, larger:] += ways[chosen, : ways.shape[1] - larger]
    shares: np.ndarray = ways[n_a] / math.comb(n_a + n_b, n_a)
    return shares


def _common_settings(
    a: SweepResult | TraceResult, b: SweepResult | TraceResult
) -> dict[str, tuple[object, object]]:
    """Settings of both runs by name, to be said where they differ."""
    settings: dict[str, tuple[object, object]] = {}
    for field in ("subject", "passes", "kind", "clock"):
        if hasattr(a, field):
            settings[field] = (getattr(a, field), getattr(b, field))
    for field in ("model", "weights", "scan", "input_size", "backend"):
        settings[field] = (getattr(a.provenance, field), getattr(b.provenance, field))
    tables: list[tuple[Mapping[str, object], Mapping[str, object]]] = [
        (a.provenance.versions, b.provenance.versions)
    ]
    if isinstance(a, SweepResult) and isinstance(b, SweepResult):
        tables.append((a.environment, b.environment))
    for table_a, table_b in tables:
        for key in dict.fromkeys((*table_a, *table_b)):
            if not any(word in key.lower() for word in VOLATILE):
                settings.setdefault(key, (table_a.get(key, ""), table_b.get(key, "")))
    return settings


def _differences(
    settings: Mapping[str, tuple[object, object]], name_a: str, name_b: str
) -> list[str]:
    notes = []
    unknown: dict[str, list[str]] = {}
    for key, (x, y) in settings.items():
        words = key.replace("_", " ")
        if x == y:
            continue
        if _is_known(x) and _is_known(y):
            notes.append(f"Different {words}: {_value(x)} in {name_a}, {_value(y)} in {name_b}.")
        else:
            unknown.setdefault(name_b if _is_known(x) else name_a, []).append(words)
    return notes + [f"Not known of {name}: {', '.join(keys)}." for name, keys in unknown.items()]


def _is_known(value: object) -> bool:
    """A brought trace says little about its network."""
    return any(value) if isinstance(value, tuple) else value not in ("", None)


def _value(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _missing(rows: list[ComparedRow], name_a: str, name_b: str) -> list[str]:
    notes = []
    for table in TABLES:
        for verdict, name in (("only a", name_a), ("only b", name_b)):
            names = [r.name for r in rows if r.table == table and r.verdict == verdict]
            if names:
                plural = f"{table}s" if len(names) != 1 else table
                notes.append(f"Only in {name}: {len(names)} {plural} ({_listed(names)}).")
    return notes


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", ..." if names[MAX_LISTED:] else "")
