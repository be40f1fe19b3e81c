"""Scan orders against their definitions, written here a second time as plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import SCHEMES, ScanOrder, ScanSpec, scan_order, scan_orders
from kernels.scan_metrics import reach_counts

SIZES = [(1, 1), (1, 9), (7, 1), (2, 2), (7, 10), (8, 8), (9, 5)]


def es2d_by_definition(height: int, width: int, step: int) -> tuple[list[list[int]], list[int]]:
    rows, columns = -(-height // step), -(-width // step)
    index, sets = [], []
    for j in range(step):
        for i in range(step):
            row_major = [(r, c) for r in range(rows) for c in range(columns)]
            column_major = [(r, c) for c in range(columns) for r in range(rows)]
            sequence = []
            for r, c in row_major if i % 2 == 0 else column_major:
                y, x = r * step + i, c * step + j
                sequence.append(y * width + x if y < height and x < width else -1)
            index.append(sequence)
            sets.append(i % 2 + 2 * (j % 2))
    return index, sets


@pytest.mark.parametrize("step", [1, 2, 3, 4, 11])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_es2d_follows_its_definition(height: int, width: int, step: int) -> None:
    order = scan_order("es2d", height, width, step=step)
    index, sets = es2d_by_definition(height, width, step)
    assert order.index.tolist() == index
    assert order.parameter_set.tolist() == sets
    assert (order.index.dtype, order.merge, order.n_sequences) == (np.int32, "place", step * step)
    assert order.n_pads == order.index.size - height * width
    assert (order.visits == 1).all()


def test_es2d_of_step_1_is_one_raster_scan() -> None:
    order = scan_order("es2d", 3, 4, step=1)
    assert order.index.tolist() == [list(range(12))]
    assert order.parameter_set.tolist() == [0]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_ss2d_reads_rows_columns_and_both_reversed(height: int, width: int) -> None:
    order = scan_order("ss2d", height, width)
    tokens = np.arange(height * width).reshape(height, width)
    rows, columns = tokens.ravel(), tokens.T.ravel()
    assert np.array_equal(order.index, [rows, columns, rows[::-1], columns[::-1]])
    assert order.parameter_set.tolist() == [0, 1, 2, 3]
    assert order.merge == "sum"


def test_an_order_is_read_only_and_the_same_object_for_the_same_question() -> None:
    order = scan_order("es2d", 6, 4)
    assert order is scan_order("es2d:step=2", 6, 4) is scan_order(ScanSpec("es2d"), 6, 4)
    assert order.spec == ScanSpec("es2d", {"step": 2})
    with pytest.raises(ValueError, match="read-only"):
        order.index[0, 0] = 3
    with pytest.raises(AttributeError):
        order.height = 7  # type: ignore[misc]


@pytest.mark.parametrize(("height", "width"), [(12, 12), (16, 8)])
def test_mean_reach_has_the_closed_form(height: int, width: int) -> None:
    n = height * width
    assert scan_order("es2d", height, width).metrics()["mean_reach"] == pytest.approx(
        (n / 4 + 1) / (2 * n)
    )
    assert scan_order("ss2d", height, width).metrics()["mean_reach"] == 1.0


def test_metrics_of_the_raster_scan() -> None:
    metrics = scan_order("es2d", 16, 16, step=1).metrics()
    assert metrics == {
        "n_sequences": 1,
        "length": 256,
        "tokens_scanned": 256,
        "n_pads": 0,
        "visits_min": 1,
        "visits_max": 1,
        "mean_reach": pytest.approx(257 / 512),
        "max_reach": 1.0,
        "farthest_steps": 255,
        "mean_jump": pytest.approx(1.88, abs=0.005),
        "max_jump": 16,
        "n_jumps": 15,
    }


def test_metrics_of_phases_without_tokens() -> None:
    metrics = scan_order("es2d", 1, 2, step=3).metrics()
    assert (metrics["n_sequences"], metrics["length"], metrics["n_pads"]) == (9, 1, 7)
    assert (metrics["mean_jump"], metrics["n_jumps"], metrics["mean_reach"]) == (0.0, 0, 0.5)


def test_reach_of_any_table_agrees_with_counting() -> None:
    rng = np.random.default_rng(0)
    for n_sequences in (1, 2, 3):
        index = rng.integers(-1, 20, size=(n_sequences, 17))
        expected = []
        for target in range(20):
            reached = set()
            for row in index.tolist():
                if target in row:
                    last = len(row) - 1 - row[::-1].index(target)
                    reached |= set(row[: last + 1]) - {-1}
            expected.append(len(reached))
        assert reach_counts(index, 20).tolist() == expected


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("es2d", "es2d:step=2"),
        ("es2d:step=3", "es2d:step=3"),
        (" ss2d ", "ss2d"),
        ("es2d: step = 4", "es2d:step=4"),
    ],
)
def test_a_specification_reads_back_what_it_prints(text: str, printed: str) -> None:
    spec = ScanSpec.parse(text)
    assert str(spec) == printed
    assert ScanSpec.parse(printed) == spec and hash(ScanSpec.parse(printed)) == hash(spec)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("es2d:step=0", "step is 0; it must be >= 1"),
        ("es2d:step=-2", "step is -2; it must be >= 1"),
        ("es2d:step=1.5", "step is '1.5'; it must be a whole number"),
        ("es2d:step", "cannot read 'step'"),
        ("es2d:", "cannot read ''"),
        ("es2d:step=2,step=3", "cannot read 'step=3'"),
        ("es2d:size=2", "no parameter 'size'; it has: step"),
        ("ss2d:step=2", "no parameter 'step'; it has: none"),
        ("spiral9", "unknown scan scheme 'spiral9'; known are es2d"),
    ],
)
def test_a_bad_specification_says_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScanSpec.parse(text)


@pytest.mark.parametrize("step", [0, -1, 2.0, "2", True, None])
def test_a_bad_step_from_python_is_refused(step: object) -> None:
    with pytest.raises(ValueError, match="step is"):
        scan_order("es2d", 4, 4, step=step)  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(0, 4), (4, -1), (2.5, 4)])
def test_a_map_without_tokens_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="height is|width is"):
        scan_order("es2d", height, width)


@pytest.mark.parametrize(
    ("index", "sets", "merge", "message"),
    [
        ([[0, 1, 1]], [0], "place", "token 1 is visited 2 times"),
        ([[0, 4]], [0], "sum", "index holds 0 to 4; allowed are -1"),
        ([[0, -2]], [0], "sum", "index holds -2 to 0"),
        ([[0.0, 1.0]], [0], "sum", "index must be whole numbers"),
        ([0, 1], [0], "sum", "in 2 dimensions"),
        ([[0, 1]], [0, 1], "sum", "one number >= 0 for each of the 1"),
        ([[0, 1]], [-1], "sum", "one number >= 0"),
        ([[0, 1]], [0], "mean", "merge is 'mean'"),
    ],
)
def test_a_bad_table_says_why(index: list, sets: list[int], merge: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScanOrder("mine", np.array(index), np.array(sets), merge, 2, 2)  # type: ignore[arg-type]


def test_every_scheme_has_a_definition_with_its_source() -> None:
    definitions = scan_orders()
    assert list(definitions) == list(SCHEMES)
    assert all("arXiv" in text and "\n" not in text for text in definitions.values())
