"""How far hypothesis searches: the same few examples each time, or with HYPOTHESIS_PROFILE=nightly many new ones."""

from __future__ import annotations

import os

from hypothesis import settings

# No deadline: how long an example takes is not under test.
settings.register_profile("here", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("nightly", deadline=None, max_examples=10_000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "here"))
