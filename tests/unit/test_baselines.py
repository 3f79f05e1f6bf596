"""Section 9: n-grams, the baselines of the attributes, and what held-out notes cost by them."""

from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import chorale, piece_of, small_config

TUNE = [60, 64, 67, 65, 62, 69, 71, 72, 57, 59, 66, 61]


def counted(nb: ModuleType, *training: list[int]) -> object:
    """Return n-grams counted in training pieces."""
    table = nb.NGrams(transposed=True)
    for piece in training:
        table.probabilities(piece, range(1, 7), np.ones(len(piece)), learn=True)
    return table


def probabilities(nb: ModuleType, table: object, before: list[int], *orders: object) -> np.ndarray:
    """Return the probability of each of 128 pitches after those before it."""
    nats = [nb.ngram_nats(table, [*before, pitch], *orders)[-1] for pitch in range(128)]
    return np.exp(-np.array(nats))


@pytest.mark.parametrize("cache", [range(0), range(3, 6)])
def test_distribution(nb: ModuleType, cache: range) -> None:
    """Probabilities sum to one, and see neither what comes nor, without cache, what is far back."""
    table = counted(nb, *np.random.default_rng(0).integers(60, 64, (3, 50)).tolist())
    for before in ([], [61], [60, 62, 60], [60, 61, 63, 62] * 3):
        found = probabilities(nb, table, before, 4, cache)
        longer = nb.ngram_nats(table, [*before, 61, 60, 61, 63], 4, cache)
        assert found.sum() == pytest.approx(1)
        assert np.exp(-longer[len(before)]) == pytest.approx(found[61])
    same = np.allclose(probabilities(nb, table, [5, 99, *before[-3:]], 4, cache), found)
    assert same == (not cache)


def test_ngrams_by_hand(nb: ModuleType) -> None:
    """The probabilities equal those worked out on paper; training counts in any key."""
    table = counted(nb, [60, 60, 62])
    first, second, third = (probabilities(nb, table, before, 3) for before in ([], [60], [62, 62]))
    alone = {60: (2 + 2 / 128) / 5, 62: (1 + 2 / 128) / 5, 64: (2 / 128) / 5}
    assert {pitch: first[pitch] for pitch in alone} == pytest.approx(alone)
    # the intervals 0 and 2 were heard once each, and after the interval 0 came the interval 2
    assert second[60] == pytest.approx((1 + 2 * alone[60]) / 4)
    assert third[64] == pytest.approx((1 + (1 + 2 * alone[64]) / 4) / 2)
    # the cache knows what followed each pitch so far, and nothing transposed: after 62 twice 60
    tune = [60, 62, 60, 62, 60, 62, 65, 67]
    nats = nb.ngram_nats(counted(nb, [60, 62, 65, 67]), tune, 1, range(2, 3))
    p = (1 + 4 / 128) / 8
    expected = [p, p, p, (1 + p) / 2, (1 + p) / 2, (2 + p) / 3, p / 3, p]
    assert np.exp(-nats) == pytest.approx(expected)


def test_ngram_losses(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name is of the n-grams that it says; the order is the best for a validation note."""
    there, test = [pitch + 15 for pitch in TUNE], [TUNE, TUNE[::-1] * 3]
    losses, table = nb.ngram_losses([there], [TUNE], test), counted(nb, there)
    assert np.concatenate(losses.pop("uniform")) == pytest.approx(np.log(128))
    orders = {"unigram": (1,), "6-gram": (6,), "6-gram with cache": (6, nb.CACHE)}
    for (name, found), order in zip(losses.items(), orders.values(), strict=True):
        expected = [nb.ngram_nats(table, piece, *order) for piece in test]
        assert name in orders and all(map(np.array_equal, found, expected))
    best = {60: 6, 61: 3, 62: 4, 63: 5}  # by the first pitch of the piece
    monkeypatch.setattr(nb, "ngram_nats", lambda _, p, n, *__: np.full(len(p), n != best[p[0]]))
    validation = [[62] * 9, [61] * 30, [62] * 9]
    assert "3-gram with cache" in nb.ngram_losses([[60] * 30], validation, [[63] * 30])


def steps_by_hand(notes: pd.DataFrame, usual: float) -> list[float]:
    """Return the steps in beats: a pitch that rises while a voice is missing joins the chord."""
    onset, pitch, steps = notes.onset.to_numpy(), notes.pitch.to_numpy(), [0.0]
    for i in range(1, len(notes)):
        left = (onset + notes.duration)[:i] - onset[i - 1]
        sounding = left[left > 1 / 960]
        joins = pitch[i] > pitch[i - 1] and len(sounding) < usual
        steps.append(0.0 if joins else sounding.min())
    return steps


def test_held_out_losses(nb: ModuleType) -> None:
    """Errors are those counted by hand, in beats; the baselines know the training pieces.

    Models are scored as in training, without dropout, and draw no random numbers.
    """
    config, test = small_config(nb), [chorale(nb, i, 40, velocity=True) for i in (3, 4)]
    test.append(piece_of(nb, "again", [(0, 60, 3, 90), (0, 64, 1, 90), (9, 64, 1, 90)]))
    beats, chord = range(24), (50, 57, 64)
    chords = [(beat, pitch + beat % 3, 1, beat + 1) for beat in beats for pitch in chord]
    pieces = [piece_of(nb, "chords", chords)]
    normaliser, known = nb.Normaliser(pieces), pieces[0].notes
    split = {"training": pieces, "validation": pieces, "test": test}
    encoded = {name: nb.encode(part, normaliser, config) for name, part in split.items()}
    names = normaliser.names
    torch.manual_seed(0)
    models = {name: nb.PlainLSTM(names, config).train() for name in ("plain model", "model")}
    before = torch.get_rng_state()
    found = nb.held_out_losses(models, encoded, normaliser)
    assert before.equal(torch.get_rng_state())
    for i, (piece, features) in enumerate(zip(test, encoded["test"], strict=True)):
        loader, true = nb.make_eval_loader([features], config), piece.notes[names].to_numpy()
        mean = normaliser.inverse(np.zeros((1, len(names))))  # where there is no note before
        median = known[names].quantile(interpolation="lower").to_numpy()
        guesses = {
            "constant median": np.tile(median, (len(piece), 1)),
            "repeat previous": np.concatenate([mean, true[:-1]]),
            "most similar position": normaliser.inverse(features["copied"]),
        }
        for name, model in models.items():
            guesses[name] = normaliser.inverse(nb.predict(model, features)[1])
            nats = nb.evaluate(model, loader)["pitch"]
            assert found["pitch"][name][i].mean() == pytest.approx(nats, rel=1e-5)
        for k, head in enumerate(names):
            columns = {name: guess[:, k] for name, guess in guesses.items()}
            if head == "step":  # three notes are usual before a new chord
                columns["sounding-notes baseline"] = steps_by_hand(piece.notes, 3)
            assert found[head].keys() == columns.keys()
            for name, guess in columns.items():
                errors = pytest.approx(np.abs(true[:, k] - guess), abs=1e-4)
                assert found[head][name][i] == errors, (head, name)
