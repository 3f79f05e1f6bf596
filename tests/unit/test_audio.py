"""Pieces as MIDI files and as sound."""

import io
import os
import re
import shutil
import wave
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pretty_midi
import pytest
from notebook_tools import chorale, piece_of
from pytest import MonkeyPatch

TONE = [(0, 69, 1, 60), (1, 69, 2, 50)]  # 440 Hz, for a second at the tempo below


def test_what_is_written_is_read_back(nb: ModuleType) -> None:
    """Notes, tempo and program come back; there are as many parts as a pitch sounds at once."""
    rng, pieces = np.random.default_rng(0), []
    for grid in range(7, 107, 20):  # ticks; the notes often meet on one of four pitches
        columns = [rng.integers(*ends, 100) for ends in ((40, 300), (60, 64), (1, 40), (1, 128))]
        notes = np.transpose(columns) * [grid / 480, 1, grid / 480, 1]
        pieces.append(piece_of(nb, "unisons", notes))
    for t in range(1, 480, 7):  # one note begins as another of its pitch ends, on every grid
        row = [(0, 50, 1, 90), (31 / 480, 60, t / 480, 9), ((31 + t) / 480, 60, 1, 9)]
        pieces.append(piece_of(nb, "row", row))
    for i, piece in enumerate(pieces):
        notes, tempo = piece.notes, (37, 80, 143.7)[i % 3]
        off = notes.assign(onset=notes.onset + 1e-4, duration=notes.duration - 1e-4)
        written = nb.midi_bytes(replace(piece, notes=off, tempo=tempo, program=3))
        back = nb.read_piece(written, "a.mid")
        expected = notes.assign(onset=notes.onset - notes.onset[0])
        assert np.allclose(back.notes, expected, rtol=0, atol=1e-6) and back.program == 3
        assert back.tempo == pytest.approx(tempo, rel=1e-4)
        end = notes.onset + notes.duration
        now = [(notes.onset <= onset) & (end > onset + 1e-6) for onset in notes.onset]
        most = max(notes.pitch[sounding].value_counts().max() for sounding in now)
        parts = pretty_midi.PrettyMIDI(io.BytesIO(written)).instruments
        assert len(parts) == most and (most > 2) == (piece.name == "unisons")
        assert {(part.program, part.is_drum) for part in parts} == {(3, False)}


def tone(nb: ModuleType) -> bytes:
    """Return a MIDI file of a tone of 440 Hz for a second."""
    return nb.midi_bytes(replace(piece_of(nb, "a", TONE), tempo=180))


def check_sound(sound: bytes, rate: int) -> None:
    """Check that a WAV of the tone is mono, 16-bit, long enough, in tune and of full scale."""
    with wave.open(io.BytesIO(sound)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, rate)
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
    assert rate <= len(samples) <= 5 * rate and np.abs(samples).max() == pytest.approx(1, abs=1e-3)
    harmonic = np.abs(np.fft.rfft(samples[:rate])).argmax() / 440
    assert harmonic == pytest.approx(max(1, round(harmonic)), abs=0.02)


@pytest.mark.skipif(not shutil.which("fluidsynth"), reason="no FluidSynth")
def test_fluidsynth(nb: ModuleType, capfd: pytest.CaptureFixture) -> None:
    """FluidSynth makes the WAV and the Ogg of the page, prints nothing, and is not clipped."""
    sound, name = nb.wav_bytes(tone(nb), nb.RATE)
    assert name == "FluidSynth" and b"\1vorbis" in nb.play(tone(nb), ".oga", 16000)[:100]
    assert capfd.readouterr() == ("", "")
    check_sound(sound, nb.RATE)
    loud = nb.midi_bytes(piece_of(nb, "a", [(0, pitch, 4, 120) for pitch in range(40, 80, 4)]))
    peak = np.abs(np.frombuffer(nb.play(loud, ".raw", 16000), "<i2").astype(int)).max()
    assert 2000 < peak < 32767


COPY = '/bin/cp "$0.made" "$7"'


@pytest.mark.parametrize(
    ("script", "level", "seconds"),
    [
        (COPY, 9000, 1.1),  # it plays
        ("", 0, 0),  # there is no program
        (f"echo lost >&2; {COPY}; exit 1", 9000, 2),
        (COPY, 9, 2),  # there is no sound font
        (COPY, 9000, 0.9),  # cut short
        (f'echo $$ >"$0.pid"; {COPY}; exec /bin/sleep 9', 9000, 2),  # it hangs
    ],
)
def test_whatever_fluidsynth_does(
    nb: ModuleType, monkeypatch: MonkeyPatch, tmp_path: Path, script: str, level: int, seconds: int
) -> None:
    """Where FluidSynth is missing, fails, is silent, cut short or hangs, pretty_midi plays."""
    program = tmp_path / "fluidsynth"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nb, "PATIENCE", 1 if "sleep" in script else nb.PATIENCE)
    if script:
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    wave_440 = level * np.sin(np.arange(int(seconds * 8000)) / 8000 * 440 * 2 * np.pi)
    stereo = np.stack([wave_440, wave_440 / 4], axis=1).astype("<i2")  # softer on the right
    program.with_suffix(".made").write_bytes(stereo.tobytes())
    sound, name = nb.wav_bytes(tone(nb), 8000)
    assert name == ("FluidSynth" if seconds == 1.1 else "pretty_midi")
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
    sound = b64decode(source)
    assert sound == made if made else sound.startswith(b"RIFF") and len(sound) > 10**5
