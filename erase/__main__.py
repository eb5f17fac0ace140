"""`python -m erase`: the command line."""

import sys

from erase.cli import main

sys.exit(main())
