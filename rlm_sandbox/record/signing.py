"""Signatures of a bundle's statement, made and checked by ``ssh-keygen -Y``: people have SSH keys, agents and hardware for them already."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlm_sandbox.errors import BundleError, PrerequisiteError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

NAMESPACE = "rlm-sandbox"
SIGNATURE_MAX = 64 * 1024
_TIMEOUT_S = 120.0
"""A key on a token waits for a touch."""


@dataclass(frozen=True)
class Signature:
    """``key`` is the fingerprint; ``signer`` the principal that the list of allowed signers has for it, None without a list."""

    key: str
    signer: str | None


def _tool() -> str:
    found = shutil.which("ssh-keygen")
    if found is None:
        raise PrerequisiteError(
            "signing needs ssh-keygen", hint="install OpenSSH's client (apt-get install openssh-client)"
        )
    return found


def _run(*args: str, data: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([_tool(), "-Y", *args], input=data, capture_output=True, check=False, timeout=_TIMEOUT_S)  # noqa: S603 - no shell; arguments are ours


def sign(data: bytes, key: Path) -> bytes:
    """Return an SSH signature of ``data`` by ``key`` (a private key, or a public one whose private half an agent holds)."""
    if not key.is_file():
        raise UsageError(f"{key}: no such key", hint="name a file of an SSH key with --sign-key")
    done = _run("sign", "-f", str(key), "-n", NAMESPACE, data=data)
    if done.returncode != 0:
        why = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["it failed"]
        raise UsageError(
            f"ssh-keygen did not sign: {why[0][:200]}", hint="a key with a passphrase must be in ssh-agent"
        )
    return done.stdout


def check(data: bytes, signature: bytes, signers: Path | None) -> Signature:
    """Return who signed. ``signers`` is an allowed_signers file (see ssh-keygen(1)); without it any key will do.

    Raises:
        BundleError: the signature is not one of ``data``, or not by an allowed signer.
    """
    with tempfile.NamedTemporaryFile(prefix="rlm-", suffix=".sig") as file:
        file.write(signature)
        file.flush()
        done = _run("check-novalidate", "-n", NAMESPACE, "-s", file.name, data=data)
        said = done.stdout.decode("utf-8", "replace")
        if done.returncode != 0 or " key " not in said:
            raise BundleError("this bundle is refused: its signature does not fit", hint="get it again from its signer")
        key = said.strip().rpartition(" key ")[2][:200]
        if signers is None:
            return Signature(key, None)
        found = _run("find-principals", "-s", file.name, "-f", str(signers), data=b"")
        name = found.stdout.decode("utf-8", "replace").splitlines()[:1]
        if found.returncode != 0 or not name:
            raise BundleError(
                f"this bundle is refused: {key} is no allowed signer", hint=f"see who is in {signers}, and who signed"
            )
        done = _run("verify", "-f", str(signers), "-I", name[0], "-n", NAMESPACE, "-s", file.name, data=data)
        if done.returncode != 0:
            raise BundleError(
                "this bundle is refused: its signature is not valid for its signer", hint=f"see {signers}"
            )
        return Signature(key, name[0][:200])
