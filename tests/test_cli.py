"""The command line, on the embedded model and the shipped star."""

import shutil
from importlib import resources

import astropy.units as u
import pytest
from astropy.table import QTable

from cyclestarnet.cli import DEMO_STAR, main


@pytest.fixture(autouse=True)
def headless(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.fixture
def star_file(tmp_path):
    """A copy of the shipped apVisit."""
    with resources.as_file(resources.files("cyclestarnet.data") / DEMO_STAR) as path:
        return shutil.copy(path, tmp_path / DEMO_STAR)


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
