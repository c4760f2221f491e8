"""A server that tells what it was sent and answers in every way that HTTP has: servers.py KIND RECORDS, with one of the
kinds below. It prints its port, and appends a line of JSON for each request to the file RECORDS."""

import asyncio
import gzip
import hashlib
import json
import os
import socket
import sys

RECORDS = os.environ.get("INTEROP_RECORDS") or sys.argv[2]
PIECE = 65536
LARGE = 1 << 20
FIELDS = [
    ("X-Many", "one"), ("X-Many", "two"), ("X-Many", "one"), ("Set-Cookie", "a=1; Path=/"), ("Set-Cookie", "b=2; Secure"),
    ("Cache-Control", "private, max-age=0"), ("X-Odd", "a,b;c=\"d e\" 'f'"), ("Link", "<a>; rel=next, <b>; rel=prev"),
]


def pattern(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def action_of(path):
    return path.split("?")[0].split("/orders/", 1)[-1].split("/")


def record(method, target, fields, body):
    fields = [[name.lower(), value] for name, value in fields]
    case = next((value for name, value in fields if name == "x-case"), None)
    line = {"case": case, "method": method, "target": target, "fields": fields, "size": len(body),
            "sha256": hashlib.sha256(body).hexdigest()}
    with open(RECORDS, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def answer(method, target, fields, body):
    """Status, fields and body; a list of pieces is a body without a length."""
    action = action_of(target)
    sought = {name.lower(): value for name, value in fields}
    if action[0] == "echo":
        return 200, [("Content-Type", sought.get("content-type", "text/plain"))], body
    if action[0] == "fields":
        return 200, [("X-Large", "v" * 8000), ("X-Large", "w" * 2000)], b"fields"
    if action[0] == "gzip":
        return 200, [("Content-Encoding", "gzip"), ("Vary", "Accept-Encoding")], gzip.compress(pattern(LARGE), mtime=0)
    if action[0] == "stream":
        return 200, [("Content-Type", "application/x-ndjson")], [pattern(LARGE)[at:at + PIECE] for at in range(0, LARGE, PIECE)]
    if action[0] == "large":
        return part_of(pattern(LARGE), sought.get("range"))
    status = int(action[1])
    more = {201: [("Location", "/v1/new")], 302: [("Location", "https://elsewhere.example/a?b=c")], 304: [("ETag", '"x"')],
            503: [("Retry-After", "7")]}
    return status, more.get(status, []), b"" if status in (204, 304) else b"status %d" % status


def part_of(body, wanted):
    fields = [("Accept-Ranges", "bytes"), ("ETag", '"x"')]
    if not wanted:
        return 200, fields, body
    first, last = wanted.removeprefix("bytes=").split("-")
    first, last = int(first), int(last or len(body) - 1)
    if first >= len(body):
        return 416, fields + [("Content-Range", f"bytes */{len(body)}")], b"beyond"
    return 206, fields + [("Content-Range", f"bytes {first}-{last}/{len(body)}")], body[first:last + 1]


def length_of(status, body):
    return [] if isinstance(body, list) or status in (204, 304) else [("Content-Length", str(len(body)))]


async def websocket(scope, receive, send):
    """What ws.py does."""
    await receive()
    wanted = [name for name in scope["subprotocols"] if name == "v1.shop"]
    await send({"type": "websocket.accept", "subprotocol": wanted[0] if wanted else None})
    while (event := await receive())["type"] == "websocket.receive":
        message = event.get("bytes") if event.get("text") is None else event["text"]
        if message == "end":
            await send({"type": "websocket.close", "code": 4001, "reason": "as asked"})
            return
        if message == "break":
            raise RuntimeError("as asked")
        if message == "who":
            target = (scope["raw_path"] + b"?" + scope["query_string"]).decode()
            has_key = any(name == b"authorization" for name, _ in scope["headers"])
            message = json.dumps({"path": target, "has_key": has_key, "version": scope["http_version"]})
        await send({"type": "websocket.send", "text" if isinstance(message, str) else "bytes": message})


async def asgi(scope, receive, send):
    if scope["type"] == "websocket":
        await websocket(scope, receive, send)
        return
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    query = scope["query_string"].decode()
    target = scope["raw_path"].decode() + ("?" + query if query else "")

    async def start(status, fields):
        encoded = [(name.lower().encode(), value.encode()) for name, value in fields]
        await send({"type": "http.response.start", "status": status, "headers": encoded})

    is_duplex = action_of(target)[0] == "duplex"
    if is_duplex:
        await start(200, FIELDS)
    body, is_more = b"", True
    while is_more:
        event = await receive()
        body += event.get("body", b"")
        is_more = event.get("more_body", False)
        if is_duplex and event.get("body"):
            await send({"type": "http.response.body", "body": event["body"], "more_body": True})
    record(scope["method"], target, fields, body)
    if is_duplex:
        await send({"type": "http.response.body", "body": b""})
        return
    status, more, answered = answer(scope["method"], target, fields, body)
    await start(status, FIELDS + more + length_of(status, answered))
    if scope["method"] != "HEAD" and isinstance(answered, list):
        for piece in answered:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        answered = b""
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answered})


def wsgi(environ, start_response):
    names = {"CONTENT_TYPE": "content-type", "CONTENT_LENGTH": "content-length"}
    fields = [(name[5:].replace("_", "-"), value) for name, value in environ.items() if name.startswith("HTTP_")]
    fields += [(names[name], value) for name, value in environ.items() if name in names and value]
    body = environ["wsgi.input"].read()
    record(environ["REQUEST_METHOD"], environ["RAW_URI"], fields, body)
    status, more, answered = answer(environ["REQUEST_METHOD"], environ["RAW_URI"], fields, body)
    start_response(f"{status} Said", FIELDS + more + length_of(status, answered))
    if environ["REQUEST_METHOD"] == "HEAD":
        return []
    return answered if isinstance(answered, list) else [answered]


async def aiohttp_handler(request):
    from aiohttp import web

    if action_of(request.raw_path)[0] == "duplex":
        response = web.StreamResponse(headers=FIELDS)
        await response.prepare(request)
        body = b""
        async for piece in request.content.iter_any():
            body += piece
            await response.write(piece)
    else:
        body = await request.read()
    fields = [(name.decode(), value.decode("latin-1")) for name, value in request.raw_headers]
    record(request.method, request.raw_path, fields, body)
    if action_of(request.raw_path)[0] == "duplex":
        return response
    status, more, answered = answer(request.method, request.raw_path, fields, body)
    if not isinstance(answered, list):
        return web.Response(status=status, headers=FIELDS + more, body=answered)
    response = web.StreamResponse(status=status, headers=FIELDS + more)
    await response.prepare(request)
    for piece in answered:
        await response.write(piece)
    return response


async def serve_aiohttp(listener):
    from aiohttp import web

    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{tail:.*}", aiohttp_handler)
    runner = web.AppRunner(app, auto_decompress=False)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    await asyncio.Event().wait()


def serve(kind, listener):
    if kind == "gunicorn":
        os.environ["INTEROP_RECORDS"] = RECORDS
        program = os.path.join(os.path.dirname(sys.executable), "gunicorn")
        folder = os.path.dirname(os.path.abspath(__file__))
        os.set_inheritable(listener.fileno(), True)
        os.execv(program, [program, "--bind", f"fd://{listener.fileno()}", "--chdir", folder, "--worker-class", "gthread",
                           "--threads", "4", "--keep-alive", "60", "--log-level", "warning", "servers:wsgi"])
    if kind == "uvicorn":
        import uvicorn

        config = uvicorn.Config(asgi, log_level="warning", timeout_keep_alive=60, proxy_headers=False)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
    if kind == "hypercorn":
        import hypercorn.asyncio
        import hypercorn.config

        config = hypercorn.config.Config()
        # It would tell which protocol it was asked in.
        config.include_server_header = False
        config.bind = [f"fd://{listener.fileno()}"]
        asyncio.run(hypercorn.asyncio.serve(asgi, config))
    if kind == "aiohttp":
        asyncio.run(serve_aiohttp(listener))


if __name__ == "__main__":
    socket_ = socket.socket()
    socket_.bind(("127.0.0.1", 0))
    socket_.listen(256)
    print(socket_.getsockname()[1], flush=True)
    serve(sys.argv[1], socket_)
