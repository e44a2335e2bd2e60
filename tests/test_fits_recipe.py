"""What the studies of the fitting compute: statistics in closed form, and spectra that are moved and broadened."""

import astropy.units as u
import numpy as np
import pytest
from scipy.stats import norm
from scripts import load_script

from cyclestarnet import GaussianPrior, LabelSet
from cyclestarnet.grid import WavelengthGrid

SPEED_OF_LIGHT = 299792.458
CENTRE, WIDTH, DEPTH = 16060.0, 30.0, 0.3  # Å, km/s


@pytest.fixture(scope="module")
def recipe():
    return load_script("recipes/fits.py")


@pytest.fixture(scope="module")
def grid():
    return WavelengthGrid(16000 * np.exp(1.4e-5 * np.arange(600)) * u.AA)


def line(grid, *, velocity=0.0, broadening=0.0):
    """A Gaussian absorption line that moves and broadens in closed form."""
    width = np.hypot(WIDTH, broadening)
    place = SPEED_OF_LIGHT * np.log(grid.wavelength.value / CENTRE / (1 + velocity / SPEED_OF_LIGHT))
    return 1 - DEPTH * WIDTH / width * np.exp(-0.5 * (place / width) ** 2)


def star(recipe, grid, flux=None, sigma=0.01, bad=()):
    ivar = np.full(grid.n_pixels, sigma**-2.0)
    ivar[list(bad)] = 0
    flux = line(grid) if flux is None else flux
    return recipe.Star("a", flux.astype(np.float32), ivar.astype(np.float32), np.zeros(4), 100.0)


# -- statistics ------------------------------------------------------------------------------
@pytest.mark.parametrize(("error", "shift"), [(1.0, 0.0), (0.5, 0.0), (1.0, 2.0)])
def test_coverage_of_gaussian_offsets(recipe, error, shift):
    """Evenly spaced quantiles of N(shift, 1), and errors that are right, too small, or do not know the shift."""
    offset = norm.ppf((np.arange(20_000) + 0.5) / 20_000) + shift
    found = recipe.coverage_figures(offset, np.full(20_000, error))
    expected = [norm.cdf(limit * error - shift) - norm.cdf(-limit * error - shift) for limit in (1, 1.96)]
    np.testing.assert_allclose([found["cover_68"], found["cover_95"]], expected, atol=1e-3)
    np.testing.assert_allclose([found["bias"], found["scatter"]], [shift, 0.9945], atol=1e-3)
    np.testing.assert_allclose([found["width"], found["deviation"]], [0.9945 / error, 1 / error], rtol=2e-3)


def test_distance_of_correlated_labels(recipe):
    """Along their correlation two labels may move farther than across it."""
    covariance = np.array([[[1.0, 0.8], [0.8, 1.0]]] * 2)
    joint, largest = recipe.distances(np.array([[1.0, 1.0], [1.0, -1.0]]), covariance, np.eye(2))
    np.testing.assert_allclose(joint, [np.sqrt(2 / 1.8), np.sqrt(2 / 0.2)])
    np.testing.assert_allclose(largest, 1)


# -- labels --------------------------------------------------------------------------------------
NAMES = ["teff", "logg", "c_h", "n_h", "o_h", "mg_h", "si_h", "s_h", "ca_h", "ti_h", "fe_h", "vmicro", "vbroad"]


@pytest.fixture(scope="module")
def labels(recipe):
    lower = [3000, 0, *[-3] * 9, 0, 0]
    return LabelSet(NAMES, lower, [7000, 5, *[3] * 9, 5, 20], recipe.four_label_giants.COMBINATIONS)


def test_elements_follow_metals_and_alpha(recipe, labels):
    prior = GaussianPrior(np.zeros(13) + 1, np.eye(13))
    (tied,) = recipe.tied_labels(labels, prior, np.array([[4500.0, 2.0, -0.5, 0.2]]))
    np.testing.assert_allclose(tied[[0, 1, 10]], [4500, 2, -0.5])
    np.testing.assert_allclose(tied[4:10], -0.3)
    np.testing.assert_allclose(recipe.four_of(labels) @ tied, [4500, 2, -0.5, 0.2])


def test_unknown_labels_are_the_conditional_mean(recipe, labels):
    """Micro-turbulence that is 1.5 - 0.4 (log g - 2) and a scatter; broadening on its own."""
    to_prior = np.eye(13)
    to_prior[11, 1] = -0.4
    mean = np.array([4500.0, 2, *[0.0] * 9, 1.5, 6])
    prior = GaussianPrior(mean, to_prior @ np.diag([1e4, 1, *[0.1] * 9, 0.01, 1]) @ to_prior.T)
    (tied,) = recipe.tied_labels(labels, prior, np.array([[4300.0, 3.0, 0.0, 0.0]]))
    np.testing.assert_allclose(tied[11:], [1.1, 6], atol=1e-9)


# -- spectra ------------------------------------------------------------------------------------
@pytest.mark.parametrize("velocity", [-60, 1, 10])
def test_lines_move_by_the_velocity(recipe, grid, velocity):
    moved = recipe.moved(star(recipe, grid), grid, velocity)
    good = moved.ivar > 0
    assert good.sum() > 580
    np.testing.assert_allclose(moved.flux[good], line(grid, velocity=velocity)[good], atol=2e-5)


def test_pixels_from_beyond_the_edge_are_bad(recipe, grid):
    """60 km/s are 14.3 pixels."""
    moved = recipe.moved(star(recipe, grid), grid, 60)
    assert np.flatnonzero(moved.ivar > 0)[[0, -1]].tolist() == [15, 599]


def test_bad_pixels_move_along_and_do_not_matter(recipe, grid):
    flux = line(grid)
    flux[400] = -1e6
    moved = recipe.moved(star(recipe, grid, flux, bad=[400]), grid, 60)
    assert set(np.flatnonzero(moved.ivar == 0)) >= {*range(15), 414, 415}
    np.testing.assert_allclose(moved.flux[moved.ivar > 0], line(grid, velocity=60)[moved.ivar > 0], atol=2e-5)


def test_lines_broaden(recipe, grid, rng):
    broad = recipe.broadened(star(recipe, grid, sigma=1e-6), grid, 20, rng)
    good = broad.ivar > 0
    assert good.sum() > 580
    np.testing.assert_allclose(broad.flux[good], line(grid, broadening=20)[good], atol=2e-4)


@pytest.mark.parametrize("sigma", [0, 5, 20])
def test_broadened_noise_is_as_quoted(recipe, rng, sigma):
    grid = WavelengthGrid(16000 * np.exp(1.4e-5 * np.arange(20_000)) * u.AA)
    noise = rng.normal(1, 0.01, 20_000)
    assert recipe.broadened(star(recipe, grid, noise), grid, sigma, rng).flux.std() == pytest.approx(0.01, rel=0.03)


# -- files ------------------------------------------------------------------------------------
def bench_with(recipe, folder, text):
    bench = recipe.Bench(None, "this", folder, 1)
    bench.path("way").parent.mkdir()
    bench.path("way").write_text(text)
    return bench


def test_half_a_row_is_removed(recipe, tmp_path):
    bench = bench_with(recipe, tmp_path, '{"model": "this"}\n{"star": "a"}\n{"star": "b", "val')
    assert list(bench.rows("way")) == ["a"]
    assert bench.path("way").read_text() == '{"model": "this"}\n{"star": "a"}\n'


def test_rows_of_another_model_are_refused(recipe, tmp_path):
    with pytest.raises(ValueError, match="made with another model"):
        bench_with(recipe, tmp_path, '{"model": "other"}\n').rows("way")


def test_stars_without_a_fit_are_left_out(recipe, tmp_path, caplog):
    bench = bench_with(recipe, tmp_path, '{"model": "this"}\n{"star": "a", "error": "too few pixels"}\n{"star": "b"}\n')
    assert list(bench.rows("way")) == ["b"]
    assert "no fit of a" in caplog.text


# -- stars --------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"motion": "velocity"}, {"space": "emulator"}], ids=str)
def test_a_star_is_fitted_as_the_model_fits_it(recipe, tiny_model, options, monkeypatch):
    labels = tiny_model.labels.to_quantities(tiny_model.prior.mean)
    flux = tiny_model.predict(labels).flux.value
    one = recipe.Star("a", flux, np.full(len(flux), 1e4), np.zeros(4), 100.0)
    monkeypatch.setattr(recipe, "_worker", (tiny_model, options))
    row = recipe._fit_star(one)
    fit = tiny_model.fit(recipe.to_spectrum(flux, tiny_model.grid, ivar=one.ivar), method="lm", **options)
    np.testing.assert_array_equal(row["values"], fit.values[: len(tiny_model.labels)])
    assert set(row["motion"]) == ({"velocity"} if options.get("motion") else set())
    assert ("log_posterior" in row) is (options.get("space") != "emulator")
