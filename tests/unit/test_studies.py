"""The scripts of the studies, on toy music: what they leave out, and what they measure."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import ablation
import composers
import leak
import music
import numpy as np
import pandas as pd
import pytest
import study_tools
import torch
from ablation import DRAWING, TRAINING, WHOLE
from notebook_tools import ROOT, chorale, small_config
from pytest import CaptureFixture, MonkeyPatch


@pytest.fixture(scope="module")
def pieces(nb: ModuleType) -> list:
    """Return toy music."""
    music = [chorale(nb, i, name=f"p{chr(97 + i)}") for i in range(12)]
    return nb.link_pieces(music, small_config(nb))


@pytest.fixture(scope="module")
def trained(nb: ModuleType, pieces: list) -> study_tools.Trained:
    """Return a model that was trained on toy music as the studies do."""
    return study_tools.train(nb, pieces, small_config(nb, epochs=1), 0)


def weights(model: torch.nn.Module) -> torch.Tensor:
    """Return all weights."""
    return torch.nn.utils.parameters_to_vector(model.parameters())


def test_training_is_that_of_the_notebook(nb: ModuleType, trained: study_tools.Trained) -> None:
    """The weights are those that the cells of the notebook give with the same random state."""
    config = trained.composer.config
    around = nb.pitch_range(trained.split["training"], config.transpose)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(trained.normaliser.names, around, config)
    torch.manual_seed(0)
    nb.fit(model, trained.encoded, config)
    assert torch.equal(weights(model), weights(trained.model))


@pytest.mark.parametrize("idea", [*TRAINING, *DRAWING])
def test_leaving_out(nb: ModuleType, pieces: list, trained: study_tools.Trained, idea: str) -> None:
    """What is left out makes other weights or other pieces, and afterwards it is there again."""
    settings, change = (TRAINING | DRAWING)[idea]
    changes, config = change(nb), replace(trained.composer.config, **settings)
    before = [getattr(*place) for place in changes]

    def drawn(composer: object) -> torch.Tensor:
        music = study_tools.unselected(nb, composer, trained.split["test"], 3, 0)
        return torch.tensor(np.stack([piece.notes.to_numpy() for _, piece, _ in music]))

    with ablation.changed(changes):
        if idea in TRAINING:
            other = weights(study_tools.train(nb, pieces, config, 0).model)
        else:
            other = drawn(replace(trained.composer, config=config))
    whole = weights(trained.model) if idea in TRAINING else drawn(trained.composer)
    assert torch.equal(other, whole) == (idea == WHOLE)
    assert before == [getattr(*place) for place in changes]


def test_what_is_not_told(nb: ModuleType, trained: study_tools.Trained) -> None:
    """Of what the model is told just the part left out is blank."""
    pieces, whole = trained.split["test"][:1], trained.encoded["test"][0]
    names = [name for name in whole if "context" in name and "pitch" not in name]
    ideas = {(name,): ablation.blanked(nb, name) for name in [*names, "near_state"]}
    ideas["parallel_pitch",] = ablation.unparalleled(nb)
    copies = "candidate", "candidate_length", "copied", "copied_change", "copied_length"
    none = "candidate", "parallel_pitch"
    ideas[copies] = ablation.uncopied(nb)
    for blank, changes in ideas.items():
        with ablation.changed(changes):
            (features,) = nb.encode(pieces, trained.normaliser, trained.composer.config)
        assert {name for name in features if not torch.equal(features[name], whole[name])} == {
            *blank
        }
        assert all(features[name].eq(nb.NO_PITCH * (name in none)).all() for name in blank)


def test_summary_of_the_ablation() -> None:
    """A change is the mean difference within a corpus and the newest whole; the sure are named."""
    older, newer = ablation.WHOLES[-2:]
    rows = [
        ("a", whole, state, left, 1.0 + state + change, 0.0)
        for whole, left, changes in (
            (newer, "none", (0, 0, 0)),
            (newer, "metre", (0.2, 0.3, 0.4)),
            (newer, "old", (0, 1, 0.5)),
            (older, "none", (9, 9, 9)),
            (older, "metre", (9, 9, 9)),
            (older, "once", (9, 9.5, 10)),
        )
        for state, change in enumerate(changes)
    ]
    runs = pd.DataFrame(rows, columns=[*ablation.KEY, "pitch", "step"])
    runs = runs.reindex(columns=[*ablation.KEY, *ablation.SCORES])
    table = ablation.summary(runs.fillna({"step": 0.0})).set_index("left out")
    assert table.pitch.to_dict() == {
        "metre": "+0.300 ± 0.100",
        "old": "+0.500 ± 0.500",
        "once": "+0.500 ± 0.500",
    }
    assert table.whole.to_dict() == {"metre": newer, "old": newer, "once": older}
    assert table.sure.to_dict() == {"metre": "pitch", "old": "", "once": ""}
    assert table.kept.to_dict() == {"metre": True, "old": False, "once": False}
    assert table.step["metre"] == "" and table.runs["metre"] == 3


def test_ablation_table_is_that_of_its_runs() -> None:
    """The table that the notebook shows is the summary of the runs."""
    runs, table = (ROOT / "outputs" / "study" / f"ablation{end}.csv" for end in ("_runs", ""))
    again = ablation.summary(pd.read_csv(runs)).astype(str)
    assert pd.read_csv(table, keep_default_na=False).astype(str).equals(again)


def test_composers_table_is_that_of_its_runs() -> None:
    """The table that the notebook shows holds the medians of the runs, whole works first."""
    runs = pd.read_csv(composers.RUNS)
    table = pd.read_csv(composers.TABLE, dtype=str, keep_default_na=False)
    again = composers.summary(runs).to_csv(index=False, float_format="%.3g")
    assert again == composers.TABLE.read_text(encoding="utf-8")
    assert list(table.cut) == sorted(table.cut) and set(table.composer) == set(runs.composer)
    chopin = runs[runs.composer == "chopin"]
    shown = table.set_index("composer").loc["chopin"]
    assert float(shown.pitch) == pytest.approx(chopin.pitch.median(), rel=0.01)
    assert int(shown.runs) == len(chopin)


def test_rows_are_added_once(tmp_path: Path) -> None:
    """A row takes the place of the one with the same key, and the table is sorted."""
    path = tmp_path / "new" / "table.csv"
    for value, key in ((1, "b"), (2, "a"), (3, "b")):
        study_tools.add_row(path, {"key": key, "value": value}, ["key"])
    assert path.read_text() == "key,value\na,2\nb,3\n"
    assert study_tools.known(path, ["key"]) == {("a",), ("b",)}
    assert study_tools.known(tmp_path / "none.csv", ["key"]) == set()
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


def test_leak_windows(trained: study_tools.Trained) -> None:
    """There is a window for every first note, and each is the slice that it says."""
    encoded, config = trained.encoded["test"], trained.composer.config
    starts = leak.every_start(encoded, config)
    assert starts == [(i, s) for i, p in enumerate(encoded) for s in range(len(p["pitch"]) - 15)]
    for (i, s), window in zip(starts, leak.cut(encoded, starts, config), strict=True):
        for name, values in window.items():
            assert torch.equal(values, encoded[i][name][s : s + 16])


def test_composers(capsys: CaptureFixture, tmp_path: Path, monkeypatch: MonkeyPatch) -> None:
    """A composer who is not there is an error that lists those who are."""
    (tmp_path / "haydn").mkdir()
    monkeypatch.setattr("sys.argv", ["composers.py", str(tmp_path), "mozrat"])
    with pytest.raises(SystemExit):
        composers.main()
    assert "haydn" in capsys.readouterr().err


def one_nn_accuracy(real: np.ndarray, made: np.ndarray, sources: list, others: list) -> float:
    """Return how well pieces of these figures and sources are told apart."""
    nb = SimpleNamespace(describe=lambda notes: dict(enumerate(notes)))
    both = zip((real, made), (sources, others), strict=True)
    pieces = [[SimpleNamespace(name=n, notes=row) for row, n in zip(*p, strict=True)] for p in both]
    return study_tools.one_nn_accuracy(nb, *pieces)


def test_told_apart() -> None:
    """One distribution is told half of the time, a figure far off always, a source never."""
    rng, many, few = np.random.default_rng(0), list(range(40)), [0, 1] * 20
    drawn = rng.normal(size=(12, 40, 3))
    for sources, others in ((many, [40, 41] * 20), (few, [*range(2, 42)])):
        same = [one_nn_accuracy(*drawn[i : i + 2], sources, others) for i in range(0, 12, 2)]
        assert np.mean(same) == pytest.approx(0.5, abs=0.07)
    for unit in ([1e-3, 1, 1], [1, 1, 1e3]):
        assert one_nn_accuracy(drawn[0] * unit, (drawn[1] + [0, 100, 0]) * unit, many, few) == 1
    # six that are alone among sixty count as much as the sixty
    corners = 100 * np.vstack([np.eye(3), -np.eye(3)])
    assert (
        one_nn_accuracy(drawn[:2].reshape(-1, 3)[:60], corners, [*range(60)], [*range(60, 66)])
        == 0.5
    )
    # its twin is always the nearest, unless it is from the same source
    assert one_nn_accuracy(drawn[0], drawn[0], many, many[::-1]) < 0.05
    assert one_nn_accuracy(drawn[0], drawn[0], many, many) == pytest.approx(0.5, abs=0.1)


def test_unselected(nb: ModuleType, trained: study_tools.Trained, monkeypatch: MonkeyPatch) -> None:
    """As many seeds as asked, in turn from the pieces that are long enough, each a new start."""
    one, other = (chorale(nb, i, velocity=True) for i in (0, 1))
    pieces, fake = [one, replace(one, notes=one.notes.head(15)), other], Mock()
    fake.compose = Mock(side_effect=lambda _, seeds, __: seeds)
    monkeypatch.setattr(study_tools, "read_back", lambda _, piece: replace(piece, tempo=1.0))
    music = study_tools.unselected(fake, trained.composer, pieces, 35, 40)
    states = [call.args[2] for call in fake.compose.call_args_list]
    assert states == [40, 72] and len(music) == 35
    for i, (seed, made, real) in enumerate(music):
        piece, turn = (one, other)[i % 2], i // 2
        start = turn * (len(piece) - 16) // 18
        notes = piece.notes[start : start + 36].reset_index(drop=True)
        assert seed.name == real.name == made.name == piece.name and made.tempo == 1
        assert seed.notes.equals(notes[:16]) and made.notes.equals(seed.notes)
        assert real.notes.equals(notes[16:].reset_index(drop=True))


@pytest.mark.parametrize("new_onset", [False, True])
def test_quarters(nb: ModuleType, trained: study_tools.Trained, new_onset: bool) -> None:
    """The nats of a real continuation are those of the piece as a whole; figures are means."""
    piece, encoded = trained.split["test"][0], trained.encoded["test"][0]
    start = 16 + int(np.flatnonzero((piece.notes.step > 0)[16:] == new_onset)[0])
    notes = piece.notes[start : start + 42].reset_index(drop=True)
    notes["onset"] -= notes.onset[0]  # as it is read back, from time zero
    higher = notes.assign(pitch=notes.pitch + 6)
    seed, *music = (replace(piece, notes=part) for part in (piece.notes[:start], notes, higher))
    logits = nb.predict(trained.model, encoded)[0]
    nats = -logits.log_softmax(-1)[torch.arange(len(logits)), encoded["pitch"]].numpy()
    parts = [slice(0, 11), slice(11, 22), slice(22, 32), slice(32, 42)]
    table = music.quarters(nb, trained.composer, [(seed, music[0])])
    expected = [nats[start:][part].mean() for part in parts]
    assert table.nats.tolist() == pytest.approx(expected, rel=1e-4)
    table = music.quarters(nb, trained.composer, [(seed, part) for part in music])
    for name, more in (("mean pitch", 3), ("chord rate", 0), ("mean step", 0), ("silence", 0)):
        expected = [nb.describe(notes[part])[name] + more for part in parts]
        assert table[name].tolist() == pytest.approx(expected), name
    assert table["spread of the mean pitch"].tolist() == pytest.approx([18**0.5] * 4)


def features(nb: ModuleType, monkeypatch: MonkeyPatch, piece: dict, *outputs: object) -> object:
    """Return what is trained of numbers a, b and c, where the model says this of this piece."""
    monkeypatch.setattr(nb, "predict", lambda *_: outputs)
    composer = SimpleNamespace(config=small_config(nb, seed_notes=200, neighbours=200))
    names, encoded = SimpleNamespace(names=["a", "b", "c"]), {"test": [piece]}
    return study_tools.Trained({}, encoded, names, None, composer, None)


def test_coverage(nb: ModuleType, monkeypatch: MonkeyPatch) -> None:
    """The share asked for is covered where the residuals of the seed are those of the rest.

    Medians that are true in the seed leave no residuals: after it they are right or wrong.
    """
    sure = torch.cat([torch.arange(200.0), torch.arange(200.0).flip(0)])
    spread, wrong = sure - 100, sure + (torch.arange(400) >= 200)
    medians = torch.stack([0 * spread, sure, wrong], dim=1)
    piece = {"pitch": torch.zeros(400), "attributes": torch.stack([spread, sure, sure], dim=1)}
    trained = features(nb, monkeypatch, piece, medians, medians, torch.zeros(400, 3, 2))
    trained.encoded["test"].append({"pitch": torch.zeros(200)})  # no longer than a seed
    found = music.coverage(nb, trained)
    for name, shares in {"a": (0.5, 0.8), "b": (1, 1), "c": (0, 0)}.items():
        mine = [found[f"{name} in the middle {percent}%"] for percent in (50, 80)]
        assert mine == pytest.approx(shares, abs=0.01)


def test_reliability(nb: ModuleType, monkeypatch: MonkeyPatch) -> None:
    """Of the pitches that were given one chance it says how many came."""
    logits = torch.full((10, 128), -30.0)
    logits[:, 60], logits[:, 61] = np.log(3), 0
    piece = {"pitch": torch.tensor([60] * 6 + [61] * 4)}
    found = music.reliability(nb, features(nb, monkeypatch, piece, logits))
    assert found.index.tolist() == [f"pitch given {percent}% came" for percent in (0, 25, 75)]
    assert found.tolist() == pytest.approx([0, 0.4, 0.6])
