"""Recipes: what to do to a checkpoint or its graphs, as data. A TOML file of ordered passes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from t2v_calibration.ranges import METHODS
from t2v_edge.errors import UsageError
from t2v_edge.spec import STAGES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 64 << 10


@dataclass(frozen=True)
class Quantize:
    """Post-training INT8. `stages` to quantize; `method` of activation ranges, `percentile` for that method.

    `keep_first`: dense layers that a float input reaches through no other layer stay in float32. `keep_last`: layers
    after which no other comes do. `keep`: names of further layers that do. `captions`: sets or files to calibrate
    with; `text_samples`, `motion_samples`, `render_samples`: how much of each stage to keep of them, `steps` the base
    steps of a stream.
    """

    stages: tuple[str, ...] = ("text", "render")
    method: str = "entropy"
    percentile: float = 99.99
    bias_correction: bool = True
    keep_first: bool = True
    keep_last: bool = True
    keep: tuple[str, ...] = ()
    captions: tuple[str, ...] = ("en", "zh")
    text_samples: int = 256
    motion_samples: int = 512
    render_samples: int = 256
    steps: int = 64


@dataclass(frozen=True)
class Recipe:
    """A name and its passes, in order."""

    name: str
    passes: tuple[Quantize, ...]


PASSES = {"quantize": Quantize}
_CHOICES = {"method": METHODS, "stages": STAGES}
_BOUNDS = {
    "percentile": (50.0, 100.0),
    "text_samples": (1, 20_000),
    "motion_samples": (1, 20_000),
    "render_samples": (1, 20_000),
    "steps": (2, 10_000),
}


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or a ``.toml`` file. Raises `UsageError` naming the file, the bad key and what it
    may be.
    """
    path = _find(name_or_path)
    try:
        data = path.read_bytes()
        if len(data) > MAX_FILE_BYTES:
            raise UsageError(f"recipe {path} is larger than {MAX_FILE_BYTES} bytes; is it a recipe?")
        return parse_recipe(tomllib.loads(data.decode("utf-8")), str(path))
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}; give a readable file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"recipe {path} is not TOML: {error}; correct it") from error


def shipped_recipes() -> tuple[str, ...]:
    """The names that `load_recipe` takes, sorted."""
    return tuple(sorted({path.stem for folder in _folders() for path in folder.glob("*.toml")}))


def parse_recipe(data: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from parsed TOML; `where` names its source in errors. Raises `UsageError`."""
    _only(data, ("name", "pass"), where)
    name, listed = data.get("name"), data.get("pass")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where}: name must be a word, not {name!r}")
    if not isinstance(listed, list) or len(listed) != 1:
        raise UsageError(f"{where}: pass must be one [[pass]] table; quantize is the only pass so far")
    return Recipe(name, tuple(_pass(table, f"{where}, pass {i + 1}") for i, table in enumerate(listed)))


def _pass(table: Any, where: str) -> Quantize:
    if not isinstance(table, dict) or table.get("kind") not in PASSES:
        found = table.get("kind") if isinstance(table, dict) else table
        raise UsageError(f"{where}: kind is {found!r}; choose one of {', '.join(PASSES)}")
    made = PASSES[table["kind"]]
    defaults = {f.name: f.default for f in fields(made)}
    _only(table, ("kind", *defaults), where)
    return made(**{key: _value(key, value, defaults[key], where) for key, value in table.items() if key != "kind"})


def _value(key: str, value: Any, default: Any, where: str) -> Any:
    """`value` in the type of the default; lists of words become tuples."""
    if isinstance(default, tuple):
        good = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
        if not good or (not value and key != "keep"):
            raise UsageError(f"{where}: {key} is {value!r}, expected a list of words")
        value, words = tuple(value), tuple(value)
    else:
        number = type(default) is float and type(value) is int
        if type(value) is not type(default) and not number:
            raise UsageError(f"{where}: {key} is {value!r}, expected a {type(default).__name__}")
        words = (value,)
    bad = [w for w in words if w not in _CHOICES.get(key, words)]
    if bad:
        raise UsageError(f"{where}: {key} has {bad[0]!r}; choose of {', '.join(_CHOICES[key])}")
    low, high = _BOUNDS.get(key, (value, value))
    if not low <= value <= high:
        raise UsageError(f"{where}: {key} is {value!r}, expected {low} to {high}")
    return value


def _only(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(table) - set(keys))
    if unknown:
        raise UsageError(f"{where}: key {unknown[0]!r} is unknown; allowed are {', '.join(keys)}")


def _folders() -> list[Path]:
    here = Path(__file__).resolve().parent
    return [folder for folder in (here / "recipes", here.parent / "recipes") if folder.is_dir()]


def _find(name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    for folder in _folders():
        if (folder / f"{name}.toml").is_file() and name in shipped_recipes():
            return folder / f"{name}.toml"
    raise UsageError(
        f"recipe {name!r} is unknown: shipped are {', '.join(shipped_recipes()) or 'none'}; or give a .toml file"
    )
