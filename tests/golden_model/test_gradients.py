"""Every gradient of every parameter, by the authors' name."""

import pytest
import torch

from dslight.checkpoints.names import translate
from dslight.nn.loss import next_token_loss

pytestmark = pytest.mark.golden_model


@pytest.fixture
def gradients(gradients_case, tmp_path):
    """Of the mean loss, by the authors' names; and the loss."""
    model = gradients_case.load(tmp_path).train()
    batch = gradients_case.batch(model)
    total, count = next_token_loss(model(batch), batch.labels)
    (total / count).backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    config = gradients_case.config
    theirs = [*config["gradient_l2_norms"], *config["parameters_without_gradient"]]
    names = translate(theirs, depth=model.vision_encoder.depth)
    assert {names[name] for name in theirs} >= set(ours)  # not one of ours is left out
    return (total / count).item(), {name: ours[new] for name, new in names.items() if new in ours}


def test_gradients_are_the_authors(gradients_case, gradients):
    loss, ours = gradients
    assert loss == pytest.approx(gradients_case.outputs["loss"].item(), abs=2e-5)
    expected = gradients_case.tensors(f"{gradients_case.name}/gradients.safetensors")
    assert expected
    for name, theirs in expected.items():
        relative = (ours[name] - theirs).norm() / theirs.norm()
        assert relative < 1e-4, f"{name}: {relative:.1e}"


def test_norms_of_all_gradients_are_the_authors(gradients_case, gradients):
    """A key's bias has none in exact arithmetic: what both have there is rounding."""
    _, ours = gradients
    norms = gradients_case.config["gradient_l2_norms"]
    for name, norm in norms.items():
        assert ours[name].norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name
    assert sum(norm > 1e-3 for norm in norms.values()) > 0.5 * len(norms)


def test_what_gets_no_gradient_there_gets_none_here(gradients_case, gradients):
    _, ours = gradients
    for name in gradients_case.config["parameters_without_gradient"]:
        gradient = ours.get(name)  # image_newline is no parameter of a model that lays no newlines
        assert gradient is None or not torch.any(gradient), name
