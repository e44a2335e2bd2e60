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
from torch import Tensor

from cyclestarnet._version import __version__
from cyclestarnet.networks.checkpoint import load_state
from cyclestarnet.networks.predictor import Translator
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.training.assembly import assemble_model
from cyclestarnet.training.config import Config, Plan
from cyclestarnet.training.datasets import ObservedSpectra, SyntheticSpectra
from cyclestarnet.training.domains import Domains
from cyclestarnet.training.inputs import read_domains
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra
from cyclestarnet.training.toml import ConfigError
from cyclestarnet.training.trainer import Trainer, join_processes

__all__ = ["Run", "finish", "joined_processes", "prepare"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Run:
    """A training that is ready to go.

    Parameters
    ----------
    config : `~cyclestarnet.training.config.Plan`
        How it goes; a `~cyclestarnet.training.config.Config` if its spectra come from files.
    domains : `~cyclestarnet.training.domains.Domains`
        The spectra of both domains.
    trainer : `~cyclestarnet.training.trainer.Trainer`
        The networks, at the last checkpoint of the folder if there is one.
    """

    config: Plan
    domains: Domains
    trainer: Trainer

    def train(self, *, until: int | None = None, progress: bool = True) -> None:
        """Train to the end, or for now to an iteration, with the rows and checkpoints that the plan asks for.

        Parameters
        ----------
        until : int, optional
            Stop after so many iterations. Default: the number of the settings.
        progress : bool, optional
            Show a bar. Default: True.
        """
        every = self.config.log
        self.trainer.run(until=until, progress=progress, every=every.every, checkpoint_every=every.checkpoint_every)

    def summary(self) -> str:
        """What the run will do, a line each."""
        config, trainer, domains, sizes = self.config, self.trainer, self.domains, self.trainer.network.settings
        n_parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
        what = "labels, rendered by the emulator" if isinstance(domains.synthetic, SyntheticSpectra) else "spectra"
        memory = "streamed" if isinstance(domains.observed, StreamedSpectra) else "resident"
        at = f", goes on from iteration {trainer.iteration:,}" if trainer.iteration else ""
        facts = {
            "model": f"{config.run.name}: {', '.join(domains.labels)}",
            "grid": repr(domains.grid),
            "observed": f"{len(trainer.observed):,} spectra, {memory}",
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


def prepare(config: Config, *, progress: bool = True) -> Run:
    """Open all files of a configuration, make what it asks for, and check that everything fits.

    If the configuration has no emulator, one is trained; it is kept in the
    folder of the run.

    Parameters
    ----------
    config : `~cyclestarnet.training.config.Config`
        The configuration, as `~cyclestarnet.training.config.read_config` gives it.
    progress : bool, optional
        Show bars. Default: True.

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

    Examples
    --------
    ::

        run = prepare(read_config("mine.toml"))
        print(run.summary())
        run.train()
        path = finish(run)
    """
    if dist.is_initialized() and dist.get_rank() > 0:
        dist.barrier()  # the first process makes the emulator, if there is none, and the others read it
    if config.run.threads is not None:
        torch.set_num_threads(config.run.threads)
    _check_machine(config)
    domains = read_domains(config, progress=progress)
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.barrier()
    return _ready(config, domains)


def _ready(plan: Plan, domains: Domains) -> Run:
    """A run on the spectra of both domains: here both doors, `prepare` and `train`, meet."""
    held_out = None
    if plan.watch is not None:
        rows = domains.held_out.spread(plan.watch.n_spectra)
        held_out = ObservedSpectra.from_table(domains.held_out.table, plan.training, rows=rows)
    trainer = Trainer(
        plan.network_settings(domains.grid.n_pixels),
        plan.training,
        domains.synthetic,
        domains.observed,
        plan.run.folder,
        anchors=domains.anchors,
        device=plan.run.device,
        tensorboard=plan.log.tensorboard,
        watch=plan.watch,
        held_out=held_out,
    )
    return Run(plan, domains, trainer)


def _check_machine(plan: Plan) -> None:
    """Check that the device and the packages of a plan are there."""
    _check_device(plan)
    if plan.watch is not None and find_spec("sklearn") is None:
        raise ImportError('the scores of a watch need scikit-learn: pip install "cyclestarnet[training]"')


def _check_device(plan: Plan) -> None:
    if plan.run.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"[run] device is {plan.run.device!r}, but PyTorch finds no CUDA device")


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


def finish(run: Run, *, progress: bool = True) -> Path:
    """Assemble the model of a run, learn its errors from validation spectra, and save it.

    Parameters
    ----------
    run : `Run`
        Trained.
    progress : bool, optional
        Show a bar over the fits. Default: True.

    Returns
    -------
    path
        The file of the model.

    Raises
    ------
    SpectrumError
        If hardly any validation star can be fitted.

    Examples
    --------
    ::

        run = prepare(read_config("mine.toml"))
        run.train()
        model = CalibratedModel.load(finish(run))
    """
    config, domains, settings = run.config, run.domains, run.config.training
    network, shift, iteration = _chosen_weights(run)
    pool = domains.label_pool
    if shift is not None:
        unit = run.trainer.synthetic.label_std.cpu()  # in which labels are trained: 1 for one that is constant
        pool = np.clip(pool + (shift * unit).double().numpy(), domains.labels.lower, domains.labels.upper)
    model = assemble_model(
        config.run.name,
        labels=domains.labels,
        grid=domains.grid,
        emulator=domains.emulator,
        translator=Translator(network, settings.flux_mean, settings.flux_std),
        label_pool=pool,
        observed=domains.stars.spectra(config.model.n_cloud, domains.grid),
        validation=domains.held_out.spectra(config.model.n_validation, domains.grid),
        noise=settings.noise,
        recipe=domains.recipe,
        provenance=_provenance(run, iteration),
        progress=progress,
    )
    model.save(config.model_path, half=config.model.half)
    return config.model_path


def _chosen_weights(run: Run) -> tuple[TranslationNetwork, Tensor | None, int]:
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
    settings = run.config.training
    return {
        "version": __version__,
        **run.domains.provenance,
        "training": f"{iteration} iterations of 2 x {settings.batch_size} spectra, seed {settings.seed}",
        "other than the paper's": ", ".join(run.changes()) or "nothing",
        **run.config.model.provenance,
    }
