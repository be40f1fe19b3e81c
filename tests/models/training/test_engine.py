"""The loop: learning rate, targets, resuming, saving, and what reaches the exported file."""

from __future__ import annotations

import csv
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch

import models
from models.training.config import TrainConfig, load_recipe
from models.training.engine import STATE_FILE, Trainer
from models.training.errors import TrainingError
from models.training.export import build_model, export_weights
from models.training.objective import learning_rate
from models.training.state import load_state, save_state, write_atomically
from models.training.student import set_drop_path

MakeTrainer = Callable[..., Trainer]


def test_schedule_and_learning_rate() -> None:
    config = TrainConfig(sizes="32:2,64:2", lr=1.0, min_lr=0.1, warmup_epochs=1)
    assert config.schedule() == (32, 32, 64, 64)
    rates = [learning_rate(config, step, 10) for step in range(40)]
    assert rates[0] == pytest.approx(1 / 11) and max(rates) == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert all(a > b for a, b in zip(rates[10:-1], rates[11:], strict=True))


@pytest.mark.parametrize(
    "change",
    [{"sizes": "96"}, {"sizes": "8:1"}, {"lr": 0.0}, {"precision": "fp8"}, {"ablate": "no-se2"}],
    ids=lambda c: next(iter(c)),
)
def test_bad_settings_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match="--" + next(iter(change))):
        TrainConfig().replace(**change)


def test_recipes(tmp_path: Path) -> None:
    shipped = load_recipe("imagenette", 1)
    TrainConfig().replace(**shipped.settings)
    assert shipped.class_names["n01440764"] == "tench"
    with pytest.raises(TrainingError, match="has phases 1 to"):
        load_recipe("imagenette", 99)
    with pytest.raises(TrainingError, match="imagenette"):
        load_recipe("imagenet", 1)
    own = tmp_path / "own.json"
    own.write_text('{"all": {"lr": 1.0, "seed": 3}, "phases": [{"lr": 2.0}]}')
    assert load_recipe(str(own), 1).settings == {"lr": 2.0, "seed": 3}
    own.write_text("{")
    with pytest.raises(TrainingError, match="is no recipe"):
        load_recipe(str(own), 1)


def test_scan_parameters_and_norms_do_not_decay(
    make_trainer: MakeTrainer, config: TrainConfig
) -> None:
    trainer = make_trainer(config.replace(weight_decay=0.1))
    decay = {id(p): g["weight_decay"] for g in trainer.optimizer.param_groups for p in g["params"]}
    free = {n for n, p in trainer.student.named_parameters() if decay[id(p)] == 0}
    decayed = {n for n, p in trainer.student.named_parameters() if decay[id(p)] == 0.1}
    assert any(n.endswith("A_logs") for n in free) and any(n.endswith("Ds") for n in free)
    assert any(n.endswith("norm.weight") for n in free)
    assert any(n.endswith("in_proj.weight") for n in decayed)
    assert not any(n.endswith(("A_logs", "Ds", "bias")) and "dt_projs" not in n for n in decayed)


def test_drop_path_rises_with_depth(config: TrainConfig) -> None:
    model = build_model(config, 3)
    set_drop_path(model, 0.3)
    rates = [model.get_submodule(b.name).drop_path for b in model.blocks()]
    assert rates[0] == 0 and rates[-1] == pytest.approx(0.3)
    assert np.allclose(np.diff(rates), rates[1])


def test_targets_are_smoothed_labels_beside_the_teacher_s_answer(
    make_trainer: MakeTrainer, config: TrainConfig
) -> None:
    maps = np.zeros((18, 5, 2, 2), np.float16)
    maps[:, 3] = 4
    trainer = make_trainer(config.replace(smoothing=0.3, distill_temperature=2.0), maps=maps)
    [batch] = next(trainer.steps(0))
    targets = trainer.objective.targets(batch)
    assert targets.shape == (4, 3 + 5)
    torch.testing.assert_close(targets[:, :3].sum(1), torch.ones(4))
    torch.testing.assert_close(targets[:, :3].max(1).values, torch.full((4,), 0.8))
    assert targets[:, :3].argmax(1).tolist() == batch.labels.tolist()
    want = torch.tensor([0.0, 0, 0, 2, 0]).softmax(0)
    torch.testing.assert_close(targets[:, 3:], want.expand(4, 5))


def test_mixing_keeps_targets_a_distribution(
    make_trainer: MakeTrainer, config: TrainConfig
) -> None:
    trainer = make_trainer(config.replace(mixup=0.5, cutmix=1.0, mix_probability=1.0, erasing=1.0))
    [batch] = next(trainer.steps(0))
    images, targets = trainer.objective.augment(
        batch.images.float(), trainer.objective.targets(batch)
    )
    assert images.shape == batch.images.shape and not torch.equal(images, batch.images.float())
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


AUGMENTED = {
    "drop_path": 0.2,
    "mixup": 0.2,
    "cutmix": 1.0,
    "erasing": 0.5,
    "accumulate": 2,
    "batch_size": 3,
}
TIMES = ("seconds", "images_per_second")


def numbers(trainer: Trainer) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in trainer.log.rows]


def test_resuming_in_an_epoch_changes_no_number(
    make_trainer: MakeTrainer, config: TrainConfig
) -> None:
    config = config.replace(**AUGMENTED)
    maps = np.random.default_rng(0).standard_normal((18, 4, 2, 2)).astype(np.float16)
    whole = make_trainer(config, "whole", maps)
    assert whole.steps_per_epoch == 3
    assert whole.run()

    n_asked = 0

    def after_two_steps() -> bool:
        nonlocal n_asked
        n_asked += 1
        return n_asked == 2

    assert not make_trainer(config, "parts", maps).run(after_two_steps)
    torch.manual_seed(999)  # whatever happened in between must not matter
    second = make_trainer(config, "parts", maps)
    second.resume()
    assert (second.progress.epoch, second.progress.step) == (0, 2)
    assert second.run()

    for name in ("student", "ema"):
        a = getattr(whole, name).state_dict()
        b = getattr(second, name).state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a), name
    assert numbers(second) == numbers(whole) and len(numbers(whole)) == 2


def test_the_seed_decides_everything(make_trainer: MakeTrainer, config: TrainConfig) -> None:
    runs = [
        make_trainer(config.replace(sizes="32:1", seed=s), f"r{i}")
        for i, s in ((0, 1), (1, 1), (2, 2))
    ]
    for trainer in runs:
        trainer.run()
    assert numbers(runs[0]) == numbers(runs[1]) != numbers(runs[2])


def test_the_log_is_complete_in_both_forms(
    make_trainer: MakeTrainer, config: TrainConfig, tmp_path: Path
) -> None:
    make_trainer(config, run_facts={"command": "train it"}).run()
    log = json.loads((tmp_path / "out" / "log.json").read_text())
    assert log["command"] == "train it" and log["config"]["model"] == config.model
    assert [row["epoch"] for row in log["epochs"]] == [1, 2]
    assert 0 <= log["epochs"][-1]["top1"] <= 100
    with (tmp_path / "out" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(r["loss"]) for r in rows] == [r["loss"] for r in log["epochs"]]


def test_corrupt_images_are_named_once_or_fatal(
    make_trainer: MakeTrainer, config: TrainConfig, images: Path
) -> None:
    (images / "train" / "red" / "2.png").write_bytes(b"no image")
    said: list[str] = []
    config = config.replace(batch_size=6)
    trainer = make_trainer(config, say=said.append)
    trainer.run()
    assert len(said) == 1 and "red/2.png" in said[0]
    assert trainer.log.rows[-1]["n_skipped"] == 1
    with pytest.raises(TrainingError, match="red/2.png"):
        make_trainer(config, "strict", is_strict=True).run()


def test_divergence_says_where(make_trainer: MakeTrainer, config: TrainConfig) -> None:
    trainer = make_trainer(config)
    with torch.no_grad():
        trainer.student.model.get_classifier().weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="epoch 1, step 1.*Lower --lr"):
        trainer.run()


@pytest.mark.parametrize("what", ["classes", "settings", "processes", "nothing"])
def test_a_state_that_does_not_fit_is_refused(
    make_trainer: MakeTrainer, config: TrainConfig, what: str, tmp_path: Path
) -> None:
    trainer = make_trainer(config)
    if what != "nothing":
        trainer.save()
        state = load_state(tmp_path / "out" / STATE_FILE)
        if what == "classes":
            state["classes"] = ["cat", "dog", "owl", "rat"]
        elif what == "settings":
            state["config"]["lr"] = 7.0
        else:
            state["random"] *= 2
        save_state(tmp_path / "out" / STATE_FILE, state)
    message = {
        "classes": "4 classes.*this folder has 3",
        "settings": "other settings: lr",
        "processes": "had 2 process",
        "nothing": "No state to resume",
    }[what]
    with pytest.raises(TrainingError, match=message):
        make_trainer(config).resume()


def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    file = tmp_path / "last.pt"
    save_state(file, {"epoch": 1})

    def fail(out: BinaryIO) -> None:
        out.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(TrainingError, match="No space left.*unchanged.*Free space"):
        write_atomically(file, fail)
    assert load_state(file) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_state_file_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Evil()}, tmp_path / "last.pt")
    with pytest.raises(TrainingError, match="cannot be read"):
        load_state(tmp_path / "last.pt")
    assert not (tmp_path / "ran").exists()


def test_export_is_the_average_and_opens_by_path(
    make_trainer: MakeTrainer, config: TrainConfig, tmp_path: Path
) -> None:
    names = ["sky", "grass", "rose"]
    trainer = make_trainer(config.replace(scan="ss2d"), run_facts={"class_names": names})
    trainer.run()
    file = export_weights(tmp_path / "out" / STATE_FILE, tmp_path / "weights.safetensors")
    model = models.create_model(config.model, weights=file, scan="ss2d")
    assert model.num_classes == 3 and model.weights_info.classes == tuple(names)
    assert model.weights_info.trained_scan == "ss2d"
    average = trainer.ema.module.state_dict()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, average[key], rtol=1e-3, atol=1e-6)
        if "running" in key or key.endswith("A_logs"):
            assert torch.equal(value, average[key]), key
    with pytest.raises(ValueError, match="3 classes.*num_classes=5"):
        build_model(config.replace(init=str(file)), 5)
    assert not build_model(config.replace(init=str(file)), 3).weights_info.is_random


@pytest.mark.parametrize("ablate", ["no-conv", "no-se", "late-evss"])
def test_ablated_networks_train(
    make_trainer: MakeTrainer, config: TrainConfig, ablate: str
) -> None:
    trainer = make_trainer(config.replace(ablate=ablate))
    trainer.step(next(trainer.steps(0)))
    kinds = [b.kind for b in trainer.student.model.blocks()]
    names = {n for n, _ in trainer.student.named_parameters()}
    assert (not any("conv_branch" in n for n in names)) == (ablate == "no-conv")
    assert kinds[0] == ("inverted residual" if ablate == "late-evss" else "evss")
    assert (not any(".se.global_reduce" in n for n in names)) == (ablate == "no-se")


def test_bf16_steps_stay_near_fp32(make_trainer: MakeTrainer, config: TrainConfig) -> None:
    losses = []
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(config.replace(precision=precision), precision)
        losses.append(trainer.backward(next(trainer.steps(0)))[0])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
