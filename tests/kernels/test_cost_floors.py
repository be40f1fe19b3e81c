"""What the cost model says a GPU needs at least."""

from __future__ import annotations

import pytest

from kernels._bench.floors import GPU_OF_DEVICE
from kernels.compiled import TARGETS
from kernels.cost import Floors, ScanCost, backward_cost, floors, forward_cost
from kernels.gpus import GPUS

# ES2D at 224 px, batch 128, bf16: (length, channels, rank) of stages 1 and 2.
STAGE_1, STAGE_2 = (784, 96, 3), (196, 192, 6)


def es2d(batch: int, length: int, channels: int, rank: int) -> ScanCost:
    return forward_cost(batch, 4, length, channels, 16, rank, activation_bytes=2)


# Microseconds for memory, exponentials and multiply-adds. From the reference's table, but the
# A100's multiply-adds: the table divides by 128 results per clock and SM, which is the H100's;
# compute capability 8.0 has 64 (19.5 TFLOP/s), so they take twice as long.
@pytest.mark.parametrize(
    ("gpu", "shape", "expected"),
    [
        ("H100 SXM", STAGE_1, (54, 166, 86)),
        ("H100 SXM", STAGE_2, (25, 83, 45)),
        ("A100 80GB", STAGE_1, (89, 285, 2 * 148)),
        ("A100 80GB", STAGE_2, (42, 142, 2 * 77)),
    ],
)
def test_floors_are_those_of_the_table(gpu, shape, expected) -> None:
    given = floors(es2d(128, *shape), gpu)
    times = (given.memory_s, given.exp_s, given.fma_s)
    assert [1e6 * t for t in times] == pytest.approx(expected, rel=0.03)
    assert given.seconds == max(times)
    assert given.label == "model" and "(model)" in given.sentence


@pytest.mark.parametrize(
    ("gpu", "tflops"),
    [
        ("H100 SXM", 67),
        ("H200 SXM", 67),
        ("A100 80GB", 19.5),
        ("L40S", 91.6),
        ("RTX 4090", 82.6),
        ("RTX 3090", 35.6),
        ("MI300X", 163.4),
    ],
)
def test_rates_are_those_of_the_data_sheets(gpu: str, tflops: float) -> None:
    assert 2e-12 * GPUS[gpu].fma_per_s == pytest.approx(tflops, rel=0.01)
    assert GPUS[gpu].exp_per_s < GPUS[gpu].fma_per_s
    assert GPUS[gpu].source


def test_every_gpu_that_a_driver_names_has_rates() -> None:
    assert set(GPU_OF_DEVICE.values()) == set(GPUS)
    assert {gpu.target for gpu in GPUS.values()} - {None} <= set(TARGETS)


def test_the_limiter_is_named() -> None:
    limiters = {gpu: floors(es2d(128, *STAGE_1), gpu).limiter for gpu in GPUS}
    assert limiters == {
        "H100 SXM": "exp",
        "H200 SXM": "exp",
        "A100 80GB": "FMA",
        "L40S": "memory",
        "RTX 4090": "memory",
        "RTX 3090": "exp",
        "MI300X": "exp",
    }
    assert "special-function unit" in floors(es2d(128, *STAGE_1), "H100 SXM").sentence


@pytest.mark.parametrize("gpu", GPUS)
def test_a_small_batch_has_no_floor(gpu: str) -> None:
    given = floors(es2d(1, *STAGE_1), GPUS[gpu])
    assert given.limiter == "launch latency" and not given.is_meaningful
    assert given.sentence.startswith("latency-bound, floor not meaningful")
    assert given.seconds < 5e-6


def test_steps_in_sequence_do_not_depend_on_the_batch() -> None:
    one, many = es2d(1, *STAGE_1), es2d(128, *STAGE_1)
    assert one.serial_steps == many.serial_steps == 784
    both = one + backward_cost(1, 4, *STAGE_1[:2], 16, STAGE_1[2])
    assert both.serial_steps == 3 * 784  # the states again, and the gradients backwards


def test_fused_multiply_adds_count_once() -> None:
    forward = forward_cost(1, 1, 1, channels=1, states=2, rank=3)
    assert forward.fmas == 4 * 2 + 3 + 8
    backward = backward_cost(1, 1, 1, channels=1, states=2, rank=3)
    for cost in (forward, backward):
        assert cost.flops / 2 < cost.fmas < cost.flops


def test_fewer_stored_states_cost_fewer_bytes() -> None:
    shape = (8, 4, 784, 96, 16)
    saved = backward_cost(*shape).bytes - backward_cost(*shape, stored_every=128).bytes
    assert saved == 4 * 8 * 4 * 784 * 96 * 16 // 128


def test_an_unknown_gpu_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rates are known for 'H1000'; GPUs are H100 SXM, H200"):
        floors(es2d(1, *STAGE_1), "H1000")


def test_floors_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Floors("a", 1.0, 2.0, 3.0, "exp").limiter = "memory"
