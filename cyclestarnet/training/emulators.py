"""The emulator of a run: trained on spectra of a file, or read from one."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from cyclestarnet.exceptions import GridError, ModelFileError
from cyclestarnet.grid import WavelengthGrid
from cyclestarnet.labels import LabelSet
from cyclestarnet.model import CalibratedModel
from cyclestarnet.networks.checkpoint import load_state, save_state
from cyclestarnet.networks.emulator import Emulator, EmulatorSettings, train_emulator
from cyclestarnet.networks.published import read_payne_checkpoint, read_payne_npz
from cyclestarnet.training.tables import SpectrumTable

log = logging.getLogger(__name__)

__all__ = ["load_emulator", "save_emulator", "trained_emulator"]

OWN_EMULATOR = "emulator.pt"  # of a run that trains one, in its folder


def trained_emulator(
    table: SpectrumTable,
    values: np.ndarray,
    labels: LabelSet,
    folder: Path,
    *,
    settings: EmulatorSettings,
    n_spectra: int,
    source: Mapping[str, object],
    progress: bool = True,
) -> tuple[Emulator, float]:
    """Train the emulator of a run on its synthetic spectra, or read it if the folder of the run has it.

    Parameters
    ----------
    table : `~cyclestarnet.training.tables.SpectrumTable`
        Synthetic spectra. Those that are not finite are left out.
    values : array, shape (table.n_spectra, n_labels)
        Their labels, in the order and units of ``labels``; rows with NaN are left out.
    labels : `~cyclestarnet.LabelSet`
        Their names, and the range for the scaling of the emulator's inputs.
    folder : path
        Where the emulator is kept, as ``emulator.pt``.
    settings : `~cyclestarnet.EmulatorSettings`
        Sizes and training of the emulator.
    n_spectra : int
        It is trained on so many spectra at most, drawn with the seed of the settings.
    source : dict
        Plain values that tell which spectra these are. An emulator in the
        folder that has others, or was trained otherwise, is not taken.
    progress : bool, optional
        Show a bar. Default: True.

    Returns
    -------
    emulator : `~cyclestarnet.networks.Emulator`
    error : float
        Its mean absolute error in normalised flux, on spectra held out.

    Raises
    ------
    ModelFileError
        If the folder has an emulator of other spectra or settings.

    Examples
    --------
    ::

        table = TrainingSet("synthetic.h5", domain="synthetic")
        emulator, error = trained_emulator(
            table, table.labels, labels, Path("run"), settings=EmulatorSettings(), n_spectra=20_000,
            source={"file": "synthetic.h5"},
        )
    """
    path = folder / OWN_EMULATOR
    made_of = {
        **source,
        "n_spectra": table.n_spectra,
        "n_emulator": n_spectra,
        "labels": labels.to_dict(),
        "settings": asdict(settings),
    }
    if path.exists():
        state = load_state(path)
        if state.get("made_of") != made_of:
            raise ModelFileError(
                f"{path} was made with other settings or of other spectra; delete it, or use another folder"
            )
        emulator, error = load_emulator(path)[0], state.get("error")
        if not isinstance(error, float) or not 0 <= error < np.inf:
            raise ModelFileError(f"{path} must tell the error of its emulator, but has {error!r:.40}; delete it")
        return emulator, error
    rows = np.flatnonzero(np.isfinite(values).all(1))
    order = np.random.default_rng([settings.seed, 2]).permutation(len(rows))
    rows = np.sort(rows[order[:n_spectra]])
    flux = np.empty((len(rows), table.n_pixels), dtype=np.float32)
    for start in range(0, table.n_spectra, table.block_rows):
        part = slice(*np.searchsorted(rows, [start, start + table.block_rows]))
        if part.start < part.stop:
            flux[part] = table.read(start, min(start + table.block_rows, table.n_spectra))[0][rows[part] - start]
    fine = np.isfinite(flux).all(1)
    emulator, history = train_emulator(
        values[rows[fine]],
        flux[fine],
        lower=labels.lower,
        upper=labels.upper,
        settings=settings,
        progress=progress,
    )
    best = min(row["validation"] for row in history)
    log.info("emulator: mean absolute error %.5f on spectra held out", best)
    save_emulator(emulator, labels, path, made_of=made_of, error=best)
    return emulator, best


def save_emulator(emulator: Emulator, labels: LabelSet, path: str | os.PathLike, **notes: object) -> None:
    """Write an emulator and its labels to a file, atomically.

    Parameters
    ----------
    emulator : `~cyclestarnet.networks.Emulator`
        Any emulator, trained here or read from a public file.
    labels : `~cyclestarnet.LabelSet`
        Names and range of the labels that it takes, in its order.
    path : path-like
        File to write, ending in ``.pt``.
    **notes
        Plain values that are kept with it.

    Examples
    --------
    >>> import tempfile
    >>> from cyclestarnet import LabelSet
    >>> from cyclestarnet.networks.emulator import Emulator
    >>> from cyclestarnet.training.emulators import load_emulator, save_emulator
    >>> labels = LabelSet(["teff", "logg"], [3500, 0], [6000, 4])
    >>> path = tempfile.mkdtemp() + "/emulator.pt"
    >>> save_emulator(Emulator(labels.lower, labels.upper, 50, (8,)), labels, path)
    >>> emulator, known = load_emulator(path)
    >>> emulator.n_pixels, known
    (50, <LabelSet teff, logg>)
    """
    shape = {"hidden": list(emulator.hidden), "activation": emulator.activation}
    save_state({"emulator": emulator.state_dict(), "labels": labels.to_dict(), **shape, **notes}, path)


def load_emulator(path: str | os.PathLike, *, grid: WavelengthGrid | None = None) -> tuple[Emulator, LabelSet | None]:
    """Read an emulator from any of the files that hold one.

    Parameters
    ----------
    path : path-like
        ``.pt`` of `save_emulator`, ``.safetensors`` of a model, ``.npz`` of
        The Payne, or ``PAYNE.pth.tar``.
    grid : `~cyclestarnet.WavelengthGrid`, optional
        What the pixels must be, as far as the file knows.

    Returns
    -------
    emulator : `~cyclestarnet.networks.Emulator`
        In evaluation mode, without gradients.
    labels : `~cyclestarnet.LabelSet` or None
        Names and range of its labels. None for files that do not name them.

    Raises
    ------
    ModelFileError
        If the file is damaged or holds no emulator.
    GridError
        If it is for other wavelengths.

    Examples
    --------
    ::

        emulator, labels = load_emulator("run/emulator.pt")
        emulator, _ = load_emulator("PAYNE.pth.tar")
    """
    path = Path(path)
    if path.suffix == ".npz":
        return read_payne_npz(path), None
    if path.suffix in (".tar", ".pth"):
        return read_payne_checkpoint(path), None
    if path.suffix == ".safetensors":
        model = CalibratedModel.load(path)
        if grid is not None and not _same(model.grid, grid):
            raise GridError(f"the emulator of {path} is for {model.grid!r}, but the spectra are on {grid!r}")
        return model.emulator, model.labels
    state = load_state(path)
    try:
        labels, weights = LabelSet(**state["labels"]), state["emulator"]
        if not all(torch.isfinite(weight).all() for weight in weights.values()):
            raise ValueError("its weights are not finite")
        layers = [weight for name, weight in weights.items() if name.endswith(".weight")]
        hidden = [len(weight) for weight in layers[:-1]]
        sizes = labels.lower, labels.upper, len(layers[-1]), hidden, state.get("activation", "silu")
        with torch.device("meta"):  # of sizes alone, as a file can name any
            wanted = {name: value.shape for name, value in Emulator(*sizes).state_dict().items()}
        if wanted != {name: value.shape for name, value in weights.items()}:
            raise ValueError("its weights do not fit each other")
        emulator = Emulator(*sizes)
        emulator.load_state_dict(weights)
        if not (emulator.lower < emulator.upper).all():
            raise ValueError("a label has an empty range")
    except Exception as error:  # the content may be anything
        raise ModelFileError(f"{path} holds no emulator: {error}") from error
    return emulator.eval().requires_grad_(False), labels


def _same(grid: WavelengthGrid, other: WavelengthGrid) -> bool:
    return grid.n_pixels == other.n_pixels and np.allclose(grid.wavelength, other.wavelength, rtol=1e-6, atol=0)
