"""Files that are written at once or not at all: full disks, permissions, links, folders, and locks."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from deaths import held_by_another

from cyclestarnet.files import as_json, locked, write_atomically, write_hdf5
from cyclestarnet.networks import checkpoint

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limits and links")


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


# -- a full disk -------------------------------------------------------------------------
SCRIPT = """
import os, resource, sys
import astropy.units as u
import numpy as np
from astropy.nddata import StdDevUncertainty
from cyclestarnet import WavelengthGrid
from cyclestarnet.fitting.chains import ChainState
from cyclestarnet.io import write_training_set
from cyclestarnet.pipeline.chains import ChainFile
from cyclestarnet.spectra import Spectrum

folder = sys.argv[1]
grid = WavelengthGrid(np.linspace(1500, 1510, 500) * u.nm)
error = StdDevUncertainty(np.full(500, 0.1))
star = Spectrum(flux=np.ones(500) * u.one, spectral_axis=grid.wavelength, uncertainty=error)
store, read = ChainFile(folder + "/chain.h5"), 0

def chain(n_steps):
    random_state = np.random.RandomState(1).get_state()
    steps = np.ones((n_steps, 8, 3)), np.zeros((n_steps, 8)), np.zeros(8), random_state, 0
    store.save(ChainState(*steps, centre=np.zeros(3), covariance=np.eye(3), share=0.7))

def stars():
    global read
    for read in range(1000):
        yield star

def training_set(spectra, split):
    write_training_set(folder + "/stars.h5", spectra, grid=grid, split=split, progress=False)

chain(10)
training_set([star] * 3, "val")
for work, sizes in [
    (lambda: chain(5000), (0, 100, 3000, 70_000, 900_000)),
    (lambda: training_set(stars(), "train"), (0, 3000, 400_000, 2_000_000)),
]:
    child = os.fork()
    if not child:
        for n_bytes in sizes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))
            try:
                work()
            except OSError as error:
                print(error, read, os.listdir(folder), store.load().n_steps, flush=True)
        sys.exit(7)  # with all that Python does at its end
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7, os.waitstatus_to_exitcode(status)
"""


@posix
@pytest.mark.slow
def test_a_full_disk_is_an_error_soon_and_leaves_what_was_there(tmp_path):
    """A limit on the size of files fails the same calls as a full disk; without care HDF5 ends Python, then."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    there = f"{os.listdir(tmp_path)} 10"
    assert lines[:5] == [f"[Errno 27] File too large: '{tmp_path}/chain.h5' 0 {there}"] * 5
    for line, last in zip(lines[5:], (64, 64, 200, 1000), strict=True):
        before, after = line.split("stars.h5' ", 1)
        assert before == f"[Errno 27] File too large: '{tmp_path}/"
        assert int(after.split()[0]) < last  # nobody waits for stars that have no place
        assert after.endswith(there)
    with h5py.File(tmp_path / "stars.h5") as file:
        assert file["spectra val"].shape == (3, 500)


class Full:
    """A disk that is full after so many writes."""

    def __init__(self, file, n_writes):
        self.file, self.left = file, n_writes

    def write(self, data):
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


@pytest.mark.parametrize("n_writes", range(0, 40, 3))
def test_hdf5_that_fails_at_any_write_leaves_the_file_before(tmp_path, monkeypatch, n_writes):
    path = tmp_path / "stars.h5"
    path.write_bytes(b"old")

    def fill(file):
        for k in range(20):
            file.create_dataset(f"numbers {k}", data=np.ones(3000), chunks=(100,), fletcher32=True)

    original = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **options: Full(original(path, *args, **options), n_writes))
    with pytest.raises(OSError, match=r"No space left on device: '.*stars\.h5'"):
        write_hdf5(path, fill)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["stars.h5"]


def test_hdf5_holds_what_it_was_filled_with(tmp_path, rng):
    numbers = rng.normal(size=(300, 40))

    def fill(file):
        file["whole"] = numbers
        grown = file.create_dataset("grown", (0, 40), "f8", maxshape=(None, 40), chunks=(7, 40), compression=1)
        for row in numbers:
            grown.resize(len(grown) + 1, axis=0)
            grown[-1] = row
            file.flush()

    write_hdf5(tmp_path / "numbers.h5", fill)
    with h5py.File(tmp_path / "numbers.h5") as file:
        np.testing.assert_array_equal(file["whole"][()], numbers)
        np.testing.assert_array_equal(file["grown"][()], numbers)


def test_an_error_while_an_hdf5_file_is_filled_is_raised_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_hdf5(tmp_path / "numbers.h5", lambda file: 1 / 0)
    assert os.listdir(tmp_path) == []


# -- what is there already ---------------------------------------------------------------
@posix
@pytest.mark.parametrize("permissions", [0o600, 0o664, 0o444, 0o640])
@pytest.mark.parametrize("write", ["write_atomically", "write_hdf5"])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, permissions, write):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(permissions)
    if write == "write_hdf5":
        write_hdf5(path, lambda file: file.create_group("new"))
    else:
        write_atomically(path, lambda temporary: temporary.write_bytes(b"new"))
    assert mode(path) == permissions
    assert path.read_bytes() != b"old"


@posix
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_is_followed(tmp_path, relative, exists):
    target, link = tmp_path / "elsewhere" / "file", tmp_path / "link"
    target.parent.mkdir()
    if exists:
        target.write_bytes(b"old")
        target.chmod(0o640)
    link.symlink_to(Path("elsewhere/file") if relative else target)
    write_atomically(link, lambda temporary: temporary.write_bytes(b"new"))
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert not exists or mode(target) == 0o640
    assert os.listdir(target.parent) == ["file"]


def test_a_folder_in_the_place_of_a_file_is_an_error_before_anything_is_written(tmp_path):
    def write(temporary):
        raise AssertionError("too late")

    with pytest.raises(IsADirectoryError, match=f"a file is to be written, but this is a folder: '{tmp_path}'"):
        write_atomically(tmp_path, write)


def test_a_folder_that_cannot_be_written_into_is_told_by_the_name_of_the_file(tmp_path, monkeypatch):
    def refuse(**options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/file'"):
        write_atomically(tmp_path / "file", lambda temporary: None)


# -- no hard links ---------------------------------------------------------------------------
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS])
def test_the_state_before_is_kept_where_there_are_no_hard_links(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    for iteration in (1, 2, 3):
        checkpoint.save_state({"iteration": iteration}, tmp_path / "state.pt")
    assert checkpoint.load_state(tmp_path / "state.pt")["iteration"] == 3
    assert checkpoint.load_state(tmp_path / "state.pt.previous")["iteration"] == 2
    assert sorted(os.listdir(tmp_path)) == ["state.pt", "state.pt.previous"]


# -- locks ---------------------------------------------------------------------------------
@posix
def test_a_folder_belongs_to_one_process_until_it_ends(tmp_path):
    folder = tmp_path / "run"
    with held_by_another(folder):
        with pytest.raises(FileExistsError, match=r"another process trains in .*run; wait, or choose another folder"):
            with locked(folder, "trains in"):
                pass
    with locked(folder):
        assert (folder / ".lock").exists()
    assert os.listdir(folder) == []


@posix
def test_a_folder_belongs_to_one_thread(tmp_path):
    found = []

    def other():
        try:
            with locked(tmp_path):
                found.append("locked")
        except FileExistsError:
            found.append("refused")

    with locked(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == ["refused"]


def test_who_has_a_lock_may_take_it_again_and_leaves_no_folder(tmp_path):
    with locked(tmp_path / "run"), locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
    assert os.listdir(tmp_path) == []


# -- text that tells options apart -------------------------------------------------------------
def test_long_arrays_are_told_apart_by_their_digests():
    texts = {as_json({"prior": np.arange(n)}, longest=10) for n in (100, 101, 5)}
    assert len(texts) == 3
    assert max(map(len, texts)) < 100
