"""The neighbouring tokens of one ES2D cell: which sequence reads each, and what each sees."""

from __future__ import annotations

import numpy as np
import pytest

import models
from workbench.analyses.erf import Target, fields, phases
from workbench.analyses.networks import Grid, Unit
from workbench.analyses.scan_network import ScanNetwork
from workbench.errors import BadInputError


@pytest.fixture
def net(network):
    return ScanNetwork(network, "Test")


@pytest.fixture
def images(photo):
    return [(f"image {i}", photo(64, 96, seed=i)) for i in range(2)]


def last(run):
    *_, result = run
    return result


def test_the_four_phases_of_a_cell(net, images, provenance):
    found = last(phases(net, images, 1, 7, 10, provenance=provenance))
    assert (found.stage, found.step, found.note, found.is_final) == (1, 2, "", True)
    assert [(p.field.y, p.field.x) for p in found.phases] == [(6, 10), (6, 11), (7, 10), (7, 11)]
    assert [(p.row, p.column) for p in found.phases] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    # Rows read even rows row by row and odd rows column by column (the authors' order).
    assert [p.group for p in found.phases] == [0, 2, 1, 3]
    assert [p.direction for p in found.phases] == ["row-major"] * 2 + ["column-major"] * 2
    for phase in found.phases:
        target = Target("stage1", phase.field.y, phase.field.x)
        *_, (alone,) = fields(net, images, [target], provenance=provenance)
        np.testing.assert_allclose(phase.field.mass, alone.mass, rtol=1e-4, atol=1e-9)


def test_phases_see_what_their_sequence_has_read(fresh_network, photo, provenance):
    """Through the scan alone, gates frozen: even rows see above, odd rows see to the left."""
    net = ScanNetwork(fresh_network, "Test")
    targets = [Target("stage1.block1.scan", y, x) for y, x in ((8, 8), (9, 8))]
    above, left = next(
        fields(net, [("a", photo(64, 64))], targets, gates="frozen", provenance=provenance)
    )
    # Rows and columns of tokens, a margin of one for the 3 x 3 convolution.
    assert above.mass[: 7 * 4].sum() > 0 and above.mass[10 * 4 :].sum() == 0
    assert above.mass[: 7 * 4, 12 * 4 :].sum() > 0, "a row above is read to its end"
    assert left.mass[:, : 7 * 4].sum() > 0 and left.mass[:, 10 * 4 :].sum() == 0
    assert left.mass[12 * 4 :, : 7 * 4].sum() > 0, "a column to the left is read to its end"


@pytest.mark.parametrize("step", [3, 4])
def test_other_steps_have_as_many_phases(network, images, provenance, step):
    net = ScanNetwork(models.with_scan(network, "es2d", step=step), "Test")
    found = last(phases(net, images, 1, 5, 7, provenance=provenance))
    assert found.step == step and len(found.phases) == step * step
    assert len({p.group for p in found.phases}) == step * step
    assert all(p.row == p.field.y % step for p in found.phases)


def test_tokens_outside_the_map_are_left_out(network, photo, provenance):
    net = ScanNetwork(models.with_scan(network, "es2d", step=3), "Test")
    images = [("a", photo(64, 64))]  # 16 x 16 tokens: the last cell has one row and one column
    found = last(phases(net, images, 1, 15, 15, provenance=provenance))
    assert [(p.field.y, p.field.x) for p in found.phases] == [(15, 15)]
    assert found.note == "8 of the cell's 9 tokens lie outside the map."


@pytest.mark.parametrize("stage", [3, 4])
def test_merging_has_mixed_them_from_stage_3_on(net, images, provenance, stage):
    (found,) = phases(net, images, stage, 1, 1, provenance=provenance)
    assert found.phases == () and found.is_final
    assert "merging after stage 2 has mixed the phases" in found.note


@pytest.mark.parametrize(
    ("spec", "words"),
    [("ss2d", "reads every token in each sequence"), ("es2d:step=1", "with step 1")],
)
def test_schemes_without_phases_say_so(network, images, provenance, spec, words):
    net = ScanNetwork(models.with_scan(network, spec), "Test")
    (found,) = phases(net, images, 1, 3, 3, provenance=provenance)
    assert found.phases == () and words in found.note


def test_another_network_has_no_phases(images, provenance):
    class Other:
        label, has_gates = "resnet18", False

        def units(self):
            return (Unit("stage1", "stage 1", 1),)

        def grid(self, unit, height, width):
            return Grid(height, width, 1, (0.5, 0.5))

    (found,) = phases(Other(), images, 1, 3, 4, provenance=provenance)
    assert found.phases == () and "resnet18 has no scan" in found.note


def test_a_token_outside_is_refused(net, images, provenance):
    with pytest.raises(BadInputError, match="outside stage 2, which has 8 x 12 tokens"):
        list(phases(net, images, 2, 8, 0, provenance=provenance))
