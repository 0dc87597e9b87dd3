"""The documents a stranger follows: their commands are ones the command line takes, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from t2v_edge.cli import make_parser

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "devices/README.md",
    "docs/formats.md",
    "docs/comparing.md",
    "docs/decisions.md",
    "docs/quantization.md",
    "docs/benchmarking.md",
    "docs/captions.md",
    "docs/live.md",
    "docs/protocol.md",
    "docs/web.md",
    "benchmarks/README.md",
)


def commands_of_the_readme() -> list[str]:
    lines = [
        line.strip()
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if re.match(r" {4}(\.venv/bin/)?t2v-edge ", line)
    ]
    lines.append(
        re.search(r"\$\(BIN\)/(t2v-edge run .*\n.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))[1]
        .replace("\\\n", "")
        .replace("$(DEMO_FIRST)", "a")
        .replace("$(DEMO_THEN)", "b")
    )
    return lines


@pytest.mark.parametrize("line", commands_of_the_readme())
def test_documented_command_is_one_the_command_line_takes(line: str) -> None:
    words = shlex.split(line.split(" | ")[0], comments=True)
    assert words[0].endswith("t2v-edge")
    make_parser(words[1]).parse_args(words[1:])


def commands_of(document: str) -> list[str]:
    lines = (line.strip() for line in (ROOT / document).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line.startswith("t2v-edge ")]


@pytest.mark.parametrize(
    "line", [line for page in ("benchmarking", "captions", "web") for line in commands_of(f"docs/{page}.md")]
)
def test_documented_command_of_a_page_is_one_the_command_line_takes(line: str) -> None:
    words = shlex.split(line, comments=True)
    make_parser(words[1]).parse_args(words[1:])


def test_the_readme_shows_all_commands() -> None:
    assert {line.split("t2v-edge ")[1].split()[0] for line in commands_of_the_readme()} == {
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


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    if not (ROOT / "checkpoints/reference/config.json").is_file():
        pytest.skip("the reference checkpoint, its card and its picture are not here")
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    missing = [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    assert not missing
