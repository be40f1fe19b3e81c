"""The kernel variants that ship: what the launcher compiles for the released networks.

`constants` is the one place that turns sizes into compile-time constants: the launcher and the
ahead-of-time inspector (`kernels/compiled.py`) both call it. Nothing here imports Triton.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels._triton.tiles import CHECKPOINT, Tile, padded_rank, power_of_two, tile_for

MODULES = {"steps": "kernels._triton.steps", "chunks": "kernels._triton.chunks"}
# How a kernel finds the token of a step: rows of their own, strides of a sequence, a table.
ROWS, STRIDES, TABLE = 0, 1, 2
# How programs that share a sequence add what they share: one program, atomics, a slice each.
ALONE, ATOMIC, PARTIAL = 0, 1, 2
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SIZES = ("n_tokens", "length", "n_sequences", "n_channels", "rank")
INPUTS = ("X", "DELTA", "BM", "CM", "A", "DT_WEIGHT", "BIAS", "SKIP", "ORDER", "SETS")
OUTPUTS = {
    "forward": ("Y", "CHECKPOINTS", "LAST"),
    "backward": (
        *("CHECKPOINTS", "STARTS", "GRAD_Y", "GRAD_X", "GRAD_DELTA", "GRAD_B", "GRAD_C"),
        *("GRAD_A", "GRAD_DT_WEIGHT", "GRAD_BIAS", "GRAD_SKIP"),
    ),
}
# Channels and rank of the scans in Tiny, Small and Base at stages 1 and 2.
SHIPPED_SCANS = ((96, 3), (192, 6), (128, 4), (256, 8), (384, 12))
SHIPPED_STATES = 16
SHIPPED_DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class KernelConfig:
    """One compiled variant, in the words of `triton.compiler.ASTSource`."""

    name: str
    module: str
    function: str
    signature: dict[str, str]
    constexprs: dict[str, object]
    num_warps: int
    num_stages: int
    divisible_by_16: tuple[str, ...]


def constants(
    kernel: str,
    tile: Tile,
    states: int,
    rank: int,
    order: int,
    is_sum: bool = False,
    softplus: bool = True,
    sharing: int = ATOMIC,
) -> dict[str, object]:
    """Compile-time constants of a scan kernel; rank 0 means that dt comes at full width."""
    values: dict[str, object] = {
        "N_STATES": states,
        "STATES": power_of_two(states),
        "RANK": padded_rank(rank),
        "CHANNELS": tile.channels,
        "STEPS": tile.steps,
        "EVERY": CHECKPOINT,
        "ORDER_KIND": order,
        "IS_SUM": is_sum,
        "SOFTPLUS": softplus,
    }
    if kernel.endswith("backward"):
        values["SHARING"] = sharing
    return values


def shipped_configs(target: str = "cuda") -> tuple[KernelConfig, ...]:
    """Every scan kernel in float32 and bfloat16 as Tiny, Small and Base launch it on `target`
    ("cuda" or "hip", with or without an architecture), and the same kernels in Mamba's layout."""
    found: dict[str, KernelConfig] = {}
    for regime in MODULES:
        for direction in OUTPUTS:
            for dtype in SHIPPED_DTYPES:
                for channels, rank in (*SHIPPED_SCANS, (SHIPPED_SCANS[0][0], 0)):
                    kernel = f"{regime}_{direction}"
                    config = _scan_config(kernel, channels, rank, dtype, target)
                    found.setdefault(config.name, config)
    return tuple(found.values())


def _scan_config(
    kernel: str, channels: int, rank: int, dtype: torch.dtype, target: str
) -> KernelConfig:
    regime, direction = kernel.split("_")
    tile = tile_for(kernel, channels, SHIPPED_STATES, dtype, target)
    order = STRIDES if rank else ROWS
    fixed = constants(kernel, tile, SHIPPED_STATES, rank, order)
    signature = dict.fromkeys((*INPUTS, *OUTPUTS[direction]), "*fp32")
    activation = TYPES[dtype]
    for name in ("X", "DELTA", "BM", "CM", "Y", "GRAD_Y", "GRAD_X"):
        if name in signature:
            signature[name] = activation
    if rank:
        signature["DELTA"] = "*fp32"
        absent = {"BM", "CM", "LAST", "GRAD_B", "GRAD_C"}
        signature |= {"ORDER": "*i32", "SETS": "*i32"}
    else:
        absent = {"DT_WEIGHT", "ORDER", "SETS", "GRAD_DT_WEIGHT"}
        signature["GRAD_DELTA"] = activation
    if tile.steps == CHECKPOINT:
        absent.add("STARTS")
    signature = {name: signature[name] for name in (*INPUTS, *OUTPUTS[direction])}
    absent &= set(signature)
    pointers = tuple(name for name in signature if name not in absent)
    signature |= dict.fromkeys(absent, "constexpr") | dict.fromkeys(SIZES, "i32")
    signature |= dict.fromkeys(fixed, "constexpr")
    layout = f"map-rank{padded_rank(rank)}" if rank else "rows"
    return KernelConfig(
        name=f"{kernel}-{layout}-{activation[1:]}-{tile.channels}x{tile.steps}x{tile.num_warps}",
        module=MODULES[regime],
        function=f"{kernel}_kernel",
        signature=signature,
        constexprs=dict.fromkeys(absent) | fixed,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        divisible_by_16=(*pointers, "n_channels") if rank else pointers,
    )
