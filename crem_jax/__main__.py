"""`python -m crem_jax` is `crem`."""

import sys

from crem_jax.cli import main

sys.exit(main())
