"""Count what the notebook is made of: python tests/studies/count.py."""

import ast
import re
import statistics
import sys
from dataclasses import fields
from pathlib import Path

import nbformat

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import code_cells, definitions, read_notebook

FIRST_NETWORK = "plain-model"  # the cell


def counts(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """Return the numbers by which the size of the notebook is held; blank lines count."""
    code = code_cells(notebook)
    nodes = [node for cell in code for node in ast.walk(ast.parse(cell.source))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    lengths = [len(cell.source.splitlines()) for cell in code]
    prose = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return {
        "cells": len(notebook.cells),
        "code cells": len(code),
        "lines of code": sum(lengths),
        "definitions": len(functions) + len(classes),
        "functions and methods": len(functions),
        "lines before the first network": sum(lengths[: [c.id for c in code].index(FIRST_NETWORK)]),
        "words of prose a line of code": round(len(re.findall(r"\S+", prose)) / sum(lengths), 2),
        "configuration entries": len(fields(definitions().Config)),
        "median lines of a cell": statistics.median(lengths),
        "longest cell": max(lengths),
        "longest function": max(f.end_lineno - f.lineno + 1 for f in functions),
        "columns": max(len(line) for cell in code for line in cell.source.splitlines()),
    }


if __name__ == "__main__":
    for name, count in counts(read_notebook()).items():
        print(f"{name:32} {count}")
