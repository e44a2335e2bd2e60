"""Split latents that are fitted along with the labels: derivatives, and what is gained by them."""

from copy import deepcopy
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
import torch

from cyclestarnet import CalibratedModel, ContinuumRecipe, FitWarning, GaussianPrior, WavelengthGrid
from cyclestarnet.networks.clouds import LatentCloud, SplitLatentCloud
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.kinematics import Kinematics
from cyclestarnet.networks.predictor import FreeSplitLatentPredictor, ObservedPredictor
from cyclestarnet.networks.shortcuts import Shortcuts
from cyclestarnet.networks.translation import TranslationNetwork
from cyclestarnet.networks.translator import Translator
from cyclestarnet.noise import NoiseModel
from cyclestarnet.pipeline.fit import fit_stars
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.parts import FlagLimits, Population
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.spectra import to_spectrum

N, SIGMA, N_STARS = 415, 5e-4, 12
SCATTER = 1e-4  # of the model, which is perfect
SHIFT = np.array([2.0, -1.5])  # of the stars' split latents, in σ of the cloud


@pytest.fixture(scope="module")
def cloud():
    """Two directions, along which latents scatter by 1.5 and 1."""
    rng = np.random.default_rng(6)
    basis = np.linalg.qr(rng.normal(size=(20, 2)))[0].T.reshape(2, 2, 10)
    return SplitLatentCloud(rng.normal(size=(2, 10)), basis, np.array([1.5, 1.0]) ** 2)


@pytest.fixture(scope="module")
def model(line_family, tiny_settings, cloud):
    """A model of random weights, which is the truth: what is fitted was made by it."""
    labels = line_family.labels
    torch.manual_seed(4)
    emulator = Emulator(labels.lower, labels.upper, N, hidden=(24, 24))
    translator = Translator(TranslationNetwork(tiny_settings), 0.92, 0.11)
    grid = WavelengthGrid(10 ** (4.18 + 6e-6 * np.arange(N)) * u.AA, ((0, N),))
    n_latent = tiny_settings.shared_filters * tiny_settings.latent_length
    return CalibratedModel(
        name="random",
        labels=labels,
        grid=grid,
        emulator=emulator,
        translator=translator,
        recipe=ContinuumRecipe(grid, np.arange(N) % 10 == 0, degree=2),
        noise=NoiseModel(1e-4, scatter={space: np.full(N, SCATTER) for space in ("observed", "emulator")}),
        population=Population(
            prior=GaussianPrior((labels.lower + labels.upper) / 2, np.diag(0.15 * labels.scale) ** 2),
            shared_latents=LatentCloud(np.zeros(n_latent), np.zeros((0, n_latent)), np.zeros(0), 1.0, np.inf),
            split_latents=cloud,
            typical_split_latent=cloud.mean,
        ),
        limits=FlagLimits(reduced_chi2_total=2.0),
        normalises=False,  # what random weights make has no continuum
    )


@pytest.fixture(scope="module")
def truth(line_family):
    return line_family.draw(N_STARS, np.random.default_rng(7))


def star(model, labels, coordinates=SHIFT, rng=None, flux=lambda flux: flux):
    """Spectrum of labels with the split latent of coordinates; noise if there is a generator."""
    cloud = model.population.split_latents
    z_split = cloud.mean + np.tensordot(coordinates, cloud.directions, 1)
    clean = flux(ObservedPredictor(model.emulator, model.translator, z_split).flux(labels))
    noisy = clean if rng is None else rng.normal(clean, SIGMA)
    return to_spectrum(noisy, model.grid, ivar=np.full(N, SIGMA**-2))


@pytest.fixture(scope="module")
def stars(model, truth):
    rng = np.random.default_rng(8)
    return [star(model, labels, rng=rng) for labels in truth]


def fit_all(model, stars, **options):
    return fit_stars(model, stars, FitSetup.of(model, FitOptions(**({"method": "lm", "prior": None} | options))))


@pytest.fixture(scope="module")
def fitted(model, stars):
    return fit_all(model, stars, split_latent="fitted")


def errors(results):
    return np.array([np.sqrt(np.diag(r.covariance)) for r in results])


def offsets(results, truth):
    return np.array([r.values for r in results]) - truth


# -- the cloud -----------------------------------------------------------------------------
def test_cloud_has_the_covariance_of_latents(rng):
    latents = rng.normal(size=(200, 2, 3)) * [1, 2, 3] + 5
    directions = SplitLatentCloud.from_latents(latents).directions.reshape(6, 6)
    np.testing.assert_allclose(directions.T @ directions, np.cov(latents.reshape(200, 6).T), rtol=1e-10)


def test_coordinates_are_found_again(cloud, rng):
    coordinates = rng.normal(size=(5, 2))
    latents = cloud.mean + np.tensordot(coordinates, cloud.directions, 1)
    np.testing.assert_allclose(cloud.coordinates(latents), coordinates, rtol=1e-10)


def test_cloud_needs_spectra(cloud):
    with pytest.raises(ValueError, match="2 or more spectra, but there is 1"):
        SplitLatentCloud.from_latents(cloud.mean[None])


# -- the predictor, in float64 ---------------------------------------------------------------
@pytest.fixture(scope="module")
def predictor(model, cloud):
    translator = Translator(deepcopy(model.translator.network).double(), 0.92, 0.11)
    return FreeSplitLatentPredictor(deepcopy(model.emulator).double(), translator, cloud.mean, cloud.directions)


@pytest.fixture
def rows(line_family, rng):
    """Labels and coordinates of two stars."""
    return np.hstack([line_family.draw(2, rng), rng.normal(size=(2, 2))])


def test_flux_is_that_of_the_split_latent(predictor, cloud, rows):
    for row, flux in zip(rows, predictor.flux(rows), strict=True):
        z_split = cloud.mean + row[3] * 1.5 * cloud.basis[0] + row[4] * cloud.basis[1]
        expected = ObservedPredictor(predictor.emulator, predictor.translator, z_split).flux(row[:3])
        np.testing.assert_allclose(flux, expected, rtol=1e-12)


@pytest.mark.parametrize("column", range(5))
def test_jacobian_equals_finite_differences(predictor, rows, line_family, column):
    step = np.zeros(5)
    step[column] = 1e-5 * [*line_family.labels.scale, 1, 1][column]
    expected = (predictor.flux(rows + step) - predictor.flux(rows - step)) / (2 * step[column])
    flux, slopes = predictor.jacobian(rows)
    np.testing.assert_allclose(flux, predictor.flux(rows), rtol=1e-12)
    np.testing.assert_allclose(slopes[:, column], expected, atol=1e-6 * np.abs(expected).max())


def test_pullback_equals_the_transposed_jacobian(predictor, rows, rng):
    cotangent = rng.normal(size=(2, N))
    _, pull = predictor.pullback(rows)
    _, slopes = predictor.jacobian(rows)
    np.testing.assert_allclose(pull(cotangent), np.einsum("nkp,np->nk", slopes, cotangent), rtol=1e-10)


def test_expected_slopes_by_the_coordinates_are_true(model, cloud, rows):
    shortcuts = Shortcuts(np.zeros(1), np.zeros((2, 3)), np.zeros(3), np.zeros((3, 1)), np.zeros((2, 3, N), np.float32))
    predictor = FreeSplitLatentPredictor(
        model.emulator, model.translator, cloud.mean, cloud.directions, shortcuts=shortcuts
    )
    expected = predictor.expected_slopes(torch.as_tensor(rows)).numpy()
    _, slopes = predictor.jacobian(rows)
    assert not expected[:, :3].any()  # as the shortcuts say
    np.testing.assert_allclose(expected[:, 3:], slopes[:, 3:], atol=0.02 * np.abs(slopes[:, 3:]).max())  # bfloat16


# -- fits ------------------------------------------------------------------------------------
def test_a_shifted_split_latent_biases_typical_fits(model, stars, fitted, truth):
    offset = offsets(fit_all(model, stars, split_latent="typical"), truth)
    assert np.abs((offset / errors(fitted)).mean(0)).max() > 5


def test_fitted_split_latent_recovers_labels(fitted, truth):
    pulls = offsets(fitted, truth) / errors(fitted)
    assert np.abs(pulls.mean(0)).max() < 3 / np.sqrt(N_STARS)
    assert 0.5 < np.sqrt(np.mean(pulls**2)) < 1.5


def test_fitted_split_latent_finds_the_latent(fitted):
    found = np.array([(r.split_latent.values - SHIFT) / r.split_latent.errors for r in fitted])
    assert np.sqrt(np.mean(found**2)) < 1.6


def test_covariance_is_marginal_over_the_coordinates(model, stars, fitted):
    result, predictor = fitted[0], FreeSplitLatentPredictor(
        model.emulator, model.translator, model.population.split_latents.mean, model.population.split_latents.directions
    )  # fmt: skip
    _, slopes = predictor.jacobian(np.r_[result.values, result.split_latent.values])
    hessian = slopes / (SIGMA**2 + SCATTER**2) @ slopes.T + np.diag([0, 0, 0, 1, 1])
    expected = np.linalg.inv(hessian)[:3, :3] * max(result.reduced_chi2_total, 1)
    np.testing.assert_allclose(np.diag(result.covariance), np.diag(expected), rtol=0.1)


def test_both_solvers_agree(model, stars, fitted):
    other = fit_all(model, stars[:2], split_latent="fitted", method="lbfgs")
    for one, two in zip(fitted, other, strict=False):
        assert (np.abs(one.values - two.values) < 0.5 * np.sqrt(np.diag(one.covariance))).all()


def test_without_information_the_prior_is_left(model, stars):
    (result,) = fit_all(model, stars[:1], split_latent="fitted", prior="training", inflation=1e4)
    np.testing.assert_allclose(result.split_latent.values, 0, atol=0.2)
    np.testing.assert_allclose(result.split_latent.errors, 1, rtol=0.02)


def test_a_star_does_not_feel_its_company(model, stars, fitted):
    alone = model.fit(stars[3], split_latent="fitted", prior=None, method="lm")
    np.testing.assert_array_equal(alone.values, fitted[3].values)
    np.testing.assert_array_equal(alone.covariance, fitted[3].covariance)
    np.testing.assert_array_equal(alone.split_latent.values, fitted[3].split_latent.values)


def test_coordinates_are_no_labels(fitted, line_family):
    assert fitted[0].label_set.names == line_family.labels.names
    assert fitted[0].covariance.shape == (3, 3)


def test_labels_can_be_fixed_and_tied(model, stars, truth):
    options = {"fixed": {"logg": truth[0][1]}, "tied": [("teff", "mg_h")], "split_latent": "fitted"}
    (result,) = fit_all(model, stars[:1], start={"teff": truth[0][0] * u.K, "mg_h": truth[0][2]}, **options)
    assert result.values[1] == truth[0][1]
    assert np.linalg.matrix_rank(result.covariance) == 1


def test_motion_is_fitted_along(model, truth):
    kinematics = Kinematics(model.grid.wavelength.value, model.grid.chips)
    tensor = model.emulator.lower.double().new_tensor

    def move(flux):
        return kinematics.apply(tensor(flux[None]), tensor([1.5]), tensor([0.0]))[0].numpy()

    moved = star(model, truth[0], rng=np.random.default_rng(9), flux=move)
    (result,) = fit_all(model, [moved], split_latent="fitted", motion="velocity")
    assert result.label_set.names[3:] == ("velocity",)
    assert (np.abs(offsets([result], [*truth[0], 1.5])) < 4 * errors([result])).all()
    assert errors([result])[0, 3] < 0.2


def test_other_spaces_have_no_split_latent_to_fit(model, stars):
    with pytest.raises(ValueError, match="split_latent='fitted' has no effect with space='emulator'"):
        fit_all(model, stars[:1], space="emulator", split_latent="fitted")
    assert fit_all(model, stars[:1], space="emulator")[0].split_latent is None


def test_samples_hold_labels_alone(model, stars):
    pytest.importorskip("emcee")
    with pytest.warns(FitWarning, match="too short"):
        posterior = model.sample(stars[0], split_latent="fitted", prior=None, seed=1, max_steps=4, progress=False)
    assert posterior.free == model.labels.names
    assert posterior.n_walkers == 12  # of labels and coordinates


def test_sampling_fits_the_split_latent_if_the_start_did_not(model, stars):
    pytest.importorskip("emcee")
    start = model.fit(stars[0], split_latent="own", method="lm")
    with pytest.warns(FitWarning, match="too short"):
        posterior = model.sample(stars[0], start=start, split_latent="fitted", seed=1, max_steps=4, progress=False)
    assert posterior.n_walkers == 12  # of labels and coordinates


# -- models ------------------------------------------------------------------------------------
def test_file_keeps_the_cloud(model, stars, fitted, tmp_path):
    model.save(tmp_path / "model.safetensors")
    again = CalibratedModel.load(tmp_path / "model.safetensors")
    (result,) = fit_all(again, stars[:1], split_latent="fitted")
    difference = (result.values - fitted[0].values) / np.sqrt(np.diag(result.covariance))
    assert np.abs(difference).max() < 0.01


def test_model_without_cloud_says_how_to_get_one(model, stars):
    with pytest.raises(ValueError, match=r"SplitLatentCloud\.from_latents"):
        replace(model, population=replace(model.population, split_latents=None)).fit(stars[0], split_latent="fitted")
