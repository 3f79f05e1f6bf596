"""What must hold for any run: everything is computed again from the files that it left.

The checks are made of two small runs in copies of the project and of the run that is committed.
They never depend on what a training happened to learn.
"""

import json
import re
import wave
from dataclasses import replace
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
STUDIES = ["ablation", "leak-study", "composers", "music-study", "speed", "peers-study"]
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


def shared_run(piece: object, others: list) -> int:
    """Return the length of the longest run of pitches that one of the others has too."""
    matcher = SequenceMatcher(None, autojunk=False, b=piece.notes.pitch.tolist())
    longest = 0
    for other in others:
        matcher.set_seq1(other.notes.pitch.tolist())
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


def test_pieces_and_seeds(nb: ModuleType, finished: Finished) -> None:
    """A run leaves the announced files; each seed is the opening of a test piece, at its tempo.

    The pieces have as many notes as wanted, their sound is not cut off, and the seeds are of works
    of their own where there are three.
    """
    config, order = finished.config, ["pitch", "onset", "duration", "velocity"]
    assert names_in(finished.outputs) == WRITTEN
    for i, real in zip(NUMBERS, finished.seeds(), strict=True):
        piece, seed = finished.piece(nb, i), finished.piece(nb, i, "seed")
        assert (len(piece), len(seed)) == (config.piece_notes, config.seed_notes)
        notes = real.notes.assign(onset=real.notes.onset - real.notes.onset.iloc[0])
        mine, notes = (table[order].sort_values(order) for table in (seed.notes, notes))
        np.testing.assert_allclose(mine, notes, atol=2 * nb.HALF_TICK)
        for kind in ("seed", "piece"):
            midi = pretty_midi.PrettyMIDI(str(finished.outputs / f"{kind}_{i}.mid"))
            assert midi.get_tempo_changes()[1] == pytest.approx([round(real.tempo)], rel=1e-4)
        with wave.open(str(finished.outputs / f"piece_{i}.wav")) as file:
            seconds = file.getnframes() / file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(int)
        assert midi.get_end_time() <= seconds <= midi.get_end_time() + TAIL
        assert np.abs(samples).max() == pytest.approx(2**15, rel=0.01)
    works = {piece.work for piece in finished.split["test"] if len(piece) >= config.seed_notes}
    assert len({seed.work for seed in finished.seeds()}) == min(3, len(works))


def test_statistics_are_those_of_the_files(nb: ModuleType, finished: Finished) -> None:
    """The statistics of the pieces that were kept, copies too, are those of the files."""
    kept = finished.table("pieces").query("kept")
    assert kept.piece.tolist() == list(NUMBERS)
    pieces = [finished.piece(nb, i) for i in NUMBERS]
    again, both = statistics_of(nb, finished, pieces), zip(pieces, finished.seeds(), strict=True)
    training = finished.split["training"]
    again["run shared with training"] = [shared_run(piece, training) for piece in pieces]
    again["run shared with seed"] = [shared_run(piece, [seed]) for piece, seed in both]
    np.testing.assert_allclose(kept[again.columns], again, atol=ROUNDED)


def test_choice_looks_at_validation_only(nb: ModuleType, finished: Finished) -> None:
    """What failed lies outside the validation music; the first of those that fail least is kept."""
    config, validation = finished.config, finished.split["validation"]
    real = statistics_of(nb, finished, nb.excerpts(validation, config.piece_notes))
    n, m = config.seed_notes, config.piece_notes
    cuts = [[replace(p, notes=p.notes[s]) for s in (slice(n), slice(n, n + m))] for p in validation]
    real["run shared with seed"] = max(shared_run(rest, [opening]) for opening, rest in cuts)
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
    """The log has the losses that were printed, to the last epoch or until none was better."""
    log, notebook = finished.table("training_log"), finished.notebook
    text = cell_text(notebook, "training") + cell_text(notebook, "learning-curves")
    heads = list(finished.table("scores")["head"].unique())
    for row in log[[f"validation_{head}" for head in heads]].itertuples(index=False):
        assert re.search(".*".join(f"{loss:.3f}" for loss in row), text)
    assert log.epoch.tolist() == list(range(1, len(log) + 1))
    waited = len(log) - int(log.validation_total.argmin()) - 1
    assert len(log) == finished.config.epochs or waited == finished.config.patience
    best = log.loc[log.validation_total.idxmin()]
    assert ("did not trigger" in text) == (len(log) == finished.config.epochs)
    assert f"the best epoch is {best.epoch:.0f} of {len(log)}." in text
    for head in heads:
        gap = best[f"validation_{head}"] - best[f"training_{head}"]
        near = [abs(float(n) - gap) < 6e-4 for n in re.findall(r"[+-]\d+\.\d+", text)]
        assert any(near), (head, gap)


def test_scores_of_the_baselines(nb: ModuleType, finished: Finished, encoded: dict) -> None:
    """The baselines score on the test notes what the table says; unsure gains are called so."""
    losses = nb.held_out_losses({}, encoded, nb.Normaliser(finished.split["training"]))
    works = [piece.work for piece in finished.split["test"]]
    table = finished.table("scores").set_index(["head", "score"])
    assert list(table.index.unique("head")) == list(losses)
    gains = table[table.index.get_level_values("score").str.startswith("gain over")]
    unsure = shown(first_page(finished.notebook)).count("no significant gain")
    assert unsure == len(gains) - (gains.low > 0).sum()
    for head, baselines in losses.items():
        value = table.loc[head].value
        for name, values in baselines.items():
            expected = nb.bootstrap(values, works)
            np.testing.assert_allclose(table.loc[head].loc[name], expected, atol=ROUNDED)
        best = min(baselines, key=value.get)  # the plain model is no baseline
        gain = value[best] - value["model"]
        assert value[f"gain over {best}"] == pytest.approx(gain, abs=ROUNDED)


def test_titles_say_what_the_data_say(nb: ModuleType, finished: Finished, encoded: dict) -> None:
    """The numbers in the titles of the figures come out again of the data and the files."""
    onsets = [piece.notes.onset.round(1) for piece in finished.pieces]
    together = np.concatenate([onset.duplicated() for onset in onsets]).mean()
    assert f" {together:.0%}" in f" {cell_text(finished.notebook, 'corpus-figure')}"
    pairs = [
        (p["candidate"][:, 0] == p["pitch"], p["candidate_length"][:, 0] == 8)
        for p in encoded["validation"]
    ]
    hits = np.concatenate([right[long] for right, long in pairs])
    share = f" {hits.mean() if len(hits) else 0:.0%} "
    assert share in cell_text(finished.notebook, "copy-figure")
    length, kept = finished.config.piece_notes, finished.table("pieces").query("kept")
    real = statistics_of(nb, finished, nb.excerpts(finished.split["test"], length))
    real = real.loc[:, real.min() < real.max()]
    inside = np.array([kept[name].between(*real[name].quantile([0.1, 0.9])) for name in real])
    assert f"{inside.sum()} of {inside.size} " in cell_text(finished.notebook, "compare")


def test_page_and_folder(run: Run) -> None:
    """Nothing else is left, and the first page has pieces, scores, claims, time and the model."""
    assert names_in(run.project) == {"notebook.ipynb", "data", "outputs", "diagram"}
    assert names_in(run.project / "outputs") == {CORPUS, "study"}
    assert names_in(run.project / "diagram") == {"architecture.png", "architecture.svg"}
    cells = code_cells(run.notebook)
    assert not [o.text for cell in cells for o in cell.outputs if o.get("name") == "stderr"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    _, *outputs = [output.data for cell in first_page(run.notebook) for output in cell.outputs]
    kinds = ["image/png" if "image/png" in data else "text/html" for data in outputs[:6]]
    assert kinds == ["image/png", "text/html"] * 3
    assert all("<audio controls src='data:audio/" in data["text/html"] for data in outputs[1:6:2])
    scores, claims, time, model = outputs[6:]
    assert "image/png" in scores and "image/png" in model
    assert "Filled in later" not in shown(run.notebook.cells)
    assert claims["text/markdown"].count("\n- [") == 5
    assert time["text/markdown"].startswith("The run took ")


def test_links_lead_to_headings(run: Run) -> None:
    """What the prose and the first page link to on the page is a heading, spelt as Jupyter does."""
    prose = "\n".join(cell.source for cell in run.notebook.cells if cell.cell_type == "markdown")
    headings = re.findall("^#+ (.+)$", prose, re.MULTILINE)
    targets = re.findall(r"\]\(#([^)]+)\)", prose + shown(first_page(run.notebook)))
    assert len(targets) > 10
    assert not {*targets} - {heading.replace(" ", "-") for heading in headings}


def test_studies_may_be_missing(run: Run, other_run: Run) -> None:
    """A cell of a study shows its table, or nothing where there is none."""
    assert not [cell for cell in STUDIES if not cell_text(run.notebook, cell)]
    assert not [cell for cell in STUDIES if cell_text(other_run.notebook, cell)]


def test_same_again(run: Run, tmp_path: Path) -> None:
    """A run elsewhere, in another language and time zone, leaves and shows the same bytes.

    Only the sound in the page differs, by the number that an Ogg file gets at random, and how the
    prints are cut into pieces.
    """
    project = small_project(tmp_path / "my music é")
    again = small_run(project, {"TZ": "Pacific/Chatham", "LC_ALL": "tr_TR.UTF-8"})
    left, right = (contents(one.project) | page_of(one.notebook) for one in (run, again))
    assert left.keys() == right.keys()
    assert not [name for name in left if left[name] != right[name]]


def test_a_failure_changes_no_old_result(nb: ModuleType, run: Run, tmp_path: Path) -> None:
    """A run that fails before its last cell leaves the old results, or puts them back.

    They had been put aside when the run before was killed. In this one the test pieces are twice as
    slow, which no epoch of the training may notice.
    """
    project, folder, notebook = small_project(tmp_path), tmp_path / "alone", read_notebook()
    results = project / "outputs" / CORPUS
    results.rename(results.with_name(f".{CORPUS}") / "old")
    for piece in finish(nb, run).split["test"]:
        path = project / "data" / CORPUS / f"{piece.name}.mid"
        data = path.read_bytes()
        path.write_bytes(data[:12] + (int.from_bytes(data[12:14]) // 2).to_bytes(2) + data[14:])
    notebook.cells.insert(-1, nbformat.v4.new_code_cell("1 / 0", id="broken"))
    folder.mkdir()
    nbformat.write(notebook, folder / NOTEBOOK.name)
    failed = run_notebook(folder, project=str(project), changes=SMALL)
    assert failed.notebook is None and "ZeroDivisionError" in failed.errors
    assert names_in(folder) == {NOTEBOOK.name} and contents(results) == OLD
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
