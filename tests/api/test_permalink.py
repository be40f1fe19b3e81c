"""Links: a view survives the trip, and no link can break the page."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qsl

import pytest

from workbench.errors import BadInputError
from workbench.permalink import read, write
from workbench.view import View

MODELS = {"efficientvmamba_tiny": ("default", "random"), "efficientvmamba_base": ("random",)}


def check(view: View) -> None:
    """What `Workbench.resolve` does, on two models and two photos."""
    if view.model not in MODELS:
        raise BadInputError(
            f"There is no model {view.model!r}. Choose one of: {', '.join(MODELS)}."
        )
    if view.weights not in MODELS[view.model]:
        raise BadInputError(f"{view.model} has no weights {view.weights!r}.")
    if view.photo not in ("chelsea", "coffee"):
        raise BadInputError(f"There is no photo {view.photo!r}.")
    for scan in (view.scan_a, view.scan_b):
        if scan not in ("es2d:step=2", "es2d:step=3", "ss2d"):
            raise BadInputError(f"There is no scan {scan!r}.")


def query(text: str) -> dict[str, str]:
    return dict(parse_qsl(text, keep_blank_values=True))


@pytest.mark.parametrize(
    "view",
    [
        View(y=14, x=14),
        View(model="efficientvmamba_base", weights="random", photo="coffee", y=0, x=3),
        View(scan_a="es2d:step=3", scan_b="es2d:step=2", size=512, fit="whole", stage=4, y=1, x=2),
        View(target=0, y=1, x=1),
        View(
            y=1,
            x=1,
            tab="erf",
            size=96,
            erf_unit="block2.scan",
            erf_definition="replknet",
            erf_gates="frozen",
            erf_images=5,
            erf_set=("upload-0123456789ab", "coffee"),
            erf_rivals=("random", "timm:resnet18"),
            erf_scale="power",
        ),
        View(y=1, x=1, erf_rivals=()),
        View(
            y=1,
            x=1,
            tab="attribution",
            target=3,
            contrast=0,
            attr_method="integrated_gradients",
            attr_options="steps=64,baseline=mean",
            attr_rival="photo:coffee",
            attr_block=2,
            attr_channel=0,
            attr_sanity=True,
        ),
    ],
    ids=[
        "default",
        "other model",
        "everything else",
        "target",
        "field lab",
        "no rival",
        "attributions",
    ],
)
def test_round_trip(view: View) -> None:
    link = read(query(write(view)), check)
    assert link.view == view and link.ignored == () and not link.is_empty


def test_only_what_matters_is_written() -> None:
    assert write(View(y=14, x=7)) == (
        "model=efficientvmamba_tiny&weights=default&image=chelsea&scan=es2d:step=2&stage=2&y=14&x=7"
    )
    assert "y=" not in write(View()) and "size" not in write(View())
    assert write(View(photo="a b&c=d", fit="whole")).count("&") == 5


def test_empty_link_is_the_default() -> None:
    link = read({"__theme": "dark", "view": "api"}, check)
    assert link.view == View() and link.is_empty


@pytest.mark.parametrize(
    ("text", "expected", "n_ignored"),
    [
        ("stage=5&image=coffee", View(photo="coffee"), 1),
        ("stage=-1&y=1e3&x=٣&target=nan", View(), 4),
        ("size=225&fit=stretch", View(), 2),
        ("image=../../etc/passwd", View(), 1),
        ("image=upload-0123456789ab&scan=ss2d", View(scan_a="ss2d"), 1),
        ("model=vit&weights=hf:x/y&scan=__import__('os')", View(), 3),
        ("model=efficientvmamba_base", View(model="efficientvmamba_base", weights="random"), 0),
        ("model=efficientvmamba_base&weights=default&stage=3", None, 1),
        ("colour=red&stage=3", View(stage=3), 1),
        ("definition=mine&gates=open&scale=cubic&images=many", View(), 4),
        ("contrast=-1&block=one&channel=1.5&sanity=yes", View(), 4),
        ("sanity=0&channel=2", View(attr_channel=2), 0),
        ("y=999999999999999999999999", View(), 1),
        ("image=", View(), 1),
        ("image=a%00b", View(), 1),
    ],
    ids=[
        "stage",
        "numbers",
        "size and fit",
        "path",
        "gone upload",
        "names",
        "model without default weights",
        "weights that model lacks",
        "unknown name",
        "field lab",
        "attributions",
        "switch",
        "endless number",
        "empty",
        "control character",
    ],
)
def test_what_cannot_be_used_is_named(text: str, expected: View | None, n_ignored: int) -> None:
    link = read(query(text), check)
    expected = expected or replace(View(), model="efficientvmamba_base", weights="random", stage=3)
    assert link.view == expected
    assert len(link.ignored) == n_ignored
    for sentence in link.ignored:
        assert "was ignored" in sentence and sentence.isprintable() and len(sentence) < 300


def test_without_a_check_names_are_taken_as_they_are() -> None:
    assert read({"model": "anything"}).view.model == "anything"


def test_long_values_are_cut_in_the_message() -> None:
    (sentence,) = read({"image": "x" * 10_000, "__sign": "1"}).ignored
    assert len(sentence) < 200
