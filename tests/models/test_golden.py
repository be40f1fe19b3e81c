"""The networks against the authors' implementation: keys, shapes, outputs, one gradient.

`tests/golden/*.npz` were computed with the authors' code; weights and images are functions of name,
shape and seed, written down here once more.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import models

GOLDEN = Path(__file__).parents[1] / "golden"
RELATIVE_L2 = 1e-4
N_PARAMETERS = {"tiny": 6_493_660, "small": 11_273_688, "base": 33_717_136}


def golden_weight(name: str, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    z = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    last = name.rpartition(".")[2]
    if last == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    if last == "running_var":
        value = 0.5 + np.abs(z)
    elif last in ("running_mean", "bias"):
        value = 0.1 * z
    elif last == "A_logs":
        value = np.log(np.arange(1, shape[-1] + 1)) + 0.1 * z
    elif last == "dt_projs_bias":
        value = -3 + 0.5 * z
    elif last in ("x_proj_weight", "dt_projs_weight"):
        value = z / np.sqrt(shape[-1])
    elif len(shape) == 1:
        value = 1 + 0.1 * z
    else:
        value = z / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def golden_model(size: str, backend: str = "auto") -> models.EfficientVMamba:
    model = models.create_model(f"efficientvmamba_{size}", backend=backend).eval()
    state = model.state_dict()
    model.load_state_dict({k: golden_weight(k, tuple(v.shape)) for k, v in state.items()})
    return model


def golden_case(file: str) -> tuple[dict[str, np.ndarray], torch.Tensor]:
    with np.load(GOLDEN / f"{file}.npz") as stored:
        expected = dict(stored)
    height, width = map(int, file.partition("_")[2].split("x"))
    shape = (len(expected["logits"]), 3, height, width)
    image = np.random.default_rng([7, height, width]).standard_normal(shape).astype(np.float32)
    return expected, torch.from_numpy(image)


def relative_l2(ours: torch.Tensor, golden: np.ndarray) -> float:
    ours_64 = ours.detach().double().numpy()
    assert ours_64.shape == golden.shape
    return float(np.linalg.norm(ours_64 - golden) / np.linalg.norm(golden))


@pytest.mark.parametrize("size", N_PARAMETERS)
def test_keys_and_shapes_are_the_authors(size: str) -> None:
    model = models.create_model(f"efficientvmamba_{size}")
    listed = (GOLDEN / f"state_dict_{size}.txt").read_text().splitlines()
    assert [f"{k} {list(v.shape)}" for k, v in model.state_dict().items()] == listed
    assert sum(p.numel() for p in model.parameters()) == N_PARAMETERS[size]


@pytest.mark.parametrize(
    ("file", "backend"),
    [
        ("tiny_224x224", "auto"),
        ("tiny_72x104", "auto"),
        ("tiny_72x104", "reference"),
        ("small_96x96", "auto"),
    ],
)
def test_outputs_and_gradient(file: str, backend: str) -> None:
    expected, image = golden_case(file)
    model = golden_model(file.partition("_")[0], backend)
    with torch.no_grad():
        assert relative_l2(model(image), expected["logits"]) < RELATIVE_L2
        stages = model.forward_intermediates(image, output_fmt="NHWC", intermediates_only=True)
    for number, stage in enumerate(stages, start=1):
        assert list(stage.shape) == list(expected[f"stage{number}_shape"])
        centre = stage[:, stage.shape[1] // 2, stage.shape[2] // 2]
        assert relative_l2(stage.mean((1, 2)), expected[f"stage{number}_channel_mean"]) < 1e-4
        assert relative_l2(centre, expected[f"stage{number}_centre"]) < RELATIVE_L2

    if backend == "reference":
        return  # its gradients are tested with the kernels, and slow here
    # Once more with gradients: nothing is folded or run in parts then.
    image.requires_grad_()
    _, (last,) = model.forward_intermediates(image, indices=1, output_fmt="NHWC")
    centre = last[:, last.shape[1] // 2, last.shape[2] // 2]
    torch.relu(centre).sum().backward()
    assert image.grad is not None
    assert relative_l2(centre, expected["stage4_centre"]) < RELATIVE_L2
    assert relative_l2(image.grad, expected["centre_grad"]) < RELATIVE_L2
