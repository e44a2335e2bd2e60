"""The journal of an unfinished run of many stars: what was done before a kill is not done again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cyclestarnet.files import as_json

__all__ = ["Journal"]

_JOURNAL = "cyclestarnet-survey-1"


class Journal:
    """Rows of an unfinished run: lines of JSON, the first of which tells the run.

    A line counts once it is complete, so that a kill loses at most the block
    that is being written. JSON of Python keeps every bit of a float, and NaN.

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
        try:
            _lock(self._file)
        except BaseException:
            self._file.close()
            raise
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
        end = 0
        with open(self.path, "rb") as file:
            for line in file:
                record = _parsed(line)
                if end == 0:
                    self._check(line, record)
                if record is None:  # torn by a kill
                    break
                if end:
                    yield record["stars"], record["rows"]
                end += len(line)
        self._file.truncate(end)
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
        self._write(json.dumps({"stars": stars, "rows": rows}))

    def _write(self, text):
        rest = memoryview(f"{text}\n".encode())
        while rest:  # a full disk takes a part, and raises the next time
            rest = rest[self._file.write(rest) :]
        os.fsync(self._file.fileno())

    def _check(self, line, theirs):
        beginning = self._run[: self._run.index(",")].encode()
        if not (line.startswith(beginning) or beginning.startswith(line)):
            raise FileExistsError(f"{self.path} is no file of an unfinished run; choose another output")
        ours = json.loads(self._run)
        changes = [_change(key, theirs.get(key), ours.get(key)) for key in theirs | ours] if theirs else []
        if any(changes):
            raise FileExistsError(
                f"{self.path} holds the rows of another, unfinished run ({'; '.join(filter(None, changes))}); "
                "make the same call as then to finish it, delete the file to begin anew, or choose another output"
            )


def _parsed(line):
    with suppress(ValueError):
        return json.loads(line) if line.endswith(b"\n") else None


def _change(key, then, now):
    """What differs between two runs, or None."""
    if json.dumps(then, sort_keys=True) == json.dumps(now, sort_keys=True):  # NaN equals NaN
        return None
    if isinstance(then, list) and isinstance(now, list):
        if len(then) != len(now):
            return f"{key}: {len(then)} then, {len(now)} now"
        k = next(k for k, (a, b) in enumerate(zip(then, now, strict=True)) if repr(a) != repr(b))
        return f"{key}: number {k} was {then[k]!r:.80} then, is {now[k]!r:.80} now"
    return f"{key}: {then!r:.80} then, {now!r:.80} now"


def _lock(file):
    """Keep a second process from writing to the same file; the lock dies with its owner."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FileExistsError(f"another process is writing {file.name}; wait, or choose another output") from None
    except (ImportError, OSError):  # Windows, or a file system without locks
        pass
