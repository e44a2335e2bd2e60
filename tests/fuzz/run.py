"""Read damaged files of every kind, and print what became of them.

    python tests/fuzz/run.py --inputs 500 --seed 1

``--inputs`` is for each kind of file, ``--only`` chooses some by a part of their
names, and ``--keep FOLDER`` keeps the files that did not end cleanly.
"""

import argparse
import os
import platform
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from fuzzing import OUTCOMES, fuzz
from readers import READERS


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=500, help="damaged files of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="part of the name of a kind")
    parser.add_argument("--keep", type=Path, help="folder for files that did not end cleanly")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    begun, total = time.monotonic(), Counter()
    print(f"{'reader':20}" + "".join(f"{name:>8}" for name in OUTCOMES), flush=True)
    for name in READERS:
        if options.only.lower() not in name.lower():
            continue
        counts, examples = fuzz(name, options.inputs, options.seed, options.keep)
        total += counts
        print(f"{name:20}" + "".join(f"{counts[outcome]:8}" for outcome in OUTCOMES), flush=True)
        for number, result, said in examples[:10]:
            print(f"    {number} {result}: {said}", flush=True)
    print(f"{'all':20}" + "".join(f"{total[outcome]:8}" for outcome in OUTCOMES))
    print(
        f"seed {options.seed}, {datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {time.monotonic() - begun:.0f} s"
    )
    return bool(total["odd"] + total["hang"] + total["silent"])


if __name__ == "__main__":
    sys.exit(main())
