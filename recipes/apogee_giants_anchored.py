#!/usr/bin/env python
"""Go on with the training of ``apogee_giants.toml`` with 30 stars whose labels are given.

    python recipes/apogee_giants_anchored.py INPUTS WORK

``INPUTS`` and ``WORK`` are those of ``apogee_giants_data.py``, and ``WORK/apogee_giants.toml`` has been trained.
The translated synthetic spectra of the anchors' labels must look like the anchors in 1,000 last iterations. The model
is ``WORK/anchored/apogee-giants-anchored.safetensors``.
"""

from __future__ import annotations

import argparse
import logging
import shutil
from dataclasses import replace
from pathlib import Path

from apogee_domains import TRAINING_ROWS, import_generator, write_stars
from apogee_giants_data import giants

from cyclestarnet.training.config import read_config
from cyclestarnet.training.runs import finish, prepare

log = logging.getLogger("apogee_giants_anchored")

N_ANCHORS = 30
LAST = {"learning_rate": 2e-4, "critic_learning_rate": 2e-4, "weight_anchors": 9.0, "seed": 1}


def main(argv=None):
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, help="folder with data/ and tools/")
    parser.add_argument("work", type=Path, help="folder of the training")
    parser.add_argument("--iterations", type=int, default=1000, help="with the anchors (default: 1000)")
    options = parser.parse_args(argv)
    generator = import_generator(options.inputs)
    first = read_config(options.work / "apogee_giants.toml")
    folder = options.work / "anchored"
    folder.mkdir(exist_ok=True)
    write_stars(
        generator,
        giants(generator),
        folder / "anchors.h5",
        {"train": (N_ANCHORS, TRAINING_ROWS)},
        [0, 3],
        labelled=True,
    )
    shutil.copy(first.run.folder / "emulator.pt", folder)
    said = f"{N_ANCHORS} stars whose 20 labels were given, in {options.iterations} last iterations"
    config = replace(
        first,
        run=replace(first.run, folder=folder, name="apogee-giants-anchored"),
        observed=replace(first.observed, anchors=folder / "anchors.h5"),
        training=replace(first.training, n_iterations=options.iterations, **LAST),
        model=replace(first.model, provenance=first.model.provenance | {"anchors": said}),
    )
    run = prepare(config)
    run.trainer.start_from(first.run.folder / "checkpoint.pt")
    run.train()
    log.info("%s", finish(run))


if __name__ == "__main__":
    main()
