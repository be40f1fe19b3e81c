"""Scan schemes as integer tables: the one source for the kernels, the models and the pictures.

A scheme says, for a map of `height` x `width` tokens, which token each step of each sequence reads
and which parameter set of the operator the sequence uses. Nothing else in this project knows what a
scheme looks like, so a new scheme is one more entry of `SCHEMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np

from kernels.scan_metrics import scan_metrics

Merge = Literal["place", "sum"]
PAD = -1


@dataclass(frozen=True, eq=False)
class ScanOrder:
    """The order in which an operator reads the tokens of one map.

    `index` is int32 `[K, L]`: the row-major token id `y * width + x` that sequence k reads at step
    l, -1 for a pad token (input 0, but the state still decays). `parameter_set` is `[K]`: the
    parameter group that sequence k uses. `merge` says how outputs return to the map: "place" (every
    token is visited at most once) or "sum" (all visits of a token are added). Both arrays are
    read-only.
    """

    name: str
    index: np.ndarray
    parameter_set: np.ndarray
    merge: Merge
    height: int
    width: int
    params: dict[str, int] = field(default_factory=dict)

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
        if index.min() < PAD or index.max() >= self.n_tokens:
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

    @cached_property
    def n_pads(self) -> int:
        """Steps that read no token, over all sequences."""
        return int((self.index == PAD).sum())

    @cached_property
    def visits(self) -> np.ndarray:
        """How often each token is read, int64 `[height * width]`."""
        return np.bincount(self.index[self.index != PAD], minlength=self.n_tokens)

    @cached_property
    def spec(self) -> ScanSpec | None:
        """The specification that builds this order; None for a table that a user made."""
        return ScanSpec(self.name, self.params) if self.name in SCHEMES else None

    def metrics(self) -> dict[str, int | float]:
        """Numbers that describe the order; `kernels/scan_metrics.py` defines each."""
        return dict(self._metrics)

    @cached_property
    def _metrics(self) -> dict[str, int | float]:
        return scan_metrics(self.index, self.height, self.width)


@dataclass(frozen=True)
class Parameter:
    """One whole-number parameter of a scheme."""

    name: str
    default: int
    minimum: int
    meaning: str


@dataclass(frozen=True)
class Scheme:
    """A scan scheme: its definition in words and the function that builds its table."""

    definition: str
    merge: Merge
    build: Callable[..., tuple[np.ndarray, np.ndarray]]
    parameters: tuple[Parameter, ...] = ()


def build_es2d(height: int, width: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Tables `[p*p, L]` and `[p*p]` of the atrous scan; see `SCHEMES["es2d"]`.

    A step larger than a side leaves some phases without tokens: they stay, as sequences of pads
    only, so that K is always p*p and sequence k always means phase (k mod p, k div p).
    """
    p = step
    rows, columns = -(-height // p), -(-width // p)
    padded = np.full((rows * p, columns * p), PAD, dtype=np.int32)
    padded[:height, :width] = np.arange(height * width).reshape(height, width)
    index = np.empty((p * p, rows * columns), dtype=np.int32)
    sets = np.empty(p * p, dtype=np.int64)
    for j in range(p):
        for i in range(p):
            phase = padded[i::p, j::p]
            index[i + p * j] = (phase if i % 2 == 0 else phase.T).reshape(-1)
            sets[i + p * j] = i % 2 + 2 * (j % 2)
    return index, sets


def build_ss2d(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tables `[4, H*W]` and `[4]` of the cross-scan; see `SCHEMES["ss2d"]`."""
    tokens = np.arange(height * width, dtype=np.int32).reshape(height, width)
    by_row, by_column = tokens.reshape(-1), tokens.T.reshape(-1)
    return np.stack([by_row, by_column, by_row[::-1], by_column[::-1]]), np.arange(4)


SCHEMES: Mapping[str, Scheme] = {
    "es2d": Scheme(
        "Atrous scan: p x p phases, each token read once; the phase that starts at row i, column j "
        "is sequence i + p*j, row-major for even i and column-major for odd i, with parameter set "
        "(i mod 2) + 2*(j mod 2) (EfficientVMamba, Pei et al. 2024, arXiv:2403.09977; theirs is "
        "step 2).",
        "place",
        build_es2d,
        (Parameter("step", default=2, minimum=1, meaning="distance in tokens between phases"),),
    ),
    "ss2d": Scheme(
        "Cross-scan: every token read four times, row by row, column by column and both in "
        "reverse; the four outputs are added (VMamba, Liu et al. 2024, arXiv:2401.10166).",
        "sum",
        build_ss2d,
    ),
}


@dataclass(frozen=True)
class ScanSpec:
    """A scheme with its parameters, without a map size. Text form: `es2d:step=2`, `ss2d`."""

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
            complete[key] = _whole_number(
                f"{self.name}: {key}", self.params.get(key, parameter.default), parameter.minimum
            )
        object.__setattr__(self, "params", complete)

    def __str__(self) -> str:
        listed = ",".join(f"{key}={value}" for key, value in self.params.items())
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
    return {name: scheme.definition for name, scheme in SCHEMES.items()}


@lru_cache(maxsize=256)
def _cached_order(spec: ScanSpec, height: int, width: int) -> ScanOrder:
    scheme = SCHEMES[spec.name]
    index, sets = scheme.build(height, width, **spec.params)
    return ScanOrder(spec.name, index, sets, scheme.merge, height, width, dict(spec.params))


def _whole_number(what: str, value: object, minimum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"{what} is {value!r}; it must be a whole number >= {minimum}.")
    if value < minimum:
        raise ValueError(f"{what} is {value}; it must be >= {minimum}.")
    return int(value)


def _read_only(array: np.ndarray, dtype: type, name: str, n_dims: int) -> np.ndarray:
    given = np.asarray(array)
    if given.ndim != n_dims or not np.issubdtype(given.dtype, np.integer):
        raise ValueError(
            f"{name} must be whole numbers in {n_dims} dimensions; given {given.dtype} "
            f"of shape {list(given.shape)}."
        )
    copy: np.ndarray = np.array(given, dtype=dtype, order="C")
    copy.setflags(write=False)
    return copy
