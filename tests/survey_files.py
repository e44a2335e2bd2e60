"""Small files like those of APOGEE, made by the thousand, whose normalised spectra are known exactly."""

import io
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.io import fits

from cyclestarnet import ContinuumRecipe, WavelengthGrid

N_FILE, FIRST, N = 200, 20, 160  # pixels of a file, the first one of the grid, and pixels of the grid
START, STEP = 4.179, 6e-6
GRID = WavelengthGrid(10 ** (START + STEP * (FIRST + np.arange(N))) * u.AA)
LINES = np.arange(5, N, 6)  # pixels of the grid that may have a line
RECIPE = ContinuumRecipe(GRID, ~np.isin(np.arange(N), LINES), degree=2)
AXIS = np.linspace(-1, 1, N_FILE)
CONTINUUM = 200 * (1 + 0.3 * AXIS - 0.2 * AXIS**2)  # a parabola in the pixel number, which the recipe finds exactly
SIGMA = 2.0


@dataclass(frozen=True)
class Star:
    """What a file is made of; its number makes its lines."""

    number: int
    snr: float = 100.0
    name: str = ""

    @property
    def objid(self):
        return self.name or f"2M{self.number:016d}"

    @property
    def normalised(self):
        """Flux on the grid, divided by the continuum."""
        flux = np.ones(N)
        flux[LINES] -= np.random.default_rng(self.number).uniform(0, 0.9, len(LINES))
        return flux


def _template():
    header = {"OBJID": "2M" + 16 * "?", "SNR": 98765.4321, "TELESCOP": "apo25m"}
    images = [np.ones((1, N_FILE), ">f4"), np.full((1, N_FILE), SIGMA, ">f4"), np.zeros((1, N_FILE), ">i2")]
    cards = fits.Header({"CRVAL1": START, "CDELT1": STEP, "CRPIX1": 1})
    hdus = [fits.PrimaryHDU(header=fits.Header(header)), *(fits.ImageHDU(image, cards) for image in images)]
    file = io.BytesIO()
    fits.HDUList(hdus).writeto(file)
    return file.getvalue()


TEMPLATE = _template()
OFFSET = TEMPLATE.index(np.ones((1, N_FILE), ">f4").tobytes())


def content(star):
    """Bytes of an apStar file."""
    flux = CONTINUUM.copy()
    flux[FIRST : FIRST + N] *= star.normalised
    made = bytearray(TEMPLATE)
    made[OFFSET : OFFSET + 4 * N_FILE] = flux.astype(">f4").tobytes()
    return (
        bytes(made)
        .replace(b"2M" + 16 * b"?", f"{star.objid:18.18}".encode())
        .replace(f"{98765.4321:20}".encode(), f"{star.snr:20.4f}".encode())
    )


def save(folder, stars):
    """Write a file for each star; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"apStar-r1-{star.number:05d}.fits" for star in stars]
    for path, star in zip(paths, stars, strict=True):
        path.write_bytes(content(star))
    return paths


def save_catalogue(path, stars, **columns):
    """Write a catalogue like allStar, in which every star passes all cuts unless columns are given."""
    n = len(stars)
    values = {
        "APOGEE_ID": [star.objid for star in stars],
        "TELESCOPE": ["apo25m"] * n,
        "SNR": [star.snr for star in stars],
        "ASPCAP_CHI2": np.full(n, 2.0),
        "VSINI": np.full(n, -9999.0),
        "VMACRO": np.full(n, 4.0),
        "STARFLAG": np.zeros(n, np.int64),
        "ASPCAPFLAG": np.zeros(n, np.int64),
    } | columns
    table = fits.BinTableHDU.from_columns(
        [
            fits.Column(
                name,
                "20A" if np.asarray(v).dtype.kind == "U" else "K" if np.asarray(v).dtype.kind == "i" else "E",
                array=v,
            )
            for name, v in values.items()
            if v is not None
        ]
    )
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)
    return path
