# SPDX-License-Identifier: Apache-2.0
"""What people look at: `status`, `explain`, `replay`. It reads what ticks have left, and writes nothing."""
