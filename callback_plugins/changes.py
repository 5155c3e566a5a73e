# ruff: noqa: INP001, ANN401, SLF001 - Ansible loads callback plugins from plain folders; its results have no public
# types before ansible-core 2.19
"""What ansible-playbook prints: what changed, what failed, and messages for the reader. With -v, everything."""

from __future__ import annotations

from typing import Any

from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as DefaultCallback

DOCUMENTATION = """
    name: changes
    type: stdout
    short_description: the default output without tasks that changed nothing
    description:
        - Prints as the callback C(default), without the results C(ok) and C(skipping), and without the names of such
          tasks.
        - Results of C(debug) are printed. With C(-v) this callback is the callback C(default).
    extends_documentation_fragment:
      - default_callback
      - result_format_callback
    requirements:
      - set as stdout in configuration
"""
HIDDEN = ("display_ok_hosts", "display_skipped_hosts")


class CallbackModule(DefaultCallback):  # type: ignore[misc] # ansible-core has no types
    """The class that Ansible loads."""

    CALLBACK_NAME = "changes"
    speaks = False  # whether the present result is a message for the reader

    def get_option(self, name: str, *others: Any) -> Any:
        """Return an option of the default callback, which is false where this one hides results."""
        if name in HIDDEN and self._display.verbosity == 0:
            return name == "display_ok_hosts" and self.speaks
        return super().get_option(name, *others)

    def v2_runner_on_ok(self, result: Any) -> None:
        """Print a result that changed something, or speaks to the reader."""
        if isinstance(result._task, TaskInclude) and self._display.verbosity == 0:
            return
        self.speaks = "_ansible_verbose_always" in result._result
        super().v2_runner_on_ok(result)
        self.speaks = False

    def _dump_results(self, result: Any, *others: Any, **options: Any) -> str:
        """Return a message of one text as it is. YAML would fold it."""
        message = result.get("msg")
        if self.speaks and self._display.verbosity == 0 and isinstance(message, str):
            return f"\n{message}" if "\n" in message else message
        return str(super()._dump_results(result, *others, **options))

    def v2_runner_item_on_ok(self, result: Any) -> None:
        """Print an item that changed something, or speaks to the reader."""
        self.speaks = "_ansible_verbose_always" in result._result
        super().v2_runner_item_on_ok(result)
        self.speaks = False

    def v2_playbook_on_include(self, included_file: Any) -> None:
        """Print which file a task includes, with -v alone."""
        if self._display.verbosity > 0:
            super().v2_playbook_on_include(included_file)
