"""The notebook as a document: cells, sections, style, and the outputs it is committed with."""

import ast
import re
import statistics
import subprocess
from pathlib import Path

import nbformat
import pytest
from notebook_tools import NOTEBOOK, code_cells, output_texts, read_notebook, tags

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
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(work|root|home|tmp|Users)\b")
NETWORK = re.compile(r"https?://|\burllib\b|\brequests\b|\bsocket\b|\bwget\b|\bcurl\b")


@pytest.fixture(scope="module")
def notebook() -> nbformat.NotebookNode:
    """Return the notebook as it is committed."""
    return read_notebook()


def functions(notebook: nbformat.NotebookNode) -> list[ast.FunctionDef]:
    """Return all functions and methods."""
    trees = [ast.parse(cell.source) for cell in code_cells(notebook)]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def lines(source: str) -> int:
    """Return the number of lines."""
    return len(source.splitlines())


def test_format(notebook: nbformat.NotebookNode) -> None:
    """The file is a valid notebook in format 4.5."""
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)


def test_cell_ids_are_readable(notebook: nbformat.NotebookNode) -> None:
    """Ids are words, each used once."""
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    unreadable = [i for i in ids if not re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", i)]
    assert not unreadable
    # Jupyter makes eight hexadecimal digits, which may happen to be letters only
    assert not [i for i in ids if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4})*.*", i)]


def test_parameters_cell(notebook: nbformat.NotebookNode) -> None:
    """One cell is tagged for papermill and sets the parameters, nothing else."""
    tagged = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    assert [cell.id for cell in tagged] == ["parameters"]
    body = ast.parse(tagged[0].source).body
    assert all(isinstance(node, ast.Assign) for node in body)
    names = [target.id for node in body for target in node.targets]
    assert names == ["corpus", "random_state", "project"]


def test_sections_are_numbered(notebook: nbformat.NotebookNode) -> None:
    """The headings of the second level count from 1 to 15, under one title."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    numbers = re.findall(r"^## (\d+)\. \S", text, re.MULTILINE)
    assert [int(number) for number in numbers] == list(range(1, 16))
    assert len(re.findall(r"^## ", text, re.MULTILINE)) == len(numbers)


def test_no_empty_cells(notebook: nbformat.NotebookNode) -> None:
    """Every cell holds something."""
    assert not [cell.id for cell in notebook.cells if not cell.source.strip()]


def test_docstrings(notebook: nbformat.NotebookNode) -> None:
    """Every class and function says what it is."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    trees = [ast.parse(cell.source) for cell in code_cells(notebook)]
    defined = [node for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    assert len(defined) > 50
    assert not [node.name for node in defined if not ast.get_docstring(node)]


def test_annotations(notebook: nbformat.NotebookNode) -> None:
    """Every argument and every returned value has a type."""
    bare = []
    for function in functions(notebook):
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        named += [a for a in (arguments.vararg, arguments.kwarg) if a]
        bare += [f"{function.name}({a.arg})" for a in named if a.arg != "self" and not a.annotation]
        if function.returns is None:
            bare.append(function.name)
    assert not bare


def test_lengths(notebook: nbformat.NotebookNode) -> None:
    """Cells and functions stay short."""
    assert not [cell.id for cell in code_cells(notebook) if lines(cell.source) > 40]
    long = [f.name for f in functions(notebook) if f.end_lineno - f.lineno + 1 > 30]
    assert not long
    assert statistics.median(lines(cell.source) for cell in code_cells(notebook)) <= 14


def test_no_shell_and_no_network(notebook: nbformat.NotebookNode) -> None:
    """Code cells start no shell, install nothing and call nobody."""
    for cell in code_cells(notebook):
        assert not re.search(r"^\s*[!%]", cell.source, re.MULTILINE), cell.id
        assert not NETWORK.search(cell.source), cell.id


def test_executed_in_order(notebook: nbformat.NotebookNode) -> None:
    """The committed outputs come from one run from top to bottom."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_no_errors_in_outputs(notebook: nbformat.NotebookNode) -> None:
    """No cell ended in an error or wrote to the error stream."""
    for cell in code_cells(notebook):
        assert not [o for o in cell.outputs if o.output_type == "error"], cell.id
        assert not [o for o in cell.outputs if o.get("name") == "stderr"], cell.id


def test_not_a_smoke_run(notebook: nbformat.NotebookNode) -> None:
    """The committed outputs come from the full training."""
    texts = [text for cell in code_cells(notebook) for text in output_texts(cell)]
    assert not [text for text in texts if "smoke test" in text]


def test_file_is_small() -> None:
    """The notebook opens quickly and shows on a web page."""
    assert NOTEBOOK.stat().st_size < LARGEST_NOTEBOOK


def test_no_machine_paths(notebook: nbformat.NotebookNode) -> None:
    """Nothing points into somebody's machine."""
    for cell in notebook.cells:
        for text in [cell.source, *output_texts(cell)]:
            assert not MACHINE_PATH.search(text), cell.id


def test_no_timestamps(notebook: nbformat.NotebookNode) -> None:
    """Running the notebook again changes nothing but what changed."""
    assert not [cell.id for cell in notebook.cells if "execution" in cell.metadata]


def test_figures_have_alternative_text(notebook: nbformat.NotebookNode) -> None:
    """There are 8 to 14 figures, and each has a text for those who cannot see it."""
    figures = [
        (cell.id, output.metadata.get("image/png", {}).get("alt", ""))
        for cell in code_cells(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert 8 <= len(figures) <= 14
    assert not [name for name, text in figures if len(text.split()) < 4]


def test_top_level_of_the_repository(root: Path) -> None:
    """Git tracks nothing at the top level that is not announced."""
    if not (root / ".git").exists():
        pytest.skip("this copy is no git repository")
    listed = subprocess.run(
        ["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True
    )
    tracked = {path.split("/")[0] for path in listed.stdout.splitlines()}
    assert "notebook.ipynb" in tracked
    assert not {name for name in tracked if not name.startswith(".")} - TOP_LEVEL
