#!/usr/bin/env python
"""Whether the errors of labels are right: simulation-based calibration of a model's posteriors.

Stars are drawn from the model's own prior within its label range, their
spectra are the model's, with noise of a given S/N and as much of the model's
own scatter as fits allow for, and they are fitted and sampled. If posteriors
are right, the rank of the truth among their samples is uniform (Cook, Gelman &
Rubin 2006; Talts et al. 2018). Ranks that pile up at both ends tell of errors
that are too small, ranks in the middle of errors that are too large, ranks at
one end of an offset. Whether real stars are like the model is another matter.

Two kinds of posteriors::

    python recipes/calibration.py --work WORK                                      emcee, 4 labels, 200 stars
    python recipes/calibration.py --work WORK --method laplace --stars 2000        the errors of fit_many, all labels

Labels that are not free are held at their true values. ``--space emulator``
is faster: data and model are then the emulator's. Stars are added to
``WORK/ranks.jsonl`` one by one, so that a run can be killed and run again; at
the end the table is printed, and ``WORK/ranks.png`` drawn.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from astropy.nddata import StdDevUncertainty
from astropy.table import Table
from scipy.stats import binom, chi2, norm

from cyclestarnet import CalibratedModel
from cyclestarnet.exceptions import FitWarning
from cyclestarnet.io import read
from cyclestarnet.progress import tqdm
from cyclestarnet.spectra import Spectrum

log = logging.getLogger("calibration")

N_RANKS = 200  # of one truth among 199 samples; 68 % and 95 % of them are whole numbers
SAMPLED = ("teff", "logg", "fe_h", "mg_h")
BATCH = 64  # stars that fit_many takes at once


# -- stars ---------------------------------------------------------------------------
def draw_labels(model, rng):
    """Labels of one star, (n_labels,): a draw of the prior inside the label range, as the posterior has it."""
    labels = model.labels
    for _ in range(100):
        draws = rng.multivariate_normal(np.asarray(model.prior.mean), np.asarray(model.prior.covariance), size=100)
        inside = ((draws >= labels.lower) & (draws <= labels.upper)).all(axis=1)
        if inside.any():
            return draws[inside][0]
    raise ValueError("fewer than one in 10,000 draws of the model's prior lies inside its label range")


def observe(model, truth, snr, rng, *, space, like=None, name=""):
    """Spectrum of a star with noise of 1 / S/N and the model's scatter; its quoted errors are the noise alone."""
    domain = "synthetic" if space == "emulator" else "observed"
    clean = model.predict(model.labels.to_quantities(truth), domain=domain, like=like)
    scatter = np.asarray(model.noise.scatter[space]) * model.noise.scatter_inflation.get(space, 1.0)
    flux = rng.normal(clean.flux.value, np.hypot(scatter, 1 / snr))
    uncertainty = StdDevUncertainty(np.full(flux.shape, 1 / snr))
    return Spectrum(
        flux=flux * clean.flux.unit, spectral_axis=clean.spectral_axis, uncertainty=uncertainty, meta={"object": name}
    )


# -- ranks ---------------------------------------------------------------------------
def rank_in_samples(truth, samples, rng):
    """Rank of the truth among 199 of the samples, 0 ... 199."""
    return int((rng.choice(samples, N_RANKS - 1, replace=False) < truth).sum())


def rank_in_gaussian(truth, value, error):
    """The rank that is expected among many draws of a Gaussian, 0 ... 199."""
    return min(int(N_RANKS * norm.cdf((truth - value) / error)), N_RANKS - 1)


def laplace_ranks(model, truths, spectra, settings):
    """Whether fits converged, and ranks of the truth by label, of each star."""
    free, space = settings["free"], settings["space"]
    if len(free) == len(model.labels):
        fits = model.fit_many(spectra, space=space, progress=False)
        found = [(bool(row["success"]), row, lambda name, row=row: row[f"{name}_err"]) for row in fits]
    else:
        fits = [model.fit(s, space=space, fixed=held(model, t, free)) for t, s in zip(truths, spectra, strict=True)]
        found = [(fit.success, fit.labels, fit.uncertainties.__getitem__) for fit in fits]
    for truth, (success, values, error) in zip(truths, found, strict=True):
        known = model.labels.to_quantities(truth)
        errors = {name: error(name).value for name in known}
        yield success, {n: rank_in_gaussian(known[n].value, values[n].value, e) for n, e in errors.items() if e > 0}


def chain_ranks(model, truths, spectra, settings, rngs):
    """The same of emcee's samples; converged are chains of 50 autocorrelation times."""
    for truth, spectrum, rng in zip(truths, spectra, rngs, strict=True):
        options = {"space": settings["space"], "fixed": held(model, truth, settings["free"])}
        posterior = model.sample(
            spectrum, max_steps=settings["max_steps"], rng=np.random.default_rng(rng.integers(2**32)), progress=False,
            **options,
        )  # fmt: skip
        known = {n: q for n, q in model.labels.to_quantities(truth).items() if n in posterior.samples.colnames}
        enough = len(posterior) >= N_RANKS
        ranks = {n: rank_in_samples(q.value, posterior.samples[n].value, rng) for n, q in known.items() if enough}
        yield bool(posterior.converged and enough), ranks


def held(model, truth, free):
    """Options ``fixed`` that hold the other labels at the truth."""
    quantities = model.labels.to_quantities(truth)
    return {name: quantities[name] for name in model.labels if name not in free}


def measure(model, settings, path, *, like=None):
    """Add to a file the stars that it lacks; a row has ``star``, ``snr``, ``success`` and ``ranks`` by label."""
    done = {row["star"] for row in read_rows(path, settings)}
    missing = [star for star in range(settings["stars"]) if star not in done]
    step = BATCH if settings["method"] == "laplace" else 1
    for first in tqdm(range(0, len(missing), step), desc="batches" if step > 1 else "stars"):
        stars = missing[first : first + step]
        rngs = [np.random.default_rng([settings["seed"], star]) for star in stars]
        truths = [draw_labels(model, rng) for rng in rngs]
        snrs = [float(np.exp(rng.uniform(*np.log(settings["snr"])))) for rng in rngs]
        spectra = [
            observe(model, truth, snr, rng, space=settings["space"], like=like, name=f"star {star}")
            for star, truth, snr, rng in zip(stars, truths, snrs, rngs, strict=True)
        ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # the row says it
            if settings["method"] == "laplace":
                found = list(laplace_ranks(model, truths, spectra, settings))
            else:
                found = list(chain_ranks(model, truths, spectra, settings, rngs))
        with path.open("a") as file:
            for star, snr, (success, ranks) in zip(stars, snrs, found, strict=True):
                file.write(json.dumps({"star": star, "snr": snr, "success": success, "ranks": ranks}) + "\n")


def read_rows(path, settings):
    """Rows of a file that was begun with the same settings, a half-written last one left out; or begin it."""
    # More stars may be added to a file, and fewer read from it.
    fixed = {key: value for key, value in settings.items() if key != "stars"}
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
        path.write_text("".join(lines))
    if not lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(fixed) + "\n")
        return []
    begun = json.loads(lines[0])
    other = sorted(key for key in fixed if begun.get(key) != fixed[key])
    if other:
        told = ", ".join(f"{key} {begun.get(key)} instead of {fixed[key]}" for key in other)
        raise ValueError(f"{path} was begun with {told}; give another --work")
    rows = [json.loads(line) for line in lines[1:]]
    return [row for row in rows if row["star"] < settings["stars"]]


# -- statistics -------------------------------------------------------------------------
def uniformity(ranks):
    """χ² of ranks (n,) against a uniform distribution, its degrees of freedom, and the probability of a larger one."""
    n_bins = next((bins for bins in (20, 10, 5, 4) if len(ranks) >= 5 * bins), 2)
    counts = np.bincount(np.asarray(ranks) * n_bins // N_RANKS, minlength=n_bins)
    expected = len(ranks) / n_bins
    value = float(((counts - expected) ** 2 / expected).sum())
    return value, n_bins - 1, float(chi2.sf(value, n_bins - 1))


def coverage(ranks, level):
    """Fraction of truths in the central interval of a probability."""
    return float((np.abs((np.asarray(ranks) + 0.5) / N_RANKS - 0.5) < level / 2).mean())


def pull_width(ranks):
    """Half the 16-84 % range of the truth's deviation in units of the error: above 1, errors are too small."""
    low, high = np.percentile(norm.ppf((np.asarray(ranks) + 0.5) / N_RANKS), [16, 84])
    return float(high - low) / 2


def ecdf_difference(ranks):
    """Fraction of ranks below 1, 2, ... 199, less its expectation; (199,)."""
    counts = np.cumsum(np.bincount(ranks, minlength=N_RANKS))[:-1]
    return counts / len(ranks) - np.arange(1, N_RANKS) / N_RANKS


@cache
def ecdf_band(n, *, level=0.95, n_draws=4000, seed=0):
    """Lower and upper edge (199,) between which all of `ecdf_difference` of n uniform ranks stays, most of the time.

    Binomial quantiles, widened until that fraction ``level`` of simulated
    ranks stays inside everywhere (Säilynoja, Bürkner & Vehtari 2022).
    """
    probability = np.arange(1, N_RANKS) / N_RANKS
    draws = np.random.default_rng(seed).multinomial(n, np.full(N_RANKS, 1 / N_RANKS), size=n_draws)
    counts = np.cumsum(draws, axis=1)[:, :-1]
    every = np.arange(n + 1)[:, None]
    tails = np.minimum(binom.cdf(every, n, probability), binom.sf(every - 1, n, probability))
    tail = np.quantile(tails[counts, np.arange(N_RANKS - 1)].min(axis=1), 1 - level)
    edges = binom.ppf(tail, n, probability), binom.isf(tail, n, probability)
    return tuple(edge / n - probability for edge in edges)


def ranks_by_label(rows):
    """Ranks of the stars that succeeded, {label: (n,)}."""
    good = [row["ranks"] for row in rows if row["success"]]
    names = dict.fromkeys(name for ranks in good for name in ranks)
    return {name: np.array([ranks[name] for ranks in good if name in ranks]) for name in names}


def table(ranks):
    """Table of the statistics, a row per label; a mean rank is 0.5 ± 0.29 / √n if all is well."""
    rows = []
    for name, found in ranks.items():
        value, dof, p = uniformity(found)
        low, high = ecdf_band(len(found))
        difference = ecdf_difference(found)
        inside = bool(((difference >= low) & (difference <= high)).all())
        mean = float(found.mean()) / (N_RANKS - 1)
        rows.append(
            (name, len(found), value, dof, p, inside, mean, coverage(found, 0.68), coverage(found, 0.95),
             pull_width(found))
        )  # fmt: skip
    names = ("label", "n", "chi2", "dof", "p", "in_band", "mean_rank", "cover_68", "cover_95", "pull_width")
    out = Table(rows=rows, names=names)
    formats = {"chi2": ".1f", "p": ".2g", "mean_rank": ".3f", "cover_68": ".3f", "cover_95": ".3f", "pull_width": ".2f"}
    for name, shown in formats.items():
        out[name].format = shown
    return out


def plot(ranks):
    """Histogram of the ranks and difference of their ECDF from a uniform one, with 95 % bands, of each label."""
    from matplotlib import pyplot as plt

    n_rows = -(-len(ranks) // 2)
    figure, axes = plt.subplots(n_rows, 4, figsize=(13, 2.1 * n_rows + 0.6), squeeze=False, layout="constrained")
    pairs = axes.reshape(-1, 2)
    for unused in pairs[len(ranks) :].ravel():
        unused.remove()
    for (left, right), (name, found) in zip(pairs, ranks.items(), strict=False):
        n, n_bins = len(found), uniformity(found)[1] + 1
        low, high = binom.interval(1 - 0.05 / n_bins, n, 1 / n_bins)
        left.axhspan(low, high, color="0.88", lw=0)
        left.axhline(n / n_bins, color="0.5", lw=0.8)
        left.stairs(*np.histogram(found / N_RANKS, n_bins, (0, 1)), baseline=None, color="#0072B2", lw=1.4)
        left.set(ylabel="stars", xlim=(0, 1), ylim=(0, None))
        left.set_title(f"{name}, {n} stars", loc="left", fontsize=10, fontweight="bold")
        place = np.arange(1, N_RANKS) / N_RANKS
        right.fill_between(place, *ecdf_band(n), color="0.88", lw=0)
        right.axhline(0, color="0.5", lw=0.8)
        right.plot(place, ecdf_difference(found), color="#D55E00", lw=1.4)
        right.set(ylabel="Δ ECDF", xlim=(0, 1))
        for ax in (left, right):
            ax.spines[["top", "right"]].set_visible(False)
    for ax in pairs[max(len(ranks) - 2, 0) : len(ranks)].ravel():
        ax.set_xlabel("rank of the truth / 200")
    return figure


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", type=Path, help="file of a model; default: the embedded one")
    parser.add_argument("--method", choices=["chains", "laplace"], default="chains")
    parser.add_argument("--space", choices=["observed", "emulator"], default="observed")
    parser.add_argument("--free", nargs="+", help=f"labels, or all; default: {' '.join(SAMPLED)} of chains, or all")
    parser.add_argument("--stars", type=int, default=200)
    parser.add_argument(
        "--snr", type=float, nargs=2, default=(40, 180), metavar=("LOW", "HIGH"),
        help="per pixel; fits take no spectrum for better than 200, where ranks cannot be uniform",
    )  # fmt: skip
    parser.add_argument(
        "--like", type=Path, help="observed spectrum whose split latent is used; default: a typical one"
    )
    parser.add_argument("--max-steps", type=int, default=10_000, help="of a chain")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    model = CalibratedModel.from_pretrained() if options.model is None else CalibratedModel.load(options.model)
    names = list(model.labels)
    usual = [name for name in SAMPLED if name in names] if options.method == "chains" else names
    free = names if options.free == ["all"] else options.free or usual
    for name in free:
        model.labels.index(name)  # raises if there is none
    settings = {
        "model": model.name, "method": options.method, "space": options.space, "free": sorted(free),
        "stars": options.stars, "snr": list(options.snr), "like": options.like and options.like.name,
        "max_steps": options.max_steps, "seed": options.seed,
    }  # fmt: skip
    path = options.work / "ranks.jsonl"
    measure(model, settings, path, like=None if options.like is None else read(options.like))
    rows = read_rows(path, settings)
    n_failed = sum(not row["success"] for row in rows)
    ranks = ranks_by_label(rows)
    print(f"{len(rows)} stars, {n_failed} left out because the {options.method} did not converge")
    if ranks:
        print("\n".join(table(ranks).pformat(max_lines=-1, max_width=-1)))
        plot(ranks).savefig(options.work / "ranks.png", dpi=110)


if __name__ == "__main__":
    main()
