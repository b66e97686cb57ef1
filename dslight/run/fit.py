"""``dslight fit``: train what a recipe describes, in a folder of its own, to the end or until somebody stops it.

The same call again continues an interrupted run from its newest checkpoint and returns at once from a finished one.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from dslight.checkpoints.elsewhere import elsewhere
from dslight.data.sample import BadSample
from dslight.data.shards import ShardError
from dslight.data.transport.workers import worker_error
from dslight.errors import UnfinishedError, UserError, WeightsError
from dslight.files.system import no_space
from dslight.recipe.build import build, check
from dslight.recipe.checks import batches_per_step
from dslight.recipe.errors import RecipeError
from dslight.recipe.experiment import Experiment
from dslight.recipe.schema import parse
from dslight.run.beginning import Beginning, beginning
from dslight.run.diagnose import diagnose
from dslight.run.folder import RunFolder, run_dir
from dslight.run.holds import HoldWhatTrains, complete_when_read
from dslight.run.loggers import name_loggers
from dslight.run.push import check_hub, push_at_the_end
from dslight.vlm import VLM
from dslight.written import unwritten

if TYPE_CHECKING:
    from dslight.train.branch import Branch
    from dslight.train.callbacks import FirstError

DEFAULTS: dict[str, Any] = {
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "use_distributed_sampler": False,  # the data's own plan gives every rank its share
    "log_every_n_steps": 10,
}
"""Trainer arguments of every run that a recipe does not set itself."""


def fit(
    recipe: Mapping[str, Any],
    folder: str | Path | None = None,
    resume: bool = True,
    extend: bool = False,
    branch: str | None = None,
) -> dict[str, Any]:
    """Train, validate on everything, and write ``result.json``.

    Args:
        recipe: as composed.
        folder: the run's folder; default: the recipe's.
        resume: continue what is there; false starts anew and deletes it.
        extend: train the run that is there for more steps (:mod:`dslight.run.beginning`).
        branch: ``RUN`` or ``RUN@STEP``, whose checkpoint the run begins from.

    Returns:
        The contents of ``result.json``.

    Raises:
        RecipeError: before anything is trained.
        KeyboardInterrupt: after Ctrl-C, with a checkpoint written.
        UnfinishedError: when ``trainer.max_time`` is up, with a checkpoint written.
        RecipeError: after the run, where it could not be uploaded to ``hub_push``; the same call tries that again.
    """
    from lightning.pytorch.utilities import rank_zero_info

    if "stage" not in recipe:
        raise RecipeError("stage: missing; name the parts that train: stage.train.projector.lr=1e-3")
    parsed = parse(recipe)  # a misspelt key is no other recipe
    if (repository := recipe.get("hub_push")) is not None:
        check_hub(repository, "hub_push")
    place = RunFolder(folder or run_dir(recipe))
    begin = beginning(place, recipe, resume, extend, branch)
    parsed = parsed if begin is None else parse(begin.recipe)
    restored = _continues(place, resume)
    trained, result = train_once(place, parsed.recipe, resume, lambda: build(parsed, restored=restored), begin)
    if not trained:
        rank_zero_info(f"{place.path}: already trained (--fresh trains it again)")
    if repository is not None:
        push_at_the_end(place.path, repository)
    return result


def train_once(
    place: RunFolder,
    recipe: Mapping[str, Any],
    resume: bool,
    make: Callable[[], Experiment],
    begin: Beginning | None = None,
) -> tuple[bool, dict[str, Any]]:
    """Train what ``make`` builds of a recipe, unless the folder holds the finished run of it: whether it was trained
    now, and the result.

    Raises:
        RecipeError: when the folder holds a run of another recipe.
    """
    looks = resume and (begin is None or begin.checkpoint is None)
    done = _finished(place, recipe) if looks else None
    if done is None:
        with place.held():
            done = _finished(place, recipe) if looks else None  # somebody else may have finished it just now
            if done is None:
                return True, _train(make(), place, resume, begin)
    return False, done


def _finished(place: RunFolder, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result that is there; ``None``: it is still to come."""
    place.refuse_another(recipe)
    return place.result()


def _continues(place: RunFolder, resume: bool) -> bool:
    """Whether all weights will come from a checkpoint."""
    newest = place.latest_checkpoint() if resume else None
    try:
        return newest is not None and not elsewhere(newest)
    except WeightsError:  # said when it is read
        return True


def make_trainer(
    experiment: Experiment,
    folder: RunFolder,
    callbacks: Sequence[Any] = (),
    loggers: Sequence[Any] = (),
    **options: Any,
) -> Any:
    """Lightning's Trainer as the recipe describes it, with ``callbacks`` and ``loggers`` beside the recipe's own.

    ``options`` win over both. Micro-batches are accumulated up to the recipe's global batch.

    Raises:
        RecipeError: for Trainer arguments that this machine cannot fulfil, or batch sizes that its ranks cannot share.
    """
    from lightning.fabric.plugins import TorchCheckpointIO
    from lightning.pytorch import Trainer
    from lightning.pytorch.plugins import HalfPrecision
    from lightning.pytorch.strategies import ModelParallelStrategy
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from dslight.checkpoints.sharded import restore
    from dslight.train.checkpoint_io import StreamedCheckpoint
    from dslight.train.precision import HalfWeights
    from dslight.train.rendezvous import meet
    from dslight.upstream.lightning import load_only_what_is_named, log_by_steps_done, never_requeue

    _quieten()
    arguments = {**vars(experiment.trainer.build()), "default_root_dir": str(folder.path)}
    arguments |= {
        key: value for key, value in {**DEFAULTS, **_launched()}.items() if key not in experiment.trainer.values
    }
    arguments |= options
    own = arguments.get("callbacks") or []
    looks = diagnose(experiment, folder)
    arguments["callbacks"] = [*(own if isinstance(own, list) else [own]), *callbacks, *looks]
    if loggers:  # they stand for `true`, which means a logger of Lightning's choice
        own = arguments.get("logger")
        own = own if isinstance(own, list) else [own]
        arguments["logger"] = [*loggers, *(one for one in own if not isinstance(one, bool) and one is not None)]
    try:
        trainer = Trainer(**arguments)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise RecipeError(f"trainer: {error}") from error
    if type(precision := trainer.strategy.precision_plugin) is HalfPrecision:
        trainer.strategy.precision_plugin = HalfWeights(precision.precision)
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # none of the recipe's, nor of another accelerator
        trainer.strategy.checkpoint_io = StreamedCheckpoint()
    if isinstance(trainer.strategy, ModelParallelStrategy):  # its own way would run whatever a checkpoint holds
        setattr(trainer.strategy, "load_checkpoint", partial(restore, trainer.strategy))  # noqa: B010
    complete_when_read(trainer.strategy, experiment.model)
    if experiment.of_shards:
        trainer.accumulate_grad_batches = batches_per_step(experiment.data, trainer.world_size)
    meet(trainer.strategy)
    load_only_what_is_named(trainer)
    log_by_steps_done(trainer)
    never_requeue(trainer)
    return trainer


def _quieten() -> None:
    """Leave out what Lightning says at every start (devices, tips) and warns of what is meant to be so."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for meant in (
        r"Found \d+ module\(s\) in eval mode",  # frozen parts
        r".*does not have many workers",  # small pictures are read faster in the training process
        r"Total length of `list` across ranks is zero",  # a recipe without validation
        r"It is recommended to use `self.log\(.*sync_dist=True",  # the metrics are reduced already
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own, towards torch
    ):
        warnings.filterwarnings("ignore", message=meant)


def _trained(experiment: Experiment) -> list[str]:
    """The parts that train, with their parameters."""
    parts = experiment.model.parts()
    counts = {name: sum(p.numel() for p in part.parameters() if p.requires_grad) for name, part in parts.items()}
    return [f"{name} ({count:,} parameters)" for name, count in counts.items() if count]


@contextmanager
def users_errors() -> Iterator[None]:
    """What only shows while a run goes on and is the user's to mend: a bad sample, a part that cannot train, a loss
    that is not finite, a checkpoint that would run code, a full disk, time that is up.
    """
    from dslight.train.callbacks import GradientError, TimeUp
    from dslight.train.finite import LossError

    try:
        yield
    except TimeUp as over:
        raise UnfinishedError(str(over)) from None
    except (ShardError, BadSample, GradientError, LossError, WeightsError) as error:
        raise RecipeError(str(error)) from error
    except OSError as error:
        if full := no_space(error):
            raise RecipeError(str(full)) from error
        raise
    except UnpicklingError as error:
        raise RecipeError(f"the checkpoint holds more than tensors, and none of it was run: {error}") from error
    except RuntimeError as error:
        if died := worker_error(error):
            raise RecipeError(str(died)) from error
        raise


@contextmanager
def _restored(trainer: Any, checkpoint: Path) -> Iterator[None]:
    """Name a checkpoint whose parts are not built as Lightning expects: what it raises before the training starts."""
    import torch
    from lightning.pytorch.callbacks import LambdaCallback

    started: list[bool] = []

    def start(*_: Any) -> None:
        started.append(True)

    trainer.callbacks.append(LambdaCallback(on_train_start=start, on_validation_start=start))
    try:
        yield
    except (RuntimeError, LookupError, TypeError, AttributeError, AssertionError) as error:
        not_its_fault = isinstance(error, torch.OutOfMemoryError | torch.distributed.DistError)
        if started or not_its_fault or worker_error(error) or no_space(error):
            raise
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        said = f"{checkpoint}: the run cannot be continued from it ({why}); move it away, or name another run_dir"
        raise RecipeError(said) from error


@contextmanager
def _first(kept: FirstError) -> Iterator[None]:
    """Of several errors, raise the one that ended the training."""
    try:
        yield
    except BaseException as error:
        if kept.error is not None and kept.error is not error:  # after Ctrl-C, Lightning leaves by SystemExit
            raise kept.error  # noqa: B904 - it is what came first
        raise


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Put back what the signals of a stop did before; Lightning does not where a training ends by an exception."""
    before = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for which, handler in before.items():
                signal.signal(which, handler)


@contextmanager
def _logs_joined(trainer: Any, folder: RunFolder) -> Iterator[None]:
    """Join the logs, however the training ends."""

    def join() -> None:
        if trainer.is_global_zero:
            folder.join_logs()

    try:
        yield
    except BaseException:
        with suppress(OSError, UserError):  # of a full disk, say, which may have ended it
            join()
        raise
    join()


def _described(error: BaseException) -> str:
    """An error in one line, for the other ranks: of a data worker's, which quotes its traceback, the last one."""
    error = worker_error(error) or error
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[-1]}"


def _launched() -> dict[str, int]:
    """Trainer arguments that torchrun has decided already: how many processes there are, and on how many nodes."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return {}
    devices = int(os.environ["LOCAL_WORLD_SIZE"])
    return {"devices": devices, "num_nodes": int(os.environ["WORLD_SIZE"]) // devices}


def _branch(branch: Branch, experiment: Experiment, trainer: Any) -> None:
    """Let ``branch`` adapt the checkpoint that the run begins from, and no later one."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    if isinstance(trainer.strategy, ModelParallelStrategy):
        raise RecipeError(
            "trainer.strategy: branches begin on strategies that do not shard; --branch takes none that do"
        )
    if not isinstance(experiment.model, VLM):
        raise RecipeError("--branch: is for a `model`; a `component` that is fitted alone begins with weights.PART")
    read = trainer.strategy.load_checkpoint

    def load_checkpoint(*args: Any, **kwargs: Any) -> dict[str, Any]:
        trainer.strategy.load_checkpoint = read
        return branch.adapt(read(*args, **kwargs), trainer, experiment.model, experiment.data)

    trainer.strategy.load_checkpoint = load_checkpoint


def _train(experiment: Experiment, folder: RunFolder, resume: bool, begin: Beginning | None = None) -> dict[str, Any]:
    from lightning.pytorch.callbacks import Timer
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.strategies import ModelParallelStrategy

    from dslight.run.answers import scores_of
    from dslight.run.cost import training_flops
    from dslight.run.result import write_result
    from dslight.train.branch import Branch, FirstRates
    from dslight.train.callbacks import AuditGradients, Bar, FirstError, Pace, StopCleanly, ValidateEvery
    from dslight.train.checkpoints import Checkpoints
    from dslight.train.finite import FiniteLoss
    from dslight.train.groups import ShowGroups
    from dslight.train.together import StopTogether
    from dslight.train.watch import DataWait, Watch

    pace = Pace(folder.path / "progress.json")
    saves = experiment.recipe.get("trainer", {}).get("enable_checkpointing", True)
    every, keep = experiment.recipe.get("checkpoint_every", 1000), experiment.recipe.get("checkpoint_keep", 2)
    checkpoints = Checkpoints(folder, every if saves else None, keep)
    limit = experiment.trainer.values.get("max_time")
    stop = StopCleanly(checkpoints, None if limit is None else Timer(limit))
    first = FirstError()
    callbacks: list[Any] = [
        first,
        StopTogether(_described),
        FiniteLoss(),
        pace,
        stop,
        AuditGradients(),
        *([checkpoints] if saves else []),
    ]
    if experiment.files and experiment.recipe.get("checkpoint_holds", "trained") == "trained":
        callbacks.append(HoldWhatTrains(experiment.files))
    waited = DataWait()  # the Trainer's profiler, unless the recipe has another
    measured = None if experiment.trainer.values.get("profiler") else waited
    said = experiment.parsed or experiment.recipe
    flops = None if unwritten(experiment.recipe) else lambda: training_flops(check(said))
    watch = Watch(flops, measured)
    callbacks += [ShowGroups(folder.path / "optimizer.txt"), watch]
    if experiment.trainer.values.get("enable_progress_bar", True):
        callbacks.append(Bar(pace))
    logger = CSVLogger(folder.path, name="logs", version=f"attempt-{folder.next_attempt() if resume else 0}")
    extra: dict[str, Any] = {"max_time": None} | ({} if measured is None else {"profiler": waited})
    if (steps := experiment.recipe.get("validate_every")) is not None:
        callbacks.append(ValidateEvery(steps))
        extra |= ValidateEvery.TRAINER
    name_loggers(experiment.trainer, folder.id(fresh=not resume))
    branch = None if begin is None or begin.of is None else Branch(begin.of)
    callbacks += [branch or FirstRates()] if begin is not None and begin.checkpoint is not None else []
    trainer = make_trainer(experiment, folder, callbacks, [logger], **extra)
    checkpoint = folder.latest_checkpoint() if resume else None
    if begin is not None and begin.checkpoint is not None:
        checkpoint = begin.checkpoint
    if branch is not None:
        _branch(branch, experiment, trainer)
    if trainer.is_global_zero:  # the other ranks write nothing, and nobody trains before all are there
        folder.open(experiment.recipe, fresh=not resume)
        if begin is not None and begin.open is not None:
            begin.open()
    if checkpoint is not None and checkpoint.is_dir() and not isinstance(trainer.strategy, ModelParallelStrategy):
        raise RecipeError(
            f"trainer.strategy: {checkpoint} is sharded; to continue from it, name a strategy that shards "
            f"(class_path: dslight.train.Sharded), on one process too"
        )
    model = experiment.model
    if trainer.is_global_zero:
        start = f"continuing from {checkpoint}" if checkpoint else "training " + ", ".join(_trained(experiment))
        print(f"{folder.path}: {start}")
    restored = nullcontext() if checkpoint is None else _restored(trainer, checkpoint)
    with _handlers_kept(), _logs_joined(trainer, folder), users_errors(), restored, _first(first):
        trainer.fit(model, datamodule=experiment.data, ckpt_path=checkpoint, weights_only=True)
        if stop.asked:  # in the validation after the last step
            raise KeyboardInterrupt
        trainer.limit_val_batches = 1.0
        scores = trainer.validate(model, datamodule=experiment.data, verbose=False) if experiment.validates else []
    merged = scores_of(scores)
    with users_errors():
        result = write_result(experiment, folder, trainer, pace, merged)
    if trainer.is_global_zero:
        headlines = [facts.get("headline") for facts in result["sources"].values()] or list(merged)[:1]
        score = "".join(f"{key} {merged[key]:.4f}, " for key in headlines if key in merged)
        print(f"{folder.path}: {score}{trainer.global_step} steps in {pace.train_seconds / 60:.1f} min")
    return result
