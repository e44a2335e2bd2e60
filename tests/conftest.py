"""Shared fixtures: a seeded generator, the developers' data where they are at hand, and tiny networks and models."""

import multiprocessing
import os
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

if "PYTEST_XDIST_WORKER" in os.environ:  # a core each; to be said before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import astropy.units as u
import numpy as np
import pytest
from deaths import server
from tiny import TINY_NETWORK, LineFamily, tiny_trainer
from toys import LinearPredictor, noisy_objective

from cyclestarnet import CalibratedModel, ContinuumRecipe, GaussianPrior, WavelengthGrid, read_apvisit
from cyclestarnet.networks.clouds import LatentCloud
from cyclestarnet.networks.emulator import EmulatorSettings, train_emulator
from cyclestarnet.networks.predictor import ObservedPredictor
from cyclestarnet.networks.translator import Translator
from cyclestarnet.noise import NoiseModel
from cyclestarnet.pipeline.parts import FlagLimits, Population
from cyclestarnet.training.datasets import ObservedSpectra, SyntheticSpectra
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.trainer import Trainer


@pytest.fixture
def rng():
    """A generator that gives every test the same numbers."""
    return np.random.default_rng(20210101)


@pytest.fixture(scope="session")
def shared():
    """Folder of the developers' data, beside the checkout; absent for users."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the developers' data are not here")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _few_derivatives():
    """Tiny models learn their shortcuts from fewer derivatives; test_shortcuts.py takes as many as users do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cyclestarnet.training.shortcuts.N_SLOPES", 40)
        yield


@pytest.fixture
def quick_workers(monkeypatch):
    """Workers of `run_in_processes` come from a server that has imported the package, where this system has such.

    Spawned, as those of users are, each imports it for seconds: test_survey_processes.py has some of these.
    """
    if "forkserver" in multiprocessing.get_all_start_methods():
        start = SimpleNamespace(**vars(multiprocessing) | {"get_context": lambda method: server()})
        monkeypatch.setattr("cyclestarnet.processes.multiprocessing", start)


# -- tiny things -----------------------------------------------------------------
@pytest.fixture(scope="session")
def tiny_settings():
    """The paper's network in small: 415 pixels (416 padded), latents of 10 positions."""
    return TINY_NETWORK


@pytest.fixture(scope="session")
def line_family():
    return LineFamily()


@pytest.fixture
def make_trainer():
    """Function that makes a trainer of 24 noisy spectra per domain; ``double`` makes everything float64."""
    return tiny_trainer


@pytest.fixture(scope="session")
def tiny_emulator(line_family):
    """Emulator of `line_family`, good to a few 1e-4."""
    labels = np.random.default_rng(2).uniform(line_family.labels.lower, line_family.labels.upper, (400, 3))
    settings = EmulatorSettings(
        hidden=(24, 24), n_components=12, batch_size=64, learning_rate=1e-2, n_epochs=250, patience=250
    )
    emulator, _ = train_emulator(
        labels,
        line_family(labels),
        lower=line_family.labels.lower,
        upper=line_family.labels.upper,
        settings=settings,
        progress=False,
    )
    return emulator


@pytest.fixture(scope="session")
def tiny_model(line_family, tiny_settings, tiny_emulator):
    """A complete model, trained in a few seconds: lines of the observed domain are 10 % stronger and wider."""
    rng = np.random.default_rng(3)
    settings = TrainingSettings(
        n_iterations=600,
        learning_rate=2e-3,
        critic_learning_rate=6e-4,
        schedule="cosine",
        warmup=20,
        weight_latent=30.0,  # without it, some initial weights end in a translation of strong lines to weak ones
        average_decay=0.98,
        flux_mean=0.92,
        flux_std=0.11,
    )
    pool, labels = line_family.draw(500, rng), line_family.draw(400, rng)
    clean = line_family(labels, width=rng.uniform(2.0, 2.4, 400), depth=1.1)
    sigma = np.full(clean.shape, 0.005)
    flux = rng.normal(clean, sigma)
    trainer = Trainer(
        tiny_settings,
        settings,
        SyntheticSpectra(tiny_emulator, pool, settings),
        ObservedSpectra(flux, sigma, np.zeros(flux.shape, dtype=bool), settings),
    )
    trainer.run(progress=False)
    translator = Translator(trainer.averaged_network(), settings.flux_mean, settings.flux_std)
    shared, split = translator.encode_obs(flux)
    errors = [
        clean[i] - ObservedPredictor(tiny_emulator, translator, split[i]).flux(labels[i]) for i in range(0, 400, 8)
    ]
    grid = WavelengthGrid(10 ** (4.18 + 6e-6 * np.r_[0:200, 260:475]) * u.AA, ((0, 200), (200, 415)))
    return CalibratedModel(
        name="tiny",
        labels=line_family.labels,
        grid=grid,
        emulator=tiny_emulator,
        translator=translator,
        recipe=ContinuumRecipe(grid, line_family(pool).min(0) > 0.99, degree=2),
        noise=NoiseModel(
            scatter={
                "observed": np.sqrt(np.mean(np.square(errors), axis=0)),
                "emulator": np.full(grid.n_pixels, 0.001),
            }
        ),
        population=Population(
            prior=GaussianPrior(pool.mean(0), np.cov(pool.T)),
            shared_latents=LatentCloud.from_latents(shared),
            typical_split_latent=split.mean(0),
        ),
        limits=FlagLimits(reduced_chi2_total=2.0, prior_distance=3.0),
        provenance={"made by": "tests/conftest.py"},
        normalises=False,
    )


# -- toys for the fitting room -------------------------------------------------------
@pytest.fixture
def linear_predictor():
    return LinearPredictor()


@pytest.fixture
def make_objective(linear_predictor):
    """Function that makes a `noisy_objective` of the linear predictor."""
    return lambda **changes: noisy_objective(linear_predictor, **changes)


# -- real things -----------------------------------------------------------------
@pytest.fixture(scope="session")
def pretrained():
    """The model that ships with the package."""
    return CalibratedModel.from_pretrained()


@pytest.fixture(scope="session")
def k_giant():
    """The real spectrum that ships with the package."""
    return read_apvisit(resources.files("cyclestarnet.data") / "apVisit-r13-9518-57729-104.fits")
