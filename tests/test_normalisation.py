"""Whoever normalised a spectrum, and in whatever unit it comes: the model's own recipe decides, in every door."""

from dataclasses import replace

import astropy.units as u
import h5py
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum

from cyclestarnet import ContinuumRecipe, FitFlag, SpectrumError, TrainingSettings, WavelengthGrid
from cyclestarnet.io.training_set import TrainingSet, write_training_set
from cyclestarnet.lines import star_differences
from cyclestarnet.training.arrays import observed_table
from cyclestarnet.training.normalisation import check_observed, normalised_rows

SIGMA = 0.01


@pytest.fixture(scope="module")
def giant(pretrained):
    """Flux of a giant, with noise."""
    rng = np.random.default_rng(3)
    clean = pretrained.predict(pretrained.labels.to_quantities(pretrained.prior.mean)).flux.value
    return rng.normal(clean, SIGMA)


def spectrum(model, flux, factor=1.0, unit=u.one, **options):
    return Spectrum(
        flux=factor * flux * unit,
        spectral_axis=model.grid.wavelength,
        uncertainty=StdDevUncertainty(factor * np.full(flux.shape, SIGMA)),
        **options,
    )


def slopes(grid):
    """A continuum of somebody else: up to 3 % off, and other in each chip."""
    return np.concatenate([1 + 0.03 * np.linspace(-1, 1, b - a) ** (1 + k) for k, (a, b) in enumerate(grid.chips)])


OTHERS = {
    "counts without a unit": lambda grid: (963.0, u.one),
    "percent as numbers": lambda grid: (100.0, u.one),
    "percent": lambda grid: (100.0, u.percent),
    "another continuum": lambda grid: (slopes(grid), u.one),
    "a flux": lambda grid: (3e-15 * slopes(grid), u.Unit("erg / (s cm2 Angstrom)")),
}


@pytest.mark.parametrize("space", ["observed", "synthetic", "emulator"])
def test_fits_find_the_same_labels(pretrained, giant, space):
    stars = [spectrum(pretrained, giant)]
    stars += [spectrum(pretrained, giant, *other(pretrained.grid)) for other in OTHERS.values()]
    table = pretrained.fit_many(stars, space=space, progress=False)
    assert set(table["continuum"]) == {"recipe, degree 4"}
    for name in ("teff", "logg", "fe_h", "mg_h"):
        values = np.asarray(getattr(table[name], "value", table[name]))
        change = np.abs(values - values[0]) / np.asarray(getattr(table[f"{name}_err"], "value", table[f"{name}_err"]))
        assert change.max() < 0.1, name


@pytest.mark.parametrize("door", ["to_synthetic", "to_observed", "reconstruct"])
def test_translations_return_the_same(pretrained, giant, door):
    first, *others = (
        getattr(pretrained, door)(spectrum(pretrained, giant, *other(pretrained.grid))).flux.value
        for other in OTHERS.values()
    )
    for flux in others:
        np.testing.assert_allclose(flux, first, atol=1e-3)


def test_split_latents_are_the_same(pretrained, giant):
    labels = pretrained.labels.to_quantities(pretrained.prior.mean)
    first, counts = (
        pretrained.predict(labels, like=spectrum(pretrained, giant, *OTHERS[name](pretrained.grid))).flux.value
        for name in ("another continuum", "counts without a unit")
    )
    np.testing.assert_allclose(first, counts, atol=1e-3)


def test_who_knows_better_is_believed(pretrained, giant):
    given = spectrum(pretrained, giant * slopes(pretrained.grid))
    result = pretrained.fit(given, space="emulator", method="lm", normalise=False)
    assert result.meta["continuum"] == "as given"
    np.testing.assert_array_equal(result.spectrum.flux.value, given.flux.value)
    as_it_is, ours = (pretrained.reconstruct(given, normalise=n).flux.value for n in (False, True))
    assert np.abs(as_it_is - ours).max() > 0.01


@pytest.mark.parametrize("door", ["fit", "to_synthetic", "reconstruct"])
def test_what_cannot_be_normalised_is_not_believed(pretrained, giant, door):
    with pytest.raises(
        SpectrumError, match=r"taken as normalised, .* but its median is 9\d\d; let the model normalise"
    ):
        getattr(pretrained, door)(spectrum(pretrained, giant, 963.0), normalise=False)
    with pytest.raises(SpectrumError, match="flux has the unit 'Jy' and there is no continuum recipe"):
        getattr(pretrained, door)(spectrum(pretrained, giant, 1.0, u.Jy), normalise=False)


def test_choice_is_true_false_or_the_models(pretrained, giant):
    with pytest.raises(TypeError, match="normalise must be True, False or None, but is 'no'"):
        pretrained.fit(spectrum(pretrained, giant), normalise="no")


def test_model_whose_normalisation_nobody_knows_takes_flux_as_it_is(tiny_model, line_family):
    flux = line_family(tiny_model.prior.mean[None])[0]
    star = spectrum(tiny_model, flux)
    assert not tiny_model.normalises
    assert tiny_model.fit(star, method="lm").meta["continuum"] == "as given"
    assert tiny_model.fit(star, method="lm", normalise=True).meta["continuum"] == "recipe, degree 2"
    assert tiny_model.fit(spectrum(tiny_model, flux, 80.0, u.adu), method="lm").meta["continuum"] == "recipe, degree 2"


def test_file_keeps_whether_the_model_normalises(tiny_model, tmp_path):
    for normalises in (True, False):
        replace(tiny_model, normalises=normalises).save(tmp_path / "model.safetensors")
        assert type(tiny_model).load(tmp_path / "model.safetensors").normalises is normalises


def test_bad_continuum_pixels_at_an_edge_do_not_spoil_labels(pretrained, giant):
    """They left a polynomial that ran away; now these pixels are ignored, and the labels stay."""
    mask = pretrained.recipe.pixels & (np.arange(giant.size) > pretrained.grid.n_pixels - 500)
    counts = 963 * slopes(pretrained.grid)
    with pytest.warns(UserWarning, match="good pixels are ignored"):
        result = pretrained.fit(spectrum(pretrained, giant, counts, u.adu, mask=mask), method="lm")
    whole = pretrained.fit(spectrum(pretrained, giant), method="lm")
    flux = result.spectrum.flux.value[~result.spectrum.mask]
    assert 0.2 < flux.min() < flux.max() < 1.2
    assert 200 < result.spectrum.mask[-500:].sum() < 500
    for name in ("teff", "logg", "m_h"):
        change = result.labels[name].value - whole.labels[name].value
        assert abs(change) < 2.5 * result.uncertainties[name].value, name  # of another set of pixels
    assert not result.flags & (FitFlag.CONTINUUM | FitFlag.LOCAL_MISFIT | FitFlag.POOR_FIT)


def test_moving_star_may_lack_continuum_pixels(pretrained, giant):
    """Those of a moving star are elsewhere: which pixels count is known only when its velocity is."""
    wavelength = pretrained.grid.wavelength.value
    flux = np.interp(wavelength, wavelength * (1 - 700 / 299792.458), giant)
    mask = pretrained.recipe.moved(-700.0).pixels & (np.arange(giant.size) > pretrained.grid.n_pixels - 700)
    with pytest.warns(UserWarning, match="good pixels are ignored"):
        result = pretrained.fit(spectrum(pretrained, flux, mask=mask), motion="velocity", method="lm")
    assert result.success
    assert result.labels["velocity"].to_value(u.km / u.s) == pytest.approx(-700, abs=2)


def test_missing_lines_see_normalised_stars(pretrained, giant):
    flux = np.stack([giant, giant[::-1] * 0 + giant])
    counts = star_differences(pretrained, spectrum(pretrained, flux, 963.0), progress=False)
    ones = star_differences(pretrained, spectrum(pretrained, flux), progress=False)
    np.testing.assert_allclose(counts.flux, ones.flux, atol=1e-3)


# -- training sets -------------------------------------------------------------------------
@pytest.fixture
def recipe():
    grid = WavelengthGrid(np.linspace(1500, 1510, 200) * u.nm)
    return ContinuumRecipe(grid, np.arange(200) % 5 == 0)


@pytest.fixture
def observed(recipe, rng):
    """Rows of counts: a slope, lines between continuum pixels, noise."""
    lines = np.where(recipe.pixels, 1.0, 1 - rng.uniform(0, 0.4, (70, 200)))
    return np.linspace(400, 900, 200) * rng.normal(lines, SIGMA), np.linspace(400, 900, 200) * np.full((70, 200), SIGMA)


def test_training_set_holds_what_the_recipe_made(recipe, observed, tmp_path):
    flux, sigma = observed
    for name, factor in {"counts": 1.0, "percent": 0.1}.items():
        stars = [
            Spectrum(
                flux=factor * f * u.one, spectral_axis=recipe.grid.wavelength, uncertainty=StdDevUncertainty(factor * s)
            )
            for f, s in zip(flux, sigma, strict=True)
        ]
        write_training_set(tmp_path / name, stars, grid=recipe.grid, recipe=recipe, progress=False)
    (first, *_), (second, *_) = (TrainingSet(tmp_path / name).read(0, 70) for name in ("counts", "percent"))
    np.testing.assert_allclose(first, flux / recipe(flux, sigma**-2), rtol=1e-5)
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_arrays_of_a_training_are_normalised(recipe, observed):
    flux, sigma = observed
    mask = np.zeros(flux.shape, dtype=bool)
    mask[:, 150:] = recipe.pixels[150:]  # leaves no continuum there
    got, errors, bad = observed_table(flux, sigma, grid=recipe.grid, mask=mask, recipe=recipe).read(0, 70)
    continuum = recipe(flux, np.where(mask, 0, sigma**-2))
    known = np.isfinite(continuum)
    np.testing.assert_array_equal(bad, mask | ~known)
    np.testing.assert_allclose(got[known], (flux / continuum)[known], rtol=1e-6)
    np.testing.assert_allclose(errors[known], (sigma / continuum)[known], rtol=1e-6)
    assert not known[:, -10:].any()
    assert np.isfinite(got).all()


def test_a_set_of_another_continuum_is_refused(recipe, observed, tmp_path):
    flux, sigma, bad = normalised_rows(recipe, *observed, np.zeros(observed[0].shape, dtype=bool))
    for name, tilt in {"ours": 1.0, "theirs": np.linspace(0.98, 1.01, 200)}.items():
        with h5py.File(tmp_path / name, "w") as file:
            file["wavelength"] = recipe.grid.wavelength.value
            file["spectra train"], file["spectra_err train"] = flux * tilt, sigma * tilt
            file["spectra_msk train"] = np.where(bad, 0, 1).astype("u1")
    settings = TrainingSettings()
    check_observed(TrainingSet(tmp_path / "ours"), settings, recipe=recipe)
    check_observed(TrainingSet(tmp_path / "theirs"), settings)
    with pytest.raises(SpectrumError, match=r"was not normalised by the continuum recipe .* by \d\.\d% in a typical"):
        check_observed(TrainingSet(tmp_path / "theirs"), settings, recipe=recipe)
