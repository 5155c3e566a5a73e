# SPDX-License-Identifier: Apache-2.0
"""One GET of a node's /metrics, and the checks of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_lb import __version__
from vllm_lb.addresses import bracketed, is_ip
from vllm_lb.causes import ScrapeCause
from vllm_lb.text import printable
from vllm_lb.vllm_metrics import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Callable

    import requests

    from vllm_lb.settings import Node, Scrape

OK, UNAUTHORIZED, FORBIDDEN = 200, 401, 403
# vLLM's Rust front end answers in OpenMetrics, whatever it is asked for.
READ_TYPES = ("text/plain", "application/openmetrics-text")
CHUNK_BYTES = 65536


def fetch_metrics(
    node: Node, address: str, settings: Scrape, api_key: str | None, on_answer: Callable[[], None]
) -> bytes:
    """GET the metrics of a node at the address that is published; call `on_answer` when it begins to answer.

    Raises:
        UnreadableError: the answer cannot be metrics.
        OSError, requests.RequestException, urllib3.exceptions.HTTPError: a fault of the network.
    """
    headers = {
        "Accept": "text/plain;version=0.0.4",
        "Accept-Encoding": "identity",  # a compressed answer could unpack to any size
        "Connection": "close",
        "Host": f"{bracketed(node.host)}:{node.port}",
        "User-Agent": f"vllm-nginx-lb/{__version__}",
    }
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    with (
        session_for(node.host) as session,
        session.get(
            f"{node.scheme}://{bracketed(address)}:{node.port}{settings.path}",
            headers=headers,
            timeout=settings.timeout_seconds,
            allow_redirects=False,
            stream=True,
            verify=settings.ca_file or True,
        ) as response,
    ):
        on_answer()
        check_headers(response)
        return body_of(response, settings.max_bytes)


def session_for(host: str) -> requests.Session:
    """Make a session that ignores the environment's proxies and .netrc, and checks certificates against `host`."""
    import requests

    session = requests.Session()
    session.trust_env = False
    if not is_ip(host):  # the connection goes to an address; TLS must be told the name
        adapter = requests.adapters.HTTPAdapter()
        adapter.init_poolmanager(1, 1, server_hostname=host.rstrip("."))
        session.mount("https://", adapter)
    return session


def check_headers(response: requests.Response) -> None:
    """Refuse an answer whose status or headers show that it cannot be metrics."""
    status, content_type = response.status_code, response.headers.get("Content-Type", "none")
    if status in (UNAUTHORIZED, FORBIDDEN):
        raise UnreadableError(ScrapeCause.UNAUTHORIZED, f"HTTP {status} (see scrape.api_key_file)")
    if status != OK:
        raise UnreadableError(ScrapeCause.HTTP_STATUS, f"HTTP {status}")
    if not content_type.lower().startswith(READ_TYPES):
        problem = f"content type {printable(content_type)} instead of text/plain"
        raise UnreadableError(ScrapeCause.CONTENT_TYPE, problem)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UnreadableError(ScrapeCause.COMPRESSED, "compressed although asked not to be")


def body_of(response: requests.Response, max_bytes: int) -> bytes:
    """Read a body as a whole, up to a limit."""
    body = bytearray()
    # Not raw.stream(): in urllib3 1.26 (Debian 12) it reads a line of any length for the size of a chunk.
    while chunk := response.raw.read(CHUNK_BYTES, decode_content=False):
        body += chunk
        if len(body) > max_bytes:
            raise UnreadableError(ScrapeCause.TOO_LARGE, f"more than {max_bytes} bytes")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and len(body) != int(length):
        raise broken_off()
    return bytes(body)


def broken_off() -> UnreadableError:
    """Return the error of an answer that ends too early."""
    return UnreadableError(ScrapeCause.BROKEN_OFF, "the answer broke off")
