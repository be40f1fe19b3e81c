"""The path shown is the one the operator walks, and a wrong one is found and named."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

import kernels
import models
from kernels import ScanOrder, scan_order
from models.layers import Scan2d
from workbench.analyses.maps import stage_shape
from workbench.analyses.probe import read_path
from workbench.analyses.scan import observed_sequences, scan_path, shared_sets, verify

SPECS = ["es2d:step=1", "es2d:step=2", "es2d:step=3", "es2d:step=4", "ss2d"]
SIZES = [(64, 64), (72, 104), (36, 52), (32, 100)]  # odd and non-square maps included


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("spec", SPECS)
def test_path_is_read_back_from_the_operator(network, provenance, spec, size):
    model = models.with_scan(network, spec)
    for stage in (1, 2):
        result = scan_path(model, stage, *size, provenance=provenance)
        order = scan_order(spec, result.height, result.width)
        assert result.has_scan and result.is_verified and result.disagreement == ""
        np.testing.assert_array_equal(result.index, order.index)
        np.testing.assert_array_equal(result.parameter_set, order.parameter_set)
        assert result.merge == order.merge
        assert result.metrics["length"] == order.length


EVERY_SPEC = [
    *("es2d:step=8", "es2d:step=40", "raster", "raster:transpose=2", "bidirectional"),
    *("windows:size=2", "windows:size=7", "windows:size=100", "windows:size=3,reverse=2"),
    *("snake", "plainmamba", "zigma:path=0", "zigma:path=5", "diagonal", "diagonal:alternate=1"),
    *("diagonal:anti=2,reverse=2,transpose=2", "morton", "morton:transpose=2", "hilbert"),
    *("hilbert:reverse=2", "spiral", "random:seed=3", "random:seed=0,reverse=2,transpose=2"),
]


@pytest.mark.parametrize("spec", EVERY_SPEC)
def test_every_scheme_is_verified_on_every_shape(network, spec):
    """One-row, one-column and one-token maps, sides that nothing divides, sides of a power of 2."""
    model = models.with_scan(network, spec)
    op = model.get_submodule("layers.0.blocks.0").op
    for height, width in ((8, 8), (9, 13), (13, 6), (1, 11), (11, 1), (1, 1)):
        table = scan_order(spec, height, width)
        disagreement, _ = verify(op, table, shared_sets(table))
        assert disagreement == "", (height, width)


@pytest.mark.parametrize(
    ("spec", "height", "width"),
    [("windows:size=20", 3, 27), ("windows:size=64", 65, 65), ("windows:size=256", 10, 300)],
    ids=["260 pads", "4,032 pads", "62,976 pads"],
)
def test_a_sequence_is_followed_through_many_pads(network, spec, height, width):
    table = scan_order(spec, height, width)
    op = models.with_scan(network, spec).get_submodule("layers.0.blocks.0").op
    assert verify(op, table, shared_sets(table))[0] == ""
    without_them = scan_order("windows:size=1", height, width)
    op = models.with_scan(network, "windows:size=1").get_submodule("layers.0.blocks.0").op
    assert verify(op, table, shared_sets(table))[0] != ""
    assert verify(op, without_them, {})[0] == ""


@pytest.mark.parametrize("spec", ["cascade2d", "vim", "groupmamba", "msvmamba"])
def test_a_path_of_another_network_is_drawn_not_verified(network, provenance, spec):
    spec = kernels.ScanSpec.parse(spec)
    result = scan_path(network, 1, 36, 52, provenance=provenance, spec=spec)
    assert result.has_scan and not result.is_runnable and not result.is_verified
    assert result.note.startswith("Path only: needs another network")
    assert result.disagreement == ""
    np.testing.assert_array_equal(result.index, scan_order(spec, 9, 13).index)


def test_a_model_cannot_be_probed_for_another_scan(network, provenance):
    with pytest.raises(ValueError, match="the model runs es2d:step=2, not ss2d"):
        scan_path(network, 1, 64, 64, provenance=provenance, spec=kernels.ScanSpec.parse("ss2d"))


def test_reading_alone_rebuilds_the_table(network):
    """No look at the table: predecessors, pads and parameter sets give the sequences back."""
    model = models.with_scan(network, "es2d", step=3)
    op = model.get_submodule("layers.0.blocks.0").op
    index, sets = observed_sequences(read_path(op, 7, 8))
    table = scan_order("es2d", 7, 8, step=3)

    def visible(row: np.ndarray) -> list[int]:
        """Pads at the ends change no output, so no probe can see them."""
        real = np.flatnonzero(row >= 0)
        return row[real[0] : real[-1] + 1].tolist()

    read = sorted((int(s), visible(row)) for s, row in zip(sets, index, strict=True))
    wanted = sorted(
        (int(s), visible(row)) for s, row in zip(table.parameter_set, table.index, strict=True)
    )
    assert read == wanted


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_probe_runs_on_the_backend_of_the_model(provenance, backend):
    model = models.create_model("efficientvmamba_test", backend=backend).eval()
    assert scan_path(model, 1, 36, 52, provenance=provenance).is_verified


@pytest.mark.gpu
def test_probe_runs_on_a_gpu(provenance):
    model = models.create_model("efficientvmamba_test", scan="ss2d").eval().cuda()
    assert scan_path(model, 1, 36, 52, provenance=provenance).is_verified


def test_stage_without_a_scan_says_so(network, provenance):
    result = scan_path(network, 3, 64, 64, provenance=provenance)
    assert not result.has_scan and not result.is_verified
    assert result.note == "Stage 3 has no scan: its blocks are convolutions."
    assert result.index.shape == (0, 0) and result.metrics == {}


def test_the_model_is_asked_which_stages_scan(provenance):
    late = models.create_model("efficientvmamba_test", evss_stages=(3, 4)).eval()
    assert not scan_path(late, 1, 64, 64, provenance=provenance).has_scan
    assert scan_path(late, 3, 64, 64, provenance=provenance).is_verified


def run_with(monkeypatch: pytest.MonkeyPatch, change) -> None:
    """Let the running operator walk `change(order)` instead of its own order."""
    original = Scan2d.forward

    def forward(self, x, *parameters):
        order = scan_order(self.spec, *x.shape[2:])
        return original(_Running(change(order), self.backend), x, *parameters)

    monkeypatch.setattr(Scan2d, "forward", forward)


class _Running:
    def __init__(self, order: ScanOrder, backend: str) -> None:
        self.spec, self.backend = order, backend


def swap_two_tokens(order: ScanOrder) -> ScanOrder:
    index = order.index.copy()
    index[1, [4, 5]] = index[1, [5, 4]]
    return replace(order, index=index)


def all_row_major(order: ScanOrder) -> ScanOrder:
    index = order.index.copy()
    for k in range(len(index)):
        real = index[k][index[k] >= 0]
        index[k, : len(real)] = np.sort(real)
        index[k, len(real) :] = -1
    return replace(order, index=index)


def other_parameter_sets(order: ScanOrder) -> ScanOrder:
    return replace(order, parameter_set=order.parameter_set[::-1].copy())


def lose_a_token(order: ScanOrder) -> ScanOrder:
    index = order.index.copy()
    index[0, 3] = -1
    return replace(order, index=index)


def reverse_a_sequence(order: ScanOrder) -> ScanOrder:
    index = order.index.copy()
    index[2] = index[2, ::-1]
    return replace(order, index=index)


def read_twice(order: ScanOrder) -> ScanOrder:
    index = order.index.copy()
    index[0, 1] = index[0, 0]
    return replace(order, index=index, merge="sum")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            swap_two_tokens,
            "sequence 2, step 5: the table says token (1, 2), the operator read (3, 2)",
        ),
        (
            all_row_major,
            "sequence 2, step 2: the table says token (3, 0), the operator read (1, 2)",
        ),
        (
            other_parameter_sets,
            "sequence 1, step 1: the table says token (0, 0), which the operator never reads with "
            "parameter set 0",
        ),
        (
            lose_a_token,
            "sequence 1, step 4: the table says token (0, 6), which the operator never reads with "
            "parameter set 0",
        ),
        (
            reverse_a_sequence,
            "sequence 3, step 1: the table says token (0, 1) first, the operator read (0, 3) "
            "before it",
        ),
        (
            read_twice,
            "sequence 1, step 1: the table says token (0, 0), which the operator reads more than "
            "once",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_path_is_found_and_named(network, provenance, monkeypatch, change, message):
    run_with(monkeypatch, change)
    result = scan_path(network, 1, 32, 32, provenance=provenance)
    assert not result.is_verified
    assert result.disagreement == message


def test_full_scan_in_a_wrong_direction_is_found(network, provenance, monkeypatch):
    run_with(monkeypatch, reverse_a_sequence)
    result = scan_path(models.with_scan(network, "ss2d"), 1, 32, 32, provenance=provenance)
    assert "sequence 3, step 1" in result.disagreement


def test_skipped_pads_are_found(network, provenance, monkeypatch):
    """A kernel that leaves pads out computes something else, though every token is in order."""

    def without_pads(order: ScanOrder) -> ScanOrder:
        index = np.full_like(order.index, -1)
        for k, row in enumerate(order.index):
            real = row[row >= 0]
            index[k, : len(real)] = real
        return replace(order, index=index)

    run_with(monkeypatch, without_pads)
    result = scan_path(network, 1, 36, 52, provenance=provenance)
    assert result.disagreement == (
        "sequence 2, step 6: the table says token (1, 2) after 1 pad, "
        "the operator read no pad before it"
    )


def test_the_path_shown_is_the_one_that_runs(network, provenance, monkeypatch):
    run_with(monkeypatch, swap_two_tokens)
    result = scan_path(network, 1, 32, 32, provenance=provenance)
    wrong = swap_two_tokens(scan_order("es2d", 8, 8))
    assert {tuple(row) for row in result.index} == {tuple(row) for row in wrong.index}


def sequence_to_another_set(order: ScanOrder) -> ScanOrder:
    sets = np.array(order.parameter_set)
    sets[[4, 5]] = sets[[5, 4]]
    return replace(order, parameter_set=sets)


def swap_late_tails(order: ScanOrder) -> ScanOrder:
    """Two sequences of one set go on in each other's place where both read different tokens."""
    index = order.index.copy()
    half = order.length // 2
    index[0, half:], index[4, half:] = order.index[4, half:], order.index[0, half:]
    return replace(order, index=index, merge="sum")


def lose_a_late_token(order: ScanOrder) -> ScanOrder:
    index = order.index.copy()
    index[6, -2] = -1
    return replace(order, index=index)


@pytest.mark.parametrize(
    ("change", "sequences"),
    [
        (swap_two_tokens, "2, 6"),
        (all_row_major, "1, 5"),
        (other_parameter_sets, "1, 5"),
        (lose_a_token, "1, 5"),
        (lose_a_late_token, "3, 7"),
        (reverse_a_sequence, "3, 7"),
        (read_twice, "1, 5"),
        (sequence_to_another_set, "1, 5"),
        (swap_late_tails, "1, 5"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_wrong_sums_of_shared_sets_are_found(network, provenance, monkeypatch, change, sequences):
    """ZigMa's eight snakes: two sequences use each parameter set and their outputs are added."""
    model = models.with_scan(network, "zigma")
    for size in ((32, 32), (36, 52)):
        assert scan_path(model, 1, *size, provenance=provenance).is_verified
    run_with(monkeypatch, change)
    for size in ((32, 32), (36, 52)):
        result = scan_path(model, 1, *size, provenance=provenance)
        assert not result.is_verified
        assert "the operator does not add up what the table's" in result.disagreement
        assert f"sequences {sequences} read" in result.disagreement
        assert result.disagreement.endswith("the path drawn is the table's")


def test_pads_of_shared_sets_are_counted(network, monkeypatch):
    """One pad less between two tokens of one of two added sequences is found."""
    table = scan_order("windows:size=3,reverse=2", 4, 5)
    table = replace(table, parameter_set=np.zeros(2, dtype=np.int64))
    op = network.get_submodule("layers.0.blocks.0").op

    def one_less(order: ScanOrder) -> ScanOrder:
        row = table.index[0].tolist()
        at = next(i for i, t in enumerate(row) if t < 0 and max(row[i:]) >= 0)
        del row[at]
        return replace(table, index=np.stack([np.array([*row, -1]), table.index[1]]))

    run_with(monkeypatch, lambda order: table)
    assert verify(op, table, shared_sets(table))[0] == ""
    monkeypatch.undo()
    run_with(monkeypatch, one_less)
    assert "does not add up" in verify(op, table, shared_sets(table))[0]


def test_a_set_that_the_table_does_not_use_is_checked(network, monkeypatch):
    both = replace(scan_order("bidirectional", 5, 6), parameter_set=np.array([1, 1]))
    op = network.get_submodule("layers.0.blocks.0").op
    third = replace(
        both, index=np.vstack([both.index, both.index[:1]]), parameter_set=np.array([1, 1, 3])
    )
    run_with(monkeypatch, lambda order: third)
    assert verify(op, both, shared_sets(both))[0] == (
        "the table does not read token (0, 0) with parameter set 3, the operator does"
    )


def test_notes_say_what_is_unusual(network, provenance):
    def note(spec: str, size: tuple[int, int] = (64, 64), trained: str | None = None) -> str:
        known = replace(provenance, scan=str(kernels.ScanSpec.parse(spec)), trained_scan=trained)
        return scan_path(models.with_scan(network, spec), 1, *size, provenance=known).note

    assert note("es2d") == note("ss2d") == ""
    assert "not the full scan" in note("es2d:step=1")
    assert "sets 0 to 3 serve 4, 2, 2 and 1 phases" in note("es2d:step=3", (36, 36))
    assert "23 pad tokens" in note("es2d", (36, 52))
    assert "(ES2D, step 2)" in note("ss2d", trained="es2d:step=2")


@pytest.mark.parametrize("size", [(64, 64), (72, 104), (34, 50), (45, 77)], ids=str)
def test_stage_shape_is_that_of_the_features(network, photo, size):
    import torch

    image = torch.from_numpy(photo(*size))[None]
    with torch.no_grad():
        features = network.forward_intermediates(image, intermediates_only=True)
    for stage, feature in enumerate(features, start=1):
        rows, columns, stride = stage_shape(network, stage, *size)
        assert (rows, columns) == tuple(feature.shape[2:])
        assert stride == 4 * 2 ** (stage - 1)


@pytest.mark.parametrize("spec", ["ss2d", "zigma", "windows:size=7"])
def test_redraw_is_quick(spec):
    """Below 0.3 s for the largest map of a 224 px input, with room for a loaded machine."""
    model = models.create_model("efficientvmamba_tiny", scan=spec).eval()
    op = model.get_submodule("layers.0.blocks.0").op
    seconds = []
    for side in (8, *[56] * 5):  # the first compiles
        started = time.perf_counter()
        table = scan_order(spec, side, side)
        assert verify(op, table, shared_sets(table))[0] == ""
        seconds.append(time.perf_counter() - started)
    assert min(seconds[1:]) < 0.3
