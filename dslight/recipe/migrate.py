"""Old recipes in today's words: short forms of classes, arguments by their names of now; comments stay.

    stacking:                                              stacking:
      class_path: dslight.components.DeepStackL      ->      DeepStackL: {crops: 4}
      init_args: {num_stacks: 4}

The text is rewritten line by line, and what comes out has to say the same: it is composed as the old one was, and both
have to be equal, or nothing is written.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dslight.files.atomic import write_atomically
from dslight.recipe.ablation import expand
from dslight.recipe.compose import compose
from dslight.recipe.errors import RecipeError
from dslight.recipe.expansion import read
from dslight.recipe.forms import HOMES, RENAMED

_PACKAGES = sorted({*HOMES.values(), "dslight.metrics", "dslight.train"}, key=len, reverse=True)
_BLOCK = re.compile(
    r"^(?P<indent> *)class_path: *(?P<path>[\w.]+)(?P<comment> *(?:#.*)?)\n"
    r"(?:(?P=indent)init_args:(?P<rest>[^\n]*)\n)?",
    re.M,
)
_ITEM = re.compile(
    r"^(?P<lead> *)- class_path: *(?P<path>[\w.]+) *\n(?:(?P=lead)  init_args:(?P<rest>[^\n]*)\n)?", re.M
)
_FLOW = re.compile(r"\{class_path: *(?P<path>[\w.]+)(?:, *init_args: *(?P<rest>\{[^{}]*\}))?\}")


def migrate(text: str) -> str:
    """The text of a recipe or an ablation in today's words."""
    text = _FLOW.sub(lambda found: f"{{{_name(found['path'])}: {found['rest'] or '{}'}}}", text)
    text = _BLOCK.sub(lambda found: _line(found, found["indent"], found["comment"]), text)
    text = _ITEM.sub(lambda found: _line(found, f"{found['lead']}- "), text)
    for (kind, old), new in RENAMED.items():
        text = re.sub(rf"(\b{kind}:\s*\{{[^{{}}]*?)\b{old}:", rf"\g<1>{new}:", text)
        text = re.sub(rf"^( *)({kind}:[^\n]*\n(?:\1 +[^\n]*\n)*?\1 +){old}:", rf"\g<1>\g<2>{new}:", text, flags=re.M)
    return text


def migrate_files(paths: Sequence[str | Path]) -> list[tuple[Path, bool]]:
    """Rewrite files that say the same afterwards; returns each with whether it was changed.

    Raises:
        RecipeError: naming a file whose rewriting would say something else, or that is no recipe; it stays as it is.
    """
    done = []
    for path in map(Path, paths):
        if not path.is_file():
            raise RecipeError(f"{path}: no such recipe file")
        before = _meaning(path)
        old = read(path)
        new = migrate(old)
        if new != old:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".migrated.yaml") as trial:
                trial.write(new.encode())
                trial.flush()
                after = _meaning(Path(trial.name))
            if after != before:
                raise RecipeError(f"{path}: rewritten, it would say something else; change it by hand")
            write_atomically(path, new)
        done.append((path, new != old))
    return done


def _meaning(path: Path) -> Any:
    """What a file says, composed: of an ablation all of its runs, and its report."""
    try:
        text = read(path)
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: no recipe, but something else than UTF-8 ({error})") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # old names are what is looked for
        if re.search(r"^(variants|grid):", text, re.M):
            made = expand(path)
            return made.report, [(run.arm, run.point, dict(run.recipe)) for run in made.runs]
        return dict(compose(path))


def _name(path: str) -> str:
    home = next((home for home in _PACKAGES if path.startswith(f"{home}.")), None)
    name = path.removeprefix(f"{home}.") if home else path
    return path if "." in name else name


def _line(found: re.Match[str], lead: str, comment: str = "") -> str:
    arguments = " {}" if found["rest"] is None else found["rest"]
    return f"{lead}{_name(found['path'])}:{arguments}{comment.rstrip()}\n"
