"""What must hold for any run: everything is computed again from the files that it left.

The checks are made of two small runs in copies of the project and of the run that is committed.
They never depend on what a training happened to learn.
"""

import json
import os
import re
import subprocess
import sys
import wave
from difflib import SequenceMatcher
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pandas as pd
import pretty_midi
import pytest
from notebook_tools import (
    CORPUS,
    NOTEBOOK,
    OLD,
    SMALL,
    Finished,
    Run,
    cell_text,
    code_cells,
    finish,
    first_page,
    read_notebook,
    run_notebook,
    shown,
    small_project,
    small_run,
)

NUMBERS = (1, 2, 3)  # of the pieces
FILES = ("piece_{}.mid", "piece_{}.wav", "seed_{}.mid")
WRITTEN = {"pieces.csv", "scores.csv", "training_log.csv"}
WRITTEN |= {name.format(number) for name in FILES for number in NUMBERS}
FREE = ["repeated 8-note runs", "run shared with training", "run shared with seed", "silence"]
FREE += ["parallels", "leaps", "keys struck again", "notes at once"]
STUDIES = ["ablation", "leak-study", "composers", "music-study", "calibration", "speed"]
STUDIES += ["voices-study"]
ROUNDED = 1e-5  # the tables hold six decimals
TAIL = 5  # seconds for which a sound may die away


def names_in(folder: Path) -> set[str]:
    """Return the names of what lies in a folder, but not what a file manager hides there."""
    return {path.name for path in folder.iterdir() if path.name != ".DS_Store"}


def contents(top: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    paths = [path for path in top.rglob("*") if path.is_file()]
    return {path.relative_to(top).as_posix(): path.read_bytes() for path in paths}


def page_of(notebook: nbformat.NotebookNode) -> dict[str, str]:
    """Return what the cells show, however it is cut, without the sound and the time it took."""
    page = {}
    for cell in code_cells(notebook):
        printed = "".join(output.get("text", "") for output in cell.outputs)
        rest = [output for output in cell.outputs if output.output_type != "stream"]
        page[cell.id] = printed + re.sub("base64,[^']+'|The run took [^(]+", "", json.dumps(rest))
    return page


def pitches_of(piece: object) -> list[int]:
    """Return the pitches of a piece."""
    return piece.notes.pitch.tolist()


def shared_run(pitches: list[int], others: list[list[int]]) -> int:
    """Return the length of the longest run of pitches that one of the others has too."""
    matcher = SequenceMatcher(None, autojunk=False, b=pitches)
    longest = 0
    for other in others:
        matcher.set_seq1(other)
        longest = max(longest, matcher.find_longest_match().size)
    return longest


def statistics_of(nb: ModuleType, finished: Finished, pieces: list) -> pd.DataFrame:
    """Return the statistics of pieces as the run took them."""
    training = finished.split["training"]
    pitches = [piece.notes.pitch.to_numpy() for piece in training]
    return nb.statistics_of(pieces, pitches, nb.Normaliser(training), finished.config)


@pytest.fixture(scope="module")
def encoded(nb: ModuleType, finished: Finished) -> dict[str, list]:
    """Return the encoded split of a run."""
    normaliser = nb.Normaliser(finished.split["training"])
    parts = finished.split.items()
    return {split: nb.encode(part, normaliser, finished.config) for split, part in parts}


def test_files(nb: ModuleType, finished: Finished) -> None:
    """A run leaves the announced files, with as many notes as wanted, and no sound is cut off."""
    assert names_in(finished.outputs) == WRITTEN
    for i in NUMBERS:
        assert len(finished.piece(nb, i)) == finished.config.piece_notes
        assert len(finished.piece(nb, i, "seed")) == finished.config.seed_notes
        end = pretty_midi.PrettyMIDI(str(finished.outputs / f"piece_{i}.mid")).get_end_time()
        with wave.open(str(finished.outputs / f"piece_{i}.wav")) as file:
            seconds = file.getnframes() / file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)
        assert end <= seconds <= end + TAIL
        assert np.abs(samples).max() == pytest.approx(2**15, rel=0.01)


def test_seeds_are_openings_of_test_pieces(nb: ModuleType, finished: Finished) -> None:
    """Each seed is the opening of a test piece, of works of their own where there are three.

    It is written at the tempo of its file, and so is the piece that continues it.
    """
    order = ["pitch", "onset", "duration", "velocity"]
    for i, real in zip(NUMBERS, finished.seeds(), strict=True):
        notes = real.notes.assign(onset=real.notes.onset - real.notes.onset.iloc[0])
        both = finished.piece(nb, i, "seed").notes, notes
        mine, notes = (table[order].sort_values(order) for table in both)
        np.testing.assert_allclose(mine, notes, atol=2 * nb.HALF_TICK)
        for kind in ("piece", "seed"):
            midi = pretty_midi.PrettyMIDI(str(finished.outputs / f"{kind}_{i}.mid"))
            assert midi.get_tempo_changes()[1] == pytest.approx([round(real.tempo)], rel=1e-4)
    shortest, test = finished.config.seed_notes, finished.split["test"]
    works = {piece.work for piece in test if len(piece) >= shortest}
    assert len({seed.work for seed in finished.seeds()}) == min(3, len(works))


def test_statistics_are_those_of_the_files(nb: ModuleType, finished: Finished) -> None:
    """The statistics of the pieces that were kept, copies too, are those of the files."""
    kept = finished.table("pieces").query("kept")
    assert kept.piece.tolist() == list(NUMBERS)
    pieces = [finished.piece(nb, i) for i in NUMBERS]
    again = statistics_of(nb, finished, pieces)
    training = [pitches_of(piece) for piece in finished.split["training"]]
    again["run shared with training"] = [shared_run(pitches_of(p), training) for p in pieces]
    both = zip(pieces, finished.seeds(), strict=True)
    again["run shared with seed"] = [shared_run(pitches_of(p), [pitches_of(s)]) for p, s in both]
    np.testing.assert_allclose(kept[again.columns], again, atol=ROUNDED)


def test_choice_looks_at_validation_only(nb: ModuleType, finished: Finished) -> None:
    """What failed lies outside the validation music; the first of those that fail least is kept."""
    config, validation = finished.config, finished.split["validation"]
    real = statistics_of(nb, finished, nb.excerpts(validation, config.piece_notes))
    n, m = config.seed_notes, config.piece_notes
    pitches = [pitches_of(piece) for piece in validation]
    real["run shared with seed"] = max(shared_run(p[n : n + m], [p[:n]]) for p in pitches)
    low, high = real.min(), real.max()
    low[FREE] = 0  # little of these is never a fault
    for _, attempts in finished.table("pieces").groupby("piece"):
        assert len(attempts) == config.attempts
        beyond = np.maximum(low - attempts[real.columns], attempts[real.columns] - high)
        failed = [set(names.split(", ")) - {""} for names in attempts.failed.fillna("")]
        for row, names in zip(beyond.to_numpy(), failed, strict=True):
            # on the border the rounding of the table may decide
            assert set(real.columns[row > ROUNDED]) <= names <= set(real.columns[row > -ROUNDED])
        best = int(np.argmin([len(names) for names in failed]))
        assert attempts.kept.tolist() == [i == best for i in range(len(failed))]


def test_training_log(finished: Finished) -> None:
    """The log has every epoch that was trained, with the losses that were printed.

    Training ends after all epochs, or after as many without a better score as are granted.
    """
    log, text = finished.table("training_log"), cell_text(finished.notebook, "training")
    heads = list(finished.table("scores")["head"].unique())
    columns = [f"{split}_{head}" for split in ("training", "validation") for head in heads]
    assert sorted(log) == sorted(["epoch", "validation_total", *columns])
    assert log.epoch.tolist() == list(range(1, len(log) + 1))
    losses = log[[f"validation_{head}" for head in heads]]
    weights = [1, *[finished.config.attribute_weight] * (len(heads) - 1)]
    np.testing.assert_allclose(log.validation_total, losses @ weights, atol=ROUNDED)
    for row in losses.itertuples(index=False):
        assert re.search(".*".join(f"{loss:.3f}" for loss in row), text)
    last, best = len(log), int(log.validation_total.argmin()) + 1
    stopped = last - best == finished.config.patience or "interrupted" in text
    assert last == finished.config.epochs or stopped


def test_scores_of_the_baselines(nb: ModuleType, finished: Finished, encoded: dict) -> None:
    """The baselines score on the test notes what the table says, and the gain is over the best.

    Where zero lies in its interval, or the test notes are of one work, no gain is called sure.
    """
    normaliser = nb.Normaliser(finished.split["training"])
    losses = nb.held_out_losses({}, encoded, normaliser)
    works = [piece.work for piece in finished.split["test"]]
    table = finished.table("scores").set_index(["head", "score"])
    assert list(table.index.unique("head")) == list(losses)
    gains = table[table.index.get_level_values("score").str.startswith("gain over")]
    unsure = shown(first_page(finished.notebook)).count("no sure gain")
    assert unsure == len(gains) - (gains.low > 0).sum()
    for head, baselines in losses.items():
        mine, value = table.loc[head], table.loc[head].value
        for name, values in baselines.items():
            np.testing.assert_allclose(mine.loc[name], nb.bootstrap(values, works), atol=ROUNDED)
        best = min(baselines, key=value.get)  # the plain model is no baseline
        assert set(mine.index) == {*baselines, "plain model", "model", f"gain over {best}"}
        gain = value[best] - value["model"]
        assert value[f"gain over {best}"] == pytest.approx(gain, abs=ROUNDED)


def test_titles_say_what_the_data_say(nb: ModuleType, finished: Finished, encoded: dict) -> None:
    """The numbers in the titles of the figures come out again of the data and the files."""

    def numbers(cell: str) -> list[str]:
        return re.findall(r"[+-]?\d+(?:\.\d+)?%?", cell_text(finished.notebook, cell))

    onsets = [piece.notes.onset.round(1) for piece in finished.pieces]
    together = np.concatenate([onset.duplicated() for onset in onsets]).mean()
    assert f"{together:.0%}" in numbers("corpus-figure")
    long = [piece["candidate_length"][:, 0] == 8 for piece in encoded["validation"]]
    pairs = zip(encoded["validation"], long, strict=True)
    hits = np.concatenate([(p["candidate"][:, 0] == p["pitch"])[rows] for p, rows in pairs])
    assert f"{hits.mean() if len(hits) else 0:.0%}" in numbers("copy-figure")
    log = finished.table("training_log")
    best = log.loc[log.validation_total.idxmin()]
    for head in finished.table("scores")["head"].unique():
        gap = best[f"validation_{head}"] - best[f"training_{head}"]
        near = [abs(float(n) - gap) < 6e-4 for n in numbers("training") if n[0] in "+-"]
        assert any(near), (head, gap)
    length, kept = finished.config.piece_notes, finished.table("pieces").query("kept")
    real = statistics_of(nb, finished, nb.excerpts(finished.split["test"], length))
    real = real.loc[:, real.min() < real.max()]
    inside = np.array([kept[name].between(*real[name].quantile([0.1, 0.9])) for name in real])
    assert f"{inside.sum()} of {inside.size} " in cell_text(finished.notebook, "compare")


def test_nothing_is_left_behind(run: Run) -> None:
    """A run leaves what is announced, nothing on the error stream, and counts its cells from 1."""
    assert names_in(run.project) == {"notebook.ipynb", "data", "outputs", "diagram"}
    assert names_in(run.project / "outputs") == {CORPUS, "study"}
    assert names_in(run.project / "diagram") == {"architecture.png", "architecture.svg"}
    cells = code_cells(run.notebook)
    assert not [o.text for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_first_page_is_filled_in(run: Run) -> None:
    """The first page has the pieces as picture and sound, the scores, the claims and the model."""
    outputs = [output for cell in first_page(run.notebook) for output in cell.outputs]
    kinds = ["image/png" if "image/png" in o.data else "text/html" for o in outputs[:6]]
    assert kinds == ["image/png", "text/html"] * 3
    assert all("<audio controls src='data:audio/" in o.data["text/html"] for o in outputs[1:6:2])
    scores, claims, time, model = outputs[6:]
    assert "image/png" in scores.data and "image/png" in model.data
    said = claims.data["text/markdown"], time.data["text/markdown"]
    assert "Filled in later" not in shown(run.notebook.cells)
    assert said[0].count("\n- [") == 4 and said[1].startswith("The run took ")


def test_links_lead_to_headings(run: Run) -> None:
    """What the prose and the first page link to on the page is a heading, spelt as Jupyter does."""
    prose = "\n".join(cell.source for cell in run.notebook.cells if cell.cell_type == "markdown")
    headings = re.findall("^#+ (.+)$", prose, re.MULTILINE)
    targets = re.findall(r"\]\(#([^)]+)\)", prose + shown(first_page(run.notebook)))
    assert len(targets) > 10
    assert not {*targets} - {heading.replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("cell", STUDIES)
def test_studies_may_be_missing(run: Run, other_run: Run, cell: str) -> None:
    """A cell of a study shows its table, or nothing where there is none."""
    assert cell_text(run.notebook, cell) and not cell_text(other_run.notebook, cell)


def test_same_again(run: Run, tmp_path: Path) -> None:
    """A run elsewhere, in another language and time zone, leaves and shows the same bytes.

    Only the sound in the page differs, by the number that an Ogg file gets at random, and how the
    prints are cut into pieces.
    """
    project = small_project(tmp_path / "my music é")
    again = small_run(project, {"TZ": "Pacific/Chatham", "LC_ALL": "tr_TR.UTF-8"})
    left, right = contents(run.project), contents(project)
    assert left.keys() == right.keys()
    assert not [name for name in left if left[name] != right[name]]
    pages = page_of(run.notebook), page_of(again.notebook)
    assert pages[0].keys() == pages[1].keys()
    assert not [name for name in pages[0] if pages[0][name] != pages[1][name]]


def test_a_failure_changes_no_old_result(nb: ModuleType, run: Run, tmp_path: Path) -> None:
    """A run that fails before its last cell leaves the old results, in the folder `project`.

    In this one the test pieces are twice as slow, which no epoch of the training may notice.
    """
    project, folder, notebook = small_project(tmp_path), tmp_path / "alone", read_notebook()
    for piece in finish(nb, run).split["test"]:
        path = project / "data" / CORPUS / f"{piece.name}.mid"
        data = path.read_bytes()
        path.write_bytes(data[:12] + (int.from_bytes(data[12:14]) // 2).to_bytes(2) + data[14:])
    notebook.cells.insert(-1, nbformat.v4.new_code_cell("1 / 0", id="broken"))
    folder.mkdir()
    nbformat.write(notebook, folder / NOTEBOOK.name)
    failed = run_notebook(folder, project=str(project), changes=SMALL)
    assert failed.notebook is None and "ZeroDivisionError" in failed.errors
    assert names_in(folder) == {NOTEBOOK.name} and contents(project / "outputs" / CORPUS) == OLD
    (log,) = {*project.rglob("training_log.csv")}
    assert log.read_bytes() == (run.outputs / log.name).read_bytes()


@pytest.mark.parametrize(
    ("parameters", "cure"),
    [({"project": ".."}, "set `project`"), ({"corpus": "study"}, "holds other results")],
)
def test_parameters_that_cannot_be(tmp_path: Path, parameters: dict, cure: str) -> None:
    """A folder without the notebook is refused, and so is a corpus named as other results are."""
    project = small_project(tmp_path)
    failed = run_notebook(project, **parameters)
    # the cell itself, which has the cure too, is in the errors as well
    assert re.search(f"^ValueError: .*{cure}", failed.errors, re.MULTILINE)


def test_offline_guard(offline: dict[str, str]) -> None:
    """The guard under which the small run was made refuses other machines."""
    call = [sys.executable, "-c", "import urllib.request as r; r.urlopen('http://192.0.2.1/')"]
    done = subprocess.run(call, env=os.environ | offline, capture_output=True, text=True)
    assert "the network is switched off" in done.stderr
