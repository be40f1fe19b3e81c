"""Frozen results: what an analysis returns, a figure draws and an export file holds.

A result is numpy arrays and plain values, never torch, so a picture can be rebuilt from an exported
file on a machine without torch. Coordinates are `(y, x)`. `stage` is 1-based. "Input pixels" are
pixels of the network's input after crop and resize; `Provenance.crop` maps them back to the photo.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Everything needed to repeat a result."""

    model: str  # registry name
    weights: str  # in words: "random, seed 0" or "Imagenette, trained with es2d"
    weights_sha256: str
    is_random: bool
    trained_scan: str | None  # the scan the weights were trained with; None for random weights
    scan: str  # the scan that ran, as `ScanSpec` text: "es2d:step=2"
    image: str  # photo id
    image_sha256: str
    crop: tuple[int, int, int, int]  # (top, left, height, width) in pixels of the original photo
    input_size: tuple[int, int]  # (height, width) in input pixels
    definition: str  # one line: what the numbers are
    parameters: dict[str, str | int | float | bool | None] = field(default_factory=dict)
    device: str = ""  # in words: "CPU, AMD EPYC, 2 threads"
    backend: str = ""  # kernel backend that ran: "cpu", "triton", "reference"
    versions: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    seconds: float = 0.0  # wall time of the computation, not part of the run key

    @property
    def run_fields(self) -> dict[str, object]:
        """What of a network and of where it runs decides a result, for a run key."""
        return {
            "model": self.model,
            "weights": self.weights_sha256,
            "scan": self.scan,
            "input": self.input_size,
            "device": self.device,
            "backend": self.backend,
        }


# Of numbers that belong to no network and no photo.
UNKNOWN = Provenance(
    model="",
    weights="",
    weights_sha256="",
    is_random=False,
    trained_scan=None,
    scan="",
    image="",
    image_sha256="",
    crop=(0, 0, 0, 0),
    input_size=(0, 0),
    definition="",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionResult:
    provenance: Provenance
    classes: tuple[str, ...]  # every class the model knows, in index order
    probabilities: np.ndarray  # float32 [n_classes], softmax of the logits
    logits: np.ndarray  # float32 [n_classes]
    note: str = ""  # in words: "this model knows ten classes; none is in this photo"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanResult:
    """The scan path of one stage, taken from the operator the model runs."""

    provenance: Provenance
    stage: int
    height: int  # tokens
    width: int
    stride: int  # input pixels per token
    n_blocks: int
    has_scan: bool
    note: str  # without a scan: why; else what a reader must know (pads, step, swapped scheme)
    index: np.ndarray  # int32 [K, L]: token id y*W+x at each step, -1 = pad; [0, 0] without a scan
    parameter_set: np.ndarray  # int32 [K]
    merge: str  # "place" | "sum" | ""
    is_verified: (
        bool  # the order below was read back from the running operator and agrees with the table
    )
    disagreement: str  # the first difference where it does not
    metrics: dict[str, float | int]  # `kernels/scan_metrics.py` defines each
    is_runnable: bool = True  # False: the path of another network, drawn and measured as a path


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachStep:
    """One line of "what restores the reach": share of the stage's tokens that can matter."""

    name: str  # "scan alone", "with the 3x3 convolution before it", ...
    share: float  # 0..1, of all tokens of the stage's map, for the token in focus
    mean_share: float  # 0..1, mean over all tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachResult:
    """Which tokens can influence token (y, x) through one scan, and how much of it survives."""

    provenance: Provenance
    stage: int
    y: int
    x: int
    height: int  # tokens
    width: int
    stride: int  # input pixels per token
    has_scan: bool
    note: str
    layer: str  # module whose scan was watched: "layers.0.blocks.0.op"
    steps_back: np.ndarray  # int32 [H, W]: steps from a token to (y, x), -1 = it cannot matter
    steps_on: np.ndarray  # int32 [H, W]: the reverse, steps from (y, x) to each token
    decay: np.ndarray  # float32 [H, W]: share of its state left at (y, x), mean over channels
    curve_steps: np.ndarray  # int32 [S] steps back, 0 first
    curve_p20: np.ndarray  # float32 [S] share of state left, over channels and states
    curve_p50: np.ndarray
    curve_p80: np.ndarray
    half_steps: float  # steps after which half of the state is left (median); nan if never
    mean_reach: float  # 0..1, of the scheme on this map
    restored: tuple[ReachStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeRow:
    """One scheme on one stage's map; costs are the model's, times are measured."""

    scan: str  # `ScanSpec` text
    label: str
    definition: str
    is_runnable: bool
    why_not: str  # "needs another network: ..." where it is path only
    metrics: dict[str, float | int]
    n_parameter_sets: int
    flops: int  # of one scan forward at batch 1, cost model
    bytes: int
    exps: int
    p20_ms: float  # nan where not measured
    p50_ms: float
    p80_ms: float
    error: float  # relative L2 against the reference, nan where not compared
    status: str  # "measured" | "not measured" | "path only" | "wrong: ..." | "not run: ..."


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeTableResult:
    """Every scheme of the list on one stage's map."""

    provenance: Provenance
    stage: int
    height: int
    width: int
    channels: int
    states: int
    rank: int
    rows: tuple[SchemeRow, ...]
    clock: str
    note: str = ""
    is_final: bool = True  # False: times follow


@dataclass(frozen=True, slots=True, kw_only=True)
class UserProbeResult:
    """What an operator of the user's own does with a map of tokens; Python and command line only.

    The sentences of `round_trip`, `backward` and `merge_backward` start with "yes" or "no"; they
    are "not asked" where no merge was given.
    """

    operator: str  # "package.module:Name" or the callable's name
    merge: str  # "" where none was given
    height: int  # tokens
    width: int
    index: np.ndarray  # int32 [K, L]: token that each sequence reads at each step, -1 = pad
    n_pads: int
    lost: tuple[int, ...]  # tokens that are never read
    repeated: tuple[int, ...]  # tokens that are read more than once
    scheme: str  # the known scheme that reads the same: "es2d:step=2"; "" if none does
    round_trip: str  # is merge(gather(x)) = x, or k times x?
    backward: str  # does the gather's backward pass agree with the gradient of what it computes?
    merge_backward: str
    other_map: str  # what differs on a square map, or on one that is not; "" if nothing does
    findings: tuple[str, ...]  # whatever else a reader must know
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErfResult:
    """Effective receptive field of one token: share of gradient mass per input pixel.

    `unit` names what the token belongs to: "stage2" (output before patch merging),
    "stage1.block2" (a block's output), or a path of a block, "stage1.block2.scan": the block's
    output with the gradient through that path alone ("scan", "conv", "residual", "gate").
    """

    provenance: Provenance
    network: str  # for a legend: "Tiny", "resnet18"
    unit: str
    unit_label: str  # in words: "stage 2, block 1, scan path"
    gates: str  # "live" | "frozen" (squeeze-excitation gates held constant) | "none" (has none)
    stage: int
    y: int  # token whose field this is
    x: int
    rows: int  # tokens of the unit's map
    columns: int
    stride: int  # input pixels per token
    centre: tuple[float, float]  # (y, x) input pixels: the point that distances are measured from
    definition: str  # key: "mass" | "replknet" | "vmamba" | "openerf"
    parts: dict[str, str]  # objective, rectification, averaging, transform, metric: in words
    mass: np.ndarray  # float32 [H, W] input pixels, sums to 1
    raw_sum: float  # the definition's averaged map is mass * raw_sum
    radius_px: np.ndarray  # float32 [R] radii around `centre`
    radial_mass: np.ndarray  # float32 [R] mass within each radius
    radial_low: np.ndarray  # float32 [R] bootstrap band over images; empty where there is none
    radial_high: np.ndarray
    n_images: int
    n_planned: int
    image_names: tuple[str, ...]
    skipped: tuple[str, ...]  # "name: why", images that were left out
    metrics: dict[str, float]  # `analyses/erf/metrics.py` defines each
    metric_low: dict[str, float]  # 90 % bootstrap interval over images, for most of the metrics
    metric_high: dict[str, float]
    n_bootstrap: int  # resamples; 0 = no band (one image)
    convergence_n: np.ndarray  # int32 [M] numbers of images at which the numbers below were taken
    convergence_area50: np.ndarray  # float32 [M]
    convergence_area90: np.ndarray  # float32 [M]
    convergence_split: np.ndarray  # float32 [M] total variation between the two halves' maps
    saturation: str  # why the size of this field means little, in words; "" where it does
    reach: np.ndarray  # uint8 [H, W]: pixels that can matter with gates frozen; [0, 0] = not known
    reach_share: float  # of all pixels; nan where not known
    reach_note: str
    is_final: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErfPhase:
    """The field of one token of a step x step cell; ES2D scans each phase as a group of its own."""

    row: int  # of the phase: y mod step
    column: int
    group: int  # sequence that reads the token, from 0; -1 where several do
    direction: str  # "row-major" | "column-major" | ""
    field: ErfResult


@dataclass(frozen=True, slots=True, kw_only=True)
class ErfPhasesResult:
    """Fields of the neighbouring tokens of one cell, all of one forward pass."""

    provenance: Provenance
    stage: int
    step: int
    phases: tuple[ErfPhase, ...]  # row by row; empty where there are none
    is_final: bool = True
    note: str = ""  # why there are none, or what a reader must know


@dataclass(frozen=True, slots=True, kw_only=True)
class ErfBlockPaths:
    """The gradient at the input, split by the path that it takes through one block.

    Signed and before any rectification: the paths' gradients add up to the whole gradient (`error`
    says how exactly, on the full [B, 3, H, W] gradient of every image).
    """

    stage: int
    block: int  # 1-based within the stage
    kind: str  # "evss" | "inverted residual"
    paths: tuple[str, ...]  # "residual", "scan", "conv", "gate"; those that the block has
    maps: np.ndarray  # float32 [P, H, W] signed, summed over RGB, per unit of the whole |gradient|
    shares: tuple[float, ...]  # sum |gradient| of each path over the sum of all paths'
    signed: tuple[float, ...]  # sum of the path's gradient * sign of the whole, over sum |whole|
    error: float  # |sum of paths - whole| / |whole|, relative L2, largest over images


@dataclass(frozen=True, slots=True, kw_only=True)
class ErfPathsResult:
    """Per block up to the unit: how much of a token's field came through each path."""

    provenance: Provenance
    unit: str
    unit_label: str
    gates: str
    stage: int
    y: int
    x: int
    stride: int
    cell: int  # input pixels per cell of the maps: sums over cell x cell pixels
    total: np.ndarray  # float32 [H, W] signed, as the maps of a block
    blocks: tuple[ErfBlockPaths, ...]
    n_images: int
    image_names: tuple[str, ...]
    is_final: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockEvidence:
    """How much of the evidence for the target came through each path of one EVSS block.

    With g the gradient of the target logit at the block's sum: scan = sum g*SE(op), conv = sum
    g*SE(conv), residual = sum g*x; they add up to total = sum g*output (error says how exactly).
    """

    stage: int
    block: int  # 1-based within the stage
    scan: float
    conv: float
    residual: float
    total: float
    error: float  # |scan + conv + residual - total| / (|scan| + |conv| + |residual|)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionResult:
    provenance: Provenance
    target: int
    target_name: str
    probability: float
    method: str  # "Grad-CAM"
    maps: tuple[np.ndarray, ...]  # one float32 [H_s, W_s] per stage 1..4
    strides: tuple[int, ...]
    layers: tuple[str, ...]  # which tensor each map is of, in words
    evidence: tuple[BlockEvidence, ...]  # empty for a network without EVSS blocks
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionMap:
    """One map of a method, on the cells of a stage's tokens or of the input."""

    name: str  # "stage1" ... "stage4" | "input"
    values: np.ndarray  # float32 [h, w]
    stride: int  # input pixels per cell
    layer: str  # which tensor the map is of, in words

    @property
    def half_share(self) -> float:
        """Share of the cells that hold half of the summed size; nan for a map of zeros."""
        sizes = np.abs(self.values.astype(np.float64)).ravel()
        falling: np.ndarray = np.cumsum(np.sort(sizes)[::-1])
        if falling[-1] == 0:
            return float("nan")
        return float((np.searchsorted(falling, 0.5 * falling[-1]) + 1) / falling.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class MapsResult:
    """Maps of one attribution method for one class, or for one class against another.

    The objective is the target's logit, minus the contrast's where one is set.
    `Provenance.parameters` has the method, the target and every field of the method's form.
    """

    provenance: Provenance
    method: str  # key in `analyses/attribution/methods.py`
    label: str
    where: str  # "stage": one map per stage | "input": one map
    target: int
    target_name: str
    contrast: int | None
    contrast_name: str
    probability: float  # softmax of the target
    objective: float  # at the photo
    is_signed: bool  # False: no value is negative
    maps: tuple[AttributionMap, ...]
    baseline: str  # in words; "" where the method has none
    baseline_objective: float  # nan where the method has none
    bias_share: float  # relevance that biases took (LRP); nan for every other method
    gaps: tuple[float, ...]  # per map: its sum minus what it should be; () if nothing is promised
    verdict: str  # what the gaps mean, in words; "" if nothing is promised
    unit: str = "logit"  # of the values, in words
    is_density: bool = True  # values of neighbouring cells add up; else each stands for itself
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceMaps:
    """The evidence of one EVSS block, token by token: sum over channels of g * path."""

    stage: int
    block: int  # 1-based within the stage
    stride: int  # input pixels per token
    paths: tuple[str, ...]  # "scan", "conv", "residual"
    maps: np.ndarray  # float32 [P, H, W] signed logits
    sums: tuple[float, ...]  # of each map
    total: float  # sum g * output
    error: (
        float  # largest |sum of paths - g * output| of a token, over its largest sum_c |g * output|
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceResult:
    """Through which path of each EVSS block the evidence for the objective came."""

    provenance: Provenance
    target: int
    target_name: str
    contrast: int | None
    contrast_name: str
    probability: float
    objective: float
    blocks: tuple[EvidenceMaps, ...]  # empty for a network without EVSS blocks
    note: str = ""

    @property
    def shares(self) -> dict[str, float]:
        """Share of each path in the summed size of the evidence over all blocks; empty if that is
        0."""
        sizes: dict[str, float] = {}
        for block in self.blocks:
            for path, value in zip(block.paths, block.sums, strict=True):
                sizes[path] = sizes.get(path, 0.0) + abs(value)
        whole = sum(sizes.values())
        return {path: size / whole for path, size in sizes.items()} if whole else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionResult:
    """Implicit attention of one token in the scan of one block: the exact linear map of S6.

    alpha(i, j) = sum_n C_i[n] exp(sum_{m=j+1..i} dt_m A[n]) dt_j B_j[n] for j at or before i in a
    sequence, else 0; y_i = sum over sequences and j of alpha(i, j) x_j, plus skip * x_i.
    """

    provenance: Provenance
    stage: int
    block: int
    y: int
    x: int
    height: int  # tokens
    width: int
    stride: int  # input pixels per token
    has_scan: bool
    layer: str  # module path of the operator: "layers.0.blocks.0.op"
    channel: int | None  # None: mean over the channels
    n_channels: int
    sequences: tuple[int, ...]  # that read the token, from 0; all maps below are in this order
    rows: np.ndarray  # float32 [G, H, W] alpha(token, j): what the token reads from j
    rows_size: np.ndarray  # float32 [G, H, W] mean |alpha| over the channels
    columns: np.ndarray  # float32 [G, H, W] alpha(j, token): what j reads from the token
    columns_size: np.ndarray
    steps: np.ndarray  # int32 [S] steps back along a sequence, 0 first
    decay: (
        np.ndarray
    )  # float32 [G, S] mean |alpha| over channels at that distance; nan past the start
    skip: float  # D of the sequences, summed (mean over the channels)
    error: float  # |sum alpha x + skip x - y| / |y| at the token, over all channels
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributionBatch:
    """A method's numbers for many photos, and their summary."""

    provenance: Provenance  # of the first photo
    method: str
    images: tuple[str, ...]
    skipped: tuple[str, ...]  # "name: why"
    target_names: tuple[str, ...]  # of each photo
    columns: tuple[str, ...]  # names of the numbers
    values: np.ndarray  # float64 [images, columns]; nan where a photo has no such number
    mean: np.ndarray  # float64 [columns], over the photos that have the number
    low: np.ndarray  # float64 [columns] 5th percentile of the photos
    high: np.ndarray  # float64 [columns] 95th percentile
    is_final: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaithfulnessCurve:
    """How the objective follows an order of pixels, and how well a map predicts changes."""

    name: str  # "map" | "random" | "edges"
    insertion: np.ndarray  # float32 [S] objective's probability when the first share is inserted
    deletion: np.ndarray  # float32 [S] ... when the first share is removed
    insertion_low: np.ndarray  # float32 [S] over random orders; empty for one order
    insertion_high: np.ndarray
    deletion_low: np.ndarray
    deletion_high: np.ndarray
    insertion_auc: float
    deletion_auc: float
    infidelity: float  # nan where not computed
    sensitivity: float  # nan where not computed


@dataclass(frozen=True, slots=True, kw_only=True)
class FaithfulnessResult:
    """Insertion, deletion, infidelity and sensitivity of one map beside two controls."""

    provenance: Provenance
    method: str
    map_name: str  # "stage1" ... | "input"
    target: int
    target_name: str
    shares: np.ndarray  # float32 [S] share of the pixels inserted or removed, 0 to 1
    curves: tuple[FaithfulnessCurve, ...]
    baseline: str  # what stands where pixels are missing, in words
    n_random: int  # random orders behind the band
    verdict: str
    is_final: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomisationResult:
    """Does the map change when the network forgets? Weights randomised from the head down."""

    provenance: Provenance
    method: str
    map_names: tuple[str, ...]
    steps: tuple[str, ...]  # "trained", "head", "stage 4", ..., "stem": what is random so far
    similarity: np.ndarray  # float32 [steps, maps] Spearman rank correlation with the trained map
    edges: np.ndarray  # float32 [steps, maps] of each map with an edge detector on the photo
    chance: np.ndarray  # float32 [maps] |correlation| that the trained map, moved, has by chance
    verdict: str
    is_final: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTime:
    stage: int  # 0 = stem, 5 = head
    block: int  # 1-based; 0 = everything of the stage that is no block (downsampling, stem, head)
    name: str  # module path
    kind: str  # "evss" | "inverted residual" | "downsample" | "stem" | "head"
    p50_ms: float
    scan_ms: float  # median time inside kernels.scan2d; 0 where the block has no scan


@dataclass(frozen=True, slots=True, kw_only=True)
class OpTime:
    name: str  # operator or kernel as torch.profiler names it
    self_ms: float  # per forward pass
    calls: int  # per forward pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileResult:
    """Time of one forward pass; measured only after the output agreed with the reference."""

    provenance: Provenance
    batch: int
    warmup: int
    repeats: int
    p20_ms: float
    p50_ms: float
    p80_ms: float
    blocks: tuple[BlockTime, ...]
    ops: tuple[OpTime, ...]  # sorted by self time, largest first
    max_abs_error: float  # of the logits against the reference backend
    is_correct: bool
    macs: float  # multiply-accumulates by the field's convention
    n_parameters: int
    scan_tokens: int  # tokens read by all scans of the network, pads included
    scan_depth: int  # longest sequence of dependent steps
    clock: str  # clock source in words
    note: str = ""
