"""From trained parts to a `~cyclestarnet.CalibratedModel`: what a model must know about itself before it may fit.

Trained networks predict spectra. A fit needs more: a prior on the labels, the
model's own error in each pixel and how far neighbouring errors are alike, and
the limits beyond which a star is flagged. `assemble_model` learns all of it,
the errors by fitting validation spectra that training has not seen.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass, replace

import numpy as np
from astropy.nddata import StdDevUncertainty

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import CycleStarNetError, FitWarning, SpectrumError
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.model import CalibratedModel
from cyclestarnet.networks.clouds import LatentCloud, SplitLatentCloud
from cyclestarnet.networks.predictor import EmulatorPredictor
from cyclestarnet.noise import NoiseModel
from cyclestarnet.pipeline.diagnostics import continuum_misfit, local_misfit
from cyclestarnet.pipeline.parts import FlagLimits, Population
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.shortcuts import learn_shortcuts

__all__ = [
    "Residuals",
    "assemble_model",
    "correlation_inflation",
    "filled_flux",
    "fit_residuals",
    "label_prior",
    "learn_errors",
    "misfits",
    "model_scatter",
    "quiet_pixels",
    "typical_latent",
]

log = logging.getLogger(__name__)

FIRST_SCATTER = {"observed": 0.01, "emulator": 0.03}  # before the residuals tell
LEAST_SCATTER = 0.002  # no emulator or translation of real stars has been better
LEAST_STARS = 3  # that must see a pixel, or it takes the scatter of the others
DOMAIN_OF_SPACE = {"observed": "observed", "emulator": "synthetic"}


def assemble_model(
    name, *, labels, grid, emulator, translator, label_pool, observed, validation, noise, recipe=None,
    provenance=None, fit=None, progress=True,
):  # fmt: skip
    """Join trained parts to a model, and learn the errors and limits that fits with it need.

    Parameters
    ----------
    name : str
    labels : `~cyclestarnet.LabelSet`
    grid : `~cyclestarnet.WavelengthGrid`
    emulator : `~cyclestarnet.networks.emulator.Emulator`
    translator : `~cyclestarnet.networks.predictor.Translator`
    label_pool : array, shape (n_pool, n_labels)
        Labels of the synthetic training spectra, in their units; their mean
        and covariance become the label prior.
    observed : `~specutils.Spectrum`, a row per star
        Observed training spectra, normalised, on ``grid``; 1000 or more
        describe the clouds of latents well.
    validation : `~specutils.Spectrum`, a row per star
        Observed spectra that training has not seen; 20 give a rough, 100 a
        good scatter per pixel.
    noise : `~cyclestarnet.NoiseModel`
        That of the training (``settings.noise``): which pixels count, and with what error.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        The one that normalised the spectra. Default: one through
        `quiet_pixels` of synthetic spectra; it is used for spectra with
        physical units only.
    provenance : dict, optional
        What goes on the model card.
    fit : callable, optional
        Does the work of `fit_residuals`, the default, for instance in parallel.
    progress : bool, optional
        Show a bar over the fits, which take seconds per star for networks of the paper's size.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`

    Raises
    ------
    GridError, LabelError
        If the parts do not fit each other, or the pool leaves the range of the labels.
    SpectrumError
        If hardly any validation star can be fitted, or ``observed`` has no uncertainty.
    """
    pool = np.asarray(label_pool, dtype=float)
    labels.check_range(pool)
    prior = label_prior(pool, labels)
    if recipe is None:
        rows = np.linspace(0, len(pool) - 1, min(len(pool), 500)).astype(int)
        recipe = ContinuumRecipe(grid, quiet_pixels(EmulatorPredictor(emulator).flux(pool[rows]), grid))
    shared, split = translator.encode_obs(filled_flux(observed, noise))
    typical = typical_latent(split)
    model = CalibratedModel(
        name=name,
        labels=labels,
        grid=grid,
        emulator=emulator,
        translator=translator,
        recipe=recipe,
        noise=replace(noise, scatter={space: np.full(grid.n_pixels, value) for space, value in FIRST_SCATTER.items()}),
        population=Population(
            prior=prior,
            shared_latents=LatentCloud.from_latents(shared, n_components=max(1, min(40, len(shared) // 4))),
            split_latents=None if split is None else SplitLatentCloud.from_latents(split),
            typical_split_latent=typical,
        ),
        limits=FlagLimits(prior_distance=1.1 * float(np.quantile(np.sqrt(prior.distance2(pool) / len(labels)), 0.999))),
        shortcuts=learn_shortcuts(emulator, translator, prior, labels.lower, labels.upper, typical),
        provenance=dict(provenance or {}),
    )
    return learn_errors(model, validation, fit=fit or fit_residuals, progress=progress)


def filled_flux(spectra: Spectrum, noise: NoiseModel) -> np.ndarray:
    """Flux of observed spectra as the encoders see it.

    Parameters
    ----------
    spectra : `~specutils.Spectrum`
        Normalised, on the model's pixels, with any kind of uncertainty; flux of shape (n_pixels,) or (n, n_pixels).
    noise : `~cyclestarnet.NoiseModel`
        Which pixels count, and what stands for the others.

    Returns
    -------
    array, of the shape of the flux

    Raises
    ------
    SpectrumError
        If there is no uncertainty.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from astropy.nddata import StdDevUncertainty
    >>> from cyclestarnet import NoiseModel
    >>> from cyclestarnet.spectra import Spectrum
    >>> from cyclestarnet.training.assembly import filled_flux
    >>> star = Spectrum(
    ...     flux=[0.9, 0.8, 3.0] * u.one,
    ...     spectral_axis=[1.5, 1.6, 1.7] * u.um,
    ...     uncertainty=StdDevUncertainty([0.01, 0.01, -1.0]),
    ... )
    >>> filled_flux(star, NoiseModel())
    array([0.9, 0.8, 1. ])
    """
    if spectra.uncertainty is None:
        raise SpectrumError("observed must have an uncertainty, which tells its bad pixels, but has none")
    with np.errstate(divide="ignore", invalid="ignore"):  # an inverse variance of 0 is a bad pixel
        sigma = np.asarray(spectra.uncertainty.represent_as(StdDevUncertainty).array, dtype=float)
    flux = np.asarray(spectra.flux.value, dtype=float)
    mask = None if spectra.mask is None else np.broadcast_to(np.asarray(spectra.mask).astype(bool), flux.shape)
    return noise.filled_flux(flux, noise.used_pixels(flux, sigma, mask))


def label_prior(pool, labels):
    """Gaussian with the moments of a pool of labels.

    Parameters
    ----------
    pool : array, shape (n_pool, n_labels)
    labels : `~cyclestarnet.LabelSet`

    Returns
    -------
    `~cyclestarnet.GaussianPrior`
        Where labels of the pool depend on each other or do not vary, every
        label is given an additional 1 % of its range, so that a fit may leave
        the plane in which the pool lies.
    """
    covariance = np.atleast_2d(np.cov(pool.T)) if len(pool) > 1 else np.zeros((len(labels), len(labels)))
    size = np.sqrt(np.diag(covariance))
    if not size.all() or np.linalg.eigvalsh(covariance / np.outer(size, size)).min() < 1e-6:
        log.info("labels of the pool depend on each other: the prior is widened by 1 % of each label's range")
        covariance = covariance + np.diag((0.01 * labels.scale) ** 2)
    return GaussianPrior(pool.mean(0), covariance)


def typical_latent(latents):
    """The one of latents (n, filters, positions) that is nearest to their mean; None of None.

    A mean of latents may be a latent that no spectrum has.
    """
    if latents is None:
        return None
    return latents[np.argmin(((latents - latents.mean(0)) ** 2).sum((1, 2)))]


def quiet_pixels(flux, grid, *, window=100, per_window=7, limit=0.03, least=8):
    """Choose continuum pixels: near 1 and deaf to the labels, spread evenly over each chip.

    The flux of a grid is a function of its labels alone, so its scatter over
    the grid measures the answer to all labels at once.

    Parameters
    ----------
    flux : array, shape (n, n_pixels)
        Normalised synthetic spectra of many labels.
    grid : `~cyclestarnet.WavelengthGrid`
    window, per_window : int, optional
        In each ``window`` of pixels the quietest ``per_window`` are taken, ...
    limit : float, optional
        ... if depth and scatter together stay below this.
    least : int, optional
        Pixels that a chip gets in any case.

    Returns
    -------
    array of bool, shape (n_pixels,)
    """
    score = np.hypot(1 - flux.mean(0), flux.std(0))
    chosen = np.zeros(grid.n_pixels, dtype=bool)
    for start, stop in grid.chips:
        pixels = np.arange(start, stop)
        for part in np.array_split(pixels, max(round(len(pixels) / window), 1)):
            best = part[np.argsort(score[part])[:per_window]]
            chosen[best[score[best] < limit]] = True
        if chosen[start:stop].sum() < least:
            chosen[pixels[np.argsort(score[pixels])[:least]]] = True
    return chosen


# -- errors of the model, learnt by fitting ----------------------------------
@dataclass(frozen=True, eq=False)
class Residuals:
    """What fits leave over.

    Parameters
    ----------
    flux : array, shape (n_stars, n_pixels)
        Data − model; NaN at masked pixels.
    sigma : array, shape (n_stars, n_pixels)
        Error of the data.
    reduced_chi2_total : array, shape (n_stars,)
        With the model's scatter in the error budget.
    """

    flux: np.ndarray
    sigma: np.ndarray
    reduced_chi2_total: np.ndarray


def fit_residuals(model, spectra, *, space="observed", progress=True):
    """Fit stars one after the other and keep what is left over.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
    spectra : `~specutils.Spectrum`, a row per star
    space : {"observed", "emulator"}, optional
    progress : bool, optional

    Returns
    -------
    `Residuals`
        Of the stars that can be fitted.

    Raises
    ------
    SpectrumError
        If fewer than `LEAST_STARS` can.
    """
    residual, sigma, chi2, reasons = [], [], [], []
    for row in tqdm(range(spectra.flux.shape[0]), desc=f"errors, {space} space", disable=not progress):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FitWarning)
                result = model.fit(spectra[row], space=space, method="lm")
        except (CycleStarNetError, FloatingPointError, np.linalg.LinAlgError) as error:
            reasons.append(f"validation star {row}: {error}")
            log.warning("left out %s", reasons[-1])
            continue
        residual.append(result.residual.value)
        sigma.append(result.spectrum.uncertainty.array)
        chi2.append(result.reduced_chi2_total)
    if len(chi2) < LEAST_STARS:
        raise SpectrumError(
            f"the model's error is learnt from {LEAST_STARS} or more validation stars, but only {len(chi2)} of "
            f"{spectra.flux.shape[0]} could be fitted" + (f"; {reasons[0]}" if reasons else "")
        )
    return Residuals(np.array(residual), np.array(sigma), np.array(chi2))


def model_scatter(residual, sigma):
    """Per-pixel scatter that the quoted errors leave unexplained, outliers beyond 5 σ clipped.

    Parameters
    ----------
    residual : array, shape (n_stars, n_pixels)
        NaN where a pixel is masked.
    sigma : array, shape (n_stars, n_pixels)
        Error of the data.

    Returns
    -------
    array, shape (n_pixels,)
        1 σ, at least 0.002. A pixel that fewer than 3 stars see has the
        median of the others.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.assembly import model_scatter
    >>> rng = np.random.default_rng(0)
    >>> residual = rng.normal(0, np.hypot(0.02, 0.015), (100_000, 1))  # data error 0.02, model error 0.015
    >>> model_scatter(residual, np.full(residual.shape, 0.02)).round(3)
    array([0.015])
    """
    residual, sigma = np.asarray(residual, dtype=float), np.asarray(sigma, dtype=float)
    scatter = np.full(residual.shape[1], 0.01)
    for _ in range(20):  # fixed point of: mean of residual² = mean of sigma² + scatter²
        use = np.abs(residual) < 5 * np.hypot(sigma, scatter)  # False for NaN
        excess = np.where(use, residual**2 - sigma**2, 0.0).sum(0) / np.maximum(use.sum(0), 1)
        scatter = np.sqrt(np.maximum(excess, LEAST_SCATTER**2))
    seen = np.isfinite(residual).sum(0) >= LEAST_STARS
    return np.where(seen, scatter, np.median(scatter[seen]) if seen.any() else FIRST_SCATTER["observed"])


def correlation_inflation(residual, sigma, scatter, slopes, *, n_lags=10):
    """Factor on the scatter that makes up for the correlation of neighbouring pixels.

    A label sums residuals weighted by its derivative. If residuals correlate
    as ρ(k) and derivatives as R(k), the variance of the sum is Σ ρ(k) R(k)
    times that of independent pixels.

    Parameters
    ----------
    residual, sigma : array, shape (n_stars, n_pixels)
        As for `model_scatter`.
    scatter : array, shape (n_pixels,)
    slopes : array, shape (n_labels, n_pixels)
        Derivatives of the flux with respect to the labels.
    n_lags : int, optional
        Pixels over which errors are taken to correlate.

    Returns
    -------
    float
        Factor on the scatter's σ: 1 for uncorrelated errors, never less.
    """
    residual, sigma = np.asarray(residual, dtype=float), np.asarray(sigma, dtype=float)
    known = np.abs(residual) < 5 * np.hypot(sigma, scatter)  # False for NaN
    residual = np.where(known, residual, 0.0)
    size = np.sqrt((slopes**2).mean(1, keepdims=True))
    slopes = slopes[size[:, 0] > 0] / size[size[:, 0] > 0]  # a label that moves nothing has no say
    total = 1.0
    for lag in range(1, min(n_lags, residual.shape[1] - 1) + 1):
        pairs = known[:, lag:] & known[:, :-lag]
        if not pairs.any() or not len(slopes):
            break
        rho = (residual[:, lag:] * residual[:, :-lag]).sum() / (pairs * scatter[lag:] * scatter[:-lag]).sum()
        total += 2 * rho * float((slopes[:, lag:] * slopes[:, :-lag]).mean())
    return float(np.sqrt(max(total, 1.0)))


def learn_errors(model, spectra, *, fit=fit_residuals, progress=True):
    """Give a model the scatter, its inflation and the limits of poor fits that fits of stars bear out.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        With rough values of ``scatter``, which weight the fits.
    spectra : `~specutils.Spectrum`, a row per star
        Observed spectra that training has not seen.
    fit : callable, optional
        Does the work of `fit_residuals`, for instance in parallel.
    progress : bool, optional

    Returns
    -------
    `~cyclestarnet.CalibratedModel`
    """
    for space, domain in DOMAIN_OF_SPACE.items():
        left = fit(model, spectra, space=space, progress=progress)
        scatter = model_scatter(left.flux, left.sigma)
        slopes = model.derivative_spectra(model.labels.to_quantities(model.prior.mean), domain=domain)
        slopes = np.array([slopes[name].value for name in model.labels])
        inflation = correlation_inflation(left.flux, left.sigma, scatter, slopes)
        noise = replace(
            model.noise,
            scatter=dict(model.noise.scatter) | {space: scatter},
            scatter_inflation=dict(model.noise.scatter_inflation) | {space: inflation},
        )
        model = replace(model, noise=noise)
        log.info("%s: median scatter %.4f, inflation by correlation %.2f", space, np.median(scatter), inflation)
    # with the scatter in the budget: what is a poor fit?
    some = spectra if spectra.flux.shape[0] < 20 else spectra[::2]
    left = fit(model, some, space="observed", progress=progress)
    limits = {}
    for name, values in misfits(left, model.noise.scatter["observed"], model.grid.chips).items():
        limits[name] = 1.3 * float(np.quantile(values, 0.99))
        log.info("%s: median %.2f, limit of its flag %.2f", name, np.median(values), limits[name])
    return replace(model, limits=replace(model.limits, **limits))


def misfits(left, scatter, chips):
    """Measures of misfit that flags have limits on.

    Parameters
    ----------
    left : `Residuals`
    scatter : array, shape (n_pixels,)
        Of the model.
    chips : sequence of (int, int)
        Pixel ranges of the detectors.

    Returns
    -------
    dict of array, shape (n_stars,)
        By the names of `~cyclestarnet.pipeline.FlagLimits`.
    """
    known = np.isfinite(left.flux)
    residual = np.where(known, left.flux, 0.0)
    ivar = np.where(known, 1 / (np.where(known, left.sigma, 1.0) ** 2 + scatter**2), 0.0)
    return {
        "reduced_chi2_total": left.reduced_chi2_total,
        "local_misfit": np.array([local_misfit(*star)[0] for star in zip(residual, ivar, strict=True)]),
        "continuum_misfit": np.array([continuum_misfit(*star, chips) for star in zip(residual, ivar, strict=True)]),
    }
