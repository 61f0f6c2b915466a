"""A proxy on loopback that makes the way to a server longer."""
from __future__ import annotations

import asyncio
import contextlib
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
        there, back = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            with contextlib.suppress(ConnectionError):
                await asyncio.gather(
                    self._pass(reader, back), self._pass(there, writer)
                )
                # What is on its way still arrives.
                await asyncio.sleep(self._delay)
                for end in (writer, back):
                    end.close()
                    await end.wait_closed()
        finally:
            for end in (writer, back):
                end.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            self._loop.call_later(self._delay, writer.write, data)
        self._loop.call_later(self._delay, writer.close)
