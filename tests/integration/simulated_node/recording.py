"""Compare a page of metrics with a recording of vLLM's."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.integration.simulated_node.node_process import ROOT

RECORDINGS = ROOT / "tests" / "fixtures"
Shape = dict[str, tuple[str, dict[str, set[frozenset[str]]], list[str]]]


def shape_of(text: str) -> Shape:
    """Per family: its type, the label names of each sample name, and its buckets in order."""
    shapes: Shape = {}
    for family in text_string_to_metric_families(text):
        labels: dict[str, set[frozenset[str]]] = {}
        buckets: dict[str, None] = {}
        for sample in family.samples:
            labels.setdefault(sample.name, set()).add(frozenset(sample.labels))
            if "le" in sample.labels:
                buckets[sample.labels["le"]] = None
        shapes[family.name] = (family.type, labels, list(buckets))
    return shapes


def compare_with_recording(text: str, recording: str) -> None:
    assert shape_of(text) == shape_of((RECORDINGS / recording).read_text())


def families_of(text: str) -> dict[str, list[object]]:
    """Per family: its type, and the label names of each sample name. Buckets are left out: `le` is a label name."""
    return {
        name: [kind, {sample: sorted(map(sorted, sets)) for sample, sets in sorted(labels.items())}]
        for name, (kind, labels, _) in sorted(shape_of(text).items())
    }
