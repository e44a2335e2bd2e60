"""Damage done to files, and what becomes of it: each input is read by another process, under a limit of time."""

import faulthandler
import io
import json
import os
import random
import select
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

from readers import READERS, digest

from cyclestarnet.exceptions import CycleStarNetError

SECONDS = 30  # for one input; those that libhdf5 does not come to an end with take half of it
OUTCOMES = ("tried", "clean", "odd", "hang", "silent")
EXTREMES = (
    b"0", b"-1", b"1", b"T", b"nan", b"inf", b"-inf", b"1e19", b"1e400", b"2000000000", b"99999999999999999999",
    b"1" * 5000, b"[" * 3000, b"{a=" * 3000, b"'", b'"', b"\x00", b"\xff\xfe", b"\xc2\xb2",
    b"!numpy.ndarray", b"object",
)  # fmt: skip


# -- damage -------------------------------------------------------------------------------
def damaged(content, rng):
    """Other bytes than these, and whether few enough are other ones that a checksum must tell."""
    kind = rng.choice(["bytes", "bytes", "bits", "cut", "insert", "delete", "copy", "number", "number", "member"])
    if kind == "member" and content[:2] == b"PK":
        return _other_member(content, rng)
    changed = bytearray(content)
    place = rng.randrange(len(changed))
    if kind == "bits":
        changed[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[place:]
    elif kind == "insert":
        changed[place:place] = rng.choice([rng.randbytes(rng.randrange(1, 20)), rng.choice(EXTREMES)])
    elif kind == "delete":
        del changed[place : place + rng.choice([1, 8, 80, 2880])]
    elif kind == "copy":
        start = rng.randrange(len(changed))
        part = changed[start : start + rng.choice([4, 8, 80, 512])]
        changed[place : place + len(part)] = part
    elif kind == "number":
        _other_number(changed, rng)
    else:
        for _ in range(rng.choice([1, 1, 2, 4, 16])):
            changed[rng.randrange(len(changed))] = rng.choice([0, 255, 128, rng.randrange(256)])
    return bytes(changed)


def _other_number(changed, rng):
    """Replace a run of digits by something that is extreme; a card of FITS keeps its length."""
    digits = [k for k in range(1, len(changed)) if 48 <= changed[k] < 58 and not 48 <= changed[k - 1] < 58]
    if not digits:
        return
    start = stop = rng.choice(digits)
    while stop < len(changed) and changed[stop] in b"0123456789.e+-":
        stop += 1
    value = rng.choice(EXTREMES)
    card = bytes(changed[start - start % 80 : start - start % 80 + 30])
    if card[8:10] == b"= ":
        value, start = value[:20].rjust(20), start - start % 80 + 10
        stop = start + 20
    changed[start:stop] = value


def _other_member(content, rng):
    """Damage within an archive, whose checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = rng.choice(list(members))
    if members[chosen]:
        members[chosen] = damaged(members[chosen], rng)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return made.getvalue()


def _whole(content):
    """Whether an archive fits its checksums: then damage was done before they were made."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.testzip() is None
    except Exception:
        return False


# -- what becomes of it ---------------------------------------------------------------------
def outcome(reader, path, content, expected):
    """One of `OUTCOMES`, and what to say of it."""
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = digest(reader.read(path))
        except CycleStarNetError as error:
            if str(path.name) not in str(error):
                return "odd", f"no file named: {type(error).__name__}: {error}"
            return "clean", ""
        except FileExistsError as error:  # a journal of another run
            return ("clean", "") if path.name in str(error) else ("odd", repr(error))
        except BaseException as error:
            return "odd", f"{type(error).__name__}: {error}"
    if result == expected or caught or not reader.verified or (content[:2] == b"PK" and _whole(content)):
        return "clean", ""
    return "silent", "another result"


def fuzz(name, n_inputs, seed, keep=None):
    """Read many damaged files of a kind; return counts of outcomes, and examples of those that are not clean."""
    reader = READERS[name]
    counts, examples = Counter(tried=n_inputs), []
    with tempfile.TemporaryDirectory() as folder:
        path = reader.make(Path(folder))
        content = path.read_bytes()
        expected = digest(reader.read(path))
        beside = {other: other.read_bytes() for other in Path(folder).iterdir() if other != path}
        done = 0
        while done < n_inputs:
            for number, (result, said) in _in_a_process(reader, path, content, expected, seed, done, n_inputs):
                counts[result] += 1
                done = number + 1
                if result != "clean":
                    examples.append((number, result, said[:300]))
                    if keep is not None:
                        rng = random.Random(f"{seed} {name} {number}")
                        (keep / f"{name}-{seed}-{number}-{path.name}").write_bytes(damaged(content, rng))
            for other, was in beside.items():
                other.write_bytes(was)
    return counts, examples


def _in_a_process(reader, path, content, expected, seed, first, last):
    """Outcomes one by one, as far as a process gets; the last one may be its end."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        faulthandler.disable()
        sys.stderr = open(os.devnull, "w")
        try:
            for number in range(first, last):
                rng = random.Random(f"{seed} {reader.name} {number}")
                said = outcome(reader, path, damaged(content, rng), expected)
                os.write(sending, (json.dumps([number, said]) + "\n").encode())
        finally:
            os._exit(0)
    os.close(sending)
    number, ended = first - 1, ""
    with os.fdopen(receiving, "rb", buffering=0) as pipe:
        rest = b""
        until = time.monotonic() + SECONDS
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                ended = "hang"
                break
            part = pipe.read(65536)
            if not part:
                break
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                number, said = json.loads(line)
                until = time.monotonic() + SECONDS
                yield number, tuple(said)
    if ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if ended:
        yield number + 1, ("hang", f"more than {SECONDS} s")
    elif number + 1 < last:
        yield number + 1, ("odd", f"the process ended with status {status}")
