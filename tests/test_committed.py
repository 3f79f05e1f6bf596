"""What must hold for the committed state: the notebook as a document, and what it and README claim.

Everything here skips where the notebook, its outputs or README are not the committed ones, or
where git cannot tell. What must hold for any run is in test_run.py.
"""

import ast
import re

import nbformat
import pandas as pd
import pytest
from count_notebook import counts, functions
from notebook_tools import (
    NOTEBOOK,
    ROOT,
    cell_text,
    code_cells,
    code_digest,
    definitions,
    git,
    headline_scores,
    output_texts,
    read_notebook,
    tags,
    tracked_files,
)

PLACES = ("notebook.ipynb", "outputs", "diagram", "README.md")
TOP_LEVEL = {*PLACES, "data", "requirements.txt", "tests"}
A_FORK_MAY_ADD = re.compile(r"(licen[cs]e|copying|notice|authors|contributing)", re.IGNORECASE)
LARGEST_NOTEBOOK = 3_000_000  # bytes
LARGEST_FILE = 5_000_000
# what the notebook may not outgrow
BOUNDS = {
    "cells": 128,
    "code cells": 72,
    "lines of code": 1480,
    "functions and methods": 92,
    "lines before the first network": 480,
    "configuration entries": 26,
    "longest cell": 44,
}
# figures in the prose of the notebook and of README, and what they are
PROSE = {
    r"by (?:exactly )?(\d+) (?:new )?notes": "piece_notes",
    r"stops after (\d+) notes": "piece_notes",
    r"pieces of exactly (\d+) new notes": "piece_notes",
    r"the (\d+) notes of a held-out work": "seed_notes",
    r"composed (\w+) times": "attempts",
}
WORDS = {"three": 3, "four": 4, "five": 5, "six": 6}
MACHINE_PATH = re.compile(r"(?<![\w.~-])(/(work|root|home|tmp|Users)|[A-Z]:\\+Users)\b")
NETWORK = re.compile(r"https?://|\burllib\b|\brequests\b|\bsocket\b|\bwget\b|\bcurl\b")


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    """Return the notebook if it, its outputs and README are the committed ones."""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *PLACES)
    if changed is None or not tracked_files():
        pytest.skip("git cannot tell whether these are the committed outputs")
    if changed:
        pytest.skip(f"not the committed state: {changed.splitlines()[0].strip()} and perhaps more")
    return read_notebook()


@pytest.fixture(scope="module")
def scores(notebook: nbformat.NotebookNode) -> pd.DataFrame:
    """Return the scores by head and rule."""
    table = pd.read_csv(ROOT / "outputs" / "bach_chorales" / "scores.csv")
    return table.set_index(["head", "score"])


@pytest.fixture(scope="module")
def readme(notebook: nbformat.NotebookNode) -> str:
    """Return the text of README."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


def stored_names(tree: ast.AST) -> set[str]:
    """Return the names that are set anywhere in the tree."""
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Store)}


# The notebook as a document


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
    """One cell is tagged, for papermill, and sets the parameters, nothing else."""
    tagged = [cell for cell in notebook.cells if tags(cell)]
    assert [(cell.id, tags(cell)) for cell in tagged] == [("parameters", ["parameters"])]
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
    """The notebook keeps its bounds, and no file of the repository is a burden."""
    size = counts(notebook)
    assert not {name: size[name] for name, most in BOUNDS.items() if size[name] > most}
    assert NOTEBOOK.stat().st_size < LARGEST_NOTEBOOK
    paths = [ROOT / name for name in tracked_files()]
    assert not [path for path in paths if path.is_file() and path.stat().st_size > LARGEST_FILE]


def test_no_shell_and_no_network(notebook: nbformat.NotebookNode) -> None:
    """Code cells start no shell, install nothing and call nobody."""
    for cell in code_cells(notebook):
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), cell.id
        assert not NETWORK.search(cell.source), cell.id


def test_functions_read_no_globals_of_a_run(notebook: nbformat.NotebookNode) -> None:
    """What a function uses it is given, or it is a definition."""
    defined, made = set(), set()
    for node in (node for cell in code_cells(notebook) for node in ast.parse(cell.source).body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            defined.add(node.name)
        else:
            made |= {name for name in stored_names(node) if not name.isupper()}
    for function in functions(notebook):
        known = stored_names(function) | defined | {"Batch", "State", "Counts"}
        known |= {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)}
        known |= {h.name for h in ast.walk(function) if isinstance(h, ast.ExceptHandler)}
        read = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        assert not (read - known) & made, function.name


def test_test_pieces_are_not_looked_at_early(notebook: nbformat.NotebookNode) -> None:
    """No cell before the scores names the test pieces, but the one that shows the split."""
    early, kinds = [], (ast.FunctionDef, ast.ClassDef)
    for cell in code_cells(notebook):
        if cell.id == "scores":
            break
        statements = [node for node in ast.parse(cell.source).body if not isinstance(node, kinds)]
        nodes = [node for statement in statements for node in ast.walk(statement)]
        if "test" in [node.value for node in nodes if isinstance(node, ast.Constant)]:
            early.append(cell.id)
    assert early == ["split-pieces"]


# The notebook as it was executed


def test_executed_in_one_run(notebook: nbformat.NotebookNode) -> None:
    """The outputs come from one run from top to bottom, without errors, times or machine paths."""
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [(cell.id, output) for cell in cells for output in cell.outputs]
    assert not [name for name, output in outputs if output.output_type == "error"]
    assert not [name for name, output in outputs if output.get("name") == "stderr"]
    assert not [cell.id for cell in cells if "execution" in cell.metadata]
    for cell in notebook.cells:
        for text in [cell.source, *output_texts(cell)]:
            assert not MACHINE_PATH.search(text), cell.id


def test_executed_as_it_stands(notebook: nbformat.NotebookNode) -> None:
    """The outputs were made by the code that stands in the cells, with the default settings."""
    lines = cell_text(notebook, "config-run").splitlines()
    assert "corpus bach_chorales, random state 0, changes none" in lines
    assert f"code {code_digest(notebook)}" in lines


def test_figures_have_alternative_text(notebook: nbformat.NotebookNode) -> None:
    """There are 8 to 14 figures, and each has a text for those who cannot see it."""
    figures = [
        (cell.id, output.metadata.get("image/png", {}).get("alt", ""))
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {}) and cell.id != "headline"
    ]
    assert 8 <= len(figures) <= 14
    assert not [name for name, text in figures if len(text.split()) < 4]


def test_result_in_notebook(notebook: nbformat.NotebookNode, scores: pd.DataFrame) -> None:
    """The first page quotes the scores of the table beside the strongest rules."""
    said = {head: scores.loc[head, "model"].value for head in scores.index.unique("head")}
    assert headline_scores(notebook) == pytest.approx(said, abs=1e-4)
    for head in said:
        best = strongest(scores, head)
        text = f"(strongest rule, {best}, {scores.value[head, best]:.4f}"
        assert text in cell_text(notebook, "headline")


def test_result_in_readme(readme: str, scores: pd.DataFrame) -> None:
    """README quotes the model, the strongest rule of each head and the gain as the table does."""
    for head, digits in (("pitch", 2), ("step", 4), ("duration", 3)):
        best = strongest(scores, head)
        row = next(line for line in readme.splitlines() if line.startswith(f"| {head} "))
        model, rule, (gain, low, high) = (
            [f"{value:.{digits}f}" for value in scores.loc[head, name]]
            for name in ("model", best, f"gain over {best}")
        )
        said = [head, model[0], f"{rule[0]} ({best})", f"{gain} ({low} to {high})"]
        assert [cell.strip() for cell in row.strip("|").split("|")][:4] == said


def test_figures_in_prose(notebook: nbformat.NotebookNode, readme: str) -> None:
    """What the prose says in figures is what the configuration holds."""
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    config = definitions().Config()
    assert (config.piece_notes, config.seed_notes) == (200, 128)
    for pattern, name in PROSE.items():
        said = re.findall(pattern, f"{prose}\n{readme}")
        assert {WORDS.get(word, word) for word in said} <= {getattr(config, name)}, name


def strongest(scores: pd.DataFrame, head: str) -> str:
    """Return the strongest rule of a head that is not the model."""
    rules = scores.value[head]
    return rules[~rules.index.str.contains("model|gain")].idxmin()


# The repository


def test_readme_links(readme: str) -> None:
    """What README links to and the scripts that it names are there, and every script is named."""
    named = re.findall(r"\]\((?!http)([^)]+)\)", readme) + re.findall(r"tests/\w+\.\w+", readme)
    assert not [path for path in named if not (ROOT / path).exists()]
    ours = ("study", "rough", "make", "benchmark", "count")
    scripts = [path for path in (ROOT / "tests").glob("*.py") if path.stem.startswith(ours)]
    named = {*named, "tests/study_tools.py"}  # which the studies share
    assert not [path.name for path in scripts if f"tests/{path.name}" not in named]


def test_top_level_of_the_repository(notebook: nbformat.NotebookNode) -> None:
    """Git tracks what is announced at the top level, and nothing beside it but legal texts."""
    tracked = {name.split("/")[0] for name in tracked_files()}
    assert tracked >= TOP_LEVEL
    others = [name for name in tracked - TOP_LEVEL if not name.startswith(".")]
    assert not [name for name in others if not A_FORK_MAY_ADD.match(name)]
