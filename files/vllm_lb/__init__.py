# SPDX-License-Identifier: Apache-2.0
"""vllm-nginx-lb: keep the weights of an nginx upstream in step with the load of its vLLM nodes.

docs/architecture.md lists the modules, lowest first. A module imports only what stands above it in that list;
`make lint` checks that. `apply` runs as root: it loads nothing that scrapes, decides or speaks TLS.
"""

__version__ = "0.2.0"
