"""Spectra through the networks of a model: predictions, translations and reconstructions."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from astropy.nddata import StdDevUncertainty

from cyclestarnet.exceptions import CycleStarNetError, SpectrumError
from cyclestarnet.networks.predictor import EmulatorPredictor, ObservedPredictor
from cyclestarnet.pipeline.options import check_choice
from cyclestarnet.pipeline.parts import ModelParts
from cyclestarnet.spectra import Spectrum, star_name, to_spectrum

__all__ = [
    "DOMAINS",
    "EncodedSpectra",
    "encode_spectra",
    "encode_split_latent",
    "predictor_of",
    "seen_flux",
    "spectrum_of",
]

log = logging.getLogger(__name__)

DOMAINS = ("observed", "synthetic")
SYNTHETIC_SIGMA = 0.005  # of a synthetic spectrum without an error; it decides nothing


def predictor_of(
    parts: ModelParts, domain: str, split_latent: np.ndarray | None = None
) -> EmulatorPredictor | ObservedPredictor:
    """Make a predictor of the flux of a domain.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    domain : {"observed", "synthetic"}
        Whose spectra are predicted.
    split_latent : array, shape (split_filters, latent_length), optional
        Of observed spectra. Default: the typical one.

    Returns
    -------
    predictor
        With the methods ``flux`` and ``jacobian``.

    Raises
    ------
    ValueError
        If there is no such domain.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.pipeline.translate import predictor_of
    >>> model = CalibratedModel.from_pretrained()
    >>> predictor_of(model, "synthetic").flux(model.prior.mean).shape
    (7167,)
    """
    check_choice("domain", domain, DOMAINS)
    if domain == "synthetic":
        return EmulatorPredictor(parts.emulator)
    typical = parts.population.typical_split_latent
    return ObservedPredictor(
        parts.translated_emulator, parts.translator, typical if split_latent is None else split_latent
    )


def seen_flux(
    parts: ModelParts, spectrum: Spectrum, *, domain: str = "observed", normalise: bool | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Put a spectrum on the model's pixels, as the encoders see it.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    spectrum : `~specutils.Spectrum`
        A synthetic one need not have an uncertainty.
    domain : {"observed", "synthetic"}, optional
        Of the spectrum.
    normalise : bool, optional
        As `~cyclestarnet.pipeline.ModelParts.pixels_of` takes it.

    Returns
    -------
    flux : array, shape (n_pixels,)
        Pixels that do not count are filled.
    used : array of bool, shape (n_pixels,)
        Which pixels count.

    Raises
    ------
    SpectrumError, GridError
        If the spectrum cannot be used; see `~cyclestarnet.pipeline.ModelParts.pixels_of`.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.pipeline.translate import seen_flux
    >>> model = CalibratedModel.from_pretrained()
    >>> star = model.predict(model.labels.to_quantities(model.prior.mean), domain="synthetic")
    >>> flux, used = seen_flux(model, star, domain="synthetic")
    >>> flux.shape, used.all()
    ((7167,), np.True_)
    """
    check_choice("domain", domain, DOMAINS)
    if domain == "synthetic" and getattr(spectrum, "uncertainty", None) is None and hasattr(spectrum, "flux"):
        sigma = StdDevUncertainty(np.full(spectrum.flux.shape, SYNTHETIC_SIGMA) * spectrum.flux.unit)
        spectrum = type(spectrum)(
            flux=spectrum.flux, spectral_axis=spectrum.spectral_axis, mask=spectrum.mask, uncertainty=sigma
        )
    pixels = parts.pixels_of(spectrum, normalise=normalise)
    used = parts.noise.used_pixels(pixels.flux, pixels.sigma)
    return parts.noise.filled_flux(pixels.raw, used), used


def encode_split_latent(parts: ModelParts, like: Spectrum | None, *, domain: str = "observed") -> np.ndarray | None:
    """Split latent of an observed spectrum.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    like : `~specutils.Spectrum` or None
        The spectrum. None: a typical one.
    domain : str, optional
        What is to be made with it.

    Returns
    -------
    array, shape (split_filters, latent_length), or None
        None if the network has no split branch.

    Raises
    ------
    ValueError
        If a spectrum is given that can have no effect: the synthetic domain has no split latent, and some networks
        have none.

    Examples
    --------
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.pipeline.translate import encode_split_latent
    >>> encode_split_latent(CalibratedModel.from_pretrained(), None).shape
    (1, 24)
    """
    if like is None:
        return parts.population.typical_split_latent
    if domain == "synthetic" or parts.population.typical_split_latent is None:
        whose = "the synthetic domain" if domain == "synthetic" else f"model {parts.name!r}"
        raise ValueError(f"like has no effect: {whose} has no split latent, which would come from it; leave it out")
    split_latent = parts.translator.encode_obs(seen_flux(parts, like)[0][None])[1]
    return None if split_latent is None else split_latent[0]


def spectrum_of(
    parts: ModelParts,
    flux: np.ndarray,
    domain: str,
    *,
    used: np.ndarray | None = None,
    source: Spectrum | None = None,
) -> Spectrum:
    """Make a spectrum of predicted flux.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    flux : array, shape (..., n_pixels)
        Normalised.
    domain : {"observed", "synthetic"}
        Of the flux; in the metadata, with the name of the model.
    used : array of bool, shape (n_pixels,), optional
        Pixels of the spectrum that the flux was made of that count; the others are masked. Default: all.
    source : `~specutils.Spectrum`, optional
        That spectrum, whose star is named in the metadata. Default: none.

    Returns
    -------
    `~specutils.Spectrum`
        Without an uncertainty: networks propagate none.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.pipeline.translate import spectrum_of
    >>> spectrum_of(CalibratedModel.from_pretrained(), np.ones(7167), "observed").meta["domain"]
    'observed'
    """
    meta = {"model": parts.name, "domain": domain}
    if source is not None:
        meta["object"] = star_name(source)
    return to_spectrum(flux, parts.grid, mask=None if used is None else ~used, meta=meta)


# -- latents ---------------------------------------------------------------------
class _Star(Protocol):
    """A spectrum that is read when its turn comes, as a `~cyclestarnet.io.stars.StarSource`."""

    @property
    def name(self) -> str: ...

    def read(self) -> Spectrum: ...


@dataclass(frozen=True, eq=False)
class EncodedSpectra:
    """Latents of spectra of one domain; those of spectra that cannot be used are NaN.

    Parameters
    ----------
    domain : {"observed", "synthetic"}
        Of the spectra.
    names : tuple of str
        Of the stars.
    flux : array, shape (n, n_pixels)
        Normalised flux on the model's pixels, as the encoders saw it: filled where pixels do not count.
    used : array of bool, shape (n, n_pixels)
        Which pixels count.
    shared_latent : array, shape (n, shared_filters, latent_length)
        What both domains have in common.
    split_latent : array, shape (n, split_filters, latent_length), or None
        What observed spectra have besides. None of synthetic spectra, and of networks without one.
    messages : tuple of str
        Why a spectrum cannot be used; empty if it can.

    Examples
    --------
    ::

        encoded = model.encode("spectra/apStar-*.fits")
        encoded.shared_latent[encoded.good].mean(axis=0)
    """

    domain: str
    names: tuple[str, ...]
    flux: np.ndarray
    used: np.ndarray
    shared_latent: np.ndarray
    split_latent: np.ndarray | None
    messages: tuple[str, ...]

    @property
    def good(self) -> np.ndarray:
        """Which spectra could be used, (n,)."""
        return np.array([not message for message in self.messages])


def encode_spectra(
    parts: ModelParts, stars: Iterable[_Star], *, domain: str = "observed", normalise: bool | None = None
) -> EncodedSpectra:
    """Encode spectra; see `~cyclestarnet.CalibratedModel.encode`.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    stars : iterable of `~cyclestarnet.io.stars.StarSource`
        Where the spectra are.
    domain : {"observed", "synthetic"}, optional
        Of the spectra.
    normalise : bool, optional
        As `~cyclestarnet.pipeline.ModelParts.pixels_of` takes it.

    Returns
    -------
    `EncodedSpectra`

    Raises
    ------
    SpectrumError
        If there are no spectra, or none can be used.
    ValueError
        If there is no such domain.

    Examples
    --------
    ::

        encode_spectra(model, star_sources("spectra/apStar-*.fits"))
    """
    check_choice("domain", domain, DOMAINS)
    names, messages, flux, used = [], [], [], []
    nothing = np.full(parts.grid.n_pixels, np.nan), np.zeros(parts.grid.n_pixels, dtype=bool)
    for star in stars:
        try:
            row, message = seen_flux(parts, star.read(), domain=domain, normalise=normalise), ""
        except (CycleStarNetError, OSError, TypeError, ValueError) as error:
            row, message = nothing, str(error) or type(error).__name__
            log.warning("%s cannot be encoded: %s", star.name or f"spectrum {len(names)}", message)
        for column, value in zip((names, messages, flux, used), (star.name, message, *row), strict=True):
            column.append(value)
    if all(messages):
        raise SpectrumError(f"none of {len(names)} spectra can be encoded" + (f": {messages[0]}" if messages else ""))
    spectra = np.array(flux)
    if domain == "observed":
        shared, split = parts.translator.encode_obs(spectra)
    else:
        shared, split = parts.translator.encode_synth(spectra), None
    return EncodedSpectra(domain, tuple(names), spectra, np.array(used), shared, split, tuple(messages))
