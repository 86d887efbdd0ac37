"""Which findings name the right part of the model for an operator of the catalogue."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.fault_injection.deform.mutants import Mutant

PARAMETERS = {
    "embedding": r"embed|wte|wpe",
    "masking": r"attn|attention",
    "qkv": r"query|key|value|[qkv]_proj|[qkv]_lin|c_attn",
    "score": r"attn|attention",
    "positional": r"position|wpe",
    "kernel": r"attn|attention",
    "variant": r"attn|attention",
    "kv_cache": r"attn|attention",
    "ffn": r"intermediate|output\.dense|mlp|ffn|c_fc|c_proj|fc1|fc2",
    "layernorm": r"norm|ln_",
    "residual": r"layer|\.h\.|block|encoder",
    "output": r"classifier|lm_head|score",
}
"""By component, what the names of its parameters hold, in the words of the catalogue's own patterns."""

WORDS = {
    "embedding": r"embedding",
    "masking": r"mask|future|padding",
    "positional": r"position",
    "layernorm": r"norm",
    "ffn": r"activation",
    "output": r"logits|head",
}
"""By component, what the name of a rule holds that speaks of nothing else."""

RULES = {"NCE": frozenset({"implausible_setting"}), "FCA": frozenset({"implausible_setting"})}
"""By operator, rules that name the cause in their text, without naming parameters."""


def names_component(finding: dict[str, Any], mutant: Mutant) -> bool:
    """Whether a finding leads to the broken part: by its rule, or because everything it names belongs to the part.

    Args:
        finding: Of a row of the results file.
        mutant: What was broken.
    """
    if finding["rule"] in RULES.get(mutant.operator, frozenset()):
        return True
    if mutant.component in WORDS and re.search(WORDS[mutant.component], finding["rule"]):
        return True
    # The weight of a tied head has the name of the embedding, so the text counts where it names a module.
    module = re.search(r"; first (\S+):", finding.get("seen", ""))
    names = [module[1]] if module else finding["parameters"]
    return bool(names) and all(re.search(PARAMETERS[mutant.component], name.lower()) for name in names)
