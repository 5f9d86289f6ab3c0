"""headscope in a process of its own, loading the checkpoint that `benchmarks/loading.py` names."""

import time
from typing import Any

from protocol import serve


def prepare(_: str) -> Any:
    import transformers  # noqa: F401  # what loading may import is there before

    from headscope import HookedTransformer

    def load(folder: str, dtype: str, processed: bool) -> dict[str, float]:
        method = HookedTransformer.from_pretrained if processed else HookedTransformer.from_pretrained_no_processing
        start = time.perf_counter()
        model = method(folder, dtype=dtype)
        return {"seconds": time.perf_counter() - start, "weights": sum(each.nbytes for each in model.parameters())}

    return load


if __name__ == "__main__":
    serve(prepare)
