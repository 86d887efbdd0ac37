"""Loading runs nothing: neither pickles nor code that lies beside a model, unless the user asks for the code."""

import json
import pickle
import shutil

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import bert_toolkit  # noqa: F401  registers toolkit_bert
from bert_toolkit.errors import InputError
from bert_toolkit.training.loading import load_and_tell, load_pretrained, model_type_of
from bert_toolkit.training.pretrained import choose_model


@pytest.fixture
def trap(tmp_path):
    """A file that appears when something that should not run does, and a pickle and a module that would make it."""
    path = tmp_path / "was-executed"

    class Trap:
        def __reduce__(self):
            return open, (str(path), "w")

    return path, pickle.dumps(Trap()), f"open({str(path)!r}, 'w').close()\n"


@pytest.fixture
def model_dir(tmp_path, tiny_bert_dir):
    return shutil.copytree(tiny_bert_dir, tmp_path / "model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickled_weights_are_refused_unread(model_dir, trap, name):
    path, evil, _ = trap
    (model_dir / "model.safetensors").unlink()
    (model_dir / name).write_bytes(evil)
    with pytest.raises(InputError, match=f"holds its weights only in {name}, a format that can run code"):
        choose_model(str(model_dir))
    with pytest.raises(InputError, match="cannot be loaded as AutoModelForSequenceClassification"):
        load_pretrained(AutoModelForSequenceClassification, str(model_dir), use_safetensors=True)
    assert not path.exists()


def test_pickles_beside_good_weights_are_not_read(model_dir, trap):
    path, evil, _ = trap
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl", "vocab.pkl"):
        (model_dir / name).write_bytes(evil)
    choose_model(str(model_dir))
    load_pretrained(AutoTokenizer, str(model_dir))
    load_pretrained(AutoModelForSequenceClassification, str(model_dir), use_safetensors=True)
    assert not path.exists()


class TestCodeBesideAModel:
    @pytest.fixture
    def model_with_code(self, model_dir, trap, monkeypatch, tmp_path):
        monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        settings = json.loads((model_dir / "config.json").read_text())
        settings |= {"model_type": "somebodys_own", "auto_map": {"AutoConfig": "theirs.TheirConfig"}}
        (model_dir / "config.json").write_text(json.dumps(settings))
        code = "from transformers import PreTrainedConfig\nclass TheirConfig(PreTrainedConfig):\n"
        (model_dir / "theirs.py").write_text(trap[2] + code + "    model_type = 'somebodys_own'\n")
        return model_dir

    def test_is_not_run(self, model_with_code, trap):
        with pytest.raises(InputError, match="pass `trust_remote_code true` if you trust that code"):
            load_pretrained(AutoConfig, str(model_with_code))
        assert model_type_of(str(model_with_code)) == "somebodys_own"
        assert not trap[0].exists()

    def test_is_run_if_asked_for(self, model_with_code, trap):
        """So the tests above would see it run."""
        load_pretrained(AutoConfig, str(model_with_code), trust_remote_code=True)
        assert trap[0].exists()


def test_own_models_do_not_need_the_code_that_is_saved_with_them(tmp_path, tiny_bert_dir, trap):
    """The package's classes serve checkpoints that carry (here: altered) copies of its code."""
    model = bert_toolkit.ToolkitBertForSequenceClassification.from_pretrained(tiny_bert_dir)
    model.save_pretrained(tmp_path / "saved")
    for name in ("modeling_toolkit_bert.py", "fast_paths_toolkit_bert.py", "configuration_toolkit_bert.py"):
        (tmp_path / "saved" / name).write_text(trap[2])
    loaded = load_pretrained(AutoModelForSequenceClassification, str(tmp_path / "saved"))
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    assert not trap[0].exists()


@pytest.mark.parametrize(
    ("name", "content", "auto_class"),
    [
        ("tokenizer.json", "{", AutoTokenizer),
        ("tokenizer.json", "{}", AutoTokenizer),
        ("tokenizer_config.json", "[]", AutoTokenizer),
        ("config.json", '{"model_type": "no such"}', AutoModelForSequenceClassification),
        ("config.json", '{"model_type": "bert", "hidden_size": "wide"}', AutoModelForSequenceClassification),
        ("config.json", '{"model_type": "bert", "hidden_size": 33}', AutoModelForSequenceClassification),
        ("model.safetensors", "cut", AutoModelForSequenceClassification),
    ],
)
def test_damaged_files_are_one_line(model_dir, name, content, auto_class):
    (model_dir / name).write_text(content)
    with pytest.raises(InputError, match="model cannot be loaded as") as caught:
        load_pretrained(auto_class, str(model_dir))
    assert "\n" not in str(caught.value)


def test_configuration_that_is_no_object(model_dir):
    (model_dir / "config.json").write_text("[]")
    with pytest.raises(InputError, match="cannot be loaded as a configuration"):
        model_type_of(str(model_dir))


def test_a_new_head_is_one_line_and_an_encoder_that_lacks_weights_a_warning(model_dir, capfd):
    model = load_and_tell(AutoModelForSequenceClassification, str(model_dir), num_labels=2)
    out, err = capfd.readouterr()
    assert out == "new head, random until it is trained: classifier.bias, classifier.weight\n"
    assert "LOAD REPORT" not in err
    model.save_pretrained(model_dir)
    weights = load_file(model_dir / "model.safetensors")
    gone = "bert.encoder.layer.0.attention.self.query.weight"
    weights["bert.extra"] = weights.pop(gone)
    save_file(weights, model_dir / "model.safetensors", {"format": "pt"})
    load_and_tell(AutoModelForSequenceClassification, str(model_dir))
    lacking, lost = capfd.readouterr().out.splitlines()
    assert lacking == f"warning: {model_dir} lacks weights of the encoder, which begin at random: {gone}"
    assert lost == f"warning: {model_dir} has weights for which this encoder has no place: bert.extra"
