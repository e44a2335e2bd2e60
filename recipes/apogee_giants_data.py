#!/usr/bin/env python
"""The data of the training ``apogee_giants.toml``: what ``cyclestarnet train`` needs besides the configuration.

    python recipes/apogee_giants_data.py INPUTS WORK
    cp recipes/apogee_giants.toml WORK
    cyclestarnet train WORK/apogee_giants.toml

``INPUTS`` holds ``data/moog_grid`` (MOOG spectra with 20 labels), ``data/apogee`` (a Cannon model of real
APOGEE giants, abundances of real giants, and what is needed to simulate observations) and ``tools`` (their
reader and generator). All spectra are normalised by the package's APOGEE recipe. ``WORK`` gets

``synthetic.h5``
    the grid, for the emulator;
``labels.npz``
    labels of the synthetic domain, drawn like those of the observed stars, but of other stars: the label
    prior of the model;
``observed.h5``
    observed-like stars without labels, for training (``train``) and for the model's errors (``val``);
``known.h5``
    stars whose 20 labels are known: ``val`` to learn the errors of labels from, and ``test``, of rows of the
    catalogues that no other set draws from.
"""

from __future__ import annotations

import argparse
import logging
import sys
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
from astropy.table import Table

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.grid import apogee_grid

log = logging.getLogger("apogee_giants_data")

GRID = apogee_grid()
N_POOL = 88_000
N_TRAIN, N_VALIDATION, N_KNOWN, N_TEST = 22_000, 1_000, 500, 1_000
COOL_FRACTION, COOL_LIMIT = 0.15, 4050.0
TRAINING_ROWS, TEST_ROWS = "0-8/10", "9/10"  # of the catalogues, by row number modulo 10
BLOCK = 500


def continuum_recipe():
    """The package's continuum pixels of APOGEE."""
    with resources.as_file(resources.files("cyclestarnet.data") / "apogee_continuum_pixels.ecsv") as path:
        return ContinuumRecipe.from_wavelengths(GRID, Table.read(path)["wavelength"])


def draw_labels(generator, rng, n, rows):
    """Labels (n, 4) of giants; some cool ones come from the thin edge of the Cannon's training set."""
    cannon, n_cool = generator.CannonModel(), round(COOL_FRACTION * n)
    labels, *_ = generator.draw_labels(rng, n, cannon, 0.3, 5, rows)
    edge, *_ = generator.draw_labels(rng, 40 * n_cool, cannon, 0.05, 1, rows)
    labels = np.concatenate([labels[n_cool:], edge[edge[:, 0] < COOL_LIMIT][:n_cool]])
    return labels[rng.permutation(len(labels))]


def write_grid(load, path, recipe):
    """Write the synthetic grid; return the names and the range of its labels."""
    grid = load()
    names = [name.lower().strip("[]").replace("/", "_").replace("v_broad", "vbroad") for name in grid["label_names"]]
    labels, flux = grid["labels"].astype(np.float32), grid["flux"][:, : GRID.n_pixels].astype(float)
    with h5py.File(path, "w") as out:
        out["wavelength"], out.attrs["label_names"] = GRID.wavelength.value, names
        out["spectra train"] = (flux / recipe(flux, np.ones_like(flux))).astype(np.float32)
        out["labels train"] = labels
    return names, labels.min(0).astype(float), labels.max(0).astype(float)


def write_stars(generator, path, splits, recipe, seed, *, labelled):
    """Write splits {name: (number of stars, rows of the catalogues)} of observed-like stars."""
    cannon, elements, full_grid = generator.CannonModel(), generator.Elements(), generator.Grid()
    noise, options = generator.NoiseModel(full_grid), generator.build_parser().parse_args(["unused.h5"])

    def normalise(flux, err, mask):
        """Our recipe on the generator's 7214 pixels; the 47 that are cut off keep the last value."""
        n = GRID.n_pixels
        inner = recipe(flux[:, :n], mask[:, :n] / err[:, :n].astype(float) ** 2)
        return np.pad(inner, ((0, 0), (0, flux.shape[1] - n)), mode="edge").astype(np.float32)

    with h5py.File(path, "w") as out:
        out["wavelength"] = GRID.wavelength.value
        if labelled:
            out.attrs["label_names"] = list(generator.LABEL20_NAMES)
        for k, (split, (number, rows)) in enumerate(splits.items()):
            rng = np.random.default_rng([*seed, k])
            labels = draw_labels(generator, rng, number, rows)
            snr = generator.draw_snr(rng, number, options.snr_median, options.snr_sigma)
            columns = {"spectra": "f4", "spectra_err": "f4", "spectra_msk": "u1"}
            stored = [out.create_dataset(f"{key} {split}", (number, GRID.n_pixels), t) for key, t in columns.items()]
            own = []
            for start in range(0, number, BLOCK):
                part = slice(start, start + BLOCK)
                *arrays, _, labels20 = generator.observe(
                    rng, labels[part], snr[part], cannon, full_grid, noise, normalise, options, elements
                )
                for dataset, array in zip(stored, arrays, strict=True):
                    dataset[part] = array[:, : GRID.n_pixels]
                own.append(labels20)
            out[f"snr {split}"] = snr.astype(np.float32)
            if labelled:
                out[f"labels {split}"] = np.concatenate(own).astype(np.float32)
            log.info("%s, %s: %d stars", path.name, split, number)


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder with data/ and tools/")
    parser.add_argument("work", type=Path, help="folder of the files to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(options.inputs / "tools"))
    import make_observed_domain as generator
    from load_moog_grid import load

    recipe = continuum_recipe()
    names, lower, upper = write_grid(load, options.work / "synthetic.h5", recipe)
    if tuple(names) != generator.LABEL20_NAMES:
        raise ValueError(f"the labels of the grid are {names}, but those of the stars {generator.LABEL20_NAMES}")
    rng = np.random.default_rng([options.seed, 0])
    four = draw_labels(generator, rng, N_POOL, TRAINING_ROWS)
    defaults = generator.build_parser().parse_args(["unused.h5"])
    pool, _ = generator.Elements().draw(rng, four, defaults.element_scale, defaults.peculiar)
    # clipped, not left out: that would take away giants of high gravity, and with them the zero point of log g
    np.savez(options.work / "labels.npz", labels=pool.clip(lower, upper))
    splits = {"train": (N_TRAIN, TRAINING_ROWS), "val": (N_VALIDATION, TRAINING_ROWS)}
    write_stars(generator, options.work / "observed.h5", splits, recipe, [options.seed, 1], labelled=False)
    splits = {"val": (N_KNOWN, TRAINING_ROWS), "test": (N_TEST, TEST_ROWS)}
    write_stars(generator, options.work / "known.h5", splits, recipe, [options.seed, 2], labelled=True)


if __name__ == "__main__":
    main()
