"""The page of benchmarks says what the tables say."""

from datetime import date
from pathlib import Path

from data_prep.eval.overview import page
from data_prep.eval.sets import SETS
from data_prep.eval.sources import EQUAL, SOURCES

ROOT = Path(__file__).parents[3]


def test_the_page_is_the_one_that_is_made():
    assert (ROOT / "docs/benchmarks.md").read_text() == page(), "python -m data_prep.eval.overview > docs/benchmarks.md"


def test_every_set_says_where_it_is_from():
    assert set(SOURCES) == set(SETS)


def test_what_was_compared_has_a_day_and_where_it_is_kept_a_file_with_its_commit():
    assert {source.equal for source in SOURCES.values()} - {""} == set(EQUAL)
    said = (ROOT / "tests/golden/metrics/README.md").read_text()
    for name, one in EQUAL.items():
        assert date.fromisoformat(one.date) >= date(2026, 12, 1), name
        assert not one.golden or (ROOT / f"tests/golden/metrics/{one.golden}.jsonl").exists(), name
        commits = [word for word in one.to.replace(",", "").split() if len(word) == 7 and word.isalnum()]
        assert all(commit in said for commit in commits if any(char.isdigit() for char in commit)), name
