"""The attribution tab's paths: how much of the evidence came through which path of which block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.figures.attribution import PATHS
from workbench.figures.attribution_lab import (
    Drawn,
    beyond,
    drawn,
    limits,
    signed,
    target_words,
)
from workbench.figures.theme import (
    SIGNED,
    Json,
    colorscale,
    heatmap,
    map_layout,
    percent,
    significant,
)
from workbench.results import AttributionMap, EvidenceMaps, EvidenceResult

EXACT = 1e-4  # relative error below which the paths count as adding up
CANCELLED = 1e-4  # of the sum of the |paths|: a total below it is shown as 0
WORDS = {path: (words, colour) for path, words, colour in PATHS}


def attribution_paths_panel(result: EvidenceResult) -> Json:
    """Bars of every EVSS block over the depth, and the signed maps of the one that is chosen."""
    height, width = result.provenance.input_size
    panel: Json = {
        "id": "lab_attr_paths",
        "title": "Paths by block",
        "input": [height, width],
    }
    if not result.blocks:
        return panel | {
            "badges": [],
            "empty": {"title": "No paths here", "text": result.note},
            "sentence": "",
        }
    maps = [[_drawn(block, i) for i in range(len(block.paths))] for block in result.blocks]
    totals = [_sum(shown) for shown in maps]
    values = [d.values for shown in (*maps, totals) for d in shown]
    end, _ = limits(values)
    # Evidence for the class to the right of zero, against it to the left; one scale for all.
    most = max(sum(v for v in block.sums if v > 0) for block in result.blocks)
    least = max(sum(-v for v in block.sums if v < 0) for block in result.blocks)
    span = most + least or 1.0
    worst = float(np.max([block.error for block in result.blocks]))
    text = significant(end)
    said = beyond(values, end)
    ticks = [
        {"at": 0, "text": ("≤ −" if said else "−") + text},
        {"at": 0.5, "text": "0"},
        {"at": 1, "text": ("≥ " if said else "") + text},
    ]
    return panel | {
        "badges": [
            {"text": f"for {target_words(result)}", "tone": "muted"},
            _verdict(worst),
        ],
        "chosen": len(result.blocks) - 1,
        "zero": least / span,
        "under": f"bars: evidence of each path, logit, from {signed(-least)} to "
        f"{signed(most)}; under the maps: its sum",
        "legend": [{"colour": WORDS[p][1], "text": WORDS[p][0]} for p in result.blocks[0].paths],
        "blocks": [_bar(block, span, _sentence(result)) for block in result.blocks],
        "views": [
            [
                _map(path, shown, end, block, signed(value), (height, width))
                for path, shown, value in zip(block.paths, found, block.sums, strict=True)
            ]
            for block, found in zip(result.blocks, maps, strict=True)
        ],
        "totals": [
            _map("total", shown, end, block, total_words(block), (height, width))
            for block, shown in zip(result.blocks, totals, strict=True)
        ],
        "scale": {
            "stops": list(SIGNED),
            "ticks": ticks,
            "label": "logit per 32 × 32 px",
            "tip": "Gradient of the objective at the block's sum times what each path added; one "
            f"scale for all blocks.{said}",
        },
        "sentence": _sentence(result),
        "notes": [result.note] if result.note else [],
    }


def total_words(block: EvidenceMaps) -> str:
    """The block's evidence; "0" where its paths cancel, as in the last block of a stage.

    What is left of the sum is then the rounding of its parts; exported files have it.
    """
    return "0" if _cancel(block) else signed(block.total)


def _cancel(block: EvidenceMaps) -> bool:
    size = sum(abs(value) for value in block.sums)
    return size > 0 and abs(block.total) < CANCELLED * size


def _drawn(block: EvidenceMaps, i: int) -> Drawn:
    return drawn(AttributionMap(name="path", values=block.maps[i], stride=block.stride, layer=""))


def _sum(shown: Sequence[Drawn]) -> Drawn:
    return Drawn(np.sum([d.values for d in shown], axis=0), shown[0].cell)


def _verdict(worst: float) -> Json:
    tip = "Largest difference of a token between the sum of the paths and gradient times output"
    if worst <= EXACT:
        return {"text": f"✓ adds up within {worst:.0e}", "tone": "ok", "tip": tip}
    return {"text": f"✗ off by {worst:.0e}", "tone": "bad", "tip": tip}


def _name(block: EvidenceMaps) -> str:
    return f"{block.stage}.{block.block}"


def _bar(block: EvidenceMaps, span: float, overall: str) -> Json:
    parts = list(zip(block.paths, block.sums, strict=True))
    said = ", ".join(f"{WORDS[path][0]} {signed(value)}" for path, value in parts)
    together = total_words(block) + (": they cancel" if _cancel(block) else "")
    return {
        "text": _name(block),
        "kind": "EVSS block",
        "alt": f"Block {_name(block)}: {said}",
        "sum": total_words(block),
        "segments": [
            {
                "path": path,
                "share": abs(value) / span,
                "colour": WORDS[path][1],
                "against": value < 0,
                "tip": f"{WORDS[path][0]}: {signed(value)} logit",
            }
            for path, value in parts
        ],
        "sentence": f"Block {_name(block)}, logit: {said}; together {together}. {overall}",
    }


def _map(
    path: str,
    shown: Drawn,
    end: float,
    block: EvidenceMaps,
    right: str,
    size: tuple[int, int],
) -> Json:
    trace = heatmap(shown.values, shown.cell, -end, end, colorscale=colorscale(SIGNED))
    words = WORDS[path][0] if path in WORDS else "all paths"
    return {
        "key": f"attr-path-{path}",
        "figure": {"data": [trace], "layout": map_layout(*size)},
        "left": {"text": words},
        "right": {"text": right},
        "read": {"trace": 0, "cell": shown.cell, "unit": "logit per 32 × 32 px"},
        "cell": block.stride,
        "stage": block.stage,
        "alt": f"Evidence through {words}, block {_name(block)}",
    }


def _sentence(result: EvidenceResult) -> str:
    found = {path: result.shares.get(path, 0.0) for path in WORDS}
    text = ", ".join(f"{percent(found[path])} {WORDS[path][0]}" for path in found)
    sentence = f"Over all EVSS blocks, share of the paths' |evidence|: {text}."
    if result.provenance.is_random:
        sentence += " Random weights."
    return sentence
