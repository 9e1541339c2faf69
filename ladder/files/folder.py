"""A folder that strangers may name files in: to read one that is there, or to put one there.

A name from outside is never a path. It is one name in this one folder, and what it opens must be a plain
file: no way up or down, no hidden file, no symbolic link that leads out, no device and no pipe. Whether it
exists but may not be had, or does not exist, is not told: both are `NotThere`.
"""

from __future__ import annotations

import errno
import hashlib
import mimetypes
import os
import stat
import threading
import time
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from urllib.parse import quote

from ladder.errors import UserError

LONGEST_NAME = 200
"""In bytes; less than the 255 that file systems take, because partial files have longer names."""

PARTIAL = ".part"

UNREADABLE = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM,
    errno.ELOOP,  # a symbolic link
    errno.ENXIO, errno.ENODEV,  # a socket, a device
)  # fmt: skip
"""Errors that are about the name. Any other is one of the disk or of the server, and no reason to say that
there is no such file: a client would believe it and stop asking."""


class NotThere(Exception):
    """No such file, for whoever asked."""


class InvalidName(ValueError):
    """A name that no file in the folder can have."""


class NoRoom(Exception):
    """Unfinished uploads have all the room that they may have."""

    def __init__(self) -> None:
        super().__init__("unfinished uploads take all the room there is for them; try again later")


def check_readable(name: str) -> str:
    """A name by which a stranger may ask for a file."""
    if not name or name.startswith("."):
        raise InvalidName("a name must not be empty or begin with a dot")
    # Slashes are the way out, and so are backslashes on Windows; a control character is in no honest name.
    # Surrogates are bytes that were no UTF-8.
    if any(character in "/\\" or unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise InvalidName("a name must not contain slashes, backslashes or control characters")
    return name


def check_name(name: str) -> str:
    """A name that a stranger may give to a file: one that can be read, and that every system can have."""
    check_readable(name)
    if ":" in name:
        raise InvalidName("a name must not contain colons")
    if len(name.encode()) > LONGEST_NAME:
        raise InvalidName(f"a name must not be longer than {LONGEST_NAME} bytes")
    return name


class WrongOffset(ValueError):
    """Bytes that do not belong where the partial file ends."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the upload is to be resumed at byte {size}")
        self.size = size


@dataclass(frozen=True, eq=False)
class OpenFile:
    """A file that is open: its size and its tag are those of the bytes that will be read, whatever takes
    its name meanwhile."""

    name: str
    content: FileIO
    size: int
    modified: datetime
    tag: str

    @property
    def media_type(self) -> str:
        """By its name. The system's own table of types is left out: it differs from machine to machine."""
        kind, encoding = mimetypes.MimeTypes().guess_type(self.name)
        if encoding == "gzip":
            return "application/gzip"  # the file as it is; nobody is to unpack it on the way
        if kind is None or encoding:
            return "application/octet-stream"
        return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


@dataclass(frozen=True)
class Listed:
    """A file that can be asked for."""

    name: str
    size: int
    media_type: str


@dataclass(frozen=True)
class Stored:
    """A file that has been put into the folder."""

    name: str
    size: int
    sha256: str
    replaced: bool


class Folder:
    def __init__(self, path: str | Path, create: bool = False, room: int = 0) -> None:
        """`room` is for all unfinished uploads together, in bytes."""
        self.path = Path(path).resolve()
        try:
            if create:
                self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the folder {path}: {error.strerror}") from error
        if not self.path.is_dir():
            raise UserError(f"there is no folder {path}; name one that exists")
        self._free = room - sum(map(self.partial_size, self.unfinished()))
        self._counting = threading.Lock()

    def open(self, name: str) -> OpenFile:
        try:
            check_readable(name)
            # O_NOFOLLOW: not through a symbolic link. O_NONBLOCK: a pipe must not make us wait for a writer.
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            content = FileIO(os.open(self.path / name, flags | getattr(os, "O_BINARY", 0)))
        except InvalidName:
            raise NotThere(name) from None
        except OSError as error:
            if error.errno in UNREADABLE:
                raise NotThere(name) from None
            raise
        # Only now, of what is open: a look at the name before opening could see another file.
        about = os.fstat(content.fileno())
        if not stat.S_ISREG(about.st_mode):
            content.close()
            raise NotThere(name)
        modified = datetime.fromtimestamp(about.st_mtime, UTC).replace(microsecond=0)
        tag = f"{about.st_ino:x}-{about.st_size:x}-{about.st_mtime_ns:x}"
        return OpenFile(name, content, about.st_size, modified, tag)

    def files(self) -> list[Listed]:
        """What can be asked for, by name."""
        found = []
        for file in sorted(self.path.iterdir()):
            with suppress(NotThere):
                opened = self.open(file.name)
                opened.content.close()
                found.append(Listed(opened.name, opened.size, opened.media_type))
        return found

    def partial(self, id: str, offset: int = 0) -> Partial:
        """A file to be written, or to be resumed at an offset, which must be its present end."""
        kept = self.partial_size(id)
        if offset and offset != kept:
            raise WrongOffset(kept)
        partial = Partial(self, self._hidden(id), resume=offset > 0)
        if not offset:
            self.take(-kept)
        return partial

    def take(self, size: int) -> None:
        """Room for so much more of an unfinished upload, or less."""
        with self._counting:
            if size > max(self._free, 0):
                raise NoRoom
            self._free -= size

    def partial_size(self, id: str) -> int:
        """How much of an upload has been kept."""
        try:
            return self._hidden(id).stat().st_size
        except FileNotFoundError:
            return 0

    def _hidden(self, id: str) -> Path:
        return self.path / f".{id}{PARTIAL}"

    def unfinished(self, seconds: float = 0) -> list[str]:
        """The ids of uploads to which nothing has been added for so long."""
        ids = [file.name[1 : -len(PARTIAL)] for file in self.path.glob(f".*{PARTIAL}")]
        return [one for one in ids if self._age(one) >= seconds]

    def forget(self, id: str, seconds: float) -> None:
        """Remove what is left of an upload, unless somebody has resumed it."""
        if self._age(id) >= seconds:
            kept = self.partial_size(id)
            self._hidden(id).unlink()
            self.take(-kept)

    def _age(self, id: str) -> float:
        try:
            return time.time() - self._hidden(id).stat().st_mtime
        except FileNotFoundError:
            return -1  # its upload has come to an end this moment


class Partial:
    """A file that is being written under a name that nobody can ask for, and hashed as it is written."""

    def __init__(self, folder: Folder, path: Path, resume: bool) -> None:
        self.folder = folder
        self.path = path
        self.content = FileIO(self.path, "r+" if resume else "w+")
        # Going on after a break: the hash needs the bytes that came before.
        self.hash = hashlib.file_digest(self.content, "sha256")
        self.size = self.content.seek(0, os.SEEK_END)

    def write(self, data: bytes) -> None:
        self.folder.take(len(data))
        self.hash.update(data)
        self.size += len(data)
        view = memoryview(data)
        while view:
            view = view[self.content.write(view) :]

    def publish(self, name: str) -> Stored:
        """Give the complete file its name, in one step: others see the old file or the new one."""
        target = self.folder.path / name
        if target.is_dir():
            raise InvalidName("there is a folder of this name")
        replaced = target.exists()
        os.fsync(self.content.fileno())
        self.content.close()
        self.path.replace(target)
        self.folder.take(-self.size)
        return Stored(name, self.size, self.hash.hexdigest(), replaced)

    def leave(self) -> None:
        """Close the file, and keep what there is."""
        self.content.close()

    def discard(self) -> None:
        self.content.close()
        self.path.unlink(missing_ok=True)
        self.folder.take(-self.size)


def attachment(name: str) -> str:
    """A Content-Disposition that saves under any name (RFC 6266): an approximation in ASCII for old
    clients, and the name itself as percent-encoded UTF-8 (RFC 8187), which the others prefer."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().strip()
    safe = "".join(c if c.isalnum() or c in " .-_()" else "_" for c in plain)
    if not safe or safe.startswith("."):  # nothing left but the ending
        safe = "download" + safe
    encoded = quote(name, safe="!#$&+-.^_`|~")
    return f"attachment; filename=\"{safe}\"; filename*=UTF-8''{encoded}"
