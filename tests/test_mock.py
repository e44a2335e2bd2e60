"""The mock study of missing lines, on an emulator that is linear in the labels: flux, slopes and features are known."""

from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from mocks import (
    GRID,
    LABELS,
    LINES,
    MEAN,
    NAMES,
    REACH,
    SIGMA,
    N,
    flux_of,
    linear_emulator,
    true_model,
    truth,
    write_study,
)

from cyclestarnet import WavelengthGrid
from cyclestarnet.files import write_atomically
from cyclestarnet.io import TrainingSet
from cyclestarnet.lines.config import read_mock_config
from cyclestarnet.lines.features import FeatureMask
from cyclestarnet.lines.mock import make_domains, make_run, masked_emulator
from cyclestarnet.training.emulators import load_emulator
from cyclestarnet.training.runs import prepare
from cyclestarnet.training.toml import ConfigError


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A model whose emulator is the truth; its networks are not trained."""
    path = tmp_path_factory.mktemp("model") / "truth.safetensors"
    true_model().save(path)
    return path


@pytest.fixture
def study(model_file, tmp_path):
    """Function that writes the configuration of a study of the model; options change it."""
    return lambda **options: write_study(tmp_path / "study.toml", **({"model": str(model_file)} | options))


@pytest.fixture(scope="module")
def config(model_file, tmp_path_factory):
    """Configuration of a study whose files are there; tests only look at them."""
    return write_study(tmp_path_factory.mktemp("study") / "study.toml", model=str(model_file))


@pytest.fixture(scope="module")
def domains(config):
    """Its domains, made in several blocks of spectra."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cyclestarnet.lines.mock.ROWS", 16)
        return make_domains(config, progress=False)


@pytest.fixture(scope="module")
def half(config, domains):
    """One of its trainings, on synthetic spectra without half of the features."""
    return make_run(config, domains, 0.5, seed=2)


def observed(folder):
    """Labels, flux, errors and signal-to-noise ratios of both splits of a study."""
    with h5py.File(folder / "observed.h5") as file:
        kinds = ("labels", "spectra", "spectra_err", "snr")
        return [np.concatenate([file[f"{kind} {split}"][:] for split in ("train", "val")]) for kind in kinds]


def contents(folder):
    """All numbers in a study's files."""
    with h5py.File(folder / "observed.h5") as file:
        return {name: dataset[:] for name, dataset in file.items()} | {"pool": np.load(folder / "labels.npz")["labels"]}


def assert_same_files(one, other):
    one, other = contents(one), contents(other)
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


# -- the masked emulator ---------------------------------------------------------------------
@pytest.fixture
def some_pixels():
    return np.isin(np.arange(N), [0, 19, 20, 21, 230, N - 1])


def test_masked_pixels_are_continuum_whatever_the_labels(some_pixels, rng):
    masked = masked_emulator(linear_emulator(), some_pixels)
    wild = rng.uniform(LABELS.lower - 10 * LABELS.scale, LABELS.upper + 10 * LABELS.scale, (100, len(NAMES)))
    assert (flux_of(masked, wild)[:, some_pixels] == 1).all()


def test_other_pixels_are_as_they_were(some_pixels, rng):
    emulator, labels = linear_emulator(), rng.uniform(LABELS.lower, LABELS.upper, (100, len(NAMES)))
    masked = masked_emulator(emulator, some_pixels)
    others = ~some_pixels
    np.testing.assert_array_equal(flux_of(masked, labels)[:, others], flux_of(emulator, labels)[:, others])


def test_masking_does_not_touch_the_original(some_pixels):
    emulator, before = linear_emulator(), linear_emulator().state_dict()
    masked_emulator(emulator, some_pixels)
    assert all(torch.equal(array, before[name]) for name, array in emulator.state_dict().items())


# -- what the domains are made of ------------------------------------------------------------
def test_strong_features_are_the_lines(domains):
    found = {(f.label, f.start, f.peak, f.stop) for f in domains.features}
    assert found == {(e, c - REACH, c, c + REACH + 1) for e, centres in LINES.items() for c in centres}


def test_features_are_those_of_the_k_giant(domains):
    giant = dict(zip(NAMES, domains.giant, strict=True))
    assert giant == pytest.approx({"teff": 4750, "logg": 2.5, "vmicro": 1.5, "m_h": 0, "fe_h": 0, "mg_h": 0})
    assert {name: float(value) for name, value in domains.features.settings["labels"].items()} == pytest.approx(giant)


def test_the_complete_emulator_is_the_truth(domains):
    np.testing.assert_allclose(flux_of(domains.emulator, domains.pool), truth(domains.pool), atol=1e-5)


@pytest.mark.parametrize(("split", "number"), [("train", 50), ("val", 20)])
def test_observed_spectra_are_a_training_set(domains, split, number):
    table = TrainingSet(domains.folder / "observed.h5", split=split, grid=GRID)
    assert (table.n_spectra, table.n_pixels, table.label_names) == (number, N, NAMES)
    assert np.isfinite(table.snr).all()
    _, _, mask = table.read(0, number)
    assert not mask.any()


def test_noise_is_standard_normal(domains):
    labels, flux, sigma, _ = observed(domains.folder)
    pulls = (flux - truth(labels)) / sigma
    n = pulls.size
    assert abs(pulls.mean()) < 4 / np.sqrt(n)
    assert abs(pulls.std() - 1) < 4 / np.sqrt(2 * n)


def test_noise_of_every_spectrum_and_pixel_is_its_own(domains):
    labels, flux, sigma, _ = observed(domains.folder)
    pulls = (flux - truth(labels)) / sigma
    for along in (pulls, pulls.T):  # two rows of noise have a correlation of 0 ± 1/√n
        apart = np.corrcoef(along)[np.triu_indices(len(along), 1)]
        assert abs(apart).max() < 6.5 / np.sqrt(along.shape[1])


def test_errors_are_those_of_the_signal_to_noise_ratio(domains):
    _, _, sigma, snr = observed(domains.folder)
    np.testing.assert_allclose(sigma, np.repeat(1 / snr[:, None], N, axis=1), rtol=1e-6)


def test_signal_to_noise_ratios_are_log_normal(study):
    config = study(snr=[20, 10_000], n_observed=250, n_drawn=400)
    _, _, _, snr = observed(make_domains(config, progress=False).folder)
    n = len(snr)
    assert abs(np.log(snr / 120).mean()) < 4 * 0.5 / np.sqrt(n)
    assert abs(np.log(snr).std() - 0.5) < 4 * 0.5 / np.sqrt(2 * n)


def test_signal_to_noise_ratios_stay_in_their_range(study):
    _, _, _, snr = observed(make_domains(study(snr=[100, 130]), progress=False).folder)
    assert (snr.min(), snr.max()) == (100, 130)  # a quarter of the distribution lies on either side
    assert len(np.unique(snr)) > 10


def test_no_star_is_in_both_domains_or_in_two_splits(domains):
    rows = [*observed(domains.folder)[0], *domains.pool]
    assert len(rows) == 300
    assert len({tuple(row) for row in rows}) == 300


def test_both_domains_have_labels_of_the_prior(domains):
    for labels in (observed(domains.folder)[0], domains.pool):
        pulls, n = (labels - MEAN) / SIGMA, len(labels)
        assert (abs(pulls.mean(0)) < 4 / np.sqrt(n)).all()
        assert (abs(pulls.std(0) - 1) < 4 / np.sqrt(2 * n)).all()


# -- labels of a file ------------------------------------------------------------------------
@pytest.fixture
def table(tmp_path):
    """400 rows of labels, in a file beside the configuration: all solar, and of different temperatures."""
    labels = np.tile([4700, 2.0, 1.5, 0.0, 0.0, 0.0], (400, 1))
    labels[:, 0] = np.linspace(4500, 4900, 400)
    np.savez(tmp_path / "table.npz", labels=labels)
    return labels


def both(domains):
    """Labels of both domains."""
    return np.concatenate([domains.pool, observed(domains.folder)[0]])


def test_elements_vary_on_their_own_by_as_much_as_is_said(study, table):
    rows = both(make_domains(study(labels="table.npz", element_scatter=0.1), progress=False))
    elements, n = rows[:, [NAMES.index(name) for name in LINES]], len(rows)
    assert (abs(elements.mean(0)) < 4 * 0.1 / np.sqrt(n)).all()
    assert (abs(elements.std(0) - 0.1) < 4 * 0.1 / np.sqrt(2 * n)).all()
    assert abs(np.corrcoef(elements.T)[0, 1]) < 4 / np.sqrt(n)


@pytest.mark.parametrize("scatter", [0.0, 0.1])
def test_labels_that_are_no_elements_are_those_of_the_file(study, table, scatter):
    rows = both(make_domains(study(labels="table.npz", element_scatter=scatter), progress=False))
    others = [k for k, name in enumerate(NAMES) if name not in LINES or scatter == 0]
    np.testing.assert_array_equal(rows[rows[:, 0].argsort()][:, others], table[:, others])


def test_labels_stay_in_the_range_of_the_model(study, table):
    rows = both(make_domains(study(labels="table.npz", element_scatter=1.0), progress=False))
    assert (rows >= LABELS.lower).all()
    assert (rows <= LABELS.upper).all()


def test_rows_without_labels_are_left_out(study, table, tmp_path):
    table[:5, 2] = np.nan
    np.savez(tmp_path / "table.npz", labels=table)
    domains = make_domains(study(labels="table.npz"), progress=False)
    assert len(both(domains)) == 395
    assert np.isfinite(both(domains)).all()


def test_too_few_labels_are_an_error(study):
    with pytest.raises(ConfigError, match=r"\[mock\] n_observed and n_validation take 70 labels in .*there are 71"):
        make_domains(study(n_drawn=71), progress=False)


# -- seeds and folders -----------------------------------------------------------------------
def test_the_same_seed_gives_the_same_files(study):
    folders = [make_domains(study(folder=name), progress=False).folder for name in ("one", "other")]
    assert_same_files(*folders)


def test_another_seed_gives_other_spectra_and_labels(study):
    one, other = (contents(make_domains(study(folder=f"{s}", seed=s), progress=False).folder) for s in (3, 4))
    for name in ("labels train", "snr train", "spectra train", "labels val", "spectra val", "pool"):
        assert not np.array_equal(one[name], other[name]), name


def test_files_that_are_there_are_not_made_again(study):
    first = make_domains(study(), progress=False)
    before = {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    second = make_domains(study(), progress=False)
    assert {path.name: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before
    assert second.grid == first.grid
    np.testing.assert_array_equal(second.pool, first.pool)
    assert list(second.features) == list(first.features)
    np.testing.assert_array_equal(flux_of(second.emulator, first.pool), flux_of(first.emulator, first.pool))


@pytest.mark.parametrize(
    "change", [{"pixels": [0, 319]}, {"snr": [30, 400]}, {"element_scatter": 0.1}, {"n_observed": 51}, {"seed": 4}]
)
def test_a_folder_is_of_one_study(domains, study, change):
    other = study(folder=str(domains.folder), **change)
    (name,) = change
    with pytest.raises(ConfigError, match=rf"the spectra of a study with other settings \({name}\)") as caught:
        make_domains(other, progress=False)
    assert str(domains.folder) in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"fractions": [0.0, 0.8]}, {"seeds": [1, 2]}, {"n_stars": 5}, {"n_scored": 7}, "learning rate"]
)
def test_what_does_not_change_the_spectra_can_be_changed(domains, config, study, change):
    if change == "learning rate":
        other = replace(config, training=replace(config.training, learning_rate=1e-3))
    else:
        other = study(folder=str(domains.folder), **change)
    np.testing.assert_array_equal(make_domains(other, progress=False).pool, domains.pool)


def test_a_study_is_the_same_from_everywhere(study, table, tmp_path, monkeypatch):
    make_domains(study(labels="table.npz"), progress=False)
    monkeypatch.chdir(tmp_path)
    again = make_domains(read_mock_config("study.toml"), progress=False)
    assert len(both(again)) == 400


def test_a_study_can_be_named_by_a_relative_path(study, table, tmp_path, monkeypatch):
    study(labels="table.npz")
    monkeypatch.chdir(tmp_path.parent)
    config = read_mock_config(f"{tmp_path.name}/study.toml")
    assert len(both(make_domains(config, progress=False))) == 400


def test_a_training_of_other_settings_is_not_taken_over(config, domains):
    make_run(config, domains, 0.5, seed=4)
    other = replace(config, training=replace(config.training, learning_rate=0.5))
    with pytest.raises(ConfigError, match=r"masked-50-seed-4 has a training of other settings \(learning_rate\)"):
        make_run(other, domains, 0.5, seed=4)


def test_the_file_of_a_model_is_beside_the_configuration(study, model_file, tmp_path):
    (tmp_path / "near.safetensors").write_bytes(model_file.read_bytes())
    assert make_domains(study(model="near.safetensors"), progress=False).grid == GRID


@pytest.mark.parametrize("name", ["apogee-gaints", "absent.safetensors"])
def test_a_model_that_is_not_there_is_named(study, name):
    with pytest.raises(ConfigError, match=rf"\[mock\] model.*{name}"):
        make_domains(study(model=name), progress=False)


@pytest.mark.parametrize("killed_at", ["labels.npz", "observed.h5", "domains.json"])
def test_a_killed_study_goes_on_to_the_same_files(study, domains, monkeypatch, killed_at):
    def write_or_die(path, write):
        if path.name == killed_at:
            path.parent.mkdir(exist_ok=True)
            part = path.with_name(f"part of {path.name}")
            part.touch()
            write(part)
            raise KeyboardInterrupt
        write_atomically(path, write)

    with monkeypatch.context() as patch:
        patch.setattr("cyclestarnet.lines.mock.write_atomically", write_or_die)
        patch.setattr("cyclestarnet.files.write_atomically", write_or_die)  # by which HDF5 files are written
        with pytest.raises(KeyboardInterrupt):
            make_domains(study(), progress=False)
    folder = make_domains(study(), progress=False).folder
    assert_same_files(folder, make_domains(study(folder="uninterrupted"), progress=False).folder)


# -- part of the pixels ----------------------------------------------------------------------
def test_a_cut_is_of_grid_and_chips(study):
    domains = make_domains(study(pixels=[96, 415]), progress=False)
    assert domains.grid == WavelengthGrid(GRID.wavelength[96:415], ((0, 104), (104, 319)))
    assert TrainingSet(domains.folder / "observed.h5", grid=domains.grid).n_pixels == 319


def test_spectra_and_lines_of_a_cut_are_those_of_the_whole(study):
    domains = make_domains(study(pixels=[96, 415]), progress=False)
    np.testing.assert_allclose(flux_of(domains.emulator, domains.pool), truth(domains.pool)[:, 96:415], atol=1e-5)
    peaks = {(f.label, f.peak + 96) for f in domains.features}
    assert peaks == {(e, c) for e, centres in LINES.items() for c in centres if 96 <= c < 415}


def test_a_cut_within_one_chip_has_one(study):
    assert make_domains(study(pixels=[203, 394], fractions=[0.0]), progress=False).grid.chips == ((0, 191),)


def test_chips_of_one_pixel_are_refused(study):
    with pytest.raises(ConfigError, match="leave 2 or more of a chip"):
        make_domains(study(pixels=[199, 415]), progress=False)


# -- a training of the study -----------------------------------------------------------------
def test_a_fraction_of_the_features_of_each_element_is_masked(half):
    masked = [feature.label for feature in half.mask.masked]
    assert {element: masked.count(element) for element in LINES} == {"fe_h": 3, "mg_h": 3}
    assert half.mask.pixels.sum() == 6 * (2 * REACH + 1)


def test_synthetic_spectra_lack_the_masked_lines_alone(domains, half):
    masked, labels = load_emulator(half.training.synthetic.emulator)
    expected = half.mask.apply(truth(domains.pool))
    np.testing.assert_allclose(flux_of(masked, domains.pool), expected, atol=1e-5)
    assert labels.names == NAMES


def test_the_mask_of_a_training_is_in_its_folder(half):
    found = FeatureMask.read(half.folder / "mask.ecsv")
    np.testing.assert_array_equal(found.chosen, half.mask.chosen)
    assert list(found.features) == list(half.mask.features)


def test_a_training_that_is_described_again_is_the_same(study):
    config = study()
    domains = make_domains(config, progress=False)
    first = make_run(config, domains, 0.5, seed=1)
    flux = flux_of(load_emulator(first.folder / "masked.pt")[0], domains.pool)
    second = make_run(config, domains, 0.5, seed=1)
    assert (second.training, second.fraction, second.seed) == (first.training, first.fraction, first.seed)
    np.testing.assert_array_equal(second.mask.chosen, first.mask.chosen)
    np.testing.assert_array_equal(flux_of(load_emulator(second.folder / "masked.pt")[0], domains.pool), flux)


def test_other_seeds_mask_other_features(config, domains):
    chosen = {tuple(make_run(config, domains, 0.5, seed=seed).mask.chosen) for seed in range(4)}
    assert len(chosen) > 1


def test_every_training_has_a_folder_and_a_model_of_its_own(config, domains):
    pairs = [(0.0, 0), (0.3, 0), (0.3, 1), (0.35, 0), (1.0, 0)]
    config = replace(config, model=replace(config.model, path=config.run.folder / "one.safetensors"))
    runs = [make_run(config, domains, *pair).training for pair in pairs]
    assert len({run.run.folder for run in runs}) == len({run.model_path for run in runs}) == len(pairs)
    assert all(run.run.folder.parent == domains.folder for run in runs)


@pytest.mark.parametrize(("fraction", "n"), [(0.0, 0), (1.0, 12)])
def test_nothing_or_everything_can_be_masked(config, domains, fraction, n):
    run = make_run(config, domains, fraction, seed=0)
    assert len(run.mask.masked) == n
    lines = [feature.peak for feature in domains.features]
    assert (flux_of(load_emulator(run.folder / "masked.pt")[0], domains.pool)[:, lines] == 1).all() == (n > 0)


def test_a_training_has_the_seed_that_is_asked_for(half):
    assert (half.training.run.seed, half.training.training.seed) == (2, 2)


def test_a_training_says_that_its_spectra_are_not_real(half):
    said = half.training.model.provenance
    assert "Not real" in said["observed domain"]
    assert "without 50%" in said["synthetic domain"]


@pytest.fixture(scope="module")
def run(half):
    return prepare(half.training, progress=False)


def test_a_training_sees_all_files_of_the_study(run, domains):
    assert (len(run.trainer.observed), len(run.trainer.synthetic), len(run.domains.held_out.rows)) == (50, 230, 20)
    np.testing.assert_array_equal(run.domains.label_pool, domains.pool)
    np.testing.assert_allclose(run.domains.grid.wavelength.value, GRID.wavelength.value)
    assert run.domains.grid.chips == GRID.chips
    assert run.domains.labels.names == NAMES


def test_synthetic_spectra_of_the_training_are_continuum_in_masked_pixels(run, half):
    flux = run.trainer.synthetic.draw(50, torch.Generator().manual_seed(1))[0].numpy() * 0.11 + 0.92
    np.testing.assert_allclose(flux[:, half.mask.pixels], 1, atol=1e-6)
    peaks = [feature.peak for feature in half.mask.features if not half.mask.pixels[feature.peak]]
    assert (flux[:, peaks] < 0.8).all()


def test_observed_spectra_of_the_training_are_complete(run, domains, half):
    flux = run.trainer.observed.flux.numpy() * 0.11 + 0.92
    np.testing.assert_allclose(flux, observed(domains.folder)[1][:50], atol=1e-6)
    peaks = [feature.peak for feature in half.mask.masked]
    assert (flux[:, peaks] < 0.8).all()


def test_a_study_trains(half, tmp_path):
    training = replace(half.training, run=replace(half.training.run, folder=tmp_path))
    trainer = prepare(training, progress=False).trainer
    before = {name: array.clone() for name, array in trainer.network.state_dict().items()}
    trainer.run(until=2, progress=False)
    assert trainer.iteration == 2
    assert any(not torch.equal(array, before[name]) for name, array in trainer.network.state_dict().items())
