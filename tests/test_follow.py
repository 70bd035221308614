"""`cli follow`: the documents' own calls become calls of cli compile and cli train."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import Result

import registry
from tests.support.command import outside
from tests.support.documents import FILES
from tests.support.original import save_original
from tests.support.shared import shared
from tests.support.trained import rows, save_model
from trainer.follow import data as follow_data

ROOT = Path(__file__).parent.parent
Run = Callable[..., Result]

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("here"),
]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents' calls name."""
    monkeypatch.chdir(tmp_path)
    for name in ("NPROC_PER_NODE", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "FORCE_TORCHRUN"):
        monkeypatch.delenv(name, raising=False)
    Path("configs").mkdir()
    for name, path in FILES.items():
        shutil.copy(path, f"configs/{name}.yaml")
    for folder, names in (
        ("data/CogAgentData", ("train.jsonl", "dev.jsonl")),
        ("data/tools", ("train.json", "dev.json")),
    ):
        Path(folder).mkdir(parents=True)
        for name in names:
            Path(folder, name).write_text("", encoding="utf-8")
    return tmp_path


def words(text: str) -> list[str]:
    return shlex.split(text)


def plan(run: Run, *call: object) -> tuple[list[list[str]], str]:
    """(the words of the two calls, what is said of them)."""
    done = run("follow", "--print", *call)
    return [shlex.split(line) for line in done.stdout.splitlines()[-2:]], done.stderr


# -- the calls of the documents --


def test_cogagents_call_compiles_its_data_config_and_trains_its_file(run: Run) -> None:
    call = "OMP_NUM_THREADS=1 torchrun --standalone --nnodes=1 --nproc_per_node=8 finetune.py data/CogAgentData "
    lines, _ = plan(run, *words(f"{call} THUDM/cogagent-9b-20241220 configs/cogagent_sft.yaml"))
    assert lines == [
        words(
            "OMP_NUM_THREADS=1 cli compile data/CogAgentData/train.jsonl --val val=data/CogAgentData/dev.jsonl "
            "--test test=data/CogAgentData/dev.jsonl --workers 1 --tokenizer THUDM/cogagent-9b-20241220 "
            "--template cogagent --max-length 2624 -o shards"  # 512 + 512, and 1,600 for a picture
        ),
        words(
            "OMP_NUM_THREADS=1 torchrun --standalone --nnodes=1 --nproc_per_node=8 --no-python cli train shards "
            "configs/cogagent_sft.yaml --model THUDM/cogagent-9b-20241220"
        ),
    ]


@pytest.mark.parametrize(("last", "resume"), [("", ""), ("yes", " --resume yes"), ("600", " --resume 600")])
def test_the_fourth_argument_resumes(run: Run, last: str, resume: str) -> None:
    call = "python finetune.py data/CogAgentData/ THUDM/cogagent-9b-20241220 configs/cogagent_lora.yaml"
    lines, _ = plan(run, *words(call), last)
    trained = "cli train shards configs/cogagent_lora.yaml --model THUDM/cogagent-9b-20241220"
    assert lines[1] == words(f"{trained}{resume}")


def test_chatglm3s_files_are_followed(run: Run) -> None:
    lines, said = plan(run, *words("finetune_hf.py data/tools THUDM/chatglm3-6b configs/chatglm3_lora.yaml"))
    assert " ".join(lines[0]) == (
        "cli compile data/tools/train.json --val val=data/tools/dev.json --test test=data/tools/dev.json --workers 16 "
        "--tokenizer THUDM/chatglm3-6b --template chatglm3 --max-length 768 -o shards"
    )
    assert "data_config" not in said  # all of it is followed


def seed(number: str) -> str:
    (path,) = shared("seeds").glob(f"{number}_*.txt")
    return path.read_text(encoding="utf-8")


def test_the_published_call_of_ms_swift_is_followed(run: Run) -> None:
    text = seed("003")
    start = text.index("nproc_per_node=8")
    Path("run.sh").write_text(text[start : text.index("--logging_steps 10", start)] + "--logging_steps 10\n", "utf-8")
    lines, said = plan(run, "-o", "out/agent", "run.sh")
    assert " ".join(lines[0]) == (
        "cli compile --mix ms-agent:1,ms-bench:2 --val-size 0.01 --self-cognition 3000 --name 卡卡罗特 --author 陶白白 "
        "--tokenizer qwen/Qwen-7B-Chat --hub modelscope --template qwen --max-length 2048 -o out/agent"
    )
    assert " ".join(lines[1]) == (
        "torchrun --nproc_per_node=8 --master_port 29500 --no-python cli train out/agent follow.yaml"
    )
    assert "PYTHONPATH is not set: no code of that tool runs" in said
    assert not Path("follow.yaml").exists()  # it was only printed


def test_the_tokenizer_of_a_call_is_of_the_models_hub_and_revision(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("USE_HF", "USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB"):
        monkeypatch.delenv(variable, raising=False)
    Path("rows.jsonl").write_text("", encoding="utf-8")
    call = words("swift sft --model a/b --model_revision v2 --dataset rows.jsonl --output_dir o")
    ours = {
        tuple(before + after): " ".join(plan(run, *before, *call, *after)[0][0])
        for before in ([], ["USE_HF=1"]) for after in ([], ["--use_hf", "true"])
    }  # fmt: skip
    assert "--tokenizer a/b@v2 --hub modelscope" in ours[()]
    assert "--tokenizer a/b@v2 --hub huggingface" in ours["--use_hf", "true"]
    assert ours["USE_HF=1",].startswith("USE_HF=1 cli compile ") and "--hub" not in ours["USE_HF=1",]


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("a/b#5", "--mix a/b#5 --tokenizer . --hub modelscope"),
        ("HF::a/b", "--mix a/b --tokenizer . --hub huggingface"),
        ("rows.jsonl", "rows.jsonl --tokenizer ."),
    ],
)
def test_datasets_of_a_call_are_of_its_hub(
    run: Run, monkeypatch: pytest.MonkeyPatch, dataset: str, expected: str
) -> None:
    for variable in ("USE_HF", "USE_MODELSCOPE_HUB", "USE_OPENMIND_HUB"):
        monkeypatch.delenv(variable, raising=False)
    lines, _ = plan(run, *words(f"swift sft --model . --tuner_type lora --dataset {dataset} --output_dir o"))
    assert " ".join(lines[0]).startswith(f"cli compile {expected}")


def test_llama_factorys_call_is_followed(run: Run) -> None:
    text = seed("002")
    start = text.index("### model\n")
    file = Path("qwen2.5_14B_lora_sft.yaml")
    file.write_text(text[start:].split("eval_steps: 500")[0] + "eval_steps: 500\n", encoding="utf-8")
    lines, said = plan(run, "llamafactory-cli", "train", file)
    assert " ".join(lines[0]) == (
        "cli compile --mix ESG_Knowledge_Network --registry data --workers 16 --tokenizer Qwen/Qwen2.5-14B-Instruct "
        "--max-length 2048 --limit 1000 --val-size 0.1 -o shards"
    )
    assert lines[1] == ["cli", "train", "shards", str(file)]
    assert "template qwen: the chat template of the model's own tokenizer is used" in said


SCRIPT = """#! /usr/bin/env bash
set -ex
PRE_SEQ_LEN=128
LR=2e-2
NUM_GPUS=4
MAX_SEQ_LEN=2048
DATESTR=`date +%Y%m%d-%H%M%S`
OUTPUT_DIR=output/tool_alpaca_pt-${DATESTR}
mkdir -p $OUTPUT_DIR
touch made-by-the-script
torchrun --standalone --nnodes=1 --nproc_per_node=$NUM_GPUS finetune.py \\
    --train_format multi-turn --train_file formatted_data/tool_alpaca.jsonl \\
    --max_seq_length $MAX_SEQ_LEN --preprocessing_num_workers 1 --model_name_or_path THUDM/chatglm3-6b \\
    --output_dir $OUTPUT_DIR --per_device_train_batch_size 1 --gradient_accumulation_steps 16 \\
    --max_steps 1000 --logging_steps 1 --save_steps 500 --learning_rate $LR \\
    --pre_seq_len $PRE_SEQ_LEN 2>&1 | tee ${OUTPUT_DIR}/train.log
"""


@pytest.mark.parametrize("form", ["multi-turn", "input-output"])
def test_a_script_of_chatglm3_is_read_and_not_run(run: Run, form: str) -> None:
    lengths = "--max_source_length 1024 --max_target_length 128"
    text = SCRIPT if form == "multi-turn" else SCRIPT.replace("--max_seq_length $MAX_SEQ_LEN", lengths)
    Path("finetune_pt.sh").write_text(text.replace("multi-turn", form), encoding="utf-8")
    lines, said = plan(run, "bash", "finetune_pt.sh")
    card, length = ("chatglm3", 2048) if form == "multi-turn" else ("chatglm3_prompt_response", 1152)
    assert " ".join(lines[0]) == (
        f"cli compile formatted_data/tool_alpaca.jsonl --template {card} --workers 1 --tokenizer THUDM/chatglm3-6b "
        f"--max-length {length} -o shards"
    )
    assert lines[1][:4] == ["torchrun", "--standalone", "--nnodes=1", "--nproc_per_node=4"]
    assert not Path("made-by-the-script").exists()
    assert "what follows the call is not run" in said


@pytest.mark.parametrize(
    "script", sorted((ROOT / "examples").rglob("*.sh")), ids=lambda path: str(path.relative_to(ROOT / "examples"))
)
def test_every_script_of_the_examples_is_followed(run: Run, script: Path) -> None:
    lines, _ = plan(run, "--model", "./mine", script)
    assert lines[0][:2] == ["cli", "compile"] and "./mine" in lines[0]
    assert lines[1][0] == "torchrun" and lines[1][-5:] == ["train", "shards", "follow.yaml", "--model", "./mine"]


# -- ms-swift today, LLaMA-Factory's other keys --


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            "swift sft --model M --tuner_type lora --dataset AI/zh#500 swift/self-cognition#300 --model_name 小黄 Huang"
            " --model_author 魔搭 MS --loss_scale hermes --truncation_strategy delete --split_dataset_ratio 0.1",
            "--mix AI/zh#500 --self-cognition 300 --name 小黄,Huang --author 魔搭,MS --weights hermes "
            "--overlength reject --max-rejects 100% --tokenizer M --hub modelscope --val-size 0.1",
        ),
        (
            "swift sft --model M --tuner_type lora --dataset a.jsonl b.jsonl#5 --val_dataset c.jsonl --packing true "
            "--max_length 900",
            "a.jsonl b.jsonl --mix a,b#5 --val c.jsonl --tokenizer M --pack 900",
        ),
        ("swift pt --model M --tuner_type full --dataset docs.txt", "docs.txt --tokenizer M"),
        (
            "swift sft --sft_type lora --model_id_or_path M --dataset blossom --train_dataset_sample 900 "
            "--train_dataset_mix_ratio 1.5 --use_loss_scale true --dataset_test_ratio 0",
            "--mix blossom#900,ms-bench#1350 --weights react --tokenizer M --max-length 2048",
        ),
        (
            "swift sft --sft_type lora --model_id_or_path M --custom_train_dataset_path a.jsonl",
            "a.jsonl --val-size 0.01 --tokenizer M --max-length 2048",
        ),
        (
            "llamafactory-cli train --stage sft --model_name_or_path M --dataset a,b --mix_strategy interleave_under "
            "--interleave_probs 0.3,0.7 --mask_history true --output_dir o",
            "--mix a:0.3,b:0.7 --registry data --weights last_round --tokenizer M --max-length 2048",
        ),
    ],
)  # fmt: skip
def test_options_of_data_become_those_of_cli_compile(run: Run, call: str, expected: str) -> None:
    lines, _ = plan(run, *words(call))
    assert " ".join(lines[0]) == f"cli compile {expected} -o shards"


@pytest.mark.parametrize(
    "call",
    [
        "finetune.py data/tools THUDM/chatglm3-6b configs/chatglm3_lora.yaml",
        "llamafactory-cli train configs/llama_factory.yaml",
        "swift sft --tuner_type lora --dataset a.jsonl",
    ],
)
def test_a_local_model_takes_the_place_of_the_one_that_is_named(run: Run, call: str) -> None:
    lines, _ = plan(run, "--model", "./mine", *words(call))
    assert all("--tokenizer ./mine" in " ".join(line) or line[-2:] == ["--model", "./mine"] for line in lines)


def test_the_settings_of_a_call_without_a_file_are_printed_as_one(run: Run) -> None:
    call = "swift sft --model M --tuner_type lora --dataset a.jsonl --learning_rate 1e-5 --lora_rank 4"
    printed = run("follow", "--print", *words(call)).stdout
    text = printed.partition("<<'END'\n")[2].partition("END\n")[0]
    plan = json.loads(run("follow", "--json", *words(call)).stdout)
    assert plan["file"] == {"path": "follow.yaml", "text": text} and plan["launcher"] == []
    assert yaml.safe_load(text) == {"model": "M", "tuner_type": "lora", "learning_rate": 1e-5, "lora_rank": 4}


@pytest.mark.parametrize(
    ("call", "launcher"),
    [
        ("NPROC_PER_NODE=2 MASTER_PORT=29501 swift sft --model M --tuner_type lora --dataset a.jsonl",
         "torchrun --nproc-per-node=2 --master-port=29501 --no-python"),
        ("FORCE_TORCHRUN=1 llamafactory-cli train --stage sft --model_name_or_path M --dataset a --output_dir o",
         "torchrun --nproc-per-node=auto --no-python"),
        ("deepspeed --num_gpus 4 finetune.py --train_file a --model_name_or_path M --pre_seq_len 9 --output_dir o",
         "deepspeed --num_gpus 4 --no_python --no_local_rank"),
    ],
)  # fmt: skip
def test_what_starts_several_processes_starts_cli_train(run: Run, call: str, launcher: str) -> None:
    lines, _ = plan(run, *words(call))
    assert " ".join(lines[1]).partition(" cli ")[0] == launcher


def test_every_key_about_the_data_is_followed_or_has_its_reason() -> None:
    for name in ("llama_factory", "ms_swift", "ms_swift_1", "chatglm3", "seq2seq"):
        for key, entry in registry.train_config(name)["keys"].items():
            about = re.search(r"it belongs to cli compile|weights are made by|cli compile has --workers", str(entry))
            assert "compile" in entry or not about or "only" in entry, f"{name}: {key}"
    assert set(follow_data.TOOLS) == set(registry.train_config_names()) - {"own", "training_arguments"}


# -- what cannot be followed --


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("make coffee", "make coffee: it is no call that is known here"),
        ("swift infer --eval_human true", "it does not train, and is followed by hand\n  Type cli chat MODEL"),
        ("streamlit run main.py", "Type cli chat MODEL [--adapter CHECKPOINT]."),
        ("finetune.py data/tools M", "finetune.py: expected finetune.py DATA MODEL CONFIG [yes|N], found 2 arguments"),
        ("finetune.py data/tools M configs/chatglm3_lora.yaml no", "the fourth argument is 'no'"),
        ("finetune.py data/none M configs/chatglm3_lora.yaml", "data/none: no such folder"),
        ("finetune.py data/tools M configs/none.yaml", "configs/none.yaml: no such file"),
        ("finetune.py data/tools M configs/cogagent_lora.yaml",
         "configs/cogagent_lora.yaml#/data_config/train_file: data/tools/train.jsonl: no such file"),
        ("finetune.py data/tools M configs/chatglm3_lora.yaml --train_file a", "this call has both: --train_file"),
        ("finetune.py data/tools M lf.yaml", "lf.yaml: it is a file of LLaMA-Factory"),
        ("llamafactory-cli train lf.yaml --sft_type lora", "#/sft_type: it is not known here as a key of LLaMA"),
        ("llamafactory-cli train lf.yaml lora", "lora: is neither an option nor KEY=VALUE"),
        ("swift sft --model M --tuner_type lora", "it names no data"),
        ("swift sft --model M --tuner_type lora --dataset a.jsonl --loss_scale all", "--loss_scale all: not supported"),
        ("swift sft --model M --tuner_type lora --dataset A/b:c", "subsets of a hub dataset are not told apart"),
        ("swift sft --model M --tuner_type boft --dataset a.jsonl", "'boft' is not supported"),
        ("swift sft --tuner_type lora --dataset a.jsonl", "it names no model"),
        ("swift sft --tuner_type lora --model a/b --dataset HF::c/d", "huggingface and modelscope: the model and the"),
        ("accelerate launch finetune.py data/tools M configs/chatglm3_lora.yaml", "started by torchrun or deepspeed"),
        ("run.sh", "run.sh: no such file"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be_followed_is_one_message(run: Run, call: str, said: str) -> None:
    Path("lf.yaml").write_text("stage: sft\nmodel_name_or_path: M\ndataset: a\noutput_dir: o\n", encoding="utf-8")
    done = run("follow", *words(call), code=2)
    assert said in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert not Path("follow.yaml").exists() and not Path("shards").exists()


@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 5000])
def test_a_file_of_a_call_that_is_no_json_object_is_one_message(run: Run, text: str) -> None:
    Path("model").mkdir()
    Path("model", "config.json").write_text(text, encoding="utf-8")
    said = run(
        "follow", "--print", *words("swift sft --model model --tuner_type lora --dataset a.jsonl"), code=5
    ).stderr
    assert said.startswith("error: model/config.json: ")
    Path("data", "dataset_info.json").write_text(text, encoding="utf-8")
    call = "llamafactory-cli train --stage sft --model_name_or_path M --dataset a --eval_dataset b --output_dir o"
    assert run("follow", "--print", *words(call), code=5).stderr.startswith("error: data/dataset_info.json: ")


def test_a_file_of_the_users_is_not_written_over(run: Run) -> None:
    Path("follow.yaml").write_text("mine: 1\n", encoding="utf-8")
    done = run("follow", *words("swift sft --model M --tuner_type lora --dataset a.jsonl"), code=2)
    assert (
        "follow.yaml: the settings of the call are to be written here, and another file is in the place" in done.stderr
    )
    assert Path("follow.yaml").read_text("utf-8") == "mine: 1\n"


# -- runs --


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
def test_a_call_of_chatglm3_trains_and_resumes(run: Run, here: Path) -> None:
    model = save_original(
        here / "chatglm3-6b", "chatglm3", shared("tokenizers", "chatglm3"), padded_vocab_size=65024, seq_length=8192
    )
    for name in ("chat.json", "tool_chat.json"):
        target = "train.json" if name == "chat.json" else "dev.json"
        shutil.copy(ROOT / "examples" / "chatglm3" / name, here / "data" / "tools" / target)
    small = (
        "--set max_steps={} --set use_cpu=true --set save_steps=2 --set eval_steps=4 --set generation_max_new_tokens=2"
    )
    call = ["finetune_hf.py", "data/tools", model, "configs/chatglm3_lora.yaml"]
    first = run("follow", "--train", small.format(2), *call)
    assert first.stderr.startswith("cli compile data/tools/train.json --val val=data/tools/dev.json")
    assert Path("output/checkpoint-2").is_dir() and Path("shards/manifest.json").is_file()
    again = run("follow", "--train", small.format(4), *call, "yes")
    assert Path("output/checkpoint-4").is_dir()
    assert "trained 2 steps" in again.stdout


@pytest.mark.slow
def test_a_call_of_llama_factory_trains_with_two_processes(here: Path) -> None:
    model = save_model(here / "model")
    (here / "data" / "chats.json").write_text(json.dumps(rows(8, 0)), encoding="utf-8")
    info = {"chats": {"file_name": "chats.json", "formatting": "sharegpt", "columns": {"messages": "messages"},
                      "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
                               "assistant_tag": "assistant", "system_tag": "system"}}}  # fmt: skip
    (here / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    settings = {"stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_target": "all", "dataset": "chats",
                "model_name_or_path": str(model), "template": "qwen", "output_dir": "saves", "max_steps": 2,
                "per_device_train_batch_size": 1, "learning_rate": 1e-3, "preprocessing_num_workers": 1,
                "use_cpu": True}  # fmt: skip
    Path("lf.yaml").write_text(json.dumps(settings), encoding="utf-8")
    call = [sys.executable, ROOT / "cli.py", "follow", "--compile", f"--cache {here / 'cache'}",
             "torchrun", "--nproc_per_node=2", "--standalone", "src/train.py", "lf.yaml"]  # fmt: skip
    done = subprocess.run(list(map(str, call)), env=outside(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Path("saves/checkpoint-2").is_dir()
    assert "trained 2 steps" in done.stdout
