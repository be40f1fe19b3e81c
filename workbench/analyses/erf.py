"""Effective receptive field: how strongly each input pixel moves one token of a stage's output.

Definition (scale-invariant mass): with f the stage's output before patch merging and (y, x) a
token, `g = d sum_c ReLU(f[c, y, x]) / d input`; an image's map is `sum_rgb |g|` divided by its sum,
the field is the mean of these maps over the images. Dividing first keeps the result free of the
gradient's scale, on which the usual log10(x + 1) area number depends (RepLKNet's definition; see
the workbench's reference).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from workbench.analyses.checks import explain_non_finite
from workbench.errors import BadInputError
from workbench.progress import CancelToken
from workbench.results import ErfResult, Provenance

DEFINITION = (
    "share of |d sum_c ReLU(feature[c, y, x]) / d input| per input pixel, summed over RGB; "
    "each image normalised to sum 1, mean over images"
)
# Input pixels of one batch: bounds the memory of the backward pass (about 1.2 kB a pixel for Tiny)
# and keeps a batch near one second on two cores, so Stop answers quickly.
BATCH_PIXELS_CPU = 2 * 224 * 224
BATCH_PIXELS_GPU = 64 * 224 * 224


def erf(
    model: Any,
    images: Sequence[tuple[str, np.ndarray]],
    stage: int,
    y: int,
    x: int,
    stride: int,
    *,
    provenance: Provenance,
    token: CancelToken | None = None,
) -> Iterator[ErfResult]:
    """Field of token `(y, x)` of `stage` (1-based); yields the running mean after each batch.

    `images` are pairs (name, normalised input float32 `[3, H, W]`), all of one size. No hook is set
    and no torch mode is left switched on between two items, so the caller may pause or drop the
    generator.
    """
    started = time.perf_counter()
    if not images:
        raise BadInputError("No images were given for the receptive field. Give at least one.")
    device = next(model.parameters()).device
    height, width = images[0][1].shape[-2:]
    budget = BATCH_PIXELS_GPU if device.type == "cuda" else BATCH_PIXELS_CPU
    batch_size = max(1, budget // (height * width))
    total = np.zeros((height, width))
    used: list[str] = []
    empty: list[str] = []
    done = 0
    while done < len(images):
        if token is not None:
            token.check()
        # One image alone first: the first picture should be there early.
        batch = images[done : done + (1 if done == 0 else batch_size)]
        stacked = torch.from_numpy(np.stack([array for _, array in batch])).to(device)
        maps = input_gradient(model, stacked, stage, y, x).double().cpu().numpy()
        for (name, _), image_map in zip(batch, maps, strict=True):
            mass = image_map.sum()
            if mass > 0:
                total += image_map / mass
                used.append(name)
            else:
                empty.append(name)
        done += len(batch)
        is_final = done == len(images)
        if not used and is_final:
            raise BadInputError(
                f"The receptive field of token ({y}, {x}) of stage {stage} is empty: no image "
                "moves it, every gradient is zero. Choose another token or other weights."
            )
        if used:
            yield _result(
                total / len(used), used, empty, (stage, y, x, stride), provenance, started, is_final
            )


def input_gradient(model: Any, images: torch.Tensor, stage: int, y: int, x: int) -> torch.Tensor:
    """`sum_rgb |d objective / d input|` per image: `[B, 3, H, W]` -> `[B, H, W]`.

    The forward pass ends at the stage. In eval mode no layer mixes images, so one backward pass of
    the summed objectives gives each image its own gradient.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_(True)
        (features,) = model.forward_intermediates(
            images, indices=[stage - 1], stop_early=True, intermediates_only=True
        )
        n_rows, n_columns = features.shape[-2:]
        if not (0 <= y < n_rows and 0 <= x < n_columns):
            raise BadInputError(
                f"Token ({y}, {x}) is outside stage {stage}, which has {n_rows} x {n_columns} "
                f"tokens here. Choose y from 0 to {n_rows - 1} and x from 0 to {n_columns - 1}."
            )
        objective = features[:, :, y, x].relu().sum()
        if objective.requires_grad:
            (gradient,) = torch.autograd.grad(objective, images)
        else:  # a stage that no parameter or pixel reaches
            gradient = torch.zeros_like(images)
    if not torch.isfinite(gradient).all() or not torch.isfinite(objective):
        raise BadInputError(explain_non_finite(model, "the gradient of the receptive field"))
    return gradient.abs().sum(dim=1)


def _result(
    mass: np.ndarray,
    used: list[str],
    empty: list[str],
    focus: tuple[int, int, int, int],
    provenance: Provenance,
    started: float,
    is_final: bool,
) -> ErfResult:
    stage, y, x, stride = focus
    centre = ((y + 0.5) * stride, (x + 0.5) * stride)
    rows, columns = -(-mass.shape[0] // stride), -(-mass.shape[1] // stride)
    is_centre = (y, x) == (rows // 2, columns // 2)
    radii, within = radial_mass(mass, centre)
    note = f"{', '.join(empty)}: no gradient at all, left out of the mean." if empty else ""
    return ErfResult(
        provenance=replace(
            provenance,
            definition=DEFINITION,
            parameters={**provenance.parameters, "stage": stage, "y": y, "x": x},
            seconds=time.perf_counter() - started,
        ),
        stage=stage,
        y=y,
        x=x,
        stride=stride,
        mass=mass.astype(np.float32),
        radius_px=radii.astype(np.float32),
        radial_mass=within.astype(np.float32),
        n_images=len(used),
        image_names=tuple(used),
        metrics=metrics(mass, centre, is_centre_token=is_centre),
        is_final=is_final,
        note=note,
    )


def metrics(
    mass: np.ndarray, centre: tuple[float, float], *, is_centre_token: bool = True
) -> dict[str, float]:
    """Numbers of one field. `mass` `[H, W]` sums to 1; `centre` is a point `(y, x)`, pixel i spans
    [i, i+1].

    The centred squares lie around the image's centre pixel as RepLKNet defines them, so they are
    given for the centre token only (nan elsewhere).
    """
    found: dict[str, float] = {}
    for percent in (50, 90):
        area, level = highest_density(mass, percent / 100)
        found[f"area{percent}"] = area
        found[f"level{percent}"] = level
        found[f"radius{percent}_px"] = mass_radius(mass, centre, percent / 100)
    for percent in (20, 30, 50, 99):
        found[f"square{percent}"] = (
            centred_square(mass, percent / 100) if is_centre_token else float("nan")
        )
    rows, columns = np.indices(mass.shape)
    found["com_y_px"] = float((mass * (rows + 0.5)).sum() / mass.sum())
    found["com_x_px"] = float((mass * (columns + 0.5)).sum() / mass.sum())
    found["nonzero"] = float((mass > 0).mean())
    return found


def highest_density(mass: np.ndarray, share: float) -> tuple[float, float]:
    """Smallest set of pixels that holds `share` of the mass: (its area / image area, its lowest
    mass)."""
    ordered = np.sort(mass, axis=None)[::-1]
    cumulative = np.cumsum(ordered)
    n = min(int(np.searchsorted(cumulative, share * cumulative[-1])) + 1, ordered.size)
    return n / mass.size, float(ordered[n - 1])


def centred_square(mass: np.ndarray, share: float) -> float:
    """RepLKNet's area ratio: the smallest square of odd side around pixel (H//2, W//2) with more
    than `share` of the mass, over the image area; nan if none inside the image reaches it."""
    height, width = mass.shape
    corner = np.zeros((height + 1, width + 1))
    corner[1:, 1:] = mass.cumsum(0).cumsum(1)  # mass above and left of each pixel corner
    half = np.arange(1, min(height, width) // 2)
    top, left = height // 2 - half, width // 2 - half
    bottom, right = height // 2 + half + 1, width // 2 + half + 1
    inside = corner[bottom, right] - corner[top, right] - corner[bottom, left] + corner[top, left]
    reached = np.flatnonzero(inside / corner[-1, -1] > share)
    if reached.size == 0:
        return float("nan")
    side = 2 * int(half[reached[0]]) + 1
    return side * side / mass.size


def _distances(shape: tuple[int, ...], centre: tuple[float, float]) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.hypot(rows + 0.5 - centre[0], columns + 0.5 - centre[1])


def radial_mass(mass: np.ndarray, centre: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Share of the mass within each radius 0, 1, 2 ... px around `centre`: (radii, shares)."""
    distance = _distances(mass.shape, centre)
    ring = np.ceil(distance).astype(np.int64)  # within radius r means distance <= r
    per_ring = np.bincount(ring.ravel(), weights=mass.ravel())
    return np.arange(per_ring.size), np.cumsum(per_ring) / mass.sum()


def mass_radius(mass: np.ndarray, centre: tuple[float, float], share: float) -> float:
    """Smallest radius in input pixels around `centre` that holds `share` of the mass."""
    distance = _distances(mass.shape, centre).ravel()
    order = np.argsort(distance)
    cumulative = np.cumsum(mass.ravel()[order])
    n = min(int(np.searchsorted(cumulative, share * cumulative[-1])), order.size - 1)
    return float(distance[order[n]])
