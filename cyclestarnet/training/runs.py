"""A training from its configuration to the saved model: `prepare`, train, `finish`.

The command ``cyclestarnet train`` is a thin layer over this room. What can be
wrong with the files that a configuration names is found by `prepare`, before
the first step.
"""

from __future__ import annotations

import logging
import textwrap
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from cyclestarnet._version import __version__
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.exceptions import (
    SpectrumError,
)
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.io.training_set import TrainingSet
from cyclestarnet.labels import LabelSet
from cyclestarnet.networks.checkpoint import load_state
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.predictor import Translator
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.training.assembly import LEAST_STARS, assemble_model
from cyclestarnet.training.config import Config
from cyclestarnet.training.datasets import ObservedSpectra
from cyclestarnet.training.emulators import OWN_EMULATOR
from cyclestarnet.training.inputs import _anchors, _blamed, _grid_of, _recipe, _spectra, _spread, _synthetic_domain
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra
from cyclestarnet.training.toml import ConfigError
from cyclestarnet.training.trainer import Trainer, join_processes

__all__ = ["Run", "finish", "joined_processes", "prepare"]

log = logging.getLogger(__name__)

LEAST_WATCHED = 10  # spectra that the scores of a watch need


@dataclass(frozen=True, eq=False)
class Run:
    """A training that is ready to go.

    Attributes
    ----------
    config : `~cyclestarnet.training.config.Config`
    grid : `~cyclestarnet.WavelengthGrid`
    labels : `~cyclestarnet.LabelSet`
    emulator : `~cyclestarnet.networks.emulator.Emulator`
    label_pool : array, shape (n_pool, n_labels)
        Labels of the synthetic training spectra.
    observed, validation : `~cyclestarnet.io.TrainingSet`
    recipe : `~cyclestarnet.ContinuumRecipe` or None
        None: to be made of quiet pixels.
    trainer : `~cyclestarnet.training.trainer.Trainer`
    """

    config: Config
    grid: WavelengthGrid
    labels: LabelSet
    emulator: Emulator
    label_pool: np.ndarray
    observed: TrainingSet
    validation: TrainingSet
    recipe: ContinuumRecipe | None
    trainer: Trainer

    def summary(self) -> str:
        """What the run will do, a line each."""
        config, trainer, sizes = self.config, self.trainer, self.trainer.network.settings
        n_parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
        what = "spectra" if config.synthetic.labels is None else "labels, rendered by the emulator"
        at = f", goes on from iteration {trainer.iteration:,}" if trainer.iteration else ""
        facts = {
            "model": f"{config.run.name}: {', '.join(self.labels)}",
            "grid": repr(self.grid),
            "observed": f"{len(trainer.observed):,} spectra, {config.observed.memory}",
            "synthetic": f"{len(trainer.synthetic):,} {what}",
            "networks": f"{n_parameters:,} parameters, latents of {sizes.shared_filters} and {sizes.split_filters} "
            f"x {sizes.latent_length}, on {trainer.device}",
            "training": f"{config.training.n_iterations:,} iterations of 2 x {config.training.batch_size} spectra{at}",
            "other than the paper's": ", ".join(self.changes()) or "nothing",
            "watch": "none"
            if config.watch is None
            else f"scores every {config.watch.every} iterations; if the run fails: {config.watch.action}",
            "folder": str(config.run.folder),
        }
        return "\n".join(
            textwrap.fill(f"{name + ':':24}{text}", 100, subsequent_indent=" " * 24, break_on_hyphens=False)
            for name, text in facts.items()
        )

    def changes(self) -> list[str]:
        """Settings of training and networks that differ from the paper's."""
        paper = asdict(TrainingSettings()) | {f.name: f.default for f in fields(NetworkSettings)}
        own = asdict(self.config.training) | self.trainer.network.settings.to_dict()
        differ = [name for name in own if own[name] != paper[name] and name not in ("seed", "n_pixels")]
        return [f"{name} = {own[name]}" for name in differ]


def prepare(config: Config, *, progress=True) -> Run:
    """Open all files of a configuration, make what it asks for, and check that everything fits.

    If the configuration has no emulator, one is trained; it is kept in the
    folder of the run.

    Parameters
    ----------
    config : `~cyclestarnet.training.config.Config`
    progress : bool, optional
        Show bars.

    Returns
    -------
    `Run`

    Raises
    ------
    ConfigError
        If a file cannot be used, or does not fit the others or the
        configuration. The message says which part of the configuration named it.
    ValueError
        If the folder has a checkpoint of other settings.
    ImportError
        If a package is missing that the configuration needs.
    """
    if dist.is_initialized() and dist.get_rank() > 0:
        dist.barrier()  # the first process makes the emulator, if there is none, and the others read it
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    _check_device(config)
    if config.watch is not None and find_spec("sklearn") is None:
        raise ImportError('the scores of a watch need scikit-learn: pip install "cyclestarnet[training]"')
    settings, own = config.training, config.observed
    pixels = slice(*own.pixels) if own.pixels else slice(None)
    with _blamed(config, "observed"):
        n_file = TrainingSet(own.path, split=own.split).n_pixels
        grid = _grid_of(own.path, n_file, pixels)
        observed, validation = (
            TrainingSet(own.path, split=split, pixels=pixels, grid=grid) for split in (own.split, own.validation)
        )
        rows = observed.rows(own.selection)
        held_rows, least = validation.rows(own.selection), LEAST_STARS if config.watch is None else LEAST_WATCHED
        if len(held_rows) < least:
            raise SpectrumError(f"{len(held_rows)} spectra of {validation!r} pass the selection; {least} are needed")
    sizes, recipe = config.network_settings(grid.n_pixels), _recipe(config, grid)
    synthetic, emulator, labels, pool = _synthetic_domain(config, grid, n_file, pixels, progress)
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.barrier()
    source = StreamedSpectra if own.memory == "streamed" else ObservedSpectra.from_table
    anchors = None
    if own.anchors is not None:
        with _blamed(config, "observed", "anchors"):
            anchors = _anchors(own.anchors, own.split, labels, grid, n_file, pixels, settings)
    held_out = None
    if config.watch is not None:
        held_out = ObservedSpectra.from_table(validation, settings, rows=_spread(held_rows, config.watch.n_spectra))
    device = config.run.device
    trainer = Trainer(
        sizes,
        settings,
        synthetic.to(device),
        source(observed, settings, rows=rows).to(device),
        config.run.folder,
        anchors=anchors,
        device=device,
        tensorboard=config.log.tensorboard,
        watch=config.watch,
        held_out=held_out,
    )
    return Run(config, grid, labels, emulator, pool, observed, validation, recipe, trainer)


def _check_device(config: Config) -> None:
    if config.run.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"[run] device is {config.run.device!r} in {config.path}, but PyTorch finds no CUDA device")


@contextmanager
def joined_processes(config: Config):
    """Join the processes that ``torchrun`` has started, if it has.

    Parameters
    ----------
    config : `~cyclestarnet.training.config.Config`

    Yields
    ------
    config : `~cyclestarnet.training.config.Config`
        With the device of this process.
    rank : int
        0 for the process that writes files and talks.

    Raises
    ------
    ConfigError
        If the processes shall train on CUDA devices, but there is none.
    """
    _check_device(config)
    with join_processes(config.run.device) as device:
        rank = dist.get_rank() if dist.is_initialized() else 0
        yield replace(config, run=replace(config.run, device=device)), rank


def finish(run: Run, *, progress=True) -> Path:
    """Assemble the model of a run, learn its errors from validation spectra, and save it.

    Parameters
    ----------
    run : `Run`
        Trained.
    progress : bool, optional
        Show a bar over the fits.

    Returns
    -------
    path
        The file of the model.
    """
    config = run.config
    settings, selection = config.training, config.observed.selection
    network, shift, iteration = _chosen_weights(run)
    pool = run.label_pool
    if shift is not None:
        unit = run.trainer.synthetic.label_std.cpu()  # in which labels are trained: 1 for one that is constant
        pool = np.clip(pool + (shift * unit).double().numpy(), run.labels.lower, run.labels.upper)
    model = assemble_model(
        config.run.name,
        labels=run.labels,
        grid=run.grid,
        emulator=run.emulator,
        translator=Translator(network, settings.flux_mean, settings.flux_std),
        label_pool=pool,
        observed=_spectra(run.observed, selection, config.model.n_cloud, run.grid),
        validation=_spectra(run.validation, selection, config.model.n_validation, run.grid),
        limits={"sigma_floor": settings.sigma_floor, "sigma_max": settings.sigma_max},
        recipe=run.recipe,
        provenance=_provenance(run, iteration),
        progress=progress,
    )
    model.save(config.model_path, half=config.model.half)
    return config.model_path


def _chosen_weights(run: Run):
    """Network, shift of the label prior (or None) and iteration that the model shall have."""
    trainer, best = run.trainer, run.config.run.folder / "best.pt"
    if trainer.watch is None or run.config.model.weights == "last" or not best.exists():
        shift = trainer.parts.prior_shift
        return trainer.averaged_network(), None if shift is None else shift.detach().cpu(), trainer.iteration
    state = load_state(best)
    network = TranslationNetwork(trainer.network.settings)
    network.load_state_dict(state["average"])
    return network.eval().requires_grad_(False), state["parts"].get("prior_shift"), state["iteration"]


def _provenance(run: Run, iteration: int) -> dict[str, str]:
    """What goes on the model card."""
    config, trainer, settings = run.config, run.trainer, run.config.training
    given, emulator = config.synthetic, "that of the synthetic domain"
    if given.emulator is None:
        error = load_state(config.run.folder / OWN_EMULATOR)["error"]
        emulator = f"trained on the synthetic domain, mean absolute error {error:.5f} on spectra held out"
    elif given.path is not None:
        emulator = given.emulator.name
    return {
        "version": __version__,
        "synthetic domain": f"{(given.path or given.emulator).name}, {len(run.label_pool)} rows of labels",
        "emulator": emulator,
        "observed domain": f"{config.observed.path.name}, {len(trainer.observed)} spectra",
        "training": f"{iteration} iterations of 2 x {settings.batch_size} spectra, seed {settings.seed}",
        "other than the paper's": ", ".join(run.changes()) or "nothing",
    } | dict(config.model.provenance)


# -- the observed domain -----------------------------------------------------------------


# -- the synthetic domain ----------------------------------------------------------------


# -- emulators ---------------------------------------------------------------------------


