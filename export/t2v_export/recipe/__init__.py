"""Recipes: what to do to a checkpoint or its graphs, as data."""

from t2v_export.recipe.options import Distill, Prune, Quantize, Rebuild, Round
from t2v_export.recipe.recipe import Recipe, load_recipe, parse_recipe

__all__ = ["Distill", "Prune", "Quantize", "Rebuild", "Recipe", "Round", "load_recipe", "parse_recipe"]
