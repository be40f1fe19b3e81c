"""Results as files of the asked formats: what the command line writes and the API sends."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from workbench.errors import BadInputError
from workbench.export import pack, to_json, to_npz
from workbench.figures.kernel_csv import roofline_csv, token_csv, what_if_csv
from workbench.figures.kernel_floors import setting_of
from workbench.figures.latex import erf_csv, faithfulness_rows, latex_rows
from workbench.figures.paper_code import inspect_csv
from workbench.figures.profiler_csv import comparison_csv, sweep_csv, sweep_latex, trace_csv
from workbench.kernel_results import InspectResult, RooflineResult, TokenCost, WhatIfResult
from workbench.profiler_results import RunComparison, SweepResult, TraceResult
from workbench.report import batch_csv, html_report, scheme_csv
from workbench.results import (
    AttributionBatch,
    ErfResult,
    FaithfulnessResult,
    MapsResult,
    SchemeTableResult,
)

FORMATS = ("json", "npz", "png", "svg", "html", "zip", "csv", "npy", "tex")
# Formats that some results only can have, and whose.
SPECIAL = {
    "csv": "the table of schemes (add --compare or --all-schemes to `scan`), receptive fields, "
    "a folder of attributions, sweeps, traces, comparisons of runs, rooflines and kernels",
    "npy": "receptive fields (`erf`) and attribution maps (`attribute --method`)",
    "tex": "receptive fields (`erf`), checks of a map (`attribute --faithfulness`) and sweeps",
}


def save_files(folder: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """Write the files, by name, into a folder that is made where there is none; their paths."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
            yield folder / name
    except OSError as error:
        raise BadInputError(
            f"{folder} cannot be written: {error.strerror}. Choose another folder with --out."
        ) from error


def tables(results: Mapping[str, Any]) -> dict[str, bytes]:
    """Files for a spreadsheet or a paper, by file name: of each table of schemes, folder of
    attributions, check of a map, sweep, trace, comparison, roofline and kernel, and one of all
    receptive fields."""
    found = {}
    for name, result in results.items():
        if isinstance(result, SchemeTableResult):
            found[f"{name}.csv"] = scheme_csv(result)
        elif isinstance(result, AttributionBatch):
            found[f"{name}.csv"] = batch_csv(result)
        elif isinstance(result, FaithfulnessResult):
            found[f"{name}.tex"] = faithfulness_rows(result).encode()
        elif isinstance(result, SweepResult):
            found[f"{name}.csv"] = sweep_csv(result)
            found[f"{name}.tex"] = sweep_latex(result).encode()
        elif isinstance(result, RunComparison):
            found[f"{name}.csv"] = comparison_csv(result)
        elif isinstance(result, TraceResult):
            found |= {f"{name}_{table}.csv": data for table, data in trace_csv(result).items()}
        elif isinstance(result, WhatIfResult):
            found[f"{name}.csv"] = what_if_csv(result)
        elif isinstance(result, InspectResult):
            found[f"{name}.csv"] = inspect_csv(result)
    roofline, what = results.get("roofline"), results.get("what_if")
    if isinstance(roofline, RooflineResult) and isinstance(what, WhatIfResult):
        found["roofline.csv"] = roofline_csv(roofline, setting_of(what))
    tokens = {k[-1]: result for k, result in results.items() if isinstance(result, TokenCost)}
    if tokens:
        found["token.csv"] = token_csv(tokens)
    if fields := _fields(results):
        found |= {"erf.csv": erf_csv(fields), "erf.tex": latex_rows(fields).encode()}
    return found


def _fields(results: Mapping[str, Any]) -> list[ErfResult]:
    return [result for result in results.values() if isinstance(result, ErfResult)]


def _map_files(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The maps of receptive fields and attributions, float32 `[H, W]`, as numpy's own files."""
    arrays = {}
    for name, result in results.items():
        if isinstance(result, ErfResult):
            arrays[name] = result.mass
        elif isinstance(result, MapsResult):
            arrays |= {f"{name}_{one.name}": one.values for one in result.maps}
    found = {}
    for name, values in arrays.items():
        file = io.BytesIO()
        np.save(file, values, allow_pickle=False)
        found[f"{name}.npy"] = file.getvalue()
    return found


def result_files(
    results: dict[str, Any],
    formats: Collection[str],
    *,
    name: str,
    title: str,
    rgb: np.ndarray | None,
    scale: str = "log",
) -> dict[str, bytes]:
    """Files by name; those that hold every result are called `name`.

    `results` by the names that `figures.paper` knows; `rgb` is the network input `[H, W, 3]`, None
    where there is none; `scale` of receptive fields: log, linear or power.
    """
    from workbench.figures.paper import render  # matplotlib takes a second to load

    files: dict[str, bytes] = {}
    pictures = render(results, rgb, scale=scale) if {"png", "html", "zip"} & set(formats) else {}
    listed = tables(results) if {"csv", "tex", "zip"} & set(formats) else {}
    special = listed | (_map_files(results) if "npy" in formats else {})
    if "json" in formats:
        files |= {f"{key}.json": to_json(result) for key, result in results.items()}
    if "npz" in formats:
        files |= {f"{key}.npz": to_npz(result) for key, result in results.items()}
    for form, owner in SPECIAL.items():
        if form in formats:
            found = {name: data for name, data in special.items() if name.endswith(f".{form}")}
            if not found:
                raise BadInputError(f"{form} is for {owner}.")
            files |= found
    if "png" in formats:
        files |= pictures
    if "svg" in formats:
        files |= render(results, rgb, "svg", scale)
    if "html" in formats:
        files[f"{name}.html"] = html_report(title, results, pictures).encode()
    if "zip" in formats:
        files[f"{name}.zip"] = pack(results, {}, pictures, listed)
    return files
