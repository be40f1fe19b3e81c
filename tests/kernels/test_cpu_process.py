"""The CPU kernel as part of a process: import, cache, threads. Each test starts its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = """
    import sys, threading, time, torch, kernels
    torch.manual_seed(0)
    def inputs():
        C, R, N = 32, 2, 16
        return [torch.randn(2, C, 9, 8), torch.randn(4, R + 2 * N, C) / 6, torch.randn(4, C, R),
                torch.randn(4, C) - 3, torch.randn(4 * C, N), torch.ones(4 * C)]
    def run(tensors):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = kernels.scan2d(*leaves, backend="cpu")
        return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]
"""


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SETUP) + textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_import_loads_no_compiler_and_later_processes_start_from_the_cache(tmp_path) -> None:
    first = """
        assert not any(m.split(".")[0] in ("numba", "llvmlite", "triton") for m in sys.modules)
        kernels.scan2d(*inputs())
        from kernels._cpu.run import compiled_program
        print(compiled_program("forward").cache_hits)
    """
    assert python(first, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["0"]
    assert python(first, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["1"]


@pytest.mark.parametrize("layer", ["workqueue", "default"])
def test_four_threads_at_once(layer: str) -> None:
    python(
        """
        tensors = [inputs() for _ in range(4)]
        expected = [run(t) for t in tensors]
        wrong = []
        def work(i):
            for _ in range(10):
                if not all(map(torch.equal, run(tensors[i]), expected[i])):
                    wrong.append(i)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert not wrong, wrong
        """,
        NUMBA_THREADING_LAYER=layer,
    )


def test_the_first_calls_may_come_from_several_threads_at_once() -> None:
    python(
        """
        tensors, results = inputs(), [None] * 4
        def work(i):
            results[i] = run(tensors)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert all(all(map(torch.equal, r, results[0])) for r in results)
        """
    )


def test_no_place_for_a_cache_is_no_error() -> None:
    python(
        """
        from numba.core import caching
        caching.CacheImpl._locator_classes = []
        tensors = inputs()
        y = kernels.scan2d(*tensors, backend="cpu")
        exact = kernels.scan2d(*(t.double() for t in tensors), backend="reference")
        assert (y - exact).norm() <= 1e-5 * exact.norm()
        """
    )


def test_python_threads_where_torch_has_another_thread_pool() -> None:
    python(
        """
        from kernels._cpu import run as pool
        tensors = inputs()
        torch.set_num_threads(2)
        assert pool._openmp() is not None or sys.platform != "linux"
        expected = run(tensors)
        pool._openmp = lambda: None
        assert all(map(torch.equal, run(tensors), expected))
        """
    )


def test_a_forked_child_can_scan() -> None:
    python(
        """
        import multiprocessing, warnings
        warnings.simplefilter("ignore")
        tensors = inputs()
        expected = run(tensors)
        def child(queue):
            torch.set_num_threads(1)
            queue.put(all(map(torch.equal, run(tensors), expected)))
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        assert queue.get(timeout=60)
        process.join()
        """
    )
