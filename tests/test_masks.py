"""Spectroscopic masks: the rule on samples of known errors, planted pixels that are wrong, files, and fits."""

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable

from cyclestarnet import FileFormatError, FitOptions, GridError, SpectroscopicMask, WavelengthGrid
from cyclestarnet.masks import model_errors
from cyclestarnet.residuals import ResidualDensity, ResidualMap
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training import find_mask

GRID = WavelengthGrid((15000 + 0.2 * np.r_[0:30, 60:100]) * u.AA, ((0, 30), (30, 70)))
NOISE = 0.01
WRONG = [5, 6, 29, 30, 50]  # 29 and 30 are neighbours by number, but of two chips


def residuals(values, sigma=NOISE, kind=ResidualMap):
    """Both kinds of residuals of some values, in units of the continuum."""
    if kind is ResidualMap:
        return ResidualMap(values, GRID, in_sigma=False), ResidualMap(values / sigma, GRID)
    both = ResidualDensity(GRID, in_sigma=False), ResidualDensity(GRID)
    both[0].add(values)
    both[1].add(values / sigma)
    return both


@pytest.fixture
def noise(rng):
    """Function that draws residuals of right spectra: nothing but noise."""
    return lambda n: rng.normal(0, NOISE, (n, GRID.n_pixels))


# -- the rule ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", [ResidualMap, ResidualDensity])
def test_errors_are_offset_and_scatter_beyond_the_noise(noise, rng, kind):
    values = noise(2000)
    values[:, 5] -= 0.04
    values[:, 50] += rng.normal(0, 0.03, 2000)
    values[:, 60] += rng.normal(0.04, 0.03, 2000)
    errors = model_errors(*residuals(values, kind=kind))
    assert errors[[5, 50, 60]] == pytest.approx([0.04, 0.03, 0.05], rel=0.08)


def test_noise_is_no_error(noise):
    assert (model_errors(*residuals(noise(1000))) == 0).all()


def test_noise_that_differs_from_star_to_star_is_no_error(rng):
    sigma = rng.choice([0.003, 0.01, 0.05], (1000, 1))
    assert (model_errors(*residuals(rng.normal(0, sigma, (1000, GRID.n_pixels)), sigma)) == 0).all()


def test_errors_that_few_stars_show_are_not_significant(noise):
    values = noise(400)
    values[:, 5] += 0.6 * NOISE
    assert model_errors(*residuals(values))[5] == pytest.approx(0.6 * NOISE, rel=0.2)
    assert model_errors(*residuals(values[:20]))[5] == 0


def test_significance_is_in_standard_errors_of_the_median():
    quantiles = np.linspace(-4, 4, 401)[:, None] * NOISE  # any even sample: only figures count
    values = np.repeat(quantiles, GRID.n_pixels, axis=1)
    width = ResidualMap(values, GRID, in_sigma=False).statistics.half_width
    error = np.sqrt(np.pi / 2) * width / np.sqrt(401)
    for offset, counts in ((4.9 * error, False), (5.1 * error, True)):
        found = model_errors(*residuals(values + offset, sigma=width))
        assert (found > 0).all() == counts


def test_a_mask_has_the_wrong_pixels_and_no_others(noise, rng):
    values = noise(500)
    values[:, WRONG[:4]] += 0.05
    values[:, WRONG[4]] += rng.normal(0, 0.06, 500)
    values[:, 10] += 0.02  # significant, but small
    mask = SpectroscopicMask.of(*residuals(values))
    assert np.flatnonzero(mask.pixels(GRID)).tolist() == WRONG
    assert mask.table["n_pixels"].tolist() == [2, 1, 1, 1]
    assert mask.table["bias"][:3] == pytest.approx(0.05, abs=0.005)
    assert mask.table.meta["n_stars"] == 500
    assert mask.table.meta["share"] == pytest.approx(5 / 70)


def test_the_threshold_is_that_of_the_error(noise):
    values = noise(500)
    values[:, 5] += 0.05
    assert len(SpectroscopicMask.of(*residuals(values), threshold=0.06)) == 0
    assert len(SpectroscopicMask.of(*residuals(values), threshold=0.04)) == 1


def test_pixels_that_no_star_has_are_not_masked(noise):
    values = noise(500)
    values[:, 5], values[:, 6] = np.nan, 0.05
    mask = SpectroscopicMask.of(*residuals(values))
    assert np.flatnonzero(mask.pixels(GRID)).tolist() == [6]


def test_residuals_of_other_kinds_are_refused(noise):
    right, relative = residuals(noise(5))
    other = WavelengthGrid(GRID.wavelength * 1.1, GRID.chips)
    with pytest.raises(GridError, match="must be on the same pixels"):
        model_errors(right, ResidualMap(relative.values, other))
    with pytest.raises(ValueError, match="in units of the continuum first"):
        model_errors(relative, right)
    with pytest.raises(ValueError, match="significance must be positive, but is 0"):
        model_errors(right, relative, significance=0)
    with pytest.raises(ValueError, match="threshold must be positive, but is -1"):
        SpectroscopicMask.of(right, relative, threshold=-1)


# -- files -------------------------------------------------------------------------------------
def mask_of(*windows, unit=u.AA):
    low, high = np.array(windows).T * unit if windows else np.zeros((2, 0)) * unit
    n = len(windows)
    return SpectroscopicMask(
        QTable({"low": low, "high": high, "n_pixels": np.ones(n, int), "bias": np.ones(n), "error": np.ones(n)})
    )


@pytest.mark.parametrize("windows", [[], [(15000.1, 15000.3)], [(15000.1, 15000.3), (15013.0, 15015.0 + 1 / 3)]])
def test_a_mask_comes_back_from_its_file(windows, tmp_path):
    mask = mask_of(*windows)
    mask.write(tmp_path / "mask.ecsv")
    assert SpectroscopicMask.read(tmp_path / "mask.ecsv").windows == mask.windows == windows


def test_a_mask_is_of_wavelengths_and_not_of_pixels():
    mask = mask_of((1500.011, 1500.052), unit=u.nm)
    assert np.flatnonzero(mask.pixels(GRID)).tolist() == [1, 2]
    finer = WavelengthGrid(np.linspace(15000, 15001, 11) * u.AA)
    assert np.flatnonzero(mask.pixels(finer)).tolist() == [2, 3, 4, 5]


def test_files_that_are_no_masks_are_refused(tmp_path):
    path = tmp_path / "mask.ecsv"
    with pytest.raises(FileNotFoundError):
        SpectroscopicMask.read(path)
    QTable({"low": [15000.0] * u.AA}).write(path)
    with pytest.raises(FileFormatError, match="lacks high, n_pixels, bias, error"):
        SpectroscopicMask.read(path)
    table = mask_of((15000.0, 15001.0)).table
    table["low"] = [15002.0] * u.AA
    table.write(path, overwrite=True)
    with pytest.raises(FileFormatError, match="window 0 of the mask must begin before it ends"):
        SpectroscopicMask.read(path)
    table["low"] = [np.nan] * u.AA
    table.write(path, overwrite=True)
    with pytest.raises(FileFormatError, match="must begin before it ends"):
        SpectroscopicMask.read(path)
    table["low"] = [1.0] * u.K
    table.write(path, overwrite=True)
    with pytest.raises(FileFormatError, match="must be wavelengths"):
        SpectroscopicMask.read(path)
    with pytest.raises(ValueError, match=r"must end in .ecsv"):
        mask_of().write(tmp_path / "mask.fits")


# -- fits --------------------------------------------------------------------------------------
@pytest.fixture
def star(tiny_model, line_family, rng):
    flux = rng.normal(line_family(line_family.draw(1, rng), width=2.2, depth=1.1)[0], 0.005)
    return to_spectrum(flux, tiny_model.grid, ivar=np.full(flux.shape, 0.005**-2))


@pytest.fixture
def mask(tiny_model):
    """A mask of 25 pixels of the tiny model, among them lines."""
    wavelength = tiny_model.grid.wavelength.value
    return mask_of((wavelength[100] - 0.01, wavelength[124] + 0.01))


@pytest.mark.parametrize("space", ["emulator", "synthetic", "observed"])
def test_masked_pixels_do_not_count(tiny_model, star, mask, space):
    plain, masked = (tiny_model.fit(star, space=space, ignore=ignore) for ignore in (None, mask))
    assert masked.dof == plain.dof - 25
    assert masked.spectrum.mask[100:125].all()
    assert np.isfinite(masked.residual[125:]).all()


def test_labels_do_not_depend_on_masked_flux_where_no_network_reads_it(tiny_model, star, mask):
    changed = star.flux.value.copy()
    changed[100:125] += 0.2
    other = to_spectrum(changed, tiny_model.grid, ivar=np.full(changed.shape, 0.005**-2))
    values = [tiny_model.fit(one, space="emulator", ignore=mask).values for one in (star, other)]
    np.testing.assert_allclose(*values, rtol=1e-6)


def test_networks_see_masked_pixels_but_not_ignored_ones(tiny_model, star, mask):
    seen, masked, ignored = (
        tiny_model.fit(star, space="emulator", ignore=ignore).meta["latent_distance"]
        for ignore in (None, mask, mask.windows)
    )
    assert masked == seen
    assert abs(ignored - seen) > 0.01


def test_many_stars_are_fitted_with_a_mask(tiny_model, star, mask, tmp_path):
    (row,) = tiny_model.fit_many([star], ignore=mask, output=tmp_path / "t.ecsv", progress=False)
    alone = tiny_model.fit(star, ignore=mask, method="lm")
    assert row["teff"] == alone.labels["teff"]
    assert row["dof"] == alone.dof


def test_a_mask_goes_with_a_result_into_its_file(tiny_model, star, mask, tmp_path):
    result = tiny_model.fit(star, space="emulator", ignore=mask)
    result.write(tmp_path / "star.fits")
    assert type(result).read(tmp_path / "star.fits").options.ignore.windows == mask.windows


def test_a_mask_that_leaves_too_little_is_refused(tiny_model, star):
    wavelength = tiny_model.grid.wavelength.value
    with pytest.raises(ValueError, match="2 good pixels are left, too few for 3 parameters"):
        tiny_model.fit(star, space="emulator", ignore=mask_of((wavelength[0], wavelength[412] + 0.01)))
    with pytest.raises(GridError, match="ignore has no effect"):
        tiny_model.fit(star, space="emulator", ignore=mask_of((1.0, 2.0)))


def test_a_mask_of_nothing_changes_nothing(tiny_model, star):
    empty, none = (tiny_model.fit(star, space="emulator", ignore=ignore) for ignore in (mask_of(), None))
    assert (empty.values == none.values).all()
    assert FitOptions(ignore=mask_of()).ignore is not None


# -- from spectra ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def simulated(tiny_model, line_family):
    """60 stars that the emulator describes but for some pixels: two are too faint, one is off this way or that."""
    rng = np.random.default_rng(5)
    labels = line_family.draw(60, rng)
    flux = rng.normal(line_family(labels), 0.01)
    flux[:, [77, 78]] -= 0.08
    flux[:, 300] += rng.normal(0, 0.08, 60)
    flux[:, 200] += 0.01
    return [to_spectrum(row, tiny_model.grid, ivar=np.full(row.shape, 1e4)) for row in flux]


def test_planted_pixels_are_found(tiny_model, simulated):
    mask = find_mask(tiny_model, simulated, progress=False)
    assert np.flatnonzero(mask.pixels(tiny_model.grid)).tolist() == [77, 78, 300]
    assert mask.table["bias"][0] == pytest.approx(-0.08, abs=0.01)
    assert mask.table["error"][1] == pytest.approx(0.08, abs=0.015)
    assert mask.table.meta["model"] == "tiny"


def test_a_mask_in_a_folder_is_made_once(tiny_model, simulated, tmp_path, monkeypatch):
    few = simulated[:40]
    first = find_mask(tiny_model, few, folder=tmp_path, progress=False)
    monkeypatch.setattr("cyclestarnet.training.fitted_sets.fit_numbered", None)
    assert find_mask(tiny_model, few, folder=tmp_path, progress=False).windows == first.windows
    looser = find_mask(tiny_model, few, folder=tmp_path, threshold=0.2, progress=False)
    assert len(looser) == 0  # another threshold needs no other fits
    with pytest.raises(FileExistsError, match=r"has the files of another run .*spectra"):
        find_mask(tiny_model, simulated[1:40], folder=tmp_path, progress=False)


def test_bad_requests_are_named(tiny_model, simulated):
    with pytest.raises(ValueError, match="n_stars must be 1 or more, but is 0"):
        find_mask(tiny_model, simulated, n_stars=0)
    with pytest.raises(ValueError, match="threshold must be positive, but is 0"):
        find_mask(tiny_model, simulated, threshold=0)
