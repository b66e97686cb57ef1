"""The oracle of generation: greedy answers with a cache are greedy answers that recompute the whole sequence each time.

Libraries move how a cache is handed on, and a step that takes itself for the beginning of the sequence gives fluent
nonsense. So every family, with everything that enters at visual positions, wherever an image may stand.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from dslight.components import HFCausalLM
from dslight.nn.cross_attention import GatedCrossAttention
from dslight.nn.window import Window, follow
from dslight.types import Memory, VisualTokens

NEW = 4
GROUPED = {"num_key_value_heads": 2, "intermediate_size": 48}
WINDOW = {"sliding_window": 6}
GEMMA = {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {**GROUPED, **WINDOW},
    "phi3": {},
    "qwen2": {**GROUPED, **WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma": {**GROUPED, "head_dim": 8},
    "gemma2": {**GEMMA, **WINDOW},
    "gemma3_text": {**GEMMA, **WINDOW},
    "granite": {**GROUPED, "embedding_multiplier": 3.0},
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 48},
    "mamba": {"num_attention_heads": None, "state_size": 8},
}
WHOLE_PREFILL = {"mamba"}  # transformers cannot run their prefill in chunks, text alone neither
STATES = {"mamba"}  # their decode steps take no mask, so a state that a block has not seen has no place
UNLIKE = ["llama", "gemma3_text", "gpt2", "mamba"]
"""Families whose embedding, positions and caches differ most."""
ENTERS = ["stacks", "gates", "cross-attention"]
IMAGES = {"column 0": [(0, 4)], "column 1": [(1, 4)], "text between": [(2, 3), (7, 2)], "text": [], "text again": []}
LENGTHS = {"column 0": 9, "column 1": 12, "text between": 10, "text": 12, "text again": 7}


@dataclass
class Prompt:
    """A batch of prompts: the arguments of :meth:`LanguageModel.generate`."""

    ids: Tensor
    attention: Tensor
    mask: Tensor
    visual: VisualTokens

    def __iter__(self):
        return iter((self.ids, self.attention, self.mask, self.visual))


class Enters:
    """Makes prompts whose images enter by stacks, by gated stacks or by cross-attention; the blocks are made once."""

    def __init__(self, how: str) -> None:
        torch.manual_seed(1)
        self.how = how
        self.blocks = [GatedCrossAttention(32, heads=2, head_dim=8, ffn=1, init=1.0) for _ in range(2)]
        self.gate = nn.Linear(32, 32)

    def prompt(self, length: int, images: list[tuple[int, int]], seed: int) -> Prompt:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, 64, (1, length), generator=generator)
        mask = torch.zeros(1, length, dtype=torch.bool)
        for start, count in images:
            mask[0, start : start + count] = True
        slots = 2 * torch.randn(4, int(mask.sum()), 32, generator=generator)
        counts = tuple(count for _, count in images)
        memory = None
        if self.how == "cross-attention":
            tokens = 2 * torch.randn(2 * sum(counts), 32, generator=generator)
            memory = Memory(tokens, tuple(2 * count for count in counts), counts, self.blocks, (1, 3))
            slots = slots[:1]
        operation = self.operation if self.how == "gates" else None
        return Prompt(
            ids, torch.ones_like(ids), mask, VisualTokens(slots, (0, 1, 3)[: len(slots) - 1], operation, memory)
        )

    def operation(self, index: int, hidden: Tensor, values: Tensor) -> Tensor:
        return torch.sigmoid(self.gate(hidden) + index) * values

    def together(self, prompts: list[Prompt]) -> Prompt:
        """Left-padded into one batch."""
        length = max(prompt.ids.shape[1] for prompt in prompts)
        ids, attention, mask = (
            torch.cat([nn.functional.pad(rows, (length - rows.shape[1], 0)) for rows in column])
            for column in zip(*((p.ids, p.attention, p.mask) for p in prompts), strict=True)
        )
        first = prompts[0].visual
        slots = torch.cat([prompt.visual.slots for prompt in prompts], dim=1)
        memory = first.memory
        if memory is not None:
            memories = [p.visual.memory for p in prompts if p.visual.memory is not None]
            memory = replace(
                memory,
                tokens=torch.cat([each.tokens for each in memories]),
                counts=sum((each.counts for each in memories), ()),
                slots=sum((each.slots for each in memories), ()),
            )
        return Prompt(ids, attention, mask, replace(first, slots=slots, memory=memory))


@torch.no_grad()
def recomputed(lm: HFCausalLM, prompt: Prompt, new: int = NEW) -> list[int]:
    """The greedy answer to one prompt; every token from a pass over the whole sequence, without a cache."""
    ids, attention, mask, visual = prompt
    for _ in range(new):
        token = lm(ids, attention, mask, visual)[:, -1].argmax(-1, keepdim=True)
        ids, attention = torch.cat([ids, token], 1), torch.cat([attention, torch.ones_like(token)], 1)
        mask = torch.cat([mask, torch.zeros_like(token, dtype=torch.bool)], 1)
    return ids[0, -new:].tolist()


def cases(families: Collection[str], enters: Collection[str], without: Collection[str] = ()) -> pytest.MarkDecorator:
    """Every family with everything that enters; those left out of ``families`` and ``enters`` are slow."""
    return pytest.mark.parametrize(
        ("kind", "enters"),
        [
            pytest.param(kind, how, marks=[] if kind in families and how in enters else pytest.mark.slow)
            for kind in FAMILIES
            if kind not in without
            for how in ENTERS
        ],
        indirect=["enters"],
    )


@pytest.fixture
def lm(kind, tiny_lm) -> HFCausalLM:
    return tiny_lm(kind, attention=None, **FAMILIES[kind])


@pytest.fixture
def enters(request) -> Enters:
    return Enters(request.param)


@pytest.fixture
def prompts(enters) -> list[Prompt]:
    return [enters.prompt(LENGTHS[name], images, seed) for seed, (name, images) in enumerate(IMAGES.items())]


def answer(lm: HFCausalLM, prompt: Prompt, **options: Any) -> list[list[int]]:
    return lm.generate(*prompt, **{"max_new_tokens": NEW, "pad_token_id": 0} | options).tolist()


@cases(UNLIKE, ENTERS)
def test_greedy_answers_with_a_cache_are_those_that_recompute_the_whole_sequence(lm, kind, enters, prompts):
    expected = [recomputed(lm, prompt) for prompt in prompts]
    assert [answer(lm, prompt)[0] for prompt in prompts] == expected
    together = enters.together(prompts)
    assert answer(lm, together) == expected  # behind left padding
    if kind not in WHOLE_PREFILL:
        for size in (1, 5):
            assert answer(lm, together, prefill_chunk_size=size) == expected
    without = answer(lm, Prompt(together.ids, together.attention, together.mask, None))  # type: ignore[arg-type]
    assert sum(with_ != text for with_, text in zip(expected[:3], without[:3], strict=True)) >= 2  # images matter
    assert without[3:] == expected[3:]


@cases(UNLIKE, ["gates", "cross-attention"])
def test_beams_with_a_cache_are_those_that_recompute(lm, enters, prompts):
    options = {"num_beams": 2, "num_return_sequences": 2}
    expected = [answer(lm, prompt, use_cache=False, **options) for prompt in prompts[:4]]
    assert answer(lm, enters.together(prompts[:4]), **options) == [beam for beams in expected for beam in beams]


@cases(UNLIKE, ["stacks", "cross-attention"], without=STATES)
@torch.no_grad()
def test_two_generations_that_take_turns_are_each_its_own(lm, kind, prompts):
    """Step by step, each pass in a block of its own, each generation with its own cache."""
    name = next(n for n in ("cache", "past_key_values", "cache_params") if n in signature(lm.model.forward).parameters)
    states = [[prompt, prompt.ids, DynamicCache(config=lm.model.config), []] for prompt in (prompts[0], prompts[2])]
    for step in range(NEW):
        for state in states:
            prompt, fed, cache, new = state
            attention = torch.ones(1, prompt.ids.shape[1] + step, dtype=torch.int64)
            with lm._injecting(prompt.mask, prompt.visual):
                out = lm.model(input_ids=fed, attention_mask=attention, use_cache=True, **{name: cache})
            state[1] = out.logits[:, -1].argmax(-1, keepdim=True)
            new.append(int(state[1]))
    assert [state[3] for state in states] == [recomputed(lm, state[0]) for state in states]


# --- a window that cannot be known is an error ------------------------------------------------------------------------


class Silent:
    """A state that cannot say how many tokens it holds."""


class Model(nn.Module):
    """Its passes take whatever keyword its library calls the cache by."""

    def forward(self, input_ids: Tensor, **_: Any) -> dict[str, Any]:
        return {}


def starts(calls: list[tuple[int, dict[str, Any]]], length: int = 8, model: nn.Module | None = None) -> list[int]:
    """Where each pass of (tokens, keywords) begins, in a sequence of ``length``."""
    model, found = model or Model(), []
    with follow(model, length) as window:
        model.register_forward_pre_hook(lambda *_: found.append(window.start(found_width[0])))
        for found_width[0], keywords in calls:
            model(input_ids=torch.zeros(2, found_width[0], dtype=torch.int64), **keywords)
    return found


found_width = [0]


def mask(count: int) -> Tensor:
    return torch.ones(2, count, dtype=torch.int64)


def filled(count: int) -> DynamicCache:
    cache = DynamicCache()
    if count:
        cache.update(torch.zeros(2, 1, count, 4), torch.zeros(2, 1, count, 4), 0)
    return cache


@pytest.mark.parametrize("name", ["cache", "past_key_values", "a name that nobody has used yet"])
def test_a_cache_is_found_by_whatever_name_it_is_handed_on(name):
    assert starts([(5, {name: filled(0)}), (3, {name: filled(5)}), (1, {name: filled(8)})]) == [0, 5, 8]


@pytest.mark.parametrize("name", ["state", "cache_params"])
def test_a_state_that_cannot_say_its_length_is_counted(name):
    state = Silent()
    assert starts([(8, {name: state}), (1, {name: state}), (1, {name: state})]) == [0, 8, 9]
    assert starts([(5, {name: state, "attention_mask": mask(5)}), (3, {name: state}), (1, {name: state})]) == [0, 5, 8]
    assert starts([(1, {name: Silent(), "attention_mask": mask(9)})]) == [8]  # not seen before: the mask tells


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ((3, {}), "over 3 of 8 tokens has no cache that is known"),
        ((3, {"attention_mask": mask(3)}), "has no cache that is known"),
        ((1, {"attention_mask": mask(9)}), "over 1 of 9 tokens has no cache that is known"),
        ((9, {"attention_mask": mask(18)}), "over 9 of 18 tokens has no cache that is known"),
        ((1, {"a name that nobody has used yet": Silent()}), "has no cache that is known"),
        ((3, {"state": Silent()}), r"\(Silent\) cannot say how many tokens it holds"),
        ((3, {"cache": filled(5), "attention_mask": mask(7)}), "holds 5 tokens, but a pass over 3 .* mask of 7"),
    ],
)
def test_a_window_that_is_not_known_is_an_error_and_not_a_guess(call, said):
    with pytest.raises(RuntimeError, match=said):
        starts([call])


def test_the_error_names_the_model_and_its_library(tiny_lm):
    lm, prompt = tiny_lm("llama"), Enters("stacks").prompt(8, [(0, 4)], 0)
    with (
        pytest.raises(RuntimeError, match=r"llama \(LlamaForCausalLM, transformers 5\."),
        lm._injecting(prompt.mask, prompt.visual),
    ):
        lm.model(input_ids=prompt.ids[:, :3], use_cache=False)


def test_a_pass_that_succeeds_looks_no_version_up(tiny_lm, monkeypatch):
    """Reading a library's metadata takes 10 ms, at every generated token."""
    lm, prompt = tiny_lm("llama"), Enters("stacks").prompt(8, [(0, 4)], 0)
    monkeypatch.setattr("dslight.nn.window.version", lambda package: pytest.fail(f"looked {package} up"))
    lm(*prompt)
    assert lm.generate(*prompt, max_new_tokens=2, pad_token_id=0, eos_token_id=None).shape == (prompt.ids.shape[0], 2)


def test_layers_that_get_fewer_positions_than_the_pass_get_the_last_ones():
    window = Window(8)
    window.enter(Model(), (torch.zeros(2, 5, dtype=torch.int64),), {"cache": filled(3)})
    assert [window.start(count) for count in (5, 2, 1)] == [3, 6, 7]
    with pytest.raises(RuntimeError, match="gets 10 positions in a pass over 5 tokens"):
        window.start(10)


def test_a_layer_that_runs_on_its_own_has_to_see_the_whole_sequence():
    window: Callable[[int], int] = Window(8).start
    assert window(8) == 0
    with pytest.raises(RuntimeError, match="7 positions reach a layer of this model, the sequence has 8"):
        window(7)
