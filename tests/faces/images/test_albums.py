from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import sys
import unicodedata
import warnings
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from faces.trees import picture, put, zipped
from keyhole.errors import DataError
from keyhole.faces.images import albums
from keyhole.faces.images.albums import open_album, picture_size


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    put(root, "b/2.JPG", b"two")
    put(root, "a.txt", b"text")
    put(root, "b/c/1.webp", b"one")
    for hidden in (".git/x.jpg", "__MACOSX/b/2.jpg", "b/Thumbs.db", "b/.DS_Store", "desktop.ini"):
        put(root, hidden, b"no")
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_and_its_archive_are_alike(tree: Path, tmp_path: Path, packed: bool) -> None:
    root = zipped(tree, tmp_path / "a.zip") if packed else tree
    with open_album(root) as album:
        assert album.root == root
        assert album.names() == ("a.txt", "b/2.JPG", "b/c/1.webp")
        assert album.pictures() == ("b/2.JPG", "b/c/1.webp")
        assert album.has("b/c/1.webp")
        assert not album.has("b/c")
        assert album.read("b/c/1.webp") == b"one"
        assert album.size_bytes("a.txt") == 4
    assert album.read("a.txt") == b"text"  # opens again
    album.close()


@pytest.mark.parametrize("packed", [False, True])
def test_names_are_in_composed_form_and_found_in_any(tmp_path: Path, packed: bool) -> None:
    name = "Jos\u00e9/1.jpg"
    put(tmp_path / "tree", unicodedata.normalize("NFD", name), b"x")
    root = zipped(tmp_path / "tree", tmp_path / "a.zip") if packed else tmp_path / "tree"
    with open_album(root) as album:
        assert album.names() == (name,)
        assert album.read(name) == album.read(unicodedata.normalize("NFD", name)) == b"x"


def test_two_files_of_one_composed_name(tmp_path: Path) -> None:
    put(tmp_path, "Jos\u00e9.jpg", b"1")
    put(tmp_path, unicodedata.normalize("NFD", "Jos\u00e9.jpg"), b"2")
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system composes names itself")
    with pytest.raises(DataError, match=r"holds two files of the one name 'Jos.\.jpg'"):
        open_album(tmp_path)


def test_a_name_that_is_not_there(tree: Path) -> None:
    with pytest.raises(DataError, match=r"holds no file '../tree/a.txt'. Check the spelling"):
        open_album(tree).read("../tree/a.txt")
    with pytest.raises(DataError, match="holds no file '/etc/passwd'"):
        open_album(tree).size_bytes("/etc/passwd")


def test_links(tree: Path, tmp_path: Path) -> None:
    (tree / "inside.jpg").symlink_to(tree / "b" / "2.JPG")
    (tree / "again").symlink_to(tree / "b", target_is_directory=True)
    album = open_album(tree)
    assert album.read("inside.jpg") == album.read("again/2.JPG") == b"two"
    put(tmp_path, "secret", b"key")
    for target, message in (
        (tmp_path / "secret", "leads out of the folder"),
        (tmp_path, "leads out of the folder"),
        (tree, "leads to a folder around itself"),
        (tmp_path / "none", "leads to nothing"),
    ):
        (tree / "b" / "link").symlink_to(target)
        with pytest.raises(DataError, match=f"The link .*link {message}"):
            open_album(tree)
        (tree / "b" / "link").unlink()


def test_links_through_links_have_an_end(tree: Path) -> None:
    put(tree, "d/3.jpg", b"three")
    (tree / "b" / "to").symlink_to(tree / "d", target_is_directory=True)
    assert open_album(tree).read("b/to/3.jpg") == b"three"
    (tree / "d" / "to").symlink_to(tree / "b", target_is_directory=True)
    with pytest.raises(DataError, match=r"The link .*to/to is itself found through a link"):
        open_album(tree)


def test_names_that_no_line_can_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'p/a\\n.jpg', a name with control characters"):
        open_album(archive(tmp_path, {"p/a\n.jpg": b"1"}))
    folder = os.fsencode(tmp_path / "bytes")
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder + b"/Jos\xe9.jpg")).write_bytes(b"1")
    with pytest.raises(DataError, match=r"Jos\\udce9.jpg', a name .* bytes that are no UTF-8. Rename it"):
        open_album(tmp_path / "bytes")


def test_an_archive_cannot_hold_more_than_it_says(tmp_path: Path) -> None:
    """A bomb says that it is small: it is read to there, and no further."""
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.jpg", bytes(300 * 2**20))
    data = bytearray(path.read_bytes())
    for place in (data.index(b"PK\x01\x02") + 24, data.index(b"PK\x03\x04") + 22):
        data[place : place + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)
    script = "import resource, sys; from pathlib import Path; from keyhole.faces.images.albums import open_album\n"
    script += "from keyhole.errors import DataError\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
    script += "try:\n    open_album(Path(sys.argv[1])).read('a.jpg')\nexcept DataError as error:\n    print(error)\n"
    script += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    told, grown_kb = done.stdout.splitlines()
    assert "Cannot read a.jpg" in told
    assert int(grown_kb) < 40_000


def test_rare_ways_of_packing_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_BZIP2) as packed:
        packed.writestr("model.bin", b"1")
    assert open_album(tmp_path / "b.zip").names() == ()  # what is never read does not matter
    put(tmp_path, "icons/Icon\r", b"")
    assert open_album(tmp_path / "icons").names() == ()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_BZIP2) as packed:
        packed.writestr("a.jpg", b"1")
    with pytest.raises(DataError, match=r"'a.jpg' of .* is packed in a rare way"):
        open_album(tmp_path / "a.zip")


def test_a_root_that_is_a_link_itself(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tree, target_is_directory=True)
    assert open_album(tmp_path / "link").read("a.txt") == b"text"


def test_what_is_no_file_is_left_out(tree: Path) -> None:
    os.mkfifo(tree / "pipe.jpg")
    assert not open_album(tree).has("pipe.jpg")


def test_no_album(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"No folder or archive .*none. Give a folder of pictures, or a zip"):
        open_album(tmp_path / "none")
    for data in (b"", b"text", b"PK\x03\x04"):
        with pytest.raises(DataError, match="is not a whole zip archive") as error:
            open_album(put(tmp_path, "a.zip", data))
        assert "\n" not in str(error.value)


def archive(tmp_path: Path, entries: dict[str, bytes], **info: int) -> Path:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, data in entries.items():
            entry = zipfile.ZipInfo(name)
            for key, value in info.items():
                setattr(entry, key, value)
            file.writestr(entry, data)
    return tmp_path / "a.zip"


@pytest.mark.parametrize("name", ["../x.jpg", "a/../../x.jpg", "/etc/x.jpg", "..\\x.jpg", "C:\\x.jpg", "C:/x.jpg"])
def test_paths_out_of_an_archive(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="a path out of the archive"):
        open_album(archive(tmp_path, {name: b"x"}))


def test_backslashes_are_separators(tmp_path: Path) -> None:
    assert open_album(archive(tmp_path, {"a\\b.jpg": b"x", "a/": b"", "c//d.jpg": b"x"})).names() == (
        "a/b.jpg",
        "c/d.jpg",
    )


def test_links_in_an_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds the link 'x.jpg', expected files"):
        open_album(archive(tmp_path, {"x.jpg": b"/etc/passwd"}, external_attr=(stat.S_IFLNK | 0o777) << 16))


def test_two_entries_of_one_name(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        path = archive(tmp_path, {"a/x.jpg": b"1", "a\\x.jpg": b"2"})
    with pytest.raises(DataError, match=r"two files of the one name 'a/x.jpg'"):
        open_album(path)


def test_names_of_macos_are_utf_8(tmp_path: Path) -> None:
    path = archive(tmp_path, {"Jos\u00e9.jpg": b"x"})
    data = path.read_bytes()
    for header, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # take back the flag that says so
        where = data.index(header) + at
        flags = struct.unpack("<H", data[where : where + 2])[0] & ~0x800
        data = data[:where] + struct.pack("<H", flags) + data[where + 2 :]
    path.write_bytes(data)
    assert open_album(path).names() == ("Jos\u00e9.jpg",)
    assert open_album(path).read("Jos\u00e9.jpg") == b"x"


def test_a_password(tmp_path: Path) -> None:
    path = archive(tmp_path, {"x.jpg": b"x"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"x.jpg of .*a.zip has a password"):
        open_album(path)


def test_a_broken_entry(tmp_path: Path) -> None:
    path = archive(tmp_path, {"x.jpg": b"content", "y.jpg": b"other"})
    path.write_bytes(path.read_bytes().replace(b"content", b"cOntent"))
    album = open_album(path)
    with pytest.raises(DataError, match=r"Cannot read x.jpg of .*Bad CRC-32.*Copy the data again") as error:
        album.read("x.jpg")
    assert "\n" not in str(error.value)
    assert album.read("y.jpg") == b"other"


def test_files_too_large_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.jpg", bytes(3 * 2**20))
    put(tmp_path / "tree", "x.jpg", bytes(3 * 2**20))
    monkeypatch.setattr(albums, "MAX_FILE_BYTES", 2**20)
    for root in (tmp_path / "bomb.zip", tmp_path / "tree"):
        with pytest.raises(DataError, match=r"x.jpg is 3 MiB, expected a picture of at most 1"):
            open_album(root).read("x.jpg")


def test_an_archive_that_lies_about_a_size(tmp_path: Path) -> None:
    """What is read is never longer than what the archive says."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x.jpg", bytes(2**20))
    data = (tmp_path / "a.zip").read_bytes().replace(struct.pack("<L", 2**20), struct.pack("<L", 10))
    (tmp_path / "a.zip").write_bytes(data)
    album = open_album(tmp_path / "a.zip")
    assert album.size_bytes("x.jpg") == 10
    with pytest.raises(DataError, match=r"Cannot read x.jpg"):
        album.read("x.jpg")


def test_an_unreadable_folder(tree: Path) -> None:
    (tree / "b").chmod(0)
    try:
        if os.access(tree / "b", os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(DataError, match="Cannot read the folder"):
            open_album(tree)
    finally:
        (tree / "b").chmod(0o755)


def test_the_size_of_a_picture(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", picture(3, (30, 20)))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.new("RGB", (30, 20)).save(turned, "JPEG", exif=exif)
    put(tmp_path, "b.jpg", turned.getvalue())
    put(tmp_path, "c.jpg", b"nothing")
    put(tmp_path, "d.jpg", b"")
    album = open_album(tmp_path)
    assert picture_size(album, "a.jpg") == (30, 20)
    assert picture_size(album, "b.jpg") == (20, 30)
    for name in ("c.jpg", "d.jpg"):
        with pytest.raises(DataError, match=f"^{name} of .*(no image that can be read|is empty)"):
            picture_size(album, name)
