import gc
import json
import os
import weakref
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty
from astropy.table import vstack
from deaths import CountEvents, DieAtEvent, lives
from survey_fakes import Fit, failed_row, make_star, read_star, save_stars

from cyclestarnet import LabelSet, WavelengthGrid
from cyclestarnet.exceptions import FileFormatError, GridError, SpectrumError
from cyclestarnet.io import Selection, TrainingSet, write_training_set
from cyclestarnet.io.stars import star_sources
from cyclestarnet.pipeline import ManyOptions, read_results, write_results
from cyclestarnet.pipeline.many import failed_row as no_fit
from cyclestarnet.pipeline.many import fit_survey
from cyclestarnet.spectra import Spectrum

FORMATS = ["ecsv", "fits", "parquet"]
GRID = WavelengthGrid(np.linspace(1500, 1510, 8) * u.nm)


def survey(spectra, fit=None, *, run=None, block_size=4, **options):
    """The table of a survey of files of fake stars."""
    stars = star_sources(spectra, reader=read_star)
    many = ManyOptions(progress=False, **options)
    return fit_survey(stars, fit or Fit(), failed_row, many, run=run, block_size=block_size)


def assert_same(table, other, leave_out=("seconds",)):
    """Same columns, units, kinds and values to the last bit; NaN equals NaN."""
    assert table.colnames == other.colnames
    for name in set(table.colnames) - set(leave_out):
        assert table[name].unit == other[name].unit, name
        assert table[name].dtype.kind == other[name].dtype.kind, name
        assert not hasattr(other[name], "mask"), name
        np.testing.assert_array_equal(table[name], other[name], err_msg=name)


def needs_pyarrow(suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")


@pytest.fixture
def values(rng):
    """Fluxes of 30 stars: doubles with all their bits."""
    return rng.uniform(0.5, 1.5, 30)


@pytest.fixture
def paths(tmp_path, values):
    return save_stars(tmp_path, values)


# -- rows ------------------------------------------------------------------------
def test_rows_are_in_the_order_of_the_stars(paths, values):
    table = survey(paths)
    np.testing.assert_array_equal(table["teff"].to_value(u.K), 4000 * values)
    assert table["object"].tolist() == [path.name for path in paths]


def test_spectra_and_paths_may_be_mixed(paths, values):
    table = survey([make_star(0.5, "mine"), str(paths[0]), paths[1]])
    np.testing.assert_array_equal(table["teff"].to_value(u.K), 4000 * np.array([0.5, *values[:2]]))
    assert table["object"].tolist() == ["mine", "star-000.npy", "star-001.npy"]


def test_units_are_those_of_the_labels(paths):
    table = survey(paths[:3])
    units = {name: str(table[name].unit) for name in ("teff", "logg", "logg_err", "vmicro")}
    assert units == {"teff": "K", "logg": "dex(cm / s2)", "logg_err": "dex", "vmicro": "km / s"}


def test_no_star_gives_an_empty_table(paths):
    assert_same(survey(paths[:1])[:0], survey([]))


def test_seconds_are_those_of_the_block_divided_by_its_stars(paths, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def fit(spectra, numbers):
        clock[0] += 4.0 * spectra[0].flux.value[0]
        return Fit()(spectra)

    np.save(paths[0], 0.5)
    np.save(paths[4], 1.5)
    assert survey(paths[:8], fit)["seconds"].tolist() == [0.5] * 4 + [1.5] * 4


@pytest.mark.parametrize("block_size", [0, -1])
def test_block_size_must_be_positive(paths, block_size):
    with pytest.raises(ValueError, match="block_size"):
        survey(paths, block_size=block_size)


# -- bad stars -------------------------------------------------------------------
@pytest.fixture
def bad_paths(paths):
    """The paths with eight bad ones among them: not there, empty, truncated, of another kind, unfit in three ways."""
    folder = paths[0].parent
    contents = {"empty": b"", "truncated": paths[0].read_bytes()[:-3], "text": b"no spectrum at all"}
    bad = [folder / "not-there.npy", folder]
    for name, content in contents.items():
        bad.append(folder / name)
        bad[-1].write_bytes(content)
    for name, value in (("refused.npy", -1), ("fatal.npy", -2), ("fatal-2.npy", -2)):
        np.save(folder / name, float(value))
        bad.append(folder / name)
    mixed = list(paths)
    for place, path in zip((0, 1, 2, 9, 15, 20, 25, 26), bad, strict=True):
        mixed.insert(place, path)
    return mixed, bad


def test_bad_stars_do_not_change_the_others(bad_paths, paths):
    mixed, bad = bad_paths
    table = survey(mixed)
    assert_same(table[[path not in bad for path in mixed]], survey(paths))


def test_bad_stars_are_rows_that_say_why(bad_paths):
    mixed, bad = bad_paths
    table = survey(mixed)
    failed = table["flag_names"] == "FAILED"
    assert table["object"][failed].tolist() == [str(path) for path in mixed if path in bad]
    assert np.isnan(table["teff"][failed]).all()
    messages = dict(zip(table["object"], table["message"], strict=True))
    for path, reason in zip(bad, ["No such file", "Is a directory", "No data", "", "pickle"], strict=False):
        assert reason in messages[str(path)]
    assert [messages[str(path)] for path in bad[5:]] == ["bad star"] + 2 * ["the block cannot be fitted"]


def test_block_that_raises_loses_only_its_bad_star(paths):
    np.save(paths[5], -2.0)
    assert np.flatnonzero(~survey(paths)["success"]).tolist() == [5]


def test_files_are_read_as_their_names_tell_by_default(tmp_path):
    (tmp_path / "unknown.dat").touch()
    table = fit_survey(star_sources([tmp_path / "unknown.dat"]), Fit(), failed_row, ManyOptions(progress=False))
    assert "the name does not tell the kind of file" in table["message"][0]


def test_what_is_no_spectrum_is_a_failed_row():
    table = survey([make_star(1.0), 42])
    assert "is a int" in table["message"][1]


def test_file_name_of_any_bytes_is_written(tmp_path):
    survey([os.fsdecode(b"star-\xff.npy")], output=tmp_path / "t.ecsv")
    assert read_results(tmp_path / "t.ecsv")["object"][0] == r"star-\xff.npy"


# -- what comes in ---------------------------------------------------------------
def test_pattern_gives_its_files_in_order(paths):
    assert [star.name for star in star_sources(f"{paths[0].parent}/star-00*.npy")] == [str(p) for p in paths[:10]]


def test_missing_file_is_a_row_that_says_so():
    table = fit_survey(star_sources(["nowhere/apStar-a.fits"]), Fit(), failed_row, ManyOptions(progress=False))
    assert "no file nowhere/apStar-a.fits" in table["message"][0]


@pytest.mark.parametrize("spectra", [None, 5, {"a": "apStar-a.fits"}])
def test_what_holds_no_stars_is_named(spectra):
    with pytest.raises(TypeError, match=f"spectra must be spectra or paths.* is a {type(spectra).__name__}"):
        star_sources(spectra)


def test_pattern_without_a_match_is_named():
    with pytest.raises(FileNotFoundError, match=r"'nowhere/apStar-\*\.fits'"):
        star_sources("nowhere/apStar-*.fits")


def test_file_with_a_bracket_in_its_name_is_no_pattern(tmp_path):
    np.save(tmp_path / "star[1].npy", 0.5)
    assert survey(tmp_path / "star[1].npy")["teff"][0] == 2000 * u.K


def test_one_path_or_spectrum_is_a_list_of_one(paths):
    assert len(survey(paths[0])) == len(survey(str(paths[0]))) == len(survey(make_star(1.0))) == 1


def test_rows_of_a_stack_are_stars(values):
    star = make_star(1.0, "stack")
    flux = values[:, None] * np.ones(8) * u.one
    stack = Spectrum(flux=flux, spectral_axis=star.spectral_axis, meta=star.meta)
    table = survey(stack)
    np.testing.assert_array_equal(table["teff"].to_value(u.K), 4000 * values)


def test_columns_of_a_stack_are_stars(values):
    """Where a spectrum says that its spectral axis is the first one, stars are along the other."""
    star = make_star(1.0, "stack")
    flux = (values[:, None] * np.ones(8)).T * u.one
    error = StdDevUncertainty(np.full(flux.shape, 0.01))
    axis = {"spectral_axis": star.spectral_axis, "spectral_axis_index": 0}
    stack = Spectrum(flux=flux, uncertainty=error, mask=flux.value > 1.4, meta=star.meta, **axis)
    np.testing.assert_array_equal(survey(stack)["teff"].to_value(u.K), 4000 * values)
    one = star_sources(stack)[3].read()
    np.testing.assert_array_equal(one.mask, one.flux.value > 1.4)
    np.testing.assert_array_equal(one.uncertainty.array, np.full(8, 0.01))


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [("", IsADirectoryError, r"this is a folder; name its files by a pattern such as '.*/apStar-\*\.fits'"),
     ("nowhere.fits", FileNotFoundError, "no file .*nowhere.fits"),
     ("nowhere.h5", FileNotFoundError, "nowhere.h5")],
)  # fmt: skip
def test_a_path_that_holds_no_stars_is_an_error_at_once(tmp_path, name, kind, told):
    for path in (tmp_path / name, str(tmp_path / name)):
        with pytest.raises(kind, match=told):
            star_sources(path)


# -- generators ------------------------------------------------------------------
def counted(values, read):
    for k, value in enumerate(values):
        read.append(k)
        yield make_star(value, f"star {k}")


@pytest.mark.parametrize("kind", [lambda stars: stars, lambda stars: map(lambda star: star, stars), iter])
def test_a_generator_is_read_as_far_as_it_is_needed(values, kind):
    read, far = [], []

    def fit(spectra, numbers):
        far.append(len(read))
        return Fit()(spectra)

    table = survey(kind(counted(values, read)), fit)
    np.testing.assert_array_equal(table["teff"].to_value(u.K), 4000 * values)
    assert far == [8, 12, 16, 20, 24, 28, 30, 30]  # the block that is fitted, and the next


def test_an_endless_generator_can_be_interrupted(tmp_path):
    def stars():
        k = 0
        while True:
            k += 1
            yield make_star(-3 if k == 20 else 1.0)

    with pytest.raises(KeyboardInterrupt):
        survey(stars(), output=tmp_path / "t.ecsv")
    assert (tmp_path / "t.ecsv.partial").exists()


def test_a_generator_resumes_where_it_was(tmp_path, values):
    worse, fit, output = values.copy(), CountingFit(), tmp_path / "t.ecsv"
    worse[17] = -3.0
    with pytest.raises(KeyboardInterrupt):
        survey(counted(worse, []), output=output)
    table = survey(counted(values, []), fit, output=output)
    assert fit.n_stars == 14
    assert_same(survey(counted(values, [])), table)
    assert_same(table, read_results(output), leave_out=())


@pytest.mark.parametrize(("change", "told"), [(("swap", 3), "star 3 was 'star 3 "), (("cut", 9), "9 stars came")])
def test_a_generator_of_other_stars_is_not_mixed_in(tmp_path, values, change, told):
    worse, (what, k) = values.copy(), change
    worse[17] = -3.0
    with pytest.raises(KeyboardInterrupt):
        survey(counted(worse, []), output=tmp_path / "t.ecsv")
    if what == "swap":
        values[k] += 0.1
    with pytest.raises(FileExistsError, match=told):
        survey(counted(values if what == "swap" else values[:k], []), output=tmp_path / "t.ecsv")


def test_an_empty_generator_gives_an_empty_table(paths):
    assert_same(survey(paths[:1])[:0], survey(iter([])))


def test_no_file_is_read_before_its_turn(paths):
    assert len(star_sources(["not-there.fits"] * 5)) == 5


# -- HDF5 ------------------------------------------------------------------------
@pytest.fixture
def training_file(tmp_path, values):
    """The stars in HDF5, every other one of S/N 20."""
    stars = [make_star(value) for value in values]
    for k, star in enumerate(stars):
        star.meta["snr"] = 20.0 if k % 2 else 100.0
    write_training_set(tmp_path / "stars.h5", stars, grid=GRID, split="val", progress=False)
    return tmp_path / "stars.h5"


@pytest.mark.parametrize("given", [str, TrainingSet])
def test_rows_of_an_hdf5_file_are_stars(training_file, values, given):
    spectra = given(training_file) if given is str else TrainingSet(training_file, split="val")
    stars = star_sources(spectra)
    spectrum = stars[7].read()
    np.testing.assert_array_equal(spectrum.flux.value, np.float32(values[7]))
    np.testing.assert_array_equal(spectrum.uncertainty.array, np.float32(0.01))
    np.testing.assert_allclose(spectrum.spectral_axis.to_value(u.AA), GRID.wavelength.value, rtol=1e-12)
    assert len(stars) == 30
    assert stars[7].name == f"{training_file} val 7"


def test_star_without_a_name_has_that_of_its_source(training_file):
    table = fit_survey(star_sources(training_file), Fit(), failed_row, ManyOptions(progress=False))
    assert table["object"].tolist() == [f"{training_file} val {k}" for k in range(30)]


def test_mask_of_an_hdf5_file_is_turned_round(training_file):
    with h5py.File(training_file, "r+") as file:
        file["spectra_msk val"][3, 2] = 0
    assert star_sources(training_file)[3].read().mask.tolist() == [k == 2 for k in range(8)]


def test_selection_chooses_rows_of_an_hdf5_file(training_file):
    stars = star_sources(training_file, selection=Selection(snr=(30, 500)))
    assert [star.row for star in stars] == list(range(0, 30, 2))


def test_selection_is_for_hdf5_files_only(paths):
    with pytest.raises(TypeError, match="selection"):
        star_sources(paths, selection=Selection())


def test_wavelengths_are_those_of_the_grid_if_the_file_has_none(training_file):
    with h5py.File(training_file, "r+") as file:
        del file["wavelength"]
    with pytest.raises(GridError, match="no dataset 'wavelength'"):
        star_sources(training_file)
    axis = star_sources(training_file, grid=GRID)[0].read().spectral_axis
    np.testing.assert_array_equal(axis.value, GRID.wavelength.value)


def test_pixels_without_wavelengths_must_fit_the_grid(training_file):
    with h5py.File(training_file, "r+") as file:
        del file["wavelength"]
    with pytest.raises(GridError, match=r"slice\(0, 7\)"):
        star_sources(training_file, grid=WavelengthGrid(GRID.wavelength[:7]))


def test_file_of_several_splits_asks_for_one(training_file):
    write_training_set(training_file, [make_star(1.0)], grid=GRID, split="test", progress=False)
    with pytest.raises(FileFormatError, match="has the splits test, val; choose one"):
        star_sources(training_file)


def test_synthetic_set_has_no_errors_to_fit_with(training_file):
    with pytest.raises(SpectrumError, match="domain='observed'"):
        star_sources(TrainingSet(training_file, split="val", domain="synthetic"))


def test_hdf5_rows_are_read_in_blocks(training_file, monkeypatch):
    calls = []
    read = TrainingSet.read
    stars = star_sources(training_file)
    monkeypatch.setattr(TrainingSet, "read", lambda self, *rows: calls.append(rows) or read(self, *rows))
    for star in stars:
        star.read()
    assert calls == [(0, 30)]


def test_unreadable_row_of_an_hdf5_file_costs_no_other(training_file, monkeypatch):
    read = TrainingSet.read

    def damaged(self, start, stop):
        if start <= 5 < stop:
            raise FileFormatError("row 5 cannot be read")
        return read(self, start, stop)

    stars = star_sources(training_file)
    monkeypatch.setattr(TrainingSet, "read", damaged)
    table = fit_survey(stars, Fit(), failed_row, ManyOptions(progress=False))
    assert np.flatnonzero(~table["success"]).tolist() == [5]


# -- memory ----------------------------------------------------------------------
def test_two_blocks_of_spectra_are_alive_at_most(paths):
    alive, most = weakref.WeakSet(), []

    def read_and_count(path):
        gc.collect()  # a spectrum can be part of a ring
        spectrum = read_star(path)
        alive.add(spectrum)
        most.append(len(alive))
        return spectrum

    gc.freeze()  # what is there already need not be gone through
    fit_survey(star_sources(paths, reader=read_and_count), Fit(), failed_row, ManyOptions(progress=False), block_size=4)
    gc.unfreeze()
    assert 4 < max(most) <= 8


# -- files -----------------------------------------------------------------------
@pytest.mark.parametrize("suffix", FORMATS)
def test_output_holds_the_table(bad_paths, tmp_path, suffix):
    needs_pyarrow(suffix)
    table = survey(bad_paths[0], output=tmp_path / "new" / f"t.{suffix}")
    assert_same(table, read_results(tmp_path / "new" / f"t.{suffix}"), leave_out=())
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"t.{suffix}"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_empty_table_survives(tmp_path, suffix):
    needs_pyarrow(suffix)
    assert_same(survey([], output=tmp_path / f"t.{suffix}"), read_results(tmp_path / f"t.{suffix}"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_extreme_numbers_survive(tmp_path, suffix):
    needs_pyarrow(suffix)
    table = failed_row("", "σ = 0 is impossible")
    table["message"] = ["\\u03c3 = 0" if suffix == "fits" else "σ = 0"]
    table["teff"], table["chi2"] = [5e-324] * u.K, [-np.inf]
    write_results(table, tmp_path / f"t.{suffix}")
    assert_same(table, read_results(tmp_path / f"t.{suffix}"))


def test_letters_that_fits_lacks_are_escaped(tmp_path):
    write_results(failed_row("", "σ = 0"), tmp_path / "t.fits")
    assert read_results(tmp_path / "t.fits")["message"][0] == r"\u03c3 = 0"


def test_unknown_suffix_stops_before_the_first_star(paths, tmp_path):
    with pytest.raises(ValueError, match=r"\.ecsv, \.fits, \.parquet, \.csv"):
        survey(paths, fit=None, output=tmp_path / "t.txt")


def test_parquet_without_pyarrow_names_the_extra(paths, tmp_path, monkeypatch):
    monkeypatch.setattr("cyclestarnet.pipeline.journal.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"cyclestarnet\[survey\]"):
        survey(paths, output=tmp_path / "t.parquet")


def test_existing_output_is_replaced_only_if_told(paths, tmp_path):
    output = tmp_path / "t.ecsv"
    survey(paths[:2], output=output)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        survey(paths[:3], output=output)
    assert len(read_results(output)) == 2
    survey(paths[:3], output=output, overwrite=True)
    assert len(read_results(output)) == 3


# -- unfinished runs -------------------------------------------------------------
@pytest.fixture
def interrupted(paths, tmp_path):
    """Output of a run that was interrupted in its fifth block of four stars; its file then became good."""
    value = float(np.load(paths[17]))
    np.save(paths[17], -3.0)
    with pytest.raises(KeyboardInterrupt):
        survey(paths, output=tmp_path / "t.ecsv", run={"space": "observed"})
    np.save(paths[17], value)
    return tmp_path / "t.ecsv"


def test_interrupt_keeps_what_was_fitted(interrupted, values):
    assert not interrupted.exists()
    _, *blocks = [json.loads(line) for line in Path(f"{interrupted}.partial").read_text().splitlines()]
    assert [star for block in blocks for star in block["stars"]] == list(range(16))
    assert [row[1] for block in blocks for row in block["rows"]] == (4000 * values[:16]).tolist()


class CountingFit(Fit):
    n_stars = 0

    def __call__(self, spectra, numbers=()):
        self.n_stars += len(spectra)
        return super().__call__(spectra)


def test_resumed_run_fits_only_what_is_left(interrupted, paths):
    fit = CountingFit()
    table = survey(paths, fit, output=interrupted, run={"space": "observed"})
    assert fit.n_stars == 14
    assert_same(table, survey(paths))
    assert_same(table, read_results(interrupted), leave_out=())
    assert not Path(f"{interrupted}.partial").exists()


def test_journal_cut_anywhere_is_resumed(interrupted, paths, rng):
    journal, uninterrupted = Path(f"{interrupted}.partial"), survey(paths)
    content = journal.read_bytes()
    for length in [0, 1, len(content) - 1, *rng.integers(2, len(content), 12)]:
        journal.write_bytes(content[:length])
        survey(paths, output=interrupted, overwrite=True, run={"space": "observed"})
        assert_same(uninterrupted, read_results(interrupted))


def test_torn_block_does_not_spoil_those_that_follow(interrupted, paths):
    journal, value, run = Path(f"{interrupted}.partial"), np.load(paths[25]), {"run": {"space": "observed"}}
    journal.write_bytes(journal.read_bytes()[:-9])  # the block of stars 12 to 15
    np.save(paths[25], -3.0)
    with pytest.raises(KeyboardInterrupt):
        survey(paths, output=interrupted, **run)
    np.save(paths[25], value)
    fit = CountingFit()
    assert_same(survey(paths), survey(paths, fit, output=interrupted, **run))
    assert fit.n_stars == 6


def test_journal_with_zeros_of_a_power_failure_is_resumed(interrupted, paths):
    journal = Path(f"{interrupted}.partial")
    content = journal.read_bytes()
    journal.write_bytes(content[:-500] + b"\0" * 499 + b"\n")
    assert_same(survey(paths), survey(paths, output=interrupted, run={"space": "observed"}))


@pytest.mark.parametrize("line", range(5))
def test_a_damaged_line_of_a_journal_costs_its_block_only(interrupted, paths, line, caplog):
    """Of the line that tells the run, and of four blocks of four stars; 14 stars are left in any case."""
    journal, whole = Path(f"{interrupted}.partial"), survey(paths)
    lines = journal.read_bytes().splitlines(keepends=True)
    for place, byte in ((40, b"7"), (len(lines[line]) // 2, b"\xff"), (1, b"}"), (len(lines[line]) - 3, b"x")):
        damaged = lines[line][:place] + byte + lines[line][place + 1 :]
        if damaged == lines[line]:
            continue
        journal.write_bytes(b"".join([*lines[:line], damaged, *lines[line + 1 :]]))
        fit = CountingFit()
        table = survey(paths, fit, output=interrupted, overwrite=True, run={"space": "observed"})
        assert fit.n_stars == (14 if line == 0 else 18), (place, byte)
        assert_same(whole, table)
    told = [record for record in caplog.records if "blocks of" in record.message]
    assert bool(told) is (0 < line < 4)  # damage at the end is what a kill leaves


def test_a_number_that_changed_in_a_journal_is_noticed(interrupted, paths):
    journal, whole = Path(f"{interrupted}.partial"), survey(paths)
    text = journal.read_text()
    number = repr(float(whole["teff"][6].value))
    assert number in text
    journal.write_text(text.replace(number, repr(float(whole["teff"][6].value) + 1), 1))
    assert_same(whole, survey(paths, output=interrupted, run={"space": "observed"}))


def test_a_damaged_journal_of_another_run_is_left_alone(interrupted, paths):
    journal = Path(f"{interrupted}.partial")
    damaged = journal.read_bytes().replace(b"observed", b"obs\xffrved", 1)
    journal.write_bytes(damaged)
    with pytest.raises(FileExistsError, match="no file of an unfinished run, or damaged"):
        survey(paths, output=interrupted, run={"space": "emulator"})
    assert journal.read_bytes() == damaged


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_as_output_stops_before_the_first_star(paths, tmp_path, overwrite):
    (tmp_path / "t.ecsv").mkdir()
    with pytest.raises(IsADirectoryError, match=r"this is a folder: '.*t\.ecsv'"):
        survey(paths, fit=None, output=tmp_path / "t.ecsv", overwrite=overwrite)
    assert not (tmp_path / "t.ecsv.partial").exists()


def test_finished_journal_of_a_run_killed_before_its_end_is_accepted(interrupted, paths):
    run = {"output": interrupted, "run": {"space": "observed"}}
    journal = Path(f"{interrupted}.partial")
    content = journal.read_bytes()
    table = survey(paths, **run)
    journal.write_bytes(content)  # as if the kill came after the output was written
    assert_same(table, survey(paths, **run))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": {"space": "emulator"}}, "space: 'observed' then, 'emulator' now"),
        ({"run": {"space": "observed", "fixed": {"logg": 2 * u.dex}}}, r"fixed: None then, .*'dex'.* now"),
        ({"n_stars": 29}, "stars: 30 then, 29 now"),
        ({"first": "other.npy"}, r"stars: number 0 was '.*star-000.npy' then, is 'other.npy' now"),
    ],
)
def test_another_run_is_not_mixed_in(interrupted, paths, change, message):
    changed = [change.pop("first", paths[0]), *paths[1 : change.pop("n_stars", None)]]
    with pytest.raises(FileExistsError, match=message) as caught:
        survey(changed, output=interrupted, **({"run": {"space": "observed"}} | change))
    assert "delete the file to begin anew" in str(caught.value)
    assert Path(f"{interrupted}.partial").exists()


def test_spectra_in_memory_are_known_by_their_arrays(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        survey([make_star(1.0), make_star(-3)], output=tmp_path / "t.fits", block_size=1)
    with pytest.raises(FileExistsError, match="stars: number 1 was"):
        survey([make_star(1.0), make_star(0.9)], output=tmp_path / "t.fits", block_size=1)


def test_file_that_is_no_journal_is_left_alone(paths, tmp_path):
    (tmp_path / "t.ecsv.partial").write_text("my notes")
    with pytest.raises(FileExistsError, match="no file of an unfinished run"):
        survey(paths, output=tmp_path / "t.ecsv")
    assert (tmp_path / "t.ecsv.partial").read_text() == "my notes"


def test_second_process_does_not_write_to_the_same_journal(paths, tmp_path):
    pytest.importorskip("fcntl")

    def fit_again(spectra, numbers):
        with pytest.raises(FileExistsError, match="another process"):
            survey(paths, output=tmp_path / "t.ecsv")
        return Fit()(spectra)

    assert survey(paths, fit_again, output=tmp_path / "t.ecsv")["success"].all()


def survey_by_pairs(paths, output):
    survey(paths, output=output, block_size=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_run_killed_again_and_again_ends_as_one_that_was_not(paths, tmp_path):
    events, output, left = tmp_path / "events", tmp_path / "t.ecsv", []
    assert list(lives([CountEvents(events)], survey_by_pairs, paths, tmp_path / "whole.ecsv")) == [0]
    numbers = np.random.default_rng(7).uniform(0, 0.3, 100) * int(events.read_text())
    for code in lives(map(DieAtEvent, numbers.astype(int)), survey_by_pairs, paths, output):
        if code == 0:
            break
        left.append(output.with_name("t.ecsv.partial").stat().st_size if any(tmp_path.glob("*.partial")) else 0)
    assert len(set(left)) > 3, left  # it grew from life to life
    assert_same(survey(paths), read_results(tmp_path / "t.ecsv"))


def test_a_csv_comes_back_with_units(tmp_path):
    labels = LabelSet(["teff", "logg", "vmicro", "fe_h"], [3500, 0, 0, -2], [6000, 4, 3, 1], {"m_h": {"fe_h": 1}})
    names = ["007", "nan", 'a, "b"', ""]
    table = vstack([no_fit(labels, name, "two\nlines") for name in names], metadata_conflicts="silent")
    table["teff"][:2] = [4500.123456789012, 1 / 3] * u.K
    table["logg"][1], table["success"][1], table["flags"][1] = 0.1 * u.dex(u.cm / u.s**2), True, 5
    table["seconds"] = np.linspace(0, 1, 4)
    write_results(table, tmp_path / "t.csv")
    table["message"] = "two lines"
    assert_same(table, read_results(tmp_path / "t.csv"), leave_out=())
    header = (tmp_path / "t.csv").read_text().splitlines()[0]
    assert header.startswith("object,teff,teff_err,logg,logg_err,")


def test_a_survey_may_be_written_as_csv(paths, values, tmp_path):
    survey(paths, output=tmp_path / "t.csv")
    np.testing.assert_array_equal(read_results(tmp_path / "t.csv")["teff"].to_value(u.K), 4000 * values)
