"""Configurations of runs: ours, and other tools' as they are. Nothing of a file is ignored without a word."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml

import registry
from schemas import check_config, schema, yaml
from schemas.errors import Problem, UsageError
from tests.support.documents import FILES, ZERO
from trainer.config import dialects, zero
from trainer.config import load as configs
from trainer.config.config import Expect, Lora, Prefix, TrainConfig
from trainer.config.load import Loaded

OFFLOAD = Path(__file__).parent / "data" / "train" / "ds_zero_3_offload.json"
MODEL = "model_name_or_path=m"
NEED = {"model_name_or_path": "m", "output_dir": "out"}


def load(path: Path, values: Any, *overrides: str) -> Loaded:
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return configs.load(path, overrides)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


# -- YAML --


def test_numbers_are_numbers_and_words_are_words(file: Path) -> None:
    """YAML 1.2, chapter 10.3; PyYAML reads 5e-4 as a text and no as false."""
    file.write_text(
        "a: 5e-4\nb: 1.0e-4\nc: no\nd: yes\ne: off\nf: 0x10\ng: 010\nh: True\ni: ~\nj:\nk: 1_000\nl: .inf\nm: '5e-4'"
    )
    assert yaml.read(file) == {
        "a": 5e-4, "b": 1e-4, "c": "no", "d": "yes", "e": "off", "f": "0x10", "g": 10, "h": True, "i": None,
        "j": None, "k": "1_000", "l": float("inf"), "m": "5e-4",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: [1, 2\n", "not YAML"),
        ("a: 1\nb: 2\na: 3\n", "the key 'a' appears twice"),
        ("- a\n", "expected keys and values"),
        ("", "found None"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
)
def test_what_is_not_a_mapping_in_yaml_is_refused_with_its_line(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        yaml.read(file)


def test_what_is_dumped_is_read_back(file: Path) -> None:
    values = TrainConfig(**NEED).as_dict() | {"learning_rate": 5e-05, "eval_strategy": "no"}
    file.write_text(yaml.dump(values))
    assert yaml.read(file) == values


# -- our own --


def test_the_schema_and_the_code_have_the_same_keys_and_defaults() -> None:
    properties = schema("train_config")["properties"]
    for name, kind in (("lora", Lora), ("prefix", Prefix), ("expect", Expect)):
        inner = properties[name]["properties"]
        assert dataclasses.asdict(kind()) == {key: entry["default"] for key, entry in inner.items()}  # type: ignore[operator]
    plain = {key for key in properties if "properties" not in properties[key]}
    assert {field.name for field in dataclasses.fields(TrainConfig)} == set(properties)
    found = TrainConfig(**NEED).as_dict()
    for key in plain - set(NEED):
        assert found[key] == properties[key]["default"], key


@pytest.mark.parametrize("example", schema("train_config")["examples"])
def test_the_examples_of_the_schema_are_configurations(file: Path, example: dict[str, Any]) -> None:
    loaded = load(file, example)
    assert loaded.remarks == ()
    assert loaded.dialect == dialects.OWN


def test_gradient_checkpointing_is_off_with_a_prefix_and_a_remark_says_so(file: Path) -> None:
    loaded = load(file, NEED | {"tuning": "prefix", "gradient_checkpointing": True})
    assert not loaded.config.gradient_checkpointing
    (said,) = loaded.remarks
    assert said.startswith("gradient_checkpointing is off, as tuning is prefix")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rte": 1e-4}, "did you mean 'learning_rate'"),
        ({"lora": {"rank": 8}}, "#/lora: .*'rank'"),
        ({"learning_rate": "5e-4"}, "'5e-4' is not of type 'number'"),
        ({"lr_scheduler_type": "cosin"}, "#/lr_scheduler_type"),
        ({"num_train_epochs": 0}, "#/num_train_epochs"),
        ({"report_to": ["mlflow"]}, "#/report_to/0"),
        ({"bf16": True, "fp16": True}, "bf16 and fp16 cannot both be true"),
        ({"tuning": "full", "quantization_bit": 4}, "weights of 4 bits cannot be trained"),
        ({"tuning": "full", "freeze": ["a"], "trainable": ["b"]}, "exclude each other"),
        ({"tuning": "prefix", "freeze_vision": True}, "leaves the model itself frozen"),
        ({"max_steps": 0}, "0 steps would train nothing"),
    ],
)
def test_a_wrong_configuration_is_one_message(file: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        load(file, NEED | values)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tuning": "full", "lora": {"r": 4}}, "/lora: .*tuning is not lora"),
        ({"prefix": {"num_virtual_tokens": 8}}, "/prefix: .*tuning is not prefix"),
        ({"freeze": ["embed"]}, "/freeze: .*the whole base model is frozen"),
        ({"save_strategy": "epoch", "save_steps": 5}, "/save_steps: .*save_strategy is not steps"),
        ({"eval_steps": 5}, "/eval_steps: .*eval_strategy is not steps"),
        ({"predict_with_generate": True}, "/predict_with_generate: .*nothing is evaluated"),
        ({"warmup_ratio": 0.1, "warmup_steps": 10}, "/warmup_ratio: .*warmup_steps is set"),
        ({"max_steps": 10, "num_train_epochs": 2}, "/num_train_epochs: .*max_steps is set"),
        ({"zero_stage": 3, "deepspeed": "ds.json"}, "/zero_stage: .*sets the stage"),
        ({"run_name": "x"}, "/run_name: .*neither wandb nor swanlab"),
    ],
)
def test_a_key_that_would_do_nothing_is_refused(file: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(file, NEED | values)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"report_to": "none"}, {"report_to": []}),
        ({"report_to": ["none"]}, {"report_to": []}),
        ({"report_to": "tensorboard"}, {"report_to": ["tensorboard"]}),
        ({"report_to": "wandb, swanlab"}, {"report_to": ["wandb", "swanlab"]}),
        ({"lora": {"target_modules": "all-linear"}}, {"lora": Lora(lora_alpha=16)}),
        (
            {"lora": {"target_modules": ["all-linear"], "bias": "none"}},
            {"lora": Lora(lora_alpha=16, target_modules=["all"])},
        ),
        (
            {"lora": {"target_modules": "q_proj,v_proj", "modules_to_save": "embed_tokens", "task_type": "CAUSAL_LM"}},
            {"lora": Lora(lora_alpha=16, target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens"])},
        ),
        ({"tuning": "full", "freeze": "embed"}, {"freeze": ["embed"]}),
        ({"warmup_steps": 0.03}, {"warmup_ratio": 0.03, "warmup_steps": 0}),  # transformers 5.24, get_warmup_steps
        ({"warmup_steps": 10.0}, {"warmup_steps": 10}),
        ({"max_steps": 4.0}, {"max_steps": 4}),
        ({"max_steps": 1e3, "per_device_train_batch_size": 2.0}, {"max_steps": 1000, "per_device_train_batch_size": 2}),
        ({"lora": {"r": 16.0}}, {"lora": Lora(r=16, lora_alpha=32)}),
        ({"logging_steps": 0.1, "save_steps": 5.0}, {"logging_steps": 0.1, "save_steps": 5}),
        ({"optim": "adamw_torch", "dataloader_drop_last": False, "push_to_hub": False}, {}),
        ({"optim": "adamw_torch_fused", "torch_compile": False, "fsdp": ""}, {}),
        ({"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}, {}),
        ({"activation_checkpointing": True}, {"gradient_checkpointing": True}),
        ({"train_sampling_strategy": "random"}, {"group_by_length": False}),
        ({"torch_dtype": "bfloat16"}, {"bf16": True}),
        ({"tf32": True, "disable_tqdm": True, "data_seed": 1, "bf16_full_eval": True}, {}),
        ({"neftune_noise_alpha": 5, "label_smoothing_factor": 0.1}, {"neftune_noise_alpha": 5}),
        (
            {
                "eval_strategy": "steps",
                "predict_with_generate": True,
                "generation_config": {"max_new_tokens": 7, "top_p": 0.9},
            },
            {"generation_max_new_tokens": 7},
        ),
    ],
)
def test_what_people_write_every_day_is_taken(file: Path, given: dict[str, Any], expected: dict[str, Any]) -> None:
    loaded = load(file, NEED | given)
    assert loaded.dialect == dialects.OWN
    assert {key: getattr(loaded.config, key) for key in expected} == expected
    kinds = {key: type(getattr(loaded.config, key)) for key in ("max_steps", "warmup_steps", "save_steps")}
    assert set(kinds.values()) == {int}


@pytest.mark.parametrize("key", ["tf32", "data_seed", "disable_tqdm", "temperature"])
def test_what_has_no_effect_is_told(file: Path, key: str) -> None:
    (line,) = load(file, NEED | {key: True}).remarks
    assert line.startswith(f"{key} has no effect: ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"optim": "adafactor"}, "#/optim: 'adafactor' is not one of"),
        ({"optim": "lion_8bit"}, "'adamw_8bit'"),
        ({"push_to_hub": True}, "#/push_to_hub: true is not supported: nothing is uploaded"),
        ({"dataloader_drop_last": True}, "no row of an epoch is left out"),
        ({"lora": {"bias": "all"}}, "#/lora/bias: 'all' is not supported: biases stay frozen"),
        ({"lora": {"rank_pattern": {"q_proj": 4}}}, "#/lora/rank_pattern"),
        ({"full_determinism": True}, "deterministic kernels are not switched on"),
        ({"fsdp": "full_shard"}, "use zero_stage: 3"),
        ({"report_to": "all"}, "#/report_to/0: 'all' is not one of"),
        ({"max_steps": 4.5}, "#/max_steps: 4.5 is not of type 'integer'"),
        ({"save_steps": 2.5}, "#/save_steps: 2.5"),
        ({"warmup_steps": 2.5}, "#/warmup_steps: 2.5"),
        ({"warmup_steps": 0.1, "warmup_ratio": 0.1}, "#/warmup_steps: 0.1"),
        ({"lora": {"init_lora_weights": "eva"}}, "#/lora/init_lora_weights"),
        ({"lr_scheduler_type": "constant", "warmup_ratio": 0.1}, "constant_with_warmup has a warm-up"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 5}, "constant_with_warmup has a warm-up"),
        ({"lr_scheduler_type": "constant", "warmup_steps": 0.5}, "constant_with_warmup has a warm-up"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"a": 1}}, "takes no arguments"),
        ({"bnb_4bit_quant_type": "fp4"}, "quantization_bit is not 4"),
    ],
)
def test_what_cannot_be_had_every_day_is_refused(file: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        load(file, NEED | given)


def test_overrides_win_and_null_unsets(file: Path) -> None:
    given = NEED | {"learning_rate": 1e-3, "max_steps": 5, "lora": {"r": 4, "lora_dropout": 0.1}}
    loaded = load(file, given, "learning_rate=5e-4", "max_steps=null", "lora.r=16", "report_to=[wandb]", "run_name=x")
    c = loaded.config
    assert (c.learning_rate, c.max_steps, c.report_to, c.run_name) == (5e-4, -1, ["wandb"], "x")
    assert c.lora == Lora(r=16, lora_alpha=32, lora_dropout=0.1)
    with pytest.raises(UsageError, match=r"did you mean 'lora\.lora_alpha'"):
        load(file, given, "lora.alpha=1")
    with pytest.raises(UsageError, match="expected KEY=VALUE"):
        load(file, given, "max_steps")
    with pytest.raises(UsageError, match="not a YAML value"):
        load(file, given, "report_to=[a")
    with pytest.raises(UsageError, match="tuning is not lora"):
        load(file, NEED, "tuning=full", "lora.r=4")
    assert load(file, given, "tuning=full").remarks == ("lora has no effect: tuning is not lora",)


# -- other tools' --


@pytest.mark.parametrize("name", registry.train_config_names())
def test_every_table_leads_to_keys_of_ours(name: str) -> None:
    table = registry.train_config(name)
    known = schema("train_config")["properties"]
    targets = [entry["to"] for entry in table["keys"].values() if "to" in entry]
    for key in [*targets, *table.get("defaults", {})]:
        first, _, inner = key.partition(".")
        assert first in known, key
        assert not inner or inner in known[first]["properties"], key


def test_cogagents_files_say_the_same_here() -> None:
    lora = configs.load(FILES["cogagent_lora"], [MODEL])
    c = lora.config
    assert lora.dialect == "seq2seq"
    assert (c.tuning, c.lora.r, c.lora.lora_alpha, c.lora.lora_dropout) == ("lora", 8, 32, 0.1)
    assert c.lora.target_modules == ["query_key_value"]
    assert (c.max_steps, c.learning_rate, c.per_device_train_batch_size) == (3000, 5e-4, 1)
    assert (c.per_device_eval_batch_size, c.eval_strategy, c.eval_steps) == (4, "steps", 500)
    assert (c.save_strategy, c.save_steps, c.logging_steps, c.dataloader_num_workers) == ("steps", 500, 10, 16)
    assert (c.predict_with_generate, c.generation_max_new_tokens) == (True, 512)
    assert (c.freeze_vision, c.expect.max_length, c.output_dir) == (False, 1024, "./output")
    full = configs.load(FILES["cogagent_sft"], [MODEL]).config
    assert (full.tuning, full.freeze_vision, full.learning_rate) == ("full", True, 5e-5)
    assert full.deepspeed == "configs/ds_zero_3.json"


def test_chatglm3s_files_say_the_same_here() -> None:
    lora, prefix, full = (
        configs.load(FILES[f"chatglm3_{name}"], [MODEL]).config for name in ("lora", "ptuning_v2", "sft")
    )
    assert (lora.tuning, prefix.tuning, full.tuning) == ("lora", "prefix", "full")
    assert prefix.prefix == Prefix(num_virtual_tokens=128)
    assert {c.eval_strategy for c in (lora, prefix, full)} == {"steps"}, "the old name, evaluation_strategy"
    assert {c.expect.max_length for c in (lora, prefix, full)} == {768}
    assert {c.per_device_eval_batch_size for c in (lora, prefix, full)} == {16}
    assert full.deepspeed == "ds_zero_3.json"


def test_llama_factorys_file_says_the_same_here() -> None:
    loaded = configs.load(FILES["llama_factory"])
    c = loaded.config
    assert loaded.dialect == "llama_factory"
    assert c.model_name_or_path == "Qwen/Qwen2.5-14B-Instruct"
    assert (c.objective, c.tuning, c.lora) == ("sft", "lora", Lora(r=8, lora_alpha=16))
    assert (c.learning_rate, c.num_train_epochs, c.warmup_ratio, c.lr_scheduler_type) == (1e-4, 3.0, 0.1, "cosine")
    assert (c.per_device_train_batch_size, c.gradient_accumulation_steps, c.bf16) == (1, 8, True)
    assert (c.ddp_timeout, c.plot_loss, c.overwrite_output_dir) == (180000000, True, True)
    assert c.expect == Expect(["ESG_Knowledge_Network"], "qwen", 2048, 1000, 0.1, None)
    assert [line.split()[0] for line in loaded.remarks] == ["overwrite_cache", "preprocessing_num_workers"]


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_such_a_file_is_taken_over_or_named(name: str) -> None:
    """Changed one at a time, every key changes the configuration, or is refused, or a remark names it."""
    raw = yaml.read(FILES[name])
    before = configs.load(FILES[name], [MODEL])
    for key, _ in dialects.flat(raw, registry.train_config(before.dialect)["keys"]):
        entry = registry.train_config(before.dialect)["keys"][key]
        assert "to" in entry or "only" in entry or any(line.startswith(f"{key} ") for line in before.remarks), key


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("cogagent_lora", ("freezeV:", "freezeVision:"), "did you mean 'freezeV'"),
        ("chatglm3_lora", ("learning_rate", "learnig_rate"), "training_args/learnig_rate.*\n.*'learning_rate'"),
        ("chatglm3_lora", ("LORA", "IA3"), "'IA3' is not supported"),
        ("chatglm3_lora", ("task_type: CAUSAL_LM", "task_type: SEQ_CLS"), "causal language models"),
        ("llama_factory", ("cutoff_len", "cutof_len"), "did you mean 'cutoff_len'"),
        ("llama_factory", ("stage: sft", "stage: ppo"), "'ppo' is not supported"),
        ("llama_factory", ("finetuning_type: lora", "finetuning_type: oft"), "'oft' is not supported"),
        ("llama_factory", ("do_train: true", "do_train: false"), "this command only trains"),
    ],
)
def test_what_cannot_be_had_is_refused(tmp_path: Path, name: str, change: tuple[str, str], said: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(FILES[name].read_text().replace(*change))
    with pytest.raises(UsageError, match=said):
        configs.load(path, [MODEL])


def test_a_file_without_a_model_says_how_to_name_one() -> None:
    with pytest.raises(UsageError, match="Add --model DIR"):
        configs.load(FILES["chatglm3_lora"])


def test_pyyaml_alone_would_read_the_files_wrongly() -> None:
    """Why there is a reader of our own."""
    assert pyyaml.safe_load((FILES["cogagent_lora"]).read_text())["training_args"]["learning_rate"] == "5e-4"


# -- DeepSpeed --

SIZES = zero.Sizes(world=2, micro=4, accumulation=8, hidden=64, bf16=True, fp16=False)


def completed(name: Path | dict[str, Any], **settings: Any) -> dict[str, Any]:
    given: Any = str(name) if isinstance(name, Path) else name
    config = TrainConfig(**NEED, deepspeed=given, **settings)
    return zero.complete(zero.read(config, "run.yaml"), config, SIZES, "run.yaml")


ZEROS = [ZERO / "ds_zero_2.json", ZERO / "ds_zero_3.json", OFFLOAD]


@pytest.mark.parametrize("file", ZEROS, ids=lambda file: file.stem)
def test_every_auto_is_filled_in(file: Path) -> None:
    done = completed(file)
    assert "auto" not in json.dumps(done)
    assert done["train_batch_size"] == 64
    assert (done["train_micro_batch_size_per_gpu"], done["gradient_accumulation_steps"]) == (4, 8)
    assert (done["gradient_clipping"], done["bf16"]["enabled"], done["fp16"]["enabled"]) == (1.0, True, False)
    section = done["zero_optimization"]
    assert isinstance(section["allgather_bucket_size"], int)
    if section["stage"] == 3:
        assert section["reduce_bucket_size"] == 64 * 64
        assert section["stage3_max_live_parameters"] == 10**9
    given = json.loads(file.read_text())
    for key, value in given["zero_optimization"].items():
        assert value in ("auto", section[key])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gradient_clipping": 0.5}, "expected auto or 1.0, found 0.5"),
        ({"train_micro_batch_size_per_gpu": 16}, "expected auto or 4, found 16"),
        ({"fp16": {"enabled": True}}, "fp16/enabled: expected auto or false"),
        ({"optimizer": {"type": "Lamb"}}, "The optimizer is AdamW"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}, "params/lr: expected auto or 5e-05"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 7}}}, "is set by lr_scheduler_type here"),
        ({"zero_optimisation": {"stage": 2}}, "did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stage": 2, "elastic_checkpoint": True}}, "cannot load its elastic checkpoints"),
        ({"zero_optimization": {"stage": "auto"}}, "auto has no meaning here"),
    ],
)
def test_a_deepspeed_file_that_says_otherwise_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        completed(given)


def test_ms_swifts_zero_files_fit() -> None:
    scheduler = {"type": "WarmupLR", "params": dict.fromkeys(("warmup_min_lr", "warmup_max_lr"), "auto")}
    offload = {"device": "none", "pin_memory": True}
    section = {"stage": 2, "offload_optimizer": offload, "reduce_bucket_size": 2e8}
    assert "scheduler" not in completed({"scheduler": scheduler, "zero_optimization": section})


def test_a_deepspeed_file_is_found_beside_the_configuration(tmp_path: Path) -> None:
    shutil.copy(ZERO / "ds_zero_3.json", tmp_path)
    config = TrainConfig(**NEED, deepspeed="ds_zero_3.json")
    assert zero.stage(zero.read(config, str(tmp_path / "run.yaml"))) == 3
    with pytest.raises(Problem, match="neither here nor beside or above"):
        zero.read(config, "elsewhere/run.yaml")


def test_a_table_with_an_unknown_entry_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'remark'"):
        check_config(
            {"name": "x", "title": "", "description": "", "provenance": "", "keys": {"a": {"remrk": "b"}}},
            "train_dialect",
            "x",
        )
