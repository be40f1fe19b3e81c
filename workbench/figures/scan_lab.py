"""The scan tab: schemes side by side, reach of a token, table of schemes, the paper's story.

Each panel is one JSON payload, made from results alone; workbench/ui/components draws it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from workbench.figures.kernel_token import costs_note, token_rows
from workbench.figures.scan import drawn_sequences, json_bytes, locate, reading, scheme_json
from workbench.figures.theme import Json, map_layout, ordinal, percent, photo_data_uri, significant
from workbench.kernel_results import TokenCost
from workbench.labels import scan_in_text, scan_label, scan_short
from workbench.results import ScanResult

TONES = ("a", "b", "c")
ORDER_BYTES = 780_000  # of all order tables of a panel; the photo and the rest stay below 200 kB
PHOTO_OPACITY = 0.55


def scan_lab_panel(
    results: Sequence[ScanResult],
    rgb: np.ndarray,
    y: int,
    x: int,
    costs: Mapping[str, TokenCost] | None = None,
) -> Json:
    """Two or three schemes side by side over the photo, moved by one player.

    `rgb` is the network input `[H, W, 3]` uint8, (y, x) the token in focus, `costs` what it costs
    in the kernel of a GPU, by slot "a", "b", "c"; a scheme that no network here runs has none.
    """
    if not 2 <= len(results) <= len(TONES):
        raise ValueError(f"{len(results)} schemes given; the scan lab shows 2 or 3.")
    first = results[0]
    height, width = first.provenance.input_size
    panel: Json = {
        "id": "lab_scan",
        "title": "Scan paths, step by step",
        "stage": first.stage,
        "input": [height, width],
    }
    if not first.has_scan:
        return panel | no_scan(first.stage, first.note, rgb)
    orders = [scheme_json(tone, r) for tone, r in zip(TONES, results, strict=False)]
    if json_bytes(orders) > ORDER_BYTES:
        share = ORDER_BYTES // len(results)
        orders = [scheme_json(tone, r, share) for tone, r in zip(TONES, results, strict=False)]
    schemes = []
    for scheme, result in zip(orders, results, strict=True):
        tone = scheme["key"]
        schemes.append(
            scheme
            | {
                "facts": _facts(result, scheme["every"]),
                "numbers": [*_numbers(result), *_token(tone, costs)],
                "badge": _badge(result),
                "map": {
                    "key": f"path-{tone}",
                    "figure": {
                        "data": [],
                        "layout": map_layout(height, width, "@photo", PHOTO_OPACITY),
                    },
                    "cell": result.stride,
                    "alt": f"Scan path of {scan_label(result.provenance.scan)}. {reading(result)}.",
                },
            }
        )
    where = f"stage {first.stage}, {first.height} × {first.width} tokens, {height} × {width} px"
    cost = f" {costs_note(next(iter(costs.values())))}" if costs else ""
    return panel | {
        "badges": [{"text": where, "tone": "muted"}],
        "photo": photo_data_uri(rgb),
        "schemes": schemes,
        "sentence": _sentence(results, y, x) + cost,
    }


def _token(tone: str, costs: Mapping[str, TokenCost] | None) -> list[list[str]]:
    return token_rows(costs[tone]) if costs and tone in costs else []


def no_scan(stage: int, note: str, rgb: np.ndarray) -> Json:
    """The designed empty state of a stage whose blocks do not scan."""
    return {
        "badges": [{"text": f"stage {stage}", "tone": "muted"}],
        "empty": {
            "title": f"Stage {stage} has no scan",
            "text": "Pick a stage whose blocks scan, 1 or 2 in these models, to see its path.",
            "photo": photo_data_uri(rgb),
        },
        "sentence": note,
    }


def _badge(result: ScanResult) -> Json:
    if not result.is_runnable:
        why = result.note or "No model here runs it: its path is drawn and measured only."
        return {"text": "path only: needs another network", "tone": "warn", "tip": why}
    if result.is_verified:
        tip = "Token numbers were pushed through the operator that the model runs. "
        return {"text": "✓ verified", "tone": "ok", "tip": (tip + result.note).strip()}
    return {"text": f"✗ {result.disagreement}", "tone": "bad", "tip": result.disagreement}


def _facts(result: ScanResult, every: int) -> str:
    m = result.metrics
    parts = [f"{m['n_sequences']:,} × {m['length']:,}", f"reach {percent(float(m['mean_reach']))}"]
    if m["n_pads"]:
        parts.append(f"{m['n_pads']:,} pad" + ("s" if m["n_pads"] > 1 else ""))
    if m.get("n_extra_steps"):
        parts.append(f"{m['n_extra_steps']:,} steps beside the map")
    if (n_drawn := len(drawn_sequences(result))) < len(result.index):
        parts.insert(1, f"{n_drawn:,} groups drawn")
    if every > 1:
        parts.append(f"every {ordinal(every)} step sent")
    return " · ".join(parts)


def _numbers(result: ScanResult) -> list[list[str]]:
    m = result.metrics
    low, high = int(m["visits_min"]), int(m["visits_max"])
    rows = [
        ["visits each", f"{low}" if low == high else f"{low} to {high}"],
        ["farthest back", f"{m['farthest_steps']:,} steps"],
        ["mean move", f"{significant(float(m['mean_jump']))} tokens"],
    ]
    if "mean_gap" in m:
        gap = float(m["mean_gap"])
        apart = f"{significant(gap)} steps" if math.isfinite(gap) else "never together"
        rows.append(["neighbours apart", apart])
    return rows


def _sentence(results: Sequence[ScanResult], y: int, x: int) -> str:
    """How much each reads, and when the focus comes: one line for three schemes."""
    reads: list[str] = []
    places: list[str] = []
    for result in results:
        name = scan_in_text(result.provenance.scan)
        count = f"{result.metrics['tokens_scanned']:,}"
        reads.append(f"{name} {count}" if reads else f"{name} reads {count} tokens")
        found = locate(result, y, x)
        if found:
            group, step = found
            places.append(f"{ordinal(step + 1)} in group {group + 1}")
    text = ", ".join(reads)
    if places:
        text += f". The focus comes {', '.join(places)}"
    return text[0].upper() + text[1:] + "."


def story_panel(es2d: ScanResult, ss2d: ScanResult, rgb: np.ndarray) -> Json:
    """The seed paper's figure in three steps.

    The order tables are of a small map (8 x 8), so that single patches are seen; `metrics` are the
    real stage's, whose numbers stand under the picture.
    """
    height, width = es2d.provenance.input_size
    panel: Json = {
        "id": "lab_story",
        "title": "The idea in three steps",
        "stage": es2d.stage,
        "input": [height, width],
    }
    if not es2d.has_scan:
        return panel | no_scan(es2d.stage, es2d.note, rgb)
    rows, columns = es2d.height, es2d.width
    n_small = rows * columns
    n = int(ss2d.metrics["length"])
    full, atrous = (int(r.metrics["tokens_scanned"]) for r in (ss2d, es2d))
    k_full, k_atrous = ss2d.index.shape[0], es2d.index.shape[0]
    name = scan_short(es2d.provenance.scan)
    steps = [
        {
            "title": "1 · N patches",
            "short": "N",
            "value": n,
            "scheme": 0,
            "is_grid": True,
            "under": f"N = {n_small}; grey: what {k_full}N = {k_full * n_small} adds",
            "text": f"The map is cut into N tokens, here {rows} × {columns} = {n_small}; a "
            "state-space model reads them one after another.",
        },
        {
            "title": f"2 · full scan: {k_full}N",
            "short": "Full scan",
            "value": full,
            "tone": "b",
            "scheme": 1,
            "under": f"{k_full} × {n_small} = {k_full * n_small} reads",
            "text": f"The full scan reads all N tokens {k_full} times, along rows and columns and "
            f"both backwards: {k_full * n_small} reads, and every token can see every other.",
        },
        {
            "title": f"3 · atrous scan: {'N' if atrous == n else significant(atrous / n) + 'N'}",
            "short": name,
            "value": atrous,
            "tone": "a",
            "scheme": 0,
            "under": f"{k_atrous} × {es2d.index.shape[1]} = {es2d.index.size} reads; grey: "
            f"{k_full * n_small - es2d.index.size} saved",
            "text": f"{name} gives each of {k_atrous} groups every p-th token of every p-th row: "
            f"{es2d.index.size} reads in all, each token once, and a quarter of the serial steps."
            if k_atrous == 4
            else f"{name} gives each of {k_atrous} groups every p-th token of every p-th row: "
            f"{es2d.index.size} reads in all, each token once.",
        },
    ]
    return panel | {
        "badges": [{"text": "after Pei et al. 2024, from the real order tables", "tone": "muted"}],
        "photo": photo_data_uri(rgb, 320),
        "schemes": [scheme_json("a", es2d), scheme_json("b", ss2d)],
        "steps": steps,
        "caption": f"tokens read by one scan of stage {es2d.stage}",
        "sentence": steps[0]["text"],
    }
