"""Compiling the programs and running them on as many threads as torch uses.

The programs run inside torch's own OpenMP pool: `GOMP_parallel` of the library that torch itself
loaded. numba's thread layers are not used: `workqueue` aborts the process when two threads call it,
and the others bring a second pool, which spins against torch's for the same cores. Where torch has
another kind of pool, Python threads take its place (a program holds no lock of the interpreter).
"""

from __future__ import annotations

import ctypes
import importlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kernels._cpu import columns as col

# Modules of programs: `build_programs(version)` gives them by name.
SCAN, MAPS = "kernels._cpu.programs", "kernels._cpu.map_programs"
_compile_lock = threading.Lock()
_VECTOR_BYTES = 4 * col.LANES
# A program takes the address of its table.
_SIGNATURE = "void(int64)"


@cache
def unavailable_reason() -> str | None:
    """Why the programs cannot be compiled here; None if they can."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"numba cannot be imported ({error}); pip install numba"
    return None


def run_program(name: str, table: np.ndarray, n_items: int, scratch_floats: int = 0) -> None:
    """Work through `n_items` items of a program; each thread gets its own scratch memory."""
    n_threads = max(1, min(torch.get_num_threads(), n_items))
    # One spare vector between the threads' parts, so that they share no cache line.
    size = _VECTOR_BYTES * (-(-scratch_floats // col.LANES) + 1)
    scratch = torch.empty(n_threads * size + _VECTOR_BYTES, dtype=torch.uint8)
    table[col.NEXT_ITEM] = table[col.NEXT_WORKER] = 0
    table[col.N_ITEMS] = n_items
    table[col.SCRATCH] = -(-scratch.data_ptr() // _VECTOR_BYTES) * _VECTOR_BYTES
    table[col.SCRATCH_SIZE] = size
    run_on_threads(compiled_program(name), table.ctypes.data, n_threads)


def run_on_threads(program: Any, table: int, n_threads: int) -> None:
    """Run a compiled program on the table at this address, on so many threads at once."""
    if n_threads == 1:
        program.ctypes(table)
        return
    openmp = _openmp()
    if openmp is not None:
        openmp(program.address, table, n_threads, 0)
        return
    submit = _python_threads(os.getpid()).submit
    for task in [submit(program.ctypes, table) for _ in range(n_threads)]:
        task.result()


def compiled_program(name: str, module: str = SCAN) -> Any:
    """The program as a numba `CFunc`, compiled or read from numba's cache at first use.

    Each is compiled when it is first called for, so a forward pass waits for no backward pass.
    """
    with _compile_lock:
        return _compile(name, module)


@cache
def _compile(name: str, module: str) -> Any:
    import numba

    program = importlib.import_module(module).build_programs(source_version())[name]
    try:
        return numba.cfunc(_SIGNATURE, cache=True, error_model="numpy")(program)
    except (RuntimeError, OSError):
        # numba has tried the package's folder and the user's; neither can be written to, or the
        # disk is full. Compile for this process only.
        return numba.cfunc(_SIGNATURE, error_model="numpy")(program)


@cache
def source_version() -> str:
    """Digest of the sources of this package, of which numba's cache knows one module only."""
    digest = sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _openmp() -> Any | None:
    """`GOMP_parallel(function, argument, n_threads, flags)` of torch's OpenMP library, or None."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            # A library's symbols are looked up in those that it was linked with, too.
            parallel = ctypes.CDLL(str(folder / name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        parallel.restype = None
        return parallel
    return None


@cache
def _python_threads(process: int) -> ThreadPoolExecutor:
    """One pool per process: a forked child has none of its parent's threads."""
    return ThreadPoolExecutor(thread_name_prefix=f"scan-{process}")
