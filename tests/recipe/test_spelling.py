"""What sources say of a recipe's names is what signatures say of them; and it is said before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_build import MISSPELT, agree
from test_build import model_recipe as model_recipe

from dslight.recipe.build import check as check_all
from dslight.recipe.compose import compose, to_yaml
from dslight.recipe.errors import RecipeError
from dslight.recipe.schema import parse
from dslight.recipe.spelling import check_spelling

ROOT = Path(__file__).parents[2]
LEFT_TO_SIGNATURES = (
    "model.vision_encoder.init_args.model_args.",  # of timm
    "model.language_model.init_args.config.",  # of a dataclass's mapping
    "weights.",
    "stage.train.",
    "data.train",
    "data.val",
)


@pytest.mark.parametrize("change", MISSPELT, ids=lambda text: text[:60])
def test_a_name_is_refused_as_its_signature_refuses_it(change, model_recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(to_yaml(model_recipe))
    recipe = compose(tmp_path / "recipe.yaml", [change])
    if change.startswith(LEFT_TO_SIGNATURES):
        check_spelling(recipe)
        return
    said = []
    for check in (check_spelling, parse):
        with pytest.raises(RecipeError) as refused:
            check(recipe)
        said.append(str(refused.value))
    agree(said[0], MISSPELT[change])
    assert said[1] == said[0]


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda path: path.stem)
def test_nothing_that_is_known_is_refused(recipe):
    if "mixes" not in recipe.parts and "variants:" not in recipe.read_text():
        check_spelling(compose(recipe))


def test_a_slip_costs_no_torch(tmp_path):
    recipe = ROOT / "recipes" / "quickstart" / "deepstack_l.yaml"
    program = (
        "import sys; from dslight.cli import main; code = main(sys.argv[1:]); "
        "sys.exit(code if 'torch' not in sys.modules else 9)"
    )
    for verb, slip in (("plan", "model.stackin=1"), ("fit", "trainer.max_step=3"), ("plan", "bases=[nowhere]")):
        call = [sys.executable, "-c", program, verb, str(recipe), slip]
        done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert (done.returncode, done.stdout) == (1, ""), done.stderr


def test_a_decimal_comma_is_refused_by_its_key_and_not_by_a_traceback(tmp_path):
    base = Path(__file__).parents[2] / "recipes" / "quickstart" / "low.yaml"
    text = f"bases: [{base}]\nname: t\nstage: {{train: {{projector: {{lr: 1,0e-3}}}}}}\n"
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(RecipeError, match=r"^stage\.train\.projector\.0\.0: there is no such argument"):
        check_all(compose(tmp_path / "t.yaml"))
