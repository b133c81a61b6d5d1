"""A server and a client of gRPC. Messages are plain bytes: the library carries them without generated code.

  grpc_peer.py serve [CERTIFICATE KEY]      prints its port, then a line for each call that its client gave up
  grpc_peer.py check ADDRESS [CA NAME]      all kinds of calls; prints the names of the checks that passed
  grpc_peer.py load ADDRESS SECONDS CHANNELS [CA NAME]
  grpc_peer.py status ADDRESS METHOD        prints the status and the message of one call
"""

import sys
import threading
import time
from concurrent import futures

import grpc

UNLIMITED = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
    ("grpc.enable_http_proxy", 0),
]
SERVICE = "/peer.Echo/"


def pattern(length):
    return bytes(range(251)) * (length // 251) + bytes(range(length % 251))


# --- the server


def until_cancelled(context, name):
    """Prints a line when a call that never ends by itself has ended."""
    context.add_callback(lambda: print(f"cancelled {name}", flush=True))


def metadata(request, context):
    echoed = [(key, value) for key, value in context.invocation_metadata() if key.startswith("echo-")]
    context.send_initial_metadata(echoed)
    context.set_trailing_metadata([("trailing-" + key, value) for key, value in echoed])
    return request


def hang(request, context):
    until_cancelled(context, "hang " + request.decode())
    while context.is_active():
        time.sleep(0.01)
    return b""


def failing(request, context):
    context.set_trailing_metadata([("grpc-status-details-bin", b"\x08\x05details\x00\xff")])
    code, _, text = request.decode().partition(" ")
    for known in grpc.StatusCode:
        if known.name == code:
            context.abort(known, text)
    raise ValueError(code)


def remaining(request, context):
    left = context.time_remaining()
    return b"none" if left is None or left > 1e6 else str(left).encode()


def client_stream(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def server_stream(request, context):
    count, size = map(int, request.split())
    for number in range(count):
        yield str(number).encode().ljust(size, b".")


def ticks(request, context):
    until_cancelled(context, "ticks " + request.decode())
    number = 0
    while context.is_active():
        yield str(number).encode()
        number += 1
        time.sleep(0.01)


def bidirectional(requests, context):
    for request in requests:
        yield request


def health(request, context):
    # grpc.health.v1: field 1 of the answer is SERVING; field 1 of the question names the service.
    if request[2:] in (b"", b"peer.Echo"):
        return b"\x08\x01"
    context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")


def serve(args):
    unary_unary = grpc.unary_unary_rpc_method_handler
    server = grpc.server(futures.ThreadPoolExecutor(64), options=UNLIMITED)
    handlers = {
        "Unary": unary_unary(lambda request, context: request),
        "Metadata": unary_unary(metadata),
        "Hang": unary_unary(hang),
        "Fail": unary_unary(failing),
        "Remaining": unary_unary(remaining),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "Ticks": grpc.unary_stream_rpc_method_handler(ticks),
        "Bidirectional": grpc.stream_stream_rpc_method_handler(bidirectional),
    }
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler("peer.Echo", handlers),
            grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": unary_unary(health)}),
        )
    )
    if args:
        pair = [(open(args[1], "rb").read(), open(args[0], "rb").read())]
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(pair))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


# --- the client


def channel(address, tls, number=0):
    # Channels with other options share no connection.
    options = UNLIMITED + [("grpc.default_authority", "grpc.example"), ("peer.number", number)]
    options += [("grpc.use_local_subchannel_pool", 1)]
    if not tls:
        return grpc.insecure_channel(address, options)
    options += [("grpc.ssl_target_name_override", tls[1])]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(open(tls[0], "rb").read()), options)


def expect(found, wanted, what):
    if found != wanted:
        raise AssertionError(f"{what}: {found!r} instead of {wanted!r}")


def failure(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call succeeded")


def check(address, tls):
    peer = channel(address, tls)
    one = lambda name: peer.unary_unary(SERVICE + name)

    def unary():
        for size in (0, 1, 1000, 70000):
            expect(one("Unary")(pattern(size), timeout=10), pattern(size), "echo")

    def metadata():
        sent = (("echo-text", "a b"), ("echo-data-bin", bytes(range(256))), ("echo-twice", "1"), ("echo-twice", "2"))
        answer, call = one("Metadata").with_call(b"x", metadata=sent, timeout=10)
        got = [tuple(pair) for pair in call.initial_metadata() if pair[0].startswith("echo-")]
        expect(sorted(got), sorted(sent), "initial metadata")
        trailing = [tuple(pair) for pair in call.trailing_metadata() if pair[0].startswith("trailing-")]
        expect(sorted(trailing), sorted(("trailing-" + key, value) for key, value in sent), "trailing metadata")

    def client_stream():
        call = peer.stream_unary(SERVICE + "ClientStream")
        expect(call((pattern(5000) for _ in range(200)), timeout=20), b"1000000", "sum")

    def server_stream():
        call = peer.unary_stream(SERVICE + "ServerStream")
        got = list(call(b"500 3000", timeout=20))
        expect(got, [str(number).encode().ljust(3000, b".") for number in range(500)], "stream")

    def bidirectional():
        waits = threading.Semaphore(1)

        def ping():
            for number in range(200):
                # Each is sent when the one before has come back.
                waits.acquire()
                yield str(number).encode()

        call = peer.stream_stream(SERVICE + "Bidirectional")
        got = []
        for answer in call(ping(), timeout=20):
            got.append(answer)
            waits.release()
        expect(got, [str(number).encode() for number in range(200)], "conversation")

    def deadline():
        started = time.monotonic()
        error = failure(one("Hang"), b"deadline", timeout=0.5)
        expect(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
        taken = time.monotonic() - started
        if not 0.4 < taken < 10:
            raise AssertionError(f"the deadline of 0.5 s took {taken} s")

    def deadline_travels():
        left = float(one("Remaining")(b"", timeout=30))
        if not 10 < left < 30.1:
            raise AssertionError(f"{left} s left of 30")

    def cancellation():
        call = one("Hang").future(b"cancel", timeout=20)
        time.sleep(0.2)
        call.cancel()
        stream = peer.unary_stream(SERVICE + "Ticks")(b"cancel", timeout=20)
        expect([next(stream) for _ in range(3)], [b"0", b"1", b"2"], "ticks")
        stream.cancel()
        error = failure(lambda: next(stream))
        expect(error.code(), grpc.StatusCode.CANCELLED, "cancellation")

    def large():
        for size in (4_000_000, 20_000_000):
            if one("Unary")(pattern(size), timeout=60) != pattern(size):
                raise AssertionError(f"{size} bytes came back otherwise")

    def health():
        check = peer.unary_unary("/grpc.health.v1.Health/Check")
        expect(check(b"", timeout=10), b"\x08\x01", "health")
        expect(check(b"\x0a\x09peer.Echo", timeout=10), b"\x08\x01", "health")
        error = failure(check, b"\x0a\x01x", timeout=10)
        expect(error.code(), grpc.StatusCode.NOT_FOUND, "health")

    def statuses():
        for code in grpc.StatusCode:
            if code is grpc.StatusCode.OK:
                continue
            text = f"{code.name}: 100 % \u00e4\n"
            error = failure(one("Fail"), f"{code.name} {text}".encode(), timeout=10)
            expect((error.code(), error.details()), (code, text), "status")
            details = dict(error.trailing_metadata()).get("grpc-status-details-bin")
            expect(details, b"\x08\x05details\x00\xff", "details")
        error = failure(one("Missing"), b"", timeout=10)
        expect(error.code(), grpc.StatusCode.UNIMPLEMENTED, "status")

    def parallel():
        calls = [one("Unary").future(pattern(1000), timeout=30) for _ in range(300)]
        for call in calls:
            expect(call.result(), pattern(1000), "echo")

    for test in (
        unary,
        metadata,
        client_stream,
        server_stream,
        bidirectional,
        deadline,
        deadline_travels,
        cancellation,
        large,
        health,
        statuses,
        parallel,
    ):
        test()
        print(test.__name__, flush=True)


def load(address, seconds, channels, tls):
    end = time.monotonic() + seconds
    errors, counts = [], []

    def work(number):
        peer = channel(address, tls, number)
        unary = peer.unary_unary(SERVICE + "Unary")
        stream = peer.stream_stream(SERVICE + "Bidirectional")
        count = 0
        try:
            while time.monotonic() < end:
                for size in (10, 1000, 40000):
                    expect(unary(pattern(size), timeout=20), pattern(size), "echo")
                got = list(stream((pattern(100) for _ in range(20)), timeout=20))
                expect(got, [pattern(100)] * 20, "conversation")
                count += 4
        except Exception as error:
            errors.append(f"channel {number} after {count} calls: {error}")
        counts.append(count)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(channels)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{sum(counts)} calls, {len(errors)} errors")
    if errors:
        sys.exit("\n".join(errors))


def main(command, *args):
    if command == "serve":
        serve(args)
    elif command == "check":
        check(args[0], args[1:])
    elif command == "load":
        load(args[0], float(args[1]), int(args[2]), args[3:])
    elif command == "status":
        try:
            channel(args[0], args[2:]).unary_unary(args[1])(b"", timeout=10)
            print("OK\n")
        except grpc.RpcError as error:
            print(error.code().name)
            print(error.details())


main(*sys.argv[1:])
