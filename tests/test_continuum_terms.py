"""Errors of the continuum that a fit marginalises over: against explicit parameters, and on tilted spectra."""

import astropy.units as u
import numpy as np
import pytest
import torch
from specutils import SpectralRegion
from stars import SIGMA, STAR, assert_same_labels, spectrum
from toys import LinearPredictor, noisy_objective

from cyclestarnet import ContinuumTerms, FitResult, OtherRunError
from cyclestarnet.exceptions import GridError
from cyclestarnet.fitting.lbfgs import lbfgs
from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.parameters import Parameters
from cyclestarnet.fitting.predictor import LinearPredictor as Linear
from cyclestarnet.fitting.priors import GaussianConstraints
from cyclestarnet.fitting.solvers import levenberg_marquardt
from cyclestarnet.grid import WavelengthGrid

N, N_PIXELS = 40, 415


@pytest.fixture
def problem(rng):
    """Slopes of two labels, two templates, data and errors of three stars; a pixel does not count."""
    slopes, templates = rng.normal(size=(2, N)), 0.3 * rng.normal(size=(3, 2, N))
    ivar = rng.uniform(50, 200, (3, N))
    ivar[:, 7] = 0
    flux = 1 + np.array([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.0]]) @ slopes
    flux += np.einsum("ij,ijn->in", rng.normal(size=(3, 2)), templates) + rng.normal(size=flux.shape) * 0.1
    flux[:, 7] = 50
    return slopes, templates, flux, ivar


def marginal(problem):
    slopes, templates, flux, ivar = problem
    bounds = Parameters.of_labels([-3] * 2, [3] * 2, [0.0] * 2)
    return Objective(Linear(np.ones(N), slopes.T), flux, ivar, bounds, templates=templates)


def explicit(problem, star):
    """The same star with the coefficients of the templates as parameters, and their prior."""
    slopes, templates, flux, ivar = problem
    bounds = Parameters.of_labels([-3] * 2 + [-9] * 2, [3] * 2 + [9] * 2, [0.0] * 4)
    prior = GaussianConstraints(np.eye(4)[2:], np.zeros(2), np.ones(2))
    every = np.concatenate([slopes, templates[star]])
    return Objective(Linear(np.ones(N), every.T), flux[star], ivar[star], bounds, prior)


def test_optimum_and_errors_are_those_of_explicit_coefficients(problem):
    found = levenberg_marquardt(marginal(problem), np.zeros((3, 2)), tolerance=1e-9)
    for star in range(3):
        other = levenberg_marquardt(explicit(problem, star), np.zeros((1, 4)), tolerance=1e-9)
        np.testing.assert_allclose(found.inputs[star], other.inputs[0, :2], atol=1e-7)
        np.testing.assert_allclose(found.covariance[star], other.covariance[0, :2, :2], rtol=1e-6)


def test_chi2_is_that_of_the_whole_covariance(problem):
    _, templates, flux, ivar = problem
    objective, good = marginal(problem), ivar[0] > 0
    values = torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    predicted = objective.predict(values, torch.tensor([1]))
    difference = (flux[1] - predicted.numpy()[0])[good]
    covariance = np.diag(1 / ivar[1, good]) + templates[1][:, good].T @ templates[1][:, good]
    expected = difference @ np.linalg.solve(covariance, difference)
    assert float(objective.chi2(predicted, torch.tensor([1]))[0]) == pytest.approx(expected, rel=1e-9)


def test_gradients_are_those_of_the_loss(problem):
    objective, star = marginal(problem), torch.tensor([2])
    place = torch.tensor([[0.2, 0.1]], dtype=torch.float64)
    _, gradient = objective.loss_and_gradient(place, star)
    for k in range(2):
        step = 1e-5 * torch.eye(2, dtype=torch.float64)[k]
        low, high = (float(objective.loss_and_gradient(place + way * step, star)[0][0]) for way in (-1, 1))
        assert float(gradient[0, k]) == pytest.approx((high - low) / 2e-5, rel=1e-6)


def test_what_is_absorbed_is_what_explicit_coefficients_make(problem):
    objective = marginal(problem)
    values = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    predicted = objective.predict(values, torch.tensor([0]))
    held = explicit(problem, 0)
    free = Parameters.of_labels(*(getattr(held.parameters, s) for s in ("lower", "upper")), [0.3, -0.2, 0, 0],
                                free=[False, False, True, True])  # fmt: skip
    found = levenberg_marquardt(
        Objective(held.predictor, held.flux, held.ivar, free, held.prior), [[0.3, -0.2, 0, 0]], tolerance=1e-9
    )
    expected = found.inputs[0, 2:] @ problem[1][0]
    np.testing.assert_allclose(objective.absorbed(predicted, torch.tensor([0]))[0], expected, atol=1e-7)


def test_a_star_does_not_feel_its_company(problem):
    slopes, templates, flux, ivar = problem
    together = levenberg_marquardt(marginal(problem), np.zeros((3, 2)))
    alone = levenberg_marquardt(
        marginal((slopes, templates[1:2], flux[1:2], ivar[1:2])), np.zeros((1, 2))
    )  # fmt: skip
    np.testing.assert_array_equal(together.inputs[1], alone.inputs[0])


def test_nothing_is_absorbed_without_templates():
    objective = noisy_objective(LinearPredictor())
    assert not objective.absorbed(torch.ones_like(objective.flux), torch.tensor([0])).any()


# -- per window -------------------------------------------------------------------------------
WINDOWS = ((2, 17), (17, 25), (30, 40))


def of_windows(problem):
    slopes, templates, flux, ivar = problem
    bounds = Parameters.of_labels([-3] * 2, [3] * 2, [0.0] * 2)
    return Objective(Linear(np.ones(N), slopes.T), flux, ivar, bounds, templates=templates, windows=WINDOWS)


def whole_covariance(problem, star):
    """Covariance of the data of a star, and that part of it which is noise, at its good pixels."""
    _, templates, _, ivar = problem
    good, noise = ivar[star] > 0, np.diag(1 / np.where(ivar[star] > 0, ivar[star], 1.0))
    whole = noise.copy()
    for start, stop in WINDOWS:
        part = np.zeros((2, N))
        part[:, start:stop] = templates[star][:, start:stop]
        whole += part.T @ part
    return whole[np.ix_(good, good)], noise[np.ix_(good, good)], good


@pytest.mark.parametrize("solver", [levenberg_marquardt, lbfgs])
def test_windows_give_labels_and_errors_of_generalised_least_squares(problem, solver):
    slopes, _, flux, _ = problem
    found = solver(of_windows(problem), np.zeros((3, 2)), **({} if solver is lbfgs else {"tolerance": 1e-9}))
    for star in range(3):
        whole, _, good = whole_covariance(problem, star)
        design = slopes[:, good].T
        covariance = np.linalg.inv(design.T @ np.linalg.solve(whole, design))
        labels = covariance @ design.T @ np.linalg.solve(whole, flux[star, good] - 1)
        np.testing.assert_allclose(found.covariance[star], covariance, rtol=1e-8)
        error = np.sqrt(np.diag(covariance))
        np.testing.assert_allclose(found.inputs[star], labels, atol=0.05 * error.min() if solver is lbfgs else 1e-9)


def test_what_windows_absorb_is_what_their_covariance_expects(problem):
    flux = problem[2]
    objective, star = of_windows(problem), torch.tensor([1])
    predicted = objective.predict(torch.tensor([[0.1, 0.4]], dtype=torch.float64), star)
    whole, noise, good = whole_covariance(problem, 1)
    solved = np.linalg.solve(whole, (flux[1] - predicted.numpy()[0])[good])
    absorbed = objective.absorbed(predicted, star)[0].numpy()
    np.testing.assert_allclose(absorbed[good], (whole - noise) @ solved, atol=1e-10)
    assert not absorbed[[0, 1, 25, 29]].any()
    expected_chi2 = np.trace(np.linalg.solve(whole, noise))  # of what is left, on the average
    assert float(objective.n_absorbed[1]) == pytest.approx(good.sum() - expected_chi2, rel=1e-9)


def test_a_window_without_good_pixels_is_left_alone(problem):
    slopes, templates, flux, ivar = problem
    ivar[0, 2:17] = 0
    masked = of_windows((slopes, templates, flux, ivar))
    flux[0, 2:17] = -99.0
    found, same = (levenberg_marquardt(o, np.zeros((3, 2))) for o in (masked, of_windows(problem)))
    np.testing.assert_array_equal(found.inputs, same.inputs)
    absorbed = masked.absorbed(torch.from_numpy(found.flux[:1]), torch.tensor([0]))
    assert not absorbed[0, 2:17].any()
    assert absorbed[0, 17:25].all()
    assert float(masked.n_absorbed[0]) < 4 < float(masked.n_absorbed[1])


def test_windows_that_share_pixels_are_refused(problem):
    slopes, templates, flux, ivar = problem
    bounds = Parameters.of_labels([-3] * 2, [3] * 2, [0.0] * 2)
    with pytest.raises(ValueError, match="windows must not share pixels"):
        Objective(Linear(np.ones(N), slopes.T), flux, ivar, bounds, templates=templates, windows=[(0, 9), (8, 20)])


# -- what windows are -------------------------------------------------------------------------
GRID = WavelengthGrid(np.arange(5000.0, 5100.0) * u.AA, ((0, 60), (60, 100)))


@pytest.mark.parametrize(
    ("windows", "pixels"),
    [
        (None, ((0, 60), (60, 100))),
        (3, ((0, 20), (20, 40), (40, 60), (60, 73), (73, 86), (86, 100))),
        ((5010, 5020), ((10, 21),)),
        ([500.5, 501.95] * u.nm, ((5, 20),)),
        ([(5080, 5090), (5010, 5020), (5020, 5030.5)], ((10, 20), (20, 31), (80, 91))),
        ([SpectralRegion(5010 * u.AA, 5020 * u.AA), (5090, 5300)], ((10, 21), (90, 100))),
        ([(5050, 5059.5), (5059.7, 5070)], ((50, 60), (60, 71))),
    ],
)
def test_windows_hold_these_pixels(windows, pixels):
    assert ContinuumTerms(1, windows=windows).pixels(GRID) == pixels


def test_polynomials_of_a_window_are_those_of_legendre():
    rows, x = ContinuumTerms(2, windows=(5010, 5020)).polynomials(GRID), np.linspace(-1, 1, 11)
    np.testing.assert_allclose(rows[:, 10:21], 0.02 * np.array([np.ones(11), x, 1.5 * x**2 - 0.5]), atol=1e-15)
    assert not rows[:, :10].any()
    assert not rows[:, 21:].any()


@pytest.mark.parametrize(
    ("windows", "error", "message"),
    [
        ([(5010, 5020), (5019, 5030)], GridError, "must not overlap, but 5010 to 5020 and 5019 to 5030 Angstrom do"),
        ([(5010, 5020), (5010, 5020)], GridError, "must not overlap"),
        ((5020, 5010), GridError, "windows must begin before it ends"),
        (((5000, 5010) * u.K), GridError, "windows must be two wavelengths"),
        ([], GridError, "windows is empty"),
        ("blue", GridError, "windows must be two wavelengths .* but is 'blue'"),
        (0, ValueError, "windows must be a number of windows in each chip, 1 or more, but is 0"),
        (True, ValueError, "windows must be a number of windows in each chip"),
    ],
)
def test_windows_that_make_no_sense_are_refused(windows, error, message):
    with pytest.raises(error, match=message):
        ContinuumTerms(1, windows=windows)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ((6000, 6100), "window 6000 to 6100 Angstrom holds 0 pixels of .*, but a polynomial of degree 1 needs 3 or"),
        ([(5010, 5020), (5030, 5031)], "window 5030 to 5031 Angstrom holds 2 pixels"),
        ((5050, 5070), r"holds pixels of 2 chips, .*; give \(5050, 5059\), \(5060, 5070\) instead"),
        (30, "a window holds 2 pixels"),
    ],
)
def test_windows_that_the_pixels_cannot_tell_are_refused(windows, message):
    with pytest.raises(GridError, match=message):
        ContinuumTerms(1, windows=windows).pixels(GRID)


def test_windows_are_checked_against_a_model_before_any_star(tiny_model, tilted):
    with pytest.raises(GridError, match="holds 0 pixels"):
        tiny_model.fit_many([tilted[0]], continuum_degree=ContinuumTerms(1, windows=(6000, 6100)), progress=False)
    with pytest.raises(ValueError, match=r"continuum_degree must be .* or a ContinuumTerms, but is"):
        tiny_model.fit(tilted[0], continuum_degree=[(15150, 15200)])


# -- of spectra --------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tilted(tiny_model):
    """A star whose flux is off by a slope in one chip and a step in the other."""
    off = np.r_[1 + 0.03 * np.linspace(-1, 1, 200), np.full(215, 0.98)]
    flux = tiny_model.predict(STAR).flux.value
    return spectrum(tiny_model, flux * off, noise=np.random.default_rng(4)), off


def test_labels_are_right_where_the_continuum_is_not(tiny_model, tilted):
    star, off = tilted
    options = {"normalise": False, "split_latent": "typical", "prior": None}
    trusted, found = (tiny_model.fit(star, continuum_degree=degree, **options) for degree in (None, 1))
    for name, truth in STAR.items():
        assert abs((found.labels[name] - truth) / found.uncertainties[name]) < 3, name
        assert found.uncertainties[name] < trusted.uncertainties[name]  # which are as large as the misfit
    assert found.reduced_chi2 < 1.3 < trusted.reduced_chi2
    clean = tiny_model.predict(found.labels, like=None).flux.value
    np.testing.assert_allclose(found.model_spectrum.flux.value / clean, off, atol=0.01)


def test_both_methods_and_samples_agree(tiny_model, tilted):
    options = {"normalise": False, "continuum_degree": 1, "split_latent": "typical"}
    one, other = (tiny_model.fit(tilted[0], method=method, **options) for method in ("lm", "lbfgs"))
    assert_same_labels(one, other, 0.2)
    posterior = tiny_model.sample(tilted[0], start=one, length=10, seed=1, progress=False)
    assert abs((posterior.labels["teff"] - one.labels["teff"]) / one.uncertainties["teff"]) < 0.5


@pytest.mark.parametrize("degree", [-1, 1.5, 99, True, "high"])
def test_degrees_that_make_no_sense_are_refused(tiny_model, tilted, degree):
    with pytest.raises(ValueError, match="continuum_degree must be a whole number from 0 to 10"):
        tiny_model.fit(tilted[0], continuum_degree=degree)


FOUR = ContinuumTerms(1, windows=2)  # in each of two chips


@pytest.fixture(scope="module")
def bent(tiny_model):
    """A star whose flux is off by another slope in each of four windows, and those."""
    edges = [stop for _, stop in FOUR.pixels(tiny_model.grid)[:-1]]
    bends = [(-0.02, 0.03), (0.02, -0.04), (0.03, 0.0), (-0.02, -0.03)]
    pieces = zip(np.split(np.zeros(415), edges), bends, strict=True)
    off = np.concatenate([1 + level + slope * np.linspace(-1, 1, len(own)) for own, (level, slope) in pieces])
    return spectrum(tiny_model, tiny_model.predict(STAR).flux.value * off, noise=np.random.default_rng(8)), off


OPTIONS = {"normalise": False, "split_latent": "typical", "prior": None}


def test_labels_are_right_where_each_window_is_off_by_itself(tiny_model, bent):
    star, off = bent
    chips, windows = (tiny_model.fit(star, continuum_degree=terms, **OPTIONS) for terms in (1, FOUR))
    for name, truth in STAR.items():
        assert abs((windows.labels[name] - truth) / windows.uncertainties[name]) < 3, name
    assert windows.reduced_chi2 < 1.3 < chips.reduced_chi2
    clean = tiny_model.predict(windows.labels).flux.value
    np.testing.assert_allclose(windows.model_spectrum.flux.value / clean, off, atol=0.01)


def test_errors_grow_as_those_of_generalised_least_squares(tiny_model):
    clean, sigma = tiny_model.predict(STAR, domain="synthetic").flux.value, 0.01
    star = spectrum(tiny_model, clean, sigma=sigma)
    slopes = []
    for name, step in {"teff": 1.0, "logg": 0.01, "mg_h": 0.001}.items():
        moved = (STAR | {name: (STAR[name].value + way * step) * STAR[name].unit} for way in (-1, 1))
        low, high = (tiny_model.predict(labels, domain="synthetic").flux.value for labels in moved)
        slopes.append((high - low) / (2 * step))
    design, trusted = np.array(slopes).T, None
    options = {"space": "emulator", "normalise": False, "prior": None, "model_scatter": False}
    for terms in (None, ContinuumTerms(1, windows=(15140, 15170)), ContinuumTerms(1), FOUR):
        fit, whole = tiny_model.fit(star, continuum_degree=terms, **options), sigma**2 * np.eye(N_PIXELS)
        for start, stop in () if terms is None else terms.pixels(tiny_model.grid):
            part = np.zeros((2, N_PIXELS))
            part[:, start:stop] = 0.02 * clean[start:stop] * [np.ones(stop - start), np.linspace(-1, 1, stop - start)]
            whole += part.T @ part
        expected = np.sqrt(np.diag(np.linalg.inv(design.T @ np.linalg.solve(whole, design))))
        errors = [fit.uncertainties[name].value for name in STAR]
        np.testing.assert_allclose(errors, expected, rtol=0.02)  # derivatives of a fit are good to a percent
        trusted = expected if trusted is None else trusted
        assert terms is None or (expected > trusted).all()
        coefficients = 0 if terms is None else 2 * len(terms.pixels(tiny_model.grid))
        assert fit.dof == N_PIXELS - 3 - coefficients


def test_noise_is_not_taken_for_continuum(tiny_model):
    """Noise and the same of other sign: what is linear in it goes, and what is left would be a bias."""
    clean, draws = tiny_model.predict(STAR, domain="synthetic").flux.value, np.random.default_rng(9)
    pulls, options = [], {"space": "emulator", "normalise": False, "prior": None, "model_scatter": False}
    for _ in range(8):
        noise = 0.05 * draws.normal(size=415)
        for sign in (-1, 1):
            star = spectrum(tiny_model, clean + sign * noise, sigma=0.05)
            fits = [tiny_model.fit(star, continuum_degree=degree, **options) for degree in (None, 0)]
            pulls.append([[(fit.labels[k] - STAR[k]) / fit.uncertainties[k] for k in STAR] for fit in fits])
    trusted, marginal = np.mean(pulls, axis=0)
    assert np.abs(marginal - trusted).max() < 0.1  # 0.21 with terms that are made of the data


def test_a_plain_degree_is_a_window_in_each_chip(tiny_model, tilted):
    one, other = (tiny_model.fit(tilted[0], continuum_degree=c, **OPTIONS) for c in (1, ContinuumTerms(1)))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.covariance, other.covariance)


@pytest.mark.usefixtures("quick_workers")
def test_many_stars_with_windows_are_those_of_single_fits(tiny_model, bent, tilted):
    """Also beside a star that has no good pixel in a window, which is fitted without that term."""
    start, stop = FOUR.pixels(tiny_model.grid)[1]
    mask = (np.arange(415) >= start) & (np.arange(415) < stop)
    holed = spectrum(tiny_model, tiny_model.predict(STAR).flux.value, noise=np.random.default_rng(6), mask=mask)
    stars = [bent[0], holed, tilted[0]]
    tables = [tiny_model.fit_many(stars, continuum_degree=FOUR, workers=n, progress=False, **OPTIONS) for n in (1, 2)]
    assert all(np.array_equal(tables[0][name], tables[1][name]) for name in tables[0].colnames if name != "seconds")
    alone = tiny_model.fit(holed, continuum_degree=FOUR, **OPTIONS)
    assert alone.labels["teff"] == tables[0]["teff"][1]
    assert abs((alone.labels["teff"] - STAR["teff"]) / alone.uncertainties["teff"]) < 3
    clean = tiny_model.predict(alone.labels).flux.value
    np.testing.assert_allclose(alone.model_spectrum.flux.value[mask], clean[mask], atol=1e-6)


def test_a_run_with_other_windows_is_not_gone_on_with(tiny_model, bent, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    call = {"output": tmp_path / "t.ecsv", "progress": False, **OPTIONS}
    with monkeypatch.context() as patch:
        patch.setattr("cyclestarnet.pipeline.many.write_results", killed)
        with pytest.raises(KeyboardInterrupt):
            tiny_model.fit_many([bent[0]], continuum_degree=FOUR, **call)
    for other in (None, 1, ContinuumTerms(1, windows=3), ContinuumTerms(2, windows=2)):
        with pytest.raises(FileExistsError, match=r"continuum_degree: \{'ContinuumTerms': .*\} then, .* now"):
            tiny_model.fit_many([bent[0]], continuum_degree=other, **call)
    assert len(tiny_model.fit_many([bent[0]], continuum_degree=ContinuumTerms(1, windows=2), **call)) == 1


def test_samples_with_windows_agree_with_the_fit_and_know_their_chain(tiny_model, bent, tmp_path):
    terms = ContinuumTerms(1, windows=(15140, 15170))
    star, backend = bent[0], tmp_path / "chain.h5"
    options = {"seed": 1, "progress": False, "length": 10, "backend": backend}
    fit = tiny_model.fit(star, continuum_degree=FOUR, **OPTIONS)
    posterior = tiny_model.sample(star, start=fit, **options)
    assert posterior.options.continuum_degree == FOUR
    for name in STAR:
        assert abs((posterior.labels[name] - fit.labels[name]) / fit.uncertainties[name]) < 0.3, name
        ratio = (posterior.uncertainties[name] / fit.uncertainties[name]).to_value(u.one)
        assert ratio == pytest.approx(1, abs=0.3), name
    with pytest.raises(OtherRunError, match="differs in continuum_degree"):
        tiny_model.sample(star, start=fit, continuum_degree=terms, **options)


def test_a_file_of_a_result_keeps_the_windows(tiny_model, bent, tmp_path):
    terms = ContinuumTerms(1, windows=[(15150, 15170), (15195, 15200)])
    tiny_model.fit(bent[0], continuum_degree=terms, **OPTIONS).write(tmp_path / "star.fits")
    assert FitResult.read(tmp_path / "star.fits").options.continuum_degree == terms


def test_right_continuum_costs_little(tiny_model):
    star = spectrum(tiny_model, tiny_model.predict(STAR).flux.value, noise=np.random.default_rng(5))
    fit = tiny_model.fit(star, normalise=False, continuum_degree=1)
    assert abs(fit.labels["teff"] - STAR["teff"]) < 4 * fit.uncertainties["teff"]
    assert fit.uncertainties["teff"] < 200 * u.K
    assert SIGMA == pytest.approx(fit.spectrum.uncertainty.array[0])
