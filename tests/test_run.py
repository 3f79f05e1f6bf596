"""What must hold for any run: everything is computed again from the files that it left.

The checks are made of a small run of the notebook in a copy of the project and, where they are
there, of the outputs in this folder, by the parameters that stand in its notebook.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pretty_midi
import pytest
from notebook_tools import (
    NOTEBOOK,
    ROOT,
    SMOKE,
    Run,
    code_cells,
    make_project,
    output_texts,
    read_notebook,
    run_notebook,
    tags,
)

NUMBERS = (1, 2, 3)
TABLES = ["pieces.csv", "scores.csv", "training_log.csv"]
WRITTEN = sorted(
    [
        f"{kind}_{i}.{s}"
        for kind, s in (("piece", "mid"), ("piece", "wav"), ("seed", "mid"))
        for i in NUMBERS
    ]
    + TABLES
)
# refuses to look up or to call any machine but this one
OFFLINE = """
import socket

def refuse(address):
    host = address[0] if isinstance(address, tuple) else address
    if host not in ("127.0.0.1", "::1", "localhost", "", None) and not isinstance(host, bytes):
        raise SystemExit(f"asked for {host}: the network is switched off")

class Socket(socket.socket):
    def connect(self, address):
        if self.family != socket.AF_UNIX:
            refuse(address)
        return super().connect(address)

look_up = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    refuse(host)
    return look_up(host, *rest, **named)

socket.socket, socket.getaddrinfo = Socket, getaddrinfo
"""


@dataclass
class Finished:
    """What a finished run left, and the data and settings that it was made of."""

    outputs: Path
    pieces: list
    split: dict[str, list]
    config: object
    random_state: int


def parameters() -> dict[str, object]:
    """Return the parameters that stand in the notebook."""
    cell = next(cell for cell in read_notebook().cells if "parameters" in tags(cell))
    body = ast.parse(cell.source).body
    return {node.targets[0].id: ast.literal_eval(node.value) for node in body}


def of_run(nb: ModuleType, outputs: Path, data: Path, changes: dict, random_state: int) -> Finished:
    """Return a finished run with its corpus read and split again."""
    config = replace(nb.Config(), **changes)
    pieces = nb.find_works(nb.load_corpus(outputs.name, data, config)[0], config)
    split = nb.split_pieces(pieces, config, random_state)
    return Finished(outputs, pieces, split, config, random_state)


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment variables with which Python reaches no other machine."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "sitecustomize.py").write_text(OFFLINE)
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "")
    return proxies | {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, offline: dict[str, str]) -> Run:
    """Return a run without a network, over outputs of an older one."""
    project = make_project(tmp_path_factory.mktemp("first") / "project")
    old = project / "outputs" / "bach_chorales"
    old.mkdir(parents=True)
    (old / "piece_4.mid").write_text("of an older run")
    done = run_notebook(project, environment=offline)
    assert done.notebook is not None, done.errors[-3000:]
    return done


@pytest.fixture(scope="session", params=["small run", "this folder"])
def finished(request: pytest.FixtureRequest, nb: ModuleType) -> Finished:
    """Return the small run, or what stands in the outputs of this folder."""
    if request.param == "small run":
        made = request.getfixturevalue("run")
        return of_run(nb, made.outputs(), made.project / "data", SMOKE, 0)
    chosen = parameters()
    outputs = ROOT / "outputs" / chosen["corpus"]
    if not (outputs / "pieces.csv").is_file():
        pytest.skip(f"there is no run in outputs/{chosen['corpus']}")
    return of_run(nb, outputs, ROOT / "data", chosen["changes"], chosen["random_state"])


def read(nb: ModuleType, path: Path, config: object) -> object:
    """Return the piece in a file."""
    return nb.read_piece(path.read_bytes(), path.name, config)


def training_pitches(finished: Finished) -> list[np.ndarray]:
    """Return the pitches of the training pieces."""
    return [piece.notes.pitch.to_numpy() for piece in finished.split["training"]]


def test_deliverables(finished: Finished) -> None:
    """A run leaves the announced files and nothing else."""
    assert sorted(path.name for path in finished.outputs.iterdir()) == WRITTEN
    assert not finished.outputs.with_name(f".{finished.outputs.name}").exists()
    assert all(path.stat().st_size > 0 for path in finished.outputs.iterdir())


def test_lengths(nb: ModuleType, finished: Finished) -> None:
    """Each piece has exactly 200 notes, its seed 128, and its sound is as long as its notes."""
    for i in NUMBERS:
        assert len(read(nb, finished.outputs / f"piece_{i}.mid", finished.config)) == 200
        assert len(read(nb, finished.outputs / f"seed_{i}.mid", finished.config)) == 128
        samples = nb.samples_of((finished.outputs / f"piece_{i}.wav").read_bytes())
        end = pretty_midi.PrettyMIDI(str(finished.outputs / f"piece_{i}.mid")).get_end_time()
        assert len(samples) / nb.RATE == pytest.approx(end + 1, abs=0.1)
        assert nb.SILENCE < np.abs(samples).max() < 1


def test_seeds_are_openings_of_test_pieces(nb: ModuleType, finished: Finished) -> None:
    """Each seed is the opening of a test piece, of works of their own where there are three."""
    table = pd.read_csv(finished.outputs / "pieces.csv", keep_default_na=False)
    seeds = table[table.kind == "seed"]
    by_name = {piece.name: piece for piece in finished.split["test"]}
    for i, name in zip(NUMBERS, seeds["seed from"], strict=True):
        seed = read(nb, finished.outputs / f"seed_{i}.mid", finished.config).notes
        real = by_name[name].notes.head(len(seed))
        assert (seed.pitch.to_numpy() == real.pitch).all()
        np.testing.assert_allclose(seed.onset, real.onset - real.onset.iloc[0], atol=nb.HALF_TICK)
        np.testing.assert_allclose(seed.duration, real.duration, atol=2 * nb.HALF_TICK)
    works = len({piece.work for piece in finished.split["test"]})
    assert len({by_name[name].work for name in seeds["seed from"]}) == min(3, works)


def test_figures_are_those_of_the_files(nb: ModuleType, finished: Finished) -> None:
    """The figures of kept attempts and of seeds are those of the files as read back."""
    table = pd.read_csv(finished.outputs / "pieces.csv", keep_default_na=False)
    training = training_pitches(finished)
    kept = table[table.kept.astype(str) == "True"]
    assert kept.piece.tolist() == list(NUMBERS)
    for rows, kind in ((kept, "piece"), (table[table.kind == "seed"], "seed")):
        notes = [
            read(nb, finished.outputs / f"{kind}_{i}.mid", finished.config).notes for i in NUMBERS
        ]
        figures = nb.figures_of(notes, training)
        written = rows[figures.columns].astype(float).to_numpy()
        np.testing.assert_allclose(written, figures.to_numpy(), atol=1e-4)


def test_choice_looks_at_validation_only(nb: ModuleType, finished: Finished) -> None:
    """What failed is what lies outside the validation excerpts; the best attempt is kept."""
    table = pd.read_csv(finished.outputs / "pieces.csv", keep_default_na=False)
    parts = nb.excerpts(finished.split["validation"], finished.config.piece_notes)
    real = nb.figures_of([part.notes for part in parts], training_pitches(finished))
    attempts = table[table.kind == "attempt"]
    assert len(attempts) == 3 * finished.config.attempts
    for _, row in attempts.iterrows():
        # the table is rounded, and so is the range
        failed = nb.failed_checks(row[real.columns].astype(float), real.round(4))
        assert [name for name in row.failed.split(", ") if name] == failed
    for _, mine in attempts.groupby("piece"):
        count = mine.failed.map(lambda names: len([n for n in names.split(", ") if n]))
        order = sorted(zip(count, mine["unlike the seed"].astype(float), mine.index, strict=True))
        assert [str(kept) for kept in mine.kept].index("True") == list(mine.index).index(
            order[0][2]
        )


def test_tables_hold_what_they_say(nb: ModuleType, finished: Finished) -> None:
    """An epoch a row; scores of every head, the model's between the ends of their intervals."""
    log = pd.read_csv(finished.outputs / "training_log.csv")
    assert log.epoch.tolist() == list(range(1, len(log) + 1))
    total = log.filter(regex="^validation_(?!total)").sum(axis=1)
    np.testing.assert_allclose(log.validation_total, total, atol=1e-5)
    scores = pd.read_csv(finished.outputs / "scores.csv").set_index(["head", "score"])
    assert (scores.low <= scores.value).all() and (scores.value <= scores.high).all()
    for head, mine in scores.groupby(level="head"):
        rules = mine.droplevel("head").value
        gain = rules[rules.index.str.startswith("gain")].iloc[0]
        best = rules[~rules.index.str.contains("model|gain")].min()
        assert gain == pytest.approx(best - rules["model"], abs=1e-5), head


def test_baselines_are_of_the_test_notes(nb: ModuleType, finished: Finished) -> None:
    """The scores of the rules that need no network come out again."""
    scores = pd.read_csv(finished.outputs / "scores.csv").set_index(["head", "score"]).value
    test = [piece.notes for piece in finished.split["test"]]
    ngrams = nb.NGrams(training_pitches(finished), max(nb.ORDERS))
    name = next(n for n in scores["pitch"].index if n.endswith("and memory"))
    pitches = [notes.pitch.to_numpy() for notes in test]
    nats = [ngrams.nats(p, int(name[0]), nb.MEMORY) for p in pitches]
    assert scores["pitch", name] == pytest.approx(np.concatenate(nats).mean(), abs=1e-5)
    training = [piece.notes for piece in finished.split["training"]]
    usual = np.median(np.concatenate([nb.polyphony(notes) for notes in training]))
    off = np.concatenate([np.abs(notes.step - nb.step_rule(notes, usual)) for notes in test])
    assert scores["step", "rule of the sounding notes"] == pytest.approx(off.mean(), abs=1e-5)


# The small run


def test_top_of_the_project(run: Run) -> None:
    """Nothing is left beside what is announced."""
    assert {path.name for path in run.project.iterdir()} == {
        "notebook.ipynb",
        "data",
        "outputs",
        "diagram",
    }
    assert [path.name for path in (run.project / "outputs").iterdir()] == ["bach_chorales"]
    names = {path.name for path in (run.project / "diagram").iterdir()}
    assert names == {"architecture.png", "architecture.svg"}


def test_no_warnings(run: Run) -> None:
    """A run leaves nothing on the error stream, and counts its cells from 1."""
    cells = code_cells(run.notebook)
    assert not [cell.id for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_first_page_is_filled_in(run: Run) -> None:
    """The first page holds the result, players with their sound, the scores and the diagram."""
    cell = next(cell for cell in code_cells(run.notebook) if cell.id == "headline")
    shown = " ".join(output_texts(cell))
    assert "**Result.**" in shown and "Written at the end" not in shown
    assert shown.count("<audio controls src='data:audio/") == 3
    assert "and memory" in shown
    assert any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_same_again(run: Run, tmp_path: Path, nb: ModuleType) -> None:
    """A second run elsewhere writes the same files and shows the same, byte for byte."""
    project = make_project(tmp_path / "my project é")
    again = run_notebook(project)
    assert again.notebook is not None, again.errors[-3000:]
    for folder in ("outputs", "diagram"):
        for path in sorted((run.project / folder).rglob("*.*")):
            other = project / path.relative_to(run.project)
            assert path.read_bytes() == other.read_bytes(), path.name
    for mine, other in zip(code_cells(run.notebook), code_cells(again.notebook), strict=True):
        assert mine.outputs == other.outputs, mine.id


def test_old_results_survive_a_failure(tmp_path: Path) -> None:
    """A run that ends in an error leaves the results of the one before; `project` is obeyed."""
    project = make_project(tmp_path / "project", files=8)
    old = project / "outputs" / "bach_chorales" / "piece_1.mid"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"old")
    run = run_notebook(project, {"changes": {"piece_notes": 9999}, "project": str(project)})
    assert run.notebook is None
    assert "ValueError" in run.last_error() and "lower `piece_notes`" in run.last_error()
    assert old.read_bytes() == b"old"


def test_offline_guard(offline: dict[str, str]) -> None:
    """The guard under which the small run was made refuses other machines."""
    call = "import urllib.request as r; r.urlopen('http://192.0.2.1/')"
    done = subprocess.run([sys.executable, "-c", call], env=offline, capture_output=True, text=True)
    assert "the network is switched off" in done.stderr


def test_test_pieces_are_not_looked_at_early() -> None:
    """Before their scores nothing is computed of the test pieces but their encoding and lengths."""
    early = []
    for cell in code_cells(read_notebook(NOTEBOOK)):
        if cell.id == "scores":
            break
        tree = ast.parse(cell.source)
        kinds = (ast.FunctionDef, ast.ClassDef)
        statements = [node for node in tree.body if not isinstance(node, kinds)]
        words = [
            n.value for node in statements for n in ast.walk(node) if isinstance(n, ast.Constant)
        ]
        if "test" in words:
            early.append(cell.id)
    assert early == ["split-run"]
