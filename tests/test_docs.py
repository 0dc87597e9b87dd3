"""The documents a stranger follows: their commands are ones the command line takes, their links lead somewhere."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from t2v_edge.cli import make_parser
from t2v_edge.util.cache import VARIABLE
from tests.test_layers import ROOMS
from tests.test_packaging import PACKAGES, PROJECT
from tests.test_readme import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "devices/README.md", "benchmarks/README.md", *PAGES)


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def commands_of(document: str) -> list[str]:
    """The `t2v-edge` lines of a page's code blocks, each up to a pipe; one that goes on behind a backslash is whole."""
    lines = re.findall(r"^ {4}(t2v-edge .*)", read(document).replace("\\\n", ""), re.M)
    return [line.split(" | ")[0] for line in lines]


def options_of(command: str) -> set[str]:
    """All options of a command as they are written, but for --help."""
    parser = make_parser(command)
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    actions = subparsers.choices[command]._actions
    return {option for action in actions for option in action.option_strings if option not in ("-h", "--help")}


def anchors_of(document: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", read(document), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [page for page in DOCUMENTS if page != "README.md"])
def test_commands_are_ones_the_command_line_takes(document: str) -> None:
    for line in commands_of(document):
        words = shlex.split(line, comments=True)
        make_parser(words[1]).parse_args(words[1:])


def test_demo_is_one_the_command_line_takes() -> None:
    line = re.search(r"\$\(BIN\)/(t2v-edge run .*\n.*)", read("Makefile"))
    assert line
    words = shlex.split(line[1].replace("\\\n", ""))
    make_parser("run").parse_args(words[1:])


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    if not (ROOT / "checkpoints/reference/config.json").is_file():
        pytest.skip("the reference checkpoint, its card and its picture are not here")
    links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(document)) if not link.startswith("http")]
    missing = [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_anchors_are_headings(document: str) -> None:
    wrong = []
    for link, anchor in re.findall(r"\]\(([^)#]*)#([^)]+)\)", read(document)):
        target = (ROOT / document).parent.joinpath(link).resolve() if link else ROOT / document
        if not link.startswith("http") and anchor not in anchors_of(target.relative_to(ROOT).as_posix()):
            wrong.append(f"{link}#{anchor}")
    assert not wrong


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_cli_page_explains_every_option(command: str) -> None:
    page = read("docs/cli.md")
    options = options_of(command)
    assert "--json" in options
    assert not [option for option in options if not re.search(rf"`[^`]*{option}(?![\w-])[^`]*`", page)]


def test_cli_page_names_extras_and_variables() -> None:
    page = read("docs/cli.md")
    assert all(f"| `[{extra}]` |" in page for extra in PROJECT["project"]["optional-dependencies"])
    assert f"| `{VARIABLE}` |" in page


def test_map_names_every_page() -> None:
    links = set(re.findall(r"\]\(([^)#]+)", read("docs/README.md")))
    assert {Path(page).name for page in PAGES} - {"README.md"} <= links


def test_files_that_the_architecture_names_are_there() -> None:
    pictures = "".join(read(f"docs/images/{name}-path.svg") for name in ("caption", "checkpoint"))
    named = set(re.findall(r"`([\w./-]+(?:/|\.py))`", read("docs/architecture.md")))
    named |= set(re.findall(r"[\w/]+(?:/|\.py)(?=[<\s])", re.sub(r"</?\w[^>]*>", " ", pictures)))
    runtime, toolchain = PACKAGES["t2v_edge"], PACKAGES["t2v_export"]
    roots = [ROOT, *PACKAGES.values(), runtime / "engine", toolchain / "compress"]
    assert "play/model.py" in named and "exporter/plan.py" in named
    assert not sorted(name for name in named if not any((root / name).exists() for root in roots))


@pytest.mark.parametrize("package", ROOMS)
def test_architecture_names_every_room_from_top_to_bottom(package: str) -> None:
    section = read("docs/architecture.md").split(f"### {package}\n")[1].split("\n#")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`([^`/.]+)", row)]
    rooms = [room for room in ROOMS[package] if not room.startswith("__")]
    assert [name for name in named if name in rooms] == rooms
