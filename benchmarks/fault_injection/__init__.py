"""Trainings that are broken on purpose, and healthy ones: does training health name faults, and only faults?"""

import os

# Before transformers is imported: every model and text of this benchmark is on the machine
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
