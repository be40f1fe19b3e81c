"""The named shapes that are compared and timed, and their seeded inputs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.scan_order import ScanOrder, scan_order

STATES = 16
WIDTHS = {"tiny": 48, "small": 64, "base": 96}
ORDERS = ("es2d", "ss2d")
BATCHES = (1, 8, 128)
SIZES = ((224, 224), (384, 384), (800, 1280))  # pixels, (height, width)
SCALING_SIDES = (14, 28, 56, 112, 224)  # tokens along one side
PASSES = ("forward", "forward+backward")
# Images drawn at random; larger batches repeat them, which changes no time.
DRAWN_IMAGES = 4


@dataclass(frozen=True)
class Case:
    """One operator at the shape of one stage. `size` in pixels, one number for a square."""

    model: str
    stage: int  # 1-based; stages 1 and 2 have scans
    batch: int
    operator: str = "scan2d"
    size: int | tuple[int, int] = 224
    order: str = "es2d"

    @property
    def name(self) -> str:
        # Mamba's operator takes finished sequences: no order, those of es2d give the lengths.
        kind = f"scan2d-{self.order}" if self.operator == "scan2d" else self.operator
        size = "x".join(str(n) for n in dict.fromkeys(self.pixels))
        return f"{kind}-{self.model}-stage{self.stage}-{size}px-b{self.batch}"

    @property
    def pixels(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def channels(self) -> int:
        return 2 * WIDTHS[self.model] * 2 ** (self.stage - 1)

    @property
    def rank(self) -> int:
        return -(-WIDTHS[self.model] * 2 ** (self.stage - 1) // 16)

    @property
    def map_shape(self) -> tuple[int, int]:
        """Height and width of the stage's map in tokens."""
        stride = 4 * 2 ** (self.stage - 1)
        height, width = self.pixels
        return -(-height // stride), -(-width // stride)

    @property
    def table(self) -> ScanOrder:
        return scan_order(self.order, *self.map_shape)

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Batch, sequences, length, channels, states."""
        table = self.table
        return self.batch, table.n_sequences, table.length, self.channels, STATES

    @property
    def n_states(self) -> int:
        """State updates, B*K*L*D*N."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def io_bytes(self) -> int:
        """float32 bytes of what goes in and out, projections (dt's factors, B, C) included."""
        batch, sequences, length, channels, states = self.shape
        if self.operator == "scan2d":
            height, width = self.map_shape
            ends = 2 * height * width * channels
            projected = sequences * length * (self.rank + 2 * states)
        else:
            ends = 3 * sequences * length * channels
            projected = 2 * sequences * length * states
        return 4 * batch * (ends + projected)

    def inputs(self, batch: int | None = None) -> list[Tensor]:
        """Seeded float32 inputs of the size that training gives; the first image is the same in any
        batch."""
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        _, sequences, length, channels, states = self.shape
        n_images, rank, rows = batch or self.batch, self.rank, sequences * channels
        drawn = range(min(n_images, DRAWN_IMAGES))
        which = torch.arange(n_images) % DRAWN_IMAGES
        decay = torch.log(torch.arange(1, states + 1.0)).repeat(rows, 1)
        if self.operator == "scan2d":
            parameters = [
                normal(sequences, rank + 2 * states, channels) / channels**0.5,
                normal(sequences, channels, rank) / rank**0.5,
                0.5 * normal(sequences, channels) - 3,
                decay + 0.1 * normal(rows, states),
                1 + 0.1 * normal(rows),
            ]
            x = torch.stack([normal(*self.map_shape, channels) for _ in drawn])[which]
            return [x.permute(0, 3, 1, 2), *parameters]
        A, D, bias = -decay.exp(), normal(rows), 0.5 * normal(rows) - 3
        images = [
            [normal(rows, length), normal(rows, length)]
            + [normal(sequences, states, length) for _ in range(2)]
            for _ in drawn
        ]
        u, delta, B, C = (torch.stack(parts)[which] for parts in zip(*images, strict=True))
        return [u, delta, A, B, C, D, bias]


def cases() -> list[Case]:
    """All shapes, the small ones first: they matter most where time runs out."""
    scans = [
        Case(model, stage, batch, "scan2d", size, order)
        for size, batch, order, model, stage in itertools.product(
            SIZES, BATCHES, ORDERS, WIDTHS, (1, 2)
        )
    ]
    mamba = [
        Case("tiny", stage, batch, "selective_scan", SIZES[0])
        for batch in BATCHES
        for stage in (1, 2)
    ]
    return sorted(scans + mamba, key=lambda case: case.n_states)


def quick_cases() -> list[Case]:
    """Tiny at 224 px, one image."""
    return [c for c in cases() if (c.model, c.batch, c.pixels) == ("tiny", 1, SIZES[0])]


def scaling_cases() -> list[Case]:
    """One stage's scan on maps of 14x14 to 224x224 tokens."""
    return [Case("tiny", 1, 1, size=4 * side) for side in SCALING_SIDES]
