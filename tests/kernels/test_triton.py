"""The Triton kernels against the float64 reference, interpreted on the CPU, forward and backward.

The checks are in `triton_worker.py` and run in one process of their own; a test here is one case.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from unittest.mock import patch

import pytest

from tests.kernels import triton_worker as worker

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="triton's wheel exists for Linux only"
)
Interpreted = Callable[..., None]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Interpreted]:
    """Runs a function of `triton_worker` where TRITON_INTERPRET=1; its AssertionErrors come back.

    Called as `interpreted(function, *arguments)`.
    """
    spawn = multiprocessing.get_context("spawn")
    with (
        patch.dict(os.environ, {"TRITON_INTERPRET": "1"}),
        ProcessPoolExecutor(1, mp_context=spawn, initializer=worker.start) as pool,
    ):

        def run(function: Callable[..., None], *arguments: object) -> None:
            pool.submit(function, *arguments).result(timeout=200)

        yield run


# batch, channels, height, width, states, rank; scan; type; regime; channels of a block.
# Pairwise: square, odd, not square, one pixel wide; batch 1 and 3; all orders, types, regimes.
SCANS_2D = [
    ((1, 5, 3, 3, 3, 1), "es2d:step=2", "fp32", "steps", 4),
    ((1, 4, 4, 4, 4, 2), "es2d:step=2", "fp32", "chunks", 2),
    ((3, 3, 1, 5, 2, 1), "es2d:step=3", "fp32", "chunks", 64),
    ((3, 2, 5, 1, 2, 2), "es2d:step=2", "bf16", "steps", 64),
    ((1, 3, 4, 3, 5, 2), "es2d:step=4", "fp32", "steps", 64),
    ((1, 2, 9, 8, 2, 1), "es2d:step=1", "fp32", "steps", 64),
    ((1, 2, 10, 7, 1, 3), "es2d:step=1", "fp32", "chunks", 64),
    ((1, 8, 3, 4, 4, 2), "es2d:step=3", "fp16", "steps", 64),
    ((1, 4, 4, 2, 4, 2), "es2d:step=2", "bf16", "chunks", 64),
    ((1, 3, 2, 3, 4, 2), "ss2d", "fp32", "steps", 2),
    ((3, 2, 3, 1, 2, 1), "ss2d", "fp32", "chunks", 64),
    ((1, 4, 2, 2, 3, 1), "ss2d", "bf16", "steps", 64),
    ((1, 4, 2, 3, 2, 1), "ss2d", "fp16", "chunks", 64),
    ((1, 3, 3, 4, 2, 2), "table", "fp32", "steps", 64),
    ((1, 2, 4, 3, 3, 1), "table", "fp32", "chunks", 64),
    ((1, 3, 3, 3, 2, 1), "holes", "fp32", "steps", 64),
]


@pytest.mark.parametrize("case", SCANS_2D, ids=lambda c: "-".join(map(str, c[1:4])))
def test_scan2d_agrees_with_the_reference(interpreted: Interpreted, case) -> None:
    interpreted(worker.check_scan2d, *case)


# batch, groups, channels of a group, length, states; options; type; regime; channels of a block.
SCANS = [
    ((1, 2, 3, 9, 3), "softplus bias skip", "fp32", "steps", 2),
    ((1, 2, 3, 17, 4), "softplus bias skip", "fp32", "chunks", 2),
    ((3, 1, 2, 5, 2), "plain", "fp32", "chunks", 64),
    ((1, 1, 3, 66, 1), "softplus skip", "fp32", "steps", 64),
    ((1, 1, 2, 66, 2), "softplus bias plain", "fp32", "chunks", 64),
    ((2, 2, 2, 1, 5), "bias skip", "bf16", "steps", 64),
    ((1, 2, 2, 7, 2), "softplus", "fp16", "chunks", 64),
]


@pytest.mark.parametrize("case", SCANS, ids=lambda c: "-".join(map(str, c[1:4])))
def test_selective_scan_agrees_with_the_reference(interpreted: Interpreted, case) -> None:
    interpreted(worker.check_selective_scan, *case)


SIZES = [(1, 4, 4, 4, 3, 2), (3, 3, 3, 5, 2, 1), (1, 3, 1, 7, 4, 1), (3, 2, 6, 1, 1, 3)]
ORDERS = ["es2d:step=1", "es2d:step=2", "es2d:step=3", "es2d:step=4", "ss2d", "table", "holes"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "scan", "type_name", "regime"),
    [
        pytest.param(*c, id="-".join(map(str, c[1:])) + "-" + "x".join(map(str, c[0])))
        for c in product(SIZES, ORDERS, worker.TYPES, ("steps", "chunks"))
    ],
)
def test_scan2d_agrees_everywhere(interpreted, sizes, scan, type_name, regime) -> None:
    interpreted(worker.check_scan2d, sizes, scan, type_name, regime, 2)


@pytest.mark.parametrize("regime", ["steps", "chunks"])
def test_deterministic_runs_are_equal_to_the_bit(interpreted: Interpreted, regime: str) -> None:
    interpreted(worker.check_deterministic, regime)


def test_strides_do_not_matter_and_unwanted_gradients_are_not_asked_for(interpreted) -> None:
    interpreted(worker.check_strides)


def test_an_empty_batch_gives_an_empty_answer(interpreted: Interpreted) -> None:
    interpreted(worker.check_empty_batch)


@pytest.mark.parametrize("regime", ["steps", "chunks"])
def test_nan_and_infinity_come_through(interpreted: Interpreted, regime: str) -> None:
    interpreted(worker.check_not_finite, regime)


@pytest.mark.parametrize("regime", ["steps", "chunks"])
def test_growing_states_overflow_only_where_they_must(interpreted, regime: str) -> None:
    interpreted(worker.check_growth, regime)


@pytest.mark.parametrize(("scale", "regime"), [(1e-20, "chunks"), (1e4, "steps"), (1e30, "chunks")])
def test_any_size_of_dt_gives_the_right_answer(interpreted, scale: float, regime: str) -> None:
    interpreted(worker.check_any_dt, scale, regime)


def test_softplus_is_exact_and_steps_combine_associatively(interpreted: Interpreted) -> None:
    interpreted(worker.check_device_functions)


def test_a_wrong_kernel_is_found_and_not_used(interpreted: Interpreted) -> None:
    interpreted(worker.check_self_check)


def test_the_interpreter_makes_the_backend_available(interpreted: Interpreted) -> None:
    interpreted(worker.check_availability)
