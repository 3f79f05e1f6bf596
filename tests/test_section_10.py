"""Section 10 of the notebook: the composer, which tells the model what the training tells it."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import chorale, small_config


@pytest.fixture(scope="module", params=[False, True], ids=["steady", "velocity"])
def toy(nb: ModuleType, request: pytest.FixtureRequest) -> SimpleNamespace:
    """Return seeds, a normaliser of two or three numbers, and an untrained composer."""
    config = small_config(nb)
    pieces = [chorale(nb, i, velocity=request.param) for i in range(3)]
    seeds = [piece.notes.head(config.seed_notes) for piece in pieces]
    normaliser = nb.Normaliser(pieces, config)
    limits = nb.find_limits([nb.encode(piece.notes, normaliser, config) for piece in pieces])
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, config)
    composer = nb.Composer(model, normaliser, limits, config)
    return SimpleNamespace(**locals())


@pytest.fixture
def unbalanced(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the durations as they were drawn."""
    monkeypatch.setattr(nb, "balance", lambda *_: None)


def continuation(nb: ModuleType, notes: pd.DataFrame, toy: SimpleNamespace, heard: int) -> object:
    """Return a continuation of the first notes of a piece, with room for the others."""
    config = replace(toy.config, piece_notes=len(notes) - heard)
    return nb.Continuation(notes.head(heard), None, toy.normaliser, config, 0)


def same_notes(one: list[pd.DataFrame], other: list[pd.DataFrame]) -> list[bool]:
    """Return which tables are equal."""
    return [a.equals(b) for a, b in zip(one, other, strict=True)]


@pytest.mark.parametrize("name", ["toy", "bach"])
def test_sampling_tells_what_training_tells(
    nb: ModuleType, toy: SimpleNamespace, root: Path, name: str
) -> None:
    """A real piece added note by note gives what its encoding holds, exactly."""
    path = sorted((root / "data" / "bach_chorales").glob("*.mid"))[3]
    real = nb.read_piece(path.read_bytes(), path.name, toy.config).notes
    notes = real if name == "bach" else toy.pieces[0].notes
    encoded = nb.encode(notes, toy.normaliser, toy.config)
    piece = continuation(nb, notes, toy, heard=10)
    for i in range(10, len(notes)):
        pitch = int(notes.pitch[i])
        told = piece.context() | piece.memory.candidates() | piece.memory.copied(pitch)
        assert told.keys() | {"pitch", "numbers"} == encoded.keys()
        for key, values in nb.as_tensors(told).items():
            assert torch.equal(values[0], encoded[key][i]), (i, key)
        piece.add(pitch, encoded["numbers"][i])
    assert piece.size == len(notes)
    for column in notes:
        assert np.array_equal(piece.notes[column], notes[column]), column


def test_changed_duration_is_told_and_copied(nb: ModuleType, toy: SimpleNamespace) -> None:
    """After a duration was changed, the note sounds so long and is copied so."""
    notes = toy.pieces[0].notes
    piece = continuation(nb, notes, toy, heard=len(notes) - 1)
    last, pitch = piece.size - 1, int(notes.pitch.iloc[-2])
    piece.set_duration(last, 7.25)
    changed = notes.copy()
    changed.loc[last, "duration"] = 7.25
    expected = nb.encode(
        changed.assign(pitch=[*notes.pitch[:-1], pitch]), toy.normaliser, toy.config
    )
    told = piece.context() | piece.memory.copied(pitch)
    for name, values in nb.as_tensors(told).items():
        assert torch.equal(values[0], expected[name][-1]), name
    assert told["copied"][1] == pytest.approx(toy.normaliser.transform("duration", 7.25))
    assert told["context_held"][pitch] == pytest.approx(np.tanh(7.25))


def test_added_notes_are_on_the_grid(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Times are whole ticks, a note lasts at least one, and velocities are those of MIDI."""
    seed = toy.seeds[0]
    piece = nb.Continuation(seed, None, toy.normaliser, toy.config, 0)
    for extreme in (-9.0, 0.1234, 9.0):
        piece.add(60, torch.full((len(toy.normaliser.names),), extreme))
    added = pd.DataFrame(piece.notes)[len(seed) : piece.size]
    ticks = added[["step", "duration"]] * 480
    assert np.allclose(ticks, ticks.round(), atol=1e-6) and added.duration.min() == 1 / 480
    assert added.velocity.between(1, 127).all() and (added.velocity % 1 == 0).all()
    assert len(toy.normaliser.names) == 3 or (added.velocity == seed.velocity.iloc[-1]).all()


def test_composed_notes(nb: ModuleType, toy: SimpleNamespace, unbalanced: None) -> None:
    """The notes go on from the seed, with its numbers, in the range of the training pieces."""
    limits = replace(toy.limits, lowest=50, highest=65)
    found = replace(toy.composer, limits=limits).compose(toy.seeds, [0, 1, 2])
    for notes, seed in zip(found, toy.seeds, strict=True):
        assert notes.index.tolist() == list(range(toy.config.piece_notes))
        assert list(notes) == list(seed)
        assert (notes.step >= 0).all() and notes.pitch.between(50, 65).all()
        onsets = seed.onset.iloc[-1] + notes.step.cumsum()
        assert np.allclose(notes.onset, onsets) and notes.onset.iloc[-1] > seed.onset.iloc[-1]
        for name in ("step", "duration", "velocity"):
            assert set(notes[name]) <= set(seed[name]), name
        assert notes.dtypes[["pitch", "velocity"]].tolist() == [int, int]


def test_random_states(toy: SimpleNamespace) -> None:
    """A random state gives the same piece again, another one a different piece."""
    seeds = [toy.seeds[0]] * 3
    before, heard = torch.get_rng_state(), seeds[0].copy()
    first, second = (toy.composer.compose(seeds, [5, 5, 6]) for _ in range(2))
    assert all(same_notes(first, second)) and same_notes(first, [first[1], first[2], first[0]]) == [
        True,
        False,
        False,
    ]
    assert torch.equal(before, torch.get_rng_state()), "composing draws global random numbers"
    assert seeds[0].equals(heard), "the seed was changed"


def test_pieces_do_not_meet(toy: SimpleNamespace) -> None:
    """A piece composed alone is the one composed among others."""
    together = toy.composer.compose(toy.seeds, [3, 4, 5])
    alone = [toy.composer.compose([seed], [3 + i])[0] for i, seed in enumerate(toy.seeds)]
    assert all(same_notes(together, alone))
    assert not any(same_notes(together, together[1:] + together[:1]))


def test_composing_equals_reading(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, unbalanced: None
) -> None:
    """The carried state and the medians are those of the whole sequence read at once."""
    hidden, medians, number = [], [], nb.MultiHeadLSTM.number

    def spy(self: torch.nn.Module, index: int, state: torch.Tensor, *rest: object) -> tuple:
        found = number(self, index, state, *rest)
        if state.shape[1] == 1:
            hidden.extend([state] if index == 0 else [])
            medians.append(found[0])
        return found

    monkeypatch.setattr(nb.MultiHeadLSTM, "number", spy)
    made = toy.composer.compose(toy.seeds, [0, 1, 2])
    both = [pd.concat(pair, ignore_index=True) for pair in zip(toy.seeds, made, strict=True)]
    batch = nb.stack([nb.encode(notes, toy.normaliser, toy.config) for notes in both], toy.model)
    read, count = slice(len(toy.seeds[0]), None), len(toy.normaliser.names)
    with torch.no_grad():
        expected = toy.model.encoder(batch)[0][:, read], toy.model(batch)[1][:, read]
    assert torch.allclose(torch.cat(hidden, dim=1), expected[0], atol=1e-5)
    found = torch.cat(medians, dim=1).unflatten(1, (-1, count))
    assert torch.allclose(found, expected[1], atol=1e-5)


def held(nb: ModuleType, toy: SimpleNamespace, notes: list[tuple[float, int, float]]) -> object:
    """Return a continuation of notes (onset, pitch, duration), of which two usually sound."""
    onset, pitch, duration = (np.array(column) for column in zip(*notes, strict=True))
    table = nb.note_table(onset, pitch, onset + duration, np.full(len(notes), 80))
    piece = continuation(nb, table, toy, heard=len(table))
    piece.fewest = 2
    return piece


def test_balance_holds_a_note_on(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Where one note would sound instead of two, the one that ended last lasts until now."""
    piece = held(nb, toy, [(0, 50, 4), (0, 60, 1), (1, 61, 0.5), (2, 62, 1)])
    nb.balance(piece, most=4)
    assert piece.notes["duration"].tolist() == [4, 1, 1, 1]
    piece = held(nb, toy, [(0, 50, 4), (0, 60, 2), (2, 62, 1)])
    nb.balance(piece, most=4)
    assert piece.notes["duration"].tolist() == [4, 2, 1]


def test_balance_ends_the_nearest_note(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Where more would sound than may, the held note nearest in pitch ends."""
    piece = held(nb, toy, [(0, 50, 4), (0, 60, 4), (0, 70, 4), (1, 62, 1)])
    nb.balance(piece, most=3)
    assert piece.notes["duration"].tolist() == [4, 1, 4, 1]


def test_copies_are_what_stands_in_the_piece(nb: ModuleType, toy: SimpleNamespace) -> None:
    """What may be copied are the notes as they are at last, whatever was held on or ended."""
    changed = []
    for seed in toy.seeds:
        piece = nb.Continuation(seed, None, toy.normaliser, toy.config, 0)
        for _ in range(20):
            piece.add(int(seed.pitch.iloc[0]), torch.zeros(len(toy.normaliser.names)))
            before = piece.notes["duration"].copy()
            nb.balance(piece, most=2)
            changed.append((piece.notes["duration"] != before).any())
        notes = {name: values[: piece.size] for name, values in piece.notes.items()}
        told = piece.memory.numbers[: piece.size]
        np.testing.assert_allclose(told, toy.normaliser.table(notes), atol=1e-6)
    assert any(changed)


def test_most_notes_at_once(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The limit of the polyphony is the most notes that ever sound in the pieces."""
    most = max(int(nb.polyphony(piece.notes).max()) for piece in toy.pieces)
    assert toy.limits.polyphony == most == 4
