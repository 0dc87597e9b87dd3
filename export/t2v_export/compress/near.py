"""Words that an encoder takes for nearly the same, by its table of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import tokenizers
import torch
from torch import Tensor
from torch.nn import functional

from t2v_edge.bundle.tokenizer import normalise, tokenizer_errors
from t2v_edge.errors import CheckpointError
from t2v_export.checkpoint.checkpoint import Checkpoint
from t2v_export.models.text import TransformersText


def near_words(checkpoint: Checkpoint, captions: Sequence[str], count: int) -> dict[str, tuple[str, ...]]:
    """For each word of the captions that is one token, the `count` whole words nearest to it, nearest first.

    Nearness is the cosine of the encoder's token embeddings. Empty if the text stage is not a transformers encoder, or
    `count` is 0.
    """
    module = checkpoint.text
    if not isinstance(module, TransformersText) or count == 0:
        return {}
    table: Tensor = functional.normalize(module.encoder.get_input_embeddings().weight.detach(), dim=1)
    tokenizer = tokenizers.Tokenizer.from_str(checkpoint.tokenizer)
    tokenizer.no_padding()
    vocabulary = {i: token for token, i in tokenizer.get_vocab().items() if i < len(table)}
    words = torch.tensor([i for i, t in vocabulary.items() if t.isalpha() and t.isascii() and len(t) > 2])
    with tokenizer_errors(CheckpointError, "the tokenizer refuses a caption", "give captions of its vocabulary"):
        encodings = tokenizer.encode_batch([normalise(caption) for caption in captions])
    seen = {i for encoding in encodings for i in encoding.ids}
    used = torch.tensor(sorted(seen.intersection(words.tolist())), dtype=torch.int64)
    found: dict[str, tuple[str, ...]] = {}
    for some in used.split(1024):
        near = (table[some] @ table[words].T).topk(min(count + 1, len(words)), dim=1).indices
        for word, row in zip(some.tolist(), words[near].tolist()):
            found[vocabulary[word]] = tuple(vocabulary[i] for i in row if i != word)[:count]
    return found


def replaced(words: Sequence[str], near: Mapping[str, Sequence[str]], share: float, chooser: Random) -> list[str]:
    """The words with about a `share` of them replaced by a near one."""
    made = list(words)
    for i, word in enumerate(words):
        options = near.get(word.strip().casefold(), ())
        if options and chooser.random() < share:
            made[i] = chooser.choice(list(options)) + word[len(word.rstrip()) :]
    return made
