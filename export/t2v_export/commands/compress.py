"""`t2v-edge compress`: the passes of a recipe that make a smaller checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from t2v_edge.errors import UsageError
from t2v_edge.spec import STAGES
from t2v_edge.util.files import write_atomic
from t2v_export.checkpoint.checkpoint import load_checkpoint, save_loaded
from t2v_export.checkpoint.cost import count_macs, count_parameters
from t2v_export.compress.passes import Compressed, PassOptions, compress, training_device
from t2v_export.recipe import Distill, Recipe, load_recipe
from t2v_export.store import PassStore

DESCRIPTION = """\
Make a smaller checkpoint of a checkpoint: prune, rebuild and distill as a recipe says. Teaching the student needs
captions and noise and no videos; on a GPU it takes minutes, on a CPU hours. The result is a plain checkpoint, to be
exported like any other. Passes that are done are kept in the cache, and a training that was stopped goes on where it
was. The recipe's quantize pass belongs to `t2v-edge export`, which runs these passes too where a recipe has them."""
EPILOG = """\
examples:
  t2v-edge compress checkpoints/reference --recipe small -o my-small
  t2v-edge compress my-model --recipe my-recipe.toml --train-on cuda:1 -o my-small --log training.json
  t2v-edge compress my-model --recipe small --only-stage render     # on one GPU, and the others on another"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command and add its arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("checkpoint", type=Path, help="checkpoint folder; docs/formats.md describes it")
    parser.add_argument("--recipe", required=True, metavar="NAME", help="small, tiny, or a .toml file")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="the smaller checkpoint")
    parser.add_argument("--log", type=Path, metavar="FILE", help="the measurements made while training, as JSON")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help="import the checkpoint's own module:Class files: they can do anything you can",
    )
    parser.add_argument("--no-cache", action="store_true", help="keep nothing and take nothing that was kept")
    add_teaching_arguments(parser)
    parser.add_argument(
        "--only-stage",
        choices=STAGES,
        help="teach this stage alone and keep it in the cache: several may be taught side by side; then run it without",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_teaching_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that `export` has as well."""
    parser.add_argument(
        "--train-on",
        default="auto",
        metavar="DEVICE",
        help="torch device to teach on, such as cpu or cuda:1 (default: a GPU where there is one)",
    )
    parser.add_argument("--corpus", metavar="FILE", help="further captions to teach with, one a line")


def pass_options(args: argparse.Namespace, only_stage: str | None = None) -> PassOptions:
    """`PassOptions` of parsed arguments. Raises `UsageError` for a device that is not here."""
    store = PassStore(None) if args.no_cache else PassStore.of_user()
    return PassOptions(args.seed, args.allow_code, store, training_device(args.train_on), True, only_stage)


def recipe_of(name: str, corpus: str | None) -> Recipe:
    """The recipe, its distill passes with the corpus where one is given."""
    recipe = load_recipe(name)
    if corpus is None:
        return recipe
    return replace(
        recipe, passes=tuple(replace(p, corpus=corpus) if isinstance(p, Distill) else p for p in recipe.passes)
    )


def run(args: argparse.Namespace) -> int:
    """Compress and print what was made; errors are raised as `T2VError`. Returns the exit code 0."""
    if args.output is None and args.only_stage is None:
        raise UsageError("where shall the checkpoint go? give -o FOLDER")
    recipe = recipe_of(args.recipe, args.corpus)
    if not recipe.checkpoint_passes:
        raise UsageError(f"recipe {recipe.name!r} has no pass that makes a checkpoint; export with it instead")
    checkpoint = load_checkpoint(args.checkpoint, args.allow_code)
    made = compress(checkpoint, recipe, pass_options(args, args.only_stage))
    if args.log:
        write_atomic(args.log, (json.dumps(made.logs, indent=1) + "\n").encode())
    if args.output is not None and args.only_stage is None:
        save_loaded(made.checkpoint, args.output)
    shown = summary(checkpoint, made)
    text = json.dumps(shown, indent=2) if args.json else table(shown)
    sys.stdout.write(text + "\n")
    return 0


def summary(before: Any, made: Compressed) -> dict[str, Any]:
    """Parameters and multiply-accumulates of each stage before and after, and the last measurement of each training."""
    stages = {}
    for stage in STAGES:
        counted = [
            {
                "parameters": count_parameters(c.modules[stage]),
                "macs": count_macs(c.modules[stage], c.modules[stage].spec),
            }
            for c in (before, made.checkpoint)
        ]
        stages[stage] = {"before": counted[0], "after": counted[1]}
    taught = {name: log[-1] for name, log in made.logs.items() if log}
    return {"name": made.checkpoint.config.name, "stages": stages, "taught": taught}


def table(shown: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{shown['name']}", "stage     parameters                 multiply-accumulates a run"]
    for stage, one in shown["stages"].items():
        parts = []
        for key in ("parameters", "macs"):
            old, new = (one[w][key] / 1e6 for w in ("before", "after"))
            parts.append(f"{old:8.2f} M -> {new:7.2f} M  {old / new if new else 1:5.1f}x")
        lines.append(f"{stage:8}" + "  ".join(parts))
    for name, last in shown["taught"].items():
        lines.append(f"pass {name}: " + ", ".join(f"{k} {v:g}" for k, v in last.items()))
    return "\n".join(lines)
