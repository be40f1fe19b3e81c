"""What one token costs in the forward kernel that a GPU would run: from its launch and its source.

Nothing is run or measured. Loads and stores are the bytes that the kernel's source asks for; what
a cache gives again is not known here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from kernels import ScanOrder, ScanSpec, scan_order
from kernels._bench.floors import GPU_OF_DEVICE
from kernels._triton import launch
from kernels._triton.configs import TYPES
from kernels._triton.orders import find_walks
from kernels._triton.tiles import CHECKPOINT, padded_rank
from kernels.compiled import TARGETS, CompiledKernel
from kernels.cost import forward_cost, parts
from kernels.gpus import GPUS, Gpu
from workbench.analyses.cost_grid import check_setting
from workbench.errors import BadInputError
from workbench.floors import WIDTHS
from workbench.kernel_results import TokenCost, TokenVisit
from workbench.results import Provenance

FLOAT32 = 4  # bytes of a projected value: dt's factors, B and C, whatever x is
INT32 = 4  # bytes of an entry of an order's table
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COUNTED = (
    "Bytes as the forward kernel's source asks for them, each step counted once although it is "
    "loaded one step ahead; the states that training stores between chunks and the parameters, "
    "which a program loads once, are not counted. Exponentials and FLOPs are the cost model's."
)


def token_cost(
    scan: str | ScanSpec,
    height: int,
    width: int,
    stage: int,
    y: int,
    x: int,
    *,
    channels: int,
    rank: int,
    states: int,
    batch: int,
    dtype: str,
    gpu: str,
    provenance: Provenance,
    compiled: CompiledKernel | None = None,
) -> TokenCost:
    """Cost of token (y, x) of a map of `height` x `width` tokens, in a scan of one image.

    `gpu` is a name of `kernels.gpus`: its multiprocessors and the batch choose the kernel. The
    parameters are those of one scan: D `channels`, N `states`, R `rank`. BadInputError for a scan
    that no network runs, a token outside the map, an unknown GPU or type.
    """
    order = _order(scan, height, width)
    check_setting(batch, dtype, "forward")
    if gpu not in GPUS:
        raise BadInputError(f"No GPU is called {gpu!r}. Choose one of: {', '.join(GPUS)}.")
    if not (0 <= y < height and 0 <= x < width):
        raise BadInputError(
            f"Token ({y}, {x}) is not on the map of {height} x {width} tokens. Choose y below "
            f"{height} and x below {width}."
        )
    sizes = launch.ScanSizes(batch, order.n_sequences, channels, states, DTYPES[dtype])
    chosen = launch.launch_of("forward", sizes, facts_of(GPUS[gpu]))
    visits = _visits(order, y * width + x, chosen.n_blocks)
    loads, stores = step_bytes(order, channels, rank, states, chosen.n_blocks, WIDTHS[dtype])
    unit = forward_cost(1, 1, 1, channels, states, rank)
    least = parts(forward_cost, 1, 1, channels, states, rank).activations * WIDTHS[dtype]
    n, tile = len(visits), chosen.tile
    cost = TokenCost(
        provenance=provenance,
        scan=str(order.spec),
        stage=stage,
        y=y,
        x=x,
        batch=batch,
        device=gpu,
        regime=chosen.regime,
        kernel=_config_name(chosen, rank, dtype),
        target=GPUS[gpu].target or "",
        tile_channels=tile.channels,
        tile_steps=tile.steps,
        num_warps=tile.num_warps,
        n_programs=chosen.n_programs,
        visits=visits,
        state_updates=n * channels * states,
        loads={name: n * n_bytes for name, n_bytes in loads.items()},
        stores={name: n * n_bytes for name, n_bytes in stores.items()},
        least_bytes=n * least,
        flops=n * unit.flops,
        fmas=n * unit.fmas,
        exps=n * unit.exps,
        loop_instructions={},
        note=_note(order, n, dtype, GPUS[gpu]),
    )
    return with_instructions(cost, compiled) if compiled else cost


def with_instructions(cost: TokenCost, kernel: CompiledKernel) -> TokenCost:
    """With the machine instructions in the loops of its kernel, by class.

    ValueError where another configuration or target was compiled.
    """
    if (kernel.config, kernel.target) != (cost.kernel, cost.target):
        raise ValueError(
            f"the token's kernel is {cost.kernel} for {cost.target}; given are the instructions of "
            f"{kernel.config} for {kernel.target}"
        )
    return replace(cost, loop_instructions=dict(kernel.loop_instructions))


def step_bytes(
    order: ScanOrder, channels: int, rank: int, states: int, n_blocks: int, width: int
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that all channel blocks load and store for one step that reads a token.

    Masked lanes ask for nothing. A pad's step asks for the same but x, and stores only where
    outputs are kept per step.
    """
    loads = {
        "x": channels * width,
        "dt factors": n_blocks * rank * FLOAT32,
        "B": n_blocks * states * FLOAT32,
        "C": n_blocks * states * FLOAT32,
    }
    if find_walks(order) is None:
        loads["order"] = n_blocks * INT32
    return loads, {"y": channels * (FLOAT32 if order.merge == "sum" else width)}


def gpu_here(device: torch.device) -> str | None:
    """What `kernels.gpus` calls the GPU of this machine; None where it is none or not known."""
    if device.type != "cuda":
        return None
    return GPU_OF_DEVICE.get(torch.cuda.get_device_name(device))


def facts_of(gpu: Gpu) -> launch.DeviceFacts:
    """What the launcher would find on a GPU of this kind; tiles measured on one count."""
    target = TARGETS.get(gpu.target or "")
    kind = "cuda" if target is None else f"{target.backend}:{target.arch}"
    name = next((name for name, ours in GPU_OF_DEVICE.items() if ours == gpu.name), None)
    return launch.DeviceFacts(kind, name, gpu.multiprocessors)


def _order(scan: str | ScanSpec, height: int, width: int) -> ScanOrder:
    try:
        order = scan_order(scan, height, width)
        order.check_runnable()
    except ValueError as error:
        raise BadInputError(str(error)) from error
    return order


def _visits(order: ScanOrder, token: int, n_blocks: int) -> tuple[TokenVisit, ...]:
    """Every (sequence, step) that reads the token; programs of the first image."""
    return tuple(
        TokenVisit(
            sequence=k,
            step=t,
            parameter_set=int(order.parameter_set[k]),
            programs=tuple(range(k * n_blocks, (k + 1) * n_blocks)),
            chunk=t // CHECKPOINT,
        )
        for k, t in np.argwhere(order.index == token).tolist()
    )


def _config_name(chosen: launch.Launch, rank: int, dtype: str) -> str:
    """As `kernels.compiled.find` knows it; float16 shares the tiles of bfloat16."""
    tile = chosen.tile
    activation = TYPES[torch.float32 if dtype == "float32" else torch.bfloat16][1:]
    layout = f"map-rank{padded_rank(rank)}"
    size = f"{tile.channels}x{tile.steps}x{tile.num_warps}"
    return f"{chosen.kernel}-{layout}-{activation}-{size}"


def _note(order: ScanOrder, n_visits: int, dtype: str, gpu: Gpu) -> str:
    notes = [COUNTED] if n_visits else ["No step of this scan reads the token: it costs nothing."]
    if order.merge == "sum":
        notes.append(
            "Several steps may read a token, so outputs are written per step in float32 and added "
            "by a second kernel, which is not counted."
        )
    if order.merge == "sum" or find_walks(order) is None:
        notes.append(
            "The compiled configuration of this name walks by strides and writes each token once; "
            "this scan runs a variant of it with the same tile."
        )
    if dtype == "float16":
        notes.append("float16 runs the same tile; the configuration named is that of bfloat16.")
    if gpu.target is None:
        notes.append(f"Nothing is compiled for the {gpu.name} here.")
    return " ".join(notes)
