"""The benchmark runs, compares before it times, and says what it found; no time is judged here."""

from __future__ import annotations

import json

import numpy as np
import pytest

from workbench import bench_erf

MODEL = "efficientvmamba_test"


@pytest.mark.parametrize("question", ["cost", "peer"])
def test_a_question_is_answered(tmp_path, capsys, monkeypatch, question):
    monkeypatch.setattr(bench_erf, "SIZE", 224 if question == "peer" else 64)
    arguments = [question, "--model", MODEL, "--peers", MODEL, "--repeats", "1"]
    sizes = ["--images", "3", "--peer-images", "2", "--threads", "1", "--out", str(tmp_path)]
    assert bench_erf.main([*arguments, *sizes]) == 0
    report = json.loads((tmp_path / "erf.json").read_text())
    assert [row["question"] for row in report["rows"]] == [question, question]
    assert all(row["p50_s"] > 0 and row["other_p50_s"] > 0 for row in report["rows"])
    if question == "peer":
        assert all(row["error"] < 1e-6 for row in report["rows"])
    assert MODEL in capsys.readouterr().out


def test_maps_that_differ_are_not_timed(tmp_path, monkeypatch):
    own = bench_erf.openerf.compute_erf

    def turned(*arguments, **named):
        found = own(*arguments, **named)
        np.copyto(found.erf_map, found.erf_map[::-1].copy())
        return found

    monkeypatch.setattr(bench_erf.openerf, "compute_erf", turned)
    monkeypatch.setattr(bench_erf, "in_turns", lambda *_: pytest.fail("timed"))
    arguments = ["peer", "--peers", MODEL, "--peer-images", "1", "--out", str(tmp_path)]
    assert bench_erf.main(arguments) == 1
    (row,) = json.loads((tmp_path / "erf.json").read_text())["rows"]
    assert row["is_correct"] is False and "p50_s" not in row


def test_memory_and_time_of_one_run():
    found = bench_erf.grown(2, MODEL)
    assert found["seconds"] > 0 and 50 < found["peak_mib"] < 1e5
