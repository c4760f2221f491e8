"""Calls of all four kinds, or of one that is refused: grpc_client.py HOST:PORT BEARER [METHOD]. It prints what came of each as a
line of JSON. Over TLS if INTEROP_CA names a file of authorities."""

import hashlib
import json
import os
import queue
import sys

import grpc

SERVICE = "/shop.Orders/"


def pattern(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def shown(metadata):
    return [[key, value.hex() if isinstance(value, bytes) else value] for key, value in metadata or ()]


def tell(name, messages, call):
    """What a client sees of a call: messages, metadata before and after, status."""
    body = b"".join(messages)
    print(json.dumps({
        "call": name, "messages": len(messages), "size": len(body), "sha256": hashlib.sha256(body).hexdigest(),
        "before": shown(call.initial_metadata()), "after": shown(call.trailing_metadata()),
        "status": call.code().name, "details": call.details(),
    }), flush=True)


def collected(call):
    messages = []
    try:
        for message in call:
            messages.append(message)
    except grpc.RpcError:
        pass
    return messages


def unary(channel, method, message, **options):
    call = channel.unary_unary(SERVICE + method).future(message, **options)
    try:
        return [call.result()], call
    except grpc.RpcError:
        return [], call


def go(channel, metadata):
    given = {"metadata": metadata + (("x-back", "one"), ("x-back", "two"), ("x-back-bin", b"\x00\x01\xfe")), "timeout": 20}
    for name, size in (("empty", 0), ("small", 11), ("large", 8 << 20)):
        tell(f"one_one {name}", *unary(channel, "OneOne", pattern(size), **given))
    call = channel.stream_unary(SERVICE + "ManyOne").future(iter([pattern(9000)] * 500), **given)
    tell("many_one", [call.result()], call)
    call = channel.unary_stream(SERVICE + "OneMany")(pattern(2_000_000), **given)
    tell("one_many", collected(call), call)
    # Each message comes back before the next is sent.
    sent = queue.Queue()
    call = channel.stream_stream(SERVICE + "ManyMany")(iter(sent.get, None), **given)
    messages = []
    for at in range(100):
        sent.put(pattern(1000 + at))
        messages.append(next(call))
    sent.put(None)
    messages += collected(call)
    tell("many_many", messages, call)
    tell("fail", *unary(channel, "Fail", b"x", **given))
    call = channel.unary_stream(SERVICE + "FailLate")(b"x", **given)
    tell("fail_late", collected(call), call)
    tell("no_such_method", *unary(channel, "NoSuchMethod", b"x", **given))
    tell("deadline", *unary(channel, "Hang", b"x", metadata=metadata, timeout=0.5))
    call = channel.unary_unary(SERVICE + "Hang").future(b"x", **given)
    call.cancel()
    tell("cancelled", [], call)


def main(address, bearer, method=None):
    # Its own name for the server: behind a gateway it would be another.
    options = [("grpc.max_receive_message_length", -1), ("grpc.default_authority", "shop.example"), ("grpc.enable_retries", 0)]
    if ca := os.environ.get("INTEROP_CA"):
        with open(ca, "rb") as file:
            trusted = grpc.ssl_channel_credentials(file.read())
        opened = grpc.secure_channel(address, trusted, options)
    else:
        opened = grpc.insecure_channel(address, options)
    with opened as channel:
        metadata = (("authorization", f"Bearer {bearer}"),)
        if method is None:
            go(channel, metadata)
            return
        call = channel.unary_unary(method).future(b"x", metadata=metadata, timeout=20)
        try:
            messages = [call.result()]
        except grpc.RpcError:
            messages = []
        tell("refused", messages, call)


if __name__ == "__main__":
    main(*sys.argv[1:])
