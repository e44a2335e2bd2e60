"""From an optimum to a result: errors, flags, and what they rest on."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import torch

from cyclestarnet.fitting.optimum import Optimum
from cyclestarnet.pipeline.diagnostics import LIMITS, continuum_misfit, local_misfit
from cyclestarnet.results import FitFlag, FitResult
from cyclestarnet.spectra import to_spectrum

REST = 10.0  # km/s
HELD_BACK = 2.0  # σ: noise alone seldom carries a label that far beyond a bound


def _covariance(model, stars, row, objective, optimum, setup):
    """Covariance of a star's labels: Laplace, and what residuals do not show."""
    labels = setup.layout.labels
    covariance = optimum.covariance[row][np.ix_(labels, labels)]  # marginal over the coordinates
    if setup.space == "synthetic":
        return _propagated(model, stars, row, objective, optimum)
    if setup.space == "observed" and model.label_error is not None:
        n, matrix = len(model.labels), setup.parameters.matrix
        onto = (matrix @ np.linalg.pinv(matrix))[:n, :n]  # tied labels share their error; fixed ones have none
        # It was learnt with the training prior. A hidden error e moves the optimum of another prior, whose
        # precision differs by D, by (1 - C D) e: a strong prior holds it back, and none lets it grow.
        pull = onto - covariance[:n, :n] @ _extra_precision(model, row, objective, optimum) @ onto
        covariance[:n, :n] += pull @ model.label_error @ pull.T
        # what nothing holds back is as uncertain as its range
        shrink = np.minimum(1.0, setup.labels.scale / np.sqrt(12 * np.diag(covariance).clip(1e-300)))
        covariance *= np.outer(shrink, shrink)
    return covariance


def _extra_precision(model, row, objective, optimum):
    """Curvature of the prior of a fit at the optimum, over the model's labels, minus that of the training prior."""
    n, extra = len(model.labels), -model.prior.precision
    if objective.prior is not None:
        at = torch.as_tensor(optimum.labels[row][None], dtype=torch.float64)
        extra = extra + objective.prior.derivatives(at)[2][0].numpy()[:n, :n]
    return extra


def _propagated(model, stars, row, objective, optimum, n_draws=64):
    """Covariance of Eq. 10: noise of the data, sent through the translation and the linearised fit.

    The residuals of a translated spectrum say little: the translation
    removes most of the noise, and correlates the rest.
    """
    ivar = model._total_ivar(stars.ivar[row], "observed")
    seen = model._encoded(stars.pixels[row])  # others hold the continuum, without noise
    sigma = np.where(seen, 1 / np.sqrt(np.where(seen, ivar, 1.0)), 0.0)
    noise = np.random.default_rng(0).standard_normal((n_draws, model.grid.n_pixels)) * sigma
    translated = model.translator.obs_to_synth(stars.filled[row] + noise)
    _, slopes = objective.predictor.jacobian(optimum.labels[row])
    weight = objective.ivar[row].cpu().numpy() / optimum.error_scale[row] ** 2
    gain = optimum.covariance[row] @ (slopes * weight)  # d labels / d translated flux
    return np.cov(gain @ translated.T)


def _beyond_bounds(objective, optimum, row):
    """How far labels would go without bounds, by a Newton step from the optimum, and their errors without bounds.

    0 for all if none is at a bound.
    """
    matrix, device, hessian = objective.parameters.matrix, objective.predictor.device, optimum.hessian[row]
    if not (optimum.at_bound[row].any() and np.isfinite(hessian).all()):
        return np.zeros((2, len(matrix)))
    values = torch.as_tensor(objective.parameters.values(optimum.labels[row])[None], device=device)
    _, gradient = objective.loss_and_gradient(values, torch.tensor([row], device=device))
    size = np.sqrt(np.diag(hessian))
    size = np.where(size > 0, size, 1.0)
    size = np.outer(size, size)
    onto = matrix @ (np.linalg.pinv(hessian / size, hermitian=True) / size)
    return np.stack([np.abs(onto @ gradient[0].cpu().numpy()), np.sqrt(np.einsum("lp,lp->l", onto, matrix).clip(0))])


def _result(model, stars, row, objective, optimum: Optimum, setup):
    space, data_ivar, pixels, spectrum = setup.space, stars.ivar[row], stars.pixels[row], stars.spectra[row]
    flux, fit_ivar = objective.flux[row].cpu().numpy(), objective.ivar[row].cpu().numpy()
    layout = setup.layout
    values, at_bound = optimum.labels[row][layout.labels], optimum.at_bound[row][layout.labels]
    good, n = fit_ivar > 0, len(model.labels)
    residual = np.where(good, flux - optimum.flux[row], 0.0)
    dof = max(int(good.sum()) - len(setup.parameters), 1)
    total_ivar = (
        fit_ivar / optimum.error_scale[row] ** 2 if space == "synthetic" else model._total_ivar(data_ivar, space)
    )
    chi2, chi2_total = float(residual**2 @ data_ivar), float(residual**2 @ total_ivar)
    snr = float(np.median((pixels.flux * np.sqrt(pixels.ivar))[pixels.ivar > 0]))
    distance = float(model.cloud.distance(stars.latent[row][None])[0])
    prior_distance = float(np.sqrt(model.prior.distance2(values[:n]) / n))
    velocity = stars.velocity[row]
    covariance = _covariance(model, stars, row, objective, optimum, setup)
    beyond, unbounded_error = _beyond_bounds(objective, optimum, row)[:, layout.labels]
    held_back = at_bound & (beyond > HELD_BACK * np.maximum(np.sqrt(np.diag(covariance)), unbounded_error))
    misfit, worst_pixel = local_misfit(residual, total_ivar)
    continuum = continuum_misfit(residual, total_ivar, model.grid.chips)
    limits = LIMITS | dict(model.limits)
    reasons = {
        FitFlag.NOT_CONVERGED: not optimum.success[row],
        FitFlag.AT_BOUND: held_back.any(),
        FitFlag.OUTSIDE_TRAINING: prior_distance > limits["prior_distance"],
        FitFlag.POOR_FIT: space == "observed" and chi2_total / dof > limits["reduced_chi2_total"],
        FitFlag.UNFAMILIAR: distance > model.cloud.threshold,
        FitFlag.FEW_PIXELS: good.sum() < 0.5 * model.grid.n_pixels,
        FitFlag.LOW_SNR: snr < 20,
        FitFlag.VELOCITY: abs(velocity) > REST and "velocity" not in setup.motion,
        FitFlag.LOCAL_MISFIT: space == "observed" and misfit > limits["local_misfit"],
        FitFlag.CONTINUUM: space == "observed" and continuum > limits["continuum_misfit"],
    }
    flags = FitFlag(0)
    for flag, holds in reasons.items():
        flags |= flag if holds else FitFlag(0)
    source = spectrum.meta or {}
    meta = {
        "object": str(source.get("object", source.get("apogee_id", ""))),
        "model": model.name,
        "method": setup.method,
        "prior": setup.prior_name,
        "fixed": tuple(setup.options["fixed"] or ()),
        "n_evaluations": int(optimum.n_evaluations[row]),
        "n_jacobians": int(optimum.n_jacobians[row]),
        "condition": float(optimum.condition[row]),
        "snr": snr,
        "normalised_here": pixels.continuum is not None,
        "error_scale": float(optimum.error_scale[row]),
        "options": setup.options,
        "velocity": velocity * u.km / u.s,
        "latent_distance": distance,
        "prior_distance": prior_distance,
        "at_bound": [name for name, hit in zip(setup.labels, at_bound, strict=True) if hit],
        "local_misfit": misfit,
        "worst_wavelength": model.grid.wavelength[worst_pixel],
        "continuum_misfit": continuum,
    }
    if len(layout.coordinates):
        errors = np.sqrt(np.diag(optimum.covariance[row]))
        values_and_errors = {"values": optimum.labels[row], "errors": errors}
        meta["split_latent"] = {k: a[layout.coordinates] for k, a in values_and_errors.items()}
    return FitResult(
        label_set=setup.labels,
        values=values,
        covariance=covariance,
        chi2=chi2,
        chi2_total=chi2_total,
        dof=dof,
        success=bool(optimum.success[row]),
        message=optimum.message[row],
        flags=flags,
        spectrum=to_spectrum(flux, model.grid, ivar=data_ivar, meta={"model": model.name}),
        model_spectrum=to_spectrum(optimum.flux[row], model.grid, meta={"model": model.name, "domain": space}),
        space=space,
        meta=meta,
    )
