"""Recipes: what a file may say, what errors name, and that docs/recipes.md is what the options' descriptions give."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from docs.make_recipes import reference
from t2v_edge.errors import UsageError
from t2v_export.recipe import Quantize, load_recipe, parse_recipe
from t2v_export.recipe.options import PASSES
from t2v_export.recipe.recipe import shipped_recipes

PAGE = Path(__file__).parents[3] / "docs/recipes.md"


def test_shipped_recipe_is_the_quantize_pass():
    recipe = load_recipe("fast")
    assert recipe.name == "fast" and recipe.passes == (Quantize(smooth=0.5),)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"metod": "mse"},
            r"mine.toml, pass 1: key 'metod' is unknown \(did you mean 'method'\?\); allowed are kind, st",
        ),
        ({"zzz": "mse"}, "key 'zzz' is unknown; allowed are kind, stages"),
        ({"method": "magic"}, "method has 'magic'; choose one of minmax"),
        ({"method": "precentile"}, r"method has 'precentile' \(did you mean 'percentile'\?\); choose one of"),
        ({"stages": ["text", "sound"]}, "stages has 'sound'"),
        ({"stages": []}, r"stages is \[\], expected a list of words"),
        ({"keep_last": 1}, "keep_last is 1, expected true or false"),
        ({"percentile": 200.0}, "percentile is 200.0, expected 50.0 to 100.0"),
        ({"percentile": float("nan")}, "percentile is nan, expected 50.0 to 100.0"),
        ({"steps": True}, "steps is True, expected a whole number"),
        ({"kind": "shrink"}, "kind is 'shrink'; choose one of quantize"),
        ({"kind": "quantise"}, r"kind is 'quantise' \(did you mean 'quantize'\?\)"),
        ({"kind": ["quantize"]}, r"kind is \['quantize'\]"),
    ],
)
def test_errors_name_the_key_and_what_it_may_be(change, message):
    with pytest.raises(UsageError, match=message):
        parse_recipe({"name": "mine", "pass": [{"kind": "quantize", **change}]}, "mine.toml")


def test_files_that_are_absent_or_damaged_are_refused(tmp_path):
    with pytest.raises(UsageError, match="'quick' is unknown: shipped are fast"):
        load_recipe("quick")
    with pytest.raises(UsageError, match=r"'smal' is unknown \(did you mean 'small'\?\)"):
        load_recipe("smal")
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(UsageError, match="is not TOML"):
        load_recipe(str(tmp_path / "bad.toml"))
    with pytest.raises(UsageError, match="key 'passes' is unknown"):
        parse_recipe({"name": "x", "passes": []}, "x.toml")


def test_widths_are_a_table(tmp_path):
    text = '[[pass]]\nkind = "prune"\n[pass.widths]\nrender.channels = [8, 4]\ntext.encoder.num_attention_heads = 2\n'
    (tmp_path / "wide.toml").write_text('name = "x"\n' + text)
    (made,) = load_recipe(str(tmp_path / "wide.toml")).passes
    assert made.widths == {"render": {"channels": [8, 4]}, "text": {"encoder": {"num_attention_heads": 2}}}


@pytest.mark.parametrize("kind", PASSES)
def test_every_option_is_described_and_its_default_is_one_it_takes(kind):
    for one in fields(PASSES[kind]):
        about = one.metadata["option"]
        assert about.description.endswith(".") and "|" not in about.description
        assert about.default == getattr(PASSES[kind](), one.name)
        words = about.default if isinstance(about.default, tuple) else (about.default,)
        assert not about.choices or set(words) <= set(about.choices)
        assert not about.ends or about.ends[0] <= about.default <= about.ends[1]


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_read_by_their_own_name(name):
    assert load_recipe(name).name == name


def test_the_recipe_reference_is_current():
    assert PAGE.read_text("utf-8") == reference(), "docs/recipes.md is out of date: run make docs and commit it"
