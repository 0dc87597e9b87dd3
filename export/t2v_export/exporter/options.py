"""Options of an export."""

from __future__ import annotations

from dataclasses import dataclass

from t2v_edge.errors import UsageError
from t2v_export.exporter.budget import AccuracyBudget
from t2v_export.exporter.captions import DEFAULT_CAPTIONS
from t2v_export.exporter.choose import SHIP
from t2v_export.recipe import Quantize, Recipe
from t2v_export.store import PassStore

VARIANTS = ("fp32", "fp16")


@dataclass(frozen=True)
class ExportOptions:
    """What an export makes, verifies and ships.

    `variants` of `VARIANTS`; FP32 is always made. `seed` of verification streams and golden vectors, 0 to 2^63 - 1.
    `captions` to verify with, at least a dozen. `recipe`: its quantize pass adds INT8 variants. `allow_code`: the
    checkpoint may bring Python code. `measure`: time each stage here; without it the same checkpoint and seed give
    the same bytes. `ship`, one of `SHIP`: which graphs go into the bundle. `store` of finished passes, measured times
    included, from which a stopped export resumes. `train_on`: torch device of a recipe that trains a student.
    `accuracy`: bound on what the default mix may lose. `progress`: show bars on stderr.
    """

    variants: tuple[str, ...] = VARIANTS
    seed: int = 0
    captions: tuple[str, ...] = DEFAULT_CAPTIONS
    recipe: Recipe | None = None
    allow_code: bool = False
    measure: bool = True
    ship: str = "faster"
    store: PassStore = PassStore(None)
    train_on: str = "cpu"
    accuracy: AccuracyBudget | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.variants) - set(VARIANTS))
        if unknown:
            raise UsageError(f"variant {unknown[0]!r} is unknown; choose from {', '.join(VARIANTS)}")
        if self.ship not in SHIP:
            raise UsageError(f"ship is {self.ship!r}; choose from {', '.join(SHIP)}")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed {self.seed} must be from 0 to 2^63 - 1")

    @property
    def quantize(self) -> Quantize | None:
        """The recipe's pass that makes INT8 graphs, or None."""
        return self.recipe.quantize if self.recipe else None


DEFAULTS = ExportOptions()
