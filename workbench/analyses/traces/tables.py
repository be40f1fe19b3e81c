"""Tables of operators and kernels."""

from __future__ import annotations

import numpy as np

from workbench.analyses.traces.calls import Calls
from workbench.analyses.traces.events import Events, Kind
from workbench.analyses.traces.nesting import is_outermost
from workbench.analyses.traces.steps import StepOf
from workbench.profiler_results import KernelRow, OperatorRow

GPU_KINDS = {Kind.KERNEL: "kernel", Kind.MEMCPY: "memcpy", Kind.MEMSET: "memset"}


def operator_rows(
    events: Events, calls: Calls, step_of: StepOf, n_steps: int
) -> tuple[tuple[OperatorRow, ...], np.ndarray, tuple[str, ...]]:
    """Rows, self time in each step [operators, steps] ns, notes.

    Self times add up as those of torch's `key_averages`. So do total times, except of an operator
    that calls itself: torch adds the inner calls once more, here they count once. Where there is a
    GPU the steps hold its time, else the CPU's; a kernel counts where its operator starts.
    """
    used, row = np.unique(calls.name, return_inverse=True)
    outer = is_outermost(calls.parent, calls.name)
    n = len(used)

    def add(values: np.ndarray) -> list[int]:
        return summed(row, values, n).tolist()

    rows = [
        OperatorRow(
            name=events.names[name],
            calls=n_calls,
            self_cpu_ns=self_cpu,
            total_cpu_ns=total_cpu,
            self_gpu_ns=self_gpu,
            total_gpu_ns=total_gpu,
        )
        for name, n_calls, self_cpu, total_cpu, self_gpu, total_gpu in zip(
            used.tolist(),
            np.bincount(row, minlength=n).tolist(),
            add(calls.self_ns),
            add(np.where(outer, calls.duration, 0)),
            add(calls.self_gpu_ns),
            add(np.where(outer, calls.total_gpu_ns, 0)),
            strict=True,
        )
    ]
    own = calls.self_gpu_ns if len(calls.gpu) else calls.self_ns
    steps = np.zeros((n, n_steps), dtype=np.int64)
    at = step_of(calls.start)
    np.add.at(steps, (row[at >= 0], at[at >= 0]), own[at >= 0])
    order = sorted(range(n), key=lambda i: (-rows[i].self_gpu_ns, -rows[i].self_cpu_ns))
    notes = []
    if not rows:
        notes.append("This trace has no operators (events of category cpu_op).")
    if calls.n_cut:
        notes.append(
            f"Mended: {calls.n_cut:,} operators ended up to 1 us after the one around them, by "
            "rounding, and end with it now."
        )
    is_lost = calls.gpu_call < 0
    if is_lost.any():
        notes.append(
            f"{int(is_lost.sum()):,} of {len(is_lost):,} kernels, copies and fills "
            f"({calls.gpu_ns[is_lost].sum() / 1e6:.3g} ms) belong to no operator of this trace."
        )
    return tuple(rows[i] for i in order), steps[order], tuple(notes)


def kernel_rows(events: Events, calls: Calls) -> tuple[KernelRow, ...]:
    """One row for each name and kind of GPU work, largest total first."""
    if not len(calls.gpu):
        return ()
    keys = np.stack([events.name[calls.gpu], events.kind[calls.gpu]], axis=1)
    used, row = np.unique(keys, axis=0, return_inverse=True)
    row = row.ravel()
    order = np.argsort(row, kind="stable")
    rows = []
    for (name, kind), places in zip(
        used.tolist(), np.split(order, np.cumsum(np.bincount(row))[:-1]), strict=True
    ):
        times = calls.gpu_ns[places]
        detail = events.details[events.detail[calls.gpu[places[times.argmax()]]]]
        launched = calls.gpu_call[places]
        by = calls.name[launched[launched >= 0]]
        rows.append(
            KernelRow(
                name=events.names[name],
                kind=GPU_KINDS[Kind(kind)],
                calls=len(places),
                total_ns=int(times.sum()),
                min_ns=int(times.min()),
                max_ns=int(times.max()),
                operator=events.names[np.bincount(by).argmax()] if len(by) else "",
                grid=detail.grid,
                block=detail.block,
                registers=detail.registers,
                shared_bytes=detail.shared_bytes,
                occupancy=detail.occupancy,
            )
        )
    return tuple(sorted(rows, key=lambda r: (-r.total_ns, r.name)))


def summed(row: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """Exact sums by row: int64 [n] (`bincount` would round them to float64)."""
    found = np.zeros(n, dtype=np.int64)
    np.add.at(found, row, values)
    return found
