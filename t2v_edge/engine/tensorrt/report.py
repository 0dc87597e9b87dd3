"""The report of a build: what it tried, what it chose and why, as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from t2v_edge.engine.tensorrt.api import BuildSettings

if TYPE_CHECKING:
    from t2v_edge.engine.tensorrt.cuda import Gpu


@dataclass(frozen=True)
class EngineAttempt:
    """One engine of a stage, as tried.

    refused: why it was refused, or empty. kept: the cache had it, and `build_s` is 0. layers: about as many kernels.
    golden, rollout: in words, how far it is from the golden vectors and from ONNX Runtime. median_ms: of its runs on
    the GPU.
    """

    variant: str
    precision: str
    refused: str = ""
    kept: bool = False
    build_s: float = 0.0
    engine_bytes: int = 0
    layers: Optional[int] = None
    golden: str = ""
    rollout: str = ""
    max_rel: Optional[float] = None
    psnr_db: Optional[float] = None
    median_ms: Optional[float] = None


@dataclass(frozen=True)
class StageResult:
    """The engine and variant that run a stage, why, and all that was tried."""

    stage: str
    engine: str
    variant: str
    why: str
    tried: tuple[EngineAttempt, ...]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "tried": [dict(vars(t)) for t in self.tried]}


@dataclass(frozen=True)
class BuildReport:
    """The report of one bundle's build on one machine."""

    engine: str
    version: str
    gpu: Gpu
    settings: BuildSettings
    stages: Mapping[str, StageResult]
    total_s: float

    def to_json(self) -> dict[str, Any]:
        stages = {stage: result.to_json() for stage, result in self.stages.items()}
        return {**vars(self), "gpu": dict(vars(self.gpu)), "settings": self.settings.to_json(), "stages": stages}

    def to_text(self) -> str:
        lines = [
            f"{self.engine} {self.version} on {self.gpu.name} ({self.gpu.compute_capability}), {self.total_s:.1f} s"
        ]
        for stage, result in self.stages.items():
            lines.append(f"  {stage:<7}{result.variant} on {result.engine}: {result.why}")
            for tried in result.tried:
                shown = (
                    f"refused: {tried.refused}"
                    if tried.refused
                    else (
                        f"{tried.median_ms:.3f} ms  {tried.golden} from the golden vectors"
                        + (f", {tried.rollout} from ONNX Runtime" if tried.rollout else "")
                    )
                )
                made = "kept" if tried.kept else f"built in {tried.build_s:.1f} s"
                lines.append(
                    f"    {tried.variant:<10}{shown}"
                    + ("" if tried.refused else f"  ({made}, {tried.engine_bytes / 1e6:.1f} MB)")
                )
        return "\n".join(lines)
