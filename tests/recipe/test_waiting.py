"""A process of a sharded run gets its share of every tensor, and nothing but that; against a model that is read whole.

The processes are one here: a process group without communication tells it to be rank 1 of 3.
"""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from data_prep.digits import write_tokenizer
from dslight.recipe.build import build
from dslight.train.parallel import materialise, shard

RANK, WORLD = 1, 3
DECODER = {
    "model_type": "llama", "vocab_size": 30, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "tie_word_embeddings": True, "initializer_range": 0.1,
}  # fmt: skip
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe that names no weights, for processes that are not there."""
    root = tmp_path_factory.mktemp("waiting")
    write_tokenizer(root / "tokenizer")
    language_model = {"config": DECODER, "tokenizer": str(root / "tokenizer")}
    return {
        "name": "waiting",
        "model": {
            "vision_encoder": {"class_path": "dslight.components.HFVisionEncoder", "init_args": {"config": CLIP}},
            "projector": {"class_path": "dslight.components.MLPProjector"},
            "stacking": {"class_path": "dslight.components.DeepStackL", "init_args": {"num_stacks": 4, "start": 0}},
            "language_model": {"class_path": "dslight.components.HFCausalLM", "init_args": language_model},
        },
        "data": {
            "train": [], "views": {"class_path": "dslight.data.images.GridViews"}, "template": "bare",
            "global_batch_size": 3,
        },
        "trainer": {"accelerator": "cpu", "strategy": {"class_path": "dslight.train.Sharded"}},
    }  # fmt: skip


@pytest.fixture(scope="module")
def given(recipe, tmp_path_factory):
    """Weights of other numbers than any seed gives, and by kind of checkpoint the recipe that names it."""
    root = tmp_path_factory.mktemp("weights")
    model = build({**recipe, "seed": 7, "trainer": {}}, opens=None).model
    parts = model.parts()
    for name in ("vision_encoder", "language_model"):
        save_file({k: v.clone() for k, v in parts[name].own_state().items()}, root / f"{name}.safetensors")
        parts[name].model.save_pretrained(root / name, max_shard_size="20KB")
    torch.save(load_file(root / "language_model.safetensors"), root / "language_model.bin")
    assert len(list((root / "language_model").glob("*.safetensors"))) > 2
    ours = {name: str(root / f"{name}.safetensors") for name in ("vision_encoder", "language_model")}
    named = deepcopy(recipe)
    for name in ("vision_encoder", "language_model"):
        named["model"][name]["init_args"] |= {"pretrained": str(root / name)}
    return {
        "files": recipe | {"weights": ours},
        "folders": recipe | {"weights": {name: str(root / name) for name in ours}},
        "a pickle": recipe | {"weights": ours | {"language_model": str(root / "language_model.bin")}},
        "pretrained": named,
    }


@pytest.fixture
def mesh():
    dist.init_process_group("fake", rank=RANK, world_size=WORLD, store=FakeStore())
    try:
        yield dist.init_device_mesh("cpu", (WORLD, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["files", "folders", "a pickle", "pretrained"])
def test_a_process_reads_its_share_of_every_tensor(kind, given, mesh):
    recipe = given[kind]
    whole = build({**recipe, "trainer": {}}, opens=None).model
    model = build(recipe, opens=None).model
    waiting = {name: {p.is_meta for p in part.parameters()} for name, part in model.parts().items()}
    assert waiting["vision_encoder"] == waiting["language_model"] == {True}
    assert waiting["projector"] == {False}
    shard(model, model.parts(), mesh)
    materialise(model, torch.device("cpu"))
    model.read_weights()
    ours, theirs = dict(model.named_parameters()), dict(whole.named_parameters())
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert isinstance(parameter, DTensor), name
        if name.startswith(("vision_encoder.", "language_model.")):
            pieces = theirs[name].chunk(WORLD)
            expected = pieces[RANK] if len(pieces) > RANK else theirs[name][:0]
            torch.testing.assert_close(parameter.to_local(), expected, rtol=0, atol=0)
    torch.testing.assert_close(dict(model.named_buffers()), dict(whole.named_buffers()), rtol=0, atol=0)
    network = model.language_model.model
    assert network.lm_head.weight is network.model.embed_tokens.weight


def test_no_process_holds_a_waiting_part_whole(given, mesh):
    """What is allocated for parameters after sharding is this process's share."""
    model = build(given["files"], opens=None).model
    shard(model, model.parts(), mesh)
    materialise(model, torch.device("cpu"))
    held = {p.to_local().untyped_storage()._cdata: p.to_local().untyped_storage().nbytes() for p in model.parameters()}
    total = sum(p.numel() * p.element_size() for p in model.parameters())
    assert sum(held.values()) < total * 0.45  # FSDP2 pads the last share


def test_parts_that_begin_at_random_begin_as_if_no_other_drew_numbers(recipe, given):
    """The same as without sharding where waiting parts draw none there either, as with ``pretrained``."""
    waiting, without = build(given["pretrained"], opens=None).model, build({**given["pretrained"], "trainer": {}}, None)
    torch.testing.assert_close(waiting.projector.state_dict(), without.model.projector.state_dict(), rtol=0, atol=0)
    files = build(given["files"], opens=None).model
    torch.testing.assert_close(waiting.projector.state_dict(), files.projector.state_dict(), rtol=0, atol=0)


def test_only_what_a_file_holds_whole_waits(recipe, given, tmp_path):
    def waiting(recipe):
        return [name for name, part in build(recipe, opens=None).model.parts().items()
                if any(p.is_meta for p in part.parameters())]  # fmt: skip

    assert waiting(recipe) == []
    files = given["files"]
    one = files | {"weights": {"language_model": files["weights"]["language_model"]}}
    assert waiting(one) == ["language_model"]
    larger = json.loads(json.dumps(given["pretrained"]))
    larger["model"]["vision_encoder"]["init_args"] |= {"image_size": 32, "config": None}
    assert waiting(larger) == ["language_model"]  # its positions are resized after they are read
    unsharded = files | {"trainer": {"strategy": "ddp"}}
    assert waiting(unsharded) == []


def test_a_file_that_does_not_fit_is_refused_as_ever(given, tmp_path):
    recipe = json.loads(json.dumps(given["files"]))
    recipe["model"]["language_model"]["init_args"]["config"]["hidden_size"] = 64
    with pytest.raises(ValueError, match=r"weights\.language_model: .*does not fit HFCausalLM"):
        build(recipe, opens=None)


def test_a_restored_run_reads_nothing_but_its_checkpoint(recipe):
    model = build(recipe, opens=None, restored=True).model
    assert all(p.is_meta for name in ("vision_encoder", "language_model") for p in model.parts()[name].parameters())
    model.read_weights()  # nothing to be read, not even a random number
