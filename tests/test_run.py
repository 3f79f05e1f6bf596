"""What must hold for any run: everything is computed again from the files that it left.

The checks are made of a small run of the notebook in a copy of the project and, where they are
there, of the outputs in this folder, by the parameters that stand in its notebook.
"""

import ast
import re
import shutil
import subprocess
import sys
from contextlib import suppress
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
TABLES = {"pieces.csv", "scores.csv", "training_log.csv"}
FILES = ("piece_{}.mid", "piece_{}.wav", "seed_{}.mid")
WRITTEN = TABLES | {name.format(number) for name in FILES for number in NUMBERS}
# refuses to call any machine but this one
OFFLINE = """
import socket

class Socket(socket.socket):
    def connect(self, address):
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise SystemExit(f"asked for {address}: the network is switched off")
        return super().connect(address)

socket.socket = Socket
"""


@dataclass
class Finished:
    """What a finished run left, and the data and settings that it was made of."""

    outputs: Path
    split: dict[str, list]
    training: list[np.ndarray]
    config: object

    def table(self, name: str) -> pd.DataFrame:
        """Return a table of the run."""
        return pd.read_csv(self.outputs / f"{name}.csv")

    def notes(self, nb: ModuleType, name: str) -> pd.DataFrame:
        """Return the notes in a MIDI file of the run."""
        return nb.read_piece((self.outputs / name).read_bytes(), name, self.config).notes


def project_with_studies(folder: Path, **options: object) -> Path:
    """Return a copy of the project with the tables of the studies, which the notebook shows."""
    project = make_project(folder, **options)
    shutil.copytree(ROOT / "outputs/study", project / "outputs/study", dirs_exist_ok=True)
    return project


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
    project = project_with_studies(tmp_path_factory.mktemp("first") / "project")
    old = project / "outputs" / "bach_chorales"
    old.mkdir()
    (old / "piece_4.mid").write_text("of an older run")
    done = run_notebook(project, environment=offline)
    assert done.notebook is not None, done.errors[-3000:]
    return done


@pytest.fixture(scope="session", params=["small run", "this folder"])
def finished(request: pytest.FixtureRequest, nb: ModuleType) -> Finished:
    """Return the small run or the one in the outputs of this folder, its corpus split again."""
    cell = next(cell for cell in read_notebook().cells if "parameters" in tags(cell))
    body = ast.parse(cell.source).body
    chosen = {node.targets[0].id: ast.literal_eval(node.value) for node in body}
    project = ROOT
    if request.param == "small run":
        project, chosen["changes"] = request.getfixturevalue("run").project, SMOKE
    outputs = project / "outputs" / chosen["corpus"]
    if not (outputs / "pieces.csv").is_file():
        pytest.skip(f"there is no run in outputs/{chosen['corpus']}")
    config = replace(nb.Config(), **chosen["changes"])
    pieces = nb.link_pieces(nb.load_corpus(outputs.name, project / "data", config)[0], config)
    split = nb.split_pieces(pieces, config, chosen["random_state"])
    training = [piece.notes.pitch.to_numpy() for piece in split["training"]]
    return Finished(outputs, split, training, config)


def test_deliverables(nb: ModuleType, finished: Finished) -> None:
    """A run leaves the announced files: 200 notes, seeds of 128, and sound as long as the notes."""
    assert {path.name for path in finished.outputs.iterdir()} == WRITTEN
    assert not list(finished.outputs.parent.glob(".*"))
    for i in NUMBERS:
        assert len(finished.notes(nb, f"piece_{i}.mid")) == 200
        assert len(finished.notes(nb, f"seed_{i}.mid")) == 128
        samples = nb.samples_of((finished.outputs / f"piece_{i}.wav").read_bytes())
        end = pretty_midi.PrettyMIDI(str(finished.outputs / f"piece_{i}.mid")).get_end_time()
        assert len(samples) / nb.RATE == pytest.approx(end + 1, abs=0.1)
        assert np.abs(samples).max() == pytest.approx(0.9, abs=1e-3)


def test_seeds_are_openings_of_test_pieces(nb: ModuleType, finished: Finished) -> None:
    """Each seed is the opening of a test piece, of works of their own where there are three.

    It is written at the tempo of its file, and so is the piece that continues it.
    """
    table = finished.table("pieces")
    names = table["seed from"][table.kind == "seed"].tolist()
    long = {piece.name: piece for piece in finished.split["test"] if len(piece) >= 128}
    for i, name in zip(NUMBERS, names, strict=True):
        real = long[name].notes.head(128)
        real = real.assign(onset=real.onset - real.onset[0])
        seed = finished.notes(nb, f"seed_{i}.mid")
        np.testing.assert_allclose(seed[real.columns], real, atol=2 * nb.HALF_TICK)
        mine = table[table.piece == i]
        assert set(mine["seed from"]) == {name} and set(mine["first note"]) == {long[name].first}
        for kind in ("piece", "seed"):
            midi = pretty_midi.PrettyMIDI(str(finished.outputs / f"{kind}_{i}.mid"))
            tempo = round(long[name].tempo)
            assert midi.get_tempo_changes()[1] == pytest.approx([tempo], rel=1e-4)
    works = {piece.work for piece in long.values()}
    assert len({long[name].work for name in names}) == min(3, len(works))


def test_figures_are_those_of_the_files(nb: ModuleType, finished: Finished) -> None:
    """The figures of kept attempts and of seeds are those of the files as read back."""
    table = finished.table("pieces")
    assert table.piece[table.kept].tolist() == list(NUMBERS)
    for rows, kind in ((table[table.kept], "piece"), (table[table.kind == "seed"], "seed")):
        notes = [finished.notes(nb, f"{kind}_{i}.mid") for i in NUMBERS]
        figures = nb.figures_of(notes, finished.training)
        np.testing.assert_allclose(rows[figures.columns], figures, atol=1e-4)


def test_choice_looks_at_validation_only(nb: ModuleType, finished: Finished) -> None:
    """What failed is what lies outside the validation excerpts; the best attempt is kept."""
    parts = nb.excerpts(finished.split["validation"], finished.config.piece_notes)
    # the table is rounded, and so is the range
    real = nb.figures_of([part.notes for part in parts], finished.training).round(6)
    for _, mine in finished.table("pieces").groupby("piece"):
        assert mine.kind.tolist() == ["seed", *["attempt"] * finished.config.attempts]
        chosen = nb.choose(mine[real.columns][1:], mine[real.columns].iloc[0], real)
        assert mine.failed[1:].fillna("").tolist() == chosen.failed.tolist()
        assert mine.unlike[1:].to_numpy() == pytest.approx(chosen.unlike.to_numpy(), rel=1e-3)
        assert mine.kept.tolist() == [False, *chosen.kept]


def test_tables_hold_what_they_say(finished: Finished) -> None:
    """An epoch a row; scores of every head, the model's between the ends of their intervals."""
    log, scores = finished.table("training_log"), finished.table("scores")
    assert log.epoch.tolist() == list(range(1, len(log) + 1))
    heads = list(scores["head"].unique())
    sides = [f"{side}_{head}" for side in ("training", "validation") for head in heads]
    assert sorted(log) == sorted(["epoch", "validation_total", *sides])
    numbers = log[[f"validation_{head}" for head in heads[1:]]].sum(axis=1)
    total = log.validation_pitch + finished.config.number_weight * numbers
    np.testing.assert_allclose(log.validation_total, total, atol=1e-5)
    assert (scores.low <= scores.value).all() and (scores.value <= scores.high).all()
    for head, mine in scores.groupby("head"):
        rules = mine.set_index("score").value
        rule = rules[~rules.index.str.contains("model|gain")].idxmin()
        gain = rules[rule] - rules["model"]
        assert rules[f"gain over {rule}"] == pytest.approx(gain, abs=1e-5), head
        assert {"plain model", "model"} < set(rules.index)


def test_baselines_are_of_the_test_notes(nb: ModuleType, finished: Finished) -> None:
    """The scores of the rules that need no network come out again."""
    normaliser, split = nb.Normaliser(finished.split["training"]), finished.split
    encoded = [nb.encode(piece.notes, normaliser, finished.config) for piece in split["test"]]
    losses = {"pitch": nb.pitch_losses({}, [], split)}
    losses |= nb.number_losses({}, encoded, split, normaliser)
    again = {
        (head, rule): np.concatenate(values).mean()
        for head, rules in losses.items()
        for rule, values in rules.items()
    }
    scores = finished.table("scores").set_index(["head", "score"]).value
    rules = scores[~scores.index.get_level_values("score").str.contains("model|gain")]
    assert rules.to_dict() == pytest.approx(again, abs=1e-5)


# The small run


def test_nothing_is_left_behind(run: Run) -> None:
    """A run leaves what is announced, nothing on the error stream, and counts its cells from 1."""
    places = {
        ".": {"notebook.ipynb", "data", "outputs", "diagram"},
        "outputs": {"bach_chorales", "study"},
        "diagram": {"architecture.png", "architecture.svg"},
    }
    for place, names in places.items():
        assert {path.name for path in (run.project / place).iterdir()} == names
    cells = code_cells(run.notebook)
    assert not [cell.id for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_first_page_is_filled_in(run: Run) -> None:
    """The first page holds the result, players with their sound, the scores and the diagram."""
    cell = next(cell for cell in code_cells(run.notebook) if cell.id == "headline")
    shown = " ".join(output_texts(cell))
    scores = pd.read_csv(run.outputs() / "scores.csv").set_index(["head", "score"]).value
    for head in scores.index.unique("head"):
        said = re.search(rf"{head} ([\d.]+)", shown.split("**Result.**")[1])
        # the file holds six decimals, the page four, so that the last may be rounded otherwise
        assert abs(float(said[1]) - scores[head, "model"]) < 1e-4
    assert "Written at the end" not in shown and "and memory" in shown
    assert shown.count("<audio controls src='data:audio/") == 3
    assert any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_same_again(run: Run, tmp_path: Path) -> None:
    """A second run elsewhere writes the same files and shows the same, byte for byte."""
    project = project_with_studies(tmp_path / "my project é")
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


@pytest.mark.parametrize("stopped", [None, 1, 2])
def test_old_and_new_results_never_mix(
    nb: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int | None
) -> None:
    """New results take the place of old ones, and a run stopped in between is made good."""
    cells = {cell.id: cell.source for cell in code_cells(read_notebook())}
    outputs, table, rename = tmp_path / "outputs", pd.DataFrame({"a": [1]}), Path.rename
    (outputs / "bach").mkdir(parents=True)
    (outputs / "bach" / "old").touch()
    row = {"notes": 200, "seed notes": 128, "MIDI (s)": 1, "WAV (s)": 2, "RMS": 0.1}
    names = {"project_dir": tmp_path, "corpus": "bach", "log": table, "scores": table}
    names |= {"table": table, "seeds": [], "continuations": [], "tempos": []}
    names |= vars(nb) | {"config": nb.Config(), "files": pd.DataFrame([row])}
    exec(cells["write-files"], names)
    for name in WRITTEN - TABLES:
        (outputs / ".bach" / name).touch()
    turns = iter([1, 2])

    def stopping(path: Path, target: Path) -> None:
        """Rename, or end the run before the renaming of this number."""
        if next(turns) == stopped:
            raise KeyboardInterrupt
        rename(path, target)

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(Path, "rename", stopping)
        exec(cells["deliverables"], names)
    if stopped:
        exec(cells["write-files"], names)  # of the next run
        assert {path.name for path in (outputs / "bach").iterdir()} == {"old"}
        assert {path.name for path in (outputs / ".bach").iterdir()} == TABLES
    else:
        assert {path.name for path in outputs.iterdir()} == {"bach"}
        assert {path.name for path in (outputs / "bach").iterdir()} == WRITTEN


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
        statements = ast.parse(cell.source).body
        kinds = (ast.FunctionDef, ast.ClassDef)
        nodes = [n for s in statements if not isinstance(s, kinds) for n in ast.walk(s)]
        if "test" in [n.value for n in nodes if isinstance(n, ast.Constant)]:
            early.append(cell.id)
    assert early == ["split-run"]
