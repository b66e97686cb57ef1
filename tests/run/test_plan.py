"""The plan's numbers against arithmetic, against the real model, and against what autograd really keeps."""

import json

import pytest
import torch
from said import messages
from transformers import AutoTokenizer

from dslight.cli import main
from dslight.components import HFCausalLM
from dslight.recipe.build import build
from dslight.recipe.compose import compose
from dslight.run.plan import plan

TEXT = 20


@pytest.fixture(scope="module")
def values(recipe):
    """The tiny recipe at widths where products, not overheads, are what counts."""
    config = "model.language_model.init_args.config"
    wide = [f"{config}.hidden_size=128", f"{config}.intermediate_size=256", f"{config}.num_hidden_layers=5"]
    return compose(recipe, wide)


@pytest.fixture(scope="module")
def planned(values):
    return plan(values, text_tokens=TEXT)


@pytest.fixture(scope="module")
def real(values):
    return build(values).model


def part(planned, name):
    return next(part for part in planned.parts if part.name == name)


def test_the_flops_of_a_llama_are_two_per_weight_and_token_and_the_attentions(planned, real):
    """Kaplan et al.: 2 N per token for the N weights that are multiplied, 4 T^2 D per layer for scores and values."""
    model = real.language_model
    tokens = planned.context_length + TEXT
    multiplied = sum(p.numel() for p in model.parameters() if p.ndim == 2) - model.embedding.weight.numel()
    expected = 2 * multiplied * tokens + model.depth * 4 * tokens**2 * model.width
    assert part(planned, "language_model").forward_flops == pytest.approx(expected, rel=0.02)


def test_the_flops_of_the_encoder_and_the_projector_grow_with_the_views(planned, values, real):
    encoder, tokens = real.vision_encoder, 16
    multiplied = sum(p.numel() for p in encoder.layers.parameters() if p.ndim == 2)
    patchify = encoder.model.patch_embed.proj.weight.numel()
    one = 2 * (multiplied + patchify) * tokens + encoder.depth * 4 * tokens**2 * encoder.width
    assert part(planned, "vision_encoder").forward_flops == pytest.approx(5 * one, rel=0.02)
    expected = 5 * tokens * 2 * sum(p.numel() for p in real.projector.parameters() if p.ndim == 2)
    assert part(planned, "projector").forward_flops == pytest.approx(expected, rel=0.02)


def test_the_parameters_are_the_real_models(planned, real):
    for name, module in real.parts().items():
        assert part(planned, name).parameters == sum(p.numel() for p in module.parameters())
        assert part(planned, name).trainable == sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("frozen", [(), ("vision_encoder",), ("vision_encoder", "language_model")])
def test_the_activations_are_what_autograd_keeps_of_a_real_forward_pass(values, frozen):
    values = values | {"stage": values["stage"] | {"train": dict(values["stage"]["train"])}}
    for name in frozen:
        del values["stage"]["train"][name]
    experiment = build(values | {"data": values["data"] | {"micro_batch_size": 1}})
    model, data = experiment.model, experiment.data
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(batch)
    text = batch.input_ids.shape[1] - 16
    predicted = plan(experiment.recipe, text_tokens=text).memory
    assert predicted.activations == pytest.approx(sum(s.nbytes() for s in kept.values()), rel=0.05)


def test_the_memory_is_that_of_weights_gradients_and_two_optimizer_states(planned, real):
    size = sum(p.nbytes for p in real.parameters())
    memory = planned.memory
    assert (memory.weights, memory.gradients, memory.optimizer, memory.unsharded) == (size, size, 2 * size, 0)
    assert memory.total == 4 * size + memory.activations


def test_ranks_share_weights_but_not_activations(planned, values):
    two = plan(values, world_size=2, text_tokens=TEXT)
    assert two.micro_batch_size == planned.micro_batch_size == 4
    assert two.memory.weights == planned.memory.weights // 2
    assert two.memory.optimizer == planned.memory.optimizer // 2
    assert two.memory.activations == planned.memory.activations
    assert two.memory.unsharded > 0


def test_the_plan_is_printed_for_people_and_as_json(recipe, capsys):
    assert main(["plan", str(recipe), "--json", "--world-size", "2", "--text-tokens", "5"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["world_size"], made["text_tokens"], made["context_length"]) == (2, 5, 16)
    assert made["visual_tokens"] == 80
    assert made["grids"] == [[2, 2]]
    assert made["effective_resolution"] == [32, 32]
    assert made["forward_flops"] == sum(part["forward_flops"] for part in made["parts"])
    assert main(["plan", str(recipe)]) == 0
    text = capsys.readouterr().out
    assert "visual tokens    80 read, 16 in the context" in text
    assert "language_model layer 3     + stack 4 (crops, 2d, tap final)" in text
    assert main(["plan", str(recipe), "--image", "64x32"]) == 1
    assert "--image: every view of this recipe is 16 x 16, whatever the image" in capsys.readouterr().err


def test_without_its_cost_a_plan_has_all_but_flops_and_memory(recipe, capsys):
    counted = []
    for arguments in ([], ["--no-cost"]):
        assert main(["plan", str(recipe), "--json", *arguments]) == 0
        counted.append(json.loads(capsys.readouterr().out))
    whole, quick = counted
    assert quick["memory"] is None
    assert [part.pop("forward_flops") for part in quick["parts"]] == [None] * 4
    assert all(part.pop("forward_flops") is not None for part in whole["parts"])
    assert {key: value for key, value in whole.items() if key in quick and key != "memory"} == {
        key: value for key, value in quick.items() if key != "memory"
    }
    assert main(["plan", str(recipe), "--no-cost"]) == 0
    text = capsys.readouterr().out
    assert "visual tokens    80 read, 16 in the context" in text
    assert not [word for word in ("FLOPs", "memory") if word in text]


def test_a_context_longer_than_the_model_was_made_for_is_noted(recipe, capsys):
    short = "model.language_model.init_args.config.max_position_embeddings={}".format
    assert main(["plan", str(recipe), "--no-cost", "--text-tokens", "9", short(24)]) == 0
    assert "note: 16 visual + 9 text positions are more than the 24 that" in capsys.readouterr().out
    assert main(["plan", str(recipe), "--no-cost", "--text-tokens", "9", short(25)]) == 0
    assert "note:" not in capsys.readouterr().out


def test_a_world_that_cannot_share_the_global_batch_is_refused(recipe, capsys):
    assert main(["plan", str(recipe), "--world-size", "3"]) == 1
    assert messages(capsys.readouterr().err) == (
        "dslight: data.global_batch_size: 8 is no multiple of 3 ranks x data.micro_batch_size 4\n"
    )


def test_ranks_that_hold_a_copy_of_the_model_share_it_among_fewer(values):
    strategy = {"class_path": "dslight.train.Sharded", "init_args": {"replicate": 2}}
    copies = plan({**values, "trainer": {**values.get("trainer", {}), "strategy": strategy}}, 2, text_tokens=TEXT)
    alone, shared = plan(values, 1, text_tokens=TEXT), plan(values, 2, text_tokens=TEXT)
    assert copies.memory.weights == alone.memory.weights == 2 * shared.memory.weights
    assert copies.memory.optimizer == alone.memory.optimizer
    assert copies.micro_batch_size == shared.micro_batch_size


THINKS = (
    "{% for m in messages %}<{{ m.role }}> {% if loop.last and m.role == 'assistant' %}<think> </think> {% endif %}"
    "{{ m.content }} <eos> {% endfor %}{% if add_generation_prompt %}<assistant> "
    "{% if enable_thinking is false %}<think> </think> {% endif %}{% endif %}"
)


def test_what_the_tokenizers_template_does_is_found_out(recipe, pages, tmp_path, capsys):
    tokenizer = AutoTokenizer.from_pretrained(pages / "tokenizer", trust_remote_code=False)
    tokenizer.chat_template = THINKS
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    changes = ["data.template=tokenizer", f"model.language_model.init_args.tokenizer={tmp_path / 'tokenizer'}"]
    assert main(["plan", str(recipe), "--no-cost", *changes]) == 1
    said = messages(capsys.readouterr().err)
    assert said.startswith("dslight: data.template: the tokenizer's puts '<think> </think> ' before an answer")
    assert "data.thinking: false" in said
    assert main(["fit", str(recipe), *changes, f"run_dir={tmp_path / 'run'}"]) == 1
    assert "data.template: the tokenizer's puts '<think> </think> '" in capsys.readouterr().err
    assert main(["plan", str(recipe), "--no-cost", *changes, "data.thinking=false"]) == 0
    assert "only the last answer of a conversation is learnt" in capsys.readouterr().out
    assert main(["plan", str(recipe), "--no-cost", "data.thinking=false", "data.template=bare"]) == 1
    assert "data.thinking: false, which only data.template: tokenizer has, not bare" in capsys.readouterr().err


def test_a_head_that_is_not_found_is_noted(recipe, capsys, monkeypatch):
    assert main(["plan", str(recipe)]) == 0
    assert "logits of all positions" not in capsys.readouterr().out
    monkeypatch.setattr(HFCausalLM, "head", None)
    assert main(["plan", str(recipe)]) == 0
    assert "note: the language model's head was not found" in capsys.readouterr().out


def test_the_sources_of_questions_that_a_base_names_are_told_with_its_file(recipe, tmp_path):
    base, own = tmp_path / "base.yaml", tmp_path / "own.yaml"
    base.write_text(f"bases: [{recipe}]\ndata: {{val: {{few: {{root: /x, benchmark: docvqa}}}}}}\n")
    own.write_text(f"bases: [{base}]\ndata: {{val: {{mine: {{root: /y}}}}}}\n")
    said = plan(compose(own, ["data.val.last.root=/z"]), cost=False).notes
    assert f"note: data.val: pages inherited from {recipe}" in said
    assert f"note: data.val: few inherited from {base}" in said
    assert not [note for note in plan(compose(own, ["data.val=[mine]"]), cost=False).notes if "inherited" in note]
