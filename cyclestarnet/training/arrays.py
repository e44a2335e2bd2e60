"""What a notebook holds, made into what a training takes: arrays or spectra become `Domains`.

Everything that can be wrong with them is said here, before anything is
trained. The caller's arrays are never written to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from astropy.table import Table
from numpy.typing import ArrayLike

from cyclestarnet.blanks import bools_of, floats_of, mask_behind, mask_of
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import GridError, LabelError, SpectrumError
from cyclestarnet.files import write_atomically
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.spectra import SAME_WAVELENGTH, Spectrum, check_frame
from cyclestarnet.training.config import Plan
from cyclestarnet.training.datasets import ObservedSpectra, StoredSynthetic
from cyclestarnet.training.domains import Domains, Stars, grid_with_chips
from cyclestarnet.training.emulators import trained_emulator
from cyclestarnet.training.inputs import emulator_error, least_held_out
from cyclestarnet.training.normalisation import LOOKED_AT, check_level, check_observed, normalised_rows
from cyclestarnet.training.tables import ArrayTable, SpectrumTable

__all__ = [
    "check_numbers",
    "common_grid",
    "digest",
    "domains_of_arrays",
    "held_out_rows",
    "observed_table",
    "require_same_spectra",
    "table_digest",
]

LEAST_TRAINED = 8  # observed stars, of whose latents a model keeps the distribution
LARGEST_GRID = 20_000  # spectra that an emulator is trained on at most, as in the file of a training
GIVEN = "spectra.json"  # in the folder of a run: what its checkpoint was trained on


@dataclass(frozen=True, eq=False)
class _Stack:
    """Spectra without units: flux and perhaps errors (n, n_pixels), mask, and wavelengths (n_pixels,)."""

    flux: np.ndarray
    sigma: np.ndarray | None = None
    mask: np.ndarray | None = None
    wavelength: u.Quantity | None = None


def domains_of_arrays(
    synthetic: ArrayLike | Spectrum,
    labels: Mapping[str, u.Quantity] | Table,
    observed: ArrayLike | Spectrum,
    errors: ArrayLike | None,
    plan: Plan,
    *,
    mask: ArrayLike | None = None,
    wavelength: u.Quantity | WavelengthGrid | None = None,
    recipe: ContinuumRecipe | None = None,
    held_out: float = 0.1,
    progress: bool = True,
) -> Domains:
    """Check spectra in memory, hold some of the observed ones out, and train the emulator.

    Parameters
    ----------
    synthetic, labels, observed, errors, mask, wavelength, recipe, held_out
        As `~cyclestarnet.train` takes them.
    plan : `~cyclestarnet.training.config.Plan`
        How the training shall go; its folder keeps the emulator.
    progress : bool, optional
        Show a bar while the emulator is trained. Default: True.

    Returns
    -------
    `~cyclestarnet.training.domains.Domains`

    Raises
    ------
    SpectrumError, LabelError, GridError, ValueError
        As `~cyclestarnet.train`.

    Examples
    --------
    ::

        domains = domains_of_arrays(flux, {"teff": teff, "logg": logg}, observed, errors, plan, wavelength=wavelength)
    """
    _check_plan(plan)
    first, second = _stack("synthetic", synthetic), _stack("observed", observed)
    grid = _grid(wavelength, {"synthetic": first, "observed": second})
    if recipe is not None and recipe.grid != grid:
        raise GridError("the grid of recipe is not that of the spectra; make the recipe for their wavelengths")
    values, label_set = _labels(labels, len(first.flux))
    _check_synthetic(first, label_set)
    sigma, bad = _errors_and_mask("observed", second, errors, mask)
    if recipe is None:
        check_level("synthetic", first.flux[:LOOKED_AT])
        table = ArrayTable(second.flux, sigma, bad)
    else:
        first = replace(first, flux=normalised_rows(recipe, first.flux)[0])
        table = ArrayTable(*normalised_rows(recipe, second.flux, sigma, bad))
    check_observed(table, plan.training)
    held_rows = held_out_rows(len(second.flux), held_out, plan.run.seed)
    rows = np.setdiff1d(np.arange(len(second.flux)), held_rows)
    check_numbers("the observed spectra", len(rows), len(held_rows), least_held_out(plan))
    plan.network_settings(grid.n_pixels)  # what does not fit shall be known before hours of work on the emulator

    source = ObservedSpectra.from_table(table, plan.training, rows=rows)
    pixels = grid.wavelength.value if recipe is None else np.r_[grid.wavelength.value, recipe.pixels, recipe.degree]
    given = {
        "synthetic": digest(first.flux, values, pixels),
        "observed": digest(second.flux, sigma, bad, pixels),
        "held out": digest(held_rows),
    }
    require_same_spectra(plan.run.folder, given)
    synthetic_table = ArrayTable(first.flux, labels=values)
    emulator, error = trained_emulator(
        synthetic_table, values, label_set, plan.run.folder,
        settings=plan.emulator, n_spectra=LARGEST_GRID, source={"spectra": given["synthetic"]}, progress=progress,
    )  # fmt: skip
    return Domains(
        grid,
        label_set,
        emulator,
        values,
        StoredSynthetic.from_table(synthetic_table, plan.training),
        source,
        Stars(table, rows),
        Stars(table, held_rows),
        recipe,
        provenance={
            "synthetic domain": f"arrays, {len(values)} rows of labels",
            "emulator": emulator_error(error),
            "observed domain": f"arrays, {len(source)} spectra; {len(held_rows)} held out",
        },
    )


def held_out_rows(n_stars: int, fraction: float, seed: int) -> np.ndarray:
    """Choose the observed spectra that a training does not see.

    Parameters
    ----------
    n_stars : int
        How many observed spectra there are.
    fraction : float
        The part of them to hold out, between 0 and 1; the number is rounded.
    seed : int
        The same seed chooses the same spectra.

    Returns
    -------
    array of int
        Their rows, rising.

    Raises
    ------
    ValueError
        If ``fraction`` is not between 0 and 1.

    Examples
    --------
    >>> from cyclestarnet.training.arrays import held_out_rows
    >>> held_out_rows(40, 0.1, seed=0)
    array([ 9, 23, 29, 35])
    """
    if not 0 < fraction < 1:
        raise ValueError(f"held_out must be a fraction between 0 and 1, but is {fraction}")
    order = np.random.default_rng([seed, 3]).permutation(n_stars)
    return np.sort(order[: round(fraction * n_stars)])


def observed_table(
    observed: ArrayLike | Spectrum,
    errors: ArrayLike | None = None,
    *,
    grid: WavelengthGrid,
    mask: ArrayLike | None = None,
    recipe: ContinuumRecipe | None = None,
    name: str = "observed",
) -> ArrayTable:
    """Check the shapes, units and wavelengths of observed spectra in memory, and make a table of them.

    Parameters
    ----------
    observed, errors, mask
        As `~cyclestarnet.train` takes them.
    grid : `~cyclestarnet.WavelengthGrid`
        The pixels that they must be on.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        Normalises them. Default: they are.
    name : str, optional
        What messages call the spectra.

    Returns
    -------
    `~cyclestarnet.training.tables.ArrayTable`

    Raises
    ------
    SpectrumError
        If they have impossible shapes or units, or no errors.
    GridError
        If they are on other pixels.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from cyclestarnet import WavelengthGrid
    >>> from cyclestarnet.training.arrays import observed_table
    >>> observed_table(np.ones((3, 4)), np.full((3, 4), 0.01), grid=WavelengthGrid([500, 501, 502, 503] * u.nm))
    3 arrays
    """
    stack = _stack(name, observed)
    _grid(grid, {name: stack})
    sigma, bad = _errors_and_mask(name, stack, errors, mask)
    return ArrayTable(
        *((stack.flux, sigma, bad) if recipe is None else normalised_rows(recipe, stack.flux, sigma, bad))
    )


def common_grid(
    wavelength: u.Quantity | WavelengthGrid | None, given: Mapping[str, ArrayLike | Spectrum]
) -> WavelengthGrid:
    """Find the grid of spectra of several domains, which must have the same pixels.

    Parameters
    ----------
    wavelength
        As `~cyclestarnet.train` takes it.
    given : mapping of array or `~specutils.Spectrum`, each of shape (n, n_pixels)
        Spectra, by what messages call them.

    Returns
    -------
    `~cyclestarnet.WavelengthGrid`

    Raises
    ------
    GridError
        If the wavelengths are not known, or those of two domains differ.
    SpectrumError
        If there are no spectra.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from cyclestarnet.training.arrays import common_grid
    >>> common_grid([500, 501, 502] * u.nm, {"first": np.ones((9, 3)), "second": np.ones((8, 3))})
    <WavelengthGrid 5000.0-5020.0 Angstrom (vacuum), 3 pixels, 1 chips>
    """
    return _grid(wavelength, {name: _stack(name, spectra) for name, spectra in given.items()})


# -- spectra -------------------------------------------------------------------------------
def _stack(name: str, given: ArrayLike | Spectrum) -> _Stack:
    """Spectra as they come: their flux dimensionless, masks and errors as arrays, wavelengths if they have them."""
    if not isinstance(given, Spectrum):
        mask = getattr(given, "mask", None)  # of a masked array or quantity
        flux = _numbers(name, getattr(given, "unmasked", given))
        return _Stack(_rows(name, flux), mask=None if mask is None else _like(f"the mask of {name}", mask, flux))
    check_frame(given)
    flux = _rows(name, _numbers(name, given.flux))
    mask = None if given.mask is None else _like(f"the mask of {name}", given.mask, flux)
    wavelength = u.Quantity(given.spectral_axis.value, given.spectral_axis.unit)
    return _Stack(flux, _standard_deviation(name, given, flux), mask, wavelength)


def _rows(name: str, flux: np.ndarray) -> np.ndarray:
    if flux.ndim != 2 or 0 in flux.shape:
        raise SpectrumError(f"{name} must have the shape (n, n_pixels), a row per star, but has {flux.shape}")
    return flux


def _numbers(name: str, given: ArrayLike) -> np.ndarray:
    """Dimensionless numbers, without a copy where there need not be one."""
    unit = given.unit if isinstance(given, u.Quantity) else u.dimensionless_unscaled
    try:
        array = given.to_value(u.dimensionless_unscaled) if isinstance(given, u.Quantity) else given
        array = np.asarray(array) if mask_of(array) is None else floats_of(array)
    except u.UnitConversionError:
        raise SpectrumError(
            f"{name} has the unit '{unit}', but must be normalised, without a unit; divide both domains by "
            "their continuum first, with one ContinuumRecipe"
        ) from None
    if array.dtype.kind not in "fiu":
        raise SpectrumError(
            f"{name} must be an array of numbers, or one Spectrum with a row per star, but is a "
            f"{type(given).__name__} of {array.dtype}"
        )
    return array


def _like(name: str, given: ArrayLike, flux: np.ndarray) -> np.ndarray:
    """A mask of the shape of the flux, True = bad."""
    mask = np.asarray(given) if mask_of(given) is None else bools_of(given)
    if mask.dtype.kind not in "biu":
        raise SpectrumError(f"{name} must be True where a pixel is bad, but holds {mask.dtype}")
    try:
        return np.broadcast_to(mask.astype(bool, copy=False), flux.shape)
    except ValueError:
        raise SpectrumError(
            f"{name} must have the shape {flux.shape}, or {flux.shape[1:]} for all stars, but has {mask.shape}"
        ) from None


def _standard_deviation(name: str, spectrum: Spectrum, flux: np.ndarray) -> np.ndarray | None:
    """Errors of a spectrum in the unit of its normalised flux; infinite where the inverse variance is 0."""
    given = spectrum.uncertainty
    if given is None:
        return None
    if not isinstance(given, (StdDevUncertainty, VarianceUncertainty, InverseVariance)):
        raise SpectrumError(
            f"the uncertainty of {name} must be a StdDevUncertainty, VarianceUncertainty or InverseVariance, "
            f"but is {type(given).__name__}"
        )
    with np.errstate(divide="ignore", invalid="ignore"):  # an inverse variance of 0 is a bad pixel
        array, masked = floats_of(given.array), mask_behind(given.array)
        array = array if masked is None else np.where(masked, np.nan, array)
        plain = type(given)(array, unit=given.unit).represent_as(StdDevUncertainty)
    unit = spectrum.flux.unit if plain.unit is None else plain.unit
    sigma = _numbers(f"the uncertainty of {name}", np.asarray(plain.array) * unit)
    if sigma.shape != flux.shape:
        raise SpectrumError(f"the uncertainty of {name} must have the shape {flux.shape}, but has {sigma.shape}")
    return sigma


def _errors_and_mask(
    name: str, observed: _Stack, errors: ArrayLike | None, mask: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Errors and mask of spectra, from wherever they are given."""
    whose, alone = ("the observed spectra", "errors") if name == "observed" else (name, f"errors of {name}")
    flux, sigma = observed.flux, observed.sigma
    bad = np.zeros(flux.shape, dtype=bool)
    masks = {f"the mask of {name}": observed.mask, "mask": mask, f"the mask of {alone}": getattr(errors, "mask", None)}
    for what, given in masks.items():
        if given is not None:
            bad |= _like(what, given, flux)
    if sigma is None and errors is not None:
        sigma = _numbers(alone, getattr(errors, "unmasked", errors))
        if sigma.shape != flux.shape:
            raise SpectrumError(f"{alone} must have the shape of {name}, {flux.shape}, but has {sigma.shape}")
    elif sigma is None or errors is not None:
        what = "has no uncertainty, and errors is None" if sigma is None else "has an uncertainty, and errors is given"
        raise SpectrumError(f"errors of {whose} must be given once, but {name} {what}")
    if bad.all():
        raise SpectrumError(f"all pixels of {name} are masked; mask must be True where a pixel is bad")
    return sigma, bad


def _check_synthetic(synthetic: _Stack, labels: LabelSet) -> None:
    flux = synthetic.flux
    spoilt = np.flatnonzero(~np.isfinite(flux).all(1))
    if len(spoilt):
        raise SpectrumError(
            f"synthetic holds NaN or infinite values in {len(spoilt)} of {len(flux)} spectra, first in row "
            f"{spoilt[0]}; leave those spectra and their labels out"
        )
    if synthetic.mask is not None and synthetic.mask.any():
        raise SpectrumError("synthetic has masked pixels, but must be complete: networks and emulator see all of them")
    if len(flux) <= 2 * len(labels):
        raise SpectrumError(f"synthetic has {len(flux)} spectra, too few for {len(labels)} labels")


def check_numbers(whose: str, n_trained: int, n_held: int, least: int) -> None:
    """Raise if there are too few spectra to train on, or to learn errors from.

    Parameters
    ----------
    whose : str
        What the message calls the spectra.
    n_trained, n_held : int
        How many are trained on, and how many held out.
    least : int
        How many must be held out.

    Raises
    ------
    SpectrumError
        If there are fewer.

    Examples
    --------
    >>> from cyclestarnet.training.arrays import check_numbers
    >>> check_numbers("the observed spectra", 27, 3, least=3)
    """
    if n_held < least or n_trained < LEAST_TRAINED:
        raise SpectrumError(
            f"of {whose} {n_trained} are to be trained on and {n_held} are held out, but {LEAST_TRAINED} "
            f"and {least} are needed at least; give more spectra, or change held_out"
        )


# -- wavelengths and labels ----------------------------------------------------------------
def _grid(wavelength: u.Quantity | WavelengthGrid | None, stacks: Mapping[str, _Stack]) -> WavelengthGrid:
    """The grid of both domains, which must have the same pixels."""
    known = {name: stack.wavelength for name, stack in stacks.items() if stack.wavelength is not None}
    if wavelength is None:
        if not known:
            raise GridError(
                "wavelength must be given, for example wavelength=np.linspace(1.51, 1.70, 7514) * u.um, "
                f"because neither {' nor '.join(stacks)} is a Spectrum, which has its own"
            )
        wavelength = next(iter(known.values()))
    grid = wavelength if isinstance(wavelength, WavelengthGrid) else grid_with_chips(wavelength)
    for name, stack in stacks.items():
        if stack.flux.shape[1] != grid.n_pixels:
            raise GridError(f"{name} has {stack.flux.shape[1]} pixels, but there are {grid.n_pixels} wavelengths")
    for name, own in known.items():
        if not own.unit.is_equivalent(u.AA) or not np.allclose(
            own.to_value(u.AA), grid.wavelength.value, rtol=SAME_WAVELENGTH, atol=0
        ):
            raise GridError(
                f"the wavelengths of {name} are not those of the training, {grid!r}; both domains must be on the "
                f"same pixels: {_way_out(own, grid)}"
            )
    return grid


def _way_out(own: u.Quantity, grid: WavelengthGrid) -> str:
    """What to do about wavelengths that are not those of a grid."""
    if own.unit.is_equivalent(u.AA):
        low, high = np.nanmin(own.to_value(u.AA)), np.nanmax(own.to_value(u.AA))
        if high < grid.wavelength.value[0] or low > grid.wavelength.value[-1]:
            return f"but these, {low:.1f} to {high:.1f} Angstrom, do not even overlap"
    return "resample one of them"


def _labels(labels: Mapping[str, u.Quantity] | Table, n_spectra: int) -> tuple[np.ndarray, LabelSet]:
    """Labels (n_spectra, n_labels) in their units, and their names and ranges."""
    if not isinstance(labels, (Mapping, Table)):
        raise LabelError(
            "labels must be a mapping of names to Quantities, or a table with a column per label, for example "
            f"{{'teff': teff * u.K, 'logg': logg}}, but is a {type(labels).__name__}"
        )
    names = tuple(labels.keys())
    for name in names:
        shape, kind = np.shape(labels[name]), np.asarray(labels[name]).dtype.kind
        if kind not in "fiu":
            raise LabelError(f"label {name!r} holds no numbers; leave out of labels what is no label")
        if shape != (n_spectra,):
            raise LabelError(
                f"label {name!r} must have a value for each of the {n_spectra} synthetic spectra, but has the "
                f"shape {shape}"
            )
    # units and NaN are looked at by a set whose ranges do not matter yet
    values = LabelSet(names, np.zeros(len(names)), np.ones(len(names))).to_array(labels)
    lower, upper = values.min(0), values.max(0)
    for name, low, high in zip(names, lower, upper, strict=True):
        if low == high:
            raise LabelError(f"label {name!r} is {low:g} for all synthetic spectra; leave it out, or let it vary")
    return values, LabelSet(names, lower, upper)


# -- the plan and its folder ---------------------------------------------------------------
def _check_plan(plan: Plan) -> None:
    for name in ("weight_anchors", "prior_rate"):
        if getattr(plan.training, name):
            raise ValueError(
                f"{name} is {getattr(plan.training, name)}, but needs spectra that an emulator makes while the "
                "networks are trained: write a configuration file, and use 'cyclestarnet train'"
            )


def digest(*arrays: np.ndarray) -> str:
    """SHA-256 of arrays with their types and shapes.

    Parameters
    ----------
    *arrays : array
        Of any kind.

    Returns
    -------
    str
        Hexadecimal digits.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.arrays import digest
    >>> digest(np.zeros(2)) == digest(np.zeros(2, dtype="f4"))
    False
    """
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).view(np.uint8).data)
    return found.hexdigest()


def table_digest(table: SpectrumTable) -> str:
    """SHA-256 of all rows of a table, read block by block.

    Parameters
    ----------
    table : `~cyclestarnet.training.tables.SpectrumTable`
        Of spectra of any kind.

    Returns
    -------
    str
        Hexadecimal digits.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.arrays import table_digest
    >>> from cyclestarnet.training.tables import ArrayTable
    >>> len(table_digest(ArrayTable(np.ones((3, 4)))))
    64
    """
    blocks = (table.read(first, first + table.block_rows) for first in range(0, table.n_spectra, table.block_rows))
    return hashlib.sha256(
        "".join(digest(*(array for array in block if array is not None)) for block in blocks).encode()
    ).hexdigest()


def require_same_spectra(folder: Path, given: dict[str, str]) -> None:
    """Note in a folder what its run is trained on; what is noted there already must be the same.

    Else a checkpoint would go on with other spectra, and nobody would see it.

    Parameters
    ----------
    folder : path
        Of the run.
    given : dict of str
        What it is trained on, and its digest.

    Raises
    ------
    ValueError
        If the folder has a run on something else.

    Examples
    --------
    ::

        require_same_spectra(plan.run.folder, {"observed": digest(flux, errors)})
    """
    note = folder / GIVEN
    if note.exists():
        there = json.loads(note.read_text(encoding="utf-8"))
        if different := [name for name, found in given.items() if there.get(name) != found]:
            raise ValueError(
                f"folder {note.parent} has a training on other spectra ({', '.join(different)}); use another folder, "
                "or delete it to begin anew"
            )
        return
    text = json.dumps(given, indent=1).encode()

    def write(path: Path) -> None:
        path.write_bytes(text)

    write_atomically(note, write)
