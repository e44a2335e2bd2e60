"""Velocities of visits: those of the header are compared with the lines, and spectra that are not at rest refused."""

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.utils.data import get_pkg_data_filename

from cyclestarnet.exceptions import CycleStarNetWarning, GridError
from cyclestarnet.io import read_apvisit
from cyclestarnet.spectra import Spectrum, check_frame

PATH = get_pkg_data_filename("data/apVisit-r13-9518-57729-104.fits", package="cyclestarnet")
TRUE = -67.472  # km/s


def visit(path, *, velocity, noise=0.0, lines=True):
    with fits.open(PATH) as file:
        file[0].header["VRAD"] = velocity
        flux = file[1].data
        if not lines:
            flux[:] = np.median(flux)
        flux += noise * np.median(flux) * np.random.default_rng(1).standard_normal(flux.shape)
        file.writeto(path)
    return path


@pytest.mark.parametrize("velocity", [-590.0, -350.0, 20.0, 410.0, 2000.0])
def test_wrong_velocity_is_that_of_the_lines_instead(tmp_path, velocity):
    with pytest.warns(CycleStarNetWarning, match=rf"VRAD = {velocity:g} km/s, but the lines are at -6\d km/s"):
        spectrum = read_apvisit(visit(tmp_path / "apVisit-a.fits", velocity=velocity, noise=0.05))
    assert abs(spectrum.meta["velocity"].value - TRUE) < 4
    assert spectrum.meta["header_velocity"] == velocity * u.km / u.s
    right = read_apvisit(PATH).spectral_axis.value
    np.testing.assert_allclose(spectrum.spectral_axis.value, right, rtol=4 / 299792)


def test_right_velocity_is_left_alone():
    spectrum = read_apvisit(PATH)
    assert spectrum.meta["velocity"].value == spectrum.meta["header_velocity"].value == TRUE
    assert spectrum.meta["velocity_correlation"] > 0.9


def test_velocity_that_is_given_is_not_doubted(tmp_path):
    path = visit(tmp_path / "apVisit-a.fits", velocity=500.0)
    assert read_apvisit(path, velocity=-300 * u.km / u.s).meta["velocity"] == -300 * u.km / u.s


def test_unusual_velocity_without_lines_warns_and_stays(tmp_path):
    path = visit(tmp_path / "apVisit-a.fits", velocity=450.0, lines=False, noise=0.05)
    with pytest.warns(CycleStarNetWarning, match="the lines do not confirm it"):
        spectrum = read_apvisit(path)
    assert spectrum.meta["velocity"] == 450 * u.km / u.s


def test_usual_velocity_without_lines_stays(tmp_path):
    path = visit(tmp_path / "apVisit-a.fits", velocity=30.0, lines=False, noise=0.05)
    assert read_apvisit(path).meta["velocity"] == 30 * u.km / u.s


def test_specutils_finds_our_reader():
    spectrum = Spectrum.read(PATH)
    assert spectrum.meta["frame"] == "rest"
    assert spectrum.mask.any()
    check_frame(spectrum)


def test_visit_that_is_not_at_rest_is_refused():
    theirs = Spectrum.read(PATH, format="APOGEE apVisit")
    with pytest.raises(GridError, match=r"of an apVisit file \(VRAD = -67\.472 km/s"):
        check_frame(theirs)
    theirs.meta["frame"] = "rest"
    check_frame(theirs)
