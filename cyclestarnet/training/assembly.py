"""From trained parts to a `~cyclestarnet.CalibratedModel`: what a model must know about itself before it may fit.

Trained networks predict spectra. A fit needs more: a prior on the labels, the
model's own error in each pixel and how far neighbouring errors are alike, and
the limits beyond which a star is flagged. `assemble_model` learns all of it,
the errors by fitting validation spectra that training has not seen.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from astropy.nddata import StdDevUncertainty
from numpy.typing import ArrayLike

from cyclestarnet.blanks import bools_of, floats_of, mask_behind
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import CycleStarNetError, FitWarning, SpectrumError
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.model import CalibratedModel
from cyclestarnet.networks.clouds import LatentCloud, SplitLatentCloud
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.predictor import EmulatorPredictor
from cyclestarnet.networks.translator import Translator
from cyclestarnet.noise import NoiseModel
from cyclestarnet.pipeline.diagnostics import continuum_misfit, local_misfit
from cyclestarnet.pipeline.parts import FlagLimits, Population
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import Spectrum, row_of
from cyclestarnet.training.shortcuts import learn_shortcuts

__all__ = [
    "Residuals",
    "assemble_model",
    "correlation_inflation",
    "filled_flux",
    "fit_residuals",
    "label_prior",
    "label_range",
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
    name: str,
    *,
    labels: LabelSet,
    grid: WavelengthGrid,
    emulator: Emulator,
    translator: Translator,
    label_pool: ArrayLike,
    observed: Spectrum,
    validation: Spectrum,
    noise: NoiseModel,
    recipe: ContinuumRecipe | None = None,
    prior: GaussianPrior | None = None,
    provenance: Mapping[str, object] | None = None,
    fit: Callable[..., Residuals] | None = None,
    progress: bool = True,
) -> CalibratedModel:
    """Join trained parts to a model, and learn the errors and limits that fits with it need.

    Parameters
    ----------
    name : str
        Name of the model.
    labels : `~cyclestarnet.LabelSet`
        Names and valid range of the labels, in the order of the emulator.
    grid : `~cyclestarnet.WavelengthGrid`
        Pixels of all spectra.
    emulator : `~cyclestarnet.networks.Emulator`
        Labels to synthetic flux.
    translator : `~cyclestarnet.networks.Translator`
        The trained networks, with the scaling of the flux that they were trained with.
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
        That of the training (``settings.noise``): which pixels count, and with what error. A
        ``label_error`` that it has stays, and its trend.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        The one that normalised the spectra, and will normalise all that the model fits. Default: that is not known,
        and dimensionless spectra are fitted as they are; for those with a unit, one through
        `quiet_pixels` of synthetic spectra stands in.
    prior : `~cyclestarnet.GaussianPrior`, optional
        The label prior, if it is known. Default: `label_prior` of the pool.
    provenance : dict, optional
        What goes on the model card. Default: nothing.
    fit : callable, optional
        Does the work of `fit_residuals`, the default, for instance in parallel.
    progress : bool, optional
        Show a bar over the fits, which take seconds per star for networks of the paper's size.
        Default: True.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`

    Raises
    ------
    GridError, LabelError
        If the parts do not fit each other, or the pool leaves the range of the labels.
    SpectrumError
        If hardly any validation star can be fitted, or ``observed`` has no uncertainty.

    Examples
    --------
    ::

        model = assemble_model(
            "my-model",
            labels=labels,
            grid=grid,
            emulator=emulator,
            translator=Translator(trainer.averaged_network(), settings.flux_mean, settings.flux_std),
            label_pool=pool,
            observed=observed,
            validation=validation,
            noise=settings.noise,
        )
        model.save("my-model.safetensors")
    """
    pool = floats_of(label_pool)
    labels.check_range(pool)
    prior = label_prior(pool, labels) if prior is None else prior
    normalises = recipe is not None
    if recipe is None:
        rows = np.linspace(0, len(pool) - 1, min(len(pool), 500)).astype(int)
        recipe = ContinuumRecipe(grid, quiet_pixels(EmulatorPredictor(emulator).flux(pool[rows]), grid))
    shared_latents, split_latents = translator.encode_obs(filled_flux(observed, noise))
    typical = typical_latent(split_latents)
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
            shared_latents=LatentCloud.from_latents(
                shared_latents, n_components=max(1, min(40, len(shared_latents) // 4))
            ),
            split_latents=None if split_latents is None else SplitLatentCloud.from_latents(split_latents),
            typical_split_latent=typical,
            label_range=label_range(pool, labels),
        ),
        limits=FlagLimits(prior_distance=1.1 * float(np.quantile(np.sqrt(prior.distance2(pool) / len(labels)), 0.999))),
        shortcuts=learn_shortcuts(emulator, translator, prior, labels.lower, labels.upper, typical),
        provenance=dict(provenance or {}),
        normalises=normalises,
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
        given = spectra.uncertainty
        array, masked = floats_of(given.array), mask_behind(given.array)
        plain = type(given)(array if masked is None else np.where(masked, np.nan, array), unit=given.unit)
        sigma = floats_of(plain.represent_as(StdDevUncertainty).array)
    flux = floats_of(spectra.flux.value)
    mask = None if spectra.mask is None else np.broadcast_to(bools_of(spectra.mask), flux.shape)
    return noise.filled_flux(flux, noise.used_pixels(flux, sigma, mask))


def label_range(pool: np.ndarray, labels: LabelSet) -> np.ndarray:
    """Lowest and highest values of the labels of a pool, but for single stars, and some margin.

    Parameters
    ----------
    pool : array, shape (n_pool, n_labels)
        Labels of the synthetic training spectra.
    labels : `~cyclestarnet.LabelSet`
        Names and valid range.

    Returns
    -------
    array, shape (2, n_labels)
        The range of all but 1 in 1,000 stars at either end, widened by 5 % of itself and by 2 % of the valid range.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import LabelSet
    >>> from cyclestarnet.training.assembly import label_range
    >>> label_range(np.linspace(4000, 5000, 1001)[:, None], LabelSet(["teff"], [3500], [6000])).round()
    array([[3901.],
           [5099.]])
    """
    low, high = np.quantile(pool, [0.001, 0.999], axis=0)
    margin = 0.05 * (high - low) + 0.02 * (labels.upper - labels.lower)
    return np.stack([low - margin, high + margin])


def label_prior(pool: np.ndarray, labels: LabelSet) -> GaussianPrior:
    """Gaussian with the moments of a pool of labels.

    Parameters
    ----------
    pool : array, shape (n_pool, n_labels)
        Labels in the order and units of ``labels``; finite.
    labels : `~cyclestarnet.LabelSet`
        Their names and ranges.

    Returns
    -------
    `~cyclestarnet.GaussianPrior`
        Where labels of the pool depend on each other or do not vary, every
        label is given an additional 1 % of its range, so that a fit may leave
        the plane in which the pool lies.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import LabelSet
    >>> from cyclestarnet.training.assembly import label_prior
    >>> pool = np.array([[4000.0, 1.0], [5000.0, 2.0], [4500.0, 3.0]])
    >>> label_prior(pool, LabelSet(["teff", "logg"], [3500, 0], [6000, 4])).mean
    array([4.5e+03, 2.0e+00])
    """
    covariance = np.atleast_2d(np.cov(pool.T)) if len(pool) > 1 else np.zeros((len(labels), len(labels)))
    size = np.sqrt(np.diag(covariance))
    if not size.all() or np.linalg.eigvalsh(covariance / np.outer(size, size)).min() < 1e-6:
        log.info("labels of the pool depend on each other: the prior is widened by 1 % of each label's range")
        covariance = covariance + np.diag((0.01 * labels.scale) ** 2)
    return GaussianPrior(pool.mean(0), covariance)


def typical_latent(latents: np.ndarray | None) -> np.ndarray | None:
    """The latent that is nearest to the mean of all.

    The mean itself may be a latent that no spectrum has.

    Parameters
    ----------
    latents : array, shape (n, filters, positions), or None
        Split latents of observed spectra; None for networks without them.

    Returns
    -------
    array, shape (filters, positions), or None
        One of them; None of None.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.assembly import typical_latent
    >>> typical_latent(np.array([0.0, 1.0, 5.0]).reshape(3, 1, 1))
    array([[1.]])
    """
    if latents is None:
        return None
    return latents[np.argmin(((latents - latents.mean(0)) ** 2).sum((1, 2)))]


def quiet_pixels(
    flux: np.ndarray,
    grid: WavelengthGrid,
    *,
    window: int = 100,
    per_window: int = 7,
    limit: float = 0.03,
    least: int = 8,
) -> np.ndarray:
    """Choose continuum pixels: near 1 and deaf to the labels, spread evenly over each chip.

    The flux of a grid is a function of its labels alone, so its scatter over
    the grid measures the answer to all labels at once.

    Parameters
    ----------
    flux : array, shape (n, n_pixels)
        Normalised synthetic spectra of many labels.
    grid : `~cyclestarnet.WavelengthGrid`
        Their pixels, and the chips that these are on.
    window, per_window : int, optional
        In each ``window`` of pixels the quietest ``per_window`` are taken, ...
        Default: 7 of 100.
    limit : float, optional
        ... if depth and scatter together stay below this. Default: 0.03.
    least : int, optional
        Pixels that a chip gets in any case. Default: 8.

    Returns
    -------
    array of bool, shape (n_pixels,)
        True for continuum pixels.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from cyclestarnet import WavelengthGrid
    >>> from cyclestarnet.training.assembly import quiet_pixels
    >>> grid = WavelengthGrid(np.linspace(500, 510, 20) * u.nm)
    >>> depth = np.array([[0.1], [0.3]])
    >>> flux = 1 - depth * (np.arange(20) % 2)  # every second pixel lies in a line
    >>> np.flatnonzero(quiet_pixels(flux, grid, window=10, per_window=2, least=2))
    array([ 0,  2, 10, 12])
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
        Data − model, in units of the continuum; NaN at masked pixels.
    sigma : array, shape (n_stars, n_pixels)
        Error of the data, 1 σ; NaN at masked pixels.
    reduced_chi2_total : array, shape (n_stars,)
        Reduced χ² of the fits with the model's scatter in the error budget.

    Examples
    --------
    ::

        left = fit_residuals(model, validation)
        scatter = model_scatter(left.flux, left.sigma)
    """

    flux: np.ndarray
    sigma: np.ndarray
    reduced_chi2_total: np.ndarray


def fit_residuals(
    model: CalibratedModel, spectra: Spectrum, *, space: str = "observed", progress: bool = True
) -> Residuals:
    """Fit stars one after the other and keep what is left over.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        Its scatter weights the fits.
    spectra : `~specutils.Spectrum`, a row per star
        Observed spectra, with an uncertainty.
    space : {"observed", "emulator"}, optional
        Where the model is compared with the data: after the translation (default), or before it.
    progress : bool, optional
        Show a bar. Default: True.

    Returns
    -------
    `Residuals`
        Of the stars that can be fitted; the others are logged.

    Raises
    ------
    SpectrumError
        If fewer than 3 can.

    Examples
    --------
    ::

        left = fit_residuals(model, validation, space="emulator")
        print(np.nanstd(left.flux))
    """
    residual: list[np.ndarray] = []
    sigma: list[np.ndarray] = []
    chi2: list[float] = []
    reasons: list[str] = []
    for row in tqdm(range(spectra.flux.shape[0]), desc=f"errors, {space} space", disable=not progress):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FitWarning)
                result = model.fit(row_of(spectra, row), space=space)
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


def model_scatter(residual: ArrayLike, sigma: ArrayLike) -> np.ndarray:
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


def correlation_inflation(
    residual: ArrayLike, sigma: ArrayLike, scatter: np.ndarray, slopes: np.ndarray, *, n_lags: int = 10
) -> float:
    """Factor on the scatter that makes up for the correlation of neighbouring pixels.

    A label sums residuals weighted by its derivative. If residuals correlate
    as ρ(k) and derivatives as R(k), the variance of the sum is Σ ρ(k) R(k)
    times that of independent pixels.

    Parameters
    ----------
    residual, sigma : array, shape (n_stars, n_pixels)
        As for `model_scatter`.
    scatter : array, shape (n_pixels,)
        Of `model_scatter`, 1 σ.
    slopes : array, shape (n_labels, n_pixels)
        Derivatives of the flux with respect to the labels, in any units.
    n_lags : int, optional
        Pixels over which errors are taken to correlate. Default: 10.

    Returns
    -------
    float
        Factor on the scatter's σ: 1 for uncorrelated errors, never less.

    Examples
    --------
    Errors that are the same in pairs of neighbours have twice the variance in a label that moves all pixels alike:

    >>> import numpy as np
    >>> from cyclestarnet.training.assembly import correlation_inflation
    >>> residual = np.random.default_rng(0).normal(0, 0.01, (2000, 50)).repeat(2, axis=1)
    >>> sigma, scatter = np.full(residual.shape, 1e-4), np.full(100, 0.01)
    >>> round(correlation_inflation(residual, sigma, scatter, np.ones((1, 100)), n_lags=1), 1)
    1.4
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


def learn_errors(
    model: CalibratedModel,
    spectra: Spectrum,
    *,
    fit: Callable[..., Residuals] = fit_residuals,
    progress: bool = True,
) -> CalibratedModel:
    """Give a model the scatter, its inflation and the limits of poor fits that fits of stars bear out.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        With rough values of ``scatter``, which weight the fits.
    spectra : `~specutils.Spectrum`, a row per star
        Observed spectra that training has not seen.
    fit : callable, optional
        Does the work of `fit_residuals`, the default, for instance in parallel.
    progress : bool, optional
        Show bars over the fits. Default: True.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`
        A copy with ``noise.scatter``, ``noise.scatter_inflation`` and ``limits``.

    Raises
    ------
    SpectrumError
        If hardly any star can be fitted.

    Examples
    --------
    ::

        model = learn_errors(model, validation)
        print(np.median(model.noise.scatter["observed"]))
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


def misfits(left: Residuals, scatter: np.ndarray, chips: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Measures of misfit that flags have limits on.

    Parameters
    ----------
    left : `Residuals`
        Of fits of stars.
    scatter : array, shape (n_pixels,)
        Of the model, 1 σ.
    chips : sequence of (int, int)
        Pixel ranges of the detectors.

    Returns
    -------
    dict of array, shape (n_stars,)
        By the names of `~cyclestarnet.pipeline.FlagLimits`.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.assembly import Residuals, misfits
    >>> flux = np.random.default_rng(0).normal(0, 0.01, (3, 600))
    >>> left = Residuals(flux, np.full(flux.shape, 0.01), np.ones(3))
    >>> sorted(misfits(left, np.full(600, 0.002), [(0, 600)]))
    ['continuum_misfit', 'local_misfit', 'reduced_chi2_total']
    """
    known = np.isfinite(left.flux)
    residual = np.where(known, left.flux, 0.0)
    ivar = np.where(known, 1 / (np.where(known, left.sigma, 1.0) ** 2 + scatter**2), 0.0)
    return {
        "reduced_chi2_total": left.reduced_chi2_total,
        "local_misfit": np.array([local_misfit(*star)[0] for star in zip(residual, ivar, strict=True)]),
        "continuum_misfit": np.array([continuum_misfit(*star, chips) for star in zip(residual, ivar, strict=True)]),
    }
