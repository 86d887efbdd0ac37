"""Flags, files of settings, and what `--help` says."""

import json
from dataclasses import MISSING, dataclass, field, fields

import pytest
from transformers import TrainingArguments

from bert_toolkit import InputError
from bert_toolkit.training.arguments import RECIPE_DEFAULTS, RunArguments, help_text, parse_arguments


@dataclass
class RecipeArguments:
    max_length: int = field(default=64, metadata={"help": "length"})
    data_dir: str | None = None
    words: list[str] | None = None


DEFAULTS = {"output_dir": "runs/x", "learning_rate": None, "per_device_train_batch_size": 32}


def parse(*arguments):
    return parse_arguments([RecipeArguments, TrainingArguments], DEFAULTS, arguments)


def test_defaults_of_the_recipe_apply():
    recipe, arguments = parse()
    assert (recipe.max_length, arguments.learning_rate, arguments.per_device_train_batch_size) == (64, None, 32)


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_command_line_beats_settings_file_beats_defaults(tmp_path, suffix):
    path = tmp_path / f"settings{suffix}"
    # 2e-5 without a dot is a string to YAML
    text = {
        ".yaml": "learning_rate: 2e-5\nmax_length: 32\nper_device_train_batch_size: 8\n",
        ".json": '{"learning_rate": 2e-5, "max_length": 32, "per_device_train_batch_size": 8}',
    }[suffix]
    path.write_text(text)
    recipe, arguments = parse(str(path), "--max_length", "16")
    assert (recipe.max_length, arguments.learning_rate, arguments.per_device_train_batch_size) == (16, 2e-5, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_lenght", "3"], r"unknown argument `--max_lenght`; did you mean `--max_length`\?"),
        (["--max_length", "many"], r"argument --max_length.*invalid int value: 'many'"),
        (["surplus"], r"unknown argument `surplus`"),
        (["absent.yaml"], r"cannot read the settings file absent.yaml: No such file"),
        (["--lr_scheduler_type", "zigzag"], r"lr_scheduler_type.*zigzag"),
    ],
    ids=["misspelled", "not-a-number", "surplus", "no-file", "refused-value"],
)
def test_bad_arguments_are_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_lenght: 3", "unknown setting `max_lenght`; did you mean `max_length`"),
        ("- 1\n- 2", "must hold `flag: value` pairs, got list"),
        ("a: [", "not valid YAML or JSON"),
    ],
)
def test_bad_settings_files_are_one_line(tmp_path, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        parse(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_length: [1, 2]", "setting `max_length` must be int, got a list"),
        ("max_length: 64.0", "setting `max_length` must be int, got float"),
        ("max_length: true", "setting `max_length` must be int, got bool"),
        ("max_length: null", "setting `max_length` must be int, got NoneType"),
        ("max_length: 2024-01-01", "setting `max_length` must be int, got date"),
        ("max_length: many", "argument --max_length.*invalid int value: 'many'"),
        ("1: 2", "unknown setting `1`"),
        ("? [a]\n: 1", "not valid YAML or JSON"),
        ("[" * 3000, "not valid YAML or JSON"),
        (r'"max\Llength": 1', "unknown setting `max length`"),  # a line separator
    ],
    ids=["list", "float", "bool", "none", "date", "word", "key", "list-as-key", "deep", "line-separator"],
)
def test_settings_of_the_wrong_type_are_one_line(tmp_path, text, message):
    path = tmp_path / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        parse(str(path))
    assert len(str(error.value).splitlines()) == 1


def test_settings_may_be_what_the_command_line_cannot_say(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text(
        "learning_rate: null\ndata_dir: null\nwords: one\nreport_to: [tensorboard, wandb]\nwarmup_steps: 10\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\n"
    )
    recipe, arguments = parse(str(path))
    assert (arguments.learning_rate, recipe.data_dir, recipe.words) == (None, None, ["one"])
    assert arguments.report_to == ["tensorboard", "wandb"]
    assert (arguments.warmup_steps, arguments.lr_scheduler_kwargs) == (10, {"num_cycles": 2})


def test_every_default_of_the_trainer_is_a_setting_of_its_type(tmp_path):
    """What the check of types takes for wrong must not be what TrainingArguments itself declares."""
    defaults = {f.name: f.default for f in fields(TrainingArguments) if f.init and f.default is not MISSING}
    plain = {name: value for name, value in defaults.items() if type(value) in (int, float, bool, type(None))}
    assert len(plain) > 60
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(plain))
    _, arguments = parse(str(path))
    assert arguments.seed == defaults["seed"]


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("cpu_threads", "0", "`cpu_threads` must be at least 1, got 0"),
        ("max_train_samples", "0", "`max_train_samples` must be at least 1, got 0"),
        ("monitor_every", "-1", "`monitor_every` must be at least 0, got -1"),
    ],
)
def test_counts_of_a_run_must_be_meant(flag, value, message):
    with pytest.raises(InputError, match=message):
        parse_arguments([RunArguments], {}, [f"--{flag}", value])


class TestHelp:
    TYPES = [RecipeArguments, RunArguments, TrainingArguments]

    def printed(self, capsys, flag):
        with pytest.raises(SystemExit) as stop:
            parse_arguments(self.TYPES, {**RECIPE_DEFAULTS, **DEFAULTS}, [flag])
        assert stop.value.code == 0
        return capsys.readouterr().out

    def test_own_flags_come_first_with_their_defaults(self, capsys):
        text = self.printed(capsys, "--help")
        assert all(len(line) <= 100 for line in text.splitlines())
        places = [text.index(part) for part in ("--max_length n", "--monitor_every n", "Flags of Trainer")]
        assert places == sorted(places)
        (line,) = (line for line in text.splitlines() if "--max_length" in line)
        assert line.split() == ["--max_length", "n", "length", "(default:", "64)"]
        assert "--words text ..." in text

    def test_of_trainer_only_what_the_recipe_sets_unless_all_is_asked_for(self, capsys):
        short, full = self.printed(capsys, "--help"), self.printed(capsys, "--help-all")
        assert "--output_dir text" in short and "runs/x" in short
        assert "--adam_beta1" not in short
        names = [item.name for item in fields(TrainingArguments) if item.init]
        assert f"--help-all lists all {len(names)}" in short
        assert all(f"  --{name} " in full for name in names)

    def test_narrow_terminals_wrap_between_words(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "60")
        text = self.printed(capsys, "--help")
        assert max(len(line) for line in text.splitlines()) <= 60
        assert "  --max_length n\n      length (default: 64)\n" in text
        assert "--help-all lists all" in " ".join(text.split()), "names of flags stay whole"

    def test_defaults_are_what_a_person_types(self, capsys):
        text = " ".join(self.printed(capsys, "--help").split())
        assert "(default: false)" in text and "False)" not in text and "(default: )" not in text
        # of a flag that takes one value or several, the second says all
        assert "--report_to text ... The list of integrations" in text
        told = " ".join(help_text(self.TYPES, {"learning_rate": None, "metric_for_best_model": "auto"}).split())
        assert "(default: by the size of the model)" in told
        assert "Defaults to" not in told and "(default: auto)" in told, "Trainer's own default is not this recipe's"

    def test_program_says_what_it_is_for(self):
        assert "Flags, files of settings" in help_text(self.TYPES, {})
