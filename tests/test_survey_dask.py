"""A survey on two workers, each a process of its own, one of which is killed."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from deaths import server
from survey_fakes import Fit, failed_row, make_star, read_star, save_stars
from test_survey import assert_same

from cyclestarnet.exceptions import CycleStarNetError
from cyclestarnet.io.stars import star_sources
from cyclestarnet.pipeline import ManyOptions, read_results
from cyclestarnet.pipeline.many import fit_survey

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client():
    """Workers, also those in place of killed ones, come from a server that need not import the package again."""
    start = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        start = "forkserver"
        server()
        forkserver.ensure_running()  # before distributed has one that has imported less
    with (
        dask.config.set({"distributed.worker.multiprocessing-method": start}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs="CRITICAL"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def paths(tmp_path, rng):
    """Thirty stars, two of which cannot be read."""
    paths = save_stars(tmp_path, rng.uniform(0.5, 1.5, 30))
    paths[3].unlink()
    paths[17].write_bytes(b"")
    return paths


def survey(spectra, fit=None, *, block_size=4, retries=3, **options):
    stars = star_sources(spectra, reader=read_star)
    many = ManyOptions(progress=False, **options)
    return fit_survey(stars, fit or Fit(), failed_row, many, block_size=block_size, retries=retries)


def test_cluster_gives_the_same_table(client, paths, tmp_path):
    np.save(paths[9], -2.0)  # raises for its whole block
    table = survey(paths, client=client, output=tmp_path / "t.ecsv")
    assert_same(survey(paths), table)
    assert_same(table, read_results(tmp_path / "t.ecsv"), leave_out=())


def test_spectra_in_memory_go_to_the_workers(client):
    stars = [make_star(value) for value in (0.1, 0.2, 0.3, -1, 0.5)]
    assert_same(survey(stars), survey(stars, client=client, block_size=2))


@dataclass
class FitTogether:
    """Fits when two processes have come to fit, each of which leaves a file in the folder."""

    folder: Path

    def __call__(self, spectra, numbers=()):
        (self.folder / str(os.getpid())).touch()
        give_up = time.monotonic() + 120
        while len(list(self.folder.iterdir())) < 2:
            if time.monotonic() > give_up:
                raise TimeoutError("nobody else came")
            time.sleep(0.01)
        return Fit()(spectra)


def test_both_workers_take_part(client, paths, tmp_path):
    """A block waits for one of the other worker, so that none can do it all, however fast it is."""
    (tmp_path / "here").mkdir()
    table = survey(paths[4:16], FitTogether(tmp_path / "here"), client=client)
    assert table["success"].all()


def test_run_begun_in_one_process_ends_on_a_cluster(client, paths, tmp_path):
    value = np.load(paths[20])
    np.save(paths[20], -3.0)
    with pytest.raises(KeyboardInterrupt):
        survey(paths, output=tmp_path / "t.fits")
    np.save(paths[20], value)
    survey(paths, output=tmp_path / "t.fits", client=client)
    assert_same(survey(paths), read_results(tmp_path / "t.fits"))


def test_error_of_the_cluster_reaches_the_caller(client, paths, tmp_path):
    many = ManyOptions(client=client, progress=False)
    with pytest.raises(FileNotFoundError, match="no-folder"):
        fit_survey(star_sources(paths, reader=read_star), Fit(), NoTemplate(), many, retries=0)


class NoTemplate:
    """Makes rows in the process that made it, and fails elsewhere, as where a file of the model is not to be seen."""

    def __init__(self):
        self.pid = os.getpid()

    def __call__(self, name, error):
        if os.getpid() != self.pid:
            raise FileNotFoundError("no-folder")
        return failed_row(name, error)


@dataclass
class FatalOnce:
    """Kills its own process at the first sight of a star, and fits it afterwards."""

    flux: float
    death: Path

    def __call__(self, spectra, numbers=()):
        if self.flux in [spectrum.flux.value[0] for spectrum in spectra] and not self.death.exists():
            self.death.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Fit()(spectra)


def test_killed_worker_loses_no_row_and_doubles_none(client, paths, tmp_path):
    fit = FatalOnce(float(np.load(paths[13])), tmp_path / "death")
    table = survey(paths, fit, client=client, output=tmp_path / "t.ecsv", block_size=2)
    assert fit.death.exists()
    assert_same(survey(paths), table)
    assert_same(table, read_results(tmp_path / "t.ecsv"), leave_out=())


def deadly(spectra, numbers):
    os.kill(os.getpid(), signal.SIGKILL)


def test_block_that_kills_every_worker_is_named(client, paths, monkeypatch):
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)  # else four workers must start and die
    with pytest.raises(CycleStarNetError, match="stars 0 to 3 were lost with every worker"):
        survey(paths[:4], deadly, client=client, retries=0)
