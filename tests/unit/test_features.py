"""What the models read: attributes, windows, copies and context before each note."""

from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from notebook_tools import CORPUS, ROOT, chorale, piece_of
from toys import HEADS, NO_PITCH, TICK


def test_normaliser(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Attributes are standardised logarithms, by the pieces given alone, and come back."""
    normaliser, notes = nb.Normaliser(toy.pieces[:2]), toy.pieces[3].notes[HEADS[1:]]
    found = normaliser.transform(notes)
    known = np.log2(pd.concat([piece.notes[HEADS[1:]] for piece in toy.pieces[:2]]) + 1 / 16)
    expected = (np.log2(notes + 1 / 16) - known.mean()) / known.std(ddof=0)
    assert found.dtype == np.float32 and np.allclose(found, expected, atol=1e-5)
    assert np.allclose(normaliser.inverse(found), notes, 1e-5, 1e-5)
    assert not normaliser.inverse(np.full(3, -99.0)).any(), "never negative"
    steady = piece_of(nb, "steady", [(i**1.5, 60 + i, 1, 90) for i in range(9)])
    normaliser = nb.Normaliser([steady])  # its velocity is left out, its duration finite
    assert normaliser.names == HEADS[1:3] and not normaliser.transform(steady.notes)[:, 1].any()


@pytest.mark.parametrize("length", [1, 16, 500])
def test_each_position_is_in_one_window(nb: ModuleType, toy: SimpleNamespace, length: int) -> None:
    """Windows of one piece each hold its notes once; what is padded is not valid."""
    windows = nb.NoteWindows(toy.encoded, length)
    items = [windows[i] for i in range(len(windows))]
    assert len(items) == sum(-(-len(piece) // length) for piece in toy.pieces)
    for name in toy.encoded[0]:
        found = torch.cat([item[name][item["valid"]] for item in items])
        assert torch.equal(found, torch.cat([piece[name] for piece in toy.encoded])), name
        assert all(len(item[name]) == length for item in items)


@pytest.mark.parametrize(("shift", "length"), [(-6, 20), (5, NO_PITCH)])
def test_transposition(nb: ModuleType, toy: SimpleNamespace, shift: int, length: int) -> None:
    """A transposed window is that of the transposed piece; at the edges pitches stay pitches."""
    piece = toy.pieces[1]
    moved = replace(piece, notes=piece.notes.assign(pitch=piece.notes.pitch + shift))
    both = nb.encode([piece, moved], toy.normaliser, toy.config)
    window, expected = (nb.NoteWindows([encoded], length)[0] for encoded in both)
    found, valid = nb.transpose(window, shift), window["valid"]
    for part in (found, expected):  # between no pitches there is no interval
        part["parallel_interval"] = part["parallel_interval"] * (part["parallel_pitch"] < NO_PITCH)
    assert (window["parallel_pitch"] == NO_PITCH).any()
    for name, values in expected.items():
        assert torch.equal(found[name][valid], values[valid]), name
        ends = nb.transpose({name: torch.tensor([2, 125, NO_PITCH])}, shift)[name].tolist()
        assert name not in nb.PITCHES or ends == [max(0, 2 + shift), min(125 + shift, 127), 128]


def test_random_windows_stay_inside(nb: ModuleType, toy: SimpleNamespace) -> None:
    """Windows in training are transposed runs of a piece that begin up to half a window off."""
    long = toy.encoded[3] | {"place": torch.arange(len(toy.pieces[3]))}
    windows, shifts, jitters = nb.NoteWindows([long], 16, largest_shift=3), set(), set()
    torch.manual_seed(0)
    for index in list(range(len(windows))) * 30:
        item = windows[index]
        start = int(item["place"][0])
        assert torch.equal(item["place"], torch.arange(start, start + 16)) and item["valid"].all()
        shifts |= {*(item["pitch"] - long["pitch"][start : start + 16]).unique().tolist()}
        # the first and the last window cannot move freely
        jitters |= {start - 16 * index} if 0 < index < len(windows) - 2 else set()
        assert item["pitch"].diff().equal(long["pitch"][start : start + 16].diff())
    assert shifts == {*range(-3, 4)} and jitters == {*range(-8, 9)}
    padded = nb.NoteWindows(toy.encoded[:1], 500, largest_shift=3)[0]
    assert padded["valid"].tolist() == [i < len(toy.pieces[0]) for i in range(500)]


def best(values: list[int], positions: list[int]) -> tuple[int, int]:
    """Return length and position of the longest match of the latest values, the latest if equal."""
    found = (0, -1)
    for position in positions:
        ends = zip(values[:position][::-1], values[::-1], strict=False)
        length = next((i for i, (a, b) in enumerate(ends) if a != b), position)
        found = max(found, (length, position))
    return found


def copies_by_search(pitch: list[int], distance: int, now: int) -> list[tuple[int, int]]:
    """Return two candidates with their match lengths, and length and position for pitch `now`.

    The first candidate is literal, the second transposed; no interval leads to the first pitch.
    """
    found, intervals = [], [NO_PITCH, *np.diff(pitch).tolist()][: len(pitch)]
    moved, far = [pitch[-1] + interval for interval in intervals], range(len(pitch) - distance + 1)
    for values, offers, least in ((pitch, pitch, 1), (intervals, moved, 2)):
        new = [p for p in far if offers[p] in range(NO_PITCH) and offers[p] not in dict(found)]
        length, position = best(values, new)
        found.append((offers[position], length) if length >= least else (NO_PITCH, 0))
    literal = best(pitch, [p for p, there in enumerate(pitch) if there == now])
    run, position = best(intervals, [p for p, there in enumerate(moved) if there == now])
    return [*found, (run + 1, position) if position >= 0 and run + 1 > literal[0] else literal]


def test_copies_are_a_search(nb: ModuleType) -> None:
    """What may be copied is what a search through everything finds, up to the match limit."""
    rng, config = np.random.default_rng(0), replace(nb.Config(), match_limit=4)
    attributes = SimpleNamespace(names=["step"], transform=lambda note: note["step"][:, None])
    scales = range(60, 63), range(60, 72), (0, 1, 2, 125, 126, 127)
    music = np.array([rng.choice(scale, 200) for scale in scales])
    pieces = nb.PiecesSoFar(len(music), 200, attributes, config)
    for i, note in enumerate(music.T):
        other = rng.permutation(note) if i % 2 else note * 0 + 99
        for distance, now in ((1, note), (7, other)):
            found = nb.candidates(pieces, distance) | nb.copied_attributes(pieces, now)
            for k, pitch in enumerate(music[:, :i].tolist()):
                *offered, (length, at) = copies_by_search(pitch, distance, int(now[k]))
                assert found["candidate"][k].tolist() == [candidate for candidate, _ in offered]
                assert found["candidate_length"][k].tolist() == [min(n, 4) for _, n in offered]
                there, before = np.square([max(at, 0), max(at - 1, 0)]) + (at >= 0)
                assert found["copied"][k] == there and found["copied_length"][k] == min(length, 4)
                assert found["copied_change"][k] == (there - before if at > 0 else 0)
        pieces.append(dict.fromkeys(nb.COLUMNS, note * 0.0 + i**2 + 1) | {"pitch": note})


def moves_in(features: dict, row: int, i: int) -> list[tuple[int, int]]:
    """Return where parallel motion would lead, with the intervals to the notes that moved so."""
    names = "parallel_pitch", "parallel_interval"
    pairs = zip(*(features[name][row, i].tolist() for name in names), strict=True)
    return [(target, interval) for target, interval in pairs if target < NO_PITCH]


def context_by_search(notes: pd.DataFrame) -> Iterator[tuple[int, list, float, dict[str, list]]]:
    """Yield by what motion each note came; before it the moves, the first end and the context."""
    columns = notes.onset, notes.onset + notes.duration, notes.pitch
    (begin, end, pitch), sources = (column.tolist() for column in columns), []

    def lowest(group: list[int]) -> int | None:
        return min(group, key=lambda j: pitch[j], default=None)

    def waiting(now: float) -> list[int]:
        lately = [j for j in near if now - 0.5 < end[j] < now + TICK and begin[j] < now - TICK]
        return [j for j in lately if j not in sources]

    for i in range(len(notes)):
        near, now, rows, moves = range(max(0, i - 24), i), begin[max(i - 1, 0)], [], []
        ends, sounding = waiting(now), [j for j in near if end[j] - now > TICK]
        first = min([16, *(end[j] - now for j in sounding)])
        nexts = [j for j in sounding if end[j] - now < first + TICK]
        for j in near:
            struck, kinds = begin[j] > now - TICK, [j in ends, j == lowest(ends), j in nexts]
            moved = sources[j] is not None and pitch[j] - pitch[sources[j]]
            if struck and ends and moved:
                target = pitch[lowest(ends)] + moved
                moves.append((target, (target - pitch[j]) % 12))
            state = [np.tanh(max(end[j] - now, 0)), struck, *kinds, j == lowest(nexts)]
            rows += [(pitch[j], state)] if struck or j in ends or j in sounding else []
        pitches, states = zip(*([(NO_PITCH, [0] * 6)] * 12 + rows)[-12:], strict=True)
        sources.append(lowest(waiting(begin[i])))
        motion = 128 if sources[i] is None else pitch[i] - pitch[sources[i]]
        angles = [2 * np.pi * now / beats for beats in (1, 2, 3, 4)]
        yield (
            motion,
            moves,
            first,
            {
                "near_pitch": pitches,
                "near_state": states,
                "context_counts": [len(sounding), len(ends), len(nexts)],
                "context_metre": [*np.sin(angles), *np.cos(angles)],
            },
        )


def test_context_is_a_search(nb: ModuleType, toy: SimpleNamespace) -> None:
    """The context is what a search through the notes before finds, and nothing at first."""
    pedal, double = (chorale(nb, i, 28, velocity=True).notes for i in (3, 4))
    pedal.loc[3, "duration"] = 99.0  # a pedal point, forgotten after a while
    pedal.loc[9::9, "duration"] += 1e-5  # an error of rounding
    dense = pd.concat([double, double.assign(pitch=double.pitch + 4)])
    dense = piece_of(nb, "a", dense[["onset", "pitch", "duration", "velocity"]].to_numpy()).notes
    dense.loc[::3, "duration"] = 0.25  # rests, after which nothing is continued
    dense.loc[1::6, "duration"] = 0.0005  # and notes that are over at once
    long = piece_of(nb, "a", [(0, 60, 30, 90), (40, 62, 0.0001, 90), (50, 64, 1, 90)]).notes
    tables = [pedal, dense, long, toy.pieces[1].notes]
    pieces, features = nb.walk(tables, 0, toy.normaliser, toy.config)
    assert (features["parallel_pitch"] < NO_PITCH).any()
    assert (features["near_pitch"][..., 0] < NO_PITCH).any(), "never as many near notes as kept"
    for name in features.keys() - {"pitch", "attributes", "parallel_interval"}:
        assert (features[name][:, 0] == NO_PITCH * (name in nb.PITCHES)).all(), name
    for row, notes in enumerate(tables):
        for name, values in nb.shift_notes(notes, toy.normaliser).items():  # for the plain model
            assert torch.equal(values, features[name][row, : len(notes)]), name
        for i, (motion, moves, first, expected) in enumerate(context_by_search(notes)):
            assert pieces.motion[row, nb.NEAR + i] == motion and moves_in(features, row, i) == moves
            last = notes.loc[max(i - 1, 0)]
            end = dict.fromkeys(HEADS[1:3], first) | {"velocity": last.velocity}
            expected |= {
                "context_pitch": last.pitch,
                "context_attributes": toy.normaliser.transform(last),
                "context_end": toy.normaliser.transform(end),
            }
            assert {*expected} == {name for name in features if name[:4] in ("cont", "near")}
            for name, values in expected.items() if i else ():
                assert np.allclose(features[name][row, i], values, atol=1e-4), (row, name, i)


def test_sampling_sees_the_same(nb: ModuleType, toy: SimpleNamespace) -> None:
    """A chorale beside longer and shorter pieces has, bit for bit, the features it has alone."""
    path = sorted((ROOT / "data" / CORPUS).glob("*.mid"))[3]
    real = nb.read_piece(path.read_bytes(), path.name)
    pieces = [toy.pieces[0], real, chorale(nb, 9, 90, velocity=True), toy.pieces[1]]
    assert len(pieces[0]) < len(real) < len(pieces[2])
    encoded = nb.encode(pieces, toy.normaliser, toy.config)
    for piece, expected in zip(pieces[:2], encoded[:2], strict=True):
        alone = nb.PiecesSoFar(1, len(piece), toy.normaliser, toy.config)
        for i, note in enumerate(piece.notes.to_dict("records")):
            note = {name: np.array([value]) for name, value in note.items()}
            pitch = note["pitch"]
            found = nb.context(alone) | nb.candidates(alone) | nb.copied_attributes(alone, pitch)
            alone.append(note)
            found |= {"pitch": pitch, "attributes": alone.attributes[:, nb.NEAR + i]}
            assert found.keys() == expected.keys()
            for name, values in found.items():
                assert values.tobytes() == expected[name][i].numpy().tobytes(), (i, name)
