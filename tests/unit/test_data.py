"""The bundled corpus, its manifest and what is said about it; the list of the course dataset."""

import hashlib
import re
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from notebook_tools import CORPUS, ROOT, git, listed_sums, tracked_files

CHORALES = ROOT / "data" / CORPUS


def sums_of(paths: list[Path], top: Path) -> dict[str, str]:
    """Return the SHA-256 of the files by their place below a folder."""
    files = {path.relative_to(top).as_posix(): path for path in paths if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_manifest(nb: ModuleType) -> None:
    """The files and their notes are those of the manifest, and the counts those in the text."""
    manifest = pd.read_csv(CHORALES / "manifest.csv", keep_default_na=False)
    listed = dict(zip(manifest.file, manifest.sha256, strict=True))
    assert sums_of([*CHORALES.glob("*.mid")], CHORALES) == listed
    for row in manifest[::20].itertuples():
        piece = nb.read_piece((CHORALES / row.file).read_bytes(), row.file)
        found = len(piece), piece.notes.onset.iloc[0], piece.tempo
        assert found == pytest.approx((row.notes, row.start_beat, 80), rel=1e-3), row.file
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    left_out = len(pd.read_csv(CHORALES / "left_out.csv"))
    said = [f"{len(manifest)} four-part chorales", f"{manifest.notes.sum():,} notes"]
    said += [f"{left_out} of them are left out", f"{len(manifest) + left_out} files"]
    said += [f"{sum(manifest.title == '')} chorales are not in it"]
    assert not [words for words in said if words not in text]
    parts = re.findall(r"^- (\d+) (?:setting|file)s? ", text, re.MULTILINE)
    assert sum(map(int, parts)) == left_out


def test_course_list(dataset: Path) -> None:
    """The sums of the list are those of the files, and no file is missing on either side."""
    composers = {name.split("/")[0] for name in listed_sums()}
    files = [path for composer in composers for path in (dataset / composer).rglob("[!.]*")]
    assert sums_of(files, dataset) == listed_sums()


def test_no_file_of_the_list_is_in_the_repository() -> None:
    """No file that git tracks, or would in a copy without it, is one of the course dataset."""
    folders = ("data/bach_chorales", "diagram", "outputs", "tests")
    copied = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    sums = sums_of([ROOT / name for name in tracked_files()] or copied, ROOT)
    assert len(sums) > 300 and not {*sums.values()} & {*listed_sums().values()}


def test_no_commit_held_a_file_of_the_list() -> None:
    """No commit ever added a file with the name of one of the course dataset."""
    if not tracked_files() or "true" in git("rev-parse", "--is-shallow-repository"):
        pytest.skip("git cannot tell what was committed, or this clone lacks the history")
    # a rename counts as an addition, and a merge may add files too
    options = ["--diff-filter=A", "--no-renames", "-m"]
    listed = git("log", "--all", "--name-only", "--format=", "-z", *options)
    added = {Path(name).name.lower() for name in re.split(r"[\0\n]", listed) if name}
    assert "notebook.ipynb" in added
    assert not added & {Path(name).name.lower() for name in listed_sums()}
