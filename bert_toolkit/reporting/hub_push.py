"""Brings a finished run to the hub, with the card that describes it."""

from __future__ import annotations

from huggingface_hub import HfApi
from transformers import Trainer

from bert_toolkit.errors import InputError, reason_of

LEFT_OUT = ("_*", "checkpoint-*", "*.partial", "predictions.tsv", "report.html", "training_args.bin")
"""What stays here: checkpoints, a pickle, and the two files that hold texts of the test rows."""


def push(trainer: Trainer) -> None:
    """Upload everything in the output directory but `LEFT_OUT`, in one commit, and print where it is.

    Trainer's own push would write a card of its own over the run's.

    Args:
        trainer: Of a finished run, with `push_to_hub`; Trainer has made the repository when it was built.

    Raises:
        InputError: The hub does not take the files; they are all here.
    """
    arguments = trainer.args
    if trainer.push_in_progress is not None:  # of a checkpoint
        trainer.push_in_progress.wait_until_done()
    try:
        commit = HfApi().upload_folder(
            repo_id=str(trainer.hub_model_id),
            folder_path=str(arguments.output_dir),
            commit_message="End of training",
            token=arguments.hub_token,
            revision=arguments.hub_revision,
            ignore_patterns=list(LEFT_OUT),
        )
    except Exception as error:  # whatever the hub, the network or a proxy answers
        raise InputError(
            f"{arguments.output_dir} could not be pushed to {trainer.hub_model_id} ({reason_of(error)}): all is saved "
            f"there; try again with `hf upload {trainer.hub_model_id} {arguments.output_dir} --exclude 'checkpoint-*'`"
        ) from error
    print(f"pushed      {commit.repo_url}")
