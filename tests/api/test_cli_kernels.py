"""`python -m workbench roofline`, `token` and `kernel`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from workbench.cli import main


def test_floors_and_measured_points_become_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", "test", "--px", "64", "--batch", "1", "--on", "here", "--dtype", "float32"]
    out = ["--out", str(tmp_path), "--format", "json,csv,png"]
    assert main(["roofline", *flags, *out]) == 0
    said = capsys.readouterr().out
    assert "ss2d : es2d:step=2" in said and "floor" in said
    names = {path.name for path in tmp_path.iterdir()}
    assert {"roofline.json", "roofline.csv", "roofline.png", "what_if.csv"} <= names
    with (tmp_path / "what_if.csv").open(newline="") as file:
        assert {row["scan"] for row in csv.DictReader(file)} == {"es2d:step=2", "ss2d"}


def test_floors_alone_measure_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.analyses.roofline.measure", None)
    flags = ["--model", "small", "--on", "MI300X", "--no-measure", "--format", "json,csv"]
    assert main(["roofline", *flags, "--out", str(tmp_path)]) == 0
    assert "ss2d : es2d:step=2" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"what_if.json", "what_if.csv"}


def test_the_cost_of_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "test", "--size", "64", "--stage", "1", "--y", "3", "--x", "5"]
    assert main(["token", *flags, "--out", str(tmp_path), "--format", "csv,json"]) == 0
    said = capsys.readouterr().out
    assert "1 visits" in said and "4 visits" in said and "exps" in said
    values = json.loads((tmp_path / "token_a.json").read_text())
    assert (values["y"], values["x"]) == (3, 5)


def test_a_kernel_with_listings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path), "--format", "csv,json"]
    assert main(["kernel", "--gpu", "sm_90", "--listing", "ptx", "--listing", "sass", *out]) == 0
    said = capsys.readouterr().out
    assert "gfx942" in said and "regs" in said
    listings = sorted(path.name for path in tmp_path.glob("*.txt"))
    assert [name.rsplit(".", 2)[1] for name in listings] == ["ptx", "sass"]
    assert "MUFU.EX2" in (tmp_path / listings[1]).read_text()
    assert main(["kernel", "--gpu", "gfx942", "--list", *out]) == 0
    assert "shipped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["kernel", "steps_sideways"], "steps_sideways"),
        (["kernel", "--gpu", "sm_20"], "sm_90"),
        (["kernel", "--beside", "nothing"], "nothing"),
        (["kernel", "--listing", "cobol"], "sass"),
        (["roofline", "--on", "abacus"], "H100"),
        (["token", "--stage", "3"], "no scan"),
        (["token", "--model", "huge"], "efficientvmamba_tiny"),
    ],
)
def test_mistakes_get_one_sentence(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said
