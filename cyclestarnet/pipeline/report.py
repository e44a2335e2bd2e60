"""From an optimum to a result: errors, flags, and what they rest on."""

from __future__ import annotations

from typing import Any

import astropy.units as u
import numpy as np
import torch

from cyclestarnet.fitting.objective import Objective
from cyclestarnet.fitting.optimum import Optimum
from cyclestarnet.pipeline.diagnostics import continuum_misfit, local_misfit
from cyclestarnet.pipeline.information import Information, with_other_prior
from cyclestarnet.pipeline.parts import ModelParts
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.pipeline.stars import Stars
from cyclestarnet.results import FitFlag, FitResult, SplitLatentEstimate
from cyclestarnet.spectra import star_name, to_spectrum
from cyclestarnet.storage import origin

__all__ = ["hidden_covariance", "make_result"]

REST = 10.0  # km/s
HELD_BACK = 2.0  # σ: noise alone seldom carries a label that far beyond a bound
LEAST_SNR = 20.0  # training spectra have 30 or more
# Of the model's spectrum, by space.
DOMAIN = {"observed": "observed", "synthetic": "synthetic", "emulator": "synthetic"}


def make_result(
    parts: ModelParts, stars: Stars, row: int, objective: Objective, optimum: Optimum, setup: FitSetup
) -> FitResult:
    """Make the result of one star.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    stars : `~cyclestarnet.pipeline.stars.Stars`
        All stars that were fitted together.
    row : int
        Which of them.
    objective : `~cyclestarnet.fitting.objective.Objective`
        Of these stars.
    optimum : `~cyclestarnet.fitting.optimum.Optimum`
        Of these stars.
    setup : `~cyclestarnet.pipeline.FitSetup`
        Of the fits.

    Returns
    -------
    `~cyclestarnet.FitResult`

    Examples
    --------
    ::

        result = make_result(model, stars, 0, objective, levenberg_marquardt(objective, begin), setup)
    """
    options, layout, space = setup.options, setup.layout, setup.options.space
    flux, fit_ivar = objective.flux[row].cpu().numpy(), objective.ivar[row].cpu().numpy()
    values, good = optimum.inputs[row][layout.label_places], fit_ivar > 0
    predicted = torch.as_tensor(optimum.flux[row : row + 1], device=objective.flux.device)
    model_flux = (predicted + objective.absorbed(predicted, torch.tensor([row])))[0].cpu().numpy()
    residual = np.where(good, flux - model_flux, 0.0)
    # what residuals were freed of by terms of the continuum is as good as fitted
    star, n_parameters = stars.part([row]), len(setup.parameters) + float(objective.n_absorbed[row])
    data_ivar = 1 / stars.variance[row]
    dof = max(round(star.n_data(data_ivar[None])[0] - n_parameters), 1)
    if space == "synthetic" and not parts.translator.is_residual:
        total_ivar, dof_total = fit_ivar / optimum.error_scale[row] ** 2, float(dof)
    else:
        total_ivar = 1 / parts.noise.total_variance(stars.variance[row], space, inflated=False)
        dof_total = max(float(star.n_data(total_ivar[None])[0]) - n_parameters, 1.0)
    chi2_total = float(residual**2 @ total_ivar)
    covariance = _covariance(parts, stars, row, objective, optimum, setup)
    pull, precision = _own_prior(objective, optimum, row)
    parameters = setup.parameters
    information = Information.of(
        optimum.hessian[row], precision, parameters.matrix, parameters.upper - parameters.lower
    )
    n = len(parts.labels)
    as_trained = with_other_prior(
        values[:n],
        optimum.covariance[row][:n, :n],
        pull[:n],
        precision[:n, :n],
        parts.prior.mean,
        parts.prior.precision,
    )
    facts = _facts(parts, stars, row, as_trained, covariance, residual, total_ivar)
    flags = _flags(
        parts, space, facts, good,
        success=optimum.success[row],
        held_back=_held_back(objective, optimum, row, covariance, layout),
        reduced_chi2_total=chi2_total / dof_total,
        fits_velocity=setup.fits_velocity,
    )  # fmt: skip
    at_bound = optimum.at_bound[row][layout.label_places]
    meta = {
        "object": star_name(stars.spectra[row]),
        "model": parts.name,
        "method": options.method,
        "prior": setup.prior_name,
        "fixed": tuple(options.fixed or ()),
        "n_evaluations": int(optimum.n_evaluations[row]),
        "n_jacobians": int(optimum.n_jacobians[row]),
        "condition": float(optimum.condition[row]),
        "n_lost": stars.pixels[row].n_lost,
        "continuum": stars.pixels[row].normalisation,
        "error_scale": float(optimum.error_scale[row]),
        "at_bound": [name for name, hit in zip(setup.label_set, at_bound, strict=True) if hit],
        **facts,
    }
    meta = origin({"model": parts.name}) | meta
    return FitResult(
        label_set=setup.label_set,
        values=values,
        covariance=covariance,
        chi2=float(residual**2 @ data_ivar),
        chi2_total=chi2_total,
        dof=dof,
        dof_total=dof_total,
        success=bool(optimum.success[row]),
        message=optimum.message[row],
        flags=flags,
        spectrum=to_spectrum(flux, parts.grid, ivar=data_ivar, meta={"model": parts.name}),
        model_spectrum=to_spectrum(model_flux, parts.grid, meta={"model": parts.name, "domain": DOMAIN[space]}),
        space=space,
        options=options,
        split_latent=_split_latent(optimum, row, layout),
        resolution=information.resolution[layout.label_places],
        data_error=information.data_error[layout.label_places],
        meta=meta,
    )


def _split_latent(optimum, row, layout):
    """Coordinates of a fitted split latent, and their errors; None if it was not fitted."""
    places = layout.coordinate_places
    if not len(places):
        return None
    return SplitLatentEstimate(optimum.inputs[row][places], np.sqrt(np.diag(optimum.covariance[row]))[places])


# -- flags -------------------------------------------------------------------------
def _facts(parts, stars, row, as_trained, covariance, residual, total_ivar) -> dict[str, Any]:
    """What flags rest on; ``as_trained`` are the labels that the training prior would have left."""
    pixels = stars.pixels[row]
    misfit, worst_pixel = local_misfit(residual, total_ivar)
    outside = np.zeros(len(as_trained), dtype=bool)
    if parts.population.label_range is not None:
        lowest, highest = parts.population.label_range
        error = np.nan_to_num(np.sqrt(np.diag(covariance))[: len(as_trained)])
        outside = (as_trained + error < lowest) | (as_trained - error > highest)
    return {
        "snr": float(np.median((pixels.flux * np.sqrt(pixels.ivar))[pixels.ivar > 0])),
        "velocity": stars.velocity[row] * u.km / u.s,
        "latent_distance": float(parts.population.shared_latents.distance(stars.shared_latent[row][None])[0]),
        "prior_distance": float(np.sqrt(parts.prior.distance2(as_trained) / len(as_trained))),
        "outside_training": [name for name, beyond in zip(parts.labels, outside, strict=True) if beyond],
        "local_misfit": misfit,
        "worst_wavelength": parts.grid.wavelength[worst_pixel],
        "continuum_misfit": continuum_misfit(residual, total_ivar, parts.grid.chips),
    }


def _flags(parts, space, facts, good, *, success, held_back, reduced_chi2_total, fits_velocity) -> FitFlag:
    limits, observed = parts.limits, space == "observed"
    reasons = {
        FitFlag.NOT_CONVERGED: not success,
        FitFlag.AT_BOUND: held_back,
        FitFlag.OUTSIDE_TRAINING: facts["prior_distance"] > limits.prior_distance or bool(facts["outside_training"]),
        FitFlag.POOR_FIT: observed and reduced_chi2_total > limits.reduced_chi2_total,
        FitFlag.UNFAMILIAR: facts["latent_distance"] > parts.population.shared_latents.threshold,
        FitFlag.FEW_PIXELS: good.sum() < 0.5 * parts.grid.n_pixels,
        FitFlag.LOW_SNR: facts["snr"] < LEAST_SNR,
        FitFlag.VELOCITY: abs(facts["velocity"].value) > REST and not fits_velocity,
        FitFlag.LOCAL_MISFIT: observed and facts["local_misfit"] > limits.local_misfit,
        FitFlag.CONTINUUM: observed and facts["continuum_misfit"] > limits.continuum_misfit,
    }
    flags = FitFlag(0)
    for flag, holds in reasons.items():
        flags |= flag if holds else FitFlag(0)
    return flags


def _held_back(objective, optimum, row, covariance, layout) -> bool:
    """Whether a label would go far beyond its bound."""
    beyond, unbounded_error = _beyond_bounds(objective, optimum, row)[:, layout.label_places]
    far = beyond > HELD_BACK * np.maximum(np.sqrt(np.diag(covariance)), unbounded_error)
    return bool((optimum.at_bound[row][layout.label_places] & far).any())


# -- errors ------------------------------------------------------------------------
def _covariance(parts, stars, row, objective, optimum, setup):
    """Covariance of a star's labels: Laplace, and what residuals do not show."""
    labels, space = setup.layout.label_places, setup.options.space
    covariance = optimum.covariance[row][np.ix_(labels, labels)]  # marginal over the coordinates
    if space == "synthetic" and not parts.translator.is_residual:
        covariance = _propagated(parts, stars, row, objective, optimum)
    if space != "emulator" and parts.noise.label_error is not None:
        covariance += hidden_covariance(parts, row, objective, optimum, setup, covariance)
        # what nothing holds back is as uncertain as its range
        shrink = np.minimum(1.0, setup.label_set.scale / np.sqrt(12 * np.diag(covariance).clip(1e-300)))
        covariance *= np.outer(shrink, shrink)
    return covariance


def hidden_covariance(
    parts: ModelParts, row: int, objective: Objective, optimum: Optimum, setup: FitSetup, covariance: np.ndarray
) -> np.ndarray:
    """Covariance of the errors of labels that residuals do not show, at the optimum of a star.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model, whose ``noise.label_error`` it is.
    row : int
        Which of the stars.
    objective : `~cyclestarnet.fitting.objective.Objective`
        Of the stars.
    optimum : `~cyclestarnet.fitting.optimum.Optimum`
        Likewise.
    setup : `~cyclestarnet.pipeline.FitSetup`
        Of the fits.
    covariance : array, shape (n_labels, n_labels)
        Of the labels, motion included, without these errors.

    Returns
    -------
    array, shape (n_labels, n_labels)
        To be added. 0 of fixed labels, of motion, where no translation takes part, and of models without such errors.

    Examples
    --------
    ::

        covariance = covariance + hidden_covariance(model, 0, objective, optimum, setup, covariance)
    """
    n, matrix, out = len(parts.labels), setup.parameters.matrix, np.zeros_like(covariance)
    if setup.options.space == "emulator" or parts.noise.label_error is None:
        return out
    onto = (matrix @ np.linalg.pinv(matrix))[:n, :n]  # tied labels share their error; fixed ones have none
    # It was learnt with the training prior. A hidden error e moves the optimum of another prior, whose
    # precision differs by D, by (1 - C D) e: a strong prior holds it back, and none lets it grow.
    pull = onto - covariance[:n, :n] @ _extra_precision(parts, row, objective, optimum) @ onto
    out[:n, :n] = pull @ parts.noise.hidden_covariance(optimum.inputs[row][:n]) @ pull.T
    return out


def _extra_precision(parts, row, objective, optimum):
    """Curvature of the prior of a fit at the optimum, over the model's labels, minus that of the training prior."""
    n = len(parts.labels)
    return _own_prior(objective, optimum, row)[1][:n, :n] - parts.prior.precision


def _own_prior(objective, optimum, row):
    """Gradient of the log density of the prior of a fit at the optimum, and its precision; zeros if there is none."""
    n_inputs = optimum.inputs.shape[1]
    if objective.prior is None:
        return np.zeros(n_inputs), np.zeros((n_inputs, n_inputs))
    at = torch.as_tensor(optimum.inputs[row][None], dtype=torch.float64)
    return tuple(part[0].numpy() for part in objective.prior.derivatives(at)[1:3])


def _propagated(parts, stars, row, objective, optimum, n_draws=64):
    """Covariance of Eq. 10: noise of the data, sent through the translation and the linearised fit.

    The residuals of a translated spectrum say little: the translation
    removes most of the noise, and correlates the rest.
    """
    variance = parts.noise.total_variance(stars.variance[row], "observed", inflated=False)
    sigma = np.where(variance < np.inf, np.sqrt(variance), 0.0)  # what does not count has no noise: it is filled
    noise = np.random.default_rng(0).standard_normal((n_draws, parts.grid.n_pixels)) * sigma
    translated = parts.translator.obs_to_synth(stars.filled[row] + noise)
    _, slopes = objective.predictor.jacobian(torch.as_tensor(optimum.inputs[row][None], device=objective.flux.device))
    weight = objective.ivar[row].cpu().numpy() / optimum.error_scale[row] ** 2
    gain = optimum.covariance[row] @ (slopes[0].double().cpu().numpy() * weight)  # d labels / d translated flux
    return np.cov(gain @ translated.T)


def _beyond_bounds(objective, optimum, row):
    """How far labels would go without bounds, by a Newton step from the optimum, and their errors without bounds.

    0 for all if none is at a bound.
    """
    matrix, device, hessian = objective.parameters.matrix, objective.predictor.device, optimum.hessian[row]
    if not (optimum.at_bound[row].any() and np.isfinite(hessian).all()):
        return np.zeros((2, len(matrix)))
    values = torch.as_tensor(objective.parameters.values(optimum.inputs[row])[None], device=device)
    _, gradient = objective.loss_and_gradient(values, torch.tensor([row], device=device))
    size = np.sqrt(np.diag(hessian))
    size = np.where(size > 0, size, 1.0)
    size = np.outer(size, size)
    onto = matrix @ (np.linalg.pinv(hessian / size, hermitian=True) / size)
    return np.stack([np.abs(onto @ gradient[0].cpu().numpy()), np.sqrt(np.einsum("lp,lp->l", onto, matrix).clip(0))])
