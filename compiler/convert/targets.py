"""The targets, by name."""

from __future__ import annotations

from compiler.convert.base import Target
from compiler.convert.hf import HF
from compiler.convert.llamafactory import LLAMAFACTORY
from compiler.convert.megatron_bridge import MEGATRON_BRIDGE
from compiler.convert.messages import MESSAGES

TARGETS: dict[str, Target] = {one.name: one for one in (HF, LLAMAFACTORY, MEGATRON_BRIDGE, MESSAGES)}
