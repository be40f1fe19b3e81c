"""The comparison of the twins, on two small nets that ship for the test only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.registry import shipped_path
from workbench import twins, weights_cards

TEST_MODEL = "efficientvmamba_test"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / "photos" / "val" / f"class{label}"
        folder.mkdir(parents=True)
        for i in range(2):
            pixels = rng.integers(0, 256, (72, 96, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_the_report_has_both_nets_on_the_same_images(shipped, data, tmp_path, capsys) -> None:
    out = tmp_path / "reports" / "twins.json"
    flags = ["--model", TEST_MODEL, "--images", "1", "--out", str(out), "--batch-size", "10"]
    flags += ["--cards"]
    assert twins.main([str(data), *flags]) == 0
    report = json.loads(out.read_text())
    a, b = (report["rows"][scan] for scan in twins.SCANS)
    assert a["sha256"] != b["sha256"] and a["macs_224"] < b["macs_224"]
    for size in ("160", "224"):
        d = report["difference"][size]
        assert d["value"] == pytest.approx(
            b["accuracy"][size]["top1"] - a["accuracy"][size]["top1"], abs=1e-6
        )
        assert d["low"] <= d["value"] <= d["high"] and d["n_images"] == 20
    assert min(row["ms_per_image"]["p50"] for row in (a, b)) > 0
    assert 0 < a["erf"]["area50"] < a["erf"]["area90"] <= 1
    said = capsys.readouterr().out
    assert "| top-1 at 224 px" in said and "One seed" in said
    for card in tmp_path.glob("test-*.json"):
        facts = json.loads(card.read_text())
        assert facts["sha256"] in {row["sha256"] for row in facts["twins"]["rows"].values()}
        assert facts["twins"]["difference"] == report["difference"] and str(card) in said
    d = report["difference"]["224"]
    story = weights_cards.story(TEST_MODEL)
    assert "trained with ES2D, step 2" in story and "trained with Full scan (SS2D)" in story
    assert f"Full scan (SS2D) less ES2D, step 2 at 224 px: {d['value']:+.1f} points" in story
    assert f"{d['low']:+.1f} to {d['high']:+.1f}" in story
    # These cards tell nothing of their training, so nothing in it differs.
    assert "Both were trained with the same settings." in said
    assert "Both were trained with the same settings." in story
    # Other weights have taken the place of one of them since.
    card = tmp_path / "test-ss2d.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": "0" * 64}))
    assert "points" not in weights_cards.story(TEST_MODEL)


def test_settings_in_which_the_twins_differ_are_named(shipped, tmp_path) -> None:
    def describe(scan: str, *phases: dict[str, object]) -> None:
        card = tmp_path / f"test-{scan}.json"
        configs = [{"config": {"scan": scan, "init": scan} | phase} for phase in phases]
        card.write_text(json.dumps(json.loads(card.read_text()) | {"phases": configs}))

    describe("es2d", {"lr": 0.1, "precision": "bf16"}, {"lr": 0.2, "precision": "bf16"})
    describe("ss2d", {"lr": 0.1, "precision": "fp32"}, {"lr": 0.3, "precision": "fp32"})
    found = twins.settings_that_differ(TEST_MODEL)
    assert found == {"precision": [["bf16", "fp32"]], "lr": [[0.2, 0.3]]}
    words = weights_cards.training_words(found)
    assert words.endswith("same settings but for precision bf16 and fp32, lr 0.2 and 0.3.")
    describe("ss2d", {"lr": 0.1, "precision": "bf16"})
    assert twins.settings_that_differ(TEST_MODEL) == {"phases": [[2, 1]]}


def test_the_story_of_what_ships_has_accuracy_and_limits() -> None:
    story = weights_cards.story("efficientvmamba_tiny")
    card = shipped_path("efficientvmamba_tiny-es2d-imagenette").with_suffix(".json")
    top1 = {size: got["top1"] for size, got in json.loads(card.read_text())["accuracy"].items()}
    said = f"top-1 {top1['160']:.1f} % at 160 px and {top1['224']:.1f} % at 224 px"
    assert story.startswith(f"Imagenette, trained with ES2D, step 2, {said}.")
    assert "Ten easy classes only" in story and "seen this validation set's images" in story
    assert weights_cards.story("efficientvmamba_base").startswith("None ship for this model")


def test_without_a_twin_there_is_nothing_to_compare(data, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(twins.models, "available_weights", lambda _: [])
    assert twins.main([str(data), "--out", str(tmp_path / "t.json")]) == 2
    assert "no twins to compare" in capsys.readouterr().err
