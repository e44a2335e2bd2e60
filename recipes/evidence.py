#!/usr/bin/env python
"""The figures of the gallery that show many stars, and the table of their numbers, of the packaged model.

::

    python recipes/apogee_giants_data.py INPUTS WORK --test 2000
    python recipes/evidence.py WORK/known.h5 report

The paper's first case study, of stars that no training has seen, with its cuts and a mask. It takes half an hour of
one core, and writes ``docs/_static/evidence_*.png`` and ``docs/tables/evidence.rst``. Killed, it goes on where it was.
It is what ``cyclestarnet report apogee-giants known.h5 -o report --stars 2000 --cuts --mask`` does of any model and
set, and takes from the folder of that what is done.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from list_tables import list_table, write_rst

from cyclestarnet import CalibratedModel
from cyclestarnet.io import StarCuts
from cyclestarnet.plotting import evidence_figures
from cyclestarnet.training import collect_evidence

DOCS = Path(__file__).parents[1] / "docs"
SHOWN = ("residuals", "autoencoder_synthetic", "autoencoder_observed", "latents", "kiel_chi2", "kiel_metallicity")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spectra", type=Path, help="known.h5")
    parser.add_argument("folder", type=Path, help="for what is done so far")
    parser.add_argument("--stars", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args(argv)
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    evidence = collect_evidence(
        CalibratedModel.from_pretrained(), options.spectra, n_stars=options.stars, cuts=StarCuts(), mask=True,
        folder=options.folder, workers=options.workers,
    )  # fmt: skip
    print(evidence)
    for figure in evidence_figures(evidence):
        if figure.name in SHOWN:
            drawn = np.ravel(figure.draw())[0].figure
            drawn.savefig(DOCS / "_static" / f"evidence_{figure.name}.png", dpi=75)
    numbers = [tuple(cell(value) for value in row) for row in evidence.to_table().iterrows()]
    table = list_table("", [("measure", "of", "S1", "here", "unit"), *numbers], widths="40 18 14 14 14")
    write_rst(DOCS / "tables" / "evidence.rst", ".. made by recipes/evidence.py\n", table)


def cell(value):
    if isinstance(value, str):
        return {"sigma": "σ"}.get(value, value.replace("chi2", "χ²").replace("sigma", "σ"))
    return "" if np.isnan(value) else f"{value:.3g}".replace("-", "−")


if __name__ == "__main__":
    main()
