"""Every line of a compiled kernel's listings with its place in the sources."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from kernels import compiled
from kernels._compiled import lines
from kernels.compiled import CompiledKernel

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and sys.platform != "linux",
    reason="triton has no package for this system",
)
TARGETS = ("sm_90", "gfx942")
EXP2 = {"sm_90": "MUFU.EX2", "gfx942": "v_exp_f32"}


@pytest.fixture(scope="module")
def kernels() -> dict[str, CompiledKernel]:
    """The forward kernel that goes step by step, as it ships."""
    name = "steps_forward-map-rank16-bf16-32x1x1"
    jobs = [(compiled.find(name, target), target) for target in TARGETS]
    found = {target: kernel for _, target, kernel in compiled.compile_many(jobs)}
    assert all(isinstance(kernel, CompiledKernel) for kernel in found.values()), found
    return found


@pytest.mark.parametrize("target", TARGETS)
def test_every_stage_leads_to_the_line_of_the_exponential(kernels, target: str) -> None:
    kernel = kernels[target]
    source = next(iter(kernel.sources))
    texts = kernel.sources[source].splitlines()
    words = {"ttir": "math.exp2", "ttgir": "math.exp2", "llir": "exp2|ex2", "ptx": "ex2.approx"}
    words |= {"sass": "MUFU.EX2", "amdgcn": "v_exp_f32"}
    for stage in compiled.stages(kernel):
        if stage.startswith(lines.SOURCE):
            continue
        found = compiled.annotate(kernel, stage)
        places = [
            texts[frames[-1][1] - 1]
            for text, frames, _, _ in found.lines
            if any(word in text for word in words[stage].split("|")) and frames
            if found.files[frames[-1][0]] == source
        ]
        assert any("h = tl.exp2(dt" in line for line in places), stage
        assert found.n_hidden > 0
        for text, frames, _, _ in found.lines:
            assert "loc(#loc" not in text and "!dbg" not in text and "## File" not in text
            for file, line in frames:
                name = found.files[file]
                assert name in kernel.sources or name.startswith("triton/"), name
                if name in kernel.sources:
                    assert 1 <= line <= kernel.sources[name].count("\n") + 1


@pytest.mark.parametrize("target", TARGETS)
def test_machine_code_has_classes_loops_and_calls(kernels, target: str) -> None:
    kernel = kernels[target]
    stage = compiled.stages(kernel)[-1]
    found = compiled.annotate(kernel, stage)
    looping = [line for line in found.lines if line[3]]
    assert len(looping) == kernel.instructions_in_loops
    assert sum(bool(frames) for _, frames, _, _ in looping) > 0.95 * len(looping)
    exps = [line for line in looping if line[2] == "exp2"]
    assert len(exps) == kernel.exp2_in_loops == kernel.loop_instructions["exp2"]
    assert all(EXP2[target] in text for text, _, _, _ in exps)
    # `softplus` of device.py, called from the kernel.
    chains = {tuple(found.files[file] for file, _ in frames) for _, frames, _, _ in found.lines}
    assert ("kernels/_triton/device.py", "kernels/_triton/steps.py") in chains
    assert sum(kernel.instructions.values()) == sum(bool(kind) for _, _, kind, _ in found.lines)


def test_the_sources_are_stages_too(kernels) -> None:
    kernel = kernels["sm_90"]
    names = compiled.stages(kernel)
    assert names[:2] == ("source", "source:kernels/_triton/device.py")
    found = compiled.annotate(kernel, names[1])
    assert found.files == ("kernels/_triton/device.py",) and found.n_hidden == 0
    assert [frames for _, frames, _, _ in found.lines[:2]] == [((0, 1),), ((0, 2),)]
    with pytest.raises(KeyError):
        compiled.annotate(kernel, "amdgcn")


def test_names_calls_and_fused_places_of_mlir() -> None:
    text = "\n".join(
        (
            '#loc = loc("a.py":3:1)',
            "module {",
            "  %x = op %y loc(#loc4)",
            "  %z = op %x loc(#loc5)",
            "  %n = op loc(#loc1)",
            "}",
            "#loc1 = loc(unknown)",
            '#loc2 = loc("b.py":7:9)',
            '#loc3 = loc("name"(#loc2))',
            "#loc4 = loc(callsite(#loc3 at #loc))",
            "#loc5 = loc(fused[#loc1, #loc4])",
        )
    )
    shown = [(line, frames) for line, frames in lines._mlir(text) if line is not None]
    place = (("b.py", 7), ("a.py", 3))
    assert shown == [
        ("module {", ()),
        ("  %x = op %y", place),
        ("  %z = op %x", place),
        ("  %n = op", ()),
        ("}", ()),
    ]


def test_choices_are_found_by_name_and_nothing_else_is() -> None:
    for target in compiled.TARGETS:
        listed = compiled.choices(target)
        names = [choice.config.name for choice in listed]
        assert len(set(names)) == len(names)
        shipped = [choice.config for choice in listed if choice.origin == "shipped"]
        assert set(map(str, shipped)) == set(map(str, compiled.shipped_configs(target)))
        assert {choice.origin for choice in listed} == {"shipped", "candidate", "ruled out"}
        assert compiled.find(names[-1], target) is listed[-1].config
    with pytest.raises(compiled.CompileError, match="near are steps_forward") as caught:
        compiled.find("steps_forward-map-rank16-bf16-33x1x1", "sm_90")
    assert caught.value.kind == "input"
    with pytest.raises(compiled.CompileError, match="there is no target"):
        compiled.find("steps_forward", "sm_12")


def test_ruled_out_tiles_hold_more_than_the_model_allows() -> None:
    from kernels._triton.tiles import MAX_ELEMENTS, MAX_ELEMENTS_HIP, WAVE

    for target, limits in (("sm_90", MAX_ELEMENTS), ("gfx942", MAX_ELEMENTS_HIP)):
        for choice in compiled.choices(target):
            if choice.origin == "ruled out":
                crosses = choice.num_warps * WAVE > choice.channels * 16
                assert choice.elements > limits[choice.kernel] or (target == "gfx942" and crosses)


def test_the_stored_baseline_is_of_shipped_kernels() -> None:
    version, numbers = compiled.baseline_numbers()
    assert version and numbers
    shipped = {c.name for target in compiled.TARGETS for c in compiled.shipped_configs(target)}
    assert set(numbers) <= shipped
