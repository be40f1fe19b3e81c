"""The attribution tab's maps: one method, its stages side by side on one scale, perhaps a rival's
below, and the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.figures.attribution import REFERENCE_CELL_PX
from workbench.figures.theme import (
    CIVIDIS,
    DIVERGING,
    SIGNED,
    Json,
    block_sum,
    colorscale,
    heatmap,
    map_layout,
    percent,
    photo_data_uri,
    significant,
)
from workbench.labels import scan_short
from workbench.results import AttributionMap, MapsResult

MAX_CELLS = 56  # a side of a map that is sent
MAX_PHOTOS_BYTES = 600_000  # of the photo below every map
PHOTO_SIDES = (448, 320, 224, 160, 112, 80)  # longest side of a photo that is sent, px
BEYOND = 0.005  # share of the cells that lie beyond the colours' ends
MINUS = "−"
GOOD = ("Complete", "Conserved")  # how the verdict of a map that keeps its promise starts


@dataclass(frozen=True, slots=True)
class Drawn:
    """A map as it is drawn: values per 32 x 32 input pixels on cells of `cell` pixels."""

    values: np.ndarray
    cell: int


def drawn(found: AttributionMap, is_density: bool = True) -> Drawn:
    """A density per area, so that maps of any stride share one scale; other values as they are.
    Large maps in coarser cells, which hold the mean of theirs.

    A coarser cell at the border may hold fewer of the map's cells: it is divided by its own area.
    """
    factor = -(-max(found.values.shape) // MAX_CELLS)
    values = block_sum(found.values.astype(np.float64), factor)
    values /= block_sum(np.ones(found.values.shape), factor)
    if is_density:
        values *= (REFERENCE_CELL_PX / found.stride) ** 2
    return Drawn(values, found.stride * factor)


def drawn_maps(result: MapsResult) -> list[Drawn]:
    return [drawn(found, result.is_density) for found in result.maps]


def unit_of(result: MapsResult) -> str:
    """ "logit per 32 × 32 px": what the drawn values are."""
    return f"{result.unit} per 32 × 32 px" if result.is_density else result.unit


def limits(maps: Sequence[np.ndarray]) -> tuple[float, float]:
    """(end of the colours, largest size): a few cells far beyond all others get the end's
    colour."""
    sizes = np.abs(np.concatenate([values.ravel() for values in maps]))
    largest = float(sizes.max()) or 1.0
    return float(np.quantile(sizes, 1 - BEYOND)) or largest, largest


def beyond(maps: Sequence[np.ndarray], end: float) -> str:
    """How many cells have the end's colour though they lie beyond it, as a sentence."""
    sizes = np.abs(np.concatenate([values.ravel() for values in maps]))
    n = int((sizes > end).sum())
    if not n:
        return ""
    verb = "lies" if n == 1 else "lie"
    return f" {n:,} of {sizes.size:,} cells {verb} beyond the end, up to {signed(sizes.max())}."


def signed(value: float) -> str:
    """Three significant digits with a true minus."""
    return MINUS + significant(-value) if value < 0 else significant(value)


def photo_within(rgb: np.ndarray, max_bytes: float, longest: int = PHOTO_SIDES[0]) -> str:
    """Data URI of the photo, as large as `max_bytes` allow."""
    uri = ""
    for side in (side for side in PHOTO_SIDES if side <= longest):
        uri = photo_data_uri(rgb, side)
        if len(uri) <= max_bytes:
            break
    return uri


def attribution_lab_panel(
    found: Mapping[str, MapsResult], photos: Mapping[str, np.ndarray], stage: int
) -> Json:
    """`found` and the network inputs `[H, W, 3]` by "a" and, with a rival, "b"."""
    first = found["a"]
    height, width = first.provenance.input_size
    every = {key: drawn_maps(result) for key, result in found.items()}
    is_signed = any(result.is_signed for result in found.values())
    values = [d.values for drawn_maps in every.values() for d in drawn_maps]
    end, _ = limits(values)
    names = names_of(found)
    photo_bytes = MAX_PHOTOS_BYTES / sum(1 + len(result.maps) for result in found.values())
    uris = {key: photo_within(photos[key], photo_bytes) for key in found}
    rows = [
        _row(key, result, every[key], uris[key], end, is_signed, names[key])
        for key, result in found.items()
    ]
    panel: Json = {
        "id": "lab_attr",
        "title": first.label,
        "badges": _badges(found),
        "input": [height, width],
        "columns": 1 + len(first.maps),
        "maps": [spec for row in rows for spec in row],
        "scale": _scale(end, values, is_signed, unit_of(first)),
        "formula": first.provenance.definition,
        "sentence": _sentence(found, names),
        "notes": _notes(found, names),
        "stage": stage,
    }
    if "b" in found and _are_alike(first, found["b"]):
        panel |= _differences(found, every, names)
    return panel


def names_of(found: Mapping[str, MapsResult]) -> dict[str, str]:
    """What tells the two apart: network, scan and weights, or the photo."""
    made = {key: result.provenance for key, result in found.items()}
    words = {}
    for key, p in made.items():
        short = p.model.removeprefix("efficientvmamba_").capitalize()
        parts = [short, scan_short(p.scan), "random" if p.is_random else ""]
        if len({q.image for q in made.values()}) > 1:
            parts = [p.image]
        elif len({(q.model, q.scan, q.is_random) for q in made.values()}) < len(made):
            parts.append(p.weights)
        words[key] = ", ".join(filter(None, parts))
    return words


def _row(
    key: str,
    result: MapsResult,
    maps: Sequence[Drawn],
    photo: str,
    end: float,
    is_signed: bool,
    name: str,
) -> list[Json]:
    """The photo, then its maps over it."""
    height, width = result.provenance.input_size
    specs: list[Json] = [
        {
            "key": f"attr-{key}-photo",
            "figure": {"data": [], "layout": map_layout(height, width, photo)},
            "left": {"text": name, "tone": key},
            "right": {"text": percent(result.probability)},
            "cell": maps[-1].cell,
            "alt": f"The photo of {name}",
        }
    ]
    stops = SIGNED if is_signed else CIVIDIS
    for found, shown in zip(result.maps, maps, strict=True):
        low = -end if is_signed else 0.0
        trace = heatmap(shown.values, shown.cell, low, end, colorscale=colorscale(stops))
        where = f"stage {found.name[-1]}" if found.name != "input" else "input"
        spec: Json = {
            "key": f"attr-{key}-{found.name}",
            "figure": {"data": [trace], "layout": map_layout(height, width, photo)},
            "over_photo": True,
            "left": {"text": where},
            "right": {"text": _summary(found.values, result.is_density)},
            "read": {"trace": 0, "cell": shown.cell, "unit": unit_of(result)},
            "cell": found.stride,
            "alt": f"{result.label}, {name}, {found.layer}",
        }
        if found.name != "input":
            spec["stage"] = int(found.name[-1])
            spec["left"]["stage"] = spec["stage"]
        specs.append(spec)
    return specs


def _summary(values: np.ndarray, is_density: bool) -> str:
    """The sum of a map whose values add up; of any other the largest value."""
    if is_density:
        total = float(values.sum(dtype=np.float64))
        # What cancels up to rounding: behind a norm the gradient is at right angles to the map.
        is_nothing = abs(total) < 1e-5 * float(np.abs(values).sum(dtype=np.float64))
        return "sum ≈ 0" if is_nothing else f"sum {signed(total)}"
    return f"up to {signed(float(values.max()))}"


def _are_alike(a: MapsResult, b: MapsResult) -> bool:
    return [m.values.shape for m in a.maps] == [m.values.shape for m in b.maps]


def _differences(
    found: Mapping[str, MapsResult], every: Mapping[str, Sequence[Drawn]], names: dict[str, str]
) -> Json:
    """First minus rival, one map under each pair, on a scale of their own."""
    a, b = found["a"], found["b"]
    height, width = a.provenance.input_size
    deltas = [x.values - y.values for x, y in zip(every["a"], every["b"], strict=True)]
    end, largest = limits(deltas)
    maps = []
    for source, other, own, delta in zip(a.maps, b.maps, every["a"], deltas, strict=True):
        # The first is teal, so its surplus is drawn at the low end.
        trace = heatmap(-delta, own.cell, -end, end, colorscale=colorscale(DIVERGING))
        maps.append(
            {
                "key": f"attr-difference-{source.name}",
                "figure": {"data": [trace], "layout": map_layout(height, width)},
                "left": {"text": "difference"},
                "right": {"text": _agreement(source.values, other.values)},
                "read": {
                    "trace": 0,
                    "cell": own.cell,
                    "factor": -1,
                    "unit": f"{unit_of(a)}, {names['a']} {MINUS} {names['b']}",
                },
                "cell": source.stride,
                "alt": f"{names['a']} minus {names['b']}, {source.name}",
            }
        )
    text = ("" if end == largest else "≥ ") + significant(end)
    scale = {
        "stops": list(DIVERGING),
        "ticks": [{"at": 0, "text": text}, {"at": 0.5, "text": "0"}, {"at": 1, "text": text}],
        "ends": [
            {"text": f"more: {names['a']}", "tone": "a"},
            {"text": f"more: {names['b']}", "tone": "b"},
        ],
        "label": "",
        "tip": f"Difference, {unit_of(a)}; one scale for all maps." + beyond(deltas, end),
    }
    return {"differences": maps, "difference_scale": scale}


def _agreement(a: np.ndarray, b: np.ndarray) -> str:
    """Pearson correlation of the two maps, cell by cell."""
    pair = np.stack([a.ravel(), b.ravel()]).astype(np.float64)
    if (np.ptp(pair, axis=1) == 0).any():
        return "one is constant"
    x, y = pair - pair.mean(1, keepdims=True)
    found = round(float(x @ y / np.sqrt((x @ x) * (y @ y))), 2)
    return f"correlation {MINUS if found < 0 else ''}{abs(found):.2f}"


def _scale(end: float, maps: Sequence[np.ndarray], is_signed: bool, unit: str) -> Json:
    said = beyond(maps, end)
    high = ("≥ " if said else "") + significant(end)
    tip = "One scale for all maps." + said
    label = f"{unit}, one scale"
    if not is_signed:
        return {"stops": list(CIVIDIS), "low": "0", "high": high, "label": label, "tip": tip}
    low = ("≤ " if said else "") + MINUS + significant(end)
    ticks = [{"at": 0, "text": low}, {"at": 0.5, "text": "0"}, {"at": 1, "text": high}]
    return {"stops": list(SIGNED), "ticks": ticks, "label": label, "tip": tip}


def target_words(result: Any) -> str:
    """ "“tench” (88.2 %)" or "“tench” against “church”"."""
    if result.contrast is None:
        return f"“{result.target_name}” ({percent(result.probability)})"
    return f"“{result.target_name}” against “{result.contrast_name}”"


def _badges(found: Mapping[str, MapsResult]) -> list[Json]:
    first = found["a"]
    badges: list[Json] = [
        {"text": f"for {target_words(first)}", "tone": "muted", "tip": first.provenance.definition}
    ]
    if first.baseline:
        badges.append({"text": f"baseline: {first.baseline}", "tone": "muted"})
    if verdicts := [result.verdict for result in found.values() if result.verdict]:
        bad = [verdict for verdict in verdicts if not verdict.startswith(GOOD)]
        text, tone = ("! not complete", "warn") if bad else ("✓ complete", "ok")
        badges.append({"text": text, "tone": tone, "tip": " ".join(bad or verdicts)})
    if any(result.provenance.is_random for result in found.values()):
        badges.append({"text": "random weights", "tone": "warn"})
    return badges


def _sentence(found: Mapping[str, MapsResult], names: Mapping[str, str]) -> str:
    """Where the densest part of the evidence lies, for this photo."""
    first = found["a"]
    share, name = first.maps[-1].half_share, first.maps[-1].name
    where = "the input" if name == "input" else f"stage {name[-1]}"
    text = f"For {target_words(first)}, objective {signed(first.objective)}: "
    if np.isnan(share):
        text += f"there is no evidence at {where}."
    else:
        text += (
            f"half of the {'absolute ' if first.is_signed else ''}evidence at {where} lies on "
            f"{percent(share)} of the image."
        )
    if "b" in found:
        text += f" {names['b']}: objective {signed(found['b'].objective)}."
    if first.provenance.is_random:
        text += " Random weights."
    return text


def _notes(found: Mapping[str, MapsResult], names: Mapping[str, str]) -> list[str]:
    notes = []
    for key, result in found.items():
        prefix = f"{names[key]}: " if len(found) > 1 else ""
        notes += [prefix + text for text in (result.verdict, result.note) if text]
        if np.isfinite(result.bias_share):
            notes.append(f"{prefix}Biases took {signed(result.bias_share)}.")
    return notes
