"""What can be said of documents without the libraries that read them: what they are, and what is refused before a library sees it."""

import io
import zipfile

import pytest

from rlm_sandbox.guest import papers
from rlm_sandbox.guest.errors import RLMError, TooLarge
from rlm_sandbox.guest.source import BytesSource

pytestmark = pytest.mark.unit


def zipped(**members):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in members.items():
            bundle.writestr(name.replace("__", "/"), content)
    return raw.getvalue()


@pytest.fixture
def without_libraries(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(papers.importlib, "import_module", absent)


@pytest.mark.parametrize("raw", [b"%PDF-1.4\n", b"junk before\n%PDF-1.7", zipped(**{"word__document.xml": "<x/>"})])
@pytest.mark.usefixtures("without_libraries")
def test_an_image_without_the_libraries_says_which_one_has_them(raw):
    with pytest.raises(RLMError, match="--image data"):
        papers.text_of(BytesSource(raw), "paper")


@pytest.mark.parametrize("raw", [b"", b"plain text", zipped(**{"a.txt": "x"}), b"\x00" * 2000 + b"%PDF-"])
def test_what_is_no_document_is_told_to_be_read_otherwise(raw):
    with pytest.raises(RLMError, match=r"neither PDF nor DOCX.*files\[path\]"):
        papers.text_of(BytesSource(raw), "notes")


def test_a_damaged_zip_is_one_error():
    with pytest.raises(RLMError, match="damaged"):
        papers.text_of(BytesSource(b"PK\x03\x04" + b"x" * 100), "broken.docx")


@pytest.mark.usefixtures("without_libraries")
def test_a_word_document_that_expands_too_far_never_meets_a_parser(monkeypatch):
    monkeypatch.setattr(papers, "EXPANDED_MAX", 1000)
    bomb = zipped(**{"word__document.xml": "x" * 2000})
    with pytest.raises(TooLarge, match="expands to 2000 bytes"):
        papers.text_of(BytesSource(bomb), "bomb.docx")


class Library:
    """Plays pypdf: pages of a given text, or a parser that fails."""

    class errors:  # noqa: N801 - the library's name
        class PyPdfError(Exception):
            pass

    def __init__(self, pages, fails=None, encrypted=False):
        self.pages = [type("Page", (), {"extract_text": lambda self, text=text: text})() for text in pages]
        self.fails = fails
        self.is_encrypted = encrypted

    def PdfReader(self, file):  # noqa: N802 - the library's name
        assert file.read(5) == b"%PDF-"
        if self.fails:
            raise self.fails
        return self

    def decrypt(self, password):
        assert password == ""
        return 0


def read(monkeypatch, library):
    monkeypatch.setattr(papers.importlib, "import_module", lambda name: library)
    return papers.text_of(BytesSource(b"%PDF-1.4"), "paper.pdf")


def test_pages_are_set_apart_by_their_numbers(monkeypatch):
    assert read(monkeypatch, Library(["one\n", " two"])) == (
        "======== PAGE: 1 ========\none\n\n\n======== PAGE: 2 ========\ntwo\n"
    )


@pytest.mark.parametrize("fails", [Library.errors.PyPdfError("bad xref"), KeyError("/Root"), RecursionError("deep")])
def test_whatever_a_parser_raises_about_a_damaged_file_is_one_error(monkeypatch, fails):
    with pytest.raises(RLMError, match="cannot be read") as caught:
        read(monkeypatch, Library([], fails=fails))
    assert caught.value.__cause__ is fails


def test_an_encrypted_document_is_refused(monkeypatch):
    with pytest.raises(RLMError, match="encrypted"):
        read(monkeypatch, Library(["secret"], encrypted=True))


def test_text_without_end_is_cut_off_with_an_error(monkeypatch):
    monkeypatch.setattr(papers, "TEXT_MAX", 1000)
    with pytest.raises(TooLarge, match="1000 characters"):
        read(monkeypatch, Library(["x" * 600, "y" * 600]))
