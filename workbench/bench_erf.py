"""`python -m workbench.bench_erf`: receptive fields on this machine, correctness first.

Four questions. How much do N images cost beside N plain forward and backward passes of the network?
How long does the page's default view take, and how long until its first picture? Do ten times the
images cost ten times the time and no more memory? How long do the four stages of a network take
beside four runs of OpenERF on the same images, whose maps are reproduced before anything is timed?
What is compared takes turns in one process, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openerf
import torch
from openerf.data import FlatImageDataset, build_timm_eval_transform
from PIL import Image
from torch import Tensor, nn

import models
from kernels._bench.report import describe, write
from models.efficientvmamba import IMAGENET_MEAN, IMAGENET_STD
from workbench.analyses.erf import Target, fields
from workbench.analyses.erf.engine import batches
from workbench.analyses.networks import Network
from workbench.analyses.scan_network import ScanNetwork
from workbench.analyses.timm_network import load_timm
from workbench.results import UNKNOWN, ErfResult
from workbench.runtime import Workbench
from workbench.settings import Settings
from workbench.view import View

SIZE = 224
STAGES = (1, 2, 3, 4)
PEERS = ("efficientvmamba_tiny", "resnet18", "convnext_tiny")
# Total variation from OpenERF's map. Convolutions round in another way in another layout, and where
# that moves a value across a ReLU's corner, a gradient is another one: 1e-4 for ResNet, 1e-7 for
# ours.
TOLERANCE = 1e-3
# Of each: what it may take at most.
MAX_COST = 1.25
MAX_VIEW_S, MAX_FIRST_S = 25.0, 3.0
MIN_SPEEDUP = 2.0
GROWTH = 10
GROWTH_SIZE = 112  # px
MAX_GROWTH = 1.1 * GROWTH  # of the time; the memory may grow by a tenth: noise of two processes
NOT_MEASURED = replace(UNKNOWN, is_random=True)


class Noise(Sequence[tuple[str, np.ndarray]]):
    """`n` images made when they are asked for, so that only one is held."""

    def __init__(self, n: int, size: int) -> None:
        self._n, self._size = n, size

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index):
        if not 0 <= index < self._n:
            raise IndexError(index)
        rng = np.random.default_rng(index)
        return str(index), rng.standard_normal((3, self._size, self._size), dtype=np.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.grow is not None:
        say(json.dumps(grown(options.grow, options.model)))
        return 0
    return answer(QUESTIONS, sentence, options, "erf")


def answer(
    questions: Mapping[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]],
    words: Callable[[dict[str, Any]], str],
    options: argparse.Namespace,
    name: str,
) -> int:
    """Ask `options.questions`, say and write every row; exit status 1 if one was wrong."""
    environment = describe(torch.device("cpu"))
    say(" · ".join(f"{key} {value}" for key, value in environment.items()))
    rows: list[dict[str, Any]] = []
    for question in options.questions:
        for row in questions[question](options):
            say(words(row))
            rows.append(row)
    write(options.out, name, environment, rows)
    return 0 if all(row.get("is_correct", True) for row in rows) else 1


# (a) Beside plain forward and backward passes


def cost_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """N images against N passes forward to the stage and back to the pixels, at the same batch."""
    network = _ours(options.model)
    images = [Noise(options.images, SIZE)[i] for i in range(options.images)]
    for stage in (2, 4):
        unit = f"stage{stage}"
        grid = network.grid(unit, SIZE, SIZE)
        target = Target(unit, grid.rows // 2, grid.columns // 2)
        pieces = batches(range(len(images)), SIZE, SIZE, network)

        def plain(stage: int = stage, target: Target = target, pieces: Any = pieces) -> None:
            for piece in pieces:
                x = torch.from_numpy(np.stack([images[i][1] for i in piece])).requires_grad_(True)
                found = network.model.forward_intermediates(
                    x, indices=[stage - 1], stop_early=True, intermediates_only=True
                )
                torch.autograd.grad(found[0][:, :, target.y, target.x].relu().sum(), x)

        def field(target: Target = target) -> None:
            _field(network, images, [target], "mass")

        ours, theirs = in_turns([field, plain], options.repeats)
        ratio = float(np.median(ours / theirs))
        yield {
            "question": "cost",
            "case": f"{options.model}, {unit}, {len(images)} images, batch {len(pieces[0])}",
            **times_of(ours),
            "other": "plain forward and backward passes",
            "other_p50_s": float(np.median(theirs)),
            "ratio": ratio,
            "limit": MAX_COST,
            "is_met": ratio <= MAX_COST,
        }


# (b) The page's default view


def view_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Two networks over seeded crops, as the page computes them; models are loaded anew."""
    firsts, totals, label = [], [], ""
    for _ in range(options.repeats):
        workbench = Workbench(Settings.from_env())
        workbench.warm_up()
        view = workbench.resolve(View(tab="erf"))
        started = time.perf_counter()
        first = None
        for item in workbench.erf_lab.compare(view):
            if first is None and item.fields:
                first = time.perf_counter() - started
        assert first is not None
        firsts.append(first)
        totals.append(time.perf_counter() - started)
        label = ", ".join(
            f"{field.network} {field.unit} ({field.n_images} images)"
            for field in item.fields.values()
        )
    first, total = float(np.median(firsts)), float(np.median(totals))
    yield {
        "question": "view",
        "case": label,
        **times_of(np.array(totals)),
        "first_p50_s": first,
        "limit": MAX_VIEW_S,
        "first_limit": MAX_FIRST_S,
        "is_met": total <= MAX_VIEW_S and first <= MAX_FIRST_S,
    }


# (c) Ten times the images


def growth_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each number of images in a process of its own, whose highest memory is then its own."""
    found: dict[int, list[dict[str, float]]] = {}
    counts = (options.images, GROWTH * options.images)
    for _ in range(options.repeats):
        for n in counts:
            command = [sys.executable, "-m", "workbench.bench_erf", "--grow", str(n)]
            command += ["--threads", str(torch.get_num_threads()), "--model", options.model]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.setdefault(n, []).append(json.loads(done.stdout.splitlines()[-1]))
    few, many = (found[n] for n in counts)
    ratio = float(np.median([b["seconds"] / a["seconds"] for a, b in zip(few, many, strict=True)]))
    memory = [float(np.median([run["peak_mib"] for run in runs])) for runs in (few, many)]
    yield {
        "question": "growth",
        "case": f"{options.model}, stage 2, {counts[1]} images, {GROWTH_SIZE} px",
        **times_of(np.array([run["seconds"] for run in many])),
        "other": f"{counts[0]} images",
        "other_p50_s": float(np.median([run["seconds"] for run in few])),
        "ratio": ratio,
        "peak_mib": memory[1],
        "other_peak_mib": memory[0],
        "limit": MAX_GROWTH,
        "is_met": ratio <= MAX_GROWTH and memory[1] <= 1.1 * memory[0],
    }


def grown(n: int, model: str) -> dict[str, float]:
    """Seconds and peak memory of one field over `n` images."""
    size = GROWTH_SIZE
    network = _ours(model)
    grid = network.grid("stage2", size, size)
    target = Target("stage2", grid.rows // 2, grid.columns // 2)
    _field(network, Noise(4, size), [target], "mass")
    started = time.perf_counter()
    _field(network, Noise(n, size), [target], "mass")
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.is_file():  # `getrusage` counts what the process that started this one held, too
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# (d) Beside OpenERF


class Files(Sequence[tuple[str, np.ndarray]]):
    """The images as OpenERF reads them, read when asked for."""

    def __init__(self, dataset: FlatImageDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index):
        pixels, name = self._dataset[index]
        return name, pixels.numpy()


class AsMaps(nn.Module):
    """Our network as OpenERF can watch it: modules `layer1` to `layer4` whose output is a map
    `[B, C, h, w]`."""

    def __init__(self, model: models.EfficientVMamba) -> None:
        super().__init__()
        self.network = model
        for stage in STAGES:
            self.add_module(f"layer{stage}", nn.Identity())
        self.pretrained_cfg = {
            "input_size": (3, SIZE, SIZE),
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
        }

    def forward(self, x: Tensor) -> Tensor:
        for stage, output in enumerate(self.network.forward_stages(x, len(STAGES)), start=1):
            x = self.get_submodule(f"layer{stage}")(output.permute(0, 3, 1, 2))
        return x


def peer_rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The four stages in one pass against four runs of OpenERF, from files on both sides."""
    with tempfile.TemporaryDirectory() as folder:
        _save_images(Path(folder), options.peer_images)
        for name in options.peers:
            yield from _peer_rows(name, folder, options)


def _peer_rows(name: str, folder: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    network: Network
    if name in models.list_models():
        network = _ours(name)
        watched: nn.Module = AsMaps(network.module)  # type: ignore[arg-type]
        layers = [f"layer{stage}" for stage in STAGES]
    else:
        network = load_timm(name, seed=0, size=(SIZE, SIZE), device=torch.device("cpu"))
        # The network as timm makes it: channels first.
        watched = copy.deepcopy(network.module).to(memory_format=torch.contiguous_format)
        layers = [info["module"] for info in watched.feature_info[-4:]]  # type: ignore
    transform, _ = build_timm_eval_transform(watched)
    images = Files(FlatImageDataset(folder, transform))
    targets = []
    for stage in STAGES:
        grid = network.grid(f"stage{stage}", SIZE, SIZE)
        targets.append(Target(f"stage{stage}", grid.rows // 2, grid.columns // 2))

    def theirs(layer: str) -> np.ndarray:
        found = openerf.compute_erf(
            watched, image_dir=folder, target_layer=layer, device="cpu", show_progress=False
        )
        return found.erf_map

    mine = _field(network, images, targets, "openerf")
    errors = [
        0.5 * float(abs(result.mass - theirs(layer)).sum())
        for result, layer in zip(mine, layers, strict=True)
    ]
    error = float(np.max(errors))
    case = f"{name}, {len(images)} images"
    if not error <= TOLERANCE:
        yield {
            "question": "peer",
            "case": case,
            "error": error,
            "is_correct": False,
            "status": "the maps differ: nothing is timed",
        }
        return
    runs: list[Callable[[], object]] = [
        lambda: _field(network, images, targets, "openerf"),
        lambda: _field(network, images, targets[-1:], "openerf"),
        *(lambda layer=layer: theirs(layer) for layer in layers),
    ]
    all_stages, last_stage, *of_layers = in_turns(runs, options.repeats)
    for words, ours, other in (
        ("four stages", all_stages, np.sum(of_layers, axis=0)),
        ("stage 4 alone", last_stage, of_layers[-1]),
    ):
        speedup = float(np.median(other / ours))
        row = {
            "question": "peer",
            "case": f"{case}, {words}",
            "error": error,
            "is_correct": True,
            **times_of(ours),
            "other": f"OpenERF {openerf_version()}",
            "other_p50_s": float(np.median(other)),
            "speedup": speedup,
        }
        if words == "four stages":
            row |= {"limit": MIN_SPEEDUP, "is_met": speedup >= MIN_SPEEDUP}
        yield row


def openerf_version() -> str:
    from importlib.metadata import version

    return version("openerf")


def _save_images(folder: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(n):
        coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((256, 256), Image.Resampling.BICUBIC)
        image.save(folder / f"{i:03}.png")


# What they share


def _ours(name: str) -> ScanNetwork:
    model = models.create_model(name, num_classes=10, seed=0).eval().requires_grad_(False)
    return ScanNetwork(model, name)


def _field(
    network: Network, images: Any, targets: Sequence[Target], definition: str
) -> tuple[ErfResult, ...]:
    *_, last = fields(network, images, targets, definition=definition, provenance=NOT_MEASURED)
    return last


def in_turns(runs: Sequence[Callable[[], object]], repeats: int) -> np.ndarray:
    """Seconds of each run `[runs, repeats]`, taken in turns after one round of warm-up."""
    times = np.empty((len(runs), repeats))
    for run in runs:
        run()
    for repeat in range(repeats):
        for i, run in enumerate(runs):
            started = time.perf_counter()
            run()
            times[i, repeat] = time.perf_counter() - started
    return times


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def times_of(seconds: np.ndarray) -> dict[str, float]:
    p20, p50, p80 = (float(v) for v in np.percentile(seconds, (20, 50, 80)))
    return {"n": len(seconds), "p20_s": p20, "p50_s": p50, "p80_s": p80}


def sentence(row: dict[str, Any]) -> str:
    if "p50_s" not in row:
        return f"{row['case']}: error {row['error']:.1e}: {row['status']}"
    parts = [f"{row['p50_s']:.2f} s (p20 {row['p20_s']:.2f}, p80 {row['p80_s']:.2f})"]
    if "first_p50_s" in row:
        parts.append(f"first picture {row['first_p50_s']:.2f} s")
    if "other" in row:
        parts.append(f"{row['other']} {row['other_p50_s']:.2f} s")
    if "ratio" in row:
        parts.append(f"ratio {row['ratio']:.2f}")
    if "speedup" in row:
        parts.append(f"{row['speedup']:.2f} times as fast, maps within {row['error']:.0e}")
    if "peak_mib" in row:
        parts.append(f"peak {row['peak_mib']:.0f} MiB against {row['other_peak_mib']:.0f} MiB")
    if "is_met" in row:
        parts.append("as wanted" if row["is_met"] else "NOT as wanted")
    return f"{row['question']}: {row['case']}: {', '.join(parts)}"


QUESTIONS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "cost": cost_rows,
    "view": view_rows,
    "growth": growth_rows,
    "peer": peer_rows,
}


def _parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m workbench.bench_erf", description=(__doc__ or "").partition(":")[2].strip()
    )
    p.add_argument(
        "questions", nargs="*", default=list(QUESTIONS), help=f"any of {', '.join(QUESTIONS)}"
    )
    p.add_argument("--model", default="efficientvmamba_tiny", choices=models.list_models())
    p.add_argument("--peers", nargs="+", default=list(PEERS), help="networks run by OpenERF too")
    p.add_argument("--images", type=int, default=32)
    p.add_argument("--peer-images", type=int, default=16)
    p.add_argument("--repeats", type=int, default=5)
    p.add_argument("--threads", type=int, help="torch threads; default: torch's own choice")
    p.add_argument(
        "--out", type=Path, default=Path("build/bench"), help="folder for erf.{json,csv}"
    )
    p.add_argument("--grow", type=int, help=argparse.SUPPRESS)  # the process of `growth_rows`
    return p


if __name__ == "__main__":
    sys.exit(main())
