"""The kernel inspector's panel, figure and tables, from results made by hand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from kernels import compiled
from tests.figures.kernel_inspections import (
    CHOICES,
    NO_TRITON,
    STORED,
    TARGETS,
    WORDS,
    A,
    B,
    failed,
    inspection,
    numbers,
    trial,
)
from workbench.figures.kernel_code import NO_TRIALS, inspect_panel
from workbench.figures.kernel_words import CLASS_WORDS, apart, signed, tile_text, verdict
from workbench.figures.paper_code import choices_csv, inspect_csv, inspect_figure
from workbench.figures.paper_parts import png
from workbench.kernel_results import InspectResult


def dumped(result: InspectResult) -> dict:
    """The panel as the page gets it; refuses nan."""
    text = json.dumps(inspect_panel(result), allow_nan=False)
    assert len(text) < 1_000_000
    return json.loads(text)


def widths(axes: Axes) -> list[float]:
    return [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)]


def test_every_class_of_instruction_has_words() -> None:
    assert tuple(CLASS_WORDS) == compiled.CLASSES


def test_sentence_has_the_numbers_and_says_that_nothing_ran() -> None:
    assert dumped(inspection(b=None))["sentence"] == (
        "steps_forward, map-rank16-fp32, 32 channels x 1 step, 1 warp, for sm_90 (H100): "
        "162 registers, no spills, 18.8 % occupancy limited by registers (162 per thread); "
        "20 exp2 in loops. Compiled by triton 3.8.0, not run: nothing here is a time on a GPU."
    )
    both = dumped(inspection())["sentence"]
    assert "Beside it 64 channels x 1 step, 1 warp, for sm_90 (H100): 255 registers, " in both
    assert "912 spill bytes" in both
    assert "B against A: +93 registers, +4 exp2 in loops, +40 instructions." in both


@pytest.mark.parametrize(
    ("changes", "text", "tone"),
    [
        ({"registers": 160}, "as stored", "ok"),
        ({"registers": 163}, "+3 registers", "bad"),
        ({"registers": 159}, "−1 register", "ok"),
        ({"registers": 159, "spill_bytes": 8}, "−1 register, +8 spill bytes", "bad"),
        ({"baseline": {}}, "not stored", ""),
        ({"triton_version": "3.9.0"}, "other triton", ""),
        ({"triton_version": "3.9.0", "spill_bytes": 4}, "other triton", "bad"),
        ({"status": "refused"}, "", ""),
    ],
)
def test_verdict_of_the_baseline(changes: dict, text: str, tone: str) -> None:
    found = verdict(numbers(**changes), "3.8.0")
    assert found[:2] == (text, tone)
    if text not in ("not stored", ""):
        assert str(STORED["registers"]) in found[2]


def test_names_in_words() -> None:
    assert tile_text("chunks_backward-map-rank16-bf16-8x16x4") == ("8 channels x 16 steps, 4 warps")
    assert tile_text("merge-bf16") == ""
    assert apart(B, A) == "64 channels x 1 step, 1 warp"
    assert apart(A.replace("fp32", "bf16"), A) == "bf16"
    assert apart("merge-bf16", A) == "merge-bf16"
    assert [signed(v) for v in (3, -1024, 0, 0.25)] == ["+3", "−1,024", "0", "+0.250"]


def test_rows_are_a_b_and_the_other_targets() -> None:
    panel = dumped(inspection())
    rows = panel["rows"]
    found = [(r["slot"], r["target"], r["registers"], r["most_registers"]) for r in rows]
    assert found == [
        ("a", "sm_90", 162, 255),
        ("b", "sm_90", 255, 255),
        ("", "sm_80", 160, 255),
        ("", "gfx942", 79, 512),
    ]
    assert rows[0]["instructions"] == 876 and rows[0]["in_loops"] == 441
    assert rows[0]["compile_ms"] == 547.0
    assert rows[2]["verdict"]["text"] == "as stored"
    assert panel["badges"][0] == {"text": "spills", "tone": "bad"}
    assert panel["waiting"] == [] and panel["obstacle"] is None


def test_difference_and_mix() -> None:
    panel = dumped(inspection())
    rows = {row["text"]: (row["change"], row["tone"]) for row in panel["difference"]}
    assert rows["registers"] == ("+93", "bad")
    assert rows["spill bytes"] == ("+912", "bad")
    assert rows["occupancy"] == ("−6.25 pt", "bad")
    assert rows["shared per block"] == ("0", "")
    assert rows["exp2 in loops"] == ("+4", "")
    mix = {row["key"]: (row["whole"], row["loops"]) for row in panel["mix"]}
    assert mix["local"] == ([0, 30], [0, 12])  # no spill in A, but in B
    assert mix["exp2"] == ([36, 36], [20, 24])
    assert "barrier" not in mix
    alone = dumped(inspection(b=None))
    assert alone["difference"] == []
    assert {row["key"]: row["whole"] for row in alone["mix"]}["fma"] == [300]


def test_vendors_share_the_colours_of_their_last_stages() -> None:
    stages = dumped(inspection())["compile_stages"]
    assert {"place": "assembly", "text": "ptx or amdgcn"} in stages["legend"]
    assert {"place": "binary", "text": "cubin or hsaco"} in stages["legend"]
    assert [bar["target"] for bar in stages["bars"]] == ["sm_90", "sm_90", "sm_80", "gfx942"]


def test_a_kernel_that_does_not_compile_keeps_the_compilers_words() -> None:
    panel = dumped(inspection(a=failed("compiler", WORDS)))
    assert panel["rows"][0]["status"] == WORDS
    assert "registers" not in panel["rows"][0]
    assert panel["obstacle"] is None and panel["difference"] == []
    assert "is not compiled: error: no tile" in panel["sentence"]
    assert panel["mix"][0]["whole"][0] is None


def test_without_triton_it_says_what_to_install() -> None:
    nothing = inspection(
        a=failed("triton", NO_TRITON), b=None, others=(), targets=dict.fromkeys(TARGETS, NO_TRITON)
    )
    panel = dumped(nothing)
    assert panel["obstacle"] == {"title": "No compiler here", "text": NO_TRITON}
    assert "pip install triton" in panel["sentence"] and "`" not in panel["sentence"]
    assert all(target["why"] == NO_TRITON for target in panel["targets"])
    assert png(inspect_figure(nothing))[:4] == b"\x89PNG"


def test_rows_that_are_not_ready_are_named() -> None:
    why = "this triton has no AMD backend"
    growing = inspection(others=(), is_final=False, targets={**TARGETS, "gfx942": why})
    panel = dumped(growing)
    assert [w["target"] for w in panel["waiting"]] == ["sm_80", "sm_100"]
    assert panel["is_live"]
    assert f"gfx942: {why}." in panel["notes"]


def test_trials_stand_beside_the_registers_of_their_tile() -> None:
    assert dumped(inspection())["trials_note"] == NO_TRIALS
    trials = (
        trial(32, 41.25, is_chosen=True),
        trial(64, float("nan"), "out of resources"),
        trial(16, 44.0),
    )
    panel = dumped(inspection(trials=trials))
    first, second, third = panel["trials"]
    assert (first["us_text"], first["chosen"], first["registers"]) == ("41.2", True, 162)
    assert (second["us"], second["status"], second["spills"]) == (None, "out of resources", 912)
    assert third["registers"] is None and panel["trials_note"] == ""


def test_table_has_every_number_and_no_formula() -> None:
    bad = failed("compiler", "=1+1\nerror: <b>", target="sm_80")
    result = inspection(others=(bad, *inspection().others[1:]))
    rows = list(csv.DictReader(io.StringIO(inspect_csv(result).decode())))
    assert [(r["slot"], r["target"]) for r in rows] == [
        ("a", "sm_90"),
        ("b", "sm_90"),
        ("", "sm_80"),
        ("", "gfx942"),
    ]
    assert rows[0]["instructions_fma"] == "300" and rows[0]["in_loops_exp2"] == "20"
    assert rows[0]["baseline_registers"] == "160" and rows[0]["front_end_ms"] == "250.0"
    assert rows[1]["occupancy"] == "0.125" and rows[1]["baseline_registers"] == ""
    assert rows[2]["status"] == "'=1+1\nerror: <b>" and rows[2]["registers"] == ""
    assert rows[3]["hsaco_ms"] == "18.0" and rows[3]["cubin_ms"] == ""
    listed = list(csv.DictReader(io.StringIO(choices_csv(CHOICES).decode())))
    assert len(listed) == len(CHOICES)
    assert listed[2]["origin"] == "ruled out" and listed[2]["channels"] == "64"


def test_figure_shows_resources_and_mix() -> None:
    axes = inspect_figure(inspection()).axes
    assert [a.get_title(loc="left") for a in axes] == [
        "(a) registers",
        "(b) occupancy and its limiter",
        "(c) instruction mix",
    ]
    shares = widths(axes[0])
    assert shares == pytest.approx([162 / 255, 1, 160 / 255, 79 / 512])
    assert "255 of 255, 912 spill bytes" in [text.get_text() for text in axes[0].texts]
    assert sorted(widths(axes[2]))[-2:] == [500, 500]
    assert png(inspect_figure(inspection())) == png(inspect_figure(inspection()))


def test_figure_of_failures_says_why() -> None:
    result = inspection(a=failed("compiler", WORDS), b=None, others=())
    figure = inspect_figure(result)
    assert len(figure.axes) == 2
    assert "error: no tile" in figure.texts[0].get_text()


def test_payload_is_the_same_for_the_same_result() -> None:
    assert inspect_panel(inspection()) == inspect_panel(inspection())
    other = replace(inspection(), note="cache not writable")
    assert "cache not writable" in inspect_panel(other)["notes"]
