"""A relay's front that offers STARTTLS, before a relay that does not.

stunnel can do this too, but waits for 200 ms at each connection, whether the client
speaks first; contestants that connect for each message would be slow for its reason.
"""
from __future__ import annotations

import argparse
import select
import socket
import socketserver
import ssl


class Front(socketserver.ForkingTCPServer):
    """A process for each connection, so that they do not share an interpreter."""

    allow_reuse_address = True
    request_queue_size = 1000

    def __init__(self, port: int, relay: int, certificate: str) -> None:
        self.relay = relay
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)
        super().__init__(("127.0.0.1", port), Connection)


class Connection(socketserver.BaseRequestHandler):
    server: Front

    def handle(self) -> None:
        client: socket.socket = self.request
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with socket.create_connection(("127.0.0.1", self.server.relay)) as relay:
            relay.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.sendall(relay.recv(1000))
            while command := client.recv(1000):
                if command[:8].upper() == b"STARTTLS":
                    client.sendall(b"220 go ahead\r\n")
                    wrapped = self.server.context.wrap_socket(client, server_side=True)
                    with wrapped:
                        return pass_on(wrapped, relay)
                client.sendall(b"250-front\r\n250 STARTTLS\r\n")


def pass_on(client: ssl.SSLSocket, relay: socket.socket) -> None:
    """Pass bytes both ways until one side closes."""
    while True:
        readable = [client] if client.pending() else []
        for one in readable or select.select([client, relay], [], [])[0]:
            try:
                data = one.recv(65536)
            except (ConnectionError, ssl.SSLError):
                data = b""
            if not data:
                return
            (relay if one is client else client).sendall(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("relay", type=int)
    parser.add_argument("certificate")
    options = parser.parse_args()
    with Front(options.port, options.relay, options.certificate) as front:
        front.serve_forever()


if __name__ == "__main__":
    main()
