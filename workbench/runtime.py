"""The workbench without a page: what `ui`, `api` and `cli` call.

One object holds the photos, the loaded models, the device's lock and the results. Nothing a session
does changes a model that another session uses: every analysis runs on a twin that shares the
weights only.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

import models
from kernels import ScanSpec, resolve_backend
from models import EfficientVMamba
from workbench import __version__, choices, weights_cards
from workbench.analyses import attribution as attribution_analysis
from workbench.analyses import profiling, reach, scan, schemes
from workbench.analyses.checks import explain_non_finite
from workbench.analyses.maps import stage_shape
from workbench.attribution_lab import AttributionLab
from workbench.cache import LruCache, ResultCache, run_key
from workbench.choices import Header, ModelChoice, ScanChoice, WeightsChoice, check_choice
from workbench.device import BACKEND_LABELS, DeviceLock, choose_device, device_label
from workbench.erf_lab import ErfLab
from workbench.errors import BadInputError, NotAvailableError
from workbench.kernel_lab import KernelLab
from workbench.photos import PhotoLibrary, Prepared, normalise, prepare
from workbench.profiler_lab import ProfilerLab
from workbench.progress import CancelToken, Progress
from workbench.results import (
    AttributionResult,
    ErfResult,
    PredictionResult,
    ProfileResult,
    Provenance,
    ReachResult,
    ScanResult,
    SchemeTableResult,
)
from workbench.settings import Settings
from workbench.view import FITS, SIZE_RULE, SIZES, STAGES, TABS, View, is_size

# Loaded at once: the page's networks and three rivals; Base takes 135 MB.
MAX_MODELS = 6
SEED = 0  # of random weights and of the crops
R = TypeVar("R")


class Workbench:
    """Facade over the analyses, safe under threads; `which` is "a", "b" or "c": the view's scan."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings()
        self.device = choose_device(self.settings.device)
        self.n_threads = self.settings.threads or torch.get_num_threads()
        torch.set_num_threads(self.n_threads)
        try:
            self.backend, self.backend_reason = resolve_backend(self.settings.backend, self.device)
        except RuntimeError as error:
            raise NotAvailableError(str(error)) from error
        self.photos = PhotoLibrary(self.settings)
        self.loaded = LruCache(MAX_MODELS)
        self.results = ResultCache(self.settings.cache_bytes)
        self.lock = DeviceLock()
        self.erf_lab = ErfLab(self)
        self.attribution_lab = AttributionLab(self)
        self.profiler_lab = ProfilerLab(self)
        self.kernel_lab = KernelLab(self)

    def warm_up(self) -> None:
        """Compile the kernels, forward and backward: seconds on a fresh installation."""
        view = View(model="efficientvmamba_test", weights="random", size=SIZES[0])
        self.attribution(view)

    # What can be chosen

    def models(self) -> tuple[ModelChoice, ...]:
        return choices.model_choices()

    def weights(self, model: str) -> tuple[WeightsChoice, ...]:
        check_choice("model", model, models.list_models())
        return choices.weights_choices(model)

    def weights_story(self, model: str) -> str:
        """What the weights that ship for a model are worth, from their cards."""
        return weights_cards.story(model)

    def scans(self) -> tuple[ScanChoice, ...]:
        return choices.scan_choices()

    def resolve(self, view: View) -> View:
        """The view with every name checked and the token filled in and moved into the stage's map.

        Weights "default" become "random" where nothing ships for the model, so a link to any model
        opens.
        """
        check_choice("model", view.model, models.list_models())
        weights = [choice.name for choice in self.weights(view.model)]
        if view.weights == "default" and "default" not in weights:
            view = replace(view, weights="random")
        check_choice("set of weights", view.weights, weights)
        if not is_size(view.size):
            raise BadInputError(
                f"The input size {view.size} px is not offered. "
                f"Choose one of: {', '.join(map(str, SIZES))}; or any {SIZE_RULE}."
            )
        check_choice("fit", view.fit, list(FITS))
        if view.stage not in STAGES:
            raise BadInputError(f"There is no stage {view.stage}. Choose one of: 1, 2, 3, 4.")
        view = replace(
            view,
            scan_a=choices.check_scan(view.scan_a),
            scan_b=choices.check_scan(view.scan_b),
            scan_c=choices.check_scan(view.scan_c) if view.scan_c else None,
        )
        check_choice("tab", view.tab, list(TABS))
        if view.target is not None:
            choices.check_class(view.target, self.weighted(view, "a").num_classes)
        rows, columns, _ = self.stage_shape(view, view.stage)
        y = rows // 2 if view.y is None else min(max(view.y, 0), rows - 1)
        x = columns // 2 if view.x is None else min(max(view.x, 0), columns - 1)
        view = self.erf_lab.resolve(replace(view, y=y, x=x))
        view = self.profiler_lab.resolve(self.attribution_lab.resolve(view))
        return self.kernel_lab.resolve(view)

    def describe(self, view: View) -> Header:
        """Model, weights, device and backend of a view in words."""
        view = self.resolve(view)
        info = {which: self.weighted(view, which).weights_info for which in ("a", "b")}
        nets = list({i.description: i for i in info.values()}.values())
        sentences = []
        if info["a"].is_random:
            sentences.append(
                "The weights are random: maps show the architecture, not what it learned."
            )
        for which in ("a", "b"):
            sentences.append(choices.swap_sentence(info[which].trained_scan, _scan(view, which)))
        if self.backend == "reference" and self.settings.backend == "auto":
            sentences.append(f"The scan runs on the reference: {self.backend_reason}.")
        return Header(
            model_label=f"EfficientVMamba-{choices.short_name(view.model)}",
            weights_label="; ".join(net.description for net in nets),
            weights_short=choices.weights_short(nets),
            device_label=device_label(self.device),
            backend_label=BACKEND_LABELS[self.backend],
            is_random=info["a"].is_random,
            sentences=tuple(dict.fromkeys(s for s in sentences if s)),
        )

    def stage_shape(self, view: View, stage: int) -> tuple[int, int, int]:
        """(rows, columns, stride in input pixels) of a stage's map for the view's photo."""
        height, width = self.prepared(view).rgb.shape[:2]
        return stage_shape(self.weighted(view, "a"), stage, height, width)

    # Analyses

    def predict(self, view: View, which: str = "a") -> PredictionResult:
        view = self.resolve(view)
        key = self.key("predict", view, which, photo=self.photos.get(view.photo).sha256)

        def compute() -> PredictionResult:
            started = time.perf_counter()
            model = self.twin(view, which)
            with torch.no_grad():
                logits = model(torch.from_numpy(self.input(view))[None].to(self.device))[0]
            if not torch.isfinite(logits).all():
                raise BadInputError(explain_non_finite(model, "the logits"))
            info = model.weights_info
            classes = choices.class_names(info, model.num_classes)
            contains = self.photos.get(view.photo).contains
            return PredictionResult(
                provenance=replace(
                    self.provenance(view, which),
                    definition="softmax of the logits of one forward pass",
                    seconds=time.perf_counter() - started,
                ),
                classes=classes,
                probabilities=logits.softmax(0).float().cpu().numpy(),
                logits=logits.float().cpu().numpy(),
                note=choices.prediction_note(info, classes, contains, _scan(view, which)),
            )

        return self.once(key, compute)

    def scan(self, view: View, which: str = "a") -> ScanResult:
        """Path of the view's stage, read back from the operator that runs.

        The path of another network is drawn from its table and marked so.
        """
        view = self.resolve(view)
        photo = self.photos.get(view.photo).sha256
        key = self.key("scan", view, which, photo=photo, stage=view.stage)
        height, width = self.prepared(view).rgb.shape[:2]
        return self.once(
            key,
            lambda: self._scan_path(view, which, height, width),
        )

    def _scan_path(self, view: View, which: str, height: int, width: int) -> ScanResult:
        model, other = self._model_or_path(view, which)
        provenance = self.provenance(view, which)
        return scan.scan_path(model, view.stage, height, width, provenance=provenance, spec=other)

    def story(self, view: View, side: int) -> tuple[ScanResult, ScanResult]:
        """The paper's two scans on a map of `side` x `side` tokens, read back from the operator;
        their metrics are those of the view's stage."""
        view = self.resolve(view)
        pair = replace(view, scan_a="es2d:step=2", scan_b="ss2d", scan_c=None)
        _, _, stride = self.stage_shape(view, view.stage)
        photo = self.photos.get(view.photo).sha256

        def small(which: str) -> ScanResult:
            real = self.scan(pair, which)
            key = self.key("story", pair, which, photo=photo, stage=view.stage, side=side)
            grid = self.once(
                key, lambda: self._scan_path(pair, which, side * stride, side * stride)
            )
            return replace(grid, metrics=real.metrics)

        return small("a"), small("b")

    def reach(self, view: View, which: str = "a") -> ReachResult:
        """Which tokens can influence the view's token through one scan, and how much is left."""
        view = self.resolve(view)
        photo = self.photos.get(view.photo).sha256
        key = self.key("reach", view, which, photo=photo, stage=view.stage, y=view.y, x=view.x)

        def compute() -> ReachResult:
            assert view.y is not None and view.x is not None  # filled in by resolve
            model, other = self._model_or_path(view, which)
            return reach.reach(
                model,
                self.input(view),
                view.stage,
                view.y,
                view.x,
                provenance=self.provenance(view, which),
                spec=other,
            )

        return self.once(key, compute)

    def scheme_table(
        self, view: View, token: CancelToken | None = None, measure: bool = True
    ) -> Iterator[Progress | SchemeTableResult]:
        """Every listed scheme and those of the view on the stage's map; first without times."""
        view = self.resolve(view)
        listed = {choice.name: choice for choice in self.scans()}
        for text in view.scans.values():
            if text not in listed:
                listed[text] = choices.scan_choice(ScanSpec.parse(text))
        key = self.key(
            "schemes", view, "a", stage=view.stage, schemes=tuple(listed), measure=measure
        )
        if (kept := self.results.get(key)) is not None:
            yield kept
            return
        run = schemes.scheme_table(
            self.weighted(view, "a"),
            self.input(view),
            view.stage,
            tuple(listed.values()),
            provenance=self.provenance(view, "a"),
            token=token,
            measure=measure,
        )
        for item in self.stepwise(run, token):
            is_last = isinstance(item, SchemeTableResult) and item.is_final
            yield self.results.keep(key, item) if is_last else item

    def attribution(
        self, view: View, which: str = "a", token: CancelToken | None = None
    ) -> AttributionResult:
        view = self.resolve(view)
        photo = self.photos.get(view.photo).sha256
        key = self.key("attribution", view, which, photo=photo, target=view.target)

        def compute() -> AttributionResult:
            model = self.twin(view, which)
            return attribution_analysis.attribution(
                model,
                self.input(view),
                choices.class_names(model.weights_info, model.num_classes),
                target=view.target,
                provenance=self.provenance(view, which),
                token=token,
            )

        return self.once(key, compute, token)

    def profile(
        self, view: View, which: str = "a", token: CancelToken | None = None
    ) -> Iterator[Progress | ProfileResult]:
        """Progress, then the result. Kept for every photo of the same input size: the time is the
        same."""
        view = self.resolve(view)
        key = self.key("profile", view, which)
        if (kept := self.results.get(key)) is not None:
            yield kept
            return
        if ahead := self.lock.n_waiting:
            yield Progress(0, 1, f"waiting for {ahead} other run{'s' if ahead > 1 else ''}")
        for item in self.stepwise(self._profile_run(view, which, token), token):
            yield self.results.keep(key, item) if isinstance(item, ProfileResult) else item

    def profile_pair(
        self, view: View, token: CancelToken | None = None
    ) -> Iterator[Progress | tuple[ProfileResult, ProfileResult]]:
        """Both scans of the view in one run, pass by pass in turn, so that whatever else the
        machine does meets both; the last item is (a, b)."""
        view = self.resolve(view)
        keys = [self.key("profile", view, which) for which in ("a", "b")]
        key = f"pair {keys[0]} {keys[1]}"
        if (kept := self.results.get(key)) is not None:
            yield kept
            return
        runs = [self.stepwise(self._profile_run(view, which, token), token) for which in ("a", "b")]
        found: list[ProfileResult | None] = [None, None]
        while None in found:
            for i, run in enumerate(runs):
                if found[i] is not None:
                    continue
                item = next(run)
                if isinstance(item, ProfileResult):
                    found[i] = item
                else:
                    yield replace(item, done=2 * item.done + i, total=2 * item.total)
        a, b = found
        assert a is not None and b is not None
        yield self.results.keep(key, (a, b))

    def _profile_run(
        self, view: View, which: str, token: CancelToken | None
    ) -> Iterator[Progress | ProfileResult]:
        return profiling.profile_forward(
            self.twin(view, which),
            self.input(view),
            provenance=self.provenance(view, which),
            token=token,
        )

    def erf(
        self,
        view: View,
        which: str = "a",
        n_images: int = 8,
        token: CancelToken | None = None,
    ) -> Iterator[ErfResult]:
        """Running means over the view's photo and seeded gallery crops; the last is final."""
        plain = View()
        shown = replace(
            view,
            scan_b=view.scan_b if which == "a" else _scan(view, which),
            erf_unit=plain.erf_unit,
            erf_definition=plain.erf_definition,
            erf_gates=plain.erf_gates,
            erf_images=n_images,
            erf_set=(),
        )
        return self.erf_lab.field(shown, None if which == "a" else "scan", token)

    # Inside

    def once(self, key: str, compute: Any, token: CancelToken | None = None) -> Any:
        """The kept result of `key`, or `compute()` on the device. An equal key gives the same
        object."""
        kept = self.results.get(key)
        if kept is not None:
            return kept
        with self._on_device(token):
            # Another session may have computed it while this one waited.
            kept = self.results.get(key)
            return kept if kept is not None else self.results.keep(key, compute())

    def stepwise(self, run: Iterator[R], token: CancelToken | None) -> Iterator[R]:
        """Items of `run`; the device is held for one step at a time: a paused run blocks nobody."""
        try:
            while True:
                with self._on_device(token):
                    item = next(run, None)
                if item is None:
                    return
                yield item
        finally:
            run.close()  # type: ignore[attr-defined]

    @contextmanager
    def _on_device(self, token: CancelToken | None) -> Iterator[None]:
        """The device for the block.

        A server's worker threads come and go, each with its own count of OpenMP threads, which it
        copied at some moment; so the count is set here.
        """
        with self.lock.hold(token):
            if torch.get_num_threads() != self.n_threads:
                torch.set_num_threads(self.n_threads)
            yield

    def key(self, kind: str, view: View, which: str, **fields: Any) -> str:
        """Run key: what every analysis depends on, and the fields that this one adds."""
        prepared = self.prepared(view)
        return run_key(
            kind,
            version=__version__,
            model=view.model,
            weights=self.weighted(view, which).weights_info.sha256,
            scan=_scan(view, which),
            input=prepared.rgb.shape,
            crop=prepared.crop if "photo" in fields else None,
            device=device_label(self.device),
            backend=self.backend,
            **fields,
        )

    def weighted(self, view: View, which: str) -> EfficientVMamba:
        """The loaded model with the weights that `which` uses; shared, never changed."""
        _scan(view, which)
        info = choices.shipped_weights(view.model, view.weights, _scan(view, which), view.scan_a)
        return self.loaded.get(
            (view.model, info.name if info else "random"),
            lambda: self._load(view.model, info.name if info else None),
        )

    def _load(self, name: str, weights: str | None) -> EfficientVMamba:
        model = models.create_model(name, weights=weights, backend=self.backend, seed=SEED)
        # No analysis asks for gradients of the weights: autograd then skips them.
        return model.eval().requires_grad_(False).to(self.device)

    def twin(self, view: View, which: str) -> EfficientVMamba:
        """A twin that runs the scan of `which`; its owner may hook it."""
        scan_text = _scan(view, which)
        choices.check_runnable(scan_text)
        return models.with_scan(self.weighted(view, which), scan_text)

    def _model_or_path(self, view: View, which: str) -> tuple[EfficientVMamba, ScanSpec | None]:
        """The twin that runs the scan; or the model as it is, and the scheme that it cannot run."""
        spec = ScanSpec.parse(_scan(view, which))
        if spec.is_runnable:
            return self.twin(view, which), None
        return self.weighted(view, which), spec

    def prepared(self, view: View) -> Prepared:
        photo = self.photos.get(view.photo)
        key = run_key("prepared", photo=photo.sha256, size=view.size, fit=view.fit)
        kept = self.results.get(key)
        if kept is None:
            kept = self.results.keep(key, prepare(photo, view.size, view.fit))
        return kept

    def input(self, view: View) -> np.ndarray:
        return normalise(self.prepared(view).rgb)

    def provenance(self, view: View, which: str) -> Provenance:
        photo = self.photos.get(view.photo)
        prepared = self.prepared(view)
        info = self.weighted(view, which).weights_info
        height, width = prepared.rgb.shape[:2]
        return Provenance(
            model=view.model,
            weights=info.description,
            weights_sha256=info.sha256,
            is_random=info.is_random,
            trained_scan=info.trained_scan,
            scan=_scan(view, which),
            image=photo.id,
            image_sha256=photo.sha256,
            crop=prepared.crop,
            input_size=(height, width),
            definition="",
            parameters={"size": view.size, "fit": view.fit},
            device=device_label(self.device),
            backend=self.backend,
            versions={
                "workbench": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "numpy": np.__version__,
            },
            seed=SEED if info.is_random else None,
        )


def _scan(view: View, which: str) -> str:
    spec = view.scans.get(which)
    if spec is None:
        given = "a, b and c" if view.scan_c else "a and b"
        raise BadInputError(f"There is no scan {which[:20]!r} in this view. It has {given}.")
    return spec
