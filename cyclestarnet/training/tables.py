"""Rows of spectra that are read block by block, checked, and prepared for the networks.

A table may be a file that does not fit into memory, or arrays. Both kinds of
sources, those in memory (`cyclestarnet.training.datasets`) and those that are
streamed (`cyclestarnet.training.streams`), read their spectra by these functions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cyclestarnet.blanks import bools_of, floats_of, mask_of
from cyclestarnet.exceptions import CycleStarNetWarning, SpectrumError
from cyclestarnet.progress import tqdm
from cyclestarnet.training.settings import TrainingSettings

__all__ = [
    "ArrayTable",
    "SpectrumTable",
    "checked_rows",
    "label_scale",
    "observed_preparation",
    "read_block",
    "split_into_blocks",
    "standardised_labels",
    "survey",
    "synthetic_preparation",
]

Arrays = tuple[np.ndarray, ...]
Block = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # flux, sigma, mask
LabelScale = tuple[ArrayLike, ArrayLike]  # mean, standard deviation
# Row numbers, flux, sigma, mask -> which rows are usable, and what is drawn of them.
Prepare = Callable[[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None], tuple[np.ndarray, Arrays]]


class SpectrumTable(Protocol):
    """Rows of spectra that are read block by block, for example a `~cyclestarnet.io.TrainingSet`.

    Attributes
    ----------
    n_spectra, n_pixels : int
        Rows, and pixels of each.
    block_rows : int
        How many rows are best read at once.
    labels : array, shape (n_spectra, n_labels), or None
        Labels of synthetic spectra, NaN where one is not known. None: there are none.

    Examples
    --------
    ::

        class Flat:
            n_spectra, n_pixels, block_rows, labels = 100, 7, 10, None

            def read(self, start, stop):
                flux = np.ones((stop - start, 7), dtype=np.float32)
                return flux, 0.01 * flux, flux == 0
    """

    @property
    def n_spectra(self) -> int: ...

    @property
    def n_pixels(self) -> int: ...

    @property
    def block_rows(self) -> int: ...

    @property
    def labels(self) -> np.ndarray | None: ...

    def read(self, start: int, stop: int) -> Block:
        """Read neighbouring rows.

        Parameters
        ----------
        start, stop : int
            Half-open range of rows.

        Returns
        -------
        flux : array, shape (stop - start, n_pixels), float32
            Normalised flux.
        sigma : array of the same shape, float32, or None
            Its standard deviation; None for synthetic spectra.
        mask : array of bool, of the same shape, or None
            True = bad pixel; None for synthetic spectra.

        Examples
        --------
        ::

            flux, sigma, mask = table.read(0, table.block_rows)
        """


class ArrayTable:
    """Arrays as a `SpectrumTable`. They are not copied, and never written to.

    Parameters
    ----------
    flux : array, shape (n, n_pixels)
        Normalised flux.
    sigma : array, shape (n, n_pixels), optional
        Its standard deviation. Default: None, the spectra are synthetic.
    mask : array of bool, shape (n, n_pixels), optional
        True = bad pixel. Default: None, the spectra are synthetic.
    labels : array, shape (n, n_labels), optional
        Labels of synthetic spectra. Default: None, there are none.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.tables import ArrayTable
    >>> flux = np.ones((3, 5))
    >>> ArrayTable(flux, 0.01 * flux, flux == 0)
    3 arrays
    """

    block_rows = 256

    def __init__(
        self,
        flux: ArrayLike,
        sigma: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        labels: np.ndarray | None = None,
    ):
        self._flux = _plain(flux)
        self._sigma = None if sigma is None else _plain(sigma)
        self._mask = None if mask is None else bools_of(mask)
        self.n_spectra, self.n_pixels = self._flux.shape
        self.labels = labels

    def read(self, start: int, stop: int) -> Block:
        """Copy neighbouring rows; see `SpectrumTable.read`.

        Parameters
        ----------
        start, stop : int
            Half-open range of rows.

        Returns
        -------
        flux, sigma, mask : array, shape (stop - start, n_pixels)
            In float32, float32 and bool; the last two may be None.

        Examples
        --------
        >>> import numpy as np
        >>> from cyclestarnet.training.tables import ArrayTable
        >>> flux, sigma, mask = ArrayTable(np.ones((3, 5))).read(1, 3)
        >>> flux.shape, sigma
        ((2, 5), None)
        """
        rows = slice(start, stop)
        with np.errstate(over="ignore"):  # what is too large for float32 turns infinite, which is a bad pixel
            return (
                self._flux[rows].astype(np.float32),
                None if self._sigma is None else self._sigma[rows].astype(np.float32),
                None if self._mask is None else self._mask[rows].astype(bool),
            )

    def __repr__(self) -> str:
        return f"{self.n_spectra} arrays"


def _plain(array: ArrayLike) -> np.ndarray:
    """Numbers in their own precision, without a copy unless some are masked; NaN there."""
    return np.asarray(array) if mask_of(array) is None else floats_of(array)


# -- one spectrum, whatever it comes from -----------------------------------------
def observed_preparation(settings: TrainingSettings, ignore: ArrayLike | None, n_pixels: int) -> Prepare:
    """Make the function that prepares observed spectra for the networks.

    Parameters
    ----------
    settings : `~cyclestarnet.TrainingSettings`
        Which pixels count, and how flux is standardised.
    ignore : array of bool, shape (n_pixels,), or None
        True = pixel that is bad in every spectrum.
    n_pixels : int
        Pixels of a spectrum.

    Returns
    -------
    callable
        Takes row numbers (n,), and flux, sigma and mask (n, n_pixels). Returns
        which rows have a pixel that counts, and a pair of float32 arrays
        (n, n_pixels): standardised flux, and its weight, the inverse of its error, 0 where a pixel is bad.

    Raises
    ------
    ValueError
        If ``ignore`` has another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import TrainingSettings
    >>> from cyclestarnet.training.tables import observed_preparation
    >>> prepare = observed_preparation(TrainingSettings(flux_mean=0.9, flux_std=0.1), None, 2)
    >>> usable, (flux, weight) = prepare(np.arange(1), np.array([[1.0, 7.0]]), np.full((1, 2), 0.01), np.eye(2)[1:] > 0)
    >>> usable, flux.round(3), weight.round(3)
    (array([ True]), array([[1., 1.]], dtype=float32), array([[10.,  0.]], dtype=float32))
    """
    ignored = np.zeros(n_pixels, dtype=bool) if ignore is None else bools_of(ignore)
    if ignored.shape != (n_pixels,):
        raise ValueError(f"ignore must have the shape ({n_pixels},), True = ignore the pixel, but has {ignored.shape}")
    noise = settings.noise

    def prepare(
        rows: np.ndarray, flux: np.ndarray, sigma: np.ndarray | None, mask: np.ndarray | None
    ) -> tuple[np.ndarray, Arrays]:
        if sigma is None:
            raise SpectrumError("observed spectra need errors and masks; open the file with domain='observed'")
        used = noise.used_pixels(flux, sigma, mask) & ~ignored
        flux = np.where(ignored, np.nan, flux)  # what is ignored is not seen either, whatever fills it
        weight = settings.flux_std / noise.data_sigma(sigma, used)
        filled = _standardised(noise.filled_flux(flux, used), settings)
        return used.any(1), (filled, weight.astype(np.float32, copy=False))

    return prepare


def synthetic_preparation(settings: TrainingSettings, labels: np.ndarray | None) -> Prepare:
    """Make the function that prepares stored synthetic spectra for the networks.

    Parameters
    ----------
    settings : `~cyclestarnet.TrainingSettings`
        How flux is standardised.
    labels : array, shape (n_spectra, n_labels), or None
        Labels of all rows of the table, standardised; None: they have none.

    Returns
    -------
    callable
        As that of `observed_preparation`, but a row is usable if its flux and
        labels are finite, and labels take the place of weights, if there are any.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import TrainingSettings
    >>> from cyclestarnet.training.tables import synthetic_preparation
    >>> prepare = synthetic_preparation(TrainingSettings(flux_mean=0.9, flux_std=0.1), None)
    >>> usable, (flux,) = prepare(np.arange(2), np.array([[1.0], [np.nan]]), None, None)
    >>> usable, flux.round(3)
    (array([ True, False]), array([[1.],
           [1.]], dtype=float32))
    """

    def prepare(
        rows: np.ndarray, flux: np.ndarray, sigma: np.ndarray | None, mask: np.ndarray | None
    ) -> tuple[np.ndarray, Arrays]:
        usable = np.isfinite(flux).all(1)
        drawn: Arrays = (_standardised(np.where(usable[:, None], flux, 1.0), settings),)
        if labels is not None:
            usable &= np.isfinite(labels[rows]).all(1)
            drawn += (labels[rows],)
        return usable, drawn

    return prepare


def _standardised(flux: np.ndarray, settings: TrainingSettings) -> np.ndarray:
    return ((flux - settings.flux_mean) / settings.flux_std).astype(np.float32, copy=False)


def label_scale(labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each label.

    Parameters
    ----------
    labels : array, shape (n, n_labels)
        Rows with NaN do not count.

    Returns
    -------
    mean, std : tensor, shape (n_labels,), float32
        The second is 1 where a label is the same for all.

    Examples
    --------
    >>> from cyclestarnet.training.tables import label_scale
    >>> label_scale([[4000.0, 2.0], [5000.0, 2.0]])
    (tensor([4.5000e+03, 2.0000e+00]), tensor([707.1068,   1.0000]))
    """
    table = torch.as_tensor(labels, dtype=torch.float32)
    table = table[torch.isfinite(table).all(1)]
    mean = table.mean(0)
    std = table.std(0) if len(table) > 1 else torch.zeros_like(mean)
    return mean, torch.where(std > 0, std, 1.0)


def standardised_labels(
    table: SpectrumTable, rows: np.ndarray, scale: LabelScale | None
) -> tuple[np.ndarray | None, tuple[Tensor | None, Tensor | None]]:
    """All labels of a table, standardised, and the scale.

    Parameters
    ----------
    table : `SpectrumTable`
        Synthetic spectra.
    rows : array of int
        Rows that are used.
    scale : (array, array) or None
        Mean and standard deviation to standardise by. None: those of ``rows``.

    Returns
    -------
    labels : array, shape (n_spectra, n_labels), float32, or None
        Of all rows; None if the table has none.
    scale : (tensor, tensor) or (None, None)
        What they were standardised by.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.tables import ArrayTable, standardised_labels
    >>> table = ArrayTable(np.ones((3, 5)), labels=np.array([[4000.0], [5000.0], [6000.0]]))
    >>> standardised_labels(table, np.arange(3), None)
    (array([[-1.],
           [ 0.],
           [ 1.]], dtype=float32), (tensor([5000.]), tensor([1000.])))
    """
    given = table.labels  # a file is read here
    if given is None:
        return None, (None, None)
    labels = torch.as_tensor(floats_of(given).astype(np.float32))
    if scale is None:
        mean, std = label_scale(labels[rows])
    else:
        mean, std = (torch.as_tensor(a, dtype=torch.float32) for a in scale)
    return ((labels - mean) / std).numpy(), (mean, std)


# -- reading ----------------------------------------------------------------------
def checked_rows(rows: ArrayLike | None, table: SpectrumTable) -> np.ndarray:
    """Row numbers of a table, rising.

    Parameters
    ----------
    rows : array of int, or None
        Different row numbers in any order; None: all rows.
    table : `SpectrumTable`
        The table that must have them.

    Returns
    -------
    array of int

    Raises
    ------
    SpectrumError
        If the table is empty.
    ValueError
        If ``rows`` are no row numbers, repeat, or leave the table.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.tables import ArrayTable, checked_rows
    >>> checked_rows([2, 0], ArrayTable(np.ones((3, 5))))
    array([0, 2])
    """
    if table.n_spectra == 0:
        raise SpectrumError("there must be one spectrum or more, but there is none: flux has 0 rows")
    if rows is None:
        return np.arange(table.n_spectra)
    rows = np.asarray(rows)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise ValueError(f"rows must be row numbers, shape (n,), but are {rows.dtype} of shape {rows.shape}")
    unique = np.unique(rows)
    if len(unique) != len(rows) or len(rows) == 0 or unique[0] < 0 or unique[-1] >= table.n_spectra:
        raise ValueError(f"rows must be different numbers from 0 to {table.n_spectra - 1}, one or more of them")
    return unique


def split_into_blocks(rows: np.ndarray, table: SpectrumTable) -> list[np.ndarray]:
    """Divide row numbers into those that are read together.

    Parameters
    ----------
    rows : array of int
        Row numbers, rising.
    table : `SpectrumTable`
        Its ``block_rows`` are the size of a block.

    Returns
    -------
    list of array of int
        No block is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.tables import ArrayTable, split_into_blocks
    >>> split_into_blocks(np.array([0, 5, 300]), ArrayTable(np.ones((400, 5))))
    [array([0, 5]), array([300])]
    """
    edges = np.searchsorted(rows, np.arange(table.block_rows, table.n_spectra, table.block_rows))
    return [block for block in np.split(rows, edges) if len(block)]


def read_block(table: SpectrumTable, prepare: Prepare, rows: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """Read and prepare rows of one block; the file is read from the first to the last of them.

    Parameters
    ----------
    table : `SpectrumTable`
        Where the spectra are.
    prepare : callable
        Of `observed_preparation` or `synthetic_preparation`.
    rows : array of int
        Row numbers, rising.

    Returns
    -------
    usable : array of bool, shape (n,)
        Which of the rows can be trained on.
    arrays : tuple of array, shape (n, ...), float32
        What is drawn of all of them.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import TrainingSettings
    >>> from cyclestarnet.training.tables import ArrayTable, read_block, synthetic_preparation
    >>> prepare = synthetic_preparation(TrainingSettings(), None)
    >>> usable, (flux,) = read_block(ArrayTable(np.ones((9, 5))), prepare, np.array([3, 7]))
    >>> usable, flux.shape
    (array([ True,  True]), (2, 5))
    """
    start, stop = int(rows[0]), int(rows[-1]) + 1
    inside = slice(None) if len(rows) == stop - start else rows - start  # no copy where all are wanted
    flux, sigma, mask = table.read(start, stop)
    return prepare(rows, flux[inside], None if sigma is None else sigma[inside], None if mask is None else mask[inside])


def survey(table: SpectrumTable, prepare: Prepare, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Go through a table once, block by block, and warn at the end of the spectra that cannot be used.

    Parameters
    ----------
    table : `SpectrumTable`
        Where the spectra are.
    prepare : callable
        Of `observed_preparation` or `synthetic_preparation`.
    rows : array of int
        Row numbers, rising.

    Yields
    ------
    rows : array of int
        The usable rows of a block.
    arrays : tuple of array, float32
        What is drawn of them.

    Raises
    ------
    SpectrumError
        At the end, if no spectrum can be used.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import TrainingSettings
    >>> from cyclestarnet.training.tables import ArrayTable, survey, synthetic_preparation
    >>> prepare = synthetic_preparation(TrainingSettings(), None)
    >>> [len(usable) for usable, _ in survey(ArrayTable(np.ones((300, 5))), prepare, np.arange(300))]
    [256, 44]
    """
    dropped: list[int] = []
    blocks = split_into_blocks(rows, table)
    for block in tqdm(blocks, desc="reading", delay=5, leave=False, disable=None):
        usable, arrays = read_block(table, prepare, block)
        dropped.extend(block[~usable].tolist())
        yield block[usable], arrays if usable.all() else tuple(a[usable] for a in arrays)
    if dropped:
        why = "have no good pixel, or values that are not finite"
        if len(dropped) == len(rows):
            check = "check flux and labels, or of observed spectra mask, errors and sigma_max"
            raise SpectrumError(f"all {len(rows)} spectra of {table!r} {why}; {check}")
        names = ", ".join(map(str, dropped[:10])) + (", ..." if len(dropped) > 10 else "")
        message = f"{len(dropped)} of {len(rows)} spectra of {table!r} {why}, and are left out: rows {names}"
        warnings.warn(message, CycleStarNetWarning, stacklevel=2)
