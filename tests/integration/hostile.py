"""Requests that nobody sends by accident, the ingress's answer to each, and what of each may reach a node.

docs/security.md has them as a table, which a test compares with this file.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOSED = "closed"  # the connection is closed without an answer
BODY = b'{"model": "m"}'
HIDDEN = b"GET /metrics HTTP/1.1\r\nHost: vllm\r\n\r\n"


@dataclass(frozen=True)
class Hostile:
    """A request, byte by byte.

    Attributes:
        group: of the table.
        what: the request, in the table's words.
        sent: its bytes; the client then waits for an answer.
        answers: the allowed statuses of the answer, CLOSED for no answer.
        reaches: the path that a node gets, or None.
        body: the body that a node gets.
        absent: headers that must not reach a node.
        present: headers that must, with these values.
    """

    group: str
    what: str
    sent: bytes
    answers: tuple[str, ...]
    reaches: str | None = None
    body: bytes = b""
    absent: tuple[str, ...] = ()
    present: tuple[tuple[str, str], ...] = ()

    @property
    def row(self) -> str:
        """Return the table's row."""
        answer = " or ".join("the connection is closed" if each == CLOSED else each for each in self.answers)
        reaches = f"`{self.reaches}`" if self.reaches else "nothing"
        if self.absent:
            reaches += f", without {', '.join(f'`{name}`' for name in self.absent)}"
        if self.present:
            reaches += f", with our own {', '.join(f'`{name}`' for name, _ in self.present)}"
        return f"| {self.what} | {answer} | {reaches} |"


def get(path: str, *headers: str, host: str = "localhost", version: str = "HTTP/1.1", method: str = "GET") -> bytes:
    """Return a request without a body."""
    lines = [f"{method} {path} {version}", *([f"Host: {host}"] if host else []), *headers]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


def post(*headers: str, body: bytes = BODY) -> bytes:
    """Return a POST with exactly these headers of its body's length."""
    return get("/v1/completions", *headers, method="POST") + body


CHUNKED = b"e\r\n" + BODY + b"\r\n0\r\n\r\n"
LENGTH = f"Content-Length: {len(BODY)}"

HOSTILE = (
    Hostile("Paths", "`/v1/..;/metrics`", get("/v1/..;/metrics"), ("404",)),
    Hostile("Paths", "`/v1/%2e%2e/metrics`", get("/v1/%2e%2e/metrics"), ("404",)),
    Hostile("Paths", "`/v1/models/../../metrics`", get("/v1/models/../../metrics"), ("404",)),
    Hostile("Paths", "`/v1/models%2f..%2f..%2fmetrics`", get("/v1/models%2f..%2f..%2fmetrics"), ("404",)),
    Hostile("Paths", "`/v1/models/..%252f..%252fmetrics`", get("/v1/models/..%252f..%252fmetrics"), ("404",)),
    Hostile("Paths", "`/../../etc/passwd`", get("/../../etc/passwd"), ("400",)),
    Hostile("Paths", "`/v1\\models`", get("/v1\\models"), ("404",)),
    Hostile("Paths", "`/v1/models;x=1`", get("/v1/models;x=1"), ("404",)),
    Hostile("Paths", "`/v1/models/`", get("/v1/models/"), ("404",)),
    Hostile("Paths", "`/V1/Models`", get("/V1/Models"), ("404",)),
    Hostile("Paths", "`/v1/models%3fx=1`", get("/v1/models%3fx=1"), ("404",)),
    Hostile("Paths", "`/v1/models%0a`", get("/v1/models%0a"), ("404",)),
    Hostile("Paths", "`/v1/models%00`", get("/v1/models%00"), ("400",)),
    Hostile("Paths", "`/v1/models%20HTTP/1.1%0d%0aX:%20y`", get("/v1/models%20HTTP/1.1%0d%0aX:%20y"), ("404",)),
    Hostile("Paths", "`//v1//models`", get("//v1//models"), ("200",), "/v1/models"),
    Hostile("Paths", "`/v1/./models`", get("/v1/./models"), ("200",), "/v1/models"),
    Hostile("Paths", "`/v1/%6dodels`", get("/v1/%6dodels"), ("200",), "/v1/models"),
    Hostile("Paths", "`/v1/models?a=%0d%0aX:1`", get("/v1/models?a=%0d%0aX:1"), ("200",), "/v1/models?a=%0d%0aX:1"),
    Hostile("Paths", "`/v1/models#/../metrics`", get("/v1/models#/../metrics"), ("200",), "/v1/models"),
    *(
        Hostile("Administrative paths", f"`{path}`", get(path), ("404",))
        for path in (
            *(
                "/metrics",
                "/sleep",
                "/wake_up",
                "/is_sleeping",
                "/reset_prefix_cache",
                "/collective_rpc",
                "/server_info",
            ),
            *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/docs", "/openapi.json", "/tokenize", "/version"),
            *("/generation", "/work", "/work/metrics", "/stub_status", "/vllm-nginx-lb/error/400", "/invocations"),
        )
    ),
    Hostile("Names", "`Host` of somebody else", get("/v1/models", host="evil.example"), (CLOSED,)),
    Hostile("Names", "no `Host`", get("/v1/models", host=""), ("400",)),
    Hostile("Names", "two `Host`", get("/v1/models", "Host: evil.example"), ("400",)),
    Hostile("Names", "`Host: localhost/../metrics`", get("/v1/models", host="localhost/../metrics"), ("400",)),
    Hostile(
        "Names", "`Host: localhost@evil.example`", get("/v1/models", host="localhost@evil.example"), (CLOSED, "400")
    ),
    Hostile("Names", "a whole URL of somebody else", get("http://evil.example/v1/models"), (CLOSED,)),
    Hostile(
        *("Names", "a good `Host` with a port", get("/v1/models", host="localhost:1"), ("200",), "/v1/models"),
        present=(("Host", "vllm"),),
    ),
    Hostile("Sizes", "a header of 20 KiB", get("/v1/models", "X: " + "x" * 20480), ("431",)),
    Hostile("Sizes", "100 KiB of headers", get("/v1/models", *(f"X-{i}: {'x' * 1000}" for i in range(100))), ("431",)),
    Hostile("Sizes", "a path of 20 KiB", get("/v1/" + "x" * 20480), ("414",)),
    Hostile("Sizes", "`Content-Length` of 64 GiB", post("Content-Length: 68719476736"), ("413",)),
    Hostile("Sizes", "`Content-Length` beyond numbers", post(f"Content-Length: {'9' * 30}"), ("400",)),
    Hostile(
        "Smuggling", "`Content-Length` and `Transfer-Encoding`", post(LENGTH, "Transfer-Encoding: chunked"), ("400",)
    ),
    Hostile(
        "Smuggling", "the same, in the other order", post("Transfer-Encoding: chunked", "Content-Length: 3"), ("400",)
    ),
    Hostile("Smuggling", "two `Content-Length`", post(LENGTH, "Content-Length: 3"), ("400",)),
    Hostile("Smuggling", "two lengths in one `Content-Length`", post("Content-Length: 14, 14"), ("400",)),
    Hostile("Smuggling", "`Content-Length: +14`", post("Content-Length: +14"), ("400",)),
    Hostile("Smuggling", "`Content-Length: 0xe`", post("Content-Length: 0xe"), ("400",)),
    Hostile("Smuggling", "`Content-Length: -1`", post("Content-Length: -1"), ("400",)),
    Hostile("Smuggling", "`Transfer-Encoding: xchunked`", post("Transfer-Encoding: xchunked"), ("501",)),
    Hostile(
        "Smuggling", "`Transfer-Encoding: chunked, identity`", post("Transfer-Encoding: chunked, identity"), ("501",)
    ),
    Hostile("Smuggling", "two `Transfer-Encoding`", post(*["Transfer-Encoding: chunked"] * 2), ("400",)),
    Hostile("Smuggling", "`Transfer-Encoding : chunked`", post("Transfer-Encoding : chunked", body=HIDDEN), ("400",)),
    Hostile("Smuggling", "a header on two lines", post(LENGTH, "X: a\r\n b"), ("400",)),
    Hostile("Smuggling", "a chunk size that is none", post("Transfer-Encoding: chunked", body=b"zz\r\n\r\n"), ("400",)),
    Hostile("Smuggling", "a NUL in a header", post(LENGTH, "X: a\0b"), ("400",)),
    Hostile("Smuggling", "a bare CR in a header", post(LENGTH, "X: a\rTransfer-Encoding: chunked"), ("400",)),
    Hostile(
        *("Smuggling", "chunks", post("Transfer-Encoding: chunked", body=CHUNKED), ("200",), "/v1/completions", BODY),
        absent=("Transfer-Encoding",),
    ),
    Hostile(
        *("Smuggling", "a request in the body of a GET", get("/v1/models", f"Content-Length: {len(HIDDEN)}") + HIDDEN),
        *(("200",), "/v1/models", HIDDEN),
    ),
    Hostile(
        *("Smuggling", "`Content_Length`, with an underscore", get("/v1/models", "Content_Length: 14"), ("200",)),
        "/v1/models",
        absent=("Content_Length",),
    ),
    Hostile("Methods", "`TRACE`", get("/v1/models", method="TRACE"), ("405",)),
    Hostile("Methods", "`CONNECT`", get("/v1/models", method="CONNECT"), ("400", "405")),
    Hostile("Methods", "`DELETE`", get("/v1/models", method="DELETE"), ("405",)),
    Hostile("Methods", "`PUT`", get("/v1/models", method="PUT"), ("405",)),
    Hostile("Methods", "`FOO`", get("/v1/models", method="FOO"), ("405",)),
    Hostile("Methods", "`get`", get("/v1/models", method="get"), ("400",)),
    Hostile("Versions", "HTTP/1.0", get("/v1/models", version="HTTP/1.0"), ("200",), "/v1/models"),
    Hostile("Versions", "HTTP/1.0 with chunks", post("Transfer-Encoding: chunked").replace(b"/1.1", b"/1.0"), ("400",)),
    Hostile("Versions", "HTTP/0.9", b"GET /v1/models\r\n", (CLOSED,)),
    Hostile("Versions", "HTTP/9.9", get("/v1/models", version="HTTP/9.9"), ("505",)),
    Hostile(
        "Versions",
        "the beginning of HTTP/2, without TLS",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ("400", "405", "505", CLOSED),
    ),
    Hostile("Versions", "a TLS handshake, without TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ("400",)),
    Hostile(
        *("Headers", "a websocket", get("/v1/models", "Connection: Upgrade", "Upgrade: websocket"), ("200",)),
        "/v1/models",
        absent=("Upgrade", "Connection"),
    ),
    Hostile(
        *("Headers", "an upgrade to HTTP/2", get("/v1/models", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c")),
        *(("200",), "/v1/models"),
        absent=("Upgrade", "Connection"),
    ),
    Hostile(
        *("Headers", "`Accept-Encoding: gzip`", get("/v1/models", "Accept-Encoding: gzip"), ("200",), "/v1/models"),
        absent=("Accept-Encoding",),
    ),
    Hostile(
        *(
            "Headers",
            "`Connection: X-Forwarded-For`",
            get("/v1/models", "Connection: close, X-Forwarded-For"),
            ("200",),
        ),
        "/v1/models",
        present=(("X-Forwarded-For", "127.0.0.1"),),
    ),
    Hostile(
        "Headers",
        "forged addresses",
        get(
            "/v1/models",
            "X-Forwarded-For: 9.9.9.9",
            "X-Real-IP: 9.9.9.9",
            "Forwarded: for=9.9.9.9",
            "X-Forwarded-Host: e",
        ),
        ("200",),
        "/v1/models",
        absent=("Forwarded", "X-Forwarded-Host"),
        present=(("X-Forwarded-For", "127.0.0.1"), ("X-Real-IP", "127.0.0.1"), ("X-Forwarded-Proto", "http")),
    ),
    *(
        Hostile("Secrets in the address", f"`{query}`", get(f"/v1/models{query}"), ("400",))
        for query in ("?api_key=sk-1", "?stream=true&access_token=sk-1", "?X-Api-Key=sk-1", "?api%5fkey=sk-1")
    ),
    Hostile(
        "Secrets in the address",
        *("`?max_tokens=5&monkey=1`", get("/v1/models?max_tokens=5&monkey=1"), ("200",)),
        "/v1/models?max_tokens=5&monkey=1",
    ),
    Hostile("Slowness", "headers that never end", b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n", ("408", CLOSED)),
    Hostile("Slowness", "a body that never ends", post("Content-Length: 1000"), ("408", CLOSED)),
    Hostile("Slowness", "chunks that never end", post("Transfer-Encoding: chunked", body=b"e\r\n"), ("408", CLOSED)),
)


def table() -> str:
    """Return the table of docs/security.md."""
    head = "| what is sent | what nginx answers | what reaches a node |\n| --- | --- | --- |\n"
    groups = dict.fromkeys(each.group for each in HOSTILE)
    rows = {group: "\n".join(each.row for each in HOSTILE if each.group == group) for group in groups}
    return "\n".join(f"### {group}\n\n{head}{rows[group]}\n" for group in groups)
