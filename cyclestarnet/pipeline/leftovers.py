"""What fits leave over of spectra, of labels that are known: one evaluation of a model, and not a fit again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from cyclestarnet.networks.threads import one_thread
from cyclestarnet.pipeline.fit import make_objective, prepare_stars
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.parts import ModelParts
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.spectra import Spectrum

__all__ = ["residuals_at"]


def residuals_at(
    parts: ModelParts,
    spectra: Sequence[Spectrum],
    labels: Mapping[str, tuple[str, np.ndarray]],
    *,
    autoencoder: bool = False,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Compare spectra with the model at labels that are known, such as those of a table of fits.

    Parameters
    ----------
    parts : `~cyclestarnet.pipeline.ModelParts`
        The model.
    spectra : sequence of `~specutils.Spectrum`
        One per star.
    labels : mapping of str to (str, array of shape (n_stars, n_labels))
        By any name a space, ``"observed"`` or ``"emulator"``, and labels of the stars in it, in the units of the
        model; NaN of stars that have none.
    autoencoder : bool, optional
        Compare spectra with what the autoencoder of the observed domain makes of them, too. Default: False.

    Returns
    -------
    residuals : dict of array, shape (n_stars, n_pixels)
        Data − model in units of the continuum, by the names of ``labels``, and ``"autoencoder"`` if that was
        wanted. NaN at pixels that do not count, and of spectra that cannot be used.
    sigma : array, shape (n_stars, n_pixels)
        Errors of the data, with the floor of training; NaN as above.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import CalibratedModel, datasets
    >>> from cyclestarnet.pipeline.leftovers import residuals_at
    >>> model, star = CalibratedModel.from_pretrained(), datasets.k_giant()
    >>> result = model.fit(star)
    >>> left, sigma = residuals_at(model, [star], {"fit": ("observed", result.values[None])})
    >>> bool(np.nanmax(np.abs(left["fit"][0] - result.residual.value)) < 1e-5)
    True
    """
    with one_thread():
        stars, places = prepare_stars(parts, spectra, FitSetup.of(parts, FitOptions()))
        wanted = [*labels, *(["autoencoder"] if autoencoder else [])]
        left = {name: np.full((len(spectra), parts.grid.n_pixels), np.nan) for name in wanted}
        sigma = np.full((len(spectra), parts.grid.n_pixels), np.nan)
        good = np.array([k for k, place in enumerate(places) if not isinstance(place, Exception)], dtype=int)
        if not len(good):
            return left, sigma
        used = np.isfinite(stars.variance)
        sigma[good] = np.where(used, np.sqrt(stars.variance), np.nan)
        for name, (space, values) in labels.items():
            known = np.flatnonzero(np.isfinite(values[good]).all(axis=1))
            if not len(known):
                continue
            predictor = make_objective(parts, stars, FitSetup.of(parts, FitOptions(space=space))).predictor
            rows = torch.as_tensor(known, device=predictor.device)
            flux = predictor.flux(torch.as_tensor(values[good][known], device=predictor.device).double(), rows)
            left[name][good[known]] = np.where(used, stars.flux, np.nan)[known] - flux.cpu().numpy()
        if autoencoder:
            lost = stars.filled - np.concatenate([parts.translator.reconstruct_obs(row[None]) for row in stars.filled])
            left["autoencoder"][good] = np.where(used, lost, np.nan)
    return left, sigma
