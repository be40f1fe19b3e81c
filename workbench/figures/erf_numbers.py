"""The ERF tab's table: every number of every field with its band, beside a uniform map's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.figures.erf_maps import (
    DEFINITION_NAMES,
    OWN_TRANSFORM,
    field_names,
    images_text,
    in_text,
)
from workbench.figures.theme import Json, significant
from workbench.results import ErfResult

LINEAR = ("mass", "openerf")  # definitions whose transform changes no number


@dataclass(frozen=True, slots=True)
class Row:
    """A number of the table: `key` of ErfResult.metrics, or a field of the result itself."""

    key: str
    text: str
    unit: str  # "%" multiplies by 100
    tip: str


AREA = "Smallest set of pixels that holds {} % of the mass, as a share of the image"
SQUARE = "Smallest square around the centre that holds more than {} % of the mass, share of image"
ROWS = (
    *(Row(f"area{t}", f"densest {t} %", "%", AREA.format(t)) for t in (20, 50, 90, 99)),
    Row("radius50_px", "radius of 50 %", "px", "Around the token, holding half of the mass"),
    Row("radius90_px", "radius of 90 %", "px", "Around the token, holding 90 % of the mass"),
    *(Row(f"square{t}", f"square {t} %", "%", SQUARE.format(t)) for t in (20, 30, 50, 99)),
    *(Row(f"named{t}", f"square {t} %", "%", SQUARE.format(t)) for t in (20, 30, 50, 99)),
    *(
        Row(
            f"within{r}", f"mass within {r} px", "%", f"Of the middle pixel, {r} px around: OpenERF"
        )
        for r in (5, 10, 20, 30, 40, 60, 80)
    ),
    Row("com_shift_px", "mass centre, shift", "px", "From the token's centre"),
    Row("com_y_px", "mass centre, row", "px", "Input pixels from the top"),
    Row("com_x_px", "mass centre, column", "px", "Input pixels from the left"),
    Row("spread_px", "spread", "px", "Root mean square distance from the centre of mass"),
    Row("anisotropy", "anisotropy", "", "Long axis over short axis of the second moments"),
    Row("axis_deg", "long axis", "°", "Direction from horizontal, counter-clockwise"),
    Row("gauss_sigma_y_px", "Gaussian σ, vertical", "px", "Of the least-squares fit"),
    Row("gauss_sigma_x_px", "Gaussian σ, level", "px", "Of the least-squares fit"),
    Row("gauss_r2", "Gaussian fit, R²", "", "Share of the map's variance that the fit explains"),
    Row("entropy_area", "entropy area", "%", "Area of a uniform map of the same entropy"),
    Row("reach_share", "reach, exact", "%", "Pixels that can matter at all, by the layers"),
    Row("uniform_distance", "from uniform", "%", "Total variation on an 8 × 8 grid"),
    Row("split_distance", "halves' distance", "%", "Total variation, even and odd images"),
    Row("n_images", "images", "", "That the mean is over"),
)


def uniform_metrics(height: int, width: int, centre: tuple[float, float]) -> dict[str, float]:
    """What the numbers would be for a uniform map of this size, where that is defined."""
    n = height * width
    rows, columns = np.mgrid[:height, :width] + 0.5
    distance = np.sort(np.hypot(rows - centre[0], columns - centre[1]), axis=None)
    found = {f"area{t}": math.ceil(t * n / 100) / n for t in (20, 50, 90, 99)}
    found |= {f"radius{t}_px": float(distance[math.ceil(t * n / 100) - 1]) for t in (50, 90)}
    for t in (20, 30, 50, 99):
        found[f"square{t}"] = found[f"named{t}"] = _uniform_square(height, width, t / 100)
    variances = sorted((height**2 / 12, width**2 / 12))  # mass is spread over whole pixels
    middle = (height / 2, width / 2)
    found |= {"com_y_px": middle[0], "com_x_px": middle[1]}
    found["com_shift_px"] = math.hypot(middle[0] - centre[0], middle[1] - centre[1])
    found["spread_px"] = math.sqrt(sum(variances))
    found["anisotropy"] = math.sqrt(variances[1] / variances[0]) if variances[0] else math.nan
    return found | {"entropy_area": 1.0, "uniform_distance": 0.0}


def _uniform_square(height: int, width: int, share: float) -> float:
    """RepLKNet's centred square: odd sides from 3, the first that holds more than `share`."""
    for i in range(1, min(height, width) // 2):
        area = (2 * i + 1) ** 2 / (height * width)
        if area > share:
            return area
    return math.nan


def metric(result: ErfResult, row: Row) -> tuple[float, float, float]:
    """(value, low, high) of a row in its unit; nan where there is none."""
    if row.key in ("reach_share", "n_images"):
        value, low, high = float(getattr(result, row.key)), math.nan, math.nan
    else:
        value = result.metrics.get(row.key, math.nan)
        low = result.metric_low.get(row.key, math.nan)
        high = result.metric_high.get(row.key, math.nan)
    factor = 100 if row.unit == "%" else 1
    return factor * value, factor * low, factor * high


def shown_rows(fields: Sequence[ErfResult]) -> list[Row]:
    """Rows with a number in any field; those under the definition's transform where it has one."""
    rows = []
    for row in ROWS:
        if row.key.startswith("named") and fields[0].definition in LINEAR:
            continue
        if any(math.isfinite(metric(r, row)[0]) for r in fields):
            rows.append(row)
    return rows


def row_text(row: Row, definition: str) -> str:
    """Name of a row; squares under the definition's transform are named by it."""
    if not row.key.startswith("named"):
        return row.text
    return f"{row.text} of {OWN_TRANSFORM.get(definition, 'the transform').removesuffix(' / max')}"


def with_band(value: float, low: float, high: float) -> str:
    """ "28.4 [26.1, 31.0]", all to the decimals of the value."""
    text = significant(value)
    if not (math.isfinite(low) and math.isfinite(high)):
        return text
    decimals = len(text.partition(".")[2]) if "e" not in text else 3
    return f"{text} [{low:,.{decimals}f}, {high:,.{decimals}f}]"


def erf_numbers_panel(fields: Sequence[ErfResult], keys: Sequence[str]) -> Json:
    """Rows are numbers, columns networks; bands are 90 % bootstrap intervals over images."""
    first = fields[0]
    height, width = first.mass.shape
    names = field_names(fields)
    uniform = uniform_metrics(height, width, first.centre)
    columns: list[Json] = [
        {"key": "metric", "text": "number", "unit": "", "kind": "text", "tip": "What is measured"},
        {"key": "unit", "text": "unit", "unit": "", "kind": "text", "tip": "%: of the image"},
    ]
    for key, name, result in zip(keys, names, fields, strict=True):
        column: Json = {"unit": "", "kind": "number", "tip": images_text(result)}
        columns.append(column | {"key": key, "text": name, "tone": key})
        for end in ("low", "high"):
            columns.append(
                column | {"key": f"{key}_{end}", "text": f"{name} {end}", "hidden": True}
            )
    tip = f"The same number of a uniform map of {height} × {width} px"
    columns.append({"key": "uniform", "text": "uniform", "unit": "", "kind": "number", "tip": tip})
    definition = DEFINITION_NAMES.get(first.definition, first.definition)
    return {
        "id": "lab_erf_numbers",
        "title": "Numbers",
        "stage": first.stage,
        "input": [height, width],
        "badges": [{"text": f"{definition}, {_interval(fields)}", "tone": "muted"}],
        "columns": columns,
        "rows": [_row(row, fields, keys, uniform) for row in shown_rows(fields)],
        "sort": None,
        "is_fixed": True,
        "csv_name": f"erf-{first.unit}-{first.y}-{first.x}-{height}x{width}.csv",
        "sentence": _sentence(fields, names),
        "is_live": not all(r.is_final for r in fields),
    }


def _interval(fields: Sequence[ErfResult]) -> str:
    n = max(r.n_bootstrap for r in fields)
    return f"in brackets 90 % interval, {n:,} resamples" if n else "no interval: one image"


def _row(
    row: Row, fields: Sequence[ErfResult], keys: Sequence[str], uniform: dict[str, float]
) -> Json:
    text = row_text(row, fields[0].definition)
    cells: Json = {"metric": {"value": text, "tip": row.tip}, "unit": row.unit}
    for key, result in zip(keys, fields, strict=True):
        value, low, high = metric(result, row)
        is_count = row.key == "n_images"
        shown = f"{value:,.0f}" if is_count else with_band(value, low, high)
        cells[key] = {
            "value": _finite(value),
            "text": shown,
            "tip": f"{value!r} {row.unit}".strip(),
        }
        if not math.isfinite(value):
            missing = "not reached" if row.key.startswith(("square", "named")) else "n/a"
            cells[key] |= {"text": missing, "tip": _why_missing(row)}
        cells |= {f"{key}_low": _finite(low), f"{key}_high": _finite(high)}
    known = uniform.get(row.key, math.nan) * (100 if row.unit == "%" else 1)
    cells["uniform"] = {"value": _finite(known), "text": significant(known)}
    if not math.isfinite(known):
        cells["uniform"]["text"] = "not reached" if row.key in uniform else "–"
    return {"id": row.key, "cells": cells, "slots": [], "tone": ""}


def _why_missing(row: Row) -> str:
    if row.key.startswith(("square", "named")):
        return "No square inside the image holds as much, or the token is not the centre one"
    return "Not known for this field"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _sentence(fields: Sequence[ErfResult], names: Sequence[str]) -> str:
    """Whether the first two differ by more than the images do."""
    row = next(r for r in ROWS if r.key == "area90")
    words = [
        f"{with_band(*metric(r, row))} % with {in_text(name)}"
        for r, name in zip(fields[:2], names, strict=False)
    ]
    text = f"The densest 90 % of the mass cover {', '.join(words)}"
    if len(fields) < 2:
        return text + "."
    (_, low_a, high_a), (_, low_b, high_b) = (metric(r, row) for r in fields[:2])
    if not all(map(math.isfinite, (low_a, high_a, low_b, high_b))):
        return text + "."
    overlap = low_a <= high_b and low_b <= high_a
    return f"{text}: these intervals {'overlap' if overlap else 'do not overlap'}."
