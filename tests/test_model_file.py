"""Files of models: versions, and what tells models apart."""

import json

import numpy as np
import pytest
from stars import STAR, with_noise

from cyclestarnet import CalibratedModel, ModelFileError
from cyclestarnet.datasets import pretrained_file
from cyclestarnet.model_file import VERSION, digest_of, load_parts, save_parts
from cyclestarnet.networks.checkpoint import load_arrays, save_arrays
from cyclestarnet.noise import ErrorTrend


@pytest.fixture(scope="module")
def whole(tiny_model):
    """The tiny model with errors of all kinds."""
    return with_noise(
        tiny_model,
        scatter_inflation={"observed": 1.5},
        label_error=np.diag([100.0, 0.01, 0.001]),
        fill=0.98,
        label_error_trend=ErrorTrend((0, 2), np.ones(2), np.full(2, 3.0), np.arange(12.0).reshape(3, 4)),
    )


def as_version_1(path, old):
    """Rewrite a file as the first version had it: other names, limits of errors among those of flags, variances."""
    arrays, meta = load_arrays(path)
    renamed = {"shared_latents.": "cloud.", "split_latents.": "nuisance.", "typical_split_latent": "typical_nuisance"}
    for new, name in renamed.items():
        arrays = {k.replace(new, name) if k.startswith(new) else k: v for k, v in arrays.items()}
    noise = meta.pop("noise")
    del meta["version"]
    meta["cloud"] = meta.pop("shared_latents")
    meta["limits"] |= {name: noise[name] for name in ("sigma_floor", "sigma_max")}
    meta["scatter_inflation"] = {space: factor**2 for space, factor in noise["scatter_inflation"].items()}
    save_arrays(arrays, meta, old)


def test_a_file_of_version_1_is_the_same_model(whole, tmp_path):
    save_parts(whole, tmp_path / "new.safetensors")
    as_version_1(tmp_path / "new.safetensors", tmp_path / "old.safetensors")
    old = CalibratedModel.load(tmp_path / "old.safetensors")
    assert old.noise.fill == 1.0  # as all models of that time
    again = with_noise(old, fill=0.98)
    assert again.noise.scatter_inflation["observed"] == pytest.approx(1.5)
    assert (again.limits, again.noise.sigma_max) == (whole.limits, whole.noise.sigma_max)
    np.testing.assert_array_equal(again.noise.label_error, whole.noise.label_error)
    trends = (model.noise.label_error_trend for model in (again, whole))
    for mine, theirs in zip(*(vars(trend).values() for trend in trends), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(again.population.typical_split_latent, whole.population.typical_split_latent)
    np.testing.assert_array_equal(again.predict(STAR).flux, whole.predict(STAR).flux)


def test_the_packaged_model_is_of_the_latest_version():
    with pretrained_file("apogee-giants") as path:
        assert load_arrays(path)[1]["version"] == VERSION


def test_the_packaged_model_knows_its_limits_of_errors(pretrained):
    assert pretrained.noise.label_error_trend.slopes.shape == (20, 6)
    assert (pretrained.noise.sigma_floor, pretrained.noise.sigma_max, pretrained.noise.fill) == (0.005, 0.05, 1.0)


def test_a_file_of_a_later_version_is_refused_in_words(whole, tmp_path):
    path = tmp_path / "model.safetensors"
    save_parts(whole, path)
    arrays, meta = load_arrays(path)
    save_arrays(arrays, meta | {"version": 3}, path)
    with pytest.raises(ModelFileError, match=r"has version 3 .* reads up to 2; update it"):
        load_parts(path)


def test_the_fill_is_kept(whole, tmp_path):
    for fill in (0.98, None):
        save_parts(with_noise(whole, fill=fill), tmp_path / "model.safetensors")
        assert load_parts(tmp_path / "model.safetensors").noise.fill == fill


@pytest.mark.parametrize("changes", [{"fill": None}, {"sigma_max": 0.06}, {"scatter_inflation": {"observed": 3.0}}])
def test_models_of_other_errors_have_other_digests(whole, changes):
    assert digest_of(with_noise(whole, **changes)) != digest_of(whole)


def test_the_metadata_are_plain(whole, tmp_path):
    save_parts(whole, tmp_path / "model.safetensors")
    _, meta = load_arrays(tmp_path / "model.safetensors")
    assert json.loads(json.dumps(meta)) == meta
    assert meta["version"] == 2
