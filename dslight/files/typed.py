"""JSON files of a known form: what is wrong with one is said in a sentence that names the file and the key.

The form is a type: a dataclass, whose other keys in the file are let be, or ``dict[str, int]`` and alike. Pydantic
checks it, strictly: a text is no number, and a yes is no 1.
"""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Lt

from dslight.errors import UserError
from dslight.limits import at_most

Form = TypeVar("Form")

Count = Annotated[int, Ge(0), Lt(2**63)]
"""What is counted, in a form: records, bytes."""


class FileError(UserError):
    """A file that holds something else than it should; the message begins with its name."""


def read_json(path: Path, form: type[Form]) -> Form:
    """What is in a file.

    Raises:
        FileError: it cannot be read, is larger than the limit, is not JSON, or has not this form.
        FileNotFoundError: there is none.
        NotADirectoryError: nor could there be.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileError(f"{path}: is no file")  # a pipe would be waited for
        at_most("file_bytes", found.st_size, f"{path}: has {found.st_size:,} bytes", FileError)
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror})") from error
    return parse_json(data, form, path)


def loaded(data: bytes | str, where: object) -> Any:
    """Whatever JSON is in the text of somebody else's file.

    Raises:
        FileError: it is not JSON.
    """
    try:
        return json.loads(data)
    except RecursionError:
        raise FileError(f"{where}: not JSON that can be read (nested too deeply)") from None
    except ValueError as error:
        raise FileError(f"{where}: not JSON ({error})") from error


@contextmanager
def understood(where: object) -> Iterator[None]:
    """Name a file, whose content the block takes apart, where it is built otherwise than the block expects.

    Raises:
        FileError: for what Python raises then.
    """
    try:
        yield
    except UserError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RecursionError, csv.Error) as error:
        what = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        kind = "nothing is called" if isinstance(error, KeyError) else type(error).__name__ + ":"
        raise FileError(f"{where}: not built as it should be ({kind} {what})") from error


def read_json_if_there(path: Path, form: type[Form]) -> Form | None:
    """As :func:`read_json`; ``None`` where there is no such file."""
    try:
        return read_json(path, form)
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_json(data: bytes | str, form: type[Form], where: object) -> Form:
    """What is in the text of a file that messages call ``where``.

    Raises:
        FileError: it is not JSON, or has not this form.
    """
    from pydantic import ValidationError

    try:
        return _adapter(form).validate_json(data, strict=True)
    except ValidationError as error:
        raise FileError(f"{where}: {_said(error)}") from None


@lru_cache
def _adapter(form: Any) -> Any:
    from pydantic import TypeAdapter  # as it takes a moment, and not every program reads JSON

    return TypeAdapter(form)


_TEXT_OR_NUMBER = [("str",), ("int",), ("float",)]


def _said(error: Any) -> str:
    """The first of its findings: key, what it should be, what is there."""
    found, *others = error.errors(include_url=False, include_context=False)
    key, what = ".".join(map(str, found["loc"])), found["msg"].replace("Input should", "must")
    same = [one for one in others if one["loc"][:-1] == found["loc"][:-1] and one["loc"][-1:] in _TEXT_OR_NUMBER]
    if same and found["loc"][-1:] in _TEXT_OR_NUMBER:  # each kind of a union has its own error
        key, what = ".".join(map(str, found["loc"][:-1])), "must be a text or a number"
    if found["type"] == "json_invalid":
        return f"not JSON ({what.removeprefix('Invalid JSON: ')})"
    if found["type"] == "missing":
        return f"{key}: missing"
    value = repr(found["input"])
    return f"{key or 'the whole'}: {what}, not {value if len(value) <= 60 else value[:60] + '…'}"
