"""The import arrows of the package, read from its source, and a command line that answers at once."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "dslight"
INSIDE = [
    f"dslight.{path.stem}" for path in ROOT.iterdir() if path.suffix in ("", ".py") and path.stem != "__pycache__"
]
MODEL = ("dslight.vlm", "dslight.components", "dslight.checkpoints")
# all of the data but the shards, which need no torch
NOT_SHARDS = [f"dslight.data.{path.stem}" for path in (ROOT / "data").glob("*.py") if path.stem != "__init__"]
LIGHTNING_FREE = (
    "nn",
    "files",
    "metrics/functional",
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
            "workers",
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
    assert [name for name in reaches(path, "dslight") if not name.startswith(("dslight.types", "dslight.nn"))] == []


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
        (["question", "errors"], ["dslight"]),
        (["types"], [name for name in INSIDE if name != "dslight.question"]),
        (["files"], [name for name in INSIDE if name not in ("dslight.errors", "dslight.files")]),
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


def test_only_the_builder_sees_model_and_data():
    """``run`` and ``harness`` hold both in an experiment that the builder made, and may use helpers of the data."""
    both = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if reaches(path, *MODEL) and reaches(path, "dslight.data") and path.parent.name not in ("run", "harness")
    }
    assert both <= {"recipe/build.py", "recipe/schema.py"}


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"], ["report", "--help"]], ids=" ".join)
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
