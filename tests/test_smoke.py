"""The whole notebook, executed as a smoke test: small training, full length of the pieces."""

import csv
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pretty_midi
import pytest
from notebook_tools import Run, code_cells, make_project, output_texts, run_notebook

PIECES = [f"piece_{number}" for number in (1, 2, 3)]
SEEDS = [f"seed_{number}.mid" for number in (1, 2, 3)]
TABLES = ["pieces.csv", "scores.csv", "training_log.csv"]
WRITTEN = sorted([f"{p}.mid" for p in PIECES] + [f"{p}.wav" for p in PIECES] + SEEDS + TABLES)
# refuses to look up or to call any machine but this one, and writes down who was asked for
OFFLINE = """
import os, socket

def refuse(address):
    host = address[0] if isinstance(address, tuple) else address
    if host not in ("127.0.0.1", "::1", "localhost", "", None) and not isinstance(host, bytes):
        with open(os.environ["OFFLINE_LOG"], "a") as log:
            print(host, file=log)
        raise OSError("the network is switched off")

class Socket(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            refuse(address)
        return super().connect(address)

    def connect_ex(self, address):
        if self.family != socket.AF_UNIX:
            refuse(address)
        return super().connect_ex(address)

look_up = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    refuse(host)
    return look_up(host, *rest, **named)

socket.socket, socket.getaddrinfo = Socket, getaddrinfo
"""


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment variables with which Python reaches no other machine."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "sitecustomize.py").write_text(OFFLINE)
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "")
    return proxies | {"PYTHONPATH": str(folder), "OFFLINE_LOG": str(folder / "log")}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, offline: dict[str, str]) -> Run:
    """Return a run without a network, started from another folder than that of the notebook."""
    project = make_project(tmp_path_factory.mktemp("first") / "project")
    return finished(run_notebook(project, environment=offline))


@pytest.fixture(scope="session")
def second_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a second run of the same, in a folder with another and more difficult name."""
    project = make_project(tmp_path_factory.mktemp("second") / "my project é")
    return finished(run_notebook(project))


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run with other parameters, of a copy of the notebook outside the project."""
    folder = tmp_path_factory.mktemp("third")
    project = make_project(folder / "project")
    parameters = {"random_state": 1, "project": str(project)}
    return finished(run_notebook(project, parameters, folder / "copies" / "run.ipynb"))


def finished(run: Run) -> Run:
    """Return the run if it went through to the end."""
    assert run.notebook is not None, run.errors[-3000:]
    return run


def shown(run: Run) -> dict[str, list]:
    """Return the outputs of each cell: texts, tables and figures."""
    return {cell.id: cell.outputs for cell in code_cells(run.notebook)}


def test_deliverables(run: Run) -> None:
    """A run leaves the announced files and nothing else."""
    assert sorted(path.name for path in run.outputs().iterdir()) == WRITTEN
    diagrams = run.project / "diagram"
    assert sorted(path.name for path in diagrams.iterdir()) == [
        "architecture.png",
        "architecture.svg",
    ]
    top = {path.name for path in run.project.iterdir()}
    assert top == {"notebook.ipynb", "data", "outputs", "diagram"}
    assert all(path.stat().st_size > 0 for path in run.project.rglob("*") if path.is_file())


def test_pieces_have_200_notes(run: Run, nb: ModuleType) -> None:
    """Each piece has exactly 200 notes, each seed 128, and each sound is as long as its notes."""
    for piece, seed in zip(PIECES, SEEDS, strict=True):
        midi = pretty_midi.PrettyMIDI(str(run.outputs() / f"{piece}.mid"))
        assert sum(len(part.notes) for part in midi.instruments) == 200
        played = pretty_midi.PrettyMIDI(str(run.outputs() / seed))
        assert sum(len(part.notes) for part in played.instruments) == nb.Config().seed_notes
        samples, rate = nb.read_samples(run.outputs() / f"{piece}.wav")
        assert len(samples) / rate >= midi.get_end_time()
        assert nb.SILENCE < np.abs(samples).max() < 1


def test_tables(run: Run) -> None:
    """The tables hold a row an epoch, a row a score and a row a piece."""
    rows = {}
    for name in TABLES:
        with (run.outputs() / name).open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows["training_log.csv"]] == ["1"]
    assert [row["piece"] for row in rows["pieces.csv"]] == PIECES
    assert {row["head"] for row in rows["scores.csv"]} == {"pitch", "step", "duration"}


def test_runs_print_no_warnings(run: Run) -> None:
    """A run leaves nothing on the error stream, and counts its cells from 1."""
    cells = code_cells(run.notebook)
    assert not [cell.id for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_headline_is_filled_in(run: Run) -> None:
    """The sentence at the beginning is the one that the last section writes."""
    first = [text for cell in code_cells(run.notebook)[:2] for text in output_texts(cell)]
    assert any(text.startswith("**Result.**") for text in first)


def test_reproducible_files(run: Run, second_run: Run) -> None:
    """Two runs write the same files byte for byte."""
    for folder in ("outputs", "diagram"):
        for path in sorted((run.project / folder).rglob("*")):
            if path.is_file():
                again = second_run.project / path.relative_to(run.project)
                assert path.read_bytes() == again.read_bytes(), path.name


def test_reproducible_outputs(run: Run, second_run: Run) -> None:
    """Two runs in different places show the same, figures included."""
    first, second = shown(run), shown(second_run)
    assert [name for name in first if first[name] != second[name]] == []


def test_random_state_changes_the_pieces(run: Run, other_run: Run) -> None:
    """Another random state, set as papermill does, makes other pieces."""
    texts = [text for cell in code_cells(other_run.notebook) for text in output_texts(cell)]
    assert any("random state 1" in text for text in texts)
    for piece in PIECES:
        path = f"{piece}.mid"
        assert (run.outputs() / path).read_bytes() != (other_run.outputs() / path).read_bytes()
    states = [pieces_column(r, "random state") for r in (run, other_run)]
    assert not set(states[0]) & set(states[1])


def pieces_column(run: Run, name: str) -> list[str]:
    """Return a column of the table of pieces."""
    with (run.outputs() / "pieces.csv").open(newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_project_parameter(other_run: Run) -> None:
    """With `project`, a copy of the notebook elsewhere writes into the project."""
    assert sorted(path.name for path in other_run.outputs().iterdir()) == WRITTEN
    copies = other_run.project.parent / "copies"
    assert [path.name for path in copies.iterdir()] == ["run.ipynb"]


def test_offline(run: Run, offline: dict[str, str]) -> None:
    """The run asked for no other machine; the guard that tells so works."""
    log = Path(offline["OFFLINE_LOG"])
    assert run.notebook is not None
    assert not log.exists(), log.read_text()
    call = "import urllib.request as r; r.urlopen('http://192.0.2.1/')"
    done = subprocess.run([sys.executable, "-c", call], env=offline, capture_output=True, text=True)
    assert "the network is switched off" in done.stderr
    assert log.read_text().split() == ["192.0.2.1"]
    log.unlink()
