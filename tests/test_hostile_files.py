"""Damaged files, and files made to do harm, end in errors of this package that name the file, in good time."""

import gzip
import json
import os
import signal
import time
import warnings

import astropy.units as u
import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.table import QTable, Table

from cyclestarnet import FileFormatError, read_results, write_results
from cyclestarnet.exceptions import CycleStarNetWarning
from cyclestarnet.io import TrainingSet, read, star_sources, write_training_set
from cyclestarnet.journal import Journal
from cyclestarnet.lines import FeatureMask, read_line_list
from cyclestarnet.reading import hdf5
from cyclestarnet.reading.tables import read_table
from cyclestarnet.training.config import example_config, read_config
from cyclestarnet.training.toml import ConfigError

# -- HDF5 --------------------------------------------------------------------------------
KINDS = {"spectra": ("f4", 1.0), "spectra_err": ("f4", 0.01), "spectra_msk": ("u1", 1)}


@pytest.fixture
def h5(tmp_path):
    path = tmp_path / "set.h5"
    with h5py.File(path, "w") as file:
        for kind, (dtype, value) in KINDS.items():
            file[f"{kind} train"] = np.full((6, 20), value, dtype)
        file["snr train"] = np.full(6, 100.0)
        file.attrs["label_names"] = ["teff", "logg"]
    return path


def changed(path, change):
    with h5py.File(path, "a") as file:
        change(file)
    return path


def external_link(file):
    del file["snr train"]
    file["snr train"] = h5py.ExternalLink("/etc/other.h5", "snr")


def soft_link(file):
    file["snr train"][...] = 1
    file["chi2 train"] = h5py.SoftLink("/snr train")


def external_storage(file):
    del file["snr train"]
    file.create_dataset("snr train", (6,), "f8", external=[("/etc/passwd", 0, 48)])


def virtual(file):
    del file["snr train"]
    layout = h5py.VirtualLayout((6,), "f8")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "snr", (6,))
    file.create_virtual_dataset("snr train", layout)


def never_written(file):
    del file["spectra train"]
    file.create_dataset("spectra train", (2**40, 20), "f4", chunks=(64, 20))


def never_allocated(file):
    del file["spectra_err train"]
    file.create_dataset("spectra_err train", (6, 20), "f4")


def of_objects(file):
    file["chi2 train"] = np.array([b"a", b"bb"] * 3, dtype=h5py.string_dtype())


def one_dimension_of_text(file):
    file.attrs["label_names"] = "teff"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external_link, "'snr train' of .* is a link to somewhere else"),
        (soft_link, "'chi2 train' of .* is a link to somewhere else"),
        (external_storage, "'snr train' of .* has its data in other files"),
        (virtual, "'snr train' of .* has its data in other files"),
        (never_written, "chunks of data, but they are not all in the file"),
        (never_allocated, "'spectra_err train' of .* bytes, but they are not in the file"),
        (of_objects, "'chi2 train' of .* must hold numbers"),
        (one_dimension_of_text, "label_names of .* must be different names"),
    ],
)
def test_training_set_that_is_not_all_there(h5, change, message):
    path = changed(h5, change)
    with pytest.raises(FileFormatError, match=message) as caught:
        TrainingSet(path).rows()
    assert "set.h5" in str(caught.value)


def test_names_of_stars_are_texts(h5):
    changed(h5, lambda file: file.update({"names train": ["a", "bb"] * 3}))
    assert TrainingSet(h5).names == ("a", "bb") * 3
    changed(h5, lambda file: file.update({"names val": np.arange(6)}))
    changed(h5, lambda file: [file.copy(f"{kind} train", f"{kind} val") for kind in KINDS])
    with pytest.raises(FileFormatError, match=r"'names val' of .*set\.h5 must be a list of texts"):
        _ = TrainingSet(h5, split="val").names


def test_text_that_libhdf5_reads_for_ever(h5, monkeypatch):
    monkeypatch.setattr(hdf5, "LONGEST_LOOK", 2.0)
    content = bytearray(h5.read_bytes())
    place = content.index(b"label_names")
    where = content.index(b"\x04\x00\x00\x00", place)
    content[where + 3] = 0x80  # the length of "teff", which is now 2 GB
    h5.write_bytes(content)
    begun = time.monotonic()
    with pytest.raises(FileFormatError, match=r"set\.h5"):
        TrainingSet(h5)
    assert time.monotonic() - begun < 30


def test_look_that_does_not_end(h5, monkeypatch):
    monkeypatch.setattr(hdf5, "LONGEST_LOOK", 0.2)
    monkeypatch.setattr(hdf5, "_survey", lambda path: time.sleep(60))
    with pytest.raises(FileFormatError, match=r"set\.h5 is damaged: libhdf5 does not come to an end"):
        TrainingSet(h5)


def test_look_that_crashes(h5, monkeypatch):
    monkeypatch.setattr(hdf5, "_survey", lambda path: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(FileFormatError, match=r"set\.h5 is damaged: libhdf5 crashes"):
        TrainingSet(h5)


def test_file_is_looked_at_once(h5, monkeypatch):
    looks = []
    monkeypatch.setattr(hdf5, "_look", lambda path, seconds: looks.append(path) or {})
    table = TrainingSet(h5)
    table.read(0, 2)
    assert len(looks) == 1
    changed(h5, lambda file: file.attrs.update(a=1))
    table.read(0, 2)
    assert len(looks) == 2


def test_other_users_of_hdf5_say_so_too(h5):
    changed(h5, lambda file: file.update({"wavelength": np.arange(3.0)}))
    with pytest.raises(ValueError, match=r"'wavelength' of .*set\.h5 has the shape \(3,\)"):
        star_sources(TrainingSet(h5))
    h5.write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match=r"set\.h5 is truncated or no HDF5 file"):
        star_sources(h5)


def test_a_split_that_is_there_is_kept(h5, k_giant, pretrained):
    with pytest.raises(FileExistsError, match="has the split 'train' already"):
        write_training_set(h5, [k_giant], grid=pretrained.grid, recipe=pretrained.recipe, progress=False)


# -- FITS ----------------------------------------------------------------------------------
@pytest.fixture
def star(tmp_path):
    header = fits.Header({"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1})
    flux = np.full((3, 50), 70.0)
    images = [fits.ImageHDU(image, header) for image in (flux, flux / 50, np.zeros((3, 50), "i2"))]
    fits.HDUList([fits.PrimaryHDU(header=fits.Header({"SNR": 90.0})), *images]).writeto(tmp_path / "apStar-1.fits")
    return tmp_path / "apStar-1.fits"


def with_card(path, name, value):
    """The file with another value in all cards of a name, byte by byte: astropy itself would not write some."""
    content = path.read_bytes()
    places = [k for k in range(0, len(content), 80) if content[k : k + 8].decode("latin-1").rstrip() == name]
    assert places
    for k in places:
        content = content[: k + 8] + f"= {value:>20}".ljust(72).encode() + content[k + 80 :]
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NAXIS", "2000000000"),
        ("NAXIS", "9"),
        ("NAXIS1", "2000000000"),
        ("NAXIS2", "-1"),
        ("NAXIS1", "9" * 20),
        ("GCOUNT", "2000000000"),
        ("PCOUNT", "20000000000"),
        ("BITPIX", "-6400000"),
        ("CRPIX1", "1e19"),
        ("CRPIX1", "-1e19"),
        ("CRPIX1", "T"),
        ("CDELT1", "T"),
        ("CRVAL1", "1e400"),
        ("CRVAL1", "'4.179'"),
    ],
)
def test_headers_that_ask_for_the_impossible(star, name, value):
    begun = time.monotonic()
    with pytest.raises(FileFormatError, match=r"apStar-1\.fits"):
        read(with_card(star, name, value))
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("value", ["T", "'ninety'", "1e400"])
def test_impossible_ratio_is_none(star, value):
    assert read(with_card(star, "SNR", value)).meta["snr"] is None


@pytest.mark.parametrize("value", ["T", "'fast'", "1e19"])
def test_velocity_that_is_none(tmp_path, value):
    flux = np.full((3, 50), 70.0)
    wavelength = 15000 + np.arange(150.0).reshape(3, 50)
    images = [fits.ImageHDU(image) for image in (flux, flux, np.zeros((3, 50), int), wavelength)]
    path = tmp_path / "apVisit-1.fits"
    fits.HDUList([fits.PrimaryHDU(header=fits.Header({"VRAD": 10.0})), *images]).writeto(path)
    assert read(path).meta["velocity"] == 10 * u.km / u.s
    with pytest.raises(FileFormatError, match=r"apVisit-1\.fits has no usable VRAD"):
        read(with_card(path, "VRAD", value))


@pytest.mark.parametrize(("flux", "error"), [(0.0, 0.01), (0.9, 0.0), (np.nan, 0.01), (0.9, np.inf)])
@pytest.mark.parametrize("kind", ["apStar", "aspcapStar", "apVisit"])
def test_spectrum_of_nothing(tmp_path, kind, flux, error):
    header = fits.Header({"CRVAL1": 4.179, "CDELT1": 6e-6})
    shape = (50,) if kind == "aspcapStar" else (3, 50)
    third = np.ones(shape) if kind == "aspcapStar" else np.zeros(shape, int)
    arrays = [np.full(shape, flux), np.full(shape, error), third]
    if kind == "apVisit":
        arrays.append(15000 + np.arange(150.0).reshape(shape))
    primary = fits.PrimaryHDU(header=fits.Header({"VRAD": 0.0}))
    path = tmp_path / f"{kind}-1.fits"
    fits.HDUList([primary, *(fits.ImageHDU(array, header) for array in arrays)]).writeto(path)
    with pytest.raises(FileFormatError, match=rf"{kind}-1\.fits"):
        read(path)


def test_compressed_file_is_checked_too(star, tmp_path):
    with_card(star, "NAXIS", "2000000000")
    path = tmp_path / "apStar-2.fits"
    path.write_bytes(gzip.compress(star.read_bytes()))
    with pytest.raises(FileFormatError, match=r"apStar-2\.fits cannot be read .*NAXIS = 2000000000"):
        read(path)


# -- tables --------------------------------------------------------------------------------
TABLE = QTable({"object": ["a", "b"], "teff": [4500.0, 4600.0] * u.K, "logg": [2.5, 1.0] * u.dex(u.cm / u.s**2)})


def ecsv(path, metadata, body="teff\n4500.0\n"):
    header = f"%ECSV 1.0\n---\n{metadata}"
    path.write_text("".join(f"# {line}\n" for line in header.splitlines()) + body)
    return path


LAUGHS = "".join(f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 10) if k else 1}]\n" for k in range(12))
METADATA = {
    "array of objects": "datatype: [{name: teff, datatype: float64}]\n"
    "meta: {a: !numpy.ndarray {buffer: !!binary AQEBAQEBAQE=, dtype: object, shape: [1], order: C}}",
    "tuple as a key": "datatype: [{name: teff, datatype: float64}]\nmeta: {? !!python/tuple [1, 2] : 3}",
    "values by the billion": "datatype: [{name: teff, datatype: float64}]\n" + LAUGHS,
    "unit that is computed for ever": "datatype: [{name: teff, unit: 10**(99999999) m, datatype: float64}]",
    "deep": "datatype: [{name: teff, datatype: float64}]\nmeta: " + "[" * 5000 + "]" * 5000,
    "objects": "datatype: [{name: teff, datatype: string, subtype: json}]",
    "within itself": "datatype: [{name: teff, datatype: float64}]\nmeta: &a {b: *a}",
    "nothing": "",
}


@pytest.mark.parametrize("metadata", METADATA.values(), ids=list(METADATA))
@pytest.mark.parametrize("reader", [read_results, FeatureMask.read, read_table])
def test_metadata_of_tables(tmp_path, metadata, reader):
    begun = time.monotonic()
    with pytest.raises(FileFormatError, match=r"results\.ecsv"):
        reader(ecsv(tmp_path / "results.ecsv", metadata))
    assert time.monotonic() - begun < 10


def test_metadata_of_fits_and_parquet(tmp_path):
    evil = METADATA["array of objects"]
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"teff": [4500.0]}).replace_schema_metadata({"table_meta_yaml": evil})
    pq.write_table(table, tmp_path / "results.parquet")
    hdu = fits.BinTableHDU(Table({"teff": [4500.0]}))
    for line in ("--BEGIN-ASTROPY-SERIALIZED-COLUMNS--", *evil.splitlines(), "--END-ASTROPY-SERIALIZED-COLUMNS--"):
        for k in range(0, len(line), 70):
            hdu.header["COMMENT"] = line[k : k + 70] + ("\\" if k + 70 < len(line) else "")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "results.fits")
    for name in ("results.parquet", "results.fits"):
        with pytest.raises(FileFormatError, match=rf"{name} is damaged or no table: its metadata have the tag"):
            read_results(tmp_path / name)


def test_values_may_be_named_twice(tmp_path):
    metadata = "datatype: [{name: teff, datatype: float64, unit: &unit K}]\nmeta: {unit of errors: *unit}"
    table = read_table(ecsv(tmp_path / "results.ecsv", metadata))
    assert table["teff"].unit == u.K
    assert table.meta["unit of errors"] == "K"


@pytest.mark.parametrize("suffix", [".fits", ".parquet"])
def test_no_change_of_a_byte_gives_other_results(tmp_path, rng, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"results{suffix}"
    write_results(TABLE, path)
    content = path.read_bytes()
    place = content.index(np.array([4500.0], ">f8" if suffix == ".fits" else "<f8").tobytes())
    changed = bytearray(content)
    changed[place + 3] ^= 1
    path.write_bytes(changed)
    with pytest.raises(FileFormatError, match=r"results\..*is damaged"):
        read_results(path)


def test_same_results_make_the_same_file(tmp_path):
    for name in ("a.fits", "b.fits"):
        write_results(TABLE, tmp_path / name)
    assert (tmp_path / "a.fits").read_bytes() == (tmp_path / "b.fits").read_bytes()


def test_results_without_checksums_are_read(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        TABLE.write(tmp_path / "results.fits")
    assert np.all(read_results(tmp_path / "results.fits")["teff"] == TABLE["teff"])


@pytest.mark.parametrize("form", ["1PD(2)", "QJ", "99999999D", "1C", "8X"])
def test_columns_that_are_no_plain_ones(tmp_path, form):
    write_results(TABLE, tmp_path / "results.fits")
    with pytest.raises(FileFormatError, match=r"results\.fits is damaged or no table"):
        read_results(with_card(tmp_path / "results.fits", "TFORM2", f"'{form:8}'"))


def test_label_with_the_unit_of_something_else(tmp_path):
    QTable({"teff": [4500.0] * u.m}).write(tmp_path / "results.ecsv")
    with pytest.raises(FileFormatError, match=r"'teff' of .*results\.ecsv must have the unit 'K', but has 'm'"):
        read_results(tmp_path / "results.ecsv")


@pytest.mark.parametrize("line", ['{"stars": 3, "rows": []}', "[" * 5000 + "]" * 5000, "[3]", "3", '{"stars": [0]}'])
def test_damaged_journal(tmp_path, line):
    path = tmp_path / "labels.ecsv.partial"
    with Journal(path, {"model": "m"}) as journal:
        list(journal.recorded())
        journal.append([0], [[4500.0]])
    path.write_text(path.read_text() + line + "\n" + json.dumps({"stars": [1], "rows": [[1.0]]}) + "\n")
    with Journal(path, {"model": "m"}) as journal:
        assert list(journal.recorded()) == [([0], [[4500.0]])]


# -- configurations ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "a = " + "{b = " * 5000,
        ".".join("a" * 3000) + " = 1",
        "[run]\nseed = " + "9" * 5000,
        "[run]\nseed = 99999999999999999999",
        "[training]\nlearning_rate = " + "9" * 400,
        '[run]\nfolder = "a\\u0000b"',
        "a = 2020-13-45",
        "# " + "x" * 2**20,
    ],
)
def test_configurations_that_are_none(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.toml is no valid TOML"):
        read_config(path)


@pytest.mark.parametrize("value", ["1e400", "nan", "-inf"])
def test_number_that_is_none(tmp_path, value):
    for name in ("observed.h5", "synthetic.h5"):
        (tmp_path / name).touch()
    path = tmp_path / "run.toml"
    path.write_text(example_config())
    read_config(path)
    path.write_text(example_config().replace("\n[training]\n", f"\n[training]\nflux_mean = {value}\n"))
    with pytest.raises(ConfigError, match=r"\[training\] .*run\.toml"):
        read_config(path)


# -- line lists ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "line",
    [
        "15163.0 19.0 2.67 nan",
        "15163.0 nan 2.67 0.63",
        "inf 19.0 2.67 0.63",
        "1e300 19.0 2.67 0.63",
        "15163.0 1e300 2.67 0.63",
        "15163.0 -26.0 2.67 0.63",
        "15163.0 19.0 1e30 0.63",
        "15163.0 19.0 2.67 1e6",
    ],
)
def test_numbers_that_no_line_has(tmp_path, line):
    (tmp_path / "lines.moog").write_text(f"title\n 15163.067 19.0 2.670 0.630\n {line}\n")
    with pytest.raises(FileFormatError, match=r"lines\.moog, line 3"):
        read_line_list(tmp_path / "lines.moog", medium="air")


@pytest.mark.parametrize("numbers", ["nan, 1.0, 2.0", "15000.0, inf, 2.0", "0.0, -1.0, 2.0", "-1.0, -1.0, 2.0"])
def test_numbers_that_no_line_of_vald_has(tmp_path, numbers):
    (tmp_path / "lines.vald").write_text(f"Elm Ion WL_air(A) log gf Excit(eV)\n'Fe 1', {numbers},\n")
    with pytest.raises(FileFormatError, match=r"lines\.vald, line 2"):
        read_line_list(tmp_path / "lines.vald")


def test_digits_of_another_alphabet(tmp_path):
    text = "0, 1, ², lines selected\nElm Ion WL_air(A) Excit(eV) log gf\n'Fe 1', 15000.0, 2.0, -1.0,\n"
    (tmp_path / "lines.vald").write_text(text, encoding="utf-8")
    with pytest.warns(CycleStarNetWarning, match="ends after 1 lines without the notes"):
        assert len(read_line_list(tmp_path / "lines.vald")) == 1


def test_compressed_list_of_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr("cyclestarnet.lines.line_files.LARGEST_LIST", 10**6)
    (tmp_path / "lines.gz").write_bytes(gzip.compress(b" " * 10**7))
    with pytest.raises(FileFormatError, match=r"lines\.gz has more than 1000000 bytes"):
        read_line_list(tmp_path / "lines.gz", medium="air")


def test_directory_is_no_list(tmp_path):
    with pytest.raises(FileFormatError, match="is a directory"):
        read_line_list(tmp_path, medium="air")
