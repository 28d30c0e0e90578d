"""ModelRunner: all that touches the device. It encodes images, computes prompts, gives each row its next token, and samples.

What it is told to do it only orders from a GPU; results are looked at a step later, while the GPU computes the next one. Rows
keep their last token, position and place in the cache on the device, so that a step needs nothing from the one before.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch

from yivl_core.inference.decoder import Decoder
from yivl_core.inference.graphs import RecordedSteps
from yivl_core.inference.kv_cache import KeyValueCache
from yivl_core.inference.layout import DecodeLayout, Padding, PrefillLayout, Segment, send
from yivl_core.inference.operations import Operations, PlainOperations
from yivl_core.inference.prefixes import KeptPrefixes
from yivl_core.inference.requests import NO_TOKEN, Request
from yivl_core.inference.sampling import SamplingColumns, SamplingParams, mark_seen, sample
from yivl_core.inference.scheduler import Generation
from yivl_core.inference.steps import RunnerSettings, RunningRequest, StepResult
from yivl_core.inference.vision import VisionEncoder
from yivl_core.model.config_keys import IMAGE_TOKEN_INDEX
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.processing.image import ImagePreprocessor
from yivl_core.processing.padding import UnpaddedPixels

# Tokens that prefills are filled up to a multiple of, so that few sizes come up; half of it for small ones.
_PREFILL_UNIT = 256
_MAX_RECORDED_PREFILLS = 16
_DECODE_ROWS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256)


class ModelRunner:
    """A model on a device, with its key-value cache.

    Args:
        model: the model of record, with or without a plain LoRA; it is emptied.
        preprocessor: of its checkpoint.
        settings: sizes.

    Attributes:
        decoder: of the model.
        lag: how many steps later than ordered a result had better be looked at.
        settings: as given.
        max_positions: the model's.
    """

    def __init__(self, model: YiVLForConditionalGeneration, preprocessor: ImagePreprocessor, settings: RunnerSettings) -> None:
        weight = model.model.language_model.embed_tokens.weight
        self.device, self.dtype = weight.device, weight.dtype
        # Triton's kernels, events and pools of memory belong to the current GPU.
        self._current = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        self.settings = settings
        config = model.config.text_config
        self.max_positions: int = config.max_position_embeddings
        self.lag = 1 if self.device.type == "cuda" else 0
        with self._current:
            operations: Operations = PlainOperations()
            if not settings.is_plain:
                operations = choose_operations(self.device, self.dtype, config.hidden_size // config.num_attention_heads)
            self._recorded = None if isinstance(operations, PlainOperations) else RecordedSteps(self.device)
            self._preprocessor = preprocessor
            self._num_image_tokens: int = model.config.num_image_tokens
            self._vision = VisionEncoder(model, operations, is_fp8=settings.is_fp8)
            self.decoder = Decoder(model, operations, is_fp8=settings.is_fp8)
            self._prefixes = KeptPrefixes()
            # Behind the slots stand the kept prefixes, and one token for rows that are there to fill a batch.
            self._cache = KeyValueCache(
                num_layers=self.decoder.num_layers,
                num_heads=self.decoder.num_key_value_heads,
                head_dim=self.decoder.head_dim,
                num_tokens=settings.cache_tokens + self._prefixes.num_tokens + 1,
                dtype=self.dtype,
                device=self.device,
            )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()  # what joining the layers' weights has left behind
            self._token_ids, self._positions, self._starts = torch.zeros(
                3, settings.num_rows + 1, dtype=torch.int64, device=self.device
            )
            self._starts[-1] = self._cache.num_tokens - 1
            self._begun: torch.cuda.Event | None = None
            self._seen: torch.Tensor | None = None
            self._columns: tuple[tuple[SamplingParams, ...], SamplingColumns] | None = None
            if self._recorded is not None:
                self._reserve()

    @torch.inference_mode()
    def prefill(self, running: Sequence[RunningRequest]) -> StepResult:
        """Orders prompts to be computed, and the first token of each answer."""
        with self._current:
            pixels = self._send_pixels(running)
            self._begun = self._event()
            self._copy_prefixes(running)
            segments = [
                Segment(
                    start=each.generation.start,
                    num_cached=each.prefix_length,
                    num_tokens=each.generation.prompt_tokens,
                )
                for each in running
            ]
            input_ids = np.concatenate([each.request.inputs.input_ids[each.prefix_length :] for each in running])
            logits = self._compute(segments, input_ids, pixels)[: len(running)]
            rows = send(np.array([each.generation.row for each in running]), self.device)
            self._positions[rows] = send(np.array([each.generation.prompt_tokens for each in running]), self.device)
            self._starts[rows] = send(np.array([each.generation.start for each in running]), self.device)
            self._mark_prompts(running)
            return self._choose(running, logits, rows)

    @torch.inference_mode()
    def decode(self, running: Sequence[RunningRequest]) -> StepResult:
        """Orders the next token of each of these."""
        with self._current:
            size = len(running)
            if self.settings.is_invariant:
                size = self.settings.num_rows
            elif self._recorded is not None:
                size = min(
                    (rows for rows in _DECODE_ROWS if size <= rows <= self.settings.num_rows), default=self.settings.num_rows
                )
            rows = send(self._rows_of(running, size), self.device)
            self._begun = self._event()
            if self._recorded is not None:
                logits, token_ids = self._recorded.run("decode", self._decode_greedily, (rows,), len(_DECODE_ROWS))
                if all(_is_plain(each.request) for each in running):
                    return self._result(running, token_ids[: len(running)], None)
            else:
                places = self._places_on_host(running, size)
                longest = self.max_positions if self.settings.is_invariant else max(length for _, length in places)
                logits = self._decode(rows, None if self.device.type == "cuda" else places, longest)
            return self._choose(running, logits[: len(running)], rows[: len(running)])

    @torch.inference_mode()
    def forget(self, generation: Generation) -> None:
        """Clears the slot of a request whose numbers were not finite: who gets it next may multiply what it holds by nought."""
        self._cache.clear(generation.start, generation.slot_tokens)

    def _rows_of(self, running: Sequence[RunningRequest], size: int) -> npt.NDArray[np.int64]:
        """Their rows, filled up with the one that belongs to nobody."""
        rows = np.full(size, self.settings.num_rows)
        rows[: len(running)] = [each.generation.row for each in running]
        return rows

    def _places_on_host(self, running: Sequence[RunningRequest], size: int) -> list[tuple[int, int]]:
        """Start and length of what each row attends to."""
        # The token that is read has been ordered in the step before, so one less than is scheduled now is in the answer.
        places = [(each.generation.start, each.generation.prompt_tokens + each.generation.num_scheduled - 1) for each in running]
        return places + [(self._cache.num_tokens - 1, 1)] * (size - len(running))

    def _decode(self, rows: torch.Tensor, on_host: Sequence[tuple[int, int]] | None, max_keys: int) -> torch.Tensor:
        """Logits of one more token for each of the rows, whose positions move on."""
        layout = DecodeLayout(
            positions=self._positions[rows],
            starts=self._starts[rows],
            on_host=on_host,
            max_keys=max_keys,
            is_apart=self.settings.is_invariant,
        )
        logits = self.decoder.decode(self._token_ids[rows], layout, self._cache)
        self._positions[rows] = torch.where(rows == self.settings.num_rows, 0, layout.positions + 1)
        return logits

    def _decode_greedily(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The same, and the likeliest token of each row, which is taken unless another one is."""
        logits = self._decode(rows, None, self.max_positions)
        token_ids = greedy(logits)
        self._token_ids[rows] = token_ids.clamp(min=0)
        return logits, token_ids

    @torch.inference_mode()
    def _reserve(self) -> None:
        """Runs the largest steps on nothing, which takes all the memory that steps will need, and loads their kernels."""
        settings, size = self.settings, self._preprocessor.image_size_px
        parts = np.array_split(np.zeros(settings.prefill_tokens, dtype=np.int64), settings.prefill_rows)
        most = min(self.max_positions, settings.cache_tokens)
        segments = [Segment(start=0, num_cached=0, num_tokens=min(len(part), most)) for part in parts]
        self._compute(segments, np.zeros(sum(each.num_tokens for each in segments), dtype=np.int64), None)
        self._encode(torch.zeros(settings.vision_images, size, size, 3, dtype=torch.uint8, device=self.device))

    def _compute(
        self, segments: Sequence[Segment], input_ids: npt.NDArray[np.int64], pixels: UnpaddedPixels | None
    ) -> torch.Tensor:
        """Computes the tokens of prompts that are not in the cache; logits `[N, V]` after each of these, or some more."""
        padding = self._padding(len(input_ids))
        embeds = self._embed(input_ids, padding.num_tokens if padding else len(input_ids), pixels)
        layout = PrefillLayout.of(segments, self.device, padding)
        if self._recorded is None:
            return self.decoder.prefill(embeds, layout, self._cache)

        def step(embeds: torch.Tensor, *places: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.decoder.prefill(embeds, layout.with_tensors(places), self._cache),)

        return self._recorded.run("prefill", step, (embeds, *layout.tensors), _MAX_RECORDED_PREFILLS)[0]

    def _padding(self, num_tokens: int) -> Padding | None:
        """The size that a prefill of so many tokens is filled up to; None where sizes need not be alike."""
        if self.settings.is_invariant:
            num_tokens = self.settings.prefill_tokens
        elif self._recorded is not None:
            unit = _PREFILL_UNIT if num_tokens > 16 * _PREFILL_UNIT else _PREFILL_UNIT // 2
            num_tokens = -(-num_tokens // unit) * unit
        else:
            return None
        return Padding(num_tokens=num_tokens, num_prompts=self.settings.prefill_rows, cache_row=self._cache.num_tokens - 1)

    def _copy_prefixes(self, running: Sequence[RunningRequest]) -> None:
        """Copies the starts of prompts that are kept to where the prompts stand, and computes those that are new."""
        copies: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
        for each in running:
            length = each.prefix_length
            if not length:
                continue
            input_ids = each.request.inputs.input_ids[:length]
            found = self._prefixes.find(input_ids)
            if found is None:
                # What is kept may have to give way to the new one, and is copied before.
                self._copy(copies)
                found = self._compute_prefix(input_ids)
            start = self.settings.cache_tokens + found
            target = each.generation.start
            copies.append((np.arange(start, start + length), np.arange(target, target + length)))
        self._copy(copies)

    def _copy(self, copies: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]) -> None:
        """Copies keys and values from places in the cache to others, and empties the list of them."""
        if copies:
            sources, targets = (send(np.concatenate(places), self.device) for places in zip(*copies, strict=True))
            self._cache.copy(sources, targets)
            copies.clear()

    def _compute_prefix(self, input_ids: npt.NDArray[np.int64]) -> int:
        """Computes the start of a prompt, to be kept; where it stands."""
        with self._prefixes.room_for(input_ids) as start:
            segment = Segment(start=self.settings.cache_tokens + start, num_cached=0, num_tokens=len(input_ids))
            self._compute([segment], input_ids, None)
        return start

    def _send_pixels(self, running: Sequence[RunningRequest]) -> UnpaddedPixels | None:
        """The pixels of all images of these, on the device; None where there is no image."""
        parts = [each.request.inputs.pixels for each in running]
        if not any(part.num_images for part in parts):
            return None
        return UnpaddedPixels.joined(parts, is_pinned=self.device.type == "cuda").to(self.device)

    def _embed(self, input_ids: npt.NDArray[np.int64], size: int, pixels: UnpaddedPixels | None) -> torch.Tensor:
        """Embeddings `[S, D]` of the tokens, filled up to a size, with image features in their places."""
        is_image = input_ids == IMAGE_TOKEN_INDEX
        token_ids = np.zeros(size, dtype=np.int64)
        token_ids[: len(input_ids)] = np.where(is_image, 0, input_ids)
        embeds = self.decoder.embedding[send(token_ids, self.device)]
        if pixels is None:
            return embeds
        squares, places = pixels.squares(), send(np.flatnonzero(is_image), self.device)
        most = self.settings.vision_images
        for start in range(0, len(squares), most):
            features = self._encode(squares[start : start + most]).flatten(0, 1)
            first = start * self._num_image_tokens
            embeds.index_copy_(0, places[first : first + len(features)], features)
        return embeds

    def _encode(self, squares: torch.Tensor) -> torch.Tensor:
        """Features `[N, P, D]` of squares of pixels, uint8 `[N, H, W, 3]`."""
        num_images, most = len(squares), self.settings.vision_images
        if self.settings.is_invariant:
            squares = torch.cat([squares, squares.new_zeros(most - num_images, *squares.shape[1:])])
        pixel_values = self._preprocessor.normalise(squares).to(self.dtype)
        if self._recorded is None:
            return self._vision(pixel_values)[:num_images]
        is_full = len(pixel_values) == most
        return self._recorded.run("vision", lambda values: (self._vision(values),), (pixel_values,), int(is_full))[0][:num_images]

    def _mark_prompts(self, running: Sequence[RunningRequest]) -> None:
        """Notes which tokens prompts hold, for those that want repetition penalised."""
        for each in running:
            if each.request.params.repetition_penalty == 1:
                continue
            if self._seen is None:
                self._seen = torch.zeros(
                    self.settings.num_rows + 1, self.decoder.vocab_size, dtype=torch.bool, device=self.device
                )
            self._seen[each.generation.row] = False
            mark_seen(self._seen, each.generation.row, each.request.inputs.input_ids.tolist())

    def _choose(self, running: Sequence[RunningRequest], logits: torch.Tensor, rows: torch.Tensor) -> StepResult:
        """The next token of each row from its logits `[B, V]`, whatever it has asked for."""
        if all(_is_plain(each.request) for each in running):
            token_ids = greedy(logits)
            self._token_ids[rows] = token_ids.clamp(min=0)
            return self._result(running, token_ids, None)
        columns = self._columns_of([each.request.params for each in running])
        numbers = None
        if columns.temperature is not None:
            numbers = send(np.array([each.answer.draw() for each in running]), self.device)
        seen = None if columns.repetition_penalty is None or self._seen is None else self._seen[rows]
        logits = logits.float()
        is_finite = logits.isfinite().all(dim=-1)  # [B]
        logits = logits.masked_fill(~is_finite[:, None], 0.0)
        token_ids = sample(logits, columns, numbers, seen)  # [B]
        self._token_ids[rows] = token_ids
        if self._seen is not None:
            self._seen[rows, token_ids] = True
        logprobs = None
        if any(each.request.with_logprobs for each in running):
            logprobs = logits.log_softmax(dim=-1).gather(-1, token_ids[:, None]).squeeze(-1)
        return self._result(running, torch.where(is_finite, token_ids, NO_TOKEN), logprobs)

    def _columns_of(self, params: Sequence[SamplingParams]) -> SamplingColumns:
        """The columns of these params; made again only where they differ from the last."""
        key = tuple(params)
        if self._columns is None or self._columns[0] != key:
            self._columns = key, SamplingColumns.of(key, self.decoder.vocab_size, self.device)
        return self._columns[1]

    def _result(self, running: Sequence[RunningRequest], token_ids: torch.Tensor, logprobs: torch.Tensor | None) -> StepResult:
        if self.device.type != "cuda":
            return StepResult(running=running, token_ids=token_ids, logprobs=logprobs)
        on_host = torch.empty(len(token_ids), dtype=torch.int64, pin_memory=True).copy_(token_ids, non_blocking=True)
        logprobs_on_host = None
        if logprobs is not None:
            logprobs_on_host = torch.empty(len(logprobs), pin_memory=True).copy_(logprobs, non_blocking=True)
        return StepResult(running=running, token_ids=on_host, logprobs=logprobs_on_host, begun=self._begun, ready=self._event())

    def _event(self) -> torch.cuda.Event | None:
        """What has been ordered so far, as a GPU will come to its end; None elsewhere."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row, int64 `[B]`, the first of equals; `NO_TOKEN` where logits are no finite numbers."""
    logits = logits.float()
    return torch.where(logits.isfinite().all(dim=-1), logits.argmax(dim=-1), NO_TOKEN)


def choose_operations(device: torch.device, dtype: torch.dtype, head_dim: int) -> Operations:
    """The fastest operations that a device has for a dtype and a width of heads."""
    has_kernels = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if has_kernels and dtype in (torch.float16, torch.bfloat16) and head_dim in (16, 32, 64, 128, 256):
        from yivl_core.inference.kernels import KernelOperations  # needs Triton, which comes with a GPU build of torch

        return KernelOperations()
    return PlainOperations()


def _is_plain(request: Request) -> bool:
    params = request.params
    return params.is_greedy and params.repetition_penalty == 1 and not request.with_logprobs
