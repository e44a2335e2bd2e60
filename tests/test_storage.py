"""Results that are kept: pickled, written and read to the last bit, refused if damaged, and taken by other calls."""

import copy
import dataclasses
import pickle

import astropy.units as u
import numpy as np
import pytest
import stars
from astropy.io import fits
from astropy.table import QTable
from specutils import Spectrum

import cyclestarnet
from cyclestarnet import (
    CycleStarNetWarning,
    FileFormatError,
    FitOptions,
    FitResult,
    GaussianPrior,
    IsochronePrior,
    LabelError,
    Posterior,
    read_results,
)
from cyclestarnet.fitting import GaussianConstraints, ProductPrior


@pytest.fixture(scope="module")
def star(tiny_model):
    flux = stars.observed(tiny_model, stars.STAR)
    mask = np.arange(stars.N) % 50 == 7
    star = stars.spectrum(tiny_model, flux, noise=np.random.default_rng(1), mask=mask)
    star.meta["object"] = "σ star"
    return star


@pytest.fixture(scope="module")
def result(tiny_model, star):
    return tiny_model.fit(star, method="lm", motion="velocity", fixed={"mg_h": -0.2 * u.dex})


@pytest.fixture(scope="module")
def posterior(tiny_model, star):
    pytest.importorskip("emcee")
    with pytest.warns(cyclestarnet.FitWarning, match="too short"):
        return tiny_model.sample(star, space="emulator", method="lm", seed=1, max_steps=60, progress=False)


def assert_same(one, other, name="result"):
    """Equal to the last bit, in whatever they hold."""
    if isinstance(one, Spectrum):
        for part in ("flux", "spectral_axis", "mask", "meta"):
            assert_same(getattr(one, part), getattr(other, part), f"{name}.{part}")
        assert (one.uncertainty is None) is (other.uncertainty is None)
        if one.uncertainty is not None:
            assert_same(one.uncertainty.array, other.uncertainty.array, f"{name}.uncertainty")
    elif isinstance(one, QTable):
        assert one.colnames == other.colnames
        for column in one.colnames:
            assert_same(one[column], other[column], f"{name}.{column}")
        assert_same(one.meta, other.meta, f"{name}.meta")
    elif dataclasses.is_dataclass(one):
        assert type(one) is type(other)
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name), f"{name}.{field.name}")
    elif isinstance(one, np.ndarray):
        assert getattr(one, "unit", None) == getattr(other, "unit", None), name
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=name)
        assert one.dtype == other.dtype, name
    elif isinstance(one, fits.Header):
        assert dict(one) == dict(other), name
    elif isinstance(one, dict):
        assert list(one) == list(other), name
        for key in one:
            assert_same(one[key], other[key], f"{name}[{key}]")
    else:
        assert type(one) is type(other), name
        assert one == other or (one != one and other != other), name


# -- other processes -----------------------------------------------------------------------
@pytest.mark.parametrize("what", ["result", "posterior"])
@pytest.mark.parametrize("way", [lambda value: pickle.loads(pickle.dumps(value)), copy.deepcopy, copy.copy])
def test_results_can_be_pickled_and_copied(request, what, way):
    value = request.getfixturevalue(what)
    assert_same(value, way(value))


def test_a_real_result_can_be_pickled(pretrained, k_giant):
    result = pretrained.fit(k_giant, method="lm", space="emulator")
    assert_same(result, pickle.loads(pickle.dumps(result)))


# -- files -----------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["result", "posterior"])
def test_results_come_back_from_a_file(request, tmp_path, what):
    value = request.getfixturevalue(what)
    value.write(tmp_path / "kept.fits")
    again = type(value).read(tmp_path / "kept.fits")
    assert_same(value, again)
    assert repr(again) == repr(value)


# Whether that fit converges depends on the weights, which other processors train otherwise.
@pytest.mark.filterwarnings("ignore::cyclestarnet.exceptions.FitWarning")
def test_a_fitted_split_latent_comes_back(tiny_model, star, tmp_path):
    from cyclestarnet.networks.clouds import SplitLatentCloud

    latents = tiny_model.translator.encode_obs(np.random.default_rng(2).normal(0.9, 0.05, (30, stars.N)))[1]
    population = dataclasses.replace(tiny_model.population, split_latents=SplitLatentCloud.from_latents(latents))
    model = dataclasses.replace(tiny_model, population=population)
    result = model.fit(star, method="lm", split_latent="fitted")
    result.write(tmp_path / "kept.fits")
    assert_same(result, FitResult.read(tmp_path / "kept.fits"))
    assert result.split_latent is not None


def test_every_prior_of_the_package_comes_back(tiny_model, star, result, tmp_path):
    labels = tiny_model.labels
    points = {"teff": np.linspace(4000, 5000, 40) * u.K, "logg": np.linspace(1, 3, 40)}
    priors = [
        None, "training", {"logg": (2.2, 0.1)}, GaussianPrior(tiny_model.prior.mean, tiny_model.prior.covariance),
        GaussianConstraints.of({"mg_h": (-0.2, 0.1)}, labels),
        IsochronePrior(points, {"teff": 100 * u.K, "logg": 0.1}, labels),
    ]  # fmt: skip
    priors += [[priors[3], {"logg": (2.2, 0.1)}], ProductPrior(priors[4:])]
    for prior in priors:
        kept = dataclasses.replace(result, options=FitOptions(prior=prior, method="lm"))
        kept.write(tmp_path / "kept.fits")
        fits = [
            tiny_model.fit(star, prior=p, method="lm")
            for p in (prior, FitResult.read(tmp_path / "kept.fits").options.prior)
        ]
        np.testing.assert_array_equal(fits[0].values, fits[1].values)


class OwnPrior:
    n_labels = 3


def test_what_a_file_cannot_keep_is_told_twice(tiny_model, star, result, tmp_path):
    kept = dataclasses.replace(result, options=FitOptions(prior=OwnPrior()))
    with pytest.warns(CycleStarNetWarning, match="cannot keep options_prior, a OwnPrior"):
        kept.write(tmp_path / "kept.fits")
    again = FitResult.read(tmp_path / "kept.fits")
    with pytest.raises(TypeError, match="is <a OwnPrior that the file could not keep>"):
        tiny_model.sample(star, start=again, progress=False)


def test_files_say_where_they_come_from(tiny_model, result, posterior, tmp_path):
    for value in (result, posterior):
        value.write(tmp_path / "kept.fits")
        header = fits.getheader(tmp_path / "kept.fits")
        assert (header["MODEL"], header["VERSION"]) == ("tiny", cyclestarnet.__version__)
        assert len(header["WEIGHTS"]) == 16
        assert header["DATE"] == value.meta["date"]
        assert '"space"' in header["OPTIONS"]
    assert set(posterior.samples.meta) == {"model", "weights", "version", "date", "options"}


def test_a_file_shows_labels_and_covariance_to_any_reader(result, tmp_path):
    result.write(tmp_path / "kept.fits")
    table = QTable.read(tmp_path / "kept.fits", hdu="LABELS")
    assert dict(zip(table["label"], table["value"], strict=True))["teff"] == result["teff"].value
    small = QTable.read(tmp_path / "kept.fits", hdu="SPECTRUM")
    np.testing.assert_array_equal(small["flux"], result.spectrum.flux.value)


@pytest.mark.parametrize("suffix", ["ecsv", "fits", "parquet"])
def test_tables_say_where_they_come_from(tiny_model, star, tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    prior = GaussianPrior(tiny_model.prior.mean, tiny_model.prior.covariance)
    table = tiny_model.fit_many([star], prior=prior, output=tmp_path / f"t.{suffix}", progress=False)
    assert set(table.meta) == {"model", "weights", "version", "date", "options"}
    assert read_results(tmp_path / f"t.{suffix}").meta == table.meta


def test_the_table_of_a_result_says_where_it_comes_from(result):
    assert result.to_table().meta["weights"] == result.meta["weights"]


@pytest.mark.parametrize("place", [0, 3, 100, 0.2, 0.5, 0.8, -1])
def test_a_changed_byte_is_damage(result, tmp_path, place):
    path = tmp_path / "kept.fits"
    result.write(path)
    content = bytearray(path.read_bytes())
    place = int(place * len(content)) if isinstance(place, float) else place
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"kept.fits .*damaged"):
        FitResult.read(path)


@pytest.mark.parametrize("length", [0, 1, 2880, 30_000, -1])
def test_a_truncated_file_is_damaged(result, tmp_path, length):
    path = tmp_path / "kept.fits"
    result.write(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(FileFormatError, match=r"kept.fits .*damaged"):
        FitResult.read(path)


def test_another_file_is_refused_by_its_kind(result, posterior, tmp_path):
    result.write(tmp_path / "kept.fits")
    with pytest.raises(FileFormatError, match="holds a FitResult, not a Posterior"):
        Posterior.read(tmp_path / "kept.fits")
    with pytest.raises(FileNotFoundError):
        Posterior.read(tmp_path / "nowhere.fits")
    fits.PrimaryHDU().writeto(tmp_path / "other.fits")
    with pytest.raises(FileFormatError, match="no file of cyclestarnet"):
        FitResult.read(tmp_path / "other.fits")


# -- specutils ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["model_spectrum", "residual_spectrum", "spectrum"])
@pytest.mark.parametrize("options", [{}, {"format": "tabular-fits"}])
def test_spectra_go_through_the_writers_of_specutils(result, tmp_path, name, options):
    spectrum = getattr(result, name)
    spectrum.write(tmp_path / "spectrum.fits", **options)
    again = Spectrum.read(tmp_path / "spectrum.fits")
    for part in ("flux", "spectral_axis", "mask"):
        np.testing.assert_array_equal(getattr(again, part), getattr(spectrum, part))
    assert again.flux.unit == u.one
    assert again.meta["header"]["WEIGHTS"] == result.meta["weights"]


# -- what other calls take ---------------------------------------------------------------------
def test_a_result_answers_by_name(result):
    assert result["teff"] == result.labels["teff"]
    with pytest.raises(LabelError, match="no label 'Teff'; did you mean 'teff'\\? There are: teff, logg"):
        result["Teff"]


def test_samples_answer_by_name(posterior):
    assert posterior["logg"] == posterior.labels["logg"]


def test_results_of_moving_stars_are_labels_of_predictions(tiny_model, result, posterior):
    values = {name: result.labels[name] for name in tiny_model.labels}
    expected = tiny_model.predict(values).flux
    for labels in (result, result.labels, result.to_table()[0]):
        np.testing.assert_array_equal(tiny_model.predict(labels).flux, expected)
        slopes = tiny_model.derivative_spectra(labels)
        np.testing.assert_array_equal(slopes["teff"], tiny_model.derivative_spectra(values)["teff"])
    assert tiny_model.predict(posterior).flux.shape == expected.shape


def test_results_of_moving_stars_are_starts(tiny_model, star, result, posterior):
    fits = [tiny_model.fit(star, method="lm", start=start) for start in (result, result.labels)]
    np.testing.assert_array_equal(fits[0].values, fits[1].values)
    assert tiny_model.fit(star, method="lm", start=posterior).success
    moving = tiny_model.fit(star, method="lm", start=result.labels, motion="velocity")
    assert moving.options.start["velocity"] == result["velocity"]


def test_motion_that_is_not_fitted_cannot_be_fixed(tiny_model, star):
    with pytest.raises(LabelError, match="Unknown label 'velocity'"):
        tiny_model.fit(star, fixed={"velocity": 3 * u.km / u.s})
