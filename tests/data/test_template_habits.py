"""What chat templates of the field do is found out before training: what cannot be learnt exactly is refused there."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dslight.data.conversation import IMAGE, TokenizerTemplate, template
from dslight.data.sample import BadSample, Turn
from dslight.data.templates.habits import check_habits, habits
from dslight.types import IGNORE

MARKS = ["<|im_start|>", "<|im_end|>", "<|end|>", "<|user|>", "<|assistant|>", "<|endoftext|>", "</s>"]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_THOUGHTS = "<think>\n\n</think>\n\n"
THINKS = (  # as Qwen3: an empty block before the last answer, and in the prompt if it must not think
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}" + NO_THOUGHTS + "{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    + ASKS + "{% if add_generation_prompt and enable_thinking is false %}" + NO_THOUGHTS + "{% endif %}"
)  # fmt: skip
ENDS_ALL = (  # as Phi-4-mini: an end-of-text behind every text
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)
CUTS = (  # as DeepSeek's distilled ones: the prompt opens a thought that no answer keeps
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}"
    "{% else %}<|assistant|>{{ m.content.split('</think>')[-1] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}" + ASKS
)
DATED = "<|im_start|>system\nToday is {{ strftime_now('%d %b %Y') }}.<|im_end|>\n" + CHATML + ASKS
CLOCK = "{{ strftime_now('%H' ~ ':%M:%S.%f') }}" + CHATML + ASKS
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML + ASKS
ONE_TURN = "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}" + CHATML + ASKS
REWRITES = (
    "{% for m in messages %}<|im_start|>{{ m.content if loop.last or m.role == 'user' else '...' }}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def asked(chat_template: str | None) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes with this template."""
    backend = Tokenizer(models.BPE({byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(MARKS)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", chat_template=chat_template, extra_special_tokens=MARKS
    )


def talk(*texts: str) -> list[Turn]:
    return [Turn("gpt" if i % 2 else "human", text) for i, text in enumerate(texts)]


def shown(template: TokenizerTemplate, turns: list[Turn], tokenizer: PreTrainedTokenizerFast) -> str:
    """A conversation with what is learnt in braces."""
    encoded, text, learnt = template.encode(turns, tokenizer), "", False
    ids, labels = list(encoded.ids), [label != IGNORE for label in encoded.labels]
    for i, (token, now) in enumerate(zip(ids, labels, strict=True)):
        text += "{" * (now and not learnt) + "}" * (learnt and not now)
        text += "[image]" if token == IMAGE else tokenizer.decode([ids[i]])
        learnt = now
    return text + "}" * learnt


REFUSED = {
    "thinks": (THINKS, r"puts '<think>\\n\\n</think>\\n\\n' before an answer.*set data\.thinking: false"),
    "cuts thoughts": (CUTS, r"prompt ends in '<think>\\n', behind which it writes no answer"),
    "no end": (NO_END, "writes nothing behind an answer"),
    "no text": (PARTS.replace("{{ c.text }}", ""), "leaves out the text of a message"),
    "rewrites": (REWRITES, "changes an answer once another turn follows"),
    "none": (None, "the tokenizer has no chat template"),
    "the clock": (CLOCK, "writes the day in a form that is not written out in it"),
    "one turn": (ONE_TURN, r"fails at a question and its answer \(TemplateError: one turn\)"),
    "no program": ("{% for %}", "fails at a question and its answer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_with_which_no_answer_can_be_learnt_is_refused_in_one_sentence(name):
    chat_template, message = REFUSED[name]
    with pytest.raises(BadSample, match=message) as refused:
        check_habits(asked(chat_template))
    said = str(refused.value)
    assert said.startswith("data.template: ")
    assert "choose another template" in said
    assert "\n" not in said
    assert len(said) < 400


def test_what_ends_no_answer_has_no_stop():
    for chat_template in (CUTS, NO_END, None):
        with pytest.raises(BadSample, match=r"data\.template: "):
            template("tokenizer").stop_ids(asked(chat_template))
    assert template("tokenizer").stop(asked(THINKS)) == "<|im_end|>"
    assert template("tokenizer").stop(asked(ENDS_ALL)) == "<|end|>"


TWO = talk("<image>\nq", "A", "r", "B")


def test_thoughts_that_are_none_are_part_of_the_prompt_where_the_model_does_not_think():
    tokenizer, quiet = asked(THINKS), TokenizerTemplate(thinking=False)
    assert shown(quiet, talk("q", "A"), tokenizer).endswith(f"assistant\n{NO_THOUGHTS}{{A<|im_end|>}}\n")
    assert tokenizer.decode(quiet.prompt("q", 0, tokenizer)).endswith(f"assistant\n{NO_THOUGHTS}")
    thoughtful = TokenizerTemplate(thinking=True)
    assert shown(thoughtful, talk("q", "A"), tokenizer).endswith(f"assistant\n{{{NO_THOUGHTS}A<|im_end|>}}\n")


def test_of_answers_that_are_rewritten_the_last_is_learnt_and_it_is_said():
    tokenizer, quiet = asked(THINKS), TokenizerTemplate(thinking=False)
    assert shown(quiet, TWO, tokenizer) == (
        "<|im_start|>user\n[image]\nq<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
        f"<|im_start|>assistant\n{NO_THOUGHTS}{{B<|im_end|>}}\n"
    )
    assert "only the last answer of a conversation is learnt" in check_habits(tokenizer, False).notes[0]
    with pytest.raises(BadSample, match="<image> in an answer"):
        quiet.encode(talk("<image>\nq", "an <image> tag", "r", "B"), tokenizer)


def test_a_template_of_parts_is_given_parts():
    """As those of multimodal models, which may leave out a text that is no part of a list."""
    assert shown(TokenizerTemplate(), TWO, asked(PARTS)) == shown(TokenizerTemplate(), TWO, asked(CHATML + ASKS))


def test_marks_stand_around_every_image_in_place_of_a_line_break():
    tokenizer = asked(CHATML + ASKS)
    marked = template("tokenizer", image_marks=("(", ")"))
    assert tokenizer.decode([i for i in marked.prompt("q", 2, tokenizer) if i != IMAGE]) == (
        "<|im_start|>user\n()()q<|im_end|>\n<|im_start|>assistant\n"
    )
    assert shown(marked, TWO, tokenizer).startswith("<|im_start|>user\n([image])q<|im_end|>")  # type: ignore[arg-type]
    assert marked.stop_ids(tokenizer) == template("tokenizer").stop_ids(tokenizer)


def test_what_ends_every_text_is_no_part_of_an_answer():
    assert shown(TokenizerTemplate(), TWO, asked(ENDS_ALL)) == (
        "<|user|>[image]\nq<|end|><|assistant|>{A<|end|>}<|user|>r<|end|><|assistant|>{B<|end|>}<|endoftext|>"
    )


def test_the_day_is_always_the_same(monkeypatch):
    tokenizer = asked(DATED)
    text = shown(TokenizerTemplate(), talk("q", "A"), tokenizer)
    assert text.startswith("<|im_start|>system\nToday is 26 Jul 2024.<|im_end|>")
    assert habits(tokenizer).dated
    assert not habits(asked(CHATML + ASKS)).dated
    assert any("26 Jul 2024" in note for note in habits(tokenizer).notes)


def test_a_system_text_goes_before_the_question_where_a_template_has_no_place_for_it():
    turns = [Turn("system", "S"), *talk("q", "A")]
    assert shown(TokenizerTemplate(), turns, asked(NO_SYSTEM)).startswith("<|im_start|>user\nS\n\nq<|im_end|>")
    assert shown(TokenizerTemplate(), turns, asked(CHATML + ASKS)).startswith("<|im_start|>system\nS<|im_end|>")
    assert "no place for a system text" in habits(asked(NO_SYSTEM)).notes[0]


def test_an_empty_answer_teaches_nothing():
    text = shown(TokenizerTemplate(), talk("q", "", "r", "B"), asked(CHATML + ASKS))
    assert "assistant\n<|im_end|>" in text
    assert text.count("{") == 1
    assert text.endswith("{B<|im_end|>}\n")


def test_a_plain_template_has_no_notes():
    found = check_habits(asked(CHATML + ASKS))
    assert (found.end, found.tail, found.rewrites, found.notes) == ("<|im_end|>", "", False, [])
