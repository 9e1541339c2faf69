"""Runs llama.cpp's server with the same weights as the rungs, so that both can be compared.

    pip install --editable '.[peers]'
    python -m benchmarks.llama_cpp random:smollm2-135m int8 --server build/bin/llama-server
    python benchmarks/run.py --url URL/v1/completions --name llama.cpp

It prints `ready: URL`. int8 stands for llama.cpp's Q8_0, which has one scale per 32 weights. Its prompt cache
is off, because rungs 02 to 05 have none.

`--server` is a llama-server that was built on this machine. Without it, the wheel of xllamacpp runs. That
needs no compiler, but uses none of a processor's newer instructions. So a comparison needs the build; its
source is in the source distribution of llama-cpp-python, and two cores build it in about 11 minutes:

    pip download llama-cpp-python --no-deps --no-binary :all: && tar xf llama_cpp_python-*.tar.gz
    cd llama_cpp_python-*/vendor/llama.cpp
    cmake -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_CURL=OFF \\
          -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_OPENSSL=OFF
    ninja -C build llama-server
"""

from __future__ import annotations

from ladder.script import errors_in_one_line

import json
import shlex
import subprocess
import tempfile
import threading
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import torch
from transformers import AutoConfig

from benchmarks.peers import save_checkpoint
from ladder.cli import DTYPES
from ladder.errors import UserError
from ladder.lab.launch import READY
from ladder.llm.loading import RANDOM_SHAPES
from ladder.web.server import listen

if TYPE_CHECKING:  # an optional package, imported where it is used
    import gguf

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


def build_of(server: Path | None) -> str:
    """Which llama.cpp it is, for the results."""
    if server is None:
        return f"wheel of xllamacpp {version('xllamacpp')}"
    try:
        shown = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{server} cannot be run: {error}; give the path of a llama-server") from error
    return f"built on this machine, {(shown.stderr or shown.stdout).splitlines()[0]}"


@contextmanager
def running_wheel(file: Path) -> Iterator[str]:
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
    yield xllamacpp.Server(params).listening_address


@contextmanager
def running_build(server: Path, file: Path) -> Iterator[str]:
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    threads = str(torch.get_num_threads())
    flags = ["--model", str(file), "--host", "127.0.0.1", "--port", str(port)]
    flags += ["--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT)]
    flags += ["--threads", threads, "--threads-batch", threads, "--no-cache-prompt", "--cache-ram", "0"]
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen([server, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while not is_healthy(url):
                if (status := process.poll()) is not None:
                    command = shlex.join([str(server), *flags])
                    raise UserError(f"llama-server has ended with status {status}: {command}")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def is_healthy(url: str) -> bool:
    """It answers 503 while it loads the model."""
    try:
        with urlopen(f"{url}/health", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def main() -> None:
    parser = ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="random:SHAPE of Llama's architecture")
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--server", type=Path, help="a llama-server; without it, the wheel runs")
    options = parser.parse_args()
    with errors_in_one_line("benchmarks.llama_cpp"), tempfile.TemporaryDirectory() as folder:
        shape = options.model.removeprefix("random:")
        if RANDOM_SHAPES.get(shape, {}).get("model_type") != "llama":
            raise UserError(f"{options.model}: only a random model of Llama's architecture can be converted")
        needed = ["gguf"] if options.server else ["gguf", "xllamacpp"]
        if missing := [name for name in needed if find_spec(name) is None]:
            raise UserError(f"{' and '.join(missing)} must be installed: pip install --editable '.[peers]'")
        build_of(options.server)
        file = Path(folder) / "model.gguf"
        save_checkpoint(shape, Path(folder))
        write_gguf(Path(folder), file, options.dtype)
        with running_build(options.server, file) if options.server else running_wheel(file) as url:
            print(f"{READY}{url}", flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    main()
