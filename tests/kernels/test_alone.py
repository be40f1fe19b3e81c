"""The scan alone: right in every backend, and a wrong kernel is found."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from kernels import scan_order
from kernels._bench import alone
from kernels._bench.alone import NAMES, AloneSizes, ScanAlone
from tests.kernels import triton_worker as worker
from tests.kernels.conftest import TOLERANCE

CPU = torch.device("cpu")
SCANS = ("es2d:step=2", "es2d:step=3", "ss2d", "hilbert")


def sizes_of(scan: str, dtype=torch.float32, is_training=True, batch=2, side=(5, 4)) -> AloneSizes:
    return AloneSizes(scan_order(scan, *side), batch, 18, 2, 3, dtype, is_training)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("scan", SCANS)
def test_output_and_gradients_are_the_references(scan: str, backend: str, dtype) -> None:
    for is_training in (True, False):
        one = ScanAlone(sizes_of(scan, dtype, is_training), backend, CPU)
        results = one.run()
        assert len(results) == (1 + len(NAMES) if is_training else 1)
        assert results[0].shape == one.inputs[0].shape and results[0].dtype == dtype
        assert [t.shape for t in results[1:]] == [t.shape for t in one.inputs[: len(results) - 1]]
        assert one.compare() <= TOLERANCE[dtype]


def test_a_large_scan_is_compared_in_some_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alone, "FULL_STATES", 10)
    one = ScanAlone(sizes_of("ss2d"), "cpu", CPU)
    assert one.compare() <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("which", range(7), ids=("y", *NAMES))
def test_a_wrong_result_is_found(which: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ScanAlone(sizes_of("es2d:step=2", batch=1), "cpu", CPU)
    right = alone._CALLS["cpu"]

    def wrong(*arguments):
        results = list(right(*arguments))
        results[which] = results[which] * 1.01
        return tuple(results)

    monkeypatch.setitem(alone._CALLS, "cpu", wrong)
    assert one.compare() == pytest.approx(0.01, rel=0.05)

    def broken(*arguments):
        results = list(right(*arguments))
        results[which] = results[which].contiguous()
        results[which].view(-1)[0] = float("inf")
        return tuple(results)

    monkeypatch.setitem(alone._CALLS, "cpu", broken)
    error = one.compare()
    assert error != error, "infinity is no small distance"


def test_inputs_are_seeded_and_do_not_depend_on_the_batch() -> None:
    one, many = (ScanAlone(sizes_of("es2d", batch=b), "cpu", CPU) for b in (2, 6))
    again = ScanAlone(sizes_of("es2d", batch=2), "cpu", CPU)
    assert all(torch.equal(a, b) for a, b in zip(one.inputs, again.inputs, strict=True))
    assert torch.equal(many.inputs[0][4], many.inputs[0][0]), "images repeat after four"
    assert len(many.inputs[0]) == len(many.inputs[1]) == 6


def test_memory_of_a_call_is_estimated_from_above() -> None:
    small, large = (sizes_of("ss2d", batch=b, side=(28, 28)) for b in (1, 4))
    assert large.n_bytes == 4 * small.n_bytes and large.n_states == 4 * small.n_states
    inputs = ScanAlone(large, "cpu", CPU).inputs
    assert large.n_bytes > sum(t.nbytes for t in inputs[:2])
    assert replace(large, is_training=False).n_bytes < large.n_bytes


def test_what_has_no_scan_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="mambapy has no scan alone"):
        ScanAlone(sizes_of("es2d"), "mambapy", CPU)
    with pytest.raises(ValueError, match="needs another network|path of another network"):
        ScanAlone(sizes_of("cascade2d"), "cpu", CPU)


def check_triton(scan: str, type_name: str, regime: str) -> None:
    dtype = worker.TYPES[type_name]
    for is_training in (True, False):
        sizes = AloneSizes(scan_order(scan, 3, 2), 1, 4, 2, 3, dtype, is_training)
        one = ScanAlone(sizes, "triton", CPU)
        one.regime = regime
        assert one.compare() <= TOLERANCE[dtype]
    assert ScanAlone.regime_of(sizes, "triton", CPU) == "steps"
    assert ScanAlone.regime_of(sizes, "cpu", CPU) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="triton's wheel exists for Linux only")
def test_the_triton_kernels_alone() -> None:
    spawn = multiprocessing.get_context("spawn")
    with (
        patch.dict(os.environ, {"TRITON_INTERPRET": "1"}),
        ProcessPoolExecutor(1, mp_context=spawn, initializer=worker.start) as pool,
    ):
        for case in (("es2d:step=2", "fp32", "steps"), ("ss2d", "bf16", "chunks")):
            pool.submit(check_triton, *case).result(timeout=100)
