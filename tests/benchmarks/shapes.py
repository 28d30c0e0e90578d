"""The published shapes with random weights, the images to go with them, and what a machine can do at most.

There are no published weights here: speed does not depend on them, and quality is measured on the project's own model.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig

from yivl_core.model.configuration import YiVLConfig
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.random_checkpoint import TOKENIZER_SETTINGS
from yivl_core.model.weights import restore_buffers, set_parameter
from yivl_core.processing.image import ImagePreprocessor
from yivl_core.processing.processor import Processor
from yivl_core.processing.tokenization import Tokenizer

# config.json of 01-ai/Yi-VL-6B and -34B, and of TinyLlama-1.1B: a decoder with other proportions, for what is planned by shape.
TEXT_SHAPES = {
    "1b": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "6b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "34b": {
        "hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60, "num_attention_heads": 56,
        "num_key_value_heads": 8,
    },
}  # fmt: skip
# CLIP's, as published in preprocessor_config.json.
_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def random_model(
    shape: str,
    dtype: torch.dtype | Callable[[str], torch.dtype],
    device: str,
    put: Callable[[YiVLForConditionalGeneration, str, torch.Tensor], None] = set_parameter,
) -> YiVLForConditionalGeneration:
    """A model of a published shape whose weights are drawn on the device, one at a time; arguments as of `load_model`."""
    text = LlamaConfig(vocab_size=64000, max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=5e6, **TEXT_SHAPES[shape])
    vision = CLIPVisionConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=448, patch_size=14,
        hidden_act="gelu", projection_dim=1024,
    )  # fmt: skip
    with torch.device("meta"):
        model = YiVLForConditionalGeneration(YiVLConfig(text_config=text, vision_config=vision))
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        value = torch.empty(parameter.shape, dtype=dtype(name) if callable(dtype) else dtype, device=device)
        if "norm" in name:
            value.fill_(0 if name.endswith("bias") else 1)
        else:
            value.normal_(0, 0.02, generator=generator)
        put(model, name, value)
    restore_buffers(model, torch.device(device))
    return model.eval()


def random_tokenizer_model() -> bytes:
    """A small SentencePiece model of the published kind."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"a text of words number {number}" for number in range(100)]),
        model_writer=model, model_type="bpe", vocab_size=300, **TOKENIZER_SETTINGS,
    )  # fmt: skip
    return model.getvalue()


def random_processor() -> Processor:
    """A processor of the published image size, with a small tokenizer."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(random_tokenizer_model())
    tokenizer = Tokenizer(processor, {"<unk>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2})
    tokenizer.eos_id = -1  # every answer is as long as it may be
    return Processor(tokenizer, ImagePreprocessor(image_size_px=448, image_mean=_MEAN, image_std=_DEVIATION), 1024)


def write_photographs(folder: Path, count: int, size: tuple[int, int] = (1632, 1224)) -> list[Path]:
    """Different JPEG files of two megapixels, as detailed as photographs: about half a megabyte each."""

    def write(number: int) -> Path:
        path = folder / f"{number:06}.jpg"
        if not path.exists():
            random = np.random.default_rng(number)
            coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
            noise = random.integers(-9, 10, (size[1], size[0], 1), dtype=np.int16)
            pixels = np.clip(np.asarray(coarse, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(path, quality=85)
        return path

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        return list(pool.map(write, range(count)))


def operations_per_image(model: YiVLForConditionalGeneration, prompt_tokens: int, new_tokens: int) -> float:
    """Multiplications and additions of one image, its prompt and its answer: two for each weight that a token passes."""
    text, vision = model.config.text_config, model.config.vision_config
    kv_width = text.hidden_size // text.num_attention_heads * text.num_key_value_heads
    layer = text.hidden_size * (2 * text.hidden_size + 2 * kv_width + 3 * text.intermediate_size)
    tokens = prompt_tokens + new_tokens
    decoder = 2 * text.num_hidden_layers * (layer * tokens + text.hidden_size * tokens**2)
    head = 2 * new_tokens * text.hidden_size * text.vocab_size
    patches, width = model.config.num_image_tokens + 1, vision.hidden_size
    tower_layer = 2 * patches * width * (4 * width + 2 * vision.intermediate_size) + 4 * patches**2 * width
    projector = 2 * model.config.num_image_tokens * text.hidden_size * (width + text.hidden_size)
    return float(decoder + head + model.config.num_vision_layers * tower_layer + projector)


def median_ms(run: Callable[[], object], repeats: int = 5) -> float:
    """Milliseconds of work on the GPU, the median of some runs after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def profiled(run: Callable[[], object], *, num_lines: int = 14) -> list[dict[str, float | str]]:
    """The kernels, or on a CPU the operators, that take the most time in a run: milliseconds of all calls together, and calls."""
    from torch.profiler import ProfilerActivity, profile

    has_gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if has_gpu else ProfilerActivity.CPU]) as found:
        run()
        if has_gpu:
            torch.cuda.synchronize()
    times = [
        (event.self_device_time_total if has_gpu else event.self_cpu_time_total, event.count, event.key)
        for event in found.key_averages()
    ]
    total = sum(time for time, _, _ in times)
    lines: list[dict[str, float | str]] = [{"ms": total / 1e3, "what": "all"}]
    return lines + [
        {"ms": time / 1e3, "calls": count, "what": key[:80]} for time, count, key in sorted(times, reverse=True)[:num_lines]
    ]


def measure_peaks(dtype: torch.dtype, seconds: float = 2.0) -> tuple[float, float]:
    """TFLOP/s of a large matrix product while the GPU is warm, and TB/s of a large copy, bytes read and written."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=dtype)
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        median_ms(lambda: a @ b)
    product = 2 * 8192**3 / median_ms(lambda: a @ b) / 1e9
    source = torch.empty(2**30, dtype=torch.int8, device="cuda").random_()
    target = torch.empty_like(source)
    copied = 2 * source.numel() / median_ms(lambda: target.copy_(source)) / 1e9
    return product, copied
