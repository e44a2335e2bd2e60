"""Small valid files of every kind that the package reads, and what a reader makes of them."""

import gzip
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import astropy.units as u
import h5py
import numpy as np
import torch
from astropy.io import fits
from astropy.table import QTable

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny import TINY_NETWORK, LineFamily, tiny_trainer

from cyclestarnet import CalibratedModel, ContinuumRecipe, GaussianPrior, LabelSet, WavelengthGrid, read_results
from cyclestarnet.fitting.chains import ChainState
from cyclestarnet.io import Selection, TrainingSet, read, star_sources
from cyclestarnet.io.catalogue import Catalogue
from cyclestarnet.journal import Journal
from cyclestarnet.lines import read_line_list
from cyclestarnet.lines.config import example_mock_config, read_mock_config
from cyclestarnet.networks.clouds import LatentCloud
from cyclestarnet.networks.emulator import Emulator
from cyclestarnet.networks.published import read_payne_checkpoint, read_payne_npz, read_published_checkpoint
from cyclestarnet.networks.translation import Critic, NetworkSettings, TranslationNetwork
from cyclestarnet.networks.translator import Translator
from cyclestarnet.noise import NoiseModel
from cyclestarnet.pipeline.chains import ChainFile
from cyclestarnet.pipeline.journal import write_results
from cyclestarnet.pipeline.parts import FlagLimits, Population
from cyclestarnet.training.emulators import load_emulator, save_emulator

N_PIXELS = 40


@dataclass(frozen=True)
class Reader:
    """A kind of file: how to make one, and how to read it to plain data.

    ``verified`` says that the format has checksums, so that no change of a byte may change a result.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    verified: bool = False


def digest(value):
    """Of plain data, arrays, tensors and tables, to tell whether two results are the same."""
    made = hashlib.sha256()

    def add(item):
        if isinstance(item, dict):
            for key in item:
                add(key)
                add(item[key])
        elif isinstance(item, (list, tuple)):
            for part in item:
                add(part)
        elif isinstance(item, QTable):
            add({name: (str(getattr(c, "unit", "")), np.asarray(getattr(c, "value", c))) for name, c in item.items()})
        elif isinstance(item, (np.ndarray, torch.Tensor)):
            made.update(str(item.dtype).encode() + np.ascontiguousarray(np.asarray(item)).tobytes())
        else:
            made.update(repr(item).encode())

    add(value)
    return made.hexdigest()


# -- spectra --------------------------------------------------------------------------
def _spectrum_file(path, *images, cards=None):
    header = fits.Header({"CRVAL1": 4.179, "CDELT1": 6e-6, "CRPIX1": 1})
    primary = fits.PrimaryHDU(header=fits.Header({"OBJID": "2M1", "SNR": 90.0} | (cards or {})))
    fits.HDUList([primary, *(fits.ImageHDU(image, header) for image in images)]).writeto(path)
    return path


def _apstar(folder):
    flux = np.random.default_rng(1).uniform(50, 100, (3, N_PIXELS)).astype(">f4")
    return _spectrum_file(folder / "apStar-1.fits", flux, np.full_like(flux, 2), np.zeros((3, N_PIXELS), ">i2"))


def _aspcapstar(folder):
    flux = np.random.default_rng(1).uniform(0.9, 1, N_PIXELS).astype(">f4")
    return _spectrum_file(folder / "aspcapStar-1.fits", flux, np.full_like(flux, 0.01), flux)


def _apvisit(folder):
    flux = np.random.default_rng(1).uniform(50, 100, (3, N_PIXELS)).astype(">f4")
    wavelength = 15000 + np.arange(3 * N_PIXELS, dtype=">f8").reshape(3, N_PIXELS)[::-1]
    path = folder / "apVisit-1.fits"
    return _spectrum_file(path, flux, flux / 50, np.zeros(flux.shape, ">i4"), wavelength, cards={"VRAD": -60.0})


def _mwmstar(folder):
    columns = {
        "flux": np.full(N_PIXELS, 70.0, "f4"),
        "ivar": np.ones(N_PIXELS, "f4"),
        "pixel_flags": np.zeros(N_PIXELS, int),
    }
    record = [
        fits.Column(name, f"{N_PIXELS}{'K' if name == 'pixel_flags' else 'E'}", array=[v])
        for name, v in columns.items()
    ]
    record.append(fits.Column("snr", "E", array=[90.0]))
    header = fits.Header({"CRVAL": 4.179, "CDELT": 6e-6, "CRPIX": 1, "INSTRMNT": "APOGEE", "OBSRVTRY": "APO"})
    table = fits.BinTableHDU.from_columns(record, header, name="APOGEE/APO")
    fits.HDUList([fits.PrimaryHDU(header=fits.Header({"SDSS_ID": 42})), table]).writeto(
        folder / "mwmStar-0.6.0-42.fits"
    )
    return folder / "mwmStar-0.6.0-42.fits"


def _read_spectrum(path):
    spectrum = read(path)
    wavelength = spectrum.spectral_axis.value
    good = ~spectrum.mask
    assert np.all(np.isfinite(wavelength))
    assert np.all(np.diff(wavelength) > 0)
    assert np.all(np.isfinite(spectrum.flux.value[good]))
    assert np.all(spectrum.uncertainty.array[good] > 0)
    return spectrum.flux.value, spectrum.mask, wavelength, spectrum.uncertainty.array


def _zipped_apstar(folder):
    path = folder / "apStar-2.fits.gz"
    path.write_bytes(gzip.compress(_apstar(folder).read_bytes(), mtime=0))
    return path


# -- tables -----------------------------------------------------------------------------
def _results(suffix):
    def make(folder):
        table = QTable(
            {
                "object": ["star 1", "", "star 3"],
                "teff": [4500.0, 4600.5, np.nan] * u.K,
                "teff_err": [30.0, 31.0, np.nan] * u.K,
                "logg": [2.5, 1.0, 0.25] * u.dex(u.cm / u.s**2),
                "dof": [100, 200, 0],
                "success": [True, True, False],
            }
        )
        write_results(table, folder / f"results{suffix}")
        return folder / f"results{suffix}"

    return make


def _catalogue(folder):
    table = QTable({"APOGEE_ID": ["2M1", "2M2"], "TELESCOPE": ["apo25m"] * 2, "VSINI": [3.0, 9.0], "STARFLAG": [0, 1]})
    table.write(folder / "allStar.fits")
    return folder / "allStar.fits"


def _read_catalogue(path):
    catalogue = Catalogue(path)
    return len(catalogue), [repr(catalogue.find(apogee_id=name)) for name in ("2M1", "2M2", "2M3")]


def _training_set(folder):
    path = folder / "observed.h5"
    with h5py.File(path, "w") as file:
        for split in ("train", "val"):
            file[f"spectra {split}"] = np.ones((6, N_PIXELS), "f4")
            file[f"spectra_err {split}"] = np.full((6, N_PIXELS), 0.01, "f4")
            file[f"spectra_msk {split}"] = np.ones((6, N_PIXELS), "u1")
            file.create_dataset(f"snr {split}", data=np.full(6, 100, "f4"), chunks=(2,), maxshape=(None,))
            file.create_dataset(f"labels {split}", data=np.ones((6, 2), "f4"), compression="gzip")
        file["names train"] = [f"star {k}" for k in range(6)]
        file["wavelength"] = np.linspace(15000, 15010, N_PIXELS)
        file.attrs["label_names"] = ["teff", "logg"]
    return path


def _read_training_set(path):
    table = TrainingSet(path)
    stars = star_sources(table)
    return (
        table.rows(Selection()),
        table.read(0, 6),
        table.labels,
        table.chi2,
        table.label_names,
        table.names,
        len(stars),
    )


def _chain(folder):
    steps = np.zeros((5, 8, 3)), np.zeros((5, 8)), np.zeros(8), np.random.RandomState(1).get_state(), 0
    state = ChainState(*steps, centre=np.zeros(3), covariance=np.eye(3), share=0.7)
    ChainFile(folder / "chain.h5", identity={"star": "a"}).save(state)
    return folder / "chain.h5"


def _read_chain(path):
    state = ChainFile(path, identity={"star": "a"}).load()
    return state.positions, state.log_posterior, state.accepted, state.n_nan


def _journal(folder):
    path = folder / "labels.ecsv.partial"
    with Journal(path, {"model": "apogee-giants"}) as journal:
        list(journal.recorded())
        journal.append([0, 1], [["a", 4500.0], ["b", 4600.0]])
        journal.append([2], [["c", 4700.0]])
    return path


def _read_journal(path):
    with Journal(path, {"model": "apogee-giants"}) as journal:
        return list(journal.recorded())


# -- line lists ---------------------------------------------------------------------------
MOOG = """a title
 15163.067      19.0     2.670     0.630
 15168.376      19.1     2.670     0.480
 15170.120   607.01214   0.100    -2.110
"""
VALD = """                                                                     Damping parameters   Lande
Elm Ion       WL_air(A)  log gf* E_low(eV) J lo E_up(eV)  J up  lower  upper   mean  Rad.  Stark  Waals
'Fe 1',       15194.4920, -4.779,  2.2227,  3.0,  3.0385,  4.0,  1.500,  1.250,  0.870, 6.320,-6.150,-7.840,
'  LS                                                                      3d7.4s a5P'
'  LS                                                                      3d6.(5D) z7F*'
'_          Kurucz Fe 2014   1 wl:K14   1 gf:K14'
'CN 1',       15195.1000, -1.500,  0.9010, 10.0,  1.7169, 11.0, 99.000, 99.000, 99.000, 0.000, 0.000, 0.000,
'  a                                                                       X'
'  b                                                                       A'
'_          Brooke 2014   1 wl'
* oscillator strengths were scaled by the solar isotopic ratios.
"""


def _text(name, text):
    def make(folder):
        (folder / name).write_text(text)
        return folder / name

    return make


# -- networks -------------------------------------------------------------------------------
@cache
def _parts():
    torch.manual_seed(0)
    family = LineFamily()
    labels = family.labels
    emulator = Emulator(labels.lower, labels.upper, 415, (4,)).eval().requires_grad_(False)
    network = TranslationNetwork(TINY_NETWORK).eval().requires_grad_(False)
    return labels, emulator, network


def _model(folder):
    labels, emulator, network = _parts()
    grid = WavelengthGrid(10 ** (4.18 + 6e-6 * np.arange(415)) * u.AA)
    n_latent = TINY_NETWORK.shared_filters * TINY_NETWORK.latent_length
    CalibratedModel(
        name="tiny",
        labels=labels,
        grid=grid,
        emulator=emulator,
        translator=Translator(network, 0.9, 0.1),
        recipe=ContinuumRecipe(grid, np.ones(415, bool), degree=2),
        noise=NoiseModel(scatter={space: np.full(415, 0.01) for space in ("observed", "emulator")}),
        population=Population(
            prior=GaussianPrior((labels.lower + labels.upper) / 2, np.diag(labels.scale**2 / 4)),
            shared_latents=LatentCloud(np.zeros(n_latent), np.zeros((0, n_latent)), np.zeros(0), 1.0, np.inf),
            typical_split_latent=np.zeros((TINY_NETWORK.split_filters, TINY_NETWORK.latent_length)),
        ),
        limits=FlagLimits(reduced_chi2_total=2.0),
        provenance={},
    ).save(folder / "model.safetensors")
    return folder / "model.safetensors"


def _read_model(path):
    model = CalibratedModel.load(path)
    return dict(model.emulator.state_dict()), dict(model.translator.network.state_dict()), model.labels.to_dict()


def _payne_arrays():
    rng, sizes = np.random.default_rng(3), (3, 5, 5, 11)
    arrays = {f"w_array_{k}": rng.normal(size=(sizes[k + 1], sizes[k])) for k in range(3)}
    arrays |= {f"b_array_{k}": rng.normal(size=sizes[k + 1]) for k in range(3)}
    return arrays | {"x_min": np.array([3500.0, 0.0, -2.5]), "x_max": np.array([6500.0, 5.0, 0.5])}


def _payne_npz(folder):
    np.savez(folder / "payne.npz", **_payne_arrays())
    return folder / "payne.npz"


def _payne_checkpoint(zipped):
    def make(folder):
        arrays, path = _payne_arrays(), folder / "PAYNE.pth.tar"
        kinds = {"weight": "w_array", "bias": "b_array"}
        payne = {
            f"{2 * k}.{name}": torch.tensor(arrays[f"{kind}_{k}"]) for k in range(3) for name, kind in kinds.items()
        }
        content = {"Payne": payne, "y_min": arrays["x_min"], "y_max": arrays["x_max"]}
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        return path

    return make


def _emulator_state(emulator):
    state = dict(emulator.state_dict())
    assert all(torch.isfinite(value).all() for value in state.values())
    assert (emulator.lower < emulator.upper).all()
    return state


# Few weights, so that a change falls on what surrounds them as often as on them.
THIN_NETWORK = NetworkSettings(
    **(
        TINY_NETWORK.to_dict()
        | {"domain": ((2, 7, 4),), "shared": ((2, 7, 4), (2, 7, 2)), "split": ((1, 7, 4), (1, 7, 2))}
    )
    | {"shared_filters": 2, "split_filters": 1, "critic_spectrum": ((1, 7, 4), (1, 7, 4))}
    | {"critic_latent": ((1, 1, 1), (1, 1, 1))}
)


def _published(folder):
    torch.manual_seed(1)
    network = TranslationNetwork(THIN_NETWORK)
    parts = dict(network.named_children()) | {
        "discriminator_synth": Critic(THIN_NETWORK, 2),
        "discriminator_obs": Critic(THIN_NETWORK, 3),
    }
    content = {"cycle_model": torch.nn.ModuleDict(parts).state_dict(), "batch_iters": 7, "losses": {"a": [0.5]}}
    torch.save(content, folder / "net.pth.tar")
    return folder / "net.pth.tar"


def _read_published(path):
    network, critics = read_published_checkpoint(path, template=THIN_NETWORK)
    return [dict(part.state_dict()) for part in (network, *(critics or ()))]


def _emulator(folder):
    labels = LabelSet(["teff", "logg"], [3500, 0], [6000, 4])
    save_emulator(Emulator(labels.lower, labels.upper, 11, (4,)), labels, folder / "emulator.pt")
    return folder / "emulator.pt"


def _read_emulator(path):
    emulator, labels = load_emulator(path)
    return _emulator_state(emulator), labels.to_dict()


def _checkpoint(folder):
    trainer = tiny_trainer(folder, n_iterations=10)
    trainer.save()
    return folder / "checkpoint.pt"


@cache
def _trainer():
    return tiny_trainer(n_iterations=10)


def _read_checkpoint(path):
    state = _trainer().read_state(path)
    return state["iteration"], state["average"], state["parts"], state["generator"], state["sums"]


READERS = {
    reader.name: reader
    for reader in (
        Reader("apStar", _apstar, _read_spectrum),
        Reader("apStar, gzip", _zipped_apstar, _read_spectrum, verified=True),
        Reader("aspcapStar", _aspcapstar, _read_spectrum),
        Reader("apVisit", _apvisit, _read_spectrum),
        Reader("mwmStar", _mwmstar, _read_spectrum),
        Reader("catalogue", _catalogue, _read_catalogue),
        Reader("results, ECSV", _results(".ecsv"), read_results),
        Reader("results, FITS", _results(".fits"), read_results, verified=True),
        Reader("results, Parquet", _results(".parquet"), read_results),
        Reader("training set", _training_set, _read_training_set),
        Reader("chain", _chain, _read_chain),
        Reader("survey journal", _journal, _read_journal),
        Reader("line list, MOOG", _text("lines.moog", MOOG), lambda path: read_line_list(path, "moog", medium="air")),
        Reader("line list, VALD", _text("lines.vald", VALD), lambda path: read_line_list(path, "vald")),
        Reader("model", _model, _read_model, verified=True),
        Reader("Payne, npz", _payne_npz, lambda path: _emulator_state(read_payne_npz(path)), verified=True),
        Reader(
            "Payne, torch", _payne_checkpoint(True), lambda p: _emulator_state(read_payne_checkpoint(p)), verified=True
        ),
        Reader("Payne, old torch", _payne_checkpoint(False), lambda path: _emulator_state(read_payne_checkpoint(path))),
        Reader("published networks", _published, _read_published, verified=True),
        Reader("emulator", _emulator, _read_emulator, verified=True),
        Reader("training state", _checkpoint, _read_checkpoint, verified=True),
        Reader("TOML", _text("mock.toml", example_mock_config()), lambda path: repr(read_mock_config(path))),
    )
}
