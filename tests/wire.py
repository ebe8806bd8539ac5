"""A wire between a client and a server that can fail as wires and servers do."""

import contextlib
import email.utils
import re
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

# By state, what is refused and the answer: its status, its body, and a checksum where the server knows the object's.
ANSWERS = {
    "full": (
        b"PUT ",
        b"507 Insufficient Storage",
        b"<Error><Code>InsufficientStorage</Code><Message>no space left on device</Message></Error>",
        b"",
    ),
    "failing": (
        b"GET ",
        b"500 Internal Server Error",
        b"<Error><Code>InternalError</Code><Message>it moved while it was read</Message></Error>",
        b"x-amz-checksum-crc32: AAAAAA==\r\n",
    ),
    "read-only": (
        b"PUT ",
        b"403 Forbidden",
        b"<Error><Code>AccessDenied</Code><Message>not yours</Message></Error>",
        b"",
    ),
    "keeping": (
        b"DELETE ",
        b"403 Forbidden",
        b"<Error><Code>AccessDenied</Code><Message>not yours</Message></Error>",
        b"",
    ),
}
LATE_S = 400  # what a late server's clock lacks
HALF_WAY = 50_000  # bytes


class Wire:
    """Forwards bytes to a server, or does what it is told to `become`: refusing, stalling, dropping, late, or one of ANSWERS."""

    def __init__(self, server: str, host: str = "127.0.0.1") -> None:
        self.server = (urlsplit(server).hostname, urlsplit(server).port)
        self.door = socket.create_server((host, 0))
        self.address = f"http://{host}:{self.door.getsockname()[1]}"
        self.state = "whole"
        self.open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def become(self, state: str) -> None:
        """Change the state, and cut what is connected: it was connected in another."""
        self.state = state
        for one in list(self.open):
            self._cut(one)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.door.accept()
                self.open.add(client)
                if self.state == "refusing":
                    self._cut(client)
                elif self.state != "stalling":
                    threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            server = socket.create_connection(self.server)
            self.open.add(server)
            threading.Thread(target=self._copy, args=(server, client), daemon=True).start()
            self._copy(client, server, sending=True)

    def _copy(self, source: socket.socket, target: socket.socket, sending: bool = False) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while chunk := source.recv(16_384):
                passed += len(chunk)
                method, status, body, checksum = ANSWERS.get(self.state, (b"", b"", b"", b""))
                if sending and method and chunk.startswith(method):
                    source.sendall(b"HTTP/1.1 %s\r\nContent-Type: application/xml\r\n%s" % (status, checksum))
                    source.sendall(b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                    break
                if sending and self.state == "dropping" and passed > HALF_WAY:
                    break
                target.sendall(_late(chunk) if self.state == "late" and not sending else chunk)
        for one in (source, target):
            self._cut(one)

    def _cut(self, one: socket.socket) -> None:
        self.open.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()


def _late(chunk: bytes) -> bytes:
    """What a server answers, as it would if its clock were late."""
    return re.sub(
        rb"(?i)(?<=\r\ndate: )[^\r]+", email.utils.formatdate(time.time() - LATE_S, usegmt=True).encode(), chunk
    )


@contextlib.contextmanager
def wire(server: str, host: str = "127.0.0.1") -> Iterator[Wire]:
    """A wire to a server for as long as the context lasts."""
    made = Wire(server, host)
    try:
        yield made
    finally:
        made.door.close()
        made.become("refusing")
