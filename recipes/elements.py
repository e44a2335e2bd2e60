#!/usr/bin/env python
"""How translation treats single elements: its two forms and losses that preserve them, many small trainings.

Each training takes the files that ``apogee_giants_data.py`` makes, the APOGEE green chip (1,663 pixels), a
network of a quarter of the paper's widths, and 1,500 iterations::

    python recipes/elements.py INPUTS WORK

``INPUTS`` and ``WORK`` are those of ``apogee_giants_data.py``. Rows are added to ``WORK/elements.json`` one by
one, so that a run can be killed and run again; in the end it writes ``docs/tables/stability_elements.rst``.
Known labels are used to measure alone.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
import torch
from astropy.nddata import StdDevUncertainty
from list_tables import list_table, write_rst

from cyclestarnet import CalibratedModel
from cyclestarnet.files import write_atomically
from cyclestarnet.grid import apogee_grid
from cyclestarnet.networks.translator import Translator
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.config import read_config
from cyclestarnet.training.evaluation import compare_labels
from cyclestarnet.training.runs import finish, prepare

log = logging.getLogger("elements")

CONFIG = Path(__file__).with_name("apogee_giants.toml")
TABLE = Path(__file__).parents[1] / "docs" / "tables" / "stability_elements.rst"
PIXELS = (3300, 4963)
NETWORK = {
    "domain": ((8, 7, 4), (16, 7, 4)),
    "shared": ((48, 7, 4), (96, 7, 2)),
    "split": ((8, 7, 4), (8, 7, 2)),
    "shared_filters": 16,
    "split_filters": 1,
    "critic_spectrum": ((8, 7, 4), (16, 7, 4), (32, 7, 4), (64, 7, 4)),
    "critic_latent": ((16, 1, 1), (32, 1, 1), (64, 1, 1)),
}
ELEMENTS = ("c", "n", "o", "mg", "al", "si", "s", "k", "ca", "ti", "v", "cr", "mn", "co", "ni")
RESPONSE = {"weight_response": 3.0, "response_labels": tuple(f"{name}_h" for name in ELEMENTS)}
CYCLE = {"weight_label_cycle": 5.0}
NEITHER = {"weight_response": 0.0, "response_labels": (), "weight_label_cycle": 0.0}  # whatever the configuration has
LOSSES = {"—": {}, "response": RESPONSE, "label cycle": CYCLE, "both": RESPONSE | CYCLE}
FORMS = ("paper", "residual")
SEEDS, N_STARS = range(2), 250
BUDGET = {"n_iterations": 1_500, "learning_rate": 1e-3, "critic_learning_rate": 6e-4}
GIANT = np.array([[4600.0, 2.4, -0.1, 0.05]])  # teff, logg, m_h, alpha_m: where derivatives are compared


# -- the truth ---------------------------------------------------------------------
class Truth:
    """Test stars of known labels, and derivatives of the simulated stars."""

    def __init__(self, inputs, work):
        sys.path.insert(0, str(inputs / "tools"))
        import make_observed_domain as generator

        part, wavelength = slice(*PIXELS), apogee_grid().wavelength[slice(*PIXELS)]
        with h5py.File(work / "known.h5") as file:
            flux, sigma, good = (
                file[f"{key} test"][:N_STARS, part] for key in ("spectra", "spectra_err", "spectra_msk")
            )
            self.names = [str(name) for name in file.attrs["label_names"]]
            self.labels = file["labels test"][:N_STARS].astype(float)
        self.stars = Spectrum(
            flux=u.Quantity(flux.astype(float)),
            spectral_axis=wavelength,
            uncertainty=StdDevUncertainty(sigma.astype(float)),
            mask=good == 0,
        )
        elements = generator.Elements()
        iron = self.labels[:, self.names.index("fe_h")]
        alpha = self.labels[:, [self.names.index(f"{name}_h") for name in ("o", "mg", "si", "s", "ca", "ti")]].mean(1)
        self.usual = elements.usual(np.column_stack([self.labels[:, :2], iron, alpha - iron]))
        self.giant = elements.usual(GIANT)[0]
        base = generator.CannonModel()(GIANT)[0, part] / elements.response(self.giant[None])[0, part]
        self.slopes = {}
        for name in (f"{element}_h" for element in ELEMENTS):
            step = 0.05 * (np.array(self.names) == name)
            low, high = (elements.response((self.giant + way * step)[None])[0, part] for way in (-1, 1))
            self.slopes[name] = base * (high - low) / 0.1


# -- one training -------------------------------------------------------------------
def train(work, emulator, losses, seed):
    """Train once; return the model."""
    config = read_config(work / CONFIG.name)
    config = replace(
        config,
        run=replace(config.run, folder=work / "elements" / f"{losses}-{seed}", seed=seed, name="small"),
        observed=replace(config.observed, pixels=PIXELS, known=None),
        synthetic=config.synthetic if emulator is None else replace(config.synthetic, path=None, emulator=emulator),
        training=replace(config.training, seed=seed, mixed_precision=False, **BUDGET, **(NEITHER | LOSSES[losses])),
        network=NETWORK,
        model=replace(config.model, n_validation=40, continuum=None, translation="residual", half=False),
    )
    run = prepare(config, progress=False)
    run.train(progress=False)
    return CalibratedModel.load(finish(run, progress=False))


def measure(model, truth):
    """Figures of a model's elements: derivatives against the truth, and recovered abundances of stars."""
    grads = model.derivative_spectra(
        model.labels.to_quantities(truth.giant.clip(model.labels.lower, model.labels.upper))
    )
    found = {name: grads[name].value for name in truth.slopes}
    correlation = {name: float(np.corrcoef(found[name], true)[0, 1]) for name, true in truth.slopes.items()}
    slope = {name: float(found[name] @ true / (true @ true)) for name, true in truth.slopes.items()}
    known = {name: q for name, q in model.labels.to_quantities(truth.labels).items() if name in model.labels}
    offsets = compare_labels(model, truth.stars, known, progress=False)
    own = truth.labels - truth.usual
    recovered = {
        name: float(np.polyfit(own[:, k], (offsets.offset + own)[:, k], 1)[0])
        for k, name in enumerate(truth.names)
        if name in truth.slopes
    }
    low, bias, high = np.percentile(offsets.offset, [16, 50, 84], axis=0)
    return {
        "chi2": float(np.median(offsets.reduced_chi2)),
        "correlation": correlation,
        "slope": slope,
        "recovered": recovered,
        "bias": dict(zip(truth.names, bias.tolist(), strict=True)),
        "scatter": dict(zip(truth.names, ((high - low) / 2).tolist(), strict=True)),
    }


def in_form(model, form):
    """The same weights, with the other form of the translation; first guesses are those of the one they came with."""
    old = model.translator
    return replace(model, translator=Translator(old.network, old.flux_mean, old.flux_std, form), shortcuts=None)


def study(inputs, work):
    """Add to ``elements.json`` the rows that it lacks."""
    path, truth, emulator = work / "elements.json", Truth(inputs, work), None
    rows = json.loads(path.read_text()) if path.exists() else {}
    kept = work / "elements" / "emulator.pt"
    for losses in LOSSES:
        for seed in SEEDS:
            name = f"{losses}/{seed}"
            if all(f"{name}/{form}" in rows for form in FORMS):
                continue
            emulator = kept if kept.exists() else None
            begin = time.process_time()
            model = train(work, emulator, losses, seed)
            seconds = time.process_time() - begin
            if emulator is None:
                shutil.copy(work / "elements" / f"{losses}-{seed}" / "emulator.pt", kept)
            for form in FORMS:
                rows[f"{name}/{form}"] = measure(in_form(model, form), truth) | {"seconds": seconds}
                write_atomically(path, lambda temporary: temporary.write_text(json.dumps(rows, indent=1)))
            log.info("%s: %.0f CPU-s", name, seconds)
    return rows


# -- the table -----------------------------------------------------------------------
STRONG, WEAK = ("c", "n", "o", "mg", "al", "si", "ca", "ti", "ni"), ("s", "k", "v", "cr", "mn", "co")


def table(rows):
    """Text of the table: a line for each form and choice of losses, means over the seeds."""
    header = (
        "translation", "losses", "χ²", "derivatives, r: strong / weak", "least", "recovered slope: strong / weak",
        "Teff [K]", "log g", "[Fe/H]", "CPU-s",
    )  # fmt: skip
    lines = [header]
    for form in FORMS:
        for losses in LOSSES:
            found = [rows[f"{losses}/{seed}/{form}"] for seed in SEEDS if f"{losses}/{seed}/{form}" in rows]
            if not found:
                continue
            pairs = [
                " / ".join(
                    f"{np.mean([[row[key][f'{e}_h'] for e in part] for row in found]):.2f}" for part in (STRONG, WEAK)
                )
                for key in ("correlation", "recovered")
            ]
            least = f"{np.mean([min(row['correlation'].values()) for row in found]):.2f}"
            labels = [
                " / ".join(form_.format(np.mean([row[key][name] for row in found])) for key in ("bias", "scatter"))
                for name, form_ in (("teff", "{:.0f}"), ("logg", "{:.2f}"), ("fe_h", "{:.3f}"))
            ]
            chi2 = np.mean([row["chi2"] for row in found])
            seconds = max(row["seconds"] for row in found)  # a training that was resumed tells less
            lines.append((form, losses, f"{chi2:.2f}", pairs[0], least, pairs[1], *labels, f"{seconds:.0f}"))
    title = (
        f"Forms of the translation and losses, {BUDGET['n_iterations']:,} iterations, means of {len(SEEDS)} seeds, "
        f"{N_STARS} stars; labels: bias / scatter; {date.today().isoformat()}, one core of an AMD EPYC, "
        f"torch {torch.__version__}"
    )
    return list_table(title, lines)


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder with data/ and tools/")
    parser.add_argument("work", type=Path, help="folder of apogee_giants_data.py, with a copy of apogee_giants.toml")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    write_rst(TABLE, table(study(options.inputs, options.work)))


if __name__ == "__main__":
    main()
