"""Files that are not plain text: read for their text, or refused with what to do."""

from __future__ import annotations

import gzip
import io
import sys
import zipfile

import pytest

from llmkit.data.documents import document_text
from llmkit.errors import InputError, MissingDependencyError


def pdf(*pages: str) -> bytes:
    """A PDF file with one line on each page; an empty one has no text, as a scan."""
    streams = [f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET".encode() if text else b"" for text in pages]
    kids = " ".join(f"{4 + 2 * number} 0 R" for number in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for number, stream in enumerate(streams):
        page = f"/MediaBox [0 0 612 792] /Resources << /Font << /F1 3 0 R >> >> /Contents {5 + 2 * number} 0 R"
        objects.append(f"<< /Type /Page /Parent 2 0 R {page} >>".encode())
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream))
    content, places = b"%PDF-1.4\n", []
    for number, each in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    end = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, len(content))
    return content + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (size, table, end)


def encrypted(content: bytes, password: str) -> bytes:
    from pypdf import PdfReader, PdfWriter

    writer, stream = PdfWriter(clone_from=PdfReader(io.BytesIO(content))), io.BytesIO()
    writer.encrypt(password, owner_password="owner", algorithm="AES-256")
    writer.write(stream)
    return stream.getvalue()


def packed(**files: str) -> bytes:
    """A zip archive; in names, ``__`` is a slash and ``_`` a dot."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), text)
    return stream.getvalue()


def docx(body: str) -> bytes:
    start = "http://schemas.openxmlformats.org"
    kind = f"{start}/officeDocument/2006/relationships/officeDocument"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{start}/package/2006/content-types"/>')
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{start}/package/2006/relationships">'
            f'<Relationship Id="1" Type="{kind}" Target="word/document.xml"/></Relationships>',
        )
        archive.writestr(
            "word/document.xml",
            f'<w:document xmlns:w="{start}/wordprocessingml/2006/main"><w:body>{body}</w:body></w:document>',
        )
    return stream.getvalue()


def paragraph(text: str) -> str:
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def test_the_text_of_a_pdf_file(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "llmkit")
    content = pdf("The reef lies off", "Australia.", "", "It is old.")
    assert document_text(content, "reef.pdf").split("\n") == [
        "The reef lies off",
        "Australia.",
        "",
        "It is old.",
        "",
        "",
    ]
    assert "reef.pdf: 1 of 4 pages have no text (3), such as scanned ones" in caplog.text
    assert document_text(encrypted(content, ""), "reef.pdf") == document_text(content, "reef.pdf")  # permissions only


def test_the_text_of_a_docx_file() -> None:
    cell = "<w:tc>{}</w:tc>".format
    table = f"<w:tbl><w:tr>{cell(paragraph('width'))}{cell(paragraph('3 km'))}</w:tr></w:tbl>"
    text = document_text(docx(paragraph("The reef.") + table + paragraph("今天天气很好。")), "reef.docx")
    assert [line.split() for line in text.splitlines() if line.strip()] == [
        ["The", "reef."],
        ["width", "3", "km"],
        ["今天天气很好。"],
    ]


HEAD = "<head><meta charset='{}'><title>T</title><script>x = 1</script></head>"
PAGE = f"<!DOCTYPE html><html>{HEAD}<body><p>今天<b>天</b>气"


def test_the_text_of_a_page() -> None:
    for encoding in ("utf-8", "gb18030"):
        page = PAGE.format(encoding).encode(encoding)
        assert document_text(page, "page.html").strip() == "今天天气"
        assert document_text(PAGE.format("utf-8").encode(encoding), "page.html", encoding).strip() == "今天天气"
    page = b"\xef\xbb\xbf\n<!-- saved -->\n" + PAGE.format("utf-8").encode()
    assert document_text(page, "page.html").strip() == "今天天气"
    assert document_text(page, "page.html", keep_html=True) == page.decode("utf-8-sig")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pdf("", ""), "has no text: its pages are images; recognize their text first"),
        (encrypted(pdf("A secret."), "word"), "is encrypted with a password; save a copy without it"),
        (pdf("The reef.")[:200], "is a PDF file that cannot be read"),
        (packed(word__document_xml="<broken"), "is a DOCX file that cannot be read"),
        (docx(""), "has no text"),
        (b"<html><script>render()</script></html>", "pages made by scripts need a browser"),
        (b"{\\rtf1 The reef.}", "is an RTF file, not text; save it as .docx or as plain text"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "an old or an encrypted Office document, not text; save it"),
        (packed(xl__workbook_xml=""), "is an Excel file, not text; save its sheets as .csv"),
        (packed(mimetype="application/epub+zip"), "is an EPUB book, not text; convert it"),
        (packed(mimetype="application/vnd.oasis.opendocument.text"), "is an OpenDocument file, not text"),
        (packed(a_txt="The reef."), "is a zip archive, not text; unpack it"),
        (packed(a_txt="The reef.")[:60], "is a damaged zip archive"),
        (gzip.compress(b"The reef."), "is a gzip file, not text; unpack it"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a PNG image, not text; extract its text first (OCR)"),
        (b"PAR1\x15\x04", "is a Parquet file, not text; pass its rows with `input`"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # the bytes differ from run to run
)
def test_what_has_no_text(content: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        document_text(content, "reef.pdf")
    assert str(caught.value).startswith("reef.pdf ")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["%PDF is a format.", "PK is a zip's magic", "In <html> a page", "BZ: Belize"])
def test_texts_about_formats_are_texts(text: str) -> None:
    assert document_text(text.encode(), "notes.txt") == text


@pytest.mark.parametrize(
    ("content", "package"),
    [(pdf("a"), "pypdf"), (docx(paragraph("a")), "mammoth"), (b"<html>a", "inscriptis")],
    ids=["pdf", "docx", "html"],
)
def test_a_missing_library_is_named_with_the_extra(
    content: bytes, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"needs {package} to be read; pip install 'llmkit\[documents\]'"):
        document_text(content, "reef")
