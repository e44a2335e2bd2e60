"""Combined spectra: what is bad does not grow with the number of visits."""

import numpy as np
import pytest
from astropy.io import fits

from cyclestarnet.io import read_apstar

N = 2000
GRID = {"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1}


def combined(n_visits, *, spoilt=0.1, seed=0):
    """A file whose visits have wild, flagged pixels, which the combination has taken over, with any visit's bits."""
    rng = np.random.default_rng(seed)
    truth = 100 * (1 - 0.3 * rng.uniform(size=N) ** 8)
    scale = rng.uniform(0.5, 2, size=n_visits)[:, None] * (1 + 0.2 * np.linspace(-1, 1, N))
    bits = np.where(rng.uniform(size=(n_visits, N)) < spoilt, 1 << 12, 0)
    error = np.broadcast_to(scale, (n_visits, N)) * 1.0
    visits = truth * scale + error * rng.standard_normal((n_visits, N))
    visits[bits > 0] *= 30
    star = np.mean(visits / scale, axis=0)
    both = np.bitwise_or.reduce(bits)
    sigma = np.full(N, n_visits**-0.5)
    images = [
        np.vstack([star, star, visits]),
        np.vstack([sigma, sigma, error]),
        np.vstack([both, np.bitwise_and.reduce(bits), bits]).astype(np.int16),
    ]
    header = fits.Header(GRID)
    return fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU(image, header) for image in images)]), truth, bits


@pytest.mark.parametrize("n_visits", [2, 4, 8, 16])
def test_bad_pixels_are_those_of_a_third_of_the_visits(n_visits):
    file, _, bits = combined(n_visits)
    good = np.count_nonzero(bits == 0, axis=0)
    spectrum = read_apstar(file)
    np.testing.assert_array_equal(spectrum.mask, 3 * good <= 2 * n_visits)
    np.testing.assert_array_equal(spectrum.meta["good_visits"], good)


def test_more_visits_do_not_mask_more():
    masked = [read_apstar(combined(n)[0]).mask.mean() for n in (4, 8, 16)]
    assert masked == sorted(masked, reverse=True)


@pytest.mark.parametrize("n_visits", [4, 8])
def test_good_visits_make_up_for_bad_ones(n_visits):
    file, truth, _ = combined(n_visits)
    spectrum = read_apstar(file)
    mended = ~spectrum.mask & (spectrum.meta["good_visits"] < n_visits)
    pull = (spectrum.flux.value - truth)[mended] / spectrum.uncertainty.array[mended]
    assert np.count_nonzero(mended) > 100
    assert np.std(pull) == pytest.approx(1, abs=0.15)


def test_pixels_that_all_visits_know_are_those_of_the_file():
    file, _, _ = combined(4)
    spectrum = read_apstar(file)
    clean = spectrum.meta["good_visits"] == 4
    np.testing.assert_array_equal(spectrum.flux.value[clean], file[1].data[0][clean])
    np.testing.assert_array_equal(spectrum.uncertainty.array[clean], file[2].data[0][clean])


def test_bits_that_nobody_asked_for_mask_nothing():
    assert not read_apstar(combined(4)[0], mask_bits=[]).mask.any()


def test_combinations_of_other_bits_keep_them():
    file, _, bits = combined(4)
    spectrum = read_apstar(file, row=1)  # has the bits that all visits have
    np.testing.assert_array_equal(spectrum.mask, (bits > 0).all(axis=0))


def test_one_visit_has_its_own_bits():
    file, _, bits = combined(1)
    spectrum = read_apstar(file)
    np.testing.assert_array_equal(spectrum.mask, bits[0] > 0)
    assert "good_visits" not in spectrum.meta
