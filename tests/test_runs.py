"""The run store: what goes in comes out, from many processes, after kills and damage."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workbench import export, runs
from workbench.errors import BadInputError, NotAvailableError
from workbench.profiler_results import (
    KernelRow,
    LaunchGap,
    MemoryOwner,
    ModuleRow,
    OperatorRow,
    StepRow,
    SweepFit,
    SweepPoint,
    SweepResult,
    Timeline,
    TraceMemory,
    TraceResult,
)
from workbench.results import PredictionResult, Provenance
from workbench.runs import Run, RunStore, default_path

ROOT = Path(__file__).parents[1]
MB = 2**20
PROVENANCE = Provenance(
    model="tiny",
    weights="random, seed 0",
    weights_sha256="0" * 64,
    is_random=True,
    trained_scan=None,
    scan="es2d:step=2",
    image="",
    image_sha256="",
    crop=(0, 0, 0, 0),
    input_size=(64, 64),
    definition="a test",
    device="CPU, 2 threads",
    versions={"torch": "2.14"},
)


def sweep(seed: int = 0, *, repeats: int = 6) -> SweepResult:
    """Two lines of three points each; other seeds give other times."""
    rng = np.random.default_rng(seed)
    points = []
    for series in ("es2d:step=2", "ss2d"):
        for size in (64, 96, 128):
            samples = rng.gamma(40, size / 40, repeats)
            p20, p50, p80 = map(float, np.percentile(samples, (20, 50, 80)))
            points.append(
                SweepPoint(
                    series=series,
                    x=float(size),
                    label=str(size),
                    model="tiny",
                    scan=series,
                    size=size,
                    batch=1,
                    dtype="float32",
                    backend="cpu",
                    status="",
                    samples_ms=samples,
                    p20_ms=p20,
                    p50_ms=p50,
                    p80_ms=p80,
                    images_per_second=1e3 / p50,
                    peak_bytes=float("nan"),
                    error=1e-7,
                    tokens=size * size,
                    depth=size,
                )
            )
    fit = SweepFit(series="ss2d", slope=1.0, low=0.9, high=1.1, n_points=3)
    return SweepResult(
        provenance=PROVENANCE,
        subject="model",
        axis="size",
        axis_label="input side, px",
        is_numeric=True,
        passes="forward",
        series=("es2d:step=2", "ss2d"),
        points=tuple(points),
        fits=(fit,),
        environment={"threads": "2"},
        clock="wall clock",
    )


def trace(seed: int = 0, n_events: int = 4) -> TraceResult:
    rng = np.random.default_rng(seed)
    start = np.arange(n_events, dtype=np.int64) * 1000
    index = np.zeros(n_events, np.int32)
    return TraceResult(
        provenance=replace(PROVENANCE, model="", scan="", device="NVIDIA A100"),
        source="resnet.json.gz",
        device="NVIDIA A100",
        kind="cuda",
        passes="train",
        span_ns=n_events * 1000,
        n_events=n_events,
        operators=(
            OperatorRow(
                name="aten::mm",
                calls=2,
                self_cpu_ns=10,
                total_cpu_ns=10,
                self_gpu_ns=5,
                total_gpu_ns=5,
            ),
        ),
        kernels=(
            KernelRow(
                name="gemm",
                kind="kernel",
                calls=2,
                total_ns=10,
                min_ns=4,
                max_ns=6,
                operator="aten::mm",
                grid="1x1x1",
                block="32x1x1",
                registers=32,
                shared_bytes=0,
                occupancy=float("nan"),
            ),
        ),
        modules=(
            ModuleRow(
                path="",
                kind="EfficientVMamba",
                depth=0,
                stage=0,
                block=0,
                calls=2,
                self_cpu_ns=1,
                total_cpu_ns=20,
                self_gpu_ns=0,
                total_gpu_ns=10,
            ),
        ),
        steps=tuple(
            StepRow(name=f"step#{k}", start_ns=k, duration_ns=2000, parts={"kernel": 2000})
            for k in range(2)
        ),
        gaps=(LaunchGap(start_ns=1, duration_ns=2, after="gemm", before="gemm"),),
        idle_ns=2,
        memory=(
            TraceMemory(
                device="GPU 0",
                time_ns=start,
                n_bytes=start,
                peak_bytes=3000,
                peak_ns=3000,
                owners=(MemoryOwner(name="aten::mm", module="", n_bytes=3000),),
                unowned_bytes=0,
            ),
        ),
        timeline=Timeline(
            lanes=("GPU 0, stream 7",),
            names=("gemm",),
            categories=("kernel",),
            start_ns=start,
            duration_ns=rng.integers(1, 999, n_events),
            lane=index,
            depth=index,
            name=index,
            category=index,
            n_all=n_events,
            shortest_ns=0,
        ),
        operator_steps_ns=rng.integers(1, 99, (1, 2)),
        module_steps_ns=rng.integers(1, 99, (1, 2)),
        notes=("a note",),
        file="token",
    )


def assert_same(left: Any, right: Any) -> None:
    """Equal in every field, arrays and nan included."""
    assert type(left) is type(right)
    if is_dataclass(left):
        for field in fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name))
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)
    elif isinstance(left, tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right or (left != left and right != right)


def child(code: str, *args: object, **options: Any) -> subprocess.Popen[str]:
    """A fresh Python that has this module's names."""
    lines = f"import os, sys; from tests.test_runs import *; args = sys.argv[1:]\n{code}"
    return subprocess.Popen(
        [sys.executable, "-c", lines, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "runs.sqlite"


@pytest.fixture
def store(path: Path) -> RunStore:
    return RunStore(path, 64 * MB)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the time that the store sees."""

    class Clock(runs.datetime):
        moment = "2026-01-01T00:00:00+00:00"

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return runs.datetime.fromisoformat(cls.moment)

    def set_moment(text: str) -> None:
        Clock.moment = text

    with monkeypatch.context() as patch:
        patch.setattr(runs, "datetime", Clock)
        yield set_moment


# Keeping and finding


@pytest.mark.parametrize("make", [sweep, trace])
def test_a_run_comes_back_as_it_was(path: Path, make: Callable[[], Any]) -> None:
    result = make()
    run = RunStore(path, 64 * MB).add(result, "baseline")
    again = RunStore(path, 64 * MB)
    expected = replace(result, file="") if isinstance(result, TraceResult) else result
    assert_same(again.result(run.id), expected)
    assert again.get("baseline") == run == again.list()[0]
    assert len(run.id) == 12 and int(run.id, 16) >= 0
    assert run.n_bytes == len(export.pack({run.kind: expected}))


def test_what_a_run_says_of_itself(store: RunStore) -> None:
    a, b = store.add(sweep()), store.add(trace(), "brought")
    assert (a.kind, b.kind) == ("sweep", "trace")
    assert (a.device, b.device) == ("CPU, 2 threads", "NVIDIA A100")
    assert a.title == (
        "tiny, whole network, forward, by input side, px: 64 to 128, es2d:step=2 against ss2d"
    )
    assert b.title == "resnet.json.gz, forward and backward, 2 steps, 4 events"
    assert runs._title(replace(sweep(), is_final=False)).endswith(", stopped")


def test_newest_first_search_and_kind(store: RunStore, clock: Callable[[str], None]) -> None:
    clock("2026-01-02T00:00:00+00:00")
    old = store.add(sweep(1), "Baseline")
    clock("2026-01-03T00:00:00+00:00")
    new = store.add(sweep(2))
    clock("2026-01-01T00:00:00+00:00")
    oldest = store.add(trace(3))
    assert [r.id for r in store.list()] == [new.id, old.id, oldest.id]
    assert store.list("BASEline ss2d") == (old,)
    assert store.list("a100", kind="trace") == (oldest,)
    assert store.list("a100", kind="sweep") == ()
    with pytest.raises(BadInputError, match="sweep, trace"):
        store.list(kind="profile")


def test_get_by_id_prefix_name_and_near_names(store: RunStore) -> None:
    run = store.add(sweep(1), "Baseline")
    assert store.get(run.id) == store.get(run.id[:4]) == store.get(run.id.upper()) == run
    assert store.get("Baseline") == store.get(" baseline ") == run
    with pytest.raises(BadInputError, match="Near it: Baseline"):
        store.get("basline")
    for unknown in ("", "zzz", run.id[:3], "%", "' OR 1=1 --", "x" * 10_000):
        with pytest.raises(BadInputError, match="no run") as caught:
            store.get(unknown)
        assert len(str(caught.value)) < 300
    empty = RunStore(store.path.with_name("empty.sqlite"), MB)
    with pytest.raises(BadInputError, match="No run is stored yet"):
        empty.get("baseline")


def test_a_prefix_of_two_runs_names_both(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = iter(["abcd00000001", "abcd00000002"])
    monkeypatch.setattr(runs, "_free_id", lambda db, digest: next(ids))
    store.add(sweep(1)), store.add(sweep(2), "second")
    with pytest.raises(BadInputError, match="abcd00000001, abcd00000002 second"):
        store.get("abcd")


def test_results_that_agree_in_twelve_digits_stay_apart(store: RunStore) -> None:
    first = store.add(sweep(1))
    db = sqlite3.connect(store.path)
    taken = runs._free_id(db, first.id + "0" * 52)
    db.close()
    assert taken == first.id[1:] + "0"


def test_names(store: RunStore) -> None:
    one, two = store.add(sweep(1), " base  line "), store.add(sweep(2))
    assert one.name == "base line"
    assert store.rename(two.id, "cafe\u0301").name == "caf\u00e9"  # one form of the letter
    assert store.get("cafe\u0301").id == two.id
    with pytest.raises(BadInputError, match="Another run"):
        store.rename(two.id, "base line")
    assert store.rename(one.id, "base line").name == "base line"
    for bad in ("x" * 81, "a\x07b", "a\u202eb", "0123456789ab"):
        with pytest.raises(BadInputError, match="name"):
            store.rename(one.id, bad)
    assert store.rename(one.id, "").name == "" == store.get(one.id).name


def test_a_taken_name_gets_a_number(store: RunStore) -> None:
    names = [store.add(sweep(k), "x" * 80 if k > 2 else "base").name for k in range(5)]
    assert names[:3] == ["base", "base 2", "base 3"]
    assert names[3] != names[4] and all(len(name) <= 80 for name in names)


def test_a_result_that_is_kept_already(store: RunStore) -> None:
    one = store.add(sweep(1))
    assert store.add(sweep(1)) == one
    assert store.add(sweep(1), "now").name == "now"
    assert store.add(sweep(1)).name == "now"
    assert len(store.list()) == 1


def test_delete_gives_the_space_back(store: RunStore) -> None:
    runs_ = [store.add(trace(k, 40_000), f"t{k}") for k in range(3)]
    before = store.path.stat().st_size
    assert store.delete("t1").id == runs_[1].id
    assert store.path.stat().st_size < before - runs_[1].n_bytes / 2
    assert {r.name for r in store.list()} == {"t0", "t2"}
    with pytest.raises(BadInputError):
        store.result("t1")


def test_a_result_that_could_not_be_read_back_is_refused(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MAX_MEMBERS", 5)
    with pytest.raises(BadInputError, match="cannot be stored"):
        store.add(sweep())
    assert store.list() == ()


# Quota


def test_the_oldest_unnamed_runs_make_room(path: Path) -> None:
    size = len(export.pack({"trace": replace(trace(0, 20_000), file="")}))
    store = RunStore(path, int(3.5 * size))
    named = store.add(trace(0, 20_000), "keep")
    first, second = store.add(trace(1, 20_000)), store.add(trace(2, 20_000))
    assert store.notes == ()
    third = store.add(trace(3, 20_000))
    assert {r.id for r in store.list()} == {named.id, second.id, third.id}
    assert first.title in store.notes[-1] and "Name the runs" in store.notes[-1]
    store.rename(second.id, "b"), store.rename(third.id, "c")
    with pytest.raises(BadInputError, match="runs with a name fill"):
        store.add(trace(4, 20_000))
    assert {r.id for r in store.list()} == {named.id, second.id, third.id}
    with pytest.raises(BadInputError, match="larger than the whole store"):
        store.add(trace(5, 90_000))
    assert path.stat().st_size < 5 * size


# Export and import


@pytest.mark.parametrize("make", [sweep, trace])
def test_export_and_import(store: RunStore, tmp_path: Path, make: Callable[[], Any]) -> None:
    run = store.add(make(), "mine")
    file = store.export(run.id, tmp_path / "out" / "run.zip")
    assert [p.name for p in file.parent.iterdir()] == ["run.zip"]
    assert export.load_results(file).results.keys() == {run.kind}
    assert store.import_file(file) == run
    other = RunStore(tmp_path / "other.sqlite", 64 * MB)
    there = other.import_file(file)
    assert there == run
    assert_same(other.result("mine"), store.result("mine"))
    assert other.export_bytes("mine") == file.read_bytes()


def test_import_keeps_local_names(store: RunStore) -> None:
    run = store.add(sweep(1), "theirs")
    data = store.export_bytes(run.id)
    store.rename(run.id, "ours")
    assert store.import_bytes(data).name == "ours"
    store.rename(run.id, "")
    assert store.import_bytes(data).name == "theirs"


def test_import_does_not_trust_the_time(store: RunStore) -> None:
    def described(**about: Any) -> bytes:
        return export.pack({"sweep": sweep()}, extra={"run": about})

    future = store.import_bytes(described(created="9999-01-01T00:00:00+00:00"))
    assert future.created < "2100"
    for damaged in ({"created": "soon"}, {"created": 5}, {"name": None}, {"name": "a\nb\x00"}):
        with pytest.raises(BadInputError):
            store.import_bytes(described(**damaged))
    with pytest.raises(BadInputError):
        store.import_bytes(export.pack({"sweep": sweep()}, extra={"run": "words"}))


def _changed(result: Any, **values: Any) -> bytes:
    return export.pack({"r": replace(result, **values)})


def _point(**values: Any) -> bytes:
    result = sweep()
    return _changed(result, points=(replace(result.points[0], **values), *result.points[1:]))


def _timeline(**values: Any) -> bytes:
    return _changed(trace(), timeline=replace(trace().timeline, **values))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "no zip": lambda: b"\x80\x04cos\nsystem\n",
    "half a zip": lambda: export.pack({"sweep": sweep()})[:2000],
    "no run": lambda: export.pack({}),
    "two runs": lambda: export.pack({"a": sweep(1), "b": sweep(2)}),
    "another result": lambda: export.pack(
        {
            "prediction": PredictionResult(
                provenance=PROVENANCE,
                classes=("a",),
                probabilities=np.ones(1, np.float32),
                logits=np.ones(1, np.float32),
            )
        }
    ),
    "text for a number": lambda: _point(size="large"),
    "times that are a table": lambda: _point(samples_ms=np.ones((2, 2))),
    "times that are nan": lambda: _point(samples_ms=np.full(4, np.nan)),
    "negative times": lambda: _point(samples_ms=-np.ones(4)),
    "whole times": lambda: _point(samples_ms=np.ones(4, np.int64)),
    "measured without times": lambda: _point(samples_ms=np.zeros(0)),
    "median nan": lambda: _point(p50_ms=float("nan")),
    "a point of no line": lambda: _point(series="other"),
    "fewer operators": lambda: _changed(trace(), operators=()),
    "a step more": lambda: _changed(trace(), steps=trace().steps * 2),
    "fractions": lambda: _changed(trace(), module_steps_ns=np.ones((1, 2))),
    "memory": lambda: _changed(
        trace(), memory=(replace(trace().memory[0], n_bytes=np.zeros(9, np.int64)),)
    ),
    "timeline too short": lambda: _timeline(lane=np.zeros(3, np.int32)),
    "timeline table": lambda: _timeline(start_ns=np.zeros((2, 2), np.int64)),
    "unknown lane": lambda: _timeline(lane=np.full(4, 1, np.int32)),
    "negative name": lambda: _timeline(name=np.full(4, -1, np.int32)),
    "no category": lambda: _timeline(categories=()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused(store: RunStore, tmp_path: Path, name: str) -> None:
    file = tmp_path / "run.zip"
    file.write_bytes(HOSTILE[name]())
    with pytest.raises(BadInputError):
        store.import_file(file)
    assert store.list() == ()


def test_the_good_twins_of_the_hostile_files_are_taken(store: RunStore) -> None:
    for data in (_point(), _timeline(), _changed(trace())):
        store.import_bytes(data)
    assert len(store.list()) == 2


def test_a_compressed_bomb_and_a_large_file_are_refused(path: Path, tmp_path: Path) -> None:
    store = RunStore(path, MB)
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps({"schema": 2}) + " " * 20 * MB)
    assert bomb.stat().st_size < 100_000
    with pytest.raises(BadInputError, match="compressed"):
        store.import_file(bomb)
    large = tmp_path / "large.zip"
    large.write_bytes(bytes(2 * MB))
    with pytest.raises(BadInputError, match="larger than the whole store"):
        store.import_file(large)
    with pytest.raises(BadInputError, match="cannot be read"):
        store.import_file(tmp_path / "nothing.zip")


# Many at once, and kills


def add_many(path: str, first: int, n: int) -> None:
    store = RunStore(Path(path), 64 * MB)
    for k in range(first, first + n):
        print(store.add(sweep(k), f"run {k}").id, flush=True)


def test_processes_at_once(path: Path) -> None:
    workers = [child("add_many(args[0], int(args[1]), 8)", path, first) for first in (0, 4)]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors
    store = RunStore(path, 64 * MB)
    assert {r.name for r in store.list()} == {f"run {k}" for k in range(12)}
    for k in (0, 5, 11):
        assert_same(store.result(f"run {k}"), sweep(k))


def test_threads_at_once(store: RunStore) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for k in range(first, first + 5):
                run = store.add(sweep(k))
                store.rename(run.id, f"run {k}")
                assert_same(store.result(run.id), sweep(k))
                store.delete(run.id) if k % 5 == 0 else store.list()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 5, 10, 15)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(store.list()) == 16


def test_killed_inside_a_write(store: RunStore) -> None:
    kept = store.add(sweep(0), "kept")
    code = """
store = RunStore(Path(args[0]), 64 * MB)
RunStore._make_room = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
store.add(trace(1, 50_000), "half")
"""
    killed = child(code, store.path)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert store.list() == (kept,)
    assert_same(store.result("kept"), sweep(0))
    assert store.add(sweep(2)).id in {r.id for r in store.list()}
    assert store.notes == ()


def test_killed_at_any_moment(path: Path) -> None:
    worker = child("add_many(args[0], 0, 100_000)", path)
    assert worker.stdout is not None
    committed = [worker.stdout.readline().strip() for _ in range(3)]
    time.sleep(0.03)
    worker.kill()
    committed += [line for line in worker.communicate(timeout=60)[0].split() if len(line) == 12]
    store = RunStore(path, 64 * MB)
    assert set(committed) <= {r.id for r in store.list()}
    for run in store.list():
        assert_same(store.result(run.id), sweep(int(run.name.split()[1])))
    assert store.notes == ()


def test_locked_for_too_long(store: RunStore) -> None:
    kept = store.add(sweep(0))
    impatient = RunStore(store.path, 64 * MB, busy_seconds=0.2)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(NotAvailableError, match="Another program"):
        impatient.add(sweep(1))
    assert impatient.list() == (kept,)  # reading needs no lock
    patient: list[Run] = []
    thread = threading.Thread(target=lambda: patient.append(store.add(sweep(2))))
    thread.start()
    time.sleep(0.3)
    assert patient == []
    other.execute("COMMIT")
    other.close()
    thread.join(20)
    assert len(patient) == 1


# Damage, other files, other versions


def corrupt_files(path: Path) -> list[Path]:
    return sorted(p for p in path.parent.glob("*.corrupt-*") if not p.name.endswith("-wal"))


@pytest.mark.parametrize(
    "data", [b"not a database at all" * 99, b"SQLite format 3\0" + b"\xff" * 99]
)
def test_a_file_of_rubbish_is_set_aside(path: Path, data: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(data)
    store = RunStore(path, 64 * MB)
    (aside,) = corrupt_files(path)
    assert aside.read_bytes() == data
    assert aside.name in store.notes[0] and "0 of its runs" in store.notes[0]
    store.add(sweep(0))
    assert len(RunStore(path, 64 * MB).list()) == 1


def test_damage_while_open_keeps_what_can_be_read(store: RunStore) -> None:
    for k in range(6):
        store.add(trace(k, 20_000), f"t{k}")
    size = store.path.stat().st_size
    with store.path.open("r+b") as file:
        file.truncate(size // 2)
    found = store.list()
    (aside,) = corrupt_files(store.path)
    assert 1 <= len(found) < 6
    assert f"{len(found)} of its runs" in store.notes[0]
    for run in found:
        expected = replace(trace(int(run.name[1:]), 20_000), file="")
        assert_same(store.result(run.name), expected)
    assert aside.stat().st_size >= size // 2
    store.add(sweep(0), "new")
    assert len(store.list()) == len(found) + 1


def test_bytes_that_rot_inside_a_run(store: RunStore) -> None:
    run = store.add(trace(0, 20_000), "rotten")
    with store.path.open("r+b") as file:
        # Inside a page, where SQLite itself keeps nothing.
        file.seek(store.path.stat().st_size // 8192 * 4096 + 1000)
        file.write(b"\xff" * 64)
    with pytest.raises(BadInputError, match="run rotten cannot be read"):
        store.result("rotten")
    assert store.delete("rotten").id == run.id


def test_two_processes_set_a_damaged_file_aside_once(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"rubbish" * 999)
    workers = [child("add_many(args[0], int(args[1]), 3)", path, first) for first in (0, 3)]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors
    assert len(corrupt_files(path)) == 1
    assert len(RunStore(path, 64 * MB).list()) == 6


def test_a_new_file_does_not_go_for_the_damage_of_an_old_one(store: RunStore) -> None:
    run = store.add(sweep(0))
    store._set_aside((0, 0))  # another process saw the damaged one, and was slower
    assert store.list() == (run,) and corrupt_files(store.path) == [] and store.notes == ()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("my thesis " * 99)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mail (text)")
    db.close()
    before = [p.read_bytes() for p in (notes, other)]
    with pytest.raises(BadInputError, match="no run store"):
        RunStore(notes, MB)
    with pytest.raises(BadInputError, match="another program"):
        RunStore(other, MB)
    with pytest.raises(BadInputError, match="is a folder"):
        RunStore(tmp_path, MB)
    assert [p.read_bytes() for p in (notes, other)] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "other.sqlite"]


def test_a_newer_file_is_not_touched(store: RunStore) -> None:
    store.add(sweep(0))
    db = sqlite3.connect(store.path)
    db.execute(f"PRAGMA user_version = {len(runs.MIGRATIONS) + 1}")
    db.close()
    before = store.path.read_bytes()
    for work in (store.list, lambda: store.add(sweep(1)), lambda: RunStore(store.path, MB)):
        with pytest.raises(NotAvailableError, match="newer workbench"):
            work()
    assert store.path.read_bytes() == before
    assert [p.name for p in store.path.parent.iterdir()] == [store.path.name]


def test_an_older_file_is_brought_forward(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.add(sweep(0), "old")
    added = ("ALTER TABLE runs ADD COLUMN stars INTEGER NOT NULL DEFAULT 3",)
    monkeypatch.setattr(runs, "MIGRATIONS", [*runs.MIGRATIONS, added])
    assert RunStore(store.path, 64 * MB).get("old") == run
    db = sqlite3.connect(store.path)
    assert db.execute("SELECT stars FROM runs").fetchall() == [(3,)]
    assert db.execute("PRAGMA user_version").fetchone() == (2,)
    db.close()
    fresh = RunStore(store.path.with_name("fresh.sqlite"), 64 * MB)
    assert fresh.add(sweep(0)).id == run.id


def test_a_migration_that_fails_changes_nothing(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = store.add(sweep(0))
    broken = ("ALTER TABLE runs ADD COLUMN stars INTEGER", "ALTER TABLE nothing ADD COLUMN x")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "MIGRATIONS", [*runs.MIGRATIONS, broken])
        with pytest.raises(sqlite3.OperationalError, match="nothing"):
            store.list()
    assert store.list() == (run,)


@pytest.mark.skipif(sys.platform == "win32", reason="folders are read-only by other means there")
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "there already"])
def test_a_folder_that_cannot_be_written(is_new: bool) -> None:
    code = """
if os.geteuid() == 0:
    os.setuid(65534)
try:
    RunStore(Path(args[0]), MB).add(sweep(0))
except NotAvailableError as error:
    print(error)
"""
    with tempfile.TemporaryDirectory() as name:  # tmp_path lies where only its owner may look
        folder = Path(name)
        if not is_new:
            RunStore(folder / "runs.sqlite", MB).add(sweep(1))
        folder.chmod(0o555)
        try:
            worker = child(code, folder / "runs.sqlite")
            said, errors = worker.communicate(timeout=60)
        finally:
            folder.chmod(0o755)
    assert "cannot be written" in said and "--runs FILE" in said, errors
    assert corrupt_files(folder / "runs.sqlite") == []


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAvailableError, match="cannot be written"):
        RunStore(tmp_path / "file" / "runs.sqlite", MB)


def test_a_file_deleted_while_open(store: RunStore) -> None:
    store.add(sweep(0))
    store.path.unlink()
    assert store.list() == ()
    assert store.add(sweep(0)) in store.list()


def test_default_path() -> None:
    end = Path("efficientvmamba-workbench", "runs.sqlite")
    assert default_path({"XDG_DATA_HOME": "/data"}) == Path("/data") / end
    for environ in ({}, {"XDG_DATA_HOME": ""}, {"XDG_DATA_HOME": "relative"}):
        assert default_path(environ) == Path.home() / ".local" / "share" / end


def test_the_store_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import workbench.runs"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
