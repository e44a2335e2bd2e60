"""The whole model in small: files, predictions, derivatives, fits and samples."""

import pickle
import re
from copy import deepcopy
from dataclasses import replace
from functools import partial

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable
from safetensors.numpy import save_file
from scipy.stats import chi2
from stars import SIGMA, STAR, VALUES, N, assert_same_labels, observed, quantities, spectrum, with_noise

from cyclestarnet import (
    CalibratedModel,
    FitFlag,
    FitWarning,
    GaussianPrior,
    GridError,
    LabelError,
    LabelSet,
    ModelFileError,
    OtherRunError,
    SpectrumError,
)
from cyclestarnet.fitting.chains import autocorrelation_time
from cyclestarnet.fitting.lbfgs import lbfgs
from cyclestarnet.model_file import digest_of
from cyclestarnet.networks.checkpoint import load_arrays, save_arrays
from cyclestarnet.networks.predictor import EmulatorPredictor, ObservedPredictor
from cyclestarnet.networks.translator import Translator
from cyclestarnet.pipeline.fit import SOLVERS
from cyclestarnet.spectra import Spectrum, to_spectrum

DOMAINS = ("observed", "synthetic")


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with a model error of 0.0005: smaller than the noise, so that the errors of fits are known."""
    return with_noise(tiny_model, scatter={space: np.full(N, 5e-4) for space in ("observed", "emulator")})


@pytest.fixture(scope="module")
def double(tiny_model):
    """The tiny model in float64, for finite differences."""
    network, old = deepcopy(tiny_model.translator.network).double(), tiny_model.translator
    return replace(
        tiny_model,
        emulator=deepcopy(tiny_model.emulator).double(),
        translator=Translator(network, old.flux_mean, old.flux_std),
    )


@pytest.fixture(scope="module")
def star(model):
    """One star with noise, S/N 200."""
    return spectrum(model, observed(model, STAR), noise=np.random.default_rng(31))


@pytest.fixture(scope="module")
def result(model, star):
    return model.fit(star)


# -- prediction ----------------------------------------------------------------------------
def test_synthetic_prediction_is_the_emulators(model):
    expected = EmulatorPredictor(model.emulator).flux(VALUES)
    np.testing.assert_array_equal(model.predict(STAR, domain="synthetic").flux.value, expected)


def test_observed_prediction_has_the_typical_split_latent(model):
    predictor = ObservedPredictor(model.emulator, model.translator, model.population.typical_split_latent)
    np.testing.assert_array_equal(model.predict(STAR).flux.value, predictor.flux(VALUES))


def test_prediction_like_a_spectrum_has_its_split_latent(model, line_family):
    like = spectrum(model, line_family([4600, 2.0, 0.1], width=2.4, depth=1.1)[0])
    split_latent = model.translator.encode_obs(like.flux.value[None])[1][0]
    predictor = ObservedPredictor(model.emulator, model.translator, split_latent)
    np.testing.assert_allclose(model.predict(STAR, like=like).flux.value, predictor.flux(VALUES), rtol=1e-6)


def test_prediction_has_the_grid_and_says_where_it_is_from(model):
    predicted = model.predict(STAR)
    np.testing.assert_array_equal(predicted.spectral_axis.to_value(u.AA), model.grid.wavelength.value)
    assert predicted.meta == {"model": "tiny", "domain": "observed"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_many_stars_at_once(model, domain):
    many = STAR | {"teff": [4500, 4800, 5100] * u.K}
    predicted = model.predict(many, domain=domain).flux.value
    assert predicted.shape == (3, N)
    np.testing.assert_allclose(predicted[1], model.predict(STAR, domain=domain).flux.value, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teff": 9000 * u.K}, r"Label 'teff' = 9000 K is outside the training range 4000 to 5500 K"),
        ({"logg": np.nan}, "Label 'logg' is not finite"),
        ({"tef": 4800 * u.K}, "Unknown label 'tef'; did you mean 'teff'"),
        ({"Mg_H": 0.1}, "did you mean 'mg_h'"),
        ({"teff": 4800 * u.s}, "Label 'teff' must have the unit K, but got 's'"),
        ({"teff": 4800}, "Label 'teff' must be a Quantity in K, but got the bare number 4800"),
    ],
)
def test_bad_labels_are_named(model, change, message):
    with pytest.raises(LabelError, match=message):
        model.predict(STAR | change)


def test_missing_labels_are_named(model):
    with pytest.raises(LabelError, match=r"Labels \['logg', 'mg_h'\] are missing"):
        model.predict({"teff": 4800 * u.K})


def test_unknown_domain_is_refused(model):
    with pytest.raises(ValueError, match="domain must be one of 'observed', 'synthetic', but is 'obs'"):
        model.predict(STAR, domain="obs")


# -- latents ---------------------------------------------------------------------------------
def test_latents_are_those_of_the_encoders(model, star):
    flux = np.array([star.flux.value, 1 + 0 * star.flux.value])
    encoded = model.encode(to_spectrum(flux, model.grid, ivar=np.full(flux.shape, SIGMA**-2)))
    shared, split = model.translator.encode_obs(flux)
    np.testing.assert_allclose(encoded.shared_latent, shared, atol=1e-6)
    np.testing.assert_allclose(encoded.split_latent, split, atol=1e-6)
    np.testing.assert_array_equal(encoded.flux, flux)
    assert encoded.used.all()


def test_synthetic_spectra_have_shared_latents_only(model):
    synthetic = model.predict(quantities(model, np.array([VALUES, VALUES])), domain="synthetic")
    encoded = model.encode(synthetic, domain="synthetic")
    np.testing.assert_allclose(encoded.shared_latent, model.translator.encode_synth(synthetic.flux.value), atol=1e-6)
    assert encoded.split_latent is None


def test_masked_pixels_do_not_matter_to_latents(model, star):
    mask = np.arange(N) % 11 == 0
    given = [spectrum(model, np.where(mask, value, star.flux.value), mask=mask) for value in (1.0, 50.0)]
    encoded = model.encode(given)
    np.testing.assert_array_equal(*encoded.shared_latent)
    np.testing.assert_array_equal(encoded.used, [~mask, ~mask])


def test_a_bad_spectrum_among_others_has_no_latents(model, star, tmp_path):
    encoded = model.encode([star, tmp_path / "apStar-lost.fits", star])
    assert encoded.good.tolist() == [True, False, True]
    assert np.isnan(encoded.shared_latent[1]).all()
    np.testing.assert_allclose(encoded.shared_latent[0], model.encode(star).shared_latent[0], atol=1e-5)
    assert "apStar-lost.fits" in encoded.messages[1]
    with pytest.raises(SpectrumError, match="none of 1 spectra can be encoded: "):
        model.encode([tmp_path / "apStar-lost.fits"])
    with pytest.raises(SpectrumError, match="none of 0 spectra"):
        model.encode([])


# -- translation -----------------------------------------------------------------------------
def test_to_observed_translates(model):
    synthetic = model.predict(STAR, domain="synthetic")
    np.testing.assert_allclose(model.to_observed(synthetic).flux.value, model.predict(STAR).flux.value, atol=1e-6)


def test_to_synthetic_takes_out_what_is_observed(model, star):
    """The lines of the observed domain are 10 % stronger; the translation brings them near the emulator's."""
    synthetic = model.predict(STAR, domain="synthetic").flux.value
    before, after = star.flux.value - synthetic, model.to_synthetic(star).flux.value - synthetic
    assert after.std() < 0.7 * before.std()


@pytest.mark.parametrize("domain", DOMAINS)
def test_reconstruction_is_close(model, star, domain):
    given = star if domain == "observed" else model.predict(STAR, domain="synthetic")
    again = model.reconstruct(given, domain=domain)
    assert (again.flux - given.flux).value.std() < 2 * SIGMA


def test_masked_pixels_do_not_matter_to_a_translation(model, star):
    mask = np.arange(N) % 11 == 0
    one, other = (
        model.to_synthetic(spectrum(model, np.where(mask, value, star.flux.value), mask=mask)) for value in (1.0, 50.0)
    )
    np.testing.assert_array_equal(one.flux.value, other.flux.value)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_pixels_with_large_errors_do_not_matter_to_a_translation(model, star, value):
    """They enter the networks as continuum, as masked ones do and as in training."""
    poor = np.arange(N) % 11 == 0
    ivar = np.where(poor, 0.2, SIGMA) ** -2
    given = to_spectrum(np.where(poor, value, star.flux.value), model.grid, ivar=ivar)
    masked = spectrum(model, star.flux.value, mask=poor)
    np.testing.assert_array_equal(model.to_synthetic(given).flux.value, model.to_synthetic(masked).flux.value)


def test_pixels_of_a_noisy_spectrum_are_kept(model, star):
    """Where all errors are above the limit of training."""
    one, other = (model.to_synthetic(spectrum(model, star.flux.value, sigma=sigma)) for sigma in (SIGMA, 0.07))
    np.testing.assert_array_equal(one.flux.value, other.flux.value)


# -- derivatives ---------------------------------------------------------------------------------
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(
    ("name", "step", "unit"), [("teff", 5e-5 * u.K, 1 / u.K), ("logg", 1e-7, 1 / u.dex), ("mg_h", 1e-7, 1 / u.dex)]
)
def test_derivatives_equal_finite_differences(double, domain, name, step, unit):
    size = u.Quantity(step).value
    ends = [STAR | {name: (STAR[name].value + sign * size) * STAR[name].unit} for sign in (-1, 1)]
    low, high = (double.predict(labels, domain=domain).flux.value for labels in ends)
    expected, found = (high - low) / (2 * size), double.derivative_spectra(STAR, domain=domain)[name]
    assert found.unit == unit
    np.testing.assert_allclose(found.value, expected, atol=1e-4 * np.abs(expected).max())


def test_derivatives_have_wavelengths(model):
    slopes = model.derivative_spectra(STAR)
    assert slopes.names == ("teff", "logg", "mg_h")
    np.testing.assert_array_equal(slopes["wavelength"].to_value(u.AA), model.grid.wavelength.value)


def test_derivative_of_one_label_is_a_column(model):
    one = model.derivative_spectrum(STAR, "mg_h", domain="synthetic")
    np.testing.assert_array_equal(one, model.derivative_spectra(STAR, domain="synthetic")["mg_h"])


def test_derivative_of_an_unknown_label_is_refused(model):
    with pytest.raises(LabelError, match="Unknown label 'mgh'; did you mean 'mg_h'"):
        model.derivative_spectrum(STAR, "mgh")


# -- files -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole(tiny_model):
    """The tiny model with all that a model may have."""
    return with_noise(tiny_model, scatter_inflation={"observed": 2.0}, label_error=np.diag([100.0, 0.01, 0.001]))


@pytest.fixture(scope="module")
def saved(whole, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    whole.save(path)
    return path


@pytest.fixture(scope="module")
def loaded(saved):
    return CalibratedModel.load(saved)


@pytest.mark.parametrize("domain", DOMAINS)
def test_loaded_model_predicts_the_same_numbers(tiny_model, loaded, domain):
    flux = [m.predict(STAR, domain=domain).flux.value for m in (tiny_model, loaded)]
    np.testing.assert_array_equal(*flux)


def test_loaded_model_has_the_same_parts(whole, loaded):
    assert loaded.name == whole.name
    assert loaded.labels == whole.labels
    assert loaded.grid == whole.grid
    assert loaded.limits == whole.limits
    assert loaded.provenance == whole.provenance
    assert loaded.noise.scatter_inflation == whole.noise.scatter_inflation
    np.testing.assert_array_equal(loaded.prior.covariance, whole.prior.covariance)
    np.testing.assert_array_equal(loaded.noise.label_error, whole.noise.label_error)
    np.testing.assert_array_equal(loaded.recipe.pixels, whole.recipe.pixels)


def test_loaded_model_fits_the_same_labels(whole, loaded, star):
    one, other = whole.fit(star), loaded.fit(star)
    assert_same_labels(one, other, 0.01)
    assert other.chi2_total == pytest.approx(one.chi2_total, rel=1e-4)
    assert other.meta["latent_distance"] == pytest.approx(one.meta["latent_distance"], rel=1e-4)


def test_saving_changes_nothing(tiny_model, tmp_path):
    modules = (tiny_model.emulator, tiny_model.translator.network)
    before = [(name, array.clone()) for module in modules for name, array in module.state_dict().items()]
    flux = tiny_model.predict(STAR).flux.value
    tiny_model.save(tmp_path / "m.safetensors", half=True)
    after = [item for module in modules for item in module.state_dict().items()]
    assert all(a[0] == b[0] and a[1].dtype == b[1].dtype and torch.equal(a[1], b[1])
               for a, b in zip(before, after, strict=True))  # fmt: skip
    np.testing.assert_array_equal(tiny_model.predict(STAR).flux.value, flux)


def test_saved_twice_is_the_same_file(loaded, saved, tmp_path):
    loaded.save(tmp_path / "again.safetensors")
    (arrays, meta), (again, meta_again) = load_arrays(saved), load_arrays(tmp_path / "again.safetensors")
    assert meta_again == meta
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_half_precision_is_smaller_and_close(tiny_model, saved, tmp_path):
    path = tmp_path / "half.safetensors"
    tiny_model.save(path, half=True)
    difference = CalibratedModel.load(path).predict(STAR).flux - tiny_model.predict(STAR).flux
    assert 0 < np.abs(difference.value).max() < 2e-3
    assert path.stat().st_size < 0.75 * saved.stat().st_size


def rewrite(saved, path, change):
    """The file with other contents, but whole: its checksum fits."""
    arrays, meta = load_arrays(saved)
    change(arrays, meta)
    save_arrays(arrays, meta, path)
    return path


@pytest.mark.parametrize(
    ("change", "domain"),
    [
        (lambda arrays, meta: arrays.update({"emulator.layers.0.bias": arrays["emulator.layers.0.bias"] + 0.1}),
         "synthetic"),
        (lambda arrays, meta: arrays.update({"network.decoder_obs.0.bias": arrays["network.decoder_obs.0.bias"] * 2}),
         "observed"),
        (lambda arrays, meta: arrays.update(typical_split_latent=-arrays["typical_split_latent"]), "observed"),
        (lambda arrays, meta: arrays["network.encoder_sh.0.weight"].fill(np.nan), "observed"),
        (lambda arrays, meta: meta.update(flux_std=0.2), "observed"),
    ],
    ids=["emulator", "network", "split_latent", "nan", "scaling"],
)  # fmt: skip
def test_self_test_finds_other_predictions(saved, tmp_path, change, domain):
    path = rewrite(saved, tmp_path / "m.safetensors", change)
    with pytest.raises(ModelFileError, match=f"self-test: the {domain} spectrum"):
        CalibratedModel.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, meta: arrays.pop("network.encoder_sh.0.weight"),
        lambda arrays, meta: arrays.pop("grid.wavelength"),
        lambda arrays, meta: arrays.pop("selftest.labels"),
        lambda arrays, meta: arrays.pop("selftest.observed"),
        lambda arrays, meta: meta.pop("labels"),
        lambda arrays, meta: meta.update(labels=None),
        lambda arrays, meta: meta["network"].update(n_pixels=383),
        lambda arrays, meta: meta["network"].update(unknown=1),
        lambda arrays, meta: arrays.update({"scatter.observed": arrays["scatter.observed"][:-1]}),
    ],
    ids=["weights", "grid", "self-test", "self-test flux", "labels", "null", "pixels", "setting", "scatter"],
)  # fmt: skip
def test_incomplete_files_are_refused(saved, tmp_path, change):
    path = rewrite(saved, tmp_path / "m.safetensors", change)
    with pytest.raises(ModelFileError, match="does not hold a complete model"):
        CalibratedModel.load(path)


def test_flipped_bytes_are_found(saved, tmp_path):
    content = bytearray(saved.read_bytes())
    content[-2000] ^= 0x10
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(ModelFileError, match="was altered or damaged"):
        CalibratedModel.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_truncated_files_are_found(saved, tmp_path, fraction):
    content = saved.read_bytes()
    (tmp_path / "m.safetensors").write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ModelFileError, match=r"m.safetensors is truncated"):
        CalibratedModel.load(tmp_path / "m.safetensors")


def test_foreign_files_are_refused(tmp_path):
    save_file({"weight": np.ones(3)}, tmp_path / "m.safetensors")
    with pytest.raises(ModelFileError, match="of another program"):
        CalibratedModel.load(tmp_path / "m.safetensors")


def test_pickles_are_refused(tiny_model, tmp_path):
    (tmp_path / "m.safetensors").write_bytes(pickle.dumps(tiny_model.labels.to_dict()))
    with pytest.raises(ModelFileError, match="no safetensors file"):
        CalibratedModel.load(tmp_path / "m.safetensors")


def test_missing_files_are_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model file"):
        CalibratedModel.load(tmp_path / "m.safetensors")


# -- parts -------------------------------------------------------------------------------------------
def test_parts_must_have_the_same_pixels(tiny_model, pretrained):
    with pytest.raises(GridError, match=r"same number of pixels, but have .*'grid': 7167, 'emulator': 415"):
        replace(tiny_model, grid=pretrained.grid)


def test_parts_must_have_the_same_labels(tiny_model):
    with pytest.raises(LabelError, match="2 labels, but the emulator takes 3"):
        replace(tiny_model, labels=LabelSet(["teff", "logg"], [4000, 0], [5500, 4]))


# -- fits: the truth -----------------------------------------------------------------------------------
class PowerTranslator(Translator):
    """Knows the true translation: lines of the observed domain are 10 % stronger."""

    def obs_to_synth(self, flux):
        return np.asarray(flux) ** (1 / 1.1)


@pytest.fixture(scope="module")
def exact(model):
    """The model with the true translation to the synthetic domain."""
    return replace(model, translator=PowerTranslator(model.translator.network, 0.92, 0.11))


def simulate(model, values, space):
    """Noise-free flux that is exactly that of the labels in the space of a fit."""
    synthetic = EmulatorPredictor(model.emulator).flux(values)
    return {
        "observed": lambda: observed(model, quantities(model, values)),
        "synthetic": lambda: synthetic**1.1,
        "emulator": lambda: synthetic,
    }[space]()


@pytest.mark.parametrize("prior", ["training", None])
@pytest.mark.parametrize("space", ["observed", "synthetic", "emulator"])
def test_labels_are_recovered_within_their_errors(exact, line_family, space, prior):
    """χ² of the labels of 16 stars drawn from the prior, covariance included, within its 0.1 % tails."""
    rng, total = np.random.default_rng(32), 0
    for values in line_family.draw(16, rng):
        fit = exact.fit(spectrum(exact, simulate(exact, values, space), noise=rng), space=space, prior=prior)
        assert fit.success
        offset = fit.values - values
        total += offset @ np.linalg.solve(fit.covariance, offset)
    assert chi2.ppf(0.001, 48) < total < chi2.ppf(0.999, 48)


def test_good_fit_has_a_reduced_chi2_of_one(result):
    scatter = np.sqrt(2 / result.dof)
    assert abs(result.reduced_chi2 - 1) < 4 * scatter
    assert abs(result.reduced_chi2_total - 1) < 4 * scatter


def test_good_fit_has_no_flags(result):
    assert result.flags == FitFlag(0)
    assert result.success


def test_errors_grow_with_the_noise(model, star, result):
    noisy = model.fit(spectrum(model, star.flux.value, sigma=4 * SIGMA))
    for name in model.labels:
        assert 3 < noisy.uncertainties[name] / result.uncertainties[name] < 4.5


def test_errors_are_floored_as_in_training(model, star, result):
    fit = model.fit(spectrum(model, star.flux.value, sigma=SIGMA / 10))
    assert_same_labels(result, fit)
    assert fit.chi2 == pytest.approx(result.chi2, rel=1e-9)
    assert fit.uncertainties == result.uncertainties


def test_scatter_of_the_model_adds_to_the_errors(model, tiny_model, star, result):
    wide = tiny_model.fit(star)
    assert all(wide.uncertainties[name] > result.uncertainties[name] for name in model.labels)
    assert wide.reduced_chi2_total < result.reduced_chi2_total


def test_hidden_error_of_labels_is_added(model, star, result):
    """To the covariance of labels that are free, in the observed space."""
    hidden = np.diag([1600.0, 0.01, 0.0025])
    careful = with_noise(model, label_error=hidden)
    np.testing.assert_allclose(careful.fit(star).covariance, result.covariance + hidden, rtol=1e-9)
    assert careful.fit(star, fixed={"logg": 2.0}).uncertainties["logg"].value == 0
    plain = model.fit(star, space="emulator").covariance
    np.testing.assert_array_equal(careful.fit(star, space="emulator").covariance, plain)


@pytest.mark.parametrize("factor", [0.01, 9.0], ids=["strong prior", "wide prior"])
def test_hidden_error_moves_the_optimum_as_the_prior_lets_it(model, factor):
    """It was learnt with the training prior; its part of another optimum is that of a weighted mean with the prior."""
    mean = model.labels.to_quantities(model.prior.mean)  # no prior moves a star that is there, and slopes are the same
    star = spectrum(model, observed(model, mean), noise=np.random.default_rng(31))
    hidden = np.diag([1600.0, 0.01, 0.0025])
    careful = with_noise(model, label_error=hidden)
    prior = GaussianPrior(model.prior.mean, factor * model.prior.covariance)
    whole, own = (m.fit(star, prior=prior, start=mean).covariance for m in (careful, model))
    gain = own @ np.linalg.inv(model.fit(star, start=mean).covariance)
    expected = own + gain @ hidden @ gain.T
    np.testing.assert_allclose(np.sqrt(np.diag(whole)), np.sqrt(np.diag(expected)), rtol=0.15)


def test_no_error_is_larger_than_that_of_an_even_distribution(model, star):
    """And a covariance stays one, motion included."""
    careful = with_noise(model, label_error=np.diag([1e8, 100.0, 100.0]))
    fit = careful.fit(star, prior=None, motion="velocity", start=STAR)
    assert (np.sqrt(np.diag(fit.covariance)) <= fit.label_set.scale / 12**0.5 * (1 + 1e-9)).all()
    size = np.sqrt(np.diag(fit.covariance))
    assert np.linalg.eigvalsh(fit.covariance / np.outer(size, size)).min() > -1e-9


def test_inflated_scatter_makes_larger_errors_and_the_same_chi2(tiny_model, star):
    fits = [with_noise(tiny_model, scatter_inflation=extra).fit(star) for extra in ({}, {"observed": 2.0})]
    assert all(fits[1].uncertainties[name] > 1.2 * fits[0].uncertainties[name] for name in tiny_model.labels)
    assert fits[1].chi2_total == pytest.approx(fits[0].chi2_total, rel=0.1)


def test_noise_that_the_encoder_does_not_see_is_not_in_the_errors(model, star):
    fits = []
    for sigma in (0.2, 2.0):
        noisy = np.where(np.arange(N) % 5, SIGMA, sigma)
        fits.append(model.fit(spectrum(model, star.flux.value, sigma=noisy), space="synthetic", method="lm"))
    np.testing.assert_array_equal(fits[0].covariance, fits[1].covariance)


def test_misfit_makes_larger_errors(model, star, result, rng):
    """Errors that the residuals do not bear out are scaled."""
    spoilt = model.fit(spectrum(model, star.flux.value + rng.normal(0, 4 * SIGMA, N)))
    for name in model.labels:
        assert spoilt.uncertainties[name] > 2.5 * result.uncertainties[name]


# -- fits: options -----------------------------------------------------------------------------------------
def test_fixed_labels_keep_their_value(model, star):
    fit = model.fit(star, fixed={"logg": 2.5})
    assert fit.labels["logg"].value == 2.5
    assert fit.uncertainties["logg"].value == 0
    assert fit.uncertainties["teff"].value > 0
    assert fit.meta["fixed"] == ("logg",)


def test_fixing_a_label_at_its_optimum_moves_nothing(model, star, result):
    fit = model.fit(star, fixed={"teff": result.labels["teff"]})
    assert_same_labels(result, fit, 0.1)
    assert fit.uncertainties["mg_h"] <= result.uncertainties["mg_h"]


def test_bounds_closer_than_the_error_are_flagged_where_they_hold_a_label_back(model, star, result):
    error, best = result.uncertainties["teff"], result.labels["teff"]
    near, far = ((best - n * error, best - (n - 0.2) * error) for n in (0.7, 6))
    assert FitFlag.AT_BOUND not in model.fit(star, bounds={"teff": near}, method="lm").flags
    assert FitFlag.AT_BOUND in model.fit(star, bounds={"teff": far}, method="lm").flags


def test_bounds_hold_and_are_flagged(model, star):
    fit = model.fit(star, bounds={"teff": (4100 * u.K, 4600 * u.K)})
    assert 4590 < fit.labels["teff"].value <= 4600
    assert FitFlag.AT_BOUND in fit.flags
    assert fit.meta["at_bound"] == ["teff"]


def test_bounds_far_away_do_nothing(model, star, result):
    assert_same_labels(result, model.fit(star, bounds={"teff": (4100 * u.K, 5400 * u.K)}), 0.05)


@pytest.mark.parametrize("teff", [4050, 4500, 5450])
@pytest.mark.parametrize(("method", "apart"), [("lm", 0.25), ("lbfgs", 0.05)])
def test_start_does_not_matter(model, star, teff, method, apart):
    elsewhere = model.fit(star, start={"teff": teff * u.K, "mg_h": 0.4}, method=method)
    assert_same_labels(model.fit(star, method=method), elsewhere, apart)


def test_a_result_is_a_start(model, star, result):
    again = model.fit(star, start=result)
    assert_same_labels(result, again, 0.05)


def test_narrow_prior_wins(model, star):
    prior = GaussianPrior([4500, 2, 0], np.diag([1, 1e-6, 1e-6]))
    fit = model.fit(star, prior=prior)
    assert fit.labels["teff"].value == pytest.approx(4500, abs=3)
    assert fit.meta["prior"] == "Gaussian, user's own"


def test_wide_prior_is_none(model, star):
    prior = GaussianPrior([4500, 2, 0], np.diag([1e10, 1e4, 1e4]))
    assert_same_labels(model.fit(star, prior=None), model.fit(star, prior=prior), 0.01)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"space": "obs"}, ValueError, "space must be one of 'observed', 'synthetic', 'emulator', but is 'obs'"),
        ({"method": "newton"}, ValueError, "method must be one of 'lm', 'lbfgs', but is 'newton'"),
        ({"start": {"tef": 4500 * u.K}}, LabelError, "did you mean 'teff'"),
        ({"start": {"teff": 4500}}, LabelError, "must be a Quantity in K"),
        ({"fixed": {"teff": 9000 * u.K}}, LabelError, "'teff' = 9000 K is outside the training range"),
        ({"fixed": {"alpha_m": 0.1}}, LabelError, r"'alpha_m'; it is a combination of \['mg_h'\]"),
        ({"fixed": STAR}, LabelError, "all labels are fixed"),
        ({"bounds": {"teff": (6000 * u.K, 7000 * u.K)}}, LabelError, "bounds of 'teff' must be .* but are 6000, 7000"),
        ({"bounds": {"teff": (4600 * u.K, 4500 * u.K)}}, LabelError, "bounds of 'teff'"),
        ({"bounds": {"tef": (4600 * u.K, 4500 * u.K)}}, LabelError, "did you mean 'teff'"),
    ],
)
def test_bad_options_are_named(model, star, options, error, message):
    with pytest.raises(error, match=message):
        model.fit(star, **options)


def test_fit_that_does_not_converge_warns(model, star, monkeypatch):
    monkeypatch.setattr("cyclestarnet.fitting.lbfgs.ROUND", 1)
    monkeypatch.setitem(SOLVERS, "lbfgs", partial(lbfgs, max_rounds=1))
    with pytest.warns(FitWarning, match="the fit did not converge"):
        fit = model.fit(star, method="lbfgs")
    assert not fit.success
    assert FitFlag.NOT_CONVERGED in fit.flags


# -- fits: what must not matter -------------------------------------------------------------------------------
def test_input_is_left_alone(model, star):
    given = spectrum(model, star.flux.value, mask=np.arange(N) % 50 == 0)
    before = deepcopy(given)
    model.fit(given)
    np.testing.assert_array_equal(given.flux, before.flux)
    np.testing.assert_array_equal(given.mask, before.mask)
    np.testing.assert_array_equal(given.uncertainty.array, before.uncertainty.array)
    np.testing.assert_array_equal(given.spectral_axis, before.spectral_axis)
    assert given.meta == before.meta


@pytest.mark.parametrize("space", ["observed", "synthetic", "emulator"])
@pytest.mark.parametrize("value", [0.0, 1e6, np.nan])
def test_values_of_masked_pixels_do_not_matter(model, star, space, value):
    mask = (np.arange(N) // 9) % 7 == 0
    fits = [
        model.fit(spectrum(model, np.where(mask, v, star.flux.value), mask=mask), space=space) for v in (1.0, value)
    ]
    np.testing.assert_array_equal(fits[0].values, fits[1].values)
    np.testing.assert_array_equal(fits[0].covariance, fits[1].covariance)
    assert fits[0].chi2 == fits[1].chi2


@pytest.mark.parametrize("unit", [u.nm, u.um, u.THz])
def test_unit_of_the_axis_does_not_matter(model, star, result, unit):
    other = Spectrum(
        flux=star.flux,
        spectral_axis=model.grid.wavelength.to(unit, u.spectral()),
        uncertainty=star.uncertainty,
        mask=star.mask,
    )
    np.testing.assert_array_equal(model.fit(other).values, result.values)


def physical(model, flux, continuum, sigma=SIGMA):
    unit = u.Unit("1e-17 erg / (s cm2 Angstrom)")
    return Spectrum(
        flux=flux * continuum * unit,
        spectral_axis=model.grid.wavelength,
        uncertainty=StdDevUncertainty(sigma * continuum * np.ones(N)),
    )


@pytest.mark.parametrize(
    ("continuum", "fraction"),
    [(2750.0, 0.1), (400 * (1 + 0.3 * np.linspace(-1, 1, N) + 0.1 * np.linspace(-1, 1, N) ** 2), 0.5)],
    ids=["flat", "curved"],
)
def test_physical_flux_is_normalised_by_the_recipe(model, star, continuum, fraction):
    """The same as dividing by the recipe's continuum first, but for the weights of pixels under a curved one."""
    recipe = model.recipe(star.flux.value, np.full(N, SIGMA**-2))
    by_hand = to_spectrum(star.flux.value / recipe, model.grid, ivar=(SIGMA / recipe) ** -2)
    expected, fit = model.fit(by_hand), model.fit(physical(model, star.flux.value, continuum))
    assert_same_labels(expected, fit, fraction)
    assert fit.meta["continuum"] == "recipe, degree 2"
    assert expected.meta["continuum"] == "as given"


# -- flags --------------------------------------------------------------------------------------------------
def flagged(model, flux, **options):
    return model.fit(spectrum(model, flux, **options)).flags


def test_low_signal_to_noise_is_flagged(model, star, rng):
    assert FitFlag.LOW_SNR in flagged(model, star.flux.value, sigma=0.07, noise=rng)


def test_few_pixels_are_flagged(model, star):
    assert FitFlag.FEW_PIXELS in flagged(model, star.flux.value, mask=np.arange(N) % 5 > 1)


def test_moving_star_is_flagged(model, star):
    assert FitFlag.VELOCITY in flagged(model, np.roll(star.flux.value, 5))


def test_extra_lines_are_flagged_as_a_poor_fit(model, star):
    assert FitFlag.POOR_FIT in flagged(model, star.flux.value - 0.2 * (np.arange(N) % 40 == 7))


def test_strange_spectrum_is_flagged_as_unfamiliar(model, star):
    assert FitFlag.UNFAMILIAR in flagged(model, 1 + 0.5 * np.sin(np.arange(N) / 3))


def test_extrapolation_is_flagged(model, line_family):
    corner = np.array([5450, 0.6, 0.45])
    fit = model.fit(spectrum(model, EmulatorPredictor(model.emulator).flux(corner)), space="emulator", prior=None)
    assert FitFlag.OUTSIDE_TRAINING in fit.flags


# -- many stars ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def stars(model, line_family):
    """A good star, a masked one, another good one, no spectrum at all, and a file that is not there."""
    rng = np.random.default_rng(33)
    good = [spectrum(model, observed(model, quantities(model, v)), noise=rng) for v in line_family.draw(2, rng)]
    bad = spectrum(model, np.ones(N), mask=np.ones(N, dtype=bool))
    return [good[0], bad, good[1], "not a spectrum", 42]


def test_bad_stars_are_flagged_and_do_not_stop_the_rest(model, stars):
    table = model.fit_many(stars, progress=False)
    assert table["flag_names"].tolist() == ["", "FAILED", "", "FAILED", "FAILED"]
    assert table["success"].tolist() == [True, False, True, False, False]
    assert np.isnan(table["teff"].value).tolist() == [False, True, False, True, True]
    assert "all 415 pixels are masked" in table["message"][1]
    assert table["object"][3] == "not a spectrum"


def test_many_fits_equal_single_fits(model, stars):
    table = model.fit_many(stars, progress=False, fixed={"logg": 2.0})
    for k in (0, 2):
        single = model.fit(stars[k], method="lm", fixed={"logg": 2.0}).to_table()
        for name in single.colnames:
            assert table[name][k] == single[name][0], name


def test_no_star_gives_an_empty_table(model, result):
    table = model.fit_many([], progress=False)
    assert len(table) == 0
    assert table.colnames == [*result.to_table().colnames, "seconds"]


def test_one_star_is_a_list_of_one(model, star, result):
    table = model.fit_many(star, progress=False)
    assert len(table) == 1
    assert table["teff"][0] == result.labels["teff"]


def test_rows_of_a_stack_are_stars(model, star, result):
    flux = np.stack([star.flux.value, np.roll(star.flux.value, 5)])
    table = model.fit_many(to_spectrum(flux, model.grid, ivar=np.full((2, N), SIGMA**-2)), progress=False)
    assert table["teff"][0] == result.labels["teff"]
    assert "VELOCITY" in table["flag_names"][1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fixed": {"tef": 1}}, LabelError, "did you mean 'teff'"),
        ({"spce": "observed"}, TypeError, "spce"),
        ({"space": "obs"}, ValueError, "space must be one of"),
    ],
)
def test_bad_options_stop_before_the_first_star(model, stars, options, error, message):
    with pytest.raises(error, match=message):
        model.fit_many(stars[1:2], progress=False, **options)


# -- tables and texts --------------------------------------------------------------------------------------------
def test_table_survives_ecsv(result, tmp_path):
    table = result.to_table()
    table.write(tmp_path / "t.ecsv")
    again = QTable.read(tmp_path / "t.ecsv")
    assert again.colnames == table.colnames
    for name in table.colnames:
        assert again[name].unit == table[name].unit
        if table[name].dtype.kind != "U":  # ECSV reads an empty text as a masked one
            assert again[name][0] == table[name][0]
    assert again["message"][0] == table["message"][0]


def test_table_of_many_stars_survives_ecsv(model, stars, tmp_path):
    table = model.fit_many(stars[:2], progress=False, space="emulator")
    table.write(tmp_path / "t.ecsv")
    again = QTable.read(tmp_path / "t.ecsv")
    assert again["logg"].unit == u.dex(u.cm / u.s**2)
    assert again["teff_err"].unit == u.K
    assert np.isnan(again["teff"][1])


def test_a_row_of_a_table_is_a_start_and_a_label(model, star, result):
    row = result.to_table()[0]
    assert_same_labels(result, model.fit(star, start=row), 0.05)
    expected = model.predict(quantities(model, result.values)).flux.value
    np.testing.assert_array_equal(model.predict(row).flux.value, expected)


def test_result_holds_data_model_and_residual(model, star, result):
    np.testing.assert_array_equal(result.spectrum.flux.value, star.flux.value)
    again = model.predict(quantities(model, result.values), like=star).flux.value
    np.testing.assert_allclose(result.model_spectrum.flux.value, again, atol=1e-6)
    np.testing.assert_allclose(result.residual.value, star.flux.value - result.model_spectrum.flux.value, atol=1e-12)


@pytest.mark.parametrize("method", ["__repr__", "_repr_html_"])
def test_texts_name_labels_and_flags(model, star, method):
    text = getattr(model.fit(star, bounds={"teff": (4100 * u.K, 4600 * u.K)}), method)()
    for word in ("FitResult", "teff", "logg", "mg_h", "alpha_m", "AT_BOUND", "tiny", "reduced chi2", "training"):
        assert word in text


@pytest.mark.parametrize("method", ["__repr__", "_repr_html_"])
def test_texts_of_the_model(model, method):
    assert "tiny" in getattr(model, method)()


def test_html_of_the_model_names_labels_and_origin(model):
    text = model._repr_html_()
    assert all(word in text for word in ("teff", "mg_h", "tests/conftest.py"))


# -- samples -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def posterior(model, star, result):
    pytest.importorskip("emcee")
    return model.sample(star, start=result, seed=1, progress=False)


def test_a_summary_has_the_autocorrelation_time_of_each_label(posterior):
    """In steps, of its own draws: what they are worth together is the number of effective samples."""
    for row in posterior.summary():
        draws = posterior.chain(row["label"]).value.T[..., None]
        assert row["tau"] == max(autocorrelation_time(draws)[0], 1) * posterior.thin
        assert row["n_effective"] == pytest.approx(draws.size * posterior.thin / row["tau"])


def test_samples_agree_with_the_fit(posterior, result):
    """To a quarter of an error: there are some 500 independent samples."""
    assert posterior.converged
    for name in result.label_set:
        error = result.uncertainties[name].value
        assert abs((posterior.labels[name] - result.labels[name]).value) < 0.25 * error
        assert posterior.uncertainties[name].value == pytest.approx(error, rel=0.25)


def test_samples_have_units_and_combinations(posterior):
    assert posterior.samples.colnames == ["teff", "logg", "mg_h", "alpha_m", "log_posterior"]
    assert posterior.samples["teff"].unit == u.K
    np.testing.assert_array_equal(posterior.samples["alpha_m"], posterior.samples["mg_h"])


def test_same_seed_same_samples(model, star, result):
    pytest.importorskip("emcee")
    options = {"start": result, "max_steps": 10, "progress": False, "space": "emulator", "fixed": {"logg": 2.0}}
    chains = []
    for seed in (3, 3, 4):
        with pytest.warns(FitWarning, match="too short"):
            chains.append(model.sample(star, seed=seed, **options).samples["teff"].value)
    np.testing.assert_array_equal(chains[0], chains[1])
    assert not np.array_equal(chains[0], chains[2])


def test_sampling_says_before_it_starts_how_long_it_will_take(model, star, result, caplog, capsys):
    pytest.importorskip("emcee")
    with caplog.at_level("INFO", logger="cyclestarnet"), pytest.warns(FitWarning, match="too short"):
        model.sample(star, start=result, seed=1, max_steps=3)
    assert re.search(r"sampling: [\d.e-]+ s a step; about 3 steps, [\d.e-]+ min", caplog.text)
    assert re.search(r"3/3 .*tau .*about 0 s left", capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore:the chain of:cyclestarnet.FitWarning")
def test_chain_goes_on_only_with_its_own_seed_and_options(model, star, result, tmp_path):
    pytest.importorskip("emcee")
    options = {"start": result, "backend": tmp_path / "chain.h5", "progress": False}
    model.sample(star, seed=1, max_steps=5, **options)
    for other, name in (({"seed": 2}, "seed"), ({"seed": 1, "prior": None}, "prior"),
                        ({"seed": 1, "fixed": {"logg": 2.0}}, "free labels or bounds")):  # fmt: skip
        with pytest.raises(OtherRunError, match=f"chain.h5 holds a chain that differs in {name}"):
            model.sample(star, max_steps=9, **options | other)
    continued = model.sample(star, seed=1, max_steps=9, **options)
    whole = model.sample(star, start=result, seed=1, max_steps=9, progress=False)
    np.testing.assert_array_equal(continued.samples["log_posterior"], whole.samples["log_posterior"])


@pytest.mark.filterwarnings("ignore:the chain of:cyclestarnet.FitWarning")
def test_hidden_errors_of_samples_are_those_that_a_fit_adds(model, star):
    pytest.importorskip("emcee")
    without, added = (
        with_noise(model, label_error=e, label_error_trend=None) for e in (None, np.diag([400, 9e-4, 4e-4]))
    )
    fit, plain = (one.fit(star, method="lm") for one in (added, without))
    posterior = added.sample(star, start=fit, seed=1, max_steps=2, progress=False)
    assert set(posterior.hidden_errors) == {"teff", "logg", "mg_h", "alpha_m"}
    for name, hidden in posterior.hidden_errors.items():
        total, own = fit.uncertainties[name].value, plain.uncertainties[name].value
        assert hidden == pytest.approx(np.sqrt(total**2 - own**2), rel=0.01)
    alone = added.sample(star, start=fit, space="emulator", seed=1, max_steps=2, progress=False)
    assert set(alone.hidden_errors.values()) == {0.0}


def test_fixed_labels_are_not_sampled(model, star):
    pytest.importorskip("emcee")
    fit = model.fit(star, fixed={"logg": 2.0})
    with pytest.warns(FitWarning, match="too short"):
        samples = model.sample(star, start=fit, seed=1, max_steps=10, progress=False)
    assert samples.free == ("teff", "mg_h")
    assert "logg" not in samples.samples.colnames
    with pytest.raises(LabelError, match="Label 'logg' was not sampled; sampled: teff, mg_h"):
        samples._column("logg")


@pytest.mark.parametrize("changes", [{"scatter_inflation": {"observed": 3.0}}, {"label_error": np.eye(3)}])
def test_unfinished_work_of_a_model_of_other_errors_is_not_continued(model, changes):
    assert digest_of(with_noise(model, **changes)) != digest_of(model)
    assert digest_of(replace(model, provenance={"author": "another"})) == digest_of(model)


def test_unknown_option_of_sample_is_named(model, star):
    with pytest.raises(TypeError, match=r"unknown options \['spce'\]"):
        model.sample(star, spce="observed")


@pytest.mark.parametrize("method", ["__repr__", "_repr_html_"])
def test_texts_of_samples(posterior, method):
    text = getattr(posterior, method)()
    assert all(word in text for word in ("Posterior", "teff", "alpha_m", "(converged)", f"{posterior.n_steps} steps"))
