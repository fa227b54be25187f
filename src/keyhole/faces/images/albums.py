"""Folders and zip archives of pictures, read alike and never outside of themselves."""

from __future__ import annotations

import contextlib
import os
import stat
import unicodedata
import zipfile
from pathlib import Path, PurePosixPath
from types import TracebackType

from keyhole.errors import DataError
from keyhole.faces.images.photos import photo_size

PICTURE_ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# A photo of 100 megapixels without any compression is 300 MB; what is larger is a mistake or an attack.
MAX_FILE_BYTES = 320 * 2**20

_PIECE_BYTES = 2**20
_OF_SYSTEMS = {"thumbs.db", "desktop.ini", "__macosx", "icon\r"}
_READ = PICTURE_ENDINGS | {".csv", ".txt"}


class Album:
    """The files of one folder or of one zip archive, under names that do not depend on which of the two it is.

    A name is the path below the root with ``/`` between its parts, in Unicode's composed form (NFC), so that ``José``
    is one person whichever system wrote the file. Hidden files and what operating systems leave behind
    (``__MACOSX``, ``Thumbs.db``, ``desktop.ini``) are not part of it. Made by :func:`open_album`.

    Attributes:
        root: The folder or archive.
    """

    def __init__(self, root: Path, entries: dict[str, tuple[Path | zipfile.ZipInfo, int]]) -> None:
        self.root = root
        self._entries = entries
        self._archive: zipfile.ZipFile | None = None

    def names(self) -> tuple[str, ...]:
        """Return the names of all files, sorted by code points."""
        return tuple(sorted(self._entries))

    def pictures(self) -> tuple[str, ...]:
        """Return the names that end as those of pictures do (``.jpg``, ``.png``, ``.webp`` ...), sorted."""
        return tuple(name for name in self.names() if PurePosixPath(name).suffix.lower() in PICTURE_ENDINGS)

    def has(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        return unicodedata.normalize("NFC", name) in self._entries

    def size_bytes(self, name: str) -> int:
        """Return how long a file is; raises like :meth:`read` for a name that is not there."""
        return self._entry(name)[1]

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            DataError: There is no such file, it is larger than ``MAX_FILE_BYTES``, or it cannot be read whole: a
                broken archive, a wrong checksum, a password.
        """
        where, size = self._entry(name)
        if size > MAX_FILE_BYTES:
            raise DataError(
                f"{self.root}: {name} is {size / 2**20:.0f} MiB, expected a picture of at most "
                f"{MAX_FILE_BYTES // 2**20}. Remove it or save it smaller."
            )
        try:
            if isinstance(where, Path):
                with where.open("rb") as file:
                    return file.read(MAX_FILE_BYTES)
            if self._archive is None:
                self._archive = zipfile.ZipFile(self.root)
            with self._archive.open(where) as file:
                parts, left = [], size + 1
                while left and (part := file.read(min(left, _PIECE_BYTES))):  # never more than the archive promised
                    parts.append(part)
                    left -= len(part)
            if not left:
                raise zipfile.BadZipFile(f"more than the {size:,} bytes that it is said to have")
            return b"".join(parts)
        except Exception as error:  # zipfile raises nearly anything on broken bytes
            raise DataError(f"Cannot read {name} of {self.root}: {error}. Copy the data again.") from error

    def _entry(self, name: str) -> tuple[Path | zipfile.ZipInfo, int]:
        found = self._entries.get(unicodedata.normalize("NFC", name))
        if found is None:
            raise DataError(
                f"{self.root} holds no file {name!r}. Check the spelling, or name another folder or archive."
            )
        return found

    def close(self) -> None:
        """Close the archive; a later read opens it again."""
        if self._archive is not None:
            self._archive.close()
            self._archive = None

    def __enter__(self) -> Album:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def open_album(root: Path) -> Album:
    """Return the files of a folder or of a zip archive.

    Links inside the folder are followed; a link that leaves it, that leads to nothing or back to a folder around it
    is refused, as are archives with a link, a path that leaves the archive, a password, or two files of one name.

    Args:
        root: The folder or the archive.

    Raises:
        DataError: It is missing, broken or cannot be read, or one of the above.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.jpg").write_bytes(b"1")
        ...     open_album(Path(folder)).names()
        ('a.jpg',)
    """
    if root.is_dir():
        return Album(root, _folder_entries(root))
    if not root.is_file():
        raise DataError(f"No folder or archive {root}. Give a folder of pictures, or a zip of one.")
    try:
        with zipfile.ZipFile(root) as archive:
            listed = archive.infolist()
    except Exception as error:  # zipfile raises nearly anything on broken bytes
        raise DataError(f"{root} is not a whole zip archive ({error}). Copy it again, or unpack it.") from error
    return Album(root, _archive_entries(root, listed))


def album_of_file(path: Path) -> Album:
    """Return an album that holds one file of a folder, whatever else lies there.

    Raises:
        DataError: There is no such file.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror}. Name a picture that is there.") from error
    return Album(path.parent, {unicodedata.normalize("NFC", path.name): (path, size)})


def picture_size(album: Album, name: str, *, upright: bool = True) -> tuple[int, int]:
    """Return width and height of a picture in pixels; see :func:`keyhole.faces.images.photos.photo_size`.

    Raises:
        DataError: It is no picture that can be read.
    """
    return photo_size(album.read(name), name=f"{name} of {album.root}", upright=upright)


def _folder_entries(root: Path) -> dict[str, tuple[Path | zipfile.ZipInfo, int]]:
    def unreadable(error: OSError) -> None:
        raise DataError(f"Cannot read the folder {error.filename}: {error.strerror}. Allow reading, or remove it.")

    inside = Path(os.path.realpath(root))
    entries: dict[str, tuple[Path | zipfile.ZipInfo, int]] = {}
    for here, below, files in os.walk(root, onerror=unreadable, followlinks=True):
        linked = Path(os.path.realpath(here)) != inside / Path(here).relative_to(root)
        below[:] = sorted(name for name in below if not _left_out(name))
        for name in below:
            if Path(here, name).is_symlink():
                _check_link(Path(here, name), inside)
                if linked:  # links within links make more folders than there are, or no end of them
                    raise DataError(
                        f"The link {Path(here, name)} is itself found through a link. Remove one of the two."
                    )
        for name in sorted(files):
            path = Path(here, name)
            if _left_out(name):
                continue
            if path.is_symlink():
                _check_link(path, inside)
            if path.is_file():
                _add(entries, root, name=path.relative_to(root).as_posix(), entry=(path, path.stat().st_size))
    return entries


def _check_link(path: Path, inside: Path) -> None:
    target = Path(os.path.realpath(path))
    if not target.exists():
        raise DataError(f"The link {path} leads to nothing. Remove it, or put the file there.")
    if not target.is_relative_to(inside):
        raise DataError(f"The link {path} leads out of the folder. Put the files themselves there, or remove it.")
    if Path(os.path.realpath(path.parent)).is_relative_to(target):
        raise DataError(f"The link {path} leads to a folder around itself. Remove it.")


def _archive_entries(root: Path, listed: list[zipfile.ZipInfo]) -> dict[str, tuple[Path | zipfile.ZipInfo, int]]:
    entries: dict[str, tuple[Path | zipfile.ZipInfo, int]] = {}
    for info in listed:
        name = _archive_name(info)
        parts = PurePosixPath(name).parts
        if any(_left_out(part) for part in parts if part != ".."):
            continue
        if name.startswith("/") or ".." in parts or ":" in (parts or ("",))[0]:
            raise DataError(f"{root} holds {name!r}, a path out of the archive. Do not trust it; get it elsewhere.")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise DataError(f"{root} holds the link {name!r}, expected files. Pack the file itself.")
        if info.is_dir() or name.endswith("/"):
            continue
        rare = info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if rare and PurePosixPath(name).suffix.lower() not in _READ:
            continue
        if rare:
            raise DataError(
                f"{name!r} of {root} is packed in a rare way, expected deflate. Pack it anew, or unpack it."
            )
        if info.flag_bits & 0x1:
            raise DataError(f"{name} of {root} has a password. Unpack the archive to a folder and name that.")
        _add(entries, root, name=PurePosixPath(name).as_posix(), entry=(info, info.file_size))
    return entries


def _archive_name(info: zipfile.ZipInfo) -> str:
    name = info.filename
    if not info.flag_bits & 0x800:  # macOS writes UTF-8 without saying so, which zipfile then reads as CP437
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _left_out(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def _add(
    entries: dict[str, tuple[Path | zipfile.ZipInfo, int]],
    root: Path,
    *,
    name: str,
    entry: tuple[Path | zipfile.ZipInfo, int],
) -> None:
    composed = unicodedata.normalize("NFC", name)
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in composed):  # such lines and bytes go to reports
        if PurePosixPath(composed).suffix.lower() not in _READ:
            return
        raise DataError(f"{root} holds {composed!a}, a name with control characters or bytes that are no UTF-8. "
                        "Rename it.")  # fmt: skip
    if composed in entries:
        raise DataError(f"{root} holds two files of the one name {composed!r}. Rename or remove one of them.")
    entries[composed] = entry
