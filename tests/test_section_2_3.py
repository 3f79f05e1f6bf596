"""Sections 2 and 3 of the notebook: from files to pieces, their links, and the split."""

import ast
import io
import os
import re
import struct
import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import matplotlib.pyplot as plt
import mido
import numpy as np
import pandas as pd
import pytest
from mido.midifiles.meta import encode_variable_int
from notebook_tools import (
    ROOT,
    chorale_notes,
    code_cells,
    listed_sums,
    midi_bytes,
    piece_of,
    read_notebook,
    small_config,
)

SIDES = ["training", "validation", "test"]
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
    """Return the events of a text such as `0+60 1-60`: key 60 is struck, and let go on beat 1."""
    found = re.findall(r"([\d.]+)([+-])(\d+)", text)
    status = {"+": 0x90 + channel, "-": 0x80 + channel}
    return [(float(beat), bytes([status[sign], int(key), 80])) for beat, sign, key in found]


def row(count: int, first: float = 0, length: float = 1) -> str:
    """Return the text of so many notes in a row."""
    at = (first + i * length for i in range(count))
    return " ".join(f"{on}+{50 + i % 5} {on + length}-{50 + i % 5}" for i, on in enumerate(at))


GOOD = midi_bytes([chorale_notes(0)])
LINE, NOTES = keys("0+50 1-50 1+53 1.5-53 1.5+57 3.5-57"), [(0, 50, 1), (1, 53, 0.5), (1.5, 57, 2)]
STRINGS = [(0, b"\xc0\x30"), *keys(row(300))]
CASES = {  # a file, and its notes of onset, pitch and duration or what is said of it
    "key of 8 flats": (song([(0, b"\xff\x59\2\xf8\0"), *LINE]), "read .*8 flats"),
    "tempo of 0": (song([(0, b"\xff\x51\3\0\0\0"), *LINE]), NOTES),
    "sysex above 127": (song([(0, b"\xf0\4\x50\xff\1\xf7"), *LINE]), NOTES),
    "volume above 127": (song([(0, b"\xb0\7\xf0"), *LINE]), NOTES),
    "velocity above 127": (song([(0, b"\x90\x32\xc8"), *LINE[1:]]), NOTES),
    "pitch above 127": (song([*LINE, (4, b"\x90\xc8\x50"), (5, b"\x80\xc8\0")]), "pitch 127"),
    "fewer tracks than announced": (song(LINE, announced=3), "cut off.*export"),
    "alien chunk": (song(LINE).replace(b"MTrk", b"XFIH\0\0\0\1aMTrk"), "no MTrk header.*export"),
    "several songs": (song(LINE, LINE, kind=2), "several songs.*export"),
    "frames": (song(LINE, division=0xE728), "no beats.*export"),
    "finest ticks": (song(keys(row(700)), division=32767), keys(row(700))),
    "late end": (song([*LINE, (200_000, b"\xff\1\1a")], division=480), NOTES),
    "endless": (song(keys(row(3, 30_000)), division=480), "largest tick"),
    "released before it is struck": (
        song(keys("0-50 0+50 0+57 1-57 3+50 4-50")),
        [(0, 50, 3), (0, 57, 1), (3, 50, 1)],
    ),
    "released once too often": (song(keys("0+50 1-50 2-50 3+50 4-50")), [(0, 50, 1), (3, 50, 1)]),
    "one of many not released": (
        song(keys("0+50 1-50 1+50 3+50 4-50 5+50 6+50 7-50 9-50")),
        [(0, 50, 1), (1, 50, 2), (3, 50, 1), (5, 50, 2), (6, 50, 3)],
    ),
    "struck twice at once": (song(keys("0+50 0+50 2-50")), [(0, 50, 2), (0, 50, 2)]),
    "never released": (song(keys("1+50"), LINE), [NOTES[0], (1, 50, 2.5), *NOTES[1:]]),
    "never released, alone": (song([*keys("1+50"), (4, b"\xff\1\1a")]), [(1, 50, 3)]),
    "voices on one key": (song(keys("0+50 1+50 2-50 4-50")), [(0, 50, 2), (1, 50, 3)]),
    "a tick too long": (
        song(keys("0+50 .5+50 .501-50 1+50 1.001-50 1.5-50"), division=1000),
        [(0, 50, 0.501), (0.5, 50, 0.501), (1, 50, 0.5)],
    ),
    "no length": (song(keys("0+50 0-50 2+50 3-50")), [(0, 50, 1 / 96), (2, 50, 1)]),
    "pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "web page": (
        b"<!DOCTYPE html><title>404</title>",
        "web page.*b'<!DOCTYPE.*download",
    ),
    "letter": (b"Dear Wolfgang,\n" * 20, "begins with b'Dear Wolfgang"),
    "nothing": (b"", "begins with b''"),
    "header": (GOOD[:3], "begins with b'MTh'"),
    "part": (GOOD[:400], "cut off.*export"),
    "silence": (song([]), "no notes or only drums"),
    "drums": (midi_bytes([chorale_notes(0)], drums=True), "no notes or only drums"),
    "late piano": (song(STRINGS, keys(row(999, 600, 0.25), 1)), keys(row(999, 600, 0.25))),
    "long rest": (
        song(STRINGS, keys(f"{row(200)} {row(300, 501)}", 1)),
        "rest of 302 beats",
    ),
    "behind the end": (song([*LINE, (4, END[1:]), *keys("4+90 5-90")]), NOTES),
    "late start": (song(keys(row(9, 700))), keys(row(9, 700))),
}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files, in folders of their own, into the folder."""
    for path, data in ((folder / name, data) for name, data in files.items()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def names_of(items: list) -> list[str]:
    """Return the names of files or pieces."""
    return [item.name for item in items]


def tune(random_state: int, length: int) -> list[int]:
    """Return random pitches."""
    return np.random.default_rng(random_state).integers(60, 84, length).tolist()


def chords(nb: ModuleType, name: str, *voices: list[int]) -> object:
    """Return a piece with one note of each voice on every beat."""
    notes = [(i, pitch, 1.0, 90) for voice in voices for i, pitch in enumerate(voice)]
    return piece_of(nb, name, sorted(notes))


def in_a_row(nb: ModuleType, sizes: list[int], reach: int = 0) -> list:
    """Return pieces a, b, c and so on of so many notes, linked with their neighbours in reach."""
    names = [chr(ord("a") + i) for i in range(len(sizes))]
    near = [frozenset(names[max(0, i - reach) : i + reach + 1]) for i in range(len(sizes))]
    pieces = [chords(nb, name, [60] * size) for name, size in zip(names, sizes, strict=True)]
    return [replace(piece, linked=linked) for piece, linked in zip(pieces, near, strict=True)]


def links_of(nb: ModuleType, pieces: list, **changes: float) -> dict[str, str]:
    """Return for each piece by name the sorted names of what it is linked with."""
    linked = nb.link_pieces(pieces, replace(nb.Config(), **changes))
    return {piece.name: " ".join(sorted(piece.linked)) for piece in linked}


def test_parts_become_one_sorted_table(nb: ModuleType) -> None:
    """All parts become one stream by onset, pitch, end and velocity, however they come."""
    notes = [(1, 60, 1, 90), (1, 64, 1, 70), (1, 64, 1, 80), (1, 64, 2, 60), (1.5, 50, 1, 90)]
    table = pd.DataFrame(notes, columns=["onset", "pitch", "duration", "velocity"])
    expected = table.assign(step=[0, 0, 0, 0, 0.5], program=[40, 30, 20, 10, 0])
    for random_state in range(6):
        order = np.random.default_rng(random_state).permutation(len(notes))
        programs = tuple(expected.program[order].tolist())
        piece = nb.read_piece(midi_bytes([[notes[i]] for i in order], (), programs), "f.a.mid")
        pd.testing.assert_frame_equal(piece.notes[list(expected)], expected, check_dtype=False)
        assert (piece.name, len(piece), piece.first) == ("f.a", 5, 0)


@pytest.mark.parametrize("late", [60, 31.7])
def test_beats_and_mean_tempo(nb: ModuleType, late: float) -> None:
    """Beats do not depend on the tempo, whose mean from first onset to last end is kept."""
    notes = [(4, 40, 30, 90), *(note for note in chorale_notes(1) if note[0] >= 4)]
    piece = nb.read_piece(midi_bytes([notes], ((0, 60), (8, late))), "a.mid")
    expected = piece_of(nb, "a", notes).notes
    pd.testing.assert_frame_equal(piece.notes[list(expected)], expected, check_dtype=False)
    assert piece.tempo == pytest.approx(30 / (4 / 60 + 26 / late), rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_odd_files(nb: ModuleType, tmp_path: Path, case: str) -> None:
    """A file that is odd is read as it was meant, or refused by its name with reason and cure."""
    data, expected = CASES[case]
    write_files(tmp_path, {"odd/odd.mid": data})
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=f"left out: odd.*{expected}.*remove it$"):
            nb.load_corpus("odd", tmp_path, nb.Config())
        return
    (piece,), _ = nb.load_corpus("odd", tmp_path, nb.Config())
    if isinstance(expected[0][1], bytes):  # events, of which every second strikes
        times, pitches = ([event[i] for event in expected] for i in (0, 1))
        pairs = zip(times[::2], times[1::2], pitches[::2], strict=True)
        expected = [(start, event[1], stop - start) for start, stop, event in pairs]
    found = piece.notes[["onset", "pitch", "duration"]].to_numpy()
    np.testing.assert_allclose(found, expected, atol=3e-4)
    assert piece.notes.step.iloc[0] == 0


@pytest.mark.parametrize(
    ("notes", "tempo", "features"),
    [
        ([(0, 60, 256, 90), (256, 62, 1, 90)], 120, ""),
        ([(0, 60, 257, 90)], 120, "a note or rest of 257 beats, pitch 60, 120 beats per minute"),
        ([(0, 60, 1, 90), (257, 60, 1, 90)], 120, "rest of 257 beats"),
        ([(0, 60, 1, 90)], 6, ""),
        ([(0, 60, 1, 90)], 4, "rest of 1 beats, pitch 60, 4 beats per minute"),
        ([(0, 60, 1, 90)], 1001, "1001 beats per minute"),
    ],
)
def test_absurd_music(nb: ModuleType, notes: list, tempo: float, features: str) -> None:
    """What lasts as long, or is as slow or fast, as no music is left out, with the reason."""
    data = midi_bytes([notes], ((0, tempo),))
    if features:
        with pytest.raises(ValueError, match=rf"^a cannot .*{features}.*: remove it$"):
            nb.of_instrument(nb.read_piece(data, "a.mid"), "Piano")
    else:
        piece = nb.of_instrument(nb.read_piece(data, "a.mid"), "Piano")
        assert piece.tempo == pytest.approx(tempo, rel=1e-4)


def test_instrument(nb: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The class that is set, or has most notes, is read and said; files without it are named."""
    organ, piano, choir = (chorale_notes(i, beats) for i, beats in enumerate((24, 6, 4)))
    data = {
        "both": midi_bytes([organ, piano], programs=(19, 1)),
        "choir": midi_bytes([choir[:5], choir[5:]], programs=(52, 53)),
        "piano": midi_bytes([piano], programs=(1,)),
    }
    write_files(tmp_path, {f"mixed/{name}.mid": content for name, content in data.items()})
    write_files(tmp_path, {"choir/choir.mid": data["choir"]})
    for corpus, setting, kind, program, notes, names in (
        ("mixed", "", "Organ", 19, organ, ["both"]),  # in fewer files than the piano
        ("choir", "", "Ensemble", 53, choir, ["choir"]),
        ("mixed", "Piano", "Piano", 1, piano, ["both", "piano"]),
        ("mixed", "Ensemble", "Ensemble", 53, choir, ["choir"]),
    ):
        pieces, table = nb.load_corpus(corpus, tmp_path, replace(nb.Config(), instrument=setting))
        assert f"instrument: {kind};" in capsys.readouterr().out
        assert [(piece.name, piece.program) for piece in pieces] == [(n, program) for n in names]
        for piece in pieces:  # the steps, too, are those between its own notes
            expected = piece_of(nb, piece.name, notes).notes
            pd.testing.assert_frame_equal(piece.notes, expected, check_dtype=False)
        for name, remark in zip(table.file.str.removesuffix(".mid"), table.remark, strict=True):
            refused = rf"left out: {name} has no part for {kind}: set `instrument` .*, or remove"
            assert remark == "" if name in names else re.match(refused, remark)
    assert "to one of Organ, Piano, or remove it" in table.remark[0]


def cells_run(corpus: object, changes: object, data_dir: Path, *more: str) -> tuple[dict, object]:
    """Return the names after the cells from imports to corpus, and what the last one shows."""
    sources = {cell.id: cell.source for cell in code_cells(read_notebook())}
    names = {"corpus": corpus, "changes": changes, "project": str(ROOT), "random_state": 0}
    for name in ("imports", "config", "config-run"):
        exec(sources[name], names)
    names["project_dir"] = data_dir.parent
    tree = ast.parse("\n".join(sources[name] for name in ("piece", "read-piece", "find-corpus")))
    exec(compile(tree, "", "exec"), names)
    *cells, last = ast.parse("\n".join(sources[name] for name in ("load-corpus", *more))).body
    exec(compile(ast.Module(cells, []), "", "exec"), names)
    return names, eval(compile(ast.Expression(last.value), "", "eval"), names)


def test_corpora_are_found(nb: ModuleType, tmp_path: Path) -> None:
    """A corpus is a folder of its name, here or one folder down, linked or not, at any depth."""
    with pytest.raises(ValueError, match=r"no MIDI in a folder mozrat in data/ \(there: \[\]\)"):
        nb.corpus_files("mozrat", tmp_path / "data")
    data, names = tmp_path / "data", ["b.MID", "a.mid", "c.midi", "op/1/a.mid", "op/2/a.mid"]
    hidden = ["._a.mid", ".mid", "a.txt", "mid", ".old/a.mid", "d.mid/e.txt"]
    write_files(data / "mozart", dict.fromkeys([*names, *hidden], GOOD))
    write_files(data, dict.fromkeys(["all/mozart/z.mid", "all/haydn/h.mid", "no/a.txt"], GOOD))
    write_files(tmp_path / "elsewhere", {"e.mid": GOOD})
    for link in (data / "linked", data / "all" / "deep", data / "all" / "haydn" / "more"):
        link.symlink_to(tmp_path / "elsewhere")
    found = {"mozart": sorted(names), "haydn": ["h.mid", "more/e.mid"], "linked": ["e.mid"]}
    found |= {"deep": ["e.mid"], "op": ["1/a.mid", "2/a.mid"]}
    assert found == {name: list(nb.corpus_files(name, data)) for name in found}
    for name in ("mozrat", "no", "1", "", ".", "..", "all/haydn", "moz*", str(data / "mozart")):
        with pytest.raises(ValueError, match=r"there: \[.*'all', .*'haydn', 'linked', 'mozart'"):
            nb.corpus_files(name, data)


def test_names(nb: ModuleType, tmp_path: Path) -> None:
    """Whatever files and folders are named, pieces are told apart, drawn, and written to tables."""
    composed, bad = unicodedata.normalize("NFC", "Dvořák"), os.fsdecode(b"b\xff")
    names = ["a.mid", "a.midi", "A.mid", "$x_{$.mid", f"{bad}.mid", "op/a.mid", "é/b.mid"]
    split = unicodedata.normalize("NFD", composed)
    write_files(tmp_path / "data" / split, dict.fromkeys(names, GOOD))
    assert nb.corpus_files(split, tmp_path / "data") == nb.corpus_files(composed, tmp_path / "data")
    with plt.rc_context(), pd.option_context("display.max_colwidth", 50):
        run, _ = cells_run(composed, {}, tmp_path / "data", "piano-roll")
        found = [piece.name for piece in run["pieces"]]
        assert found == ["$x_{$", "A", "a.mid", "a.midi", "b\\udcff", "op/a", "é/b"]
        for piece in run["pieces"]:
            figure, axis = plt.subplots()
            run["draw_piano_roll"](axis, piece.notes, piece.name)
            axis.plot([0], label=piece.name)
            axis.legend()
            run["show"](figure, "")
    run["file_table"].assign(piece=found).to_csv(tmp_path / "a.csv")


def test_parameters_from_outside(tmp_path: Path) -> None:
    """A number names a folder, a text is a dictionary, and another stops the run at once."""
    write_files(tmp_path / "data" / "2004", {"a.mid": GOOD})
    with plt.rc_context(), pd.option_context("display.max_colwidth", 50):
        run, _ = cells_run(2004, "{'epochs': 1, \"instrument\": 'Piano'}", tmp_path / "data")
        assert (run["corpus"], run["config"].epochs, len(run["pieces"])) == ("2004", 1, 1)
        for changes, features in (
            ("{'epoch': 1}", "epoch"),
            ("{epochs: 1}", "malformed"),
            ("{", "{"),
        ):
            with pytest.raises((TypeError, ValueError, SyntaxError), match=features):
                cells_run("2004", changes, tmp_path / "data")


def test_bad_files_are_left_out(nb: ModuleType, tmp_path: Path) -> None:
    """Bad files are left out, all of them with the whole remark; where all are, that is told."""
    folder = tmp_path / "data" / "mozart"
    write_files(folder, {f"{i}.mid": b"<html>" for i in range(6)})
    (folder / "gone.mid").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"can be used:\n(left out: .*remove it\n){6}.*gone\.mid"):
        nb.load_corpus("mozart", tmp_path / "data", nb.Config())
    write_files(folder, {"good.mid": GOOD})
    with plt.rc_context(), pd.option_context("display.max_colwidth", 50):
        run, shown = cells_run("mozart", {}, tmp_path / "data")
        assert names_of(run["pieces"]) == ["good"] and run["file_table"].notes.sum() > 0
        page = shown._repr_html_()
        assert page.count("or remove it") == 6 and "No such file" in page


def test_largest_file(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file over the largest size is refused; one of it is read."""
    monkeypatch.setattr(nb, "LARGEST_FILE", len(GOOD))
    assert len(nb.read_piece(GOOD, "a.mid"))
    with pytest.raises(ValueError, match=rf"a\.mid cannot be read \(over {len(GOOD)} bytes\): "):
        nb.read_piece(GOOD + b"\0", "a.mid")


def test_progress_disappears(nb: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Jupyter the line of progress is gone at the end, elsewhere there is none."""
    line = MagicMock()
    monkeypatch.setattr(nb, "DisplayHandle", lambda: line)
    assert list(nb.track("abc", "reading")) == [*"abc"] and not line.mock_calls
    monkeypatch.setattr(nb, "get_ipython", lambda: True)
    assert list(nb.track("abc", "reading")) == [*"abc"]
    shown = [call.args[0].data for call in line.update.mock_calls]
    assert all("reading" in text for text in shown[:3]) and shown[3:] == [""]


# Links and the split


def test_upper_voice(nb: ModuleType) -> None:
    """A note is in the upper voice if nothing higher sounds when it begins."""
    for random_state in range(10):
        notes, highest = sorted([*chorale_notes(random_state)[:40], (2, 80, 3, 90)]), []
        for onset, pitch, _, _ in notes:
            sounding = [p for start, p, length, _ in notes if start <= onset < start + length]
            highest += [pitch] if pitch == max(sounding) else []
        assert nb.skyline(piece_of(nb, "a", notes).notes).tolist() == highest


@pytest.mark.parametrize(("shared", "a", "b"), [(11, "a", "b"), (12, "a b", "a b")])
def test_shared_tune(nb: ModuleType, shared: int, a: str, b: str) -> None:
    """Pieces are linked from a fifth of the shorter one's runs, in any key and over any bass."""
    common = tune(0, shared)  # all but eight of its notes begin a run, of 20 in the shorter piece
    short = chords(nb, "a", common + tune(1, 28 - shared), [p - 40 for p in tune(3, 28)])
    long = chords(nb, "b", tune(2, 40) + [pitch + 5 for pitch in common])
    pieces = [short, long, chords(nb, "two notes", [60, 62])]
    assert links_of(nb, pieces) == {"a": a, "b": b, "two notes": "two notes"}


def test_shared_setting(nb: ModuleType) -> None:
    """A few bars in all voices link two pieces whose upper voices share next to nothing."""
    pieces = [
        chords(nb, name, *([p - 24 * v for p in tune(v, 8) + tune(i + v, 72)] for v in range(3)))
        for name, i in (("a", 10), ("b", 20))
    ]
    assert links_of(nb, pieces) == {"a": "a b", "b": "a b"}
    assert links_of(nb, pieces, same_setting=0.1) == {"a": "a", "b": "b"}


@pytest.mark.parametrize(
    ("names", "works"),
    [
        ("z_311_1 Z_311_2 z_312_1 op_10-3 op_10-19", "z_311 z_311 z_312 op_10 op_10"),
        ("ps1 PS2 ps4 et-1 et-2 elise se2", "ps ps ps et et elise se2"),
        ("op18 op31 k_279 k_280 im2 im5 im6", "op18 op31 k_279 k_280 im2 im5 im6"),
        ("1 2 11 12 a\n1 İ_7_1", "1 2 11 12 a\n i̇_7"),
        (" ".join(f"song_{i:03}" for i in range(1, 17)), " ".join(["song"] * 16)),
        (" ".join(f"song_{i:03}" for i in range(1, 41)), ""),
        (" ".join(f"song{i}" for i in range(1, 41)), ""),
    ],
)
def test_works(nb: ModuleType, names: str, works: str) -> None:
    """A name gives up its last number only if that is likely to be a movement's."""
    assert nb.works_of(names.split(" ")) == (works or names).split(" ")


def test_movements_are_linked(nb: ModuleType) -> None:
    """Movements are linked by name without the last number, and no link is passed on."""
    names = "z_311_1 Z_311_2 z_312_1 op-p18 op-p31 op-3 op-4 last x y".split()
    pieces = [chords(nb, name, tune(i, 30)) for i, name in enumerate(names[:-1])]
    pieces.append(chords(nb, "y", tune(0, 30) + tune(8, 30)))  # like the first and the last of them
    works = [piece.work for piece in nb.link_pieces(pieces, nb.Config())]
    assert works == nb.works_of(names)
    linked = {"z_311_1": "Z_311_2 y z_311_1", "Z_311_2": "Z_311_2 z_311_1"}
    linked |= {"x": "x y", "y": "x y z_311_1"}
    assert links_of(nb, pieces) == {name: name for name in names} | linked


def test_hold_out(nb: ModuleType) -> None:
    """Pieces are drawn with their partners, but not theirs, to the share or up to twice that."""
    rngs = [np.random.default_rng(i) for i in range(30)]
    alone, linked = in_a_row(nb, [81, 80] + 6 * [10]), in_a_row(nb, 5 * [1], reach=1)
    draws = {"".join(names_of(nb.hold_out(alone, 40, rng))) for rng in rngs}
    assert {*"".join(draws)} == {*"bcdefgh"}
    assert all(draw == "b" or (len(draw) == 4 and "b" not in draw) for draw in draws)
    draws = {"".join(names_of(nb.hold_out(linked, 2, rng))) for rng in rngs}
    assert draws == {"ab", "abc", "bcd", "cde", "de"}


@pytest.mark.parametrize("random_state", range(5))
def test_what_is_linked_does_not_train(nb: ModuleType, random_state: int) -> None:
    """Shares are held out, and what is linked with a held-out piece is on no other side."""
    config = small_config(nb)
    alone, pieces = (in_a_row(nb, 100 * [20], reach) for reach in (0, 1))
    sides = [nb.split_pieces(alone, config, random_state)[side] for side in SIDES]
    assert [len(part) for part in sides] == [80, 10, 10] and set().union(*sides) == set(alone)
    split, again, other = (nb.split_pieces(pieces, config, random_state + i) for i in (0, 0, 1))
    assert again == split and all(other[side] != split[side] for side in SIDES)
    training, validation, test = (set(names_of(split[side])) for side in SIDES)
    by_test, by_validation = ({p.name for p in pieces if p.linked & s} for s in (test, validation))
    assert by_test > test and by_validation > validation and not validation & by_test
    assert training == {piece.name for piece in pieces} - by_test - by_validation


def test_pieces_are_cut(nb: ModuleType) -> None:
    """With too few works each piece is cut, with a window left out between the parts."""
    config = small_config(nb)
    lengths = {"a": 80, "b": 24, "c": 90}  # beats; parts of one piece are too short as seeds
    pieces = [piece_of(nb, name, chorale_notes(0, beats)) for name, beats in lengths.items()]
    split = nb.split_pieces(pieces, config, 0)
    for i, piece in enumerate(pieces):
        half, late = len(piece) // 2, 3 * len(piece) // 4
        starts, ends = [0, half + config.window, late + config.window], [half, late, len(piece)]
        for side, start, end in zip(SIDES, starts, ends, strict=True):
            expected = piece.notes[start:end].reset_index(drop=True)
            pd.testing.assert_frame_equal(split[side][i].notes, expected)
            assert (split[side][i].name, split[side][i].first) == (piece.name, start)
    parts = nb.cut_pieces(in_a_row(nb, [4, 8]), 0)  # one note has nothing to predict
    assert [len(part) for part in parts.values()] == [2, 1, 1]
    # too few are works too large for the test side, or for validation, or with links to all others
    for sizes, reach in (([200, 200], 0), ([100, 500, 600], 0), ([50, 50, 700, 200], 1)):
        split = nb.split_pieces(in_a_row(nb, sizes, reach), config, 0)
        assert [len(part) for part in split["training"]] == [size // 2 for size in sizes]


@pytest.mark.parametrize("name", ["seed_notes", "piece_notes"])
def test_no_held_out_piece_is_long_enough(nb: ModuleType, name: str) -> None:
    """The message names side, number and setting, on whichever side the short piece is."""
    pieces, sides = in_a_row(nb, [110, 100, 790]), set()
    for random_state in range(10):
        assert nb.split_pieces(pieces, small_config(nb, **{name: 100}), random_state)
        message = f"^no (validation|test) piece has 101 notes: lower `{name}` .*add longer pieces$"
        with pytest.raises(ValueError, match=message) as caught:
            nb.split_pieces(pieces, small_config(nb, **{name: 101}), random_state)
        sides.add(str(caught.value).split()[1])
    assert sides == {"validation", "test"}
    with pytest.raises(ValueError, match="no validation piece has"):
        nb.split_pieces(in_a_row(nb, [60]), small_config(nb), 0)  # too short to cut


def test_longest_shared_run(nb: ModuleType) -> None:
    """The run equals that of a search through all, and no run goes on into the next piece."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        values, *corpus = (rng.integers(60, 64, size) for size in (30, 25, 1, 40))
        mine, *others = (
            {tuple(p[i:j].tolist()) for j in range(len(p) + 1) for i in range(j)}
            for p in (values, *corpus)
        )
        longest = [max(map(len, mine & runs), default=0) for runs in others]
        assert nb.longest_shared_run(values, corpus) == max(longest)
    assert nb.longest_shared_run(np.arange(4), [np.arange(2), np.arange(2, 4)]) == 2


def test_border_between_chorales(nb: ModuleType, root: Path) -> None:
    """Enough is held out, no link crosses the border, and no run of over 22 pitches is shared."""
    pieces, _ = nb.load_corpus("bach_chorales", root / "data", nb.Config())
    pieces = nb.link_pieces(pieces, nb.Config())
    partners = [len(piece.linked) - 1 for piece in pieces]
    assert len(partners) == 365 and max(partners) < 365 / 15 and partners.count(0) > 365 / 3
    for random_state in range(3):
        split = nb.split_pieces(pieces, nb.Config(), random_state)
        shares = [sum(map(len, split[side])) / sum(map(len, pieces)) for side in SIDES]
        assert shares[0] > 0.6 and 0.1 <= min(shares[1:]) <= max(shares[1:]) <= 0.2
        runs = {side: set() for side in SIDES}
        for side, pitches in ((s, p.notes.pitch.tolist()) for s in SIDES for p in split[s]):
            runs[side].update(zip(*(pitches[k:] for k in range(23)), strict=False))
        for one, other in combinations(SIDES, 2):
            linked = {name for piece in split[one] for name in piece.linked}
            assert linked.isdisjoint(names_of(split[other]))
            assert runs[one] and not runs[one] & runs[other]


def test_works_of_the_course(nb: ModuleType) -> None:
    """Suites and sonatas are one work each, other pieces are works of their own."""
    names, works = {}, {}
    for path in listed_sums():
        names.setdefault(path.split("/")[0], []).append(Path(path).stem)
    for composer in names:
        works[composer] = {*nb.works_of(names[composer])}
    assert works["mozart"] == {f"mz_{k}" for k in (311, 330, 331, 332, 333, 545, 570)}
    assert works["albeniz"] == {"alb_esp", "alb_se"} and works["borodin"] == {"bor_ps"}
    single = {"chpn-p7", "chp_op18", "chpn_op23", "chpn_op10_e01"}
    assert works["chopin"] > single | {"chpn_op7", "chpn_op35"}
    counts = "albeniz 2 bach 3 balakir 1 beeth 10 borodin 1 brahms 6 burgm 9 chopin 42 debussy 5 "
    counts += "granados 1 grieg 16 haydn 7 liszt 11 mendelssohn 4 mozart 7 muss 1 schubert 7 "
    counts += "schumann 4 tschai 12"
    found = " ".join(f"{composer} {len(works[composer])}" for composer in sorted(works))
    assert found == counts


def first_in_first_out(data: bytes) -> Counter:
    """Return pitch, onset and length in ticks of notes: each key's n-th strike and n-th release."""
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


def test_course_dataset(nb: ModuleType, dataset: Path) -> None:
    """All files of all composers are found, and each release ends the earliest note of its key."""
    counts = Counter(name.split("/")[0] for name in listed_sums())
    files = {name: nb.corpus_files(name, dataset) for name in counts}
    assert counts == {name: len(found) for name, found in files.items()}
    for path in (path for found in files.values() for path in found.values()):
        data = path.read_bytes()
        notes, ticks = nb.read_piece(data, path.name).notes, int.from_bytes(data[12:14])
        times = (notes[["onset", "duration"]] * ticks).round().astype(int)
        found = Counter(zip(notes.pitch, times.onset, times.duration, strict=True))
        assert found == first_in_first_out(data), path.name
