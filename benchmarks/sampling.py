"""How long it takes to sample a posterior, beside the mixture of moves that was used before.

``python benchmarks/sampling.py`` prints three tables: posteriors of many shapes that are known in closed form, with
Kolmogorov-Smirnov tests against the truth, and the packaged K giant in the observed space. ``tau`` is the longest
autocorrelation time in steps, of all parameters and of the numbers that are tested. "Before" are the moves by which
chains were made before independent draws were among them: four steps in five by differential evolution, others by
stretches; of the K giant also the evaluation of one walker after the other. The third table compares all labels of
three stars by emcee and by NUTS. Times are of the processor, on one thread.
"""

import argparse
import sys
import time
from datetime import date
from pathlib import Path

import astropy.units as u
import emcee
import numpy as np
import torch
from astropy.nddata import StdDevUncertainty

from cyclestarnet import CalibratedModel, datasets
from cyclestarnet.fitting.approximation import Approximation, approximate
from cyclestarnet.fitting.chains import Chain, autocorrelation_time
from cyclestarnet.fitting.sampling import sample_posterior
from cyclestarnet.pipeline.fit import make_objective, prepare_stars
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training import draw_labels

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
sys.path.append(str(Path(__file__).parents[1] / "tests"))
from list_tables import list_table, processor, write_rst
from shapes import SHAPES, agreement, gaussian, student

FEW = ("teff", "logg", "mg_h", "fe_h")


def before(log_density, near, n_steps, seed, n_walkers):
    """A chain by differential evolution and stretches."""

    def density(x):
        inside = ((x >= near.lower) & (x <= near.upper)).all(1)
        out = np.full(len(x), -np.inf)
        out[inside] = log_density(x[inside]) if inside.any() else []
        return out

    moves = [(emcee.moves.DEMove(), 0.8), (emcee.moves.StretchMove(), 0.2)]
    sampler = emcee.EnsembleSampler(n_walkers, len(near.centre), density, vectorize=True, moves=moves)
    sampler.random_state = np.random.RandomState(seed).get_state()
    start = near.reflected(near.draw(n_walkers, np.random.default_rng(seed)))
    sampler.run_mcmc(start, n_steps, skip_initial_state_check=True)
    tau = autocorrelation_time(sampler.get_chain())
    discard, thin = n_steps // 2, 1
    if np.isfinite(tau).all():
        discard, thin = min(int(2 * tau.max()), n_steps // 2), max(1, int(0.5 * tau.min()))
    return Chain(
        sampler.get_chain(discard=discard, thin=thin, flat=True),
        sampler.get_log_prob(discard=discard, thin=thin, flat=True),
        float(sampler.acceptance_fraction.mean()), tau, False, n_steps, thin, n_walkers,
        float(sampler.acceptance_fraction.min()), 0,
    )  # fmt: skip


def shape_rows(n_steps, n_walkers=40):
    """Each shape, before and now, in chains of the same length."""
    yield ("posterior", "parameters", "tau before", "acceptance", "KS p", "tau", "acceptance", "KS p", "times shorter")
    shapes = SHAPES | {"correlated Gaussian, 20": gaussian(20), "Student's t of 20, 5 degrees": student(20)}
    for name, shape in shapes.items():
        problem = shape.lower, shape.upper, shape.centre, shape.covariance
        k = len(shape.centre)
        n_walkers_here = max(n_walkers, 2 * (k + 1))
        near = Approximation(shape.centre, shape.covariance, shape.lower, shape.upper)
        old = before(shape.log_density, near, n_steps, 1, n_walkers_here)
        # never checked, so that it does not end early
        new = sample_posterior(
            shape.log_density, *problem, rng=np.random.default_rng(1), n_walkers=n_walkers_here, max_steps=n_steps,
            check_every=n_steps + 1,
        )  # fmt: skip
        (old_p, old_tau, _), (p, tau, _) = agreement(shape, old), agreement(shape, new)
        yield (name, str(k), f"{old_tau:.1f}", f"{old.acceptance_fraction:.2f}", f"{old_p:.2f}", f"{tau:.1f}",
               f"{new.acceptance_fraction:.2f}", f"{p:.2f}", f"{old_tau / tau:.1f}")  # fmt: skip


def timed(function):
    clock = time.process_time()
    result = function()
    return result, time.process_time() - clock


def star_rows(model, star, options):
    """The K giant: seconds of a step, and of 50 autocorrelation times."""
    yield ("free labels", "CPU-s per step before", "now", "tau before", "now", "CPU-s of 50 tau before",
           "CPU-s of sample() now", "its steps", "its acceptance", "times faster")  # fmt: skip
    fit = model.fit(star)
    for free in (tuple(model.labels), FEW):
        fixed = {name: fit.labels[name] for name in model.labels if name not in free}
        setup = FitSetup.of(model, FitOptions(start=fit, fixed=fixed))
        stars, _ = prepare_stars(model, [star], setup)
        singly, batched = (make_objective(model, stars, setup, together=n) for n in (1, 6))
        bounds = setup.parameters.lower, setup.parameters.upper
        near = Approximation(*approximate(singly, setup.parameters.values(setup.layout.row(fit.values, []))), *bounds)
        n_walkers = 2 * (len(free) + 1)
        rows = near.draw(n_walkers, np.random.default_rng(0))
        seconds = []
        for objective in (singly, batched):
            objective.log_posterior(rows)
            seconds.append(min(timed(lambda f=objective, x=rows: f.log_posterior(x))[1] for _ in range(5)))
        old = before(batched.log_posterior, near, options.star_steps, 1, n_walkers)
        old_tau = old.autocorrelation_time.max()
        for seed in range(1, options.seeds + 1):
            new, cpu = timed(lambda s=seed, f=fixed: model.sample(star, start=fit, fixed=f, seed=s, progress=False))
            tau, cost = new.autocorrelation_time.max(), 50 * old_tau * seconds[0]
            yield (str(len(free)), f"{seconds[0]:.3f}", f"{seconds[1]:.3f}", f"{old_tau:.0f}", f"{tau:.1f}",
                   f"{cost:.0f}", f"{cpu:.1f}", f"{new.n_steps}", f"{new.acceptance_fraction:.2f}",
                   f"{cost / cpu:.0f}")  # fmt: skip


def simulated(model, seed, snr=100.0):
    """A star of the label prior with noise, as the model would see it."""
    rng = np.random.default_rng(seed)
    star = model.predict(model.labels.to_quantities(draw_labels(model.population.prior, model.labels, 1, seed=seed)[0]))
    flux, sigma = star.flux.value, np.full(star.flux.shape, 1 / snr)
    return Spectrum(
        flux=rng.normal(flux, sigma) * u.dimensionless_unscaled,
        spectral_axis=star.spectral_axis,
        uncertainty=StdDevUncertainty(sigma),
    )


def nuts_rows(model, stars):
    """All labels of each star by emcee and by NUTS: how far medians and widths are apart."""
    yield ("star", "medians, largest difference [σ]", "of that, by chance", "widths, ratio", "CPU-s, emcee", "NUTS",
           "steps, emcee", "NUTS", "acceptance of NUTS")  # fmt: skip
    for name, star in stars.items():
        fit = model.fit(star, normalise=not name.startswith("simulated"))
        (one, first), (two, second) = (
            timed(lambda o=options, s=star, f=fit: model.sample(s, start=f, seed=1, progress=False, **o))
            for options in ({"sampler": "emcee"}, {"sampler": "nuts", "length": 120})
        )
        offsets, ratios, chance = [], [], []
        for label in model.labels:
            values = [posterior.samples[label].value for posterior in (one, two)]
            width, other = (np.subtract(*np.percentile(found, [84, 16])) / 2 for found in values)
            offsets.append(abs(np.median(values[0]) - np.median(values[1])) / width)
            ratios.append(other / width)
            n_draws = [
                posterior.n_steps * posterior.n_walkers / posterior.label_autocorrelation_time[label]
                for posterior in (one, two)
            ]
            chance.append(1.25 * np.sqrt(sum(1 / n for n in n_draws)))  # error of a median
        yield (name, f"{max(offsets):.3f}", f"{np.mean(chance):.3f}", f"{min(ratios):.2f} to {max(ratios):.2f}",
               f"{first:.0f}", f"{second:.0f}", f"{one.n_steps}", f"{two.n_steps}",
               f"{two.acceptance_fraction:.2f}")  # fmt: skip


def show(title, rows):
    """Print a table, and return it in reStructuredText."""
    print(f"\n{title}")
    kept = []
    for row in rows:
        kept.append(row)
        print(" | ".join(row), flush=True)
    return list_table(title, kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=4000, help="of each chain of a known shape; 0: none")
    parser.add_argument("--star-steps", type=int, default=1000, help="of the K giant's chains by the moves before")
    parser.add_argument("--seeds", type=int, default=3, help="samplings of the K giant; 0: no star")
    parser.add_argument("--tables", type=Path, help="folder to write them to, in reStructuredText")
    options = parser.parse_args()
    torch.set_num_threads(1)
    about = f"{processor()}, one thread, {date.today().isoformat()}"
    tables = {}
    if options.steps:
        tables["shapes"] = show(f"Known posteriors, {options.steps} steps", shape_rows(options.steps))
    if options.seeds:
        model = CalibratedModel.from_pretrained()
        tables["star"] = show(f"K giant, observed space; {about}", star_rows(model, datasets.k_giant(), options))
        stars = {"K giant": datasets.k_giant()} | {f"simulated, {seed}": simulated(model, seed) for seed in (1, 2)}
        tables["nuts"] = show(f"All labels, observed space; {about}", nuts_rows(model, stars))
    for name, table in tables.items():
        if options.tables:
            write_rst(options.tables / f"sampling_{name}.rst", table)


if __name__ == "__main__":
    main()
