"""``dslight conformance``: who is asked, the table, and the page that it is written into."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dslight.conformance.cases import CASES
from dslight.conformance.kit import families
from dslight.conformance.runner import Outcome, Report, run
from dslight.errors import UserError
from dslight.files.atomic import write_atomically

VARIANTS = {"cosmos3_omni": ("qwen3_vl", "Cosmos3OmniForConditionalGeneration")}
"""Classes of transformers that take another family's numbers as they are."""


def conformance(of: str, only: Sequence[str], out: Path | None, model: str | None = None) -> int:
    """Ask an implementation, print the table, and write it where it is wanted.

    Returns:
        The exit code: 1 where a case failed.

    Raises:
        UserError: for what cannot be asked, or a name of no case or family.
    """
    try:
        report = asked(of, only, model)
    except ValueError as error:
        if isinstance(error, UserError) or not str(error).startswith("only:"):
            raise
        raise UserError(f"--{error}") from error
    text = report.to_text()
    print(text)
    if out is not None:
        into(out, of, text)
    return 1 if report.failed else 0


def asked(of: str, only: Sequence[str], model: str | None = None) -> Report:
    """The report of ``dslight``, ``transformers``, a server's address, or ``module:callable``."""
    if of != "transformers":
        return run(_adapter(of, model), only, watch=_said)
    from dslight.conformance.own_transformers import Transformers

    cases, places = ([name for name in only if (name in CASES) == known] for known in (True, False))
    families_too = [name for name in places if name not in VARIANTS]
    found = run(Transformers(), [*cases, *families_too], watch=_said) if families_too or not places else None
    reports = [] if found is None else [found]
    for name, (family, kind) in VARIANTS.items():
        if not places or name in places:
            among = [one for one in families() if one.name == family]
            theirs = run(Transformers(kind), cases, among)
            renamed = [replace(one, family=name) for one in theirs.outcomes]
            for one in renamed:
                _said(one)
            reports.append(replace(theirs, outcomes=renamed))
    return Report(reports[0].name, [one for report in reports for one in report.outcomes])


def _adapter(of: str, model: str | None) -> Any:
    if of == "dslight":
        from dslight.conformance.own import Dslight

        return Dslight()
    if "://" in of:
        from dslight.conformance.server import Server

        return Server(of, model)
    module, _, name = of.partition(":")
    if not name:
        raise UserError(f"--of: {of!r}; dslight, transformers, http://HOST:PORT/v1, or module:callable is needed")
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` does
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"--of: {of!r}: {error}") from error
    return found() if isinstance(found, type) else found


def _said(outcome: Outcome) -> None:
    """A line while it runs: to where errors go, so that the table can be piped."""
    print(f"{outcome.family:<20}{outcome.case:<24}{outcome.cell.strip('*')}", file=sys.stderr, flush=True)


def into(page: Path, of: str, text: str) -> None:
    """Write the table into a page: between its marks of this name where it has some, else instead of it."""
    stamped = f"{stamp()}\n\n{text}"
    begin, end = f"<!-- conformance of {of} -->", "<!-- end -->"
    old = page.read_text(encoding="utf-8") if page.is_file() else ""
    if begin in old and end in old.partition(begin)[2]:
        head, _, rest = old.partition(begin)
        stamped = f"{head}{begin}\n\n{stamped}\n{end}{rest.partition(end)[2]}"
    write_atomically(page, stamped)


def stamp() -> str:
    """When, and with what."""
    found = []
    for library in ("dslight", "transformers", "torch", "mlx-vlm", "mlx", "vllm", "onnxruntime"):
        try:
            found.append(f"{library} {version(library)}")
        except PackageNotFoundError:
            continue
    return f"{date.today().isoformat()}, Python {platform.python_version()}, {', '.join(found)}."
