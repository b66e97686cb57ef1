"""What every part shares: hooks that never fire, freezing, parameter groups, its own weights file."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dslight.components import Component, DeepStackL, MLPProjector, Objective, PatchClassification
from dslight.components.component import WeightsError, save_weights, warn_of_idle_hooks


def spoken_of(part):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_idle_hooks(part)
    return [str(one.message) for one in caught]


def test_hooks_that_would_never_fire_are_named_once():
    class Theirs(pl.LightningModule):
        def training_step(self, batch, batch_idx):
            return None

        def on_train_start(self):
            return None

        def on_demand(self):  # is none
            return None

    class Mine(Component):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(Theirs())

        def configure_optimizers(self):
            return None

    part = Mine()
    said = sorted(spoken_of(part))
    assert [text.split(": Lightning")[0] for text in said] == [
        "Mine defines configure_optimizers",
        "Theirs defines on_train_start, training_step",
    ]
    assert spoken_of(part) == spoken_of(Mine()) == []


def test_the_library_s_own_parts_define_none(tiny_encoder, tiny_lm):
    assert [spoken_of(part) for part in (tiny_encoder(), tiny_lm(), MLPProjector([4], 3), DeepStackL())] == [[]] * 4


@pytest.mark.parametrize("hook", ["on_train_start", "setup"])
def test_lightning_calls_hooks_on_the_root_alone(hook):
    """The fact that the warning rests on."""
    called = []

    class Part(pl.LightningModule):
        pass

    setattr(Part, hook, lambda self, *args, **kwargs: called.append("part"))

    class Root(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.part, self.weight = Part(), nn.Parameter(torch.zeros(()))

        def training_step(self, batch, batch_idx):
            return self.weight * 1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    setattr(Root, hook, lambda self, *args, **kwargs: called.append("root"))
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    pl.Trainer(max_steps=1, accelerator="cpu", **quiet).fit(Root(), [0])
    assert called == ["root"]


class Part(Component):
    def __init__(self, width=4):
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(width, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.drop(self.norm(self.linear(x))) * (1 + self.gate)


def test_a_frozen_part_stays_in_evaluation_mode():
    root = nn.ModuleDict({"frozen": Part(), "trained": Part()})
    root["frozen"].freeze()
    root.train()
    assert not any(m.training for m in root["frozen"].modules())
    assert all(m.training for m in root["trained"].modules())
    x = torch.randn(8, 4)
    before = {k: v.clone() for k, v in root["frozen"].state_dict().items()}
    assert torch.equal(root["frozen"](x), root["frozen"](x))  # no dropout
    assert all(torch.equal(v, before[k]) for k, v in root["frozen"].state_dict().items())  # no moving statistics
    assert not any(p.requires_grad for p in root["frozen"].parameters())
    root["frozen"].requires_grad_(True)
    assert root.train()["frozen"].drop.training  # and trains again when it is thawed


def test_matrices_decay_and_vectors_do_not():
    part = Part()
    part.linear.weight.requires_grad_(True)
    part.norm.weight.requires_grad_(False)
    part.objective = PatchClassification(4, 2)
    decayed, plain = part.param_groups(lr=0.1, weight_decay=0.2)
    assert decayed == {"params": [part.linear.weight], "lr": 0.1, "weight_decay": 0.2}
    assert (plain["lr"], plain["weight_decay"]) == (0.1, 0.0)
    assert {id(p) for p in plain["params"]} == {id(part.linear.bias), id(part.norm.bias), id(part.gate)}
    part.requires_grad_(False)
    assert part.param_groups(0.1, 0.2) == []


def test_the_objective_is_no_part_of_the_state():
    part = Part()
    own = set(part.own_state())
    part.objective = PatchClassification(4, 2)
    assert any(name.startswith("objective.") for name in part.state_dict())
    assert set(part.own_state()) == own
    assert {id(p) for p in part.own_parameters()} == {id(p) for n, p in part.named_parameters() if "objective" not in n}
    assert list(part.parts()) == ["component", "objective"]


def test_weights_make_the_round_trip(tmp_path):
    part, other = Part(), Part()
    part(torch.randn(8, 4))  # moves the norm's statistics: buffers travel too
    path = tmp_path / "deep" / "part.safetensors"
    save_weights(part.own_state(), path)
    assert set(load_file(path)) == set(part.state_dict())
    assert [p.name for p in path.parent.iterdir()] == ["part.safetensors"]
    other.objective = PatchClassification(4, 2)
    head = other.objective.base_head.weight.clone()
    other.load_weights(path)
    assert all(torch.equal(value, part.state_dict()[name]) for name, value in other.own_state().items())
    assert torch.equal(other.objective.base_head.weight, head)


def test_tied_weights_are_written_under_every_name(tmp_path):
    part = Part(width=3)
    part.twin = nn.Linear(3, 3)
    part.twin.weight = part.linear.weight
    save_weights(part.own_state(), tmp_path / "w.safetensors")
    stored = load_file(tmp_path / "w.safetensors")
    assert torch.equal(stored["twin.weight"], stored["linear.weight"])


def test_a_file_that_does_not_fit_is_refused_with_every_tensor(tmp_path):
    state = {name: value for name, value in Part(width=5).own_state().items() if name != "gate"}
    save_weights({**state, "extra": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    part = Part()
    before = {k: v.clone() for k, v in part.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        part.load_weights(tmp_path / "w.safetensors")
    assert str(caught.value).splitlines() == [
        f"{tmp_path / 'w.safetensors'} does not fit Part:",
        "  missing gate ()",
        "  unexpected extra (2, 2)",
        "  linear.weight is (3, 5) in the file, (3, 4) in the model",
    ]
    assert all(torch.equal(v, before[k]) for k, v in part.state_dict().items())


def test_many_misfits_are_cut_short(tmp_path):
    save_weights({f"other.{i}": torch.zeros(1) for i in range(30)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"\.\.\. and 14 more"):  # 4 tensors of the projector are missing
        MLPProjector([4], 3).load_weights(tmp_path / "w.safetensors")


def test_fitted_alone_it_asks_for_what_is_missing():
    with pytest.raises(RuntimeError, match=r"Part is fitted alone, but has no objective: dslight\.fit"):
        Part().training_step(None, 0)
    with pytest.raises(RuntimeError, match="Part is fitted alone, but has no stage"):
        Part().configure_optimizers()
    with pytest.raises(NotImplementedError, match="Objective does not define forward"):
        Objective()(Part(), None)
