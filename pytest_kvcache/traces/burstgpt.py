"""BurstGPT CSV: arrivals and lengths of an Azure OpenAI service's requests. No ids: no reuse.

Source: github.com/HPMLL/BurstGPT (CC-BY-4.0; Wang et al., KDD 2025): ``Timestamp`` in seconds
from the first day's midnight, ``Request tokens``, ``Response tokens``; later files add
``Session ID`` (of conversations) and ``Elapsed time``. Failed requests have 0 response
tokens: they are left out, as in upstream's files "without_fails".
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import numpy as np

from pytest_kvcache.errors import TraceError
from pytest_kvcache.traces.fields import csv_rows, number, shown, tokens_of
from pytest_kvcache.traces.recorded import Asked, Reading, Recorded
from pytest_kvcache.traces.times import MAX_SECONDS, TimeUnit

if TYPE_CHECKING:
    from pytest_kvcache.traces.source import Source

FIELDS = ("Timestamp", "Request tokens", "Response tokens")


def read(source: Source, asked: Asked) -> Recorded:
    """Read the file."""
    times_s, rows = array("d"), array("q")
    sessions: dict[str, int] = {}
    left_out = 0
    for line, (time, request, response, session) in csv_rows(source, (*FIELDS, "Session ID")):
        try:
            prompt, output = tokens_of(request, FIELDS[1]), tokens_of(response, FIELDS[2])
            time_s = _seconds(time)
        except ValueError as error:
            raise TraceError(source.path, line, str(error)) from error
        if not output:
            left_out += 1
            continue
        times_s.append(time_s)
        own = f"line {line}"  # a request without a session is a conversation of its own
        rows.extend((prompt, output, sessions.setdefault(session.strip() or own, len(sessions))))
    if not times_s:
        raise TraceError(source.path, 0, "it has no request that was answered; name another file")
    prompt_tokens, output_tokens, conversations = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return Recorded.of_lengths(
        block_tokens=asked.own_block_tokens,
        arrival_ns=np.rint(np.array(times_s, dtype=np.float64) * 1e9).astype(np.int64),
        input_tokens=prompt_tokens,
        output_tokens=output_tokens,
        reading=Reading(unit=TimeUnit(name="s"), ids="none", left_out=left_out),
        conversations=conversations,
    )


def _seconds(text: str) -> float:
    try:
        return number(float(text), "Timestamp", MAX_SECONDS)
    except ValueError as error:
        raise ValueError(f"Timestamp is {shown(text)}; it must be seconds, 0 or more") from error
