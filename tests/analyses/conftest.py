"""Small networks and photos for the analyses: everything runs in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch

import models
from models import create_model, registry, save_safetensors
from workbench.results import Provenance
from workbench.runtime import Workbench
from workbench.settings import Settings


@pytest.fixture(scope="module")
def wb() -> Workbench:
    return Workbench(Settings())


@pytest.fixture
def fresh() -> Workbench:
    return Workbench(Settings())


@pytest.fixture(autouse=True)
def one_thread():
    """Small maps gain nothing from threads, and the suite shares its cores."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture(scope="session")
def network() -> models.EfficientVMamba:
    """The test model; session-wide, so a test that changes weights makes its own."""
    return models.create_model("efficientvmamba_test", num_classes=10, seed=1).eval()


@pytest.fixture
def fresh_network() -> models.EfficientVMamba:
    return models.create_model("efficientvmamba_test", num_classes=10, seed=1).eval()


@pytest.fixture(scope="session")
def photo() -> Callable[..., np.ndarray]:
    """Normalised input `[3, h, w]` of a smooth random picture."""

    def make(height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng([seed, height, width])
        coarse = rng.standard_normal((3, -(-height // 8), -(-width // 8)))
        fine = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
        return (fine + 0.1 * rng.standard_normal(fine.shape)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    return Provenance(
        model="efficientvmamba_test",
        weights="random, seed 1",
        weights_sha256="",
        is_random=True,
        trained_scan=None,
        scan="es2d:step=2",
        image="test",
        image_sha256="",
        crop=(0, 0, 64, 64),
        input_size=(64, 64),
        definition="",
    )


@pytest.fixture(scope="session")
def n_hooks() -> Callable[[torch.nn.Module], int]:
    """Hooks of every kind on a network."""

    def count(model: torch.nn.Module) -> int:
        return sum(
            len(value)
            for module in model.modules()
            for name, value in module.__dict__.items()
            if "hook" in name and isinstance(value, dict)
        )

    return count


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> tuple[str, ...]:
    """Two entries of the test model, one per scan, as they would ship; returns the class names."""
    classes = ("church", *(f"thing {i}" for i in range(9)))
    for seed, scan in enumerate(("es2d:step=2", "ss2d")):
        name = f"test-{scan.partition(':')[0]}"
        model = create_model("efficientvmamba_test", num_classes=10, scan=scan, seed=seed)
        facts = {"description": f"trained with {scan}", "classes": classes, "top1": 50.0}
        sha256 = save_safetensors(
            model, tmp_path / f"{name}.safetensors", model_name="efficientvmamba_test", **facts
        )
        card = {"model": "efficientvmamba_test", "scan": scan, "sha256": sha256, **facts}
        (tmp_path / f"{name}.json").write_text(json.dumps(card))
    monkeypatch.setattr(registry, "WEIGHTS_DIR", tmp_path)
    return classes
