"""What a report says of supernets besides their ranking; the sections are in test_run.py."""

from search.report.modules import kept_by_layer


def test_memory_by_layer() -> None:
    mib = 2.0**20
    table = [[1 * mib, 3 * mib], [2 * mib, 4 * mib], [5 * mib, 0.0]]
    assert kept_by_layer(table, "greedy") == [3, 4, 5]
    assert kept_by_layer(table, "nongreedy") == [7, 9, 5]
    assert kept_by_layer(table, "spos") == [2 + 3 + 2.5] * 3
