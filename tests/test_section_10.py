"""Section 10 of the notebook: drawing pitch and numbers, and composing note by note."""

from dataclasses import replace
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
    model = nb.MultiHeadLSTM(normaliser.names, range(40, 80), config)
    composer = nb.Composer(model, normaliser, range(40, 80), nb.NEAR, 99, config)
    return SimpleNamespace(**locals())


def unbounded(*_: object) -> list[torch.Tensor]:
    """Return bounds that leave every step free."""
    return [torch.tensor(-torch.inf), torch.tensor(torch.inf)]


@pytest.mark.parametrize(
    ("probabilities", "settings", "expected"),
    [
        # 0.45 of what is not the favourite's is 0.27: one pitch holds it
        ((0, 0.1, 0.4, 0.2, 0.3), (1, 0.45), (0, 0, 0.4, 0, 0.6)),
        ((0, 0.1, 0.4, 0.2, 0.3), (1, 0.8), (0, 0, 0.4, 0.24, 0.36)),
        ((0, 0.1, 0.4, 0.2, 0.3), (1, 0.95), (0, 0.1, 0.4, 0.2, 0.3)),
        ((0.04, 0.06, 0.9), (1, 0.5), (0, 0.1, 0.9)),
        ((0.2, 0.2, 0.2), (0.3, 1.0), (1 / 3, 1 / 3, 1 / 3)),
        ((0, 1, 0), (2, 0.87), (0, 1, 0)),
        # a temperature of a half squares the chances
        ((0.1, 0.2, 0.7), (0.5, 1.0), (1 / 54, 4 / 54, 49 / 54)),
        ((0.1, 0.2, 0.7), (0.5, 0.75), (0, 5 / 54, 49 / 54)),
    ],
)
def test_nucleus(
    nb: ModuleType, monkeypatch: MonkeyPatch, probabilities: tuple, settings: tuple, expected: tuple
) -> None:
    """The favourite keeps its chance, and the nucleus of the others shares the rest."""
    asked = []

    def take(probability: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        asked.append(probability[1] / probability[1].sum())
        return torch.tensor([[len(asked) - 1]] * len(probability))

    # each place in turn, with the chance that it would have had
    monkeypatch.setattr(torch.Tensor, "multinomial", take)
    logits = torch.tensor([[1.0] * len(probabilities), probabilities]).log().clamp(min=-300) + 7
    config = small_config(nb, temperature=settings[0], top_p=settings[1])
    pitches = [nb.draw_pitches(logits, config, torch.Generator())[1] for _ in probabilities]
    found = sorted((int(pitch), float(asked[i][i])) for i, pitch in enumerate(pitches))
    assert [pitch for pitch, _ in found] == list(range(len(probabilities)))
    assert [probability for _, probability in found] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("neighbours", "values"),
    [(1, [4]), (2, [2, 4]), (3, [1, 2, 4]), (99, [0, 1, 2, 4, 8, 16])],
)
def test_seed_values(nb: ModuleType, neighbours: int, values: list[float]) -> None:
    """The median, moved by residuals of the nearest layers, lands on values of the seed."""
    # the layers 2, 3, 1, 4 are the nearest to 2.1, in this order; they make 4.1, 1.8, .7 and 7.5
    attributes = torch.tensor([0.0, 1, 2, 4, 8, 16])
    residuals = torch.tensor([-3.0, -2.2, 1.2, -1.1, 4.6, 20])
    seed = attributes, residuals, torch.arange(6.0)[:, None].expand(6, 3)
    # another seed, in which all is ten higher
    seeds = [torch.stack([mine, mine + more]) for mine, more in zip(seed, (10, 0, 10), strict=True)]
    layers, medians = torch.full((2, 2, 3), 2.1), torch.full((2, 2), 2.9)
    layers[1], medians[1] = 12.1, 12.9
    offered = nb.seed_values(seeds, medians, layers, neighbours).sort().values
    assert offered.tolist() == [[values] * 2, [[value + 10 for value in values]] * 2]


def test_seed_residuals(nb: ModuleType) -> None:
    """They are by how much each note of each seed but the first missed its median."""
    attributes = torch.tensor([[9.0, 9], [1, 5], [2, 7]])
    medians = torch.tensor([[0.0, 0], [3, 4], [2, 1]])
    layers = torch.arange(12.0).view(3, 2, 2)
    both = [torch.stack([values, values + 1]) for values in (medians, layers)]
    found = nb.seed_residuals({"attributes": torch.stack([attributes] * 2)}, (None, *both))
    for row, expected in zip(
        found,
        (([1, 2], [-2, 0], [[4, 5], [8, 9]]), ([5, 7], [1, 6], [[6, 7], [10, 11]])),
        strict=True,
    ):
        values, residuals, places = (torch.tensor(part) for part in expected)
        expected = (values, values), (residuals, residuals - 1), (places, places + 1)
        for mine, pair in zip(row, expected, strict=True):
            assert torch.equal(mine, torch.stack(pair).to(mine))


def test_new_notes_are_on_the_grid(toy: SimpleNamespace) -> None:
    """Times are whole ticks, a note lasts at least one, and velocities are those of MIDI."""
    seed, names, inverse = toy.seeds[0].notes, toy.normaliser.names, toy.normaliser.inverse
    pieces, _ = toy.nb.walk([seed], 3, toy.normaliser, toy.config)
    for extreme in (-40.0, 0.1234, 9.0):
        attributes = np.full((1, len(names)), extreme)
        pieces.append(toy.composer.note_of(pieces, np.array([60]), attributes))
    notes = pd.DataFrame({name: values[0, toy.nb.NEAR :] for name, values in pieces.notes.items()})
    assert np.array_equal(pieces.attributes[0, toy.nb.NEAR :], toy.normaliser.transform(notes))
    assert np.allclose(notes.onset.diff()[1:], notes.step[1:]) and set(notes.pitch[16:]) == {60}
    ticks = notes[["step", "duration"]].to_numpy()[len(seed) :] * 480
    assert np.allclose(ticks, ticks.round(), atol=1e-6) and ticks[2].min() > 4 * 480
    assert ticks[0].tolist() == [0, 1]
    middle = round(inverse(np.full(3, 0.1234))[2]) if "velocity" in names else 0
    expected = [1, middle, 127] if middle else [seed.velocity.iloc[-1]] * 3
    assert notes.velocity[len(seed) :].tolist() == expected


def by_search(notes: pd.DataFrame) -> pd.DataFrame:
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


@pytest.mark.parametrize(("again", "silence"), [(0, 0.1), (3, 0.0), (5, 0.2)])
def test_bounds(nb: ModuleType, toy: SimpleNamespace, again: int, silence: float) -> None:
    """Notes that sound at once, keys struck again and rests are no more than may be."""
    chords = [(beat, *note, 90) for beat in range(0, 16, 2) for note in ((60, 2), (64, 0.25))]
    broken = [*chords[:6], (6, 60, 0.25, 90), *chords[7:]]  # a rest of 1.75 beats
    chords[4] = (4, 60, 4, 90)  # a key that is struck again, which does not count
    seeds = [*toy.seeds[:2], piece_of(nb, "a", chords), piece_of(nb, "b", broken)]
    config = replace(toy.config, piece_notes=60, silence=silence)
    limits = {"most_sounding": 4, "most_again": again}
    composer = replace(toy.composer, pitches=range(57, 67), config=config, **limits)
    found = []
    for seed, made in zip(seeds, nb.compose(composer, seeds, 0), strict=True):
        features = by_search(pd.concat([seed.notes, made.notes], ignore_index=True))
        new = features[16:]
        assert set(made.notes.pitch) <= set(range(57, 67)) and made.notes.pitch.nunique() > 3
        assert new.again.sum() <= again
        most = max(features.silent[16], silence)
        assert (new.silent[new.rest > 1 / 960] <= most + 1e-6).all()
        found.append((new.sounding.max(), new.again.sum(), (new.rest > 0.01).any()))
    sounding, struck, rests = zip(*found, strict=True)
    assert max(sounding) == 4 and struck[2] == again and rests[3]


def test_no_key_is_free(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Where every key sounds and none may be struck again, its end is awaited."""
    seed = piece_of(nb, "a", [(i / 2, 60, 2, 90) for i in range(16)])
    (made,) = nb.compose(replace(toy.composer, pitches=range(60, 61), most_again=0), [seed], 0)
    features = by_search(pd.concat([seed.notes, made.notes], ignore_index=True))
    assert features.again[1:16].all() and not features.again[16:].any()


def test_nothing_that_was_heard_changes(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch
) -> None:
    """Notes are only added: seeds, and what is composed, stay to the byte as they were heard."""
    features, append, tables = [], nb.PiecesSoFar.append, [seed.notes.copy() for seed in toy.seeds]

    def heard(pieces: object) -> bytes:
        past = (
            *pieces.notes.values(),
            pieces.attributes,
            pieces.motion,
            pieces.again,
            pieces.sounding,
        )
        return b"".join(values[:, : pieces.size].tobytes() for values in past)

    def added(pieces: object, note: dict) -> None:
        assert not features or features[-1][1:] == (pieces.size, heard(pieces))
        append(pieces, note)
        features.append((pieces, pieces.size, heard(pieces)))

    monkeypatch.setattr(nb.PiecesSoFar, "append", added)
    made = nb.compose(toy.composer, toy.seeds, 0)
    pieces, size, last = features[-1]
    assert heard(pieces) == last and size == nb.NEAR + 36 and len(features) == 36
    for row, (seed, table, piece) in enumerate(zip(toy.seeds, tables, made, strict=True)):
        assert seed.notes.equals(table)
        for name in nb.COLUMNS:
            whole = np.concatenate([table[name], piece.notes[name]])
            assert pieces.notes[name][row, nb.NEAR :].tobytes() == whole.astype(float).tobytes()


def test_composed_notes(nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch) -> None:
    """The notes go on from the seed, with its numbers, in the range."""
    monkeypatch.setattr(nb.Composer, "step_bounds", unbounded)
    composer, pitches = replace(toy.composer, pitches=range(60, 65)), set()
    for seed, made in zip(toy.seeds, nb.compose(composer, toy.seeds, 0), strict=True):
        notes, heard = made.notes, seed.notes
        assert (made.name, made.tempo, list(notes)) == (seed.name, seed.tempo, list(heard))
        assert notes.index.tolist() == list(range(toy.config.piece_notes))
        assert np.allclose(notes.onset, heard.onset.iloc[-1] + notes.step.cumsum())
        for name in nb.ATTRIBUTES:
            assert set(notes[name]) <= set(heard[name]), name
        pitches |= set(notes.pitch)
    assert len(pitches) > 1 and pitches <= {60, 61, 62, 63, 64}


def test_random_values(nb: ModuleType, toy: SimpleNamespace, monkeypatch: MonkeyPatch) -> None:
    """Each value that the seed offers for a number comes, and each piece draws its own."""
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
    asked = {name: Mock(wraps=getattr(nb, name)) for name in ("draw_pitches", "seed_values")}
    for name, mock in asked.items():
        monkeypatch.setattr(nb, name, mock)
    composer = replace(toy.composer, config=replace(toy.config, distance=distance))
    made = nb.compose(composer, toy.seeds, 0)
    both = [
        replace(seed, notes=pd.concat([seed.notes, piece.notes], ignore_index=True))
        for seed, piece in zip(toy.seeds, made, strict=True)
    ]
    rows = nb.encode(both, toy.normaliser, toy.config)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if distance > len(both[0]):
        batch["candidate"].fill_(nb.NO_PITCH)
        batch["candidate_length"].fill_(0)
    with torch.no_grad():
        logits, *others = (values[:, toy.config.seed_notes :] for values in toy.model(batch))
    found = torch.stack([call.args[0] for call in asked["draw_pitches"].call_args_list], dim=1)
    assert torch.allclose(found, logits[..., 40:80], atol=1e-5)
    for place, expected in enumerate(others, start=1):
        found = torch.cat([call.args[place] for call in asked["seed_values"].call_args_list], dim=1)
        assert torch.allclose(found.view(expected.shape), expected, atol=1e-5)
