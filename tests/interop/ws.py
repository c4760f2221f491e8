"""WebSocket by the library that most use: `ws.py server` prints its port and sends back what it is sent; `ws.py client URL BEARER`
goes through everything that a connection may carry, and prints what came of each as a line of JSON. Over TLS it trusts the
authorities in the file that INTEROP_CA names."""

import asyncio
import hashlib
import json
import os
import ssl
import sys

from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

PROTOCOLS = ["v2.shop", "v1.shop"]


def pattern(size):
    return (bytes(range(251)) * (size // 251 + 1))[:size]


async def echo(connection):
    async for message in connection:
        if message == "end":
            await connection.close(4001, "as asked")
            return
        if message == "break":
            connection.transport.abort()
            return
        if message == "who":
            request = connection.request
            names = sorted({name.lower() for name in request.headers.keys()})
            await connection.send(json.dumps({"path": request.path, "has_key": "authorization" in names}))
            continue
        await connection.send(message)


async def server():
    async with serve(echo, "127.0.0.1", 0, subprotocols=["v1.shop"], max_size=1 << 24, ping_interval=None) as listening:
        print(listening.sockets[0].getsockname()[1], flush=True)
        await asyncio.Event().wait()


def tell(case, **told):
    print(json.dumps({"case": case, **told}), flush=True)


def told_of(message):
    data = message.encode() if isinstance(message, str) else message
    return {"is_text": isinstance(message, str), "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


async def go(opened):
    async with opened() as connection:
        tell("opened", subprotocol=connection.subprotocol, extensions=connection.response.headers.get("Sec-WebSocket-Extensions"))
        await connection.send("who")
        tell("who", **json.loads(await connection.recv()))
        for case, message in (("text", "gr\u00fc\u00df"), ("bytes", b"\x00\xff"), ("empty", b""), ("large", pattern(8 << 20))):
            await connection.send(message)
            tell(case, **told_of(await connection.recv()))
        await connection.send(iter(["in ", "three ", "parts"]))
        tell("parts", **told_of(await connection.recv()))
        await asyncio.wait_for(await connection.ping(b"abc"), 20)
        tell("ping")
        for number in range(1000):
            await connection.send(str(number))
        answers = [await connection.recv() for _ in range(1000)]
        tell("many", in_order=answers == [str(number) for number in range(1000)])
    tell("closed by the client", code=connection.close_code)
    for case in ("end", "break"):
        async with opened() as connection:
            await connection.send(case)
            try:
                await connection.recv()
            except ConnectionClosed as closed:
                tell(case, code=closed.rcvd and closed.rcvd.code, reason=closed.rcvd and closed.rcvd.reason)


async def client(url, bearer):
    def opened():
        fields = {"Authorization": f"Bearer {bearer}"}
        trusted = ssl.create_default_context(cafile=os.environ["INTEROP_CA"]) if url.startswith("wss:") else None
        return connect(url, ssl=trusted, additional_headers=fields, subprotocols=PROTOCOLS, max_size=1 << 24, ping_interval=None, proxy=None)

    try:
        await asyncio.wait_for(go(opened), 60)
    except InvalidStatus as refused:
        tell("refused", status=refused.response.status_code, code=json.loads(refused.response.body)["code"])


asyncio.run(server() if sys.argv[1] == "server" else client(*sys.argv[2:]))
