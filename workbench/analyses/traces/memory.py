"""Allocated memory over time, and who holds it at the peak."""

from __future__ import annotations

import numpy as np

from workbench.analyses.traces.calls import Calls
from workbench.analyses.traces.events import Events, Marks
from workbench.analyses.traces.modules import ModuleTree
from workbench.profiler_results import MemoryOwner, TraceMemory

MAX_POINTS = 4_000


def memory_of(
    events: Events, calls: Calls, tree: ModuleTree, zero: int
) -> tuple[tuple[TraceMemory, ...], tuple[str, ...]]:
    """One curve for each device that the allocator's marks name, and notes."""
    marks = events.marks
    if not len(marks.time):
        return (), ("This trace has no memory marks: record it with profile_memory=True.",)
    device = np.stack([marks.device_type, np.where(marks.device_type, marks.device_id, 0)], axis=1)
    found, notes = [], []
    for kind, number in np.unique(device, axis=0).tolist():
        at = np.flatnonzero((device == (kind, number)).all(axis=1))
        name = "CPU" if kind == 0 else f"GPU {max(number, 0)}"
        memory = _curve(events, calls, tree, zero, name, at)
        found.append(memory)
        if len(at) > MAX_POINTS:
            notes.append(
                f"Memory of {name}: {len(memory.time_ns):,} of {len(at):,} marks are drawn, the "
                "least and the most of each stretch."
            )
    return tuple(found), tuple(notes)


def _curve(
    events: Events, calls: Calls, tree: ModuleTree, zero: int, name: str, at: np.ndarray
) -> TraceMemory:
    marks = events.marks
    total = marks.total[at]
    if (total < 0).any():  # no totals in the trace: what it saw itself
        total = np.cumsum(marks.n_bytes[at])
    peak = int(total.argmax())
    held = _held(marks, at[: peak + 1])
    lanes, times = marks.lane[held], marks.time[held]
    call = calls.at(lanes, times)
    paths = tree.path_at(lanes, times)
    owners: dict[tuple[str, str], int] = {}
    for i, owner, path in zip(held.tolist(), call.tolist(), paths, strict=True):
        if owner >= 0:
            key = events.names[calls.name[owner]], path
            owners[key] = owners.get(key, 0) + int(marks.n_bytes[i])
    keep = _drawn(total, peak)
    return TraceMemory(
        device=name,
        time_ns=marks.time[at][keep] - zero,
        n_bytes=total[keep],
        peak_bytes=int(total[peak]),
        peak_ns=int(marks.time[at[peak]]) - zero,
        owners=tuple(
            MemoryOwner(name=n, module=m, n_bytes=b)
            for (n, m), b in sorted(owners.items(), key=lambda o: (-o[1], o[0]))
        ),
        unowned_bytes=max(int(total[peak]) - sum(owners.values()), 0),
    )


def _held(marks: Marks, at: np.ndarray) -> np.ndarray:
    """Marks of the allocations that are not freed at the end of these."""
    live: dict[int, int] = {}
    for i, n_bytes, address in zip(
        at.tolist(), marks.n_bytes[at].tolist(), marks.address[at].tolist(), strict=True
    ):
        if n_bytes > 0:
            live[address] = i
        else:
            live.pop(address, None)
    return np.array(list(live.values()), dtype=np.int64)


def _drawn(total: np.ndarray, peak: int) -> np.ndarray:
    """Which marks to draw: all, or the least and the most of equal stretches, and the ends."""
    if len(total) <= MAX_POINTS:
        return np.arange(len(total))
    edges = np.linspace(0, len(total), MAX_POINTS // 2 - 1).astype(int)
    keep = {0, len(total) - 1, peak}
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = total[low:high]
        keep |= {low + int(part.argmax()), low + int(part.argmin())}
    return np.array(sorted(keep))
