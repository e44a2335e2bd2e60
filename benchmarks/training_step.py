#!/usr/bin/env python
"""Time one training iteration: module by module as the paper describes it, beside ours.

Each form starts from the same weights and sees the same spectra, in a process
of its own; the last three have terms beyond the paper's. The table gives seconds
per iteration, how many times faster than the plain form that is, the largest
relative difference of a loss term at the first iteration, and how much memory
the iterations added. Example::

    python benchmarks/training_step.py --batch 8 --threads 2
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.training.datasets import ObservedSpectra, SyntheticSpectra
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.trainer import Trainer

sys.path.append(str(Path(__file__).parents[1] / "recipes"))
from list_tables import processor

FORMS = {
    "plain modules, float32": {"mixed_precision": False},
    "ours, float32": {"mixed_precision": False},
    "ours, bfloat16": {"mixed_precision": True},
    "ours, bfloat16, in parts of 4": {"mixed_precision": True, "micro_batches": 0},
    "ours, bfloat16, label head": {"mixed_precision": True, "weight_labels": 5.0},
    "the same and response": {
        "mixed_precision": True, "weight_labels": 5.0, "weight_response": 3.0, "response_labels": ("a", "b"),
    },
    "the same and label cycle": {
        "mixed_precision": True, "weight_labels": 5.0, "weight_response": 3.0, "response_labels": ("a", "b"),
        "weight_label_cycle": 1.0,
    },
}  # fmt: skip


class PlainTraining:
    """The paper's iteration in its plainest form: every mapping is a pass of its own through its sub-networks."""

    def __init__(self, trainer: Trainer):
        self.network, self.settings = copy.deepcopy(trainer.network), trainer.settings
        self.critics = [copy.deepcopy(critic) for critic in (trainer.critic_synth, trainer.critic_obs)]
        self.sources, self.generator = (trainer.synthetic, trainer.observed), trainer.generator
        s = self.settings
        self.adam = torch.optim.Adam(self.network.parameters(), s.learning_rate, s.betas)
        critics = [p for critic in self.critics for p in critic.parameters()]
        self.critic_adam = torch.optim.Adam(critics, s.critic_learning_rate, s.betas)

    def step(self):
        s, net, (critic_synth, critic_obs) = self.settings, self.network, self.critics
        (x_synth, _), (x_obs, weight_obs) = (source.draw(s.batch_size, self.generator) for source in self.sources)
        z_synth = net.encode_synth(x_synth)
        z_obs, z_split = net.encode_obs(x_obs)
        rec_synth, rec_obs = net.decode_synth(z_synth), net.decode_obs(z_obs, z_split)
        synth_to_obs, obs_to_synth = net.decode_obs(z_synth, z_split), net.decode_synth(z_obs)
        z_back, split_back = net.encode_obs(synth_to_obs)
        cyc_synth, cyc_obs = net.decode_synth(z_back), net.decode_obs(net.encode_synth(obs_to_synth), z_split)
        weight = s.flux_std / s.synthetic_sigma
        terms = {
            "rec_synth": ((rec_synth - x_synth) * weight).square().mean(),
            "rec_obs": ((rec_obs - x_obs) * weight_obs).square().mean(),
            "cyc_synth": ((cyc_synth - x_synth) * weight).square().mean(),
            "cyc_obs": ((cyc_obs - x_obs) * weight_obs).square().mean(),
            "gen_synth": self.cross_entropy(critic_synth(obs_to_synth, z_obs), 1.0),
            "gen_obs": self.cross_entropy(critic_obs(synth_to_obs, torch.cat([z_synth, split_back], 1)), 1.0),
        }
        total = s.weight_synth * (terms["rec_synth"] + terms["cyc_synth"])
        total = total + s.weight_obs * (terms["rec_obs"] + terms["cyc_obs"])
        total = total + s.weight_adversarial * (terms["gen_synth"] + terms["gen_obs"])
        self.adam.zero_grad()
        total.backward()
        self.adam.step()
        true_obs, fake_obs = torch.cat([z_obs, z_split], 1).detach(), torch.cat([z_synth, split_back], 1).detach()
        terms["critic_synth"] = self.cross_entropy(critic_synth(rec_synth.detach(), z_synth.detach()), 1.0)
        terms["critic_synth"] = terms["critic_synth"] + self.cross_entropy(
            critic_synth(obs_to_synth.detach(), z_obs.detach()), 0.0
        )
        terms["critic_obs"] = self.cross_entropy(critic_obs(rec_obs.detach(), true_obs), 1.0)
        terms["critic_obs"] = terms["critic_obs"] + self.cross_entropy(critic_obs(synth_to_obs.detach(), fake_obs), 0.0)
        self.critic_adam.zero_grad()
        (s.weight_adversarial * (terms["critic_synth"] + terms["critic_obs"])).backward()
        self.critic_adam.step()
        return {name: term.item() for name, term in terms.items()}

    @staticmethod
    def cross_entropy(logits, target):
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def make_trainer(settings, device="cpu"):
    """A trainer on made spectra: lines whose depths follow the labels, with noise in the observed domain."""
    rng = np.random.default_rng(0)
    network = NetworkSettings()
    lines = torch.tensor(0.1 * (rng.random((5, network.n_pixels)) ** 20), dtype=torch.float32)

    def emulator(labels):
        return 1 - labels.sigmoid() @ lines.to(labels)

    pool = rng.normal(size=(1000, 5))
    sigma = np.full((64, network.n_pixels), 0.01)
    flux = emulator(torch.tensor(pool[:64], dtype=torch.float32)).numpy() + rng.normal(size=sigma.shape) * sigma
    observed = ObservedSpectra(flux, sigma, np.zeros(sigma.shape, dtype=bool), settings)
    return Trainer(
        network, settings, SyntheticSpectra(emulator, pool, settings, label_names="abcde"), observed, device=device
    )


def peak():
    """Largest resident memory so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(form, options):
    """Print time, memory and first losses of one form."""
    torch.set_num_threads(options.threads)
    changes = dict(FORMS[form])
    if changes.get("micro_batches") == 0:
        changes["micro_batches"] = max(options.batch // 4, 1)
    training = make_trainer(TrainingSettings(batch_size=options.batch, **changes))
    if form.startswith("plain"):
        training = PlainTraining(training)
    before = peak()
    first = training.step()
    training.step()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(options.iterations):
        training.step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    n = options.iterations
    print(json.dumps({"wall": wall / n, "cpu": cpu / n, "memory": peak() - before, "first": first}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8, help="spectra per domain")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.form:
        measure(options.form, options)
        return
    about = f"{processor()}, threads: {options.threads}, torch {torch.__version__}"
    print(f"{options.batch} + {options.batch} spectra, {about}")
    print(f"{'form':32}{'s/iteration':>12}{'ratio':>7}{'CPU-s':>8}{'loss difference':>17}{'memory added':>14}")
    reference = None
    for form in FORMS:
        arguments = [sys.executable, __file__, *sys.argv[1:], "--form", form]
        found = json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
        reference = reference or found
        worst = max(abs(found["first"][k] / reference["first"][k] - 1) for k in reference["first"])
        print(
            f"{form:32}{found['wall']:12.3f}{reference['wall'] / found['wall']:7.2f}{found['cpu']:8.2f}"
            f"{worst:17.1e}{found['memory']:11.0f} MB"
        )


if __name__ == "__main__":
    main()
