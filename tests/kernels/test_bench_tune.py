"""How `--tune` selects and writes, with made-up times: no GPU is needed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from kernels._bench import tune
from kernels._bench.limits import Budget
from kernels._bench.tune import Trial
from kernels._triton import tiles, trials
from kernels._triton.tiles import Tile

FIRST, FAST, WRONG, BROKEN = (Tile(n, 1, 1, 1) for n in (8, 16, 32, 64))


def choose(seconds: dict[Tile, float], budget: Budget | None = None):
    def error_of(tile: Tile) -> float:
        if tile == BROKEN:
            raise RuntimeError("out of resource: shared memory")
        return float("nan") if tile == WRONG else 1e-7

    def seconds_of(tile: Tile) -> float:
        assert tile not in (WRONG, BROKEN), "timed although wrong"
        return seconds[tile]

    return tune.choose(
        [FIRST, WRONG, BROKEN, FAST], error_of, seconds_of, 1e-5, budget or Budget(10)
    )


def test_the_fastest_right_tile_wins() -> None:
    best, tried = choose({FIRST: 2e-5, FAST: 1e-5})
    assert best == FAST
    reasons = {t.tile: t.reason for t in tried}
    assert reasons[WRONG] == "WRONG: relative L2 nan"
    assert reasons[BROKEN] == "RuntimeError: out of resource: shared memory"
    assert reasons[FIRST] == reasons[FAST] == ""
    words = tune.sentence(tune.jobs()[0], best, tried)
    assert "16 channels x 1 steps, 1 warps, 10.0 us, the table's 20.0 us" in words
    assert "2 of 4 candidates timed, 1 wrong" in words


def test_the_table_s_tile_stays_unless_another_is_clearly_faster() -> None:
    assert choose({FIRST: 1.00e-5, FAST: 0.99e-5})[0] == FIRST


def test_a_row_that_was_not_finished_is_not_chosen() -> None:
    best, trials = choose({}, Budget(0))
    assert best is None and trials[-1].reason == "time budget"
    assert "nothing chosen" in tune.sentence(tune.jobs()[0], best, trials)


def test_every_row_of_the_table_has_a_job() -> None:
    keys = {job.key for job in tune.jobs()}
    for channels in (96, 128, 192, 256, 384):
        for kernel in tiles.KERNELS:
            for dtype in (torch.float32, torch.bfloat16):
                assert tiles.row_key(kernel, channels, 16, dtype) in keys
    assert all((job.which == "forward") == job.kernel.endswith("forward") for job in tune.jobs())


def test_a_trial_changes_no_file_and_is_forgotten(tmp_path) -> None:
    def current() -> Tile:
        return tiles.tile_for("steps_forward", 96, 16, torch.float32, "cuda:90", "Test GPU")

    before, text = current(), tiles.TABLE.read_text()
    key = tiles.row_key("steps_forward", 96, 16, torch.float32)
    with tune.trial_table(tiles.TABLE, "Test GPU", key, Tile(2, 1, 4, 1)):
        assert (current().channels, current().num_warps) == (2, 4)
    assert current() == before and tiles.TABLE.read_text() == text


def test_what_was_chosen_is_written_with_device_and_date(tmp_path) -> None:
    table = tmp_path / "tiles.json"
    table.write_text(tiles.TABLE.read_text())
    tune.save(table, "Test GPU", {"a row": FAST})
    content = json.loads(table.read_text())
    assert content["measured"]["Test GPU"]["a row"]["channels"] == 16
    assert content["measured_at"]["Test GPU"].startswith("20")


def test_all_trials_are_kept_with_their_reasons(tmp_path: Path) -> None:
    path = trials.path_beside(tmp_path / "tiles.json")
    assert trials.trials(path) == ()
    slow, fast, wrong = (Tile(8, 4, warps, 1) for warps in (1, 2, 4))
    found = [Trial(slow, 2e-5), Trial(fast, 1e-5), Trial(wrong, None, "WRONG: relative L2 0.3")]
    rows = [(trial.tile, tune.values_of(trial, fast)) for trial in found]
    key = "steps_backward,channels=128,states=16,fp32"
    trials.write(path, "A GPU", "2026-11-28T12:00:00+00:00", {key: rows})
    trials.write(path, "Another", "2026-11-28T13:00:00+00:00", {key: rows[:1]})
    kept = trials.trials(path)
    assert [trial.device for trial in kept] == ["A GPU"] * 3 + ["Another"]
    assert kept[1].is_chosen and not kept[0].is_chosen and kept[1].microseconds == 10
    assert kept[2].status.startswith("WRONG") and math.isnan(kept[2].microseconds)
    assert (kept[0].kernel, kept[0].row) == tuple(key.split(",", 1))
    # Measured again, a device's rows are replaced.
    trials.write(path, "A GPU", "2026-11-29T12:00:00+00:00", {key: rows[:2]})
    assert len(trials.trials(path)) == 3


@pytest.mark.parametrize("damage", ["", "[]", '{"GPU": {"row": {"trials": 3}}}', "{"])
def test_damaged_trials_are_set_aside_by_the_next_tuning(tmp_path: Path, damage: str) -> None:
    path = trials.path_beside(tmp_path / "tiles.json")
    path.write_text(damage)
    assert trials.trials(path) == ()
    row = (FIRST, tune.values_of(Trial(FIRST, 1.0), None))
    trials.write(path, "A GPU", "now", {"steps_forward,row": [row]})
    assert len(trials.trials(path)) == 1
    assert path.with_name(f"{path.name}.damaged").read_text() == damage
