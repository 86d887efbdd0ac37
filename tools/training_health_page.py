"""Writes the rules into docs/training-health.md, from the rules themselves.

    python tools/training_health_page.py

What stands between the two marks of the page is replaced; everything else is written by hand.
"""

import inspect
from pathlib import Path

from bert_toolkit.health.rules import RULES, Rule

PAGE = Path(__file__).parents[1] / "docs" / "training-health.md"
BEGIN, END = "<!-- rules: begin -->", "<!-- rules: end -->"
GROUPS = {rule.group for rule in RULES if rule.group}
FAMILIES = {
    "settings": "Settings",
    "protocol": "The loop",
    "replicas": "Replicas",
    "data": "Inputs and outputs",
    "labels": "Labels",
    "token_targets": "Tokens that are asked for",
    "masks": "Masks",
    "losses": "The loss",
    "mode": "Mode",
    "weights": "Where weights come from",
    "pretrained": "What a trained model brings along",
    "attention": "Attention",
    "flow": "What flows",
    "precision": "Numbers",
    "participation": "Parameters that take no part",
    "scale": "Size of weights and steps",
    "gradients": "Flow of gradients",
    "evaluation": "Evaluation",
    "outcome": "Outcome",
}


def section(rule: Rule) -> str:
    """The text of one rule."""
    text = inspect.cleandoc(rule.check.__doc__ or "")
    picture = PAGE.parent / "images" / f"health_{rule.name}.png"
    groups = [f"all of {name}" for name in rule.explains if name in GROUPS]
    explained = ", ".join(groups + [f"`{name}`" for name in rule.explains if name not in GROUPS])
    parts = [
        f"#### {rule.name}",
        text,
        f"![{rule.name}](images/{picture.name})" if picture.exists() else "",
        f"- Severity: {rule.severity}; looks at: {rule.needs}",
        f"- Cause: {rule.cause}.",
        f"- Remedy: {rule.remedy}.",
        f"- Explains: {explained}." if explained else "",
    ]
    joined = "\n\n".join(part for part in parts if part and not part.startswith("- "))
    return joined + "\n\n" + "\n".join(part for part in parts if part.startswith("- "))


def rules_text() -> str:
    """All rules by family, in the order in which they are asked."""
    families = dict.fromkeys(rule.family for rule in RULES)
    parts = []
    for family in families:
        parts.append(f"### {FAMILIES[family]}")
        parts += [section(rule) for rule in RULES if rule.family == family]
    return "\n\n".join(parts)


def page() -> str:
    """The page with the rules as they are now."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n\n{rules_text()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
