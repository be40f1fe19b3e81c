"""The cost model by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kernels import scan_order
from kernels.cost import backward_cost, convention_flops, forward_cost, order_cost, parts


def test_cost_of_one_step_by_hand() -> None:
    """One step of one channel with two states and full-width dt."""
    cost = forward_cost(1, 1, 1, channels=1, states=2)
    assert cost.n_states == 2
    assert cost.bytes == 4 * (1 + 1 + 1 + 2 + 2) + 4 * (2 + 0 + 2)  # x, y, dt, B, C; A, D, bias
    assert cost.exps == 2 + 2
    assert cost.flops == 6 * 2 + 8
    assert cost.label == "model"
    assert convention_flops(1, 1, 1, 1, 2) == 9 * 2 + 1


def test_cost_grows_with_its_factors() -> None:
    one, two = (forward_cost(b, 4, 196, 192, 16, rank=6) for b in (1, 2))
    assert two.flops == 2 * one.flops and two.exps == 2 * one.exps
    assert two.bytes < 2 * one.bytes  # parameters are read once
    both = one + backward_cost(1, 4, 196, 192, 16, rank=6)
    assert both.n_states == one.n_states
    assert 3 * one.flops < both.flops < 5 * one.flops
    half = forward_cost(1, 4, 196, 192, 16, rank=6, activation_bytes=2)
    assert half.flops_per_byte > one.flops_per_byte


def test_pads_are_steps() -> None:
    order = scan_order("es2d", 7, 7)
    cost = order_cost(order, batch=1, channels=8, states=16, rank=1)
    assert cost == forward_cost(1, 4, 16, 8, 16, rank=1)


@pytest.mark.parametrize("cost", [forward_cost, backward_cost])
def test_parts_rebuild_the_cost_exactly(cost) -> None:
    """For any batch and width; a byte of the stored states is rounded away only at the end."""
    draw = np.random.default_rng(7)
    for _ in range(200):
        sequences, length, channels, states = draw.integers(1, (65, 4000, 400, 40)).tolist()
        rank, batch, width = draw.integers(0, (13, 300, 3)).tolist()
        batch, width = batch + 1, 2**width
        part = parts(cost, sequences, length, channels, states, rank)
        whole = cost(batch, sequences, length, channels, states, rank, width)
        moved = batch * (part.activations * width + part.bytes) + part.once
        assert math.floor(moved) == whole.bytes and moved - whole.bytes < 1
        rebuilt = tuple(batch * value for value in (part.flops, part.fmas, part.exps))
        assert rebuilt == (whole.flops, whole.fmas, whole.exps)


def test_parts_of_the_forward_pass_by_hand() -> None:
    part = parts(forward_cost, 4, 196, 192, 16, rank=6)
    assert part.activations == 4 * 196 * (2 * 192 + 6 + 2 * 16)
    assert part.bytes == 0 and part.once == 4 * 4 * 192 * (16 + 6 + 2)
