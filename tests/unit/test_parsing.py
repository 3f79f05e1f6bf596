"""From MIDI files to notes: what is read, and what is refused with reason and cure."""

import io
import re
import struct
from collections import Counter, defaultdict, deque
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import mido
import numpy as np
import pytest
from mido.midifiles.meta import encode_variable_int
from notebook_tools import listed_sums

END = b"\0\xff\x2f\0"  # of a track


def song(*tracks: list, kind: int = 1, division: int = 96) -> bytes:
    """Return a MIDI file of tracks of events (beat, bytes), in this order."""
    data = b"MThd" + struct.pack(">IHHH", 6, kind, len(tracks), division)
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


GOOD = song(keys(row(24)))
LINE = keys("0+50 1-50 1+53 1.5-53 1.5+57 3.5-57")
ORGAN, PIANO = [(0, b"\xc0\x13"), *keys(row(99))], [(0, b"\xc1\x01"), *keys(row(9), 1)]
NOTES = [(0, 50, 1), (1, 53, 0.5), (1.5, 57, 2)]
READ = {  # a file, and its notes: onset, pitch, duration
    "tempo of 0": (song([(0, b"\xff\x51\3\0\0\0"), *LINE]), NOTES),
    "late end": (song([*LINE, (200_000, b"\xff\1\1a")], division=480), NOTES),
    "late start": (song(keys(row(3, 700))), [(700 + i, 50 + i, 1) for i in range(3)]),
    "released too often": (song(keys("0-50 0+50 1-50 2-50 3+50 4-50")), [(0, 50, 1), (3, 50, 1)]),
    "voices on one key": (song(keys("0+50 1+50 2-50 4-50")), [(0, 50, 2), (1, 50, 3)]),
    "two channels": (
        song(sorted(keys("0+50 3-50") + keys("1+50 2-50", 1))),
        [(0, 50, 3), (1, 50, 1)],
    ),
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
    "finest ticks": (
        song(keys(row(3, 400)), division=32767),
        [(400 + i, 50 + i, 1) for i in range(3)],
    ),
    "no length": (song(keys("0+50 0-50 2+50 3-50")), [(0, 50, 1 / 96), (2, 50, 1)]),
    "most notes": (
        song([(0, b"\xc0\x30"), *keys(row(300))], keys(row(999, 0.25, 1), 1)),
        [(i + 0.25, 50 + i % 5, 1) for i in range(999)],
    ),
}
REFUSED = {  # a file, and what is said of it
    "key of 8 flats": (song([(0, b"\xff\x59\2\xf8\0"), *LINE]), "8 flats"),
    "pitch above 127": (song([*LINE, (4, b"\x90\xc8\x50"), (5, b"\x80\xc8\0")]), "pitch 127"),
    "slow": (song([(0, b"\xff\x51\3\xe4\xe1\xc0"), *LINE]), "4 BPM"),
    "large": (GOOD + bytes(1_000_001), "too large"),
    "cut off": (GOOD[:100], "cut off.*export"),
    "empty": (b"", "no MIDI"),
    "alien chunk": (song(LINE).replace(b"MTrk", b"XFIH\0\0\0\1aMTrk"), "no MTrk header"),
    "several songs": (song(LINE, LINE, kind=2), "several songs"),
    "frames": (song(LINE, division=0xE728), "not in beats"),
    "endless": (song(keys(row(3, 30_000)), division=480), "largest tick"),
    "pointer of Git LFS": (b"version https://git-lfs.github.com/spec", "no MIDI.*git lfs pull"),
    "silence": (song([]), "no notes or only drums"),
    "drums": (song(keys(row(24), 9)), "no notes or only drums"),
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
    piece = nb.read_piece(READ[case][0], "odd.mid")
    found = piece.notes[["onset", "pitch", "duration"]].to_numpy()
    np.testing.assert_allclose(found, READ[case][1], atol=3e-4)
    assert piece.notes.step.tolist() == [0, *np.diff(piece.notes.onset)]


def test_bad_files_are_left_out(nb: ModuleType, tmp_path: Path) -> None:
    """Each bad file is left out with the true reason and a cure, and the good one is read."""
    folder, bad = tmp_path / "mozart", {f"{case}.mid": data for case, (data, _) in REFUSED.items()}
    write_files(folder, bad)
    (folder / "gone.mid").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="mozart can be used\n") as caught:
        nb.load_corpus("mozart", tmp_path, nb.Config())
    write_files(folder, {"good.mid": GOOD})
    (piece,), table = nb.load_corpus("mozart", tmp_path, nb.Config())
    remarks = table.set_index("file").remark
    assert piece.name == "good" and not remarks.pop("good.mid")
    assert str(caught.value).split("\n")[1:] == [" ".join(both) for both in remarks.items()]
    assert remarks["gone.mid"].startswith("left out: [Errno 2] No such file")
    for case, (_, reason) in REFUSED.items():
        assert re.match(f"left out: .*{reason}.*remove it$", remarks[f"{case}.mid"]), case
    assert table.notes[table.notes > 0].tolist() == [len(piece)]


def test_parts_become_one_sorted_table(nb: ModuleType) -> None:
    """All parts become one stream by onset, pitch, end and velocity, however they come."""
    notes = [(1, 60, 1, 90), (1, 64, 1, 70), (1, 64, 1, 80), (1, 64, 2, 60), (1.5, 50, 1, 90)]
    for random_state in range(6):
        order, parts = np.random.default_rng(random_state).permutation(notes).tolist(), []
        for onset, *key, duration, velocity in order:
            on, off = (bytes([kind, int(*key), int(velocity)]) for kind in (0x90, 0x80))
            parts.append([(onset, on), (onset + duration, off)])
        piece = nb.read_piece(song(*parts, division=480), "f.a.mid")
        columns = piece.notes[["onset", "pitch", "duration", "velocity"]]
        np.testing.assert_allclose(columns, notes, atol=1e-6)
        assert (piece.name, len(piece), piece.first) == ("f.a", 5, 0)


@pytest.mark.parametrize("late", [60, 31.7])
def test_beats_and_mean_tempo(nb: ModuleType, late: float) -> None:
    """Beats do not depend on the tempo, whose mean from first onset to last end is kept."""
    tempos = [
        (at, b"\xff\x51\3" + round(6e7 / bpm).to_bytes(3)) for at, bpm in ((0, 60), (8, late))
    ]
    piece = nb.read_piece(song(tempos, keys(f"4+40 {row(20, 5)} 34-40")), "a.mid")
    assert piece.notes.onset.tolist() == pytest.approx([4, *range(5, 25)], abs=1e-3)
    assert piece.notes.duration.tolist() == pytest.approx([30, *[1] * 20], abs=1e-3)
    assert piece.tempo == pytest.approx(30 / (4 / 60 + 26 / late), rel=1e-4)


def test_instrument(nb: ModuleType, tmp_path: Path) -> None:
    """The class that is set, or has most notes, is read; files without it are named."""
    both, piano = song(ORGAN, PIANO), song(PIANO)
    write_files(tmp_path / "mixed", {"both.mid": both, "one.mid": piano, "two.mid": piano})
    for setting, names, program, notes in (
        ("", ["both"], 19, 99),  # in fewer files than the piano
        ("Piano", ["both", "one", "two"], 1, 9),
        ("Organ", ["both"], 19, 99),
    ):
        pieces, table = nb.load_corpus("mixed", tmp_path, replace(nb.Config(), instrument=setting))
        assert [piece.name for piece in pieces] == names
        assert {(piece.program, len(piece)) for piece in pieces} == {(program, notes)}
        # the steps, too, are those between its own notes
        assert all(set(piece.notes.step.round(6)) == {0, 1} for piece in pieces)
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
    """Return pitch, onset and length in ticks of notes: a release ends the earliest of its key."""
    found = Counter()
    for track in mido.MidiFile(file=io.BytesIO(data)).tracks:
        now, struck = 0, defaultdict(deque)
        for event in track:
            now += event.time
            if event.type == "note_on" and event.velocity:
                struck[event.channel, event.note].append(now)
            elif event.type in ("note_on", "note_off"):
                start = struck[event.channel, event.note].popleft()
                found[event.note, start, max(now - start, 1)] += 1
    return found


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
