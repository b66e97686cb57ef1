"""A run goes on for more steps, or branches from another one, exactly where that fits and by name where it does not."""

import json
import shutil

import pytest

from dslight.cli import main
from dslight.recipe.compose import compose, to_yaml
from dslight.train.schedule import Schedule

CONSTANT = "stage.schedule=constant_with_warmup"
WSD = "stage.schedule={name: warmup_stable_decay, num_decay_steps: 2}"
ALL = ["checkpoint_every=1", "checkpoint_keep=20"]


@pytest.fixture(scope="module")
def quick(recipe, tmp_path_factory):
    """The recipe without questions, every loss logged."""
    values = compose(recipe, ["trainer.log_every_n_steps=1", "trainer.max_epochs=null", "stage.warmup_steps=1"])
    values["data"].pop("val", None)
    values.pop("validate_every", None)
    file = tmp_path_factory.mktemp("quick") / "recipe.yaml"
    file.write_text(to_yaml(values))
    return file


@pytest.fixture(scope="module")
def run(quick, fit):
    def call(folder, steps, *arguments):
        return fit(folder, f"trainer.max_steps={steps}", *arguments, file=quick)

    return call


def refused(quick, folder, capsys, *arguments) -> str:
    capsys.readouterr()
    assert main(["fit", str(quick), f"run_dir={folder}", *arguments]) == 1
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def constant(run, tmp_path_factory):
    """Seven steps at a constant rate."""
    return run(tmp_path_factory.mktemp("constant") / "run", 7, CONSTANT, *ALL)


@pytest.fixture(scope="module")
def wsd(run, tmp_path_factory):
    """Seven steps, of which the last two decay."""
    return run(tmp_path_factory.mktemp("wsd") / "run", 7, WSD, *ALL)


def test_an_extended_run_is_the_run_of_that_length(constant, run, quick, tmp_path, capsys):
    short = run(tmp_path / "run", 4, CONSTANT, *ALL)
    assert short.json("result.json")["steps"] == 4
    longer = run(tmp_path / "run", 7, CONSTANT, *ALL, "--extend")
    assert longer.json("result.json")["steps"] == 7
    assert longer.losses() == constant.losses()
    for name, tensor in longer.weights().items():
        assert tensor.equal(constant.weights()[name]), name
    assert "max_steps: 7" in (tmp_path / "run" / "recipe.yaml").read_text()
    written = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    run(tmp_path / "run", 7, CONSTANT, *ALL, "--extend")
    assert (tmp_path / "run" / "result.json").stat().st_mtime_ns == written  # it was trained already


def test_a_decay_is_taken_back_to_the_last_checkpoint_before_it(wsd, run, tmp_path, capsys):
    """Extended from 5 to 7, the decay of steps 4 and 5 is undone; the losses are those of 7 steps from the start."""
    run(tmp_path / "run", 5, WSD, *ALL)
    longer = run(tmp_path / "run", 7, WSD, *ALL, "--extend")
    assert "of the end that the run had before it was extended" in capsys.readouterr().out
    assert longer.losses() == wsd.losses()


def test_a_cosine_is_not_extended_and_nothing_changes(run, quick, tmp_path, capsys):
    short = run(tmp_path / "run", 3, "stage.schedule=cosine", *ALL[1:])
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    said = refused(quick, tmp_path / "run", capsys, "stage.schedule=cosine", ALL[1], "trainer.max_steps=5", "--extend")
    assert "--extend: cosine has other learning rates over 5 steps than over 3 from step 3 on" in said
    assert "--branch" in said
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert short.json("result.json")["steps"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trainer.max_steps=9", "stage.train.projector.lr=0.5"], "stage.train.projector.lr"),
        (["trainer.max_steps=6"], "trainer.max_steps: 6; --extend needs more than the 7 that the run has"),
        (["trainer.max_steps=-1", "trainer.max_epochs=2"], "--extend: trainer.max_steps is missing"),
    ],
)
def test_only_the_length_may_differ(constant, quick, capsys, arguments, said):
    assert said in refused(quick, constant.path, capsys, CONSTANT, *ALL, *arguments, "--extend")


def test_there_has_to_be_a_run_to_extend(quick, tmp_path, capsys):
    said = refused(quick, tmp_path / "none", capsys, "trainer.max_steps=9", "--extend")
    assert "holds no run; train it first" in said
    assert not (tmp_path / "none").exists()


def test_a_warm_up_stays_as_long_as_it_was():
    assert Schedule("constant_with_warmup").same_until((3, 100), (3, 1000)) == 100
    assert Schedule("constant_with_warmup").same_until((3, 100), (30, 1000)) == 1
    assert Schedule("inverse_sqrt").same_until((3, 100), (3, 1000)) == 100
    assert Schedule({"name": "warmup_stable_decay", "num_decay_steps": 10}).same_until((3, 100), (3, 1000)) == 91
    assert Schedule("linear").same_until((3, 100), (3, 1000)) == 4


def test_a_decay_from_a_trunk_is_the_run_that_always_had_it(constant, wsd, run, tmp_path, capsys):
    """A trunk at a constant rate, branched two steps before the end of a warmup-stable-decay run: the same bits."""
    branch = run(tmp_path / "run", 7, WSD, *ALL, "--branch", f"{constant.path}@4")
    assert "weights, step, optimizer and position in the data are carried over" in capsys.readouterr().out
    assert branch.losses() == [loss for loss in wsd.losses() if loss[0] > 4]
    for name, tensor in branch.weights().items():
        assert tensor.equal(wsd.weights()[name]), name
    assert branch.json("environment.json")["branch"] == {"run": str(constant.path.resolve()), "step": 4}


def test_a_branch_has_learning_rates_and_parts_of_its_own(constant, run, tmp_path, capsys):
    """Other groups: what the optimizer knows by name is taken, the rest is named."""
    more = ["stage.train.projector.lr=0.5", "stage.train.projector.weight_decay=0.1"]
    branch = run(tmp_path / "run", 6, CONSTANT, *ALL, *more, "--branch", f"{constant.path}@4")
    assert "carried over" in capsys.readouterr().out
    rows = [row for row in branch.metrics() if row.get("lr/projector.0")]
    assert {float(row["lr/projector.0"]) for row in rows} == {0.5}
    sgd = "stage.optimizer={class_path: torch.optim.SGD, init_args: {momentum: 0.9}}"
    run(tmp_path / "other", 6, CONSTANT, *ALL, sgd, "--branch", f"{constant.path}@4")
    assert "begins anew: all states of the optimizer (another one: SGD)" in capsys.readouterr().out


def test_other_data_begin_at_their_first_sample_and_it_is_said(constant, run, tmp_path, capsys):
    branch = run(tmp_path / "run", 6, CONSTANT, *ALL, "data.seed=5", "--branch", f"{constant.path}@4")
    said = capsys.readouterr().out
    assert "begins anew: the data, at their first sample (plan_hash is" in said
    assert "seed: 0, now 5" in said
    assert [step for step, _ in branch.losses()] == [5, 6]


def test_an_interrupted_branch_goes_on_by_itself_and_the_same_call_too(constant, run, tmp_path):
    call = [CONSTANT, *ALL, "data.seed=5"]
    whole = run(tmp_path / "whole", 7, *call, "--branch", f"{constant.path}@4")
    cut = run(tmp_path / "cut", 7, *call, "--branch", f"{constant.path}@4")
    for path in (cut.path / "checkpoints").glob("step-0000000[67].ckpt"):
        path.unlink()
    (cut.path / "result.json").unlink()
    again = run(tmp_path / "cut", 7, *call)
    assert again.losses() == whole.losses()
    shutil.rmtree(again.path / "checkpoints")  # cut off before the first one
    (again.path / "result.json").unlink()
    again = run(tmp_path / "cut", 7, *call)
    assert again.losses() == whole.losses()


@pytest.mark.parametrize(
    ("branch", "said"),
    [
        ("{run}@99", "has no complete checkpoint of step 99; there are those of 1, 2, 3, 4, 5, 6, 7"),
        ("{run}/nothing", "is no run, or has no complete checkpoint"),
    ],
)
def test_there_has_to_be_such_a_checkpoint(constant, quick, tmp_path, capsys, branch, said):
    assert said in refused(quick, tmp_path / "run", capsys, "--branch", branch.format(run=constant.path))
    assert not (tmp_path / "run").exists()


def test_a_run_that_died_before_its_first_step_protects_nothing(run, quick, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    first = compose(quick, ["trainer.max_steps=3", "stage.train.projector.lr=0.123"])
    (folder / "recipe.yaml").write_text(to_yaml(first))
    (folder / "environment.json").write_text(json.dumps({"versions": {"dslight": "0"}, "id": "dead"}))
    done = run(folder, 2, CONSTANT)
    assert done.json("result.json")["steps"] == 2
    assert "0.123" not in (folder / "recipe.yaml").read_text()
