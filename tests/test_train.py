"""`cyclestarnet.train`: a model from arrays or spectra in memory, as a file of the training makes it from files."""

import sys
from dataclasses import replace

import astropy.units as u
import h5py
import numpy as np
import pytest
from astropy.nddata import InverseVariance, StdDevUncertainty
from astropy.table import QTable
from deaths import held_by_another
from specutils import Spectrum
from tiny import TINY_NETWORK, LineFamily

from cyclestarnet import (
    CalibratedModel,
    ContinuumRecipe,
    EmulatorSettings,
    GridError,
    LabelError,
    SpectrumError,
    TrainingSettings,
    WatchSettings,
    WavelengthGrid,
    train,
)
from cyclestarnet.cli import main
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training.arrays import domains_of_arrays, held_out_rows
from cyclestarnet.training.config import LogConfig, ModelConfig, Plan, RunConfig
from cyclestarnet.training.trainer import Trainer

WAVELENGTH = 10 ** (4.18 + 6e-6 * np.r_[0:200, 260:475]) * u.AA
SETTINGS = TrainingSettings(n_iterations=6, learning_rate=2e-3, flux_mean=0.92, flux_std=0.11, seed=3)
EMULATOR = EmulatorSettings(hidden=(8,), n_components=8, n_epochs=10, learning_rate=0.01)
CONFIG = """
[run]
folder = "run"
name = "toy"
[observed]
path = "observed.h5"
selection = {snr = "none"}
[synthetic]
path = "synthetic.h5"
[training]
n_iterations = 6
learning_rate = 2e-3
flux_mean = 0.92
flux_std = 0.11
seed = 3
[network]
domain = [[8, 7, 4]]
shared = [[16, 7, 4], [24, 7, 2]]
split = [[4, 7, 4], [4, 7, 2]]
shared_filters = 8
split_filters = 2
critic_spectrum = [[4, 7, 4], [8, 7, 4]]
critic_latent = [[8, 1, 1], [8, 1, 1]]
[emulator]
hidden = [8]
n_components = 8
n_epochs = 10
learning_rate = 0.01
"""


@pytest.fixture(scope="module")
def data():
    """Arguments of `train`: 60 synthetic and 30 observed spectra, whose numbers are exact in float32."""
    rng, family = np.random.default_rng(4), LineFamily()
    values = rng.uniform(family.labels.lower, family.labels.upper, (60, 3)).astype("f4").astype(float)
    clean = family(family.draw(30, rng), width=rng.uniform(2.0, 2.4, 30), depth=1.1)
    return {
        "synthetic": family(values).astype("f4"),
        "labels": {"teff": values[:, 0] * u.K, "logg": values[:, 1], "mg_h": values[:, 2] * u.dex},
        "observed": rng.normal(clean, 0.005).astype("f4"),
        "errors": np.full(clean.shape, 0.005, "f4"),
        "mask": rng.random(clean.shape) < 0.05,
        "wavelength": WAVELENGTH,
    }


def toy(data, **changes):
    """Train for a moment."""
    options = {"settings": SETTINGS, "network": TINY_NETWORK, "emulator": EMULATOR, "progress": False}
    return train(**(data | options | changes))


@pytest.fixture(scope="module")
def model(data):
    return toy(data, name="toy")


def assert_same(model, other):
    """Models of the same weights, errors and priors predict, to the last bit, the same."""
    assert model.labels == other.labels
    assert model.grid == other.grid
    middle = model.labels.to_quantities(model.population.prior.mean)
    for domain in ("observed", "synthetic"):
        np.testing.assert_array_equal(
            model.predict(middle, domain=domain).flux.value, other.predict(middle, domain=domain).flux.value
        )
    for space, scatter in model.noise.scatter.items():
        np.testing.assert_array_equal(scatter, other.noise.scatter[space])
    np.testing.assert_array_equal(model.population.prior.covariance, other.population.prior.covariance)


# -- what comes out ------------------------------------------------------------------------
def test_arrays_give_the_model_that_their_files_give(model, data, tmp_path):
    held = held_out_rows(30, 0.1, seed=0)
    rows = {"train": np.setdiff1d(np.arange(30), held), "val": held}
    with h5py.File(tmp_path / "observed.h5", "w") as file:
        file["wavelength"] = WAVELENGTH.value
        for split, chosen in rows.items():
            file[f"spectra {split}"], file[f"spectra_err {split}"] = data["observed"][chosen], data["errors"][chosen]
            file[f"spectra_msk {split}"] = (~data["mask"][chosen]).astype("u1")
    with h5py.File(tmp_path / "synthetic.h5", "w") as file:
        file["wavelength"], file.attrs["label_names"] = WAVELENGTH.value, list(data["labels"])
        file["spectra train"] = data["synthetic"]
        file["labels train"] = np.stack([np.asarray(column, "f4") for column in data["labels"].values()], axis=1)
    (tmp_path / "toy.toml").write_text(CONFIG)
    assert main(["train", str(tmp_path / "toy.toml")]) == 0
    assert_same(model, CalibratedModel.load(tmp_path / "run" / "toy.safetensors"))


def test_the_model_fits_and_knows_where_it_comes_from(model, data):
    said = model.provenance
    assert model.name == "toy"
    assert said["observed domain"] == "arrays, 27 spectra; 3 held out"
    assert said["synthetic domain"] == "arrays, 60 rows of labels"
    assert said["emulator"].startswith("trained on the synthetic domain, mean absolute error 0.")
    assert said["training"] == "6 iterations of 2 x 8 spectra, seed 3"
    assert "learning_rate = 0.002" in said["other than the paper's"]
    assert model.grid.chips == ((0, 200), (200, 415))  # the wavelengths leap


def test_the_residual_form_adds_the_difference_of_the_domains_to_the_spectrum(model, data):
    other = toy(data, name="toy", translation="residual")
    assert (model.translation, other.translation) == ("paper", "residual")
    star = to_spectrum(data["synthetic"][0], model.grid, ivar=np.full(415, 0.005**-2))
    whole, own = model.to_observed(star), model.reconstruct(star, domain="synthetic")
    expected = star.flux + whole.flux - own.flux  # what both decoders make of the latents of the same networks
    np.testing.assert_allclose(other.to_observed(star).flux, expected, atol=1e-6)
    assert np.std(whole.flux - star.flux) > 1e-3  # the forms differ


def test_values_of_masked_pixels_do_not_matter(model, data):
    spoilt = {name: np.where(data["mask"], np.nan, data[name]) for name in ("observed", "errors")}
    assert_same(model, toy(data | spoilt))


@pytest.fixture
def domains_of(data, tmp_path):
    """Function that returns the domains that arrays end in; options replace them."""

    def make(folder=None, **changes):
        run = RunConfig(folder or tmp_path / str(len(list(tmp_path.iterdir()))))
        plan = Plan(run, SETTINGS, TINY_NETWORK.to_dict(), None, EMULATOR, ModelConfig(), LogConfig())
        return domains_of_arrays(**(data | changes), plan=plan, progress=False)

    return make


def assert_same_spectra(domains, other, **tolerance):
    for name in ("flux", "weight"):
        np.testing.assert_allclose(getattr(domains.observed, name), getattr(other.observed, name), **tolerance)
    for name in ("flux", "labels"):
        np.testing.assert_allclose(getattr(domains.synthetic, name), getattr(other.synthetic, name), **tolerance)


def test_spectra_and_tables_are_their_arrays_whatever_their_units(domains_of, data):
    synthetic = Spectrum(flux=data["synthetic"] * u.one, spectral_axis=WAVELENGTH.to(u.um))
    observed = Spectrum(
        flux=(100 * data["observed"].astype(float)) * u.percent,
        spectral_axis=WAVELENGTH,
        uncertainty=InverseVariance((100 * data["errors"].astype(float)) ** -2 * u.percent**-2),
        mask=data["mask"],
    )
    labels = QTable({"teff": data["labels"]["teff"].to(u.kK), "logg": data["labels"]["logg"]})
    labels["mg_h"] = data["labels"]["mg_h"]
    given = domains_of(synthetic=synthetic, labels=labels, observed=observed, errors=None, mask=None, wavelength=None)
    assert_same_spectra(given, domains_of(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(given.grid.wavelength.value, WAVELENGTH.value, rtol=1e-12)


def test_recipe_normalises_both_domains_and_what_the_model_fits(model, data):
    """Domains of two continua, and counts, become those of one."""
    clean = data["synthetic"].min(0) > 0.99
    recipe = ContinuumRecipe(model.grid, clean, degree=1)
    tilt = np.r_[np.linspace(0.9, 1.1, 200), np.linspace(1.2, 0.8, 215)].astype("f4")
    counts = {name: 500 * tilt * data[name] for name in ("observed", "errors")}
    trained = toy(data | counts | {"synthetic": (2 - tilt) * data["synthetic"]}, recipe=recipe)
    plain = toy(data, recipe=recipe)
    assert trained.normalises
    assert not model.normalises
    np.testing.assert_array_equal(trained.recipe.pixels, recipe.pixels)
    middle = plain.labels.to_quantities(plain.prior.mean)
    for domain in ("observed", "synthetic"):
        both = [m.predict(middle, domain=domain).flux.value for m in (trained, plain)]
        np.testing.assert_allclose(*both, atol=0.02)


def test_a_masked_array_has_its_mask_with_it(domains_of, data):
    masked = np.ma.array(data["observed"], mask=data["mask"])
    assert_same_spectra(domains_of(observed=masked, mask=None), domains_of(), rtol=0)


def test_a_mask_of_pixels_holds_for_all_stars(domains_of):
    pixels = np.arange(415) % 7 == 0
    weight = domains_of(mask=pixels).observed.weight
    np.testing.assert_array_equal((weight == 0).all(0), pixels)


def test_a_grid_of_ones_own_is_taken_as_it_is(domains_of):
    assert domains_of(wavelength=WavelengthGrid(WAVELENGTH)).grid.chips == ((0, 415),)


def test_held_out_spectra_are_not_trained_on(domains_of):
    domains = domains_of(held_out=0.2)
    assert len(domains.held_out.rows) == 6
    assert sorted([*domains.held_out.rows, *domains.stars.rows]) == list(range(30))
    assert len(domains.observed) == 24


def test_nothing_given_is_written_to(data):
    given = {name: np.array(data[name]) for name in ("synthetic", "observed", "errors", "mask")}
    for array in given.values():
        array.flags.writeable = False  # what is written to in spite of all raises
    toy(data | given)
    for name, array in given.items():
        np.testing.assert_array_equal(array, data[name], err_msg=name)


# -- folders -------------------------------------------------------------------------------
def interrupt_at(iteration, monkeypatch):
    step = Trainer.step

    def interrupted(trainer):
        if trainer.iteration == iteration:
            raise FloatingPointError("loss is not finite")
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", interrupted)


def test_an_interrupted_training_goes_on_in_its_folder(model, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(4, patch)
        patch.setattr("cyclestarnet.training.runs.LogConfig", lambda: replace(LogConfig(), checkpoint_every=2))
        with pytest.raises(FloatingPointError) as caught:
            toy(data, name="toy", folder=tmp_path)
    assert str(tmp_path) in caught.value.__notes__[0]
    assert_same(model, toy(data, name="toy", folder=tmp_path))
    assert_same(model, CalibratedModel.load(tmp_path / "toy.safetensors"))


def test_a_temporary_folder_stays_if_the_training_fails_and_goes_if_it_does_not(data, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    toy(data)
    assert list(tmp_path.iterdir()) == []
    interrupt_at(4, monkeypatch)
    with pytest.raises(FloatingPointError) as caught:
        toy(data)
    (kept,) = tmp_path.iterdir()
    assert repr(str(kept)) in caught.value.__notes__[0]
    assert (kept / "emulator.pt").exists()


def test_bad_input_leaves_no_folder(data, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SpectrumError):
        toy(data | {"errors": None})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["synthetic", "observed"])
def test_a_folder_of_other_spectra_is_refused(domains_of, data, tmp_path, name):
    domains_of(tmp_path)
    with pytest.raises(ValueError, match=rf"has a training on other spectra \({name}\); use another folder"):
        domains_of(tmp_path, **{name: data[name] * 1.001})


# -- what is wrong is said first -------------------------------------------------------------
def with_value(array, value):
    changed = np.array(array, dtype=float)
    changed[2, 7] = value
    return changed


def without_errors(data):
    return {"observed": Spectrum(flux=data["observed"] * u.one, spectral_axis=WAVELENGTH), "errors": None}


def twice_errors(data):
    sigma = StdDevUncertainty(data["errors"])
    return {"observed": Spectrum(flux=data["observed"] * u.one, spectral_axis=WAVELENGTH, uncertainty=sigma)}


WRONG = {
    "a row of flux": (lambda d: {"observed": d["observed"][0]}, SpectrumError, r"observed must have the shape \(n, n"),
    "text": (lambda d: {"synthetic": [["a"]]}, SpectrumError, "synthetic must be an array of numbers, or one Spectrum"),
    "a list of spectra": (
        lambda d: {"observed": [Spectrum(flux=row * u.one, spectral_axis=WAVELENGTH) for row in d["observed"][:2]]},
        SpectrumError,
        "observed must be an array of numbers, or one Spectrum with a row per star",
    ),
    "NaN": (lambda d: {"synthetic": with_value(d["synthetic"], np.nan)}, SpectrumError, "in 1 of 60 .* first in row 2"),
    "flux with a unit": (lambda d: {"observed": d["observed"] * u.Jy}, SpectrumError, "observed has the unit 'Jy'"),
    "counts": (lambda d: {"observed": 900 * d["observed"]}, SpectrumError, "observed must be normalised flux"),
    "faint flux": (lambda d: {"synthetic": 1e-3 * d["synthetic"]}, SpectrumError, "synthetic must be normalised flux"),
    "no errors": (without_errors, SpectrumError, "errors of the observed spectra must be given once, .*no uncertainty"),
    "errors twice": (twice_errors, SpectrumError, "given once, but observed has an uncertainty, and errors is given"),
    "errors of another shape": (lambda d: {"errors": d["errors"][0]}, SpectrumError, "errors must have the shape of"),
    "errors in per cent": (lambda d: {"errors": 100 * d["errors"]}, SpectrumError, "their median is 0.5, above"),
    "errors of 0": (lambda d: {"errors": 0 * d["errors"]}, SpectrumError, "errors must be positive standard dev"),
    "a float mask": (lambda d: {"mask": d["errors"]}, SpectrumError, "mask must be True where a pixel is bad"),
    "a mask of another shape": (lambda d: {"mask": np.zeros(9, bool)}, SpectrumError, r"\(415,\) for all stars, but"),
    "a mask the wrong way round": (
        lambda d: {"mask": np.ones((30, 415), bool)},
        SpectrumError,
        "all pixels of observed are masked; mask must be True where a pixel is bad",
    ),
    "no wavelength": (lambda d: {"wavelength": None}, GridError, "wavelength must be given, for example"),
    "wavelength without unit": (lambda d: {"wavelength": WAVELENGTH.value}, GridError, "must have a unit of length"),
    "another length": (
        lambda d: {"wavelength": WAVELENGTH[:-1]},
        GridError,
        "415 pixels, but there are 414",
    ),
    "other wavelengths": (
        lambda d: {"synthetic": Spectrum(flux=d["synthetic"] * u.one, spectral_axis=WAVELENGTH * 1.001)},
        GridError,
        "the wavelengths of synthetic are not those of the training",
    ),
    "wavelengths in air": (
        lambda d: {
            "synthetic": Spectrum(flux=d["synthetic"] * u.one, spectral_axis=WAVELENGTH, meta={"AIRORVAC": "air"})
        },
        GridError,
        "spectrum has air wavelengths",
    ),
    "stars that move": (
        lambda d: {
            "observed": Spectrum(flux=d["observed"] * u.one, spectral_axis=WAVELENGTH, radial_velocity=30 * u.km / u.s)
        },
        GridError,
        "so its spectral axis is not at rest",
    ),
    "pixels that do not fit": (
        lambda d: {"network": {"split_filters": 1}},
        GridError,
        "415 pixels do not fit the strides of the network; the shortest length",
    ),
    "labels without names": (lambda d: {"labels": np.ones((60, 3))}, LabelError, "labels must be a mapping of names"),
    "a label without unit": (
        lambda d: {"labels": d["labels"] | {"teff": d["labels"]["teff"].value}},
        LabelError,
        "'teff' must be a Quantity in K",
    ),
    "a label in a wrong unit": (
        lambda d: {"labels": d["labels"] | {"teff": d["labels"]["teff"].value * u.s}},
        LabelError,
        "'teff' must have the unit K, but got 's'",
    ),
    "a label too short": (
        lambda d: {"labels": d["labels"] | {"logg": d["labels"]["logg"][1:]}},
        LabelError,
        r"label 'logg' must have a value for each of the 60 .* \(59,\)",
    ),
    "a label that is NaN": (
        lambda d: {"labels": d["labels"] | {"logg": np.full(60, np.nan)}},
        LabelError,
        "'logg' is not finite",
    ),
    "a label that does not vary": (
        lambda d: {"labels": d["labels"] | {"logg": np.full(60, 2.0)}},
        LabelError,
        "label 'logg' is 2 for all synthetic spectra",
    ),
    "names of stars": (
        lambda d: {"labels": d["labels"] | {"id": np.full(60, "star")}},
        LabelError,
        "label 'id' holds no numbers",
    ),
    "too few stars": (lambda d: {"held_out": 0.04}, SpectrumError, "29 are to be trained on and 1 are held out, but 8"),
    "all stars held out": (lambda d: {"held_out": 10}, ValueError, "held_out must be a fraction between 0 and 1"),
    "too few for a watch": (lambda d: {"watch": WatchSettings()}, SpectrumError, "3 are held out, but 8 and 10"),
    "too few synthetic": (
        lambda d: {"synthetic": d["synthetic"][:5], "labels": {k: v[:5] for k, v in d["labels"].items()}},
        SpectrumError,
        "synthetic has 5 spectra, too few for 3 labels",
    ),
    "what needs an emulator": (
        lambda d: {"settings": replace(SETTINGS, prior_rate=0.1)},
        ValueError,
        "prior_rate is 0.1, but needs spectra that an emulator makes",
    ),
    "an unknown form": (
        lambda d: {"translation": "residuals"},
        ValueError,
        "translation must be 'paper' or 'residual', but is 'residuals'",
    ),
    "an unknown preset": (lambda d: {"settings": "papper"}, ValueError, "preset must be one of 'paper', 'repository'"),
    "a GPU that is not there": (lambda d: {"device": "cuda:99"}, ValueError, "PyTorch finds no CUDA device"),
}


@pytest.mark.parametrize(("change", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said_before_anything_is_trained(data, change, error, message, monkeypatch):
    monkeypatch.setattr("cyclestarnet.training.emulators.train_emulator", lambda *_, **options: pytest.fail("trained"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(error, match=message):
        toy(data, **change(data))


# -- one training at a time ---------------------------------------------------------------
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")
def test_two_trainings_in_one_folder_do_not_both_write(data, tmp_path, make_trainer):
    told = "another process trains in .*run; wait, or choose another folder"
    with held_by_another(tmp_path / "run") as busy:
        with pytest.raises(FileExistsError, match=told):
            toy(data, folder=busy)
        with pytest.raises(FileExistsError, match=told):
            make_trainer(busy, n_iterations=2).run(progress=False)
        assert [path.name for path in busy.iterdir()] == [".lock"]
