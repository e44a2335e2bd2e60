"""What the processes do that test_distributed.py starts: trainings in float64, whose outcome each writes to a file."""

import os
import signal
import sys
import weakref
from contextlib import nullcontext
from importlib import import_module

import torch
import torch.distributed as dist
from deaths import server
from tiny import quick_scores, tiny_trainer

from cyclestarnet.io import TrainingSet
from cyclestarnet.training.config import read_config
from cyclestarnet.training.runs import joined_processes, prepare
from cyclestarnet.training.trainer import join_processes
from cyclestarnet.training.watch import WatchSettings

TAKES_GROUP = "torch.distributed.nn.functional"  # its functions have the group of its import as their default
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


def train_everything(folder, rank):
    """All trainings of test_distributed.py, as one of two processes."""
    sys.modules.pop(TAKES_GROUP, None)  # as in a process that has just begun
    with join_processes():
        import_module(TAKES_GROUP)  # as the first optimizer of such a process does
        group = weakref.ref(dist.group.WORLD)
        found = {name: outcome(folder, name) for name in VARIANTS}
        best = run(folder / "begun by one", until=6)
        run(folder / f"begun by two, {rank}", until=3)
        found |= {"best": best, "failed": fail(folder / "failed"), "stopped": stop(folder / "stopped")}
    found["group is gone"] = group() is None
    torch.save(found, folder / f"rank {rank}.pt")


def fail_to_begin(config, rank):
    """Prepare a training that cannot begin, and write what is told of it."""
    try:
        with joined_processes(read_config(config)) as (own, _):
            prepare(own, progress=False)
    except Exception as error:
        config.with_name(f"rank {rank}.txt").write_text(f"{type(error).__name__}: {error}")


def in_two_processes(work, path):
    """Let two processes do ``work(path, rank)`` together, which meet as those of ``torchrun`` do, in our store."""
    meeting = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    processes = [server().Process(target=_join, args=(work, path, rank, meeting.port)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def _join(work, path, rank, port):
    signal.alarm(540)  # a process that waits for another for ever must not outlive the tests
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    work(path, rank)
