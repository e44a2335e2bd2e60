"""Files of SDSS-V: which of their spectra are read, what is masked, and what is refused."""

import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.io import fits
from specutils import SpectrumList

from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.grid import apogee_grid
from cyclestarnet.io import APOGEE_BAD_BITS, read, read_astrastar, read_mwmstar
from cyclestarnet.spectra import Spectrum, to_pixels

SIZES = {"APOGEE": (4.179, 6e-6, 8575), "BOSS": (3.5523, 1e-4, 4648)}
TABLES = ("BOSS/APO", "BOSS/LCO", "APOGEE/APO", "APOGEE/LCO")


def table(name, snr=None, *, bits=(), in_header=True, data=("flux", "ivar", "pixel_flags"), extra=()):
    """A table to the data model, with one row, or with none where there is no S/N; pixel k has the bits of bits[k]."""
    start, step, n = SIZES[name.split("/")[0]]
    rng = np.random.default_rng(4)
    values = {
        "flux": rng.uniform(50, 100, n),
        "ivar": np.full(n, 0.25),
        "pixel_flags": np.pad(np.array(bits, dtype=float), (0, n - len(bits))),
        "wavelength": 10 ** (start + step * np.arange(n)),
        "continuum": np.full(n, 75.0),
        "model_flux": np.full(n, 0.9),
    }
    n_rows = 0 if snr is None else 1
    telescope = "lco25m" if name.endswith("LCO") else "apo25m"
    columns = [
        fits.Column("sdss_id", "K", array=[42] * n_rows),
        fits.Column("obj", "18A", array=["2M19534321+6705175"] * n_rows),
        fits.Column("telescope", "6A", array=[telescope] * n_rows),
        fits.Column("snr", "E", array=[snr] * n_rows),
        fits.Column("min_mjd", "J", array=[59804] * n_rows),
        fits.Column("max_mjd", "J", array=[59866] * n_rows),
    ]
    for column in (*data, *extra, "wavelength"):
        columns.append(fits.Column(column, f"{n}E", array=np.tile(values[column], (n_rows, 1)), dim=f"({n})"))
    cards = {"OBSRVTRY": name.split("/")[1], "INSTRMNT": name.split("/")[0]}
    if in_header:
        cards |= {"CRVAL": start, "CDELT": step, "CTYPE": "LOG-LINEAR", "CRPIX": 1, "NPIXELS": n}
    return fits.BinTableHDU.from_columns(columns, fits.Header(cards), name=name)


@pytest.fixture
def write(tmp_path):
    """Function that writes a file with S/N of the tables that are not empty."""

    def write(snr, name="mwmStar-0.6.0-42.fits", primary=(), tables=TABLES, **options):
        cards = {"V_ASTRA": "0.6.0", "SDSS_ID": 42, "APOGEEID": ""} | dict(primary)
        first = fits.PrimaryHDU(header=fits.Header(cards))
        hdus = fits.HDUList([first, *(table(hdu, snr.get(hdu), **options) for hdu in tables)])
        hdus.writeto(tmp_path / name, checksum=True)
        return tmp_path / name

    return write


# -- what is read ------------------------------------------------------------------
@pytest.mark.parametrize("name", TABLES)
def test_only_spectrum_is_found_among_empty_tables(write, name):
    spectrum = read_mwmstar(write({name: 80.0}))
    start, step, n = SIZES[name.split("/")[0]]
    assert spectrum.meta["hdu_name"] == name
    assert spectrum.meta["hdu"] == 1 + TABLES.index(name)
    np.testing.assert_allclose(spectrum.spectral_axis.to_value(u.AA), 10 ** (start + step * np.arange(n)), rtol=1e-13)


@pytest.mark.parametrize("name", ["BOSS/LCO", "APOGEE/APO"])
def test_flux_errors_and_wavelengths_are_those_that_specutils_reads(write, name):
    path = write({name: 80.0})
    ours = read_mwmstar(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that it chooses an HDU
        theirs = Spectrum.read(path, format="SDSS-V mwm", hdu=ours.meta["hdu"])
    assert ours.flux.unit == theirs.flux.unit == ours.uncertainty.unit
    np.testing.assert_array_equal(ours.flux.value, theirs.flux.value)
    np.testing.assert_allclose(ours.uncertainty.array**-2, theirs.uncertainty.array)
    np.testing.assert_allclose(ours.spectral_axis.value, theirs.spectral_axis.value, rtol=1e-7)


@pytest.mark.parametrize(
    ("hdu", "found"),
    [
        (None, "APOGEE/LCO"),
        ("APOGEE", "APOGEE/LCO"),
        ("apogee/apo", "APOGEE/APO"),
        (3, "APOGEE/APO"),
        ("BOSS", "BOSS/APO"),
        (1, "BOSS/APO"),
    ],
)
def test_spectrum_is_chosen_by_number_name_or_instrument(write, hdu, found):
    path = write({"BOSS/APO": 300.0, "APOGEE/APO": 80.0, "APOGEE/LCO": 120.0})
    assert read_mwmstar(path, hdu=hdu).meta["hdu_name"] == found


def test_boss_is_read_where_there_is_no_apogee(write):
    assert read_mwmstar(write({"BOSS/LCO": 20.0})).meta["instrument"] == "BOSS"


def test_tables_without_observatories_are_read(write):
    """Newer files have one table for each instrument."""
    path = write({"APOGEE/APO": 90.0}, tables=("BOSS/APO", "APOGEE/APO"))
    assert read_mwmstar(path, hdu=2).meta["snr"] == 90


@pytest.mark.parametrize("hdu", [2, "BOSS/LCO", "BOSS", 0, 9])
def test_empty_table_that_is_asked_for_is_refused(write, hdu):
    with pytest.raises(
        FileFormatError, match=r"42.fits has no spectrum in HDU .* but in these: 3 APOGEE/APO, 4 APOGEE/LCO"
    ):
        read_mwmstar(write({"APOGEE/LCO": 120.0, "APOGEE/APO": 80.0}), hdu=hdu)


def test_wavelengths_come_from_the_column_if_the_header_has_none(write):
    spectrum = read_mwmstar(write({"APOGEE/APO": 80.0}, in_header=False))
    np.testing.assert_allclose(spectrum.spectral_axis.value, 10 ** (4.179 + 6e-6 * np.arange(8575)), rtol=1e-7)
    grid = apogee_grid()
    assert to_pixels(spectrum / u.Quantity(1, spectrum.flux.unit), grid).n_good == grid.n_pixels  # not resampled


def test_metadata_say_what_was_read(write):
    path = write({"APOGEE/LCO": 120.0})
    known = {
        "object": "2M19534321+6705175", "apogee_id": "2M19534321+6705175", "sdss_id": 42, "snr": 120.0,
        "telescope": "lco25m", "instrument": "APOGEE", "file": str(path), "medium": "vacuum", "frame": "rest",
    }  # fmt: skip
    assert known.items() <= read_mwmstar(path).meta.items()


def test_name_of_the_primary_header_goes_first(write):
    assert read_mwmstar(write({"APOGEE/APO": 80.0}, primary={"APOGEEID": "2M1"})).meta["object"] == "2M1"


def test_star_without_a_name_has_its_number(tmp_path, write):
    path = write({"APOGEE/APO": 80.0})
    with fits.open(path) as hdus:
        hdus[3].data["obj"] = ""
        hdus.writeto(tmp_path / "nameless.fits")
    meta = read_mwmstar(tmp_path / "nameless.fits").meta
    assert (meta["object"], meta["apogee_id"], meta["sdss_id"]) == ("42", None, 42)


def test_signal_to_noise_that_is_no_number_is_none(write):
    assert read_mwmstar(write({"APOGEE/APO": np.nan})).meta["snr"] is None


# -- masks -------------------------------------------------------------------------
def test_default_bits_are_those_of_apogee(write):
    spectrum = read_mwmstar(write({"APOGEE/APO": 80.0}, bits=[1 << bit for bit in range(15)]))
    assert np.flatnonzero(spectrum.mask).tolist() == sorted(APOGEE_BAD_BITS.values())
    assert spectrum.meta["bitmask"][14] == 1 << 14


def test_bits_are_chosen(write):
    spectrum = read_mwmstar(write({"APOGEE/APO": 80.0}, bits=[1, 1 << 13, 1 << 12]), mask_bits=["SIG_TELLURIC"])
    assert np.flatnonzero(spectrum.mask).tolist() == [1]


def test_boss_masks_no_bit_unless_told(write):
    path = write({"BOSS/APO": 80.0}, bits=[1, 1 << 23])
    assert not read_mwmstar(path).mask.any()
    assert np.flatnonzero(read_mwmstar(path, mask_bits=[23]).mask).tolist() == [1]


@pytest.mark.parametrize(("column", "value"), [("ivar", 0.0), ("ivar", -1.0), ("ivar", np.nan), ("flux", np.nan)])
def test_impossible_pixels_are_masked(tmp_path, write, column, value):
    with fits.open(write({"APOGEE/APO": 80.0})) as hdus:
        hdus[3].data[column][0, 7] = value
        hdus.writeto(tmp_path / "bad.fits")
    assert np.flatnonzero(read_mwmstar(tmp_path / "bad.fits").mask).tolist() == [7]


def test_masked_pixels_go_to_no_model(write):
    """From the file to the pixels of a model: those of bad bits carry no weight."""
    bits = np.zeros(500)
    bits[330:340] = 1
    spectrum = read_mwmstar(write({"APOGEE/APO": 80.0}, bits=bits))
    pixels = to_pixels(spectrum / u.Quantity(1, spectrum.flux.unit), apogee_grid())
    assert np.flatnonzero(pixels.ivar == 0).tolist() == list(range(8, 18))


# -- astraStar ---------------------------------------------------------------------
def test_best_fit_is_not_taken_for_an_observation(write):
    path = write({"APOGEE/APO": 80.0}, "astraStarASPCAP-0.6.0-42.fits", data=("model_flux", "continuum"))
    with pytest.raises(
        FileFormatError, match=r"astraStarASPCAP-0.6.0-42.fits: .* no observed flux; read the mwmStar file"
    ):
        read_astrastar(path)


def test_observed_flux_of_a_pipeline_is_read_with_its_best_fit(write):
    path = write({"APOGEE/LCO": 80.0}, "astraStarASPCAP-0.6.0-42.fits", extra=("model_flux", "continuum"))
    spectrum = read_astrastar(path)
    np.testing.assert_array_equal(spectrum.flux, read_mwmstar(path).flux)
    np.testing.assert_allclose(spectrum.meta["model_flux"], 0.9)
    np.testing.assert_allclose(spectrum.meta["continuum"], 75)


# -- doors -------------------------------------------------------------------------
def test_kind_is_told_by_the_name(write):
    assert read(write({"BOSS/APO": 20.0, "APOGEE/APO": 80.0}), hdu="BOSS").meta["instrument"] == "BOSS"
    path = write({"APOGEE/APO": 80.0}, "astraStarThePayne-0.6.0-42.fits", data=("model_flux",))
    with pytest.raises(FileFormatError, match=r"no observed flux"):
        read(path)


def test_unknown_kind_is_told_what_can_be_read(tmp_path):
    (tmp_path / "mwmVisit-0.6.0-42.fits").touch()
    with pytest.raises(
        FileFormatError, match=r"mwmVisit.*apStar-…, asStar-…, aspcapStar-….*mwmStar-… or astraStarPIPEL"
    ):
        read(tmp_path / "mwmVisit-0.6.0-42.fits")


def test_readers_are_registered(write):
    path = write({"BOSS/APO": 20.0, "APOGEE/APO": 80.0, "APOGEE/LCO": 90.0}, extra=("model_flux", "continuum"))
    for name in ("mwmStar", "astraStar"):
        assert Spectrum.read(str(path), format=f"cyclestarnet {name}", hdu=1).meta["hdu_name"] == "BOSS/APO"
        spectra = SpectrumList.read(str(path), format=f"cyclestarnet {name}")
        assert [s.meta["hdu_name"] for s in spectra] == ["APOGEE/LCO", "APOGEE/APO", "BOSS/APO"]


# -- damaged and foreign files -----------------------------------------------------
READERS = [(read_mwmstar, "mwmStar"), (read_astrastar, "astraStar")]


def test_star_that_was_not_observed_is_refused(write):
    with pytest.raises(FileFormatError, match=r"42.fits has no spectrum: its tables are empty"):
        read_mwmstar(write({}))


@pytest.mark.parametrize(("reader", "kind"), READERS)
def test_missing_file_is_not_found(tmp_path, reader, kind):
    with pytest.raises(FileNotFoundError, match=r"nothing.fits"):
        reader(tmp_path / "nothing.fits")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(10_000)])
@pytest.mark.parametrize(("reader", "kind"), READERS)
def test_foreign_file_is_refused(tmp_path, content, reader, kind):
    path = tmp_path / "a.fits"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=rf"a.fits cannot be read .* but an {kind} FITS file was expected"):
        reader(path)


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.75, 0.99])
def test_truncated_file_is_refused_without_a_warning(write, kept):
    path = write({"APOGEE/APO": 80.0})
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FileFormatError, match=r"42.fits"):
            read_mwmstar(path)


def test_images_are_no_tables(tmp_path):
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones((1, 10)))]).writeto(tmp_path / "a.fits")
    with pytest.raises(FileFormatError, match=r"a.fits: an mwmStar file has a table for each instrument"):
        read_mwmstar(tmp_path / "a.fits")


def test_table_of_something_else_is_refused_with_its_columns(tmp_path):
    other = fits.BinTableHDU.from_columns([fits.Column("teff", "E", array=[4500.0])], name="LABELS")
    fits.HDUList([fits.PrimaryHDU(), other]).writeto(tmp_path / "a.fits")
    with pytest.raises(FileFormatError, match=r"a.fits: .* table 'LABELS' of this file has \['teff'\]"):
        read_mwmstar(tmp_path / "a.fits")


def test_table_without_wavelengths_is_refused(tmp_path):
    columns = [fits.Column(name, "10E", array=np.ones((1, 10))) for name in ("flux", "ivar")]
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="APOGEE/APO")]
    fits.HDUList(hdus).writeto(tmp_path / "a.fits")
    with pytest.raises(FileFormatError, match=r"'APOGEE/APO' has no usable wavelengths: neither CRVAL and CDELT"):
        read_mwmstar(tmp_path / "a.fits")
