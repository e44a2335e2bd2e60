"""Options of fits, and what stars that are fitted side by side must not do to each other."""

from copy import deepcopy
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.optimize import least_squares
from scipy.stats import chi2
from specutils import SpectralRegion
from stars import SIGMA, STAR, VALUES, N, assert_same_labels, observed, quantities, spectrum, with_noise

from cyclestarnet import FitResult, FitWarning, GaussianPrior, GridError, LabelError, SpectrumError
from cyclestarnet.fitting.priors import GaussianConstraints
from cyclestarnet.fitting.solvers import levenberg_marquardt
from cyclestarnet.networks.predictor import EmulatorPredictor
from cyclestarnet.pipeline.diagnostics import ShiftSearch
from cyclestarnet.pipeline.fit import SOLVERS, fit_stars
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.training.shortcuts import learn_shortcuts

KM_S = u.km / u.s
C = 299792.458  # km/s
EDGES = np.isin(np.arange(N), np.r_[0:25, 175:225, 390:415])  # pixels that motion may bring from beyond a chip


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model with a model error of 0.0005: smaller than the noise, so that the errors of fits are known."""
    return with_noise(tiny_model, scatter={space: np.full(N, 5e-4) for space in ("observed", "emulator")})


@pytest.fixture(scope="module")
def quick(model):
    """The same with shortcuts."""
    parts = model.emulator, model.translator, model.prior, model.labels.lower, model.labels.upper
    return replace(model, shortcuts=learn_shortcuts(*parts, model.population.typical_split_latent))


@pytest.fixture(scope="module")
def star(model):
    """One star with noise, S/N 200."""
    return spectrum(model, observed(model, STAR), noise=np.random.default_rng(31))


def test_what_finds_velocities_is_made_once_for_a_model(model, star, monkeypatch):
    made = []

    def make(*args, **options):
        made.append(ShiftSearch(*args, **options))
        return made[-1]

    monkeypatch.setattr("cyclestarnet.pipeline.fit.ShiftSearch", make)
    fresh = replace(model)
    for _ in range(2):
        fresh.fit(star, method="lm")
    assert len(made) == 1


# -- side by side ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def company(model, line_family):
    """Stars of other line widths each; one is masked, one is NaN, one has lines that no label makes."""
    rng = np.random.default_rng(43)
    values = line_family.draw(6, rng)
    flux = line_family(values, width=np.linspace(1.9, 2.5, 6), depth=1.1) + rng.normal(0, SIGMA, (6, N))
    flux[3] -= 0.2 * (np.arange(N) % 40 == 7)
    stars = [spectrum(model, row) for row in flux]
    stars.insert(1, spectrum(model, np.ones(N), mask=np.ones(N, dtype=bool)))
    stars.insert(3, spectrum(model, np.full(N, np.nan)))
    return stars


SIDE_BY_SIDE = {
    "plain": ("model", {}),
    "quick": ("quick", {}),
    "fixed": ("quick", {"fixed": {"logg": 2.0}}),
    "tied": ("model", {"tied": [("logg", "mg_h")]}),
    "tied and quick": ("quick", {"tied": [("logg", "mg_h")]}),
    "motion": ("quick", {"motion": ("velocity", "broadening")}),
    "typical": ("model", {"split_latent": "typical", "prior": None}),
    "synthetic": ("model", {"space": "synthetic"}),
    "emulator": ("model", {"space": "emulator"}),
}


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
@pytest.mark.parametrize(("which", "options"), SIDE_BY_SIDE.values(), ids=SIDE_BY_SIDE)
def test_no_bit_of_a_fit_depends_on_its_company(request, company, which, options, method):
    """Not even with stars beside it that cannot be fitted."""
    model = request.getfixturevalue(which)
    setup = FitSetup.of(model, FitOptions(method=method, **options))
    together = fit_stars(model, company, setup)
    assert [isinstance(one, FitResult) for one in together] == [True, False, True, False, True, True, True, True]
    for k in (0, 5):  # the latter fits poorly
        (alone,) = fit_stars(model, [company[k]], setup)
        np.testing.assert_array_equal(together[k].values, alone.values)
        np.testing.assert_array_equal(together[k].covariance, alone.covariance)
        np.testing.assert_array_equal(together[k].model_spectrum.flux.value, alone.model_spectrum.flux.value)
        assert (together[k].chi2, together[k].message) == (alone.chi2, alone.message)


def test_stars_that_cannot_be_fitted_say_why(model, company):
    results = fit_stars(model, company, FitSetup.of(model, FitOptions(method="lm")))
    assert isinstance(results[1], SpectrumError)
    assert "masked" in str(results[1])


def test_both_methods_find_the_same_optimum(quick, company):
    for k in (0, 2, 4, 6, 7):
        assert_same_labels(*(quick.fit(company[k], method=method) for method in ("lbfgs", "lm")), 0.25)


# -- fixed and tied -------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["lm", "lbfgs"])
def test_tied_labels_equal_least_squares_of_the_same_parameters(model, line_family, method):
    """In the emulator's own space, where the predictor is simple."""
    predictor = EmulatorPredictor(deepcopy(model.emulator).double())
    given = spectrum(model, predictor.flux(VALUES), noise=np.random.default_rng(5))
    matrix, origin = np.array([[1000.0, 0], [0, 1], [0, 1]]), np.array([0, 2.5, 0.0])
    expected = matrix @ least_squares(
        lambda p: (predictor.flux(matrix @ p + origin) - given.flux.value) / np.hypot(SIGMA, 5e-4), [4.8, -0.25]
    ).x + origin  # fmt: skip
    start = {"logg": 2.5 * u.dex(u.cm / u.s**2), "mg_h": 0.0}
    fit = model.fit(given, space="emulator", prior=None, tied=[("logg", "mg_h")], start=start, method=method)
    errors = np.sqrt(np.diag(fit.covariance))
    np.testing.assert_allclose((fit.values - expected) / errors, 0, atol=0.2)
    assert fit.values[1] - fit.values[2] == pytest.approx(2.5, abs=1e-9)
    assert errors[1] == pytest.approx(errors[2])
    assert fit.correlation("logg", "mg_h") == pytest.approx(1)


def test_tied_labels_keep_their_differences_at_the_mean_of_the_prior(quick, star):
    fit = quick.fit(star, tied=[("logg", "mg_h")])
    assert fit.values[1] - fit.values[2] == pytest.approx(quick.prior.mean[1] - quick.prior.mean[2], abs=1e-9)


def test_a_group_of_one_is_a_free_label(quick, star):
    assert_same_labels(quick.fit(star), quick.fit(star, tied=[("mg_h",)]), 0.05)


def test_hidden_error_is_shared_by_tied_labels(model, star):
    """Their mean has it, and so has each of them."""
    careful = with_noise(model, label_error=np.diag([0.0, 0.01, 0.03]))
    options = {"tied": [("logg", "mg_h")], "start": STAR, "method": "lm"}
    added = careful.fit(star, **options).covariance - model.fit(star, **options).covariance
    np.testing.assert_allclose(added[1:, 1:], (0.01 + 0.03) / 4, rtol=1e-6)


# -- motion -----------------------------------------------------------------------------------------
def moved(model, flux, velocity, broadening):
    """Flux shifted and broadened by splines and a sum over the Gaussian, without a Fourier transform."""
    position, out = np.log(model.grid.wavelength.value), np.empty(N)
    offsets = np.linspace(-5, 5, 101)
    weights = np.exp(-0.5 * offsets**2) / np.exp(-0.5 * offsets**2).sum()
    for start, stop in model.grid.chips:
        step = np.diff(position[start:stop]).mean()
        padded = np.pad(flux[start:stop], 60, mode="edge")
        spline = CubicSpline(position[start] + step * (np.arange(len(padded)) - 60), padded)
        at_rest = position[start:stop] - np.log1p(velocity / C)
        out[start:stop] = sum(w * spline(at_rest - o * broadening / C) for o, w in zip(offsets, weights, strict=True))
    return out


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
@pytest.mark.parametrize("space", ["observed", "emulator"])
def test_velocity_and_broadening_are_recovered_within_their_errors(model, line_family, space, method):
    """χ² of labels, velocity and broadening of 6 stars within its 0.1 % tails."""
    rng, total = np.random.default_rng(7), 0.0
    for values in line_family.draw(6, rng):
        velocity, broadening = rng.uniform(20, 40), rng.uniform(6, 9)
        domain, options = {"observed": ("observed", {"split_latent": "typical"}), "emulator": ("synthetic", {})}[space]
        at_rest = model.predict(quantities(model, values), domain=domain).flux.value
        given = spectrum(model, moved(model, at_rest, velocity, broadening), noise=rng, mask=EDGES)
        fit = model.fit(given, space=space, motion=("velocity", "broadening"), method=method, **options)
        assert fit.success
        offset = fit.values - [*values, velocity, broadening]
        total += offset @ np.linalg.solve(fit.covariance, offset)
    assert chi2.ppf(0.001, 30) < total < chi2.ppf(0.999, 30)


def test_motion_has_units_and_no_flag(model):
    """+30 km/s; the star is not flagged as moving, because its velocity was fitted."""
    given = spectrum(model, moved(model, model.predict(STAR).flux.value, 30, 0.01), mask=EDGES)
    fit = model.fit(given, motion="velocity", split_latent="typical", method="lm")
    assert abs(fit.labels["velocity"] - 30 * KM_S) < 3 * fit.uncertainties["velocity"]
    assert fit.uncertainties["velocity"].unit.is_equivalent(KM_S)
    assert "VELOCITY" not in fit.flags.names
    assert_same_labels(model.fit(spectrum(model, model.predict(STAR).flux.value, mask=EDGES), split_latent="typical"),
                       replace(fit, label_set=model.labels, values=fit.values[:3], covariance=fit.covariance[:3, :3]),
                       0.5)  # fmt: skip


def test_motion_may_be_fixed(model):
    given = spectrum(model, moved(model, model.predict(STAR).flux.value, 30, 0.01), mask=EDGES)
    options = {"motion": "velocity", "split_latent": "typical", "method": "lm"}
    fixed = model.fit(given, fixed={"velocity": 30 * KM_S}, **options)
    assert fixed.labels["velocity"] == 30 * KM_S
    assert fixed.uncertainties["velocity"].value == 0
    only = model.fit(given, fixed=STAR, **options)
    assert abs(only.labels["velocity"] - 30 * KM_S) < 3 * only.uncertainties["velocity"]


def test_a_given_velocity_is_where_the_fit_starts(model, star, monkeypatch):
    starts = []

    def solver(objective, start):
        starts.append(start)
        return levenberg_marquardt(objective, start)

    monkeypatch.setitem(SOLVERS, "lm", solver)
    model.fit(star, motion="velocity", start=STAR | {"velocity": 17 * KM_S}, method="lm")
    np.testing.assert_allclose(starts[0], [[*VALUES, 17]])


def test_a_result_with_motion_is_a_start_without(model, star):
    with_motion = model.fit(star, motion="velocity", method="lm")
    assert_same_labels(model.fit(star, start=with_motion), model.fit(star), 0.2)


def test_air_wavelengths_are_found_unless_a_velocity_is_fitted(model):
    given = spectrum(model, moved(model, model.predict(STAR).flux.value, -82, 0.01), mask=EDGES)
    with pytest.raises(GridError, match="as they do when air wavelengths are taken for vacuum"):
        model.fit(given)
    fit = model.fit(given, motion="velocity", split_latent="typical", method="lm")
    assert fit.labels["velocity"].value == pytest.approx(-82, abs=1)


# -- pixels ------------------------------------------------------------------------------------------
REGIONS = [(15150 * u.AA, 15180 * u.AA), (1.5205 * u.um, 1.5215 * u.um)]


@pytest.fixture(scope="module")
def ignored(model):
    wavelength = model.grid.wavelength.value
    mask = ((wavelength >= 15150) & (wavelength <= 15180)) | ((wavelength >= 15205) & (wavelength <= 15215))
    assert 50 < mask.sum() < 250
    return mask


def assert_identical(one, other):
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.covariance, other.covariance)
    assert (one.chi2, one.dof, one.meta["snr"]) == (other.chi2, other.dof, other.meta["snr"])


@pytest.mark.parametrize("space", ["observed", "synthetic", "emulator"])
def test_ignored_pixels_are_as_masked_ones(model, star, ignored, space):
    masked = model.fit(spectrum(model, star.flux.value, mask=ignored), space=space)
    assert_identical(model.fit(star, ignore=ignored, space=space), masked)
    assert_identical(model.fit(star, ignore=REGIONS, space=space), masked)


@pytest.mark.parametrize(
    "ignore",
    [
        (15150, 15180),
        [15150, 15180 * u.AA],
        (1.515, 1.518) * u.um,
        SpectralRegion(15150 * u.AA, 15180 * u.AA),
        SpectralRegion(15150 * u.AA, 15160 * u.AA) + SpectralRegion(15159 * u.AA, 15180 * u.AA),
        [SpectralRegion(15150 * u.AA, 15170 * u.AA), (15169, 15180)],
        SpectralRegion((15180 * u.AA).to(u.Hz, u.spectral()), (15150 * u.AA).to(u.Hz, u.spectral())),
    ],
    ids=str,
)
def test_ranges_to_ignore_are_given_in_many_ways(model, ignore):
    wavelength = model.grid.wavelength.value
    expected = (wavelength > 15150) & (wavelength < 15180)  # no pixel is at an edge
    np.testing.assert_array_equal(FitSetup.of(model, FitOptions(ignore=ignore)).ignore, expected)


@pytest.mark.parametrize("value", [0.0, 50.0])
def test_values_of_ignored_pixels_do_not_matter(model, star, ignored, value):
    spoilt = spectrum(model, np.where(ignored, value, star.flux.value))
    assert_identical(model.fit(spoilt, ignore=ignored), model.fit(star, ignore=ignored))


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
def test_inflation_is_a_factor_on_errors(model, method):
    """Of data whose χ² is below the degrees of freedom, without a prior and a model's error."""
    sure = with_noise(model, scatter={space: np.full(N, 1e-9) for space in ("observed", "emulator")})
    flux = EmulatorPredictor(model.emulator).flux(VALUES) + np.random.default_rng(2).normal(0, 0.8 * SIGMA, N)
    options = {"space": "emulator", "prior": None, "method": method, "start": STAR}
    plain, inflated = (sure.fit(spectrum(model, flux), inflation=factor, **options) for factor in (1.0, 2.0))
    np.testing.assert_allclose(inflated.covariance, 4 * plain.covariance, rtol=0.02)
    assert inflated.chi2 == pytest.approx(plain.chi2 / 4, rel=1e-3)
    assert_same_labels(plain, inflated, 0.2)


# -- prior and split latent ----------------------------------------------------------------------------------
BELIEF = {"teff": (4700 * u.K, 20 * u.K), "mg_h": (0.1, 0.02)}


def gaussian(prior, belief):
    """Product of a Gaussian and independent ones on the first and last label, in closed form."""
    precision, weight = np.linalg.inv(prior.covariance), np.diag([20.0**-2, 0, 0.02**-2])
    covariance = np.linalg.inv(precision + weight)
    return GaussianPrior(covariance @ (precision @ prior.mean + weight @ [4700, 0, 0.1]), covariance)


def test_a_list_of_priors_is_their_product(model, star):
    listed = model.fit(star, prior=["training", BELIEF, None])
    assert_same_labels(listed, model.fit(star, prior=gaussian(model.prior, BELIEF)), 0.05)
    assert listed.meta["prior"] == "training x Gaussian on teff, mg_h x none"


def test_a_mapping_is_a_prior_on_some_labels(model, star):
    """The same as a Gaussian that is wide in the other."""
    wide = GaussianPrior([4700, 2, 0.1], np.diag([20.0**2, 1e6, 0.02**2]))
    mapped = model.fit(star, prior=BELIEF)
    assert_same_labels(mapped, model.fit(star, prior=wide), 0.05)
    assert mapped.meta["prior"] == "Gaussian on teff, mg_h"


def test_a_prior_on_a_combination(model, star):
    """``alpha_m`` is ``mg_h`` here."""
    on_combination, on_label = (model.fit(star, prior={name: (0.1, 0.01)}) for name in ("alpha_m", "mg_h"))
    assert_same_labels(on_combination, on_label, 0.05)


def test_no_priors_are_no_prior(model, star):
    assert_same_labels(model.fit(star, prior=[None]), model.fit(star, prior=None))


def test_a_prior_of_the_labels_leaves_motion_alone(model, star):
    constraints = GaussianConstraints.of({"teff": BELIEF["teff"]}, model.labels)
    fit = model.fit(star, prior=constraints, motion="velocity", method="lm")
    assert fit.labels["teff"] < model.fit(star, prior=None, motion="velocity", method="lm").labels["teff"] - 5 * u.K
    assert abs(fit.labels["velocity"]) < 3 * fit.uncertainties["velocity"]


def test_typical_split_latent_is_that_of_predictions(model, star):
    fit = model.fit(star, split_latent="typical")
    expected = model.predict(quantities(model, fit.values)).flux.value
    np.testing.assert_allclose(fit.model_spectrum.flux.value, expected, atol=1e-6)
    assert np.abs(model.fit(star).model_spectrum.flux.value - expected).max() > 1e-4


# -- what cannot be ----------------------------------------------------------------------------------------
BAD_OPTIONS = {
    "motion": ({"motion": "rotation"}, ValueError, "motion must be one of 'velocity', 'broadening', but is 'rotation'"),
    "moving translation": ({"motion": "velocity", "space": "synthetic"}, ValueError, "motion cannot be fitted with"),
    "split_latent": ({"split_latent": "mine"}, ValueError, "split_latent must be one of .*, but is 'mine'"),
    "inflation": ({"inflation": 0}, ValueError, "inflation must be a positive factor .* but is 0"),
    "inflations": ({"inflation": [1, 2]}, ValueError, "inflation must be a positive factor"),
    "inflation as text": ({"inflation": "2"}, ValueError, "inflation must be a positive factor .* but is '2'"),
    "infinite inflation": ({"inflation": np.inf}, ValueError, "inflation must be a positive factor"),
    "tied label": ({"tied": [("loggg", "mg_h")]}, LabelError, "did you mean 'logg'"),
    "tied, no group": ({"tied": ("logg", "mg_h")}, TypeError, "tied must be a sequence of groups"),
    "tied twice": ({"tied": [("logg", "mg_h"), ("mg_h", "teff")]}, LabelError, "a label is in two groups"),
    "tied and fixed": ({"tied": [("logg", "mg_h")], "fixed": {"logg": 2.0}}, LabelError, r"\['logg'\] are fixed"),
    "tied apart": ({"tied": [("logg", "mg_h")], "bounds": {"logg": (3.3, 3.4), "mg_h": (-0.9, -0.8)}}, LabelError,
                   "cannot keep their differences within the bounds"),
    "tied too far": ({"tied": [("logg", "mg_h")], "start": {"mg_h": -5}}, LabelError, "'mg_h' = -5 dex is outside"),
    "prior": ({"prior": "flat"}, TypeError, "prior must be \"training\", None, a mapping .* but is 'flat'"),
    "part of a prior": ({"prior": ["training", 3]}, TypeError, "prior must be .* but is 3"),
    "no prior": ({"prior": []}, TypeError, r"prior must be .* but is \[\]"),
    "prior of others": ({"prior": GaussianPrior([0], [[1]])}, ValueError, "a prior of 1 labels, but the model has 3"),
    "prior label": ({"prior": {"tef": (4500 * u.K, 1 * u.K)}}, LabelError, "did you mean 'teff'"),
    "prior unit": ({"prior": {"teff": (4500, 50)}}, LabelError, "teff"),
    "mask": ({"ignore": np.zeros(3, dtype=bool)}, GridError, r"each of the model's 415 pixels, but has shape \(3,\)"),
    "region": ({"ignore": [(15150, 15180, 15190)]}, GridError, r"two wavelengths .* but is \(15150, 15180, 15190\)"),
    "no pixel": ({"ignore": (1.515, 1.518)}, GridError, "ignore has no effect: 1.515 to 1.518 Angstrom holds no"),
    "reversed region": ({"ignore": [(15180 * u.AA, 15150 * u.AA)]}, GridError, "must begin before it ends"),
    "all pixels": ({"ignore": np.ones(N, dtype=bool)}, SpectrumError, "all there are masked, ignored or not finite"),
    "names of fixed": ({"fixed": ["logg"]}, TypeError, r"fixed must be a mapping .* but is \['logg'\]"),
    "fixed values": ({"fixed": {"logg": [1, 2]}}, LabelError, r"fixed must have one value of 'logg', but has .*\(2,\)"),
    "start": ({"start": 4500 * u.K}, LabelError, "labels must be a mapping .* but are of class Quantity"),
    "one bound": ({"bounds": {"teff": 4500 * u.K}}, LabelError, "bounds of 'teff' must be a pair"),
    "three bounds": ({"bounds": {"logg": (1, 2, 3)}}, LabelError, "bounds of 'logg' must be a pair"),
    "unit of velocity": ({"motion": "velocity", "start": {"velocity": 3 * u.K}}, LabelError, "velocity"),
    "fast": ({"motion": "velocity", "fixed": {"velocity": 1200 * KM_S}}, LabelError, "'velocity' = 1200"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_bad_options_are_named(model, star, options, error, message):
    with pytest.raises(error, match=message):
        model.fit(star, **options)


def test_none_ties_nothing_and_moves_nothing(model, star):
    np.testing.assert_array_equal(
        model.fit(star, tied=None, motion=None, method="lm").values, model.fit(star, method="lm").values
    )


# -- samples ---------------------------------------------------------------------------------------------------
def test_samples_of_tied_labels_and_motion(model, star):
    """Options are those of the fit that is the start."""
    pytest.importorskip("emcee")
    fit = model.fit(star, tied=[("logg", "mg_h")], motion="velocity", space="emulator", prior=None, method="lm")
    with pytest.warns(FitWarning, match="too short"):
        posterior = model.sample(star, start=fit, seed=1, max_steps=12, progress=False)
    samples = posterior.samples
    assert posterior.free == ("teff", "logg", "mg_h", "velocity")
    np.testing.assert_allclose(samples["logg"].value - samples["mg_h"].value, fit.values[1] - fit.values[2], atol=1e-9)
    assert samples["velocity"].unit.is_equivalent(KM_S)


def test_sampling_fits_motion_if_the_start_did_not(model, star):
    pytest.importorskip("emcee")
    start = model.fit(star, space="emulator", method="lm", fixed={"logg": 2.0})
    with pytest.warns(FitWarning, match="too short"):
        posterior = model.sample(star, start=start, motion="velocity", prior=None, seed=1, max_steps=4, progress=False)
    assert posterior.free == ("teff", "mg_h", "velocity")
    assert (posterior.meta["prior"], posterior.meta["fixed"]) == ("none", ("logg",))


def test_sampling_takes_labels_as_a_start(model, star):
    pytest.importorskip("emcee")
    options = {"space": "emulator", "method": "lm", "seed": 1, "max_steps": 4, "progress": False}
    with pytest.warns(FitWarning, match="too short"):
        posterior = model.sample(star, start={"teff": 4500 * u.K}, **options)
    assert "teff" in posterior.options.start


def test_translated_spectra_are_not_sampled(model, star):
    pytest.importorskip("emcee")
    with pytest.raises(ValueError, match="space must be one of 'observed', 'emulator', but is 'synthetic'"):
        model.sample(star, space="synthetic")
