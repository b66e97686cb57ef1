"""Composing recipes from real files. Where a plain merge is right, OmegaConf's own merge is the oracle."""

import copy
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dslight.recipe.compose import (
    compose,
    compose_with_sources,
    differences,
    flatten,
    merge,
    nest,
    recipe_hash,
    source_of,
    to_yaml,
)
from dslight.recipe.errors import RecipeError


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def refusal(path, *overrides) -> str:
    with pytest.raises(RecipeError) as caught:
        compose(path, overrides)
    return str(caught.value)


def test_a_recipe_wins_over_its_bases_and_later_bases_over_earlier_ones(write):
    write("parts/a.yaml", "x: a\ny: a\nz: a\n")
    write("parts/b.yaml", "y: b\nz: b\n")
    path = write("r.yaml", "bases: [parts/a.yaml, parts/b.yaml]\nz: r\n")
    assert compose(path) == {"x": "a", "y": "b", "z": "r"}
    assert compose(path, ["z=command", "w={deep: [1, 2e-3]}"])["z"] == "command"
    assert compose(path, ["w={deep: [1, 2e-3]}"])["w"] == {"deep": [1, 0.002]}


def test_bases_are_relative_to_the_file_that_names_them_from_any_working_folder(write, monkeypatch, tmp_path):
    write("recipes/parts/encoder.yaml", "model: {width: 64}\n")
    write("recipes/small.yaml", "bases: [parts/encoder.yaml]\nmodel: {depth: 2}\n")
    path = write("recipes/ablations/one.yaml", "bases: [../small.yaml]\n").resolve()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert compose(path) == {"model": {"width": 64, "depth": 2}}


def test_without_class_paths_a_merge_is_omegaconf_s_merge():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": None, "e": {"f": {}}, "g": "x"}
    new = {"a": {"c": [3], "h": {"i": 2}}, "d": {"j": 1}, "e": {"f": 3}, "g": None}
    before = copy.deepcopy(old), copy.deepcopy(new)
    assert merge(old, new) == OmegaConf.to_container(OmegaConf.merge(old, new))
    assert (old, new) == before


def test_another_class_path_replaces_the_node_and_the_same_or_none_merges(write):
    path = write("r.yaml", "m: {projector: {class_path: MLP, init_args: {depth: 2, act: gelu}}, other: 1}\n")
    other = compose(path, ["m={projector: {class_path: Linear, init_args: {bias: true}}}"])
    assert other == {"m": {"projector": {"class_path": "Linear", "init_args": {"bias": True}}, "other": 1}}
    assert compose(path, ["m.projector.class_path=Linear"])["m"]["projector"] == {"class_path": "Linear"}
    for same in ("m.projector={class_path: MLP, init_args: {depth: 3}}", "m.projector.init_args.depth=3"):
        assert compose(path, [same])["m"]["projector"]["init_args"] == {"depth": 3, "act": "gelu"}
    nameless = write("n.yaml", "m: {init_args: {depth: 2}}\n")
    assert compose(nameless, ["m.class_path=MLP"])["m"] == {"init_args": {"depth": 2}, "class_path": "MLP"}
    assert compose(path, ["m.projector=null"])["m"] == {"projector": None, "other": 1}


def test_an_item_of_a_list_is_set_by_its_number(write):
    path = write("r.yaml", "data: {sources: [{name: a, weight: 1}, {name: b, weight: 1}]}\n")
    sources = compose(path, ["data.sources.1.weight=0.5"])["data"]["sources"]
    assert sources == [{"name": "a", "weight": 1}, {"name": "b", "weight": 0.5}]
    derived = write("d.yaml", "bases: [r.yaml]\ndata: {sources: {0: {weight: 3}}}\n")
    assert compose(derived)["data"]["sources"][0] == {"name": "a", "weight": 3}
    message = refusal(path, "data.sources.2.weight=1")
    assert message.startswith("data.sources.2: the list has 2 items")


def test_a_base_reached_twice_counts_once_where_it_is_first_reached(write):
    write("common.yaml", "lr: 1\nsteps: 1\n")
    write("a.yaml", "bases: [common.yaml]\nlr: 2\n")
    write("b.yaml", "bases: [common.yaml]\nsteps: 3\n")
    assert compose(write("r.yaml", "bases: [a.yaml, b.yaml]\n")) == {"lr": 2, "steps": 3}


def test_interpolations_are_resolved_after_the_command_line(write, monkeypatch):
    monkeypatch.setenv("DSLIGHT_DATA", "/mnt/shards")
    path = write(
        "r.yaml", "lr: 0.1\ndata: ${oc.env:DSLIGHT_DATA}/digits\nstage: {vit: '${lr}', width: '${..w}'}\nw: 3\n"
    )
    assert compose(path, ["lr=0.5"]) == {
        "lr": 0.5,
        "data": "/mnt/shards/digits",
        "stage": {"vit": 0.5, "width": 3},
        "w": 3,
    }


def test_every_value_knows_the_file_that_set_it(write):
    write("parts/clip.yaml", "encoder: {class_path: Clip, init_args: {size: 224, taps: [1, 2]}}\nlr: 1\n")
    path = write("r.yaml", "bases: [parts/clip.yaml]\nlr: 2\nencoder: {init_args: {size: 336}}\n")
    recipe, sources = compose_with_sources(path, ["seed=3"])
    assert set(sources) == set(flatten(recipe))
    assert sources["encoder.init_args.size"] == sources["lr"] == "r.yaml"
    assert sources["encoder.init_args.taps.1"] == "parts/clip.yaml"
    assert sources["seed"] == "command line"
    assert source_of(sources, "encoder.init_args.taps") == "parts/clip.yaml"
    assert source_of(sources, "seed.inside") == "command line"
    assert source_of(sources, "nowhere") is None
    replaced = compose_with_sources(path, ["encoder.class_path=Dino"])[1]
    assert [key for key in replaced if key.startswith("encoder")] == ["encoder.class_path"]


def test_a_missing_file_is_named_with_who_asked_for_it(write):
    assert refusal("no.yaml") == "no.yaml: no such recipe file"
    path = write("sub/r.yaml", "bases: [gone.yaml]\n")
    assert refusal(path) == "sub/gone.yaml: no such recipe file, named in sub/r.yaml: bases"
    write("parts/here.yaml", "a: 1\n")
    path = write("sub/r.yaml", "bases: [parts/here.yaml]\n")  # it is in the folder that the command is started in
    assert refusal(path) == (
        "sub/parts/here.yaml: no such recipe file, named in sub/r.yaml: bases; files under bases are sought from the "
        "file that names them: ../parts/here.yaml"
    )
    assert refusal("sub") == "sub: is a folder, not a recipe file"
    write("run/recipe.yaml", "name: a\n")
    assert refusal("run") == "run: is a folder, not a recipe file; a run's is run/recipe.yaml"


def test_a_circle_of_bases_is_printed_as_a_chain(write):
    write("a.yaml", "bases: [b.yaml]\n")
    write("b.yaml", "bases: [c.yaml]\n")
    write("c.yaml", "bases: [b.yaml]\n")
    assert "b.yaml -> c.yaml -> b.yaml" in refusal("a.yaml")
    assert refusal("a.yaml").startswith("c.yaml: bases")


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("a: 1\nb: [1, 2\n]]\n", "r.yaml:3: not YAML"),
        ("a: 1\n\tb: 2\n", "r.yaml:2: not YAML"),
        ("a: 1\na: 2\n", "r.yaml:2: not YAML, found duplicate key a"),
        (
            "b: 1\na: {c: ${b}}\n",
            "r.yaml:2: not YAML, expected ',' or '}', but got '{'; between { } or [ ] quote '${...}'",
        ),
        ("- a\n- b\n", "r.yaml: a recipe is a mapping (key: value), this file holds a list"),
        ("only words\n", "r.yaml: a recipe is a mapping (key: value), this file holds a single value"),
        ("bases: a.yaml\n", "r.yaml: bases: must be a list of files, not 'a.yaml'"),
        ("a: {b: '${'}\n", "a.b: cannot read the interpolation"),
        ("a: {b: '${no.where}'}\n", "a.b: cannot resolve '${no.where}', Interpolation key 'no.where' not found"),
        ("a: [0, {b: '${oc.env:DSLIGHT_UNSET}'}]\n", "a.1.b: cannot resolve '${oc.env:DSLIGHT_UNSET}'"),
        ("a:\n  b: ???\n", "a.b: has no value (???); set it; it comes from r.yaml"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(write, text, start):
    message = refusal(write("r.yaml", text))
    assert message.startswith(start)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "start"),
    [
        ("trainer.max_steps", "trainer.max_steps: not an override; write key=value"),
        ("--seed=1", "--seed=1: '--seed' is not a key; write seed=1"),
        ("+seed=1", "+seed=1: '+seed' is not a key; write seed=1"),
        ("a..b=1", "a..b=1: 'a..b' is not a key"),
        ("=1", "=1: '' is not a key"),
        ("a=[1,", "a: the value '[1,' is not YAML"),
        ("bases=[x.yaml]", "bases=[x.yaml]: bases cannot be set from the command line"),
    ],
)
def test_a_bad_override_is_refused(write, override, start):
    assert refusal(write("r.yaml", "seed: 0\n"), override).startswith(start)


def test_an_empty_file_is_a_recipe_of_nothing_but_overrides(write):
    assert compose(write("r.yaml", "# nothing yet\n"), ["a.b=1", "c=x=y", "d="]) == {
        "a": {"b": 1},
        "c": "x=y",
        "d": None,
    }


def test_the_saved_yaml_composes_to_the_same_recipe(write):
    recipe = {
        "lr": 1e-3,
        "tiny": 1e-12,
        "text": "1e-3",
        "flag": True,
        "word": "on",
        "none": None,
        "prompt": "Q: ${question}\n  A: 100%\n",
        "empty": {"map": {}, "list": []},
        "nested": [{"a": 1}, [1, 2.0]],
        "größe": "✓",
    }
    again = compose(write("saved.yaml", to_yaml(recipe)))
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)


def test_the_hash_changes_exactly_when_there_are_differences():
    base = {"a": {"b": 1, "c": [1, 2]}, "run_dir": "runs/x", "name": "n"}
    reordered = {"name": "n", "a": {"c": [1, 2], "b": 1}, "run_dir": "elsewhere"}
    assert differences(base, reordered) == []
    assert recipe_hash(base) == recipe_hash(reordered)
    changed = {"a": {"b": True, "c": [1]}, "name": "n", "extra": None}
    assert differences(base, changed) == ["a.b: 1 -> true", "a.c.1: 2 -> (absent)", "extra: (absent) -> null"]
    assert recipe_hash(base) != recipe_hash(changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"run_dir": "elsewhere"},
        {"trainer": {"devices": 8, "num_nodes": 2, "accelerator": "gpu", "enable_progress_bar": False, "max_steps": 3}},
        {
            "trainer": {
                "strategy": {"class_path": "a.B", "init_args": {"data_parallel_size": 16}},
                "logger": False,
                "max_steps": 3,
            }
        },
        {"data": {"num_workers": 4, "micro_batch_size": 2, "seed": 0}},
    ],
)
def test_where_and_in_which_portions_a_recipe_runs_makes_no_other_recipe(changed):
    base = {"trainer": {"max_steps": 3}, "data": {"seed": 0, "micro_batch_size": 8}, "run_dir": "runs/x"}
    assert differences(base, base | changed) == []
    assert recipe_hash(base) == recipe_hash(base | changed)


@pytest.mark.parametrize(
    "key", ["trainer.max_steps", "trainer.precision", "data.global_batch_size", "data.num_workers_x"]
)
def test_what_a_recipe_computes_makes_another_recipe(key):
    assert differences({"trainer": {"devices": 1}}, {"trainer": {"devices": 2}} | nest(key, 4)) == [
        f"{key}: (absent) -> 4"
    ]


VAL = "data:\n  val:\n    textvqa: {root: t}\n    docvqa: {root: d, limit: 3}\n    pope: {root: p}\n"


def test_a_list_of_validation_sources_keeps_those_in_that_order(write):
    path = write("r.yaml", VAL)
    kept, sources = compose_with_sources(path, ["data.val=[pope,docvqa]", "data.val.pope.limit=2"])
    assert list(kept["data"]["val"].items()) == [
        ("pope", {"root": "p", "limit": 2}),
        ("docvqa", {"root": "d", "limit": 3}),
    ]
    assert source_of(sources, "data.val.docvqa") == "r.yaml"
    arm = write("arm.yaml", "bases: [r.yaml]\ndata: {val: [textvqa]}\n")
    assert compose(arm)["data"]["val"] == {"textvqa": {"root": "t"}}
    assert compose(path, ["data.val=null"])["data"]["val"] is None
    assert compose(path, ["data.val={own: {root: o}}"])["data"]["val"].keys() == {"textvqa", "docvqa", "pope", "own"}


def test_an_unknown_validation_source_is_refused_with_the_known_ones(write):
    path = write("r.yaml", VAL)
    known = "is not one of the recipe's sources; there are textvqa, docvqa, pope"
    assert refusal(path, "data.val=[pope,vqav2]") == f"data.val: 'vqav2' {known}"
    assert refusal(path, "data.val=[{root: x}]") == f"data.val: {{'root': 'x'}} {known}"
    assert refusal(path, "data.val=[pope]", "data.val=[docvqa]") == "data.val: 'docvqa' " + known.replace(
        "textvqa, docvqa, ", ""
    )
