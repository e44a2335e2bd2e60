"""Which pixels of a spectrum count, and with what error: one rule for training sets, encoders and fits.

A pixel *counts* if its flux and error are finite, its error is positive, nobody
masks it, and its error is not larger than the largest one of the training. All
rooms ask here, so that what a network learnt to read is what it is given, and a
fit weighs the pixels that its encoder saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cyclestarnet.blanks import bools_of
from cyclestarnet.exceptions import SpectrumError

__all__ = ["ErrorTrend", "NoiseModel"]

ROUNDING = 1e-6  # relative: an error that is the largest one but for its last bits is not beyond it
NOISY = 3.0  # median errors: up to where pixels of a spectrum count that is noisier than the training
FARTHEST, STEEPEST = 2.5, np.log(4.0)  # scales from the centre, and factor: there stars were too few to learn from


@dataclass(frozen=True, eq=False)
class ErrorTrend:
    """How much larger or smaller hidden errors of labels are for some stars than for others.

    Parameters
    ----------
    columns : tuple of int
        Labels that they depend on.
    centre, scale : array, shape (n_columns,)
        By which these labels are standardised.
    slopes : array, shape (n_labels, 2 n_columns)
        Of the logarithm of each label's error: by these standardised labels, then by their squares.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.noise import ErrorTrend
    >>> trend = ErrorTrend((0,), np.array([4500.0]), np.array([500.0]), np.array([[0.0, 0.0], [0.7, 0.0]]))
    >>> trend.factor(np.array([5000.0, 2.5])).round(2)
    array([1.  , 2.01])
    """

    columns: tuple[int, ...]
    centre: np.ndarray
    scale: np.ndarray
    slopes: np.ndarray

    def terms(self, labels: np.ndarray) -> np.ndarray:
        """What the slopes multiply.

        Parameters
        ----------
        labels : array, shape (..., n_labels)
            In their units. Beyond 2.5 scales from the centre, the edge counts.

        Returns
        -------
        array, shape (..., 2 n_columns)

        Examples
        --------
        ::

            trend.terms(model.prior.mean)
        """
        place = ((labels[..., list(self.columns)] - self.centre) / self.scale).clip(-FARTHEST, FARTHEST)
        return np.concatenate([place, place**2], axis=-1)

    def factor(self, labels: np.ndarray) -> np.ndarray:
        """Factor on the hidden error of each label, from 1/4 to 4.

        Parameters
        ----------
        labels : array, shape (..., n_labels)
            Of the star, in their units.

        Returns
        -------
        array, shape (..., n_labels)

        Examples
        --------
        ::

            trend.factor(result.values)
        """
        return np.exp((self.terms(labels) @ self.slopes.T).clip(-STEEPEST, STEEPEST))


@dataclass(frozen=True, eq=False)
class NoiseModel:
    """Which pixels count, what networks see where they do not, and the variance of data and model.

    Parameters
    ----------
    sigma_floor : float, optional
        Least error of a pixel, 1 σ, in units of the continuum: smaller errors are raised to it.
        Default: 0.005, as in the paper's code.
    sigma_max : float, optional
        Largest error of a pixel that counts. If more than half of a spectrum's good pixels lie
        beyond it, the spectrum is noisier than any of the training, and pixels count up to three
        times their median error. Default: 0.05, as in the paper's code.
    fill : float or None, optional
        Flux that networks see at pixels that do not count. Default: 1, the continuum, so that
        no wild value leaks through the convolutions. None: whatever the spectrum has there,
        as in the published code; the continuum where that is not finite.
    scatter : mapping of str to array, shape (n_pixels,), optional
        Error of the model itself per pixel, 1 σ, in units of the continuum, for the spaces
        ``"observed"`` and ``"emulator"``. A space that is not named has none.
    scatter_inflation : mapping of str to float, optional
        Factor on ``scatter`` in the weights of a fit, per space: the model's errors of neighbouring
        pixels are alike, so that they average out more slowly than noise does. Default: 1.
    label_error : array, shape (n_labels, n_labels), optional
        Covariance of the labels' errors that residuals do not show, because a wrong label can
        hide in the translation. Fits in the observed space add it to their covariance.
    label_error_trend : `~cyclestarnet.noise.ErrorTrend`, optional
        How these errors depend on the labels. Default: they do not.

    Raises
    ------
    ValueError
        If the floor or the largest error is not positive, or the first is not below the second.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import NoiseModel
    >>> noise, sigma = NoiseModel(), np.array([0, -0.01, 0.02, 0.06, np.nan, 0.05])
    >>> used = noise.used_pixels(np.full(6, 0.9), sigma)
    >>> used
    array([False, False,  True, False, False,  True])
    >>> noise.filled_flux(np.full(6, 0.9), used)
    array([1. , 1. , 0.9, 1. , 1. , 0.9])
    >>> noise.data_variance(sigma, used)
    array([   inf,    inf, 0.0004,    inf,    inf, 0.0025])
    """

    sigma_floor: float = 0.005
    sigma_max: float = 0.05
    fill: float | None = 1.0
    scatter: Mapping[str, np.ndarray] = field(default_factory=dict)
    scatter_inflation: Mapping[str, float] = field(default_factory=dict)
    label_error: np.ndarray | None = None
    label_error_trend: ErrorTrend | None = None

    def __post_init__(self) -> None:
        if not 0 < self.sigma_floor < self.sigma_max < np.inf:
            raise ValueError(
                f"sigma_floor and sigma_max must be positive errors in rising order, but are {self.sigma_floor} and "
                f"{self.sigma_max}"
            )
        if self.fill is not None and not np.isfinite(self.fill):
            raise ValueError(f"fill must be a finite flux, or None for the spectrum's own, but is {self.fill}")

    def hidden_covariance(self, labels: np.ndarray) -> np.ndarray | None:
        """Covariance of the errors that residuals do not show, of a star.

        Parameters
        ----------
        labels : array, shape (n_labels,)
            Of the star, in their units.

        Returns
        -------
        array, shape (n_labels, n_labels), or None
            ``label_error``, as ``label_error_trend`` changes it; None if there is none.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet import NoiseModel
        >>> NoiseModel(label_error=np.diag([400.0, 0.01])).hidden_covariance(np.array([4500.0, 2.5]))
        array([[4.e+02, 0.e+00],
               [0.e+00, 1.e-02]])
        """
        if self.label_error is None or self.label_error_trend is None:
            return self.label_error
        factor = self.label_error_trend.factor(labels)
        return self.label_error * np.outer(factor, factor)

    def used_pixels(self, flux: np.ndarray, sigma: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Tell which pixels count.

        Parameters
        ----------
        flux : array, shape (..., n_pixels)
            Continuum-normalised. A pixel that is not finite does not count.
        sigma : array, shape (..., n_pixels)
            Error of the flux, 1 σ. A pixel where it is NaN, infinite, zero or negative does not count.
        mask : array of bool, shape (..., n_pixels), optional
            True = the pixel does not count. Default: none is masked.

        Returns
        -------
        array of bool, shape (..., n_pixels)

        Raises
        ------
        SpectrumError
            If the shapes differ.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet import NoiseModel
        >>> NoiseModel(sigma_max=0.05).used_pixels(np.ones(4), np.array([0.2, 0.3, 0.2, 1.0]))  # a noisy spectrum
        array([ True,  True,  True, False])
        """
        if np.shape(flux) != np.shape(sigma) or (mask is not None and np.shape(mask) != np.shape(flux)):
            raise SpectrumError(
                f"flux, sigma and mask must have one shape, but have {np.shape(flux)}, {np.shape(sigma)}"
                + ("" if mask is None else f", {np.shape(mask)}")
            )
        good = np.isfinite(flux) & np.isfinite(sigma) & (sigma > 0)
        if mask is not None:
            good &= ~bools_of(mask)
        used = good & (sigma <= self.sigma_max * (1 + ROUNDING))
        noisy = 2 * np.count_nonzero(used, axis=-1) < np.count_nonzero(good, axis=-1)
        for row in np.argwhere(noisy):
            k = tuple(row)
            used[k] = good[k] & (sigma[k] <= NOISY * np.median(sigma[k][good[k]]))
        return used

    def filled_flux(self, flux: np.ndarray, used: np.ndarray) -> np.ndarray:
        """Flux as networks see it.

        Parameters
        ----------
        flux : array, shape (..., n_pixels)
            Continuum-normalised, as the spectrum has it, also where pixels do not count.
        used : array of bool, shape (..., n_pixels)
            Of `used_pixels`.

        Returns
        -------
        array, shape (..., n_pixels)
            Of the type of ``flux``; finite everywhere.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet import NoiseModel
        >>> flux, used = np.array([0.9, 7.0, np.nan]), np.array([True, False, False])
        >>> NoiseModel().filled_flux(flux, used)
        array([0.9, 1. , 1. ])
        >>> NoiseModel(fill=None).filled_flux(flux, used)
        array([0.9, 7. , 1. ])
        """
        if self.fill is None:
            return np.where(np.isfinite(flux), flux, 1.0).astype(np.asarray(flux).dtype, copy=False)
        return np.where(used, flux, self.fill).astype(np.asarray(flux).dtype, copy=False)

    def data_sigma(self, sigma: np.ndarray, used: np.ndarray) -> np.ndarray:
        """Error of the data, with the floor.

        Parameters
        ----------
        sigma : array, shape (..., n_pixels)
            Error of the flux, 1 σ.
        used : array of bool, shape (..., n_pixels)
            Of `used_pixels`.

        Returns
        -------
        array, shape (..., n_pixels)
            Infinite where a pixel does not count.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet import NoiseModel
        >>> NoiseModel(sigma_floor=0.01).data_sigma(np.array([0.001, 0.03, 0.03]), np.array([True, True, False]))
        array([0.01, 0.03,  inf])
        """
        return np.where(used, np.maximum(sigma, self.sigma_floor), np.inf)

    def data_variance(self, sigma: np.ndarray, used: np.ndarray) -> np.ndarray:
        """Variance of the data, with the error floor: the square of `data_sigma`.

        Parameters
        ----------
        sigma : array, shape (..., n_pixels)
            Error of the flux, 1 σ.
        used : array of bool, shape (..., n_pixels)
            Of `used_pixels`.

        Returns
        -------
        array, shape (..., n_pixels)
            Infinite where a pixel does not count.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet import NoiseModel
        >>> noise, sigma = NoiseModel(sigma_floor=0.01), np.array([0.001, 0.03])
        >>> noise.data_variance(sigma, np.array([True, True])).round(6)
        array([0.0001, 0.0009])
        """
        return self.data_sigma(sigma, used) ** 2

    def total_variance(self, data_variance: np.ndarray, space: str, *, inflated: bool = True) -> np.ndarray:
        """Variance of data and model together.

        Parameters
        ----------
        data_variance : array, shape (..., n_pixels)
            Of `data_variance`, perhaps inflated by the caller.
        space : {"observed", "emulator", "synthetic"}
            Where the model is compared with the data. Data that were translated to the synthetic
            domain in the residual form have the error of the gap, that of the observed space.
        inflated : bool, optional
            With ``scatter_inflation``, as for weights of a fit (default), or without, as for χ².

        Returns
        -------
        array, shape (..., n_pixels)
            Infinite where a pixel does not count.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet import NoiseModel
        >>> noise = NoiseModel(scatter={"observed": np.array([0.03])}, scatter_inflation={"observed": 2.0})
        >>> noise.total_variance(np.array([0.0016]), "observed", inflated=False).round(6)
        array([0.0025])
        >>> noise.total_variance(np.array([0.0016]), "observed").round(6)
        array([0.0052])
        """
        space = "observed" if space == "synthetic" else space
        scatter = np.asarray(self.scatter.get(space, 0.0), dtype=float)
        factor = self.scatter_inflation.get(space, 1.0) if inflated else 1.0
        return data_variance + (factor * scatter) ** 2
