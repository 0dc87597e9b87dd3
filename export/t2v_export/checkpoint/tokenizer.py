"""The tokenizer of a checkpoint: how its captions become the text stage's feeds."""

from __future__ import annotations

import tokenizers

from t2v_edge.bundle.manifest import TokenizerSpec
from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_edge.errors import CheckpointError
from t2v_export.checkpoint.checkpoint import Checkpoint

PAD_TOKENS = ("[PAD]", "<pad>", "<|endoftext|>")


def tokenizer_spec(checkpoint: Checkpoint) -> TokenizerSpec:
    """The padded length and the pad token that a bundle of this checkpoint states; raises `CheckpointError`."""
    tokenizer = tokenizers.Tokenizer.from_str(checkpoint.tokenizer)
    tokens = checkpoint.specs["text"].inputs[0].shape[1]
    if tokenizer.padding is not None:
        return TokenizerSpec("tokenizer.json", tokens, int(tokenizer.padding["pad_id"]))
    for token in PAD_TOKENS:
        pad_id = tokenizer.token_to_id(token)
        if pad_id is not None:
            return TokenizerSpec("tokenizer.json", tokens, pad_id)
    raise CheckpointError(
        f"encoder/tokenizer.json names no padding and has none of {', '.join(PAD_TOKENS)}; enable padding in it "
        "and save it"
    )


def caption_tokenizer(checkpoint: Checkpoint) -> CaptionTokenizer:
    """The runtime's tokenizer for this checkpoint; raises `CheckpointError` where it names no pad token."""
    spec = tokenizer_spec(checkpoint)
    return CaptionTokenizer(checkpoint.tokenizer.encode(), spec.tokens, spec.pad_id)
