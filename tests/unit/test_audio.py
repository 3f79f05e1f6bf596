"""Pieces as MIDI files and as sound."""

import base64
import io
import os
import re
import shutil
import wave
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pretty_midi
import pytest
from notebook_tools import chorale, piece_of
from pytest import MonkeyPatch

needs_fluidsynth = pytest.mark.skipif(not shutil.which("fluidsynth"), reason="no FluidSynth")


def unisons(nb: ModuleType, random_state: int, grid: int) -> object:
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


def test_what_is_written_is_read_back(nb: ModuleType) -> None:
    """Notes, tempo and program come back, on the grid of ticks and from time zero.

    There are as many parts as notes of one pitch sound at once.
    """
    # where a note begins as another of its pitch ends, they stay in a part on every grid of ticks
    pieces = [
        piece_of(nb, "a", [(0, 50, 1, 90), (31 / 480, 60, t / 480, 9), ((31 + t) / 480, 60, 1, 9)])
        for t in range(1, 480, 7)
    ]
    pieces += [unisons(nb, random_state, 7 + 20 * random_state) for random_state in range(5)]
    for piece, tempo in zip(pieces, cycle([37, 80, 143.7]), strict=False):
        notes = piece.notes
        off = notes.assign(onset=notes.onset + 1e-4, duration=notes.duration - 1e-4)
        written = replace(piece, notes=off, tempo=tempo, program=3)
        back = nb.read_piece(nb.midi_bytes(written), "a.mid")
        assert in_ticks(back.notes) == in_ticks(notes) and back.notes.onset[0] == 0
        assert back.program == 3 and back.tempo == pytest.approx(tempo, rel=1e-4)
        end = notes.onset + notes.duration
        now = [(notes.onset <= onset) & (end > onset + 1e-6) for onset in notes.onset]
        most = max(notes.pitch[sounding].value_counts().max() for sounding in now)
        parts = pretty_midi.PrettyMIDI(io.BytesIO(nb.midi_bytes(written))).instruments
        assert len(parts) == most and (most > 2) == (piece.name == "unisons")
        assert {(part.program, part.is_drum) for part in parts} == {(3, False)}


@pytest.fixture
def midi(nb: ModuleType) -> bytes:
    """Return a MIDI file of a tone of 440 Hz for a second."""
    return nb.midi_bytes(replace(piece_of(nb, "a", [(0, 69, 1, 60), (1, 69, 2, 50)]), tempo=180))


def check_sound(sound: bytes, rate: int) -> None:
    """Check that a WAV of `midi` is mono, 16-bit, long enough, in tune and of full scale."""
    with wave.open(io.BytesIO(sound)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, rate)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
    assert rate <= len(samples) <= 5 * rate and np.abs(samples).max() == pytest.approx(1, abs=1e-3)
    harmonic = np.abs(np.fft.rfft(samples[:rate])).argmax() / 440
    assert harmonic == pytest.approx(max(1, round(harmonic)), abs=0.02)


@needs_fluidsynth
def test_fluidsynth(nb: ModuleType, midi: bytes, capfd: pytest.CaptureFixture) -> None:
    """FluidSynth makes the WAV and the Ogg of the page, prints nothing, and is not clipped."""
    sound, name = nb.wav_bytes(midi, nb.RATE)
    assert name == "FluidSynth" and b"\1vorbis" in nb.play(midi, ".oga", 16000)[:100]
    assert capfd.readouterr() == ("", "")
    check_sound(sound, nb.RATE)
    loud = nb.midi_bytes(piece_of(nb, "a", [(0, pitch, 4, 120) for pitch in range(40, 80, 4)]))
    peak = np.abs(np.frombuffer(nb.play(loud, ".raw", 16000), "<i2").astype(int)).max()
    assert 2000 < peak < 32767


def raw(level: int, seconds: float) -> bytes:
    """Return the raw stereo sound of a tone of 440 Hz, softer on the right, at 8000 Hz."""
    tone = level * np.sin(np.arange(int(seconds * 8000)) / 8000 * 440 * 2 * np.pi)
    return np.stack([tone, tone / 4], axis=1).astype("<i2").tobytes()


COPY = '/bin/cp "$0.made" "$7"'
GOOD = raw(9000, 1.1)


@pytest.mark.parametrize(
    ("script", "made"),
    [
        (COPY, GOOD),
        ("", b""),  # there is no program
        (f"echo lost >&2; {COPY}; exit 1", raw(9000, 2)),
        (COPY, raw(9, 2)),  # there is no sound font
        (COPY, raw(9000, 0.9)),  # cut short
        (f'echo $$ >"$0.pid"; {COPY}; exec /bin/sleep 9', raw(9000, 2)),  # it hangs
    ],
)
def test_whatever_fluidsynth_does(
    nb: ModuleType, midi: bytes, tmp_path: Path, monkeypatch: MonkeyPatch, script: str, made: bytes
) -> None:
    """Where FluidSynth is missing, fails, is silent, cut short or hangs, pretty_midi plays."""
    program = tmp_path / "fluidsynth"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nb, "PATIENCE", 1 if "sleep" in script else nb.PATIENCE)
    if script:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    program.with_suffix(".made").write_bytes(made)
    sound, name = nb.wav_bytes(midi, 8000)
    assert name == ("FluidSynth" if made == GOOD else "pretty_midi")
    check_sound(sound, 8000)
    if "sleep" in script:
        with pytest.raises(ProcessLookupError):
            os.kill(int(program.with_suffix(".pid").read_text()), 0)


@pytest.mark.parametrize(("kind", "made"), [("ogg", b"OggS..."), ("wav", b"")])
def test_player(nb: ModuleType, monkeypatch: MonkeyPatch, kind: str, made: bytes) -> None:
    """The element holds the sound of FluidSynth, or else of pretty_midi."""
    monkeypatch.setattr(nb, "play", lambda *_: made)
    page = nb.player(chorale(nb, 1))
    (source,) = re.findall(rf"<audio controls src='data:audio/{kind};base64,([\w+/=]+)'>", page)
    sound = base64.b64decode(source)
    assert sound == made if made else sound.startswith(b"RIFF") and len(sound) > 10**5
