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
    notes = {name: values[0, toy.nb.NEAR :] for name, values in pieces.notes.items()}
    notes = pd.DataFrame(notes)[len(seed) - 1 :]
    assert np.allclose(notes.onset.diff()[1:], notes.step[1:]) and {*notes.pitch[1:]} == {60}
    ticks = notes[["step", "duration"]].to_numpy()[1:] * 480
    assert np.allclose(ticks, ticks.round(), atol=1e-6) and ticks[2].min() > 4 * 480
    assert ticks[0].tolist() == [0, 1]
    middle = round(inverse(np.full(3, 0.1234))[2]) if "velocity" in names else 0
    expected = [1, middle, 127] if middle else [seed.velocity.iloc[-1]] * 3
    assert notes.velocity[1:].tolist() == expected


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


@pytest.mark.parametrize(("again", "silence"), [(0, 0.1), (1, 0.0), (2, 0.3)])
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
    assert max(sounding) == 4 and max(struck) == again and rests[3]
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


def test_values_of_the_seed(nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch) -> None:
    """Each piece goes on from its seed by values of the seed, of which it draws its own."""
    offered = Mock(wraps=nb.seed_values)
    monkeypatch.setattr(nb, "seed_values", offered)
    free = [torch.tensor(-torch.inf), torch.tensor(torch.inf)]  # where no step is bounded
    monkeypatch.setattr(nb.Composer, "step_bounds", lambda *_: free)
    seeds, tables = [toy.seeds[0], *toy.seeds[:2]], [s.notes.copy() for s in toy.seeds]
    made = nb.compose(replace(toy.composer, pitches=range(60, 65)), seeds, 0)
    assert {call.args[-1] for call in offered.call_args_list} == {toy.config.neighbours}
    assert all(seed.notes.equals(table) for seed, table in zip(toy.seeds, tables, strict=True))
    for seed, piece in zip(seeds, made, strict=True):
        notes, table = piece.notes, seed.notes
        assert (piece.name, piece.tempo, len(notes)) == (seed.name, seed.tempo, 20)
        assert np.allclose(notes.onset, table.onset.iloc[-1] + notes.step.cumsum())
        assert all(set(notes[name]) <= set(table[name]) for name in nb.ATTRIBUTES)
        assert set(notes.pitch) <= set(range(60, 65))
    values = torch.linspace(-1, 1, 6).expand(3, 1, 6)
    monkeypatch.setattr(nb, "seed_values", lambda *_: values)
    config = replace(toy.config, piece_notes=40)
    steps = [
        piece.notes.step for piece in nb.compose(replace(toy.composer, config=config), seeds, 0)
    ]
    assert all(step.nunique() == 6 for step in steps)
    assert not any(steps[0].equals(step) for step in steps[1:])


def test_random_states(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Seeds and random state decide the pieces and nothing else; one seed goes on in two ways."""
    seeds, before = [toy.seeds[i] for i in (0, 0, 1)], torch.get_rng_state()
    toy.model.train()
    drawn = [[p.notes for p in nb.compose(toy.composer, seeds, state)] for state in (5, 5, 6)]
    same, other = ([a.equals(b) for a, b in zip(drawn[0], d, strict=True)] for d in drawn[1:])
    assert all(same) and not any(other) and not drawn[0][0].equals(drawn[0][1])
    assert torch.equal(before, torch.get_rng_state()), "composing draws global random numbers"


@pytest.mark.parametrize(("distance", "most_copied"), [(1, 999), (99, 999), (1, 0)])
def test_composing_equals_reading(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch, distance: int, most_copied: int
) -> None:
    """What is drawn from is that of the whole piece read at once, but for forbidden copies."""
    asked = {name: Mock(wraps=getattr(nb, name)) for name in ("nucleus", "seed_values")}
    for name, mock in asked.items():
        monkeypatch.setattr(nb, name, mock)
    config = replace(toy.config, distance=distance, temperature=0.5, top_p=0.7)
    composer = replace(toy.composer, config=config, most_copied=most_copied)
    made = nb.compose(composer, toy.seeds, 0)
    both = [
        replace(seed, notes=pd.concat([seed.notes, piece.notes], ignore_index=True))
        for seed, piece in zip(toy.seeds, made, strict=True)
    ]
    rows = nb.encode(both, toy.normaliser, toy.config)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if (distance, most_copied) != (1, 999):  # nothing may be copied
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
