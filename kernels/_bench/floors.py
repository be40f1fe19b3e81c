"""The cost model's floor beside a measured row, where it was measured on a GPU the model knows."""

from __future__ import annotations

from typing import Any

import torch

from kernels.cost import ScanCost, floors

# What the driver calls the products of `kernels.gpus`. Others of the family have other rates.
GPU_OF_DEVICE = {
    "NVIDIA H100 80GB HBM3": "H100 SXM",
    "NVIDIA H200": "H200 SXM",
    "NVIDIA A100-SXM4-80GB": "A100 80GB",
    "NVIDIA L40S": "L40S",
    "NVIDIA GeForce RTX 4090": "RTX 4090",
    "NVIDIA GeForce RTX 3090": "RTX 3090",
    "AMD Instinct MI300X": "MI300X",
}


def floor_columns(cost: ScanCost, device: torch.device) -> dict[str, Any]:
    """Empty on every other device: a floor of one machine says nothing about another."""
    if device.type != "cuda":
        return {}
    return floors_on(cost, torch.cuda.get_device_name(device))


def floors_on(cost: ScanCost, device_name: str) -> dict[str, Any]:
    """The columns for a device by its name."""
    gpu = GPU_OF_DEVICE.get(device_name)
    if gpu is None:
        return {}
    floor = floors(cost, gpu)
    return {
        "floor_us": 1e6 * floor.seconds,
        "floor_limit": floor.limiter,
        "floor_gpu": floor.gpu,
        "floor_label": floor.label,
    }
