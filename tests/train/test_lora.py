"""Low-rank adapters: peft's numbers, and no trace of them outside of a run."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from dslight.cli import main
from dslight.components import CrossAttention, DeepStackL, HFCausalLM, MLPProjector
from dslight.components.component import Component, save_weights
from dslight.matrix.tiny import tiny
from dslight.nn.loss import next_token_loss
from dslight.recipe.build import build
from dslight.recipe.compose import compose
from dslight.run.evaluate import trained
from dslight.train.lora import LoRA, coverage, merged
from dslight.train.optim import PartTraining, Stage
from dslight.types import IGNORE, Batch
from dslight.vlm import VLM


@pytest.fixture
def make(tiny_encoder, tiny_lm):
    def build(stacking=None, lm="llama"):
        torch.manual_seed(0)
        return VLM(tiny_encoder(), MLPProjector, stacking or DeepStackL(num_stacks=2), tiny_lm(lm)).train()

    return build


@pytest.fixture
def batch(make_views):
    ids = torch.randint(0, 64, (2, 22), generator=torch.Generator().manual_seed(0))
    visual = torch.zeros(2, 22, dtype=torch.bool)
    visual[0, 1:17] = True
    return Batch(ids, torch.ones_like(ids), visual, torch.where(visual, IGNORE, ids), make_views([(1, 2)]))


def learn(vlm, batch, how, steps=3):
    """Some steps of plain SGD."""
    vlm.train_with(Stage(how, torch.optim.SGD, schedule="constant", warmup_steps=0))
    optimizer = vlm.stage.optimizers(vlm.parts(), steps)["optimizer"]
    for _ in range(steps):
        optimizer.zero_grad()
        total, count = next_token_loss(vlm(batch), batch.labels)
        (total / count).backward()
        optimizer.step()
    return vlm


@pytest.mark.parametrize("lm", ["llama", "gpt2"])  # gpt2 keeps its weights transposed
def test_the_merged_state_is_that_of_pefts_own_merge(tiny_lm, lm):
    torch.manual_seed(0)
    part = tiny_lm(lm)
    names = ["q_proj", "down_proj"] if lm == "llama" else ["c_attn"]
    theirs = get_peft_model(copy.deepcopy(part.model), LoraConfig(r=3, lora_alpha=5, target_modules=names))
    stage = Stage({"language_model": PartTraining(0.1, lora=LoRA(3, 5.0, names))})
    stage.freeze({"language_model": part})
    adapters = {name: p for name, p in part.named_parameters() if ".lora_" in name}
    reference = {name.split("base_model.model.")[-1]: p for name, p in theirs.named_parameters() if ".lora_" in name}
    assert {name.removeprefix("model.") for name in adapters} == reference.keys()
    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.normal_(std=0.3)
            reference[name.removeprefix("model.")].copy_(parameter)
    expected = {f"model.{name}": value for name, value in theirs.merge_and_unload().state_dict().items()}
    torch.testing.assert_close(merged(part), expected)


PARTS = {
    "language_model": LoRA(r=4, alpha=8.0),
    "vision_encoder": LoRA(r=2, alpha=8.0, target_modules=["attn.qkv", "fc1"]),
    "projector": LoRA(r=2, alpha=8.0),
}


def test_adapters_train_on_any_part_the_rest_stays_and_merged_weights_give_the_same_logits(make, batch):
    plain = make()
    vlm = learn(make(), batch, {name: PartTraining(0.2, lora=lora) for name, lora in PARTS.items()})
    trained = {name for name, p in vlm.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert {name.split(".")[0] for name in trained} == set(PARTS)
    for name, part in plain.parts().items():
        before = part.state_dict()
        for key, tensor in vlm.parts()[name].own_state().items():
            assert torch.equal(tensor, before[key]), key
    logits = vlm.eval()(batch)
    assert (logits - plain.eval()(batch)).abs().max() > 1e-2  # they have learned something
    for name, part in plain.parts().items():
        part.load_state_dict(merged(vlm.parts()[name]))
    torch.testing.assert_close(plain(batch), logits, atol=2e-5, rtol=1e-5)


def test_at_first_adapters_change_nothing_and_leave_the_random_numbers_alone(make, batch):
    plain, vlm = make(), make()
    expected = plain(batch)
    torch.manual_seed(1)
    vlm.train_with(Stage({"language_model": PartTraining(0.1, lora=LoRA())}))
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    assert torch.equal(vlm(batch), expected)


def test_all_linear_leaves_the_head_and_the_embedding_alone(make):
    vlm = make()
    vlm.train_with(Stage({"language_model": PartTraining(0.1, lora=LoRA())}))
    adapted = {name.split(".lora_")[0].split(".")[-1] for name, p in vlm.named_parameters() if p.requires_grad}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_a_second_stage_finds_the_adapters_of_the_first(make, batch):
    how = {"language_model": PartTraining(0.2, lora=LoRA(r=2))}
    vlm = learn(make(), batch, how)
    before = copy.deepcopy(vlm.state_dict())
    vlm.train_with(Stage(how))
    assert before.keys() == vlm.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in vlm.state_dict().items())


def test_files_of_a_part_are_read_into_its_weights(make, tmp_path):
    """A part gets its adapters before its weights: files know nothing of them."""
    plain, vlm = make(), make()
    with torch.no_grad():
        for parameter in plain.language_model.parameters():
            parameter.add_(1.0)
    save_weights(plain.language_model.own_state(), tmp_path / "w.safetensors")
    vlm.train_with(Stage({"language_model": PartTraining(0.1, lora=LoRA())}))
    vlm.language_model.load_weights(tmp_path / "w.safetensors")
    torch.testing.assert_close(merged(vlm.language_model), plain.language_model.state_dict(), atol=0, rtol=0)


def test_blocks_of_cross_attention_take_adapters(make, batch):
    stacking = CrossAttention(num_layers=2, num_crops=3, heads=2, head_dim=8, init=0.5)
    vlm = learn(make(stacking), batch, {"stacking": PartTraining(0.1, lora=LoRA(r=2))}, steps=1)
    assert all(p.grad is not None for p in vlm.stacking.parameters() if p.requires_grad)


def test_an_encoder_of_torchs_own_layers_takes_adapters_where_they_are_used():
    """``nn.MultiheadAttention`` reads its output layer's weights instead of calling it."""

    class Part(Component):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, x):
            return self.layer(x)

    part = Part()
    Stage({"component": PartTraining(0.1, lora=LoRA())}).freeze({"component": part})
    part(torch.rand(1, 3, 8)).sum().backward()
    trained = {name: p for name, p in part.named_parameters() if p.requires_grad}
    assert {name.split(".lora_")[0] for name in trained} == {"layer.linear1", "layer.linear2"}
    assert all(p.grad is not None for p in trained.values())


def test_a_run_with_adapters_hands_over_and_exports_merged_weights(fit, tmp_path):
    lora = "stage.train.language_model.lora={r: 2, alpha: 64}"
    folder = fit(tmp_path / "run", lora, "stage.train.language_model.checkpointing=true")
    experiment = trained(compose(folder / "recipe.yaml"))
    experiment.data.setup("fit")
    batch = next(iter(experiment.data.train_dataloader()))
    adapters = [p for name, p in experiment.model.named_parameters() if ".lora_B." in name]
    assert adapters
    assert all(p.any() for p in adapters)
    logits = experiment.model.eval()(batch)

    files = [folder / "weights" / f"{name}.safetensors" for name in PARTS]
    assert not [name for file in files for name in load_file(file) if "lora" in name or "base_layer" in name]
    weights = ", ".join(f"{file.stem}: {file}" for file in files)
    plain = ["stage.train.language_model.lora=null", f"weights={{{weights}}}"]
    handed = build(compose(folder / "recipe.yaml", plain), opens=None).model
    torch.testing.assert_close(handed.eval()(batch), logits, atol=2e-5, rtol=1e-5)

    assert main(["export", str(folder), str(tmp_path / "out")]) == 0
    exported = build(compose(tmp_path / "out" / "dslight.yaml"), opens=None).model
    torch.testing.assert_close(exported.eval()(batch), logits, atol=2e-5, rtol=1e-5)


def test_how_much_of_a_part_is_adapted_is_said():
    """Experts that are one parameter of three dimensions are no layers, and get none."""
    lm = HFCausalLM(config=tiny("mixtral"))
    Stage({"language_model": PartTraining(0.1, lora=LoRA())}).freeze({"language_model": lm})
    found = coverage(lm)
    names = dict(lm.named_parameters())
    assert found.parameters == sum(p.numel() for name, p in names.items() if ".lora_" not in name)
    assert found.adapted == sum(p.numel() for name, p in names.items() if name.endswith(".base_layer.weight"))
    experts = [p.numel() for name, p in names.items() if name.endswith("experts.gate_up_proj")]
    assert found.left["experts.gate_up_proj"] == sum(experts) > found.adapted > 0
    assert f"of {found.parameters:,} parameters" in str(found)
    assert "without adapters are experts.gate_up_proj (" in str(found)
