"""What the data of all models of APOGEE have in common: files of synthetic and of simulated observed spectra."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
from astropy.table import Table

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.grid import apogee_grid

log = logging.getLogger("apogee_domains")

GRID = apogee_grid()
TRAINING_ROWS, TEST_ROWS = "0-8/10", "9/10"  # of the catalogues, by row number modulo 10
BLOCK = 500


@dataclass(frozen=True)
class Stars:
    """Simulated stars: what they are, and what of them is known.

    ``draw(rng, n, rows)`` gives labels (n, m) of the base ``base``, which makes spectra (n, 7214) of them and has
    their ``scatter``; ``elements`` adds abundances, or is None. ``truth(labels, labels20)`` are the labels
    ``names`` that are known of the stars: ``labels20`` are those with abundances, or None.
    """

    draw: Callable
    base: Callable
    elements: object | None
    names: tuple[str, ...]
    truth: Callable


def make_parser(description):
    """Parser of the command line of a script that makes data."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder with data/ and tools/")
    parser.add_argument("work", type=Path, help="folder of the files to write")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def import_generator(inputs):
    """The generator of observed-like stars."""
    sys.path.insert(0, str(inputs / "tools"))
    import make_observed_domain

    return make_observed_domain


def continuum_recipe():
    """The package's continuum pixels of APOGEE."""
    with resources.as_file(resources.files("cyclestarnet.data") / "apogee_continuum_pixels.ecsv") as path:
        return ContinuumRecipe.from_wavelengths(GRID, Table.read(path)["wavelength"])


def our_continuum():
    """A function that gives the generator the continuum of our recipe."""
    recipe = continuum_recipe()

    def continuum(flux, err, mask):
        """On the generator's 7214 pixels; the 47 that are cut off keep the last value."""
        n = GRID.n_pixels
        inner = recipe(flux[:, :n], mask[:, :n] / err[:, :n].astype(float) ** 2)
        return np.pad(inner, ((0, 0), (0, flux.shape[1] - n)), mode="edge").astype(np.float32)

    return continuum


def normalised(flux, recipe):
    """Spectra (n, 7214) without noise, cut to the model's pixels and normalised by its recipe."""
    flux = flux[:, : GRID.n_pixels].astype(float)
    return (flux / recipe(flux, np.ones_like(flux))).astype(np.float32)


def write_grid(grid, path, recipe):
    """Write the synthetic grid; return the names and the range of its labels."""
    names = [name.lower().strip("[]").replace("/", "_").replace("v_broad", "vbroad") for name in grid["label_names"]]
    labels = grid["labels"].astype(np.float32)
    with h5py.File(path, "w") as out:
        out["wavelength"], out.attrs["label_names"] = GRID.wavelength.value, names
        out["spectra train"] = normalised(grid["flux"], recipe)
        out["labels train"] = labels
    return names, labels.min(0).astype(float), labels.max(0).astype(float)


def write_stars(generator, stars, path, splits, seed, *, labelled):
    """Write splits {name: (number of stars, rows of the catalogues)} of observed-like stars."""
    full_grid, continuum = generator.Grid(), our_continuum()
    noise, options = generator.NoiseModel(full_grid), generator.build_parser().parse_args(["unused.h5"])

    with h5py.File(path, "w") as out:
        out["wavelength"] = GRID.wavelength.value
        if labelled:
            out.attrs["label_names"] = list(stars.names)
        for k, (split, (number, rows)) in enumerate(splits.items()):
            rng = np.random.default_rng([*seed, k])
            labels = stars.draw(rng, number, rows)
            snr = generator.draw_snr(rng, number, options.snr_median, options.snr_sigma)
            columns = {"spectra": "f4", "spectra_err": "f4", "spectra_msk": "u1"}
            stored = [out.create_dataset(f"{key} {split}", (number, GRID.n_pixels), t) for key, t in columns.items()]
            known = []
            for start in range(0, number, BLOCK):
                part = slice(start, start + BLOCK)
                *arrays, _, labels20 = generator.observe(
                    rng, labels[part], snr[part], stars.base, full_grid, noise, continuum, options, stars.elements
                )
                for dataset, array in zip(stored, arrays, strict=True):
                    dataset[part] = array[:, : GRID.n_pixels]
                known.append(stars.truth(labels[part], labels20))
            out[f"snr {split}"] = snr.astype(np.float32)
            if labelled:
                out[f"labels {split}"] = np.concatenate(known).astype(np.float32)
            log.info("%s, %s: %d stars", path.name, split, number)
