"""A link is a view: `/?model=…&weights=…&image=…&scan=…&stage=…&y=…&x=…` and back.

Writing keeps what a reader wants to see in a link (model, weights, photo, scan, stage, token) and
leaves out other values that are the default. Reading never fails: what cannot be
used is listed in words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from workbench.errors import WorkbenchError
from workbench.view import (
    ERF_DEFINITIONS,
    ERF_GATES,
    ERF_SCALES,
    FITS,
    PROF_AXES,
    PROF_DTYPES,
    PROF_PASSES,
    PROF_SUBJECTS,
    SIZE_RULE,
    STAGES,
    TABS,
    WHAT_BATCHES,
    WHAT_SIZES,
    WHAT_STEPS,
    View,
    is_size,
)

# Name in the link -> field of View, in the order in which they are written and checked.
PARAMETERS = {
    "model": "model",
    "weights": "weights",
    "image": "photo",
    "scan": "scan_a",
    "scan_b": "scan_b",
    "scan_c": "scan_c",
    "size": "size",
    "fit": "fit",
    "stage": "stage",
    "y": "y",
    "x": "x",
    "target": "target",
    "tab": "tab",
    "unit": "erf_unit",
    "definition": "erf_definition",
    "gates": "erf_gates",
    "images": "erf_images",
    "set": "erf_set",
    "nets": "erf_rivals",
    "scale": "erf_scale",
    "contrast": "contrast",
    "method": "attr_method",
    "options": "attr_options",
    "beside": "attr_rival",
    "block": "attr_block",
    "channel": "attr_channel",
    "sanity": "attr_sanity",
    "subject": "prof_subject",
    "axis": "prof_axis",
    "passes": "prof_passes",
    "batch": "prof_batch",
    "dtype": "prof_dtype",
    "steps": "prof_steps",
    "trace": "prof_trace",
    "runs": "prof_runs",
    "kernel": "kern_a",
    "gpu": "kern_target",
    "kernel_b": "kern_b",
    "gpu_b": "kern_target_b",
    **{
        name: name
        for name in (
            *("what_device", "what_size", "what_batch"),
            *("what_step", "what_dtype", "what_passes"),
        )
    },
}
ALWAYS_WRITTEN = ("model", "weights", "image", "scan", "stage", "y", "x")
NUMBERS = (
    *("size", "stage", "y", "x", "target", "images", "contrast", "block", "channel"),
    *("batch", "steps", "what_size", "what_batch", "what_step"),
)
SWITCHES = ("sanity",)  # 0 or 1
LISTS = ("set", "nets", "runs")  # names with commas between; "none" for an empty list
NONE = "none"
LONGEST_VALUE = 200
LONGEST_LIST = 4000  # characters: the ids of 200 uploaded photos
LARGEST_NUMBER = 100_000
# Gradio's own parameters of a page address; `__theme` and the like start with two underscores.
GRADIO_PARAMETERS = ("view", "deep_link", "logs", "embed", "footer")


@dataclass(frozen=True, slots=True)
class Link:
    view: View
    ignored: tuple[str, ...]  # one sentence for each parameter that was not used
    is_empty: bool  # no parameter of ours was given


def write(view: View) -> str:
    """Query string of a view, without the question mark."""
    default = View()
    pairs = [
        (name, _text(name, value))
        for name, field in PARAMETERS.items()
        if (value := getattr(view, field)) is not None
        and (name in ALWAYS_WRITTEN or value != getattr(default, field))
    ]
    return urlencode(pairs, safe=":,=")


def read(query: Mapping[str, str], check: Callable[[View], object] | None = None) -> Link:
    """View of a link.

    `check(view)` raises a WorkbenchError where a name is unknown (`Workbench.resolve` does). Its
    sentence goes to `ignored`, and the parameters that were right stay.
    """
    given: dict[str, Any] = {}
    ignored: list[str] = []
    for name, text in query.items():
        if name.startswith("__") or name in GRADIO_PARAMETERS:
            continue
        problem = _problem(name, text)
        if problem:
            ignored.append(f"{_short(name)}={_short(text)} was ignored: {problem}.")
        else:
            given[PARAMETERS[name]] = _value(name, text)
    view = replace(View(), **given)
    if check is not None and _failure(check, view):
        view = _only_what_passes(given, check, ignored)
    return Link(view=view, ignored=tuple(ignored), is_empty=not given and not ignored)


def _only_what_passes(
    given: dict[str, Any], check: Callable[[View], object], ignored: list[str]
) -> View:
    """Adds one parameter after another to the default view and keeps those that pass."""
    names = {field: name for name, field in PARAMETERS.items()}
    # Random weights exist for every model, the default's weights perhaps not for this one.
    view = replace(View(), weights="random")
    for field in names:
        if field not in given:
            continue
        candidate = replace(view, **{field: given[field]})
        failure = _failure(check, candidate)
        if failure:
            ignored.append(f"{names[field]}={_short(str(given[field]))} was ignored: {failure}")
        else:
            view = candidate
    if view.weights == "random" and given.get("weights") != "random":
        shipped = replace(view, weights=View().weights)
        view = view if _failure(check, shipped) else shipped
    return view


def _text(name: str, value: Any) -> Any:
    if name in LISTS:
        return ",".join(value) or NONE
    return int(value) if name in SWITCHES else value


def _value(name: str, text: str) -> Any:
    if name in NUMBERS:
        return int(text)
    if name in SWITCHES:
        return text == "1"
    if name in LISTS:
        return () if text == NONE else tuple(text.split(","))
    return text


def _failure(check: Callable[[View], object], view: View) -> str:
    try:
        check(view)
    except WorkbenchError as error:
        return str(error)
    return ""


def _problem(name: str, text: str) -> str:
    """Why a parameter cannot be used, in words; empty where it can."""
    if name not in PARAMETERS:
        return "a link has no such parameter"
    longest = LONGEST_LIST if name in LISTS else LONGEST_VALUE
    if not text or len(text) > longest or not text.isprintable():
        return f"a value has 1 to {longest} printable characters"
    if name in NUMBERS and not (text.isascii() and text.isdigit() and int(text) <= LARGEST_NUMBER):
        return f"a whole number from 0 to {LARGEST_NUMBER:,} is needed"
    if name == "size" and not is_size(int(text)):
        return f"a {SIZE_RULE} is needed"
    allowed: dict[str, tuple[Any, ...]] = {
        "fit": FITS,
        "stage": STAGES,
        "tab": TABS,
        "definition": ERF_DEFINITIONS,
        "gates": ERF_GATES,
        "scale": ERF_SCALES,
        "subject": PROF_SUBJECTS,
        "axis": PROF_AXES,
        "passes": PROF_PASSES,
        "dtype": PROF_DTYPES,
        "what_size": WHAT_SIZES,
        "what_batch": WHAT_BATCHES,
        "what_step": WHAT_STEPS,
        "what_dtype": PROF_DTYPES,
        "what_passes": PROF_PASSES,
        **dict.fromkeys(SWITCHES, (0, 1)),
    }
    if name in allowed and text not in map(str, allowed[name]):
        return f"allowed are {', '.join(map(str, allowed[name]))}"
    return ""


def _short(text: str) -> str:
    """Text from outside, fit for one line of a message."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= 60 else clean[:57] + "..."
