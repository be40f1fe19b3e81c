"""The cost model by hand, and the benchmark as a command on its smallest case."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from kernels import bench, scan_order
from kernels.cost import backward_cost, convention_flops, forward_cost, order_cost


def test_cost_of_one_step_by_hand() -> None:
    """One step of one channel with two states and full-width dt."""
    cost = forward_cost(1, 1, 1, channels=1, states=2)
    assert cost.n_states == 2
    assert cost.bytes == 4 * (1 + 1 + 1 + 2 + 2) + 4 * (2 + 0 + 2)  # x, y, dt, B, C; A, D, bias
    assert cost.exps == 2 + 2
    assert cost.flops == 6 * 2 + 8
    assert cost.label == "model"
    assert convention_flops(1, 1, 1, 1, 2) == 9 * 2 + 1


def test_cost_grows_with_its_factors() -> None:
    one, two = (forward_cost(b, 4, 196, 192, 16, rank=6) for b in (1, 2))
    assert two.flops == 2 * one.flops and two.exps == 2 * one.exps
    assert two.bytes < 2 * one.bytes  # parameters are read once
    both = one + backward_cost(1, 4, 196, 192, 16, rank=6)
    assert both.n_states == one.n_states
    assert 3 * one.flops < both.flops < 5 * one.flops
    half = forward_cost(1, 4, 196, 192, 16, rank=6, activation_bytes=2)
    assert half.flops_per_byte > one.flops_per_byte


def test_pads_are_steps() -> None:
    order = scan_order("es2d", 7, 7)
    cost = order_cost(order, batch=1, channels=8, states=16, rank=1)
    assert cost == forward_cost(1, 4, 16, 8, 16, rank=1)


def test_cases_have_the_shapes_of_the_stages() -> None:
    by_name = {case.name: case for case in bench.cases()}
    assert len(by_name) == len(bench.cases())
    assert by_name["scan2d-tiny-stage1-224px-b1"].shape == (1, 4, 784, 96, 16)
    assert by_name["scan2d-base-stage2-224px-b8"].shape == (8, 4, 196, 384, 16)
    assert by_name["scan2d-base-stage2-224px-b8"].rank == 12


def test_the_command_checks_times_and_writes(monkeypatch, tmp_path, capsys) -> None:
    case = bench.Case("tiny", 2, 2, size=32)
    monkeypatch.setattr(bench, "cases", lambda: [case])
    assert bench.main(["--seconds", "0.01", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "kernels.json").read_text())
    assert report["environment"]["torch"] == torch.__version__
    rows = report["rows"]
    assert [(r["pass"], r["backend"]) for r in rows] == [
        (which, backend) for which in bench.PASSES for backend in ("torch.exp", "cpu", "reference")
    ]
    assert all(r["status"] == "ok" and r["p20_ms"] <= r["p50_ms"] <= r["p80_ms"] for r in rows)
    assert all(0 < r["relative_l2"] <= 1e-5 for r in rows if r["backend"] != "torch.exp")
    with (tmp_path / "kernels.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) and table[0]["device"]
    assert case.name in capsys.readouterr().out


def test_a_wrong_kernel_is_not_timed(monkeypatch, tmp_path, capsys) -> None:
    case = bench.Case("tiny", 2, 1, size=32)
    monkeypatch.setattr(bench, "cases", lambda: [case])
    monkeypatch.setattr(bench.Exact, "error_of", lambda exact, backend: float("nan"))
    assert bench.main(["--seconds", "0.01", "--backend", "cpu", "--out", str(tmp_path)]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_rows_that_are_too_large_say_how_large() -> None:
    large = bench.Case("base", 1, 128, size=800)
    backward = "forward+backward"
    assert bench.why_not(large, backward, "reference", 0.0, 1.0) == "not run: 293.0 GiB"
    long = bench.Case("base", 1, 8)
    assert bench.why_not(long, backward, "reference", 0.0, 3.0) == "not run: about 96 s"
    assert bench.why_not(long, "forward", "reference", 0.0, 3.0) == "ok"
    assert bench.why_not(large, backward, "cpu", 0.0, 1.0) == "ok"


def test_an_unknown_case_is_said(capsys) -> None:
    assert bench.main(["--case", "huge"]) == 2
    assert "no case has ['huge'] in its name" in capsys.readouterr().err
    assert bench.main(["--list"]) == 0
    assert "scan2d-tiny-stage1-224px-b8" in capsys.readouterr().out


@pytest.mark.parametrize("operator", ["scan2d", "selective_scan"])
def test_the_first_image_is_the_same_in_any_batch(operator: str) -> None:
    case = bench.Case("tiny", 2, 3, operator, size=32)
    y = case.operate(case.inputs(), "cpu")
    torch.testing.assert_close(y[:1], case.operate(case.inputs(batch=1), "cpu"))
