"""``python -m cyclestarnet``: the command line."""

import sys

from cyclestarnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
