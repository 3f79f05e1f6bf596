"""What goes wrong with a user's files: each message names the file and the cure."""

import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pretty_midi
import pytest
from notebook_tools import (
    Run,
    chorale_notes,
    make_project,
    midi_bytes,
    piece_of,
    run_notebook,
    small_config,
)

NOBODY = 65534  # the user who owns nothing


def corpus_folder(data: Path, name: str, pieces: int = 1) -> Path:
    """Return a folder of random pieces in the data folder."""
    folder = data / name
    folder.mkdir(parents=True)
    for number in range(pieces):
        (folder / f"piece_{number}.mid").write_bytes(midi_bytes([chorale_notes(number)]))
    return folder


def zip_file(path: Path, members: dict[str, bytes]) -> Path:
    """Return a zip with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def message_of(nb: ModuleType, files: dict[str, bytes], name: str) -> str:
    """Return the remark on one of the files in the table of all."""
    readers = {file: lambda data=data: data for file, data in files.items()}
    _, table = nb.load_corpus(readers, small_config(nb))
    row = table.set_index("file").loc[name]
    assert not row.used and row.notes == 0
    assert name in row.remark
    return row.remark


@pytest.fixture
def good() -> bytes:
    """Return a MIDI file with nothing wrong."""
    return midi_bytes([chorale_notes(0)])


# No corpus


def test_no_data_folder(nb: ModuleType, tmp_path: Path) -> None:
    """Without the data folder the message says which one is missing."""
    with pytest.raises(ValueError, match=r"data/.*restore"):
        nb.find_corpus("mozart", tmp_path / "data")


def test_unknown_corpus(nb: ModuleType, tmp_path: Path, good: bytes) -> None:
    """The message lists the corpora that are there, in folders and in zips."""
    data = tmp_path / "data"
    corpus_folder(data, "bach_chorales")
    (data / "empty").mkdir()
    zip_file(data / "all.zip", {"midi/haydn/a.mid": good, "midi/liszt/b.mid": good})
    with pytest.raises(ValueError, match=r"'mozrat'.*bach_chorales, haydn, liszt") as caught:
        nb.find_corpus("mozrat", data)
    assert "empty" not in str(caught.value)
    with pytest.raises(ValueError, match="there are"):
        nb.find_corpus("", data)


def test_no_corpus_at_all(nb: ModuleType, tmp_path: Path) -> None:
    """In an empty data folder the message says where to get one."""
    with pytest.raises(ValueError, match=r"none.*kaggle"):
        nb.find_corpus("mozart", tmp_path)


def test_folder_without_midi(nb: ModuleType, tmp_path: Path) -> None:
    """A folder of other files is no corpus."""
    (tmp_path / "mozart").mkdir()
    (tmp_path / "mozart" / "readme.txt").write_text("no music")
    with pytest.raises(ValueError, match=r"data/mozart/.*\.mid"):
        nb.find_corpus("mozart", tmp_path)


def test_nested_folders(nb: ModuleType, tmp_path: Path) -> None:
    """Files in subfolders are not read, and where there are no others the message says so."""
    corpus_folder(tmp_path, "mozart/sonatas", pieces=2)
    with pytest.raises(ValueError, match=r"data/mozart/.*not in a subfolder"):
        nb.find_corpus("mozart", tmp_path)
    (tmp_path / "mozart" / "top.mid").write_bytes(b"")
    assert list(nb.find_corpus("mozart", tmp_path)) == ["top.mid"]


# One bad file


def test_text_named_mid(nb: ModuleType, good: bytes) -> None:
    """A text is no MIDI file, and the rest of the corpus is used."""
    files = {"good.mid": good, "letter.mid": b"Dear Wolfgang,\n" * 20}
    assert "no readable MIDI file" in message_of(nb, files, "letter.mid")


@pytest.mark.parametrize("length", [0, 3, 10, 20, 60, 400])
def test_truncated_midi(nb: ModuleType, good: bytes, length: int) -> None:
    """A file that breaks off is left out, wherever it breaks off."""
    files = {"good.mid": good, "half.mid": good[:length]}
    message = message_of(nb, files, "half.mid")
    assert "no readable MIDI file" in message and "replace or remove" in message
    assert "()" not in message


def test_only_drums(nb: ModuleType, good: bytes) -> None:
    """Drums have no pitch."""
    files = {"good.mid": good, "beat.mid": midi_bytes([chorale_notes(0)], drums=True)}
    message = message_of(nb, files, "beat.mid")
    assert "only drums" in message and "remove" in message


def test_other_instrument(nb: ModuleType, good: bytes) -> None:
    """A file without the chosen instrument says which ones it has."""
    violin = midi_bytes([chorale_notes(0), chorale_notes(1)], programs=(40, 41))
    message = message_of(nb, {"good.mid": good, "duo.mid": violin}, "duo.mid")
    assert "[40, 41]" in message and "`programs`" in message


def test_missing_part(nb: ModuleType, good: bytes) -> None:
    """A part that a file does not have is named with how many it has."""
    config = small_config(nb, part=1)
    with pytest.raises(ValueError, match=r"good\.mid has 1 parts?.*`part`"):
        nb.read_piece(good, "good.mid", config)


def test_notes_of_zero_length(nb: ModuleType, good: bytes) -> None:
    """A file whose notes all end where they begin holds nothing to hear."""
    silent = midi_bytes([[(beat, 60, 0, 90) for beat in range(5)]])
    message = message_of(nb, {"good.mid": good, "points.mid": silent}, "points.mid")
    assert "no notes" in message and "remove" in message


def test_some_notes_of_zero_length(nb: ModuleType) -> None:
    """A note without length among others does no harm."""
    notes = [*chorale_notes(0), (3.25, 100, 0, 90)]
    piece = nb.read_piece(midi_bytes([sorted(notes)]), "a.mid", small_config(nb))
    assert (piece.notes.duration > 0).all()
    assert len(piece) in (len(notes), len(notes) - 1)


def test_tempo_of_zero(nb: ModuleType, good: bytes) -> None:
    """A file in which a beat takes no time is left out."""
    endless = midi_bytes([chorale_notes(0)], ((0, 80), (10, math.inf)))
    message = message_of(nb, {"good.mid": good, "endless.mid": endless}, "endless.mid")
    assert "no readable MIDI file" in message and "replace or remove" in message


def test_no_notes(nb: ModuleType, good: bytes) -> None:
    """A file with tracks but no notes is left out."""
    message = message_of(nb, {"good.mid": good, "empty.mid": midi_bytes([[]])}, "empty.mid")
    assert "no notes" in message and "remove" in message


def test_short_piece(nb: ModuleType, good: bytes) -> None:
    """A piece shorter than a window is used, and a remark says that it is short."""
    config = small_config(nb)
    files = {"good.mid": lambda: good, "short.mid": lambda: midi_bytes([chorale_notes(0)[:7]])}
    pieces, table = nb.load_corpus(files, config)
    assert [len(piece) for piece in pieces] == [len(chorale_notes(0)), 7]
    assert table.used.all() and table.notes.tolist() == [len(piece) for piece in pieces]
    assert table.remark[0] == ""
    assert "short" in table.remark[1]


def test_short_pieces_make_padded_windows(nb: ModuleType) -> None:
    """A piece of one note or of seven can be trained on."""
    config = small_config(nb)
    pieces = [piece_of(nb, f"p{n}", chorale_notes(0)[:n]) for n in (1, 7, 40)]
    normaliser = nb.Normaliser(pieces, config)
    windows = nb.NoteWindows(pieces, normaliser, config, config.window, augment=True)
    for index, (number, _) in enumerate(windows.starts):
        item = windows[index]
        assert {len(values) for values in item.values()} == {config.window}
        assert int(item["real"].sum()) == min(len(pieces[number]), 16) or number == 2


def test_no_file_can_be_used(nb: ModuleType) -> None:
    """Where all files are bad, all reasons are told."""
    files = {"a.mid": lambda: b"text", "b.mid": lambda: midi_bytes([chorale_notes(0)], drums=True)}
    with pytest.raises(ValueError, match=r"(?s)none.*a\.mid.*b\.mid"):
        nb.load_corpus(files, small_config(nb))


@pytest.mark.parametrize(("seed_notes", "knob"), [(8, "`seed_notes`"), (7, "`piece_notes`")])
def test_held_out_pieces_must_be_long_enough(nb: ModuleType, seed_notes: int, knob: str) -> None:
    """Where no held-out piece is long enough, the message says what to change."""
    piece = piece_of(nb, "p", chorale_notes(0)[:7])
    split = {"test": [piece], "validation": [piece]}
    with pytest.raises(ValueError, match=knob):
        nb.check_lengths(split, small_config(nb, seed_notes=seed_notes, piece_notes=8))
    nb.check_lengths(split, small_config(nb, seed_notes=7, piece_notes=7))


# Folders that cannot be written


def test_file_in_place_of_the_outputs(nb: ModuleType, tmp_path: Path) -> None:
    """A file where the folder should be is found before the training."""
    (tmp_path / "outputs").write_text("in the way")
    with pytest.raises(ValueError, match=r"outputs/mozart cannot be written.*allow"):
        nb.check_writable(tmp_path / "outputs" / "mozart")


def test_writable_folder(nb: ModuleType, tmp_path: Path) -> None:
    """A folder that can be written is created and left empty."""
    nb.check_writable(tmp_path / "outputs" / "mozart")
    assert list((tmp_path / "outputs" / "mozart").iterdir()) == []


def test_read_only_outputs(nb: ModuleType, tmp_path: Path) -> None:
    """A folder that may be read only is found before the training."""
    folder = tmp_path / "outputs" / "mozart"
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    if os.geteuid() != 0:
        with pytest.raises(ValueError, match=r"outputs/mozart cannot be written.*allow"):
            nb.check_writable(folder)
        return
    # nothing is read-only to root
    assert "outputs/mozart cannot be written" in message_to_nobody(folder)
    folder.chmod(0o777)
    assert message_to_nobody(folder) == ""


def message_to_nobody(folder: Path) -> str:
    """Return what `check_writable` says to a user without rights, who is let into the folder."""
    code = (
        "import os, sys; from pathlib import Path; from notebook_tools import definitions\n"
        f"nb = definitions(); os.chdir(sys.argv[1]); os.setuid({NOBODY})\n"
        "try: nb.check_writable(Path('outputs/mozart').absolute())\n"
        "except ValueError as error: print(error)\n"
    )
    # the folders above belong to root alone
    opened = [parent for parent in folder.parents if parent.stat().st_mode & 0o005 != 0o005]
    modes = {parent: parent.stat().st_mode for parent in opened}
    for parent in opened:
        parent.chmod(0o755)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder.parents[1])],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent), "TMPDIR": "/"},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for parent, mode in modes.items():
            parent.chmod(mode)
    return done.stdout.strip()


# Zips


def test_zip_is_read(nb: ModuleType, tmp_path: Path, good: bytes) -> None:
    """A zip is read without being unpacked, wrapped in a top folder or not."""
    for number, top in enumerate(("", "classical-music-midi/")):
        data = tmp_path / str(number)
        members = {f"{top}mozart/b.mid": good, f"{top}mozart/a.mid": good[:50]}
        members |= {f"{top}haydn/c.mid": good, f"{top}mozart/readme.txt": b"", "top.mid": good}
        zip_file(data / "all.zip", members)
        files = nb.find_corpus("mozart", data)
        assert list(files) == ["a.mid", "b.mid"]
        assert [read() for read in files.values()] == [good[:50], good]
        assert [path.name for path in data.iterdir()] == ["all.zip"]


def test_suffix_in_capitals(nb: ModuleType, tmp_path: Path, good: bytes) -> None:
    """`.MID` is a MIDI file, too, in a folder and in a zip."""
    folder = corpus_folder(tmp_path, "mozart")
    (folder / "LOUD.MID").write_bytes(good)
    zip_file(tmp_path / "all.zip", {"haydn/LOUD.MID": good})
    assert list(nb.find_corpus("mozart", tmp_path)) == ["LOUD.MID", "piece_0.mid"]
    files = nb.find_corpus("haydn", tmp_path)
    pieces, table = nb.load_corpus(files, small_config(nb))
    assert [piece.name for piece in pieces] == ["LOUD"] and table.used.all()


def test_damaged_zip(nb: ModuleType, tmp_path: Path, good: bytes) -> None:
    """A zip that breaks off is named, and only asked for when it is needed."""
    whole = zip_file(tmp_path / "all.zip", {"mozart/a.mid": good}).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        (tmp_path / "all.zip").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"all\.zip is a damaged zip.*download"):
            nb.find_corpus("mozart", tmp_path)
    corpus_folder(tmp_path, "mozart")
    assert list(nb.find_corpus("mozart", tmp_path)) == ["piece_0.mid"]


def test_damaged_member(nb: ModuleType, tmp_path: Path, good: bytes) -> None:
    """A damaged file inside a zip is left out, the others are used."""
    path = zip_file(tmp_path / "all.zip", {"mozart/a.mid": good, "mozart/b.mid": good})
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 255
    path.write_bytes(damaged)
    pieces, table = nb.load_corpus(nb.find_corpus("mozart", tmp_path), small_config(nb))
    assert not table.used[0] and "a.mid in all.zip is damaged" in table.remark[0]
    assert "download" in table.remark[0]
    assert len(pieces) == table.used.sum()


def test_names_that_point_elsewhere(nb: ModuleType, tmp_path: Path, good: bytes) -> None:
    """Members outside the zip's own folder are passed over, and nothing is written."""
    data = tmp_path / "inner" / "data"
    names = ["../evil.mid", "../mozart/evil.mid", "mozart/../evil.mid", "/mozart/evil.mid"]
    names += ["../../mozart/evil.mid", "__MACOSX/mozart/._a.mid", "mozart/a.mid"]
    zip_file(data / "all.zip", dict.fromkeys(names, good))
    before = sorted(tmp_path.rglob("*"))
    files = nb.find_corpus("mozart", data)
    assert list(files) == ["a.mid"] and files["a.mid"]() == good
    for name in ("..", ".", "__MACOSX"):
        with pytest.raises(ValueError, match="data"):
            nb.find_corpus(name, data)
    assert sorted(tmp_path.rglob("*")) == before


def test_huge_member(
    nb: ModuleType, tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that unpacks to an absurd size is refused, the others are used."""
    monkeypatch.setattr(nb, "LARGEST_FILE", len(good))
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("mozart/bomb.mid", good + bytes(100_000))
        archive.writestr("mozart/good.mid", good)
    pieces, table = nb.load_corpus(nb.find_corpus("mozart", tmp_path), small_config(nb))
    assert table.used.tolist() == [False, True] and len(pieces) == 1
    assert "bomb.mid in all.zip" in table.remark[0] and "remove" in table.remark[0]


def test_two_zips_with_one_corpus(nb: ModuleType, tmp_path: Path, good: bytes) -> None:
    """Which of two zips is meant is for the user to say."""
    zip_file(tmp_path / "one.zip", {"mozart/a.mid": good, "haydn/h.mid": good})
    zip_file(tmp_path / "two.zip", {"midi/mozart/b.mid": good})
    with pytest.raises(ValueError, match=r"mozart.*one\.zip and two\.zip.*keep one"):
        nb.find_corpus("mozart", tmp_path)
    assert list(nb.find_corpus("haydn", tmp_path)) == ["h.mid"]


def test_folder_wins_over_zip(nb: ModuleType, tmp_path: Path, good: bytes) -> None:
    """Where a corpus is there twice, the folder is read."""
    corpus_folder(tmp_path, "mozart")
    zip_file(tmp_path / "all.zip", {"mozart/a.mid": good})
    assert list(nb.find_corpus("mozart", tmp_path)) == ["piece_0.mid"]


# What the reader of the notebook sees


def ended_in(run: Run) -> str:
    """Return the error that ended a run, which must be one that says what to do."""
    assert run.notebook is None
    message = run.last_error()
    assert message.startswith("ValueError: "), run.errors[-2000:]
    return message


def test_unknown_corpus_in_the_notebook(tmp_path: Path) -> None:
    """The notebook ends with the message, and has created no folders for a corpus without music."""
    project = make_project(tmp_path / "project")
    run = run_notebook(project, {"corpus": "mozrat"})
    assert "bach_chorales" in ended_in(run)
    assert sorted(path.name for path in project.iterdir()) == ["data", "notebook.ipynb"]


def test_too_little_music(tmp_path: Path) -> None:
    """A corpus of two short pieces ends with a message that asks for more."""
    corpus_folder(tmp_path / "data", "tiny", pieces=2)
    run = run_notebook(make_project(tmp_path / "project", tmp_path / "data"), {"corpus": "tiny"})
    assert "add" in ended_in(run)


def test_no_piece_as_long_as_a_new_one(tmp_path: Path) -> None:
    """Pieces shorter than those to be composed give no ranges, and the message says so."""
    folder = tmp_path / "data" / "songs"
    folder.mkdir(parents=True)
    for number in range(12):
        notes = chorale_notes(number, beats=42)
        assert 128 <= len(notes) < 200
        (folder / f"song{number}x.mid").write_bytes(midi_bytes([notes]))
    run = run_notebook(make_project(tmp_path / "project", tmp_path / "data"), {"corpus": "songs"})
    assert "`piece_notes`" in ended_in(run)


def test_all_notes_of_one_length(tmp_path: Path) -> None:
    """A corpus in which all notes are quavers is composed in quavers."""
    folder = tmp_path / "data" / "quavers"
    folder.mkdir(parents=True)
    for number in range(10):
        notes = chorale_notes(number, beats=60)
        quavers = [(onset, pitch, 0.5, loud) for onset, pitch, _, loud in notes]
        (folder / f"p{number}x.mid").write_bytes(midi_bytes([quavers]))
    project = make_project(tmp_path / "project", tmp_path / "data")
    run = run_notebook(project, {"corpus": "quavers"})
    assert run.notebook is not None, run.errors[-2000:]
    piece = run.outputs("quavers") / "piece_1.mid"
    lengths = [
        note.end - note.start for note in pretty_midi.PrettyMIDI(str(piece)).instruments[0].notes
    ]
    assert np.median(lengths) == pytest.approx(0.5 * 60 / 80, rel=1e-2)
