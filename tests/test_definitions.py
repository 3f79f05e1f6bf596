"""The notebook's functions and classes on toy music."""

import io
import math
import shutil
import wave
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import matplotlib.pyplot as plt
import mido
import numpy as np
import pandas as pd
import pretty_midi
import pytest
import torch
from notebook_tools import chorale, chorale_notes, midi_bytes, piece_of, small_config

LOUD = 0.05  # of full scale
# beats, and beats per minute from there on
PERFORMED = ((0, 60.0), (3.25, 93.7), (4, 140.0), (10.5, 31.3), (17, 97.0))


@pytest.fixture
def config(nb: ModuleType) -> object:
    """Return a small configuration."""
    return small_config(nb)


@pytest.fixture
def toy(nb: ModuleType, config: object) -> SimpleNamespace:
    """Return random pieces with a normaliser and an untrained model for them."""
    return toy_of(nb, config, [chorale(nb, i, velocity=True) for i in range(4)])


@pytest.fixture
def performed(nb: ModuleType, config: object) -> SimpleNamespace:
    """Return the same with a random rubato, so that all four numbers vary."""
    return toy_of(nb, config, [with_rubato(chorale(nb, i, velocity=True), i) for i in range(4)])


@pytest.fixture
def repertoire(nb: ModuleType, config: object, toy: SimpleNamespace) -> object:
    """Return what the toy pieces did, with no limit to the notes that sound at once."""
    return repertoire_of(nb, config, toy)


def toy_of(nb: ModuleType, config: object, pieces: list) -> SimpleNamespace:
    """Return the pieces with a normaliser and an untrained model for them."""
    normaliser = nb.Normaliser(pieces, config)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, config).eval()
    return SimpleNamespace(pieces=pieces, normaliser=normaliser, model=model)


def repertoire_of(nb: ModuleType, config: object, toy: SimpleNamespace) -> object:
    """Return what the toy pieces did, with no limit to the notes that sound at once."""
    loader = nb.whole_pieces(toy.pieces, toy.normaliser, config)
    found = nb.predict(toy.model, loader)
    return nb.Repertoire(found["numbers"], found["moments"], 40, 75, fewest=0, most=999)


def with_rubato(piece: object, random_state: int) -> object:
    """Return the piece with a random rubato after each step."""
    drawn = np.random.default_rng(random_state).choice([0.8, 0.9, 1.0, 1.1, 1.25], len(piece))
    rubato = np.where(piece.notes.step > 0, drawn, 1.0)
    return replace(piece, notes=piece.notes.assign(rubato=rubato))


def whole(nb: ModuleType, notes: pd.DataFrame, toy: SimpleNamespace, config: object) -> dict:
    """Return all notes of a piece as one window, made in one go."""
    batch = nb.encode(notes, notes, toy.normaliser, config)
    batch |= nb.recall(notes, toy.normaliser, config)
    return {name: values[None] for name, values in batch.items()}


def tiny_loader(nb: ModuleType, pieces: list, toy: SimpleNamespace, config: object) -> object:
    """Return a loader of plain windows."""
    windows = nb.NoteWindows(pieces, toy.normaliser, config, config.window)
    return torch.utils.data.DataLoader(windows, config.batch_size)


# From MIDI files to notes


def test_parts_are_merged_and_sorted(nb: ModuleType, config: object, tmp_path: Path) -> None:
    """Two parts become one stream sorted by onset and pitch."""
    midi = pretty_midi.PrettyMIDI(resolution=480, initial_tempo=60)
    for pitches in ((72, 71, 60), (48, 50, 64)):
        part = pretty_midi.Instrument(0)
        for beat, pitch in enumerate(pitches):
            part.notes.append(pretty_midi.Note(80, pitch, beat / 2, beat / 2 + 0.25))
        midi.instruments.append(part)
    midi.write(str(tmp_path / "two.mid"))
    piece = nb.read_piece((tmp_path / "two.mid").read_bytes(), "two.mid", config)
    assert piece.name == "two"
    assert piece.notes.pitch.tolist() == [48, 72, 50, 71, 60, 64]
    assert piece.notes.onset.tolist() == [0, 0, 0.5, 0.5, 1, 1]
    assert piece.notes.step.tolist() == [0, 0, 0.5, 0, 0.5, 0]
    assert piece.notes.duration.tolist() == [0.25] * 6
    assert piece.tempo == pytest.approx(60)


def test_one_part_can_be_chosen(nb: ModuleType, config: object) -> None:
    """The parameter `part` leaves the other parts out."""
    data = midi_bytes([[(0, 60, 1, 90)], [(0, 40, 1, 90), (1, 41, 1, 90)]])
    piece = nb.read_piece(data, "a.mid", replace(config, part=1))
    assert piece.notes.pitch.tolist() == [40, 41]


def test_beats_do_not_depend_on_the_tempo(nb: ModuleType, config: object) -> None:
    """Every tempo map gives the same notes in beats, and its mean tempo."""
    notes = chorale_notes(1)
    steady = nb.read_piece(midi_bytes([notes]), "a.mid", config)
    performed = nb.read_piece(midi_bytes([notes], PERFORMED), "a.mid", config)
    assert not performed.notes.rubato.equals(steady.notes.rubato)
    beats = [piece.notes.drop(columns="rubato") for piece in (steady, performed)]
    pd.testing.assert_frame_equal(*beats)
    assert steady.tempo == pytest.approx(80, rel=1e-3)
    end = max(onset + duration for onset, _, duration, _ in notes)
    assert performed.tempo == pytest.approx(60 * end / seconds_at(end, PERFORMED), rel=1e-3)


def seconds_at(beat: float, tempos: tuple[tuple[float, float], ...]) -> float:
    """Return when a beat is played under a tempo map of (beat, beats per minute)."""
    starts = [min(start, beat) for start, _ in tempos] + [beat]
    parts = zip(pairwise(starts), tempos, strict=True)
    return sum(60 * (b - a) / bpm for (a, b), (_, bpm) in parts)


@pytest.mark.parametrize("tempo", [31.7, 80.0, 211.3])
def test_constant_tempo_has_no_rubato(nb: ModuleType, config: object, tempo: float) -> None:
    """At a constant tempo the rubato is exactly 1, whenever the music begins."""
    for late in (0, 2.5):
        notes = [(late + onset, *rest) for onset, *rest in chorale_notes(1)]
        piece = nb.read_piece(midi_bytes([notes], ((0, tempo),)), "a.mid", config)
        assert (piece.notes.rubato == 1).all()
        assert (piece_of(nb, "b", notes).notes.rubato == 1).all()


def test_rubato_of_a_sudden_change(nb: ModuleType, config: object) -> None:
    """A tempo doubled at beat 20 shows at the chord of beat 21, the first that is early."""
    chords = [(float(beat), pitch, 1.0, 90) for beat in range(40) for pitch in (60, 64, 67)]
    piece = nb.read_piece(midi_bytes([chords], ((0, 60), (20, 120))), "a.mid", config)
    # 20 beats of a second and 20 of half a second
    assert piece.tempo == pytest.approx(80)
    table = piece.notes.rubato.to_numpy().reshape(40, 3)
    assert (table[:, 1:] == 1).all(), "inside a chord there is no step"
    share = table[:, 0]
    assert share[0] == 1 and share[1] == 0.75
    # before and after, the tempo is held against the pull of the mean
    slow, fast = (60 / 80) ** (1 / nb.RETURN), (120 / 80) ** (1 / nb.RETURN)
    assert 0.9 < slow < 1 < fast < 1.1
    assert share[2:21] == pytest.approx(slow, abs=6e-4)
    assert share[21] == pytest.approx(2 * slow, abs=6e-4)
    assert share[22:] == pytest.approx(fast, abs=6e-4)


def rubato_by_hand(tempos: list[float], mean: float, back: int) -> list[float]:
    """Return each tempo over the one before, drawn to the mean, which is where they begin."""
    before, shares = mean, []
    for now in tempos:
        shares.append(now / (before * (mean / before) ** (1 / back)))
        before = now
    return shares


def test_rubato_of_a_tempo_map(nb: ModuleType, config: object) -> None:
    """The rubato of each note compares the step before it with the step before that."""
    piece = nb.read_piece(midi_bytes([chorale_notes(1)], PERFORMED), "a.mid", config)
    moments = piece.notes.onset.unique().tolist()
    tempos = [
        60 * (b - a) / (seconds_at(b, PERFORMED) - seconds_at(a, PERFORMED))
        for a, b in pairwise(moments)
    ]
    shares = [1.0, *rubato_by_hand(tempos, piece.tempo, nb.RETURN)]
    expected = piece.notes.onset.map(dict(zip(moments, shares, strict=True)))
    chord = (piece.notes.step == 0).to_numpy()
    assert 10 < chord.sum() < len(chord) - 10
    # rounded to three decimals, after tempos rounded to microseconds a beat
    assert np.abs(piece.notes.rubato - expected.where(~chord, 1.0)).max() < 6e-4
    assert np.allclose(piece.notes.rubato * 1000, (piece.notes.rubato * 1000).round())


def test_local_tempo_inverts_rubato(nb: ModuleType) -> None:
    """From the rubato of a piece comes back the tempo of each of its steps."""
    rng = np.random.default_rng(0)
    for tempo in (30.0, 90.0, 200.0):
        tempos = tempo * np.exp(rng.normal(0, 0.3, 100))
        shares = rubato_by_hand(tempos.tolist(), tempo, nb.RETURN)
        assert np.allclose(nb.local_tempo(np.array(shares), tempo), tempos, rtol=1e-9)
        onset = np.append(0, np.cumsum(rng.integers(1, 9, 100) / 4))
        seconds = np.append(0, np.cumsum(60 * np.diff(onset) / tempos))
        found = nb.rubato(onset, seconds, tempo)
        assert found[0] == 1 and np.allclose(found[1:], shares, atol=6e-4)
        assert np.allclose(nb.local_tempo(found[1:], tempo), tempos, rtol=5e-3)
    # a factor that is drawn again and again has a limit
    assert nb.local_tempo(np.full(1000, 1.05), 100.0)[-1] < 100 * 1.05 ** (nb.RETURN + 1)


def test_notes_keep_their_numbers(nb: ModuleType, config: object) -> None:
    """Onset, duration and velocity are those of the file, and no step is negative."""
    notes = chorale_notes(2, velocity=True)
    table = nb.read_piece(midi_bytes([notes[::2], notes[1::2]]), "a.mid", config).notes
    expected = pd.DataFrame(sorted(notes), columns=["onset", "pitch", "duration", "velocity"])
    for name in expected:
        assert np.allclose(table[name], expected[name]), name
    assert (table.step >= 0).all()
    assert np.allclose(table.step.cumsum() + table.onset[0], table.onset)


# Works and the split


def test_skyline(nb: ModuleType) -> None:
    """A note is in the tune if nothing higher sounds when it begins."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        onset = np.sort(rng.integers(0, 12, 40) / 2)
        pitch = rng.integers(50, 70, 40)
        table = nb.note_table(onset, pitch, onset + rng.integers(1, 9, 40) / 2, pitch)
        sounding = [
            table[(table.onset <= note.onset) & (table.onset + table.duration > note.onset)]
            for note in table.itertuples()
        ]
        highest = [
            note.pitch
            for note, others in zip(table.itertuples(), sounding, strict=True)
            if note.pitch == others.pitch.max()
        ]
        assert nb.skyline(table, 40).tolist() == highest


def test_works(nb: ModuleType, config: object) -> None:
    """A transposed copy and the movements of a sonata are one work, other pieces are not."""
    tune = chorale_notes(5, beats=40)
    higher = [(onset, pitch + 5, duration, loud) for onset, pitch, duration, loud in tune]
    notes = {"alpha": tune, "beta": chorale_notes(6, 40), "gamma": higher}
    notes |= {"sonata_1": chorale_notes(7, 40), "Sonata_2": chorale_notes(8, 40)}
    notes |= {"delta-p1": chorale_notes(9, 40), "delta-p2": chorale_notes(10, 40)}
    works = nb.find_works([piece_of(nb, name, part) for name, part in notes.items()], config)
    assert works == ["alpha", "beta", "alpha", "sonata", "sonata", "delta-p1", "delta-p2"]


@pytest.mark.parametrize("random_state", range(5))
def test_split_keeps_works_whole(nb: ModuleType, config: object, random_state: int) -> None:
    """No work is on two sides, every piece is on one, and the held-out sides are large enough."""
    pieces = [chorale(nb, i, name=f"p{i}") for i in range(30)]
    for i, piece in enumerate(pieces):
        piece.work = f"work {i // 2}"
    split = nb.split_pieces(pieces, config, np.random.default_rng(random_state))
    assert set(split) == {"training", "validation", "test"}
    names = [piece.name for side in split.values() for piece in side]
    assert sorted(names) == sorted(piece.name for piece in pieces)
    works = [{piece.work for piece in side} for side in split.values()]
    assert sum(map(len, works)) == 15
    notes = sum(map(len, pieces))
    for side in ("validation", "test"):
        assert 0.1 * notes <= sum(map(len, split[side])) <= 0.3 * notes


def test_split_depends_on_the_random_state(nb: ModuleType, config: object) -> None:
    """Another random state holds out other works, the same one the same works."""
    pieces = [chorale(nb, i, name=f"p{i}") for i in range(30)]
    for piece in pieces:
        piece.work = piece.name
    drawn = [
        [p.name for p in nb.split_pieces(pieces, config, np.random.default_rng(s))["test"]]
        for s in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_few_works_are_cut(nb: ModuleType, config: object) -> None:
    """With too few works each piece is cut, with a window left out between the parts."""
    pieces = [chorale(nb, i, beats=80) for i in range(2)]
    split = nb.split_pieces(pieces, config, np.random.default_rng(0))
    for number, piece in enumerate(pieces):
        end = 0
        for side in ("training", "validation", "test"):
            part = split[side][number]
            start = int(part.name.split()[-1])
            assert part.first == start
            assert start == (end + config.window if end else 0)
            end = start + len(part)
            expected = piece.notes.iloc[start:end].reset_index(drop=True)
            pd.testing.assert_frame_equal(part.notes, expected)
            assert part.work == piece.work
        assert end == len(piece)


# Numbers for the network


def test_normaliser_round_trip(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Nothing is lost on the way there and back."""
    assert toy.normaliser.names == ["step", "duration", "velocity"]
    for name in toy.normaliser.names:
        values = toy.pieces[0].notes[name].to_numpy()
        back = toy.normaliser.inverse(name, toy.normaliser.transform(name, values))
        assert np.abs(back - values).max() < 1e-9


def test_normaliser_standardises(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Over the pieces that it was made from, each number has mean 0 and standard deviation 1."""
    for name in toy.normaliser.names:
        values = np.concatenate([piece.notes[name] for piece in toy.pieces])
        standardised = toy.normaliser.transform(name, values)
        assert standardised.mean() == pytest.approx(0, abs=1e-9)
        assert standardised.std() == pytest.approx(1)
        assert (np.diff(standardised[np.argsort(values)]) >= 0).all()


def test_normaliser_gives_no_negative_beats(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Numbers far below all others are no time, not less than no time."""
    for name in ("step", "duration"):
        assert toy.normaliser.inverse(name, np.array([-50.0])) == 0


def test_constant_numbers_drop_out(nb: ModuleType, config: object) -> None:
    """Velocity and rubato are not predicted where they never change in the training pieces."""
    steady = [chorale(nb, i) for i in range(3)]
    assert nb.Normaliser(steady, config).names == ["step", "duration"]
    performed = [*steady[:2], with_rubato(steady[2], 0)]
    assert nb.Normaliser(performed, config).names == ["step", "duration", "rubato"]


def test_varied_numbers_are_kept(nb: ModuleType, performed: SimpleNamespace) -> None:
    """Where all four numbers vary all are standardised, and nothing is lost on the way back."""
    normaliser = performed.normaliser
    assert normaliser.names == list(nb.NUMBERS) == ["step", "duration", "velocity", "rubato"]
    for name in normaliser.names:
        values = np.concatenate([piece.notes[name] for piece in performed.pieces])
        standardised = normaliser.transform(name, values)
        assert standardised.std() == pytest.approx(1)
        assert np.abs(normaliser.inverse(name, standardised) - values).max() < 1e-9


# What the model hears of a note


def test_held_and_recent_pitches(nb: ModuleType) -> None:
    """Each entry equals its definition."""
    notes, reach = chorale(nb, 3).notes.head(40).copy(), 9
    # a note that sounds for longer than the reach is lost sight of
    notes.loc[0, "duration"] = 100.0
    held, recent = nb.held_pitches(notes, reach), nb.recent_pitches(notes, reach)
    assert held.shape == recent.shape == (40, 128)
    expected_held, expected_recent = np.zeros((40, 128)), np.zeros((40, 128))
    for i, now in enumerate(notes.onset):
        for j in range(max(0, i - reach + 1), i + 1):
            pitch, end = notes.pitch[j], notes.onset[j] + notes.duration[j]
            left = math.tanh(max(end - now, 0))
            expected_held[i, pitch] = max(expected_held[i, pitch], left)
            expected_recent[i, pitch] = 1 - (i - j) / reach
    assert np.allclose(held, expected_held, atol=1e-6)
    assert np.allclose(recent, expected_recent, atol=1e-6)


def test_voices(nb: ModuleType) -> None:
    """Notes that end at an onset no longer count, the note itself does."""
    notes = chorale(nb, 3).notes
    end = notes.onset + notes.duration
    expected = [(end[: i + 1] > now).sum() for i, now in enumerate(notes.onset)]
    assert nb.voices(notes).tolist() == expected


def test_sustained(nb: ModuleType) -> None:
    """Between two onsets sound the notes that began before and end no sooner than the second."""
    notes = chorale(nb, 3).notes
    notes = notes[np.random.default_rng(0).random(len(notes)) < 0.7]  # with rests
    end = notes.onset + notes.duration
    moments = sorted(set(notes.onset))[1:]
    expected = [((notes.onset < moment) & (end >= moment)).sum() for moment in moments]
    assert len(set(expected)) > 2
    assert nb.sustained(notes).tolist() == expected


def test_metre(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """A beat of the same place in the bar sounds the same, another one does not."""
    notes = toy.pieces[0].notes
    metre = nb.note_features(notes, toy.normaliser, config)["metre"]
    later = nb.note_features(notes.assign(onset=notes.onset + 12), toy.normaliser, config)["metre"]
    shifted = nb.note_features(notes.assign(onset=notes.onset + 1), toy.normaliser, config)["metre"]
    assert metre.shape == (len(notes), 2 * len(config.metre))
    assert np.allclose(metre, later, atol=1e-5)
    assert not np.allclose(metre, shifted, atol=0.1)


def longest_match(pitch: list[int], place: int, moved: bool = False) -> int:
    """Return how many notes before `place` equal the last ones, or do so moved by one interval."""
    apart = pitch[-1] - pitch[place - 1] if moved and place else 0
    length = 0
    while length < place and pitch[place - 1 - length] + apart == pitch[-1 - length]:
        length += 1
    return length


def best_place(
    pitch: list[int], places: list[int], least: int, moved: bool = False
) -> tuple[int, int]:
    """Return the place with the longest match of at least `least`, the latest among equals."""
    matches = [(longest_match(pitch, place, moved), place) for place in places]
    length, place = max([pair for pair in matches if pair[0] >= least], default=(0, -1))
    return place, length


def candidates_by_search(pitch: list[int]) -> list[tuple[int, int]]:
    """Return two literal candidates and a moved one, each with its match length."""
    found, places = [], list(range(len(pitch)))
    for _ in range(2):
        left = [place for place in places if pitch[place] not in [p for p, _ in found]]
        place, length = best_place(pitch, left, least=1)
        found.append((pitch[place] if length else 128, length))
    new = {}
    for place in places[1:]:
        follows = pitch[-1] + pitch[place] - pitch[place - 1]
        if 0 <= follows < 128 and follows not in [p for p, _ in found]:
            new[place] = follows
    # three notes have two intervals
    place, length = best_place(pitch, list(new), least=3, moved=True)
    return [*found, (new[place], length - 1) if length else (128, 0)]


def last_time_by_search(pitch: list[int], now: int) -> tuple[int, int]:
    """Return the place most like `now` after these notes, and how many notes before it match."""
    same = [place for place in range(len(pitch)) if pitch[place] == now]
    literal = best_place(pitch, same, least=0)
    intervals = [(i, pitch[i] - pitch[i - 1]) for i in range(1, len(pitch))]
    alike = [i for i, interval in intervals if interval == now - pitch[-1]]
    moved = best_place(pitch, alike, least=1, moved=True)
    return moved if moved[1] > literal[1] else literal


@pytest.mark.parametrize(
    "scale", [(60, 61, 62), tuple(range(60, 72)), (0, 1, 2, 3, 124, 125, 126, 127)]
)
def test_memory(nb: ModuleType, scale: tuple[int, ...]) -> None:
    """The memory names the pitches and places that a search through everything finds."""
    assert (nb.LITERAL, nb.MOVED, nb.NO_PITCH) == (2, 1, 128)
    rng = np.random.default_rng(0)
    pitch, memory, moved, moved_places = [], nb.PieceMemory(240), 0, 0
    for note in rng.choice(scale, 240).tolist():
        expected = candidates_by_search(pitch)
        assert memory.candidates() == expected
        asked = {note, *rng.choice(scale, 3).tolist(), 99}
        for now in asked:
            assert memory.last_time(now) == last_time_by_search(pitch, now)
        moved += expected[2][1] > 0
        place, length = last_time_by_search(pitch, note)
        moved_places += length > 0 and pitch[place] != note
        memory.append(note)
        pitch.append(note)
    # both kinds of moved matches were met
    assert moved > 20 and moved_places > 3
    assert memory.candidates() == candidates_by_search(pitch)


def test_memory_of_nothing(nb: ModuleType) -> None:
    """Before the first notes nothing is offered."""
    memory = nb.PieceMemory(3)
    for note in (127, 0, 60):
        assert memory.candidates() == [(128, 0)] * 3
        assert memory.last_time(note) == (-1, 0)
        memory.append(note)


def test_recall(nb: ModuleType, config: object, performed: SimpleNamespace) -> None:
    """Row i holds what the memory offered before note i, as pitches and numbers."""
    phrase = chorale_notes(1, beats=6, velocity=True)
    parts = [(0, 0, 1), (8, 0, 2), (24, 5, 1)]  # beats later, semitones higher, times slower
    notes = [
        (late + onset, pitch + up, slow * duration, loud)
        for late, up, slow in parts
        for onset, pitch, duration, loud in phrase
    ]
    piece = with_rubato(piece_of(nb, "three times", notes), 0)
    found = nb.recall(piece.notes, performed.normaliser, config)
    pitch = piece.notes.pitch.tolist()
    numbers = performed.normaliser.table(piece.notes)
    assert numbers.shape[1] == 4
    for i in range(len(pitch)):
        offered = candidates_by_search(pitch[:i])
        assert found["candidate"][i].tolist() == [p for p, _ in offered]
        lengths = [min(length, config.match_limit) for _, length in offered]
        assert found["candidate_length"][i].tolist() == lengths
        place, length = last_time_by_search(pitch[:i], pitch[i])
        expected = np.zeros(4) if place < 0 else numbers[place]
        assert np.allclose(found["recalled"][i], expected, atol=1e-6)
        assert found["recalled_length"][i] == min(length, config.match_limit)
    assert found["candidate"][2 * len(phrase) - 1, 0] == pitch[2 * len(phrase) - 1]


def test_transposed_phrase(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """A phrase that returns in another key is foretold by its intervals, not by its pitches."""
    # no pitch comes twice in the phrase, and none of its intervals in what is between
    phrase = (48 + np.random.default_rng(1).permutation(12)).tolist()
    between = [20, 40] * 6
    pitch = [*phrase, *between, *(p + 27 for p in phrase), *between]
    durations = [0.5 + i / 16 for i in range(len(pitch))]
    notes = [(float(i), p, d, 90) for i, (p, d) in enumerate(zip(pitch, durations, strict=True))]
    piece = piece_of(nb, "moved", notes)
    found, back = nb.recall(piece.notes, toy.normaliser, config), len(phrase) + len(between)
    for i in range(back + 3, back + len(phrase)):
        assert found["candidate"][i, 2] == pitch[i]
        assert pitch[i] not in found["candidate"][i, :2]
        assert found["candidate_length"][i, 2] == i - back - 1
        # its numbers are recalled from the first time
        assert found["recalled_length"][i] == i - back
        recalled = toy.normaliser.inverse("duration", found["recalled"][i, 1].item())
        assert recalled == pytest.approx(durations[i - back], abs=1e-4)


# Windows


def test_context_is_the_note_before(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """Row i of the context describes note i - 1; before the first note there is nothing."""
    notes = toy.pieces[0].notes
    batch = nb.encode(notes, notes, toy.normaliser, config)
    features = nb.note_features(notes, toy.normaliser, config)
    assert batch["context_pitch"][0] == nb.NO_PITCH
    for name, values in features.items():
        context = batch[f"context_{name}"]
        assert torch.equal(context[1:], torch.tensor(values[:-1])), name
        assert name == "pitch" or not context[0].any(), name
    assert batch["pitch"].tolist() == notes.pitch.tolist()
    assert torch.equal(batch["numbers"], torch.tensor(features["numbers"]))


def test_windows_cover_each_note_once(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """Windows of fixed length cross no piece, and `real` marks each note exactly once."""
    lengths = (40, 16, 5, 33)
    pieces = [
        replace(piece, notes=piece.notes.head(length))
        for piece, length in zip(toy.pieces, lengths, strict=True)
    ]
    windows = nb.NoteWindows(pieces, toy.normaliser, config, 16)
    assert len(windows) == 3 + 1 + 1 + 3
    items = iter([windows[i] for i in range(len(windows))])
    for piece in pieces:
        everything = whole(nb, piece.notes, toy, config)
        for start in range(0, len(piece), 16):
            item, count = next(items), min(16, len(piece) - start)
            assert item["real"].tolist() == [True] * count + [False] * (16 - count)
            for name, values in everything.items():
                assert len(item[name]) == 16
                expected = values[0, start : start + count]
                assert torch.allclose(item[name][:count], expected, atol=1e-6), name
                assert not item[name][count:].any(), name


def test_transposition_moves_all_pitches(
    nb: ModuleType, config: object, toy: SimpleNamespace
) -> None:
    """Everything that is a pitch moves alike, and a missing pitch stays missing."""
    item = nb.NoteWindows(toy.pieces, toy.normaliser, config, 16)[0]
    moved = nb.transpose(item, -5)
    assert (item["context_pitch"] == nb.NO_PITCH).any()
    assert (item["candidate"] == nb.NO_PITCH).any()
    for name in ("pitch", "context_pitch", "candidate"):
        present = item[name] != nb.NO_PITCH
        assert torch.equal(moved[name][present], item[name][present] - 5), name
        assert (moved[name][~present] == nb.NO_PITCH).all(), name
    for name in ("context_held", "context_recent"):
        assert item[name].any()
        assert torch.equal(moved[name][:, 30:90], item[name][:, 35:95]), name
    for name in set(item) - {"pitch", "context_pitch", "candidate"}:
        assert name.endswith(("held", "recent")) or torch.equal(moved[name], item[name]), name


def test_augmented_windows(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """What is to be predicted is a true stretch of the piece in some key near by."""
    config = replace(config, noise=0.5)
    windows = nb.NoteWindows(toy.pieces, toy.normaliser, config, 16, augment=True)
    torch.manual_seed(0)
    shifts, starts = set(), set()
    for repeat in range(20):
        for index, (number, planned) in enumerate(windows.starts):
            item = windows[index]
            pitch = toy.pieces[number].notes.pitch.to_numpy()
            real = item["pitch"][item["real"]].numpy()
            stretches = np.lib.stride_tricks.sliding_window_view(pitch, len(real))
            offsets = real - stretches
            found = np.flatnonzero((offsets == offsets[:, :1]).all(axis=1))
            assert len(found) == 1, repeat
            shifts.add(int(offsets[found[0], 0]))
            starts.add(int(found[0]) - planned)
    assert shifts == set(range(-config.transpose, config.transpose + 1))
    assert len(starts) > 8


def test_random_windows(nb: ModuleType, toy: SimpleNamespace) -> None:
    """An epoch draws `epoch_windows` windows, whatever the corpus, corrupted and transposed."""
    config = small_config(nb, epoch_windows=50, noise=0.5)
    whole_piece = toy.pieces[0]
    piece = replace(whole_piece, notes=whole_piece.notes.head(config.window))
    torch.manual_seed(0)
    loader = nb.random_windows([piece], toy.normaliser, config)
    assert len(loader.dataset) == 1 and len(loader) == 7
    batches = list(loader)
    assert [len(batch["pitch"]) for batch in batches] == [8] * 6 + [2]
    pitch, heard = (torch.cat([b[name] for b in batches]) for name in ("pitch", "context_pitch"))
    shifts = pitch - torch.tensor(piece.notes.pitch.to_numpy())
    assert (shifts == shifts[:, :1]).all()
    assert len(shifts[:, 0].unique()) > 8 and shifts.abs().max() <= config.transpose
    assert 0.3 < (heard[:, 1:] != pitch[:, :-1]).float().mean() < 0.6
    for size in (3, 4):  # fewer windows are drawn than there are, and still the same number
        several = nb.random_windows(toy.pieces[:size], toy.normaliser, replace(config, window=4))
        assert len(several.dataset) > 50
        assert sum(len(batch["pitch"]) for batch in several) == 50


def test_corruption_spares_the_targets(
    nb: ModuleType, config: object, toy: SimpleNamespace
) -> None:
    """What is heard changes, what is to be predicted does not."""
    notes = toy.pieces[0].notes
    before = notes.copy()
    torch.manual_seed(0)
    heard = nb.corrupt(notes, replace(config, noise=1.0))
    pd.testing.assert_frame_equal(notes, before)
    assert (heard.pitch != notes.pitch).mean() > 0.5
    assert (heard.pitch - notes.pitch).abs().max() == 4
    assert (heard.duration != notes.duration).any()
    assert sorted(heard.duration) == sorted(notes.duration)
    batch = nb.encode(notes, heard, toy.normaliser, config)
    true = nb.encode(notes, notes, toy.normaliser, config)
    for name in ("pitch", "numbers"):
        assert torch.equal(batch[name], true[name])
    assert not torch.equal(batch["context_pitch"], true["context_pitch"])


def test_no_noise_changes_nothing(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """Without noise, what is heard is what was played."""
    notes = toy.pieces[0].notes
    heard = nb.corrupt(notes, replace(config, noise=0.0))
    pd.testing.assert_frame_equal(heard, notes, check_dtype=False)


# The model


def test_shapes(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """Per note there are 128 logits, a median and a hidden layer a number."""
    batch = next(iter(tiny_loader(nb, toy.pieces, toy, config)))
    logits, medians, moments = toy.model(batch)
    assert logits.shape == (8, 16, 128)
    assert medians.shape == (8, 16, 3)
    assert moments.shape == (8, 16, 3, config.head_size // 2)


def test_model_does_not_hear_the_future(
    nb: ModuleType, config: object, toy: SimpleNamespace
) -> None:
    """Changing a note changes no prediction of it or before it, but predictions after it."""
    notes, place = toy.pieces[0].notes, 20
    changed = notes.copy()
    changed.loc[place:, "pitch"] += 1
    changed.loc[place:, "duration"] *= 2
    changed.loc[place:, "onset"] += 0.5
    changed.loc[place, "step"] += 0.5
    before, after = (toy.model(whole(nb, n, toy, config)) for n in (notes, changed))
    assert torch.allclose(before[0][:, : place + 1], after[0][:, : place + 1], atol=1e-6)
    assert torch.allclose(before[1][:, :place], after[1][:, :place], atol=1e-6)
    assert not torch.allclose(before[0][:, place + 1], after[0][:, place + 1], atol=1e-4)


def test_heads_are_conditioned_inside_the_note(
    nb: ModuleType, config: object, toy: SimpleNamespace
) -> None:
    """The pitch is told to all numbers, each number only to those after it."""
    batch = whole(nb, toy.pieces[0].notes, toy, config)
    logits, medians, _ = toy.model(batch)
    other_pitch = toy.model(batch | {"pitch": (batch["pitch"] + 3).clamp(max=127)})
    assert torch.equal(logits, other_pitch[0])
    assert (other_pitch[1] != medians).all(dim=1).all()
    for told in range(3):
        numbers = batch["numbers"].clone()
        numbers[..., told] += 1
        changed = toy.model(batch | {"numbers": numbers})
        assert torch.equal(logits, changed[0])
        assert torch.equal(medians[..., : told + 1], changed[1][..., : told + 1])
        assert (medians[..., told + 1 :] != changed[1][..., told + 1 :]).all()


def test_candidates_get_votes(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """A candidate changes the logit of its pitch; a missing one is no 129th class."""
    batch = whole(nb, toy.pieces[0].notes, toy, config)
    missing = batch | {"candidate": torch.full_like(batch["candidate"], nb.NO_PITCH)}
    state, _ = toy.model.listener(missing)
    plain = toy.model.pitch_head(state, missing)
    assert plain.shape[-1] == 128
    bias = toy.model.pitch_head.head.output[1].bias
    assert missing["candidate"].shape[-1] == nb.VOTES[2] == 3
    with torch.no_grad():
        toy.model.pitch_head.embedding.weight.zero_()
        bias[-3:] = torch.tensor([100.0, 200.0, 300.0])
    assert (toy.model.pitch_head(state, missing) < 50).all()
    for k in range(3):
        pointed = missing | {"candidate": missing["candidate"].clone()}
        pointed["candidate"][..., k] = 33
        logits = toy.model.pitch_head(state, pointed)
        assert (logits.argmax(-1) == 33).all()
        assert torch.allclose(logits[..., 33] / (100 * (k + 1)), torch.tensor(1.0), atol=0.1)
    # two candidates with one pitch add their votes
    pointed["candidate"][..., 0] = 33
    assert (toy.model.pitch_head(state, pointed)[..., 33] > 350).all()


def test_interval_votes_move_with_the_pitch(
    nb: ModuleType, config: object, toy: SimpleNamespace
) -> None:
    """A vote for an interval is a vote for the pitch at this interval from the one before."""
    batch = whole(nb, toy.pieces[0].notes, toy, config)
    state, _ = toy.model.listener(batch)
    with torch.no_grad():
        toy.model.pitch_head.head.output[1].bias[nb.NO_PITCH + nb.NO_PITCH - 1 + 7] = 100.0
    best = toy.model.pitch_head(state, batch).argmax(-1)
    assert torch.equal(best[:, 1:], batch["context_pitch"][:, 1:] + 7)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_diagram_shows_all_heads(nb: ModuleType, config: object, count: int) -> None:
    """However many numbers a corpus needs, all boxes and arrows lie inside the diagram."""
    model = nb.MultiHeadLSTM(list(nb.NUMBERS[:count]), config)
    figure = nb.draw_diagram(model)
    (axis,) = figure.axes
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    for text in axis.texts:
        # an arrow whose end lies outside is not drawn
        x, y = getattr(text, "xy", text.get_position())
        assert left <= x <= right and low <= y <= high, text.get_text()
    assert sum("L1Loss" in text.get_text() for text in axis.texts) == count
    plt.close(figure)


def test_locked_dropout(nb: ModuleType) -> None:
    """A unit is silent for a whole window or not at all."""
    torch.manual_seed(0)
    dropout = nb.LockedDropout(0.5)
    silenced = dropout(torch.ones(4, 10, 50)) == 0
    assert (silenced.all(dim=1) | ~silenced.any(dim=1)).all()
    assert 0.3 < silenced.float().mean() < 0.7
    assert torch.equal(dropout.eval()(torch.ones(4, 10, 50)), torch.ones(4, 10, 50))


# The loss and the training


def test_untrained_losses(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """Untrained, the pitch costs about ln 128 and a number about a standard deviation."""
    losses = nb.evaluate(toy.model, tiny_loader(nb, toy.pieces, toy, config))
    assert list(losses) == ["pitch", *toy.normaliser.names]
    assert losses["pitch"] == pytest.approx(math.log(128), abs=0.5)
    assert all(0.3 < losses[name] < 1.5 for name in toy.normaliser.names)


def test_padding_has_no_influence(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """The losses are means over the real notes, whatever stands in the padding."""
    piece = replace(toy.pieces[0], notes=toy.pieces[0].notes.head(21))
    batch = next(iter(tiny_loader(nb, [piece], toy, config)))
    logits, medians, moments = toy.model(batch)
    losses = nb.note_losses(toy.model.names, (logits, medians, moments), batch)
    real = batch["real"]
    assert int(real.sum()) == 21
    nats = -torch.log_softmax(logits, -1).gather(-1, batch["pitch"][..., None])[real].mean()
    assert losses["pitch"].item() == pytest.approx(nats.item(), rel=1e-5)
    for i, name in enumerate(toy.model.names):
        error = (medians[..., i] - batch["numbers"][..., i])[real].abs().mean()
        assert losses[name].item() == pytest.approx(error.item(), rel=1e-5)
    spoilt = {"numbers": batch["numbers"].clone(), "pitch": batch["pitch"].clone()}
    spoilt["numbers"][~real], spoilt["pitch"][~real] = 1e6, 7
    again = nb.note_losses(toy.model.names, (logits, medians, moments), batch | spoilt)
    assert again == losses


def test_composite_loss(nb: ModuleType, config: object) -> None:
    """The loss is the cross-entropy plus the weighted errors of the numbers."""
    losses = {"pitch": 2.0, "step": 0.5, "duration": 0.25}
    assert nb.composite(losses, replace(config, number_weight=1.0)) == pytest.approx(2.75)
    assert nb.composite(losses, replace(config, number_weight=4.0)) == pytest.approx(5.0)


def test_forget(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """The memory of a window is blanked as a whole, and nothing else."""
    batch = next(iter(tiny_loader(nb, toy.pieces, toy, replace(config, batch_size=64))))
    memory = {"candidate", "candidate_length", "recalled", "recalled_length"}
    torch.manual_seed(0)
    half, none, everything = (nb.forget(batch, share) for share in (0.5, 0.0, 1.0))
    for name in batch:
        if name not in memory:
            assert torch.equal(half[name], batch[name])
        assert torch.equal(none[name], batch[name])
        blank = nb.NO_PITCH if name == "candidate" else 0
        assert name not in memory or (everything[name] == blank).all()
    gone = (half["candidate"] == nb.NO_PITCH).flatten(1).all(1)
    kept = (half["candidate"] == batch["candidate"]).flatten(1).all(1)
    assert (gone | kept).all()
    assert 0.2 < gone.float().mean() < 0.8
    assert not half["recalled"][gone].any()


def test_evaluate_weighs_notes_alike(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """The score of two unequal batches is the mean over all notes."""
    pieces = [toy.pieces[0], replace(toy.pieces[1], notes=toy.pieces[1].notes.head(3))]
    windows = nb.NoteWindows(pieces, toy.normaliser, config, 200)
    alone = [torch.utils.data.DataLoader([windows[i]]) for i in range(2)]
    scores = [nb.evaluate(toy.model, loader) for loader in alone]
    both = nb.evaluate(toy.model.train(), torch.utils.data.DataLoader(windows, 1))
    sizes = [len(piece) for piece in pieces]
    for name, value in both.items():
        expected = np.average([score[name] for score in scores], weights=sizes)
        assert value == pytest.approx(expected, rel=1e-5)


def test_training_learns(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The loss of a piece that repeats itself falls far below that of a guess."""
    config = small_config(nb, epochs=8, learning_rate=1e-2, dropout=0.0)
    loader = tiny_loader(nb, toy.pieces, toy, config)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(toy.normaliser.names, config)
    log = nb.fit(model, loader, loader, config)
    assert log.epoch.tolist() == list(range(1, 9))
    assert log.training_pitch.iloc[-1] < log.training_pitch.iloc[0] - 0.5
    assert log.validation_total.iloc[-1] < log.validation_total.iloc[0] - 0.5
    total = log.validation_pitch + sum(log[f"validation_{n}"] for n in toy.normaliser.names)
    assert np.allclose(total, log.validation_total)


def test_training_is_reproducible(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """The same random state gives the same weights, bit by bit, another one does not."""
    windows = nb.NoteWindows(toy.pieces, toy.normaliser, config, 16, augment=True)
    loader = torch.utils.data.DataLoader(windows, 8, shuffle=True)
    weights = []
    for random_state in (0, 0, 1):
        torch.manual_seed(random_state)
        model = nb.MultiHeadLSTM(toy.normaliser.names, config)
        nb.fit(model, loader, loader, config)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


class ScriptedScores:
    """Takes the place of `evaluate`: gives the scores of a script and keeps the weights scored."""

    def __init__(self, scores: list[float | type[BaseException]]) -> None:
        """Keep the script."""
        self.scores, self.weights = list(scores), []

    def __call__(self, model: torch.nn.Module, loader: object) -> dict[str, float]:
        """Return the next score, or raise it if it is an exception."""
        self.weights.append({k: v.clone() for k, v in model.state_dict().items()})
        score = self.scores.pop(0)
        if not isinstance(score, float):
            raise score
        return {"pitch": score, "step": 0.0}


def test_early_stopping_restores_the_best_weights(
    nb: ModuleType, toy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training stops after `patience` epochs without a better score, with the best weights."""
    config = small_config(nb, epochs=20, patience=3)
    scripted = ScriptedScores([5.0, 3.0, 4.0, 3.5, 3.0, 1.0])
    monkeypatch.setattr(nb, "evaluate", scripted)
    loader = tiny_loader(nb, toy.pieces[:1], toy, config)
    log = nb.fit(toy.model, loader, loader, config)
    assert log.validation_pitch.tolist() == [5.0, 3.0, 4.0, 3.5, 3.0]
    assert same_weights(toy.model.state_dict(), scripted.weights[1])
    assert not same_weights(toy.model.state_dict(), scripted.weights[-1])


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether all weights are equal."""
    return all(torch.equal(one[name], other[name]) for name in one)


def test_interrupted_training_keeps_the_best_weights(
    nb: ModuleType,
    toy: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An interrupt ends the training, not the notebook."""
    config = small_config(nb, epochs=20)
    scripted = ScriptedScores([5.0, 3.0, 4.0, KeyboardInterrupt])
    monkeypatch.setattr(nb, "evaluate", scripted)
    loader = tiny_loader(nb, toy.pieces[:1], toy, config)
    try:
        log = nb.fit(toy.model, loader, loader, config)
    except KeyboardInterrupt:  # would end all tests
        pytest.fail("the interrupt was passed on")
    assert log.validation_pitch.tolist() == [5.0, 3.0, 4.0]
    assert same_weights(toy.model.state_dict(), scripted.weights[1])
    assert "epoch 2" in capsys.readouterr().out.splitlines()[-1]


# Scores


def nats_of_next(
    nb: ModuleType, training: list, before: list[int], pitch: int, order: int
) -> float:
    """Return the nats that the table gives to one pitch after the notes before it."""
    played = [np.array([*before, pitch])]
    total = nb.ngram_nats(training, played, order, range(1)) * (len(before) + 1)
    if before:
        total -= nb.ngram_nats(training, [np.array(before)], order, range(1)) * len(before)
    return total


def test_ngram_by_hand(nb: ModuleType) -> None:
    """The chances equal those worked out on paper."""
    training = [np.array([60, 60, 62])]
    alone = {60: (2 + 2 / 128) / 5, 62: (1 + 2 / 128) / 5, 99: (2 / 128) / 5}
    for pitch, chance in alone.items():
        assert nats_of_next(nb, training, [], pitch, 2) == pytest.approx(-math.log(chance))
    after_60 = {60: (1 + 2 * alone[60]) / 4, 62: (1 + 2 * alone[62]) / 4, 99: alone[99] / 2}
    for pitch, chance in after_60.items():
        assert nats_of_next(nb, training, [60], pitch, 2) == pytest.approx(-math.log(chance))
    # nothing ever followed 62, so that only the shorter context counts
    assert nats_of_next(nb, training, [62], 60, 2) == pytest.approx(-math.log(alone[60]))


@pytest.mark.parametrize("before", [[], [61], [60, 62, 60], [99, 60, 61]])
def test_ngram_chances_sum_to_one(nb: ModuleType, before: list[int]) -> None:
    """The chances of all pitches sum to one."""
    rng = np.random.default_rng(0)
    training = [rng.integers(60, 64, 50) for _ in range(3)]
    chances = [math.exp(-nats_of_next(nb, training, before, p, order=4)) for p in range(128)]
    assert sum(chances) == pytest.approx(1)


def test_ngram_learns_transpositions(nb: ModuleType) -> None:
    """A tune heard in one key is known in the keys of `shifts`."""
    tune = np.array([60, 64, 67, 65, 62] * 6)
    known = nb.ngram_nats([tune], [tune + 3], 4, range(-6, 6))
    unknown = nb.ngram_nats([tune], [tune + 3], 4, range(1))
    assert known < 1.5 < unknown


def test_number_scores(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """The errors of the baselines are counted on the original scale."""
    split = {"training": toy.pieces[:2], "test": toy.pieces[2:]}
    loader = nb.whole_pieces(split["test"], toy.normaliser, config)
    scores = nb.number_scores(toy.model, loader, split, toy.normaliser)
    for name in toy.normaliser.names:
        median = np.median([x for piece in split["training"] for x in piece.notes[name]])
        true = [list(piece.notes[name]) for piece in split["test"]]
        constant = np.mean([abs(x - median) for piece in true for x in piece])
        copied = np.mean([abs(b - a) for piece in true for a, b in pairwise(piece)])
        assert scores.loc[name, "constant median"] == pytest.approx(constant, rel=1e-4)
        assert scores.loc[name, "copy of the note before"] == pytest.approx(copied)
        assert scores.loc[name, "model"] > 0


def test_pitch_scores(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """The scores of the pitch are those of each baseline, and the model comes last."""
    split = {"training": toy.pieces[:2], "test": toy.pieces[2:]}
    loader = nb.whole_pieces(split["test"], toy.normaliser, config)
    scores = nb.pitch_scores(toy.model, loader, split)
    sides = [[piece.notes.pitch.to_numpy() for piece in part] for part in split.values()]
    forgotten = nb.evaluate(toy.model, loader, forgotten=1.0)["pitch"]
    expected = {
        "uniform": math.log(128),
        "1-gram": nb.ngram_nats(*sides, 1, range(1)),
        "4-gram, all transpositions": nb.ngram_nats(*sides, 4, range(-6, 6)),
        "model without its memory": forgotten,
        "model": nb.evaluate(toy.model, loader)["pitch"],
    }
    assert list(scores) == list(expected)
    assert scores == pytest.approx(expected)
    assert len({round(value, 4) for value in scores.values()}) == 5


# Drawing and composing


def test_make_repertoire(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The moments are those of the held-out pieces, the limits those of the training pieces."""
    rng = np.random.default_rng(0)
    pieces = [  # with rests
        replace(piece, notes=piece.notes[rng.random(len(piece)) < 0.7].reset_index(drop=True))
        for piece in toy.pieces
    ]
    training, held_out = pieces[:3], pieces[3:]
    kept, voices = [], []
    for notes in (piece.notes for piece in training):
        end = notes.onset + notes.duration
        for moment in sorted(set(notes.onset))[1:]:
            kept.append(int(((notes.onset < moment) & (end >= moment)).sum()))
        voices += [int((end[: i + 1] > now).sum()) for i, now in enumerate(notes.onset)]
    pitches = [pitch for piece in training for pitch in piece.notes.pitch]
    for rests in (0.05, 0.3, 0.9):
        config = small_config(nb, rests=rests)
        loader = nb.whole_pieces(held_out, toy.normaliser, config)
        made = nb.make_repertoire(toy.model, loader, training, config)
        assert (made.lowest, made.highest) == (min(pitches), max(pitches))
        assert made.fewest == int(np.quantile(kept, rests)) and made.most == max(voices)
    assert np.quantile(kept, 0.05) < np.quantile(kept, 0.9)
    assert torch.equal(made.numbers, torch.tensor(toy.normaliser.table(held_out[0].notes)))
    assert made.moments.shape == (len(held_out[0]), 3, config.head_size // 2)


def test_pitches_are_drawn_from_the_nucleus(
    nb: ModuleType, config: object, repertoire: object
) -> None:
    """The favourite keeps its chance; pitches out of range and of the far tail are never drawn."""
    logits = torch.full((128,), -20.0)
    logits[10] = logits[120] = 20.0
    for pitch, chance in {50: 0.4, 55: 0.3, 60: 0.2, 65: 0.1}.items():
        logits[pitch] = math.log(chance)
    generator = torch.Generator().manual_seed(0)
    for top_p, others in ((0.45, {55}), (0.8, {55, 60}), (0.95, {55, 60, 65})):
        settings = replace(config, top_p=top_p)
        drawn = Counter(
            repertoire.draw_pitch(logits.clone(), settings, generator) for _ in range(600)
        )
        assert set(drawn) == {50} | others
        assert drawn[50] / 600 == pytest.approx(0.4, abs=0.07)
    assert drawn[55] / drawn[60] == pytest.approx(3 / 2, rel=0.4)


def test_sure_pitch(nb: ModuleType, config: object, repertoire: object) -> None:
    """A pitch beside which nothing has a chance can be drawn, and so can the only one in range."""
    logits, generator = torch.zeros(128), torch.Generator().manual_seed(0)
    logits[60] = 300.0
    assert repertoire.draw_pitch(logits, config, generator) == 60
    alone = replace(repertoire, lowest=50, highest=50)
    assert alone.draw_pitch(logits, config, generator) == 50


def test_numbers_are_drawn_from_real_music(
    nb: ModuleType, config: object, repertoire: object
) -> None:
    """A number is one that was played, in a moment near this one."""
    generator = torch.Generator().manual_seed(0)
    for index in range(3):
        known = set(repertoire.numbers[:, index].tolist())
        moment = repertoire.moments[7, index]
        drawn = {
            repertoire.draw_number(index, moment, config, generator).item() for _ in range(100)
        }
        assert drawn <= known
        nearest = replace(config, neighbours=1)
        distance = (repertoire.moments[:, index] - moment).norm(dim=-1)
        same = repertoire.numbers[distance < 1e-6, index].tolist()
        assert repertoire.draw_number(index, moment, nearest, generator).item() in same
    few = replace(repertoire, numbers=repertoire.numbers[:3], moments=repertoire.moments[:3])
    assert few.draw_number(0, moment, config, generator).shape == (1,)


def compose_toy(
    nb: ModuleType,
    toy: SimpleNamespace,
    repertoire: object,
    config: object,
    random_state: int = 0,
) -> pd.DataFrame:
    """Return a continuation of the first toy piece."""
    seed = toy.pieces[0].notes.head(config.seed_notes)
    return nb.compose(toy.model, seed, repertoire, toy.normaliser, config, random_state)


def test_compose(nb: ModuleType, config: object, toy: SimpleNamespace, repertoire: object) -> None:
    """A continuation has the notes asked for, goes on in time and follows its random state."""
    notes, again, other = (compose_toy(nb, toy, repertoire, config, s) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(notes, again)
    assert not notes.pitch.equals(other.pitch)
    assert len(notes) == config.piece_notes
    assert (notes.step >= 0).all() and (notes.duration > 0).all()
    assert notes.pitch.between(repertoire.lowest, repertoire.highest).all()
    last = toy.pieces[0].notes.onset[config.seed_notes - 1]
    assert np.allclose(notes.onset, last + notes.step.cumsum())
    for name in ("onset", "duration"):
        assert np.allclose(notes[name] * 480, (notes[name] * 480).round(), atol=1e-6)
    assert set(notes.velocity) <= {v for piece in toy.pieces for v in piece.notes.velocity}


def test_compose_spares_the_seed(
    nb: ModuleType, config: object, toy: SimpleNamespace, repertoire: object
) -> None:
    """Neither the seed nor the random numbers of others are touched."""
    before, state = toy.pieces[0].notes.copy(), torch.get_rng_state()
    compose_toy(nb, toy, replace(repertoire, most=3), config)
    pd.testing.assert_frame_equal(toy.pieces[0].notes, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_chords_have_no_rubato(nb: ModuleType, config: object, performed: SimpleNamespace) -> None:
    """Inside a composed chord the rubato is 1, elsewhere it is one that was played."""
    config = replace(config, piece_notes=100)
    notes = compose_toy(nb, performed, repertoire_of(nb, config, performed), config)
    chord = notes.step == 0
    assert 10 < chord.sum() < 90
    assert (notes.rubato[chord] == 1).all()
    known = np.unique(np.concatenate([piece.notes.rubato for piece in performed.pieces]))
    assert np.abs(notes.rubato.to_numpy()[:, None] - known).min(axis=1).max() < 1e-4
    assert len(set(notes.rubato[~chord].round(6))) > 3


@pytest.mark.parametrize("music", ["toy", "performed"])
def test_streaming_equals_one_window(
    nb: ModuleType, music: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Note by note, the model hears and says what it does when given the whole piece at once."""
    toy = request.getfixturevalue(music)
    config = small_config(nb, window=32, piece_notes=50, recall=1.0)
    repertoire = repertoire_of(nb, config, toy)
    heard, logits, moments = [], [], []
    context, draw_pitch, draw_number = (
        nb.Composer.context,
        nb.Repertoire.draw_pitch,
        nb.Repertoire.draw_number,
    )

    def hearing(composer: object, *arguments: object) -> dict:
        heard.append(context(composer, *arguments))
        return heard[-1]

    def drawing_pitch(self: object, values: torch.Tensor, *arguments: object) -> int:
        logits.append(values.clone())
        return draw_pitch(self, values, *arguments)

    def drawing_number(self: object, index: int, moment: torch.Tensor, *rest: object) -> object:
        moments.append(moment.clone())
        return draw_number(self, index, moment, *rest)

    monkeypatch.setattr(nb.Composer, "context", hearing)
    monkeypatch.setattr(nb.Repertoire, "draw_pitch", drawing_pitch)
    monkeypatch.setattr(nb.Repertoire, "draw_number", drawing_number)
    new = compose_toy(nb, toy, repertoire, config)
    seed = toy.pieces[0].notes.head(config.seed_notes)
    notes = pd.concat([seed, new], ignore_index=True)
    batch = whole(nb, notes, toy, config)
    with torch.no_grad():
        expected_logits, _, expected_moments = toy.model(batch)
    start = len(seed)
    for name in heard[0]:
        stream = torch.cat([values[name] for values in heard], dim=1)
        assert torch.allclose(stream, batch[name][:, start:].to(stream.dtype), atol=1e-5), name
    assert torch.allclose(torch.stack(logits), expected_logits[0, start:], atol=1e-4)
    stream = torch.stack(moments).view(config.piece_notes, len(toy.model.names), -1)
    assert torch.allclose(stream, expected_moments[0, start:], atol=1e-4)


def test_memory_is_not_always_asked(
    nb: ModuleType,
    toy: SimpleNamespace,
    repertoire: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a share of the notes nothing is recalled before the pitch is drawn."""
    asked, context = [], nb.Composer.context

    def hearing(composer: object, *arguments: object) -> dict:
        batch = context(composer, *arguments)
        asked.append(bool((batch["candidate"] != nb.NO_PITCH).any()))
        assert asked[-1] == bool(batch["candidate_length"].any())
        return batch

    monkeypatch.setattr(nb.Composer, "context", hearing)
    for recall, least, most in ((0.0, 0, 0), (0.5, 40, 140), (1.0, 150, 200)):
        asked.clear()
        compose_toy(nb, toy, repertoire, small_config(nb, piece_notes=200, recall=recall))
        assert least <= sum(asked) <= most


def table_of(notes: list[tuple[float, int, float]]) -> dict[str, list]:
    """Return (onset, pitch, duration) as the lists that a piece in the making consists of."""
    onset, pitch, duration = (list(column) for column in zip(*notes, strict=True))
    step = [0.0, *(b - a for a, b in pairwise(onset))]
    return {"onset": onset, "pitch": pitch, "duration": duration, "step": step}


def test_balance_ends_the_nearest_voice(nb: ModuleType) -> None:
    """Where too many notes would sound, the held note nearest in pitch ends."""
    notes = table_of([(0, 48, 4), (0, 55, 4), (0, 72, 4), (1, 70, 1)])
    nb.balance(notes, fewest=0, most=3)
    assert notes["duration"] == [4, 4, 1, 1]
    nb.balance(notes, fewest=0, most=3)
    assert notes["duration"] == [4, 4, 1, 1]


def test_balance_holds_the_last_voice_on(nb: ModuleType) -> None:
    """Where too few notes would sound, those that ended last are held on."""
    notes = table_of([(0, 48, 0.5), (0, 55, 1), (0, 62, 1.5), (3, 70, 1)])
    nb.balance(notes, fewest=2, most=9)
    assert notes["duration"] == [0.5, 3, 3, 1]


def test_balance_holds_all_voices_on_if_need_be(nb: ModuleType) -> None:
    """Where even all notes that ended are too few, all of them are held on."""
    notes = table_of([(0, 48, 0.5), (0, 55, 1), (3, 70, 1)])
    nb.balance(notes, fewest=3, most=9)
    assert notes["duration"] == [3, 3, 1]


def test_balance_leaves_real_music_alone(nb: ModuleType) -> None:
    """Four voices that move as four voices do not change."""
    for note in range(1, 60):
        table = chorale(nb, 4).notes.head(note)
        notes = {name: table[name].tolist() for name in ("onset", "pitch", "duration", "step")}
        nb.balance(notes, fewest=0, most=4)
        assert notes["duration"] == table.duration.tolist()


# Three pieces


def test_longest_shared_run(nb: ModuleType) -> None:
    """The length equals that of a search through all runs, which end at the end of a piece."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.integers(60, 64, 30)
        corpus = [rng.integers(60, 64, size) for size in (40, 25, 1)]
        runs = {
            tuple(part[i:j])
            for part in corpus
            for i in range(len(part))
            for j in range(i + 1, len(part) + 1)
        }
        longest = max(
            (j - i for i in range(30) for j in range(i + 1, 31) if tuple(values[i:j]) in runs),
            default=0,
        )
        assert nb.longest_shared_run(values, corpus) == longest
    assert nb.longest_shared_run(np.array([1, 2, 3, 4]), [np.array([1, 2]), np.array([3, 4])]) == 2
    assert nb.longest_shared_run(np.array([5]), [np.array([1])]) == 0


def test_describe(nb: ModuleType) -> None:
    """The figures of a small piece equal those counted by hand."""
    pitches = [60, 64, 67, 72, 60, 64, 67, 72, 60, 64, 67, 72]
    notes = [(i // 2 * 0.5, pitch, 1.0, 90) for i, pitch in enumerate(pitches)]
    figures = nb.describe(piece_of(nb, "a", notes).notes, [np.array([1, *pitches[:6], 2])])
    assert figures["chord rate"] == pytest.approx(6 / 11)
    assert figures["step spread"] == pytest.approx(np.std([0, 0.5] * 5 + [0]))
    assert figures["mean duration"] == 1
    assert figures["distinct pitches"] == 4
    assert figures["notes sounding"] == pytest.approx((2 * 2 + 10 * 4) / 12)
    assert figures["repeated 8-note runs"] == pytest.approx(1 - 4 / 5)
    assert figures["run shared with training"] == 6


def test_failed_checks(nb: ModuleType) -> None:
    """A figure outside the range of real music is named; copying less than real music is fine."""
    names = ["chord rate", "repeated 8-note runs", "run shared with training"]
    real = pd.DataFrame([[0.4, 0.1, 8], [0.6, 0.2, 12]], columns=names)
    assert nb.failed_checks({"chord rate": 0.5}, real) == []
    assert nb.failed_checks(dict(zip(names, (0.7, 0, 3), strict=True)), real) == ["chord rate"]
    assert nb.failed_checks(dict(zip(names, (0.4, 0.2, 13), strict=True)), real) == [names[2]]


def test_excerpts(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Excerpts have one length, follow each other and cross no piece."""
    pieces = [
        replace(toy.pieces[0], notes=toy.pieces[0].notes.head(25)),
        replace(toy.pieces[1], notes=toy.pieces[1].notes.head(9)),
        replace(toy.pieces[2], notes=toy.pieces[2].notes.head(10)),
    ]
    found = [table.pitch.tolist() for table in nb.excerpts(pieces, 10)]
    first, _, last = (piece.notes.pitch.tolist() for piece in pieces)
    assert found == [first[:10], first[10:20], last]


def test_seeds(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """Seeds are openings of different works where there are three, and of long enough pieces."""
    works = ["a", "a", "a", "b", "c"]
    pieces = [replace(chorale(nb, i), name=f"p{i}", work=work) for i, work in enumerate(works)]
    pieces.append(replace(pieces[0], name="short", work="d", notes=pieces[0].notes.head(5)))
    for random_state in range(10):
        seeds = nb.choose_seeds(pieces, config, np.random.default_rng(random_state))
        assert {seed.work for seed in seeds} == {"a", "b", "c"}
        for seed in seeds:
            opening = next(p for p in pieces if p.name == seed.name).notes.head(config.seed_notes)
            pd.testing.assert_frame_equal(seed.notes, opening)
    few = nb.choose_seeds(pieces[:2], config, np.random.default_rng(0))
    assert sorted({seed.name for seed in few}) == ["p0", "p1"] and len(few) == 3


def test_pieces_are_drawn_again_until_they_pass(
    nb: ModuleType,
    config: object,
    toy: SimpleNamespace,
    repertoire: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A piece that fails a check is drawn again; the last attempt says what it fails."""
    settings = replace(config, attempts=4)
    names = {"config": settings, "random_state": 50, "model": toy.model, "repertoire": repertoire}
    names |= {"normaliser": toy.normaliser, "training_pitches": [], "real": None}
    for name, value in names.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    drawn = []

    def composing(*arguments: object) -> str:
        drawn.append(arguments[-1])
        return f"attempt {len(drawn)}"

    monkeypatch.setattr(nb, "compose", composing)
    monkeypatch.setattr(nb, "describe", lambda notes, training: {"length": int(notes[-1])})
    monkeypatch.setattr(nb, "failed_checks", lambda f, real: ["length"] * (f["length"] < 3))
    notes, row = nb.compose_checked(toy.pieces[0], 2)
    assert notes == "attempt 3" and row["failed"] == "" and row["random state"] == drawn[-1]
    assert row["seed from"] == toy.pieces[0].name and row["first note"] == 0
    assert len(set(drawn)) == 3
    monkeypatch.setattr(nb, "failed_checks", lambda f, real: ["length", "other"])
    drawn.clear()
    notes, row = nb.compose_checked(replace(toy.pieces[0], first=300), 2)
    assert len(drawn) == 4 and row["first note"] == 300
    assert notes == "attempt 4" and row["failed"] == "length, other"


# Files


def test_midi_round_trip(nb: ModuleType, config: object, tmp_path: Path) -> None:
    """A piece that is written and read again is the same, from time zero."""
    piece = chorale(nb, 1, velocity=True)
    moved = piece.notes.assign(onset=piece.notes.onset + 17.5)
    nb.write_midi(moved, 93, 5, tmp_path / "a.mid")
    back = nb.read_piece((tmp_path / "a.mid").read_bytes(), "a.mid", config)
    for name in ("onset", "pitch", "step", "duration", "velocity"):
        assert np.allclose(back.notes[name], piece.notes[name], atol=1e-6), name
    assert back.tempo == pytest.approx(93, rel=1e-3)
    midi = pretty_midi.PrettyMIDI(str(tmp_path / "a.mid"))
    assert [part.program for part in midi.instruments] == [5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mid"]


def onsets_in_seconds(data: Path | bytes) -> np.ndarray:
    """Return when the notes of a MIDI file begin, sorted, the first at zero."""
    midi = pretty_midi.PrettyMIDI(str(data) if isinstance(data, Path) else io.BytesIO(data))
    seconds = np.sort([note.start for part in midi.instruments for note in part.notes])
    return seconds - seconds[0]


def tempo_events(path: Path) -> list[tuple[int, int]]:
    """Return tick and microseconds a beat of all tempo events of a MIDI file."""
    events = []
    for track in mido.MidiFile(path).tracks:
        ticks = np.cumsum([message.time for message in track])
        events += [
            (int(tick), message.tempo)
            for tick, message in zip(ticks, track, strict=True)
            if message.type == "set_tempo"
        ]
    return events


def test_performance_round_trip(nb: ModuleType, config: object, tmp_path: Path) -> None:
    """A performance that is read and written is the same on the ticks and nearly so in seconds."""
    rng = np.random.default_rng(0)
    notes = chorale_notes(1, beats=100, velocity=True)
    wild = tuple((float(beat), float(rng.uniform(40, 200))) for beat in range(100))
    data = midi_bytes([notes], wild)
    piece = nb.read_piece(data, "a.mid", config)
    assert np.ptp(piece.notes.rubato) > 1
    nb.write_midi(piece.notes, piece.tempo, 0, tmp_path / "a.mid")
    back = nb.read_piece((tmp_path / "a.mid").read_bytes(), "a.mid", config)
    for name in ("onset", "pitch", "step", "duration", "velocity"):
        assert np.allclose(back.notes[name], piece.notes[name], rtol=0, atol=1e-9), name
    played, written = onsets_in_seconds(data), onsets_in_seconds(tmp_path / "a.mid")
    # the rounding of the rubato adds up
    assert np.abs(played - written).max() < 0.05 * played[-1] / 60
    assert played[-1] > 50


def test_tempo_map_by_hand(nb: ModuleType, tmp_path: Path) -> None:
    """Onsets in a file are where the rubato puts them, from whichever note the piece begins."""
    piece = with_rubato(chorale(nb, 1), 0)
    for first in (0, 30):
        notes, tempo = piece.notes.iloc[first:].reset_index(drop=True), 93.0
        played, seconds, expected = tempo, 0.0, [0.0]
        for note in notes.iloc[1:].itertuples():
            if note.step > 0:
                played *= note.rubato * (tempo / played) ** (1 / nb.RETURN)
                seconds += note.step * 60 / played
            expected.append(seconds)
        nb.write_midi(notes, tempo, 0, tmp_path / "a.mid")
        assert np.allclose(onsets_in_seconds(tmp_path / "a.mid"), expected, rtol=0, atol=1e-3)
        assert len(tempo_events(tmp_path / "a.mid")) > 10


def test_constant_tempo_is_one_event(nb: ModuleType, config: object, tmp_path: Path) -> None:
    """A piece at constant tempo has one tempo event, at its beginning."""
    for tempo in (61.7, 80.0):
        data = midi_bytes([chorale_notes(1)], ((0, tempo),))
        piece = nb.read_piece(data, "a.mid", config)
        nb.write_midi(piece.notes.iloc[20:], piece.tempo, 0, tmp_path / "a.mid")
        ((tick, length),) = tempo_events(tmp_path / "a.mid")
        assert tick == 0 and length == pytest.approx(6e7 / tempo, abs=1)


@pytest.mark.parametrize("rubato", [0.1, 0.05, 1000.0])
def test_tempos_beyond_midi(nb: ModuleType, tmp_path: Path, rubato: float) -> None:
    """A drawn tempo too slow or too fast for a MIDI file does not stop the writing of it."""
    piece = chorale(nb, 1)
    notes = piece.notes.assign(rubato=piece.notes.onset.between(5, 8).map({True: rubato, False: 1}))
    nb.write_midi(notes, 30, 0, tmp_path / "a.mid")
    assert len(onsets_in_seconds(tmp_path / "a.mid")) == len(notes)


def test_samples_round_trip(nb: ModuleType, tmp_path: Path) -> None:
    """Samples are scaled to the peak, whatever their loudness, and read as they were written."""
    wave_form = np.sin(np.arange(2000) / 10)
    for loudness in (0.01, 1.0, 30.0):
        nb.write_samples(tmp_path / "a.wav", loudness * wave_form, 8000)
        samples, rate = nb.read_samples(tmp_path / "a.wav")
        assert rate == 8000
        assert np.allclose(samples, wave_form / np.abs(wave_form).max() * nb.PEAK, atol=1e-4)
        assert np.abs(samples).max() < 1
    nb.write_samples(tmp_path / "a.wav", np.zeros(10), 8000)
    assert not nb.read_samples(tmp_path / "a.wav")[0].any()


def test_channels_are_mixed(nb: ModuleType, tmp_path: Path) -> None:
    """The samples of a file with two channels are their mean."""
    both = np.array([[1000, 3000], [-2000, 0]], dtype="<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(both.tobytes())
    samples, _ = nb.read_samples(tmp_path / "a.wav")
    assert np.allclose(samples * 32768, [2000, -1000])


def check_sound(nb: ModuleType, path: Path, seconds: float) -> None:
    """Check that a WAV is loud, not clipped, long enough and small enough."""
    samples, rate = nb.read_samples(path)
    assert np.abs(samples).max() == pytest.approx(nb.PEAK, abs=1e-3)
    assert np.sqrt(np.mean(samples**2)) > LOUD
    assert seconds <= len(samples) / rate <= seconds + nb.TAIL
    assert path.stat().st_size < nb.LARGEST_WAV + 1000


def test_sound_by_fluidsynth(
    nb: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """FluidSynth plays the file and prints nothing."""
    if shutil.which("fluidsynth") is None:
        pytest.skip("FluidSynth is not installed")
    nb.write_midi(chorale(nb, 1).notes, 80, 0, tmp_path / "a.mid")
    assert nb.write_wav(tmp_path / "a.mid", tmp_path / "a.wav") == "FluidSynth"
    assert capfd.readouterr() == ("", "")
    check_sound(nb, tmp_path / "a.wav", chorale_end(nb) * 60 / 80)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mid", "a.wav"]


def chorale_end(nb: ModuleType) -> float:
    """Return the beat at which the last note of the toy piece ends."""
    notes = chorale(nb, 1).notes
    return (notes.onset + notes.duration).max()


def test_sound_without_fluidsynth(
    nb: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Without FluidSynth the piece is played all the same, and one line says so."""
    nb.write_midi(chorale(nb, 1).notes, 80, 0, tmp_path / "a.mid")
    monkeypatch.setenv("PATH", "")
    assert nb.write_wav(tmp_path / "a.mid", tmp_path / "a.wav") != "FluidSynth"
    printed, errors = capfd.readouterr()
    assert len(printed.splitlines()) == 1 and errors == ""
    assert "FluidSynth" in printed and "a.wav" in printed and "install" in printed
    check_sound(nb, tmp_path / "a.wav", chorale_end(nb) * 60 / 80)


def test_sound_when_fluidsynth_fails(
    nb: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A FluidSynth that ends without a sound is noticed, too."""
    broken = tmp_path / "bin" / "fluidsynth"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho failed >&2\nexit 1\n")
    broken.chmod(0o755)
    nb.write_midi(chorale(nb, 1).notes, 80, 0, tmp_path / "a.mid")
    monkeypatch.setenv("PATH", f"{broken.parent}:/bin")
    assert nb.write_wav(tmp_path / "a.mid", tmp_path / "a.wav") != "FluidSynth"
    assert len(capfd.readouterr().out.splitlines()) == 1
    check_sound(nb, tmp_path / "a.wav", chorale_end(nb) * 60 / 80)


def test_long_pieces_get_a_lower_rate(nb: ModuleType, tmp_path: Path) -> None:
    """A piece of over a minute still makes a small file."""
    notes = piece_of(nb, "long", [(0, 60, 1, 90), (80, 62, 1, 90)]).notes
    nb.write_midi(notes, 60, 0, tmp_path / "a.mid")
    nb.write_wav(tmp_path / "a.mid", tmp_path / "a.wav")
    assert nb.read_samples(tmp_path / "a.wav")[1] < nb.RATES[0]
    assert (tmp_path / "a.wav").stat().st_size < nb.LARGEST_WAV + 1000


def test_failed_writing_leaves_the_old_file(nb: ModuleType, tmp_path: Path) -> None:
    """A file is replaced as a whole or not at all, and nothing else stays behind."""
    path = tmp_path / "a.csv"
    path.write_text("old")
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), nb.replacing(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise error
        assert [p.name for p in tmp_path.iterdir()] == ["a.csv"] and path.read_text() == "old"
    with nb.replacing(path) as temporary:
        temporary.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"] and path.read_text() == "new"


def test_project_folder(nb: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the notebook is found where the kernel, the command line or a person say."""
    home, inner, away = tmp_path / "home", tmp_path / "home" / "inner", tmp_path / "away"
    for folder in (inner, away):
        folder.mkdir(parents=True)
    (home / "notebook.ipynb").touch()
    command = ["python", "papermill"]
    parent = SimpleNamespace(cmdline=lambda: command)
    monkeypatch.setattr(nb.psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))
    for folder in (home, inner):
        monkeypatch.chdir(folder)
        assert nb.find_project("") == home
    monkeypatch.chdir(away)
    assert nb.find_project(str(home)) == home
    assert nb.find_project("../home") == home
    with pytest.raises(ValueError, match="`project`"):
        nb.find_project("")
    with pytest.raises(ValueError, match="inner"):
        nb.find_project(str(inner))
    command.append(str(home / "notebook.ipynb"))
    assert nb.find_project("") == home


def test_study_table(
    nb: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A table of a study is shown if it is there; if not, a line says how to get it."""
    monkeypatch.setattr(nb, "project_dir", tmp_path, raising=False)
    assert len(nb.study_table("composers")) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "outputs/study/composers.csv" in line and "run tests/study_composers.py" in line
    assert (Path(__file__).parent / "study_composers.py").is_file()
    table = pd.DataFrame({"composer": ["haydn", "mozart"], "pitch": [2.5, 2.25]})
    (tmp_path / "outputs" / "study").mkdir(parents=True)
    table.to_csv(tmp_path / "outputs" / "study" / "composers.csv", index=False)
    pd.testing.assert_frame_equal(nb.study_table("composers"), table, check_dtype=False)
    assert capsys.readouterr().out == ""


def test_worth(nb: ModuleType) -> None:
    """Only the ideas whose change is larger than its spread are named, the largest first."""
    columns = ["pitch, change", "pitch, spread of change"]
    rows = {"metre": [0.05, 0.02], "noise": [0.01, 0.02], "memory": [0.25, 0.1], "a": [-0.1, 0.09]}
    changes = pd.DataFrame(rows, index=columns).T
    assert nb.worth(changes, "pitch") == "memory +0.25, metre +0.05, a -0.10"
    assert nb.worth(changes.loc[["noise"]], "pitch") == "none"
