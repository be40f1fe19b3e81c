"""`python -m models.bench` on the test model: compared, timed beside the yardstick, written."""

from __future__ import annotations

import csv
import json
import time

import pytest
import torch

from models import bench, create_model
from models.complexity import complexity
from models.layers import Scan2d
from models.scan_share import scan_share

SMALL = ["--model", "efficientvmamba_test", "--size", "64", "--train-size", "64", "--device", "cpu"]


@pytest.fixture(autouse=True)
def small_yardsticks(monkeypatch) -> None:
    monkeypatch.setattr(bench, "MATMUL_SIZE", 64)
    monkeypatch.setattr(bench, "YARDSTICK", "test_resnet")


def test_the_command_writes_forward_and_training_rows(tmp_path, capsys) -> None:
    out = ["--out", str(tmp_path), "--seconds", "0.01", "--batch", "1", "--train-batch", "2"]
    assert bench.main([*SMALL, *out]) == 0
    report = json.loads((tmp_path / "models.json").read_text())
    forward, step = report["rows"]
    assert forward["case"] == "forward, batch 1, 64 px"
    assert step["case"] == "training step, batch 2, 64 px"
    assert 0 < report["relative_l2"] <= bench.TOLERANCE
    assert 0 < report["relative_l2_gradients"] <= bench.TOLERANCE
    for row in (forward, step):
        assert row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["ratio"] == pytest.approx(row["p50_ms"] / row["other_p50_ms"])
        assert row["of_matmul"] == pytest.approx(row["gflops"] / row["gflops_matmul"])
        assert 0 < row["scan_share"] < 1
    # One definition of multiply-accumulates; a step has a forward and a twice as large backward.
    macs = complexity(create_model("efficientvmamba_test"), 64).macs
    assert (forward["macs"], step["macs"]) == (macs, 3 * 2 * macs)
    with (tmp_path / "models.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["case"] for row in table] == [forward["case"], step["case"]]
    assert table[0]["threads"] == str(torch.get_num_threads())
    assert "training step" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["forward", "backward", "nan"])
def test_a_wrong_scan_is_never_timed(wrong: str, monkeypatch, tmp_path, capsys) -> None:
    right = Scan2d.forward

    def forward(self, x, *parameters):
        y = right(self, x, *parameters)
        if self.backend == "reference":
            return y
        if wrong == "nan":
            return y * float("nan")
        if wrong == "backward":
            return y.detach() + 1.01 * (y - y.detach())
        return y + 0.01 * y.flip(1)  # not a factor: the norm behind the scan takes that out

    monkeypatch.setattr(Scan2d, "forward", forward)
    monkeypatch.setattr(bench, "interleaved", lambda *_: pytest.fail("timed although wrong"))
    assert bench.main([*SMALL, "--out", str(tmp_path)]) == 1
    assert "nothing is timed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_training", [False, True], ids=["forward", "training step"])
def test_share_of_the_scans(is_training: bool, monkeypatch) -> None:
    """A clock that only scans move: they take all the time, in both passes."""
    now = 0.0
    passes = []

    class Slow(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal now
            now += 1.0
            passes.append("forward")
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            nonlocal now
            now += 2.0
            passes.append("backward")
            return grad

    monkeypatch.setattr(Scan2d, "forward", lambda self, x, *parameters: Slow.apply(x))
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    model = create_model("efficientvmamba_test").eval()
    x = bench.images(2, 64, torch.device("cpu"))
    step = bench.training_step if is_training else None
    assert scan_share(model, x, step, repeats=1) == pytest.approx(1.0)
    n_scans = sum(isinstance(m, Scan2d) for m in model.modules())
    assert passes.count("forward") >= 2 * n_scans
    assert passes.count("backward") == (2 * n_scans if is_training else 0)
    assert not any(m._forward_hooks for m in model.modules())
