"""vLLM in the place of our own loop: the LLM with its speech rows runs there, ids come back here.

Text rows and, after them, speech rows are one vocabulary of one stock Qwen: what vLLM has chosen it
reads back from the row of its phase. Prompts come embedded. An id is chosen by the `Answer` of its
row, as in our own loop (phase, penalty, rules, sampling, randomness), in a logits processor that
leaves vLLM no other id; so whatever a rule can do, joint decoding with the CTC too, it can do here.
"""

import os
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osum_echat.errors import InputError
from osum_echat.generation.decoder import Answer, Token
from osum_echat.generation.kv_cache import check_length, longest_row
from osum_echat.models import checkpoint, convert
from osum_echat.models.echat import EChatModel

MOST_ROWS = 32                  # that grow side by side; more wait
CACHED_TOKENS = 2048            # of each of them, for which there is memory; beyond, some wait
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
JOB = "job"                     # where a request says whose it is
SURROUNDINGS = {                # all in this process, quietly, nothing told to anybody
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
}  # fmt: skip
Told = tuple[int, Token]
# To the end of the process: vLLM takes down what all engines share when one of them is dropped.
_ENGINES: list[Any] = []


@dataclass(eq=False, slots=True)
class _Job:
    """One row of a call. told: the tokens of the call; answer: None for a start, only read."""

    place: int
    answer: Answer | None
    interrupt: Callable[[], bool] | None
    told: deque[Told] = field(default_factory=deque)
    error: Exception | None = None
    is_over: bool = False

    def choose(self, logits: Tensor, text_rows: int, bias: Tensor) -> int:
        """The next joint id; logits: (rows of both,); bias: (speech head rows,)."""
        if self.answer is None:
            return 0
        first = text_rows if self.answer.phases.in_speech else 0
        own = logits[first : first + len(bias)] + bias if first else logits[:text_rows]
        try:
            token = self.answer.choose(own)
        except Exception as error:
            self.error = error
            return 0
        self.told.append((self.place, token))
        return first + token.id


class VllmEngine:
    """An LLM in vLLM; whoever waits for a token makes the next step, for all callers."""

    def __init__(self, model: EChatModel, most_rows: int = MOST_ROWS) -> None:
        """model: in eval mode. What it takes stays taken until the process ends.

        Raises InputError where vLLM is missing, or is of another device.
        """
        self.model = model
        self._jobs: dict[str, _Job] = {}
        self._count = 0
        self._turn = threading.Lock()
        longest, config = longest_row(model.llm.config), model.llm.config
        head_width = model.llm.model.layers[0].self_attn.head_dim
        vllm = _vllm(model.device, head_width)
        token_bytes = 2 * config.num_hidden_layers * config.num_key_value_heads * head_width
        token_bytes *= model.dtype.itemsize
        with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings(action="ignore"):
            convert.write_llm(Path(directory), checkpoint.own_weights(model), model.settings)
            self._engine = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(
                model=directory, skip_tokenizer_init=True, generation_config="vllm",
                dtype=DTYPES[model.dtype], enable_prompt_embeds=True,
                logits_processors=[_chooser(self._jobs, model)],
                # The last id of a full row is said and never read: it needs no place.
                max_model_len=longest + 1, max_num_seqs=most_rows,
                hf_overrides={"max_position_embeddings": config.max_position_embeddings + 1},
                # A prompt goes through in one step: a part of one has no answer to choose for.
                enable_chunked_prefill=False, max_num_batched_tokens=longest + 1 + most_rows,
                async_scheduling=False, enforce_eager=model.device.type == "cpu",
                kv_cache_memory_bytes=token_bytes * max(3 * longest, most_rows * CACHED_TOKENS),
                disable_log_stats=True, use_tqdm_on_load=False,
            ))  # fmt: skip
        _ENGINES.append(self._engine)
        self._params = vllm.SamplingParams

    def decode(
        self, prompts: Sequence[Tensor], answers: Sequence[Answer | None],
        interrupt: Callable[[], bool] | None = None,
    ) -> Iterator[Told]:  # fmt: skip
        """As `decoder.decode`: the number of a row and its next token, while the answers grow.

        prompts: (tokens, width) each, embedded. Closing the iterator ends the answers. Raises what
        vLLM or a rule raised.
        """
        for prompt in prompts:
            check_length(self.model.llm, len(prompt))
        told: deque[Told] = deque()
        jobs = [_Job(place, answer, interrupt, told) for place, answer in enumerate(answers)]
        with self._turn:
            names = [self._begin(*one) for one in zip(jobs, prompts, strict=True)]
        try:
            while True:
                while told:
                    yield told.popleft()
                if error := next((job.error for job in jobs if job.error is not None), None):
                    raise error
                with self._turn:
                    if not told and all(job.is_over for job in jobs):
                        return
                    if not told:
                        self._step()
        finally:
            with self._turn:
                self._end([name for name in names if name in self._jobs])

    def read_ahead(self, start: Tensor) -> None:
        """Read what prompts will begin with, (tokens, width); its blocks are kept while there is
        room."""
        for _ in self.decode([start], [None]):
            pass

    @property
    def live(self) -> int:
        """Rows that grow or wait."""
        return len(self._jobs)

    def _begin(self, job: _Job, prompt: Tensor) -> str:
        self._count += 1
        name = str(self._count)
        limit = 1 if job.answer is None else job.answer.limits.total_tokens + 1
        params = self._params(
            temperature=0.0, max_tokens=limit, ignore_eos=True, detokenize=False,
            extra_args={JOB: name},
        )  # fmt: skip
        self._jobs[name] = job
        self._engine.add_request(name, {"prompt_embeds": prompt.cpu()}, params)
        return name

    def _step(self) -> None:
        """One token for every row that has its turn."""
        self._end([name for name, job in self._jobs.items() if job.interrupt and job.interrupt()])
        try:
            finished = {one.request_id for one in self._engine.step() if one.finished}
        except Exception as error:
            for job in self._jobs.values():
                job.error = error
            self._end([*self._jobs])
            return
        for name in finished & self._jobs.keys():       # by vLLM: the longest row is full
            job = self._jobs.pop(name)
            job.is_over = True
            if job.answer is not None:
                job.answer.stopped_by = job.answer.stopped_by or "limit"
        self._end([
            name for name, job in self._jobs.items()
            if job.error is not None or (job.answer is not None and job.answer.stopped_by)
        ])  # fmt: skip

    def _end(self, names: Sequence[str]) -> None:
        """Take rows out; those that are not whole were interrupted."""
        for name in names:
            job = self._jobs.pop(name)
            job.is_over = True
            if job.answer is not None:
                job.answer.stopped_by = job.answer.stopped_by or "interrupt"
        if names:
            self._engine.abort_request([*names])


def _vllm(device: torch.device, head_width: int) -> Any:
    """The package, set up for this process. Raises InputError for what it cannot run."""
    os.environ |= SURROUNDINGS
    try:
        import vllm
        from vllm.platforms import current_platform
    except ImportError as error:
        raise InputError(
            "engine vllm: vLLM is missing in this environment; run make vllm, and start this "
            "command by .venv-vllm/bin/python"
        ) from error
    if current_platform.device_type != device.type:
        raise InputError(
            f"engine vllm: this vLLM is built for {current_platform.device_type or 'no device'}, "
            f"and the model is on {device.type}; choose --device "
            f"{current_platform.device_type or 'cpu'}, or install the vLLM of this machine"
        )
    if device.type == "cpu":
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        known = CPUAttentionBackend.get_supported_head_sizes()
        if head_width not in known:
            raise InputError(
                f"engine vllm: on a CPU it knows LLMs with heads of width "
                f"{', '.join(map(str, known))}, and this one's are {head_width}; choose engine own"
            )
    return vllm


def _chooser(jobs: Mapping[str, _Job], model: EChatModel) -> type:
    """The logits processor, as the class that vLLM asks for."""
    from vllm.v1.sample.logits_processor import LogitsProcessor, process_dict_updates

    bias, text_rows = model.speech_head.bias.detach().float(), model.text_rows

    class Chooser(LogitsProcessor):
        def __init__(self, *_: Any) -> None:
            self.rows: dict[int, _Job] = {}

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            process_dict_updates(
                self.rows, batch_update, lambda params, *_: jobs.get(params.extra_args[JOB])
            )

        def apply(self, logits: Tensor) -> Tensor:
            """logits: (rows, rows of both), float32. All but the chosen ids become impossible."""
            chosen = {
                row: job.choose(logits[row], text_rows, bias) for row, job in self.rows.items()
            }
            if not chosen:              # vLLM tries itself out
                return logits
            logits.fill_(-torch.inf)
            logits[[*chosen], [*chosen.values()]] = 0.0
            return logits

    return Chooser
