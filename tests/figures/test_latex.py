"""Receptive fields as LaTeX rows and as CSV."""

from __future__ import annotations

import csv
import io
import math

import pytest

from tests.figures.conftest import erf_result, provenance
from tests.figures.test_attribution_lab import faithfulness_result
from workbench.figures.latex import COLUMNS, erf_csv, escape, faithfulness_rows, latex_rows


def test_special_characters_are_printed_not_run() -> None:
    given = r"50 % of a_b & c#1 {x} ~ ^2 \input{file} $y$ 2 × 3"
    assert escape(given) == (
        r"50 \% of a\_b \& c\#1 \{x\} \textasciitilde{} \textasciicircum{}2 "
        r"\textbackslash{}input\{file\} \$y\$ 2 $\times$ 3"
    )


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.removesuffix(r" \\").split(" & ")]
        for line in text.splitlines()
        if not line.startswith("%")
    ]


def test_a_row_per_network_with_what_was_measured_above() -> None:
    fields = [erf_result("es2d:step=2"), erf_result("ss2d", 9.0)]
    text = latex_rows(fields)
    found = rows(text)
    assert [row[0] for row in found] == ["ES2D", "Full scan"]
    assert {len(row) for row in found} == {1 + len(COLUMNS)}
    area = 100 * fields[0].metrics["area50"]
    assert found[0][2].startswith(f"{area:.2f} {{\\scriptsize [")
    assert found[0][1] == f"{100 * fields[0].metrics['area20']:.2f}", "no band, no brackets"
    assert found[0][COLUMNS.index("square99") + 1] == "--", "not reached"
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert comments[0] == "% Effective receptive field, definition mass: by hand"
    for words in ("8 images, 64 x 64 px", "no seed", "weights random, seed 0", "scan es2d:step=2"):
        assert words in comments[1]
    assert r"\toprule" in text and r"\midrule" in text


def test_a_row_for_a_map_and_each_control() -> None:
    result = faithfulness_result()
    text = faithfulness_rows(result)
    found = rows(text)
    assert [row[0] for row in found] == [escape(result.method), "random", "edges"]
    assert found[0][1:] == ["0.667", "0.333", "0.250", "--"], "no sensitivity was computed"
    comments = [line for line in text.splitlines() if line.startswith("%")]
    assert result.provenance.definition in comments[0]
    for words in (result.map_name, result.target_name, result.baseline, "random orders"):
        assert words in comments[1]
    assert r"\toprule" in text and r"\midrule" in text


def test_a_name_from_outside_cannot_leave_its_comment_or_cell() -> None:
    evil = "net\n\\input{secret} & 1"
    p = provenance("", weights="w\n\\immediate", definition="d\n\\write18{x}")
    text = latex_rows([erf_result("ss2d", provenance=p, network=evil)])
    lines = [line for line in text.splitlines() if not line.startswith("%")]
    assert all("write18" not in line and "immediate" not in line for line in lines)
    assert r"\textbackslash{}input\{secret\} \& 1" in " ".join(lines)
    assert len(lines) == 1, "one row, whatever is in the name"


def test_fields_of_one_network_at_several_units_have_different_names() -> None:
    fields = [
        erf_result("ss2d", unit_label="stage 1"),
        erf_result("ss2d", unit_label="stage 2"),
        erf_result("ss2d", unit_label="stage 2", y=3),
    ]
    names = [row[0] for row in rows(latex_rows(fields))]
    assert names == [
        "Full scan, stage 1",
        "Full scan, stage 2, token (8, 8)",
        "Full scan, stage 2, token (3, 8)",
    ]


def test_csv_holds_every_number_exactly() -> None:
    result = erf_result("es2d:step=2")
    table = list(csv.DictReader(io.StringIO(erf_csv([result, erf_result("ss2d")]).decode())))
    assert {row["field"] for row in table} == {"ES2D", "Full scan"}
    found = {row["number"]: row for row in table if row["field"] == "ES2D"}
    assert float(found["densest 90 %"]["value"]) == 100 * result.metrics["area90"]
    assert float(found["densest 90 %"]["low"]) == 100 * result.metric_low["area90"]
    assert float(found["radius of 50 %"]["value"]) == result.metrics["radius50_px"]
    assert found["anisotropy"]["low"] == ""
    assert float(found["square 20 %"]["uniform"]) == pytest.approx(100 * 29**2 / 64**2)
    assert not any("nan" in cell for row in table for cell in row.values())
    assert math.isclose(float(found["images"]["value"]), 8)
