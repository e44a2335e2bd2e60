"""Runs that are killed, stopped, or cannot write: what is left of them, and that they go on as if nothing had been."""

import signal
import sys
import threading
from itertools import count

import h5py
import numpy as np
import pytest
import torch
from deaths import CountEvents, DieAtCall, DieAtEvent, LiveOn, lives
from tiny import LineFamily, noisy, quick_scores, tiny_trainer
from training_oracle import Oracle, assert_same_state, state

from cyclestarnet.exceptions import ModelFileError
from cyclestarnet.io import TrainingSet
from cyclestarnet.networks.checkpoint import load_state
from cyclestarnet.training.trainer import Trainer
from cyclestarnet.training.watch import WatchSettings

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")

EVERYTHING = {
    "n_iterations": 24,
    "batch_size": 4,
    "micro_batches": 2,
    "schedule": "cosine",
    "warmup": 3,
    "warm_start": 5,
    "average_decay": 0.9,
    "weight_latent": 1.0,
    "weight_labels": 1.0,
    "weight_anchors": 1.0,
    "prior_rate": 0.01,
    "gradient_clip": 1.0,
}
STREAMED = {"n_iterations": 40, "average_decay": 0.9, "weight_latent": 1.0}
WATCH = WatchSettings(every=7, n_spectra=10)


# -- processes that die ------------------------------------------------------------------
def train(folder, options, path=None):
    """Begin a run, or go on with it, to its end; rows and checkpoints come at different iterations."""
    table = None if path is None else TrainingSet(path)
    with quick_scores():
        trainer = tiny_trainer(folder, table=table, watch=None if table else WATCH, **options)
        trainer.run(every=4, checkpoint_every=3, progress=False)


@pytest.fixture(scope="module")
def streamed_set(tmp_path_factory):
    """A file of 30 observed spectra in 3 blocks."""
    path, rng = tmp_path_factory.mktemp("set") / "observed.h5", np.random.default_rng(9)
    with h5py.File(path, "w") as file:
        flux, sigma, mask = noisy(LineFamily().draw(30, rng), rng)
        for name, array in {"spectra": flux, "spectra_err": sigma, "spectra_msk": ~mask}.items():
            file.create_dataset(f"{name} train", data=array.astype("f4"), chunks=(10, flux.shape[1]))
    return path


@pytest.fixture(scope="module", params=["everything", "streamed"])
def run(request, streamed_set, tmp_path_factory):
    """Options of a run, the folder of one that was never interrupted, and the calls and returns that it took."""
    options = (EVERYTHING,) if request.param == "everything" else (STREAMED, streamed_set)
    folder = tmp_path_factory.mktemp("whole")
    events = folder.with_name(f"events of {request.param}")
    assert list(lives([CountEvents(events)], train, folder, *options)) == [0]
    return options, folder, int(events.read_text())


def same(a, b):
    """Whether two states are equal, bit by bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(folder, whole):
    """Weights, optimizers, random numbers, position of streams, and logs."""
    # a best state that is written again, by the same iteration after a kill, leaves its twin as the previous one
    found, expected = ({path.name for path in f.glob("[!.]*")} - {"best.pt.previous"} for f in (folder, whole))
    assert found == expected
    for path in whole.glob("*.csv"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    for path in whole.glob("*.pt"):
        found, expected = load_state(folder / path.name), load_state(path)
        assert [name for name in expected if not same(found[name], expected[name])] == []


@posix
def test_run_that_is_killed_at_any_time_ends_as_if_it_had_not_been(run, tmp_path):
    options, whole, n_events = run
    numbers, reached = np.random.default_rng(10).uniform(0.2, 0.6, 5) * n_events, []
    for code in lives([*map(DieAtEvent, numbers.astype(int)), LiveOn()], train, tmp_path, *options):
        if code == 0:
            break
        assert code == -signal.SIGKILL
        reached.append(load_state(tmp_path / "checkpoint.pt")["iteration"] if any(tmp_path.glob("*.pt")) else 0)
    assert any(0 < iteration < options[0]["n_iterations"] for iteration in reached), reached
    assert_same_run(tmp_path, whole)


@posix
def test_run_that_is_killed_while_it_saves_ends_as_if_it_had_not_been(run, tmp_path):
    """After a row of the log, once the last checkpoint is linked, before the new one is on disk, and after."""
    options, whole, _ = run
    moments = [
        ("cyclestarnet.training.trainer:Trainer", "save", 3),
        ("cyclestarnet.networks.checkpoint", "write_atomically", 3),
        ("os", "fsync", 4),
        ("pathlib:Path", "replace", 3),
        ("pathlib:Path", "unlink", 3),
    ]
    codes = []
    for code in lives([*(DieAtCall(*moment) for moment in moments), LiveOn()], train, tmp_path, *options):
        codes.append(code)
        load_state(tmp_path / "checkpoint.pt")  # whole at any time
    assert codes == [-signal.SIGKILL] * len(moments) + [0]
    assert_same_run(tmp_path, whole)


# -- signals ---------------------------------------------------------------------------
def send(trainer, *signals, at=1):
    """Let signals come in the middle of an iteration, the first ``at`` = 1."""
    emulator, calls = trainer.synthetic.emulator, count(1)

    def pressed(labels):
        if next(calls) == at:
            for number in signals:
                signal.raise_signal(number)
        return emulator(labels)

    trainer.synthetic.emulator = pressed


STOPPED = {signal.SIGTERM: (SystemExit, "143"), signal.SIGINT: (KeyboardInterrupt, "^$")}


@pytest.mark.parametrize("number", STOPPED)
def test_signal_lets_the_iteration_end_and_save(make_trainer, tmp_path, number):
    stopped, whole = make_trainer(tmp_path), make_trainer()
    send(stopped, number, at=3)
    error, code = STOPPED[number]
    with pytest.raises(error, match=code):
        stopped.run(progress=False)
    resumed = make_trainer(tmp_path)
    assert resumed.iteration == 3
    for trainer in (resumed, whole):
        trainer.run(until=5, progress=False)
    assert_same_state(state(resumed), state(whole))


def test_second_ctrl_c_is_obeyed_at_once(make_trainer, tmp_path):
    make_trainer(tmp_path).save()
    trainer = make_trainer(tmp_path)
    send(trainer, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(progress=False)
    assert trainer.iteration == make_trainer(tmp_path).iteration == 0


def test_repeated_sigterm_does_not_cut_the_iteration(make_trainer, tmp_path):
    """A scheduler sends it to every process, and torchrun to its own once more."""
    trainer = make_trainer(tmp_path)
    send(trainer, signal.SIGTERM, signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        trainer.run(progress=False)
    assert make_trainer(tmp_path).iteration == 1


@pytest.mark.parametrize("number", STOPPED)
def test_signal_during_the_last_save_is_passed_on(make_trainer, tmp_path, monkeypatch, number):
    save = Trainer.save

    def interrupted(trainer):
        save(trainer)
        signal.raise_signal(number)

    monkeypatch.setattr(Trainer, "save", interrupted)
    with pytest.raises(STOPPED[number][0]):
        make_trainer(tmp_path, n_iterations=2).run(progress=False)
    assert make_trainer(tmp_path, n_iterations=2).iteration == 2


def test_handlers_of_signals_are_given_back(make_trainer):
    before = [signal.getsignal(number) for number in STOPPED]
    make_trainer(n_iterations=1).run(progress=False)
    assert [signal.getsignal(number) for number in STOPPED] == before


def test_run_in_a_thread(make_trainer):
    """Only the main thread may handle signals; a run elsewhere does without."""
    trainer = make_trainer(n_iterations=2)
    thread = threading.Thread(target=trainer.run, kwargs={"progress": False})
    thread.start()
    thread.join()
    assert trainer.iteration == 2


# -- files that are damaged or cannot be written -------------------------------------------
@posix
def test_full_disk_is_named_and_leaves_the_last_checkpoint(make_trainer, tmp_path):
    """A limit on the size of files fails the same call as a full disk."""
    import resource

    trainer = make_trainer(tmp_path)
    trainer.run(until=2, progress=False)
    size, (soft, hard) = (tmp_path / "checkpoint.pt").stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*checkpoint\.pt'"):
            trainer.run(until=4, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert make_trainer(tmp_path).iteration == 2
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("n_bytes", [0, 1000, -1])
def test_truncated_checkpoint_names_the_way_out(make_trainer, tmp_path, n_bytes):
    make_trainer(tmp_path).run(until=4, checkpoint_every=2, progress=False)
    checkpoint, previous = tmp_path / "checkpoint.pt", tmp_path / "checkpoint.pt.previous"
    checkpoint.write_bytes(checkpoint.read_bytes()[:n_bytes])
    with pytest.raises(ModelFileError, match=r"rename checkpoint\.pt\.previous to checkpoint\.pt"):
        make_trainer(tmp_path)
    previous.rename(checkpoint)
    assert make_trainer(tmp_path).iteration == 2


def test_truncated_first_checkpoint_has_no_previous_one(make_trainer, tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(ModelFileError, match="remove it to begin anew"):
        make_trainer(tmp_path)


# -- losses that are not finite --------------------------------------------------------------
def test_bad_batch_is_kept(make_trainer, tmp_path):
    """The batch whose loss is not finite, in a file that the message names."""
    trainer = make_trainer(tmp_path, weight_anchors=1.0)
    oracle = Oracle(trainer)
    trainer.run(until=2, progress=False)
    for _ in range(3):
        batch, anchors = oracle.draw()
    trainer.critic_synth.fc.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"at iteration 2; the batch is in .*bad_batch\.pt$"):
        trainer.run(progress=False)
    expected = dict(zip(("x_synth", "x_obs", "weight_obs", "labels", "anchors"), (*batch[:4], anchors), strict=True))
    assert same(load_state(tmp_path / "bad_batch.pt"), expected)


def test_bad_critic_step_keeps_the_last_checkpoint_and_the_batch(make_trainer, tmp_path, monkeypatch):
    """The autoencoders have made their step already, which must not be saved."""
    trainer = make_trainer(tmp_path)
    trainer.run(until=2, progress=False)
    before = {name: array.clone() for name, array in state(trainer).items()}
    terms = trainer.parts.critic_terms
    monkeypatch.setattr(trainer.parts, "critic_terms", lambda t: {k: v * float("inf") for k, v in terms(t).items()})
    with pytest.raises(FloatingPointError, match=r"\['critic_synth', 'critic_obs'.* at iteration 2"):
        trainer.run(progress=False)
    assert_same_state(state(make_trainer(tmp_path)), before)
    assert load_state(tmp_path / "bad_batch.pt").keys() == {"x_synth", "x_obs", "weight_obs", "labels"}


def test_without_a_folder_no_batch_is_kept(make_trainer):
    trainer = make_trainer()
    trainer.critic_synth.fc.bias.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"at iteration 0$"):
        trainer.run(progress=False)
