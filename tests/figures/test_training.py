"""Training logs become pictures; broken ones become sentences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from models.registry import WEIGHTS_DIR
from workbench.errors import BadInputError
from workbench.figures.paper import png
from workbench.figures.training import ablations_figure, curves_figure
from workbench.training_log import TrainingCurve, read_training

ROW = {"size": 64, "loss": 2.5, "images_per_second": 90.0, "top1": None, "val_loss": None}


def log(n_epochs: int = 3) -> dict:
    rows = [ROW | {"epoch": i + 1, "loss": 3.0 - 0.2 * i} for i in range(n_epochs)]
    if rows:
        rows[-1] |= {"top1": 61.5, "val_loss": 1.2}
    return {"config": {"seed": 3, "eval_size": 160}, "epochs": rows}


def test_a_run_folder_and_its_log_give_the_same_curve(tmp_path: Path) -> None:
    run = tmp_path / "run-a"
    run.mkdir()
    (run / "log.json").write_text(json.dumps(log()))
    curve = read_training(run)
    assert curve == read_training(run / "log.json")
    assert isinstance(curve, TrainingCurve)
    assert (curve.name, curve.seed, curve.eval_size) == ("run-a", 3, 160)
    assert [e.top1 for e in curve.epochs] == [None, None, 61.5]
    figure = curves_figure([curve])
    axes = figure.axes
    assert axes[0].lines[0].get_ydata().tolist() == [3.0, 2.8, 2.6]
    assert figure.legends[0].get_texts()[0].get_text() == "run-a: 61.5 %, seed 3"
    assert png(curves_figure([curve]))[:4] == b"\x89PNG"


def test_every_shipped_card_has_a_curve() -> None:
    cards = sorted(WEIGHTS_DIR.glob("*.json"))
    assert cards
    for card in cards:
        curve = read_training(card)
        assert isinstance(curve, TrainingCurve)
        assert len(curve.phase_starts) >= 1 and curve.phase_starts[0] == 1
        assert curve.epochs[-1].number == len(curve.epochs)


def test_ablations_are_drawn_with_their_numbers(tmp_path: Path) -> None:
    rows = [
        {"variant": name, "n_parameters": 5_000_000, "macs": 1e8, "top1": top1, "eval_size": 64}
        | {"seed": 0, "epochs": log()["epochs"]}
        for name, top1 in (("full", 60.0), ("no-conv", 55.5))
    ]
    file = tmp_path / "ablations.json"
    file.write_text(json.dumps({"rows": rows}))
    read = read_training(file)
    assert isinstance(read, tuple)
    bars = ablations_figure(read).axes[0]
    assert [bar.get_width() for bar in bars.patches] == [60.0, 55.5]
    assert "seed 0" in bars.get_title(loc="left")


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", json.dumps(log(0)), '{"config": {"seed": 1}, "epochs": [{}]}']
)
def test_what_is_no_log_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "log.json"
    file.write_text(text)
    with pytest.raises(BadInputError, match=r"log\.json is no training log.*Give a run's folder"):
        read_training(file)
    with pytest.raises(BadInputError, match="cannot be read"):
        read_training(tmp_path / "nothing")
