"""The scripts of the studies, on toy music: what they leave out, and what they measure."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ablation
import leak
import music
import numpy as np
import pandas as pd
import pytest
import speed
import study_tools
import torch
from ablation import PARTS, TRAINING, WHOLE
from notebook_tools import chorale, small_config
from pytest import MonkeyPatch
from scipy.stats import ttest_rel


@pytest.fixture(scope="module")
def pieces(nb: ModuleType) -> list:
    """Return toy music."""
    toys = [chorale(nb, i, name=f"p{chr(97 + i)}") for i in range(12)]
    return nb.link_pieces(toys, small_config(nb))


@pytest.fixture(scope="module")
def trained(nb: ModuleType, pieces: list) -> study_tools.Trained:
    """Return a model that was trained on toy music as the studies do."""
    return study_tools.train(nb, pieces, small_config(nb, epochs=1, distance=8), 0)


def weights(model: torch.nn.Module) -> torch.Tensor:
    """Return all weights."""
    return torch.nn.utils.parameters_to_vector(model.parameters())


@pytest.mark.parametrize("part", PARTS)
def test_leaving_out(nb: ModuleType, pieces: list, trained: study_tools.Trained, part: str) -> None:
    """Without a part there are other weights or other pieces; afterwards it is there again."""
    settings, change = PARTS[part]
    config = replace(trained.composer.config, **settings)

    def result(config: object) -> torch.Tensor:
        if part in TRAINING:
            return weights(study_tools.train(nb, pieces, config, 0).model)
        composer = replace(trained.composer, most_copied=2, config=config)
        found = study_tools.unselected(nb, composer, trained.split["test"], 0, count=3)
        return torch.tensor(np.stack([piece.notes.to_numpy() for _, piece, _ in found]))

    with ablation.changed(change(nb)):
        other = result(config)
    whole = weights(trained.model) if part in TRAINING else result(trained.composer.config)
    assert torch.equal(other, whole) == (part == WHOLE)
    assert torch.equal(result(trained.composer.config), whole)


def test_what_is_blank(nb: ModuleType, trained: study_tools.Trained) -> None:
    """Of the features just those that are left out are blank."""
    pieces, whole = trained.split["test"][:1], trained.encoded["test"][0]
    copies = {"candidate", "candidate_length", "copied", "copied_change", "copied_length"}
    parts = {"near notes": {"near_state"}, "copying": copies}
    parts |= {"parallel motion": {"parallel_pitch"}}
    for part, names in (parts | {"first end as a proposal": {"context_end"}}).items():
        with ablation.changed(PARTS[part][1](nb)):
            (features,) = nb.encode(pieces, trained.normaliser, trained.composer.config)
        assert {k for k in features if not torch.equal(features[k], whole[k])} == names
        assert all(features[name].unique().tolist() in ([0], [nb.NO_PITCH]) for name in names)


def test_summary_of_the_ablation() -> None:
    """Changes are paired by random state, with the t-interval and Holm's correction of p."""
    whole, moved = np.array([1.0, 2, 3, 4]), np.array([0.3, 0.5, 0.4, 0.4])
    without = {"none": whole, "a": whole + moved, "b": whole + np.array([0.2, -0.2, 0.1, 0])}
    rows = [("v", "bach", i, p, 6, score) for p in without for i, score in enumerate(without[p])]
    found = ablation.summary(pd.DataFrame(rows, columns=[*ablation.KEY, "epochs", "pitch"]))
    a, b = found.set_index("left out").loc[["a", "b"]].to_dict("records")
    half = 3.1824 * np.std(moved, ddof=1) / 2  # 97.5 % of t with 3 degrees
    assert (a["change"], a["low"], a["high"]) == pytest.approx((0.4, 0.4 - half, 0.4 + half), 1e-3)
    single = ttest_rel(without["a"], whole).pvalue
    assert a["p"] == pytest.approx(2 * single) and a["sure"] and a["states"] == 4
    assert b["p"] == pytest.approx(ttest_rel(without["b"], whole).pvalue) and not b["sure"]


def test_version(nb: ModuleType, monkeypatch: MonkeyPatch) -> None:
    """The digest is of what is computed: it stays, and changes with the model or the sampler."""
    first = study_tools.version(nb)
    assert study_tools.version(nb) == first
    monkeypatch.setattr(nb, "nucleus", lambda probabilities, _: probabilities)
    drawn = study_tools.version(nb)
    monkeypatch.setattr(nb, "proposals", lambda batch, f=nb.proposals: 0 * f(batch))
    assert len({first, drawn, study_tools.version(nb)}) == 3


def test_rows_are_added_once(tmp_path: Path) -> None:
    """A row takes the place of the one with the same key, and the table is sorted."""
    path = tmp_path / "new" / "table.csv"
    assert study_tools.known(path, ["key"]) == set()
    for value, key in ((1, "b"), (2, "a"), (3, "b")):
        study_tools.add_row(path, {"key": key, "value": value}, ["key"])
    assert path.read_text() == "key,value\na,2\nb,3\n"
    assert study_tools.known(path, ["key"]) == {("a",), ("b",)}
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]


def test_leak(trained: study_tools.Trained) -> None:
    """Windows are the slices that they say; both splits hold out as many, and share none."""
    encoded, length = trained.encoded, 16
    starts = leak.every_start(encoded["test"], length)
    assert len(starts) == sum(len(piece["pitch"]) - 15 for piece in encoded["test"])
    for (i, s), window in zip(starts, leak.cut(encoded["test"], starts, length), strict=True):
        assert torch.equal(window["pitch"], encoded["test"][i]["pitch"][s : s + 16])
    by_work, mixed = leak.both_splits(encoded, length).values()
    assert all(s % length == 0 for _, s in by_work["test"][1])
    assert len(mixed["test"][1]) == len(mixed["validation"][1]) == len(by_work["test"][1])
    dealt = [place for _, places in mixed.values() for place in places]
    assert len({*dealt}) == len(dealt) == len(leak.every_start(mixed["test"][0], length))


def one_nn(real: np.ndarray, made: np.ndarray, sources: list, others: list) -> float:
    """Return the 1-NN accuracy of pieces with these statistics and sources."""
    nb = SimpleNamespace(describe=lambda notes: dict(enumerate(notes)))
    both = [*zip(real, sources, strict=True)], [*zip(made, others, strict=True)]
    pieces = [[SimpleNamespace(notes=row, name=name) for row, name in part] for part in both]
    return study_tools.one_nn_accuracy(nb, *pieces)


def test_one_nn_accuracy() -> None:
    """One distribution gives a half, a statistic far off one, and a source never meets itself."""
    many, few = list(range(40)), [0, 1] * 20
    drawn = np.random.default_rng(0).normal(size=(12, 40, 3))
    for sources, others in ((many, [40, 41] * 20), (few, [*range(2, 42)])):
        same = [one_nn(*drawn[i : i + 2], sources, others) for i in range(0, 12, 2)]
        assert np.mean(same) == pytest.approx(0.5, abs=0.07)
    assert one_nn(drawn[0], drawn[1] + [0, 100, 0], many, few) == 1
    # six that are alone among sixty count as much as the sixty
    corners, sixty = 100 * np.vstack([np.eye(3), -np.eye(3)]), drawn[:2].reshape(-1, 3)[:60]
    assert one_nn(sixty, corners, [*range(60)], [*range(60, 66)]) == 0.5
    # its twin is always the nearest, unless it is from the same source
    assert one_nn(drawn[0], drawn[0], many, many[::-1]) < 0.05
    assert one_nn(drawn[0], drawn[0], many, many) == pytest.approx(0.5, abs=0.1)


def test_unselected(nb: ModuleType, trained: study_tools.Trained) -> None:
    """As many seeds as asked, in turn from the pieces that are long enough, each a new start."""
    one, short, other = (chorale(nb, i, beats) for i, beats in ((0, 24), (1, 3), (2, 24)))
    triples = study_tools.unselected(nb, trained.composer, [one, short, other], 0, count=35)
    for i, (seed, made, real) in enumerate(triples):
        piece = (one, other)[i % 2]
        start = i // 2 * (len(piece) - 16) // 18
        notes = piece.notes[start : start + 36].reset_index(drop=True)
        assert seed.notes.equals(notes[:16])
        assert real.notes.equals(notes[16:].reset_index(drop=True))
        assert seed.name == real.name == made.name == piece.name and len(made) == 20
    pitches = {tuple(made.notes.pitch) for _, made, _ in triples}
    assert len(triples) == 35 and len(pitches) > 30


def test_quarters(nb: ModuleType, trained: study_tools.Trained) -> None:
    """The nats of a true continuation are those of the piece as a whole; statistics are means."""
    piece, encoded = trained.split["test"][0], trained.encoded["test"][0]
    notes = piece.notes[17 : 17 + 40].reset_index(drop=True)
    notes["onset"] -= notes.onset[0]  # as it is read back, from time zero
    seed, true = (replace(piece, notes=part) for part in (piece.notes[:17], notes))
    higher = replace(piece, notes=notes.assign(pitch=notes.pitch + 6))
    logits = nb.predict(trained.model, encoded)[0]
    nats = torch.nn.functional.cross_entropy(logits, encoded["pitch"], reduction="none")
    table = music.quarters(nb, trained.composer, [(seed, true)])
    expected = nats[17:57].view(4, 10).mean(1).tolist()
    assert table.nats.tolist() == pytest.approx(expected, rel=1e-4)
    table = music.quarters(nb, trained.composer, [(seed, true), (seed, higher)])
    pitches = notes.pitch.to_numpy().reshape(4, 10).mean(1) + 3
    assert table["mean pitch"].tolist() == pytest.approx(pitches)
    assert table["spread of the mean pitch"].tolist() == pytest.approx([18**0.5] * 4)


def predicting(nb: ModuleType, monkeypatch: MonkeyPatch, piece: dict, *outputs: object) -> object:
    """Return what is trained of attributes a, b and c, where the model says this of this piece."""
    monkeypatch.setattr(nb, "predict", lambda *_: outputs)
    composer = SimpleNamespace(config=small_config(nb, seed_notes=200, neighbours=200))
    names, encoded = SimpleNamespace(names=["a", "b", "c"]), {"validation": [piece]}
    return study_tools.Trained({}, encoded, names, None, composer, None)


def test_coverage(nb: ModuleType, monkeypatch: MonkeyPatch) -> None:
    """The share asked for is covered where the residuals of the seed are those of the rest.

    Medians that are true in the seed leave no residuals: after it they are right or wrong.
    """
    sure = torch.cat([torch.arange(200.0), torch.arange(200.0).flip(0)])
    spread, wrong = sure - 100, sure + (torch.arange(400) >= 200)
    medians = torch.stack([0 * spread, sure, wrong], dim=1)
    piece = {"pitch": torch.zeros(400), "attributes": torch.stack([spread, sure, sure], dim=1)}
    trained = predicting(nb, monkeypatch, piece, medians, medians, torch.zeros(400, 3, 2))
    trained.encoded["validation"].append({"pitch": torch.zeros(200)})  # no longer than a seed
    found = music.coverage(nb, trained)
    for name, shares in {"a": (0.5, 0.8), "b": (1, 1), "c": (0, 0)}.items():
        mine = [found[f"{name} in the middle {percent}%"] for percent in (50, 80)]
        assert mine == pytest.approx(shares, abs=0.01)


def test_reliability(nb: ModuleType, monkeypatch: MonkeyPatch) -> None:
    """Of the pitches that were given one probability it says how many came."""
    logits = torch.full((10, 128), -30.0)
    logits[:, 60], logits[:, 61] = np.log(3), 0
    piece = {"pitch": torch.tensor([60] * 6 + [61] * 4)}
    found = music.reliability(nb, predicting(nb, monkeypatch, piece, logits))
    assert found.index.tolist() == [f"pitch given {percent}% came" for percent in (0, 25, 75)]
    assert found.tolist() == pytest.approx([0, 0.4, 0.6])


@pytest.mark.parametrize("design", [speed.Tutorial, speed.Published])
def test_other_designs(nb: ModuleType, trained: study_tools.Trained, design: type) -> None:
    """A design scores a note by what came before it, in training as in scoring."""
    torch.manual_seed(0)
    model, piece = design(["step", "duration"]).eval(), trained.encoded["test"][0]
    piece = {name: values[None, :60] for name, values in piece.items()}
    later = piece | {"context_pitch": piece["context_pitch"].clone()}
    later["context_pitch"][:, 40] += 1
    one, two = model(piece)[0][0], model(later)[0][0]
    assert torch.allclose(one[:40], two[:40]) and not torch.allclose(one[40], two[40])
    if design is speed.Tutorial:
        window = {name: values[:, 16:41] for name, values in piece.items()}
        assert torch.allclose(model.train()(window)[0][0, 0], one[40], atol=1e-6)
    windows = next(speed.batches(trained.encoded["training"], 25))["pitch"]
    pieces = [piece["pitch"].unfold(0, 25, 1) for piece in trained.encoded["training"]]
    assert all((torch.cat(pieces) == window).all(1).any() for window in windows)
