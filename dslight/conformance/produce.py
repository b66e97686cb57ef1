"""Makes the kit's files: ``python -m dslight.conformance.produce [FOLDER]``.

The numbers are those of the families' own classes in transformers, computed in the plainest way there is: one request
alone, one pass over the whole of it, without a cache; greedy answers and beams token by token in the same way. What is
written has been checked: that every stack of every request matters, that no greedy choice is a close call, and that
whatever other way the class offers (caches, pieces, padding, beams, ...) comes to the same; where one does not, the
recipe has to say which outcome is right and why, or the program stops.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import Tensor

from dslight.conformance.kit import FORMAT, ROOT, Array, Batch, Family, Request
from dslight.conformance.own_transformers import Transformers, TransformersModel, answer_loss, slots_of
from dslight.conformance.pictures import pixels
from dslight.conformance.released import name_as_released, write_processor
from dslight.conformance.runner import run
from dslight.conformance.tiny import AUDIO, END, IMAGE, NEW, RECIPES, START, VIDEO, Recipe

PROMPTS: dict[str, list[int | str]] = {
    "one": [5, 6, "a", 7, 8, 9],
    "branch": [5, 6, "a", 30, 31, 32, 33],
    "first": ["b", 10, 11, 12],
    "several": [12, "a", 13, "b", "c", 14, 15],
    "video": [16, "b", 17, "v", 18, 19],
    "text": [20, 21, 22, 23, 24, 25],
}
"""A prompt's ids, and names of images where they stand."""
STREAMS: dict[str, tuple[tuple[int, ...], tuple[float, ...] | None]] = {
    "inputs": ((1, 2, 3), None),
    "gated": ((1, 2, 3), (0.5, -1.25, 0.75)),
    "same_site": ((2, 0, 2), None),
}
"""Sites and gates of requests that are given as slots: the base is there, and a stack at each site."""
CLOSE = 0.01
"""By how much every greedy choice leads over the second best, in logits, and the best beam over the next, at least."""


def weights(recipe: Recipe, seed: int) -> Any:
    """The class with its random weights, every number one that bfloat16 has. Ids that no answer may hold, padding and
    placeholders, get the logit 0.
    """
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, recipe.config)(**recipe.settings)
    model = getattr(transformers, recipe.model)(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=recipe.std)
        else:
            parameter.add_(0.1 * torch.randn_like(parameter))
        parameter.copy_(parameter.bfloat16())
    head = model.get_output_embeddings().weight
    head.mul_(4)
    head[0], head[AUDIO - 2 :] = 0, 0
    return model


def prompts(recipe: Recipe, given: Mapping[str, Array], model: TransformersModel) -> Iterator[Request]:
    """The family's requests, as yet without answers and numbers."""
    for name, written in PROMPTS.items():
        if "v" in written and not recipe.video:
            continue
        images = [one for one in written if isinstance(one, str)]
        found = {one: _pixels_of(given, recipe, one) for one in images}
        ids: list[int] = []
        for one in written:
            ids += [one] if isinstance(one, int) else _placeholders(recipe, found[one], model)
        none = np.zeros(0, dtype=np.int64)
        yield Request(
            name, np.array(ids), none, none, np.isin(ids, [IMAGE, VIDEO]), np.zeros((1, len(ids)), dtype=np.int64),
            none, none, [found[one] for one in images], (), 0.0, none, (),
        )  # fmt: skip


def streams(width: int) -> Iterator[Request]:
    """Requests that are given as slots: stacks as DeepStack-L adds them, gated ones, several at one layer."""
    ids = np.array([5, IMAGE, IMAGE, 6, IMAGE, 7, IMAGE, 8, 9])
    generator, none = np.random.default_rng(0), np.zeros(0, dtype=np.int64)
    slots = generator.normal(size=(4, (ids == IMAGE).sum(), width)).astype(np.float32)
    for name, (sites, gates) in STREAMS.items():
        yield Request(
            name, ids, none, none, ids == IMAGE, none, slots[: 1 + len(sites)], none, (), (), 0.0, none, sites, gates
        )


def _pixels_of(given: Mapping[str, Array], recipe: Recipe, image: str) -> dict[str, Array]:
    prefix = f"{recipe.pixels}/{image}."
    return {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}


def _placeholders(recipe: Recipe, given: Mapping[str, Array], model: TransformersModel) -> list[int]:
    """The ids of an image in a prompt."""
    if recipe.pixels != "patches":
        none = np.zeros(0, dtype=np.int64)
        alone = Request("", none, none, none, none, none, none, none, [given], (), 0.0, none, ())
        levels = model.features(Batch((alone,)))["image"]["deepstack_features"]
        first = levels[0][1] if isinstance(levels[0][0], int) else levels[0]
        return [IMAGE] * sum(map(len, first))
    if "image_grid_thw" in given:
        return [START, *[IMAGE] * (given["image_grid_thw"].prod() // 4), END]
    time, rows, cols = given["video_grid_thw"][0].tolist()
    if recipe.video == "whole":
        return [START, *[VIDEO] * (time * rows * cols // 4), END]
    return [one for t in range(time) for one in (40 + t, START, *[VIDEO] * (rows * cols // 4), END)]


class CloseCallError(Exception):
    """Another seed, please."""


def computed(model: TransformersModel, ids: Sequence[int], like: Request) -> Tensor:
    """Logits ``[T, vocabulary]`` of a pass over one row, without a cache."""
    return model.whole(Batch((_row(model, ids, like),)))[0]


def _row(model: TransformersModel, ids: Sequence[int], like: Request) -> Request:
    axes = 1 if model.family.facts["pixels"] != "patches" else 3
    positions = np.tile(np.arange(len(ids)), (axes, 1))
    visual = np.pad(like.visual, (0, len(ids) - len(like.visual)))
    return replace(like, prompt=np.array(ids), positions=positions, visual=visual)


def answered(model: TransformersModel, request: Request) -> tuple[list[int], float]:
    """The greedy answer, and the smallest lead of a chosen token over the second best."""
    ids, lead = request.prompt.tolist(), float("inf")
    for _ in range(NEW):
        best = computed(model, ids, request)[-1].topk(2)
        lead = min(lead, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(request.prompt) :], lead


def searched(model: TransformersModel, request: Request, beams: int = 3) -> tuple[list[int], float]:
    """The best of some beams, and its lead in log probability over the next: plain beam search, all hypotheses of one
    length.
    """
    held = [(0.0, request.prompt.tolist())]
    for _ in range(NEW):
        rows = model.whole(Batch(tuple(_row(model, ids, request) for _, ids in held)))[:, -1]
        grown = []
        for (score, ids), row in zip(held, rows, strict=True):
            found = row.float().log_softmax(-1).topk(2 * beams)
            grown += [(score + float(v), [*ids, int(i)]) for v, i in zip(*found, strict=True)]
        held = sorted(grown, key=lambda one: -one[0])[:beams]
    return held[0][1][len(request.prompt) :], held[0][0] - held[1][0]


def positions_of(model: TransformersModel, request: Request) -> Array:
    """``[axes, T]``, as the class counts them in a pass over the row."""
    seen: list[Tensor] = []
    inner = model.model.model
    text = getattr(inner, "language_model", None) or inner.text_model
    hook = text.register_forward_pre_hook(lambda m, a, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True)
    model.whole(Batch((request,)))
    hook.remove()
    (found,) = seen
    if found is None:  # of a text: all axes alike
        return np.tile(np.arange(len(request.ids)), (len(request.positions), 1))
    return (found if found.ndim == 3 else found[None])[-len(request.positions) :, 0].numpy()


def completed(model: TransformersModel, request: Request, sites: Sequence[int]) -> Request:
    """A request with its answers and numbers.

    Raises:
        CloseCallError: for a choice that another order of summation might turn, or an answer that says little.
    """
    answer, lead = answered(model, request)
    if lead < CLOSE or len(set(answer)) < 3:
        raise CloseCallError
    best, ahead = searched(model, request)
    if ahead < CLOSE:
        raise CloseCallError
    whole = _row(model, [*request.prompt, *answer], request)
    logits = computed(model, [*request.prompt, *answer], request)
    made = replace(whole, prompt=request.prompt, answer=np.array(answer), beams=np.array(best), logits=logits.numpy())
    if request.streamed:
        return replace(made, loss=float(answer_loss(logits, made)))
    made = replace(made, positions=positions_of(model, made), sites=tuple(sites))
    if not request.pixels:
        width = model.model.get_input_embeddings().embedding_dim
        slots = np.zeros((len(sites) + 1, 0, width), dtype=np.float32)
    else:
        slots = slots_of(model.features(Batch((made,))), made.prompt, model.family).numpy()
    return replace(made, slots=slots, loss=float(answer_loss(logits, made)))


def _bfloat16(family: Family) -> float:
    """What bfloat16 may cost: a quarter of what the least of the stacks changes.

    Raises:
        CloseCallError: where the family's own class needs half of that.
    """
    batch, least = family.batch("one"), float("inf")
    expected = batch.requests[0].logits
    for stack in range(len(family.sites)):
        session = Transformers().load(family).open(batch)
        level = session.features["image"]["deepstack_features"][stack]
        for features in level[1] if isinstance(level[0], int) else level:
            features.zero_()
        least = min(least, float(np.abs(session.feed(batch.length)[0] - expected).max()))
    found = Transformers().load(family, "bfloat16").open(batch).feed(batch.length)
    if float(np.abs(found[0] - expected).max()) > least / 8:
        raise CloseCallError
    return float(f"{least / 4:.1e}")


def produce(root: Path) -> None:
    """Write the kit."""
    root.mkdir(parents=True, exist_ok=True)
    given = pixels()
    save_file(given, root / "pixels.safetensors")
    for name, recipe in RECIPES.items():
        one_family(root, name, recipe, given)


def one_family(root: Path, name: str, recipe: Recipe, given: Mapping[str, Array]) -> Family:
    """Write a family's folder."""
    for seed in range(200):
        with suppress(CloseCallError):
            return _with_seed(root, name, recipe, given, seed)
    raise RuntimeError(f"{name}: no seed without a close call")


def _with_seed(root: Path, name: str, recipe: Recipe, given: Mapping[str, Array], seed: int) -> Family:
    folder = root / name
    network = weights(recipe, seed)
    facts: dict[str, Any] = {
        "format": FORMAT,
        "model": recipe.model,
        "injection": recipe.injection,
        "seed": seed,
        "made with": {library: version(library) for library in ("transformers", "torch")},
        "pixels": recipe.pixels,
        "video": recipe.video,
        "placeholders": [IMAGE, VIDEO] if recipe.video else [IMAGE],
    }
    model = TransformersModel(Family(folder, facts), network)
    drafts = list(prompts(recipe, given, model))
    if recipe.streams:
        drafts += streams(network.get_input_embeddings().embedding_dim)
    some = model.features(Batch((drafts[0],)))["image"]["deepstack_features"]
    sites = [one[0] for one in some] if isinstance(some[0][0], int) else [i + 1 for i in range(len(some))]
    tensors: dict[str, Array] = {}
    told: dict[str, Any] = {}
    for draft in drafts:
        with torch.no_grad():
            made = completed(model, draft, sites)
        told[made.name] = {
            **{key: getattr(made, key).tolist() for key in ("prompt", "answer", "beams")},
            "images": [one for one in PROMPTS.get(made.name, ()) if isinstance(one, str)],
            "loss": made.loss,
        }
        if made.streamed:
            told[made.name] |= {"sites": made.sites} | ({"gates": made.gates} if made.gates else {})
        for key in ("positions", "slots", "logits"):
            tensors[f"{made.name}.{key}"] = getattr(made, key)
        if made.name == "one":
            tensors[f"{made.name}.gradient"] = model.gradients(made, checkpointing=False)[1]
    facts |= {"sites": sites, "tolerance": {"float32": 1e-4}, "requests": told}
    network.bfloat16().save_pretrained(folder)
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder.with_suffix(".safetensors"))
    name_as_released(folder)
    write_processor(folder, images=recipe.video == "stamped")
    family = Family(folder, facts)
    facts["tolerance"]["bfloat16"] = _bfloat16(family)
    facts["deviations"] = dict(recipe.deviations)
    report = run(Transformers(), among=[family])
    if {one.case for one in report.failed} != recipe.deviations.keys():
        raise RuntimeError(f"{name}: its recipe says {sorted(recipe.deviations)}, but\n{report.to_text()}")
    folder.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    return family


if __name__ == "__main__":
    produce(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
