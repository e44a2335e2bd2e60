"""The evidence for a model: fits of drawn stars, the numbers of the paper beside them, and the report."""

import re

import h5py
import numpy as np
import pytest

from cyclestarnet import SpectrumError
from cyclestarnet.cli import main
from cyclestarnet.exceptions import FileFormatError
from cyclestarnet.io import TrainingSet
from cyclestarnet.io.stars import star_sources
from cyclestarnet.plotting import plot_networks
from cyclestarnet.plotting.evidence import EvidenceFigure, evidence_figures
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training import collect_evidence, evidence

SIGMA, PLANTED, BAD, N_STARS = 0.005, 77, 5, 14  # every star has a spike of 5 σ at a pixel, and one has no flux


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
        for split, rows in {"train": slice(0, 2), "test": slice(None)}.items():
            file[f"spectra {split}"] = flux[rows]
            file[f"spectra_err {split}"] = np.full(flux.shape, SIGMA)[rows]
            file[f"spectra_msk {split}"] = np.isfinite(flux)[rows].astype("u1")
            file[f"labels {split}"] = labels[rows]
            file[f"names {split}"] = [f"star {k}" for k in range(len(flux[rows]))]
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
    beyond = np.abs(found.residuals["observed"].values)
    share = 100 * np.mean(beyond[np.isfinite(beyond)] > 3)
    assert rows["residuals, beyond 3 sigma", "observed"] == (3.0, pytest.approx(share))
    assert "residuals, bias" in repr(found)


def test_autoencoders_lose_what_reconstructions_lack(tiny_model, found):
    for encoded in (found.synthetic, found.observed):
        residuals = found.autoencoders[encoded.domain]
        reconstruct = getattr(
            tiny_model.translator, f"reconstruct_{'obs' if encoded.domain == 'observed' else 'synth'}"
        )
        expected = encoded.flux[encoded.good] - reconstruct(encoded.flux[encoded.good])
        np.testing.assert_allclose(residuals.values, expected, atol=1e-6)


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

    def instead(model, stars, progress):
        raise InterruptedError([star.name for star in stars])

    monkeypatch.setattr(evidence, "_fits", instead)
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
    with monkeypatch.context() as patch:
        patch.setattr(evidence, "_fits", interrupted)
        assert main([*command, "--overwrite"]) == 130
    assert "interrupted, and nothing is saved" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--split", "dev"]) == 2
    assert "spectra dev" in capsys.readouterr().err
