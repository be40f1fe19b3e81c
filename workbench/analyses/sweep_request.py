"""What a sweep can vary, and the check of a request before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import models
from kernels import SCHEMES, ScanSpec
from kernels._bench.contenders import CONTENDERS
from workbench.analyses.sweep_subject import DTYPES
from workbench.analyses.tracing import check_passes
from workbench.choices import check_choice, check_scan, short_name
from workbench.errors import BadInputError
from workbench.labels import scan_label

SUBJECTS = ("model", "scan")
MAX_VALUES = 24
MAX_SIZE = 1024  # pixels
MAX_BATCH = 256
MAX_STEP = 8
MAX_REPEATS = 100


@dataclass(frozen=True, slots=True)
class Axis:
    """What a sweep varies."""

    label: str  # with its unit
    values: tuple[Any, ...]  # by default
    is_numeric: bool
    subjects: tuple[str, ...] = SUBJECTS


RUNNABLE = tuple(str(ScanSpec(name)) for name, scheme in SCHEMES.items() if not scheme.needs)
AXES: dict[str, Axis] = {
    "size": Axis("input side, px", (64, 96, 128, 160, 224, 320, 384), True),
    "batch": Axis("images at once", (1, 2, 4, 8, 16, 32), True),
    "step": Axis("step of ES2D, tokens", (1, 2, 3, 4), True),
    "dtype": Axis("number type", tuple(DTYPES), False),
    "scan": Axis("scan", RUNNABLE, False),
    "model": Axis(
        "network", tuple(f"efficientvmamba_{size}" for size in ("tiny", "small", "base")), False
    ),
    "backend": Axis(
        "kernel",
        ("reference", "cpu", "triton", "mamba_ssm", "selective_scan_cuda_oflex"),
        False,
    ),
}
RANGES = {"size": (32, MAX_SIZE), "batch": (1, MAX_BATCH), "step": (1, MAX_STEP)}


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """What to measure. `check_request` says what is wrong with one."""

    subject: str  # "model" or "scan"
    axis: str  # of `AXES`
    passes: str  # "forward" or "train"
    model: str
    scans: tuple[str, str]  # of the two lines; the axes "step" and "scan" have their own
    size: int = 224  # input pixels
    batch: int = 1
    dtype: str = "float32"
    values: tuple[Any, ...] | None = None  # None: the axis' own
    repeats: int = 12


def check_request(request: SweepRequest) -> SweepRequest:
    """The request with full scan names, values without repetition and in whole numbers.

    Raises `BadInputError` with what is allowed.
    """
    check_choice("subject", request.subject, list(SUBJECTS))
    check_choice("axis", request.axis, list(AXES))
    check_passes(request.passes)
    axis = AXES[request.axis]
    if request.subject not in axis.subjects:
        check_choice("subject of this axis", request.subject, list(axis.subjects))
    given = axis.values if request.values is None else tuple(request.values)
    if not 1 <= len(given) <= MAX_VALUES:
        raise BadInputError(
            f"{len(given)} values are on the axis; give 1 to {MAX_VALUES}, such as "
            f"{', '.join(str(v) for v in axis.values)}."
        )
    values = tuple(dict.fromkeys(checked_value(request.axis, value) for value in given))
    if axis.is_numeric:
        values = tuple(sorted(values))
    if not 1 <= request.repeats <= MAX_REPEATS:
        raise BadInputError(f"{request.repeats} repeats; allowed are 1 to {MAX_REPEATS}.")
    first, second = request.scans
    return replace(
        request,
        model=checked_value("model", request.model),
        scans=(checked_value("scan", first), checked_value("scan", second)),
        size=checked_value("size", request.size),
        batch=checked_value("batch", request.batch),
        dtype=checked_value("dtype", request.dtype),
        values=values,
    )


def checked_value(axis: str, value: Any, *also: str) -> Any:
    """A value of an axis in its full form; raises `BadInputError` with what is allowed."""
    if axis in RANGES:
        low, high = RANGES[axis]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadInputError(
                f"{str(value)[:40]!r} is no value for {AXES[axis].label}; give whole numbers from "
                f"{low} to {high}."
            )
        return value
    text = str(value)
    if axis == "scan":
        full = check_scan(text)
        spec = ScanSpec.parse(full)
        if not spec.is_runnable:
            raise BadInputError(
                f"{scan_label(full)} {spec.scheme.needs}, so there is nothing to time. Choose one "
                f"of: {', '.join(RUNNABLE)}."
            )
        return full
    allowed = {"dtype": list(DTYPES), "model": models.list_models(), "backend": list(CONTENDERS)}
    check_choice(AXES[axis].label, text, [*also, *allowed[axis]])
    return text


def value_words(axis: str, value: Any) -> str:
    if axis == "scan":
        return scan_label(value)
    return short_name(value) if axis == "model" else str(value)


def request_parameters(request: SweepRequest) -> dict[str, str | int | float | bool | None]:
    assert request.values is not None
    return {
        "subject": request.subject,
        "axis": request.axis,
        "passes": request.passes,
        "values": ", ".join(str(value) for value in request.values),
        "scans": ", ".join(request.scans),
        "size": request.size,
        "batch": request.batch,
        "dtype": request.dtype,
        "repeats": request.repeats,
    }
