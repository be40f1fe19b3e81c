"""Receptive fields and checks of attributions as text for a paper or a spreadsheet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from workbench.figures.erf_maps import field_names, images_text
from workbench.figures.erf_numbers import (
    ROWS,
    Row,
    metric,
    row_text,
    shown_rows,
    uniform_metrics,
    with_band,
)
from workbench.figures.theme import significant
from workbench.results import ErfResult, FaithfulnessResult

ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "−": r"$-$",
    "≤": r"$\leq$",
    "σ": r"$\sigma$",
    "°": r"$^\circ$",
    **{character: "\\" + character for character in "&%$#_"},
}
COLUMNS = (
    *("area20", "area50", "area90", "radius50_px"),
    *("square20", "square50", "square99", "anisotropy", "uniform_distance"),
)


# Numbers of a curve in the table of faithfulness, in words.
MEASURES = (
    ("insertion_auc", "insertion AUC"),
    ("deletion_auc", "deletion AUC"),
    ("infidelity", "infidelity"),
    ("sensitivity", "sensitivity"),
)


def escape(text: str) -> str:
    """Text in one line that LaTeX prints as it is."""
    return "".join(ESCAPES.get(character, character) for character in " ".join(text.split()))


def _comment(text: str) -> str:
    """One line that LaTeX skips, whatever is in the text."""
    return "% " + " ".join(text.split())


def latex_rows(fields: Sequence[ErfResult]) -> str:
    """Rows of a booktabs table, one per field, after comments that say what was measured.

    The columns are in the comment above the rows, as a head to copy.
    """
    by_key = {row.key: row for row in ROWS}
    rows = [by_key[key] for key in COLUMNS]
    names = _names(fields)
    lines = []
    for name, words in dict.fromkeys((r.definition, r.provenance.definition) for r in fields):
        lines.append(_comment(f"Effective receptive field, definition {name}: {words}"))
    for name, result in zip(names, fields, strict=True):
        lines.append(_comment(f"{name}: {_how(result)}"))
    head = ["network", *(_head(row) for row in rows)]
    lines.append("% \\begin{tabular}{l" + "r" * len(rows) + "}\\toprule")
    lines.append("% " + " & ".join(head) + r" \\ \midrule")
    for name, result in zip(names, fields, strict=True):
        cells = [escape(name), *(_cell(result, row) for row in rows)]
        lines.append(" & ".join(cells) + r" \\")
    lines.append("% \\bottomrule\\end{tabular}")
    return "\n".join(lines) + "\n"


def faithfulness_rows(result: FaithfulnessResult) -> str:
    """Rows of a booktabs table: the map and its controls, after comments that say what was
    measured."""
    p = result.provenance
    how = (
        f"map {result.map_name} of {result.method} for {result.target_name}; photo {p.image}; "
        f"model {p.model}, scan {p.scan}, weights {p.weights} (sha256 {p.weights_sha256[:12]}); "
        f"missing pixels: {result.baseline}; {result.n_random} random orders; seed {p.seed}"
    )
    head = " & ".join(["order", *(escape(words) for _, words in MEASURES)])
    lines = [
        _comment(p.definition),
        _comment(how),
        "% \\begin{tabular}{l" + "r" * len(MEASURES) + "}\\toprule",
        f"% {head} \\\\ \\midrule",
    ]
    for curve in result.curves:
        name = result.method if curve.name == "map" else curve.name
        numbers = [getattr(curve, key) for key, _ in MEASURES]
        cells = [significant(v) if math.isfinite(v) else "--" for v in numbers]
        lines.append(" & ".join([escape(name), *map(escape, cells)]) + r" \\")
    lines.append("% \\bottomrule\\end{tabular}")
    return "\n".join(lines) + "\n"


def _names(fields: Sequence[ErfResult]) -> list[str]:
    """Names that differ even where one network's fields at several units or tokens are listed."""
    names = field_names(fields)
    for what in (
        lambda r: r.unit_label,
        lambda r: f"token ({r.y}, {r.x})",
        lambda r: r.definition,
    ):
        repeated = {name for name in names if names.count(name) > 1}
        groups = {
            name: {what(r) for n, r in zip(names, fields, strict=True) if n == name}
            for name in repeated
        }
        names = [
            f"{name}, {what(result)}" if len(groups.get(name, ())) > 1 else name
            for name, result in zip(names, fields, strict=True)
        ]
    return names


def _how(result: ErfResult) -> str:
    """Everything that the row does not say."""
    p = result.provenance
    height, width = result.mass.shape
    parts = [
        f"{result.unit_label}, token ({result.y}, {result.x}) of {result.rows} x {result.columns}",
        f"gates {result.gates}",
        f"{images_text(result)}, {height} x {width} px",
        f"seed {p.seed}" if p.seed is not None else "no seed",
        f"model {p.model}" + (f", scan {p.scan}" if p.scan else ""),
        f"weights {p.weights} (sha256 {p.weights_sha256[:12]})",
    ]
    if result.n_bootstrap:
        parts.append(f"brackets: 90 % interval, {result.n_bootstrap} resamples of the images")
    if result.skipped:
        parts.append(f"{len(result.skipped)} images skipped")
    if result.saturation:
        parts.append(f"SATURATED: {result.saturation}")
    return "; ".join(parts)


def _head(row: Row) -> str:
    return escape(row.text) + (f" [{escape(row.unit)}]" if row.unit else "")


def _cell(result: ErfResult, row: Row) -> str:
    value, low, high = metric(result, row)
    if not math.isfinite(value):
        return "--"
    number, _, band = with_band(value, low, high).partition(" ")
    return f"{number} {{\\scriptsize {band}}}" if band else number


def erf_csv(fields: Sequence[ErfResult]) -> bytes:
    """Every number of every field with its interval, one a line; % are of the image or the mass."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(
        ["field", "unit_of_network", "token_y", "token_x", "definition", "images"]
        + ["number", "unit", "value", "low", "high", "uniform"]
    )
    for name, result in zip(_names(fields), fields, strict=True):
        height, width = result.mass.shape
        uniform = uniform_metrics(height, width, result.centre)
        for row in shown_rows([result]):
            factor = 100 if row.unit == "%" else 1
            numbers = [*metric(result, row), factor * uniform.get(row.key, math.nan)]
            writer.writerow(
                [name, result.unit, result.y, result.x, result.definition, result.n_images]
                + [row_text(row, result.definition), row.unit]
                + [repr(float(n)) if math.isfinite(n) else "" for n in numbers]
            )
    return buffer.getvalue().encode()
