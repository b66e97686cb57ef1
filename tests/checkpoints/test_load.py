"""Checkpoints of the field, in every layout, against the model of transformers that wrote them."""

import json
import pickle
import re
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, LlavaNextConfig, LlavaNextForConditionalGeneration

from dslight.checkpoints import load_checkpoint, parts_in
from dslight.components import HFVisionEncoder, MLPProjector, TimmEncoder
from dslight.components.component import WeightsError, save_weights

VISION = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 7, "projection_dim": 16,
}  # fmt: skip
FULL = {"vision_encoder", "projector", "language_model"}


@pytest.fixture(scope="module")
def llava(theirs):
    return theirs()


def in_layout(model: Any, layout: str, official: Any) -> dict[str, torch.Tensor]:
    """Its tensors as the file ``layout`` names them."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if layout == "official":
        return official(model)
    if layout == "official behind peft":
        return {f"base_model.model.{name}": tensor for name, tensor in official(model).items()}
    if layout == "llava-hf":  # as on the hub
        old = {"model.vision_tower.": "vision_tower.vision_model.", "model.language_model.": "language_model.model."}
        old |= {"model.multi_modal_projector.": "multi_modal_projector.", "lm_head.": "language_model.lm_head."}
        return {re.sub("|".join(old), lambda match: old[match[0]], name): tensor for name, tensor in state.items()}
    assert layout == "transformers 5 in memory"
    return state


@pytest.mark.parametrize("layout", ["official", "official behind peft", "llava-hf", "transformers 5 in memory"])
def test_every_layout_gives_the_logits_of_transformers(layout, llava, tmp_path, agree, ours, official):
    save_file(in_layout(llava, layout, official), tmp_path / "model.safetensors")
    model = ours()
    report = load_checkpoint(model, tmp_path)
    assert report.fits
    assert len(report.loaded) == len(llava.state_dict())
    assert parts_in(tmp_path) == FULL
    agree(model, llava)


@pytest.mark.parametrize("size", ["1GB", "40KB"], ids=["one file", "shards"])
def test_what_transformers_saves_is_read(size, llava, tmp_path, agree, ours):
    llava.save_pretrained(tmp_path, max_shard_size=size)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or size == "40KB"
    model = ours()
    load_checkpoint(model, tmp_path)
    agree(model, llava)


def test_pickled_shards_behind_an_index_are_read(llava, tmp_path, agree, ours, official):
    state = official(llava)
    halves = [dict(list(state.items())[:40]), dict(list(state.items())[40:])]
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for name, half in zip(names, halves, strict=True):
        torch.save(half, tmp_path / name)
    index = {key: name for name, half in zip(names, halves, strict=True) for key in half}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    model = ours()
    load_checkpoint(model, tmp_path)
    agree(model, llava)
    (tmp_path / names[1]).unlink()
    with pytest.raises(WeightsError, match=f"names {names[1]}, and there is no such file"):
        load_checkpoint(model, tmp_path)


@pytest.mark.parametrize("kind", ["phi3", "qwen2", "gemma"])
def test_decoders_pass_under_the_names_of_transformers(kind, tmp_path, agree, ours, theirs, official):
    more = {"head_dim": 12} if kind == "gemma" else {}
    reference = theirs(kind, **more)
    save_file({k: v for k, v in official(reference).items() if k != "lm_head.weight"} | (
        {"lm_head.weight": reference.lm_head.weight.clone()} if kind != "gemma" else {}
    ), tmp_path / "model.safetensors")  # fmt: skip
    model = ours(kind, **more)
    load_checkpoint(model, tmp_path)
    agree(model, reference)


def test_a_tied_head_may_be_absent_but_not_different(tmp_path, agree, ours, theirs, official):
    reference = theirs(tie_word_embeddings=True)
    state = official(reference)
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    model = ours(tie_word_embeddings=True)
    save_file(state, tmp_path / "both.safetensors")
    assert load_checkpoint(model, tmp_path / "both.safetensors").fits
    save_file({k: v for k, v in state.items() if k != "lm_head.weight"}, tmp_path / "one.safetensors")
    assert load_checkpoint(model, tmp_path / "one.safetensors").fits
    with pytest.raises(WeightsError, match=r"missing language_model\.model\.lm_head.weight"):
        load_checkpoint(ours(), tmp_path / "one.safetensors")
    state["lm_head.weight"] += 1
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"unexpected lm_head\.weight .not equal to model\.embed_tokens\.weight"):
        load_checkpoint(model, tmp_path / "other.safetensors")


# --- parts


@pytest.mark.parametrize("prefix", ["model.", "base_model.model.model.", ""])
def test_a_projector_of_stage_one_is_read_alone(prefix, llava, tmp_path, ours, official):
    names = {name: tensor for name, tensor in official(llava).items() if "mm_projector" in name}
    torch.save(
        {prefix + name.removeprefix("model."): tensor for name, tensor in names.items()}, tmp_path / "mm_projector.bin"
    )
    model = ours()
    untouched = model.language_model.embedding.weight.clone()
    for path in (tmp_path / "mm_projector.bin", tmp_path):
        report = load_checkpoint(model, path, parts=["projector"])
    assert sorted(report.loaded) == [f"projector.net.{i}.{kind}" for i in (0, 2) for kind in ("bias", "weight")]
    torch.testing.assert_close(model.projector.net[2].weight, names["model.mm_projector.2.weight"], atol=0, rtol=0)
    assert torch.equal(model.language_model.embedding.weight, untouched)


def test_a_linear_projector_has_no_numbers(tmp_path, ours):
    model: Any = ours(projector=partial(MLPProjector, layers=1))
    weight = torch.randn(48, 32)
    torch.save({"model.mm_projector.weight": weight, "model.mm_projector.bias": torch.zeros(48)}, tmp_path / "p.bin")
    load_checkpoint(model, tmp_path / "p.bin", parts=["projector"])
    assert torch.equal(model.projector.net[0].weight, weight)


def test_one_part_out_of_a_whole_checkpoint_leaves_the_others(llava, tmp_path, ours, official):
    save_file(official(llava), tmp_path / "model.safetensors")
    model = ours()
    before = model.projector.net[0].weight.clone()
    report = load_checkpoint(model, tmp_path, parts=["language_model"])
    assert {name.split(".")[0] for name in report.loaded} == {"language_model"}
    assert set(report.ignored.values()) == {"projector was not asked for", "vision_encoder was not asked for"}
    assert torch.equal(model.projector.net[0].weight, before)
    assert torch.equal(model.language_model.embedding.weight, llava.model.language_model.embed_tokens.weight)


def test_a_clip_gives_its_vision_half_and_a_decoder_checkpoint_itself(llava, tmp_path, ours):
    torch.manual_seed(3)
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=16))
    clip.save_pretrained(tmp_path / "clip")
    model = ours()
    report = load_checkpoint(model, tmp_path / "clip", parts=["vision_encoder"])
    assert set(report.ignored.values()) == {"the text half of a CLIP or SigLIP"}
    pixels = torch.randn(2, 3, 28, 28)
    expected = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    model.vision_encoder.normalise = lambda given: given
    (features,) = model.vision_encoder(pixels, taps=[-2])
    torch.testing.assert_close(features, expected[:, 1:], atol=1e-5, rtol=1e-5)

    other = ours().language_model.model
    other.save_pretrained(tmp_path / "decoder")
    load_checkpoint(model, tmp_path / "decoder", parts=["language_model"])
    ids = torch.arange(12)[None]
    assert torch.equal(model.language_model.model(ids).logits, other(ids).logits)


def test_our_own_files_are_read_whole_and_by_part(tmp_path, ours):
    source, model = ours(), ours()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    save_weights(source.state_dict(), tmp_path / "whole.safetensors")
    torch.save({"state_dict": source.state_dict(), "epoch": 1}, tmp_path / "step.ckpt")
    for name in ("whole.safetensors", "step.ckpt"):
        fresh = ours()
        load_checkpoint(fresh, tmp_path / name)
        assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), source.parameters(), strict=True))
    for part in FULL:
        save_weights(source.parts()[part].own_state(), tmp_path / f"{part}.safetensors")
        load_checkpoint(model, tmp_path / f"{part}.safetensors", parts=[part])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))


def test_a_timm_file_fits_a_timm_encoder(tmp_path):
    shape = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 2, "num_heads": 2}
    source, encoder = (TimmEncoder("vit_tiny_patch16_224", model_args=shape) for _ in range(2))
    save_weights(source.model.state_dict(), tmp_path / "vit.safetensors")
    load_checkpoint(encoder, tmp_path / "vit.safetensors", parts=["vision_encoder"])
    assert all(torch.equal(a, b) for a, b in zip(encoder.parameters(), source.parameters(), strict=True))


def test_deepstack_v_layers_behind_the_encoder_come_last(tmp_path):
    """The released code keeps new layers apart; for us they are the encoder's last ones."""
    inner = "model.vision_tower.vision_tower.vision_model."
    trained: Any = HFVisionEncoder(config={**VISION, "num_hidden_layers": 6})
    tower = {f"{inner}{name}": tensor for name, tensor in trained.model.state_dict().items()}
    last = {name.split("layers.4.")[1]: tensor for name, tensor in tower.items() if ".layers.4." in name}
    extra = {f"model.vision_tower.post_encoder.{k}.{name}": last[name] + k for name in last for k in range(2)}
    for held, strict in ((tower | extra, True), (extra, False)):
        save_file(held, tmp_path / "v.safetensors")
        encoder: Any = HFVisionEncoder(config={**VISION, "num_hidden_layers": 6}, extra_layers=2)
        report = load_checkpoint(encoder, tmp_path / "v.safetensors", parts=["vision_encoder"], strict=strict)
        assert len(report.loaded) == len(held)
        for k in range(2):
            assert torch.equal(encoder.layers[6 + k].mlp.fc1.weight, last["mlp.fc1.weight"] + k)


# --- refusals


def test_every_tensor_that_does_not_fit_is_named_and_nothing_is_changed(llava, tmp_path, ours, official):
    state = official(llava)
    del state["model.layers.1.mlp.up_proj.weight"]
    state["model.layers.3.mlp.up_proj.weight"] = torch.zeros(2)
    state["model.mm_projector.0.weight"] = torch.zeros(48, 31)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(6)
    state["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(17)
    state["model.image_newline"] = torch.zeros(48)
    save_file(state, tmp_path / "model.safetensors")
    model = ours()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError) as refused:
        load_checkpoint(model, tmp_path)
    assert str(refused.value).splitlines()[1:] == [
        "  missing language_model.model.model.layers.1.mlp.up_proj.weight (96, 48)",
        "  unexpected model.layers.3.mlp.up_proj.weight (2,)",
        "  projector.net.0.weight is (48, 31) in the file, (48, 32) in the model",
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    report = load_checkpoint(model, tmp_path, strict=False)
    assert "missing language_model.model.model.layers.1.mlp.up_proj.weight" in str(report)
    assert {name.split(".")[-1]: reason.split()[0] for name, reason in report.ignored.items()} == {
        "inv_freq": "follows", "position_ids": "follows", "image_newline": "this",
    }  # fmt: skip
    assert torch.equal(model.projector.net[0].weight, before["projector.net.0.weight"])
    assert torch.equal(model.projector.net[2].weight, llava.model.multi_modal_projector.linear_2.weight)


def test_two_names_of_one_tensor_are_refused(llava, tmp_path, ours, official):
    state = official(llava)
    state["mm_projector.0.bias"] = torch.zeros(48)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"unexpected (model\.)?mm_projector.0.bias .a second projector.net.0.bias"):
        load_checkpoint(ours(), tmp_path)


def test_a_timm_encoder_is_told_which_class_reads_clip(llava, tmp_path, ours, official):
    save_file(official(llava), tmp_path / "model.safetensors")
    shape = {"img_size": 28, "patch_size": 7, "embed_dim": 32, "depth": 4, "num_heads": 4}
    model = ours(encoder=TimmEncoder("vit_tiny_patch16_224", model_args=shape))
    with pytest.raises(WeightsError, match=r"TimmEncoder is one of timm.*use dslight\.components.HFVisionEncoder"):
        load_checkpoint(model, tmp_path)


class Malicious:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_a_pickle_that_holds_more_than_tensors_is_refused_and_not_run(tmp_path, ours):
    target = tmp_path / "written"
    torch.save({"model.mm_projector.weight": torch.zeros(2), "x": Malicious(str(target))}, tmp_path / "p.bin")
    with pytest.raises(WeightsError, match=r"holds more than tensors.*convert it"):
        load_checkpoint(ours(), tmp_path / "p.bin", parts=["projector"])
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Malicious(str(target))))
    with pytest.raises(WeightsError):
        load_checkpoint(ours(), tmp_path / "plain.bin", parts=["projector"])
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.safetensors", b"no tensors", "x.safetensors is no safetensors file"),
        ("x.bin", b"PK no zip", "x.bin is no PyTorch file"),
        ("x.bin", b"", "x.bin is no PyTorch file"),
        ("x.gguf", b"", "x.gguf is no checkpoint: expected .safetensors, .bin"),
        ("config.json", b"{}", "holds none of model.safetensors, pytorch_model.bin, mm_projector.bin"),
        ("model.safetensors.index.json", b"{}", "is no index of shards .KeyError"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b.safetensors"}}', "leads out by"),
        (".metadata", b"", "is the sharded checkpoint of a run"),
    ],
)
def test_what_is_no_checkpoint_is_refused_by_its_file(name, content, message, tmp_path, ours):
    (tmp_path / name).write_bytes(content)
    path = tmp_path / name if name.startswith("x") else tmp_path
    with pytest.raises(WeightsError, match=message):
        load_checkpoint(ours(), path)


def test_a_state_dict_of_other_things_is_refused(tmp_path, ours):
    torch.save({"lr": 0.1}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_checkpoint(ours(), tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="there is no file"):
        load_checkpoint(ours(), tmp_path / "none.pt")
    torch.save({"mm_projector.0.bias": torch.zeros(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"net\.0\.bias is .1,. in the file"):
        load_checkpoint(ours(), tmp_path / "old.pt", parts=["projector"])


def test_newlines_of_llava_next_are_read_where_a_scheduler_lays_them(tmp_path, ours, theirs):
    torch.manual_seed(0)
    like = theirs().config
    config = LlavaNextConfig(text_config=like.text_config, vision_config=like.vision_config, image_token_index=63)
    llava_next = LlavaNextForConditionalGeneration(config)
    llava_next.save_pretrained(tmp_path)
    model = ours()
    report = load_checkpoint(model, tmp_path)
    assert report.ignored == {"image_newline": "this stacking lays no newlines into the sequence"}
    model.stacking.newline = torch.nn.Parameter(torch.zeros(48))
    report = load_checkpoint(model, tmp_path)
    assert "stacking.newline" in report.loaded
    assert torch.equal(model.stacking.newline.data, llava_next.model.image_newline)
    stored = load_file(tmp_path / "model.safetensors")
    assert len(report.loaded) == len(stored)
