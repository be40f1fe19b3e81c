"""What a user can choose, in words: models, weights, scans, and the page's header."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import models
from kernels import SCHEMES, ScanSpec
from models import WeightsInfo
from workbench.analyses.maps import cost_of
from workbench.errors import BadInputError, NotAvailableError
from workbench.labels import scan_label, scan_short

# Variants of schemes that the page lists besides each scheme with its default parameters; any
# other whole-number parameter comes through the API, the link and the command line.
VARIANTS: dict[str, tuple[dict[str, int], ...]] = {
    "es2d": tuple({"step": step} for step in range(1, 9)),
    "windows": ({"size": 2}, {"size": 7}),
    "raster": ({}, {"reverse": 1}),
    "diagonal": ({}, {"alternate": 1}),
}
NUMBER_WORDS = (
    *("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)


@dataclass(frozen=True, slots=True)
class ModelChoice:
    name: str  # registry name
    label: str  # "Tiny"
    n_parameters: int
    macs_224: float  # multiply-accumulates at 224 px with the default scan, the field's convention


@dataclass(frozen=True, slots=True)
class WeightsChoice:
    name: str  # "default" | "random" | name of weights that ship
    label: str


@dataclass(frozen=True, slots=True)
class ScanChoice:
    name: str  # `ScanSpec` text: "es2d:step=2"
    label: str  # "ES2D, step 2"
    definition: str
    why_not: str = ""  # why it can be drawn only; "" where every model can run it


@dataclass(frozen=True, slots=True)
class Header:
    """The page's first line, ready to print."""

    model_label: str
    weights_label: str  # the whole description of every net
    weights_short: str  # what has room in one line
    device_label: str
    backend_label: str
    is_random: bool
    sentences: tuple[str, ...]  # what a reader must know about this view


def short_name(model: str) -> str:
    """ "Tiny" for "efficientvmamba_tiny"."""
    return model.rpartition("_")[2].capitalize()


@lru_cache(maxsize=1)
def model_choices() -> tuple[ModelChoice, ...]:
    found = []
    for name in models.list_models():
        costs = cost_of(name, 224)
        found.append(ModelChoice(name, short_name(name), costs.n_parameters, costs.macs))
    return tuple(found)


def scan_choices() -> tuple[ScanChoice, ...]:
    return tuple(
        scan_choice(ScanSpec(name, params))
        for name in SCHEMES
        for params in VARIANTS.get(name, ({},))
    )


def scan_choice(spec: ScanSpec) -> ScanChoice:
    text = str(spec)
    return ScanChoice(text, scan_label(text), spec.scheme.definition, spec.scheme.needs)


def check_runnable(text: str) -> None:
    spec = ScanSpec.parse(text)
    if needs := spec.scheme.needs:
        raise NotAvailableError(
            f"{scan_label(str(spec))} {needs}. Its path is in the Scan tab; choose a scan that "
            "this network can run to see a prediction, a field, a map or a time."
        )


def shipped_weights(model: str, weights: str, scan: str, other_scan: str) -> WeightsInfo | None:
    """What `weights` names for a network that runs `scan`; None where that is random weights.

    "default" are those trained with it; else those of `other_scan` (the view's scan A), so that A
    and B differ in nothing but the scan; else the first that ship.
    """
    shipped = models.available_weights(model)
    if weights != "default":
        return next((info for info in shipped if info.name == weights), None)
    for wanted in (scan, other_scan):
        for info in shipped:
            if info.trained_scan == wanted:
                return info
    return shipped[0] if shipped else None


def weights_choices(model: str) -> tuple[WeightsChoice, ...]:
    """ "default" where something ships; of several also each, which all scans then run on."""
    shipped = models.available_weights(model)
    found = []
    if len(shipped) == 1:
        found = [WeightsChoice("default", _short_label(shipped[0]))]
    elif shipped:
        found = [WeightsChoice("default", "Each scan's own")]
        found += [WeightsChoice(info.name, _short_label(info, is_alone=False)) for info in shipped]
    return (*found, WeightsChoice("random", "Random, seed 0"))


def weights_short(nets: list[WeightsInfo]) -> str:
    """The nets of a view in one line: the only one's description, or scan and accuracy of each."""
    if len(nets) == 1:
        return nets[0].description
    return ", ".join(
        f"{scan_short(net.trained_scan)} {net.top1:.1f} %"
        if net.trained_scan and net.top1 is not None
        else net.name
        for net in nets
    )


def _short_label(info: WeightsInfo, is_alone: bool = True) -> str:
    """Data set, or the scan where several nets are on the list, and accuracy."""
    of = info.description.partition(",")[0]
    if info.trained_scan and not is_alone:
        of = f"{scan_short(info.trained_scan)}'s"
    return f"{of}, {info.top1:.1f} %" if info.top1 is not None else of


def check_choice(what: str, given: str, allowed: list[str]) -> None:
    if given not in allowed:
        raise BadInputError(
            f"There is no {what} {given[:60]!r}. Choose one of: {', '.join(allowed)}."
        )


def check_class(given: int, n_classes: int) -> None:
    if not 0 <= given < n_classes:
        raise BadInputError(
            f"There is no class {given}. This model knows {n_classes} classes, "
            f"0 to {n_classes - 1}."
        )


def check_scan(text: str) -> str:
    """The full text of a scan: "es2d" becomes "es2d:step=2"; a scheme with any of its numbers."""
    try:
        return str(ScanSpec.parse(text))
    except ValueError as error:
        raise BadInputError(str(error)[:600]) from error


@lru_cache(maxsize=1)
def imagenet_names() -> tuple[str, ...]:
    """Names of ImageNet's 1,000 classes in index order, from torchvision's weight metadata."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def class_names(info: WeightsInfo, n_classes: int) -> tuple[str, ...]:
    if info.classes is not None:
        return info.classes
    if n_classes == 1000:
        return imagenet_names()
    return tuple(f"class {i}" for i in range(n_classes))


def swap_sentence(trained_scan: str | None, scan: str) -> str:
    """Says that the weights are used with a scan that they do not know; "" where they do."""
    if trained_scan is None or trained_scan == scan:
        return ""
    trained, running = scan_label(trained_scan), scan_label(scan)
    return f"{running} is not what these weights were trained with ({trained})."


def prediction_note(
    info: WeightsInfo, classes: tuple[str, ...], contains: tuple[str, ...] | None, scan: str
) -> str:
    """What a reader must know before believing the top-5. `contains`: classes in view, None =
    unknown."""
    if info.is_random:
        return "Random weights: the prediction means nothing."
    sentences = []
    if len(classes) < 1000:
        n = len(classes)
        count = NUMBER_WORDS[n] if n < len(NUMBER_WORDS) else f"{n}"
        knows = f"This model knows {count} classes"
        if contains is None:
            sentences.append(f"{knows}: {', '.join(classes)}.")
        elif not set(contains) & set(classes):
            sentences.append(f"{knows}; none is in this photo.")
    sentences.append(swap_sentence(info.trained_scan, scan))
    return " ".join(s for s in sentences if s)
