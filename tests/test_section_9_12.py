"""Sections 9, 12 and 13 of the notebook: the scores with their rules, and what is copied."""

import math
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import chorale, chorale_notes, piece_of, small_config

TUNE = [60, 64, 67, 65, 62, 69, 71, 72, 57, 59, 66, 61]
HALF_TICK = 1 / 960


@pytest.fixture(scope="module")
def toy(nb: ModuleType) -> SimpleNamespace:
    """Return a split of random pieces, of which the test ones are duets, and untrained models."""
    config = small_config(nb)
    pieces = [chorale(nb, i, 12 + 4 * i, velocity=True) for i in range(3)]
    duets = [[note for note in chorale_notes(i, 40, True) if note[1] < 59] for i in (3, 4)]
    test = [piece_of(nb, "duet", notes) for notes in duets]
    split = {"training": pieces[:2], "validation": pieces[2:], "test": test}
    normaliser = nb.Normaliser(split["training"])
    encoded = {side: nb.encode(part, normaliser, config) for side, part in split.items()}
    torch.manual_seed(0)
    models = {"plain model": nb.PlainLSTM(normaliser.names, config)}
    models["model"] = nb.MultiHeadLSTM(normaliser.names, range(40, 80), config)
    return SimpleNamespace(**locals())


def as_encoded(split: dict[str, list[list[int]]]) -> dict[str, list[dict]]:
    """Return pieces of which only the pitches are known."""
    return {side: [{"pitch": torch.tensor(p)} for p in part] for side, part in split.items()}


def probabilities(
    nb: ModuleType, table: object, before: list[int], *arguments: object
) -> np.ndarray:
    """Return the chance of each pitch after the notes before it."""
    ends = (nb.ngram_nats(table, [*before, pitch], *arguments)[-1] for pitch in range(128))
    return np.exp(-np.array([*ends]))


@pytest.mark.parametrize("memory", [range(0), range(3, 6)])
@pytest.mark.parametrize("before", [[], [61], [60, 62, 60], [99, 60, 61], [60, 61, 63, 62] * 3])
def test_chances(nb: ModuleType, before: list[int], memory: range) -> None:
    """They sum to one, do not know what comes, and without memory only n notes, in any key."""
    table = nb.count_ngrams(np.random.default_rng(0).integers(60, 64, (3, 50)).tolist())
    found = probabilities(nb, table, before, 4, memory)
    assert found.sum() == pytest.approx(1)
    longer = nb.ngram_nats(table, [*before, 61, 60, 61, 63], 4, memory)
    assert np.exp(-longer[len(before)]) == pytest.approx(found[61])
    if not memory and len(before) > 2:
        assert probabilities(nb, table, [5, 99, *before[-3:]], 4) == pytest.approx(found)


def test_ngrams_by_hand(nb: ModuleType) -> None:
    """The chances equal those worked out on paper."""
    table = nb.count_ngrams([[60, 60, 62]])
    first, second, third = (probabilities(nb, table, before, 3) for before in ([], [60], [62, 62]))
    alone = {60: (2 + 2 / 128) / 5, 62: (1 + 2 / 128) / 5, 64: (2 / 128) / 5}
    assert {pitch: first[pitch] for pitch in alone} == pytest.approx(alone)
    # the intervals 0 and 2 were heard once each, and after the interval 0 came the interval 2
    assert second[60] == pytest.approx((1 + 2 * alone[60]) / 4)
    assert second[64] == pytest.approx(2 * alone[64] / 4)
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


def test_rules_of_the_pitch(nb: ModuleType) -> None:
    """Each rule gives what its table says of each note; training music counts in any key."""
    there, test = [pitch + 15 for pitch in TUNE], [TUNE, TUNE[::-1] * 3]
    split = {"training": [there, [60, 60, 62]], "validation": [TUNE], "test": test}
    losses, table = nb.pitch_losses({}, as_encoded(split)), nb.count_ngrams(split["training"])
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
    monkeypatch.setattr(
        nb, "ngram_nats", lambda _, p, order, *__: np.full(len(p), float(order != best[p[0]]))
    )
    training, long, test = ([pitch] * 30 for pitch in (60, 61, 63))
    split = {"training": [training], "validation": [[62] * 9, long, [62] * 9], "test": [test]}
    rules = list(nb.pitch_losses({}, as_encoded(split)))
    assert rules[2:] == ["3-grams", "3-grams and memory"]


def test_pitch_of_the_models(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The nats are those by which training is judged, without dropout and random numbers."""
    before = torch.get_rng_state()
    for model in toy.models.values():
        model.train()
    losses = nb.pitch_losses(toy.models, toy.encoded)
    assert list(losses)[4:] == list(toy.models) and before.equal(torch.get_rng_state())
    for name, model in toy.models.items():
        for piece, nats in zip(toy.encoded["test"], losses[name], strict=True):
            expected = nb.evaluate(model, nb.make_eval_loader([piece], toy.config))["pitch"]
            assert (len(nats), nats.mean()) == (
                len(piece["pitch"]),
                pytest.approx(expected, rel=1e-5),
            )


def steps_by_hand(notes: pd.DataFrame, usual: float) -> list[float]:
    """Return the steps in beats: a pitch that rises while a voice is missing joins the chord."""
    onset, pitch, steps = notes.onset.to_numpy(), notes.pitch.to_numpy(), [0.0]
    for i in range(1, len(notes)):
        left = (onset + notes.duration)[:i] - onset[i - 1]
        sounding = left[left > HALF_TICK]
        joins = pitch[i] > pitch[i - 1] and len(sounding) < usual
        steps.append(0.0 if joins else sounding.min())
    return steps


@pytest.mark.parametrize("pitch, usual, step", [(67, 3, 0), (67, 2, 1), (62, 3, 1), (64, 3, 1)])
def test_step_rule(toy: SimpleNamespace, pitch: int, usual: float, step: float) -> None:
    """A pitch that rises while a voice is missing joins; else the first end is awaited."""
    piece = piece_of(toy.nb, "a", [(0, 60, 3, 90), (0, 64, 1, 90), (9, pitch, 1, 90)])
    (encoded,), notes = toy.nb.encode([piece], toy.normaliser, toy.config), piece.notes
    found = toy.nb.step_rule(encoded, usual)
    expected = toy.normaliser.transform(notes.assign(step=[0, 0, step]))[:, 0]
    assert found.numpy() == pytest.approx(expected)
    assert steps_by_hand(notes, usual) == [0, 0, step]


def test_errors_of_the_numbers(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The errors are those counted by hand; rules know the training pieces, and so four voices."""
    found = nb.attribute_losses(toy.models, toy.encoded, toy.normaliser)
    known = pd.concat([piece.notes for piece in toy.split["training"]])
    assert list(found) == toy.normaliser.names == ["step", "duration", "velocity"]
    for (i, piece), (k, name) in product(enumerate(toy.split["test"]), enumerate(found)):
        features, true = toy.encoded["test"][i], piece.notes[name]
        median = known[name].quantile(interpolation="lower")
        mean = toy.normaliser.inverse(np.zeros(3))[k]  # before the first note nothing is known
        guesses = {"constant median": median, "copy of the note before": [mean, *true[:-1]]}
        if name == "step":
            guesses["rule of the sounding notes"] = steps_by_hand(piece.notes, 4)
            assert steps_by_hand(piece.notes, 2) != steps_by_hand(piece.notes, 4)
        attributes = {"copy of the most similar place": features["copied"]}
        attributes |= {rule: nb.predict(model, features)[1] for rule, model in toy.models.items()}
        guesses |= {rule: toy.normaliser.inverse(x)[:, k] for rule, x in attributes.items()}
        assert list(found[name]) == list(guesses)
        for rule, guess in guesses.items():
            errors = pytest.approx(np.abs(true.to_numpy() - guess), abs=1e-4)
            assert found[name][rule][i] == errors, (name, rule)


def test_usual_number_of_voices(nb: ModuleType, toy: SimpleNamespace) -> None:
    """As many voices are usual as sound where a new step begins, not inside of chords."""
    notes = [(beat, pitch, 1, 90) for beat in range(9) for pitch in (50, 60, 70)]
    piece = piece_of(nb, "chords", notes)
    normaliser = nb.Normaliser([piece])
    features = nb.encode([piece], normaliser, toy.config)
    encoded = {"training": features, "test": features}
    (errors,) = nb.attribute_losses({}, encoded, normaliser)["step"]["rule of the sounding notes"]
    assert errors == pytest.approx(np.zeros(27), abs=1e-5)


def test_bootstrap(nb: ModuleType) -> None:
    """The interval is that of the mean note, over works: alike ones leave nothing open."""
    # of eight pieces, the long one is not drawn in a third of the samples, or up to three times
    uneven = [np.full(1, 1.0)] * 7 + [np.full(93, 2.0)]
    assert nb.bootstrap(uneven, [*"abcdefgh"]) == pytest.approx((1.93, 1.0, 1 + 279 / 284))
    values = np.random.default_rng(0).normal(size=100)
    expected = values.mean() + 0.196 * values.std() * np.array([0, -1, 1])
    works = [str(i % 100) for i in range(200)]  # two movements each
    found = nb.bootstrap([np.full(5, value) for value in [*values, *values]], works)
    assert found == pytest.approx(expected, abs=0.02)
    assert np.ptp(nb.bootstrap([values, values[::-1]] * 4, [*"abcdefgh"])) == pytest.approx(0)
    one = nb.bootstrap([np.zeros(1), np.ones(3)], ["a", "a"])
    assert one == pytest.approx((0.75, np.nan, np.nan), nan_ok=True)


def test_score_table(nb: ModuleType) -> None:
    """The gain is over the strongest rule that is no model, note by note, to six decimals."""
    model = [np.array([1.0, 2.0]), np.array([5.0])]
    rules = {"weak": 3.0, "strong": 0.5, "plain model": -1.0, "model": 0.0}
    losses = {"pitch": {rule: [piece + more for piece in model] for rule, more in rules.items()}}
    losses["step"] = {"rule": [piece * 0 for piece in model], "model": model}
    table = nb.score_table(losses, ["a", "b"]).set_index(["head", "score"])
    assert table.index.tolist() == [
        *(("pitch", rule) for rule in [*rules, "gain over strong"]),
        *(("step", rule) for rule in ("rule", "model", "gain over rule")),
    ]
    assert table.loc[("pitch", "gain over strong")].tolist() == [0.5] * 3
    assert table.loc[("pitch", "weak")].tolist() == [5.666667, 4.5, 8]
    assert table.loc[("step", "gain over rule")].tolist() == [-2.666667, -5, -1.5]


def test_study_table(nb: ModuleType, tmp_path: Path) -> None:
    """The table of a study is shown as its script wrote it, and one that is missing is empty."""
    (tmp_path / "speed.csv").write_text("figure,value\nnone,\n")
    assert nb.study_table(tmp_path, "speed").to_dict("records") == [{"figure": "none", "value": ""}]
    assert nb.study_table(tmp_path, "leak").empty
