"""`cyclestarnet.adapt`: a trained model is finished on spectra of another instrument."""

import re
from dataclasses import replace
from functools import partial

import astropy.units as u
import h5py
import numpy as np
import pytest
import torch
from astropy.nddata import StdDevUncertainty
from scipy.stats import truncnorm
from specutils import Spectrum

from cyclestarnet import (
    CalibratedModel,
    GaussianPrior,
    GridError,
    LabelSet,
    ModelFileError,
    SpectrumError,
    TrainingSettings,
    WatchSettings,
    adapt,
)
from cyclestarnet.cli import main
from cyclestarnet.model_file import digest_of
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training import adaptation_settings, alignment_scores, compare_labels, draw_labels, offset_figures
from cyclestarnet.training.adaptation import LEAST_SPECTRA
from cyclestarnet.training.arrays import held_out_rows
from cyclestarnet.training.config import LogConfig, ModelConfig
from cyclestarnet.training.trainer import Trainer

WIDE, STRONG, SIGMA = (2.9, 3.3), 1.2, 0.005  # of lines of the other instrument; those of the model are 2.0 to 2.4, 1.1


def observe(family, n, seed):
    """Labels, flux and errors of stars as the other instrument sees them."""
    rng = np.random.default_rng(seed)
    labels = family.draw(n, rng)
    clean = family(labels, width=rng.uniform(*WIDE, n), depth=STRONG)
    return labels, rng.normal(clean, SIGMA).astype("f4"), np.full(clean.shape, SIGMA, "f4")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Learn errors and report by 3 stars, without scores: what most tests ask for is not how good a model is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cyclestarnet.training.adaptation.ModelConfig", partial(ModelConfig, n_validation=3))
        patch.setattr("cyclestarnet.training.before_after.alignment_scores", lambda *_, **options: {"c2st_latent": 0.7})
        yield


@pytest.fixture(scope="module")
def stars(line_family):
    return dict(zip(("observed", "errors"), observe(line_family, 60, seed=5)[1:], strict=True))


def briefly(model, stars, adapt=adapt, **changes):
    """Adapt for a moment; 10 stars are held out."""
    options = {"settings": adaptation_settings(model, n_iterations=6, seed=3), "held_out": 1 / 6, "progress": False}
    return adapt(model, **(stars | options | changes))


@pytest.fixture(scope="module")
def adapted(tiny_model, stars):
    return briefly(tiny_model, stars)


def weights(model):
    return torch.cat([tensor.flatten() for tensor in model.translator.network.state_dict().values()]).numpy()


# -- what it is good for ---------------------------------------------------------------------
@pytest.fixture(scope="module")
def finished(tiny_model, line_family):
    """A model that had time to learn the other instrument, and its report."""
    _, flux, errors = observe(line_family, 150, seed=6)
    settings = adaptation_settings(tiny_model, n_iterations=300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cyclestarnet.training.adaptation.ModelConfig", partial(ModelConfig, n_validation=15))
        patch.setattr("cyclestarnet.training.before_after.alignment_scores", alignment_scores)
        return adapt(tiny_model, flux, errors, settings=settings, held_out=0.1, progress=False)


@pytest.mark.slow
def test_stars_of_another_instrument_are_fitted_better_and_have_better_labels(tiny_model, finished, line_family):
    labels, flux, errors = observe(line_family, 40, seed=7)  # that no training has seen, of known labels
    spectra = to_spectrum(flux.astype(float), tiny_model.grid, ivar=errors.astype(float) ** -2)
    truth = {"teff": labels[:, 0] * u.K, "logg": labels[:, 1], "mg_h": labels[:, 2]}
    before, after = (compare_labels(model, spectra, truth, progress=False) for model in (tiny_model, finished[0]))
    assert np.median(after.reduced_chi2) < 0.4 * np.median(before.reduced_chi2)
    for k, name in enumerate(before.names):
        was, now = (offset_figures(offsets.offset[:, k], offsets.error[:, k]) for offsets in (before, after))
        if name != "logg":  # the zero point of which follows the prior
            assert now["scatter"] < was["scatter"], name


@pytest.mark.slow
def test_the_report_says_so_too(finished):
    model, report = finished
    assert report.n_trained == 135
    assert len(report.before.reduced_chi2) == len(report.after.reduced_chi2) == 15
    assert report.after.chi2 < 0.4 * report.before.chi2
    assert report.noise == pytest.approx(SIGMA, rel=0.03)  # half the 16-84 % range of a Gaussian is its σ
    assert report.noise < report.after.half_width < 0.6 * report.before.half_width
    assert report.after.scores["rec_obs"] < 0.5 * report.before.scores["rec_obs"]
    # the model's own error has become smaller than what the old model would need
    assert np.median(model.noise.scatter["observed"]) < report.before.half_width


# -- what stays and what is said ----------------------------------------------------------------
def test_what_is_not_learnt_stays(tiny_model, adapted):
    model = adapted[0]
    for name in ("labels", "grid", "translation"):
        assert getattr(model, name) == getattr(tiny_model, name)
    assert model.recipe.pixels.tolist() == tiny_model.recipe.pixels.tolist()
    np.testing.assert_array_equal(model.prior.mean, tiny_model.prior.mean)
    np.testing.assert_array_equal(model.prior.covariance, tiny_model.prior.covariance)
    for name in ("sigma_floor", "sigma_max", "fill"):
        assert getattr(model.noise, name) == getattr(tiny_model.noise, name)
    middle = model.labels.to_quantities(model.prior.mean)
    np.testing.assert_array_equal(*(m.predict(middle, domain="synthetic").flux for m in (model, tiny_model)))


def test_errors_of_labels_stay(tiny_model, stars):
    error = np.diag([900.0, 0.01, 0.01])
    base = replace(tiny_model, noise=replace(tiny_model.noise, label_error=error))
    noise = briefly(base, stars)[0].noise
    np.testing.assert_array_equal(noise.label_error, error)
    assert (noise.scatter["observed"] != base.noise.scatter["observed"]).any()


def test_the_model_is_the_first_weights(tiny_model, stars, monkeypatch):
    seen = []
    step = Trainer.step

    def first(trainer):
        seen.append({name: tensor.clone() for name, tensor in trainer.network.state_dict().items()})
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", first)
    before = digest_of(tiny_model)
    briefly(tiny_model, stars)
    for name, tensor in tiny_model.translator.network.state_dict().items():
        torch.testing.assert_close(seen[0][name], tensor, rtol=0, atol=0)
    assert len(seen) == 6
    assert any((seen[0][name] != seen[-1][name]).any() for name in seen[0])
    assert digest_of(tiny_model) == before


def test_the_model_says_what_it_was_made_from(tiny_model, adapted):
    model, report = adapted
    said = model.provenance
    assert model.name == "tiny-adapted"
    assert said["adapted from"] == f"tiny, digest {digest_of(tiny_model)}"
    assert said["observed domain"] == "arrays, 50 spectra; 10 held out"
    assert said["training"] == "6 iterations of 2 x 8 spectra, seed 3"
    assert "adversarial_ramp" not in said["other than the paper's"]  # 0 of 6 iterations
    assert said["tiny, made by"] == "tests/conftest.py"
    assert said["version"]
    assert report.provenance == said


# -- reports -------------------------------------------------------------------------------------
def test_shifts_are_those_of_the_medians_in_sigma_of_the_prior(tiny_model, adapted):
    report = adapted[1]
    table = report.to_label_table()
    assert table["label"].tolist() == ["teff", "logg", "mg_h"]
    assert table["unit"][0] == "K"
    sigma = tiny_model.prior.covariance.diagonal() ** 0.5
    expected = (np.median(report.after.values, axis=0) - tiny_model.prior.mean) / sigma
    np.testing.assert_allclose(table["shift_after"], expected)
    np.testing.assert_allclose(table["before"], np.median(report.before.values, axis=0))


def test_the_report_before_is_what_fits_with_the_model_give(tiny_model, stars, adapted):
    report = adapted[1]
    chi2 = []
    for k in held_out_rows(60, 1 / 6, seed=0):
        flux, errors = stars["observed"][k], stars["errors"][k]
        spectrum = to_spectrum(flux.astype(float), tiny_model.grid, ivar=errors.astype(float) ** -2)
        chi2.append(tiny_model.fit(spectrum, method="lm").reduced_chi2)
    for value in report.before.reduced_chi2:
        assert np.min(np.abs(np.array(chi2) / value - 1)) < 1e-3


def test_the_page_needs_no_other_file(adapted, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    report = adapted[1]
    report.write(tmp_path / "tiny.html")
    page = (tmp_path / "tiny.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert f"<td>{report.after.chi2:.4g}</td>" in page
    assert "digest" in page


def test_a_page_without_matplotlib_says_what_it_lacks(adapted, tmp_path, monkeypatch):
    def missing():
        raise ImportError("plots need matplotlib")

    monkeypatch.setattr("cyclestarnet.plotting.adaptation.pyplot", missing)
    adapted[1].write(tmp_path / "tiny.html")
    assert "plots need matplotlib" in (tmp_path / "tiny.html").read_text(encoding="utf-8")


# -- the same again ---------------------------------------------------------------------------------
def test_seeds(tiny_model, stars, adapted):
    again, _ = briefly(tiny_model, stars, adapt=CalibratedModel.adapt)  # also as a method
    np.testing.assert_array_equal(weights(again), weights(adapted[0]))
    other = briefly(tiny_model, stars, settings=adaptation_settings(tiny_model, n_iterations=6, seed=4))
    assert (weights(other[0]) != weights(adapted[0])).any()


def test_an_interrupted_adaptation_goes_on_in_its_folder(tiny_model, stars, adapted, tmp_path, monkeypatch):
    step = Trainer.step

    def interrupted(trainer):
        if trainer.iteration == 4:
            raise KeyboardInterrupt
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        patch.setattr("cyclestarnet.training.adaptation.LogConfig", lambda: replace(LogConfig(), checkpoint_every=2))
        with pytest.raises(KeyboardInterrupt) as caught:
            briefly(tiny_model, stars, folder=tmp_path)
    assert str(tmp_path) in caught.value.__notes__[0]
    model, _ = briefly(tiny_model, stars, folder=tmp_path)
    np.testing.assert_array_equal(weights(model), weights(adapted[0]))
    saved = CalibratedModel.load(tmp_path / "tiny-adapted.safetensors")
    assert digest_of(saved) == digest_of(adapted[0])
    assert (tmp_path / "tiny-adapted.html").exists()


def test_a_folder_of_another_adaptation_is_refused(tiny_model, stars, tmp_path):
    briefly(tiny_model, stars, folder=tmp_path)
    with pytest.raises(ValueError, match=r"has a training on other spectra \(observed\)"):
        briefly(tiny_model, stars | {"observed": stars["observed"] * 1.001}, folder=tmp_path)
    other = replace(tiny_model, noise=replace(tiny_model.noise, label_error=np.eye(3)))
    with pytest.raises(ValueError, match=r"has a training on other spectra \(model\)"):
        briefly(other, stars, folder=tmp_path)


def test_a_watch_chooses_the_weights(tiny_model, stars, tmp_path):
    pytest.importorskip("sklearn")
    watch = WatchSettings(every=3, grace=10, n_spectra=10)
    model, _ = briefly(tiny_model, stars, watch=watch, folder=tmp_path)
    assert (tmp_path / "best.pt").exists()
    assert model.provenance["training"].split()[0] in ("3", "6")


# -- files and the command line ---------------------------------------------------------------------
def write(path, stars, wavelength, *, margin=0, splits=("train",)):
    """A training file; ``margin`` pixels more on either side than the model has."""
    step = wavelength[1] - wavelength[0]
    more = step * np.arange(1, margin + 1)
    pads = ((0, 0), (margin, margin))
    with h5py.File(path, "w") as file:
        file["wavelength"] = np.r_[wavelength[0] - more[::-1], wavelength, wavelength[-1] + more]
        parts = {"train": slice(None)} if len(splits) == 1 else {"train": slice(0, 50), "val": slice(50, None)}
        for split in splits:
            file[f"spectra {split}"] = np.pad(stars["observed"][parts[split]], pads, constant_values=1.0)
            file[f"spectra_err {split}"] = np.pad(stars["errors"][parts[split]], pads, constant_values=0.01)
            file[f"spectra_msk {split}"] = np.ones_like(file[f"spectra {split}"], dtype="u1")
    return path


@pytest.mark.parametrize("margin", [0, 9])
def test_a_file_gives_what_its_arrays_give(tiny_model, stars, adapted, tmp_path, margin):
    path = write(tmp_path / "mine.h5", stars, tiny_model.grid.wavelength.value, margin=margin)
    model, _ = briefly(tiny_model, {"observed": path})
    assert model.provenance["observed domain"] == "mine.h5, 50 spectra; 10 held out"
    np.testing.assert_array_equal(weights(model), weights(adapted[0]))


def test_large_files_are_streamed_and_their_validation_split_is_held_out(tiny_model, stars, tmp_path, monkeypatch):
    monkeypatch.setattr("cyclestarnet.training.adaptation.RESIDENT", 0)
    path = write(tmp_path / "mine.h5", stars, tiny_model.grid.wavelength.value, splits=("train", "val"))
    model, report = briefly(tiny_model, {"observed": path})
    assert model.provenance["observed domain"] == "mine.h5, 50 spectra; 10 held out"
    assert len(report.after.reduced_chi2) == 3  # see quick


def test_a_spectrum_of_many_stars_gives_what_arrays_give(tiny_model, stars, adapted):
    spectra = Spectrum(
        flux=stars["observed"] * u.one,
        spectral_axis=tiny_model.grid.wavelength.to(u.um),
        uncertainty=StdDevUncertainty(stars["errors"]),
    )
    np.testing.assert_array_equal(weights(briefly(tiny_model, {"observed": spectra})[0]), weights(adapted[0]))


def test_the_command_line(tiny_model, stars, tmp_path, capsys):
    tiny_model.save(tmp_path / "tiny.safetensors")
    path = write(tmp_path / "mine.h5", stars, tiny_model.grid.wavelength.value)
    base, output = str(tmp_path / "tiny.safetensors"), tmp_path / "new.safetensors"
    command = ["adapt", str(path), "-o", str(output), "--model", base, "--iterations", "6", "--seed", "3"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "median reduced chi2" in said
    assert str(output) in said
    expected, _ = briefly(
        CalibratedModel.load(base), {"observed": path}, held_out=0.2, seed=3, name="new"
    )  # the settings have the seed 3, too
    assert digest_of(CalibratedModel.load(output)) == digest_of(expected)
    assert (tmp_path / "new.html").exists()
    assert main(command) == 2
    assert "exists; use --overwrite" in capsys.readouterr().err
    assert main(["adapt", str(path), "-o", base, "--model", base, "--overwrite"]) == 2
    assert "is the model to begin with" in capsys.readouterr().err


# -- labels of the synthetic spectra ----------------------------------------------------------------
@pytest.mark.parametrize("n_labels", [1, 12])
def test_labels_are_drawn_from_the_prior_within_its_range(n_labels):
    """Also if hardly any draw of all labels together lies within."""
    labels = LabelSet([f"{name}_h" for name in "c n o na mg al si s k ca ti v".split()[:n_labels]],
                      np.full(n_labels, -0.5), np.full(n_labels, 1.0))  # fmt: skip
    drawn = draw_labels(GaussianPrior(np.zeros(n_labels), np.eye(n_labels)), labels, 20_000, seed=0)
    assert drawn.min() >= -0.5
    assert drawn.max() <= 1.0
    truth = truncnorm(-0.5, 1.0)
    np.testing.assert_allclose(drawn.mean(0), truth.mean(), atol=0.015)
    np.testing.assert_allclose(drawn.std(0), truth.std(), rtol=0.03)


def test_draws_one_after_the_other_keep_correlations():
    labels = LabelSet(["mg_h", "si_h", "c_h"], [-3, -3, 3.0], [3, 3, 4.0])  # the third is far out: all is rejected
    covariance = np.array([[1, 0.6, 0.0], [0.6, 1, 0.0], [0, 0, 1.0]])
    drawn = draw_labels(GaussianPrior(np.zeros(3), covariance), labels, 20_000, seed=0)
    assert np.corrcoef(drawn[:, :2].T)[0, 1] == pytest.approx(0.6, abs=0.03)
    assert drawn[:, 2].min() >= 3
    assert drawn[:, 2].mean() == pytest.approx(truncnorm(3, 4).mean(), abs=0.01)


# -- what is wrong is said first ----------------------------------------------------------------------
WRONG = {
    "no model": ({"model": "apogee-giants"}, ModelFileError, "model must be a CalibratedModel with a translation"),
    "too few": (
        lambda s: {name: array[:49] for name, array in s.items()},
        SpectrumError,
        f"needs {LEAST_SPECTRA} or more spectra, but there are 49",
    ),
    "too few held out": ({"held_out": 0.1}, SpectrumError, "54 spectra are to be trained on and 6 are held out"),
    "none held out": ({"held_out": 0}, ValueError, "held_out must be a fraction between 0 and 1"),
    "other pixels": (
        lambda s: {name: array[:, :-1] for name, array in s.items()},
        GridError,
        "observed has 414 pixels.*write_training_set",
    ),
    "no errors": ({"errors": None}, SpectrumError, "errors of the observed spectra must be given once"),
    "counts": (lambda s: {"observed": 1e3 * s["observed"]}, SpectrumError, "observed must be normalised flux"),
    "errors in per cent": (lambda s: {"errors": 100 * s["errors"]}, SpectrumError, "their median is 0.5, above"),
    "dead pixels": ({"mask": np.ones((60, 1), bool) * (np.arange(415) >= 0)}, SpectrumError, "all pixels of observed"),
    "no file": ({"observed": "nowhere.h5", "errors": None}, FileNotFoundError, "nowhere"),
    "a file and errors": ({"observed": "nowhere.h5"}, SpectrumError, "are those of the file nowhere.h5"),
    "a name with a slash": ({"name": "a/b"}, ValueError, "name must consist of letters"),
    "a GPU that is not there": ({"device": "cuda:99"}, ValueError, "PyTorch finds no CUDA device"),
}


@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_before_anything_is_trained(tiny_model, stars, change, error, message, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda trainer: pytest.fail("trained"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    change = change(stars) if callable(change) else change
    with pytest.raises(error, match=f"(?s){message}"):
        adapt(**({"model": tiny_model, "held_out": 1 / 6} | stars | change))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flux_std": 0.2}, "flux_std of settings is 0.2, but the networks of the model have learnt with 0.11"),
        ({"sigma_max": 0.1}, "sigma_max of settings is 0.1"),
        ({"warm_start": 2}, "warm_start is 2, but would copy the synthetic branch"),
        ({"prior_rate": 0.1}, "prior_rate is 0.1, but moves the label prior"),
        ({"weight_anchors": 1.0}, "weight_anchors is 1.0, but needs stars of known labels"),
    ],
)
def test_settings_that_do_not_suit_the_model_are_refused(tiny_model, stars, changes, message):
    with pytest.raises(ValueError, match=message):
        briefly(tiny_model, stars, settings=adaptation_settings(tiny_model, n_iterations=6, **changes))


def test_settings_of_a_training_are_refused(tiny_model, stars):
    with pytest.raises(ValueError, match=r"begin with adaptation_settings\(model"):
        briefly(tiny_model, stars, settings=TrainingSettings())


def test_a_file_on_other_pixels_is_refused(tiny_model, stars, tmp_path):
    path = write(tmp_path / "mine.h5", stars, tiny_model.grid.wavelength.value * 1.001)
    with pytest.raises(GridError, match=r"are not those of the model.*write_training_set"):
        adapt(tiny_model, path)
