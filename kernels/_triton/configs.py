"""The kernel variants that ship: what the launcher compiles for the released networks.

`constants` is the one place that turns sizes into compile-time constants: the launcher and the
ahead-of-time inspector (`kernels/compiled.py`) both call it. Nothing here imports Triton.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from kernels._triton.tiles import (
    CHECKPOINT,
    KERNELS,
    Tile,
    candidates,
    elements_per_thread,
    padded_rank,
    power_of_two,
    ruled_out,
    tile_for,
)

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


# Tile of the projection's kernels: steps or tokens x channels.
PROJECTION_STEPS, PROJECTION_CHANNELS = 64, 32
PROJECTION_WARPS, PROJECTION_STAGES = 8, 2
# The smallest side of a matrix product on tensor cores.
NARROWEST_PRODUCT = 16
PROJECTIONS = {
    "project": ("X", "WEIGHT", "ORDER", "SETS", "PROJECTED"),
    "project_back": ("GRAD_PROJECTED", "WEIGHT", "ORDER", "SETS", "GRAD_X"),
    "project_weight": ("X", "GRAD_PROJECTED", "ORDER", "GRAD_WEIGHT"),
    "merge": ("PER_STEP", "VISITS", "OUT"),
}


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


def projection_constants(
    width: int, order: int, dtype: torch.dtype, is_interpreted: bool = False
) -> dict[str, object]:
    """Compile-time constants of the kernels that project `width` = R + 2N values per step."""
    rounded = TYPES[dtype][1:]
    return {
        "WIDTH": max(NARROWEST_PRODUCT, power_of_two(width)),
        "STEPS": PROJECTION_STEPS,
        "CHANNELS": PROJECTION_CHANNELS,
        "ORDER_KIND": order,
        "IS_SPLIT": dtype != torch.float32,
        "ROUNDED": rounded,
        "FACTOR": "fp32" if is_interpreted else rounded,
    }


def merge_constants() -> dict[str, object]:
    return {"TOKENS": PROJECTION_STEPS, "CHANNELS": PROJECTION_CHANNELS}


def shipped_configs(target: str = "cuda") -> tuple[KernelConfig, ...]:
    """Every kernel in float32 and bfloat16 as Tiny, Small and Base launch it on `target` ("cuda" or
    "hip", with or without an architecture), and the scans in Mamba's layout.

    The merge runs for orders like ss2d only, which these networks take by name (`scan="ss2d"`).
    """
    found: dict[str, KernelConfig] = {}
    for regime in MODULES:
        for direction in OUTPUTS:
            for dtype in SHIPPED_DTYPES:
                for channels, rank in (*SHIPPED_SCANS, (SHIPPED_SCANS[0][0], 0)):
                    kernel = f"{regime}_{direction}"
                    config = _scan_config(kernel, channels, rank, dtype, target)
                    found.setdefault(config.name, config)
    for kernel in ("project", "project_back", "project_weight"):
        for dtype in SHIPPED_DTYPES:
            for _, rank in SHIPPED_SCANS:
                config = _projection_config(kernel, rank + 2 * SHIPPED_STATES, dtype)
                found.setdefault(config.name, config)
    sizes = ("n_tokens", "n_steps", "n_channels", "n_visits")
    types = ("*fp32", "*i32", "*bf16")
    merge = _plain_config("merge", "merge-bf16", types, sizes, merge_constants())
    return (*found.values(), merge)


@dataclass(frozen=True)
class ConfigChoice:
    """A variant that can be compiled, shipped or not, and the tile that makes it differ."""

    config: KernelConfig
    kernel: str  # "steps_forward"
    layout: str  # "map-rank16", "rows", "width64"; "" where the kernel has one
    dtype: str  # "fp32" or "bf16"
    channels: int  # of the tile, as the next two
    steps: int
    num_warps: int
    origin: str  # "shipped", "candidate" or "ruled out" (by the resource model of `tiles`)
    elements: int  # state elements that one thread holds; 0 for the projection's kernels


@lru_cache(maxsize=4)
def config_choices(target: str) -> tuple[ConfigChoice, ...]:
    """Every kernel with its shipped tile, then with each tile that `tiles.candidates` would time,
    and with some that it rules out: larger ones, and on AMD those whose scan crosses a wave."""
    kind = target.partition(":")[0]
    found: dict[str, ConfigChoice] = {}
    for shipped in shipped_configs(target):
        function = shipped.function.removesuffix("_kernel")
        if function not in KERNELS:
            found[shipped.name] = _plain_choice(shipped, function)
            continue
        channels, rank = (
            SHIPPED_SCANS[-1] if shipped.constexprs["RANK"] else (SHIPPED_SCANS[0][0], 0)
        )
        (dtype,) = (t for t in SHIPPED_DTYPES if TYPES[t] == shipped.signature["X"])
        own = Tile(
            int(str(shipped.constexprs["CHANNELS"])),
            int(str(shipped.constexprs["STEPS"])),
            shipped.num_warps,
            shipped.num_stages,
        )
        sizes = (function, channels, SHIPPED_STATES, dtype, target)
        listed = [(own, "shipped")]
        listed += [(tile, "candidate") for tile in candidates(*sizes)]
        listed += [(tile, "ruled out") for tile in ruled_out(*sizes)]
        for tile, origin in listed:
            config = _scan_config(function, channels, rank, dtype, target, tile)
            if config.name not in found:
                found[config.name] = ConfigChoice(
                    config,
                    function,
                    _layout(rank),
                    TYPES[dtype][1:],
                    tile.channels,
                    tile.steps,
                    tile.num_warps,
                    origin,
                    elements_per_thread(tile, function, power_of_two(SHIPPED_STATES), kind),
                )
    return tuple(found.values())


def _plain_choice(config: KernelConfig, kernel: str) -> ConfigChoice:
    layout = config.name.removeprefix(kernel).strip("-").rpartition("-")[0]
    steps = int(str(config.constexprs.get("STEPS", config.constexprs.get("TOKENS"))))
    channels = int(str(config.constexprs["CHANNELS"]))
    dtype = config.name.rpartition("-")[2]
    return ConfigChoice(
        config, kernel, layout, dtype, channels, steps, config.num_warps, "shipped", 0
    )


def _layout(rank: int) -> str:
    return f"map-rank{padded_rank(rank)}" if rank else "rows"


def _scan_config(
    kernel: str,
    channels: int,
    rank: int,
    dtype: torch.dtype,
    target: str,
    tile: Tile | None = None,
) -> KernelConfig:
    regime, direction = kernel.split("_")
    tile = tile or tile_for(kernel, channels, SHIPPED_STATES, dtype, target)
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
    return KernelConfig(
        name=f"{kernel}-{_layout(rank)}-{activation[1:]}-{tile.channels}x{tile.steps}x{tile.num_warps}",
        module=MODULES[regime],
        function=f"{kernel}_kernel",
        signature=signature,
        constexprs=dict.fromkeys(absent) | fixed,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        divisible_by_16=(*pointers, "n_channels") if rank else pointers,
    )


def _projection_config(kernel: str, width: int, dtype: torch.dtype) -> KernelConfig:
    activation = TYPES[dtype]
    types = {
        "project": (activation, "*fp32", "*i32", "*i32", "*fp32"),
        "project_back": ("*fp32", "*fp32", "*i32", "*i32", activation),
        "project_weight": (activation, "*fp32", "*i32", "*fp32"),
    }[kernel]
    sizes: tuple[str, ...] = ("n_tokens", "length", "n_sequences", "n_channels", "width")
    if kernel == "project_weight":
        sizes += ("batch_size", "n_parts")
    fixed = projection_constants(width, STRIDES, dtype)
    if kernel == "project_back":
        fixed["IS_SUM"] = False
    name = f"{kernel}-width{fixed['WIDTH']}-{activation[1:]}"
    return _plain_config(kernel, name, types, sizes, fixed)


def _plain_config(
    kernel: str,
    name: str,
    types: tuple[str, ...],
    sizes: tuple[str, ...],
    fixed: dict[str, object],
) -> KernelConfig:
    pointers = PROJECTIONS[kernel]
    return KernelConfig(
        name=name,
        module="kernels._triton.projection",
        function=f"{kernel}_kernel",
        signature=dict(zip(pointers, types, strict=True))
        | dict.fromkeys(sizes, "i32")
        | dict.fromkeys(fixed, "constexpr"),
        constexprs=fixed,
        num_warps=PROJECTION_WARPS,
        num_stages=PROJECTION_STAGES,
        divisible_by_16=(*pointers, "n_channels"),
    )
