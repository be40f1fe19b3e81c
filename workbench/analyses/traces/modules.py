"""Times of the modules of the network, forward and backward."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from workbench.analyses.traces.calls import Calls
from workbench.analyses.traces.events import BACKWARD, Events, Kind
from workbench.analyses.traces.nesting import innermost, nest, without_children
from workbench.analyses.traces.steps import StepOf
from workbench.profiler_results import ModuleRow

MARK = re.compile(r"module:(?P<path>[^|]*)\|(?P<kind>.*)$", re.DOTALL)
TORCH_MODULE = re.compile(r"nn\.Module: (?P<name>.*)$", re.DOTALL)
PLACE = re.compile(r"stages\.(\d{1,6})(?:\.blocks\.(\d{1,6}))?(?:\.|$)")
MAX_DEPTH = 100  # of torch's own marks: deeper calls count with the module at this depth
NO_MODULE = "no module"
OF_BACKWARD = "(backward)"
OUTSIDE = "(outside)"


@dataclass(slots=True)
class _Row:
    path: str
    kind: str
    parent: int  # row; -1: none
    depth: int = 0  # of torch's own marks
    calls: int = 0


class ModuleTree:
    """Every moment of a thread and every kernel belongs to one row, so that the rows add up.

    A module has what runs in its forward pass and what autograd runs for the operators of that
    pass, found by the trace's arrows from forward to backward or else by the sequence number. What
    leads to no module goes to "(backward)", what runs in neither to "(outside)".
    """

    def __init__(self, events: Events, calls: Calls) -> None:
        self._rows: list[_Row] = []
        self._by_key: dict[tuple[str, str], int] = {}
        modules, row = self._modules(events)
        self._duration = np.zeros(0, dtype=np.int64)
        in_backward, roots = _backward(events, calls)
        self.has_backward = bool(len(roots))
        self.has_modules = bool(len(modules))
        self._calls = calls
        if not self.has_modules:
            return
        lane, start = events.lane[modules], events.start[modules]
        inside = innermost(lane, start, events.duration[modules], calls.lane, calls.start)
        forward = row[inside]
        forward[inside < 0] = -1
        linked = _forward_of(events, calls, roots, in_backward)
        backward_row = np.where(linked >= 0, forward[linked], -1)
        if (backward_row < 0).any():
            backward_row[backward_row < 0] = self._row(OF_BACKWARD, NO_MODULE, -1)
        outside = np.flatnonzero((calls.parent < 0) & (inside < 0) & (in_backward < 0))
        outside_row = self._row(OUTSIDE, NO_MODULE, -1)
        # Items: module calls, backward calls of the autograd engine, operators in neither.
        lanes = np.r_[lane, calls.lane[roots], calls.lane[outside]]
        starts = np.r_[start, calls.start[roots], calls.start[outside]]
        durations = np.r_[events.duration[modules], calls.duration[roots], calls.duration[outside]]
        rows = np.r_[row, backward_row, np.full(len(outside), outside_row)]
        order = np.lexsort((-durations, starts, lanes))
        self._lane, self._start, self._item_row = lanes[order], starts[order], rows[order]
        parent, self._duration = nest(
            self._lane, self._start, durations[order], 1000 if events.is_whole_us else 0
        )
        self._self_ns = without_children(parent, self._duration)
        for i, n in zip(*np.unique(row, return_counts=True), strict=True):
            self._rows[int(i)].calls = int(n)
        for i in (OF_BACKWARD, OUTSIDE):
            at = self._by_key.get((i, NO_MODULE), -1)
            if at >= 0:
                self._rows[at].calls = int((rows == at).sum())
        self._gpu_row = self.row_at(calls.launch_lane, calls.launch_time)
        self._gpu_row[self._gpu_row < 0] = outside_row
        self._outside = outside_row

    def row_at(self, lane: np.ndarray, time: np.ndarray) -> np.ndarray:
        """The row of the innermost module, backward call or operator open then; -1: none."""
        if not self.has_modules:
            return np.full(len(lane), -1, dtype=np.int64)
        item = innermost(self._lane, self._start, self._duration, lane, time)
        found = self._item_row[item]
        found[item < 0] = -1
        return found

    def path_at(self, lane: np.ndarray, time: np.ndarray) -> list[str]:
        """Paths of the modules; "" where there is none, and for the network itself its class."""
        found = []
        for i in self.row_at(lane, time).tolist():
            row = self._rows[i] if i >= 0 else None
            found.append("" if row is None or row.kind == NO_MODULE else row.path or row.kind)
        return found

    def rows(
        self, step_of: StepOf, n_steps: int
    ) -> tuple[tuple[ModuleRow, ...], np.ndarray, tuple[str, ...]]:
        """Rows in the order of the tree, total time in each step [modules, steps] ns, notes.

        A total is a row's own time and that of the rows below it. Where there is a GPU the steps
        hold its time, else the CPU's; what a call does counts in the step where it starts.
        """
        if not self.has_modules:
            note = "No module is marked in this trace: record it here, or with_stack=True."
            return (), np.zeros((0, n_steps), dtype=np.int64), (note,)
        n = len(self._rows)
        cpu = np.zeros(n, dtype=np.int64)
        np.add.at(cpu, self._item_row, self._self_ns)
        gpu = np.zeros(n, dtype=np.int64)
        np.add.at(gpu, self._gpu_row, self._calls.gpu_ns)
        steps = np.zeros((n, n_steps), dtype=np.int64)
        if len(gpu_ns := self._calls.gpu_ns):
            time = self._calls.launch_time
            at, row, own = step_of(time), self._gpu_row, gpu_ns
        else:
            at, row, own = step_of(self._start), self._item_row, self._self_ns
        np.add.at(steps, (row[at >= 0], at[at >= 0]), own[at >= 0])
        total_cpu, total_gpu = cpu.copy(), gpu.copy()
        order, depth = self._order()
        for i in reversed(order):
            above = self._rows[i].parent
            if above >= 0:
                total_cpu[above] += total_cpu[i]
                total_gpu[above] += total_gpu[i]
                steps[above] += steps[i]
        if not cpu[self._outside] and not gpu[self._outside]:
            order.remove(self._outside)
        found = tuple(
            ModuleRow(
                path=self._rows[i].path,
                kind=self._rows[i].kind,
                depth=depth[i],
                stage=_place(self._rows[i].path)[0],
                block=_place(self._rows[i].path)[1],
                calls=self._rows[i].calls,
                self_cpu_ns=int(cpu[i]),
                total_cpu_ns=int(total_cpu[i]),
                self_gpu_ns=int(gpu[i]),
                total_gpu_ns=int(total_gpu[i]),
            )
            for i in order
        )
        return found, steps[order], ()

    def _order(self) -> tuple[list[int], list[int]]:
        """Rows parents first, siblings as they first ran, and how deep each lies."""
        order: list[int] = []
        depth = [0] * len(self._rows)
        children: list[list[int]] = [[] for _ in self._rows]
        for i, r in enumerate(self._rows):
            if r.parent >= 0:
                children[r.parent].append(i)
        is_plain = [r.kind == NO_MODULE for r in self._rows]
        tops = [i for i, r in enumerate(self._rows) if r.parent < 0]
        stack = sorted(tops, key=lambda i: (is_plain[i], i), reverse=True)
        while stack:
            i = stack.pop()
            order.append(i)
            for child in reversed(children[i]):
                depth[child] = depth[i] + 1
                stack.append(child)
        return order, depth

    def _row(self, path: str, kind: str, parent: int) -> int:
        key = (path, kind)
        if key not in self._by_key:
            self._by_key[key] = len(self._rows)
            self._rows.append(_Row(path, kind, parent))
        return self._by_key[key]

    def _modules(self, events: Events) -> tuple[np.ndarray, np.ndarray]:
        """Calls of modules as events [M] and the row of each [M]."""
        marks = {i: m for i, n in enumerate(events.names) if (m := MARK.match(n))}
        at = events.of(Kind.ANNOTATION)
        at = at[np.isin(events.name[at], list(marks))]
        by_time = np.argsort(events.start[at], kind="stable")
        if len(at):
            rows = np.zeros(len(at), dtype=np.int64)
            for i in by_time.tolist():
                mark = marks[int(events.name[at[i]])]
                rows[i] = self._row(mark["path"], mark["kind"], -1)
            by_path = {r.path: i for i, r in reversed(list(enumerate(self._rows)))}
            for row in self._rows:
                row.parent = _above(row.path, by_path)
            return at, rows
        return self._torch_modules(events)

    def _torch_modules(self, events: Events) -> tuple[np.ndarray, np.ndarray]:
        """As torch itself marks them with stacks: a class and a number, no path."""
        names = {i: m["name"] for i, n in enumerate(events.names) if (m := TORCH_MODULE.match(n))}
        at = events.of(Kind.PYTHON)
        at = at[np.isin(events.name[at], list(names))]
        parent, _ = nest(events.lane[at], events.start[at], events.duration[at])
        rows = np.zeros(len(at), dtype=np.int64)
        for i, above in enumerate(parent.tolist()):
            name = names[int(events.name[at[i]])]
            row = int(rows[above]) if above >= 0 else -1
            if row >= 0 and self._rows[row].depth >= MAX_DEPTH:
                rows[i] = row
                continue
            path = f"{self._rows[row].path}.{name}" if row >= 0 else name
            rows[i] = self._row(path, name.rpartition("_")[0] or name, row)
            self._rows[int(rows[i])].depth = self._rows[row].depth + 1 if row >= 0 else 0
        return at, rows


def _above(path: str, by_path: dict[str, int]) -> int:
    """The row of the nearest listed module that holds this one."""
    while path:
        path = path.rpartition(".")[0]
        if path in by_path:
            return by_path[path]
    return -1


def _place(path: str) -> tuple[int, int]:
    found = PLACE.match(path)
    if not found:
        return 0, 0
    return int(found[1]) + 1, int(found[2]) + 1 if found[2] else 0


def _backward(events: Events, calls: Calls) -> tuple[np.ndarray, np.ndarray]:
    """For each operator call the innermost backward call around it [N] (-1: none), and all those.

    A backward call is one of the autograd engine for one node; without the engine's name (old
    traces) the outermost operator that says a forward thread.
    """
    is_engine = np.array([n.startswith(BACKWARD) for n in events.names], dtype=bool)
    own = is_engine[calls.name]
    says = (events.forward_thread[calls.index] > 0).tolist()
    root = np.full(len(own), -1, dtype=np.int64)
    for i, (above, is_own) in enumerate(zip(calls.parent.tolist(), own.tolist(), strict=True)):
        outer = root[above] if above >= 0 else -1
        root[i] = i if is_own or (says[i] and outer < 0) else outer
    return root, np.flatnonzero(root == np.arange(len(root)))


def _forward_of(
    events: Events, calls: Calls, roots: np.ndarray, in_backward: np.ndarray
) -> np.ndarray:
    """The forward operator call of each backward call; -1: not known."""
    found = np.full(len(roots), -1, dtype=np.int64)
    place = {int(r): i for i, r in enumerate(roots)}
    points = zip(calls.lane.tolist(), calls.start.tolist(), strict=True)
    at = {point: i for i, point in enumerate(points)}
    flows = events.flows
    begins = {
        number: at.get((lane, time), -1)
        for number, lane, time, is_start in zip(
            flows.id.tolist(), flows.lane.tolist(), flows.time.tolist(), flows.is_start, strict=True
        )
        if is_start
    }
    for number, lane, time, is_start in zip(
        flows.id.tolist(), flows.lane.tolist(), flows.time.tolist(), flows.is_start, strict=True
    ):
        call = at.get((lane, time), -1)
        if not is_start and call >= 0 and in_backward[call] >= 0:
            found[place[int(in_backward[call])]] = begins.get(number, -1)
    sequence = events.sequence[calls.index]
    is_forward = (sequence >= 0) & (events.forward_thread[calls.index] <= 0)
    order = np.flatnonzero(is_forward)
    order = order[np.lexsort((calls.start[order], sequence[order]))]
    first, last = np.searchsorted, sequence[order]
    for i in np.flatnonzero(found < 0).tolist():
        wanted = int(sequence[roots[i]])
        if wanted < 0:
            continue
        # Several operators see one number; the last before the backward call made its node.
        low, high = first(last, wanted, "left"), first(last, wanted, "right")
        earlier = order[low:high]
        earlier = earlier[calls.start[earlier] < calls.start[roots[i]]]
        if len(earlier):
            found[i] = earlier[-1]
    return found
