"""What a scan scheme is made of: its table, its parameters, its entry in the list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

PAD = -1
# Codes below the pad's: -2 is the first item of `Extra`, -3 the second and so on.
FIRST_EXTRA = -2
# Parameter sets of the models of this project; sequence k uses set k mod 4.
N_TRAINED_SETS = 4


@dataclass(frozen=True, eq=False)
class Extra:
    """What some steps read instead of a token of the map: a class token, cells of a smaller map.

    Item e has the code -2 - e in a table. `places` `[E, 2]`: (y, x) in tokens of the map, nan where
    an item has no place. `tokens` int32 `[E, M]`: the tokens that an item stands for, -1 = none.
    """

    name: str
    places: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True, eq=False)
class OtherNetwork:
    """What the path of another network has that a runnable table has not.

    `needs` says in words why no model of this project runs it. Per sequence: `lengths` of its own
    steps (the rest of its row is no step at all), `restart_every` so many steps the state is
    emptied (0 = never), `pass_number` (a later pass reads what the earlier one wrote); empty = the
    same for all: L, 0 and 0.
    """

    needs: str
    extra: Extra | None = None
    lengths: tuple[int, ...] = ()
    restart_every: tuple[int, ...] = ()
    pass_number: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Table:
    """What a scheme builds for one map: `index` `[K, L]`, `parameter_set` `[K]`."""

    index: np.ndarray
    parameter_set: np.ndarray
    other: OtherNetwork | None = None


@dataclass(frozen=True)
class Parameter:
    """One whole-number parameter of a scheme; `maximum` None = no limit.

    A parameter that is not `always_written` is left out of a scan's text at its default.
    """

    name: str
    default: int
    minimum: int
    meaning: str
    maximum: int | None = None
    always_written: bool = True


@dataclass(frozen=True)
class Scheme:
    """A scan scheme: its definition in words and the function that builds its table.

    `build(height, width, **parameters)`. `note`: how the published code differs from its paper, or
    this table from the published code; "" if nothing is known. `needs`: "" for a scheme that every
    model runs, else why not, in words.
    """

    label: str
    definition: str
    source: str
    build: Callable[..., Table]
    parameters: tuple[Parameter, ...] = ()
    note: str = ""
    needs: str = ""

    @property
    def kind(self) -> Literal["runnable", "path only"]:
        return "path only" if self.needs else "runnable"

    @property
    def text(self) -> str:
        """Definition and source in one line."""
        return f"{self.definition} ({self.source})."


REVERSE = Parameter(
    "reverse",
    default=0,
    minimum=0,
    maximum=2,
    meaning="0 forwards, 1 backwards, 2 both (outputs added)",
    always_written=False,
)
TRANSPOSE = Parameter(
    "transpose",
    default=0,
    minimum=0,
    maximum=2,
    meaning="0 as defined, 1 with rows and columns exchanged, 2 both (outputs added)",
    always_written=False,
)
COMBINATIONS = (REVERSE, TRANSPOSE)


def tokens_of(height: int, width: int) -> np.ndarray:
    """Token ids `[height, width]`, row-major."""
    return np.arange(height * width, dtype=np.int32).reshape(height, width)


def table(index: np.ndarray) -> Table:
    """Sequence k uses parameter set k mod 4."""
    return Table(index, np.arange(index.shape[0]) % N_TRAINED_SETS)


def exchanged(path: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The path with rows and columns exchanged: that of the transposed map, in this map's ids."""

    def transposed(height: int, width: int, **parameters: int) -> np.ndarray:
        other = path(width, height, **parameters)
        return np.where(other >= 0, (other % height) * width + other // height, other)

    return transposed


def combined(
    path: Callable[..., np.ndarray], transposed: Callable[..., np.ndarray] | None = None
) -> Callable[..., Table]:
    """The builder of a scheme that may be reversed and transposed.

    `path(height, width, **parameters)` gives one order `[L]` or several `[P, L]`. The sequences are
    the paths, then the transposed ones, then the reverses of both: `reverse=2,transpose=2` of a
    raster is the cross-scan of VMamba.
    """
    variants = (path, transposed or exchanged(path))

    def build(height: int, width: int, reverse: int, transpose: int, **parameters: int) -> Table:
        chosen = variants if transpose == 2 else variants[transpose : transpose + 1]
        paths = [np.atleast_2d(variant(height, width, **parameters)) for variant in chosen]
        forwards = np.concatenate(paths)
        backwards = forwards[:, ::-1]
        if reverse == 2:
            return table(np.concatenate([forwards, backwards]))
        return table(backwards if reverse else forwards)

    return build
