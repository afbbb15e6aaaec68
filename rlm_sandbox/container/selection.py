"""Which files of a directory a session may see.

Three rules, in gitignore's syntax: what is never wanted or never safe (always left out), what ``--exclude`` names, and what ``--glob`` names
(if given, nothing else). A pattern without a slash matches a name at any depth. A project's own ``.gitignore`` is not consulted: logs
and data are ignored there, and are what people come to ask about.
"""

from __future__ import annotations

import functools
import re

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from rlm_sandbox.errors import UsageError

CLUTTER = (
    ".git/ .hg/ .svn/ __pycache__/ .mypy_cache/ .pytest_cache/ .ruff_cache/ .tox/ .nox/ node_modules/ .next/ .nuxt/"
    " .venv/ venv/ env/ dist/ build/ target/ .gradle/ .DS_Store"
)
"""Caches, dependencies and build products: rlm-skill's list, and the caches that came since."""

SECRETS = (
    ".env .env.* !.env.example !.env.sample !.env.template .envrc *.pem *.key *.p12 *.pfx *.jks *.keystore *.kdbx *.ppk"
    " id_rsa* id_dsa* id_ecdsa* id_ed25519* .ssh/ .gnupg/ .aws/ .kube/ .docker/config.json .config/gcloud/ .netrc _netrc"
    " .pgpass .my.cnf .npmrc .pypirc .git-credentials .htpasswd .dockercfg .vault-token .s3cfg .boto kubeconfig"
    " credentials.json credentials.csv application_default_credentials.json service-account*.json"
    " client_secret*.json secrets.json secrets.y*ml secrets.toml *.tfstate *.tfstate.*"
)
"""Where keys usually lie. Sub-LLM prompts leave the machine, so these never reach the code that writes them; to analyse such a
file, name it as the input."""


REMEMBERED = 2**17
"""Decisions kept from the survey for the copy, each a third of what a look at a file costs; some 20 MiB while a start lasts."""


DEEP_MAX = 3
"""Times ``**`` in one pattern: each multiplies the ways to match a path by its depth."""

_STARS = re.compile(r"(?:\[\^/\]\*)+")
_NOT = re.compile(r"\\.|\[\^/\]|(\[\^\]?(?:\\.|[^\]\\])*\])|\[\]?(?:\\.|[^\]\\])*\]")
_ONE = r"\(\?!/\)|\[\^/\](?!\*)|\[\^?\]?(?:\\.|[^\]\\/])*\]|\\.|[^/\\\[(]"
_STAR_BEFORE_STAR = re.compile(rf"\[\^/\]\*((?:{_ONE})+)(?=\[\^/\]\*)")


class _Pattern(GitIgnoreSpecPattern):
    """A pattern that takes no longer than a name is long, so that no pattern holds the interpreter, and with it every session.

    Between two stars of one name the first place that fits is as good as any later one; once found it is not given up.
    """

    __slots__ = ()

    @classmethod
    def pattern_to_regex(cls, pattern: str) -> tuple[str | None, bool | None]:  # type: ignore[override]
        """Return the regular expression of a pattern of text, and whether it includes."""
        if pattern.count("**/") + pattern.count("/**") > DEEP_MAX + pattern.count("/**/"):
            raise ValueError(f"more than {DEEP_MAX} times ** in {pattern[:60]!r}")
        regex, include = super().pattern_to_regex(pattern)
        if regex is not None:
            regex = _NOT.sub(lambda found: f"(?!/){found[1]}" if found[1] else found[0], regex)  # no slash is "not a"
            regex = _STAR_BEFORE_STAR.sub(r"(?>[^/]*?\1)", _STARS.sub("[^/]*", regex))
        return regex, include


class Selection:
    """Decides on relative paths with ``/``. ``glob`` and ``exclude`` are comma lists; :class:`UsageError` for a bad pattern."""

    def __init__(self, glob: str | None = None, exclude: str | None = None) -> None:
        self._clutter = GitIgnoreSpec.from_lines(CLUTTER.split())
        self._secrets = GitIgnoreSpec.from_lines(SECRETS.split())
        self._exclude = _spec(exclude, "--exclude")
        self._include = _spec(glob, "--glob")
        self.refused = functools.lru_cache(REMEMBERED)(self._refused)
        """Why a file is left out (``ignored``, ``secret``, ``excluded``, ``not selected``), or ``None``."""

    def _refused(self, path: str) -> str | None:
        reason = self._always(path)
        if reason is None and self._include is not None and not self._include.match_file(path):
            reason = "not selected"
        return reason

    def refused_folder(self, path: str) -> str | None:
        """As :meth:`refused`, for a folder that need not be entered at all. ``--glob`` never stops a folder."""
        return self._always(f"{path}/")

    def _always(self, path: str) -> str | None:
        if self._clutter.match_file(path):
            return "ignored"
        if self._secrets.match_file(path.lower()):
            return "secret"
        if self._exclude is not None and self._exclude.match_file(path):
            return "excluded"
        return None


def _spec(text: str | None, option: str) -> GitIgnoreSpec | None:
    if text is None:
        return None
    patterns = [part.strip() for part in text.split(",") if part.strip()]
    if not patterns:
        raise UsageError(f"{option} names no pattern", hint=f"for example {option} '*.py,*.md'")
    try:
        return GitIgnoreSpec.from_lines(_Pattern, patterns)
    except (ValueError, re.error) as exc:
        raise UsageError(f"{option}: {exc}", hint="patterns are in gitignore's syntax") from exc
