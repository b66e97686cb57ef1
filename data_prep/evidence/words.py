"""The words of the drawn pages. A word belongs to one split: none that is asked for in a score was trained on."""

from __future__ import annotations

from typing import Final, Literal

Split = Literal["train", "val", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")

FIELDS: Final = ("code", "room", "seat", "gate", "unit", "page")
"""Names of a form's fields, in every split: questions name them, answers never do."""

_WORDS: Final = """
acid aqua arch army atom aunt back bake ball band bank barn bath bead beam bean bear beef bell belt bike bird boat
body bolt bone book boot bowl brow bulb bush cafe cake calf camp cane card cart cave chef chin city clay clip club
coal coat coin cola cord cork corn cost crab crew crop cube deck deer desk dice disk dock door dove drum duck dust
edge exam face farm fern film fish flag fork fort frog fuel game gift goat gold golf grid hail hall hand harp hawk
heel herb hill hook horn hose inch iris iron jade jazz jeep jury kale kelp king kite kiwi knee knot lace lake lamb
lamp lava lawn leaf lens lily lime lion loaf lock loom lung malt mask maze meat menu milk mill mint moon moss moth
nail navy neck nest node note oath oven palm park path peak pear pier pine pipe plum pond pony pool quiz raft rail
rain reef rice ring road robe rock roof root rope rose sail salt sand ship shoe silk sink snow soap sock sofa
soup star stem surf swan tank taxi tent tide tile tofu tool town tree tube tuna vase veil vine wall wasp wave wine
wing wolf wood wool yard yarn yoga zinc zone
"""


def words(split: Split) -> tuple[str, ...]:
    """The words of a split, four letters each: of ten, eight are for training, one for val and one for test."""
    every = [word for word in _WORDS.split() if len(word) == 4]
    parts = {"train": range(8), "val": (8,), "test": (9,)}
    return tuple(word for number, word in enumerate(every) if number % 10 in parts[split])
