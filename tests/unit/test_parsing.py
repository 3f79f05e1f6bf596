"""From MIDI files to notes: what is read, and what is refused with reason and cure."""

import io
import re
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import mido
import numpy as np
import pandas as pd
import pytest
from mido.midifiles.meta import encode_variable_int
from notebook_tools import chorale_notes, listed_sums, midi_bytes, piece_of

END = b"\0\xff\x2f\0"  # of a track


def song(*tracks: list, kind: int = 1, division: int = 96, announced: int = 0) -> bytes:
    """Return a MIDI file of tracks of events (beat, bytes), in this order."""
    data = b"MThd" + struct.pack(">IHHH", 6, kind, announced or len(tracks), division)
    for track in tracks:
        now, events = 0, b""
        for beat, event in track:
            wait, now = round(beat * division) - now, round(beat * division)
            events += bytes(encode_variable_int(wait)) + event
        data += b"MTrk" + struct.pack(">I", len(events + END)) + events + END
    return data


def keys(text: str, channel: int = 0) -> list[tuple[float, bytes]]:
    """Return the events of a text such as `0+60 1-60`: key 60 is struck, let go on beat 1."""
    found = re.findall(r"([\d.]+)([+-])(\d+)", text)
    status = {"+": 0x90 + channel, "-": 0x80 + channel}
    return [(float(at), bytes([status[sign], int(key), 80])) for at, sign, key in found]


def row(count: int, first: float = 0, length: float = 1) -> str:
    """Return the text of so many notes in a row."""
    at = (first + i * length for i in range(count))
    return " ".join(f"{on}+{50 + i % 5} {on + length}-{50 + i % 5}" for i, on in enumerate(at))


GOOD = midi_bytes([chorale_notes(0)])
LINE = keys("0+50 1-50 1+53 1.5-53 1.5+57 3.5-57")
NOTES = [(0, 50, 1), (1, 53, 0.5), (1.5, 57, 2)]
STRINGS = [(0, b"\xc0\x30"), *keys(row(300))]
READ = {  # a file, and its notes: onset, pitch, duration
    "tempo of 0": (song([(0, b"\xff\x51\3\0\0\0"), *LINE]), NOTES),
    "late end": (song([*LINE, (200_000, b"\xff\1\1a")], division=480), NOTES),
    "late start": (song(keys(row(3, 700))), [(700 + i, 50 + i, 1) for i in range(3)]),
    "released too often": (song(keys("0-50 0+50 1-50 2-50 3+50 4-50")), [(0, 50, 1), (3, 50, 1)]),
    "voices on one key": (song(keys("0+50 1+50 2-50 4-50")), [(0, 50, 2), (1, 50, 3)]),
    "struck again when released": (
        song(keys("0+50 .5+50 .501-50 1+50 1.001-50 1.5-50"), division=1000),
        [(0, 50, 0.501), (0.5, 50, 0.501), (1, 50, 0.5)],
    ),
    "longest": (song(keys("0+50 256-50 256+53 257-53")), [(0, 50, 256), (256, 53, 1)]),
    "one of many not released": (
        song(keys("0+50 1-50 1+50 3+50 4-50 5+50 6+50 7-50 9-50")),
        [(0, 50, 1), (1, 50, 2), (3, 50, 1), (5, 50, 2), (6, 50, 3)],
    ),
    "struck twice at once": (song(keys("0+50 0+50 2-50")), [(0, 50, 2), (0, 50, 2)]),
    "never released": (song(keys("1+50"), LINE), [NOTES[0], (1, 50, 2.5), *NOTES[1:]]),
    "velocity above 127": (song([(0, b"\x90\x32\xc8"), *LINE[1:]]), NOTES),
    "behind the end": (song([*LINE, (4, END[1:]), *keys("4+90 5-90")]), NOTES),
    "finest ticks": (song(keys(row(30)), division=32767), [(i, 50 + i % 5, 1) for i in range(30)]),
    "no length": (song(keys("0+50 0-50 2+50 3-50")), [(0, 50, 1 / 96), (2, 50, 1)]),
    "most notes": (
        song(STRINGS, keys(row(999, 0.25, 1), 1)),
        [(i + 0.25, 50 + i % 5, 1) for i in range(999)],
    ),
}
REFUSED = {  # a file, and what is said of it
    "key of 8 flats": (song([(0, b"\xff\x59\2\xf8\0"), *LINE]), "8 flats"),
    "pitch above 127": (song([*LINE, (4, b"\x90\xc8\x50"), (5, b"\x80\xc8\0")]), "pitch 127"),
    "slow": (midi_bytes([[(0, 60, 1, 90)]], ((0, 4),)), "4 BPM"),
    "large": (GOOD + bytes(1_000_001), "too large"),
    "cut off": (GOOD[:400], "cut off.*export"),
    "empty": (b"", "no MIDI"),
    "alien chunk": (song(LINE).replace(b"MTrk", b"XFIH\0\0\0\1aMTrk"), "no MTrk header"),
    "several songs": (song(LINE, LINE, kind=2), "several songs"),
    "frames": (song(LINE, division=0xE728), "not in beats"),
    "endless": (song(keys(row(3, 30_000)), division=480), "largest tick"),
    "pointer of Git LFS": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "no MIDI.*git lfs pull",
    ),
    "silence": (song([]), "no notes or only drums"),
    "drums": (midi_bytes([chorale_notes(0)], drums=True), "no notes or only drums"),
    "long rest": (song(keys(f"{row(20)} {row(30, 277)}")), "rest of 258 beats"),
    "long note": (song(keys("0+50 257-50")), "note or rest of 257 beats"),
}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files, in folders of their own, into the folder."""
    for path, data in ((folder / name, data) for name, data in files.items()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.mark.parametrize("case", READ)
def test_odd_files_are_read(nb: ModuleType, case: str) -> None:
    """A file that is odd is read as it was meant."""
    data, expected = READ[case]
    piece = nb.read_piece(data, "odd.mid")
    found = piece.notes[["onset", "pitch", "duration"]].to_numpy()
    np.testing.assert_allclose(found, expected, atol=3e-4)
    assert piece.notes.step.tolist() == [0, *np.diff(piece.notes.onset)]


def test_bad_files_are_left_out(nb: ModuleType, tmp_path: Path) -> None:
    """Each bad file is left out with the true reason and a cure, and the good one is read."""
    bad = {f"{case}.mid": data for case, (data, _) in REFUSED.items()}
    write_files(tmp_path / "mozart", bad)
    (tmp_path / "mozart" / "gone.mid").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="mozart can be used\n") as caught:
        nb.load_corpus("mozart", tmp_path, nb.Config())
    said = str(caught.value)
    assert "\ngone.mid left out: [Errno 2] No such file" in said
    assert said.count("remove it\n") + 1 == said.count("\n") - 1 == len(REFUSED)
    write_files(tmp_path / "mozart", {"good.mid": GOOD})
    (piece,), table = nb.load_corpus("mozart", tmp_path, nb.Config())
    assert piece.name == "good"
    remarks = table.set_index("file").remark
    assert [name for name, remark in remarks.items() if not remark] == ["good.mid"]
    for case, (_, reason) in REFUSED.items():
        assert re.match(f"left out: .*{reason}.*remove it$", remarks[f"{case}.mid"]), case
    assert table.notes.tolist() == [len(piece) * (not remark) for remark in remarks]


def test_parts_become_one_sorted_table(nb: ModuleType) -> None:
    """All parts become one stream by onset, pitch, end and velocity, however they come."""
    notes = [(1, 60, 1, 90), (1, 64, 1, 70), (1, 64, 1, 80), (1, 64, 2, 60), (1.5, 50, 1, 90)]
    expected = piece_of(nb, "f.a", notes).notes
    for random_state in range(6):
        order = np.random.default_rng(random_state).permutation(len(notes))
        programs = tuple(order.tolist())
        piece = nb.read_piece(midi_bytes([[notes[i]] for i in order], (), programs), "f.a.mid")
        pd.testing.assert_frame_equal(piece.notes, expected, check_dtype=False)
        assert (piece.name, len(piece), piece.first) == ("f.a", 5, 0)


@pytest.mark.parametrize("late", [60, 31.7])
def test_beats_and_mean_tempo(nb: ModuleType, late: float) -> None:
    """Beats do not depend on the tempo, whose mean from first onset to last end is kept."""
    notes = [(4, 40, 30, 90), *(note for note in chorale_notes(1) if note[0] >= 4)]
    piece = nb.read_piece(midi_bytes([notes], ((0, 60), (8, late))), "a.mid")
    pd.testing.assert_frame_equal(piece.notes, piece_of(nb, "a", notes).notes, check_dtype=False)
    assert piece.tempo == pytest.approx(30 / (4 / 60 + 26 / late), rel=1e-4)


def test_instrument(nb: ModuleType, tmp_path: Path) -> None:
    """The class that is set, or has most notes, is read; files without it are named."""
    organ, piano = chorale_notes(0), chorale_notes(1, beats=6)
    both, alone = midi_bytes([organ, piano], programs=(19, 1)), midi_bytes([piano], programs=(1,))
    write_files(tmp_path / "mixed", {"both.mid": both, "piano.mid": alone})
    for setting, expected in (
        ("", {"both": (19, organ)}),  # in fewer files than the piano
        ("Piano", {"both": (1, piano), "piano": (1, piano)}),
        ("Organ", {"both": (19, organ)}),
    ):
        pieces, table = nb.load_corpus("mixed", tmp_path, replace(nb.Config(), instrument=setting))
        assert [piece.name for piece in pieces] == [*expected]
        for piece, (program, notes) in zip(pieces, expected.values(), strict=True):
            assert piece.program == program  # the steps, too, are those between its own notes
            notes = piece_of(nb, piece.name, notes).notes
            pd.testing.assert_frame_equal(piece.notes, notes, check_dtype=False)
    assert "no Organ: set `instrument` to one of ['Piano']" in table.remark[1]


def test_corpora_are_found(nb: ModuleType, tmp_path: Path) -> None:
    """A corpus is a folder of its name, here or one folder down, linked or not, at any depth."""
    data, names = tmp_path / "data", ["a.mid", "b.MID", "c.midi", "op/1/a.mid", "op/2/a.mid"]
    hidden = ["._a.mid", ".mid", "a.txt", "mid", ".old/a.mid"]
    write_files(data / "mozart", dict.fromkeys([*names, *hidden], GOOD))
    write_files(data, dict.fromkeys(["all/mozart/z.mid", "all/haydn/h.mid", "no/a.txt"], GOOD))
    write_files(tmp_path / "elsewhere", {"e.mid": GOOD})
    for link in (data / "linked", data / "all" / "haydn" / "more"):
        link.symlink_to(tmp_path / "elsewhere")
    expected = {"mozart": names, "haydn": ["h.mid", "more/e.mid"], "linked": ["e.mid"]}
    for corpus, files in expected.items():
        pieces, table = nb.load_corpus(corpus, data, nb.Config())
        assert table.file.tolist() == files
        assert [piece.name for piece in pieces] == [file.rpartition(".")[0] for file in files]
    for corpus in ("mozrat", "1", "", ".", "..", "all/haydn", "moz*", str(data / "mozart")):
        with pytest.raises(ValueError, match=r"there: \[.*'all', .*'haydn', 'linked', 'mozart'"):
            nb.load_corpus(corpus, data, nb.Config())
    with pytest.raises(ValueError, match=r"no MIDI file in .*no can be used"):
        nb.load_corpus("no", data, nb.Config())


def first_in_first_out(data: bytes) -> Counter:
    """Return pitch, onset and length in ticks of notes: each key's n-th strike and release."""
    rows = []
    for number, track in enumerate(mido.MidiFile(file=io.BytesIO(data)).tracks):
        ticks = np.cumsum([message.time for message in track]).tolist()
        for tick, m in ((t, m) for t, m in zip(ticks, track, strict=True) if "note" in m.dict()):
            rows.append((number, m.channel, m.note, m.type == "note_on" and m.velocity > 0, tick))
    table = pd.DataFrame(rows, columns=["track", "channel", "pitch", "strike", "tick"])
    key = ["track", "channel", "pitch"]
    table["nth"] = table.groupby([*key, "strike"]).cumcount()
    on, off = table[table.strike], table[~table.strike]
    both = on.merge(off, on=[*key, "nth"], validate="1:1")
    return Counter(zip(both.pitch, both.tick_x, (both.tick_y - both.tick_x).clip(1), strict=True))


@pytest.mark.parametrize("composer", sorted({name.split("/")[0] for name in listed_sums()}))
def test_course_dataset(nb: ModuleType, dataset: Path, composer: str) -> None:
    """All files of a composer are read, each release ending the earliest note of its key."""
    pieces, table = nb.load_corpus(composer, dataset, nb.Config())
    assert len(pieces) == sum(name.startswith(f"{composer}/") for name in listed_sums())
    for piece, file in zip(pieces, table.file, strict=True):
        data = (dataset / composer / file).read_bytes()
        times = piece.notes[["onset", "duration"]] * int.from_bytes(data[12:14])
        times = times.round().astype(int)
        found = Counter(zip(piece.notes.pitch, times.onset, times.duration, strict=True))
        assert found == first_in_first_out(data), file


def test_progress_disappears(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Jupyter the line of progress is gone at the end, elsewhere there is none."""
    line = MagicMock()
    monkeypatch.setattr(nb, "DisplayHandle", lambda: line)
    assert list(nb.track("abc", "reading")) == [*"abc"] and not line.mock_calls
    monkeypatch.setattr(nb, "get_ipython", lambda: True)
    assert list(nb.track("abc", "reading")) == [*"abc"]
    shown = [call.args[0].data for call in line.update.mock_calls]
    assert all("reading" in text for text in shown[:3]) and shown[3:] == [""]
