"""Layers that are checkpointed or compiled compute what they compute as they are."""

import copy

import pytest
import torch

from dslight.components import DeepStackL, DeepStackV, HFVisionEncoder, MLPProjector
from dslight.nn.loss import next_token_loss
from dslight.train.optim import PartFrozen, PartTraining, Stage
from dslight.train.units import run_units
from dslight.types import IGNORE, Batch
from dslight.vlm import VLM

ALL = ("vision_encoder", "projector", "language_model")
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 4, "initializer_range": 0.5,
}  # fmt: skip


@pytest.fixture
def batch(make_views):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 64, (2, 22), generator=generator)
    visual = torch.zeros(2, 22, dtype=torch.bool)
    visual[0, 1:17] = True
    return Batch(ids, torch.ones_like(ids), visual, torch.where(visual, IGNORE, ids), make_views([(1, 2)]))


@pytest.fixture
def make(tiny_encoder, tiny_lm):
    def build(stacking, encoder=None, lm="llama"):
        torch.manual_seed(0)
        return VLM(encoder or tiny_encoder(), MLPProjector, stacking, tiny_lm(lm)).train()

    return build


def gradients(vlm, batch, **how):
    """Of every parameter, when the parts with layers run so."""
    runs = {name: PartTraining(0.1, **(how if name != "projector" else {})) for name in ALL}
    vlm.train_with(Stage(runs))
    vlm.zero_grad()
    total, count = next_token_loss(vlm(batch), batch.labels)
    (total / count).backward()
    return {name: p.grad.clone() for name, p in vlm.named_parameters() if p.requires_grad}


STACKINGS = {"in the decoder": DeepStackL(num_stacks=2), "in the encoder": DeepStackV(num_stacks=2, start=1)}
ENCODERS = {"timm": lambda: None, "CLIP": lambda: HFVisionEncoder(config=CLIP)}


@pytest.mark.parametrize("how", [{"checkpointing": True}, {"compile": "aot_eager"}], ids=str)
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("where", STACKINGS)
def test_gradients_through_stacks_are_those_of_the_plain_model(make, batch, where, encoder, how):
    vlm = make(STACKINGS[where], ENCODERS[encoder]())
    plain = gradients(vlm, batch)
    torch.testing.assert_close(gradients(vlm, batch, **how), plain, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_gradients_under_inductor_and_checkpointing_are_those_of_the_plain_model(make, batch):
    vlm = make(DeepStackL(num_stacks=2))
    plain = gradients(vlm, batch)
    torch.testing.assert_close(gradients(vlm, batch, compile=True, checkpointing=True), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lm", ["phi3", "gemma3_text", "gpt2"])
def test_other_decoders_too(make, batch, lm):
    vlm = make(DeepStackL(num_stacks=2), lm=lm)
    plain = gradients(vlm, batch)
    torch.testing.assert_close(gradients(vlm, batch, checkpointing=True), plain, atol=1e-6, rtol=1e-5)


def kept(vlm, batch):
    """Bytes that autograd keeps of a forward pass."""
    storages = {}
    weights = {p.untyped_storage().data_ptr() for p in [*vlm.parameters(), *vlm.buffers()]}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        vlm(batch)
    return sum(storage.nbytes() for storage in storages.values())


def test_a_frozen_decoder_that_gradients_pass_through_keeps_less_too(make, batch):
    vlm = make(DeepStackL(num_stacks=2))
    vlm.train_with(Stage({"projector": PartTraining(0.1)}))
    plain = kept(vlm, batch)
    vlm.train_with(Stage({"projector": PartTraining(0.1)}, frozen={"language_model": PartFrozen(checkpointing=True)}))
    assert not vlm.language_model.training
    assert kept(vlm, batch) < 0.5 * plain


def test_a_layer_runs_again_in_the_backward_pass_and_once_without_gradients(make, batch):
    vlm = make(DeepStackL(num_stacks=2))
    vlm.train_with(Stage({name: PartTraining(0.1, checkpointing=name == "language_model") for name in ALL}))
    runs = []
    vlm.language_model.layers[0].self_attn.register_forward_hook(lambda *args: runs.append(1))
    next_token_loss(vlm(batch), batch.labels)[0].backward()
    assert len(runs) == 2
    with torch.no_grad():
        vlm(batch)
    assert len(runs) == 3


def test_compiled_layers_are_compiled_once_for_all_layers_and_batches(make, batch):
    """The injector's hooks come and go with every batch: were they traced, each batch would compile anew."""
    torch._dynamo.reset()
    vlm = make(DeepStackL(num_stacks=2))
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    torch._dynamo.register_backend(counter, "counter")
    try:
        run_units(vlm.language_model, compile="counter")
        for _ in range(3):
            next_token_loss(vlm(batch), batch.labels)[0].backward()
    finally:
        torch._dynamo.reset()
    assert counter.frame_count == 1


def test_generation_runs_the_plain_layers(make, batch):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    vlm = make(DeepStackL(num_stacks=2)).eval()
    with torch.no_grad():
        expected = vlm.generate(batch, max_new_tokens=4, pad_token_id=0)
        run_units(vlm.language_model, compile="aot_eager")
        assert torch.equal(vlm.generate(batch, max_new_tokens=4, pad_token_id=0), expected)
    assert not torch._dynamo.utils.counters["stats"].get("calls_captured")


def test_names_are_those_of_the_plain_model_and_the_treatment_can_be_taken_back(make, batch):
    vlm = make(DeepStackL(num_stacks=2))
    names, logits = list(vlm.state_dict()), vlm(batch)
    run_units(vlm.language_model, checkpointing=True, compile="aot_eager")
    assert list(vlm.state_dict()) == names
    run_units(vlm.language_model)
    assert not any("forward" in vars(unit) for unit in vlm.language_model.shard_units)
    assert torch.equal(vlm(batch), logits)


def test_a_copy_runs_its_own_weights(make, batch):
    """Moving averages copy the model."""
    vlm = make(DeepStackL(num_stacks=2))
    run_units(vlm.language_model, checkpointing=True, compile="aot_eager")
    vlm(batch)
    other = copy.deepcopy(vlm)
    with torch.no_grad():
        for parameter in vlm.language_model.parameters():
            parameter.zero_()
    assert not vlm(batch).any()
    assert other(batch).any()
