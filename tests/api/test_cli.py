"""`python -m workbench`: the page's analyses as files, on the test model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.cli import main
from workbench.export import load_results
from workbench.results import ErfResult

SMALL = ["--model", "test", "--weights", "random", "--size", "128"]


def run(tmp_path: Path, command: str, *flags: str) -> int:
    return main([command, *SMALL, "--out", str(tmp_path), *flags])


@pytest.mark.parametrize(
    ("command", "names", "picture"),
    [
        ("scan", {"scan_a": "ScanResult", "scan_b": "ScanResult"}, "scan.png"),
        ("erf", {"erf_a": "ErfResult", "erf_b": "ErfResult"}, "erf.png"),
        (
            "attribute",
            {"prediction": "PredictionResult", "attribution": "AttributionResult"},
            "attribution.png",
        ),
        ("profile", {"profile_a": "ProfileResult", "profile_b": "ProfileResult"}, "profile.png"),
    ],
)
def test_each_analysis_writes_its_files(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    names: dict[str, str],
    picture: str,
) -> None:
    images = ["--images", "2"] if command == "erf" else []
    assert run(tmp_path, command, "--stage", "1", "--format", "json,npz,png,html", *images) == 0
    said = capsys.readouterr().out
    for name, kind in names.items():
        record = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
        assert record["$type"] == kind
        assert record["provenance"]["model"] == "efficientvmamba_test"
        with np.load(tmp_path / f"{name}.npz", allow_pickle=False) as arrays:
            assert all(np.isfinite(arrays[key]).all() for key in arrays)
        assert str(tmp_path / f"{name}.json") in said
    with Image.open(tmp_path / picture) as png:
        assert min(png.size) > 300
    page = (tmp_path / f"{command}.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert not any(word in page for word in ("<script", 'src="http', "href="))


def test_own_photo_focus_and_zip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "mine.png"
    Image.effect_noise((90, 60), 60).convert("RGB").save(photo)
    flags = ["--image", str(photo), "--fit", "whole", "--stage", "4", "--y", "99", "--x", "1"]
    assert run(tmp_path, "erf", *flags, "--images", "1", "--format", "zip") == 0
    assert "y=99 lies outside" in capsys.readouterr().err
    bundle = load_results(tmp_path / "erf.zip")
    result = bundle.results["erf_a"]
    assert isinstance(result, ErfResult)
    assert result.provenance.image.startswith("upload-")
    assert (result.stage, result.x) == (4, 1) and result.mass.shape == (96, 128)
    assert bundle.pictures["erf"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "vit"], "efficientvmamba_tiny"),
        (["--weights", "/no/such/file.pth"], "/no/such/file.pth"),
        (["--image", "nobody"], "chelsea"),
        (["--scan", "helix"], "es2d"),
        (["--size", "225"], "224"),
        (["--fit", "stretch"], "crop"),
        (["--stage", "7"], "1, 2, 3, 4"),
        (["--target", "100000"], "classes"),
        (["--device", "tpu"], "auto, cpu, cuda"),
        (["--gallery", "/no/such/folder"], "no folder"),
        (["--out", "/proc/none"], "--out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input_ends_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert run(tmp_path, "scan", "--format", "json", *flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and "Traceback" not in said


def test_unreadable_photo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    assert run(tmp_path, "scan", "--image", str(tmp_path / "notes.png")) == 2
    assert "notes.png is not a picture" in capsys.readouterr().err


def test_unknown_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path, "scan", "--format", "gif")
    assert caught.value.code == 2
    assert "json, npz, png, html, zip" in capsys.readouterr().err


def test_info_lists_what_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    for word in ("efficientvmamba_tiny", "6,493,660", "es2d:step=2", "ss2d", "chelsea", "CC0"):
        assert word in said
    assert "reference" in said and "usable" in said


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from workbench.cli import main\n"
        "main(['scan', '--help'])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "--scan-b" in done.stdout
