"""Tiny things that tests and their subprocesses train: spectral lines with a known truth, networks, a trainer."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import torch

from cyclestarnet import LabelSet
from cyclestarnet.networks.translation import NetworkSettings
from cyclestarnet.training.datasets import ObservedSpectra, SyntheticSpectra
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra
from cyclestarnet.training.trainer import Anchors, Trainer
from cyclestarnet.training.watch import SCORES

# The paper's network in small: 415 pixels (416 padded), latents of 10 positions.
TINY_NETWORK = NetworkSettings(
    n_pixels=415,
    domain=((8, 7, 4),),
    shared=((16, 7, 4), (24, 7, 2)),
    split=((4, 7, 4), (4, 7, 2)),
    shared_filters=8,
    split_filters=2,
    critic_spectrum=((4, 7, 4), (8, 7, 4)),
    critic_latent=((8, 1, 1), (8, 1, 1)),
)


class LineFamily:
    """Spectra of 28 Gaussian lines whose depths depend on three labels: a synthetic grid with a known truth.

    ``width`` (pixels) and ``depth`` are what an "observed" domain has of its own.
    """

    labels = LabelSet(("teff", "logg", "mg_h"), (4000, 0.5, -1.0), (5500, 3.5, 0.5), {"alpha_m": {"mg_h": 1.0}})
    n_pixels = 415

    def __init__(self):
        rng = np.random.default_rng(1)
        self.centres = rng.uniform(6, self.n_pixels - 6, 28)
        self.strength = rng.uniform(0.1, 0.4, 28)
        self.slopes = rng.normal(0, 0.5, (28, 3))

    def __call__(self, labels, *, width=2.0, depth=1.0):
        unit = (np.atleast_2d(labels) - self.labels.lower) / self.labels.scale - 0.5
        depths = depth * self.strength * np.exp(unit @ self.slopes.T)
        widths = np.broadcast_to(width, (len(unit),))[:, None, None]
        offset = (np.arange(self.n_pixels) - self.centres[:, None]) / widths
        return np.exp(-np.einsum("nl,nlp->np", depths, np.exp(-0.5 * offset**2) * 2 / widths))

    def emulator(self, labels):
        """The same of tensors, in their dtype and differentiable, with the width and depth of the synthetic domain."""
        lower, scale, strength, slopes, centres = (
            torch.tensor(a, dtype=labels.dtype)
            for a in (self.labels.lower, self.labels.scale, self.strength, self.slopes, self.centres)
        )
        depths = strength * torch.exp(((labels - lower) / scale - 0.5) @ slopes.T)
        offset = torch.arange(self.n_pixels).to(labels) - centres[:, None]
        return torch.exp(-depths @ torch.exp(-(offset**2) / 8))

    def draw(self, n, rng):
        """Labels around the middle of the range."""
        return 0.5 * (self.labels.lower + self.labels.upper) + self.labels.scale * rng.normal(0, 0.15, (n, 3)).clip(
            -0.4, 0.4
        )


def tiny_trainer(
    folder=None, *, double=False, layout=None, split_filters=2, emulator=None, table=None, watch=None, **changes
):
    """A trainer on 24 noisy spectra per domain.

    ``double`` makes everything float64; ``table`` streams the observed spectra from a file; ``weight_anchors`` comes
    with 6 anchors, and ``watch`` with 12 held-out spectra.
    """
    rng, family = np.random.default_rng(8), LineFamily()
    settings = TrainingSettings(
        **({"n_iterations": 100, "batch_size": 3, "flux_mean": 0.92, "flux_std": 0.11} | changes)
    )
    pool, labels = family.draw(24, rng), family.draw(24, rng)
    flux, sigma, mask = noisy(labels, rng)
    synthetic = SyntheticSpectra(emulator or family.emulator, pool, settings, label_names=family.labels.names)
    observed = ObservedSpectra(flux, sigma, mask, settings)
    in_memory, anchors = [observed], None
    if table is not None:
        observed = StreamedSpectra(table, settings, window_rows=12)
    if settings.weight_anchors:
        anchors = Anchors(ObservedSpectra(flux[:6], sigma[:6], mask[:6], settings), labels[:6])
        in_memory.append(anchors.observed)
    sizes = NetworkSettings(**(TINY_NETWORK.to_dict() | {"split_filters": split_filters}))
    held_out = ObservedSpectra(*noisy(family.draw(12, rng), rng), settings) if watch else None
    options = {"anchors": anchors, "watch": watch, "held_out": held_out}
    trainer = Trainer(sizes, settings, synthetic, observed, folder, **options)
    if double:
        trainer.parts.double()
        trainer.parts.dtype, trainer.parts.maps = torch.float64, layout or trainer.parts.maps
        trainer.average = {name: array.double() for name, array in trainer.average.items()}
        for name in ("label_pool", "label_mean", "label_std"):
            setattr(synthetic, name, getattr(synthetic, name).double())
        for source in in_memory:
            source.flux, source.weight = source.flux.double(), source.weight.double()
        if trainer.iteration:
            trainer._load(trainer.folder)  # once more: the first time it was rounded to float32
    return trainer


@contextmanager
def quick_scores():
    """Replace the scores of a watch, which take seconds, by a function of the weights."""

    def scores(network, x_synth, x_obs, weight_obs, **options):
        with torch.no_grad():
            return dict.fromkeys(SCORES, network.obs_to_synth(x_obs.to(next(network.parameters()))).std().item())

    with mock.patch("cyclestarnet.training.trainer.alignment_scores", scores):
        yield


def noisy(labels, rng):
    """Observed spectra of labels: flux, errors of which some are below the floor and some masked, and mask."""
    sigma = rng.uniform(0.002, 0.055, (len(labels), LineFamily.n_pixels))
    flux = rng.normal(LineFamily()(labels, width=2.3, depth=1.1), sigma)
    return flux, sigma, rng.random(flux.shape) < 0.05
