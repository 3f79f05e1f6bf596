"""Section 10 of the notebook: drawing pitch and numbers, and composing note by note."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import chorale, piece_of, small_config

CHANCES = {50: 0.4, 55: 0.3, 60: 0.2, 65: 0.1}


@pytest.fixture(scope="module", params=[False, True], ids=["steady", "velocity"])
def toy(nb: ModuleType, request: pytest.FixtureRequest) -> SimpleNamespace:
    """Return seeds, a normaliser of two or three numbers, and an untrained composer."""
    config = small_config(nb)
    pieces = [chorale(nb, i, velocity=request.param) for i in range(3)]
    seeds = [piece.notes.head(config.seed_notes) for piece in pieces]
    normaliser = nb.Normaliser(pieces)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, config)
    composer = nb.Composer(model, normaliser, 40, 80, config)
    return SimpleNamespace(**locals())


@pytest.fixture
def unbalanced(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Leave the durations as they were drawn; return the sizes of the pieces to be balanced."""
    sizes = []
    monkeypatch.setattr(nb, "balance", lambda piece: sizes.append(piece.size))
    return sizes


def continuation(nb: ModuleType, notes: pd.DataFrame, toy: SimpleNamespace, heard: int) -> object:
    """Return a continuation of the first notes of a piece, with room for the others."""
    config = replace(toy.config, piece_notes=max(len(notes) - heard, 20))
    return nb.Continuation(notes.head(heard), [], toy.normaliser, config, 0)


# A pitch


def draws(nb: ModuleType, logits: torch.Tensor, lowest: int, top_p: float, count: int) -> Counter:
    """Return how often each pitch is drawn."""
    generator = torch.Generator().manual_seed(0)
    return Counter(nb.draw_pitch(logits, lowest, top_p, generator) for _ in range(count))


@pytest.mark.parametrize(
    ("top_p", "others"), [(0.45, {55}), (0.8, {55, 60}), (0.95, {55, 60, 65}), (1.0, {55, 60, 65})]
)
def test_nucleus(nb: ModuleType, top_p: float, others: set[int]) -> None:
    """The favourite keeps its chance, and the nucleus of the others shares the rest."""
    logits = torch.full((30,), -20.0)
    for pitch, chance in CHANCES.items():
        logits[pitch - 40] = math.log(chance)
    drawn, rest = draws(nb, logits, 40, top_p, 2000), sum(CHANCES[pitch] for pitch in others)
    assert set(drawn) == {50} | others
    for pitch in drawn:
        expected = CHANCES[pitch] if pitch == 50 else 0.6 * CHANCES[pitch] / rest
        assert drawn[pitch] / 2000 == pytest.approx(expected, abs=0.04)


@pytest.mark.parametrize(
    ("logits", "pitches"), [([0, 0, 0], {50, 51, 52}), ([0, 300, 0], {51}), ([0], {50})]
)
def test_edges_of_the_range(nb: ModuleType, logits: list[float], pitches: set[int]) -> None:
    """All pitches of the range can be drawn, and one beside which nothing has a chance."""
    assert set(draws(nb, torch.tensor(logits, dtype=torch.float), 50, 1.0, 100)) == pitches


# A number


@pytest.fixture
def seed() -> tuple[torch.Tensor, ...]:
    """Return a number in a seed, its residuals and the hidden layers 0 to 5."""
    numbers = torch.tensor([0.0, 1, 2, 4, 8, 16])
    residuals = torch.tensor([-3.0, -2.2, 1.2, -1.1, 4.6, 20])
    return numbers, residuals, torch.arange(6.0)[:, None].expand(6, 3)


@pytest.mark.parametrize(
    ("neighbours", "values"),
    [(0, [2]), (1, [4]), (2, [2, 4]), (3, [1, 2, 4]), (99, [0, 1, 2, 4, 8, 16])],
)
def test_residuals_of_the_nearest_places(
    nb: ModuleType, seed: tuple[torch.Tensor, ...], neighbours: int, values: list[int]
) -> None:
    """The median, moved by residuals of the nearest layers if any, lands on values of the seed."""
    # the layers 2, 3, 1, 4 are the nearest, in this order; they make 4.1, 1.8, .7 and 7.5
    offered = nb.seed_values(seed, torch.tensor([2.9]), torch.full((1, 3), 2.1), neighbours)
    assert sorted(offered[0].tolist()) == values


def test_seed_residuals(nb: ModuleType) -> None:
    """They are by how much each note of the seed but the first missed its median."""
    numbers = torch.tensor([[9.0, 9], [1, 5], [2, 7], [9, 9]])
    medians = torch.tensor([[0.0, 0], [3, 4], [2, 1], [0, 0]])
    layers = torch.arange(16.0).view(4, 2, 2)
    found = nb.seed_residuals({"numbers": numbers}, (None, medians, layers), 3)
    expected = ([1, 2], [-2, 0], [[4, 5], [8, 9]]), ([5, 7], [1, 6], [[6, 7], [10, 11]])
    assert [tuple(values.tolist() for values in row) for row in found] == list(expected)


# A piece that is being continued


def test_sampling_tells_what_training_tells(
    nb: ModuleType, toy: SimpleNamespace, root: Path
) -> None:
    """A chorale and a toy piece added note by note give what their encodings hold, exactly."""
    path = sorted((root / "data" / "bach_chorales").glob("*.mid"))[3]
    chorale_notes = nb.read_piece(path.read_bytes(), path.name, toy.config).notes
    for notes in (chorale_notes, toy.pieces[0].notes):
        encoded = nb.encode(notes, toy.normaliser, toy.config)
        piece = continuation(nb, notes, toy, heard=10)
        for i in range(10, len(notes)):
            pitch = int(notes.pitch[i])
            copied = nb.copy_numbers(piece.memory, pitch)
            told = piece.context() | piece.memory.candidates() | copied
            assert told.keys() | {"pitch", "numbers"} == encoded.keys()
            for key, values in nb.stack([told], toy.model).items():
                assert torch.equal(values[0, 0], encoded[key][i]), (i, key)
            piece.add(pitch, encoded["numbers"][i].tolist())
        for column in notes:
            assert np.array_equal(piece.notes[column][: piece.size], notes[column]), column


def test_added_notes_are_on_the_grid(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Times are whole ticks, a note lasts at least one, and velocities are those of MIDI."""
    seed, names = toy.seeds[0], toy.normaliser.names
    piece = continuation(nb, seed, toy, heard=len(seed))
    for extreme in (-9.0, 0.1234, 9.0):
        piece.add(60, [extreme] * len(names))
    notes = pd.DataFrame(piece.notes)[: piece.size]
    assert np.array_equal(piece.memory.numbers[: piece.size], toy.normaliser.transform(notes))
    added = notes[len(seed) - 1 :]
    assert np.allclose(added.onset.diff()[1:], added.step[1:]) and added.step[1:].max() > 4
    ticks, velocity = added[["step", "duration"]][1:] * 480, added.velocity[1:].tolist()
    assert np.allclose(ticks, ticks.round(), atol=1e-6) and ticks.duration.min() == 1
    if "velocity" in names:
        middle = round(float(toy.normaliser.inverse("velocity", 0.1234)))
        assert velocity == [1, middle, 127]
    else:
        assert velocity == [seed.velocity.iloc[-1]] * 3


@pytest.mark.parametrize(("rests", "fewest"), [(0.0, 1), (0.2, 2)])
def test_polyphony_of_the_seed(
    nb: ModuleType, toy: SimpleNamespace, rests: float, fewest: int
) -> None:
    """Rests that are rare in the seed are not usual; the most that sound are counted all."""
    notes = [(beat, pitch, 1, 90) for beat in range(10) for pitch in (50, 60)]
    notes[8] = (4, 50, 0.5, 90)
    notes += [(6, 70, 0.5, 90)]
    seed, config = piece_of(nb, "seed", notes).notes, replace(toy.config, rests=rests)
    piece = nb.Continuation(seed, [], toy.normaliser, config, 0)
    assert (piece.fewest, piece.most) == (fewest, 3)


@pytest.mark.parametrize(
    ("notes", "durations"),
    [
        # one note would sound instead of two: the one that ended last is held on
        ([(0, 50, 4), (0, 60, 1), (1, 61, 0.5), (2, 62, 1)], [4, 1, 1, 1]),
        ([(0, 50, 4), (0, 60, 2), (2, 62, 1)], [4, 2, 1]),  # one ends just here
        ([(0, 50, 1), (0, 60, 1), (2, 62, 1), (2, 65, 1)], [1, 1, 1, 1]),  # this joins a chord
        # more would sound than three: the held one nearest in pitch ends
        ([(0, 50, 4), (0, 60, 4), (0, 70, 4), (1, 62, 1)], [4, 1, 4, 1]),
        ([(0, 50, 4), (0, 75, 4), (1, 63, 2), (1, 62, 1)], [1, 4, 2, 1]),  # not one struck here
        ([(0, 50, 4), (0, 60, 4), (1, 62, 1)], [4, 4, 1]),
        ([(0, 50, 1), (0, 60, 4), (0, 70, 4), (1, 62, 1)], [1, 4, 4, 1]),
    ],
)
def test_balance(
    nb: ModuleType, toy: SimpleNamespace, notes: list[tuple], durations: list[float]
) -> None:
    """Two or three notes sound: one is held on or ended else, and what may be copied is so too."""
    onset, pitch, duration = (np.array(column) for column in zip(*notes, strict=True))
    seed = pd.DataFrame({"onset": onset, "pitch": pitch, "duration": duration, "velocity": 80})
    seed["step"] = seed.onset.diff().fillna(0.0)
    piece = continuation(nb, seed, toy, heard=len(seed))
    piece.fewest, piece.most = 2, 3
    nb.balance(piece)
    told = piece.memory.numbers[: piece.size]
    assert np.array_equal(told, toy.normaliser.transform(seed.assign(duration=durations)))
    assert piece.notes["duration"][: piece.size].tolist() == durations


# Composing


def test_composed_notes(nb: ModuleType, toy: SimpleNamespace, unbalanced: list[int]) -> None:
    """The notes go on from the seed, with its numbers, in the range, and each is balanced."""
    composer = replace(toy.composer, lowest=60, highest=61)
    found = nb.compose(composer, toy.seeds, [0, 1, 2])
    for notes, seed in zip(found, toy.seeds, strict=True):
        assert notes.index.tolist() == list(range(toy.config.piece_notes))
        assert list(notes) == list(seed)
        assert (notes.step >= 0).all() and set(notes.pitch) == {60, 61}
        onsets = seed.onset.iloc[-1] + notes.step.cumsum()
        assert np.allclose(notes.onset, onsets) and notes.onset.iloc[-1] > seed.onset.iloc[-1]
        for name in ("step", "duration", "velocity"):
            assert set(notes[name]) <= set(seed[name]), name
    assert sorted(unbalanced) == sorted([*range(17, 37)] * 3)


def test_values_are_drawn_at_random(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each value that the seed offers for a number comes, and each piece draws its own."""
    values, asked = torch.linspace(-1, 1, 6), []

    def offer(*arguments: object) -> torch.Tensor:
        asked.append(arguments[-1])
        return values[None]

    monkeypatch.setattr(nb, "seed_values", offer)
    composer = replace(toy.composer, config=replace(toy.config, piece_notes=40, neighbours=3))
    found = nb.compose(composer, toy.seeds, [0, 1, 2])
    assert all(notes.step.nunique() == 6 for notes in found) and set(asked) == {3}
    assert not any(found[0].step.equals(notes.step) for notes in found[1:])


def test_random_states(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Seed and random state decide a piece, whatever is composed beside it, and nothing else."""
    seeds, states = [toy.seeds[i] for i in (0, 0, 1)], [5, 6, 5]
    before, heard = torch.get_rng_state(), seeds[0].copy()
    toy.model.train()
    together = nb.compose(toy.composer, seeds, states)
    turns = zip(seeds, states, strict=True)
    alone = [nb.compose(toy.composer, [seed], [state])[0] for seed, state in turns]
    assert all(a.equals(b) for a, b in zip(together, alone, strict=True))
    assert not any(together[0].equals(other) for other in together[1:])
    assert torch.equal(before, torch.get_rng_state()), "composing draws global random numbers"
    assert seeds[0].equals(heard), "the seed was changed"


@pytest.mark.parametrize("distance", [1, 99])
def test_composing_equals_reading(
    nb: ModuleType,
    toy: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    unbalanced: list[int],
    distance: int,
) -> None:
    """Logits and medians are those of the whole piece read at once, but for near candidates."""
    logits, medians, number, draw = [], [], nb.MultiHeadLSTM.number, nb.draw_pitch

    def numbers(self: torch.nn.Module, index: int, hidden: torch.Tensor, *rest: object) -> tuple:
        found = number(self, index, hidden, *rest)
        medians.extend([found[0]] if hidden.shape[1] == 1 else [])
        return found

    def pitch(mine: torch.Tensor, *rest: object) -> int:
        logits.append(mine)
        return draw(mine, *rest)

    monkeypatch.setattr(nb.MultiHeadLSTM, "number", numbers)
    monkeypatch.setattr(nb, "draw_pitch", pitch)
    composer = replace(toy.composer, config=replace(toy.config, distance=distance))
    made = nb.compose(composer, toy.seeds, [0, 1, 2])
    both = [pd.concat(pair, ignore_index=True) for pair in zip(toy.seeds, made, strict=True)]
    rows = [nb.encode(notes, toy.normaliser, toy.config) for notes in both]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if distance > len(both[0]):
        batch["candidate"].fill_(nb.NO_PITCH)
        batch["candidate_length"].fill_(0)
    with torch.no_grad():
        expected = [values[:, len(toy.seeds[0]) :] for values in toy.model(batch)]
    found = torch.stack(logits).unflatten(0, (-1, len(both))).transpose(0, 1)
    assert torch.allclose(found, expected[0][..., 40:81], atol=1e-5)
    found = torch.cat(medians, dim=1).unflatten(1, (-1, len(toy.normaliser.names)))
    assert torch.allclose(found, expected[1], atol=1e-5)
