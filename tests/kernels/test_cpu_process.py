"""The CPU kernel as part of a process: import, cache, threads. Each test starts its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

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
        # Passive: the processes of a test machine share its cores with others.
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_import_loads_no_compiler_and_later_processes_start_from_the_cache(tmp_path) -> None:
    code = """
        kernels.scan_order("es2d", 4, 4), kernels.resolve_backend("reference", "cpu")
        assert not any(m.split(".")[0] in ("numba", "llvmlite", "triton") for m in sys.modules)
        from torch.utils.flop_counter import flop_registry  # brings Triton
        assert torch.ops.efficientvmamba.scan2d in flop_registry
        from kernels._cpu.run import compiled_program
        print(compiled_program("project_weight").cache_hits)
    """
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["0"]
    assert python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["1"]


def test_a_first_call_waits_for_its_own_programs_only() -> None:
    python(
        """
        from kernels._cpu import run as pool
        compiled, original = [], pool._compile
        def compile_(name, module):
            compiled.append(name)
            return original(name, module)
        pool._compile = compile_
        leaves = [t.requires_grad_() for t in inputs()]
        y = kernels.scan2d(*leaves, backend="cpu")
        assert set(compiled) == {"project", "forward"}, compiled
        del compiled[:]
        y.sum().backward()
        assert set(compiled) == {"backward", "project_back", "project_weight"}, compiled
        """
    )


def test_four_threads_at_once_from_the_first_call_on() -> None:
    """Also where numba has only its `workqueue` layer, which aborts on concurrent calls."""
    python(
        """
        tensors, results = [inputs() for _ in range(4)], [[] for _ in range(4)]
        def work(i):
            for _ in range(10):
                results[i].append(run(tensors[i]))
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        for given, made in zip(tensors, results):
            expected = run(given)
            assert len(made) == 10
            assert all(all(map(torch.equal, result, expected)) for result in made)
        """,
        NUMBA_THREADING_LAYER="workqueue",
    )


def test_no_place_for_a_cache_is_no_error() -> None:
    python(
        """
        from kernels._cpu.run import compiled_program
        from numba.core import caching
        places, caching.CacheImpl._locator_classes = caching.CacheImpl._locator_classes, []
        assert compiled_program("project").cache_hits == 0
        caching.CacheImpl._locator_classes = places
        tensors = inputs()
        y = kernels.scan2d(*tensors, backend="cpu")
        exact = kernels.scan2d(*(t.double() for t in tensors), backend="reference")
        assert (y - exact).norm() <= 1e-5 * exact.norm()
        """
    )


def test_other_thread_pools_and_forked_children() -> None:
    """Python threads where torch has no OpenMP; a forked process such as a DataLoader's worker."""
    python(
        """
        import multiprocessing, warnings
        from kernels._cpu import run as pool
        warnings.simplefilter("ignore")
        torch.set_num_threads(2)
        assert pool._openmp() is not None or sys.platform != "linux"
        tensors = inputs()
        expected = run(tensors)
        pool._openmp = lambda: None
        assert all(map(torch.equal, run(tensors), expected))
        def child(queue):
            torch.set_num_threads(1)  # as in a DataLoader's worker: torch's own pool is gone, too
            queue.put(all(map(torch.equal, run(tensors), expected)))
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        assert queue.get(timeout=60)
        process.join()
        """
    )
