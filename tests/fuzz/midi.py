"""Read thousands of damaged MIDI files: each is parsed to sound notes or refused.

    python tests/fuzz/midi.py [--files N] [--random-state N]

Any other outcome is printed with the random state that makes the file; the status is then 1.
"""

import argparse
import re
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "support"))
from notebook_tools import CORPUS, ROOT, definitions

SECONDS = 2  # of processor time for a file, at most
KINDS = ("flip", "cut", "splice", "tempo", "header", "held", "late", "texts")


def damaged(data: bytes, other: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Return the file with one damage; `other` is the file to splice it with."""
    first, last = sorted(rng.integers(len(data) + 1, size=2).tolist())
    pitch, wait = int(rng.integers(128)), bytes([*rng.integers(128, 256, rng.integers(4)), 1])
    events = {
        "held": b"\0\x90" + bytes([pitch, 90]),  # never released
        "late": wait + b"\x90" + bytes([pitch, 90]) + wait + b"\x80" + bytes([pitch, 0]),
        "texts": b"\0\xff\1\1a" * int(rng.integers(10**5)),
    }
    if kind in events:  # at the begin of one of its tracks
        place = (data.find(b"MTrk", first) + 1 or 15) + 3
        size = int.from_bytes(data[place : place + 4]) + len(events[kind])
        return data[:place] + size.to_bytes(4) + events[kind] + data[place + 4 :]
    if kind == "flip":
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        bits[rng.integers(len(bits), size=int(2 ** rng.uniform(0, 6)))] ^= 1
        return np.packbits(bits).tobytes()
    if kind == "tempo":  # up to 2 or to 16 million microseconds a beat
        beat = rng.bytes(3) if first % 2 else bytes([0, 0, last % 3])
        return re.sub(rb"(?s)(\xff\x51\x03)...", lambda match: match[1] + beat, data)
    if kind == "header":  # type, number of tracks or division, of SMPTE too
        values, place = [0, 1, 2, 255, 32767, 0xE728, int(rng.integers(2**16))], 8 + 2 * (last % 3)
        return data[:place] + values[first % 7].to_bytes(2) + data[place + 2 :]
    return data[:first] + (other if kind == "splice" else data)[last:]


def outcome(nb: ModuleType, data: bytes) -> str:
    """Return `parsed`, `refused` or the fault."""
    begin = time.process_time()
    try:
        piece = nb.read_piece(data, "damaged.mid")
    except ValueError:
        return "refused"
    except Exception as error:  # any other is what is looked for
        return f"{type(error).__name__}: {error}"
    notes, seconds = piece.notes, time.process_time() - begin
    real = np.isfinite(notes).all(axis=None) and notes[["pitch", "velocity"]].isin(range(128))
    real = np.all(real) and min(notes.onset.min(), notes.step.min()) >= 0 < notes.duration.min()
    # beyond these bounds the notebook would make hours of sound
    real &= max(notes.step.max(), notes.duration.max()) <= 256 and 5 <= piece.tempo <= 1000
    fault = f"no music:\n{notes.describe()}" if not real else f"took {seconds:.1f} s"
    return "parsed" if real and seconds < SECONDS else fault


def main() -> None:
    """Read damaged files, print each fault and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--random-state", type=int, default=0)
    options = parser.parse_args()
    nb, paths = definitions(), sorted((ROOT / "data" / CORPUS).glob("*.mid"))
    files, counts = [path.read_bytes() for path in paths], dict.fromkeys(("parsed", "refused"), 0)
    for state in range(options.random_state, options.random_state + options.files):
        rng = np.random.default_rng(state)
        data, other = (files[i] for i in rng.integers(len(files), size=2))
        for kind in rng.choice(KINDS, size=int(rng.integers(1, 4))):
            data = damaged(data, other, str(kind), rng) or b"\0"
        found = outcome(nb, data)
        if found in counts:
            counts[found] += 1
        else:
            print(f"{state}: {found}", flush=True)
    print(counts)
    sys.exit(sum(counts.values()) < options.files)


if __name__ == "__main__":
    main()
