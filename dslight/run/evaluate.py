"""``dslight validate`` and ``dslight predict``: use a model that has been trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dslight.checkpoints.complete import is_sharded
from dslight.checkpoints.elsewhere import KEY, elsewhere, put_back, rest_of
from dslight.checkpoints.read import unpickled
from dslight.checkpoints.sharded import held, load_state
from dslight.errors import WeightsError
from dslight.files.atomic import write_atomically
from dslight.limits import at_most
from dslight.recipe.build import build
from dslight.recipe.errors import RecipeError
from dslight.recipe.experiment import Experiment
from dslight.run.folder import RunFolder, run_dir
from dslight.run.holds import weights_of


def validate(recipe: Mapping[str, Any], ckpt: str = "latest") -> dict[str, float]:
    """Score a checkpoint on all of the recipe's validation sources; prints the scores and writes ``scores.json``.

    Args:
        recipe: as composed.
        ckpt: a checkpoint of a run, weights that ``dslight.checkpoints`` reads, or ``latest``: the newest of the run.

    Raises:
        RecipeError: when there is nothing to validate on, or no checkpoint.
    """
    from dslight.run.fit import make_trainer

    folder = RunFolder(run_dir(recipe))
    checkpoint = _checkpoint(folder, ckpt)
    restored = _of_a_run(checkpoint) and not elsewhere(checkpoint)
    experiment = build(weights_from(checkpoint, recipe), opens="validate", restored=restored)
    if not experiment.validates:
        raise RecipeError("data.val: names no source to validate on")
    trainer = make_trainer(experiment, folder, **WHOLE)
    from lightning.pytorch.strategies import ModelParallelStrategy

    # every rank reads its own share
    in_place = isinstance(trainer.strategy, ModelParallelStrategy) and _of_a_run(checkpoint)
    if not in_place and _of_a_run(checkpoint):
        load_checkpoint(experiment.model, checkpoint)
    scores, sources = ask(experiment, folder, trainer, ckpt_path=checkpoint if in_place else None)
    if trainer.is_global_zero:
        for key, value in scores.items():
            print(f"{key:<40} {value:.4f}")
        for source, facts in sources.items():
            print(_said(source, facts))
        if experiment.diagnostics is not None:
            print(f"diagnostics: {folder.path / 'diagnostics.json'}")
        write_scores(folder, str(checkpoint), scores, sources)
    return scores


WHOLE = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 1.0}
"""Arguments of a Trainer that asks all questions."""


def ask(
    experiment: Experiment, folder: RunFolder | None, trainer: Any, ckpt_path: Path | None = None
) -> tuple[dict[str, float], dict[str, dict[str, Any]]]:
    """Ask and judge everything: the scores, and by source how it was asked; the answers go into ``folder``."""
    from dslight.run.answers import scores_of, write_answers
    from dslight.run.fit import users_errors

    with users_errors():
        found = trainer.validate(
            experiment.model, datamodule=experiment.data, ckpt_path=ckpt_path, verbose=False, weights_only=True
        )
    return scores_of(found), write_answers(experiment, folder, trainer) if folder is not None else {}


def write_scores(
    folder: RunFolder, checkpoint: str | None, scores: Mapping[str, float], sources: Mapping[str, dict[str, Any]]
) -> None:
    """What a report reads beside ``result.json``."""
    written = {"checkpoint": checkpoint, "scores": scores, "sources": sources}
    write_atomically(folder.path / "scores.json", json.dumps(written, indent=2))


def _said(source: str, facts: Mapping[str, Any]) -> str:
    """How a source went, in a line."""
    hidden = facts["questions"] - facts["scored"]
    parts = [
        f"{facts['questions']} questions",
        f"{facts['benchmark']} by the protocol {facts['protocol']}" if facts["protocol"] else facts["benchmark"],
        f"{hidden} not scored" if hidden else "",
        f"{facts['unresolved']} unresolved" if facts["unresolved"] else "",
        f"{facts['unfinished']} still thinking" if facts["unfinished"] else "",
        f"{facts['questions_per_second']:.1f} questions/s" if facts["seconds"] else "",
    ]
    return f"{source}: {', '.join(filter(None, parts))}"


def predict(
    recipe: Mapping[str, Any],
    question: str,
    images: Sequence[Path],
    ckpt: str = "latest",
    max_new_tokens: int = 64,
    videos: Sequence[Path] = (),
    frames: int | None = None,
    tile: str | None = None,
) -> str:
    """The answer to one question about images and videos.

    Args:
        recipe: as composed.
        question: as a user would ask it; the recipe's template is put around it.
        images: picture files of a format of :func:`dslight.limits.image_formats`; none for a question without an image.
        ckpt: a checkpoint of a run, weights that ``dslight.checkpoints`` reads, or ``latest``: the newest of the run.
        max_new_tokens: limit of the answer.
        videos: files, or folders of frames; they come after the images.
        frames, tile: what is made of each, see :meth:`dslight.data.video.Sampling.of`; where neither is named, a model
            whose encoder has temporal patches sees a file as ``data.video`` says.

    Raises:
        RecipeError: when a picture, a video or the checkpoint is not there.
    """
    from dslight.data.sample import BadSample, decode_image
    from dslight.run.fit import users_errors

    check_length(max_new_tokens)
    _checkpoint(RunFolder(run_dir(recipe)), ckpt)  # refused before pictures are read
    for path in images:
        if not path.is_file():
            raise RecipeError(f"--image: there is no file {path}")
        size = path.stat().st_size
        at_most("member_bytes", size, f"--image {path}: {size:,} bytes", RecipeError)
        try:
            decode_image(path.read_bytes())
        except BadSample as error:
            raise RecipeError(f"--image {path}: {error}") from error
    shown = [path.read_bytes() for path in images]
    pictures = _frames(videos, frames, tile)  # which also sees that they can be read
    model: Any = trained(recipe, ckpt).model
    whole = (frames, tile) == (None, None) and model.processor.frames.clips and all(path.is_file() for path in videos)
    with users_errors():
        if whole:
            return model.answer(question, shown, list(videos), max_new_tokens=max_new_tokens)
        return model.answer(question, shown + pictures, max_new_tokens=max_new_tokens)


def check_length(max_new_tokens: int) -> None:
    """Refuse an answer that has no token.

    Raises:
        RecipeError: naming the option.
    """
    if max_new_tokens < 1:
        raise RecipeError(f"--max-new-tokens: {max_new_tokens}; 1 or more")


def _frames(videos: Sequence[Path], frames: int | None, tile: str | None) -> list[bytes]:
    """The encoded images that videos are shown as."""
    from dslight.data.sample import BadSample
    from dslight.data.video import Sampling

    if not videos and (frames, tile) != (None, None):
        raise RecipeError("--frames, --tile: say what is made of a --video, and there is none")
    try:
        sampling = Sampling.of(frames, tile)
    except ValueError as error:
        raise RecipeError(str(error)) from error
    images = []
    for path in videos:
        if not path.exists():
            raise RecipeError(f"--video: there is no file {path}")
        try:
            images += sampling.images(path)
        except BadSample as error:
            raise RecipeError(f"--video {path}: {error}") from error
        except ImportError as error:
            raise RecipeError("--video: reading videos needs PyAV; pip install 'dslight[video]'") from error
    return images


def trained(recipe: Mapping[str, Any], ckpt: str = "latest", device: Any = None) -> Experiment:
    """The experiment with a checkpoint's weights, outside of a Trainer, :func:`ready_to_ask`; ``ckpt`` as for
    :func:`predict`.

    Raises:
        RecipeError: when the checkpoint is not there.
    """
    checkpoint = _checkpoint(RunFolder(run_dir(recipe)), ckpt)
    experiment = build(weights_from(checkpoint, recipe), opens=None)
    if _of_a_run(checkpoint):
        load_checkpoint(experiment.model, checkpoint)
    ready_to_ask(experiment.model, recipe, device)
    return experiment


def ready_to_ask(model: Any, recipe: Mapping[str, Any], device: Any = None) -> Any:
    """The model on a device (default: a GPU where there is one), in evaluation mode, computing in the precision of the
    recipe's Trainer.
    """
    import torch
    from lightning.fabric.plugins.precision import MixedPrecision

    from dslight.train.precision import HalfWeights

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.eval().to(device)
    precision: Any = str((recipe.get("trainer") or {}).get("precision", "32-true"))
    if precision in ("bf16", "bf16-mixed") or (precision in ("16", "16-mixed") and device.type != "cpu"):
        mixed: Any = precision.removesuffix("-mixed") + "-mixed"
        model.precision = MixedPrecision(mixed, device=device.type)
    elif precision in ("bf16-true", "16-true"):
        model.precision = HalfWeights(precision)
        model.precision.convert_module(model)
    return model


def load_checkpoint(model: Any, path: Path) -> None:
    """Read all weights of a model from a checkpoint of its run, whole or sharded.

    Nothing is unpickled but tensors and plain containers.

    Raises:
        RecipeError: it holds more than that, is damaged, or of another model.
    """
    try:
        if path.is_dir():
            rest = rest_of(path)
            state: dict[str, Any] = {"state_dict": held(model.state_dict(), rest)}
            load_state(state, path)
            state[KEY] = rest.get(KEY)
        else:
            state = unpickled(path)
            if not isinstance(state, dict) or not isinstance(state.get("state_dict"), dict):
                raise WeightsError(f"{path} is no checkpoint of a run: it has no state_dict")
        put_back(state["state_dict"], state.get(KEY), model.state_dict(), path)
    except WeightsError as error:
        raise RecipeError(f"--ckpt: {error}") from error
    try:
        model.load_state_dict(state["state_dict"])
    except (RuntimeError, AttributeError, TypeError) as error:  # names that are none are taken apart as texts
        raise RecipeError(
            f"--ckpt: {path} is of another model than the recipe's: {' '.join(str(error).split())}"
        ) from error


def weights_from(checkpoint: Path, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without the files that a training begins with: a checkpoint has all weights, or says in which files
    they are, and what is not a run's is read while building.

    Raises:
        RecipeError: the checkpoint cannot be read.
    """
    bare = {key: value for key, value in recipe.items() if key != "weights"}
    try:
        found = weights_of(checkpoint) if _of_a_run(checkpoint) else {"model": str(checkpoint)}
    except WeightsError as error:
        raise RecipeError(f"--ckpt: {error}") from error
    return bare | {"weights": found} if found else bare


def _of_a_run(checkpoint: Path) -> bool:
    return checkpoint.suffix == ".ckpt" or is_sharded(checkpoint)


def _checkpoint(folder: RunFolder, ckpt: str) -> Path:
    if ckpt != "latest":
        if not Path(ckpt).exists():
            raise RecipeError(f"--ckpt: there is no checkpoint {ckpt}")
        return Path(ckpt)
    newest = folder.latest_checkpoint()
    if newest is None:
        raise RecipeError(f"--ckpt: {folder.checkpoints} has no complete checkpoint; train first: dslight fit RECIPE")
    return newest
