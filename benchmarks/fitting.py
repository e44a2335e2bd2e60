#!/usr/bin/env python
"""Time fits: star by star with torch's L-BFGS as the method was published, beside ours.

All forms fit the same stars with the same likelihood, prior and start, on one
thread, each in a process of its own, so that its peak memory is its own. The
plain form evaluates the networks module by module, with a gradient of every
weight, and counts from spectra on the model's pixels; ours count from
`~specutils.Spectrum` to `~cyclestarnet.FitResult`. CPU time, unlike wall time,
hardly depends on what else the computer does. Spectra are made by the model of
labels from its prior, or come from a file. Example::

    python benchmarks/fitting.py --stars 20 --survey 10 100 1000 10000 --table docs/tables/fitting_speed.rst
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from cyclestarnet import CalibratedModel
from cyclestarnet.io import TrainingSet, write_training_set
from cyclestarnet.io.stars import star_sources
from cyclestarnet.networks.predictor import ObservedPredictor
from cyclestarnet.pipeline.fit import fit_stars, make_objective, prepare_stars
from cyclestarnet.pipeline.options import FitOptions
from cyclestarnet.pipeline.setup import FitSetup
from cyclestarnet.spectra import to_spectrum

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
from list_tables import list_table, processor, write_rst

PLAIN = "plain L-BFGS, float32"
METHODS = {"ours, L-BFGS": "lbfgs", "ours, Levenberg-Marquardt": "lm"}
PUBLISHED = {"lr": 0.01, "max_iter": 100, "line_search_fn": "strong_wolfe"}
OUTER_STEPS = 10
N_DISTINCT = 200  # labels of simulated stars; more stars differ by their noise


# -- stars -------------------------------------------------------------------------
def simulated(model, n, seed=0):
    """Spectra that the model makes of labels from its prior, with its own scatter, noise and bad pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.multivariate_normal(model.prior.mean, model.prior.covariance, min(n, N_DISTINCT))
    predictor = ObservedPredictor(model.translated_emulator, model.translator, model.population.typical_split_latent)
    flux = predictor.flux(labels.clip(model.labels.lower, model.labels.upper))
    for k in range(n):
        sigma = np.full(model.grid.n_pixels, 1 / rng.uniform(60, 250))
        noise = rng.normal(size=sigma.shape) * np.hypot(sigma, model.noise.scatter["observed"])
        ivar = np.where(rng.random(sigma.shape) < 0.05, 0.0, sigma**-2)
        yield to_spectrum(flux[k % len(flux)] + noise, model.grid, ivar=ivar)


def chosen_stars(model, options):
    """The stars to compare the forms on."""
    if options.observed is None:
        return list(simulated(model, options.stars))
    sources = star_sources(TrainingSet(options.observed, split=options.split, grid=model.grid))
    return [source.read() for source in islice(sources, options.stars)]


# -- forms of a fit: labels and evaluations of each star -------------------------------
class PlainFit:
    """What the published code does with a star: the networks in their plainest form, weights and all."""

    def __init__(self, model):
        self.translator = copy.deepcopy(model.translator)
        self.translator.network.requires_grad_(True)
        self.emulator = copy.deepcopy(model.translated_emulator).requires_grad_(True)
        self.mean, self.precision = (self._tensor(a) for a in (model.prior.mean, model.prior.precision))
        self.lower, self.scale = (self._tensor(a) for a in (model.labels.lower, model.labels.scale))

    @staticmethod
    def _tensor(array):
        return torch.tensor(array, dtype=torch.float32)

    def __call__(self, flux, ivar, filled, start, dof):
        """Labels and number of evaluations, from arrays (n_pixels,) and the labels to start from."""
        flux, ivar = self._tensor(flux), self._tensor(ivar)
        with torch.no_grad():
            _, split = self.translator.network.encode_obs(self.translator.standardise(self._tensor(filled))[None])
        scaled = ((self._tensor(start) - self.lower) / self.scale - 0.5).requires_grad_()
        optimizer, count = torch.optim.LBFGS([scaled], **PUBLISHED), 0

        def closure():
            nonlocal count
            count += 1
            optimizer.zero_grad()
            labels = (scaled + 0.5) * self.scale + self.lower
            synthetic = self.translator.standardise(self.emulator(labels[None]))
            predicted = self.translator.restore(self.translator.to_observed(synthetic, split)[0])
            chi2, offset = ((predicted - flux) ** 2 * ivar).sum(), labels - self.mean
            scale2 = (chi2 / dof).clamp(min=1.0)  # errors are larger where χ² says so, as in ours
            loss = 0.5 * (chi2 / scale2 + dof * torch.log(scale2) + offset @ self.precision @ offset)
            loss.backward()
            return loss

        for _ in range(OUTER_STEPS):
            optimizer.step(closure)
        labels = ((scaled.detach() + 0.5) * self.scale + self.lower).double().numpy()
        return labels, count


def fit_plainly(model, spectra):
    """A loop over stars that are on the model's pixels already; starts as ours."""
    stars, _ = prepare_stars(model, spectra, FitSetup.of(model, FitOptions()))
    objective = make_objective(model, stars, FitSetup.of(model, FitOptions()))
    ivar, dof = objective.ivar.numpy(), objective.dof.tolist()
    starts = np.repeat(model.prior.mean[None], len(stars), axis=0)
    if model.shortcuts is not None:
        starts = model.shortcuts.first_guess(stars.shared_latent).clip(model.labels.lower, model.labels.upper)
    fit = PlainFit(model)
    return lambda: [fit(*star) for star in zip(stars.flux, ivar, stars.filled, starts, dof, strict=True)]


def fit_ours(model, spectra, method):
    """All stars at once, start to finish."""
    setup = FitSetup.of(model, FitOptions(method=method))
    fit_stars(model, spectra[:2], setup)  # what is made once is made
    return lambda: [(r.values, r.meta["n_evaluations"]) for r in fit_stars(model, spectra, setup)]


# -- measurements ------------------------------------------------------------------------
def peak():
    """Largest memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(function):
    """Result, CPU seconds, wall seconds and memory added."""
    before, wall, cpu = peak(), time.perf_counter(), time.process_time()
    result = function()
    return result, time.process_time() - cpu, time.perf_counter() - wall, peak() - before


def measure_fits(model, form, options):
    """Figures of one form, per star, and how good its optima are by one and the same measure."""
    spectra = chosen_stars(model, options)
    run = fit_plainly(model, spectra) if form == PLAIN else fit_ours(model, spectra, METHODS[form])
    found, cpu, wall, memory = timed(run)
    labels, evaluations = (np.array(part) for part in zip(*found, strict=True))
    setup = FitSetup.of(model, FitOptions())
    stars, _ = prepare_stars(model, spectra, setup)
    objective, which = make_objective(model, stars, setup), torch.arange(len(stars))
    inside = torch.as_tensor(labels.clip(model.labels.lower, model.labels.upper))
    values = torch.as_tensor(setup.parameters.values(inside.numpy()))
    flux = objective.predict(values, which)
    return {
        "cpu": cpu / len(stars), "wall": wall / len(stars), "memory": memory, "evaluations": evaluations.mean(),
        "outside": int((labels != inside.numpy()).any(1).sum()), "chi2": objective.chi2(flux, which).tolist(),
        "log_posterior": (-objective.loss(flux, values, which)).tolist(),
    }  # fmt: skip


def measure_survey(model, path):
    """Time per star of a survey from a file, and memory of the whole process."""
    model.fit_many(simulated(model, 2), progress=False)
    table, cpu, wall, _ = timed(lambda: model.fit_many(path, progress=False))
    n = len(table)
    return {"cpu": cpu / n, "wall": wall / n, "memory": peak(), "success": float(np.mean(table["success"]))}


def measure_derivatives(model, repeats):
    """Milliseconds of one star's flux and derivatives, least of some repeats, and the error of the derivatives."""
    labels = torch.as_tensor(model.prior.mean)[None]
    predictor = ObservedPredictor(model.emulator, model.translator, model.population.typical_split_latent, together=1)
    double = copy.deepcopy(model.translator)
    double.network.double()
    exact = ObservedPredictor(copy.deepcopy(model.emulator).double(), double, model.population.typical_split_latent)
    truth = exact.jacobian(labels)[1][0]
    row = labels[0].float()

    def gradient():
        flux, pull = predictor.pullback(labels)
        return pull(flux)

    def plain():
        with torch.no_grad():
            return torch.func.jacfwd(lambda y: predictor._forward(y[None], None)[0])(row).T

    functions = {
        "flux": lambda: predictor.flux(labels),
        "flux and a gradient": gradient,
        "all derivatives, coarse": lambda: predictor.jacobian(labels, coarse=True)[1][0],
        "all derivatives, torch.func.jacfwd": plain,
        "all derivatives": lambda: predictor.jacobian(labels)[1][0],
    }
    found = {}
    for name, function in functions.items():
        result, seconds = function(), []
        for _ in range(repeats):
            start = time.thread_time()
            function()
            seconds.append(time.thread_time() - start)
        found[name] = {"ms": 1000 * min(seconds)}
        if name.startswith("all"):
            largest = truth.abs().amax(1, keepdim=True)
            found[name]["error"] = float(((result.double() - truth) / largest).abs().max())
    operations, rate = operations_of(functions["all derivatives"]), product_rate(repeats)
    about = f"their matrix products alone: {operations / 1e9:.1f} GFLOP, at this core's {rate / 1e9:.0f} GFLOP/s"
    return found | {about: {"ms": 1000 * operations / rate}}


def operations_of(function):
    """Floating-point operations of all matrix products in a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        function()
    total = 0
    for event in profile.key_averages(group_by_input_shape=True):
        if event.key in ("aten::mm", "aten::bmm", "aten::addmm", "aten::addmm_"):
            first, second = event.input_shapes[-2:] if "addmm" not in event.key else event.input_shapes[1:3]
            total += 2 * event.count * math.prod(first) * second[-1]
    return total


def product_rate(repeats, size=1024):
    """Operations per second of the product of two square float32 matrices, which is as fast as any is."""
    matrix, seconds = torch.randn(size, size), []
    for _ in range(repeats):
        start = time.thread_time()
        matrix @ matrix
        seconds.append(time.thread_time() - start)
    return 2 * size**3 / min(seconds)


def measure_gpu(model, options):
    """Wall seconds per star on a GPU."""
    model.emulator.cuda(), model.translator.network.cuda()
    spectra, setup = chosen_stars(model, options), FitSetup.of(model, FitOptions())
    fit_stars(model, spectra, setup)
    torch.cuda.reset_peak_memory_stats()
    _, cpu, wall, _ = timed(lambda: fit_stars(model, spectra, setup))
    memory = torch.cuda.max_memory_allocated() / 1024**2
    return {"cpu": cpu / len(spectra), "wall": wall / len(spectra), "memory": memory}


# -- tables --------------------------------------------------------------------------------
def spread(values, sign):
    """Median, central 68 % and the worst of differences to the plain form; ``sign`` of what is worse."""
    low, median, high = np.percentile(values, (16, 50, 84))
    return f"{median:+.2f} ({low:+.2f} ... {high:+.2f}), worst {sign * np.max(sign * values):+.2f}"


def fit_rows(found):
    """Rows of the comparison, each form against the plain one."""
    plain = found[PLAIN]
    yield ("form", "CPU-s per star", "times faster", "wall-s per star", "evaluations", "Δ total χ²", "Δ log posterior",
           "memory added")  # fmt: skip
    for form, now in found.items():
        differences = "", ""
        if form != PLAIN:
            chi2, log_posterior = (np.subtract(now[key], plain[key]) for key in ("chi2", "log_posterior"))
            differences = spread(chi2, 1), spread(log_posterior, -1)
        yield (form, f"{now['cpu']:.3f}", f"{plain['cpu'] / now['cpu']:.1f}", f"{now['wall']:.3f}",
               f"{now['evaluations']:.1f}", *differences, f"{now['memory']:.0f} MB")  # fmt: skip


def survey_rows(found):
    yield "stars", "CPU-ms per star", "stars per second", "converged", "memory of the process"
    for n, now in found.items():
        yield (str(n), f"{1000 * now['cpu']:.0f}", f"{1 / now['wall']:.1f}", f"{100 * now['success']:.1f} %",
               f"{now['memory']:.0f} MB")  # fmt: skip


def derivative_rows(found):
    yield "one star", "ms", "largest error"
    for name, now in found.items():
        yield name, f"{now['ms']:.1f}", f"{100 * now['error']:.2g} %" if "error" in now else ""


def gpu_rows(found):
    yield "device", "wall-ms per star", "CPU-ms per star", "memory of the GPU"
    for name, now in found.items():
        yield name, f"{1000 * now['wall']:.1f}", f"{1000 * now['cpu']:.1f}", f"{now['memory']:.0f} MB"


def show(title, rows):
    """Print a table, and return it in reStructuredText."""
    rows = list(rows)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    print(f"\n{title}")
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)
    return list_table(title, rows)


# -- running ---------------------------------------------------------------------------------
def load(name):
    return CalibratedModel.load(name) if Path(name).exists() else CalibratedModel.from_pretrained(name)


def measured(*arguments):
    """Figures of one measurement, made in a process of its own with the options of this one."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", *map(str, arguments)]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def measure(what, options):
    """The part of a child process."""
    torch.set_num_threads(options.threads)
    model = load(options.model)
    if what[0] == "fits":
        return measure_fits(model, what[1], options)
    if what[0] == "survey":
        return measure_survey(model, what[1])
    return measure_gpu(model, options) if what[0] == "gpu" else measure_derivatives(model, options.repeats)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="apogee-giants", help="embedded model, or file of one")
    parser.add_argument("--stars", type=int, default=20, help="for the comparison")
    parser.add_argument("--observed", type=Path, help="HDF5 file of spectra; default: simulated ones")
    parser.add_argument("--split", default="test", help="of that file")
    parser.add_argument("--survey", type=int, nargs="*", default=[10, 100, 1000], help="numbers of stars")
    parser.add_argument("--repeats", type=int, default=20, help="of the derivatives")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, help="file to write, in reStructuredText")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options)))
        return
    about = f"{processor()}, threads: {options.threads}, torch {torch.__version__}, {date.today().isoformat()}"
    source = "simulated" if options.observed is None else "observed-like"
    forms = {form: measured("fits", form) for form in (PLAIN, *METHODS)}
    tables = [show(f"Fits of the same {options.stars} {source} stars; {about}", fit_rows(forms))]
    for form, now in forms.items():
        if now["outside"]:
            print(f"{form}: {now['outside']} stars ended outside the training range, and were moved to its edge")
    tables.append(show(f"Flux and derivatives; {about}", derivative_rows(measured("derivatives"))))
    surveys = {}
    for n in options.survey:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stars.h5"
            model = load(options.model)
            write_training_set(path, simulated(model, n), grid=model.grid, progress=False)
            surveys[n] = measured("survey", path)
    if surveys:
        tables.append(show(f"Surveys of simulated stars from a file; {about}", survey_rows(surveys)))
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        tables.append(show(f"The same {options.stars} stars on a GPU", gpu_rows({name: measured("gpu")})))
    if options.table:
        write_rst(options.table, *tables)


if __name__ == "__main__":
    main()
