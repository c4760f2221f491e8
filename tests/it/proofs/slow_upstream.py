"""The upstream of clients that stand still, a process of its own: it reads each request whole, and answers with 12 MiB where its path ends
with `large`. Prints its port."""

import asyncio
import socket

PIECE, PIECES = b"x" * 65536, 12 * 16
# What the kernel holds of a response that is not taken: what a thousand of them copy is not the gateway's.
BUFFER = 64 * 1024


async def serve(reader, writer):
    try:
        while True:
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            length = next((line[15:] for line in lines if line.startswith(b"content-length:")), b"0")
            await reader.readexactly(int(length))
            if not lines[0].split()[1].endswith(b"large"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlive")
                continue
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(PIECE) * PIECES))
            for _ in range(PIECES):
                writer.write(PIECE)
                await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    listener.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(serve, sock=listener, backlog=1024)
    print(listener.getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
