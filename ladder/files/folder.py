"""A folder of files that clients may name: to read a file that exists, or to store one.

A name from a client is never a path. It is one name in this one folder, and what it opens must be a plain
file: no way into another folder, no hidden file, no symbolic link, no device and no pipe. A client cannot
tell a file that it may not read from one that does not exist: both are `NoSuchFile`.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import stat
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Protocol, TypeVar, TypeVarTuple

from ladder.errors import UserError
from ladder.files.names import InvalidName, check_readable

PARTIAL = ".part"

NAME_ERRORS = (
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM,
    errno.ELOOP,  # a symbolic link
    errno.ENXIO, errno.ENODEV,  # a socket, a device
)  # fmt: skip
"""Errors that are about the name. Any other is a failure of the disk or the server. It must not become
"no such file": the client would believe that and stop asking."""


T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class InWorker(Protocol):
    """Runs a function in a worker thread, where it may wait for the disk."""

    def __call__(self, work: Callable[[*Arguments], T], *arguments: *Arguments) -> Awaitable[T]: ...


class NoSuchFile(Exception):
    """The folder has no file of this name that a client may read."""


class NoSpace(Exception):
    """Unfinished uploads use all the space that they may use."""

    def __init__(self) -> None:
        super().__init__("unfinished uploads use all the space reserved for them; try again later")


class WrongOffset(ValueError):
    """The bytes that a client sends do not begin where its partial upload ends."""

    def __init__(self, size: int) -> None:
        super().__init__(f"resume the upload at byte {size}")
        self.size = size


@dataclass(frozen=True, eq=False)
class OpenFile:
    """An open file. Its size and tag are those of the bytes to read, even if another file takes its name."""

    name: str
    content: FileIO
    size: int
    modified: datetime
    tag: str

    @property
    def media_type(self) -> str:
        """By its name. The system's own table of types is not used: it differs from machine to machine."""
        kind, encoding = mimetypes.MimeTypes().guess_type(self.name)
        if encoding == "gzip":
            return "application/gzip"  # sent as it is; the client must not decompress it on arrival
        if kind is None or encoding:
            return "application/octet-stream"
        return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


@dataclass(frozen=True)
class Listed:
    """A file that a client can read."""

    name: str
    size: int
    media_type: str


@dataclass(frozen=True)
class Stored:
    """A file that a client has stored in the folder."""

    name: str
    size: int
    sha256: str
    replaced: bool


class Folder:
    def __init__(self, path: str | Path, create: bool = False, space: int = 0) -> None:
        """`space` is how many bytes all unfinished uploads together may use."""
        self.path = Path(path).resolve()
        try:
            if create:
                self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create the folder {path}: {error.strerror}") from error
        if not self.path.is_dir():
            raise UserError(f"there is no folder {path}; name one that exists")
        self._free = space - sum(map(self.partial_size, self.unfinished()))
        self._counting = threading.Lock()
        self.publishing = threading.Lock()
        """Held while a complete upload gets its name: between the look at the name and the rename."""

    def open(self, name: str) -> OpenFile:
        try:
            check_readable(name)
            # O_NOFOLLOW: fail on a symbolic link. O_NONBLOCK: do not wait for a pipe's writer.
            flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            content = FileIO(os.open(self.path / name, flags | getattr(os, "O_BINARY", 0)))
        except InvalidName:
            raise NoSuchFile(name) from None
        except OSError as error:
            if error.errno in NAME_ERRORS:
                raise NoSuchFile(name) from None
            raise
        # Checked after opening: a check by name could see another file than the one that was opened.
        about = os.fstat(content.fileno())
        if not stat.S_ISREG(about.st_mode):
            content.close()
            raise NoSuchFile(name)
        modified = datetime.fromtimestamp(about.st_mtime, UTC).replace(microsecond=0)
        tag = f"{about.st_ino:x}-{about.st_size:x}-{about.st_mtime_ns:x}"
        return OpenFile(name, content, about.st_size, modified, tag)

    def files(self) -> list[Listed]:
        """All files that a client can read, sorted by name."""
        found = []
        for file in sorted(self.path.iterdir()):
            with suppress(NoSuchFile):
                opened = self.open(file.name)
                opened.content.close()
                found.append(Listed(opened.name, opened.size, opened.media_type))
        return found

    def prepare_partial(self, id: str, offset: int) -> Path:
        """The hidden file of an upload that begins again (offset 0) or is resumed where it ends."""
        kept = self.partial_size(id)
        if offset not in (0, kept):
            raise WrongOffset(kept)
        if not offset:
            self.remove_partial(id)
        return self._hidden(id)

    def partial_size(self, id: str) -> int:
        """How many bytes of an upload have been kept."""
        try:
            return self._hidden(id).stat().st_size
        except FileNotFoundError:
            return 0

    def remove_partial(self, id: str) -> None:
        kept = self.partial_size(id)
        self._hidden(id).unlink(missing_ok=True)
        self.release(kept)

    def reserve(self, size: int) -> None:
        """Count bytes of an unfinished upload before they are written."""
        with self._counting:
            if size > max(self._free, 0):
                raise NoSpace
            self._free -= size

    def release(self, size: int) -> None:
        """The bytes of an upload that is complete or removed count no longer."""
        with self._counting:
            self._free += size

    def _hidden(self, id: str) -> Path:
        return self.path / f".{id}{PARTIAL}"

    def unfinished(self, seconds: float = 0) -> list[str]:
        """The ids of uploads that have received nothing for so many seconds."""
        found = [file.name[1 : -len(PARTIAL)] for file in self.path.glob(f".*{PARTIAL}")]
        return [one for one in found if self._age(one) >= seconds]

    def remove_stale(self, id: str, seconds: float) -> None:
        """Remove what was kept of an upload, unless it has been resumed since it was found."""
        if self._age(id) >= seconds:
            self.remove_partial(id)

    def _age(self, id: str) -> float:
        try:
            return time.time() - self._hidden(id).stat().st_mtime
        except FileNotFoundError:
            return -1  # the upload has just ended
