"""Stars that a model makes of known labels, and the twin of a training that learns from them."""

import re
import shutil
from dataclasses import replace
from itertools import combinations

import astropy.units as u
import h5py
import numpy as np
import pytest
import torch
from scipy.stats import norm
from test_runs import WAVELENGTH, files, folder, prepared, write_config  # noqa: F401  # two of them are fixtures
from tiny import TINY_NETWORK

from cyclestarnet import CalibratedModel, EmulatorSettings, NoiseModel, SpectrumError, TrainingSettings, train
from cyclestarnet.cli import main
from cyclestarnet.networks.translation import TranslationNetwork
from cyclestarnet.networks.translator import Translator
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training import compare_labels, runs
from cyclestarnet.training.config import ModelConfig
from cyclestarnet.training.evaluation import LabelOffsets
from cyclestarnet.training.toml import ConfigError
from cyclestarnet.training.trainer import Trainer
from cyclestarnet.training.twins import SimulatedStars, find_donors, shortfall

SIGMA = 0.01


def observe(family, n, rng, depth=1.1):
    """Flux (n, n_pixels) of stars as the domain of the tiny model has them."""
    return rng.normal(family(family.draw(n, rng), width=rng.uniform(2.0, 2.4, n), depth=depth), SIGMA)


@pytest.fixture(scope="module")
def spectra(tiny_model, line_family):
    """30 stars with bad pixels of their own, one of which has no others."""
    flux = observe(line_family, 30, np.random.default_rng(21))
    ivar = np.full(flux.shape, SIGMA**-2.0)
    for k in range(30):
        ivar[k, 7 * k : 7 * k + 5] = 0
    ivar[4] = 0
    return to_spectrum(flux, tiny_model.grid, ivar=ivar)


@pytest.fixture(scope="module")
def donors(tiny_model, spectra):
    return find_donors(tiny_model, spectra, progress=False)


def test_donors_lend_what_their_fits_leave_over(tiny_model, spectra, donors):
    assert donors.residual.shape == (29, 415)  # without the star that cannot be fitted
    assert donors.mask[0, :5].all()
    assert not donors.mask[0, 5:].any()
    assert not donors.residual[donors.mask].any()
    assert 0.95 * SIGMA < donors.residual[~donors.mask].std() < 1.4 * SIGMA  # noise, and what the model misses
    np.testing.assert_allclose(donors.sigma[~donors.mask], SIGMA, rtol=1e-6)
    fit = tiny_model.fit(spectra[5], method="lm")
    np.testing.assert_allclose(donors.residual[4], np.nan_to_num(fit.residual.value), atol=1e-5)


def test_stars_are_made_of_labels_split_latents_and_what_was_left_over(tiny_model, line_family, donors, rng):
    labels, lent_by = line_family.draw(9, rng), rng.integers(29, size=9)
    table = SimulatedStars(tiny_model, labels, donors, lent_by)
    assert (table.n_spectra, table.n_pixels) == (9, 415)
    flux, sigma, mask = table.read(2, 9)
    for star in range(2, 9):
        donor = lent_by[star]
        synthetic = tiny_model.emulator(torch.tensor(labels[None, star], dtype=torch.float32))
        clean = tiny_model.translator.synth_to_obs(synthetic, donors.split_latent[donor])[0]
        expected = np.where(donors.mask[donor], 1.0, clean + donors.residual[donor])
        np.testing.assert_allclose(flux[star - 2], expected, atol=2e-6)
        np.testing.assert_array_equal(mask[star - 2], donors.mask[donor])
        np.testing.assert_array_equal(sigma[star - 2], donors.sigma[donor])
    again = table.read(5, 6)
    np.testing.assert_allclose(again[0][0], flux[3], atol=1e-6)


def test_the_model_that_made_stars_finds_their_labels(tiny_model, line_family, donors, rng):
    """So their labels are true in the world of that model: what a twin misses beyond noise is its own."""
    labels = line_family.draw(60, rng)
    flux, sigma, mask = SimulatedStars(tiny_model, labels, donors, rng.integers(29, size=60)).read(0, 60)
    made = to_spectrum(flux.astype(float), tiny_model.grid, ivar=np.where(mask, 0.0, sigma.astype(float) ** -2))
    truth = tiny_model.labels.to_quantities(labels)
    bare = replace(tiny_model, noise=replace(tiny_model.noise, label_error=None))
    offsets = compare_labels(bare, made, truth, progress=False)
    pull = offsets.offset / offsets.error
    assert (np.abs(np.median(pull, axis=0)) < 0.6).all()  # 29 donors lend 60 stars their noise
    assert (np.subtract(*np.percentile(pull, [84, 16], axis=0)) / 2 < 1.5).all()


def test_stars_without_split_latents(tiny_model, tiny_settings, line_family, donors, rng):
    network = TranslationNetwork(replace(tiny_settings, split_filters=0)).eval()
    model = replace(tiny_model, translator=Translator(network, 0.92, 0.11), shortcuts=None)
    labels = line_family.draw(3, rng)
    flux = SimulatedStars(model, labels, replace(donors, split_latent=None), np.arange(3)).read(0, 3)[0]
    expected = model.translator.synth_to_obs(model.emulator(torch.tensor(labels, dtype=torch.float32)), None)
    used = ~donors.mask[:3]
    np.testing.assert_allclose(flux[used], (expected + donors.residual[:3])[used], atol=2e-6)


def test_too_few_stars_make_no_twin(tiny_model, spectra):
    with pytest.raises(SpectrumError, match="3 or more observed stars, but only 0 of 1 can be fitted"):
        find_donors(tiny_model, spectra[4:5], progress=False)


# -- the whole way -------------------------------------------------------------------------
TWIN = {"model": "n_twin = 20", "synthetic": 'emulator = "emulator.pt"\nlabels = {}\nn_drawn = 200'}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("cyclestarnet.training.twins.N_KNOWN", 8)
    monkeypatch.setattr("cyclestarnet.training.twins.N_DONORS", 6)


@pytest.mark.usefixtures("quick")
def test_a_training_has_the_errors_of_its_twin(folder, monkeypatch, capsys):  # noqa: F811
    config = str(write_config(folder, **TWIN))
    assert main(["train", config]) == 0
    assert "twice 20 iterations more, for the errors of labels" in " ".join(capsys.readouterr().out.split())
    names = "tiny.safetensors", "twin/tiny-twin.safetensors", "twin/twin/tiny-twin-twin.safetensors"
    models = [CalibratedModel.load(folder / "run" / name) for name in names]
    model, twin, _ = models
    told = model.provenance["label errors"]
    assert "60 stars of this model; 20 iterations, seed 1" in told
    factor = float(re.search(r"times (\d+\.\d+)", told)[1])
    own, of_twin = (np.diag(m.noise.label_error) for m in (model, twin))
    assert (own > 0).any()
    assert factor >= 1
    assert (own >= 0.999 * of_twin).all()
    differ = [
        max((a - b).abs().max() for a, b in zip(*(m.translator.network.parameters() for m in pair), strict=True))
        for pair in combinations(models, 2)
    ]
    assert min(differ) > 0.01

    def trained_again(*_, **__):
        raise AssertionError("the twins were trained already")

    (folder / "run" / "tiny.safetensors").unlink()
    monkeypatch.setattr(Trainer, "step", trained_again)
    assert main(["train", config]) == 0  # what was trained is taken as it is
    again = CalibratedModel.load(folder / "run" / "tiny.safetensors")
    np.testing.assert_array_equal(again.noise.label_error, model.noise.label_error)


def offsets_of(scatter, rng, n=4000):
    """Offsets of two labels of which fits quote errors of 1 and 2."""
    quoted = np.array([1.0, 2.0])
    every, offset = np.ones(n, dtype=bool), rng.normal(0, scatter, (n, 2))
    covariance = np.tile(np.diag(quoted**2), (n, 1, 1))
    return LabelOffsets(("teff", "logg"), offset, covariance, 1.0 * every, every, ~every, labels=np.zeros((n, 2)))


def test_errors_fall_short_by_what_makes_the_offsets_fit(rng):
    noise = NoiseModel(label_error=np.diag([3.0, 12.0]))  # totals of 2 and 4
    assert shortfall(offsets_of([2.0, 4.0], rng), noise) == pytest.approx(1.0, abs=0.03)
    assert shortfall(offsets_of([3.0, 6.0], rng), noise) == pytest.approx(1.5, abs=0.04)
    between = shortfall(offsets_of([2.0, 8.0], rng), noise)  # one label right, the other half as large as it must be
    assert 2 * norm.cdf(between) - 1 + 2 * norm.cdf(between / 2) - 1 == pytest.approx(2 * 0.6827, abs=0.03)


def test_errors_that_are_too_large_have_a_factor_below_one(rng):
    noise = NoiseModel(label_error=np.diag([3.0, 12.0]))
    assert shortfall(offsets_of([1.0, 2.0], rng), noise) == pytest.approx(0.5, abs=0.02)


@pytest.mark.usefixtures("quick")
def test_arrays_in_memory_have_a_twin_too(line_family, rng):
    labels = rng.uniform(line_family.labels.lower, line_family.labels.upper, (60, 3))
    model = train(
        line_family(labels), {"teff": labels[:, 0] * u.K, "logg": labels[:, 1], "mg_h": labels[:, 2]},
        observe(line_family, 40, rng), np.full((40, 415), SIGMA), wavelength=WAVELENGTH * u.AA, n_twin=2,
        settings=TrainingSettings(n_iterations=2, flux_mean=0.92, flux_std=0.11), network=TINY_NETWORK,
        emulator=EmulatorSettings(hidden=(8,), n_components=4, n_epochs=2), progress=False,
    )  # fmt: skip
    assert "2 iterations" in model.provenance["label errors"]
    assert model.noise.label_error.shape == (3, 3)


@pytest.mark.usefixtures("quick")
def test_a_twin_of_another_model_is_trained_anew(folder):  # noqa: F811
    run = prepared(folder, **TWIN)
    run.train(until=1)
    first = runs.finish(run, progress=False)
    errors = CalibratedModel.load(first).noise.label_error
    stale = folder / "run" / "twin" / "checkpoint.pt.previous"
    stale.write_bytes(b"of the twin of another model")
    run.train(progress=False)
    assert not np.array_equal(CalibratedModel.load(runs.finish(run, progress=False)).noise.label_error, errors)
    assert not stale.exists()


@pytest.mark.parametrize("number", [-1, 2.5, True, "many"])
def test_iterations_of_twins_are_a_whole_number(number):
    with pytest.raises(ValueError, match=r"n_twin must be a whole number, 0 or more, but is"):
        ModelConfig(n_twin=number)


def test_anchors_and_a_twin_exclude_each_other(folder):  # noqa: F811
    shutil.copy(folder / "observed.h5", folder / "anchors.h5")
    lines = TWIN | {"training": "weight_anchors = 1.0", "observed": 'anchors = "anchors.h5"'}
    with pytest.raises(ConfigError, match="a twin has no anchors"):
        prepared(folder, **lines)


def test_known_stars_and_a_twin_exclude_each_other(folder):  # noqa: F811
    with h5py.File(folder / "observed.h5") as file, h5py.File(folder / "known.h5", "w") as known:
        for name in ("wavelength", "spectra val", "spectra_err val", "spectra_msk val", "snr val"):
            file.copy(name, known)
        known.attrs["label_names"], known["labels val"] = ["logg"], np.full((12, 1), 2.0)
    with pytest.raises(ConfigError, match=r"n_twin: the split 'val' of .* tells the errors of labels already"):
        prepared(folder, **TWIN | {"observed": 'known = "known.h5"'})
