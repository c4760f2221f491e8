"""Two calls in both directions on one connection, each by a key of its own: grpc_talk.py HOST:PORT BEARER OTHER. It prints a
line once both have had an answer, and one when the first has ended; then the other goes on to its own end."""

import json
import sys
import time

import grpc

METHOD = "/shop.Orders/Talk"


class Talk:
    """A call that sends a message every few milliseconds, until it is told to end."""

    def __init__(self, channel, name, bearer):
        self.name, self.going, self.answers = name, True, 0
        metadata = (("authorization", f"Bearer {bearer}"),)
        self.call = channel.stream_stream(METHOD)(self.messages(), metadata=metadata, timeout=60)

    def messages(self):
        while self.going:
            yield self.name.encode()
            time.sleep(0.02)

    def listen(self, count=None):
        try:
            for _ in self.call:
                self.answers += 1
                if self.answers == count:
                    return
        except grpc.RpcError:
            pass

    def told(self):
        return json.dumps({"call": self.name, "status": self.call.code().name, "answers": self.answers})


def main(address, bearer, other):
    with grpc.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
        first, second = Talk(channel, "first", bearer), Talk(channel, "second", other)
        first.listen(3)
        second.listen(3)
        print(json.dumps({"call": "both"}), flush=True)
        first.listen()
        print(first.told(), flush=True)
        second.listen(second.answers + 10)
        second.going = False
        second.listen()
        print(second.told(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
