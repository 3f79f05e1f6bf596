"""What must hold for the committed state: the notebook as a document, and what it and README claim.

The claims are checked only where the outputs are the committed ones; else they skip and say why.
"""

import ast
import re
import subprocess

import nbformat
import pandas as pd
import pytest
from count_notebook import counts, functions
from notebook_tools import NOTEBOOK, ROOT, code_cells, output_texts, read_notebook, tags

LARGEST_NOTEBOOK = 3_000_000  # bytes
TOP_LEVEL = {
    "notebook.ipynb",
    "data",
    "outputs",
    "diagram",
    "requirements.txt",
    "README.md",
    "tests",
}
# what the notebook may not outgrow
LARGEST = {
    "cells": 149,
    "code cells": 89,
    "lines of code": 1668,
    "functions and methods": 110,
    "lines before the first network": 477,
    "configuration entries": 28,
    "median lines of a cell": 22,
    "longest cell": 40,
    "longest function": 30,
}
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(work|root|home|tmp|Users)\b")
NETWORK = re.compile(r"https?://|\burllib\b|\brequests\b|\bsocket\b|\bwget\b|\bcurl\b")


def git(*words: str) -> str | None:
    """Return what git prints about this folder, or None if it cannot tell."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return None if done.returncode else done.stdout


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    """Return the notebook as it stands in the file."""
    return read_notebook()


@pytest.fixture(scope="module")
def committed(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return the notebook if it and its outputs are the committed ones."""
    changed = git("status", "--porcelain", "--", "notebook.ipynb", "outputs", "README.md")
    if changed is None:
        pytest.skip("git cannot tell whether these are the committed outputs")
    if changed:
        pytest.skip("the notebook, its outputs or README are not the committed ones")
    return notebook


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    """Return the scores by head and rule."""
    return pd.read_csv(ROOT / "outputs" / "bach_chorales" / "scores.csv")


def strongest(scores: pd.DataFrame, head: str) -> pd.Series:
    """Return the row of the strongest rule of a head that is not the model."""
    rules = scores[(scores["head"] == head) & ~scores.score.str.contains("model|gain")]
    return rules.loc[rules.value.idxmin()]


def model(scores: pd.DataFrame, head: str) -> float:
    """Return the score of the model."""
    return scores[(scores["head"] == head) & (scores.score == "model")].value.item()


# The notebook as a document, executed or not


def test_format(notebook: nbformat.NotebookNode) -> None:
    """The file is a valid notebook in format 4.5, with readable ids and no empty cell."""
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert not [i for i in ids if not re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", i)]
    assert not [i for i in ids if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4})*.*", i)]
    assert all(cell.source.strip() for cell in notebook.cells)


def test_parameters_cell(notebook: nbformat.NotebookNode) -> None:
    """One cell is tagged for papermill and sets the parameters, nothing else."""
    tagged = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    assert [cell.id for cell in tagged] == ["parameters"]
    names = [node.targets[0].id for node in ast.parse(tagged[0].source).body]
    assert names == ["corpus", "random_state", "project", "changes"]


def test_sections_are_numbered(notebook: nbformat.NotebookNode) -> None:
    """The headings of the second level count from 1 to 15, under one title."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    numbers = re.findall(r"^## (\d+)\. \S", text, re.MULTILINE)
    assert [int(number) for number in numbers] == list(range(1, 16))


def test_docstrings_and_annotations(notebook: nbformat.NotebookNode) -> None:
    """Every class and function says what it is, every argument and result has a type."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    trees = [ast.parse(cell.source) for cell in code_cells(notebook)]
    defined = [node for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    assert not [node.name for node in defined if not ast.get_docstring(node)]
    bare = [function.name for function in functions(notebook) if function.returns is None]
    for function in functions(notebook):
        named = [*function.args.args, *function.args.kwonlyargs, function.args.vararg]
        bare += [a.arg for a in named if a and a.arg != "self" and not a.annotation]
    assert not bare


def test_size(notebook: nbformat.NotebookNode) -> None:
    """The notebook, its cells and its functions stay as short as they are."""
    size = counts(notebook)
    assert not {name: size[name] for name, most in LARGEST.items() if size[name] > most}


def test_no_shell_and_no_network(notebook: nbformat.NotebookNode) -> None:
    """Code cells start no shell, install nothing and call nobody."""
    for cell in code_cells(notebook):
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), cell.id
        assert not NETWORK.search(cell.source), cell.id


def test_functions_read_no_globals_of_a_run(notebook: nbformat.NotebookNode) -> None:
    """What a function uses it is given, or it is a definition."""
    defined, made = set(), set()
    for cell in code_cells(notebook):
        for node in ast.parse(cell.source).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                defined.add(node.name)
                continue
            names = {
                n.id
                for n in ast.walk(node)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
            made |= {name for name in names if not name.isupper()} - {"Batch", "State"}
    for function in functions(notebook):
        stored = {
            n.id
            for n in ast.walk(function)
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        stored |= {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)}
        stored |= {h.name for h in ast.walk(function) if isinstance(h, ast.ExceptHandler)}
        read = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)} - stored - defined
        assert not read & made, (function.name, read & made)


# The notebook as it was executed


def test_executed_in_one_run(committed: nbformat.NotebookNode) -> None:
    """The outputs come from one run from top to bottom, without errors, times or machine paths."""
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not [o for o in cell.outputs if o.output_type == "error"], cell.id
        assert not [o for o in cell.outputs if o.get("name") == "stderr"], cell.id
        assert "execution" not in cell.metadata, cell.id
    for cell in committed.cells:
        for text in [cell.source, *output_texts(cell)]:
            assert not MACHINE_PATH.search(text), cell.id


def test_full_training(committed: nbformat.NotebookNode) -> None:
    """The outputs come from the default settings, and the file opens quickly."""
    texts = [text for cell in code_cells(committed) for text in output_texts(cell)]
    assert any("corpus bach_chorales, random state 0, changes none" in text for text in texts)
    assert NOTEBOOK.stat().st_size < LARGEST_NOTEBOOK


def test_figures_have_alternative_text(committed: nbformat.NotebookNode) -> None:
    """There are 8 to 14 figures, and each has a text for those who cannot see it."""
    figures = [
        (cell.id, output.metadata.get("image/png", {}).get("alt", ""))
        for cell in code_cells(committed)
        for output in cell.outputs
        if "image/png" in output.get("data", {}) and cell.id != "headline"
    ]
    assert 8 <= len(figures) <= 14
    assert not [name for name, text in figures if len(text.split()) < 4]


def test_result_is_that_of_the_tables(
    committed: nbformat.NotebookNode, scores: pd.DataFrame
) -> None:
    """The sentence on the first page quotes the scores beside the strongest rules."""
    cell = next(cell for cell in code_cells(committed) if cell.id == "headline")
    text = next(text for text in output_texts(cell) if "Result" in text)
    for head in ("pitch", "step", "duration"):
        best = strongest(scores, head)
        assert re.search(
            rf"{head} {model(scores, head):.4f}( nats)? "
            rf"\(strongest rule, {best.score}, {best.value:.4f}",
            text,
        )


def test_result_in_readme(committed: nbformat.NotebookNode, scores: pd.DataFrame) -> None:
    """README quotes the model and the strongest rule of each head as the table has them."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for head, digits in (("pitch", 2), ("step", 4), ("duration", 3)):
        row = next(line for line in text.splitlines() if line.startswith(f"| {head} "))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        best = strongest(scores, head)
        assert cells[1] == f"{model(scores, head):.{digits}f}"
        assert cells[2] == f"{best.value:.{digits}f} ({best.score})"


def test_readme_links() -> None:
    """What README links to and the scripts that it names are there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!http)([^)]+)\)", text) + re.findall(r"tests/\w+\.py", text):
        assert (ROOT / path).exists(), path


def test_top_level_of_the_repository() -> None:
    """Git tracks nothing at the top level that is not announced."""
    listed = git("ls-files")
    if listed is None:
        pytest.skip("git cannot tell what is tracked")
    tracked = {path.split("/")[0] for path in listed.splitlines()}
    assert "notebook.ipynb" in tracked
    assert not {name for name in tracked if not name.startswith(".")} - TOP_LEVEL
