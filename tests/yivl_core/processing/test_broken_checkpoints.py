"""Every key of every JSON file of a checkpoint, in both layouts, with values that cannot be right.

The weight files of these checkpoints are empty, so whatever is found here is found before a weight is read.
"""

import json
import math
import re
import reprlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from yivl_core.errors import CheckpointError
from yivl_core.model.configuration import read_config
from yivl_core.model.files import open_checkpoint
from yivl_core.model.weights import load_model, read_tensors, write_checkpoint
from yivl_core.processing.processor import Processor

ABSENT = "(absent)"
BAD_VALUES: list[Any] = [
    ABSENT, None, True, False, "abc", "64", "", "\ud800", -1, 0, 1.5, -0.5, 1e308, math.inf, math.nan, 10**400, 2**31, -(10**30),
    [], [64], [None, None, None], {}, {"a": {"b": [1, "x"]}}, [[[[]]]],
]  # fmt: skip
VIT = "vit/clip-vit-H-14-laion2B-s32B-b79K-yi-vl-6B-448"
# Files of each layout, and the places of the keys that are read.
TEXT = [
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "attention_bias", "mlp_bias",
    "attention_dropout", "tie_word_embeddings", "bos_token_id", "eos_token_id",
]  # fmt: skip
VISION = [
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads", "num_channels",
    "image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range", "initializer_factor",
]  # fmt: skip
LLAVA = ["mm_projector_type", "mm_vision_tower", "mm_vision_select_layer", "mm_vision_select_feature"]
PREPROCESSOR = [
    "do_resize", "do_center_crop", "do_rescale", "do_normalize", "size", "crop_size", "image_mean", "image_mean/0", "image_std",
    "image_std/2", "rescale_factor", "resample", "size/height", "size/width", "crop_size/shortest_edge",
]  # fmt: skip
TOKENIZER = {
    "added_tokens.json": ["<unk>", "<|im_end|>"],
    "tokenizer_config.json": ["added_tokens_decoder", "added_tokens_decoder/7", "added_tokens_decoder/7/content"],
}
WITHOUT_TOWER = re.compile(r"no Yi-VL checkpoint .* without mm_vision_tower|vision tower .* of config.json is missing")
INDEX = ["weight_map", "weight_map/lm_head.weight"]
FILES = {
    "published": {
        "config.json": [*TEXT, *LLAVA, "rope_theta", "rope_scaling", "rope_scaling/type", "rope_scaling/factor"],
        f"{VIT}/config.json": VISION,
        f"{VIT}/preprocessor_config.json": PREPROCESSOR,
        "model.safetensors.index.json": INDEX,
        **TOKENIZER,
    },
    "transformers": {
        "config.json": [
            "text_config", "vision_config", "mm_vision_select_layer", "image_token_index", "tie_word_embeddings",
            *(f"text_config/{key}" for key in TEXT),
            *(f"text_config/rope_parameters{key}" for key in ("", "/rope_type", "/rope_theta", "/factor")),
            *(f"vision_config/{key}" for key in VISION),
        ],
        "preprocessor_config.json": PREPROCESSOR,
        **TOKENIZER,
    },
}  # fmt: skip
# What is accepted and changes something: values that a model may well have. Where they are wrong, the shapes of the weights, or a
# number that nothing could tell from a right one, decide. By the last part of the key; values as JSON.
MEANT = {
    "attention_bias": ["true"],
    "mlp_bias": ["true"],
    "initializer_range": ["0"],
    "projection_dim": ['"(absent)"'],  # no module of ours has it
    "initializer_factor": ["1.5", "1e+308", str(2**31)],
    "rope_theta": ["1.5", "1e+308", str(2**31)],
    "factor": ["1.5", "1e+308", str(2**31)],
    "bos_token_id": ["0"],
    "eos_token_id": ["0"],
    "mm_vision_select_layer": ["-1", "0"],
    "image_mean/0": ["0"],
    "resample": ["0"],
    "<|im_end|>": ["0"],
    "content": ['"abc"', '"64"'],
}


@pytest.fixture(scope="module", params=["published", "transformers"])
def checkpoint(request: pytest.FixtureRequest, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("broken") / request.param
    if request.param == "published":
        shutil.copytree(reference / "checkpoint", folder, copy_function=shutil.copyfile)
    else:
        folder.mkdir()
        source = open_checkpoint(reference / "checkpoint")
        write_checkpoint(folder, source, read_tensors(source), layout="transformers")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        if path.suffix == ".safetensors":
            path.write_bytes(b"")
    return folder


def outcome(folder: Path) -> tuple[Any, ...]:
    """All that the JSON files decide."""
    files = open_checkpoint(folder)
    processor = Processor.from_checkpoint(files)
    preprocessor, tokenizer = processor.preprocessor, processor.tokenizer
    return (
        read_config(files).to_dict(),
        files.max_positions,
        files.weight_paths,
        processor.num_image_tokens,
        {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in vars(preprocessor).items()},
        tokenizer.special_ids,
        tokenizer.decode(range(10), skip_special_tokens=False),
        tokenizer.encode("a<unk> <|endoftext|>b<|im_end|>", parse_special=True),
    )


def changed(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with one value replaced, or removed; objects on the way are made where there are none."""
    content = json.loads(json.dumps(content))
    *path, last = place.split("/")
    target: Any = content
    for key in path:
        if not isinstance(target.get(key), (dict, list)):
            target[key] = {"type": "linear", "factor": 2.0} if key == "rope_scaling" else {}
        target = target[key]
    if path == ["size"]:
        target |= {"height": 84, "width": 84}
    if path and path[-1] == "rope_parameters" and last == "factor":
        target["rope_type"] = "dynamic"
    if isinstance(target, list):
        target[int(last)] = value
    elif value == ABSENT:
        target.pop(last, None)
    else:
        target[last] = value
    return content


def broken(folder: Path, name: str, places: list[str]) -> Iterator[tuple[str, Any]]:
    """Each key with each bad value, in the file while the test looks at it."""
    path = folder / name
    text = path.read_text(encoding="utf-8")
    try:
        for place in places:
            for value in BAD_VALUES:
                path.write_text(json.dumps(changed(json.loads(text), place, value)))
                yield place, value
    finally:
        path.write_text(text, encoding="utf-8")


def test_a_broken_value_is_a_named_error_before_any_weight_is_read_or_changes_nothing(checkpoint: Path) -> None:
    expected, accepted, num_refused = outcome(checkpoint), set(), 0
    for name, places in FILES[checkpoint.name].items():
        for place, value in broken(checkpoint, name, places):
            try:
                found = outcome(checkpoint)
            except CheckpointError as error:
                num_refused += 1
                assert_names(str(error), checkpoint / name, place, value)
                continue
            key = next((key for key in MEANT if place.endswith(key)), place)
            if json.dumps(value) in MEANT.get(key, []):
                accepted.add((key, json.dumps(value)))
            else:
                assert found == expected, (name, place, value)
    assert num_refused > 700
    assert outcome(checkpoint) == expected
    here = {key for keys in FILES[checkpoint.name].values() for place in keys for key in MEANT if place.endswith(key)}
    assert accepted == {(key, value) for key in here for value in MEANT[key]}, "an entry of MEANT that is not accepted"


def parts(value: Any) -> list[Any]:
    """A value and all within it."""
    within = value if isinstance(value, list) else value.values() if isinstance(value, dict) else []
    return [value, *(part for item in within for part in parts(item))]


def assert_names(message: str, path: Path, place: str, value: Any) -> None:
    """A message names the file, the key, the value where there is one, and what to do."""
    case = (place, value, message)
    key = re.sub(r"^(\w*size|rope_scaling)/.*", r"\1", place).replace("/", ".")
    assert f"{path}: {key}" in message or f"{path}: lacks {key}" in message or WITHOUT_TOWER.search(message), case
    shown = [text for part in parts(value) for text in (reprlib.repr(part), repr(part))]
    assert value == ABSENT or any(text in message for text in shown) or " lacks " in message, case
    assert any(remedy in message for remedy in ("fetch", "are not read", "take both files from")), case
    message.encode()


def changed_file(folder: Path, name: str, place: str, value: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(changed(json.loads(path.read_text(encoding="utf-8")), place, value)))


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy in either layout that a test may spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name, copy_function=shutil.copyfile))


@pytest.fixture
def published(reference: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(reference / "checkpoint", tmp_path / "published", copy_function=shutil.copyfile))
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


CORRECT = "; correct it, or fetch the file again"


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("config.json", "max_position_embeddings", ABSENT, "lacks max_position_embeddings" + CORRECT),
        ("config.json", "vocab_size", -1, "vocab_size is -1; it should be greater than or equal to 1" + CORRECT),
        ("config.json", "hidden_size", "64", "hidden_size is '64'; it should be a valid integer" + CORRECT),
        ("config.json", "hidden_size", True, "hidden_size is True; it should be a valid integer" + CORRECT),
        ("config.json", "rms_norm_eps", 1e5, "rms_norm_eps is 100000.0; it should be less than 1" + CORRECT),
        ("config.json", "rope_theta", math.inf, "rope_theta is inf; it should be a finite number" + CORRECT),
        ("config.json", "num_attention_heads", 7, "num_attention_heads is 7; hidden_size 64 has to be an even multiple of it"),
        ("config.json", "num_attention_heads", 64, "num_attention_heads is 64; hidden_size 64 has to be an even multiple of it"),
        ("config.json", "num_key_value_heads", 3, "num_key_value_heads is 3; it has to divide num_attention_heads 8" + CORRECT),
        ("config.json", "head_dim", 16, "head_dim is 16; hidden_size / num_attention_heads is 8" + CORRECT),
        ("config.json", "hidden_act", "silly", "hidden_act is 'silly'; it should be 'gelu', 'gelu_new'"),
        ("config.json", "tie_word_embeddings", True, "tie_word_embeddings is True; Yi-VL has False" + CORRECT),
        ("config.json", "rope_scaling", "linear", "rope_scaling is 'linear'; it should be a valid dictionary"),
        ("config.json", "rope_scaling", {"type": "linear"}, "rope_scaling.factor is None; rope_type 'linear' needs a number"),
        ("config.json", "rope_scaling/type", "yarn", "rope_scaling.type is 'yarn'; it should be 'default', 'linear' or"),
        ("config.json", "mm_vision_select_layer", "abc", "mm_vision_select_layer is 'abc'; it should be a valid integer"),
        (
            "config.json", "mm_vision_select_layer", -6,
            "mm_vision_select_layer is -6; with the vision tower's 4 layers it should be -5 to 4 (Yi-VL has -2)" + CORRECT,
        ),
        ("config.json", "mm_vision_tower", 5, "mm_vision_tower is 5; it should be a valid string" + CORRECT),
        (f"{VIT}/config.json", "image_size", ABSENT, "lacks image_size" + CORRECT),
        (f"{VIT}/config.json", "hidden_act", ABSENT, "lacks hidden_act" + CORRECT),
        (f"{VIT}/config.json", "patch_size", 15, "patch_size is 15; it has to divide image_size 84" + CORRECT),
        (f"{VIT}/config.json", "num_attention_heads", 5, "num_attention_heads is 5; it has to divide hidden_size 48" + CORRECT),
        (f"{VIT}/config.json", "num_channels", 4, "num_channels is 4; Yi-VL has 3" + CORRECT),
        ("model.safetensors.index.json", "weight_map", {}, "weight_map is {}; it should have at least 1 item"),
        ("model.safetensors.index.json", "weight_map/lm_head.weight", 5, "weight_map.lm_head.weight is 5; it should be a valid"),
        (
            "model.safetensors.index.json", "weight_map/lm_head.weight", "../x.bin",
            "weight_map.lm_head.weight is '../x.bin'; it should be a .safetensors or .bin file in this folder" + CORRECT,
        ),
        ("model.safetensors.index.json", "weight_map/lm_head.weight", "/x.bin", "is '/x.bin'; it should be a .safetensors or"),
        ("model.safetensors.index.json", "weight_map/lm_head.weight", "config.json", "is 'config.json'; it should be a"),
    ],
)  # fmt: skip
def test_the_message_says_which_key_of_which_file_and_what_to_do(
    published: Path, name: str, place: str, value: Any, message: str
) -> None:
    changed_file(published, name, place, value)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(published)
    assert str(caught.value).startswith(f"{published / name}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("tower", ["", ".", "/", "..", "vit/..", "nowhere", "x" * 300, "a/" * 3000, "\0", "../published/vit/x"])
def test_a_tower_that_is_no_folder_below_is_a_named_error(published: Path, tower: str) -> None:
    changed_file(published, "config.json", "mm_vision_tower", tower)
    with pytest.raises(CheckpointError, match=r"vision tower '.* of config.json is missing \(key mm_vision_tower\); fetch"):
        open_checkpoint(published)


def test_a_weight_file_with_an_impossible_name_is_a_named_error(published: Path) -> None:
    changed_file(published, "model.safetensors.index.json", "weight_map/lm_head.weight", "x" * 300 + ".bin")
    with pytest.raises(CheckpointError, match=r"\.bin: file is missing \(model\.safetensors\.index\.json names it\)"):
        open_checkpoint(published)


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_in_the_place_of_the_weights_is_a_named_error(published: Path, stem: str) -> None:
    (published / "model.safetensors.index.json").unlink()
    (published / stem).mkdir()
    with pytest.raises(CheckpointError, match=rf"{stem}: is a folder where a file belongs \(it holds the weights\); remove it"):
        open_checkpoint(published)


def test_a_file_that_is_no_json_object_is_a_named_error(copied: Path) -> None:
    contents = [b"", b"[]", b"5", b"null", b'"abc"', b"\xff\xfe{}", b"\x00" * 8, b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000]
    for name in FILES[copied.name]:
        path = copied / name
        whole = path.read_bytes()
        for content in [*contents, whole[: len(whole) // 2], whole[:-2]]:
            path.write_bytes(content)
            with pytest.raises(CheckpointError) as caught:
                outcome(copied)
            assert str(caught.value).startswith(f"{path}: ")
            assert "fetch the file again" in str(caught.value)
        path.unlink()
        path.mkdir()
        with pytest.raises(CheckpointError) as caught:
            outcome(copied)
        assert str(caught.value).startswith(f"{path}: ")
        path.rmdir()
        path.write_bytes(whole)
    outcome(copied)


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_stretched_positions_are_read_alike_from_both_layouts(published: Path, tmp_path: Path, kind: str) -> None:
    changed_file(published, "config.json", "rope_scaling", {"type": kind, "factor": 2.0})
    source = open_checkpoint(published)
    (tmp_path / "transformers").mkdir()
    write_checkpoint(tmp_path / "transformers", source, read_tensors(source), layout="transformers")
    one, other = (load_model(folder).model.language_model for folder in (published, tmp_path / "transformers"))
    positions = torch.arange(9000)[None]
    for got, expected in zip(one.rotary_emb(torch.zeros(1), positions), other.rotary_emb(torch.zeros(1), positions), strict=True):
        assert got.equal(expected)
    assert one.config.rope_parameters == {"rope_type": kind, "factor": 2.0, "rope_theta": 5_000_000.0}
