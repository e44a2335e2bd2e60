"""What every training does, whatever its networks and spectra are: iterations, the watch, checkpoints, signals.

`TrainingLoop` is the frame; what an iteration does is that of its subclasses: `cyclestarnet.training.trainer` for a
model, `cyclestarnet.training.domain_trainer` for domains without labels.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import reduce
from operator import add
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cyclestarnet.exceptions import ModelFileError, OtherRunError, TrainingError, TrainingWarning
from cyclestarnet.files import locked
from cyclestarnet.networks.checkpoint import load_state, save_state
from cyclestarnet.networks.translation import SharedNetwork, TranslationNetwork
from cyclestarnet.progress import tqdm
from cyclestarnet.training.datasets import ObservedSpectra, Source
from cyclestarnet.training.logs import LossLog
from cyclestarnet.training.settings import TrainingSettings
from cyclestarnet.training.terms import Adaptation, SharedAdaptation, Transfers
from cyclestarnet.training.watch import Verdict, Watch, WatchSettings

__all__ = ["TrainingLoop", "check_weights", "require_held_out", "total"]

log = logging.getLogger(__name__)

MOST_ROLLBACKS = 4
LEAST_HELD_OUT = 10  # what a two-sample score needs
ACCURACY = "critic_accuracy"
CHECKPOINT, BEST = "checkpoint.pt", "best.pt"  # in the folder of a run


class TrainingLoop:
    """The frame of a training; see `~cyclestarnet.training.trainer.Trainer` for one that can be used.

    Parameters
    ----------
    parts : `~cyclestarnet.training.terms.Adaptation` or `~cyclestarnet.training.terms.SharedAdaptation`
        All that is trained; it is moved to ``device``.
    settings : `~cyclestarnet.TrainingSettings`
        Every number of the training.
    sources : mapping of `~cyclestarnet.training.datasets.Source`
        The spectra of each domain, by the names that checkpoints have for them; they are moved to ``device``.
    folder : path-like, optional
        Where checkpoints and logs go. Default: nothing is written.
    device : str, optional
        Where the networks are trained. Default: ``"cpu"``.
    tensorboard : bool, optional
        Log to TensorBoard, too. Default: False.
    watch : `~cyclestarnet.WatchSettings`, optional
        Watch the run. Default: nobody does.

    Attributes
    ----------
    iteration : int
        How many iterations are done.

    Raises
    ------
    ValueError
        If the batches cannot be shared out as the settings ask for.
    """

    parts: Adaptation | SharedAdaptation
    network: TranslationNetwork | SharedNetwork

    def __init__(
        self,
        parts: Adaptation | SharedAdaptation,
        settings: TrainingSettings,
        sources: Mapping[str, Source],
        folder: str | os.PathLike | None = None,
        *,
        device: str = "cpu",
        tensorboard: bool = False,
        watch: WatchSettings | None = None,
    ):
        self.settings, self.sources = settings, dict(sources)
        self.device = torch.device(device)
        for source in self.sources.values():
            source.to(self.device)
        self.rank, self.n_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self._check_batches()
        self.folder = Path(folder) if folder is not None else None
        self.iteration = 0
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.parts = parts.to(self.device)
        self.network = self.parts.network
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        self.optimizer = self._adam(self.parts.autoencoder_parameters(), settings.learning_rate)
        self.critic_optimizer = self._adam(self.parts.critic_parameters(), settings.critic_learning_rate)
        self._sums: dict[str, tuple[float, int]] = {}  # of each loss term since the last row, over how many iterations
        self._rate = 1.0  # halved when the run is rolled back
        self.watch = None if watch is None else Watch(watch)
        self._logs: dict[str, LossLog] = {}
        if self.folder is not None and self.rank == 0:
            self._logs = {name: LossLog(self.folder, tensorboard, name=name) for name in ("losses", "scores")}

    def _resume(self) -> None:
        """Go to the checkpoint of the folder, if there is one."""
        if self.folder is not None and (self.folder / CHECKPOINT).exists():
            self._load(self.folder)

    def _check_batches(self) -> None:
        s, n_parts = self.settings, self.n_processes * self.settings.micro_batches
        if s.batch_size % n_parts:
            raise ValueError(
                f"batch_size ({s.batch_size}) must be a multiple of "
                f"{self.n_processes} processes x {s.micro_batches} micro_batches"
            )
        compared = [name for name in ("weight_latent", "weight_spectra") if getattr(s, name)]
        if compared and s.batch_size < 2 * n_parts:
            raise ValueError(
                f"{compared[0]} needs at least 2 spectra in each of the {n_parts} parts of a batch, which has "
                f"{s.batch_size}: the energy distance compares spectra of one domain, too"
            )

    def _adam(self, parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, rate, self.settings.betas, fused=True)

    # -- what subclasses do ----------------------------------------------------
    def _draw(self) -> dict[str, Tensor]:
        """The batch of this process."""
        raise TypeError("subclasses define _draw")

    def _warm_start_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        raise TypeError("subclasses define _warm_start_step")

    def _step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        raise TypeError("subclasses define _step")

    def _copy_first(self) -> None:
        """Begin other domains as copies of the one that the warm start has trained."""
        raise TypeError("subclasses define _copy_first")

    def _critic_terms(self, transfers: Transfers) -> dict[str, Tensor]:
        raise TypeError("subclasses define _critic_terms")

    def _scores(self) -> dict[str, float]:
        """What a watch makes of the averaged weights."""
        raise TypeError("subclasses define _scores")

    def _watched(self, row: dict[str, float]) -> dict[str, float]:
        """A row of the log by the names that a watch knows."""
        return row

    def _made_with(self) -> dict:
        """Plain data that a checkpoint must have been made with."""
        return asdict(self.settings) | {"network": self.network.settings.to_dict()}

    # -- one iteration -------------------------------------------------------
    def step(self) -> dict[str, float]:
        """Do one iteration.

        Returns
        -------
        dict of float
            Its loss terms, unweighted, as means over all processes.

        Raises
        ------
        FloatingPointError
            If a term or a gradient is not finite. The batch is kept in the folder.

        Examples
        --------
        ::

            terms = trainer.step()
            print(terms["rec_obs"], terms["critic_accuracy"])
        """
        s = self.settings
        for optimizer, rate in ((self.optimizer, s.learning_rate), (self.critic_optimizer, s.critic_learning_rate)):
            for group in optimizer.param_groups:
                group["lr"] = self._rate * rate * s.rate_factor(self.iteration)
        if self.iteration == s.warm_start and s.warm_start:
            self._copy_first()
            self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        batch = self._draw()
        terms = self._warm_start_step(batch) if self.iteration < s.warm_start else self._step(batch)
        with torch.no_grad():
            current = self.network.state_dict()
            decay = min(s.average_decay, (1 + self.iteration) / (10 + self.iteration)) if s.average_decay else 0.0
            torch._foreach_lerp_(list(self.average.values()), [current[k] for k in self.average], 1 - decay)
        self.iteration += 1
        return terms

    def _micro_batches(self, batch: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        n_parts = self.settings.micro_batches
        for k in range(n_parts):
            yield {name: tensor.chunk(n_parts)[k] for name, tensor in batch.items()}

    def _critic_step(self, transfers: list[Transfers], batch: dict[str, Tensor]) -> dict[str, float]:
        s = self.settings
        for parameter in self.parts.critic_parameters():
            parameter.requires_grad_(True)
        self.critic_optimizer.zero_grad(set_to_none=True)
        collected = []
        for transfer in transfers:
            terms = self._critic_terms(transfer)
            of_critics = (term for name, term in terms.items() if name.startswith("critic_") and name != ACCURACY)
            loss = s.weight_adversarial * reduce(add, of_critics)
            loss = loss + s.critic_penalty * terms.get("penalty", 0.0)
            (loss / s.micro_batches).backward()
            collected.append(terms)
        return self._finish_step(self.critic_optimizer, self._mean(collected), batch)

    @staticmethod
    def _mean(collected: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([terms[name].detach() for terms in collected]).mean() for name in collected[0]}

    def _average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over all processes."""
        if self.n_processes == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.n_processes
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def _finish_step(
        self, optimizer: torch.optim.Optimizer, terms: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> dict[str, float]:
        """Average gradients and terms over the processes, and let the optimizer step if all terms are finite."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        values = list(terms.values())
        own = torch.stack(values)  # of this process, whose share of the batch may be a fine one
        self._average([*(p.grad for p in parameters), *(v.unsqueeze(0) for v in values)])
        found = dict(zip(terms, torch.stack(values).tolist(), strict=True))
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
        if bad or not torch.isfinite(norm):
            where = ""
            if self.folder is not None and not (bad and own.isfinite().all()):
                path = self.folder / ("bad_batch.pt" if self.n_processes == 1 else f"bad_batch.{self.rank}.pt")
                where = f"; the batch is in {path}"
                save_state({name: tensor.cpu() for name, tensor in batch.items()}, path)
            what = f"loss terms {bad} are" if bad else "the gradient is"
            raise FloatingPointError(f"{what} not finite at iteration {self.iteration}{where}")
        if optimizer is self.optimizer and self.settings.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.gradient_clip, norm)
        optimizer.step()
        return found

    # -- the run --------------------------------------------------------------
    def run(
        self, *, until: int | None = None, progress: bool = True, every: int = 50, checkpoint_every: int = 500
    ) -> list[dict[str, float]]:
        """Train up to the number of iterations of the settings, or for now to an earlier one.

        Ctrl-C and SIGTERM let the iteration end and save a checkpoint before
        they are passed on.

        Parameters
        ----------
        until : int, optional
            Stop when so many iterations are done. Default: ``n_iterations`` of the settings.
        progress : bool, optional
            Show a bar. Default: True.
        every : int, optional
            Iterations between rows of the log. Default: 50.
        checkpoint_every : int, optional
            Iterations between checkpoints; there is one in the end in any case. Default: 500.

        Returns
        -------
        list of dict of float
            The rows of the log: ``iteration``, and the loss terms, unweighted,
            as means over the iterations since the row before.

        Raises
        ------
        FloatingPointError
            If a loss is not finite, and the watch does not roll back. The
            weights may be spoilt: the last checkpoint stays as it was.
        TrainingError
            If the watch stops the run.
        FileExistsError
            If another process trains in the folder.

        Examples
        --------
        ::

            history = trainer.run(until=1000, every=100)
            print([row["rec_obs"] for row in history])
        """
        last = self.settings.n_iterations if until is None else min(until, self.settings.n_iterations)
        history: list[dict[str, float]] = []
        action = None if self.watch is None else self.watch.settings.action
        bar = tqdm(total=last, initial=self.iteration, desc="training", disable=not progress or self.rank > 0)
        with locked(self.folder if self.rank == 0 else None, "trains in"), _delayed_signals() as caught, bar:
            while self.iteration < last:
                verdicts: list[Verdict] = []
                try:
                    terms = self.step()
                except FloatingPointError as error:
                    if action != "roll_back":
                        raise
                    self._roll_back(str(error))
                    bar.update(self.iteration - bar.n)
                    continue
                for name, value in terms.items():
                    total, n = self._sums.get(name, (0.0, 0))
                    self._sums[name] = total + value, n + 1
                bar.update()
                if self.iteration % every == 0:
                    history.append(self._report(bar))
                    if self.watch is not None and self.iteration > self.settings.warm_start:
                        verdicts += self.watch.see_losses(self._watched(history[-1]))
                if self.watch is not None and self.iteration % self.watch.settings.every == 0:
                    verdicts += self._evaluate(self.watch)
                failing = self._heed(verdicts)
                stop = self._agree(caught[0] if caught else 0)
                if failing is not None and action == "roll_back":
                    self._roll_back(str(failing))
                    bar.update(self.iteration - bar.n)
                elif self.iteration % checkpoint_every == 0 or self.iteration == last or stop or failing:
                    self.save()
                if failing is not None and action == "stop":
                    best = [path for path in self._saved_states() if path.name == BEST]
                    raise TrainingError(f"{failing}; the best state is in {best[0]}" if best else f"{failing}")
                if stop:
                    break
            # of the last iteration, too; and no process ends before the first has written its checkpoint
            signal_number = self._agree(caught[0] if caught else 0)
        if signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        if signal_number:
            raise SystemExit(128 + signal_number)
        return history

    def _report(self, bar: tqdm) -> dict[str, float]:
        row = {"iteration": self.iteration} | {name: total / n for name, (total, n) in self._sums.items()}
        self._sums = {}
        seen = self._watched(row) if self.iteration > self.settings.warm_start else row
        shown = ("rec_obs", "cyc_obs", "gen_obs", ACCURACY)
        bar.set_postfix({name: f"{seen[name]:.3g}" for name in shown if name in seen})
        if self._logs:
            self._logs["losses"].write(row)
        return row

    # -- the watch -------------------------------------------------------------
    def _evaluate(self, watch: Watch) -> list[Verdict]:
        """Score the averaged weights, log the scores, and keep the state if it is the best."""
        measured: list[dict[str, float]] = [{}]
        if self.rank == 0:
            measured = [self._scores()]
        if self.n_processes > 1:  # all are to come to the same verdict
            dist.broadcast_object_list(measured)
        scores = measured[0]
        verdicts = watch.see_scores(self.iteration, scores)
        if self._logs:
            codes = " ".join(verdict.code for verdict in verdicts)
            self._logs["scores"].write({"iteration": self.iteration, **scores, "verdicts": codes})
        if watch.is_best:
            self.save(BEST)
        return verdicts

    def _heed(self, verdicts: list[Verdict]) -> Verdict | None:
        """Warn of all verdicts; return one that says that the run is failing."""
        for verdict in verdicts if self.rank == 0 else ():
            warnings.warn(str(verdict), TrainingWarning, stacklevel=3)
        return next((verdict for verdict in verdicts if verdict.severity == "failing"), None)

    def _roll_back(self, why: str) -> None:
        """Go back to the best state, or the last one saved, with half the learning rates and other random numbers."""
        saved = self._saved_states()
        if not saved or self._rate <= 0.5**MOST_ROLLBACKS:
            reason = f"was rolled back {MOST_ROLLBACKS} times" if saved else "has no saved state to go back to"
            raise TrainingError(f"the run {reason}, and fails: {why}")
        failed, rate = self.iteration, 0.5 * self._rate
        # streams stay where they are, and the generator goes elsewhere: the same batches would fail the same way
        streams = [source.state_dict() for source in self.sources.values()]
        self._restore(self.read_state(saved[0]))
        for source, state in zip(self.sources.values(), streams, strict=True):
            source.load_state_dict(state)
        self._rate = rate
        self.generator.manual_seed(self.settings.seed + failed)
        warnings.warn(
            f"rolled back from iteration {failed} to {self.iteration}, with {rate:g} times the learning rates: {why}",
            TrainingWarning,
            stacklevel=3,
        )
        self.save()

    def _saved_states(self) -> list[Path]:
        """States of this run that it can go back to: the best one first."""
        # a best.pt that this run has not written may be another's
        best = self.watch is not None and self.watch.best is not None
        names = (BEST, CHECKPOINT) if best else (CHECKPOINT,)
        return [self.folder / name for name in names if (self.folder / name).exists()] if self.folder else []

    def best_state(self) -> dict | None:
        """The state of the best score.

        Returns
        -------
        dict or None
            As of `read_state`; None if nobody watches, or there is none yet.

        Raises
        ------
        ModelFileError, OtherRunError
            As of `read_state`.

        Examples
        --------
        ::

            best = trainer.best_state()
        """
        if self.watch is None or self.folder is None or not (self.folder / BEST).exists():
            return None
        return self.read_state(self.folder / BEST)

    def _agree(self, signal_number: int) -> int:
        """The largest number of all processes, so that they stop at the same iteration."""
        if self.n_processes == 1:
            return signal_number
        number = torch.tensor(signal_number, device=self.device)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    # -- checkpoints -----------------------------------------------------------
    def _stateful(self) -> dict:
        """All objects whose state the next iteration depends on."""
        parts = {"parts": self.parts, "optimizer": self.optimizer, "critic_optimizer": self.critic_optimizer}
        watch = {} if self.watch is None else {"watch": self.watch}
        return {**parts, **self.sources, **watch}

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint with everything that the next iteration depends on; without a folder, do nothing.

        Parameters
        ----------
        name : str, optional
            File in the folder of the run. Default: ``"checkpoint.pt"``, the one
            that a new `Trainer` resumes.

        Examples
        --------
        ::

            trainer.save("before_the_experiment.pt")
        """
        if self.folder is None or self.rank > 0:
            return
        state = {name: part.state_dict() for name, part in self._stateful().items()}
        state |= {
            "iteration": self.iteration,
            "average": self.average,
            "generator": self.generator.get_state(),
            "sums": self._sums,
            "rate": self._rate,
            "settings": self._made_with(),
        }
        save_state(state, self.folder / name)

    def _load(self, folder: Path) -> None:
        try:
            state = self.read_state(folder / CHECKPOINT)
        except ModelFileError as error:
            way_out = "remove it to begin anew"
            if (folder / f"{CHECKPOINT}.previous").exists():
                way_out = f"to go on from the one before it, rename {CHECKPOINT}.previous to {CHECKPOINT}"
            raise ModelFileError(f"{error}; {way_out}") from error
        self._restore(state)
        log.info("resumed %s at iteration %d", folder / CHECKPOINT, self.iteration)

    def read_state(self, path: Path) -> dict:
        """Read a saved state of this run, without going there.

        Parameters
        ----------
        path : path
            ``checkpoint.pt`` or ``best.pt`` in its folder.

        Returns
        -------
        dict
            What `save` wrote.

        Raises
        ------
        ModelFileError
            If the file is damaged or that of something else.
        OtherRunError
            If it was made with other settings.

        Examples
        --------
        ::

            trainer.read_state(trainer.folder / "best.pt")["iteration"]
        """
        state = load_state(path)
        wanted = self._made_with()
        if not isinstance(state.get("settings"), dict):
            raise ModelFileError(f"{path} is no checkpoint of a training: it holds {', '.join(map(str, state))}")
        then = asdict(TrainingSettings()) | state["settings"]  # an older run had the defaults of what it did not know
        different = sorted(k for k in wanted if then.get(k) != wanted[k])
        if different:
            raise OtherRunError(f"{path} was made with other settings: {', '.join(different)}; use another folder")
        if missing := sorted(self._stateful().keys() - state.keys()):
            raise OtherRunError(f"the run in {self.folder} was begun without {', '.join(missing)}; use another folder")
        self._check_state(state, path)
        return state

    def _check_state(self, state: dict, path: Path) -> None:
        """Raise before anything is taken from a state that is not one of this training."""
        for name, own in (("average", self.average), ("parts", self.parts.state_dict())):
            check_weights(name, state.get(name), own, path)
        for name, part in self._stateful().items():
            if isinstance(part, torch.optim.Optimizer):
                _check_optimizer(name, state[name], part, path)
            elif not isinstance(state[name], dict):
                raise ModelFileError(f"{path}: {name} must be a dictionary, but is a {type(state[name]).__name__}")
        generator, sums = state.get("generator"), state.get("sums")
        checks = {
            "iteration": type(state.get("iteration")) is int and 0 <= state["iteration"] <= self.settings.n_iterations,
            "rate": type(state.get("rate")) is float and 0 < state["rate"] <= 1,
            "generator": _like(generator, self.generator.get_state()),
            "sums": isinstance(sums, dict) and all(map(_is_sum, sums.values())),
        }
        if wrong := [name for name, fine in checks.items() if not fine]:
            raise ModelFileError(f"{path}: {', '.join(wrong)} cannot be that of a training of these settings")

    def _restore(self, state: dict) -> None:
        try:
            for name, part in self._stateful().items():
                part.load_state_dict(state[name])
            self.generator.set_state(state["generator"])
        except (AttributeError, KeyError, TypeError, RuntimeError) as error:  # torch's words for a state that is none
            raise ModelFileError(f"the checkpoint in {self.folder} cannot be resumed: {error}") from error
        self.average = {name: tensor.to(self.device) for name, tensor in state["average"].items()}
        self.iteration, self._rate, self._sums = state["iteration"], state["rate"], state["sums"]
        for table in self._logs.values():
            table.rewind(self.iteration)


def _like(given: object, own: Tensor) -> bool:
    if not isinstance(given, Tensor) or given.shape != own.shape:
        return False
    return given.dtype.is_floating_point == own.dtype.is_floating_point


def _is_sum(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(item, int | float) for item in value)


def check_weights(name: str, given: object, own: dict[str, Tensor], path: str | os.PathLike) -> None:
    """Raise if weights are not those of networks of our sizes.

    Parameters
    ----------
    name : str
        What they are called.
    given : object
        What a file has there.
    own : dict of tensor
        Weights of our networks.
    path : path-like
        The file.

    Raises
    ------
    ModelFileError
        If they have other names, shapes or types.

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.training.loop import check_weights
    >>> check_weights("weights", {"bias": torch.zeros(2)}, {"bias": torch.ones(2)}, "state.pt")
    """
    found = given if isinstance(given, dict) else {}
    if wrong := sorted(str(key) for key in own | found if key not in own or not _like(found.get(key), own[key])):
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ModelFileError(f"{path}: the {name} are not of these networks: {', '.join(wrong[:5])}{more}")


def _check_optimizer(name: str, given: object, own: torch.optim.Optimizer, path: str | os.PathLike) -> None:
    """Raise if a state of an optimizer is not that of our parameters and settings; rates may differ."""
    problem = ModelFileError(f"{path}: the state of {name} is not that of these networks")
    if not isinstance(given, dict) or not isinstance(given.get("state"), dict):
        raise problem
    groups, ours = given.get("param_groups"), own.state_dict()["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(ours) or not all(isinstance(group, dict) for group in groups):
        raise problem
    for group, known in zip(groups, ours, strict=True):
        if any(group[key] != known[key] for key in known.keys() & group.keys() - {"lr", "initial_lr"}):
            raise problem
    parameters = [parameter for group in own.param_groups for parameter in group["params"]]
    for number, entry in given["state"].items():
        if number not in range(len(parameters)) or not isinstance(entry, dict):
            raise problem
        if {"step", "exp_avg", "exp_avg_sq"} != entry.keys() or not all(
            isinstance(value, Tensor) and value.shape == (() if key == "step" else parameters[number].shape)
            for key, value in entry.items()
        ):
            raise problem


def require_held_out(held_out: ObservedSpectra | None) -> ObservedSpectra:
    """Give the spectra that a watch scores, which must be there, and enough.

    Parameters
    ----------
    held_out : `~cyclestarnet.training.datasets.ObservedSpectra` or None
        As a trainer was given them.

    Returns
    -------
    `~cyclestarnet.training.datasets.ObservedSpectra`

    Raises
    ------
    ValueError
        If there are fewer than 10.

    Examples
    --------
    ::

        flux, weight = require_held_out(held_out).rows(torch.arange(10))
    """
    if held_out is None or len(held_out) < LEAST_HELD_OUT:
        found = "none" if held_out is None else len(held_out)
        raise ValueError(
            f"a watch needs held_out, {LEAST_HELD_OUT} or more observed spectra that are not trained on, "
            f"but got {found}"
        )
    return held_out


def total(terms: dict[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Weighted sum of loss terms.

    Parameters
    ----------
    terms : dict of tensor, shape ()
        Unweighted terms.
    weights : mapping of float
        At least those of their names.

    Returns
    -------
    tensor, shape ()

    Examples
    --------
    >>> import torch
    >>> from cyclestarnet.training.loop import total
    >>> total({"rec_obs": torch.tensor(2.0)}, {"rec_obs": 9.0, "latent": 30.0})
    tensor(18.)
    """
    return reduce(add, (weights[name] * term for name, term in terms.items()))


@contextmanager
def _delayed_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of letting them cut an iteration; only a second Ctrl-C is not delayed.

    Schedulers send SIGTERM to every process, and so does ``torchrun``: it may come twice.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught  # only the main thread may handle signals
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
