"""GLM-4V and CogAgent as a model of Transformers: Glm, with the tower of pictures of the CogVLM family (EVA2-CLIP-E).

    pixels [n, 3, S, S] -> patches -> layers -> 2x2 patches in one -> width of the language model -> + boi, eoi
    ids    ... boi, placeholder x (S/28)^2, eoi ...           each picture takes the place of these embeddings

Facts of the architecture are those of THUDM/cogagent-9b-20241220 and glm-4v-9b; the names of the tower are theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, GlmConfig, GlmModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.glm.modeling_glm import GlmPreTrainedModel


class GlmEyesConfig(GlmConfig):  # type: ignore[no-untyped-call]  # transformers is untyped
    """The configuration of the language model, and in `vision_config`, `boi_token_id` and `eoi_token_id` the eyes'."""

    model_type = "chatglm_eyes"


class _Attention(nn.Module):
    def __init__(self, eyes: dict[str, Any]) -> None:
        super().__init__()
        width = eyes["hidden_size"]
        self.heads = eyes["num_heads"]
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dense = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        q, k, v = self.query_key_value(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v)
        found: torch.Tensor = self.dense(seen.transpose(1, 2).reshape(n, length, width))
        return found


class _Mlp(nn.Module):
    def __init__(self, eyes: dict[str, Any]) -> None:
        super().__init__()
        self.act = ACT2FN[eyes["hidden_act"]]
        self.fc1 = nn.Linear(eyes["hidden_size"], eyes["intermediate_size"])
        self.fc2 = nn.Linear(eyes["intermediate_size"], eyes["hidden_size"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc2(self.act(self.fc1(x)))
        return found


class GlmEyesLayer(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]
    """A layer of the tower; norms come after each part."""

    def __init__(self, eyes: dict[str, Any]) -> None:
        super().__init__()
        width, eps = eyes["hidden_size"], eyes["layer_norm_eps"]
        self.input_layernorm = nn.LayerNorm(width, eps=eps)
        self.attention = _Attention(eyes)
        self.mlp = _Mlp(eyes)
        self.post_attention_layernorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float [n, patches + 1, width], as it comes."""
        x = x + self.input_layernorm(self.attention(x))
        return x + self.post_attention_layernorm(self.mlp(x))


class _Patches(nn.Module):
    def __init__(self, eyes: dict[str, Any]) -> None:
        super().__init__()
        width, patch = eyes["hidden_size"], eyes["patch_size"]
        self.proj = nn.Conv2d(eyes["in_channels"], width, kernel_size=patch, stride=patch)
        self.cls_embedding = nn.Parameter(torch.zeros(1, width))
        self.position_embedding = nn.Embedding(eyes["num_positions"], width)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        patches = self.proj(pixels).flatten(2).transpose(1, 2)
        first = self.cls_embedding.expand(patches.shape[0], -1, -1)
        return torch.cat((first, patches), dim=1) + self.position_embedding.weight.unsqueeze(0)


class _Layers(nn.Module):
    def __init__(self, eyes: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GlmEyesLayer(eyes) for _ in range(eyes["num_hidden_layers"]))


class _Projection(nn.Module):
    """From the tower's width to the language model's: a norm, then a gated unit."""

    def __init__(self, config: GlmEyesConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.linear_proj = nn.Linear(width, width, bias=False)
        self.norm1 = nn.LayerNorm(width)
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.dense_h_to_4h = nn.Linear(width, inner, bias=False)
        self.dense_4h_to_h = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.gelu(self.norm1(self.linear_proj(x)))
        found: torch.Tensor = self.dense_4h_to_h(functional.silu(self.gate_proj(x)) * self.dense_h_to_4h(x))
        return found


class GlmEyesTower(nn.Module):
    """The eyes: pixels float [n, 3, S, S] to embeddings [n, (S/28)^2 + 2, hidden], boi and eoi around them."""

    def __init__(self, config: GlmEyesConfig) -> None:
        super().__init__()
        eyes = config.vision_config
        self.scale = eyes["scaling_factor"]
        self.patch_embedding = _Patches(eyes)
        self.transformer = _Layers(eyes)
        self.conv = nn.Conv2d(eyes["hidden_size"], config.hidden_size, kernel_size=2, stride=2)
        self.linear_proj = _Projection(config)
        self.boi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.eoi = nn.Parameter(torch.zeros(1, 1, config.hidden_size))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """The embeddings of pictures; of none, with the same operations and no row."""
        x = self.patch_embedding(pixels.to(self.conv.weight.dtype))
        for layer in self.transformer.layers:
            x = layer(x)
        n, patches, width = x.shape
        side = round((patches - 1) ** 0.5)
        square = x[:, 1:].transpose(1, 2).reshape(n, width, side, side)
        seen = self.linear_proj(self.conv(square).flatten(2).transpose(1, 2))
        return torch.cat((self.boi.expand(n, -1, -1), seen, self.eoi.expand(n, -1, -1)), dim=1) / self.scale


class GlmEyesForConditionalGeneration(GlmPreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]
    """Glm with eyes. Forward takes `input_ids` with all placeholders, and `pixel_values` of all pictures in order."""

    config_class = GlmEyesConfig
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - as Transformers has it
    _no_split_modules = ["GlmDecoderLayer", "GlmEyesLayer"]  # noqa: RUF012
    _supports_flash_attn = False
    """It takes positions that repeat, which all placeholders of a picture share, for packed rows."""
    _supports_flex_attn = False

    def __init__(self, config: GlmEyesConfig) -> None:
        super().__init__(config)
        self.model = GlmModel(config)
        self.vision = GlmEyesTower(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def positions(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The position of each token, int64 [rows, length]: all placeholders of a picture share one.

        A mask that is longer, by a prefix before the tokens, changes nothing: the original counts from 0 then too.
        """
        begins, inside, _ = self._pictures(ids)
        first = begins.roll(1, -1)  # the last token of a row is no begin of the next: a picture has an end
        first[:, 0] = False
        counts = mask[:, -ids.shape[1] :].long() * (~inside | first).long()
        return (counts.cumsum(-1) - 1).clamp(min=0)

    def _pictures(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where tokens begin a picture, stand for its inside, and end it: bool [rows, length] each."""
        begins, ends = ids == self.config.boi_token_id, ids == self.config.eoi_token_id
        return begins, (begins.long().cumsum(-1) - ends.long().cumsum(-1) > 0) & ~begins, ends

    def embeddings(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """The embeddings of tokens, with those of the pictures in their places; ValueError if they do not fit."""
        text = self.model.embed_tokens(ids)
        seen = self.vision(pixels)
        begins, within, ends = self._pictures(ids)
        inside = begins | within | ends
        if int(inside.sum()) != seen.shape[0] * seen.shape[1]:
            what = f"expected {seen.shape[0]} pictures of {seen.shape[1]} tokens, found {int(inside.sum())} tokens"
            raise ValueError(what)
        # With no picture nothing is put in place, and the tower still takes part, with gradients of zero.
        found: torch.Tensor = text.masked_scatter(inside.unsqueeze(-1), seen.to(text.dtype)) + 0 * seen.sum()
        return found

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits float [rows, length, vocabulary], and the loss where `labels` are given."""
        prefix = kwargs.pop("past_key_values", None)  # PEFT's name for it; in the steps of `generate` it is a cache
        if input_ids is not None and inputs_embeds is None:
            if attention_mask is None and cache is None:  # without one, shared positions look like packed rows
                attention_mask = torch.ones_like(input_ids)
                if prefix is not None:
                    attention_mask = nn.functional.pad(attention_mask, (prefix.get_seq_length(), 0), value=1)
            if position_ids is None and cache is None:
                assert attention_mask is not None
                position_ids = self.positions(input_ids, attention_mask)
            if pixel_values is not None:
                inputs_embeds = self.embeddings(input_ids, pixel_values)
                input_ids = None
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache if prefix is None else prefix,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, cache=outputs.cache, hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )  # fmt: skip

    def prepare_inputs_for_generation(self, *args: Any, is_first_iteration: bool = False, **kwargs: Any) -> Any:
        """The inputs of a step; with a cache, pictures are seen in the first step only."""
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs["pixel_values"] = None
        return inputs

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]) -> Any:
        ids = model_kwargs.get("input_ids", inputs_tensor)
        mask = model_kwargs.get("attention_mask")
        return self.positions(ids, torch.ones_like(ids) if mask is None else mask)
