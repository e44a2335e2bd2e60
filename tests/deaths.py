"""Processes that die at a given point of their work, which is the same on every machine and under every load.

Time would not do: where a process is after a while depends on what else the machine does. So a process counts the
calls and returns of Python, and dies at one of them.
"""

import multiprocessing
import os
import pkgutil
import signal
import sys
import threading
import time
from contextlib import contextmanager
from itertools import count

import torch
from tqdm.auto import tqdm

from cyclestarnet.files import locked


def server():
    """The start of processes that need not import the package, as each would for seconds: their server has done it."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(
        ["torch._dynamo", "pytest", "cyclestarnet.training.trainer", "cyclestarnet.pipeline.many"]
    )
    return processes


@contextmanager
def held_by_another(folder):
    """A folder that is locked by another process, which is killed at the end."""
    processes = server()
    ready = processes.Event()
    other = processes.Process(target=_hold, args=(folder, ready))
    other.start()
    try:
        assert ready.wait(300)
        yield folder
    finally:
        other.kill()
        other.join()


def _hold(folder, ready):
    with locked(folder):
        ready.set()
        time.sleep(600)


def lives(deaths, work, *arguments):
    """Exit codes of processes, one after the other, that do the same work until ``death`` ends it."""
    processes = server()
    for death in deaths:
        process = processes.Process(target=_live, args=(death, work, arguments))
        process.start()
        process.join(300)
        process.kill()
        process.join()
        yield process.exitcode


def _live(death, work, arguments):
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own is one between processes, and would outlive this one
    with death:
        work(*arguments)


class LiveOn:
    """Do not die."""

    def __enter__(self):
        pass

    def __exit__(self, *error):
        pass


class CountEvents(LiveOn):
    """Write the number of calls and returns of the work into a file."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.events = count()
        sys.setprofile(lambda *_: next(self.events))

    def __exit__(self, *error):
        sys.setprofile(None)
        self.path.write_text(str(next(self.events)))


class DieAtEvent(LiveOn):
    """By SIGKILL, at the call or return of this number."""

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        events = count(1)

        def profile(*_):
            if next(events) == self.number:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(profile)


class DieAtCall(LiveOn):
    """By SIGKILL, at the call of this number of a function."""

    def __init__(self, owner, name, number):
        self.owner, self.name, self.number = owner, name, number

    def __enter__(self):
        owner, calls = pkgutil.resolve_name(self.owner), count(1)
        original = getattr(owner, self.name)

        def deadly(*args, **kwargs):
            if next(calls) == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, self.name, deadly)
