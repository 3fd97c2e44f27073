"""What full.py measures with: processes, the page cache, the disk, trees of files. Linux, standard library only."""

import ctypes
import dataclasses
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

SAMPLE_S = 0.02
PROBE_BYTES = 1 << 30


@dataclasses.dataclass
class Run:
    """A finished process. Sizes in bytes; `anonymous` and `resident` are the largest of the samples."""

    wall_s: float
    cpu_s: float
    anonymous: int
    resident: int
    samples: int
    out: str


def memory(pid):
    """RssAnon and VmRSS of a process; zeros when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0, 0
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return tuple(int(fields.get(name, "0").split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))


def run(command):
    """Runs a command to its end, sampling its memory every 20 ms. Its failure ends the program."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen([str(c) for c in command], stdout=out, stderr=err)
        peak, samples = [0, 0], 0
        while True:
            sizes = memory(process.pid)
            peak = [max(p, s) for p, s in zip(peak, sizes)]
            samples += 1
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            time.sleep(SAMPLE_S)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, err):
            file.seek(0)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(map(str, command))}: exit status {process.returncode}\n{err.read()[-2000:]}")
        cpu = usage.ru_utime + usage.ru_stime
        return Run(wall, cpu, *peak, samples, out.read())


def files(root):
    """Every file below `root`, in order."""
    return sorted(p for p in Path(root).rglob("*") if p.is_file())


def size(root):
    return sum(p.stat().st_size for p in files(root))


def tree(root):
    """SHA-256 of every file below `root` by its relative path."""
    digests = {}
    for path in files(root):
        with path.open("rb") as file:
            digests[str(path.relative_to(root))] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def read_all(root):
    """Reads every file to its end: afterwards what fits is in the page cache. Seconds."""
    start = time.perf_counter()
    block = bytearray(1 << 22)
    for path in files(root):
        with path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return time.perf_counter() - start


# Bytes of a file that are asked about at a time.
WINDOW = 1 << 30


def cached(root):
    """The share of the bytes below `root` that is in the page cache."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = resident = 0
    for path in files(root):
        size = path.stat().st_size
        with path.open("rb") as file:
            # A private map of a whole file can be more than the system promises.
            for offset in range(0, size, WINDOW):
                length = min(WINDOW, size - offset)
                count = -(-length // mmap.PAGESIZE)
                with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=offset) as view:
                    anchor = ctypes.c_char.from_buffer(view)
                    bits = (ctypes.c_ubyte * count)()
                    if libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(length), bits) != 0:
                        raise OSError(ctypes.get_errno(), "mincore", str(path))
                    del anchor
                    pages += count
                    resident += sum(b & 1 for b in bytes(bits))
    return resident / max(pages, 1)


def evict(root):
    """Asks the system to forget the pages of the files below `root`, and tells which share of them is still cached."""
    os.sync()
    for path in files(root):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached(root)


def copy(source, target, synced):
    """Seconds of `cp -r`, with the copy brought to the disk if `synced`. The copy is removed."""
    shutil.rmtree(target, ignore_errors=True)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    if synced:
        for path in files(target):
            with path.open("rb") as file:
                os.fsync(file.fileno())
    took = time.perf_counter() - start
    shutil.rmtree(target)
    return took


def disk_rates(directory):
    """Bytes per second of the disk: writing one file with an fsync, reading it back uncached."""
    path = Path(directory, "probe.bin")
    block = os.urandom(1 << 24)
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(PROBE_BYTES // len(block)):
            file.write(block)
        os.fsync(file.fileno())
        wrote = PROBE_BYTES / (time.perf_counter() - start)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    buffer = bytearray(1 << 22)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    read = PROBE_BYTES / (time.perf_counter() - start)
    path.unlink()
    return wrote, read
