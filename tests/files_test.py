"""Writes are atomic, and only one process at a time writes to a folder."""

import fcntl
import os
import resource
import signal
import unittest

from tests.helpers import temporary_folder
from tfzoo import files
from tfzoo.errors import UserError


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
