"""The journal of an unfinished run of many stars: what was done before a kill is not done again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cyclestarnet.files import as_json, try_lock

__all__ = ["Journal"]

log = logging.getLogger(__name__)

_JOURNAL = "cyclestarnet-survey-2"
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
        ours = json.loads(self._run)
        changes = [_change(key, theirs.get(key), ours.get(key)) for key in theirs | ours]
        if not any(changes):
            return None
        return FileExistsError(
            f"{self.path} holds the rows of another, unfinished run ({'; '.join(filter(None, changes))}); "
            "make the same call as then to finish it, delete the file to begin anew, or choose another output"
        )


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
