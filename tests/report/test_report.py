"""What must hold for the committed run: the notebook as a document, and what it and README claim.

Everything here skips where the notebook, its outputs or README are not the committed ones, or
where git cannot tell. What must hold for any run is in tests/run.
"""

import ast
import re
import subprocess
import sys
from types import ModuleType

import ablation
import figures
import ladder
import nbformat
import pandas as pd
import pytest
from count import counts
from notebook_tools import (
    CORPUS,
    NOTEBOOK,
    PLACES,
    ROOT,
    Run,
    code_cells,
    definition_trees,
    first_page,
    shown,
    tags,
    tracked_files,
)
from PIL import Image
from study_tools import RANDOM_STATE, STUDY, load, version

TOP_LEVEL = {*PLACES, "data", "requirements.txt", "tests"}
LEGAL = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)  # a fork may add them
LARGEST_NOTEBOOK, LARGEST_FILE = 3_000_000, 10_000_000  # bytes
# what the notebook may not outgrow
BOUNDS = {
    "code cells": 71,
    "lines of code": 1725,
    "definitions": 111,
    "lines before the first network": 490,
    "configuration entries": 27,
    "longest cell": 51,
    "longest function": 37,
    "columns": 88,
}
FIGURES = 20  # at most, those of the first page not counted, which stand further down too
# numbers in the prose of the notebook and of README, and the configuration that they quote
PROSE = {
    r"(?:by|exactly|after) (\d+)(?: new)? notes": ("piece_notes", "200"),
    r"the (\d+) notes of a held-out work": ("seed_notes", "128"),
    r"composed (\w+) times": ("attempts", "twelve"),
}
READABLE_ID = r"(?![0-9a-f]{8}(-|$))[a-z]+(-[a-z0-9]+)*"  # Jupyter gives other ids
MACHINE_PATH = re.compile(r"(?<![\w.~-])(/(work|root|home|tmp|Users)|[A-Z]:\\+Users)\b")


@pytest.fixture(scope="module")
def notebook(committed: Run) -> nbformat.NotebookNode:
    """Return the committed notebook."""
    return committed.notebook


@pytest.fixture(scope="module")
def scores(committed: Run) -> pd.DataFrame:
    """Return the scores by head and baseline."""
    return pd.read_csv(committed.outputs / "scores.csv").set_index(["head", "score"])


@pytest.fixture(scope="module")
def readme(committed: Run) -> str:
    """Return the text of README."""
    return (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def prose(notebook: nbformat.NotebookNode) -> str:
    """Return the text of the notebook."""
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def test_format(notebook: nbformat.NotebookNode, prose: str) -> None:
    """The file is a valid notebook with readable ids, no empty cell and sections in order."""
    nbformat.validate(notebook)
    assert not [cell.id for cell in notebook.cells if not re.fullmatch(READABLE_ID, cell.id)]
    assert not [cell.id for cell in notebook.cells if not cell.source.strip()]
    sections = [int(number) for number in re.findall(r"^## (\d+)\. \S", prose, re.MULTILINE)]
    assert sections == list(range(1, len(sections) + 1)) and len(sections) > 10


def test_parameters_cell(notebook: nbformat.NotebookNode) -> None:
    """One cell is tagged, for papermill, and sets the parameters, nothing else."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in tags(cell)]
    names = [node.targets[0].id for node in ast.parse(cell.source).body]
    assert names == ["corpus", "random_state", "project", "changes"]


def test_size(notebook: nbformat.NotebookNode) -> None:
    """The notebook keeps its bounds, and no file of the repository is a burden."""
    size = counts(notebook)
    assert not {name: size[name] for name, most in BOUNDS.items() if size[name] > most}
    assert NOTEBOOK.stat().st_size < LARGEST_NOTEBOOK
    sizes = {name: (ROOT / name).stat().st_size for name in tracked_files()}
    assert not [name for name, size in sizes.items() if size > LARGEST_FILE]


def test_functions_read_no_globals_of_a_run(committed: Run) -> None:
    """What a function uses it is given, or it is a definition: no name is missing without a run."""
    source = "\n".join(ast.unparse(tree) for tree in definition_trees().values())
    lint = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
    done = subprocess.run(lint, input=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_executed_in_one_run(notebook: nbformat.NotebookNode) -> None:
    """The outputs come from one run of these cells, without errors, times or machine paths."""
    cells = code_cells(notebook)
    lines = shown(cells).splitlines()
    assert f"corpus {CORPUS}, random state {RANDOM_STATE}, changes none" in lines
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [(cell.id, output) for cell in cells for output in cell.outputs]
    assert not [name for name, output in outputs if output.output_type == "error"]
    assert not [name for name, output in outputs if output.get("name") == "stderr"]
    assert not [cell.id for cell in cells if "execution" in cell.metadata]
    assert not [c.id for c in notebook.cells if MACHINE_PATH.search(c.source + shown([c]))]


def test_figures_have_alternative_text(notebook: nbformat.NotebookNode) -> None:
    """Each figure has a text for those who cannot see it, each piano roll the title of its piece.

    There are no more figures than a reader looks at.
    """
    texts = {}
    for cell in code_cells(notebook):
        figures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        alts = [figure.metadata.get("image/png", {}).get("alt", "") for figure in figures]
        texts[cell.id] = [alt for alt in alts if len(alt.split()) >= 4]
        assert len(texts[cell.id]) == len(figures), cell.id
    for cell in ("headline", "players"):
        rolls = [text for text in texts[cell] if text.startswith("Piano roll. ")]
        pieces = [re.search(r"Piece (\d), after the opening of .+, in .+", text) for text in rolls]
        assert [piece[1] for piece in pieces] == ["1", "2", "3"]
    first = {cell.id for cell in first_page(notebook)}
    count = sum(len(alts) for cell, alts in texts.items() if cell not in first)
    assert 8 <= count <= FIGURES


def test_result(notebook: nbformat.NotebookNode, readme: str, scores: pd.DataFrame) -> None:
    """The first page and README quote the model, the strongest baselines and the gains."""
    page = shown(first_page(notebook))
    for head, digits in (("pitch", 2), ("step", 4), ("duration", 3)):
        mine = scores.loc[head]
        gained = next(name for name in mine.index if name.startswith("gain over "))
        best = gained.removeprefix("gain over ")
        said = rf"{head} {mine.value['model']:.4f} \w+ \({best} {mine.value[best]:.4f}"
        assert re.search(said, page)
        row = next(line for line in readme.splitlines() if line.startswith(f"| {head} "))
        model, baseline, gain, low, high = (
            f"{value:.{digits}f}"
            for value in (mine.value["model"], mine.value[best], *mine.loc[gained])
        )
        said = [head, model, f"{baseline} ({best})", f"{gain} ({low} to {high})"]
        assert [part.strip() for part in row.strip("|").split("|")][:4] == said


def test_numbers_in_prose(nb: ModuleType, prose: str, readme: str) -> None:
    """The numbers that the prose quotes are those of the configuration."""
    for pattern, (name, said) in PROSE.items():
        assert set(re.findall(pattern, f"{prose}\n{readme}")) == {said}
        assert str(getattr(nb.Config(), name)) == said.replace("twelve", "12")


def test_readme_links(readme: str) -> None:
    """What README links to and the scripts that it names are there."""
    named = re.findall(r"\]\((?!http)([^)]+)\)", readme) + re.findall(r"tests/[\w/]+\.\w+", readme)
    assert named and not [path for path in named if not (ROOT / path).exists()]


def test_top_level_of_the_repository(committed: Run) -> None:
    """Git tracks what is announced at the top level, and nothing beside it but legal texts."""
    tracked = {name.split("/")[0] for name in tracked_files() if name[0] != "."}
    assert tracked >= TOP_LEVEL
    assert not [name for name in tracked - TOP_LEVEL if not LEGAL.match(name)]


def test_overlap_of_the_test_pieces(nb: ModuleType, prose: str) -> None:
    """Of the states 60 to 109 the run's has fewest test chorales in common with those scored."""
    config = nb.Config()
    pieces = load(nb, ROOT / "data" / CORPUS, config)

    def held(state: int) -> set[str]:
        return {piece.name for piece in nb.split_pieces(pieces, config, state)["test"]}

    scored, tests = set().union(*map(held, (0, 1, 2, 41))), {i: held(i) for i in range(60, 110)}
    common = {state: len(names & scored) for state, names in tests.items()}
    assert min(common, key=common.get) == RANDOM_STATE
    assert f"({common[RANDOM_STATE]} of {len(tests[RANDOM_STATE])})" in prose


def test_studies_are_of_this_version(nb: ModuleType, committed: Run) -> None:
    """All tables are of the model that the notebook has, and the ablation is that of its runs."""
    tables = {path.stem: pd.read_csv(path) for path in STUDY.glob("*.csv")}
    stamps = {(name, stamp) for name, table in tables.items() for stamp in table.version}
    assert stamps == {(name, version(nb)) for name in tables} and len(tables) >= 9
    again = ablation.summary(tables["ablation_runs"]).to_csv(index=False, float_format="%.4f")
    assert (STUDY / "ablation.csv").read_text(encoding="utf-8") == again
    for name in figures.FIGURES:  # and the pictures are of these tables
        assert Image.open(STUDY / f"{name}.png").text["Source"] == figures.source(name)


def test_what_is_said_of_the_ablation(prose: str) -> None:
    """What the text says of a part is what its row says."""
    table = pd.read_csv(STUDY / "ablation.csv").set_index(["corpus", "score", "left out"])
    table = table.sort_index()
    change, low, helps = table.change, table.low, table.index[table.sure & (table.change > 0)]
    assert change[CORPUS, "pitch"].idxmax() == "near notes"
    assert change["mozart", "pitch"].idxmax() == "copying"
    assert change[CORPUS, "parallels"].idxmax() == "parallel motion"
    chorales, mozart = ("1-NN accuracy", "failing"), ("duration",)
    said = {"parallel motion": ("parallels",), "first end as a proposal": ("step",)}
    said |= dict.fromkeys(("residuals", "rounding to seed values"), chorales)
    said |= dict.fromkeys(("bounds on the step", "least distance of copies"), chorales[1:])
    assert {(CORPUS, score, part) for part in said for score in said[part]} <= {*helps}
    served = "copy dropout", "transposition", "conditioned heads"
    assert {("mozart", score, part) for part in served for score in mozart} <= {*helps}
    assert round(change["debussy", "keys struck again", "bounds on the step"]) == 5
    assert round(change["debussy", "notes at once", "bounds on the step"]) == 3
    bounds = table.loc["debussy"].sure.xs("bounds on the step", level="left out")
    assert bounds["keys struck again"] and bounds["notes at once"]
    sure = table.sure.groupby("left out").any()
    unsure = {"metre", "note counts", "transposed copies", "limit on match length"}
    assert {*sure.index[~sure]} == unsure and "no effect that stands the correction" in prose
    steps = pd.read_csv(STUDY / "ladder.csv").pivot(
        index="random state", columns="step of the ladder", values="pitch"
    )
    assert (steps["and near notes, voices"] > steps["and metre, note counts"]).all()
    assert low["mozart", "pitch", "transposed copies"] > 0


def test_what_is_said_of_the_ladder(prose: str) -> None:
    """Size lowers the pitch loss most, then the near notes, then copying."""
    table = pd.read_csv(STUDY / "ladder.csv").groupby("step of the ladder").pitch.mean()
    steps = [*ladder.PLAIN, *ladder.STEPS]
    gain = -table[steps].diff()
    most = ["plain, as large and long", "and near notes, voices", "and copying"]
    assert gain.nlargest(3).index.tolist() == most
    assert "by size and epochs, then by the near notes, then by copying" in prose


def test_what_is_said_of_the_leak(prose: str) -> None:
    """The careless split flatters both, the n-grams to near the model that is scored by work."""
    table = pd.read_csv(STUDY / "leak.csv", index_col="split").drop(columns="version")
    honest, careless = table.loc["split by work"], table.loc["random split of windows"]
    assert (careless < honest).all() and abs(careless.iloc[0] - honest["model"]) < 0.05
    assert "flatters both, and its n-gram comes close to the honest model" in prose


def test_what_is_said_of_the_composers(prose: str) -> None:
    """All baselines are beaten, but unselected pieces are recognised more than ground truth."""
    everything = pd.read_csv(STUDY / "composers.csv").set_index("composer")
    table, cut = everything.query("not cut"), everything.query("cut")
    assert ((table["test works"] == 1).sum(), len(table)) == (6, 13)
    assert "Six of the other 13 composers have a single test work" in prose
    for head in figures.HEADS:
        assert not (table[head] >= table[f"{head}, strongest baseline"]).any()
    more = table["1-NN accuracy"] - table["1-NN accuracy, ground truth"]
    assert (more > 2 * table.deviation).sum() == 12 and "for twelve of the 13" in prose
    lost = cut.index[cut.pitch > cut["pitch, strongest baseline"]]
    assert {*lost} == {"granados", "albeniz"} and "Granados and Albeniz are lost" in prose
    runs = cut["longest run shared"].nlargest(2)
    assert runs.to_dict() == {"albeniz": 164, "schumann": 125}
    assert "up to 164 notes of Albeniz, 125 of Schumann" in prose


def test_what_is_said_of_the_drift(prose: str) -> None:
    """The pieces sink, ground truth does not; nats hardly change, the register does not spread."""
    table = pd.read_csv(STUDY / "drift.csv").set_index("what").drop(columns="version")
    made, real = (
        part.iloc[:, 3] - part.iloc[:, 0] for part in (table.iloc[:, :4], table.iloc[:, 4:])
    )
    assert round(made["mean pitch"]) == -3 and abs(real["mean pitch"]) < 0.5
    assert "their mean pitch sinks by three semitones" in prose
    assert abs(made["nats"]) < 0.05 and made["spread of the mean pitch"] < 0


def test_what_is_said_of_the_speed(prose: str) -> None:
    """The other designs never come to what this model has after its first epoch."""
    curves = pd.read_csv(STUDY / "learning.csv").groupby("design", sort=False).pitch
    first, least = curves.first(), curves.min()
    assert first["this model"] < least.drop("this model").min()
    assert "neither reaches what this model has after its first epoch" in prose


def test_what_is_said_of_the_calibration(prose: str) -> None:
    """A pitch comes as often as is said, an attribute mostly lies inside too often."""
    table = pd.read_csv(STUDY / "calibration.csv")
    table["said"] = table.what.str.extract(r"(\d+)%")[0].astype(float) / 100
    more = (table.share - table.said).set_axis(table.what)
    assert more.filter(like="pitch").abs().max() < 0.05 and "calibrated to within .05" in prose
    assert table.share[table.what.str.startswith("step")].min() > 0.98
    assert more["duration in the middle 50%"] > 0 > more["duration in the middle 80%"]


def test_what_is_said_of_the_peers(prose: str) -> None:
    """Parallels lie between Bach's and the published system's by more than draws differ."""
    table = pd.read_csv(STUDY / "peers.csv").set_index(["score", "set"])
    noise = 2 * table.deviation["parallels", "this model"]
    names = ["Bach, other half", "JS Fake Chorales", "this model"]
    bach, peer, model = table.value["parallels"][names]
    assert bach + noise < model < peer - noise and "this model's lie between" in prose
    leaps = table.value["leaps"]
    assert leaps[names].idxmax() == "this model" and leaps["this model"] < leaps["ground truth"]
    nearest, noise = table.value["1-NN accuracy"], 2 * table.deviation["1-NN accuracy", names[2]]
    assert abs(nearest[names[2]] - nearest[names[1]]) < noise and "about as often" in prose
    assert nearest[names[0]] + 0.2 < nearest[names[2]] and "far more often than Bach's" in prose
    assert table.pieces["parallels", "ground truth"] == 12 and "only twelve of 200 notes" in prose
