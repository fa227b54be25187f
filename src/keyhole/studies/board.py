"""The folder of a study on a disk that processes may share: what is done, and who is at work on what.

Every finished cell is a file of its own, written whole. A cell in work is held by a lease: a file that only one process
can create, and that its owner touches as long as it lives. The lease of a dead owner runs out, and another process may
take it over, one at a time: a second file, which only one can create, guards that.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from keyhole.errors import RunError
from keyhole.files import read_json, write_json, write_text
from keyhole.runs import difference

Keep = Callable[[str, Callable[[], str]], str]  # what was chosen under a name, else what a function chooses now

BEAT_S = 10.0
DEAD_AFTER_S = 90.0
# what disks without hard links say
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV,
             errno.EINVAL}  # fmt: skip


class Board:
    """The folder of one study.

    Args:
        path: The folder; made when missing.
        beat_s: How often a living owner touches its leases.
        dead_after_s: A lease that was not touched for so long has run out.
        make: Make what is missing of the folder; off for a look that leaves no trace.
        of: What works in it: ``study``, or ``search``, of which each would write over the reports of the other.

    Raises:
        RunError: The folder cannot be written, is a file, or holds what another command left.
    """

    def __init__(
        self,
        path: Path,
        *,
        beat_s: float = BEAT_S,
        dead_after_s: float = DEAD_AFTER_S,
        make: bool = True,
        of: str = "study",
    ) -> None:
        self.path, self.beat_s, self.dead_after_s = path, beat_s, dead_after_s
        self.owner = f"{_machine()} {os.getpid()} {_started(os.getpid())}-{uuid.uuid4().hex}"
        if not make:
            if path.exists() and not path.is_dir():
                raise RunError(f"{path} is a file; --out must be a folder. Choose another --out.")
            return
        if (there := self._left_by()) not in (None, of):
            raise RunError(f"{path} holds a {there}, and this is a {of}. Choose another --out.")
        try:
            for folder in (self.cells, self.leases, self.cohorts):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"Cannot write to {path}: {error.strerror}. Choose another --out.") from error

    def _left_by(self) -> str | None:
        """Return what has left something in the folder; None where nothing has."""
        if (self.path / "recipe.json").is_file():  # as every run but these two lays one down
            return "run"
        if (self.path / "search.txt").is_file():
            return "search"
        return "study" if any(self.cells.glob("*.json")) else None

    @property
    def cells(self) -> Path:
        """One JSON file for each finished cell."""
        return self.path / "cells"

    @property
    def leases(self) -> Path:
        """One file for each cell in work."""
        return self.path / "leases"

    @property
    def cohorts(self) -> Path:
        """Checkpoints of cohorts in work, and the networks of finished cells."""
        return self.path / "cohorts"

    def result(self, cell: str) -> dict[str, Any] | None:
        """Return what is on disk of a finished cell, by its id; None where it is not finished.

        Raises:
            RunError: The file is no result of a cell.
        """
        path = self.cells / f"{cell}.json"
        if not path.is_file():
            return None
        value = read_json(path, remedy="Remove it to run the cell again.")
        if not isinstance(value, dict) or not isinstance(value.get("recipe"), dict):
            raise RunError(f"{path} is no result of a cell. Remove it to run the cell again.")
        return value

    def finish(self, cell: str, value: Mapping[str, Any]) -> None:
        """Put the result of a cell on disk, whole."""
        write_json(self.cells / f"{cell}.json", dict(value))

    def check_recipes(self, recipes: Mapping[str, tuple[str, Mapping[str, Any]]]) -> None:
        """Check that what is finished was made by the recipes of the study as it is now.

        Args:
            recipes: Name and recipe of each cell, by its id.

        Raises:
            RunError: One was not; names the cell and the first setting that differs.
        """
        for cell, (name, recipe) in recipes.items():
            done = self.result(cell)
            if done is None:
                continue
            before = {key: value for key, value in done["recipe"].items() if key != _CODE or key in recipe}
            if before != _comparable(recipe, before):
                raise RunError(
                    f"{self.path} holds cell {name!r} of another recipe: {difference(before, recipe)}. "
                    "Choose another --out, or name the changed cell anew."
                )

    def is_done(self, cell: str) -> bool:
        """Return whether the result of a cell is on disk, without reading it."""
        return (self.cells / f"{cell}.json").is_file()

    def settle(self, name: str, choose: Callable[[], str]) -> str:
        """Return what the first process that asked chose under a name; the same for all that share the folder.

        Args:
            name: Of the choice.
            choose: Makes it where nobody has.

        Raises:
            RunError: The folder cannot be written, or the disk is full.
        """
        path = self.path / f"{name}.txt"
        if not path.is_file():
            fresh = path.with_suffix(f".{uuid.uuid4().hex}")
            write_text(fresh, choose())
            try:
                os.link(fresh, path)
            except FileExistsError:  # another process was faster
                pass
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise _unwritable(self.path, error) from error
                self._laid_down(fresh, path)  # whoever comes first has the name
            finally:
                fresh.unlink(missing_ok=True)
        return path.read_text(encoding="utf-8").strip()

    def peek(self, name: str, choose: Callable[[], str]) -> str:
        """Return what was chosen under a name, else what a function chooses now; nothing is kept."""
        path = self.path / f"{name}.txt"
        return path.read_text(encoding="utf-8").strip() if path.is_file() else choose()

    def _laid_down(self, fresh: Path, path: Path) -> None:
        lock = path.with_suffix(".lock")
        try:
            os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            until = time.monotonic() + self.dead_after_s
            while not path.is_file():
                if not lock.exists():  # whoever had it could not write, or has just done so
                    self._laid_down(fresh, path)
                    return
                if time.monotonic() > until:
                    raise RunError(f"{lock} was left by a process that was killed. Remove it.") from None
                time.sleep(0.02)
            return
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            if not path.is_file():
                write_text(path, fresh.read_text(encoding="utf-8"))
        finally:
            lock.unlink()

    def agree(self, what: str, recipe: Mapping[str, Any]) -> None:
        """Check that the folder was begun by the same recipe; the first one to ask lays it down.

        Args:
            what: What is run, such as ``search``.
            recipe: All that decides its result, as JSON values.

        Raises:
            RunError: It was begun by another; names the first setting that differs.
        """
        now = json.loads(json.dumps(dict(recipe)))
        before = json.loads(self.settle(what, lambda: json.dumps(now)))
        if before != _comparable(now, before):
            raise RunError(f"{self.path} holds another {what}: {difference(before, now)}. Choose another --out.")

    @contextmanager
    def hold(self, wanted: Sequence[str], most: int, *, least: int = 1) -> Iterator[list[str]]:
        """Take leases of up to ``most`` cells that are neither finished nor held; keep them alive, then release them.

        Args:
            wanted: Ids of cells, the most wanted first.
            most: How many at most.
            least: Where fewer can be had, none are taken.

        Yields:
            The ids of the cells held; one whose lease another process took over, as this one had stalled, leaves it.
        """
        held: list[str] = []
        stop = threading.Event()
        beat = threading.Thread(target=self._beat, args=(held, stop), daemon=True)
        try:
            for cell in wanted:
                if len(held) == most:
                    break
                if not self.is_done(cell) and self._take(cell):
                    held.append(cell)
                    if self.is_done(cell):  # finished between the look and the lease
                        held.remove(cell)
                        self._release(cell)
            if len(held) < least:
                while held:
                    self._release(held.pop())
            beat.start()
            yield held
        finally:
            stop.set()
            if beat.is_alive():
                beat.join()
            for cell in held:
                self._release(cell)

    def is_held(self, cell: str) -> bool:
        """Return whether a living owner is at work on a cell."""
        return self._alive(self._lease(cell))

    def _lease(self, cell: str) -> Path:
        return self.leases / f"{cell}.lease"

    def _take(self, cell: str) -> bool:
        lease = self._lease(cell)
        if lease.exists() and not self._alive(lease):
            return self._take_over(lease)
        try:
            descriptor = os.open(lease, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        except OSError as error:
            raise _unwritable(self.leases, error) from error
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(self.owner)
        except OSError as error:  # a full disk may still have room for a name
            lease.unlink(missing_ok=True)
            raise _unwritable(self.leases, error) from error
        return True

    def _take_over(self, lease: Path) -> bool:
        """Put our name into a dead owner's lease, which is there all the while; False where another was faster."""
        guard = lease.with_suffix(".takeover")
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            with suppress(OSError):
                if self._now() - guard.stat().st_mtime > self.dead_after_s:  # whoever made it was killed right then
                    guard.unlink()
            return False
        except OSError as error:
            raise _unwritable(self.leases, error) from error
        try:
            if not lease.exists() or self._alive(lease):
                return False
            write_text(lease, self.owner)  # replaces it whole
            return True
        finally:
            guard.unlink(missing_ok=True)

    def _release(self, cell: str) -> None:
        lease = self._lease(cell)
        with suppress(OSError):
            if lease.read_text(encoding="utf-8") == self.owner:
                lease.unlink()

    def _alive(self, lease: Path) -> bool:
        try:
            owner = lease.read_text(encoding="utf-8").split()
            age_s = self._now() - lease.stat().st_mtime
        except OSError:
            return False
        if len(owner) == 3 and owner[0] == _machine() and owner[1].isdecimal():
            if not _runs(int(owner[1])):
                return False
            began = owner[2].rpartition("-")[0]
            if began and (now := _started(int(owner[1]))):  # known here, however long it was suspended
                return began == now
        return age_s < self.dead_after_s

    def _now(self) -> float:
        """Return the time by the clock of the disk, which all processes share."""
        clock = self.leases / f".clock-{self.owner.rsplit(' ', 1)[1]}"
        try:
            clock.touch()
            return clock.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            with suppress(OSError):
                clock.unlink()

    def _beat(self, held: list[str], stop: threading.Event) -> None:
        while not stop.wait(self.beat_s):
            for cell in list(held):
                with suppress(OSError):
                    if self.owns(cell):
                        os.utime(self._lease(cell))
                    elif cell in held:
                        held.remove(cell)

    def owns(self, cell: str) -> bool:
        """Return whether the lease of a cell is ours, and has not been taken over since this process stalled."""
        try:
            return self._lease(cell).read_text(encoding="utf-8") == self.owner
        except FileNotFoundError:
            return False


def _unwritable(folder: Path, error: OSError) -> RunError:
    return RunError(f"Cannot write to {folder}: {error.strerror}. Free space or choose another --out.")


def _machine() -> str:
    """Return what processes that can see each other have in common: host, boot, and the space of process numbers."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def _started(process: int) -> str:
    """Return when a process of this machine began, in the system's own count; empty where it does not tell."""
    return "".join(_stat_of(process)[19:20])


def _stat_of(process: int) -> list[str]:
    """Return what the system tells of a process, from its state on; nothing where it does not."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _stat_of(process)[:1] not in (["Z"], ["X"])  # dead, though nobody has taken notice


_CODE = "code_sha256"  # which a recipe tells where it was asked for
_LATER = ("data_sha256", "input", "student_sha256", _CODE)  # what recipes did not tell from the beginning


def _comparable(recipe: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without what an earlier version did not tell in the one that is there."""
    return {key: value for key, value in recipe.items() if key not in _LATER or key in before}
