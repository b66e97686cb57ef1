"""Several ``dslight`` commands one after another in the same processes, which saves most of the time of starting them.

``torchrun ... several.py '[[["fit", "recipe.yaml", ...], {"PROBE_FOLDER": ...}], ...]'``: each command with its
environment. The first one that fails ends the program with its exit code.
"""

from __future__ import annotations

import json
import os
import sys

from dslight.cli import main

for arguments, variables in json.loads(sys.argv[1]):
    os.environ.update(variables)
    if code := main(arguments):
        sys.exit(code)
