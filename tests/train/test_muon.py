"""Muon for the matrices inside of layers and AdamW for the rest: torch's own, as one optimizer."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import dslight
from dslight.cli import main
from dslight.train import MuonAdamW
from dslight.train.muon import tables

MUON = "stage.optimizer={class_path: dslight.train.MuonAdamW}"


def network() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 6), nn.LayerNorm(6), nn.Linear(6, 9, bias=False))


def loss(model) -> torch.Tensor:
    return nn.functional.cross_entropy(model(torch.arange(9)), torch.arange(9).flip(0))


def groups(model):
    vectors = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim == 2]
    return [
        {"params": matrices, "lr": 0.02, "weight_decay": 0.1, "name": "net.0"},
        {"params": vectors, "lr": 0.02, "weight_decay": 0.0, "name": "net.1"},
    ]


def made(model) -> MuonAdamW:
    optimizer = MuonAdamW(groups(model))
    optimizer.leave_to_adamw([model[0].weight, model[3].weight])
    return optimizer


def test_it_is_torchs_muon_and_torchs_adamw():
    ours, theirs = network(), network()
    optimizer = made(ours)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    apart = [
        torch.optim.Muon([theirs[1].weight], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([theirs[0].weight, theirs[3].weight], lr=0.02, weight_decay=0.1),
        torch.optim.AdamW([p for p in theirs.parameters() if p.ndim < 2], lr=0.02, weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(one, lambda step: 1 / (1 + step)) for one in apart]
    for _ in range(4):
        for model, optimizers in ((ours, [optimizer]), (theirs, apart)):
            model.zero_grad()
            loss(model).backward()
            for one in optimizers:
                one.step()
        for one in [schedule, *schedules]:
            one.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert [group["name"] for group in optimizer.param_groups] == ["net.0 (Muon)", "net.0", "net.1"]


def test_its_state_is_continued_bit_by_bit():
    model = network()
    optimizer = made(model)
    for _ in range(2):
        model.zero_grad()
        loss(model).backward()
        optimizer.step()
    other = copy.deepcopy(model)
    again = made(other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, steps in ((model, optimizer), (other, again)):
        one.zero_grad()
        loss(one).backward()
        steps.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert set(again.state[other[1].weight]) == {"momentum_buffer"}
    assert set(again.state[other[0].weight]) == {"step", "exp_avg", "exp_avg_sq"}


def test_embeddings_and_heads_are_left_to_adamw(tiny_lm):
    lm = tiny_lm(tie_word_embeddings=False)
    names = {id(parameter): name for name, parameter in lm.named_parameters()}
    assert {names[id(table)] for table in tables(lm)} == {"model.model.embed_tokens.weight", "model.lm_head.weight"}
    stage = dslight.Stage({"language_model": dslight.PartTraining(1e-3)}, optimizer=MuonAdamW)
    stage.freeze({"language_model": lm})
    optimizer = stage.optimizers({"language_model": lm}, 10)["optimizer"]
    by_muon = {names[id(p)] for group in optimizer.param_groups if "Muon" in group["name"] for p in group["params"]}
    assert by_muon == {name for name, p in lm.named_parameters() if p.ndim == 2 and "layers" in name}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(names)


def test_a_run_trains_with_it_and_is_continued(fit, logged, tmp_path):
    whole = fit(tmp_path / "whole", MUON, "trainer.log_every_n_steps=1", "checkpoint_every=2")
    assert "language_model  0 (Muon)" in (whole / "optimizer.txt").read_text()
    losses = [float(row["train/loss"]) for row in logged(whole)]
    (whole / "result.json").unlink()
    (whole / "checkpoints" / "step-00000004.ckpt").unlink()
    again = fit(whole, MUON, "trainer.log_every_n_steps=1", "checkpoint_every=2")
    assert [float(row["train/loss"]) for row in logged(again)] == losses
    assert losses[-1] < losses[0]


def test_torchs_own_alone_is_refused_with_the_other_by_name(recipe, tmp_path, capsys):
    assert main(["fit", str(recipe), f"run_dir={tmp_path / 'run'}", "stage.optimizer={class_path: torch.optim.Muon}"])
    assert "dslight.train.MuonAdamW is Muon for matrices and AdamW for the rest" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("momentum", 3.0), ("ns_steps", 0), ("ns_steps", 10**6)])
def test_numbers_that_mean_nothing_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key}: {value}; from"):
        MuonAdamW([torch.nn.Parameter(torch.ones(2, 2))], **{key: value})
