"""How a pitch and attributes are drawn, and how a piece is composed note by note."""

from dataclasses import replace
from itertools import product
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
    """Return seeds, a normaliser of two or three attributes, and an untrained composer."""
    config, pieces = small_config(nb), [chorale(nb, i, velocity=request.param) for i in range(3)]
    seeds = [replace(piece, notes=piece.notes.head(config.seed_notes)) for piece in pieces]
    normaliser = nb.Normaliser(pieces)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, range(40, 80), config)
    composer = nb.Composer(model, normaliser, range(40, 80), nb.NEAR, 99, 999, config)
    return SimpleNamespace(**locals())


def unbounded(*_: object) -> list[torch.Tensor]:
    """Return bounds that leave every step free."""
    return [torch.tensor(-torch.inf), torch.tensor(torch.inf)]


def test_nucleus(nb: ModuleType) -> None:
    """The likeliest keeps its probability, and the nucleus of the others shares the rest."""
    # 0.45 of what is not the likeliest's is 0.27: one pitch holds it
    cases = {0.45: (0, 0, 0.4, 0, 0.6), 0.8: (0, 0, 0.4, 0.24, 0.36), 0.95: (0, 0.1, 0.4, 0.2, 0.3)}
    for top_p, expected in cases.items():
        both = torch.tensor([[0, 0.1, 0.4, 0.2, 0.3], [0, 1, 0, 0, 0]])
        found = nb.nucleus(both, top_p)
        assert torch.allclose(found[0], torch.tensor(expected)) and torch.equal(found[1], both[1])


@pytest.mark.parametrize("neighbours", [1, 3, 99])
def test_seed_values(nb: ModuleType, neighbours: int) -> None:
    """The median, moved by residuals of the nearest layers, lands on values of its own seed."""
    torch.manual_seed(0)
    seed = known, residuals, places = torch.randn(2, 9), torch.randn(2, 9), torch.randn(2, 9, 5)
    medians, layers = torch.randn(2, 4), torch.randn(2, 4, 5)
    found = nb.seed_values(seed, medians, layers, neighbours)
    for row, i in product(range(2), range(4)):
        nearest = (places[row] - layers[row, i]).norm(dim=-1).argsort()[:neighbours]
        moved = (medians[row, i] + residuals[row, nearest]).tolist()
        expected = [min(known[row].tolist(), key=lambda x: abs(x - m)) for m in moved]
        assert found[row, i].tolist() == expected


def test_seed_residuals(nb: ModuleType) -> None:
    """They are by how much each note of each seed but the first missed its median."""
    (attributes, medians), layers = torch.randn(2, 2, 5, 3), torch.randn(2, 5, 3, 7)
    found = nb.seed_residuals({"attributes": attributes}, (None, medians, layers))
    for i, parts in enumerate(found):
        expected = (values[:, 1:, i] for values in (attributes, attributes - medians, layers))
        assert all(map(torch.equal, parts, expected)) and len(found) == 3


def test_new_notes_are_on_the_grid(toy: SimpleNamespace) -> None:
    """Times are whole ticks, a note lasts at least one, and velocities are those of MIDI."""
    seed, names, inverse = toy.seeds[0].notes, toy.normaliser.names, toy.normaliser.inverse
    pieces, _ = toy.nb.walk([seed], 3, toy.normaliser, toy.config)
    for extreme in (-40.0, 0.1234, 9.0):
        attributes = np.full((1, len(names)), extreme)
        pieces.append(toy.composer.note_of(pieces, np.array([60]), attributes))
    notes = pd.DataFrame({name: values[0, toy.nb.NEAR :] for name, values in pieces.notes.items()})
    assert np.allclose(notes.onset.diff()[1:], notes.step[1:]) and set(notes.pitch[16:]) == {60}
    ticks = notes[["step", "duration"]].to_numpy()[len(seed) :] * 480
    assert np.allclose(ticks, ticks.round(), atol=1e-6) and ticks[2].min() > 4 * 480
    assert ticks[0].tolist() == [0, 1]
    middle = round(inverse(np.full(3, 0.1234))[2]) if "velocity" in names else 0
    expected = [1, middle, 127] if middle else [seed.velocity.iloc[-1]] * 3
    assert notes.velocity[len(seed) :].tolist() == expected


def texture(notes: pd.DataFrame) -> pd.DataFrame:
    """Return of each note how many sound, if its key did, the rest before it, and all of those."""
    rows, rests = [], 0.0
    for i, note in enumerate(notes.itertuples()):
        near, length = notes[max(0, i - 24) : i], note.onset - note.step - notes.onset[0]
        left = near.onset + near.duration - note.onset
        keys, silent = near.pitch[left > 1 / 960], rests / max(length, 1 / 960)
        rest = max(0, -left.max()) if i else 0
        rows.append((len(keys) + 1, note.pitch in set(keys), rest, silent))
        rests += rest
    return pd.DataFrame(rows, columns=["sounding", "again", "rest", "silent"])


@pytest.mark.parametrize(("again", "silence"), [(0, 0.1), (3, 0.0), (5, 0.3)])
def test_bounds(nb: ModuleType, toy: SimpleNamespace, again: int, silence: float) -> None:
    """Notes that sound at once, keys struck again and rests are no more than may be."""
    chords = [(beat, *note, 90) for beat in range(0, 16, 2) for note in ((60, 2), (64, 0.25))]
    broken = [*chords[:6], (6, 60, 0.25, 90), *chords[7:]]  # a rest of 1.75 beats
    chords[4] = (4, 60, 4, 90)  # a key that is struck again, which does not count
    seeds = [*toy.seeds[:2], *(piece_of(nb, "a", notes) for notes in (chords, broken))]
    config = replace(toy.config, piece_notes=60, silence=silence)
    limits = {"most_sounding": 4, "most_again": again}
    composer = replace(toy.composer, pitches=range(57, 67), config=config, **limits)
    found = []
    for seed, made in zip(seeds, nb.compose(composer, seeds, 0), strict=True):
        features = texture(pd.concat([seed.notes, made.notes], ignore_index=True))
        new = features[16:]
        assert set(made.notes.pitch) <= set(range(57, 67)) and made.notes.pitch.nunique() > 3
        assert new.again.sum() <= again
        most = max(features.silent[16], silence)
        assert (new.silent[new.rest > 1 / 960] <= most + 1e-6).all()
        found.append((new.sounding.max(), new.again.sum(), (new.rest > 0.01).any()))
    sounding, struck, rests = zip(*found, strict=True)
    assert max(sounding) == 4 and struck[2] == again and rests[3]
    # where every key sounds and none may be struck again, its end is awaited
    held = [(i / 2, 60, 2, 90) for i in range(16)]
    seed = piece_of(nb, "a", held)
    (made,) = nb.compose(replace(composer, pitches=range(60, 61), most_again=0), [seed], 0)
    features = texture(pd.concat([seed.notes, made.notes], ignore_index=True))
    assert features.again[1:16].all() and not features.again[16:].any()
    # after 2.5 silent beats of 12 the next note comes at any time, or before the last one ends
    rested = piece_of(nb, "a", [*held, (12, 60, 2, 90)]).notes
    pieces, _ = nb.walk([rested], 0, toy.normaliser, config)
    _, largest = composer.step_bounds(pieces, np.array([60]))
    beats = dict.fromkeys(nb.ATTRIBUTES, nb.LONGEST if silence > 2.5 / 12 else 2)
    assert largest.item() == toy.normaliser.transform(beats)[0]


def test_nothing_that_was_heard_changes(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch
) -> None:
    """Notes are only added: all that was heard stays to the byte, and new notes are in the range.

    Their attributes are values of the seed, where the step is not bounded.
    """
    append, tables, heard = nb.PiecesSoFar.append, [s.notes.copy() for s in toy.seeds], []

    def past(pieces: object, size: int) -> list[bytes]:
        arrays = pieces.attributes, pieces.motion, pieces.again, pieces.sounding, pieces.rest
        arrays += *pieces.notes.values(), *pieces.matches.values
        return [values[:, :size].tobytes() for values in arrays]

    def add(pieces: object, note: dict) -> None:
        size, before = pieces.size, past(pieces, pieces.size)
        assert not heard or before == heard[-1]
        append(pieces, note)
        assert past(pieces, size) == before
        heard.append(past(pieces, pieces.size))

    monkeypatch.setattr(nb.PiecesSoFar, "append", add)
    monkeypatch.setattr(nb.Composer, "step_bounds", unbounded)
    composer, pitches = replace(toy.composer, pitches=range(60, 65)), set()
    made = nb.compose(composer, toy.seeds, 0)
    assert len(heard) == 36
    for seed, table, piece in zip(toy.seeds, tables, made, strict=True):
        notes = piece.notes
        assert seed.notes.equals(table)
        assert (piece.name, piece.tempo, [*notes], len(notes)) == (
            seed.name,
            seed.tempo,
            [*table],
            20,
        )
        assert np.allclose(notes.onset, table.onset.iloc[-1] + notes.step.cumsum())
        assert all(set(notes[name]) <= set(table[name]) for name in nb.ATTRIBUTES)
        pitches |= set(notes.pitch)
    assert len(pitches) > 1 and pitches <= {60, 61, 62, 63, 64}


def test_random_values(nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch) -> None:
    """Each value that the seed offers for an attribute comes, and each piece draws its own."""
    asked, values = [], torch.linspace(-1, 1, 6).expand(3, 1, 6)
    monkeypatch.setattr(nb, "seed_values", lambda *features: asked.append(features[-1]) or values)
    monkeypatch.setattr(nb.Composer, "step_bounds", unbounded)
    composer = replace(toy.composer, config=replace(toy.config, piece_notes=40, neighbours=3))
    steps = [made.notes.step for made in nb.compose(composer, toy.seeds, 0)]
    assert all(step.nunique() == 6 for step in steps) and set(asked) == {3}
    assert not any(steps[0].equals(step) for step in steps[1:])


def test_random_states(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Seeds and random state decide the pieces and nothing else; one seed goes on in two ways."""
    seeds, before = [toy.seeds[i] for i in (0, 0, 1)], torch.get_rng_state()
    toy.model.train()
    drawn = [[p.notes for p in nb.compose(toy.composer, seeds, state)] for state in (5, 5, 6)]
    same, other = ([a.equals(b) for a, b in zip(drawn[0], d, strict=True)] for d in drawn[1:])
    assert all(same) and not any(other) and not drawn[0][0].equals(drawn[0][1])
    assert torch.equal(before, torch.get_rng_state()), "composing draws global random numbers"


@pytest.mark.parametrize("distance", [1, 99])
def test_composing_equals_reading(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch, distance: int
) -> None:
    """What is drawn from is that of the whole piece read at once, but for near candidates."""
    asked = {name: Mock(wraps=getattr(nb, name)) for name in ("nucleus", "seed_values")}
    for name, mock in asked.items():
        monkeypatch.setattr(nb, name, mock)
    settings = {"distance": distance, "temperature": 0.5, "top_p": 0.7}
    composer = replace(toy.composer, config=replace(toy.config, **settings))
    made = nb.compose(composer, toy.seeds, 0)
    both = [
        replace(seed, notes=pd.concat([seed.notes, piece.notes], ignore_index=True))
        for seed, piece in zip(toy.seeds, made, strict=True)
    ]
    rows = nb.encode(both, toy.normaliser, toy.config)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if distance > len(both[0].notes):
        batch["candidate"].fill_(nb.NO_PITCH)
        batch["candidate_length"].fill_(0)
    with torch.no_grad():
        logits, *others = (values[:, 16:] for values in toy.model(batch))
    calls = {name: [call.args for call in mock.call_args_list] for name, mock in asked.items()}
    found = torch.stack([probabilities for probabilities, _ in calls["nucleus"]], dim=1)
    assert torch.allclose(found, (2 * logits[..., 40:80]).softmax(-1), atol=1e-5)
    assert {top_p for _, top_p in calls["nucleus"]} == {0.7}
    for i, expected in enumerate(others, start=1):
        found = torch.cat([arguments[i] for arguments in calls["seed_values"]], dim=1)
        assert torch.allclose(found.view(expected.shape), expected, atol=1e-5)
