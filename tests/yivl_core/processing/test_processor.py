"""Records and images to model inputs: the original's cases whole, lengths, cutting, and what is refused."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from yivl_core.data.records import ImageCountError, Record
from yivl_core.errors import CheckpointError, DatasetError
from yivl_core.processing.processor import Processor, TooLongError
from yivl_core.processing.tokenization import IGNORE_INDEX, IMAGE_TOKEN_INDEX

NUM_IMAGE_TOKENS = 36


@pytest.fixture(scope="session")
def processor(reference: Path) -> Processor:
    return Processor.from_checkpoint(reference / "checkpoint")


def opened(path: Path) -> Image.Image:
    """The picture as the original saw it: not turned, hidden colours shown."""
    with Image.open(path) as image:
        return image.convert("RGB")


def plain(size: tuple[int, int] = (30, 20), color: str = "red") -> Image.Image:
    return Image.new("RGB", size, color)


def text_of(processor: Processor, ids: np.ndarray) -> str:
    return processor.tokenizer.decode(ids[ids >= 0].tolist())


@pytest.mark.parametrize("form", ["checkpoint", "checkpoint_bin"])
def test_every_case_gives_the_originals_ids_and_pixels(golden_cases: dict[str, Any], reference: Path, form: str) -> None:
    processor = Processor.from_checkpoint(str(reference / form))
    arrays = load_file(reference / "golden.safetensors")
    num_equal = 0
    for name, case in golden_cases["cases"].items():
        texts = [message["text"] for message in case["messages"]]
        history = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
        record = Record(query=texts[-1], history=history, images=tuple(case["images"]))
        images = [opened(reference / "images" / image) for image in case["images"]]
        inputs = processor.process(record, images, with_response=False)
        assert inputs.labels is None
        if images:
            pixel_values = processor.preprocessor.normalise(inputs.pixels.squares()).numpy()
            assert pixel_values.tobytes() == np.stack([arrays[f"pixel_values.{image}"] for image in case["images"]]).tobytes()
        expanded = [
            token_id
            for original in case["input_ids"]
            for token_id in [original] * (NUM_IMAGE_TOKENS if original == IMAGE_TOKEN_INDEX else 1)
        ]
        if name == "special_tokens_in_text":  # the original parses them, see test_tokenization.py
            assert not processor.tokenizer.special_ids.intersection(inputs.input_ids.tolist())
        else:
            assert inputs.input_ids.tolist() == expanded, name
            assert len(inputs.input_ids) == case["expanded_length"] == processor.count_tokens(record, with_response=False)
            num_equal += 1
    assert num_equal == 11


def test_training_inputs_are_the_prompt_and_the_answer(processor: Processor) -> None:
    record = Record(query="what <image>is this", response="a cat", images=("cat.png",))
    opened = processor.process(record, [plain()], with_response=False)
    trained = processor.process(record, [plain()], with_response=True)
    answer = processor.tokenizer.encode(" a cat\n###")
    assert trained.labels is not None
    assert trained.input_ids.tolist() == opened.input_ids.tolist() + answer
    assert trained.labels.tolist() == [IGNORE_INDEX] * len(opened.input_ids) + answer
    assert trained.pixels.squares().equal(opened.pixels.squares())
    assert [array.dtype.name for array in (trained.input_ids, trained.labels)] == ["int64", "int64"]
    assert trained.pixels.rows.dtype == torch.uint8


def test_images_come_in_the_order_of_their_slots(processor: Processor) -> None:
    record = Record(query="and this?", history=(("no picture", "ok"), ("this?", "red")), images=(None, "red.png", "blue.png"))
    inputs = processor.process(record, [plain(color="red"), plain(color="blue")], with_response=False)
    assert inputs.pixels.squares()[:, 42, 42].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert (inputs.input_ids == IMAGE_TOKEN_INDEX).sum() == 2 * NUM_IMAGE_TOKENS


def test_a_record_without_images_has_none(processor: Processor) -> None:
    inputs = processor.process(Record(query="hi"), [], with_response=False)
    assert inputs.pixels.squares().shape == (0, 84, 84, 3)


def test_what_samples_share_is_all_before_an_image_that_comes_first(processor: Processor) -> None:
    def num_shared(query: str, *, num_images: int = 1, **fields: Any) -> int:
        record = Record(query=query, images=("a",) * num_images, **fields)
        inputs = processor.process(record, [plain()] * num_images, with_response=False)
        assert inputs.num_shared in (0, int((inputs.input_ids < 0).argmax()))
        return inputs.num_shared

    shared = num_shared("What is it?")
    assert shared > 10
    assert num_shared("<image>Which colour?") == num_shared("And this?", num_images=2) == shared
    assert num_shared("Now?", history=(("<image>What is it?", "A cat."),)) == shared
    assert 0 < num_shared("What is it?", system="Be brief.") < shared
    assert num_shared("Look: <image>") == num_shared("Words alone", num_images=0) == 0


def test_a_missing_response_is_a_named_error(processor: Processor) -> None:
    with pytest.raises(DatasetError, match=r'record "r-7": has no "response" to learn from; add one'):
        processor.process(Record(query="hi", id="r-7"), [], with_response=True)


def test_images_that_are_not_those_of_the_record_are_a_named_error(processor: Processor) -> None:
    with pytest.raises(DatasetError, match=r'record "r-7": 2 images given for 1 in the record'):
        processor.process(Record(query="hi", id="r-7", images=("a.png",)), [plain(), plain()], with_response=False)


def test_more_tags_than_images_are_refused_unlike_in_the_original(golden_cases: dict[str, Any], processor: Processor) -> None:
    assert golden_cases["quirks"]["more_placeholders_than_images"]["forward"]["result"] == "raises"
    record = Record(query="<image_placeholder>\nWhat does the word <image_placeholder> mean?", images=("wide.jpg",))
    with pytest.raises(ImageCountError, match=r"2 <image> tag\(s\) .* for 1 image"):
        processor.count_tokens(record, with_response=False)


def test_more_images_than_tags_are_refused_unlike_in_the_original(golden_cases: dict[str, Any], processor: Processor) -> None:
    assert golden_cases["quirks"]["more_images_than_placeholders"]["surplus_images_ignored"]
    with pytest.raises(ImageCountError, match=r"1 <image> tag\(s\) .* for 2 image"):
        processor.process(Record(query="<image>?", images=("a", "b")), [plain(), plain()], with_response=False)


words = st.text(alphabet="ab ###\n你🐱", max_size=60)


@settings(deadline=None)
@given(query=words, response=words, answer=words, max_length=st.integers(200, 320))
def test_a_cut_sample_fits_and_keeps_images_frame_and_stop(
    processor: Processor, query: str, response: str, answer: str, max_length: int
) -> None:
    record = Record(query=query, response=response, history=(("<image>\nlook", answer),), images=("a.png",))
    full = processor.process(record, [plain()], with_response=True)
    cut = processor.process(record, [plain()], with_response=True, max_length=max_length)
    assert len(cut.input_ids) <= max_length
    assert len(cut.input_ids) == processor.count_tokens(record, with_response=True, max_length=max_length)
    assert cut.labels is not None
    stop = processor.tokenizer.encode("\n###")
    assert cut.labels[-2:].tolist() == stop
    assert (cut.input_ids == IMAGE_TOKEN_INDEX).sum() == NUM_IMAGE_TOKENS
    assert text_of(processor, cut.input_ids).count("Assistant:") == 2
    if len(full.input_ids) <= max_length:
        assert cut.input_ids.tolist() == full.input_ids.tolist()


def test_cutting_shortens_the_long_text_only_and_no_more_than_needed(processor: Processor) -> None:
    record = Record(query="Read the text.", response="0123456789" * 40, images=("page.png",))
    num_tokens = processor.count_tokens(record, with_response=True)
    cut = processor.process(record, [plain()], with_response=True, max_length=num_tokens - 100)
    assert len(cut.input_ids) == num_tokens - 100
    assert text_of(processor, cut.input_ids).endswith("Human: \nRead the text.\n### Assistant: " + "0123456789" * 30 + "\n###")


def test_no_cut_makes_an_answer_empty(processor: Processor) -> None:
    record = Record(query="long " * 40, response="yes", history=(("more " * 40, "no"),))
    shortest = processor.count_tokens(Record(query="l", response="y", history=(("m", "n"),)), with_response=True)
    cut = processor.process(record, [], with_response=True, max_length=shortest)
    assert text_of(processor, cut.input_ids).endswith("### Human: m\n### Assistant: n\n### Human: l\n### Assistant: y\n###")
    message = rf'record "r": {shortest} tokens with every text cut to one character; .* raise max_length \(now {shortest - 1}\)'
    with pytest.raises(TooLongError, match=message):
        processor.process(record.model_copy(update={"id": "r"}), [], with_response=True, max_length=shortest - 1)


def test_a_preprocessor_of_another_size_is_a_named_error(reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(reference / "checkpoint", folder, copy_function=shutil.copyfile)
    path = next((folder / "vit").glob("*/preprocessor_config.json"))
    path.parent.chmod(0o755)
    path.write_text(re.sub(r"\b84\b", "70", path.read_text()))
    with pytest.raises(CheckpointError, match=r"size is 70, but the vision tower reads 84 pixels; take both files"):
        Processor.from_checkpoint(folder)


def test_a_folder_that_is_no_checkpoint_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Processor.from_checkpoint(tmp_path)
