"""The words of the page: help and glossary know every term that the tabs use."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.ui.texts import HELP

GLOSSARY = (Path(__file__).parents[2] / "workbench" / "GLOSSARY.md").read_text(encoding="utf-8")
TERMS = ("reach", "gap", "jump", "break", "path only", "verified", "half-life", "pad", "move")
TERMS += (
    "band",
    "split-half distance",
    "phase",
    "frozen gates",
    "implicit attention",
    "completeness gap",
)


@pytest.mark.parametrize("term", TERMS)
def test_help_and_glossary_define_the_terms_of_the_tabs(term: str) -> None:
    assert any(line.startswith(f"| {term} ") for line in GLOSSARY.splitlines())
    assert term.split()[0] in " ".join(f"{title} {text}" for title, text in HELP).lower()


def test_the_glossary_has_one_meaning_for_each_word() -> None:
    words = [line.split("|")[1].strip() for line in GLOSSARY.splitlines() if line.startswith("| ")]
    assert len(words) == len(set(words))
    assert all(len(text) < 480 for _, text in HELP), "help that nobody reads"
