"""What must hold for any run: everything is computed again from the files that it left.

The checks are made of two small runs in copies of the project and, where the notebook in this
folder was executed and its outputs are there, of that run. They never depend on what a training
happened to learn.
"""

import json
import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pandas as pd
import pretty_midi
import pytest
from notebook_tools import (
    NOTEBOOK,
    OLD,
    OUR_ID,
    ROOT,
    Finished,
    Run,
    cell_text,
    chorale,
    code_cells,
    read_notebook,
    run_notebook,
    small_project,
    small_run,
)

PIECE_NUMBERS = (1, 2, 3)
TABLES = {"pieces.csv", "scores.csv", "training_log.csv"}
FILES = ("piece_{}.mid", "piece_{}.wav", "seed_{}.mid")
WRITTEN = TABLES | {name.format(number) for name in FILES for number in PIECE_NUMBERS}
FREE = ["repeated 8-note runs", "run shared with training", "run shared with seed", "silence"]
FREE += ["parallels", "leaps", "keys struck again"]
ROUNDED = 1e-5  # the tables hold six decimals


def names_in(folder: Path) -> set[str]:
    """Return the names of what lies in a folder."""
    return {path.name for path in folder.iterdir()}


def figures_in(cell: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """Return the outputs of a cell that are pictures."""
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]


def statistics_of(nb: ModuleType, finished: Finished, pieces: list) -> pd.DataFrame:
    """Return the figures of pieces as the run took them."""
    normaliser = nb.Normaliser(finished.split["training"])
    return nb.statistics_of(pieces, finished.training, normaliser, finished.config)


def outputs_by_cell(run: Run) -> dict[str, list]:
    """Return what the cells of this notebook complain of, print and show, however it is cut."""
    outputs = {}
    for cell in (cell for cell in code_cells(run.notebook) if OUR_ID.fullmatch(cell.id)):
        streams = [o for o in cell.outputs if o.output_type == "stream"]
        outputs[cell.id] = [o for o in cell.outputs if o not in streams]
        for name in ("stdout", "stderr"):
            outputs[cell.id].insert(0, "".join(o.text for o in streams if o.name == name))
    return outputs


def test_deliverables(nb: ModuleType, finished: Finished) -> None:
    """A run leaves the announced files, with as many notes as wanted, and no sound is cut off."""
    # a file manager may have left something hidden
    assert {name for name in names_in(finished.outputs) if name[0] != "."} == WRITTEN
    for i in PIECE_NUMBERS:
        for kind in ("piece", "seed"):
            notes = nb.read_piece((finished.outputs / f"{kind}_{i}.mid").read_bytes(), kind)
            assert len(notes) == getattr(finished.config, f"{kind}_notes")
        samples = nb.samples_of((finished.outputs / f"piece_{i}.wav").read_bytes())
        end = pretty_midi.PrettyMIDI(str(finished.outputs / f"piece_{i}.mid")).get_end_time()
        assert end <= len(samples) / nb.RATE <= end + 1.01
        levels = samples.std() / nb.LOUDNESS, np.abs(samples).max() / nb.PEAK
        assert max(levels) == pytest.approx(1, abs=0.01)


def test_seeds_are_openings_of_test_pieces(nb: ModuleType, finished: Finished) -> None:
    """Each seed is the opening of a test piece, of works of their own where there are three.

    It is written at the tempo of its file, and so is the piece that continues it.
    """
    order = ["pitch", "onset", "duration"]
    for i, real in zip(PIECE_NUMBERS, finished.seeds(), strict=True):
        seed = nb.read_piece((finished.outputs / f"seed_{i}.mid").read_bytes(), "seed").notes
        notes = real.notes.assign(onset=real.notes.onset - real.notes.onset.iloc[0])
        mine, notes = (table.sort_values(order)[[*order, "velocity"]] for table in (seed, notes))
        np.testing.assert_allclose(mine, notes, atol=2 * nb.HALF_TICK)
        for kind in ("piece", "seed"):
            midi = pretty_midi.PrettyMIDI(str(finished.outputs / f"{kind}_{i}.mid"))
            assert midi.get_tempo_changes()[1] == pytest.approx([round(real.tempo)], rel=1e-4)
    test, shortest = finished.split["test"], finished.config.seed_notes
    works = {piece.work for piece in test if len(piece) >= shortest}
    assert len({seed.work for seed in finished.seeds()}) == min(3, len(works))


def test_figures_are_those_of_the_files(nb: ModuleType, finished: Finished) -> None:
    """The figures of the pieces that were kept are those of the files."""
    table = finished.table("pieces")
    paths = [finished.outputs / f"piece_{i}.mid" for i in PIECE_NUMBERS]
    pieces = [nb.read_piece(path.read_bytes(), path.name) for path in paths]
    figures = statistics_of(nb, finished, pieces)
    both = zip(pieces, finished.seeds(), strict=True)
    pitches = [[part.notes.pitch.to_numpy() for part in pair] for pair in both]
    figures["run shared with seed"] = [nb.longest_shared_run(a, [b]) for a, b in pitches]
    kept = table[table.kept]
    assert kept.piece.tolist() == list(PIECE_NUMBERS)
    np.testing.assert_allclose(kept[figures.columns], figures, atol=ROUNDED)


def test_copies_are_those_of_the_files(nb: ModuleType, finished: Finished) -> None:
    """The runs that the report shows are shared with the training pieces, in any key, and seeds."""
    shown, moved = cell_text(finished.notebook, "copying"), [np.diff(p) for p in finished.training]
    for i, seed in zip(PIECE_NUMBERS, finished.seeds(), strict=True):
        path = finished.outputs / f"piece_{i}.mid"
        pitch = nb.read_piece(path.read_bytes(), path.name).notes.pitch.to_numpy()
        runs = [nb.longest_shared_run(pitch, finished.training)]
        runs += [nb.longest_shared_run(np.diff(pitch), moved) + 1]
        runs += [nb.longest_shared_run(pitch, [seed.notes.pitch.to_numpy()])]
        (row,) = re.findall(rf"<th>Piece {i}, .*?</th>((?:\s*<td>\d+</td>)+)", shown)
        assert re.findall(r"\d+", row) == [str(run) for run in runs]


def test_titles_say_what_the_data_say(nb: ModuleType, finished: Finished) -> None:
    """What the titles of the figures state comes out again of the data and the files."""
    cells = [cell for cell in code_cells(finished.notebook) if cell.id != "headline"]
    features = {cell.id: o.metadata["image/png"]["alt"] for cell in cells for o in figures_in(cell)}
    split, length = finished.split, finished.config.piece_notes
    together = np.concatenate([piece.notes.step < nb.CHORD for piece in finished.pieces]).mean()
    assert f"{together:.0%} of the notes sound with the one before" in features["corpus-figure"]
    normaliser = nb.Normaliser(split["training"])
    encoded = nb.encode(split["validation"], normaliser, finished.config)
    hits = np.concatenate(
        [(e["candidate"][:, 0] == e["pitch"])[e["candidate_length"][:, 0] == 8] for e in encoded]
    )
    right = hits.mean() if len(hits) else 0
    assert f"matched 8 notes are right {right:.0%} of the time" in features["copy-figure"]
    log = finished.table("training_log")
    best = log.loc[log.validation_total.idxmin()]
    gaps = re.findall(r"(\w+): ([+-]\d\.\d+) by heart", features["training"])
    assert [head for head, _ in gaps] == list(finished.table("scores")["head"].unique())
    for head, gap in gaps:
        expected = best[f"validation_{head}"] - best[f"training_{head}"]
        assert float(gap) == pytest.approx(expected, abs=6e-4)
    real = statistics_of(nb, finished, nb.excerpts(split["test"], length))
    paths = [finished.outputs / f"piece_{i}.mid" for i in PIECE_NUMBERS]
    mine = statistics_of(nb, finished, [nb.read_piece(p.read_bytes(), p.name) for p in paths])
    inside = (mine >= real.quantile(0.1)) & (mine <= real.quantile(0.9))
    assert f"{inside.to_numpy().mean():.0%} of the figures lie in" in features["compare"]


def test_choice_looks_at_validation_only(nb: ModuleType, finished: Finished) -> None:
    """What failed lies outside the validation music; the first of those that fail least is kept."""
    config, validation = finished.config, finished.split["validation"]
    real = statistics_of(nb, finished, nb.excerpts(validation, config.piece_notes))
    pitches = [piece.notes.pitch.to_numpy() for piece in validation]
    n, m = config.seed_notes, config.piece_notes
    runs = [nb.longest_shared_run(p[n : n + m], [p[:n]]) for p in pitches]
    real["run shared with seed"] = max(runs)
    low, high = real.min(), real.max()
    low[FREE] = 0  # little of these is never a fault
    for _, attempts in finished.table("pieces").groupby("piece"):
        assert len(attempts) == config.attempts
        figures = attempts[real.columns]
        beyond = np.maximum(low - figures, figures - high).to_numpy()
        failed = attempts.failed.astype(object).fillna("")
        said = [set(names.split(", ")) - {""} for names in failed]
        for row, names in zip(beyond, said, strict=True):
            # on the border the rounding of the table may decide
            assert set(real.columns[row > ROUNDED]) <= names <= set(real.columns[row > -ROUNDED])
        counts = [*map(len, said)]
        assert attempts.kept.tolist() == [
            i == counts.index(min(counts)) for i in range(len(counts))
        ]


def test_training_log_has_every_epoch(finished: Finished) -> None:
    """The log has the epochs that were trained, with the losses and the best as they were shown.

    Training ends after all epochs, after as many without a better score as are granted, or when
    it is interrupted.
    """
    log, text = finished.table("training_log"), cell_text(finished.notebook, "training")
    shown = re.findall(r"epoch +(\d+) of (\d+): validation (.+); best (\d+)", text)
    assert log.epoch.tolist() == [int(epoch) for epoch, *_ in shown] == [*range(1, len(log) + 1)]
    heads = list(finished.table("scores")["head"].unique())
    sides = [f"{side}_{head}" for side in ("training", "validation") for head in heads]
    assert sorted(log) == sorted(["epoch", "validation_total", *sides])
    for (epoch, epochs, losses, best), row in zip(shown, log.to_dict("records"), strict=True):
        mine = [row[f"validation_{head}"] for head in heads]
        said = dict(part.rsplit(" ", 1) for part in losses.split(", "))
        assert list(said) == heads and int(epochs) == finished.config.epochs
        assert [float(loss) for loss in said.values()] == pytest.approx(mine, abs=6e-4)
        total = mine[0] + finished.config.attribute_weight * sum(mine[1:])
        assert row["validation_total"] == pytest.approx(total, abs=ROUNDED)
        totals = log.validation_total[: int(epoch)]
        assert totals[int(best) - 1] == totals.min()
    ended = len(log) == finished.config.epochs or "interrupted" in text
    assert ended or len(log) - int(shown[-1][3]) == finished.config.patience


def test_scores_of_the_rules_come_out_again(nb: ModuleType, finished: Finished) -> None:
    """The rules that need no network score on the test notes what the table says.

    Where the test notes are of one work, this is said and no gain is called sure.
    """
    normaliser, split = nb.Normaliser(finished.split["training"]), finished.split
    encoded = {side: nb.encode(part, normaliser, finished.config) for side, part in split.items()}
    losses = {"pitch": nb.pitch_losses({}, encoded)}
    losses |= nb.attribute_losses({}, encoded, normaliser)
    table = finished.table("scores").set_index(["head", "score"])
    works = [piece.work for piece in split["test"]]
    assert list(table.index.unique("head")) == list(losses)
    said = ["one work" in cell_text(finished.notebook, i) for i in ("headline", "score-table")]
    assert said == 2 * [len(set(works)) == 1]
    for head, rules in losses.items():
        mine, value = table.loc[head], table.loc[head].value
        for rule, values in rules.items():
            np.testing.assert_allclose(mine.loc[rule], nb.bootstrap(values, works), atol=ROUNDED)
        best = min(rules, key=value.get)  # the plain model is no rule
        assert set(mine.index) == {*rules, "plain model", "model", f"gain over {best}"}
        assert value["model"] != value["plain model"]
        gain = value[best] - value["model"]
        assert value[f"gain over {best}"] == pytest.approx(gain, abs=ROUNDED)


def test_nothing_is_left_behind(run: Run) -> None:
    """A run leaves what is announced, nothing on the error stream, and counts its cells from 1."""
    assert names_in(run.project) == {"notebook.ipynb", "data", "outputs", "diagram"}
    assert names_in(run.project / "outputs") == {"bach_chorales", "study"}
    assert names_in(run.project / "diagram") == {"architecture.png", "architecture.svg"}
    complaints = {name: outputs[0] for name, outputs in outputs_by_cell(run).items()}
    assert not any(complaints.values()), complaints
    counts = [cell.execution_count for cell in code_cells(run.notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_first_page_is_filled_in(run: Run) -> None:
    """The first page holds the result, players with their sound, the scores and the diagram."""
    cell = next(cell for cell in code_cells(run.notebook) if cell.id == "headline")
    shown = cell_text(run.notebook, "headline")
    assert "**Result.**" in shown and "and memory" in shown and "Written at the end" not in shown
    assert shown.count("<audio controls src='data:audio/") == 3
    assert any("image/png" in output.get("data", {}) for output in cell.outputs)


def test_same_again(run: Run, tmp_path: Path) -> None:
    """A run elsewhere, in another language and time zone, leaves and shows the same bytes.

    Only the sound in the page differs, by the number that an Ogg file gets at random.
    """
    project = small_project(tmp_path / "my music é")
    again = small_run(project, {"TZ": "Pacific/Chatham", "LC_ALL": "tr_TR.UTF-8"})
    left, right = (
        {path.relative_to(top): path.read_bytes() for path in top.rglob("*.*") if path.is_file()}
        for top in (run.project, project)
    )
    assert left.keys() == right.keys()
    assert not [str(path) for path in left if left[path] != right[path]]
    assert run.notebook.metadata == again.notebook.metadata
    mine, other = (
        {
            name: re.sub("base64,[^']+'", "", json.dumps(outputs))
            for name, outputs in outputs_by_cell(one).items()
        }
        for one in (run, again)
    )
    assert mine.keys() == other.keys() and not [name for name in mine if mine[name] != other[name]]


def test_old_results_survive_a_failure(tmp_path: Path) -> None:
    """A run that fails in its last cell but one changes no old result; `project` is obeyed."""
    project, folder, notebook = small_project(tmp_path), tmp_path / "alone", read_notebook()
    last = [cell.id for cell in notebook.cells].index("deliverables")
    notebook.cells.insert(last, nbformat.v4.new_code_cell("1 / 0", id="broken"))
    folder.mkdir()
    nbformat.write(notebook, folder / NOTEBOOK.name)
    run = run_notebook(folder, {"project": str(project)})
    assert run.notebook is None and "ZeroDivisionError" in run.last_error()
    assert names_in(folder) == {NOTEBOOK.name}
    old = project / "outputs" / "bach_chorales"
    assert {path.name: path.read_bytes() for path in old.iterdir()} == OLD


@pytest.mark.parametrize("stopped", [None, 1, 2])
def test_old_and_new_results_never_mix(
    nb: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int | None
) -> None:
    """New results take the place of old ones; cells can run twice; a stopped run is made good."""
    cells = {cell.id: cell.source for cell in code_cells(read_notebook())}
    outputs, rename, piece = tmp_path / "outputs", Path.rename, chorale(nb, 1)
    (outputs / "bach" / "old").mkdir(parents=True)
    config = replace(nb.Config(), seed_notes=len(piece), piece_notes=len(piece))
    names = dict.fromkeys(("log", "scores", "table"), pd.DataFrame({"a": [1]})) | vars(nb)
    names |= {"project_dir": tmp_path, "corpus": "bach", "config": config, "RATE": 400}
    names |= {"seeds": [piece] * 3, "drawn": [piece], "kept": [0] * 3}
    monkeypatch.setattr(nb, "play", lambda *_: b"")

    def run_cells(ids: str, corpus: str = "bach", stopped: int | None = None) -> None:
        """Run cells, and end the run before the renaming of this number."""
        turns = iter([1, 2])

        def stopping(path: Path, target: Path) -> Path:
            if next(turns) == stopped:
                raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
            patched.setattr(Path, "rename", stopping)
            for name in ids.split():
                names["corpus"] = corpus
                exec(cells[name], names)

    run_cells("write-files files-back deliverables", stopped=stopped)
    if stopped:
        # of other corpora and of the next run
        run_cells("write-files files-back deliverables", "bach-old")
        run_cells("write-files")
        assert names_in(outputs) == {"bach", ".bach", "bach-old"}
        assert names_in(outputs / "bach") == {"old"}
        run_cells("files-back deliverables")
    run_cells("files-back deliverables files-back")
    assert names_in(outputs) - {"bach-old"} == {"bach"}
    assert names_in(outputs / "bach") == WRITTEN
    run_cells("write-files write-files files-back deliverables")
    assert names_in(outputs / "bach") == WRITTEN


def test_parameters_that_cannot_be(nb: ModuleType, tmp_path: Path) -> None:
    """A folder without the notebook is refused, and so is a corpus named as other results are."""
    source = next(c.source for c in code_cells(read_notebook()) if c.id == "config-run")
    refused = (("mozart", tmp_path, "set `project`"), ("study", ROOT, "name"), (".x", ROOT, "name"))
    for corpus, project, cure in refused:
        names = vars(nb) | {"corpus": corpus, "project": str(project), "changes": {}}
        with pytest.raises(ValueError, match=cure):
            exec(source, names)


def test_offline_guard(offline: dict[str, str]) -> None:
    """The guard under which the small run was made refuses other machines."""
    call = [sys.executable, "-c", "import urllib.request as r; r.urlopen('http://192.0.2.1/')"]
    done = subprocess.run(call, env=os.environ | offline, capture_output=True, text=True)
    assert "the network is switched off" in done.stderr
