"""Fixtures for all tests."""

import os
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

# before matplotlib is imported: there may be no screen
os.environ.setdefault("MPLBACKEND", "Agg")

import nbformat
import pytest
import toys
from notebook_tools import (
    DATASET,
    NOTEBOOK,
    ROOT,
    Finished,
    Run,
    chorale,
    definitions,
    finish,
    not_committed,
    read_notebook,
    small_project,
    small_run,
)
from study_tools import RANDOM_STATE

# switches off the network, but not this machine
OFFLINE = """
import sys

def refuse(event, words):
    if event == "socket.connect" and isinstance(words[1], tuple):
        if words[1][0] not in ("127.0.0.1", "::1", "localhost"):
            raise SystemExit(f"asked for {words[1]}")

sys.addaudithook(refuse)
"""


@pytest.fixture(scope="session")
def nb() -> ModuleType:
    """Return the notebook's definitions."""
    return definitions()


@pytest.fixture(scope="session")
def toy(nb: ModuleType) -> SimpleNamespace:
    """Return random pieces, encoded."""
    return toys.toy_music(nb)


@pytest.fixture(scope="session")
def dataset() -> Path:
    """Return the course dataset, one folder a composer."""
    if not DATASET.is_dir():
        pytest.skip("the course dataset is not here; COURSE_DATASET may name its folder")
    return DATASET


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment variables with which Python reaches no other machine."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "sitecustomize.py").write_text(OFFLINE)
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "")
    return proxies | {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, offline: dict[str, str]) -> Run:
    """Return a run on some chorales without a network."""
    return small_run(small_project(tmp_path_factory.mktemp("a")), offline)


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory, nb: ModuleType) -> Run:
    """Return a run on another corpus, four works in movements, with velocities and state 1.

    Its last cell is run twice, as a reader does who clicks once more, and no study was made. A $ in
    the names of the files is no formula.
    """
    project = small_project(tmp_path_factory.mktemp("b"), "mozart")
    shutil.rmtree(project / "outputs" / "study")
    (project / "data" / "mozart").mkdir()
    for i in range(16):
        midi = nb.midi_bytes(chorale(nb, i, beats=80, velocity=True))
        (project / "data" / "mozart" / f"m$z_$_{i // 4}_{i % 4 + 1}.mid").write_bytes(midi)
    notebook = read_notebook()
    notebook.cells.append(nbformat.v4.new_code_cell(notebook.cells[-1].source, id="again"))
    nbformat.write(notebook, project / NOTEBOOK.name)
    return small_run(project, {}, corpus="mozart", random_state=1)


@pytest.fixture(scope="session")
def committed() -> Run:
    """Return the run that is committed here."""
    notebook = read_notebook()
    if reason := not_committed():
        pytest.skip(reason)
    return Run(ROOT, notebook, random_state=RANDOM_STATE)


@pytest.fixture(scope="session", params=["run", "other_run", "committed"])
def finished(request: pytest.FixtureRequest, nb: ModuleType) -> Finished:
    """Return a small run or the committed one, its corpus read and split again."""
    return finish(nb, request.getfixturevalue(request.param))
