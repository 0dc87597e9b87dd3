"""Caption sets: text files with one caption a line, or JSON lines with a ``text`` each.

Four sets are shipped. ``en`` and ``zh`` have 256 captions each, of the reference model's training grammar. ``corpus``
has 8,000 of them, to train students with. ``heldout`` has its 1,200 held-out captions, for evaluation only. They lie in
`calibration/captions` of the source tree and in `t2v_calibration/captions` of an installed package.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Union

from t2v_edge.errors import CaptionError

MAX_BYTES = 4 << 20
MAX_CAPTIONS = 20_000
MAX_CHARACTERS = 2_000
SUFFIXES = (".txt", ".jsonl")


def load_captions(name_or_path: Union[str, os.PathLike[str]]) -> tuple[str, ...]:
    """The captions of a shipped set, by name, or of a ``.txt`` or ``.jsonl`` file, in order.

    Blank lines are skipped, and in a ``.txt`` lines that begin with ``#``. Surrounding white space is cut. A file may
    hold 4 MiB and 20,000 captions of 2,000 characters. Raises `CaptionError` if the set or file does not exist, is not
    UTF-8 text of that form, or passes a bound.
    """
    path = find_captions(os.fspath(name_or_path))
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise CaptionError(f"{path} is larger than {MAX_BYTES} bytes, the most for a caption set; split it")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise CaptionError(f"{path} cannot be read: {error.strerror}; give a readable text file") from error
    except UnicodeDecodeError as error:
        raise CaptionError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    captions = []
    for number, line in enumerate(text.split("\n"), 1):
        caption = _caption(line.strip(), f"{path}, line {number}", path.suffix == ".jsonl")
        if caption:
            captions.append(caption)
        if len(captions) > MAX_CAPTIONS:
            raise CaptionError(f"{path} holds more than {MAX_CAPTIONS} captions; split it")
    if not captions:
        raise CaptionError(f"{path} holds no captions; write one a line")
    return tuple(captions)


def shipped_sets() -> tuple[str, ...]:
    """The names that `load_captions` takes, sorted."""
    return tuple(sorted({path.stem for folder in _folders() for path in folder.iterdir() if path.suffix in SUFFIXES}))


def _folders() -> list[Path]:
    here = Path(__file__).resolve().parent
    return [folder for folder in (here / "captions", here.parent / "captions") if folder.is_dir()]


def find_captions(name: str) -> Path:
    """The file of a shipped set where a bare name is given, else the file itself; raises `CaptionError`."""
    path = Path(name)
    if path.suffix in SUFFIXES:
        if path.is_file():
            return path
        raise CaptionError(f"there is no caption file {path}; check the path")
    if path.name == name:
        for folder in _folders():
            for suffix in SUFFIXES:
                if (folder / (name + suffix)).is_file():
                    return folder / (name + suffix)
    sets = ", ".join(shipped_sets()) or "none found"
    raise CaptionError(f"no caption set {name!r}: shipped are {sets}; or give a path that ends in .txt or .jsonl")


def _caption(line: str, where: str, is_json: bool) -> str:
    """The caption of a stripped line, or nothing; raises `CaptionError` that names the place."""
    if not line or (line.startswith("#") and not is_json):
        return ""
    caption = line
    if is_json:
        try:
            caption = json.loads(line)["text"].strip()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CaptionError(f'{where}: expected JSON like {{"text": "a man is running"}}') from error
    if not caption or "\x00" in caption:
        raise CaptionError(f"{where}: the caption is empty or holds a NUL; correct the line")
    if len(caption) > MAX_CHARACTERS:
        raise CaptionError(f"{where}: {len(caption)} characters, at most {MAX_CHARACTERS} are allowed; shorten it")
    return caption
