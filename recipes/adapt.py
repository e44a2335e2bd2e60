#!/usr/bin/env python
"""What an adaptation of the packaged model is worth: before, after, and against a training from nothing.

    python recipes/adapt.py --inputs INPUTS --work WORK --sizes 200 1000 5000

The observed stars are those of ``INPUTS/tools/make_observed_domain.py``, with an instrument and abundances that the
packaged model has not seen: line-spread functions that vary by 25 % instead of 8 %, throughput wiggles of 3 % instead
of 1 %, and three times as many stars of unusual abundances. Their labels are known and only used to judge. For each
number of stars a row is printed for the packaged model as it is, for the adapted one, and for one of the same settings
and length whose networks began with random weights. Rows are kept in ``WORK/adapt.json``, and trainings in folders
beside it, so that a run can be killed and run again; ``WORK/adaptation.rst`` is the table of the pages
(``docs/tables/adaptation.rst``).
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
import torch
from list_tables import list_table, processor, write_rst

from cyclestarnet import CalibratedModel, adapt
from cyclestarnet.files import write_atomically
from cyclestarnet.networks.translation import TranslationNetwork
from cyclestarnet.networks.translator import Translator
from cyclestarnet.spectra import to_spectrum
from cyclestarnet.training import adaptation_settings, compare_labels, offset_figures

log = logging.getLogger("adapt")

OTHERS = ("--lsf-amplitude", "0.25", "--wiggle-rms", "0.03", "--peculiar", "0.45", "--element-scale", "2.0")
UNITS = {"teff": u.K, "logg": u.dex(u.cm / u.s**2), "m_h": u.dex, "alpha_m": u.dex}
N_TEST = 400


def read_stars(options, model):
    """Stars of the other instrument: arrays of those for training, and test stars with their labels."""
    every = options.work / "stars.h5"
    n = max(options.sizes) + N_TEST
    if not every.exists():
        tool = options.inputs / "tools" / "make_observed_domain.py"
        fractions = ("--val-fraction", "0", "--test-fraction", repr(N_TEST / n))
        numbers = ("-n", str(n), "--seed", str(100 + options.seed))
        temporary = every.with_suffix(".part")
        subprocess.run([sys.executable, tool, temporary, *numbers, *fractions, *OTHERS], check=True)
        temporary.replace(every)
    pixels = slice(0, model.grid.n_pixels)  # the grid of the generator begins with that of the model
    kinds = ("spectra", "spectra_err", "spectra_msk")
    with h5py.File(every) as file:
        training = [file[f"{kind} train"][: max(options.sizes), pixels] for kind in kinds]
        flux, sigma, good = (file[f"{kind} test"][: options.stars, pixels] for kind in kinds)
        labels = file["labels test"][: options.stars].astype(float)
    ivar = np.where(good == 1, sigma.astype(float) ** -2, 0.0)
    truth = {name: labels[:, k] * unit for k, (name, unit) in enumerate(UNITS.items())}
    return training, (to_spectrum(flux.astype(float), model.grid, ivar=ivar), truth)


def without_training(model, seed):
    """The model with random weights instead of its networks: where a training from nothing begins."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TranslationNetwork(model.translator.network.settings)
    scaling = model.translator.flux_mean, model.translator.flux_std, model.translation
    return replace(model, name="untrained", translator=Translator(network, *scaling), shortcuts=None)


def judge(model, test):
    """Median reduced χ² and label errors of test stars."""
    offsets = compare_labels(model, *test, progress=False)
    row = {"chi2": float(np.median(offsets.reduced_chi2))}
    for k, name in enumerate(offsets.names):
        figures = offset_figures(offsets.offset[:, k], offsets.error[:, k])
        row |= {f"{name} bias": figures["bias"], f"{name} scatter": figures["scatter"]}
    return row


def show(row):
    labels = "   ".join(f"{name} {row[f'{name} bias']:+8.3f} ± {row[f'{name} scatter']:7.3f}" for name in UNITS)
    print(f"{row['stars']:6d} {row['model']:8} chi2 {row['chi2']:7.2f}  {labels}  {row['seconds']:6.0f} s", flush=True)


def table(rows, options):
    """Text of the table of the pages: what has been measured so far."""
    names = {"before": "packaged", "adapted": "adapted", "scratch": "trained from nothing"}
    header = ("spectra", "model", "χ²", "Teff [K]", "log g", "[M/H]", "[α/M]", "minutes")
    lines = [header]
    for row in rows.values():
        labels = [f"{row[f'{name} bias']:+.{d}f} / {row[f'{name} scatter']:.{d}f}"
                  for name, d in (("teff", 0), ("logg", 2), ("m_h", 3), ("alpha_m", 3))]  # fmt: skip
        minutes = "" if row["model"] == "before" else f"{row['seconds'] / 60:.0f}"
        lines.append((f"{row['stars']:,}", names[row["model"]], f"{row['chi2']:.2f}", *labels, minutes))
    title = (
        f"Simulated giants of another instrument, {options.iterations:,} iterations, seed {options.seed}, "
        f"{options.stars} stars judged; labels: bias / scatter; {date.today().isoformat()}, one core, {processor()}"
    )
    return list_table(title, lines)


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=Path, required=True, help="folder with data/ and tools/")
    parser.add_argument("--work", type=Path, required=True, help="folder of all that is written")
    parser.add_argument("--sizes", type=int, nargs="+", default=[200, 1000, 5000], help="numbers of observed stars")
    parser.add_argument("--iterations", type=int, default=2000, help="of each training")
    parser.add_argument("--stars", type=int, default=200, help=f"test stars, at most {N_TEST}")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    base = CalibratedModel.from_pretrained("apogee-giants")
    (flux, sigma, good), test = read_stars(options, base)
    kept = options.work / "adapt.json"
    rows = json.loads(kept.read_text()) if kept.exists() else {}
    for size in options.sizes:
        for kind in ("before", "adapted", "scratch"):
            key = f"{kind}, {size} stars, {options.iterations} iterations, {options.stars} judged, seed {options.seed}"
            if key not in rows:
                start, model = time.perf_counter(), base
                if kind != "before":
                    model, _ = adapt(
                        base if kind == "adapted" else without_training(base, options.seed),
                        flux[:size].astype(float),
                        sigma[:size].astype(float),
                        mask=good[:size] == 0,
                        name=kind,
                        settings=adaptation_settings(base, n_iterations=options.iterations, seed=options.seed),
                        seed=options.seed,
                        folder=options.work / f"{kind}-{size}-{options.iterations}-{options.seed}",
                        progress=sys.stderr.isatty(),
                    )
                seconds = time.perf_counter() - start
                rows[key] = {"stars": size, "model": kind, "seconds": seconds} | judge(model, test)
                text = json.dumps(rows, indent=1)
                write_atomically(kept, lambda temporary, text=text: temporary.write_text(text))
            show(rows[key])
            write_rst(options.work / "adaptation.rst", table(rows, options))


if __name__ == "__main__":
    main()
