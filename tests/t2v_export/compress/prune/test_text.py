"""Vocabulary, layers, heads and width of the text stage."""

from __future__ import annotations

import dataclasses
import json

import pytest
import tokenizers
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from t2v_calibration.captions import load_captions
from t2v_edge.errors import UsageError
from t2v_export.checkpoint.checkpoint import load_checkpoint, save_loaded
from t2v_export.checkpoint.config import StageConfig
from t2v_export.checkpoint.tokenizer import caption_tokenizer
from t2v_export.compress.prune import prune_checkpoint
from t2v_export.compress.prune.importance import feed
from t2v_export.compress.prune.layers import prune_layers
from t2v_export.compress.prune.positions import prune_positions
from t2v_export.compress.prune.vocabulary import kept_tokens, prune_vocabulary
from t2v_export.exporter.export import ExportOptions, export_checkpoint
from t2v_export.recipe import Prune
from tests.t2v_export.checkpoint_cost import checkpoint_cost

CAPTIONS = ("a person is walking", "一个人在跑步", "someone jumps, runs and walks")
SPECIAL = ["[PAD]", "[unused]", "[UNK]", "[CLS]", "[SEP]"]
PIECES = [
    "walking", "walk", "##ing", "##s", "run", "##ning", "jump", "person", "is", "some", "##one", "and", "basketball",
    "dribbling", "##ball", *"abcdefghijklmnopqrstuvwxyz,", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    *"一个人在跑步走跳",
]  # fmt: skip
FAMILIES = {
    "BertConfig": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "RobertaConfig": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "DistilBertConfig": {"dim": 16, "hidden_dim": 32, "n_layers": 3, "n_heads": 4},
    "CLIPTextConfig": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},
    "T5Config": {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 3, "num_heads": 4},
}


def word_piece() -> str:
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *PIECES])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 3), ("[SEP]", 4)])
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    return tokenizer.to_str()


def unigram() -> str:
    pieces = [("<pad>", 0.0), ("<unk>", 0.0)] + [(p.removeprefix("##"), -1.0 - i / 9) for i, p in enumerate(PIECES)]
    pieces = list(dict(reversed(pieces)).items())[::-1]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<unk>"])
    return tokenizer.to_str()


@pytest.fixture
def make_encoder(make_checkpoint, tmp_path):
    """make_encoder("BertConfig") -> a loaded checkpoint whose text stage is such an encoder, with a WordPiece."""
    transformers = pytest.importorskip("transformers")

    def make(family="BertConfig", tokenizer=None, **changes):
        torch.manual_seed(0)
        config = getattr(transformers, family)(
            **{**FAMILIES[family], **changes}, vocab_size=len(SPECIAL) + len(PIECES), pad_token_id=0
        )
        folder = tmp_path / f"{family}-encoder"
        transformers.AutoModel.from_config(config).save_pretrained(folder)
        options = {"tokens": 24, "pooling": "attention", "queries": 2, "groups": [4, 2]}
        path = make_checkpoint(family, folder=folder, text=StageConfig("transformers", options))
        (path / "encoder" / "tokenizer.json").write_text(tokenizer or word_piece(), "utf-8")
        return load_checkpoint(path)

    return make


def conditions(checkpoint, captions):
    tokenizer = caption_tokenizer(checkpoint)
    feeds = [{"input_ids": t.ids, "attention_mask": t.mask} for t in map(tokenizer, captions)]
    return checkpoint.text(*feed(checkpoint.text.spec, feeds))


def same_after_saving(checkpoint, path, captions):
    save_loaded(checkpoint, path, dtype=torch.float32)
    return torch.equal(conditions(load_checkpoint(path), captions), conditions(checkpoint, captions))


@pytest.mark.parametrize("family", FAMILIES)
def test_vocabulary_of_a_corpus_leaves_its_conditions_exactly_as_they_were(make_encoder, tmp_path, family):
    before = make_encoder(family)
    after = prune_vocabulary(before, CAPTIONS)
    assert torch.equal(conditions(after, CAPTIONS), conditions(before, CAPTIONS))
    assert same_after_saving(after, tmp_path / "small", CAPTIONS)
    size = tokenizers.Tokenizer.from_str(after.tokenizer).get_vocab_size()
    assert after.text.encoder.get_input_embeddings().weight.shape[0] == size < len(SPECIAL) + len(PIECES)
    assert before.tokenizer == word_piece()


@pytest.mark.parametrize("family, left", [("BertConfig", 24), ("RobertaConfig", 25), ("T5Config", None)])
def test_positions_that_no_caption_reaches_leave(make_encoder, tmp_path, family, left):
    before = make_encoder(family)
    after = prune_positions(before, CAPTIONS)
    long = (*CAPTIONS, " ".join(CAPTIONS * 3))
    assert torch.equal(conditions(after, long), conditions(before, long))
    assert same_after_saving(after, tmp_path / "small", CAPTIONS)
    if left is None:  # how T5 shares distances out depends on how many rows there are
        assert after is before
    else:
        assert after.text.encoder.embeddings.position_embeddings.num_embeddings == left
        assert before.text.encoder.embeddings.position_embeddings.num_embeddings > 100


def test_a_word_that_is_not_in_the_corpus_falls_back_to_characters(make_encoder):
    tokenizer = tokenizers.Tokenizer.from_str(prune_vocabulary(make_encoder(), CAPTIONS).tokenizer)
    tokenizer.no_padding()
    assert tokenizer.encode("dribbling", add_special_tokens=False).tokens == [
        "d", "##r", "##i", "##b", "##b", "##l", "##i", "##n", "##g",
    ]  # fmt: skip
    assert tokenizer.encode("走 walking").tokens == ["[CLS]", "走", "walking", "[SEP]"]
    assert tokenizer.token_to_id("basketball") is None and tokenizer.token_to_id("[PAD]") == 0


def test_unigram_and_word_level_split_the_corpus_as_before(make_encoder):
    before = make_encoder(tokenizer=unigram())
    after = prune_vocabulary(before, CAPTIONS)
    tokens = [[Tokenizer.from_str(c.tokenizer).encode(caption).tokens for caption in CAPTIONS] for c in (before, after)]
    assert tokens[0] == tokens[1] and any(len(t) > 3 for t in tokens[0])
    assert torch.equal(conditions(after, CAPTIONS), conditions(before, CAPTIONS))


def test_a_file_of_captions_adds_to_the_words_of_the_captions(make_encoder, tmp_path):
    (tmp_path / "corpus.txt").write_text("dribbling a basketball\n", "utf-8")
    options = Prune(vocabulary=True, captions=("en", str(tmp_path / "corpus.txt")))
    before = make_encoder()
    after = prune_checkpoint(before, options)
    assert tokenizers.Tokenizer.from_str(after.tokenizer).token_to_id("basketball") is not None
    captions = ("dribbling a basketball",)
    assert torch.equal(conditions(after, captions), conditions(before, captions))


def test_a_vocabulary_is_filled_up_in_the_order_of_the_tokenizer(make_encoder):
    before = make_encoder()
    small = tokenizers.Tokenizer.from_str(prune_vocabulary(before, CAPTIONS).tokenizer)
    size = small.get_vocab_size() + 2
    filled = tokenizers.Tokenizer.from_str(prune_vocabulary(before, CAPTIONS, size=size).tokenizer)
    added = set(filled.get_vocab()) - set(small.get_vocab())
    assert added == {"##ing", "##ning"} and filled.get_vocab_size() == size


def test_vocabulary_of_a_class_of_ours_is_an_option(make_checkpoint, tmp_path):
    before = load_checkpoint(make_checkpoint())
    captions = ("a person is walking", "人")
    after = prune_vocabulary(before, captions)
    # padding, unknown, the single characters and the words of the corpus
    assert after.config.stages["text"].options["vocabulary"] == 2 + 6 + 3
    assert torch.equal(conditions(after, captions), conditions(before, captions))
    assert same_after_saving(after, tmp_path / "small", captions)


def test_other_tokenizers_are_refused(make_encoder):
    data = json.loads(word_piece())
    data["model"] = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    with pytest.raises(UsageError, match="model is BPE.*WordPiece.*set vocabulary = false"):
        kept_tokens(json.dumps(data), CAPTIONS, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_does_nothing_is_the_one_that_leaves(make_encoder, tmp_path, family):
    before = make_encoder(family)
    lists = [m for m in before.text.encoder.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3]
    middle = lists[0][1]
    if family in ("BertConfig", "RobertaConfig", "DistilBertConfig"):  # normalised after the sum: not quite nothing
        for name, weight in middle.named_parameters():
            if "norm" not in name.lower():
                weight.data.mul_(1e-3)
    else:
        for weight in middle.parameters():
            weight.data.zero_()
    feeds = [{"input_ids": t.ids, "attention_mask": t.mask} for t in map(caption_tokenizer(before), CAPTIONS)]
    after = prune_layers(before, 2, feeds)
    torch.testing.assert_close(conditions(after, CAPTIONS), conditions(before, CAPTIONS), atol=2e-3, rtol=1e-2)
    assert same_after_saving(after, tmp_path / "small", CAPTIONS)
    assert not any(isinstance(m, torch.nn.ModuleList) and len(m) == 3 for m in after.text.encoder.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_keeps_its_share_saves_and_loads(make_encoder, tmp_path, family):
    before = make_encoder(family)
    after = prune_checkpoint(before, Prune(text_keep=0.5, round_to=4, samples=4, captions=("en",), vocabulary=True))
    share = checkpoint_cost(after).macs["text"] / checkpoint_cost(before).macs["text"]
    assert 0.3 < share <= 0.5
    assert same_after_saving(after, tmp_path / "small", CAPTIONS)
    assert torch.allclose(conditions(after, CAPTIONS)[:, :4].sum(1), torch.ones(3))


def test_heads_that_nothing_reads_leave_without_a_trace_where_width_may_stay(make_encoder):
    """T5's heads have a size of their own, so they may leave alone."""
    before = make_encoder("T5Config")
    for block in before.text.encoder.block:
        block.layer[0].SelfAttention.o.weight.data[:, 4:12] = 0  # heads 1 and 2 of 4
    asked = {"text": {"encoder": {"num_heads": 2}}}
    after = prune_checkpoint(before, Prune(widths=asked, samples=4, captions=("en",)))
    torch.testing.assert_close(conditions(after, CAPTIONS), conditions(before, CAPTIONS), atol=1e-5, rtol=1e-5)
    assert after.text.encoder.config.num_heads == 2


def test_bert_loses_heads_and_width_together_and_keeps_the_size_of_a_head(make_encoder):
    before = make_encoder()
    asked = {"text": {"encoder": {"num_attention_heads": 3, "intermediate_size": 20}}}
    after = prune_checkpoint(before, Prune(widths=asked, samples=4, captions=("en",)))
    config = after.text.encoder.config
    assert (config.num_attention_heads, config.hidden_size, config.intermediate_size) == (3, 12, 20)
    kept = before.text.encoder.embeddings.word_embeddings.weight
    for column in after.text.encoder.embeddings.word_embeddings.weight.T:
        assert any(torch.equal(column, old) for old in kept.T)


def test_ffn_units_that_nothing_reads_leave_without_a_trace(make_encoder):
    before = make_encoder()
    for layer in before.text.encoder.encoder.layer:
        layer.output.dense.weight.data[:, 3:15] = 0
    asked = {"text": {"encoder": {"intermediate_size": 20}}}
    after = prune_checkpoint(before, Prune(widths=asked, samples=4, captions=("en",)))
    torch.testing.assert_close(conditions(after, CAPTIONS), conditions(before, CAPTIONS), atol=1e-6, rtol=1e-5)


def test_a_pruned_encoder_exports(make_encoder, cpu, tmp_path):
    options = Prune(text_keep=0.5, text_layers=2, vocabulary=True, round_to=4, samples=4, captions=("en",))
    save_loaded(prune_checkpoint(make_encoder(), options), tmp_path / "small")
    exported = export_checkpoint(
        tmp_path / "small", tmp_path / "bundle", cpu, ExportOptions(variants=("fp32",), measure=False)
    )
    assert exported.differences["fp32"]["text"].max_rel < 1e-5


@pytest.mark.slow
def test_the_reference_is_pruned_to_a_twentieth_of_its_renderer(tmp_path):
    before = load_checkpoint("checkpoints/reference")
    captions = [caption for name in ("en", "zh") for caption in load_captions(name)]
    after = prune_vocabulary(before, captions)
    for first in range(0, len(captions), 64):
        part = captions[first : first + 64]
        torch.testing.assert_close(conditions(after, part), conditions(before, part), atol=1e-6, rtol=0)
    made = prune_checkpoint(after, dataclasses.replace(Prune(), render_keep=0.05, motion_keep=0.3, samples=8))
    old, new = checkpoint_cost(before), checkpoint_cost(made)
    assert new.macs["render"] <= 0.05 * old.macs["render"]
    assert new.macs["motion"] <= 0.3 * old.macs["motion"]
    save_loaded(made, tmp_path / "small")
    assert load_checkpoint(tmp_path / "small").config == made.config
