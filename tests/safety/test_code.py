"""Nothing that a stranger hands over is run: checkpoints, shards, pictures."""

from __future__ import annotations

import ast
import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, save

from dslight.checkpoints import complete, sharded
from dslight.checkpoints.read import shapes
from dslight.cli import main
from dslight.components.component import WeightsError
from dslight.data.sample import BadSample, decode_image
from dslight.data.shards import Index, ShardError
from dslight.run.folder import RunFolder, is_complete

ROOT = Path(__file__).parents[2]
NOTHING = "nothing of others is unpickled"

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def write(folder: Path, **state: Any) -> Path:
    """A sharded checkpoint as the strategy writes it, of a model ``weight`` and an optimizer."""
    folder.mkdir(parents=True)
    save({"state_dict": {"weight": torch.ones(2, 2)}, **state}, checkpoint_id=folder, no_dist=True)
    torch.save({"global_step": 1}, folder / "meta.pt")
    return folder


def trapped_table(folder: Path, trap: Any) -> None:
    """Into the table of contents, where torch keeps what it does not look at."""
    table = FileSystemReader(folder).read_metadata()
    table.planner_data = trap
    (folder / ".metadata").write_bytes(pickle.dumps(table))


def test_the_traps_spring_where_torch_reads_them_itself(tmp_path, trap, sprung):
    """So that a test which finds them unsprung has tried something."""
    folder = write(tmp_path / "step-00000001.ckpt")
    trapped_table(folder, trap)
    FileSystemReader(folder).read_metadata()
    assert sprung.is_dir()


@pytest.mark.promise(NOTHING, "the table of contents of a sharded checkpoint names a function")
@pytest.mark.parametrize("sealed", [False, True], ids=["older, without a list of files", "with one"])
def test_a_table_of_contents_runs_nothing(sealed, tmp_path, trap, sprung, outcome):
    run = RunFolder(tmp_path / "run")
    folder = write(run.checkpoints / "step-00000001.ckpt")
    trapped_table(folder, trap)
    if sealed:
        complete.seal(folder)
    assert (run.latest_checkpoint() is not None) == sealed
    assert is_complete(folder) == sealed
    with pytest.raises(WeightsError, match="more than a table of contents") as refused:
        sharded.load_state({"state_dict": {"weight": torch.zeros(2, 2)}}, folder)
    assert not sprung.exists()
    outcome(refused)


@pytest.mark.promise(NOTHING, "a table of contents that changes torch's own classes")
def test_a_table_of_contents_changes_no_class(tmp_path, outcome):
    folder = write(tmp_path / "step-00000001.ckpt")
    named = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    (folder / ".metadata").write_bytes(b"\x80\x02" + named + b"(N}(X\x07\x00\x00\x00version)U\x01xstb.")
    with pytest.raises(WeightsError) as refused:
        sharded.read_table(folder)
    from torch.distributed.checkpoint.metadata import Metadata

    assert Metadata.version is None
    outcome(refused)


@pytest.mark.promise(NOTHING, "a value of a sharded optimizer state names a function")
def test_values_of_a_sharded_checkpoint_run_nothing(tmp_path, trap, sprung, outcome):
    folder = write(tmp_path / "step-00000001.ckpt", optimizer_0={"lr": trap})
    state = {"optimizer_0": {"lr": 0.0}}
    with pytest.raises(WeightsError, match=r"optimizer_0\.lr") as refused:
        sharded.load_state(state, folder)
    assert not sprung.exists()
    outcome(refused)


class Strategy:
    """What :func:`dslight.checkpoints.sharded.restore` asks of Lightning's."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.optimizers = model, [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)]
        self.lightning_module = SimpleNamespace(strict_loading=True)

    def broadcast(self, path: Any) -> Any:
        return path


def trained(folder: Path) -> nn.Linear:
    """A model after a step, and its sharded checkpoint with the optimizer's state."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    torch.manual_seed(0)
    model = nn.Linear(2, 2, bias=False)
    strategy = Strategy(model)
    model(torch.ones(1, 2)).sum().backward()
    strategy.optimizers[0].step()
    folder.mkdir(parents=True)
    optimizer = get_optimizer_state_dict(model, strategy.optimizers[0])
    save({"state_dict": model.state_dict(), "optimizer_0": optimizer}, checkpoint_id=folder, no_dist=True)
    torch.save({"global_step": 1}, folder / "meta.pt")
    return model


def test_a_sharded_run_continues_with_weights_momentum_and_counts(tmp_path):
    model = trained(tmp_path / "ckpt")
    again = Strategy(nn.Linear(2, 2, bias=False))
    assert sharded.restore(again, tmp_path / "ckpt") == {"global_step": 1}
    assert torch.equal(again.model.weight, model.weight)
    (state,) = again.optimizers[0].state.values()
    assert torch.equal(state["momentum_buffer"], torch.ones(2, 2))


@pytest.mark.promise(NOTHING, "meta.pt of a sharded checkpoint names a function")
def test_what_is_no_tensor_of_a_continued_run_runs_nothing(tmp_path, trap, sprung, outcome):
    trained(tmp_path / "ckpt")
    torch.save({"global_step": 1, "callbacks": trap}, tmp_path / "ckpt" / "meta.pt")
    with pytest.raises(WeightsError, match=r"meta\.pt holds more than tensors") as refused:
        sharded.restore(Strategy(nn.Linear(2, 2, bias=False)), tmp_path / "ckpt")
    assert not sprung.exists()
    outcome(refused)


@pytest.fixture(scope="module")
def run(pages, tmp_path_factory) -> Path:
    """A run of one step, whole."""
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    folder = tmp_path_factory.mktemp("runs") / "run"
    quickstart = ROOT / "recipes" / "quickstart" / "low.yaml"
    file.write_text(f"bases: [{quickstart}]\nname: strange\nrun_dir: {folder}\nweights: null\n")
    assert main(["fit", str(file), *overrides(pages)]) == 0
    return folder


def overrides(pages: Path) -> list[str]:
    return [
        f"data.train=[{pages / 'train'}]", f"data.val.pages.root={pages / 'val'}", "data.global_batch_size=4",
        f"model.language_model.init_args.tokenizer={pages / 'tokenizer'}", "trainer.max_steps=1",
        "trainer.enable_progress_bar=false", "trainer.limit_val_batches=1",
    ]  # fmt: skip


VERBS: dict[str, Callable[[Path, Path], list[str]]] = {
    "export": lambda run, to: ["export", str(run), str(to)],
    "validate": lambda run, to: ["validate", str(run / "recipe.yaml")],
    "predict": lambda run, to: ["predict", str(run / "recipe.yaml"), "--question", "A1"],
    "fit that continues": lambda run, to: ["fit", str(run / "recipe.yaml")],
    "report": lambda run, to: ["report", str(run), "--out", str(to)],
}


@pytest.mark.promise("a strange run can be looked at", "a checkpoint that names a function, under")
@pytest.mark.parametrize(
    ("kind", "verb"),
    [
        *(("a file", verb) for verb in ("validate", "predict", "fit that continues")),
        *(("a folder", verb) for verb in ("export", "report")),
    ],
)
def test_looking_at_a_strange_run_runs_nothing(kind, verb, run, trap, sprung, tmp_path, outcome, capsys):
    strange = tmp_path / "strange"
    shutil.copytree(run, strange)
    recipe = (strange / "recipe.yaml").read_text().replace(str(run), str(strange))
    (strange / "recipe.yaml").write_text(recipe)
    (checkpoint,) = (strange / "checkpoints").iterdir()
    held = torch.load(checkpoint, weights_only=True)
    if kind == "a file":
        torch.save({**held, "callbacks": trap}, checkpoint)
    else:
        checkpoint.unlink()
        write(checkpoint, hyper=1)
        trapped_table(checkpoint, trap)
        complete.seal(checkpoint)
    if verb.startswith("fit"):
        (strange / "result.json").unlink()
    code = main(VERBS[verb](strange, tmp_path / "out"))
    said = capsys.readouterr()
    assert not sprung.exists()
    assert code == (0 if verb == "report" else 1), said.err
    if verb != "report":
        assert "run any code" in said.err or "is sharded" in said.err or "none of it was run" in said.err, said.err
        outcome(said.err.strip().splitlines()[-1])


@pytest.mark.promise(NOTHING, "weights in one of torch's pickles name a function")
def test_weights_of_others_run_nothing(tmp_path, trap, sprung, outcome):
    torch.save({"weight": torch.ones(2), "more": trap}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError) as refused:
        shapes(tmp_path)
    assert not sprung.exists()
    outcome(refused)


@pytest.mark.promise(NOTHING, "the index of a shard holds objects")
def test_an_index_holds_no_objects(tmp_path, trap, sprung, outcome):
    index = Index.build([])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in index.arrays:
            array = np.array([trap], dtype=object) if name == "keys" else getattr(index, name)
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=True)
    with pytest.raises(ShardError, match="keys") as refused:
        Index.from_bytes(out.getvalue())
    assert not sprung.exists()
    outcome(refused)


@pytest.mark.promise("no picture starts a program", "an EPS file under the name of a picture")
def test_a_picture_starts_no_program(monkeypatch, outcome):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: started.append(1))
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n%%EOF\n"
    with pytest.raises(BadSample, match="does not decode") as refused:
        decode_image(data)
    assert not started
    outcome(refused)


UNSAFE = {"pickle.load", "pickle.loads", "eval", "exec", "os.system", "os.popen", "marshal.loads", "yaml.load"}


@pytest.mark.promise(NOTHING, "every call in the source that could")
def test_no_source_file_unpickles_or_evaluates(outcome):
    """``torch.load`` asks for tensors only, ``numpy.load`` for no objects, and YAML is read by the safe loader."""
    wrong, looked = [], 0
    for path in [*(ROOT / "dslight").rglob("*.py"), *(ROOT / "data_prep").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            looked += 1
            name = ast.unparse(node.func)
            options = {one.arg: ast.unparse(one.value) for one in node.keywords}
            unsafe = name in UNSAFE or options.get("allow_pickle") == "True" or options.get("shell") == "True"
            unsafe |= name == "torch.load" and options.get("weights_only") != "True"
            unsafe |= options.get("trust_remote_code") == "True" or options.get("weights_only") == "False"
            if unsafe and path.parent.name != "testing":  # the contract copies a user's own module
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert wrong == []
    outcome(f"{looked:,} calls looked at")


def test_only_one_class_unpickles():
    """What reads pickles by a class of its own: the table of contents, and the batches of our own data workers."""
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "dslight").rglob("*.py")
        if any(
            isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "pickle.Unpickler" for base in node.bases)
            for node in ast.walk(ast.parse(path.read_text()))
        )
    }
    assert found == {"dslight/checkpoints/sharded.py", "dslight/data/transport/shared_memory.py"}
