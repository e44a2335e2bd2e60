#!/usr/bin/env python
"""How reliably an adaptation converges, and what decides its labels' zero points: many small trainings.

Each training takes a part of the APOGEE green chip (1663 pixels), a network of
a quarter of the paper's widths, and 1,000 iterations. Two unlike pairs of
domains are used:

``moog``
    MOOG spectra to observed-like giants (simulated from a data-driven model of real ones).
``masked``
    MOOG spectra in which 30 % of the strong features are missing, to complete ones with noise.

Studies; each adds the rows that ``--work/stability.json`` lacks, and can be killed and run again::

    python recipes/stability.py seeds   --work WORK     10 seeds x 2 pairs x 2 recipes
    python recipes/stability.py options --work WORK     one option at a time, 2 seeds
    python recipes/stability.py priors  --work WORK     wrong label priors, and ways out
    python recipes/stability.py overlap --work WORK     label ranges that differ
    python recipes/stability.py precision --work WORK   bfloat16 against float32
    python recipes/stability.py critics --work WORK     energy distances in place of the critics
    python recipes/stability.py errors  --work WORK     quoted errors that are wrong, correlated noise
    python recipes/stability.py outliers --work WORK    dwarfs and carbon-rich stars among the giants
    python recipes/stability.py more_seeds --work WORK  10 more seeds of the shipped recipe
    python recipes/stability.py twins   --work WORK     errors of labels, true and told by a twin
    python recipes/stability.py tables  --work WORK     docs/tables/stability_*.rst

``WORK`` holds what the stages ``observed``, ``emulator`` and ``prior`` of
``four_label_giants.py`` have made.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import four_label_giants
import h5py
import numpy as np
import torch
from list_tables import list_table, write_rst
from scipy.ndimage import gaussian_filter1d

from cyclestarnet.files import write_atomically
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.training.alignment import gaussian_transport, overlap_weights, prior_mismatch, regress_labels
from cyclestarnet.training.assembly import correlation_inflation, model_scatter
from cyclestarnet.training.datasets import ObservedSpectra, SyntheticSpectra
from cyclestarnet.training.evaluation import label_error
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.trainer import Anchors, Trainer
from cyclestarnet.training.twins import WITHIN
from cyclestarnet.training.watch import Watch, alignment_scores

log = logging.getLogger("stability")

PIXELS = slice(3300, 4963)
NETWORK = NetworkSettings(
    n_pixels=1663,
    domain=((8, 7, 4), (16, 7, 4)),
    shared=((48, 7, 4), (96, 7, 2)),
    split=((8, 7, 4), (8, 7, 2)),
    shared_filters=16,
    split_filters=1,
    critic_spectrum=((8, 7, 4), (16, 7, 4), (32, 7, 4), (64, 7, 4)),
    critic_latent=((16, 1, 1), (32, 1, 1), (64, 1, 1)),
)
REPORTED = four_label_giants.REPORTED
FITTED = ("Teff [K]", "logg", "[M/H]")
N_FITTED, N_HELD, N_ANCHORS = 100, 250, 20
# The paper's terms; only what makes 1,000 iterations worth anything is not the paper's.
SHORT = {"n_iterations": 1_000, "learning_rate": 1e-3, "critic_learning_rate": 1e-3, "schedule": "cosine"}
SHIPPED = {
    "critic_learning_rate": 6e-4,
    "weight_latent": 2.0,
    "weight_labels": 5.0,
    "gradient_clip": 300.0,
    "average_decay": 0.995,
}
OPTIONS = {
    "the paper's terms": {},
    "least squares": {"adversarial": "least_squares"},
    "R1 penalty": {"critic_penalty": 1.0},
    "averaged weights": {"average_decay": 0.995},
    "slower critics": {"critic_learning_rate": 3e-4},
    "warm start": {"warm_start": 200},
    "rising adversarial λ": {"adversarial_ramp": 500},
    "latent energy distance": {"weight_latent": 2.0},
    "label head": {"weight_labels": 5.0},
    "shipped recipe": SHIPPED,
}
FREE = {name: value for name, value in SHIPPED.items() if name != "critic_learning_rate"} | {"weight_adversarial": 0.0}
OBJECTIVES = {
    "critics": SHIPPED,
    "latents alone": FREE,
    "latents and spectra": FREE | {"weight_latent": 10.0, "weight_spectra": 3.0},
}
SMOOTH = 1.5  # σ [pixels] of correlated noise
MISFIT = 4.0  # robust σ of log χ² beyond which a reconstruction is a misfit


# -- the domains -------------------------------------------------------------
@dataclass
class Domains:
    """Two sets of spectra with known labels in the second."""

    emulator: object
    pool: np.ndarray
    design: np.ndarray  # from 8 tied labels to those of the emulator
    observed: dict[str, np.ndarray]  # flux, sigma, mask for training
    held: dict[str, np.ndarray]  # the same, held out
    truth: np.ndarray  # of held: teff, logg, m_h, alpha_m
    training_truth: np.ndarray
    complete: object  # the emulator of all lines

    def tied_pool(self, pool=None):
        """The pool's labels in the 8 tied ones."""
        pool = self.pool if pool is None else pool
        return np.linalg.lstsq(self.design.T, pool.T.astype(float), rcond=None)[0].T


def slow_part(emulator):
    """The emulator on the pixels of these studies: one matrix product less of what is not used."""
    last = emulator.layers[-1]
    small = torch.nn.Linear(last.in_features, NETWORK.n_pixels)
    small.weight.data, small.bias.data = last.weight.data[PIXELS], last.bias.data[PIXELS]
    emulator.layers[-1] = small
    return emulator.requires_grad_(False)


def load_domains(name, work, smooth=0.0):
    """The pair of domains of a name; ``smooth`` is the σ [pixels] over which the noise of ``masked`` is alike."""
    emulator, label_set = four_label_giants.load_emulator(work)
    emulator = slow_part(emulator)
    pool = np.load(work / "label_pool.npz")["pool"]
    design = four_label_giants.tied_design(label_set)
    if name == "moog":
        sets = []
        with h5py.File(work / "observed.h5") as file:
            for split, n in (("train", 5_000), ("val", N_HELD)):
                arrays = [file[f"{key} {split}"][:n, PIXELS] for key in ("spectra", "spectra_err", "spectra_msk")]
                flux, sigma, good = arrays
                sets.append(({"flux": flux, "sigma": sigma, "mask": good == 0}, file[f"labels {split}"][:n]))
        (observed, training_truth), (held, truth) = sets
        return Domains(
            emulator, pool, design, observed, held, truth.astype(float), training_truth.astype(float), emulator
        )
    rng = np.random.default_rng(17)
    missing = torch.tensor(missing_features(emulator, label_set, rng))
    n = 5_000 + N_HELD
    rows = rng.permutation(len(pool))
    labels, rest = pool[rows[:n]], pool[rows[n:]]
    flux = emulator(torch.tensor(labels)).numpy()
    sigma = np.repeat(1 / np.exp(rng.normal(np.log(120), 0.5, n)).clip(30, 500), NETWORK.n_pixels).reshape(n, -1)
    noise = rng.standard_normal(flux.shape)
    if smooth:
        noise = gaussian_filter1d(noise, smooth, mode="wrap")
        noise /= noise.std()
    flux = flux + sigma * noise
    arrays = {"flux": flux.astype(np.float32), "sigma": sigma.astype(np.float32), "mask": np.zeros(flux.shape, bool)}
    alpha = [label_set.index(k) for k in four_label_giants.ALPHA_ELEMENTS]
    iron = labels[:, label_set.index("fe_h")]
    columns = [labels[:, label_set.index("teff")], labels[:, label_set.index("logg")], iron]
    truth = np.column_stack([*columns, labels[:, alpha].mean(1) - iron]).astype(float)
    observed, held = ({k: a[part] for k, a in arrays.items()} for part in (slice(5_000), slice(5_000, None)))

    def masked(y):
        return torch.where(missing, 1.0, emulator(y))

    return Domains(masked, rest, design, observed, held, truth[5_000:], truth[:5_000], emulator)


def missing_features(emulator, label_set, rng):
    """Pixels (n_pixels,) of 30 % of the strong features, chosen as in S1, Section 4.2."""
    star = np.zeros(len(label_set))
    for label, value in {"teff": 4750, "logg": 2.5, "vmicro": 1.5, "vbroad": 5.0}.items():
        star[label_set.index(label)] = value
    slopes = torch.func.jacfwd(emulator)(torch.tensor(star, dtype=torch.float32)).numpy()
    abundances = [k for k, label in enumerate(label_set) if label.endswith("_h")]
    mask = np.zeros(NETWORK.n_pixels, dtype=bool)
    for slope in slopes[:, abundances].T:
        edges = np.flatnonzero(np.diff(np.r_[0, slope < -0.02, 0]))
        features = [slice(a, b) for a, b in edges.reshape(-1, 2) if slope[a:b].min() < -0.1]
        if len(features) > 3:
            for k in rng.permutation(len(features))[: round(0.3 * len(features))]:
                mask[features[k]] = True
    log.info("%d of %d pixels are missing", mask.sum(), len(mask))
    return mask


# -- fits ---------------------------------------------------------------------
def tied_fit(forward, domains, flux, weight, prior, model_error, n_steps=8, known=None):
    """Damped Gauss-Newton fits of 8 tied labels with a Gaussian prior, all stars at once.

    ``known`` (n, 4) holds the first four labels where they are; the others are fitted.

    Returns
    -------
    labels (n, 8), fitted flux (n, n_pixels), formal errors (n, 8), derivatives (n, n_pixels, 8)
    """
    mean, covariance = (torch.tensor(a, dtype=torch.float32) for a in (prior.mean(0), np.cov(prior.T)))
    scale = covariance.diagonal().sqrt()
    precision = torch.linalg.inv(covariance / torch.outer(scale, scale))
    design = torch.tensor(domains.design, dtype=torch.float32)
    ivar = torch.where(weight > 0, 1 / (1 / weight.clamp_min(1e-9) ** 2 + model_error**2), 0.0)
    unit = torch.zeros(len(flux), 8)  # (labels - mean) / scale
    free = slice(0, 8)
    if known is not None:
        free = slice(4, 8)
        unit[:, :4] = (torch.tensor(known, dtype=torch.float32) - mean[:4]) / scale[:4]

    def model(unit):
        return forward((mean + unit * scale) @ design)

    def chi2(unit, fitted):
        return ((flux - fitted) ** 2 * ivar).sum(1) + ((unit @ precision) * unit).sum(1)

    damping = torch.full((len(flux),), 1.0)
    for _ in range(n_steps):
        columns = []
        for k in range(*free.indices(8)):
            tangent = torch.zeros_like(unit)
            tangent[:, k] = 1
            fitted, slope = torch.func.jvp(model, (unit,), (tangent,))
            columns.append(slope)
        slopes = torch.stack(columns, 2)
        weighted = slopes * ivar[..., None]
        normal = slopes.transpose(1, 2) @ weighted + precision[free, free]
        right = (weighted * (flux - fitted)[..., None]).sum(1) - (unit @ precision)[:, free]
        damped = normal + damping[:, None, None] * torch.diag_embed(normal.diagonal(dim1=1, dim2=2))
        trial = unit.clone()
        trial[:, free] = (unit[:, free] + torch.linalg.solve(damped, right)).clamp(-5, 5)
        better = chi2(trial, model(trial)) < chi2(unit, fitted)
        unit = torch.where(better[:, None], trial, unit)
        damping = torch.where(better, damping / 5, damping * 5).clamp(1e-4, 1e4)
    errors = torch.linalg.inv(normal).diagonal(dim1=1, dim2=2).sqrt() * scale[free]
    return (mean + unit * scale).double().numpy(), model(unit), errors.double().numpy(), slopes


@dataclass
class Fits:
    """Fits of held-out stars."""

    labels: np.ndarray  # (n, 4)
    error: np.ndarray  # formal, of the fitted labels
    residual: np.ndarray  # (n, n_pixels)
    weight: np.ndarray  # 1 / quoted error, 0 where bad
    slopes: np.ndarray  # (n, n_pixels, n_labels)

    def chi2(self, weight=None):
        """χ² per pixel, the median of the stars; with other weights than the quoted ones, if given."""
        weight = self.weight if weight is None else weight
        return float(np.median(((self.residual * weight) ** 2).sum(1) / (weight > 0).sum(1)))


def fits(domains, settings, network=None, prior=None, held=None, error=None, known=None):
    """`Fits` of held-out stars: Eq. 11 with a network, Eq. 9 without.

    ``error`` is that of the model, per pixel or of all, and ``known`` the true labels of the stars.
    """
    held = {k: a[:N_FITTED] for k, a in domains.held.items()} if held is None else held
    source = ObservedSpectra(**held, settings=settings)
    x_obs, mean, std = source.flux, settings.flux_mean, settings.flux_std
    forward, size = domains.emulator, 0.03
    if network is not None:
        split = network.encode_obs(x_obs)[1]
        size = 0.01

        def forward(labels):
            standardised = (domains.emulator(labels) - mean) / std
            return network.decode_obs(network.encode_synth(standardised), split) * std + mean

    prior = domains.tied_pool() if prior is None else prior
    error = size if error is None else torch.as_tensor(error, dtype=torch.float32)
    flux, weight = x_obs * std + mean, source.weight / std
    with torch.no_grad():
        labels, fitted, errors, slopes = tied_fit(forward, domains, flux, weight, prior, error, known=known)
    return Fits(labels[:, :4], errors[:, :4], (flux - fitted).numpy(), weight.numpy(), slopes.numpy())


def figures(labels, chi2, truth):
    """Offsets, scatter and correlation of fitted labels."""
    truth = truth[: len(labels)]
    offset = labels - truth
    low, middle, high = np.percentile(offset, [16, 50, 84], axis=0)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(labels.T, truth.T, strict=True)]
    return {
        "chi2": chi2,
        "bias": dict(zip(REPORTED, middle.tolist(), strict=True)),
        "scatter": dict(zip(REPORTED, ((high - low) / 2).tolist(), strict=True)),
        "correlation": dict(zip(REPORTED, correlation, strict=True)),
    }


# -- one training ---------------------------------------------------------------
def train(domains, changes, seed, pool=None, weights=None, anchors=False, judge=None):
    """Train once and measure: figures of Eq. 11, label-free scores, seconds.

    ``judge`` are the same domains with the right errors, if those of ``domains`` are wrong.
    """
    settings = TrainingSettings(**({**SHORT, "sigma_max": 0.1, "seed": seed} | changes))
    pool = domains.pool if pool is None else pool
    observed = ObservedSpectra(**domains.observed, settings=settings)
    synthetic = SyntheticSpectra(domains.emulator, pool, settings, weights=weights)
    known = None
    if anchors:
        rows = np.random.default_rng(seed).permutation(len(domains.training_truth))[:N_ANCHORS]
        tied = np.median(domains.tied_pool(pool), axis=0) * np.ones((N_ANCHORS, 1))
        tied[:, :4] = domains.training_truth[rows]
        spectra = ObservedSpectra(**{k: a[rows] for k, a in domains.observed.items()}, settings=settings)
        known = Anchors(spectra, tied @ domains.design)
    trainer = Trainer(NETWORK, settings, synthetic, observed, anchors=known)
    start = time.process_time()
    history = trainer.run(progress=False)
    seconds = time.process_time() - start
    network = trainer.averaged_network()
    tied_prior = domains.tied_pool(pool if weights is None else draw(pool, weights))
    if trainer.parts.prior_shift is not None:
        shift = (trainer.parts.prior_shift.detach() * synthetic.label_std).numpy()
        tied_prior = tied_prior + np.linalg.lstsq(domains.design.T, shift, rcond=None)[0]
    found = fits(domains, settings, network, tied_prior)
    row = figures(found.labels, found.chi2(), domains.truth)
    row |= honesty(domains, settings, network, tied_prior, found, domains if judge is None else judge)
    if trainer.parts.prior_shift is not None:
        moved = np.median(tied_prior, axis=0) - np.median(domains.tied_pool(pool), axis=0)
        row["learnt_shift"] = dict(zip(REPORTED, moved[:4].tolist(), strict=True))
    held = ObservedSpectra(**domains.held, settings=settings)
    flux, _ = synthetic.draw(len(held), torch.Generator().manual_seed(99))
    row["scores"] = alignment_scores(network, flux, held.flux, held.weight, seed=0)
    watch = Watch()
    game = [loss_row for loss_row in history if "critic_accuracy" in loss_row]  # a warm start has no critics
    verdicts = [verdict for loss_row in game for verdict in watch.see_losses(loss_row)]
    row["verdicts"] = [verdict.code for verdict in verdicts if verdict.severity == "failing"]
    row["last"] = history[-1]
    return row | {"seconds": seconds, "iterations": settings.n_iterations}


def honesty(domains, settings, network, prior, found, judge):
    """χ² at the true labels, and by how many of their own errors fitted labels are off.

    Errors once as the quoted ones and a model error of 0.01 make them, and once with the model's error learnt from
    the other held-out stars, as that of a package's model is.
    """
    right = ObservedSpectra(**{k: a[:N_FITTED] for k, a in judge.held.items()}, settings=settings)
    weight = right.weight.numpy() / settings.flux_std
    true = fits(domains, settings, network, prior, known=domains.truth[:N_FITTED])
    others = fits(domains, settings, network, prior, held={k: a[N_FITTED:] for k, a in domains.held.items()})
    with np.errstate(divide="ignore"):
        residual, sigma = np.where(others.weight > 0, others.residual, np.nan), 1 / others.weight
    scatter = model_scatter(residual, sigma)
    factor = correlation_inflation(residual, sigma, scatter, others.slopes[:, :, :4].mean(0).T)
    learnt = fits(domains, settings, network, prior, error=factor * scatter)
    return {
        "chi2_true": true.chi2(weight),
        "chi2_true_quoted": true.chi2(),
        "pulls": pulls(found, domains.truth),
        "pulls_learnt": pulls(learnt, domains.truth),
        "learnt": figures(learnt.labels, learnt.chi2(), domains.truth),
        "model_error": [float(np.median(scatter)), float(factor)],
    }


def pulls(found, truth):
    """Half the 16-84 % range of (fitted - true) / error per label: 1 if errors are honest, more if they are small."""
    low, high = np.percentile((found.labels - truth[: len(found.labels)]) / found.error, [16, 84], axis=0)
    return dict(zip(REPORTED, ((high - low) / 2).tolist(), strict=True))


def draw(pool, weights):
    rng = np.random.default_rng(0)
    return pool[rng.choice(len(pool), 5_000, p=np.asarray(weights) / np.sum(weights))]


# -- studies --------------------------------------------------------------------
def seeds(work):
    """Whether 10 seeds converge, on two unlike pairs of domains, untuned."""
    for option in ("shipped recipe", "the paper's terms"):
        for name in ("moog", "masked"):
            domains = load_domains(name, work)
            for seed in range(10):
                yield f"{name}/{option}/{seed}", lambda d=domains, o=option, k=seed: train(d, OPTIONS[o], k)


def options(work):
    """What each option does on the same budget."""
    domains = load_domains("moog", work)
    for option, changes in OPTIONS.items():
        for seed in range(2):
            yield f"moog/{option}/{seed}", lambda c=changes, k=seed: train(domains, c, k)


def priors(work):
    """Where label zero points go with a wrong prior, and what brings them back."""
    domains = load_domains("moog", work)
    settings = TrainingSettings(**SHORT, sigma_max=0.1)
    middle = domains.tied_pool().mean(0)
    shift, wide = np.zeros(8), np.ones(8)
    shift[0], shift[2] = 100.0, 0.2
    wide[:4] = 1.6

    def changed(move, factor):
        tied = domains.tied_pool()
        spread = (middle + (tied - middle) * factor + move) @ domains.design
        own = domains.pool - tied @ domains.design  # what single elements have of their own
        return np.clip(spread + own, domains.emulator.lower.numpy(), domains.emulator.upper.numpy()).astype(np.float32)

    pools = {
        "right": domains.pool,
        "+100 K, +0.2 dex": changed(shift, np.ones(8)),
        "too narrow (0.6)": changed(np.zeros(8), 1 / wide),
        "too wide (1.6)": changed(np.zeros(8), wide),
    }
    ways = {
        "network alone": {},
        f"{N_ANCHORS} anchors": {"weight_anchors": 9.0},
        "learnt prior": {"prior_rate": 3e-3},
    }
    others = {k: a[:N_FITTED] for k, a in domains.observed.items()}
    for prior, pool in pools.items():
        for way, changes in ways.items():
            yield (
                f"prior {prior}/{way}",
                lambda p=pool, c=changes: train(domains, SHIPPED | c, 0, pool=p, anchors="weight_anchors" in c),
            )

        def transported(pool=pool):
            """Eq. 9, matched to the prior by the moments of *other* stars' labels."""
            target = domains.tied_pool(pool)
            source = fits(domains, settings, prior=target, held=others).labels
            found = fits(domains, settings, prior=target)
            return figures(gaussian_transport(source, target[:, :4])(found.labels), found.chi2(), domains.truth)

        yield f"prior {prior}/no network, transport", transported

    def alone():
        found = fits(domains, settings, prior=domains.tied_pool())
        return figures(found.labels, found.chi2(), domains.truth)

    yield "prior right/no network", alone
    yield "prior mismatch", lambda: {name: mismatch(domains, pool) for name, pool in pools.items()}


def rough_labels(domains, pool):
    """Labels of both domains by one regression on synthetic spectra; label-free."""
    rows = np.random.default_rng(0).permutation(len(pool))[:4_000]
    flux = domains.emulator(torch.tensor(pool[rows])).numpy()
    good = ~domains.observed["mask"] & (domains.observed["sigma"] < 0.1)
    weight = np.where(good, 1 / domains.observed["sigma"], 0.0)
    tied = domains.tied_pool(pool[rows])[:, :3]
    return rows, *regress_labels(flux, tied, domains.observed["flux"], weight, seed=0)


def mismatch(domains, pool):
    """What `prior_mismatch` says of a pool."""
    _, synthetic, observed = rough_labels(domains, pool)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        table = prior_mismatch(synthetic, observed, names=REPORTED[:3])
    columns = {name: np.asarray(table[name]).tolist() for name in ("shift", "width_ratio")}
    return columns | {"warning": str(caught[-1].message) if caught else ""}


def overlap(work):
    """Half of the synthetic stars have labels that no observed one has."""
    domains = load_domains("moog", work)
    strange = domains.tied_pool()[: len(domains.pool) // 2].copy()
    strange[:, :4] += [450.0, 0.8, -0.5, 0.1]
    lower, upper = domains.emulator.lower.numpy(), domains.emulator.upper.numpy()
    mixed = np.vstack([domains.pool[: len(strange)], (strange @ domains.design).clip(lower, upper)]).astype(np.float32)

    def weighted():
        rows, synthetic, observed = rough_labels(domains, mixed)
        weights, size = overlap_weights(synthetic, observed)
        ours = rows < len(strange)
        found = train(domains, SHIPPED, 0, pool=mixed[rows], weights=weights)
        return found | {"effective_size": size, "weight_inside": float(weights[ours].sum() / weights.sum())}

    yield "overlap/same ranges", lambda: train(domains, SHIPPED, 0, pool=domains.pool[: len(strange)])
    yield "overlap/half of the synthetic stars outside", lambda: train(domains, SHIPPED, 0, pool=mixed)
    yield "overlap/the same, with overlap_weights", weighted


def precision(work):
    """Whether losses in bfloat16 track those in float32 (of `seeds`) as well as another seed does."""
    domains = load_domains("moog", work)
    for seed in range(3):
        yield f"bfloat16/{seed}", lambda k=seed: train(domains, SHIPPED | {"mixed_precision": True}, k)
    for seed in range(2):
        for name in ("float32", "bfloat16"):
            changes = SHIPPED | {"n_iterations": 2_000, "mixed_precision": name == "bfloat16"}
            yield f"2,000 in {name}/{seed}", lambda c=changes, k=seed: train(domains, c, k)


def critics(work):
    """Energy distances in place of the critics, on both pairs of domains."""
    for name in ("moog", "masked"):
        domains = load_domains(name, work)
        for objective, changes in OBJECTIVES.items():
            for seed in range(2):
                yield f"critics/{name}/{objective}/{seed}", lambda d=domains, c=changes, k=seed: train(d, c, k)


def errors(work):
    """Quoted errors that are wrong, and noise that is alike in neighbouring pixels; ``masked``, whose noise is ours.

    What to compare them with, right errors, are rows of `critics`; so for `outliers`.
    """
    right = load_domains("masked", work)

    def quoted(factor):
        parts = ({**part, "sigma": factor * part["sigma"]} for part in (right.observed, right.held))
        return replace(right, **dict(zip(("observed", "held"), parts, strict=True)))

    alike = load_domains("masked", work, smooth=SMOOTH)
    cases = {
        "quoted × 0.7": (quoted(0.7), right),
        "quoted × 1.5": (quoted(1.5), right),
        "correlated noise": (alike, alike),
    }
    for seed in range(2):
        for case, (domains, judge) in cases.items():
            yield f"errors/{case}/{seed}", lambda d=domains, j=judge, k=seed: train(d, SHIPPED, k, judge=j)


def outliers(work):
    """Stars of other kinds in the observed set, and their rejection by how badly they are reconstructed."""
    clean = load_domains("moog", work)
    few, many = (with_outliers(clean, fraction) for fraction in (0.02, 0.1))

    def rejected(domains, seed):
        kept, found = without_misfits(domains, seed)
        return train(kept, SHIPPED, seed) | {"rejection": found}

    for seed in range(2):
        yield f"outliers/2 %/{seed}", lambda k=seed: train(few[0], SHIPPED, k)
        yield f"outliers/2 %, rejected/{seed}", lambda k=seed: rejected(few, k)
        yield f"outliers/10 %/{seed}", lambda k=seed: train(many[0], SHIPPED, k)
        yield f"outliers/10 %, rejected/{seed}", lambda k=seed: rejected(many, k)


def with_outliers(domains, fraction):
    """Replace training stars by dwarfs and by carbon-rich stars, half each: domains, and which rows they are."""
    rng = np.random.default_rng(23)
    observed = {k: a.copy() for k, a in domains.observed.items()}
    n = len(observed["flux"])
    strange = rng.permutation(n)[: round(fraction * n)]
    half = len(strange) // 2
    tied = np.array([0.0, 0.0, 0.0, 0.05, 0.0, 0.0, 1.2, 6.0]) * np.ones((len(strange), 1))
    tied[:, 2] = rng.uniform(-0.6, 0.3, len(strange))
    tied[:half, 0], tied[:half, 1] = rng.uniform(5000, 5800, half), rng.uniform(4.3, 4.7, half)
    rich = len(strange) - half
    tied[half:, 0], tied[half:, 1] = rng.uniform(3700, 4300, rich), rng.uniform(0.5, 1.5, rich)
    tied[half:, 4:6] = 2.0  # as much carbon and nitrogen as the emulator knows
    lower, upper = domains.complete.lower.numpy(), domains.complete.upper.numpy()
    labels = (tied @ domains.design).clip(lower, upper)
    flux = domains.complete(torch.tensor(labels, dtype=torch.float32)).numpy()
    flux[half:] **= 2  # and bands twice as strong as that
    observed["flux"][strange] = flux + observed["sigma"][strange] * rng.standard_normal(flux.shape)
    return replace(domains, observed=observed), np.isin(np.arange(n), strange)


def without_misfits(domains, seed):
    """Leave out training stars whose reconstruction is bad after a short training."""
    domains, strange = domains
    settings = TrainingSettings(**({**SHORT, "sigma_max": 0.1, "seed": seed} | SHIPPED | {"n_iterations": 300}))
    observed = ObservedSpectra(**domains.observed, settings=settings)
    trainer = Trainer(NETWORK, settings, SyntheticSpectra(domains.emulator, domains.pool, settings), observed)
    start = time.process_time()
    trainer.run(progress=False)
    network = trainer.averaged_network()
    chi2 = []
    for rows in torch.arange(len(observed)).split(250):
        flux, weight = observed.rows(rows)
        chi2.append(
            (((network.decode_obs(*network.encode_obs(flux)) - flux) * weight) ** 2).sum(1) / (weight > 0).sum(1)
        )
    size = torch.cat(chi2).log().numpy()
    low, middle, _ = np.percentile(size, [16, 50, 84])
    misfit = size > middle + MISFIT * (middle - low)
    found = {
        "n": int(misfit.sum()),
        "of_outliers": float(misfit[strange].mean()),
        "of_others": float(misfit[~strange].mean()),
        "chi2_outliers": float(np.exp(np.median(size[strange]))),
        "chi2_others": float(np.exp(np.median(size[~strange]))),
        "seconds": time.process_time() - start,
    }
    return replace(domains, observed={k: a[~misfit] for k, a in domains.observed.items()}), found


def more_seeds(work):
    """Whether 10 more seeds converge, with the shipped recipe."""
    loaded = {name: load_domains(name, work) for name in ("moog", "masked")}
    for seed in range(10, 20):
        for name, domains in loaded.items():
            yield f"more seeds/{name}/{seed}", lambda d=domains, k=seed: train(d, SHIPPED, k)


def twins(work):
    """Whether a twin, trained on stars that a model makes, has the errors of labels that the model has itself."""
    for name in ("moog", "masked"):
        domains = load_domains(name, work)
        for seed in range(3):
            yield f"twins/{name}/{seed}", lambda d=domains, k=seed: twin_row(d, k)


def twin_row(domains, seed):
    """Errors of labels of a model and of its twins, and how often the first are within those that the twins tell."""
    start = time.process_time()
    settings, network = learnt(domains, seed)
    found = fits(domains, settings, network, held=domains.held)
    stars, settings, twin, told = twin_of(domains, settings, network, found, seed)
    others, _, _, second = twin_of(stars, settings, twin, told, seed + 100)
    row = {}
    for name, own, truth in (
        ("model", found, domains.truth),
        ("twin", told, stars.truth),
        ("its twin", second, others.truth),
    ):
        row[name] = figures(own.labels, own.chi2(), truth) | {"pulls": pulls(own, truth)}
    off = np.abs(told.labels - stars.truth)
    row["factor"] = float(np.quantile(off / total_error(told, second, others.truth), WITHIN))
    off = np.abs(found.labels - domains.truth)
    for name, error in (
        ("quoted", found.error),
        ("told", total_error(found, told, stars.truth)),
        ("calibrated", total_error(found, told, stars.truth, max(1.0, row["factor"]))),
    ):
        row[f"covered, {name}"] = dict(zip(REPORTED, (off < error).mean(0).tolist(), strict=True))
    return row | {"seconds": time.process_time() - start}


def twin_of(domains, settings, network, found, seed):
    """Stars that a network makes, a network that is trained on some, and its fits of the others."""
    stars = twin_domains(domains, settings, network, found, seed)
    settings, twin = learnt(stars, seed + 100)
    return stars, settings, twin, fits(stars, settings, twin, held=stars.held)


def total_error(found, told, truth, factor=1.0):
    """Errors of fits, with those that offsets of others from their truth, that many times as large, add to them."""
    variance = told.error[:, :, None] ** 2 * np.eye(len(REPORTED))
    return np.sqrt(found.error**2 + np.diag(label_error(factor * (told.labels - truth), variance)))


def learnt(domains, seed):
    """Settings and network of one training of the shipped recipe."""
    settings = TrainingSettings(**({**SHORT, "sigma_max": 0.1, "seed": seed} | SHIPPED))
    observed = ObservedSpectra(**domains.observed, settings=settings)
    trainer = Trainer(NETWORK, settings, SyntheticSpectra(domains.emulator, domains.pool, settings), observed)
    trainer.run(progress=False)
    return settings, trainer.averaged_network()


def twin_domains(domains, settings, network, found, seed):
    """The same domains, with stars that a network makes, as `cyclestarnet.training.twins` makes them.

    ``found`` are fits of the held-out stars, which lend split latents, residuals, errors and bad pixels.
    """
    rng = np.random.default_rng([seed, 31])
    n_train, held = len(domains.observed["flux"]), domains.held
    n = n_train + len(held["flux"])
    lent_by, rows = rng.integers(len(held["flux"]), size=n), rng.choice(len(domains.pool), n, replace=False)
    mean, std = settings.flux_mean, settings.flux_std
    source = ObservedSpectra(**held, settings=settings)
    flux = np.empty((n, NETWORK.n_pixels), dtype=np.float32)
    with torch.no_grad():
        split = network.encode_obs(source.flux)[1]
        for part in np.array_split(np.arange(n), 50):
            synthetic = (domains.emulator(torch.tensor(domains.pool[rows[part]])) - mean) / std
            translated = network.decode_obs(network.encode_synth(synthetic), split[lent_by[part]])
            flux[part] = (translated * std + mean).numpy()
    arrays = {"flux": flux + np.where(found.weight > 0, found.residual, 0.0)[lent_by].astype(np.float32)}
    arrays |= {name: held[name][lent_by] for name in ("sigma", "mask")}
    observed, others = ({k: a[part] for k, a in arrays.items()} for part in (slice(n_train), slice(n_train, None)))
    truth = domains.tied_pool(domains.pool[rows])[:, :4]
    return replace(domains, observed=observed, held=others, truth=truth[n_train:], training_truth=truth[:n_train])


STUDIES = (seeds, options, priors, overlap, precision, critics, errors, outliers, more_seeds, twins)


# -- tables ----------------------------------------------------------------------
def converged(row):
    """Whether a translation reads labels and spectra fit: correlations with the truth, and χ² against Eq. 9's."""
    return min(row["correlation"][name] for name in ("teff", "logg", "m_h")) > 0.85 and row["chi2"] < 5


def label_cells(row):
    """Offset / scatter of the four labels."""
    forms = {name: "{:+.2f} / {:.2f}" for name in REPORTED} | {"teff": "{:+.0f} / {:.0f}"}
    return [forms[name].format(row["bias"][name], row["scatter"][name]) for name in REPORTED]


def seed_cells(found):
    """What seeds came to: how many converged, χ², correlations and score."""
    columns = [
        [row["chi2"] for row in found],
        *([row["correlation"][name] for row in found] for name in ("teff", "m_h")),
    ]
    columns.append([row["scores"]["score"] for row in found])
    return f"{sum(map(converged, found))} of {len(found)}", *map(spread, columns)


def pull_cell(found):
    """Pulls of Teff, log g and [M/H]."""
    return " / ".join(f"{found[name]:.1f}" for name in REPORTED[:3])


def mean_of(rows):
    """Numbers of several rows, averaged wherever all have one, in the same nesting."""
    first = rows[0]
    if isinstance(first, dict):
        shared = [key for key in first if all(key in row for row in rows)]
        return {key: mean_of([row[key] for row in rows]) for key in shared if key not in ("verdicts", "last")}
    return np.mean(rows, axis=0)


def spread(values, form="{:.2f}"):
    """Median and range."""
    low, middle, high = (form.format(v) for v in np.percentile(values, [0, 50, 100]))
    return f"{middle} ({low} to {high})"


def tables(rows):
    """Write docs/tables/stability_*.rst from the rows that there are."""
    label_header = ("Teff [K]", "logg", "[M/H]", "[α/M]")

    def of(prefix):
        return {key.removeprefix(prefix): row for key, row in rows.items() if key.startswith(prefix)}

    lines = []
    for pair in ("moog", "masked"):
        for option in ("the paper's terms", "shipped recipe"):
            found = list(of(f"{pair}/{option}/").values())
            if found:
                lines.append((pair, option, *seed_cells(found)))
    seed_header = ("converged", "χ² of Eq. 11", "correlation, Teff", "[M/H]", "label-free score")
    header = ("domains", "recipe", *seed_header)
    write_table("seeds", header, lines, "Seeds: median (lowest to highest)")

    lines = []
    for option in OPTIONS:
        found = [row for key, row in of(f"moog/{option}/").items() if int(key) < 2]
        if found:
            cells = [
                spread([row["scatter"][name] for row in found], f)
                for name, f in (("teff", "{:.0f}"), ("m_h", "{:.2f}"))
            ]
            scores = [spread([row["scores"][name] for row in found]) for name in ("c2st_latent", "score")]
            accuracy = spread([row["last"]["critic_accuracy"] for row in found])
            seconds = f"{np.median([row['seconds'] for row in found]):.0f}"
            lines.append((option, spread([row["chi2"] for row in found]), *cells, *scores, accuracy, seconds))
    header = ("option", "χ² of Eq. 11", "scatter, Teff [K]", "scatter, [M/H]", "two-sample accuracy of latents")
    header += ("score", "critics' accuracy", "CPU-s")
    write_table("options", header, lines, "One option at a time, two seeds: median (lowest to highest)")

    lines = [
        (*key.split("/"), f"{row['chi2']:.2f}", *label_cells(row)) for key, row in of("prior ").items() if "/" in key
    ]
    header = ("synthetic label prior", "way", "χ²", *label_header)
    write_table("priors", header, lines, "Wrong label priors and ways out; labels: median offset / half 16-84 % range")

    lines = [(key, f"{row['chi2']:.2f}", *label_cells(row)) for key, row in of("overlap/").items()]
    write_table("overlap", ("synthetic labels", "χ²", *label_header), lines, "Label ranges that differ")

    without_critics(of)
    in_trouble(of)
    found = {pair: list(of(f"more seeds/{pair}/").values()) for pair in ("moog", "masked")}
    lines = [(pair, *seed_cells(rows_of)) for pair, rows_of in found.items() if rows_of]
    title = "More seeds of the shipped recipe: median (lowest to highest)"
    write_table("more_seeds", ("domains", *seed_header), lines, title)

    twins_and_models(of)

    kinds = {"float32": of("moog/shipped recipe/"), "bfloat16": of("bfloat16/")}
    kinds |= {name: of(f"{name}/") for name in ("2,000 in float32", "2,000 in bfloat16")}
    lines = []
    if all(kinds.values()):
        for name in ("rec_synth", "rec_obs", "cyc_synth", "cyc_obs", "gen_synth", "gen_obs", "critic_accuracy"):
            lines.append(
                (name, *(spread([r["last"][name] for r in found.values()], "{:.3f}") for found in kinds.values()))
            )
        lines.append(("χ² of Eq. 11", *(spread([r["chi2"] for r in found.values()]) for found in kinds.values())))
    title = (
        "After 1,000 iterations, float32 with ten seeds, bfloat16 with three; after 2,000, two seeds each: "
        "median (lowest to highest)"
    )
    write_table("precision", ("term", *kinds), lines, title)


def without_critics(of):
    """The table of the study `critics`."""
    lines = []
    for pair in ("moog", "masked"):
        for objective in OBJECTIVES:
            found = list(of(f"critics/{pair}/{objective}/").values())
            if found:
                chi2 = [spread([row[name] for row in found]) for name in ("chi2", "chi2_true")]
                seen = [f"{sum(map(converged, found))} of {len(found)}", *chi2, *label_cells(mean_of(found))[:3]]
                score = spread([row["scores"]["score"] for row in found])
                lines.append((pair, objective, *seen, score, f"{np.median([row['seconds'] for row in found]):.0f}"))
    header = ("domains", "objective", "converged", "χ² of Eq. 11", "χ² at the true labels", *FITTED, "score", "CPU-s")
    title = "Without critics: median of the seeds (lowest to highest); labels: offset / scatter, means of the seeds"
    write_table("critics", header, lines, title)


def in_trouble(of):
    """The tables of the studies `errors` and `outliers`, which begin with what is not spoilt, of `critics`."""
    cases = {"right": list(of("critics/masked/critics/").values())}
    cases |= {case: list(of(f"errors/{case}/").values()) for case in unique(of("errors/"))}
    lines = []
    for case, found in cases.items():
        if found:
            mean = mean_of(found)
            chi2 = [f"{mean[name]:.2f}" for name in ("chi2_true_quoted", "chi2_true")]
            of_errors = [pull_cell(mean[name]) for name in ("pulls", "pulls_learnt")]
            lines.append((case, len(found), *chi2, *label_cells(mean)[:3], *of_errors))
    header = ("errors", "seeds", "χ² at the true labels, quoted errors", "right errors", *FITTED)
    title = "Wrong errors, ``masked``: means of the seeds; labels: offset / scatter; pulls of Teff / log g / [M/H]"
    write_table("errors", (*header, "pulls", "pulls, model's error learnt"), lines, title)

    cases = {"none": list(of("critics/moog/critics/").values())}
    cases |= {case: list(of(f"outliers/{case}/").values()) for case in unique(of("outliers/"))}
    lines = []
    for case, found in cases.items():
        if found:
            mean, rejected = mean_of(found), "—"
            if "rejection" in mean:
                rejected = "{of_outliers:.0%} / {of_others:.1%}".format(**mean["rejection"])
            chi2 = [f"{mean[name]:.2f}" for name in ("chi2", "chi2_true")]
            lines.append((case, len(found), *chi2, *label_cells(mean)[:3], pull_cell(mean["pulls"]), rejected))
    header = (
        "outliers",
        "seeds",
        "χ² of Eq. 11",
        "χ² at the true labels",
        *FITTED,
        "pulls",
        "rejected: outliers / others",
    )
    title = "Outliers among the training stars, ``moog``: means of the seeds; labels: offset / scatter; pulls likewise"
    write_table("outliers", header, lines, title)


def twins_and_models(of):
    """The table of the study `twins`."""
    lines = []
    for pair in ("moog", "masked"):
        found = list(of(f"twins/{pair}/").values())
        for who in ("model", "twin", "its twin"):
            if found:
                mean = mean_of(found)
                shares = ("covered, quoted", "covered, told", "covered, calibrated") if who == "model" else ()
                covered = [" ".join(f"{100 * mean[name][label]:.0f}" for label in REPORTED) for name in shares]
                cells = [*label_cells(mean[who]), *(covered or ["", "", ""])]
                lines.append((pair, who, len(found), f"{mean[who]['chi2']:.2f}", *cells))
    header = (
        "domains",
        "labels of",
        "seeds",
        "χ²",
        *FITTED,
        "[α/M]",
        "within quoted errors [%]",
        "with the twin's [%]",
        "and its twin's [%]",
    )
    title = "Models and their twins, each against its own truth: means of the seeds; labels: offset / scatter"
    write_table("twins", header, lines, title)


def unique(rows):
    """Cases of rows, whose keys are case/seed, in order."""
    return dict.fromkeys(key.rpartition("/")[0] for key in rows)


def write_table(name, header, lines, title):
    """Write one list-table, if there is something in it."""
    if lines:
        path = Path(__file__).parents[1] / "docs" / "tables" / f"stability_{name}.rst"
        write_rst(path, list_table(title, (header, *lines)))


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=[*(study.__name__ for study in STUDIES), "tables"])
    parser.add_argument("--work", type=Path, required=True, help="folder of four_label_giants.py")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = arguments.work / "stability.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    studies = {study.__name__: study for study in STUDIES}
    for study in (studies[name] for name in arguments.studies if name != "tables"):
        for key, measure in study(arguments.work):
            if key not in rows:
                rows[key] = measure()
                write_atomically(path, lambda temporary: temporary.write_text(json.dumps(rows, indent=1)))
                shown = {k: rows[key][k] for k in ("chi2", "bias", "scatter", "correlation") if k in rows[key]}
                log.info("%s: %s", key, json.dumps(shown))
    if "tables" in arguments.studies:
        tables(rows)


if __name__ == "__main__":
    main()
