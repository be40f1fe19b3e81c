"""Panels of the attribution tab: what is drawn is what the results hold, and they stay small."""

from __future__ import annotations

import base64
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.figures.conftest import provenance
from tests.figures.test_panels import array
from workbench.figures.attention import DECADES, MAX_CURVE_POINTS, attention_panel
from workbench.figures.attribution_lab import (
    MAX_CELLS,
    attribution_lab_panel,
    beyond,
    drawn,
    limits,
    names_of,
    photo_within,
    signed,
)
from workbench.figures.attribution_paths import attribution_paths_panel
from workbench.figures.faithfulness import faithfulness_panel
from workbench.figures.theme import CIVIDIS, SIGNED, block_sum, significant
from workbench.results import (
    AttentionResult,
    AttributionMap,
    EvidenceMaps,
    EvidenceResult,
    FaithfulnessCurve,
    FaithfulnessResult,
    MapsResult,
    RandomisationResult,
)
from workbench.ui.components.plotly_panel import MAX_PANEL_BYTES, dump

NAN = float("nan")
COMPLETE = "Complete: the sum misses the difference to the baseline, 3, by 0.001 at most."
NOT_COMPLETE = "Not complete: the sum misses the difference to the baseline, 3, by 2."


def maps_result(
    scan: str = "es2d:step=2",
    size: tuple[int, int] = (64, 64),
    strides: tuple[int, ...] = (4, 8, 16, 32),
    seed: int = 0,
    **changes: object,
) -> MapsResult:
    """Signed maps of the stages; `made` in `changes` are fields of the provenance."""
    rng = np.random.default_rng(seed)
    listed = tuple(
        AttributionMap(
            name=f"stage{i}",
            values=rng.normal(size=(size[0] // s, size[1] // s)).astype(np.float32),
            stride=s,
            layer=f"layers.{i - 1}",
        )
        for i, s in enumerate(strides, start=1)
    )
    made = {"input_size": size, **changes.pop("made", {})}  # type: ignore[dict-item]
    values: dict = {
        "provenance": provenance(scan, **made),
        "method": "by_hand",
        "label": "Gradient × input",
        "where": "stage",
        "target": 0,
        "target_name": "tench",
        "contrast": None,
        "contrast_name": "",
        "probability": 0.882,
        "objective": 3.0,
        "is_signed": True,
        "maps": listed,
        "baseline": "",
        "baseline_objective": NAN,
        "bias_share": NAN,
        "gaps": (),
        "verdict": "",
    }
    return MapsResult(**(values | changes))


def input_only(size: tuple[int, int] = (64, 64), **changes: object) -> MapsResult:
    values = np.random.default_rng(3).random(size).astype(np.float32)
    only = AttributionMap(name="input", values=values, stride=1, layer="input")
    return maps_result(size=size, where="input", maps=(only,), is_signed=False, **changes)


def unsigned(result: MapsResult) -> MapsResult:
    maps = tuple(replace(m, values=np.abs(m.values)) for m in result.maps)
    return replace(result, maps=maps, is_signed=False)


def with_values(result: MapsResult, *values: np.ndarray) -> MapsResult:
    maps = tuple(replace(m, values=v) for m, v in zip(result.maps, values, strict=True))
    return replace(result, maps=maps)


def evidence_block(
    stage: int = 1, block: int = 1, cells: int = 16, sums: tuple[float, ...] = (1.0, -0.5, 0.25)
) -> EvidenceMaps:
    """Noisy maps with the sums that are asked for."""
    noise = np.random.default_rng(10 * stage + block).normal(size=(len(sums), cells, cells))
    noise += (np.array(sums) / cells**2 - noise.mean((1, 2)))[:, None, None]
    return EvidenceMaps(
        stage=stage,
        block=block,
        stride=64 // cells,
        paths=("scan", "conv", "residual")[: len(sums)],
        maps=noise.astype(np.float32),
        sums=sums,
        total=sum(sums),
        error=block * 1e-7,
    )


def evidence_result(*blocks: EvidenceMaps, **changes: object) -> EvidenceResult:
    values: dict = {
        "provenance": provenance("es2d:step=2", is_random=False),
        "target": 0,
        "target_name": "tench",
        "contrast": None,
        "contrast_name": "",
        "probability": 0.882,
        "objective": 3.0,
        "blocks": blocks,
    }
    return EvidenceResult(**(values | changes))


def two_blocks() -> EvidenceResult:
    """The paths of the second cancel, but for the rounding of their sum."""
    cancelled = replace(evidence_block(2, 1, 8, (0.8, -0.5, -0.3)), total=1.62e-6)
    return evidence_result(evidence_block(), cancelled)


def attention_result(
    scan: str = "es2d:step=2", n: int = 1, cells: int = 16, **changes: object
) -> AttentionResult:
    """`n` sequences; what the token reads falls with the distance, some of it to nothing."""
    rows, columns = np.mgrid[:cells, :cells]
    y = x = cells // 2
    distance = np.abs(rows - y) + np.abs(columns - x)
    size = (
        np.stack([10.0 ** (-distance - k) for k in range(n)])
        if n
        else np.zeros((0,) + (cells,) * 2)
    )
    size[:, :2] = 0
    sign = np.where((rows + columns) % 2, -1, 1)
    steps = np.arange(cells**2, dtype=np.int32)
    decay = np.stack([10.0 ** (-k - steps / 40) for k in range(n)]) if n else np.zeros((0, 0))
    decay[:, 5::7] = 0
    decay[:, -20:] = np.nan
    values: dict = {
        "provenance": provenance(scan),
        "stage": 1,
        "block": 2,
        "y": y,
        "x": x,
        "height": cells,
        "width": cells,
        "stride": 64 // cells or 1,
        "has_scan": True,
        "layer": "layers.0.blocks.1.op",
        "channel": None,
        "n_channels": 48,
        "sequences": tuple(range(n)) if n != 1 else (2,),
        "rows": (size * sign).astype(np.float32),
        "rows_size": size.astype(np.float32),
        "columns": (size[:, ::-1] * sign).astype(np.float32),
        "columns_size": size[:, ::-1].astype(np.float32),
        "steps": steps if n else np.zeros(0, np.int32),
        "decay": decay.astype(np.float32),
        "skip": 1.0,
        "error": 2e-7,
    }
    return AttentionResult(**(values | changes))


def faithfulness_result(**changes: object) -> FaithfulnessResult:
    """Three curves; the random order has a band, only the map an infidelity."""
    n = np.linspace(0, 1, 11, dtype=np.float32)
    none = np.zeros(0, np.float32)
    curves = tuple(
        FaithfulnessCurve(
            name=name,
            insertion=n**power,
            deletion=(1 - n) ** (1 / power),
            insertion_low=np.maximum(n**power - 0.1, 0) if name == "random" else none,
            insertion_high=np.minimum(n**power + 0.1, 1) if name == "random" else none,
            deletion_low=np.maximum(1 - n - 0.1, 0) if name == "random" else none,
            deletion_high=np.minimum(1 - n + 0.1, 1) if name == "random" else none,
            insertion_auc=1 / (power + 1),
            deletion_auc=power / (power + 1),
            infidelity=0.25 if name == "map" else NAN,
            sensitivity=NAN,
        )
        for name, power in (("map", 0.5), ("random", 1.0), ("edges", 0.8))
    )
    values: dict = {
        "provenance": provenance("es2d:step=2"),
        "method": "grad_cam",
        "map_name": "stage4",
        "target": 0,
        "target_name": "tench",
        "shares": n,
        "curves": curves,
        "baseline": "blurred photo",
        "n_random": 10,
        "verdict": "Better than chance.",
    }
    return FaithfulnessResult(**(values | changes))


def randomisation_result(**changes: object) -> RandomisationResult:
    """The last map is the same everywhere, so it has no rank correlation."""
    similarity = np.array([[1, 1, NAN], [0.5, 0.25, NAN], [0.125, -0.5, NAN]], np.float32)
    values: dict = {
        "provenance": provenance("es2d:step=2"),
        "method": "grad_cam",
        "map_names": ("stage1", "stage2", "stage3"),
        "steps": ("trained", "head", "stem"),
        "similarity": similarity,
        "edges": np.zeros_like(similarity),
        "chance": np.array([0.2, 0.3, NAN], np.float32),
        "verdict": "With every weight random: it passes.",
    }
    return RandomisationResult(**(values | changes))


def trace(spec: dict) -> dict:
    return spec["figure"]["data"][0]


def over_photo(panel: dict) -> list[dict]:
    return [spec for spec in panel["maps"] if spec.get("over_photo")]


def photo_of(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


# Maps


def test_maps_of_all_stages_share_one_signed_scale(rgb: np.ndarray) -> None:
    result = maps_result()
    panel = attribution_lab_panel({"a": result}, {"a": rgb}, 2)
    dump(panel)
    assert panel["columns"] == len(panel["maps"]) == 5
    assert "differences" not in panel
    per_area = [m.values.astype(float) * (32 / m.stride) ** 2 for m in result.maps]
    sizes = np.abs(np.concatenate([values.ravel() for values in per_area]))
    for spec, values in zip(over_photo(panel), per_area, strict=True):
        end = trace(spec)["zmax"]
        assert trace(spec)["zmin"] == -end and end == pytest.approx(np.quantile(sizes, 0.995))
        np.testing.assert_allclose(array(trace(spec)["z"]), values, rtol=1e-6)
        assert [colour for _, colour in trace(spec)["colorscale"]] == list(SIGNED)
    low, zero, high = panel["scale"]["ticks"]
    assert (low["at"], zero["at"], high["at"]) == (0, 0.5, 1)
    assert zero["text"] == "0"
    assert high["text"] == f"≥ {significant(end)}" and low["text"] == f"≤ −{significant(end)}"
    n = int((sizes > end).sum())
    assert f" {n} of {sizes.size} cells lie beyond the end" in panel["scale"]["tip"]
    assert significant(float(sizes.max())) in panel["scale"]["tip"]


def test_maps_without_signs_start_at_zero(rgb: np.ndarray) -> None:
    panel = attribution_lab_panel({"a": unsigned(maps_result())}, {"a": rgb}, 2)
    assert panel["scale"]["stops"] == list(CIVIDIS)
    assert panel["scale"]["low"] == "0" and "ticks" not in panel["scale"]
    for spec in over_photo(panel):
        assert trace(spec)["zmin"] == 0
        assert [colour for _, colour in trace(spec)["colorscale"]] == list(CIVIDIS)
    assert "half of the evidence" in panel["sentence"]


def test_one_signed_map_makes_the_scale_of_both_signed(rgb: np.ndarray) -> None:
    found = {"a": unsigned(maps_result()), "b": maps_result("ss2d", seed=1)}
    panel = attribution_lab_panel(found, {"a": rgb, "b": rgb}, 2)
    assert len({(trace(s)["zmin"], trace(s)["zmax"]) for s in over_photo(panel)}) == 1
    assert panel["scale"]["stops"] == list(SIGNED)


def test_a_scale_that_holds_every_cell_claims_no_more(rgb: np.ndarray) -> None:
    flat = with_values(
        unsigned(maps_result()),
        *(np.full((64 // s, 64 // s), (s / 32) ** 2) for s in (4, 8, 16, 32)),
    )
    panel = attribution_lab_panel({"a": flat}, {"a": rgb}, 2)
    assert panel["scale"]["high"] == "1.00"
    assert panel["scale"]["tip"] == "One scale for all maps."
    for spec in over_photo(panel):
        np.testing.assert_allclose(array(trace(spec)["z"]), 1, rtol=1e-6)
        assert trace(spec)["zmax"] == 1


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((16, 16), 4), ((128, 128), 4), ((256, 192), 4), ((512, 511), 1), ((1, 1), 32)],
)
def test_a_map_in_coarser_cells_keeps_its_sum(shape: tuple[int, int], stride: int) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    shown = drawn(AttributionMap(name="stage1", values=values, stride=stride, layer=""))
    assert max(shown.values.shape) <= MAX_CELLS
    area = block_sum(np.full(shape, float(stride**2)), shown.cell // stride)
    total = float((shown.values * area).sum()) / 32**2
    assert total == pytest.approx(float(values.sum(dtype=np.float64)), abs=1e-6)


def test_cells_at_the_border_are_as_dense_as_the_map() -> None:
    """128 cells are drawn as 43 of three cells; the last has two."""
    flat = AttributionMap(name="stage1", values=np.ones((128, 128)), stride=4, layer="")
    np.testing.assert_allclose(drawn(flat).values, 64)


def test_the_sum_of_a_map_is_said_with_a_true_minus(rgb: np.ndarray) -> None:
    result = maps_result()
    panel = attribution_lab_panel({"a": result}, {"a": rgb}, 2)
    for spec, source in zip(over_photo(panel), result.maps, strict=True):
        total = float(source.values.sum(dtype=np.float64))
        sign = "−" if total < 0 else ""
        assert spec["right"]["text"] == f"sum {sign}{significant(abs(total))}"
        assert spec["left"] == {"text": f"stage {spec['stage']}", "stage": spec["stage"]}
        assert spec["read"]["cell"] == spec["cell"] == source.stride
    assert {float(m.values.sum()) < 0 for m in result.maps} == {True, False}


def test_signed_numbers() -> None:
    assert [signed(v) for v in (0.0, -0.0, 1.5, -1.5, -1.62e-6)] == [
        "0",
        "0",
        "1.50",
        "−1.50",
        "−1.62e-06",
    ]


def test_limits_of_nothing_and_of_one_spike() -> None:
    assert limits([np.zeros((4, 4))]) == (1.0, 1.0)
    assert beyond([np.zeros((4, 4))], 1.0) == ""
    spike = np.zeros((56, 56))
    spike[3, 4] = -7
    assert limits([spike]) == (7.0, 7.0), "0.5 % from the top is 0: the whole range is drawn"
    spike += 1
    assert limits([spike]) == (1.0, 6.0)
    assert beyond([spike], 1.0) == " 1 of 3,136 cells lies beyond the end, up to 6.00."


def test_the_difference_is_the_first_less_the_rival(rgb: np.ndarray) -> None:
    a, b = maps_result(), maps_result("ss2d", seed=1)
    panel = attribution_lab_panel({"a": a, "b": b}, {"a": rgb, "b": rgb}, 2)
    dump(panel)
    assert len(panel["maps"]) == 2 * panel["columns"]
    assert len({(trace(s)["zmin"], trace(s)["zmax"]) for s in over_photo(panel)}) == 1
    assert len(panel["differences"]) == 4
    deltas = []
    for spec, x, y in zip(panel["differences"], a.maps, b.maps, strict=True):
        deltas.append((x.values.astype(float) - y.values) * (32 / x.stride) ** 2)
        z = array(trace(spec)["z"])
        np.testing.assert_allclose(z, -deltas[-1], rtol=1e-4, atol=1e-5)
        assert spec["read"]["factor"] == -1, "what is read is the first minus the rival"
        assert spec["read"]["unit"].endswith("Test, ES2D, random − Test, Full scan, random")
        assert trace(spec)["zmin"] == -trace(spec)["zmax"]
        assert trace(spec)["colorscale"][0][1] == "@d0", "teal, the first, is the low end"
        r = np.corrcoef(x.values.ravel(), y.values.ravel())[0, 1]
        said = spec["right"]["text"].removeprefix("correlation ").replace("−", "-")
        assert float(said) == pytest.approx(r, abs=0.006)
        assert "-" not in spec["right"]["text"]
    end, _ = limits(deltas)
    assert trace(panel["differences"][0])["zmax"] == pytest.approx(end)
    scale = panel["difference_scale"]
    assert [tick["text"] for tick in scale["ticks"]] == [
        f"≥ {significant(end)}",
        "0",
        f"≥ {significant(end)}",
    ]
    assert scale["ends"] == [
        {"text": "more: Test, ES2D, random", "tone": "a"},
        {"text": "more: Test, Full scan, random", "tone": "b"},
    ]


def test_maps_that_agree_differ_by_nothing(rgb: np.ndarray) -> None:
    a, b = maps_result(), maps_result("ss2d")
    panel = attribution_lab_panel({"a": a, "b": b}, {"a": rgb, "b": rgb}, 1)
    assert not any(array(trace(spec)["z"]).any() for spec in panel["differences"])
    assert {spec["right"]["text"] for spec in panel["differences"][:3]} == {"correlation 1.00"}
    assert panel["difference_scale"]["ticks"][0]["text"] == "1.00"


def test_a_constant_map_has_no_correlation(rgb: np.ndarray) -> None:
    a = maps_result()
    flat = with_values(maps_result("ss2d"), *(np.full_like(m.values, 0.1) for m in a.maps))
    panel = attribution_lab_panel({"a": a, "b": flat}, {"a": rgb, "b": rgb}, 1)
    assert {spec["right"]["text"] for spec in panel["differences"]} == {"one is constant"}


def test_a_rival_on_a_photo_of_another_shape_has_no_difference(rgb: np.ndarray) -> None:
    b = maps_result(size=(32, 64), seed=1, made={"image": "coffee"})
    photos = {"a": rgb, "b": photo_of((32, 64))}
    panel = attribution_lab_panel({"a": maps_result(), "b": b}, photos, 2)
    dump(panel)
    assert "differences" not in panel and "difference_scale" not in panel
    wide = panel["maps"][5:]
    assert {s["figure"]["layout"]["yaxis"]["range"][0] for s in wide} == {32}
    assert [s["left"]["text"] for s in (panel["maps"][0], wide[0])] == ["chelsea", "coffee"]


def test_names_say_what_tells_the_two_apart() -> None:
    a = maps_result(made={"is_random": False, "weights": "ours"})
    other = maps_result(made={"is_random": False, "weights": "theirs"})
    assert names_of({"a": a}) == {"a": "Test, ES2D"}
    assert names_of({"a": a, "b": other}) == {"a": "Test, ES2D, ours", "b": "Test, ES2D, theirs"}
    random = maps_result()
    assert names_of({"a": a, "b": random}) == {"a": "Test, ES2D", "b": "Test, ES2D, random"}
    base = maps_result(made={"is_random": False, "model": "efficientvmamba_base"})
    assert names_of({"a": a, "b": base})["b"] == "Base, ES2D"
    photo = maps_result(made={"is_random": False, "image": "coffee"})
    assert names_of({"a": a, "b": photo}) == {"a": "chelsea", "b": "coffee"}


def test_the_sentence_names_the_class_and_the_densest_part(rgb: np.ndarray) -> None:
    values = [m.values for m in maps_result().maps[:3]]
    last = np.array([[-5, 1], [2, 1]], np.float32)
    result = with_values(maps_result(objective=-1.5), *values, last)
    panel = attribution_lab_panel({"a": result}, {"a": rgb}, 2)
    assert panel["sentence"] == (
        "For “tench” (88.2 %), objective −1.50: half of the absolute evidence at stage 4 lies on "
        "25.0 % of the image. Random weights."
    )
    against = replace(result, contrast=3, contrast_name="church")
    assert attribution_lab_panel({"a": against}, {"a": rgb}, 2)["sentence"].startswith(
        "For “tench” against “church”, objective −1.50: "
    )
    found = {"a": result, "b": maps_result("ss2d", objective=-0.25)}
    both = attribution_lab_panel(found, {"a": rgb, "b": rgb}, 2)["sentence"]
    assert "Test, Full scan, random: objective −0.250." in both


def test_a_map_of_zeros_is_no_evidence(rgb: np.ndarray) -> None:
    result = maps_result()
    nothing = with_values(result, *(np.zeros_like(m.values) for m in result.maps))
    panel = attribution_lab_panel({"a": nothing}, {"a": rgb}, 2)
    dump(panel)
    assert "there is no evidence at stage 4." in panel["sentence"]
    assert {spec["right"]["text"] for spec in over_photo(panel)} == {"sum 0"}


def test_a_method_with_one_map_of_the_input(rgb: np.ndarray) -> None:
    panel = attribution_lab_panel({"a": input_only()}, {"a": rgb}, 2)
    dump(panel)
    assert panel["columns"] == len(panel["maps"]) == 2
    photo, shown = panel["maps"]
    assert shown["key"] == "attr-a-input" and shown["left"] == {"text": "input"}
    assert "stage" not in shown
    assert shown["read"]["cell"] == photo["cell"] == 2, "64 px are drawn as 32 cells"
    assert "evidence at the input lies on" in panel["sentence"]


def badges_of(found: dict[str, MapsResult]) -> dict[str, dict]:
    photos = {key: photo_of((64, 64)) for key in found}
    return {b["text"]: b for b in attribution_lab_panel(found, photos, 1)["badges"]}


def test_badges_say_whether_the_map_is_complete() -> None:
    good = maps_result(verdict=COMPLETE, baseline="black")
    assert badges_of({"a": good})["✓ complete"]["tone"] == "ok"
    assert "baseline: black" in badges_of({"a": good})
    bad = replace(good, verdict=NOT_COMPLETE)
    badge = badges_of({"a": bad})["! not complete"]
    assert badge["tone"] == "warn" and badge["tip"] == NOT_COMPLETE
    kept = maps_result(verdict="Conserved: 3 = 2.9 + 0.1.")
    assert "✓ complete" in badges_of({"a": kept})
    assert not any("complete" in text for text in badges_of({"a": maps_result()}))


@pytest.mark.parametrize("wrong", ["a", "b"])
def test_one_incomplete_map_of_two_is_called_out(wrong: str) -> None:
    found = {"a": maps_result(verdict=COMPLETE), "b": maps_result("ss2d", verdict=COMPLETE)}
    found[wrong] = replace(found[wrong], verdict=NOT_COMPLETE)
    badges = badges_of(found)
    assert badges["! not complete"]["tip"] == NOT_COMPLETE
    assert "✓ complete" not in badges


def test_random_weights_are_named() -> None:
    trained = maps_result(made={"is_random": False})
    assert "random weights" not in badges_of({"a": trained})
    assert badges_of({"a": trained, "b": maps_result()})["random weights"]["tone"] == "warn"


def test_notes_hold_verdicts_and_what_biases_took(rgb: np.ndarray) -> None:
    a = maps_result(verdict=COMPLETE, note="Said once.", bias_share=-0.25)
    alone = attribution_lab_panel({"a": a}, {"a": rgb}, 1)["notes"]
    assert alone == [COMPLETE, "Said once.", "Biases took −0.250."]
    both = attribution_lab_panel({"a": a, "b": maps_result("ss2d")}, {"a": rgb, "b": rgb}, 1)
    assert both["notes"][0] == f"Test, ES2D, random: {COMPLETE}"
    assert len(both["notes"]) == 3


@pytest.mark.parametrize("size", [(224, 224), (1024, 1024), (320, 512)])
def test_two_rows_over_the_busiest_photo_stay_small(size: tuple[int, int]) -> None:
    found = {"a": maps_result(size=size), "b": maps_result("ss2d", size, seed=1)}
    photos = {key: photo_of(size) for key in found}
    assert len(dump(attribution_lab_panel(found, photos, 2))) < MAX_PANEL_BYTES


def test_a_photo_is_as_large_as_the_budget_allows() -> None:
    def longest(uri: str) -> int:
        return max(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).size)

    calm = np.full((512, 1024, 3), 90, np.uint8)
    assert longest(photo_within(calm, 60_000)) == 448
    assert longest(photo_within(calm, 60_000, 224)) == 224
    busy = photo_of((512, 512))
    uri = photo_within(busy, 60_000)
    assert len(uri) <= 60_000 and 160 <= longest(uri) < 448


# Paths


def test_bars_are_signed_widths_around_one_zero() -> None:
    result = two_blocks()
    panel = attribution_paths_panel(result)
    dump(panel)
    # To the right at most 1.25 (block 1.1), to the left at most 0.8 (block 2.1).
    span = 1.25 + 0.8
    assert panel["zero"] == pytest.approx(0.8 / span)
    assert [b["text"] for b in panel["blocks"]] == ["1.1", "2.1"]
    for bar, block in zip(panel["blocks"], result.blocks, strict=True):
        segments = bar["segments"]
        widths = [span * s["share"] * (-1 if s["against"] else 1) for s in segments]
        assert widths == pytest.approx(block.sums)
        left = sum(s["share"] for s in segments if s["against"])
        right = sum(s["share"] for s in segments if not s["against"])
        assert left <= panel["zero"] + 1e-9 and right <= 1 - panel["zero"] + 1e-9
        assert [s["colour"] for s in segments] == ["@a", "@conv", "@residual"]
    assert panel["chosen"] == 1
    assert "from −0.800 to 1.25" in panel["under"]
    assert panel["blocks"][0]["segments"][1]["tip"] == "convolution: −0.500 logit"


def test_bars_without_evidence_against_start_at_the_left() -> None:
    panel = attribution_paths_panel(evidence_result(evidence_block(sums=(1.0, 0.5, 0.5))))
    assert panel["zero"] == 0
    assert sum(s["share"] for s in panel["blocks"][0]["segments"]) == pytest.approx(1)
    assert "from 0 to 2.00" in panel["under"]
    nothing = attribution_paths_panel(evidence_result(evidence_block(sums=(0.0, 0.0, 0.0))))
    dump(nothing)
    assert nothing["zero"] == 0 and nothing["blocks"][0]["sum"] == "0"
    assert "cancel" not in nothing["blocks"][0]["sentence"]


def test_paths_that_cancel_are_shown_as_nought() -> None:
    panel = attribution_paths_panel(two_blocks())
    cancelled = panel["blocks"][1]
    assert cancelled["sum"] == "0"
    assert cancelled["sentence"] == (
        "Block 2.1, logit: scan path 0.800, convolution −0.500, residual −0.300; together 0: "
        f"they cancel. {panel['sentence']}"
    )
    assert panel["totals"][1]["right"]["text"] == "0"
    assert panel["totals"][0]["right"]["text"] == panel["blocks"][0]["sum"] == "0.750"
    assert panel["blocks"][0]["sentence"].find("; together 0.750. ") > 0


@pytest.mark.parametrize(
    ("total", "text"), [(1.5e-4, "0"), (-1.5e-4, "0"), (1.7e-4, "0.000170"), (-0.01, "−0.0100")]
)
def test_only_what_is_next_to_nothing_beside_the_parts_is_nought(total: float, text: str) -> None:
    block = replace(evidence_block(sums=(0.8, -0.5, -0.3)), total=total)
    assert attribution_paths_panel(evidence_result(block))["blocks"][0]["sum"] == text
    small = replace(evidence_block(sums=(1e-6, 1e-6, 0.0)), total=2e-6)
    assert attribution_paths_panel(evidence_result(small))["blocks"][0]["sum"] == "2.00e-06"


def test_path_maps_share_one_scale_and_add_up_to_the_total() -> None:
    result = two_blocks()
    panel = attribution_paths_panel(result)
    every = [spec for views in panel["views"] for spec in views] + panel["totals"]
    ((low, end),) = {(trace(s)["zmin"], trace(s)["zmax"]) for s in every}
    assert low == -end
    for views, whole, block in zip(panel["views"], panel["totals"], result.blocks, strict=True):
        assert [v["key"] for v in views] == [
            "attr-path-scan",
            "attr-path-conv",
            "attr-path-residual",
        ]
        parts = [array(trace(v)["z"]).astype(float) for v in views]
        scale = (32 / block.stride) ** 2
        np.testing.assert_allclose(parts, block.maps * scale, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.sum(parts, 0), array(trace(whole)["z"]), atol=1e-3)
        assert [v["right"]["text"] for v in views] == [signed(v) for v in block.sums]
        assert {v["stage"] for v in (*views, whole)} == {block.stage}
    sizes = np.concatenate([np.abs(array(trace(s)["z"])).ravel() for s in every])
    n = int((sizes > end).sum())
    assert f"{n} of {sizes.size:,} cells lie beyond the end" in panel["scale"]["tip"]
    assert panel["scale"]["ticks"][0]["text"] == f"≤ −{significant(end)}"
    assert panel["scale"]["ticks"][2]["text"] == f"≥ {significant(end)}"


def test_shares_of_the_paths_count_sizes() -> None:
    result = two_blocks()
    found = result.shares
    whole = 1 + 0.5 + 0.25 + 0.8 + 0.5 + 0.3
    assert found == pytest.approx(
        {"scan": 1.8 / whole, "conv": 1 / whole, "residual": 0.55 / whole}
    )
    assert attribution_paths_panel(result)["sentence"] == (
        "Over all EVSS blocks, share of the paths' |evidence|: 53.7 % scan path, 29.9 % "
        "convolution, 16.4 % residual."
    )


def test_paths_that_do_not_add_up_are_called_out() -> None:
    result = evidence_result(evidence_block(), evidence_block(block=2))
    assert attribution_paths_panel(result)["badges"][1]["text"] == "✓ adds up within 2e-07"
    for error in (0.2, NAN):
        wrong = replace(result, blocks=(result.blocks[0], replace(result.blocks[1], error=error)))
        badge = attribution_paths_panel(wrong)["badges"][1]
        assert badge["tone"] == "bad" and badge["text"] == f"✗ off by {error:.0e}"


def test_random_weights_are_named_beside_the_paths() -> None:
    texts = [b["text"] for b in attribution_paths_panel(two_blocks())["badges"]]
    assert texts == ["for “tench” (88.2 %)", "✓ adds up within 1e-07"]
    random = replace(two_blocks(), provenance=provenance("es2d:step=2"))
    panel = attribution_paths_panel(random)
    assert all(b["sentence"].endswith("Random weights.") for b in panel["blocks"])
    assert panel["sentence"].endswith("Random weights.")


def test_a_network_without_evss_blocks_says_so() -> None:
    panel = attribution_paths_panel(evidence_result(note="No block here joins a scan."))
    dump(panel)
    assert panel["empty"] == {"title": "No paths here", "text": "No block here joins a scan."}
    assert "blocks" not in panel


@pytest.mark.parametrize("size", [224, 1024])
def test_the_paths_of_many_blocks_stay_small(size: int) -> None:
    blocks = [
        replace(evidence_block(stage, block, size // 4 // stage), stride=4 * stage)
        for stage in (1, 2)
        for block in range(1, 6)
    ]
    p = provenance("es2d:step=2", size)
    panel = attribution_paths_panel(evidence_result(*blocks, provenance=p))
    assert len(dump(panel)) < MAX_PANEL_BYTES


# Implicit attention


def test_attention_of_one_sequence_gives_its_numbers_back(rgb: np.ndarray) -> None:
    result = attention_result()
    panel = attention_panel({"a": result}, rgb)
    dump(panel)
    assert [v["text"] for v in panel["variants"]] == ["reads", "is read by", "reads, signed"]
    for variant, values in zip(
        panel["variants"][:2], (result.rows_size, result.columns_size), strict=True
    ):
        (spec,) = variant["maps"]
        assert spec["left"] == {"text": "ES2D, group 3", "tone": "a"}
        top = float(values.max())
        assert trace(spec)["zmax"] == pytest.approx(math.log10(top), abs=1e-9)
        low = trace(spec)["zmin"]
        assert low == pytest.approx(math.log10(top) - DECADES)
        assert spec["read"]["floor"] == low and spec["read"]["power"] == 10
        shown = 10.0 ** array(trace(spec)["z"]).astype(float)
        np.testing.assert_allclose(shown, np.maximum(values[0], top * 1e-4), rtol=1e-4)
        assert spec["right"]["text"] == f"Σ {significant(float(values.sum()))}"
        assert variant["scale"]["low"] == "≤ 0.00010" and variant["scale"]["high"] == "1.0"
        assert variant["scale"]["label"] == "|alpha|, log, 4 decades, one scale"


def test_signed_attention_is_drawn_as_its_root(rgb: np.ndarray) -> None:
    result = attention_result(rows=-attention_result().rows)
    variant = attention_panel({"a": result}, rgb)["variants"][2]
    (spec,) = variant["maps"]
    assert trace(spec)["zmin"] == -trace(spec)["zmax"] == pytest.approx(-1)
    z = array(trace(spec)["z"]).astype(float)
    np.testing.assert_allclose(np.sign(z) * z**2, result.rows[0], rtol=1e-5, atol=1e-12)
    assert spec["read"]["power"] == 2 and "floor" not in spec["read"]
    assert result.rows.sum() < 0 and spec["right"]["text"].startswith("Σ −")
    assert [tick["text"] for tick in variant["scale"]["ticks"]] == ["−1.0", "0", "1.0"]
    assert variant["scale"]["stops"] == list(SIGNED)


def test_attention_of_four_sequences_is_their_sum_and_each(rgb: np.ndarray) -> None:
    a, b = attention_result(), attention_result("ss2d", 4)
    panel = attention_panel({"a": a, "b": b}, rgb)
    maps = panel["variants"][0]["maps"]
    assert [m["left"] for m in maps] == [
        {"text": "ES2D, group 3", "tone": "a"},
        {"text": "Full scan, all 4", "tone": "b"},
        *({"text": f"sequence {k}", "tone": "b"} for k in (1, 2, 3, 4)),
    ]
    assert len({(trace(m)["zmin"], trace(m)["zmax"]) for m in maps}) == 1, "one scale for both"
    assert 10 ** trace(maps[0])["zmax"] == pytest.approx(1.111, rel=1e-4)
    assert len({m["key"] for m in maps}) == len(maps)
    for k in range(4):
        top = 10.0 ** array(trace(maps[2 + k])["z"]).astype(float).max()
        assert top == pytest.approx(10.0**-k, rel=1e-4)
    assert len(panel["plot"]["figure"]["data"]) == 5
    legend = [(entry["colour"], entry["text"]) for entry in panel["plot"]["legend"]]
    assert legend == [("@a", "ES2D"), ("@b", "Full scan")]


def test_of_many_sequences_four_are_shown(rgb: np.ndarray) -> None:
    maps = attention_panel({"a": attention_result("zigma", 8)}, rgb)["variants"][0]["maps"]
    texts = [m["left"]["text"] for m in maps]
    assert texts[0].endswith(", all 8")
    assert texts[1:] == [f"sequence {k}" for k in (1, 2, 3, 4)]


def test_the_decay_has_neither_zeros_nor_gaps(rgb: np.ndarray) -> None:
    result = attention_result("ss2d", 4)
    panel = attention_panel({"b": result, "a": result}, rgb)
    traces = panel["plot"]["figure"]["data"]
    layout = panel["plot"]["figure"]["layout"]
    assert layout["xaxis"]["type"] == layout["yaxis"]["type"] == "log"
    for i, curve in enumerate(traces[:4]):
        assert len(curve["x"]) == len(curve["y"]) <= MAX_CURVE_POINTS
        assert min(curve["y"]) > 0 and min(curve["x"]) == 1
        steps = np.array(curve["x"]) - 1
        np.testing.assert_allclose(curve["y"], result.decay[i][steps], rtol=1e-3)
        assert max(steps) < 256 - 20, "past the start there is no number"
    assert len({curve["line"]["dash"] for curve in traces[:4]}) == 4
    assert [curve["line"]["color"] for curve in traces[::4]] == ["@b", "@a"]


def test_a_long_decay_keeps_both_ends(rgb: np.ndarray) -> None:
    n = 65_536
    whole = np.linspace(1, 0.5, n, dtype=np.float32)[None]
    result = attention_result(steps=np.arange(n, dtype=np.int32), decay=whole)
    (curve,) = attention_panel({"a": result}, rgb)["plot"]["figure"]["data"]
    assert (curve["x"][0], curve["x"][-1]) == (1, n) and len(curve["x"]) <= MAX_CURVE_POINTS


def test_an_attention_that_is_not_the_operators_is_called_out(rgb: np.ndarray) -> None:
    good, wrong = attention_result(), attention_result("ss2d", 4, error=0.3)
    badge = attention_panel({"a": good}, rgb)["badges"][1]
    assert (badge["text"], badge["tone"]) == ("✓ is the operator within 2e-07", "ok")
    badge = attention_panel({"a": good, "b": wrong}, rgb)["badges"][1]
    assert (badge["text"], badge["tone"]) == ("✗ differs from the operator by 3e-01", "bad")
    for error in (NAN, math.inf):
        found = {"a": good, "b": replace(wrong, error=error)}
        assert attention_panel(found, rgb)["badges"][1]["tone"] == "bad"


def test_the_sentence_counts_what_the_token_reads(rgb: np.ndarray) -> None:
    size = np.zeros((1, 16, 16), np.float32)
    size[0, 8, 8], size[0, 8, 7], size[0, 8, 6] = 5, 4.5, 0.5
    panel = attention_panel({"a": attention_result(rows_size=size, channel=3)}, rgb)
    assert panel["sentence"] == (
        "ES2D: 50.0 % of its |alpha| is on itself, 90 % on 2 of 256 tokens."
    )
    assert panel["badges"][0]["text"] == "stage 1, block 2, token (8, 8), channel 3"


def test_a_token_that_no_sequence_reads(rgb: np.ndarray) -> None:
    note = "No sequence of the scan reads this token: the scan's output there is 0."
    panel = attention_panel({"a": attention_result(n=0, note=note)}, rgb)
    dump(panel)
    (spec,) = panel["variants"][0]["maps"]
    assert spec["left"]["text"] == "ES2D, read by no sequence"
    assert panel["sentence"] == "ES2D: this token reads nothing."
    assert panel["notes"] == [note] and panel["plot"]["figure"]["data"] == []


def test_a_stage_without_a_scan_says_why(rgb: np.ndarray) -> None:
    bare = attention_result(n=0, has_scan=False, stage=3, note="Stage 3 has convolutions only.")
    panel = attention_panel({"a": bare, "b": bare}, rgb)
    dump(panel)
    assert panel["empty"]["text"] == "Stage 3 has convolutions only."
    assert panel["empty"]["photo"].startswith("data:image/jpeg")
    assert "variants" not in panel and "plot" not in panel


@pytest.mark.parametrize(("size", "factor"), [(224, 1), (512, 3), (1024, 5)])
@pytest.mark.parametrize("n", [1, 4])
def test_attention_over_the_busiest_photo_stays_small(size: int, factor: int, n: int) -> None:
    p = provenance("es2d:step=2", size)
    changes: dict = {"provenance": p, "stride": 4}
    found = {
        "a": attention_result(n=4, cells=size // 4, **changes),
        "b": attention_result(n=n, cells=size // 4, **changes),
    }
    panel = attention_panel(found, photo_of((size, size)))
    assert len(dump(panel)) < MAX_PANEL_BYTES
    if n == 4:
        (whole, *_) = panel["variants"][0]["maps"]
        assert whole["read"]["cell"] == 4 * factor and whole["cell"] == 4
        shown = array(trace(whole)["z"])
        assert shown.shape == (math.ceil(size / 4 / factor),) * 2
        total = float(found["a"].rows_size.sum(dtype=np.float64))
        assert whole["right"]["text"] == f"Σ {significant(total)}", "coarser cells keep the sum"
        per = f" per {factor} × {factor} tokens" if factor > 1 else ""
        label = panel["variants"][0]["scale"]["label"]
        assert label == f"|alpha|{per}, log, 4 decades, one scale"


# Faithfulness


def test_curves_and_areas_of_the_map_and_its_controls() -> None:
    result = faithfulness_result()
    panel = faithfulness_panel(result)
    dump(panel)
    named = [t for t in panel["plot"]["figure"]["data"] if "name" in t]
    assert [(t["name"], t["xaxis"]) for t in named] == [
        (name, axis) for name in ("this map", "random order", "edges") for axis in ("x", "x2")
    ]
    np.testing.assert_allclose(named[0]["x"], 100 * result.shares, atol=0.01)
    np.testing.assert_allclose(named[0]["y"], result.curves[0].insertion, atol=1e-4)
    np.testing.assert_allclose(named[1]["y"], result.curves[0].deletion, atol=1e-4)
    colours = {t["name"]: t["line"]["color"] for t in named}
    assert colours == {"this map": "@a", "random order": "@muted", "edges": "@d"}
    assert {e["text"]: e["colour"] for e in panel["plot"]["legend"]} == colours
    fills = [t for t in panel["plot"]["figure"]["data"] if "fill" in t]
    assert [t["xaxis"] for t in fills] == ["x", "x2"], "only random orders have a band"
    assert "xaxis3" not in panel["plot"]["figure"]["layout"]
    assert panel["badges"][0]["text"] == "map of stage 4, “tench”"
    assert panel["badges"][1]["text"] == "missing pixels: blurred photo"


def test_the_table_leaves_out_what_was_not_computed() -> None:
    table = faithfulness_panel(faithfulness_result())["table"]
    assert [column["text"] for column in table["columns"]][1:3] == ["insertion ↑", "deletion ↓"]
    assert table["rows"][0] == ["this map", "0.667", "0.333", "0.250", ""]
    assert table["rows"][1] == ["random order", "0.500", "0.500", "", ""]


def test_randomisation_stands_beside_the_curves() -> None:
    sanity = randomisation_result()
    panel = faithfulness_panel(faithfulness_result(), sanity)
    assert "NaN" not in dump(panel), "a constant map has no rank correlation"
    drawn = [t for t in panel["plot"]["figure"]["data"] if t["xaxis"] == "x3"]
    low, high = (t["y"] for t in drawn[:2])
    assert high == [-v for v in low] and high[0] == round(float(np.nanmax(sanity.chance)), 4)
    third, edges = drawn[2::2], drawn[3::2]
    assert [t["name"] for t in third] == ["stage 1", "stage 2", "stage 3"]
    assert [t["name"] for t in edges] == [f"{t['name']} with edges" for t in third]
    np.testing.assert_allclose(edges[0]["y"], sanity.edges[:, 0], atol=1e-4)
    assert {tuple(t["x"]) for t in third} == {("trained", "head", "stem")}
    assert [t["y"] for t in third] == [[1, 0.5, 0.125], [1, 0.25, -0.5], [None] * 3]
    legend = {e["text"]: e["colour"] for e in panel["plot"]["legend"]}
    assert len(set(legend.values())) == len(legend) == 6, "no two lines have one colour"
    for line in third:
        assert legend[line["name"]] == line["line"]["color"]
    layout = panel["plot"]["figure"]["layout"]
    ends = [layout[f"xaxis{i}"]["domain"] for i in ("", "2", "3")]
    assert all(a[1] < b[0] for a, b in zip(ends, ends[1:], strict=False))
    assert ends[-1][1] == pytest.approx(1)
    assert layout["xaxis3"]["type"] == "category"
    assert panel["sentence"] == "Better than chance. With every weight random: it passes."


def test_randomisation_under_way_shows_the_steps_so_far() -> None:
    sanity = randomisation_result()
    half = replace(sanity, similarity=sanity.similarity[:2], is_final=False, verdict="")
    panel = faithfulness_panel(faithfulness_result(), half)
    third = [t for t in panel["plot"]["figure"]["data"] if t["xaxis"] == "x3"]
    assert {tuple(t["x"]) for t in third} == {("trained", "head")}
    assert panel["sentence"] == "Better than chance."


@pytest.mark.parametrize(
    ("curves_done", "sanity_done", "is_live"),
    [
        (True, None, False),
        (False, None, True),
        (True, True, False),
        (True, False, True),
        (False, True, True),
    ],
)
def test_a_panel_is_live_until_all_is_done(
    curves_done: bool, sanity_done: bool | None, is_live: bool
) -> None:
    sanity = None if sanity_done is None else randomisation_result(is_final=sanity_done)
    panel = faithfulness_panel(faithfulness_result(is_final=curves_done), sanity)
    assert panel["is_live"] is is_live


def test_a_map_of_the_input_is_named_so() -> None:
    result = faithfulness_result(map_name="input", note="A note.")
    panel = faithfulness_panel(result, randomisation_result(note="Another."))
    assert panel["badges"][0]["text"] == "map of the input, “tench”"
    assert panel["notes"] == ["A note.", "Another."]


def test_no_panel_says_nan(rgb: np.ndarray) -> None:
    a = maps_result(verdict=COMPLETE, baseline="black")
    for panel in (
        attribution_lab_panel({"a": a}, {"a": rgb}, 1),
        attribution_paths_panel(two_blocks()),
        attention_panel({"a": attention_result("ss2d", 4)}, rgb),
        faithfulness_panel(faithfulness_result(), randomisation_result()),
    ):
        assert "NaN" not in json.dumps({**panel, "maps": None, "variants": None}, allow_nan=False)
