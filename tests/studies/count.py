"""Count what the notebook is made of: python tests/count_notebook.py"""

import ast
import re
import statistics
from dataclasses import fields

import nbformat
sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import code_cells, definitions, read_notebook

FIRST_NETWORK = "plain-model"  # the cell


def functions(notebook: nbformat.NotebookNode) -> list[ast.FunctionDef]:
    """Return all functions and methods."""
    trees = [ast.parse(cell.source) for cell in code_cells(notebook)]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def lines(source: str) -> int:
    """Return the number of lines, blank ones too."""
    return len(source.splitlines())


def counts(notebook: nbformat.NotebookNode) -> dict[str, float]:
    """Return the figures by which the size of the notebook is held."""
    code = code_cells(notebook)
    lengths = [lines(cell.source) for cell in code]
    first = [cell.id for cell in code].index(FIRST_NETWORK)
    prose = " ".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return {
        "cells": len(notebook.cells),
        "code cells": len(code),
        "lines of code": sum(lengths),
        "functions and methods": len(functions(notebook)),
        "lines before the first network": sum(lengths[:first]),
        "words of prose a line of code": round(len(re.findall(r"\S+", prose)) / sum(lengths), 2),
        "configuration entries": len(fields(definitions().Config)),
        "median lines of a cell": statistics.median(lengths),
        "longest cell": max(lengths),
        "longest function": max(f.end_lineno - f.lineno + 1 for f in functions(notebook)),
    }


if __name__ == "__main__":
    for name, count in counts(read_notebook()).items():
        print(f"{name:32} {count}")
