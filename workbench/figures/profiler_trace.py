"""The profiler tab's trace: its tables, and what the page needs to draw the timeline."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence

import numpy as np

from workbench.figures.theme import Json, percent, significant
from workbench.profiler_results import TraceMemory, TraceResult

MAX_ROWS = 500  # of one table on the page; the files hold all
MAX_NAME = 240  # characters of a name in a table
TABLE_BYTES = 640_000  # of the tables' names, as JSON
TIMELINE_BYTES = 880_000  # of the timeline, as JSON
NAME_LENGTHS = (160, 96, 64, 40, 24)  # a timeline's names are cut to the first that fits
MEMORY_POINTS = 8_000  # of all devices together
# Colours of what ran. A and B belong to the schemes.
CATEGORIES = (
    ("kernel", "@c"),
    ("memcpy", "@gate"),
    ("memset", "@s6"),
    ("communication", "@s1"),
    ("runtime", "@conv"),
    ("operator", "@d"),
    ("module", "@s2"),
    ("other", "@residual"),
)
COLOURS = dict(CATEGORIES)
WORDS = (
    ("memcpy", "memcpy"),
    ("memset", "memset"),
    ("nccl", "communication"),
    ("communication", "communication"),
    ("runtime", "runtime"),
    ("driver", "runtime"),
    ("kernel", "kernel"),
    ("cpu_op", "operator"),
    ("operator", "operator"),
    ("annotation", "module"),
    ("module", "module"),
    ("python", "module"),
    ("step", "module"),
)
KINDS = {"cpu": "CPU", "cuda": "CUDA", "rocm": "ROCm"}


def category_group(category: str) -> str:
    """Which of CATEGORIES a trace's own word belongs to: "gpu_memcpy" -> "memcpy"."""
    lowered = category.lower()
    return next((group for word, group in WORDS if word in lowered), "other")


def time_text(ns: float) -> str:
    """Nanoseconds in the unit that reads best, three significant digits: "1.23 ms"."""
    if not math.isfinite(ns):
        return "n/a"
    for size, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")):
        if abs(ns) >= size:
            return f"{significant(ns / size)} {unit}"
    return f"{ns:,.0f} ns"


def cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def has_gpu(result: TraceResult) -> bool:
    return result.kind != "cpu" or bool(result.kernels)


def trace_panel(result: TraceResult, view_stage: int = 0, view_block: int = 0) -> Json:
    """Tables to switch between, search and sort; rows of stage `view_stage` are marked, and in it
    those of block `view_block` (both from 1)."""
    gpu = has_gpu(result)
    tables = [
        _operators(result, gpu),
        *([_kernels(result)] if result.kernels else []),
        *([_modules(result, gpu)] if result.modules else []),
        _steps(result),
        *([_gaps(result)] if result.gaps else []),
        *([_owners(result)] if any(m.owners for m in result.memory) else []),
    ]
    return {
        "id": "lab_prof_trace",
        "title": "Trace",
        "badges": [
            {"text": _what(result), "tone": "muted"},
            {"text": result.device or KINDS.get(result.kind, result.kind), "tone": "muted"},
        ],
        "stage": view_stage,
        "block": view_block,
        "tables": tables,
        "colours": COLOURS,
        "sentence": _sentence(result, gpu),
        "notes": [cut(note, MAX_NAME) for note in result.notes],
    }


def _what(result: TraceResult) -> str:
    parts = [
        cut(result.source, 60),
        {"train": "forward and backward"}.get(result.passes, result.passes),
        f"{result.n_events:,} events",
        time_text(result.span_ns),
    ]
    return " · ".join(part for part in parts if part)


def _column(key: str, text: str, kind: str, tip: str, unit: str = "") -> Json:
    return {"key": key, "text": text, "kind": kind, "tip": tip, "unit": unit}


def _table(
    key: str, text: str, columns: list[Json], rows: Sequence[list[object]], n_all: int, sort: str
) -> Json:
    """Rows hold exact values in the columns' order; names are cut where all are too long."""
    length = MAX_NAME
    shown = [list(row) for row in rows[:MAX_ROWS]]
    while length > 24 and _name_bytes(shown, length) > TABLE_BYTES // 5:
        length //= 2
    shown = [[cut(v, length) if isinstance(v, str) else v for v in row] for row in shown]
    table: Json = {"key": key, "text": text, "columns": columns, "rows": shown, "sort": sort}
    if len(shown) < n_all:
        table["note"] = f"The {len(shown):,} largest of {n_all:,}; the export holds all."
    return table


def _name_bytes(rows: Sequence[Sequence[object]], length: int) -> int:
    return _json_bytes([v[:length] for row in rows for v in row if isinstance(v, str)])


def _json_bytes(names: Sequence[str]) -> int:
    """As in the panel: a character beyond ASCII takes six bytes."""
    return len(json.dumps(names, separators=(",", ":")))


def _cost_columns(gpu: bool) -> list[Json]:
    columns = [_column("calls", "calls", "int", "How often it ran")]
    if gpu:
        columns += [
            _column("self_gpu", "self GPU", "ns", "Kernels, copies and fills it launched itself"),
            _column("total_gpu", "total GPU", "ns", "With those of what it called"),
        ]
    return columns + [
        _column("self_cpu", "self CPU", "ns", "Its own time, without what it called"),
        _column("total_cpu", "total CPU", "ns", "With what it called; outermost calls only"),
    ]


def _operators(result: TraceResult, gpu: bool) -> Json:
    total = sum(o.self_gpu_ns if gpu else o.self_cpu_ns for o in result.operators)
    self_words = "Of the self time of all operators" + (", on the GPU" if gpu else "")
    columns = [
        _column("name", "operator", "text", "Name as the profiler gives it"),
        _column("share", "share", "share", self_words),
        *_cost_columns(gpu),
    ]
    rows: list[list[object]] = []
    for o in result.operators:
        own = o.self_gpu_ns if gpu else o.self_cpu_ns
        times = [o.self_gpu_ns, o.total_gpu_ns] if gpu else []
        share = own / total if total else 0.0
        rows.append([o.name, share, o.calls, *times, o.self_cpu_ns, o.total_cpu_ns])
    return _table("operators", "Operators", columns, rows, len(rows), "share")


def _kernels(result: TraceResult) -> Json:
    total = sum(k.total_ns for k in result.kernels)
    columns = [
        _column("name", "kernel", "text", "Name as the profiler gives it"),
        _column("share", "share", "share", "Of the time of all kernels, copies and fills"),
        _column("calls", "calls", "int", "How often it ran"),
        _column("total", "total", "ns", "All calls together"),
        _column("mean", "mean", "ns", "Total over calls"),
        _column("min", "shortest", "ns", "Shortest call"),
        _column("max", "longest", "ns", "Longest call"),
        _column("kind", "kind", "text", "Kernel, copy or fill"),
        _column("operator", "by operator", "text", "That launched it most often"),
        _column("grid", "grid", "text", "Blocks of the longest call"),
        _column("block", "block", "text", "Threads of a block of the longest call"),
        _column("registers", "registers", "int", "Per thread"),
        _column("shared", "shared", "bytes", "Shared memory of a block"),
        _column("occupancy", "occupancy", "number", "As the profiler estimates it", "%"),
    ]
    rows: list[list[object]] = [
        [
            *(k.name, k.total_ns / total if total else 0.0, k.calls, k.total_ns),
            *(k.total_ns / k.calls if k.calls else None, k.min_ns, k.max_ns),
            *(k.kind, k.operator, k.grid, k.block),
            *(None if n < 0 else n for n in (k.registers, k.shared_bytes)),
            k.occupancy if math.isfinite(k.occupancy) else None,
        ]
        for k in result.kernels
    ]
    return _table("kernels", "Kernels", columns, rows, len(rows), "share")


def _modules(result: TraceResult, gpu: bool) -> Json:
    """Rows of the tree, parents first; "levels" and "stages" go along with the rows."""
    rows: list[list[object]] = []
    for m in result.modules:
        times = [m.self_gpu_ns, m.total_gpu_ns] if gpu else []
        parts = m.path.split(".")
        name = ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:]) or m.kind
        rows.append([name, m.kind, m.calls, *times, m.self_cpu_ns, m.total_cpu_ns, m.path])
    columns = [
        _column("name", "module", "text", "Part of the network, under the part that holds it"),
        _column("kind", "class", "text", "Class of the module"),
        *_cost_columns(gpu),
        _column("path", "path", "hidden", "Where it stands in the network"),
    ]
    table = _table("modules", "Modules", columns, rows, len(rows), "")
    n = len(table["rows"])
    if n < len(rows):
        table["note"] = f"The first {n:,} of {len(rows):,} modules; the export holds all."
    table["levels"] = [m.depth for m in result.modules[:n]]
    table["stages"] = [m.stage for m in result.modules[:n]]
    table["blocks"] = [m.block for m in result.modules[:n]]
    return table


def part_names(result: TraceResult) -> list[str]:
    """Parts of any step, in the order of CATEGORIES."""
    found = dict.fromkeys(name for step in result.steps for name in step.parts)
    order = [name for name, _ in CATEGORIES]
    return sorted(found, key=lambda name: (order.index(category_group(name)), name))


def _steps(result: TraceResult) -> Json:
    names = part_names(result)
    columns = [
        _column("name", "step", "text", "Step of the profiler, or the whole trace"),
        _column("duration", "duration", "ns", "Of the whole step"),
        _column("parts", "what the time went to", "stack", "From zero, one scale for all steps"),
        *(
            _column(f"part:{n}", n, "ns", f"Time of the step given to: {n}") | {"bar": False}
            for n in names
        ),
        _column("start", "start", "ns", "From the start of the trace") | {"bar": False},
    ]
    rows: list[list[object]] = [
        [
            *(s.name, s.duration_ns, [s.parts.get(n, 0) for n in names]),
            *(s.parts.get(n, 0) for n in names),
            s.start_ns,
        ]
        for s in result.steps
    ]
    table = _table("steps", "Steps", columns, rows, len(rows), "")
    table["parts"] = [{"text": n, "colour": COLOURS[category_group(n)]} for n in names]
    return table


def _gaps(result: TraceResult) -> Json:
    columns = [
        _column("after", "after", "text", "What ended before the gap"),
        _column("duration", "idle", "ns", "Nothing ran for so long"),
        _column("start", "start", "ns", "From the start of the trace") | {"bar": False},
        _column("before", "before", "text", "What began after the gap"),
    ]
    rows: list[list[object]] = [[g.after, g.duration_ns, g.start_ns, g.before] for g in result.gaps]
    return _table("gaps", "Gaps", columns, rows, len(rows), "duration")


def _owners(result: TraceResult) -> Json:
    columns = [
        _column("name", "operator", "text", "That allocated it"),
        _column("bytes", "held at the peak", "bytes", "Allocated by it and not freed at the peak")
        | {"bar": True},
        _column("module", "module", "text", "Open when it was allocated"),
        _column("device", "device", "text", "Whose memory it is"),
    ]
    rows: list[list[object]] = []
    for memory in result.memory:
        rows += [[o.name, o.n_bytes, o.module, memory.device] for o in memory.owners]
        if memory.unowned_bytes:
            name = "before the trace, or by no operator"
            rows.append([name, memory.unowned_bytes, "", memory.device])
    rows.sort(key=lambda row: -int(str(row[1])))
    return _table("memory", "Peak memory", columns, rows, len(rows), "bytes")


def _sentence(result: TraceResult, gpu: bool) -> str:
    where = "GPU time" if gpu else "CPU time"
    parts = []
    real = [s for s in result.steps if s.duration_ns > 0]
    if len(real) > 1:
        middle = float(np.median([s.duration_ns for s in real]))
        parts.append(f"{len(real)} steps of {time_text(middle)} (median)")
    elif real:
        parts.append(f"{time_text(real[0].duration_ns)} in all")
    total = sum(o.self_gpu_ns if gpu else o.self_cpu_ns for o in result.operators)
    if total:
        first = max(result.operators, key=lambda o: o.self_gpu_ns if gpu else o.self_cpu_ns)
        own = first.self_gpu_ns if gpu else first.self_cpu_ns
        name = cut(first.name, 60)
        parts.append(f"{name} has the most self {where}, {percent(own / total)}")
    span = sum(s.duration_ns for s in real)
    if span and result.idle_ns:
        who = "the GPU" if gpu else "the thread that runs the operators"
        parts.append(
            f"{who} was idle for {time_text(result.idle_ns)}, {percent(result.idle_ns / span)} "
            "of the steps"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if text else "The trace holds no timed operator."


def timeline_panel(
    result: TraceResult, *, perfetto: str = "", download: str = "", tensorboard: str = ""
) -> Json:
    """Events in lanes over one axis of time, memory below it.

    `perfetto` is the address of the embedded viewer, in which "{origin}" stands for the page's own;
    `download` that of the trace file; `tensorboard` a command line. Each may be left out.
    """
    timeline = result.timeline
    memory = [_memory(m, max(1, len(result.memory))) for m in result.memory]
    panel: Json = {
        "id": "lab_prof_timeline",
        "title": "Timeline",
        "badges": [{"text": _what(result), "tone": "muted"}],
        "span_ns": result.span_ns,
        "memory": memory,
        "legend": _legend(timeline.categories),
        "notes": [],
    }
    links = {"perfetto": perfetto, "download": download, "tensorboard": tensorboard}
    panel |= {key: value for key, value in links.items() if value}
    if not timeline.start_ns.size:
        panel["empty"] = {
            "title": "No event can be drawn",
            "text": "The trace holds no event with a start and a duration. Record one with "
            "torch.profiler, or open another file.",
        }
        panel["sentence"] = "The tables may still hold what was counted."
        return panel
    budget = TIMELINE_BYTES - sum(len(m["time"]) + len(m["bytes"]) + 200 for m in memory)
    panel["events"], shortest = _events(result, budget)
    panel["lanes"] = [cut(name, 60) for name in timeline.lanes]
    panel["sentence"] = _reduced(len_of(panel["events"]), timeline.n_all, shortest)
    return panel


def len_of(events: Json) -> int:
    return int(events["n"])


def _reduced(n: int, n_all: int, shortest_ns: int) -> str:
    if n >= n_all:
        return f"All {n:,} events that can be drawn."
    if shortest_ns <= 0:
        return f"{n:,} of {n_all:,} events: the longest ones."
    return f"{n:,} of {n_all:,} events: those under {time_text(shortest_ns)} are left out."


def _events(result: TraceResult, budget: int) -> tuple[Json, int]:
    """Columns as base64 typed arrays, and the shortest duration that is left.

    Where long or strange names would burst the page's budget they are cut; where that is not
    enough the shorter half of the events goes.
    """
    t = result.timeline
    kept = np.arange(t.start_ns.size)
    shortest = t.shortest_ns
    while True:
        used, renamed = np.unique(t.name[kept], return_inverse=True)
        arrays = {
            "start": _packed(t.start_ns[kept], "<f8"),
            "duration": _packed(t.duration_ns[kept], "<f8"),
            "lane": _packed(t.lane[kept], "<u2"),
            "depth": _packed(t.depth[kept], "<u2"),
            "name": _packed(renamed, "<u2" if used.size < 65_536 else "<u4"),
            "category": _packed(t.category[kept], "<u2"),
        }
        room = budget - sum(len(text) for text in arrays.values()) - 4_000
        for length in NAME_LENGTHS:
            names = [cut(event_words(t.names[i]), length) for i in used]
            if _json_bytes(names) <= room:
                groups = [category_group(c) for c in t.categories]
                return {
                    "n": int(kept.size),
                    "names": names,
                    "categories": [cut(c, 40) for c in t.categories],
                    "colours": [COLOURS[g] for g in groups],
                    "wide_names": used.size >= 65_536,
                    **arrays,
                }, shortest
        order = np.argsort(-t.duration_ns[kept], kind="stable")[: max(1, kept.size // 2)]
        kept = np.sort(kept[order])
        shortest = int(t.duration_ns[kept].min())


def event_words(name: str) -> str:
    """Our marks of modules, "module:stages.0|EVSSStage", as a reader wants them."""
    if not name.startswith("module:"):
        return name
    path, _, kind = name.removeprefix("module:").partition("|")
    return f"{path} ({kind})" if path else kind


def _packed(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode()


def _legend(categories: Sequence[str]) -> list[Json]:
    groups = {category_group(c) for c in categories}
    return [{"text": name, "colour": colour} for name, colour in CATEGORIES if name in groups]


def _memory(memory: TraceMemory, n_devices: int) -> Json:
    time, values = thinned(memory.time_ns, memory.n_bytes, MEMORY_POINTS // n_devices)
    return {
        "device": memory.device,
        "n": int(time.size),
        "time": _packed(time, "<f8"),
        "bytes": _packed(values, "<f8"),
        "peak_bytes": int(memory.peak_bytes),
        "peak_ns": int(memory.peak_ns),
    }


def thinned(time: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """At most about `most` of the points `[M]`: the smallest and largest of each stretch stay."""
    if time.size <= most:
        return time, values
    bins = np.array_split(np.arange(time.size), max(1, most // 2))
    ends = [(b[values[b].argmin()], b[values[b].argmax()]) for b in bins if b.size]
    kept = np.unique(np.array(ends).ravel())
    return time[kept], values[kept]
