"""A server and a client of WebSocket.

  websocket_peer.py serve                 echoes; prints its port, then how each connection ended
  websocket_peer.py check ADDRESS         prints the names of the checks that passed
  websocket_peer.py hold ADDRESS          prints the port when it is open, and the code when it is closed
"""

import asyncio
import os
import socket
import sys
import threading

from websockets.asyncio.server import serve as serve_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

MIB = 1 << 20


async def echo(websocket):
    path = websocket.request.path
    try:
        if path.startswith("/close/"):
            await websocket.recv()
            await websocket.close(int(path.rpartition("/")[2]), "as told")
            return
        if path == "/push":
            await websocket.send("first words of the server")
        async for message in websocket:
            if path == "/fragments" and isinstance(message, str):
                await websocket.send([message[at : at + 7] for at in range(0, len(message), 7)])
            else:
                await websocket.send(message)
    except ConnectionClosed:
        pass
    finally:
        await websocket.wait_closed()
        print(f"{path} {websocket.close_code}", flush=True)


def refuse(connection, request):
    if request.path == "/refused":
        return connection.respond(403, "not you\n")
    return None


async def serve():
    server = await serve_async(
        echo,
        "127.0.0.1",
        0,
        max_size=8 * MIB,
        process_request=refuse,
        select_subprotocol=lambda _, offered: offered[0] if offered else None,
        ping_interval=None,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.wait_closed()


def open_to(address, path, **more):
    host, _, port = address.partition(":")
    sock = socket.create_connection((host, int(port)))
    uri = f"ws://ws.example{path}"
    return connect(uri, sock=sock, max_size=8 * MIB, ping_interval=None, open_timeout=10, close_timeout=10, **more)


def expect(found, wanted):
    if found != wanted:
        raise AssertionError(f"{found!r:.200} instead of {wanted!r:.200}")


def check(address):
    def text():
        with open_to(address, "/text") as websocket:
            for message in ("", "a", "\u00e4\u20ac" * 1000):
                websocket.send(message)
                expect(websocket.recv(10), message)

    def binary():
        with open_to(address, "/binary", compression=None) as websocket:
            for size in (0, 1, 125, 126, 65535, 65536):
                message = os.urandom(size)
                websocket.send(message)
                expect(websocket.recv(10), message)

    def mebibytes():
        with open_to(address, "/large", compression=None) as websocket:
            messages = [os.urandom(MIB) for _ in range(8)]
            sender = threading.Thread(target=lambda: [websocket.send(message) for message in messages])
            sender.start()
            for message in messages:
                expect(websocket.recv(20) == message, True)
            sender.join()

    def fragments():
        with open_to(address, "/fragments") as websocket:
            websocket.send(["one ", "two ", "three"])
            parts = list(websocket.recv_streaming())
            expect("".join(parts), "one two three")

    def pings():
        with open_to(address, "/ping") as websocket:
            for _ in range(20):
                expect(websocket.ping().wait(10), True)

    def close_codes():
        for code in (1000, 1001, 1008, 1011, 3000, 4999):
            with open_to(address, f"/close/{code}") as websocket:
                websocket.send("now")
                try:
                    websocket.recv(10)
                    raise AssertionError("still open")
                except ConnectionClosed as closed:
                    expect((closed.rcvd.code, closed.rcvd.reason), (code, "as told"))
            with open_to(address, f"/own/{code}") as websocket:
                websocket.close(code, "enough")

    def server_speaks_first():
        for _ in range(20):
            with open_to(address, "/push") as websocket:
                expect(websocket.recv(10), "first words of the server")

    def subprotocol():
        with open_to(address, "/sub", subprotocols=["other", "chat"]) as websocket:
            expect(websocket.subprotocol, "other")
            websocket.send("x" * 1000)
            expect(websocket.recv(10), "x" * 1000)

    def refusal():
        try:
            with open_to(address, "/refused"):
                raise AssertionError("open")
        except InvalidStatus as refused:
            expect((refused.response.status_code, refused.response.body), (403, b"not you\n"))

    def parallel():
        def one(number):
            with open_to(address, f"/parallel/{number}") as websocket:
                for _ in range(20):
                    websocket.send(str(number) * 100)
                    expect(websocket.recv(10), str(number) * 100)
            passed.append(number)

        passed = []
        threads = [threading.Thread(target=one, args=(number,)) for number in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expect(len(passed), 30)

    for test in (
        text,
        binary,
        mebibytes,
        fragments,
        pings,
        close_codes,
        server_speaks_first,
        subprotocol,
        refusal,
        parallel,
    ):
        test()
        print(test.__name__, flush=True)


def hold(address):
    with open_to(address, "/hold") as websocket:
        websocket.send("here")
        expect(websocket.recv(10), "here")
        print(address.rpartition(":")[2], flush=True)
        try:
            websocket.recv(60)
        except ConnectionClosed:
            pass
        print(f"closed {websocket.close_code}", flush=True)


def main(command, *args):
    if command == "serve":
        asyncio.run(serve())
    elif command == "check":
        check(*args)
    elif command == "hold":
        hold(*args)


main(*sys.argv[1:])
