"""The attribution tab's implicit attention: what a token reads in the scan, and who reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from workbench.figures.attribution_lab import photo_within, signed
from workbench.figures.erf_maps import tiny
from workbench.figures.theme import (
    CIVIDIS,
    SIGNED,
    Json,
    block_sum,
    colorscale,
    curve_layout,
    heatmap,
    map_layout,
    percent,
    photo_data_uri,
)
from workbench.labels import scan_short
from workbench.results import AttentionResult

DECADES = 4  # of the colour scale, below the largest value of any map
EXACT = 1e-4  # relative error below which the rows count as the operator's own
MAX_SEQUENCES = 4  # of a scheme, shown singly beside their sum
MAX_CURVE_POINTS = 200
MAX_MAPS_BYTES = 550_000  # of all maps of all readings
MAX_PHOTOS_BYTES = 350_000  # of the photo below every map
PHOTO_SIDE = 224  # of the photo below a map, px at most
DASHES = ("solid", "dash", "dot", "dashdot")
# Words, tip, which maps, whether they are signed.
READINGS = (
    ("reads", "Mean |alpha(token, j)|: what the token takes from token j", "rows_size", False),
    ("is read by", "Mean |alpha(j, token)|: what token j takes from it", "columns_size", False),
    ("reads, signed", "alpha(token, j): the weights of the operator's sum", "rows", True),
)


def attention_panel(found: Mapping[str, AttentionResult], rgb: np.ndarray) -> Json:
    """Rows and columns of the token in focus, for schemes "a" and "b"."""
    first = found["a"]
    height, width = first.provenance.input_size
    panel: Json = {
        "id": "lab_attr_attention",
        "title": "Implicit attention",
        "stage": first.stage,
        "input": [height, width],
    }
    shown = {key: result for key, result in found.items() if result.has_scan}
    if not shown:
        return panel | {
            "badges": [],
            "empty": {"title": "No scan here", "text": first.note, "photo": photo_data_uri(rgb)},
            "sentence": "Pick stage 1 or 2: their blocks scan.",
        }
    n_maps = len(READINGS) * sum(_n_maps(result) for result in shown.values())
    photo = photo_within(rgb, MAX_PHOTOS_BYTES / n_maps, PHOTO_SIDE)
    factor = max(_factor(result, n_maps) for result in shown.values())
    channel = "mean over channels" if first.channel is None else f"channel {first.channel}"
    where = f"stage {first.stage}, block {first.block}, token ({first.y}, {first.x}), {channel}"
    return panel | {
        "badges": [
            {"text": where, "tone": "muted", "tip": first.layer},
            _verdict(shown),
        ],
        "variants": [_variant(shown, photo, factor, *reading) for reading in READINGS],
        "plot": {
            "key": "attention-decay",
            "figure": _decay(shown),
            "alt": "Mean |alpha| by steps back along the sequence",
            "heading": "|alpha| by steps back",
            "legend": [
                {"colour": f"@{key}", "text": scan_short(result.provenance.scan)}
                for key, result in shown.items()
            ],
        },
        "sentence": _sentence(shown),
        "notes": [result.note for result in shown.values() if result.note],
    }


def _verdict(found: Mapping[str, AttentionResult]) -> Json:
    worst = float(np.max([result.error for result in found.values()]))
    tip = "Relative distance, over all channels, between sum_j alpha x_j + D x of the token and "
    tip += "the output of the operator that the model runs"
    if worst <= EXACT:
        return {"text": f"✓ is the operator within {worst:.0e}", "tone": "ok", "tip": tip}
    return {"text": f"✗ differs from the operator by {worst:.0e}", "tone": "bad", "tip": tip}


def _n_maps(result: AttentionResult) -> int:
    n = len(result.sequences)
    return 1 + min(n, MAX_SEQUENCES) if n > 1 else 1


def _factor(result: AttentionResult, n_maps: int) -> int:
    """Tokens per drawn cell a side, so that all maps fit the budget."""
    factor = 1
    while True:
        n_cells = math.ceil(result.height / factor) * math.ceil(result.width / factor)
        if n_maps * n_cells * 16 / 3 <= MAX_MAPS_BYTES:
            return factor
        factor += 1


def _variant(
    found: Mapping[str, AttentionResult],
    photo: str,
    factor: int,
    text: str,
    tip: str,
    field: str,
    is_signed: bool,
) -> Json:
    listed = [
        (key, result, label, block_sum(values, factor))
        for key, result in found.items()
        for label, values in _maps(result, getattr(result, field))
    ]
    largest = max(float(np.abs(values).max()) for *_, values in listed) or 1.0
    high, low = math.log10(largest), math.log10(largest) - DECADES

    def logarithm(values: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            return np.maximum(np.log10(values), low)

    draw: Callable[[np.ndarray], np.ndarray] = _signed_root if is_signed else logarithm
    ends = (-math.sqrt(largest), math.sqrt(largest)) if is_signed else (low, high)
    read: Json = {"power": 2} if is_signed else {"power": 10, "floor": low}
    stops = SIGNED if is_signed else CIVIDIS
    maps = [
        {
            "key": f"attention-{i}",
            "figure": {
                "data": [
                    heatmap(
                        draw(values),
                        factor * result.stride,
                        *ends,
                        colorscale=colorscale(stops),
                        opacity=0.8,
                    )
                ],
                "layout": map_layout(*result.provenance.input_size, photo),
            },
            "left": {"text": label, "tone": key},
            "right": {"text": f"Σ {signed(float(values.sum()))}"},
            "read": {"trace": 0, "cell": factor * result.stride, "unit": "", **read},
            "cell": result.stride,
            "stage": result.stage,
            "alt": f"{tip}, {label}",
        }
        for i, (key, result, label, values) in enumerate(listed)
    ]
    return {"text": text, "tip": tip, "maps": maps, "scale": _scale(largest, factor, is_signed)}


def _maps(result: AttentionResult, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(label, `[H, W]`): of one sequence itself, of several their sum and each."""
    name = scan_short(result.provenance.scan)
    total = values.sum(0, dtype=np.float64)
    if not result.sequences:
        return [(f"{name}, read by no sequence", total)]
    if len(values) == 1:
        return [(f"{name}, group {result.sequences[0] + 1}", total)]
    each = [
        (f"sequence {k + 1}", found.astype(np.float64))
        for k, found in zip(result.sequences, values, strict=True)
    ]
    return [(f"{name}, all {len(values)}", total), *each[:MAX_SEQUENCES]]


def _signed_root(values: np.ndarray) -> np.ndarray:
    root: np.ndarray = np.sign(values) * np.sqrt(np.abs(values))
    return root


def _scale(largest: float, factor: int, is_signed: bool) -> Json:
    per = f" per {factor} × {factor} tokens" if factor > 1 else ""
    if is_signed:
        text = tiny(largest)
        ticks = [
            {"at": 0, "text": f"−{text}"},
            {"at": 0.5, "text": "0"},
            {"at": 1, "text": text},
        ]
        label = f"alpha{per}, drawn as its signed root"
        return {"stops": list(SIGNED), "ticks": ticks, "label": label}
    return {
        "stops": list(CIVIDIS),
        "low": f"≤ {tiny(largest * 10.0**-DECADES)}",
        "high": tiny(largest),
        "label": f"|alpha|{per}, log, {DECADES} decades, one scale",
    }


def _decay(found: Mapping[str, AttentionResult]) -> Json:
    data = []
    for key, result in found.items():
        for i, (k, curve) in enumerate(zip(result.sequences, result.decay, strict=True)):
            keep = _thinned(len(curve))
            keep = keep[np.isfinite(curve[keep]) & (curve[keep] > 0)]
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": (result.steps[keep] + 1).tolist(),
                    "y": [float(f"{v:.4g}") for v in curve[keep]],
                    "name": f"{scan_short(result.provenance.scan)}, {k + 1}",
                    "line": {"color": f"@{key}", "width": 1.6, "dash": DASHES[i % len(DASHES)]},
                    "hovertemplate": "%{y:.3g}",
                }
            )
    layout = curve_layout("steps back + 1 (log)", "")
    layout["xaxis"]["type"] = "log"
    layout["yaxis"] |= {"type": "log", "exponentformat": "power", "nticks": 5}
    return {"data": data, "layout": layout}


def _thinned(n: int) -> np.ndarray:
    """At most MAX_CURVE_POINTS of `n` indices, evenly in the logarithm, ends included."""
    return np.unique(np.geomspace(1, max(n, 1), MAX_CURVE_POINTS).astype(int)) - 1


def _sentence(found: Mapping[str, AttentionResult]) -> str:
    """How far the bulk of what the token reads lies back, per scheme."""
    parts = []
    for result in found.values():
        sizes = result.rows_size.sum(0, dtype=np.float64)
        if not sizes.any():
            parts.append(f"{scan_short(result.provenance.scan)}: this token reads nothing")
            continue
        own = sizes[result.y, result.x] / sizes.sum()
        order = np.sort(sizes.ravel())[::-1].cumsum()
        n = int(np.searchsorted(order, 0.9 * order[-1])) + 1
        parts.append(
            f"{scan_short(result.provenance.scan)}: {percent(float(own))} of its |alpha| is on "
            f"itself, 90 % on {n:,} of {sizes.size:,} tokens"
        )
    return "; ".join(parts) + "."
