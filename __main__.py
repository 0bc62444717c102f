"""`python -m reelgym` is the command `reelgym`."""

import sys

from .experiments.cli import main

sys.exit(main())
