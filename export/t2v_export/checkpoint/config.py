"""A checkpoint's `config.json`: the video, the sizes, and the class and options of each stage."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from t2v_edge.errors import CheckpointError
from t2v_edge.spec import STAGES
from t2v_edge.util.limits import MAX_CHECKPOINT_SIDE, MAX_LIVE_FPS

FORMAT, FORMAT_VERSION = "t2v-checkpoint", 1
MAX_SIZE = 65536
MAX_OPTION = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class StageConfig:
    """The class of a stage, built-in or `module:Class`, and its keyword options."""

    class_name: str
    options: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {"class": self.class_name, "options": dict(self.options)}


@dataclass(frozen=True)
class CheckpointConfig:
    """`height`, `width` in pixels; `fps` base frames a second; `blend_steps` base frames a caption change takes.

    `condition_groups`: sizes of the groups of probabilities that a condition is made of, see `t2v_edge.Manifest`; empty
    where it is something else.
    """

    name: str
    height: int
    width: int
    fps: int
    condition_size: int
    motion_size: int
    stages: Mapping[str, StageConfig]
    blend_steps: int = 6
    condition_groups: tuple[int, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """What the class of every stage is given."""
        return {name: getattr(self, name) for name in ("condition_size", "motion_size", "height", "width")}

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "video": {"height": self.height, "width": self.width, "fps": self.fps},
            "condition_size": self.condition_size,
            "motion_size": self.motion_size,
            "blend_steps": self.blend_steps,
            **({"condition_groups": list(self.condition_groups)} if self.condition_groups else {}),
            "stages": {stage: self.stages[stage].to_json() for stage in STAGES},
        }

    @classmethod
    def from_json(cls, data: Any) -> CheckpointConfig:
        """Read parsed JSON; raises `CheckpointError` naming the first thing that is absent, unknown or out of range."""
        needed = {"format", "format_version", "name", "video", "condition_size", "motion_size", "stages"}
        top = _table(data, "config.json", needed, {"blend_steps", "condition_groups"})
        if top["format"] != FORMAT:
            raise CheckpointError(
                f"config.json: format is {top['format']!r}, not {FORMAT!r}; is this a checkpoint folder?"
            )
        if top["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"config.json: format_version is {top['format_version']!r}, this toolchain reads "
                f"{FORMAT_VERSION}; update t2v-edge"
            )
        if not isinstance(top["name"], str) or not _NAME.fullmatch(top["name"]):
            raise CheckpointError(
                f"config.json: name {top['name']!r} must be 1 to 64 letters, digits, dots, hyphens and underscores"
            )
        video = _table(top["video"], "video", {"height", "width", "fps"})
        stages = _table(top["stages"], "stages", set(STAGES))
        return cls(
            name=top["name"],
            height=_whole(video, "height", 8, MAX_CHECKPOINT_SIDE),
            width=_whole(video, "width", 8, MAX_CHECKPOINT_SIDE),
            fps=_whole(video, "fps", 1, MAX_LIVE_FPS),
            condition_size=_whole(top, "condition_size", 1, MAX_SIZE),
            motion_size=_whole(top, "motion_size", 1, MAX_SIZE),
            stages=MappingProxyType({stage: _stage(stage, stages[stage]) for stage in STAGES}),
            blend_steps=_whole(top, "blend_steps", 0, 1000) if "blend_steps" in top else 6,
            condition_groups=_groups(top.get("condition_groups", []), top["condition_size"]),
        )


def parse_config(text: bytes) -> CheckpointConfig:
    """Parse `config.json`; raises `CheckpointError`."""
    try:
        data = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"config.json is not JSON: {error}; it is damaged, copy it again") from error
    return CheckpointConfig.from_json(data)


def _stage(stage: str, data: Any) -> StageConfig:
    table = _table(data, f"stages.{stage}", {"class"}, {"options"})
    options = table.get("options", {})
    if not isinstance(table["class"], str) or not isinstance(options, dict):
        raise CheckpointError(f"config.json: stages.{stage} needs a class name and an options object")
    for name, value in options.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, (int, float)) and not abs(number) <= MAX_OPTION:
                raise CheckpointError(f"config.json: stages.{stage} option {name} is {number}, beyond {MAX_OPTION}")
    return StageConfig(table["class"], MappingProxyType(dict(options)))


def _table(data: Any, where: str, needed: Set[str], optional: Set[str] = frozenset()) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise CheckpointError(f"config.json: {where} must be an object")
    missing, unknown = sorted(needed - set(data)), sorted(set(data) - needed - optional)
    if missing:
        raise CheckpointError(f"config.json: {where} lacks {', '.join(missing)}; docs/formats.md lists what it needs")
    if unknown:
        raise CheckpointError(
            f"config.json: {where} has unknown {', '.join(unknown)}; it takes {', '.join(sorted(needed | optional))}"
        )
    return data


def _groups(value: Any, size: int) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in value)
    if not whole or (value and sum(value) != size):
        raise CheckpointError(
            f"config.json: condition_groups is {value!r}, it must list whole sizes that make condition_size, {size}"
        )
    return tuple(value)


def _whole(table: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = table[name]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise CheckpointError(f"config.json: {name} is {value!r}, it must be a whole number from {low} to {high}")
    return value
