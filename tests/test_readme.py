"""README.md is walked: its commands run as they are printed.

There are two walks. The quick one runs in every test run, with the packages of this checkout, in a folder laid out like
a clone. There a FP32 bundle of random weights stands in for the bundles of README.md. This walk shows that a line works
as printed, and not what the model makes. The slow one clones the repository, makes the
environment that README.md names, and runs the lines in order with the committed checkpoints. `NOT_QUICK` and `NOT_HERE`
name the lines that a walk leaves out, each with its reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from t2v_edge.cli import main, make_parser
from tests.t2v_export.conftest import build_checkpoint

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOST_LINES = 90
TIMEOUT_S = 3600
COMMANDS = {
    "export",
    "compress",
    "compare",
    "build",
    "run",
    "bench",
    "doctor",
    "serve",
    "inspect",
    "devices",
}

# Of the quick walk: too long, or of the environment that only the slow walk makes.
NOT_QUICK = {
    "t2v-edge export checkpoints/small --recipe fast --device cpu -o out/small.bundle": "calibrates for minutes",
    "python3 -m venv .venv && . .venv/bin/activate": "makes the environment of the slow walk",
    "pip install -e '.[cpu,video,serve,export]'": "fills the environment of the slow walk",
    "t2v-edge export checkpoints/small --recipe fast --ship chosen -o out/chosen.bundle": "likewise",
    "t2v-edge export checkpoints/small --recipe fast --device jetson-orin-nano-8gb -o out/orin.bundle": "likewise",
    "t2v-edge bench out/small.bundle": "plays for half a minute",
    "t2v-edge compare out/small.bundle --evaluator checkpoints/reference/evaluator -o out/report": "takes minutes",
}
# Of both walks: needs hardware, or hours.
NOT_HERE = {
    "t2v-edge compress checkpoints/reference --recipe small -o out/my-small": "needs a GPU for half an hour",
    "t2v-edge build out/orin.bundle": "needs TensorRT and an NVIDIA GPU",
}


def lines_of(page: str) -> list[str]:
    """The commands of a page's indented blocks, in order, without their comments."""
    outside = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s+#.*", "", line).strip() for line in re.findall(r"^ {4}(\S.*)$", outside, re.MULTILINE)]


def snippets_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)


LINES = lines_of(README)
QUICK = [line for line in LINES if line not in {**NOT_QUICK, **NOT_HERE}]


def is_server(line: str) -> bool:
    return line.startswith("t2v-edge serve ")


def run(line: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A line in bash; a server is ended by Ctrl-C once it says where it listens."""
    words = ["bash", "-e", "-o", "pipefail", "-c", line]
    if not is_server(line):
        return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    words[-1] = f"exec {line} --port 0"  # another server may have the printed port
    with subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            said = server.stdout.readline() if server.stdout else ""
            server.send_signal(signal.SIGINT)
            out, err = server.communicate(timeout=60)
        finally:
            server.kill()
    assert "http://127.0.0.1:" in said, said + err
    return subprocess.CompletedProcess(words, server.returncode, said + out, err)


def play(snippet: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run a snippet with a display that closes after some frames and captions from a list; gives the frames shown."""

    class Closed(Exception):
        pass

    shown: list[Any] = []
    captions = ["a person is dancing", None, "a person is walking"]

    def show(pixels: Any) -> None:
        shown.append(pixels)
        if len(shown) == 10:
            raise Closed

    monkeypatch.chdir(folder)
    with pytest.raises(Closed):
        exec(snippet, {"show": show, "listen": lambda: captions.pop() if captions else None})
    return shown


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like a clone in which README.md's bundles are made, of random weights."""
    folder = tmp_path_factory.mktemp("clone")
    checkpoint = str(build_checkpoint(folder / "checkpoints/small"))
    bundle = folder / "out/small.bundle"
    assert main(["export", checkpoint, "--variants", "fp32", "--no-timing", "-o", str(bundle)]) == 0
    shutil.copytree(bundle, folder / "out/orin.bundle")
    return folder


@pytest.fixture(scope="module")
def here(layout: Path) -> dict[str, str]:
    """The environment of the quick walk: `t2v-edge` is this checkout's."""
    program = layout / "bin/t2v-edge"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m t2v_edge "$@"\n')
    program.chmod(0o755)
    packages = os.pathsep.join(str(ROOT / name) for name in (".", "export", "calibration"))
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": packages}


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES


def test_readme_shows_every_command() -> None:
    assert {line.split()[1] for line in LINES if line.startswith("t2v-edge ")} == COMMANDS
    assert "`make demo`" in README and "`make test`" in README


def test_readme_says_first_what_has_not_run() -> None:
    table = README[README.index("## Status") :].split("\n\n")[1].splitlines()[2:]
    states = ["not run" in row for row in table]
    assert any(states) and states == sorted(states, reverse=True)
    assert all(word in "".join(table[: sum(states)]) for word in ("Jetson", "headset", "TensorRT 10", "TensorRT 11"))


def test_exceptions_are_lines_of_the_readme() -> None:
    assert set(NOT_QUICK) | set(NOT_HERE) <= set(LINES)
    assert not set(NOT_QUICK) & set(NOT_HERE)
    assert len(QUICK) >= 7


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("t2v-edge ")])
def test_every_command_is_one_the_command_line_takes(line: str) -> None:
    words = shlex.split(line)
    make_parser(words[1]).parse_args(words[1:])


@pytest.mark.parametrize("line", QUICK)
def test_quick_walk(line: str, layout: Path, here: dict[str, str]) -> None:
    done = run(line, layout, here)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in re.findall(r" -o (\S+)", line):
        assert (layout / name).exists()


@pytest.mark.parametrize("snippet", snippets_of(README))
def test_snippets_run(snippet: str, layout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(play(snippet, layout, monkeypatch)) == 10


def test_lines_are_found_without_comments_and_without_fenced_code() -> None:
    page = "text\n\n    t2v-edge a -o b    # why\n    make it\n\n```python\n    no = 1\n```\n"
    assert lines_of(page) == ["t2v-edge a -o b", "make it"]
    assert snippets_of(page) == ["    no = 1\n"]


@pytest.mark.slow
def test_whole_walk_in_a_fresh_clone_and_environment(tmp_path: Path) -> None:
    clone = tmp_path / "t2v-edge"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    shutil.copyfile(ROOT / "README.md", clone / "README.md")
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR")
    environment = {
        name: value for name, value in os.environ.items() if name in kept or name.startswith(("PIP_", "SSL_", "T2V_"))
    }
    for line in lines_of((clone / "README.md").read_text(encoding="utf-8")):
        if line in NOT_HERE:
            continue
        done = run(line, clone, environment)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        if " && . .venv/bin/activate" in line:
            environment["PATH"] = os.pathsep.join([str(clone / ".venv/bin"), environment["PATH"]])
    assert (clone / "out/report/report.html").is_file()
    done = run("make demo", clone, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "out/demo.mp4").is_file()
