"""Documents other than plain text, recognized by their first bytes: the text of PDF, DOCX, HTML; errors for others.

The libraries that read them come with the extra ``documents``.
"""

from __future__ import annotations

import codecs
import io
import re
import zipfile
from collections.abc import Callable
from typing import NamedTuple

from llmkit.data.text import decode_text
from llmkit.errors import InputError, MissingDependencyError
from llmkit.log import warn

__all__ = ["DOCUMENTS", "document_text", "format_of"]

DOCUMENTS = (".pdf", ".docx", ".html", ".htm", ".md")
"""Suffixes of files that are one document each."""

_HEAD = 2048
_BLANK = codecs.BOM_UTF8 + b" \t\r\n"
_HTML = re.compile(rb"(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html)\b", re.I | re.S)
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
_SENTENCE_END = tuple(".!?…:\"'”’»)。！？」")


class Format(NamedTuple):
    """A file format: its name, and what to do with a file that is not read."""

    name: str
    fix: str
    is_text: bool = False
    """Whether the source is readable text too."""


_PDF, _DOCX, _PAGE = Format("a PDF file", ""), Format("a DOCX file", ""), Format("an HTML page", "", is_text=True)
_WORD = "save it as .docx or as plain text, such as with LibreOffice"
_SHEET = "save its sheets as .csv, and pass the rows with `input`"
_OCR = "extract its text first (OCR), such as with tesseract"
_ROWS = "pass its rows with `input`"
_UNPACK = "unpack it, and pass the files in it"
_MODEL = "pass it as `model`"
_MEDIA = "transcribe it first"

_MAGIC: tuple[tuple[bytes, Format], ...] = (
    (b"{\\rtf", Format("an RTF file", _WORD)),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Format("a file of an old or an encrypted Office document", _WORD)),
    (b"PAR1\x15", Format("a Parquet file", _ROWS)),  # "PAR1" alone may begin a text
    (b"ARROW1\0\0", Format("an Arrow file", _ROWS)),
    (b"SQLite format 3\0", Format("an SQLite database", "export its rows as .csv, and pass them with `input`")),
    (b"GGUF", Format("a GGUF model", _MODEL)),
    (b"\x1f\x8b", Format("a gzip file", _UNPACK)),
    (b"BZh", Format("a bzip2 file", _UNPACK)),
    (b"\xfd7zXZ\0", Format("an xz file", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Format("a Zstandard file", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Format("a 7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", Format("a RAR archive", _UNPACK)),
    (b"\x89PNG\r\n\x1a\n", Format("a PNG image", _OCR)),
    (b"\xff\xd8\xff", Format("a JPEG image", _OCR)),
    (b"GIF87a", Format("a GIF image", _OCR)),
    (b"GIF89a", Format("a GIF image", _OCR)),
    (b"II*\0", Format("a TIFF image", _OCR)),
    (b"MM\0*", Format("a TIFF image", _OCR)),
    (b"ID3", Format("an audio file", _MEDIA)),
    (b"OggS", Format("an audio or video file", _MEDIA)),
    (b"fLaC", Format("an audio file", _MEDIA)),
    (b"\x7fELF", Format("a program", "pass a text")),
)
_IN_ZIP = {
    "word/document.xml": _DOCX,
    "xl/workbook.xml": Format("an Excel file", _SHEET),
    "ppt/presentation.xml": Format("a PowerPoint file", "save it as PDF or as plain text"),
}
_IN_MIMETYPE = {
    b"application/epub+zip": Format("an EPUB book", "convert it to text, such as with pandoc -t plain"),
    b"application/vnd.oasis.opendocument.spreadsheet": Format("an OpenDocument spreadsheet", _SHEET),
    b"application/vnd.oasis.opendocument": Format("an OpenDocument file", _WORD),
}


def format_of(content: bytes) -> Format | None:
    """The format of a file that is not plain text; None for plain text and unknown formats."""
    head = content[:_HEAD]
    if head.lstrip(_BLANK).startswith(b"%PDF-"):
        return _PDF
    if head.startswith(b"PK\x03\x04"):
        return _in_zip(content)
    if head.startswith(b"RIFF") and head[8:12] in (b"WEBP", b"WAVE", b"AVI "):
        return Format("a WebP image", _OCR) if head[8:12] == b"WEBP" else Format("an audio or video file", _MEDIA)
    if head[4:8] == b"ftyp" and b"\0" in head[:8]:
        return Format("an image, audio or video file", "extract its text first")
    if _HTML.match(head.lstrip(_BLANK)):
        return _PAGE
    return next((found for magic, found in _MAGIC if head.startswith(magic)), None)


def _in_zip(content: bytes) -> Format:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = set(archive.namelist())
            kind = archive.read("mimetype")[:100] if "mimetype" in names else b""
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError):
        return Format("a damaged zip archive", "copy it again")
    by_name = (found for name, found in _IN_ZIP.items() if name in names)
    by_type = (found for start, found in _IN_MIMETYPE.items() if kind.startswith(start))
    return next(by_name, None) or next(by_type, None) or Format("a zip archive", _UNPACK)


def document_text(content: bytes, name: str, encoding: str | None = None, *, keep_html: bool = False) -> str:
    """The text of a document.

    Args:
        content: the bytes of the file.
        name: its name, for messages.
        encoding: encoding of plain text and HTML, UTF-8 by default.
        keep_html: return the source of HTML pages, not their text.

    Raises:
        InputError: it has no text, or its format is not supported.
        MissingDependencyError: the extra ``documents`` is needed.
    """
    found = format_of(content)
    if found is None or (found is _PAGE and keep_html):
        return decode_text(content, name, encoding or "utf-8")
    if found.fix:
        raise InputError(f"{name} is {found.name}, not text", found.fix, code="unsupported_format")
    if encoding is not None and found is not _PAGE:
        raise InputError(f"{name} is {found.name}, on which `encoding` has no effect", "leave it out", code="no_effect")
    empty, fix = "has no text", "check the file"
    if found is _PDF:
        text = _extracted(lambda: _pdf_text(content, name), name, found, "pypdf", "pdftotext")
        empty, fix = f"{empty}: its pages are images", "recognize their text first (OCR), such as with ocrmypdf"
    elif found is _DOCX:
        text = _extracted(lambda: _docx_text(content), name, found, "mammoth", "pandoc -t plain")
    else:
        html = decode_text(content, name, encoding or _charset(content))
        text = _extracted(lambda: _html_text(html), name, found, "inscriptis", "pandoc -t plain")
        empty, fix = f"{empty}; pages made by scripts need a browser", "save it as text from the browser"
    if not text.strip():
        raise InputError(f"{name} {empty}", fix, code="empty_input")
    return text


def _extracted(extract: Callable[[], str], name: str, found: Format, package: str, tool: str) -> str:
    try:
        return extract()
    except ImportError as error:
        raise MissingDependencyError(
            f"{name} is {found.name}, which needs {package} to be read",
            "pip install 'llmkit[documents]'",
            f"convert it to text, such as with {tool}",
        ) from error
    except InputError:
        raise
    except Exception as error:  # the libraries let many kinds of errors through for damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{name} is {found.name} that cannot be read ({reason})", f"convert it with {tool}", code="unreadable_file"
        ) from error


def _pdf_text(content: bytes, name: str) -> str:
    import logging

    from pypdf import PdfReader
    from pypdf.errors import FileNotDecryptedError

    logging.getLogger("pypdf").setLevel(logging.ERROR)
    reader = PdfReader(io.BytesIO(content))
    try:
        pages = [page.extract_text().strip() for page in reader.pages]
    except FileNotDecryptedError as error:
        raise InputError(
            f"{name} is encrypted with a password",
            "save a copy without it, such as with qpdf",
            code="unreadable_file",
        ) from error
    blank = [str(number) for number, page in enumerate(pages, start=1) if not page]
    if 0 < len(blank) < len(pages):
        shown = ", ".join(blank[:10]) + (" …" if len(blank) > 10 else "")
        warn(
            "pages_without_text",
            "%s: %d of %d pages have no text (%s), such as scanned ones",
            name,
            len(blank),
            len(pages),
            shown,
        )
    # A sentence may go on over the end of a page.
    return "".join(page + ("\n\n" if page.endswith(_SENTENCE_END) else "\n") for page in pages if page)


def _docx_text(content: bytes) -> str:
    import mammoth

    no_image = mammoth.images.img_element(lambda _image: {"src": ""})
    return _html_text(mammoth.convert_to_html(io.BytesIO(content), convert_image=no_image).value)


def _html_text(html: str) -> str:
    from inscriptis import get_text

    return str(get_text(html))


def _charset(content: bytes) -> str:
    """The encoding that a page declares."""
    declared = _CHARSET.search(content[:_HEAD])
    return declared[1].decode() if declared else "utf-8"
