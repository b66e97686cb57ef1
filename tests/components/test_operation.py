"""Operations against their equations, in the model they gate, and how they train."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from dslight.components import ConditionedGate, DeepStackL, GatedAdd, MLPProjector
from dslight.train.optim import PartTraining, Stage
from dslight.types import IGNORE, Batch
from dslight.vlm import VLM

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


@pytest.mark.parametrize(("activation", "expected"), [("none", [0.0, 2.0, -3.0]), ("tanh", [0.0, 0.9640, -0.9951])])
def test_a_gated_add_scales_each_stack_by_its_own_number(activation, expected):
    operation, hidden, values = GatedAdd(4, 3, activation=activation), torch.randn(5, 4), torch.randn(5, 4)
    with torch.no_grad():
        operation.gate.copy_(torch.tensor([0.0, 2.0, -3.0]))
    for stack, gate in enumerate(expected):
        torch.testing.assert_close(operation(stack, hidden, values), gate * values, atol=1e-3, rtol=0)


def test_a_conditioned_gate_reads_the_residual_stream():
    operation, hidden, values = ConditionedGate(6, 2, init=0.5), torch.randn(5, 6), torch.randn(5, 6)
    torch.testing.assert_close(operation(1, hidden, values), torch.tensor(0.5).tanh() * values)  # weights start at 0
    with torch.no_grad():
        operation.weight[1] = torch.randn(6)
    norm = torch.nn.RMSNorm(6)
    gates = torch.tanh(norm(hidden) @ operation.weight[1] + 0.5)
    torch.testing.assert_close(operation(1, hidden, values), gates[:, None] * values)
    assert gates.std() > 0.1
    torch.testing.assert_close(operation(0, hidden, values), torch.tensor(0.5).tanh() * values)
    torch.testing.assert_close(operation(1, 100 * hidden, values), operation(1, hidden, values), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", [GatedAdd, ConditionedGate])
def test_operations_start_closed_unless_told_otherwise(kind):
    for init, closed in ((0, True), (0.0, True), (1, False), (-0.3, False)):
        operation = kind(8, 2, init=init)
        assert operation.starts_closed == closed
        assert all(p.dtype == torch.float32 for p in operation.parameters())
        added = operation(1, torch.randn(3, 8), torch.ones(3, 8))
        assert bool(added.any()) != closed


@pytest.mark.parametrize("kind", [GatedAdd, ConditionedGate])
def test_operations_keep_the_dtype_of_the_stacks(kind):
    hidden, values = torch.randn(3, 8).bfloat16(), torch.randn(3, 8).bfloat16()
    assert kind(8, 1, init=1.0)(0, hidden, values).dtype == torch.bfloat16


# --- in the model ---------------------------------------------------------------------------------------------------


@pytest.fixture
def make_vlm(tiny_encoder, tiny_lm):
    def make(operation=None) -> VLM:
        torch.manual_seed(0)
        return VLM(tiny_encoder(), MLPProjector, DeepStackL(sites=[1, 2], operation=operation), tiny_lm())

    return make


@pytest.fixture
def batch(make_views):
    torch.manual_seed(0)
    ids = torch.randint(3, 64, (1, 24))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 2:18] = True
    labels = torch.where(torch.arange(24) >= 19, ids, IGNORE)
    return Batch(ids, torch.ones_like(ids), mask, labels, make_views([(1, 2)]), keys=["a"])


@torch.no_grad()
def test_a_closed_gate_is_the_model_without_stacks_and_an_open_one_the_plain_add(
    make_vlm, batch, tiny_encoder, tiny_lm
):
    from dslight.components import LowResolution

    torch.manual_seed(0)
    low = VLM(tiny_encoder(), MLPProjector, LowResolution(), tiny_lm()).eval()(batch)
    plain = make_vlm().eval()(batch)
    assert (plain - low).abs().max() > 1e-3
    torch.testing.assert_close(make_vlm(GatedAdd).eval()(batch), low)
    torch.testing.assert_close(make_vlm(ConditionedGate).eval()(batch), low)
    torch.testing.assert_close(make_vlm(partial(GatedAdd, init=1.0)).eval()(batch), plain)


@pytest.mark.parametrize("kind", [GatedAdd, ConditionedGate])
def test_a_closed_gate_that_does_not_train_is_refused(make_vlm, kind):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
        make_vlm(kind).train_with(Stage({"projector": PartTraining(1e-2)}))
    assert str(caught.value) == (
        "train: the stacking's gates start closed, so nothing would ever come through; give stacking a learning "
        "rate, or its gates an init other than 0"
    )
    make_vlm(partial(kind, init=0.5)).train_with(Stage({"projector": PartTraining(1e-2)}))
    make_vlm(kind).train_with(Stage({"stacking": PartTraining(1e-2)}))


@pytest.mark.parametrize("kind", [GatedAdd, ConditionedGate])
def test_a_closed_gate_opens_when_the_stacking_trains(make_vlm, batch, kind):
    vlm = make_vlm(kind).train()
    stage = Stage({"stacking": PartTraining(1e-2, weight_decay=0.1)}, torch.optim.AdamW, schedule="constant")
    vlm.train_with(stage)
    frozen = {n: p.clone() for n, p in vlm.named_parameters() if not n.startswith("stacking.")}
    pl.Trainer(max_steps=3, accelerator="cpu", **QUIET).fit(vlm, DataLoader([batch] * 3, batch_size=None))
    gate = vlm.stacking.operation.gate if kind is GatedAdd else vlm.stacking.operation.bias
    assert (gate.abs() > 1e-3).all()
    parameters = dict(vlm.named_parameters())
    assert all(torch.equal(parameters[name], before) for name, before in frozen.items())


@pytest.mark.parametrize("kind", [GatedAdd, ConditionedGate])
def test_a_gate_gets_a_zero_gradient_from_a_batch_of_text(make_vlm, kind):
    vlm = make_vlm(partial(kind, init=0.5))
    ids = torch.arange(3, 9)[None]
    vlm(Batch(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in vlm.stacking.parameters())


def test_a_gate_is_not_decayed(make_vlm):
    groups = make_vlm(GatedAdd).stacking.param_groups(lr=1.0, weight_decay=0.1)
    assert [(len(group["params"]), group["weight_decay"]) for group in groups] == [(1, 0.0)]


@torch.no_grad()
def test_a_gate_acts_under_generation_with_a_cache(make_vlm, batch):
    """The same ids as from growing the sequence without a cache."""
    vlm = make_vlm(partial(ConditionedGate, init=0.7)).eval()
    ids = vlm.generate(batch, max_new_tokens=4, pad_token_id=0)
    for step in range(4):
        logits = vlm(batch)
        assert int(logits[0, -1].argmax()) == int(ids[0, step])
        batch.input_ids = torch.cat([batch.input_ids, ids[:, step : step + 1]], dim=1)
        batch.attention_mask = torch.ones_like(batch.input_ids)
        batch.visual_mask = torch.cat([batch.visual_mask, torch.zeros(1, 1, dtype=torch.bool)], dim=1)
