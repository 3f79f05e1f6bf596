"""What the tests share: the notebook's definitions, toy music, and a way to run a copy of it."""

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebook.ipynb"
CORPUS = "bach_chorales"  # that the notebook runs on by default
PLACES = ("notebook.ipynb", "outputs", "diagram", "README.md")  # of what a run shows and claims
SMOKE = {"epochs": 1, "hidden_size": 16, "embedding_size": 8, "head_size": 16}
SMALL = SMOKE | {"epochs": 2, "held_out": 0.2}
OLD = {"piece_1.mid": b"old", "piece_4.mid": b"old"}  # what an older run left
SMOKE_FILES = 24  # of the bundled corpus, in a project for tests

Note = tuple[float, int, float, int]  # onset and duration in beats, between them the pitch


def listed_sums() -> dict[str, str]:
    """Return the SHA-256 of each file of the course dataset, by composer and name."""
    text = (ROOT / "data" / "course_dataset.sha256").read_text(encoding="utf-8")
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}


def course_dataset() -> Path:
    """Return the first folder that has all composers of the course dataset, else the last place."""
    composers = {name.split("/")[0] for name in listed_sums()}
    places = [Path(os.environ.get("COURSE_DATASET") or ROOT / "data" / "classical-music-midi")]
    places += [ROOT / "data", ROOT.parent / "shared" / "dataset" / "classical-music-midi"]
    return next((p for p in places if all((p / name).is_dir() for name in composers)), places[-1])


DATASET = course_dataset()


def git(*words: str) -> str | None:
    """Return what git prints about this folder, or None where it cannot tell."""
    try:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, check=True, text=True, errors="replace"
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def tracked_files() -> list[str]:
    """Return the names of the files that git tracks here, none where it cannot tell."""
    names = (git("ls-files", "-z") or "").split("\0")[:-1]
    return names if NOTEBOOK.name in names else []


def read_notebook(path: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """Return the notebook as it stands in the file."""
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def definition_trees() -> dict[str, ast.Module]:
    """Return by cell the imports, functions, classes and constants of the notebook."""

    def is_definition(node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign):
            return all(isinstance(t, ast.Name) and t.id[0].isupper() for t in node.targets)
        return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)

    trees = {cell.id: ast.parse(cell.source) for cell in code_cells(read_notebook())}
    for tree in trees.values():
        tree.body = list(filter(is_definition, tree.body))
    return trees


def definitions() -> ModuleType:
    """Return a module with the notebook's imports, functions, classes and constants."""
    module = ModuleType("notebook_definitions")
    sys.modules[module.__name__] = module  # dataclasses look their module up by its name
    for cell, tree in definition_trees().items():
        exec(compile(tree, f"<cell {cell}>", "exec"), module.__dict__)
    return module


def small_config(nb: ModuleType, **changes: object) -> object:
    """Return a configuration small enough for toy music."""
    small = {"window": 16, "batch_size": 8, "epochs": 2, "seed_notes": 16, "piece_notes": 20}
    return replace(nb.Config(), **(SMOKE | small | changes))


def chorale_notes(random_state: int, beats: int = 24, velocity: bool = False) -> list[Note]:
    """Return random notes in four voices that never meet on a pitch."""
    rng, notes = np.random.default_rng(random_state), []
    for base in (48, 55, 62, 69):
        onset = 0.0
        while onset < beats:
            duration = float(rng.choice([0.5, 1, 1, 2]))
            loudness = int(rng.integers(40, 100)) if velocity else 90
            notes.append((onset, base + int(rng.integers(-3, 4)), duration, loudness))
            onset += duration
    return sorted(notes)


def piece_of(nb: ModuleType, name: str, notes: list[Note]) -> object:
    """Return the notes as a piece of the notebook."""
    table = pd.DataFrame(notes, columns=["onset", "pitch", "duration", "velocity"])
    table = table.sort_values(["onset", "pitch", "duration", "velocity"], ignore_index=True)
    table["step"] = table.onset.diff().fillna(0.0)
    return nb.Piece(name, table[list(nb.COLUMNS)], tempo=80.0)


def chorale(
    nb: ModuleType, random_state: int, beats: int = 24, velocity: bool = False, name: str = ""
) -> object:
    """Return a random four-part piece."""
    notes = chorale_notes(random_state, beats, velocity)
    return piece_of(nb, name or f"piece{random_state}x", notes)


@dataclass
class Run:
    """One execution of the notebook; `notebook` is None if it ended in an error."""

    project: Path
    notebook: nbformat.NotebookNode | None
    errors: str = ""
    corpus: str = CORPUS
    random_state: int = 0
    changes: dict[str, object] = field(default_factory=dict)

    @property
    def outputs(self) -> Path:
        """Return the folder of what the run wrote."""
        return self.project / "outputs" / self.corpus


def make_project(
    folder: Path, source: Path = ROOT / "data" / CORPUS, files: int | None = SMOKE_FILES
) -> Path:
    """Return a project folder with a copy of the notebook and the first `files` of a corpus."""
    corpus = folder / "data" / source.name
    corpus.mkdir(parents=True)
    shutil.copy(NOTEBOOK, folder)
    for path in sorted(path for path in source.iterdir() if path.is_file())[:files]:
        shutil.copy(path, corpus)
    return folder


def run_notebook(
    project: Path, environment: dict[str, str] | None = None, /, **parameters: object
) -> Run:
    """Execute the notebook of `project` with nbconvert, started elsewhere, as papermill would.

    The parameters are set in a new cell after the one tagged `parameters`, and count alone; small
    settings are the default.
    """
    values = {"corpus": CORPUS, "random_state": 0, "project": ".", "changes": SMOKE} | parameters
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    tag = {"tags": ["injected-parameters"]}
    injected = nbformat.v4.new_code_cell(source, id=tag["tags"][0], metadata=tag)
    copy = read_notebook(project / NOTEBOOK.name)
    copy.cells = [cell for cell in copy.cells if cell.id != injected.id]
    place = next(i for i, cell in enumerate(copy.cells) if "parameters" in tags(cell))
    copy.cells.insert(place + 1, injected)
    nbformat.write(copy, project / NOTEBOOK.name)
    elsewhere = project.parent / f"started in {project.name}"
    elsewhere.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute"]
    command += [project / NOTEBOOK.name, "--output-dir", elsewhere, "--output", "executed.ipynb"]
    command += ["--ExecutePreprocessor.record_timing=False"]
    command += ["--ExecutePreprocessor.startup_timeout=600"]  # on a busy machine
    # not with the backend of the tests, so that figures are drawn as Jupyter draws them
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    inherited |= {"OMP_NUM_THREADS": "1"} | (environment or {})
    done = subprocess.run(command, cwd=elsewhere, env=inherited, capture_output=True, text=True)
    notebook = None if done.returncode else read_notebook(elsewhere / "executed.ipynb")
    errors = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
    run_of = {name: values[name] for name in ("corpus", "random_state", "changes")}
    return Run(project, notebook, errors, **run_of)


def small_project(folder: Path, corpus: str = CORPUS) -> Path:
    """Return a small project with what an older run left and one that was killed."""
    project = make_project(folder / "project")
    shutil.copytree(ROOT / "outputs" / "study", project / "outputs" / "study")
    for name in (corpus, f".{corpus}"):
        (project / "outputs" / name).mkdir()
        for file, content in OLD.items():
            (project / "outputs" / name / file).write_bytes(content)
    return project


def small_run(project: Path, environment: dict[str, str], /, **parameters: object) -> Run:
    """Return a small run of the project, which must end well."""
    done = run_notebook(project, environment, **({"changes": SMALL} | parameters))
    assert done.notebook is not None, done.errors[-3000:]
    return done


def tags(cell: nbformat.NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cells: list[nbformat.NotebookNode]) -> str:
    """Return what code cells show as text: prints, tables and the texts that stand for figures."""
    texts = []
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        texts += [output.get("text", ""), *output.get("traceback", [])]
        texts += [str(v) for kind, v in output.get("data", {}).items() if "image/" not in kind]
        texts.append(output.get("metadata", {}).get("image/png", {}).get("alt", ""))
    return "\n".join(texts)


def cell_text(notebook: nbformat.NotebookNode, name: str) -> str:
    """Return what the code cell of this id shows as text."""
    return shown([cell for cell in code_cells(notebook) if cell.id == name])


def first_page(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the code cells before the first section."""
    sections = (i for i, cell in enumerate(notebook.cells) if cell.source.startswith("## "))
    return [cell for cell in notebook.cells[: next(sections)] if cell.cell_type == "code"]


def not_committed() -> str:
    """Return why this folder does not hold the run that was committed, empty if it does."""
    changed = git("status", "--porcelain", "--untracked-files=no", "--", *PLACES)
    if changed is None or not tracked_files():
        return "git cannot tell whether these are the committed outputs"
    if changed:
        return f"not the committed state: {changed.splitlines()[0].strip()} and perhaps more"
    own = f"corpus {CORPUS}," in shown(code_cells(read_notebook()))
    return "" if own else f"the notebook was executed on another corpus than {CORPUS}"


@dataclass
class Finished:
    """What a finished run left and showed, and the data and settings that it was made of."""

    outputs: Path
    notebook: nbformat.NotebookNode
    config: object
    pieces: list
    split: dict[str, list]

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of the run."""
        return pd.read_csv(self.outputs / f"{name}.csv")

    def piece(self, nb: ModuleType, number: int, kind: str = "piece") -> object:
        """Return a piece, or its seed, as it stands in its file."""
        return nb.read_piece((self.outputs / f"{kind}_{number}.mid").read_bytes(), kind)

    def seeds(self) -> list[object]:
        """Return the openings that the table of the pieces names, as the test pieces have them."""
        table = self.table("pieces").query("kept")[["seed from", "first note"]]
        test = {(piece.name, piece.first): piece for piece in self.split["test"]}
        pieces = [test[key] for key in table.itertuples(index=False, name=None)]
        return [replace(p, notes=p.notes.head(self.config.seed_notes)) for p in pieces]


def finish(nb: ModuleType, run: Run) -> Finished:
    """Return a run with its corpus read and split again."""
    config = replace(nb.Config(), **run.changes)
    pieces, _ = nb.load_corpus(run.corpus, run.project / "data", config)
    pieces = nb.link_pieces(pieces, config)
    split = nb.split_pieces(pieces, config, run.random_state)
    return Finished(run.outputs, run.notebook, config, pieces, split)
