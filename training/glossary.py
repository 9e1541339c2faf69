"""The terms of LLM serving that the bundled model can explain."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One term, how a question names it ("the" + "KV cache"), and its one answer."""

    term: str
    answer: str
    article: str = ""
    verb: str = "is"

    @property
    def named(self) -> str:
        """The term as a sentence uses it, with its article if it takes one."""
        return f"{self.article} {self.term}".strip()

    @property
    def question(self) -> str:
        return f"What {self.verb} {self.named}?"

    @property
    def variants(self) -> tuple[str, ...]:
        """Every wording that leads to the same answer, the main question first."""
        wordings = (
            self.question,
            f"What {self.verb} {self.term}?",
            f"Explain {self.named}.",
            f"Define {self.named}.",
        )
        return tuple(dict.fromkeys(wordings))


_SSE = (
    "a text format for events from server to client over one long HTTP response. Each event is a "
    "few lines, such as data: hello, and ends with a blank line."
)

ENTRIES: tuple[Entry, ...] = (
    # What the model reads and writes.
    Entry(
        "token",
        "A token is the unit of text that a language model reads and writes: a word, a part of a "
        "word, or a single byte.",
        article="a",
    ),
    Entry(
        "tokenizer",
        "A tokenizer turns text into token ids before the model runs, and token ids back into "
        "text afterwards.",
        article="a",
    ),
    Entry(
        "byte-pair encoding",
        "Byte-pair encoding builds a vocabulary by merging, again and again, the pair of "
        "neighboring tokens that is most frequent in the training text.",
    ),
    Entry(
        "detokenizing",
        "Detokenizing turns token ids back into text. When a character is split over several "
        "tokens, a stream must hold back its bytes until the character is whole.",
    ),
    Entry(
        "context window",
        "The context window is the largest number of tokens, prompt and answer together, that a "
        "model can work with.",
        article="the",
    ),
    Entry(
        "end-of-sequence token",
        "The end-of-sequence token is a special token by which the model says that its answer is "
        "complete. The server stops there and does not show it.",
        article="the",
    ),
    # Inside the model.
    Entry(
        "large language model",
        "A large language model is a neural network that was trained on a great deal of text "
        "to predict the next token.",
        article="a",
    ),
    Entry(
        "forward pass",
        "A forward pass runs tokens through all the layers of the model once and gives the "
        "logits for the next token.",
        article="a",
    ),
    Entry(
        "attention",
        "Attention lets a token gather information from the tokens before it: it compares its "
        "query with their keys and takes a weighted sum of their values.",
    ),
    Entry(
        "grouped-query attention",
        "In grouped-query attention several query heads share one key head and one value head, "
        "which makes the KV cache several times smaller.",
    ),
    Entry(
        "rotary embedding",
        "A rotary embedding marks a token's position by rotating its query and key vectors, so "
        "that attention scores depend on how far apart two tokens are.",
        article="a",
    ),
    Entry(
        "RMS norm",
        "RMS norm divides a vector by its root mean square and multiplies it by learned weights. "
        "Unlike layer norm it subtracts no mean.",
    ),
    Entry(
        "logits",
        "Logits are the raw scores, one for each token in the vocabulary, that a forward pass "
        "gives. Softmax turns them into probabilities.",
        verb="are",
    ),
    Entry(
        "softmax",
        "Softmax turns a list of scores into probabilities: it takes the exponential of each "
        "score and divides it by the sum of them all.",
    ),
    Entry(
        "bfloat16",
        "bfloat16 is a 16-bit floating-point format with the 8 exponent bits of float32 but only "
        "7 fraction bits: the same range, less precision.",
    ),
    Entry(
        "quantization",
        "Quantization stores weights, and sometimes activations or the KV cache, in fewer bits, "
        "such as 8 or 4, to save memory and bandwidth at a small loss of accuracy.",
    ),
    # Choosing the next token.
    Entry(
        "sampling",
        "Sampling draws the next token at random, according to the probabilities that the model gives.",
    ),
    Entry(
        "greedy decoding",
        "Greedy decoding always picks the token with the highest logit. No random number is involved.",
    ),
    Entry(
        "temperature",
        "Temperature divides the logits before softmax. A low one favors the likeliest tokens, a "
        "high one evens out the choice, and 0 is taken to mean greedy decoding.",
    ),
    Entry(
        "top-p sampling",
        "Top-p sampling draws the next token from the smallest set of likeliest tokens whose "
        "probabilities add up to at least p.",
    ),
    Entry(
        "top-k sampling",
        "Top-k sampling draws the next token from the k likeliest tokens only.",
    ),
    Entry(
        "speculative decoding",
        "In speculative decoding a cheap drafter proposes several tokens and the large model "
        "checks them all in one forward pass. The rule of acceptance keeps the output "
        "distribution the same.",
    ),
    # The two phases and their memory.
    Entry(
        "prefill",
        "Prefill is the first phase of a request: the model processes the prompt's tokens in "
        "parallel, fills the KV cache and gives the first new token.",
    ),
    Entry(
        "decode",
        "Decode is the phase after prefill: each forward pass takes the newest token, attends to "
        "the KV cache and gives one more token.",
    ),
    Entry(
        "KV cache",
        "The KV cache keeps the attention keys and values of all the tokens so far, so that a "
        "decode step has to compute them for the newest token only.",
        article="the",
    ),
    Entry(
        "KV slot",
        "A KV slot is the part of the KV cache that is reserved for one running request. When "
        "the request ends, the slot is free for the next one.",
        article="a",
    ),
    Entry(
        "paged attention",
        "Paged attention keeps the KV cache in small blocks of fixed size, which can lie "
        "anywhere in memory and are found through a block table, so that little memory is wasted.",
    ),
    Entry(
        "prefix caching",
        "Prefix caching keeps the keys and values of a prompt's beginning, so that a later "
        "prompt which begins with the same tokens can skip that part of prefill.",
    ),
    # Sharing the model between requests.
    Entry(
        "batching",
        "Batching runs several requests through one forward pass, so that the weights are read "
        "from memory once for all of them.",
    ),
    Entry(
        "static batching",
        "Static batching runs a fixed group of requests together and takes no new one until the "
        "longest answer of the group is finished.",
    ),
    Entry(
        "dynamic batching",
        "Dynamic batching collects requests for a few milliseconds, or until the batch is full, "
        "and then runs them together.",
    ),
    Entry(
        "continuous batching",
        "Continuous batching decides at every step which requests share the forward pass: a "
        "finished request leaves at once, and a waiting one takes its place.",
    ),
    Entry(
        "chunked prefill",
        "Chunked prefill splits a long prompt into pieces and processes one piece a step, beside "
        "the requests that are decoding, so that a long prompt does not stall them.",
    ),
    Entry(
        "scheduler",
        "The scheduler decides before each forward pass which requests take part in it, and how "
        "many tokens of each are processed.",
        article="the",
    ),
    Entry(
        "preemption",
        "Preemption takes a running request out of the batch to free its memory for others. It "
        "goes on later, once its keys and values have been computed again or copied back.",
    ),
    Entry(
        "head-of-line blocking",
        "Head-of-line blocking means that a slow request at the front of a queue holds up those "
        "behind it, however short they are.",
    ),
    Entry(
        "model parallelism",
        "Model parallelism splits one model over several devices. Tensor parallelism divides each "
        "layer, and pipeline parallelism gives every device some of the layers.",
    ),
    Entry(
        "tensor parallelism",
        "Tensor parallelism divides the weight matrices of every layer over several devices, "
        "which combine their partial results within each layer.",
    ),
    # Measuring.
    Entry(
        "TTFT",
        "TTFT, the time to first token, runs from the moment a request is sent until its first "
        "output token arrives. It includes queueing and prefill.",
    ),
    Entry(
        "ITL",
        "ITL, the inter-token latency, is the gap between two consecutive output tokens of one stream.",
    ),
    Entry(
        "TPOT",
        "TPOT, the time per output token, is the mean for the tokens after the first: the "
        "end-to-end latency minus TTFT, divided by the number of output tokens minus one.",
    ),
    Entry(
        "latency",
        "Latency is how long one client waits: for the first token, for the next token, or for "
        "the whole answer.",
    ),
    Entry(
        "throughput",
        "Throughput is how much a server finishes per second, over all its clients, counted in "
        "requests or in output tokens.",
    ),
    Entry(
        "goodput",
        "Goodput is the number of requests per second that finish within their latency "
        "objectives. A late answer adds to throughput but not to goodput.",
    ),
    Entry(
        "p99",
        "The p99 is the value that 99 percent of the measurements do not exceed. It shows the "
        "slow requests that a mean hides.",
        article="the",
    ),
    Entry(
        "closed-loop load test",
        "A closed-loop load test has a fixed number of clients, and each sends its next request "
        "only after its last one was answered.",
        article="a",
    ),
    Entry(
        "open-loop load test",
        "An open-loop load test sends requests at a given rate, for example as Poisson arrivals, "
        "whether or not earlier ones have been answered.",
        article="an",
    ),
    # Getting the tokens to the client.
    Entry(
        "streaming",
        "Streaming sends each token to the client as soon as it is generated, instead of the "
        "whole answer at the end.",
    ),
    Entry("server-sent events", f"Server-sent events are {_SSE}", verb="are"),
    Entry("SSE", f"SSE stands for server-sent events: {_SSE}"),
    Entry(
        "WebSocket",
        "A WebSocket is a connection that begins as an HTTP request and then lets client and "
        "server send messages to each other at any time.",
        article="a",
    ),
    Entry(
        "WSGI",
        "WSGI is the interface between a web server and a synchronous Python application. Each "
        "request holds one worker until its response is finished.",
    ),
    Entry(
        "ASGI",
        "ASGI is the interface between a web server and an asynchronous Python application. One "
        "event loop can serve many open connections.",
    ),
    Entry(
        "event loop",
        "An event loop runs many tasks in one thread and switches between them when one has to "
        "wait. A task that blocks holds up all the others.",
        article="an",
    ),
    Entry(
        "GIL",
        "The GIL, the global interpreter lock, lets only one thread of a Python process run "
        "bytecode at a time. The free-threaded build of CPython does without it.",
        article="the",
    ),
    Entry(
        "ZeroMQ",
        "ZeroMQ is a messaging library. Its sockets carry whole messages between threads, "
        "processes or machines, with no broker between them.",
    ),
    Entry(
        "backpressure",
        "Backpressure makes a producer wait when its consumer cannot keep up, so that the buffer "
        "between them stays bounded.",
    ),
    Entry(
        "cancellation",
        "Cancellation stops the work for a request whose client has gone away, and frees its "
        "place in the batch.",
    ),
    # Keeping the server running.
    Entry(
        "health check",
        "A health check is an endpoint that tells whether the server is alive. It should answer "
        "at once, even while the model is busy.",
        article="a",
    ),
    Entry(
        "graceful shutdown",
        "In a graceful shutdown a server takes no new requests, lets the open ones finish or "
        "ends them after a time limit, and then exits.",
        article="a",
    ),
)
