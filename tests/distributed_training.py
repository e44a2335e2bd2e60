"""What each process does that test_distributed.py starts: trainings in float64, whose outcome it writes to a file."""

import os
import signal
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from tiny import quick_scores, tiny_trainer

from cyclestarnet.io import TrainingSet
from cyclestarnet.training.trainer import join_processes
from cyclestarnet.training.watch import WatchSettings

RATES = {"learning_rate": 1e-3, "critic_learning_rate": 2e-3}
VARIANTS = {
    "paper": {"batch_size": 4},
    "everything": {
        "batch_size": 8,
        "micro_batches": 2,
        "weight_anchors": 1.0,
        "weight_labels": 1.0,
        "prior_rate": 0.01,
        "critic_penalty": 1.0,
        "adversarial": "least_squares",
        "gradient_clip": 0.5,
        "warm_start": 1,
        "average_decay": 0.9,
    },
    "streamed": {"batch_size": 4},
    "latent": {"batch_size": 8, "weight_latent": 1.0},
}
RUN = {"batch_size": 4, "n_iterations": 6, "average_decay": 0.9}


def outcome(folder, name):
    """Loss terms of three iterations, and what they leave."""
    table = TrainingSet(folder / "observed.h5") if name == "streamed" else None
    trainer = tiny_trainer(double=True, table=table, **RATES, **VARIANTS[name])
    terms = [trainer.step() for _ in range(3)]
    return {"terms": terms, "weights": trainer.parts.state_dict(), "average": trainer.average}


def run(folder, until):
    """Begin a run or go on with it; rows, scores and checkpoints come at different iterations."""
    trainer = tiny_trainer(folder, double=True, watch=WatchSettings(every=2, n_spectra=10), **RATES, **RUN)
    with quick_scores() if trainer.rank == 0 else nullcontext():  # the true ones of another process would differ
        trainer.run(until=until, every=2, checkpoint_every=3, progress=False)
    return trainer.watch.best


def fail(folder):
    """A run with a loss that is not finite in one process."""
    trainer = tiny_trainer(folder, double=True, **RUN)
    if trainer.rank == 1:
        trainer.observed.weight[:] = float("inf")
    try:
        trainer.step()
    except FloatingPointError as error:
        return str(error)


def stop(folder):
    """A run that one process is told to stop, in its second iteration."""
    trainer = tiny_trainer(folder, double=True, **RUN)
    emulator = trainer.synthetic.emulator

    def told(labels):
        if trainer.rank == 1 and trainer.iteration == 1:
            signal.raise_signal(signal.SIGTERM)
        return emulator(labels)

    trainer.synthetic.emulator = told
    try:
        trainer.run(progress=False)
    except SystemExit as error:
        return trainer.iteration, error.code


def main(folder):
    signal.alarm(540)  # a process that waits for another for ever must not outlive the tests
    torch.set_num_threads(1)
    with join_processes():
        rank, group = int(os.environ["RANK"]), weakref.ref(dist.group.WORLD)
        found = {name: outcome(folder, name) for name in VARIANTS}
        best = run(folder / "begun by one", until=6)
        run(folder / f"begun by two, {rank}", until=3)
        found |= {"best": best, "failed": fail(folder / "failed"), "stopped": stop(folder / "stopped")}
    found["group is gone"] = group() is None
    torch.save(found, folder / f"rank {rank}.pt")
    sys.exit(found["stopped"][1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
