"""The training loop: one optimiser step at a time, resumable at any of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from models.efficientvmamba import EfficientVMamba
from models.training import metrics
from models.training.config import TrainConfig
from models.training.data import (
    Batch,
    ImageStore,
    Split,
    TrainBatches,
    TrainSamples,
    centre_batches,
    collate,
)
from models.training.distributed import Processes
from models.training.errors import TrainingError
from models.training.log import TrainLog
from models.training.objective import Objective, learning_rate
from models.training.state import load_state, save_state
from models.training.student import Student, no_decay_names, set_drop_path

STATE_FILE = "last.pt"


@dataclass
class Data:
    """The two splits with what reads them; `teacher_maps` is `[n_train, T, h, w]` float16."""

    train: Split
    val: Split
    train_store: ImageStore
    val_store: ImageStore
    teacher_maps: np.ndarray | None = None


@dataclass
class Progress:
    """Where a run stands; what a resume needs besides tensors."""

    epoch: int = 0  # completed epochs
    step: int = 0  # completed steps of the epoch under way
    total_steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch under way
    skipped: dict[int, str] = field(default_factory=dict)  # training images that cannot be read
    best_top1: float = 0.0


class Trainer:
    """Holds model, optimiser, average and random state of a run in folder `out`."""

    def __init__(
        self,
        config: TrainConfig,
        model: EfficientVMamba,
        data: Data,
        out: Path,
        *,
        device: torch.device,
        processes: Processes | None = None,
        workers: int = 0,
        is_strict: bool = False,
        sync_bn: bool = False,
        run_facts: dict[str, Any] | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.config, self.data, self.out, self.device = config, data, out, device
        self.processes = processes or Processes()
        self.is_strict, self.say = is_strict, say
        torch.manual_seed(config.seed + self.processes.rank)
        set_drop_path(model, config.drop_path)
        maps = data.teacher_maps
        self.student = Student(model, 0 if maps is None else maps.shape[1], config.seed)
        if sync_bn:
            self.student = nn.SyncBatchNorm.convert_sync_batchnorm(self.student)
        self.student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = ModelEmaV3(
            self.student.model, decay=config.ema_decay, use_warmup=True, warmup_power=0.75
        )
        groups = param_groups_weight_decay(
            self.student, config.weight_decay, no_weight_decay_list=no_decay_names(self.student)
        )
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=config.precision == "fp16" and device.type == "cuda"
        )
        self.network: nn.Module = self.student
        if self.processes.world > 1:
            self.network = DistributedDataParallel(
                self.student, device_ids=[device] if device.type == "cuda" else None
            )
        self.batches = TrainBatches(
            len(data.train.labels),
            config.batch_size,
            config.seed,
            self.processes.rank,
            self.processes.world,
        )
        self.steps_per_epoch = len(self.batches) // config.accumulate
        if self.steps_per_epoch == 0:
            raise TrainingError(
                f"--accumulate {config.accumulate} batches of {config.batch_size} are more than "
                f"the {len(data.train.labels)} training images. Choose smaller numbers."
            )
        self.loader = DataLoader(
            TrainSamples(
                data.train_store,
                data.train.labels,
                config.seed,
                config.min_scale,
                config.randaugment,
            ),
            batch_sampler=self.batches,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # Its own generator: every start draws from it, and a resume is one start more.
            generator=torch.Generator(),
        )
        self.objective = Objective(config, len(data.train.classes), maps, device)
        self.progress = Progress()
        self.log = TrainLog(out, {"config": config.as_dict(), **(run_facts or {})}, [])

    # One step

    def backward(self, batches: list[Batch]) -> tuple[float, float]:
        """Gradients of the mean loss over the step's batches; with several processes, over all
        of theirs. Returns (loss, distillation part) of this process."""
        total = part = 0.0
        for number, batch in enumerate(batches):
            is_last = number + 1 == len(batches)
            wait = isinstance(self.network, DistributedDataParallel) and not is_last
            with self.network.no_sync() if wait else nullcontext():  # type: ignore[operator]
                loss, distilled = self.objective.loss(self.network, batch)
                self.scaler.scale(loss / len(batches)).backward()
            total += loss.item() / len(batches)
            part += distilled.item() / len(batches)
        return total, part

    def step(self, batches: list[Batch]) -> None:
        """One optimiser step; updates the average and the epoch's sums."""
        rate = learning_rate(self.config, self.progress.total_steps, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.student.train()
        loss, distilled = self.backward(batches)
        if not math.isfinite(loss):
            raise TrainingError(
                f"The loss became {loss} in epoch {self.progress.epoch + 1}, step "
                f"{self.progress.step + 1}. Lower --lr or lengthen --warmup-epochs; the state "
                f"before this epoch is in {self.out / STATE_FILE}."
            )
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), self.config.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.total_steps += 1
        self.ema.update(self.student.model, self.progress.total_steps)
        n_images = sum(len(b.labels) for b in batches)
        values = {
            "n_images": n_images,
            "loss": loss,
            "distill_loss": distilled,
            "grad_norm": float(norm),
        }
        for name, value in values.items():
            self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value

    def note_problems(self, batches: list[Batch]) -> list[Batch]:
        """Names each unreadable image once; returns the batches that still hold images."""
        for batch in batches:
            for index, problem in batch.problems.items():
                if index in self.progress.skipped:
                    continue
                message = f"{self.data.train.files[index]}: {problem}"
                if self.is_strict:
                    raise TrainingError(
                        f"Unreadable image {message}. Replace or remove it, or train without "
                        "--strict-images to leave such images out."
                    )
                self.progress.skipped[index] = problem
                self.say(f"left out: {message}")
        kept = [batch for batch in batches if len(batch.labels)]
        if not kept:
            raise TrainingError("A whole step of images is unreadable; check the folder.")
        return kept

    # The run

    def steps(self, epoch: int) -> Iterator[list[Batch]]:
        """The steps of an epoch from where the run stands."""
        accumulate = self.config.accumulate
        self.batches.start(epoch, self.config.schedule()[epoch], self.progress.step * accumulate)
        group: list[Batch] = []
        for batch in self.loader:
            group.append(batch)
            if len(group) == accumulate:
                yield self.note_problems(group)
                group = []

    def run(
        self,
        should_stop: Callable[[], bool] = lambda: False,
        tick: Callable[[Progress, int, float], None] = lambda progress, n_steps, rate: None,
    ) -> bool:
        """Trains to the end; True if it got there, False if `should_stop` asked to leave early.
        Either way the state is in the folder `out`."""
        while self.progress.epoch < self.config.epochs:
            started, n_before = time.perf_counter(), self.progress.sums.get("n_images", 0.0)
            for batches in self.steps(self.progress.epoch):
                self.step(batches)
                elapsed = time.perf_counter() - started
                speed = (self.progress.sums["n_images"] - n_before) / elapsed
                self.progress.sums["speed"] = speed * self.processes.world
                tick(self.progress, self.steps_per_epoch, self.progress.sums["speed"])
                is_done = self.progress.step == self.steps_per_epoch
                if self.processes.any(should_stop()) and not is_done:
                    self.add_time(started)
                    self.save()
                    return False
                if is_done:
                    break
            self.add_time(started)
            self.finish_epoch()
            if self.processes.any(should_stop()) and self.progress.epoch < self.config.epochs:
                return False
        return True

    def add_time(self, started: float) -> None:
        sums = self.progress.sums
        sums["seconds"] = sums.get("seconds", 0.0) + time.perf_counter() - started

    def finish_epoch(self) -> None:
        """Measures the average, writes log and state."""
        progress, sums = self.progress, self.progress.sums
        n = progress.step
        row: dict[str, Any] = {
            "epoch": progress.epoch + 1,
            "size": self.config.schedule()[progress.epoch],
            "loss": sums["loss"] / n,
            "distill_loss": sums["distill_loss"] / n,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": sums["grad_norm"] / n,
            "images_per_second": sums["speed"],
            "seconds": sums["seconds"],
            "n_skipped": len(progress.skipped),
        }
        progress.epoch += 1
        progress.step, progress.sums = 0, {}
        is_last = progress.epoch == self.config.epochs
        if is_last or progress.epoch % self.config.eval_every == 0:
            row |= self.measure(self.config.eval_size)
            progress.best_top1 = max(progress.best_top1, row["top1"])
        if self.processes.is_main:
            self.log.add(row)
        self.save()

    def measure(self, size: int) -> dict[str, float]:
        """Accuracy of the averaged weights on the validation split at `size` pixels; each process
        takes its share of the images."""
        # Parameters agree everywhere, BatchNorm statistics are those of each process's images.
        self.processes.copy_from_first(self.ema.module.buffers())
        labels = self.data.val.labels
        share = range(self.processes.rank, len(labels), self.processes.world)
        loader = centre_batches(self.data.val_store, labels, size, 64, images=share)
        got = metrics.predict(self.ema.module, loader, self.device)
        parts = self.processes.gather((got.logits, got.labels))
        parts = [part for part in parts if len(part[1])]
        if not parts:
            raise TrainingError("No validation image could be read; check the val folder.")
        logits, truth = (torch.cat(column) for column in zip(*parts, strict=True))
        return {
            "top1": metrics.top_k(logits, truth, 1),
            "top5": metrics.top_k(logits, truth, 5),
            "val_loss": metrics.mean_loss(logits, truth),
        }

    # Stopping and going on

    def save(self) -> None:
        """Writes all that an identical continuation needs; the old state stays until it is done."""
        random_states = self.processes.gather(
            {
                "cpu": torch.get_rng_state(),
                "device": torch.cuda.get_rng_state(self.device)
                if self.device.type == "cuda"
                else None,
            }
        )
        if not self.processes.is_main:
            return
        progress = self.progress
        save_state(
            self.out / STATE_FILE,
            {
                "format": 1,
                "config": self.config.as_dict(),
                "classes": list(self.data.train.classes),
                "student": self.student.state_dict(),
                "ema": self.ema.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": random_states,
                "progress": {**vars(progress)},
                "log": {"run": self.log.run, "rows": self.log.rows},
            },
        )

    def resume(self) -> None:
        """Puts everything back as it was when the state was saved."""
        state = load_state(self.out / STATE_FILE)
        if tuple(state["classes"]) != self.data.train.classes:
            raise TrainingError(
                f"{self.out / STATE_FILE} was trained on {len(state['classes'])} classes "
                f"({', '.join(state['classes'][:3])}, ...); this folder has "
                f"{len(self.data.train.classes)} ({', '.join(self.data.train.classes[:3])}, ...). "
                "Resume with the same data, or start a new run with another --out."
            )
        if state["config"] != self.config.as_dict():
            ours = self.config.as_dict()
            changed = [k for k in ours if state["config"].get(k) != ours[k]]
            raise TrainingError(
                f"{self.out / STATE_FILE} was made with other settings: {', '.join(changed)}. "
                "Give the same ones to resume, or start a new run with another --out."
            )
        if len(state["random"]) != self.processes.world:
            raise TrainingError(
                f"The run had {len(state['random'])} process(es), now there are "
                f"{self.processes.world}. Resume with as many."
            )
        self.student.load_state_dict(state["student"])
        self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        own = state["random"][self.processes.rank]
        torch.set_rng_state(own["cpu"])
        if own["device"] is not None:
            torch.cuda.set_rng_state(own["device"], self.device)
        self.progress = Progress(**state["progress"])
        self.log.run, self.log.rows = state["log"]["run"], state["log"]["rows"]
