"""Files of other tools, as their own examples have them: each key takes effect, is refused for its reason, or is told.

The defaults are listed here once more, from the tools' own code, and not from the tables.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import transformers

import registry
from schemas.errors import Problem, UsageError
from tests.support.documents import AGENT, FILES, SCRIPTS
from tests.support.shared import shared
from trainer.config import dialects, shell
from trainer.config import load as configs
from trainer.config.config import Lora, Prefix
from trainer.config.load import Loaded

TOOLS = Path(__file__).parent / "data" / "train" / "tools"
MODEL = "model_name_or_path=m"


def load(path: Path, values: Any, *overrides: str) -> Loaded:
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return configs.load(path, overrides)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "train.sh"


# -- the seeds' own --


def test_the_agent_call_of_ms_swift_1_says_the_same_here() -> None:
    loaded = configs.load(AGENT)
    c = loaded.config
    assert loaded.dialect == "ms_swift_1"
    assert (c.model_name_or_path, c.model_revision, c.output_dir) == ("qwen/Qwen-7B-Chat", None, "output")
    assert c.lora == Lora(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=["all", "embeddings"])
    assert (c.learning_rate, c.num_train_epochs, c.weight_decay, c.max_grad_norm) == (5e-5, 2, 0.01, 0.5)
    assert (c.per_device_train_batch_size, c.gradient_accumulation_steps, c.warmup_ratio) == (2, 4, 0.03)
    assert (c.eval_strategy, c.eval_steps, c.save_steps, c.save_total_limit) == ("steps", 100, 100, 2)
    assert (c.gradient_checkpointing, c.bf16, c.group_by_length, c.expect.max_length) == (True, "auto", False, 2048)
    told = {line.split()[0] for line in loaded.remarks}
    assert {"dataset", "train_dataset_mix_ratio", "self_cognition_sample", "model_name", "report_to"} <= told
    assert "the environment of the call (PYTHONPATH) is not taken over" in "\n".join(loaded.remarks)


def test_a_call_of_ms_swift_reads_modelscope_unless_it_or_the_environment_says_otherwise(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """USE_HF and use_hf are its own; without them it reads ModelScope."""
    for variable in ("USE_HF", "USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB"):
        monkeypatch.delenv(variable, raising=False)
    assert configs.load(AGENT).config.hub == "modelscope"
    assert configs.load(TOOLS / "qwen3_dpo.sh").config.hub == "modelscope"
    assert load(script, "swift sft --model a/b --output_dir o --use_hf true\n").config.hub == "huggingface"
    here = load(script, f"swift sft --model {tmp_path} --output_dir o\n")
    assert here.config.hub is None
    assert not [line for line in here.remarks if line.startswith("hub")]
    monkeypatch.setenv("USE_HF", "1")
    assert configs.load(AGENT).config.hub is None


def test_a_script_of_chatglm3_says_the_same_here() -> None:
    loaded = configs.load(SCRIPTS / "finetune_pt_multiturn.sh")
    c = loaded.config
    assert loaded.dialect == "chatglm3"
    assert (c.tuning, c.prefix) == ("prefix", Prefix(num_virtual_tokens=128))
    assert (c.learning_rate, c.max_steps, c.per_device_train_batch_size) == (2e-2, 1000, 1)
    assert (c.gradient_accumulation_steps, c.logging_steps, c.save_steps, c.expect.max_length) == (16, 1, 500, 2048)
    assert c.output_dir == "output/tool_alpaca_pt-date-128-2e-2", "the same at every start, for --resume"
    told = "\n".join(loaded.remarks)
    assert "is read, not run: set (line 3), mkdir (line 22) are left out" in told
    assert "what follows the call is not run: 2>&1 | tee" in told
    assert "the word date here" in told
    assert "gradient_checkpointing is off" in told


def test_a_full_run_of_chatglm3_recomputes_as_there() -> None:
    c = configs.load(SCRIPTS / "finetune_ds_multiturn.sh").config
    assert (c.tuning, c.gradient_checkpointing, c.fp16, c.deepspeed) == ("full", True, True, "configs/deepspeed.json")
    assert c.learning_rate == 5e-5, "the script gives none: that of TrainingArguments"


def test_gradient_checkpointing_is_on_where_their_code_switches_it_on() -> None:
    """ChatGLM3's finetune_hf.py does before every run; CogAgent's finetune.py only before it resumes."""
    on = {
        name: configs.load(path, [MODEL]).config.gradient_checkpointing
        for name, path in FILES.items()
        if name != "llama_factory"
    }
    assert on == {
        "cogagent_lora": False, "cogagent_sft": False,
        "chatglm3_lora": True, "chatglm3_ptuning_v2": False, "chatglm3_sft": True,
    }  # fmt: skip
    assert not any(configs.load(path, [MODEL]).config.group_by_length for path in FILES.values())


# -- what nobody wrote down: the tools' defaults --

TRANSFORMERS = {
    "per_device_train_batch_size": 8, "learning_rate": 5e-5, "num_train_epochs": 3.0, "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0, "weight_decay": 0.0, "adam_beta2": 0.999, "max_grad_norm": 1.0, "logging_steps": 500,
    "save_steps": 500, "eval_strategy": "no", "seed": 42, "group_by_length": False, "report_to": [],
}  # fmt: skip
"""transformers 5.24, training_args.py"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"stage": "sft", "output_dir": "out"},
            TRANSFORMERS | {
                "freeze_vision": "auto", "freeze_projector": "auto", "freeze_language_model": False,
                "gradient_checkpointing": True, "tuning": "lora", "lora": Lora(r=8, lora_alpha=16), "plot_loss": False,
                "bnb_4bit_use_double_quant": True, "objective": "sft",
            },
        ),
        (
            {"tuner_type": "lora", "dataset": ["a"], "model": "m/Qwen"},
            TRANSFORMERS | {
                "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "learning_rate": 1e-4,
                "lr_scheduler_type": "cosine", "weight_decay": 0.1, "adam_beta2": 0.95, "logging_steps": 5,
                "gradient_checkpointing": True, "output_dir": "output/Qwen", "freeze_vision": "auto",
                "lora": Lora(r=8, lora_alpha=32, lora_dropout=0.05), "ddp_timeout": 18000000,
            },
        ),
        ({"tuner_type": "full", "model": "m"}, {"learning_rate": 1e-5}),
        (
            {"tuner_type": "lora", "model": "m", "split_dataset_ratio": 0.01, "save_steps": 50},
            {"eval_strategy": "steps", "eval_steps": 50, "per_device_eval_batch_size": 1},
        ),
        ({"tuner_type": "lora", "model": "m", "target_modules": ["q_proj"]}, {"freeze_vision": False}),
        (
            {"sft_type": "lora", "model_id_or_path": "m"},
            TRANSFORMERS | {
                "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "learning_rate": 1e-4,
                "num_train_epochs": 1, "warmup_ratio": 0.05, "weight_decay": 0.01, "max_grad_norm": 0.5,
                "logging_steps": 5, "save_steps": 50, "eval_steps": 50, "eval_strategy": "steps", "save_total_limit": 2,
                "lora": Lora(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=["q_proj", "k_proj", "v_proj"]),
            },
        ),
        ({"sft_type": "full", "model_id_or_path": "m"}, {"learning_rate": 1e-5}),
    ],
)  # fmt: skip
def test_a_default_is_that_of_its_tool(file: Path, given: dict[str, Any], expected: dict[str, Any]) -> None:
    """LLaMA-Factory: hparams/*.py. ms-swift: trainers/arguments.py, arguments/*.py; 1.6: llm/utils/argument.py."""
    c = load(file, given, *([] if "model" in given or "model_id_or_path" in given else [MODEL])).config
    assert {key: getattr(c, key) for key in expected} == expected


def test_an_override_wins_over_a_default_and_null_unsets_it(file: Path) -> None:
    c = load(file, {"stage": "sft", "output_dir": "o"}, MODEL, "expect.max_length=null", "logging_steps=7").config
    assert (c.expect.max_length, c.logging_steps) == (None, 7)


def test_accumulation_shares_16_rows_among_the_processes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    given = {"tuner_type": "lora", "model": "m", "per_device_train_batch_size": 3}
    assert load(file, given).config.gradient_accumulation_steps == 2  # ceil(16 / 12)


def test_a_vision_file_of_llama_factory_adapts_the_language_model(file: Path) -> None:
    c = configs.load(TOOLS / "llama_factory_dpo_vl.yaml").config
    assert (c.objective, c.freeze_vision, c.freeze_projector, c.report_to) == ("dpo", "auto", "auto", [])
    text = (TOOLS / "llama_factory_dpo_vl.yaml").read_text()
    c = load(file, f"{text}freeze_vision_tower: false\ndisable_gradient_checkpointing: true\n").config
    assert (c.freeze_vision, c.gradient_checkpointing) == (False, False)


def test_a_call_of_ms_swift_is_read_from_its_shell_file() -> None:
    loaded = configs.load(TOOLS / "qwen3_dpo.sh")
    c = loaded.config
    assert loaded.dialect == "ms_swift"
    assert (c.objective, c.model_name_or_path, c.bf16, c.lora.target_modules) == ("dpo", "Qwen/Qwen3-8B", True, "all")
    assert (c.gradient_accumulation_steps, c.expect.val_size, c.save_total_limit, c.eval_steps) == (8, 0.02, None, 50)
    assert isinstance(c.deepspeed, dict) and c.deepspeed["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert "(CUDA_VISIBLE_DEVICES, NPROC_PER_NODE) is not taken over" in "\n".join(loaded.remarks)


@pytest.mark.parametrize(
    ("given", "expected"),
    [  # objective, beta, simpo_gamma, rpo_alpha; beta None is 2.0 for simpo, else 0.1
        ({"stage": "dpo", "pref_loss": "sigmoid", "pref_ftx": 0.1}, ("dpo", None, 0.5, 0.1)),
        ({"pref_loss": "ipo", "stage": "dpo", "pref_beta": 0.2}, ("ipo", 0.2, 0.5, None)),
        ({"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 0.7}, ("simpo", None, 0.7, None)),
        ({"stage": "dpo", "pref_loss": "orpo"}, ("orpo", None, 0.5, None)),
        ({"rlhf_type": "dpo", "model": "m", "rpo_alpha": 0.1}, ("dpo", None, 0.5, 0.1)),
        ({"loss_type": "ipo", "rlhf_type": "dpo", "model": "m"}, ("ipo", None, 0.5, None)),
        ({"rlhf_type": "orpo", "model": "m"}, ("orpo", None, 0.5, None)),
        ({"rlhf_type": "simpo", "model": "m"}, ("simpo", 2.0, 1.0, 1.0)),  # cpo_alpha is 1.0 in ms-swift
        ({"rlhf_type": "simpo", "model": "m", "cpo_alpha": 0.5}, ("simpo", 2.0, 1.0, 0.5)),
    ],
)
def test_a_preference_loss_is_an_objective(file: Path, given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    c = load(file, given | {"output_dir": "o"}, MODEL).config
    assert (c.objective, c.beta, c.simpo_gamma, c.rpo_alpha) == expected


# -- shell files --


def words(path: Path, call: str) -> dict[str, Any]:
    path.write_text(call, encoding="utf-8")
    return shell.read(path).raw


def test_words_are_those_that_a_shell_makes(script: Path) -> None:
    text = r"""
    A=one; B="two words"
    N=7
    export C='$N'
    swift sft --a "$A x" --b $B --c "$B" --d '$A' --e ${N}0 --f a\ b --g=1 --h --i -1 --j 1e-4 \
        --l '{"m": [1]}' --n true   # the end
    """.replace("A=one; B", "A=one\n    B")
    assert words(script, text) == {
        "a": "one x", "b": ["two", "words"], "c": "two words", "d": "$A", "e": 70, "f": "a b", "g": 1, "h": True,
        "i": -1, "j": 1e-4, "l": {"m": [1]}, "n": True,
    }  # fmt: skip
    assert words(script, "N=2\nswift sft --a $(expr 64 / $N / 4) --b $((N * 3)) --c `expr 9 - $N`") == {
        "a": 8, "b": 6, "c": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("swift sft --model $MODEL", ":1: $MODEL is not set in the file"),
        ("A=$(ls)\nswift sft --model $A", ":2: $A needs a shell: $(ls) needs a shell"),
        ("swift sft --model $(cat name)", ":1: $(cat name) needs a shell"),
        ("swift sft --model ${A:-b}", ":1: ${A:-b} needs a shell"),
        ("swift sft --model $1", ":1: $1 needs a shell"),
        ("for lr in 1 2; do\n  swift sft --model m\ndone", ":1: for needs a shell"),
        ("train() {\n  swift sft --model m\n}\ntrain", ":1: train() needs a shell"),
        ('swift sft --system "a\nb" --model m', ':1: a quote (") is not closed'),
        ("swift sft --a $((1 / 0))", "divides by 0"),
        ("swift sft --a 1 \\\n  # --b 2 \\\n  --c 3", ":3: --c stands in a line of its own"),
        ("swift sft --a 1\n  --c 3", ":2: --c stands in a line of its own"),
        ("swift infer --model m", "no call that trains is in it"),
        ("swift sft --model a\nswift sft --model b", "2 calls train, in lines 1, 2"),
        ("swift sft train.yaml", "sft takes its settings from train.yaml"),
        ("python finetune.py data model lora.yaml yes", "cli train SET FILE --model MODEL"),
    ],
)
def test_what_would_need_a_shell_is_refused_by_name(script: Path, text: str, said: str) -> None:
    script.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=re.escape(said)):
        configs.load(script)


def test_nothing_of_a_shell_file_is_run(tmp_path: Path, script: Path) -> None:
    made = tmp_path / "made"
    script.write_text(f"touch {made}\nX=$(touch {made})\nY=`touch {made}`\nswift sft --tuner_type lora --model m\n")
    assert configs.load(script).config.model_name_or_path == "m"
    assert not made.exists()


# -- what is refused, and why --


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stage": "ppo"}, "#/stage: 'ppo' is not supported: PPO needs a reward model"),
        ({"stage": "sft", "use_galore": True}, "#/use_galore: true is not supported: the optimizer is torch's AdamW"),
        ({"stage": "sft", "galore_rank": 8}, "#/galore_rank: it is a setting of GaLore"),
        ({"stage": "dpo", "pref_loss": "kto_pair"}, "#/pref_loss: 'kto_pair' is not supported"),
        ({"stage": "sft", "finetuning_type": "freeze"}, "it trains the last layers only"),
        ({"stage": "sft", "quantization_method": "hqq"}, "with bitsandbytes only"),
        ({"stage": "sft", "add_tokens": "<a>"}, "add the tokens to the model's folder first"),
        ({"stage": "sft", "cutof_len": 5}, "#/cutof_len: it is not known here as a key of LLaMA-Factory"),
        ({"tuner_type": "boft", "model": "m"}, "'boft' is not supported: adapters are LoRA's"),
        ({"rlhf_type": "grpo", "model": "m"}, "GRPO needs rewards"),
        ({"tuner_type": "lora", "model": "m", "task_type": "embedding"}, "are causal language models"),
        ({"tuner_type": "lora", "model": "m", "vllm_mode": "colocate"}, "no replies are generated by vLLM"),
    ],
)
def test_a_key_that_cannot_be_had_is_refused_for_its_own_reason(file: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        load(file, given | {"output_dir": "o"}, MODEL)
    assert caught.value.exit_code == 2


def test_one_message_names_all_keys_that_cannot_be_used(file: Path) -> None:
    given = {"stage": "rm", "use_badam": True, "badam_mode": "layer", "foo_bar": 1, "output_dir": "o"}
    with pytest.raises(UsageError) as caught:
        load(file, given, MODEL)
    said = str(caught.value)
    assert "4 of its keys cannot be used" in said
    for key in ("stage", "use_badam", "badam_mode", "foo_bar"):
        assert f"\n  #/{key}: " in said


def test_a_file_without_any_known_key_is_no_configuration(file: Path) -> None:
    with pytest.raises(UsageError, match="none of its keys is one of a training configuration; the first is '<a>'"):
        load(file, {"<a>": "what it means"})


@pytest.mark.parametrize("tool", ["llama_factory", "ms_swift"])
def test_no_key_that_a_tool_has_is_called_unknown(tool: str) -> None:
    names = json.loads((TOOLS / "arguments.json").read_text(encoding="utf-8"))[tool]
    assert len(names) > 180
    keys = registry.train_config(tool)["keys"]
    assert [name for name in names if dialects.entry_of(keys, name) is None] == []


def test_no_argument_of_transformers_is_called_unknown() -> None:
    names = [field.name for field in dataclasses.fields(transformers.Seq2SeqTrainingArguments)]
    for tool in ("own", "llama_factory", "ms_swift", "ms_swift_1", "chatglm3"):
        keys = registry.train_config(tool)["keys"]
        told = {
            name for name in names if dialects.entry_of(keys, name) or dialects.entry_of(keys, f"{name}.max_new_tokens")
        }
        assert set(names) == told


# -- all examples of the tools --


def _check(path: Path, keys: list[str]) -> Loaded | set[str]:
    """Load a file of a tool, or return the keys for which it is refused: keys of the file, and never as unknown."""
    try:
        return configs.load(path)
    except Problem as error:
        said = str(error)
        assert "not known here" not in said
        assert "Traceback" not in said
        named = set(re.findall(r"#/([\w.]+)", said))
        assert named, said
        assert named <= set(keys)
        return named


REFUSED = {  # by the part of the path that says what they are examples of
    "adam_mini", "apollo", "asft", "badam", "dft", "eaft", "fp8", "galore", "llama_pro", "mod", "muon", "nlg_eval",
    "oft", "qoft", "multi_tokens", "reward", "ray",
}  # fmt: skip


OTHERS = {  # what a call of ms-swift may need that is not here
    "task_type", "num_labels", "loss_type", "loss_weights", "tuner_type", "tuner_backend", "external_plugins", "fsdp",
    "optimizer", "use_galore", "lisa_activated_layers", "init_weights", "quant_method", "sequence_parallel_size",
    "new_special_tokens", "eval_use_evalscope", "max_epochs",
}  # fmt: skip


def test_every_example_of_llama_factory_loads_or_is_refused_for_its_keys(tmp_path: Path) -> None:
    files = json.loads(shared("data", "llamafactory", "example_configs.json").read_text(encoding="utf-8"))["files"]
    assert len(files) == 48
    for name, values in files.items():
        path = tmp_path / Path(name).name
        path.write_text(json.dumps(values), encoding="utf-8")
        if "multi_tokens" in name:  # a list of tokens, and no configuration
            with pytest.raises(UsageError, match="none of its keys"):
                configs.load(path)
            continue
        loaded = _check(path, list(values))
        assert isinstance(loaded, set) == bool(REFUSED & {*re.split(r"[/_.]", name), *name.split("/")}), name
        if isinstance(loaded, set):
            continue
        c = loaded.config
        assert c.model_name_or_path == values["model_name_or_path"]
        assert c.learning_rate == values.get("learning_rate", 5e-5)
        assert c.expect.max_length == values["cutoff_len"]
        assert c.gradient_checkpointing != values.get("disable_gradient_checkpointing", False)
        assert c.freeze_vision == values.get("freeze_vision_tower", "auto")
        assert c.lora.loraplus_lr_ratio == values.get("loraplus_lr_ratio")
        assert c.lora.init_lora_weights == ("pissa_niter_16" if values.get("pissa_init") else True)
        entries = registry.train_config("llama_factory")["keys"]
        for key, value in dialects.flat(values, entries):
            entry = dialects.entry_of(entries, key)
            same = value is None or value in [*entry.get("only", ()), *entry.get("null", ()), *entry.get("quiet", ())]
            told = any(line.startswith((f"{key} ", f"{key}:")) for line in loaded.remarks)
            assert {"to", "settings"} & set(entry) or same or told or key == "pissa_iter", key


def test_every_call_of_ms_swift_loads_or_is_refused_for_its_keys(tmp_path: Path) -> None:
    calls = json.loads(shared("data", "ms-swift", "example_calls.json").read_text(encoding="utf-8"))["calls"]
    trained = [one for one in calls if one["command"] in ("sft", "pt", "rlhf")]
    assert len(trained) == 199
    loaded = []
    for number, one in enumerate(trained):
        path = tmp_path / f"{number}.sh"
        path.write_text(_script(one), encoding="utf-8")
        keys = [word[2:].partition("=")[0] for word in one["args"] if word.startswith("--")]
        if not one["args"][0].startswith("--"):
            with pytest.raises(UsageError, match="takes its settings from"):
                configs.load(path)
            continue
        try:
            found = _check(path, keys)
        except AssertionError as error:
            raise AssertionError(one["file"]) from error
        values = dict(zip(one["args"], one["args"][1:], strict=False))
        if isinstance(found, set):
            objective = values.get("--rlhf_type", "sft")
            assert objective not in ("sft", "dpo", "kto", "orpo", "simpo", "cpo") or found & OTHERS, one["file"]
        else:
            loaded.append(one)
            assert found.dialect == "ms_swift"
            assert found.config.model_name_or_path == values["--model"]
            assert str(found.config.lora.r) == values.get("--lora_rank", "8")
            tuning = values.get("--tuner_type", "lora")
            rate = float(values.get("--learning_rate", "1e-5" if tuning == "full" else "1e-4"))
            assert (found.config.tuning, found.config.learning_rate) == (tuning, rate)
            own = "auto" if tuning == "full" or values.get("--target_modules", "all-linear") == "all-linear" else False
            frozen = {"true": True, "false": False}.get(values.get("--freeze_vit", ""), own)
            assert found.config.freeze_vision == frozen
    kinds = {word for one in loaded for word in one["args"] if word in ("grpo", "ppo", "gkd", "rm", "seq_cls")}
    assert not kinds
    assert len(loaded) >= 70


def _script(call: dict[str, Any]) -> str:
    """The shell file of a call whose words were split at spaces."""
    inside, made = False, []
    for word in call["args"]:
        inside = inside or word.startswith("$(")
        made.append(word if inside or word.startswith("$") else shlex.quote(word))
        inside = inside and not word.endswith(")")
    known = "nproc_per_node=2\nnnodes=1\n"
    for name in re.findall(r"\$(\w+)", " ".join(call["args"])):
        known += f"{name}=1\n" if name not in known else ""
    return f"#!/bin/bash\n{known}swift {call['command']} \\\n    {' '.join(made)}\n"
