"""Models that came with code of their own, against what that code computes (../shared/golden/native_models)."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

import registry
import trainer.models
from schemas.errors import InputError, UsageError
from tests.support.shared import shared
from trainer.commands import libraries
from trainer.models.original import families
from trainer.models.original.weights import original_names, read
from trainer.models.pretrained import load_tokenizer

NAMES = ("baichuan", "chatglm2", "chatglm3", "cogagent", "glm-4-9b", "glm-4v-9b", "internlm2", "qwen")
INPUTS = ("input_ids", "attention_mask", "position_ids", "pixel_values")

pytestmark = pytest.mark.slow


def golden(name: str) -> tuple[Path, dict[str, torch.Tensor], dict[str, Any]]:
    folder = shared("golden", "native_models", name)
    numbers = json.loads((folder / "expected" / "numbers.json").read_text(encoding="utf-8"))
    return folder, load_file(folder / "expected" / "tensors.safetensors"), numbers


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    return {name: tensor for name, tensor in found.items() if not name.endswith("inv_freq")}


def changed(tmp_path: Path, name: str, **keys: Any) -> Path:
    """A copy of a folder with other values in its config.json; None removes a key."""
    folder = Path(shutil.copytree(golden(name)[0], tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | keys
    text = json.dumps({key: value for key, value in config.items() if value is not None})
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_logits_loss_and_gradients_are_those_of_the_original_code(name: str) -> None:
    folder, tensors, numbers = golden(name)
    model = trainer.models.load(folder, dtype=torch.float32)
    assert type(model).__module__.startswith(("transformers.", "trainer.models.original."))
    assert not model.training
    logits = model(**{key: tensors[key] for key in INPUTS if key in tensors}).logits
    real = tensors["attention_mask"].bool()
    assert torch.allclose(logits[real], tensors["logits"][real], rtol=0, atol=2e-5)
    loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tensors["labels"][:, 1:].flatten())
    assert loss.item() == pytest.approx(numbers["loss"], abs=1e-5)
    loss.backward()
    family = families.family_of(folder)
    assert family is not None
    gradients = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    found = original_names(family, model.config, gradients)
    wanted = numbers["gradient_norms_by_original_name"]
    assert found.keys() == wanted.keys()
    for key, norm in wanted.items():
        assert found[key].norm().item() == pytest.approx(norm, rel=1e-4), key


@pytest.mark.parametrize("name", NAMES)
def test_tensors_under_their_original_names_are_those_of_the_folder(name: str) -> None:
    folder, _, _ = golden(name)
    model, family = trainer.models.load(folder), families.family_of(folder)
    assert family is not None
    found, wanted = original_names(family, model.config, model.state_dict()), tensors_of(folder)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_process_that_needs_no_values_reads_the_shapes_alone(name: str) -> None:
    """As all but the first with ZeRO-3, where rows that change places would be copied in each."""
    folder, _, _ = golden(name)
    family = families.family_of(folder)
    assert family is not None
    whole, shapes = (
        read(folder, family, families.configuration(folder, family), shapes_alone=x) for x in (False, True)
    )
    assert {key: tensor.shape for key, tensor in shapes.items()} == {key: one.shape for key, one in whole.items()}
    assert all(tensor.is_meta for tensor in shapes.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_model_saved_in_its_original_layout_is_the_folder_again(name: str, tmp_path: Path) -> None:
    folder, _, _ = golden(name)
    families.save_original(trainer.models.load(folder), folder, tmp_path)
    wanted, found = (
        {key: tensor for path in where.glob("*.safetensors") for key, tensor in load_file(path).items()}
        for where in (folder, tmp_path)
    )
    assert found.keys() == wanted.keys()
    assert all(found[key].dtype == wanted[key].dtype and torch.equal(found[key], wanted[key]) for key in wanted)
    assert (tmp_path / "config.json").read_bytes() == (folder / "config.json").read_bytes()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("cogagent", "glm-4v-9b")])
def test_a_saved_model_is_an_ordinary_one_of_transformers(name: str, tmp_path: Path) -> None:
    folder, tensors, _ = golden(name)
    model = trainer.models.load(folder)
    model.save_pretrained(tmp_path)
    again = trainer.models.load(tmp_path)
    assert families.family_of(tmp_path) is None
    inputs = {"input_ids": tensors["input_ids"][:1], "attention_mask": tensors["attention_mask"][:1]}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)


@pytest.mark.parametrize("name", ["cogagent", "glm-4v-9b"])
def test_generating_with_pictures_is_the_same_with_and_without_a_cache(name: str) -> None:
    folder, tensors, _ = golden(name)
    model = trainer.models.load(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    given = {key: tensors[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    found = [
        model.generate(**given, max_new_tokens=5, do_sample=False, use_cache=cached, pad_token_id=0).tolist()
        for cached in (True, False)
    ]
    assert found[0] == found[1]
    ids, mask = found[0][0][:-1], torch.ones(1, len(found[0][0]) - 1, dtype=torch.long)
    if bool(tensors["attention_mask"][0].all()):  # the last token by a plain pass over all before it
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids]), attention_mask=mask, pixel_values=given["pixel_values"][:1]
            ).logits
        assert int(logits[0, -1].argmax()) == found[0][0][-1]


def test_a_row_without_pictures_runs_the_eyes_with_no_gradient() -> None:
    folder, tensors, _ = golden("cogagent")
    model = trainer.models.load(folder, dtype=torch.float32)
    ids = torch.tensor([[5, 109, 39, 98, 7]])
    side = tensors["pixel_values"].shape[-1]
    plain = model(input_ids=ids).logits
    with_none = model(input_ids=ids, pixel_values=torch.zeros(0, 3, side, side)).logits
    assert torch.equal(plain, with_none)
    with_none.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.vision.parameters())


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("chatglm3", "add_bias_linear", True), ("chatglm3", "quantization_bit", 4), ("chatglm3", "pre_seq_len", 128),
     ("chatglm3", "rmsnorm", False), ("qwen", "no_bias", False), ("qwen", "kv_channels", 8),
     ("internlm2", "bias", True), ("baichuan", "max_position_embeddings", None)],
)  # fmt: skip
def test_a_folder_that_is_almost_one_of_a_family_is_refused_with_the_key(
    tmp_path: Path, name: str, key: str, value: Any
) -> None:
    with pytest.raises(UsageError, match=key):
        trainer.models.load(changed(tmp_path, name, **{key: value}))


def test_tensors_that_do_not_fit_the_configuration_are_one_message(tmp_path: Path) -> None:
    with pytest.raises((InputError, UsageError), match=r"shape|size|split"):
        trainer.models.load(changed(tmp_path, "chatglm3", ffn_hidden_size=96))


def test_a_missing_tensor_and_a_foreign_one_are_named(tmp_path: Path) -> None:
    folder = changed(tmp_path, "qwen")
    tensors = tensors_of(folder)
    for path in folder.glob("*safetensors*"):
        path.unlink()
    save_file(
        {key: value for key, value in tensors.items() if key != "transformer.h.1.ln_2.weight"},
        folder / "model.safetensors",
    )
    with pytest.raises(InputError, match=r"model\.layers\.1\.post_attention_layernorm\.weight"):
        trainer.models.load(folder)
    save_file(tensors | {"transformer.h.1.extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(UsageError, match=r"transformer\.h\.1\.extra"):
        trainer.models.load(folder)


@pytest.mark.parametrize(
    ("code", "kind", "theta"),
    [("rope_cache / self.rope_ratio", "linear", 10000.0), ("base = base * self.rope_ratio", "default", 500000.0),
     ("no such thing", "default", 10000.0)],
)  # fmt: skip
def test_what_rope_ratio_means_is_read_from_the_code_which_is_not_run(
    tmp_path: Path, code: str, kind: str, theta: float
) -> None:
    folder = changed(tmp_path, "chatglm3", rope_ratio=50)
    (folder / "modeling_chatglm.py").write_text(f"raise SystemExit  # {code}", encoding="utf-8")
    rope = trainer.models.load(folder).config.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"]) == (kind, theta)


def test_baichuan_2_has_a_head_of_rows_of_length_one(tmp_path: Path) -> None:
    folder = changed(tmp_path, "baichuan", z_loss_weight=0)
    head = trainer.models.load(folder).lm_head.weight
    own = tensors_of(folder)["lm_head.weight"]
    assert torch.allclose(head.norm(dim=1), torch.ones(len(head)), atol=1e-6)
    assert torch.allclose(head, own / own.norm(dim=1, keepdim=True))


def test_the_tokenizer_of_an_original_folder_is_read_without_a_warning(tmp_path: Path) -> None:
    """Transformers takes its configuration for that of another model, which is no news to the user."""
    shutil.copytree(registry.DEMO_TOKENIZER, tmp_path / "glm")
    (tmp_path / "glm" / "config.json").write_text('{"model_type": "chatglm", "vision_config": {}}')
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    library = logging.getLogger("transformers.configuration_utils")
    library.addHandler(listener)
    libraries.need("chat", "transformers")
    try:
        assert load_tokenizer(tmp_path / "glm").decode([8002]) == "<|im_end|>"
    finally:
        library.removeHandler(listener)
    assert said == []
