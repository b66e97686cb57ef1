"""Runs docs/first.ipynb from its first cell to its last, and writes its page of the site: ``make notebook``.

The notebook is changed in any editor of notebooks; what its cells print and draw is replaced by what they do now.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "first.ipynb"
NOTE = "This page is a notebook, [first.ipynb](first.ipynb), and what it printed where `make notebook` ran it.\n\n"


def main() -> None:
    """Run, and write both."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python", "pygments_lexer": "python"}}
    nbformat.write(notebook, NOTEBOOK)
    name, pictures = NOTEBOOK.stem, NOTEBOOK.parent / f"{NOTEBOOK.stem}_files"
    text, more = MarkdownExporter().from_notebook_node(
        notebook, {"unique_key": name, "output_files_dir": pictures.name}
    )
    title, rest = re.sub(r"\n\s*\n(\s*\n)+", "\n\n", text).strip().split("\n", 1)
    NOTEBOOK.with_suffix(".md").write_text(f"{title}\n\n{NOTE}{rest.strip()}\n")
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir()
    for file, data in more["outputs"].items():
        (NOTEBOOK.parent / file).write_bytes(data)


if __name__ == "__main__":
    main()
