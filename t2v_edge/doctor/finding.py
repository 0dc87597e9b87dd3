"""A finding: one thing that the doctor says about a machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Optional

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Finding:
    """One finding. code: its subject. level: ok, warn or fail. what: it in words. remedy: what to type or do."""

    code: str
    level: str
    what: str
    remedy: Optional[str] = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
