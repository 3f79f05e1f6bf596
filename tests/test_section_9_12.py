"""Sections 9 and 12 of the notebook: the scores with their rules, and what the pieces are worth."""

import math
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import chorale, chorale_notes, piece_of, small_config
from torch.nn import functional as F

TUNE = np.array([60, 64, 67, 65, 62, 69, 71, 72, 57, 59, 66, 61])


@pytest.fixture(scope="module")
def toy(nb: ModuleType) -> SimpleNamespace:
    """Return random pieces in a split, encoded, with a normaliser and an untrained model."""
    config = small_config(nb)
    pieces = [chorale(nb, i, 12 + 4 * i, velocity=True) for i in range(5)]
    split = {"training": pieces[:2], "validation": pieces[2:3], "test": pieces[3:]}
    normaliser = nb.Normaliser(split["training"], config)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, config)
    encoded = [nb.encode(piece.notes, normaliser, config) for piece in split["test"]]
    known = {"normaliser": normaliser, "model": model, "encoded": encoded}
    return SimpleNamespace(config=config, split=split, **known)


# Section 9: n-grams


def chances(ngrams: object, before: list[int], order: int, memory: range = range(0)) -> np.ndarray:
    """Return the chance of each pitch after the notes before it."""
    played = (np.array([*before, pitch]) for pitch in range(128))
    return np.exp([-ngrams.nats(pitches, order, memory)[-1] for pitches in played])


@pytest.mark.parametrize("memory", [range(0), range(3, 6)])
@pytest.mark.parametrize("before", [[], [61], [60, 62, 60], [99, 60, 61], [60, 61, 63, 62] * 3])
def test_chances_sum_to_one(nb: ModuleType, before: list[int], memory: range) -> None:
    """The chances of all pitches sum to one, with the memory of the piece and without it."""
    rng = np.random.default_rng(0)
    ngrams = nb.NGrams([rng.integers(60, 64, 50) for _ in range(3)], 4)
    assert chances(ngrams, before, 4, memory).sum() == pytest.approx(1)


def test_ngrams_by_hand(nb: ModuleType) -> None:
    """The chances equal those worked out on paper."""
    ngrams = nb.NGrams([np.array([60, 60, 62])], 3)
    alone = {60: (2 + 2 / 128) / 5, 62: (1 + 2 / 128) / 5, 64: (2 / 128) / 5}
    first, second, third = (chances(ngrams, *args) for args in (([], 3), ([60], 3), ([62, 62], 3)))
    assert {pitch: first[pitch] for pitch in alone} == pytest.approx(alone)
    # the intervals 0 and 2 were heard once each
    assert second[60] == pytest.approx((1 + 2 * alone[60]) / 4)
    assert second[64] == pytest.approx(2 * alone[64] / 4)
    # after the interval 0 came the interval 2, once
    assert third[64] == pytest.approx((1 + (1 + 2 * alone[64]) / 4) / 2)
    assert third[60] == pytest.approx((2 * alone[60] / 4) / 2)


def test_memory_by_hand(nb: ModuleType) -> None:
    """The memory knows what followed each pitch in the piece so far."""
    ngrams = nb.NGrams([np.array([60, 62])], 2)
    nats = ngrams.nats(np.array([60, 62, 60, 62, 60, 62]), 1, range(2, 3))
    alone = (1 + 2 / 128) / 4
    once, twice = (1 + alone) / 2, (2 + alone) / 3
    assert np.exp(-nats) == pytest.approx([alone, alone, alone, once, once, twice])


def test_transposed_training_music_counts(nb: ModuleType) -> None:
    """The n-grams count intervals: training music in any key makes the same tables."""
    here, there = nb.NGrams([TUNE], 4), nb.NGrams([TUNE + 5], 4)
    for table in ("counts", "totals", "kinds"):
        assert getattr(here.table, table) == getattr(there.table, table)
    assert there.nats(TUNE, 4)[2:].max() < 1.5 < there.nats(TUNE, 1)[2:].min()


def test_memory_makes_copies_cheap(nb: ModuleType) -> None:
    """The second copy of a phrase costs little, a transposed one what it costs without memory."""
    ngrams = nb.NGrams([np.full(50, 60)], 4)
    copy, moved = (np.append(TUNE, second) for second in (TUNE, TUNE + 24))
    second = slice(len(TUNE) + nb.MEMORY.start, None)
    assert ngrams.nats(copy, 4, nb.MEMORY)[second].max() < 1 < ngrams.nats(copy, 4)[second].min()
    assert (ngrams.nats(moved, 4, nb.MEMORY) == ngrams.nats(moved, 4)).all()


def test_memory_is_causal(nb: ModuleType) -> None:
    """A later note does not change what the notes before it cost."""
    ngrams, played = nb.NGrams([TUNE], 4), np.tile(TUNE, 3)
    whole = ngrams.nats(played, 4, nb.MEMORY)
    for place in (1, 13, 30):
        changed = np.where(np.arange(len(played)) == place, 90, played)
        nats = ngrams.nats(changed, 4, nb.MEMORY)
        assert (nats[:place] == whole[:place]).all() and nats[place] != whole[place]


def test_order_is_chosen_on_validation(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is the best one for the notes of the validation pieces, and of no others."""
    best = {60: 6, 61: 3, 62: 4, 63: 5}  # by the first pitch of the piece

    def nats(self: object, pitches: np.ndarray, order: int, memory: range = range(0)) -> np.ndarray:
        return np.full(len(pitches), float(order != best[int(pitches[0])]))

    monkeypatch.setattr(nb.NGrams, "nats", nats)
    tune = {first: [(i / 2, first + i % 5, 0.5, 90) for i in range(30)] for first in best}
    training, long, short, test = (piece_of(nb, str(n), notes) for n, notes in tune.items())
    short = replace(short, notes=short.notes.head(9))
    split = {"training": [training], "validation": [short, long, short], "test": [test]}
    encoded = [nb.encode(test.notes, toy.normaliser, toy.config)]
    _, _, *grams, _, _ = nb.pitch_losses(toy.model, encoded, split)
    assert grams == ["3-grams", "3-grams and memory"]


# Section 9: the rules and the model


def test_rules_of_the_pitch(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rule gives what its table says of each note of each test piece."""
    monkeypatch.setattr(nb, "MEMORY", range(2, 4))  # in so short pieces nothing longer comes again
    training, _, test = ([p.notes.pitch.to_numpy() for p in part] for part in toy.split.values())
    losses = nb.pitch_losses(toy.model, toy.encoded, toy.split)
    *_, table, memory, _, _ = losses
    ngrams, order = nb.NGrams(training, max(nb.ORDERS)), int(table[0])
    expected = {
        "uniform": [np.full(len(pitches), math.log(128)) for pitches in test],
        "single pitches": [ngrams.nats(pitches, 1) for pitches in test],
        table: [ngrams.nats(pitches, order) for pitches in test],
        memory: [ngrams.nats(pitches, order, nb.MEMORY) for pitches in test],
    }
    assert list(losses) == [*expected, "model without copying", "model"]
    for rule, arrays in expected.items():
        assert all((a == b).all() for a, b in zip(losses[rule], arrays, strict=True)), rule


def test_pitch_of_the_model(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The mean over the test notes is the loss by which training is judged, with and without."""
    losses = nb.pitch_losses(toy.model, toy.encoded, toy.split)
    loader, means = nb.whole_pieces(toy.encoded, toy.config), []
    for rule, copying in (("model without copying", False), ("model", True)):
        assert [len(piece) for piece in losses[rule]] == [len(p) for p in toy.split["test"]]
        means.append(np.concatenate(losses[rule]).mean())
        loss = nb.evaluate(toy.model, loader, copying)["pitch"]
        assert means[-1] == pytest.approx(loss, rel=1e-5)
    assert abs(means[0] - means[1]) > 1e-3


def test_predictions_have_no_dropout(nb: ModuleType, toy: SimpleNamespace) -> None:
    """A model in training predicts the same again and again."""
    first, second = (nb.predict(toy.model.train(), toy.encoded[0]) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("copying", [True, False])
def test_scoring_draws_no_random_numbers(
    nb: ModuleType, toy: SimpleNamespace, copying: bool
) -> None:
    """Scoring leaves torch's random numbers where they are, whatever the validation set."""
    before = torch.get_rng_state()
    nb.evaluate(toy.model.train(), nb.whole_pieces(toy.encoded, toy.config), copying)
    assert before.equal(torch.get_rng_state())


def test_polyphony(nb: ModuleType) -> None:
    """At each onset those count that begin and that still sound, not those that end there."""
    notes = [(0, 60, 1), (0, 64, 0.5), (1, 62, 1), (1.5, 70, 0.5), (3, 60, 1)]
    table = piece_of(nb, "toy", [(*note, 90) for note in notes]).notes
    assert nb.polyphony(table).tolist() == [2, 1, 2, 1]


@pytest.mark.parametrize("random_state", range(3))
def test_step_rule_in_four_voices(nb: ModuleType, random_state: int) -> None:
    """Where four voices never rest nor cross, the rule knows every step."""
    notes = chorale(nb, random_state, beats=40).notes
    assert (nb.step_rule(notes, 4) == notes.step).all()


@pytest.mark.parametrize("pitch, usual, step", [(67, 3, 0), (67, 2, 1), (62, 3, 1), (64, 3, 1)])
def test_step_rule_by_hand(nb: ModuleType, pitch: int, usual: float, step: float) -> None:
    """A pitch that rises while a voice is missing joins; else the first end is awaited."""
    notes = piece_of(nb, "toy", [(0, 60, 3, 90), (0, 64, 1, 90), (9, pitch, 1, 90)]).notes
    assert nb.step_rule(notes, usual).tolist() == [0, 0, step]


@pytest.mark.parametrize("name", ["step", "duration", "velocity"])
def test_errors_of_the_numbers(nb: ModuleType, toy: SimpleNamespace, name: str) -> None:
    """The errors of the model and of the rules are those counted by hand, in beats or as MIDI."""
    losses = nb.number_losses(toy.model, toy.encoded, toy.split, toy.normaliser)[name]
    median = np.median([x for piece in toy.split["training"] for x in piece.notes[name]])
    index, inverse = toy.normaliser.names.index(name), toy.normaliser.inverse
    for i, (piece, encoded) in enumerate(zip(toy.split["test"], toy.encoded, strict=True)):
        true = piece.notes[name].to_numpy()
        guesses = {
            "constant median": median,
            "copy of the note before": [median, *true[:-1]],
            "copy of the most similar place": inverse(name, encoded["copied"][:, index]),
            "model": inverse(name, nb.predict(toy.model, encoded)[1][:, index]),
        }
        assert list(losses)[name == "step" :] == list(guesses)
        for rule, guess in guesses.items():
            assert losses[rule][i] == pytest.approx(np.abs(true - guess)), rule


def test_usual_polyphony_is_that_of_the_training(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The rule of the sounding notes waits for as many voices as the training pieces have."""
    duet = [note for note in chorale_notes(0, velocity=True) if note[1] < 59]
    piece = piece_of(nb, "duet", duet)
    encoded, notes = [nb.encode(piece.notes, toy.normaliser, toy.config)], piece.notes
    split = toy.split | {"test": [piece]}
    losses = nb.number_losses(toy.model, encoded, split, toy.normaliser)["step"]
    errors = {usual: np.abs(nb.step_rule(notes, usual) - notes.step) for usual in (2, 4)}
    assert (losses["rule of the sounding notes"][0] == errors[4]).all()
    assert errors[2].sum() == 0 < errors[4].sum()


# Section 9: intervals and the table


def test_bootstrap_by_hand(nb: ModuleType) -> None:
    """Every note counts alike; of two pieces, a quarter of the samples has only one of them."""
    losses = [np.full(10, 1.0), np.full(90, 2.0)]
    assert nb.bootstrap(losses, 0) == pytest.approx((1.9, 1.0, 2.0))


def test_bootstrap_of_many_pieces(nb: ModuleType) -> None:
    """The interval is that of the mean, and follows its random state."""
    losses = [np.full(5, x) for x in np.random.default_rng(0).normal(size=100)]
    value, low, high = nb.bootstrap(losses, 0)
    assert low < value < high
    assert (high - low) / 2 == pytest.approx(1.96 * np.std([x[0] for x in losses]) / 10, rel=0.1)
    assert nb.bootstrap(losses, 0) == (value, low, high) != nb.bootstrap(losses, 1)


def test_bootstrap_is_over_pieces(nb: ModuleType) -> None:
    """Pieces that are alike, or a single one, leave nothing open, however their notes vary."""
    piece = np.random.default_rng(0).normal(size=50)
    for losses in ([piece], [piece, piece[::-1]] * 4):
        assert np.ptp(nb.bootstrap(losses, 0)) == pytest.approx(0)
    assert np.ptp(nb.bootstrap([piece, piece + 1] * 4, 0)) > 0.1


def test_score_table(nb: ModuleType) -> None:
    """The gain is over the strongest rule that is not the model's, and is taken note by note."""
    model = [np.array([1.0, 2.0]), np.array([5.0])]
    rules = {"weak": 3.0, "strong": 0.5, "model without copying": -1.0, "model": 0.0}
    losses = {"pitch": {rule: [piece + more for piece in model] for rule, more in rules.items()}}
    losses["step"] = {"rule": [piece * 0 for piece in model], "model": model}
    table = nb.score_table(losses, 0).set_index(["head", "score"])
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
    training = [np.arange(30, 40), np.append(90, TUNE[:5]), TUNE[4:] + 7]
    played = np.concatenate([[20, 81], TUNE, [100, 33, 34]])
    assert nb.copied_runs(played, np.array([1, 69, 71, 2]), training, ["a", "b", "c"]) == {
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
    "real, made",
    [
        ([*range(100)], [*range(100, 200)]),
        ([*range(100)], [100, 101] * 50),  # few sources are made from
        ([0, 1] * 50, [*range(100)]),
        ([*range(200)], [*range(200, 225)]),  # fewer are made than are real
        ([0, 1, 2] * 33, [0, 1, 2] * 33),
    ],
)
def test_like_each_other(
    nb: ModuleType, monkeypatch: pytest.MonkeyPatch, real: list, made: list
) -> None:
    """What has one distribution is told apart half of the time, wherever it comes from."""
    monkeypatch.setattr(nb, "DRAWS", 4)
    runs = [nb.told_apart(figures(i, real), figures(i + 50, made)) for i in range(8)]
    assert np.mean(runs) == pytest.approx(0.5, abs=0.04)


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
    """A piece that is the same as its own source does not find it."""
    sources = list(range(60))
    real, others = figures(0, sources), figures(0, sources[::-1])
    # its twin is always the nearest of the other kind, so that each looks like the other kind
    assert nb.told_apart(real, others) < 0.05
    assert nb.told_apart(real, real.copy()) == pytest.approx(0.5, abs=0.1)


def test_names_of_sources_do_not_matter(nb: ModuleType) -> None:
    """The sources are only asked whether they are the same."""
    apart = [
        nb.told_apart(*(figures(i, [names[k % 5] for k in range(30)]) for i in range(2)))
        for names in (["a1", "a2", "a3", "b", "c"], ["z", "y", "x1", "x11", "x"])
    ]
    assert apart[0] == apart[1]


# Section 12: pieces that nobody selected


def test_unselected_seeds(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many seeds as asked, in turn from the pieces that are long enough, each a new start."""
    given = []

    def compose(seeds: list[pd.DataFrame], states: list[int]) -> list[pd.DataFrame]:
        given.extend(states)
        return seeds

    monkeypatch.setattr(nb, "COMPOSED_AT_ONCE", 3)
    composer, (one, other) = SimpleNamespace(config=toy.config, compose=compose), toy.split["test"]
    short = replace(one, name="short", notes=one.notes.head(15))
    music = nb.unselected(composer, [one, short, other], 5, 40)
    first, second = len(one) - 16, len(other) - 16
    starts = [0, 0, first // 3, second // 3, 2 * first // 3]
    assert [seed.name for seed, _, _ in music] == ([one.name, other.name] * 3)[:5]
    assert given == [40, 41, 42, 43, 44]
    for (seed, made, real), start in zip(music, starts, strict=True):
        notes = (one if seed.name == one.name else other).notes
        assert seed.notes.equals(notes[start : start + 16].reset_index(drop=True))
        assert made.pitch.equals(seed.notes.pitch)
        assert real.equals(notes[start + 16 : start + 36].reset_index(drop=True))


def test_unselected_follow_their_random_state(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The same random state composes the same pieces, another one others, from the same seeds."""
    limits = nb.find_limits(toy.encoded)
    composer = nb.Composer(toy.model, toy.normaliser, limits, toy.config)
    runs = [nb.unselected(composer, toy.split["test"], 3, state) for state in (0, 0, 9)]
    for (seed, first, _), (_, again, _), (other, new, _) in zip(*runs, strict=True):
        assert len(first) == toy.config.piece_notes and first.equals(again)
        assert not first.equals(new) and seed.notes.equals(other.notes)


def test_sources_and_figures(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The tables hold the figures of each piece, its file, and its run shared with training."""
    one, other = toy.split["training"]
    piece = replace(one, name="bwv1 from note 50")
    expected = nb.describe(piece.notes)
    table = nb.with_sources([(piece, piece.notes), (other, other.notes)])
    assert table.source.tolist() == ["bwv1", other.name]
    assert table.iloc[0].drop("source").to_dict() == expected
    pitches = piece.notes.pitch.to_numpy()
    table = nb.figures_of([piece.notes], [np.array([1]), pitches[9:20]])
    assert table.iloc[0].to_dict() == pytest.approx(expected | {"run shared with training": 11})


# Section 12: quarters and coverage


@pytest.mark.parametrize("new_onset", [False, True])
def test_quarters_of_a_real_continuation(
    nb: ModuleType, toy: SimpleNamespace, new_onset: bool
) -> None:
    """The nats by quarter are those of the same notes in the piece as a whole."""
    piece, encoded = toy.split["test"][0], toy.encoded[0]
    start = 16 + int(np.flatnonzero((piece.notes.step > 0)[16:] == new_onset)[0])
    parts = piece.notes[:start], piece.notes[start : start + 42]
    seed, rest = (part.reset_index(drop=True) for part in parts)
    logits = nb.predict(toy.model, encoded)[0]
    nats = F.cross_entropy(logits, encoded["pitch"], reduction="none")[start : start + 42]
    expected = [nats[a:b].mean().item() for a, b in ((0, 10), (10, 21), (21, 31), (31, 42))]
    music = [(replace(piece, notes=seed), rest)]
    table = nb.quarters(music, toy.model, toy.normaliser, toy.config)
    assert table.index.tolist() == [1, 2, 3, 4]
    assert table.nats.tolist() == pytest.approx(expected, rel=1e-5)


def test_quarters_of_several_pieces(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The figures are means over the pieces, and the spread of the mean pitch is between them."""
    one, two = toy.split["test"]
    seed, notes = replace(one, notes=one.notes.head(16)), two.notes.head(40)
    same, other = (
        nb.quarters([(seed, notes), (seed, more)], toy.model, toy.normaliser, toy.config)
        for more in (notes, notes.assign(pitch=notes.pitch + 6))
    )
    means = notes.pitch.to_numpy().reshape(4, 10).mean(axis=1)
    assert same["mean pitch"].tolist() == pytest.approx(means)
    assert other["mean pitch"].tolist() == pytest.approx(means + 3)
    assert same["spread of the mean pitch"].tolist() == [0] * 4
    assert other["spread of the mean pitch"].tolist() == pytest.approx([18**0.5] * 4)


def covered(
    nb: ModuleType, monkeypatch: pytest.MonkeyPatch, numbers: torch.Tensor, medians: torch.Tensor
) -> list[dict[str, float]]:
    """Return the shares in the middle half and 80 %, where all of the seed may be drawn."""
    layers = torch.zeros(*numbers.shape, 2)
    monkeypatch.setattr(nb, "predict", lambda *_: (None, medians, layers))
    seed = len(numbers) // 2
    config = small_config(nb, seed_notes=seed, neighbours=seed)
    piece = {"pitch": torch.zeros(len(numbers)), "numbers": numbers}
    short = {name: values[:seed] for name, values in piece.items()}
    names = ["step", "duration"]
    return [nb.coverage([short, piece], None, names, config, s).to_dict() for s in (0.5, 0.8)]


def test_coverage_is_the_share(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the residuals of the seed are those of the rest, the share asked for is covered."""
    numbers = torch.linspace(-1, 1, 200).repeat(2)[:, None].repeat(1, 2)
    half, most = covered(nb, monkeypatch, numbers, torch.zeros(400, 2))
    assert half == pytest.approx({"step": 0.5, "duration": 0.5}, abs=0.01)
    assert most == pytest.approx({"step": 0.8, "duration": 0.8}, abs=0.01)


def test_coverage_of_sure_medians(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Medians that are true in the seed leave no residuals: after it they are right or wrong."""
    numbers = torch.arange(10.0).repeat(4)[:, None].repeat(1, 2)
    medians = numbers.clone()
    medians[20:, 1] = (numbers[20:, 1] + 3) % 10
    shares = covered(nb, monkeypatch, numbers, medians)
    assert shares == [{"step": 1.0, "duration": 0.0}] * 2
