"""Downloads are shown first, checked, and whole or not at all; entries fit the files that can be had here."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from keyhole.errors import DataError, RunError, SettingError, UnknownNameError, WeightsError
from keyhole.faces.models import registry
from keyhole.faces.models.compact import COMPACT
from keyhole.faces.models.face_model import NETWORKS
from keyhole.faces.models.preparation import Licenses
from keyhole.faces.models.registry import (
    CHUNK_BYTES,
    KNOWN_MODELS,
    KnownFile,
    KnownModel,
    check_file,
    download,
    installed,
    known_by_sha256,
    models_folder,
    notice,
)
from keyhole.files import sha256

CONTENT = {"/main.xml": b"<net/>" * 100_000, "/main.bin": bytes(range(256)) * 50}


class Server(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        content = CONTENT.get(self.path.removesuffix("-cut"))
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:-9] if self.path.endswith("-cut") else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    handler = type("Handler", (Server,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def entry(base: str, **changes: object) -> KnownModel:
    files = [
        KnownFile(name[1:], hashlib.sha256(content).hexdigest(), len(content), base + name)
        for name, content in CONTENT.items()
    ]
    files[0] = dataclasses.replace(files[0], **changes)
    return KnownModel("https://example.org", (tuple(files),), Licenses("MIT", "CC0", "faces of nobody"), None, 0)


def yes(_: str) -> bool:
    return True


@pytest.fixture
def known(server: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(KNOWN_MODELS, "toy", entry(server[0]))
    return server[1]


def test_all_files_arrive_after_the_terms_were_shown(known: list[str], tmp_path: Path) -> None:
    shown: list[str] = []

    def accept(text: str) -> bool:
        assert known == []
        shown.append(text)
        return True

    path = download("toy", tmp_path / "models", accept=accept)
    assert path == tmp_path / "models" / "main.xml"
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {
        name[1:]: content for name, content in CONTENT.items()
    }
    for term in ("code: MIT", "weights: CC0", "training data: faces of nobody", "600,000 bytes", "main.bin"):
        assert term in shown[0]
    assert installed("toy", tmp_path / "models") == path


def test_what_is_there_and_whole_is_not_fetched_again(known: list[str], tmp_path: Path) -> None:
    download("toy", tmp_path, accept=yes)
    download("toy", tmp_path, accept=lambda _: pytest.fail("nothing to accept"))
    assert sorted(known) == ["/main.bin", "/main.xml"]
    (tmp_path / "main.bin").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"main\.bin has SHA-256 .*; expected"):
        installed("toy", tmp_path)
    download("toy", tmp_path, accept=yes)
    assert sorted(known) == ["/main.bin", "/main.bin", "/main.xml"]
    assert installed("toy", tmp_path).read_bytes() == CONTENT["/main.xml"]


def test_without_consent_nothing_is_fetched(known: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="its terms were not accepted"):
        download("toy", tmp_path / "models", accept=lambda _: False)
    assert known == []
    assert not (tmp_path / "models").exists()


def test_progress_counts_pieces(known: list[str], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    def progress(items: Iterable[bytes], *, label: str, total: int, done: int = 0) -> Iterator[bytes]:
        pieces = list(items)
        seen.append((label, total, len(pieces)))
        yield from pieces

    download("toy", tmp_path, accept=yes, progress=progress)
    pieces = -(-len(CONTENT["/main.xml"]) // CHUNK_BYTES)
    assert pieces == 3
    assert seen == [("main.xml", pieces, pieces), ("main.bin", 1, 1)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "0" * 64}, "expected 0000"),
        ({"size_bytes": 1000}, "is longer than 1000 bytes"),
        ({"path": "/other"}, "404|Not Found"),
        ({"path": "/main.xml-cut"}, "SHA-256|IncompleteRead|more expected|Cannot fetch"),
        ({"address": "http://127.0.0.1:9/main.xml"}, "Cannot fetch http://127"),
        ({"address": "file:///etc/hostname"}, "no address of the web"),
    ],
)
def test_a_failed_download_leaves_the_old_file_and_no_part(
    server: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: dict[str, object],
    reason: str,
) -> None:
    if "path" in changes:
        changes = {"address": server[0] + str(changes["path"])}
    monkeypatch.setitem(KNOWN_MODELS, "toy", entry(server[0], **changes))
    (tmp_path / "main.xml").write_bytes(b"old")
    with pytest.raises((DataError, SettingError), match=reason) as caught:
        download("toy", tmp_path, accept=yes)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["main.xml"]
    assert (tmp_path / "main.xml").read_bytes() == b"old"


def test_a_folder_that_cannot_be_made_is_one_line(known: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="Cannot write"):
        download("toy", tmp_path / "file" / "models", accept=yes)


def test_what_has_no_lasting_address_is_asked_for_by_path(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"No lasting address .* name it by its path"):
        download("vggface2-resnet50", tmp_path, accept=yes)
    with pytest.raises(UnknownNameError, match="nearest known: auraface"):
        download("aura-face", tmp_path, accept=yes)
    with pytest.raises(WeightsError, match=r"auraface is not in .*\(no glintr100\.onnx\)\. Download it first"):
        installed("auraface", tmp_path)


def test_the_folder_of_models_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KEYHOLE_MODELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "keyhole" / "models"
    monkeypatch.setenv("KEYHOLE_MODELS", str(tmp_path / "mine"))
    assert models_folder() == tmp_path / "mine"


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_entries_are_complete(name: str) -> None:
    model = KNOWN_MODELS[name]
    assert model.page.startswith("https://")
    assert model.network in (None, name)
    assert (model.network is None) or name in NETWORKS
    assert (model.preparation is None) == (model.embedding_size == 0) == (model.kind == "detector")
    for file in (file for form in model.forms for file in form):
        assert file.address is None or file.address.startswith("https://")
        assert (file.sha256 is None) == (file.size_bytes is None)
        assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32
        assert file.address is None or file.sha256 is not None, "a download must be checked"
    for term in dataclasses.asdict(model.licenses).values():
        assert term
        assert term in notice(name)


def test_networks_without_entry_would_be_out_of_reach() -> None:
    ours = set(COMPACT)  # their files describe themselves
    assert set(NETWORKS) - ours == {name for name, model in KNOWN_MODELS.items() if model.network}


@pytest.mark.parametrize(
    ("file", "name", "index"),
    [
        ("face-reidentification-retail-0095.fp16.xml", "face-reidentification-retail-0095", 0),
        ("face-reidentification-retail-0095.fp16.bin", "face-reidentification-retail-0095", 1),
        ("face-reidentification-retail-0095.fp32.onnx", "face-reidentification-retail-0095", 0),
        ("foamliu_mobilefacenet.pt", "mobilefacenet", 0),
        ("yunet_n_640_640.onnx", "yunet-n-640", 0),
    ],
)
def test_entries_fit_the_files_that_are_here(shared: Path, file: str, name: str, index: int) -> None:
    path = shared / "data" / "faces" / "models" / file
    digest = sha256(path)
    form = next(form for form in KNOWN_MODELS[name].forms if len(form) > index and form[index].sha256 == digest)
    assert form[index].size_bytes == path.stat().st_size
    check_file(path, form[index])
    assert known_by_sha256(form[0].sha256 or "") == (name, form)


def test_no_two_entries_share_a_file() -> None:
    digests = [file.sha256 for model in KNOWN_MODELS.values() for form in model.forms for file in form if file.sha256]
    assert len(digests) == len(set(digests))
    assert registry.known_by_sha256("0" * 64) is None
