"""The steps of one row through an LLM of 4-bit weights, as a graph of onnxruntime.

At one token a row torch spends most of a step between many small operations. Here a block is some
twenty. The weights are the same numbers; what they are multiplied with is rounded to 8 bits in
groups of 32, where torch rounds to bfloat16.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from osum_echat.models.int8 import GROUP, LARGEST, Int8Linear

OPSET, CONTRIB = 21, "com.microsoft"
EIGHT_BITS = 4          # the accuracy level of onnxruntime at which it multiplies whole numbers
COUNTS = ("place", "tokens")


class StepGraph:
    """The session, and the sizes of what goes in; rows bring memory of their own."""

    def __init__(self, llm: Any) -> None:
        """llm: a Qwen2ForCausalLM that `fits`; its weights let go of what the graph takes."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.width = llm.config.hidden_size
        self.layers = len(llm.model.layers)
        builder = _Builder(llm)
        model, values = builder.model(), builder.values
        options.add_external_initializers(
            [*values], [onnxruntime.OrtValue.ortvalue_from_numpy(one) for one in values.values()]
        )
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )


class BoundSteps:
    """The graph on the memory of one row, which it changes in place."""

    def __init__(self, graph: StepGraph, keys: Tensor, values: Tensor) -> None:
        """keys, values: (layers, 1, groups, places, head width), contiguous."""
        self.session, self.keys = graph.session, keys
        self.embedded, self.state = torch.empty(2, 1, 1, graph.width).unbind()
        self.counts = torch.zeros(len(COUNTS), dtype=torch.int32)
        self.binding = self.session.io_binding()
        self._bind("embedded", self.embedded)
        self._bind("state", self.state, is_output=True)
        for name, count in zip(COUNTS, self.counts, strict=True):
            self._bind(name, count[None])
        for number in range(graph.layers):
            for kind, kept in (("key", keys[number]), ("value", values[number])):
                self._bind(f"{number}.past_{kind}", kept)
                self._bind(f"{number}.{kind}", kept, is_output=True)

    def _bind(self, name: str, memory: Tensor, is_output: bool = False) -> None:
        bind = self.binding.bind_output if is_output else self.binding.bind_input
        kind = np.int32 if memory.dtype == torch.int32 else np.float32
        bind(name, "cpu", 0, kind, list(memory.shape), memory.data_ptr())

    def step(self, embedded: Tensor, place: int) -> Tensor:
        """Take the token at a place, (1, width). Returns its state, (1, width)."""
        self.embedded.copy_(embedded)
        self.counts[0], self.counts[1] = place, place + 1
        self.session.run_with_iobinding(self.binding)
        return self.state[0].clone()


def fits(llm: Any) -> bool:
    """Whether all weights of the blocks are of 4 bits and without what the graph does not have."""
    layers = [layer for block in llm.model.layers for layer in _weights(block)]
    norms = [getattr(block.self_attn, "q_norm", None) for block in llm.model.layers]
    is_plain = all(one is not None and one.nibbles is not None and one.bias is None
                   for one in layers)  # fmt: skip
    return is_plain and not any(norms)


def _weights(block: Any) -> list[Any]:
    """Query, key and value; output; gate and up; down. None for those that are no whole numbers."""
    attention, feed = block.self_attn, block.mlp
    joint = [one.joint[0] if isinstance(one, Int8Linear) and one.joint else None
             for one in (attention.q_proj, feed.gate_proj)]  # fmt: skip
    alone = [one if isinstance(one, Int8Linear) else None
             for one in (attention.o_proj, feed.down_proj)]  # fmt: skip
    return [joint[0], alone[0], joint[1], alone[1]]


class _Builder:
    """Nodes and weights of the graph, block by block."""

    def __init__(self, llm: Any) -> None:
        import onnx

        self.llm, self.onnx = llm, onnx
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.values: dict[str, np.ndarray[Any, Any]] = {}

    def model(self) -> bytes:
        """The file."""
        helper, config = self.onnx.helper, self.llm.config
        kept = (1, config.num_key_value_heads, None, self.llm.model.layers[0].self_attn.head_dim)
        inputs: list[Any] = [("embedded", 1, (1, 1, config.hidden_size))]
        inputs += [(one, 6, (1,)) for one in COUNTS]
        outputs: list[Any] = [("state", 1, (1, 1, config.hidden_size))]
        for number in range(len(self.llm.model.layers)):
            inputs += [(f"{number}.past_{kind}", 1, kept) for kind in ("key", "value")]
            outputs += [(f"{number}.{kind}", 1, kept) for kind in ("key", "value")]
        self._blocks()
        graph = helper.make_graph(
            self.nodes, "steps", [helper.make_tensor_value_info(*one) for one in inputs],
            [helper.make_tensor_value_info(*one) for one in outputs], self.weights,
        )  # fmt: skip
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        return bytes(made.SerializeToString())

    def _blocks(self) -> None:
        """From the embedded token to its state."""
        inner, config = self.llm.model, self.llm.config
        places = torch.arange(config.max_position_embeddings)
        cosine, sine = inner.rotary_emb(torch.zeros(1), places[None])
        half = cosine.shape[2] // 2
        turns = [self._weight(name, table[0, :, :half])
                 for name, table in (("cosine", cosine), ("sine", sine))]  # fmt: skip
        norm, stream = "0.attention_norm", "embedded"
        self._node("SimplifiedLayerNormalization", norm,
                   [stream, self._weight("norm0", inner.layers[0].input_layernorm.weight)],
                   axis=-1, epsilon=config.rms_norm_eps, stash_type=1)  # fmt: skip
        for number, block in enumerate(inner.layers):
            fused, out, gate_up, down = _weights(block)
            heads = self._product(f"{number}.heads", fused, norm)
            attended = f"{number}.attended"
            self._contrib(
                "GroupQueryAttention", [attended, f"{number}.key", f"{number}.value"],
                [heads, "", "", f"{number}.past_key", f"{number}.past_value", *COUNTS, *turns],
                num_heads=config.num_attention_heads, kv_num_heads=config.num_key_value_heads,
                do_rotary=1, scale=float(block.self_attn.scaling),
            )  # fmt: skip
            change = self._product(f"{number}.out", out, attended)
            norm, stream = self._added(f"{number}.feed", stream, change,
                                       block.post_attention_layernorm)  # fmt: skip
            both = self._product(f"{number}.gate_up", gate_up, norm)
            gate, up = f"{number}.gate", f"{number}.up"
            self._node("Split", [gate, up], [both], axis=-1, num_outputs=2)
            self._node("Sigmoid", f"{number}.open", [gate])
            self._node("Mul", f"{number}.let", [gate, f"{number}.open"])
            self._node("Mul", f"{number}.fed", [f"{number}.let", up])
            change = self._product(f"{number}.down", down, f"{number}.fed")
            is_last = number + 1 == len(inner.layers)
            after = inner.norm if is_last else inner.layers[number + 1].input_layernorm
            norm, stream = self._added(f"{number}.end", stream, change, after,
                                       "state" if is_last else None)  # fmt: skip

    def _added(
        self, name: str, stream: str, change: str, norm: Any, made: str | None = None
    ) -> tuple[str, str]:
        """The sum of two, normalised, and as it is."""
        made, total = made or f"{name}_norm", f"{name}_sum"
        weight = self._weight(f"{name}_weight", norm.weight)
        self._contrib("SkipSimplifiedLayerNormalization", [made, "", "", total],
                      [stream, change, weight], epsilon=norm.variance_epsilon)  # fmt: skip
        return made, total

    def _product(self, name: str, layer: Int8Linear, source: str) -> str:
        """A weight's part of 4 bits; beside it what its middle numbers stand for, and its LoRA."""
        assert layer.nibbles is not None, "asked for what `fits` has not found"
        out, groups = len(layer.nibbles), len(layer.scale)
        nibbles, layer.nibbles = layer.nibbles.view(out, groups, GROUP // 2), None
        scale = layer.scale[:, :, 0].float().t()
        main = self._numbers(f"{name}_main", 4, nibbles, scale, source)
        shape, last = self._whole(f"shape_{groups}", 1, 1, groups, GROUP), self._whole("last", -1)
        self._node("Reshape", f"{name}_groups", [source, shape])
        self._node("ReduceSum", f"{name}_sums", [f"{name}_groups", last], keepdims=0)
        parts, onto = [f"{name}_sums"], [_padded(layer.scale[:, :, 1].float().t())]
        if groups % GROUP:
            parts.append(self._weight(f"{name}_none", torch.zeros(1, 1, -groups % GROUP)))
        if layer.down is not None and layer.up is not None:
            down = functional.pad(layer.down, (0, 0, 0, -len(layer.down) % GROUP))
            parts.append(self._in_8_bits(f"{name}_low", down, source))
            onto.append(_padded(layer.up))
        self._node("Concat", f"{name}_parts", parts, axis=-1)
        beside = self._in_8_bits(f"{name}_beside", torch.cat(onto, 1), f"{name}_parts")
        self._node("Add", name, [main, beside])
        return name

    def _in_8_bits(self, name: str, weight: Tensor, source: str) -> str:
        """The product with a weight, (out, in), rounded in groups."""
        grouped = weight.unflatten(1, (-1, GROUP))
        scale = (grouped.abs().amax(2) / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
        numbers = (grouped / scale[:, :, None]).round() + LARGEST + 1       # 128 stands for 0
        return self._numbers(name, 8, numbers.to(torch.uint8), scale, source)

    def _numbers(self, name: str, bits: int, packed: Tensor, scale: Tensor, source: str) -> str:
        """The product with numbers in groups, (out, groups, bytes); scale: (out, groups)."""
        numbers = self._weight(f"{name}_numbers", packed)
        scales = self._weight(f"{name}_scale", scale.flatten())
        self._contrib(
            "MatMulNBits", [name], [source, numbers, scales], K=packed.shape[1] * GROUP,
            N=len(packed), bits=bits, block_size=GROUP, accuracy_level=EIGHT_BITS,
        )  # fmt: skip
        return name

    def _node(self, kind: str, made: str | list[str], given: list[str], **more: Any) -> None:
        made = [made] if isinstance(made, str) else made
        self.nodes.append(self.onnx.helper.make_node(kind, given, made, **more))

    def _contrib(self, kind: str, made: list[str], given: list[str], **more: Any) -> None:
        self._node(kind, made, given, domain=CONTRIB, **more)

    def _weight(self, name: str, tensor: Tensor) -> str:
        """A weight that the session reads from our memory."""
        array = tensor.detach().contiguous().numpy()
        self.values[name] = array
        made = self.onnx.TensorProto(name=name, dims=array.shape)
        made.data_type = self.onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        made.data_location = self.onnx.TensorProto.EXTERNAL
        made.external_data.add(key="location", value="memory")
        self.weights.append(made)
        return name

    def _whole(self, name: str, *values: int) -> str:
        """A few whole numbers, once."""
        if name not in {one.name for one in self.weights}:
            self.weights.append(self.onnx.numpy_helper.from_array(np.array(values), name))
        return name


def _padded(weight: Tensor) -> Tensor:
    """(out, in) with columns of zeros up to whole groups."""
    return functional.pad(weight, (0, -weight.shape[1] % GROUP))
