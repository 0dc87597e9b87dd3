"""A recipe: what to do to a checkpoint or its graphs, read from a TOML file of ordered passes."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any

from t2v_edge.errors import UsageError
from t2v_export.recipe.options import PASSES, Distill, Option, Pass, Prune, Quantize, Rebuild, Round

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 64 << 10
MAX_PASSES = 32
TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    tuple: "words",
    dict: "a table",
}
"""What TOML values of each type are called."""


@dataclass(frozen=True)
class Recipe:
    """A name and its passes, in order: those that make a smaller checkpoint, then at most one that quantizes."""

    name: str
    passes: tuple[Pass, ...]

    @property
    def quantize(self) -> Quantize | None:
        """The last pass if it makes INT8 graphs, else None."""
        last = self.passes[-1]
        return last if isinstance(last, Quantize) else None

    def bounded(self, min_psnr: float) -> Recipe:
        """The recipe with another `min_psnr`. Raises `UsageError` without a quantize pass or if it is out of range."""
        if self.quantize is None:
            raise UsageError(f"recipe {self.name} makes no INT8 graphs; --min-psnr is for one with a quantize pass")
        checked = _checked(_fields(Quantize)["min_psnr"], min_psnr, "--min-psnr")
        return replace(self, passes=(*self.passes[:-1], replace(self.quantize, min_psnr=checked)))

    @property
    def checkpoint_passes(self) -> tuple[Prune | Rebuild | Distill | Round, ...]:
        """The passes that take a checkpoint and give a checkpoint."""
        return tuple(p for p in self.passes if not isinstance(p, Quantize))


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or a ``.toml`` file. Raises `UsageError` naming the file, the key and its range."""
    path = find_recipe(name_or_path)
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


def find_recipe(name: str) -> Path:
    """The file of a shipped recipe, or `name` itself if it ends in ``.toml``. Raises `UsageError`."""
    if name.endswith(".toml"):
        return Path(name)
    shipped = shipped_recipes()
    if name in shipped:
        return next(path for folder in _folders() if (path := folder / f"{name}.toml").is_file())
    raise UsageError(
        f"recipe {name!r} is unknown{_nearest(name, shipped)}: shipped are {', '.join(shipped) or 'none'}; "
        "or give a .toml file"
    )


def parse_recipe(data: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from parsed TOML. `where` names its source in errors. Raises `UsageError`."""
    _refuse_unknown(data, ("name", "pass"), where)
    name, listed = data.get("name"), data.get("pass")
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where}: name must be a word, not {name!r}")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_PASSES:
        raise UsageError(f"{where}: pass must be 1 to {MAX_PASSES} [[pass]] tables")
    passes = tuple(_parse_pass(table, f"{where}, pass {i + 1}") for i, table in enumerate(listed))
    if any(isinstance(p, Quantize) for p in passes[:-1]):
        raise UsageError(f"{where}: a quantize pass makes graphs of a checkpoint; let it be the last, and the only one")
    return Recipe(name, passes)


def _parse_pass(table: Any, where: str) -> Pass:
    kind = table.get("kind") if isinstance(table, dict) else table
    if not isinstance(table, dict) or not isinstance(kind, str) or kind not in PASSES:
        raise UsageError(f"{where}: kind is {kind!r}{_nearest(kind, PASSES)}; choose one of {', '.join(PASSES)}")
    known = _fields(PASSES[kind])
    _refuse_unknown(table, ("kind", *known), where)
    given = {key: _checked(known[key], value, f"{where}: {key}") for key, value in table.items() if key != "kind"}
    return PASSES[kind](**given)


def _fields(made: type[Pass]) -> dict[str, Field[Any]]:
    return {one.name: one for one in fields(made)}


def _checked(one: Field[Any], value: Any, where: str) -> Any:
    """`value` as the field takes it; lists of words become tuples. Raises `UsageError`."""
    about: Option = one.metadata["option"]
    default = about.default
    if isinstance(default, dict):
        if not isinstance(value, dict) or not value:
            raise UsageError(f"{where} is {value!r}, expected a table of the stage's options")
        return value
    if isinstance(default, tuple):
        are_words = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
        if not are_words or (default and not value):
            raise UsageError(f"{where} is {value!r}, expected a list of words")
        value = tuple(value)
    elif type(value) is not type(default) and (type(default), type(value)) != (float, int):
        raise UsageError(f"{where} is {value!r}, expected {TYPES[type(default)]}")
    if about.choices:
        for word in value if isinstance(value, tuple) else (value,):
            if word not in about.choices:
                hint = _nearest(word, about.choices)
                raise UsageError(f"{where} has {word!r}{hint}; choose one of {', '.join(about.choices)}")
    if about.ends and not about.ends[0] <= value <= about.ends[1]:
        raise UsageError(f"{where} is {value!r}, expected {about.ends[0]} to {about.ends[1]}")
    return value


def _refuse_unknown(table: Mapping[str, Any], keys: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(table) - set(keys))
    if unknown:
        hint = _nearest(unknown[0], keys)
        raise UsageError(f"{where}: key {unknown[0]!r} is unknown{hint}; allowed are {', '.join(keys)}")


def _nearest(word: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(word), known, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _folders() -> list[Path]:
    package = Path(__file__).resolve().parents[1]
    return [folder for folder in (package / "recipes", package.parent / "recipes") if folder.is_dir()]
