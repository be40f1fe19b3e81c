"""The programs: what the threads run.

A program takes the address of a table (see `columns.py`) and works on items until none is left; any
number of threads may run it on the same table. One item is one sequence of one image for some
blocks of sixteen channels (where outputs are added up: all sequences of one image), so items never
write to the same place and the answer does not depend on which thread took which.
"""

from __future__ import annotations

from kernels._cpu import columns as col
from kernels._cpu.arithmetic import inlined
from kernels._cpu.backward import backward_sequence
from kernels._cpu.forward import forward_sequence
from kernels._cpu.projection import project_back_sequence, project_part, project_weight_item
from kernels._cpu.simd import column, fetch_and_add

PARTS, ROWS = col.PARTS, col.ROWS


@inlined
def next_item(p):
    return fetch_and_add(p + 8 * col.NEXT_ITEM, 1)


@inlined
def own_scratch(p):
    worker = fetch_and_add(p + 8 * col.NEXT_WORKER, 1)
    return column(p, col.SCRATCH) + worker * column(p, col.SCRATCH_SIZE)


@inlined
def sequences_of(p, item):
    """Image, first sequence, number of sequences and channel group of an item."""
    group, rest = item % column(p, col.GROUPS), item // column(p, col.GROUPS)
    if column(p, col.IS_SUM):
        # One item adds up all sequences of an image: no two items write to the same token.
        return rest, 0, column(p, col.SEQUENCES), group
    return rest // column(p, col.SEQUENCES), rest % column(p, col.SEQUENCES), 1, group


def build_programs(version):
    """The programs by name.

    numba's cache files know the source of this module only. So `version`, a digest of all sources,
    is a free variable of each program, and with that a part of its key in the cache.
    """

    def project(p):
        version  # noqa: B018
        parts = (column(p, col.LENGTH) + ROWS - 1) // ROWS
        item = next_item(p)
        while item < column(p, col.N_ITEMS):
            sequence, first = item // column(p, col.GROUPS), item % column(p, col.GROUPS) * PARTS
            b, k = sequence // column(p, col.SEQUENCES), sequence % column(p, col.SEQUENCES)
            for part in range(first, min(first + PARTS, parts)):
                project_part(p, b, k, part)
            item = next_item(p)

    def forward(p):
        version  # noqa: B018
        scratch = own_scratch(p)
        item = next_item(p)
        while item < column(p, col.N_ITEMS):
            b, first, count, group = sequences_of(p, item)
            for k in range(first, first + count):
                forward_sequence(p, b, k, group, scratch)
            item = next_item(p)

    def backward(p):
        version  # noqa: B018
        scratch = own_scratch(p)
        item = next_item(p)
        while item < column(p, col.N_ITEMS):
            b, first, count, group = sequences_of(p, item)
            for k in range(first, first + count):
                backward_sequence(p, b, k, group, scratch)
            item = next_item(p)

    def project_back(p):
        version  # noqa: B018
        item = next_item(p)
        while item < column(p, col.N_ITEMS):
            b, first, count, v = sequences_of(p, item)
            for k in range(first, first + count):
                project_back_sequence(p, b, k, v)
            item = next_item(p)

    def project_weight(p):
        version  # noqa: B018
        item = next_item(p)
        while item < column(p, col.N_ITEMS):
            project_weight_item(p, item)
            item = next_item(p)

    return {
        "project": project,
        "forward": forward,
        "backward": backward,
        "project_back": project_back,
        "project_weight": project_weight,
    }
