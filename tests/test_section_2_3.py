"""Sections 2 and 3 of the notebook: from files to pieces, their links, and the split."""

import io
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import ModuleType

import mido
import numpy as np
import pandas as pd
import pretty_midi
import pytest
from notebook_tools import Note, chorale_notes, midi_bytes, piece_of, small_config

GOOD = midi_bytes([chorale_notes(0)])
BAD = {  # file: its content and what the message says
    "text.mid": (b"Dear Wolfgang,\n" * 20, "is no MIDI file"),
    "drums.mid": (midi_bytes([chorale_notes(0)], drums=True), "holds no notes or only drums"),
    "empty.mid": (midi_bytes([[]]), "holds no notes or only drums"),
    "flute.mid": (midi_bytes([chorale_notes(0)], programs=(73,)), "programs [73]: add them to"),
}
BAD |= {f"first{size}.mid": (GOOD[:size], "is no MIDI file") for size in (0, 3, 20, 60, 400)}
DAMAGE = {  # of the first file in a zip: header, place of a byte after it, bits that flip
    "checksum": (b"PK\1\2", 16, 1),
    "content": (b"PK\3\4", 30 + len("mozart/a.mid"), 2),
    "password": (b"PK\1\2", 8, 1),
    "method": (b"PK\1\2", 10, 99),
}
SIDES = ["training", "validation", "test"]


@pytest.fixture(scope="module")
def config(nb: ModuleType) -> object:
    """Return a small configuration."""
    return small_config(nb)


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files into the folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_zip(path: Path, *names: str) -> bytearray:
    """Write a zip with a good MIDI file under each of the names and return its bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, GOOD)
    return bytearray(path.read_bytes())


def names_of(groups: dict[str, list]) -> dict[str, list[str]]:
    """Return the names of the files of each corpus, or of the pieces on each side."""
    return {group: [item.name for item in items] for group, items in groups.items()}


def tune(random_state: int, length: int) -> list[int]:
    """Return random pitches."""
    return np.random.default_rng(random_state).integers(60, 84, length).tolist()


def chords(nb: ModuleType, name: str, *voices: list[int]) -> object:
    """Return a piece with one note of each voice on every beat."""
    notes: list[Note] = [(i, pitch, 1.0, 90) for voice in voices for i, pitch in enumerate(voice)]
    return piece_of(nb, name, sorted(notes))


def in_a_row(nb: ModuleType, sizes: list[int], reach: int = 0) -> list:
    """Return pieces a, b, c and so on of so many notes, linked with their neighbours in reach."""
    names = [chr(ord("a") + i) for i in range(len(sizes))]
    near = [frozenset(names[max(0, i - reach) : i + reach + 1]) for i in range(len(sizes))]
    pieces = [chords(nb, name, [60] * size) for name, size in zip(names, sizes, strict=True)]
    return [replace(piece, linked=linked) for piece, linked in zip(pieces, near, strict=True)]


def links_of(nb: ModuleType, pieces: list, config: object) -> dict[str, str]:
    """Return for each piece by name the sorted names of what it is linked with."""
    return {p.name: " ".join(sorted(p.linked)) for p in nb.link_pieces(pieces, config)}


# From MIDI files to notes


def test_parts_become_one_sorted_table(nb: ModuleType, config: object) -> None:
    """All parts become one stream by onset, pitch, end and velocity, however they come."""
    notes = [(1, 60, 1, 90), (1, 64, 1, 70), (1, 64, 1, 80), (1, 64, 2, 60), (1.5, 50, 1, 90)]
    expected = pd.DataFrame(notes, columns=["onset", "pitch", "duration", "velocity"])
    for random_state in range(6):
        order = np.random.default_rng(random_state).permutation(len(notes))
        piece = nb.read_piece(midi_bytes([[notes[i]] for i in order]), "folder.a.mid", config)
        pd.testing.assert_frame_equal(piece.notes[list(expected)], expected, check_dtype=False)
        assert piece.notes.step.tolist() == [0, 0, 0, 0, 0.5]
        assert (piece.name, len(piece), piece.first, piece.remark) == ("folder.a", 5, 0, "")


@pytest.mark.parametrize("late", [60, 31.7])
def test_beats_and_mean_tempo(nb: ModuleType, config: object, late: float) -> None:
    """Beats do not depend on the tempo, whose mean from first onset to last end is kept."""
    notes = [(4, 40, 30, 90), *(note for note in chorale_notes(1) if note[0] >= 4)]
    piece = nb.read_piece(midi_bytes([notes], ((0, 60), (8, late))), "a.mid", config)
    expected = piece_of(nb, "a", notes).notes
    pd.testing.assert_frame_equal(piece.notes, expected, check_dtype=False)
    assert piece.tempo == pytest.approx(30 / (4 / 60 + 26 / late), rel=1e-4)


def test_chosen_parts(nb: ModuleType, config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of piano, violin and drums what is chosen is read; a note without length lasts a tick."""
    midi = pretty_midi.PrettyMIDI(resolution=480)
    for pitch, program, drum in ((60, 0, False), (70, 40, False), (80, 0, True)):
        midi.instruments.append(pretty_midi.Instrument(program, is_drum=drum))
        midi.instruments[-1].notes = [pretty_midi.Note(90, pitch, start, 1) for start in (0, 1)]
    monkeypatch.setattr(nb.pretty_midi, "PrettyMIDI", lambda file: midi)
    for programs, pitch in (((0, 1), 60), ((40,), 70)):
        notes = nb.read_piece(b"", "a.mid", replace(config, programs=programs)).notes
        assert notes.pitch.tolist() == [pitch, pitch]
        assert notes.duration.tolist() == pytest.approx([2, 1 / 480])


# Folders and zips


def test_bad_files_are_left_out(nb: ModuleType, config: object, tmp_path: Path) -> None:
    """Bad files are left out with file and cure; where all are bad, all reasons are told."""
    write_files(tmp_path / "mozart", {name: data for name, (data, _) in BAD.items()})
    with pytest.raises(ValueError, match="none of the files") as caught:
        nb.load_corpus("mozart", tmp_path, config)
    odd, midi = io.BytesIO(), mido.MidiFile(file=io.BytesIO(GOOD))
    midi.tracks[1].insert(0, mido.MetaMessage("set_tempo", tempo=500_000))
    midi.save(file=odd)
    write_files(tmp_path / "mozart", {"good.mid": GOOD, "odd.mid": odd.getvalue()})
    pieces, table = nb.load_corpus("mozart", tmp_path, config)
    assert [piece.name for piece in pieces] == ["good", "odd"]
    rows = {file: (notes, remark) for file, notes, remark in table.itertuples(index=False)}
    assert rows["good.mid"] == (len(pieces[0]), "")
    assert rows["odd.mid"] == (len(pieces[1]), pieces[1].remark)
    assert "non-zero track" in pieces[1].remark  # what the reader warns of
    for name, (_, message) in BAD.items():
        notes, remark = rows[name]
        assert notes == 0 and remark in str(caught.value) and "()" not in remark
        assert remark.startswith(f"left out: {name} ")
        assert message in remark and "remove" in remark


def test_files_of_a_folder(nb: ModuleType, tmp_path: Path) -> None:
    """MIDI files are found by suffix in any case; hidden ones, texts and folders are not."""
    names = ["b.MID", "a.mid", "c.midi", "._a.mid", ".mid", "a.txt", "mid", "d.mid/e.mid"]
    write_files(tmp_path / "mozart", dict.fromkeys(names, GOOD))
    write_files(tmp_path / "texts", {"a.txt": GOOD})
    assert names_of(nb.find_corpora(tmp_path)) == {"mozart": ["a.mid", "b.MID", "c.midi"]}


@pytest.mark.parametrize("top", ["", "classical-music-midi/"])
def test_zip_is_read(nb: ModuleType, config: object, tmp_path: Path, top: str) -> None:
    """A zip is read without being unpacked, whether or not a folder wraps it all."""
    names = [top + name for name in ("mozart/b.mid", "mozart/a.MID", "haydn/h.mid", "notes/a.txt")]
    write_zip(tmp_path / "all.zip", *names, "__MACOSX/mozart/._a.mid", "z/y/mozart/c.mid", "d.mid")
    expected = {"mozart": ["a.MID", "b.mid"], "haydn": ["h.mid"]}
    assert names_of(nb.find_corpora(tmp_path)) == expected
    pieces, table = nb.load_corpus("mozart", tmp_path, config)
    assert [piece.name for piece in pieces] == ["a", "b"] and not any(table.remark)
    assert [path.name for path in tmp_path.iterdir()] == ["all.zip"]


def test_one_name_twice(nb: ModuleType, tmp_path: Path) -> None:
    """A folder wins over a zip; which of two zips is meant is for the user to say."""
    write_files(tmp_path / "mozart", {"folder.mid": GOOD})
    write_zip(tmp_path / "one.zip", "mozart/zip.mid", "haydn/zip.mid")
    write_zip(tmp_path / "two.zip", "midi/liszt/zip.mid")
    expected = {"mozart": ["folder.mid"], "haydn": ["zip.mid"], "liszt": ["zip.mid"]}
    assert names_of(nb.find_corpora(tmp_path)) == expected
    write_zip(tmp_path / "two.zip", "midi/haydn/zip.mid")
    with pytest.raises(ValueError, match="haydn is twice in the zips of data/: keep one"):
        nb.find_corpora(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_damaged_zip(nb: ModuleType, config: object, tmp_path: Path, keep: int) -> None:
    """A zip that breaks off is named with the cure, but not read where there is a folder."""
    data = write_zip(tmp_path / "all.zip", "mozart/a.mid")
    (tmp_path / "all.zip").write_bytes(data[:keep])
    with pytest.raises(ValueError, match=r"all\.zip is damaged .*download it again"):
        nb.load_corpus("mozart", tmp_path, config)
    write_files(tmp_path / "mozart", {"folder.mid": GOOD})
    assert nb.load_corpus("mozart", tmp_path, config)[0][0].name == "folder"


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_member(nb: ModuleType, config: object, tmp_path: Path, damage: str) -> None:
    """A file in a zip that cannot be unpacked is left out, the others are used."""
    data = write_zip(tmp_path / "all.zip", "mozart/a.mid", "mozart/b.mid")
    header, place, bits = DAMAGE[damage]
    data[data.index(header) + place] ^= bits
    (tmp_path / "all.zip").write_bytes(data)
    pieces, table = nb.load_corpus("mozart", tmp_path, config)
    assert [piece.name for piece in pieces] == ["b"] and table.remark[1] == ""
    assert (
        table.remark[0].startswith("left out: a.mid is damaged (") and "remove" in table.remark[0]
    )


def test_largest_file(nb: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file over the largest size is refused, in a folder and in a zip; one of it is read."""
    write_files(tmp_path / "folder", {"a.mid": GOOD})
    write_zip(tmp_path / "all.zip", "zip/a.mid")
    for [path] in nb.find_corpora(tmp_path).values():
        monkeypatch.setattr(nb, "LARGEST_FILE", len(GOOD))
        assert nb.read_bytes(path) == GOOD
        monkeypatch.setattr(nb, "LARGEST_FILE", len(GOOD) - 1)
        with pytest.raises(ValueError, match=rf"a\.mid holds over {len(GOOD) - 1} bytes: remove"):
            nb.read_bytes(path)


def test_unknown_corpus(nb: ModuleType, config: object, tmp_path: Path) -> None:
    """The message lists what is there in folders and zips, and where more comes from."""
    with pytest.raises(ValueError, match=r"no mozrat in data/ \(there: none\).*kaggle"):
        nb.load_corpus("mozrat", tmp_path, config)
    write_files(tmp_path, {"mozart/a.mid": GOOD, "nested/sub/a.mid": GOOD})
    write_zip(tmp_path / "all.zip", "midi/schubert/a.mid", "midi/albeniz/a.mid")
    for name in ("mozrat", "nested", ""):
        with pytest.raises(ValueError, match=r"\(there: albeniz, mozart, schubert\)"):
            nb.load_corpus(name, tmp_path, config)
    with pytest.raises(ValueError, match=r"there is no folder data/ .* restore it"):
        nb.load_corpus("mozart", tmp_path / "data", config)


# Links between pieces


def test_upper_voice(nb: ModuleType) -> None:
    """A note is in the upper voice if nothing higher sounds when it begins."""
    for random_state in range(10):
        notes, highest = chorale_notes(random_state)[:40], []
        for onset, pitch, _, _ in notes:
            sounding = [p for start, p, length, _ in notes if start <= onset < start + length]
            highest += [pitch] if pitch == max(sounding) else []
        assert nb.upper_voice(piece_of(nb, "a", notes).notes).tolist() == highest
    held = [(0, 80, 20, 90), *((beat, 60, 1, 90) for beat in range(20))]
    assert nb.upper_voice(piece_of(nb, "a", held).notes).tolist() == [80]


def test_interval_runs(nb: ModuleType) -> None:
    """Runs of intervals are the same in every key, and short music has none."""
    pitches = np.array([60, 62, 64, 62, 64, 66])
    assert nb.interval_runs(pitches, 2) == {(2, 2), (2, -2), (-2, 2)}
    assert nb.interval_runs(pitches + 5, 2) == nb.interval_runs(pitches, 2)
    assert nb.interval_runs(pitches[:2], 2) == nb.interval_runs(pitches[:0], 2) == set()


@pytest.mark.parametrize(("shared", "a", "b"), [(11, "a", "b"), (12, "a b", "a b")])
def test_shared_tune(nb: ModuleType, config: object, shared: int, a: str, b: str) -> None:
    """Pieces are linked from a fifth of the shorter one's runs, in any key and over any bass."""
    common = tune(0, shared)  # all but eight of its notes begin a run, of 20 in the shorter piece
    short = chords(nb, "a", common + tune(1, 28 - shared), [p - 40 for p in tune(3, 28)])
    long = chords(nb, "b", tune(2, 40) + [pitch + 5 for pitch in common])
    pieces = [short, long, chords(nb, "two notes", [60, 62])]
    assert links_of(nb, pieces, config) == {"a": a, "b": b, "two notes": "two notes"}


def test_shared_setting(nb: ModuleType, config: object) -> None:
    """A few bars in all voices link two pieces whose upper voices share next to nothing."""
    pieces = [
        chords(nb, name, *([p - 24 * v for p in tune(v, 8) + tune(i + v, 72)] for v in range(3)))
        for name, i in (("a", 10), ("b", 20))
    ]
    assert links_of(nb, pieces, config) == {"a": "a b", "b": "a b"}
    assert links_of(nb, pieces, replace(config, same_setting=0.1)) == {"a": "a", "b": "b"}


def test_movements_are_linked(nb: ModuleType, config: object) -> None:
    """Movements are linked by their names without the trailing number, in any case."""
    names = "z_311_1 Z_311_2 z_312_1 op-p1 op-p2 op-3 op-4 last".split()
    pieces = [chords(nb, name, tune(i, 30)) for i, name in enumerate(names)]
    assert [p.work for p in pieces] == "z_311 z_311 z_312 op-p1 op-p2 op op last".split()
    linked = dict.fromkeys(names[:2], "Z_311_2 z_311_1") | dict.fromkeys(names[5:7], "op-3 op-4")
    assert links_of(nb, pieces, config) == {name: name for name in names} | linked


def test_links_are_not_passed_on(nb: ModuleType, config: object) -> None:
    """Music shared with one movement does not link with the next, nor does a chain."""
    one, two = tune(0, 30), tune(1, 30)
    tunes = {"x_1": one, "x_2": tune(2, 60), "y": one + two, "z": two}
    pieces = [chords(nb, name, pitches) for name, pitches in tunes.items()]
    expected = {"x_1": "x_1 x_2 y", "x_2": "x_1 x_2", "y": "x_1 y z", "z": "y z"}
    assert links_of(nb, pieces, config) == expected


# The split


def test_hold_out(nb: ModuleType) -> None:
    """Pieces are drawn until they hold enough; one that makes them over twice that is not."""
    pieces = in_a_row(nb, [81, 80] + 6 * [10])
    seen = set()
    for random_state in range(30):
        held = nb.hold_out(pieces, 40, np.random.default_rng(random_state))
        assert held == [piece for piece in pieces if piece in held]
        assert held == pieces[1:2] or (len(held) == 4 and pieces[1] not in held)
        seen |= set(held)
    assert seen == set(pieces[1:])


def test_partners_are_held_out(nb: ModuleType) -> None:
    """A drawn piece brings its partners, not theirs, and what is linked with any is taken away."""
    pieces, drawn = in_a_row(nb, 5 * [1], reach=1), {}
    for random_state in range(30):
        held = nb.hold_out(pieces, 2, np.random.default_rng(random_state))
        sides = names_of({"held": held, "rest": nb.without(pieces, held)})
        drawn["".join(sides["held"])] = "".join(sides["rest"])
    assert drawn == {"ab": "de", "abc": "e", "bcd": "", "cde": "a", "de": "ab"}


def test_enough_pieces(nb: ModuleType, config: object) -> None:
    """The share of the whole is held out twice, and the random state says which pieces."""
    pieces = in_a_row(nb, 100 * [20])
    one, again, other = (names_of(nb.split_pieces(pieces, config, state)) for state in (0, 0, 1))
    assert [(side, len(one[side])) for side in one] == list(zip(SIDES, (80, 10, 10), strict=True))
    assert {name for part in one.values() for name in part} == {piece.name for piece in pieces}
    assert one == again and all(one[side] != other[side] for side in SIDES)


@pytest.mark.parametrize("random_state", range(5))
def test_what_is_linked_does_not_train(nb: ModuleType, config: object, random_state: int) -> None:
    """What is linked with a test piece is on no other side, nor do validation links train."""
    pieces = in_a_row(nb, 40 * [60], reach=1)
    split = nb.split_pieces(pieces, config, random_state)
    training, validation, test = (set(part) for part in names_of(split).values())
    by_test, by_validation = (
        {piece.name for piece in pieces if piece.linked & part} for part in (test, validation)
    )
    assert by_test > test and by_validation > validation and not validation & by_test
    assert training == {piece.name for piece in pieces} - by_test - by_validation


def test_pieces_are_cut(nb: ModuleType, config: object) -> None:
    """With too few works each piece is cut, with a window left out between the parts."""
    lengths = {"a": 80, "b": 24, "c": 90}  # beats; parts of one piece are too short as seeds
    pieces = [piece_of(nb, name, chorale_notes(0, beats)) for name, beats in lengths.items()]
    split = nb.split_pieces(pieces, config, 0)
    assert all(names == ["a", "b", "c"] for names in names_of(split).values())
    for i, piece in enumerate(pieces):
        half, late = len(piece) // 2, 3 * len(piece) // 4
        starts, ends = [0, half + config.window, late + config.window], [half, late, len(piece)]
        for side, start, end in zip(SIDES, starts, ends, strict=True):
            expected = piece.notes[start:end].reset_index(drop=True)
            pd.testing.assert_frame_equal(split[side][i].notes, expected)
            assert split[side][i].first == start
    parts = nb.cut_pieces(in_a_row(nb, [4, 8]), 0)  # one note has nothing to predict
    assert [len(part) for part in parts.values()] == [2, 1, 1]


@pytest.mark.parametrize(
    ("sizes", "reach", "cut"),
    [
        ([100, 100, 800], 0, False),
        ([200, 200], 0, True),  # none is small enough for the test side
        ([100, 500, 600], 0, True),  # nor for validation
        ([50, 50, 700, 200], 1, True),  # all that is left is linked with what is held out
    ],
)
def test_when_pieces_are_cut(
    nb: ModuleType, config: object, sizes: list[int], reach: int, cut: bool
) -> None:
    """Pieces are cut if the draw leaves a side empty."""
    split = names_of(nb.split_pieces(in_a_row(nb, sizes, reach), config, 0))
    assert all(split.values()) and set(split["training"]).issuperset(split["test"]) == cut


@pytest.mark.parametrize("name", ["seed_notes", "piece_notes"])
def test_no_held_out_piece_is_long_enough(nb: ModuleType, name: str) -> None:
    """The message names side, number and setting, on whichever side the short piece is."""
    pieces, sides = in_a_row(nb, [110, 100, 790]), set()
    for random_state in range(10):
        assert nb.split_pieces(pieces, small_config(nb, **{name: 100}), random_state)
        message = f"piece has 101 notes: lower `{name}` .*add longer pieces"
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
        values = rng.integers(60, 64, 30).tolist()
        corpus = [rng.integers(60, 64, size).tolist() for size in (25, 1, 40)]
        runs = [{tuple(p[i:j]) for j in range(len(p) + 1) for i in range(j)} for p in corpus]
        mine = [tuple(values[i:j]) for j in range(31) for i in range(j)]
        longest = [max((len(run) for run in mine if run in known), default=0) for known in runs]
        found, place = nb.longest_shared_run(np.array(values), [np.array(part) for part in corpus])
        assert found == max(longest) == longest[place]
    pieces = [np.array([1, 2]), np.array([3, 4, 5])]
    for values, expected in (((1, 2, 3, 4), (2, 0)), ((9, 3, 4, 5), (3, 1)), ((3, 9), (1, 1))):
        assert nb.longest_shared_run(np.array(values), pieces) == expected
    assert nb.longest_shared_run(np.array([6]), pieces)[0] == 0


# Real music


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
            assert not linked & set(names_of(split)[other])
            assert runs[one] and not runs[one] & runs[other]


def test_course_dataset(nb: ModuleType, dataset: Path) -> None:
    """All files of all composers are found; the 21 movements of Mozart are of seven sonatas."""
    corpora = nb.find_corpora(dataset)
    assert len(corpora) == 19 and sum(map(len, corpora.values())) == 295
    pieces, _ = nb.load_corpus("mozart", dataset, nb.Config())
    numbers = (311, 330, 331, 332, 333, 545, 570)
    assert Counter(piece.work for piece in pieces) == {f"mz_{number}": 3 for number in numbers}
