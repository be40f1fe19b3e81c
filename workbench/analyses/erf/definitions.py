"""What "effective receptive field" means to whom: five parts each, named, as functions.

    objective      features [B, C, h, w] -> one number per image, whose gradient is taken
    rectification  gradient [B, 3, H, W] -> map [B, H, W]
    averaging      maps of the images -> one map
    transform      the averaged map -> what is drawn and, for some, measured
    metric         the number that its authors report

"mass" is ours: nothing in it depends on the gradient's scale. The others reproduce a published tool
on the same images, the picked token apart: RepLKNet's and VMamba's take (h // 2, w // 2), OpenERF's
too where it hooks a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

import numpy as np
from torch import Tensor

F = TypeVar("F")
OPENERF_RADII = (5, 10, 20, 30, 40, 60, 80)  # px


@dataclass(frozen=True, slots=True)
class Part(Generic[F]):
    words: str
    of: F


@dataclass(frozen=True, slots=True)
class Averaging:
    """How maps become one.

    `per_image`: each image's map is divided by its sum first, so an image without any gradient has
    no map. `keeps_scale`: the average is not divided by its own sum.
    """

    per_image: bool
    keeps_scale: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    key: str
    label: str
    objective: Part[Callable[[Tensor, int, int], Tensor]]
    rectification: Part[Callable[[Tensor], Tensor]]
    averaging: Part[Averaging]
    transform: Part[Callable[[np.ndarray], np.ndarray] | None]  # None: nothing is changed
    metric: Part[Callable[[np.ndarray], dict[str, float]] | None]  # numbers of its own, see below
    source: str

    @property
    def parts(self) -> dict[str, str]:
        """Each part in words."""
        names = ("objective", "rectification", "averaging", "transform", "metric")
        return {name: getattr(self, name).words for name in names}

    @property
    def line(self) -> str:
        return "; ".join(f"{name}: {words}" for name, words in self.parts.items())

    def shown(self, averaged: np.ndarray) -> np.ndarray | None:
        """The averaged map after the transform; None where that is the map itself."""
        return None if self.transform.of is None else self.transform.of(averaged)


def relu_sum(features: Tensor, y: int, x: int) -> Tensor:
    return features[:, :, y, x].relu().sum(1)


def channel_mean(features: Tensor, y: int, x: int) -> Tensor:
    return features[:, :, y, x].mean(1)


def absolute_rgb_sum(gradient: Tensor) -> Tensor:
    return gradient.abs().sum(1)


def positive_rgb_sum(gradient: Tensor) -> Tensor:
    return gradient.relu().sum(1)


def positive_of_rgb_mean(gradient: Tensor) -> Tensor:
    """The mean comes first: colours of opposite sign cancel."""
    return gradient.mean(1).clamp(min=0)


def log_of_one_more(averaged: np.ndarray) -> np.ndarray:
    """log10(x + 1) over its largest value."""
    logs = np.log10(averaged + 1)
    return logs / logs.max()


def fifth_root(averaged: np.ndarray) -> np.ndarray:
    """x^0.2 over its largest value."""
    roots = averaged**0.2
    return roots / roots.max()


def openerf_radial(mass: np.ndarray) -> dict[str, float]:
    """Mass within 5 to 80 px of the middle pixel (H // 2, W // 2), measured between pixels."""
    height, width = mass.shape
    rows, columns = np.ogrid[:height, :width]
    distance = np.hypot(rows - height // 2, columns - width // 2)
    total = mass.sum(dtype=np.float64)
    return {
        f"within{radius}": float(mass[distance <= radius].sum(dtype=np.float64) / total)
        for radius in OPENERF_RADII
    }


MASS = Definition(
    key="mass",
    label="scale-invariant mass",
    objective=Part("sum over channels of ReLU(feature) of the token", relu_sum),
    rectification=Part("|gradient| summed over RGB", absolute_rgb_sum),
    averaging=Part(
        "each image divided by its own sum, mean over images",
        Averaging(per_image=True, keeps_scale=False),
    ),
    transform=Part("none (share of mass per pixel)", None),
    metric=Part("smallest area with 20, 50, 90, 99 % of the mass", None),
    source="this workbench",
)
_POSITIVE: Part[Callable[[Tensor], Tensor]] = Part(
    "ReLU(gradient) summed over RGB", positive_rgb_sum
)
_RAW_MEAN = Part(
    "mean of the raw maps, images with NaN skipped", Averaging(per_image=False, keeps_scale=True)
)
REPLKNET = Definition(
    key="replknet",
    label="RepLKNet",
    objective=MASS.objective,
    rectification=_POSITIVE,
    averaging=_RAW_MEAN,
    transform=Part("log10(x + 1), over its largest value", log_of_one_more),
    metric=Part(
        "smallest centred square with more than 20, 30, 50, 99 % of the transformed map", None
    ),
    source="Ding et al., arXiv:2203.06717, erf/ of github.com/DingXiaoH/RepLKNet-pytorch",
)
VMAMBA = Definition(
    key="vmamba",
    label="VMamba",
    objective=MASS.objective,
    rectification=_POSITIVE,
    averaging=_RAW_MEAN,
    transform=Part("x^0.2, over its largest value", fifth_root),
    metric=Part("none of its own; RepLKNet's centred square of the transformed map", None),
    source="Liu et al., arXiv:2401.10166, analyze/ of github.com/MzeroMiko/VMamba at 2ed52ea",
)
OPENERF = Definition(
    key="openerf",
    label="OpenERF",
    objective=Part("mean over channels of the token's features, no ReLU", channel_mean),
    rectification=Part("mean over RGB first, then negative values to 0", positive_of_rgb_mean),
    averaging=Part(
        "sum over images, divided by its total", Averaging(per_image=False, keeps_scale=False)
    ),
    transform=Part("none (linear)", None),
    metric=Part(
        "centre of mass, peak, mass within 5, 10, 20, 30, 40, 60, 80 px of the middle pixel, "
        "Gaussian fit",
        openerf_radial,
    ),
    source="OpenERF 0.6.1, github.com/kmbmjn/OpenERF",
)
DEFINITIONS: Mapping[str, Definition] = MappingProxyType(
    {definition.key: definition for definition in (MASS, REPLKNET, VMAMBA, OPENERF)}
)
