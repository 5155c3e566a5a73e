"""A simulated vLLM node: one HTTP server that behaves as a vLLM engine under load, without a GPU."""
