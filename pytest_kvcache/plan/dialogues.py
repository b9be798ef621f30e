"""Whether the users of a synthetic scenario would read anything. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_kvcache.errors import OptionError
from pytest_kvcache.phases import PHASES
from pytest_kvcache.workloads.retrieval import longest_blocks
from pytest_kvcache.workloads.synthetic import reuses_prefixes

if TYPE_CHECKING:
    from pytest_kvcache.plan.plan import Plan


def check_reads(plan: Plan) -> None:
    """Raise OptionError if it is certain that nothing is read, although the phase makes reads.

    And where users retrieve from documents that hold no block.
    """
    dialogues = plan.dialogues
    if dialogues is None or not PHASES[plan.phase].loads:
        return
    context = plan.context(0, None)
    if dialogues.retrieval is not None:
        if longest_blocks(dialogues.retrieval, context):
            return
        raise OptionError(
            f"no document that the users of the scenario {plan.scenario} retrieve from is of a"
            f" whole block of {plan.block_tokens} tokens; lower --kv-block-tokens, or raise"
            " --kv-context-scale"
        )
    loads_stored = plan.interference is not None or not PHASES[plan.phase].stores
    if plan.reread_factor or loads_stored or reuses_prefixes(context):
        return
    if not dialogues.prefix_caching:
        why = "--kv-disable-prefix-caching lets no request find what another one has stored"
    elif not dialogues.multi_turn:
        why = (
            "--kv-disable-multi-turn ends every conversation with its first turn, and no shared"
            f" prompt is of a whole block of {plan.block_tokens} tokens"
        )
    else:
        why = f"no prompt goes on after a whole block of {plan.block_tokens} tokens"
    raise OptionError(
        f"the scenario {plan.scenario} would read nothing: {why}; measure writes alone with"
        " --kv-phase=prefill, add --kv-enable-rag, or change what keeps prompts from being read"
        " again"
    )
