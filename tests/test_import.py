"""Importing the package stays light and has one effect: the registration with the Auto classes."""

import json
import subprocess
import sys

HEAVY = ["matplotlib", "tensorboard", "sklearn", "datasets", "evaluate"]


def test_import_does_not_load_heavy_packages():
    code = f"import json, sys, bert_toolkit; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(output.splitlines()[-1]) == []


def test_import_registers_the_model_and_sets_up_nothing_else():
    code = (
        "import os, logging; before = dict(os.environ); handlers = list(logging.getLogger().handlers);"
        "import bert_toolkit; from transformers import AutoConfig;"
        "assert type(AutoConfig.for_model('toolkit_bert')).__name__ == 'ToolkitBertConfig';"
        "assert dict(os.environ) == before and logging.getLogger().handlers == handlers"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
