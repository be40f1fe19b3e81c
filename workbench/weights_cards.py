"""The cards of the weights that ship, in a reader's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models import available_weights
from models.registry import shipped_path
from workbench.labels import scan_label


def card_path(name: str) -> Path:
    """The file of the card of weights that ship, by their name."""
    return shipped_path(name).with_suffix(".json")


def card_of(name: str) -> dict[str, Any]:
    """The card itself."""
    return json.loads(card_path(name).read_text(encoding="utf-8"))


def story(model: str) -> str:
    """What was trained for a registry name and what it is worth, from the cards themselves."""
    cards = [card_of(info.name) for info in available_weights(model)]
    if not cards:
        return "None ship for this model: it starts from random ones, and every panel says so."
    parts = [_accuracy(card) for card in cards]
    # A comparison is of the files that it names: not of weights that took their place.
    files = {card["sha256"] for card in cards}
    twins = cards[0].get("twins")
    if twins and {row["sha256"] for row in twins["rows"].values()} <= files:
        parts += [_difference(twins), training_words(twins["settings_that_differ"])]
    limits = dict.fromkeys(limit for card in cards for limit in card.get("limits", ()))
    return " ".join((*parts, *limits))


def _accuracy(card: dict[str, Any]) -> str:
    measured = [
        f"{got['top1']:.1f} % at {size} px" for size, got in card.get("accuracy", {}).items()
    ]
    data = card["description"].partition(",")[0]
    top1 = f", top-1 {' and '.join(measured)}" if measured else ""
    return f"{data}, trained with {scan_label(card['scan'])}{top1}."


def _difference(twins: dict[str, Any]) -> str:
    """The last net less the first at the largest size, with its interval."""
    size = max(twins["difference"], key=int)
    d = twins["difference"][size]
    first, last = (scan_label(scan) for scan in twins["rows"])
    return (
        f"{last} less {first} at {size} px: {d['value']:+.1f} points, 95 % interval over images "
        f"{d['low']:+.1f} to {d['high']:+.1f}."
    )


def training_words(settings: dict[str, list[list[Any]]]) -> str:
    """Whether the twins were trained alike: every setting that differs, with both values."""
    if not settings:
        return "Both were trained with the same settings."
    values = (
        f"{key.replace('_', ' ')} {first} and {last}"
        for key, pairs in settings.items()
        for first, last in pairs
    )
    return f"Both were trained with the same settings but for {', '.join(values)}."
