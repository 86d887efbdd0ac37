"""A recipe with --push_to_hub, against a stand-in of the hub that keeps what it is sent."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.launch


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub's API does to one who makes a repository and commits to it."""

    protocol_version = "HTTP/1.1"

    def reply(self, answer, status=200):
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self):  # noqa: N802
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):  # noqa: N802
        if self.path == "/api/whoami-v2" and self.headers["Authorization"] == "Bearer hf_standin":
            return self.reply({"type": "user", "name": "reader", "auth": {}})
        return self.reply({"error": f"no {self.path} here"}, 404)

    def do_PUT(self):  # noqa: N802
        self.server.kept[f"blob {self.path}"] = self.body()
        self.reply({})

    def do_POST(self):  # noqa: N802
        path, body, address = self.path.split("?")[0], self.body(), f"http://{self.headers['Host']}"
        self.server.asked.append(path)
        if path == "/api/repos/create":
            self.reply({"url": f"{address}/reader/{json.loads(body)['name']}"})
        elif path == "/api/validate-yaml":
            self.server.kept["validated"] = json.loads(body)["content"]
            self.reply({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = {file["path"]: "lfs" if file["path"].endswith(".safetensors") else "regular" for file in files}
            self.reply({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**item, "actions": {"upload": {"href": f"{address}/blob/{item['oid']}"}}}
                for item in json.loads(body)["objects"]
            ]
            self.reply({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            if self.server.full:
                return self.reply({"error": "out of quota"}, 403)
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.kept[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.kept[value["path"]] = self.server.kept[f"blob /blob/{value['oid']}"]
            self.server.commits += 1
            self.reply({"commitUrl": f"{address}{path.removeprefix('/api/models')}", "commitOid": "0" * 40})
        else:
            self.reply({"error": f"no {path} here"}, 404)
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.kept, server.asked, server.commits, server.full = {}, [], 0, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def train(hub, folder, tiny_bert_dir, **flags):
    (folder / "feelings.csv").write_text("text,label\n" + "the dog sleeps,good\nthe king waits,bad\n" * 10)
    given = {"train_data": "feelings.csv", "model_name_or_path": tiny_bert_dir, "output_dir": "runs/mine"}
    given |= {"max_steps": 2, "cpu_threads": 1, "eval_strategy": "no", "save_strategy": "no", "max_length": 16}
    given |= {"load_best_model_at_end": "false", "push_to_hub": "true", "hub_token": "hf_standin", **flags}
    command = [sys.executable, str(ROOT / "recipes" / "classify.py")]
    command += [str(part) for name, value in given.items() for part in (f"--{name}", value)]
    surroundings = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
    surroundings |= {"HF_HUB_DISABLE_XET": "1", "PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "home")}
    surroundings |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run(command, cwd=folder, env=surroundings, capture_output=True, text=True, timeout=300)


def test_a_finished_run_is_pushed_with_its_own_card_and_without_its_rows(hub, tmp_path, tiny_bert_dir):
    process = train(hub, tmp_path, tiny_bert_dir)
    assert process.returncode == 0, process.stderr[-2000:] + str(hub.asked)
    assert f"pushed      http://127.0.0.1:{hub.server_port}/reader/mine" in process.stdout
    run, kept = tmp_path / "runs" / "mine", hub.kept
    assert hub.commits == 1, "one push, of the finished run"
    for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md", "results.json"):
        assert kept[name] == (run / name).read_bytes(), name
    assert (run / "predictions.tsv").exists() and (run / "report.html").exists()
    assert not {"predictions.tsv", "report.html", "training_args.bin"} & set(kept)
    assert not any(name.startswith("checkpoint-") for name in kept)

    card = ModelCard(kept["README.md"].decode())
    results = json.loads(kept["results.json"])
    scored = {(of.metric_type, of.dataset_split): of for of in card.data.eval_results}
    accuracy = scored["accuracy", "validation"]
    assert accuracy.metric_value == results["accuracy"] and accuracy.verified is False
    assert (accuracy.task_type, accuracy.dataset_type) == ("text-classification", "local")
    assert accuracy.dataset_name == "feelings.csv"
    assert card.data.model_name == "mine" and card.data.library_name == "transformers"
    assert f"## Training health\n\n{results['training health']}" in card.content
    assert yaml.safe_load(hub.kept["validated"].split("---")[1])["model-index"]


@pytest.mark.slow
def test_a_hub_that_refuses_is_one_line_and_the_run_is_there(hub, tmp_path, tiny_bert_dir):
    hub.full = True
    process = train(hub, tmp_path, tiny_bert_dir)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    last = process.stderr.strip().splitlines()[-1]
    assert (
        last.startswith("error: runs/mine could not be pushed to reader/mine (") and "`hf upload reader/mine" in last
    )
    assert (tmp_path / "runs" / "mine" / "README.md").exists()
