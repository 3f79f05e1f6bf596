"""Section 10 of the notebook: drawing pitch and numbers, and composing note by note."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import chorale, piece_of, small_config
from pytest import MonkeyPatch


@pytest.fixture(scope="module", params=[False, True], ids=["steady", "velocity"])
def toy(nb: ModuleType, request: pytest.FixtureRequest) -> SimpleNamespace:
    """Return seeds, a normaliser of two or three numbers, and an untrained composer."""
    config = small_config(nb)
    pieces = [chorale(nb, i, velocity=request.param) for i in range(3)]
    seeds = [replace(piece, notes=piece.notes.head(config.seed_notes)) for piece in pieces]
    normaliser = nb.Normaliser(pieces)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, config)
    composer = nb.Composer(model, normaliser, 40, 80, config)
    return SimpleNamespace(**locals())


def continuation(
    toy: SimpleNamespace, notes: pd.DataFrame, heard: int | None = None, **changes: float
) -> object:
    """Return a continuation of the first notes of a piece, or of all, with room for more."""
    config = replace(toy.config, piece_notes=max(len(notes) - (heard or 0), 20), **changes)
    seed = replace(toy.seeds[0], notes=notes[:heard])
    return toy.nb.Continuation(seed, toy.normaliser, config)


@pytest.mark.parametrize(
    ("chances", "top_p", "expected"),
    [
        # 0.45 of what is not the favourite's is 0.27: one pitch holds it
        ((0, 0.1, 0.4, 0.2, 0.3), 0.45, (0, 0, 0.4, 0, 0.6)),
        ((0, 0.1, 0.4, 0.2, 0.3), 0.8, (0, 0, 0.4, 0.24, 0.36)),
        ((0, 0.1, 0.4, 0.2, 0.3), 0.95, (0, 0.1, 0.4, 0.2, 0.3)),
        ((0.04, 0.06, 0.9), 0.5, (0, 0.1, 0.9)),
        ((0.2, 0.2, 0.2), 1.0, (1 / 3, 1 / 3, 1 / 3)),
        ((0, 1, 0), 0.87, (0, 1, 0)),
        ((1,), 0.87, (1,)),
    ],
)
def test_nucleus(
    nb: ModuleType, monkeypatch: MonkeyPatch, chances: tuple, top_p: float, expected: tuple
) -> None:
    """The favourite keeps its chance, and the nucleus of the others shares the rest."""
    asked = []

    def take(chance: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        asked.append(chance[1] / chance[1].sum())
        return torch.tensor([[len(asked) - 1]] * len(chance))

    # each place in turn, with the chance that it would have had
    monkeypatch.setattr(torch.Tensor, "multinomial", take)
    logits = torch.tensor([[1.0] * len(chances), chances]).log().clamp(min=-300) + 7
    pitches = [nb.draw_pitches(logits, top_p, torch.Generator())[1] for _ in chances]
    found = sorted((int(pitch), float(asked[i][i])) for i, pitch in enumerate(pitches))
    assert [pitch for pitch, _ in found] == list(range(len(chances)))
    assert [chance for _, chance in found] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("neighbours", "values"),
    [(1, [4]), (2, [2, 4]), (3, [1, 2, 4]), (99, [0, 1, 2, 4, 8, 16])],
)
def test_seed_values(nb: ModuleType, neighbours: int, values: list[float]) -> None:
    """The median, moved by residuals of the nearest layers, lands on values of the seed."""
    # the layers 2, 3, 1, 4 are the nearest to 2.1, in this order; they make 4.1, 1.8, .7 and 7.5
    numbers = torch.tensor([0.0, 1, 2, 4, 8, 16])
    residuals = torch.tensor([-3.0, -2.2, 1.2, -1.1, 4.6, 20])
    seed = numbers, residuals, torch.arange(6.0)[:, None].expand(6, 3)
    # another seed, in which all is ten higher
    seeds = [torch.stack([mine, mine + more]) for mine, more in zip(seed, (10, 0, 10), strict=True)]
    layers, medians = torch.full((2, 2, 3), 2.1), torch.full((2, 2), 2.9)
    layers[1], medians[1] = 12.1, 12.9
    offered = nb.seed_values(seeds, medians, layers, neighbours).sort().values
    assert offered.tolist() == [[values] * 2, [[value + 10 for value in values]] * 2]


def test_seed_residuals(nb: ModuleType) -> None:
    """They are by how much each note of each seed but the first missed its median."""
    numbers = torch.tensor([[9.0, 9], [1, 5], [2, 7]])
    medians = torch.tensor([[0.0, 0], [3, 4], [2, 1]])
    layers = torch.arange(12.0).view(3, 2, 2)
    both = [torch.stack([values, values + 1]) for values in (medians, layers)]
    found = nb.seed_residuals({"numbers": torch.stack([numbers] * 2)}, (None, *both))
    for row, expected in zip(
        found,
        (([1, 2], [-2, 0], [[4, 5], [8, 9]]), ([5, 7], [1, 6], [[6, 7], [10, 11]])),
        strict=True,
    ):
        values, residuals, places = (torch.tensor(part) for part in expected)
        expected = (values, values), (residuals, residuals - 1), (places, places + 1)
        for mine, pair in zip(row, expected, strict=True):
            assert torch.equal(mine, torch.stack(pair).to(mine))


def test_sampling_tells_what_training_tells(toy: SimpleNamespace, root: Path) -> None:
    """A chorale and a toy piece added note by note give what their encodings hold, exactly."""
    path = sorted((root / "data" / "bach_chorales").glob("*.mid"))[3]
    for notes in (toy.nb.read_piece(path.read_bytes(), path.name).notes, toy.pieces[0].notes):
        encoded = toy.nb.encode(notes, toy.normaliser, toy.config)
        piece = continuation(toy, notes, 10)
        for i in range(10, len(notes)):
            pitch = int(notes.pitch[i])
            told = (
                toy.nb.context(piece)
                | toy.nb.candidates(piece)
                | toy.nb.copied_numbers(piece, pitch)
            )
            assert told.keys() | {"pitch", "numbers"} == encoded.keys()
            for key, values in toy.composer.stack([told]).items():
                assert torch.equal(values[0, 0], encoded[key][i]), (i, key)
            piece.add(pitch, encoded["numbers"][i])
        for column in toy.nb.COLUMNS:
            assert np.array_equal(piece.notes[column], notes[column]), column


def test_added_notes_are_on_the_grid(toy: SimpleNamespace) -> None:
    """Times are whole ticks, a note lasts at least one, and velocities are those of MIDI."""
    seed, names, inverse = toy.seeds[0].notes, toy.normaliser.names, toy.normaliser.inverse
    piece = continuation(toy, seed)
    for extreme in (-40.0, 0.1234, 9.0):
        piece.add(60, torch.full([len(names)], extreme))
    notes = pd.DataFrame(piece.notes)[: piece.size]
    assert np.array_equal(piece.numbers[: piece.size], toy.normaliser.transform(notes))
    assert np.allclose(notes.onset.diff()[1:], notes.step[1:])
    ticks = notes[["step", "duration"]].to_numpy()[len(seed) :] * 480
    assert np.allclose(ticks, ticks.round(), atol=1e-6) and ticks[2].min() > 4 * 480
    assert ticks[0].tolist() == [0, 1]
    middle = round(inverse(np.full(3, 0.1234))[2]) if "velocity" in names else 0
    expected = [1, middle, 127] if middle else [seed.velocity.iloc[-1]] * 3
    assert notes.velocity[len(seed) :].tolist() == expected


@pytest.mark.parametrize(("rests", "fewest"), [(0.0, 1), (0.2, 2)])
def test_polyphony_of_the_seed(toy: SimpleNamespace, rests: float, fewest: int) -> None:
    """Rests that are rare in the seed are not usual; the most that sound are counted all."""
    notes = [(beat, pitch, 1, 90) for beat in range(10) for pitch in (50, 60)]
    notes[8:9] = (4, 50, 0.5, 90), (6, 70, 0.5, 90)
    piece = continuation(toy, piece_of(toy.nb, "seed", notes).notes, rests=rests)
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
def test_balance(toy: SimpleNamespace, notes: list[tuple], durations: list[float]) -> None:
    """Two or three notes sound: one is held on or ended else, and what may be copied is so too."""
    seed = piece_of(toy.nb, "seed", [(*note, 80) for note in notes]).notes
    # the note that was added last comes last, also after a higher one
    seed[["pitch", "duration"]] = [note[1:] for note in notes]
    piece = continuation(toy, seed)
    piece.fewest, piece.most = 2, 3
    toy.nb.balance(piece)
    told = piece.numbers[: piece.size]
    assert np.array_equal(told, toy.normaliser.transform(seed.assign(duration=durations)))
    assert piece.notes["duration"][: piece.size].tolist() == durations


@pytest.mark.parametrize(
    ("most", "steps", "rests"),
    [
        (0.1, [1, 1, 2], [0, 0, 1]),
        (0.1, [1, 2, 1.5], [0, 0, 0.5]),  # the first rest would be too much
        (0.3, [1, 2, 2], [0, 1, 0]),  # more than the seed, up to what any piece may
    ],
)
def test_silence(toy: SimpleNamespace, most: float, steps: list[float], rests: list[float]) -> None:
    """A piece rests for no larger share of the time than any may, or its seed: a note is held."""
    notes = [(onset, 60 + onset, 1, 80) for onset in (0, 1, 3, 4)]  # a rest in four beats
    piece = continuation(toy, piece_of(toy.nb, "seed", notes).notes, silence=most)
    assert piece.silence() == 0.25 and piece.most_silence == max(0.25, most)
    for step in steps:
        numbers = toy.normaliser.transform({"step": step, "duration": 1, "velocity": 80})
        piece.add(65, torch.tensor(numbers))
        toy.nb.balance(piece)
    end = piece.notes["onset"][:7] + piece.notes["duration"][:7]
    assert (piece.notes["onset"][4:7] - end[3:6]).tolist() == rests
    assert piece.silence() <= piece.most_silence


def test_no_silence_under_a_long_note(toy: SimpleNamespace) -> None:
    """Nothing is silent as long as an earlier note is held."""
    notes = [(0, 40, 6, 80), (1, 60, 1, 80), (4, 62, 1, 80)]
    assert continuation(toy, piece_of(toy.nb, "seed", notes).notes).silence() == 0


def test_composed_notes(nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch) -> None:
    """The notes go on from the seed, with its numbers, in the range, and each is balanced."""
    sizes, pitches = [], set()
    monkeypatch.setattr(nb, "balance", lambda piece: sizes.append(piece.size))
    composer = replace(toy.composer, lowest=60, highest=64)
    for seed, made in zip(toy.seeds, nb.compose(composer, toy.seeds, 0), strict=True):
        notes, heard = made.notes, seed.notes
        assert (made.name, made.tempo, list(notes)) == (seed.name, seed.tempo, list(heard))
        assert notes.index.tolist() == list(range(toy.config.piece_notes))
        assert np.allclose(notes.onset, heard.onset.iloc[-1] + notes.step.cumsum())
        for name in nb.NUMBERS:
            assert set(notes[name]) <= set(heard[name]), name
        pitches |= set(notes.pitch)
    assert len(pitches) > 1 and pitches <= {60, 61, 62, 63, 64}
    assert sorted(sizes) == sorted([*range(17, 37)] * 3)


def test_random_values(nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch) -> None:
    """Each value that the seed offers for a number comes, and each piece draws its own."""
    asked, values = [], torch.linspace(-1, 1, 6).expand(3, 1, 6)
    monkeypatch.setattr(nb, "seed_values", lambda *told: asked.append(told[-1]) or values)
    composer = replace(toy.composer, config=replace(toy.config, piece_notes=40, neighbours=3))
    steps = [made.notes.step for made in nb.compose(composer, toy.seeds, 0)]
    assert all(step.nunique() == 6 for step in steps) and set(asked) == {3}
    assert not any(steps[0].equals(step) for step in steps[1:])


def test_random_states(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Seeds and random state decide the pieces and nothing else; one seed goes on in two ways."""
    seeds, before, heard = [toy.seeds[i] for i in (0, 0, 1)], torch.get_rng_state(), toy.seeds[0]
    heard = heard.notes.copy()
    toy.model.train()
    drawn = [[p.notes for p in nb.compose(toy.composer, seeds, state)] for state in (5, 5, 6)]
    same, other = ([a.equals(b) for a, b in zip(drawn[0], d, strict=True)] for d in drawn[1:])
    assert all(same) and not any(other) and not drawn[0][0].equals(drawn[0][1])
    assert torch.equal(before, torch.get_rng_state()), "composing draws global random numbers"
    assert seeds[0].notes.equals(heard), "the seed was changed"


@pytest.mark.parametrize("distance", [1, 99])
def test_composing_equals_reading(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch, distance: int
) -> None:
    """What is drawn from is that of the whole piece read at once, but for near candidates."""
    asked = {name: Mock(wraps=getattr(nb, name)) for name in ("draw_pitches", "seed_values")}
    for name, mock in asked.items():
        monkeypatch.setattr(nb, name, mock)
    # what is changed afterwards, was told otherwise
    monkeypatch.setattr(nb, "balance", lambda *_: None)
    composer = replace(toy.composer, config=replace(toy.config, distance=distance))
    made = nb.compose(composer, toy.seeds, 0)
    pairs = zip(toy.seeds, made, strict=True)
    both = [pd.concat([part.notes for part in pair], ignore_index=True) for pair in pairs]
    rows = [nb.encode(notes, toy.normaliser, toy.config) for notes in both]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if distance > len(both[0]):
        batch["candidate"].fill_(nb.NO_PITCH)
        batch["candidate_length"].fill_(0)
    with torch.no_grad():
        logits, *others = (values[:, toy.config.seed_notes :] for values in toy.model(batch))
    found = torch.stack([call.args[0] for call in asked["draw_pitches"].call_args_list], dim=1)
    assert torch.allclose(found, logits[..., 40:81], atol=1e-5)
    for place, expected in enumerate(others, start=1):
        found = torch.cat([call.args[place] for call in asked["seed_values"].call_args_list], dim=1)
        assert torch.allclose(found.view(expected.shape), expected, atol=1e-5)
