"""The configuration files of the four documents, as the examples have them."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = {
    f"{example}_{path.stem}": path
    for example in ("chatglm3", "cogagent")
    for path in sorted((EXAMPLES / example / "configs").glob("*.yaml"))
} | {"llama_factory": EXAMPLES / "llama_factory" / "train_lora" / "qwen2.5_14B_lora_sft.yaml"}
"""The YAML files, by names such as chatglm3_lora."""
ZERO = EXAMPLES / "cogagent" / "configs"
"""Has ds_zero_2.json and ds_zero_3.json, which ChatGLM3's are copies of."""
SCRIPTS = EXAMPLES / "chatglm3" / "scripts"
AGENT = EXAMPLES / "ms_swift_agent" / "run.sh"
