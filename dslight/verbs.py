"""Command lines of verbs: all of them where none is given, and what a misspelt verb or option may be meant for."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence

from dslight.texts import closest


def parse_verb(
    parser: argparse.ArgumentParser, verbs: Mapping[str, argparse.ArgumentParser], given: Sequence[str]
) -> argparse.Namespace:
    """The arguments of a verb. ``key=value`` may stand behind options, where a verb takes ``overrides``.

    Args:
        parser: with a subparser for each verb, as ``verb``.
        verbs: name -> that subparser.
        given: the command line.

    Raises:
        SystemExit: code 2, with all verbs where none is given, else with what is wrong.
    """
    if not given:
        parser.print_help(sys.stderr)
        raise SystemExit(2)
    if not given[0].startswith("-") and given[0] not in verbs:
        hint = closest(given[0], list(verbs))
        parser.error(f"VERB: there is no {given[0]!r}{hint}; {parser.prog} --help lists them")
    args, rest = parser.parse_known_args(given)
    if wrong := [text for text in rest if text.startswith("-") or "overrides" not in args]:
        options = re.findall(r"--[\w-]+", verbs[args.verb].format_help())
        hint = "".join(closest(text.partition("=")[0], options) for text in wrong[:1] if text.startswith("--"))
        parser.error(f"unrecognized arguments: {' '.join(wrong)}{hint}")
    if rest:  # argparse takes no key=value that stands behind an option
        args.overrides = [*args.overrides, *rest]
    return args
