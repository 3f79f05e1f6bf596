"""Section 11: choosing pieces, and their MIDI and sound files."""

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
from notebook_tools import Note, chorale, piece_of, small_config

FIGURES = ["mean step", "silence", "repeated 8-note runs", "run shared with training"]
needs_fluidsynth = pytest.mark.skipif(not shutil.which("fluidsynth"), reason="no FluidSynth")


def table(nb: ModuleType, notes: list[Note]) -> pd.DataFrame:
    """Return the table of the notes."""
    return piece_of(nb, "a", notes).notes


def unisons(nb: ModuleType, random_state: int, grid: int = 30) -> pd.DataFrame:
    """Return random notes of four pitches on a grid in ticks; they often meet on a pitch."""
    rng = np.random.default_rng(random_state)
    onset, length = rng.integers(40, 300, 100) * grid / 480, rng.integers(1, 40, 100) * grid / 480
    pitch, velocity = rng.integers(60, 64, 100), rng.integers(1, 128, 100)
    return table(nb, list(zip(onset, pitch, length, velocity, strict=True)))


def in_ticks(notes: pd.DataFrame) -> list[tuple[int, ...]]:
    """Return onset from the first one, pitch, duration and velocity of the notes, sorted."""
    times = notes.onset - notes.onset.iloc[0], notes.duration
    onset, duration = (np.rint(480 * time).astype(int) for time in times)
    return sorted(zip(onset, notes.pitch, duration, notes.velocity, strict=True))


def parts_of(nb: ModuleType, notes: pd.DataFrame, program: int = 0) -> list:
    """Return the parts of the MIDI file that is written of the notes, as pretty_midi reads them."""
    return pretty_midi.PrettyMIDI(io.BytesIO(nb.midi_bytes(notes, 90, program))).instruments


@pytest.mark.parametrize("tempo", [37, 80, 93, 143.7])
def test_what_is_written_is_read_back(nb: ModuleType, tempo: float) -> None:
    """Tempo and notes come back, however many meet; they begin at zero, one step after the seed."""
    for random_state in range(5):
        notes = unisons(nb, random_state, grid=7).assign(step=lambda notes: notes.step + 0.25)
        back = nb.read_back(notes, tempo, nb.Config(programs=(3,)))
        assert in_ticks(back) == in_ticks(notes)
        assert back.onset[0] == 0 and back.step[0] == notes.step[0] == 0.25
        assert np.allclose(back.step[1:], np.diff(back.onset))
    piece = nb.read_piece(nb.midi_bytes(notes, tempo, 0), "a.mid", nb.Config())
    assert piece.tempo == pytest.approx(tempo, rel=1e-4)


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
    assert [len(part.notes) for part in parts_of(nb, notes)] == [5 - parts, 1][:parts]


def test_rounding_opens_no_part(nb: ModuleType) -> None:
    """A note that starts where one of its pitch ends stays in its part on every grid of ticks."""
    for tick in range(1, 480, 7):
        notes = [(0, 50, 1, 90), (31 / 480, 60, tick / 480, 90), ((31 + tick) / 480, 60, 1, 90)]
        assert len(parts_of(nb, table(nb, notes))) == 1


def test_as_many_parts_as_notes_of_a_pitch(nb: ModuleType) -> None:
    """There are as many parts as notes of one pitch sound at once, all of the same program."""
    counts = set()
    for notes in [unisons(nb, random_state) for random_state in range(5)] + [chorale(nb, 1).notes]:
        end = notes.onset + notes.duration
        now = [(notes.onset <= onset) & (end > onset) for onset in notes.onset]
        most = max(notes.pitch[sounding].value_counts().max() for sounding in now)
        parts = parts_of(nb, notes, program=5)
        assert {(part.program, part.is_drum) for part in parts} == {(5, False)}
        assert len(parts) == most
        counts.add(most)
    assert min(counts) == 1 and max(counts) > 2


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
    notes = chorale(nb, 1).notes
    training = [np.append(notes.pitch[5:14], 1), np.append(notes.pitch[30:37], 1)]
    figures = nb.figures_of([notes, notes.head(10)], training)
    assert figures["run shared with training"].tolist() == [9, 5]
    assert figures.iloc[0].drop("run shared with training").to_dict() == nb.describe(notes)


@pytest.mark.parametrize(
    ("works", "chosen"), [("aaaaabc", "abc"), ("aaab", "aab abb"), ("ab", "aab abb"), ("a", "aaa")]
)
def test_seeds(nb: ModuleType, works: str, chosen: str) -> None:
    """Three openings of long enough pieces are drawn, of different works as far as there are."""
    pieces = [replace(chorale(nb, i), name=f"{work}_{i}") for i, work in enumerate(works)]
    short, drawn = replace(pieces[0], name="z_99", notes=pieces[0].notes.head(15)), []
    for random_state in [*range(10), 0]:
        config = small_config(nb, seed_notes=16)
        seeds = nb.choose_seeds([*pieces, short], config, random_state)
        for seed in seeds:
            assert seed.notes.equals(pieces[int(seed.name[2:])].notes.head(16))
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


def test_pieces_table(nb: ModuleType) -> None:
    """Each piece has the row of its seed and then its attempts, of which one is kept."""
    music, training = [chorale(nb, i) for i in range(12)], [chorale(nb, 99).notes.pitch.to_numpy()]
    seeds = [replace(music[3 * i], first=10 * i) for i in range(3)]
    figures = nb.figures_of([piece.notes for piece in music], training)
    attempts, real = [music[i].notes for i in (1, 2, 4, 5, 7, 8)], figures[9:]
    found = nb.pieces_table(seeds, attempts, real, training)
    kinds = ("seed", "attempt", "attempt")
    rows = [[i + 1, kind, seeds[i].name, 10 * i] for i in range(3) for kind in kinds]
    assert found[["piece", "kind", "seed from", "first note"]].values.tolist() == rows
    assert found[figures.columns].to_numpy() == pytest.approx(figures[:9].to_numpy())
    assert found[found.kind == "seed"][["failed", "unlike"]].isna().all(axis=None)
    for i in (0, 3, 6):
        mine = found[i : i + 3].reset_index(drop=True)
        chosen = nb.choose(figures[i + 1 : i + 3], figures.iloc[i], real)
        assert mine.kept.tolist() == [False, *chosen.kept]
        assert mine[1:][["failed", "unlike"]].values.tolist() == (
            chosen[["failed", "unlike"]].values.tolist()
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


@pytest.mark.parametrize(
    "made", [None, b"", b"garbage", b"RIFF\4\0\0\0WAVE", wav_file([[0, 1, -1] * 9000] * 2)]
)
def test_broken_fluidsynth(
    nb: ModuleType, midi: bytes, programs: Path, capfd: pytest.CaptureFixture, made: bytes | None
) -> None:
    """Where there is no program, or it makes no WAV or silence, pretty_midi plays; none prints."""
    if made is not None:
        (programs / "made").write_bytes(made)
        script = f"#!/bin/sh\necho lost\necho lost >&2\n/bin/cp '{programs}/made' \"$5\"\nexit 1\n"
        (programs / "fluidsynth").write_text(script)
        (programs / "fluidsynth").chmod(0o755)
    before = len(os.listdir("/dev/fd"))
    assert nb.play(midi, ".wav", 8000) == (made or b"")
    sound, name = nb.wav_bytes(midi, 8000)
    assert name == "PrettyMIDI.synthesize()"
    check_sound(nb, sound, 8000)
    assert len(os.listdir("/dev/fd")) == before
    os.system("echo back; echo back too >&2")
    assert capfd.readouterr() == ("back\n", "back too\n")


def test_samples(nb: ModuleType) -> None:
    """The channels of a WAV are mixed, full scale is 1, and what is no WAV holds no samples."""
    sound = wav_file([[16384, -32768, 0], [0, -32768, 8192]])
    assert nb.samples_of(sound).tolist() == [0.25, -1, 0.125]
    for broken in (b"", b"RIFFxxxxjunk", sound[:-1]):
        assert len(nb.samples_of(broken)) == 0


def test_file_facts(nb: ModuleType, tmp_path: Path) -> None:
    """The facts are those of the files of this piece."""
    notes = table(nb, [(5, 60, 4, 90), (6, 60, 1, 90), (7, 64, 5, 90)])
    (tmp_path / "piece_2.mid").write_bytes(nb.midi_bytes(notes, 120, 0))
    (tmp_path / "seed_2.mid").write_bytes(nb.midi_bytes(notes.head(2), 120, 0))
    sound = wav_file([[16384, -16384, 0, 0] * nb.RATE], nb.RATE)
    (tmp_path / "piece_2.wav").write_bytes(sound)
    expected = {"notes": 3, "seed notes": 2, "parts": 2, "MIDI (s)": 3.5, "WAV (s)": 4}
    expected |= {"RMS": 0.5**1.5, "peak": 0.5}
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
    """Two renderings are one file, as long as what was played."""
    played, again = (nb.play(midi, ".oga", 16000) for _ in range(2))
    file = nb.fixed_serial(played)
    assert nb.fixed_serial(again) == file and len(file) == len(played)
    assert b"\1vorbis" in file[:60] and file[14:18] == bytes(4)


def test_player(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page holds the title as text and the sound of the seed, played softly, and the piece."""
    piece, played = chorale(nb, 1, velocity=True), []
    piece.notes.loc[3, "velocity"] = 1  # played at 0, it would be no note
    seed, notes = replace(piece, notes=piece.notes[:30]), piece.notes[30:]
    monkeypatch.setattr(nb, "play", lambda midi, *_: played.append(midi) or ogg_file(7))
    page = nb.player(seed, notes, 80, "a <b> & 'c'")
    assert "a &lt;b&gt; &amp; &#x27;c&#x27;" in page and "<b>" not in page
    (source,) = re.findall(r"<audio controls src='data:audio/ogg;base64,([\w+/=]+)'>", page)
    assert base64.b64decode(source) == ogg_file(0)
    softly = [max(1, velocity * 6 // 10) for velocity in seed.notes.velocity]
    expected = pd.concat([seed.notes.assign(velocity=softly), notes])
    heard = nb.read_piece(played[0], "a.mid", nb.Config())
    assert in_ticks(heard.notes) == in_ticks(expected)
    assert heard.tempo == pytest.approx(80, rel=1e-4)


def test_player_without_fluidsynth(nb: ModuleType, programs: Path) -> None:
    """Without FluidSynth the page holds a WAV."""
    piece = chorale(nb, 1, beats=4)
    seed, notes = replace(piece, notes=piece.notes[:8]), piece.notes[8:]
    page = nb.player(seed, notes, 120, "a")
    (source,) = re.findall(r"<audio controls src='data:audio/wav;base64,([\w+/=]+)'>", page)
    assert np.abs(nb.samples_of(base64.b64decode(source))).max() == pytest.approx(0.9, abs=1e-3)
