"""Which tile each kernel is launched with: a small resource model over `tiles.json`.

`tiles.json` holds one row per kernel and kind of GPU, chosen on paper for 16 states and labelled
"unmeasured"; `python -m kernels.bench --tune` adds rows measured on a device, which win.
Nothing here imports Triton.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("tiles.json")
UNMEASURED = "unmeasured"
KERNELS = ("steps_forward", "steps_backward", "chunks_forward", "chunks_backward")
# Steps between stored states. 64 keeps the stored states at a quarter of a float32 activation for
# 16 states. It is no part of a tile, so that tensors saved for backward fit every tile.
CHECKPOINT = 64
# The rows of the table are for this many states.
TABLE_STATES = 16
# State elements that one thread may hold. Compiled ahead of time for sm_80, sm_90 and gfx942, twice
# as many spill or use 255 registers; going back step by step keeps four steps of everything.
MAX_ELEMENTS = {
    "steps_forward": 16,
    "steps_backward": 4,
    "chunks_forward": 16,
    "chunks_backward": 16,
}
# On AMD one thread holds all steps of a tile, so that no scan crosses a wave, from up to 512
# registers.
MAX_ELEMENTS_HIP = {**MAX_ELEMENTS, "chunks_forward": 32}
MAX_WARPS = 8
WARP, WAVE = 32, 64  # threads of one on NVIDIA and on AMD
# Ranks up to this share a variant. Not fewer lanes: with as many as states, the weights of dt
# and the state have one layout, which saves registers.
SHORTEST_RANK = 16


@dataclass(frozen=True)
class Tile:
    """A program's share: `channels` x `steps` (x all states), and how it is compiled."""

    channels: int
    steps: int
    num_warps: int
    num_stages: int
    label: str = UNMEASURED


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def padded_rank(rank: int) -> int:
    """Lanes for the rank of dt; few different values, so that few variants are compiled."""
    return 0 if rank == 0 else max(SHORTEST_RANK, power_of_two(rank))


def dtype_class(dtype: torch.dtype) -> str:
    """float16 and bfloat16 share their tiles: both load two bytes and compute in float32."""
    return "fp32" if dtype == torch.float32 else "16bit"


def tile_for(
    kernel: str,
    channels: int,
    states: int,
    dtype: torch.dtype,
    target: str,
    device_name: str | None = None,
) -> Tile:
    """The tile of `kernel` for sequences of `channels` channels and `states` states.

    `target` is "cuda", "hip" or "interpreter", with or without an architecture ("cuda:90",
    "hip:gfx942"). A row measured on `device_name` wins over the table.
    """
    table = _table()
    measured = table["measured"].get(device_name or "", {})
    row = measured.get(row_key(kernel, channels, states, dtype))
    if row is not None:
        return Tile(**row, label=f"measured on {device_name}")
    kind = target.partition(":")[0]
    tile = Tile(**table["tables"][kind][kernel])
    return fit(tile, kernel, channels, states, kind)


def row_key(kernel: str, channels: int, states: int, dtype: torch.dtype) -> str:
    """The name of a measured row: the sizes that a tile depends on."""
    sizes = f"channels={power_of_two(channels)},states={power_of_two(states)}"
    return f"{kernel},{sizes},{dtype_class(dtype)}"


def fit(tile: Tile, kernel: str, channels: int, states: int, kind: str) -> Tile:
    """`tile`, which is for 16 states, resized: the same number of elements for more states."""
    padded = power_of_two(states)
    width = max(1, tile.channels * TABLE_STATES // max(padded, TABLE_STATES))
    width = min(width, power_of_two(channels))
    if kind == "interpreter":
        return replace(tile, channels=min(tile.channels, power_of_two(channels)))
    most_warps = MAX_WARPS
    if kind == "hip" and kernel.startswith("chunks"):
        # More waves than channels x states fill would share the steps, and a scan would cross them.
        most_warps = max(1, min(MAX_WARPS, width * padded // WAVE))
    fitted = replace(tile, channels=width, num_warps=min(tile.num_warps, most_warps))
    while (
        elements_per_thread(fitted, kernel, padded, kind) > _most_elements(kernel, kind)
        and fitted.num_warps < most_warps
    ):
        fitted = replace(fitted, num_warps=2 * fitted.num_warps)
    return fitted


def elements_per_thread(tile: Tile, kernel: str, padded_states: int, kind: str) -> int:
    """State elements of a tile per thread; kernels that go step by step hold one step at a time."""
    lanes = tile.num_warps * (WAVE if kind == "hip" else WARP)
    steps = 1 if kernel.startswith("steps") else tile.steps
    return -(-tile.channels * steps * padded_states // lanes)


def _most_elements(kernel: str, kind: str) -> int:
    return (MAX_ELEMENTS_HIP if kind == "hip" else MAX_ELEMENTS)[kernel]


def candidates(
    kernel: str, channels: int, states: int, dtype: torch.dtype, target: str
) -> list[Tile]:
    """Tiles worth timing, the table's first; those that the resource model rules out are left
    out."""
    kind = target.partition(":")[0]
    first = tile_for(kernel, channels, states, dtype, target)
    padded = power_of_two(states)
    limit = _most_elements(kernel, kind)
    steps = {
        "steps_forward": (1,),
        "steps_backward": (2, 4),
        "chunks_forward": (16, 32, 64),
        "chunks_backward": (8, 16, 32),
    }[kernel]
    found = [first]
    for width in (1, 2, 4, 8, 16, 32, 64, 128):
        for n_steps in steps:
            for warps in (1, 2, 4, 8):
                tile = Tile(width, n_steps, warps, first.num_stages)
                held = elements_per_thread(tile, kernel, padded, kind)
                is_narrow = width <= power_of_two(channels)
                crosses = kind == "hip" and "chunks" in kernel and warps * WAVE > width * padded
                is_sized = limit // 4 <= held <= limit
                if is_narrow and is_sized and not (crosses and warps > 1) and tile not in found:
                    found.append(tile)
    return found


def ruled_out(
    kernel: str, channels: int, states: int, dtype: torch.dtype, target: str
) -> list[Tile]:
    """Some tiles that `candidates` leaves out, to see why: the table's with twice and four times
    the state elements a thread, more channels or more steps, and for chunks on AMD one of which a
    scan crosses a wave."""
    kind = target.partition(":")[0]
    first = tile_for(kernel, channels, states, dtype, target)
    padded = power_of_two(states)
    found = [
        replace(first, channels=factor * first.channels)
        for factor in (2, 4, 8)
        if factor * first.channels <= power_of_two(channels)
    ]
    if not kernel.endswith("_forward") or kernel.startswith("chunks"):
        found += [replace(first, steps=factor * first.steps) for factor in (2, 4)]
    if kind == "hip" and kernel.startswith("chunks"):
        found.append(replace(first, num_warps=2 * first.num_warps))
    known = candidates(kernel, channels, states, dtype, target)
    limit = _most_elements(kernel, kind)

    def is_out(tile: Tile) -> bool:
        crosses = kind == "hip" and tile.num_warps * WAVE > tile.channels * padded
        held = elements_per_thread(tile, kernel, padded, kind)
        # A chunk ends at a stored state, so no tile has more steps.
        return tile.steps <= CHECKPOINT and (held > limit or crosses)

    return [tile for tile in found if tile not in known and is_out(tile)]


def save_measured(path: Path, device_name: str, table: dict[str, Tile]) -> None:
    """Write measured tiles, `row_key` to tile, of one device beside what the file at `path` holds.

    Written to `tiles.json` itself (`tiles.TABLE`) they are used by the next process.
    """
    content = json.loads(path.read_text()) if path.exists() else json.loads(TABLE.read_text())
    rows = {key: _row(tile) for key, tile in table.items()}
    content["measured"][device_name] = content["measured"].get(device_name, {}) | rows
    path.write_text(json.dumps(content, indent=2) + "\n")
    _table.cache_clear()


def _row(tile: Tile) -> dict[str, int]:
    row = asdict(tile)
    del row["label"]
    return row


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    return json.loads(TABLE.read_text())
