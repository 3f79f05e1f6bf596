"""What the tests share: the notebook's definitions, toy music, and a way to run a copy of it."""

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import mido
import nbformat
import numpy as np
import pandas as pd
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "notebook.ipynb"
ALIASES = {"Batch", "Pair", "State", "Counts", "Losses"}
SMOKE = {"epochs": 1, "hidden_size": 16, "embedding_size": 8, "head_size": 16}
SMALL = SMOKE | {"epochs": 2, "held_out": 0.2}
OLD = {"piece_1.mid": b"old", "piece_4.mid": b"old"}  # what an older run left
SMOKE_FILES = 24  # of the bundled corpus, in a project for tests
# ids of cells that were written for this notebook; Jupyter makes others, as for a cell added here
OUR_ID = re.compile(r"(?![0-9a-f]{8}(-|$))[a-z]+(-[a-z0-9]+)*")
TICKS = 480  # a beat, in the MIDI files that the tests write

Note = tuple[float, int, float, int]  # onset and duration in beats, between them the pitch


def listed_sums() -> dict[str, str]:
    """Return the SHA-256 of each file of the course dataset, by composer and name."""
    text = (ROOT / "data" / "course_dataset.sha256").read_text(encoding="utf-8")
    return {name: digest for digest, name in (line.split("  ", 1) for line in text.splitlines())}


def course_dataset() -> Path:
    """Return the first folder that has all composers of the course dataset, else the last place."""
    composers = {name.split("/")[0] for name in listed_sums()}
    places = [ROOT / "data" / "classical-music-midi", ROOT / "data"]
    places.append(ROOT.parent / "shared" / "dataset" / "classical-music-midi")
    if "COURSE_DATASET" in os.environ:
        places.insert(0, Path(os.environ["COURSE_DATASET"]))
    whole = (place for place in places if all((place / name).is_dir() for name in composers))
    return next(whole, places[-1])


DATASET = course_dataset()


def git(*words: str) -> str | None:
    """Return what git prints about this folder, or None where it cannot tell."""
    command = ["git", *words]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace"
        )
    except OSError:
        return None
    return None if done.returncode else done.stdout


def tracked_files() -> list[str]:
    """Return the names of the files that git tracks here, none where it cannot tell."""
    names = (git("ls-files", "-z") or "").split("\0")[:-1]
    return names if NOTEBOOK.name in names else []


def read_notebook(path: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """Return the notebook as it stands in the file."""
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def is_definition(node: ast.stmt) -> bool:
    """Return whether the statement only gives a name to something that does not change."""
    if isinstance(node, ast.Assign):
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        return bool(names) and all(name.isupper() or name in ALIASES for name in names)
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    return isinstance(node, kinds)


def definitions() -> ModuleType:
    """Return a module with the notebook's imports, functions, classes and constants."""
    module = ModuleType("notebook_definitions")
    # dataclasses look their module up by its name
    sys.modules[module.__name__] = module
    for cell in read_notebook().cells:
        if cell.cell_type == "code":
            # a magic command that somebody added becomes a call
            tree = ast.parse(TransformerManager().transform_cell(cell.source))
            tree.body = [node for node in tree.body if is_definition(node)]
            exec(compile(tree, f"<cell {cell.id}>", "exec"), module.__dict__)
    return module


def small_config(nb: ModuleType, **changes: object) -> object:
    """Return a configuration small enough for toy music."""
    small = {
        "hidden_size": 16,
        "embedding_size": 8,
        "head_size": 16,
        "window": 16,
        "batch_size": 8,
        "epochs": 2,
        "seed_notes": 16,
        "piece_notes": 20,
    }
    return replace(nb.Config(), **(small | changes))


def chorale_notes(random_state: int, beats: int = 24, velocity: bool = False) -> list[Note]:
    """Return random notes in four voices that never meet on a pitch."""
    rng = np.random.default_rng(random_state)
    notes = []
    for base in (48, 55, 62, 69):
        onset = 0.0
        while onset < beats:
            duration = float(rng.choice([0.5, 1, 1, 2]))
            loudness = int(rng.integers(40, 100)) if velocity else 90
            notes.append((onset, base + int(rng.integers(-3, 4)), duration, loudness))
            onset += duration
    return sorted(notes)


def piece_of(nb: ModuleType, name: str, notes: list[Note]) -> object:
    """Return the notes as a piece of the notebook, linked with nothing but itself."""
    table = pd.DataFrame(notes, columns=["onset", "pitch", "duration", "velocity"])
    table = table.sort_values(["onset", "pitch", "duration", "velocity"], ignore_index=True)
    table["step"] = table.onset.diff().fillna(0.0)
    return nb.Piece(name, table[list(nb.COLUMNS)], tempo=80.0, linked=frozenset([name]))


def chorale(
    nb: ModuleType, random_state: int, beats: int = 24, velocity: bool = False, name: str = ""
) -> object:
    """Return a random four-part piece."""
    notes = chorale_notes(random_state, beats, velocity)
    return piece_of(nb, name or f"piece{random_state}x", notes)


def midi_bytes(
    parts: list[list[Note]],
    tempos: tuple[tuple[float, float], ...] = ((0, 80),),
    programs: tuple[int, ...] = (),
    drums: bool = False,
) -> bytes:
    """Return a MIDI file with one track a part and a tempo map of (beat, beats per minute)."""
    midi = mido.MidiFile(ticks_per_beat=TICKS)
    tempo_events = [
        (round(beat * TICKS), 0, mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(bpm)))
        for beat, bpm in tempos
    ]
    midi.tracks.append(track_of(tempo_events))
    for number, notes in enumerate(parts):
        channel = 9 if drums else number
        program = programs[number] if programs else 0
        events = [(0, 0, mido.Message("program_change", channel=channel, program=program))]
        for onset, pitch, duration, velocity in notes:
            on = mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)
            off = mido.Message("note_off", channel=channel, note=pitch)
            end = round((onset + duration) * TICKS)
            # a note ends before the next one begins, but never before it began itself
            events += [(round(onset * TICKS), 2, on), (end, 1 if duration else 3, off)]
        midi.tracks.append(track_of(events))
    file = io.BytesIO()
    midi.save(file=file)
    return file.getvalue()


def track_of(events: list[tuple[int, int, mido.Message]]) -> mido.MidiTrack:
    """Return the events, given with absolute ticks and a rank among equals, as a track."""
    track, now = mido.MidiTrack(), 0
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=tick - now))
        now = tick
    return track


@dataclass
class Run:
    """One execution of a copy of the notebook; `notebook` is None if it ended in an error."""

    project: Path
    notebook: nbformat.NotebookNode | None
    errors: str

    def outputs(self, corpus: str = "bach_chorales") -> Path:
        """Return the folder of what the run wrote."""
        return self.project / "outputs" / corpus

    def last_error(self) -> str:
        """Return the kind and the message of the error that ended the run."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        starts = [i for i, line in enumerate(lines) if line.split(":")[0].endswith("Error")]
        return "\n".join(lines[starts[-1] :]) if starts else ""


def make_project(
    folder: Path, source: Path = ROOT / "data" / "bach_chorales", files: int | None = SMOKE_FILES
) -> Path:
    """Return a project folder with a copy of the notebook and the first `files` of a corpus."""
    corpus = folder / "data" / source.name
    corpus.mkdir(parents=True)
    (folder / NOTEBOOK.name).write_bytes(NOTEBOOK.read_bytes())
    for path in sorted(path for path in source.iterdir() if path.is_file())[:files]:
        (corpus / path.name).write_bytes(path.read_bytes())
    return folder


def run_notebook(
    project: Path,
    parameters: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
) -> Run:
    """Execute the notebook of `project` with nbconvert and small settings, started elsewhere.

    `parameters` are set as papermill does, in a new cell after the one tagged `parameters`, in
    place of a cell that it injected before. What stands in either cell here does not count.
    """
    copy = read_notebook(project / NOTEBOOK.name)
    copy.cells = [cell for cell in copy.cells if "injected-parameters" not in tags(cell)]
    tagged = [i for i, cell in enumerate(copy.cells) if "parameters" in tags(cell)]
    usual = {"corpus": "bach_chorales", "random_state": 0, "project": ".", "changes": SMOKE}
    values = usual | (parameters or {})
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    injected = nbformat.v4.new_code_cell(source, id="injected-parameters")
    injected.metadata["tags"] = ["injected-parameters"]
    copy.cells.insert(tagged[0] + 1, injected)
    nbformat.write(copy, project / NOTEBOOK.name)
    elsewhere = project.parent / f"started in {project.name}"
    elsewhere.mkdir(exist_ok=True)
    executed = elsewhere / "executed.ipynb"
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute"]
    command += [str(project / NOTEBOOK.name), "--output-dir", str(elsewhere)]
    command += ["--output", executed.name, "--ExecutePreprocessor.record_timing=False"]
    # a busy machine may need long to start a kernel
    command += ["--ExecutePreprocessor.startup_timeout=600"]
    # not with the backend of the tests, so that figures are drawn as Jupyter draws them
    inherited = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    done = subprocess.run(
        command,
        cwd=elsewhere,
        env=inherited | {"OMP_NUM_THREADS": "1"} | (environment or {}),
        capture_output=True,
        text=True,
    )
    errors = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr)
    return Run(project, None if done.returncode else read_notebook(executed), errors)


def small_project(folder: Path, corpus: str = "bach_chorales") -> Path:
    """Return a small project with what an older run left and one that was killed."""
    project = make_project(folder / "project")
    shutil.copytree(ROOT / "outputs" / "study", project / "outputs" / "study")
    for name in (corpus, f".{corpus}"):
        (project / "outputs" / name).mkdir()
        for file, content in OLD.items():
            (project / "outputs" / name / file).write_bytes(content)
    return project


def small_run(project: Path, environment: dict[str, str], **parameters: object) -> Run:
    """Return a small run of the project, which must end well."""
    done = run_notebook(project, {"changes": SMALL} | parameters, environment)
    assert done.notebook is not None, done.errors[-3000:]
    return done


def tags(cell: nbformat.NotebookNode) -> list[str]:
    """Return the tags of a cell."""
    return cell.metadata.get("tags", [])


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def output_texts(cell: nbformat.NotebookNode) -> Iterator[str]:
    """Yield the texts among the outputs of a code cell, pictures left out."""
    for output in cell.get("outputs", []):
        yield from filter(None, [output.get("text"), *output.get("traceback", [])])
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield data if isinstance(data, str) else str(data)


def cell_text(notebook: nbformat.NotebookNode, name: str) -> str:
    """Return the texts among the outputs of the code cell of this id."""
    cells = [cell for cell in code_cells(notebook) if cell.id == name]
    return "\n".join(text for cell in cells for text in output_texts(cell))


def code_digest(notebook: nbformat.NotebookNode) -> str:
    """Return the digest of the code, parameters left out, that a run prints."""
    sources = [cell.source for cell in code_cells(notebook) if not tags(cell)]
    return f"{zlib.crc32(chr(10).join(sources).encode()):08x}"


def shows_scores(notebook: nbformat.NotebookNode, scores: pd.DataFrame) -> bool:
    """Return whether the first page gives the model's scores of every head as the table does."""
    result = cell_text(notebook, "headline").partition("**Result.**")[2]
    said = re.findall(r"(\w+) (\d+\.\d+)(?: nats)? \(strongest rule", result)
    mine = scores[scores.score == "model"]
    same = [head for head, _ in said] == mine["head"].tolist()
    # the table holds six decimals, the page four, so that the last may be rounded otherwise
    return same and all(abs(mine.value - [float(value) for _, value in said]) < 1e-4)


@dataclass
class Finished:
    """What a finished run left and showed, and the data and settings that it was made of."""

    outputs: Path
    notebook: nbformat.NotebookNode
    config: object
    pieces: list
    split: dict[str, list]
    training: list[np.ndarray]

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of the run."""
        return pd.read_csv(self.outputs / f"{name}.csv")

    def seeds(self) -> list[object]:
        """Return the openings that the table of the pieces names, as the test pieces have them."""
        table, length = self.table("pieces"), self.config.seed_notes
        named = table[table.kept][["seed from", "first note"]]
        test = {(piece.name, piece.first): piece for piece in self.split["test"]}
        pieces = [test.get(key) for key in named.itertuples(index=False, name=None)]
        assert None not in pieces, "a seed is not from a test piece"
        return [replace(piece, notes=piece.notes.head(length)) for piece in pieces]


def finish(nb: ModuleType, project: Path, notebook: nbformat.NotebookNode) -> Finished | str:
    """Return what an executed notebook left in a project, or why that cannot be said."""
    text = cell_text(notebook, "config-run")
    said = re.search(r"corpus (.+), random state (-?\d+), changes (.+)", text)
    if not said or f"code {code_digest(read_notebook())}" not in text.splitlines():
        return "the notebook was not executed as it stands in this folder"
    outputs, changes = project / "outputs" / said[1], said[3].replace("none", "{}")
    config = replace(nb.Config(), **ast.literal_eval(changes))
    try:
        pieces, files = nb.load_corpus(said[1], project / "data", config)
    except ValueError as error:
        return str(error)
    read = f"{len(pieces)} of {len(files)} files, {files.notes.sum():,} notes"
    if read not in cell_text(notebook, "load-corpus"):
        return f"{said[1]} has changed since the notebook was executed"
    pieces = nb.link_pieces(pieces, config)
    split = nb.split_pieces(pieces, config, int(said[2]))
    training = [piece.notes.pitch.to_numpy() for piece in split["training"]]
    run = Finished(outputs, notebook, config, pieces, split, training)
    if not (outputs / "scores.csv").is_file() or not shows_scores(notebook, run.table("scores")):
        return f"outputs/{said[1]} is not of the run that the notebook shows"
    return run
