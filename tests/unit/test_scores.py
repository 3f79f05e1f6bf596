"""Section 9: n-grams, baselines of the attributes, and scores with their intervals and figure."""

from collections import Counter
from collections.abc import Iterable
from itertools import product
from types import ModuleType

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from notebook_tools import chorale, piece_of, small_config

ORDERS = range(2, 7)  # of the n-grams


def followers(pieces: list[list[int]], context: list[int], any_key: bool) -> Counter:
    """Return how often each pitch followed the context in the pieces."""
    found, n = Counter(), len(context)
    for piece in pieces:
        for j in range(n, len(piece)):
            shift = piece[j - n] - context[0] if any_key and n else 0
            if piece[j - n : j] == [pitch + shift for pitch in context]:
                found[piece[j] - shift] += 1
    return found


def nats_by_search(training: list, piece: list[int], order: int, cache: Iterable = ()) -> list:
    """Return the nats of each pitch by Witten & Bell's formula, counts taken by a search."""
    nats = []
    for i, pitch in enumerate(piece):
        p, sources = 1 / 128, [*product([training], range(1, order + 1), [True])]
        for known, n, any_key in [*sources, *product([[piece[:i]]], cache, [False])]:
            counts = followers(known, piece[i + 1 - n : i], any_key) if n <= i + 1 else Counter()
            if counts:
                p = (counts[pitch] + len(counts) * p) / (counts.total() + len(counts))
        nats.append(-np.log(p))
    return nats


def test_ngram_losses(nb: ModuleType) -> None:
    """The nats are those by the formula; the order is the best for a validation note."""
    rng = np.random.default_rng(0)
    training, test = ([rng.integers(60, 64, 60).tolist() for _ in range(2)] for _ in "ab")
    short = rng.integers(60, 64, (9, 4)).tolist()  # most pieces, but few notes
    validation, test = [[pitch + 1 for pitch in training[0]], *short], [*test, [60], test[0] * 2]
    means = [
        np.concatenate([nats_by_search(training, p, n) for p in validation]).mean() for n in ORDERS
    ]
    best = ORDERS[int(np.argmin(means))]
    expected = {"unigram": (1,), f"{best}-gram": (best,)}
    expected[f"{best}-gram with cache"] = (best, range(5, 12))
    losses = nb.ngram_losses(training, validation, test)
    assert np.concatenate(losses.pop("uniform")) == pytest.approx(np.log(128))
    assert losses.keys() == expected.keys() and best > 3
    for name, order in expected.items():
        for piece, found in zip(test, losses[name], strict=True):
            assert found == pytest.approx(nats_by_search(training, piece, *order)), name


def test_held_out_losses(nb: ModuleType) -> None:
    """Errors are those counted by hand, in beats; models are scored without dropout."""
    config, test = small_config(nb), [chorale(nb, i, 40, velocity=True) for i in (3, 4)]
    test.append(piece_of(nb, "again", [(0, 60, 3, 90), (0, 64, 1, 90), (9, 64, 1, 90)]))
    chords = [(i, pitch + i % 3, 1, i + 1) for i in range(24) for pitch in (50, 57, 64)]
    pieces = [piece_of(nb, "chords", chords)]
    normaliser, known = nb.Normaliser(pieces), pieces[0].notes
    split = {"training": pieces, "validation": pieces, "test": test}
    encoded = {name: nb.encode(part, normaliser, config) for name, part in split.items()}
    names = normaliser.names
    torch.manual_seed(0)
    model = nb.PlainLSTM(names, config).train()
    before = torch.get_rng_state()
    found = nb.held_out_losses({"model": model}, encoded, normaliser)
    assert before.equal(torch.get_rng_state())
    for i, (piece, features) in enumerate(zip(test, encoded["test"], strict=True)):
        notes, true = piece.notes, piece.notes[names].to_numpy()
        nats = nb.evaluate(model, nb.make_eval_loader([features], config))["pitch"]
        assert found["pitch"]["model"][i].mean() == pytest.approx(nats, rel=1e-5)
        mean = normaliser.inverse(np.zeros((1, len(names))))  # where there is no note before
        median = known[names].quantile(interpolation="lower").to_numpy()
        guesses = {
            "constant median": np.tile(median, (len(piece), 1)),
            "repeat previous": np.concatenate([mean, true[:-1]]),
            "most similar position": normaliser.inverse(features["copied"]),
            "model": normaliser.inverse(nb.predict(model, features)[1]),
        }
        steps = [0.0]  # a pitch that rises while fewer than three notes sound joins the chord
        for k in range(1, len(notes)):
            left = (notes.onset + notes.duration)[:k] - notes.onset[k - 1]
            sounding = left[left > 1 / 960]
            joins = notes.pitch[k] > notes.pitch[k - 1] and len(sounding) < 3
            steps.append(0.0 if joins else sounding.min())
        for k, head in enumerate(names):
            columns = {name: guess[:, k] for name, guess in guesses.items()}
            columns |= {"sounding-notes baseline": steps} if head == "step" else {}
            assert found[head].keys() == columns.keys()
            for name, guess in columns.items():
                errors = pytest.approx(np.abs(true[:, k] - guess), abs=1e-4)
                assert found[head][name][i] == errors, (head, name)


def test_bootstrap(nb: ModuleType) -> None:
    """The interval is that of the mean note over works, and there is none over a single one."""
    # of eight pieces, the long one is not drawn in a third of the samples, or up to three times
    uneven = [np.full(1, 1.0)] * 7 + [np.full(93, 2.0)]
    assert nb.bootstrap(uneven, [*"abcdefgh"]) == pytest.approx((1.93, 1.0, 1 + 279 / 284))
    values = np.random.default_rng(0).normal(size=100)
    expected = values.mean() + 0.196 * values.std() * np.array([0, -1, 1])
    works = [str(i % 100) for i in range(200)]  # two movements each
    found = nb.bootstrap([np.full(5, value) for value in [*values, *values]], works)
    assert found == pytest.approx(expected, abs=0.02)
    one = nb.bootstrap([np.zeros(1), np.ones(3)], ["a", "a"])
    assert one == pytest.approx((0.75, np.nan, np.nan), nan_ok=True)


def test_scores(nb: ModuleType) -> None:
    """The gain is over the strongest baseline; the figure says sure only where zero is out."""
    model, zero = [np.array([1.0, 2.0]), np.array([5.0])], [np.zeros(2), np.zeros(1)]
    more = {"weak": 3.0, "best": 0.5, "plain model": -1.0, "model": 0.0}
    losses = {"pitch": {name: [piece + x for piece in model] for name, x in more.items()}}
    losses["step"] = {"best": zero, "plain model": zero, "model": model}
    losses["duration"] = losses["step"] | {"model": [zero[0] - 1, zero[1] + 1]}
    scores = nb.score_table(losses, ["a", "b"])
    table = scores.set_index(["head", "score"])
    assert table.loc["pitch"].index.tolist() == [*more, "gain over best"]
    assert table.value["pitch", "weak"] == 5.666667
    gains = [[0.5, 0.5, 0.5], [-2.666667, -5, -1.5], [0.333333, -1, 1]]
    assert table.xs("gain over best", level="score").to_numpy().tolist() == gains
    axes, said = nb.draw_scores(scores).axes, ("0.5 below", "2.67 above", "0.333 below")
    for axis, head, change in zip(axes, losses, said, strict=True):
        assert axis.get_title().startswith(head) and change in axis.get_title()
        assert ("not significant" in axis.get_title()) == (head == "duration")
        for y, name in enumerate(("model", "plain model", "best")):
            assert axis.get_yticklabels()[y].get_text().startswith(f"{name} ")
            assert axis.lines[y].get_xydata().tolist() == [[table.value[head, name], y]]
    axes = nb.draw_scores(nb.score_table(losses, ["a", "a"])).axes
    assert all("not significant" in axis.get_title() for axis in axes)
    plt.close("all")
