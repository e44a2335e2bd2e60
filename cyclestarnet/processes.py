"""Work in several processes of this machine.

They are always spawned, never forked: a forked copy of a process that has used
several threads may hang for ever, and a spawned one knows no state but what it
is handed.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from cyclestarnet.exceptions import CycleStarNetError

__all__ = ["run_in_processes"]

NO_GUARD = 'In a script, a call with several workers must stand under: if __name__ == "__main__":'

Key = TypeVar("Key")


def run_in_processes(
    function: Callable[[Any], Any], work: Iterable[tuple[Key, Any]], workers: int, *, what: str = "its work was done"
) -> Iterator[tuple[Key, Any]]:
    """Call a function in several processes; two calls for each are under way.

    Parameters
    ----------
    function : callable
        Takes one argument. It must be picklable, and is so once for each process.
    work : iterable of (key, argument)
        Gone through as far as there are processes to do it.
    workers : int
        How many processes.
    what : str, optional
        For the message about a process that died: before what.

    Yields
    ------
    key : object
        Of the work, ...
    result : object
        ... and what the function returned, in the order in which they come.

    Raises
    ------
    CycleStarNetError
        If a process died, or a script without a guard starts itself again.

    Examples
    --------
    ::

        for path, size in run_in_processes(os.path.getsize, [(path, path) for path in paths], 4):
            sizes[path] = size
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a worker that runs the script again
        raise CycleStarNetError(NO_GUARD)
    waiting, under_way = iter(work), dict[Future, Key]()
    context = multiprocessing.get_context("spawn")
    # The function goes by a file: of a worker that dies at its start, the parent would wait for ever to be read out.
    folder = tempfile.TemporaryDirectory(prefix="cyclestarnet-")
    path = Path(folder.name) / "function.pickle"
    path.write_bytes(pickle.dumps(function))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(path,))
    try:
        while True:
            for key, argument in islice(waiting, 2 * workers - len(under_way)):
                under_way[pool.submit(_call, argument)] = key
            if not under_way:
                return
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                yield under_way.pop(future), future.result()
    except BrokenProcessPool as error:
        raise CycleStarNetError(
            f"a worker process ended before {what} ({error}). Does it need more memory than there is? " + NO_GUARD
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        folder.cleanup()


_function: Callable[[Any], Any] | None = None  # of a worker process


def _start_worker(path):
    """Make a process ready to do as a file says."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent tells when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _function = pickle.loads(path.read_bytes())


def _end_with_parent():
    """A parent that is killed tells its workers nothing: they would wait for work for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(argument):
    return _function(argument)
