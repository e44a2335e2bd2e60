#!/usr/bin/env python
"""Measure how fast training spectra come from a file, and how much memory that takes.

Makes a file of noise in the layout of a training set, then draws batches of 8
from each source. Every row of the table is a process of its own, so that its
peak memory is its own; memory is above that of the same process just before it
opens the file. "Plain h5py" reads one row after the other, in order, and does
nothing with it. CPU time is per spectrum and of all threads: unlike the rate,
it does not depend on what else the computer does; for a stream it contains the
window that is read ahead. Training at 0.15 s per iteration of 8 + 8 spectra
needs about 110 spectra/s from both domains together. A file that was just
written is read from the page cache, not from the disk. Example::

    python benchmarks/training_data.py --rows 80000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from tqdm.auto import tqdm

from cyclestarnet.io import TrainingSet
from cyclestarnet.io.training_set import BLOCK_ROWS
from cyclestarnet.training.datasets import ObservedSpectra, StoredSynthetic
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra, StreamedSynthetic

BATCH, N_PIXELS = 8, 7167
SETTINGS = TrainingSettings()
KINDS = ("spectra", "spectra_err", "spectra_msk")


def make_file(path, n_rows):
    """Write one block of noise again and again, each row scaled by its own number."""
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.003, 0.03, (BLOCK_ROWS, N_PIXELS)).astype(np.float32)
    flux = (0.97 + sigma * rng.standard_normal(sigma.shape)).astype(np.float32)
    parts = (flux, sigma, (rng.random(sigma.shape) > 0.07).astype(np.uint8))
    with h5py.File(path, "w") as file:
        file["labels train"] = rng.normal(size=(n_rows, 25)).astype(np.float32)
        datasets = [
            file.create_dataset(f"{kind} train", (n_rows, N_PIXELS), part.dtype, chunks=(BLOCK_ROWS, N_PIXELS))
            for kind, part in zip(KINDS, parts, strict=True)
        ]
        for start in tqdm(range(0, n_rows, BLOCK_ROWS), desc="writing", disable=n_rows < 10_000):
            n = min(BLOCK_ROWS, n_rows - start)
            for dataset, part in zip(datasets, parts, strict=True):
                dataset[start : start + n] = part[:n]


# -- one row of the table each: a function that draws a batch ------------------------
def plain(path, kinds):
    """One row after the other, as it lies in the file."""
    file = h5py.File(path, "r")
    datasets = [file[f"{kind} train"] for kind in kinds]
    position = 0

    def draw(n, generator):
        nonlocal position
        for _ in range(n):
            for dataset in datasets:
                dataset[position % len(dataset)]
            position += 1

    return draw


FORMS = {
    "observed: plain h5py rows": lambda path: plain(path, KINDS),
    "observed: in memory": lambda path: ObservedSpectra.from_table(TrainingSet(path), SETTINGS).draw,
    "observed: streamed": lambda path: StreamedSpectra(TrainingSet(path), SETTINGS).draw,
    "synthetic: plain h5py rows": lambda path: plain(path, KINDS[:1]),
    "synthetic: in memory": lambda path: StoredSynthetic.from_table(synthetic(path), SETTINGS).draw,
    "synthetic: streamed": lambda path: StreamedSynthetic(synthetic(path), SETTINGS).draw,
}


def synthetic(path):
    return TrainingSet(path, domain="synthetic")


def peak():
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(form, path, seconds):
    """Seconds to the first batch; then spectra per second, CPU time of each, longest draw, and extra peak memory."""
    torch.set_num_threads(1)
    before, generator = peak(), torch.Generator().manual_seed(0)
    start = time.perf_counter()
    draw = FORMS[form](path)
    draw(BATCH, generator)  # a stream has to fill its first window
    opened = time.perf_counter() - start
    longest, n, start, busy = 0.0, 0, time.perf_counter(), time.process_time()
    while (begin := time.perf_counter()) - start < seconds:
        draw(BATCH, generator)
        n, longest = n + BATCH, max(longest, time.perf_counter() - begin)
    rate, busy = n / (time.perf_counter() - start), (time.process_time() - busy) / n
    print(f"{form:28}{opened:10.1f}{rate:12.0f}{1e6 * busy:12.0f}{1000 * longest:16.0f}{peak() - before:14.0f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4000, help="spectra in the file; 64 kB each")
    parser.add_argument("--seconds", type=float, default=5.0, help="time to draw for, per source")
    parser.add_argument("--folder", type=Path, help="where the file goes; default: the folder for temporary files")
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.form:
        return measure(options.form, options.path, options.seconds)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "spectra.h5"
        make_file(path, options.rows)
        size = path.stat().st_size / 1e6
        print(f"{options.rows} spectra of {N_PIXELS} pixels, {size:.0f} MB, batches of {BATCH}, 1 thread + reader")
        heads = f"{'start [s]':>10}{'spectra/s':>12}{'CPU [µs]':>12}{'slowest [ms]':>16}{'memory [MB]':>14}"
        print(f"{'source':28}{heads}", flush=True)
        for form in FORMS:
            command = [sys.executable, __file__, "--form", form, "--path", str(path), "--seconds", str(options.seconds)]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
