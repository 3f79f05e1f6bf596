"""The bundled corpus: its files, its manifest and what is said about it."""

import csv
import hashlib
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def chorales(root: Path) -> Path:
    """Return the folder of the bundled corpus."""
    return root / "data" / "bach_chorales"


@pytest.fixture(scope="module")
def manifest(chorales: Path) -> list[dict[str, str]]:
    """Return the rows of the manifest."""
    with (chorales / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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
