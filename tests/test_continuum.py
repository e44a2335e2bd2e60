"""The continuum recipe against numpy's own Chebyshev fits."""

import astropy.units as u
import numpy as np
import pytest
from numpy.polynomial import Chebyshev

from cyclestarnet.continuum import LARGEST_VARIANCE, ContinuumRecipe
from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import WavelengthGrid

N = 300
CHIPS = ((0, 160), (160, 300))


@pytest.fixture
def grid():
    return WavelengthGrid(10 ** (4.18 + 6e-6 * np.r_[0:160, 400:540]) * u.AA, CHIPS)


@pytest.fixture
def recipe(grid):
    return ContinuumRecipe(grid, np.arange(N) % 7 == 3)


@pytest.fixture
def star():
    rng = np.random.default_rng(1)
    flux = 5 + np.sin(np.arange(N) / 80) - rng.exponential(0.1, N)
    return flux, rng.uniform(10, 1000, N)


def test_continuum_equals_weighted_chebyshev_fit_of_numpy(grid, recipe, star):
    flux, ivar = star
    for start, stop in CHIPS:
        axis, chip = np.log(grid.wavelength.value[start:stop]), recipe.pixels[start:stop]
        fit = Chebyshev.fit(
            axis[chip], flux[start:stop][chip], 4, w=np.sqrt(ivar[start:stop][chip]), domain=axis[[0, -1]]
        )
        np.testing.assert_allclose(recipe(flux, ivar)[start:stop], fit(axis), rtol=1e-9)


@pytest.mark.parametrize("degree", [1, 3, 4])
def test_polynomial_is_reproduced(grid, star, degree):
    recipe = ContinuumRecipe(grid, np.arange(N) % 5 == 0, degree=degree)
    x = np.log(grid.wavelength.value)
    truth = Chebyshev(np.arange(1.0, degree + 2), domain=x[[0, -1]])(x) + 20
    np.testing.assert_allclose(recipe(truth, star[1]), truth, rtol=1e-9)


def test_pixels_off_the_list_do_not_matter(recipe, star):
    flux, ivar = star
    changed = np.where(recipe.pixels, flux, -1e6)
    np.testing.assert_array_equal(recipe(changed, ivar), recipe(flux, ivar))


@pytest.mark.parametrize("value", [1e9, np.nan, np.inf])
def test_values_of_ignored_pixels_do_not_matter(recipe, star, value):
    flux, ivar = star
    ivar[np.flatnonzero(recipe.pixels)[::4]] = 0
    changed = np.where(ivar > 0, flux, value)
    np.testing.assert_array_equal(recipe(changed, ivar), recipe(flux, ivar))


def test_many_spectra_are_as_one_by_one(recipe, star):
    flux, ivar = star
    many = flux * np.array([[1.0], [2.0], [1e-17]])
    np.testing.assert_allclose(recipe(many, ivar), [recipe(f, ivar) for f in many], rtol=1e-12)


@pytest.mark.parametrize("scale", [4e-153, 1e-30, 1e-17, 1e12])
def test_scale_of_the_flux_does_not_matter(recipe, star, scale):
    """Also where a sum of inverse variances would not be finite."""
    flux, ivar = star
    np.testing.assert_allclose(recipe(flux * scale, ivar / scale**2) / scale, recipe(flux, ivar), rtol=1e-10)


def test_chip_without_data_has_a_continuum_of_one(recipe, star):
    flux, ivar = star
    ivar[160:] = 0
    np.testing.assert_array_equal(recipe(flux, ivar)[160:], 1)


@pytest.mark.parametrize("weight", [0.0, 1e-20, 1e-6])
def test_continuum_never_runs_away(grid, rng, weight):
    """Half of the continuum pixels of a chip are bad; the continuum is right within its error, or not known."""
    recipe = ContinuumRecipe(grid, np.arange(300) % 4 == 0)
    ivar = np.full(300, 1e4)
    ivar[80:160:4] *= weight
    truth = 1 + 0.05 * np.linspace(-1, 1, 300) ** 2
    flux = rng.normal(truth, np.where(ivar > 0, 0.01, 0.0), (500, 300))
    continuum, degrees = recipe.fit(flux, np.broadcast_to(ivar, flux.shape))
    known = np.isfinite(continuum)
    assert (known == known[0]).all()
    assert known[:, :80].all()
    assert not known[:, 150:160].any()
    assert np.all(degrees == 4)
    np.testing.assert_array_less(continuum.std(0)[known[0]], 0.01 * np.sqrt(LARGEST_VARIANCE) * 1.1)


def test_degree_is_lowered_where_little_is_left(grid, rng):
    recipe = ContinuumRecipe(grid, np.arange(300) % 4 == 0)
    ivar = np.full(300, 1e4)
    ivar[12:160:4] = 0
    flux = rng.normal(1.0, 0.01, (500, 300))
    continuum, degrees = recipe.fit(flux, np.broadcast_to(ivar, flux.shape))
    np.testing.assert_array_equal(degrees, [[0, 4]] * 500)
    np.testing.assert_allclose(continuum[:, :160].std(0), 0.01 / np.sqrt(3), rtol=0.1)


def test_two_pixels_are_no_continuum(recipe, star):
    flux, ivar = star
    ivar[np.flatnonzero(recipe.pixels[:160])[2:]] = 0
    continuum, degrees = recipe.fit(flux, ivar)
    np.testing.assert_array_equal(degrees, [-1, 4])
    np.testing.assert_array_equal(np.isnan(continuum), np.arange(300) < 160)


def test_input_is_unchanged(recipe, star):
    copies = [a.copy() for a in star]
    recipe(*star)
    for array, copy in zip(star, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_pixels_are_those_that_hold_the_wavelengths(grid):
    """Also at the edges of chips, whose neighbours lie 240 pixels away."""
    pixels = np.array([0, 40, 80, 120, 159, 160, 200, 240, 270, 299])
    step = grid.wavelength[pixels] * 6e-6 * np.log(10)
    for shift in (-0.48, 0.0, 0.48):
        recipe = ContinuumRecipe.from_wavelengths(grid, (grid.wavelength[pixels] + shift * step).to(u.nm))
        np.testing.assert_array_equal(np.flatnonzero(recipe.pixels), pixels)


def test_wavelengths_outside_of_all_pixels_are_ignored(grid):
    inside = grid.wavelength.value[::20]
    edges = grid.wavelength.value[[0, 159, 160, 299]] + 0.52 * 0.209 * np.array([-1, 1, -1, 1])
    found, wanted = (ContinuumRecipe.from_wavelengths(grid, w).pixels for w in (np.r_[inside, edges], inside))
    np.testing.assert_array_equal(found, wanted)


def test_degree_of_the_recipe_can_be_chosen(grid):
    assert ContinuumRecipe.from_wavelengths(grid, grid.wavelength[::20], degree=2).degree == 2


def test_list_must_have_the_length_of_the_grid(grid):
    with pytest.raises(GridError, match=r"must have shape \(300,\), but has \(10,\)"):
        ContinuumRecipe(grid, np.ones(10))


def test_every_chip_needs_continuum_pixels(grid):
    with pytest.raises(GridError, match=r"Chip 1 has 0 continuum pixels; a polynomial of degree 4 needs 5"):
        ContinuumRecipe(grid, np.arange(N) < 100)
