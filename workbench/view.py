"""The view: the one small value that the page, the link, the API and the command line share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

SIZES = (128, 224, 384, 512, 1024)  # input pixels: shorter side for "crop", longer side for "whole"
FITS = ("crop", "whole")
STAGES = (1, 2, 3, 4)
TABS = ("overview", "scan")


@dataclass(frozen=True, slots=True)
class View:
    """What the user looks at. Names are registry names; `y, x` are a token of `stage`.

    `y` and `x` are None for "the centre token" (H // 2, W // 2). `target` is a class index, None
    for the most probable class. `scan_a`, `scan_b` and `scan_c` are `kernels.ScanSpec` texts;
    `scan_c` is the third scheme of the scan tab, None for two. `tab` is the page's open tab.
    """

    model: str = "efficientvmamba_tiny"
    weights: str = "default"
    photo: str = "chelsea"
    size: int = 224
    fit: str = "crop"
    scan_a: str = "es2d:step=2"
    scan_b: str = "ss2d"
    scan_c: str | None = None
    stage: int = 2
    y: int | None = None
    x: int | None = None
    target: int | None = None
    tab: str = "overview"

    def with_focus(self, stage: int, y: int | None, x: int | None) -> View:
        return replace(self, stage=stage, y=y, x=x)

    def with_scan(self, slot: str, scan: str) -> View:
        """The view with another scheme in slot "a", "b" or "c"."""
        changed: dict[str, Any] = {f"scan_{slot}": scan}
        return replace(self, **changed)

    @property
    def scans(self) -> dict[str, str]:
        """Scheme of each slot that has one: "a", "b" and perhaps "c"."""
        listed = {"a": self.scan_a, "b": self.scan_b, "c": self.scan_c}
        return {slot: scan for slot, scan in listed.items() if scan}


def token_in_stage(y: int, x: int, from_stage: int, to_stage: int) -> tuple[float, float]:
    """Token of another stage at the same image point `((y + .5) * stride, (x + .5) * stride)`.

    Strides are 4, 8, 16, 32 input pixels for stages 1 to 4. Not clamped: the caller knows the map.
    """
    ratio = 2.0 ** (from_stage - to_stage)
    return (y + 0.5) * ratio // 1, (x + 0.5) * ratio // 1
