"""`t2v-edge compress`: the passes of a recipe that make a smaller checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from t2v_edge.errors import UsageError
from t2v_export.commands.arguments import add_allow_code, add_checkpoint, add_training, recipe_of, store_of

if TYPE_CHECKING:
    from t2v_export.checkpoint.checkpoint import Checkpoint
    from t2v_export.compress.passes import Compressed

DESCRIPTION = """\
Make a checkpoint smaller: prune, rebuild and distill as a recipe says. Training the student needs captions and noise,
but no videos. It takes minutes on a GPU and hours on a CPU. The result is a plain checkpoint, to be exported like any
other. Finished passes are kept in the cache, and a stopped training goes on where it was. The recipe's quantize pass
belongs to t2v-edge export, which also runs these passes if its recipe has them."""
EXAMPLES = """\
examples:
  t2v-edge compress checkpoints/reference --recipe small -o my-small
  t2v-edge compress my-model --recipe my-recipe.toml --train-on cuda:1 -o my-small --log training.json
  t2v-edge compress my-model --recipe small --only-stage render     # on one GPU, and the other stages on another"""

LOG_FORMAT = "t2v-compress-log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_checkpoint(parser)
    parser.add_argument("--recipe", required=True, metavar="NAME", help="small, tiny, or a .toml file")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="the smaller checkpoint")
    parser.add_argument("--log", type=Path, metavar="FILE", help="write the measurements of the training here, as JSON")
    add_allow_code(parser)
    add_training(parser)
    parser.add_argument(
        "--only-stage",
        choices=("text", "motion", "render"),
        help="train this stage only, into the cache; run the command without this flag when all stages are done",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Compress, and print what was made. Returns the exit code 0; raises `T2VError`."""
    if args.output is None and args.only_stage is None:
        raise UsageError("there is no place for the checkpoint; give -o FOLDER")

    from t2v_edge.util.files import write_atomic
    from t2v_edge.util.targets import check_targets, json_target
    from t2v_export.checkpoint.checkpoint import load_checkpoint, save_loaded
    from t2v_export.checkpoint.target import COMPRESSED
    from t2v_export.compress.passes import PassOptions, compress, training_device

    log = json_target("the log", LOG_FORMAT)
    check_targets([(args.output, COMPRESSED), (args.log, log)], [args.checkpoint, args.recipe, args.corpus])
    recipe = recipe_of(args.recipe, args.corpus)
    if not recipe.checkpoint_passes:
        raise UsageError(f"recipe {recipe.name!r} has no pass that makes a checkpoint; export with it instead")
    checkpoint = load_checkpoint(args.checkpoint, args.allow_code)
    device = training_device(args.train_on)
    options = PassOptions(args.seed, args.allow_code, store_of(args), device, True, args.only_stage)
    made = compress(checkpoint, recipe, options)
    try:
        if args.log:
            text = json.dumps({"format": LOG_FORMAT, **made.logs}, indent=1) + "\n"
            write_atomic(args.log, text.encode(), log, late=True)
    finally:
        if args.output is not None and args.only_stage is None:
            save_loaded(made.checkpoint, args.output, kind=COMPRESSED)
    shown = summary(checkpoint, made)
    sys.stdout.write((json.dumps(shown, indent=2) if args.json else table(shown)) + "\n")
    return 0


def summary(before: Checkpoint, made: Compressed) -> dict[str, Any]:
    """Each stage's parameters and multiply-accumulates, before and after; each training's last measurement."""
    from t2v_edge.spec import STAGES
    from t2v_export.checkpoint.cost import count_macs, count_parameters

    stages: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    for when, one in (("before", before), ("after", made.checkpoint)):
        for stage, module in one.modules.items():
            macs = count_macs(module, one.specs[stage])
            stages[stage][when] = {"parameters": count_parameters(module), "macs": macs}
    taught = {name: log[-1] for name, log in made.logs.items() if log}
    return {"name": made.checkpoint.config.name, "stages": stages, "taught": taught}


def table(shown: dict[str, Any]) -> str:
    """The summary as text."""
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
