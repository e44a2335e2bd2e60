#!/usr/bin/env python
"""Time one training iteration: plain modules as the paper describes them, beside ours.

Both do the same mathematics on the same spectra from the same weights; the
table gives seconds per iteration, the ratio, and the largest difference of the
six loss terms. Example::

    python benchmarks/training_step.py --batch 8 --threads 2
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from cyclestarnet.backend import losses
from cyclestarnet.backend.networks import NetworkSettings
from cyclestarnet.backend.settings import TrainingSettings
from cyclestarnet.backend.sources import ObservedSpectra, SyntheticSpectra
from cyclestarnet.backend.training import Trainer


class PlainTrainer(Trainer):
    """The same iteration, module by module: every mapping is its own pass through its sub-networks."""

    def autoencoder_terms(self, x_synth, x_obs, weight_obs, labels=None):
        net = self.network
        z_synth = net.encode_synth(x_synth)
        z_obs, z_split = net.encode_obs(x_obs)
        rec_synth, rec_obs = net.decode_synth(z_synth), net.decode_obs(z_obs, z_split)
        synth_to_obs, obs_to_synth = net.decode_obs(z_synth, z_split), net.decode_synth(z_obs)
        z_back_synth, split_back = net.encode_obs(synth_to_obs)
        cyc_synth = net.decode_synth(z_back_synth)
        cyc_obs = net.decode_obs(net.encode_synth(obs_to_synth), z_split)
        weight = self.settings.flux_std / self.settings.synthetic_sigma
        terms = {
            "rec_synth": losses.distance(rec_synth, x_synth, weight),
            "rec_obs": losses.distance(rec_obs, x_obs, weight_obs),
            "cyc_synth": losses.distance(cyc_synth, x_synth, weight),
            "cyc_obs": losses.distance(cyc_obs, x_obs, weight_obs),
            "gen_synth": losses.generator_loss(self.critic_synth(obs_to_synth, z_obs)),
            "gen_obs": losses.generator_loss(self.critic_obs(synth_to_obs, torch.cat([z_synth, split_back], 1))),
        }
        kept = (rec_synth, obs_to_synth, rec_obs, synth_to_obs, z_synth, z_obs, z_split, split_back)
        return terms, tuple(tensor.detach() for tensor in kept)

    def critic_terms(self, transfers):
        rec_synth, obs_to_synth, rec_obs, synth_to_obs, z_synth, z_obs, z_split, split_back = transfers
        true_synth, fake_synth = self.critic_synth(rec_synth, z_synth), self.critic_synth(obs_to_synth, z_obs)
        true_obs = self.critic_obs(rec_obs, torch.cat([z_obs, z_split], 1))
        fake_obs = self.critic_obs(synth_to_obs, torch.cat([z_synth, split_back], 1))
        return {
            "critic_synth": losses.critic_loss(true_synth, fake_synth),
            "critic_obs": losses.critic_loss(true_obs, fake_obs),
        }


def make_trainer(kind, batch, mixed):
    """A trainer on made spectra: lines whose depths follow the labels, with noise in the observed domain."""
    rng = np.random.default_rng(0)
    settings = TrainingSettings(batch_size=batch, mixed_precision=mixed)
    network = NetworkSettings()
    lines = torch.tensor(0.1 * (rng.random((5, network.n_pixels)) ** 20), dtype=torch.float32)

    def emulator(labels):
        return 1 - labels.sigmoid() @ lines

    pool = rng.normal(size=(1000, 5))
    sigma = np.full((64, network.n_pixels), 0.01)
    flux = emulator(torch.tensor(pool[:64], dtype=torch.float32)).numpy() + rng.normal(size=sigma.shape) * sigma
    observed = ObservedSpectra(flux, sigma, np.zeros(sigma.shape, dtype=bool), settings)
    return kind(network, settings, SyntheticSpectra(emulator, pool, settings), observed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8, help="spectra per domain")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    forms = {
        "plain modules, float32": (PlainTrainer, False),
        "ours, float32": (Trainer, False),
        "ours, bfloat16": (Trainer, True),
    }
    print(f"{options.batch} + {options.batch} spectra, {options.threads} threads, torch {torch.__version__}")
    print(f"{'form':25}{'s/iteration':>12}{'ratio':>8}{'largest difference of a loss':>32}")
    reference_time, reference = None, None
    for name, (kind, mixed) in forms.items():
        trainer = make_trainer(kind, options.batch, mixed)
        first = trainer.step()
        start = time.perf_counter()
        for _ in range(options.iterations):
            trainer.step()
        seconds = (time.perf_counter() - start) / options.iterations
        reference_time, reference = reference_time or seconds, reference or first
        worst = max(abs(first[k] / reference[k] - 1) for k in reference)
        print(f"{name:25}{seconds:12.3f}{reference_time / seconds:8.2f}{worst:32.1e}")


if __name__ == "__main__":
    main()
