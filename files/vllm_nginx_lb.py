#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Keep the weights of an nginx upstream in step with the load of its vLLM nodes.

One run is one tick: `collect` scrapes every node's /metrics and decides (unprivileged), `apply` publishes the weights
and proves them live, or rolls back (root). The package vllm_lb beside this file has the program.
"""

import sys

if __name__ == "__main__":
    sys.dont_write_bytecode = True  # the installer compiles; a run leaves no __pycache__
    if sys.argv[1:] == ["--version"]:
        from vllm_lb import __version__

        sys.exit(print(f"vllm-nginx-lb {__version__}"))
    from vllm_lb.commands import main

    sys.exit(main(description=(__doc__ or "").splitlines()[0]))
