# SPDX-License-Identifier: Apache-2.0
"""The published file: an upstream for nginx from a template, or weights.json for the Lua in nginx."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_lb.causes import FailureCause
from vllm_lb.data import data
from vllm_lb.errors import EXIT_USAGE, FailureError
from vllm_lb.published import Record, generation_for, pools_to_publish, record_for
from vllm_lb.text import printable, sha256

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm_lb.plan import PoolPlan
    from vllm_lb.settings import Config

HEAD = "# Written by vllm-nginx-lb; changes made here are lost.\n"
GENERATION = 'map "" $vllm_nginx_lb_generation { default "%s"; }\n'


@data()
class Rendered:
    """A file that may be published."""

    content: str
    record: Record


@data()
class Source:
    """All inputs of a published file."""

    pools: list[dict[str, Any]]
    template: str  # empty for weights.json

    @property
    def generation(self) -> str:
        """The generation of the file."""
        return generation_for(self.pools, self.template)

    def render(self) -> Rendered:
        """Return the file.

        Raises:
            FailureError: the template is faulty (exit code 2).
        """
        content = upstream(self) if self.template else weights(self)
        return Rendered(content, record_for(self.pools, self.template, content))


def source_of(config: Config, pools: Sequence[PoolPlan]) -> Source:
    """Return the inputs of the file that a plan asks for."""
    template = "" if config.nginx.balancer == "work" else load_template(config)
    return Source(pools_to_publish(config, pools), template)


def load_template(config: Config) -> str:
    """Return the upstream template: the operator's, or that of this package."""
    if not config.nginx.upstream_template:
        return bundled("upstream.conf.j2")
    try:
        return Path(config.nginx.upstream_template).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"nginx.upstream_template: {error}: expected a readable file"
        raise FailureError(FailureCause.TEMPLATE_FAULTY, problem, EXIT_USAGE) from error


def bundled(name: str) -> str:
    """Return a file of this package, which may lie in a .pyz; pkgutil does the same with many more imports."""
    return str(__loader__.get_data(str(Path(__file__).with_name(name))).decode())  # type: ignore[name-defined]


def upstream(source: Source) -> str:
    """Return an upstream file: a comment, the generation, and the template's output."""
    import jinja2

    environment = jinja2.Environment(  # noqa: S701 - nginx configuration, not HTML
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    try:
        body = environment.from_string(source.template).render(pools=source.pools)
        body.encode()
    except Exception as error:  # the operator's template can raise anything
        line = f" line {error.lineno}:" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        problem = f"nginx.upstream_template:{line} {printable(str(error))}"
        raise FailureError(FailureCause.TEMPLATE_FAULTY, problem, EXIT_USAGE) from error
    return HEAD + GENERATION % source.generation + body


def weights(source: Source) -> str:
    """Return weights.json. Its sha256 is that of the rest as json.dumps writes it."""
    content = {
        "version": 1,
        "generation": source.generation,
        "pools": [
            {
                "name": pool["name"],
                "models": pool["models"],
                "nodes": [server | {"address": server["address"].strip("[]")} for server in pool["servers"]],
            }
            for pool in source.pools
        ],
    }
    return json.dumps({"sha256": sha256(json.dumps(content)), **content}, indent=1) + "\n"


def difference(before: str, after: str) -> list[str]:
    """Return what differs between two files, as a unified diff."""
    import difflib

    return list(difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm=""))
