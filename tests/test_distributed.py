"""Trainings of two processes, which are those of one."""

from functools import cache

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
from deaths import held_by_another
from distributed_training import VARIANTS, fail_to_begin, in_two_processes, outcome, run, train_everything
from test_runs import write_config
from tiny import LineFamily, noisy, tiny_trainer
from training_oracle import Oracle, energy_distance, mappings

from cyclestarnet.networks.checkpoint import load_state
from cyclestarnet.training.trainer import join_processes

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="PyTorch was built without gloo"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two processes did what distributed_training.py says; one has begun a run for them."""
    folder, rng = tmp_path_factory.mktemp("distributed"), np.random.default_rng(9)
    flux, sigma, mask = noisy(LineFamily().draw(30, rng), rng)
    with h5py.File(folder / "observed.h5", "w") as file:
        for name, array in {"spectra": flux, "spectra_err": sigma, "spectra_msk": ~mask}.items():
            file.create_dataset(f"{name} train", data=array.astype("f4"), chunks=(10, flux.shape[1]))
    run(folder / "begun by one", until=3)
    in_two_processes(train_everything, folder)
    assert (folder / "rank 1.pt").exists()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that one process does from its beginning to its end, and its best score."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(folder, until=6)


@pytest.fixture(scope="module")
def alone(folder):
    """What one process finds, by name of the variant."""
    return cache(lambda name: outcome(folder, name))


@pytest.fixture(scope="module", params=[0, 1])
def found(request, folder):
    """What one of the two processes found."""
    return load_state(folder / f"rank {request.param}.pt")


@pytest.mark.parametrize("name", ["paper", "everything", "streamed"])
def test_two_processes_train_as_one_does(alone, found, name):
    """On their shares of the same batches: all terms, all weights and their averages, and the shift of the prior."""
    expected = alone(name)
    for terms, one in zip(found[name]["terms"], expected["terms"], strict=True):
        assert terms == pytest.approx(one, rel=1e-6)
    for kind in ("weights", "average"):
        for key, array in expected[kind].items():
            torch.testing.assert_close(found[name][kind][key], array, rtol=0, atol=1e-7)


def test_energy_distance_is_the_mean_of_those_within_shares(found):
    """Each process has every second spectrum."""
    oracle = Oracle(tiny_trainer(double=True, **VARIANTS["latent"]))
    (x_synth, x_obs, *_), _ = oracle.draw()
    m = mappings(oracle.parts["network"], x_synth, x_obs)
    z_synth, z_obs = m["z_synth"].flatten(1), m["z_obs"].flatten(1)
    expected = sum(energy_distance(z_synth[rank::2], z_obs[rank::2]) for rank in (0, 1)) / 2
    assert found["latent"]["terms"][0]["latent"] == pytest.approx(expected.item(), rel=1e-9)


def assert_close_runs(folder, whole):
    found, expected = load_state(folder / "checkpoint.pt"), load_state(whole / "checkpoint.pt")
    assert found["iteration"] == expected["iteration"] == 6
    assert torch.equal(found["generator"], expected["generator"])
    for name, array in expected["average"].items():
        torch.testing.assert_close(found["average"][name], array, rtol=0, atol=1e-7)
    for name in ("losses.csv", "scores.csv"):
        assert (folder / name).read_text() == (whole / name).read_text()


def test_run_begun_by_one_process_is_finished_by_two(folder, whole):
    assert_close_runs(folder / "begun by one", whole[0])


def test_processes_know_the_scores_of_the_first(found, whole):
    assert found["best"] == pytest.approx(whole[1], rel=1e-6)


def test_run_begun_by_two_processes_is_finished_by_one(folder, whole):
    assert load_state(folder / "begun by two, 0" / "checkpoint.pt")["iteration"] == 3
    run(folder / "begun by two, 0", until=6)
    assert_close_runs(folder / "begun by two, 0", whole[0])


def test_only_the_first_process_writes(folder):
    """Each had a folder of its own."""
    assert [path.name for path in folder.glob("begun by two, *")] == ["begun by two, 0"]


def test_group_does_not_outlive_the_work(found):
    """Threads of gloo that are still there when the interpreter ends may abort the process."""
    assert found["group is gone"]


def test_all_processes_stop_where_one_is_told_to(folder, found):
    """After the iteration, with a checkpoint."""
    assert found["stopped"] == (2, 143)
    assert load_state(folder / "stopped" / "checkpoint.pt")["iteration"] == 2


def test_loss_that_is_not_finite_in_one_process_fails_all(folder, found):
    """The file has the share of that process, the second."""
    assert found["failed"].startswith("loss terms ['rec_obs', 'cyc_obs'] are not finite at iteration 0")
    assert [path.name for path in (folder / "failed").iterdir()] == ["bad_batch.1.pt"]
    assert torch.isinf(load_state(folder / "failed" / "bad_batch.1.pt")["weight_obs"]).all()


@pytest.fixture
def config(tmp_path):
    """A training whose files are there, but hold nothing."""
    for name in ("observed.h5", "synthetic.h5"):
        (tmp_path / name).touch()
    return write_config(tmp_path)


def test_if_the_first_process_cannot_begin_the_others_say_so(config, tmp_path):
    in_two_processes(fail_to_begin, config)
    first, other = ((tmp_path / f"rank {rank}.txt").read_text() for rank in (0, 1))
    assert first.startswith("ConfigError: ")
    assert "observed.h5" in first
    assert other == f"CycleStarNetError: the first process failed, and this one ends with it: {first}"


def test_processes_whose_folder_is_taken_all_end(config, tmp_path):
    with held_by_another(tmp_path / "run"):
        in_two_processes(fail_to_begin, config)
    assert "FileExistsError: another process trains in" in (tmp_path / "rank 0.txt").read_text()
    assert "ends with it: FileExistsError: another process" in (tmp_path / "rank 1.txt").read_text()


def test_processes_need_a_part_of_the_batch_each(make_trainer, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(ValueError, match=r"batch_size \(4\) must be a multiple of 3 processes x 2 micro_batches"):
        make_trainer(batch_size=4, micro_batches=2)


def test_without_torchrun_a_process_is_alone(make_trainer):
    with join_processes("cpu") as device:
        assert device == "cpu"
        assert make_trainer().n_processes == 1
