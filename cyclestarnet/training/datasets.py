"""Where the spectra of both domains come from, standardised for the networks.

Every source does what `Source` says. Observed ones hold a spectrum and its
weight per pixel (standardised inverse error, 0 = bad), synthetic ones a
spectrum and its labels. Sets that fit into memory are drawn from at random;
those that do not are streamed from their file in a shuffled order
(`cyclestarnet.training.streams`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.tables import (
    ArrayTable,
    LabelScale,
    Prepare,
    SpectrumTable,
    checked_rows,
    label_scale,
    observed_preparation,
    standardised_labels,
    survey,
    synthetic_preparation,
)

__all__ = [
    "ObservedSource",
    "ObservedSpectra",
    "RenderedSpectra",
    "Source",
    "StoredSynthetic",
    "SyntheticSource",
    "SyntheticSpectra",
]

Device = torch.device | str

CHANGED_AT_ONCE = 3  # a few, so that what a single one does is not lost among many


class Source(Protocol):
    """What a trainer asks of its data, whatever their domain.

    Examples
    --------
    ::

        source.to("cuda")
        state = source.state_dict()  # goes into a checkpoint
        source.load_state_dict(state)  # and the next draw is the one that came then
    """

    def __len__(self) -> int: ...

    def state_dict(self) -> dict:
        """What the next draw depends on besides the generator, in plain values.

        Examples
        --------
        ::

            state = source.state_dict()
        """

    def load_state_dict(self, state: dict) -> None:
        """Go to where a state was taken.

        Parameters
        ----------
        state : dict
            Of `state_dict`.

        Examples
        --------
        ::

            source.load_state_dict(state)
        """

    def to(self, device: Device) -> Self:
        """Let `draw` give tensors on a device.

        Parameters
        ----------
        device : `torch.device` or str
            Where they shall be.

        Returns
        -------
        `Source`
            Itself.

        Examples
        --------
        ::

            source.to("cuda")
        """


class ObservedSource(Source, Protocol):
    """A `Source` of observed spectra.

    Examples
    --------
    ::

        flux, weight = source.draw(8, generator)
    """

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw spectra.

        Parameters
        ----------
        n : int
            How many.
        generator : `torch.Generator`, optional
            One of the CPU, wherever the spectra are. Streams have an order and do not use it.

        Returns
        -------
        flux, weight : tensor, shape (n, n_pixels), float32
            Standardised spectra, and the inverse of their errors, 0 for bad pixels.

        Examples
        --------
        ::

            flux, weight = source.draw(8, torch.Generator().manual_seed(0))
        """


class SyntheticSource(Source, Protocol):
    """A `Source` of synthetic spectra.

    Attributes
    ----------
    label_mean, label_std : tensor, shape (n_labels,), or None
        What labels are standardised by; None if there are none.

    Examples
    --------
    ::

        flux, labels = source.draw(8, generator)
    """

    @property
    def label_mean(self) -> Tensor | None: ...

    @property
    def label_std(self) -> Tensor | None: ...

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Draw spectra.

        Parameters
        ----------
        n : int
            How many.
        generator : `torch.Generator`, optional
            One of the CPU, wherever the spectra are. Streams have an order and do not use it.

        Returns
        -------
        flux : tensor, shape (n, n_pixels), float32
            Standardised spectra.
        labels : tensor, shape (n, n_labels), float32, or None
            Their standardised labels, if there are any.

        Examples
        --------
        ::

            flux, labels = source.draw(8, torch.Generator().manual_seed(0))
        """


# -- in memory ---------------------------------------------------------------------
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
    settings : `~cyclestarnet.TrainingSettings`
        Which pixels count, and how flux is standardised.
    ignore : array of bool, shape (n_pixels,), optional
        True = pixel that is bad in every spectrum.

    Attributes
    ----------
    flux, weight : tensor, shape (n, n_pixels), float32
        Standardised flux, and the inverse of its error, 0 for bad pixels.

    Raises
    ------
    ValueError
        If the shapes differ.
    SpectrumError
        If no spectrum has a good pixel.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import TrainingSettings
    >>> from cyclestarnet.training.datasets import ObservedSpectra
    >>> settings = TrainingSettings(flux_mean=0.9, flux_std=0.1)
    >>> flux = np.array([[0.8, 0.9], [0.9, np.nan]])
    >>> observed = ObservedSpectra(flux, np.full((2, 2), 0.02), np.zeros((2, 2), bool), settings)
    >>> observed.weight
    tensor([[5., 5.],
            [5., 0.]])
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
        table : `~cyclestarnet.training.tables.SpectrumTable`
            For example a `~cyclestarnet.io.TrainingSet`.
        settings : `~cyclestarnet.TrainingSettings`
            Which pixels count, and how flux is standardised.
        rows : array of int, optional
            Rows to use, for example ``table.rows(Selection())``. Default: all.
        ignore : array of bool, shape (n_pixels,), optional
            True = pixel that is bad in every spectrum. Default: there is none.

        Returns
        -------
        `ObservedSpectra`

        Raises
        ------
        SpectrumError
            If no spectrum has a good pixel.

        Examples
        --------
        ::

            observed = ObservedSpectra.from_table(TrainingSet("observed.h5"), TrainingSettings())
        """
        source = cls.__new__(cls)
        source._fill(table, settings, rows, ignore)
        return source

    def _fill(
        self, table: SpectrumTable, settings: TrainingSettings, rows: ArrayLike | None, ignore: ArrayLike | None
    ) -> None:
        prepare = observed_preparation(settings, ignore, table.n_pixels)
        self.flux, self.weight = _collect(table, prepare, checked_rows(rows, table))

    def __len__(self) -> int:
        return len(self.flux)

    @property
    def n_pixels(self) -> int:
        """Number of pixels."""
        return self.flux.shape[1]

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw random spectra, the same one perhaps twice.

        Parameters
        ----------
        n : int
            How many.
        generator : `torch.Generator`, optional
            One of the CPU. Default: that of torch.

        Returns
        -------
        flux, weight : tensor, shape (n, n_pixels)
            Standardised spectra, and the inverse of their errors, 0 for bad pixels.

        Examples
        --------
        ::

            flux, weight = observed.draw(8, torch.Generator().manual_seed(0))
        """
        rows = torch.randint(len(self), (n,), generator=generator).to(self.flux.device)
        return self.flux[rows], self.weight[rows]

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give certain spectra.

        Parameters
        ----------
        rows : tensor of int, shape (n,)
            Their numbers among those that could be used.

        Returns
        -------
        flux, weight : tensor, shape (n, n_pixels)
            As of `draw`.

        Examples
        --------
        ::

            flux, weight = observed.rows(torch.arange(3))
        """
        rows = rows.to(self.flux.device)
        return self.flux[rows], self.weight[rows]

    def to(self, device: Device) -> ObservedSpectra:
        """Move all spectra to a device.

        Parameters
        ----------
        device : `torch.device` or str
            Where they shall be.

        Returns
        -------
        `ObservedSpectra`
            Itself.

        Examples
        --------
        ::

            observed.to("cuda")
        """
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
        Labels in any units; None: they are not known.
    settings : `~cyclestarnet.TrainingSettings`
        How flux is standardised.
    label_scale : (array, array), optional
        Mean and standard deviation to standardise the labels by, for example
        those of the training set for a validation set. Default: of ``labels``.

    Attributes
    ----------
    flux : tensor, shape (n, n_pixels), float32
        Standardised.
    labels : tensor, shape (n, n_labels), float32, or None
        Standardised.
    label_mean, label_std : tensor, shape (n_labels,), or None
        What labels were standardised by.

    Raises
    ------
    ValueError
        If the shapes do not fit each other.
    SpectrumError
        If no spectrum is finite.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet import TrainingSettings
    >>> from cyclestarnet.training.datasets import StoredSynthetic
    >>> synthetic = StoredSynthetic(np.ones((3, 5)), [[4000.0], [5000.0], [6000.0]], TrainingSettings())
    >>> synthetic.labels[:, 0], synthetic.label_mean
    (tensor([-1.,  0.,  1.]), tensor([5000.]))
    """

    def __init__(
        self,
        flux: ArrayLike,
        labels: ArrayLike | None,
        settings: TrainingSettings,
        *,
        label_scale: LabelScale | None = None,
    ):
        shapes = [None if a is None else np.shape(a) for a in (flux, labels)]
        if np.ndim(flux) != 2 or (
            labels is not None and (np.ndim(labels) != 2 or np.shape(labels)[0] != np.shape(flux)[0])
        ):
            raise ValueError(f"flux must be (n, n_pixels) and labels (n, n_labels), but they have the shapes {shapes}")
        self._fill(ArrayTable(flux, labels=None if labels is None else np.asarray(labels)), settings, None, label_scale)

    @classmethod
    def from_table(
        cls,
        table: SpectrumTable,
        settings: TrainingSettings,
        *,
        rows: ArrayLike | None = None,
        label_scale: LabelScale | None = None,
    ) -> StoredSynthetic:
        """Read a file into memory, in blocks; see `ObservedSpectra.from_table`.

        Parameters
        ----------
        table : `~cyclestarnet.training.tables.SpectrumTable`
            For example a `~cyclestarnet.io.TrainingSet` with ``domain="synthetic"``.
        settings : `~cyclestarnet.TrainingSettings`
            How flux is standardised.
        rows : array of int, optional
            Rows to use. Default: all.
        label_scale : (array, array), optional
            Mean and standard deviation to standardise the labels by. Default: those of ``rows``.

        Returns
        -------
        `StoredSynthetic`

        Raises
        ------
        SpectrumError
            If no spectrum is finite.

        Examples
        --------
        ::

            table = TrainingSet("synthetic.h5", domain="synthetic")
            synthetic = StoredSynthetic.from_table(table, TrainingSettings())
        """
        source = cls.__new__(cls)
        source._fill(table, settings, rows, label_scale)
        return source

    def _fill(
        self, table: SpectrumTable, settings: TrainingSettings, rows: ArrayLike | None, scale: LabelScale | None
    ) -> None:
        chosen = checked_rows(rows, table)
        labels, (self.label_mean, self.label_std) = standardised_labels(table, chosen, scale)
        self.flux, *found = _collect(table, synthetic_preparation(settings, labels), chosen)
        self.labels: Tensor | None = found[0] if found else None

    def __len__(self) -> int:
        return len(self.flux)

    @property
    def n_pixels(self) -> int:
        """Number of pixels."""
        return self.flux.shape[1]

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Draw random spectra, the same one perhaps twice.

        Parameters
        ----------
        n : int
            How many.
        generator : `torch.Generator`, optional
            One of the CPU. Default: that of torch.

        Returns
        -------
        flux : tensor, shape (n, n_pixels)
            Standardised spectra.
        labels : tensor, shape (n, n_labels), or None
            Their standardised labels, if there are any.

        Examples
        --------
        ::

            flux, labels = synthetic.draw(8, torch.Generator().manual_seed(0))
        """
        rows = torch.randint(len(self), (n,), generator=generator).to(self.flux.device)
        return self.flux[rows], None if self.labels is None else self.labels[rows]

    def to(self, device: Device) -> StoredSynthetic:
        """Move all spectra and labels to a device.

        Parameters
        ----------
        device : `torch.device` or str
            Where they shall be.

        Returns
        -------
        `StoredSynthetic`
            Itself.

        Examples
        --------
        ::

            synthetic.to("cuda")
        """
        """Move all spectra to a device.

        Parameters
        ----------
        device : `torch.device` or str
            Where they shall be.

        Returns
        -------
        `ObservedSpectra`
            Itself.

        Examples
        --------
        ::

            observed.to("cuda")
        """
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
        Labels to draw from, in the units of the emulator; finite.
    settings : `~cyclestarnet.TrainingSettings`
        How flux is standardised.
    weights : array, shape (n_pool,), optional
        Relative probabilities of the pool's rows: importance sampling, for
        example towards the labels of the observed stars. Default: all equal.
    label_names : sequence of str, optional
        Names of the labels, by which `changed` knows them. Default: none.

    Attributes
    ----------
    label_mean, label_std : tensor, shape (n_labels,)
        Of the pool, without weights; labels are standardised by them.

    Raises
    ------
    ValueError
        If the pool is no finite table, or the weights are negative, not
        finite, all zero, or of another number.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet import TrainingSettings
    >>> from cyclestarnet.training.datasets import SyntheticSpectra
    >>> def emulator(labels):
    ...     return 1 - 1e-4 * labels.expand(-1, 5)
    >>> synthetic = SyntheticSpectra(emulator, [[4000.0], [5000.0], [6000.0]], TrainingSettings())
    >>> flux, labels = synthetic.draw(4, torch.Generator().manual_seed(0))
    >>> flux.shape, labels.unique()
    (torch.Size([4, 5]), tensor([-1.,  1.]))
    """

    def __init__(
        self,
        emulator: Callable[[Tensor], Tensor],
        label_pool: ArrayLike,
        settings: TrainingSettings,
        *,
        weights: ArrayLike | None = None,
        label_names: Sequence[str] | None = None,
    ):
        self.emulator, self.settings = emulator, settings
        self.label_pool = torch.as_tensor(label_pool, dtype=torch.float32)
        self.label_names = None if label_names is None else tuple(label_names)
        shape = tuple(self.label_pool.shape)
        if len(shape) != 2 or 0 in shape or not torch.isfinite(self.label_pool).all():
            raise ValueError(f"label_pool must be finite, of shape (n_pool, n_labels), but has {shape}, or NaNs")
        self.label_mean, self.label_std = label_scale(self.label_pool)
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
        """Draw labels from the pool, and make their spectra.

        Parameters
        ----------
        n : int
            How many.
        generator : `torch.Generator`, optional
            One of the CPU. Default: that of torch.

        Returns
        -------
        flux : tensor, shape (n, n_pixels)
            Standardised spectra, without gradients.
        labels : tensor, shape (n, n_labels)
            Their labels, standardised by the pool.

        Examples
        --------
        ::

            flux, labels = synthetic.draw(8, torch.Generator().manual_seed(0))
        """
        if self.weights is None:
            rows = torch.randint(len(self), (n,), generator=generator)
        else:
            rows = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        labels = self.label_pool[rows.to(self.label_pool.device)]
        standardised = (labels - self.label_mean) / self.label_std
        with torch.no_grad():
            return self.render(standardised), standardised

    def changed(self, labels: Tensor, names: Sequence[str], generator: torch.Generator | None = None) -> Tensor:
        """Change a few of some labels by about as much as they scatter, within the range of the pool.

        Parameters
        ----------
        labels : tensor, shape (n, n_labels)
            Standardised by the pool.
        names : sequence of str
            Labels that may change; up to three of them do in each row.
        generator : `torch.Generator`, optional
            One of the CPU. Default: that of torch.

        Returns
        -------
        tensor, shape (n, n_labels)
            Standardised by the pool.

        Raises
        ------
        ValueError
            If the labels of the pool have no names, or not these.

        Examples
        --------
        ::

            flux, labels = synthetic.draw(8, generator)
            flux_of_others = synthetic.render(synthetic.changed(labels, ["mg_h", "k_h"], generator))
        """
        self.check_names(names)
        columns = torch.tensor([(self.label_names or ()).index(name) for name in names])
        order = torch.rand((len(labels), len(columns)), generator=generator).argsort(dim=1)
        steps = torch.randn((len(labels), len(columns)), generator=generator) * (order < CHANGED_AT_ONCE)
        change = torch.zeros(labels.shape)
        change[:, columns] = steps
        lowest, highest = (
            (edge - self.label_mean) / self.label_std for edge in (self.label_pool.amin(0), self.label_pool.amax(0))
        )
        return torch.clamp(labels + change.to(labels), lowest, highest)

    def check_names(self, names: Sequence[str]) -> None:
        """Check that the pool has labels of these names.

        Parameters
        ----------
        names : sequence of str
            As for `changed`.

        Raises
        ------
        ValueError
            If it has not, or if its labels have no names.

        Examples
        --------
        ::

            synthetic.check_names(["mg_h"])
        """
        known = self.label_names or ()
        strange = [name for name in names if name not in known]
        if strange:
            raise ValueError(
                f"response_labels must be labels of the synthetic spectra ({', '.join(known) or 'without names'}), "
                f"but {', '.join(strange)} is none"
            )

    def render(self, labels: Tensor) -> Tensor:
        """Make spectra of given labels, differentiable.

        Parameters
        ----------
        labels : tensor, shape (n, n_labels)
            Standardised by the pool.

        Returns
        -------
        tensor, shape (n, n_pixels)
            Standardised spectra.

        Examples
        --------
        ::

            flux = synthetic.render(torch.zeros(1, 3))  # at the mean labels of the pool
        """
        flux = self.emulator(self.label_mean + labels * self.label_std)
        return (flux - self.settings.flux_mean) / self.settings.flux_std

    def to(self, device: Device) -> SyntheticSpectra:
        """Draw on a device: with a copy of the emulator there, if it is a module.

        Parameters
        ----------
        device : `torch.device` or str
            Where spectra shall be made.

        Returns
        -------
        `SyntheticSpectra`
            Itself.

        Examples
        --------
        ::

            synthetic.to("cuda")
        """
        if isinstance(self.emulator, nn.Module):
            self.emulator = copy.deepcopy(self.emulator).to(device)
        for name in ("label_pool", "label_mean", "label_std"):
            setattr(self, name, getattr(self, name).to(device))
        return self


class RenderedSpectra(_Stateless):
    """Spectra that an emulator makes on the fly, all with one error: an `ObservedSource` among others.

    Parameters
    ----------
    synthetic : `SyntheticSpectra`
        The emulator, and the labels to draw from.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet import TrainingSettings
    >>> from cyclestarnet.training.datasets import RenderedSpectra, SyntheticSpectra
    >>> settings = TrainingSettings(flux_std=0.1, synthetic_sigma=0.005)
    >>> synthetic = SyntheticSpectra(lambda labels: labels.expand(-1, 3), [[0.9], [1.0]], settings)
    >>> flux, weight = RenderedSpectra(synthetic).draw(2)
    >>> weight
    tensor([[20., 20., 20.],
            [20., 20., 20.]])
    """

    def __init__(self, synthetic: SyntheticSpectra):
        self.synthetic = synthetic

    def __len__(self) -> int:
        return len(self.synthetic)

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw labels, and make their spectra.

        Parameters
        ----------
        n : int
            How many.
        generator : `torch.Generator`, optional
            One of the CPU. Default: that of torch.

        Returns
        -------
        flux, weight : tensor, shape (n, n_pixels)
            Standardised spectra, and the inverse of the error of synthetic spectra.

        Examples
        --------
        ::

            flux, weight = rendered.draw(8, torch.Generator().manual_seed(0))
        """
        flux, _ = self.synthetic.draw(n, generator)
        settings = self.synthetic.settings
        return flux, torch.full_like(flux, settings.flux_std / settings.synthetic_sigma)

    def to(self, device: Device) -> RenderedSpectra:
        """Draw on a device.

        Parameters
        ----------
        device : `torch.device` or str
            Where spectra shall be made.

        Returns
        -------
        `RenderedSpectra`
            Itself.

        Examples
        --------
        ::

            rendered.to("cuda")
        """
        self.synthetic.to(device)
        return self
