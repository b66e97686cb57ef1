"""A question looked into, as a notebook and the page show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dslight
from dslight.diagnostics.groups import Groups
from dslight.diagnostics.heat import relevance
from dslight.nn.intervention import intervene
from dslight.pictures.look import act_of, look

LLAMA = {
    "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "vocab_size": 64,
    "num_key_value_heads": 2, "intermediate_size": 48, "bos_token_id": 1, "eos_token_id": None,
    "initializer_range": 0.3,
}  # fmt: skip
SIZES: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2}


@pytest.fixture(scope="module")
def model(pages) -> Any:
    from transformers import AutoTokenizer

    torch.manual_seed(0)
    encoder = dslight.TimmEncoder("vit_tiny_patch16_224", model_args=SIZES)
    made = dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackL(crops=4), dslight.HFCausalLM(config=LLAMA))
    made.tokenizer = AutoTokenizer.from_pretrained(pages / "tokenizer")
    return made.eval()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))


def test_what_is_found_is_the_models_own(model, picture):
    found = look(model, "A1 B2", picture, max_new_tokens=4)
    assert found.answer == model.answer("A1 B2", picture, max_new_tokens=4)
    taught = model.processor.teach("A1 B2", found.answer, picture)
    with torch.no_grad():
        assert found.log_likelihood == pytest.approx(-float(model.loss(taught)[0]), rel=1e-5)
    assert [token for token in found.tokens if isinstance(token, int)] == [16]
    assert {"A1", "B2"} <= set(found.tokens)
    assert [norm.group.number for norm in found.norms] == [1, 2, 3, 4]
    (panels,) = found.panels
    assert [panel.slot for panel in panels] == [0, 1, 2, 3, 4]
    expected = relevance(model, taught).slots
    for panel in panels:
        assert float(panel.heat.sum()) == pytest.approx(float(expected[panel.slot].sum()), rel=1e-3, abs=1e-5)
    blind = look(model, "A1", max_new_tokens=4)
    assert (blind.norms, blind.panels, blind.views) == ([], [], None)
    assert all(isinstance(token, str) for token in blind.tokens)


def test_stacks_that_are_off_add_nothing_and_the_others_keep_their_numbers(model, picture):
    act = act_of(Groups(model), off=[2])
    found = look(model, "A1", picture, act=act, max_new_tokens=4)
    with intervene(Groups(model).without([2])):
        assert found.answer == model.answer("A1", picture, max_new_tokens=4)
    filled = {norm.group.number: norm.filled for norm in found.norms}
    assert filled == {1: 1.0, 2: 0.0, 3: 1.0, 4: 1.0}
    heats = {panel.slot: float(panel.heat.abs().sum()) for panel in found.panels[0]}
    assert heats[2] == 0
    assert all(heats[slot] > 0 for slot in (0, 1, 3, 4))
    whole = look(model, "A1", picture, answer=found.answer)
    assert found.norms[0].relative == pytest.approx(whole.norms[0].relative)
    assert found.norms[2].relative != pytest.approx(whole.norms[2].relative)  # what is behind sees another stream


def test_swapped_stacks_are_off_and_on_by_their_sites(model, picture):
    groups = Groups(model)
    act = act_of(groups, off=[1], swapped=True)
    order = groups.permuted(0)
    found = look(model, "A1", picture, act=act, max_new_tokens=4)

    def both(injection: Any) -> Any:
        return groups.without([1])(order(injection))

    with intervene(both):
        assert found.answer == model.answer("A1", picture, max_new_tokens=4)
    assert act_of(groups) is None


def test_a_notebook_gets_figures(model, picture, tmp_path):
    import matplotlib.figure

    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    views, heat = model.show(picture), model.explain("A1", picture, answer="7")
    assert isinstance(views, matplotlib.figure.Figure)
    assert [axis.get_title() for axis in views.axes][:3] == ["base view", "crop 1, 1", "crop 1, 2"]
    assert views.get_suptitle() == "5 views of 16 x 16 pixels, 4 x 4 patches each; 16 tokens in the sequence, 4 stacks"
    assert [axis.get_title().splitlines()[0] for axis in heat.axes if axis.get_title()] == [
        "base tokens",
        *(f"stack {n}, language model layer {n}" for n in range(1, 5)),
    ]
    assert heat.get_suptitle().startswith("A1\nlog-likelihood ")
    for name, figure in (("views", views), ("heat", heat)):
        figure.savefig(tmp_path / f"{name}.png")
        assert Path(tmp_path / f"{name}.png").stat().st_size > 5_000
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="there is no image"):
        model.explain("A1", None)
    with pytest.raises(ValueError, match=r"there is no file nowhere\.png"):
        model.show("nowhere.png")
