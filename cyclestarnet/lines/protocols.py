"""What the search for lines asks of a model, so that it need not know the class of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from astropy.table import QTable

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.derivatives import DerivativeSpectra
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.spectra import Spectrum

__all__ = ["Gaussian", "Model"]


class Gaussian(Protocol):
    """A Gaussian distribution of labels, as `~cyclestarnet.GaussianPrior` is.

    Attributes
    ----------
    mean : array, shape (n_labels,)
        In the units and order of the labels.
    covariance, precision : array, shape (n_labels, n_labels)
        Each is the inverse of the other.

    Examples
    --------
    A function that only needs the numbers says so in its signature::

        def widths(prior: Gaussian) -> np.ndarray:
            return np.sqrt(np.diag(prior.covariance))
    """

    mean: np.ndarray
    covariance: np.ndarray
    precision: np.ndarray


class Model(Protocol):
    """A model of both domains, as `~cyclestarnet.CalibratedModel` is.

    Attributes
    ----------
    name : str
        What catalogues call it.
    grid : `~cyclestarnet.WavelengthGrid`
        Of all its spectra.
    labels : `~cyclestarnet.LabelSet`
        What it takes, and within which range.
    prior : `Gaussian`
        How the labels of its training were distributed.
    recipe : `~cyclestarnet.ContinuumRecipe` or None
        How observed spectra are normalised.
    zero_points : array, shape (n_labels,), or None
        Observed spectra of some labels are translations of the synthetic ones of labels + zero_points.
    predict : callable
        Spectra of labels in a ``domain``.
    derivative_spectra : callable
        Their derivatives with respect to ``names``.
    fit_many : callable
        Labels of observed spectra, as a table with a row per star.

    Examples
    --------
    A model of another kind is searched for missing lines if it has these::

        class Payne:
            name = "a Payne per domain"
            ...

        lines = find_missing_lines(Payne())
    """

    name: str
    grid: WavelengthGrid
    labels: LabelSet
    prior: Gaussian
    recipe: ContinuumRecipe | None
    zero_points: np.ndarray | None
    predict: Callable[..., Spectrum]
    derivative_spectra: Callable[..., DerivativeSpectra]
    fit_many: Callable[..., QTable]
