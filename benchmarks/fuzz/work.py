"""One process that fuzzes one parser until it has read so many inputs, or until it dies; see `__main__`.

What it found, it appends to a file as it goes; the input that it reads lies on the disk, for whoever finds it dead.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from types import FrameType

MOST_SECONDS, MOST_BYTES = 10, 500_000_000  # of CPU time: how busy the machine is does not matter


class HungError(BaseException):
    """No handler of the product's may catch it."""


def _hung(number: int, frame: FrameType | None) -> None:
    raise HungError


def _peak() -> int:
    """The high-water mark of resident memory, which starts anew from what is resident now."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    Path("/proc/self/clear_refs").write_text("5")
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parser")
    parser.add_argument("work", type=Path)
    parser.add_argument("--inputs", type=int, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--coverage", action="store_true")
    options = parser.parse_args()
    if options.coverage:
        import atheris

        with atheris.instrument_imports(include=["rankwise"]):
            from benchmarks.fuzz.parsers import kinds
    else:
        from benchmarks.fuzz.parsers import kinds
    from benchmarks.fuzz.mutate import mutated
    from rankwise.errors import RunError, UserError

    warnings.simplefilter("ignore")
    every = kinds(options.parser, options.work / "files")
    telling = (options.work / "found.jsonl").open("a")
    current, counts = options.work / "current", {"read": 0, "refused": 0, "else": 0}
    resource.setrlimit(resource.RLIMIT_AS, (12_000_000_000, resource.RLIM_INFINITY))
    signal.signal(signal.SIGPROF, _hung)
    _peak()
    until = time.monotonic() + 60 * options.minutes

    def finish() -> None:
        (options.work / "counts.json").write_text(json.dumps(counts))
        os._exit(0)

    def tell(kind: str, content: bytes, what: str) -> None:
        telling.write(json.dumps({"kind": kind, "what": what, "input": content.hex()}) + "\n")
        telling.flush()

    def try_one(content: bytes) -> None:
        if not content:
            return
        kind, content = every[content[0] % len(every)], content[1:]
        current.write_bytes(kind.name.encode() + b"\n" + content)
        before, started = _peak(), time.process_time()
        faulthandler.dump_traceback_later(60 * MOST_SECONDS, exit=True)  # for what listens to no signal, or waits
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        try:
            kind(content)
            counts["read"] += 1
        except (UserError, RunError) as error:
            counts["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 2000:
                tell(kind.name, content, f"an error of {len(str(error))} characters, {str(error)[:80]!r}")
        except BaseException as error:
            counts["else"] += 1
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "/rankwise/" in frame.filename and "benchmarks" not in frame.filename]
            at = f"{Path(ours[-1].filename).name}, {ours[-1].name}" if ours else "?"
            tell(kind.name, content, f"{type(error).__name__} in {at}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
        seconds, grown = time.process_time() - started, _peak() - before
        if seconds > MOST_SECONDS:
            tell(kind.name, content, f"took {seconds:.0f} s")
        if grown > MOST_BYTES:
            tell(kind.name, content, f"took {grown / 1e6:.0f} MB")
        (options.work / "counts.json").write_text(json.dumps(counts))
        if sum(counts.values()) >= options.inputs or time.monotonic() > until:
            finish()

    def vary(content: bytes, most: int, seed: int) -> bytes:
        draw = Random(seed)
        if not content or draw.random() < 0.1:
            index = draw.randrange(len(every))
            content = bytes([index]) + every[index].valid
        kind = every[content[0] % len(every)]
        return content[:1] + mutated(content[1:], kind.form, draw)[: most - 1]

    if options.coverage:
        import atheris

        corpus = options.work / "corpus"
        corpus.mkdir(exist_ok=True)
        for index, kind in enumerate(every):
            (corpus / f"valid{index}").write_bytes(bytes([index]) + kind.valid)
        flags = [f"-seed={options.seed}", "-rss_limit_mb=0", "-timeout=0", "-max_len=60000", "-verbosity=0"]
        atheris.Setup([sys.argv[0], *flags, str(corpus)], try_one, custom_mutator=vary)
        atheris.Fuzz()
    for number in range(options.inputs):
        index = number % len(every)
        try_one(vary(bytes([index]) + every[index].valid, 200_000, options.seed * 10_000_000 + number))
    finish()


if __name__ == "__main__":
    main()
