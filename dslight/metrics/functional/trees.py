"""Edit distance of ordered trees (Zhang and Shasha 1989), and what OCRBench v2 measures by it.

Tables are compared as PubTabNet does (TEDS, Zhong et al. 2020): one minus the distance of the two trees of HTML over
the number of elements of the larger one; texts of cells differ by their normalised Levenshtein distance. Pages are
compared as trees of headings with lines below them, of which only counts whether they are blank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rapidfuzz.distance import Levenshtein


@dataclass
class Tree:
    """An ordered tree.

    Attributes:
        label: anything that ``rename`` of :func:`tree_distance` can compare.
        children: in their order.
    """

    label: Any
    children: list[Tree] = field(default_factory=list)

    def walk(self) -> Iterator[Tree]:
        """Itself and all below it, a node before its children."""
        yield self
        for child in self.children:
            yield from child.walk()


class _Postorder:
    """Labels of a tree in postorder; per node the first leaf below it; the nodes that have a left sibling, and the
    root."""

    def __init__(self, tree: Tree) -> None:
        self.labels: list[Any] = []
        self.first: list[int] = []
        self._add(tree)
        last = {leaf: node for node, leaf in enumerate(self.first)}
        self.roots = sorted(last.values())

    def _add(self, tree: Tree) -> int:
        leaves = [self._add(child) for child in tree.children]
        self.labels.append(tree.label)
        self.first.append(leaves[0] if leaves else len(self.labels) - 1)
        return self.first[-1]


def tree_distance(first: Tree, second: Tree, rename: Callable[[Any, Any], float]) -> float:
    """The least cost of making one tree of the other; to add or to remove a node costs 1.

    Args:
        first: a tree.
        second: another.
        rename: the cost of one label in place of another.

    Example:
        >>> from dslight.metrics.functional.trees import Tree, tree_distance
        >>> row = Tree("row", [Tree("cell"), Tree("cell")])
        >>> tree_distance(row, Tree("row", [Tree("cell")]), lambda a, b: float(a != b))
        1.0
    """
    one, two = _Postorder(first), _Postorder(second)
    whole = [[0.0] * len(two.labels) for _ in one.labels]
    for i in one.roots:
        for j in two.roots:
            _forests(one, two, i, j, whole, rename)
    return float(whole[-1][-1])


def _forests(
    one: _Postorder, two: _Postorder, i: int, j: int, whole: list[list[float]], rename: Callable[[Any, Any], float]
) -> None:
    """Fill in ``whole`` for the pairs of subtrees on the left paths of the subtrees ``i`` and ``j``."""
    left, top = one.first[i], two.first[j]
    width = j - top + 1
    above: list[float] = [float(n) for n in range(width + 1)]
    table = [above]
    for n in range(left, i + 1):
        line = [above[0] + 1]
        straight, label, start, known = one.first[n] == left, one.labels[n], one.first[n] - left, whole[n]
        for m in range(top, j + 1):
            y = m - top
            best = min(above[y + 1], line[y]) + 1
            if straight and two.first[m] == top:
                best = min(best, above[y] + rename(label, two.labels[m]))
                known[m] = best
            else:
                best = min(best, table[start][two.first[m] - top] + known[m])
            line.append(best)
        table.append(line)
        above = line


def table_similarity(prediction: str, reference: str) -> float:
    """TEDS of two tables in HTML pages, ``html/body/table``; 0 where one has no table.

    Raises:
        ValueError: the HTML cannot be read, or neither table has an element.
    """
    from lxml import html
    from lxml.etree import LxmlError

    if not prediction or not reference:
        return 0.0
    parser = html.HTMLParser(remove_comments=True, encoding="utf-8")
    try:
        pages = [html.fromstring(text, parser=parser) for text in (prediction, reference)]
    except LxmlError as error:
        raise ValueError(str(error)) from error
    tables: list[Any] = [next(iter(page.xpath("body/table")), None) for page in pages]
    if tables[0] is None or tables[1] is None:
        return 0.0
    elements = max(len(table.xpath(".//*")) for table in tables)
    if not elements:
        raise ValueError("two empty tables")
    said, right = (_element(table) for table in tables)
    return 1.0 - tree_distance(said, right, _cells_differ) / elements


_Label = tuple[Any, int | None, int | None, tuple[str, ...]]
"""Of an element: its tag; of a cell also its columns, its rows, and what stands in it, letter by letter."""


def _element(node: Any) -> Tree:
    if node.tag != "td":
        return Tree((node.tag, None, None, ()), [_element(child) for child in node])
    spans = (int(node.attrib.get(name, "1")) for name in ("colspan", "rowspan"))
    return Tree((node.tag, *spans, tuple(_letters(node))))


def _letters(node: Any) -> Iterator[str]:
    yield from node.text or ""
    for child in node:
        yield f"<{child.tag}>"
        yield from _letters(child)
        if child.tag != "unk":
            yield f"</{child.tag}>"
        if child.tag != "td":
            yield from child.tail or ""


def _cells_differ(said: _Label, right: _Label) -> float:
    if said[:3] != right[:3]:
        return 1.0
    longest = max(len(said[3]), len(right[3]))
    return Levenshtein.distance(said[3], right[3]) / longest if longest else 0.0


_CLEANING = [
    (re.compile(pattern), instead)
    for pattern, instead in (
        (r"<(?:bos|eos|pad|unk)>", ""),
        (r"\s##(?=\S)", ""),
        (r"\\\s", r"\\"),
        (r"\s\*\s\*\s", "**"),
        (r"\{\s", "{"),
        (r"\s\}", "}"),
        (r"\s\}", "}"),
        (r"\\(begin|end)\s", r"\\\1"),
        (r"(\\end\{table\})", r"\1   "),
        (r"[*_\n]", " "),
    )
]


def page_similarity(prediction: str, reference: str) -> float:
    """One minus the distance of the outlines of two pages, over the number of nodes of the larger one.

    A line that begins with "#" is a heading, those after it stand below it. Any two lines that are not blank are alike,
    and a blank one is like none.

    Example:
        >>> from dslight.metrics.functional.trees import page_similarity
        >>> page_similarity("# One\\nfirst", "# One\\nfirst\\nsecond")
        0.8
    """
    said, right = _outline(prediction), _outline(reference)
    nodes = max(sum(1 for _ in tree.walk()) for tree in (said, right))
    return 1.0 - tree_distance(said, right, lambda one, two: float(not (one and two))) / nodes


def _outline(text: str) -> Tree:
    """A page as a tree, whose labels say whether there is something."""
    root = Tree("ROOT", [Tree("TITLE")])
    below = root.children[0]
    for line in text.split("\n"):
        for pattern, instead in _CLEANING:
            line = pattern.sub(instead, line)
        if not line.startswith("#"):
            below.children.append(Tree(line))
            continue
        heading = line.replace("#", "")
        root.children.append(Tree(heading))
        # the first of that name, wherever it is; what has none is the page's
        below = next(node for node in root.walk() if node.label == heading) if heading else root.children[0]
    for node in root.walk():
        node.label = bool(node.label.strip())
    return root
