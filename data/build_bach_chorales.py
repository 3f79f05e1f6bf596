"""Build the folder `bach_chorales`: J. S. Bach's four-part chorales as MIDI files.

The scores come from the corpus inside the package music21. `VERSIONS` fixes the packages, so that
every run writes the same bytes. A beat is a quarter note throughout.

* A score is kept if its parts are exactly Soprano, Alto, Tenor and Bass, in that order, and its
  repeats can be written out. `left_out.csv` lists the others with the reason.
* Each voice is one track: program 0, one velocity. Tied notes are one note. Repeats are written
  out. Fermatas are ignored. Grace notes are dropped. Of a chord, all the notes are kept.
* The tempo is constant. At 80 beats a minute a beat lasts 0.75 s, so that every position in the
  scores (a multiple of 1/8 beat) is an exact tick and an exact floating-point number of seconds.
* An upbeat keeps its place in the bar: a one-beat upbeat in 4/4 starts at beat 3, and beat 4 of
  the file is the first downbeat.
* The time signatures and the key signature are those of the score.

Usage: python build_bach_chorales.py [output folder]
"""

import argparse
import csv
import hashlib
import re
import tempfile
from fractions import Fraction
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

VERSIONS = {"music21": "10.5.1", "pretty_midi": "0.2.11.post0", "mido": "1.3.3"}
CURE = "Run: pip install " + " ".join(f"{name}=={number}" for name, number in VERSIONS.items())
VOICES = ["Soprano", "Alto", "Tenor", "Bass"]
TEMPO = 80  # beats per minute
RESOLUTION = 480  # ticks per beat
VELOCITY = 80

try:
    import pretty_midi
    from music21 import converter, corpus, exceptions21, stream
    from music21.corpus.chorales import ChoraleListRKBWV
except ImportError as error:
    raise SystemExit(f"{error}. {CURE}") from error


class LeftOutError(ValueError):
    """The score does not belong in the corpus; the message is the reason."""


class VoiceNote(NamedTuple):
    """One sounding note: MIDI pitch, start and end in beats."""

    pitch: int
    start: Fraction
    end: Fraction


def check_versions() -> None:
    """Stop with the cure if an installed package differs from `VERSIONS`."""
    for package, wanted in VERSIONS.items():
        if version(package) != wanted:
            raise SystemExit(f"{package} {version(package)} is installed. {CURE}")


def expanded_score(path: Path) -> stream.Score:
    """Return the score at `path` with its repeats written out, read without music21's cache."""
    score = converter.parse(path, forceSource=True, storePickle=False)
    names = [" ".join((part.partName or "unnamed").split()) for part in score.parts]
    if names != VOICES:
        raise LeftOutError("parts: " + ", ".join(names))
    try:
        score = score.expandRepeats()
    except exceptions21.Music21Exception as error:
        raise LeftOutError(f"repeats cannot be written out: {error}") from error
    if len({part.highestTime for part in score.parts}) != 1:
        raise LeftOutError("voices of different lengths")
    return score


def voice_notes(part: stream.Part, padding: Fraction) -> list[VoiceNote]:
    """Return the notes of `part`, moved `padding` beats later, with ties merged."""
    notes: list[VoiceNote] = []
    latest: dict[int, int] = {}  # pitch -> index of its latest note
    for element in part.flatten().notes:
        if element.duration.isGrace:
            continue
        start = padding + Fraction(element.offset)
        end = start + Fraction(element.quarterLength)
        for single in getattr(element, "notes", (element,)):  # a chord has notes of its own
            pitch, index = single.pitch.midi, latest.get(single.pitch.midi)
            tied = single.tie is not None and single.tie.type in ("continue", "stop")
            if tied and index is not None and notes[index].end == start:
                notes[index] = notes[index]._replace(end=end)
            else:
                latest[pitch] = len(notes)
                notes.append(VoiceNote(pitch, start, end))
    return notes


def check_notes(notes: list[VoiceNote]) -> None:
    """Raise ValueError if a pitch overlaps itself, or a note has no length or is off the grid."""
    for note in notes:
        if note.start >= note.end or any((RESOLUTION * t).denominator > 1 for t in note[1:]):
            raise ValueError(f"bad length or off the grid: {note}")
    for note, following in pairwise(sorted(notes)):
        if note.pitch == following.pitch and note.end > following.start:
            raise ValueError(f"overlap: {note}, {following}")


def seconds(beats: Fraction) -> float:
    """Return the time of `beats` in seconds."""
    return float(beats * 60 / TEMPO)


def add_signatures(midi: pretty_midi.PrettyMIDI, part: stream.Part, padding: Fraction) -> None:
    """Copy the changes of time signature and the first key signature of `part` to `midi`."""
    previous = None
    for element in part.flatten().getElementsByClass("TimeSignature"):
        meter = (element.numerator, element.denominator)
        if meter != previous:
            time = seconds(padding + Fraction(element.offset)) if previous else 0.0
            midi.time_signature_changes.append(pretty_midi.TimeSignature(*meter, time))
        previous = meter
    key = part.flatten().getElementsByClass("KeySignature").first().asKey()
    number = key.tonic.pitchClass + (12 if key.mode == "minor" else 0)
    midi.key_signature_changes.append(pretty_midi.KeySignature(number, 0.0))


def score_to_midi(score: stream.Score, padding: Fraction) -> pretty_midi.PrettyMIDI:
    """Return `score` as MIDI, moved `padding` beats later."""
    midi = pretty_midi.PrettyMIDI(resolution=RESOLUTION, initial_tempo=TEMPO)
    add_signatures(midi, score.parts[0], padding)
    for part in score.parts:
        instrument = pretty_midi.Instrument(program=0, name=part.partName)
        notes = voice_notes(part, padding)
        check_notes(notes)
        for pitch, start, end in notes:
            instrument.notes.append(pretty_midi.Note(VELOCITY, pitch, seconds(start), seconds(end)))
        midi.instruments.append(instrument)
    return midi


def convert(source: Path, folder: Path) -> dict[str, object]:
    """Write the score `source` to `folder` as MIDI and return its row of the manifest."""
    score = expanded_score(source)
    padding = Fraction(score.parts[0].getElementsByClass(stream.Measure).first().paddingLeft)
    midi = score_to_midi(score, padding)
    number = source.stem.removeprefix("bwv")
    path = folder / ("bwv" + re.sub(r"[^a-z0-9]+", "_", number.lower()) + ".mid")
    if path.exists():
        raise ValueError(f"{source} and another score share the name {path.name}")
    midi.write(str(path))
    meters = [f"{change.numerator}/{change.denominator}" for change in midi.time_signature_changes]
    return {
        "file": path.name,
        "source": f"bach/{source.name}",
        "title": ChoraleListRKBWV().byBWV.get(number, {}).get("title", ""),
        "notes": sum(len(instrument.notes) for instrument in midi.instruments),
        "start_beat": float(padding),
        "beats": float(score.highestTime),
        "key": pretty_midi.key_number_to_key_name(midi.key_signature_changes[0].key_number),
        "time": " ".join(meters),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    """Write `rows`, which share their keys, to `path` as CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def build(folder: Path) -> str:
    """Fill the empty `folder` with the corpus and return a one-line summary."""
    manifest: list[dict[str, object]] = []
    left_out: list[dict[str, object]] = []
    for source in sorted(corpus.getComposer("bach"), key=lambda path: path.name):
        try:
            manifest.append(convert(source, folder))
        except LeftOutError as reason:
            left_out.append({"source": f"bach/{source.name}", "reason": str(reason)})
    write_table(folder / "manifest.csv", manifest)
    write_table(folder / "left_out.csv", left_out)
    notes = sum(row["notes"] for row in manifest)
    return f"{len(manifest)} files, {notes} notes; {len(left_out)} scores left out"


def replace_folder(new: Path, target: Path, old: Path) -> None:
    """Move `new` to `target`; what was at `target` moves to `old`, and back if that fails."""
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise


def main() -> None:
    """Build the corpus in a temporary folder and put it in place of the old one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).parent / "bach_chorales"
    parser.add_argument("output", nargs="?", type=Path, default=default, help="folder to replace")
    output = parser.parse_args().output.absolute()
    check_versions()
    with tempfile.TemporaryDirectory(prefix=".bach_chorales_", dir=output.parent) as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        summary = build(new)
        replace_folder(new, output, Path(scratch, "old"))
    print(f"{output}: {summary}")


if __name__ == "__main__":
    main()
