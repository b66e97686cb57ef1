"""Makes the stranger's package importable, as installing it would."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
