"""Columns of the table of int64 that every program reads, and the sizes that both sides must know.

Addresses are in bytes, strides and sizes in elements; `*_IN`, `X`, `PROJECTED`, the weights and
`SKIP` are inputs, `Y`, `CHECKPOINTS` and `GRAD_*` outputs (`GRAD_Y` and `GRAD_PROJECTED` also
inputs).
"""

LANES = 16  # channels of one vector
# Steps between stored states; the backward pass recomputes the states in between. 32 to 128 were
# equally fast on a core with 1 MiB of cache of its own, and 128 stores a quarter of 32's states.
CHUNK = 128
# Steps that the projection takes at a time: that many sums stay in registers.
ROWS = 6
# That many times ROWS steps are one item of the projection.
PARTS = 8

N_COLUMNS = 45
(
    NEXT_ITEM,
    NEXT_WORKER,
    N_ITEMS,
    SCRATCH,
    SCRATCH_SIZE,
    BATCH,
    SEQUENCES,
    LENGTH,
    TOKENS,
    CHANNELS,
    STATES,
    RANK,
    BLOCKS,
    GROUPS,
    SLICES,
    WIDTH,
    SOFTPLUS,
    IS_MAP,
    IS_SUM,
    INDEX,
    SETS,
    X,
    DELTA,
    B_IN,
    C_IN,
    PROJECTED,
    A_IN,
    X_WEIGHT,
    DT_WEIGHT,
    DT_BIAS,
    SKIP,
    Y,
    CHECKPOINTS,
    LAST_STATE,
    GRAD_Y,
    GRAD_X,
    GRAD_DELTA,
    GRAD_B,
    GRAD_C,
    GRAD_PROJECTED,
    GRAD_A,
    GRAD_X_WEIGHT,
    GRAD_DT_WEIGHT,
    GRAD_BIAS,
    GRAD_SKIP,
) = range(N_COLUMNS)
