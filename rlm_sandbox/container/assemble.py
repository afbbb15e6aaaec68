"""Write the guest's file tree into a folder; run as a program inside a Dockerfile, by the interpreter that the image will have.

``python -m rlm_sandbox.container.assemble OUT [WHEELS]``: the same tree as the offline build makes, so that both ways keep one contract.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from rlm_sandbox.container import offline


def write_tree(out: Path, wheels: Path | None) -> None:
    """Write interpreter, packages (if ``wheels`` is a folder of them) and guest below ``out``."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for name in ("python", "packages", "guest"):
            (scratch / name).mkdir()
        layers = [offline.python_layer(scratch / "python")]
        if wheels is not None:
            layers.append(offline.package_layer(wheels.glob("*.whl"), scratch / "packages", layers[0]))
        layers.append(offline.guest_layer(scratch / "guest"))
        for layer in layers:
            for name, mode in layer.folders.items():
                path = out / name
                path.mkdir(parents=True, exist_ok=True)
                path.chmod(mode)
            for name, content in layer.files.items():
                path = out / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    shutil.copyfile(content, path)
                path.chmod(0o755 if name in layer.executable else 0o644)
            for name, target in layer.links.items():
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                (out / name).symlink_to(target)


if __name__ == "__main__":
    write_tree(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)  # noqa: PLR2004 - the optional one
