"""Sources of training spectra that are read from disk as they are needed, in an order that a resumed run repeats."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.tables import (
    Arrays,
    LabelScale,
    Prepare,
    SpectrumTable,
    checked_rows,
    observed_preparation,
    read_block,
    split_into_blocks,
    standardised_labels,
    survey,
    synthetic_preparation,
)

__all__ = ["StreamedSpectra", "StreamedSynthetic"]


class _Order:
    """The order in which the rows of a table come, epoch after epoch: a function of ``key`` and the epoch alone.

    The table's blocks are permuted; each run of them that holds about
    ``window_rows`` rows is a window, whose rows are permuted. Windows are
    numbered on through the epochs.
    """

    def __init__(self, blocks: list[np.ndarray], per_window: int, key: tuple[int, ...]):
        self._blocks, self._key = blocks, key
        self._sizes = np.array([len(block) for block in blocks])
        self._starts = np.arange(0, len(blocks), per_window)
        self._per_window = per_window
        self.n_rows = int(self._sizes.sum())

    def _permuted_blocks(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([*self._key, epoch]).permutation(len(self._blocks))

    def locate(self, position: int) -> tuple[int, int]:
        """Window that holds the spectrum at ``position``, and the place in it."""
        epoch, within = divmod(position, self.n_rows)
        ends = np.cumsum(np.add.reduceat(self._sizes[self._permuted_blocks(epoch)], self._starts))
        window = int(np.searchsorted(ends, within, side="right"))
        return epoch * len(self._starts) + window, within - int(ends[window - 1] if window else 0)

    def window(self, number: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Rows of each block of a window, and where in the window the rows of all blocks, joined, go."""
        epoch, window = divmod(number, len(self._starts))
        first = window * self._per_window
        blocks = [self._blocks[k] for k in self._permuted_blocks(epoch)[first : first + self._per_window]]
        places = np.random.default_rng([*self._key, epoch, window]).permutation(sum(map(len, blocks)))
        return blocks, places


class _Cancelled(Exception):
    """Nobody wants the window any more."""


class _ReadAhead(threading.Thread):
    """Loads one window in the background."""

    def __init__(self, load: Callable[[Callable[[], bool]], Arrays], number: int):
        super().__init__(daemon=True, name=f"window {number}")
        self.number, self.cancelled = number, False
        self._load = load
        self._arrays: Arrays | None = None
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._arrays = self._load(lambda: self.cancelled)
        except Exception as error:  # whatever it is, it belongs to the one who asks for the window
            self._error = error

    def result(self) -> Arrays | None:
        """Wait for the window. None if a fork left the thread behind in the parent process."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._arrays


class _Reader:
    """The window that is drawn from, and the next one, read meanwhile."""

    def __init__(self, table: SpectrumTable, prepare: Prepare, order: _Order):
        self._table, self._prepare, self._order = table, prepare, order
        self._current: tuple[int, Arrays] | None = None
        self._ahead: _ReadAhead | None = None

    def window(self, number: int) -> Arrays:
        if self._current is None or self._current[0] != number:
            if self._ahead is None or self._ahead.number != number:
                self.stop()
                self._ahead = self._started(number)
            ahead, self._ahead = self._ahead, None
            arrays = ahead.result()
            self._current = (number, self._load(number) if arrays is None else arrays)
            self._ahead = self._started(number + 1)
        return self._current[1]

    def stop(self) -> None:
        """Stop reading and free the windows. Waits for one block at most, and not for ever if a disk hangs."""
        ahead, self._ahead, self._current = self._ahead, None, None
        if ahead is not None:
            ahead.cancelled = True
            ahead.join(timeout=10)

    def _started(self, number: int) -> _ReadAhead:
        ahead = _ReadAhead(lambda cancelled: self._load(number, cancelled), number)
        ahead.start()
        return ahead

    def _load(self, number: int, cancelled: Callable[[], bool] = lambda: False) -> Arrays:
        blocks, places = self._order.window(number)
        window: Arrays = ()
        n = 0
        for block in blocks:
            if cancelled():
                raise _Cancelled
            _, arrays = read_block(self._table, self._prepare, block)
            window = window or tuple(np.empty((len(places), a.shape[1]), dtype=np.float32) for a in arrays)
            for whole, part in zip(window, arrays, strict=True):
                whole[places[n : n + len(block)]] = part
            n += len(block)
        return window


class _Streamed:
    """The common part of both streamed sources."""

    _domain: int  # part of the key of the order: two files of one length must not be paired row by row

    def _stream(self, table: SpectrumTable, prepare: Prepare, rows: np.ndarray, seed: int, window_rows: int) -> None:
        if window_rows < 1:
            raise ValueError(f"window_rows must be positive, but is {window_rows}")
        usable = np.concatenate([block for block, _ in survey(table, prepare, rows)])
        per_window = max(round(window_rows / table.block_rows), 1)
        self._order = _Order(split_into_blocks(usable, table), per_window, (seed, self._domain))
        self._identity = {"seed": seed, "n_spectra": len(usable), "window": per_window, "block": table.block_rows}
        self._reader = _Reader(table, prepare, self._order)
        # Also at the interpreter's exit, while its threads are still whole; the reader does not know this object.
        weakref.finalize(self, self._reader.stop)
        self._position, self._device = 0, torch.device("cpu")
        self.n_pixels = table.n_pixels

    def __len__(self) -> int:
        return self._order.n_rows

    def _take(self, n: int) -> list[Tensor]:
        """The next n rows; nothing moves on if they cannot be read."""
        pieces, position = [], self._position
        while n > 0:
            number, place = self._order.locate(position)
            window = self._reader.window(number)
            part = [array[place : place + n] for array in window]
            pieces.append(part)
            n, position = n - len(part[0]), position + len(part[0])
        self._position = position
        # Joined copies: a view would keep its whole window in memory.
        return [torch.from_numpy(np.concatenate(parts)).to(self._device) for parts in zip(*pieces, strict=True)]

    def state_dict(self) -> dict:
        """Position in the stream, and what the order depends on."""
        return {"position": self._position, **self._identity}

    def load_state_dict(self, state: dict) -> None:
        """Go to the position of a state.

        Raises
        ------
        ValueError
            If the state is that of another order: other seed, rows or windows.
        """
        different = [name for name, value in self._identity.items() if state.get(name) != value]
        if different:
            found = {name: state.get(name) for name in different}
            here = {name: self._identity[name] for name in different}
            raise ValueError(f"the state is that of another stream of spectra: {found}, but here {here}")
        if type(state.get("position")) is not int or state["position"] < 0:
            raise ValueError(f"the position of a stream must be a whole number, but is {state.get('position')!r:.40}")
        self._position = state["position"]

    def to(self, device: torch.device | str) -> Self:
        """Let `draw` move its batches to a device."""
        self._device = torch.device(device)
        return self

    def close(self) -> None:
        """Stop the thread and free the windows. A later draw starts again."""
        self._reader.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class StreamedSpectra(_Streamed):
    """Observed spectra read from a file in shuffled order, for sets that do not fit into memory.

    Every spectrum comes once per epoch. The order follows from the seed of the
    settings and the epoch alone: the file's blocks are shuffled, and then the
    rows within windows of several blocks. So the position is one number, and a
    resumed run continues exactly. A thread reads the next window while one is
    drawn from; memory holds these two.

    The constructor goes through the file once, to find damage before the
    training starts and to leave out spectra without a good pixel, with one
    warning for all.

    Parameters
    ----------
    table : `~cyclestarnet.training.tables.SpectrumTable`
        For example a `~cyclestarnet.io.TrainingSet`.
    settings : `~cyclestarnet.TrainingSettings`
        Which pixels count, how flux is standardised, and the seed of the order.
    rows : array of int, optional
        Rows to use, for example ``table.rows(Selection())``. Default: all.
    ignore : array of bool, shape (n_pixels,), optional
        True = pixel that is bad in every spectrum.
    window_rows : int, optional
        Spectra of a window, rounded to whole blocks. Default: 2048 (117 MB
        with 7167 pixels). More are shuffled better if neighbours in the file
        are alike.

    Raises
    ------
    SpectrumError
        If no spectrum has a good pixel.

    Examples
    --------
    >>> import numpy as np
    >>> from cyclestarnet.training.settings import TrainingSettings
    >>> from cyclestarnet.training.streams import StreamedSpectra
    >>> class Flat:
    ...     n_spectra, n_pixels, block_rows, labels = 100, 7, 10, None
    ...
    ...     def read(self, start, stop):
    ...         flux = np.ones((stop - start, 7), dtype=np.float32)
    ...         return flux, 0.01 * flux, flux == 0
    >>> with StreamedSpectra(Flat(), TrainingSettings()) as source:
    ...     flux, weight = source.draw(8)
    >>> weight[0, 0]  # flux_std / 0.01
    tensor(5.1809)
    """

    _domain = 0

    def __init__(
        self,
        table: SpectrumTable,
        settings: TrainingSettings,
        *,
        rows: ArrayLike | None = None,
        ignore: ArrayLike | None = None,
        window_rows: int = 2048,
    ):
        prepare = observed_preparation(settings, ignore, table.n_pixels)
        self._stream(table, prepare, checked_rows(rows, table), settings.seed, window_rows)

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Give the next spectra.

        Parameters
        ----------
        n : int
            How many.
        generator : `torch.Generator`, optional
            Not used: the order is that of the stream.

        Returns
        -------
        flux, weight : tensor, shape (n, n_pixels), float32
            Standardised spectra, and the inverse of their errors, 0 for bad pixels.

        Raises
        ------
        OSError
            If the file cannot be read any more. The position stays as it was.

        Examples
        --------
        ::

            flux, weight = source.draw(8)
        """
        flux, weight = self._take(n)
        return flux, weight


class StreamedSynthetic(_Streamed):
    """Synthetic spectra read from a file in shuffled order; see `StreamedSpectra`.

    Left out are spectra that have a value or label that is not finite.

    Parameters
    ----------
    table : `~cyclestarnet.training.tables.SpectrumTable`
        For example a `~cyclestarnet.io.TrainingSet` with ``domain="synthetic"``.
    settings : `~cyclestarnet.TrainingSettings`
        How flux is standardised, and the seed of the order.
    rows : array of int, optional
        Rows to use. Default: all.
    label_scale : (array, array), optional
        Mean and standard deviation to standardise the labels by. Default: of
        the labels of ``rows``.
    window_rows : int, optional
        Spectra of a window, rounded to whole blocks. Default: 2048.

    Attributes
    ----------
    label_mean, label_std : tensor, shape (n_labels,), or None
        What labels are standardised by. None if the table has no labels.

    Raises
    ------
    SpectrumError
        If no spectrum is finite.

    Examples
    --------
    ::

        table = TrainingSet("synthetic.h5", domain="synthetic")
        with StreamedSynthetic(table, TrainingSettings()) as source:
            flux, labels = source.draw(8)
    """

    _domain = 1

    def __init__(
        self,
        table: SpectrumTable,
        settings: TrainingSettings,
        *,
        rows: ArrayLike | None = None,
        label_scale: LabelScale | None = None,
        window_rows: int = 2048,
    ):
        chosen = checked_rows(rows, table)
        labels, (self.label_mean, self.label_std) = standardised_labels(table, chosen, label_scale)
        self._stream(table, synthetic_preparation(settings, labels), chosen, settings.seed, window_rows)

    def draw(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Give the next spectra.

        Parameters
        ----------
        n : int
            How many.
        generator : `torch.Generator`, optional
            Not used: the order is that of the stream.

        Returns
        -------
        flux : tensor, shape (n, n_pixels), float32
            Standardised spectra.
        labels : tensor, shape (n, n_labels), float32, or None
            Their standardised labels, if there are any.

        Raises
        ------
        OSError
            If the file cannot be read any more. The position stays as it was.

        Examples
        --------
        ::

            flux, labels = source.draw(8)
        """
        flux, *labels = self._take(n)
        return flux, labels[0] if labels else None
