#!/usr/bin/env python
"""All that has networks in it, on an accelerator: training, fits, derivatives, samples, beside the processor.

Each line says how fast it is on the device, how many times faster than on the processor of the same machine,
and how far the results are apart. At the end stand the operations in which the time goes::

    python benchmarks/accelerator.py --device cuda

``--device cpu --few`` tries the script itself where there is no accelerator: the differences are then 0.
"""

from __future__ import annotations

import argparse
import platform
import time

import numpy as np
import torch
from fitting import simulated
from torch.profiler import ProfilerActivity, profile
from training_step import make_trainer

from cyclestarnet import CalibratedModel, TrainingSettings, datasets
from cyclestarnet.networks.predictor import ObservedPredictor

FORMS = {
    "float32": ({"mixed_precision": False}, False),
    "TF32": ({"mixed_precision": False}, True),
    "bfloat16": ({"mixed_precision": True}, False),
}
PAPER = 350_000  # iterations of the paper's training


def timed(function, device):
    """What a function gives, and the seconds until the device has done it."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    clock = time.perf_counter()
    result = function()
    wait()
    return result, time.perf_counter() - clock


def tf32(wanted):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = wanted


def trainer_on(device, batch, changes):
    return make_trainer(TrainingSettings(batch_size=batch, **changes), device=device)


# -- training ----------------------------------------------------------------------
def training_rows(options):
    yield f"{'training':26}{'it/s':>9}{'times':>8}{'hours of 350,000':>18}{'loss, difference':>18}"
    for batch in options.batches:
        plain = trainer_on("cpu", batch, {"mixed_precision": False})
        first = plain.step()
        _, slow = timed(plain.step, "cpu")
        for name, (changes, wanted) in FORMS.items():
            if name == "TF32" and options.device == "cpu":
                continue
            tf32(wanted)
            trainer = trainer_on(options.device, batch, changes)
            losses = trainer.step()
            trainer.step()
            _, seconds = timed(lambda t=trainer: [t.step() for _ in range(options.iterations)], options.device)
            seconds /= options.iterations
            apart = max(abs(losses[key] / first[key] - 1) for key in first)
            label = f"{batch} + {batch}, {name}"
            yield f"{label:26}{1 / seconds:9.2f}{slow / seconds:8.1f}{PAPER * seconds / 3600:18.2f}{apart:18.1e}"
    tf32(False)


# -- fits, derivatives, samples ------------------------------------------------------
def fit_rows(models, options):
    stars = list(simulated(models["cpu"], options.stars))
    few = stars[: options.stars_cpu]
    yield f"{'fits':26}{'stars/s':>9}{'times':>8}{'labels, largest difference [error bars]':>42}"
    tables, speed = {}, {}
    for name, model in models.items():
        own = few if name == "cpu" else stars
        model.fit_many(own[:2], progress=False)
        tables[name], seconds = timed(lambda m=model, s=own: m.fit_many(s, progress=False), options.device)
        speed[name] = len(own) / seconds
    n, names = len(few), models["cpu"].labels
    apart = max(
        np.abs((tables[options.device][label][:n] - tables["cpu"][label]) / tables["cpu"][f"{label}_err"]).max()
        for label in names
    )
    fast, slow = speed[options.device], speed["cpu"]
    yield f"{f'{len(stars)} stars':26}{fast:9.1f}{fast / slow:8.1f}{apart:42.1e}"


def jacobian_rows(models, options):
    yield f"{'flux and 20 derivatives':26}{'ms':>9}{'times':>8}{'largest difference':>42}"
    found, seconds = {}, {}
    for name, model in models.items():
        predictor = ObservedPredictor(model.emulator, model.translator, model.population.typical_split_latent)
        labels = np.tile(model.population.prior.mean, (options.together, 1))
        predictor.jacobian(labels)
        found[name], seconds[name] = timed(lambda p=predictor, x=labels: p.jacobian(x), options.device)
    slopes = {name: jacobian[1] for name, jacobian in found.items()}
    apart = np.abs(slopes[options.device] - slopes["cpu"]).max() / np.abs(slopes["cpu"]).max()
    ms = 1000 * seconds[options.device] / options.together
    yield f"{f'{options.together} at once':26}{ms:9.2f}{seconds['cpu'] / seconds[options.device]:8.1f}{apart:42.1e}"


def sample_rows(models, options):
    yield f"{'posterior of 20 labels':26}{'seconds':>9}{'times':>8}{'medians, largest difference [widths]':>42}"
    star, found, seconds = datasets.k_giant(), {}, {}
    for name, model in models.items():
        start = model.fit(star)
        found[name], seconds[name] = timed(
            lambda m=model, s=start: m.sample(star, start=s, seed=1, progress=False, length=options.length),
            options.device,
        )
    one, other = (found[name] for name in ("cpu", options.device))
    apart = max(abs((one.labels[n] - other.labels[n]) / one.uncertainties[n]) for n in models["cpu"].labels)
    times = seconds["cpu"] / seconds[options.device]
    yield f"{'K giant':26}{seconds[options.device]:9.1f}{times:8.1f}{float(apart):42.1e}"


def profile_rows(models, options):
    """The operations that take most of a training, and of fits."""
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * options.device.startswith("cuda")
    order = "self_cuda_time_total" if options.device.startswith("cuda") else "self_cpu_time_total"
    trainer = trainer_on(options.device, options.batches[0], {"mixed_precision": True})
    stars = list(simulated(models["cpu"], min(options.stars, 20)))
    work = {"an iteration in bfloat16": trainer.step}
    work[f"fits of {len(stars)} stars"] = lambda: models[options.device].fit_many(stars, progress=False)
    for name, function in work.items():
        function()
        with profile(activities=kinds) as found:
            function()
        yield f"\nwhere the time of {name} goes"
        yield found.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=40)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--few", action="store_true", help="small numbers, to try the script")
    options = parser.parse_args()
    few = options.few
    options.batches = (4,) if few else (8, 32, 128)
    options.iterations = 2 if few else 100
    options.stars, options.stars_cpu, options.together, options.length = (8, 4, 4, 10) if few else (10_000, 100, 64, 50)
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else platform.processor()
    print(f"{name or options.device}, torch {torch.__version__}, {torch.get_num_threads()} threads of the processor")
    model = CalibratedModel.from_pretrained()
    models = {"cpu": model, options.device: model.to(options.device)}
    for rows in (training_rows(options), *(part(models, options) for part in (fit_rows, jacobian_rows, sample_rows))):
        for row in rows:
            print(row, flush=True)
    for row in profile_rows(models, options):
        print(row, flush=True)


if __name__ == "__main__":
    main()
