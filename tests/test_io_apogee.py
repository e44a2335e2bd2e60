"""APOGEE files: what is read, what is masked, and what is refused."""

import gzip
import io
import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from astropy.utils.data import get_pkg_data_filename
from specutils import SpectrumList

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.grid import apogee_grid
from cyclestarnet.io import APOGEE_BAD_BITS, read_apstar, read_apvisit, read_aspcapstar
from cyclestarnet.spectra import Spectrum, to_pixels, to_spectrum

N = 500
GRID = {"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1}
KMS = u.km / u.s


@pytest.fixture(scope="module")
def k_giant():
    return get_pkg_data_filename("data/apVisit-r13-9518-57729-104.fits", package="cyclestarnet")


@pytest.fixture
def arrays():
    """Flux, error and bits of three rows, big-endian single precision as the files of most releases."""
    rng = np.random.default_rng(2)
    flux = rng.uniform(50, 100, (3, N)).astype(">f4")
    return flux, np.full((3, N), 2, ">f4"), np.zeros((3, N), ">i2")


def write(path, images, primary=(), header=GRID):
    first = fits.PrimaryHDU(header=fits.Header(dict(primary)))
    hdus = [first, *(fits.ImageHDU(image, fits.Header(header)) for image in images)]
    fits.HDUList(hdus).writeto(path)
    return path


@pytest.fixture
def apstar(tmp_path, arrays):
    cards = {"OBJID": "2M1", "FIELD": "M67", "TELESCOP": "apo25m", "SNR": 90.0, "SNRVIS1": 40.0}
    return write(tmp_path / "apStar.fits", arrays, cards)


@pytest.fixture
def aspcapstar(tmp_path):
    flux = np.ones(N, ">f4")
    flux[:20] = 0
    return write(tmp_path / "aspcapStar.fits", [flux, np.where(flux > 0, 0.01, 0.0), 0.9 * flux], {"OBJID": "2M1"})


def chips():
    """Wavelengths of three descending detectors, shape (3, 50)."""
    return np.array([16900.0, 16400.0, 15800.0])[:, None] - 0.15 * np.arange(50)


@pytest.fixture
def apvisit(tmp_path):
    wave = chips()
    images = [wave / 1e4, np.full(wave.shape, 0.01), np.arange(150, dtype=np.int16).reshape(3, 50) % 2 << 13, wave]
    return write(tmp_path / "apVisit.fits", images, {"VRAD": 30.0, "VHELIO": 45.0, "SNR": 80.0, "OBJID": "2M1"}, {})


# -- apStar ----------------------------------------------------------------
def test_wavelengths_are_those_of_the_header(apstar):
    spectrum = read_apstar(apstar)
    np.testing.assert_allclose(spectrum.spectral_axis.to_value(u.AA), 10 ** (4.179 + 6e-6 * np.arange(N)), rtol=1e-13)


def test_wavelengths_start_at_the_reference_pixel(tmp_path, arrays):
    path = write(tmp_path / "a.fits", arrays, header=GRID | {"CRPIX1": 11})
    assert np.log10(read_apstar(path).spectral_axis[10].value) == pytest.approx(4.179, abs=1e-12)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_rows_are_chosen_by_number(apstar, arrays, row):
    spectrum = read_apstar(apstar, row=row)
    np.testing.assert_array_equal(spectrum.flux.value, arrays[0][row])
    assert spectrum.meta["row"] == row


def test_arrays_are_native_float64(apstar):
    spectrum = read_apstar(apstar)
    for array in (spectrum.flux.value, spectrum.uncertainty.array, spectrum.spectral_axis.value):
        assert array.dtype == np.dtype("=f8")
        assert array.dtype.isnative


def test_flux_and_error_have_the_unit_of_the_survey(apstar):
    spectrum = read_apstar(apstar)
    assert spectrum.flux.unit == spectrum.uncertainty.unit == u.Unit("1e-17 erg / (s cm2 Angstrom)")


@pytest.mark.parametrize(("row", "snr"), [(0, 90), (1, 90), (2, 40)])
def test_signal_to_noise_is_that_of_the_row(apstar, row, snr):
    assert read_apstar(apstar, row=row).meta["snr"] == snr


def test_metadata_say_what_was_read(apstar):
    meta = read_apstar(apstar).meta
    known = {"object": "2M1", "apogee_id": "2M1", "field": "M67", "telescope": "apo25m", "file": str(apstar)}
    assert known.items() <= meta.items()
    assert meta["medium"] == "vacuum"
    assert meta["frame"] == "rest"
    assert meta["header"]["OBJID"] == "2M1"
    assert meta["mask_bits"] == (0, 1, 2, 3, 4, 5, 6, 7, 12)


def test_absent_cards_are_none(tmp_path, arrays):
    meta = read_apstar(write(tmp_path / "a.fits", arrays)).meta
    assert all(meta[key] is None for key in ("snr", "object", "field", "telescope"))


@pytest.mark.parametrize("bit", range(15))
def test_default_bits_are_masked_and_no_others(tmp_path, arrays, bit):
    arrays[2][0, 7] = 1 << bit
    spectrum = read_apstar(write(tmp_path / "a.fits", arrays))
    assert spectrum.mask[7] == (bit in APOGEE_BAD_BITS.values())
    assert spectrum.mask.sum() == spectrum.mask[7]


def test_default_bits_have_their_names():
    assert APOGEE_BAD_BITS["BADPIX"] == 0
    assert APOGEE_BAD_BITS["NOSKY"] == 7
    assert APOGEE_BAD_BITS["SIG_SKYLINE"] == 12


GENERATOR = pytest.param((bit for bit in [13]), id="generator")


@pytest.mark.parametrize("bits", [[13], ["SIG_TELLURIC"], ["sig_telluric", 0], {13}, GENERATOR], ids=str)
def test_bits_are_chosen_by_number_or_name(tmp_path, arrays, bits):
    arrays[2][0, [7, 8]] = 1 << 13, 1 << 12
    mask = read_apstar(write(tmp_path / "a.fits", arrays), mask_bits=bits).mask
    assert list(np.flatnonzero(mask)) == [7]


def test_no_bits_mask_nothing(tmp_path, arrays):
    arrays[2][0] = 255
    assert not read_apstar(write(tmp_path / "a.fits", arrays), mask_bits=[]).mask.any()


def test_highest_bit_of_16_can_be_chosen(tmp_path, arrays):
    arrays[2][0, 7] = -32768  # bit 15 is the sign
    assert read_apstar(write(tmp_path / "a.fits", arrays), mask_bits=[15]).mask[7]


def test_raw_bits_are_kept(tmp_path, arrays):
    arrays[2][0, 7] = 1 << 13
    assert read_apstar(write(tmp_path / "a.fits", arrays)).meta["bitmask"][7] == 8192


@pytest.mark.parametrize("bits", [["SKYLINE"], [-1], [40]])
def test_unknown_bits_are_refused(apstar, bits):
    with pytest.raises(ValueError, match=r"unknown bit .*; known: 0 BADPIX, .* 12 SIG_SKYLINE"):
        read_apstar(apstar, mask_bits=bits)


@pytest.mark.parametrize("bits", [4096, "SIG_SKYLINE"])
def test_bits_must_be_a_list(apstar, bits):
    with pytest.raises(ValueError, match=rf"write mask_bits=\[{bits!r}\]"):
        read_apstar(apstar, mask_bits=bits)


@pytest.mark.parametrize("error", [0, -1, np.nan, np.inf, 2e10])
def test_impossible_and_huge_errors_are_masked(tmp_path, arrays, error):
    arrays[1][0, 7] = error
    assert list(np.flatnonzero(read_apstar(write(tmp_path / "a.fits", arrays)).mask)) == [7]


@pytest.mark.parametrize(("error", "masked"), [(1.9e5, []), (2.1e5, [7])])
def test_huge_errors_are_those_of_100_000_times_the_median(tmp_path, arrays, error, masked):
    """The median is 2."""
    arrays[1][0, 7] = error
    assert list(np.flatnonzero(read_apstar(write(tmp_path / "a.fits", arrays)).mask)) == masked


def test_huge_errors_are_seen_also_when_most_pixels_have_them(tmp_path, arrays):
    arrays[1][0, 100:], arrays[2][0, 100:450] = 2e10, 1
    assert read_apstar(write(tmp_path / "a.fits", arrays)).mask.sum() == 400


def test_flux_that_is_not_a_number_is_masked(tmp_path, arrays):
    arrays[0][0, 7] = np.nan
    assert list(np.flatnonzero(read_apstar(write(tmp_path / "a.fits", arrays)).mask)) == [7]


def test_row_that_is_all_bad_is_read(tmp_path, arrays):
    arrays[2][0] = 1
    assert read_apstar(write(tmp_path / "a.fits", arrays)).mask.all()


@pytest.mark.parametrize(("row", "state"), [(1, "is empty"), (3, "does not exist"), (-1, "does not exist")])
def test_absent_row_lists_those_that_exist(tmp_path, arrays, row, state):
    arrays[0][1] = 0
    with pytest.raises(FileFormatError, match=rf"row {row} of .* {state}; rows with a spectrum: 0, 2 "):
        read_apstar(write(tmp_path / "a.fits", arrays), row=row)


def test_row_must_be_a_number(apstar):
    with pytest.raises(TypeError):
        read_apstar(apstar, row="visits")


def test_single_visit_may_have_one_dimension(tmp_path, arrays):
    path = write(tmp_path / "a.fits", [a[0] for a in arrays])
    assert read_apstar(path).flux.shape == (N,)
    with pytest.raises(FileFormatError, match=r"rows with a spectrum: 0 "):
        read_apstar(path, row=1)


@pytest.mark.parametrize("kind", ["str", "open file", "HDU list", "compressed"])
def test_files_come_in_many_ways(apstar, tmp_path, kind):
    expected, content = read_apstar(apstar).flux, apstar.read_bytes()
    if kind == "HDU list":
        with fits.open(apstar) as hdus:
            flux = read_apstar(hdus).flux
    elif kind == "compressed":
        (tmp_path / "a.fits.gz").write_bytes(gzip.compress(content))
        flux = read_apstar(tmp_path / "a.fits.gz").flux
    else:
        flux = read_apstar(str(apstar) if kind == "str" else io.BytesIO(content)).flux
    np.testing.assert_array_equal(flux, expected)


# -- aspcapStar ------------------------------------------------------------
def test_normalised_flux_is_dimensionless(aspcapstar):
    spectrum = read_aspcapstar(aspcapstar)
    assert spectrum.flux.unit == u.dimensionless_unscaled
    assert spectrum.flux.shape == (N,)


def test_pixels_between_detectors_are_masked(aspcapstar):
    np.testing.assert_array_equal(np.flatnonzero(read_aspcapstar(aspcapstar).mask), np.arange(20))


def test_best_fit_is_kept(aspcapstar):
    meta = read_aspcapstar(aspcapstar).meta
    np.testing.assert_allclose(meta["aspcap_model"][20:], 0.9)
    assert meta["bitmask"] is None
    assert meta["aspcap_model"].dtype.isnative


def test_bits_are_used_where_there_are_any(tmp_path):
    flux, bits = np.ones(N), np.arange(N) == 33
    path = write(tmp_path / "a.fits", [flux, 0.01 * flux, flux, bits.astype(np.int16)])
    assert list(np.flatnonzero(read_aspcapstar(path).mask)) == [33]


def test_table_after_the_model_is_no_hindrance(aspcapstar):
    with fits.open(aspcapstar, mode="append") as hdus:
        hdus.append(fits.BinTableHDU.from_columns([fits.Column("PARAM", "E", array=[1.0])]))
    assert read_aspcapstar(aspcapstar).meta["bitmask"] is None


# -- apVisit ---------------------------------------------------------------
def test_detectors_are_joined_in_order_of_wavelength(apvisit):
    spectrum = read_apvisit(apvisit, velocity=0 * KMS)
    np.testing.assert_allclose(spectrum.spectral_axis.to_value(u.AA), np.sort(chips().ravel()), rtol=1e-14)
    np.testing.assert_allclose(spectrum.flux.value, spectrum.spectral_axis.value / 1e4, rtol=1e-12)


def test_bits_stay_with_their_pixels(apvisit):
    raw = np.arange(150) % 2 << 13
    np.testing.assert_array_equal(read_apvisit(apvisit).meta["bitmask"], raw[::-1])


def test_velocity_of_the_observatory_is_taken_out(apvisit):
    ratio = read_apvisit(apvisit, velocity=0 * KMS).spectral_axis / read_apvisit(apvisit).spectral_axis
    np.testing.assert_allclose(ratio, 1 + 30 / 299792.458, rtol=1e-13)


def test_shift_agrees_with_astropy(apvisit):
    velocity = 120 * KMS
    spectrum = read_apvisit(apvisit, velocity=velocity)
    rest = chips().ravel().min() * u.AA / (1 + u.Quantity(velocity).to_value(u.one, u.doppler_redshift()))
    # The redshift of astropy is relativistic; at 120 km/s that makes 1e-7.
    assert u.isclose(spectrum.spectral_axis[0], rest, rtol=2e-7)


@pytest.mark.parametrize("velocity", [30 * KMS, 30_000 * u.m / u.s])
def test_velocity_can_be_given_in_any_unit(apvisit, velocity):
    spectrum = read_apvisit(apvisit, velocity=velocity)
    np.testing.assert_allclose(spectrum.spectral_axis, read_apvisit(apvisit).spectral_axis, rtol=1e-14)
    assert u.isclose(spectrum.meta["velocity"], 30 * KMS)


@pytest.mark.parametrize("velocity", [30.0, 3 * u.m, [1, 2] * KMS, np.nan * KMS, 4e5 * KMS, "fast"])
def test_what_is_no_velocity_is_refused(apvisit, velocity):
    with pytest.raises(ValueError, match=r"velocity must be one velocity below that of light"):
        read_apvisit(apvisit, velocity=velocity)


@pytest.mark.parametrize("cards", [{}, {"VHELIO": 3.0}, {"VRAD": 99999.0}, {"VRAD": "none"}], ids=str)
def test_missing_velocity_is_not_guessed(tmp_path, cards):
    wave = chips()
    path = write(tmp_path / "a.fits", [wave, wave, wave.astype(np.int16), wave], cards, {})
    with pytest.raises(FileFormatError, match=r"no usable VRAD .* velocity="):
        read_apvisit(path)
    assert read_apvisit(path, velocity=0 * KMS).meta["velocity"] == 0 * KMS


def test_overlapping_wavelengths_are_refused(tmp_path):
    wave = np.repeat(chips()[:1], 3, axis=0)
    path = write(tmp_path / "a.fits", [wave, wave, wave.astype(np.int16), wave], {"VRAD": 0.0}, {})
    with pytest.raises(FileFormatError, match=r"must be positive and differ"):
        read_apvisit(path)


# -- the real star ---------------------------------------------------------
def test_k_giant_is_at_rest(k_giant):
    """The shift that aligns one magnesium line, 15753.29 Angstrom in vacuum, is zero."""
    spectrum = read_apvisit(k_giant)
    axis, flux = spectrum.spectral_axis.to_value(u.AA), spectrum.flux.value
    near = np.abs(axis - 15753.29) < 0.8
    depth = flux[near].max() - flux[near]
    assert np.average(axis[near], weights=depth) == pytest.approx(15753.29, abs=0.15)  # VHELIO would be 0.77 off


def test_k_giant_is_what_its_header_says(k_giant):
    spectrum = read_apvisit(k_giant)
    assert spectrum.meta["object"] == "2M00242666+5341178"
    assert spectrum.meta["telescope"] == "apo25m"
    assert spectrum.meta["velocity"] == -67.472 * KMS
    good = ~spectrum.mask
    assert 0.93 < good.mean() < 0.96
    snr = np.median(spectrum.flux.value[good] / spectrum.uncertainty.array[good])
    assert snr == pytest.approx(spectrum.meta["snr"], rel=0.2)


def test_k_giant_covers_the_apogee_grid(k_giant):
    spectrum, grid = read_apvisit(k_giant), apogee_grid()
    flat = Spectrum(
        flux=spectrum.flux.value * u.one,
        spectral_axis=spectrum.spectral_axis,
        uncertainty=type(spectrum.uncertainty)(spectrum.uncertainty.array),
        mask=spectrum.mask,
    )
    pixels = to_pixels(flat, grid)
    assert pixels.n_good > 0.94 * grid.n_pixels
    assert to_spectrum(pixels.flux, grid, ivar=pixels.ivar).mask.sum() == grid.n_pixels - pixels.n_good


# -- the registry of specutils ---------------------------------------------
@pytest.mark.parametrize("name", ["apStar", "aspcapStar", "apVisit"])
def test_readers_are_registered_by_name(request, name):
    path = request.getfixturevalue(name.lower())
    spectrum = Spectrum.read(str(path), format=f"cyclestarnet {name}")
    assert spectrum.meta["object"] == "2M1"
    assert len(SpectrumList.read(str(path), format=f"cyclestarnet {name}")) == 1


def test_options_reach_registered_readers(apstar):
    assert Spectrum.read(str(apstar), format="cyclestarnet apStar", row=2).meta["row"] == 2


def test_our_reader_comes_before_that_of_specutils(k_giant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other formats that are tried
        ours, theirs = Spectrum.read(k_giant), Spectrum.read(k_giant, format="APOGEE apVisit")
    assert "bitmask" in ours.meta
    assert "bitmask" not in theirs.meta


def test_visits_of_old_releases_are_recognised(tmp_path, k_giant):
    """Their headers do not name the survey, so that specutils does not know them."""
    with fits.open(k_giant) as visit:
        del visit[0].header["SURVEY"]
        visit.writeto(tmp_path / "visit.fits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other formats that are tried
        spectrum = Spectrum.read(tmp_path / "visit.fits")
    assert spectrum.meta["velocity"].value == pytest.approx(-67.472)


# -- damaged and foreign files ---------------------------------------------
READERS = [(read_apstar, "apStar"), (read_aspcapstar, "aspcapStar"), (read_apvisit, "apVisit")]


@pytest.mark.parametrize(("reader", "name"), READERS)
def test_missing_file_is_not_found(tmp_path, reader, name):
    with pytest.raises(FileNotFoundError, match=r"nothing.fits"):
        reader(tmp_path / "nothing.fits")


@pytest.mark.parametrize(("reader", "name"), READERS)
def test_directory_is_refused(tmp_path, reader, name):
    with pytest.raises(FileFormatError, match=rf"is a directory, but an {name} FITS file was expected"):
        reader(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(10_000), b"PK\x03\x04" + bytes(100), b"\x1f\x8b" + bytes(50)])
@pytest.mark.parametrize(("reader", "name"), READERS)
def test_foreign_file_is_refused(tmp_path, content, reader, name):
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"a.fits cannot be read .* but an {name} FITS file was expected"):
        reader(path)


@pytest.mark.parametrize(("reader", "name"), READERS)
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.3, 0.5, 0.75, 0.9, 0.999])
def test_truncated_file_is_refused_without_a_warning(request, tmp_path, kept, reader, name):
    content = request.getfixturevalue(name.lower()).read_bytes()
    path = tmp_path / "cut.fits"
    path.write_bytes(content[: int(kept * len(content))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FileFormatError, match=r"cut.fits"):
            reader(path)


def test_file_that_is_cut_after_the_wanted_part_is_refused(tmp_path, arrays):
    path = write(tmp_path / "a.fits", [*arrays, *arrays])
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(FileFormatError, match=r"truncated"):
        read_apstar(path)


@pytest.mark.parametrize(
    ("reader", "other", "message"),
    [
        (read_apstar, "apvisit", "Use read_apvisit"),
        (read_apstar, "aspcapstar", "Use read_aspcapstar"),
        (read_apvisit, "apstar", "but an apVisit FITS file was expected"),
        (read_apvisit, "aspcapstar", "but an apVisit FITS file was expected"),
        (read_aspcapstar, "apstar", "Use read_apstar"),
        (read_aspcapstar, "apvisit", "Use read_apstar or read_apvisit"),
    ],
)
def test_other_kind_of_file_is_refused(request, reader, other, message):
    with pytest.raises(FileFormatError, match=message):
        reader(request.getfixturevalue(other))


def test_full_apstar_given_to_the_visit_reader(tmp_path, arrays):
    path = write(tmp_path / "a.fits", [*arrays, np.zeros((3, N))])
    with pytest.raises(FileFormatError, match=r"Use read_apstar"):
        read_apvisit(path)


@pytest.mark.parametrize("card", [{"CRVAL1": 15100.0}, {"CDELT1": 0.2}, {"CDELT1": -6e-6}])
def test_grid_that_is_not_logarithmic_is_refused(tmp_path, arrays, card):
    with pytest.raises(FileFormatError, match=r"are not the log10"):
        read_apstar(write(tmp_path / "a.fits", arrays, header=GRID | card))


def test_broken_card_is_refused(apstar):
    apstar.write_bytes(
        apstar.read_bytes().replace(b"CRVAL1  =                4.179", b"CRVAL1  =               4.'.9z")
    )
    with pytest.raises(FileFormatError, match=r"cannot be read .*CRVAL1"):
        read_apstar(apstar)


def test_images_of_unequal_shapes_are_refused(tmp_path, arrays):
    images = [arrays[0], arrays[1][:, :-1], arrays[2]]
    with pytest.raises(FileFormatError, match=r"have the shapes \[\(3, 500\), \(3, 499\)"):
        read_apstar(write(tmp_path / "a.fits", images))


def test_table_is_no_image(tmp_path):
    table = fits.BinTableHDU.from_columns([fits.Column("flux", "E", array=[1.0])])
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "a.fits")
    with pytest.raises(FileFormatError, match=r"has 0 images in its first HDUs, but an apStar"):
        read_apstar(tmp_path / "a.fits")


def test_rows_of_normalised_spectra_are_refused(tmp_path):
    with pytest.raises(FileFormatError, match=r"must have one row"):
        read_aspcapstar(write(tmp_path / "a.fits", [np.ones((2, N))] * 3))


# -- whole files of the survey, where they are at hand -----------------------
APSTARS = [("2M17335483-2753043", 5, 154.2), ("2M19485057+5005279", 1, 137.5)]


@pytest.mark.needs_shared
@pytest.mark.parametrize(("star", "rows", "snr"), APSTARS)
def test_dr17_star_is_read(shared, star, rows, snr):
    spectrum = read_apstar(shared / f"data/apogee/real/apStar-dr17-{star}.fits")
    assert spectrum.flux.shape == (8575,)
    assert spectrum.meta["apogee_id"] == star
    assert spectrum.meta["snr"] == pytest.approx(snr, abs=0.1)
    with pytest.raises(FileFormatError, match=rf"rows with a spectrum: {', '.join(map(str, range(rows)))} "):
        read_apstar(shared / f"data/apogee/real/apStar-dr17-{star}.fits", row=9)


@pytest.mark.needs_shared
@pytest.mark.parametrize("star", [star for star, _, _ in APSTARS])
def test_good_pixels_of_dr17_are_those_found_independently(shared, star):
    folder = shared / "data/apogee/real"
    truth = np.load(folder / f"apStar-dr17-{star}_normalised.npz")
    spectrum = read_apstar(folder / f"apStar-dr17-{star}.fits")
    index = np.searchsorted(spectrum.spectral_axis.value, truth["wavelength"] * (1 - 1e-7))
    np.testing.assert_array_equal(~spectrum.mask[index], truth["mask"])
