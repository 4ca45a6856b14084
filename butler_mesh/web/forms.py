"""Forms of browsers: werkzeug's parsers, with bounds on their cost, and turns for others meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

import gevent
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import FormDataParser, MultiPartParser
from werkzeug.sansio.multipart import Data, Epilogue, Event, Field, File, MultipartDecoder, NeedData

if TYPE_CHECKING:
    from werkzeug.datastructures import Headers

MULTIPART = "multipart/form-data"
URLENCODED = "application/x-www-form-urlencoded"

MAX_FORM_FIELDS = 10_000
"""What a form may hold, of either kind: such a one takes 10 ms, as multipart 0.2 s. The bytes alone are no
bound: a body of ``a&a&…`` becomes forty times its size in memory."""
MAX_FIELD_BYTES = 1024 * 1024
"""What one field of text in a multipart form may hold, and a form of the other kind as a whole: of escapes
alone, 1 MiB takes up to 0.4 s. Files may be larger: they go to disk."""
MAX_HEAD_BYTES = 8 * 1024
"""What the head of a part of a multipart form may hold. Honest ones have two lines; one of 930 KB, made of
parameters, takes half a second."""
MAX_PART_LINES = 100
"""Lines in the head of a part of a multipart form, as Python's HTTP has it for heads. Honest ones have three;
each costs forty times its bytes in memory, too."""


class Decoder(MultipartDecoder):
    """Cuts a body into events; the head of a part that is too large raises 413 before it is read."""

    def _parse_headers(self, data: bytes | bytearray) -> Headers:
        if len(data) > MAX_HEAD_BYTES or data.count(b"\n") >= MAX_PART_LINES:
            raise RequestEntityTooLarge
        return super()._parse_headers(data)


class Parts(MultiPartParser):
    """Reads the parts of a multipart form; after every piece of the body others get their turn."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._open: list[IO[bytes]] = []

    def parse(self, stream: IO[bytes], boundary: bytes, content_length: int | None) -> tuple[Any, Any]:
        """Return the fields and the files."""
        fields: list[tuple[str, str]] = []
        files: list[tuple[str, FileStorage]] = []
        part: Field | File | None = None
        text = bytearray()
        for event in self._events(stream, boundary):
            if isinstance(event, Field | File):
                part = event
                text.clear()
                if isinstance(part, File):
                    self._open.append(self.start_file_streaming(part, content_length))
            elif not isinstance(event, Data):
                continue
            elif isinstance(part, Field):
                text += event.data
                if self.max_form_memory_size is not None and len(text) > self.max_form_memory_size:
                    raise RequestEntityTooLarge
                if not event.more_data:
                    fields.append((part.name, text.decode(self.get_part_charset(part.headers), "replace")))
            elif isinstance(part, File):
                file = self._open[-1]
                file.write(event.data)
                if not event.more_data:
                    file.seek(0)
                    upload = FileStorage(file, part.filename, part.name, headers=part.headers)
                    files.append((part.name, upload))
        return self.cls(fields), self.cls(files)

    def close(self) -> None:
        """Close the files of a form that will not be."""
        for file in self._open:
            file.close()

    def _events(self, stream: IO[bytes], boundary: bytes) -> Iterator[Event]:
        decoder = Decoder(
            boundary, max_form_memory_size=self.max_form_memory_size, max_parts=self.max_form_parts
        )
        data: bytes | None = b""
        while data is not None:
            data = stream.read(self.buffer_size) or None  # None: that was all
            decoder.receive_data(data)
            while not isinstance(event := decoder.next_event(), NeedData | Epilogue):
                yield event
            gevent.sleep(0)


class Forms(FormDataParser):
    """Reads forms, multipart ones by Parts; ValueError for what is none."""

    def parse(
        self,
        stream: IO[bytes],
        mimetype: str,
        content_length: int | None,
        options: dict[str, str] | None = None,
    ) -> Any:
        """Return the stream, the fields and the files."""
        if mimetype != MULTIPART:
            return super().parse(stream, mimetype, content_length, options)
        parts = Parts(
            self.stream_factory, self.max_form_memory_size, self.cls, max_form_parts=self.max_form_parts
        )
        try:
            boundary = (options or {}).get("boundary", "").encode("ascii")
            if not boundary:
                raise ValueError("no boundary")
            return stream, *parts.parse(stream, boundary, content_length)
        except BaseException as error:
            parts.close()
            if isinstance(error, ValueError) and not stream.tell() and not stream.read(1):
                return stream, self.cls(), self.cls()  # no body: some clients send GET with such a type
            raise
