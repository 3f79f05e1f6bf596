"""The notebook's functions and classes on toy music."""

import math
import shutil
import wave
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pretty_midi
import pytest
import torch
from notebook_tools import chorale, chorale_notes, midi_bytes, piece_of, small_config

LOUD = 0.05  # of full scale


@pytest.fixture
def config(nb: ModuleType) -> object:
    """Return a small configuration."""
    return small_config(nb)


@pytest.fixture
def toy(nb: ModuleType, config: object) -> SimpleNamespace:
    """Return random pieces with a normaliser and an untrained model for them."""
    pieces = [chorale(nb, i, velocity=True) for i in range(4)]
    normaliser = nb.Normaliser(pieces, config)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, config).eval()
    return SimpleNamespace(pieces=pieces, normaliser=normaliser, model=model)


@pytest.fixture
def repertoire(nb: ModuleType, config: object, toy: SimpleNamespace) -> object:
    """Return what the toy pieces did, with no limit to the notes that sound at once."""
    loader = nb.whole_pieces(toy.pieces, toy.normaliser, config)
    found = nb.predict(toy.model, loader)
    return nb.Repertoire(found["numbers"], found["moments"], 40, 75, fewest=0, most=999)


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
    """Every tempo map gives the same beats, and its mean tempo."""
    notes = chorale_notes(1)
    steady = nb.read_piece(midi_bytes([notes]), "a.mid", config)
    rubato = ((0, 60.0), (3.25, 93.7), (4, 140.0), (10.5, 31.3), (17, 97.0))
    performed = nb.read_piece(midi_bytes([notes], rubato), "a.mid", config)
    pd.testing.assert_frame_equal(steady.notes, performed.notes)
    assert steady.tempo == pytest.approx(80, rel=1e-3)
    assert performed.tempo == pytest.approx(piece_tempo(notes, rubato), rel=1e-3)


def piece_tempo(notes: list, tempos: tuple) -> float:
    """Return the mean tempo of notes that begin at beat 0 under a tempo map."""
    end = max(onset + duration for onset, _, duration, _ in notes)
    starts = [beat for beat, _ in tempos] + [end]
    minutes = sum((b - a) / bpm for (a, b), (_, bpm) in zip(pairwise(starts), tempos, strict=True))
    return end / minutes


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


def test_constant_velocity_drops_out(nb: ModuleType, config: object) -> None:
    """A number that never changes in the training pieces is not predicted."""
    steady = nb.Normaliser([chorale(nb, i) for i in range(3)], config)
    assert steady.names == ["step", "duration"]


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


def longest_match(pitch: list[int], place: int) -> int:
    """Return how many notes before `place` equal the last ones."""
    length = 0
    while length < place and pitch[place - 1 - length] == pitch[-1 - length]:
        length += 1
    return length


def best_place(pitch: list[int], places: list[int], least: int) -> tuple[int, int]:
    """Return the place with the longest match of at least `least`, the latest among equals."""
    matches = [(longest_match(pitch, place), place) for place in places]
    length, place = max([pair for pair in matches if pair[0] >= least], default=(0, -1))
    return place, length


def test_memory(nb: ModuleType) -> None:
    """The memory names the places that a search through everything finds."""
    rng = np.random.default_rng(0)
    pitch, memory = [], nb.PieceMemory(200)
    for note in rng.integers(60, 63, 200).tolist():
        places = list(range(len(pitch)))
        first = best_place(pitch, places, least=1)
        others = [place for place in places if pitch[place] != pitch[first[0]]]
        assert memory.candidates() == [first, best_place(pitch, others, least=1)]
        same = [place for place in places if pitch[place] == note]
        assert memory.last_time(note) == best_place(pitch, same, least=0)
        memory.append(note)
        pitch.append(note)
    assert memory.last_time(99) == (-1, 0)


def test_recall(nb: ModuleType, config: object, toy: SimpleNamespace) -> None:
    """Row i holds what the memory offered before note i, as pitches and numbers."""
    phrase = chorale_notes(1, beats=6, velocity=True)
    again = [(onset + 8, pitch, 2 * duration, loud) for onset, pitch, duration, loud in phrase]
    piece = piece_of(nb, "twice", phrase + again)
    found = nb.recall(piece.notes, toy.normaliser, config)
    pitch = piece.notes.pitch.tolist()
    numbers = np.stack(
        [toy.normaliser.transform(name, piece.notes[name]) for name in toy.normaliser.names], 1
    )
    for i in range(len(pitch)):
        before = pitch[:i]
        place, length = best_place(before, list(range(i)), least=1)
        assert found["candidate"][i, 0] == (nb.NO_PITCH if place < 0 else pitch[place])
        assert found["candidate_length"][i, 0] == min(length, config.match_limit)
        same = [j for j in range(i) if pitch[j] == pitch[i]]
        place, length = best_place(before, same, least=0)
        expected = np.zeros(3) if place < 0 else numbers[place]
        assert np.allclose(found["recalled"][i], expected, atol=1e-6)
        assert found["recalled_length"][i] == min(length, config.match_limit)
    assert found["candidate"][-1, 0] == pitch[-1]


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
    with torch.no_grad():
        toy.model.pitch_head.embedding.weight.zero_()
        toy.model.pitch_head.head.output[1].bias[-2] = 100.0
    pointed = missing | {"candidate": missing["candidate"].clone()}
    pointed["candidate"][..., 0] = 33
    assert (toy.model.pitch_head(state, pointed).argmax(-1) == 33).all()
    assert (toy.model.pitch_head(state, missing) < 50).all()


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


# Drawing and composing


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


def test_streaming_equals_one_window(
    nb: ModuleType,
    toy: SimpleNamespace,
    repertoire: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Note by note, the model hears and says what it does when given the whole piece at once."""
    config = small_config(nb, window=32, piece_notes=50, recall=1.0)
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
    stream = torch.stack(moments).view(config.piece_notes, 3, -1)
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
    assert row["seed from"] == toy.pieces[0].name
    assert len(set(drawn)) == 3
    monkeypatch.setattr(nb, "failed_checks", lambda f, real: ["length", "other"])
    drawn.clear()
    notes, row = nb.compose_checked(toy.pieces[0], 2)
    assert len(drawn) == 4
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
