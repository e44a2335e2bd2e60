#!/usr/bin/env python
"""Giants of four labels: what the studies ``fits.py``, ``stability.py`` and ``missing_lines_*.toml`` are made of.

Stages, in order; each reads the files of the earlier ones in ``--work`` and can be run again::

    python recipes/four_label_giants.py continuum --inputs INPUTS --work WORK
    python recipes/four_label_giants.py observed  --inputs INPUTS --work WORK
    python recipes/four_label_giants.py emulator  --inputs INPUTS --work WORK
    python recipes/four_label_giants.py prior     --inputs INPUTS --work WORK

``continuum`` has also chosen the continuum pixels that the package ships. ``INPUTS`` holds ``data/moog_grid``
(a grid of MOOG spectra with 20 labels), ``data/apogee`` (a Cannon model of real APOGEE giants and what is
needed to simulate observations) and ``tools`` (their reader and generator).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import torch
from astropy.table import Table

from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.grid import apogee_grid
from cyclestarnet.labels import LabelSet
from cyclestarnet.networks.checkpoint import load_state, save_state
from cyclestarnet.networks.emulator import Emulator, EmulatorSettings, train_emulator
from cyclestarnet.training.alignment import gaussian_transport
from cyclestarnet.training.assembly import quiet_pixels

log = logging.getLogger("four_label_giants")

GRID = apogee_grid()
CONTINUUM_FILE = Path(__file__).parents[1] / "cyclestarnet" / "data" / "apogee_continuum_pixels.ecsv"
ALPHA_ELEMENTS = ("o_h", "mg_h", "si_h", "s_h", "ca_h", "ti_h")
COMBINATIONS = {
    "m_h": {"fe_h": 1.0},
    "alpha_m": {**{name: 1 / len(ALPHA_ELEMENTS) for name in ALPHA_ELEMENTS}, "fe_h": -1.0},
}
N_TRAIN, N_VALIDATION, N_TEST, N_COOL_TEST = 22_000, 1_000, 1_000, 200
COOL_FRACTION, COOL_LIMIT = 0.15, 4050.0
N_TREND, ELEMENT_SCATTER = 1_200, 0.02
N_ANCHORS = 30


# -- inputs -----------------------------------------------------------------
def synthetic_grid(inputs):
    """Labels (n, 20), raw flux (n, n_pixels) and the `LabelSet` of the MOOG grid."""
    sys.path.insert(0, str(inputs / "tools"))
    from load_moog_grid import load

    grid = load(inputs / "data" / "moog_grid" / "moog_apogee_grid.npz")
    names = [n.lower().strip("[]").replace("/", "_").replace("v_broad", "vbroad") for n in grid["label_names"]]
    labels = grid["labels"].astype(float)
    label_set = LabelSet(names, np.floor(labels.min(0) * 100) / 100, np.ceil(labels.max(0) * 100) / 100, COMBINATIONS)
    return labels, grid["flux"][:, : GRID.n_pixels].astype(float), label_set


def continuum_recipe():
    """The recipe with the shipped list of continuum pixels."""
    pixels = np.zeros(GRID.n_pixels, dtype=bool)
    pixels[Table.read(CONTINUUM_FILE)["pixel"]] = True
    return ContinuumRecipe(GRID, pixels)


def observed_domain(inputs):
    """The module that simulates observed-like stars."""
    sys.path.insert(0, str(inputs / "tools"))
    import make_observed_domain

    return make_observed_domain


def draw_labels(inputs, rng, n, fold, cool_fraction):
    """Labels (n, 4) of observed-like stars; some cool ones come from the thin edge of the Cannon's training set."""
    generator = observed_domain(inputs)
    cannon, n_cool = generator.CannonModel(), round(cool_fraction * n)
    labels, *_ = generator.draw_labels(rng, n, cannon, 0.3, 5, fold)
    edge, *_ = generator.draw_labels(rng, 40 * n_cool, cannon, 0.05, 1, fold)
    labels = np.concatenate([labels[n_cool:], edge[edge[:, 0] < COOL_LIMIT][:n_cool]])
    return labels[rng.permutation(len(labels))]


# -- stages -----------------------------------------------------------------
def continuum(options):
    """Choose continuum pixels: those that are quiet in spectra of giants."""
    labels, flux, label_set = synthetic_grid(options.inputs)
    teff, logg = (labels[:, label_set.index(name)] for name in ("teff", "logg"))
    flux = flux[(teff > 3900) & (teff < 5200) & (logg < 3.8)]
    score, chosen = np.hypot(1 - flux.mean(0), flux.std(0)), np.flatnonzero(quiet_pixels(flux, GRID))
    table = Table({"pixel": chosen, "wavelength": GRID.wavelength[chosen].round(3), "score": score[chosen].round(5)})
    table.meta = {
        "comments": [
            "Continuum pixels of the 7167-pixel APOGEE grid, derived by recipes/four_label_giants.py from MOOG spectra",
            f"of {len(flux)} giants (3900-5200 K, logg < 3.8). wavelength: vacuum;",
            "score: hypot(mean depth, scatter over the grid).",
        ]
    }
    table.write(CONTINUUM_FILE, overwrite=True)
    log.info(
        "%d continuum pixels, %s per chip",
        len(chosen),
        [int(((chosen >= a) & (chosen < b)).sum()) for a, b in GRID.chips],
    )


def observed(options):
    """Simulate the observed domain; test stars come from catalogue rows that training never sees."""
    generator = observed_domain(options.inputs)
    cannon, full_grid = generator.CannonModel(), generator.Grid()
    noise, recipe = generator.NoiseModel(full_grid), continuum_recipe()

    def normaliser(flux, err, mask):
        """Our recipe on the generator's 7214 pixels; the 47 that we drop keep the last value."""
        n = GRID.n_pixels
        inner = recipe(flux[:, :n], mask[:, :n] / err[:, :n].astype(float) ** 2)
        return np.pad(inner, ((0, 0), (0, flux.shape[1] - n)), mode="edge").astype(np.float32)

    defaults = generator.build_parser().parse_args(["unused.h5"])
    sets = {
        "train": (N_TRAIN, "0-8/10", COOL_FRACTION, 1),
        "val": (N_VALIDATION, "0-8/10", COOL_FRACTION, 2),
        "test": (N_TEST, "9/10", 0.0, 3),
        "cool": (N_COOL_TEST, "9/10", 1.0, 4),
    }
    with h5py.File(options.work / "observed.h5", "w") as out:
        out["wavelength"] = GRID.wavelength.value
        out.attrs["label_names"] = list(generator.LABEL_NAMES)
        for split, (number, fold, cool_fraction, seed) in sets.items():
            rng = np.random.default_rng([options.seed, seed])
            labels = draw_labels(options.inputs, rng, number, fold, cool_fraction)
            snr = generator.draw_snr(rng, len(labels), defaults.snr_median, defaults.snr_sigma)
            shape = (len(labels), GRID.n_pixels)
            stored = {
                "spectra": out.create_dataset(f"spectra {split}", shape, "f4"),
                "spectra_err": out.create_dataset(f"spectra_err {split}", shape, "f4"),
                "spectra_msk": out.create_dataset(f"spectra_msk {split}", shape, "u1"),
            }
            out[f"labels {split}"], out[f"snr {split}"] = labels, snr
            for i in range(0, len(labels), 500):
                part = slice(i, i + 500)
                flux, error, good, *_ = generator.observe(
                    rng,
                    labels[part],
                    snr[part],
                    cannon,
                    full_grid,
                    noise,
                    normaliser,
                    SimpleNamespace(**vars(defaults)),
                )
                for dataset, array in zip(stored.values(), (flux, error, good), strict=True):
                    dataset[part] = array[:, : GRID.n_pixels]
            log.info("%s: %d stars", split, len(labels))


def emulator(options):
    """Train The Payne on the grid, normalised by the shipped recipe; 10 % of the spectra are held out."""
    labels, flux, label_set = synthetic_grid(options.inputs)
    flux = flux / continuum_recipe()(flux, np.ones_like(flux))
    order = np.random.default_rng(options.seed).permutation(len(labels))
    held, used = order[: len(order) // 10], order[len(order) // 10 :]
    settings = EmulatorSettings(learning_rate=5e-3, seed=options.seed)
    network, _ = train_emulator(
        labels[used], flux[used], lower=label_set.lower, upper=label_set.upper, settings=settings
    )
    error = np.abs(network(torch.tensor(labels[held], dtype=torch.float32)).numpy() - flux[held])
    teff = labels[held, label_set.index("teff")]
    report = {"all": error_summary(error)}
    for low, high in ((3600, 4000), (4000, 4500), (4500, 5000), (5000, 5600)):
        report[f"{low}-{high} K"] = error_summary(error[(teff >= low) & (teff < high)])
    (options.work / "emulator.json").write_text(json.dumps(report, indent=1))
    save_state({"emulator": network.state_dict(), "labels": label_set.to_dict()}, options.work / "emulator.pt")
    log.info("held-out errors: %s", json.dumps(report, indent=1))


def error_summary(error):
    """Number of spectra and median, mean and 99th percentile of the absolute flux error."""
    return {
        "n": len(error),
        "median": float(np.median(error)),
        "mean": float(error.mean()),
        "p99": float(np.percentile(error, 99)),
    }


def load_emulator(work):
    """The emulator of the stage ``emulator`` and its labels."""
    state = load_state(work / "emulator.pt")
    label_set = LabelSet(**state["labels"])
    network = Emulator(label_set.lower, label_set.upper, GRID.n_pixels)
    network.load_state_dict(state["emulator"])
    return network.eval().requires_grad_(False), label_set


def tied_design(label_set):
    """Matrix from (teff, logg, m_h, alpha_m, c_m, n_m, vmicro, vbroad) to the labels of the grid."""
    design = np.zeros((8, len(label_set)))
    for row, name in ((0, "teff"), (1, "logg"), (6, "vmicro"), (7, "vbroad")):
        design[row, label_set.index(name)] = 1.0
    for name in label_set:
        design[2, label_set.index(name)] = name.endswith("_h")
    design[3, [label_set.index(name) for name in ALPHA_ELEMENTS]] = 1.0
    design[4, label_set.index("c_h")] = design[5, label_set.index("n_h")] = 1.0
    return design


def prior(options):
    """Make the pool of synthetic labels, which is the label prior of the model.

    (teff, logg, m_h, alpha_m) are drawn as for the observed stars. Elements
    follow m_h and alpha_m with a small scatter. C, N, micro-turbulence and
    broadening follow the four with the trends and the scatter of Eq. 9 fits
    with tied labels to *training* stars: giants that rise on their branch
    change all of these together, and if synthetic stars did not, the
    translation would have to undo it by wrong labels.
    """
    network, label_set = load_emulator(options.work)
    design = torch.tensor(tied_design(label_set), dtype=torch.float32)
    with h5py.File(options.work / "observed.h5") as file:
        flux, sigma = (torch.tensor(file[f"{key} train"][:N_TREND]) for key in ("spectra", "spectra_err"))
        weight = torch.tensor(file["spectra_msk train"][:N_TREND]) / (sigma**2 + 0.03**2)  # 0.03: size of the gap
    tied = torch.tensor([4500.0, 2.2, -0.2, 0.1, 0.0, 0.1, 1.5, 5.0]).repeat(len(flux), 1)
    size = torch.tensor([100.0, 0.3, 0.1, 0.1, 0.1, 0.1, 0.3, 1.0])
    lower, upper = (torch.tensor(a, dtype=torch.float32) for a in (label_set.lower, label_set.upper))
    lower, upper = lower[[0, 1, 15, 15, 15, 15, 18, 19]], upper[[0, 1, 15, 15, 15, 15, 18, 19]]
    jacobian = torch.func.vmap(torch.func.jacfwd(lambda p: network(p @ design)))
    for _ in range(15):  # damped Gauss-Newton
        for part in torch.arange(len(flux)).split(50):
            slopes = jacobian(tied[part]) * size
            weighted = slopes * weight[part][..., None]
            normal = slopes.transpose(1, 2) @ weighted + 10.0 * torch.eye(len(size))
            right = (weighted * (flux[part] - network(tied[part] @ design))[..., None]).sum(1)
            move = torch.linalg.solve(normal, right).clamp(-2, 2) * size
            tied[part] = torch.minimum(torch.maximum(tied[part] + move, lower), upper)
    rng = np.random.default_rng([options.seed, 9])
    four = draw_labels(options.inputs, rng, N_TRAIN * 4, "0-8/10", COOL_FRACTION)
    tied = tied.double().numpy()
    fitted = gaussian_transport(tied[:, :4], four)(tied[:, :4])  # Eq. 9 is off: carry its labels to the prior
    trend, scatter = robust_trend(quadratic(fitted, four), tied[:, 4:])
    scatter /= 2  # the fits' own noise is a good part of it
    log.info("c_m, n_m, vmicro, vbroad: scatter about their trends %s", scatter.round(3))
    rest = quadratic(four, four) @ trend + scatter * rng.standard_normal((len(four), 4))
    pool = np.hstack([four, rest]) @ design.double().numpy()
    abundances = [k for k, name in enumerate(label_set) if name.endswith("_h") and name not in ("c_h", "n_h")]
    pool[:, abundances] += ELEMENT_SCATTER * rng.standard_normal((len(pool), len(abundances)))
    # clipped, not left out: that would take away giants of high gravity, and with them the zero point of log g
    outside = ((pool < label_set.lower) | (pool > label_set.upper)).any(1)
    log.info("%d of %d rows of labels are moved to the edge of the grid", outside.sum(), len(pool))
    pool = pool.clip(label_set.lower, label_set.upper)
    np.savez(options.work / "label_pool.npz", pool=pool.astype(np.float32), scatter=scatter, four=four, trend=trend)


def quadratic(labels, reference):
    """Design matrix (n, 15) of second order in 4 labels, standardised by those of ``reference``."""
    z = ((labels - reference.mean(0)) / reference.std(0)).clip(-3, 3)
    products = [z[:, i] * z[:, k] for i in range(4) for k in range(i, 4)]
    return np.column_stack([np.ones(len(z)), z, *products])


def robust_trend(design, values):
    """Least squares without outliers beyond 2.5 σ: coefficients, and half the 16-84 % range of the residuals."""
    kept = np.ones(len(values), dtype=bool)
    for _ in range(5):
        trend = np.linalg.lstsq(design[kept], values[kept], rcond=None)[0]
        residual = values - design @ trend
        low, high = np.percentile(residual, [16, 84], axis=0)
        kept = (np.abs(residual) < 2.5 * (high - low) / 2).all(1)
    return trend, (high - low) / 2


REPORTED = ("teff", "logg", "m_h", "alpha_m")


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[stage.__name__ for stage in STAGES])
    parser.add_argument("--inputs", type=Path, required=True, help="folder with data/ and tools/")
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files")
    parser.add_argument("--seed", type=int, default=0)
    return parser


STAGES = (continuum, observed, emulator, prior)


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = build_parser().parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    {stage.__name__: stage for stage in STAGES}[options.stage](options)


if __name__ == "__main__":
    main()
