"""A finding: one thing that the doctor says about a machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One finding. code: its subject. level: ok, warn or fail. what: it in words. remedy: what to type or do."""

    code: str
    level: str
    what: str
    remedy: Optional[str] = None
