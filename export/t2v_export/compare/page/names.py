"""Names and colours of the mixes on the page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from t2v_export.evaluate.mixes import AGAINST

Json = Mapping[str, Any]


class MixNames:
    """What mixes are called and coloured on the page."""

    def __init__(self, report: Json) -> None:
        self.mixes = tuple(report["lanes"])
        self._against = report["against"]
        self.default = report["default"]["lane"]

    def text(self, mix: str) -> str:
        if mix == AGAINST:
            return f"{self._against} (FP32)"
        return f"{mix} (default mix)" if mix == self.default != "default" else mix

    def style(self, mix: str) -> str:
        return f"s{self.mixes.index(mix) % 8}"

    def mark(self, mix: str) -> str:
        """The name with its colour, as HTML."""
        return f'<i class="{self.style(mix)}"></i>{escape(self.text(mix))}'

    def pair(self, pair: Json) -> str:
        """The candidate, and its baseline if there is more than one."""
        versus = f" against {escape(self.text(pair['baseline']))}" if self._against else ""
        return self.mark(pair["candidate"]) + versus

    def key(self) -> str:
        return f'<div class="key">{"".join(f"<span>{self.mark(mix)}</span>" for mix in self.mixes)}</div>'
