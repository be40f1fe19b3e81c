"""Measure a model on a folder of images: `python -m models.evaluate DATA --weights FILE`.

Top-1 and top-5 accuracy, confusion, calibration and throughput at one or more image sizes, with
the provenance of weights, data and program, printed and (with `--json`) written to a file.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import models
from models.checkpoints import read_checkpoint
from models.efficientvmamba import EfficientVMamba
from models.registry import available_weights
from models.training import metrics
from models.training.data import (
    Split,
    centre_batches,
    describe,
    find_split,
    normalise,
    open_store,
)
from models.training.errors import TrainingError
from models.training.state import write_atomically, write_json


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m models.evaluate", description=__doc__.split("\n\n")[0]
    )
    p.add_argument("data", type=Path, help="folder with val/<class>")
    p.add_argument("--split", default="val", help="folder in DATA to measure on (default val)")
    p.add_argument("--model", help="one of models.list_models(); default: the one in the file")
    p.add_argument("--weights", required=True, help="what create_model takes, or 'random'")
    p.add_argument("--scan", help="scan scheme; default: the one in the file, else es2d")
    p.add_argument("--sizes", default="224", help="image sizes, e.g. 160,224 (default 224)")
    p.add_argument("--batch-size", type=int, default=32)
    p.add_argument("--cache", type=Path, help="folder for decoded images")
    p.add_argument("--cache-side", type=int, default=256)
    p.add_argument("--workers", type=int, default=0, help="processes that read images")
    p.add_argument("--device", help="cpu, cuda, ...; default: a GPU where there is one")
    p.add_argument("--threads", type=int, help="CPU threads of torch")
    p.add_argument("--strict-images", action="store_true", help="stop at an unreadable image")
    p.add_argument("--json", type=Path, help="write everything there")
    p.add_argument("--logits", type=Path, help="write logits and labels per size there (.npz)")
    p.add_argument("--against", type=Path, help="--logits file of another model to compare with")
    p.set_defaults(command=shlex.join(["python", "-m", "models.evaluate", *sys.argv[1:]]))
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    return p


def load_model(args: argparse.Namespace, n_classes: int) -> tuple[EfficientVMamba, str]:
    """The model to measure and its registry name; its head must have as many classes as DATA."""
    if args.weights == "random":
        name = args.model or "efficientvmamba_tiny"
        scan = args.scan or "es2d"
        return models.create_model(name, num_classes=n_classes, scan=scan), name
    shipped = {w.name: (name, w) for name in models.list_models() for w in available_weights(name)}
    found: tuple[str | None, str | None] = (None, None)
    if args.weights in shipped:
        found = (shipped[args.weights][0], shipped[args.weights][1].trained_scan)
    elif args.weights != "default":
        metadata = read_checkpoint(args.weights).metadata
        found = (metadata.get("model"), metadata.get("scan"))
    name = args.model or found[0] or "efficientvmamba_tiny"
    scan = args.scan or found[1] or "es2d"
    model = models.create_model(name, weights=args.weights, scan=scan)
    if model.num_classes != n_classes:
        raise TrainingError(
            f"{args.weights} knows {model.num_classes} classes, {args.data / args.split} has "
            f"{n_classes} class folders. Give weights and data of the same classes."
        )
    return model, name


def throughput(
    model: EfficientVMamba, size: int, batch_size: int, device: torch.device, repeats: int = 7
) -> dict[str, float]:
    """Images per second of the forward pass alone: median and quartiles after one warm-up."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch_size, 3, size, size), generator=generator)
    images = normalise(pixels.to(torch.uint8).to(device))
    seconds = []
    model.eval()
    with torch.inference_mode():
        for _ in range(repeats + 1):
            synchronise(device)
            started = time.perf_counter()
            model(images)
            synchronise(device)
            seconds.append(time.perf_counter() - started)
    p25, p50, p75 = (float(v) for v in np.percentile(seconds[1:], (25, 50, 75)))
    return {
        "batch_size": batch_size,
        "repeats": repeats,
        "images_per_second_p50": batch_size / p50,
        "images_per_second_p25": batch_size / p75,
        "images_per_second_p75": batch_size / p25,
    }


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarise(got: metrics.Predictions, classes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy (per cent), loss (nats), confusion counts and calibration of one split."""
    bins = metrics.calibration(got.logits, got.labels)
    counts = metrics.confusion(got.logits, got.labels)
    per_class = counts.diag() / counts.sum(1).clamp(min=1)
    return {
        "n_images": len(got.labels),
        "n_skipped": len(got.problems),
        "top1": metrics.top_k(got.logits, got.labels, 1),
        "top5": metrics.top_k(got.logits, got.labels, 5),
        "loss": metrics.mean_loss(got.logits, got.labels),
        "top1_per_class": {
            name: round(100 * value, 2)
            for name, value in zip(classes, per_class.tolist(), strict=True)
        },
        "confusion": counts.tolist(),
        "calibration": {
            "expected_error": bins.expected_error,
            "edges": bins.edges,
            "counts": bins.counts,
            "confidence": bins.confidence,
            "accuracy": bins.accuracy,
        },
    }


def measure(
    model: EfficientVMamba, split: Split, args: argparse.Namespace, sizes: list[int]
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Results per size, and the logits behind them."""
    device = next(model.parameters()).device
    store = open_store(split, args.cache, args.cache_side)
    classes = model.weights_info.classes or split.classes
    results: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for size in sizes:
        loader = centre_batches(store, split.labels, size, args.batch_size, args.workers)
        title = f"{split.name} at {size} px"
        with tqdm(total=len(split.files), desc=title, disable=args.quiet) as bar:
            got = metrics.predict(model, loader, device, lambda n: bar.update(n))  # noqa: B023
        for index, problem in got.problems.items():
            message = f"{split.files[index]}: {problem}"
            if args.strict_images:
                raise TrainingError(f"Unreadable image {message}.")
            tqdm.write(f"left out: {message}")
        if len(got.labels) == 0:
            raise TrainingError(f"No image of {split.name} could be read; check the folder.")
        results[str(size)] = {
            **summarise(got, classes),
            "throughput": throughput(model, size, args.batch_size, device),
        }
        arrays[f"logits_{size}"] = got.logits.numpy()
        arrays[f"labels_{size}"] = got.labels.numpy()
        arrays[f"indices_{size}"] = got.indices.numpy()
    return results, arrays


def compare(
    arrays: dict[str, np.ndarray], file: Path, sizes: list[int]
) -> dict[str, dict[str, float]]:
    """Top-1 less that of the logits in `file`, image by image, for each size that both have."""
    try:
        with np.load(file) as loaded:
            other = dict(loaded)
    except (OSError, ValueError) as error:
        raise TrainingError(f"--against {file}: cannot be read ({error}).") from None
    differences = {}
    for size in sizes:
        keys = [f"{part}_{size}" for part in ("logits", "labels", "indices")]
        if not set(keys) <= set(other):
            raise TrainingError(f"--against {file} has no {size} px; measure it at that size too.")
        logits, labels, indices = keys
        if not np.array_equal(arrays[indices], other[indices]) or not np.array_equal(
            arrays[labels], other[labels]
        ):
            raise TrainingError(f"--against {file} is of other images; measure both on the same.")
        correct = arrays[logits].argmax(1) == arrays[labels]
        also = other[logits].argmax(1) == other[labels]
        differences[str(size)] = dataclasses.asdict(metrics.paired_difference(correct, also))
    return differences


def provenance(
    model: EfficientVMamba, name: str, split: Split, device: torch.device, command: str
) -> dict[str, Any]:
    """Weights, data, program and machine: what is needed to repeat the figures."""
    info = model.weights_info
    return {
        "model": name,
        "weights": info.description,
        "weights_sha256": info.sha256,
        "trained_scan": info.trained_scan,
        "scan": str(models.get_scan(model)),
        "data": describe(split),
        "crop": "largest centred square, bicubic with antialiasing",
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "command": command,
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    try:
        sizes = [int(v) for v in args.sizes.split(",")]
    except ValueError:
        raise TrainingError(f"--sizes {args.sizes!r}: write pixels, e.g. 160,224.") from None
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    split = find_split(args.data, args.split)
    model, name = load_model(args, len(split.classes))
    model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    results, arrays = measure(model, split, args, sizes)
    if args.against:
        for size, difference in compare(arrays, args.against, sizes).items():
            results[size]["difference"] = difference
    facts = provenance(model, name, split, device, args.command)
    report = {"format": 1, "provenance": facts, "sizes": results}
    if args.json:
        write_json(args.json, report)
    if args.logits:
        write_atomically(args.logits, lambda out: np.savez_compressed(out, **arrays))  # type: ignore[arg-type]
    return report


def show(report: dict[str, Any]) -> None:
    facts = report["provenance"]
    print(f"{facts['model']} ({facts['weights']}), scan {facts['scan']}, {facts['device']}")
    for size, got in report["sizes"].items():
        speed, error = got["throughput"], got["calibration"]["expected_error"]
        print(
            f"{size} px: top-1 {got['top1']:.2f} %, top-5 {got['top5']:.2f} %, "
            f"loss {got['loss']:.3f}, calibration error {error:.3f}, "
            f"{speed['images_per_second_p50']:.1f} images/s, "
            f"{got['n_images']} images, {got['n_skipped']} left out"
        )
        if "difference" in got:
            d = got["difference"]
            print(
                f"  {d['value']:+.2f} points, 95 % of {d['low']:+.2f} to {d['high']:+.2f} (images)"
            )
        names = list(got["top1_per_class"])
        pairs = [
            (count, names[i], names[j])
            for i, row in enumerate(got["confusion"])
            for j, count in enumerate(row)
            if i != j and count
        ]
        for count, true, predicted in sorted(pairs, reverse=True)[:5]:
            print(f"  {count} x {true} taken for {predicted}")


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        show(run(args))
    except (TrainingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
