"""The user's cache folder. Everything in it can be made again, and is checked before use."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Optional

VARIABLE = "T2V_EDGE_CACHE"


def cache_root() -> Path:
    """``$T2V_EDGE_CACHE`` if it is set, else the platform's folder for caches, such as ``~/.cache/t2v-edge``.

    XDG_CACHE_HOME counts if it is absolute (XDG Base Directory Specification 0.8). Raises `RuntimeError` if the user
    has no home.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "t2v-edge" / "cache"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):
        return Path(xdg) / "t2v-edge"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "t2v-edge"
    return Path.home() / ".cache" / "t2v-edge"


def cache_folder(name: str) -> Optional[Path]:
    """The folder `name` in the cache, made with mode 0700. None if it cannot be made or is not ours: do without.

    Others may write in a shared root. They can put a folder or a link there, but it belongs to them.
    """
    try:
        root = cache_root()
        root.parent.mkdir(parents=True, exist_ok=True)
        folder = root / name
        for path in (root, folder):
            path.mkdir(mode=0o700, exist_ok=True)
        if sys.platform != "win32":
            if {folder.lstat().st_uid, folder.stat().st_uid} != {os.geteuid()}:
                return None
            if stat.S_IMODE(folder.stat().st_mode) & 0o077:
                folder.chmod(0o700)
    except (OSError, RuntimeError):
        return None
    return folder
