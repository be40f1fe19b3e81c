"""The attribution methods: formula, source, fields of the form, and which ones are not offered.

Without torch: the page and the command line draw their forms from this table.

f is the objective (the target's logit, minus the contrast's where one is set), x the photo, x' the
baseline, a the output of a stage before patch merging with channels c, g = d f / d a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from workbench.errors import BadInputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One entry of a method's form."""

    name: str
    label: str
    kind: str  # "int" | "float" | "choice"
    default: int | float | str
    low: float = 0.0  # of numbers, both ends allowed
    high: float = 0.0
    choices: tuple[str, ...] = ()
    tip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One line of the table. `is_signed` False: no value of its maps is negative.

    `unit` is that of the maps' values; where `is_density`, those of neighbouring cells add up.
    """

    name: str
    label: str
    where: str  # "stage": one map per stage | "input": one map
    formula: str
    source: str
    fields: tuple[Field, ...] = ()
    is_signed: bool = True
    promises_completeness: bool = False  # the maps' sums should be f(x) - f(x')
    unit: str = "logit"
    is_density: bool = True
    note: str = ""


BASELINES = {
    "blur": "the photo, blurred (Gaussian, sigma a tenth of the shorter side)",
    "mean": "ImageNet's mean colour everywhere",
    "black": "black",
    "noise": "uniform noise in [0, 1] per pixel and colour, from the seed",
}

_BASELINE = Field(
    name="baseline",
    label="Baseline",
    kind="choice",
    default="blur",
    choices=tuple(BASELINES),
    tip="The picture without evidence: " + "; ".join(f"{k}: {v}" for k, v in BASELINES.items()),
)


def _steps(tip: str) -> Field:
    return Field(name="steps", label="Steps", kind="int", default=32, low=1, high=1024, tip=tip)


def _noise(default: float) -> Field:
    return Field(
        name="noise",
        label="Noise",
        kind="float",
        default=default,
        low=0.0,
        high=1.0,
        tip="Standard deviation, as a share of the photo's range (largest minus smallest value).",
    )


def _samples(default: int) -> Field:
    return Field(
        name="samples",
        label="Samples",
        kind="int",
        default=default,
        low=1,
        high=1024,
        tip="One forward and one backward pass each.",
    )


_TABLE = (
    Method(
        name="grad_cam",
        label="Grad-CAM",
        where="stage",
        formula="relu(sum_c mean_hw(g_c) a_c)",
        source="Selvaraju et al. 2017, arXiv:1610.02391",
        is_signed=False,
    ),
    Method(
        name="gradient_activation",
        label="Gradient x activation",
        where="stage",
        formula="sum_c g_c a_c",
        source="Shrikumar et al. 2017, arXiv:1605.01713, on a layer",
    ),
    Method(
        name="layer_ig",
        label="Layer integrated gradients",
        where="stage",
        formula="sum_c (a_c - a'_c) * integral_0^1 d f / d a_c (a' + t (a - a')) dt, a' = a(x'); "
        "Gauss-Legendre",
        source="Sundararajan et al. 2017, arXiv:1703.01365, on a layer",
        fields=(_steps("Points on the straight line from a' to a."), _BASELINE),
        promises_completeness=True,
    ),
    Method(
        name="conductance",
        label="Conductance",
        where="stage",
        formula="sum_c integral of d f / d a_c along the stage's outputs on the straight line of "
        "inputs from x' to x; trapezoid rule",
        source="Dhamdhere et al. 2018, arXiv:1805.12233",
        fields=(_steps("Sections of the straight line from x' to x."), _BASELINE),
        promises_completeness=True,
    ),
    Method(
        name="activation",
        label="Activation",
        where="stage",
        formula="mean_c |a_c|",
        source="Zagoruyko and Komodakis 2017, arXiv:1612.03928",
        is_signed=False,
        note="The same for every class: the activation does not know what is explained.",
        unit="mean |activation|",
        is_density=False,
    ),
    Method(
        name="saliency",
        label="Saliency",
        where="input",
        formula="max_c |d f / d x_c|",
        source="Simonyan et al. 2014, arXiv:1312.6034",
        is_signed=False,
        unit="logit per unit of normalised colour",
        is_density=False,
    ),
    Method(
        name="input_gradient",
        label="Input x gradient",
        where="input",
        formula="sum_c x_c * d f / d x_c, x normalised: 0 is ImageNet's mean colour",
        source="Shrikumar et al. 2017, arXiv:1605.01713",
    ),
    Method(
        name="integrated_gradients",
        label="Integrated gradients",
        where="input",
        formula="sum_c (x_c - x'_c) * integral_0^1 d f / d x_c (x' + t (x - x')) dt; "
        "Gauss-Legendre",
        source="Sundararajan et al. 2017, arXiv:1703.01365",
        fields=(_steps("Points on the straight line from x' to x."), _BASELINE),
        promises_completeness=True,
    ),
    Method(
        name="gradient_shap",
        label="Gradient SHAP",
        where="input",
        formula="sum_c mean over samples of (x_c + e - x'_c) * d f / d x_c (x' + t (x + e - x')), "
        "t uniform in [0, 1], e Gaussian",
        source="Lundberg and Lee 2017, arXiv:1705.07874; as in Captum",
        fields=(
            _samples(32),
            _noise(0.0),
            Field(
                name="baseline",
                label="Baselines",
                kind="choice",
                default="noise",
                choices=tuple(BASELINES),
                tip="With noise, every sample has a baseline of its own.",
            ),
        ),
        promises_completeness=True,
        note="Complete only in the mean over many samples.",
    ),
    Method(
        name="smoothgrad",
        label="SmoothGrad",
        where="input",
        formula="max_c |mean over samples of d f / d x_c (x + e)|, e Gaussian",
        source="Smilkov et al. 2017, arXiv:1706.03825",
        fields=(_samples(32), _noise(0.15)),
        is_signed=False,
        unit="logit per unit of normalised colour",
        is_density=False,
    ),
    Method(
        name="occlusion",
        label="Occlusion by squares",
        where="input",
        formula="f(x) - f(x with a square replaced by x'), mean over the squares on a pixel",
        source="Zeiler and Fergus 2014, arXiv:1311.2901",
        fields=(
            Field(
                name="window",
                label="Square",
                kind="int",
                default=32,
                low=1,
                high=1024,
                tip="Side of the square in input pixels.",
            ),
            Field(
                name="stride",
                label="Shift",
                kind="int",
                default=16,
                low=1,
                high=1024,
                tip="From one square to the next, in input pixels; at most the side.",
            ),
            _BASELINE,
        ),
        is_density=False,
    ),
    Method(
        name="occlusion_scan",
        label="Occlusion by scan pieces",
        where="input",
        formula="f(x) - f(x with the pixels of a run of consecutive scan steps replaced by x'), "
        "mean over the runs that read a token",
        source="Zeiler and Fergus 2014, arXiv:1311.2901, with runs of the stage's own scan order",
        fields=(
            Field(
                name="stage",
                label="Stage",
                kind="int",
                default=1,
                low=1,
                high=4,
                tip="Whose scan order cuts the photo.",
            ),
            Field(
                name="pieces",
                label="Pieces",
                kind="int",
                default=16,
                low=1,
                high=256,
                tip="Runs that every sequence of the scan is cut into.",
            ),
            Field(
                name="overlap",
                label="Overlap",
                kind="choice",
                default="none",
                choices=("none", "half"),
                tip="half: a second set of runs, shifted by half a run.",
            ),
            _BASELINE,
        ),
        is_density=False,
    ),
    Method(
        name="guided_backprop",
        label="Guided backprop",
        where="input",
        formula="max_c |d f / d x_c|, where every ReLU module passes back positive gradients only",
        source="Springenberg et al. 2015, arXiv:1412.6806",
        is_signed=False,
        note="Differs from the gradient only in stages of inverted residuals: only they have ReLU "
        "modules. GELU, SiLU and the gates' own ReLU pass the plain gradient.",
        unit="logit per unit of normalised colour",
        is_density=False,
    ),
    Method(
        name="lrp",
        label="Relevance (LRP)",
        where="input",
        formula="input x gradient of the network with dt, B, C, norms and gates held as MambaLRP "
        "holds them",
        source="Rezaei Jafari et al. 2024 (MambaLRP), arXiv:2406.07592, extended to ES2D",
        promises_completeness=True,
    ),
)

METHODS: dict[str, Method] = {method.name: method for method in _TABLE}

# Every field that any method has, by name: a form has one control for each. What a field of one
# name says differs from method to method, its kind does not.
FIELDS: dict[str, Field] = {}
for _entry in _TABLE:
    for _field in _entry.fields:
        FIELDS.setdefault(_field.name, _field)

# Each reason is shown to hold by a test.
NOT_OFFERED: dict[str, str] = {
    "captum_layer_grad_cam": "Captum's LayerGradCam takes dimension 1 for the channels. Stage "
    "outputs are [B, H, W, C]: it weighs and sums rows, and returns columns x channels, which is "
    "no map. Choose grad_cam: the same formula on the right axes.",
    "guided_grad_cam": "Captum's GuidedGradCam multiplies by its LayerGradCam, which takes the "
    "axes of [B, H, W, C] maps for [B, C, H, W]. Choose grad_cam or guided_backprop.",
    "deep_lift": "DeepLift needs a rule for every layer that is not linear. Captum has none for "
    "SiLU, GELU, LayerNorm, gates and the selective scan and takes their gradient instead: the "
    "sum then misses the difference of the logits by far. Choose integrated_gradients.",
    "layer_deep_lift": "As deep_lift: the layers after the stage have no rule, and the sum misses "
    "the difference of the logits. Choose layer_ig.",
    "captum_lrp": "Captum's LRP stops at the first layer for which it has no rule, here the patch "
    "convolution. Choose lrp: rules for this network's layers.",
    "deconvolution": "Deconvolution changes the gradient at ReLU modules only, as guided_backprop, "
    "and ignores which of them were active for this photo. Choose guided_backprop.",
}


def method_of(name: str) -> Method:
    """The method of that name; a sentence where there is none, with the reason if it is known."""
    if name in METHODS:
        return METHODS[name]
    if name in NOT_OFFERED:
        raise BadInputError(f"{name!r} is not offered. {NOT_OFFERED[name]}")
    raise BadInputError(
        f"There is no attribution method {str(name)[:60]!r}. Choose one of {', '.join(METHODS)}."
    )


def check_parameters(method: str, given: Mapping[str, object]) -> dict[str, int | float | str]:
    """Every field of a method's form: what was given, checked, else the default.

    Numbers may come as text, as in a link.
    """
    entry = method_of(method)
    known = {field.name: field for field in entry.fields}
    for name in given:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise BadInputError(
                f"{entry.label} has no field {str(name)[:60]!r}. Its fields: {allowed}."
            )
    return {
        name: _checked(entry, field, given[name]) if name in given else field.default
        for name, field in known.items()
    }


def _checked(method: Method, field: Field, value: object) -> int | float | str:
    if field.kind == "choice":
        if value in field.choices:
            return str(value)
        raise BadInputError(
            f"{method.label}: {field.label.lower()} is {str(value)[:60]!r}. "
            f"Choose one of {', '.join(field.choices)}."
        )
    number = _number(value)
    is_whole = field.kind != "int" or number.is_integer()
    if not (math.isfinite(number) and is_whole and field.low <= number <= field.high):
        what = "a whole number" if field.kind == "int" else "a number"
        raise BadInputError(
            f"{method.label}: {field.label.lower()} is {str(value)[:60]!r}. "
            f"Give {what} from {field.low:g} to {field.high:g}."
        )
    return int(number) if field.kind == "int" else number


def _number(value: object) -> float:
    """NaN for what is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
