"""Importing the package stays light and has one effect: the registration with the Auto classes."""

import json
import subprocess
import sys

HEAVY = ["matplotlib", "tensorboard", "sklearn", "datasets", "evaluate", "IPython", "optuna"]


def loaded_by(statement: str) -> list[str]:
    code = f"import json, sys; {statement}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def test_import_does_not_load_heavy_packages():
    # transformers' callbacks load scikit-learn up to some version after 5.15; nothing may come on top of them
    without_us = loaded_by("from transformers import AutoModel, PreTrainedModel, TrainerCallback")
    assert loaded_by("import bert_toolkit, bert_toolkit.metrics") == without_us
    assert without_us in ([], ["sklearn"])


def test_import_registers_the_model_and_sets_up_nothing_else():
    code = (
        "import os, logging; before = dict(os.environ); handlers = list(logging.getLogger().handlers);"
        "import bert_toolkit; from transformers import AutoConfig;"
        "assert type(AutoConfig.for_model('toolkit_bert')).__name__ == 'ToolkitBertConfig';"
        "assert dict(os.environ) == before and logging.getLogger().handlers == handlers"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
