"""`python -m workbench profile` and `runs`: sweeps, traces, the store, and the guard for a CI."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from workbench.cli import main

SMALL = ["--model", "test", "--weights", "random", "--size", "64"]


@pytest.fixture
def store(tmp_path: Path) -> list[str]:
    return ["--runs", str(tmp_path / "runs.sqlite")]


def profile(tmp_path: Path, store: list[str], *flags: str) -> int:
    return main(["profile", *SMALL, *store, "--out", str(tmp_path / "out"), *flags])


def a_trace(path: Path, microseconds: float) -> Path:
    """Five steps of one operator; each lasts about `microseconds`."""
    lane = {"ph": "X", "pid": 1, "tid": 1}
    events = []
    for k in range(5):
        ts, dur = 1000 * k, microseconds + 0.1 * k
        events.append(lane | {"cat": "cpu_op", "name": "aten::mul", "ts": ts + 1, "dur": dur - 2})
        mark = {"cat": "user_annotation", "name": f"ProfilerStep#{k}", "ts": ts, "dur": dur}
        events.append(lane | mark)
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def test_a_sweep_becomes_files_and_a_run(
    tmp_path: Path, store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--sweep", "size", "--values", "64,96", "--name", "mine"]
    assert profile(tmp_path, store, *flags, "--format", "json,csv,tex,png,zip") == 0
    said = capsys.readouterr()
    assert "time grows" not in said.out and "ss2d" in said.out and ", mine" in said.err
    with (tmp_path / "out" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["series"], row["label"]) for row in rows} == {
        (scan, size) for scan in ("es2d:step=2", "ss2d") for size in ("64", "96")
    }
    assert all(float(row["p50_ms"]) > 0 and row["status"] == "" for row in rows)
    assert {"sweep.json", "sweep.tex", "sweep.png", "profile.zip"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert main(["runs", *store]) == 0
    assert "mine" in capsys.readouterr().out


def test_a_trace_is_recorded_saved_and_read_again(
    tmp_path: Path, store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    saved, logs = tmp_path / "saved.json.gz", tmp_path / "logs"
    flags = ["--trace", "--steps", "2", "--save-trace", str(saved), "--tensorboard", str(logs)]
    assert profile(tmp_path, store, *flags, "--format", "json,csv") == 0
    assert "--logdir" in capsys.readouterr().err and list(logs.rglob("*.pt.trace.json*"))
    first = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert profile(tmp_path, store, "--trace", str(saved), "--format", "json") == 0
    again = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert again["source"] == "saved.json.gz"
    assert again["operators"] == first["operators"] and again["modules"] == first["modules"]


def test_the_guard_fails_on_what_became_slower(
    tmp_path: Path, store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, time in (("fast", 100.0), ("slow", 150.0)):
        trace = str(a_trace(tmp_path / f"{name}.json", time))
        assert profile(tmp_path, store, "--trace", trace, "--name", name, "--format", "csv") == 0
    capsys.readouterr()
    out = ["--out", str(tmp_path / "out"), "--format", "csv,png", *store]
    assert main(["profile", "--compare", "fast", "slow", "--fail-over", "10%", *out]) == 1
    assert "slower: total one step: 1.49" in capsys.readouterr().err
    assert main(["profile", "--compare", "slow", "fast", "--fail-over", "10", *out]) == 0
    assert main(["profile", "--compare", "fast", "slow", "--fail-over", "80%", *out]) == 0
    assert main(["profile", "--compare", "fast", "latest", *out]) == 0
    assert (tmp_path / "out" / "comparison.csv").is_file()
    # A baseline kept as a file, as a CI has it.
    file = str(tmp_path / "baseline.zip")
    assert main(["runs", "export", "fast", file, *store]) == 0
    assert main(["runs", "delete", "fast", *store]) == 0
    assert main(["profile", "--compare", file, "latest", "--fail-over", "10%", *out]) == 1
    assert main(["runs", "import", file, *store]) == 0
    assert main(["runs", "rename", "fast", "faster", *store]) == 0
    capsys.readouterr()
    assert main(["runs", "list", "faster", *store]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--trace", "no-such-file.json"], "no file"),
        (["--fail-over", "10%"], "needs --compare"),
        (["--compare", "none", "latest"], "none"),
        (["--compare", "a", "b", "--fail-over", "much"], "per cent"),
        (["--sweep", "size", "--values", "64,large"], "whole numbers"),
        (["--sweep", "size", "--values", "16"], "16"),
        (["--trace", "--steps", "0"], "from 1 to 50"),
    ],
)
def test_bad_input_ends_in_one_sentence(
    tmp_path: Path,
    store: list[str],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    assert profile(tmp_path, store, *flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and said.count("\n") == 1


def test_an_empty_store_says_what_fills_it(
    store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", "list", *store]) == 0
    assert "profile --sweep" in capsys.readouterr().out
