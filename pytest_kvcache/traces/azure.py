"""Azure LLM inference CSV of 2023 and 2024: arrivals and lengths. No ids: no reuse.

Source: Azure/AzurePublicDataset, ``AzureLLMInferenceDataset2023.md`` and ``…2024.md`` (CC-BY;
Patel et al., ISCA 2024; Stojkovic et al., HPCA 2025): ``TIMESTAMP``, ``ContextTokens``,
``GeneratedTokens``. Dates have 7 decimals and no zone in 2023, 6 and ``+00:00`` in 2024; lines
end in CRLF in 2023, the last one in nothing.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.dates import Dates
from pytest_kvcache.traces.fields import csv_rows, tokens_of
from pytest_kvcache.traces.recorded import Asked, Reading, Recorded
from pytest_kvcache.traces.times import DATES

if TYPE_CHECKING:
    from pytest_kvcache.traces.source import Source

FIELDS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read(source: Source, asked: Asked) -> Recorded:
    """Read the file."""
    dates = Dates(source.path, FIELDS[0])
    prompts, outputs = array("q"), array("q")
    for line, (date, context, generated) in csv_rows(source, FIELDS):
        try:
            prompts.append(tokens_of(context, FIELDS[1]))
            outputs.append(tokens_of(generated, FIELDS[2]))
        except ValueError as error:
            raise TraceError(source.path, line, str(error)) from error
        dates.add(date, line)
    if not prompts:
        raise TraceError(source.path, 0, "it has a header and no request; name another file")
    return Recorded.of_lengths(
        block_tokens=asked.own_block_tokens,
        arrival_ns=dates.finish(),
        input_tokens=np.array(prompts, dtype=np.int64),
        output_tokens=np.array(outputs, dtype=np.int64),
        reading=Reading(unit=DATES, ids="none"),
    )
