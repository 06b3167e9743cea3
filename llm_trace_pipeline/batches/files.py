"""The files of the batch store, in a folder of this machine or in a bucket that speaks S3.

A key names a file or folder below the root, such as ``llm_traces/2026-03-01/09/_manifest.json``.
In both places a file appears whole or not at all, and no listing decides which files may be read.
"""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import takewhile
from pathlib import Path, PurePosixPath
from uuid import uuid4

from filelock import FileLock, Timeout
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, S3FileSystem
from xxhash import xxh3_128

from llm_trace_pipeline.errors import BatchError
from llm_trace_pipeline.settings import S3_SCHEME, Settings

LOCK_SECONDS = 600.0  # the largest hour is written, or loaded, in less
LOCK = ".lock"  # the file by which a folder is held

_BLOCK_BYTES = 8 * 2**20


class Files(ABC):
    """The files below a root. A folder needs no making."""

    def __init__(self, root: str, filesystem: FileSystem, scheme: str = "") -> None:
        """Use the files below a root of a file system of pyarrow."""
        self.root = root
        self.filesystem = filesystem
        self._scheme = scheme

    def path(self, key: str) -> str:
        """Return the path of a file in the file system."""
        return f"{self.root}/{key}"

    def location(self, key: str) -> str:
        """Return the name of a file for an operator: a path or a URI."""
        return f"{self._scheme}{self.path(key)}"

    def url(self, key: str) -> str | None:  # noqa: ARG002 -- of a bucket it is part of the address
        """Return the address at which another machine reads a file; None: only this one can."""
        return None

    def seal(self, key: str) -> tuple[int, str]:
        """Make a written file last, and read it back; return its bytes and its checksum.

        What is read back is what a manifest will promise.
        """
        with translated(self.location(key)):
            return self._size_and_checksum(key)

    def checksum(self, key: str) -> str | None:
        """Return the xxh3-128 of a file, hexadecimal; None: there is no such file."""
        with translated(self.location(key)), suppress(FileNotFoundError):
            return self._size_and_checksum(key)[1]
        return None

    def _size_and_checksum(self, key: str) -> tuple[int, str]:
        # Not mapped into memory: a part of 170 MB would count as the process's own.
        digest = xxh3_128()
        with self.filesystem.open_input_file(self.path(key)) as stream:
            while block := stream.read(_BLOCK_BYTES):
                digest.update(block)
            return stream.tell(), digest.hexdigest()

    def exists(self, key: str) -> bool:
        """Whether there is such a file."""
        with translated(self.location(key)):
            return bool(self.filesystem.get_file_info(self.path(key)).type is FileType.File)

    def read(self, key: str) -> bytes | None:
        """Return all of a file; None: there is no such file."""
        with translated(self.location(key)), suppress(FileNotFoundError):
            with self.filesystem.open_input_file(self.path(key)) as file:
                content: bytes = file.read()  # one request, so of one state of an object
            return content
        return None

    def remove(self, keys: Sequence[str]) -> None:
        """Remove files, also where some are gone already."""
        for key in keys:
            with translated(self.location(key)), suppress(FileNotFoundError):
                self.filesystem.delete_file(self.path(key))

    @abstractmethod
    def glob(self, pattern: str) -> list[str]:
        """Return the keys of files and folders that match; no wildcard matches a slash.

        A folder that is held counts too: files may be on their way into it.
        """

    @abstractmethod
    def switch(self, key: str, content: bytes) -> None:
        """Make a small file hold this content, in one atomic step."""

    @abstractmethod
    def remove_folder(self, key: str) -> None:
        """Remove a folder that is held and has no files."""

    @abstractmethod
    def locked(self, key: str) -> AbstractContextManager[None]:
        """Hold a folder against other processes; the system frees it when this process ends.

        Raises:
            BatchError: another process holds the folder, and did not let go in time.
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


class LocalFiles(Files):
    """Files in a folder of this machine; the first write makes the folder."""

    def __init__(self, root: str | Path) -> None:
        """Use the files below a folder."""
        super().__init__(str(root), LocalFileSystem())
        self._folder = Path(root)

    def seal(self, key: str) -> tuple[int, str]:
        """Have the disk hold a written file, and read it back; return bytes and checksum."""
        _sync(self._folder / key)
        return super().seal(key)

    def glob(self, pattern: str) -> list[str]:
        """Return the keys of files and folders that match."""
        return [str(path.relative_to(self._folder)) for path in self._folder.glob(pattern)]

    def switch(self, key: str, content: bytes) -> None:
        """Make a small file hold this content, by renaming a new file."""
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid4().hex}")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)

    def remove(self, keys: Sequence[str]) -> None:
        """Remove files for good, also where some are gone already."""
        super().remove(keys)
        for folder in {(self._folder / key).parent for key in keys}:
            _sync(folder)

    def remove_folder(self, key: str) -> None:
        """Remove a held folder that has no files, and the folder above if it has none either."""
        folder = self._folder / key
        (folder / LOCK).unlink()
        with suppress(OSError):  # a process that waited holds it now; or other folders are kept
            folder.rmdir()
            folder.parent.rmdir()

    @contextmanager
    def locked(self, key: str) -> Iterator[None]:
        """Hold a folder by a file in it; both are made where they are missing."""
        path = self._folder / key / LOCK
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
            except OSError as error:
                raise BatchError(
                    f"{path.parent} cannot be locked ({error.strerror}); it must be a folder that "
                    "this user may write, on a file system with locks, as a network folder often "
                    "is not"
                ) from None
        try:
            yield
        finally:
            lock.release()


class S3Files(Files):
    """Objects in a bucket that speaks S3: an object appears when its upload is complete.

    pyarrow finds credentials and region as other AWS programs find them. S3 has no locks: those in
    a folder of this machine guard its processes against each other.
    """

    def __init__(self, root: str, endpoint: str | None, locks: LocalFiles) -> None:
        """Use the objects below a root, ``bucket`` or ``bucket/prefix``.

        Args:
            root: where the objects lie.
            endpoint: ``http(s)://host:port`` of the service; None: AWS.
            locks: the folder in which folders of the bucket are locked.
        """
        # A small object, such as a manifest, is then one PUT.
        s3 = S3FileSystem(endpoint_override=endpoint, allow_delayed_open=True)
        super().__init__(root, s3, S3_SCHEME)
        self._locks = locks
        self._endpoint = endpoint or f"https://s3.{s3.region}.amazonaws.com"

    def check(self) -> None:
        """See that the bucket is there: without it, every file would merely seem missing.

        Raises:
            BatchError: the bucket is missing, or does not let us in.
        """
        bucket = self.root.partition("/")[0]
        with translated(f"{S3_SCHEME}{self.root}"):
            selector = FileSelector(self.root, allow_not_found=True)
            is_missing = (
                not self.filesystem.get_file_info(selector)
                and self.filesystem.get_file_info(bucket).type is FileType.NotFound
            )
        if is_missing:
            raise BatchError(f"{S3_SCHEME}{bucket}: {self._endpoint} has no such bucket")

    def url(self, key: str) -> str:
        """Return the address at which another machine reads an object."""
        return f"{self._endpoint}/{self.path(key)}"

    def glob(self, pattern: str) -> list[str]:
        """Return the keys of objects and folders that match, and of the folders that are held."""
        parts = pattern.split("/")
        fixed = list(takewhile(lambda part: not re.search(r"[*?]", part), parts))
        base = "/".join([self.root, *fixed])
        selector = FileSelector(base, allow_not_found=True, recursive=len(parts) - len(fixed) > 1)
        with translated(f"{self._scheme}{base}"):
            found = self.filesystem.get_file_info(selector)
        keys = {info.path.removeprefix(f"{self.root}/") for info in found}
        matching = {key for key in keys if PurePosixPath(key).match(pattern)}
        return sorted(matching.union(self._locks.glob(pattern)))

    def switch(self, key: str, content: bytes) -> None:
        """Make a small object hold this content, by one PUT."""
        with (
            translated(self.location(key)),
            self.filesystem.open_output_stream(self.path(key)) as stream,
        ):
            stream.write(content)

    def remove_folder(self, key: str) -> None:
        """Remove the object that stands for an empty folder, and the folder of its lock."""
        with translated(self.location(key)), suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path(key))
        self._locks.remove_folder(key)

    def locked(self, key: str) -> AbstractContextManager[None]:
        """Hold a folder against other processes of this machine."""
        return self._locks.locked(key)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
