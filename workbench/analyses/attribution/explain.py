"""The one entry to every attribution method: from a name and a photo to maps with their verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import EfficientVMamba
from workbench.analyses.attribution import input_methods, stage_methods
from workbench.analyses.attribution.methods import (
    BASELINES,
    METHODS,
    Method,
    check_parameters,
    method_of,
)
from workbench.analyses.attribution.relevance import relevance
from workbench.analyses.attribution.stage_methods import ExplainedNetwork
from workbench.analyses.attribution.targets import resolve_target, target_fields
from workbench.analyses.checks import explain_non_finite
from workbench.errors import BadInputError
from workbench.progress import CancelToken
from workbench.results import AttributionMap, MapsResult, Provenance

COMPLETE = 0.05  # gap per |f(x) - f(x')| up to which maps count as complete


def explain(
    model: Any,
    image: np.ndarray,
    classes: Sequence[str],
    method: str = "grad_cam",
    *,
    target: int | None = None,
    contrast: int | None = None,
    parameters: Mapping[str, object] | None = None,
    provenance: Provenance,
    token: CancelToken | None = None,
    seed: int = 0,
) -> MapsResult:
    """The maps of a method for class `target` (None: the most probable) of one normalised
    `[3, H, W]` image, against class `contrast` if one is given."""
    started = time.perf_counter()
    entry = method_of(method)
    checked = check_parameters(method, parameters or {})
    check_network(model, classes)
    if method == "lrp":
        return relevance(
            model,
            image,
            classes,
            target=target,
            contrast=contrast,
            provenance=provenance,
            token=token,
        )
    network = ExplainedNetwork(model, token)
    pixels = torch.from_numpy(image)[None].to(next(model.parameters()).device)
    with torch.no_grad():
        network.check()
        logits = network.network(pixels)[0]
    if not torch.isfinite(logits).all():
        raise BadInputError(explain_non_finite(model, "the logits"))
    network.target = resolve_target(logits, target, contrast)
    run = Run(network, pixels, checked, torch.Generator().manual_seed(seed))
    values = [v.float().cpu().numpy() for v in COMPUTED_BY[method](run)]
    if not all(np.isfinite(v).all() for v in values):
        raise BadInputError(explain_non_finite(model, f"the maps of {entry.label}"))
    fields = target_fields(network.target, logits, classes)
    baseline_objective = run.baseline_objective()
    expected = fields["objective"] - baseline_objective
    gaps = (
        tuple(float(v.sum(dtype=np.float64)) - expected for v in values)
        if entry.promises_completeness
        else ()
    )
    return MapsResult(
        provenance=replace(
            provenance,
            definition=f"{entry.label}: {entry.formula}; f: {network.target.words}; "
            f"{entry.source}; not normalised",
            parameters={
                **provenance.parameters,
                "method": method,
                "target": network.target.index,
                "contrast": network.target.contrast,
                **checked,
            },
            seed=seed,
            seconds=time.perf_counter() - started,
        ),
        method=method,
        label=entry.label,
        where=entry.where,
        **fields,
        is_signed=entry.is_signed,
        unit=entry.unit,
        is_density=entry.is_density,
        maps=tuple(_named(run, entry, values)),
        baseline=BASELINES[str(checked["baseline"])] if "baseline" in checked else "",
        baseline_objective=baseline_objective,
        bias_share=float("nan"),
        gaps=gaps,
        verdict=completeness_verdict(entry, gaps, expected, checked) if gaps else "",
        note=" ".join(_notes(run, entry, values)),
    )


def check_network(model: Any, classes: Sequence[str]) -> None:
    """Refuse a network whose stages are not known here, or names that are not its classes."""
    if not isinstance(model, EfficientVMamba):
        raise BadInputError(
            f"Attribution reads the stages of an EfficientVMamba; {type(model).__name__} is "
            "another network. Choose one of the EfficientVMamba models."
        )
    if model.num_classes == 0:
        raise BadInputError(
            "This model has no head, so no class can be explained. Load weights with a head."
        )
    if len(classes) != model.num_classes:
        raise BadInputError(
            f"{len(classes)} class names were given for a model with {model.num_classes} classes. "
            "Give one name per class."
        )


@dataclass
class Run:
    """What one call of a method works on; the baseline is made once, when a method asks."""

    network: ExplainedNetwork
    pixels: Tensor  # [1, 3, H, W]
    parameters: dict[str, int | float | str]
    generator: torch.Generator
    baseline: Tensor | None = None
    mean_objective: float | None = None  # of many baselines
    stride: int = 1  # input pixels per cell of an input map

    def number(self, name: str) -> int:
        return int(self.parameters[name])

    def new_baseline(self) -> Tensor:
        kind = str(self.parameters["baseline"])
        return input_methods.make_baseline(self.pixels, kind, self.generator)

    def the_baseline(self) -> Tensor:
        if self.baseline is None:
            self.baseline = self.new_baseline()
        return self.baseline

    def baseline_objective(self) -> float:
        """f(x'), nan for a method without baseline."""
        if self.mean_objective is not None:
            return self.mean_objective
        if self.baseline is None:
            return float("nan")
        with torch.no_grad():
            return float(self.network(self.baseline))


def _gradient_maps(method: str) -> Callable[[Run], list[Tensor]]:
    return lambda run: stage_methods.gradient_maps(run.network, run.pixels, method)


def _layer_ig(run: Run) -> list[Tensor]:
    return stage_methods.layer_integrated_gradients(
        run.network, run.pixels, run.the_baseline(), run.number("steps")
    )


def _conductance(run: Run) -> list[Tensor]:
    return stage_methods.conductance(
        run.network, run.pixels, run.the_baseline(), run.number("steps")
    )


def _integrated_gradients(run: Run) -> list[Tensor]:
    return [
        input_methods.integrated(run.network, run.pixels, run.the_baseline(), run.number("steps"))
    ]


def _gradient_shap(run: Run) -> list[Tensor]:
    kind = run.parameters["baseline"]
    values, objective = input_methods.gradient_shap(
        run.network,
        run.pixels,
        run.new_baseline if kind == "noise" else run.the_baseline,
        run.number("samples"),
        float(run.parameters["noise"]),
        run.generator,
    )
    run.mean_objective = float(objective)
    return [values]


def _smoothgrad(run: Run) -> list[Tensor]:
    samples, noise = run.number("samples"), float(run.parameters["noise"])
    return [input_methods.smoothgrad(run.network, run.pixels, samples, noise, run.generator)]


def _occlusion(run: Run) -> list[Tensor]:
    window, stride = run.number("window"), run.number("stride")
    return [input_methods.occlusion(run.network, run.pixels, run.the_baseline(), window, stride)]


def _occlusion_scan(run: Run) -> list[Tensor]:
    values, run.stride = input_methods.occlusion_scan(
        run.network,
        run.pixels,
        run.the_baseline(),
        run.number("stage"),
        run.number("pieces"),
        str(run.parameters["overlap"]),
    )
    return [values]


COMPUTED_BY: dict[str, Callable[[Run], list[Tensor]]] = {
    "grad_cam": _gradient_maps("grad_cam"),
    "gradient_activation": _gradient_maps("gradient_activation"),
    "layer_ig": _layer_ig,
    "conductance": _conductance,
    "activation": lambda run: stage_methods.activation(run.network, run.pixels),
    "saliency": lambda run: [input_methods.saliency(run.network, run.pixels)],
    "input_gradient": lambda run: [input_methods.input_gradient(run.network, run.pixels)],
    "integrated_gradients": _integrated_gradients,
    "gradient_shap": _gradient_shap,
    "smoothgrad": _smoothgrad,
    "occlusion": _occlusion,
    "occlusion_scan": _occlusion_scan,
    "guided_backprop": lambda run: [input_methods.guided_backprop(run.network, run.pixels)],
}


def _named(run: Run, method: Method, values: Sequence[np.ndarray]) -> list[AttributionMap]:
    """The maps with their places; `values` one per stage, or one of the input."""
    if method.where == "input":
        stride, layer = run.stride, "pixels of the network's input"
        if stride > 1:
            layer = f"the network's input, in cells of {stride} x {stride} px: a token each"
        return [AttributionMap(name="input", values=values[0], stride=stride, layer=layer)]
    infos = run.network.network.feature_info
    maps = []
    for number, (v, info) in enumerate(zip(values, infos, strict=True), start=1):
        before = " before patch merging" if number < len(infos) else ""
        size = f"{v.shape[0]} x {v.shape[1]} tokens, {info['num_chs']} channels"
        layer = f"output of stage {number}{before} ({size})"
        maps.append(
            AttributionMap(name=f"stage{number}", values=v, stride=info["reduction"], layer=layer)
        )
    return maps


def completeness_verdict(
    method: Method,
    gaps: Sequence[float],
    expected: float,
    parameters: Mapping[str, int | float | str],
) -> str:
    """What the gaps mean: `expected` is f(x) - f(x'), which every map's sum should be."""
    size = max(abs(gap) for gap in gaps)
    if size <= COMPLETE * abs(expected):
        return (
            f"Complete: the sum misses the difference to the baseline, {expected:.4g}, by "
            f"{size:.2g} ({size / abs(expected):.1%}) at most."
            if expected
            else "Complete: photo and baseline have the same objective, and the sum is 0."
        )
    share = f" ({size / abs(expected):.0%})" if expected else ""
    counted = "steps" if "steps" in parameters else "samples"
    return (
        f"Not complete: the sum misses the difference to the baseline, {expected:.4g}, by "
        f"{size:.2g}{share}. Use more {counted} (now {parameters[counted]}) or another baseline."
    )


def _notes(run: Run, method: Method, values: Sequence[np.ndarray]) -> list[str]:
    notes = [method.note] if method.note else []
    if method.name == "guided_backprop":
        stages = input_methods.relu_stages(run.network.network)
        listed = ", ".join(str(stage) for stage in stages)
        notes.append(
            f"Stages of this network with ReLU modules: {listed}."
            if stages
            else "This network has no ReLU module: what is shown is only the gradient (saliency)."
        )
    empty = [str(i) for i, v in enumerate(values, start=1) if not v.any()]
    if empty and method.where == "stage":
        which = f"stage {empty[0]}" if len(empty) == 1 else f"stages {', '.join(empty)}"
        notes.append(f"The map of {which} is zero everywhere: nothing there speaks for this class.")
    elif empty:
        notes.append("The map is zero everywhere: no pixel matters to this method here.")
    return notes


assert set(COMPUTED_BY) | {"lrp"} == set(METHODS)
