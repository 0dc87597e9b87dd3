"""Bundles, the files that an export writes and every runtime reads: opening, verifying and writing them."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Union

from t2v_edge.bundle.archive import Archive, open_archive
from t2v_edge.bundle.manifest import (
    FILE_NAME,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    FileEntry,
    GraphEntry,
    Manifest,
    TokenizerSpec,
    VideoSpec,
    check_file_name,
    require,
)
from t2v_edge.bundle.onnx_check import GraphSummary, read_graph
from t2v_edge.bundle.target import ZIP_TIME, bundle_target
from t2v_edge.errors import BundleError
from t2v_edge.spec import StageSpec, TensorSpec
from t2v_edge.util.closing import Closing
from t2v_edge.util.files import atomic_file, atomic_folder

__all__ = ["Bundle", "FileEntry", "GraphEntry", "Manifest", "TokenizerSpec", "VideoSpec", "write_bundle"]


class Bundle(Closing):
    """A verified bundle, in a folder or a zip. Use it as a context manager, or `close` it.

    Opening checks the manifest, the list of files, and the size and SHA-256 of each. `graph` checks the hash again and
    walks the graph (contract, opset, external data, NaN). So no engine ever parses an unchecked byte.
    """

    def __init__(self, path: Path, archive: Archive, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._archive = archive

    @property
    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest's file. The manifest has the hashes of all other files, so this names the bundle."""
        return hashlib.sha256(b"".join(self._archive.chunks(FILE_NAME))).hexdigest()

    @classmethod
    def open(cls, path: Union[str, os.PathLike[str]]) -> Bundle:
        """Open and verify the bundle at `path`. Raises `BundleError`."""
        where = Path(path)
        try:
            archive = open_archive(where)
        except OSError as error:
            raise BundleError(f"{where} cannot be read ({error}); check its permissions") from error
        try:
            require(
                FILE_NAME in archive.sizes, f"{where} has no {FILE_NAME}; give the folder that t2v-edge export wrote"
            )
            size = archive.sizes[FILE_NAME]
            require(
                size <= MAX_MANIFEST_BYTES,
                f"{where}: {FILE_NAME} has {size} bytes, at most {MAX_MANIFEST_BYTES} are taken; export again",
            )
            manifest = Manifest.from_bytes(b"".join(archive.chunks(FILE_NAME)))
            manifest.check_files()
            bundle = cls(where, archive, manifest)
            bundle._check_listing()
            for name in manifest.files:
                bundle._check_hash(name)
            return bundle
        except BaseException:
            archive.close()
            raise

    def _check_listing(self) -> None:
        present = set(self._archive.sizes) - {FILE_NAME}
        listed = set(self.manifest.files)
        for name in sorted(listed - present):
            raise BundleError(f"{self.path}: {name} is missing; copy or export the bundle again")
        for name in sorted(present - listed):
            raise BundleError(f"{self.path}: {name} is not listed in the manifest; remove it or export again")
        for name, entry in self.manifest.files.items():
            size = self._archive.sizes[name]
            require(
                size == entry.bytes,
                f"{self.path}: {name} has {size} bytes, the manifest says {entry.bytes}; copy the bundle again",
            )

    def _check_hash(self, name: str) -> None:
        digest = hashlib.sha256()
        for chunk in self._archive.chunks(name):
            digest.update(chunk)
        self._compare(name, digest.hexdigest())

    def _compare(self, name: str, sha256: str) -> None:
        require(
            sha256 == self.manifest.files[name].sha256,
            f"{self.path}: {name} is damaged or altered (its SHA-256 differs); copy or export the bundle again",
        )

    def read(self, name: str) -> bytes:
        """The bytes of a listed file, after another check of its hash."""
        require(
            name in self.manifest.files, f"{self.path}: there is no file {name!r}; see t2v-edge inspect {self.path}"
        )
        data = b"".join(self._archive.chunks(name))
        self._compare(name, hashlib.sha256(data).hexdigest())
        return data

    def entry(self, variant: str, stage: str) -> GraphEntry:
        """The manifest's entry of a graph. Raises `BundleError` naming the variants there are."""
        graphs = self.manifest.variants.get(variant, {})
        if stage not in graphs:
            known = ", ".join(v for v, g in self.manifest.variants.items() if stage in g)
            raise BundleError(f"{self.path}: no variant {variant!r} of the {stage} stage; choose one of: {known}")
        return graphs[stage]

    def graph(self, variant: str, stage: str) -> bytes:
        """The checked ONNX model of a stage in a variant."""
        entry = self.entry(variant, stage)
        data = self.read(entry.file)
        check_graph(read_graph(data, entry.file), self.manifest.stages[stage], entry)
        return data

    def summary(self, variant: str, stage: str) -> GraphSummary:
        """Operators, weight bytes and opset of a checked graph."""
        entry = self.entry(variant, stage)
        return read_graph(self.read(entry.file), entry.file)

    @property
    def tokenizer_json(self) -> bytes:
        return self.read(self.manifest.tokenizer.file)

    def close(self) -> None:
        self._archive.close()


def check_graph(summary: GraphSummary, spec: StageSpec, entry: GraphEntry) -> None:
    """Check that a graph has the inputs and outputs of its stage's contract. Raises `BundleError`."""
    require(
        summary.opset == entry.opset,
        f"{entry.file}: opset {summary.opset}, the manifest says {entry.opset}; export the bundle again",
    )
    pairs = (("takes", summary.inputs, spec.inputs), ("gives", summary.outputs, spec.outputs))
    for verb, found, wanted in pairs:
        if sorted(found, key=_by_name) != sorted(wanted, key=_by_name):
            raise BundleError(
                f"{entry.file}: the graph {verb} {_describe(found)}, the {spec.stage} contract says "
                f"{_describe(wanted)}; export the bundle again"
            )


def _by_name(tensor: TensorSpec) -> str:
    return tensor.name


def _describe(tensors: tuple[TensorSpec, ...]) -> str:
    return ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in tensors) or "nothing"


def write_bundle(
    path: Union[str, os.PathLike[str]], manifest: Manifest, files: Mapping[str, bytes], late: bool = False
) -> Manifest:
    """Write a bundle atomically. Returns its manifest with the SHA-256 and size of each file.

    A `path` ending with ``.zip`` makes a zip, any other a folder. The same input gives the same bytes. Graphs are
    checked as in `Bundle.graph` before anything is written. An existing bundle stays whole until the new one is
    complete on the disk, and is then replaced in one step. Anything else at `path` is kept, and raises `BundleError`
    (`bundle_target`). late: see `atomic_file`.
    """
    target = Path(path)
    for name, data in files.items():
        check_file_name(name)
        require(
            len(data) <= MAX_FILE_BYTES, f"{name} has {len(data)} bytes, at most {MAX_FILE_BYTES} are taken; use fp16"
        )
    entries = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())}
    complete = replace(manifest, files=entries)
    complete.check_files()
    for graphs in complete.variants.values():
        for stage, entry in graphs.items():
            check_graph(read_graph(files[entry.file], entry.file), complete.stages[stage], entry)
    contents = {FILE_NAME: complete.to_bytes(), **{name: files[name] for name in entries}}
    kind = bundle_target(target)
    if kind.folder:
        with atomic_folder(target, kind, late) as temporary:
            _write_folder(temporary, contents)
    else:
        with atomic_file(target, kind, late) as temporary:
            _write_zip(temporary, contents)
    return complete


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def _write_zip(path: Path, contents: Mapping[str, bytes]) -> None:
    # Stored and not deflated: weights hardly shrink, and the bytes of deflate differ between zlib versions.
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, ZIP_TIME)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, data)
