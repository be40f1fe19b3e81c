"""Scan orders against their definitions, written here a second time as plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import SCHEMES, ScanOrder, ScanSpec, scan_order, scan_orders

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


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("es2d", "es2d:step=2"),
        ("es2d:step=3", "es2d:step=3"),
        (" ss2d ", "ss2d"),
        ("es2d: step = 4", "es2d:step=4"),
        ("hilbert", "hilbert"),
        ("hilbert:transpose=2,reverse=1", "hilbert:reverse=1,transpose=2"),
        ("windows:reverse=0", "windows:size=7"),
        ("windows:reverse=2,size=2", "windows:size=2,reverse=2"),
        ("random", "random:seed=0"),
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
        ("es2d:step=257", "step is 257; it must be <= 256"),
        ("ss2d:step=2", "no parameter 'step'; it has: none"),
        ("hilbert:reverse=3", "hilbert: reverse is 3; it must be <= 2"),
        ("zigma:path=9", "path is 9; it must be <= 8"),
        ("windows:size=0", "windows: size is 0; it must be >= 1"),
        ("random:seed=-1", "seed is -1; it must be >= 0"),
        ("spiral9", "unknown scan scheme 'spiral9'; known are bidirectional, cascade2d"),
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
        ([[0, 2**32]], [0], "sum", "index holds 0 to 4294967296, too large"),
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
    for name, text in definitions.items():
        assert "\n" not in text and ("arXiv:" in text or name == "random")
