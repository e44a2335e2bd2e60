"""The evidence for a model: fits of drawn stars, the numbers of the paper beside them, and the report."""

import os
import re
import shutil
import signal
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
import pytest
from astropy.table import QTable
from deaths import DieAtCall, LiveOn, lives

from cyclestarnet import CalibratedModel, SpectroscopicMask, SpectrumError, read_results, write_results
from cyclestarnet.cli import main
from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.io import StarCuts, TrainingSet
from cyclestarnet.io.stars import star_sources
from cyclestarnet.plotting import plot_networks
from cyclestarnet.plotting.evidence import EvidenceFigure, evidence_figures
from cyclestarnet.residuals import ResidualMap
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training import collect_evidence, evidence, fitted_sets

SIGMA, PLANTED, BAD, N_STARS = 0.005, 77, 5, 14  # every star has a spike of 5 σ at a pixel, and one has no flux


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Stars are counted by several blocks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitted_sets, "BLOCK", 4)
        yield


@pytest.fixture(scope="module")
def stars(tiny_model, line_family):
    """Labels and spectra of the observed domain."""
    rng = np.random.default_rng(12)
    labels = line_family.draw(N_STARS, rng)
    flux = rng.normal(line_family(labels, width=2.2, depth=1.1), SIGMA)
    flux[:, PLANTED] += 5 * SIGMA
    return labels, flux


@pytest.fixture(scope="module")
def path(tiny_model, stars, tmp_path_factory):
    """A training file with splits, and the labels of its stars; of the star BAD there is none."""
    path = tmp_path_factory.mktemp("set") / "stars.h5"
    labels, flux = stars
    flux = np.where(np.arange(N_STARS)[:, None] == BAD, np.nan, flux)
    with h5py.File(path, "w") as file:
        file["wavelength"] = tiny_model.grid.wavelength.value
        for split, rows in {"train": slice(0, 2), "val": slice(3, 9), "test": slice(None)}.items():
            file[f"spectra {split}"] = flux[rows]
            file[f"spectra_err {split}"] = np.full(flux.shape, SIGMA)[rows]
            file[f"spectra_msk {split}"] = np.isfinite(flux)[rows].astype("u1")
            file[f"labels {split}"] = labels[rows]
            file[f"names {split}"] = [f"star {k}" for k in range(N_STARS)[rows]]
            file[f"snr {split}"] = 10.0 * np.arange(N_STARS)[rows]
        file.attrs["label_names"] = ["teff", "logg", "mg_h"]
    return path


@pytest.fixture(scope="module")
def found(tiny_model, path):
    return collect_evidence(tiny_model, path, progress=False)


# -- what is measured --------------------------------------------------------------------------
@pytest.mark.parametrize("space", ["emulator", "synthetic", "observed"])
def test_a_row_is_the_fit_of_its_star(tiny_model, stars, found, space):
    flux = stars[1][2]
    star = to_spectrum(flux.astype("f4").astype(float), tiny_model.grid, ivar=np.full(flux.shape, SIGMA**-2))
    alone = tiny_model.fit(star, space=space, method="lm")
    row = found.tables[space][2]
    assert row["object"] == "star 2"
    assert row["teff"].value == pytest.approx(alone.labels["teff"].value, rel=1e-5)
    assert row["reduced_chi2"] == pytest.approx(alone.reduced_chi2, rel=1e-3)


def test_what_was_planted_is_left_over(found):
    for residuals in found.residuals.values():
        assert np.median(residuals.to_table()["bias"]) == pytest.approx(0, abs=1)
    table = found.residuals["observed"].to_table()
    assert table["bias"][PLANTED] == pytest.approx(5, abs=1.5)
    assert table["n_values"][PLANTED] == N_STARS - 1
    assert found.residuals["observed"].statistics.half_width < found.residuals["emulator"].statistics.half_width


def test_a_bad_star_is_a_row_that_says_why(found):
    for table in found.tables.values():
        assert (table["flag_names"] == "FAILED").nonzero()[0].tolist() == [BAD]
        assert table["message"][BAD]
    assert found.n_fitted == N_STARS - 1
    assert found.observed.good.sum() == N_STARS - 1


def test_the_numbers_of_the_paper_stand_beside_ours(found):
    rows = {(row["measure"], row["of"]): (row["paper"], row["here"]) for row in found.to_table()}
    chi2 = {space: np.nanmean(table["reduced_chi2"]) for space, table in found.tables.items()}
    assert rows["reduced chi2, mean", "emulator"] == (1.97, pytest.approx(chi2["emulator"]))
    assert rows["reduced chi2, mean", "observed"] == (1.22, pytest.approx(chi2["observed"]))
    assert rows["residuals, bias", "observed"][0] == -0.01
    assert rows["residuals, beyond 3 sigma", "observed"][0] == 3.0
    assert "residuals, bias" in repr(found)


@pytest.mark.parametrize("space", ["emulator", "observed"])
def test_residuals_are_those_of_fits_of_single_stars(tiny_model, path, found, space):
    stars = [star.read() for k, star in enumerate(star_sources(TrainingSet(path, split="test"))) if k != BAD]
    alone = ResidualMap.of([tiny_model.fit(star, space=space, method="lm") for star in stars], tiny_model.grid)
    assert_same_figures(found.residuals[space], alone)


def test_autoencoders_lose_what_reconstructions_lack(tiny_model, found):
    for encoded in (found.synthetic, found.observed):
        reconstruct = getattr(
            tiny_model.translator, f"reconstruct_{'obs' if encoded.domain == 'observed' else 'synth'}"
        )
        lost = encoded.flux[encoded.good] - reconstruct(encoded.flux[encoded.good])
        assert_same_figures(
            found.autoencoders[encoded.domain], ResidualMap(lost, tiny_model.grid, in_sigma=False), scale=0.01
        )


def assert_same_figures(density, residuals, *, scale=1.0):
    """Means to the last bits of float32, and medians and widths to a cell of the density."""
    ours, theirs = density.to_table(), residuals.to_table()
    for name, precision in {"mean": 1e-5, "mean_abs": 1e-5}.items():
        np.testing.assert_allclose(ours[name], theirs[name], atol=precision * scale)
    assert (ours["n_values"] == theirs["n_values"]).all()
    assert density.statistics.bias == pytest.approx(residuals.statistics.bias, abs=0.02 * scale)
    assert density.statistics.half_width == pytest.approx(residuals.statistics.half_width, abs=0.02 * scale)


def test_domains_are_compared_by_spectra_and_latents(found):
    pytest.importorskip("sklearn")
    assert set(found.scores) == set(found.maps) == {"spectra", "latents"}
    assert found.scores["latents"] < found.scores["spectra"]
    assert [places.shape for places in found.maps["latents"]] == [(N_STARS, 2), (N_STARS - 1, 2)]


def test_examples_are_the_nearest_to_stars_of_the_paper(tiny_model, found):
    table = found.tables["observed"]
    distance = ((table["teff"].value - 4750) / 100) ** 2 + ((table["logg"].value - 2.5) / 0.3) ** 2
    nearest = table[np.nanargmin(distance)]
    for result in found.examples["K giant"].values():
        assert result.meta["object"] == nearest["object"]
    assert found.examples["K giant"]["observed"].labels["teff"].value == pytest.approx(nearest["teff"].value)


# -- which stars -------------------------------------------------------------------------------
@pytest.fixture
def drawn(tiny_model, monkeypatch):
    """Function that tells the stars that would be fitted."""

    def names(spectra, **options):
        with pytest.raises(InterruptedError) as caught:
            collect_evidence(tiny_model, spectra, n_stars=3, **options)
        return caught.value.args[0]

    def instead(fitted, *_):
        raise InterruptedError([star.name for star in fitted.stars])

    monkeypatch.setattr(fitted_sets.FittedSet, "table", instead)
    return names


def test_the_seed_draws_the_stars(drawn, path):
    assert drawn(path, seed=1) == drawn(TrainingSet(path, split="test"), seed=1)
    assert drawn(path, seed=1) != drawn(path, seed=2)
    assert drawn(path, split="train") == ["star 0", "star 1"]


def test_labels_of_the_set_go_with_their_stars(stars, found):
    np.testing.assert_allclose(found.catalogue["teff"].value, stars[0][:, 0], rtol=1e-6)
    assert found.spectra == "stars.h5, test"


def test_few_spectra_in_memory_are_enough(tiny_model, path):
    given = [star.read() for star in star_sources(TrainingSet(path, split="train"))]
    few = collect_evidence(tiny_model, given, progress=False)
    assert few.n_fitted == 2
    assert few.scores == few.maps == {}
    assert few.catalogue is None


def test_sets_without_a_star_are_refused(tiny_model, path, tmp_path):
    with pytest.raises(SpectrumError, match="none of the 1 stars can be fitted; the first: FileNotFoundError"):
        collect_evidence(tiny_model, [tmp_path / "apStar-lost.fits"], progress=False)
    with pytest.raises(FileNotFoundError, match="no FITS file in"):
        collect_evidence(tiny_model, tmp_path, progress=False)
    with pytest.raises(FileFormatError, match="spectra dev"):
        collect_evidence(tiny_model, path, split="dev", progress=False)
    with pytest.raises(ValueError, match="n_stars must be 1 or more, but is 0"):
        collect_evidence(tiny_model, path, n_stars=0)


def test_the_cuts_of_the_paper_choose_rows_of_a_set(drawn, path):
    assert drawn(path, cuts=StarCuts(snr=(100, 125))) == ["star 11", "star 12"]
    with pytest.raises(SpectrumError, match=r"no spectrum of .* passes"):
        drawn(path, cuts=StarCuts(snr=(1000, 2000)))


def test_files_that_are_cut_become_a_set_with_splits(tiny_model, path, tmp_path):
    given = [star.read() for k, star in enumerate(star_sources(TrainingSet(path, split="test"))) if k != BAD]
    few = collect_evidence(
        tiny_model, iter(given), cuts=StarCuts(snr=(30, 1000)), seed=3, folder=tmp_path, progress=False
    )
    made = tmp_path / "set" / "observed.h5"
    report = QTable.read(made.with_name("observed.report.ecsv"))
    assert few.spectra == "observed.h5, test"
    assert few.n_spectra == np.sum(report["split"] == "test") > 0
    before = made.stat()
    collect_evidence(tiny_model, given, cuts=StarCuts(snr=(30, 1000)), seed=3, folder=tmp_path, progress=False)
    assert made.stat() == before
    with pytest.raises(FileExistsError, match=r"has the files of another run .*cuts"):
        collect_evidence(tiny_model, given, cuts=StarCuts(), seed=3, folder=tmp_path, progress=False)


def test_cuts_that_cannot_be_made_are_refused(tiny_model, path, tmp_path):
    with pytest.raises(ValueError, match="a catalogue has no effect"):
        collect_evidence(tiny_model, path, cuts=StarCuts(), catalogue="allStar.fits")
    with pytest.raises(ValueError, match="cuts of files need a folder"):
        collect_evidence(tiny_model, [tmp_path / "apStar-a.fits"], cuts=StarCuts())


# -- with a mask -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def planted(tiny_model):
    """A mask of the pixel where all stars have a spike."""
    low, high = tiny_model.grid.edges(tiny_model.grid.chips[0])[PLANTED : PLANTED + 2] * u.AA
    edges = {"low": u.Quantity([low]), "high": u.Quantity([high])}
    return SpectroscopicMask(QTable(edges | {"n_pixels": [1], "bias": [0.025], "error": [0.025]}))


@pytest.fixture(scope="module")
def masked(tiny_model, path, planted):
    return collect_evidence(tiny_model, path, mask=planted, n_stars=9, progress=False)


def test_stars_are_fitted_with_and_without_a_mask(tiny_model, stars, masked, planted):
    assert list(masked.tables)[3:] == ["emulator, masked", "synthetic, masked", "observed, masked"]
    row = masked.tables["emulator, masked"][0]
    k = int(row["object"].removeprefix("star "))
    star = to_spectrum(
        stars[1][k].astype("f4").astype(float), tiny_model.grid, ivar=np.full(stars[1][k].shape, SIGMA**-2)
    )
    alone = tiny_model.fit(star, space="emulator", method="lm", ignore=planted)
    assert row["teff"].value == pytest.approx(alone.labels["teff"].value, rel=1e-5)
    assert row["dof"] == masked.tables["emulator"]["dof"][0] - 1


def test_the_spike_is_gone_from_what_a_mask_leaves(masked):
    for space in ("emulator", "observed"):
        all_pixels, others = (masked.residuals[name].to_table() for name in (space, f"{space}, masked"))
        assert np.flatnonzero(all_pixels["n_values"] != others["n_values"]).tolist() == [PLANTED]
        assert others["n_values"][PLANTED] == 0
    rows = {(row["measure"], row["of"]): row["here"] for row in masked.to_table()}
    assert rows["pixels in the mask", "all"] == pytest.approx(100 / 415)
    # the spike of 5 σ adds about 25 to χ²
    gain = rows["reduced chi2, mean", "observed"] - rows["reduced chi2, mean", "observed, masked"]
    assert gain == pytest.approx(25 / 412, abs=0.03)
    assert rows["residuals, half-width", "observed, outside the mask"] > 0


def test_a_mask_is_made_of_stars_that_are_not_fitted_with_it(tiny_model, path, tmp_path, drawn, monkeypatch):
    assert drawn(path, mask=True) == ["star 3", "star 4", "star 5", "star 6", "star 7", "star 8"]
    assert len(drawn(path, split="val", mask=True)) == 3  # there are no others


def test_figures_show_the_mask(masked):
    figures = {figure.name: figure.draw for figure in evidence_figures(masked)}
    assert {"residuals_masked", "mask", "kiel_chi2_masked"} <= set(figures)
    for ax in figures["mask"]():
        (window,) = ax.patches
        assert window.get_x() == pytest.approx(masked.mask.windows[0][0])


def test_a_report_has_the_mask(masked, few_figures, tmp_path):
    page = masked.write(tmp_path).read_text(encoding="utf-8")
    assert "The mask has 1 windows" in page
    assert SpectroscopicMask.read(tmp_path / "tables" / "mask.ecsv").windows == masked.mask.windows


# -- in a folder -------------------------------------------------------------------------------
def collect(model, path, folder, **options):
    """Evidence of 8 stars, also in processes that die."""
    fitted_sets.BLOCK = 4
    return collect_evidence(CalibratedModel.load(model), path, n_stars=8, folder=folder, progress=False, **options)


@pytest.fixture(scope="module")
def saved(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    tiny_model.save(path)
    return path


@pytest.fixture(scope="module")
def whole(saved, path):
    """The same without a folder, and without a break."""
    return collect_evidence(CalibratedModel.load(saved), path, n_stars=8, progress=False)


def assert_same(ours, theirs):
    for name, table in theirs.tables.items():
        own = ours.tables[name]
        for column in set(table.colnames) - {"seconds"}:
            np.testing.assert_array_equal(np.asarray(own[column]), np.asarray(table[column]))
    for kind in ("residuals", "autoencoders"):
        for name, density in getattr(theirs, kind).items():
            own = getattr(ours, kind)[name]
            assert (own.counts == density.counts).all()
            np.testing.assert_allclose(own.sums, density.sums, rtol=1e-12)


def test_a_report_that_is_killed_again_and_again_ends_as_if_it_had_not_been(saved, path, whole, tmp_path, monkeypatch):
    place = "cyclestarnet.training.fitted_sets"  # the second way to fit, and the second block of residuals
    deaths = [DieAtCall(place, "fit_numbered", 2), DieAtCall(place, "_read", 5), LiveOn()]
    assert list(lives(deaths, collect, saved, path, tmp_path)) == [-signal.SIGKILL, -signal.SIGKILL, 0]
    monkeypatch.setattr(fitted_sets, "fit_numbered", None)  # nothing is done again
    monkeypatch.setattr(fitted_sets, "residuals_at", None)
    assert_same(collect(saved, path, tmp_path), whole)


def test_an_interrupt_keeps_what_was_counted(saved, path, whole, tmp_path, monkeypatch):
    counted, original = [], fitted_sets.residuals_at

    def interrupted(*arguments, **options):
        if len(counted) == 1:
            raise KeyboardInterrupt
        counted.append(arguments)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fitted_sets, "residuals_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            collect(saved, path, tmp_path)
        counted.append("a second block")
        again = collect(saved, path, tmp_path)
    assert len(counted) == 3  # a block each
    assert_same(again, whole)


@pytest.mark.usefixtures("quick_workers")
def test_several_processes_give_the_same(saved, path, whole, tmp_path):
    assert_same(collect(saved, path, tmp_path, workers=2), whole)


@pytest.fixture(scope="module")
def ended(saved, path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ended")
    collect(saved, path, folder)
    return folder


@pytest.fixture
def finished(ended, tmp_path):
    """Folder of a run that has ended."""
    return Path(shutil.copytree(ended, tmp_path / "finished"))


def test_a_folder_of_another_run_is_refused(saved, path, finished, planted):
    with pytest.raises(FileExistsError, match=r"has the files of another run .*seed: 0 then, 1 now"):
        collect(saved, path, finished, seed=1)
    with pytest.raises(FileExistsError, match="mask: 'none' then"):
        collect(saved, path, finished, mask=planted)
    with pytest.raises(FileExistsError, match=r"n_stars: 8 then, 9 now.*choose another folder, or overwrite it"):
        collect_evidence(CalibratedModel.load(saved), path, n_stars=9, folder=finished, progress=False)
    state = path.stat()
    os.utime(path)  # the set is not the file that it was
    with pytest.raises(FileExistsError, match="spectra"):
        collect(saved, path, finished)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_overwriting_begins_anew_and_leaves_the_rest(saved, path, finished):
    (finished / "notes.txt").write_text("mine")
    before = read_results(finished / "tables" / "fits_observed.fits")["object"]
    collect(saved, path, finished, seed=1, overwrite=True)
    after = read_results(finished / "tables" / "fits_observed.fits")["object"]
    assert sorted(after) != sorted(before)
    assert '"seed": 1' in (finished / "run.json").read_text()
    assert (finished / "notes.txt").read_text() == "mine"


def test_files_that_are_not_of_this_run_are_made_again(saved, path, whole, finished, caplog):
    place = finished / "tables" / "fits_emulator.fits"
    table = read_results(place)
    table.meta["stars"] = "others"
    write_results(table[::-1], place)
    residuals = finished / "residuals.h5"
    residuals.write_bytes(residuals.read_bytes()[:-100])
    assert_same(collect(saved, path, finished), whole)
    assert "fits_emulator.fits has other fits" in caplog.text
    assert "residuals are counted anew" in caplog.text
    np.testing.assert_array_equal(read_results(place)["teff"].value, table["teff"].value)


def test_a_damaged_record_is_refused(saved, path, finished):
    (finished / "run.json").write_text("{")
    with pytest.raises(FileExistsError, match=r"run.json is damaged"):
        collect(saved, path, finished)
    (finished / "run.json").unlink()
    with pytest.raises(FileExistsError, match=r"there is fits_.*, but no run.json"):
        collect(saved, path, finished)


# -- the report --------------------------------------------------------------------------------
@pytest.fixture(autouse=True)
def headless():
    pytest.importorskip("matplotlib").use("Agg")


@pytest.fixture
def few_figures(monkeypatch):
    """A report has a figure that fails and one that does not."""
    figures = (
        EvidenceFigure("broken", "A figure.", lambda: 1 / 0),
        EvidenceFigure("networks", "Another.", plot_networks),
    )
    monkeypatch.setattr("cyclestarnet.plotting.evidence.evidence_figures", lambda *_, **options: figures)


def test_a_report_has_page_figures_and_tables(found, tmp_path):
    page = found.write(tmp_path, mock=tmp_path).read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page)
    shown = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"residuals", "autoencoder_observed", "k_giant", "kiel_chi2", "derivatives", "networks"} <= shown
    assert page.count("data:image/png;base64,") == len(shown)
    assert {"numbers", "layers", "fits_observed"} <= {path.stem for path in (tmp_path / "tables").iterdir()}
    assert "<td>1.97</td>" in page
    assert f"<td>star {BAD}</td>" in page
    assert "has no study.ecsv; give the folder of a study by cyclestarnet mock-lines" in page


def test_a_training_and_a_mock_study_have_figures_of_their_own(found, tmp_path):
    def names(**folders):
        return [figure.name for figure in evidence_figures(found, **folders)]

    assert names(training=tmp_path) == [*names(), "training"]
    assert names(mock=tmp_path) == [*names(), "recovery_error", "error_map"]


def test_a_figure_that_fails_does_not_cost_the_others(found, few_figures, tmp_path):
    page = found.write(tmp_path).read_text(encoding="utf-8")
    assert "Not drawn: division by zero" in page
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["networks.png"]


def test_without_scikit_learn_the_domains_are_not_compared(found, monkeypatch, caplog):
    monkeypatch.setattr(evidence, "find_spec", lambda name: None)
    assert evidence._compared(found.synthetic, found.observed, 0) == ({}, {})
    assert 'pip install "cyclestarnet[training]"' in caplog.text


def test_the_command_line(tiny_model, path, few_figures, tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    tiny_model.save(tmp_path / "tiny.safetensors")
    command = ["report", str(tmp_path / "tiny.safetensors"), str(path), "-o", str(tmp_path / "report"), "--stars", "4"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "reduced chi2, mean" in said
    assert str(tmp_path / "report" / "report.html") in said
    assert main(command) == 2
    assert "has a report; use --overwrite" in capsys.readouterr().err
    (tmp_path / "report" / "report.html").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(fitted_sets.FittedSet, "table", interrupted)
        assert main(command) == 130
    assert "interrupted; run the same command again to go on where it was" in capsys.readouterr().err
    assert main(command) == 0
    assert main([*command, "--overwrite", "--split", "dev"]) == 2
    assert "spectra dev" in capsys.readouterr().err


def test_the_options_of_the_command_line_reach_the_fits(saved, path, planted, tmp_path, monkeypatch):
    given = {}

    def instead(model, spectra, **options):
        given.update(options, spectra=spectra)
        raise KeyboardInterrupt

    monkeypatch.setattr(evidence, "collect_evidence", instead)
    command = ["report", str(saved), str(path), "-o", str(tmp_path / "report"), "--cuts", "--workers", "3"]
    assert main([*command, "--catalogue", "allStar.fits", "--mask"]) == 130
    assert given["mask"] is True
    assert (given["cuts"], given["workers"], given["catalogue"]) == (StarCuts(), 3, Path("allStar.fits"))
    assert main([*command, "--mask", "mask.ecsv"]) == 130
    assert given["mask"] == "mask.ecsv"
