"""Expanding ablation files: what each run gets, in which order, and what is refused."""

import re
from pathlib import Path

import pytest

from dslight.recipe.ablation import expand
from dslight.recipe.compose import compose, flatten, recipe_hash, to_yaml
from dslight.recipe.errors import RecipeError

ABLATION = """
bases: [../base.yaml]
name: effect
variants:
  low: {}
  deepstack:
    bases: [../parts/stacking.yaml]
    model: {stacking: {init_args: {num_stacks: 4}}}
    cost: 2
  control:
    data: {repeat: true}
    grid: {seed: [0]}
grid:
  seed: [0, 1]
  stage.projector.lr: [0.002, 0.004]
report: {title: 'Effect at ${trainer.max_steps} steps', baseline: low}
"""


@pytest.fixture
def ablation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {
        "base.yaml": "name: base\nseed: 7\nmodel: {stacking: null}\ndata: {repeat: false}\n"
        "stage: {projector: {lr: 1}}\ntrainer: {max_steps: 500}\nwarmup: ${trainer.max_steps}\n",
        "parts/stacking.yaml": "model: {stacking: {class_path: Grid, init_args: {num_stacks: 1, order: 2d}}}\n",
        "ablations/effect.yaml": ABLATION,
    }
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    return Path("ablations/effect.yaml")


def refusal(path, *overrides) -> str:
    with pytest.raises(RecipeError) as caught:
        expand(path, overrides)
    return str(caught.value)


def with_text(path: Path, old: str, new: str) -> Path:
    assert old in ABLATION
    path.write_text(ABLATION.replace(old, new))
    return path


def test_the_runs_are_the_variants_times_the_grid_in_the_order_of_the_file(ablation):
    expanded = expand(ablation)
    table = [(run.index, run.arm, *run.point.values()) for run in expanded.runs]
    both = [(0, 0.002), (0, 0.004), (1, 0.002), (1, 0.004)]
    assert table == [
        *[(i, "low", *point) for i, point in enumerate(both)],
        *[(i + 4, "deepstack", *point) for i, point in enumerate(both)],
        (8, "control", 0, 0.002),
        (9, "control", 0, 0.004),
    ]
    assert [run.cost for run in expanded.runs] == [1] * 4 + [2] * 4 + [1] * 2
    assert [str(run.run_dir) for run in expanded.runs[3:5]] == [
        "runs/effect/low/seed=1,lr=0.004",
        "runs/effect/deepstack/seed=0,lr=0.002",
    ]
    assert expanded.name == "effect"
    assert (expanded.report.title, expanded.report.baseline) == ("Effect at 500 steps", "low")
    assert expand(ablation) == expanded


def test_a_run_gets_base_then_variant_then_grid_then_command_line(ablation):
    run = expand(ablation, ["trainer.max_steps=2"]).runs[5]
    assert run.recipe == {
        "name": "effect/deepstack",
        "seed": 0,
        "model": {"stacking": {"class_path": "Grid", "init_args": {"num_stacks": 4, "order": "2d"}}},
        "data": {"repeat": False},
        "stage": {"projector": {"lr": 0.004}},
        "trainer": {"max_steps": 2},
        "warmup": 2,
        "run_dir": "runs/effect/deepstack/seed=0,lr=0.004",
    }
    assert set(run.sources) == set(flatten(run.recipe))
    assert run.sources["model.stacking.init_args.num_stacks"] == "ablations/effect.yaml (variants.deepstack)"
    assert run.sources["model.stacking.init_args.order"] == "parts/stacking.yaml"
    assert run.sources["stage.projector.lr"] == "ablations/effect.yaml (grid)"
    assert run.sources["trainer.max_steps"] == "command line"
    assert run.sources["data.repeat"] == "base.yaml"


def test_the_command_line_wins_over_what_a_variant_sets(ablation):
    path = with_text(ablation, "control:\n", "control:\n    trainer: {max_steps: 1200}\n")
    assert expand(path).runs[8].recipe["trainer"]["max_steps"] == 1200
    assert {run.recipe["trainer"]["max_steps"] for run in expand(path, ["trainer.max_steps=2"]).runs} == {2}


def test_the_command_line_can_change_the_grid_the_variants_and_the_report(ablation):
    expanded = expand(
        ablation,
        ["grid.seed=[5]", "grid.stage.projector.lr=[1]", "variants.low.data.repeat=3", "report.title=T", "run_dir=out"],
    )
    assert [(run.arm, run.point["seed"], run.recipe["stage"]["projector"]["lr"]) for run in expanded.runs] == [
        ("low", 5, 1),
        ("deepstack", 5, 1),
        ("control", 0, 1),
    ]
    assert expanded.runs[0].recipe["data"]["repeat"] == 3
    assert expanded.report.title == "T"
    assert expanded.runs[0].run_dir == Path("out/low/seed=5,lr=1")
    assert not {"variants", "grid", "report", "bases"} & set(expanded.runs[0].recipe)


def test_a_run_can_be_repeated_from_its_saved_recipe(ablation, tmp_path):
    run = expand(ablation).runs[0]
    saved = tmp_path / "recipe.yaml"
    saved.write_text(to_yaml(run.recipe))
    assert recipe_hash(compose(saved)) == recipe_hash(run.recipe)


def test_a_grid_alone_and_variants_alone_are_ablations_too(ablation):
    Path("grid.yaml").write_text("bases: [base.yaml]\nname: seeds\ngrid: {seed: [0, 1]}\n")
    assert [(run.arm, str(run.run_dir)) for run in expand("grid.yaml").runs] == [
        ("seeds", "runs/seeds/seeds/seed=0"),
        ("seeds", "runs/seeds/seeds/seed=1"),
    ]
    Path("arms.yaml").write_text("bases: [base.yaml]\nname: arms\nvariants: {a: null, b: {seed: 8}}\n")
    assert [(run.arm, run.recipe["seed"], str(run.run_dir)) for run in expand("arms.yaml").runs] == [
        ("a", 7, "runs/arms/a"),
        ("b", 8, "runs/arms/b"),
    ]
    assert "neither variants nor a grid" in refusal("base.yaml")


def test_whole_nodes_can_be_values_of_the_grid_and_make_safe_folder_names(ablation):
    Path("nodes.yaml").write_text(
        "name: nodes\nmodel: {class_path: A, init_args: {x: 1}}\n"
        "grid:\n  model: [{class_path: pkg.B}, {class_path: pkg.C}]\n  data.files.0: ['/data/a b/*.tar']\n"
        "data: {files: [none]}\n"
    )
    runs = expand("nodes.yaml").runs
    assert [run.recipe["model"] for run in runs] == [{"class_path": "pkg.B"}, {"class_path": "pkg.C"}]
    assert runs[0].recipe["data"] == {"files": ["/data/a b/*.tar"]}
    assert [run.run_dir.name for run in runs] == ["model=B,0=data-a-b-.tar", "model=C,0=data-a-b-.tar"]


def test_grid_keys_that_end_alike_keep_their_whole_names_in_the_folder(ablation):
    Path("two.yaml").write_text("name: two\ngrid: {vit.lr: [1], projector.lr: [2]}\n")
    assert expand("two.yaml").runs[0].run_dir.name == "vit.lr=1,projector.lr=2"


@pytest.mark.parametrize(
    ("old", "new", "start"),
    [
        ("seed: [0, 1]", "seed: 0", "grid.seed: must be a list of at least one value, not 0"),
        ("grid: {seed: [0]}", "grid: {seed: []}", "variants.control.grid.seed: must be a list"),
        ("low: {}", "low: [1]", "variants.low: must be a mapping"),
        ("low: {}", "a/b: {}", "variants.a/b: a variant's name becomes a folder"),
        ("cost: 2", "cost: dear", "variants.deepstack.cost: must be a number, not 'dear'"),
        ("repeat: true", "repeat: '${nothing}'", "variants.control: data.repeat: cannot resolve '${nothing}'"),
        ("repeat: true", "repeat: false", "variants.control at {'seed': 0, 'stage.projector.lr': 0.002}: this run and"),
        ("data: {repeat: true}", "seed: 3", "variants.control: sets seed, which the grid sets too"),
        (
            "data: {repeat: true}",
            "stage: {projector: null}",
            "variants.control: sets stage.projector.lr, which the grid",
        ),
        ("../parts/stacking", "../parts/gone", "parts/gone.yaml: no such recipe file, named in ablations/effect.yaml"),
        ("seed: [0, 1]", "seed: [0, 0]", "variants.low at {'seed': 0, 'stage.projector.lr': 0.002}: this run and"),
        ("baseline: low", "baseline: lwo", "report.baseline: there is no arm 'lwo'; did you mean low?"),
        ("baseline: low", "claims: [{say: x, arm: low}]", "report.claims.0.at_least: missing; a claim needs a bound"),
    ],
)
def test_a_bad_ablation_is_refused_by_variant_and_key(ablation, old, new, start):
    assert refusal(with_text(ablation, old, new)).startswith(start)


def test_values_that_would_be_called_alike_have_folders_of_their_own(ablation):
    Path("twins.yaml").write_text("name: twins\ngrid: {text: ['a b', 'a-b', A-b, other], seed: [0]}\n")
    *alike, other = [str(run.run_dir) for run in expand("twins.yaml").runs]
    assert len({folder.casefold() for folder in alike}) == 3
    assert all(re.fullmatch(r"runs/twins/twins/text=[aA]-b-[0-9a-f]{7},seed=0", folder) for folder in alike)
    assert other == "runs/twins/twins/text=other,seed=0"


def test_two_runs_that_would_share_a_folder_are_refused(ablation):
    Path("twins.yaml").write_text("name: twins\nvariants: {Arm: {seed: 1}, arm: {seed: 2}}\n")
    assert "would both be written to runs/twins/arm; rename one" in refusal("twins.yaml")


def test_a_key_of_the_grid_on_the_command_line_is_refused_with_what_to_write(ablation):
    assert (
        refusal(ablation, "seed=3")
        == "seed: set on the command line, but it is a key of the grid; write 'grid.seed=[...]'"
    )
