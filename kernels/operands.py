"""A scan order in the arguments of an operator of torch, and back.

A named scheme passes as text and map size, so that a graph holds no table and an exported program
needs none; a table that a user made passes as a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from kernels.checks import check_sets
from kernels.scan_order import Merge, ScanOrder, ScanSpec, scan_order

_Callable = TypeVar("_Callable", bound=Callable[..., object])


class Operands(NamedTuple):
    """An order in an operator's arguments: a named scheme, or `table` for a user's own.

    `order` is a scheme's text, or "place" or "sum" beside a `table` int32 `[K, 1 + L]`: the
    parameter set of each sequence, then its tokens. height, width are the map's.
    """

    order: str
    height: int
    width: int
    table: Tensor | None


class TableSize(NamedTuple):
    """What `saved_shapes_scan2d` may ask of an order where a table has no data yet."""

    n_sequences: int
    length: int
    merge: str
    height: int
    width: int

    @property
    def n_tokens(self) -> int:
        return self.height * self.width


def traced_once(function: _Callable) -> _Callable:
    """Make `torch.compile` run `function` while it traces and keep the result.

    What `torch.compiler.assume_constant_result` does; that imports the whole compiler, two seconds.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


_own_tables: WeakKeyDictionary[ScanOrder, Tensor] = WeakKeyDictionary()
_own_orders: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


@traced_once
def order_text(order: str | ScanSpec | ScanOrder, **params: int) -> str:
    """The order as an operator takes it: its scheme's text, or how a user's table is merged."""
    if isinstance(order, str) and not params:
        return _complete_text(order)
    if not isinstance(order, ScanOrder):
        return _complete_text(str(ScanSpec.of(order, **params)))
    if params:
        raise TypeError(f"{', '.join(params)} given beside a finished ScanOrder.")
    order.check_runnable()
    if _is_own(order):
        return order.merge
    return str(order.spec)


@lru_cache(maxsize=256)
def _complete_text(text: str) -> str:
    spec = ScanSpec.parse(text)
    spec.check_runnable()
    return str(spec)


@traced_once
def order_table(order: str | ScanSpec | ScanOrder) -> Tensor | None:
    """The table of a user's own order, the same tensor each time; None for a named scheme."""
    if not isinstance(order, ScanOrder) or not _is_own(order):
        return None
    table = _own_tables.get(order)
    if table is None:
        sets = torch.tensor(order.parameter_set, dtype=torch.int32)[:, None]
        table = torch.cat([sets, torch.tensor(order.index)], dim=1)
        _own_tables[order] = table
    return table


def _is_own(order: ScanOrder) -> bool:
    # A table of the user's own may carry a scheme's name.
    spec = order.spec
    return spec is None or scan_order(spec, order.height, order.width) is not order


def order_of(order: str, height: int, width: int, table: Tensor | None) -> ScanOrder:
    """The order that `Operands` name."""
    if table is None:
        return _named_order(order, int(height), int(width))
    known: ScanOrder | None = _own_orders.get(table)
    if known is None:
        rows = table.cpu().numpy()
        merge: Merge = "sum" if order == "sum" else "place"
        known = ScanOrder("table", rows[:, 1:], rows[:, 0], merge, int(height), int(width))
        _own_orders[table] = known
    return known


@lru_cache(maxsize=256)
def _named_order(text: str, height: int, width: int, n_sets: int | None = None) -> ScanOrder:
    order = scan_order(text, height, width)
    if n_sets is not None:
        check_sets(order, n_sets)
    return order


def checked_order(
    order: str, height: int, width: int, table: Tensor | None, n_sets: int
) -> ScanOrder:
    """`order_of`, if the parameters have the sets that it uses."""
    if table is None:
        return _named_order(order, height, width, n_sets)
    own = order_of(order, height, width, table)
    check_sets(own, n_sets)
    return own


def size_of(order: str, height: int, width: int, table: Any) -> ScanOrder | TableSize:
    """`table` is a tensor, perhaps without data, or its shape."""
    if table is None:
        return _named_order(order, int(height), int(width))
    n_sequences, columns = getattr(table, "shape", table)
    return TableSize(n_sequences, columns - 1, order, height, width)
