"""The programs as users start them: flags, Ctrl-C, torchrun, evaluation, ablations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from models import ablations, evaluate, registry, train
from models.training import card
from models.training.config import TrainConfig
from models.training.engine import Trainer

SMALL = (
    *("--model", "efficientvmamba_test", "--sizes", "32:1", "--batch-size", "4"),
    *("--eval-size", "32", "--quiet", "--device", "cpu"),
)


@pytest.fixture(autouse=True)
def own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train.run` takes over Ctrl-C for its process; here that is pytest's."""
    monkeypatch.setattr(train.signal, "signal", lambda number, handler: None)


def test_train_then_evaluate(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    flags = ["--out", str(out), *SMALL, "--cache", str(tmp_path / "cache")]
    assert train.main([str(images), *flags]) == 0
    assert "top-1" in capsys.readouterr().out
    assert train.main([str(images), *flags]) == 2
    assert "--resume" in capsys.readouterr().err

    report, logits = tmp_path / "report.json", tmp_path / "logits.npz"
    weights = str(out / "weights.safetensors")
    flags = ["--sizes", "32,48", "--json", str(report), "--logits", str(logits), "--quiet"]
    assert evaluate.main([str(images), "--weights", weights, *flags]) == 0
    got = json.loads(report.read_text())
    assert got["provenance"]["model"] == "efficientvmamba_test"
    assert len(got["provenance"]["weights_sha256"]) == 64
    assert got["provenance"]["data"]["n_images"] == 9
    assert list(got["sizes"]) == ["32", "48"]
    small = got["sizes"]["32"]
    logged = json.loads((out / "log.json").read_text())["epochs"][-1]
    assert small["top1"] == pytest.approx(logged["top1"], abs=12)  # fp16 may flip one of nine
    assert np.sum(small["confusion"]) == 9 and small["throughput"]["images_per_second_p50"] > 0
    flags = ["--sizes", "32", "--against", str(logits), "--json", str(report), "--quiet"]
    assert evaluate.main([str(images), "--weights", weights, *flags]) == 0
    assert json.loads(report.read_text())["sizes"]["32"]["difference"]["value"] == 0
    flags = ["--sizes", "64", "--against", str(logits), "--quiet"]
    assert evaluate.main([str(images), "--weights", weights, *flags]) == 2
    assert "has no 64 px" in capsys.readouterr().err
    arrays = np.load(logits)
    assert 100 * (arrays["logits_48"].argmax(1) == arrays["labels_48"]).mean() == pytest.approx(
        got["sizes"]["48"]["top1"]
    )


def test_evaluate_refuses_other_classes(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(images), "--out", str(tmp_path / "run"), *SMALL]) == 0
    extra = images / "val" / "violet"
    extra.mkdir()
    (images / "val" / "red" / "0.png").rename(extra / "0.png")
    weights = str(tmp_path / "run" / "weights.safetensors")
    assert evaluate.main([str(images), "--weights", weights, "--quiet"]) == 2
    assert "knows 3 classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes", "wide"], "pixels:epochs"),
        (["--batch-size", "1000"], "fewer than one step"),
        (["--resume"], "No state to resume"),
        (["--recipe", "nowhere.json"], "No recipe"),
        (["--teacher", "no_such_net"], "no_such_net: not known"),
        (["--init", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--scan", "zigzag"], "zigzag"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_wrong_flags_end_with_a_sentence(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    assert train.main([str(images), "--out", str(tmp_path / "run"), *SMALL, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_ctrl_c_leaves_a_run_that_goes_on(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [*SMALL, "--sizes", "32:4000", "--threads", "1"]
    command = [sys.executable, "-m", "models.train", str(images), "--out", str(out), *flags]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "log.csv").exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    printed, _ = child.communicate(timeout=60)
    assert child.returncode == 130 and "--resume goes on" in printed
    n_before = len((out / "log.csv").read_text().splitlines())
    args = train.parser().parse_args(
        [str(images), "--out", str(out), *flags, "--resume", "--max-minutes", "0.02"]
    )
    assert train.run(args) is False
    assert len((out / "log.csv").read_text().splitlines()) >= n_before


def test_two_processes_give_the_gradients_of_one(
    images: Path, tmp_path: Path, config: TrainConfig, make_trainer: Callable[..., Trainer]
) -> None:
    """Two gloo processes of batch B/2 against one that accumulates the two halves."""
    alone = make_trainer(config.replace(accumulate=2))
    loss, _ = alone.backward(next(alone.steps(0)))
    script = Path(__file__).with_name("gradients_of_a_step.py")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    subprocess.run(
        [sys.executable, *launch, str(script), str(images), str(tmp_path / "grads.pt")],
        check=True,
        timeout=200,
        env=environment,
        capture_output=True,
    )
    together = torch.load(tmp_path / "grads.pt", weights_only=True)
    assert together["measured"] == pytest.approx(alone.measure(32), rel=1e-5)
    assert np.mean(together["losses"]) == pytest.approx(loss, rel=1e-5)
    for name, parameter in alone.student.named_parameters():
        got, want = together["gradients"][name], parameter.grad
        assert want is not None
        assert (got - want).norm() <= 1e-5 * want.norm() + 1e-8, name


def test_ablations_write_a_table(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ablations"
    assert ablations.main([str(images), "--out", str(out), *SMALL]) == 0
    table = json.loads((out / "ablations.json").read_text())
    assert [r["variant"] for r in table["rows"]] == ["full", "no-conv", "no-se", "late-evss"]
    full, *others = table["rows"]
    assert all(r["n_parameters"] != full["n_parameters"] for r in others)
    assert all(r["seed"] == 0 and r["eval_size"] == 32 for r in table["rows"])
    assert all(r["command"].endswith(f"--ablate {r['variant']}") for r in others)
    assert full["processes"] == 1 and full["data"][0]["n_images"] > 0
    # A second call finds everything finished and trains nothing again.
    before = [r["epochs"] for r in table["rows"]]
    assert ablations.main([str(images), "--out", str(out), *SMALL]) == 0
    after = json.loads((out / "ablations.json").read_text())
    assert [r["epochs"] for r in after["rows"]] == before
    assert ablations.main([str(images), "--ablate", "no-se"]) == 2
    assert "leave out --ablate" in capsys.readouterr().err


def test_a_run_is_shipped_with_its_card(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train.main([str(images), "--out", str(tmp_path / "run"), *SMALL]) == 0
    monkeypatch.setattr(card, "WEIGHTS_DIR", tmp_path)
    monkeypatch.setattr(registry, "WEIGHTS_DIR", tmp_path)
    flags = ["--runs", str(tmp_path / "run"), "--data", str(images), "--title", "Tints"]
    assert card.main(["tints", *flags]) == 0
    [shipped] = models.available_weights("efficientvmamba_test")
    facts = json.loads((tmp_path / "tints.json").read_text())
    assert shipped.trained_scan == "es2d:step=2" and shipped.top1 == facts["top1"]
    assert facts["accuracy"]["224"]["top1"] == pytest.approx(facts["top1"], abs=0.01)
    assert facts["teacher"] is None and len(facts["phases"]) == 1
    model = models.create_model("efficientvmamba_test", weights="default")
    assert model.weights_info.description == facts["description"]
    assert model.weights_info.sha256 == facts["sha256"] == facts["measured_by"]["weights_sha256"]
    assert evaluate.main([str(images), "--weights", "tints", "--sizes", "32", "--quiet"]) == 0
    # Weights that go on from these carry their history.
    assert card.main(["more", *flags, "--before", str(tmp_path / "tints.json")]) == 0
    assert len(json.loads((tmp_path / "more.json").read_text())["phases"]) == 2
