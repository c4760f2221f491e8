"""Calls of all four kinds, by the library that most use: grpc_server.py RECORDS. It prints its port, and appends a line of JSON
for each call to the file RECORDS. Messages are bare bytes."""

import json
import sys
import time
from concurrent import futures

import grpc


def same(message):
    return message


class Calls:
    """Each answers what it was sent; first it sends back the metadata that begin with x-."""

    def begin(self, name, context):
        metadata = [(key, value) for key, value in context.invocation_metadata()]
        told = [[key, value.hex() if isinstance(value, bytes) else value] for key, value in metadata]
        with open(sys.argv[1], "a", encoding="utf-8") as file:
            remaining = context.time_remaining()
            file.write(json.dumps({"call": name, "metadata": told, "has_deadline": remaining is not None}) + "\n")
        back = tuple((key, value) for key, value in metadata if key.startswith("x-back"))
        context.send_initial_metadata(back)
        context.set_trailing_metadata((("x-sum", "7"), ("x-raw-bin", b"\x00\xff"), ("x-sum", "8")))

    def one_one(self, request, context):
        self.begin("one_one", context)
        return request

    def many_one(self, requests, context):
        self.begin("many_one", context)
        return b"".join(requests)

    def one_many(self, request, context):
        self.begin("one_many", context)
        for at in range(0, len(request), 1000):
            yield request[at:at + 1000]

    def many_many(self, requests, context):
        self.begin("many_many", context)
        yield from requests

    def talk(self, requests, context):
        """Notes each message besides, and the end of whoever sent the last."""
        self.begin("talk", context)
        message = b""
        try:
            for message in requests:
                self.note("talk", message)
                yield message
        finally:
            self.note("talk ended", message)

    def note(self, what, message):
        with open(sys.argv[1], "a", encoding="utf-8") as file:
            file.write(json.dumps({"call": what, "message": message.decode()}) + "\n")

    def fail(self, request, context):
        self.begin("fail", context)
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not so: 100 % \u00fc")

    def fail_late(self, request, context):
        self.begin("fail_late", context)
        yield request
        context.abort(grpc.StatusCode.DATA_LOSS, "late")

    def hang(self, request, context):
        self.begin("hang", context)
        while context.is_active():
            time.sleep(0.01)
        with open(sys.argv[1], "a", encoding="utf-8") as file:
            file.write(json.dumps({"call": "hang ended"}) + "\n")
        return request


def main():
    calls = Calls()
    handlers = {
        "OneOne": grpc.unary_unary_rpc_method_handler(calls.one_one),
        "ManyOne": grpc.stream_unary_rpc_method_handler(calls.many_one),
        "OneMany": grpc.unary_stream_rpc_method_handler(calls.one_many),
        "ManyMany": grpc.stream_stream_rpc_method_handler(calls.many_many),
        "Talk": grpc.stream_stream_rpc_method_handler(calls.talk),
        "Fail": grpc.unary_unary_rpc_method_handler(calls.fail),
        "FailLate": grpc.unary_stream_rpc_method_handler(calls.fail_late),
        "Hang": grpc.unary_unary_rpc_method_handler(calls.hang),
    }
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(16), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Orders", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
