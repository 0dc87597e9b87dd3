"""The script of `make test-aarch64` as far as it goes without an emulator: what it refuses and why."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / "aarch64/run.sh"
USED = ("bash", "basename", "cat", "dirname", "grep", "sed", "mkdir", "uname", "unshare", "flock", "chroot", "seq")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="debootstrap runs on Linux")


def run(tmp_path, *arguments, user=0, without=(), machine="aarch64", script=SCRIPT):
    """The script on a PATH of its own: a host of this user id and architecture that has debootstrap, or not."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in USED:
        if name not in without and (found := shutil.which(name)):
            (tools / name).symlink_to(found)
    for name, says in (("id", user), ("uname", machine), ("debootstrap", "")):
        if name not in without:
            (tools / name).unlink(missing_ok=True)
            (tools / name).write_text(f"#!{shutil.which('sh')}\necho {says}\n")
            (tools / name).chmod(0o755)
    environment = {"PATH": str(tools), "HOME": str(tmp_path), "T2V_EDGE_AARCH64": str(tmp_path / "userland")}
    done = subprocess.run(
        [shutil.which("bash"), str(script), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert not os.path.exists(tmp_path / "userland"), "nothing is made before all is known to be here"
    return done.returncode, done.stderr


def test_a_user_is_told_to_be_root(tmp_path):
    assert run(tmp_path, "--check", user=1000) == (
        1,
        "aarch64: making a userland needs root: sudo -E make test-aarch64\n",
    )


def test_a_missing_tool_is_named_with_its_package(tmp_path):
    code, said = run(tmp_path, "--check", without=("debootstrap",))
    assert code == 1 and said == "aarch64: debootstrap is missing: apt install debootstrap\n"


def test_no_bundle_or_one_without_int8_is_refused(tmp_path):
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").is_file():
        pytest.skip("Debian's keys are not here, and their absence comes first")
    for number, (manifest, words) in enumerate(((None, "t2v-edge export"), ('{"precision": "fp32"}', "--recipe fast"))):
        place = tmp_path / str(number)
        bundle = place / "bundle"
        bundle.mkdir(parents=True)
        if manifest is not None:
            (bundle / "manifest.json").write_text(manifest)
        code, said = run(place, bundle)
        assert code == 1 and words in said


def test_without_an_argument_the_script_says_what_it_takes(tmp_path):
    code, said = run(tmp_path)
    assert code == 1 and "give a bundle folder" in said


def test_an_emulator_that_is_not_registered_is_named(tmp_path):
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").is_file():
        pytest.skip("Debian's keys are not here, and their absence comes first")
    copy = tmp_path / "run.sh"
    copy.write_text(SCRIPT.read_text().replace("/proc/sys/fs/binfmt_misc", str(tmp_path / "nothing-registered")))
    code, said = run(tmp_path, "--check", machine="x86_64", script=copy)
    assert code == 1 and "apt install qemu-user-static binfmt-support" in said
