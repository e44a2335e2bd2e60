"""Two domains without labels: lines of one family, as two spectrographs see them. The truth of each star is known."""

import re

import astropy.units as u
import h5py
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum
from tiny import TINY_NETWORK, LineFamily

import cyclestarnet.training.translations as translations
from cyclestarnet import (
    CalibratedModel,
    GridError,
    ModelFileError,
    SpectrumError,
    TrainingSettings,
    Translation,
    WatchSettings,
    WavelengthGrid,
    train_translation,
)
from cyclestarnet.cli import main
from cyclestarnet.networks.checkpoint import load_arrays, save_arrays
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.training.config import read_config
from cyclestarnet.training.streams import StreamedSpectra
from cyclestarnet.training.translation_config import example_translation_config, read_translation_config
from cyclestarnet.training.translations import prepare_translation

GRID = WavelengthGrid(10 ** (4.18 + 6e-6 * np.r_[0:200, 260:475]) * u.AA, ((0, 200), (200, 415)))
WIDTH = {"first": 2.0, "second": 3.0}  # pixels: of the line-spread functions of both
SIGMA = 0.01
BRIEF = TrainingSettings(n_iterations=6, learning_rate=2e-3, flux_mean=0.92, flux_std=0.11, seed=3)
SETTINGS = TrainingSettings(
    n_iterations=350,
    learning_rate=2e-3,
    critic_learning_rate=6e-4,
    schedule="cosine",
    warmup=20,
    warm_start=80,  # both domains begin alike, or some initial weights turn strong lines into weak ones
    weight_latent=30.0,
    average_decay=0.98,
    flux_mean=0.92,
    flux_std=0.11,
    weight_synth=9.0,
)
LAYERS = {name: value for name, value in TINY_NETWORK.to_dict().items() if name != "n_pixels"}


def observed(n, side, rng):
    """Truth, flux and errors of stars in a domain, and the truth in the other."""
    family, other = LineFamily(), {"first": "second", "second": "first"}[side]
    labels = family.draw(n, rng)
    clean = family(labels, width=WIDTH[side])
    return clean, rng.normal(clean, SIGMA), np.full(clean.shape, SIGMA), family(labels, width=WIDTH[other])


@pytest.fixture(scope="module")
def data():
    """Arguments of `train_translation`: no star is in both domains."""
    rng, given = np.random.default_rng(3), {}
    for side in WIDTH:
        _, given[side], given[f"{side}_errors"], _ = observed(450, side, rng)
        given[f"{side}_mask"] = rng.random(given[side].shape) < 0.02
    return given | {"wavelength": GRID}


def toy(data, **changes):
    """Train for a moment, on few spectra."""
    few = {name: array if name == "wavelength" else array[:40] for name, array in data.items()}
    return train_translation(**few | {"settings": BRIEF, "network": TINY_NETWORK, "progress": False} | changes)


@pytest.fixture(scope="module")
def translation(data):
    return train_translation(
        **data, settings=SETTINGS, network=TINY_NETWORK, name="a-to-b", domains=("A", "B"), progress=False
    )


@pytest.fixture(scope="module")
def brief(data):
    return toy(data)


def spectrum(flux, sigma=SIGMA, mask=None, unit=u.one, **more):
    uncertainty = StdDevUncertainty(np.broadcast_to(sigma, flux.shape).copy())
    return Spectrum(flux=flux * unit, spectral_axis=GRID.wavelength, uncertainty=uncertainty, mask=mask, **more)


def translated(translation, side, flux):
    function = translation.to_second if side == "first" else translation.to_first
    return [function(spectrum(row)) for row in flux]


def assert_same(one, other):
    state = other.translator.network.state_dict()
    for name, weights in one.translator.network.state_dict().items():
        np.testing.assert_array_equal(weights, state[name])
    for pair in (one.domains, one.domains[::-1]):
        np.testing.assert_array_equal(one.scatter[pair], other.scatter[pair])
    assert one.typical_split_latents.keys() == other.typical_split_latents.keys()
    for domain, latent in one.typical_split_latents.items():
        np.testing.assert_array_equal(latent, other.typical_split_latents[domain])


# -- the truth ---------------------------------------------------------------------------
@pytest.mark.parametrize("side", WIDTH)
def test_translated_spectra_are_four_times_nearer_to_the_truth(translation, side, rng):
    clean, _, _, truth = observed(40, side, rng)
    found = np.array([star.flux.value for star in translated(translation, side, clean)])
    assert np.std(found - truth) < np.std(clean - truth) / 4


@pytest.mark.parametrize("side", WIDTH)
def test_errors_of_translated_spectra_cover_the_truth(translation, side, rng):
    _, flux, _, truth = observed(40, side, rng)
    stars = translated(translation, side, flux)
    pulls = [(star.flux.value - true) / star.uncertainty.array for star, true in zip(stars, truth, strict=True)]
    assert np.std(pulls) == pytest.approx(1, abs=0.15)
    assert np.std(flux - truth) > 2 * SIGMA  # which they did not, before


def test_there_and_back_is_the_same_spectrum(translation, rng):
    _, flux, _, _ = observed(10, "first", rng)
    back = [translation.to_first(star).flux.value for star in translated(translation, "first", flux)]
    assert np.std(back - flux) < SIGMA / 2


def test_reconstructions_have_less_noise_and_no_uncertainty(translation, rng):
    clean, flux, _, _ = observed(10, "second", rng)
    made = [translation.reconstruct(spectrum(row), "B") for row in flux]
    assert np.std([star.flux.value for star in made] - clean) < np.std(flux - clean)
    assert made[0].uncertainty is None


def test_a_star_of_the_other_domain_lends_its_resolution(data, rng):
    """Spectra of the second domain differ in resolution; the split latent carries it."""
    family = LineFamily()
    widths = {"narrow": 2.2, "wide": 3.8}
    given = dict(data)
    labels = family.draw(450, rng)
    given["second"] = rng.normal(family(labels, width=rng.uniform(2.0, 4.0, 450)), SIGMA)
    made = train_translation(**given, settings=SETTINGS, network=TINY_NETWORK, progress=False)
    labels = family.draw(1, rng)
    star = spectrum(family(labels)[0])
    far = {
        name: [
            np.std(made.to_second(star, like=spectrum(family(family.draw(1, rng), width=lent)[0])).flux.value - truth)
            for lent in widths.values()
        ]
        for name, width in widths.items()
        for truth in [family(labels, width=width)[0]]
    }
    assert far["narrow"][0] < far["narrow"][1]
    assert far["wide"][1] < far["wide"][0]


# -- what goes along ------------------------------------------------------------------------
def test_masks_and_errors_go_along(brief, data):
    mask = np.arange(415) % 50 == 3
    flux, sigma = np.where(mask, np.nan, data["first"][0]), np.where(mask, -1.0, np.linspace(0.006, 0.012, 415))
    star = spectrum(flux, sigma, mask, meta={"object": "HD 1"})
    other = brief.to_second(star)
    np.testing.assert_array_equal(other.mask, mask)
    expected = np.hypot(sigma, brief.scatter["first", "second"])[~mask]
    np.testing.assert_allclose(other.uncertainty.array[~mask], expected)
    assert np.isfinite(other.flux.value).all()
    assert other.meta == {"translation": "translation", "domain": "second", "object": "HD 1"}
    np.testing.assert_array_equal(star.flux.value, flux)


def test_the_paper_form_has_no_uncertainty(data):
    made = toy(data, translation="paper")
    assert not made.scatter
    assert made.to_second(spectrum(data["first"][0])).uncertainty is None
    assert "translated spectra have no uncertainty" in str(made)


def test_values_of_masked_pixels_do_not_matter(brief, data):
    spoilt = {side: np.where(data[f"{side}_mask"], np.nan, data[side])[:40] for side in WIDTH}
    assert_same(brief, toy(data, **spoilt))


def test_spectra_with_uncertainties_are_as_good_as_arrays(brief, data):
    given = {}
    for side in WIDTH:
        given[side] = spectrum(data[side][:40], mask=data[f"{side}_mask"][:40])
        given |= {f"{side}_errors": None, f"{side}_mask": None}
    assert_same(brief, toy(data, **given, wavelength=None))


def test_the_errors_of_the_first_domain_are_those_of_its_training(data):
    """A first domain with errors in its losses is trained otherwise than one whose errors are all alike."""
    errors = data["first_errors"][:40] * np.linspace(0.6, 3, 415)
    with pytest.raises(AssertionError):
        assert_same(toy(data), toy(data, first_errors=errors))


def test_networks_without_a_split_latent(data):
    made = toy(data, network=LAYERS | {"split_filters": 0})
    star = spectrum(data["first"][0])
    assert made.encode(star, "first")[1] is made.encode(star, "second")[1] is None
    assert made.to_second(star).flux.shape == (415,)
    with pytest.raises(ValueError, match="like has no effect: domain 'second' has no split latent"):
        made.to_second(star, like=star)


def test_latents_have_the_shapes_of_the_networks(brief, data):
    star = spectrum(data["second"][0])
    shared, split = brief.encode(star, "second")
    assert (shared.shape, split.shape) == ((8, 10), (2, 10))
    assert brief.encode(star, "first")[0].shape == (8, 10)


def test_the_card_says_what_it_is(translation):
    card = str(translation)
    assert card.startswith("<Translation a-to-b>\ndomains: A and B\ngrid: WavelengthGrid 15")
    assert "A domain: arrays, 405 spectra" in card
    assert "errors: learnt from 45 and 45 spectra held out" in card
    assert re.search(r"error of a pixel: 0\.00\d\d to A, 0\.00\d\d to B", card)


# -- the file -------------------------------------------------------------------------------
def test_a_saved_translation_is_the_same_to_the_bit(brief, data, tmp_path):
    brief.save(tmp_path / "saved.safetensors")
    again, star = Translation.load(tmp_path / "saved.safetensors"), spectrum(data["first"][0])
    assert_same(brief, again)
    np.testing.assert_array_equal(brief.to_second(star).flux.value, again.to_second(star).flux.value)
    assert again.grid == brief.grid
    assert str(again) == str(brief)


def test_files_of_the_other_kind_are_refused(brief, tiny_model, tmp_path):
    brief.save(tmp_path / "translation.safetensors")
    tiny_model.save(tmp_path / "model.safetensors")
    with pytest.raises(ModelFileError, match=r"holds a translation, not a model .* cyclestarnet.Translation.load"):
        CalibratedModel.load(tmp_path / "translation.safetensors")
    with pytest.raises(ModelFileError, match=r"does not hold a translation .* cyclestarnet.CalibratedModel.load"):
        Translation.load(tmp_path / "model.safetensors")
    with pytest.raises(FileNotFoundError):
        Translation.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays, meta: meta.update(version=9), "has version 9 of the file of a translation"),
        (lambda arrays, meta: meta.pop("network"), "does not hold a complete translation: 'network'"),
        (lambda arrays, meta: meta["network"].update(shared_filters=10**7), "not of the sizes that it names"),
        (lambda arrays, meta: meta.update(domains=["A", "A"]), "two names or more that differ, but are A, A"),
        (lambda arrays, meta: meta.update(domains=["A", "B", "C"]), "3 names of domains, but networks of 2"),
        (lambda arrays, meta: meta.update(split_latents=[True, True]), "not of the sizes that it names: domains.0"),
        (lambda arrays, meta: arrays.update({"scatter.0.1": np.ones(3)}), "must have the same number of pixels"),
        (lambda arrays, meta: arrays.pop("typical_split_latent.1"), "typical_split_latents must be of second"),
        (lambda arrays, meta: arrays.update({"selftest.0": np.ones(3)}), "fails its self-test"),
        (lambda arrays, meta: arrays["network.domains.1.decoder.2.bias"].__iadd__(1), "fails its self-test: a flat"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(brief, tmp_path, change, message):
    brief.save(tmp_path / "saved.safetensors")
    arrays, meta = load_arrays(tmp_path / "saved.safetensors")
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays, meta)
    save_arrays(arrays, meta, tmp_path / "saved.safetensors")
    with pytest.raises(ModelFileError, match=re.escape(message)):
        Translation.load(tmp_path / "saved.safetensors")


# -- the training -----------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_translation(brief, data):
    assert_same(brief, toy(data))


def test_an_interrupted_training_goes_on_to_the_same_translation(brief, data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # Ctrl-C after 3 of 6 iterations
        until = translations.TranslationRun.train

        def interrupted(run, **options):
            until(run, until=3, **options)
            raise KeyboardInterrupt

        patch.setattr(translations.TranslationRun, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            toy(data, folder=tmp_path)
    assert_same(brief, toy(data, folder=tmp_path))
    with pytest.raises(ValueError, match=r"has a training on other spectra \(second"):
        toy(data, folder=tmp_path, second=data["second"][:40] + 0.001)


def test_a_watch_scores_both_domains(data, tmp_path):
    made = toy(data, watch=WatchSettings(every=3), held_out=0.3, folder=tmp_path)
    assert (tmp_path / "scores.csv").read_text().count("\n") == 3  # titles, iterations 3 and 6
    assert "28 spectra" in made.provenance["first domain"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"first_errors": None}, SpectrumError, "errors of first must be given once, but first has no uncertainty"),
        ({"second_errors": np.ones((3, 4))}, SpectrumError, "errors of second must have the shape of second"),
        ({"second_mask": np.ones(415, bool)}, SpectrumError, "all pixels of second are masked"),
        ({"first_errors": np.full((40, 415), -1.0)}, SpectrumError, "errors of first must be positive"),
        ({"first_errors": np.full((40, 415), np.nan)}, SpectrumError, "errors of first must be positive"),
        ({"second": np.ones((40, 415)) * u.Jy}, SpectrumError, "second has the unit 'Jy'"),
        ({"second": np.full((40, 415), 900.0)}, SpectrumError, "second must be normalised flux"),
        ({"second": np.ones((40, 300))}, GridError, "second has 300 pixels, but there are 415 wavelengths"),
        ({"wavelength": None}, GridError, "neither first nor second is a Spectrum"),
        ({"held_out": 0.01}, SpectrumError, "of the spectra of first 40 are to be trained on and 0 are held out"),
        ({"translation": "better"}, ValueError, "translation must be 'residual' or 'paper', but is 'better'"),
        ({"settings": TrainingSettings(weight_labels=1.0)}, ValueError, "weight_labels needs spectra with labels"),
        ({"network": {}}, GridError, "415 pixels do not fit the strides"),
    ],
)
def test_wrong_input_is_named(data, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        toy(data, **changes)


@pytest.mark.parametrize(("factor", "message"), [(1.001, "resample one of them"), (2, "do not even overlap")])
def test_wavelengths_that_differ_are_named(data, factor, message):
    uncertainty = StdDevUncertainty(data["second_errors"][:40])
    other = Spectrum(data["second"][:40] * u.one, factor * GRID.wavelength, uncertainty=uncertainty)
    with pytest.raises(GridError, match=f"the wavelengths of second are not those of the training.*{message}"):
        toy(data, second=other, second_errors=None)


def test_spectra_that_cannot_be_translated_are_named(brief, data):
    flux = data["first"][0]
    with pytest.raises(TypeError, match=r"must be a specutils\.Spectrum"):
        brief.to_second(flux)
    with pytest.raises(SpectrumError, match="no continuum recipe to normalise it"):
        brief.to_first(spectrum(flux, unit=u.Jy))
    with pytest.raises(SpectrumError, match=r"flux must be normalised.* its median is 9"):
        brief.to_first(spectrum(100 * flux))
    with pytest.raises(SpectrumError, match="uncertainty is NaN, zero or negative"):
        brief.to_second(spectrum(flux, np.nan))
    with pytest.raises(ValueError, match="there is no domain 'observed'; those of 'translation' are first and second"):
        brief.reconstruct(spectrum(flux), "observed")


# -- the command line -------------------------------------------------------------------------
CONFIG = f"""
[run]
folder = "run"
name = "toy"
[first]
path = "first.h5"
selection = {{snr = "none"}}
[second]
path = "second.h5"
name = "APOGEE"
memory = "streamed"
selection = {{snr = "none"}}
[training]
n_iterations = 6
flux_mean = 0.92
flux_std = 0.11
[network]
{
    "".join(
        f"{name} = {[list(layer) for layer in v] if isinstance(v, (list, tuple)) else v}" + chr(10)
        for name, v in LAYERS.items()
        if name not in ("slope", "latent_norm")
    )
}
"""


@pytest.fixture
def folder(data, tmp_path):
    """A folder with both files and the file of a training."""
    for side in WIDTH:
        with h5py.File(tmp_path / f"{side}.h5", "w") as file:
            file["wavelength"] = GRID.wavelength.value
            for split, rows in {"train": slice(30), "val": slice(30, 40)}.items():
                file[f"spectra {split}"] = data[side][rows].astype("f4")
                file[f"spectra_err {split}"] = data[f"{side}_errors"][rows].astype("f4")
                file[f"spectra_msk {split}"] = (~data[f"{side}_mask"][rows]).astype("u1")
    (tmp_path / "toy.toml").write_text(CONFIG)
    return tmp_path


def test_files_are_trained_on_and_a_stopped_training_goes_on(folder, capsys):
    assert main(["train", str(folder / "toy.toml"), "--until", "3"]) == 0
    printed = capsys.readouterr().out
    assert "toy: first and APOGEE" in printed
    assert "stopped at iteration 3 of 6" in printed
    assert main(["train", str(folder / "toy.toml")]) == 0
    assert "goes on from iteration 3" in capsys.readouterr().out
    made = Translation.load(folder / "run" / "toy.safetensors")
    assert made.provenance["APOGEE domain"] == "second.h5, 30 spectra"
    assert main(["info", str(folder / "run" / "toy.safetensors")]) == 0
    assert capsys.readouterr().out.startswith("<Translation toy>\ndomains: first and APOGEE\n")


def test_files_may_be_streamed(folder):
    run = prepare_translation(read_translation_config(folder / "toy.toml"))
    assert isinstance(run.domains[1].source, StreamedSpectra)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('path = "second.h5"', 'path = "none.h5"', "[second] path"),
        ("[network]", "[synthetic]\n[network]", "there is no table [synthetic]"),
        ('name = "APOGEE"', "pixels = [0, 300]", "[second]"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said_in_one_line(folder, capsys, old, new, message):
    (folder / "toy.toml").write_text(CONFIG.replace(old, new))
    assert main(["train", str(folder / "toy.toml")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_example_is_a_configuration(tmp_path, capsys):
    assert main(["train", "--example", "translation"]) == 0
    assert capsys.readouterr().out == example_translation_config()
    for side in WIDTH:
        (tmp_path / f"{side}.h5").touch()
    (tmp_path / "mine.toml").write_text(example_translation_config())
    config = read_translation_config(tmp_path / "mine.toml")
    assert config.model.translation == "residual"
    assert config.network_settings(7167) == NetworkSettings()
    with pytest.raises(ValueError, match=r"there is no table \[first\]"):
        read_config(tmp_path / "mine.toml")
