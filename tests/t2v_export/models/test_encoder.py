"""Encoders of folders that are not trusted: transformers reads no file of them."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
import transformers

from t2v_edge.errors import CheckpointError
from t2v_export.models.encoder import open_encoder

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 40,
}
T5 = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
FAMILIES = {
    "BertModel": ("BertConfig", SMALL),
    "RobertaForMaskedLM": ("RobertaConfig", SMALL),
    "ElectraModel": ("ElectraConfig", {**SMALL, "embedding_size": 16}),
    "CLIPTextModel": ("CLIPTextConfig", SMALL),
    "T5Model": ("T5Config", T5),
    "T5EncoderModel": ("T5Config", T5),
    "MT5EncoderModel": ("MT5Config", T5),
}


@pytest.fixture
def save(tmp_path):
    """save(name="BertModel", **options of save_pretrained) -> (the model, its folder)"""

    def make(name="BertModel", **options):
        torch.manual_seed(3)
        config, settings = FAMILIES[name]
        model = getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()
        model.save_pretrained(tmp_path / "encoder", **options)
        return model, tmp_path / "encoder"

    return make


def edit(path, change):
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def states(model):
    ids = torch.tensor([[3, 7, 9, 4]])
    inner = getattr(model, "roberta", model)
    if hasattr(inner, "decoder"):
        inner = inner.get_encoder()
    with torch.no_grad():
        return inner(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


@pytest.mark.parametrize("name", FAMILIES)
def test_what_save_pretrained_writes_opens_with_its_weights(save, name):
    model, folder = save(name)
    encoder, _ = open_encoder(folder)
    assert torch.allclose(states(encoder), states(model), atol=1e-5)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_experts_implementation"])
@pytest.mark.parametrize("value", ["somebody/attention", "flash_attention_2", {"": "somebody/attention"}])
def test_a_kernel_that_config_json_names_is_not_loaded(save, key, value, monkeypatch):
    loaded = []
    monkeypatch.setattr("transformers.integrations.hub_kernels.load_and_register_attn_kernel", loaded.append)
    _, folder = save()
    edit(folder / "config.json", lambda settings: settings.update({key: value, "use_kernels": True}))
    encoder, _ = open_encoder(folder)
    assert encoder.config._attn_implementation == "eager" and not loaded
    assert "somebody" not in encoder.config.to_json_string()


def test_a_kernel_in_the_settings_of_a_tower_is_not_loaded(tmp_path):
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.CLIPConfig(text_config=SMALL, vision_config={**vision, "image_size": 16, "patch_size": 8})
    transformers.CLIPModel(config).save_pretrained(tmp_path / "encoder")
    edit(
        tmp_path / "encoder" / "config.json",
        lambda settings: settings["text_config"].update(attn_implementation="somebody/attention"),
    )
    encoder, prefix = open_encoder(tmp_path / "encoder")
    assert prefix == "text_model." and encoder.config._attn_implementation == "eager"


def test_other_files_of_the_folder_are_not_read(save, tmp_path):
    model, folder = save()
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(b"not weights")
    edit(folder / "config.json", lambda settings: settings.update(transformers_weights=str(elsewhere)))
    for name in ("adapter_config.json", "generation_config.json", "tokenizer_config.json"):
        (folder / name).write_text('{"base_model_name_or_path": "somebody/model"')
    assert torch.allclose(states(open_encoder(folder)[0]), states(model), atol=1e-5)


def test_shards_and_plain_pickles_open_as_one_file_does(save):
    model, folder = save(max_shard_size="8KB")
    index = folder / "model.safetensors.index.json"
    assert len(set(json.loads(index.read_text())["weight_map"].values())) > 1
    assert torch.allclose(states(open_encoder(folder)[0]), states(model), atol=1e-5)
    for path in folder.glob("model*"):
        path.unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    assert torch.allclose(states(open_encoder(folder)[0]), states(model), atol=1e-5)


def first_shard(index):
    return sorted(json.loads(index.read_text())["weight_map"].values())[0]


def rename_first(new):
    def change(settings):
        first = sorted(settings["weight_map"].values())[0]
        settings["weight_map"] = {k: new if v == first else v for k, v in settings["weight_map"].items()}

    return change


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/outside.safetensors", "inner/../../outside.safetensors", "..\\outside.safetensors"],
)
def test_an_index_does_not_lead_out_of_the_folder(save, tmp_path, name):
    _, folder = save(max_shard_size="8KB")
    index = folder / "model.safetensors.index.json"
    (folder / first_shard(index)).rename(tmp_path / "outside.safetensors")
    name = name.replace("/outside", f"{tmp_path}/outside", 1) if name.startswith("/") else name
    edit(index, rename_first(name))
    with pytest.raises(CheckpointError, match="files beside it"):
        open_encoder(folder)


def test_a_linked_shard_is_refused(save, tmp_path):
    _, folder = save(max_shard_size="8KB")
    shard = folder / first_shard(folder / "model.safetensors.index.json")
    shard.rename(tmp_path / "outside.safetensors")
    shard.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="symbolic link"):
        open_encoder(folder)


def test_weights_of_shards_are_checked_like_all_others(save):
    _, folder = save(max_shard_size="8KB")
    shard = folder / first_shard(folder / "model.safetensors.index.json")
    tensors = safetensors.torch.load_file(shard)
    name = next(iter(tensors))
    safetensors.torch.save_file({**tensors, name: tensors[name] * float("nan")}, shard, {"format": "pt"})
    with pytest.raises(CheckpointError, match="NaN"):
        open_encoder(folder)
    safetensors.torch.save_file({**tensors, "another": torch.ones(1)}, shard, {"format": "pt"})
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        open_encoder(folder)


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{", "[" * 100_000])
def test_a_damaged_index_is_refused(save, text):
    _, folder = save(max_shard_size="8KB")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match="no index of weights|are missing"):
        open_encoder(folder)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"text_config": {"auto_map": {}}}, "auto_map"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
        ({"vocab_size": 10**15}, "vocab_size"),
        ({"vocab_size": 10**7, "hidden_size": 10**5}, "weights, at most"),
        ({"model_type": "nothing-known"}, "does not open"),
        ({"model_type": None}, "no model_type"),
        ({"hidden_size": "sixteen"}, "does not open"),
        ({"hidden_size": 17}, "does not open|another shape"),
        ({"hidden_size": 32}, "does not open|another shape"),
    ],
)
def test_settings_that_do_not_fit_are_refused(save, change, match):
    _, folder = save()
    edit(folder / "config.json", lambda settings: settings.update(change))
    with pytest.raises(CheckpointError, match=match):
        open_encoder(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "\xff", "[" * 100_000])
def test_settings_that_are_no_settings_are_refused(save, text):
    _, folder = save()
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="encoder/config.json"):
        open_encoder(folder)
