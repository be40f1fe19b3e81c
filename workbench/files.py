"""Results as files of the asked formats: what the command line writes and the API sends."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from workbench.errors import BadInputError
from workbench.export import pack, to_json, to_npz
from workbench.report import html_report, scheme_csv
from workbench.results import SchemeTableResult

FORMATS = ("json", "npz", "png", "svg", "html", "zip", "csv")


def csv_tables(results: Mapping[str, Any]) -> dict[str, bytes]:
    """A file for a spreadsheet of each table of schemes, by file name."""
    return {
        f"{name}.csv": scheme_csv(result)
        for name, result in results.items()
        if isinstance(result, SchemeTableResult)
    }


def result_files(
    results: dict[str, Any],
    formats: Collection[str],
    *,
    name: str,
    title: str,
    rgb: np.ndarray | None,
) -> dict[str, bytes]:
    """Files by name; those that hold every result are called `name`.

    `results` by the names that `figures.paper` knows; `rgb` is the network input `[H, W, 3]`, None
    where there is none.
    """
    from workbench.figures.paper import render  # matplotlib takes a second to load

    files: dict[str, bytes] = {}
    pictures = render(results, rgb) if {"png", "html", "zip"} & set(formats) else {}
    tables = csv_tables(results)
    if "json" in formats:
        files |= {f"{key}.json": to_json(result) for key, result in results.items()}
    if "npz" in formats:
        files |= {f"{key}.npz": to_npz(result) for key, result in results.items()}
    if "csv" in formats:
        if not tables:
            raise BadInputError(
                "csv is for the table of schemes: add --compare or --all-schemes to `scan`."
            )
        files |= tables
    if "png" in formats:
        files |= pictures
    if "svg" in formats:
        files |= render(results, rgb, "svg")
    if "html" in formats:
        files[f"{name}.html"] = html_report(title, results, pictures).encode()
    if "zip" in formats:
        files[f"{name}.zip"] = pack(results, {}, pictures, tables)
    return files
