# SPDX-License-Identifier: Apache-2.0
"""The commands for people: `status`, `explain`, `replay`. They read what ticks have written, and write nothing."""
