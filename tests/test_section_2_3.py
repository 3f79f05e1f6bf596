"""Sections 2 and 3 of the notebook: from files to pieces, works, and the split."""

import io
import zipfile
from collections import Counter
from dataclasses import replace
from itertools import chain, combinations, pairwise
from pathlib import Path
from types import ModuleType

import mido
import numpy as np
import pandas as pd
import pretty_midi
import pytest
from notebook_tools import Note, chorale_notes, midi_bytes, piece_of, small_config

GOOD = midi_bytes([chorale_notes(0)])
RUBATO = ((0, 60), (5, 31.7), (7.25, 140), (20, 90))  # a tempo map: beat, beats per minute
BAD = {  # file: its content and what the message says
    "text.mid": (b"Dear Wolfgang,\n" * 20, "is no MIDI file"),
    "drums.mid": (midi_bytes([chorale_notes(0)], drums=True), "holds only drums"),
    "flute.mid": (midi_bytes([chorale_notes(0)], programs=(73,)), "only programs [73]"),
    "empty.mid": (midi_bytes([[]]), "holds no notes"),
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


@pytest.fixture(scope="module")
def chorales(nb: ModuleType, root: Path) -> list:
    """Return the bundled chorales with their works."""
    pieces, _ = nb.load_corpus("bach_chorales", root / "data", nb.Config())
    return nb.find_works(pieces, nb.Config())


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files into the folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_zip(path: Path, *names: str) -> None:
    """Write a zip with a good MIDI file under each of the names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, GOOD)


def names_of(groups: dict[str, list]) -> dict[str, list[str]]:
    """Return the names of the files of each corpus, or of the pieces on each side."""
    return {group: [item.name for item in items] for group, items in groups.items()}


def seconds_at(beat: float, tempos: tuple[tuple[float, float], ...]) -> float:
    """Return when a beat is played under a tempo map of (beat, beats per minute)."""
    starts = [min(start, beat) for start, _ in tempos] + [beat]
    parts = zip(pairwise(starts), tempos, strict=True)
    return sum(60 * (b - a) / bpm for (a, b), (_, bpm) in parts)


def tune(random_state: int, length: int) -> list[int]:
    """Return random pitches."""
    return np.random.default_rng(random_state).integers(60, 84, length).tolist()


def chords(nb: ModuleType, name: str, *voices: list[int]) -> object:
    """Return a piece with one note of each voice on every beat."""
    notes: list[Note] = [
        (float(beat), pitch, 1.0, 90) for voice in voices for beat, pitch in enumerate(voice)
    ]
    return piece_of(nb, name, sorted(notes))


def works_of(nb: ModuleType, pieces: list, config: object) -> str:
    """Return the works of the pieces, one after the other."""
    return " ".join(piece.work for piece in nb.find_works(pieces, config))


def in_works(nb: ModuleType, sizes: dict[str, int], pieces: int = 1) -> list:
    """Return works of so many notes, each in so many pieces of one length."""
    return [
        replace(chords(nb, f"{work}{i}", [60] * (size // pieces)), work=work)
        for work, size in sizes.items()
        for i in range(pieces)
    ]


# From MIDI files to notes


def test_table_is_sorted(nb: ModuleType) -> None:
    """Notes are sorted by onset, then by pitch, however they come; a step is the time since."""
    notes = [(1, 60, 1, 90), (1, 64, 1, 80), (1, 64, 2, 70), (1.5, 50, 1, 90), (3, 40, 1, 90)]
    table = piece_of(nb, "in order", notes).notes
    assert table.pitch.tolist() == [60, 64, 64, 50, 40]
    assert table.step.tolist() == [0, 0, 0, 0.5, 1.5]
    for random_state in range(5):
        shuffled = np.random.default_rng(random_state).permutation(notes).tolist()
        other = piece_of(nb, "shuffled", shuffled).notes.astype(table.dtypes)
        pd.testing.assert_frame_equal(other, table)


def test_parts_are_merged(nb: ModuleType, config: object) -> None:
    """All parts become one stream with the notes of the file."""
    notes = chorale_notes(2, velocity=True)
    piece = nb.read_piece(midi_bytes([notes[::2], notes[1::2]]), "folder.a.mid", config)
    expected = pd.DataFrame(notes, columns=["onset", "pitch", "duration", "velocity"])
    pd.testing.assert_frame_equal(piece.notes[list(expected)], expected, check_dtype=False)
    assert piece.name == "folder.a" and len(piece) == len(notes)


def test_beats_do_not_depend_on_the_tempo(nb: ModuleType, config: object) -> None:
    """Every tempo map gives the same notes in beats."""
    steady, played = (
        nb.read_piece(midi_bytes([chorale_notes(1)], tempos), "a.mid", config)
        for tempos in (((0, 80),), RUBATO)
    )
    pd.testing.assert_frame_equal(played.notes, steady.notes)


@pytest.mark.parametrize("tempos", [((0, 80),), RUBATO])
def test_mean_tempo(nb: ModuleType, config: object, tempos: tuple) -> None:
    """The tempo is the beats from the first onset to the last end over the time they take."""
    notes = [note for note in chorale_notes(1) if note[0] >= 4]
    piece = nb.read_piece(midi_bytes([notes], tempos), "a.mid", config)
    end = max(onset + duration for onset, _, duration, _ in notes)
    seconds = seconds_at(end, tempos) - seconds_at(4, tempos)
    assert piece.tempo == pytest.approx(60 * (end - 4) / seconds, rel=1e-4)


def test_no_duration_is_zero(
    nb: ModuleType, config: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A note that the reader gives no length lasts a tick."""
    midi = pretty_midi.PrettyMIDI(io.BytesIO(GOOD))
    midi.instruments[0].notes.append(pretty_midi.Note(90, 100, 0.75, 0.75))
    monkeypatch.setattr(nb.pretty_midi, "PrettyMIDI", lambda file: midi)
    notes = nb.read_piece(GOOD, "a.mid", config).notes
    assert notes.duration[notes.pitch == 100].tolist() == pytest.approx([1 / 480])


def test_other_parts_are_left_out(nb: ModuleType, config: object) -> None:
    """Of piano, violin, drums and a part without notes the piano is read, or what is chosen."""
    midi = pretty_midi.PrettyMIDI()
    for program, drum in ((0, False), (40, False), (0, True), (1, False)):
        part = pretty_midi.Instrument(program, is_drum=drum, name=f"{program}{drum}")
        part.notes = [pretty_midi.Note(90, 60, 0, 1)] if program != 1 else []
        midi.instruments.append(part)
    for programs, names in (((0, 1), ["0False"]), ((40,), ["40False"])):
        parts = nb.choose_parts(midi, "a.mid", replace(config, programs=programs))
        assert [part.name for part in parts] == names


# Folders and zips


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_left_out(nb: ModuleType, config: object, tmp_path: Path, name: str) -> None:
    """A bad file is left out with a message that names file and cure; the others are used."""
    data, message = BAD[name]
    write_files(tmp_path / "mozart", {"good.mid": GOOD, name: data})
    pieces, table = nb.load_corpus("mozart", tmp_path, config)
    assert [piece.name for piece in pieces] == ["good"]
    row = table.set_index("file").loc[name]
    assert not row.used and row.notes == 0
    assert row.remark.startswith(f"{name} ") and message in row.remark and "remove" in row.remark
    assert "()" not in row.remark  # every reason is told
    assert ("`programs`" in row.remark) == (name == "flute.mid")


def test_no_file_can_be_used(nb: ModuleType, config: object, tmp_path: Path) -> None:
    """Where all files are bad, all reasons are told."""
    write_files(tmp_path / "mozart", {name: data for name, (data, _) in BAD.items()})
    with pytest.raises(ValueError, match="none of the files") as caught:
        nb.load_corpus("mozart", tmp_path, config)
    assert all(name in str(caught.value) for name in BAD)


def test_remark_on_a_file_that_is_used(nb: ModuleType, config: object, tmp_path: Path) -> None:
    """What the reader warns of stands in the table."""
    midi = mido.MidiFile(file=io.BytesIO(GOOD))
    midi.tracks[1].insert(0, mido.MetaMessage("set_tempo", tempo=500_000))
    odd = io.BytesIO()
    midi.save(file=odd)
    write_files(tmp_path / "mozart", {"good.mid": GOOD, "odd.mid": odd.getvalue()})
    _, table = nb.load_corpus("mozart", tmp_path, config)
    assert table.used.all() and (table.notes == len(chorale_notes(0))).all()
    assert table.remark[0] == "" and "non-zero track" in table.remark[1]


def test_at_most_some_files(nb: ModuleType, config: object, tmp_path: Path) -> None:
    """The first files by name are read if not all are wanted."""
    write_files(tmp_path / "mozart", {f"{name}.mid": GOOD for name in "cab"})
    for most, names in ((2, ["a", "b"]), (None, ["a", "b", "c"])):
        pieces, _ = nb.load_corpus("mozart", tmp_path, config, most)
        assert [piece.name for piece in pieces] == names


def test_files_of_a_folder(nb: ModuleType, tmp_path: Path) -> None:
    """MIDI files are found by suffix in any case; hidden ones, texts and folders are not."""
    names = ["b.MID", "a.mid", "c.midi", "._a.mid", ".mid", "a.txt", "mid", "d.mid/e.mid"]
    write_files(tmp_path / "mozart", dict.fromkeys(names, GOOD))
    assert names_of(nb.find_corpora(tmp_path)) == {"mozart": ["a.mid", "b.MID", "c.midi"]}


@pytest.mark.parametrize("top", ["", "classical-music-midi/"])
def test_zip_is_read(nb: ModuleType, config: object, tmp_path: Path, top: str) -> None:
    """A zip is read without being unpacked, whether or not a folder wraps it all."""
    names = ["mozart/b.mid", "mozart/a.MID", "mozart/sub/c.mid", "haydn/h.mid", "notes/a.txt"]
    hidden = ["__MACOSX/mozart/._a.mid", "zzz/mozart/._b.mid", "top.mid"]
    write_zip(tmp_path / "all.zip", *[top + name for name in names], *hidden)
    corpora = names_of(nb.find_corpora(tmp_path))
    assert corpora["mozart"] == ["a.MID", "b.mid"] and corpora["haydn"] == ["h.mid"]
    assert "notes" not in corpora and "__MACOSX" not in corpora
    pieces, table = nb.load_corpus("mozart", tmp_path, config)
    assert [piece.name for piece in pieces] == ["a", "b"] and table.used.all()
    assert [path.name for path in tmp_path.iterdir()] == ["all.zip"]


def test_folder_wins_over_zip(nb: ModuleType, tmp_path: Path) -> None:
    """Where a corpus is there twice, the folder is read."""
    write_files(tmp_path / "mozart", {"folder.mid": GOOD})
    write_zip(tmp_path / "all.zip", "mozart/zip.mid", "haydn/zip.mid")
    expected = {"mozart": ["folder.mid"], "haydn": ["zip.mid"]}
    assert names_of(nb.find_corpora(tmp_path)) == expected


def test_two_zips_with_one_corpus(nb: ModuleType, tmp_path: Path) -> None:
    """Which of two zips is meant is for the user to say."""
    write_zip(tmp_path / "one.zip", "mozart/a.mid", "haydn/a.mid")
    write_zip(tmp_path / "two.zip", "midi/mozart/b.mid")
    with pytest.raises(ValueError, match=r"mozart is twice in one\.zip and two\.zip: keep one"):
        nb.find_corpora(tmp_path)
    write_zip(tmp_path / "two.zip", "midi/liszt/b.mid")
    assert sorted(nb.find_corpora(tmp_path)) == ["haydn", "liszt", "mozart"]


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_damaged_zip(nb: ModuleType, tmp_path: Path, keep: int) -> None:
    """A zip that breaks off is named with the cure."""
    write_zip(tmp_path / "all.zip", "mozart/a.mid")
    data = (tmp_path / "all.zip").read_bytes()
    (tmp_path / "all.zip").write_bytes(data[:keep])
    with pytest.raises(ValueError, match=r"all\.zip is a damaged zip .*download it again"):
        nb.find_corpora(tmp_path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_member(nb: ModuleType, config: object, tmp_path: Path, damage: str) -> None:
    """A file in a zip that cannot be unpacked is left out, the others are used."""
    write_zip(tmp_path / "all.zip", "mozart/a.mid", "mozart/b.mid")
    data = bytearray((tmp_path / "all.zip").read_bytes())
    header, place, bits = DAMAGE[damage]
    data[data.index(header) + place] ^= bits
    (tmp_path / "all.zip").write_bytes(data)
    _, table = nb.load_corpus("mozart", tmp_path, config)
    assert table.used.tolist() == [False, True]
    assert table.remark[0].startswith("a.mid is damaged (") and "remove" in table.remark[0]


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
    with pytest.raises(ValueError, match=r"data/mozrat/; there are: none\. .*kaggle"):
        nb.load_corpus("mozrat", tmp_path, config)
    write_files(tmp_path / "mozart", {"a.mid": GOOD})
    write_files(tmp_path / "nested", {"sub/a.mid": GOOD})
    write_zip(tmp_path / "all.zip", "midi/albeniz/a.mid", "midi/schubert/a.mid")
    for name in ("mozrat", "nested", ""):
        with pytest.raises(
            ValueError, match=rf"data/{name}/; there are: albeniz, mozart, schubert\. "
        ):
            nb.load_corpus(name, tmp_path, config)


def test_no_data_folder(nb: ModuleType, tmp_path: Path) -> None:
    """Without the data folder the message says which one is missing."""
    with pytest.raises(ValueError, match=r"no folder data/ .*restore"):
        nb.find_corpora(tmp_path / "data")


# Links and works


def test_upper_voice(nb: ModuleType) -> None:
    """A note is in the upper voice if nothing higher sounds when it begins."""
    for random_state in range(10):
        notes, highest = chorale_notes(random_state)[:40], []
        for onset, pitch, _, _ in notes:
            sounding = [p for start, p, length, _ in notes if start <= onset < start + length]
            highest += [pitch] if pitch == max(sounding) else []
        assert nb.upper_voice(piece_of(nb, "a", notes).notes).tolist() == highest


def test_interval_runs(nb: ModuleType) -> None:
    """Runs of intervals are the same in every key, and short music has none."""
    pitches = np.array([60, 62, 64, 62, 64, 66])
    assert nb.interval_runs(pitches, 2) == {(2, 2), (2, -2), (-2, 2)}
    assert nb.interval_runs(pitches + 5, 2) == nb.interval_runs(pitches, 2)
    assert nb.interval_runs(pitches[:2], 2) == nb.interval_runs(pitches[:0], 2) == set()


@pytest.mark.parametrize(("shared", "strengths"), [(11, {}), (12, {(0, 1): 1}), (16, {(0, 1): 2})])
def test_link_strengths(nb: ModuleType, config: object, shared: int, strengths: dict) -> None:
    """Pieces are linked from a fifth of the shorter one's runs, the more the stronger."""
    common = tune(0, shared)  # all but eight of its notes begin a run, of 20 in the shorter piece
    pieces = [chords(nb, "a", common + tune(1, 28 - shared)), chords(nb, "b", tune(2, 40) + common)]
    assert nb.link_strengths(pieces, config) == pytest.approx(strengths)


def test_movements_are_one_work(nb: ModuleType, config: object) -> None:
    """Movements are one work by their names, which is named without the trailing number."""
    names = "z_311_1 Z_311_2 z_312_1 op-p1 op-p2 op-3 op-4 last".split()
    pieces = [chords(nb, name, tune(i, 30)) for i, name in enumerate(names)]
    assert works_of(nb, pieces, config) == "z_311 z_311 z_312 op-p1 op-p2 op op last"


@pytest.mark.parametrize(("movements", "works"), [(2, "y y y"), (3, "y x x x")])
def test_movements_stay_together(
    nb: ModuleType, config: object, movements: int, works: str
) -> None:
    """What one movement shares with another piece joins all movements to it, or none."""
    pieces = [chords(nb, f"x_{i}", tune(i, 30)) for i in range(movements)]
    assert works_of(nb, [chords(nb, "y", tune(1, 30)), *pieces], config) == works


def test_same_tune_in_another_key(nb: ModuleType, config: object) -> None:
    """A tune in two keys over two basses makes one work, named after its first piece."""
    higher = [pitch + 5 for pitch in tune(0, 40)]
    tunes = {"z_2": tune(0, 40), "b_1": tune(1, 40), "a": higher}
    basses = [[pitch - 40 for pitch in tune(i, 40)] for i in (2, 3, 4)]
    pieces = [chords(nb, *named, bass) for named, bass in zip(tunes.items(), basses, strict=True)]
    pieces = nb.find_works(pieces, config)
    assert [piece.work for piece in pieces] == ["z", "b", "z"]
    assert [piece.linked for piece in pieces] == [{"a"}, set(), {"z_2"}]


def test_same_setting(nb: ModuleType, config: object) -> None:
    """A few bars in all voices link two pieces whose upper voices share next to nothing."""
    pieces = [
        chords(nb, name, *([p - 24 * v for p in tune(v, 8) + tune(i + v, 72)] for v in range(3)))
        for name, i in (("a", 10), ("b", 20))
    ]
    assert works_of(nb, pieces, config) == "a a"
    assert works_of(nb, pieces, replace(config, same_setting=0.1)) == "a b"


@pytest.mark.parametrize(
    ("shared", "works"),
    [((50, 40, 30), "a a a d"), ((30, 40, 50), "a b b b"), ((50, 30, 40), "a a c c")],
)
def test_chain_is_not_one_work(
    nb: ModuleType, config: object, shared: tuple[int, ...], works: str
) -> None:
    """The most alike are joined first, then works of which half of the pairs are linked."""
    common = [[], *(tune(i, length) for i, length in enumerate(shared)), []]
    pieces = [
        chords(nb, "abcd"[i], before + tune(10 + i, 60) + after)
        for i, (before, after) in enumerate(pairwise(common))
    ]
    linked = [piece.linked for piece in nb.find_works(pieces, config)]
    assert linked == [{"b"}, {"a", "c"}, {"b", "d"}, {"c"}]
    assert works_of(nb, pieces, config) == works


# The split


def test_hold_out(nb: ModuleType) -> None:
    """Works are drawn until they hold enough; one of over twice the share is never drawn."""
    pieces = in_works(nb, {"huge": 82, "large": 80} | {f"small{i}": 10 for i in range(6)}, pieces=2)
    drawn = [nb.hold_out(pieces, 40, np.random.default_rng(state)) for state in range(20)]
    assert set.union(*drawn) == {piece.work for piece in pieces} - {"huge"}
    assert {len(works) for works in drawn if "large" not in works} == {4}


@pytest.mark.parametrize("random_state", range(3))
def test_works_stay_whole(nb: ModuleType, config: object, random_state: int) -> None:
    """No work is on two sides, every piece is on one, and about the share is held out."""
    pieces = in_works(nb, {f"work{i:02}": 60 for i in range(25)}, pieces=2)
    split = nb.split_pieces(pieces, config, random_state)
    assert list(split) == SIDES
    assert [len({piece.work for piece in part}) for part in split.values()] == [19, 3, 3]
    assert sorted(chain(*names_of(split).values())) == sorted(piece.name for piece in pieces)


def test_split_follows_its_random_state(nb: ModuleType, config: object) -> None:
    """The same random state holds out the same works, another one others."""
    pieces = in_works(nb, {f"work{i:02}": 60 for i in range(25)})
    one, again, other = (names_of(nb.split_pieces(pieces, config, state)) for state in (0, 0, 1))
    assert one == again
    assert one["test"] != other["test"] and one["validation"] != other["validation"]


@pytest.mark.parametrize("random_state", range(5))
def test_linked_pieces_are_left_out(nb: ModuleType, config: object, random_state: int) -> None:
    """What is linked with a test piece is on no other side, nor do validation links train."""
    pieces = in_works(nb, {f"work{i:02}": 60 for i in range(30)})
    names = [piece.name for piece in pieces]
    for i, piece in enumerate(pieces):
        piece.linked = frozenset({names[i - 5], names[(i + 5) % 30]})
    split = nb.split_pieces(pieces, config, random_state)
    training, validation, test = (set(part) for part in names_of(split).values())
    by_test, by_validation = (
        {piece.name for piece in pieces if piece.linked & part} for part in (test, validation)
    )
    assert validation and not validation & (test | by_test)
    assert training == set(names) - test - by_test - validation - by_validation


def test_few_works_are_cut(nb: ModuleType, config: object) -> None:
    """With too few works each piece is cut, with a window left out between the parts."""
    pieces = [piece_of(nb, f"p{i}", chorale_notes(i, beats=80)) for i in range(4)]
    split = nb.split_pieces(pieces, config, 0)
    for number, piece in enumerate(pieces):
        parts = [split[side][number] for side in SIDES]
        half, late = len(piece) // 2, 3 * len(piece) // 4
        starts, ends = [0, half + config.window, late + config.window], [half, late, len(piece)]
        assert [part.first for part in parts] == starts
        for part, start, end in zip(parts, starts, ends, strict=True):
            expected = piece.notes[start:end].reset_index(drop=True)
            pd.testing.assert_frame_equal(part.notes, expected)
            assert (part.name, part.work) == (f"{piece.name} from note {start}", piece.work)


@pytest.mark.parametrize(
    ("works", "linked", "cut"), [(4, False, True), (5, False, False), (10, True, True)]
)
def test_when_pieces_are_cut(
    nb: ModuleType, config: object, works: int, linked: bool, cut: bool
) -> None:
    """Pieces are cut if there are too few works, or if all share music."""
    pieces = in_works(nb, {"large": 400} | {f"work{i}": 100 for i in range(works - 1)})
    everything = frozenset(piece.name for piece in pieces)
    pieces = [replace(p, linked=everything - {p.name} if linked else p.linked) for p in pieces]
    split = names_of(nb.split_pieces(pieces, config, 0))
    assert all(split.values()) and (everything.isdisjoint(chain(*split.values()))) == cut


def test_too_short_to_cut(nb: ModuleType, config: object) -> None:
    """Pieces of which no part can be held out end in a message; short ones among others do not."""
    short, long = in_works(nb, {"short": 60, "long": 100})
    with pytest.raises(ValueError, match=r"too short .*add longer pieces"):
        nb.split_pieces([short], config, 0)
    split = nb.cut_pieces([short, long], config)
    assert [len(split[side]) for side in SIDES] == [2, 1, 1]


@pytest.mark.parametrize("short", ["validation", "test"])
@pytest.mark.parametrize(("seed_notes", "name"), [(8, "seed_notes"), (7, "piece_notes")])
def test_check_lengths(nb: ModuleType, short: str, seed_notes: int, name: str) -> None:
    """Where no held-out piece is long enough, the message names side, number and setting."""
    seven, eight = in_works(nb, {"seven": 7, "eight": 8})
    split = {side: [seven, eight] for side in SIDES} | {short: [seven]}
    settings = small_config(nb, seed_notes=seed_notes, piece_notes=8)
    with pytest.raises(ValueError, match=f"no {short} piece has 8 notes: lower `{name}`.* longer"):
        nb.check_lengths(split, settings)
    nb.check_lengths(split, replace(settings, seed_notes=7, piece_notes=7))
    nb.check_lengths(split | {short: [seven, eight]}, settings)


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
    assert nb.longest_shared_run(np.array([1, 2, 3, 4]), pieces)[0] == 2
    assert nb.longest_shared_run(np.array([9, 3, 4, 5]), pieces) == (3, 1)
    assert nb.longest_shared_run(np.array([6]), pieces)[0] == 0


# Real music


def test_works_of_the_chorales(chorales: list) -> None:
    """No work of the chorales is too large to be held out."""
    sizes = Counter(piece.work for piece in chorales)
    assert 10 <= max(sizes.values()) <= 12
    assert len(chorales) == 365 and len(sizes) > 200


@pytest.mark.parametrize("random_state", range(3))
def test_border_between_chorales(nb: ModuleType, chorales: list, random_state: int) -> None:
    """No piece is linked with one on another side, and no run of over 22 pitches is shared."""
    split = nb.split_pieces(chorales, nb.Config(), random_state)
    assert sum(map(len, split.values())) > 0.8 * len(chorales)
    runs = {side: set() for side in SIDES}
    for side, part in split.items():
        for pitches in (piece.notes.pitch.tolist() for piece in part):
            runs[side].update(zip(*(pitches[k:] for k in range(23)), strict=False))
    for one, other in combinations(SIDES, 2):
        assert not {n for piece in split[one] for n in piece.linked} & set(names_of(split)[other])
        assert runs[one] and not runs[one] & runs[other]


def test_course_dataset_is_found(nb: ModuleType, dataset: Path) -> None:
    """All files of all composers of the course dataset are found."""
    corpora = nb.find_corpora(dataset)
    assert len(corpora) == 19 and sum(map(len, corpora.values())) == 295


def test_works_of_mozart(nb: ModuleType, dataset: Path) -> None:
    """The 21 movements belong to seven sonatas of three."""
    pieces, _ = nb.load_corpus("mozart", dataset, nb.Config())
    works = Counter(piece.work for piece in nb.find_works(pieces, nb.Config()))
    numbers = (311, 330, 331, 332, 333, 545, 570)
    assert works == {f"mz_{number}": 3 for number in numbers}
