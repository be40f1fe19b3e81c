"""Metrics and reach of scan orders against counting by hand, in plain loops over sets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kernels import SCHEMES, ScanOrder, scan_order
from kernels.scan_reach import reach_counts, reach_of

FAR = 10**9
SMALL = [(1, 1), (1, 6), (5, 1), (4, 4), (3, 5), (6, 7)]
TEXTS = [
    *SCHEMES,
    "es2d:step=3",
    "hilbert:transpose=2",
    "windows:size=2,transpose=2",
    "windows:size=3,reverse=2",
    "random:transpose=2",
    "zigma:path=5",
]


def sequences_of(order: ScanOrder) -> list[tuple[int, list[int]]]:
    """(pass, codes) of every walk that starts from an empty state."""
    found = []
    for k, row in enumerate(order.index.tolist()):
        row = row[: order.lengths[k]]
        restart = order.other.restart_every[k] if order.other and order.other.restart_every else 0
        number = order.other.pass_number[k] if order.other and order.other.pass_number else 0
        for start in range(0, len(row), restart or len(row)):
            found.append((number, row[start : start + (restart or len(row))]))
    return found


def tokens_at(order: ScanOrder, code: int) -> list[int]:
    """The tokens that a step with `code` reads and writes."""
    if code >= 0:
        return [code]
    if code == -1:
        return []
    return [t for t in order.other.extra.tokens[-2 - code].tolist() if t >= 0]


def steps_by_hand(order: ScanOrder) -> np.ndarray:
    """Fewest steps from source to target, `[sources, targets]`; FAR where there is no way."""
    n = order.n_tokens
    total = np.where(np.eye(n, dtype=bool), 0, FAR)
    walks = sequences_of(order)
    for number in sorted({number for number, _ in walks}):
        one = np.full((n, n), FAR)
        for mine, codes in walks:
            if mine != number:
                continue
            for i, early in enumerate(codes):
                for j in range(i, len(codes)):
                    for s in tokens_at(order, early):
                        for t in tokens_at(order, codes[j]):
                            one[s, t] = min(one[s, t], j - i)
        total = np.array([(row[:, None] + one).min(axis=0) for row in total])
    return np.where(total >= FAR, -1, total)


@pytest.mark.parametrize("text", TEXTS)
def test_reach_agrees_with_counting(text: str) -> None:
    for height, width in SMALL:
        order = scan_order(text, height, width)
        steps = steps_by_hand(order)
        counts, is_exact = reach_counts(order)
        assert is_exact and counts.tolist() == (steps >= 0).sum(axis=0).tolist()
        for token in {0, order.n_tokens // 2, order.n_tokens - 1}:
            y, x = divmod(token, width)
            reach = reach_of(order, y, x)
            assert (reach.y, reach.x) == (y, x)
            assert np.array_equal(reach.steps_back.ravel(), steps[:, token])
            assert np.array_equal(reach.steps_on.ravel(), steps[token])
            assert reach.share == counts[token] / order.n_tokens
            assert reach.steps_back[y, x] == reach.steps_on[y, x] == 0


def test_reach_of_any_table_agrees_with_counting() -> None:
    rng = np.random.default_rng(0)
    for n_sequences in (1, 2, 3):
        index = rng.integers(-1, 20, size=(n_sequences, 17))
        order = ScanOrder("mine", index, np.zeros(n_sequences, dtype=int), "sum", 4, 5)
        by_hand = steps_by_hand(order)
        never_read = order.visits == 0
        expected = (by_hand >= 0).sum(axis=0)
        assert reach_counts(order)[0].tolist() == expected.tolist()
        for token in range(20):
            reach = reach_of(order, *divmod(token, 5))
            assert np.array_equal(reach.steps_back.ravel(), by_hand[:, token])
            assert reach.sequences.tolist() == np.flatnonzero((index == token).any(1)).tolist()
            assert never_read[token] == (reach.share == 0)


def test_reach_through_each_sequence() -> None:
    order = scan_order("ss2d", 3, 4)
    reach = reach_of(order, 1, 2)
    assert reach.sequences.tolist() == [0, 1, 2, 3]
    for k, row in enumerate(order.index.tolist()):
        at = row.index(6)
        back = [at - row.index(t) if row.index(t) <= at else -1 for t in range(12)]
        on = [row.index(t) - at if row.index(t) >= at else -1 for t in range(12)]
        assert reach.steps_back_by_sequence[k].ravel().tolist() == back
        assert reach.steps_on_by_sequence[k].ravel().tolist() == on
    phase = reach_of(scan_order("es2d", 6, 6), 3, 2)
    assert phase.sequences.tolist() == [1]
    assert phase.steps_back.tolist() == phase.steps_back_by_sequence[0].tolist()
    # Odd rows, even columns, column by column: (1, 0), (3, 0), (5, 0), (1, 2) come before (3, 2).
    before = {
        (int(y), int(x)): int(phase.steps_back[y, x]) for y, x in np.argwhere(phase.steps_back >= 0)
    }
    assert before == {(1, 0): 4, (3, 0): 3, (5, 0): 2, (1, 2): 1, (3, 2): 0}


@pytest.mark.parametrize(("y", "x"), [(-1, 0), (3, 0), (0, 4)])
def test_a_token_outside_the_map_is_refused(y: int, x: int) -> None:
    with pytest.raises(ValueError, match="y from 0 to 2 and x from 0 to 3"):
        reach_of(scan_order("es2d", 3, 4), y, x)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (16, 8), (256, 256)])
def test_mean_reach_has_the_closed_form(height: int, width: int) -> None:
    n = height * width
    es2d, ss2d = (scan_order(name, height, width).metrics() for name in ("es2d", "ss2d"))
    assert es2d["mean_reach"] == pytest.approx((n / 4 + 1) / (2 * n))
    assert ss2d["mean_reach"] == ss2d["max_reach"] == 1.0
    assert es2d["is_reach_exact"] == ss2d["is_reach_exact"] == 1


def test_a_very_large_map_is_sampled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    order = scan_order("random:transpose=2", 64, 80)
    exact, is_exact = reach_counts(order)
    monkeypatch.setattr("kernels.scan_reach._LARGEST_WORK", 1000)
    sampled, is_sample_exact = reach_counts(order)
    assert is_exact and not is_sample_exact
    assert sampled.mean() == pytest.approx(exact.mean(), rel=0.01)
    assert np.array_equal(sampled, reach_counts(order)[0])


@pytest.mark.parametrize(
    ("text", "gap", "step"),
    [
        ("raster", (8.5, 16), (1.88, 16)),
        ("snake", (8.5, 31), (1.00, 1)),
        ("windows:size=4", (8.5, 52), (1.88, 16)),
        ("morton", (8.5, 86), (1.88, 16)),
        ("hilbert", (9.9, 213), (1.00, 1)),
    ],
)
def test_statistics_of_16_x_16(text: str, gap: tuple[float, int], step: tuple[float, int]) -> None:
    for variant in ("", "reverse=1", "transpose=1", "reverse=2,transpose=2"):
        full = text + ("," if ":" in text else ":") * bool(variant) + variant
        metrics = scan_order(full, 16, 16).metrics()
        assert metrics["mean_gap"] == pytest.approx(gap[0], abs=0.05)
        assert metrics["mean_jump"] == pytest.approx(step[0], abs=0.005)
        assert (metrics["max_gap"], metrics["max_jump"]) == (gap[1], step[1])
        assert metrics["neighbours_together"] == 1


def test_metrics_of_the_raster_scan() -> None:
    assert scan_order("es2d", 16, 16, step=1).metrics() == {
        "n_sequences": 1,
        "length": 256,
        "n_parameter_sets": 1,
        "tokens_scanned": 256,
        "n_pads": 0,
        "n_extra_steps": 0,
        "visits_min": 1,
        "visits_max": 1,
        "mean_reach": pytest.approx(257 / 512),
        "max_reach": 1.0,
        "is_reach_exact": 1,
        "farthest_steps": 255,
        "mean_jump": pytest.approx(1.88, abs=0.005),
        "max_jump": 16,
        "n_jumps": 15,
        "n_diagonal": 0,
        "n_breaks": 15,
        "mean_gap": 8.5,
        "max_gap": 16,
        "neighbours_together": 1.0,
    }


def test_metrics_of_phases_without_tokens() -> None:
    metrics = scan_order("es2d", 1, 2, step=3).metrics()
    assert (metrics["n_sequences"], metrics["length"], metrics["n_pads"]) == (9, 1, 7)
    assert (metrics["mean_jump"], metrics["n_jumps"], metrics["mean_reach"]) == (0.0, 0, 0.5)
    assert metrics["neighbours_together"] == 0 and math.isnan(metrics["mean_gap"])


def test_moves_are_told_apart() -> None:
    atrous = scan_order("es2d", 8, 8).metrics()
    assert (atrous["n_jumps"], atrous["n_breaks"], atrous["neighbours_together"]) == (60, 12, 0)
    diagonal = scan_order("diagonal:alternate=1", 4, 4).metrics()
    assert (diagonal["n_jumps"], diagonal["n_diagonal"], diagonal["max_jump"]) == (9, 9, 2)
    # A class token has no place: the move over it goes from the token before to the one after.
    assert (
        scan_order("vim", 4, 4).metrics()["mean_jump"]
        == (scan_order("bidirectional", 4, 4).metrics()["mean_jump"])
    )
    # Every row and column of the cascade starts anew.
    cascade = scan_order("cascade2d", 3, 4).metrics()
    assert (cascade["n_jumps"], cascade["max_gap"], cascade["farthest_steps"]) == (0, 1, 3)


def test_gaps_count_only_what_one_sequence_reads() -> None:
    index = np.array([[0, 1, -1, 3], [2, -1, -1, -1]])
    metrics = ScanOrder("mine", index, np.array([0, 0]), "place", 2, 2).metrics()
    # Of the pairs 0-1, 2-3, 0-2, 1-3 the first sequence reads 0-1 (1 step) and 1-3 (2 steps).
    assert (metrics["mean_gap"], metrics["max_gap"]) == (1.5, 2)
    assert metrics["neighbours_together"] == 0.5


def test_one_token_has_no_neighbours() -> None:
    metrics = scan_order("hilbert", 1, 1).metrics()
    assert math.isnan(metrics["mean_gap"]) and math.isnan(metrics["neighbours_together"])
    assert (metrics["mean_reach"], metrics["max_jump"]) == (1.0, 0)
