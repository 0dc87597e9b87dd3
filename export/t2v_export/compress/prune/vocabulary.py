"""A vocabulary without the tokens that a caption corpus never uses.

Kept are special and added tokens, every token of one character (with or without a continuation prefix), and the tokens
of the corpus. The rest of the tokenizer is unchanged, so WordPiece, Unigram and WordLevel split the corpus as before.
Another word that was one token falls back to shorter tokens, at last to its characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers
import torch

from t2v_edge.bundle.tokenizer import normalise, tokenizer_errors
from t2v_edge.errors import CheckpointError, UsageError
from t2v_export.checkpoint.checkpoint import Checkpoint, with_stages
from t2v_export.checkpoint.tokenizer import tokenizer_spec
from t2v_export.compress.near import near_words
from t2v_export.compress.prune.cut import load_cut
from t2v_export.compress.prune.design import ENCODER, Design, Path, row_option, shapes
from t2v_export.compress.prune.trace import trace_stage
from t2v_export.models.contract import spec_of

MODELS = ("WordPiece", "WordLevel", "Unigram")
_PLACEHOLDER = re.compile(r"\[\w+\]|<\w+>")  # such as BERT's [unused0] and T5's <extra_id_0>


def prune_vocabulary(checkpoint: Checkpoint, captions: Sequence[str], near: int = 0, size: int = 0) -> Checkpoint:
    """The checkpoint with the tokens that `captions`, and `near` words for each of theirs, need.

    The condition of each caption stays exactly the same. Further tokens stay up to `size`, in the order of their
    numbers: most tokenizers put common words first. Raises `UsageError` for a tokenizer of another kind than `MODELS`,
    and for a text class without an option that is the size of its table of tokens.
    """
    design = Design("text", checkpoint.config, checkpoint.text, checkpoint.folder / "encoder")
    tokenizer = tokenizers.Tokenizer.from_str(checkpoint.tokenizer)
    kept = kept_tokens(checkpoint.tokenizer, captions, tokenizer_spec(checkpoint).pad_id)
    alike = {word for words in near_words(checkpoint, captions, near).values() for word in words}
    kept = sorted({*kept, *(i for word in alike if (i := tokenizer.token_to_id(word)) is not None)})
    whole = tokenizer.get_vocab_size()
    names = {i: token for token, i in tokenizer.get_vocab().items()}
    others = [i for i in sorted(set(names) - set(kept)) if not _PLACEHOLDER.fullmatch(names[i])]
    kept = sorted([*kept, *others[: max(0, size - len(kept))]])
    if len(kept) == whole:
        return checkpoint
    path, table, rows = _table(design)
    if rows < whole:
        raise UsageError(f"stage text: its table has {rows} rows for {whole} tokens; keep vocabulary = false")
    gone = torch.ones(rows, dtype=torch.bool)
    gone[kept] = False
    numbers: dict[Path, int] = {path: len(kept)}
    places = {old: new for new, old in enumerate(kept)}
    for other, value in design.numbers().items():
        if other[0] == ENCODER and len(other) == 2 and str(other[1]).endswith("_token_id"):
            numbers[other] = places.get(value, 0)
    module = load_cut(design, numbers, {(table, 0): gone.nonzero()[:, 0]})
    configs, renumbered = {"text": design.stage_config(numbers)}, _renumbered(checkpoint.tokenizer, places)
    return with_stages(checkpoint, {"text": module}, configs, renumbered)


def kept_tokens(tokenizer_json: str, captions: Sequence[str], pad_id: int) -> list[int]:
    """Ids of the tokens to keep, in order. Captions are normalised as the runtime does. Raises `UsageError`."""
    data = json.loads(tokenizer_json)
    kind = data["model"].get("type")
    if kind not in MODELS:
        raise UsageError(
            f"the tokenizer's model is {kind}, whose vocabulary cannot be cut; those of {', '.join(MODELS)} can; "
            "set vocabulary = false"
        )
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    kept = {pad_id, *(token["id"] for token in data["added_tokens"])}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    for special in ("unk_token", "continuing_subword_prefix"):
        if data["model"].get(special) in vocabulary:
            kept.add(vocabulary[data["model"][special]])
    if kind == "Unigram" and data["model"].get("unk_id") is not None:
        kept.add(data["model"]["unk_id"])
    prefix = data["model"].get("continuing_subword_prefix") or ""
    kept.update(i for token, i in vocabulary.items() if len(token.removeprefix(prefix) if prefix else token) == 1)
    with tokenizer_errors(CheckpointError, "the tokenizer refuses a caption", "give captions of its vocabulary"):
        for encoding in tokenizer.encode_batch([normalise(caption) for caption in captions]):
            kept.update(encoding.ids)
    for part in _processors(data.get("post_processor")):
        kept.update(i for special in part.get("special_tokens", {}).values() for i in special["ids"])
        kept.update(part[name][1] for name in ("sep", "cls") if name in part)
    return sorted(kept)


def _processors(processor: Any) -> Iterator[dict[str, Any]]:
    """A post-processor and those inside of it, none for None."""
    if processor:
        yield processor
        for part in processor.get("processors", ()):
            yield from _processors(part)


def _renumbered(tokenizer_json: str, places: dict[int, int]) -> str:
    """The tokenizer with the tokens in `places` (old id to new) and no others."""
    data = json.loads(tokenizer_json)
    model = data["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in places]
        if model.get("unk_id") is not None:
            model["unk_id"] = places[model["unk_id"]]
    else:
        model["vocab"] = {token: places[i] for token, i in model["vocab"].items() if i in places}
    for token in data["added_tokens"]:
        token["id"] = places[token["id"]]
    if data.get("padding"):
        data["padding"]["pad_id"] = places[data["padding"]["pad_id"]]
    for part in _processors(data.get("post_processor")):
        for special in part.get("special_tokens", {}).values():
            special["ids"] = [places[i] for i in special["ids"]]
        for name in {"sep", "cls"}.intersection(part):
            part[name][1] = places[part[name][1]]
    text = json.dumps(data, ensure_ascii=False)
    tokenizers.Tokenizer.from_str(text)
    return text


def _table(design: Design) -> tuple[Path, str, int]:
    """The number that sizes the table of tokens, the table's name, and its rows."""
    before = shapes(design.module)
    for table in trace_stage(design.module, spec_of(design.module)).tables:
        rows = before[table, 0]
        path = row_option(design, table, rows)
        if path is not None:
            return path, table, rows
    raise UsageError(
        "stage text: no option of its class is the number of rows of its table of tokens; name one (as `vocabulary` "
        "of text-cnn), or set vocabulary = false"
    )
