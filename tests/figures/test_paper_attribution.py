"""The attribution tab's pictures: one scale, the photo's shape, and words that nothing covers."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tests.figures.conftest import provenance
from tests.figures.test_attribution_lab import (
    COMPLETE,
    attention_result,
    evidence_block,
    evidence_result,
    faithfulness_result,
    input_only,
    maps_result,
    photo_of,
    randomisation_result,
    two_blocks,
    unsigned,
)
from workbench.figures.paper import render
from workbench.figures.paper_attribution import (
    attention_figure,
    evidence_figure,
    faithfulness_figure,
    maps_figure,
    randomisation_figure,
)
from workbench.results import MapsResult

LONG = {"definition": "gradient of the objective at the map times the map, summed; " * 5}


def every_result() -> dict:
    return {
        "maps_a": maps_result(verdict=COMPLETE),
        "maps_b": maps_result("ss2d", seed=1),
        "evidence": two_blocks(),
        "attention_a": attention_result(),
        "attention_b": attention_result("ss2d", 4),
        "faithfulness": faithfulness_result(),
        "randomisation": randomisation_result(),
    }


def maps_of(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.images]


def uncovered(figure: Figure) -> None:
    """No text of the figure leaves it or lies over another; no map lies over a map."""
    figure.savefig(io.BytesIO(), dpi=80)
    drawn = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    places = [ax.get_window_extent() for ax in drawn]
    assert not any(a.overlaps(b) for i, a in enumerate(places) for b in places[:i])
    titles = [ax._left_title for ax in drawn if ax._left_title.get_text().strip()]
    texts = [t.get_window_extent() for t in (*titles, *figure.texts)]
    width, height = figure.bbox.size
    for text in texts:
        assert text.x0 >= 0 and text.y0 >= 0
        assert text.x1 <= width and text.y1 <= height
    titled = texts[: len(titles)]
    lines = [len(t.get_text().strip("\n").split("\n")) for t in titles]
    # A title that starts with an empty line leaves room for its neighbour's first line.
    for i, a in enumerate(titled):
        for j, b in enumerate(titled[:i]):
            if lines[i] == lines[j]:
                assert not a.overlaps(b)
    (foot,) = figure.texts
    assert not any(foot.get_window_extent().overlaps(place) for place in places)


def test_every_result_becomes_a_picture(rgb: np.ndarray) -> None:
    pictures = render(every_result(), rgb)
    assert set(pictures) == {
        "maps.png",
        "evidence.png",
        "attention.png",
        "faithfulness.png",
    }
    for name, data in pictures.items():
        image = Image.open(io.BytesIO(data))
        assert round(image.info["dpi"][0]) == 300
        assert image.size[0] > 1000 and np.asarray(image.convert("L")).std() > 10, name
    assert render(every_result(), rgb) == pictures, "the same results must give the same bytes"


def test_pictures_as_svg_keep_their_words(rgb: np.ndarray) -> None:
    pictures = render(every_result(), rgb, "svg")
    text = {name: data.decode() for name, data in pictures.items()}
    for words in ("Test, Full scan, random − Test, ES2D, random", "stage 4", "“tench” (88.2 %)"):
        assert words in text["maps.svg"]
    assert "Complete:" in text["maps.svg"]
    for words in ("scan path, block 2.1", "evidence, logit", "logit per token"):
        assert words in text["evidence.svg"]
    for words in ("ES2D: reads", "Full scan: is read by", "token (8, 8)"):
        assert words in text["attention.svg"]
    for words in ("this map, area 0.667", "rank correlation", "stage 1", "10 random orders"):
        assert words in text["faithfulness.svg"]
    assert render(every_result(), rgb, "svg") == pictures


def test_what_is_not_there_is_no_picture(rgb: np.ndarray) -> None:
    bare = attention_result(n=0, has_scan=False, note="none")
    results = {"evidence": evidence_result(note="none"), "attention_a": bare, "attention_b": bare}
    assert render(results, rgb) == {}
    assert set(render(every_result(), None)) == {"evidence.png", "faithfulness.png"}


def test_the_sanity_check_alone_is_a_picture(rgb: np.ndarray) -> None:
    assert set(render({"randomisation": randomisation_result()}, rgb)) == {"randomisation.png"}
    figure = randomisation_figure(randomisation_result())
    uncovered(figure)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "stage 1",
        "stage 2",
        "stage 3",
    ]


def test_maps_share_one_scale_and_the_difference_has_its_own(rgb: np.ndarray) -> None:
    a, b = maps_result(), maps_result("ss2d", seed=1)
    figure = maps_figure({"a": a, "b": b}, rgb)
    uncovered(figure)
    axes = maps_of(figure)
    assert len(axes) == 12
    norms = [ax.images[-1].norm for ax in axes]
    assert len({(norm.vmin, norm.vmax) for norm in norms[:8]}) == 1
    assert norms[0].vmin == -norms[0].vmax and norms[8].vmin == -norms[8].vmax
    assert norms[8].vmax != norms[0].vmax
    delta = (a.maps[0].values.astype(float) - b.maps[0].values) * 64
    image = axes[8].images[0]
    np.testing.assert_allclose(image.get_array(), -delta, rtol=1e-5)
    red, green, _, _ = image.cmap(0.0)
    assert green > red, "teal, the first's colour, is the end where it has more"


def test_maps_without_signs_start_at_zero(rgb: np.ndarray) -> None:
    figure = maps_figure({"a": unsigned(maps_result())}, rgb)
    assert {ax.images[-1].norm.vmin for ax in maps_of(figure)} == {0}


@pytest.mark.parametrize("size", [(64, 64), (32, 64), (128, 64)], ids=["square", "wide", "tall"])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("make", [maps_result, input_only], ids=["stages", "input"])
def test_photos_keep_their_shape_and_words_their_room(size, n: int, make) -> None:
    found: dict[str, MapsResult] = {"a": make(size=size, made=LONG, verdict=COMPLETE)}
    if n == 2:
        found["b"] = replace(found["a"], provenance=provenance("ss2d", input_size=size))
    figure = maps_figure(found, photo_of(size))
    uncovered(figure)
    axes = maps_of(figure)
    per_row = 1 if make is input_only else 4
    assert len(axes) == per_row * (3 if n == 2 else 1)
    for ax in axes:
        box = ax.get_window_extent()
        assert box.width / box.height == pytest.approx(size[1] / size[0], rel=1e-3)
        assert (ax.get_xlim(), ax.get_ylim()) == ((0, size[1]), (size[0], 0))


def test_a_rival_on_a_wide_photo_keeps_its_own_shape(rgb: np.ndarray) -> None:
    wide = maps_result(size=(32, 64), made={"image": "coffee"})
    figure = maps_figure({"a": maps_result(), "b": wide}, rgb)
    uncovered(figure)
    axes = maps_of(figure)
    assert len(axes) == 8, "no difference"
    assert [len(ax.images) for ax in axes] == [2] * 4 + [1] * 4, "the other photo is not at hand"
    assert {ax.get_ylim() for ax in axes[4:]} == {(32, 0)}


def test_evidence_bars_are_the_sums(rgb: np.ndarray) -> None:
    result = two_blocks()
    figure = evidence_figure(result)
    uncovered(figure)
    bars = figure.axes[0].containers
    assert [bar.get_label() for bar in bars] == ["scan path", "convolution", "residual"]
    for i, bar in enumerate(bars):
        widths = [rectangle.get_width() for rectangle in bar]
        assert widths == pytest.approx([block.sums[i] for block in result.blocks])
    norms = {(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in maps_of(figure)}
    ((low, high),) = norms
    assert low == -high
    wide = replace(evidence_block(), maps=evidence_block().maps[:, :8])
    p = provenance("es2d:step=2", input_size=(32, 64))
    figure = evidence_figure(evidence_result(wide, provenance=p))
    uncovered(figure)
    box = maps_of(figure)[0].get_window_extent()
    assert box.width / box.height == pytest.approx(2, rel=1e-3)


def test_attention_has_one_log_scale_and_a_decay_without_zeros(rgb: np.ndarray) -> None:
    found = {"a": attention_result(), "b": attention_result("ss2d", 4)}
    figure = attention_figure(found, rgb)
    uncovered(figure)
    norms = {(ax.images[1].norm.vmin, ax.images[1].norm.vmax) for ax in maps_of(figure)}
    ((low, high),) = norms
    assert high == pytest.approx(1.111) and low == pytest.approx(high * 1e-4)
    (curves,) = [ax for ax in figure.axes if ax.lines and ax.get_xscale() == "log"]
    assert len(curves.lines) == 5
    for line in curves.lines:
        y = np.asarray(line.get_ydata())
        assert len(y) and (y > 0).all()


def test_attention_of_a_token_that_nothing_reads(rgb: np.ndarray) -> None:
    (picture,) = render({"attention_a": attention_result(n=0)}, rgb).values()
    assert Image.open(io.BytesIO(picture)).size[0] > 1000


def test_faithfulness_with_and_without_randomisation() -> None:
    figure = faithfulness_figure(faithfulness_result())
    uncovered(figure)
    assert len(figure.axes) == 2
    figure = faithfulness_figure(faithfulness_result(), randomisation_result())
    uncovered(figure)
    third = figure.axes[2]
    solid = [line.get_label() for line in third.lines if line.get_linestyle() == "-"]
    assert solid == ["stage 1", "stage 2", "stage 3"]
    assert len(third.lines) == 6, "each with its likeness to edges"
    assert [t.get_text() for t in third.get_xticklabels()] == ["trained", "head", "stem"]
    insertion = figure.axes[0].lines[0]
    np.testing.assert_allclose(insertion.get_ydata(), faithfulness_result().curves[0].insertion)
