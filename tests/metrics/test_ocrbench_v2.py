"""OCRBench v2 against the scores that its own program gave to generated answers."""

import pytest

from dslight.data.datamodule import ValSource
from dslight.metrics import OCRBenchV2Score
from dslight.metrics.benchmarks import row_of
from dslight.metrics.functional import texts
from dslight.metrics.functional.ocrbench_v2 import GROUPS, ocrbench_v2_score
from dslight.metrics.functional.spotting import spotting_f1
from dslight.metrics.functional.trees import Tree, tree_distance
from dslight.types import Question

SYNONYMS = {"stop": ["halt", "end"], "halt": ["stop"], "big": ["large"], "large": ["big"], "end": ["stop"]}
"""What stood in WordNet's place when the program was run."""


class _Meaning:
    def __init__(self, names):
        self.names = names

    def lemmas(self):
        return [_Meaning(name) for name in self.names]

    def name(self):
        return self.names


@pytest.mark.golden_metrics
@pytest.mark.parametrize("kind", [kind for kinds in GROUPS.values() for kind in kinds])
def test_every_kind_of_question_scores_as_by_its_own_program(kind, golden, monkeypatch):
    cases = [case for case in golden("ocrbench_v2") if case["extra"]["type"] == kind]
    assert len(cases) >= 3
    if kind.startswith(("table", "chart")):
        pytest.importorskip("lxml", reason="needs dslight[ocrbench]")
    if any(word in kind for word in ("OCR", "translation", "handwritten", "fine-grained")):
        pytest.importorskip("jieba", reason="needs dslight[ocrbench]")
        corpus = pytest.importorskip("nltk.corpus", reason="needs dslight[ocrbench]")
        known = lambda word, *_, **__: [_Meaning(SYNONYMS[word])] if word in SYNONYMS else []  # noqa: E731
        monkeypatch.setitem(vars(corpus.wordnet), "synsets", known)
    for case in cases:
        facts = case["extra"]
        found = ocrbench_v2_score(case["prediction"], case["answers"], kind, facts, facts["question"])
        assert (found or 0.0) == pytest.approx(case["score"], abs=1e-9), case["id"]


@pytest.mark.parametrize(("said", "score"), [("aaaa bbbx xxxx yyyy zzzz", 0.0), ("aaaa bbbb cccc yyyy zzzz", 16 / 24)])
def test_a_long_answer_that_is_less_than_half_right_has_no_score(said, score):
    assert ocrbench_v2_score(said, ["aaaa bbbb cccc dddd eeee"], "document classification en") == pytest.approx(score)


def test_a_box_has_to_overlap_by_more_than_half():
    right = [[0, 0, 10, 0, 10, 10, 0, 10]]
    overlapping = {n: spotting_f1([(0, 0, n, 10, "stop")], right, ["STOP"]) for n in (5, 5.5, 6)}
    assert overlapping == {5: 0.0, 5.5: 1.0, 6: 1.0}
    unread = [*right, [20, 0, 30, 0, 30, 10, 20, 10]]
    beside = {
        n: spotting_f1([(0, 0, 10, 10, "stop"), (n, 0, n + 10, 10, "x")], unread, ["STOP", "###"]) for n in (14.5, 15.5)
    }
    assert beside == {14.5: pytest.approx(2 / 3), 15.5: 1.0}


def test_a_language_is_the_mean_of_its_skills_not_of_its_questions():
    metric = OCRBenchV2Score()
    kinds = ["text recognition en"] * 3 + ["math QA en", "text counting en"]
    asked = [Question(str(i), "?", ("8",), kind, extra={"eval": "regression"}) for i, kind in enumerate(kinds)]
    metric.update_questions(["8", "8", "9", "8", "none"], asked)
    found = {key: float(value) for key, value in metric.compute().items() if value == value}
    assert found["en_overall"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["skill/en_mathematical_calculation"] == found["score/text_counting_en"] + 0.5 == 0.5
    assert "cn_overall" not in found
    assert found["unresolved"] == pytest.approx(0.2)


@pytest.mark.parametrize("missing", texts.NEEDED)
def test_what_has_to_be_installed_is_said_before_a_run(missing, monkeypatch):
    texts.missing.cache_clear()
    monkeypatch.setattr(texts, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ValueError, match=rf"benchmark: ocrbench_v2 needs {missing}; pip install 'dslight\[ocrbench\]'"):
        row_of("ocrbench_v2", ValSource(root="."))
    texts.missing.cache_clear()


def test_the_distance_of_trees_counts_what_is_added_removed_and_renamed():
    def differ(one, two):
        return float(one != two)

    def tree(text):  # "a(b,c)" by hand: a list of a label and trees
        label, *below = text
        return Tree(label, [tree(one) for one in below])

    # Zhang and Shasha's own example: f(d(a c(b)) e) and f(c(d(a b)) e) are 2 apart
    one = tree(["f", ["d", ["a"], ["c", ["b"]]], ["e"]])
    two = tree(["f", ["c", ["d", ["a"], ["b"]]], ["e"]])
    assert tree_distance(one, two, differ) == tree_distance(two, one, differ) == 2.0
    assert tree_distance(one, one, differ) == 0.0
    assert tree_distance(tree(["a", ["b"], ["b"], ["b"]]), tree(["x"]), differ) == 4.0
