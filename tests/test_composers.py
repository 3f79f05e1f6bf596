"""All composers of the course dataset, where it lies beside the repository."""

import csv
import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from notebook_tools import make_project, run_notebook, small_config

COMPOSERS = (
    "albeniz bach balakir beeth borodin brahms burgm chopin debussy granados grieg haydn liszt "
    "mendelssohn mozart muss schubert schumann tschai"
).split()
FILES = 295


@pytest.fixture(scope="module")
def corpora(nb: ModuleType, dataset: Path) -> dict[str, list]:
    """Return the pieces of every composer, grouped into works."""
    config, corpora = nb.Config(), {}
    for composer in COMPOSERS:
        pieces, table = nb.load_corpus(nb.find_corpus(composer, dataset), config)
        # not one file of the collection is beyond reading
        assert table.used.all(), table[~table.used]
        for piece, work in zip(pieces, nb.find_works(pieces, config), strict=True):
            piece.work = work
        corpora[composer] = pieces
    return corpora


@pytest.fixture(scope="module")
def zipped(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data folder with all composers in one zip, wrapped in a top folder."""
    folder = tmp_path_factory.mktemp("data")
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(dataset.rglob("*")):
            if path.is_file():
                archive.write(path, Path(dataset.name) / path.relative_to(dataset))
    return folder


def test_all_files_are_read(corpora: dict[str, list]) -> None:
    """All 295 files hold notes in order, with a length and a plausible tempo."""
    pieces = [piece for corpus in corpora.values() for piece in corpus]
    assert len(pieces) == FILES
    for piece in pieces:
        assert (piece.notes.step >= 0).all() and (piece.notes.duration > 0).all(), piece.name
        assert piece.notes.pitch.between(21, 108).all(), piece.name
        assert 10 < piece.tempo < 400, piece.name


def test_notes_of_the_dataset(corpora: dict[str, list], dataset: Path) -> None:
    """Each file has the notes that the manifest of the dataset counts."""
    with (dataset.parent / "manifest.csv").open(newline="") as file:
        counted = {Path(row["path"]).stem: int(row["notes"]) for row in csv.DictReader(file)}
    pieces = [piece for corpus in corpora.values() for piece in corpus]
    different = [p.name for p in pieces if len(p) != counted[p.name]]
    assert different == []


def test_zip_and_folders_hold_the_same(nb: ModuleType, dataset: Path, zipped: Path) -> None:
    """From the zip come the same files, byte for byte, for every composer."""
    for composer in COMPOSERS:
        folder = nb.find_corpus(composer, dataset)
        archive = nb.find_corpus(composer, zipped)
        assert list(folder) == list(archive)
        assert all(archive[name]() == folder[name]() for name in folder)


def test_works_of_mozart(corpora: dict[str, list]) -> None:
    """The 21 movements belong to seven sonatas."""
    works = {piece.work for piece in corpora["mozart"]}
    assert works == {f"mz_{number}" for number in (311, 330, 331, 332, 333, 545, 570)}


def test_works_of_chopin(corpora: dict[str, list]) -> None:
    """Each prelude is a work of its own, the four movements of the sonata are one work."""
    work = {piece.name: piece.work for piece in corpora["chopin"]}
    preludes = {work[f"chpn-p{number}"] for number in range(1, 25)}
    assert len(preludes) == 24
    sonata = {work[f"chpn_op35_{number}"] for number in range(1, 5)}
    assert len(sonata) == 1
    assert list(work.values()).count(sonata.pop()) == 4


def test_works_of_beethoven(corpora: dict[str, list]) -> None:
    """The movements of each of the nine sonatas are one work, Für Elise is a work of its own."""
    sonatas = {
        "appass_": 3,
        "beethoven_hammerklavier_": 4,
        "beethoven_les_adieux_": 3,
        "beethoven_opus10_": 3,  # only the first sonata of opus 10
        "beethoven_opus22_": 4,
        "beethoven_opus90_": 2,
        "mond_": 3,
        "pathetique_": 3,
        "waldstein_": 3,
    }
    assert groups(corpora["beeth"]) == numbered(sonatas) | {frozenset({"elise"})}


def test_works_of_schubert(corpora: dict[str, list]) -> None:
    """Three sonatas, a fantasy, two sets of impromptus and the Moments musicaux are seven works."""
    works = {
        "schu_143_": 3,  # sonata in A minor
        "schubert_D850_": 4,
        "schub_d960_": 4,
        "schub_d760_": 4,  # the Wanderer fantasy
        "schuim-": 4,  # impromptus D 899
        "schubert_D935_": 4,  # impromptus
        "schumm-": 6,
    }
    assert groups(corpora["schubert"]) == numbered(works)


@pytest.mark.parametrize("composer", COMPOSERS)
def test_split(nb: ModuleType, corpora: dict[str, list], composer: str) -> None:
    """Every side holds music, and enough of it for seeds and for real excerpts."""
    config, pieces = nb.Config(), corpora[composer]
    for random_state in range(3):
        split = nb.split_pieces(pieces, config, np.random.default_rng(random_state))
        assert set(split) == {"training", "validation", "test"}
        assert all(part for part in split.values())
        seeds = nb.choose_seeds(split["test"], config, np.random.default_rng(random_state))
        assert [len(seed) for seed in seeds] == [config.seed_notes] * nb.PIECES
        assert len(nb.excerpts(split["test"] + split["validation"], config.piece_notes)) > 1
        works = {side: {piece.work for piece in part} for side, part in split.items()}
        if not works["training"] & works["test"]:
            assert sum(map(len, split.values())) == len(pieces)
            assert not works["validation"] & (works["training"] | works["test"])


@pytest.mark.parametrize("composer", COMPOSERS)
def test_learn_and_compose(nb: ModuleType, corpora: dict[str, list], composer: str) -> None:
    """A tiny model learns for a few steps from the composer and continues a seed."""
    config = small_config(nb, window=32, epochs=1, seed_notes=64, piece_notes=12)
    split = nb.split_pieces(corpora[composer], config, np.random.default_rng(0))
    split = {side: shortened(part, 300) for side, part in split.items()}
    normaliser = nb.Normaliser(split["training"], config)
    windows = nb.NoteWindows(split["training"], normaliser, config, config.window, augment=True)
    torch.manual_seed(0)
    model = nb.MultiHeadLSTM(normaliser.names, config)
    training = torch.utils.data.DataLoader(windows, config.batch_size, shuffle=True)
    validation = nb.whole_pieces(split["validation"], normaliser, config)
    log = nb.fit(model, training, validation, config)
    assert np.isfinite(log.validation_total).all()
    seed = split["test"][0].notes.head(config.seed_notes)
    limits = nb.find_limits(split["training"])
    notes = nb.compose(model, seed, limits, normaliser, config, 0)
    assert len(notes) == config.piece_notes
    assert (notes.step >= 0).all() and (notes.duration > 0).all()
    assert notes.velocity.between(1, 127).all()


def groups(pieces: list) -> set[frozenset[str]]:
    """Return the names of the pieces of each work."""
    return {
        frozenset(p.name for p in pieces if p.work == work) for work in {p.work for p in pieces}
    }


def numbered(works: dict[str, int]) -> set[frozenset[str]]:
    """Return the names of the pieces of works, given the names up to the number and the counts."""
    return {frozenset(f"{name}{i}" for i in range(1, n + 1)) for name, n in works.items()}


def shortened(pieces: list, notes: int) -> list:
    """Return the beginnings of the two shortest pieces."""
    shortest = sorted(pieces, key=len)[:2]
    return [replace(piece, notes=piece.notes.head(notes)) for piece in shortest]


def test_notebook_with_a_zip(zipped: Path, tmp_path: Path) -> None:
    """The whole notebook runs with a composer of three pieces out of the zip."""
    project = make_project(tmp_path / "project", zipped)
    run = run_notebook(project, {"corpus": "granados"})
    assert run.notebook is not None, run.errors[-3000:]
    written = {path.name for path in run.outputs("granados").iterdir()}
    assert {"piece_1.mid", "piece_2.wav", "seed_3.mid", "scores.csv"} <= written
    assert [path.name for path in zipped.iterdir()] == ["archive.zip"]


def test_no_file_of_the_dataset_is_committed(root: Path, dataset: Path) -> None:
    """The dataset stays outside of the repository."""
    if not (root / ".git").exists():
        pytest.skip("this copy is no git repository")
    sums = {
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in dataset.rglob("*")
        if path.is_file()
    }
    assert len(sums) > 290
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    )
    files = [root / name for name in listed.stdout.split("\0") if name]
    copies = [
        path.name
        for path in files
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() in sums
    ]
    assert copies == []
