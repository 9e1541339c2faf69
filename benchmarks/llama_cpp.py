"""Runs llama.cpp's server with the same weights as the rungs, so that both can be compared.

    pip install --editable '.[peers]'
    python -m benchmarks.llama_cpp random:smollm2-135m int8      prints `ready: URL`
    python benchmarks/run.py --url URL/v1/completions --name llama.cpp

int8 stands for its Q8_0, which has one scale per 32 weights. Its prompt cache is off, because rungs 02 to 05
have none. The wheel of xllamacpp does not use a processor's newer instructions; a build on the machine
itself is faster.
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import json
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig

from benchmarks.peers import save_checkpoint
from ladder.errors import UserError
from ladder.lab.launch import READY
from ladder.llm.loading import RANDOM_SHAPES

if TYPE_CHECKING:  # optional packages, imported where they are used
    import gguf
    import xllamacpp

Json = dict[str, Any]
"""A tokenizer.json, parsed."""

SLOTS, CONTEXT = 32, 2048

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
"""The names of a Llama's tensors: transformers' and GGUF's."""


def gguf_name(name: str) -> str:
    part = name.removesuffix(".weight")
    if part.startswith("model.layers."):
        layer, _, part = part.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{NAMES[part]}.weight"
    return f"{NAMES[part]}.weight"


def interleaved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder for rotary embedding: llama.cpp rotates neighbours, transformers pairs half a head apart."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_gguf(directory: Path, file: Path, dtype: str) -> None:
    """Convert a Llama checkpoint of transformers to a GGUF file."""
    import gguf
    from safetensors.torch import load_file

    kind = {
        "int8": gguf.GGMLQuantizationType.Q8_0,
        "bfloat16": gguf.GGMLQuantizationType.BF16,
        "float32": gguf.GGMLQuantizationType.F32,
    }[dtype]
    config = AutoConfig.from_pretrained(directory)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer, json.loads((directory / "tokenizer.json").read_text()))
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, weight in load_file(directory / "model.safetensors").items():
        target = gguf_name(name)
        if count := heads.get(target.split(".")[-2]):
            weight = interleaved(weight, count)
        values = weight.float().numpy()
        is_vector = values.ndim == 1  # norms stay in float32
        data = values if is_vector else gguf.quants.quantize(values, kind)
        writer.add_tensor(target, data, raw_dtype=None if is_vector else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Json) -> None:
    """Write byte-level BPE, the kind of the bundled tokenizer and of the random models' tokenizers."""
    import gguf

    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    by_id = {token_id: text for text, token_id in (tokenizer["model"]["vocab"] | special).items()}
    kinds = [
        gguf.TokenType.CONTROL if by_id[token_id] in special else gguf.TokenType.NORMAL
        for token_id in range(len(by_id))
    ]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id[token_id] for token_id in range(len(by_id))])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)


def serve(file: Path) -> xllamacpp.Server:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * CONTEXT
    params.cont_batching = True
    params.cache_prompt = False
    params.cache_ram_mib = 0
    threads = torch.get_num_threads()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    return xllamacpp.Server(params)


def main() -> None:
    model, dtype = sys.argv[1:3]
    with errors_in_one_line("benchmarks.llama_cpp"), tempfile.TemporaryDirectory() as folder:
        shape = model.removeprefix("random:")
        if RANDOM_SHAPES.get(shape, {}).get("model_type") != "llama":
            raise UserError(f"{model}: only a random model of Llama's architecture can be converted")
        if missing := [name for name in ("xllamacpp", "gguf") if find_spec(name) is None]:
            raise UserError(f"{' and '.join(missing)} must be installed: pip install --editable '.[peers]'")
        checkpoint = Path(folder)
        save_checkpoint(shape, checkpoint)
        write_gguf(checkpoint, checkpoint / "model.gguf", dtype)
        server = serve(checkpoint / "model.gguf")
        print(f"{READY}{server.listening_address}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
