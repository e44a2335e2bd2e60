"""Zero points of labels, told by the population: no known label is needed.

What ties an unpaired training to labels is that the observed stars have the distribution of the synthetic labels,
the prior. The networks follow it, but not all the way: the labels that fits find of the training stars are off from it
on average. `learn_zero_points` measures by how much, and gives the model that offset to take off.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np

from cyclestarnet.exceptions import SpectrumError
from cyclestarnet.fitting.priors import GaussianPrior
from cyclestarnet.model import CalibratedModel
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.evaluation import fitted_labels, without_label_error

__all__ = ["learn_zero_points", "population_offset"]

log = logging.getLogger(__name__)

LEAST_STARS = 8  # fewer do not tell a mean
LEAST_TOLD = 0.01  # of what the prior knows of a label: if spectra tell less, its offset would be a guess
FARTHEST = 4.0  # σ of the prior, where labels are cut: strange stars, and fits gone wrong, are not the population


def learn_zero_points(model: CalibratedModel, spectra: Spectrum, *, progress: bool = True) -> CalibratedModel:
    """Give a model the zero points with which its labels of a population have the mean of the prior.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model. Zero points that it has are the beginning.
    spectra : `~specutils.Spectrum`, a row per star
        Observed spectra of stars that have the distribution of the model's label prior: those of the training, as
        they are. A selection, by χ² for instance, would shift the mean labels. By chance a mean of n stars is off by
        1/√n of the population's width.
    progress : bool, optional
        Show a bar. Default: True.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`
        With ``zero_points``. Errors that it has learnt stay: learn those of labels after this.

    Raises
    ------
    SpectrumError
        If fewer than 8 stars can be fitted.

    Examples
    --------
    ::

        model = learn_zero_points(model, spectra)
        dict(zip(model.labels, model.zero_points))
    """
    fits = fitted_labels(without_label_error(model), spectra, progress=progress, about="stars of the population")
    offset = population_offset(fits.values, fits.covariance, model.prior)
    log.info("zero points: labels were off by %s", dict(zip(model.labels, offset.round(3).tolist(), strict=True)))
    return with_zero_points(model, offset)


def with_zero_points(model: CalibratedModel, offset: np.ndarray | None) -> CalibratedModel:
    """Take an offset off the labels that a model finds of observed stars.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model. Zero points that it has stay, and the offset is added to them.
    offset : array, shape (n_labels,), or None
        Found − true, in the units of the labels. None: nothing.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`
        With ``zero_points``, and shortcuts to match.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import CalibratedModel
    >>> from cyclestarnet.training.zero_points import with_zero_points
    >>> model = CalibratedModel.from_pretrained()
    >>> hotter = with_zero_points(model, np.where(np.array(model.labels.names) == "teff", -30.0, 0.0))
    >>> guess, before = (m.shortcuts.guess[0, m.labels.index("teff")] for m in (hotter, model))
    >>> float(guess - before)
    30.0
    """
    if offset is None:
        return model
    before = 0.0 if model.zero_points is None else model.zero_points
    shortcuts = None if model.shortcuts is None else model.shortcuts.shifted(-offset)
    return replace(model, zero_points=before + offset, shortcuts=shortcuts)


def population_offset(labels: np.ndarray, covariance: np.ndarray, prior: GaussianPrior) -> np.ndarray:
    """By how much labels are off on average, told by the prior that the stars come from.

    A fit pulls labels to the mean μ of the prior: of an offset δ it leaves (1 − C Σ⁻¹) δ, with the covariance C of
    the fit and Σ of the prior. So δ solves mean(1 − C Σ⁻¹) δ = mean(labels − μ).

    Parameters
    ----------
    labels : array, shape (n_stars, n_labels)
        That fits with this prior found, of stars that are drawn from it. What lies beyond 4 σ of it counts as 4 σ.
    covariance : array, shape (n_stars, n_labels, n_labels)
        Of the fits, with the prior and without hidden errors.
    prior : `~cyclestarnet.GaussianPrior`
        Of the fits.

    Returns
    -------
    array, shape (n_labels,)
        Found − true, as it were without a prior. Directions of which spectra tell less than a hundredth of what the
        prior knows get no offset.

    Raises
    ------
    SpectrumError
        If there are fewer than 8 stars.

    Examples
    --------
    Labels with errors as large as the prior is wide, all measured too high by 0.4, of which the prior leaves half:

    >>> import numpy as np
    >>> from cyclestarnet import GaussianPrior
    >>> from cyclestarnet.training import population_offset
    >>> rng, prior = np.random.default_rng(0), GaussianPrior([0.0], [[1.0]])
    >>> measured = rng.normal(size=(20_000, 1)) + rng.normal(size=(20_000, 1)) + 0.4
    >>> population_offset(measured / 2, np.full((20_000, 1, 1), 0.5), prior).round(1)
    array([0.4])
    """
    if len(labels) < LEAST_STARS:
        raise SpectrumError(f"zero points are learnt from {LEAST_STARS} or more stars, but there are {len(labels)}")
    scale = np.sqrt(np.diag(prior.covariance))
    mean = ((labels - prior.mean) / scale).clip(-FARTHEST, FARTHEST).mean(axis=0)
    left = np.eye(len(scale)) - covariance.mean(axis=0) @ prior.precision * scale / scale[:, None]
    return np.linalg.lstsq(left, mean, rcond=LEAST_TOLD)[0] * scale
