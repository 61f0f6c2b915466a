"""Proxies on loopback that make the way to a server longer, or lossy."""
from __future__ import annotations

import asyncio
import contextlib
import socket
import threading


class DelayingProxy:
    """Passes all bytes on, each after half of `round_trip` seconds.

    A context manager; `port` is where it listens on 127.0.0.1.
    """

    def __init__(self, target_port: int, round_trip: float) -> None:
        self._target_port = target_port
        self._delay = round_trip / 2
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def __enter__(self) -> DelayingProxy:
        self._thread.start()
        starting = asyncio.start_server(self._serve, "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(starting, self._loop).result()
        self._server = server
        self.port = server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *exc_info: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        ends = [writer]
        try:
            # Python 3.11 prints the traceback of a server's task that was cancelled.
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                there, back = await asyncio.open_connection(
                    "127.0.0.1", self._target_port
                )
                ends.append(back)
                await asyncio.gather(
                    self._pass(reader, back), self._pass(there, writer)
                )
                # The last bytes are still on their way.
                await asyncio.sleep(self._delay)
                for end in ends:
                    end.close()
                    await end.wait_closed()
        finally:
            for end in ends:
                end.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            self._loop.call_later(self._delay, writer.write, data)
        self._loop.call_later(self._delay, writer.close)


class LossyProxy:
    """Passes all bytes on, until it is told to lose some.

    A context manager; `port` is where it listens on 127.0.0.1.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lost: bytes | None = None
        self._goes = False
        self._swallowed: bytes | None = None
        self._halved: bytes | None = None
        self._losing: set[socket.socket] = set()
        # How many bytes still pass, of requests and of replies, before a cut.
        self._left: dict[str, int | None] = {"requests": None, "replies": None}
        self.is_away = False
        self.is_frozen = False
        #: How many requests and replies were lost.
        self.losses = 0

    def __enter__(self) -> LossyProxy:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()
        self.cut()

    def cut(self) -> None:
        """Cut all connections, as the loss of a network does."""
        pairs, self._pairs = self._pairs, []
        for ends in pairs:
            for end in ends:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def go_away(self) -> None:
        """Cut all connections, and take no others, until `is_away` is false."""
        self.is_away = True
        self.cut()

    def lose_reply_to(self, words: bytes, *, and_go: bool = False) -> None:
        """Pass on the next request that has these `words`, and cut its reply off.

        With `and_go` it goes away then.
        """
        self._lost, self._goes = words, and_go

    def lose_request(self, words: bytes) -> None:
        """Cut off the next request that has these `words`, and do not pass it on."""
        self._swallowed = words

    def freeze_in_reply(self, words: bytes) -> None:
        """Freeze after the first half of the next reply that has these `words`."""
        self._halved = words

    def cut_after(self, size: int | None, way: str) -> None:
        """Cut a connection when `size` more bytes of "requests" or "replies" passed.

        The bytes of all connections count. None: do not.
        """
        self._left[way] = size

    def _pass(
        self, data: bytes, way: str, source: socket.socket, target: socket.socket
    ) -> bool:
        """Send `data` to `target`. Return False if it was cut off."""
        left = self._left[way]
        if left is None or left >= len(data):
            self._left[way] = None if left is None else left - len(data)
            target.sendall(data)
            return True
        self._left[way] = None
        self.losses += 1
        target.sendall(data[:left])
        for end in (source, target):
            end.shutdown(socket.SHUT_RDWR)
        return False

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            if self.is_away:
                here.close()
                continue
            there = socket.create_connection(("127.0.0.1", self._target_port))
            self._pairs.append((here, there))
            threading.Thread(target=self._requests, args=(here, there)).start()
            threading.Thread(target=self._replies, args=(there, here)).start()

    def _requests(self, here: socket.socket, there: socket.socket) -> None:
        with contextlib.suppress(OSError), there:
            while data := here.recv(65536):
                self._wait()
                if self._swallowed is not None and self._swallowed in data:
                    self._swallowed = None
                    self.losses += 1
                    there.shutdown(socket.SHUT_RDWR)
                    here.shutdown(socket.SHUT_RDWR)
                    return
                if self._lost is not None and self._lost in data:
                    self._lost = None
                    self._losing.add(there)
                if not self._pass(data, "requests", here, there):
                    return
            there.shutdown(socket.SHUT_WR)

    def _replies(self, there: socket.socket, here: socket.socket) -> None:
        with contextlib.suppress(OSError), here:
            while data := there.recv(65536):
                self._wait()
                if there in self._losing:  # the request has been executed
                    self.losses += 1
                    self._losing.remove(there)
                    self.is_away = self._goes
                    here.shutdown(socket.SHUT_RDWR)
                    return
                if self._halved is not None and self._halved in data:
                    self._halved = None
                    here.sendall(data[: len(data) // 2])
                    self.is_frozen = True
                    self._wait()
                    data = data[len(data) // 2 :]
                if not self._pass(data, "replies", there, here):
                    return
            here.shutdown(socket.SHUT_WR)

    def _wait(self) -> None:
        pause = threading.Event()
        while self.is_frozen:
            pause.wait(0.01)
