"""From files to a training set: what is in it, what is left out and why, and that a kill changes nothing."""

import os
import pkgutil
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from importlib import resources
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable, Table
from deaths import LiveOn, lives
from survey_files import CONTINUUM, FIRST, GRID, RECIPE, SIGMA, N, Star, content, save, save_catalogue
from test_io_sdss_v import table as mwm_table

from cyclestarnet.cli import main
from cyclestarnet.datasets import K_GIANT
from cyclestarnet.exceptions import FileFormatError, GridError, SpectrumError
from cyclestarnet.io import (
    StarCuts,
    TrainingSet,
    prepare_training_set,
    read,
    read_apstar,
    summarise_preparation,
    write_training_set,
)
from cyclestarnet.io.catalogue import Catalogue
from cyclestarnet.spectra import Spectrum

STARS = [Star(number, snr=60.0 + number) for number in range(24)]


def prepare(path, spectra, **options):
    options = {"grid": GRID, "recipe": RECIPE, "progress": False} | options
    return prepare_training_set(path, spectra, **options)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "spectra", STARS)
    return tmp_path / "spectra"


@pytest.fixture
def one_split(tmp_path):
    """Function that prepares some stars as one split, and returns the report and the reasons by name of the star."""

    def one_split(spectra, **options):
        report = prepare(tmp_path / "set.h5", spectra, splits={"train": 1}, overwrite=True, **options)
        return report, dict(zip(report["star"].tolist(), report["reason"].tolist(), strict=True))

    return one_split


# -- what is in the set --------------------------------------------------------------
def test_every_star_is_in_its_row(folder, tmp_path):
    report = prepare(tmp_path / "set.h5", folder)
    for split in ("train", "val", "test"):
        found = TrainingSet(tmp_path / "set.h5", split=split, grid=GRID)
        rows = report[report["split"] == split]
        flux, sigma, mask = found.read(0, len(found))
        assert rows["row"].tolist() == list(range(len(found)))
        assert found.names == tuple(rows["star"])
        for k, file in enumerate(rows["file"]):
            star = STARS[int(Path(file).stem[-5:])]
            assert (found.names[k], found.snr[k]) == (star.objid, np.float32(star.snr))
            np.testing.assert_allclose(flux[k], star.normalised, atol=3e-6)
            np.testing.assert_allclose(sigma[k], SIGMA / CONTINUUM[FIRST : FIRST + N], rtol=1e-5)
        assert not mask.any()
    assert np.all(report["split"] != "")


def test_bad_pixels_are_masked_in_the_set(tmp_path, one_split):
    [path] = save(tmp_path, [Star(1)])
    with fits.open(path, mode="update") as hdus:
        hdus[3].data[0, FIRST + 7] = 1
    one_split([path])
    flux, sigma, mask = TrainingSet(tmp_path / "set.h5").read(0, 1)
    assert np.flatnonzero(mask[0]).tolist() == [7]
    assert (flux[0, 7], sigma[0, 7]) == (1, 10)


def test_spectra_that_come_normalised_get_our_continuum(tmp_path, one_split):
    """An aspcapStar file with another continuum: all that is left of it is the shape of its lines."""
    star, header = Star(3), fits.Header({"CRVAL1": 4.179, "CDELT1": 6e-6})
    flux = CONTINUUM / 200
    flux[FIRST : FIRST + N] *= star.normalised
    images = [fits.ImageHDU(values, header) for values in (flux, np.full(200, 0.01), np.ones(200))]
    primary = fits.PrimaryHDU(header=fits.Header({"OBJID": "2M1", "SNR": 100.0}))
    fits.HDUList([primary, *images]).writeto(tmp_path / "aspcapStar-r1-2M1.fits")
    one_split(tmp_path / "aspcapStar-r1-2M1.fits")
    flux, sigma, _ = TrainingSet(tmp_path / "set.h5").read(0, 1)
    np.testing.assert_allclose(flux[0], star.normalised, atol=3e-6)
    np.testing.assert_allclose(sigma[0], 2 / CONTINUUM[FIRST : FIRST + N], rtol=1e-5)


def test_files_of_sdss_v_go_in_by_their_names_and_numbers(tmp_path, one_split):
    primary = fits.PrimaryHDU(header=fits.Header({"SDSS_ID": 42}))
    tables = [mwm_table("BOSS/APO"), mwm_table("APOGEE/APO", 80.0), mwm_table("APOGEE/LCO", 120.0)]
    fits.HDUList([primary, *tables]).writeto(tmp_path / "mwmStar-0.6.0-42.fits")
    catalogue = tmp_path / "astraAllStarASPCAP.fits"
    empty = fits.BinTableHDU.from_columns([fits.Column("sdss_id", "K", array=[])], name="BOSS")
    columns = {"sdss_id": [41, 42], "rchi2": [9.0, 3.0], "v_sini": [2.0, 5.0], "flag_bad": [True, False]}
    fits.HDUList([fits.PrimaryHDU(), empty, fits.table_to_hdu(Table(columns))]).writeto(catalogue)
    report, _ = one_split([tmp_path / "mwmStar-0.6.0-42.fits"], catalogue=catalogue)
    assert (report["star"][0], report["telescope"][0], report["snr"][0]) == ("2M19534321+6705175", "lco25m", 120)
    assert (report["chi2"][0], report["broadening"][0]) == (3, 5 * u.km / u.s)
    assert TrainingSet(tmp_path / "set.h5").chi2 == 3


def test_spectra_in_memory_go_in(tmp_path, one_split):
    spectrum = read_apstar(save(tmp_path, [Star(5)])[0])
    error = StdDevUncertainty(np.full(200, 4.0))
    nameless = Spectrum(spectrum.flux, spectral_axis=spectrum.spectral_axis, uncertainty=error)
    report, _ = one_split([spectrum, nameless])
    flux, _, _ = TrainingSet(tmp_path / "set.h5").read(0, 2)
    np.testing.assert_allclose(flux, [Star(5).normalised] * 2, atol=3e-6)
    median = np.median(CONTINUUM[FIRST : FIRST + N] * Star(5).normalised / 4)
    assert report["snr"].tolist() == pytest.approx([100, median], rel=1e-5)


# -- where files come from -----------------------------------------------------------
@pytest.mark.parametrize("kind", ["folder", "folder of folders", "list", "pattern", "paths", "one file of a list"])
def test_files_come_in_many_ways(folder, tmp_path, kind):
    paths = sorted(folder.glob("*.fits"))
    if kind == "folder of folders":
        (folder / "deep/deeper").mkdir(parents=True)
        for path in paths[12:]:
            path.rename(folder / "deep/deeper" / path.name)
    (tmp_path / "list.txt").write_text("# all\n\n" + "\n".join(f"spectra/{path.name}  " for path in paths))
    spectra = {
        "folder": folder, "folder of folders": str(folder), "list": tmp_path / "list.txt",
        "pattern": f"{folder}/apStar-*.fits", "paths": paths, "one file of a list": paths,
    }[kind]  # fmt: skip
    report = prepare(tmp_path / "set.h5", spectra)
    assert len(report) == 24
    assert not report["reason"].astype(bool).any()


def test_only_fits_files_of_a_folder_are_taken(folder, tmp_path, one_split):
    (folder / "README.txt").write_text("nothing")
    (folder / ".hidden.fits").write_text("nothing")
    (folder / "allStar.fits").write_text("nothing")
    report, _ = one_split(folder)
    assert len(report) == 25
    assert "the name does not tell the kind of file" in report["detail"][0]


@pytest.mark.parametrize(
    ("made", "error", "message"),
    [
        (lambda path: path.mkdir(), FileNotFoundError, "no FITS file in"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), FileFormatError, "no list of paths"),
        (lambda path: path.write_text("\n# none\n"), FileFormatError, "lists no files"),
    ],
)
def test_what_holds_no_files_is_named(tmp_path, made, error, message):
    made(tmp_path / "spectra")
    with pytest.raises(error, match=message):
        prepare(tmp_path / "set.h5", tmp_path / "spectra")


def test_pattern_without_a_match_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing-\*"):
        prepare(tmp_path / "set.h5", f"{tmp_path}/nothing-*")


# -- bad files -----------------------------------------------------------------------
@pytest.fixture
def bad_files(folder):
    """Files that cannot be used, with the reason and a part of the detail."""
    good, cases = content(STARS[0]), {}

    def add(name, data, reason, detail):
        (folder / name).write_bytes(data)
        cases[name] = reason, detail

    add("apStar-empty.fits", b"", "cannot be read", "is it complete?")
    add("apStar-cut.fits", good[: len(good) // 2], "cannot be read", "apStar-cut.fits")
    add("apStar-text.fits", b"no spectrum at all", "cannot be read", "is it complete?")
    add("star.fits", good, "cannot be read", "the name does not tell the kind of file")
    add("apVisit-wrong.fits", good, "cannot be read", "apVisit FITS file was expected")
    optical = good.replace(f"{4.179:>20}".encode(), f"{3.7:>20}".encode())
    assert optical != good
    add("apStar-optical.fits", optical, "not on the grid", "does not overlap")
    for name, hdu, value, reason, detail in (
        ("apStar-masked.fits", 3, 1, "no usable spectrum", "masked"),
        ("apStar-nan.fits", 1, np.nan, "cannot be read", "row 0 of"),
        ("apStar-negative.fits", 1, -50.0, "no usable spectrum", "nowhere positive"),
    ):
        add(name, good, reason, detail)
        with fits.open(folder / name, mode="update") as hdus:
            hdus[hdu].data[:] = value
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "apStar-pipe.fits")
        cases["apStar-pipe.fits"] = "cannot be read", "is no file"
    return cases


def test_bad_files_are_rows_that_say_why_and_change_nothing_else(bad_files, folder, tmp_path):
    good = sorted(folder.glob("apStar-r1-*.fits"))
    gone, place = folder / "apStar-gone.fits", folder / "apStar-folder.fits"
    place.mkdir()
    bad = [folder / name for name in bad_files] + [gone, place]
    mixed = [path for pair in zip(bad, good[: len(bad)], strict=True) for path in pair] + good[len(bad) :]
    report = prepare(tmp_path / "mixed.h5", mixed)
    by_name = {Path(file).name: k for k, file in enumerate(report["file"])}
    cases = bad_files | {
        gone.name: ("cannot be read", f"no file {gone}"),
        place.name: ("cannot be read", f"{place} is no file"),
    }
    for name, (reason, detail) in cases.items():
        assert report["reason"][by_name[name]] == reason, report[by_name[name]]
        assert detail in report["detail"][by_name[name]]
    assert report.meta["left_out"] == dict(Counter(reason for reason, _ in cases.values()))
    prepare(tmp_path / "good.h5", good)
    assert (tmp_path / "mixed.h5").read_bytes() == (tmp_path / "good.h5").read_bytes()


def test_nothing_that_passes_is_an_error_with_a_report(tmp_path):
    paths = save(tmp_path, [Star(1, snr=5.0), Star(2, snr=9.0)])
    with pytest.raises(SpectrumError, match=r"none of 2 spectra passes.*set.report.ecsv tells why: S/N \(2\)"):
        prepare(tmp_path / "set.h5", paths)
    assert Table.read(tmp_path / "set.report.ecsv")["reason"].tolist() == ["S/N", "S/N"]
    assert not list(tmp_path.glob("set.h5*"))


def test_any_exception_of_a_reader_is_a_row(tmp_path, one_split):
    paths = save(tmp_path, [Star(1), Star(2)])
    report, _ = one_split(paths, reader=_reader_that_fails)
    assert report["reason"].tolist() == ["cannot be read", ""]
    assert report["detail"][0] == "ZeroDivisionError: of the reader"


def _reader_that_fails(path):
    if path.endswith("1.fits"):
        raise ZeroDivisionError("of the reader")
    return read(path)


# -- cuts ----------------------------------------------------------------------------
@pytest.mark.parametrize(("snr", "passes"), [(30, False), (30.01, True), (499.9, True), (500, False)])
def test_signal_to_noise_is_between_the_papers_limits(tmp_path, one_split, snr, passes):
    reasons = one_split(save(tmp_path, [Star(1), Star(2, snr=snr)]))[1]
    assert reasons[Star(2).objid] == ("" if passes else "S/N")


def test_file_without_signal_to_noise_gets_that_of_its_pixels(tmp_path, one_split):
    [path] = save(tmp_path, [Star(2)])
    path.write_bytes(path.read_bytes().replace(b"SNR     =", b"XNR     ="))
    report, _ = one_split([path])
    flux = CONTINUUM[FIRST : FIRST + N] * Star(2).normalised
    assert report["snr"][0] == pytest.approx(np.median(flux) / SIGMA, rel=1e-5)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("ASPCAP_CHI2", 49.9, ""),
        ("ASPCAP_CHI2", 50.0, "chi2"),
        ("ASPCAP_CHI2", np.nan, "chi2"),
        ("VSINI", 9.1, ""),
        ("VSINI", 9.2, "broadening"),  # with 4 of VMACRO
        ("VMACRO", 9.9, ""),
        ("VMACRO", 10.0, "broadening"),
        ("VMACRO", -9999.0, "broadening"),  # nothing is known
        ("STARFLAG", 1 << 3, "flags"),
        ("STARFLAG", 1 << 2, ""),
        ("ASPCAPFLAG", 1 << 23, "flags"),
        ("ASPCAPFLAG", 1 << 7, ""),
        ("ASPCAPFLAG", 1 << 40 | 1 << 31, "flags"),
        ("APOGEE_ID", "2M-another-star", "not in the catalogue"),
    ],
)
def test_catalogue_cuts(tmp_path, one_split, column, value, reason):
    stars = [Star(1), Star(2)]
    default = {"APOGEE_ID": stars[1].objid, "VSINI": -9999.0, "VMACRO": 4.0, "ASPCAP_CHI2": 2.0}.get(column, 0)
    values = np.array([default if column != "APOGEE_ID" else stars[0].objid, value])
    catalogue = save_catalogue(tmp_path / "allStar.fits", stars, **{column: values})
    assert one_split(save(tmp_path, stars), catalogue=catalogue)[1] == {stars[0].objid: "", stars[1].objid: reason}


def test_cuts_can_be_changed_or_left_out(tmp_path, one_split):
    stars = [Star(number) for number in range(4)]
    catalogue = save_catalogue(
        tmp_path / "allStar.fits", stars, ASPCAP_CHI2=[60.0, 2.0, 2.0, 2.0], VMACRO=[4.0, 12.0, 4.0, 4.0],
        STARFLAG=[0, 0, 8, 0],
    )  # fmt: skip
    paths = save(tmp_path, stars)
    for cuts, left_out in (
        (StarCuts(), [0, 1, 2]),
        (StarCuts(chi2_max=70), [1, 2]),
        (StarCuts(broadening_max=13_000 * u.m / u.s), [0, 2]),
        (StarCuts(flags=False), [0, 1]),
        (StarCuts(chi2_max=None, broadening_max=None, flags=False), []),
    ):
        report, _ = one_split(paths, catalogue=catalogue, cuts=cuts)
        assert np.flatnonzero(report["reason"]).tolist() == left_out


def test_cuts_that_cannot_be_made_are_told(tmp_path, one_split):
    stars = [Star(1)]
    catalogue = save_catalogue(tmp_path / "a.fits", stars, VSINI=None, VMACRO=None, STARFLAG=None, ASPCAPFLAG=None)
    report, _ = one_split(save(tmp_path, stars), catalogue=catalogue)
    assert report.meta["cuts_not_made"] == {
        "broadening": "the catalogue has no vsini or vmacro",
        "flags": "the catalogue has no starflag or aspcapflag or spectrum_flags or flag_bad",
    }
    report, _ = one_split(save(tmp_path, stars))
    assert report.meta["cuts_not_made"] == dict.fromkeys(("chi2", "broadening", "flags"), "there is no catalogue")


@pytest.mark.parametrize("limit", [0 * u.km / u.s, 10, 10 * u.s])
def test_broadening_is_a_positive_velocity(limit):
    with pytest.raises(ValueError, match="broadening_max must be a positive velocity"):
        StarCuts(broadening_max=limit)


# -- the catalogue -------------------------------------------------------------------
@pytest.mark.parametrize("suffix", ["fits", "csv", "ecsv"])
def test_star_is_found_by_file_then_by_name_and_telescope(tmp_path, suffix):
    path = tmp_path / f"allStar.{suffix}"
    columns = {
        "FILE": ["apStar-a.fits", "asStar-a.fits", "apStar-b.fits"],
        "APOGEE_ID": ["2M1", "2M1", "2M1"],
        "TELESCOPE": ["apo25m", "lco25m", "apo25m"],
        "SNR": [50.0, 90.0, 70.0],
        "VMACRO": [1.0, 2.0, 3.0],
    }
    Table(columns).write(path)
    catalogue = Catalogue(path)
    found = [
        catalogue.find(file="apStar-a.fits", apogee_id="2M1").broadening,
        catalogue.find(file="apStar-other.fits", apogee_id="2M1", telescope="apo25m").broadening,
        catalogue.find(apogee_id="2M1").broadening,
    ]
    assert found == [1, 3, 2]
    assert catalogue.find(apogee_id="2M") is None
    assert len(catalogue) == 3


@pytest.mark.parametrize(
    ("data", "message"), [(b"nothing", "cannot be read as a catalogue"), (None, r"identifies stars.*APOGEE_ID")]
)
def test_what_is_no_catalogue_is_refused(tmp_path, data, message):
    path = tmp_path / "allStar.fits"
    path.write_bytes(data) if data else Table({"teff": [4500.0]}).write(path)
    with pytest.raises(FileFormatError, match=message):
        prepare(tmp_path / "set.h5", save(tmp_path, [Star(1)]), catalogue=path)
    with pytest.raises(FileNotFoundError, match="no catalogue"):
        prepare(tmp_path / "set.h5", save(tmp_path, [Star(1)]), catalogue=tmp_path / "none.fits")


# -- stars, not spectra --------------------------------------------------------------
def test_best_spectrum_of_a_star_is_taken(tmp_path, one_split):
    visits = [Star(number, snr=snr, name="2M1") for number, snr in enumerate((50.0, 90.0, 90.0, 70.0))]
    report, _ = one_split(save(tmp_path, [*visits, Star(9)]))
    assert report["reason"].tolist() == ["duplicate", "", "duplicate", "duplicate", ""]
    assert report["detail"][0] == f"of {tmp_path}/apStar-r1-00001.fits, whose S/N is 90"


def test_best_spectrum_is_the_best_that_passes(tmp_path, one_split):
    report, _ = one_split(save(tmp_path, [Star(1, snr=80.0, name="2M1"), Star(2, snr=600.0, name="2M1")]))
    assert report["reason"].tolist() == ["", "S/N"]


def test_star_that_its_header_does_not_name_is_known_by_its_file(tmp_path, one_split):
    name, nameless = "2M15141711+0044474", tmp_path / "apStar-r6-2M15141711+0044474.fits"
    nameless.write_bytes(content(Star(1, snr=50.0)).replace(b"OBJID   =", b"NOBODY  ="))
    report, _ = one_split([nameless, *save(tmp_path, [Star(2, name=name)])])
    assert report["star"].tolist() == [name, name]
    assert report["reason"].tolist() == ["duplicate", ""]


def test_all_spectra_of_a_star_go_to_one_split(tmp_path):
    stars = [Star(number, name=f"2M{number % 10}") for number in range(40)]
    splits = {"train": 0.4, "val": 0.3, "test": 0.3}
    report = prepare(tmp_path / "set.h5", save(tmp_path, stars), cuts=StarCuts(one_per_star=False), splits=splits)
    assert len(set(zip(report["star"].tolist(), report["split"].tolist(), strict=True))) == 10
    assert set(report["split"]) == set(splits)


def test_a_star_stays_in_its_split_when_others_come(folder, tmp_path):
    paths = sorted(folder.glob("*.fits"))
    whole, part = prepare(tmp_path / "whole.h5", paths), prepare(tmp_path / "part.h5", paths[::-3])
    splits = dict(zip(whole["star"].tolist(), whole["split"].tolist(), strict=True))
    assert all(splits[star] == split for star, split in zip(part["star"].tolist(), part["split"].tolist(), strict=True))


def test_the_seed_makes_the_splits(folder, tmp_path):
    splits = [prepare(tmp_path / f"{k}.h5", folder, seed=seed)["split"].tolist() for k, seed in enumerate((0, 0, 1))]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize("splits", [{}, {"train": 0.5}, {"train": 1.2, "val": -0.2}, {"": 1.0}])
def test_shares_sum_up_to_one(tmp_path, splits):
    with pytest.raises(ValueError, match="splits must be names with shares that sum up to 1"):
        prepare(tmp_path / "set.h5", save(tmp_path, [Star(1)]), splits=splits)


# -- the report ----------------------------------------------------------------------
def test_report_is_written_and_summed_up(tmp_path):
    stars = [Star(1), Star(2, snr=9.0), Star(3, snr=8.0), Star(4, name=Star(1).objid, snr=50.0)]
    report = prepare(tmp_path / "set.h5", save(tmp_path, stars), splits={"train": 1, "val": 0})
    read_back = QTable.read(tmp_path / "set.report.ecsv")
    assert read_back.colnames == report.colnames
    assert read_back["reason"].filled("").tolist() == ["", "S/N", "S/N", "duplicate"]
    assert summarise_preparation(read_back).splitlines() == [
        "set.h5: 1 of 4 spectra (train 1, val 0)",
        "left out: 3 (set.report.ecsv tells of each)",
        "    2  S/N",
        "    1  duplicate",
        "no cut on broadening: there is no catalogue",
        "no cut on chi2: there is no catalogue",
        "no cut on flags: there is no catalogue",
    ]


def test_set_tells_how_it_was_made(tmp_path, one_split):
    one_split(save(tmp_path, [Star(1)]), seed=7)
    with h5py.File(tmp_path / "set.h5") as file:
        assert '"seed": 7' in file.attrs["prepared"]
        assert '"snr": [30.0, 500.0]' in file.attrs["prepared"]


def test_names_go_with_a_split_that_is_replaced(tmp_path, one_split):
    paths = save(tmp_path, [Star(1), Star(2)])
    one_split(paths)
    write_training_set(tmp_path / "set.h5", paths[:1], grid=GRID, recipe=RECIPE, overwrite=True, progress=False)
    assert TrainingSet(tmp_path / "set.h5").names == ("2M0000000000000001",)


# -- kills ---------------------------------------------------------------------------
@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("cyclestarnet.io.preparation.READ_ROWS", 6)


# What ends the run, at which of its calls, and how many of the 24 files are read again.
ENDS = [
    ("cyclestarnet.io.preparation._RowMaker._row", 1, 24),
    ("cyclestarnet.io.preparation._RowMaker._row", 17, 12),
    ("cyclestarnet.io.preparation._Rows.append", 3, 12),
    ("cyclestarnet.journal.Journal.append", 1, 24),  # there are rows that no line tells of
    ("cyclestarnet.journal.Journal.append", 4, 6),
    ("cyclestarnet.io.preparation._choose", 1, 0),
    ("cyclestarnet.io.preparation._Rows.read", 1, 0),
    ("cyclestarnet.io.preparation.write_atomically", 1, 0),  # the set is there, its report is not
]


@pytest.mark.parametrize(("place", "number", "n_again"), ENDS)
def test_what_was_done_before_an_end_is_not_done_again_and_the_set_is_the_same(
    folder, tmp_path, monkeypatch, small_blocks, place, number, n_again
):
    catalogue = save_catalogue(tmp_path / "allStar.fits", STARS[:18])
    prepare(tmp_path / "whole.h5", folder, catalogue=catalogue)
    with monkeypatch.context() as patch:
        _end_at(patch, place, number)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "set.h5", folder, catalogue=catalogue)
    assert (tmp_path / "set.h5").exists() == ("write_atomically" in place)
    n_read = _count(monkeypatch, "cyclestarnet.io.preparation._RowMaker._row")
    prepare(tmp_path / "set.h5", folder, catalogue=catalogue)
    assert (tmp_path / "set.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    same = (tmp_path / "whole.report.ecsv").read_text().replace("whole", "set")
    assert (tmp_path / "set.report.ecsv").read_text() == same
    assert {path.name for path in tmp_path.glob("set*")} == {"set.h5", "set.report.ecsv"}
    assert len(n_read) == n_again


def _end_at(patch, place, number):
    """Make the call of this number of a function an end."""
    calls, original = [], pkgutil.resolve_name(place)

    def deadly(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    patch.setattr(place, deadly)


def _count(patch, place):
    calls, original = [], pkgutil.resolve_name(place)

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    patch.setattr(place, counted)
    return calls


def test_another_call_does_not_go_on(folder, tmp_path, monkeypatch, small_blocks):
    with monkeypatch.context() as patch:
        _end_at(patch, "cyclestarnet.journal.Journal.append", 3)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "set.h5", folder)
    with pytest.raises(FileExistsError, match=r"holds the rows of another, unfinished run \(cuts"):
        prepare(tmp_path / "set.h5", folder, cuts=StarCuts(snr=(40, 500)))
    catalogue = save_catalogue(tmp_path / "allStar.fits", STARS)
    with pytest.raises(FileExistsError, match=r"unfinished run \(catalogue"):
        prepare(tmp_path / "set.h5", folder, catalogue=catalogue)
    with pytest.raises(FileExistsError, match=r"unfinished run \(reader"):
        prepare(tmp_path / "set.h5", folder, reader=partial(read, mask_bits=[0]))
    (tmp_path / "set.h5.partial.rows").write_bytes(b"")
    with pytest.raises(FileFormatError, match="lacks rows"):
        prepare(tmp_path / "set.h5", folder)


def test_a_set_is_not_replaced_unless_wanted(folder, tmp_path):
    (tmp_path / "set.h5").write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        prepare(tmp_path / "set.h5", folder)
    assert (tmp_path / "set.h5").read_text() == "precious"
    prepare(tmp_path / "set.h5", folder, overwrite=True)
    assert TrainingSet(tmp_path / "set.h5").n_pixels == N


def test_impossible_arguments_are_refused(tmp_path):
    paths = save(tmp_path, [Star(1)])
    with pytest.raises(ValueError, match=r"must end in \.h5 or \.hdf5"):
        prepare(tmp_path / "set.fits", paths)
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(IsADirectoryError):
        prepare(tmp_path / "folder.h5", paths, overwrite=True)
    with pytest.raises(GridError, match="recipe must be made for the grid"):
        prepare(tmp_path / "set.h5", paths, grid=GRID.__class__(GRID.wavelength[1:]))
    with pytest.raises(ValueError, match="workers"):
        prepare(tmp_path / "set.h5", paths, workers=0)
    with pytest.raises(ValueError, match="no spectra"):
        prepare(tmp_path / "set.h5", [])


# -- the command line ----------------------------------------------------------------
def test_command_prepares_what_a_training_reads(tmp_path, capsys, pretrained):
    folder = tmp_path / "spectra"
    folder.mkdir()
    for name in ("apVisit-1.fits", "apVisit-2.fits"):
        (folder / name).write_bytes((resources.files("cyclestarnet.data") / K_GIANT).read_bytes())
    (folder / "apStar-broken.fits").write_bytes(b"SIMPLE  =                    T")
    command = ["prepare", str(folder), "-o", str(tmp_path / "set.h5"), "--val", "0", "--test", "0"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "set.h5: 1 of 3 spectra (train 1, test 0, val 0)" in printed
    assert "1  cannot be read" in printed
    assert "1  duplicate" in printed
    assert TrainingSet(tmp_path / "set.h5", grid=pretrained.grid).names == ("2M00242666+5341178",)
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_command_makes_the_cuts_that_it_is_told(folder, tmp_path, monkeypatch, capsys):
    got = {}

    def note(path, spectra, **options):
        got.update(options, path=path, spectra=spectra)
        raise KeyboardInterrupt

    monkeypatch.setattr("cyclestarnet.io.prepare_training_set", note)
    command = f"prepare {folder} -o {tmp_path}/set.h5 --snr 50 300 --chi2-max 20 --broadening-max 8 --all-spectra"
    command += " --val 0.2 --test 0.05 --seed 3 --workers 2 --catalogue allStar.fits --overwrite"
    assert main(command.split()) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert got["cuts"] == StarCuts(snr=(50.0, 300.0), chi2_max=20.0, broadening_max=8 * u.km / u.s, one_per_star=False)
    assert got["splits"] == pytest.approx({"train": 0.75, "val": 0.2, "test": 0.05})
    assert (got["seed"], got["workers"], got["catalogue"], got["overwrite"]) == (3, 2, Path("allStar.fits"), True)
    assert got["spectra"] == str(folder)


# -- processes, kills and many files -------------------------------------------------
SCRIPT = """
import resource, sys, time

sys.path.insert(0, {tests!r})
from survey_files import GRID, RECIPE

if __name__ == "__main__":
    from cyclestarnet.io import prepare_training_set

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    prepare_training_set(
        {set!r}, {folder!r}, grid=GRID, recipe=RECIPE, catalogue={catalogue!r}, workers={workers}, progress=False
    )
    print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def run(script, **names):
    names = {"tests": str(Path(__file__).parent), "catalogue": None, "workers": 1} | names
    script.write_text(SCRIPT.format(**names))
    return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=1200)


def read_but_die(deadly, path):
    """Read a file, unless it is the one that ``deadly`` names: this process dies of it."""
    if path.endswith(Path(deadly).read_text()):
        os.kill(os.getpid(), signal.SIGKILL)
    return read(path)


def prepare_in_danger(folder):
    prepare(folder / "set.h5", folder / "spectra", reader=partial(read_but_die, str(folder / "deadly")))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows kills otherwise")
def test_killed_process_is_gone_on_with(tmp_path):
    save(tmp_path / "spectra", [Star(number) for number in range(100)])
    processes, codes = lives([LiveOn()] * 3, prepare_in_danger, tmp_path), []
    for name in ("00040.fits", "00099.fits", "nothing"):
        (tmp_path / "deadly").write_text(name)
        codes.append(next(processes))
        assert (tmp_path / "set.h5").exists() == (name == "nothing")
    assert codes == [-9, -9, 0]
    prepare(tmp_path / "whole.h5", tmp_path / "spectra")
    assert (tmp_path / "set.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.slow
@pytest.mark.scale
def test_two_thousand_files_need_no_more_memory_than_two_hundred(tmp_path):
    """In two processes, a hundred of them bad; the set is that of one process, and shares and counts are right."""
    rng = np.random.default_rng(3)
    stars = [Star(number, snr=float(snr)) for number, snr in enumerate(rng.uniform(40, 400, 2000))]
    paths = save(tmp_path / "spectra", stars)
    save(tmp_path / "few", stars[:200])
    for path in paths[::20]:
        path.write_bytes(path.read_bytes()[:5000])
    catalogue = save_catalogue(tmp_path / "allStar.fits", stars, VMACRO=np.where(np.arange(2000) % 50 == 1, 15.0, 4.0))
    options = {"catalogue": str(catalogue), "workers": 2}
    few = run(tmp_path / "few.py", folder=str(tmp_path / "few"), set=str(tmp_path / "few.h5"), **options)
    many = run(tmp_path / "many.py", folder=str(tmp_path / "spectra"), set=str(tmp_path / "many.h5"), **options)
    assert many.returncode == few.returncode == 0, many.stderr
    (_, least), (seconds, most) = (map(float, done.stdout.split()) for done in (few, many))
    print(f"2,000 files: {seconds:.1f} s, {most / 1024:.1f} MiB beyond the imports; 200 files: {least / 1024:.1f} MiB")
    assert most - least < 20 * 1024  # the rows of the set are 2.9 MB; those of full spectra would be 129
    report = Table.read(tmp_path / "many.report.ecsv")
    assert report.meta["left_out"] == {"cannot be read": 100, "broadening": 40}
    shares = np.array([report.meta["splits"][split] for split in ("train", "val", "test")]) / 1860
    np.testing.assert_allclose(shares, [0.8, 0.1, 0.1], atol=4 * np.sqrt(0.16 / 1860))
    prepare(tmp_path / "one.h5", tmp_path / "spectra", catalogue=catalogue)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "many.h5").read_bytes()
