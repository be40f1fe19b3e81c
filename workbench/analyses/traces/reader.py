"""Read a trace of torch.profiler: events as a stream, then the tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.analyses.traces.calls import Calls
from workbench.analyses.traces.events import Events, Kind, clean_name
from workbench.analyses.traces.memory import memory_of
from workbench.analyses.traces.modules import ModuleTree
from workbench.analyses.traces.recorder import Recorder
from workbench.analyses.traces.steps import gaps_of, step_index, steps_of
from workbench.analyses.traces.stream import AGAIN, SPACE, JsonStream
from workbench.analyses.traces.tables import kernel_rows, operator_rows
from workbench.analyses.traces.timeline import timeline_of
from workbench.errors import BadInputError
from workbench.profiler_results import TraceResult
from workbench.progress import CancelToken, Progress
from workbench.results import UNKNOWN, Provenance

HEADER = ("displayTimeUnit", "deviceProperties", "traceName", "baseTimeNanoseconds")
EVERY = 20_000  # events between two looks at the clock
DEFINITION = (
    "Times of a torch.profiler trace, in whole nanoseconds. An operator's self time is its own "
    "without the operators it calls; its GPU time is that of the kernels, copies and fills it "
    "launches."
)


def read_trace(
    path: Path,
    *,
    name: str = "",
    provenance: Provenance | None = None,
    source: str = "",
    passes: str = "",
    max_bytes: int | None = None,
    token: CancelToken | None = None,
) -> Iterator[Progress | TraceResult]:
    """Yield progress and at last the tables of one trace, JSON or gzip.

    `name` is what messages and the result call the file (default: its own name), `max_bytes` the
    most JSON text that is read, unpacked. Raises BadInputError for what is no whole trace.
    """
    token = token or CancelToken()
    name = name or path.name
    started = time.perf_counter()
    if not path.is_file():
        raise BadInputError(f"There is no file {name}. Give a trace as .json or .json.gz.")
    recorder, header = Recorder(), dict[str, Any]()
    with JsonStream(path, name, max_bytes, token) as stream:
        yield from _read(stream, recorder, header)
        megabytes = stream.n_bytes / 1e6
    if not recorder.has_phase:
        raise BadInputError(
            f"{name} is JSON but not a trace: none of its {recorder.n_entries:,} entries has a "
            f'phase ("ph"). {AGAIN}'
        )
    events = recorder.events()
    if not (events.kind != Kind.SPAN).any():
        raise BadInputError(f"{name} is a trace without a single timed event. {AGAIN}")
    words = f"tables of {len(events.start):,} events"
    yield Progress(1, 3, words)
    token.check()
    result = _tables(events, recorder, header, source or name, token)
    seconds = time.perf_counter() - started
    if provenance is None:
        provenance = brought(result.device)
    if not provenance.seconds:
        provenance = replace(provenance, seconds=seconds)
    notes = (*_notes(recorder, events), *result.notes)
    yield Progress(3, 3, f"{megabytes:.0f} MB read")
    yield replace(result, provenance=provenance, passes=passes or result.passes, notes=notes)


def brought(device: str) -> Provenance:
    """Where the numbers of a brought trace come from: nothing but its device is known."""
    return replace(UNKNOWN, definition=DEFINITION, device=device)


def _read(stream: JsonStream, recorder: Recorder, header: dict[str, Any]) -> Iterator[Progress]:
    first = stream.peek()
    if first == "[":
        yield from _read_events(stream, recorder)
    elif first == "{":
        keys = []
        for key in stream.pairs():
            keys.append(str(key)[:40])
            if key != "traceEvents":
                value = stream.value(f"under {key[:40]!r}")
                if key in HEADER:
                    header[key] = value
            elif stream.peek() == "[":
                yield from _read_events(stream, recorder)
            else:
                raise stream.fault(f'is not a trace: its "traceEvents" are no list. {AGAIN}')
        if "traceEvents" not in keys:
            shown = ", ".join(keys[:6]) or "none"
            raise stream.fault(
                f'is JSON but not a trace: it has no "traceEvents" (its keys: {shown}). {AGAIN}'
            )
    elif not first:
        raise stream.fault(f"is empty. {AGAIN}")
    elif first == "<":
        raise stream.fault(f"is a web page or XML, not a trace. {AGAIN}")
    else:
        raise stream.fault(f"is not a trace: JSON in UTF-8 was expected, plain or gzip. {AGAIN}")
    if stream.peek(SPACE):
        raise stream.fault(
            "goes on after the end of its JSON: perhaps several traces in one file. Bring one."
        )


def _read_events(stream: JsonStream, recorder: Recorder) -> Iterator[Progress]:
    add: Callable[[Any], None] = recorder.add
    for n, event in enumerate(stream.items(), 1):
        add(event)
        if n % EVERY == 0:
            yield Progress(stream.done_bytes, stream.file_bytes, f"reading, {n:,} events")


def _tables(
    events: Events, recorder: Recorder, header: dict[str, Any], source: str, token: CancelToken
) -> TraceResult:
    drawn = events.kind != Kind.SPAN
    zero = int(events.start[drawn].min())
    span = int(events.end[drawn].max()) - zero
    calls = Calls(events)
    token.check()
    tree = ModuleTree(events, calls)
    token.check()
    steps, windows, step_notes = steps_of(events, calls, zero, span)
    index = step_index(windows)
    operators, operator_steps, operator_notes = operator_rows(events, calls, index, len(steps))
    token.check()
    modules, module_steps, module_notes = tree.rows(index, len(steps))
    gaps, idle = gaps_of(events, calls, windows, zero)
    token.check()
    memory, memory_notes = memory_of(events, calls, tree, zero)
    timeline, timeline_notes = timeline_of(events, zero)
    return TraceResult(
        provenance=brought(""),
        source=source,
        device=_device(events, header),
        kind=_kind(events, header),
        passes="train" if tree.has_backward else "",
        span_ns=span,
        n_events=recorder.n_entries,
        operators=operators,
        kernels=kernel_rows(events, calls),
        modules=modules,
        steps=steps,
        gaps=gaps,
        idle_ns=idle,
        memory=memory,
        timeline=timeline,
        operator_steps_ns=operator_steps,
        module_steps_ns=module_steps,
        notes=(*step_notes, *operator_notes, *module_notes, *memory_notes, *timeline_notes),
    )


def _gpu_names(events: Events, header: dict[str, Any]) -> dict[int, str]:
    """Names of the GPUs that ran something."""
    known = {}
    properties = header.get("deviceProperties")
    for entry in properties if isinstance(properties, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            continue
        if isinstance(entry.get("name"), str):
            known[entry["id"]] = clean_name(entry["name"])[:80]
    used = np.unique(events.device[events.of(Kind.KERNEL, Kind.MEMCPY, Kind.MEMSET)])
    return {int(d): known.get(int(d), f"GPU {d}") for d in used}


def _device(events: Events, header: dict[str, Any]) -> str:
    names = _gpu_names(events, header)
    if not names:
        return "CPU"
    return ", ".join(dict.fromkeys(names.values()))


def _kind(events: Events, header: dict[str, Any]) -> str:
    gpus = _gpu_names(events, header)
    runtime = {events.names[i] for i in np.unique(events.name[events.of(Kind.RUNTIME)])}
    text = " ".join(gpus.values()).lower()
    if any(n.startswith("hip") for n in runtime) or "amd" in text or "gfx" in text:
        return "rocm"
    return "cuda" if gpus else "cpu"


def _notes(recorder: Recorder, events: Events) -> tuple[str, ...]:
    notes = [f"Left out: {n:,} events {why}." for why, n in sorted(recorder.left_out.items())]
    if events.is_whole_us:
        notes.append("This trace gives its times in whole microseconds.")
    return tuple(notes)
