#!/usr/bin/env python
"""Errors of the labels of ``apogee-giants``, learnt without a known label: of twins.

::

    python recipes/apogee_giants_data.py INPUTS WORK --test 2000
    cp recipes/apogee_giants.toml WORK
    python recipes/apogee_giants_twin.py WORK --iterations 3000

The packaged model makes stars of known labels, and a twin of it is trained on them, and a twin of that
(`cyclestarnet.training.twins`), in ``WORK/twin``: killed, it goes on where it was. The model with the errors that they
tell is ``WORK/apogee-giants-of-twins.safetensors``. They are then held against stars whose labels are known,
``WORK/known.h5``, and against the errors that the packaged model has, which it learnt from such stars. Writes
``docs/tables/card_twin.rst``.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from list_tables import list_table, write_rst

from cyclestarnet import CalibratedModel
from cyclestarnet.io import TrainingSet
from cyclestarnet.labels import unit_of_label
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training import compare_labels, read_config
from cyclestarnet.training.evaluation import without_label_error
from cyclestarnet.training.inputs import read_domains
from cyclestarnet.training.runs import with_errors_of_twin

log = logging.getLogger("apogee_giants_twin")

DOCS = Path(__file__).parents[1] / "docs"
N_TEST = 1_000
SORTED = ("teff", "logg", "fe_h")  # by which the edges are made of: tenths of the stars


def with_twins(model, options):
    """The model with the errors of its twins, and the errors of the first twin alone."""
    work = options.work
    config = read_config(work / "apogee_giants.toml")
    model.save(work / "packaged.safetensors")
    plan = replace(
        config,
        run=replace(config.run, folder=work),
        observed=replace(config.observed, known=None),
        synthetic=replace(config.synthetic, path=None, emulator=work / "packaged.safetensors"),
        model=replace(config.model, n_validation=options.validation, n_zero_points=options.zero_points),
    )
    made = with_errors_of_twin(model, read_domains(plan), plan, options.iterations)
    return made, CalibratedModel.load(next((work / "twin").glob("*.safetensors")))


def known_stars(path, grid):
    """Spectra and labels of stars that nothing was learnt from."""
    table = TrainingSet(path, split="test", grid=grid)
    flux, sigma, mask = table.read(0, min(N_TEST, table.n_spectra))
    spectra = to_spectrum(flux.astype(float), grid, ivar=np.where(mask, 0.0, sigma.astype(float) ** -2))
    return spectra, {
        name: values * unit_of_label(name)
        for name, values in zip(table.label_names, table.labels[: len(flux)].T, strict=True)
    }


def total_errors(offsets, noise):
    """Quoted errors of each star, and those with hidden ones."""
    hidden = np.array([noise.hidden_covariance(labels) for labels in offsets.labels])
    return np.sqrt(np.diagonal(offsets.covariance + hidden, axis1=1, axis2=2))


def rows_of(offsets, errors, truth):
    """A row per label: scatter, and the share of stars within each kind of errors; the least of any tenth of stars."""
    order = [np.argsort(truth[name].value[offsets.rows]) for name in SORTED]
    tenths = [part for own in order for part in np.array_split(own, 10)]
    rows = []
    for k, name in enumerate(offsets.names):
        off = offsets.offset[:, k]
        low, middle, high = np.percentile(off, [16, 50, 84])
        form = "{:.0f}" if name == "teff" else "{:.3f}"
        cells = [f"{form.format(middle)} / {form.format((high - low) / 2)}".replace("-", "−")]
        for own in errors.values():
            within = np.abs(off) < own[:, k]
            cells.append(f"{within.mean():.2f} ({min(within[part].mean() for part in tenths):.2f})")
        cells.append(" / ".join(form.format(np.median(own[:, k])) for own in list(errors.values())[2:]))
        rows.append((name, *cells))
    return rows


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of apogee_giants_data.py, with apogee_giants.toml")
    parser.add_argument("--iterations", type=int, default=7_000)
    parser.add_argument("--validation", type=int, default=60, help="stars that tell the scatter of the twin")
    parser.add_argument("--zero-points", type=int, default=1_000, help="stars that tell its zero points")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    model = CalibratedModel.from_pretrained("apogee-giants")
    made, twin = with_twins(model, options)
    made.save(options.work / "apogee-giants-of-twins.safetensors", half=True)
    bare = without_label_error(model)
    spectra, truth = known_stars(options.work / "known.h5", model.grid)
    offsets = compare_labels(bare, spectra, truth)
    errors = {"quoted alone": offsets.error, "of a twin": total_errors(offsets, twin.noise)}
    errors |= {"of both twins": total_errors(offsets, made.noise), "of known stars": total_errors(offsets, model.noise)}
    rows = rows_of(offsets, errors, truth)
    for row in rows:
        log.info("%s", "  ".join(row))
    header = (
        "label",
        "offset / scatter",
        *(f"within errors, {name}" for name in errors),
        "median error: twins / known",
    )
    title = (
        f"Errors of labels, learnt of twins ({options.iterations} iterations each) and of 500 known stars: how many of "
        f"{len(offsets.offset)} other stars are within them (of the worst tenth in Teff, log g or [Fe/H])"
    )
    write_rst(DOCS / "tables" / "card_twin.rst", list_table(title, (header, *rows)))


if __name__ == "__main__":
    main()
