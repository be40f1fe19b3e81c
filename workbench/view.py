"""The view: the one small value that the page, the link, the API and the command line share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

# Input pixels: shorter side for "crop", longer side for "whole". Those that the page lists; the
# link, the API and the command line take any that keeps every stage's map whole.
SIZES = (64, 128, 224, 384, 512, 1024)
SIZE_RULE = "multiple of 32 from 64 to 1024"
FITS = ("crop", "whole")
STAGES = (1, 2, 3, 4)
TABS = ("overview", "scan", "erf", "attribution", "profiler", "kernels")
ERF_DEFINITIONS = ("mass", "replknet", "vmamba", "openerf")
ERF_GATES = ("live", "frozen")
ERF_SCALES = ("log", "linear", "power")
MAX_ERF_IMAGES = 5000
PROF_SUBJECTS = ("model", "scan")
PROF_AXES = ("size", "batch", "step", "dtype", "scan", "model", "backend")
PROF_PASSES = ("forward", "train")
PROF_DTYPES = ("float32", "bfloat16", "float16")
MAX_PROF_BATCH = 256
MAX_PROF_STEPS = 50
# Of the cost model's sliders.
WHAT_SIZES = (64, 96, 128, 160, 224, 320, 384, 512, 768, 1024)
WHAT_STEPS = (1, 2, 3, 4, 5, 6, 7, 8)
WHAT_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
HERE = "here"  # the device on which the workbench runs, with measured rates


@dataclass(frozen=True, slots=True)
class View:
    """What the user looks at. Names are registry names; `y, x` are a token of `stage`.

    `y` and `x` are None for "the centre token" (H // 2, W // 2). `target` is a class index, None
    for the most probable class. `scan_a`, `scan_b` and `scan_c` are `kernels.ScanSpec` texts;
    `scan_c` is the third scheme of the scan tab, None for two. `tab` is the page's open tab.

    The ERF tab: `erf_unit` is what of `stage` the token belongs to: "stage", "block2" or a path,
    "block2.scan". `erf_rivals` are the networks beside scheme A's, at most three: "scan" (scheme B
    with the weights trained for it, where they ship), "weights" (scheme B on scheme A's weights),
    "random" (scheme A, random weights), a model's name, or "timm:NAME". `erf_set` are the ids of
    uploaded photos to average over, () for seeded crops of the gallery.

    The attribution tab: `contrast` is the class that `target` is set against, None for none.
    `attr_options` are the method's options that differ from its defaults, "steps=64,baseline=mean".
    `attr_rival` is what stands beside: "" for nothing, a network as in `erf_rivals`, or
    "photo:NAME". `attr_block` (from 1) and `attr_channel` (None: mean) choose the scan whose
    implicit attention is shown; `attr_sanity` asks for the randomisation of the weights.

    The profiler tab: a sweep of `prof_subject` (the network, or its first scan) along `prof_axis`,
    and a trace of `prof_steps` steps, forward or with the backward pass ("train"), with
    `prof_batch` images of `prof_dtype`. `prof_trace` is the token of a trace that was brought, ""
    for one recorded here; `prof_runs` are the ids of at most two kept runs that are compared.

    The kernels tab, the profiler's second half: the configuration `kern_a` for `kern_target`, by
    name, and `kern_b` for `kern_target_b` beside it ("" for none, and for the same target). The
    cost model's setting: `what_batch` images of `what_size` input pixels in `what_dtype` on
    `what_device` ("here" for this machine), ES2D with `what_step`, and `what_passes`.
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
    erf_unit: str = "stage"
    erf_definition: str = "mass"
    erf_gates: str = "live"
    erf_images: int = 32
    erf_set: tuple[str, ...] = ()
    erf_rivals: tuple[str, ...] = ("scan",)
    erf_scale: str = "log"
    contrast: int | None = None
    attr_method: str = "grad_cam"
    attr_options: str = ""
    attr_rival: str = ""
    attr_block: int = 1
    attr_channel: int | None = None
    attr_sanity: bool = False
    prof_subject: str = "model"
    prof_axis: str = "size"
    prof_passes: str = "forward"
    prof_batch: int = 1
    prof_dtype: str = "float32"
    prof_steps: int = 6
    prof_trace: str = ""
    prof_runs: tuple[str, ...] = ()
    kern_a: str = "steps_forward-map-rank16-bf16-32x1x1"
    kern_target: str = "sm_90"
    kern_b: str = ""
    kern_target_b: str = ""
    what_device: str = "H100 SXM"
    what_size: int = 224
    what_batch: int = 128
    what_step: int = 2
    what_dtype: str = "bfloat16"
    what_passes: str = "forward"

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


def is_size(size: int) -> bool:
    """Whether an input size follows `SIZE_RULE`."""
    return size % 32 == 0 and 64 <= size <= 1024


def token_in_stage(y: int, x: int, from_stage: int, to_stage: int) -> tuple[float, float]:
    """Token of another stage at the same image point `((y + .5) * stride, (x + .5) * stride)`.

    Strides are 4, 8, 16, 32 input pixels for stages 1 to 4. Not clamped: the caller knows the map.
    """
    ratio = 2.0 ** (from_stage - to_stage)
    return (y + 0.5) * ratio // 1, (x + 0.5) * ratio // 1
