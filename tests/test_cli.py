"""``dslight``: every verb answers, a mistake is one line on stderr and exit code 1, and help needs no heavy library."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from said import messages
from tqdm import tqdm

from dslight import cli
from dslight.cli import main
from dslight.recipe.errors import RecipeError

RECIPES = Path(__file__).parent.parent / "recipes"
RECIPE = str(RECIPES / "quickstart" / "low.yaml")
ABLATION = str(RECIPES / "ablations" / "quickstart.yaml")
VERBS = ("fit", "validate", "predict", "export", "import", "judge", "plan", "sweep", "models", "report")
VERBS += ("push", "chat", "conformance", "serve", "watch", "migrate")
RECIPE_VERBS = {
    "fit": [RECIPE, "--fresh"],
    "validate": [RECIPE, "--ckpt", "latest"],
    "predict": [RECIPE, "--question", "A1"],
    "plan": [RECIPE, "--json"],
    "sweep": [ABLATION, "--list"],
}
HEAVY = ("torch", "lightning", "transformers", "timm", "omegaconf", "jsonargparse", "numpy", "matplotlib", "PIL")


def refused(capsys, *arguments: str) -> str:
    """The one message of a call that must fail with exit code 1."""
    assert main(arguments) == 1
    said = messages(capsys.readouterr().err)
    assert said.startswith("dslight: ")
    assert "Traceback" not in said
    return said.removeprefix("dslight: ").strip()


def test_help_names_every_verb_and_imports_no_heavy_library():
    program = (
        "import sys, dslight.cli\ntry: dslight.cli.main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0
    assert all(re.search(rf"^    {verb}\s", done.stdout, re.M) for verb in VERBS)
    assert not {name.split(".")[0] for name in done.stderr.split()} & set(HEAVY)


def test_the_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "dslight", "plan", "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.startswith("usage: dslight plan")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: dslight {verb}")
    assert ("key=value" in shown) == (verb in RECIPE_VERBS)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["tarin", RECIPE], "there is no 'tarin'"),
        (["plna", RECIPE], "there is no 'plna'; did you mean plan?; dslight --help lists them"),
        (["fit", RECIPE, "--frsh"], "unrecognized arguments: --frsh; did you mean --fresh?"),
        ([], "sweep"),
        (["fit"], "recipe"),
        (["predict", RECIPE], "--question"),
        (["plan", RECIPE, "--jsn"], "--jsn"),
        (["plan", RECIPE, "--world-size", "many"], "many"),
        (["report", "runs", "--baselin", "low"], "--baselin"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error(arguments, named, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "tokenize"),
        (["tokenise"], "there is no 'tokenise'; did you mean tokenize?; dslight data --help lists them"),
        (["info", "--jsn", "x"], "unrecognized arguments: --jsn; did you mean --json?"),
    ],
)
def test_verbs_of_the_data_are_listed_and_guessed_as_well(arguments, named, capsys):
    assert main(["data", *arguments]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("verb", RECIPE_VERBS)
def test_every_recipe_verb_takes_key_value_before_and_behind_its_options(verb, capsys):
    recipe, *options = RECIPE_VERBS[verb]
    tell = "trainer.max_steps=${no.such.key}"
    for arguments in ([recipe, tell, *options], [recipe, *options, tell], [recipe, "name=x", *options, tell]):
        message = refused(capsys, verb, *arguments)
        assert "trainer.max_steps: cannot resolve" in message
        assert message.endswith("it comes from command line")


def test_a_run_of_an_array_job_is_checked_before_a_process_starts(tmp_path, monkeypatch, capsys):
    file = tmp_path / "wrong.yaml"
    file.write_text(
        f"bases: [{Path(ABLATION).resolve().parents[1] / 'quickstart/deepstack_l.yaml'}]\nname: wrong\n"
        "variants: {right: {}, closed: {model: {stacking: {init_args: {operation: GatedAdd}}}}}\n"
    )
    monkeypatch.setattr("dslight.run.sweep.sweep", lambda *_, **__: pytest.fail("began"))
    assert main(["sweep", str(file), "--index", "1"]) == 1
    said = messages(capsys.readouterr().err)
    assert said.startswith("dslight: stage.train: the stacking's gates start closed")
    assert said.strip().endswith("(closed)")


def test_options_may_stand_before_the_recipe_and_are_not_abbreviated(capsys):
    assert main(["sweep", "--list", ABLATION, "seed=7"]) == 1  # seed is a key of the grid
    assert "seed: set on the command line" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sweep", ABLATION, "--li"])


@pytest.mark.parametrize("verb", RECIPE_VERBS)
def test_a_recipe_that_cannot_be_read_is_named(verb, capsys, tmp_path):
    options = RECIPE_VERBS[verb][1:]

    def complain(content: str) -> str:
        (tmp_path / "recipe.yaml").write_text(content)
        return refused(capsys, verb, str(tmp_path / "recipe.yaml"), *options)

    file = tmp_path / "recipe.yaml"
    assert refused(capsys, verb, "no/recipe.yaml", *options) == "no/recipe.yaml: no such recipe file"
    assert complain("bases: [gone.yaml]") == f"{tmp_path}/gone.yaml: no such recipe file, named in {file}: bases"
    assert complain("bases: [recipe.yaml]").startswith(f"{file}: bases: bases go in a circle, {file} -> {file}")
    assert complain("- a list").startswith(f"{file}: a recipe is a mapping")
    assert complain("a: [1").startswith(f"{file}:")
    assert refused(capsys, verb, RECIPE, "seed", *options).startswith("seed: not an override; write key=value")


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_a_run_without_a_checkpoint_is_refused_before_the_model_is_built(verb, capsys, tmp_path):
    call = [verb, RECIPE, *RECIPE_VERBS[verb][1:], f"run_dir={tmp_path / 'run'}"]
    assert refused(capsys, *call) == (
        f"--ckpt: {tmp_path}/run/checkpoints has no complete checkpoint; train first: dslight fit RECIPE"
    )
    assert refused(capsys, *call, "--ckpt", "no.ckpt") == "--ckpt: there is no checkpoint no.ckpt"


def test_a_program_error_keeps_its_traceback(monkeypatch):
    def broken(*args, **kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr("dslight.run.plan.plan", broken)
    with pytest.raises(ZeroDivisionError):
        main(["plan", RECIPE])


def test_an_interrupt_before_training_exits_with_130(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("dslight.run.plan.plan", interrupted)
    assert main(["plan", RECIPE]) == 130
    assert "the same command continues" in capsys.readouterr().err


def test_a_list_into_a_pipe_that_closes_is_no_error():
    """Of the verbs that print much, the one that imports little."""
    script = f"{sys.executable} -m dslight sweep {ABLATION} --list | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, timeout=240)
    assert re.fullmatch(r"\s+0\s+-\s+low seed=0\s.*\n", done.stdout)
    assert messages(done.stderr) == ""


@pytest.mark.parametrize("drawn", [True, False])
def test_a_message_does_not_continue_the_line_of_a_progress_bar(drawn, capsys, monkeypatch):
    bars = []

    def verb(_):
        bars.append(tqdm(total=3, disable=not drawn, leave=False))  # an error leaves it open
        bars[0].update()
        raise RecipeError("data.train: nothing there")

    monkeypatch.setitem(cli._VERBS, "plan", verb)
    try:
        assert main(["plan", RECIPE]) == 1
        lines = messages(capsys.readouterr().err).splitlines()
    finally:
        bars[0].close()
    assert lines[-1] == "dslight: data.train: nothing there"
    assert drawn or len(lines) == 1
