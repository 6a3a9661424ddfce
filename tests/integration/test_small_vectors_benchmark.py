"""The benchmark of small vectors runs, on few items, with the engine itself."""

import numpy as np

from benchmarks.small_vectors import Search, Variant, make_data, measure


def test_scans_of_the_engine_find_what_exact_search_does_and_hidden_items_never(tmp_path):
    rng = np.random.default_rng(0)
    items, queries = rng.normal(size=(300, 16)).astype(np.float32), rng.normal(size=(20, 16)).astype(np.float32)
    data = make_data(items, np.arange(300) % 3 > 0, queries)
    assert (data.best % 3 > 0).all()
    variants = (
        Variant("float32"),
        Variant("float16", m=16, level=True, searches=(Search(ef=300),)),
        Variant("float16", quantization="binary", searches=(Search(oversampling=0), Search(oversampling=30))),
    )
    exact, graph, once, again = measure(tmp_path, data, variants, 1)
    assert (exact["variant"], exact["recall_at_10"], exact["quantized_megabytes"]) == ("float32, scan", 1.0, 0)
    assert graph["recall_at_10"] >= 0.8  # graphs are built by threads, and differ
    assert once["recall_at_10"] < 0.9 < again["recall_at_10"]
    assert once["quantized_megabytes"] > 0
