"""The lab of receptive fields: which networks stand side by side, at which token and photos."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench.bundle import compute_all
from workbench.erf_lab import KEYS
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken, result_of
from workbench.runtime import Workbench
from workbench.view import View

VIEW = View(
    model="efficientvmamba_test", weights="random", size=96, stage=2, erf_images=3, y=5, x=7
)


def compare(wb: Workbench, view: View):
    return result_of(wb.erf_lab.compare(view))


def test_rivals_are_what_they_say(wb):
    view = replace(VIEW, erf_rivals=("scan", "efficientvmamba_tiny", "timm:resnet18"))
    found = compare(wb, view)
    assert list(found.fields) == list(KEYS) and not found.problems and found.is_final
    a, b, c, d = found.fields.values()
    assert (a.provenance.scan, b.provenance.scan) == ("es2d:step=2", "ss2d")
    assert a.provenance.weights_sha256 == b.provenance.weights_sha256
    assert c.provenance.model == "efficientvmamba_tiny" and not c.provenance.is_random
    assert d.provenance.model == "timm:resnet18" and d.provenance.scan == ""
    assert len({field.network for field in found.fields.values()}) == 4
    for field in found.fields.values():
        assert field.mass.shape == (96, 96) and field.n_images == 3
        assert field.mass.sum() == pytest.approx(1, abs=1e-5)
        # The same point of the image, to within half a token.
        assert np.abs(np.subtract(field.centre, a.centre)).max() <= field.stride / 2 + 0.5
    assert a.reach_share < b.reach_share == 1.0 and (a.mass != b.mass).any()


def test_random_weights_are_a_rival_of_trained_ones(wb):
    view = View(size=64, stage=1, erf_images=1, erf_rivals=("random",))
    a, b = compare(wb, view).fields.values()
    assert not a.provenance.is_random and b.provenance.is_random
    assert a.provenance.scan == b.provenance.scan
    assert "random" in {choice.name for choice in wb.erf_lab.rivals(view)}
    assert "random" not in {choice.name for choice in wb.erf_lab.rivals(VIEW)}


def test_a_rival_that_cannot_run_does_not_take_the_others(wb):
    found = compare(wb, replace(VIEW, scan_b="vim", erf_rivals=("scan", "weights")))
    assert list(found.fields) == ["a"] and found.is_final
    (problem,) = found.problems
    assert "another network" in problem


def test_a_unit_that_a_rival_lacks_becomes_its_stage(wb):
    view = replace(VIEW, erf_unit="block1.scan", erf_rivals=("timm:resnet18",))
    a, b = compare(wb, view).fields.values()
    assert (a.unit, b.unit) == ("stage2.block1.scan", "stage2")
    assert "no block 1, scan" in b.note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"erf_unit": "head"}, "block1.scan"),
        ({"erf_definition": "mine"}, "replknet"),
        ({"erf_gates": "open"}, "frozen"),
        ({"erf_scale": "cubic"}, "linear"),
        ({"erf_images": 0}, "1 to 5,000"),
        ({"erf_rivals": ("timm:nothing",)}, "timm:resnet18"),
        ({"erf_rivals": ("file:/etc/passwd",)}, "timm:resnet18"),
        ({"erf_rivals": ("scan",) * 4}, "at most 3"),
        ({"erf_set": ("upload-000000000000",)}, "Upload it again"),
    ],
    ids=str,
)
def test_what_is_not_offered_is_refused_in_words(wb, change, words):
    with pytest.raises(BadInputError, match=words):
        wb.resolve(replace(VIEW, **change))


def test_units_are_those_of_the_stage(wb):
    scanned = dict(wb.erf_lab.units(VIEW))
    assert scanned["stage"] == "stage output"
    assert {f"block1.{path}" for path in ("residual", "scan", "conv", "gate")} <= set(scanned)
    convolved = dict(wb.erf_lab.units(replace(VIEW, stage=3)))
    assert "block1.conv" in convolved and "block1.scan" not in convolved
    assert wb.resolve(replace(VIEW, stage=3, erf_unit="block1.scan")).erf_unit == "stage"


def test_equal_views_share_results_and_every_choice_makes_another(fresh):
    first = result_of(fresh.erf_lab.field(VIEW))
    assert result_of(fresh.erf_lab.field(VIEW)) is first
    assert result_of(fresh.erf_lab.field(replace(VIEW, erf_scale="linear"))) is first
    changes = ({"erf_unit": "block1"}, {"erf_gates": "frozen"}, {"erf_definition": "vmamba"})
    for change in (*changes, {"erf_images": 2}, {"y": 6}):
        assert result_of(fresh.erf_lab.field(replace(VIEW, **change))) is not first
    # The overview's field is the lab's with its defaults.
    again = result_of(fresh.erf(replace(VIEW, erf_gates="frozen"), "a", 3))
    assert again is first


def test_a_stopped_run_keeps_what_it_had(fresh):
    token = CancelToken()
    run = fresh.erf_lab.compare(replace(VIEW, erf_images=3000), token)
    seen = [next(run), next(run), next(run)][-1]
    token.cancel()
    with pytest.raises(CancelledError):
        list(run)
    kept = fresh.erf_lab.kept(replace(VIEW, erf_images=3000))
    assert kept is not None and set(kept.fields) == {"a", "b"}
    assert kept.fields["a"].n_images >= seen.fields["a"].n_images >= 1
    assert not kept.fields["a"].is_final and kept.fields["a"].n_planned == 3000
    assert fresh.erf_lab.kept(VIEW) is None
    whole = compare(fresh, VIEW)
    assert fresh.erf_lab.kept(VIEW).fields["a"] is whole.fields["a"]


def test_a_stopped_field_is_exported_by_the_page_alone(fresh):
    token = CancelToken()
    view = fresh.resolve(replace(VIEW, erf_images=200, erf_rivals=(), tab="erf"))
    next(fresh.erf_lab.compare(view, token))
    assert compute_all(fresh, view, as_shown=True)["erf_a"].n_images < 200
    assert compute_all(fresh, view)["erf_a"].n_images == 200


def test_the_third_scheme_has_a_field_of_its_own(wb):
    view = wb.resolve(replace(VIEW, scan_c="es2d:step=3"))
    assert [result_of(wb.erf(view, w, 1)).provenance.scan for w in "abc"] == [
        *("es2d:step=2", "ss2d", "es2d:step=3"),
    ]


def test_phases_and_paths_of_the_view(wb):
    phases = result_of(wb.erf_lab.phases(VIEW))
    assert {(p.field.y, p.field.x) for p in phases.phases} == {(4, 6), (4, 7), (5, 6), (5, 7)}
    assert result_of(wb.erf_lab.phases(replace(VIEW, stage=3, y=1, x=1))).phases == ()
    paths = result_of(wb.erf_lab.paths(replace(VIEW, erf_gates="frozen")))
    assert paths.n_images == 3 and all(block.error < 1e-5 for block in paths.blocks)


def test_a_trained_twin_runs_with_its_own_weights_and_with_those_of_the_first(fresh, shipped):
    view = replace(VIEW, weights="default", erf_images=1, erf_rivals=("scan", "weights"))
    fields = compare(fresh, view).fields.values()
    assert len({field.network for field in fields}) == 3
    a, b, c = (field.provenance for field in fields)
    assert (a.scan, a.trained_scan) == ("es2d:step=2", "es2d:step=2")
    assert (b.scan, b.trained_scan) == ("ss2d", "ss2d")
    assert (c.scan, c.trained_scan) == ("ss2d", "es2d:step=2")
    labels = {choice.name: choice.label for choice in fresh.erf_lab.rivals(fresh.resolve(view))}
    assert labels["scan"].endswith("own weights") and labels["weights"].endswith("of ES2D")
