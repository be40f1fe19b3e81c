"""The ERF tab's paths: how much of a token's gradient came through which path of which block."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence

import numpy as np

from workbench.figures.erf_maps import signed_root, tiny
from workbench.figures.theme import SIGNED, Json, block_sum, colorscale, map_layout, percent
from workbench.results import ErfBlockPaths, ErfPathsResult

# Path -> words and colour; scan, convolution and residual as in the attribution panel.
PATHS = {
    "residual": ("residual", "@residual"),
    "scan": ("scan", "@a"),
    "conv": ("convolution", "@conv"),
    "gate": ("gate", "@gate"),
}
MAX_CELLS = 56  # a side of a map that is sent
MAX_MAPS_BYTES = 700_000  # of all maps of all blocks
LEVELS = 32767  # of the 16-bit values that are sent, from zero to the scale's end
BEYOND = 0.005  # share of the cells that lie beyond the colours' ends
EXACT = 1e-4  # relative error below which the paths count as adding up


def default_block(result: ErfPathsResult) -> int:
    """The deepest block with a scan, else the deepest."""
    scanned = [i for i, block in enumerate(result.blocks) if "scan" in block.paths]
    return scanned[-1] if scanned else len(result.blocks) - 1


def signed_limits(result: ErfPathsResult, factor: int = 1) -> tuple[float, float]:
    """Ends of the one scale of all maps, symmetric around zero: (of the colours, of the values).

    A few cells at the token are far beyond all others; drawn up to them, the rest would be blank.
    So `BEYOND` of the cells have the end's colour, which the bar says.
    """
    maps = [result.total, *(m for block in result.blocks for m in block.maps)]
    sizes = np.abs(np.concatenate([block_sum(m, factor).ravel() for m in maps]))
    largest = float(sizes.max()) or 1.0
    return float(np.quantile(sizes, 1 - BEYOND)) or largest, largest


def erf_paths_panel(result: ErfPathsResult, block: int | None = None) -> Json:
    """Bars of every block and the signed maps of each, of which the page shows one block's.

    `block` is an index into `result.blocks`; None for the deepest that scans.
    """
    panel: Json = {
        "id": "lab_erf_paths",
        "title": "Paths by block",
        "stage": result.stage,
        "input": list(result.provenance.input_size),
    }
    where = f"{result.unit_label}, token ({result.y}, {result.x})"
    if result.gates == "frozen":
        where += ", gates frozen"
    if not result.blocks:
        return panel | {
            "badges": [{"text": where, "tone": "muted"}],
            "empty": {"title": "No paths here", "text": result.note},
            "sentence": "",
        }
    chosen = default_block(result) if block is None else min(max(block, 0), len(result.blocks) - 1)
    factor = _factor(result)
    end, largest = signed_limits(result, factor)
    cell = factor * result.cell
    worst = max(b.error for b in result.blocks)
    most = ("" if end == largest else "≥ ") + tiny(end)
    least = ("−" if end == largest else "≤ −") + tiny(end)
    listed = [name for name in PATHS if any(name in b.paths for b in result.blocks)]
    return panel | {
        "badges": [
            {"text": f"{where} · {result.n_images:,} images", "tone": "muted"},
            _verdict(worst),
        ],
        "chosen": chosen,
        "under": "bars: share of the paths' |gradient|; under the maps: that share · signed share",
        "legend": [{"colour": PATHS[p][1], "text": PATHS[p][0]} for p in listed],
        "blocks": [
            _bar(b) | {"sentence": _sentence(result, i, worst)} for i, b in enumerate(result.blocks)
        ],
        "views": [_views(b, result, (end, largest), factor) for b in result.blocks],
        "total": _map("total", result.total, "all paths", "", result, (end, largest), factor),
        "scale": {
            "stops": list(SIGNED),
            "low": least,
            "high": most,
            "ticks": [
                {"at": 0, "text": least},
                {"at": 0.5, "text": "0"},
                {"at": 1, "text": most},
            ],
            "label": f"signed share per {cell} × {cell} px, drawn as its root",
            "tip": "Gradient before any rectification, summed over colours, per unit of the whole "
            "gradient's size; one scale for all blocks. Where signs differ, paths cancel. "
            f"{BEYOND:.1%} of the cells lie beyond the ends, up to {tiny(largest)}.",
        },
        "sentence": _sentence(result, chosen, worst),
        "notes": [result.note] if result.note else [],
        "is_live": not result.is_final,
    }


def _verdict(worst: float) -> Json:
    tip = "Relative L2 distance between the sum of the paths and the whole gradient; the largest "
    tip += "of all blocks and images"
    if worst <= EXACT:
        return {"text": f"✓ adds up within {worst:.0e}", "tone": "ok", "tip": tip}
    return {"text": f"✗ off by {worst:.0e}", "tone": "bad", "tip": tip}


def _factor(result: ErfPathsResult) -> int:
    """Cells of the result per drawn cell a side, so that all maps fit the budget."""
    height, width = result.total.shape
    n_maps = 1 + sum(len(block.paths) for block in result.blocks)
    factor = 1
    while True:
        rows, columns = math.ceil(height / factor), math.ceil(width / factor)
        if max(rows, columns) <= MAX_CELLS and n_maps * rows * columns * 8 / 3 <= MAX_MAPS_BYTES:
            return factor
        factor += 1


def _bar(block: ErfBlockPaths) -> Json:
    name = f"{block.stage}.{block.block}"
    segments: list[Json] = [
        {
            "path": path,
            "colour": PATHS[path][1],
            "share": share,
            "tip": f"block {name}, {PATHS[path][0]}: {percent(share)} of the paths' gradient",
        }
        for path, share in zip(block.paths, block.shares, strict=True)
    ]
    return {
        "text": name,
        "kind": block.kind,
        "stage": block.stage,
        "segments": segments,
        "sum": f"sum {_signed(sum(block.signed))}",
        "alt": f"stage {block.stage}, block {block.block}, {block.kind}: "
        + ", ".join(f"{s['path']} {percent(s['share'])}" for s in segments),
    }


def _views(
    block: ErfBlockPaths, result: ErfPathsResult, limits: tuple[float, float], factor: int
) -> list[Json]:
    return [
        _map(
            path,
            values,
            PATHS[path][0],
            f"{percent(share)} · {_signed(signed)}",
            result,
            limits,
            factor,
        )
        for path, values, share, signed in zip(
            block.paths, block.maps, block.shares, block.signed, strict=True
        )
    ]


def _map(
    path: str,
    values: np.ndarray,
    name: str,
    right: str,
    result: ErfPathsResult,
    limits: tuple[float, float],
    factor: int,
) -> Json:
    cell = factor * result.cell
    end, largest = limits
    root = math.sqrt(largest)
    end_level = LEVELS * math.sqrt(end / largest)
    level = np.rint(signed_root(block_sum(values.astype(np.float64), factor)) / root * LEVELS)
    trace: Json = {
        "type": "heatmap",
        "z": _int16(level),
        "x0": cell / 2,
        "dx": cell,
        "y0": cell / 2,
        "dy": cell,
        "zmin": -end_level,
        "zmax": end_level,
        "colorscale": colorscale(SIGNED),
        "showscale": False,
        "hoverinfo": "none",
    }
    height, width = result.provenance.input_size
    centre = [(result.y + 0.5) * result.stride, (result.x + 0.5) * result.stride]
    return {
        "key": f"path-{path}",
        "figure": {"data": [trace], "layout": map_layout(height, width)},
        "left": {"text": name},
        "right": {"text": right},
        "read": {
            "trace": 0,
            "cell": cell,
            "factor": root / LEVELS,
            "power": 2,
            "unit": "of the whole gradient",
        },
        "cell": result.stride,
        "token": {"centre": centre, "stride": result.stride, "is_small": True},
        "alt": f"Signed gradient, {name}",
    }


def _int16(values: np.ndarray) -> Json:
    """A 2-D array of whole numbers as the base64 typed array that Plotly reads."""
    data = np.ascontiguousarray(values, dtype="<i2")
    return {
        "dtype": "i2",
        "bdata": base64.b64encode(data.tobytes()).decode(),
        "shape": ", ".join(str(n) for n in data.shape),
    }


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def path_shares(blocks: Sequence[ErfBlockPaths], path: str) -> list[float]:
    """Share of one path in each of the blocks that have it."""
    return [b.shares[b.paths.index(path)] for b in blocks if path in b.paths]


def _sentence(result: ErfPathsResult, chosen: int, worst: float) -> str:
    block = result.blocks[chosen]
    shares = ", ".join(
        f"{percent(share)} {PATHS[path][0]}"
        for path, share in zip(block.paths, block.shares, strict=True)
    )
    ends = f"they add up to the gradient within {worst:.0e}"
    if worst > EXACT:
        ends = f"they do NOT add up to the gradient: off by {worst:.0e}"
    text = f"Through block {block.stage}.{block.block}: {shares}. In all blocks {ends}, signed."
    return text if result.is_final else f"So far, {result.n_images:,} images. {text}"
