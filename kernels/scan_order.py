"""Scan orders as integer tables: the one source for the kernels, the models and the pictures.

An order says, for a map of `height` x `width` tokens, which token each step of each sequence reads
and which parameter set of the operator the sequence uses. Nothing else in this project knows what a
scheme looks like, so a new scheme is one more entry of `kernels.schemes.SCHEMES`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from kernels.scan_metrics import scan_metrics
from kernels.schemes import PAD, SCHEMES, OtherNetwork, Scheme

Merge = Literal["place", "sum"]

__all__ = ["PAD", "SCHEMES", "Merge", "ScanOrder", "ScanSpec", "scan_order", "scan_orders"]


@dataclass(frozen=True, eq=False)
class ScanOrder:
    """The order in which an operator reads the tokens of one map.

    `index` is int32 `[K, L]`: the row-major token id `y * width + x` that sequence k reads at step
    l, -1 for a pad token (input 0, but the state still decays). `parameter_set` is `[K]`: the
    parameter group that sequence k uses. `merge` says how outputs return to the map: "place" (every
    token is visited at most once) or "sum" (all visits of a token are added). Both arrays are
    read-only.

    `other` is None for an order that every model and backend runs. The path of another network has
    it: that order can be drawn and measured, `check_runnable` refuses it, and `index` may hold
    codes from -2 down, the items of `other.extra`.
    """

    name: str
    index: np.ndarray
    parameter_set: np.ndarray
    merge: Merge
    height: int
    width: int
    params: dict[str, int] = field(default_factory=dict)
    other: OtherNetwork | None = None

    def __post_init__(self) -> None:
        index = _read_only(self.index, np.int32, "index", 2)
        sets = _read_only(self.parameter_set, np.int64, "parameter_set", 1)
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "parameter_set", sets)
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a map of {self.height} x {self.width} tokens has no tokens to scan.")
        if index.size == 0:
            raise ValueError("index is empty: an order needs at least one sequence of one step.")
        if sets.shape[0] != index.shape[0] or sets.min() < 0:
            raise ValueError(
                f"parameter_set must hold one number >= 0 for each of the {index.shape[0]} "
                f"sequences; given {sets.tolist()}."
            )
        if index.min() < PAD - self.n_extra or index.max() >= self.n_tokens:
            raise ValueError(
                f"index holds {index.min()} to {index.max()}; allowed are -1 (pad) and the tokens "
                f"0 to {self.n_tokens - 1} of a {self.height} x {self.width} map."
            )
        if self.merge not in ("place", "sum"):
            raise ValueError(f"merge is {self.merge!r}; allowed are 'place' and 'sum'.")
        if self.merge == "place" and self.visits.max() > 1:
            token = int(self.visits.argmax())
            raise ValueError(
                f"token {token} is visited {self.visits[token]} times, which 'place' cannot merge; "
                "use merge='sum'."
            )

    @property
    def n_tokens(self) -> int:
        return self.height * self.width

    @property
    def n_sequences(self) -> int:
        return self.index.shape[0]

    @property
    def length(self) -> int:
        return self.index.shape[1]

    @property
    def n_extra(self) -> int:
        """Items that are no tokens of the map but that steps may read."""
        extra = None if self.other is None else self.other.extra
        return 0 if extra is None else len(extra.places)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps of each sequence: L, but for a path of another network whose sequences differ."""
        own = self.other.lengths if self.other is not None else ()
        return own or (self.length,) * self.n_sequences

    @property
    def is_runnable(self) -> bool:
        """Whether every model and backend of this project can scan along this order."""
        return self.other is None

    @property
    def why_not_runnable(self) -> str:
        """ "needs another network: ..."; "" for an order that runs."""
        return "" if self.other is None else self.other.needs

    def check_runnable(self) -> None:
        """Raise a `ValueError` that says why this order cannot be scanned, unless it can."""
        _check_runnable(self.name, self.why_not_runnable)

    @cached_property
    def n_pads(self) -> int:
        """Steps that read nothing, over all sequences."""
        n_no_steps = self.index.size - sum(self.lengths)
        return int((self.index == PAD).sum()) - n_no_steps

    @cached_property
    def visits(self) -> np.ndarray:
        """How often each token is read, int64 `[height * width]`."""
        return np.bincount(self.index[self.index >= 0], minlength=self.n_tokens)

    @cached_property
    def spec(self) -> ScanSpec | None:
        """The specification that builds this order; None for a table that a user made."""
        return ScanSpec(self.name, self.params) if self.name in SCHEMES else None

    def metrics(self) -> dict[str, int | float]:
        """Numbers that describe the order; `kernels/scan_metrics.py` defines each."""
        return dict(self._metrics)

    @cached_property
    def _metrics(self) -> dict[str, int | float]:
        return scan_metrics(self)


@dataclass(frozen=True)
class ScanSpec:
    """A scheme with its parameters, without a map size.

    Text form: `es2d:step=2`, `ss2d`, `hilbert:reverse=2`. A parameter that is `always_written` is
    in it even at its default, the others only away from it.
    """

    name: str
    params: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in SCHEMES:
            raise ValueError(
                f"unknown scan scheme {self.name!r}; known are {', '.join(sorted(SCHEMES))}."
            )
        allowed = {p.name: p for p in SCHEMES[self.name].parameters}
        for key in self.params:
            if key not in allowed:
                known = ", ".join(allowed) or "none"
                raise ValueError(f"{self.name} has no parameter {key!r}; it has: {known}.")
        complete = {}
        for key, parameter in allowed.items():
            given = self.params.get(key, parameter.default)
            limits = parameter.minimum, parameter.maximum
            complete[key] = _whole_number(f"{self.name}: {key}", given, *limits)
        object.__setattr__(self, "params", complete)

    @property
    def scheme(self) -> Scheme:
        """The entry of `SCHEMES`: label, definition, source, kind, parameters."""
        return SCHEMES[self.name]

    @property
    def is_runnable(self) -> bool:
        """Whether models can run this scheme; the others can only be drawn and measured."""
        return not self.scheme.needs

    def check_runnable(self) -> None:
        """Raise a `ValueError` that says why no model runs this scheme, unless they do."""
        _check_runnable(self.name, self.scheme.needs)

    def __str__(self) -> str:
        listed = ",".join(
            f"{p.name}={self.params[p.name]}"
            for p in self.scheme.parameters
            if p.always_written or self.params[p.name] != p.default
        )
        return f"{self.name}:{listed}" if listed else self.name

    def __hash__(self) -> int:
        return hash(str(self))

    @classmethod
    def parse(cls, text: str) -> ScanSpec:
        """Read `name` or `name:key=value,key=value`; a `ValueError` says what is allowed."""
        name, colon, listed = text.strip().partition(":")
        params: dict[str, int] = {}
        for part in listed.split(",") if colon else ():
            key, equals, value = (s.strip() for s in part.partition("="))
            if not equals or key in params:
                raise ValueError(
                    f"cannot read {part!r} in the scan {text!r}; write it like 'es2d:step=2'."
                )
            try:
                params[key] = int(value)
            except ValueError:
                raise ValueError(
                    f"{name}: {key} is {value!r}; it must be a whole number, like 'es2d:step=2'."
                ) from None
        return cls(name, params)

    @classmethod
    def of(cls, scan: str | ScanSpec, **params: int) -> ScanSpec:
        """The specification of a name, a text form or a specification, with `params` on top."""
        if not isinstance(scan, str | ScanSpec):
            raise TypeError(
                f"a scan is a name like 'es2d:step=2', a ScanSpec or (for scan2d) a ScanOrder; "
                f"given {type(scan).__name__}."
            )
        spec = scan if isinstance(scan, ScanSpec) else cls.parse(scan)
        return cls(spec.name, {**spec.params, **params}) if params else spec


def scan_order(scan: str | ScanSpec, height: int, width: int, **params: int) -> ScanOrder:
    """The table of a scheme for a map of `height` x `width` tokens.

    `scan` is a name (`es2d`), a text form (`es2d:step=3`) or a `ScanSpec`. The same question gives
    the same object.
    """
    spec = ScanSpec.of(scan, **params)
    height, width = _whole_number("height", height, 1), _whole_number("width", width, 1)
    return _cached_order(spec, height, width)


def scan_orders() -> dict[str, str]:
    """Every scheme's name and its one-line definition with the source."""
    return {name: scheme.text for name, scheme in SCHEMES.items()}


@lru_cache(maxsize=128)
def _cached_order(spec: ScanSpec, height: int, width: int) -> ScanOrder:
    built = spec.scheme.build(height, width, **spec.params)
    visits = np.bincount(built.index[built.index >= 0], minlength=height * width)
    merge: Merge = "place" if visits.max() <= 1 else "sum"
    return ScanOrder(
        spec.name,
        built.index,
        built.parameter_set,
        merge,
        height,
        width,
        dict(spec.params),
        built.other,
    )


def _check_runnable(name: str, needs: str) -> None:
    if needs:
        raise ValueError(
            f"{name} is the path of another network and cannot be scanned here: it {needs}. It can "
            "be drawn and measured; to run a scan choose one of: "
            f"{', '.join(n for n, scheme in SCHEMES.items() if not scheme.needs)}."
        )


def _whole_number(what: str, value: object, minimum: int, maximum: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{what} is {value!r}; it must be a whole number >= {minimum}.")
    if value < minimum:
        raise ValueError(f"{what} is {value}; it must be >= {minimum}.")
    if maximum is not None and value > maximum:
        raise ValueError(f"{what} is {value}; it must be <= {maximum}.")
    return int(value)


def _read_only(array: np.ndarray, dtype: type, name: str, n_dims: int) -> np.ndarray:
    given = np.asarray(array)
    if given.ndim != n_dims or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(
            f"{name} must be whole numbers in {n_dims} dimensions; given {given.dtype} "
            f"of shape {list(given.shape)}."
        )
    copy: np.ndarray = np.array(given, dtype=dtype, order="C")
    if not np.array_equal(copy, given):
        raise ValueError(f"{name} holds {given.min()} to {given.max()}, too large for a token id.")
    copy.setflags(write=False)
    return copy
