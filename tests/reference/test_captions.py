"""The caption grammar, the committed sets, and the encoder that reads them."""

from __future__ import annotations

import collections
import itertools
import json
import math
import re
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.reference.caption_sets import committed_sets
from examples.reference.captions import (
    HELD_OUT_COUNT,
    HELD_OUT_PAIRS,
    HELD_OUT_SEED,
    LANGUAGES,
    SPLITS,
    Caption,
    characters,
    described_captions,
    grammar,
    heldout_set,
    load_heldout,
    mirror_caption,
    phrasings,
    sample,
    unique_captions,
)
from examples.reference.vocabulary import ACTIONS, SLOTS

SETS = Path(__file__).parents[2] / "calibration" / "captions"


def captions(split: str, count: int, language: str | None = None) -> list[Caption]:
    rng = Random(11)
    return [sample(rng, split, language) for _ in range(count)]


def plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_the_promised_phrasings(action):
    for split, english, chinese in (("train", 8, 5), ("validation", 2, 2), ("heldout", 3, 2)):
        assert len(phrasings("en", action, split)) >= english
        assert len(phrasings("zh", action, split)) >= chinese


def test_no_phrasing_is_shared_by_two_actions_or_two_splits():
    owners = collections.defaultdict(set)
    for language, action, split in itertools.product(LANGUAGES, ACTIONS, SPLITS):
        for phrase in phrasings(language, action, split):
            owners[plain(phrase)].add((action, split))
    assert {phrase: who for phrase, who in owners.items() if len(who) > 1} == {}


@pytest.mark.parametrize(
    "phrase, action",
    [
        ("playing basketball", "dribbling a basketball"),
        ("jogging", "running"),
        ("shooting hoops", "shooting a basketball"),
        ("playing football", "playing soccer"),
        ("boxing", "punching"),
        ("fencing", "sword fighting"),
        ("打篮球", "dribbling a basketball"),
        ("慢跑", "running"),
        ("投篮", "shooting a basketball"),
        ("踢足球", "playing soccer"),
        ("打拳", "punching"),
        ("击剑", "sword fighting"),
        ("擦窗户", "washing a window"),
        ("指挥交通", "directing traffic"),
    ],
)
def test_what_people_type_is_trained_as_the_action_they_mean(phrase, action):
    language = "en" if phrase.isascii() else "zh"
    assert [a for a in ACTIONS if phrase in phrasings(language, a, "train")] == [action]


def test_held_out_patterns_are_not_training_patterns():
    for language, kind in itertools.product(LANGUAGES, ("templates", "bare")):
        lists = grammar(language)[kind]
        for one, other in itertools.combinations(SPLITS, 2):
            assert not set(lists[one]) & set(lists[other])


def test_held_out_pairs_are_two_shirts_and_one_colour_of_trousers_an_action():
    for action in ACTIONS:
        kinds = collections.Counter(slot for a, slot, _ in HELD_OUT_PAIRS if a == action)
        assert kinds == {"shirt": 2, "trousers": 1}
    for slot in ("shirt", "trousers"):
        assert {value for _, s, value in HELD_OUT_PAIRS if s == slot} == set(SLOTS[slot])


@pytest.mark.parametrize("split", ["train", "validation"])
def test_captions_to_learn_from_never_name_a_held_out_pair_but_every_other(split):
    drawn = captions(split, 12_000)
    assert not any(caption.composes for caption in drawn)
    clothes = ("shirt", "trousers")
    seen = {(c.slots["action"], slot, c.slots[slot]) for c in drawn for slot in clothes if slot in c.slots}
    everything = {(a, slot, v) for a in ACTIONS for slot in ("shirt", "trousers") for v in SLOTS[slot]}
    assert seen == everything - HELD_OUT_PAIRS


def test_slots_hold_known_values_and_text_is_whole():
    for split in SPLITS:
        for caption in captions(split, 3_000):
            assert all(value in SLOTS[slot] for slot, value in caption.slots.items()), caption
            assert "action" in caption.slots
            assert not re.search(r"[{}/_]|  | [.,!]|的的|，，|在在|有有", caption.text), caption
            assert not re.search(r"\ba [aeio]|\ban [^aeiou]", caption.text, re.IGNORECASE), caption


def test_a_chinese_caption_names_the_colours_it_says():
    signs = dict(zip(SLOTS["shirt"], ("红", "蓝", "绿", "黄", "白", "黑", "紫", "橙橘")))
    for caption in captions("heldout", 2_000, "zh"):
        if "shirt" in caption.slots:
            assert any(sign in caption.text for sign in signs[caption.slots["shirt"]]), caption


def test_a_seed_gives_the_same_captions_and_another_does_not():
    assert heldout_set(50, 3) == heldout_set(50, 3) != heldout_set(50, 4)


def test_held_out_set_is_unique_balanced_and_outside_of_training():
    held = heldout_set(HELD_OUT_COUNT, HELD_OUT_SEED)
    assert len({caption.text.casefold() for caption in held}) == HELD_OUT_COUNT
    assert collections.Counter(c.language for c in held) == dict.fromkeys(LANGUAGES, HELD_OUT_COUNT // 2)
    assert set(collections.Counter(c.slots["action"] for c in held).values()) == {HELD_OUT_COUNT // len(ACTIONS)}

    def share(*slots):
        return sum(set(slots) <= set(c.slots) for c in held) / len(held)

    assert share("shirt", "trousers") >= 0.5
    assert min(share("skin"), share("hair"), share("background"), share("build")) >= 0.25
    assert 0.4 < sum(c.composes for c in held) / len(held) < 0.7
    for caption in held:
        new = phrases_in(caption, "heldout")
        assert caption.composes or new, caption
    trained = {plain(caption.text) for caption in captions("train", 40_000)}
    assert not trained & {plain(caption.text) for caption in held}


def phrases_in(caption: Caption, split: str) -> bool:
    """Whether one of the split's phrasings of the caption's action, in any form, stands in its text."""
    text, action = f" {plain(caption.text)} ", caption.slots["action"]
    if caption.language == "zh":
        return any(phrase in caption.text for phrase in phrasings("zh", action, split))
    for phrase in grammar("en")["actions"][action][split]:
        for form in range(3):
            made = re.sub(r"(\w+)/(\w+)/(\w+)", lambda m, form=form: m.group(form + 1).replace("_", " "), phrase)
            if nearly_in(plain(made), text):
                return True
    return False


def nearly_in(phrase: str, text: str) -> bool:
    """Whether words stand in a text, letters of a word in any order (captions have light typing errors)."""
    words, wanted = ["".join(sorted(w)) for w in text.split()], ["".join(sorted(w)) for w in phrase.split()]
    return any(words[i : i + len(wanted)] == wanted for i in range(len(words)))


@pytest.mark.parametrize(
    "name, count", [("en.txt", 256), ("zh.txt", 256), ("corpus.txt", 8000), ("heldout.jsonl", HELD_OUT_COUNT)]
)
def test_committed_caption_sets_are_what_the_grammar_makes(name, count):
    made = committed_sets()
    assert (SETS / name).read_text(encoding="utf-8") == made[name]
    assert len(made[name].splitlines()) == count


def test_committed_held_out_captions_load_with_their_slots():
    assert load_heldout(SETS / "heldout.jsonl") == heldout_set(HELD_OUT_COUNT, HELD_OUT_SEED)


@pytest.mark.parametrize(
    "text, mirrored",
    [
        ("forward dribble, 90-degree left turns", "forward dribble, 90-degree right turns"),
        ("Left, RIGHT and leftward", "Right, LEFT and rightward"),
        ("he is running right now, to the right", "he is running right now, to the left"),
        ("a bright shirt left-handed", "a bright shirt right-handed"),
        ("向左走，挥右手", "向右走，挥左手"),
        ("左右摇摆，然后向左", "左右摇摆，然后向右"),
        ("一个人在跑步", "一个人在跑步"),
    ],
)
def test_mirrored_captions_swap_left_and_right(text, mirrored):
    assert mirror_caption(text) == mirrored


@given(st.lists(st.sampled_from(["left", "Right", "左", "右手", "right now", "左右", "walk", "bright"]), max_size=8))
def test_mirroring_twice_gives_the_caption_again(parts):
    text = " ".join(parts)
    assert mirror_caption(mirror_caption(text)) == text


def test_descriptions_of_training_clips_become_captions_with_their_mirror_images(tmp_path):
    index = tmp_path / "index.csv"
    index.write_text(
        "clip,cmu_description,action,split\n"
        'a,"basketball - forward dribble, 90-degree left turns",dribbling a basketball,train\n'
        "b,run/jog,running,train\nc,climb,climbing,train\nd,,walking,train\ne,brisk walk,walking,test\n",
        encoding="utf-8",
    )
    found = {caption.text: caption.slots["action"] for caption in described_captions(index)}
    assert found == {
        "basketball - forward dribble, 90-degree left turns": "dribbling a basketball",
        "basketball - forward dribble, 90-degree right turns": "dribbling a basketball",
        "run/jog": "running",
    }


def test_held_out_captions_use_no_character_that_training_lacks():
    trained = {c for caption in captions("train", 20_000, "zh") for c in caption.text}
    for caption in unique_captions(600, 5, "heldout", "zh") + unique_captions(600, 5, "validation", "zh"):
        assert set(caption.text) <= trained, set(caption.text) - trained
        assert {c for c in caption.text if ord(c) > 0x2E7F} <= set(characters())


def test_an_unknown_split_or_language_is_refused_by_name():
    with pytest.raises(ValueError, match="'test'"):
        sample(Random(0), "test")
    with pytest.raises(ValueError, match="'de'"):
        sample(Random(0), "train", "de")


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """A BERT of the source's form, but tiny: enough unused tokens and words for the captions."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("minilm")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[unused{i}]" for i in range(300))]
    english = [caption for split in SPLITS for caption in captions(split, 4_000, "en")]
    words = sorted({word for c in english for word in re.findall(r"\w+|[^\w\s]", c.text.lower())})
    letters = [chr(c) for c in range(97, 123)]
    tokens = dict.fromkeys([*special, *letters, *("##" + c for c in letters), *words, *"一人上大", *"，。"])
    vocabulary = {token: i for i, token in enumerate(tokens)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    made.enable_truncation(128)
    made.save(str(folder / "tokenizer.json"))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_made_encoder_reads_every_chinese_character_without_growing(minilm, tmp_path):
    from tokenizers import Tokenizer

    from examples.reference.make_encoder import POSITIONS, make_encoder

    added = make_encoder(minilm, tmp_path / "encoder")
    before = json.loads((minilm / "tokenizer.json").read_text())["model"]["vocab"]
    tokenizer = Tokenizer.from_file(str(tmp_path / "encoder" / "tokenizer.json"))
    assert added == len([c for c in characters() if c not in before]) > 100
    assert tokenizer.get_vocab_size() == len(before)
    assert tokenizer.truncation is None and tokenizer.padding is None
    assert all(tokenizer.token_to_id(c) is not None for c in characters())
    assert tokenizer.encode("一个人正在打篮球").tokens == ["[CLS]", *"一个人正在打篮球", "[SEP]"]
    longest = max(len(tokenizer.encode(c.text).ids) for c in unique_captions(500, 1, "heldout", "zh"))
    assert longest <= 48 < POSITIONS
    files = {path.name for path in (tmp_path / "encoder").iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json"}


def test_an_encoder_without_room_for_the_characters_is_refused():
    from examples.reference.make_encoder import add_characters

    with pytest.raises(ValueError, match="2 characters to add, but the vocabulary has 1"):
        add_characters({"[unused0]": 0, "a": 1}, ["人", "走", "a"])


def test_losses_vanish_for_a_right_and_otherwise_uniform_reading_and_not_for_others():
    torch = pytest.importorskip("torch")
    from examples.reference.train_text import UNNAMED, slot_losses

    values = torch.tensor([[3, 1, UNNAMED, UNNAMED, UNNAMED, UNNAMED, 0]])
    logits = torch.zeros(1, 41)
    logits[0, 3] = logits[0, 12 + 1] = logits[0, 39] = 60.0
    named, unnamed = slot_losses(logits, values)
    assert float(named) < 1e-6 and abs(float(unnamed)) < 1e-6
    logits[0, 20] = 60.0  # the first colour of trousers, which nobody named
    # Uniform against nearly one-hot over six values, a quarter of the unnamed slots: (60 * 5/6 - log 6) / 4.
    assert float(slot_losses(logits, values)[1]) == pytest.approx((50 - math.log(6)) / 4, rel=1e-4)
    logits = torch.zeros(1, 41)
    expected = (math.log(12) + math.log(8) + math.log(2)) / 3
    assert float(slot_losses(logits, values)[0]) == pytest.approx(expected, rel=1e-5)


def test_training_learns_resumes_and_leaves_an_encoder_that_opens(minilm, tmp_path):
    torch = pytest.importorskip("torch")
    from examples.reference.make_encoder import make_encoder
    from examples.reference.train_text import Options, open_text, train

    encoder, data, out = tmp_path / "encoder", tmp_path / "data", tmp_path / "out"
    make_encoder(minilm, encoder)
    data.mkdir()
    (data / "index.csv").write_text("clip,cmu_description,action,split\na,brisk walk,walking,train\n", encoding="utf-8")
    told = {
        "batch": 32,
        "bank": 800,
        "judged": 120,
        "encoder_rate": 3e-3,
        "embedding_rate": 3e-3,
        "warm_up": 2,
        "evaluate_every": 40,
        "checkpoint_every": 80,
        "steps": 240,
    }
    options, device = Options(**told), torch.device("cpu")
    figures = train(encoder, data, out, options, device, resume=False)
    lines = [json.loads(line) for line in (out / "text_log.jsonl").read_text().splitlines()]
    losses = [line["validation"]["loss"] for line in lines if "final" not in line]
    assert losses[-1] < 0.9 * losses[0]
    assert figures["heldout"] == lines[-1]["heldout"]
    assert figures["validation"]["loss"] == pytest.approx(min(losses), rel=0.02)  # the kept weights are float16

    model = open_text(out / "encoder")
    condition = model(torch.ones(1, 48, dtype=torch.int64), torch.ones(1, 48, dtype=torch.int64))
    assert condition.shape == (1, 41) and float(condition.sum().detach()) == pytest.approx(7.0, abs=1e-4)
    again = train(encoder, data, out, options, device, resume=True)
    assert again == figures  # nothing left to do
    with pytest.raises(ValueError, match="was made with"):
        train(encoder, data, out, Options(**{**told, "seed": 1}), device, resume=True)
