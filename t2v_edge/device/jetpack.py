"""JetPack releases: which Jetson Linux (L4T) each stands on, and which TensorRT it brings.

From NVIDIA's JetPack archive and the release notes of each; where both name more than one point release, the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional

Version = tuple[int, ...]


@dataclass(frozen=True)
class JetPack:
    """A release: its Jetson Linux, its TensorRT and CUDA, and the Python that the system and TensorRT's module have."""

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
    """The leading numbers of ``10.3.0.30-1+cuda12.5`` as (10, 3, 0, 30); empty where there are none."""
    found = re.match(r"\s*v?(\d{1,6}(?:\.\d{1,6}){0,5})", text or "")
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def release_of(l4t: Optional[str], jetpack: Optional[str]) -> Optional[JetPack]:
    """The newest release that is not newer than this JetPack or, where that is not known, than this Jetson Linux.

    None where neither is known or both are older or of a line that is not listed.
    """
    if version_of(jetpack):
        wanted, key = version_of(jetpack), [version_of(r.version) for r in RELEASES]
        lines = [version[:1] for version in key]
    else:
        wanted, key = version_of(l4t), [r.l4t for r in RELEASES]
        lines = [version[:1] for version in key]
    found = [r for r, version, line in zip(RELEASES, key, lines) if line == wanted[:1] and version <= wanted]
    return found[-1] if found else None
