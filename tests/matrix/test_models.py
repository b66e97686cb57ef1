"""The matrix of decoders: a sample, and all of them; how it is run and written down."""

import json
import logging
import os
import time

import pytest

from dslight.matrix import run
from dslight.matrix.decoders import kinds, tried
from dslight.matrix.page import page
from dslight.matrix.run import folder, verdicts
from dslight.matrix.verdict import CRASHED, REFUSED, WORKS, WRONG, Verdict

WORKING = ["llama", "bert", "bart", "bloom", "roberta", "gemma4_text", "qwen3_5_text", "llama4_text"]
REFUSALS = {
    "blt", "cpmant", "deepseek_v4", "dory", "gemma3n", "gemma3n_text", "gemma4_assistant", "gemma4_unified_assistant",
    "hrm_text", "hy_v4", "inkling2_loop_text", "musicgen", "musicgen_melody", "prophetnet", "qwen4_exp",
    "qwen4_exp_text", "reformer", "xlm", "xlnet",
}  # fmt: skip


@pytest.mark.parametrize("kind", [*WORKING, "xlnet", "musicgen"])
def test_a_sample_works_or_is_refused(kind):
    verdict = tried(kind)
    assert (verdict.verdict, verdict.trace) == (WORKS if kind in WORKING else REFUSED, "")
    assert verdict.checked == ("abcdef" if kind in WORKING else "")
    assert logging.root.manager.disable == 0  # what comes after is heard again


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds())
def test_every_type_works_or_is_refused(kind):
    verdict = tried(kind)
    assert verdict.verdict == (REFUSED if kind in REFUSALS else WORKS), verdict.said + verdict.trace


def test_verdicts_are_kept_by_version_and_not_tried_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "_apart", lambda kind: asked.append(kind) or Verdict(kind, said="now"))
    assert [v.said for v in verdicts(tmp_path, ["a", "b"])] == ["now", "now"]
    assert [v.kind for v in verdicts(tmp_path, ["b", "c"])] == ["b", "c"]
    assert asked == ["a", "b", "c"]
    assert json.loads((folder(tmp_path) / "a.json").read_text())["kind"] == "a"
    list(verdicts(tmp_path, ["a"], again=True))
    assert asked[-1] == "a"


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda kind: time.sleep(60), "took longer than 1 s"),
        (lambda kind: sum(iter(int, 1)), "took longer than 1 s"),
        (lambda kind: os._exit(1), "the process ended with 1"),
    ],
    ids=["sleeps", "computes", "dies"],
)
def test_a_kind_that_hangs_or_dies_is_said_to(act, said, monkeypatch):
    monkeypatch.setattr(run, "LIMIT", 1)
    monkeypatch.setattr(run, "tried", act)
    verdict = run._apart("llama")
    assert (verdict.verdict, verdict.said) == (CRASHED, said)


def test_the_page_has_a_line_for_every_type_and_counts_them():
    refusal = "pretrained: b (B, transformers 5) cannot take visual tokens: it is\nodd"
    found = [Verdict("a", WORKS, notes=["data.order.pack: a: no; or do not pack"], checked="abcdef", seconds=1.23)]
    found += [Verdict("b", REFUSED, refusal), Verdict("c", WRONG, "(c) off|by 1", checked="ab")]
    text = page(found, "transformers 5.24.0")
    assert "With transformers 5.24.0: 3 types, 1 works, 1 refused, 1 wrong." in text
    assert "| `a` | works | abcdef | 1.2 | not packed: no |" in text
    assert "| `b` | refused |  | 0.0 | it is odd |" in text
    assert r"| `c` | wrong | ab | 0.0 | (c) off\|by 1 |" in text
