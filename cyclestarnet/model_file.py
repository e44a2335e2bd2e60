"""The file of a calibrated model: one safetensors file, with a version, that verifies itself.

A file holds arrays and one JSON text of plain data. The arrays: weights
(``network.…``, ``emulator.…``), ``grid.wavelength``, ``recipe.pixels``,
``prior.…``, ``scatter.SPACE``, ``label_error``, clouds of latents
(``shared_latents.…``, ``split_latents.…``), ``typical_split_latent``,
``shortcuts.…``, and a self-test (``selftest.…``): labels, and the flux that the
model predicted of them when it was saved.

Version 1 called the split latent a nuisance, kept limits of errors among those of
flags, and gave ``scatter_inflation`` as a factor on the variance. It is read still.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
import torch

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import ModelFileError
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.networks.checkpoint import arrays_of, check_sizes, load_arrays, save_arrays
from cyclestarnet.networks.clouds import LatentCloud, SplitLatentCloud
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.shortcuts import Shortcuts
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.networks.translator import Translator
from cyclestarnet.noise import ErrorTrend, NoiseModel
from cyclestarnet.pipeline.parts import FlagLimits, ModelParts, Population
from cyclestarnet.pipeline.translate import DOMAINS, predictor_of

__all__ = ["digest_of", "load_parts", "save_parts"]

VERSION = 2  # that is written
TOLERANCE = 1e-4  # of the self-test's flux: other processors and versions of torch round otherwise
SPACES = ("observed", "emulator")  # that have a scatter


def save_parts(parts: ModelParts, path: str | Path, *, half: bool = False) -> None:
    """Write a model to one file, atomically.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    path : path-like
        Of the file, which is replaced if it exists.
    half : bool, optional
        Store weights in float16: half the size, flux changed by about 1e-4. Default: float32.

    Examples
    --------
    >>> import tempfile
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.model_file import load_parts, save_parts
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_parts(CalibratedModel.from_pretrained(), f"{folder}/model.safetensors", half=True)
    ...     load_parts(f"{folder}/model.safetensors").name
    'apogee-giants'
    """
    arrays, meta = _contents(parts)
    if half:
        matrices = {k: v for k, v in arrays.items() if k.startswith(("network.", "emulator.")) and v.ndim > 1}
        arrays |= {k: v.astype(np.float16) for k, v in matrices.items()}
    # The self-test is of what a reader will get: of the rounded weights.
    stored = _parts(arrays, meta)
    for domain in DOMAINS:
        arrays[f"selftest.{domain}"] = predictor_of(stored, domain).flux(parts.prior.mean).astype(np.float32)
    save_arrays(arrays, meta, path)


def load_parts(path: str | Path) -> ModelParts:
    """Read a model, and verify it with its self-test.

    Parameters
    ----------
    path : path-like
        A file that `save_parts` wrote, in this version or the one before.

    Returns
    -------
    `~cyclestarnet.pipeline.ModelParts`

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ModelFileError
        If the file is damaged, foreign, or predicts other spectra than it did when it was saved.

    Examples
    --------
    ::

        parts = load_parts("giants.safetensors")
    """
    arrays, meta = load_arrays(path)
    meta = meta if isinstance(meta, dict) else {}
    if kind := meta.get("kind"):
        raise ModelFileError(
            f"{path} holds a {kind}, not a model that fits labels; read it with cyclestarnet.Translation.load"
        )
    version = meta.get("version", 1)  # the first had no number
    if version not in (1, VERSION):
        raise ModelFileError(
            f"{path} has version {version!r} of the model file, but this cyclestarnet reads up to {VERSION}; update it"
        )
    try:
        if version == 1:
            arrays, meta = _from_version_1(arrays, meta)
        parts = _parts(arrays, meta)
        test_labels, expected = arrays["selftest.labels"], {d: arrays[f"selftest.{d}"] for d in DOMAINS}
    except Exception as error:  # what its parts object to, in the words of each
        raise ModelFileError(f"{path} does not hold a complete model: {error}") from error
    for domain in reversed(DOMAINS):
        difference = np.abs(predictor_of(parts, domain).flux(test_labels) - expected[domain]).max()
        if not difference < TOLERANCE:
            raise ModelFileError(
                f"{path} fails its self-test: the {domain} spectrum differs by {difference:.2g} "
                "from the one stored; the file was altered"
            )
    return parts


def digest_of(parts: ModelParts) -> str:
    """Digest of all that fits with a model depend on: it tells models apart, whatever their names.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.

    Returns
    -------
    str
        16 hexadecimal digits.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.model_file import digest_of
    >>> len(digest_of(CalibratedModel.from_pretrained()))
    16
    """
    arrays, meta = _contents(parts)
    del meta["provenance"]
    digest = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(name.encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


# -- to and from plain data ----------------------------------------------------------
def _contents(parts: ModelParts) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and plain data that make a model, as its file holds them."""
    population, noise, shared = parts.population, parts.noise, parts.population.shared_latents
    state = {f"network.{k}": v for k, v in parts.translator.network.state_dict().items()}
    state |= {f"emulator.{k}": v for k, v in parts.emulator.state_dict().items()}
    arrays = {k: v.cpu().numpy() for k, v in state.items()}
    arrays |= {
        "grid.wavelength": parts.grid.wavelength.value,
        "recipe.pixels": parts.recipe.pixels,
        "prior.mean": parts.prior.mean,
        "prior.covariance": parts.prior.covariance,
        "shared_latents.mean": shared.mean,
        "shared_latents.basis": np.asarray(shared.basis, dtype=np.float32),
        "shared_latents.variance": shared.variance,
        "selftest.labels": parts.prior.mean,
    }
    arrays |= {f"scatter.{space}": np.asarray(scatter, np.float32) for space, scatter in noise.scatter.items()}
    optional = {
        "typical_split_latent": population.typical_split_latent,
        "label_range": population.label_range,
        "label_error": noise.label_error,
        "zero_points": parts.zero_points,
    }
    arrays |= {name: array for name, array in optional.items() if array is not None}
    trend = noise.label_error_trend
    if trend is not None:
        arrays |= {f"label_error_trend.{k}": np.asarray(v) for k, v in vars(trend).items()}
    if population.split_latents is not None:
        arrays |= {f"split_latents.{k}": np.asarray(v, np.float32) for k, v in vars(population.split_latents).items()}
    if parts.shortcuts is not None:
        arrays |= {
            f"shortcuts.{key}": np.asarray(value, dtype=np.float16 if key == "slopes" else np.float32)
            for key, value in vars(parts.shortcuts).items()
        }
    meta = {
        "version": VERSION,
        "name": parts.name,
        "labels": parts.labels.to_dict(),
        "chips": parts.grid.chips,
        "degree": parts.recipe.degree,
        "network": parts.translator.network.settings.to_dict(),
        "emulator": {"hidden": parts.emulator.hidden, "activation": parts.emulator.activation},
        "flux_mean": parts.translator.flux_mean,
        "flux_std": parts.translator.flux_std,
        "translation": parts.translator.translation,
        "shared_latents": {"rest": shared.rest, "threshold": shared.threshold},
        "noise": {
            "sigma_floor": noise.sigma_floor,
            "sigma_max": noise.sigma_max,
            "fill": noise.fill,
            "scatter_inflation": dict(noise.scatter_inflation),
        },
        "limits": asdict(parts.limits),
        "normalises": parts.normalises,
        "provenance": dict(parts.provenance),
    }
    return arrays, meta


def _parts(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> ModelParts:
    """A model of what `_contents` returns."""
    labels = LabelSet(**meta["labels"])
    grid = WavelengthGrid(arrays["grid.wavelength"] * u.AA, tuple(map(tuple, meta["chips"])))
    with torch.device("meta"):  # of sizes alone: metadata can claim networks that no memory holds
        check_sizes("emulator", Emulator(labels.lower, labels.upper, grid.n_pixels, **meta["emulator"]), arrays)
        check_sizes("network", TranslationNetwork(NetworkSettings(**meta["network"])), arrays)
    emulator = Emulator(labels.lower, labels.upper, grid.n_pixels, **meta["emulator"])
    network = TranslationNetwork(NetworkSettings(**meta["network"]))
    emulator.load_state_dict({k: torch.from_numpy(v).float() for k, v in arrays_of("emulator", arrays).items()})
    network.load_state_dict({k: torch.from_numpy(v).float() for k, v in arrays_of("network", arrays).items()})
    split_latents, shortcuts = arrays_of("split_latents", arrays), arrays_of("shortcuts", arrays)
    trend = arrays_of("label_error_trend", arrays)
    return ModelParts(
        name=meta["name"],
        labels=labels,
        grid=grid,
        recipe=ContinuumRecipe(grid, arrays["recipe.pixels"], meta["degree"]),
        emulator=emulator,
        translator=Translator(network, meta["flux_mean"], meta["flux_std"], meta.get("translation", "paper")),
        noise=NoiseModel(
            scatter={space: arrays[f"scatter.{space}"].astype(float) for space in SPACES},
            label_error=arrays.get("label_error"),
            label_error_trend=ErrorTrend(**trend | {"columns": tuple(trend["columns"].tolist())}) if trend else None,
            **meta["noise"],
        ),
        population=Population(
            prior=GaussianPrior(arrays["prior.mean"], arrays["prior.covariance"]),
            shared_latents=LatentCloud(**arrays_of("shared_latents", arrays), **meta["shared_latents"]),
            split_latents=SplitLatentCloud(**_floats(split_latents)) if split_latents else None,
            typical_split_latent=arrays.get("typical_split_latent"),
            label_range=arrays.get("label_range"),
        ),
        limits=FlagLimits(**meta["limits"]),
        shortcuts=Shortcuts(**_floats(shortcuts) | {"slopes": shortcuts["slopes"].astype(np.float32)})
        if shortcuts
        else None,
        provenance=meta["provenance"],
        normalises=meta.get("normalises", True),
        zero_points=arrays.get("zero_points"),
    )


def _floats(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array.astype(float) for name, array in arrays.items()}


def _from_version_1(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict]:
    """Contents of a file of version 1, in today's words."""
    renamed = {"cloud.": "shared_latents.", "nuisance.": "split_latents.", "typical_nuisance": "typical_split_latent"}
    for old, new in renamed.items():
        arrays = {name.replace(old, new) if name.startswith(old) else name: array for name, array in arrays.items()}
    errors = {name: meta["limits"][name] for name in ("sigma_floor", "sigma_max")}
    inflation = {space: float(np.sqrt(factor)) for space, factor in meta["scatter_inflation"].items()}
    limits = {name: value for name, value in meta["limits"].items() if name not in errors}
    noise = errors | {"scatter_inflation": inflation}
    now = {"shared_latents": meta["cloud"], "noise": noise, "limits": limits}
    return arrays, meta | now
