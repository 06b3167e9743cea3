"""Where the batch store keeps its files: a folder of this machine, or a bucket that speaks S3.

A key names a file or folder below the root, such as ``llm_traces/2026-03-01/09/manifest.json``.
Both make a file appear whole or not at all, and neither trusts a listing for what may be read.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from hashlib import file_digest
from io import BufferedReader
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Protocol
from uuid import uuid4

import pyarrow as pa
from filelock import FileLock, Timeout
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, S3FileSystem
from xxhash import xxh3_128

from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.settings import S3_SCHEME, Settings

LOCK_SECONDS = 600.0  # the largest hour is written, or loaded, in less
LOCK = ".lock"  # the file by which a folder is held

_BLOCK_BYTES = 8 * 2**20


class Files(Protocol):
    """The files below a root; a folder needs no making."""

    @property
    def filesystem(self) -> FileSystem:
        """What pyarrow reads and writes them with."""

    def path(self, key: str) -> str:
        """Return the path of a file in that file system."""

    def location(self, key: str) -> str:
        """Return what an operator calls a file."""

    def url(self, key: str) -> str | None:
        """Return where another machine reads a file; None: only this one can."""

    def seal(self, key: str) -> tuple[int, str]:
        """Make what was written last; return its bytes and checksum, read back."""

    def checksum(self, key: str) -> str | None:
        """Return the xxh3-128 of a file, hexadecimal; None where there is none."""

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""

    def content(self, key: str) -> pa.Buffer:
        """Return all of a file."""

    def read(self, key: str) -> bytes | None:
        """Return a small file; None where there is none."""

    def switch(self, key: str, content: bytes) -> None:
        """Make a small file hold this content, in one atomic step."""

    def glob(self, pattern: str) -> list[str]:
        """Return the keys of files and folders that match; no wildcard matches a slash."""

    def remove(self, keys: Sequence[str]) -> None:
        """Remove files, also where some are gone already."""

    def remove_folder(self, key: str) -> None:
        """Remove a folder that is held and has no files."""

    def locked(self, key: str) -> AbstractContextManager[None]:
        """Hold a folder against other processes; the system frees it when this one ends.

        Raises:
            BatchError: another process holds it and did not let go in time.
        """


def files_of(settings: Settings) -> Files:
    """Return the files under ``TRACE_BATCH_URI``.

    Raises:
        BatchError: the bucket is missing, or does not let us in.
    """
    if not settings.is_in_bucket:
        return LocalFiles(settings.trace_batch_uri)
    root = settings.trace_batch_uri.removeprefix(S3_SCHEME)
    files = S3Files(root, settings.s3_endpoint, LocalFiles(settings.state_dir / "locks" / root))
    files.check()
    return files


@contextmanager
def translated(location: str) -> Iterator[None]:
    """Raise what the file system says as one line that names the file."""
    try:
        yield
    except OSError as error:
        reason = re.sub(r"\s*\(Request ID: [^)]*\)|\s*Detail: .*", "", str(error), flags=re.DOTALL)
        raise BatchError(f"{location}: {' '.join(reason.split())}") from None


class LocalFiles:
    """Files in a folder of this machine."""

    filesystem: FileSystem = LocalFileSystem()

    def __init__(self, root: str | Path) -> None:
        """Use the folder, which is made by the first write."""
        self._root = Path(root)

    def path(self, key: str) -> str:
        """Return the path of a file."""
        return str(self._root / key)

    location = path

    def url(self, _key: str) -> None:
        """Return nothing: only this machine reads them."""

    def seal(self, key: str) -> tuple[int, str]:
        """Read a file back: what the disk holds is what the manifest will promise."""
        with (self._root / key).open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size, _checksum(file)

    def checksum(self, key: str) -> str | None:
        """Return the xxh3-128 of a file, hexadecimal; None where there is none."""
        try:
            with (self._root / key).open("rb") as file:
                return _checksum(file)
        except FileNotFoundError:
            return None

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        return (self._root / key).exists()

    def content(self, key: str) -> pa.Buffer:
        """Return all of a file, mapped into memory."""
        return pa.memory_map(self.path(key)).read_buffer()

    def read(self, key: str) -> bytes | None:
        """Return a small file; None where there is none."""
        try:
            return (self._root / key).read_bytes()
        except FileNotFoundError:
            return None

    def switch(self, key: str, content: bytes) -> None:
        """Make a small file hold this content, by renaming another one."""
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid4().hex}")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)

    def glob(self, pattern: str) -> list[str]:
        """Return the keys of files and folders that match."""
        return [str(path.relative_to(self._root)) for path in self._root.glob(pattern)]

    def remove(self, keys: Sequence[str]) -> None:
        """Remove files, also where some are gone already."""
        paths = [self._root / key for key in keys]
        for path in paths:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in paths}:
            _sync(folder)

    def remove_folder(self, key: str) -> None:
        """Remove a held folder that has no files, and the folder above if it has none either."""
        folder = self._root / key
        (folder / LOCK).unlink()
        with suppress(OSError):  # a process that waited holds it now; or other folders are kept
            folder.rmdir()
            folder.parent.rmdir()

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold a folder by a file in it; both are made where they are missing."""
        path = self._root / key / LOCK
        # The soft lock, for file systems without locks, would outlive a killed process.
        lock = FileLock(path, LOCK_SECONDS, fallback_to_soft=False)
        while not lock.is_locked:
            try:
                # A retention may remove the folder meanwhile: before the lock's file is made, or
                # between the attempt to make the folder and the look at what is in the way.
                with suppress(FileNotFoundError, FileExistsError):
                    lock.acquire()
            except Timeout:
                raise BatchError(
                    f"{path.parent} is being written by another process for over "
                    f"{LOCK_SECONDS:.0f} s; let it finish, or end it, then try again"
                ) from None
        try:
            yield
        finally:
            lock.release()


class S3Files:
    """Objects in a bucket that speaks S3: an object appears when its upload is complete.

    Credentials and region are found by pyarrow as other AWS programs find them. S3 has no locks:
    those on a folder of this machine guard its processes against each other.
    """

    def __init__(self, root: str, endpoint: str | None, locks: LocalFiles) -> None:
        """Use what lies below a root, ``bucket`` or ``bucket/prefix``.

        Args:
            root: where the files lie.
            endpoint: ``http(s)://host:port`` of the service; None: AWS.
            locks: whose folders are locked.
        """
        self._root = root
        self._locks = locks
        # A small object, such as a manifest, is then one PUT.
        self.filesystem: FileSystem = S3FileSystem(
            endpoint_override=endpoint, allow_delayed_open=True
        )
        self._endpoint = endpoint or f"https://s3.{self.filesystem.region}.amazonaws.com"

    def check(self) -> None:
        """See that the bucket is there: of one that is not, each file would merely seem missing.

        Raises:
            BatchError: the bucket is missing, or does not let us in.
        """
        bucket = self._root.partition("/")[0]
        with translated(f"{S3_SCHEME}{self._root}"):
            selector = FileSelector(self._root, allow_not_found=True)
            is_missing = (
                not self.filesystem.get_file_info(selector)
                and self.filesystem.get_file_info(bucket).type is FileType.NotFound
            )
        if is_missing:
            raise BatchError(f"{S3_SCHEME}{bucket}: {self._endpoint} has no such bucket")

    def path(self, key: str) -> str:
        """Return bucket and key of an object."""
        return f"{self._root}/{key}"

    def location(self, key: str) -> str:
        """Return the object's URI."""
        return f"{S3_SCHEME}{self.path(key)}"

    def url(self, key: str) -> str:
        """Return where another machine reads it."""
        return f"{self._endpoint}/{self.path(key)}"

    def seal(self, key: str) -> tuple[int, str]:
        """Read an object back: what the bucket holds is what the manifest will promise."""
        with translated(self.location(key)):
            return self._size_and_checksum(key)

    def checksum(self, key: str) -> str | None:
        """Return the xxh3-128 of an object, hexadecimal; None where there is none."""
        with translated(self.location(key)), suppress(FileNotFoundError):
            return self._size_and_checksum(key)[1]
        return None

    def _size_and_checksum(self, key: str) -> tuple[int, str]:
        digest = xxh3_128()
        with self.filesystem.open_input_file(self.path(key)) as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
            return stream.tell(), digest.hexdigest()

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        with translated(self.location(key)):
            return bool(self.filesystem.get_file_info(self.path(key)).type is FileType.File)

    def content(self, key: str) -> pa.Buffer:
        """Return all of an object."""
        with translated(self.location(key)), self.filesystem.open_input_file(self.path(key)) as it:
            return it.read_buffer()

    def read(self, key: str) -> bytes | None:
        """Return a small object; None where there is none."""
        with translated(self.location(key)), suppress(FileNotFoundError):
            with self.filesystem.open_input_file(self.path(key)) as file:
                content: bytes = file.read()  # one request, so of one state of the object
            return content
        return None

    def switch(self, key: str, content: bytes) -> None:
        """Make a small object hold this content, by one PUT."""
        with (
            translated(self.location(key)),
            self.filesystem.open_output_stream(self.path(key)) as stream,
        ):
            stream.write(content)

    def glob(self, pattern: str) -> list[str]:
        """Return the keys that match, and the folders that are held: they may be written to."""
        parts = pattern.split("/")
        fixed = list(takewhile(lambda part: not re.search(r"[*?]", part), parts))
        base = "/".join([self._root, *fixed])
        selector = FileSelector(base, allow_not_found=True, recursive=len(parts) - len(fixed) > 1)
        with translated(f"{S3_SCHEME}{base}"):
            found = self.filesystem.get_file_info(selector)
        keys = {info.path.removeprefix(f"{self._root}/") for info in found}
        matching = {key for key in keys if PurePosixPath(key).match(pattern)}
        return sorted(matching.union(self._locks.glob(pattern)))

    def remove(self, keys: Sequence[str]) -> None:
        """Remove objects, also where some are gone already."""
        for key in keys:
            with translated(self.location(key)), suppress(FileNotFoundError):
                self.filesystem.delete_file(self.path(key))

    def remove_folder(self, key: str) -> None:
        """Remove the object that stands for an empty folder, and the folder of its lock."""
        with translated(self.location(key)), suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path(key))
        self._locks.remove_folder(key)

    def locked(self, key: str) -> AbstractContextManager[None]:
        """Hold a folder against other processes of this machine."""
        return self._locks.locked(key)


def _checksum(file: BufferedReader) -> str:
    # Not mapped into memory: a part of 170 MB would count as the process's own.
    return file_digest(file, xxh3_128).hexdigest()


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
