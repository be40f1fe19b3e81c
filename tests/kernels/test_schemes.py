"""Every scheme against its definition on many shapes, written here a second time as plain loops."""

from __future__ import annotations

import time

import numpy as np
import pytest

from kernels import SCHEMES, ScanOrder, ScanSpec, scan2d, scan_order
from kernels.schemes.base import COMBINATIONS
from kernels.schemes.curves import LARGEST_SEED

SHAPES = [(1, 1), (1, 9), (7, 1), (2, 2), (3, 5), (7, 10), (8, 8), (9, 5), (16, 12)]
RUNNABLE = [name for name, scheme in SCHEMES.items() if scheme.kind == "runnable"]
PATH_ONLY = ["cascade2d", "vim", "groupmamba", "msvmamba"]
# One path over the whole map, each token once.
SINGLE = ["raster", "snake", "diagonal", "morton", "hilbert", "spiral", "random"]

shapes = pytest.mark.parametrize(("height", "width"), SHAPES, ids=lambda n: str(n))


def path(text: str, height: int, width: int) -> list[int]:
    """The only sequence of a scheme."""
    index = scan_order(text, height, width).index
    assert index.shape[0] == 1
    return index[0].tolist()


def moves(sequence: list[int], width: int) -> np.ndarray:
    """(dy, dx) between consecutive tokens, `[L - 1, 2]`."""
    tokens = np.array(sequence)
    return np.abs(np.diff(np.stack([tokens // width, tokens % width], axis=1), axis=0))


def test_the_two_kinds() -> None:
    assert [name for name in SCHEMES if name not in RUNNABLE] == PATH_ONLY
    for scheme in SCHEMES.values():
        assert scheme.needs.startswith("needs another network: ") or scheme.kind == "runnable"
        assert scheme.label and not scheme.definition.endswith(".")


@shapes
@pytest.mark.parametrize("name", RUNNABLE)
def test_a_runnable_scheme_reads_every_token_equally_often(
    name: str, height: int, width: int
) -> None:
    order = scan_order(name, height, width)
    assert order.is_runnable and order.why_not_runnable == "" and order.other is None
    order.check_runnable()
    assert order.visits.min() == order.visits.max() >= 1
    assert order.merge == ("place" if order.visits.max() == 1 else "sum")
    assert order.n_pads == order.index.size - order.visits.sum()
    if name != "es2d":
        assert order.parameter_set.tolist() == [k % 4 for k in range(order.n_sequences)]
    if name not in ("es2d", "windows"):
        assert order.n_pads == 0


@shapes
@pytest.mark.parametrize("name", SINGLE)
def test_a_path_reads_each_token_once(name: str, height: int, width: int) -> None:
    assert sorted(path(name, height, width)) == list(range(height * width))


@shapes
def test_lines(height: int, width: int) -> None:
    rows = [[y * width + x for x in range(width)] for y in range(height)]
    columns = [[y * width + x for y in range(height)] for x in range(width)]

    def joined(lines: list[list[int]], is_snake: bool) -> list[int]:
        return [t for n, line in enumerate(lines) for t in line[:: -1 if is_snake and n % 2 else 1]]

    raster = joined(rows, False)
    snake, columns_snake = joined(rows, True), joined(columns, True)
    assert path("raster", height, width) == raster
    assert scan_order("bidirectional", height, width).index.tolist() == [raster, raster[::-1]]
    assert path("snake", height, width) == snake
    assert scan_order("plainmamba", height, width).index.tolist() == [
        snake,
        snake[::-1],
        columns_snake,
        columns_snake[::-1],
    ]
    assert (moves(snake, width).sum(axis=1) == 1).all()


@shapes
def test_zigma_starts_at_each_corner_along_rows_and_along_columns(height: int, width: int) -> None:
    order = scan_order("zigma", height, width)
    assert (order.n_sequences, order.parameter_set.tolist()) == (8, [0, 1, 2, 3] * 2)
    corners = [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1)]
    for k, sequence in enumerate(order.index.tolist()):
        assert divmod(sequence[0], width) == corners[k // 2]
        assert path(f"zigma:path={k + 1}", height, width) == sequence
        steps = moves(sequence, width)
        assert (steps.sum(axis=1) == 1).all()
        line = width if k % 2 == 0 else height
        assert (steps[: line - 1, k % 2 ^ 1] == 1).all()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
@shapes
def test_windows_row_by_row_with_pads_where_they_stick_out(
    height: int, width: int, size: int
) -> None:
    expected = []
    for top in range(0, height, size):
        for left in range(0, width, size):
            for y in range(top, top + size):
                for x in range(left, left + size):
                    expected.append(y * width + x if y < height and x < width else -1)
    assert path(f"windows:size={size}", height, width) == expected


def test_windows_of_the_paper() -> None:
    assert path("windows:size=2", 4, 4) == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert scan_order("windows", 5, 5).length == 49


@shapes
def test_diagonals(height: int, width: int) -> None:
    def expected(is_alternating: bool, is_anti: bool) -> list[int]:
        found = []
        for line in range(height + width - 1):
            on_it = [(y, line - y) for y in range(height) if 0 <= line - y < width]
            if is_alternating and line % 2 == 0:
                on_it.reverse()
            found += [y * width + (width - 1 - x if is_anti else x) for y, x in on_it]
        return found

    assert path("diagonal", height, width) == expected(False, False)
    assert path("diagonal:alternate=1", height, width) == expected(True, False)
    assert path("diagonal:anti=1", height, width) == expected(False, True)
    both = scan_order("diagonal:anti=2,alternate=1", height, width)
    assert both.index.tolist() == [expected(True, False), expected(True, True)]


def test_zigzag_is_that_of_jpeg() -> None:
    assert path("diagonal:alternate=1", 3, 3) == [0, 1, 3, 6, 4, 2, 5, 7, 8]


@shapes
def test_morton_sorts_by_interleaved_bits(height: int, width: int) -> None:
    def key(token: int) -> int:
        y, x = divmod(token, width)
        return int("".join(a + b for a, b in zip(f"{y:08b}", f"{x:08b}", strict=True)), 2)

    assert path("morton", height, width) == sorted(range(height * width), key=key)


def test_hilbert_is_continuous_for_every_rectangle() -> None:
    for height in range(1, 22):
        for width in range(1, 22):
            sequence = path("hilbert", height, width)
            assert sorted(sequence) == list(range(height * width))
            steps = moves(sequence, width)
            n_diagonal = int((steps.sum(axis=1) == 2).sum())
            assert steps.max(initial=0) <= 1
            assert sequence[0] == 0
            # Only here does no walk from neighbour to neighbour end at the far end of that side.
            if max(height, width) % 2 == 1 and min(height, width) % 2 == 0:
                assert n_diagonal <= 1
            else:
                assert n_diagonal == 0
                assert sequence[-1] == (width - 1 if width >= height else (height - 1) * width)
            shorter_side = path("hilbert:transpose=1", height, width)
            assert sorted(shorter_side) == sorted(sequence)
            steps = moves(shorter_side, width)
            assert steps.max(initial=0) <= 1 and (steps.sum(axis=1) == 2).sum() <= 1


def test_hilbert_of_a_power_of_two_fills_quadrant_after_quadrant() -> None:
    tokens = np.array(path("hilbert", 16, 16)).reshape(4, 64)
    for quarter in tokens:
        assert np.ptp(quarter // 16) == np.ptp(quarter % 16) == 7


@shapes
def test_spiral_walks_inwards_along_the_border(height: int, width: int) -> None:
    seen, y, x, direction = [(0, 0)], 0, 0, 0
    turns = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    while len(seen) < height * width:
        dy, dx = turns[direction % 4]
        if (y + dy, x + dx) in seen or not (0 <= y + dy < height and 0 <= x + dx < width):
            direction += 1
            continue
        y, x = y + dy, x + dx
        seen.append((y, x))
    assert path("spiral", height, width) == [y * width + x for y, x in seen]


def test_random_depends_on_its_seed_alone() -> None:
    first = path("random", 5, 6)
    assert first == np.random.RandomState(0).permutation(30).tolist()
    assert first != path("random:seed=1", 5, 6)
    path(f"random:seed={LARGEST_SEED}", 2, 2)


@shapes
@pytest.mark.parametrize(
    "name", [n for n, s in SCHEMES.items() if set(COMBINATIONS) <= set(s.parameters)]
)
def test_combinations(name: str, height: int, width: int) -> None:
    forwards = path(name, height, width)
    exchanged = path(f"{name}:transpose=1", height, width)
    assert path(f"{name}:reverse=1", height, width) == forwards[::-1]
    if name != "hilbert" or height == width:
        other = path(name, width, height)
        assert exchanged == [t if t < 0 else t % height * width + t // height for t in other]
    everything = scan_order(name, height, width, reverse=2, transpose=2)
    assert everything.index.tolist() == [forwards, exchanged, forwards[::-1], exchanged[::-1]]
    assert everything.parameter_set.tolist() == [0, 1, 2, 3]


@shapes
def test_known_combinations(height: int, width: int) -> None:
    def index(text: str) -> list[list[int]]:
        return scan_order(text, height, width).index.tolist()

    assert index("raster:reverse=2,transpose=2") == index("ss2d")
    assert index("raster:reverse=2") == index("bidirectional")
    assert index("raster") == index("es2d:step=1") == index("windows:size=1")


@shapes
@pytest.mark.parametrize("name", PATH_ONLY)
def test_a_path_of_another_network_is_drawn_but_not_scanned(
    name: str, height: int, width: int
) -> None:
    order = scan_order(name, height, width)
    assert not order.is_runnable and not ScanSpec(name).is_runnable
    assert order.why_not_runnable == SCHEMES[name].needs
    message = (
        f"{name} is the path of another network.*it needs another network.*choose one of: es2d"
    )
    for asked in (order, ScanSpec(name)):
        with pytest.raises(ValueError, match=message):
            asked.check_runnable()
    assert order.visits.min() == order.visits.max() >= 1
    assert order.n_pads == 0
    assert order.metrics()["mean_reach"] > 0


@shapes
def test_cascade_scans_rows_then_columns(height: int, width: int) -> None:
    order = scan_order("cascade2d", height, width)
    cross = scan_order("ss2d", height, width).index
    assert np.array_equal(order.index, cross[[0, 2, 1, 3]])
    assert order.other.restart_every == (width, width, height, height)
    assert order.other.pass_number == (0, 0, 1, 1)
    assert order.metrics()["mean_reach"] == 1


@shapes
def test_the_class_token_stands_in_the_middle(height: int, width: int) -> None:
    order = scan_order("vim", height, width)
    n = height * width
    middle = n // 2
    expected = [*range(middle), -2, *range(middle, n)]
    assert order.index.tolist() == [expected, expected[::-1]]
    assert order.other.extra.name == "class token" and order.n_extra == 1
    assert np.isnan(order.other.extra.places).all() and order.other.extra.tokens.size == 0


def test_vim_at_224_px() -> None:
    order = scan_order("vim", 14, 14)
    assert (order.length, order.index[0].tolist().index(-2)) == (197, 98)


@shapes
def test_multi_scale_reads_the_map_once_and_the_half_map_three_times(
    height: int, width: int
) -> None:
    order = scan_order("msvmamba", height, width)
    n = height * width
    rows, columns = (height + 1) // 2, (width + 1) // 2
    grid = [[-2 - (i * columns + j) for j in range(columns)] for i in range(rows)]
    by_row = [cell for line in grid for cell in line]
    by_column = [grid[i][j] for j in range(columns) for i in range(rows)]
    half = by_row[::-1] + by_column + by_column[::-1]
    assert order.lengths == (n, len(half))
    assert order.index[0, :n].tolist() == list(range(n))
    assert order.index[1, : len(half)].tolist() == half
    assert (order.index[0, n:] == -1).all() and (order.index[1, len(half) :] == -1).all()
    assert order.parameter_set.tolist() == [1, 0]
    extra = order.other.extra
    assert extra.places.tolist() == [[2 * i, 2 * j] for i in range(rows) for j in range(columns)]
    assert sorted(t for t in extra.tokens.ravel() if t >= 0) == list(range(n))
    metrics = order.metrics()
    assert (metrics["n_extra_steps"], metrics["tokens_scanned"]) == (3 * rows * columns, n)


def test_codes_without_an_item_are_refused() -> None:
    with pytest.raises(ValueError, match="index holds -2 to 1"):
        ScanOrder("mine", np.array([[0, 1, -2]]), np.array([0]), "sum", 1, 2)


@pytest.mark.parametrize("name", SCHEMES)
def test_tables_of_a_large_map_are_quick(name: str) -> None:
    started = time.process_time()
    order = scan_order(name, 255, 256)
    assert time.process_time() - started < 0.3
    assert order is scan_order(name, 255, 256)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["cascade2d", "vim", "groupmamba", "msvmamba"])
def test_operators_refuse_the_paths_of_other_networks(name: str, backend: str, scan2d_inputs):
    with pytest.raises(ValueError, match="needs another network"):
        scan2d(*scan2d_inputs(1, 4, 6, 6, 2, 1), order=name, backend=backend)
