"""``python -m mmgem``: the command line, and what ``torchrun -m`` starts on every rank."""

import sys

from mmgem.cli.main import main

sys.exit(main())
