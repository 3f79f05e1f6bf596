"""Section 11: choosing pieces, and their MIDI and sound files."""

import base64
import io
import math
import re
import shutil
import wave
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pretty_midi
import pytest
from notebook_tools import Note, chorale, piece_of, small_config

FIGURES = ["mean step", "silence", "repeated 8-note runs", "run shared with training"]
needs_fluidsynth = pytest.mark.skipif(not shutil.which("fluidsynth"), reason="no FluidSynth")


def unisons(nb: ModuleType, random_state: int, grid: int = 30) -> object:
    """Return random notes of four pitches on a grid in ticks; they often meet on a pitch."""
    rng = np.random.default_rng(random_state)
    onset, length = rng.integers(40, 300, 100) * grid / 480, rng.integers(1, 40, 100) * grid / 480
    pitch, velocity = rng.integers(60, 64, 100), rng.integers(1, 128, 100)
    return piece_of(nb, "unisons", list(zip(onset, pitch, length, velocity, strict=True)))


def in_ticks(notes: pd.DataFrame) -> list[tuple[int, ...]]:
    """Return onset from the first one, pitch, duration and velocity of the notes, sorted."""
    times = notes.onset - notes.onset.iloc[0], notes.duration
    onset, duration = (np.rint(480 * time).astype(int) for time in times)
    return sorted(zip(onset, notes.pitch, duration, notes.velocity, strict=True))


def parts_of(nb: ModuleType, piece: object) -> list:
    """Return the parts of the MIDI file that is written of a piece, as pretty_midi reads them."""
    return pretty_midi.PrettyMIDI(io.BytesIO(nb.midi_bytes(piece))).instruments


@pytest.mark.parametrize("tempo", [37, 80, 143.7])
def test_what_is_written_is_read_back(nb: ModuleType, tempo: float) -> None:
    """Tempo and notes come back on the grid, from zero, one step after the seed."""
    for random_state in range(5):
        piece = replace(unisons(nb, random_state, grid=7), tempo=tempo, program=3)
        exact = piece.notes.assign(step=lambda notes: notes.step + 0.25)
        shifted = exact.assign(onset=exact.onset + 1e-4, duration=exact.duration - 1e-4)
        back = nb.read_back(replace(piece, notes=shifted))
        assert (back.name, back.tempo, back.program) == ("unisons", tempo, 3)
        assert in_ticks(back.notes) == in_ticks(exact) and list(back.notes) == list(nb.COLUMNS)
        assert back.notes.onset[0] == 0 and back.notes.step[0] == exact.step[0] == 0.25
        assert np.allclose(back.notes.step[1:], np.diff(back.notes.onset))
        assert np.allclose(back.notes.duration * 480, (back.notes.duration * 480).round())
    assert nb.read_piece(nb.midi_bytes(piece), "a.mid").tempo == pytest.approx(tempo, rel=1e-4)


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
    piece = piece_of(nb, "a", [(1, 60, 2, 90), second, (6, 60, 1, 90), (6, 61, 1, 90)])
    assert [len(part.notes) for part in parts_of(nb, piece)] == [5 - parts, 1][:parts]


def test_as_many_parts_as_notes_of_a_pitch(nb: ModuleType) -> None:
    """There are as many parts as notes of one pitch sound at once, all of the same program."""
    counts = set()
    for piece in [*(unisons(nb, random_state) for random_state in range(5)), chorale(nb, 1)]:
        notes = piece.notes
        end = notes.onset + notes.duration
        now = [(notes.onset <= onset) & (end > onset) for onset in notes.onset]
        most = max(notes.pitch[sounding].value_counts().max() for sounding in now)
        parts = parts_of(nb, replace(piece, program=5))
        assert [(part.program, part.is_drum) for part in parts] == [(5, False)] * most
        counts.add(most)
    assert min(counts) == 1 and max(counts) > 2
    # a note that starts where one of its pitch ends stays in its part on every grid of ticks
    for tick in range(1, 480, 7):
        notes = [(0, 50, 1, 90), (31 / 480, 60, tick / 480, 90), ((31 + tick) / 480, 60, 1, 90)]
        assert len(parts_of(nb, piece_of(nb, "a", notes))) == 1


def test_describe(nb: ModuleType) -> None:
    """The figures of a small piece with two chords and a silence equal those counted by hand."""
    onsets, pitches = (7, 7, 8, 10, 10.03, 11, 12, 12.75), (60, 64, 62, 60, 67, 65, 69, 71)
    lengths, loudness = (1, 1, 0.5, 1, 0.97, 2, 0.5, 0.25), [80, 100] * 4
    notes = list(zip(onsets, pitches, lengths, loudness, strict=True))
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
    assert nb.describe(piece_of(nb, "a", notes).notes) == pytest.approx(expected)


def test_repeated_runs(nb: ModuleType) -> None:
    """Of the five runs of eight notes in a figure of four, played three times, one is repeated."""
    piece = piece_of(nb, "a", [(i, (60, 64, 67, 72)[i % 4], 3, 90) for i in range(12)])
    assert nb.describe(piece.notes)["repeated 8-note runs"] == pytest.approx(1 / 5)


@pytest.mark.parametrize(("count", "step"), [(8, 0), (8, 1), (4, 0), (2, 1)])
def test_describe_hardly_any_music(nb: ModuleType, count: int, step: int) -> None:
    """One chord, or a few notes, can be described, too."""
    piece = piece_of(nb, "a", [(i * step, 60 + i, 1, 90) for i in range(count)])
    found = nb.describe(piece.notes)
    assert all(map(math.isfinite, found.values()))
    assert (found["chord rate"], found["mean step"]) == (1 - step, step)
    assert found["silence"] == found["repeated 8-note runs"] == found["velocity spread"] == 0


def test_excerpts(nb: ModuleType) -> None:
    """Excerpts have one length, follow each other, cross no piece and say where they begin."""
    music = [chorale(nb, 0), chorale(nb, 1), replace(chorale(nb, 2), first=50)]
    lengths = zip(music, (25, 9, 10), strict=True)
    pieces = [replace(piece, notes=piece.notes[:length]) for piece, length in lengths]
    found = nb.excerpts(pieces, 10)
    expected = [music[0].notes[:10], music[0].notes[10:20], music[2].notes[:10]]
    assert all(a.notes.equals(b) for a, b in zip(found, expected, strict=True))
    names = [(part.name, part.first) for part in found]
    assert names == [(music[0].name, 0), (music[0].name, 10), (music[2].name, 50)]
    assert [part.first for part in nb.excerpts(pieces, 10, most=1)] == [0, 50]


def test_figures_of(nb: ModuleType) -> None:
    """To the description comes the longest run of pitches that training pieces hold as well."""
    piece = chorale(nb, 1)
    training = [np.append(piece.notes.pitch[start:end], 1) for start, end in ((5, 14), (30, 37))]
    figures = nb.figures_of([piece, replace(piece, notes=piece.notes[:10])], training)
    assert figures["run shared with training"].tolist() == [9, 5]
    assert figures.iloc[0].drop("run shared with training").to_dict() == nb.describe(piece.notes)


@pytest.mark.parametrize(
    ("works", "chosen"), [("aaaaabc", "abc"), ("aaab", "aab abb"), ("ab", "aab abb"), ("a", "aaa")]
)
def test_seeds(nb: ModuleType, works: str, chosen: str) -> None:
    """Three openings of long enough pieces are drawn, of different works as far as there are."""
    pieces = [
        replace(chorale(nb, i), name=f"{work}_{i}", tempo=80.4) for i, work in enumerate(works)
    ]
    short, drawn = replace(pieces[0], name="z_99", notes=pieces[0].notes.head(15)), []
    for random_state in [*range(10), 0]:
        seeds = nb.choose_seeds([*pieces, short], small_config(nb, seed_notes=16), random_state)
        for seed in seeds:
            assert seed.notes.equals(pieces[int(seed.name[2:])].notes.head(16)) and seed.tempo == 80
        assert "".join(sorted(seed.work for seed in seeds)) in chosen.split()
        drawn.append(tuple(seed.name for seed in seeds))
        assert len(set(drawn[-1])) == min(3, len(works))
    assert drawn[0] == drawn[-1] and (len(set(drawn)) > 1) == (len(works) > 1)


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
    ],
)
def test_failed_figures(
    nb: ModuleType, real: pd.DataFrame, values: tuple[float, ...], failed: list[str]
) -> None:
    """A figure outside the real ones is named, but copying, repeating and resting may be less."""
    attempt = pd.DataFrame([values], columns=FIGURES)
    assert nb.choose(attempt, real.iloc[0], real).failed.tolist() == [", ".join(failed)]


def test_unlike(nb: ModuleType, real: pd.DataFrame) -> None:
    """Differences from the seed count in deviations of real music, and copying does not count."""
    seed, other = [5, 0.3, 0.2, 128], [9, 0.25, 0.2, 3]
    attempts = pd.DataFrame([seed, other], columns=FIGURES)
    found = nb.choose(attempts, attempts.iloc[0], real)
    assert found[FIGURES].equals(attempts)
    assert found.unlike.tolist() == [0, pytest.approx(4 + 0.25, rel=0.02)]
    # a figure that is the same in all real music makes no division by zero
    found = nb.choose(attempts, attempts.iloc[0], real.assign(silence=0.25))
    assert np.isfinite(found.unlike).all()


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
def test_kept(nb: ModuleType, real: pd.DataFrame, steps: tuple, shared: tuple, kept: int) -> None:
    """Of the attempts that fail least the one most like the seed is kept, and no other."""
    attempts = real.iloc[[1] * 4].assign(**dict(zip(FIGURES[::3], (steps, shared), strict=True)))
    chosen = nb.choose(attempts, pd.Series([5.0, 0.3, 0.2, 128], FIGURES), real)
    assert np.flatnonzero(chosen.kept).tolist() == [kept]


def wav_file(samples: list[list[int]], rate: int = 8000) -> bytes:
    """Return a 16-bit WAV of the samples, one list a channel."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((len(samples), 2, rate, 0, "NONE", ""))
        sound.writeframes(np.array(samples, dtype="<i2").T.tobytes())
    return file.getvalue()


@pytest.fixture
def midi(nb: ModuleType) -> bytes:
    """Return a MIDI file of a tone of 440 Hz, three beats at 180 beats per minute, and softer."""
    piece = piece_of(nb, "a", [(0, 69, 1, 60), (1, 69, 2, 50)])
    return nb.midi_bytes(replace(piece, tempo=180))


def check_sound(nb: ModuleType, sound: bytes, rate: int) -> None:
    """Check that a WAV of `midi` is mono, 16-bit, a second longer than it, in tune and loud."""
    with wave.open(io.BytesIO(sound)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, rate)
        assert file.getnframes() / rate == pytest.approx(2, abs=0.01)
    samples = nb.samples_of(sound)
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.1, abs=1e-3)
    spectrum = np.abs(np.fft.rfft(samples[:rate]))[: 1000 if rate > 2000 else None]
    assert spectrum.argmax() == pytest.approx(440, abs=3)


def fake_fluidsynth(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let nothing be found but, if given, a script in place of FluidSynth."""
    monkeypatch.setenv("PATH", str(folder))
    if script:
        (folder / "fluidsynth").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "fluidsynth").chmod(0o755)


@needs_fluidsynth
def test_sound_by_fluidsynth(nb: ModuleType, midi: bytes, capfd: pytest.CaptureFixture) -> None:
    """FluidSynth plays the file, and prints nothing."""
    sound, name = nb.wav_bytes(midi, nb.RATE)
    assert name == "FluidSynth" and capfd.readouterr() == ("", "")
    check_sound(nb, sound, nb.RATE)


@pytest.mark.parametrize(
    "made", [None, b"", b"garbage", b"RIFF\4\0\0\0WAVE", wav_file([[0, 1, -1] * 9000] * 2)]
)
def test_broken_fluidsynth(
    nb: ModuleType,
    midi: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
    made: bytes | None,
) -> None:
    """Where there is no program, or it makes no WAV or silence, pretty_midi plays; none prints."""
    (tmp_path / "made").write_bytes(made or b"")
    copy = f"echo lost\necho lost >&2\n/bin/cp '{tmp_path}/made' \"$5\"\nexit 1"
    fake_fluidsynth(tmp_path, monkeypatch, "" if made is None else copy)
    assert nb.play(midi, ".wav", 8000) == (made or b"")
    sound, name = nb.wav_bytes(midi, 8000)
    assert name == "PrettyMIDI.synthesize()" and capfd.readouterr() == ("", "")
    check_sound(nb, sound, 8000)


def test_hanging_fluidsynth(
    nb: ModuleType, midi: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that takes too long is not waited for."""
    (tmp_path / "made").write_bytes(wav_file([[0, 9000, -9000] * 9000]))
    script = f"/bin/sleep 5\n/bin/cp '{tmp_path}/made' \"$5\""
    fake_fluidsynth(tmp_path, monkeypatch, script)
    monkeypatch.setattr(nb, "PATIENCE", 1)
    assert nb.play(midi, ".wav", 8000) == b""


def test_loudness(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft, loud, thick and thin pieces are within 3 dB, none is clipped or cut short."""
    loudness = []
    for velocity, voices, last in ((10, 1, 1), (127, 9, 1), (60, 2, 300)):
        notes = [(beat, 50 + 4 * i, 1, velocity) for beat in (0, last) for i in range(voices)]
        midi = nb.midi_bytes(piece_of(nb, "a", notes * (1 if last > 1 else 1)))
        loudness.append(nb.samples_of(nb.wav_bytes(midi, 8000)[0]))
