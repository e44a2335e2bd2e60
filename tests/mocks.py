"""A model whose flux, slopes and features are known, and studies of missing lines that it makes."""

import json

import astropy.units as u
import numpy as np
import torch
from tiny import TINY_NETWORK

from cyclestarnet import CalibratedModel, ContinuumRecipe, GaussianPrior, LabelSet, WavelengthGrid
from cyclestarnet.lines.config import read_mock_config
from cyclestarnet.networks.clouds import LatentCloud
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.translation import TranslationNetwork
from cyclestarnet.networks.translator import Translator
from cyclestarnet.noise import NoiseModel
from cyclestarnet.pipeline.parts import FlagLimits, Population

N = 415
GRID = WavelengthGrid(10 ** (4.18 + 6e-6 * np.r_[0:200, 260:475]) * u.AA, ((0, 200), (200, N)))
NAMES = ("teff", "logg", "vmicro", "m_h", "fe_h", "mg_h")
LABELS = LabelSet(NAMES, [4000, 0.5, 0.5, -1, -1, -1], [5500, 3.5, 2.5, 0.5, 0.5, 0.5])
MEAN, SIGMA = np.array([4700, 2.0, 1.5, -0.2, -0.2, -0.2]), np.array([100, 0.2, 0.1, 0.05, 0.05, 0.05])
LINES = {"fe_h": (20, 80, 140, 230, 290, 350), "mg_h": (50, 110, 170, 260, 320, 380)}  # no two share a pixel
STRENGTH, WIDTH, DEPTH = 0.3, 3.0, 0.4  # 1/dex, pixels, and depth at the mean
REACH = int(WIDTH * np.sqrt(2 * np.log(STRENGTH / 0.02)))  # pixels from the centre of a feature to its edges
CONFIG = """
[run]
folder = "{folder}"
seed = {seed}
threads = 1
[mock]
{mock}
[training]
batch_size = 3
flux_mean = 0.92
flux_std = 0.11
[network]
domain = [[8, 7, 4]]
shared = [[16, 7, 4], [24, 7, 2]]
split = [[4, 7, 4], [4, 7, 2]]
shared_filters = 8
split_filters = 2
critic_spectrum = [[4, 7, 4], [8, 7, 4]]
critic_latent = [[8, 1, 1], [8, 1, 1]]
"""


def profile(centre):
    return np.exp(-0.5 * ((np.arange(N) - centre) / WIDTH) ** 2)


def slopes():
    """∂flux/∂label (n_labels, n_pixels): lines weaken with temperature, and elements have their own."""
    rows = {name: -STRENGTH * sum(map(profile, centres)) for name, centres in LINES.items()}
    rows["teff"] = -sum(rows.values()) / 3000
    return np.array([rows.get(name, np.zeros(N)) for name in NAMES])


def truth(labels):
    """Flux (n, n_pixels) of the complete spectra of labels."""
    lines = sum(profile(centre) for centres in LINES.values() for centre in centres)
    return 1 - DEPTH * lines + (np.asarray(labels) - MEAN) @ slopes()


def linear_emulator():
    """`truth` as an emulator: its hidden units are the labels, shifted to where they are linear."""
    emulator = Emulator(LABELS.lower, LABELS.upper, N, hidden=(len(NAMES),), activation="leaky_relu")
    first, last = emulator.layers[0], emulator.layers[-1]
    matrix = slopes().T * LABELS.scale
    origin = LABELS.lower - 0.5 * LABELS.scale  # where all hidden units are zero
    with torch.no_grad():
        for parameter, value in (
            (first.weight, np.eye(len(NAMES))), (first.bias, np.ones(len(NAMES))),
            (last.weight, matrix), (last.bias, truth(origin)),
        ):  # fmt: skip
            parameter.copy_(torch.as_tensor(value))
    return emulator.eval().requires_grad_(False)


def flux_of(emulator, labels):
    with torch.no_grad():
        return emulator(torch.as_tensor(np.asarray(labels), dtype=torch.float32)).numpy()


def true_model():
    """A model whose emulator is the truth; its networks are not trained."""
    rng = np.random.default_rng(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        translator = Translator(TranslationNetwork(TINY_NETWORK), 0.92, 0.11)
    shared, split = translator.encode_obs(truth(rng.normal(MEAN, SIGMA, (60, len(NAMES)))))
    quiet = abs(slopes()[NAMES.index("teff")]) < 1e-6
    return CalibratedModel(
        name="truth",
        labels=LABELS,
        grid=GRID,
        emulator=linear_emulator(),
        translator=translator,
        recipe=ContinuumRecipe(GRID, quiet, degree=1),
        normalises=False,
        noise=NoiseModel(scatter={space: np.full(N, 0.001) for space in ("observed", "emulator")}),
        population=Population(
            prior=GaussianPrior(MEAN, np.diag(SIGMA**2)),
            shared_latents=LatentCloud.from_latents(shared),
            typical_split_latent=split.mean(0),
        ),
        limits=FlagLimits(reduced_chi2_total=2.0, prior_distance=3.0),
    )


def write_study(path, *, folder="run", seed=3, **mock):
    """Configuration of a study, read from its file; keywords are keys of its table [mock]."""
    mock = {"n_drawn": 300, "n_observed": 50, "n_validation": 20} | mock
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in mock.items())
    path.write_text(CONFIG.format(folder=folder, seed=seed, mock=lines))
    return read_mock_config(path)
