"""A recorded trace is of what really runs, is whole or absent, and leaves the network alone."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from workbench.analyses import tracing
from workbench.analyses.tracing import module_marks, record_trace, unlisted_note
from workbench.errors import BadInputError, CancelledError
from workbench.progress import CancelToken, Progress

OURS = (tracing.MODULE, tracing.STEP)


def pixels(batch: int = 1, size: int = 64) -> torch.Tensor:
    return torch.randn(batch, 3, size, size)


def record(model, x, path, passes="forward", steps=1) -> list[dict]:
    *progress, last = record_trace(model, x, passes=passes, steps=steps, path=path)
    assert all(isinstance(item, Progress) for item in progress) and last == path
    with gzip.open(path, "rt") as file:
        content = json.load(file)
    assert content["workbench"]["passes"] == passes
    return [e for e in content["traceEvents"] if e.get("ph") == "X" and "cat" in e]


def operators(events: list[dict]) -> list[str]:
    """Names in the order of their start, without our marks."""
    kept = [
        e
        for e in events
        if e["cat"] in ("cpu_op", "user_annotation") and not e["name"].startswith(OURS)
    ]
    return [e["name"] for e in sorted(kept, key=lambda e: (e["ts"], -e["dur"]))]


def paths(events: list[dict]) -> Counter[str]:
    names = (e["name"].removeprefix(tracing.MODULE).partition("|")[0] for e in events
             if e["name"].startswith(tracing.MODULE))  # fmt: skip
    return Counter(names)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("passes", tracing.PASSES)
def test_the_marks_change_nothing_that_runs(network, tmp_path, passes, batch):
    x = pixels(batch)
    events = record(network, x, tmp_path / "t.json.gz", passes)
    _, run = tracing._runner(network, x, passes)
    run()
    with tracing.profiler(x.device) as trace, tracing.record_function("ProfilerStep#0"):
        run()
    trace.export_chrome_trace(str(tmp_path / "plain.json.gz"))
    with gzip.open(tmp_path / "plain.json.gz", "rt") as file:
        plain = [e for e in json.load(file)["traceEvents"] if e.get("ph") == "X" and "cat" in e]
    assert operators(events) == operators(plain)
    if passes == "forward":
        assert any(name.startswith("map_ops::") for name in operators(events)), "runs fused"


def test_a_hook_would_have_changed_it(network, tmp_path):
    """The comparison above can fail: a watched block runs other operators."""
    plain = operators(record(network, pixels(), tmp_path / "a.json.gz"))
    twin, run = tracing._runner(network, pixels(), "forward")
    for module in module_marks(twin).values():
        module.register_forward_pre_hook(lambda *_: None)
    with tracing.profiler(torch.device("cpu")) as trace:
        run()
    hooked = Counter(e.name for e in trace.events())
    assert hooked["map_ops::depthwise_conv"] < Counter(plain)["map_ops::depthwise_conv"]


def test_steps_hold_modules_in_their_tree(network, tmp_path):
    events = record(network, pixels(2), tmp_path / "t.json.gz", steps=3)
    steps = sorted(
        (e for e in events if e["name"].startswith("ProfilerStep#")), key=lambda e: e["ts"]
    )
    assert [e["name"] for e in steps if e["cat"] == "user_annotation"] == [
        "ProfilerStep#0",
        "ProfilerStep#1",
        "ProfilerStep#2",
    ]
    calls = paths(events)
    assert calls[""] == calls["stages.0"] == calls["classifier.head"] == 3
    # Both paths of a block ask its gate.
    assert calls["stages.0.blocks.0"] == 3
    assert calls["stages.0.blocks.0.op.scan"] == calls["stages.0.blocks.0.op"]
    assert calls["stages.0.blocks.0.se"] == 2 * calls["stages.0.blocks.0.op"]
    assert calls["stages.2.blocks.1.se"] == calls["stages.2.downsample"] == 3
    spans = {}
    for e in events:
        if e["name"].startswith(tracing.MODULE):
            path = e["name"].removeprefix(tracing.MODULE).partition("|")[0]
            spans.setdefault(path, []).append((e["ts"], e["ts"] + e["dur"]))
    for path, own in spans.items():
        parent = path.rpartition(".")[0].removesuffix(".blocks")
        around = spans.get(parent if parent in spans else "", [])
        for start, end in own if path else []:
            assert any(a <= start and end <= b for a, b in around), path


def test_modules_that_run_fused_are_named(network, tmp_path):
    forward = set(paths(record(network, pixels(), tmp_path / "f.json.gz")))
    note = unlisted_note(network, forward)
    assert "in_proj of ES2D (2)" in note and "conv2d of ES2D (2)" in note
    train = set(paths(record(network, pixels(), tmp_path / "t.json.gz", "train")))
    note = unlisted_note(network, train)
    assert "in_proj of ES2D (2)" in note and "conv2d" not in note
    assert unlisted_note(network, module_marks(network)) == ""


@pytest.mark.parametrize("passes", tracing.PASSES)
def test_the_network_is_left_alone(network, tmp_path, n_hooks, passes):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    needs = [p.requires_grad for p in network.parameters()]
    events = record(network, pixels(2), tmp_path / "t.json.gz", passes)
    assert any("backward" in e["name"].lower() for e in events) == (passes == "train")
    assert n_hooks(network) == 0 and not network.training
    assert all("forward" not in m.__dict__ for m in network.modules())
    assert needs == [p.requires_grad for p in network.parameters()]
    assert all(p.grad is None for p in network.parameters())
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_stop_between_steps_leaves_nothing(network, tmp_path, monkeypatch):
    token = CancelToken()
    calls = []

    def stop_at_the_third(*args):
        calls.append(1)
        if len(calls) == 3:
            token.cancel()

    monkeypatch.setattr(tracing, "wait", stop_at_the_third)
    path = tmp_path / "t.json.gz"
    with pytest.raises(CancelledError):
        list(record_trace(network, pixels(), passes="forward", steps=50, path=path, token=token))
    assert len(calls) == 3 and list(tmp_path.iterdir()) == []
    assert not torch.autograd._profiler_enabled()


def test_a_failed_export_leaves_nothing(network, tmp_path, monkeypatch):
    def fail(self, path):
        Path(path).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(torch.profiler.profile, "export_chrome_trace", fail)
    with pytest.raises(OSError, match="disk full"):
        record(network, pixels(), tmp_path / "t.json.gz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({"passes": "backward", "steps": 1}, 64, "forward, train"),
        ({"passes": "forward", "steps": 0}, 64, "1 to 50"),
        ({"passes": "forward", "steps": 51}, 64, "1 to 50"),
        ({"passes": "train", "steps": 1}, 32, "larger input or two images"),
    ],
)
def test_bad_input_is_said_in_words(network, tmp_path, options, size, words):
    with pytest.raises(BadInputError, match=words):
        list(record_trace(network, pixels(1, size), path=tmp_path / "t", **options))
