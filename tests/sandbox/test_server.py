"""Serving a stand-in."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import trustme

from airflow_multideploy.sandbox.server import Receive, Scope, Send, Server


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def test_stopping_does_not_wait_for_a_client_that_keeps_its_connection(tmp_path: Path) -> None:
    ca, chain = trustme.CA(), tmp_path / "chain.pem"
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(chain))
    server = Server(hello, tls=(str(chain), str(chain)))
    server._server.config.timeout_graceful_shutdown = 30
    trust = ssl.create_default_context()
    ca.configure_trust(trust)
    server.start()
    with (
        socket.create_connection(("127.0.0.1", server.port)) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 5


def test_answers_do_not_wait_for_an_acknowledgement() -> None:
    """Head and body are two writes: with Nagle's algorithm on, the second one is 40 ms late."""
    seen = []

    async def look(scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope["extensions"]["sandbox.transport"].get_extra_info("socket")
        seen.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        await hello(scope, receive, send)

    server = Server(look).start()
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
    finally:
        server.stop()
    assert [bool(option) for option in seen] == [True]
