"""What makes fits quick: a first guess of the labels, and the derivatives that are to be expected there.

Neither decides where a fit ends. A guess is a start, and steps along expected
derivatives are taken only as far as exact spectra agree; but most stars then
need no Jacobian of their own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

__all__ = ["Shortcuts", "slope_terms"]

REACH = 3.0  # σ of the prior: farther out, derivatives are those of the edge


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """Regressions on synthetic spectra whose labels are drawn from the prior.

    Parameters
    ----------
    latent_mean : array, shape (n_latent,)
        Mean shared latent, flat: n_latent is filters times positions.
    guess : array, shape (1 + n_latent, n_labels)
        Labels at the mean latent, in their units, and their slopes with the latent.
    centre : array, shape (n_labels,)
        Mean of the prior.
    directions : array, shape (n_labels, n_directions)
        From offsets of labels to standardised coordinates along the widest directions of the prior.
    slopes : array, shape (1 + n_directions, n_labels, n_pixels), float32
        Derivatives of the observed flux at the centre, per unit of each label, and their change along each direction.

    Examples
    --------
    One latent that is a tenth of the only label, and derivatives that do not change:

    >>> import numpy as np, torch
    >>> from cyclestarnet.networks import Shortcuts
    >>> shortcuts = Shortcuts(
    ...     latent_mean=np.zeros(1), guess=np.array([[0.0], [10.0]]), centre=np.zeros(1),
    ...     directions=np.ones((1, 1)), slopes=np.array([[[0.1, 0.2, 0.3]], [[0, 0, 0]]], dtype=np.float32),
    ... )
    >>> shortcuts.first_guess(np.array([[0.05]]))
    array([[0.5]])
    >>> shortcuts.expected_slopes(torch.tensor([[0.5]]))
    tensor([[[0.1000, 0.2000, 0.3000]]])
    """

    latent_mean: np.ndarray
    guess: np.ndarray
    centre: np.ndarray
    directions: np.ndarray
    slopes: np.ndarray

    def first_guess(self, latents: np.ndarray) -> np.ndarray:
        """First guess of the labels of observed spectra.

        Parameters
        ----------
        latents : array, shape (n, ...)
            Shared latents of the spectra. NaN gives NaN.

        Returns
        -------
        array, shape (n, n_labels)
            In the labels' units; may lie outside of their range.

        Examples
        --------
        ::

            shared_latent, _ = model.translator.encode_obs(flux)
            labels = model.shortcuts.first_guess(shared_latent)
        """
        offset = latents.reshape(len(latents), -1) - self.latent_mean
        # star by star, here and below: the last bits must not depend on the company
        return np.array([self.guess[0] + row @ self.guess[1:] for row in offset])

    def shifted(self, offset: np.ndarray) -> Shortcuts:
        """The same for labels that are counted from other zero points.

        Parameters
        ----------
        offset : array, shape (n_labels,)
            That new labels have more than old ones, in their units.

        Returns
        -------
        `Shortcuts`

        Examples
        --------
        ::

            shortcuts.shifted(np.array([-28.0, 0.0]))
        """
        guess = np.vstack([self.guess[0] + offset, self.guess[1:]])
        return replace(self, guess=guess, centre=self.centre + offset)

    def expected_slopes(self, labels: Tensor) -> Tensor:
        """Derivatives of the observed flux that are to be expected at given labels.

        Parameters
        ----------
        labels : Tensor, shape (n, n_labels)
            In their units.

        Returns
        -------
        Tensor, shape (n, n_labels, n_pixels), float32
            On the device of ``labels``.

        Examples
        --------
        ::

            slopes = model.shortcuts.expected_slopes(torch.from_numpy(model.prior.mean)[None])
        """
        coordinates = np.array([row @ self.directions for row in labels.cpu().double().numpy() - self.centre])
        design = torch.as_tensor(slope_terms(coordinates), dtype=torch.float32, device=labels.device)
        slopes = torch.as_tensor(self.slopes, device=labels.device)
        return torch.stack([(row @ slopes.flatten(1)).view(slopes.shape[1:]) for row in design])


def slope_terms(coordinates: np.ndarray) -> np.ndarray:
    """Terms by which expected derivatives are linear: a constant, and each coordinate up to the edge of the prior.

    Parameters
    ----------
    coordinates : array, shape (n, n_directions)
        Standardised offsets from the prior's mean along its widest directions.
        Beyond ±3 they count as ±3.

    Returns
    -------
    array, shape (n, 1 + n_directions)

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.networks.shortcuts import slope_terms
    >>> slope_terms(np.array([[0.5, -7.0]]))
    array([[ 1. ,  0.5, -3. ]])
    """
    return np.column_stack([np.ones(len(coordinates)), coordinates.clip(-REACH, REACH)])
