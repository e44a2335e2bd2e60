"""A whole mock study, by the command line; and how its models are scored, by translations that are known."""

import json
import shutil
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
from astropy.table import QTable
from mocks import MEAN, NAMES, slopes, true_model, truth, write_study

from cyclestarnet.cli import main
from cyclestarnet.lines.config import read_mock_config
from cyclestarnet.lines.missing import find_missing_lines
from cyclestarnet.lines.mock import make_domains, make_run, observed_stars
from cyclestarnet.lines.mock_study import compare_attributions, recovery, study, trained
from cyclestarnet.spectra import to_spectrum

TRAINING = """
[log]
every = 2
checkpoint_every = 2
[model]
n_validation = 3
"""
SHOWN = "fraction seed error error_population precision recall element_accuracy set_accuracy".split()
SMALL = {"fractions": [0.0, 0.5], "n_stars": 6, "n_scored": 7}


@pytest.fixture(scope="module")
def model():
    return true_model()


@pytest.fixture(scope="module")
def model_file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "truth.safetensors"
    model.save(path)
    return path


def write(path, model_file, *, n_iterations=4, **mock):
    """File of a study of two trainings of a few iterations."""
    config = write_study(path, model=str(model_file), **(SMALL | mock))
    text = path.read_text().replace("[training]", f"[training]\nn_iterations = {n_iterations}")
    path.write_text(text + TRAINING)
    return config


@pytest.fixture(scope="module")
def done(model_file, tmp_path_factory):
    """Folder with the file of a study that the command line ran, and what it printed."""
    folder = tmp_path_factory.mktemp("study")
    write(folder / "study.toml", model_file)
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", lambda *args, **_: printed.extend(args))
        assert main(["mock-lines", str(folder / "study.toml")]) == 0
    return folder, "\n".join(printed)


@pytest.fixture(scope="module")
def config(done):
    return read_mock_config(done[0] / "study.toml")


@pytest.fixture(scope="module")
def domains(config, done):
    return make_domains(config, progress=False)


@pytest.fixture(scope="module")
def half(config, domains):
    return make_run(config, domains, 0.5, 0)


# -- recovery ----------------------------------------------------------------------------------
class Translation:
    """A model that makes complete spectra but for a factor of the flux in some pixels."""

    def __init__(self, factor, pixels):
        self.labels, self.factor = true_model().labels, np.where(pixels, factor, 1.0)

    def predict(self, labels):
        return to_spectrum(truth(self.labels.to_array(labels)) * self.factor, true_model().grid)


@pytest.mark.parametrize(("factor", "error"), [(1.0, 0.0), (1.02, 2.0), (0.97, 3.0)])
def test_recovery_is_the_mean_error_of_masked_pixels(domains, half, factor, error):
    table = recovery(Translation(factor, half.mask.pixels), domains, half.mask)
    assert table["error"].to_value(u.percent) == pytest.approx([error], abs=1e-3)
    assert table["error_elsewhere"].to_value(u.percent) == pytest.approx([0], abs=1e-3)


def test_recovery_elsewhere_is_that_of_all_other_pixels(domains, half):
    table = recovery(Translation(1.05, ~half.mask.pixels), domains, half.mask)
    assert table["error"].to_value(u.percent) == pytest.approx([0], abs=1e-3)
    assert table["error_elsewhere"].to_value(u.percent) == pytest.approx([5], abs=1e-3)


def test_recovery_is_that_of_the_k_giant(domains, half):
    table = recovery(Translation(1.0, half.mask.pixels), domains, half.mask)
    assert len(table) == 1
    assert table["teff"][0] == 4750 * u.K
    assert (table["logg"][0].value, table["fe_h"][0]) == (2.5, 0 * u.dex)


def test_depth_is_what_masked_pixels_lacked(domains, half):
    table = recovery(Translation(1.0, half.mask.pixels), domains, half.mask)
    expected = 100 * (1 - truth(domains.giant)[half.mask.pixels]).mean()
    assert table["depth"].to_value(u.percent) == pytest.approx([expected], abs=1e-3)


def test_recovery_of_many_label_sets_is_that_of_each(domains, half, monkeypatch):
    monkeypatch.setattr("cyclestarnet.lines.mock_study.BLOCK", 4)

    class Cool(Translation):
        def predict(self, labels):  # 1 % too bright per 100 K
            flux = super().predict(labels).flux.value * (1 + 1e-4 * (labels["teff"].value - 4000))[:, None]
            return to_spectrum(flux, true_model().grid)

    labels = np.tile(MEAN, (10, 1))
    labels[:, 0] = np.linspace(4000, 5500, 10)
    table = recovery(Cool(1.0, half.mask.pixels), domains, half.mask, labels, progress=False)
    np.testing.assert_allclose(table["error"].to_value(u.percent), 0.01 * (labels[:, 0] - 4000), atol=1e-3)
    np.testing.assert_array_equal(table["teff"].to_value(u.K), labels[:, 0])


def test_recovery_of_nothing_is_unknown(config, domains):
    mask = make_run(config, domains, 0.0, 0).mask
    table = recovery(Translation(1.02, np.ones(415, dtype=bool)), domains, mask)
    assert np.isnan(table["error"][0])
    assert table["error_elsewhere"].to_value(u.percent) == pytest.approx([2], abs=1e-3)


# -- attributions ------------------------------------------------------------------------------
class Restored:
    """A model that knows all that a mask took away."""

    zero_points = None

    def __init__(self, mask):
        model = true_model()
        self.name, self.labels, self.grid, self.prior = "restored", model.labels, model.grid, model.prior
        self.pixels = mask.pixels

    def predict(self, labels, domain):
        flux = truth(self.labels.to_array(labels))
        return to_spectrum(flux if domain == "observed" else np.where(self.pixels, 1, flux), self.grid)

    def derivative_spectra(self, labels, *, domain, names):
        shape = np.shape(labels["teff"])
        rows = {name: slopes()[NAMES.index(name)] * self.pixels for name in names}
        return {name: np.broadcast_to(row, (*shape, 415)) / u.dex for name, row in rows.items()}


def test_every_way_is_right_of_a_model_that_knows(half):
    model = Restored(half.mask)

    class Lines:
        table = QTable({"peak": [feature.peak for feature in half.mask.masked]})

    found = compare_attributions(model, Lines, half.mask, None, progress=False)
    assert found["way"].tolist() == [
        "derivatives of one star", "derivatives of 50 label sets", "regression over label sets",
    ]  # fmt: skip
    assert found["right"].tolist() == [1, 1, 1]
    assert found["n"].tolist() == [6, 6, 6]
    assert found["n_cno"].tolist() == [0, 0, 0]
    assert np.isnan(found["right_cno"]).all()


# -- a study -----------------------------------------------------------------------------------
def test_a_study_has_a_row_per_training(done):
    table = QTable.read(done[0] / "run" / "study.ecsv")
    assert table["fraction"].tolist() == [0.0, 0.5]
    assert table["seed"].tolist() == [0, 0]
    assert table["features"].tolist() == [0, 6]
    assert table["iterations"].tolist() == [4, 4]


def test_a_row_is_what_its_parts_say(done, domains, half):
    row = QTable.read(done[0] / "run" / "study.ecsv")[1]
    model = trained(half)
    giant = recovery(model, domains, half.mask)
    for name in ("error", "error_elsewhere", "depth"):
        assert row[name] == pytest.approx(giant[name][0].value)
    assert row["pixels"] == half.mask.pixels.sum()
    assert row["parameters"] == sum(p.numel() for p in model.translator.network.parameters())
    population = QTable.read(half.folder / "recovery.ecsv")
    assert len(population) == SMALL["n_scored"]
    assert row["error_population"] == pytest.approx(population["error"].value.mean())


@pytest.mark.parametrize("name", ["masked-0-seed-0", "masked-50-seed-0"])
def test_a_training_has_its_files(done, name):
    there = {path.name for path in (done[0] / "run" / name).iterdir()}
    assert there >= {f"{name}.safetensors", "mask.ecsv", "recovery.ecsv", "lines.ecsv", "score.ecsv", "score.json"}


def test_the_score_is_that_of_all_dips(config, domains, half):
    score = QTable.read(half.folder / "score.ecsv")
    assert score.colnames == ["fdr", "precision", "recall"]
    model, null = trained(half), trained(make_run(config, domains, 0.0, 0))
    lines = find_missing_lines(model, null=[null], fdr=1.0, seed=0, progress=False)
    np.testing.assert_allclose(score["fdr"], np.sort(lines.table["fdr"]))


def test_the_command_prints_the_table(done):
    _, printed = done
    assert "fraction seed" in printed
    assert "0.500" in printed
    assert "7 label sets" in printed


def test_a_study_that_is_done_does_nothing_again(done, monkeypatch):
    folder, _ = done
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and p.name not in ("study.ecsv",)}
    monkeypatch.setattr("cyclestarnet.lines.mock_study.prepare", _never)
    monkeypatch.setattr("cyclestarnet.lines.mock_study.find_missing_lines", _never)
    table = study(read_mock_config(folder / "study.toml"), progress=False)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert table["fraction"].tolist() == [0.0, 0.5]


def test_scores_are_made_again_with_other_settings(done, tmp_path):
    shutil.copytree(done[0], tmp_path / "copy")
    folder = tmp_path / "copy"
    config = read_mock_config(folder / "study.toml")
    study(replace(config, mock=replace(config.mock, n_scored=3)), progress=False)
    assert len(QTable.read(folder / "run" / "masked-50-seed-0" / "recovery.ecsv")) == 3


def _never(*_, **__):
    raise AssertionError("something was done again")


def test_observed_stars_are_those_of_the_training(domains):
    stars = observed_stars(domains, 5)
    assert stars.flux.shape == (5, 415)
    assert observed_stars(domains, 10_000).flux.shape == (50, 415)
    assert np.isfinite(stars.uncertainty.array).all()


def test_an_interrupted_study_goes_on(model_file, tmp_path, capsys, monkeypatch):
    path, made = tmp_path / "study.toml", []

    def finish(run, **_):  # without the fits, which take long; the second training is interrupted
        if len(made) == 1:
            made.append("interrupted")
            raise KeyboardInterrupt
        made.append(shutil.copy(model_file, run.config.model_path).name)

    write(path, model_file, n_iterations=1)
    monkeypatch.setattr("cyclestarnet.lines.mock_study.finish", finish)
    monkeypatch.setattr("cyclestarnet.lines.mock_study._scored", lambda *args: dict.fromkeys(SHOWN, args[2].fraction))
    assert main(["mock-lines", str(path)]) == 130
    assert f"run the same command again to go on: cyclestarnet mock-lines {path}" in capsys.readouterr().err
    assert main(["mock-lines", str(path)]) == 0
    assert made == ["masked-0-seed-0.safetensors", "interrupted", "masked-50-seed-0.safetensors"]
    assert QTable.read(tmp_path / "run" / "study.ecsv")["fraction"].tolist() == [0.0, 0.5]


def test_the_example_is_a_study(tmp_path, capsys):
    assert main(["mock-lines", "--example"]) == 0
    (tmp_path / "study.toml").write_text(capsys.readouterr().out)
    assert read_mock_config(tmp_path / "study.toml").mock.fractions == (0.0, 0.3)


def test_without_a_file_it_is_said_where_to_get_one(capsys):
    assert main(["mock-lines"]) == 2
    assert "cyclestarnet mock-lines --example" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"fractions": [1.5]}, "fractions must be"), ({"pixels": [0, 999]}, "pixels must lie within 0 to 415")],
)
def test_a_wrong_file_is_one_line(model_file, tmp_path, capsys, wrong, message):
    path = tmp_path / "study.toml"
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in ({"model": str(model_file)} | wrong).items())
    path.write_text(f'[run]\nfolder = "run"\n[mock]\n{lines}\n')
    assert main(["mock-lines", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
