"""`python -m minprefix` is `minprefix`."""

import sys

from minprefix.cli import main

sys.exit(main())
