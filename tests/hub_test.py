"""hf://NAME[@REVISION], tested with a small local server that implements the API of the hub."""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import re
import socket
import sys
import threading
from unittest import mock

import pytest
import tensorflow as tf

import tfzoo
from tests import helpers, tiny_run
from tfzoo import convert, generate, hub, score, train
from tfzoo.errors import UserError
from tfzoo.export import __main__ as export
from tfzoo.model_dir import ModelDir
from tfzoo.text.wordpiece import WordPiece

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(p + chr(97 + i) for i in range(26) for p in ("", "##"))]
SIZES = dict(hidden_size=16, num_layers=1, num_heads=2, intermediate_size=32, max_positions=32)


class Server(http.server.ThreadingHTTPServer):
    """Repositories: name -> {"refs": {branch or tag: commit}, "commits": {commit: {path: bytes}}, "gated": bool}."""

    daemon_threads = True

    def __init__(self):
        self.repositories: dict[str, dict] = {}
        self.asked: list[str] = []  # Paths of requested files.
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"

    def commit(self, name: str, files: dict[str, bytes], *refs: str) -> str:
        """Adds a commit with these files, points `refs` (branches and tags) to it, and returns it."""
        repository = self.repositories.setdefault(name, {"refs": {}, "commits": {}, "gated": False})
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        repository["commits"][commit] = files
        repository["refs"] |= dict.fromkeys(refs, commit)
        return commit


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        match = re.fullmatch(r"(?:api/models/(.+?)/(revision|tree)|(.+?)/(resolve))/([^/]+)(?:/(.+))?", path)
        name = match[1] or match[3] if match else ""
        repository = self.server.repositories.get(name)
        if match is None or repository is None:
            return self.answer(404, {"X-Error-Code": "RepoNotFound"})
        commit = repository["refs"].get(match[5], match[5])
        if commit not in repository["commits"]:
            return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        files = repository["commits"][commit]
        if match[2] == "revision":
            return self.answer(200, {}, {"id": name, "sha": commit, "siblings": [{"rfilename": f} for f in files]})
        oid = {f: hashlib.sha1(content).hexdigest() for f, content in files.items()}
        if match[2] == "tree":
            return self.answer(
                200, {}, [{"type": "file", "path": f, "size": len(c), "oid": oid[f]} for f, c in files.items()]
            )
        if repository["gated"]:
            return self.answer(403, {"X-Error-Code": "GatedRepo"})
        if self.command == "GET":
            self.server.asked.append(match[6])
        self.answer(200, {"ETag": f'"{oid[match[6]]}"', "X-Repo-Commit": commit}, files[match[6]])

    def answer(self, code: int, headers: dict[str, str], content: object = b"") -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class HubTest(tf.test.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.shared = helpers.temporary_folder(cls)
        cls.model = helpers.noisy_model("bert_tiny", vocab_size=len(WORDS), **SIZES)
        cls.tokenizer = WordPiece(WORDS, lowercase=True)
        tfzoo.save(cls.model, cls.shared / "model", cls.tokenizer)
        # Other files that a repository may contain, some of which would be executed as code.
        cls.files = files_of(cls.shared / "model")
        names = "pytorch_model.bin model.pt modeling_x.py tf_model.h5 flax_model.msgpack rust_model.ot README.md"
        names += " flags.cfg .gitattributes onnx/model.onnx consolidated.safetensors 1_Pooling/code.py optimizer.bin"
        cls.others = {name: f"not to be fetched: {name}".encode() for name in names.split()}

    def setUp(self):
        super().setUp()
        self.folder = helpers.temporary_folder(self)
        self.server = Server()
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.addCleanup(self.stop)
        self.cache = self.folder / "cache"
        self.new_process(HF_ENDPOINT=self.server.address, HF_HUB_CACHE=str(self.cache))

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    def new_process(self, **environment):
        """Clears the state of the process, as in a new process with these environment variables."""
        hub._fetch.cache_clear()
        self.addCleanup(hub._fetch.cache_clear)
        names = ("HF_ENDPOINT", "HF_HUB_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        without = {name: value for name, value in os.environ.items() if name not in names or name in environment}
        self.enterContext(mock.patch.dict(os.environ, without | environment, clear=True))

    def refused(self, message, source, flag="model_dir"):
        with self.assertRaises(UserError) as caught:
            hub.folder(source, flag)
        text = str(caught.exception)
        self.assertTrue(text.startswith(f"--{flag}={source}: "), text)
        self.assertNotIn("\n", text)
        self.assertRegex(text, message)

    def assert_same_weights(self, model, other):
        for one, two in zip(model.trainable_variables, other.trainable_variables, strict=True):
            self.assertAllEqual(one, two)

    def test_the_files_of_a_model_and_nothing_else(self):
        names = "modules.json 1_Pooling/config.json 2_Dense/model.safetensors model-00001-of-00002.safetensors"
        names += " model-00002-of-00002.safetensors tokenizer.json merges.txt chat_template.jinja"
        names += " additional_chat_templates/tools.jinja 0_Transformer/vocab.txt 0_Transformer/model.safetensors"
        card = {"README.md"}  # Written by `save`, but not downloaded.
        wanted = {name: content for name, content in self.files.items() if name not in card}
        wanted |= {name: name.encode() for name in names.split()}
        commit = self.server.commit("some-one/a.model_1", self.files | wanted | self.others, "main")
        folder = hub.folder("hf://some-one/a.model_1")
        self.assertEqual(folder.name, commit)
        self.assertTrue(folder.is_relative_to(self.cache))
        self.assertEqual(files_of(folder), wanted)
        self.assertEqual(sorted(self.server.asked), sorted(wanted))
        self.assertEqual(hub.pin("hf://some-one/a.model_1"), f"hf://some-one/a.model_1@{commit}")

    def test_load(self):
        self.server.commit("bert", self.files | self.others, "main")
        for source in ("hf://bert", pathlib.Path("hf://bert")):
            model, tokenizer = tfzoo.load(source)
            self.assert_same_weights(model, self.model)
            self.assertEqual(tokenizer.fingerprint(), self.tokenizer.fingerprint())
        self.assert_same_weights(ModelDir(model_dir="hf://bert").load()[0], self.model)
        to = self.folder / "to"
        code, out, err = helpers.run(convert, "--from=hf://bert", f"--to={to}")
        self.assertEqual((code, out.splitlines()[0]), (0, "read hf://bert: a Hugging Face folder"), err)
        self.assert_same_weights(tfzoo.load(to)[0], self.model)
        with self.assertRaisesRegex(UserError, "is not a run folder"):
            ModelDir(model_dir="hf://bert", checkpoint="x").load()

    def test_revisions(self):
        first = self.server.commit("m", self.files | {"vocab.txt": b"a"}, "v1", "main")
        second = self.server.commit("m", self.files | {"vocab.txt": b"b"}, "main", "refs%2Fpr%2F1")
        for revision, commit in (("", second), ("@main", second), ("@v1", first), (f"@{first}", first)):
            self.assertEqual(hub.pin(f"hf://m{revision}"), f"hf://m@{commit}")
        # The commit does not change within a process.
        third = self.server.commit("m", self.files | {"vocab.txt": b"c"}, "main")
        self.assertEqual(hub.folder("hf://m").name, second)
        self.new_process(HF_ENDPOINT=self.server.address, HF_HUB_CACHE=str(self.cache))
        self.assertEqual(hub.folder("hf://m").name, third)
        self.refused("has no revision v9; specify an existing branch, tag or commit", "hf://m@v9")

    def test_offline(self):
        commit = self.server.commit("m", self.files, "main")
        self.refused("does not exist on http://127.*, or is private; correct the name, or log in", "hf://other")
        self.assertEqual(hub.folder("hf://m").name, commit)
        self.server.repositories.clear()
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            self.new_process(HF_ENDPOINT=self.server.address, HF_HUB_CACHE=str(self.cache), **{variable: "1"})
            self.server.asked.clear()
            self.assertEqual(hub.pin("hf://m"), f"hf://m@{commit}")
            self.assert_same_weights(tfzoo.load(f"hf://m@{commit}")[0], self.model)
            self.assertEqual(self.server.asked, [])
            self.refused(
                rf"HF_HUB_OFFLINE is set\) and is missing or incomplete in the cache {self.cache}; unset it", "hf://n"
            )
            self.refused("HF_HUB_OFFLINE is set", "hf://m@v2")
        (self.cache / "models--m" / "snapshots" / commit / "model.safetensors").unlink()
        self.new_process(HF_HUB_CACHE=str(self.cache), HF_HUB_OFFLINE="1")
        self.refused("HF_HUB_OFFLINE is set", "hf://m")

    def test_a_hub_that_cannot_be_reached(self):
        commit = self.server.commit("m", self.files, "main")
        hub.folder("hf://m")
        with socket.socket() as nobody:  # Bound, but not listening.
            nobody.bind(("127.0.0.1", 0))
            gone = f"http://127.0.0.1:{nobody.getsockname()[1]}"
            self.new_process(HF_ENDPOINT=gone, HF_HOME=str(self.folder / "home"))
            self.refused(
                r"cannot be downloaded \(.*\) and is missing or incomplete in the cache .*home/hub; check the network "
                "connection, and try again",
                "hf://m",
            )
            self.new_process(HF_ENDPOINT=gone, HF_HUB_CACHE=str(self.cache))
            self.assertEqual(hub.folder("hf://m").name, commit)

    def test_what_is_refused_is_one_line(self):
        self.server.commit("gated", self.files, "main")
        self.server.repositories["gated"]["gated"] = True
        self.refused("is gated; accept the terms on its web page, and log in", "hf://gated")
        self.server.commit("pickles", self.others | {"config.json": b"{}"}, "main")
        self.refused("has no weights in safetensors format; pickle files .*are not downloaded", "hf://pickles")
        self.server.commit("other", self.others, "main")
        self.refused("has no config.json; use a model of the transformers library", "hf://other")
        for name in ("hf://", "hf://a/b/c", "hf:///etc", "hf://../x", "hf://a b", "hf://m@"):
            self.refused("is not a valid model name; write hf://OWNER/NAME", name)
        self.refused("is not a valid model name", "hf://a--b", "init_from")
        with mock.patch.dict(sys.modules, {"huggingface_hub": None}):
            self.refused(
                r"requires huggingface_hub, which is not installed; run pip install 'tfzoo\[hub\]'", "hf://bert"
            )

    def test_a_bare_name(self):
        for name in ("bert-base-uncased", "openai-community/gpt2"):
            self.refused(f"no such folder; .* write --model_dir=hf://{name}", name)
        with contextlib.chdir(self.folder):
            (self.folder / "bert").mkdir()
            self.assertEqual(hub.folder("bert"), pathlib.Path("bert"))
        self.assertEqual(hub.folder("/no/such"), pathlib.Path("/no/such"))

    def test_every_program(self):
        """Each entry point requests the same model, and reports the same error for a name without a folder."""
        self.server.commit("bert", self.files, "main")
        programs = {
            generate: ["--prompt=a"],
            score: ["--text=a"],
            export: [f"--output_dir={self.folder / 'exports'}"],
        }
        for program, flags in programs.items():
            with self.subTest(program.__name__):
                code, _, err = helpers.run(program, "--model_dir=bert", *flags)
                self.assertEqual(code, 2)
                self.assertRegex(err, "^error: --model_dir=bert: no such folder; .*=hf://bert\n$")
        gpt = self.folder / "gpt"
        tfzoo.save(helpers.noisy_model("gpt2", vocab_size=len(WORDS), **SIZES), gpt, self.tokenizer)
        flags = [f"--model_dir={gpt}", "--prompt=a", "--assistant_dir=bert"]
        self.assertIn("--assistant_dir=bert: no such folder", helpers.run(generate, *flags)[2])
        for program in (generate, score):
            code, _, err = helpers.run(program, "--model_dir=hf://bert", *programs[program])
            self.assertEqual(code, 2)
            self.assertRegex(err, "decoder|language model")  # The model was read: BERT cannot generate text.

    @pytest.mark.faults
    def test_training_keeps_the_commit(self):
        first = self.server.commit("bert", self.files, "main")
        run_dir = self.folder / "run"
        flags = tiny_run.flags(self.folder, steps=1, warmup_steps=0, init_from="hf://bert", pairs="none")
        flags = [flag for flag in flags if not flag.startswith(("--vocab_size", "--overrides"))]
        flags.append("--overrides=hidden_size=16,num_layers=1,num_heads=2,intermediate_size=32,max_positions=32")
        code, out, err = helpers.run(train, f"--run_dir={run_dir}", *flags)
        self.assertEqual(code, 0, err)
        self.assertIn(f"from hf://bert@{first}:\nloaded ", out)
        self.assertIn(f"--init_from=hf://bert@{first}\n", (run_dir / "flags.cfg").read_text())
        # The run resumes with its original commit, even if the name now refers to another commit or does not exist.
        self.server.commit("bert", self.files | {"README.md": b"new"}, "main")
        self.new_process(HF_ENDPOINT=self.server.address, HF_HUB_CACHE=str(self.cache))
        flags[flags.index("--steps=1")] = "--steps=2"
        for more, expected in (((), 0), ((f"--init_from=hf://bert@{first}",), 0), (("--init_from=hf://bert@main",), 2)):
            code, _, err = helpers.run(train, f"--run_dir={run_dir}", *flags, *more)
            self.assertEqual(code, expected, err)
        self.assertIn(f"--init_from (hf://bert@{first} -> hf://bert@", err)
        self.server.repositories.clear()
        self.new_process(HF_ENDPOINT=self.server.address, HF_HUB_CACHE=str(self.folder / "empty"))
        self.assertEqual(helpers.run(train, f"--run_dir={run_dir}", *flags)[0], 0)


if __name__ == "__main__":
    tf.test.main()
