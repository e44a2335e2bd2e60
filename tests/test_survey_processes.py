"""Fits of many stars in several processes of this machine."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from survey_fakes import Fit, failed_row, make_star, read_star, save_stars
from test_survey import assert_same, survey

from cyclestarnet.exceptions import CycleStarNetError
from cyclestarnet.io.stars import star_sources
from cyclestarnet.pipeline import ManyOptions, read_results
from cyclestarnet.pipeline.many import fit_survey

pytestmark = pytest.mark.slow  # a new process imports for some seconds


@pytest.fixture
def paths(tmp_path, rng):
    """Thirty stars, two of which cannot be read and one whose fit raises for its whole block."""
    paths = save_stars(tmp_path, rng.uniform(0.5, 1.5, 30))
    paths[3].unlink()
    paths[17].write_bytes(b"")
    np.save(paths[9], -2.0)
    return paths


@pytest.mark.usefixtures("quick_workers")
def test_processes_give_the_same_table(paths, tmp_path):
    table = survey(paths, workers=2, output=tmp_path / "t.ecsv")
    assert_same(survey(paths), table)
    assert_same(table, read_results(tmp_path / "t.ecsv"), leave_out=())


@pytest.mark.usefixtures("quick_workers")
def test_a_run_begun_in_processes_ends_in_one(paths, tmp_path):
    with pytest.raises(CycleStarNetError, match="a worker process ended before its stars were fitted"):
        survey(paths, partial(deadly, str(paths[20])), workers=2, output=tmp_path / "t.fits")
    assert (tmp_path / "t.fits.partial").exists()
    assert_same(survey(paths), survey(paths, output=tmp_path / "t.fits"))


def deadly(path, spectra, numbers):
    """A fit that ends its process at one star."""
    worst = np.load(path)
    if any(spectrum.flux.value[0] == read_star(path).flux.value[0] for spectrum in spectra) and np.isfinite(worst):
        os._exit(1)
    return Fit()(spectra)


@pytest.mark.usefixtures("quick_workers")
def test_spectra_in_memory_go_to_the_processes():
    stars = [make_star(value) for value in (0.1, 0.2, 0.3, -1, 0.5)]
    assert_same(survey(stars), survey(stars, workers=2, block_size=2))


REAL = """
import multiprocessing

if __name__ == "__main__":
    from cyclestarnet import CalibratedModel, datasets

    model, star = CalibratedModel.from_pretrained(), datasets.k_giant()
    stars = [star] * 3
    one = model.fit_many(stars, progress=False)  # threads have run when the processes start
    if "fork" in multiprocessing.get_all_start_methods():
        multiprocessing.set_start_method("fork", force=True)  # the one of which such processes may hang
    two = model.fit_many(stars, progress=False, workers=2)
    names = [name for name in one.colnames if name != "seconds"]
    print("equal" if all((one[name] == two[name]).all() for name in names) else "not the same to the last bit")
"""


def test_real_fits_are_equal_to_the_last_bit_whatever_starts_processes(tmp_path):
    script = tmp_path / "survey.py"
    script.write_text(REAL)
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment, timeout=1200)
    assert done.stdout.strip() == "equal", done.stderr


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / "survey.py"
    script.write_text(
        "from cyclestarnet.processes import run_in_processes\nprint(list(run_in_processes(abs, [(0, -1)], 2)))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 1
    assert 'a call with several workers must stand under: if __name__ == "__main__":' in done.stderr


@pytest.mark.usefixtures("quick_workers")
def test_an_error_of_the_engine_reaches_the_caller(paths):
    with pytest.raises(ZeroDivisionError):
        fit_survey(
            star_sources(paths[:2], reader=read_star), Fit(), NoRow(), ManyOptions(workers=2, progress=False),
            block_size=1,
        )  # fmt: skip


class NoRow:
    """Makes a template here, and fails in another process."""

    def __init__(self):
        self.pid = os.getpid()

    def __call__(self, name, error):
        if os.getpid() != self.pid:
            raise ZeroDivisionError
        return failed_row(name, error)


KILLED = """
import os, sys, time
sys.path.insert(0, {tests!r})
from survey_fakes import Fit, failed_row, read_star


class Note(Fit):
    def __call__(self, spectra, numbers=()):
        with open({pids!r}, "a") as file:
            file.write(f"{{os.getpid()}}\\n")
        time.sleep(3600)  # the parent is killed meanwhile


if __name__ == "__main__":
    from cyclestarnet.io.stars import star_sources
    from cyclestarnet.pipeline import ManyOptions
    from cyclestarnet.pipeline.many import fit_survey

    stars = star_sources({pattern!r}, reader=read_star)
    fit_survey(stars, Note(), failed_row, ManyOptions(workers=2, progress=False), block_size=1)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="process numbers of other systems mean other things")
def test_no_process_outlives_a_parent_that_is_killed(tmp_path, rng):
    save_stars(tmp_path, rng.uniform(0.5, 1.5, 5))
    script, pids = tmp_path / "survey.py", tmp_path / "pids"
    names = {"tests": str(Path(__file__).parent), "pattern": f"{tmp_path}/star-*.npy", "pids": str(pids)}
    script.write_text(KILLED.format(**names))
    parent = subprocess.Popen([sys.executable, script])
    while not pids.exists() and parent.poll() is None:
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    workers = {int(pid) for pid in pids.read_text().split()}
    give_up = time.monotonic() + 600
    while (alive := {pid for pid in workers if is_running(pid)}) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert not alive


def is_running(pid):
    """Whether a process is there and no corpse that nobody has buried."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
