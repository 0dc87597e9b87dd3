"""Arguments that the toolchain's commands share, and what becomes of them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2v_export.recipe import Recipe
    from t2v_export.store import PassStore


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The checkpoint to work on, and ``--seed``."""
    parser.add_argument("checkpoint", type=Path, help="a checkpoint folder; docs/formats.md describes it")
    parser.add_argument("--seed", type=int, default=0, help="of every random draw (default: 0)")


def add_allow_code(parser: argparse.ArgumentParser, whose: str = "the checkpoint's") -> None:
    """``--allow-code``: a checkpoint may bring Python files, which are never imported unasked."""
    parser.add_argument(
        "--allow-code",
        action="store_true",
        help=f"import {whose} own module:Class files; they can do anything that you can",
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    """``--train-on``, ``--corpus`` and ``--no-cache``, of commands that run a recipe's passes."""
    parser.add_argument(
        "--train-on",
        default="auto",
        metavar="DEVICE",
        help="torch device, such as cpu or cuda:1 (default: a GPU if any)",
    )
    parser.add_argument("--corpus", metavar="FILE", help="more captions to train a student with, one a line")
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help="neither read nor write the cache of finished passes, with which a stopped run goes on where it was",
    )


def recipe_of(name: str, corpus: str | None) -> Recipe:
    """The recipe. With a corpus, its distill passes use that."""
    from dataclasses import replace

    from t2v_export.recipe import Distill, load_recipe

    recipe = load_recipe(name)
    if corpus is None:
        return recipe
    passes = tuple(replace(p, corpus=corpus) if isinstance(p, Distill) else p for p in recipe.passes)
    return replace(recipe, passes=passes)


def store_of(args: argparse.Namespace) -> PassStore:
    """Where finished passes are kept; nowhere with ``--no-cache``."""
    from t2v_export.store import PassStore

    return PassStore(None) if args.no_cache else PassStore.of_user()
