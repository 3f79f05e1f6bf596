"""The scripts of the studies, on toy music: what they leave out, and the tables that they grow."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import study_ablation
import study_composers
import study_leak
import study_tools
import torch
from notebook_tools import ROOT, chorale, small_config

SCORES = study_ablation.SCORES


@pytest.fixture(scope="module")
def config(nb: ModuleType) -> object:
    """Return a configuration for toy music."""
    return small_config(nb, epochs=1)


@pytest.fixture(scope="module")
def trained(nb: ModuleType, config: object) -> study_tools.Trained:
    """Return a model that was trained on toy music as the studies do."""
    torch.manual_seed(0)
    pieces = nb.link_pieces([chorale(nb, i, name=f"p{chr(97 + i)}") for i in range(12)], config)
    return study_tools.train(nb, pieces, config, 0)


def music_of(nb: ModuleType, trained: study_tools.Trained) -> list[tuple[float, ...]]:
    """Return the notes of some unselected pieces."""
    made = study_tools.unselected(nb, trained, 3, 0)
    return [tuple(notes[list(nb.COLUMNS)].to_numpy().ravel()) for _, notes in made]


def test_training_of_a_study_is_that_of_the_notebook(
    nb: ModuleType, config: object, trained: study_tools.Trained
) -> None:
    """The weights are those that the steps of the notebook give with the same random state."""
    windows = nb.random_windows(trained.encoded["training"], config)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(trained.normaliser.names, config)
    torch.manual_seed(0)
    nb.fit(model, windows, nb.both_sides(trained.encoded, config), config)
    for mine, theirs in zip(model.parameters(), trained.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("idea", [i for i in study_ablation.TRAINING if i != study_ablation.WHOLE])
def test_leaving_out_changes_the_training(
    nb: ModuleType, config: object, trained: study_tools.Trained, idea: str
) -> None:
    """Each part that is left out makes other weights, and afterwards it is there again."""
    settings, change = study_ablation.TRAINING[idea]
    pieces = [piece for side in trained.split.values() for piece in side]
    with study_ablation.changed(change(nb)):
        other = study_tools.train(nb, pieces, replace(config, **settings), 0)
    again = study_tools.train(nb, pieces, config, 0)
    losses = [
        nb.evaluate(model, nb.whole_pieces(again.encoded["test"], config))["pitch"]
        for model in (other.model, again.model)
    ]
    assert losses[0] != losses[1]
    assert (
        losses[1]
        == nb.evaluate(
            study_tools.train(nb, pieces, config, 0).model,
            nb.whole_pieces(again.encoded["test"], config),
        )["pitch"]
    )


@pytest.mark.parametrize("idea", study_ablation.DRAWING)
def test_leaving_out_changes_the_drawing(
    nb: ModuleType, config: object, trained: study_tools.Trained, idea: str
) -> None:
    """Each part that is left out makes other pieces with the same model."""
    settings, change = study_ablation.DRAWING[idea]
    composer = replace(trained.composer, config=replace(config, **settings))
    whole = music_of(nb, trained)
    with study_ablation.changed(change(nb)):
        assert music_of(nb, replace(trained, composer=composer)) != whole
    assert music_of(nb, trained) == whole


def test_summary_of_the_ablation() -> None:
    """A change is the mean difference within a corpus and a whole; what is sure is named."""
    rows = [
        ("a", "now", state, left, 1.0 + state + change, 0.0)
        for left, changes in (("none", (0, 0, 0)), ("metre", (0.2, 0.3, 0.4)), ("old", (0, 1, -1)))
        for state, change in enumerate(changes)
    ]
    runs = pd.DataFrame(rows, columns=[*study_ablation.KEY, "pitch", "step"])
    runs = runs.reindex(columns=[*study_ablation.KEY, *SCORES]).fillna({"step": 0.0})
    table = study_ablation.summary(runs).set_index("left out")
    assert table.pitch["metre"] == "+0.300 ± 0.100" and table.sure["metre"] == "pitch"
    assert table.pitch["old"] == "+0.000 ± 1.000" and table.sure["old"] == ""
    assert table.step["metre"] == "" and table.runs["metre"] == 3
    assert table.kept["metre"] and not table.kept["old"]


def test_rows_are_added_once(tmp_path: Path) -> None:
    """A row takes the place of the one with the same key, and the table is sorted."""
    path = tmp_path / "new" / "table.csv"
    for value, key in ((1, "b"), (2, "a"), (3, "b")):
        study_tools.add_row(path, {"key": key, "value": value}, ["key"])
    assert path.read_text() == "key,value\na,2\nb,3\n"
    assert study_tools.known(path, ["key"]) == {("a",), ("b",)}
    assert study_tools.known(tmp_path / "none.csv", ["key"]) == set()
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


def test_leak_windows(nb: ModuleType, config: object, trained: study_tools.Trained) -> None:
    """There is a window for every first note, and each is the slice that it says."""
    encoded = trained.encoded["test"]
    starts = study_leak.every_start(encoded, config)
    lengths = [len(piece["pitch"]) for piece in encoded]
    assert len(starts) == sum(n - config.window + 1 for n in lengths)
    window = study_leak.Windows(nb, encoded, starts, config, 0)[3]
    piece, first = starts[3]
    assert torch.equal(window["pitch"], encoded[piece]["pitch"][first : first + config.window])


def test_ablation_table_is_that_of_its_runs() -> None:
    """The table that the notebook shows is the summary of the runs."""
    runs = pd.read_csv(ROOT / "outputs" / "study" / "ablation_runs.csv")
    table = pd.read_csv(ROOT / "outputs" / "study" / "ablation.csv", keep_default_na=False)
    again = study_ablation.summary(runs)
    assert table.astype(str).equals(again.astype(str))


def test_composers_of_a_path(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A composer who is not there is an error that lists those who are."""
    (tmp_path / "haydn").mkdir()
    monkeypatch.setattr("sys.argv", ["study_composers.py", str(tmp_path), "mozrat"])
    with pytest.raises(SystemExit):
        study_composers.main()
    assert "haydn" in capsys.readouterr().err
