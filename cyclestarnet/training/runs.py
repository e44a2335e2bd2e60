"""A training from its data to the saved model, by two doors: `prepare` for files, `train` for arrays in memory.

The command ``cyclestarnet train`` is a thin layer over this room: `prepare`,
`Run.train`, `finish`. `train` does the same steps with what a notebook holds,
and `~cyclestarnet.adapt` with spectra for which a trained model is the beginning.
What can be wrong with the data is found before the first step.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import astropy.units as u
import numpy as np
import torch
import torch.distributed as dist
from astropy.table import Table
from numpy.typing import ArrayLike
from torch import Tensor

from cyclestarnet._version import __version__
from cyclestarnet.continuum import ContinuumRecipe
from cyclestarnet.files import as_json, locked
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.journal import run_folder
from cyclestarnet.model import CalibratedModel
from cyclestarnet.model_file import digest_of
from cyclestarnet.networks.emulator import EmulatorSettings
from cyclestarnet.networks.translation import NetworkSettings, TranslationNetwork
from cyclestarnet.networks.translator import Translator
from cyclestarnet.spectra import Spectrum
from cyclestarnet.training.arrays import domains_of_arrays
from cyclestarnet.training.assembly import assemble_model
from cyclestarnet.training.config import (
    LEAST_POPULATION,
    AnyPlan,
    Config,
    LogConfig,
    ModelConfig,
    Plan,
    RunConfig,
)
from cyclestarnet.training.datasets import ObservedSpectra, SyntheticSpectra
from cyclestarnet.training.domains import Domains
from cyclestarnet.training.emulators import OWN_EMULATOR
from cyclestarnet.training.evaluation import (
    compare_labels,
    label_table,
    learn_label_error,
    with_label_error,
    without_label_error,
)
from cyclestarnet.training.inputs import read_domains
from cyclestarnet.training.loop import TrainingLoop
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.streams import StreamedSpectra
from cyclestarnet.training.toml import ConfigError
from cyclestarnet.training.trainer import Trainer, first_goes_ahead, join_processes
from cyclestarnet.training.twins import shortfall, twin_domains, twin_plan
from cyclestarnet.training.watch import WatchSettings
from cyclestarnet.training.zero_points import learn_zero_points, with_zero_points

__all__ = [
    "Run",
    "changed_settings",
    "check_machine",
    "chosen_weights",
    "finish",
    "joined_processes",
    "kept_folder",
    "paragraphs",
    "prepare",
    "ready",
    "train",
    "with_errors_of_twin",
]

log = logging.getLogger(__name__)

FILES_OF_TWIN = ("checkpoint.pt*", "best.pt*", "*.csv", "*.safetensors", "*.html")  # that are of another model's twin

AnyConfig = TypeVar("AnyConfig", bound=AnyPlan)


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
    base : `~cyclestarnet.CalibratedModel`, optional
        The model that the training began from: its label prior and errors of labels stay. Default: none.

    Examples
    --------
    ::

        run = prepare(read_config("mine.toml"))
        print(run.summary())
    """

    config: Plan
    domains: Domains
    trainer: Trainer
    base: CalibratedModel | None = None

    def train(self, *, until: int | None = None, progress: bool = True) -> None:
        """Train to the end, or for now to an iteration, with the rows and checkpoints that the plan asks for.

        Parameters
        ----------
        until : int, optional
            Stop after so many iterations. Default: the number of the settings.
        progress : bool, optional
            Show a bar. Default: True.

        Raises
        ------
        FloatingPointError, TrainingError
            As `~cyclestarnet.training.trainer.Trainer.run`.

        Examples
        --------
        ::

            run.train(until=1000)
        """
        every = self.config.log
        self.trainer.run(until=until, progress=progress, every=every.every, checkpoint_every=every.checkpoint_every)

    def summary(self) -> str:
        """What the run will do.

        Returns
        -------
        str
            A line for each thing: data, networks, settings, folder.

        Examples
        --------
        ::

            print(run.summary())
        """
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
        if config.model.n_twin and self.base is None:
            facts["twins"] = f"twice {config.model.n_twin:,} iterations more, for the errors of labels"
        return paragraphs(facts)

    def changes(self) -> list[str]:
        """Settings of training and networks that differ from the paper's.

        Returns
        -------
        list of str
            Such as ``"learning_rate = 0.001"``; without seeds and the number of pixels.

        Examples
        --------
        ::

            print(*run.changes(), sep=", ")
        """
        return changed_settings(self.trainer)


def changed_settings(trainer: TrainingLoop) -> list[str]:
    """Settings of training and networks that differ from the paper's.

    Parameters
    ----------
    trainer : `~cyclestarnet.training.loop.TrainingLoop`
        It knows them.

    Returns
    -------
    list of str
        Such as ``"learning_rate = 0.001"``; without seeds and the number of pixels.

    Examples
    --------
    ::

        print(*changed_settings(run.trainer), sep=", ")
    """
    paper = asdict(TrainingSettings()) | {f.name: f.default for f in fields(NetworkSettings)}
    own = asdict(trainer.settings) | trainer.network.settings.to_dict()
    differ = [name for name in own if own[name] != paper[name] and name not in ("seed", "n_pixels")]
    return [f"{name} = {own[name]}" for name in differ]


def paragraphs(facts: Mapping[str, str]) -> str:
    """Facts by name, as the command line prints them.

    Parameters
    ----------
    facts : mapping of str
        Texts by name.

    Returns
    -------
    str
        A line for each, which is broken where it is long.

    Examples
    --------
    >>> from cyclestarnet.training.runs import paragraphs
    >>> print(paragraphs({"folder": "run"}))
    folder:                 run
    """
    return "\n".join(
        textwrap.fill(f"{name + ':':24}{text}", 100, subsequent_indent=" " * 24, break_on_hyphens=False)
        for name, text in facts.items()
    )


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
    FileExistsError
        If another process trains in the folder.
    CycleStarNetError
        If this is one of several processes, and the first of them failed.

    Examples
    --------
    ::

        run = prepare(read_config("mine.toml"))
        print(run.summary())
        run.train()
        path = finish(run)
    """
    first = not dist.is_initialized() or dist.get_rank() == 0
    with first_goes_ahead():  # it makes the emulator, if there is none, and the others read it
        if config.run.threads is not None:
            torch.set_num_threads(config.run.threads)
        check_machine(config)
        with locked(config.run.folder if first else None, "trains in"):  # an emulator is made there
            domains = read_domains(config, progress=progress)
    return ready(config, domains)


def train(
    synthetic: ArrayLike | Spectrum,
    labels: Mapping[str, u.Quantity] | Table,
    observed: ArrayLike | Spectrum,
    errors: ArrayLike | None = None,
    *,
    mask: ArrayLike | None = None,
    wavelength: u.Quantity | WavelengthGrid | None = None,
    recipe: ContinuumRecipe | None = None,
    name: str = "model",
    translation: str = "paper",
    settings: TrainingSettings | str = "paper",
    network: NetworkSettings | Mapping[str, Any] | None = None,
    emulator: EmulatorSettings | None = None,
    watch: WatchSettings | None = None,
    held_out: float = 0.1,
    n_twin: int = 0,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> CalibratedModel:
    """Train a model on synthetic spectra of known labels and observed spectra of unknown ones.

    The steps are those of ``cyclestarnet train CONFIG``: an emulator is
    trained on the synthetic spectra, then the networks that translate between
    the domains; fits of observed stars that were held out tell the errors of
    the model. With the paper's networks this takes days on a CPU.

    Parameters
    ----------
    synthetic : array, Quantity or `~specutils.Spectrum`, shape (n_synthetic, n_pixels)
        Dimensionless flux of synthetic spectra, about 1 in the continuum
        unless ``recipe`` is given. All values must be finite.
    labels : dict of `~astropy.units.Quantity`, or `~astropy.table.QTable`
        Labels of the synthetic spectra by name, each of shape
        (n_synthetic,). Those in dex (``logg``, abundances) may be plain
        numbers. Their ranges become the range of the model, and their
        distribution its label prior.
    observed : array, Quantity or `~specutils.Spectrum`, shape (n_observed, n_pixels)
        Dimensionless flux of observed spectra: at rest, on the same vacuum
        wavelengths as ``synthetic``, and normalised in the same way unless ``recipe`` is given.
    errors : array or Quantity, shape (n_observed, n_pixels), optional
        Standard deviation of ``observed``. Needed unless ``observed`` is a
        `~specutils.Spectrum` with an uncertainty. Pixels whose flux or error
        is not finite, or whose error is 0 or less, are ignored, and so are
        those above ``sigma_max`` of the settings (`~cyclestarnet.NoiseModel`).
    mask : array of bool, shape (n_observed, n_pixels) or (n_pixels,), optional
        True = ignore the pixel. Its value does not matter, unless the
        settings have ``fill=None`` (as the preset ``"repository"``), with
        which the networks see it. A mask that ``observed`` has itself counts as well.
    wavelength : `~astropy.units.Quantity`, shape (n_pixels,), or `~cyclestarnet.WavelengthGrid`, optional
        Vacuum wavelengths of the pixels, rising. Where they leap, a detector
        ends. Needed unless ``synthetic`` or ``observed`` is a `~specutils.Spectrum`.
    recipe : `~cyclestarnet.ContinuumRecipe`, optional
        Normalises the spectra of both domains, and all that the model will
        fit. Default: the spectra are normalised alike, in a way that only you
        know, and so must be those that you fit; one through quiet pixels of
        the synthetic spectra stands in for it, for spectra with a physical unit.
    name : str, optional
        Name of the model. Default: ``"model"``.
    translation : {"paper", "residual"}, optional
        Form of the translation (`~cyclestarnet.networks.Translator`). With ``"paper"`` (default), translated spectra
        are what the decoders make. With ``"residual"``, the decoders make the difference between the domains, and
        noise and weak lines come straight from the spectrum: the better choice where small networks or few spectra
        cannot carry all of a spectrum. The networks are trained in the same way for both.
    settings : `~cyclestarnet.TrainingSettings` or {"paper", "repository"}, optional
        Every number of the training, or a preset; see
        `~cyclestarnet.TrainingSettings.from_preset`. Default: ``"paper"``.
    network : `~cyclestarnet.NetworkSettings` or dict, optional
        Sizes of the networks, or those that differ from the paper's, by name;
        ``n_pixels`` of a dict is that of the spectra. Default: the paper's.
    emulator : `~cyclestarnet.EmulatorSettings`, optional
        Sizes and training of the emulator. Default: ``EmulatorSettings(seed=seed)``.
    watch : `~cyclestarnet.WatchSettings`, optional
        Score the run on the held-out spectra, and give the model the weights
        of the best score. Default: nobody watches, and the model has the last weights.
    held_out : float, optional
        Fraction of ``observed`` that the networks do not see. 20 stars give a
        rough, 100 a good model error per pixel. Default: 0.1.
    n_twin : int, optional
        Iterations of a twin, a training of stars that the model makes of labels which it chooses, and of the twin of
        that: they tell the errors of labels that spectra do not show. A quarter to half as many as those of the
        training are good. Default: 0, they stay unknown.
    seed : int, optional
        Of the choice of those stars, and of networks and emulator unless
        their settings are given, which have seeds of their own. Default: 0.
    folder : path-like, optional
        For checkpoints, logs and the model. The same call on the same folder
        goes on where an interrupted one was. Default: a temporary folder,
        which is deleted in the end. If the training is interrupted or fails,
        it stays, and the exception says where it is: nothing that was
        trained is lost, and ``folder=`` goes on from there.
    device : str, optional
        ``"cpu"`` (default), ``"cuda"`` or ``"cuda:N"``: where the networks are trained.
    progress : bool, optional
        Show bars. Default: True.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`
        With ``provenance``. It is that of the file ``NAME.safetensors`` in
        ``folder``; without a folder, `~cyclestarnet.CalibratedModel.save` it.

    Raises
    ------
    SpectrumError
        If spectra have impossible shapes or units, are not normalised, not
        finite, without errors, or too few.
    LabelError
        If a label has no value for a spectrum, is NaN, does not vary, or has a wrong unit.
    GridError
        If wavelengths are missing, or do not fit the spectra or the strides of the networks.
    ValueError
        If the folder has a training of other settings or on other spectra.
    FloatingPointError
        If a loss is not finite, and no watch rolls the run back.
    TrainingError
        If the watch stops the run.
    FileExistsError
        If another process trains in the folder.
    ImportError
        If a watch is asked for, and scikit-learn is not installed.

    See Also
    --------
    prepare : the same for spectra in files, which need not fit into memory.

    Examples
    --------
    ::

        import astropy.units as u
        from cyclestarnet import TrainingSettings, train

        model = train(
            synthetic_flux,  # (20000, 7167)
            {"teff": teff * u.K, "logg": logg, "m_h": m_h},
            observed_flux,  # (22000, 7167)
            observed_errors,
            mask=bad_pixels,
            wavelength=wavelength * u.AA,
            settings=TrainingSettings.from_preset("paper", n_iterations=50_000),
            folder="giants",
        )
        model.save("giants.safetensors")
    """
    training = TrainingSettings.from_preset(settings, seed=seed) if isinstance(settings, str) else settings
    with kept_folder(folder) as folder, locked(folder, "trains in"):
        plan = Plan(
            run=RunConfig(folder=folder, name=name, seed=seed, device=device),
            training=training,
            network=network.to_dict() if isinstance(network, NetworkSettings) else dict(network or {}),
            watch=watch,
            emulator=EmulatorSettings(seed=seed) if emulator is None else emulator,
            model=ModelConfig(translation=translation, n_twin=n_twin),  # type: ignore[arg-type]  # it looks at it
            log=LogConfig(),
        )
        check_machine(plan)
        domains = domains_of_arrays(
            synthetic, labels, observed, errors, plan,
            mask=mask, wavelength=wavelength, recipe=recipe, held_out=held_out, progress=progress,
        )  # fmt: skip
        run = ready(plan, domains)
        log.info("%s", run.summary())
        run.train(progress=progress)
        return CalibratedModel.load(finish(run, progress=progress))


@contextmanager
def kept_folder(folder: str | os.PathLike | None) -> Iterator[Path]:
    """Give the folder of a run, or a temporary one, which outlives a run that fails once it has trained anything.

    Parameters
    ----------
    folder : path-like or None
        As a user gave it. None: a temporary one.

    Yields
    ------
    path
        An exception that leaves the block says where that is, if there is anything to go on from.

    Examples
    --------
    ::

        with kept_folder(None) as path:
            Trainer(sizes, settings, synthetic, observed, path).run()
    """
    path = Path(tempfile.mkdtemp(prefix="cyclestarnet-")) if folder is None else Path(folder)
    try:
        yield path
    except BaseException as error:
        if any((path / name).exists() for name in ("checkpoint.pt", OWN_EMULATOR)):
            error.add_note(f"What was trained is kept: the same call with folder={str(path)!r} goes on from there.")
        elif folder is None:
            shutil.rmtree(path, ignore_errors=True)
        raise
    if folder is None:
        shutil.rmtree(path, ignore_errors=True)


def ready(plan: Plan, domains: Domains, base: CalibratedModel | None = None) -> Run:
    """Make a run on the spectra of both domains: here all doors meet.

    Parameters
    ----------
    plan : `~cyclestarnet.training.config.Plan`
        How it goes.
    domains : `~cyclestarnet.training.domains.Domains`
        The spectra of both domains.
    base : `~cyclestarnet.CalibratedModel`, optional
        A model whose networks are the first weights, and whose label prior and errors of labels stay.
        Default: networks begin anew.

    Returns
    -------
    `Run`

    Raises
    ------
    ValueError
        If the folder has a checkpoint of other settings.

    Examples
    --------
    ::

        run = ready(plan, domains)
        run.train()
    """
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
    if base is not None:
        trainer.start_with(base.translator.network)
    return Run(plan, domains, trainer, base)


def check_machine(plan: AnyPlan) -> None:
    """Check that the device and the packages of a plan are there.

    Parameters
    ----------
    plan : `~cyclestarnet.training.config.Plan`
        How a training shall go.

    Raises
    ------
    ConfigError
        If there is no such device.
    ImportError
        If a package is missing.

    Examples
    --------
    ::

        check_machine(read_config("mine.toml"))
    """
    _check_device(plan)
    if plan.watch is not None and find_spec("sklearn") is None:
        raise ImportError('the scores of a watch need scikit-learn: pip install "cyclestarnet[training]"')


def _check_device(plan: AnyPlan) -> None:
    if plan.run.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"[run] device is {plan.run.device!r}, but PyTorch finds no CUDA device")


@contextmanager
def joined_processes(config: AnyConfig) -> Iterator[tuple[AnyConfig, int]]:
    """Join the processes that ``torchrun`` has started, if it has.

    Parameters
    ----------
    config : `~cyclestarnet.training.config.Config`
        That of the training, the same in all processes.

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
    FileExistsError
        If other processes train in the folder.
    CycleStarNetError
        If this is one of several processes, and the first of them failed.

    Examples
    --------
    ::

        with joined_processes(read_config("mine.toml")) as (config, rank):
            run = prepare(config, progress=rank == 0)
            run.train(progress=rank == 0)
    """
    _check_device(config)
    with join_processes(config.run.device) as device:
        rank = dist.get_rank() if dist.is_initialized() else 0
        with ExitStack() as stack:
            with first_goes_ahead():
                stack.enter_context(locked(config.run.folder if rank == 0 else None, "trains in"))
            yield replace(config, run=replace(config.run, device=device)), rank  # type: ignore[type-var]  # they are dataclasses


def finish(run: Run, *, progress: bool = True) -> Path:
    """Assemble the model of a run, learn its errors from validation spectra, and save it.

    Of a training from the beginning it learns the zero points of labels from the training stars
    (`~cyclestarnet.training.zero_points.learn_zero_points`). With stars of known labels it learns the errors
    that spectra do not show, too, and writes a table of how well it finds labels beside the
    model, ``NAME.labels.ecsv``. Without them, and with ``n_twin`` of the plan, it learns these errors of a twin and of
    the twin of that (`with_errors_of_twin`), whose trainings are in the folders ``twin`` and ``twin/twin`` of the run.

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
        If hardly any validation star, or star of known labels, can be fitted.

    Examples
    --------
    ::

        run = prepare(read_config("mine.toml"))
        run.train()
        model = CalibratedModel.load(finish(run))
    """
    config, domains, settings = run.config, run.domains, run.config.training
    network, shift, iteration = chosen_weights(run.trainer, config.model.weights)
    pool, base = domains.label_pool, run.base
    unit = domains.synthetic.label_std  # in which labels are trained: 1 for one that is constant
    if shift is not None and unit is not None:
        pool = np.clip(pool + (shift * unit.cpu()).double().numpy(), domains.labels.lower, domains.labels.upper)
    model = assemble_model(
        config.run.name,
        labels=domains.labels,
        grid=domains.grid,
        emulator=domains.emulator,
        translator=Translator(network, settings.flux_mean, settings.flux_std, config.model.translation),
        label_pool=pool,
        observed=domains.stars.spectra(config.model.n_cloud, domains.grid),
        validation=domains.held_out.spectra(config.model.n_validation, domains.grid),
        noise=settings.noise if base is None else replace(base.noise, scatter={}, scatter_inflation={}),
        recipe=domains.recipe,
        prior=None if base is None else base.prior,
        provenance=_provenance(run, iteration),
        progress=progress,
    )
    if base is not None:
        # Where the training spectra did not go through its recipe, assembly has made one; and the pool is drawn
        # from its prior, a Gaussian, which reaches farther than the labels that it knew.
        population = replace(model.population, label_range=base.population.label_range)
        model = replace(model, recipe=base.recipe, population=population)
        # These stars need not be the population of the prior, which its own training has compared.
        model = with_zero_points(model, base.zero_points)
    elif domains.anchors is None and config.model.n_zero_points and len(domains.stars.rows) >= LEAST_POPULATION:
        stars = domains.stars.spectra(config.model.n_zero_points, domains.grid)
        model = learn_zero_points(model, stars, progress=progress)
        said = f"such that labels of {len(stars.flux)} training stars have the mean of the prior"
        model = replace(model, provenance={**model.provenance, "zero points": said})
    if domains.known is not None:
        model = learn_label_error(model, domains.known.spectra(domains.grid), domains.known.truth, progress=progress)
    elif config.model.n_twin and base is None:
        model = with_errors_of_twin(model, domains, config, config.model.n_twin, progress=progress)
    model.save(config.model_path, half=config.model.half)
    if domains.test is not None:
        saved = CalibratedModel.load(config.model_path)  # as users will have it, perhaps in half precision
        offsets = compare_labels(saved, domains.test.spectra(domains.grid), domains.test.truth, progress=progress)
        label_table(offsets).write(config.model_path.with_suffix(".labels.ecsv"), overwrite=True)
    return config.model_path


def with_errors_of_twin(
    model: CalibratedModel, domains: Domains, plan: Plan, n_iterations: int, *, progress: bool = True
) -> CalibratedModel:
    """Give a model the hidden errors of labels that its twin has, and more, as a twin of the twin tells.

    See `cyclestarnet.training.twins`. Interrupted, it goes on with the next call.

    Parameters
    ----------
    model : `~cyclestarnet.CalibratedModel`
        The model.
    domains : `~cyclestarnet.training.domains.Domains`
        That it was trained on.
    plan : `~cyclestarnet.training.config.Plan`
        Of its training, in whose folder the twins are.
    n_iterations : int
        Of either twin.
    progress : bool, optional
        Show bars. Default: True.

    Returns
    -------
    `~cyclestarnet.CalibratedModel`
        With ``noise.label_error`` and ``noise.label_error_trend``.

    Raises
    ------
    SpectrumError
        If hardly any observed star can be fitted.

    Examples
    --------
    ::

        model = with_errors_of_twin(model, run.domains, run.config, 7_000)
        model.noise.hidden_covariance(model.prior.mean)
    """
    first, twin = _trained_twin(model, domains, plan, n_iterations, progress)
    _, second = _trained_twin(twin, first.domains, first.config, n_iterations, progress)
    judges, bare = first.domains.known, without_label_error(twin)
    assert judges is not None  # a twin has some
    offsets = compare_labels(bare, judges.spectra(domains.grid), judges.truth, progress=progress)
    factor = max(1.0, shortfall(offsets, second.noise))  # by chance it is below, where errors are right
    noise = with_label_error(twin, replace(offsets, offset=factor * offsets.offset)).noise
    said = (
        f"learnt without known labels, of a twin that was trained on {len(first.domains.observed)} stars of this "
        f"model; {n_iterations} iterations, seed {first.config.training.seed}; times {factor:.2f}, as a twin of the "
        "twin tells"
    )
    return replace(
        model,
        noise=replace(model.noise, label_error=noise.label_error, label_error_trend=noise.label_error_trend),
        provenance={**model.provenance, "label errors": said},
    )


def _trained_twin(
    model: CalibratedModel, domains: Domains, plan: Plan, n_iterations: int, progress: bool
) -> tuple[Run, CalibratedModel]:
    """The training of a model's twin, and what it ends in."""
    plan = twin_plan(plan, n_iterations)
    about = {"task": "twin", "weights": digest_of(model), "training": as_json(asdict(plan.training))}
    with run_folder(plan.run.folder, about, FILES_OF_TWIN, overwrite=True):
        log.info("a twin is trained in %s, to learn the errors of labels", plan.run.folder)
        twin = ready(plan, twin_domains(model, domains, plan, progress=progress))
        twin.train(progress=progress)
        path = plan.model_path if plan.model_path.exists() else finish(twin, progress=progress)
        return twin, CalibratedModel.load(path)


def chosen_weights(trainer: Trainer, weights: str) -> tuple[TranslationNetwork, Tensor | None, int]:
    """Choose the weights that what is saved shall have.

    Parameters
    ----------
    trainer : `~cyclestarnet.training.trainer.Trainer`
        At its end.
    weights : {"best", "last"}
        Of the best score, if there is a watch, or of the last iteration.

    Returns
    -------
    network : `~cyclestarnet.networks.TranslationNetwork`
        With averaged weights.
    shift : tensor, shape (n_labels,), or None
        Of the label prior.
    iteration : int
        That they are of.

    Examples
    --------
    ::

        network, _, iteration = chosen_weights(run.trainer, "best")
    """
    state = None if weights == "last" else trainer.best_state()
    if state is None:
        shift = trainer.parts.prior_shift
        return trainer.averaged_network(), None if shift is None else shift.detach().cpu(), trainer.iteration
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
