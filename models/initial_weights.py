"""Random weights as the authors draw them, without touching torch's global generator."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn

from models.layers import ES2D


def init_weights(model: nn.Module, seed: int) -> None:
    """Fill every tensor as the authors do; its numbers depend on its name and `seed` only.

    Linear: truncated normal 0.02, bias 0. Convolutions and `x_proj`: torch's default. dt, A and D:
    as in Mamba, https://arxiv.org/abs/2312.00752. torch's global generator is not used.
    """
    with torch.no_grad():
        for path, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{path}.{name}" if path else name
                generator = torch.Generator().manual_seed(
                    (seed * 0x9E3779B1 + zlib.crc32(full.encode())) % 2**63
                )
                value = torch.empty(parameter.shape)
                _fill(module, name, value, generator)
                parameter.copy_(value)
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()


def _fill(module: nn.Module, name: str, value: Tensor, generator: torch.Generator) -> None:
    if isinstance(module, ES2D):
        _fill_scan(module, name, value, generator)
    elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
        value.fill_(1.0 if name == "weight" else 0.0)
    elif isinstance(module, nn.Linear):
        if name == "weight":
            nn.init.trunc_normal_(value, std=0.02, generator=generator)
        else:
            value.zero_()
    elif isinstance(module, nn.Conv2d):
        fan_in = module.in_channels // module.groups * math.prod(module.kernel_size)
        value.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
    else:
        raise AssertionError(f"no initial values for {type(module).__name__}.{name}")


def _fill_scan(module: ES2D, name: str, value: Tensor, generator: torch.Generator) -> None:
    if name == "x_proj_weight":
        value.uniform_(-(module.inner**-0.5), module.inner**-0.5, generator=generator)
    elif name == "dt_projs_weight":
        value.uniform_(-(module.dt_rank**-0.5), module.dt_rank**-0.5, generator=generator)
    elif name == "dt_projs_bias":
        value.uniform_(math.log(0.001), math.log(0.1), generator=generator)
        dt = value.exp().clamp_(min=1e-4)
        value.copy_(dt + torch.log(-torch.expm1(-dt)))  # inverse softplus
    elif name == "A_logs":
        value.copy_(torch.arange(1.0, module.d_state + 1).log().expand_as(value))
    else:
        value.fill_(1.0)
