"""Sections 9 and 12 of the notebook: the scores with their rules, and what the pieces are worth."""

import math
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import chorale, chorale_notes, piece_of, small_config

TUNE = [60, 64, 67, 65, 62, 69, 71, 72, 57, 59, 66, 61]


@pytest.fixture(scope="module")
def toy(nb: ModuleType) -> SimpleNamespace:
    """Return random pieces in a split, encoded, with a normaliser and untrained models."""
    config = small_config(nb)
    pieces = [chorale(nb, i, 12 + 4 * i, velocity=True) for i in range(5)]
    split = {"training": pieces[:2], "validation": pieces[2:3], "test": pieces[3:]}
    normaliser = nb.Normaliser(split["training"])
    torch.manual_seed(0)
    kinds = {"plain model": nb.PlainLSTM, "model": nb.MultiHeadLSTM}
    models = {name: kind(normaliser.names, config) for name, kind in kinds.items()}
    encoded = [nb.encode(piece.notes, normaliser, config) for piece in split["test"]]
    composer = nb.Composer(models["model"], normaliser, 40, 80, config)
    return SimpleNamespace(**locals())


# Section 9: n-grams


def chances(
    nb: ModuleType, table: object, before: list[int], order: int, memory: range = range(0)
) -> np.ndarray:
    """Return the chance of each pitch after the notes before it."""
    nats = [nb.ngram_nats(table, [*before, pitch], order, memory)[-1] for pitch in range(128)]
    return np.exp(-np.array(nats))


@pytest.mark.parametrize("memory", [range(0), range(3, 6)])
@pytest.mark.parametrize("before", [[], [61], [60, 62, 60], [99, 60, 61], [60, 61, 63, 62] * 3])
def test_chances_sum_to_one(nb: ModuleType, before: list[int], memory: range) -> None:
    """The chances of all pitches sum to one, with the memory of the piece and without it."""
    table = nb.count_ngrams(np.random.default_rng(0).integers(60, 64, (3, 50)).tolist())
    assert chances(nb, table, before, 4, memory).sum() == pytest.approx(1)


def test_ngrams_by_hand(nb: ModuleType) -> None:
    """The chances equal those worked out on paper."""
    table = nb.count_ngrams([[60, 60, 62]])
    first, second, third = (chances(nb, table, before, 3) for before in ([], [60], [62, 62]))
    alone = {60: (2 + 2 / 128) / 5, 62: (1 + 2 / 128) / 5, 64: (2 / 128) / 5}
    assert {pitch: first[pitch] for pitch in alone} == pytest.approx(alone)
    # the intervals 0 and 2 were heard once each
    assert second[60] == pytest.approx((1 + 2 * alone[60]) / 4)
    assert second[64] == pytest.approx(2 * alone[64] / 4)
    # after the interval 0 came the interval 2, once
    assert third[64] == pytest.approx((1 + (1 + 2 * alone[64]) / 4) / 2)
    assert third[60] == pytest.approx((2 * alone[60] / 4) / 2)


def test_memory_by_hand(nb: ModuleType) -> None:
    """The memory knows what followed each pitch in the piece so far, and nothing transposed."""
    table = nb.count_ngrams([[60, 62, 65, 67]])
    nats = nb.ngram_nats(table, [60, 62, 60, 62, 60, 62, 65, 67], 1, range(2, 3))
    alone = (1 + 4 / 128) / 8
    once, twice = (1 + alone) / 2, (2 + alone) / 3
    # after 62 came 60, twice
    expected = [alone, alone, alone, once, once, twice, alone / 3, alone]
    assert np.exp(-nats) == pytest.approx(expected)


def played(nb: ModuleType, pitches: list[int]) -> object:
    """Return a piece of these pitches, one after another."""
    return piece_of(nb, "tune", [(i, pitch, 1, 90) for i, pitch in enumerate(pitches)])


def test_rules_of_the_pitch(nb: ModuleType) -> None:
    """Each rule gives what its table says of each note; training music counts in any key."""
    there, test = [pitch + 15 for pitch in TUNE], [TUNE, TUNE[::-1] * 3]
    split = {"training": [there, [60, 60, 62]], "validation": [TUNE], "test": test}
    pieces = {side: [played(nb, pitches) for pitches in part] for side, part in split.items()}
    losses, table = nb.pitch_losses({}, [], pieces), nb.count_ngrams(split["training"])
    rules = {"single pitches": (1,), "6-grams": (6,), "6-grams and memory": (6, nb.MEMORY)}
    assert list(losses) == ["uniform", *rules]
    assert [part.tolist() for part in losses["uniform"]] == [[math.log(128)] * len(p) for p in test]
    for rule, arguments in rules.items():
        expected = [nb.ngram_nats(table, pitches, *arguments) for pitches in test]
        assert all(map(np.array_equal, losses[rule], expected)), rule
    assert losses["6-grams"][0][2:].max() < 1.5 < losses["single pitches"][0][2:].min()


def test_order_is_chosen_on_validation(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order is the best one for the notes of the validation pieces, and of no others."""
    best = {60: 6, 61: 3, 62: 4, 63: 5}  # by the first pitch of the piece

    def nats(_: object, pitches: list[int], order: int, *memory: range) -> np.ndarray:
        return np.full(len(pitches), float(order != best[pitches[0]]))

    monkeypatch.setattr(nb, "ngram_nats", nats)
    training, long, short, test = (
        played(nb, [first] * count) for first, count in zip(best, (30, 30, 9, 30), strict=True)
    )
    split = {"training": [training], "validation": [short, long, short], "test": [test]}
    assert list(nb.pitch_losses({}, [], split))[2:] == ["3-grams", "3-grams and memory"]


# Section 9: the rules and the models


def test_pitch_of_the_models(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The nats are those by which training is judged, without dropout and random numbers."""
    before = torch.get_rng_state()
    for model in toy.models.values():
        model.train()
    losses = nb.pitch_losses(toy.models, toy.encoded, toy.split)
    assert list(losses)[4:] == list(toy.models) and before.equal(torch.get_rng_state())
    shifted = [nb.shift_notes(piece.notes, toy.normaliser) for piece in toy.split["test"]]
    for (name, model), given in zip(toy.models.items(), (shifted, toy.encoded), strict=True):
        for piece, nats in zip(given, losses[name], strict=True):
            expected = nb.evaluate(model, nb.whole_pieces([piece], toy.config))["pitch"]
            assert len(nats) == len(piece["pitch"])
            assert nats.mean() == pytest.approx(expected, rel=1e-5)


def test_polyphony(nb: ModuleType) -> None:
    """At each onset those count that begin and still sound; before it, those held until it."""
    notes = [(0, 60, 1), (0, 64, 0.5), (1, 62, 1), (1.5, 70, 0.5), (3, 60, 1)]
    table = piece_of(nb, "toy", [(*note, 90) for note in notes]).notes
    assert nb.polyphony(table).tolist() == [2, 1, 2, 1]
    assert nb.polyphony(table, before=True).tolist() == [1, 1, 0]


@pytest.mark.parametrize("pitch, usual, step", [(67, 3, 0), (67, 2, 1), (62, 3, 1), (64, 3, 1)])
def test_step_rule_by_hand(nb: ModuleType, pitch: int, usual: float, step: float) -> None:
    """A pitch that rises while a voice is missing joins; else the first end is awaited."""
    notes = piece_of(nb, "toy", [(0, 60, 3, 90), (0, 64, 1, 90), (9, pitch, 1, 90)]).notes
    assert nb.step_rule(notes, usual).tolist() == [0, 0, step]


@pytest.mark.parametrize("name", ["step", "duration", "velocity"])
def test_errors_of_the_numbers(nb: ModuleType, toy: SimpleNamespace, name: str) -> None:
    """The errors are those counted by hand; rules know the training pieces, and so four voices."""
    duets = [[note for note in chorale_notes(i, 40, True) if note[1] < 59] for i in (3, 4)]
    pieces = [piece_of(nb, "duet", notes) for notes in duets]
    encoded = [nb.encode(piece.notes, toy.normaliser, toy.config) for piece in pieces]
    split = toy.split | {"test": pieces}
    losses = nb.number_losses(toy.models, encoded, split, toy.normaliser)[name]
    median = np.median([x for piece in toy.split["training"] for x in piece.notes[name]])
    index, inverse = toy.normaliser.names.index(name), toy.normaliser.inverse
    for i, (piece, told) in enumerate(zip(pieces, encoded, strict=True)):
        true = piece.notes[name].to_numpy()
        guesses = {"constant median": median, "copy of the note before": [median, *true[:-1]]}
        if name == "step":
            guesses["rule of the sounding notes"] = nb.step_rule(piece.notes, 4)
            assert (nb.step_rule(piece.notes, 2) == true).all()
        guesses["copy of the most similar place"] = inverse(name, told["copied"][:, index])
        for rule, model in toy.models.items():
            guesses[rule] = inverse(name, nb.predict(model, told)[1][:, index])
        assert list(losses) == list(guesses)
        for rule, guess in guesses.items():
            assert losses[rule][i] == pytest.approx(np.abs(true - guess)), rule


# Section 9: intervals and the table


def test_bootstrap(nb: ModuleType) -> None:
    """The interval is that of the mean note, over pieces: alike ones leave nothing open."""
    # of eight pieces, the long one is not drawn in a third of the samples, or up to three times
    uneven = [np.full(1, 1.0)] * 7 + [np.full(93, 2.0)]
    assert nb.bootstrap(uneven) == pytest.approx((1.93, 1.0, 1 + 279 / 284))
    values = np.random.default_rng(0).normal(size=100)
    expected = values.mean() + 0.196 * values.std() * np.array([0, -1, 1])
    found = nb.bootstrap([np.full(5, value) for value in values])
    assert found == pytest.approx(expected, abs=0.02)
    for losses in ([values], [values, values[::-1]] * 4):
        assert np.ptp(nb.bootstrap(losses)) == pytest.approx(0)


def test_score_table(nb: ModuleType) -> None:
    """The gain is over the strongest rule that is no model, and is taken note by note."""
    model = [np.array([1.0, 2.0]), np.array([5.0])]
    rules = {"weak": 3.0, "strong": 0.5, "plain model": -1.0, "model": 0.0}
    losses = {"pitch": {rule: [piece + more for piece in model] for rule, more in rules.items()}}
    losses["step"] = {"rule": [piece * 0 for piece in model], "model": model}
    table = nb.score_table(losses).set_index(["head", "score"])
    assert table.index.tolist() == [
        *(("pitch", rule) for rule in [*rules, "gain over strong"]),
        *(("step", rule) for rule in ("rule", "model", "gain over rule")),
    ]
    assert table.loc["pitch"].loc["gain over strong"].tolist() == pytest.approx([0.5] * 3)
    assert table.loc["pitch"].loc["weak"].tolist() == pytest.approx([17 / 3, 4.5, 8])
    assert table.loc["step"].loc["gain over rule"].tolist() == pytest.approx([-8 / 3, -5, -1.5])


# Section 12: copied and told apart


def test_copied_runs(nb: ModuleType) -> None:
    """Runs are found as they stand and transposed, with the training piece they come from."""
    tune = np.array(TUNE)
    training = {"a": np.arange(30, 40), "b": np.append(90, tune[:5]), "c": tune[4:] + 7}
    pitches = np.concatenate([[20, 81], tune, [100, 33, 34]])
    assert nb.copied_runs(pitches, np.array([1, 69, 71, 2]), training) == {
        "with training": 5,
        "training piece": "b",
        "transposed": 8,
        "from": "c",
        "with the seed": 2,
    }


def figures(random_state: int, sources: list) -> pd.DataFrame:
    """Return random figures, one row for each source."""
    values = np.random.default_rng(random_state).normal(size=(len(sources), 3))
    return pd.DataFrame(values, columns=list("abc")).assign(source=sources)


@pytest.mark.parametrize(
    ("real", "made"),
    [
        ([*range(40)], [40, 41] * 20),  # few sources are made from
        ([0, 1] * 20, [*range(2, 42)]),
    ],
)
def test_like_each_other(nb: ModuleType, real: list, made: list) -> None:
    """What has one distribution is told apart half of the time, wherever it comes from."""
    runs = [nb.told_apart(figures(i, real), figures(i + 50, made)) for i in range(6)]
    assert np.mean(runs) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("scale", [0.001, 1, 1000])
def test_unlike_each_other(nb: ModuleType, scale: float) -> None:
    """One figure far off gives pieces away, in whatever unit the others are."""
    real, made = figures(0, list(range(40))), figures(1, list(range(40, 80)))
    made["c"] += 100
    for table in (real, made):
        table[["a", "b"]] *= scale
    assert nb.told_apart(real, made) == 1


def test_both_sides_count_alike(nb: ModuleType) -> None:
    """Each real piece finds a real one and so does each made one: half are told, not most."""
    corners = np.concatenate([np.eye(3), -np.eye(3)]) * 100
    made = pd.DataFrame(corners, columns=list("abc")).assign(source=range(60, 66))
    assert nb.told_apart(figures(0, [*range(60)]), made) == pytest.approx(0.5)


def test_one_source_is_never_compared(nb: ModuleType) -> None:
    """A piece that is the same as its own source does not find it, whatever the names."""
    sources = list(range(60))
    real, others = figures(0, sources), figures(0, sources[::-1])
    # its twin is always the nearest of the other kind, so that each looks like the other kind
    assert nb.told_apart(real, others) < 0.05
    apart = nb.told_apart(real, real.copy())
    assert apart == pytest.approx(0.5, abs=0.1)
    names = real.assign(source=[f"x{source}" for source in sources])
    assert nb.told_apart(names, names.copy()) == apart


# Section 12: pieces that nobody selected


def test_unselected(nb: ModuleType, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many seeds as asked, in turn from the pieces that are long enough, each a new start."""
    given = []

    def compose(_: object, seeds: list[pd.DataFrame], states: list[int]) -> list[pd.DataFrame]:
        given.append(states)
        return seeds

    monkeypatch.setattr(nb, "compose", compose)
    one, other = toy.split["test"]
    short = replace(one, name="short", notes=one.notes.head(15))
    music = nb.unselected(toy.composer, [one, short, other], 35, 40)
    assert given == [[*range(40, 72)], [72, 73, 74]]
    for i, (seed, made, real) in enumerate(music):
        piece, turn = (one, other)[i % 2], i // 2
        start = int(turn * (len(piece) - 16) / 18)
        assert seed.name == piece.name
        assert seed.notes.equals(piece.notes[start : start + 16].reset_index(drop=True))
        assert made.pitch.equals(seed.notes.pitch) and np.allclose(made.step, seed.notes.step)
        assert real.equals(piece.notes[start + 16 : start + 36].reset_index(drop=True))
    assert len(music) == 35


def test_with_sources(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The table holds the figures of each piece and the file it comes from."""
    one, other = toy.split["test"]
    table = nb.with_sources([(one, other.notes), (other, one.notes)])
    expected = [nb.describe(other.notes) | {"source": one.name}, nb.describe(one.notes)]
    assert table.to_dict("records") == [expected[0], expected[1] | {"source": other.name}]


# Section 12: quarters and coverage


@pytest.mark.parametrize("new_onset", [False, True])
def test_quarters(nb: ModuleType, toy: SimpleNamespace, new_onset: bool) -> None:
    """The nats of a real continuation are those of the piece as a whole; figures are means."""
    piece = toy.split["test"][0]
    start = 16 + int(np.flatnonzero((piece.notes.step > 0)[16:] == new_onset)[0])
    seed, rest = piece.notes[:start], piece.notes[start : start + 42].reset_index(drop=True)
    # as it is read back, from time zero
    rest = rest.assign(onset=rest.onset - rest.onset[0])
    table = nb.quarters([(seed, rest)], toy.composer)
    nats = nb.pitch_nats(toy.models["model"], toy.encoded[0])[start : start + 42]
    parts = [slice(0, 10), slice(10, 21), slice(21, 31), slice(31, 42)]
    assert table.index.tolist() == [1, 2, 3, 4]
    assert table.nats.tolist() == pytest.approx([nats[part].mean() for part in parts], rel=1e-5)
    table = nb.quarters([(seed, rest), (seed, rest.assign(pitch=rest.pitch + 6))], toy.composer)
    for name, higher in (("mean pitch", 3), ("chord rate", 0), ("mean step", 0), ("silence", 0)):
        expected = [nb.describe(rest[part])[name] + higher for part in parts]
        assert table[name].tolist() == pytest.approx(expected), name
    assert table["spread of the mean pitch"].tolist() == pytest.approx([18**0.5] * 4)


def test_coverage(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share asked for is covered where the residuals of the seed are those of the rest.

    Medians that are true in the seed leave no residuals: after it they are right or wrong.
    """
    there_and_back = torch.cat([torch.arange(200.0), torch.arange(200.0).flip(0)])
    spread, sure = there_and_back - 100, there_and_back
    wrong = sure + (torch.arange(400) >= 200)
    numbers = torch.stack([spread, sure, sure], dim=1)
    medians = torch.stack([0 * spread, sure, wrong], dim=1)
    monkeypatch.setattr(nb, "predict", lambda *_: (medians, medians, torch.zeros(400, 3, 2)))
    config = small_config(nb, seed_notes=200, neighbours=200)
    piece = {"pitch": torch.zeros(400), "numbers": numbers}
    short = {name: values[:200] for name, values in piece.items()}
    normaliser = SimpleNamespace(names=["step", "duration", "velocity"])
    composer = SimpleNamespace(model=None, normaliser=normaliser, config=config)
    table = nb.coverage([short, piece], composer)
    found = table.loc[normaliser.names, ["middle 50%", "middle 80%"]].to_numpy()
    assert found == pytest.approx(np.array([[0.5, 0.8], [1, 1], [0, 0]]), abs=0.01)
