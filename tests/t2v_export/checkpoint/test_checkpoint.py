from __future__ import annotations

import json
import pickle
import struct
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from t2v_edge.errors import CheckpointError, T2VError
from t2v_export.checkpoint.checkpoint import load_checkpoint
from t2v_export.weights.tensors import pack_weights


def edit_config(folder: Path, change: object) -> None:
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)  # type: ignore[operator]
    path.write_text(json.dumps(data))


def rewrite(path: Path, change: object) -> None:
    """Change the tensors of a weights file and save it without a checksum, as another program would."""
    tensors = safetensors.torch.load_file(path)
    change(tensors)  # type: ignore[operator]
    safetensors.torch.save_file(tensors, path)


def test_checkpoint_comes_back_as_it_was_saved(make_checkpoint):
    loaded = load_checkpoint(make_checkpoint())
    torch.manual_seed(0)
    assert loaded.config.name == "tiny" and loaded.card == "# tiny\n"
    assert loaded.specs["render"].results[0].shape == (1, 16, 16, 3)
    assert not any(m.training for m in loaded.modules.values())
    saved = safetensors.torch.load_file(loaded.folder / "motion.safetensors")
    for name, tensor in loaded.motion.state_dict().items():
        assert saved[name].dtype == torch.float16
        assert torch.equal(saved[name].float(), tensor)


def test_saving_twice_gives_the_same_bytes_and_hash(make_checkpoint):
    first, second = load_checkpoint(make_checkpoint("one")), load_checkpoint(make_checkpoint("two"))
    assert first.sha256 == second.sha256


def test_saving_refuses_weights_that_overflow_float16():
    with pytest.raises(CheckpointError, match="'big' is NaN, infinite, or too large"):
        pack_weights({"big": torch.tensor([1e6])})


def test_running_variances_survive_saving(make_checkpoint):
    tiny = {"norm.running_var": torch.tensor([1e-9])}
    assert safetensors.torch.load(pack_weights(tiny))["norm.running_var"].item() == pytest.approx(1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("video"), "lacks video"),
        (lambda c: c.update(vido={}), "unknown vido"),
        (lambda c: c.update(format_version=9), "format_version is 9"),
        (lambda c: c.update(condition_size=0), "condition_size is 0"),
        (lambda c: c["video"].update(height=10**9), "height is 1000000000"),
        (lambda c: c["stages"]["motion"].update({"class": "transformer-xl"}), "unknown class 'transformer-xl'"),
        (lambda c: c["stages"]["motion"]["options"].update(hiden=3), "no option 'hiden'; it takes .*hidden"),
        (lambda c: c["stages"]["motion"]["options"].update(condition_size=3), "no option 'condition_size'"),
        (lambda c: c["stages"]["motion"]["options"].update(hidden=10**12), "beyond 1048576"),
        (lambda c: c["stages"]["motion"]["options"].update(hidden=10**6), "at most .* are allowed"),
        (lambda c: c["stages"]["motion"]["options"].update(cell="rnn"), "'rnn' is not one of gru, lstm"),
        (lambda c: c["stages"]["motion"]["options"].update(hidden="many"), "refuses its options"),
        (lambda c: c["stages"]["motion"]["options"].update(hidden=9), "cells.0.* has shape"),
        (lambda c: c["stages"]["motion"]["options"].update(layers=2), r"lacks cells\.1\."),
        (lambda c: c["stages"]["render"]["options"].update(channels=[]), "channels"),
        (lambda c: c.update(motion_size=7), "has shape"),
    ],
)
def test_config_errors_name_the_setting(make_checkpoint, change, message):
    folder = make_checkpoint()
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[1]", b"[" * 100_000, b'{"format": "other"}'])
def test_damaged_config_is_refused(make_checkpoint, text):
    folder = make_checkpoint()
    (folder / "config.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_checkpoint(folder)


def test_missing_unknown_and_misshapen_weights_are_named(make_checkpoint):
    folder = make_checkpoint()
    path = folder / "motion.safetensors"
    rewrite(path, lambda t: t.update(surplus=t.pop("project.bias")))
    with pytest.raises(CheckpointError, match=r"lacks project\.bias and has unknown surplus"):
        load_checkpoint(folder)
    rewrite(path, lambda t: t.update({"project.bias": torch.zeros(3), "surplus": torch.zeros(1)}))
    rewrite(path, lambda t: t.pop("surplus"))
    with pytest.raises(CheckpointError, match=r"'project\.bias' has shape \(3,\).* want \(5,\)"):
        load_checkpoint(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(make_checkpoint, value):
    folder = make_checkpoint()
    rewrite(folder / "render.safetensors", lambda t: t["stem.linear.bias"].__setitem__(3, value))
    with pytest.raises(CheckpointError, match=r"render: weight 'stem\.linear\.bias' holds 1 NaN or infinite"):
        load_checkpoint(folder)


def test_truncated_weights_are_refused_at_every_length(make_checkpoint):
    folder = make_checkpoint()
    path = folder / "motion.safetensors"
    whole = path.read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"motion\.safetensors is truncated"):
            load_checkpoint(folder)


def test_every_flipped_bit_is_noticed(make_checkpoint):
    folder = make_checkpoint()
    path = folder / "motion.safetensors"
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    padding = len(whole[8:header]) - len(whole[8:header].rstrip())
    places = [*range(0, header - padding, 37), *range(header, len(whole), 53)]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            loaded = load_checkpoint(folder)
        except T2VError:
            continue
        # a flip may turn one way to write a header into another; never weights into other weights
        path.write_bytes(whole)
        before = load_checkpoint(folder).motion.state_dict()
        assert all(torch.equal(t, before[n]) for n, t in loaded.motion.state_dict().items()), place


def test_oversized_header_and_config_are_refused_before_they_are_read(make_checkpoint):
    folder = make_checkpoint()
    path = folder / "motion.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 40) + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="header of 1099511627776 bytes"):
        load_checkpoint(folder)
    (folder / "config.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(CheckpointError, match=r"config\.json has 1048577 bytes, at most"):
        load_checkpoint(folder)


def test_oversized_weights_are_refused_before_they_are_read(make_checkpoint):
    folder = make_checkpoint()
    with open(folder / "motion.safetensors", "r+b") as file:
        file.truncate(3 << 30)  # sparse: takes no room
    with pytest.raises(CheckpointError, match="at most 2147483648 are allowed"):
        load_checkpoint(folder)


def test_links_out_of_the_folder_are_refused(make_checkpoint, tmp_path):
    folder = make_checkpoint()
    path = folder / "motion.safetensors"
    path.rename(tmp_path / "elsewhere.safetensors")
    path.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="symbolic link"):
        load_checkpoint(folder)
    path.unlink()
    (tmp_path / "elsewhere.safetensors").rename(path)
    (folder / "encoder").rename(tmp_path / "encoder")
    (folder / "encoder").symlink_to(tmp_path / "encoder")
    with pytest.raises(CheckpointError, match="symbolic link"):
        load_checkpoint(folder)


def test_a_fifo_is_not_waited_for(make_checkpoint):
    import os

    folder = make_checkpoint()
    (folder / "motion.safetensors").unlink()
    os.mkfifo(folder / "motion.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["../evil:Stage", "/tmp/evil:Stage", "a.b:Stage", "evil:", "os.path:join:x"])
def test_class_names_cannot_leave_the_folder(make_checkpoint, name):
    folder = make_checkpoint()
    edit_config(folder, lambda c: c["stages"]["motion"].update({"class": name}))
    with pytest.raises(CheckpointError, match="not module:Class"):
        load_checkpoint(folder, allow_code=True)


def test_pickled_code_is_not_run(make_checkpoint, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    folder = make_checkpoint()
    (folder / "motion.safetensors").unlink()
    for save in (torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))):
        save({"w": Evil()}, folder / "motion.pt")
        with pytest.raises(CheckpointError, match=r"motion\.pt is not a plain state_dict"):
            load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_plain_pt_weights_load(make_checkpoint):
    folder = make_checkpoint()
    tensors = safetensors.torch.load_file(folder / "motion.safetensors")
    torch.save(tensors, folder / "motion.pt")
    with pytest.raises(CheckpointError, match="both motion.safetensors and motion.pt"):
        load_checkpoint(folder)
    (folder / "motion.safetensors").unlink()
    loaded = load_checkpoint(folder).motion.state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in tensors.items())


def test_damaged_tokenizer_is_refused(make_checkpoint):
    folder = make_checkpoint()
    path = folder / "encoder" / "tokenizer.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is damaged"):
        load_checkpoint(folder)


CODE = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
from t2v_export.models.recurrent import RecurrentMotion
class Mine(RecurrentMotion):
    def __init__(self, **options):
        super().__init__(hidden=8, noise=2, start="normal", **options)
class Wrong: pass
"""


def test_user_code_is_not_touched_unless_allowed(make_checkpoint):
    folder = make_checkpoint()
    (folder / "mine.py").write_text(CODE)
    edit_config(folder, lambda c: c["stages"].update(motion={"class": "mine:Mine"}))
    with pytest.raises(CheckpointError, match="pass --allow-code if you trust it"):
        load_checkpoint(folder)
    assert not (folder / "imported").exists()
    before = list(sys.path)
    assert type(load_checkpoint(folder, allow_code=True).motion).__name__ == "Mine"
    assert (folder / "imported").exists()
    assert sys.path == before and "mine" not in sys.modules
    edit_config(folder, lambda c: c["stages"].update(motion={"class": "mine:Wrong"}))
    with pytest.raises(CheckpointError, match=r"no torch\.nn\.Module class 'Wrong'"):
        load_checkpoint(folder, allow_code=True)
