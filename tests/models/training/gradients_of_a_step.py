"""Started twice by torchrun: gradients of one step and accuracy, saved by the first process."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from models.training.config import TrainConfig
from models.training.data import find_split, open_store
from models.training.distributed import join, leave
from models.training.engine import Data, Trainer
from models.training.export import build_model


def main(root: Path, file: Path) -> None:
    processes = join("cpu")
    config = TrainConfig(
        model="efficientvmamba_test", sizes="32:2", batch_size=4, warmup_epochs=0.5, eval_size=32
    )
    train, val = find_split(root, "train"), find_split(root, "val")
    data = Data(train, val, open_store(train, None, 64), open_store(val, None, 64))
    trainer = Trainer(
        config,
        build_model(config, len(train.classes)),
        data,
        file.parent / "ddp",
        device=torch.device("cpu"),
        processes=processes,
    )
    loss, _ = trainer.backward(next(trainer.steps(0)))
    losses = processes.gather(loss)
    measured = trainer.measure(32)
    if processes.is_main:
        gradients = {name: p.grad for name, p in trainer.student.named_parameters()}
        torch.save({"gradients": gradients, "losses": losses, "measured": measured}, file)
    leave(processes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
