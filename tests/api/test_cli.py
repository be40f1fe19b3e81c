"""`python -m workbench`: the page's analyses as files, on the test model."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.registry import WEIGHTS_DIR
from workbench.cli import main
from workbench.export import load_results
from workbench.results import AttributionBatch, ErfResult, UserProbeResult

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
            # One image has no halves to compare, so that curve begins with "not known".
            known = {key: arrays[key] for key in arrays if key != "convergence_split"}
            assert all(np.isfinite(values).all() for values in known.values())
        assert str(tmp_path / f"{name}.json") in said
    with Image.open(tmp_path / picture) as png:
        assert min(png.size) > 300
    page = (tmp_path / f"{command}.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert not any(word in page for word in ("<script", 'src="http', "href="))


def test_three_scans_reach_and_a_table_of_schemes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--stage", "1", "--scan-c", "zigma", "--reach", "--y", "5", "--x", "6"]
    flags += ["--compare", "hilbert", "windows:size=3", "vim", "--format", "svg,zip,csv"]
    assert run(tmp_path, "scan", *flags) == 0
    bundle = load_results(tmp_path / "scan.zip")
    assert set(bundle.results) == {
        *("scan_a", "scan_b", "scan_c", "reach_a", "reach_b", "reach_c", "schemes")
    }
    assert set(bundle.pictures) == {"scan", "reach"}
    assert bundle.tables["schemes"] == (tmp_path / "schemes.csv").read_bytes()
    assert bundle.results["scan_c"].is_verified
    reach = bundle.results["reach_a"]
    assert (reach.y, reach.x, reach.steps_back[5, 6]) == (5, 6, 0)
    table = bundle.results["schemes"]
    assert [row.scan for row in table.rows] == ["hilbert", "windows:size=3", "vim"]
    assert [row.status for row in table.rows] == ["measured", "measured", "path only"]
    head, *lines = list(csv.reader((tmp_path / "schemes.csv").read_text().splitlines()))
    assert len(set(head)) == len(head) and "definition" not in head
    assert [line[head.index("scan")] for line in lines] == [row.scan for row in table.rows]
    assert float(lines[0][head.index("p50_ms")]) > 0 and lines[2][head.index("p50_ms")] == ""
    for name in ("scan.svg", "reach.svg"):
        assert (tmp_path / name).read_text(encoding="utf-8").lstrip().startswith("<?xml")
    said = capsys.readouterr().out
    assert "reach, scan alone" in said and "path only" in said


def test_every_scheme_without_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--all-schemes", "--no-latency", "--scan", "msvmamba", "--format", "html,png"]
    assert run(tmp_path, "scan", *flags) == 0
    page = (tmp_path / "scan.html").read_text(encoding="utf-8")
    for word in ("<td>es2d:step=8</td>", "<td>hilbert</td>", "<td>cascade2d</td>", "mean reach"):
        assert word in page
    assert "not measured" in capsys.readouterr().out


def test_probe_of_an_own_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_scan.py").write_text(
        "def gather(x):\n"
        "    return x[:, :, ::2].flatten(2)\n"
        "def merge(ys, height, width):\n"
        "    y = ys.new_empty(ys.shape[0], ys.shape[1], height, width)\n"
        "    y[:, :, ::2] = ys.unflatten(2, (-1, width))\n"
        "    return y\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    flags = ["--probe", "own_scan:gather,merge", "--height", "4", "--width", "5"]
    formats = ["--format", "json,html,zip"]
    assert main(["scan", *flags, *formats, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "(1, 0), (1, 1)" in said and "and 2 more" in said
    assert "10 of 20 tokens differ, first (1, 0), which is never written" in said
    result = load_results(tmp_path / "out" / "scan.zip").results["probe"]
    assert isinstance(result, UserProbeResult) and result.backward == "yes"
    assert "never written" in (tmp_path / "out" / "scan.html").read_text(encoding="utf-8")
    assert main(["scan", "--probe", "own_scan:nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: own_scan has no 'nothing'")
    sys.modules.pop("own_scan")


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


def test_pictures_of_training_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cards = [str(path) for path in sorted(WEIGHTS_DIR.glob("*.json"))]
    row = {"epoch": 1, "size": 64, "loss": 2.5, "images_per_second": 90.0, "top1": 40.0}
    log = {"config": {"seed": 3, "eval_size": 160}, "epochs": [row | {"val_loss": 1.2}]}
    (tmp_path / "log.json").write_text(json.dumps(log))
    logs = [*cards, str(tmp_path)]
    out = tmp_path / "pictures" / "curves.png"
    assert main(["training", *logs, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as png:
        assert min(png.size) > 300
    assert main(["training", *logs, "--out", str(out.with_suffix(".svg"))]) == 0
    assert "<svg" in out.with_suffix(".svg").read_text(encoding="utf-8")


def test_a_table_of_ablations_is_drawn_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    epoch = {"epoch": 1, "size": 64, "loss": 2.5, "images_per_second": 90.0, "top1": 40.0}
    log = {"config": {"seed": 0, "eval_size": 160}, "epochs": [epoch | {"val_loss": 1.2}]}
    row = {"variant": "full", "n_parameters": 10, "macs": 1e6, "top1": 40.0} | log["config"]
    table = {"rows": [row | {"epochs": log["epochs"]}]}
    (tmp_path / "ablations.json").write_text(json.dumps(table))
    (tmp_path / "log.json").write_text(json.dumps(log))
    ablations, out = str(tmp_path / "ablations.json"), str(tmp_path / "a.svg")
    assert main(["training", ablations, "--out", out]) == 0
    capsys.readouterr()
    for flags, words in (
        ([ablations, str(tmp_path), "--out", out], "drawn alone; 2 files"),
        ([ablations, "--out", str(tmp_path / "a.gif")], ".png or .svg"),
        ([str(tmp_path / "none.json")], "none.json cannot be read"),
    ):
        assert main(["training", *flags]) == 2
        assert words in capsys.readouterr().err


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
    formats = [] if "--format" in flags else ["--format", "json"]
    assert run(tmp_path, "scan", *formats, *flags) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and words in said and "Traceback" not in said


def test_a_field_of_a_folder_beside_other_networks_in_every_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        rgb = np.random.default_rng(i).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    flags = ["--folder", str(folder), "--net", "scan", "--net", "timm:resnet18", "--stage", "1"]
    flags += ["--definition", "openerf", "--gates", "frozen", "--phases", "--paths"]
    assert run(tmp_path, "erf", *flags, "--format", "npy,npz,json,png,svg,csv,tex") == 0
    said = capsys.readouterr()
    assert "left out: broken.jpg" in said.err
    for key in "abc":
        record = json.loads((tmp_path / f"erf_{key}.json").read_text(encoding="utf-8"))
        assert record["n_images"] == 3 and len(record["skipped"]) == 1
        assert record["definition"] == "openerf" and record["provenance"]["definition"]
        assert np.load(tmp_path / f"erf_{key}.npy").shape == (128, 128)
    rows = list(csv.reader((tmp_path / "erf.csv").open(encoding="utf-8")))
    assert len(rows) > 3 and "resnet18" in (tmp_path / "erf.tex").read_text(encoding="utf-8")
    for name in ("erf", "erf_phases", "erf_paths"):
        assert (tmp_path / f"{name}.svg").read_bytes().startswith(b"<?xml")


def test_ctrl_c_writes_the_photos_that_were_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workbench.erf_lab import ErfLab

    compare = ErfLab.compare

    def interrupted(self: ErfLab, *arguments: object) -> object:
        yield next(run := compare(self, *arguments))
        run.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(ErfLab, "compare", interrupted)
    flags = ["--net", "none", "--images", "500", "--format", "json", "--paths"]
    assert run(tmp_path, "erf", *flags) == 130
    record = json.loads((tmp_path / "erf_a.json").read_text(encoding="utf-8"))
    assert 1 <= record["n_images"] < record["n_planned"] == 500
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--net", "timm:resnet19"], "resnet18"),
        (["--net", "timm:vit_nothing_at_all"], "timm"),
        (["--net", "file:/no/such/file.pth"], "/no/such/file.pth"),
        (["--folder", "/no/such/folder"], "no folder"),
        (["--definition", "mine"], "replknet"),
        (["--images", "0"], "5,000"),
        (["--size", "32"], "64"),
        (["--unit", "block1.gate", "--gates", "frozen", "--stage", "1"], "live gates"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_field_cannot_have_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    images = [] if "--images" in flags else ["--images", "1"]
    status = run(tmp_path, "erf", "--format", "json", *images, *flags)
    said = capsys.readouterr().err
    assert status == 2 and "error: " in said and words in said and "Traceback" not in said


def test_every_part_of_an_attribution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--size", "64", "--stage", "1", "--y", "3", "--x", "4", "--target", "1"]
    flags += ["--method", "integrated_gradients", "--option", "steps=2", "--option"]
    flags += ["baseline=mean", "--contrast", "2", "--beside", "photo:coffee", "--evidence"]
    flags += ["--attention", "--block", "1", "--channel", "3", "--faithfulness", "--sanity"]
    formats = "json,npz,npy,png,svg,html,zip"
    assert run(tmp_path, "attribute", *flags, "--format", formats) == 0
    bundle = load_results(tmp_path / "attribute.zip")
    parts = ("evidence", "faithfulness", "randomisation", "prediction")
    pairs = {f"{name}_{key}" for name in ("maps", "attention") for key in "ab"}
    assert set(bundle.results) == pairs | {*parts}
    a, b = bundle.results["maps_a"], bundle.results["maps_b"]
    assert (a.method, a.target, a.contrast) == ("integrated_gradients", 1, 2)
    assert {"steps": 2, "baseline": "mean"}.items() <= a.provenance.parameters.items()
    assert (b.target, b.contrast, b.provenance.image) == (1, 2, "coffee")
    attention = bundle.results["attention_b"]
    assert (attention.stage, attention.block, attention.channel) == (1, 1, 3)
    assert (attention.y, attention.x, attention.provenance.scan) == (3, 4, "ss2d")
    assert bundle.results["faithfulness"].map_name == "input"
    assert bundle.results["randomisation"].steps[0] == "trained"
    for key, result in (("a", a), ("b", b)):
        values = np.load(tmp_path / f"maps_{key}_input.npy")
        np.testing.assert_array_equal(values, result.maps[0].values)
    for name in ("maps", "evidence", "attention", "faithfulness"):
        assert (tmp_path / f"{name}.svg").read_bytes().startswith(b"<?xml")
        assert bundle.pictures[name] == (tmp_path / f"{name}.png").read_bytes()
    assert (tmp_path / "attribute.html").read_text(encoding="utf-8").count("data:image/png") == 4
    assert "maps_a" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--evidence"], {"maps_a", "evidence"}),
        (["--contrast", "3"], {"maps_a"}),
        (["--beside", "scan"], {"maps_a", "maps_b"}),
        ([], {"attribution"}),
    ],
    ids=["paths", "contrast", "beside", "nothing"],
)
def test_without_a_method_grad_cam_is_shown(
    tmp_path: Path, flags: list[str], names: set[str]
) -> None:
    assert run(tmp_path, "attribute", "--size", "64", *flags, "--format", "json") == 0
    assert {path.stem for path in tmp_path.glob("*.json")} == names | {"prediction"}
    if "maps_a" in names:
        record = json.loads((tmp_path / "maps_a.json").read_text(encoding="utf-8"))
        assert record["method"] == "grad_cam"
        assert record["contrast"] == (3 if "--contrast" in flags else None)


def test_attributions_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(2):
        rgb = np.random.default_rng(i).integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(rgb).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    flags = ["--size", "64", "--folder", str(folder), "--method", "saliency", "--faithfulness"]
    assert run(tmp_path, "attribute", *flags, "--format", "json,npz,csv,zip,html,png") == 0
    said = capsys.readouterr()
    assert "left out: broken.jpg" in said.err and "half on, input" in said.out
    batch = load_results(tmp_path / "attribute.zip").results["batch"]
    assert isinstance(batch, AttributionBatch) and batch.images == ("0.png", "1.png")
    rows = list(csv.reader((tmp_path / "batch.csv").open(encoding="utf-8")))
    assert [row[0] for row in rows[1:]] == ["0.png", "1.png", "mean", "p05", "p95"]
    assert {"map insertion_auc", "random insertion_auc", "gap input"} - {*rows[0]} == {"gap input"}
    mean = dict(zip(rows[0], rows[3], strict=True))
    assert float(mean["probability"]) == pytest.approx(batch.mean[0], rel=1e-5)
    assert "mean" in (tmp_path / "attribute.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "deep_lift"], "is not offered. DeepLift needs a rule"),
        (["--method", "score_cam"], "grad_cam"),
        (["--option", "steps=3"], "Its fields: none"),
        (["--method", "lrp", "--option", "deep"], "name=value"),
        (["--method", "layer_ig", "--option", "steps=0"], "1 to 1024"),
        (["--target", "3", "--contrast", "3"], "with itself"),
        (["--contrast", "1000"], "0 to 999"),
        (["--beside", "photo:nobody"], "chelsea"),
        (["--beside", "timm:resnet18"], "photo:NAME"),
        (["--attention", "--block", "0"], "count from 1"),
        (["--attention", "--channel", "64"], "0 to 63"),
        (["--folder", "/no/such/folder"], "no folder"),
        (["--folder", ".", "--beside", "scan"], "--beside"),
        (["--folder", ".", "--sanity"], "--sanity"),
        (["--method", "lrp", "--format", "csv"], "csv is for"),
        (["--format", "npy"], "npy is for"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_an_attribution_cannot_have_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    formats = [] if "--format" in flags else ["--format", "json"]
    assert run(tmp_path, "attribute", "--size", "64", *formats, *flags) == 2
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
    assert "json, npz, png, svg, html, zip, csv, npy, tex" in capsys.readouterr().err


def test_info_lists_what_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    for word in ("efficientvmamba_tiny", "6,493,660", "es2d:step=2", "ss2d", "chelsea", "CC0"):
        assert word in said
    assert "reference" in said and "usable" in said
    assert "integrated_gradients" in said and "(steps=32, baseline=blur)" in said


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "workbench", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        writer.stdout.close()
        assert writer.stderr.read() == b""
    assert writer.returncode == 141


def test_help_does_not_load_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from workbench.cli import argument_parser, main\n"
        "argument_parser().parse_args(['attribute'])\n"
        "main(['scan', '--help'])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "--scan-b" in done.stdout
