"""The journal of an unfinished run of many stars, and the folder of a run of several: what was done before a kill is
not done again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cyclestarnet.files import as_json, locked, try_lock, write_atomically

__all__ = ["Journal", "run_folder"]

log = logging.getLogger(__name__)

_JOURNAL = "cyclestarnet-survey-2"
RECORD = "run.json"
LONG = 120  # characters of an option in a message


class Journal:
    """Rows of an unfinished run: lines of JSON, the first of which tells the run.

    A line counts if it is complete and undamaged, which its digest tells, so that
    a kill loses at most the block that is being written, and damage those that it
    hit. JSON of Python keeps every bit of a float, and NaN.

    Parameters
    ----------
    path : path
        Of the file, which is made if it is not there, and locked while the journal is open.
    run : mapping of str to plain values
        What makes this run this run. A file of another run is refused.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from cyclestarnet.journal import Journal
    >>> path = Path(tempfile.mkdtemp()) / "labels.ecsv.partial"
    >>> for _ in range(2):
    ...     with Journal(path, {"model": "apogee-giants"}) as journal:
    ...         print(list(journal.recorded()))
    ...         journal.append([0, 1], [[4500.0], [4600.0]])
    []
    [([0, 1], [[4500.0], [4600.0]])]
    """

    def __init__(self, path: Path, run: Mapping[str, Any]):
        self.path = path
        self._run = as_json({"format": _JOURNAL} | run)

    def __enter__(self):
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)
        if not try_lock(self._file):
            self._file.close()
            raise FileExistsError(f"another process is writing {self.path}; wait, or choose another output")
        return self

    def __exit__(self, *_):
        self._file.close()

    def recorded(self) -> Iterator[tuple[list[int], list[list]]]:
        """Go through the blocks that an earlier call wrote, before the first `append`.

        Yields
        ------
        stars : list of int
            Numbers of the stars of a block.
        rows : list of list
            Their rows, a value per column.

        Raises
        ------
        FileExistsError
            If the file is no journal, or that of another run.

        Examples
        --------
        ::

            for stars, rows in journal.recorded():
                table[stars] = rows
        """
        place, end, n_damaged, n_lost, refusal = 0, 0, 0, 0, None
        with open(self.path, "rb") as file:
            for line in file:
                whole, record = line.endswith(b"\n"), None
                if place == 0:
                    refusal = self._refusal(line)
                    good = whole and refusal is None
                elif good := (record := self._record(line)) is not None and whole:
                    refusal = None  # the first line is damaged: blocks of other runs have other digests
                    yield record["stars"], record["rows"]
                else:
                    n_damaged += 1
                place += len(line)
                if good:
                    end, n_lost = place, n_damaged
        if refusal is not None:
            raise refusal
        if n_lost:
            log.warning("%d blocks of %s are damaged; their stars are fitted anew", n_lost, self.path)
        self._file.truncate(end)  # what a kill has torn
        if end == 0:
            self._write(self._run)

    def append(self, stars: list[int], rows: list[list]) -> None:
        """Add a block, which is on the disk when this returns.

        Parameters
        ----------
        stars : list of int
            Numbers of the stars.
        rows : list of list
            Their rows, a plain value per column.

        Raises
        ------
        OSError
            If the disk is full; the file can be gone on with.

        Examples
        --------
        ::

            journal.append([0, 1], [["star 0", 4500.0], ["star 1", 4600.0]])
        """
        record = {"stars": stars, "rows": rows}
        self._write(json.dumps(record | {"digest": self._digest(record)}))

    def _write(self, text):
        rest = memoryview(f"{text}\n".encode())
        while rest:  # a full disk takes a part, and raises the next time
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def _digest(self, record):
        """Of a block of this run: those of other runs have other digests."""
        return hashlib.sha256(f"{self._run}\n{json.dumps(record)}".encode()).hexdigest()[:16]

    def _record(self, line):
        """What a line of blocks holds; None if it is torn or damaged."""
        with suppress(ValueError, AttributeError, KeyError, TypeError, RecursionError):
            record = json.loads(line)
            if record.pop("digest") == self._digest(record):
                return record
        return None

    def _refusal(self, line):
        """Why a first line is not that of this run; None if it is, or the beginning of it."""
        beginning, theirs = self._run[: self._run.index(",")].encode(), None
        with suppress(ValueError, RecursionError):
            theirs = json.loads(line)
        if not isinstance(theirs, dict):
            if not line.endswith(b"\n") and (line.startswith(beginning) or beginning.startswith(line)):
                return None  # torn by a kill
            return FileExistsError(f"{self.path} is no file of an unfinished run, or damaged; choose another output")
        if not line.startswith(beginning):
            return FileExistsError(f"{self.path} is no file of an unfinished run; choose another output")
        changes = _changes(theirs, json.loads(self._run))
        if not changes:
            return None
        return FileExistsError(
            f"{self.path} holds the rows of another, unfinished run ({'; '.join(changes)}); "
            "make the same call as then to finish it, delete the file to begin anew, or choose another output"
        )


@contextmanager
def run_folder(
    folder: str | os.PathLike[str], run: Mapping[str, Any], files: Sequence[str], *, overwrite: bool = False
) -> Iterator[Path]:
    """Work in a folder of a run that has several parts, each of which resumes by itself.

    A file ``run.json`` in the folder tells the run. Where it tells of the same, the parts that are there are gone on
    with, or taken as they are.

    Parameters
    ----------
    folder : path-like
        Made if it is not there, and locked against other processes within the block.
    run : mapping of str to plain values
        What makes this run this run.
    files : sequence of str
        Patterns of the files and folders of the run, relative to the folder. Others are never touched.
    overwrite : bool, optional
        Remove these if they are of another run. Default: False.

    Yields
    ------
    `~pathlib.Path`
        The folder.

    Raises
    ------
    FileExistsError
        If the folder has such files of another run, and is not to be overwritten, or another process works in it.

    Examples
    --------
    >>> import tempfile
    >>> from cyclestarnet.journal import run_folder
    >>> folder = tempfile.mkdtemp()
    >>> for seed in (0, 0, 1):
    ...     with run_folder(folder, {"seed": seed}, ["numbers.txt"]) as place:
    ...         _ = (place / "numbers.txt").write_text("1 2 3")
    Traceback (most recent call last):
        ...
    FileExistsError: ... has the files of another run (seed: 0 then, 1 now); make the same call as then, ...
    """
    place, told = Path(folder), as_json(dict(run))
    with locked(place, what="works in"):
        record = place / RECORD
        why = _another(record, json.loads(told), [path for pattern in files for path in place.glob(pattern)])
        if why and not overwrite:
            raise FileExistsError(
                f"{place} has the files of another run ({why}); make the same call as then, choose another folder, or "
                "overwrite it"
            )
        if why:
            record.unlink(missing_ok=True)  # first: files without a record are of no run
            for path in [path for pattern in files for path in place.glob(pattern)]:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if not record.exists():
            write_atomically(record, lambda temporary: temporary.write_text(told, encoding="utf-8"))
        yield place


def _another(record, run, files):
    """Why the files of a folder are not those of a run; empty if they are, or there are none."""
    try:
        theirs = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"there is {files[0].name}, but no {RECORD} to tell of which" if files else ""
    except (ValueError, RecursionError):
        theirs = None
    if not isinstance(theirs, dict):
        return f"{RECORD} is damaged"
    return "; ".join(_changes(theirs, run))


def _changes(then, now):
    """What differs between two runs."""
    changes = [_change(key, then.get(key), now.get(key)) for key in then | now]
    return [change for change in changes if change]


def _change(key, then, now):
    """What differs between two runs, or None."""
    if json.dumps(then, sort_keys=True) == json.dumps(now, sort_keys=True):  # NaN equals NaN
        return None
    if isinstance(then, list) and isinstance(now, list):
        if len(then) != len(now):
            return f"{key}: {len(then)} then, {len(now)} now"
        k = next(k for k, (a, b) in enumerate(zip(then, now, strict=True)) if repr(a) != repr(b))
        return f"{key}: number {k} was {_short(then[k])} then, is {_short(now[k])} now"
    return f"{key}: {_short(then)} then, {_short(now)} now"


def _short(value):
    """Its beginning and its end, where the name of a file is."""
    text = repr(value)
    return text if len(text) <= LONG else f"{text[: LONG // 2]}…{text[-LONG // 2 :]}"
