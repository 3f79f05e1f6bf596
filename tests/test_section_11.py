"""Sections 10 and 11: drawing pitches and numbers, choosing pieces, MIDI and sound files."""

import base64
import io
import math
import os
import re
import shutil
import wave
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mido
import numpy as np
import pandas as pd
import pretty_midi
import pytest
import torch
from notebook_tools import Note, chorale, piece_of, small_config

RANGE = SimpleNamespace(lowest=40, highest=90)
CHANCES = {50: 0.4, 55: 0.3, 60: 0.2, 65: 0.1}
FIGURES = ["mean step", "silence", "repeated 8-note runs", "run shared with training"]
needs_fluidsynth = pytest.mark.skipif(not shutil.which("fluidsynth"), reason="no FluidSynth")


def draws(nb: ModuleType, logits: torch.Tensor, top_p: float, count: int, **ends: int) -> Counter:
    """Return how often each pitch is drawn."""
    limits, generator = SimpleNamespace(**vars(RANGE) | ends), torch.Generator().manual_seed(0)
    return Counter(nb.draw_pitch(logits.clone(), limits, top_p, generator) for _ in range(count))


def with_chances() -> torch.Tensor:
    """Return logits of `CHANCES` in range, and of pitches out of range that are likelier still."""
    logits = torch.full((128,), -20.0)
    logits[[10, 39, 91, 120]] = 20.0
    for pitch, chance in CHANCES.items():
        logits[pitch] = math.log(chance)
    return logits


def test_range_of_the_training_pieces(nb: ModuleType) -> None:
    """The limits are the lowest and the highest pitch of all pieces, as plain integers."""
    pieces = [[60, 61], [45, 88, 70], [62]]
    sounding = {"context_polyphony": torch.ones(1, 1)}
    found = nb.find_limits([sounding | {"pitch": torch.tensor(piece)} for piece in pieces])
    assert (found.lowest, found.highest) == (45, 88)
    assert type(found.lowest) is type(found.highest) is int


@pytest.mark.parametrize(
    ("top_p", "others"), [(0.45, {55}), (0.8, {55, 60}), (0.95, {55, 60, 65}), (1.0, {55, 60, 65})]
)
def test_nucleus(nb: ModuleType, top_p: float, others: set[int]) -> None:
    """The favourite keeps its chance, and the nucleus of the others shares the rest in proportion.

    What lies out of range or in the tail is never drawn, and `top_p` of 1 cuts nothing.
    """
    drawn, rest = draws(nb, with_chances(), top_p, 2000), sum(CHANCES[pitch] for pitch in others)
    assert set(drawn) == {50} | others
    for pitch in drawn:
        expected = CHANCES[pitch] if pitch == 50 else 0.6 * CHANCES[pitch] / rest
        assert drawn[pitch] / 2000 == pytest.approx(expected, abs=0.04)


def test_ends_of_the_range_can_be_drawn(nb: ModuleType) -> None:
    """The lowest and the highest pitch of the training pieces are in range."""
    assert set(draws(nb, torch.zeros(128), 1.0, 100, lowest=50, highest=52)) == {50, 51, 52}


def test_sure_pitch(nb: ModuleType) -> None:
    """A pitch beside which nothing has a chance can be drawn, and so can the only one in range."""
    logits = torch.zeros(128).index_fill(0, torch.tensor(60), 300.0)
    assert set(draws(nb, logits, 0.8, 5)) == {60}
    assert set(draws(nb, logits, 0.8, 5, lowest=50, highest=50)) == {50}


def test_drawing_follows_the_generator(nb: ModuleType) -> None:
    """The same state of the generator draws the same pitches, another state others."""
    drawn = []
    for random_state in (0, 0, 1):
        torch.manual_seed(len(drawn))
        generator = torch.Generator().manual_seed(random_state)
        drawn.append([nb.draw_pitch(torch.zeros(128), RANGE, 0.9, generator) for _ in range(20)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_find_residuals(nb: ModuleType) -> None:
    """The bank holds by how much each note of the seed but the first missed its median."""
    numbers = torch.tensor([[9.0, 9], [1, 5], [2, 7]])
    medians = torch.tensor([[0.0, 0], [3, 4], [2, 1]])
    layers = torch.arange(12.0).view(3, 2, 2)
    bank = nb.find_residuals(numbers, medians, layers)
    assert bank.numbers.tolist() == [[1, 5], [2, 7]]
    assert bank.residuals.tolist() == [[-2, 1], [0, 6]]
    assert torch.equal(bank.layers, layers[1:])


@pytest.fixture
def bank(nb: ModuleType) -> object:
    """Return a bank of two numbers; the places of the second have hidden layers 0 to 5."""
    numbers = torch.tensor([0.0, 1, 2, 4, 8, 16])
    residuals = torch.tensor([-3.0, -2.2, 1.2, -1.1, 4.6, 20])
    layers = torch.arange(6.0)[:, None].expand(6, 3)
    # the first number is quite different, so that none is taken for the other
    both = (numbers.flip(0) + 0.25, numbers), (residuals - 50, residuals), (layers.flip(0), layers)
    return nb.ResidualBank(*(torch.stack(pair, dim=1) for pair in both))


@pytest.mark.parametrize(
    ("neighbours", "values"), [(1, [4]), (2, [2, 4]), (3, [1, 2, 4]), (99, [0, 1, 2, 4, 8, 16])]
)
def test_residuals_of_the_nearest_places(
    nb: ModuleType, bank: object, neighbours: int, values: list[int]
) -> None:
    """The median moves by the residuals of the nearest layers, and lands on values of the seed."""
    # the layers 2, 3, 1, 4 are the nearest, in this order; they make 4.2, 1.9, .8 and 7.6
    offered = bank.values(1, torch.tensor([3.0]), torch.full((1, 3), 2.1), neighbours)
    assert sorted(offered[0].tolist()) == values


def test_median_without_neighbours(bank: object) -> None:
    """With no neighbours the value of the seed nearest to the median is played."""
    medians = torch.tensor([-5.0, 2.9, 3.1, 7.0, 99.0])
    offered = bank.values(1, medians, torch.zeros(5, 3), 0)
    assert offered.tolist() == [[0], [2], [4], [8], [16]]


@pytest.mark.parametrize(("neighbours", "columns"), [(0, 1), (1, 1), (4, 4), (6, 6), (9, 6)])
def test_only_values_of_the_seed(bank: object, neighbours: int, columns: int) -> None:
    """Each place is offered as many values as it has neighbours, all of this number in the seed."""
    torch.manual_seed(0)
    for index in (0, 1):
        offered = bank.values(index, 9 * torch.randn(50), 3 * torch.randn(50, 3), neighbours)
        assert offered.shape == (50, columns)
        assert set(offered.flatten().tolist()) <= set(bank.numbers[:, index].tolist())


def table(nb: ModuleType, notes: list[Note]) -> pd.DataFrame:
    """Return the table of the notes."""
    return piece_of(nb, "a", notes).notes


def unisons(nb: ModuleType, random_state: int, grid: int = 30) -> pd.DataFrame:
    """Return random notes of four pitches on a grid in ticks; they often meet on a pitch."""
    rng = np.random.default_rng(random_state)
    onset, length = rng.integers(40, 300, 100) * grid, rng.integers(1, 40, 100) * grid
    pitch, velocity = rng.integers(60, 64, 100), rng.integers(1, 128, 100)
    return nb.note_table(onset / 480, pitch, (onset + length) / 480, velocity)


def in_ticks(notes: pd.DataFrame) -> list[tuple[int, ...]]:
    """Return onset from the first one, pitch, duration and velocity of the notes, sorted."""
    onset, duration = (
        np.rint(480 * times).astype(int)
        for times in (notes.onset - notes.onset.iloc[0], notes.duration)
    )
    return sorted(zip(onset, notes.pitch, duration, notes.velocity, strict=True))


def written(nb: ModuleType, notes: pd.DataFrame, program: int = 0) -> pretty_midi.PrettyMIDI:
    """Return the MIDI file that is written of the notes, as pretty_midi reads it."""
    return pretty_midi.PrettyMIDI(io.BytesIO(nb.midi_bytes(notes, 90, program)))


@pytest.mark.parametrize("tempo", [37, 80, 93, 143.7])
def test_what_is_written_is_read_back(nb: ModuleType, tempo: float) -> None:
    """Every note comes back with its onset, pitch, duration and velocity, however many meet."""
    for random_state in range(5):
        notes = unisons(nb, random_state, grid=7)
        back = nb.read_back(notes, tempo, nb.Config(programs=(3,)))
        assert in_ticks(back) == in_ticks(notes)
        assert back.onset.iloc[0] == 0


@pytest.mark.parametrize(
    ("second", "parts"),
    [
        ((1, 60, 2, 90), 2),  # together
        ((2, 60, 0.5, 90), 2),  # struck while the other sounds
        ((3, 60, 1, 90), 1),  # where the other ends
        ((4, 60, 1, 90), 1),  # later
        ((2, 61, 2, 90), 1),  # on another pitch
    ],
)
def test_parts_of_two_notes(nb: ModuleType, second: Note, parts: int) -> None:
    """A note needs a further part only while its own pitch sounds."""
    notes = table(nb, [(1, 60, 2, 90), second, (6, 60, 1, 90), (6, 61, 1, 90)])
    assert [len(part.notes) for part in written(nb, notes).instruments] == [5 - parts, 1][:parts]


def test_rounding_opens_no_part(nb: ModuleType) -> None:
    """A note that starts where one of its pitch ends stays in its part on every grid of ticks."""
    for tick in range(1, 480, 7):
        notes = [(0, 50, 1, 90), (31 / 480, 60, tick / 480, 90), ((31 + tick) / 480, 60, 1, 90)]
        assert len(written(nb, table(nb, notes)).instruments) == 1


def test_as_many_parts_as_notes_of_a_pitch(nb: ModuleType) -> None:
    """There are as many parts as notes of one pitch sound at once, all of the same program."""
    for random_state in range(5):
        notes = unisons(nb, random_state)
        end = notes.onset + notes.duration
        now = [(notes.onset <= onset) & (end > onset) for onset in notes.onset]
        most = max(notes.pitch[sounding].value_counts().max() for sounding in now)
        parts = written(nb, notes, program=5).instruments
        assert len(parts) == most > 2
        assert {(part.program, part.is_drum) for part in parts} == {(5, False)}


def test_one_part_without_unisons(nb: ModuleType) -> None:
    """Four voices that never meet on a pitch make one part."""
    assert len(written(nb, chorale(nb, 1).notes).instruments) == 1


@pytest.mark.parametrize("tempo", [37, 80, 143.7])
def test_tempo_is_written(nb: ModuleType, tempo: float) -> None:
    """The tempo stands once at the beginning of the file, and the first note is at time zero."""
    data = nb.midi_bytes(unisons(nb, 0), tempo, 0)
    events = [message for track in mido.MidiFile(file=io.BytesIO(data)).tracks for message in track]
    (event,) = (event for event in events if event.type == "set_tempo")
    assert event.time == 0 and event.tempo == pytest.approx(6e7 / tempo, abs=1)
    piece = nb.read_piece(data, "a.mid", nb.Config())
    assert piece.tempo == pytest.approx(tempo, rel=1e-4)
    assert piece.notes.onset.iloc[0] == piece.notes.step.iloc[0] == 0


def test_description_survives_the_file(nb: ModuleType) -> None:
    """The figures of what is read are those of what was composed."""
    notes = unisons(nb, 1)
    assert nb.describe(nb.read_back(notes, 93, nb.Config())) == pytest.approx(nb.describe(notes))


def test_describe(nb: ModuleType) -> None:
    """The figures of a small piece with two chords and a silence equal those counted by hand."""
    onsets, pitches = (7, 7, 8, 10, 10.03, 11, 12, 12.75), (60, 64, 62, 60, 67, 65, 69, 71)
    lengths, loudness = (1, 1, 0.5, 1, 0.97, 2, 0.5, 0.25), [80, 100] * 4
    found = nb.describe(table(nb, list(zip(onsets, pitches, lengths, loudness, strict=True))))
    expected = {
        "chord rate": 2 / 7,
        "mean step": (1 + 2 + 0.97 + 1 + 0.75) / 5,
        "step spread": np.std([0, 1, 2, 0.03, 0.97, 1, 0.75]),
        "mean duration": 7.22 / 8,
        "duration spread": np.log2(np.array(lengths) + 1 / 16).std(),
        "distinct pitches": 7,
        "mean pitch": sum(pitches) / 8,
        "pitch range": 11,
        "notes sounding": 7.22 / 4.5,  # of 6 beats, 1.5 are silent
        "silence": 1.5 / 6,
        "repeated 8-note runs": 0,
        "velocity spread": 10,
    }
    assert found == pytest.approx(expected)


def test_repeated_runs(nb: ModuleType) -> None:
    """Of the five runs of eight notes in a figure of four, played three times, one is repeated."""
    notes = table(nb, [(i, (60, 64, 67, 72)[i % 4], 3, 90) for i in range(12)])
    assert nb.describe(notes)["repeated 8-note runs"] == pytest.approx(1 / 5)


@pytest.mark.parametrize(("count", "step"), [(8, 0), (8, 1), (4, 0), (2, 1)])
def test_describe_hardly_any_music(nb: ModuleType, count: int, step: int) -> None:
    """One chord, or a few notes, can be described, too."""
    found = nb.describe(table(nb, [(i * step, 60 + i, 1, 90) for i in range(count)]))
    assert all(map(math.isfinite, found.values()))
    assert (found["chord rate"], found["mean step"]) == (1 - step, step)
    assert found["silence"] == found["repeated 8-note runs"] == found["velocity spread"] == 0


def test_excerpts(nb: ModuleType) -> None:
    """Excerpts have one length, follow each other and cross no piece."""
    long, short = chorale(nb, 0), chorale(nb, 1)
    pieces = [replace(long, notes=long.notes[:25]), replace(short, notes=short.notes[:9])]
    pieces.append(replace(short, notes=short.notes[:10]))
    expected = [long.notes[:10], long.notes[10:20], short.notes[:10]]
    for part, notes in zip(nb.excerpts(pieces, 10), expected, strict=True):
        assert part.notes.equals(notes)
    assert [len(part) for part in nb.excerpts(pieces, 10, most=1)] == [10, 10]


def openings(nb: ModuleType, works: str, random_state: int) -> list[object]:
    """Return the seeds that are chosen from a piece of each work and one that is too short."""
    pieces = [replace(chorale(nb, i), name=f"{i}", work=work) for i, work in enumerate(works)]
    pieces.append(replace(pieces[0], name="short", work="z", notes=pieces[0].notes.head(15)))
    seeds = nb.choose_seeds(pieces, small_config(nb, seed_notes=16), random_state)
    for seed in seeds:
        assert seed.notes.equals(pieces[int(seed.name)].notes.head(16))
    return seeds


@pytest.mark.parametrize(
    ("works", "chosen"), [("aaaaabc", "abc"), ("aaab", "aab abb"), ("ab", "aab abb"), ("a", "aaa")]
)
def test_seeds_are_of_different_works(nb: ModuleType, works: str, chosen: str) -> None:
    """Three openings of long enough pieces are chosen, of different works as far as there are."""
    for random_state in range(10):
        seeds = openings(nb, works, random_state)
        assert "".join(sorted(seed.work for seed in seeds)) in chosen.split()
        assert len({seed.name for seed in seeds}) == min(3, len(works))


def test_seeds_follow_the_random_state(nb: ModuleType) -> None:
    """The same random state chooses the same seeds, and not all choose the same."""
    names = [[s.name for s in openings(nb, "abcdef", i % 5)] for i in range(10)]
    assert names[:5] == names[5:] and len(set(map(tuple, names))) > 1


@pytest.fixture
def real() -> pd.DataFrame:
    """Return figures of real excerpts; the mean step has a deviation of 2, the silence of .1."""
    rows = [[4, 0.2, 0.1, 8], [6, 0.3, 0.2, 10], [8, 0.4, 0.3, 12]]
    return pd.DataFrame(rows, columns=FIGURES).astype(float)


@pytest.mark.parametrize(
    ("values", "failed"),
    [
        ((5, 0.3, 0.2, 10), []),
        ((4, 0.4, 0.3, 12), []),  # the ends are inside
        ((3.9, 0.3, 0.2, 10), FIGURES[:1]),
        ((8.1, 0.3, 0.2, 10), FIGURES[:1]),
        ((5, 0, 0, 0), []),  # less of these is no fault
        ((9, 0.5, 0.4, 13), FIGURES),
        ((math.nan, 0.3, 0.2, 10), FIGURES[:1]),
    ],
)
def test_failed_checks(
    nb: ModuleType, real: pd.DataFrame, values: tuple[float, ...], failed: list[str]
) -> None:
    """A figure outside the real ones is named, but copying, repeating and resting may be less."""
    before = real.copy()
    assert nb.failed_checks(pd.Series(values, FIGURES), real) == failed
    assert real.equals(before)


def test_unlikeness(nb: ModuleType, real: pd.DataFrame) -> None:
    """Differences from the seed count in deviations of real music, and copying does not count."""
    seed, other = pd.Series([5, 0.3, 0.2, 128], FIGURES), pd.Series([9, 0.25, 0.2, 3], FIGURES)
    assert nb.unlikeness(seed, seed, real) == 0
    assert nb.unlikeness(other, seed, real) == pytest.approx(4 + 0.25, rel=0.02)
    # a figure that is the same in all real music makes no division by zero
    assert math.isfinite(nb.unlikeness(other, seed, real.assign(silence=0.25)))


@pytest.mark.parametrize(
    ("steps", "shared", "kept"),
    [
        ((7.5, 6.5, 5.5, 4.5), (9, 9, 9, 9), 2),  # the one most like the seed
        ((7.5, 6.5, 5.5, 5.2), (9, 9, 13, 13), 1),  # those most like it fail
        ((5.0, 9.5, 9.0, 5.5), (13, 13, 13, 13), 0),  # all fail
        ((8.5, 9.0, 3.0, 3.5), (13, 9, 13, 13), 1),  # all fail, this one least
        ((6.0, 4.0, 4.0, 6.0), (9, 9, 9, 9), 0),  # the first among equals
    ],
)
def test_choose(nb: ModuleType, real: pd.DataFrame, steps: tuple, shared: tuple, kept: int) -> None:
    """Of the attempts that fail least the one most like the seed is kept, and no other."""
    attempts = real.iloc[[1] * 4].assign(**dict(zip(FIGURES[::3], (steps, shared), strict=True)))
    seed = pd.Series([5.0, 0.3, 0.2, 128], FIGURES)
    chosen = nb.choose(attempts, seed, real)
    assert np.flatnonzero(chosen.kept).tolist() == [kept]
    for (_, row), result in zip(attempts.iterrows(), chosen.to_dict("records"), strict=True):
        assert result["failed"] == ", ".join(nb.failed_checks(row, real))
        assert result["unlike the seed"] == nb.unlikeness(row, seed, real)


def test_figures_of(nb: ModuleType) -> None:
    """To the description comes the longest run of pitches that training pieces hold as well."""
    notes = chorale(nb, 1).notes
    training = [np.append(notes.pitch[5:14], 1), np.append(notes.pitch[30:37], 1)]
    figures = nb.figures_of([notes, notes.head(10)], training)
    assert figures["run shared with training"].tolist() == [9, 5]
    assert figures.iloc[0].drop("run shared with training").to_dict() == nb.describe(notes)


def test_pieces_table(nb: ModuleType) -> None:
    """Each piece has the row of its seed and then its attempts, of which one is kept."""
    music, training = [chorale(nb, i) for i in range(12)], [chorale(nb, 99).notes.pitch.to_numpy()]
    seeds = [replace(music[3 * i], first=10 * i) for i in range(3)]
    figures = nb.figures_of([piece.notes for piece in music], training)
    attempts, real = [music[i].notes for i in (1, 2, 4, 5, 7, 8)], figures[9:]
    found = nb.pieces_table(seeds, attempts, list(range(50, 56)), real, training)
    kinds = ("seed", "attempt", "attempt")
    rows = [[i + 1, kind, seeds[i].name, 10 * i] for i in range(3) for kind in kinds]
    assert found[["piece", "kind", "seed from", "first note"]].values.tolist() == rows
    assert found["random state"].dropna().tolist() == list(range(50, 56))
    assert found[figures.columns].to_numpy() == pytest.approx(figures[:9].to_numpy())
    for i in (0, 3, 6):
        chosen = nb.choose(figures[i + 1 : i + 3], figures.iloc[i], real)
        assert found.kept[i : i + 3].tolist() == [False, *chosen.kept]
        assert (
            found["unlike the seed"][i + 1 : i + 3].tolist() == chosen["unlike the seed"].tolist()
        )


def wav_file(samples: list[list[int]], rate: int = 8000) -> bytes:
    """Return a 16-bit WAV of the samples, one list a channel."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((len(samples), 2, rate, 0, "NONE", ""))
        sound.writeframes(np.array(samples, dtype="<i2").T.tobytes())
    return file.getvalue()


@pytest.fixture
def midi(nb: ModuleType) -> bytes:
    """Return a MIDI file of a few notes, three beats at 180 beats per minute."""
    return nb.midi_bytes(table(nb, [(0, 48, 3, 90), (0, 60, 1, 70), (1, 64, 2, 90)]), 180, 0)


def check_sound(nb: ModuleType, sound: bytes, rate: int) -> None:
    """Check that a WAV of `midi` is mono, 16-bit, a second longer than it, and loud."""
    with wave.open(io.BytesIO(sound)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, rate)
        assert file.getnframes() / rate == pytest.approx(2, abs=0.01)
    samples = nb.samples_of(sound)
    assert np.abs(samples).max() == pytest.approx(0.9, abs=1e-3)
    assert np.sqrt(np.mean(samples[: rate // 2] ** 2)) > 0.05


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, the only one in which programs are found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@needs_fluidsynth
def test_sound_by_fluidsynth(nb: ModuleType, midi: bytes, capfd: pytest.CaptureFixture) -> None:
    """FluidSynth plays the file, and prints nothing."""
    sound, name = nb.wav_bytes(midi, nb.RATE)
    assert name == "FluidSynth" and capfd.readouterr() == ("", "")
    check_sound(nb, sound, nb.RATE)


def test_sound_without_fluidsynth(nb: ModuleType, midi: bytes, programs: Path) -> None:
    """Without the program pretty_midi plays, and the name says so."""
    assert nb.play(midi, ".oga", 8000) == b""
    sound, name = nb.wav_bytes(midi, nb.RATE)
    assert name == "PrettyMIDI.synthesize()"
    check_sound(nb, sound, nb.RATE)


@pytest.mark.parametrize(
    "made", [None, b"", b"garbage", b"RIFF\4\0\0\0WAVE", wav_file([[0, 1, -1] * 9000] * 2)]
)
def test_broken_fluidsynth(
    nb: ModuleType, midi: bytes, programs: Path, capfd: pytest.CaptureFixture, made: bytes | None
) -> None:
    """Where the program makes no file, no WAV or silence, pretty_midi plays, too."""
    if made is not None:
        (programs / "made").write_bytes(made)
    script = f"#!/bin/sh\necho failed >&2\n/bin/cp '{programs}/made' \"$5\"\nexit 1\n"
    (programs / "fluidsynth").write_text(script)
    (programs / "fluidsynth").chmod(0o755)
    assert nb.play(midi, ".wav", 8000) == (made or b"")
    sound, name = nb.wav_bytes(midi, 8000)
    assert name == "PrettyMIDI.synthesize()" and capfd.readouterr() == ("", "")
    check_sound(nb, sound, 8000)


def test_samples(nb: ModuleType) -> None:
    """The channels of a WAV are mixed, full scale is 1, and what is no WAV holds no samples."""
    samples = nb.samples_of(wav_file([[16384, -32768, 0], [0, -32768, 8192]]))
    assert samples.tolist() == [0.25, -1, 0.125]
    assert len(nb.samples_of(b"")) == len(nb.samples_of(b"RIFFxxxxjunk")) == 0


@pytest.mark.parametrize("error", [None, KeyError])
def test_silenced(nb: ModuleType, capfd: pytest.CaptureFixture, error: type | None) -> None:
    """Both streams are mute inside and come back afterwards, also after an error."""
    before = len(os.listdir("/dev/fd"))
    with suppress(KeyError), nb.silenced():
        os.system("echo lost; echo lost >&2")
        if error:
            raise error
    os.system("echo back; echo back too >&2")
    assert capfd.readouterr() == ("back\n", "back too\n")
    assert len(os.listdir("/dev/fd")) == before


def test_file_facts(nb: ModuleType, tmp_path: Path) -> None:
    """The facts are those of the files of this piece."""
    notes = table(nb, [(5, 60, 4, 90), (6, 60, 1, 90), (7, 64, 5, 90)])
    (tmp_path / "piece_2.mid").write_bytes(nb.midi_bytes(notes, 120, 0))
    (tmp_path / "seed_2.mid").write_bytes(nb.midi_bytes(notes.head(2), 120, 0))
    sound = wav_file([[16384, -16384, 0, 0] * nb.RATE], nb.RATE)
    (tmp_path / "piece_2.wav").write_bytes(sound)
    expected = {"notes": 3, "seed notes": 2, "parts": 2, "MIDI (s)": 3.5, "WAV (s)": 4}
    expected |= {"RMS": 0.5**1.5, "peak": 0.5, "MB": len(sound) / 1e6}
    assert nb.file_facts(tmp_path, 2, nb.Config()) == pytest.approx(expected)


def slow_crc(page: bytes) -> int:
    """Return the checksum of an Ogg page bit by bit, as RFC 3533 defines it."""
    register = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        register ^= byte << 24
        for _ in range(8):
            register = (register << 1 ^ (0x104C11DB7 if register >> 31 else 0)) & 0xFFFFFFFF
    return register


def ogg_file(serial: int) -> bytes:
    """Return an Ogg file of three pages in the stream of this number."""
    file, rng = b"", np.random.default_rng(0)
    for number, flags in enumerate((2, 0, 4)):
        data = rng.bytes(300) + b"OggS!" * 2
        head = b"OggS\0" + bytes([flags]) + (1000 * number).to_bytes(8, "little")
        head += serial.to_bytes(4, "little") + number.to_bytes(4, "little")
        page = head + bytes(4) + bytes([2, 255, len(data) - 255]) + data
        file += page[:22] + slow_crc(page).to_bytes(4, "little") + page[26:]
    return file


@pytest.mark.parametrize("serial", [0, 1, 0x12345678, 0xFFFFFFFF])
def test_fixed_serial(nb: ModuleType, serial: int) -> None:
    """The number of the stream becomes 0, the checksums follow, and nothing else changes."""
    assert nb.fixed_serial(ogg_file(serial)) == ogg_file(0)
    assert nb.fixed_serial(b"") == b""


@needs_fluidsynth
def test_ogg_of_fluidsynth(nb: ModuleType, midi: bytes) -> None:
    """Two renderings are one file, whose pages follow each other and have the right checksums."""
    played = nb.play(midi, ".oga", 16000)
    file = nb.fixed_serial(played)
    assert nb.fixed_serial(nb.play(midi, ".oga", 16000)) == file and len(file) == len(played)
    place, flags = 0, []
    while place < len(file):
        segments = file[place + 27 : place + 27 + file[place + 26]]
        page = file[place : place + 27 + len(segments) + sum(segments)]
        assert page[:5] == b"OggS\0" and page[14:18] == bytes(4)
        assert int.from_bytes(page[18:22], "little") == len(flags)
        assert int.from_bytes(page[22:26], "little") == slow_crc(page)
        flags.append(page[5])
        place += len(page)
    assert (flags[0], flags[-1] & 4) == (2, 4)
    assert b"\1vorbis" in file[:60]


def test_player(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page holds the title as text and the sound of the seed, played softly, and the piece."""
    piece, played = chorale(nb, 1, velocity=True), []
    seed, notes = replace(piece, notes=piece.notes[:30]), piece.notes[30:]
    monkeypatch.setattr(nb, "play", lambda midi, *_: played.append(midi) or ogg_file(7))
    page = nb.player(seed, notes, 80, "a <b> & 'c'", nb.Config())
    assert "a &lt;b&gt; &amp; &#x27;c&#x27;" in page and "<b>" not in page
    (source,) = re.findall(r"<audio controls src='data:audio/ogg;base64,([\w+/=]+)'>", page)
    assert base64.b64decode(source) == ogg_file(0)
    softly = (seed.notes.velocity * 0.6).astype(int)
    expected = pd.concat([seed.notes.assign(velocity=softly), notes])
    heard = nb.read_piece(played[0], "a.mid", nb.Config()).notes
    assert in_ticks(heard) == in_ticks(expected)


def test_player_without_fluidsynth(nb: ModuleType, programs: Path) -> None:
    """Without FluidSynth the page holds a WAV."""
    piece = chorale(nb, 1, beats=4)
    seed, notes = replace(piece, notes=piece.notes[:8]), piece.notes[8:]
    page = nb.player(seed, notes, 120, "a", nb.Config())
    (source,) = re.findall(r"<audio controls src='data:audio/wav;base64,([\w+/=]+)'>", page)
    assert np.abs(nb.samples_of(base64.b64decode(source))).max() == pytest.approx(0.9, abs=1e-3)
