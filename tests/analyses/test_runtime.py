"""The facade: names are checked, results are kept and shared, sessions never mix, Stop works."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import WeightsInfo, with_scan
from workbench import choices
from workbench.errors import BadInputError, CancelledError, NotAvailableError
from workbench.image_sets import ErfImages
from workbench.photos import PhotoLibrary
from workbench.progress import CancelToken, Progress
from workbench.results import ErfResult, ProfileResult
from workbench.runtime import Workbench
from workbench.settings import Settings
from workbench.view import View

VIEW = View(model="efficientvmamba_test", weights="random", photo="chelsea", size=128)


def last(items):
    *_, item = items
    return item


# Names


def test_the_view_is_filled_in(wb):
    view = wb.resolve(replace(VIEW, scan_a="es2d"))
    assert (view.y, view.x) == (8, 8) and view.scan_a == "es2d:step=2"
    assert wb.resolve(view) == view
    outside = wb.resolve(replace(VIEW, stage=4, y=99, x=-5))
    assert (outside.y, outside.x) == (3, 0)


def test_a_whole_photo_keeps_its_shape(wb):
    view = replace(VIEW, fit="whole", photo="chelsea")
    rows, columns, stride = wb.stage_shape(view, 1)
    assert (rows, columns, stride) == (24, 32, 4)
    assert wb.predict(view).provenance.input_size == (96, 128)
    assert wb.scan(replace(view, stage=2)).index.shape == (4, 6 * 8)
    assert wb.attribution(view).maps[3].shape == (3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "resnet18"}, "no model 'resnet18'. Choose one of: efficientvmamba_tiny"),
        ({"weights": "/etc/passwd"}, "no set of weights '/etc/passwd'. Choose one of:"),
        ({"weights": "hf:a/b"}, "no set of weights 'hf:a/b'"),
        ({"photo": "../x.png"}, "no photo '../x.png'. Choose one of: chelsea"),
        ({"size": 225}, "size 225 px is not offered. Choose one of: 64, 128, 224, 384, 512, 1024"),
        ({"fit": "stretch"}, "no fit 'stretch'. Choose one of: crop, whole"),
        ({"stage": 5}, "no stage 5"),
        ({"scan_a": "helix"}, "unknown scan scheme 'helix'; known are"),
        ({"scan_b": "es2d:step=0"}, "step is 0; it must be >= 1"),
        ({"scan_c": "windows:size=999"}, "size is 999"),
        ({"target": 1000}, "no class 1000. This model knows 1000 classes, 0 to 999"),
        ({"target": -1}, "no class -1"),
    ],
    ids=str,
)
def test_unknown_names_are_refused_in_words(wb, change, message):
    with pytest.raises(BadInputError) as caught:
        wb.resolve(replace(VIEW, **change))
    assert message in str(caught.value)


def test_which_is_a_scan_of_the_view(wb):
    with pytest.raises(BadInputError, match="no scan 'c' in this view. It has a and b"):
        wb.predict(VIEW, "c")
    with pytest.raises(BadInputError, match="It has a, b and c"):
        wb.scan(replace(VIEW, scan_c="hilbert"), "d")


@pytest.mark.parametrize("name", ["cascade2d", "vim", "groupmamba", "msvmamba"])
def test_another_networks_path_is_drawn_and_nothing_else(wb, name):
    view = replace(VIEW, scan_a=name)
    path = wb.scan(view)
    assert not path.is_runnable and not path.is_verified and path.index.size
    assert wb.reach(view).mean_reach > 0
    for call in (wb.predict, wb.attribution):
        with pytest.raises(NotAvailableError, match="needs another network.*choose a scan"):
            call(view)


def test_every_runnable_scheme_predicts_and_is_verified(wb):
    for choice in wb.scans():
        if not choice.why_not:
            view = replace(VIEW, scan_a=choice.name, stage=1)
            assert wb.scan(view).is_verified, choice.name
            assert np.isfinite(wb.predict(view).logits).all(), choice.name


def test_the_story_has_small_maps_and_the_stages_numbers(wb):
    atrous, full = wb.story(VIEW, 8)
    assert (atrous.height, atrous.width) == (8, 8) == (full.height, full.width)
    assert atrous.is_verified and full.is_verified
    rows, columns, _ = wb.stage_shape(VIEW, VIEW.stage)
    assert atrous.metrics["tokens_scanned"] == rows * columns
    assert full.metrics["tokens_scanned"] == 4 * rows * columns


def test_the_table_of_schemes_has_those_of_the_view(wb):
    view = replace(VIEW, scan_b="windows:size=3")
    *_, last = wb.scheme_table(view, measure=False)
    assert last.is_final and "windows:size=3" in {row.scan for row in last.rows}
    assert {row.status for row in last.rows} == {"not measured", "path only"}


def test_a_device_that_is_not_here_is_named():
    if torch.cuda.is_available():
        assert Workbench(Settings(device="cuda")).backend == "triton"
    else:
        with pytest.raises(NotAvailableError, match="no CUDA device"):
            Workbench(Settings(device="cuda"))


def test_choices_are_in_words(wb):
    names = {choice.name: choice for choice in wb.models()}
    assert names["efficientvmamba_tiny"].label == "Tiny"
    assert names["efficientvmamba_tiny"].n_parameters == 6_493_660
    assert names["efficientvmamba_tiny"].macs_224 == pytest.approx(0.788e9, rel=2e-3)
    scans = {choice.name: choice for choice in wb.scans()}
    assert list(scans)[:9] == [*(f"es2d:step={step}" for step in range(1, 9)), "ss2d"]
    assert {"windows:size=2", "windows:size=7", "hilbert", "random:seed=0"} <= set(scans)
    assert scans["hilbert"].why_not == "" and scans["vim"].why_not.startswith("needs another")
    assert wb.weights("efficientvmamba_test")[-1].name == "random"
    header = wb.describe(VIEW)
    assert header.model_label == "EfficientVMamba-Test" and header.weights_label == "random, seed 0"
    assert header.is_random and "random" in header.sentences[0]
    assert header.device_label and header.backend_label in ("numba kernel", "Triton kernel")


# Weights and what they mean


def trained(scan: str) -> WeightsInfo:
    return WeightsInfo(name=f"own-{scan}", description="trained", trained_scan=scan, n_classes=10)


@pytest.mark.parametrize(
    ("shipped", "scan", "scan_a", "wanted"),
    [
        (["es2d:step=2", "ss2d"], "ss2d", "es2d:step=2", "ss2d"),
        (["es2d:step=2", "ss2d"], "es2d:step=3", "ss2d", "ss2d"),
        (["es2d:step=2"], "ss2d", "es2d:step=2", "es2d:step=2"),
        (["es2d:step=2"], "es2d:step=4", "es2d:step=4", "es2d:step=2"),
        ([], "ss2d", "ss2d", None),
    ],
)
def test_which_weights_default_means(monkeypatch, shipped, scan, scan_a, wanted):
    monkeypatch.setattr(
        choices.models, "available_weights", lambda _: [trained(scan) for scan in shipped]
    )
    info = choices.shipped_weights("efficientvmamba_tiny", "default", scan, scan_a)
    assert (info.trained_scan if info else None) == wanted


def test_default_weights_become_random_where_none_ship(wb, monkeypatch):
    monkeypatch.setattr(choices.models, "available_weights", lambda _: [])
    assert wb.resolve(replace(VIEW, weights="default")).weights == "random"


def test_each_scan_gets_the_weights_trained_with_it(fresh, shipped):
    view = fresh.resolve(replace(VIEW, weights="default", target=9))
    listed = [choice.name for choice in fresh.weights(view.model)]
    assert listed == ["default", "test-es2d", "test-ss2d", "random"]
    a, b = fresh.predict(view, "a"), fresh.predict(view, "b")
    assert a.classes == b.classes == shipped and not a.provenance.is_random
    assert a.provenance.trained_scan == "es2d:step=2" and b.provenance.trained_scan == "ss2d"
    assert a.provenance.weights_sha256 != b.provenance.weights_sha256
    assert a.note == b.note == "This model knows ten classes; none is in this photo."
    header = fresh.describe(view)
    assert header.sentences == ()
    assert header.weights_label == "trained with es2d:step=2; trained with ss2d"
    assert header.weights_short == "ES2D 50.0 %, Full scan 50.0 %"
    assert fresh.attribution(view).target_name == "thing 8"
    with pytest.raises(BadInputError, match="knows 10 classes"):
        fresh.resolve(replace(view, target=10))


def test_named_weights_are_those_of_both_scans(fresh, shipped):
    view = fresh.resolve(replace(VIEW, weights="test-ss2d"))
    a, b = (fresh.predict(view, which).provenance for which in "ab")
    assert a.weights_sha256 == b.weights_sha256 and a.trained_scan == "ss2d"
    assert fresh.describe(view).sentences == (
        "ES2D, step 2 is not what these weights were trained with (Full scan (SS2D)).",
    )


def test_a_scan_without_weights_of_its_own_borrows_those_of_scan_a(fresh, shipped):
    view = replace(VIEW, weights="default", scan_b="es2d:step=3")
    a, b = fresh.predict(view, "a"), fresh.predict(view, "b")
    assert a.provenance.weights_sha256 == b.provenance.weights_sha256
    words = "ES2D, step 3 is not what these weights were trained with (ES2D, step 2)."
    assert words in b.note and words not in a.note
    assert fresh.describe(view).sentences == (words,)
    assert "Not what it was trained with" in fresh.scan(view, "b").note


@pytest.mark.parametrize(
    ("contains", "note"),
    [
        ((), "This model knows ten classes; none is in this photo."),
        (("church",), ""),
        (None, "This model knows ten classes: church, 1, 2, 3, 4, 5, 6, 7, 8, 9."),
    ],
    ids=["gallery", "shows a class", "upload"],
)
def test_ten_classes_are_said_in_words(contains, note):
    classes = ("church", *map(str, range(1, 10)))
    info = replace(trained("ss2d"), classes=classes)
    assert choices.prediction_note(info, classes, contains, "ss2d") == note
    swapped = choices.prediction_note(info, classes, contains, "es2d:step=2")
    assert "ES2D, step 2 is not what these weights were trained with" in swapped


def test_random_weights_predict_nothing(wb):
    result = wb.predict(VIEW)
    assert result.note == "Random weights: the prediction means nothing."
    assert result.provenance.is_random and result.provenance.seed == 0
    assert len(result.classes) == 1000 and result.classes[0] == "tench"
    assert result.probabilities.sum() == pytest.approx(1.0, abs=1e-5)


# Results


def test_a_result_says_how_it_was_made(wb):
    result = wb.scan(VIEW, "b")
    p = result.provenance
    photo = wb.photos.get("chelsea")
    assert (p.model, p.scan, p.image, p.image_sha256) == (
        "efficientvmamba_test",
        "ss2d",
        "chelsea",
        photo.sha256,
    )
    assert p.crop == (0, 75, 300, 300) and p.input_size == (128, 128)
    assert p.weights_sha256 and p.definition and p.device and p.backend and p.seconds > 0
    assert p.versions["torch"] == torch.__version__


def test_equal_views_give_the_same_object(fresh):
    for which in ("a", "b"):
        assert fresh.predict(VIEW, which) is fresh.predict(VIEW, which)
        assert fresh.scan(VIEW, which) is fresh.scan(VIEW, which)
        assert fresh.attribution(VIEW, which) is fresh.attribution(VIEW, which)
        assert last(fresh.profile(VIEW, which)) is last(fresh.profile(VIEW, which))
        again = list(fresh.erf(VIEW, which, 3)), list(fresh.erf(VIEW, which, 3))
        assert again[0][-1] is again[1][-1] and len(again[1]) == 1
    assert fresh.predict(VIEW, "a") is not fresh.predict(VIEW, "b")


def test_only_what_matters_makes_another_result(fresh):
    base = fresh.attribution(VIEW)
    assert fresh.attribution(replace(VIEW, stage=3, y=1, x=1)) is base
    assert fresh.attribution(replace(VIEW, scan_b="es2d:step=3")) is base
    assert fresh.attribution(replace(VIEW, target=5)) is not base
    assert fresh.attribution(replace(VIEW, photo="coffee")) is not base
    profile = last(fresh.profile(VIEW))
    assert last(fresh.profile(replace(VIEW, photo="coffee"))) is profile
    field = last(fresh.erf(VIEW, n_images=2))
    assert last(fresh.erf(replace(VIEW, y=8, x=8), n_images=2)) is field
    assert last(fresh.erf(replace(VIEW, y=-1), n_images=2)) is not field


def test_kept_results_cannot_be_changed(wb):
    result = wb.predict(VIEW)
    with pytest.raises(ValueError, match="read-only"):
        result.probabilities[0] = 1.0


def test_the_scan_changes_the_numbers_and_the_model_stays(fresh):
    a, b = fresh.predict(VIEW, "a"), fresh.predict(VIEW, "b")
    assert np.abs(a.logits - b.logits).max() > 1e-6
    assert Workbench(Settings()).predict(VIEW, "a").logits == pytest.approx(a.logits, abs=1e-6)


def test_the_images_of_a_field(wb):
    photos = PhotoLibrary(Settings())
    view = replace(VIEW, fit="whole")
    images = ErfImages(photos, "coffee", wb.prepared(replace(view, photo="coffee")), 20, seed=0)
    again = ErfImages(photos, "coffee", wb.prepared(replace(view, photo="coffee")), 20, seed=0)
    assert images.digest == again.digest
    assert ErfImages(photos, "coffee", wb.prepared(VIEW), 20, seed=1).digest != images.digest
    names = [name for name, _ in images]
    assert names[0] == "coffee" and len(set(names)) == 20
    assert len({image.shape for _, image in images}) == 1
    for crop in images.crops:
        photo = photos.get(crop.photo)
        assert 0 <= crop.top <= photo.height - crop.height
        assert 0 <= crop.left <= photo.width - crop.width
        height, width = images[0][1].shape[1:]
        assert crop.height / crop.width == pytest.approx(height / width, rel=0.02)


def test_field_with_any_number_of_images(wb):
    counts = [r.n_images for r in wb.erf(VIEW, n_images=6)]
    assert counts[0] == 1 and counts[-1] == 6
    for n in (0, 5001):
        with pytest.raises(BadInputError, match="from 1 to 5,000"):
            last(wb.erf(VIEW, n_images=n))


# Sessions side by side


def test_threads_with_other_views_do_not_mix(fresh):
    """Answers of many threads on one shared model equal those of one thread alone."""
    views = [
        replace(VIEW, scan_a=scan, photo=photo, stage=stage)
        for scan in ("es2d:step=1", "es2d:step=2", "es2d:step=3", "ss2d")
        for photo, stage in (("chelsea", 1), ("coffee", 2))
    ]

    def work(wb: Workbench, view: View) -> tuple[np.ndarray, ...]:
        field = last(wb.erf(view, n_images=2))
        a = wb.attribution(view)
        return (wb.predict(view).logits, wb.scan(view).index, a.maps[1], field.mass)

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda view: work(fresh, view), views))
    alone = Workbench(Settings())
    for view, found in zip(views, together, strict=True):
        for a, b in zip(found, work(alone, view), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


def test_equal_requests_at_once_are_computed_once(fresh):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: fresh.attribution(VIEW), range(4)))
    assert all(result is results[0] for result in results)


def test_a_paused_run_does_not_hold_the_device(fresh):
    paused = fresh.erf(VIEW, n_images=8)
    assert next(paused).n_images == 1
    assert fresh.predict(VIEW).logits.shape == (1000,)
    assert last(paused).n_images == 8


def test_a_waiting_run_sees_who_is_ahead_and_can_be_stopped(fresh):
    with fresh.lock.hold():
        run = fresh.profile(VIEW, token=(token := CancelToken()))
        assert next(run) == Progress(0, 1, "waiting for 1 other run")
        token.cancel()
        with pytest.raises(CancelledError):
            next(run)
        stopped = CancelToken()
        threading.Timer(0.05, stopped.cancel).start()
        with pytest.raises(CancelledError):
            fresh.attribution(VIEW, token=stopped)
    assert fresh.lock.n_waiting == 0
    assert isinstance(last(fresh.profile(VIEW)), ProfileResult)


def test_the_device_is_handed_out_in_order(fresh):
    order: list[int] = []
    threads = []
    with fresh.lock.hold():
        for i in range(5):

            def wait(i: int = i) -> None:
                with fresh.lock.hold():
                    order.append(i)

            threads.append(threading.Thread(target=wait))
            threads[-1].start()
            while fresh.lock.n_waiting < i + 2:
                pass
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_every_worker_thread_uses_the_same_number_of_cpu_threads():
    """OpenMP counts per thread: one that began while another count was set must not keep it."""
    torch.set_num_threads(2)
    wb = Workbench(Settings())
    torch.set_num_threads(1)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 1
        pool.submit(wb.predict, VIEW).result()
        assert pool.submit(torch.get_num_threads).result() == 2


def test_thirty_stopped_runs_leave_nothing_behind(fresh, n_hooks):
    before = fresh.predict(VIEW).logits
    shared = fresh.weighted(fresh.resolve(VIEW), "a")
    rng = random.Random(1)
    for i in range(30):
        token = CancelToken()
        view = replace(VIEW, photo=("coffee", "rocket")[i % 2], target=i)
        timer = threading.Timer(rng.uniform(0.0, 0.03), token.cancel)
        timer.start()
        try:
            if i % 3 == 0:
                last(fresh.erf(view, n_images=64, token=token))
            elif i % 3 == 1:
                last(fresh.profile(view, "ab"[i % 2], token=token))
            else:
                fresh.attribution(view, token=token)
        except CancelledError:
            pass
        timer.join()
        assert n_hooks(shared) == 0 and fresh.lock.n_waiting == 0
        assert torch.is_grad_enabled()
    with torch.no_grad():
        again = with_scan(shared, "es2d")(torch.from_numpy(fresh.input(VIEW))[None])[0].numpy()
    np.testing.assert_allclose(again, before, atol=1e-6)


def test_a_stopped_field_keeps_what_was_done(fresh):
    token = CancelToken()
    run = fresh.erf(VIEW, n_images=32, token=token)
    first = next(run)
    token.cancel()
    with pytest.raises(CancelledError):
        next(run)
    assert isinstance(first, ErfResult) and not first.is_final
    assert last(fresh.erf(VIEW, n_images=2)).is_final
