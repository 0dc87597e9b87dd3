"""The examples' pages: what they link to is there, and commands of ours are ones the command line takes."""

from __future__ import annotations

import re
import shlex

import pytest

from t2v_edge.cli import make_parser
from tests.examples.ar_vr import EXAMPLES, ROOT

PAGES = [*sorted(EXAMPLES.rglob("README.md")), ROOT / "docs/encoding.md"]
PAGES = [page for page in PAGES if "node_modules" not in page.parts]
TO_COME = "t2v_edge/web"  # of another part of the package, which this checkout may lack


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not link.startswith("http") and not page.parent.joinpath(link).exists()]
    assert [link for link in missing if TO_COME not in link] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_commands_are_ones_the_command_line_takes(page):
    lines = [line.strip() for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("    t2v-edge ")]
    for line in lines:
        words = shlex.split(line.split(" | ")[0], comments=True)
        make_parser(words[1]).parse_args(words[1:])
