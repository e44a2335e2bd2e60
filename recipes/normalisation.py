#!/usr/bin/env python
"""The same stars, normalised in four ways: do fits find the same labels?

    python recipes/normalisation.py INPUTS [--model MODEL] [--number 1000] [--workers 2]

``INPUTS`` is that of ``apogee_giants_data.py``. Stars of rows of the catalogues that no training set draws from are
simulated once, noise and all, and then normalised by the package's recipe, by other continuum pixels (those of Ting
et al. 2019, on all of their pixels), by nothing (counts, sloping over each chip), and by those other pixels in percent,
as numbers without a unit. Writes ``docs/tables/normalisation.rst``.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import sys
import warnings
from datetime import date
from pathlib import Path

import astropy.units as u
import numpy as np
from apogee_domains import GRID, TEST_ROWS, our_continuum
from apogee_giants_data import draw_labels
from astropy.nddata import StdDevUncertainty
from list_tables import list_table, write_rst

from cyclestarnet import CalibratedModel
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.evaluation import offset_figures

log = logging.getLogger("normalisation")

SHOWN = {"teff": "Teff [K]", "logg": "log g", "m_h": "[M/H]"}
COUNTS = 963.0
SPACES = ("observed", "emulator")
TABLE = Path(__file__).parents[1] / "docs" / "tables" / "normalisation.rst"


def observe(generator, number, seed, normaliser):
    """Flux, errors and good pixels of the same stars whatever the normaliser, and their labels."""
    rng = np.random.default_rng([seed, 11])
    options = generator.build_parser().parse_args(["unused.h5"])
    cannon, grid = generator.CannonModel(), generator.Grid()
    labels = draw_labels(generator, rng, number, TEST_ROWS)
    snr = generator.draw_snr(rng, number, options.snr_median, options.snr_sigma)
    flux, err, mask, _, truth = generator.observe(
        rng, labels, snr, cannon, grid, generator.NoiseModel(grid), normaliser, options, generator.Elements()
    )
    return *(a[:, : GRID.n_pixels] for a in (flux, err, mask)), truth


def ways(generator, number, seed):
    """Yield the name of each way, its spectra, and their true labels by name."""
    slope = np.concatenate([np.linspace(0.8, 1.15, b - a) for a, b in GRID.chips])
    ting = generator.ContinuumNormaliser(generator.Grid())
    for name, normaliser, factor, unit in (
        ("our recipe", our_continuum(), 1.0, u.one),
        ("other pixels", ting, 1.0, u.one),
        ("counts", lambda flux, *_: np.ones_like(flux), COUNTS * slope, u.adu),
        ("percent", ting, 100.0, u.one),
    ):
        flux, err, mask, truth = observe(generator, number, seed, normaliser)
        stars = [
            Spectrum(
                flux=factor * f * unit,
                spectral_axis=GRID.wavelength,
                uncertainty=StdDevUncertainty(factor * s),
                mask=~m.astype(bool),
            )
            for f, s, m in zip(flux.astype(float), err.astype(float), mask, strict=True)
        ]
        yield name, stars, dict(zip(generator.LABEL20_NAMES, truth.T, strict=True))


def values(column):
    return np.asarray(getattr(column, "value", column), dtype=float)


def cells(table, truth, reference):
    """Of each label: bias / scatter / inside 68 %, and the median change against the first way; chi2 and failures."""
    texts = []
    for name in SHOWN:
        found = offset_figures(
            values(table[name]) - truth["fe_h" if name == "m_h" else name], values(table[f"{name}_err"])
        )
        change = np.nanmedian(np.abs(values(table[name]) - values(reference[name])))
        digits = 0 if name == "teff" else 3
        pair = f"{found['bias']:+.{digits}f} / {found['scatter']:.{digits}f}"
        texts.append(f"{pair} / {found['cover_68']:.2f} ({change:.{digits}f})")
    return [*texts, f"{np.nanmedian(table['reduced_chi2']):.2f}", int(np.sum(~np.asarray(table["success"])))]


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder with data/ and tools/")
    parser.add_argument("--model", help="file of a model; default: the packaged one")
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", type=Path, default=TABLE, help="file to write")
    options = parser.parse_args(argv)
    sys.path.insert(0, str(options.inputs / "tools"))
    import make_observed_domain as generator

    model = CalibratedModel.from_pretrained() if options.model is None else CalibratedModel.load(options.model)
    warnings.simplefilter("ignore")  # flags of single stars, which the table of results has
    rows, reference = [], {}
    for way, stars, truth in ways(generator, options.number, options.seed):
        tries = [("", None)] + ([(", as they are", False)] if way == "other pixels" else [])
        for (what, normalise), space in itertools.product(tries, SPACES):
            table = model.fit_many(stars, space=space, normalise=normalise, workers=options.workers, progress=False)
            rows.append([way + what, space, *cells(table, truth, reference.setdefault(space, table))])
            log.info("%s", rows[-1])
    title = (
        f"The same {options.number} held-out giants, normalised in four ways and fitted: bias / scatter / fraction "
        "inside the 68 % errors, and in brackets the median change against the first way. As they are: "
        f"``normalise=False``. Model {model.name}, seed {options.seed}, {date.today()}"
    )
    header = ["spectra", "space", *SHOWN.values(), "χ²", "failed"]
    write_rst(options.table, list_table(title, [header, *rows], widths="16 10 20 22 22 5 5"))


if __name__ == "__main__":
    main()
