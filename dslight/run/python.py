"""The door from Python: ``fit``, ``validate`` and ``load`` on objects, where the commands have a recipe.

Behind it is the same house: a call is written down as the recipe that the objects were made by
(:mod:`dslight.written`), and goes the way of ``dslight fit``, into a folder of the same form. What no recipe can name
(a class of a notebook, a callback that was made already) is marked in it; such a run is opened with the model in hand:
``load(run, model=...)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, Trainer, seed_everything

from dslight.checkpoints import load_checkpoint as read_weights
from dslight.checkpoints.read import unpickled
from dslight.components import Component, Objective
from dslight.data.datamodule import ShardData
from dslight.data.dense import DenseLabelData
from dslight.data.shards import ShardError
from dslight.diagnostics.settings import Diagnostics
from dslight.errors import WeightsError
from dslight.files.typed import FileError, read_json_if_there, understood
from dslight.in_transformers.register import MODEL_TYPE
from dslight.recipe.build import apply_stage, connect
from dslight.recipe.checks import check_experiment
from dslight.recipe.compose import Layer, compose
from dslight.recipe.errors import RecipeError
from dslight.recipe.experiment import Experiment
from dslight.recipe.forms import written_out
from dslight.recipe.schema import Section
from dslight.recipe.strangers import refuse_strangers
from dslight.run.beginning import beginning
from dslight.run.evaluate import WHOLE, ask, load_checkpoint, ready_to_ask, trained, write_scores
from dslight.run.finished import Run
from dslight.run.fit import make_trainer, train_once
from dslight.run.folder import RunFolder
from dslight.train.optim import Stage
from dslight.vlm import VLM
from dslight.written import UNWRITTEN, Written, unwritten, written, written_behind

OURS = (ShardData, DenseLabelData)


def fit(
    model: VLM | Component,
    data: Any,
    stage: Any = None,
    trainer: Mapping[str, Any] | None = None,
    run_dir: str | Path = "runs/fit",
    *,
    objective: Any = None,
    seed: int = 0,
    validate_every: int | None = None,
    checkpoint_every: int | None = None,
    diagnostics: Mapping[str, Any] | None = None,
    fresh: bool = False,
    extend: bool = False,
    branch: str | Path | None = None,
) -> Run:
    """Train a model, or a part alone, and score it on everything; ``model`` then has the weights.

    The same call continues an interrupted run, and reads the weights of a finished one.

    Args:
        model: of this process; its weights are what training begins with.
        data: a :class:`dslight.Data`, or any data module of Lightning whose batches the model takes.
        stage: what trains: part -> learning rate, or a :class:`dslight.Stage`; default: what ``model.train_with`` said.
        trainer: arguments of Lightning's Trainer.
        run_dir: the run's folder.
        objective: of a part that is fitted alone: an :class:`dslight.Objective`, or what makes one of the part's width.
        seed: of what is random while training.
        validate_every: optimizer steps between validations; default: as the Trainer does.
        checkpoint_every: optimizer steps between checkpoints; default: 1000, and the last one.
        diagnostics: as in a recipe.
        fresh: delete what the folder holds, and begin anew.
        extend: train the run that the folder holds for more steps (``--extend`` of ``dslight fit``).
        branch: a run, or ``RUN@STEP``, from whose checkpoint this one begins (``--branch``).

    Raises:
        ValueError: naming the argument, before anything is trained.
        KeyboardInterrupt: after Ctrl-C, with a checkpoint written.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackL(crops=4), lm)
        >>> data = dslight.Data(train=["data/mine"], val={"textvqa": "data/eval/textvqa"}, global_batch_size=4)
        >>> quick = {"max_steps": 2, "enable_progress_bar": False}
        >>> run = dslight.fit(model, data, {"projector": 1e-3}, trainer=quick, run_dir="runs/example")
        runs/example: ...
        >>> sorted(run.scores)
        ['val/textvqa/unresolved', 'val/textvqa/vqa_accuracy']
    """
    with in_python():
        if stage is None and model.stage is None:
            raise RecipeError('stage: nothing trains; name parts and learning rates: stage={"projector": 1e-3}')
        if isinstance(model, VLM) and objective is not None:
            raise RecipeError("objective: is what a part is fitted with alone; a VLM trains on its next-token loss")
        stage, made = _stage(stage) if stage is not None else model.stage, isinstance(objective, Objective)
        more = {"validate_every": validate_every, "checkpoint_every": checkpoint_every, "diagnostics": diagnostics}
        said = {"name": Path(run_dir).name, "run_dir": str(run_dir), "seed": seed, "stage": written(stage)["init_args"]}
        if objective is not None:
            said["objective"] = written_behind(objective, 1) if made else written(objective)
        said |= {key: value for key, value in more.items() if value is not None}
        experiment = _experiment(model, data, trainer or {}, said)
        folder = RunFolder(run_dir)
        begin = beginning(folder, experiment.recipe, not fresh, extend, None if branch is None else str(branch))
        if begin is not None:
            experiment.recipe = begin.recipe
            stage.warmup_steps = begin.recipe["stage"].get("warmup_steps", stage.warmup_steps)

        def prepare(open_shards: bool = True) -> Experiment:
            seed_everything(seed, verbose=False)
            if isinstance(model, Component):
                model.objective = objective if made or objective is None else objective(model.width)
            apply_stage(model, stage)
            check_experiment(experiment)
            _open(experiment, "fit" if open_shards else None)
            return experiment

        trained, _ = train_once(folder, experiment.recipe, not fresh, prepare, begin)
        if not trained:
            _read(prepare(open_shards=False), folder)
            print(f"{folder.path}: already trained (fresh=True trains it again)")
    return Run(folder.path, model)


def validate(
    model: VLM | Component, data: Any, trainer: Mapping[str, Any] | None = None, run_dir: str | Path | None = None
) -> dict[str, float]:
    """Ask all questions of ``data`` and score the answers.

    Args:
        model: a model, or a part that was fitted alone.
        data: names the sources: ``dslight.Data(val={"textvqa": "data/eval/textvqa"})``.
        trainer: arguments of Lightning's Trainer.
        run_dir: a folder in which every question is kept with its answer and its score; default: nowhere.

    Raises:
        ValueError: naming what is missing.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.LowResolution(), lm)
        >>> data = dslight.Data(val={"textvqa": "data/eval/textvqa"})
        >>> scores = dslight.validate(model, data, trainer={"enable_progress_bar": False})
        >>> 0 <= scores["val/textvqa/vqa_accuracy"] <= 1
        True
    """
    with in_python():
        experiment = _experiment(model, data, trainer or {}, {})
        if not experiment.validates:
            raise RecipeError("data.val: names no source to validate on")
        check_experiment(experiment)
        _open(experiment, "validate")
        folder = RunFolder(run_dir or ".")
        scores, sources = ask(experiment, folder if run_dir else None, make_trainer(experiment, folder, **WHOLE))
        if run_dir:
            write_scores(folder, None, scores, sources)
    return scores


def load(
    path: str | Path, model: VLM | Component | None = None, recipe: str | Path | None = None, device: Any = None
) -> Any:
    """A model that was trained, ready to be asked.

    Args:
        path: a run's folder (its newest checkpoint), what ``dslight export`` wrote, or a checkpoint: of a run, or of a
            Trainer of your own.
        model: made as the one that was trained, where no recipe can make it; it gets the weights.
        recipe: of a checkpoint that brings none: one in a layout of the field, for instance LLaVA's.
        device: where it is put; default: a GPU where there is one.

    Raises:
        ValueError: when it is not there, brings no recipe, or the model is another.

    Example:
        >>> model = dslight.VLM(encoder, dslight.MLPProjector, dslight.DeepStackL(crops=4), lm)
        >>> data = dslight.Data(train=["data/mine"], global_batch_size=4)
        >>> quick = {"max_steps": 2, "enable_progress_bar": False}
        >>> run = dslight.fit(model, data, {"projector": 1e-3}, trainer=quick, run_dir="runs/loaded")
        runs/loaded: ...
        >>> dslight.load("runs/loaded").answer("What is it?", "page.png") == model.answer("What is it?", "page.png")
        True
    """
    path = Path(path)
    with in_python():
        made, checkpoint = recipe_of(path, recipe)
        missing = unwritten({key: value for key, value in made.items() if key in ("model", "component", "objective")})
        if model is None:
            for key, what in missing.items():
                raise RecipeError(
                    f"{key}: {what} was made in Python; make it again, and give it: load(..., model=model)"
                )
            return trained({**made, "run_dir": str(path)}, str(checkpoint), device).model
        said = made.get("data")
        data = Section("data", ShardData, said).build() if isinstance(said, Mapping) and not unwritten(said) else None
        load_checkpoint(model, checkpoint)
        if isinstance(model, VLM) and isinstance(data, ShardData):
            model.connect(data)
        return ready_to_ask(model, made, device)


@contextmanager
def in_python() -> Iterator[None]:
    """Messages about a recipe, in the words of a call."""
    try:
        yield
    except RecipeError as error:
        text = str(error).replace(".init_args", "").replace("--fresh", "fresh=True").replace("--ckpt: ", "")
        raise RecipeError(text) from error


class _Arguments(Section):
    """The Trainer's arguments, of which some may be objects already (callbacks, loggers, a strategy)."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.objects = {key: value for key, value in given.items() if unwritten(written(value))}
        super().__init__("trainer", Trainer, {key: given[key] for key in given if key not in self.objects})
        self.values = given

    def build(self, wait: Any = ()) -> Any:
        made = super().build(wait)
        for name, value in self.objects.items():
            made[name] = value
        return made


def _experiment(model: Any, data: Any, trainer: Mapping[str, Any], said: Mapping[str, Any]) -> Experiment:
    """The objects, and the recipe that says how they were made."""
    for name, value, kinds, wanted in (
        ("model", model, (VLM, Component), "a dslight.VLM or one of its parts"),
        ("data", data, LightningDataModule, "a dslight.Data, or another data module of Lightning"),
    ):
        if not isinstance(value, kinds):
            raise RecipeError(f"{name}: expected {wanted}, got a {type(value).__name__}")
    if not isinstance(trainer, Mapping):
        raise RecipeError(
            "trainer: expected arguments of a Trainer, trainer={'max_steps': 100}; one of your own drives the model by "
            "Trainer.fit(model, data)"
        )
    alone = {} if isinstance(model, VLM) else {"component": written(model)}
    made = {**(alone or {"model": model.to_recipe()}), "trainer": written(trainer)}
    arguments = _data_written(data)
    recipe = dict(Layer("Python", {**said, **made, "data": arguments}).values)  # arguments by their names of now
    looks = Section("diagnostics", Diagnostics, recipe["diagnostics"]).build() if "diagnostics" in recipe else None
    return Experiment(recipe, model, data, _Arguments(trainer), looks)


def _data_written(data: Any) -> dict[str, Any]:
    """The section ``data`` of a recipe."""
    if type(data) in OURS:
        return written(data)["init_args"]
    return written(data) if isinstance(data, Written) else {UNWRITTEN: type(data).__qualname__}


def _stage(stage: Any) -> Stage:
    if isinstance(stage, Mapping) and "train" in stage:  # as a recipe says it
        said = written_out({"stage": stage}, {})["stage"]
        made = Section("stage", Stage, said).build()
        made.made_of(said)  # what the parser filled in has no name in a recipe
        return made
    try:
        return Stage.of(stage)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"stage: {error}") from error


def _open(experiment: Experiment, what: str | None) -> None:
    """Tell model and data of each other, and see that the shards are there that are wanted."""
    try:
        connect(experiment)
        if experiment.of_shards and what is not None:
            experiment.data.setup(what)
    except (ValueError, OSError, ShardError) as error:
        raise RecipeError(str(error)) from error


def _read(experiment: Experiment, folder: RunFolder) -> None:
    """The weights of a finished run; without its checkpoint, those of the parts that it trained."""
    newest = folder.latest_checkpoint()
    if newest is not None:
        load_checkpoint(experiment.model, newest)
        return
    for name in experiment.model.parts():
        if (file := folder.weights / f"{name}.safetensors").exists():
            read_weights(experiment.model, file, [name])


def recipe_of(path: Path, named: str | Path | None = None) -> tuple[dict[str, Any], Path]:
    """The recipe of what :func:`load` takes, and the checkpoint to read.

    Raises:
        RecipeError: there is nothing of the kind at ``path``.
    """
    run = RunFolder(path)
    if named is not None:
        return compose(named), path
    if run.recipe_file.is_file():
        newest = run.latest_checkpoint()
        if newest is None:
            raise RecipeError(f"{path}: has no complete checkpoint yet; train first")
        return compose(run.recipe_file), newest
    if (path / "dslight.yaml").is_file():  # an export; it may have been moved
        made = compose(path / "dslight.yaml")
        with understood(path / "dslight.yaml"):
            lm = made["model"]["language_model"].get("init_args", {})
            if lm.get("tokenizer") == made["weights"]["model"]:
                lm["tokenizer"] = str(path)
        return made, path
    if (saved := _saved_by_transformers(path)) is not None:
        return saved, path
    if not path.exists():
        raise RecipeError(f"{path}: there is no such run, export or checkpoint")
    beside = RunFolder(path.resolve().parent.parent).recipe_file
    if beside.is_file():
        return compose(beside), path
    if path.is_dir() and not (path / "meta.pt").is_file():
        raise RecipeError(f"{path}: holds no run, export or checkpoint (no recipe.yaml, dslight.yaml or meta.pt)")
    try:
        kept = unpickled(path / "meta.pt" if path.is_dir() else path)
    except WeightsError as error:
        raise RecipeError(str(error)) from error
    if not isinstance(kept, Mapping) or not isinstance(kept.get("recipe"), Mapping):
        raise RecipeError(f"{path}: does not say how its model was made; give its recipe: load(..., recipe=...)")
    refuse_strangers(kept["recipe"], path)
    return dict(kept["recipe"]), path


def _saved_by_transformers(path: Path) -> dict[str, Any] | None:
    """The recipe of a folder that ``save_pretrained`` wrote of one of our exports, ``None`` for any other."""
    try:
        about = read_json_if_there(path / "config.json", dict[str, Any]) if path.is_dir() else None
    except FileError:  # of something else
        return None
    if about is None or about.get("model_type") != MODEL_TYPE:
        return None
    with understood(path / "config.json"):
        recipe = {"model": deepcopy(about["recipe"]["model"]), "weights": {"model": str(path)}}
        refuse_strangers(recipe, path)
        if (path / "tokenizer_config.json").is_file():
            recipe["model"]["language_model"].setdefault("init_args", {})["tokenizer"] = str(path)
    asked = read_json_if_there(path / "processor_config.json", dict[str, Any])
    with understood(path / "processor_config.json"):
        return recipe if asked is None else {**recipe, "data": asked["settings"]["data"]}
