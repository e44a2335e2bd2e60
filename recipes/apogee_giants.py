#!/usr/bin/env python
"""The recipe of the embedded model ``apogee-giants``, from the synthetic grid to the packed file.

Stages, in order; each reads the files of the earlier ones in ``--work`` and can be run again::

    python recipes/apogee_giants.py continuum --inputs INPUTS --work WORK
    python recipes/apogee_giants.py observed  --inputs INPUTS --work WORK
    python recipes/apogee_giants.py emulator  --inputs INPUTS --work WORK
    python recipes/apogee_giants.py prior     --inputs INPUTS --work WORK
    python recipes/apogee_giants.py train     --inputs INPUTS --work WORK
    python recipes/apogee_giants.py pack      --inputs INPUTS --work WORK
    python recipes/apogee_giants.py calibrate --inputs INPUTS --work WORK
    python recipes/apogee_giants.py evaluate  --inputs INPUTS --work WORK
    python recipes/apogee_giants.py ship      --inputs INPUTS --work WORK

The shipped model has had the stage ``anchor``, too, between ``train`` and
``pack``, and the following were run with ``--run anchored``: a few stars of known
labels took part in the last iterations.

``INPUTS`` holds ``data/moog_grid`` (a grid of MOOG spectra with 20 labels), ``data/apogee`` (a Cannon
model of real APOGEE giants and what is needed to simulate observations) and ``tools`` (their reader
and generator). ``train`` can be killed at any moment and run again: it resumes.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import astropy.units as u
import h5py
import numpy as np
import torch
from astropy.nddata import StdDevUncertainty
from astropy.table import Table
from list_tables import list_table, write_rst
from scipy.optimize import least_squares

from cyclestarnet import CalibratedModel
from cyclestarnet._version import __version__
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.grid import apogee_grid
from cyclestarnet.io import read
from cyclestarnet.labels import LabelSet
from cyclestarnet.networks.checkpoint import load_state, save_state
from cyclestarnet.networks.emulator import Emulator, EmulatorSettings, train_emulator
from cyclestarnet.networks.predictor import EmulatorPredictor, Translator
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import Spectrum, to_spectrum
from cyclestarnet.training.alignment import gaussian_transport
from cyclestarnet.training.assembly import Residuals, assemble_model, quiet_pixels
from cyclestarnet.training.datasets import ObservedSpectra, SyntheticSpectra
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.trainer import Anchors, Trainer
from cyclestarnet.training.watch import alignment_scores

log = logging.getLogger("apogee_giants")

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
            "Continuum pixels of the 7167-pixel APOGEE grid, derived by recipes/apogee_giants.py from MOOG spectra",
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
                *arrays, _ = generator.observe(
                    rng,
                    labels[part],
                    snr[part],
                    cannon,
                    full_grid,
                    noise,
                    normaliser,
                    SimpleNamespace(**vars(defaults)),
                )
                for dataset, array in zip(stored.values(), arrays, strict=True):
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


def train(options):
    """Train the translation networks; resumes from its checkpoint."""
    torch.set_num_threads(options.threads)
    make_trainer(options, training_settings(options.seed), "training").run(checkpoint_every=250)


def anchor(options):
    """Go on from the end of `train` with stars of known labels in the loss; resumes, too."""
    torch.set_num_threads(options.threads)
    settings = replace(
        training_settings(options.seed),
        n_iterations=1_500,
        learning_rate=2e-4,
        critic_learning_rate=2e-4,
        weight_anchors=9.0,
        seed=options.seed + 1,
    )
    trainer = make_trainer(options, settings, "anchored", n_anchors=N_ANCHORS)
    trainer.start_from(options.work / "training" / "checkpoint.pt")
    trainer.run(checkpoint_every=250)


def make_trainer(options, settings, folder, n_anchors=0):
    """The trainer on the files of the earlier stages; its anchors are the first training stars, with true labels."""
    network, label_set = load_emulator(options.work)
    with h5py.File(options.work / "observed.h5") as file:
        flux, sigma, good = (file[f"{key} train"][:] for key in ("spectra", "spectra_err", "spectra_msk"))
        truth = file["labels train"][:n_anchors].astype(float)
    saved = np.load(options.work / "label_pool.npz")
    pool, anchors = saved["pool"], None
    if n_anchors:
        rest = quadratic(truth, saved["four"]) @ saved["trend"]  # what is not known follows the trends
        part = slice(n_anchors)
        spectra = ObservedSpectra(flux[part], sigma[part], good[part] == 0, settings)
        anchors = Anchors(spectra, np.hstack([truth, rest]) @ tied_design(label_set))
    return Trainer(
        NetworkSettings(split_filters=1),
        settings,
        SyntheticSpectra(network, pool, settings),
        ObservedSpectra(flux, sigma, good == 0, settings),
        options.work / folder,
        anchors=anchors,
    )


def training_settings(seed):
    """The paper's losses; faster rates, an averaged network, and two terms that align the latents sooner."""
    return TrainingSettings(
        n_iterations=22_000,
        learning_rate=6e-4,
        critic_learning_rate=4e-4,
        schedule="cosine",
        weight_latent=2.0,
        weight_labels=5.0,
        gradient_clip=300.0,
        average_decay=0.995,
        mixed_precision=True,
        seed=seed,
    )


def pack(options):
    """Join the trained parts into one model: prior, latent cloud, per-pixel scatter, limits of the flags."""
    torch.set_num_threads(1)
    network, label_set = load_emulator(options.work)
    settings = training_settings(options.seed)
    state = load_state(options.work / options.run / "checkpoint.pt")
    translation = TranslationNetwork(NetworkSettings(**state["settings"]["network"]))
    translation.load_state_dict(state["average"])
    translator = Translator(translation, settings.flux_mean, settings.flux_std)
    pool = np.load(options.work / "label_pool.npz")["pool"].astype(float)
    pool = pool.clip(label_set.lower, label_set.upper)  # single precision rounds across the edge
    model = assemble_model(
        "apogee-giants",
        labels=label_set,
        grid=GRID,
        emulator=network,
        translator=translator,
        label_pool=pool,
        observed=as_spectra(load_stars(options.work, "train", 3_000)),
        validation=as_spectra(load_stars(options.work, "val", options.n_scatter)),
        noise=settings.noise,
        recipe=continuum_recipe(),
        provenance=provenance(options, state),
        fit=partial(fit_residuals, n_processes=options.threads),
    )
    model.save(model_file(options), half=True)


def model_file(options):
    """The packed model of a run."""
    return options.work / f"{options.run}.safetensors"


def fit_residuals(model, spectra, *, n_processes, space="observed", progress=True):
    """What `cyclestarnet.training.assembly.fit_residuals` does, in parallel."""
    flux, sigma = spectra.flux.value, spectra.uncertainty.array
    results = fit_stars(model, list(zip(flux, sigma, ~spectra.mask, strict=True)), n_processes, space=space)
    chi2 = np.array([r["chi2_total"] / r["dof"] for r in results])
    return Residuals(*(np.array([r[key] for r in results], dtype=float) for key in ("residual", "sigma")), chi2)


def calibrate(options):
    """Learn the error of labels that residuals do not show, from validation stars of known labels.

    Single elements have no known values: they are held to follow m_h and
    alpha_m. C, N, micro-turbulence and broadening get no such term.
    """
    torch.set_num_threads(1)
    path = model_file(options)
    model = CalibratedModel.load(path)
    model = replace(model, noise=replace(model.noise, label_error=None))
    stars = load_stars(options.work, "val", options.n_scatter)
    with h5py.File(options.work / "observed.h5") as file:
        truth = file["labels val"][: len(stars)].astype(float)
    results = fit_stars(model, stars, options.threads)
    design = tied_design(model.labels)
    known = ~np.isin(model.labels.names, ("c_h", "n_h", "vmicro", "vbroad"))
    offset = (np.array([r["values"] for r in results]) - truth @ design[:4])[:, known]
    # outliers would widen the error bars of everyone: clip at 3 robust σ
    low, middle, high = np.percentile(offset, [16, 50, 84], axis=0)
    kept = (np.abs(offset - middle) < 1.5 * (high - low)).all(1)
    all_offsets, offset = offset, offset[kept]
    reported_variance = np.array([np.diag(r["covariance"])[known] for r in results])
    reported_covariance = np.mean([r["covariance"] for r in results], axis=0)[np.ix_(known, known)]
    scale = np.sqrt(np.diag(reported_covariance))
    excess = (offset.T @ offset / len(offset) - reported_covariance) / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(excess)
    own = (vectors * values.clip(0)) @ vectors.T * np.outer(scale, scale)
    factor = np.array(
        [covering_factor(*label) for label in zip(all_offsets.T, reported_variance.T, np.diag(own), strict=True)]
    )
    error = np.zeros((len(known), len(known)))
    error[np.ix_(known, known)] = own * np.outer(factor, factor)
    log.info("label errors: %s", dict(zip(model.labels, np.sqrt(np.diag(error)).round(3).tolist(), strict=True)))
    replace(model, noise=replace(model.noise, label_error=error)).save(path, half=True)


def covering_factor(offset, variance, own):
    """Factor on an error, of variance ``own``, that is added to reported ones so that 68.3 % of offsets lie within."""
    if own == 0 or np.mean(offset**2 < variance) > 0.683:
        return 1.0
    needed = np.maximum(offset**2 - variance, 0) / own  # square of the factor with which a star is just covered
    return float(np.sqrt(np.quantile(needed, 0.683)))


def provenance(options, state):
    """What goes on the model card."""
    saved = np.load(options.work / "label_pool.npz")
    errors = json.loads((options.work / "emulator.json").read_text())["all"]
    return {
        "recipe": "recipes/apogee_giants.py",
        "version": __version__,
        "synthetic domain": "MOOG, LTE, plane-parallel, 2499 spectra, 20 labels; emulator 20-300-300-7167, "
        f"median error {errors['median']:.5f} of the continuum on 10 % held out",
        "observed domain": f"{N_TRAIN} simulated stars: a Cannon model of real APOGEE giants (4 labels) "
        "with a simulated instrument. Not real spectra.",
        "training": f"{training_settings(options.seed).n_iterations} iterations of 8 + 8 spectra, bfloat16, "
        f"1 CPU core, seed {options.seed}"
        + (f"; then {state['iteration']} with anchors" if options.run == "anchored" else ""),
        "anchors": f"{N_ANCHORS} training stars whose four labels were given" if options.run == "anchored" else "none",
        "validity": "red giants, Teff 3650-5100 K, logg 0.7-3.4, [M/H] -1.5 to +0.35, S/N 30-500",
        "label prior": "(teff, logg, m_h, alpha_m) of APOGEE giants; other elements follow within "
        f"{ELEMENT_SCATTER} dex; c_m, n_m, vmicro, vbroad follow the trends of Eq. 9 fits of training stars with those "
        f"four, within {np.round(saved['scatter'], 3).tolist()}",
    }


def as_spectra(stars):
    """One spectrum with a row per star of `load_stars`."""
    flux, sigma, good = (np.array(part, dtype=float) for part in zip(*stars, strict=True))
    return to_spectrum(flux, GRID, ivar=good / sigma**2)


def load_stars(work, split, number):
    """Observed-like stars of a split: list of (flux, sigma, good)."""
    with h5py.File(work / "observed.h5") as file:
        arrays = [file[f"{key} {split}"][:number] for key in ("spectra", "spectra_err", "spectra_msk")]
    return list(zip(*arrays, strict=True))


_worker_model = None


def _start_worker(model):
    global _worker_model
    torch.set_num_threads(1)
    _worker_model = model


def _fit_star(task):
    (flux, sigma, good), options = task
    spectrum = Spectrum(
        flux=flux.astype(float) * u.dimensionless_unscaled,
        spectral_axis=GRID.wavelength,
        uncertainty=StdDevUncertainty(sigma.astype(float)),
        mask=good == 0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = _worker_model.fit(spectrum, method="lm", **options)
    return {
        "values": result.values,
        "covariance": result.covariance,
        "chi2": result.chi2,
        "chi2_total": result.chi2_total,
        "dof": result.dof,
        "success": result.success,
        "flags": result.flags.value,
        "residual": result.residual.value.astype(np.float32),
        "sigma": np.maximum(sigma, _worker_model.noise.sigma_floor).astype(np.float32),
    }


def fit_stars(model, stars, n_processes, **options):
    """Fit stars in parallel processes of one thread each; a list of plain results.

    Set ``OPENBLAS_NUM_THREADS=1``: the threads of NumPy's library in several processes wait for each other.
    """
    context = multiprocessing.get_context("fork")
    tasks = [(star, options) for star in stars]
    with context.Pool(n_processes, _start_worker, (model,)) as pool:
        return list(
            tqdm(pool.imap(_fit_star, tasks, chunksize=4), total=len(tasks), desc=options.get("space", "observed"))
        )


REPORTED = ("teff", "logg", "m_h", "alpha_m")


def reported(model, results):
    """Values and errors (n, 4) of the labels that the observed-like stars vary."""
    labels = model.labels
    transform = np.vstack([np.eye(len(labels)), labels.combination_matrix])
    names = [*labels.names, *labels.combinations]
    transform = transform[[names.index(name) for name in REPORTED]]
    values = np.array([transform @ r["values"] for r in results])
    errors = np.array([np.sqrt(np.diag(transform @ r["covariance"] @ transform.T)) for r in results])
    return values, errors


def score(model, results, truth, values=None):
    """Figures of one way to fit: χ², residuals in σ, label bias, scatter and coverage."""
    fitted, errors = reported(model, results)
    offset = (fitted if values is None else values) - truth
    pull = np.concatenate([(r["residual"] / r["sigma"])[np.isfinite(r["residual"])] for r in results])
    low, middle, high = np.percentile(pull, [16, 50, 84])
    spread = np.percentile(offset, [16, 84], axis=0)
    out = {
        "n": len(results),
        "chi2": float(np.median([r["chi2"] / r["dof"] for r in results])),
        "bias_sigma": float(middle),
        "half_width": float((high - low) / 2),
        "converged": float(np.mean([r["success"] for r in results])),
        "flagged": float(np.mean([r["flags"] != 0 for r in results])),
        "bias": dict(zip(REPORTED, np.median(offset, axis=0).tolist(), strict=True)),
        "scatter": dict(zip(REPORTED, ((spread[1] - spread[0]) / 2).tolist(), strict=True)),
    }
    if values is None:
        out["coverage"] = dict(zip(REPORTED, (np.abs(offset) < errors).mean(0).tolist(), strict=True))
    return out


def evaluate(options):
    """Measure the packed model on held-out observed-like stars and write the tables of the documentation."""
    torch.set_num_threads(1)
    model = CalibratedModel.load(model_file(options))
    n, workers, report = options.n_test, options.threads, {}
    with h5py.File(options.work / "observed.h5") as file:
        truth, cool_truth = (file[f"labels {split}"][:n].astype(float) for split in ("test", "cool"))
    stars, cool = load_stars(options.work, "test", n), load_stars(options.work, "cool", n // 10)
    fits = {
        "Eq. 9, flat prior": {"space": "emulator", "prior": None},
        "Eq. 9": {"space": "emulator"},
        "Eq. 10": {"space": "synthetic"},
        "Eq. 11": {"space": "observed"},
    }
    found = {}
    for name, arguments in fits.items():
        part = stars if name in ("Eq. 9", "Eq. 11") else stars[: n // 5]  # the others are there for comparison
        found[name] = fit_stars(model, part, workers, **arguments)
        report[name] = score(model, found[name], truth[: len(part)])
    # The baseline without a network: the same prior, matched to Eq. 9's labels of *other* stars by their moments.
    others, _ = reported(model, fit_stars(model, load_stars(options.work, "val", n // 2), workers, space="emulator"))
    pool = np.load(options.work / "label_pool.npz")["pool"].astype(float)
    target, _ = reported(model, [{"values": y, "covariance": np.zeros((len(y), len(y)))} for y in pool[:20_000]])
    moved = gaussian_transport(others, target)(reported(model, found["Eq. 9"])[0])
    report["Eq. 9 + transport"] = score(model, found["Eq. 9"], truth, moved)
    for name in ("Eq. 9", "Eq. 11"):
        report[f"{name}, < 4050 K"] = score(model, fit_stars(model, cool, workers, **fits[name]), cool_truth[: n // 10])
    report["networks"] = score_networks(model, stars, truth, options)
    report["derivatives"] = derivative_agreement(model)
    report["real"] = real_stars(model, options.inputs)
    (options.work / f"evaluation_{options.run}.json").write_text(json.dumps(report, indent=1))
    log.info(json.dumps(report, indent=1))


def ship(options):
    """Write the tables of the documentation, and the model with its measured figures into the package.

    If there is ``before.safetensors`` with ``evaluation_before.json``, both are compared.
    """
    report = json.loads((options.work / f"evaluation_{options.run}.json").read_text())
    write_tables(report, json.loads((options.work / "emulator.json").read_text()))
    write_comparison(options)
    model = CalibratedModel.load(model_file(options))
    final = replace(model, provenance=dict(model.provenance) | {"measured": measured_text(report)})
    final.save(CONTINUUM_FILE.parent / "apogee-giants.safetensors", half=True)


def measured_text(report):
    """One sentence for the model card."""
    plain, translated = report["Eq. 9"], report["Eq. 11"]
    labels = ", ".join(
        f"{name} {translated['bias'][name]:+.3g} / {translated['scatter'][name]:.3g} "
        f"(coverage {translated['coverage'][name]:.2f})"
        for name in REPORTED
    )
    return (
        f"{translated['n']} held-out simulated stars: median reduced chi2 {plain['chi2']:.2f} with the emulator alone "
        f"(Eq. 9), {translated['chi2']:.2f} translated (Eq. 11); offset / scatter and 68 % coverage of Eq. 11: {labels}"
    )


def score_networks(model, stars, truth, options):
    """Autoencoder errors of both domains, and how much of the labels leaks into the split latent."""
    flux, sigma, good = (np.array(part, dtype=float) for part in zip(*stars, strict=True))
    filled = np.where(good > 0, flux, 1.0)
    pull = ((flux - model.translator.reconstruct_obs(filled)) / np.maximum(sigma, 0.005))[good > 0]
    pool = np.load(options.work / "label_pool.npz")["pool"][-len(stars) :]
    synthetic = EmulatorPredictor(model.emulator).flux(pool)
    error = model.translator.reconstruct_synth(synthetic) - synthetic
    split = model.translator.encode_obs(filled)[1].reshape(len(stars), -1)
    some = slice(250)
    weight = torch.tensor((good * model.translator.flux_std / np.maximum(sigma, 0.005))[some], dtype=torch.float32)
    scores = alignment_scores(
        model.translator.network,
        model.translator.standardise(synthetic[some]),
        model.translator.standardise(filled[some]),
        weight,
        seed=0,
    )
    half = len(stars) // 2
    design = np.column_stack([split, np.ones(len(split))])
    probe = np.linalg.lstsq(design[:half], truth[:half], rcond=None)[0]
    left = (truth[half:] - design[half:] @ probe).var(0) / truth[half:].var(0)
    return {
        "observed_chi2": float((pull**2).mean()),
        "observed_half_width": float(np.diff(np.percentile(pull, [16, 84]))[0] / 2),
        "synthetic_bias": float(np.median(error)),
        "synthetic_scatter": float(np.diff(np.percentile(error, [16, 84]))[0] / 2),
        "split_leak_r2": dict(zip(REPORTED, (1 - left).tolist(), strict=True)),
        "scores": scores,
    }


def derivative_agreement(model):
    """Correlation and slope of the observed domain's derivatives against the emulator's, at the mean of the prior."""
    labels = model.labels.to_quantities(model.prior.mean)
    observed, synthetic = (model.derivative_spectra(labels, domain=domain) for domain in ("observed", "synthetic"))
    report = {}
    for name in model.labels:
        a, b = synthetic[name].value, observed[name].value
        report[name] = {"correlation": float(np.corrcoef(a, b)[0, 1]), "slope": float(a @ b / (a @ a))}
    return report


def cannon_fit(inputs, result):
    """Labels that the Cannon model of real giants gives the same normalised spectrum, same recipe on both sides."""
    generator, recipe = observed_domain(inputs), continuum_recipe()
    cannon, n = generator.CannonModel(), GRID.n_pixels
    flux, sigma = result.spectrum.flux.value, result.spectrum.uncertainty.array
    good = ~result.spectrum.mask
    weight = np.where(good, 1 / np.hypot(np.where(good, sigma, 1.0), cannon.scatter[:n]), 0.0)
    coefficients = cannon.coefficients[:, :n].astype(float)
    steps = np.array([100.0, 0.3, 0.1, 0.1])

    def residual(x):
        # in double precision: finite differences of single-precision fluxes are noise
        model = cannon.design(cannon.baseline + x * steps)[0] @ coefficients
        return (model / recipe(model, np.where(good, 1 / np.where(good, sigma, 1.0) ** 2, 0.0)) - flux) * weight

    found = least_squares(residual, np.zeros(4))
    errors = np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac))) * steps
    return {"labels": (cannon.baseline + found.x * steps).tolist(), "errors": errors.tolist()}


def real_stars(model, inputs):
    """The real stars in all three spaces, beside the Cannon's labels."""
    folder, report = inputs / "data" / "apogee" / "real", {}
    for path in sorted(folder.glob("ap*.fits")):
        star, rows = read(path), {}
        for space in ("emulator", "synthetic", "observed"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = model.fit(star, space=space)
            rows[space] = {
                "labels": [float(result.labels[name].value) for name in REPORTED],
                "errors": [float(result.uncertainties[name].value) for name in REPORTED],
                "chi2": result.reduced_chi2,
                "chi2_total": result.reduced_chi2_total,
                "flags": result.flags.names,
            }
        rows["cannon"] = cannon_fit(inputs, result)
        report[result.meta["object"]] = rows
    return report


def write_tables(report, emulator_report):
    """Write docs/tables/*.rst."""
    folder = CONTINUUM_FILE.parents[2] / "docs" / "tables"
    folder.mkdir(parents=True, exist_ok=True)

    def per_cent(value):
        return f"{100 * value:.3f} %"

    rows = [
        (k, v["n"], per_cent(v["median"]), per_cent(v["mean"]), per_cent(v["p99"])) for k, v in emulator_report.items()
    ]
    header = ("Teff", "spectra", "median", "mean", "99th percentile")
    title = "Absolute flux error of the emulator on 10 % of the grid, held out"
    write_rst(folder / "emulator.rst", list_table(title, (header, *rows)))

    formats = {label: "{:+.3f} / {:.3f}" for label in REPORTED} | {"teff": "{:+.0f} / {:.0f}"}
    names = [k for k in report if k.startswith("Eq.")]
    rows = [
        (
            name,
            r["n"],
            f"{r['chi2']:.2f}" if "transport" not in name else "",
            f"{r['bias_sigma']:+.3f} / {r['half_width']:.2f}" if "transport" not in name else "",
            *(formats[label].format(r["bias"][label], r["scatter"][label]) for label in REPORTED),
            " ".join(f"{c:.2f}" for c in r.get("coverage", {}).values()),
        )
        for name, r in ((name, report[name]) for name in sorted(names, key=lambda k: ("4050" in k, k)))
    ]
    header = ("fit", "stars", "χ²/dof", "residual [σ]", "Teff [K]", "logg", "[M/H]", "[α/M]", "68 % coverage")
    title = "Held-out observed-like stars; residual: bias / half-width; labels: median offset / half 16-84 % range"
    fits = list_table(title, (header, *rows))
    networks = report["networks"]
    leak = ", ".join(f"{name} {value:.2f}" for name, value in networks["split_leak_r2"].items())
    bias, scatter = (per_cent(networks[f"synthetic_{key}"]) for key in ("bias", "scatter"))
    autoencoders = (
        f"Autoencoder of the observed domain: mean χ² {networks['observed_chi2']:.2f}, half-width "
        f"{networks['observed_half_width']:.2f} σ; of the synthetic domain: bias {bias}, scatter {scatter}. "
        f"Labels that a linear probe reads from the split latent (R²): {leak}.\n"
    )
    rows = [(name, f"{d['correlation']:.2f}", f"{d['slope']:.2f}") for name, d in report["derivatives"].items()]
    title = "Derivatives in the observed domain against those of the emulator, at the mean of the prior"
    derivatives = list_table(title, (("label", "correlation", "slope"), *rows))
    rows = []
    for star, spaces in report["real"].items():
        for space, r in spaces.items():
            cells = [
                f"{v:.0f} ± {e:.0f}" if k == 0 else f"{v:.2f} ± {e:.2f}"
                for k, (v, e) in enumerate(zip(r["labels"], r["errors"], strict=True))
            ]
            rows.append((star, space, *cells, f"{r['chi2']:.2f}" if "chi2" in r else "", ", ".join(r.get("flags", []))))
    header = ("star", "space", "Teff [K]", "logg", "[M/H]", "[α/M]", "χ²/dof", "flags")
    title = "The real stars; cannon: a data-driven model of real giants, fitted to the same pixels"
    real = list_table(title, (header, *rows))
    write_rst(folder / "evaluation.rst", fits, autoencoders, derivatives, real)


def write_comparison(options):
    """Write docs/tables/before_after.rst: models that were measured on the same stars, side by side."""
    reports = {}
    for run in dict.fromkeys(("before", "training", options.run)):
        path = options.work / f"evaluation_{run}.json"
        if path.exists():
            reports[run] = json.loads(path.read_text())

    def labels(report, name):
        unit = " K" if name == "teff" else ""
        form = "{:+.0f} / {:.0f}" if name == "teff" else "{:+.3f} / {:.3f}"
        plain, fit = report["Eq. 9"], report["Eq. 11"]
        cells = (
            form.format(fit["bias"][name], fit["scatter"][name]),
            form.format(plain["bias"][name], plain["scatter"][name]),
        )
        return f"{cells[0]}{unit} ({cells[1]})"

    def net(report, key, form="{:.2f}"):
        return form.format(report["networks"][key])

    def scored(report, key, form="{:.2f}"):
        return form.format(report["networks"]["scores"][key])

    rows = {
        "stars": lambda r: r["Eq. 11"]["n"],
        "χ²/dof, median": lambda r: f"{r['Eq. 11']['chi2']:.2f} ({r['Eq. 9']['chi2']:.2f})",
        "residual half-width [σ]": lambda r: f"{r['Eq. 11']['half_width']:.2f} ({r['Eq. 9']['half_width']:.2f})",
        "residual bias [σ]": lambda r: f"{r['Eq. 11']['bias_sigma']:+.3f} ({r['Eq. 9']['bias_sigma']:+.3f})",
        **{f"{name}, offset / scatter": partial(labels, name=name) for name in REPORTED},
        "68 % coverage of the four": lambda r: " ".join(f"{c:.2f}" for c in r["Eq. 11"]["coverage"].values()),
        "autoencoder, observed: mean χ², half-width [σ]": lambda r: (
            f"{net(r, 'observed_chi2')}, {net(r, 'observed_half_width')}"
        ),
        "autoencoder, synthetic: bias, scatter": lambda r: (
            f"{net(r, 'synthetic_bias', '{:.3%}')}, {net(r, 'synthetic_scatter', '{:.2%}')}"
        ),
        "cycle χ², observed": lambda r: scored(r, "cyc_obs"),
        "cycle χ², synthetic (σ = 0.005)": lambda r: scored(r, "cyc_synth"),
        "two-sample accuracy, latents": lambda r: scored(r, "c2st_latent"),
        "two-sample accuracy, observed": lambda r: scored(r, "c2st_obs"),
        "two-sample accuracy, synthetic": lambda r: scored(r, "c2st_synth"),
        "sliced Wasserstein, latents": lambda r: scored(r, "sw_latent", "{:.3f}"),
    }
    header = (
        "Eq. 11 (Eq. 9 in brackets)",
        *({"training": "now, without anchors", "anchored": f"now, {N_ANCHORS} anchors"}.get(k, k) for k in reports),
    )
    lines = ((name, *(cell(report) for report in reports.values())) for name, cell in rows.items())
    table = list_table("The embedded model before and now, on the same held-out stars", (header, *lines))
    write_rst(CONTINUUM_FILE.parents[2] / "docs" / "tables" / "before_after.rst", table)


def build_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[stage.__name__ for stage in STAGES])
    parser.add_argument("--inputs", type=Path, required=True, help="folder with data/ and tools/")
    parser.add_argument("--work", type=Path, required=True, help="folder for intermediate files")
    parser.add_argument("--run", default="training", help="folder of the training, in --work, for pack and after")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2, help="threads of the training, processes of the fits")
    parser.add_argument(
        "--n-scatter", type=int, default=120, help="validation stars that the model's scatter is learnt from"
    )
    parser.add_argument("--n-test", type=int, default=1000, help="held-out stars of the evaluation")
    return parser


STAGES = (continuum, observed, emulator, prior, train, anchor, pack, calibrate, evaluate, ship)


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = build_parser().parse_args(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    {stage.__name__: stage for stage in STAGES}[options.stage](options)


if __name__ == "__main__":
    main()
