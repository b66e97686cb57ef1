"""The import arrows of the package, read from its source, and a command line that answers at once."""

import ast
import importlib
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Set
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "dslight"
INSIDE = [
    f"dslight.{path.stem}" for path in ROOT.iterdir() if path.suffix in ("", ".py") and path.stem != "__pycache__"
]
MODEL = ("dslight.vlm", "dslight.components", "dslight.checkpoints")
# all of the data but the shards, which need no torch
NOT_SHARDS = [
    f"dslight.data.{path.stem}"
    for path in (ROOT / "data").iterdir()
    if path.stem not in ("__init__", "__pycache__", "shards")
]
LIGHTNING_FREE = (
    "nn",
    "files",
    "metrics/functional",
    "processor",
    *(
        f"data/{x}"
        for x in (
            "sample",
            "conversation",
            "images",
            "video",
            "shards",
            "plan",
            "loader",
            "records",
            "transport",
            "templates",
            "views",
            "collate",
            "rows",
        )
    ),
)


def files(*under: str) -> list[Path]:
    """The modules of some folders or, without the ending, single modules."""
    found = [path for name in under for path in [ROOT / f"{name}.py", *(ROOT / name).rglob("*.py")] if path.is_file()]
    assert found, under
    return found


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever it does so."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            assert node.module
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def reaches(path: Path, *modules: str) -> list[str]:
    return [
        name for name in sorted(imports(path)) if name.startswith(tuple(f"{m}." for m in modules)) or name in modules
    ]


@pytest.mark.parametrize("path", files("nn"), ids=lambda path: path.stem)
def test_nn_knows_torch_and_the_shared_words_only(path):
    outside = {name.split(".")[0] for name in imports(path)} - {"torch", "dslight"} - sys.stdlib_module_names
    assert not outside
    known = ("dslight.types", "dslight.places", "dslight.nn", "dslight.upstream.torch", "dslight.upstream.transformers")
    assert [name for name in reaches(path, "dslight") if not name.startswith(known)] == []


@pytest.mark.parametrize("path", files(*LIGHTNING_FREE), ids=lambda path: path.stem)
def test_lightning_stays_out_of_the_plain_parts(path):
    assert reaches(path, "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics") == []


def test_a_spawned_data_worker_does_not_import_lightning():
    """It imports where its rows and its loader are, and all that they import; Lightning takes longer than all that."""
    seen, ahead = set(), {"dslight.data.rows", "dslight.data.records"}
    while ahead:
        name = ahead.pop()
        path = ROOT.parent / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name not in seen and path.is_file():
            seen.add(name)
            assert reaches(path, "lightning", "torchmetrics") == [], name
            ahead |= {found for found in imports(path) if found.startswith("dslight.")}
    assert {"dslight.data.collate", "dslight.data.shards.reader", "dslight.layout", "dslight.types"} <= seen


@pytest.mark.parametrize(
    ("under", "forbidden"),
    [
        (["question", "texts"], ["dslight"]),
        (["upstream"], [name for name in INSIDE if name != "dslight.upstream"]),
        (["errors"], [name for name in INSIDE if name != "dslight.texts"]),
        (
            ["types", "places"],
            [name for name in INSIDE if name not in ("dslight.question", "dslight.places", "dslight.types")],
        ),
        (
            ["files"],
            [
                name
                for name in INSIDE
                if name not in ("dslight.errors", "dslight.files", "dslight.limits", "dslight.texts")
            ],
        ),
        (
            ["components"],
            [
                "dslight.vlm",
                *(f"dslight.{x}" for x in ("checkpoints", "data", "metrics", "recipe", "train", "run", "report")),
            ],
        ),
        (
            ["checkpoints"],
            ["dslight.vlm", *(f"dslight.{x}" for x in ("data", "metrics", "recipe", "train", "run", "report", "cli"))],
        ),
        (
            ["vlm"],
            [f"dslight.{x}" for x in ("checkpoints", "data", "diagnostics", "recipe", "run", "report", "cli")],
        ),
        (  # what a model is asked through: of the data, the plain half
            ["processor"],
            [
                *MODEL,
                "dslight.nn",
                "dslight.data.datamodule",
                *(f"dslight.{x}" for x in ("metrics", "recipe", "train")),
            ],
        ),
        (["written", "lazy"], [f"dslight.{x.stem}" for x in ROOT.iterdir() if not x.stem.startswith("_")]),
        (["data"], [*MODEL, "dslight.nn", *(f"dslight.{x}" for x in ("metrics", "recipe", "train", "run", "report"))]),
        (["metrics"], [*MODEL, "dslight.nn", *(f"dslight.{x}" for x in ("data", "recipe", "train", "run", "report"))]),
        (["train"], [*MODEL, "dslight.nn", "dslight.data", "dslight.recipe", "dslight.run", "dslight.report"]),
        (
            ["diagnostics"],
            [f"dslight.{x}" for x in ("checkpoints", "data", "recipe", "train", "run", "report", "cli")],
        ),
        (["recipe"], ["dslight.run", "dslight.report", "dslight.cli"]),
        (["report"], [*MODEL, "dslight.nn", *NOT_SHARDS, "dslight.train", "dslight.cli"]),
    ],
    ids=lambda value: value[0].removeprefix("dslight."),
)
def test_imports_go_one_way(under, forbidden):
    wrong = {str(path.relative_to(ROOT)): found for path in files(*under) if (found := reaches(path, *forbidden))}
    assert wrong == {}


PRIVATE_OF = ("torch", "lightning", "pytorch_lightning", "lightning_fabric", "transformers")
ELSEWHERE = {"_exit", "_instances", "_plot", "_asdict", "_replace"}
"""Private names that these three libraries have no part in: of os, tqdm, torchmetrics' subclasses, named tuples."""
OUTSIDE = [
    path
    for path in sorted([*ROOT.rglob("*.py"), *(ROOT.parent / "data_prep").rglob("*.py")])
    if path.parent != ROOT / "upstream"
]


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def on_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


def private_names(tree: ast.AST) -> set[str]:
    """Those that a file defines, and that its classes keep on themselves."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stored = [node for node in ast.walk(tree) if isinstance(getattr(node, "ctx", None), ast.Store)]
    names |= {node.id for node in stored if isinstance(node, ast.Name)}
    names |= {node.attr for node in stored if isinstance(node, ast.Attribute) and on_self(node)}
    return {name for name in names if private(name)}


def used_privately(source: str, inherited: Set[str] = frozenset()) -> list[str]:
    """What a file imports or asks others for that is private, and that it does not define itself.

    Args:
        source: of the file.
        inherited: what a class may find on itself, too.
    """
    tree, found = ast.parse(source), []
    own = private_names(tree) | ELSEWHERE
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if any(map(private, alias.name.split(".")))]
        elif isinstance(node, ast.ImportFrom) and not str(node.module).startswith(("dslight", "data_prep")):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if any(map(private, name.split(".")))]
        elif isinstance(node, ast.Attribute) and private(node.attr):
            if node.attr not in (own | inherited if on_self(node) else own):
                found.append(ast.unparse(node))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if private(str(name)) and name not in own:
                found.append(ast.unparse(node))
    return found


def test_private_names_of_other_libraries_stay_in_their_room():
    inherited = {name for path in OUTSIDE for name in private_names(ast.parse(path.read_text()))}
    found = {str(path.relative_to(ROOT.parent)): used_privately(path.read_text(), inherited) for path in OUTSIDE}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import torch._dynamo",
        "from torch.utils import _pytree",
        "from torch.utils._pytree import tree_leaves",
        "from lightning.pytorch.callbacks.throughput_monitor import _plugin_to_compute_dtype",
        "model.config._attn_implementation",
        "getattr(model, '_is_stateful', False)",
        "self._mesh = mesh.other._dim_group_names",
    ],
)
def test_a_private_name_is_seen(line):
    assert used_privately(line)


@cache
def selves(cls: type) -> set[str]:
    """The private names that a class defines, or that its code asks ``self`` for."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError):  # written in C
        return {name for name in vars(cls) if private(name)}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and on_self(node)}
    kept = ("_abc_", "_can_set_experts_implementation_cached")  # what Python and transformers keep on every class
    return {name for name in used | vars(cls).keys() if private(name) and not name.startswith(kept)}


def test_no_class_uses_or_hides_a_private_name_of_its_base_in_another_library():
    wrong = {}
    for path in OUTSIDE:
        module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
        if not module.startswith("dslight") or path.stem == "__main__":
            continue
        for cls in vars(importlib.import_module(module)).values():
            if inspect.isclass(cls) and cls.__module__ == module:
                theirs = {
                    name for base in cls.__mro__ if base.__module__.split(".")[0] in PRIVATE_OF for name in selves(base)
                }
                if both := selves(cls) & theirs:
                    wrong[f"{module}.{cls.__name__}"] = both
    assert wrong == {}


@pytest.mark.parametrize("library", ["torch", "lightning", "transformers"])
def test_a_file_of_the_room_knows_its_own_library_and_torch_alone(library):
    found = {name.split(".")[0] for name in imports(ROOT / "upstream" / f"{library}.py")} - sys.stdlib_module_names
    assert found <= {library, "torch"}


@pytest.mark.parametrize("library", ["torch", "lightning", "transformers"])
def test_every_name_of_the_room_has_a_test(library):
    def names(tree: ast.AST, kind: type) -> set[str]:
        return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, kind)}

    room = ast.parse((ROOT / "upstream" / f"{library}.py").read_text())
    named = {node.name for node in room.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in room.body:
        named |= names(node, ast.Store) if isinstance(node, ast.Assign | ast.AnnAssign) else set()
    test = ast.parse((ROOT.parent / "tests" / "upstream" / f"test_{library}.py").read_text())
    assert named
    assert named - names(test, ast.Load) == set()


def test_only_the_builder_sees_model_and_data():
    """``run`` and ``harness`` hold both in an experiment that the builder made, and may use helpers of the data; the
    package's own module names both, and imports neither.
    """
    both = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if reaches(path, *MODEL) and reaches(path, "dslight.data") and path.parent.name not in ("run", "harness")
    }
    assert both <= {*(f"recipe/{x}.py" for x in ("build", "checks", "experiment", "schema")), "__init__.py"}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["fit", "--help"], ["report", "--help"], ["conformance", "--help"]], ids=" ".join
)
def test_help_answers_without_torch(arguments):
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['dslight', *{arguments}]\n"
        "try:\n    runpy.run_module('dslight', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'lightning', 'transformers', 'timm', 'torchmetrics', 'numpy', 'jsonargparse'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT.parent, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: dslight")
    assert done.stdout.splitlines()[-1] == "heavy: []"
