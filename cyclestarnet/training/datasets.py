"""Where the spectra of both domains come from, standardised for the networks.

Every source does what `Source` says. Observed ones hold a spectrum and its
weight per pixel (standardised inverse error, 0 = bad), synthetic ones a
spectrum and its labels. Sets that fit into memory are drawn from at random;
those that do not are streamed from their file in a shuffled order.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cyclestarnet.exceptions import CycleStarNetWarning, SpectrumError
from cyclestarnet.progress import tqdm
from cyclestarnet.training.settings import TrainingSettings

__all__ = [
    "ArrayTable",
    "ObservedSpectra",
    "Source",
    "SpectrumTable",
    "StoredSynthetic",
    "SyntheticSpectra",
    "split_into_blocks",
]

Arrays = tuple[np.ndarray, ...]
LabelScale = tuple[ArrayLike, ArrayLike]  # mean, standard deviation
# Row numbers, flux, sigma, mask -> which rows are usable, and what is drawn of them.
Prepare = Callable[[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None], tuple[np.ndarray, Arrays]]


class Source(Protocol):
    """What a trainer asks of its data."""

    def __len__(self) -> int: ...

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Spectra (n, n_pixels), standardised, and their weights (observed) or labels or None (synthetic).

        The generator is one of the CPU, wherever the spectra are.
        """

    def state_dict(self) -> dict:
        """What the next draw depends on besides the generator, in plain values."""

    def load_state_dict(self, state: dict) -> None:
        """Go to where ``state`` was taken."""

    def to(self, device) -> Self:
        """Let `draw` give tensors on a device; returns the source itself."""


class SpectrumTable(Protocol):
    """Rows of spectra that are read block by block, for example a `~cyclestarnet.io.TrainingSet`."""

    n_spectra: int
    n_pixels: int
    block_rows: int
    labels: np.ndarray | None

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
        """Flux, sigma and mask (True = bad) of neighbouring rows; the last two are None for synthetic spectra."""


# -- one spectrum, whatever it comes from -----------------------------------------
def observed_preparation(settings: TrainingSettings, ignore: ArrayLike | None, n_pixels: int) -> Prepare:
    """Preparation of observed spectra; one without a good pixel is not usable."""
    ignored = np.zeros(n_pixels, dtype=bool) if ignore is None else np.asarray(ignore, dtype=bool)
    if ignored.shape != (n_pixels,):
        raise ValueError(f"ignore must have the shape ({n_pixels},), True = ignore the pixel, but has {ignored.shape}")
    noise = settings.noise

    def prepare(rows, flux, sigma, mask):
        if sigma is None:
            raise SpectrumError("observed spectra need errors and masks; open the file with domain='observed'")
        used = noise.used_pixels(flux, sigma, mask) & ~ignored
        flux = np.where(ignored, np.nan, flux)  # what is ignored is not seen either, whatever fills it
        weight = settings.flux_std / noise.data_sigma(sigma, used)
        filled = _standardised(noise.filled_flux(flux, used), settings)
        return used.any(1), (filled, weight.astype(np.float32, copy=False))

    return prepare


def synthetic_preparation(settings: TrainingSettings, labels: np.ndarray | None) -> Prepare:
    """Preparation of stored synthetic spectra, whose labels are standardised already; all must be finite."""

    def prepare(rows, flux, sigma, mask):
        usable = np.isfinite(flux).all(1)
        drawn = (_standardised(np.where(usable[:, None], flux, 1.0), settings),)
        if labels is not None:
            usable &= np.isfinite(labels[rows]).all(1)
            drawn += (labels[rows],)
        return usable, drawn

    return prepare


def _standardised(flux: np.ndarray, settings: TrainingSettings) -> np.ndarray:
    return ((flux - settings.flux_mean) / settings.flux_std).astype(np.float32, copy=False)


def _label_scale(labels: ArrayLike) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each label, 1 where it is the same for all."""
    labels = torch.as_tensor(labels, dtype=torch.float32)
    labels = labels[torch.isfinite(labels).all(1)]
    mean = labels.mean(0)
    std = labels.std(0) if len(labels) > 1 else torch.zeros_like(mean)
    return mean, torch.where(std > 0, std, 1.0)


def standardised_labels(
    table: SpectrumTable, rows: np.ndarray, scale: LabelScale | None
) -> tuple[np.ndarray | None, tuple]:
    """All labels of a table, standardised by ``scale`` or by the mean and deviation of ``rows``, and the scale."""
    labels = table.labels
    if labels is None:
        return None, (None, None)
    labels = torch.as_tensor(np.asarray(labels, dtype=np.float32))
    mean, std = (torch.as_tensor(a, dtype=torch.float32) for a in scale) if scale else _label_scale(labels[rows])
    return ((labels - mean) / std).numpy(), (mean, std)


# -- reading tables ---------------------------------------------------------------
def checked_rows(rows: ArrayLike | None, table: SpectrumTable) -> np.ndarray:
    """Row numbers, rising; None = all."""
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
    """Rising row numbers of a table, split into those that are read together; no block is empty."""
    edges = np.searchsorted(rows, np.arange(table.block_rows, table.n_spectra, table.block_rows))
    return [block for block in np.split(rows, edges) if len(block)]


def read_block(table: SpectrumTable, prepare: Prepare, rows: np.ndarray) -> tuple[np.ndarray, Arrays]:
    """Prepare rows of one block; the file is read from the first to the last of them."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    inside = slice(None) if len(rows) == stop - start else rows - start  # no copy where all are wanted
    arrays = table.read(start, stop)
    return prepare(rows, *(None if a is None else a[inside] for a in arrays))


def survey(table: SpectrumTable, prepare: Prepare, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Go through a table once, block by block: usable rows, and what is drawn of them. Warn of the others."""
    dropped = []
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


def _collect(table: SpectrumTable, prepare: Prepare, rows: np.ndarray) -> tuple[Tensor, ...]:
    """All that is usable in memory: the result and one block of the table."""
    collected: tuple[Tensor, ...] = ()
    n = 0
    for block, arrays in survey(table, prepare, rows):
        if not collected:
            collected = tuple(torch.empty((len(rows), a.shape[1])) for a in arrays)
        for whole, part in zip(collected, arrays, strict=True):
            whole[n : n + len(block)] = torch.from_numpy(part)
        n += len(block)
    return tuple(whole[:n] for whole in collected)


class ArrayTable:
    """Arrays as a `SpectrumTable`."""

    block_rows = 256

    def __init__(self, flux: ArrayLike, sigma: ArrayLike | None = None, mask: ArrayLike | None = None, labels=None):
        self._arrays = tuple(None if a is None else np.asarray(a) for a in (flux, sigma, mask))
        self.n_spectra, self.n_pixels = self._arrays[0].shape
        self.labels = labels

    def read(self, start: int, stop: int) -> tuple[np.ndarray | None, ...]:
        part = (None if a is None else a[start:stop] for a in self._arrays)
        with np.errstate(over="ignore"):  # what is too large for float32 turns infinite, which is a bad pixel
            types = (np.float32, np.float32, bool)
            return tuple(None if a is None else a.astype(t) for a, t in zip(part, types, strict=True))

    def __repr__(self) -> str:
        return f"{self.n_spectra} arrays"


# -- in memory ----------------------------------------------------------------------
class _Stateless:
    """A source whose draws depend on the generator alone."""

    def state_dict(self) -> dict:
        """Return nothing: draws depend on the generator alone."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Accept nothing but nothing."""
        if state:
            raise ValueError(
                f"the state has {sorted(state)}, but {type(self).__name__} keeps none: the run was begun with "
                "a streamed source; resume it with one, or use another folder"
            )


class ObservedSpectra(_Stateless):
    """Observed spectra in memory, standardised, with weights that hold mask and error.

    A spectrum without any good pixel is left out, with one warning for all.

    Parameters
    ----------
    flux, sigma : array, shape (n, n_pixels)
        Normalised flux and its error. Pixels where either is not finite are
        bad, and so are those with an error of 0 or less, or above ``sigma_max``.
    mask : array of bool, shape (n, n_pixels)
        True = bad pixel.
    settings : `TrainingSettings`
    ignore : array of bool, shape (n_pixels,), optional
        True = pixel that is bad in every spectrum.

    Attributes
    ----------
    flux, weight : tensor, shape (n, n_pixels), float32

    Raises
    ------
    ValueError
        If the shapes differ.
    SpectrumError
        If no spectrum has a good pixel.
    """

    def __init__(
        self,
        flux: ArrayLike,
        sigma: ArrayLike,
        mask: ArrayLike,
        settings: TrainingSettings,
        *,
        ignore: ArrayLike | None = None,
    ):
        shapes = [tuple(np.shape(a)) for a in (flux, sigma, mask)]
        if len(shapes[0]) != 2 or len(set(shapes)) > 1:
            raise ValueError(f"flux, sigma and mask must share a shape (n, n_pixels), but have {shapes}")
        self._fill(ArrayTable(flux, sigma, mask), settings, None, ignore)

    @classmethod
    def from_table(
        cls,
        table: SpectrumTable,
        settings: TrainingSettings,
        *,
        rows: ArrayLike | None = None,
        ignore: ArrayLike | None = None,
    ) -> ObservedSpectra:
        """Read a file into memory, in blocks: 8 bytes per pixel at the peak, as at the end.

        Parameters
        ----------
        table : `SpectrumTable`
            For example a `~cyclestarnet.io.TrainingSet`.
        settings : `TrainingSettings`
        rows : array of int, optional
            Rows to use, for example ``table.rows(Selection())``. Default: all.
        ignore : array of bool, shape (n_pixels,), optional
            True = pixel that is bad in every spectrum.

        Returns
        -------
        `ObservedSpectra`
        """
        source = cls.__new__(cls)
        source._fill(table, settings, rows, ignore)
        return source

    def _fill(self, table, settings, rows, ignore) -> None:
        prepare = observed_preparation(settings, ignore, table.n_pixels)
        self.flux, self.weight = _collect(table, prepare, checked_rows(rows, table))

    def __len__(self) -> int:
        return len(self.flux)

    @property
    def n_pixels(self) -> int:
        """Number of pixels."""
        return self.flux.shape[1]

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random spectra (n, n_pixels) and their weights."""
        rows = torch.randint(len(self), (n,), generator=generator).to(self.flux.device)
        return self.flux[rows], self.weight[rows]

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Given spectra (n, n_pixels) and their weights."""
        rows = rows.to(self.flux.device)
        return self.flux[rows], self.weight[rows]

    def to(self, device) -> ObservedSpectra:
        """Move all spectra to a device."""
        self.flux, self.weight = self.flux.to(device), self.weight.to(device)
        return self


class StoredSynthetic(_Stateless):
    """Synthetic spectra in memory, standardised.

    A spectrum that has a value or label that is not finite is left out, with
    one warning for all.

    Parameters
    ----------
    flux : array, shape (n, n_pixels)
        Normalised flux. Errors are not needed: the settings give one for all.
    labels : array, shape (n, n_labels), or None
    settings : `TrainingSettings`
    label_scale : (array, array), optional
        Mean and standard deviation to standardise the labels by, for example
        those of the training set for a validation set. Default: of ``labels``.

    Attributes
    ----------
    flux : tensor, shape (n, n_pixels), float32
    labels : tensor, shape (n, n_labels), float32, or None
        Standardised.
    label_mean, label_std : tensor, shape (n_labels,), or None
    """

    def __init__(
        self,
        flux: ArrayLike,
        labels: ArrayLike | None,
        settings: TrainingSettings,
        *,
        label_scale: LabelScale | None = None,
    ):
        if np.ndim(flux) != 2 or (labels is not None and (np.ndim(labels) != 2 or len(labels) != len(flux))):
            shapes = [None if a is None else tuple(np.shape(a)) for a in (flux, labels)]
            raise ValueError(f"flux must be (n, n_pixels) and labels (n, n_labels), but they have the shapes {shapes}")
        self._fill(ArrayTable(flux, labels=labels), settings, None, label_scale)

    @classmethod
    def from_table(
        cls,
        table: SpectrumTable,
        settings: TrainingSettings,
        *,
        rows: ArrayLike | None = None,
        label_scale: LabelScale | None = None,
    ) -> StoredSynthetic:
        """Read a file into memory, in blocks; see `ObservedSpectra.from_table`."""
        source = cls.__new__(cls)
        source._fill(table, settings, rows, label_scale)
        return source

    def _fill(self, table, settings, rows, label_scale) -> None:
        rows = checked_rows(rows, table)
        labels, (self.label_mean, self.label_std) = standardised_labels(table, rows, label_scale)
        self.flux, self.labels = (*_collect(table, synthetic_preparation(settings, labels), rows), None)[:2]

    def __len__(self) -> int:
        return len(self.flux)

    @property
    def n_pixels(self) -> int:
        """Number of pixels."""
        return self.flux.shape[1]

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Random spectra (n, n_pixels) and their standardised labels or None."""
        rows = torch.randint(len(self), (n,), generator=generator).to(self.flux.device)
        return self.flux[rows], None if self.labels is None else self.labels[rows]

    def to(self, device) -> StoredSynthetic:
        """Move all spectra to a device."""
        self.flux = self.flux.to(device)
        for name in ("labels", "label_mean", "label_std"):
            tensor = getattr(self, name)
            setattr(self, name, None if tensor is None else tensor.to(device))
        return self


class SyntheticSpectra(_Stateless):
    """Synthetic spectra made on the fly from a pool of labels, which is the label prior.

    Parameters
    ----------
    emulator : callable
        Labels (n, n_labels) to normalised flux (n, n_pixels), on the device of the labels.
    label_pool : array, shape (n_pool, n_labels)
        Labels to draw from.
    settings : `TrainingSettings`
    weights : array, shape (n_pool,), optional
        Relative probabilities of the pool's rows: importance sampling, for
        example towards the labels of the observed stars. Default: all equal.

    Attributes
    ----------
    label_mean, label_std : tensor, shape (n_labels,)
        Of the pool, without weights; labels are standardised by them.

    Raises
    ------
    ValueError
        If the pool is no finite table, or the weights are negative, not
        finite, all zero, or of another number.
    """

    def __init__(
        self,
        emulator: Callable[[Tensor], Tensor],
        label_pool: ArrayLike,
        settings: TrainingSettings,
        *,
        weights: ArrayLike | None = None,
    ):
        self.emulator, self.settings = emulator, settings
        self.label_pool = torch.as_tensor(label_pool, dtype=torch.float32)
        shape = tuple(self.label_pool.shape)
        if len(shape) != 2 or 0 in shape or not torch.isfinite(self.label_pool).all():
            raise ValueError(f"label_pool must be finite, of shape (n_pool, n_labels), but has {shape}, or NaNs")
        self.label_mean, self.label_std = _label_scale(self.label_pool)
        self.weights = None
        if weights is not None:
            self.weights = torch.as_tensor(weights, dtype=torch.float64)  # sums of many float32 drift
            fine = torch.isfinite(self.weights) & (self.weights >= 0)
            if self.weights.shape != shape[:1] or not fine.all() or not self.weights.any():
                raise ValueError(
                    f"weights must be finite, not negative and not all 0, of shape {shape[:1]}, but have the shape "
                    f"{tuple(self.weights.shape)} and {int((~fine).sum())} impossible values"
                )

    def __len__(self) -> int:
        return len(self.label_pool)

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random standardised spectra (n, n_pixels) and their labels, standardised by the pool."""
        if self.weights is None:
            rows = torch.randint(len(self), (n,), generator=generator)
        else:
            rows = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        labels = self.label_pool[rows.to(self.label_pool.device)]
        standardised = (labels - self.label_mean) / self.label_std
        with torch.no_grad():
            return self.render(standardised), standardised

    def render(self, labels: Tensor) -> Tensor:
        """Standardised spectra (n, n_pixels) of standardised labels (n, n_labels), differentiable."""
        flux = self.emulator(self.label_mean + labels * self.label_std)
        return (flux - self.settings.flux_mean) / self.settings.flux_std

    def to(self, device) -> SyntheticSpectra:
        """Draw on a device: with a copy of the emulator there, if it is a module."""
        if isinstance(self.emulator, nn.Module):
            self.emulator = copy.deepcopy(self.emulator).to(device)
        for name in ("label_pool", "label_mean", "label_std"):
            setattr(self, name, getattr(self, name).to(device))
        return self


# -- streamed -------------------------------------------------------------------------
