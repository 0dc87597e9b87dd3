"""What a stage's module is built from, and which of its numbers are widths."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import nn

from t2v_edge.spec import StageSpec
from t2v_export.checkpoint.config import CheckpointConfig, StageConfig
from t2v_export.compress.prune.units import Family, Place
from t2v_export.models.contract import spec_of
from t2v_export.models.text import TransformersText

Path = tuple[Any, ...]
ENCODER = "encoder"
STEPS = (1, 2, 3, 4, 8, 16, 32)  # by how much less a number is tried with, to see which weights follow it
SHARED = ("condition_size", "motion_size", "height", "width", "folder")


@dataclass(frozen=True)
class WidthOption:
    """A number of a stage's options that is a width, and the units it counts.

    `paths`: where its numbers stand; the entry of a list has its index. The encoder's heads and width are one option of
    two numbers. `value`: the first number. `scale`: what each number is per unit of `value`. `families`: with the units
    of each that leave when the value falls by one. `lost`: how many indices then leave each place.
    """

    paths: tuple[Path, ...]
    scale: tuple[int, ...]
    value: int
    families: tuple[tuple[Family, int], ...]
    lost: Mapping[Place, int]

    @property
    def name(self) -> str:
        """The option as people write it, such as ``channels[2]``."""
        first, *rest = self.paths[0]
        return f"{first}" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in rest)


class Design:
    """A stage's class with all its options, defaults included.

    `options` are those of config.json. A transformers encoder also has its own settings, under ``encoder``. `folder` is
    the encoder's folder, which a text class is given.
    """

    def __init__(self, stage: str, config: CheckpointConfig, module: nn.Module, folder: FilePath | None = None) -> None:
        self.stage, self.config, self.module, self.folder = stage, config, module, folder
        self.options = _full_options(type(module), config.stages[stage].options)
        # a class whose options say several widths at once may say them one by one
        self.options |= dict(getattr(module, "options_in_full", {}))
        self.settings: dict[str, Any] = module.encoder.config.to_dict() if isinstance(module, TransformersText) else {}

    def numbers(self) -> dict[Path, int]:
        """Every whole number of the options, by path."""
        return dict(_numbers(self.options)) | {(ENCODER, *p): value for p, value in _numbers(self.settings)}

    def stage_config(self, values: Mapping[Path, int]) -> StageConfig:
        """The stage's config with these numbers; options that stay at their defaults are not named."""
        options = _changed(self.options, {p: v for p, v in values.items() if p[0] != ENCODER})
        stage, defaults = self.config.stages[self.stage], _full_options(type(self.module), {})
        named = {k: v for k, v in options.items() if k in stage.options or v != defaults.get(k)}
        return StageConfig(stage.class_name, named)

    def build(self, values: Mapping[Path, int], device: str = "cpu") -> nn.Module:
        """A module with these numbers and fresh weights, in evaluation mode, without gradients."""
        options = _changed(self.options, {p: v for p, v in values.items() if p[0] != ENCODER})
        settings = {p[1]: v for p, v in values.items() if p[0] == ENCODER}
        with torch.device(device), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if isinstance(self.module, TransformersText):
                made: nn.Module = self.module.resized(settings, options)
            else:
                text = {"folder": self.folder} if self.stage == "text" else {}
                made = type(self.module)(**self.config.sizes, **text, **options)
        return made.float().eval().requires_grad_(False)

    def try_build(self, values: Mapping[Path, int]) -> nn.Module | None:
        """The same without memory for weights, or None where the class refuses the numbers."""
        return self._tried(values, self._trial_device)

    @cached_property
    def _trial_device(self) -> str:
        """Where numbers are tried: without memory, if the class can be built so as it is."""
        return "cpu" if self._tried({}, "meta") is None else "meta"

    def _tried(self, values: Mapping[Path, int], device: str) -> nn.Module | None:
        try:
            made = self.build(values, device)
            _ = made.spec  # which may be made of weights, and there are none on the meta device
            return made
        except Exception:  # noqa: BLE001 - a user's class may refuse a number in any way; so that number stays
            return None


def _full_options(found: type[nn.Module], options: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(found.__init__).parameters.values()
    defaults = {
        p.name: list(p.default) if isinstance(p.default, tuple) else copy.deepcopy(p.default)
        for p in parameters
        if p.default is not p.empty and p.name not in SHARED
    }
    return {**defaults, **copy.deepcopy(dict(options))}


def _numbers(options: Mapping[str, Any]) -> Iterator[tuple[Path, int]]:
    for name, value in options.items():
        if type(value) is int:
            yield (name,), value
        elif isinstance(value, (list, tuple)):
            yield from (((name, i), v) for i, v in enumerate(value) if type(v) is int)


def _changed(options: Mapping[str, Any], values: Mapping[Path, int]) -> dict[str, Any]:
    made = copy.deepcopy(dict(options))
    for (name, *rest), value in values.items():
        made[name] = [value if i == rest[0] else v for i, v in enumerate(made[name])] if rest else value
    return made


def shapes(module: nn.Module) -> dict[Place, int]:
    """Sizes of every axis of a module's weights and of its states' inputs."""
    found = {(k, axis): size for k, v in module.state_dict().items() for axis, size in enumerate(v.shape)}
    return found | {(s.input, axis): size for s in spec_of(module).states for axis, size in enumerate(s.shape)}


def row_option(design: Design, table: str, rows: int) -> Path | None:
    """The option of the class that is the number of `rows` of a `table` and of nothing else, or None."""
    before = shapes(design.module)
    for path in (p for p, v in design.numbers().items() if v == rows):
        smaller = design.try_build({path: rows - 1})
        if smaller is not None and shapes(smaller) == {**before, (table, 0): rows - 1}:
            return path
    return None


def find_width_options(design: Design, families: tuple[Family, ...]) -> tuple[WidthOption, ...]:
    """The numbers that are widths of prunable units and of nothing else.

    Each number is tried a little smaller. The axes of weights that shrink with it must be explained, index for index,
    by whole units. A number that also sizes an input, a table or a kernel is left alone.
    """
    before = shapes(design.module)
    candidates: list[tuple[tuple[Path, ...], tuple[int, ...], int]] = [
        ((path,), (1,), value)
        for path, value in design.numbers().items()
        if value > 1 and any(family.size % value == 0 for family in families)
    ]
    heads, width = (ENCODER, "num_attention_heads"), (ENCODER, "hidden_size")
    numbers = _canonical(design)
    if heads in numbers and width in numbers and numbers[width] % numbers[heads] == 0:
        # last: where heads have a size of their own, they and the width are options by themselves
        candidates.append(((heads, width), (1, numbers[width] // numbers[heads]), numbers[heads]))
    found: list[WidthOption] = []
    taken: set[int] = set()
    for paths, scale, value in candidates:
        made = _width_option(design, before, families, paths, scale, value)
        if made is not None and not taken.intersection(id(f) for f, _ in made.families):
            taken.update(id(f) for f, _ in made.families)
            found.append(made)
    return tuple(found)


def _canonical(design: Design) -> dict[Path, int]:
    """Heads and width of the encoder under the names that all of transformers' configs answer to."""
    if not isinstance(design.module, TransformersText):
        return {}
    config = design.module.encoder.config
    names = ("num_attention_heads", "hidden_size")
    return {(ENCODER, n): getattr(config, n) for n in names if isinstance(getattr(config, n, None), int)}


def _width_option(
    design: Design,
    before: Mapping[Place, int],
    families: tuple[Family, ...],
    paths: tuple[Path, ...],
    scale: tuple[int, ...],
    value: int,
) -> WidthOption | None:
    for step in (s for s in STEPS if s < value):
        smaller = design.try_build({path: (value - step) * factor for path, factor in zip(paths, scale)})
        if smaller is None:
            continue
        after = shapes(smaller)
        if set(after) != set(before) or _but_for_sizes(spec_of(design.module)) != _but_for_sizes(spec_of(smaller)):
            return None
        lost = {place: before[place] - after[place] for place in before if before[place] != after[place]}
        if not lost or any(v < 0 or v % step for v in lost.values()):
            return None
        lost = {place: v // step for place, v in lost.items()}
        chosen = _explain(value, families, lost, before)
        return WidthOption(paths, scale, value, chosen, lost) if chosen else None
    return None


def _explain(
    value: int, families: tuple[Family, ...], lost: Mapping[Place, int], before: Mapping[Place, int]
) -> tuple[tuple[Family, int], ...]:
    """The families, with units of each, whose places lose just that much; empty if none do."""
    chosen: list[tuple[Family, int]] = []
    explained = dict.fromkeys(lost, 0)
    for family in families:
        # a place that holds nothing but this family says how many of its units one step takes
        whole = [p for p, at in family.places.items() if p in lost and at.numel() == before[p]]
        if not whole:
            continue
        count = family.places[whole[0]].shape[1]
        units, rest = divmod(lost[whole[0]], count)
        if rest or units * value != family.size:
            continue
        chosen.append((family, units))
        for place, at in family.places.items():
            if place not in explained:
                return ()
            explained[place] += units * at.shape[1]
    return tuple(chosen) if explained == dict(lost) else ()


def _but_for_sizes(spec: StageSpec) -> tuple[object, ...]:
    """A contract without the sizes of its states."""
    return spec.feeds, spec.results, spec.noises, [(s.name, s.start) for s in spec.states]
