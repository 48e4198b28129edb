"""Read the images in the body of a request: in memory, and never more of them than agreed."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from email.message import Message
from typing import NamedTuple

from fastapi import HTTPException, Request

_MAX_HEADER_BYTES = 4096  # of one part of a multipart body
_OTHER_FIELDS = 16  # fields of a form that are no files
_BUFFERED_REQUESTS = 8  # of the largest size: what the bodies of all requests may take together


class Upload(NamedTuple):
    """An image file in a request.

    Attributes:
        name: Its name, as the client says. None for an image that is the body itself.
        content: A part of the body: it is not copied.
    """

    name: str | None
    content: memoryview


class RequestBodies:
    """The bodies of all requests that are in memory.

    Args:
        max_request_bytes: Of one body.
        max_files: In one body.
    """

    def __init__(self, max_request_bytes: int, max_files: int) -> None:
        self.max_request_bytes, self.max_files, self.held = max_request_bytes, max_files, 0

    @asynccontextmanager
    async def uploads(self, request: Request) -> AsyncIterator[list[Upload]]:
        """Read the body of a request and yield the files in it. Afterwards its memory is free for other requests.

        Raises:
            HTTPException: It is too large, is not of a known type, or holds no file.
        """
        kind, boundary = _content_type(request)
        body = bytearray()
        try:
            async for chunk in self._chunks(request):
                self.held += len(chunk)
                body += chunk
            yield self._split(body, boundary) if kind == "multipart/form-data" else self._single(body)
        finally:
            self.held -= len(body)

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        too_large = HTTPException(413, f"the request is too large: expected at most {self.max_request_bytes:,} bytes")
        declared = request.headers.get("content-length", "0")
        if len(declared) > 18 or (declared.isascii() and declared.isdigit() and int(declared) > self.max_request_bytes):
            raise too_large
        count = 0
        async for chunk in request.stream():
            count += len(chunk)  # the declared length may be missing, or wrong
            if count > self.max_request_bytes:
                raise too_large
            if self.held + len(chunk) > _BUFFERED_REQUESTS * self.max_request_bytes:
                raise busy()
            yield chunk

    def _single(self, body: bytearray) -> list[Upload]:
        if not body:
            raise HTTPException(400, "the body is empty: expected an image")
        return [Upload(None, memoryview(body))]

    def _split(self, body: bytearray, boundary: str | None) -> list[Upload]:
        if boundary is None:
            raise HTTPException(400, "multipart/form-data: expected a boundary of 1 to 70 characters in Content-Type")
        uploads = []
        for number, part in enumerate(_parts(body, boundary.encode("latin-1"))):
            if number >= self.max_files + _OTHER_FIELDS:
                raise HTTPException(413, "the form has too many fields")
            if part is not None:
                uploads.append(part)
            if len(uploads) > self.max_files:
                raise HTTPException(413, f"too many files: expected at most {self.max_files} in a request")
        if not uploads:
            raise HTTPException(400, "the form has no file: expected at least one, as the field files")
        return uploads


def busy() -> HTTPException:
    """Return the error of a request that may come again in a moment."""
    return HTTPException(503, "the server is busy: try again in a second", {"Retry-After": "1"})


def _content_type(request: Request) -> tuple[str, str | None]:
    """Return the type of the body, and the boundary of a form.

    Raises:
        HTTPException: It is neither a form with files nor an image.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "Content-Encoding: expected none")
    text = request.headers.get("content-type", "application/octet-stream")
    message = _message("content-type", text[:_MAX_HEADER_BYTES])
    kind = message.get_content_type()
    if kind == "multipart/form-data":
        boundary = message.get_param("boundary")
        return kind, boundary if isinstance(boundary, str) and 1 <= len(boundary) <= 70 else None
    if kind == "application/octet-stream" or message.get_content_maintype() == "image":
        return kind, None
    raise HTTPException(415, "Content-Type: expected multipart/form-data with files, or image/* with one image")


def _parts(body: bytearray, boundary: bytes) -> Iterator[Upload | None]:
    """Yield the parts of a form: the files, and None for each other field.

    Only what RFC 7578 and all browsers write passes: no nested forms, no folded headers, no transfer encodings.

    Raises:
        HTTPException: The body is damaged, or cut off.
    """
    damaged = HTTPException(400, "multipart/form-data: the body is damaged, or does not fit its boundary")
    view = memoryview(body)
    separator = b"\r\n--" + boundary
    if not body.startswith(separator[2:]):
        raise damaged
    position = len(separator) - 2
    while (after := bytes(view[position : position + 2])) == b"\r\n":
        position += 2
        headers_end = body.find(b"\r\n\r\n", position, position + _MAX_HEADER_BYTES)
        end = body.find(separator, headers_end + 2)
        if headers_end < 0 or end < 0:
            raise damaged
        name, content = _file_name(bytes(view[position:headers_end])), view[headers_end + 4 : end]
        # A browser sends a file without name and content for a field in which none was chosen.
        yield Upload(name, content) if name or (name is not None and content) else None
        position = end + len(separator)
    if after != b"--":
        raise damaged


def _file_name(headers: bytes) -> str | None:
    """Return the file name in the headers of a part; None if it is no file."""
    for line in headers.decode("utf-8", errors="replace").split("\r\n"):
        key, _, value = line.partition(":")
        if key.strip().lower() == "content-disposition":
            try:
                return _message("content-disposition", value.strip()).get_filename()
            except (ValueError, LookupError):  # filename*= in an encoding that is none
                return "file"
    return None


def _message(key: str, value: str) -> Message:
    message = Message()
    message[key] = value.replace("\r", " ").replace("\n", " ")
    return message
