"""A short, seeded part of the fuzzing of ``tests/fuzz/run.py``: a few damaged files of each kind."""

import os

import pytest
from fuzzing import damaged, fuzz, outcome
from readers import READERS, Reader, digest

from cyclestarnet import FileFormatError

N_INPUTS = 12

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="each file is read by a forked process")


@pytest.mark.parametrize("name", list(READERS))
def test_damaged_files_end_in_errors_of_the_package(name):
    counts, examples = fuzz(name, N_INPUTS, seed=20210101)
    assert counts["clean"] == N_INPUTS, examples


def refuse(path):
    raise FileFormatError(f"{path} is damaged")


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (lambda path: path.read_bytes(), "silent"),
        (lambda path: 1 / 0, "odd"),
        (refuse, "clean"),
        (lambda path: os._exit(1), "odd"),
    ],
)
def test_what_is_wrong_is_seen(monkeypatch, read, expected):
    """The harness itself: it must tell each of its outcomes from the others."""

    def make(folder):
        (folder / "file").write_bytes(b"content")
        return folder / "file"

    calls = []

    def read_later(path):
        calls.append(path)
        return b"" if len(calls) == 1 else read(path)  # the first is the whole file

    monkeypatch.setitem(READERS, "other", Reader("other", make, read_later, verified=True))
    counts, _ = fuzz("other", 3, seed=1)
    assert counts[expected] == 3


def test_hang_is_seen(monkeypatch):
    monkeypatch.setattr("fuzzing.SECONDS", 0.5)
    calls = []

    def read(path):
        calls.append(path)
        while len(calls) > 1:
            pass

    def make(folder):
        (folder / "file").write_bytes(b"content")
        return folder / "file"

    monkeypatch.setitem(READERS, "other", Reader("other", make, read))
    counts, _ = fuzz("other", 1, seed=1)
    assert counts["hang"] == 1


def test_error_must_name_the_file(tmp_path):
    def read(path):
        raise FileFormatError("something is damaged")

    assert outcome(Reader("other", None, read), tmp_path / "file", b"", "")[0] == "odd"


def test_damage_depends_on_the_seed_alone():
    import random

    content = bytes(range(256)) * 8
    made = [damaged(content, random.Random(seed)) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]
    assert digest({"a": [1, 2.5]}) != digest({"a": [1, 2.6]})
