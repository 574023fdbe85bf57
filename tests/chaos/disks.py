"""Faults of disks: full at the wrong moment, or read-only."""

import contextlib
import os
import subprocess

from tests.chaos.bench import the_line
from tests.chaos.forks import Watch
from tests.chaos.programs import check

LEFT_BYTES = 6000  # that a full disk has left


@contextlib.contextmanager
def disk(folder):
    """A small disk of its own, mounted at a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(path):
    """Fills the disk, but for a little, with a file."""
    stat = os.statvfs(path.parent)
    os.posix_fallocate(
        os.open(path, os.O_WRONLY | os.O_CREAT), 0, stat.f_bavail * stat.f_frsize - LEFT_BYTES
    )


def full_disk(title, phase, number=0):
    """A fault: the disk is full when a program comes to an event of a phase."""

    def fault(bench):
        case = bench.cases[title]
        with disk(bench.work / "disk") as mounted:
            folder, ballast = mounted / "folder", mounted / "ballast"
            folder.mkdir()
            watch = Watch(folder, case.phase_of, phase, number, lambda: fill(ballast))
            fork = bench.run(case, folder, watch)
            check(ballast.exists(), f"the moment did not come: {fork.printed()}")
            line = the_line(fork, "No space left on device")
            found, _ = case.found(folder, 0)
            ballast.unlink()
            bench.finish(case, folder)
        return f"{line} | {found}; then as if nothing had been"

    return fault


def read_only(title):
    """A fault: nothing can be written."""

    def fault(bench):
        case = bench.cases[title]
        with disk(bench.work / "disk") as mounted:
            subprocess.run(["mount", "-o", "remount,ro", mounted], check=True)
            return the_line(bench.run(case, mounted), "Read-only file system")

    return fault


_FAULTS = {
    "full disk, pretrain, its text": full_disk("pretrain", "text and vocabulary", 12),
    "full disk, pretrain, first checkpoint": full_disk("pretrain", "checkpoint: writing", 2),
    "full disk, pretrain, a later checkpoint": full_disk("pretrain", "checkpoint: writing", 20),
    "full disk, pretrain, before naming": full_disk("pretrain", "checkpoint: naming", 1),
    "full disk, pretrain, best": full_disk("pretrain", "best: writing", 2),
    "full disk, pretrain, final": full_disk("pretrain", "final: writing", 2),
    "full disk, prepare, shards": full_disk("prepare", "shards", 1),
    "full disk, prepare, manifest": full_disk("prepare", "manifest", 1),
    "full disk, export, the model": full_disk("export", "writing", 0),
    "full disk, export, what lies beside": full_disk("export", "writing", 3),
    **{f"read-only folder, {title}": read_only(title) for title in ("pretrain", "prepare")},
    "read-only folder, export": read_only("export"),
}


def _as_root(fault):
    return fault if os.geteuid() == 0 else lambda bench: "NOT TRIED: only root mounts disks"


DISK_FAULTS = {name: _as_root(fault) for name, fault in _FAULTS.items()}
