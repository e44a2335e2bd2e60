"""How training spectra must be normalised: alike, and by the recipe of the model if it has one."""

from __future__ import annotations

import numpy as np

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import SpectrumError
from cyclestarnet.spectra import NORMALISED
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.tables import SpectrumTable

__all__ = ["LOOKED_AT", "check_level", "check_observed", "normalised_rows"]

LOOKED_AT = 64  # spectra, by which the others are judged
OF_THE_RECIPE = 1e-3  # median change by a recipe that flux went through before: 2e-5; other continuum pixels, 5e-3
ROWS = 256  # that are normalised at a time


def normalised_rows(
    recipe: ContinuumRecipe, flux: np.ndarray, sigma: np.ndarray | None = None, bad: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Divide spectra by their continuum.

    Parameters
    ----------
    recipe : `~cyclestarnet.ContinuumRecipe`
        For their pixels.
    flux : array, shape (n, n_pixels)
        Not changed.
    sigma, bad : array, shape (n, n_pixels), optional
        Errors, and which pixels are bad. Default: the spectra are synthetic, all pixels count alike.

    Returns
    -------
    flux, sigma, bad : array, shape (n, n_pixels), or None
        Pixels without a continuum hold 1 and are bad.

    Examples
    --------
    >>> import numpy as np, astropy.units as u
    >>> from cyclestarnet import ContinuumRecipe, WavelengthGrid
    >>> from cyclestarnet.training.normalisation import normalised_rows
    >>> recipe = ContinuumRecipe(WavelengthGrid(np.linspace(1500, 1510, 100) * u.nm), np.ones(100))
    >>> flux, _, _ = normalised_rows(recipe, np.full((2, 100), 963.0))
    >>> np.allclose(flux, 1)
    True
    """
    new_flux = np.array(flux, dtype=np.result_type(flux, np.float32))
    new_sigma = None if sigma is None else np.array(sigma, dtype=np.result_type(sigma, np.float32))
    new_bad = None if bad is None else np.array(bad)
    for start in range(0, len(flux), ROWS):
        part = slice(start, start + ROWS)
        ivar = np.ones(flux[part].shape)
        if sigma is not None and bad is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                ivar = np.where(~bad[part] & np.isfinite(flux[part]) & (sigma[part] > 0), 1.0 / sigma[part] ** 2, 0.0)
        continuum = recipe(flux[part], ivar)
        known = continuum > 0
        new_flux[part] = np.where(known, flux[part] / np.where(known, continuum, 1.0), 1.0)
        if new_sigma is not None:
            new_sigma[part] /= np.where(known, continuum, 1.0)
        if new_bad is not None:
            new_bad[part] |= ~known
    return new_flux, new_sigma, new_bad


def check_observed(
    table: SpectrumTable,
    settings: TrainingSettings,
    *,
    recipe: ContinuumRecipe | None = None,
    name: str = "observed",
) -> None:
    """Check by the first spectra of a table that flux is normalised, and that errors are those of such flux.

    Parameters
    ----------
    table : `~cyclestarnet.training.tables.SpectrumTable`
        Of observed spectra.
    settings : `~cyclestarnet.TrainingSettings`
        Up to which error pixels count.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        The one that must have normalised them. Default: any.
    name : str, optional
        What messages call the spectra.

    Raises
    ------
    SpectrumError
        If they are not.

    Examples
    --------
    ::

        check_observed(TrainingSet("observed.h5"), TrainingSettings())
    """
    flux, sigma, bad = table.read(0, min(LOOKED_AT, table.n_spectra))
    assert sigma is not None  # observed spectra have them
    assert bad is not None
    check_level(name, np.where(bad, np.nan, flux))
    _check_errors("errors" if name == "observed" else f"errors of {name}", np.where(bad, np.nan, sigma), settings)
    if recipe is None:
        return
    change = np.abs(normalised_rows(recipe, flux, sigma, bad)[0] / np.where(flux == 0, np.nan, flux) - 1)
    if (usual := np.nanmedian(np.where(bad, np.nan, change))) > OF_THE_RECIPE:
        raise SpectrumError(
            f"{table!r} was not normalised by the continuum recipe of the model, which changes it by {usual:.1%} in a "
            "typical pixel, and labels with it; write it with this recipe (cyclestarnet prepare, or recipe= of "
            "cyclestarnet.io.write_training_set)"
        )


def check_level(name: str, flux: np.ndarray) -> None:
    """Raise if flux is clearly not normalised.

    Parameters
    ----------
    name : str
        What the message calls the spectra.
    flux : array
        NaN does not count.

    Raises
    ------
    SpectrumError
        If its median is not between 0.1 and 10.

    Examples
    --------
    ::

        check_level("synthetic", flux[:64])
    """
    fine = flux[np.isfinite(flux)]
    if len(fine) and not NORMALISED[0] < (middle := np.median(fine)) < NORMALISED[1]:
        raise SpectrumError(
            f"{name} must be normalised flux, about 1 in the continuum, but its median is {middle:.3g}; divide both "
            "domains by their continuum first, with one ContinuumRecipe"
        )


def _check_errors(what: str, sigma: np.ndarray, settings: TrainingSettings) -> None:
    fine = sigma[np.isfinite(sigma) & (sigma > 0)]
    if not len(fine):
        raise SpectrumError(f"{what} must be positive standard deviations, but no unmasked pixel has one")
    if (middle := np.median(fine)) > settings.sigma_max:
        raise SpectrumError(
            f"{what} must be those of the normalised flux, but their median is {middle:.3g}, above sigma_max = "
            f"{settings.sigma_max:g} of the settings; divide them by the continuum, too, or raise sigma_max"
        )
