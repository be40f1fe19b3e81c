"""What is read, what is refused and in which words."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from tests.analyses.traces.builder import BASE_US, launch, mark, op, read, save, timed
from workbench.analyses.traces import read_trace, stream
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken, Progress, result_of

EVENTS = [op("aten::mm", 0, 10_001), *launch(1, 2_000, 5_000, 3_333)]


def test_times_keep_whole_nanoseconds(tmp_path):
    result = read(tmp_path, [op("a", 1, 12_345_679), op("b", 20_000_007, 3)])
    assert {o.name: o.self_cpu_ns for o in result.operators} == {"a": 12_345_679, "b": 3}
    assert result.span_ns == 20_000_009
    assert result.timeline.start_ns.tolist() == [0, 20_000_006]


def test_plain_gzip_and_bare_array_give_the_same(tmp_path):
    plain = read(tmp_path, EVENTS)
    packed = result_of(read_trace(save(tmp_path / "any.name", EVENTS)))
    zipped = result_of(read_trace(save(tmp_path / "t.json.gz", EVENTS)))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    (tmp_path / "bare.json").write_text(json.dumps(events))
    bare = result_of(read_trace(tmp_path / "bare.json"))
    for other in (packed, zipped, bare):
        assert other.operators == plain.operators
        assert [k.total_ns for k in other.kernels] == [k.total_ns for k in plain.kernels]
    assert zipped.source == "t.json.gz" and plain.provenance.device == "GPU 0"


def test_events_may_stand_before_the_header_and_end_with_a_comma(tmp_path):
    text = save(tmp_path / "t", EVENTS).read_text()
    head, _, events = text.partition('"traceEvents"')
    events = events.rstrip()[:-1].rstrip()[:-1]  # less "]}"
    swapped = '{"traceEvents"' + events + ', ], "deviceProperties": [{"id": 0, "name": "H100"}]}'
    (tmp_path / "t").write_text(swapped)
    assert result_of(read_trace(tmp_path / "t")).device == "H100"


@pytest.mark.parametrize("chunk", [7, 64, 1000])
def test_the_buffer_may_cut_anywhere(tmp_path, monkeypatch, chunk):
    whole = read(tmp_path, EVENTS, traceName="näme", baseTimeNanoseconds=123456)
    monkeypatch.setattr(stream, "CHUNK", chunk)
    cut = result_of(read_trace(tmp_path / "trace.json"))
    assert cut.operators == whole.operators and cut.n_events == whole.n_events == 3


BAD = {
    "empty": (b"", "is empty"),
    "blank": (b" \n ", "is empty"),
    "html": (b"<!doctype html><html>", "web page"),
    "binary": (b"\x80\x04\x95\x00\x01", "is not a trace"),
    "zip": (b"PK\x03\x04", "zip archive"),
    "other JSON": (b'{"layers": [1, 2]}', "no .traceEvents. .its keys: layers"),
    "no list": (b'{"traceEvents": {"a": 1}}', "are no list"),
    "numbers": (b"[1, 2, 3]", "not a trace: none of its 3 entries"),
    "no event": (b'{"traceEvents": []}', "has a phase"),
    "only metadata": (b'[{"ph": "M", "pid": 1, "name": "process_name"}]', "without a single timed"),
    "broken": (b'{"traceEvents": [{"ph": oops, "name": "a"}, {"ph": "X"}]}', "no valid JSON in ev"),
    "deep": (b'{"traceEvents": [' + b"[" * 100_000, "too deeply"),
    "digits": (b'{"traceEvents": [{"ph": "X", "ts": ' + b"9" * 5000 + b"}]}", "cannot be read in"),
    "two": (b'{"traceEvents": [{"ph": "X"}]} {"traceEvents": []}', "goes on after the end"),
    "utf16": ("[]".encode("utf-16"), "UTF-16"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_trace_is_refused_in_words(tmp_path, name):
    data, words = BAD[name]
    path = tmp_path / "mine.json"
    path.write_bytes(data)
    with pytest.raises(BadInputError, match=words) as error:
        result_of(read_trace(path))
    assert "mine.json" in str(error.value)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_trace_that_is_cut_off_shows_nothing(tmp_path, part):
    data = save(tmp_path / "t.json", EVENTS * 20).read_bytes()
    (tmp_path / "t.json").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(BadInputError, match=r"cut off: it ends after [\d,]+ bytes"):
        result_of(read_trace(tmp_path / "t.json"))
    packed = gzip.compress(data)
    (tmp_path / "t.gz").write_bytes(packed[: int(len(packed) * part)])
    with pytest.raises(BadInputError, match="cut off: its gzip data|is cut off"):
        result_of(read_trace(tmp_path / "t.gz"))


def test_damaged_gzip_and_a_missing_file(tmp_path):
    data = bytearray(save(tmp_path / "t.gz", EVENTS * 20).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "t.gz").write_bytes(data)
    with pytest.raises(BadInputError, match=r"cannot be read|cut off|valid JSON"):
        result_of(read_trace(tmp_path / "t.gz"))
    with pytest.raises(BadInputError, match="There is no file nothing"):
        result_of(read_trace(tmp_path / "nothing"))


def test_a_bomb_is_refused_as_soon_as_it_is_too_large(tmp_path):
    bomb = b'{"a": "' + b"x" * 60_000_000 + b'"}'
    (tmp_path / "b.gz").write_bytes(gzip.compress(bomb))
    assert (tmp_path / "b.gz").stat().st_size < 100_000
    with pytest.raises(BadInputError, match="more than 5,000,000 bytes"):
        result_of(read_trace(tmp_path / "b.gz", max_bytes=5_000_000))
    with pytest.raises(BadInputError, match="one value of more than 32 MB"):
        result_of(read_trace(tmp_path / "b.gz"))


def test_events_that_cannot_be_right_are_left_out_and_counted(tmp_path):
    good = op("good", 0, 10)
    bad = [
        {**good, "dur": -5},
        {k: v for k, v in good.items() if k != "ts"},
        {k: v for k, v in good.items() if k != "name"},
        {k: v for k, v in good.items() if k != "pid"},
        {**good, "ts": "1234"},
        {**good, "dur": float("nan")},
        {**good, "dur": float("inf")},
        {**good, "ts": 10**300},
        {**good, "dur": 1e30},
        {**good, "dur": 40 * 86_400 * 10**6},
        {**good, "ts": 0},
        {**good, "pid": [1]},
        "no object",
        op("twice", 5, 2, 9),
        op("twice", 5, 2, 9),
    ]
    result = read(tmp_path, [good, good, *bad])
    notes = " ".join(result.notes)
    for words in (
        "1 events with a negative duration", "1 events without a time", "1 events without a name",
        "1 events without a process", "1 events with a time that is text",
        "4 events with a time that is not a number", "1 events longer than thirty days",
        "1 events more than thirty days away", "1 events with a process or thread",
        "1 events not an object", "1 events written twice",
    ):  # fmt: skip
        assert words in notes, (words, notes)
    assert {o.name: o.calls for o in result.operators} == {"good": 2, "twice": 1}
    assert result.n_events == 17


def test_begins_and_ends_make_events(tmp_path):
    def edge(phase, at, name="a", **more):
        return {"ph": phase, "cat": "cpu_op", "pid": 1, "tid": 1, "ts": at, "name": name, **more}

    result = read(
        tmp_path,
        [edge("B", 10), edge("B", 12, "b"), edge("E", 15, "b"), edge("E", 20), edge("E", 30),
         edge("B", 40)],
    )  # fmt: skip
    assert {o.name: (o.self_cpu_ns, o.total_cpu_ns) for o in result.operators} == {
        "a": (7_000, 10_000),
        "b": (3_000, 3_000),
    }
    assert any("end without a begin" in n for n in result.notes)
    assert any("begin without an end" in n for n in result.notes)


def test_half_characters_and_long_names_can_be_written(tmp_path):
    result = read(tmp_path, [op("bad \ud800 name", 0, 5), op("x" * 5_000, 10, 5)])
    for row in result.operators:
        row.name.encode()
        assert len(row.name) <= 2_000


def test_stop_is_heard_while_reading(tmp_path):
    path = save(tmp_path / "t.json", EVENTS * 400)
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        result_of(read_trace(path, token=token))


def test_progress_comes_before_the_result(tmp_path):
    path = save(tmp_path / "t.json", [op("a", 10 * i, 5) for i in range(21_000)])
    items = list(read_trace(path, name="shown", source="profiled here", passes="forward"))
    assert all(isinstance(i, Progress) for i in items[:-1]) and len(items) >= 3
    assert items[-1].source == "profiled here" and items[-1].passes == "forward"


def test_other_programs_traces_are_read_too(tmp_path):
    result = read(tmp_path, [timed("toplevel", "Paint", 0, 100), mark("note", 10, 20)])
    assert result.operators == () and result.kind == "cpu"
    assert any("no operators" in n for n in result.notes)
    assert len(result.timeline.start_ns) == 2 and result.operator_steps_ns.shape == (0, 1)


def test_whole_microseconds_are_said(tmp_path):
    event = {**op("a", 0, 0), "ts": BASE_US, "dur": 7}
    child = {**op("b", 0, 0), "ts": BASE_US + 3, "dur": 5}
    result = read(tmp_path, [event, child])
    assert any("whole microseconds" in n for n in result.notes)
    assert any("Mended: 1 operators" in n for n in result.notes)
    assert np.sum([o.self_cpu_ns for o in result.operators]) == 7_000


@pytest.mark.parametrize("properties", [1, [1], [{"id": [], "name": "x"}], [{"id": 0, "name": 3}]])
def test_strange_device_properties_name_no_device(tmp_path, properties):
    assert read(tmp_path, EVENTS, deviceProperties=properties).device == "GPU 0"
