"""From JSON events to columns: each event is looked at once and then forgotten."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import numpy as np

from workbench.analyses.traces.events import (
    FUSED,
    KINDS,
    MAX_DURATION,
    MAX_TIME,
    Detail,
    Events,
    Flows,
    Kind,
    Marks,
    Number,
    clean_name,
    to_ns,
)
from workbench.errors import BadInputError

N_COLUMNS = 11
WORK = (Kind.KERNEL, Kind.MEMCPY, Kind.MEMSET)
OPERATOR = Kind.OPERATOR
GRID = ("grid", "grid size")
BLOCK = ("block", "workgroup size")
REGISTERS = ("registers per thread", "registers", "vgprs", "VGPRs", "arch vgprs")
SHARED = ("shared memory", "shared memory (bytes)", "lds", "LDS", "lds size")
OCCUPANCY = ("est. achieved occupancy %", "occupancy %")
LAUNCH = GRID + BLOCK + REGISTERS + SHARED + OCCUPANCY


class Recorder:
    """Takes JSON events one after the other and keeps their columns."""

    def __init__(self) -> None:
        self.n_entries = 0
        self.has_phase = False
        self.left_out: Counter[str] = Counter()  # reason in words -> events
        self.names: dict[str, int] = {}
        self.categories: dict[str, int] = {}
        self.lanes: dict[tuple[Any, Any], int] = {}
        self.details: dict[Detail, int] = {}
        self.thread_names: dict[tuple[Any, Any], str] = {}
        self.process_labels: dict[Any, str] = {}
        self.is_whole_us = True
        self._kinds: dict[str, int] = {}
        self._launches: dict[str, int] = {}
        self._values = array("q")  # N_COLUMNS of each event
        self._timed_values = self._values.extend
        self._marks = [array("q") for _ in range(7)]
        self._flows = [array("q") for _ in range(4)]
        self._begins: list[tuple[int, int, int, dict[str, Any]]] = []  # lane, ns, 0 B or 1 E, event

    def add(self, event: Any) -> None:
        self.n_entries += 1
        if type(event) is not dict:
            self.left_out["not an object"] += 1
            return
        phase = event.get("ph")
        if phase is not None:
            self.has_phase = True
        if phase == "X":
            self._complete(event, event.get("ts"), event.get("dur"))
        elif phase in ("s", "f"):
            if event.get("cat") == "fwdbwd":
                self._flow(event, phase == "s")
        elif phase == "i":
            if event.get("name") == "[memory]":
                self._mark(event)
        elif phase == "M":
            self._metadata(event)
        elif phase in ("B", "E"):
            self._begin_or_end(event, phase == "E")

    def _lane(self, event: dict[str, Any]) -> int | None:
        key = (event.get("pid"), event.get("tid", 0))
        if key[0] is None:
            self.left_out["without a process"] += 1
            return None
        try:
            return self.lanes.setdefault(key, len(self.lanes))
        except TypeError:
            self.left_out["with a process or thread that is no name"] += 1
            return None

    def _complete(self, event: dict[str, Any], ts: Any, dur: Any) -> None:
        start, duration = to_ns(ts), to_ns(dur)
        if start is None or duration is None:
            self.left_out[_time_fault(ts, dur)] += 1
            return
        if self.is_whole_us and (type(ts) is not int or type(dur) is not int):
            self.is_whole_us = start % 1000 == 0 and duration % 1000 == 0
        self._timed(event, start, duration)

    def _timed(self, event: dict[str, Any], start: int, duration: int) -> None:
        if not 0 <= duration <= MAX_DURATION:
            word = "with a negative duration" if duration < 0 else "longer than thirty days"
            self.left_out[word] += 1
            return
        name = event.get("name")
        if type(name) is not str:
            self.left_out["without a name"] += 1
            return
        lane = self._lane(event)
        if lane is None:
            return
        category = event.get("cat")
        if type(category) is not str:
            category = ""
        if name.startswith(FUSED):
            category = "operator"
        names, categories = self.names, self.categories
        kind = self._kinds.get(category)
        if kind is None:
            kind = self._kinds[category] = KINDS.get(category.lower(), Kind.OTHER)
        args = event.get("args")
        correlation = external = sequence = forward = device = detail = -1
        if type(args) is dict:
            get = args.get
            if (found := get("correlation")) is not None:
                correlation = _id(found)
            if (found := get("External id", get("external id"))) is not None:
                external = _id(found)
            if kind == OPERATOR:
                sequence = _id(get("Sequence number"))
                forward = _id(get("Fwd thread id"))
            elif kind in WORK:
                device = _id(get("device", event.get("pid")))
                detail = self._detail(args)
        self._timed_values(
            (
                start,
                duration,
                names.setdefault(name, len(names)),
                categories.setdefault(category, len(categories)),
                lane,
                correlation,
                external,
                sequence,
                forward,
                device,
                detail,
            )
        )

    def _detail(self, args: dict[str, Any]) -> int:
        """Launches are few, kernels many: what was seen as it is written is not read again."""
        try:
            written = str([args.get(key) for key in LAUNCH])
        except RecursionError:  # lists in lists in lists
            written, args = "", {}
        known = self._launches.get(written)
        if known is None:
            detail = _detail(args)
            known = self._launches[written] = self.details.setdefault(detail, len(self.details))
        return known

    def _begin_or_end(self, event: dict[str, Any], is_end: bool) -> None:
        time, lane = to_ns(event.get("ts")), self._lane(event)
        if time is None:
            self.left_out[_time_fault(event.get("ts"), 0)] += 1
        elif lane is not None:
            self._begins.append((lane, time, int(is_end), event))

    def _close_pairs(self) -> None:
        """Make whole events of begins and ends, thread by thread."""
        open_events: dict[int, list[tuple[int, dict[str, Any]]]] = {}
        for lane, time, is_end, event in sorted(self._begins, key=lambda b: (b[0], b[1])):
            stack = open_events.setdefault(lane, [])
            if not is_end:
                stack.append((time, event))
            elif stack:
                start, begun = stack.pop()
                self.is_whole_us &= start % 1000 == 0 and time % 1000 == 0
                self._timed({**event, **begun}, start, time - start)
            else:
                self.left_out["that end without a begin"] += 1
        rest = sum(len(stack) for stack in open_events.values())
        if rest:
            self.left_out["that begin without an end"] += rest
        self._begins.clear()

    def _mark(self, event: dict[str, Any]) -> None:
        args = event.get("args")
        time, lane = to_ns(event.get("ts")), self._lane(event)
        if time is None or lane is None or type(args) is not dict:
            self.left_out["marks of memory that cannot be read"] += 1
            return
        n_bytes, address = args.get("Bytes"), args.get("Addr")
        if type(n_bytes) is not int or abs(n_bytes) > MAX_TIME or type(address) is not int:
            self.left_out["marks of memory that cannot be read"] += 1
            return
        total = args.get("Total Allocated", -1)
        row = (
            time,
            n_bytes,
            address & (2**63 - 1),
            _id(total),
            _id(args.get("Device Type", 0)),
            _id(args.get("Device Id", -1)),
            lane,
        )
        for column, value in zip(self._marks, row, strict=True):
            column.append(value)

    def _flow(self, event: dict[str, Any], is_start: bool) -> None:
        time, lane, number = to_ns(event.get("ts")), self._lane(event), _id(event.get("id"))
        if time is not None and lane is not None and number >= 0:
            for column, value in zip(self._flows, (number, time, lane, is_start), strict=True):
                column.append(value)

    def _metadata(self, event: dict[str, Any]) -> None:
        args, lane = event.get("args"), self._lane(event)
        if type(args) is not dict or lane is None:
            return
        key = (event.get("pid"), event.get("tid", 0))
        if event.get("name") == "thread_name" and type(args.get("name")) is str:
            self.thread_names[key] = clean_name(args["name"]).strip()
        elif event.get("name") == "process_labels" and type(args.get("labels")) is str:
            self.process_labels[key[0]] = clean_name(args["labels"]).strip()

    def events(self) -> Events:
        """The columns, sorted; the recorder is used up."""
        self._close_pairs()
        columns = list(np.array(self._values, dtype=np.int64).reshape(-1, N_COLUMNS).T)
        start, duration, _, category, lane = columns[:5]
        if float(duration.astype(float).sum()) > MAX_TIME:
            raise BadInputError(
                "The durations in this trace add up to more than 146 years, so its times are not "
                "microseconds. Record it again with torch.profiler."
            )
        keep = self._is_near(start) & ~self._is_twice(columns)
        kinds = np.array(
            [KINDS.get(c.lower(), Kind.OTHER) for c in self.categories] or [Kind.OTHER]
        )
        order = np.flatnonzero(keep)
        order = order[np.lexsort((-duration[order], start[order], lane[order]))]
        small = [c[order] if i < 2 or 5 <= i < 8 else c[order].astype(np.int32)
                 for i, c in enumerate(columns)]  # fmt: skip
        marks = [np.array(c, dtype=np.int64) for c in self._marks]
        by_time = np.argsort(marks[0], kind="stable")
        flows = [np.array(c, dtype=np.int64) for c in self._flows]
        return Events(
            start=small[0],
            duration=small[1],
            name=small[2],
            kind=kinds[category[order]].astype(np.int8),
            category=small[3],
            lane=small[4],
            correlation=small[5],
            external=small[6],
            sequence=small[7],
            forward_thread=small[8],
            device=small[9],
            detail=small[10],
            names=tuple(clean_name(n) for n in self.names),
            categories=tuple(clean_name(c) for c in self.categories),
            lanes=tuple(self.lanes),
            details=tuple(self.details),
            thread_names=self.thread_names,
            process_labels=self.process_labels,
            marks=Marks(*(c[by_time] for c in marks)),
            flows=Flows(flows[0], flows[1], flows[2], flows[3].astype(bool)),
            is_whole_us=self.is_whole_us,
        )

    def _is_near(self, start: np.ndarray) -> np.ndarray:
        if not len(start):
            return np.ones(0, dtype=bool)
        is_near = np.abs(start - int(np.median(start))) <= MAX_DURATION
        if not is_near.all():
            self.left_out["more than thirty days away from the others"] += int((~is_near).sum())
        return is_near

    def _is_twice(self, columns: list[np.ndarray]) -> np.ndarray:
        """Equal in all that is kept, ids included: written twice. Without an id nobody knows."""
        is_twice = np.zeros(len(columns[0]), dtype=bool)
        with_id = np.flatnonzero((columns[5] >= 0) | (columns[6] >= 0))
        keys = [columns[i][with_id] for i in (6, 5, 4, 3, 2, 1, 0)]
        order = np.lexsort(keys)
        is_same = np.ones(max(len(order) - 1, 0), dtype=bool)
        for key in keys:
            is_same &= np.diff(key[order]) == 0
        is_twice[with_id[order[1:][is_same]]] = True
        if is_same.any():
            self.left_out["written twice"] += int(is_same.sum())
        return is_twice


def _id(value: Any) -> int:
    return value if type(value) is int and 0 <= value < MAX_TIME else -1


def _time_fault(ts: Any, dur: Any) -> str:
    if ts is None or dur is None:
        return "without a time or duration"
    if type(ts) in (int, Number) and type(dur) in (int, Number):
        return "with a time that is not a number or out of all bounds"
    return "with a time that is text or something else"


def _detail(args: dict[str, Any]) -> Detail:
    def number(keys: tuple[str, ...]) -> float:
        value = next((args[key] for key in keys if key in args), None)
        if not isinstance(value, int | Number):
            return -1
        try:
            found = float(value)
        except OverflowError:
            return -1
        return found if np.isfinite(found) and abs(found) < 2**53 else -1

    occupancy = number(OCCUPANCY)
    return Detail(
        _dims(next((args[key] for key in GRID if key in args), None)),
        _dims(next((args[key] for key in BLOCK if key in args), None)),
        int(number(REGISTERS)),
        int(number(SHARED)),
        occupancy if occupancy >= 0 else float("nan"),
    )


def _dims(value: Any) -> str:
    if isinstance(value, str):
        value = value.strip("[]() ").split(",")
    if not isinstance(value, list) or not 1 <= len(value) <= 3:
        return ""
    parts = [str(v).strip() for v in value if isinstance(v, int | str)]
    is_plain = len(parts) == len(value) and all(p.isdecimal() and len(p) < 12 for p in parts)
    return "x".join(parts) if is_plain else ""
