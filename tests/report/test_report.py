"""What must hold for the committed state: the notebook as a document, and what it and README claim.

Everything here skips where the notebook, its outputs or README are not the committed ones, or
where git cannot tell. What must hold for any run is in test_run.py.
"""

import ast
import re

import nbformat
import pandas as pd
import pytest
from count import counts, functions
from notebook_tools import (
    ALIASES,
    NOTEBOOK,
    OUR_ID,
    ROOT,
    cell_text,
    code_cells,
    code_digest,
    definitions,
    git,
    output_texts,
    read_notebook,
    shows_scores,
    tags,
    tracked_files,
)

DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
PLACES = ("notebook.ipynb", "outputs", "diagram", "README.md")
TOP_LEVEL = {*PLACES, "data", "requirements.txt", "tests"}
LEGAL = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)  # a fork may add them
LARGEST_NOTEBOOK, LARGEST_FILE = 3_000_000, 10_000_000  # bytes
# what the notebook may not outgrow
BOUNDS = {
    "cells": 126,
    "code cells": 65,
    "lines of code": 1590,
    "functions and methods": 96,
    "lines before the first network": 495,
    "configuration entries": 28,
    "longest cell": 76,
}
# figures in the prose of the notebook and of README, and the configuration that they quote
PROSE = {
    r"(?:by|exactly|after) (\d+)(?: new)? notes": ("piece_notes", "200"),
    r"the (\d+) notes of a held-out work": ("seed_notes", "128"),
    r"composed (\w+) times": ("attempts", "twelve"),
}
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


@pytest.fixture(scope="module")
def prose(notebook: nbformat.NotebookNode) -> str:
    """Return the text of the notebook."""
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


@pytest.fixture(scope="module")
def trees(notebook: nbformat.NotebookNode) -> dict[str, ast.Module]:
    """Return the syntax trees of the code cells."""
    return {cell.id: ast.parse(cell.source) for cell in code_cells(notebook)}


def stored_names(tree: ast.AST) -> set[str]:
    """Return the names that are set anywhere in the tree."""
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    return {node.id for node in names if isinstance(node.ctx, ast.Store)}


def test_format(notebook: nbformat.NotebookNode, prose: str) -> None:
    """The file is a valid notebook, with readable ids, no empty cell and sections from 1 to 15."""
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert not [name for name in ids if not OUR_ID.fullmatch(name)]
    assert all(cell.source.strip() for cell in notebook.cells)
    sections = re.findall(r"^## (\d+)\. \S", prose, re.MULTILINE)
    assert [int(number) for number in sections] == list(range(1, 16))
    assert len(re.findall(r"^# ", prose, re.MULTILINE)) == 1


def test_parameters_cell(notebook: nbformat.NotebookNode) -> None:
    """One cell is tagged, for papermill, and sets the parameters, nothing else."""
    (cell,) = [cell for cell in notebook.cells if tags(cell)]
    assert (cell.id, tags(cell)) == ("parameters", ["parameters"])
    names = [node.targets[0].id for node in ast.parse(cell.source).body]
    assert names == ["corpus", "random_state", "project", "changes"]


def test_docstrings_and_annotations(
    notebook: nbformat.NotebookNode, trees: dict[str, ast.Module]
) -> None:
    """Every class and function says what it is, every argument and result has a type."""
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    defined = [node for node in nodes if isinstance(node, DEFINITIONS)]
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


def test_functions_read_no_globals_of_a_run(
    notebook: nbformat.NotebookNode, trees: dict[str, ast.Module]
) -> None:
    """What a function uses it is given, or it is a definition."""
    nodes = [node for tree in trees.values() for node in tree.body]
    defined = {node.name for node in nodes if isinstance(node, DEFINITIONS)} | ALIASES
    made = set().union(*(stored_names(n) for n in nodes if not isinstance(n, DEFINITIONS)))
    made = {name for name in made if not name.isupper()}
    for function in functions(notebook):
        known = stored_names(function) | defined
        known |= {a.arg for a in ast.walk(function) if isinstance(a, ast.arg)}
        known |= {h.name for h in ast.walk(function) if isinstance(h, ast.ExceptHandler)}
        read = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        assert not (read - known) & made, function.name


def test_test_pieces_are_not_looked_at_early(trees: dict[str, ast.Module]) -> None:
    """No cell before the scores names the test pieces but the one that splits them off."""
    early = list(trees)[: list(trees).index("score-table")]
    run = [(i, n) for i in early for n in trees[i].body if not isinstance(n, DEFINITIONS)]
    words = [(i, n) for i, tree in run for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    assert {i for i, word in words if word.value == "test"} == {"split-pieces"}


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
    cells = [cell for cell in code_cells(notebook) if cell.id != "headline"]
    outputs = [output for cell in cells for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    texts = [output.metadata.get("image/png", {}).get("alt", "") for output in pictures]
    assert 8 <= len(texts) <= 14 and not [text for text in texts if len(text.split()) < 4]


def test_result_in_notebook(notebook: nbformat.NotebookNode, scores: pd.DataFrame) -> None:
    """The first page quotes the scores of the table beside the strongest rules."""
    text = cell_text(notebook, "headline")
    assert shows_scores(notebook, scores.reset_index())
    for head, score in scores.index:
        rule = score.removeprefix("gain over ")
        if rule != score:
            assert f"(strongest rule, {rule}, {scores.value[head, rule]:.4f}" in text


def test_result_in_readme(readme: str, scores: pd.DataFrame) -> None:
    """README quotes the model, the strongest rule of each head and the gain as the table does."""
    for head, digits in (("pitch", 2), ("step", 4), ("duration", 3)):
        gained = next(score for score in scores.loc[head].index if score.startswith("gain over "))
        rule = gained.removeprefix("gain over ")
        row = next(line for line in readme.splitlines() if line.startswith(f"| {head} "))
        model, strongest, (gain, low, high) = (
            [f"{value:.{digits}f}" for value in scores.loc[head, name]]
            for name in ("model", rule, gained)
        )
        said = [head, model[0], f"{strongest[0]} ({rule})", f"{gain} ({low} to {high})"]
        assert [cell.strip() for cell in row.strip("|").split("|")][:4] == said


def test_figures_in_prose(prose: str, readme: str) -> None:
    """What the prose says in figures is what the configuration holds."""
    config = definitions().Config()
    for pattern, (name, said) in PROSE.items():
        assert set(re.findall(pattern, f"{prose}\n{readme}")) == {said}
        assert str(getattr(config, name)) == said.replace("twelve", "12")


def test_readme_links(readme: str) -> None:
    """What README links to and the scripts that it names are there."""
    named = re.findall(r"\]\((?!http)([^)]+)\)", readme) + re.findall(r"tests/\w+\.\w+", readme)
    assert not [path for path in named if not (ROOT / path).exists()]


def test_top_level_of_the_repository(notebook: nbformat.NotebookNode) -> None:
    """Git tracks what is announced at the top level, and nothing beside it but legal texts."""
    tracked = {name.split("/")[0] for name in tracked_files()}
    assert tracked >= TOP_LEVEL
    others = [name for name in tracked - TOP_LEVEL if not name.startswith(".")]
    assert not [name for name in others if not LEGAL.match(name)]


def test_what_is_said_of_the_composers(prose: str) -> None:
    """The strongest rule is beaten on all heads but those that the text excepts."""
    table = pd.read_csv(ROOT / "outputs" / "study" / "composers.csv").query("not cut")
    heads = [name for name in table if f"{name}, strongest rule" in table]
    lost = {
        (composer, head)
        for head in heads
        for composer in table.composer[table[head] >= table[f"{head}, strongest rule"]]
    }
    assert lost == {("burgm", "step"), ("burgm", "duration")} and "all but Burgmüller" in prose
    thrice = table[table.runs == 3]
    assert len(thrice) == 4 and "the four that were trained on three splits" in prose
    more = (thrice["told apart"] - thrice["told apart, real continuations"]).to_numpy()
    runs = pd.read_csv(ROOT / "outputs" / "study" / "composers_runs.csv")
    features = runs.groupby("composer")["told apart"].agg(["min", "max"]).loc[thrice.composer]
    assert (more > 0).all() and (more < (features["max"] - features["min"]).to_numpy()).all()
    assert (thrice.silent == 0).all()


def test_what_is_said_of_the_drift(notebook: nbformat.NotebookNode) -> None:
    """Pieces find themselves stranger, stay in their register, and spread further in it."""
    table = pd.read_csv(ROOT / "outputs" / "study" / "drift.csv").set_index("what")
    made, real = table.iloc[:, :4], table.iloc[:, 4:]
    rise, really = (side.loc["nats"].iloc[3] - side.loc["nats"].iloc[0] for side in (made, real))
    assert rise > really > 0
    pitch = made.loc["mean pitch"]
    assert (pitch - pitch.iloc[0]).abs().max() < 1
    spread = [side.loc["spread of the mean pitch"].to_numpy() for side in (made, real)]
    assert (spread[0][1:] > spread[1][1:]).all()


def test_what_is_said_of_the_voices(prose: str) -> None:
    """Parallels lie between Bach's and the published system's by more than draws differ."""
    table = pd.read_csv(ROOT / "outputs" / "study" / "voices.csv").set_index(["what", "set"])
    noise = 2 * table.deviation["parallels", "this model"]
    bach, peer, model = table.value["parallels"][["Bach", "JS Fake Chorales", "this model"]]
    assert bach + noise < model < peer - noise and "this model's lie between" in prose
    leaps = table.value["leaps"]
    assert leaps.idxmax() == "this model" and "It leaps more than both" in prose
