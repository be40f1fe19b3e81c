"""Results as one HTML file that needs nothing else: pictures, numbers, and where they come from."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.results import AttributionBatch, SchemeRow, SchemeTableResult

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 400; color: #52606d; padding: 0 2rem 0 0; vertical-align: top; }
td { overflow-wrap: anywhere; }
.wide { overflow-x: auto; } .wide td { padding: 0 1rem 0 0; overflow-wrap: normal; }
"""
# The file is opened from disk: nothing may be loaded, nothing may run.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_report(title: str, results: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """`results` by name, of the types of `workbench.results`; `pictures` are PNGs by name."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    for name, png in pictures.items():
        data = base64.b64encode(png).decode()
        parts.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">')
    for name, result in results.items():
        parts.append(f"<h2>{html.escape(name)}</h2>")
        parts.append(_table(facts(result)))
        if isinstance(result, SchemeTableResult):
            parts.append(_grid(scheme_columns(result)))
        if hasattr(result, "provenance"):
            parts.append("<details><summary>Where this comes from</summary>")
            parts.append(_table(_fields(result.provenance)))
            parts.append("</details>")
    return "\n".join([*parts, "</body></html>", ""])


def facts(result: Any) -> list[tuple[str, str]]:
    """(name, value) in words of a result's plain values; arrays and long lists are left out."""
    rows = [row for row in _fields(result) if row[0] != "provenance"]
    if hasattr(result, "probabilities"):
        best = np.argsort(-result.probabilities)[:5]
        rows += [(result.classes[i], f"{100 * result.probabilities[i]:.3g} %") for i in best]
    if hasattr(result, "restored"):
        rows += [(f"reach, {s.name}", _shares(s.share, s.mean_share)) for s in result.restored]
    if isinstance(result, AttributionBatch):
        rows += [
            (name, f"mean {_text(float(m))} ({_text(float(a))} to {_text(float(b))})")
            for name, m, a, b in zip(
                result.columns, result.mean, result.low, result.high, strict=True
            )
        ]
    if hasattr(result, "lost"):
        for name in ("lost", "repeated"):
            tokens = getattr(result, name)
            places = [f"({t // result.width}, {t % result.width})" for t in tokens[:8]]
            more = f" and {len(tokens) - 8:,} more" if len(tokens) > 8 else ""
            rows = [row for row in rows if row[0] != name]
            rows.append((f"tokens {name}", ", ".join(places) + more or "none"))
        rows += [("finding", finding) for finding in result.findings]
    return rows


def _shares(own: float, mean: float) -> str:
    return f"{100 * own:.1f} % of the tokens, mean over tokens {100 * mean:.1f} %"


def scheme_columns(table: SchemeTableResult) -> list[list[str]]:
    """The table of schemes as text: a head, then one line per scheme."""
    left_out = ("metrics", "definition")
    plain = [f.name for f in dataclasses.fields(SchemeRow) if f.name not in left_out]
    metrics = [name for name in (table.rows[0].metrics if table.rows else ()) if name not in plain]
    head = [*plain[:2], *metrics, *plain[2:]]
    rows = [{name: getattr(row, name) for name in plain} | row.metrics for row in table.rows]
    return [head, *([_cell(row[name]) for name in head] for row in rows)]


def scheme_csv(table: SchemeTableResult) -> bytes:
    """The table of schemes for a spreadsheet: numbers with all digits, what is not known empty."""
    return _csv(scheme_columns(table))


def batch_csv(batch: AttributionBatch) -> bytes:
    """One line per photo, then the mean and the 5th and 95th percentile over the photos."""
    lines = [["image", "class", *batch.columns]]
    for image, name, row in zip(batch.images, batch.target_names, batch.values, strict=True):
        lines.append([_cell(image), _cell(name), *(_cell(float(v)) for v in row)])
    for label, row in (("mean", batch.mean), ("p05", batch.low), ("p95", batch.high)):
        lines.append([label, "", *(_cell(float(v)) for v in row)])
    return _csv(lines)


def _csv(lines: Iterable[Sequence[str]]) -> bytes:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(lines)
    return file.getvalue().encode()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    text = str(value)
    # A spreadsheet would run a cell that starts like a formula.
    return f"'{text}" if isinstance(value, str) and text[:1] in ("=", "+", "-", "@") else text


def _grid(lines: list[list[str]]) -> str:
    head, *rest = lines
    cells = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in head)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line)}</tr>" for line in rest
    )
    return f'<div class="wide"><table><tr>{cells}</tr>{body}</table></div>'


def _fields(record: Any) -> list[tuple[str, str]]:
    rows = []
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, dict):
            rows += [(key, _text(item)) for key, item in value.items()]
        elif isinstance(value, tuple) and value and all(isinstance(v, (int, str)) for v in value):
            if len(value) <= 8:
                rows.append((field.name, "; ".join(map(str, value))))
        elif isinstance(value, (str, int, float, bool)) and value != "":
            rows.append((field.name, _text(value)))
    return rows


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return "not known" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = (
        f"<tr><th>{html.escape(name.replace('_', ' '))}</th><td>{html.escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<table>{''.join(cells)}</table>"
