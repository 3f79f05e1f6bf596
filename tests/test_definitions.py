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
def limits(nb: ModuleType) -> object:
    """Return limits of the pitch alone: any number of notes may sound at once."""
    return nb.Limits(40, 75, voices=999)


@pytest.fixture
def unbalanced(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave durations as they were drawn: balancing changes them when the next note is known."""
    monkeypatch.setattr(nb, "balance", lambda *_: None)


def toy_of(nb: ModuleType, config: object, pieces: list) -> SimpleNamespace:
    """Return the pieces with a normaliser and an untrained model for them."""
    normaliser = nb.Normaliser(pieces, config)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, config).eval()
    return SimpleNamespace(pieces=pieces, normaliser=normaliser, model=model)


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


def candidates_by_search(pitch: list[int], distance: int = 1) -> list[tuple[int, int]]:
    """Return two literal candidates and a moved one from `distance` back, with match lengths."""
    found, places = [], list(range(len(pitch) - distance + 1))
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
        assert memory.candidates() == memory.candidates(distance=1) == expected
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


@pytest.mark.parametrize("scale", [(60, 61, 62), tuple(range(60, 72))])
def test_candidates_from_a_distance(nb: ModuleType, scale: tuple[int, ...]) -> None:
    """Candidates of both kinds come only from places that are far enough back."""
    rng, pitch, memory = np.random.default_rng(0), [], nb.PieceMemory(150)
    others, moved = Counter(), Counter()
    for note in rng.choice(scale, 150).tolist():
        for distance in (2, 7, 30, 200):
            found = memory.candidates(distance)
            assert found == candidates_by_search(pitch, distance)
            others[distance] += found != memory.candidates()
            moved[distance] += found[2][1] > 0
            assert len(pitch) >= distance or found == [(128, 0)] * 3
            # how far back a place is does not matter once the pitch is known
            assert memory.last_time(note) == last_time_by_search(pitch, note)
        memory.append(note)
        pitch.append(note)
    assert min(others.values()) > 5
    assert moved[200] == 0 and min(moved[distance] for distance in (2, 7, 30)) > 5


def test_distance_by_hand(nb: ModuleType) -> None:
    """The note before is 1 back, so a place that is n back is offered up to distance n."""
    memory = nb.PieceMemory(9)
    for note in (60, 62, 64, 65, 60, 62, 64):
        memory.append(note)
    offered = [memory.candidates(distance)[0] for distance in range(1, 8)]
    # 65 was heard 4 notes ago, after the same three notes
    assert offered == [(65, 3)] * 4 + [(128, 0)] * 3


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
    # the distance is for sampling: here all that was heard counts
    found = nb.recall(piece.notes, performed.normaliser, replace(config, distance=9))
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
        change = np.zeros(4) if place < 1 else numbers[place] - numbers[place - 1]
        assert np.allclose(found["recalled_change"][i], change, atol=1e-6)
        assert found["recalled_length"][i] == min(length, config.match_limit)
    assert found["candidate"][2 * len(phrase) - 1, 0] == pitch[2 * len(phrase) - 1]


def test_recalled_change_of_an_echo(
    nb: ModuleType, config: object, performed: SimpleNamespace
) -> None:
    """What changed from note to note is recalled for an echo, where there was a note before."""
    loud = [(60, 1.0, 90), (64, 0.5, 80), (67, 2.0, 100)]
    soft = [(pitch, duration, velocity - 30) for pitch, duration, velocity in loud]
    notes = [(float(i), *note) for i, note in enumerate(loud + soft)]
    table = piece_of(nb, "echo", notes).notes
    found = nb.recall(table, performed.normaliser, config)
    numbers = torch.tensor(performed.normaliser.table(table))
    change = found["recalled_change"]
    # nothing is recalled at first, and the first note that is recalled follows none
    assert not change[:4].any() and not found["recalled"][:3].any()
    assert torch.equal(found["recalled"][3:], numbers[:3])
    assert torch.equal(change[4:], numbers[1:3] - numbers[:2])
    # where the phrase changes by itself, the echo changes alike
    velocity = performed.normaliser.names.index("velocity")
    assert torch.allclose(
        numbers[3:5, velocity] + change[4:, velocity], numbers[4:, velocity], atol=1e-5
    )


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
    """The windows of an epoch are corrupted and transposed at random."""
    config = small_config(nb, epoch_windows=50, passes=50.0, noise=0.5)
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


@pytest.mark.parametrize(
    ("windows", "passes", "most", "drawn"),
    [(7, 1.4, 50, 10), (7, 3.0, 50, 21), (7, 8.0, 50, 50), (30, 1.0, 30, 30), (30, 2.5, 30, 30)],
)
def test_windows_of_an_epoch(
    nb: ModuleType, toy: SimpleNamespace, windows: int, passes: float, most: int, drawn: int
) -> None:
    """An epoch has `passes` over the windows of a small corpus, at most `epoch_windows`."""
    config = small_config(nb, window=2, passes=passes, epoch_windows=most)
    piece = replace(toy.pieces[0], notes=toy.pieces[0].notes.head(2 * windows))
    loader = nb.random_windows([piece], toy.normaliser, config)
    assert len(loader.dataset) == windows
    assert sum(len(batch["pitch"]) for batch in loader) == drawn


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


def number_head(nb: ModuleType, config: object) -> torch.nn.Module:
    """Return a number head for three inputs, without dropout."""
    torch.manual_seed(0)
    return nb.NumberHead(3, config).eval()


def trust(head: torch.nn.Module, source: int, value: float = 0.0) -> None:
    """Let a number head give all weight to its own `value` (0) or to a proposal (1 to 3)."""
    weight, bias = head.output[1].weight, head.output[1].bias
    with torch.no_grad():
        weight.zero_()
        bias.zero_()
        # so large that nothing is left for the others in float32
        bias[0], bias[1 + source] = value, 200.0


def test_number_head_by_hand(nb: ModuleType, config: object) -> None:
    """The median is the mean of the head's own value and the proposals, weighted by softmax."""
    head = number_head(nb, config)
    x, proposals = torch.randn(2, 5, 3), 3 * torch.randn(2, 5, nb.PROPOSALS)
    with torch.no_grad():
        median, hidden = head(x, proposals)
        output = head.output(head.hidden(x)).numpy()
        assert torch.equal(hidden, head.hidden(x))
    assert output.shape == (2, 5, 2 + nb.PROPOSALS) and hidden.shape[-1] == config.head_size // 2
    for index in np.ndindex(2, 5):
        value, *votes = output[index].astype(float)
        weights = np.exp(votes) / np.exp(votes).sum()
        expected = weights @ [value, *proposals[index].tolist()]
        assert median[index].item() == pytest.approx(expected, abs=1e-5)
        assert weights.min() > 0.01  # untrained, every proposal is heard


def test_number_head_copies_exactly(nb: ModuleType, config: object) -> None:
    """What the head trusts in full comes out as it is, be it a proposal or its own value."""
    head, x = number_head(nb, config), torch.randn(2, 5, 3)
    proposals = torch.randn(2, 5, nb.PROPOSALS)
    for source in range(1, 1 + nb.PROPOSALS):
        trust(head, source)
        assert torch.equal(head(x, proposals)[0], proposals[..., source - 1])
    trust(head, 0, value=0.7)
    assert torch.equal(head(x, proposals)[0], torch.full((2, 5), 0.7))


def test_number_head_learns_what_to_trust(nb: ModuleType, config: object) -> None:
    """The weights have a gradient: a head whose first proposal is right learns to copy it."""
    head, generator = number_head(nb, config), torch.Generator().manual_seed(0)
    optimiser, errors = torch.optim.Adam(head.parameters(), 1e-2), []
    for _ in range(150):
        proposals = torch.randn(8, 5, nb.PROPOSALS, generator=generator)
        median, _ = head(torch.randn(8, 5, 3, generator=generator), proposals)
        loss = (median - proposals[..., 0]).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert np.mean(errors[-10:]) < 0.2 * errors[0]


def test_proposals_of_each_number(
    nb: ModuleType, config: object, performed: SimpleNamespace
) -> None:
    """Proposed are the number recalled, the previous one changed as recalled, and the previous."""
    model, batch = performed.model, whole(nb, performed.pieces[0].notes, performed, config)
    previous = torch.cat([torch.zeros(1, 1, 4), batch["numbers"][:, :-1]], dim=1)
    changed = previous + batch["recalled_change"]
    proposals = [batch["recalled"], changed, previous]
    assert len(proposals) == nb.PROPOSALS and batch["recalled_change"].any()
    for source, expected in enumerate(proposals, start=1):
        for head in model.number_heads:
            trust(head, source)
        assert torch.equal(model(batch)[1], expected)


def test_proposals_are_heard(nb: ModuleType, config: object, performed: SimpleNamespace) -> None:
    """The hidden layer of each number hears the proposals, from which it learns whom to trust."""
    model, batch = performed.model, whole(nb, performed.pieces[0].notes, performed, config)
    state, _ = model.listener(batch)
    for index in range(4):
        rest = batch["pitch"], batch["numbers"][..., :index]
        _, hidden = model.number(index, state, batch, *rest)
        for name in ("recalled", "recalled_change", "context_numbers"):
            other = batch | {name: batch[name] + 1}
            _, changed = model.number(index, state, other, *rest)
            assert (changed != hidden).any(dim=-1).all(), name


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
    memory = {"candidate", "candidate_length", "recalled", "recalled_change", "recalled_length"}
    assert all(batch[name].any() for name in memory)
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
    assert not half["recalled"][gone].any() and not half["recalled_change"][gone].any()


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


def with_rests(piece: object, share: float, random_state: int = 0) -> object:
    """Return the piece without a share of its notes."""
    kept = np.random.default_rng(random_state).random(len(piece)) >= share
    return replace(piece, notes=piece.notes[kept].reset_index(drop=True))


def test_find_limits(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The limits are the ends of the range of pitches and the most notes at once in any piece."""
    low, high, thin = (piece.notes for piece in toy.pieces[:3])
    # each limit comes from another piece
    tables = [low.assign(pitch=low.pitch - 9), high.assign(pitch=high.pitch + 9), thin.iloc[::9]]
    pieces = [*toy.pieces[3:], *(replace(toy.pieces[0], notes=table) for table in tables)]
    counts = []
    for notes in (piece.notes.reset_index(drop=True) for piece in pieces):
        end = notes.onset + notes.duration
        counts.append(max((end[: i + 1] > now).sum() for i, now in enumerate(notes.onset)))
    assert len(set(counts)) > 1
    pitches = [pitch for piece in pieces for pitch in piece.notes.pitch]
    found = nb.find_limits(pieces)
    assert found == nb.Limits(min(pitches), max(pitches), max(counts))
    # so that they print as numbers
    assert {type(value) for value in vars(found).values()} == {int}


def test_pitches_are_drawn_from_the_nucleus(nb: ModuleType, config: object, limits: object) -> None:
    """The favourite keeps its chance; pitches out of range and of the far tail are never drawn."""
    logits = torch.full((128,), -20.0)
    logits[10] = logits[120] = 20.0
    for pitch, chance in {50: 0.4, 55: 0.3, 60: 0.2, 65: 0.1}.items():
        logits[pitch] = math.log(chance)
    generator = torch.Generator().manual_seed(0)
    for top_p, others in ((0.45, {55}), (0.8, {55, 60}), (0.95, {55, 60, 65})):
        settings = replace(config, top_p=top_p)
        drawn = Counter(
            nb.draw_pitch(logits.clone(), limits, settings, generator) for _ in range(600)
        )
        assert set(drawn) == {50} | others
        assert drawn[50] / 600 == pytest.approx(0.4, abs=0.07)
    assert drawn[55] / drawn[60] == pytest.approx(3 / 2, rel=0.4)


def test_sure_pitch(nb: ModuleType, config: object, limits: object) -> None:
    """A pitch beside which nothing has a chance can be drawn, and so can the only one in range."""
    logits, generator = torch.zeros(128), torch.Generator().manual_seed(0)
    logits[60] = 300.0
    assert nb.draw_pitch(logits, limits, config, generator) == 60
    alone = replace(limits, lowest=50, highest=50)
    assert nb.draw_pitch(logits, alone, config, generator) == 50


def test_range_includes_its_ends(nb: ModuleType, config: object, limits: object) -> None:
    """The lowest and the highest pitch of the training pieces can be drawn."""
    settings, generator = replace(config, top_p=1.0), torch.Generator().manual_seed(0)
    narrow = replace(limits, lowest=50, highest=52)
    drawn = {nb.draw_pitch(torch.zeros(128), narrow, settings, generator) for _ in range(100)}
    assert drawn == {50, 51, 52}


def test_find_habits(nb: ModuleType) -> None:
    """The habits are those of the seed but for its first note, which has no past."""
    torch.manual_seed(0)
    found = {"numbers": torch.randn(9, 2), "medians": torch.randn(9, 2)}
    found["moments"] = torch.randn(9, 2, 4)
    habits = nb.find_habits(found, 5)
    for i in range(4):
        assert torch.equal(habits.numbers[i], found["numbers"][i + 1])
        assert torch.equal(habits.moments[i], found["moments"][i + 1])
        missed = found["numbers"][i + 1] - found["medians"][i + 1]
        assert torch.equal(habits.errors[i], missed)
    assert len(habits.numbers) == len(habits.errors) == len(habits.moments) == 4


@pytest.fixture
def habits(nb: ModuleType) -> object:
    """Return habits of two numbers; the moments of the second are at 0 to 5."""
    numbers = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    errors = torch.tensor([-3.0, -2.2, 1.2, -1.1, 4.6, 20.0])
    moments = torch.arange(6.0)[:, None].expand(6, 3)
    # the first number is quite different, so that none is taken for the other
    both = ((numbers.flip(0) + 0.25, numbers), (errors - 50, errors), (moments.flip(0), moments))
    return nb.Habits(*(torch.stack(pair, dim=1) for pair in both))


@pytest.mark.parametrize(
    ("neighbours", "values"),
    [(1, {4}), (2, {4, 2}), (3, {4, 2, 1}), (4, {4, 2, 1, 8}), (99, {4, 2, 1, 8, 0, 16})],
)
def test_errors_are_drawn_from_the_nearest_moments(
    nb: ModuleType, habits: object, neighbours: int, values: set[int]
) -> None:
    """The error is one of the nearest moments, each as likely, and lands on a value of the seed."""
    config, generator = small_config(nb, neighbours=neighbours), torch.Generator().manual_seed(0)
    # the moments 2, 3, 1 and 4 are the nearest, in this order, and make 4.2, 1.9, .8 and 7.6
    median, moment = torch.tensor(3.0), torch.full((3,), 2.1)
    drawn = Counter(
        habits.draw(1, median, moment, config, generator).item() for _ in range(100 * len(values))
    )
    assert set(drawn) == values
    assert all(60 < count < 140 or count == 100 * len(drawn) for count in drawn.values())


def test_numbers_of_a_seed_are_drawn_as_they_were(
    nb: ModuleType, config: object, performed: SimpleNamespace
) -> None:
    """In a moment of the seed itself, the head's error there leads back to the true number."""
    loader = nb.whole_pieces(performed.pieces[:1], performed.normaliser, config)
    found, nearest = nb.predict(performed.model, loader), replace(config, neighbours=1)
    habits, generator = nb.find_habits(found, 30), torch.Generator().manual_seed(0)
    numbers = torch.tensor(performed.normaliser.table(performed.pieces[0].notes))
    for i in range(1, 30):
        for index in range(4):
            moment = found["medians"][i, index], found["moments"][i, index]
            drawn = habits.draw(index, *moment, nearest, generator)
            assert drawn.shape == () and drawn == numbers[i, index]


def test_redraw(nb: ModuleType, performed: SimpleNamespace) -> None:
    """The notes after the seed come back as they were, as medians, and as the seed draws them."""
    config, model, piece = small_config(nb, neighbours=1), performed.model, performed.pieces[1]
    numbers, size = performed.normaliser.table(piece.notes), config.seed_notes
    _, medians, moments = model(whole(nb, piece.notes, performed, config))
    for index, name in enumerate(performed.normaliser.names):
        found = nb.redraw(model, piece, name, performed.normaliser, config, 0)
        assert list(found) == ["real", "median", "drawn"]
        true, median = torch.tensor(numbers[:, index]), medians[0, :, index].detach()
        assert torch.equal(found["real"], true[size:])
        assert torch.allclose(found["median"], median[size:], atol=1e-5)
        hidden, seed = moments[0, :, index].detach(), slice(1, size)
        nearest = torch.cdist(hidden[size:], hidden[seed]).argmin(dim=1)
        moved = median[size:] + (true - median)[seed][nearest]
        apart = (true[seed] - moved[:, None]).abs()
        assert torch.equal(found["drawn"], true[seed][apart.argmin(dim=1)]), name


def test_redraw_follows_its_random_state(nb: ModuleType, performed: SimpleNamespace) -> None:
    """The same random state draws the same, another one something else."""
    config = small_config(nb, neighbours=5)
    run = (performed.model, performed.pieces[1], "velocity", performed.normaliser, config)
    one, again, other = (nb.redraw(*run, state)["drawn"] for state in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def compose_toy(
    nb: ModuleType,
    toy: SimpleNamespace,
    limits: object,
    config: object,
    random_state: int = 0,
) -> pd.DataFrame:
    """Return a continuation of the first toy piece."""
    seed = toy.pieces[0].notes.head(config.seed_notes)
    return nb.compose(toy.model, seed, limits, toy.normaliser, config, random_state)


def test_compose(nb: ModuleType, config: object, toy: SimpleNamespace, limits: object) -> None:
    """A continuation has the notes asked for, goes on in time and follows its random state."""
    notes, again, other = (compose_toy(nb, toy, limits, config, s) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(notes, again)
    assert not notes.pitch.equals(other.pitch)
    assert len(notes) == config.piece_notes
    assert (notes.step >= 0).all() and (notes.duration > 0).all()
    assert notes.pitch.between(limits.lowest, limits.highest).all()
    last = toy.pieces[0].notes.onset[config.seed_notes - 1]
    assert np.allclose(notes.onset, last + notes.step.cumsum())
    for name in ("onset", "duration"):
        assert np.allclose(notes[name] * 480, (notes[name] * 480).round(), atol=1e-6)


def test_numbers_are_those_of_the_seed(
    nb: ModuleType, toy: SimpleNamespace, limits: object, unbalanced: None
) -> None:
    """Each number composed is one that the seed has after its first note."""
    config = small_config(nb, seed_notes=24, piece_notes=60)
    seed = toy.pieces[0].notes.head(24).copy()
    seed.loc[0, ["duration", "velocity"]] = 7.25, 33
    notes = nb.compose(toy.model, seed, limits, toy.normaliser, config, 0)
    for name in ("step", "duration", "velocity"):
        known, drawn = (set(table[name].round(6)) for table in (seed[1:], notes))
        assert drawn <= known and len(drawn) > 1, name


def test_compose_spares_the_seed(
    nb: ModuleType, config: object, toy: SimpleNamespace, limits: object
) -> None:
    """Neither the seed nor the random numbers of others are touched."""
    before, state = toy.pieces[0].notes.copy(), torch.get_rng_state()
    compose_toy(nb, toy, replace(limits, voices=3), config)
    pd.testing.assert_frame_equal(toy.pieces[0].notes, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_chords_have_no_rubato(
    nb: ModuleType, config: object, performed: SimpleNamespace, limits: object
) -> None:
    """Inside a composed chord the rubato is 1, elsewhere it is one of the seed."""
    config = replace(config, piece_notes=100, seed_notes=40)
    notes = compose_toy(nb, performed, limits, config)
    chord = notes.step == 0
    assert 10 < chord.sum() < 90
    assert (notes.rubato[chord] == 1).all()
    known = performed.pieces[0].notes.rubato[1:40].unique()
    assert np.abs(notes.rubato.to_numpy()[:, None] - known).min(axis=1).max() < 1e-4
    assert len(set(notes.rubato[~chord].round(6))) > 3


@pytest.fixture
def spied(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return lists of what composing hears and says from now on, note by note."""
    seen = SimpleNamespace(heard=[], logits=[], medians=[], moments=[])
    context, recall = nb.Composer.context, nb.Composer.recall
    draw_pitch, draw = nb.draw_pitch, nb.Habits.draw

    def hearing(composer: object) -> dict:
        seen.heard.append(context(composer))
        return seen.heard[-1]

    def recalling(composer: object, pitch: int) -> dict:
        recalled = recall(composer, pitch)
        seen.heard[-1] = seen.heard[-1] | recalled
        return recalled

    def drawing_pitch(logits: torch.Tensor, *rest: object) -> int:
        seen.logits.append(logits.clone())
        return draw_pitch(logits, *rest)

    def drawing(self: object, index: int, median: object, moment: object, *rest: object) -> object:
        seen.medians.append(median.clone())
        seen.moments.append(moment.clone())
        return draw(self, index, median, moment, *rest)

    monkeypatch.setattr(nb.Composer, "context", hearing)
    monkeypatch.setattr(nb.Composer, "recall", recalling)
    monkeypatch.setattr(nb, "draw_pitch", drawing_pitch)
    monkeypatch.setattr(nb.Habits, "draw", drawing)
    return seen


@pytest.mark.parametrize("music", ["toy", "performed"])
def test_streaming_equals_one_window(
    nb: ModuleType,
    music: str,
    limits: object,
    request: pytest.FixtureRequest,
    spied: SimpleNamespace,
    unbalanced: None,
) -> None:
    """Note by note, the model hears and says what it does when given the whole piece at once."""
    toy = request.getfixturevalue(music)
    # the whole piece is given with all that its memory offers
    config = small_config(nb, window=32, piece_notes=50, distance=1)
    new = compose_toy(nb, toy, limits, config)
    start, names = config.seed_notes, toy.model.names
    notes = pd.concat([toy.pieces[0].notes.head(start), new], ignore_index=True)
    batch = whole(nb, notes, toy, config)
    with torch.no_grad():
        expected_logits, *expected = toy.model(batch)
    assert set(spied.heard[0]) == set(batch) - {"pitch", "numbers"}
    for name in spied.heard[0]:
        stream = torch.cat([values[name] for values in spied.heard], dim=1)
        assert torch.allclose(stream, batch[name][:, start:].to(stream.dtype), atol=1e-5), name
    assert batch["recalled_change"][:, start:].any()
    assert torch.allclose(torch.stack(spied.logits), expected_logits[0, start:], atol=1e-4)
    for streams, values in zip((spied.medians, spied.moments), expected, strict=True):
        stream = torch.stack(streams).view(config.piece_notes, len(names), *values.shape[3:])
        assert torch.allclose(stream, values[0, start:], atol=1e-4)


def test_recall_of_the_next_note(
    nb: ModuleType, config: object, performed: SimpleNamespace
) -> None:
    """Before the next note its numbers are recalled as they are when the piece is known."""
    seed = performed.pieces[0].notes.head(30).copy()
    # heard once and as the first note: there is none before it to have changed from
    seed.loc[0, "pitch"] = 20
    composer, kinds = nb.Composer(performed.model, seed, performed.normaliser, config), Counter()
    for pitch in (20, 100, *seed.pitch.unique()):
        notes = pd.concat([seed, seed.tail(1).assign(pitch=pitch)], ignore_index=True)
        expected = nb.recall(notes, performed.normaliser, config)
        found = composer.recall(int(pitch))
        for name, values in found.items():
            assert torch.allclose(values[0, 0], expected[name][-1], atol=1e-6), name
        kinds[bool(found["recalled"].any()), bool(found["recalled_change"].any())] += 1
    assert set(kinds) == {(False, False), (True, False), (True, True)}


@pytest.mark.parametrize("distance", [1, 4, 12, 1000])
def test_memory_proposes_from_a_distance(
    nb: ModuleType, toy: SimpleNamespace, limits: object, distance: int
) -> None:
    """While composing, the memory proposes only pitches from as far back as configured."""
    config = small_config(nb, distance=distance, piece_notes=30)
    seed = toy.pieces[0].notes.head(config.seed_notes)
    composer, proposed = nb.Composer(toy.model, seed, toy.normaliser, config), 0
    generator = torch.Generator().manual_seed(0)
    for _ in range(config.piece_notes):
        offered, batch = candidates_by_search(composer.notes["pitch"], distance), composer.context()
        assert batch["candidate"][0, 0].tolist() == [pitch for pitch, _ in offered]
        lengths = [min(length, config.match_limit) for _, length in offered]
        assert batch["candidate_length"][0, 0].tolist() == lengths
        proposed += any(lengths)
        nb.add_note(composer, limits, generator)
    assert (proposed > 10) == (distance < 1000)


def test_composer_has_the_habits_of_its_seed(
    nb: ModuleType, config: object, performed: SimpleNamespace, limits: object
) -> None:
    """The habits are those of all notes of the seed but the first, and stay so."""
    seed = performed.pieces[0].notes.head(20)
    composer = nb.Composer(performed.model, seed, performed.normaliser, config)
    with torch.no_grad():
        _, medians, moments = performed.model(whole(nb, seed, performed, config))
    numbers = torch.tensor(performed.normaliser.table(seed))
    for _ in range(2):
        habits = composer.habits
        assert torch.equal(habits.numbers, numbers[1:])
        assert torch.allclose(habits.errors, (numbers - medians[0])[1:], atol=1e-5)
        assert torch.allclose(habits.moments, moments[0, 1:], atol=1e-5)
        nb.add_note(composer, limits, torch.Generator().manual_seed(0))


def test_fewest_notes_of_the_seed(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Few notes at once are those that sound until the next begin in a share of the seed."""
    seed = with_rests(toy.pieces[0], 0.4).notes
    end, moments = seed.onset + seed.duration, sorted(set(seed.onset))[1:]
    kept = [int(((seed.onset < moment) & (end >= moment)).sum()) for moment in moments]
    shares = (0.0, 0.3, 0.6, 1.0)
    expected = [int(np.quantile(kept, share)) for share in shares]
    assert len(set(expected)) > 2
    for share, fewest in zip(shares, expected, strict=True):
        config = small_config(nb, rests=share)
        composer = nb.Composer(toy.model, seed, toy.normaliser, config)
        assert composer.fewest == fewest and type(composer.fewest) is int


def test_voices_are_those_of_seed_and_training(
    nb: ModuleType,
    config: object,
    toy: SimpleNamespace,
    limits: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After each note the voices are balanced between the seed's fewest and the training's most."""
    balanced, balance = [], nb.balance

    def balancing(notes: dict[str, list], fewest: int, most: int) -> None:
        balanced.append((len(notes["pitch"]), fewest, most))
        balance(notes, fewest, most)

    monkeypatch.setattr(nb, "balance", balancing)
    seed = toy.pieces[0].notes.head(config.seed_notes)
    fewest = nb.Composer(toy.model, seed, toy.normaliser, config).fewest
    notes = compose_toy(nb, toy, replace(limits, voices=9), config)
    places = range(len(seed) + 1, len(seed) + len(notes) + 1)
    assert fewest > 0 and balanced == [(place, fewest, 9) for place in places]


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


def test_unlikeness(nb: ModuleType) -> None:
    """Differences from the seed count in deviations of real music, and copying does not count."""
    names = ["chord rate", "mean duration", "run shared with training"]
    real = pd.DataFrame([[0.1, 1.0, 5], [0.3, 5.0, 9], [0.5, 9.0, 7]], columns=names)
    assert real.std().tolist() == pytest.approx([0.2, 4, 2])
    seed = dict(zip(names, (0.4, 3.0, 128), strict=True))
    assert nb.unlikeness(seed, seed, real) == 0
    assert nb.unlikeness(seed | {names[2]: 6}, seed, real) == 0
    # two deviations of the one and a half of the other
    other = {"chord rate": 0.0, "mean duration": 5.0, "run shared with training": 6}
    assert nb.unlikeness(other, seed, real) == pytest.approx(4 + 0.25, rel=0.02)
    # a figure that is the same in all real music makes no division by zero
    same = real.assign(**{"chord rate": 0.5})  # exactly in binary
    assert np.isfinite(nb.unlikeness(other, seed, same))


@pytest.fixture
def attempts(
    nb: ModuleType, toy: SimpleNamespace, limits: object, monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    """Return scripted attempts: `lengths` against 10 of the seed, `failed` checks, `drawn` states.

    All the notebook's global names are there that `compose_checked` needs.
    """
    script = SimpleNamespace(drawn=[], lengths=[], failed=[])
    real = pd.DataFrame({"length": [0.0, 5.0, 20.0]})
    names = {"config": small_config(nb, attempts=4), "random_state": 50, "model": toy.model}
    names |= {"limits": limits, "normaliser": toy.normaliser, "training_pitches": [], "real": real}

    def composing(*arguments: object) -> int:
        script.drawn.append(arguments[-1])
        return len(script.drawn) - 1

    def describing(notes: int | pd.DataFrame, training: list) -> dict[str, float]:
        return {"length": script.lengths[notes] if isinstance(notes, int) else 10.0}

    def checking(figures: dict[str, float], real: pd.DataFrame) -> list[str]:
        return script.failed[len(script.drawn) - 1]

    names |= {"compose": composing, "describe": describing, "failed_checks": checking}
    for name, value in names.items():
        monkeypatch.setattr(nb, name, value, raising=False)
    return script


@pytest.mark.parametrize(
    ("lengths", "failed", "kept"),
    [
        ([14.0, 9.0, 8.0, 12.0], [[], [], [], []], 1),  # the one most like the seed
        ([14.0, 9.0, 8.0, 10.0], [[], ["a"], [], ["a"]], 2),  # most like it are two that fail
        ([10.0, 9.0, 8.0, 13.0], [["a", "b"], ["a", "b"], ["b"], ["a"]], 2),  # all fail, this least
        ([9.0, 9.0, 14.0, 9.0], [[], [], [], []], 0),  # the first among equals
    ],
)
def test_best_attempt_is_kept(
    nb: ModuleType,
    toy: SimpleNamespace,
    attempts: SimpleNamespace,
    lengths: list[float],
    failed: list[list[str]],
    kept: int,
) -> None:
    """Of all attempts the one that fails least is kept, of these the one most like its seed."""
    attempts.lengths, attempts.failed = lengths, failed
    notes, row = nb.compose_checked(replace(toy.pieces[0], first=300), 2)
    assert len(attempts.drawn) == len(set(attempts.drawn)) == 4
    assert notes == kept and row["length"] == lengths[kept]
    assert row["random state"] == attempts.drawn[kept]
    assert row["failed"] == ", ".join(failed[kept])
    assert row["piece"] == "piece_2" and row["first note"] == 300
    assert row["seed from"] == toy.pieces[0].name


def test_attempts_of_pieces_differ(
    nb: ModuleType, toy: SimpleNamespace, attempts: SimpleNamespace
) -> None:
    """No two attempts have one random state, not those of other pieces either."""
    attempts.lengths, attempts.failed = [10.0] * 12, [[]] * 12
    for number in (1, 2, 3):
        nb.compose_checked(toy.pieces[0], number)
    assert len(set(attempts.drawn)) == 12


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
