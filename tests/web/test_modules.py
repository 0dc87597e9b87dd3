"""The page's JavaScript modules in node, without a browser: what they decide, and that they read what Python writes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from fractions import Fraction

import pytest

from t2v_edge.remote.frame_header import FrameHeader
from t2v_edge.remote.protocol import CLOSE_CODES, FORMATS
from tests.web.web_samples import HERE, modules

WEB = HERE.parents[1] / "t2v_edge/web"
needs_node = pytest.mark.skipif(
    not shutil.which("node"), reason="node is not here: install Node.js 20 or later (on Debian: apt install nodejs)"
)
TIMEOUT_S = 120


@needs_node
def test_the_modules_pass_their_own_tests():
    files = sorted(str(path) for path in (HERE / "unit").glob("*.test.mjs"))
    done = subprocess.run(
        ["node", "--test", "--test-reporter=tap", *files], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"^# pass (\d+)", done.stdout, re.M)[1]) >= 35 and "# fail 0" in done.stdout


@needs_node
def test_frames_that_python_writes_are_read_as_they_were_meant(tmp_path):
    wanted = []
    for index, name in enumerate(FORMATS):
        payload = bytes(range(24)) if name == "raw" else b"\xff\xd8 picture"
        header = FrameHeader(
            name, 2**32 - 1 - index, 2**31 + index, 2**53 - 1 - index, Fraction(1001, 30000), 4, 2, len(payload)
        )
        (tmp_path / name).write_bytes(header.pack() + payload)
        wanted.append(
            {
                "format": name,
                "width": 4,
                "height": 2,
                "pts": header.pts,
                "generation": header.generation,
                "sequence": header.sequence,
                "payload": list(payload),
            }
        )
    code = (
        f"import {{ readFrame }} from {json.dumps((WEB / 'wire.js').as_uri())};"
        "import { readFileSync } from 'node:fs';"
        "const read = process.argv.slice(1).map((file) => { const bytes = readFileSync(file);"
        "  return readFrame(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)); });"
        "const plain = read.map(({ seconds, payload, ...rest }) => ({ ...rest, payload: [...payload] }));"
        "console.log(JSON.stringify(plain));"
    )
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code, *(str(tmp_path / name) for name in FORMATS)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == wanted


@pytest.mark.skipif(
    not shutil.which("node") or modules() is None,
    reason="node or typescript are not here: install Node.js, make test-web brings the rest",
)
def test_the_types_in_the_comments_hold():
    done = subprocess.run(
        [
            "node",
            str(modules() / "typescript/bin/tsc"),
            "--noEmit",
            "--allowJs",
            "--checkJs",
            "--strict",
            "--target",
            "es2022",
            "--module",
            "esnext",
            "--lib",
            "es2022,dom,dom.iterable",
            *map(str, sorted(WEB.glob("*.js"))),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout


def test_what_is_tried_again_is_named_as_the_protocol_names_it():
    codes = set(
        re.findall(
            r'"([a-z_]+)"',
            re.search(r"const TEMPORARY = new Set\((.*)\);", (WEB / "wire.js").read_text(encoding="utf-8"))[1],
        )
    )
    assert codes - {"lost", "unreachable"} == {"capacity", "stopping", "internal", "too_slow"} <= set(CLOSE_CODES)


def test_the_modules_name_only_files_that_are_here_and_no_package():
    for path in WEB.glob("*.js"):
        for name in re.findall(r'^(?:import|export) .*? from "(.*?)";', path.read_text(encoding="utf-8"), re.M | re.S):
            assert name.startswith("./") and (WEB / name).is_file(), f"{path.name} imports {name}"


def test_no_file_of_the_page_is_past_400_lines():
    long = [path.name for path in WEB.iterdir() if len(path.read_text(encoding="utf-8").splitlines()) > 400]
    assert not long


def test_what_the_tests_install_is_pinned_and_names_no_registry():
    package = json.loads((HERE / "package.json").read_text(encoding="utf-8"))
    lock = json.loads((HERE / "package-lock.json").read_text(encoding="utf-8"))
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in package["devDependencies"].values())
    assert lock["packages"][""]["devDependencies"] == package["devDependencies"]
    assert not any("resolved" in one for one in lock["packages"].values())
    assert all(one["integrity"].startswith("sha512-") for name, one in lock["packages"].items() if name)
