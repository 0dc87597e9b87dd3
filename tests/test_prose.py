"""The pages read easily: short sentences, and none of the phrases that had to be read twice."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import mean

import pytest

from tests.prose import CELL, HEADING, ITEM, PARAGRAPH, PROSE, cells, plain, sentences, split, units

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        "README.md",
        "CONTRIBUTING.md",
        "devices/README.md",
        "benchmarks/README.md",
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
    ]
)
MOST_WORDS = 35
MEAN_WORDS = 18
PHRASES = ("anew", "where there is none", "what of")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_no_sentence_is_too_long(page: str) -> None:
    long = [
        f"{page}:{found.line}: {len(found.words)} words: {found.text}"
        for found in sentences(read(page))
        if len(found.words) > MOST_WORDS
    ]
    assert not long, "\n".join(long)


# Cells and headings are short by nature and would flatter the mean: it is of paragraphs and list items alone.
@pytest.mark.parametrize("page", PAGES)
def test_sentences_are_short_on_average(page: str) -> None:
    lengths = [len(found.words) for found in sentences(read(page)) if found.kind in PROSE]
    assert lengths and mean(lengths) <= MEAN_WORDS


@pytest.mark.parametrize("page", PAGES)
def test_no_phrase_has_to_be_deciphered(page: str) -> None:
    found = [
        f"{page}:{unit.line}: {phrase}: {unit.text}"
        for unit in units(read(page))
        for phrase in PHRASES
        if re.search(rf"\b{phrase}\b", unit.text, re.IGNORECASE)
    ]
    assert not found, "\n".join(found)


SAMPLE = """# A title. With a stop

A first sentence of
two lines. A [second one](docs/x.y.md) ends here!
Is `a.b. C` code? Yes.

    code. Is left out. And so is this

    t2v-edge run BUNDLE

- an item
  on two lines
- another. It has two sentences.

1. one
2. two
```python
code = "Not. Read."
```
| a | b |
|---|---:|
| cell one. Two | `x | y` |
![a picture](p.png)
"""


def test_units_are_headings_paragraphs_items_and_cells() -> None:
    assert [(unit.kind, unit.text.replace("\u2060", "")) for unit in units(SAMPLE)] == [
        (HEADING, "A title. With a stop"),
        (PARAGRAPH, "A first sentence of two lines. A second one ends here! Is a․b․ C code? Yes."),
        (ITEM, "an item on two lines"),
        (ITEM, "another. It has two sentences."),
        (ITEM, "one"),
        (ITEM, "two"),
        (CELL, "a"),
        (CELL, "b"),
        (CELL, "cell one. Two"),
        (CELL, "x | y"),
        (PARAGRAPH, "a picture"),
    ]


def test_sentences_have_their_words_and_line() -> None:
    found = [sentence for sentence in sentences(SAMPLE) if sentence.kind == PARAGRAPH]
    assert [len(sentence.words) for sentence in found] == [6, 5, 4, 1, 2]
    assert {sentence.line for sentence in found} == {3, 23}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two.", ["One.", "Two."]),
        ("It is 0.5 s. Then 3 follow.", ["It is 0.5 s.", "Then 3 follow."]),
        ("A rate, e.g. 30, and Xiao et al. Found here", ["A rate, e.g. 30, and Xiao et al. Found here"]),
        ("He said (so.) Then he left.", ["He said (so.)", "Then he left."]),
        ("version 8.6. TensorRT 10 waits", ["version 8.6.", "TensorRT 10 waits"]),
        ("a file.txt and more", ["a file.txt and more"]),
        ("W. Smith was here. He left", ["W. Smith was here.", "He left"]),
        ("Is it? No! Well", ["Is it?", "No!", "Well"]),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_sees_an_end(text: str, expected: list[str]) -> None:
    assert split(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**bold** and *soft* and a_name", "bold and soft and a_name"),
        ("[a `b.c`](d.md) ![e](f.png)", "a b․c e"),
        ("see <https://a.b/c>", "see https://a․b/c"),
        ("<!-- hidden -->shown", "shown"),
    ],
)
def test_markup_is_left_out(text: str, expected: str) -> None:
    assert plain(text).replace("\u2060", "") == expected


def test_a_sentence_may_begin_with_inline_code() -> None:
    found = sentences("It plays. `run` writes `a.b c`. The end.")
    assert [sentence.text for sentence in found] == ["It plays.", "run writes a․b c.", "The end."]


def test_a_bar_in_code_ends_no_cell() -> None:
    assert cells(r"| a | `b | c` | d \| e |") == ["a", "`b | c`", "d | e"]


def test_the_rules_find_what_they_forbid() -> None:
    page = "Begin Anew. " + "word " * (MOST_WORDS + 1) + "\n"
    assert any(len(found.words) > MOST_WORDS for found in sentences(page))
    assert re.search(rf"\b{PHRASES[0]}\b", next(units(page)).text, re.IGNORECASE)
