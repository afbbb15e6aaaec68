"""Log files of any size: real lines, repeated, with real blocks on the disk."""

import os
import shutil

from rlm_sandbox.demo.loggen import generate

KIB, MIB, GIB = 2**10, 2**20, 2**30
BLOCK = 64 * MIB
SIZES = {"1 KiB": KIB, "1 MiB": MIB, "1 GiB": GIB, "10 GiB": 10 * GIB}


class Inputs:
    """Makes files in ``folder``; a size that the disk has no room for (twice over) is left out and told of."""

    def __init__(self, folder, *, largest):
        self.folder = folder
        folder.chmod(0o755)
        self._block = folder / "block.log"
        generate(self._block, size=BLOCK + MIB)
        with self._block.open("rb+") as stream:
            stream.seek(BLOCK - MIB)
            last = stream.read(MIB).rindex(b"\n")
            stream.truncate(BLOCK - MIB + last + 1)
        self.left_out = [name for name, size in SIZES.items() if size > largest]
        free = shutil.disk_usage(folder).free
        self.left_out += [name for name, size in SIZES.items() if size <= largest and 2 * size > free]
        self.paths = {name: self._make(name, size) for name, size in SIZES.items() if name not in self.left_out}

    def _make(self, name, size):
        path = self.folder / (name.replace(" ", "") + ".log")
        whole = self._block.stat().st_size
        with self._block.open("rb") as source, path.open("wb") as target:
            while size > 0:
                source.seek(0)
                offset = 0
                piece = min(size, whole)
                while offset < piece:  # the kernel copies, or shares blocks where the file system can
                    offset += os.copy_file_range(source.fileno(), target.fileno(), piece - offset, offset)
                size -= piece
            os.fsync(target.fileno())  # its way to the disk is not to be measured with something else
        path.chmod(0o644)
        return path

    def remove(self, name):
        path = self.paths.pop(name, None)
        if path is not None:
            path.unlink()
