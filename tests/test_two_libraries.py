"""The recipe of two libraries of real spectra, on made-up files of their formats: readers, noise, velocities, steps."""

import zipfile

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from scripts import load_script

from cyclestarnet.io import TrainingSet

pytest.importorskip("matplotlib").use("Agg")
recipe = load_script("recipes/two_libraries.py")

HEADER = """\
Name                  MILES   CaT   SpT            Teff   log g   [Fe/H]  Refs   Libraries
                      s????
 - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - --
"""
ROW = "{:22s}{:>6s}{:>6s}   {:12s}{:>9s}{:>7s}{:>9s}   {:s}\n"
N_STARS, N_BOTH = 24, 16


def lines_of(labels, fwhm, start, step, n_pixels, velocity=0.0):
    """Made-up spectrum on a linear axis in air: lines that the labels deepen, and a slope."""
    rng = np.random.default_rng(7)
    centre, slopes = rng.uniform(4500, 5850, 150), rng.uniform(0.3, 1.0, (150, 3))
    teff, logg, fe_h = labels
    strength = 0.25 + 0.1 * slopes @ [(5500 - teff) / 1000, (3 - logg) / 2, 2 * fe_h]
    axis = start + step * np.arange(n_pixels)
    at = centre * (1 + velocity / 299792.458)
    profile = np.exp(-4 * np.log(2) * ((axis[:, None] - at) / fwhm) ** 2)
    return 3e-13 * (axis / 5000) * (1 - 0.4 * np.tanh((strength * 3 / fwhm * profile).sum(1)))


def header_of(start, step, **cards):
    return fits.Header({"CRVAL1": start, "CDELT1": step, "CRPIX1": 1} | cards)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """A folder like that of the wheel: 24 stars in each library, 16 in both; those of STELIB recede at 30 km/s."""
    top = tmp_path_factory.mktemp("wheel")
    miles, stelib = (top / recipe.LIBRARIES / name for name in ("miles", "stelib"))
    rng, text = np.random.default_rng(0), HEADER
    for folder in (miles, stelib):
        folder.mkdir(parents=True)
    for k in range(2 * N_STARS - N_BOTH):
        labels = rng.uniform([4300, 1.5, -0.9], [6500, 4.6, 0.3])
        if k < N_STARS:
            words = f"{labels[0]:.0f}", f"{labels[1]:.2f}", f"{labels[2]:.2f}"
            text += ROW.format(f"HD{k + 1:06d}", f"{k + 1:04d}", "", "G0V", *words, "111")
            flux = lines_of(labels, 2.5, 3540.5, 0.9, 2700)
            fits.PrimaryHDU(flux, header_of(3540.5, 0.9)).writeto(miles / f"MILES_res2.50_star_m{k + 1:04d}V.fits")
        if k >= N_STARS - N_BOTH:
            flux = lines_of(labels, 3.1, 3200.0, 1.0, 3000, velocity=30.0)
            flux = rng.normal(flux, 0.01 * flux).astype("f4")
            flux[:300] = 0
            cards = {"STARIDEN": f"HD{k + 1}", "TEFF": f"{labels[0]:.0f}", "LOG_G": f"{labels[1]:.2f}"}
            cards["FE_H"] = f"{labels[2]:.2f}"
            fits.PrimaryHDU(flux, header_of(3200.0, 1.0, **cards)).writeto(stelib / f"STELIB_v3.2_HD{k + 1:06d}.fits")
    (miles / "paramsMILES_v9.1.txt").write_text(text)
    (miles / "README").write_text("not a spectrum")
    (stelib / "README").write_text("not a spectrum")
    return top


# -- readers ---------------------------------------------------------------------------
def test_labels_of_miles_stay_with_their_stars():
    text = HEADER
    text += ROW.format("HD004307", "0025", "", "G2V", "5728", "3.90", "-0.31", "111     J S I E")
    text += ROW.format("HD044691A", "022.", "", "A3m", "7950", "3.95", "0.35", "333")  # as in version 9.1
    text += ROW.format("NGC 7789 501(614) Cl", "0978", "149", "GB", "--", "1.48", "--", "1")
    table = recipe.read_miles_labels(text)
    assert list(table["number"]) == [25, 978]
    assert table["star"][0] == "HD4307"
    np.testing.assert_allclose(table["teff"].to_value(u.K), [5728, np.nan])
    np.testing.assert_allclose(table["logg"], [3.9, 1.48])
    np.testing.assert_allclose(table["fe_h"], [-0.31, np.nan])


@pytest.mark.parametrize("text", ["HD 62301", "HD062301", "hd62301"])
def test_a_star_has_one_name(text):
    assert recipe.star_name(text) == "HD62301"


def test_spectra_are_in_vacuum_and_zeros_masked(tmp_path):
    flux = np.ones(301)
    flux[[0, 100]] = 0, np.nan
    fits.PrimaryHDU(flux, header_of(5183.604, 1.0)).writeto(tmp_path / "star.fits")
    with fits.open(tmp_path / "star.fits", mode="update") as hdus:
        hdus[0].header["CRPIX1"] = 11  # the tenth pixel, from 0, is Mg b1
    spectrum = recipe.read_spectrum(tmp_path / "star.fits", error=0.01)
    assert spectrum.spectral_axis[10].to_value(u.AA) == pytest.approx(5185.048, abs=2e-3)  # NIST: air and vacuum
    assert list(np.flatnonzero(spectrum.mask)) == [0, 100]
    np.testing.assert_allclose(spectrum.uncertainty.array, 0.01)


def test_a_spectrum_of_other_wavelengths_is_none(tmp_path):
    fits.PrimaryHDU(np.ones(301), header_of(6000, 1.0)).writeto(tmp_path / "red.fits")
    fits.PrimaryHDU(np.zeros(301), header_of(5000, 1.0)).writeto(tmp_path / "empty.fits")
    assert recipe.read_spectrum(tmp_path / "red.fits") is None
    assert recipe.read_spectrum(tmp_path / "empty.fits") is None


def test_noise_is_told_from_lines():
    flux = lines_of((5000, 2.0, 0.0), 3.1, 4540.0, 1.0, 1260)
    level = 3e-13 * np.linspace(4540, 5800, 1260) / 5000
    found = [
        recipe.noise_of(flux / level + np.random.default_rng(seed).normal(0, sigma, 1260))
        for seed, sigma in enumerate([0.004, 0.01])
    ]
    np.testing.assert_allclose(found, [0.004, 0.01], rtol=0.12)  # 190 frequencies of a window: 7 %


def test_the_wheel_gives_what_its_folder_gives(libraries, tmp_path):
    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        for path in libraries.rglob("*"):
            if path.is_file():
                wheel.write(path, path.relative_to(libraries))
    for one, other in zip(recipe.read_libraries(libraries), recipe.read_libraries(tmp_path / "some.whl"), strict=True):
        assert list(one.table["star"]) == list(other.table["star"])
        assert len(one) == N_STARS
        np.testing.assert_array_equal(one.spectra[-1].flux.value, other.spectra[-1].flux.value)


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(SystemExit, match=r"has no mangadap.*; give the wheel of sdss-mangadap"):
        recipe.read_libraries(tmp_path)


# -- steps -----------------------------------------------------------------------------
def test_stars_in_both_are_found_and_velocities_taken_out(libraries):
    miles, stelib = recipe.read_libraries(libraries)
    pairs = recipe.partners(miles, stelib)
    assert [miles.table["star"][row] for row in pairs[:, 0]] == [f"HD{k}" for k in range(9, 25)]
    continuum = recipe.continuum_recipe(miles)
    own, _ = recipe.on_grid(miles, continuum)
    still, speeds = recipe.at_rest(stelib, continuum, own.mean(0))
    np.testing.assert_allclose(speeds, 30, atol=6)  # a tenth of a pixel
    _, speeds = recipe.at_rest(still, continuum, own.mean(0))
    np.testing.assert_allclose(speeds, 0, atol=2)
    # 3.1 of 2.5 Å: 1.83 Å more, of pixels of 0.79 to 1 Å
    width = recipe.broadening(own[pairs[:, 0]], recipe.on_grid(still, continuum)[0][pairs[:, 1]])
    assert width == pytest.approx(1.83 / 2.355 / 0.9, abs=0.1)


def test_the_nearest_stars_are_taken(libraries):
    miles, _ = recipe.read_libraries(libraries)
    rows = recipe.alike(miles, miles[[3, 5]], 2)
    assert set(rows[[0, 2]]) == {3, 5}  # nearest to itself
    offset = np.abs((miles.labels - miles.labels[3]) / recipe.TYPICAL)
    assert rows[1] == np.argsort(np.hypot(np.hypot(*offset.T[:2]), offset[:, 2]))[1]


def test_spectra_with_a_gap_are_not_usable(libraries):
    _, stelib = recipe.read_libraries(libraries)
    spectrum = stelib.spectra[0]
    assert recipe.complete(spectrum)
    gap = spectrum.mask.copy()
    gap[np.searchsorted(spectrum.spectral_axis.value, 5000)] = True
    assert not recipe.complete(type(spectrum)(flux=spectrum.flux, spectral_axis=spectrum.spectral_axis, mask=gap))
    assert not recipe.complete(spectrum[:1200])  # ends before the grid


@pytest.mark.slow
def test_all_of_it_in_small(libraries, tmp_path, capsys):
    size = recipe.Size(
        n_epochs=20, n_iterations=4, n_alike=2, n_drawn=1, n_validation=4, network=((4, 4), (4, 4), (2, 2), 3)
    )
    stars = recipe.read_stars(libraries)
    assert "8 + 16 stars of MILES, 24 of STELIB, 16 in both" in capsys.readouterr().out
    labels = recipe.study_labels(tmp_path, stars, size)
    _, unseen = recipe.split(stars)
    published = stars.miles.labels[unseen[:, 0]]
    for name in ("MILES, Eq. 9", "Eq. 9", "Eq. 11"):
        np.testing.assert_allclose(labels[name].labels - labels[name].offset, published)  # of these stars, in order
    seen = TrainingSet(tmp_path / "model" / "observed.h5"), TrainingSet(tmp_path / "model" / "observed.h5", split="val")
    assert sum(part.n_spectra for part in seen) == 24 - 8  # none of the unseen
    spectra = recipe.study_spectra(tmp_path, stars, size)
    assert (spectra["MILES → STELIB"]["convolved"] < spectra["MILES → STELIB"]["before"]).all()
    for folder in ("tables", "_static"):
        (tmp_path / folder).mkdir()
    recipe.report(stars, labels, spectra, tmp_path)
    text = (tmp_path / "tables" / "two_libraries_labels.rst").read_text(encoding="utf-8")
    assert text.count("   * - ") == 2 + len(recipe.TITLES)
    assert "- +0 / 0" in text  # the catalogues agree
    assert len(list((tmp_path / "_static").glob("two_libraries_*.png"))) == 2
