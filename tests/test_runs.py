"""A training from HDF5 files to a saved model, by the command line; and what goes into it."""

import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import astropy.units as u
import h5py
import numpy as np
import pytest
import torch
from astropy.table import QTable, Table

from cyclestarnet import CalibratedModel, ContinuumRecipe, LabelSet, WavelengthGrid
from cyclestarnet.cli import main
from cyclestarnet.exceptions import FileFormatError, GridError, LabelError, ModelFileError
from cyclestarnet.io import TrainingSet
from cyclestarnet.networks.checkpoint import load_state, save_state
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training.config import read_config
from cyclestarnet.training.datasets import StoredSynthetic, SyntheticSpectra
from cyclestarnet.training.emulators import load_emulator, save_emulator
from cyclestarnet.training.inputs import read_labels
from cyclestarnet.training.logs import read_log, read_run
from cyclestarnet.training.runs import finish, joined_processes, prepare
from cyclestarnet.training.streams import StreamedSpectra, StreamedSynthetic
from cyclestarnet.training.toml import ConfigError
from cyclestarnet.training.trainer import Trainer

WAVELENGTH = 10 ** (4.18 + 6e-6 * np.r_[0:200, 260:475])
CONFIG = """
[run]
folder = "run"
name = "tiny"
[observed]
path = "observed.h5"
{observed}
[synthetic]
{synthetic}
[labels]
{labels}
[training]
n_iterations = 40
learning_rate = 2e-3
flux_mean = 0.92
flux_std = 0.11
{training}
[network]
domain = [[8, 7, 4]]
shared = [[16, 7, 4], [24, 7, 2]]
split = [[4, 7, 4], [4, 7, 2]]
shared_filters = 8
split_filters = 2
critic_spectrum = [[4, 7, 4], [8, 7, 4]]
critic_latent = [[8, 1, 1], [8, 1, 1]]
[emulator]
hidden = [24, 24]
n_components = 12
batch_size = 64
learning_rate = 0.01
n_epochs = 60
[model]
n_validation = 3
{model}
{watch}
[log]
every = 10
checkpoint_every = 20
"""

WITH_EMULATOR = 'emulator = "emulator.pt"\n'


def write_config(folder, *, synthetic='path = "synthetic.h5"', **lines):
    nothing = dict.fromkeys(("observed", "labels", "training", "model", "watch"), "")
    (folder / "run.toml").write_text(CONFIG.format(**(nothing | {"synthetic": synthetic} | lines)))
    return folder / "run.toml"


@pytest.fixture(scope="module")
def files(tmp_path_factory, line_family, tiny_emulator):
    """Folder with observed and synthetic spectra of the line family, and its emulator."""
    folder, rng, labels = tmp_path_factory.mktemp("files"), np.random.default_rng(12), line_family.labels
    with h5py.File(folder / "observed.h5", "w") as file:
        file["wavelength"] = WAVELENGTH
        for split, n in (("train", 60), ("val", 12)):
            clean = line_family(line_family.draw(n, rng), width=rng.uniform(2.0, 2.4, n), depth=1.1)
            file[f"spectra {split}"] = rng.normal(clean, 0.005).astype("f4")
            file[f"spectra_err {split}"] = np.full(clean.shape, 0.005, "f4")
            file[f"spectra_msk {split}"] = np.ones(clean.shape, "u1")
            file[f"snr {split}"] = np.full(n, 200, "f4")
    with h5py.File(folder / "synthetic.h5", "w") as file:
        values = rng.uniform(labels.lower, labels.upper, (200, 3))
        file["wavelength"], file.attrs["label_names"] = WAVELENGTH, list(labels.names)
        file["spectra train"], file["labels train"] = line_family(values).astype("f4"), values.astype("f4")
    save_emulator(tiny_emulator, labels, folder / "emulator.pt")
    return folder


@pytest.fixture
def folder(files, tmp_path):
    """A copy of the files, for one test."""
    return shutil.copytree(files, tmp_path / "copy")


@pytest.fixture(scope="module", autouse=True)
def _quick_classifier():
    """A classifier of both domains takes seconds to train; the other scores stay as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cyclestarnet.training.alignment.classifier_accuracy", lambda *samples, seed: (0.75, 0.05))
        yield


# -- the whole way -----------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    """Folder of a training that was stopped half way and called again."""
    folder = shutil.copytree(files, tmp_path_factory.mktemp("trained") / "copy")
    config = str(write_config(folder, watch="[watch]\nevery = 20"))
    assert main(["train", config, "--until", "25"]) == 0
    assert main(["train", config]) == 0
    return folder


def test_training_ends_in_a_model_that_fits(trained, line_family):
    model = CalibratedModel.load(trained / "run" / "tiny.safetensors")
    assert model.labels.names == line_family.labels.names
    star = model.predict(model.labels.to_quantities(model.prior.mean))
    assert star.flux.shape == (415,)
    assert "60 spectra" in model.provenance["observed domain"]


def test_a_stopped_and_resumed_training_is_that_of_one_go(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy", ignore=shutil.ignore_patterns("*.pt.previous", "*.csv"))
    for name in ("checkpoint.pt", "best.pt"):
        (folder / "run" / name).unlink()
    prepare(read_config(folder / "run.toml"), progress=False).trainer.run(progress=False, every=10)
    for name, iterations in {"losses.csv": [10, 20, 30, 40], "scores.csv": [20, 40]}.items():
        whole, resumed = (path / "run" / name for path in (folder, trained))
        assert list(read_log(whole)["iteration"]) == iterations
        assert whole.read_bytes() == resumed.read_bytes()


def test_the_model_has_the_weights_of_the_best_score(trained):
    scores, best = read_log(trained / "run" / "scores.csv"), load_state(trained / "run" / "best.pt")
    model = CalibratedModel.load(trained / "run" / "tiny.safetensors")
    assert best["iteration"] == scores["iteration"][scores["score"].argmin()]
    assert model.provenance["training"].startswith(f"{best['iteration']} iterations")
    for name, weight in model.translator.network.state_dict().items():
        torch.testing.assert_close(weight, best["average"][name])


def test_training_leaves_a_figure(trained):
    assert (trained / "run" / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_info_tells_how_far_a_training_is(trained, capsys):
    assert main(["info", str(trained / "run")]) == 0
    printed = capsys.readouterr().out
    assert "checkpoint of iteration 40 of 40" in printed
    for name, column in (("losses", "rec_obs"), ("scores", "sw_latent")):
        assert f"{read_log(trained / 'run' / f'{name}.csv')[column][-1]:.4g}" in printed


def test_stopping_says_how_to_go_on_and_what_differs_from_the_paper(folder, capsys):
    assert main(["train", str(write_config(folder)), "--until", "3"]) == 0
    printed = capsys.readouterr().out
    assert "stopped at iteration 3 of 40" in printed
    assert "learning_rate = 0.002" in printed
    assert "weight_obs" not in printed


def test_ctrl_c_saves_and_says_how_to_go_on(folder, capsys, monkeypatch):
    step = Trainer.step

    def step_and_press(trainer):
        if trainer.iteration == 12:
            signal.raise_signal(signal.SIGINT)
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", step_and_press)
    assert main(["train", str(write_config(folder))]) == 130
    assert "To go on, run the same command again" in capsys.readouterr().err
    assert read_run(folder / "run").iteration == 13
    assert (folder / "run" / "progress.png").exists()


def test_ctrl_c_before_the_first_step_does_not_say_that_anything_is_saved(folder, capsys, monkeypatch):
    def interrupt(*_, **options):
        raise KeyboardInterrupt  # not by a signal: background jobs of a shell ignore SIGINT

    monkeypatch.setattr("cyclestarnet.training.emulators.train_emulator", interrupt)
    assert main(["train", str(write_config(folder))]) == 130
    assert "interrupted before the training began, and nothing is saved" in capsys.readouterr().err


def test_a_figure_that_fails_hides_no_error_of_the_training(folder, capsys, caplog, monkeypatch):
    def fail(*_, **options):
        (folder / "run").mkdir(exist_ok=True)
        (folder / "run" / "losses.csv").write_text("iteration,rec_obs\n1,2\n")
        raise FloatingPointError("the loss is not finite")

    monkeypatch.setattr(Trainer, "run", fail)
    monkeypatch.setattr("cyclestarnet.plotting.training.plot_training", lambda *_: 1 / 0)
    assert main(["train", str(write_config(folder, synthetic=WITH_EMULATOR + "labels = {}"))]) == 2
    assert "the loss is not finite" in capsys.readouterr().err
    assert "progress.png cannot be drawn: division by zero" in caplog.text


def test_processes_wait_for_the_first_one_as_long_as_it_needs(folder, monkeypatch):
    given = {}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    for name in ("get_rank", "barrier", "destroy_process_group"):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda: 0)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **options: given.update(options))
    with joined_processes(read_config(write_config(folder))):
        assert given["timeout"].total_seconds() >= 12 * 3600  # an emulator may take hours


def test_processes_without_their_devices_say_so(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = read_config(write_config(folder))
    config = replace(config, run=replace(config.run, device="cuda"))
    with pytest.raises(ConfigError, match="PyTorch finds no CUDA device"), joined_processes(config):
        pass


@pytest.mark.slow
def test_two_processes_train_as_one_does(folder):
    config = str(write_config(folder, synthetic=WITH_EMULATOR + "labels = {}"))
    assert main(["train", config, "--until", "10"]) == 0
    losses = folder / "run" / "losses.csv"
    alone = read_log(losses)
    shutil.rmtree(folder / "run")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, "-m", "cyclestarnet.cli", "train", config, "--until", "10"], check=True, timeout=300)
    assert read_log(losses)["rec_obs"] == pytest.approx(alone["rec_obs"], rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": "weight_ob = 3"}, "[training] has no key 'weight_ob'; did you mean 'weight_obs'?"),
        ({"observed": 'validation = "test"'}, "[observed] in"),
        ({"observed": "pixels = [0, 400]"}, "choose [observed] pixels"),
        ({"labels": 'names = ["teff", "logg"]'}, "names must be 3, but are 2: teff, logg"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_the_first_step(folder, capsys, changes, message):
    assert main(["train", str(write_config(folder, **changes))]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "run.toml" in error
    assert not (folder / "run" / "checkpoint.pt").exists()


# -- what goes into it -------------------------------------------------------------------
def prepared(folder, **changes):
    return prepare(read_config(write_config(folder, **changes)), progress=False)


def test_the_grid_comes_from_the_file_and_chips_end_at_leaps(folder):
    run = prepared(folder, synthetic=WITH_EMULATOR + "labels = {}")
    np.testing.assert_array_equal(run.domains.grid.wavelength.value, WAVELENGTH)
    assert run.domains.grid.chips == ((0, 200), (200, 415))


def test_labels_are_drawn_from_ranges_and_else_from_the_whole_range(folder, line_family):
    run = prepared(folder, synthetic=WITH_EMULATOR + "labels = {teff = [4500, 4600]}\nn_drawn = 5000")
    assert isinstance(run.trainer.synthetic, SyntheticSpectra)
    lower, upper = np.array([4500, 0.5, -1.0]), np.array([4600, 3.5, 0.5])
    assert np.all((run.domains.label_pool >= lower) & (run.domains.label_pool <= upper))
    np.testing.assert_allclose(run.domains.label_pool.std(0), (upper - lower) / np.sqrt(12), rtol=0.05)


def test_the_same_seed_draws_the_same_labels(folder):
    first, second = (prepared(folder, synthetic=WITH_EMULATOR + "labels = {}").domains.label_pool for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_labels_of_a_file_are_the_prior_as_far_as_they_are_in_range(folder, line_family):
    values = np.array([[4500, 2.0, 0.0], [4700, 3.0, -0.5], [9000, 2.0, 0.0]])
    np.savez(folder / "pool.npz", pool=values)
    run = prepared(folder, synthetic=WITH_EMULATOR + 'labels = "pool.npz"')
    np.testing.assert_array_equal(run.domains.label_pool, values[:2])


def test_stored_spectra_within_the_range_are_trained_on(folder):
    shutil.copy(folder / "emulator.pt", folder / "given.pt")
    run = prepared(
        folder,
        synthetic='path = "synthetic.h5"\nemulator = "given.pt"',
        labels='names = ["teff", "logg", "mg_h"]\nlower = [4500, 0.5, -1.0]\nupper = [5500, 3.5, 0.5]',
    )
    with h5py.File(folder / "synthetic.h5") as file:
        warm = file["labels train"][:, 0] >= 4500
    assert isinstance(run.trainer.synthetic, StoredSynthetic)
    assert len(run.trainer.synthetic) == len(run.domains.label_pool) == warm.sum()


BOTH = WITH_EMULATOR + 'path = "synthetic.h5"'


@pytest.mark.parametrize("synthetic", [BOTH, 'path = "synthetic.h5"'])
def test_labels_of_stored_spectra_are_known_by_name(folder, synthetic):
    own = "" if synthetic is BOTH else 'names = ["teff", "logg", "mg_h"]'
    with h5py.File(folder / "synthetic.h5", "r+") as file:
        truth = file["labels train"][:]
        file["labels train"][:], file.attrs["label_names"] = truth[:, [2, 0, 1]], ["mg_h", "teff", "logg"]
    run = prepared(folder, synthetic=synthetic, labels=own)
    assert run.domains.labels.names == ("teff", "logg", "mg_h")
    np.testing.assert_array_equal(run.domains.label_pool, truth)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["teff", "logg", "fe_h"], "has the labels teff, logg, fe_h, but must have teff, logg, mg_h"),
        (["teff", "logg"], "has the labels teff, logg, but must have"),
        (None, "has 2 labels, but must have teff, logg, mg_h"),
    ],
)
def test_other_labels_of_stored_spectra_are_refused(folder, names, message):
    with h5py.File(folder / "synthetic.h5", "r+") as file:
        values = file["labels train"][:, : len(names or "ab")]
        del file["labels train"], file.attrs["label_names"]
        file["labels train"] = values
        if names:
            file.attrs["label_names"] = names
    with pytest.raises(ConfigError, match=rf"\[synthetic\] path in .*synthetic\.h5 {message}"):
        prepared(folder, synthetic=BOTH)


def test_names_of_the_configuration_cannot_rename_an_emulator_that_knows_its_own(folder):
    with pytest.raises(ConfigError, match=r"\[labels\] in .*names are logg, teff, mg_h, but those of the emulator"):
        prepared(folder, synthetic=BOTH, labels='names = ["logg", "teff", "mg_h"]')


def test_a_watch_needs_spectra_to_look_at(folder):
    with h5py.File(folder / "observed.h5", "r+") as file:
        file["snr val"][:3] = 10
    with pytest.raises(ConfigError, match=r"\[observed\] in .*: 9 spectra of .* pass the selection; 10 are needed"):
        prepared(folder, watch="[watch]")


def test_streamed_spectra_are_not_held_in_memory(folder):
    run = prepared(
        folder,
        observed='memory = "streamed"',
        synthetic='path = "synthetic.h5"\nmemory = "streamed"\nemulator = "emulator.pt"',
    )
    assert isinstance(run.trainer.observed, StreamedSpectra)
    assert isinstance(run.trainer.synthetic, StreamedSynthetic)


def test_a_cut_holds_for_spectra_and_emulator(folder, tiny_emulator):
    n = 415 - 32  # one position of the latent less
    run = prepared(folder, observed=f"pixels = [16, {16 + n}]", synthetic=WITH_EMULATOR + 'path = "synthetic.h5"')
    labels = torch.tensor([[4700.0, 2.0, 0.0]])
    assert run.domains.grid.chips == ((0, 184), (184, n))
    torch.testing.assert_close(run.domains.emulator(labels), tiny_emulator(labels)[:, 16 : 16 + n])
    assert run.trainer.synthetic.n_pixels == run.trainer.observed.n_pixels == n


def test_an_emulator_of_other_settings_in_the_folder_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "copy")
    text = (folder / "run.toml").read_text()
    (folder / "run.toml").write_text(text.replace("n_epochs = 60", "n_epochs = 61"))
    with pytest.raises(ConfigError, match=r"emulator\.pt was made with other settings"):
        prepare(read_config(folder / "run.toml"), progress=False)


@pytest.mark.parametrize("column", ["pixel", "wavelength"])
def test_continuum_pixels_come_from_a_table(folder, column):
    pixels = np.r_[5:200:20, 210:410:20]
    Table({column: pixels if column == "pixel" else WAVELENGTH[pixels] + 0.01}).write(folder / "continuum.ecsv")
    grid = WavelengthGrid(WAVELENGTH * u.AA, ((0, 200), (200, 415)))
    recipe = ContinuumRecipe(grid, np.isin(np.arange(415), pixels))
    with h5py.File(folder / "observed.h5", "r+") as file:
        flux, ivar = (
            file["spectra train"][()].astype(float),
            file["spectra_msk train"][()] / file["spectra_err train"][()] ** 2.0,
        )
        for _ in range(3):  # these pixels hold lines, so that it takes several times
            flux /= recipe(flux, ivar)
        file["spectra train"][...] = flux
    run = prepared(folder, synthetic=WITH_EMULATOR + "labels = {}", model='continuum = "continuum.ecsv"')
    np.testing.assert_array_equal(np.flatnonzero(run.domains.recipe.pixels), pixels)


def test_observed_spectra_of_another_continuum_are_refused(folder):
    Table({"pixel": np.r_[5:200:20, 210:410:20]}).write(folder / "continuum.ecsv")
    with pytest.raises(ConfigError, match=r"\[observed\] path in .*: .* was not normalised by the continuum recipe"):
        prepared(folder, synthetic=WITH_EMULATOR + "labels = {}", model='continuum = "continuum.ecsv"')


def test_continuum_pixels_that_leave_a_chip_empty_are_refused(folder):
    Table({"pixel": np.arange(50)}).write(folder / "continuum.ecsv")
    with pytest.raises(ConfigError, match=r"\[model\] continuum in .*: Chip 1 has 0 continuum pixels"):
        prepared(folder, synthetic=WITH_EMULATOR + "labels = {}", model='continuum = "continuum.ecsv"')


def test_a_selection_that_nothing_passes_is_named(folder):
    with pytest.raises(ConfigError, match=r"\[observed\] in .*run\.toml: no spectrum of .* passes"):
        prepared(folder, observed="[observed.selection]\nsnr = [300, 400]")


def test_a_shift_of_the_prior_in_training_is_a_shift_of_the_prior_of_the_model(folder, monkeypatch):
    # fits take seconds
    monkeypatch.setattr("cyclestarnet.training.assembly.learn_errors", lambda model, *_, **options: model)
    ranges = "labels = {logg = [1.5, 2.5], teff = [4500, 4500]}"
    run = prepared(folder, synthetic=WITH_EMULATOR + ranges, training="prior_rate = 0.01")
    run.trainer.parts.prior_shift.data = torch.tensor([3.0, 0.5, 0.0])
    moved = CalibratedModel.load(finish(run, progress=False)).prior.mean - run.domains.label_pool.mean(0)
    np.testing.assert_allclose(moved, [3, 0.5 / np.sqrt(12), 0], rtol=0.02, atol=1e-6)  # a label that is constant: 1 K


def test_a_configuration_may_choose_the_residual_form(folder, monkeypatch):
    # fits take seconds
    monkeypatch.setattr("cyclestarnet.training.assembly.learn_errors", lambda model, *_, **options: model)
    run = prepared(folder, synthetic=WITH_EMULATOR + "labels = {}", model='translation = "residual"')
    assert CalibratedModel.load(finish(run, progress=False)).translation == "residual"


# -- stars of known labels -----------------------------------------------------------------
KNOWN = {"observed": 'known = "known.h5"', "synthetic": WITH_EMULATOR + "labels = {}"}


@pytest.fixture(scope="module")
def known_file(files, line_family):
    """File of observed-like stars whose log g and [alpha/M] are known; log g is 3 too high in the file."""
    rng = np.random.default_rng(31)
    with h5py.File(files / "known.h5", "w") as file:
        file["wavelength"], file.attrs["label_names"] = WAVELENGTH, ["logg", "alpha_m"]
        for split, n in (("val", 16), ("test", 9)):
            labels = line_family.draw(n, rng)
            clean = line_family(labels, width=2.2, depth=1.1)
            file[f"spectra {split}"] = rng.normal(clean, 0.005).astype("f4")
            file[f"spectra_err {split}"] = np.full(clean.shape, 0.005, "f4")
            file[f"spectra_msk {split}"] = np.ones(clean.shape, "u1")
            file[f"labels {split}"] = (labels[:, 1:] + [3, 0]).astype("f4")
            file[f"snr {split}"] = np.full(n, 200, "f4")
    return files / "known.h5"


@pytest.fixture(scope="module")
def judged(known_file, tmp_path_factory):
    """Folder of a training with stars of known labels."""
    folder = shutil.copytree(known_file.parent, tmp_path_factory.mktemp("judged") / "copy")
    finish(prepared(folder, **KNOWN), progress=False)
    return folder


def test_errors_of_labels_are_learnt_from_known_ones(judged):
    """Of log g alone: [Mg/H] is known under another name, which is a combination, and Teff is not."""
    model = CalibratedModel.load(judged / "run" / "tiny.safetensors")
    assert np.argwhere(model.noise.label_error).tolist() == [[1, 1]]
    assert model.provenance["label errors"] == "learnt from 16 stars of known labels, known.h5"


def test_model_is_judged_by_stars_that_it_did_not_learn_from(judged):
    table = QTable.read(judged / "run" / "tiny.labels.ecsv")
    assert table["label", "unit", "n"].as_array().tolist() == [("logg", "dex", 9), ("alpha_m", "dex", 9)]
    model, known = (
        CalibratedModel.load(judged / "run" / "tiny.safetensors"),
        TrainingSet(judged / "known.h5", split="test"),
    )
    flux, sigma, _ = known.read(0, 9)
    fits = model.fit_many(to_spectrum(flux, model.grid, ivar=sigma**-2.0), progress=False)
    offset = fits["logg"].value - known.labels[:, 0]
    assert table["bias"][0] == pytest.approx(np.median(offset), abs=1e-4)
    assert table["cover_68"][0] == pytest.approx(np.mean(np.abs(offset) < fits["logg_err"].value))


def test_model_without_known_stars_has_no_label_error(trained):
    assert CalibratedModel.load(trained / "run" / "tiny.safetensors").noise.label_error is None
    assert not (trained / "run" / "tiny.labels.ecsv").exists()


@pytest.mark.parametrize(
    ("names", "said"),
    [(["na_h", "alpha_m"], "knows na_h, which the model does not have"), (None, "the attribute label_names")],
)
def test_known_labels_that_cannot_be_used_are_refused_before_the_training(folder, known_file, names, said):
    shutil.copy(known_file, folder / "known.h5")
    with h5py.File(folder / "known.h5", "r+") as file:
        del file.attrs["label_names"]
        if names:
            file.attrs["label_names"] = names
    with pytest.raises(ConfigError, match=rf"\[observed\] known in .*{said}"):
        prepared(folder, **KNOWN)


def test_combinations_alone_teach_no_errors(folder, known_file):
    shutil.copy(known_file, folder / "known.h5")
    with h5py.File(folder / "known.h5", "r+") as file:
        values = file["labels val"][:, 1:]
        del file["labels val"], file["labels test"], file.attrs["label_names"]
        file["labels val"], file.attrs["label_names"] = values, ["alpha_m"]
    with pytest.raises(ConfigError, match="must know some of the labels teff, logg, mg_h, but knows alpha_m"):
        prepared(folder, **KNOWN)


def test_too_few_known_stars_are_refused(folder, known_file):
    shutil.copy(known_file, folder / "known.h5")
    with h5py.File(folder / "known.h5", "r+") as file:
        file["snr val"][3:] = 5
    with pytest.raises(ConfigError, match=r"3 spectra of .* pass the selection; 8 are needed"):
        prepared(folder, **KNOWN)


def test_anchors_come_from_a_file_of_known_labels(folder, line_family, rng):
    shutil.copy(folder / "observed.h5", folder / "anchors.h5")
    values = line_family.draw(60, rng)
    with h5py.File(folder / "anchors.h5", "r+") as file:
        file["labels train"] = values
    options = {"training": "weight_anchors = 1.0", "synthetic": WITH_EMULATOR + "labels = {}"}
    run = prepared(folder, observed='anchors = "anchors.h5"', **options)
    np.testing.assert_allclose(run.trainer.anchors.labels, values, rtol=1e-6)
    with h5py.File(folder / "anchors.h5", "r+") as file:
        file.attrs["label_names"] = ["logg", "teff", "mg_h"]
    with pytest.raises(ConfigError, match=r"\[observed\] anchors in .*: the labels of .* are .* but must be"):
        prepared(folder, observed='anchors = "anchors.h5"', **options)


# -- emulators and labels ------------------------------------------------------------------
def test_an_emulator_without_its_layout_is_read_all_the_same(tmp_path, tiny_emulator, line_family):
    state = {"emulator": tiny_emulator.state_dict(), "labels": line_family.labels.to_dict()}
    save_state(state, tmp_path / "emulator.pt")
    emulator, labels = load_emulator(tmp_path / "emulator.pt")
    values = torch.tensor([[4700.0, 2.0, 0.0]])
    torch.testing.assert_close(emulator(values), tiny_emulator(values))
    assert labels == line_family.labels


def test_the_emulator_of_a_model_is_for_its_own_wavelengths(trained):
    path = trained / "run" / "tiny.safetensors"
    model = CalibratedModel.load(path)
    emulator, labels = load_emulator(path, grid=model.grid)
    assert labels == model.labels
    assert emulator.n_pixels == 415
    other = replace(model.grid, wavelength=model.grid.wavelength * 1.001)
    with pytest.raises(GridError, match=r"the emulator of .* is for"):
        load_emulator(path, grid=other)


def test_a_file_without_an_emulator_is_named(tmp_path):
    save_state({"iteration": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(ModelFileError, match=r"checkpoint\.pt holds no emulator"):
        load_emulator(tmp_path / "checkpoint.pt")


PAIR = LabelSet(["teff", "mg_h"], [3000, -2], [8000, 1])


@pytest.mark.parametrize("name", ["labels.ecsv", "labels.csv", "labels.fits", "labels.npz", "labels.h5"])
def test_labels_come_by_name_and_in_their_units(tmp_path, name):
    path, teff, mg_h = tmp_path / name, np.array([4000.0, 5000.0]), np.array([0.1, -0.2])
    if path.suffix == ".npz":
        np.savez(path, mg_h=mg_h, teff=teff / 1000)  # kK, as in the public files
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["spectra train"], file.attrs["label_names"] = np.ones((2, 5)), ["mg_h", "teff"]
            file["labels train"] = np.stack([mg_h, teff], axis=1)
    elif path.suffix == ".csv":
        Table({"snr": [10, 20], "mg_h": mg_h, "teff": teff}).write(path)
    else:
        QTable({"mg_h": mg_h, "teff": (teff * u.K).to(u.mK)}).write(path)
    np.testing.assert_allclose(read_labels(path, PAIR), np.stack([teff, mg_h], axis=1), rtol=1e-6)


def test_labels_that_are_missing_are_named(tmp_path):
    Table({"teff": [4000.0], "fe_h": [0.0]}).write(tmp_path / "labels.csv")
    with pytest.raises(LabelError, match=r"labels\.csv lacks the labels mg_h; it has teff, fe_h"):
        read_labels(tmp_path / "labels.csv", PAIR)
    np.savez(tmp_path / "labels.npz", labels=np.ones((4, 3)))
    with pytest.raises(LabelError, match=r"must have the shape \(n, 2\), but have \(4, 3\)"):
        read_labels(tmp_path / "labels.npz", PAIR)


def test_a_file_that_is_no_table_is_named(tmp_path):
    (tmp_path / "labels.npz").write_bytes(b"nothing")
    with pytest.raises(FileFormatError, match=r"labels\.npz cannot be read as a table of labels"):
        read_labels(tmp_path / "labels.npz", PAIR)
