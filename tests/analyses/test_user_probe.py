"""The probe of a user's operator, on small re-implementations with known mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kernels import scan_order
from kernels.reference import gather_tokens, put_back
from workbench.analyses.user_probe import probe_operator
from workbench.errors import BadInputError

PHASES = ((0, 0), (1, 0), (0, 1), (1, 1))


def es2d_rows(height: int, width: int, step: int) -> list[Tensor]:
    """The four phases that the published code visits, whatever the step: offsets 0 and 1 only."""
    ids = torch.arange(height * width).reshape(height, width)
    rows = []
    for i, j in PHASES:
        phase = ids[i::step, j::step]
        rows.append((phase if i == 0 else phase.T).reshape(-1))
    return rows


class AtrousGather(torch.autograd.Function):
    """`[B, C, H, W]` to `[B, 4, C, L]`, as a hand-written pair of passes."""

    @staticmethod
    def forward(ctx, x, step_size=2):
        ctx.shape, ctx.step = x.shape, step_size
        rows = es2d_rows(*x.shape[2:], step_size)
        return torch.stack([x.flatten(2)[:, :, row] for row in rows], 1)

    @staticmethod
    def backward(ctx, grad):
        found = grad.new_zeros(ctx.shape).flatten(2)
        for k, row in enumerate(es2d_rows(*ctx.shape[2:], ctx.step)):
            found[:, :, row] = grad[:, k]
        return found.view(ctx.shape), None


class AtrousMerge(torch.autograd.Function):
    """`[B, 4, C, L]` to `[B, C, N]`; what no phase writes stays uninitialised, as published."""

    @staticmethod
    def forward(ctx, ys, ori_h, ori_w, step_size=2):
        ctx.shape, ctx.map, ctx.step = ys.shape, (ori_h, ori_w), step_size
        y = ys.new_empty(ys.shape[0], ys.shape[2], ori_h * ori_w)
        for k, row in enumerate(es2d_rows(ori_h, ori_w, step_size)):
            y[:, :, row] = ys[:, k]
        return y

    @staticmethod
    def backward(ctx, grad):
        rows = es2d_rows(*ctx.map, ctx.step)
        return torch.stack([grad[:, :, row] for row in rows], 1), None, None, None


class CrossGather(torch.autograd.Function):
    """Rows and columns; the backward pass takes the transposed map for one of H x W."""

    @staticmethod
    def forward(ctx, x):
        ctx.shape = x.shape
        return torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], 1)

    @staticmethod
    def backward(ctx, grad):
        height, width = ctx.shape[2:]
        by_row = grad[:, 0].unflatten(2, (height, width))
        by_column = grad[:, 1].unflatten(2, (height, width))
        if height == width:
            by_column = by_column.transpose(2, 3)
        return by_row + by_column


class CrossMerge(nn.Module):
    """Adds both; the way back of the columns holds only where H = W."""

    def forward(self, ys: Tensor, height: int, width: int) -> Tensor:
        batch, _, channels, _ = ys.shape
        columns = ys[:, 1].reshape(batch, channels, height, width).transpose(2, 3)
        return ys[:, 0] + columns.reshape(batch, channels, -1)


def test_a_right_pair_is_recognised():
    result = probe_operator(AtrousGather, AtrousMerge)
    assert result.scheme == "es2d:step=2"
    np.testing.assert_array_equal(result.index, scan_order("es2d", 6, 8).index)
    assert (result.lost, result.repeated, result.n_pads) == ((), (), 0)
    assert (result.round_trip, result.backward, result.merge_backward) == ("yes", "yes", "yes")
    assert result.other_map == "" and result.findings == ()


def test_the_published_step_above_two_loses_tokens():
    """Only offsets 0 and 1 are visited: 16 of 36 tokens; the others are never written."""

    def merge(ys: Tensor, height: int, width: int) -> Tensor:
        return AtrousMerge.apply(ys, height, width, 3)

    result = probe_operator(lambda x: AtrousGather.apply(x, 3), merge, height=6, width=6)
    assert len(result.lost) == 20 and result.lost[0] == 2
    assert result.scheme == ""
    assert result.round_trip == (
        "no: 20 of 36 tokens differ, first (0, 2), which is never written (uninitialised memory)"
    )
    assert result.backward == "yes"


def test_a_backward_pass_that_exchanges_the_sides_is_found():
    result = probe_operator(CrossGather, CrossMerge, height=3, width=5)
    assert result.backward.startswith("no: at ") and "first at (0, 1)" in result.backward
    assert result.round_trip.startswith("no: 12 of 15 tokens differ, first (0, 1)")
    assert result.merge_backward == "yes"
    assert result.scheme == "raster:transpose=2"
    assert result.other_map.startswith("On a map that is square, 5 x 5 tokens,")
    assert "backward of the gather: yes" in result.other_map
    assert "merge(gather(x)) = x: yes, 2 times x" in result.other_map
    square = probe_operator(CrossGather, CrossMerge, height=4, width=4)
    assert square.backward == "yes" and square.repeated == tuple(range(16))
    assert "not square" in square.other_map and "backward of the gather: no" in square.other_map


@pytest.mark.parametrize("spec", ["es2d:step=3", "ss2d", "windows:size=4", "hilbert:reverse=2"])
def test_our_own_tables_come_back(spec):
    """Odd, non-square: pads, sums, sequences that share tokens."""
    order = scan_order(spec, 5, 7)
    result = probe_operator(
        lambda x: gather_tokens(x, order),
        lambda ys: put_back(ys, order),
        height=5,
        width=7,
    )
    np.testing.assert_array_equal(result.index, order.index)
    assert result.scheme in (spec, str(order.spec)) or spec == "windows:size=4"
    assert result.n_pads == order.n_pads
    visits = int(order.visits.max())
    assert result.round_trip == (
        "yes" if visits == 1 else f"yes, {visits} times x: the visits are added"
    )
    assert result.backward == result.merge_backward == "yes"
    # The table is for one size: on another it cannot run.
    assert result.other_map.startswith("On a map that is square, 7 x 7 tokens, ")


@pytest.mark.parametrize(
    "layout",
    [
        lambda ys: ys.flatten(1, 2),  # [B, K*C, L]
        lambda ys: ys.transpose(1, 2).flatten(1, 2),  # [B, C*K, L]
        lambda ys: ys.permute(0, 1, 3, 2),  # [B, K, L, C]
        lambda ys: ys.permute(1, 0, 2, 3),  # [K, B, C, L]
        lambda ys: ys.unflatten(3, (3, 4)),  # [B, K, C, H/2, W/2]
    ],
    ids=["B KC L", "B CK L", "B K L C", "K B C L", "B K C h w"],
)
def test_any_layout_is_read(layout):
    result = probe_operator(lambda x: layout(AtrousGather.apply(x)))
    assert result.scheme == "es2d:step=2" and result.backward == "yes"


def test_one_sequence_channels_last_and_float32():
    result = probe_operator(lambda x: x.float().flatten(2).transpose(1, 2))
    assert result.scheme == "es2d:step=1" or result.scheme == "raster"
    assert result.index.shape == (1, 48) and result.backward == "yes"
    assert "returns torch.float32" in result.findings[0]


def test_channels_of_their_own_direction():
    """GroupMamba: each quarter of the channels has one direction."""

    def gather(x: Tensor) -> Tensor:
        by_row, by_column = x.flatten(2), x.transpose(2, 3).flatten(2)
        parts = (by_row, by_column, by_row.flip(2), by_column.flip(2))
        return torch.stack([part.chunk(4, 1)[k] for k, part in enumerate(parts)], 1)

    result = probe_operator(gather)
    assert "not all read along the same sequences" in result.findings[0]
    assert result.scheme == "ss2d, with its sequences in another order"


def test_a_cut_off_gradient_and_a_merge_of_the_wrong_shape():
    result = probe_operator(lambda x: x.detach().flatten(2), lambda ys: ys[:, :, :7])
    assert result.backward == "no: its output is cut off from the gradient"
    assert "shape [2, 4, 7], which is no map of 6 x 8" in result.round_trip
    assert result.merge_backward == "yes"


def test_a_merge_that_throws_is_a_finding():
    def merge(ys: Tensor) -> Tensor:
        raise RuntimeError("boom\nand more")

    result = probe_operator(AtrousGather, merge)
    assert "merge raised RuntimeError" in result.round_trip and "boom." in result.round_trip
    assert "and more" not in result.round_trip


class NeedsMore(nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()


class Breaks(nn.Module):
    def __init__(self, dim: int) -> None:
        raise OSError("no such card")


def _ends_the_program(x):
    raise SystemExit(0)


def _throws(x: Tensor) -> Tensor:
    raise ValueError("expected 7 channels")


@pytest.mark.parametrize(
    ("operator", "words"),
    [
        (_throws, "raised ValueError for a tensor of shape \\[1, 4, 6, 8\\] .*expected 7 channels"),
        (lambda x: [x], "returned list; the probe needs one tensor"),
        (lambda x: x.long(), "returned torch.int64"),
        (lambda x: x.flatten(2).cumsum(2), "does not only reorder tokens"),
        (lambda x: x.new_empty(1, 4, 48), "leaves 192 of its 192 values unset"),
        (
            lambda x: x.flatten(2).gather(2, x.flatten(2).argsort(2, descending=True)),
            "not a fixed reordering",
        ),
        (lambda x, speed: x, "argument 'speed' that the probe does not know"),
        (NeedsMore, "argument 'depth'"),
        (_ends_the_program, "raised SystemExit for a tensor of shape"),
        (Breaks, "could not be built: it raised OSError: no such card"),
        (42, "int, which cannot be called"),
        ("no.such.package:Name", "no.such.package cannot be imported"),
        ("torch.nn:NoSuch", "torch.nn has no 'NoSuch'"),
        ("torch", "names no operator"),
        (lambda x: x.flatten(1), "no axis reads tokens of one channel"),
    ],
    ids=lambda value: "" if not isinstance(value, str) else value[:20],
)
def test_what_cannot_be_probed_gets_one_sentence(operator, words):
    with pytest.raises(BadInputError, match=words) as caught:
        probe_operator(operator)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "size", [{"height": 0}, {"width": -1}, {"height": 2.5}, {"height": 300, "width": 300}]
)
def test_bad_sizes(size):
    with pytest.raises(BadInputError, match="whole number|larger than"):
        probe_operator(AtrousGather, **size)


def test_one_row_and_one_column():
    """A column-major read of one row is row-major too: the first known scheme is named."""
    for height, width in ((1, 9), (9, 1), (1, 1)):
        result = probe_operator(lambda x: x.flatten(2), height=height, width=width)
        assert result.lost == () and result.scheme


def test_an_installed_package_by_name(tmp_path: Path, monkeypatch):
    (tmp_path / "their_scan.py").write_text(
        "import torch\n"
        "class Gather(torch.nn.Module):\n"
        "    def __init__(self, d_model, expand=2):\n"
        "        super().__init__()\n"
        "    def forward(self, x):\n"
        "        return x.transpose(2, 3).flatten(2)\n"
        "def merge(ys, H, W):\n"
        "    return ys.unflatten(2, (W, H)).transpose(2, 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = probe_operator("their_scan:Gather", "their_scan:merge")
    sys.modules.pop("their_scan")
    assert result.operator == "their_scan:Gather" and result.scheme == "raster:transpose=1"
    assert result.round_trip == result.backward == result.merge_backward == "yes"


def test_torch_is_left_as_it_was():
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(BadInputError):
        probe_operator(_throws)
    assert not torch.are_deterministic_algorithms_enabled()
