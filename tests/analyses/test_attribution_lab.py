"""The lab of attributions: what stands beside, which class is explained, Stop, and many photos."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from workbench.analyses.attribution.methods import METHODS, NOT_OFFERED
from workbench.attribution_lab import PARTS, AttributionLab, Subject
from workbench.bundle import compute_all
from workbench.errors import BadInputError, CancelledError, NotAvailableError
from workbench.files import result_files
from workbench.image_sets import pictures_below
from workbench.permalink import read, write
from workbench.progress import CancelToken, Progress, result_of
from workbench.runtime import Workbench
from workbench.ui.panels import lab_attr_updates
from workbench.view import View

VIEW = View(model="efficientvmamba_test", weights="random", size=64, stage=2, y=2, x=5)


class StopAfter(CancelToken):
    """Cancelled at the n-th look: in the middle of whatever runs."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def check(self) -> None:
        self.left -= 1
        if self.left <= 0:
            self.cancel()
        super().check()


def most_probable(wb: Workbench, view: View = VIEW) -> int:
    return int(wb.predict(view).probabilities.argmax())


# What stands beside


@pytest.mark.parametrize(
    ("rival", "model", "scan", "image"),
    [
        ("scan", "efficientvmamba_test", "ss2d", "chelsea"),
        ("weights", "efficientvmamba_test", "ss2d", "chelsea"),
        ("random", "efficientvmamba_test", "es2d:step=2", "chelsea"),
        ("efficientvmamba_small", "efficientvmamba_small", "es2d:step=2", "chelsea"),
        ("photo:coffee", "efficientvmamba_test", "es2d:step=2", "coffee"),
    ],
)
def test_a_rival_is_what_it_says_and_explains_the_same_class(
    wb: Workbench, rival: str, model: str, scan: str, image: str
) -> None:
    view = replace(VIEW, attr_rival=rival)
    pair = dict(wb.attribution_lab.compare(view))
    assert list(pair) == ["a", "b"]
    a, b = pair.values()
    assert a.target == b.target == most_probable(wb) and a.target_name == b.target_name
    made = b.provenance
    assert (made.model, made.scan, made.image) == (model, scan, image)
    assert a.provenance.image == "chelsea" and a.provenance.scan == "es2d:step=2"
    assert [m.name for m in b.maps] == ["stage1", "stage2", "stage3", "stage4"]
    assert [m.values.shape for m in b.maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    photos = wb.attribution_lab.photos(view)
    assert list(photos) == ["a", "b"] and photos["b"].shape == (64, 64, 3)
    assert (photos["a"] == photos["b"]).all() == (image == "chelsea")


def test_what_stands_beside_really_differs(wb: Workbench) -> None:
    maps = [
        wb.attribution_lab.maps(VIEW, rival).maps[0].values
        for rival in (None, "scan", "efficientvmamba_small", "photo:coffee")
    ]
    for i, one in enumerate(maps):
        assert not any(np.array_equal(one, other) for other in maps[:i])


def test_nothing_beside_is_one_result(wb: Workbench) -> None:
    assert list(dict(wb.attribution_lab.compare(VIEW))) == ["a"]
    assert list(wb.attribution_lab.photos(VIEW)) == ["a"]
    offered = {choice.name for choice in wb.attribution_lab.rivals(wb.resolve(VIEW))}
    assert {"scan", "efficientvmamba_tiny"} <= offered
    for name in offered:  # no name of timm: its stages are not those of the methods
        assert wb.resolve(replace(VIEW, attr_rival=name)).attr_rival == name


def test_the_class_is_found_by_its_name(fresh: Workbench, shipped: tuple[str, ...]) -> None:
    """The rival knows the 1,000 classes of ImageNet, the reference ten with "church" first."""
    view = replace(VIEW, weights="default", target=0)
    assert fresh.attribution_lab.classes(view) == shipped
    own, rival = (fresh.attribution_lab.maps(view, name) for name in (None, "random"))
    assert (own.target, own.target_name) == (0, "church")
    assert (rival.target, rival.target_name) == (497, "church") and "know" not in rival.note
    twin = fresh.attribution_lab.maps(view, "scan")
    assert (twin.target, twin.provenance.trained_scan) == (0, "ss2d")


def test_a_rival_that_does_not_know_the_class_says_so(
    fresh: Workbench, shipped: tuple[str, ...]
) -> None:
    view = replace(VIEW, weights="default", target=4)
    assert shipped[4] == "thing 3"
    rival = fresh.attribution_lab.maps(view, "random")
    assert "does not know “thing 3”" in rival.note and "most probable" in rival.note
    assert rival.target == most_probable(fresh)
    # The class is known, the one that it is set against is not: said as well.
    view = replace(view, target=0, contrast=4)
    rival = fresh.attribution_lab.maps(view, "random")
    assert (rival.target_name, rival.contrast) == ("church", None)
    assert "does not know “thing 3”" in rival.note
    assert fresh.attribution_lab.maps(view).contrast == 4


@pytest.mark.parametrize("rival", [None, "scan", "photo:coffee"])
def test_the_most_probable_class_as_contrast_leaves_the_next_one(
    wb: Workbench, rival: str | None
) -> None:
    order = np.argsort(-wb.predict(VIEW).logits)
    found = wb.attribution_lab.maps(replace(VIEW, contrast=int(order[0])), rival)
    assert (found.target, found.contrast) == (order[1], order[0])
    if rival is None:
        assert found.objective == pytest.approx(
            float(np.diff(wb.predict(VIEW).logits[order[:2]])[0]), rel=1e-4
        )


def test_a_scheme_that_this_network_cannot_run(wb: Workbench) -> None:
    view = wb.resolve(replace(VIEW, scan_b="vim"))
    found = wb.attribution_lab.results(view, {"maps", "attention"})
    assert set(found) == {"maps_a", "attention_a"}
    with pytest.raises(NotAvailableError, match="another network"):
        wb.attribution_lab.maps(view, "scan")
    assert "vim is the path of another network" in found["attention_a"].note
    *_, shown = lab_attr_updates(wb, replace(view, attr_rival="scan"), CancelToken())
    assert shown.payload is not None and len(shown.payload["maps"]) == 5, "scheme A stays"
    assert "another network" in shown.payload["notes"][-1]
    # Path only: there is nothing to explain, but its classes have names.
    assert len(wb.attribution_lab.classes(replace(view, scan_a="vim"))) == 1000


# The cache


def test_equal_views_share_results_and_every_choice_makes_another(fresh: Workbench) -> None:
    lab = fresh.attribution_lab
    view = replace(VIEW, attr_method="integrated_gradients", attr_options="steps=4")
    first = lab.maps(view)
    for same in (
        {"attr_options": " baseline=blur, steps=4.0 "},
        {"attr_block": 2},
        {"attr_channel": 3, "attr_sanity": True},
        {"erf_scale": "linear", "tab": "attribution"},
    ):
        assert lab.maps(replace(view, **same)) is first
    for other in (
        {"attr_options": "steps=5"},
        {"attr_options": "steps=4,baseline=black"},
        {"attr_method": "saliency", "attr_options": ""},
        {"target": 3},
        {"contrast": 3},
        {"scan_a": "ss2d"},
        {"photo": "coffee"},
        {"size": 96},
        {"fit": "whole"},
    ):
        assert lab.maps(replace(view, **other)) is not first
    # Scheme B is what another view has as its own.
    assert lab.maps(view, "scan") is lab.maps(replace(view, scan_a="ss2d", target=first.target))


def test_every_part_is_computed_once(fresh: Workbench) -> None:
    view = fresh.resolve(replace(VIEW, attr_sanity=True, attr_rival="scan", tab="attribution"))
    first = fresh.attribution_lab.results(view)
    expected = ("maps_a", "maps_b", "evidence", "attention_a", "attention_b", *PARTS[3:])
    assert tuple(first) == expected
    again = compute_all(fresh, view)
    assert all(again[name] is first[name] for name in expected) and len(again) == len(first)
    assert "randomisation" not in compute_all(fresh, replace(view, attr_sanity=False))
    for name in ("faithfulness", "randomisation"):
        (only,) = getattr(fresh.attribution_lab, name)(view)
        assert only is first[name] and only.is_final
    assert first["faithfulness"].map_name == "stage2" == f"stage{view.stage}"


def test_attention_is_of_the_views_token_block_and_channel(wb: Workbench) -> None:
    lab = wb.attribution_lab
    mean, one = lab.attention(VIEW), lab.attention(replace(VIEW, attr_channel=3))
    assert (mean.stage, mean.block, mean.y, mean.x, mean.channel) == (2, 1, 2, 5, None)
    assert one.channel == 3 and not np.array_equal(one.rows, mean.rows)
    assert lab.attention(VIEW, "b").provenance.scan == "ss2d"
    assert lab.attention(replace(VIEW, x=4)) is not mean
    assert not lab.attention(replace(VIEW, stage=3)).has_scan
    with pytest.raises(BadInputError, match=f"Choose one from 0 to {mean.n_channels - 1}"):
        lab.attention(replace(VIEW, attr_channel=mean.n_channels))


# What was asked for


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attr_method": "deep_lift"}, "needs a rule for every layer"),
        ({"attr_method": "score_cam"}, "Choose one of grad_cam"),
        ({"attr_options": "steps=4"}, "Its fields: none"),
        ({"attr_method": "occlusion", "attr_options": "depth=4"}, "window, stride, baseline"),
        ({"attr_method": "lrp", "attr_options": "steps"}, "write name=value"),
        ({"attr_method": "layer_ig", "attr_options": "steps=0"}, "from 1 to 1024"),
        ({"attr_method": "layer_ig", "attr_options": "steps=2.5"}, "whole number"),
        ({"attr_method": "layer_ig", "attr_options": "steps=nan"}, "whole number"),
        ({"attr_method": "layer_ig", "attr_options": "baseline=white"}, "blur, mean, black, noise"),
        ({"target": 7, "contrast": 7}, "cannot be compared with itself"),
        ({"contrast": 1000}, "0 to 999"),
        ({"contrast": -1}, "0 to 999"),
        ({"attr_block": 0}, "count from 1"),
        ({"attr_channel": -1}, "count from 0"),
        ({"attr_rival": "photo:nobody"}, "Choose one of: chelsea"),
        ({"fit": "whole", "attr_rival": "photo:astronaut"}, "Choose fit=crop"),
        ({"attr_rival": "photo:upload-000000000000"}, "Upload it again"),
        ({"attr_rival": "photo:../../etc/passwd"}, "Choose one of: chelsea"),
        ({"attr_rival": "timm:resnet18"}, "Choose one of: scan, weights, random"),
        ({"attr_rival": "file:/etc/passwd"}, "photo:NAME"),
    ],
    ids=str,
)
def test_what_is_not_offered_is_refused_in_words(
    wb: Workbench, change: dict[str, object], words: str
) -> None:
    with pytest.raises(BadInputError, match=words):
        wb.resolve(replace(VIEW, **change))


@pytest.mark.parametrize("method", NOT_OFFERED)
def test_a_method_that_does_not_apply_gives_its_reason(wb: Workbench, method: str) -> None:
    with pytest.raises(BadInputError) as caught:
        wb.attribution_lab.maps(replace(VIEW, attr_method=method))
    assert NOT_OFFERED[method] in str(caught.value)


def test_options_are_written_one_way(wb: Workbench) -> None:
    def options(method: str, text: str) -> str:
        return wb.resolve(replace(VIEW, attr_method=method, attr_options=text)).attr_options

    assert options("integrated_gradients", "baseline=mean, steps=64.0") == "steps=64,baseline=mean"
    assert options("integrated_gradients", "steps=32,baseline=blur") == ""
    assert options("smoothgrad", "noise=0.150,samples=8") == "samples=8"
    assert options("smoothgrad", ",noise=1e-1,") == "noise=0.1"
    for name, method in METHODS.items():
        given = ",".join(f"{field.name}={field.default}" for field in method.fields)
        assert options(name, given) == ""


def test_a_block_beyond_the_stage_is_its_last(wb: Workbench) -> None:
    assert wb.resolve(replace(VIEW, attr_block=9)).attr_block == 1
    assert wb.resolve(replace(VIEW, stage=3, attr_block=9)).attr_block == 2


def test_a_link_to_the_lab_opens_and_names_what_it_cannot_use(wb: Workbench) -> None:
    wanted = replace(
        VIEW,
        tab="attribution",
        target=1,
        contrast=2,
        attr_method="smoothgrad",
        attr_options="samples=4,noise=0.1",
        attr_rival="photo:coffee",
        attr_channel=3,
        attr_sanity=True,
    )
    query = dict(part.split("=", 1) for part in write(wanted).split("&"))
    link = read(query, wb.resolve)
    assert link.view == wanted and not link.ignored
    bad = {"contrast": "1", "method": "deep_lift", "block": "0", "beside": "timm:resnet18"}
    link = read(query | bad, wb.resolve)
    # Options of another method go with it.
    assert {sentence.partition("=")[0] for sentence in link.ignored} == {*bad, "options"}
    kept = replace(wanted, contrast=None, attr_method="grad_cam", attr_options="", attr_rival="")
    assert link.view == kept


# Stop


@pytest.fixture
def watched(
    fresh: Workbench, monkeypatch: pytest.MonkeyPatch, n_hooks: Callable
) -> Iterator[Workbench]:
    """A workbench that must end with a free device and without a hook on any network."""
    seen: list[Subject] = []
    subject = AttributionLab.subject

    def remembered(self: AttributionLab, *arguments: object) -> Subject:
        seen.append(subject(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(AttributionLab, "subject", remembered)
    yield fresh
    assert seen and fresh.lock.n_waiting == 0
    assert all(n_hooks(one.model) == 0 for one in seen)
    assert n_hooks(fresh.weighted(VIEW, "a")) == 0


@pytest.mark.parametrize("n_items", [1, 3, 12])
def test_stop_during_faithfulness(watched: Workbench, n_items: int) -> None:
    token = CancelToken()
    run = watched.attribution_lab.faithfulness(VIEW, token)
    items = [next(run) for _ in range(n_items)]
    assert isinstance(items[0], Progress) and watched.lock.n_waiting == 0
    token.cancel()
    with pytest.raises(CancelledError):
        list(run)
    assert watched.lock.n_waiting == 0
    # Nothing unfinished was kept, and the next run is whole.
    assert result_of(watched.attribution_lab.faithfulness(VIEW)).is_final


@pytest.mark.parametrize("method", METHODS)
def test_stop_inside_a_method(watched: Workbench, method: str) -> None:
    view = watched.resolve(replace(VIEW, attr_method=method))
    with pytest.raises(CancelledError):
        watched.attribution_lab.maps(view, None, StopAfter(2))
    with pytest.raises(CancelledError):
        result_of(watched.attribution_lab.randomisation(view, StopAfter(12)))


def test_a_run_that_is_left_alone_frees_the_device(watched: Workbench) -> None:
    run = watched.attribution_lab.randomisation(VIEW)
    next(run)
    run.close()
    assert watched.lock.n_waiting == 0


# Many photos


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, two of one name, one whose name no encoding has, and one that is none."""
    rng = np.random.default_rng(0)
    names = ("one.png", "below/one.png", os.fsdecode(b"=\xff.png"))
    for i, name in enumerate(names):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 255, (9, 7 + i, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((90, 80)).save(file)
    (tmp_path / "photos" / "zz.png").write_bytes(b"no picture")
    return tmp_path / "photos"


def test_a_batch_over_a_folder(wb: Workbench, folder: Path) -> None:
    view = replace(VIEW, attr_method="integrated_gradients", attr_options="steps=2")
    items = list(wb.attribution_lab.batch(view, pictures_below(folder)))
    progress = [item for item in items if isinstance(item, Progress)]
    assert [(p.done, p.total) for p in progress] == [(n, 4) for n in (1, 2, 3, 4)]
    results = [item for item in items if not isinstance(item, Progress)]
    assert [r.is_final for r in results] == [*[False] * (len(results) - 1), True]
    found = results[-1]
    assert found.images == ("=?.png", "below/one.png", "one.png")
    (skipped,) = found.skipped
    assert skipped.startswith("zz.png") and "not a picture" in skipped
    assert skipped.count("zz.png") == 1
    assert found.values.shape == (3, len(found.columns)) and found.method == view.attr_method
    # The summary is numpy's own.
    np.testing.assert_allclose(found.mean, np.nanmean(found.values, 0))
    np.testing.assert_allclose(found.low, np.nanpercentile(found.values, 5, axis=0))
    np.testing.assert_allclose(found.high, np.nanpercentile(found.values, 95, axis=0))
    # A line is what the lab says of that photo alone.
    photo = wb.photos.add(folder / "below" / "one.png")
    alone = wb.attribution_lab.maps(replace(view, photo=photo.id))
    line = dict(zip(found.columns, found.values[1], strict=True))
    assert found.target_names[1] == alone.target_name
    assert line["probability"] == alone.probability and line["gap input"] == alone.gaps[0]
    assert line["sum input"] == pytest.approx(float(alone.maps[0].values.sum(dtype=np.float64)))
    shares = [value for name, value in line.items() if name.startswith("share ")]
    assert len(shares) == 3 and sum(shares) == pytest.approx(1)
    cells = np.sort(np.abs(alone.maps[0].values.astype(np.float64)).ravel())[::-1]
    n = round(line["half on, input"] * cells.size)
    assert cells[:n].sum() >= cells.sum() / 2 > cells[: n - 1].sum()


def test_the_table_of_a_batch(wb: Workbench, folder: Path) -> None:
    batch = result_of(wb.attribution_lab.batch(VIEW, pictures_below(folder)))
    files = result_files(
        {"batch": batch}, ["csv", "json", "html", "zip"], name="attribute", title="", rgb=None
    )
    assert set(files) == {"batch.csv", "batch.json", "attribute.html", "attribute.zip"}
    head, *lines = csv.reader(files["batch.csv"].decode().splitlines())
    assert head == ["image", "class", *batch.columns]
    # A name that starts like a formula is text to a spreadsheet.
    names = ["'=?.png", "below/one.png", "one.png", "mean", "p05", "p95"]
    assert [line[0] for line in lines] == names
    table = np.vstack([batch.values, batch.mean, batch.low, batch.high])
    read_back = [[float(cell or "nan") for cell in line[2:]] for line in lines]
    np.testing.assert_allclose(read_back, table, rtol=1e-5)


def test_a_batch_with_its_checks(wb: Workbench, folder: Path) -> None:
    files = [folder / "one.png", folder / "zz.png"]
    found = result_of(wb.attribution_lab.batch(VIEW, files, with_faithfulness=True))
    assert found.is_final and found.images == ("one.png",)
    photo = wb.photos.add(folder / "one.png")
    check = result_of(wb.attribution_lab.faithfulness(replace(VIEW, photo=photo.id)))
    line = dict(zip(found.columns, found.values[0], strict=True))
    for curve in check.curves:
        assert line[f"{curve.name} insertion_auc"] == curve.insertion_auc
        assert line[f"{curve.name} deletion_auc"] == curve.deletion_auc
    np.testing.assert_array_equal(found.mean, found.values[0])


def test_a_batch_of_nothing(wb: Workbench, folder: Path) -> None:
    with pytest.raises(BadInputError, match="zz.png"):
        result_of(wb.attribution_lab.batch(VIEW, [folder / "zz.png"]))
    with pytest.raises(BadInputError, match="No photo"):
        result_of(wb.attribution_lab.batch(VIEW, []))
    token = CancelToken()
    token.cancel()
    with pytest.raises(CancelledError):
        result_of(wb.attribution_lab.batch(VIEW, pictures_below(folder), False, token))
