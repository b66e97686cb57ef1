"""The page of benchmarks says what the tables say."""

from pathlib import Path

from data_prep.eval.overview import SOURCES, page
from data_prep.eval.sets import SETS

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"


def test_the_page_is_the_one_that_is_made():
    assert PAGE.read_text() == page(), "python -m data_prep.eval.overview > docs/benchmarks.md"


def test_every_set_says_where_it_is_from():
    assert set(SOURCES) == set(SETS)
