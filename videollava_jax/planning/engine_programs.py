"""Compiles the engine's four programs, with abstract arguments, for a mesh whose chips need not be here.

    encode    one video for each shard        ┐
    prefill   one prefix for each shard       ├ what `engine.device` calls, with the same shapes, shardings and donation
    begin     questions after their prefixes  │
    decode    all rows, a step of the loop    ┘

Nothing is allocated: arguments are shapes with shardings, and all figures come from the compiler's analyses and text.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, Sharding

from videollava_jax.config import ModelConfig
from videollava_jax.costs.chips import Chip, Roofline, roofline
from videollava_jax.engine import grid, part_programs
from videollava_jax.engine.grid import Grid
from videollava_jax.engine.packing import packed_length
from videollava_jax.engine.parts import begins_several, slots_at_once
from videollava_jax.engine.sizes import PLAIN, Branches, GridShape
from videollava_jax.generation import steps as generate
from videollava_jax.generation.answers import Answers, Vocabulary
from videollava_jax.media import FramePreprocessor
from videollava_jax.model.cache import Packing, TailCache, empty_tail
from videollava_jax.model.kernels.operands import has_split_memory
from videollava_jax.model.sharding import Placement
from videollava_jax.model.video_llava import State, abstract_model, named_parameters, with_parameters
from videollava_jax.planning.devices import first_line
from videollava_jax.planning.hlo.moves import moved_arguments
from videollava_jax.planning.hlo.traffic import CompiledProgram, Move, Traffic, read_program
from videollava_jax.processing.preset import get_preset

ProgramName = Literal["encode", "prefill", "begin", "decode"]
COMPUTE = jnp.bfloat16
_KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu_v2")
"""Targets of calls of our own kernels and JAX's, whose operations no compiler counts."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The model, mesh and grid that the programs are compiled for.

    Attributes:
      config: of the model, which computes in bfloat16.
      mesh: data × tensor.
      shape: of the grid; its shards are those of the mesh's data axis.
      frames, pooling: of each video.
      int8_weights: the decoder's projections in int8.
      int8_cache: keys and values of prefixes in int8.
      question_tokens: of the questions that begin, on average; None for those of the grid's rows.
      branches: what the programs can do: those of a session more than these.
    """

    config: ModelConfig
    mesh: Mesh
    shape: GridShape
    frames: int = 8
    pooling: int = 1
    int8_weights: bool = False
    int8_cache: bool = False
    question_tokens: int | None = None
    branches: Branches = PLAIN

    @property
    def packed_tokens(self) -> int:
        """N: the tokens of the questions that begin in a slot, packed and padded."""
        return packed_length(self.shape.rows * (self.question_tokens or self.shape.question))

    @property
    def begun_slots(self) -> int:
        """The slots of each shard whose questions begin by one call."""
        device = self.mesh.devices.flat[0]
        if not begins_several(device.platform, split_memory=has_split_memory(device.device_kind)):
            return 1
        return slots_at_once(self.packed_tokens, self.shape.slots)

    @cached_property
    def placement(self) -> Placement:
        """The shardings of this model on this mesh."""
        return Placement(self.config, self.mesh)

    @cached_property
    def model(self) -> tuple[Any, State]:
        """The module's structure, and its parameters as shapes with shardings."""
        return abstract_parameters(self.placement, int8=self.int8_weights)

    @cached_property
    def grid(self) -> Grid:
        """The grid as shapes with shardings."""
        return abstract_grid(self.placement, self.shape, int8=self.int8_cache, branches=self.branches)

    @property
    def resident_bytes(self) -> dict[str, int]:
        """The bytes that every device always holds, whichever program runs."""
        return {
            "weights": shard_bytes(self.model[1]),
            "prefix": shard_bytes(self.grid.prefix),
            "tails": shard_bytes(self.grid.tail),
            "answers": shard_bytes(self.grid.answers),
        }

    @property
    def read_once_bytes(self) -> int:
        """The bytes that a step of decoding must read on a device: the decoder's weights and the cache, once."""
        weights = {
            name: value
            for name, value in named_parameters(self.model[1]).items()
            if name.startswith(("language_model.layers.", "language_model.norm.", "lm_head."))
            or (self.config.tie_word_embeddings and name == "language_model.embed_tokens.weight")
        }
        return shard_bytes((weights, self.grid.prefix, self.grid.tail))

    @property
    def smallest_buffer(self) -> int:
        """The bytes, on a device, of the smallest among the projections' weights and the arrays of keys."""
        projections = [
            value
            for name, value in named_parameters(self.model[1]).items()
            if name.startswith("language_model.layers.0.") and name.endswith("_proj.weight")
        ]
        caches = [kv.keys for kv in (self.grid.prefix.layers[0], self.grid.tail.layers[0])]
        return min(shard_bytes(x) for x in (*projections, *caches))


@dataclass(frozen=True, kw_only=True)
class Program:
    """A compiled program, on one device.

    Attributes:
      name: of the program.
      resident: bytes that are always held, by kind: weights, prefix, tails, answers.
      inputs: bytes of its other arguments.
      outputs: bytes of results that do not reuse an argument's buffer.
      temporaries, code: bytes, by the compiler's memory analysis.
      flops: operations that the compiler counts (on a GPU, of products and cuDNN's attention alone), plus those of
        attention if kernels compute it, which it cannot count.
      text: its traffic and collectives, counted in its text.
      moves: copies of weights and caches in high-bandwidth memory, and of equally large buffers that come from them.
      kernels: how many custom kernels it calls.
      chip: one device of the mesh.
      tensor: how many devices take part in a collective over heads.
      compile_seconds: how long the compiler took here.
      slots: of begin, the slots of each shard whose questions begin by one call.
    """

    name: ProgramName
    resident: Mapping[str, int]
    inputs: int
    outputs: int
    temporaries: int
    code: int
    flops: float
    text: CompiledProgram
    moves: tuple[Move, ...]
    kernels: int
    chip: Chip
    tensor: int
    compile_seconds: float
    slots: int = 1

    @property
    def total(self) -> int:
        """The bytes that a device needs while the program runs."""
        return sum(self.resident.values()) + self.extra

    @property
    def extra(self) -> int:
        """The bytes needed only while this program runs: inputs, outputs, temporaries and code."""
        return self.inputs + self.outputs + self.temporaries + self.code

    @property
    def step(self) -> Traffic:
        """The traffic of one step of decoding; of another program, the traffic of one call."""
        return self.text.loop if self.name == "decode" else self.text.entry

    @property
    def roofline(self) -> Roofline:
        """The least time of one call, or of one step of decode."""
        share = (self.tensor - 1) / self.tensor
        sent = sum(c.bytes * share * (2 if c.kind == "all-reduce" else 1) for c in self.step.collectives)
        return roofline(self.flops, self.step.hbm_bytes, self.chip, sent_bytes=sent)

    @property
    def seconds_of_slot(self) -> float:
        """The least time of one call, or of one step of decode, for each of the slots that it works for together."""
        return self.roofline.seconds / self.slots


def compile_program(name: ProgramName, setting: Setting, chip: Chip) -> Program:
    """Compiles one of the engine's programs.

    Args:
      name: of the program.
      setting: the model, mesh and grid.
      chip: one device of the mesh (`device_of`).

    Raises:
      MemoryError: it needs more memory than a device has; the message is the compiler's.
    """
    function, arguments = program_with_arguments(name, setting)
    started = time.perf_counter()
    try:
        compiled = function.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(first_line(error)) from None
    seconds = time.perf_counter() - started
    memory, text = compiled.memory_analysis(), compiled.as_text()
    kernels = sum(text.count(f'custom_call_target="{target}"') for target in _KERNELS)
    read = read_program(text)
    counted = compiled.cost_analysis()
    flops = read.entry.product_flops + sum(loop.product_flops for loop in read.loops.values())
    if counted is not None:  # of chips that are not here, the GPU compiler counts nothing
        flops = float(counted.get("flops", 0.0))
    return Program(
        name=name,
        resident=setting.resident_bytes,
        inputs=shard_bytes(_inputs(name, arguments)),
        outputs=max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        flops=flops + (_attention_flops(name, setting) if kernels else 0.0),
        text=read,
        moves=moved_arguments(text, setting.smallest_buffer),
        kernels=kernels,
        chip=chip,
        tensor=setting.placement.tensor,
        compile_seconds=seconds,
        slots=setting.begun_slots if name == "begin" else 1,
    )


# ── arguments ───────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=4)
def abstract_parameters(placement: Placement, *, int8: bool) -> tuple[Any, State]:
    """Returns the module's structure, and its parameters in bfloat16 (and int8) as shapes with shardings."""
    graph, state = nnx.split(abstract_model(placement.config, dtype=COMPUTE, quantization="int8" if int8 else None))
    placed: dict[str, Any] = {
        name: _placed(value, placement.parameter(name, value.shape)) for name, value in named_parameters(state).items()
    }
    return graph, with_parameters(state, placed)


def abstract_grid(placement: Placement, shape: GridShape, *, int8: bool, branches: Branches = PLAIN) -> Grid:
    """Returns the grid that `new_grid` makes, as shapes with shardings."""
    G, text = shape.prefixes, placement.config.text_config
    plain = jax.eval_shape(lambda: grid.new_grid(text, shape, COMPUTE, None, int8=int8, branches=branches))
    by_rank = {4: placement.cache(G), 3: placement.cache_scale(G), 2: placement.batch(G), 1: placement.batch(G)}
    prefix = jax.tree.map(lambda x: _placed(x, by_rank[len(x.shape)]), plain.prefix)
    # The tails' shardings follow from those of the prefixes, on the mesh of their types.
    tail: TailCache = jax.eval_shape(
        lambda prefix: empty_tail(prefix, shape.batch, shape.question + shape.answer, COMPUTE, question=shape.question),
        prefix,
    )
    tail = jax.tree.map(lambda x: _placed(x, _on(placement.mesh, x)), tail)
    answers = jax.tree.map(lambda x: _placed(x, placement.batch(shape.batch)), plain.answers)
    return Grid(prefix, tail, answers)


def pixel_dtype(config: ModelConfig) -> np.dtype[Any]:
    """Returns the dtype of a video's pixels by the preset of the model's variant: of the authors' float32."""
    return np.dtype(get_preset(config.variant).preprocessor("video", FramePreprocessor()).dtype)


def program_with_arguments(name: ProgramName, setting: Setting) -> tuple[Any, tuple[Any, ...]]:
    """Returns the function that the engine calls and compiles, and its arguments as shapes with shardings."""
    graph, state = setting.model
    shape, held = setting.shape, setting.grid
    text, vision = setting.config.text_config, setting.config.vision_config
    W, together = shape.shards, setting.begun_slots
    U, E = W * together, W * together * shape.rows

    def array(*of: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        """Returns an array whose first axis is a batch."""
        return _shape(of, dtype, setting.placement.batch(of[0]))

    def small(*of: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        """Returns an array that comes from the host, without a sharding."""
        return _shape(of, dtype)

    vocabulary = Vocabulary(
        eos_E=small(len(setting.config.eos_token_ids)),  # type: ignore[arg-type]
        suppressed_V=small(text.vocab_size, dtype=bool),  # type: ignore[arg-type]
        pad=small(),  # type: ignore[arg-type]
    )
    if name == "encode":
        S, dtype = vision.image_size, pixel_dtype(setting.config)
        pixels = array(W, setting.frames, S, S, vision.num_channels, dtype=dtype)
        statistics = (small(3, dtype=jnp.float32),)
        return grid.encode, (graph, state, ("video",), setting.pooling, (pixels,), statistics, statistics)
    if name == "prefill":
        tokens = setting.frames * setting.config.pooled_tokens_per_frame(setting.pooling)
        return grid.prefill_slots, (
            graph,
            state,
            array(W, shape.prefix),
            array(W, shape.prefix, dtype=bool),
            array(W, tokens, text.hidden_size, dtype=COMPUTE),
            held.prefix,
            small(),
        )
    if name == "begin":
        fresh: Answers = jax.tree.map(
            lambda x: array(E, *x.shape[1:], dtype=x.dtype),
            held.answers,
        )
        ids, T = array(U, setting.packed_tokens), shape.question
        places: Any = (array(U, shape.rows * T), array(U, setting.packed_tokens), array(E, T, dtype=bool))
        packing = Packing(*places)
        given = (graph, state, ids, packing, fresh, held.prefix, held.tail, held.answers, vocabulary)
        if together > 1:
            return part_programs.begin_slots, (*given, small(together), W)
        return grid.begin_packed, (*given, small())
    caches = held.prefix, held.tail, held.answers
    return generate.decode, (graph, state, *caches, vocabulary, small(), small())


def _inputs(name: ProgramName, arguments: tuple[Any, ...]) -> Iterable[Any]:
    """Returns the arguments that exist only during this call."""
    held = {"encode": (4,), "prefill": (2, 3, 4), "begin": (2, 3, 4), "decode": ()}
    return [arguments[index] for index in held[name]]


def _attention_flops(name: ProgramName, setting: Setting) -> float:
    """Counts the operations of attention on a device, in the programs where kernels compute it."""
    shape, text = setting.shape, setting.config.text_config
    S = shape.prefix
    seen = {
        "prefill": shape.shards * S * (S + 1) / 2,
        "begin": shape.shards
        * setting.begun_slots
        * setting.packed_tokens
        * S,  # XLA computes attention to the few tokens of a question
    }.get(name, 0)
    return 4.0 * text.num_hidden_layers * text.num_attention_heads * text.head_dim * seen / setting.mesh.size


def _placed(x: Any, sharding: Sharding | None) -> jax.ShapeDtypeStruct:
    return _shape(x.shape, x.dtype, sharding)


def _shape(of: tuple[int, ...], dtype: Any, sharding: Sharding | None = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(of, dtype, sharding=sharding)  # type: ignore[no-untyped-call]


def _on(mesh: Mesh, x: Any) -> NamedSharding | None:
    """Returns the sharding of a type, whose mesh is abstract, on a mesh of devices."""
    return None if x.sharding is None else NamedSharding(mesh, x.sharding.spec)


def shard_bytes(tree: Any) -> int:
    """Returns the bytes of abstract arrays that one device holds."""
    return sum(_shard_bytes(x) for x in jax.tree.leaves(tree))


def _shard_bytes(x: Any) -> int:
    shape = x.shape if x.sharding is None else x.sharding.shard_shape(x.shape)
    size = np.dtype(np.uint32).itemsize * 2 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.dtype.itemsize
    return int(math.prod(shape) * size)
