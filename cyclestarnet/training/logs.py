"""The log of a run: one CSV file with a row for every few iterations, and TensorBoard for those who want it.

A run that was killed goes on from its last checkpoint, which is older than the
last rows of its log. `LossLog.rewind` drops those, so that the file is the one
of a run that was never interrupted.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cyclestarnet.files import write_atomically
from cyclestarnet.networks.checkpoint import load_state

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["LossLog", "RunRecord", "read_log", "read_run"]


class LossLog:
    """Append-only table of a run in ``<folder>/<name>.csv``.

    Parameters
    ----------
    folder : path-like
        Made at the first row.
    tensorboard : bool, optional
        Write the numbers to ``<folder>/tensorboard/<name>``, too.
    name : str, optional
        Of the file, without ``.csv``. Default: ``"losses"``.

    Raises
    ------
    ImportError
        If TensorBoard is asked for and not installed.

    Examples
    --------
    >>> import tempfile
    >>> from cyclestarnet.training.logs import LossLog, read_log
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = LossLog(folder)
    ...     for iteration in (50, 100, 150):
    ...         log.write({"iteration": iteration, "rec_obs": 100 / iteration})
    ...     log.rewind(100)  # the checkpoint is of iteration 100
    ...     read_log(log.path)["rec_obs"]
    array([2., 1.])
    """

    def __init__(self, folder: str | os.PathLike, tensorboard: bool = False, *, name: str = "losses"):
        self.folder, self.name = Path(folder), name
        self._writer_class = _summary_writer() if tensorboard else None
        self._writer: SummaryWriter | None = None
        self._purge: int | None = None
        self._begun = False

    @property
    def path(self) -> Path:
        """The CSV file."""
        return self.folder / f"{self.name}.csv"

    def write(self, row: Mapping[str, float | str | None]) -> None:
        """Append a row.

        The first row that an object writes takes the place of rows of the same
        or later iterations.

        Parameters
        ----------
        row : mapping
            ``iteration`` and values by name. Numbers are rounded to five
            digits; None leaves a cell empty. A name that the file has no
            column for yet gets one.

        Examples
        --------
        ::

            log.write({"iteration": 50, "rec_obs": 1.23})
        """
        if not self._begun:  # an earlier run without a checkpoint may have left rows
            self.rewind(_iteration(row) - 1)
        cells = {name: _cell(name, value) for name, value in row.items()}
        columns = self._columns()
        if columns is None or not set(cells) <= set(columns):
            columns = list(dict.fromkeys([*(columns or ()), *cells]))
            self._rewrite(columns, _rows(self.path))
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, columns, restval="").writerow(cells)
        if self._writer_class is not None:
            self._write_scalars(row, self._writer_class)

    def rewind(self, iteration: int) -> None:
        """Drop the rows of later iterations, and a last line that was cut short; no file is no error.

        Parameters
        ----------
        iteration : int
            The last one whose rows stay.

        Examples
        --------
        ::

            log.rewind(500)  # the checkpoint is of iteration 500
        """
        columns = self._columns()
        if columns is not None:
            self._rewrite(columns, [row for row in _rows(self.path) if int(row["iteration"]) <= iteration])
        self.close()
        self._purge, self._begun = iteration + 1, True

    def close(self) -> None:
        """Write out what TensorBoard still holds; the CSV file is always complete.

        Examples
        --------
        ::

            log.close()
        """
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _columns(self) -> list[str] | None:
        """Names in the file's first line, or None where there is no file."""
        if not self.path.exists():
            return None
        with self.path.open(newline="") as file:
            return next(csv.reader(file), None)

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        def fill(temporary: Path) -> None:
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, columns, restval="")
                writer.writeheader()
                writer.writerows(rows)

        write_atomically(self.path, fill)

    def _write_scalars(self, row: Mapping[str, float | str | None], writer_class: type[SummaryWriter]) -> None:
        if self._writer is None:  # later than the rewind, which says what earlier events to forget
            self._writer = writer_class(str(self.folder / "tensorboard" / self.name), purge_step=self._purge)
        for name, value in row.items():
            if name != "iteration" and isinstance(value, Real):
                self._writer.add_scalar(name, value, _iteration(row))
        self._writer.flush()


def read_log(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the table that a `LossLog` wrote.

    Parameters
    ----------
    path : path-like
        Such as ``run/losses.csv``. A last line that was cut short is left out.

    Returns
    -------
    dict of array
        A column per name, one entry per row: integers for ``iteration``,
        floats (NaN where a cell is empty) for all that are numbers, else text.

    Raises
    ------
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cyclestarnet.training.logs import read_log
    >>> path = Path(tempfile.mkdtemp()) / "scores.csv"
    >>> _ = path.write_text("iteration,score,verdicts\\n500,0.3,\\n1000,,plateau\\n")
    >>> read_log(path)["score"]
    array([0.3, nan])
    """
    with Path(path).open(newline="") as file:
        names = next(csv.reader(file), [])
    rows = _rows(path)
    table: dict[str, np.ndarray] = {}
    for name in names:
        cells = [row[name] for row in rows]
        try:
            table[name] = np.array([float(cell) if cell else np.nan for cell in cells])
        except ValueError:
            table[name] = np.array(cells)
    if "iteration" in table:
        table["iteration"] = table["iteration"].astype(int)
    return table


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What the folder of a training tells.

    Parameters
    ----------
    losses, scores : dict of array
        Tables of `read_log`; empty where there is none.
    iteration : int or None
        Of the checkpoint; None before the first.
    settings : dict
        The checkpoint's `~cyclestarnet.TrainingSettings` as plain data, those of the network under
        ``network``; empty before the first.

    Examples
    --------
    ::

        record = read_run("run")
        print(record.iteration, "of", record.settings["n_iterations"])
    """

    losses: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    iteration: int | None
    settings: dict


def read_run(folder: str | os.PathLike) -> RunRecord:
    """Read logs and settings of a training.

    Parameters
    ----------
    folder : path-like
        That of the run. It may be running.

    Returns
    -------
    `RunRecord`

    Raises
    ------
    FileNotFoundError
        If the folder has neither log nor checkpoint.
    ModelFileError
        If the checkpoint is damaged.

    Examples
    --------
    ::

        record = read_run("run")
        print(record.losses["iteration"][-1], record.losses["rec_obs"][-1])
    """
    folder = Path(folder)
    tables = [folder / f"{name}.csv" for name in ("losses", "scores")]
    checkpoint = folder / "checkpoint.pt"
    if not (tables[0].exists() or checkpoint.exists()):
        raise FileNotFoundError(f"{folder} is no folder of a training: it has neither losses.csv nor checkpoint.pt")
    state = load_state(checkpoint) if checkpoint.exists() else {}
    losses, scores = (read_log(path) if path.exists() else {} for path in tables)
    return RunRecord(losses, scores, state.get("iteration"), state.get("settings", {}))


def _rows(path: str | os.PathLike) -> list[dict[str, str]]:
    """Complete rows of a CSV file; none if there is no file."""
    path = Path(path)
    if not path.exists():
        return []
    with path.open(newline="") as file:
        text = file.read()
    lines = text[: text.rfind("\n") + 1].splitlines()  # a process that is killed can leave half a line
    return [row for row in csv.DictReader(lines) if None not in row.values() and None not in row]


def _iteration(row: Mapping[str, float | str | None]) -> int:
    number = row["iteration"]
    if not isinstance(number, Real):
        raise TypeError(f"iteration must be a number, but is {number!r}")
    return int(number)


def _cell(name: str, value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return str(int(value)) if name == "iteration" else f"{value:.5g}"


def _summary_writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            'a log for TensorBoard needs the package tensorboard: pip install "cyclestarnet[training]"'
        ) from error
    return SummaryWriter
