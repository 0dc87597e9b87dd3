"""``t2v-edge devices``: the device profiles and where their numbers come from."""

from __future__ import annotations

import argparse
import json
from typing import Any

from t2v_edge.commands.output import print_result

EXAMPLES = """examples:
  t2v-edge devices
  t2v-edge devices jetson-orin-nano-8gb
  t2v-edge devices jetson-orin-nano-8gb --json"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "devices", help="the device profiles to export for", description="List the device profiles, or show one.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="show this profile, with the source of each number")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from t2v_edge.device import list_profiles, load_profile

    names = [args.name] if args.name else list_profiles()
    profiles = [load_profile(name).to_json() for name in names]
    if args.name:
        print_result(profiles[0], "\n".join(_lines(profiles[0], "")), args.json)
    else:
        text = "\n".join(f"{p['name']:<26}{p.get('title') or p.get('kind', '')}" for p in profiles)
        print_result(profiles, text, args.json)
    return 0


def _lines(value: Any, indent: str) -> list[str]:
    """A profile's JSON as indented lines; what is not known is left out."""
    lines: list[str] = []
    for key, item in value.items():
        if item is None or item in ([], {}):
            continue
        if isinstance(item, dict):
            lines += [f"{indent}{key}:", *_lines(item, indent + "  ")]
        elif isinstance(item, list) and all(isinstance(row, dict) for row in item):
            lines.append(f"{indent}{key}:")
            for row in item:
                shown = ", ".join(f"{k} {v}" for k, v in row.items() if v is not None)
                lines.append(f"{indent}  - {shown}")
        else:
            shown = ", ".join(str(row) for row in item) if isinstance(item, list) else item
            lines.append(f"{indent}{key}: {json.dumps(shown) if isinstance(shown, bool) else shown}")
    return lines
