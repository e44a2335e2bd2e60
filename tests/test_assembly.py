"""From trained parts to a model: errors learnt from residuals of known size, and a model that can be saved."""

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty

from cyclestarnet import CalibratedModel, LabelSet, SpectrumError, WavelengthGrid
from cyclestarnet.exceptions import LabelError
from cyclestarnet.noise import NoiseModel
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training.assembly import (
    assemble_model,
    correlation_inflation,
    filled_flux,
    fit_residuals,
    label_prior,
    model_scatter,
    quiet_pixels,
    typical_latent,
)

GRID = WavelengthGrid(np.linspace(5000, 5010, 50) * u.AA)
TRUE_SCATTER = np.linspace(0.01, 0.03, 60)


@pytest.fixture
def residuals(rng):
    """Residuals (800, 60) of known scatter, with errors of their own per star and a fifth of the pixels masked."""
    sigma = rng.uniform(0.003, 0.01, (800, 1)) * np.ones(60)
    residual = rng.normal(0, np.hypot(sigma, TRUE_SCATTER))
    residual[rng.random(residual.shape) < 0.2] = np.nan
    return residual, sigma


# -- errors ------------------------------------------------------------------------
def test_scatter_is_what_the_errors_leave_unexplained(residuals):
    np.testing.assert_allclose(model_scatter(*residuals), TRUE_SCATTER, rtol=0.2)  # 4 σ of the worst pixel
    assert np.mean(model_scatter(*residuals) / TRUE_SCATTER) == pytest.approx(1, abs=0.03)


def test_wild_pixels_do_not_count_as_scatter(residuals, rng):
    residual, sigma = residuals
    wild = np.where(rng.random(residual.shape) < 0.01, 5.0, residual)
    np.testing.assert_allclose(model_scatter(wild, sigma), model_scatter(residual, sigma), rtol=0.05)


def test_data_no_worse_than_their_errors_leave_the_least_scatter(rng):
    assert np.all(model_scatter(rng.normal(0, 0.01, (50, 30)), np.full((50, 30), 0.02)) == 0.002)


def test_a_pixel_that_hardly_anyone_saw_has_the_median_scatter(residuals):
    residual, sigma = residuals
    residual[2:, 0] = np.nan
    scatter = model_scatter(residual, sigma)
    assert scatter[0] == np.median(scatter[1:])


def test_white_residuals_are_not_inflated(rng):
    residual, scatter = rng.normal(0, 0.01, (400, 300)), np.full(300, 0.01)
    smooth = np.sin(np.arange(300) / 20)[None]
    sigma = np.full(residual.shape, 1e-4)
    assert correlation_inflation(residual, sigma, scatter, smooth) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("width", [2, 4])
def test_inflation_is_the_growth_of_the_error_of_a_sum(rng, width):
    """A running mean of ``width`` white pixels: sums over many pixels have ``width`` times the white variance."""
    white = rng.normal(0, 0.01, (400, 300 + width - 1))
    residual = np.lib.stride_tricks.sliding_window_view(white, width, axis=1).sum(-1) / np.sqrt(width)
    noise = rng.normal(0, 0.02, residual.shape)  # of the data: independent, and not inflated
    found = correlation_inflation(
        residual + noise, np.full(residual.shape, 0.02), np.full(300, 0.01), np.ones((1, 300))
    )
    assert found == pytest.approx(np.sqrt(width), rel=0.05)


# -- the other parts ---------------------------------------------------------------
def test_prior_has_the_moments_of_the_pool(rng):
    labels = LabelSet(["teff", "logg"], [4000, 0], [6000, 4])
    covariance = np.array([[100.0**2, 20.0], [20.0, 0.3**2]])
    prior = label_prior(rng.multivariate_normal([5000, 2], covariance, 50_000), labels)
    np.testing.assert_allclose(prior.mean, [5000, 2], rtol=0.01)
    np.testing.assert_allclose(prior.covariance, covariance, rtol=0.1)


@pytest.mark.parametrize("pool", [[[5000, 2.0]], [[4800, 2.0], [5200, 2.0]], np.linspace([4000, 0], [6000, 4], 50)])
def test_a_pool_in_a_plane_or_a_point_makes_a_prior_all_the_same(pool):
    labels = LabelSet(["teff", "logg"], [4000, 0], [6000, 4])
    prior = label_prior(np.array(pool, dtype=float), labels)
    assert np.all(np.sqrt(np.diag(prior.covariance)) >= 0.01 * labels.scale * 0.999)


def test_typical_latent_is_one_of_them(rng):
    latents = np.concatenate([rng.normal(-5, 0.1, (10, 2, 3)), np.full((1, 2, 3), 0.4), rng.normal(5, 0.1, (10, 2, 3))])
    np.testing.assert_array_equal(typical_latent(latents), latents[10])
    assert typical_latent(None) is None


def test_quiet_pixels_avoid_lines_and_are_in_every_chip(line_family, tiny_model, rng):
    flux = line_family(line_family.draw(200, rng))
    quiet = quiet_pixels(flux, tiny_model.grid)
    assert np.abs(1 - flux[:, quiet]).max() < 0.05 < np.abs(1 - flux).max()
    assert all(quiet[start:stop].sum() >= 8 for start, stop in tiny_model.grid.chips)


def test_a_chip_full_of_lines_gets_its_least_pixels_where_lines_are_weakest(tiny_model):
    flux = np.tile(np.linspace(0.5, 0.6, tiny_model.grid.n_pixels), (5, 1))
    quiet = quiet_pixels(flux, tiny_model.grid, least=9)
    assert [np.flatnonzero(quiet[a:b])[0] for a, b in tiny_model.grid.chips] == [191, 206]


# -- the whole -----------------------------------------------------------------------
def stars(model, line_family, rng, n):
    """Observed-like stars of `tiny_model`, as a spectrum with a row per star."""
    clean = line_family(line_family.draw(n, rng), width=rng.uniform(2.0, 2.4, n), depth=1.1)
    return to_spectrum(rng.normal(clean, 0.005), model.grid, ivar=np.full(clean.shape, 0.005**-2))


@pytest.fixture(scope="module")
def assembled(tiny_model, line_family):
    """The tiny model, put together anew from its networks and 12 stars."""
    rng = np.random.default_rng(11)
    return assemble_model(
        "assembled",
        labels=tiny_model.labels,
        grid=tiny_model.grid,
        emulator=tiny_model.emulator,
        translator=tiny_model.translator,
        label_pool=line_family.draw(300, rng),
        observed=stars(tiny_model, line_family, rng, 60),
        validation=stars(tiny_model, line_family, rng, 12),
        noise=NoiseModel(),
        provenance={"made by": "a test"},
        progress=False,
    )


def test_scatter_of_the_model_is_that_of_its_errors_at_true_labels(assembled, tiny_model):
    truth = np.median(tiny_model.noise.scatter["observed"])  # from noiseless spectra at their true labels
    assert truth / 2 < np.median(assembled.noise.scatter["observed"]) < 1.5 * truth


def test_a_good_star_is_not_flagged_and_a_bad_one_is(assembled, line_family, rng):
    good = stars(assembled, line_family, rng, 1)[0]
    deep = to_spectrum(good.flux.value**2, assembled.grid, ivar=np.full(good.flux.shape, 0.005**-2))
    flags = [assembled.fit(star).flags.names for star in (good, deep)]
    assert flags[0] == []
    assert {"UNFAMILIAR", "POOR_FIT"} & set(flags[1])


def test_model_is_the_same_after_save_and_load(assembled, tmp_path, line_family, rng):
    assembled.save(tmp_path / "model.safetensors")
    again = CalibratedModel.load(tmp_path / "model.safetensors")
    star = stars(assembled, line_family, rng, 1)[0]
    labels = assembled.labels.to_quantities(assembled.prior.mean)
    np.testing.assert_allclose(again.predict(labels).flux, assembled.predict(labels).flux, rtol=1e-6)
    first, second = assembled.fit(star), again.fit(star)  # where fits begin is rounded in the file
    np.testing.assert_array_less(np.abs(second.values - first.values), 0.02 * np.sqrt(np.diag(first.covariance)))
    assert again.limits == assembled.limits
    assert again.provenance == {"made by": "a test"}


def test_a_validation_star_that_cannot_be_fitted_is_left_out(tiny_model, line_family, rng):
    spectra = stars(tiny_model, line_family, rng, 4)
    spectra.mask[1] = True
    assert fit_residuals(tiny_model, spectra, space="emulator", progress=False).flux.shape == (3, 415)
    with pytest.raises(SpectrumError, match=r"only 2 of 3 could be fitted; validation star 1: all 415 pixels"):
        fit_residuals(tiny_model, spectra[:3], space="emulator", progress=False)


@pytest.mark.parametrize("kind", [StdDevUncertainty, VarianceUncertainty, InverseVariance])
def test_large_errors_are_bad_pixels_whatever_tells_them(kind):
    sigma = np.where(np.arange(50) % 5 == 0, 0.2, 0.01)
    star = to_spectrum(np.full(50, 0.7), GRID, ivar=sigma**-2)
    star.uncertainty = star.uncertainty.represent_as(kind)
    np.testing.assert_array_equal(filled_flux(star, NoiseModel()), np.where(sigma < 0.1, 0.7, 1.0))


def test_observed_spectra_without_errors_are_refused():
    with pytest.raises(SpectrumError, match="observed must have an uncertainty"):
        filled_flux(to_spectrum(np.ones(50), GRID), NoiseModel())


def test_a_pool_outside_the_range_is_refused(tiny_model):
    with pytest.raises(LabelError, match="'logg' = 9"):
        assemble_model(
            "wrong", labels=tiny_model.labels, grid=tiny_model.grid, emulator=tiny_model.emulator,
            translator=tiny_model.translator, label_pool=[[4500, 9.0, 0.0]], observed=None, validation=None,
            noise=NoiseModel(),
        )  # fmt: skip
