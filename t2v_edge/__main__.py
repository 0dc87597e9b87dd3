"""``python -m t2v_edge`` is ``t2v-edge``."""

from __future__ import annotations

import sys

from t2v_edge.cli import main

if __name__ == "__main__":
    sys.exit(main())
