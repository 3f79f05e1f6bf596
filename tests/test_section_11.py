"""Section 11 of the notebook: choosing pieces, and their MIDI and sound files."""

import base64
import io
import math
import os
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
from notebook_tools import chorale, piece_of, small_config
from pytest import MonkeyPatch
from study_tools import read_back

VOICES = ["parallels", "leaps", "keys struck again", "notes at once"]
FREE = ["repeated 8-note runs", "silence", "run shared with training", "run shared with seed"]
FREE += VOICES
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


@pytest.mark.parametrize("tempo", [37, 80, 143.7])
def test_what_is_written_is_read_back(nb: ModuleType, tempo: float) -> None:
    """Tempo and notes come back on the grid, from zero, one step after the seed."""
    for random_state in range(5):
        piece = replace(unisons(nb, random_state, 7), tempo=tempo, program=3)
        exact = piece.notes.assign(step=piece.notes.step + 0.25)
        shifted = exact.assign(onset=exact.onset + 1e-4, duration=exact.duration - 1e-4)
        back = read_back(nb, replace(piece, notes=shifted))
        assert (back.name, back.tempo, back.program) == ("unisons", tempo, 3)
        notes = back.notes
        assert in_ticks(notes) == in_ticks(exact) and list(notes) == list(nb.COLUMNS)
        assert notes.onset[0] == 0 and notes.step[0] == 0.25
        assert np.allclose(notes.step[1:], np.diff(notes.onset))
        assert np.allclose(notes.duration * 480, (notes.duration * 480).round(), atol=1e-6)
    assert nb.read_piece(nb.midi_bytes(piece), "a.mid").tempo == pytest.approx(tempo, rel=1e-4)


def test_parts(nb: ModuleType) -> None:
    """There are as many parts as notes of one pitch sound at once, all of the same program."""
    # where a note starts where one of its pitch ends, they stay in a part on every grid of ticks
    touching = [
        [(0, 50, 1, 90), (31 / 480, 60, tick / 480, 90), ((31 + tick) / 480, 60, 1, 90)]
        for tick in range(1, 480, 7)
    ]
    pieces = [chorale(nb, 1), *(piece_of(nb, "a", notes) for notes in touching)]
    for piece in [*pieces, *(unisons(nb, random_state, 30) for random_state in range(5))]:
        start, end = piece.notes.onset, piece.notes.onset + piece.notes.duration
        now = [(start <= onset) & (end > onset + 1e-6) for onset in start]
        most = max(piece.notes.pitch[sounding].value_counts().max() for sounding in now)
        file = io.BytesIO(nb.midi_bytes(replace(piece, program=5)))
        parts = [(part.program, part.is_drum) for part in pretty_midi.PrettyMIDI(file).instruments]
        assert parts == [(5, False)] * most and (most > 2) == (piece.name == "unisons")


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
    # of the five runs of eight notes in a figure of four, played three times, one is repeated
    piece = piece_of(nb, "a", [(i, (60, 64, 67, 72)[i % 4], 3, 90) for i in range(12)])
    assert nb.describe(piece.notes)["repeated 8-note runs"] == pytest.approx(1 / 5)


@pytest.mark.parametrize(("count", "step"), [(8, 0), (8, 1), (4, 0), (2, 1)])
def test_describe_hardly_any_music(nb: ModuleType, count: int, step: int) -> None:
    """One chord, or a few notes, can be described, too."""
    found = nb.describe(piece_of(nb, "a", [(i * step, 60 + i, 1, 90) for i in range(count)]).notes)
    assert all(map(math.isfinite, found.values()))
    assert (found["chord rate"], found["mean step"]) == (1 - step, step)
    assert found["silence"] == found["repeated 8-note runs"] == found["velocity spread"] == 0


def test_excerpts(nb: ModuleType) -> None:
    """Excerpts have one length, follow each other and cross no piece."""
    a, b, c = (
        replace(chorale(nb, i), notes=chorale(nb, i).notes[:n]) for i, n in enumerate((25, 9, 10))
    )
    found = nb.excerpts([a, b, c], 10)
    for part, notes in zip(found, (a.notes[:10], a.notes[10:20], c.notes), strict=True):
        assert part.notes.equals(notes)
    assert [part.name for part in found] == [a.name, a.name, c.name]


@pytest.mark.parametrize(
    ("music", "expected"),
    [
        # chords of a semiquaver each, then the parallels, leaps and keys struck again
        ([(48, 55), (50, 57)], (1, 0, 0)),  # a fifth moves up
        ([(48, 67), (46, 65)], (1, 0, 0)),  # a twelfth moves down
        ([(48, 60), (50, 62), (53, 65)], (2, 0, 0)),  # an octave moves twice
        ([(48, 55), (48, 55)], (0, 0, 0)),  # a fifth is repeated
        ([(48, 55), (50, 53), (48, 55)], (0, 0, 0)),  # contrary motion to a fifth
        ([(48, 52), (50, 54)], (0, 0, 0)),  # thirds
        ([(48, 53), (50, 55)], (0, 0, 0)),  # fourths
        ([(48, 55, 64), (50, 57, 62)], (1, 0, 0)),  # two voices of three
        ([(60,), (66,), (56,), (67,), (54,)], (0, 4, 0)),  # six, ten, eleven and thirteen
        ([(60,), (72,), (63,), (68,), (61,)], (0, 0, 0)),  # octave, sixth, fourth and fifth
        ([(60,), (), (), (), (78,)], (0, 0, 0)),  # after a rest nothing is continued
        ([(48, 55), (50,), (57,)], (0, 0, 0)),  # one voice moves after the other
    ],
)
def test_voice_leading(nb: ModuleType, music: list[tuple], expected: tuple[int, ...]) -> None:
    """Parallels and leaps are those counted by hand, in a longer batch too."""
    notes = [(i / 4, pitch, 1 / 4, 90) for i, chord in enumerate(music) for pitch in chord]
    pieces, config = [piece_of(nb, "a", notes), chorale(nb, 0)], small_config(nb)
    found = nb.voice_leading(pieces, nb.Normaliser(pieces), config)
    assert list(found) == VOICES and found.loc[0, "notes at once"] == max(map(len, music))
    shares = [count / len(notes) for count in expected]
    assert found.loc[0, VOICES[:3]].tolist() == pytest.approx(shares)


def test_keys_struck_again(nb: ModuleType) -> None:
    """A key is struck again while it sounds, not as it ends; as many may be as in most excerpts."""
    notes = [(0, 60, 2), (1, 60, 2), (3, 60, 1), (3, 64, 1)]
    once, config = piece_of(nb, "a", [(*n, 90) for n in notes]), small_config(nb, piece_notes=4)
    never = piece_of(nb, "b", [(beat, 60, 1, 90) for beat in range(76)])
    pieces, normaliser = [once, never], nb.Normaliser([once, never])
    found = nb.voice_leading(pieces, normaliser, config)["keys struck again"]
    assert found.tolist() == [0.25, 0]
    # of twenty excerpts one has such a key, then six of twenty-five, and then the only one
    short = replace(once, notes=once.notes[:3])
    for music, most in ((pieces, (1, 0)), ([never, *[once] * 6], (2, 1)), ([short], (2, 1))):
        assert nb.usual_limits(music, normaliser, config) == most


def test_pitch_range(nb: ModuleType) -> None:
    """It goes from the lowest pitch of any piece to the highest."""
    notes = [(0, 50, 1, 90), (1, 70, 1, 90)], [(0, 40, 1, 90), (1, 60, 1, 90)]
    assert nb.pitch_range([piece_of(nb, "a", two) for two in notes]) == range(40, 71)
    assert nb.pitch_range([piece_of(nb, "a", notes[0])], 60) == range(0, 128)


def test_figures_of(nb: ModuleType) -> None:
    """To the description come the voices and the longest run that training pieces hold as well."""
    piece, config = chorale(nb, 1), small_config(nb)
    pieces, normaliser = [piece, replace(piece, notes=piece.notes[:10])], nb.Normaliser([piece])
    training = [np.append(piece.notes.pitch[start:end], 1) for start, end in ((5, 14), (30, 37))]
    figures = nb.statistics_of(pieces, training, normaliser, config)
    assert figures.pop("run shared with training").tolist() == [9, 5]
    assert figures[VOICES].equals(nb.voice_leading(pieces, normaliser, config).astype(float))
    assert figures.iloc[0].drop(VOICES).to_dict() == nb.describe(piece.notes)


@pytest.mark.parametrize(
    ("works", "chosen"), [("aaaaabc", "abc"), ("aaab", "aab abb"), ("ab", "aab abb"), ("a", "aaa")]
)
def test_seeds(nb: ModuleType, works: str, chosen: str) -> None:
    """Three openings of long enough pieces are drawn, of different works as far as there are."""
    pieces = [
        replace(chorale(nb, i), name=f"{w}_{i}", work=w, tempo=80.4) for i, w in enumerate(works)
    ]
    short, drawn = replace(pieces[0], name="z_99", notes=pieces[0].notes.head(15)), []
    for random_state in [*range(10), 0]:
        seeds = nb.choose_seeds([*pieces, short], small_config(nb), random_state)
        for seed in seeds:
            assert seed.notes.equals(pieces[int(seed.name[2:])].notes.head(16)) and seed.tempo == 80
        assert "".join(sorted(seed.work for seed in seeds)) in chosen.split()
        drawn.append(tuple(seed.name for seed in seeds))
        assert len(set(drawn[-1])) == min(3, len(works))
    assert drawn[0] == drawn[-1] and (len(set(drawn)) > 1) == (len(works) > 1)


def test_outside_range(nb: ModuleType) -> None:
    """The ends are inside; to copy, to repeat or to rest less than real music is no fault."""
    real = pd.DataFrame({"mean step": [2.0, 1.0, 1.5]} | {name: [8.0, 6.0, 7.0] for name in FREE})
    for name in real:
        low, high = (0 if name in FREE else 1), real[name].max()
        figures = real.iloc[[0] * 4].assign(**{name: [low, high, low - 0.1, high + 0.1]})
        found = nb.outside_range(figures, real)
        assert found[name].tolist() == [False, False, True, True]
        assert not found.drop(columns=name).any(axis=None)


def wav_file(samples: list[list[int]], rate: int = 8000) -> bytes:
    """Return a 16-bit WAV of the samples, one list a channel."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((len(samples), 2, rate, 0, "NONE", ""))
        sound.writeframes(np.array(samples, dtype="<i2").T.tobytes())
    return file.getvalue()


@pytest.fixture
def midi(nb: ModuleType) -> bytes:
    """Return a MIDI file of a tone of 440 Hz, three beats at 180 beats per minute."""
    return nb.midi_bytes(replace(piece_of(nb, "a", [(0, 69, 1, 60), (1, 69, 2, 50)]), tempo=180))


def check_sound(nb: ModuleType, sound: bytes, rate: int) -> None:
    """Check that a WAV of `midi` is mono, 16-bit, a second longer than it, in tune and loud."""
    with wave.open(io.BytesIO(sound)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, rate)
        assert file.getnframes() / rate == pytest.approx(2, abs=0.01)
    samples = nb.samples_of(sound)
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.1, abs=1e-3)
    harmonic = np.abs(np.fft.rfft(samples[:rate])).argmax() / 440
    assert harmonic == pytest.approx(max(1, round(harmonic)), abs=0.02)


@needs_fluidsynth
def test_sound_by_fluidsynth(nb: ModuleType, midi: bytes, capfd: pytest.CaptureFixture) -> None:
    """FluidSynth plays the file, and prints nothing."""
    sound, name = nb.wav_bytes(midi, nb.RATE)
    assert name == "FluidSynth" and capfd.readouterr() == ("", "")
    check_sound(nb, sound, nb.RATE)


SILENT, LOUD, SHORT = (
    wav_file([[0, x, -x] * length] * 2) for x, length in ((1, 9000), (9000, 9000), (9000, 2600))
)
COPY = '/bin/cp "$0.made" "$5"'


@pytest.mark.parametrize(
    ("script", "made"),
    [
        ("", b""),  # there is no program
        ("exit 1", b""),
        (f"echo lost; echo lost >&2; {COPY}; exit 1", b"garbage"),
        (COPY, b"RIFF\4\0\0\0WAVE"),
        (COPY, LOUD[:-1]),
        (COPY, SILENT),
        (COPY, SHORT),
        (f'echo $$ >"$0.pid"; {COPY}; exec /bin/sleep 9', LOUD),  # it hangs
    ],
)
def test_broken_fluidsynth(
    nb: ModuleType,
    midi: bytes,
    tmp_path: Path,
    monkeypatch: MonkeyPatch,
    capfd: pytest.CaptureFixture,
    script: str,
    made: bytes,
) -> None:
    """Where FluidSynth is not there or makes no sound, pretty_midi plays, and nothing prints.

    One that hangs is ended.
    """
    monkeypatch.setenv("PATH", str(tmp_path))
    if script:
        (tmp_path / "fluidsynth").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "fluidsynth").chmod(0o755)
    (tmp_path / "fluidsynth.made").write_bytes(made)
    monkeypatch.setattr(nb, "PATIENCE", 1 if "sleep" in script else nb.PATIENCE)
    played = nb.play(midi, ".wav", 8000)
    assert played == (made if script == COPY else b"")
    if "sleep" in script:
        with pytest.raises(ProcessLookupError):
            os.kill(int((tmp_path / "fluidsynth.pid").read_text()), 0)
    monkeypatch.setattr(nb, "play", lambda *_: played)
    sound, name = nb.wav_bytes(midi, 8000)
    assert name.startswith("PrettyMIDI") and capfd.readouterr() == ("", "")
    check_sound(nb, sound, 8000)


def test_loudness(nb: ModuleType, monkeypatch: MonkeyPatch) -> None:
    """Soft and loud sound gets one loudness, but is not clipped, and none is cut short."""
    midi = nb.midi_bytes(replace(piece_of(nb, "a", [(0, 60, 300, 90)]), tempo=60))
    noise, click = np.random.default_rng(0).normal(size=8 * 302), np.eye(1, 8 * 302)[0]
    for samples, factor, loudness in ((noise, 100, 0.1), (noise, 5000, 0.1), (click, 9000, 0.0194)):
        sound = wav_file([(samples * factor).astype(int).tolist()])
        monkeypatch.setattr(nb, "play", lambda *_, sound=sound: sound)
        found = nb.samples_of(nb.wav_bytes(midi, 8)[0])
        assert len(found) == pytest.approx(8 * 301, abs=1) and np.abs(found).max() < 0.951
        assert np.sqrt(np.mean(found**2)) == pytest.approx(loudness, abs=1e-4)


def test_samples(nb: ModuleType) -> None:
    """The channels of a WAV are mixed, and full scale is 1."""
    sound = wav_file([[16384, -32768, 0], [0, -32768, 8192]])
    assert nb.samples_of(sound).tolist() == [0.25, -1, 0.125]


@needs_fluidsynth
def test_ogg_of_fluidsynth(nb: ModuleType, midi: bytes) -> None:
    """The sound in the page is an Ogg file."""
    sound = nb.play(midi, ".oga", 16000)
    assert sound.startswith(b"OggS") and b"\1vorbis" in sound


@pytest.mark.parametrize(
    ("kind", "heard"), [("ogg", b"OggS..."), ("wav", b"no sound"), ("wav", b"")]
)
def test_player(nb: ModuleType, monkeypatch: MonkeyPatch, kind: str, heard: bytes) -> None:
    """The page holds the title as text and the sound of the seed, played softly, and the piece."""
    whole, played = replace(chorale(nb, 1, velocity=True), program=19), []
    whole.notes.loc[3, "velocity"] = 1  # played at 0, it would be no note
    seed, piece = (replace(whole, notes=notes) for notes in (whole.notes[:30], whole.notes[30:]))
    monkeypatch.setattr(nb, "play", lambda midi, *_: played.append(midi) or heard)
    page = nb.player(seed, piece, "a <b> & 'c'")
    assert "a &lt;b&gt; &amp; &#x27;c&#x27;" in page and "<b>" not in page
    (source,) = re.findall(rf"<audio controls src='data:audio/{kind};base64,([\w+/=]+)'>", page)
    sound = base64.b64decode(source)
    assert sound == heard if kind == "ogg" else nb.samples_of(sound).std() > 0.09
    softly = [max(1, velocity * 6 // 10) for velocity in seed.notes.velocity]
    expected = pd.concat([seed.notes.assign(velocity=softly), piece.notes])
    back = nb.read_piece(played[0], "a.mid")
    assert in_ticks(back.notes) == in_ticks(expected) and set(back.notes.program) == {19}
    assert back.tempo == pytest.approx(80, rel=1e-4)
