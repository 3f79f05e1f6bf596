"""The bundled corpus, its manifest and what is said about it; the list of the course dataset."""

import csv
import hashlib
import re
import subprocess
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

LISTED = {".mid": 292, ".MID": 3}  # files of the course dataset by suffix
COMPOSERS = 19


@pytest.fixture(scope="module")
def chorales(root: Path) -> Path:
    """Return the folder of the bundled corpus."""
    return root / "data" / "bach_chorales"


@pytest.fixture(scope="module")
def manifest(chorales: Path) -> list[dict[str, str]]:
    """Return the rows of the manifest."""
    with (chorales / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def course_list(root: Path) -> list[str]:
    """Return the lines of the list of the course dataset."""
    return (root / "data" / "course_dataset.sha256").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def course_sums(course_list: list[str]) -> dict[str, str]:
    """Return the SHA-256 of each file of the course dataset, by composer and name."""
    return {name: digest for digest, name in (line.split("  ", 1) for line in course_list)}


def test_manifest_names_every_file(chorales: Path, manifest: list[dict[str, str]]) -> None:
    """The manifest and the folder hold the same files."""
    assert sorted(row["file"] for row in manifest) == sorted(p.name for p in chorales.glob("*.mid"))


def test_checksums(chorales: Path, manifest: list[dict[str, str]]) -> None:
    """No file has changed since the manifest was written."""
    for row in manifest:
        data = (chorales / row["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row["sha256"], row["file"]


def test_notes_of_the_manifest(
    nb: ModuleType, chorales: Path, manifest: list[dict[str, str]]
) -> None:
    """The notebook reads the notes that the manifest counts, from where it says they begin."""
    for row in manifest[::20]:
        piece = nb.read_piece((chorales / row["file"]).read_bytes(), row["file"], nb.Config())
        assert len(piece) == int(row["notes"]), row["file"]
        assert piece.notes.onset.iloc[0] == pytest.approx(float(row["start_beat"]), abs=1e-6)
        assert piece.tempo == pytest.approx(80, rel=1e-3)


def test_counts_in_the_readme(root: Path, chorales: Path, manifest: list[dict[str, str]]) -> None:
    """The numbers in the text are those of the tables."""
    text = (root / "data" / "README.md").read_text(encoding="utf-8")
    with (chorales / "left_out.csv").open(newline="", encoding="utf-8") as file:
        reasons = Counter(row["reason"].split(":")[0] for row in csv.DictReader(file))
    notes = sum(int(row["notes"]) for row in manifest)
    assert f"{len(manifest)} four-part chorales" in text
    assert f"{notes:,} notes" in text
    assert f"{sum(reasons.values())} of them are left out" in text
    assert f"{len(manifest) + sum(reasons.values())} files" in text
    assert f"{sum(not row['title'] for row in manifest)} chorales are not in it" in text
    parts = [int(n) for n in re.findall(r"^- (\d+) (?:setting|file)s? ", text, re.MULTILINE)]
    assert sum(parts) == sum(reasons.values())


def test_course_list(course_list: list[str], course_sums: dict[str, str]) -> None:
    """The list has one well-formed line for each of the 295 files, sorted by name."""
    malformed = [
        line for line in course_list if not re.fullmatch(r"[0-9a-f]{64}  [a-z]+/[\w-]+\.\w+", line)
    ]
    assert malformed == []
    assert [line.split("  ")[1] for line in course_list] == sorted(course_sums)
    assert len(course_list) == len(set(course_sums.values())) == sum(LISTED.values())
    assert Counter(Path(name).suffix for name in course_sums) == LISTED
    assert len({name.split("/")[0] for name in course_sums}) == COMPOSERS


def test_course_list_against_the_dataset(course_sums: dict[str, str], dataset: Path) -> None:
    """The sums of the list are those of the files, and no file is missing on either side."""
    sums = {
        path.relative_to(dataset).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in dataset.rglob("*")
        if path.is_file()
    }
    assert sums == course_sums


def test_no_file_of_the_list_is_in_the_repository(root: Path, course_sums: dict[str, str]) -> None:
    """No file that is committed or staged is a file of the course dataset under any name."""
    known = set(course_sums.values())
    copies = [
        path.relative_to(root).as_posix()
        for path in repository_files(root)
        if hashlib.sha256(path.read_bytes()).hexdigest() in known
    ]
    assert copies == []


def test_no_commit_held_a_file_of_the_list(root: Path, course_sums: dict[str, str]) -> None:
    """No commit ever added a file with the name of one of the course dataset."""
    if not (root / ".git").exists():
        pytest.skip("this copy is no git repository")
    if git(root, "rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("this clone is shallow: it does not have the whole history")
    # a rename counts as an addition, and a merge may add files too
    options = ["--diff-filter=A", "--no-renames", "-m"]
    listed = git(root, "log", "--all", "--name-only", "--format=", "-z", *options)
    added = {name for name in re.split(r"[\0\n]", listed) if name}
    assert "notebook.ipynb" in added
    known = {Path(name).name.lower() for name in course_sums}
    assert sorted(name for name in added if Path(name).name.lower() in known) == []


def repository_files(root: Path) -> list[Path]:
    """Return the files that git tracks; in a copy without git those where git would."""
    if (root / ".git").exists():
        files = [root / name for name in git(root, "ls-files", "-z").split("\0") if name]
    else:
        folders = ("data/bach_chorales", "diagram", "outputs", "tests")
        files = [path for folder in folders for path in (root / folder).rglob("*")]
    files = [path for path in files if path.is_file()]
    assert len(files) > 300
    return files


def git(root: Path, *arguments: str) -> str:
    """Return what a git command prints."""
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", check=True
    )
    return done.stdout
