"""JetPack releases, with their Jetson Linux (L4T) and their TensorRT.

Source: NVIDIA's JetPack archive and release notes. If they name several point releases, the first is here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

Version = tuple[int, ...]


@dataclass(frozen=True)
class JetPack:
    """A release. l4t: its Jetson Linux. python: the Python of the system and of TensorRT's module."""

    version: str
    l4t: Version
    tensorrt: str
    cuda: str
    python: Version


RELEASES = (
    JetPack("5.0.2", (35, 1), "8.4.1", "11.4", (3, 8)),
    JetPack("5.1", (35, 2, 1), "8.5.2", "11.4", (3, 8)),
    JetPack("5.1.1", (35, 3, 1), "8.5.2", "11.4", (3, 8)),
    JetPack("5.1.2", (35, 4, 1), "8.5.2", "11.4", (3, 8)),
    JetPack("5.1.3", (35, 5), "8.5.2", "11.4", (3, 8)),
    JetPack("5.1.4", (35, 6), "8.5.2", "11.4", (3, 8)),
    JetPack("5.1.5", (35, 6, 1), "8.5.2", "11.4", (3, 8)),
    JetPack("5.1.6", (35, 6, 4), "8.5.2", "11.4", (3, 8)),
    JetPack("6.0", (36, 3), "8.6.2", "12.2", (3, 10)),
    JetPack("6.1", (36, 4), "10.3", "12.6", (3, 10)),
    JetPack("6.2", (36, 4, 3), "10.3", "12.6", (3, 10)),
    JetPack("6.2.1", (36, 4, 4), "10.3", "12.6", (3, 10)),
    JetPack("6.2.2", (36, 5), "10.3", "12.6", (3, 10)),
    JetPack("6.2.3", (36, 5, 2), "10.3", "12.6", (3, 10)),
    JetPack("7.0", (38, 2), "10.13", "13.0", (3, 12)),
    JetPack("7.1", (38, 4), "10.13", "13.0", (3, 12)),
    JetPack("7.2", (39, 2), "10.16", "13.2", (3, 12)),
    JetPack("7.2.1", (39, 2, 1), "10.16", "13.2", (3, 12)),
)


def version_of(text: Optional[str]) -> Version:
    """The leading numbers of ``10.3.0.30-1+cuda12.5`` as (10, 3, 0, 30). Empty without numbers."""
    found = re.match(r"\s*v?(\d{1,6}(?:\.\d{1,6}){0,5})", text or "")
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def release_of(l4t: Optional[str], jetpack: Optional[str]) -> Optional[JetPack]:
    """The newest release that is not newer than this JetPack, or than this Jetson Linux if JetPack is not known.

    None if neither is known, or no release of that major version is as old.
    """
    wanted = version_of(jetpack)
    versions = [version_of(r.version) for r in RELEASES]
    if not wanted:
        wanted, versions = version_of(l4t), [r.l4t for r in RELEASES]
    found = [r for r, version in zip(RELEASES, versions) if version[:1] == wanted[:1] and version <= wanted]
    return found[-1] if found else None
