"""`python -m kernels.bench` on its smallest cases: what is compared, timed and written."""

from __future__ import annotations

import csv
import json

import pytest
import torch

from kernels import bench
from kernels._bench import contenders, rows
from kernels._bench.cases import PASSES, Case, quick_cases, scaling_cases
from kernels._bench.contenders import CONTENDERS, Contender
from kernels._bench.floors import floors_on
from kernels._bench.gate import TOLERANCE
from kernels._bench.timing import Timing

SMALL = Case("tiny", 2, 2, size=32)
ALL = ["cpu", "chunked", "mambapy", "reference"]


@pytest.fixture(autouse=True)
def small_cases(monkeypatch) -> None:
    monkeypatch.setattr(rows, "CALIBRATION", Case("tiny", 2, 1, size=32))
    monkeypatch.setattr(bench, "cases", lambda: [SMALL])


def run(*arguments: str, folder) -> tuple[int, dict]:
    code = bench.main(["--device", "cpu", "--seconds", "0.001", "--out", str(folder), *arguments])
    found = list(folder.glob("*.json"))
    return code, json.loads(found[0].read_text()) if found else {}


def test_cases_have_the_shapes_of_the_stages(monkeypatch) -> None:
    monkeypatch.undo()
    by_name = {case.name: case for case in bench.cases()}
    assert len(by_name) == len(bench.cases()) == 3 * 2 * 3 * 3 * 2 + 6
    assert by_name["scan2d-es2d-tiny-stage1-224px-b1"].shape == (1, 4, 784, 96, 16)
    assert by_name["scan2d-ss2d-tiny-stage1-224px-b1"].shape == (1, 4, 3136, 96, 16)
    assert by_name["scan2d-es2d-base-stage2-224px-b8"].rank == 12
    wide = by_name["scan2d-es2d-base-stage1-800x1280px-b128"]
    assert wide.map_shape == (200, 320) and wide.shape == (128, 4, 16000, 192, 16)
    assert {case.pixels for case in quick_cases()} == {(224, 224)}
    assert [case.map_shape[0] for case in scaling_cases()] == [14, 28, 56, 112, 224]


def test_the_command_compares_times_and_writes(tmp_path, capsys) -> None:
    code, report = run(folder=tmp_path)
    assert code == 0
    assert report["environment"]["torch"] == torch.__version__
    assert {"device", "threads", "numba", "python", "date"} <= set(report["environment"])
    assert [(r["pass"], r["backend"]) for r in report["rows"]] == [
        (which, backend) for which in PASSES for backend in ("torch.exp", *ALL)
    ]
    timed = [r for r in report["rows"] if r["status"] == "ok"]
    assert {r["backend"] for r in timed} >= {"torch.exp", "cpu", "chunked", "reference"}
    assert all(r["p20_ms"] <= r["p50_ms"] <= r["p80_ms"] and r["repeats"] >= 3 for r in timed)
    compared = [r for r in timed if r["backend"] != "torch.exp"]
    assert all(0 < r["relative_l2"] <= TOLERANCE and r["times_exp"] > 0 for r in compared)
    assert not any("floor_us" in r for r in timed)  # a processor has no floor in the model
    with (tmp_path / "kernels.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [r["status"] for r in table] == [r["status"] for r in report["rows"]]
    assert table[0]["device_name"] and table[0]["device"] == "cpu"
    assert SMALL.name in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["output", "gradient", "nan", "other images"])
def test_a_wrong_kernel_is_never_timed(wrong: str, monkeypatch, tmp_path, capsys) -> None:
    right = Contender.operate

    def operate(self, case, inputs):
        y = right(self, case, inputs)
        if self.name != "chunked":
            return y
        if wrong == "output":
            return y * (1 + 1e-4)
        if wrong == "gradient":
            return y.detach() + (y - y.detach()) * (1 + 1e-4)
        if wrong == "nan":
            return y * float("nan")
        return y if len(y) == 1 else y.flip(0)

    timed: set[str] = set()

    def interleaved(runs, repeats, clock, words):
        timed.update(runs)
        return {name: Timing((1.0,), "fake") for name in runs}

    monkeypatch.setattr(Contender, "operate", operate)
    monkeypatch.setattr(rows, "interleaved", interleaved)
    code, report = run("--backend", "cpu", "--backend", "chunked", folder=tmp_path)
    status = {(r["pass"], r["backend"]): r["status"] for r in report["rows"]}
    is_forward_right = wrong == "gradient"
    assert ("ok" if is_forward_right else "WRONG") in status["forward", "chunked"]
    assert status["forward+backward", "chunked"].startswith("WRONG: relative L2 ")
    assert status["forward+backward", "cpu"] == "ok"
    assert ("chunked" in timed) == is_forward_right
    wrong_rows = [r for r in report["rows"] if r["status"].startswith("WRONG")]
    assert code == 1 and not any("p50_ms" in r for r in wrong_rows)
    assert "WRONG" in capsys.readouterr().out


def test_what_is_missing_says_what_to_install(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(contenders, "_module", lambda name: False)
    code, report = run("--backend", "mambapy", "--backend", "mamba_ssm", folder=tmp_path)
    status = {r["backend"]: r["status"] for r in report["rows"]}
    assert code == 0
    assert status["mambapy"] == "not run: pip install mambapy"
    assert status["mamba_ssm"] == "not run: no CUDA device"
    gpu = torch.device("cuda")
    assert contenders.why_unavailable("mamba_ssm", gpu) == "not installed"
    assert contenders.why_unavailable("selective_scan_cuda_oflex", gpu) == "not installed"


def test_rows_that_are_too_large_carry_their_size(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(bench, "cases", lambda: [Case("base", 1, 128, size=(800, 1280))])
    code, report = run(folder=tmp_path)
    status = {(r["pass"], r["backend"]): r["status"] for r in report["rows"]}
    assert code == 0 and len(status) == len(PASSES) * len(ALL)
    # 4 bytes for 6 numbers of each of 128*4*16000*192*16 state updates: 562.5 GiB, and 5 times what
    # goes in and out: 2 maps of 200*320 tokens of 192 channels, 4*16000 steps of 6+2*16 numbers.
    n_bytes = 128 * (24 * 4 * 16000 * 192 * 16 + 20 * (2 * 64000 * 192 + 4 * 16000 * 38))
    text = f"not run: {n_bytes / 2**30:.1f} GiB"
    assert status["forward+backward", "chunked"] == text == "not run: 626.9 GiB"
    assert all(text.startswith("not run: ") and "GiB" in text for text in status.values())
    assert not any("p50_ms" in r for r in report["rows"])


def test_scaling_writes_the_fitted_exponent(monkeypatch, tmp_path) -> None:
    sides = (4, 8, 16)
    monkeypatch.setattr(
        bench, "scaling_cases", lambda: [Case("tiny", 1, 1, size=4 * s) for s in sides]
    )

    def interleaved(runs, repeats, clock, words):
        first = next(iter(runs.values()))
        first()
        name = f"{len(seen)}"
        seen.append(name)
        # Two rows (passes) per side: tokens to the power 1 and 2.
        side = sides[int(name) // 2]
        power = 1 + int(name) % 2
        return {key: Timing((1e-6 * side ** (2 * power),), "fake") for key in runs}

    seen: list[str] = []
    monkeypatch.setattr(rows, "interleaved", interleaved)
    code, report = run("--scaling", "--backend", "cpu", folder=tmp_path)
    fits = {f["pass"]: f for f in report["fits"] if f["backend"] == "cpu"}
    assert code == 0
    assert fits["forward"]["exponent"] == pytest.approx(1)
    assert fits["forward+backward"]["exponent"] == pytest.approx(2)
    assert fits["forward"]["tokens"] == [16, 64, 256]
    assert (tmp_path / "scaling.csv").is_file()


def test_selection(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.undo()
    assert bench.main(["--case", "huge"]) == 2
    assert "--list alone shows all names" in capsys.readouterr().err
    assert bench.main(["--list", "--size", "800x1280", "--batch", "8", "--order", "ss2d"]) == 0
    names = capsys.readouterr().out.split()
    assert len(names) == 6 and all("scan2d-ss2d" in n and "800x1280px-b8" in n for n in names)
    assert bench.main(["--list", "--quick"]) == 0
    assert all(n.endswith("224px-b1") for n in capsys.readouterr().out.split())


def test_tuning_needs_a_gpu(capsys) -> None:
    assert bench.main(["--tune", "--device", "cpu"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("operator", ["scan2d", "selective_scan"])
def test_the_first_image_is_the_same_in_any_batch(operator: str) -> None:
    case = Case("tiny", 2, 6, operator, size=32)
    y = CONTENDERS["cpu"].operate(case, case.inputs())
    alone = CONTENDERS["cpu"].operate(case, case.inputs(batch=1))
    torch.testing.assert_close(y[:1], alone)
    assert len(y) == 6


def test_a_floor_stands_only_beside_a_gpu_that_the_model_knows() -> None:
    cost = rows.cost_of(Case("base", 1, 128), "forward")
    columns = floors_on(cost, "NVIDIA H100 80GB HBM3")
    assert columns["floor_label"] == "model" and columns["floor_gpu"] == "H100 SXM"
    # exps = T*D*(N + 2) over 132 multiprocessors at 16 each clock of 1.98 GHz.
    assert columns["floor_us"] == pytest.approx(1e6 * cost.exps / (132 * 16 * 1.98e9))
    assert floors_on(cost, "NVIDIA H100 PCIe") == {}
