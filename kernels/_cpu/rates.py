"""A program that does nothing but exponentials: what the exp2 of this package reaches here."""

from __future__ import annotations

from kernels._cpu.arithmetic import compiled, exp2
from kernels._cpu.simd import LANES, column, fetch_and_add, load, store

# Columns of the table: the first two as `kernels._cpu.run` has them.
NEXT_ITEM, N_ITEMS, ROUNDS, VECTORS, X, Y, N_COLUMNS = range(7)


@compiled
def exponentials(x, y, vectors):
    """exp2 of `vectors` times sixteen floats at address `x`, to `y`."""
    for i in range(vectors):
        store(y, i * LANES, exp2(load(x, i * LANES)))


def build_programs(version):
    """As `kernels._cpu.programs.build_programs`. An item is `ROUNDS` times the same block of
    memory, each item with its own: a block stays in the first cache of the core that takes it."""

    def exponentials_program(p):
        version  # noqa: B018
        vectors = column(p, VECTORS)
        item = fetch_and_add(p + 8 * NEXT_ITEM, 1)
        while item < column(p, N_ITEMS):
            at = 4 * LANES * vectors * item
            for _ in range(column(p, ROUNDS)):
                exponentials(column(p, X) + at, column(p, Y) + at, vectors)
            item = fetch_and_add(p + 8 * NEXT_ITEM, 1)

    return {"exponentials": exponentials_program}
