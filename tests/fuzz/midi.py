"""Read thousands of damaged MIDI files: each is parsed to sound notes or refused.

    python tests/fuzz/midi.py [--files N] [--path FOLDER] [--random-state N]

Any other file is a fault and is printed with the random state that makes it; the status is then 1.
"""

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import CORPUS, ROOT, definitions

SECONDS = 2  # of processor time a file, so that a busy machine does not matter
MEGABYTES = 500  # that the process may grow by
BEATS = 256  # no real note or rest comes near; the notebook would turn it into hours of sound
TEMPOS = (5, 1000)  # beats per minute, for the same reason
END = b"\0\xff\x2f\0"  # of a track
HEADER = {"type": 8, "count": 10, "division": 12}  # places in the file
EVENTS = ("held", "long", "late", "running", "texts")  # what is wrong in a track
KINDS = ("flip", "cut", "splice", "splice tracks", "tempo", "empty", *HEADER, *EVENTS)
SHARES = np.array([0.02 if kind == "texts" else 1 for kind in KINDS])  # megabytes are slow


def with_events(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return the file with events at the begin and at the end of one of its tracks."""
    tracks = [match.start() for match in re.finditer(b"MTrk", data)] or [14]
    start, stop = [*tracks, len(data)][(first := int(rng.integers(len(tracks)))) :][:2]
    pitch, wait = int(rng.integers(128)), [*rng.integers(128, 256, rng.integers(4)), 1]
    on, off = bytes([0x90, pitch, 90]), bytes([0x80, pitch, 0])
    begin, end = {
        "held": (b"\0" + on, b""),
        "long": (b"\0" + on, bytes(wait) + off),
        "late": (b"", bytes(wait) + on + b"\x40" + off),
        "running": (b"" if first else b"\0" + on, bytes([0, pitch, 90]) * 9),
        "texts": (b"\0\xff\1\1a" * int(rng.integers(10**6)), b""),
    }[kind]
    events = begin + data[start + 8 : stop].removesuffix(END) + end + END
    return data[:start] + b"MTrk" + len(events).to_bytes(4) + events + data[stop:]


def changed(data: bytes, other: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return the file with one damage; `other` is the file to splice it with."""
    first, last = sorted(int(place) for place in rng.integers(len(data) + 1, size=2))
    if kind == "flip":
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        bits[rng.integers(len(bits), size=int(2 ** rng.uniform(0, 6)))] ^= 1
        return np.packbits(bits).tobytes()
    if kind == "cut":
        return data[:first] + (data[last:] if last % 2 else b"")
    if kind.startswith("splice"):
        if kind == "splice tracks":
            first, last = (max(part.rfind(b"MTrk", 0, first), 0) for part in (data, other))
        return data[:first] + other[last:]
    if kind == "tempo":  # up to 2 or to 16 million microseconds a beat
        beat = rng.bytes(3) if first % 2 else bytes([0, 0, last % 3])
        return re.sub(rb"(?s)(\xff\x51\x03)...", lambda match: match[1] + beat, data)
    if kind == "empty":
        count = (int.from_bytes(data[10:12]) + 1) % 2**16
        return data[:10] + count.to_bytes(2) + data[12:] + b"MTrk\0\0\0\0"
    if kind in HEADER:  # the last two values are divisions of SMPTE
        values = [0, 1, 2, 3, 255, 32767, int(rng.integers(2**16)), 0xE728, 0xE250]
        place, value = HEADER[kind], values[last % len(values)]
        return data[:place] + value.to_bytes(2) + data[place + 2 :]
    return with_events(data, kind, rng)


def damaged(random_state: int, files: Sequence[bytes]) -> bytes:
    """Return one of the files with one to three damages."""
    rng = np.random.default_rng(random_state)
    data, other = (files[int(rng.integers(len(files)))] for _ in range(2))
    for kind in rng.choice(KINDS, size=int(rng.integers(1, 4)), p=SHARES / SHARES.sum()):
        data = changed(data, other, str(kind), rng) or b"\0"
    return data


def outcome(nb: ModuleType, data: bytes) -> str:
    """Return `parsed`, `refused` or the fault."""
    try:
        piece = nb.read_piece(data, "damaged.mid")
    except ValueError:
        return "refused"
    except Exception as error:  # any other is what is looked for
        return f"{type(error).__name__}: {error}"
    notes = piece.notes
    real = np.isfinite(notes).all(axis=None) and notes[["pitch", "velocity"]].isin(range(128))
    if not np.all(real) or min(notes.onset.min(), notes.step.min()) < 0 or min(notes.duration) <= 0:
        return "notes that cannot be"
    if max(notes.step.max(), notes.duration.max()) > BEATS:
        return f"absurdly long: {notes.step.max():.0f} and {notes.duration.max():.0f} beats"
    return "parsed" if TEMPOS[0] <= piece.tempo <= TEMPOS[1] else f"absurd tempo {piece.tempo:.3g}"


def main() -> None:
    """Read damaged files, print each fault and one line of counts."""
    from resource import RUSAGE_SELF, getrusage  # not on Windows, where the rest can be imported

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--path", type=Path, default=ROOT / "data" / CORPUS)
    parser.add_argument("--random-state", type=int, default=0)
    options = parser.parse_args()
    nb, files = definitions(), [path.read_bytes() for path in sorted(options.path.glob("*.mid"))]
    counts, slowest, grown = Counter(), 0.0, 0.0
    unit, start = 2**20 if sys.platform == "darwin" else 2**10, getrusage(RUSAGE_SELF).ru_maxrss
    for i in range(options.random_state, options.random_state + options.files):
        data, begin, before = damaged(i, files), time.process_time(), grown
        found = outcome(nb, data)
        seconds = time.process_time() - begin
        slowest, grown = max(slowest, seconds), (getrusage(RUSAGE_SELF).ru_maxrss - start) / unit
        if seconds > SECONDS or (grown > MEGABYTES and grown > before):
            found += f" in {seconds:.1f} s and {grown:.0f} MB"
        counts[found if found in ("parsed", "refused") else "faults"] += 1
        if found not in ("parsed", "refused"):
            print(f"{i}: {found} ({len(data)} bytes)", flush=True)
    said = ", ".join(f"{counts[name]} {name}" for name in ("parsed", "refused", "faults"))
    print(f"{said}; at most {slowest:.1f} s and {grown:.0f} MB")
    sys.exit(counts["faults"] > 0)


if __name__ == "__main__":
    main()
