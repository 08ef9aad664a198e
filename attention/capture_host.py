"""Cross-attention capture on ComfyUI's models, and the words of its tokenizers.

The order of a model evaluation decides where the parts sit. `predict_noise` (the sampler asks
once) opens an evaluation; the first batch of conditionings that has the wanted one in it is
the sampler's own, what guidance adds after it is not; in the UNet call of that batch, where
the options of all packs and hooks are final, the capture is put in.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import comfy.sd1_clip
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from .blocks import Block, describe
from .capture import Capture, CapturePass
from .host import self_attentions
from .words import Piece, Prompt, read_words

CAPTURE_KEY = "latent_layers_capture"
WORD_END = "</w>"

CLIP_FAMILIES = "use the CLIP of a checkpoint of the SD 1.x, SD 2.x or SDXL family"


def blocks_near(model: ModelPatcher, latent: Sequence[int], who: str, cells: int = 16) -> frozenset[Block]:
    """Cross-attentions of the level whose grid is nearest to `cells` on its shorter side, in log scale.

    latent  shape of the latent, (..., height, width). Of two levels equally near, the finer one.

    Only levels count that have attention on the way down or up: that SD 1.x's middle block has
    a grid of its own does not make a level of it. SD 1.x at 512 pixels: 16x16, five blocks;
    SDXL at 1024: its coarsest, 32x32, sixty of them, with the middle block.
    Raises ValueError for models without UNet attention.
    """
    blocks = self_attentions(model, who)  # in these models each of them has its cross-attention

    def distance(level: int) -> float:
        side = min(latent[-2:])
        for _ in range(level):
            side = (side + 1) // 2
        return max(side / cells, cells / side)

    levels = {block.level for block in blocks if block.side != "middle"} or {block.level for block in blocks}
    nearest = min(levels, key=lambda level: (distance(level), level))
    return frozenset(block for block in blocks if block.level == nearest)


class _Evaluation:
    """One question of the sampler to the model; which conditioning is the wanted one."""

    def __init__(self, wanted: list[dict[str, Any]] | None, timestep: Tensor) -> None:
        entry = next((entry for entry in wanted or () if _is_whole(entry) and _acts(entry, timestep)), {})
        self.uuid = entry.get("uuid")
        self.tokens = _tokens(entry)
        self.begun = False

    def asks_for(self, conds: list[list[dict[str, Any]] | None]) -> bool:
        """Whether the wanted conditioning is among those that are computed together."""
        return any(entry.get("uuid") == self.uuid for group in conds if group is not None for entry in group)


def _is_whole(entry: dict[str, Any]) -> bool:
    """Whether a conditioning covers the whole picture (a `default` one is for what others leave)."""
    return "area" not in entry and "default" not in entry


def _acts(entry: dict[str, Any], timestep: Tensor) -> bool:
    """Whether a conditioning acts at this noise level."""
    if "timestep_start" not in entry and "timestep_end" not in entry:
        return True  # without asking the device for the number
    sigma = float(timestep.flatten()[0])
    return entry.get("timestep_end", sigma) <= sigma <= entry.get("timestep_start", sigma)


def _tokens(entry: dict[str, Any]) -> int:
    """How many tokens a conditioning has."""
    embedding = entry.get("cross_attn")
    return 0 if embedding is None else embedding.shape[1]


class Capturing:
    """A capture on one model clone, as wrappers of the host's sampling.

    What belongs to an evaluation travels in its own options; the run's maps are the capture's.
    """

    def __init__(self, capture: Capture, who: str) -> None:
        self.capture, self.who = capture, who
        # keys of one's own, so that several captures can act in the same run
        self._evaluation_key = f"{CAPTURE_KEY}_{id(self)}"
        self._row_key = f"{CAPTURE_KEY}_row_{id(self)}"

    def attach(self, model: ModelPatcher) -> None:
        """Put the wrappers on a model clone of one's own."""
        for point, wrapper in (
            (WrappersMP.OUTER_SAMPLE, self.outer_sample),
            (WrappersMP.PREDICT_NOISE, self.predict_noise),
            (WrappersMP.CALC_COND_BATCH, self.calc_cond_batch),
            (WrappersMP.DIFFUSION_MODEL, self.diffusion_model),
        ):
            model.add_wrapper_with_key(point, CAPTURE_KEY, wrapper)
        model.add_callback_with_key(CallbacksMP.ON_CLEANUP, CAPTURE_KEY, lambda patcher: self.capture.cleanup())

    def outer_sample(self, executor: Callable[..., Tensor], noise: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Before the model is loaded: is this the conditioning of the prompt that was read?"""
        if noise.ndim != 4:
            raise ValueError(f"{self.who}: the latent has {noise.ndim} dimensions; pictures (4) have maps, not video")
        for entry in executor.class_obj.conds.get(self.capture.of) or ():
            if _is_whole(entry):
                self._check_tokens(_tokens(entry))
        return executor(noise, *args, **kwargs)

    def _check_tokens(self, tokens: int) -> None:
        if tokens != self.capture.tokens:
            raise ValueError(
                f"{self.who}: the {self.capture.of} conditioning has {tokens} tokens, but its text has "
                f"{self.capture.tokens}; make the conditioning of this text alone, with the same CLIP"
            )

    def predict_noise(
        self, executor: Callable[..., Tensor], x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any
    ) -> Tensor:
        """A new evaluation, of the guider's conditioning."""
        wanted = getattr(executor.class_obj, "conds", {}).get(self.capture.of)
        evaluation = _Evaluation(wanted, timestep)
        nothing = f"no {self.capture.of} conditioning covers the whole picture at this noise level"
        self.capture.begin(nothing if evaluation.uuid is None else "")
        return executor(x, timestep, _with(model_options, self._evaluation_key, evaluation), *args)

    def calc_cond_batch(
        self, executor: Callable, model: Any, conds: list, x: Tensor, timestep: Tensor, model_options: dict[str, Any]
    ) -> list[Tensor]:
        """The sampler's own batch of an evaluation is captured, later ones that guidance adds are not.

        Where there is no sampler (a caller evaluates the model himself), every batch is an
        evaluation and its first conditioning the wanted one.
        """
        evaluation = model_options.get("transformer_options", {}).get(self._evaluation_key)
        if evaluation is None:
            evaluation = _Evaluation(conds[0], timestep)
        if evaluation.uuid is not None and not evaluation.begun and evaluation.asks_for(conds):
            self._check_tokens(evaluation.tokens)
            evaluation.begun = True
            self.capture.begin()
            model_options = _with(model_options, self._row_key, evaluation.uuid)
        return executor(model, conds, x, timestep, model_options)

    def diffusion_model(
        self,
        executor: Callable[..., Tensor],
        x: Tensor,
        timesteps: Tensor | None = None,
        context: Tensor | None = None,
        y: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] = {},  # noqa: B006  the host's own signature
        **kwargs: Any,
    ) -> Tensor:
        """A call of the UNet: if the wanted conditioning is in its batch, with the capture on it."""
        wanted, uuids = transformer_options.get(self._row_key), transformer_options.get("uuids", [])
        if wanted in uuids:
            run = CapturePass(self.capture, uuids.index(wanted), len(uuids))
            transformer_options = _patched(transformer_options, run)
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


def _with(model_options: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Model options for one evaluation, with something of ours in them; the given ones stay as they are."""
    return {**model_options, "transformer_options": {**model_options.get("transformer_options", {}), key: value}}


def _patched(options: dict[str, Any], run: CapturePass) -> dict[str, Any]:
    """Transformer options for one call of the UNet, in which the attention is watched."""
    patches = options.get("patches", {})
    replacements = options.get("patches_replace", {})
    attn2 = {
        block: partial(run.replaced, replacement) if _concerns(block, run.capture) else replacement
        for block, replacement in replacements.get("attn2", {}).items()
    }
    return {
        **options,
        "patches": {
            **patches,
            # first: it has to see how many tokens the host itself hands in
            "attn2_patch": [run.mark, *patches.get("attn2_patch", [])],
            "attn2_output_patch": [run.forget, *patches.get("attn2_output_patch", [])],
        },
        "patches_replace": {**replacements, "attn2": attn2},
        "optimized_attention_override": partial(_attend, run, options.get("optimized_attention_override")),
    }


def _concerns(block: tuple[Any, ...], capture: Capture) -> bool:
    """Whether a replacement under the host's key, (side, number) or with a depth, reaches a captured block."""
    return any(key[: len(block)] == block for key in capture.blocks)


def _attend(
    run: CapturePass,
    previous: Callable[..., Tensor] | None,
    attention: Callable[..., Tensor],
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """The host's `optimized_attention_override`, in front of the one that was there."""
    return run.attend(attention if previous is None else partial(previous, attention), *args, **kwargs)


def apply_capture(model: ModelPatcher, capture: Capture, who: str) -> ModelPatcher:
    """A clone of a model whose evaluations leave the maps of `capture.of`, the positive conditioning, in `capture`.

    After every evaluation of a sampler, `capture.take()` has its maps; they are freed when the
    run ends. The predictions are those of the given model, bit for bit.
    Raises ValueError for models without UNet attention and blocks that it does not have; a
    conditioning of another length is found when sampling begins, before the model is loaded.
    """
    having = self_attentions(model, who)
    if unknown := capture.blocks - {block.key for block in having}:
        raise ValueError(f"{who}: there is no block {min(unknown)}; this model has attention in {describe(having)}")
    patched = model.clone()
    Capturing(capture, who).attach(patched)
    return patched


def read_prompt(clip: Any, text: str, where: str) -> Prompt:
    """Words and special tokens of a prompt, where its conditioning has them.

    clip  the host's CLIP. Its tokenizer decides: weights `(star:1.2)` and escapes are read as it
          reads them, an embedding is one word, prompts over 77 tokens have several chunks.

    SDXL's two text encoders share the conditioning's positions. They differ where an embedding
    has another number of vectors for each; then a position means two things at once, and this
    raises ValueError, as it does for an empty prompt and for text encoders other than CLIP.
    """
    prompts: dict[str, Prompt] = {}
    for encoder, chunks in clip.tokenize(text, return_word_ids=True).items():
        tokenizer = getattr(clip.tokenizer, f"clip_{encoder}", None)
        if tokenizer is None or getattr(tokenizer, "end_token", None) is None or not _is_clip(tokenizer):
            raise ValueError(
                f"{where}: clip has a text encoder {encoder!r}, whose words cannot be told; {CLIP_FAMILIES}"
            )
        prompts[encoder] = _prompt(tokenizer, chunks, list(_written(text)))
    if not any(prompt.words for prompt in prompts.values()):
        raise ValueError(f"{where}: text is an empty prompt, it has no words; write what the picture shows")
    (first, prompt), *others = prompts.items()
    for encoder, other in others:
        if other != prompt:
            raise ValueError(
                f"{where}: the text encoders {first!r} and {encoder!r} put the words of this text at different "
                f"positions, so that their maps mix; leave out embeddings that are not made for both"
            )
    return prompt


def _is_clip(tokenizer: Any) -> bool:
    """Whether the vocabulary marks where words end, as CLIP's does."""
    return any(piece.endswith(WORD_END) for piece in tokenizer.inv_vocab.values())


def _written(text: str) -> Iterator[str]:
    """The parts of a prompt between spaces and between weights, as the host's tokenizer gets them."""
    for segment, _ in comfy.sd1_clip.token_weights(comfy.sd1_clip.escape_important(text), 1.0):
        yield from comfy.sd1_clip.unescape_important(segment).split()


def _prompt(tokenizer: Any, chunks: list[list[tuple[Any, float, int]]], written: list[str]) -> Prompt:
    """What one text encoder makes of a text; chunks hold (token or vector, weight, id; 0 for no word)."""
    pieces: list[Piece] = []
    starts, ends = [], []
    begun: tuple[list[int], list[int]] = ([], [])  # tokens of the piece that is being read, their positions
    embedding = 0  # id of the embedding that is being read
    length = 0
    for chunk in chunks:
        starts.append(length)
        # the encoder leaves out vectors of another width, and fills up at the end
        kept = [entry for entry in chunk if not hasattr(entry[0], "shape") or _fits(tokenizer, entry[0])]
        ends += [length + i for i, (token, _, word) in enumerate(kept) if word == 0 and token == tokenizer.end_token][
            :1
        ]
        for position, (token, _, word) in enumerate(kept, start=length):
            if word == 0:
                continue
            if hasattr(token, "shape"):
                before = pieces.pop().tokens if word == embedding else ()
                pieces.append(Piece(None, (*before, position)))
                embedding = word
            else:
                begun[0].append(token)
                begun[1].append(position)
                if not _continues(tokenizer, token):
                    pieces.append(Piece(tokenizer.decode(begun[0]), tuple(begun[1])))
                    begun = ([], [])
        length += len(chunk)
    return Prompt(read_words(pieces, written), tuple(starts), tuple(ends), length)


def _fits(tokenizer: Any, vector: Tensor) -> bool:
    return vector.shape[-1] == tokenizer.embedding_size


def _continues(tokenizer: Any, token: int) -> bool:
    """Whether a token is a piece of a word that goes on in the next one."""
    piece = tokenizer.inv_vocab[token]
    return not piece.endswith(WORD_END) and not (piece.startswith("<|") and piece.endswith("|>"))
