"""Where the files that come with the program, but are no part of its package, lie: configs and job scripts."""

from __future__ import annotations

import site
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the checkout, or the site-packages that the package lies in
# In a checkout, and where pip puts a wheel's data: of an environment, of --user, of --target.
PLACES = (
    *([ROOT] if (ROOT / "pyproject.toml").is_file() else []),
    *(Path(base) / "share" / "flarecps" for base in (sys.prefix, site.getuserbase(), ROOT)),
)
