"""A client that goes through cases.json: clients.py KIND URL BEARER CASES, with one of the kinds below. It prints what it got
as a line of JSON for each case. Over TLS it trusts the authorities in the file that INTEROP_CA names."""

import gzip
import hashlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
from urllib.parse import urlsplit

PIECE = 10000
DUPLEX_KINDS = ("h2",)
CA = os.environ.get("INTEROP_CA")


def pattern(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def body_of(case):
    body = pattern(case["body"]["size"])
    return gzip.compress(body, mtime=0) if case["body"].get("compressed") else body


def pieces_of(body):
    return [body[at:at + PIECE] for at in range(0, len(body), PIECE)]


def fields_of(case, bearer):
    fields = [("Authorization", f"Bearer {bearer}"), ("X-Case", case["name"])]
    return fields + [(name, "v" * value if isinstance(value, int) else value) for name, value in case.get("fields", [])]


class Httpx:
    def __init__(self, url, is_http2):
        import httpx

        self.url = url
        trusted = ssl.create_default_context(cafile=CA)
        self.client = httpx.Client(http1=not is_http2, http2=is_http2, timeout=20, trust_env=False, verify=trusted)

    def exchange(self, case, fields):
        content = None
        if "body" in case:
            content = iter(pieces_of(body_of(case))) if case["body"].get("streamed") else body_of(case)
        url = self.url + case["path"]
        with self.client.stream(case["method"], url, headers=fields, content=content) as response:
            body = b"".join(response.iter_raw())
            got = response.http_version, response.status_code, list(response.headers.multi_items()), body, []
        # What the server has set would be sent with the next, over TLS more of it.
        self.client.cookies.clear()
        return got


class Curl:
    def __init__(self, url, version):
        self.url, self.version = url, version

    def exchange(self, case, fields):
        with tempfile.TemporaryDirectory() as folder:
            command = ["curl", "-sS", "--globoff", "--path-as-is", "--max-time", "20", self.version, "-D", f"{folder}/head",
                       "-o", f"{folder}/body", "-w", "%{http_version}"]
            command += ["--cacert", CA] if CA else []
            command += ["-I"] if case["method"] == "HEAD" else ["-X", case["method"]]
            for name, value in fields:
                command += ["-H", f"{name}: {value}"]
            given = None
            if "body" in case:
                is_streamed = case["body"].get("streamed")
                command += ["-T", "-"] if is_streamed else ["--data-binary", "@-"]
                given = body_of(case)
            done = subprocess.run([*command, self.url + case["path"]], input=given, capture_output=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{case['name']}: {done.stderr}")
            with open(f"{folder}/head", encoding="latin-1") as file:
                heads = [head for head in file.read().split("\n\n") if head]
            try:
                with open(f"{folder}/body", "rb") as file:
                    body = b"" if case["method"] == "HEAD" else file.read()
            except FileNotFoundError:
                body = b""
        # Interim answers come first, trailers last.
        at = next(at for at, head in enumerate(heads) if not head.startswith(("HTTP/1.1 1", "HTTP/2 1")))
        status, *lines = heads[at].splitlines()
        parsed = [tuple(part.strip() for part in line.split(":", 1)) for line in lines]
        trailers = [tuple(part.strip() for part in line.split(":", 1)) for head in heads[at + 1:] for line in head.splitlines()]
        return f"HTTP/{done.stdout.decode()}", int(status.split()[1]), parsed, body, trailers


class RawH2:
    """One connection for all cases, by the bare protocol library."""

    def __init__(self, url):
        import h2.config
        import h2.connection
        import h2.events

        self.events, self.url = h2.events, urlsplit(url)
        self.socket = socket.create_connection((self.url.hostname, self.url.port), 20)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.url.scheme == "https":
            context = ssl.create_default_context(cafile=CA)
            context.set_alpn_protocols(["h2"])
            self.socket = context.wrap_socket(self.socket, server_hostname=self.url.hostname)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        self.socket.sendall(self.h2.data_to_send())

    def receive(self, stream, got):
        data = self.socket.recv(65536)
        if not data:
            raise RuntimeError("the connection has ended")
        for event in self.h2.receive_data(data):
            if isinstance(event, self.events.DataReceived):
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, self.events.ResponseReceived):
                got["fields"] = event.headers
            if isinstance(event, self.events.DataReceived):
                got["body"] += event.data
            if isinstance(event, self.events.TrailersReceived):
                got["trailers"] = event.headers
            if isinstance(event, self.events.StreamEnded):
                got["ended"] = True
            if isinstance(event, self.events.StreamReset):
                raise RuntimeError(f"reset: {event.error_code}")
        self.flush()

    def send(self, stream, data, got):
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(data))
            if room == 0:
                self.receive(stream, got)
                continue
            self.h2.send_data(stream, data[:room])
            self.flush()
            data = data[room:]

    def exchange(self, case, fields):
        got = {"fields": [], "body": bytearray(), "trailers": [], "ended": False}
        stream = self.h2.get_next_available_stream_id()
        fields = [(name.lower(), value) for name, value in fields]
        body = body_of(case) if "body" in case else None
        if body is not None and not case["body"].get("streamed"):
            fields.append(("content-length", str(len(body))))
        pseudo = [(":method", case["method"]), (":scheme", self.url.scheme), (":authority", self.url.netloc),
                  (":path", self.url.path + case["path"])]
        self.h2.send_headers(stream, pseudo + fields, end_stream=body is None)
        self.flush()
        if body is not None:
            sent = 0
            for piece in pieces_of(body):
                self.send(stream, piece, got)
                sent += len(piece)
                # Each piece comes back before the next is sent.
                while case["body"].get("duplex") and len(got["body"]) < sent:
                    self.receive(stream, got)
            self.h2.end_stream(stream)
            self.flush()
        while not got["ended"]:
            self.receive(stream, got)
        status = int(dict(got["fields"])[":status"])
        answered = [field for field in got["fields"] if not field[0].startswith(":")]
        return "HTTP/2", status, answered, bytes(got["body"]), got["trailers"]


def client(kind, url):
    if kind == "curl":
        return Curl(url, "--http1.1")
    if kind == "curl-h2":
        return Curl(url, "--http2" if CA else "--http2-prior-knowledge")
    if kind == "h2":
        return RawH2(url)
    return Httpx(url, is_http2={"httpx": False, "httpx-h2": True}[kind])


def main(kind, url, bearer, cases):
    one = client(kind, url)
    with open(cases, encoding="utf-8") as file:
        cases = json.load(file)
    for case in cases:
        if case.get("body", {}).get("duplex") and kind not in DUPLEX_KINDS:
            continue
        version, status, fields, body, trailers = one.exchange(case, fields_of(case, bearer))
        print(json.dumps({
            "case": case["name"], "version": version, "status": status, "size": len(body),
            "fields": [[name.lower(), value] for name, value in fields],
            "sha256": hashlib.sha256(body).hexdigest(), "trailers": [[name.lower(), value] for name, value in trailers],
        }), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
