"""``python -m flarecps`` is ``flarecps``."""

import sys

from flarecps.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
