"""Users that retrieve need reads, whether the scenario or an option has them."""

from __future__ import annotations

import pytest

from pytest_kvcache.errors import OptionError
from pytest_kvcache.options.options import Options, build_options


def typed(**texts: str) -> Options:
    return build_options({name: (text, "command line") for name, text in texts.items()})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"scenario": "rag"}, "--kv-scenario is rag, which reads chunks of documents, and"),
        ({"scenario": "chat,rag"}, "--kv-scenario is rag, which reads chunks"),
        ({"enable_rag": "true"}, "--kv-enable-rag reads chunks of documents, and"),
    ],
)
def test_retrieval_without_reads_is_refused(given: dict[str, str], sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        typed(phase="prefill", **given)
    typed(phase="decode", **given)


def test_a_mix_in_which_nobody_retrieves_may_be_stored_alone() -> None:
    assert typed(phase="prefill", scenario="mixed").phase == "prefill"
