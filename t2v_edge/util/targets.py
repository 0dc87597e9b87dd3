"""Where commands write: at a target that is absent, empty or wholly ours. Anything else is a person's, and stays."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Callable, Optional, Union

from t2v_edge.errors import SinkError, T2VError

MAX_JSON_BYTES = 64 << 20
"""A larger JSON file is not read. It counts as a person's."""


@dataclass(frozen=True)
class TargetKind:
    """A kind of file or folder that is written.

    name: such as "a bundle". flaw: why a path is not wholly ours, None if it is. error: raised for a refused target.
    private: an entry of a cache. It is for its user alone, and replaces what is there.
    """

    name: str
    flaw: Callable[[Path], Optional[str]]
    error: type[T2VError] = SinkError
    folder: bool = False
    private: bool = False


def _replaceable(path: Path) -> Optional[str]:
    return None


CACHE_FILE = TargetKind("a cached file", _replaceable, private=True)
CACHE_FOLDER = TargetKind("a cached folder", _replaceable, folder=True, private=True)
SCRIPT_FILE = TargetKind("a script's result", _replaceable)
"""A file of a script of this repository, which replaces its own result. No command writes this kind."""


def check_targets(
    outputs: Iterable[tuple[Optional[Path], TargetKind]], inputs: Iterable[Union[str, Path, None]] = ()
) -> None:
    """Check all outputs of a command before its work. Absent arguments are None.

    An output must not be an input or another output, lie in one, or hold one. Raises the error of the output's kind.
    """
    others = [Path(path) for path in inputs if path is not None and os.path.exists(path)]
    for path, kind in outputs:
        if path is None:
            continue
        check_target(path, kind)
        for other in others:
            if _overlap(path, other):
                raise kind.error(f"{path} is left alone: {other} is used as well; give another name for {kind.name}")
        others.append(path)


def check_target(target: Path, kind: TargetKind) -> None:
    """Check that `target` is absent, empty or wholly ours, and that its folder may be written."""
    if kind.private:
        return
    try:
        blocked = _blocked(Path(os.path.realpath(target)))
        flaw = None if blocked else _flaw(target, kind)
    except OSError as error:
        blocked, flaw = str(error), None
    if blocked:
        raise kind.error(f"{target} cannot be written ({blocked}); give another place for {kind.name}")
    if flaw:
        raise kind.error(f"{target} is left alone: {flaw}; give another name for {kind.name}")


def _overlap(one: Path, other: Path) -> bool:
    if one.exists() and other.exists() and os.path.samefile(one, other):
        return True
    first, second = (Path(os.path.realpath(path)) for path in (one, other))
    return first == second or first in second.parents or second in first.parents


def _blocked(real: Path) -> Optional[str]:
    """Why no sibling of `real` can be made."""
    parent = next(path for path in (*real.parents, real) if os.path.lexists(path))
    if not parent.is_dir():
        return f"{parent} is not a folder"
    return None if os.access(parent, os.W_OK | os.X_OK) else f"{parent} is not writable"


def _flaw(target: Path, kind: TargetKind) -> Optional[str]:
    try:
        found = os.stat(target)
    except FileNotFoundError:
        return None
    real = Path(os.path.realpath(target))
    if stat.S_ISDIR(found.st_mode):
        if not kind.folder:
            return "it is a folder"
        here = Path(os.path.realpath(os.curdir))
        if real == here or real in here.parents:
            return "the working directory is it or lies in it"
        if os.path.ismount(real):
            return "it is a mount point"
        with os.scandir(real) as entries:
            empty = next(entries, None) is None
    else:
        if kind.folder or not stat.S_ISREG(found.st_mode):
            return "it is a file" if kind.folder else "it is not a regular file"
        empty = found.st_size == 0
    return None if empty else kind.flaw(real)


def foreign_entry(folder: Path, names: Collection[str]) -> Optional[str]:
    """The first entry of a folder, at any depth, that is neither a regular file of `names` nor a folder above one."""
    above = {str(parent) for name in names for parent in PurePosixPath(name).parents}

    def walk(path: Path, prefix: str) -> Optional[str]:
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = prefix + entry.name
                if entry.is_dir(follow_symlinks=False) and name in above:
                    inner = walk(path / entry.name, name + "/")
                    if inner is not None:
                        return inner
                elif name not in names or not entry.is_file(follow_symlinks=False):
                    return name
        return None

    return walk(folder, "")


def json_target(name: str, *formats: str, error: type[T2VError] = SinkError) -> TargetKind:
    """A kind of JSON file, recognised by its ``format``."""

    def flaw(path: Path) -> Optional[str]:
        return None if json_format(path) in formats else f"it is not {name}"

    return TargetKind(name, flaw, error)


def json_format(path: Path) -> Optional[str]:
    """The ``format`` of a JSON object in a file; None for anything else."""
    with path.open("rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    try:
        # Numbers stay text: to read a long one takes time that grows with its square.
        value = json.loads(data, parse_int=str, parse_float=str) if len(data) <= MAX_JSON_BYTES else None
    except (ValueError, RecursionError):
        return None
    found = value.get("format") if isinstance(value, dict) else None
    return found if isinstance(found, str) else None
