"""Families of decoders, from checkpoints that transformers wrote: slots, stacks, caches, gradients, conversations.

The reference is the checkpoint read a second time by transformers: its pass over ``inputs_embeds``, with plain hooks
that add dense maps in front of layers.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from dslight.components import HFCausalLM
from dslight.data.conversation import IMAGE, Turn, template
from dslight.nn.loss import next_token_loss
from dslight.types import IGNORE, VisualTokens

WIDTH, DEPTH, LENGTH, SITES = 32, 4, 24, (0, 1, 1, 3)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What a tiny model of the family needs beside the common shape, how it chats and what ends an answer there."""

    config: dict[str, Any]
    chat: str | None = None
    end: str = ""


GROUPED = {"num_key_value_heads": 2, "intermediate_size": 48}
WINDOW = {"sliding_window": 6}
GEMMAS = {**GROUPED, "head_dim": 8}
FAMILIES = {
    "llama": Family(GROUPED, LLAMA, "<|eot_id|>"),
    "mistral": Family(GROUPED | WINDOW, MISTRAL, "</s>"),
    "phi3": Family(GROUPED | WINDOW, PHI, "<|end|>"),
    "qwen2": Family(GROUPED | WINDOW | {"use_sliding_window": True, "max_window_layers": 2}, CHATML, "<|im_end|>"),
    "qwen3": Family(GROUPED | {"head_dim": 8}, CHATML, "<|im_end|>"),
    "gemma": Family(GEMMAS, GEMMA, "<end_of_turn>"),
    "gemma2": Family(GEMMAS | WINDOW | {"query_pre_attn_scalar": 8}, GEMMA, "<end_of_turn>"),
    "gemma3_text": Family(GEMMAS | WINDOW | {"query_pre_attn_scalar": 8}, GEMMA, "<end_of_turn>"),
    "granite": Family(GROUPED | {"embedding_multiplier": 3.0}, CHATML, "<|im_end|>"),
    "gpt2": Family({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "gpt_neox": Family({"intermediate_size": 48}),
}
MARKS = [
    "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<|user|>",
    "<|assistant|>", "<|end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Bytes, and the marks of every family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*MARKS, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    made.add_special_tokens({"additional_special_tokens": MARKS[2:]})  # type: ignore[arg-type]
    made.chat_template = FAMILIES[kind].chat  # type: ignore[assignment]
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Callable[[str], str]:
    """``checkpoint(kind)``: a folder with a tiny random model and its tokenizer, both saved by transformers."""

    @cache
    def make(kind: str) -> str:
        torch.manual_seed(0)
        shape = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "vocab_size": 272}
        ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(kind, **{**shape, **ends, **FAMILIES[kind].config})
        )
        with torch.no_grad():  # transformers' init (0.02) leaves all logits nearly equal at this size
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(std=0.2)
        folder = tmp_path_factory.mktemp(kind)
        model.save_pretrained(folder)
        tokenizer(kind).save_pretrained(folder)
        return str(folder)

    return make


@pytest.fixture(params=FAMILIES)
def kind(request) -> str:
    return request.param


@pytest.fixture
def lm(kind, checkpoint) -> HFCausalLM:
    """Ours, read by path."""
    return HFCausalLM(pretrained=checkpoint(kind)).eval()


@pytest.fixture
def reference(kind, checkpoint) -> Any:
    """Theirs, read by path."""
    return AutoModelForCausalLM.from_pretrained(checkpoint(kind)).eval()


def inputs(rows=3, stacks=True, seed=0):
    """Row 0 with two images, row 1 text alone, row 2 one image; without padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(14, 260, (rows, LENGTH), generator=generator)
    mask = torch.zeros(rows, LENGTH, dtype=torch.bool)
    mask[0, 1:5], mask[0, 9:14], mask[2, 4:16] = True, True, True
    slots = torch.randn(1 + len(SITES), int(mask.sum()), WIDTH, generator=generator)
    visual = VisualTokens(slots, SITES) if stacks else VisualTokens(slots[:1])
    return ids, torch.ones_like(ids), mask, visual


@contextmanager
def dense_maps(model: Any, mask: torch.Tensor, visual: VisualTokens):
    """Plain hooks that add one dense map per stack in front of its layer, while the whole sequence goes through."""
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None) or decoder.h
    with ExitStack() as hooks:
        for site, stack in zip(visual.sites, visual.stacks, strict=True):
            dense = torch.zeros(*mask.shape, WIDTH)
            dense[mask] = stack

            def add(module, args, kwargs, dense=dense):
                return (args[0] + dense, *args[1:]), kwargs

            hooks.callback(layers[site].register_forward_pre_hook(add, with_kwargs=True).remove)
        yield


def embeds(model: Any, ids: torch.Tensor, mask: torch.Tensor, visual: VisualTokens) -> torch.Tensor:
    found = model.get_input_embeddings()(ids).detach().clone()
    found[mask] = visual.base
    return found


# --- in the sequence and in the layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("stacks", [False, True], ids=["fill", "fill and stacks"])
@torch.no_grad()
def test_slots_enter_where_inputs_embeds_and_hooks_would_put_them(lm, reference, stacks):
    ids, attention, mask, visual = inputs(stacks=stacks)
    with dense_maps(reference, mask, visual):
        expected = reference(inputs_embeds=embeds(reference, ids, mask, visual), attention_mask=attention).logits
    ours = lm(ids, attention, mask, visual)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (ours - lm(ids, attention, mask, None)).abs().max() > 0.05


@torch.no_grad()
def test_base_tokens_reach_the_first_layer_as_the_familys_own_vlms_send_them(lm, kind):
    """Gemma scales embedded words, never image features; Granite and GPT-2 change whatever is embedded."""
    ids, attention, mask, visual = inputs(stacks=False)
    seen = []
    handle = lm.layers[0].register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True)
    lm(ids, attention, mask, visual)
    handle.remove()
    expected = visual.base
    if kind == "granite":
        expected = expected * 3
    if kind == "gpt2":
        expected = expected + lm.decoder.wpe(mask.nonzero()[:, 1])
    torch.testing.assert_close(seen[0][mask], expected)


# --- generation -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_greedy_answers_with_a_cache_are_those_of_whole_passes(lm, reference):
    ids, attention, mask, visual = inputs()
    answers = lm.generate(ids, attention, mask, visual, max_new_tokens=10, pad_token_id=1, eos_token_id=None)
    grown, current, wide = embeds(reference, ids, mask, visual), attention, mask
    new = []
    for _ in range(10):
        with dense_maps(reference, wide, visual):
            out = reference(inputs_embeds=grown, attention_mask=current, use_cache=False).logits
        new.append(out[:, -1].argmax(-1, keepdim=True))
        grown = torch.cat([grown, reference.get_input_embeddings()(new[-1])], dim=1)
        current = torch.cat([current, torch.ones_like(new[-1])], dim=1)
        wide = torch.cat([wide, torch.zeros_like(new[-1], dtype=torch.bool)], dim=1)
    assert torch.equal(answers, torch.cat(new, dim=1))
    text = lm.generate(ids, attention, mask, None, max_new_tokens=10, pad_token_id=1, eos_token_id=None)
    assert not torch.equal(answers, text)


@torch.no_grad()
def test_left_padding_moves_neither_slots_nor_positions(lm, kind):
    """Learned positions (GPT-2) and rotary ones count real tokens; windows look back over real tokens."""
    ids, attention, mask, visual = inputs()
    pad = 5
    padded = torch.nn.functional.pad(ids, (pad, 0), value=1), torch.nn.functional.pad(attention, (pad, 0))
    shifted = torch.nn.functional.pad(mask, (pad, 0))
    options = {"max_new_tokens": 6, "pad_token_id": 1, "eos_token_id": None}
    logits = lm(*padded, shifted, visual)[:, pad:]
    torch.testing.assert_close(logits, lm(ids, attention, mask, visual), atol=1e-5, rtol=1e-5)
    assert torch.equal(
        lm.generate(*padded, shifted, visual, **options), lm.generate(ids, attention, mask, visual, **options)
    )


# --- training -------------------------------------------------------------------------------------------------------


def test_a_step_lowers_the_loss_and_reaches_every_parameter(lm):
    lm.train()
    ids, attention, mask, visual = inputs()
    slots = visual.slots.clone().requires_grad_()
    labels = ids.masked_fill(mask, IGNORE)
    losses = []
    for _ in range(2):
        lm.zero_grad()
        loss, count = next_token_loss(lm(ids, attention, mask, VisualTokens(slots, SITES)), labels)
        (loss / count).backward()
        losses.append(float(loss.detach() / count))
        without = [name for name, p in lm.named_parameters() if p.grad is None or not p.grad.any()]
        assert without == []
        assert all(slot.any() for slot in slots.grad)  # type: ignore[union-attr]
        with torch.no_grad():
            for parameter in lm.parameters():
                parameter -= 1e-3 * parameter.grad / parameter.grad.norm()
    assert losses[1] < losses[0]


TURNS = [
    Turn("human", "<image>\nWhat is it?"), Turn("gpt", "A cat."), Turn("human", "Which colour?"), Turn("gpt", "Grey."),
]  # fmt: skip


def turns_for(name: str) -> list[Turn]:
    return TURNS[:2] if name == "plain" else TURNS


@pytest.mark.parametrize("name", ["vicuna_v1", "plain", "tokenizer"])
def test_a_conversation_renders_and_its_answers_alone_are_learnt(kind, name):
    family, words = FAMILIES[kind], tokenizer(kind)
    if name == "tokenizer" and family.chat is None:
        with pytest.raises(ValueError, match="chat_template"):
            template(name).encode(TURNS, words)
        return
    encoded = template(name).encode(turns_for(name), words)
    end = {"vicuna_v1": "</s>", "plain": "\n", "tokenizer": family.end}[name]
    answers = "".join(words.decode([token]) for token in encoded.labels if token != IGNORE)
    space = " " if name == "vicuna_v1" or (kind == "mistral" and name == "tokenizer") else ""
    assert answers == "".join(f"{space}{turn.text}{end}" for turn in turns_for(name)[1::2])
    assert encoded.ids.count(IMAGE) == 1


def chats() -> Iterator[Any]:
    """Every family in every template that it has; by default in its own one, or in one that needs none."""
    usual = {"gpt2": "vicuna_v1", "gpt_neox": "plain"}
    for kind, family in FAMILIES.items():
        for name in ("vicuna_v1", "plain", *(["tokenizer"] if family.chat else [])):
            marks = [] if name == usual.get(kind, "tokenizer") else [pytest.mark.slow]
            yield pytest.param(kind, name, marks=marks, id=f"{kind}-{name}")


@pytest.mark.parametrize(("kind", "name"), [*chats()])
def test_a_conversation_is_learnt_and_answered(lm, kind, checkpoint, name):
    words = lm.load_tokenizer()
    encoded = template(name).encode(turns_for(name), words)
    at, slots = encoded.ids.index(IMAGE), 4
    ids = torch.tensor([encoded.ids[:at] + [0] * slots + encoded.ids[at + 1 :]])
    labels = torch.tensor([encoded.labels[:at] + [IGNORE] * slots + encoded.labels[at + 1 :]])
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, at : at + slots] = True
    visual = VisualTokens(torch.randn(3, slots, WIDTH, generator=torch.Generator().manual_seed(0)), (1, 2))
    lm.train()
    optimizer = torch.optim.Adam(lm.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        loss, count = next_token_loss(lm(ids, torch.ones_like(ids), mask, visual), labels)
        (loss / count).backward()
        optimizer.step()
    assert float(loss.detach() / count) < 0.05

    first = int((labels[0] != IGNORE).nonzero()[0])
    prompt = ids[:, :first], torch.ones_like(ids[:, :first]), mask[:, :first]
    reply = lm.generate(*prompt, visual, max_new_tokens=20, pad_token_id=1, eos_token_id=template(name).stop_ids(words))
    assert words.decode(reply[0], skip_special_tokens=True).strip() == TURNS[1].text
    assert Path(checkpoint(kind), "tokenizer.json").exists()


def test_another_models_tokenizer_is_refused(checkpoint, tmp_path):
    """Nearly everything would be unknown to it, and the loss would look very good."""
    few = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0, "a": 1}, unk_token="<s>")))
    few.save_pretrained(tmp_path)
    lm = HFCausalLM(checkpoint("llama"), tokenizer=str(tmp_path))
    with pytest.raises(ValueError, match=r"tokenizer: has 2 tokens, .* was trained on 272: it is another model's"):
        lm.load_tokenizer()
