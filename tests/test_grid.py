"""Grids: what is a grid, which pixels APOGEE has, air and vacuum."""

import astropy.units as u
import numpy as np
import pytest
from specutils.utils.wcs_utils import vac_to_air

from cyclestarnet.exceptions import GridError
from cyclestarnet.grid import WavelengthGrid, air_to_vacuum, apogee_grid


@pytest.mark.parametrize(
    ("wavelength", "message"),
    [
        ([1.0, 2.0, 3.0], "must have a unit of length"),
        ([1.0, 2.0] * u.Hz, "must have a unit of length"),
        ("abc", "must have a unit of length"),
        ([[1.0, 2.0]] * u.nm, r"one-dimensional .* shape \(1, 2\)"),
        ([1.0] * u.nm, "2 or more pixels"),
        ([2.0, 1.0] * u.nm, "strictly increasing"),
        ([1.0, 1.0] * u.nm, "strictly increasing"),
        ([1.0, np.nan] * u.nm, "finite"),
        ([-1.0, 1.0] * u.nm, "positive"),
    ],
)
def test_what_is_no_grid_is_refused(wavelength, message):
    with pytest.raises(GridError, match=message):
        WavelengthGrid(wavelength)


@pytest.mark.parametrize(
    "chips", [[(0, 4)], [(0, 4), (6, 10)], [(0, 6), (4, 10)], [(0, 11)], [(2, 10)], [(5, 10), (0, 5)]]
)
def test_chips_must_tile_the_pixels(chips):
    with pytest.raises(GridError, match=r"must tile the pixels 0 \.\.\. 10 without gaps"):
        WavelengthGrid(np.arange(1, 11) * u.nm, chips)


def test_chip_of_one_pixel_is_refused():
    with pytest.raises(GridError, match="every chip must have 2 or more pixels"):
        WavelengthGrid(np.arange(1, 11) * u.nm, [(0, 9), (9, 10)])


def test_default_is_one_chip():
    assert WavelengthGrid([1, 2, 3] * u.nm).chips == ((0, 3),)


def test_unit_of_the_input_does_not_matter():
    values = np.linspace(1500, 1510, 11)
    np.testing.assert_allclose(
        WavelengthGrid(values * u.nm).wavelength, WavelengthGrid(values / 1000 * u.um).wavelength, rtol=1e-14
    )


def test_wavelengths_cannot_be_changed():
    grid = WavelengthGrid([1, 2, 3] * u.nm)
    with pytest.raises(ValueError, match="read-only"):
        grid.wavelength[0] = 0.5 * u.nm


def test_caller_keeps_its_own_wavelengths():
    wavelength = np.array([10.0, 20.0, 30.0]) * u.AA
    grid = WavelengthGrid(wavelength)
    wavelength[0] = 5 * u.AA
    assert grid.wavelength[0] == 10 * u.AA


def test_grids_are_equal_by_value():
    assert apogee_grid() == apogee_grid()
    assert apogee_grid() != apogee_grid(7214)
    assert WavelengthGrid([1, 2, 3, 4] * u.nm) != WavelengthGrid([1, 2, 3, 4] * u.nm, [(0, 2), (2, 4)])


def test_edges_lie_halfway():
    grid = WavelengthGrid([10, 12, 16, 30, 31] * u.AA, [(0, 3), (3, 5)])
    np.testing.assert_allclose(grid.edges(grid.chips[0]), [9, 11, 14, 18])
    np.testing.assert_allclose(grid.edges(grid.chips[1]), [29.5, 30.5, 31.5])


def test_apogee_grid_is_the_published_one():
    grid = apogee_grid(7214)
    index = np.r_[322:3242, 3648:6048, 6412:8306]
    np.testing.assert_allclose(grid.wavelength.to_value(u.AA), 10 ** (4.179 + 6e-6 * index), rtol=1e-14)


def test_apogee_grid_drops_the_red_end():
    assert apogee_grid().n_pixels == 7167
    assert apogee_grid().chips == ((0, 2920), (2920, 5320), (5320, 7167))


def test_apogee_grid_of_the_blue_chip_only():
    assert apogee_grid(2000).chips == ((0, 2000),)


def test_apogee_grid_cut_at_the_blue_end():
    grid = apogee_grid(cut="blue")
    np.testing.assert_array_equal(grid.wavelength.value, apogee_grid(7214).wavelength.value[47:])
    assert grid.chips == ((0, 2873), (2873, 5273), (5273, 7167))


def test_apogee_grid_of_the_red_chip_only():
    assert apogee_grid(1894, cut="blue").chips == ((0, 1894),)


def test_apogee_grid_has_two_ends():
    with pytest.raises(ValueError, match="cut must be 'red' or 'blue', but is 'green'"):
        apogee_grid(cut="green")


@pytest.mark.parametrize("n_pixels", [0, 1, -5, 7215])
def test_apogee_grid_of_impossible_length(n_pixels):
    with pytest.raises(GridError, match="between 2 and 7214"):
        apogee_grid(n_pixels)


def test_ciddor_near_the_blue_end_of_apogee():
    assert air_to_vacuum(15163.067 * u.AA).to_value(u.AA) == pytest.approx(15167.211, abs=1e-3)


def test_air_to_vacuum_inverts_specutils():
    vacuum = np.linspace(3000, 25000, 50) * u.AA
    air = vac_to_air(vacuum, method="Ciddor1996")
    np.testing.assert_allclose(air_to_vacuum(air).to_value(u.AA), vacuum.value, rtol=1e-9)


def test_air_to_vacuum_keeps_the_unit():
    assert air_to_vacuum(0.5 * u.um).unit == u.um
    assert u.isclose(air_to_vacuum(0.5 * u.um), air_to_vacuum(5000 * u.AA))
