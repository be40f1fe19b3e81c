"""Operators inside operators, and which of them launched what ran on a GPU."""

from __future__ import annotations

import numpy as np

from workbench.analyses.traces.events import Events, Kind
from workbench.analyses.traces.nesting import innermost, nest, with_children, without_children

US = 1000  # ns


class Calls:
    """Operator calls [N] in the order of the events, and GPU work [K] linked to them."""

    def __init__(self, events: Events) -> None:
        self.index = events.of(Kind.OPERATOR)  # into the events, as the next two
        self.gpu = events.of(Kind.KERNEL, Kind.MEMCPY, Kind.MEMSET)
        self.runtime = events.of(Kind.RUNTIME)
        self.lane = events.lane[self.index]
        self.start = events.start[self.index]
        self.name = events.name[self.index]
        self.parent, self.duration = nest(
            self.lane,
            self.start,
            events.duration[self.index],
            US if events.is_whole_us else 0,
        )
        self.n_cut = int((self.duration != events.duration[self.index]).sum())
        self.self_ns = without_children(self.parent, self.duration)
        self.gpu_ns = events.duration[self.gpu]
        self._link(events)
        self.self_gpu_ns = np.zeros(len(self.index), dtype=np.int64)
        is_known = self.gpu_call >= 0
        np.add.at(self.self_gpu_ns, self.gpu_call[is_known], self.gpu_ns[is_known])
        self.total_gpu_ns = with_children(self.parent, self.self_gpu_ns)

    def at(self, lane: np.ndarray, time: np.ndarray) -> np.ndarray:
        """The innermost operator call open on these threads at these times; -1: none."""
        return innermost(self.lane, self.start, self.duration, lane, time)

    def _link(self, events: Events) -> None:
        """GPU work to the runtime call of its correlation, and that to an operator.

        Old traces write the correlation once more as "External id": it names no operator there.
        """
        external = events.external[self.runtime]
        has_both = (external >= 0) & (events.correlation[self.runtime] >= 0)
        is_old = bool(has_both.any()) and bool(
            (external == events.correlation[self.runtime])[has_both].all()
        )
        by_id = _Lookup(events.external[self.index])
        runtime_call = np.full(len(self.runtime), -1, dtype=np.int64)
        if not is_old:
            runtime_call = by_id(external)
        rest = np.flatnonzero(runtime_call < 0)
        at = self.runtime[rest]
        runtime_call[rest] = self.at(events.lane[at], events.start[at])
        launched = _Lookup(events.correlation[self.runtime])(events.correlation[self.gpu])
        self.gpu_call = np.where(launched >= 0, _take(runtime_call, launched), -1)
        if not is_old:
            own = by_id(events.external[self.gpu])
            self.gpu_call = np.where((launched < 0), own, self.gpu_call)
        # The thread and time of the launch; -1 where nothing is known of it.
        runtime = self.runtime
        self.launch_lane = np.where(launched >= 0, _take(events.lane[runtime], launched), -1)
        self.launch_time = np.where(launched >= 0, _take(events.start[runtime], launched), -1)
        is_known = self.gpu_call >= 0
        self.launch_lane[is_known] = self.lane[self.gpu_call[is_known]]
        self.launch_time[is_known] = self.start[self.gpu_call[is_known]]


class _Lookup:
    """From an id to the first place that has it; -1 where none does."""

    def __init__(self, ids: np.ndarray) -> None:
        self._places = np.argsort(ids, kind="stable")
        self._ids = ids[self._places]

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        if not len(self._ids):
            return np.full(len(wanted), -1, dtype=np.int64)
        i = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        return np.where((self._ids[i] == wanted) & (wanted >= 0), self._places[i], -1)


def _take(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values at these places, anything where a place is -1."""
    if not len(values):
        return np.full(len(places), -1, dtype=np.int64)
    return values[np.maximum(places, 0)].astype(np.int64)
