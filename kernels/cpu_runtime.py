"""Compiling the CPU programs, running them on torch's threads, and the tables they read.

The programs run inside torch's own OpenMP pool (`GOMP_parallel` of the library that torch loaded).
numba's thread layers are not used: its `workqueue` layer aborts the process when two threads call it, and
a second OpenMP pool would spin against torch's.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.scan_order import PAD, ScanOrder

_compile_lock = threading.Lock()


@cache
def unavailable_reason() -> str | None:
    """Why numba cannot be used; None if it can."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"numba cannot be imported ({error}); pip install numba"
    return None


@cache
def _openmp() -> Any | None:
    """`GOMP_parallel` of the OpenMP library that torch uses, or None."""
    for name in ("libtorch_cpu.so", "libgomp.so.1"):
        try:
            # Looking in libtorch_cpu also looks in the libraries that it was linked with.
            library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
            run = library.GOMP_parallel
        except (OSError, AttributeError):
            continue
        run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        run.restype = None
        return run
    return None


@cache
def _python_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="scan")


_programs: dict[str, Any] = {}


def program(name: str) -> Any:
    """The compiled program, a numba `CFunc`; compiled or read from numba's cache at first use."""
    with _compile_lock:
        if name not in _programs:
            import numba

            from kernels import cpu_loops as loops

            function = loops.PROGRAMS[name]
            try:
                compiled = numba.cfunc(loops.SIGNATURE, cache=True, **loops.OPTIONS)(function)
            except RuntimeError:
                # No directory to write to, not even the user's: compile for this process only.
                compiled = numba.cfunc(loops.SIGNATURE, **loops.OPTIONS)(function)
            _programs[name] = compiled
        return _programs[name]


def run_program(name: str, table: np.ndarray, n_items: int, scratch_floats: int) -> None:
    """Work through `n_items` items of a program on as many threads as torch uses."""
    from kernels import cpu_loops as loops

    compiled = program(name)
    n_threads = max(1, min(torch.get_num_threads(), n_items))
    # A cache line between the workers' parts, so that they do not share lines.
    size = 4 * (-(-scratch_floats // 16) * 16 + 16)
    scratch = torch.empty(n_threads * size + 64, dtype=torch.uint8)
    table[loops.NEXT_ITEM] = table[loops.NEXT_WORKER] = 0
    table[loops.N_ITEMS] = n_items
    table[loops.SCRATCH] = -(-scratch.data_ptr() // 64) * 64
    table[loops.SCRATCH_SIZE] = size
    openmp = _openmp()
    if n_threads == 1:
        compiled.ctypes(table.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)))
    elif openmp is not None:
        openmp(compiled.address, table.ctypes.data, n_threads, 0)
    else:
        argument = table.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
        tasks = [_python_threads().submit(compiled.ctypes, argument) for _ in range(n_threads)]
        for task in tasks:
            task.result()


class Plan:
    """What the programs need to know of an order: index, sets and, for each token, its visits."""

    def __init__(
        self,
        index: np.ndarray | None,
        sets: np.ndarray,
        length: int,
        n_tokens: int,
        merge_sum: bool,
    ):
        self.sets = torch.from_numpy(sets.astype(np.int64))
        self.sets32 = sets.astype(np.int32)
        self.n_sequences, self.length, self.n_tokens = len(sets), length, n_tokens
        self.merge_sum = merge_sum
        self.index = index
        self.visits_all = True
        if index is not None:
            flat = index.reshape(-1)
            steps = np.argsort(flat, kind="stable").astype(np.int32)
            self.visits = np.ascontiguousarray(steps[(flat == PAD).sum() :])
            counts = np.bincount(flat[flat != PAD], minlength=n_tokens)
            self.visit_starts = np.concatenate([[0], counts.cumsum()]).astype(np.int32)
            self.visits_all = bool(counts.min() > 0)
            self.pads = torch.from_numpy(np.flatnonzero(flat == PAD))
            self.tokens = torch.from_numpy(np.maximum(flat, 0).astype(np.int64))

    def gather(self, tokens: Tensor) -> Tensor:
        """`[B, H*W, C]` to `[B, K, L, C]`, zero at pads."""
        xs = tokens.index_select(1, self.tokens)
        if self.pads.numel():
            xs[:, self.pads] = 0
        return xs.view(tokens.shape[0], self.n_sequences, self.length, tokens.shape[2])

    def sum_over_sets(self, per_sequence: Tensor, n_sets: int) -> Tensor:
        """`[K, ...]` to `[S, ...]`, added in the order of the sequences."""
        if self.n_sequences == n_sets and np.array_equal(self.sets32, np.arange(n_sets)):
            return per_sequence
        total = per_sequence.new_zeros(n_sets, *per_sequence.shape[1:])
        for k, s in enumerate(self.sets32.tolist()):
            total[s] += per_sequence[k]
        return total


_plans: weakref.WeakKeyDictionary[ScanOrder, Plan] = weakref.WeakKeyDictionary()


def plan_of(order: ScanOrder) -> Plan:
    """The plan of an order, made once."""
    plan = _plans.get(order)
    if plan is None:
        plan = Plan(
            order.index, order.parameter_set, order.length, order.n_tokens, order.merge == "sum"
        )
        _plans[order] = plan
    return plan


@lru_cache(maxsize=64)
def plain_plan(n_sequences: int, length: int) -> Plan:
    """Sequences that lie in memory one after the other, each with its own parameters."""
    return Plan(None, np.arange(n_sequences), length, n_sequences * length, False)


@dataclass
class ScanGradients:
    """x, delta `[B, K, L, C]` (delta: before softplus), bc `[B, K, L, 2N]`, a `[K, C, N]`, bias, skip
    `[K, C]`."""

    x: Tensor
    delta: Tensor
    bc: Tensor
    a: Tensor
    bias: Tensor
    skip: Tensor


def scan_forward(
    x: Tensor,
    projected: Tensor,
    dt_weight: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    plan: Plan,
    with_checkpoints: bool,
    delta: Tensor | None = None,
    softplus: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Outputs shaped like `x`, and the stored states.

    x `[B, tokens, C]` (or `[B, K, L, C]`); projected `[B, K, L, R+2N]` (dt, B, C), or `[B, K, L, 2N]` with
    a full `delta` `[B, K, L, C]`; A is `A_logs` where `dt_weight` is given.
    """
    from kernels import cpu_loops as loops

    table, keep = _table(x, projected, dt_weight, dt_bias, A, D, plan, delta, softplus)
    batch, channels, states = x.shape[0], x.shape[-1], A.shape[1]
    is_written = plan.visits_all and not plan.merge_sum
    y = torch.empty_like(x) if is_written else torch.zeros_like(x)
    table[loops.Y] = y.data_ptr()
    table[loops.MERGE_SUM] = plan.merge_sum
    blocks = int(table[loops.BLOCKS])
    checkpoints = None
    if with_checkpoints:
        n = batch * plan.n_sequences * ((plan.length - 1) // loops.CHECKPOINT) * blocks
        checkpoints = torch.empty(n, states, loops.LANES)
        table[loops.CHECKPOINTS] = checkpoints.data_ptr()
    n_items = batch * blocks * (1 if plan.merge_sum else plan.n_sequences)
    rank = int(table[loops.RANK])
    run_program("forward", table, n_items, loops.LANES * (2 * states + rank))
    return y, checkpoints


def scan_backward(
    grad_y: Tensor,
    x: Tensor,
    projected: Tensor,
    dt_weight: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    plan: Plan,
    checkpoints: Tensor,
    delta: Tensor | None = None,
    softplus: bool = True,
) -> ScanGradients:
    """Gradients of all inputs of the scan; the arguments are those of `scan_forward`."""
    from kernels import cpu_loops as loops

    table, keep = _table(x, projected, dt_weight, dt_bias, A, D, plan, delta, softplus)
    batch, channels, states = x.shape[0], x.shape[-1], A.shape[1]
    blocks, rank = int(table[loops.BLOCKS]), int(table[loops.RANK])
    sequences = batch * plan.n_sequences
    # Channel blocks of one sequence share the gradients of B and C: they are one item, unless that
    # leaves threads without work; then each group gets its own sums, added at the end.
    groups = min(blocks, max(1, -(-2 * torch.get_num_threads() // max(1, sequences))))
    shape = (batch, plan.n_sequences, plan.length)
    grad_x, grad_delta = x.new_empty(*shape, channels), x.new_empty(*shape, channels)
    grad_bc = x.new_empty(groups, *shape, 2 * states)
    width = blocks * loops.LANES
    grad_a = x.new_empty(batch, plan.n_sequences, blocks, states, loops.LANES)
    grad_bias, grad_skip = (x.new_empty(batch, plan.n_sequences, width) for _ in range(2))
    table[loops.GROUPS] = groups
    table[loops.GRAD_Y] = grad_y.data_ptr()
    table[loops.CHECKPOINTS] = checkpoints.data_ptr()
    for column, tensor in (
        (loops.GRAD_X, grad_x),
        (loops.GRAD_DELTA, grad_delta),
        (loops.GRAD_BC, grad_bc),
        (loops.GRAD_A, grad_a),
        (loops.GRAD_BIAS, grad_bias),
        (loops.GRAD_SKIP, grad_skip),
    ):
        table[column] = tensor.data_ptr()
    table[loops.GRAD_BC_STRIDE] = 2 * states
    padded = -(-states // loops.LANES) * loops.LANES
    scratch = loops.LANES * (
        (2 * states + rank) * blocks
        + states * (2 * loops.CHECKPOINT + 1)
        + 3 * loops.CHECKPOINT
        + 2 * padded
    )
    run_program("backward", table, sequences * groups, scratch + loops.CHECKPOINT * 2 * padded)
    a = grad_a.sum(0).permute(0, 1, 3, 2).reshape(plan.n_sequences, width, states)
    return ScanGradients(
        grad_x,
        grad_delta,
        grad_bc[0] if groups == 1 else grad_bc.sum(0),
        a[:, :channels],
        grad_bias.sum(0)[:, :channels],
        grad_skip.sum(0)[:, :channels],
    )


def put_back(visits: Tensor, plan: Plan) -> Tensor:
    """`[B, K, L, C]` to `[B, tokens, C]`: the sum over each token's visits."""
    from kernels import cpu_loops as loops

    batch, channels = visits.shape[0], visits.shape[3]
    rows = visits.new_empty(batch, plan.n_tokens, channels)
    table = np.zeros(loops.N_COLUMNS, dtype=np.int64)
    table[loops.SEQUENCES], table[loops.LENGTH] = plan.n_sequences, plan.length
    table[loops.CHANNELS], table[loops.ROWS] = channels, plan.n_tokens
    table[loops.GRAD_X], table[loops.Y] = visits.data_ptr(), rows.data_ptr()
    table[loops.VISITS] = plan.visits.ctypes.data
    table[loops.VISIT_STARTS] = plan.visit_starts.ctypes.data
    run_program("put_back", table, batch * -(-plan.n_tokens // loops.PUT_BACK_ROWS), 0)
    return rows


def _table(
    x: Tensor,
    projected: Tensor,
    dt_weight: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    plan: Plan,
    delta: Tensor | None,
    softplus: bool,
) -> tuple[np.ndarray, list[Tensor]]:
    """The columns that forward and backward share, and what must stay alive while they are used."""
    from kernels import cpu_loops as loops

    channels, states = x.shape[-1], A.shape[1]
    rank = 0 if dt_weight is None else dt_weight.shape[2]
    keep = [x, projected, dt_bias, A, D]
    assert all(t.is_contiguous() and t.dtype == torch.float32 for t in keep)
    table = np.zeros(loops.N_COLUMNS, dtype=np.int64)
    for column, value in (
        (loops.BATCH, x.shape[0]),
        (loops.SEQUENCES, plan.n_sequences),
        (loops.LENGTH, plan.length),
        (loops.CHANNELS, channels),
        (loops.STATES, states),
        (loops.RANK, rank),
        (loops.ROWS, plan.n_tokens),
        (loops.BLOCKS, -(-channels // loops.LANES)),
        (loops.GROUPS, 1),
        (loops.SOFTPLUS, softplus),
        (loops.A_IS_LOG, dt_weight is not None),
        (loops.INDEX, 0 if plan.index is None else plan.index.ctypes.data),
        (loops.SETS, plan.sets32.ctypes.data),
        (loops.X, x.data_ptr()),
        (loops.DELTA, projected.data_ptr() if delta is None else delta.data_ptr()),
        (loops.DELTA_STRIDE, projected.shape[-1] if delta is None else channels),
        (loops.B_IN, projected.data_ptr() + 4 * rank),
        (loops.C_IN, projected.data_ptr() + 4 * (rank + states)),
        (loops.BC_STRIDE, projected.shape[-1]),
        (loops.A_IN, A.data_ptr()),
        (loops.DT_WEIGHT, 0 if dt_weight is None else dt_weight.data_ptr()),
        (loops.DT_BIAS, dt_bias.data_ptr()),
        (loops.SKIP, D.data_ptr()),
    ):
        table[column] = value
    return table, keep
