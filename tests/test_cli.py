"""The command line, on the embedded model and the shipped star."""

import logging
import re
import shutil
import tomllib
from importlib import resources
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable

from cyclestarnet import CalibratedModel, CycleStarNetWarning
from cyclestarnet.cli import _parser as parser
from cyclestarnet.cli import main
from cyclestarnet.datasets import K_GIANT
from cyclestarnet.pipeline import read_results


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.fixture
def star_file(tmp_path):
    """A copy of the shipped apVisit."""
    with resources.as_file(resources.files("cyclestarnet.data") / K_GIANT) as path:
        return shutil.copy(path, tmp_path / K_GIANT)


def test_demo_prints_labels_and_writes_the_figure(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "figure.png")]) == 0
    printed = capsys.readouterr().out
    assert "teff" in printed
    assert "after translation to the observed domain" in printed
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_fit_writes_a_table_with_units_and_a_row_per_file(star_file, tmp_path):
    bad = tmp_path / "apStar-broken.fits"
    bad.write_bytes(b"SIMPLE  =                    T")
    output = tmp_path / "labels.ecsv"
    assert main(["fit", str(star_file), str(bad), "-o", str(output), "--space", "emulator"]) == 1
    table = QTable.read(output)
    assert list(table["success"]) == [True, False]
    assert table["teff"].unit == u.K
    assert 3600 * u.K < table["teff"][0] < 5600 * u.K


def test_fit_resumes_what_an_interrupt_left(star_file, tmp_path, monkeypatch, capsys):
    command = ["fit", str(star_file), str(tmp_path / "apStar-none.fits"), "-o", str(tmp_path / "labels.fits")]
    command += ["--space", "emulator"]
    with monkeypatch.context() as patch:  # an interrupt once all stars are fitted
        patch.setattr("cyclestarnet.pipeline.many.write_results", _interrupted)
        assert main(command) == 130
    assert "run the same command again" in capsys.readouterr().err
    monkeypatch.setattr("cyclestarnet.pipeline.fit.fit_stars", _never)
    assert main(command) == 1
    assert read_results(tmp_path / "labels.fits")["success"].tolist() == [True, False]


def _interrupted(*_):
    raise KeyboardInterrupt


def _never(*_, **__):
    raise AssertionError("a star was fitted again")


def test_fit_takes_a_pattern_that_no_shell_expanded(star_file, tmp_path):
    shutil.copy(star_file, tmp_path / "apVisit-again.fits")
    output = tmp_path / "labels.ecsv"
    assert main(["fit", str(tmp_path / "apVisit-*.fits"), "-o", str(output), "--space", "emulator"]) == 0
    assert len(read_results(output)) == 2


def test_sample_writes_a_table_and_samples(star_file, tmp_path):
    output, chains = tmp_path / "t.fits", tmp_path / "chains"
    command = ["sample", str(star_file), "-o", str(output), "--chains", str(chains), "--space", "emulator"]
    assert main([*command, "--max-steps", "3", "--seed", "2"]) == 1  # too short
    assert read_results(output)["n_steps"].tolist() == [3]
    assert [path.suffix for path in sorted(chains.iterdir())] == [".fits", ".h5"]
    assert main(command) == 2  # the table exists


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
def test_fit_passes_the_method_on(star_file, monkeypatch, capsys, method):
    def refuse(self, spectra, **options):
        raise ValueError(options["method"])

    monkeypatch.setattr(CalibratedModel, "fit_many", refuse)
    assert main(["fit", str(star_file), "--method", method]) == 2
    assert capsys.readouterr().err == f"cyclestarnet: {method}\n"


def test_fit_lets_the_continuum_vary(star_file, tmp_path):
    tables = []
    for degree in ([], ["--continuum-degree", "1"]):
        output = tmp_path / f"{len(degree)}.ecsv"
        assert main(["fit", str(star_file), "-o", str(output), "--space", "emulator", *degree]) == 0
        tables.append(read_results(output))
    trusted, free = tables
    assert (free["reduced_chi2"] < trusted["reduced_chi2"]).all()


def test_fit_refuses_a_degree_below_zero(star_file, capsys):
    assert main(["fit", str(star_file), "--continuum-degree", "-1"]) == 2
    assert "degree" in capsys.readouterr().err


def test_fit_refuses_a_suffix_before_it_fits(star_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cyclestarnet.pipeline.fit.fit_stars", _never)
    assert main(["fit", str(star_file), "-o", str(tmp_path / "labels.txt")]) == 2
    assert ".ecsv, .fits, .parquet" in capsys.readouterr().err


def test_fit_does_not_overwrite(star_file, tmp_path, capsys):
    output = tmp_path / "labels.ecsv"
    output.write_text("precious")
    assert main(["fit", str(star_file), "-o", str(output)]) == 2
    assert output.read_text() == "precious"
    assert "--overwrite" in capsys.readouterr().err


def test_info_shows_labels_and_provenance(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "mg_h" in printed
    assert "Not real spectra" in printed


def test_unknown_model_is_one_line_that_lists_those_that_exist(capsys):
    assert main(["info", "apogee-gaints"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "apogee-giants" in error


def test_train_prints_an_example_that_is_toml(capsys):
    assert main(["train", "--example"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["observed"]["path"] == "observed.h5"


def test_train_without_a_file_says_where_to_get_one(capsys):
    assert main(["train"]) == 2
    assert "cyclestarnet train --example" in capsys.readouterr().err


def test_train_names_a_file_that_is_not_there(tmp_path, capsys):
    assert main(["train", str(tmp_path / "run.toml")]) == 2
    assert capsys.readouterr().err == f"cyclestarnet: no configuration file {tmp_path / 'run.toml'}\n"


def test_info_shows_the_last_losses_and_scores_of_a_folder(tmp_path, capsys):
    (tmp_path / "losses.csv").write_text("iteration,rec_obs,latent\n50,3.5,\n100,1.25,\n")
    (tmp_path / "scores.csv").write_text("iteration,c2st,verdicts\n50,0.8,stalled\n100,0.75,\n150,0.7,collapsed\n")
    assert main(["info", str(tmp_path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        f"{tmp_path}: no checkpoint yet",
        "losses at iteration 100:",
        "rec_obs 1.25",
        "scores at iteration 150:",
        "c2st 0.7",
        "verdicts stalled (50), collapsed (150)",
    ]


def test_info_names_a_folder_that_is_no_training(tmp_path, capsys):
    assert main(["info", str(tmp_path)]) == 2
    assert "is no folder of a training" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".ecsv", ".fits"])
def test_predict_writes_the_spectrum_of_labels(tmp_path, capsys, suffix):
    output = tmp_path / f"star{suffix}"
    assert main(["predict", "teff=4500", "logg=2.2", "m_h=-0.5", "-o", str(output), "-q"]) == 0
    table, model = QTable.read(output), CalibratedModel.from_pretrained()
    with pytest.warns(CycleStarNetWarning, match="were not given"):
        flux = model.predict({"teff": 4500 * u.K, "logg": 2.2 * u.dex(u.cm / u.s**2), "m_h": -0.5 * u.dex}).flux
    np.testing.assert_array_equal(table["flux"], flux)
    assert table["wavelength"].unit == u.AA
    assert capsys.readouterr().err == ""


def test_derivatives_are_those_of_the_model(tmp_path):
    output, labels = tmp_path / "slopes.ecsv", ["teff=4500", "logg=2.2", "m_h=-0.5"]
    arguments = [*labels, "--names", "mg_h", "--domain", "synthetic", "-o", str(output)]
    with pytest.warns(CycleStarNetWarning, match="were not given"):
        assert main(["derivatives", *arguments]) == 0
    slope = QTable.read(output)["mg_h"].value
    assert slope.min() < -0.1 < 0.05 > slope.max()  # lines of magnesium get deeper


def test_missing_lines_writes_a_catalogue(tmp_path, capsys):
    output = tmp_path / "lines.ecsv"
    assert main(["missing-lines", "-n", "32", "--fdr", "1", "-o", str(output), "-q"]) == 0
    table = QTable.read(output)
    assert table["wavelength"].unit == u.AA
    assert f"{len(table)} lines" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["predict", "4500", "-o", "a.fits"], "in '4500' there is no ="),
        (["predict", "teff=hot", "-o", "a.fits"], "'hot' is no number"),
        (["predict", "teff=4500", "logg=2.2", "m_h=0", "-o", "a.txt"], "must end in .ecsv or .fits"),
        (["derivatives", "teff=4500", "logg=2.2", "tempo=1", "-o", "a.fits"], "tempo"),
        (["missing-lines", "--fdr", "5", "-o", "a.ecsv"], "fdr is a share"),
    ],
)
def test_what_is_wrong_is_one_line(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "-q"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_quiet_and_verbose_decide_what_is_told(star_file, capsys):
    told = {}
    for option in ("-q", "-v"):
        main(["fit", str(star_file), "--space", "emulator", option])
        told[option] = capsys.readouterr().err
    assert told["-q"] == ""
    assert "flags of 1 stars" in told["-v"]
    assert not logging.getLogger("cyclestarnet").handlers


def test_reference_names_every_command_and_option():
    page = Path(__file__).parents[1] / "docs/reference/command_line.rst"
    sections = re.split(r"\n(\S+)\n=+\n", page.read_text(encoding="utf-8"))
    told = dict(zip(sections[1::2], sections[2::2], strict=True))
    [commands] = [action for action in parser()._actions if action.dest == "command"]
    assert set(told) == set(commands.choices)
    for name, command in commands.choices.items():
        options = {option for action in command._actions for option in action.option_strings} - {
            "-h",
            "--help",
            "-q",
            "--quiet",
            "-v",
            "--verbose",
        }
        assert set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", told[name])) == options, name
