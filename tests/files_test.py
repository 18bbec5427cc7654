"""Writes are atomic, and only one process at a time writes to a folder."""

import fcntl
import os
import pwd
import resource
import signal
import unittest
from unittest import mock

import numpy as np

from tests.helpers import temporary_folder
from tfzoo import files
from tfzoo.errors import UserError
from tfzoo.text import cache


class FilesCase(unittest.TestCase):
    def setUp(self):
        self.folder = temporary_folder(self)

    def in_a_child(self, function):
        """Returns the exit code of a forked process that calls `function`."""
        child = os.fork()
        if not child:
            try:
                function()
            except BaseException:
                os._exit(1)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class RefusedTest(FilesCase):
    def refused(self, function):
        """Calls `function` with a file-size limit of one megabyte; returns the message of the error it must raise."""
        read, write = os.pipe()

        def limited():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            with self.assertRaises(UserError) as raised:
                function()
            os.write(write, str(raised.exception).encode())

        code = self.in_a_child(limited)
        os.close(write)
        with open(read) as messages:
            message = messages.read()
        self.assertEqual(code, 0, message)
        return message

    def test_a_file_that_may_not_grow_so_large(self):
        path = self.folder / "file"
        files.atomic_write(path, "before")
        message = self.refused(lambda: files.atomic_write(path, b"x" * (1 << 21)))
        self.assertEqual(message, f"{path}: cannot be written (file too large); raise the file-size limit (ulimit -f)")
        self.assertEqual(path.read_text(), "before")
        self.assertEqual(os.listdir(self.folder), ["file"])

    def test_a_folder_with_such_a_file(self):
        def write():
            with files.atomic_folder(self.folder / "new") as partial:
                (partial / "small").write_text("x")
                (partial / "large").write_bytes(b"x" * (1 << 21))

        self.assertIn(f"{self.folder / 'new'}: cannot be written (file too large)", self.refused(write))
        self.assertEqual(os.listdir(self.folder), [])

    def test_an_array_of_numpy(self):
        """NumPy's error has no number."""

        def write():
            with files.atomic_folder(self.folder / "new") as partial:
                np.save(partial / "large.npy", np.zeros(1 << 20))

        self.assertRegex(self.refused(write), rf"^{self.folder / 'new'}: cannot be written .*written\); free some disk")
        self.assertEqual(os.listdir(self.folder), [])

    def test_a_folder_that_another_process_removes_first(self):
        files.remove_folder(self.folder / "gone")
        (self.folder / "link").symlink_to(self.folder)
        with self.assertRaisesRegex(UserError, "link: is a symbolic link"):
            files.remove_folder(self.folder / "link")

    def test_of_two_writers_of_a_folder_the_first_wins(self):
        path = self.folder / "new"
        with self.assertRaisesRegex(FileExistsError, "new already exists"), files.atomic_folder(path) as partial:
            (partial / "name").write_text("second")
            path.mkdir()
            (path / "name").write_text("first")
        self.assertEqual(os.listdir(self.folder), ["new"])
        self.assertEqual((path / "name").read_text(), "first")

    def test_what_the_dead_left_goes_and_what_the_living_write_stays(self):
        for number in (1, 2):
            (self.folder / f"file.{number}.partial").write_text("x")
            (self.folder / f"folder.{number}.partial").mkdir()
        for name in ("file", "folder"):
            descriptor = os.open(self.folder / f"{name}.2.partial", os.O_RDONLY)
            self.addCleanup(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        files.atomic_write(self.folder / "file", "x")
        with files.atomic_folder(self.folder / "folder"):
            pass
        self.assertEqual(sorted(os.listdir(self.folder)), ["file", "file.2.partial", "folder", "folder.2.partial"])

    def test_a_folder_that_is_gone(self):
        with self.assertRaisesRegex(UserError, "cannot be written .*; its folder was removed or replaced: restore it"):
            files.atomic_write(self.folder / "no" / "file", "x")

    def test_other_errors_stay_what_they_are(self):
        with self.assertRaises(FileNotFoundError), files.writing(self.folder / "file"):
            (self.folder / "another").read_text()
        with self.assertRaises(IsADirectoryError), files.writing("file"):
            raise IsADirectoryError


class ReadTest(FilesCase):
    def refused(self, path, **options):
        with self.assertRaises(UserError) as raised:
            files.read_bytes(path, **options)
        return str(raised.exception)

    def test_a_regular_file_and_a_link_to_it(self):
        path, link = self.folder / "file", self.folder / "link"
        path.write_bytes(b"\xef\xbb\xbf\xc3\xa9")
        link.symlink_to(path)
        self.assertEqual(files.read_bytes(link), path.read_bytes())
        self.assertEqual(files.read_text(link), "é")
        self.assertEqual(files.read_bytes(path, max_bytes=5), path.read_bytes())
        self.assertEqual(
            self.refused(path, max_bytes=4), f"{path}: has 5 bytes, more than the limit of 4; make it smaller"
        )
        self.assertEqual(
            self.refused(link, follow=False),
            f"{link}: cannot be read (too many levels of symbolic links); replace the symbolic link with what it names",
        )

    def test_what_would_block_or_never_end_is_not_opened(self):
        os.mkfifo(self.folder / "pipe")
        for path in (self.folder / "pipe", "/dev/zero", "/dev/tty", "/dev/null"):
            self.assertRegex(
                self.refused(path), rf"^{path}: (cannot be read \(not a regular|no such).*; check the path$"
            )
            with self.assertRaisesRegex(UserError, f"^{path}: "):
                files.sha256(path)
        self.assertEqual(self.refused(self.folder), f"{self.folder}: cannot be read (is a directory); check the path")
        self.assertEqual(self.refused("/no/such"), "/no/such: no such file or directory; check the path")
        self.assertRegex(self.refused(self.folder / ("x" * 300)), "file name too long")
        # Its size is 0, and it has no end.
        self.assertRegex(self.refused("/proc/version"), "has more bytes than its size, 0; copy it")

    def test_an_enormous_file_takes_no_memory(self):
        path = self.folder / "file"
        with open(path, "wb") as file:
            file.truncate(1 << 40)
        self.assertRegex(self.refused(path), "has 1099511627776 bytes, more than the limit of 1073741824; make it")

    def test_text_that_is_not_utf_8(self):
        path = self.folder / "file"
        path.write_bytes(b"ab\xff")
        with self.assertRaisesRegex(UserError, f"^{path}: not UTF-8 at byte 2; save it as UTF-8 text$"):
            files.read_text(path)


class CacheFolderTest(unittest.TestCase):
    def test_it_is_the_users(self):
        with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": "/a/b", "HOME": "/home/me"}):
            self.assertEqual(str(files.cache_folder()), "/a/b/tfzoo")
            del os.environ["XDG_CACHE_HOME"]
            self.assertEqual(str(files.cache_folder()), "/home/me/.cache/tfzoo")

    def test_without_a_home(self):
        with mock.patch.dict(os.environ), mock.patch.object(pwd, "getpwuid", side_effect=KeyError):
            os.environ.pop("XDG_CACHE_HOME", None)
            os.environ.pop("HOME", None)
            with self.assertRaisesRegex(
                UserError, "^the cache folder ~/.cache is not an absolute path; set HOME, or XDG"
            ):
                files.cache_folder()
            self.assertIsNone(cache.read("0" * 64))
            cache.write("0" * 64, b"")  # Nothing is written to a folder ~ in the working directory.
            self.assertFalse(os.path.exists("~"))

    def test_a_cache_that_cannot_be_written_is_not_used(self):
        for folder in ("/proc/none", "/dev/null"):
            with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": folder}):
                self.assertEqual(cache.made("0" * 64, lambda: b"made"), b"made")


class LinkTest(FilesCase):
    """Files of tfzoo's own are not written through a link, which may name any file of the user."""

    def test_a_lock_that_is_a_link_leaves_its_target_alone(self):
        target = self.folder / "target"
        target.write_text("precious")
        (self.folder / files.LOCK).symlink_to(target)
        with self.assertRaisesRegex(UserError, f"^{self.folder / files.LOCK}: cannot be written .*; replace the symb"):
            files.Lock(self.folder)
        self.assertEqual(target.read_text(), "precious")

    def test_a_lock_that_is_something_else(self):
        path = self.folder / files.LOCK
        os.mkfifo(path)
        with self.assertRaisesRegex(UserError, f"^{path}: cannot be written .*not a regular file"):
            files.Lock(self.folder)
        path.unlink()
        path.mkdir()
        with self.assertRaisesRegex(UserError, f"^{path}: cannot be written .is a directory.; remove the folder"):
            files.Lock(self.folder)

    def test_an_atomic_write_replaces_a_link(self):
        target, path = self.folder / "target", self.folder / "file"
        target.write_text("precious")
        path.symlink_to(target)
        (self.folder / f"file.{os.getpid()}.partial").symlink_to(target)
        with self.assertRaisesRegex(UserError, f"^{path}: cannot be written .*; replace the symbolic link"):
            files.atomic_write(path, "new")
        files.atomic_write(path, "new")  # The link of the partial file is removed.
        self.assertEqual((target.read_text(), path.read_text(), path.is_symlink()), ("precious", "new", False))


class LockTest(FilesCase):
    def test_a_second_process_is_refused_and_told_who_has_it(self):
        lock = files.Lock(self.folder)

        def second():
            with self.assertRaisesRegex(
                UserError, rf"{self.folder}: another process \({os.getppid()}\) is writing to this folder"
            ):
                files.Lock(self.folder)

        self.assertEqual(self.in_a_child(second), 0)
        lock.release()
        self.assertEqual(self.in_a_child(lambda: files.Lock(self.folder)), 0)

    def test_a_dead_process_leaves_no_lock(self):
        read, write = os.pipe()

        def hold():
            lock = files.Lock(self.folder)
            os.write(write, b"locked")
            signal.pause()
            lock.release()

        child = os.fork()
        if not child:
            hold()
        os.read(read, 6)
        with self.assertRaises(UserError):
            files.Lock(self.folder)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        files.Lock(self.folder).release()
        for descriptor in (read, write):
            os.close(descriptor)


if __name__ == "__main__":
    unittest.main()
