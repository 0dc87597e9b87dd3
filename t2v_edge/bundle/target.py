"""What a bundle may replace: a bundle, and nothing that an export did not write.

A folder must have a valid manifest, the files that it lists, and no other entry. Their bytes are not compared: a listed
file that was edited has broken the bundle, and is replaced with it. A zip must be as `write_bundle` makes it.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Optional

from t2v_edge.bundle.archive import DAMAGED, open_archive
from t2v_edge.bundle.manifest import FILE_NAME, MAX_MANIFEST_BYTES, Manifest
from t2v_edge.errors import BundleError
from t2v_edge.util.targets import TargetKind, foreign_entry

NOT_ONE = "it is not a bundle"
ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The time of all files in a zip, so that the same bundle has the same bytes."""


def bundle_target(path: Path) -> TargetKind:
    """The kind of a bundle at `path`: a zip for a name that ends with ``.zip``, else a folder."""
    return _FOLDER if Path(os.path.realpath(path)).suffix != ".zip" else _ZIP


def _folder_flaw(folder: Path) -> Optional[str]:
    manifest = folder / FILE_NAME
    if manifest.is_symlink() or not manifest.is_file() or manifest.stat().st_size > MAX_MANIFEST_BYTES:
        return f"{NOT_ONE}: it has no {FILE_NAME}"
    try:
        listed = Manifest.from_bytes(manifest.read_bytes()).files
    except BundleError:
        return f"{NOT_ONE}: its {FILE_NAME} is damaged"
    foreign = foreign_entry(folder, {FILE_NAME, *listed})
    return None if foreign is None else f"{foreign} in it is not the bundle's"


def _zip_flaw(path: Path) -> Optional[str]:
    try:
        archive = open_archive(path)
        try:
            small = 0 < archive.sizes.get(FILE_NAME, 0) <= MAX_MANIFEST_BYTES
            data = b"".join(archive.chunks(FILE_NAME)) if small else b""
        finally:
            archive.close()
        listed = Manifest.from_bytes(data).files
        with zipfile.ZipFile(path) as opened:
            entries, comment = opened.infolist(), opened.comment
    except (BundleError, *DAMAGED):
        return NOT_ONE
    names = [entry.filename for entry in entries]
    foreign = next((name for name in names if name not in listed and name != FILE_NAME), None)
    if foreign is not None:
        return f"{foreign} in it is not the bundle's"
    written = names == [FILE_NAME, *listed] and entries[0].header_offset == 0 and not comment
    return None if written and all(entry.date_time == ZIP_TIME for entry in entries) else "t2v-edge did not write it"


_FOLDER = TargetKind("the bundle", _folder_flaw, BundleError, folder=True)
_ZIP = TargetKind("the bundle", _zip_flaw, BundleError)
