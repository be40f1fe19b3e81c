"""The attribution lab: maps of a method, paths, implicit attention, and whether a map is faithful.

The reference is the view's network with scheme A and the view's photo; what stands beside it
(`View.attr_rival`) is another network or another photo. Both explain the same class.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import models
from kernels import ScanSpec
from workbench import __version__, choices
from workbench.analyses import faithfulness
from workbench.analyses.attribution import (
    evidence,
    explain,
    implicit_attention,
    methods,
    randomisation,
)
from workbench.cache import LruCache, run_key
from workbench.choices import check_choice
from workbench.errors import BadInputError
from workbench.image_sets import names_below
from workbench.photos import normalise
from workbench.progress import CancelToken, Pace, Progress, result_of
from workbench.results import (
    AttentionResult,
    AttributionBatch,
    AttributionMap,
    EvidenceResult,
    FaithfulnessResult,
    MapsResult,
    Provenance,
    RandomisationResult,
)
from workbench.view import View

if TYPE_CHECKING:
    from models import EfficientVMamba
    from workbench.erf_lab import RivalChoice
    from workbench.runtime import Workbench

SEED = 0  # of random baselines, orders and perturbations
PHOTO = "photo:"
PASSES_FOR_NOISE = 64  # that the sensitivity of one map may take
MAX_WATCHED = 4  # scans whose inputs are kept, so that another token costs its row only
NONE = ""
# What `AttributionLab.results` can be asked for.
PARTS = ("maps", "evidence", "attention", "faithfulness", "randomisation")


@dataclass(frozen=True, slots=True)
class Subject:
    """A network and a photo, ready to be explained."""

    model: EfficientVMamba
    image: np.ndarray  # float32 [3, H, W] normalised
    classes: tuple[str, ...]
    provenance: Provenance
    target: int | None
    contrast: int | None
    note: str = ""  # why it explains something else than the reference


class AttributionLab:
    """Facade over the attribution analyses; the workbench lends models, cache and device."""

    def __init__(self, workbench: Workbench) -> None:
        self._wb = workbench
        self._watched = LruCache(MAX_WATCHED)

    # What can be chosen

    def rivals(self, view: View) -> tuple[RivalChoice, ...]:
        """Networks that can stand beside the view's own; a photo can, too: "photo:NAME"."""
        listed = self._wb.erf_lab.rivals(view)
        return tuple(choice for choice in listed if ":" not in choice.name)

    def classes(self, view: View) -> tuple[str, ...]:
        """Names of the classes that the view's network knows; also where it cannot run the scan."""
        return _classes(self._wb.weighted(view, "a"))

    def resolve(self, view: View) -> View:
        """The view with every choice of the lab checked; options are written in the order of the
        method's form, a block beyond the stage's moves to its last. How many channels there are to
        choose from is known when the scan runs."""
        methods.method_of(view.attr_method)
        view = replace(view, attr_options=written(view))
        model = self._wb.weighted(view, "a")
        if view.contrast is not None:
            choices.check_class(view.contrast, model.num_classes)
            if view.contrast == view.target:
                raise BadInputError(
                    f"Class {view.target} cannot be compared with itself. Choose another "
                    "contrast, or none."
                )
        if view.attr_rival.startswith(PHOTO):
            self._check_photo(view)
        elif view.attr_rival != NONE:
            known = ["scan", "weights", "random", *models.list_models(), f"{PHOTO}NAME"]
            check_choice("network or photo to compare with", view.attr_rival, known)
        n_blocks = model.depths[view.stage - 1]
        if view.attr_block < 1:
            raise BadInputError(f"There is no block {view.attr_block}. Blocks count from 1.")
        if view.attr_channel is not None and view.attr_channel < 0:
            raise BadInputError(f"There is no channel {view.attr_channel}. Channels count from 0.")
        return replace(view, attr_block=min(view.attr_block, n_blocks))

    def _check_photo(self, view: View) -> None:
        """Two photos lie over each other pixel by pixel, so their inputs have one size."""
        pair = (view, _shown(view, view.attr_rival))
        own, other = (self._wb.prepared(shown).rgb.shape[:2] for shown in pair)
        if own != other:
            raise BadInputError(
                f"{view.attr_rival.removeprefix(PHOTO)} becomes {other[0]} x {other[1]} px and "
                f"{view.photo} {own[0]} x {own[1]} px, which cannot be compared. Choose fit=crop."
            )

    # Results

    def results(
        self,
        view: View,
        parts: Collection[str] = PARTS,
        token: CancelToken | None = None,
        follow: Callable[[Iterator[Any]], Any] = result_of,
    ) -> dict[str, Any]:
        """The asked ones of `PARTS` by the names that exports and `figures.paper` use; `follow`
        takes the last result of a long run."""
        view = self._wb.resolve(view)
        found: dict[str, Any] = {}
        if "maps" in parts:
            found |= {f"maps_{key}": maps for key, maps in self.compare(view, token)}
        if "evidence" in parts:
            found["evidence"] = self.evidence(view, None, token)
        if "attention" in parts:
            attention = self.attentions(view, token)
            found |= {f"attention_{which}": result for which, result in attention.items()}
        if "faithfulness" in parts:
            found["faithfulness"] = follow(self.faithfulness(view, token))
        if "randomisation" in parts:
            found["randomisation"] = follow(self.randomisation(view, token))
        return found

    def maps(
        self, view: View, rival: str | None = None, token: CancelToken | None = None
    ) -> MapsResult:
        """Maps of the view's method for its class, in its network or in the rival's."""
        view = self._wb.resolve(view)
        subject = self.subject(view, rival)
        key = self._key("maps", subject, **_how(view))

        def compute() -> MapsResult:
            result = self._explained(view, subject, subject.image, subject.target, token)
            note = " ".join(filter(None, (subject.note, result.note)))
            return replace(result, note=note)

        return self._wb.once(key, compute, token)

    def compare(
        self, view: View, token: CancelToken | None = None
    ) -> Iterator[tuple[str, MapsResult]]:
        """("a", the view's maps), then with a rival ("b", the rival's)."""
        view = self._wb.resolve(view)
        for key, rival in self._pair(view).items():
            yield key, self.maps(view, rival, token)

    def photos(self, view: View) -> dict[str, np.ndarray]:
        """The network inputs `[H, W, 3]` that the maps of `compare` lie over, by key."""
        view = self._wb.resolve(view)
        return {
            key: self._wb.prepared(_shown(view, rival)).rgb
            for key, rival in self._pair(view).items()
        }

    @staticmethod
    def _pair(view: View) -> dict[str, str | None]:
        return {"a": None} | ({"b": view.attr_rival} if view.attr_rival else {})

    def evidence(
        self, view: View, rival: str | None = None, token: CancelToken | None = None
    ) -> EvidenceResult:
        """Through which path of each EVSS block the evidence came."""
        view = self._wb.resolve(view)
        subject = self.subject(view, rival)

        def compute() -> EvidenceResult:
            return evidence.evidence(
                subject.model,
                subject.image,
                subject.classes,
                target=subject.target,
                contrast=subject.contrast,
                provenance=subject.provenance,
                token=token,
            )

        return self._wb.once(self._key("evidence", subject), compute, token)

    def attention(
        self, view: View, which: str = "a", token: CancelToken | None = None
    ) -> AttentionResult:
        """Implicit attention of the view's token in one block's scan.

        Under scheme `which`, along which the block scans the same input with the same parameters:
        only the scan differs.
        """
        view = self._wb.resolve(view)
        assert view.y is not None and view.x is not None  # filled in by resolve
        y, x = view.y, view.x
        subject = self.subject(view)
        stage, block = view.stage, view.attr_block
        scan = view.scans[which]
        key = self._key(
            "attention",
            subject,
            stage=stage,
            block=block,
            by=scan,
            y=y,
            x=x,
            channel=view.attr_channel,
        )

        def watch() -> implicit_attention.WatchedScan:
            return implicit_attention.watch_scan(subject.model, subject.image, stage, block, token)

        def compute() -> AttentionResult:
            watched = None
            if implicit_attention.scanning_blocks(subject.model, stage):
                watched = self._watched.get(
                    self._key("watched", subject, stage=stage, block=block), watch
                )
            return implicit_attention.implicit_attention(
                subject.model,
                subject.image,
                stage,
                block,
                y,
                x,
                channel=view.attr_channel,
                scan=None if which == "a" else scan,
                watched=watched,
                provenance=replace(subject.provenance, scan=scan),
                token=token,
            )

        return self._wb.once(key, compute, token)

    def attentions(
        self, view: View, token: CancelToken | None = None
    ) -> dict[str, AttentionResult]:
        """Implicit attention under scheme "a", and under "b" where a model can run it."""
        own = self.attention(view, "a", token)
        if ScanSpec.parse(view.scan_b).is_runnable:
            return {"a": own, "b": self.attention(view, "b", token)}
        missing = f"Scheme {view.scan_b} is the path of another network: nothing is read along it."
        return {"a": replace(own, note=" ".join(filter(None, (own.note, missing))))}

    def faithfulness(
        self, view: View, token: CancelToken | None = None
    ) -> Iterator[Progress | FaithfulnessResult]:
        """Insertion, deletion, infidelity and sensitivity of the view's map and two controls."""
        view = self._wb.resolve(view)
        subject = self.subject(view)
        maps = self.maps(view, None, token)
        name = judged(view, maps)
        key = self._key("faithful", subject, map=name, **_how(view))

        def again(image: np.ndarray) -> np.ndarray:
            return _map(self._explained(view, subject, image, maps.target, token), name).values

        run = faithfulness.faithfulness(
            subject.model,
            subject.image,
            subject.classes,
            maps,
            name,
            again,
            n_noises=_noises(view),
            provenance=subject.provenance,
            token=token,
            seed=SEED,
        )
        yield from self._run(key, run, token)

    def randomisation(
        self, view: View, token: CancelToken | None = None
    ) -> Iterator[Progress | RandomisationResult]:
        """How the view's maps change while the network forgets, from the head to the stem."""
        view = self._wb.resolve(view)
        subject = self.subject(view)
        target = self.maps(view, None, token).target
        key = self._key("sanity", subject, **_how(view))

        def again(model: Any, image: np.ndarray) -> tuple[AttributionMap, ...]:
            other = replace(subject, model=model)
            return self._explained(view, other, image, target, token).maps

        run = randomisation.randomisation(
            subject.model,
            subject.image,
            again,
            method=view.attr_method,
            provenance=subject.provenance,
            token=token,
            seed=SEED,
        )
        yield from self._run(key, run, token)

    def batch(
        self,
        view: View,
        files: Sequence[Path],
        with_faithfulness: bool = False,
        token: CancelToken | None = None,
    ) -> Iterator[Progress | AttributionBatch]:
        """The numbers of the view's method for many photos, with their summary.

        Each photo is explained for the view's class, or for its own most probable one.
        """
        pace = Pace(len(files))
        rows: list[tuple[str, str, dict[str, float]]] = []
        first: MapsResult | None = None
        skipped: list[str] = []
        for number, (file, name) in enumerate(zip(files, names_below(files), strict=True), start=1):
            try:
                photo = self._wb.photos.add(file, name)
                shown = replace(view, photo=photo.id, attr_rival=NONE)
                maps = self.maps(shown, None, token)
                shares = self.evidence(shown, None, token).shares
                numbers = _numbers(maps) | {f"share {path}": v for path, v in shares.items()}
                if with_faithfulness:
                    numbers |= _check_numbers(result_of(self.faithfulness(shown, token)))
            except BadInputError as error:
                why = str(error)  # of a broken file it begins with the name
                skipped.append(why if why.startswith(name) else f"{name}: {why}")
            else:
                first = first or maps
                rows.append((name, maps.target_name, numbers))
            yield pace.at(number, "photos")
            is_final = number == len(files)
            # Ever more rarely: a summary reads all photos before it.
            if first is not None and (is_final or number & (number - 1) == 0):
                yield _summary(first, rows, skipped, is_final)
        if first is None:
            raise BadInputError(f"No photo could be explained. {' '.join(skipped[:3])}")

    # Inside

    def subject(self, view: View, rival: str | None = None) -> Subject:
        """What is explained; the class is the reference's by name, where the rival knows it."""
        if rival is None:
            return self._subject(view, None, view.target, view.contrast)
        own = self._wb.predict(view)
        target = view.target
        if target is None:  # as `targets.resolve_target` chooses it: never the contrast
            falling = np.argsort(-own.logits, kind="stable")
            target = next(int(index) for index in falling if index != view.contrast)
        if rival.startswith(PHOTO):
            return self._subject(_shown(view, rival), None, target, view.contrast)
        found = self._subject(view, rival, None, None)
        names = {name: index for index, name in enumerate(found.classes)}
        wanted = names.get(own.classes[target])
        if wanted is None:
            note = f"This network does not know “{own.classes[target]}”: its most probable class."
            return replace(found, note=note)
        if view.contrast is None:
            return replace(found, target=wanted)
        other = own.classes[view.contrast]
        note = "" if other in names else f"This network does not know “{other}”: no contrast."
        return replace(found, target=wanted, contrast=names.get(other), note=note)

    def _subject(
        self, view: View, rival: str | None, target: int | None, contrast: int | None
    ) -> Subject:
        entry = self._wb.erf_lab.entry(view, rival)
        model = entry.network.module
        assert isinstance(model, models.EfficientVMamba)  # resolve takes no other
        return Subject(
            model=model,
            image=normalise(self._wb.prepared(view).rgb),
            classes=_classes(model),
            provenance=entry.provenance,
            target=target,
            contrast=contrast,
        )

    def _explained(
        self,
        view: View,
        subject: Subject,
        image: np.ndarray,
        target: int | None,
        token: CancelToken | None,
    ) -> MapsResult:
        return explain.explain(
            subject.model,
            image,
            subject.classes,
            view.attr_method,
            target=target,
            contrast=subject.contrast,
            parameters=_options(view),
            provenance=subject.provenance,
            token=token,
            seed=SEED,
        )

    def _run(self, key: str, run: Iterator[Any], token: CancelToken | None) -> Iterator[Any]:
        if (kept := self._wb.results.get(key)) is not None:
            run.close()  # type: ignore[attr-defined]
            yield kept
            return
        for item in self._wb.stepwise(run, token):
            is_last = not isinstance(item, Progress) and item.is_final
            yield self._wb.results.keep(key, item) if is_last else item

    def _key(self, kind: str, subject: Subject, **fields: Any) -> str:
        made = subject.provenance
        return run_key(
            kind,
            version=__version__,
            photo=made.image_sha256,
            crop=made.crop,
            **made.run_fields,
            target=subject.target,
            contrast=subject.contrast,
            note=subject.note,
            **fields,
        )


def _classes(model: EfficientVMamba) -> tuple[str, ...]:
    return choices.class_names(model.weights_info, model.num_classes)


def _shown(view: View, rival: str | None) -> View:
    """The view with the rival's photo, where the rival is one."""
    if rival is None or not rival.startswith(PHOTO):
        return view
    return replace(view, photo=rival.removeprefix(PHOTO))


def _how(view: View) -> dict[str, str]:
    return {"method": view.attr_method, "options": view.attr_options}


def _options(view: View) -> dict[str, Any]:
    return methods.check_parameters(view.attr_method, parsed(view.attr_options))


def parsed(text: str) -> dict[str, str]:
    """ "steps=32,baseline=blur" as a dictionary of texts."""
    found = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise BadInputError(f"{part[:40]!r} is no option of a method: write name=value.")
        found[name.strip()] = value.strip()
    return found


def written(view: View) -> str:
    """The options that differ from the method's defaults, as `parsed` reads them."""
    default = methods.check_parameters(view.attr_method, {})
    given = _options(view)
    return ",".join(f"{name}={value}" for name, value in given.items() if value != default[name])


def _numbers(maps: MapsResult) -> dict[str, float]:
    found = {"probability": maps.probability, "objective": maps.objective}
    for index, one in enumerate(maps.maps):
        if maps.is_density:
            found[f"sum {one.name}"] = float(one.values.sum(dtype=np.float64))
        found[f"half on, {one.name}"] = one.half_share
        if maps.gaps:
            found[f"gap {one.name}"] = maps.gaps[index]
    return found


def _check_numbers(result: FaithfulnessResult) -> dict[str, float]:
    return {
        f"{curve.name} {what}": getattr(curve, what)
        for curve in result.curves
        for what in ("insertion_auc", "deletion_auc", "infidelity", "sensitivity")
    }


def _summary(
    first: MapsResult,
    rows: Sequence[tuple[str, str, dict[str, float]]],
    skipped: Sequence[str],
    is_final: bool,
) -> AttributionBatch:
    """`rows`: name of the photo, of its class, and its numbers."""
    images, targets, numbers = zip(*rows, strict=True)
    columns = tuple(dict.fromkeys(name for row in numbers for name in row))
    values = np.array([[row.get(name, np.nan) for name in columns] for row in numbers])
    known = [column[np.isfinite(column)] for column in values.T]
    mean, low, high = (
        np.array([measure(column) if column.size else np.nan for column in known])
        for measure in (np.mean, lambda c: np.quantile(c, 0.05), lambda c: np.quantile(c, 0.95))
    )
    return AttributionBatch(
        provenance=first.provenance,
        method=first.method,
        images=images,
        skipped=tuple(skipped),
        target_names=targets,
        columns=columns,
        values=values,
        mean=mean,
        low=low,
        high=high,
        is_final=is_final,
    )


def _noises(view: View) -> int:
    """Photos with noise behind the sensitivity: fewer where one map takes many passes."""
    options = _options(view)
    passes = options.get("steps") or options.get("samples") or 1
    if "pieces" in options or "window" in options:
        passes = PASSES_FOR_NOISE
    return max(1, min(faithfulness.N_NOISES, PASSES_FOR_NOISE // int(passes)))


def judged(view: View, maps: MapsResult) -> str:
    """The map of a result that the view looks at: its stage's, or the only one."""
    names = [found.name for found in maps.maps]
    return f"stage{view.stage}" if f"stage{view.stage}" in names else names[-1]


def _map(maps: MapsResult, name: str) -> AttributionMap:
    return next(found for found in maps.maps if found.name == name)
