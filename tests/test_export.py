"""`cli export`: the folder says what the checkpoint says, ends where it ended, and says where it came from."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import xxhash
from click.testing import Result
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from cli import main
from schemas import own
from tests.support.agent import Agent, checkpoint, compile_set, seal
from tests.support.command import runner
from tests.support.store import BUCKET, Store
from tests.support.tiny import lora, qwen2
from tests.support.trained import outside, write_manifest
from trainer.models.pretrained import load_model, load_tokenizer
from trainer.predict.generate import predict, prompts, stop_ids, stop_words
from trainer.use import export as export_module

Run = Callable[..., Result]


@pytest.fixture
def base(agent: Agent, tmp_path: Path) -> Path:
    shutil.copytree(agent.model, tmp_path / "base")
    return tmp_path / "base"


def logits(model: nn.Module, agent: Agent) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([agent.rows[1]["input_ids"]])).logits


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_adapter_says_what_the_adapter_said(
    agent: Agent, tmp_path: Path, base: Path, run: Run, dtype: torch.dtype
) -> None:
    load_model(base).to(dtype).save_pretrained(base)
    adapted = lora(load_model(base), trained=True)
    wanted = logits(adapted, agent)
    run("export", checkpoint(agent, tmp_path, adapted, base=base), tmp_path / "out")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.dtype == dtype
    assert not isinstance(exported, type(adapted))
    off = (logits(exported, agent) - wanted).abs().max().item()
    assert off < (1e-4 if dtype == torch.float32 else 0.5)
    assert (logits(load_model(base), agent) - wanted).abs().max().item() > 4 * off + 0.1  # the adapter did something


def test_a_full_checkpoint_is_copied(agent: Agent, tmp_path: Path, run: Run) -> None:
    model = load_model(agent.model)
    model.config.use_cache = False  # as trained
    path = checkpoint(agent, tmp_path, model)
    run("export", path, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
    assert load_model(tmp_path / "out").config.use_cache is True
    assert not (tmp_path / "out" / "deepspeed").exists()


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_type_of_the_weights_can_be_chosen(agent: Agent, tmp_path: Path, run: Run, tuning: str) -> None:
    model = load_model(agent.model)
    path = checkpoint(agent, tmp_path, lora(model, trained=True) if tuning == "lora" else model)
    run("export", path, tmp_path / "out")
    wanted = load_file(tmp_path / "out" / "model.safetensors")
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        run("export", path, tmp_path / name, "--dtype", name)
        found = load_file(tmp_path / name / "model.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key].to(dtype)) for key in wanted)
        assert AutoModelForCausalLM.from_pretrained(tmp_path / name).dtype == dtype
    said = run("export", path, tmp_path / "other", "--layout", "original", code=2).stderr
    assert f"--layout original: {agent.model} has the layout of Transformers" in said


def test_the_exported_folder_alone_gives_the_predictions_of_the_model(agent: Agent, tmp_path: Path, run: Run) -> None:
    run("export", checkpoint(agent, tmp_path, lora(load_model(agent.model))), tmp_path / "out")
    model, tokenizer = load_model(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    wanted = [prompt for row in agent.rows for prompt in prompts(row)]
    found = predict(
        model, tokenizer, wanted, stops=stop_ids(agent.manifest), words=stop_words(agent.manifest), max_new_tokens=80
    )
    assert [p.prediction for p in found] == [p.reference for p in found]


def test_a_set_in_a_store_serves_export_and_chat(agent: Agent, store: Store, tmp_path: Path, run: Run) -> None:
    uri = f"s3://{BUCKET}/export/set"
    for name, data in tree(agent.set).items():
        store.put(f"export/set/{name}", data)
    path = checkpoint(agent, tmp_path, lora(load_model(agent.model)))
    run("export", path, tmp_path / "here")
    facts = json.loads((path / "run.json").read_text()) | {"provenance": {"out": uri}}
    (path / "run.json").write_text(json.dumps(facts))
    seal(path)
    run("export", path, tmp_path / "there")
    assert tree(tmp_path / "there") == tree(tmp_path / "here")
    facts["provenance"]["out"] = str(tmp_path / "nowhere")
    (path / "run.json").write_text(json.dumps(facts))
    seal(path)
    done = runner().invoke(main, ["chat", str(agent.model), "--adapter", str(path), "--set", uri], input="2 + 2?\n")
    assert done.stdout == "4, of course.\n"


def test_the_chat_template_gives_the_tokens_of_the_set(agent: Agent, tmp_path: Path, run: Run) -> None:
    run("export", checkpoint(agent, tmp_path, load_model(agent.model)), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4, of course."}]
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    assert list(ids) in [row["input_ids"] for row in agent.rows]


def test_generation_ends_where_the_templates_replies_end(agent: Agent, tmp_path: Path, run: Run) -> None:
    run("export", checkpoint(agent, tmp_path, load_model(agent.model)), tmp_path / "out")
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    assert config.eos_token_id == [8002, 8000]  # <|im_end|>, then the model's own
    assert config.pad_token_id == 8000
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "2 + 2?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    said = model.generate(**ids, max_new_tokens=40, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(said) == "4, of course.<|im_end|>"


def test_provenance_says_which_data_model_and_checkpoint(agent: Agent, tmp_path: Path, run: Run) -> None:
    printed = run(
        "export", checkpoint(agent, tmp_path, lora(load_model(agent.model)), step=12), tmp_path / "out", "--json"
    )
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text(encoding="utf-8"))
    assert json.loads(printed.stdout) == {"version": 1} | provenance
    assert provenance["base_model"] == "maker/tiny"
    assert (provenance["step"], provenance["checkpoint"], provenance["tuning"]) == (12, "checkpoint-12", "lora, merged")
    assert provenance["set"]["manifest_digest"] == agent.manifest["digest"]
    (dataset,) = provenance["set"]["datasets"]
    assert dataset["name"] == "chats" and dataset["realized"]["rows"] == 3
    assert dataset["files"] == agent.manifest["datasets"][0]["files"]
    out = tmp_path / "out"
    assert set(provenance["files"]) == {path.name for path in out.iterdir()} - {"provenance.json"}
    for name, (size, digest) in provenance["files"].items():
        data = (out / name).read_bytes()
        assert (len(data), xxhash.xxh3_128_hexdigest(data)) == (size, digest)
    readme = (out / "README.md").read_text(encoding="utf-8")
    assert f"| chats | 3 | {dataset['realized']['tokens']:,} |" in readme and "`<|im_end|>`" in readme
    assert agent.manifest["digest"] in readme and str(agent.model) not in readme  # no paths of the machine


def test_a_template_card_becomes_the_chat_template(agent: Agent, tmp_path: Path, run: Run) -> None:
    carded = compile_set(tmp_path, "--template", "qwen")
    manifest = json.loads((carded / "manifest.json").read_text(encoding="utf-8"))
    other = Agent(carded, manifest, [], agent.model)
    said = run("export", checkpoint(other, tmp_path, load_model(agent.model)), tmp_path / "out").stdout
    assert "The chat template is the card qwen." in said
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>")


@pytest.mark.filterwarnings("ignore::UserWarning:peft")  # of tied weights, which are what is tested
def test_an_adapter_on_tied_embeddings_is_merged_right_or_not_at_all(agent: Agent, tmp_path: Path, run: Run) -> None:
    from peft import LoraConfig, get_peft_model

    qwen2(8005, tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    adapted = get_peft_model(load_model(tmp_path / "tied"), LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    wanted = logits(adapted, agent)
    path = checkpoint(agent, tmp_path, adapted, base=tmp_path / "tied")
    run("export", path, tmp_path / "out")
    torch.testing.assert_close(logits(load_model(tmp_path / "out"), agent), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_what_cli_train_writes_is_exported(agent: Agent, base: Path, tmp_path: Path, run: Run) -> None:
    for file in (agent.set / "tokenizer").iterdir():
        shutil.copyfile(file, base / file.name)
    settings = {"model_name_or_path": str(base), "output_dir": str(tmp_path / "o"), "tuning": "lora"}
    settings |= {"max_steps": 1, "save_steps": 1, "per_device_train_batch_size": 3, "use_cpu": True}
    (tmp_path / "lora.yaml").write_text(json.dumps(settings), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "cli", "train", str(agent.set), str(tmp_path / "lora.yaml")],
        capture_output=True, text=True, timeout=180, check=False, env=outside(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = run("export", tmp_path / "o" / "checkpoint-1", tmp_path / "out", "--json").stdout
    assert json.loads(said)["tuning"] == "lora, merged"
    assert load_tokenizer(tmp_path / "out").chat_template


# -- what is refused --


def test_an_incomplete_checkpoint_is_refused(agent: Agent, tmp_path: Path, run: Run) -> None:
    path = checkpoint(agent, tmp_path, load_model(agent.model))
    (path / "COMPLETE").unlink()
    assert "the checkpoint is unfinished" in run("export", path, tmp_path / "out", code=4).stderr
    assert not (tmp_path / "out").exists()


def test_a_prefix_cannot_be_merged_and_the_message_says_why(agent: Agent, tmp_path: Path, run: Run) -> None:
    from peft import PrefixTuningConfig, get_peft_model

    prefix = get_peft_model(load_model(agent.model), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    said = run("export", checkpoint(agent, tmp_path, prefix), tmp_path / "out", code=2).stderr
    assert "which no weight of a model can hold" in said and "cli chat MODEL --adapter" in said


def test_somebodys_folder_is_left_alone_and_an_export_is_replaced(agent: Agent, tmp_path: Path, run: Run) -> None:
    path, out = checkpoint(agent, tmp_path, load_model(agent.model)), tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("three years", encoding="utf-8")
    (out / "provenance.json").write_text("{", encoding="utf-8")  # somebody's too
    before = tree(tmp_path)
    assert "holds no export (found 'provenance.json')" in run("export", path, out, code=2).stderr
    assert tree(tmp_path) == before
    shutil.rmtree(out)
    run("export", path, out)
    (out / "notes.txt").write_text("more years", encoding="utf-8")
    before = tree(tmp_path)
    assert "'notes.txt' is beside the export in it" in run("export", path, out, code=2).stderr
    assert tree(tmp_path) == before
    (out / "notes.txt").unlink()
    run("export", path, out)
    assert tree(tmp_path) == {name: data for name, data in before.items() if "notes.txt" not in str(name)}
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_what_a_killed_export_left_is_mended_and_what_others_made_is_refused(
    agent: Agent, tmp_path: Path, run: Run
) -> None:
    path, out = checkpoint(agent, tmp_path, load_model(agent.model)), tmp_path / "out"
    run("export", path, out)
    exported = tree(out)
    out.rename(tmp_path / ".out.old")  # killed between the two renames that replace an export
    own.make(tmp_path / ".out.partial", "provenance.json", {"made_by": export_module.MADE_BY})
    assert "in the way" not in run("export", path, out).stderr
    assert tree(out) == exported
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "notes.txt").write_text("theirs", encoding="utf-8")
    said = run("export", path, out, code=2).stderr
    assert f"{tmp_path / '.out.partial'}: it is in the way, and no export made it" in said
    assert tree(out) == exported
    assert (tmp_path / ".out.partial" / "notes.txt").read_text(encoding="utf-8") == "theirs"


def test_a_set_that_names_files_elsewhere_is_refused_before_anything_is_written(
    agent: Agent, tmp_path: Path, run: Run
) -> None:
    path, hostile = checkpoint(agent, tmp_path, load_model(agent.model)), tmp_path / "hostile"
    shutil.copytree(agent.set, hostile)
    for name in ("../../up", str(tmp_path / "absolute"), "tokenizer/../../up", "tokenizer/.hidden", "a\\b", ""):
        manifest = json.loads((agent.set / "manifest.json").read_text(encoding="utf-8"))
        manifest["files"][name] = hashlib.sha256(b"").hexdigest()
        write_manifest(hostile, manifest)
        changed = json.loads((path / "run.json").read_text(encoding="utf-8")) | {"set": manifest["digest"]}
        (path / "run.json").write_text(json.dumps(changed), encoding="utf-8")
        seal(path)
        before = tree(tmp_path)
        for command in (("export", path, tmp_path / "out", "--set", hostile), ("verify", hostile)):
            assert "manifest.json: not a manifest: /files: " in run(*command, code=4).stderr
        assert tree(tmp_path) == before
    manifest = json.loads((agent.set / "manifest.json").read_text(encoding="utf-8"))
    manifest["splits"]["../.."] = manifest["splits"]["val"]
    write_manifest(hostile, manifest)
    assert "not a manifest: /splits: " in run("verify", hostile, code=4).stderr


def test_an_export_that_fails_leaves_the_one_before(
    agent: Agent, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = checkpoint(agent, tmp_path, load_model(agent.model)), tmp_path / "out"
    run("export", path, out)
    before = tree(out)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "_generation_config", full)  # after the weights, which a full disk would stop
    assert "No space left on device" in run("export", path, out, code=5).stderr
    assert tree(out) == before
    assert {p.name for p in tmp_path.iterdir()} == {"out", path.name}


def test_a_set_that_is_another_or_damaged_or_gone_is_named(agent: Agent, tmp_path: Path, run: Run) -> None:
    path, moved = checkpoint(agent, tmp_path, load_model(agent.model)), tmp_path / "moved"
    shutil.copytree(agent.set, moved)
    settings = json.loads((path / "run.json").read_text(encoding="utf-8"))
    settings["provenance"]["out"] = str(tmp_path / "gone")
    (path / "run.json").write_text(json.dumps(settings), encoding="utf-8")
    seal(path)
    assert "--set" in run("export", path, tmp_path / "out", code=5).stderr
    run("export", path, tmp_path / "out", "--set", moved)
    other = compile_set(tmp_path, "--seed", "5")
    assert "found" in run("export", path, tmp_path / "out", "--set", other, code=4).stderr
    name = moved / "tokenizer" / "tokenizer.json"
    data = bytearray(name.read_bytes())
    data[1000] ^= 1
    name.write_bytes(data)
    assert str(name) in run("export", path, tmp_path / "out", "--set", moved, code=4).stderr


def test_a_model_that_is_not_there_is_named(agent: Agent, tmp_path: Path, run: Run) -> None:
    path = checkpoint(agent, tmp_path, lora(load_model(agent.model)), base=tmp_path / "gone")
    assert str(tmp_path / "gone") in run("export", path, tmp_path / "out", code=5).stderr
    run("export", path, tmp_path / "out", "--model", agent.model)
    assert "not a checkpoint" in run("export", agent.model, tmp_path / "other", code=5).stderr


@pytest.mark.parametrize("fault", ["one layer is not merged", "another scaling", "one adapter is not loaded"])
def test_a_merge_that_is_wrong_in_one_layer_is_refused(
    agent: Agent, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The adapter is so weak that predictions do not show it."""
    adapted = lora(load_model(agent.model))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=1e-5)
    path = checkpoint(agent, tmp_path, adapted)
    run("export", path, tmp_path / "right")
    real = peft.PeftModel.from_pretrained

    def wrong(*given: Any, **more: Any) -> Any:
        model = real(*given, **more)
        layer = model.get_base_model().model.layers[1].self_attn.q_proj
        if fault == "one layer is not merged":
            layer.merge = lambda *_, **__: None
        elif fault == "another scaling":
            layer.scaling["default"] *= 1.1
        else:
            layer.lora_B["default"].weight.data.zero_()
        return model

    monkeypatch.setattr(peft.PeftModel, "from_pretrained", wrong)
    said = run("export", path, tmp_path / "out", code=4).stderr
    assert "the merged weight of model.layers.1.self_attn.q_proj.weight is not that of" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize(
    "settings",
    [{"use_rslora": True}, {"use_dora": True}, {"target_modules": ["embed_tokens", "q_proj"]},
     {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}],
    ids=str,
)  # fmt: skip
def test_adapters_of_every_kind_are_merged(agent: Agent, tmp_path: Path, run: Run, settings: dict[str, Any]) -> None:
    made = peft.LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": "all-linear", **settings})
    adapted = peft.get_peft_model(load_model(agent.model), made)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "lora_A" not in name:
            parameter.data += torch.randn_like(parameter) * 0.05
    wanted = logits(adapted, agent)
    run("export", checkpoint(agent, tmp_path, adapted), tmp_path / "out")
    torch.testing.assert_close(logits(load_model(tmp_path / "out"), agent), wanted, rtol=1e-4, atol=1e-4)


def test_another_base_is_refused_and_a_moved_one_is_taken(agent: Agent, base: Path, tmp_path: Path, run: Run) -> None:
    """Another: other numbers, other settings, or the model with the adapter merged in. It holds for chats too."""
    path = checkpoint(agent, tmp_path, lora(load_model(agent.model), trained=True))
    run("export", path, tmp_path / "out", "--model", base)
    assert json.loads((tmp_path / "out" / "provenance.json").read_text())["base_digest"]
    once = run("export", path, tmp_path / "twice", "--model", tmp_path / "out", code=4).stderr
    assert "(an export: it may hold the adapter already)" in once
    assert str(agent.model) in once
    for folder in (shutil.copytree(base, tmp_path / "other"), shutil.copytree(base, tmp_path / "settings")):
        if folder.name == "other":
            model = load_model(folder)
            model.model.layers[1].mlp.up_proj.weight.data.mul_(1.01)
            model.save_pretrained(folder)
        else:
            config = json.loads((folder / "config.json").read_text()) | {"rms_norm_eps": 1e-3}
            (folder / "config.json").write_text(json.dumps(config))
        said = run("export", path, tmp_path / "twice", "--model", folder, code=4).stderr
        assert f"{folder}: expected the model" in said
        assert "was trained on, found" in run("chat", folder, "--adapter", path, code=4).stderr
    assert not (tmp_path / "twice").exists()
    load_model(base).save_pretrained(tmp_path / "cut", max_shard_size="100KB")
    (tmp_path / "cut" / "config.json").write_bytes((base / "config.json").read_bytes())
    run("export", path, tmp_path / "twice", "--model", tmp_path / "cut")  # the same model in other files


def test_an_adapter_that_is_not_a_number_is_refused(agent: Agent, tmp_path: Path, run: Run) -> None:
    adapted = lora(load_model(agent.model), trained=True)
    next(p for n, p in adapted.named_parameters() if "lora_B" in n).data[0, 0] = float("nan")
    assert "cannot be merged" in run("export", checkpoint(agent, tmp_path, adapted), tmp_path / "out", code=4).stderr
    assert not (tmp_path / "out").exists()
