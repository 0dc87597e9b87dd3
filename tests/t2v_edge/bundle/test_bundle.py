from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from t2v_edge.bundle.bundle import Bundle
from t2v_edge.bundle.golden import Golden, verify_bundle
from t2v_edge.bundle.manifest import MAX_MANIFEST_BYTES, GraphEntry, Manifest
from t2v_edge.errors import BundleError
from t2v_edge.pipeline import Pipeline


def tree(folder: Path) -> dict:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def change_manifest(folder: Path, change) -> None:
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.fixture
def bundle(tiny, tmp_path):
    return tiny.write(tmp_path / "bundle")


def zipped(folder: Path, path: Path, prefix: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in tree(folder).items():
            archive.writestr(prefix + name, data)
    return path


# -- what is whole opens ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
def test_what_was_written_is_read(tiny, tmp_path, name):
    path = tiny.write(tmp_path / name)
    with Bundle.open(path) as bundle:
        verify_bundle(bundle)
        assert bundle.tokenizer_json == tiny.files["tokenizer.json"]
        assert bundle.graph("fp16", "render") == tiny.files["fp16/render.onnx"]
        assert Golden.read(bundle).arrays["condition"].shape == (3, 4)
        assert bundle.manifest.stages == tiny.manifest.stages
        entry = bundle.manifest.files["README.md"]
        assert (entry.sha256, entry.bytes) == (hashlib.sha256(b"# tiny\n").hexdigest(), 7)


def test_a_manifest_survives_the_round_trip(bundle):
    assert Manifest.from_bytes(data := (bundle / "manifest.json").read_bytes()).to_bytes() == data


@pytest.mark.parametrize("prefix, method", [("", zipfile.ZIP_DEFLATED), ("my_bundle/", zipfile.ZIP_STORED)])
def test_a_zip_made_by_hand_opens_with_or_without_its_top_folder(bundle, tmp_path, prefix, method):
    with Bundle.open(zipped(bundle, tmp_path / "b.zip", prefix, method)) as opened:
        verify_bundle(opened)


@pytest.mark.parametrize("name", ["a", "a.zip"])
def test_the_same_input_gives_the_same_bytes(tiny, tmp_path, name):
    one, other = tiny.write(tmp_path / "1" / name), tiny.write(tmp_path / "2" / name)
    if one.is_dir():
        assert tree(one) == tree(other)
    else:
        assert one.read_bytes() == other.read_bytes()


# -- what is not, is refused ------------------------------------------------------------------------------------


def test_a_missing_bundle_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(BundleError, match="t2v-edge export"):
        Bundle.open(tmp_path / "nowhere")


def test_every_file_truncated_at_any_point_is_refused(bundle):
    for name, data in tree(bundle).items():
        for cut in {0, 1, len(data) // 3, len(data) // 2, len(data) - 2}:
            (bundle / name).write_bytes(data[:cut])
            with pytest.raises(BundleError):
                Bundle.open(bundle)
        (bundle / name).write_bytes(data)
    Bundle.open(bundle).close()


def test_a_flipped_bit_in_any_file_is_refused_by_name(bundle):
    for name, data in tree(bundle).items():
        if name == "manifest.json":
            continue
        for at in (0, len(data) // 2, len(data) - 1):
            damaged = bytearray(data)
            damaged[at] ^= 0x10
            (bundle / name).write_bytes(damaged)
            with pytest.raises(BundleError, match=f"{name} is damaged"):
                Bundle.open(bundle)
        (bundle / name).write_bytes(data)


def test_a_file_changed_after_opening_is_refused_before_an_engine_sees_it(bundle):
    with Bundle.open(bundle) as opened:
        path = bundle / "fp32/text.onnx"
        path.write_bytes(bytes(len(path.read_bytes())))
        with pytest.raises(BundleError, match="SHA-256"):
            opened.graph("fp32", "text")


def test_a_zip_truncated_or_flipped_anywhere_never_opens_as_something_else(bundle, tmp_path):
    data = zipped(bundle, tmp_path / "b.zip", method=zipfile.ZIP_DEFLATED).read_bytes()
    damaged = tmp_path / "damaged.zip"
    for cut in range(0, len(data), len(data) // 40):
        damaged.write_bytes(data[:cut])
        with pytest.raises(BundleError):
            Bundle.open(damaged)
    manifest = (bundle / "manifest.json").read_bytes()
    for at in range(0, len(data), len(data) // 150):
        flipped = bytearray(data)
        flipped[at] ^= 0x08
        damaged.write_bytes(flipped)
        try:  # some bytes of a zip, such as times, carry nothing
            with Bundle.open(damaged) as opened:
                assert opened.manifest.to_bytes() == manifest
        except BundleError:
            pass


def test_missing_and_unlisted_files_are_named(bundle):
    (bundle / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match="extra.bin is not listed"):
        Bundle.open(bundle)
    (bundle / "extra.bin").unlink()
    (bundle / "fp16/text.onnx").unlink()
    with pytest.raises(BundleError, match="fp16/text.onnx is missing"):
        Bundle.open(bundle)


CLIMBING = ["../outside.onnx", "/etc/passwd", "a/../../b", "C:\\x", "a\\b", "", ".hidden", "a//b", "x\0y"]


@pytest.mark.parametrize("name", CLIMBING)
def test_names_that_climb_out_are_refused_in_the_manifest(bundle, name):
    def in_files(data):
        data["files"][name] = {"sha256": "0" * 64, "bytes": 1}

    def in_variant(data):
        data["variants"]["fp32"]["text"]["file"] = name

    original = (bundle / "manifest.json").read_text()
    for change in (in_files, in_variant):
        change_manifest(bundle, change)
        with pytest.raises(BundleError, match="not allowed"):
            Bundle.open(bundle)
        (bundle / "manifest.json").write_text(original)


@pytest.mark.parametrize("name", ["../evil", "/abs", "a/../../b", "a\\..\\b"])
def test_names_that_climb_out_are_refused_in_a_zip(bundle, tmp_path, name):
    path = zipped(bundle, tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(BundleError, match="not (an )?allowed"):
        Bundle.open(path)


def test_symbolic_links_are_refused_in_folder_and_zip(bundle, tmp_path):
    path = zipped(bundle, tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("link.onnx")
        entry.create_system, entry.external_attr = 3, 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(BundleError, match="link"):
        Bundle.open(path)
    shutil.move(bundle / "README.md", tmp_path / "elsewhere.md")
    (bundle / "README.md").symlink_to(tmp_path / "elsewhere.md")
    with pytest.raises(BundleError, match="README.md is a symbolic link"):
        Bundle.open(bundle)


def test_special_files_are_refused_without_being_opened(bundle):
    (bundle / "README.md").unlink()
    os.mkfifo(bundle / "README.md")  # opening it for reading would block for ever
    with pytest.raises(BundleError, match="not a regular file"):
        Bundle.open(bundle)


def test_a_name_twice_in_a_zip_is_refused(bundle, tmp_path):
    path = zipped(bundle, tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning):
        archive.writestr("README.md", b"other")
    with pytest.raises(BundleError, match="README.md stands twice"):
        Bundle.open(path)


def test_a_zip_bomb_is_refused_by_what_it_declares(bundle, tmp_path):
    path = zipped(bundle, tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.bin", bytes(8 << 20))
    with pytest.raises(BundleError, match="zip bomb"):
        Bundle.open(path)


def test_a_zip_that_unpacks_to_more_than_it_declares_is_refused(bundle, tmp_path):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in tree(bundle).items():
            archive.writestr(name, data + (bytes(100_000) if name == "README.md" else b""))
    data = path.read_bytes()
    path.write_bytes(data.replace((100_007).to_bytes(4, "little"), (7).to_bytes(4, "little")))
    with pytest.raises(BundleError, match="README.md"):
        Bundle.open(path)


def test_overlapping_zip_entries_are_refused(bundle, tmp_path):
    path = zipped(bundle, tmp_path / "b.zip")
    data = bytearray(path.read_bytes())
    # Every central directory entry points at the first file and claims its 28 kB: Fifield's bomb in small.
    biggest = max(len(d) for d in tree(bundle).values())
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        data[at + 20 : at + 28] = (biggest * 3).to_bytes(4, "little") * 2
        at += 4
    path.write_bytes(data)
    with pytest.raises(BundleError, match="overlap"):
        Bundle.open(path)


def test_an_oversized_manifest_is_refused_unread(bundle):
    with open(bundle / "manifest.json", "r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match="at most"):
        Bundle.open(bundle)


def test_sizes_beyond_the_limits_are_refused(bundle):
    def huge(data):
        data["files"]["README.md"]["bytes"] = 1 << 40

    change_manifest(bundle, huge)
    with pytest.raises(BundleError, match="bytes is 1099511627776"):
        Bundle.open(bundle)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(bundle, text):
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"max_abs": 0.0', f'"max_abs": {text}'))
    with pytest.raises(BundleError, match="not valid JSON"):
        Bundle.open(bundle)


MALFORMED = ["", "[]", "null", "{", '{"format": "other"}', '{"a": 1, "a": 2}', "[" * 100_000, "\ufeff{}"]


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_manifest_is_refused(bundle, text):
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(bundle)


def paths_of(value, prefix=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*prefix, key)
            yield from paths_of(item, (*prefix, key))
    elif isinstance(value, list):
        for key, item in enumerate(value):
            yield from paths_of(item, (*prefix, key))


def test_layers_kept_in_float32_survive_the_round_trip():
    entry = GraphEntry("fp16/render.onnx", "fp16", 17, ("/render/mix/Gemm", "/render/up/Conv"))
    assert GraphEntry.from_json(json.loads(json.dumps(entry.to_json()))) == entry
    assert "float32_layers" not in GraphEntry("fp16/render.onnx", "fp16", 17).to_json()


def test_costs_of_a_graph_survive_the_round_trip_and_are_absent_where_unknown():
    entry = GraphEntry("fp16/render.onnx", "fp16", 17, macs=0, weight_bytes=12, launches=3)
    assert entry.to_json() == {
        "file": "fp16/render.onnx",
        "precision": "fp16",
        "opset": 17,
        "macs": 0,
        "weight_bytes": 12,
        "launches": 3,
    }
    assert GraphEntry.from_json(json.loads(json.dumps(entry.to_json()))) == entry
    assert GraphEntry.from_json({"file": "fp16/render.onnx", "precision": "fp16", "opset": 17}).macs is None


@pytest.mark.parametrize("key", ["macs", "weight_bytes", "activation_bytes", "launches"])
@pytest.mark.parametrize("value", [-1, 1.5, "9", None, True, (1 << 50) + 1])
def test_costs_that_are_no_count_are_refused(bundle, key, value):
    change_manifest(bundle, lambda data: data["variants"]["fp16"]["render"].update({key: value}))
    with pytest.raises(BundleError, match=f"{key} is .*expected an integer"):
        Bundle.open(bundle)


@pytest.mark.parametrize("layers", ["Conv", [1], [""], ["x" * 1001], ["x"] * 4097, {"a": 1}, None])
def test_layers_that_are_no_list_of_names_are_refused(bundle, layers):
    change_manifest(bundle, lambda data: data["variants"]["fp16"]["render"].update(float32_layers=layers))
    with pytest.raises(BundleError, match="float32_layers must be a list"):
        Bundle.open(bundle)


def test_any_value_of_the_manifest_replaced_by_nonsense_opens_or_is_a_bundle_error(bundle):
    original = json.loads((bundle / "manifest.json").read_text())
    refused = 0
    for path in list(paths_of(original)):
        for nonsense in (None, -1, "x" * 300, [], {}, [[1]], True, 1.5):
            data = json.loads(json.dumps(original))
            holder = data
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = nonsense
            try:
                Manifest.from_json(data).check_files()
            except BundleError:
                refused += 1
    assert refused > 500


def test_any_key_left_out_of_the_manifest_is_named(bundle):
    original = json.loads((bundle / "manifest.json").read_text())
    for key in original:
        if key in ("golden", "condition_groups"):  # bundles of before may lack these
            continue
        data = {k: v for k, v in original.items() if k != key}
        with pytest.raises(BundleError, match=key if key != "format" else "manifest"):
            Manifest.from_json(data)


def test_a_newer_schema_says_upgrade(bundle):
    change_manifest(bundle, lambda data: data.update(schema_version=2))
    with pytest.raises(BundleError, match="upgrade"):
        Bundle.open(bundle)


def test_a_variant_that_names_an_unlisted_file_is_refused(bundle):
    change_manifest(bundle, lambda data: data["variants"]["fp16"]["text"].update(file="fp16/other.onnx"))
    with pytest.raises(BundleError, match="fp16/other.onnx, which is not among its files"):
        Bundle.open(bundle)


def test_stages_that_do_not_fit_together_are_refused(bundle):
    change_manifest(bundle, lambda data: data["stages"]["motion"]["feeds"][0].update(shape=[1, 5]))
    with pytest.raises(BundleError, match=r"takes condition of shape \(1, 5\)"):
        Bundle.open(bundle)


# -- graphs -----------------------------------------------------------------------------------------------------


def write_unchecked(tiny, path: Path, name: str, data: bytes) -> Path:
    """A bundle with a graph that `write_bundle` would refuse, its manifest agreeing with it."""
    tiny.write(path)
    (path / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    change_manifest(path, lambda m: m["files"].update({name: entry}))
    return path


def test_nan_weights_are_refused_by_name_before_an_engine_sees_them(tiny, tmp_path, build_graph):
    def poison(nodes, weights):
        weights["w"][3, 100] = np.nan

    data = build_graph("render", poison)
    path = write_unchecked(tiny, tmp_path / "b", "fp32/render.onnx", data)
    with Bundle.open(path) as bundle, pytest.raises(BundleError, match=r"fp32/render.onnx: weight 'w' holds NaN"):
        bundle.graph("fp32", "render")
    with pytest.raises(BundleError, match="holds NaN"):
        Pipeline.open(path)
    tiny.files["fp32/render.onnx"] = data
    with pytest.raises(BundleError, match="holds NaN"):
        tiny.write(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_graph_that_breaks_its_contract_is_refused(tiny, tmp_path, build_graph):
    path = write_unchecked(tiny, tmp_path / "b", "fp32/render.onnx", build_graph("motion"))
    with Bundle.open(path) as bundle, pytest.raises(BundleError, match="the render contract says"):
        bundle.graph("fp32", "render")
    tiny.variants["fp32"]["text"] = GraphEntry("fp32/text.onnx", "fp32", 18)
    with pytest.raises(BundleError, match="opset 17, the manifest says 18"):
        tiny.write(tmp_path / "c")


def test_an_unknown_variant_names_those_there_are(bundle):
    with Bundle.open(bundle) as opened, pytest.raises(BundleError, match="fp32, fp16"):
        opened.graph("int8", "text")


def test_golden_vectors_are_never_unpickled(tiny, tmp_path):
    np.savez(golden := io.BytesIO(), evil=np.array([object()], dtype=object))
    tiny.files["golden.npz"] = golden.getvalue()
    with Bundle.open(tiny.write(tmp_path / "b")) as bundle, pytest.raises(BundleError, match="golden.npz cannot"):
        verify_bundle(bundle)
