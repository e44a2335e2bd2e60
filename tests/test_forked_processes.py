"""Processes that are forked after a fit, as pools do where nobody says otherwise: none may wait for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has no threads to lose"),
]

SCRIPT = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import torch

from cyclestarnet import CalibratedModel, datasets

torch.set_num_threads(2)
model, star = CalibratedModel.from_pretrained(), datasets.k_giant()
labels = model.labels.to_quantities(model.prior.mean)

VERBS = {
    "fit": lambda: model.fit(star, space="emulator").values,
    "observed": lambda: model.fit(star, method="lm").values,
    "predict": lambda: model.predict(labels).flux.value[:9],
    "derivatives": lambda: model.derivative_spectra(labels, names=["mg_h"])["mg_h"].value[:9],
    "translate": lambda: model.to_synthetic(star).flux.value[:9],
}

def call(name):
    return VERBS[name]().tolist(), torch.get_num_threads()

here = {name: call(name)[0] for name in VERBS}
context = multiprocessing.get_context("fork")
for kind in (context.Pool, lambda n: ProcessPoolExecutor(n, mp_context=context)):
    with kind(2) as pool:
        there = list(pool.map(call, VERBS))
    for (name, expected), (values, n_threads) in zip(here.items(), there):
        assert n_threads == 1, n_threads
        assert all(abs(a - b) <= 1e-5 * max(abs(a), 1) for a, b in zip(values, expected)), (name, values, expected)
    assert torch.get_num_threads() == 2  # the parent keeps its threads
    print("done", flush=True)
"""


def test_pools_after_a_fit_come_to_their_end():
    """Both kinds that Python has."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        env=environment, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.stdout.split() == ["done", "done"], done.stderr
