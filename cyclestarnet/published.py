"""The public files of Cycle-StarNet, joined to a model: what they lack is assumed, and the provenance says so."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from astropy.table import Table

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import GridError, LabelError
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.grid import APSTAR_CHIPS, WavelengthGrid, apogee_grid
from cyclestarnet.labels import LabelSet, kelvin_scale
from cyclestarnet.networks.clouds import LatentCloud
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.predictor import EmulatorPredictor
from cyclestarnet.networks.published import (
    PAYNE_LABELS,
    PUBLISHED_SPECTRA,
    adapt_emulator,
    read_payne_checkpoint,
    read_published_checkpoint,
)
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.networks.translator import Translator
from cyclestarnet.noise import NoiseModel
from cyclestarnet.pipeline.parts import FlagLimits, ModelParts, Population

__all__ = ["read_published_parts"]

MODEL_ERROR = 0.01
POOR_FIT = 2.0  # reduced χ², model error included


def read_published_parts(
    checkpoint: str | Path,
    emulator: str | Path,
    *,
    preset: str = "repository",
    labels: Sequence[str] | None = None,
    template: NetworkSettings | None = None,
) -> ModelParts:
    """Join the public files to a model; see `~cyclestarnet.CalibratedModel.from_published`.

    Parameters
    ----------
    checkpoint, emulator : path-like
        Files of the translation networks and of the emulator.
    preset : {"paper", "repository"}, optional
        Which pixels the network takes, and the scaling of its flux.
    labels : sequence of str, optional
        Names in the order of the emulator. Default: the 25 of the paper.
    template : `~cyclestarnet.NetworkSettings`, optional
        Sizes that the file does not tell. Default: the paper's.

    Returns
    -------
    `~cyclestarnet.pipeline.ModelParts`

    Raises
    ------
    ModelFileError, LabelError, GridError
        As `~cyclestarnet.CalibratedModel.from_published`.

    Examples
    --------
    ::

        parts = read_published_parts("kurucz_to_apogee_1.pth.tar", "PAYNE.pth.tar")
    """
    if preset not in PUBLISHED_SPECTRA:
        raise ValueError(f"preset must be one of {', '.join(map(repr, PUBLISHED_SPECTRA))}, but is {preset!r}")
    spectra = PUBLISHED_SPECTRA[preset]
    payne = read_payne_checkpoint(emulator)
    network, _ = read_published_checkpoint(checkpoint, template=template, emulator=payne)
    translator = Translator(network, spectra.flux_mean, spectra.flux_std)
    n_pixels, sizes = network.settings.n_pixels, network.settings
    grid = apogee_grid(n_pixels, cut=spectra.cut)
    names = _published_labels(labels, payne.n_labels)
    scale = kelvin_scale(names, payne.upper.numpy())
    pixels = _published_pixels(payne, translator, preset)
    payne = adapt_emulator(payne, pixels=pixels, label_scale=scale)
    label_set = LabelSet(names, payne.lower.double().numpy(), payne.upper.double().numpy())
    n_latent = sizes.shared_filters * sizes.latent_length
    files = {"checkpoint": Path(checkpoint), "emulator": Path(emulator)}
    return ModelParts(
        name=files["checkpoint"].name.removesuffix(".tar").removesuffix(".pth"),
        labels=label_set,
        grid=grid,
        recipe=_apogee_recipe(grid),
        emulator=payne,
        translator=translator,
        noise=NoiseModel(
            spectra.sigma_floor,
            spectra.sigma_max,
            fill=None,  # the published code hands bad pixels to its networks as they are
            scatter={space: np.full(n_pixels, MODEL_ERROR) for space in ("observed", "emulator")},
        ),
        population=Population(
            prior=GaussianPrior((label_set.lower + label_set.upper) / 2, np.diag(label_set.scale**2 / 4)),
            shared_latents=LatentCloud(np.zeros(n_latent), np.zeros((0, n_latent)), np.zeros(0), 1.0, np.inf),
            typical_split_latent=np.zeros((sizes.split_filters, sizes.latent_length)) if network.has_split else None,
        ),
        limits=FlagLimits(reduced_chi2_total=POOR_FIT),
        normalises=False,  # its training spectra had other continuum pixels
        provenance={
            "made from": "the public files of Cycle-StarNet (O'Briain et al. 2021)",
            "preset": preset,
            "assumed": "prior, model error, limits, typical split latent and continuum pixels; "
            "see CalibratedModel.from_published",
        }
        | {key: f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}" for key, path in files.items()},
    )


def _published_labels(labels: Sequence[str] | None, n_labels: int) -> tuple[str, ...]:
    if labels is None and n_labels != len(PAYNE_LABELS):
        raise LabelError(
            f"the emulator takes {n_labels} labels, not the paper's {len(PAYNE_LABELS)}; name them by `labels`"
        )
    names = PAYNE_LABELS if labels is None else tuple(labels)
    if len(names) != n_labels:
        raise LabelError(f"labels names {len(names)} labels, but the emulator takes {n_labels}: {', '.join(names)}")
    return names


def _published_pixels(emulator: Emulator, translator: Translator, preset: str) -> slice:
    """Pixels of a published emulator that its network takes; the wrong end raises."""
    n_all, n_pixels = sum(b - a for a, b in APSTAR_CHIPS), translator.network.settings.n_pixels
    if emulator.n_pixels == n_pixels:
        return slice(None)
    if emulator.n_pixels != n_all:
        raise GridError(
            f"the emulator has {emulator.n_pixels} pixels, but must have {n_all}, or the network's {n_pixels}"
        )
    pixels = {"paper": slice(n_pixels), "repository": slice(n_all - n_pixels, None)}
    flux = EmulatorPredictor(emulator).flux(((emulator.lower + emulator.upper) / 2).numpy())
    # A trained network knows its pixels: displaced spectra come back with errors many times larger.
    errors = {
        name: np.sqrt(np.mean((translator.reconstruct_synth(flux[None, part])[0] - flux[part]) ** 2))
        for name, part in pixels.items()
    }
    best = min(errors, key=errors.get)
    if errors[preset] > 2 * errors[best]:
        raise GridError(
            f"the network returns the emulator's spectrum with an error of {errors[preset]:.2g} on the pixels of "
            f"preset={preset!r}, but {errors[best]:.2g} on those of preset={best!r}; use that one"
        )
    return pixels[preset]


def _apogee_recipe(grid: WavelengthGrid) -> ContinuumRecipe:
    """Recipe with the continuum pixels of this package that lie on a grid."""
    with resources.as_file(resources.files("cyclestarnet.data") / "apogee_continuum_pixels.ecsv") as path:
        return ContinuumRecipe.from_wavelengths(grid, Table.read(path)["wavelength"])
