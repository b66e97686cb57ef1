"""``python -m dslight``, for launchers such as torchrun."""

import sys

from dslight.cli import main

sys.exit(main())
