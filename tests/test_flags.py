"""Flags that mean something: each alteration of a good star raises its own, and the good star none."""

from dataclasses import replace
from functools import cache

import astropy.units as u
import numpy as np
import pytest
from scripts import load_script

from cyclestarnet import FitFlag, GridError, read_apstar
from cyclestarnet.labels import difference_unit
from cyclestarnet.spectra import to_spectrum


@pytest.fixture(scope="module")
def recipe():
    return load_script("recipes/flags.py")


@pytest.fixture(scope="module")
def giant(pretrained):
    """Flux and inverse variance of a giant as the model predicts it, with its own scatter and noise of S/N 100."""
    flux = pretrained.predict(pretrained.labels.to_quantities(pretrained.prior.mean)).flux.value
    sigma = np.hypot(0.01, pretrained.noise.scatter["observed"])
    return np.random.default_rng(41).normal(flux, sigma), np.full(flux.shape, 0.01**-2)


@pytest.fixture(scope="module")
def fit_after(pretrained, giant, recipe):
    """Function that fits the giant after an alteration of the recipe."""
    known = recipe.alterations(pretrained)

    @cache
    def fit(name):
        flux, ivar = known[name](*giant)
        return pretrained.fit(to_spectrum(flux, pretrained.grid, ivar=ivar), method="lm")

    return fit


# -- good stars ------------------------------------------------------------------------------
def test_a_clean_star_has_no_flags(pretrained, giant):
    flux, ivar = giant
    assert pretrained.fit(to_spectrum(flux, pretrained.grid, ivar=ivar), method="lm").flags == FitFlag(0)


def test_a_real_giant_has_no_flags(pretrained, k_giant):
    assert pretrained.fit(k_giant, method="lm").flags == FitFlag(0)


# -- bad ones ----------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::cyclestarnet.exceptions.FitWarning")  # NOT_CONVERGED may be there as well
@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("lines shifted by 50 km/s", FitFlag.VELOCITY | FitFlag.UNFAMILIAR),
        ("[C/H] and [N/H] raised by 0.8", FitFlag.POOR_FIT | FitFlag.UNFAMILIAR),
        ("Brackett 11 in emission, 50 % high", FitFlag.LOCAL_MISFIT),
        ("a cosmic ray, 3 pixels, 50 % high", FitFlag.LOCAL_MISFIT),
        ("every other pixel masked", FitFlag.FEW_PIXELS),
        ("chips swapped", FitFlag.POOR_FIT | FitFlag.UNFAMILIAR),
        ("continuum wave of ±4 %, three per chip", FitFlag.CONTINUUM),
        ("noise of S/N 15", FitFlag.LOW_SNR),
        ("no lines at all", FitFlag.UNFAMILIAR),
    ],
)
def test_an_alteration_raises_its_flags(fit_after, name, flags):
    assert fit_after(name).flags & flags == flags


def test_a_cosmic_ray_says_nothing_else_against_the_star(fit_after):
    assert fit_after("a cosmic ray, 3 pixels, 50 % high").flags == FitFlag.LOCAL_MISFIT


@pytest.mark.parametrize("name", ["continuum slope of ±5 % over a chip", "continuum 3 % too low"])
def test_a_continuum_that_the_recipe_follows_raises_none(fit_after, name):
    assert fit_after(name).flags == FitFlag(0)


@pytest.mark.needs_shared
def test_a_real_dwarf_is_flagged(pretrained, shared):
    dwarf = read_apstar(shared / "data" / "apogee" / "real" / "apStar-dr17-2M19485057+5005279.fits")
    assert FitFlag.POOR_FIT in pretrained.fit(dwarf, method="lm").flags


def test_air_wavelengths_are_refused(pretrained, giant):
    wavelength = pretrained.grid.wavelength.value
    flux = np.interp(wavelength, wavelength * (1 - 82 / 299792.458), giant[0])
    with pytest.raises(GridError, match="air"):
        pretrained.fit(to_spectrum(flux, pretrained.grid, ivar=giant[1]), method="lm")


# -- the places that flags name ------------------------------------------------------------------
def test_worst_wavelength_is_where_the_emission_is(fit_after):
    worst = fit_after("Brackett 11 in emission, 50 % high").meta["worst_wavelength"]
    assert abs(worst.to_value("AA") - 16811) < 15


# -- bounds ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tiny_star(tiny_model, line_family):
    flux = line_family(np.array([[4700.0, 2.5, 0.0]]), width=2.2, depth=1.1)[0]
    return to_spectrum(np.random.default_rng(42).normal(flux, 0.005), tiny_model.grid, ivar=np.full(len(flux), 4e4))


def bounded(model, star, n_sigma):
    """A fit with the upper bound of Teff placed that many errors below the optimum, and that error."""
    free = model.fit(star, method="lm")
    teff, error = free.labels["teff"], free.uncertainties["teff"]
    return model.fit(star, method="lm", bounds={"teff": (teff - 400 * teff.unit, teff - n_sigma * error)})


@pytest.mark.parametrize(("n_sigma", "held_back"), [(1.2, False), (3.0, True)])
def test_a_bound_counts_if_it_is_far_from_the_optimum(tiny_model, tiny_star, n_sigma, held_back):
    fit = bounded(tiny_model, tiny_star, n_sigma)
    assert fit.meta["at_bound"] == ["teff"]
    assert (FitFlag.AT_BOUND in fit.flags) is held_back


@pytest.mark.parametrize(("place", "outside"), [(0.0, False), (3.2, True)])
def test_labels_far_from_the_prior_are_an_extrapolation(tiny_model, tiny_star, place, outside):
    """All labels that many of their spreads from the mean of the prior; the limit of the model is 3."""
    spread = np.sqrt(np.diag(tiny_model.prior.covariance)) * [1, 1, -1]
    far = dict(zip(tiny_model.labels, tiny_model.prior.mean + place * spread, strict=True))
    teff, fixed = far.pop("teff") * u.K, {name: value * difference_unit(name) for name, value in far.items()}
    fit = tiny_model.fit(tiny_star, method="lm", fixed=fixed, bounds={"teff": (teff - 5 * u.K, teff + 5 * u.K)})
    assert (FitFlag.OUTSIDE_TRAINING in fit.flags) is outside


@pytest.mark.parametrize(("highest", "named"), [(4600.0, ["teff"]), (4800.0, [])])
def test_a_single_label_beyond_the_range_of_the_training_is_named(tiny_model, tiny_star, highest, named):
    """The star has 4700 K, near the mean of the prior: only the range can tell."""
    known = np.array([[0.0, -10.0, -10.0], [highest, 10.0, 10.0]])
    model = replace(tiny_model, population=replace(tiny_model.population, label_range=known))
    fit = model.fit(tiny_star, method="lm")
    assert fit.meta["outside_training"] == named
    assert (FitFlag.OUTSIDE_TRAINING in fit.flags) is bool(named)


# -- names -------------------------------------------------------------------------------------------
def test_bits_do_not_change():
    """Tables of fits keep numbers; what they mean must stay."""
    order = (
        "NOT_CONVERGED AT_BOUND OUTSIDE_TRAINING POOR_FIT UNFAMILIAR FEW_PIXELS LOW_SNR VELOCITY FAILED "
        "LOCAL_MISFIT CONTINUUM"
    )
    assert {flag.name: flag.value for flag in FitFlag} == {name: 2**k for k, name in enumerate(order.split())}


def test_every_flag_is_explained(recipe):
    assert list(recipe.MEANINGS) == [flag.name for flag in FitFlag]
