"""A directory of model tensors: audio path, training rows, greedy runs and logits processors."""

import json
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from osum_echat import audio
from osum_echat.errors import CheckpointError
from osum_echat.generation import decoder
from osum_echat.generation.sampling import AllowedAfter, Rule, Sampling
from osum_echat.models import checkpoint
from osum_echat.models.echat import EChatModel, EChatSettings
from osum_echat.records import Turn
from osum_echat.sequence import IGNORED, Sequence, collate, compose
from osum_echat.tasks import TURN_END, task_for
from osum_echat.vocab import TEXT_END, UNKNOWN, Vocab
from tests.parity.rows import OTHERWISE, Row, close, exact, near, not_compared, read_arrays
from tests.parity.upstream_rules import NoLongRuns, WindowLimit

SAMPLES, ACTIVATIONS, BF16 = 1e-6, 1e-4, 0.02
FEATURES = 1e-4             # Fourier transforms round otherwise on each make of processor
SURE_GAP = 1e-3             # two best scores closer than this may change places by rounding
PUBLISHED_HEAD_ROWS = 4097  # what upstream's processor takes for speech, whatever the model
AGE_CUE = "年龄为:<"
TASK_OF = {                 # upstream's output types
    "text": "<TRANSCRIBE>", "s2t_chat": "s2t", "s2t_chat_fake": "s2t_fake",
    "s2t_chat_think": "s2t_think", "text2text": "t2t", "text2token": "tts",
    "text2token_streaming": "tts_streaming", "speech2text_token": "s2s",
    "speech2text_token_think": "s2s_think", "speech2text_token_history": "s2s_history",
    "speech2text_token_streaming": "s2s_streaming",
}  # fmt: skip
RUNS = (                    # start of a run's name -> task, and why its prompt is not ours
    ("understanding", "<TRANSCRIBE>", "the system prompt as it was trained, not the damaged one"),
    ("s2t_chat_think", "s2t_think", "the start of the user's turn as it was trained"),
    ("s2t_chat", "s2t", None),
    ("s2s_think", "s2s_think", None),
    ("s2s", "s2s", None),
    ("t2t", "t2t", None),
    ("tts", "tts", None),
    ("multiturn", "s2s_history", "earlier turns in the layout of training"),
)
Arrays = dict[str, np.ndarray]


class TokenTable:
    """A tokenizer that knows the strings of token_ids.json and nothing else."""

    def __init__(self, table: dict[str, list[int]], where: Path) -> None:
        self.table, self.where = dict(table), where
        if TEXT_END not in self.table and TURN_END in self.table:
            self.table[TEXT_END] = self.table[TURN_END][:1]
        self.table.setdefault(UNKNOWN, self.table.get(f"<{UNKNOWN}>", [])[1:-1])

    def encode(self, text: str) -> list[int]:
        if text not in self.table:
            raise CheckpointError(f"{self.where}: no ids for {text!r}; add them")
        return self.table[text]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


class Fixture:
    """The files of a directory, each read when first asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def json(self, name: str) -> Any:
        """What a file holds; nothing: no such file."""
        path = self.directory / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not readable JSON ({error})") from error

    def arrays(self, name: str) -> Arrays:
        """The arrays of a file; nothing: no such file."""
        path = self.directory / name
        return read_arrays(path) if path.is_file() else {}

    @cached_property
    def settings(self) -> EChatSettings:
        return checkpoint.read_settings(self.directory)

    @cached_property
    def network(self) -> EChatModel:
        """In float32, without dropout."""
        path = self.directory / "model.pt"
        return checkpoint.load(path, settings=self.settings, dtype=torch.float32).eval()

    @cached_property
    def vocab(self) -> Vocab:
        table = TokenTable(self.json("token_ids.json"), self.directory / "token_ids.json")
        return Vocab(table, int(self.settings.llm["vocab_size"]), self.settings.speech_codes)

    @cached_property
    def wavs(self) -> dict[str, Tensor]:
        """Features (frames, mel) of every wav of the directory, by its stem."""
        mels = self.settings.encoder.mels
        return {path.stem: audio.log_mel(audio.load(path), mels)
                for path in sorted(self.directory.glob("*.wav"))}  # fmt: skip

    @cached_property
    def longest(self) -> list[Tensor]:
        """The same, the longest first."""
        return sorted(self.wavs.values(), key=len, reverse=True)

    @cached_property
    def columns(self) -> dict[str, Tensor]:
        """text_cols, speech_cols: the logit columns that are kept."""
        return {name: torch.from_numpy(values).long()
                for name, values in self.arrays("columns.npz").items()}  # fmt: skip


def rows(directory: Path) -> list[Row]:
    """Compare with every array. Raises CheckpointError where a file cannot be read."""
    fixture = Fixture(directory)
    with torch.inference_mode():
        return [*resampling(fixture), *audio_path(fixture), *bf16(fixture), *training(fixture),
                *greedy_runs(fixture), *processors(fixture)]  # fmt: skip


def resampling(fixture: Fixture) -> list[Row]:
    """resample.npz: to 16 kHz from several rates."""
    arrays = fixture.arrays("resample.npz")
    rates = [int(name.removeprefix("out_")) for name in arrays if name.startswith("out_")]
    return [
        close(f"resample out_{rate}",
              audio.resample(torch.from_numpy(arrays[f"in_{rate}"]).flatten(), rate,
                             audio.SAMPLE_RATE_HZ),
              arrays[f"out_{rate}"].flatten(), SAMPLES)
        for rate in rates
    ]  # fmt: skip


def stages(fixture: Fixture, mels: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    """Every stage on a padded batch: name -> (clips, steps, width), masks (clips, steps)."""
    encoder, adapter = fixture.network.encoder, fixture.network.adapter
    heard, halves = encoder(mels, lengths)
    fewer, eighths = adapter.subsample(heard, halves)
    adapted = adapter.transformer(fewer, eighths)
    whole, part = (torch.arange(steps.shape[1]) < count[:, None]
                   for steps, count in ((heard, halves), (fewer, eighths)))  # fmt: skip
    return {
        "subsample_out": encoder.embed(mels), "encoder_out": heard, "encoder_mask": whole,
        "downsample_out": fewer, "downsample_mask": part, "adapter_out": adapted,
        "adapter_mask": part, "proj_out": adapter.projection(adapted), "proj_mask": part,
    }


def audio_path(fixture: Fixture) -> list[Row]:
    """audio.npz: every stage of each wav, and of padded batches of them."""
    arrays, found = fixture.arrays("audio.npz"), []
    for wav, features in fixture.wavs.items() if arrays else ():
        made = stages(fixture, features[None], torch.tensor([len(features)]))
        made = {"feat": features, **{name: values[0] for name, values in made.items()}}
        for name, theirs in arrays.items():
            stage = name.removeprefix(f"{wav}_")
            if stage == name:
                continue
            if stage not in made:
                found.append(not_compared(f"audio {name}", "no such stage here"))
            elif stage.endswith("_mask"):
                found.append(exact(f"audio {name}", made[stage].flatten(), theirs.flatten()))
            else:
                limit = FEATURES if stage == "feat" else ACTIVATIONS
                found.append(close(f"audio {name}", made[stage], theirs, limit))
    for name in arrays:
        if name.endswith("_lens"):
            found += padded_batch(fixture, arrays, name.removesuffix("_lens"))
    return found


def padded_batch(fixture: Fixture, arrays: Arrays, batch: str) -> list[Row]:
    """A padded batch of the longest clips, cut to the stated lengths; real steps only."""
    lengths = torch.from_numpy(arrays[f"{batch}_lens"]).long()
    clips = fixture.longest[: len(lengths)]
    if len(clips) < len(lengths) or any(len(clip) < int(size)
                                        for clip, size in zip(clips, lengths, strict=True)):
        return [not_compared(f"audio {batch}", "not the batch of the longest clips, cut")]
    cut = [clip[:size] for clip, size in zip(clips, lengths.tolist(), strict=True)]
    made = stages(fixture, pad_sequence(cut, batch_first=True), lengths)
    found = []
    for name, theirs in arrays.items():
        stage = name.removeprefix(f"{batch}_")
        if stage == name or stage not in made:
            continue
        if stage.endswith("_mask"):
            found.append(exact(f"audio {name}", made[stage].flatten(), theirs.flatten()))
        else:
            mask = made[stage.replace("_out", "_mask")]
            found.append(close(f"audio {name}", made[stage][mask], theirs[mask.numpy()],
                               ACTIVATIONS, "real steps"))  # fmt: skip
    return found


def bf16(fixture: Fixture) -> list[Row]:
    """audio_bf16.npz: encoder and adapter computed in bfloat16 as a whole."""
    arrays, found = fixture.arrays("audio_bf16.npz"), []
    if arrays:
        encoder = deepcopy(fixture.network.encoder).bfloat16()
        adapter = deepcopy(fixture.network.adapter).bfloat16()
    for wav, features in fixture.wavs.items() if arrays else ():
        heard, lengths = encoder(features[None].bfloat16(), torch.tensor([len(features)]))
        made = {f"{wav}_encoder_out": heard[0], f"{wav}_proj_out": adapter(heard, lengths)[0][0]}
        found += [near(f"audio_bf16 {name}", made[name], theirs, BF16)
                  for name, theirs in arrays.items() if name in made]  # fmt: skip
    return found


# Training rows: composed here, compared with upstream's padded batches on their real positions.

def training(fixture: Fixture) -> list[Row]:
    """train.json and its arrays."""
    words, found = fixture.json("train.json"), []
    for name, record in words.get("losses", {}).items():
        arrays = fixture.arrays(f"train_{name}.npz")
        if not arrays:
            found.append(not_compared(f"train {name}", "its arrays are not in the directory"))
            continue
        for row in range(len(arrays["attention_mask"])):
            found += TrainingRow(fixture, name, record["output_type"], arrays, words, row).rows()
        found.append(not_compared(f"train {name} loss, gradients",
                                  f"{OTHERWISE}upstream's padding between segments is in them"))
    return found


class TrainingRow:
    """One row of a stored batch: its arrays, and the words behind its ids."""

    def __init__(self, fixture: Fixture, case: str, kind: str, arrays: Arrays,
                 words: dict[str, Any], row: int) -> None:  # fmt: skip
        self.fixture, self.arrays, self.words, self.row = fixture, arrays, words, row
        self.name, self.task = f"train {case}[{row}]", task_for(TASK_OF[kind])
        histories = words.get("history_partial" if "partial" in case else "history_full", [])
        self.histories = histories if self.task.name == "s2s_history" else []

    def ids(self, what: str) -> list[int]:
        """The ids of one input, padding cut off."""
        lengths = self.arrays.get(f"in_{what}_lengths", self.arrays.get(f"in_{what}_length"))
        if lengths is None:
            raise CheckpointError(f"{self.name}: no lengths of {what}")
        return self.arrays[f"in_{what}"][self.row, : lengths[self.row]].tolist()

    def text(self, ids: list[int]) -> str | None:
        """The text of train.json that has these ids."""
        pools = ("texts", "think_texts", "prompts", "text2text_prompts")
        texts = [text for pool in pools for text in self.words.get(pool, [])]
        return next((text for text in texts if list(self.fixture.vocab.encode(text)) == ids), None)

    def why_not(self) -> str | None:
        """Why upstream's row cannot be ours."""
        if self.histories and not self.histories[self.row] and any(self.histories):
            return f"{OTHERWISE}an empty history inserts nothing"
        frames = self.arrays["in_feats_lengths"]
        if self.task.hears and frames[self.row] % 2 and frames[self.row] != frames.max():
            return f"{OTHERWISE}the padded length changes the encoder's stride parity"
        return None

    def composed(self) -> tuple[Sequence, int] | None:
        """Our row with the answer, and where the answer begins; None if a text is not known."""
        task, fixture, history = self.task, self.fixture, []
        answer, asked, clips = self.text(self.ids("target")[:-1]), None, []
        for turn in self.histories[self.row] if self.histories else ():
            features = fixture.wavs[turn["feat_from"].removesuffix("_feat")]
            clips.append(features[turn["start"] : turn["start"] + turn["frames"]])
            history.append(Turn(b"", None, turn["txt"], tuple(turn["speech_token"][1:-1])))
        if task.hears:
            clips.append(fixture.longest[self.row][: self.arrays["in_feats_lengths"][self.row]])
        if task.user_text:
            asked = answer if task.speaks else None
            if not task.speaks and "in_prompt" in self.arrays:
                asked = self.text(self.ids("prompt"))
                if asked is None:
                    return None
        if answer is None:
            return None
        speech = tuple(self.ids("speech_tokens")[1:-1]) if task.speaks else None
        told = {"clips": clips, "history": history, "user_text": asked}
        whole = compose(task, fixture.vocab, **told, answer_speech=speech,
                        answer_text=answer if task.answers_text else None)  # fmt: skip
        return whole, len(compose(task, fixture.vocab, **told))

    def targets(self) -> Tensor:
        """Unshifted targets in the joint space: (tokens,)."""
        if "target_full" in self.arrays:
            return torch.from_numpy(self.arrays["target_full"][self.row])
        count = len(self.arrays["attention_mask"])
        shifted = torch.from_numpy(self.arrays["target_shifted_flat"]).view(count, -1)[self.row]
        return torch.cat((torch.tensor([IGNORED]), shifted))

    def rows(self) -> list[Row]:
        """Targets, positions, embeddings, states and logits of the row.

        States and logits start from the stored embeddings, so that the rounding of the audio path,
        which the logits magnify twentyfold, is not counted against them.
        """
        reason, fixture, arrays = self.why_not(), self.fixture, self.arrays
        if reason:
            return [not_compared(self.name, reason)]
        composed = self.composed()
        if composed is None:
            return [Row(self.name, float("inf"), 0.0, "train.json has no text with its ids")]
        batch, unknown = collate([[composed[0]]], fixture.vocab), fixture.vocab.unknown_label
        hidden = batch.ids.eq(-1 if unknown is None else unknown)
        hidden[:, : composed[1]] = False
        seen, mask = ~hidden[0], torch.from_numpy(arrays["attention_mask"][self.row])
        count = int(seen.sum())
        if int(mask.sum()) != count:
            said = f"ours has {count} tokens, theirs {int(mask.sum())}"
            return [Row(self.name, float("inf"), 0.0, said)]
        stored = {key: torch.from_numpy(values[self.row])[mask] for key, values in arrays.items()
                  if values.shape[:2] == arrays["attention_mask"].shape}  # fmt: skip
        embedded = fixture.network.embed(batch)
        places = torch.arange(count)[None]      # upstream hides unknown labels from the others
        start = stored["inputs_embeds"][None]
        states = fixture.network.run(start, torch.zeros_like(places), places)
        ours = {"inputs_embeds": embedded[0][seen], "last_hidden": states[0]}
        found = [exact(f"{self.name} targets", batch.targets[0][seen], self.targets()[mask])]
        if "position_ids" in stored:
            found.append(exact(f"{self.name} position_ids", torch.arange(count),
                               stored["position_ids"]))  # fmt: skip
        for kind, head in (("text", fixture.network.logits_text),
                           ("speech", fixture.network.logits_speech)):  # fmt: skip
            logits = head(ours["last_hidden"])
            ours[f"{kind}_logits_cols"] = logits[:, fixture.columns[f"{kind}_cols"]]
            ours[f"{kind}_lse"] = logits.logsumexp(-1)
            if f"{kind}_argmax" in stored:
                top = logits.topk(2)
                sure = top.values[:, 0] - top.values[:, 1] >= SURE_GAP
                found.append(exact(f"{self.name} {kind}_argmax", top.indices[sure, 0],
                                   stored[f"{kind}_argmax"][sure]))  # fmt: skip
            if self.row == 0 and arrays.get(f"{kind}_logits_row", np.zeros(0)).size:
                place = int(mask[: int(arrays["row_pos"]) + 1].sum()) - 1
                found.append(close(f"{self.name} {kind}_logits_row", logits[place],
                                   arrays[f"{kind}_logits_row"], ACTIVATIONS))  # fmt: skip
        return found + [close(f"{self.name} {key}", values, stored[key], ACTIVATIONS)
                        for key, values in ours.items() if key in stored]  # fmt: skip


# Greedy runs: prompts, every step's scores, the ids of whole answers.

@dataclass(frozen=True, slots=True)
class GreedyRun:
    """One stored generation. otherwise: why its prompt differs from ours, or None."""

    fixture: Fixture
    name: str
    record: dict[str, Any]
    arrays: Arrays

    def rows(self) -> list[Row]:
        """The prompt, the scores of each step, and the ids where no step is too near to call."""
        known = [mode for mode in RUNS if self.name.startswith(mode[0])]
        if not known:
            raise CheckpointError(f"generate.json: run {self.name!r} begins with no known mode")
        _, tag, otherwise = known[0]
        name, task = f"generate {self.name}", task_for(tag)
        fixture, record = self.fixture, self.record
        stored = torch.from_numpy(self.arrays["inputs_embeds"])
        if otherwise:
            prompt, found = stored, [not_compared(f"{name} inputs_embeds", OTHERWISE + otherwise)]
        else:
            clips = [fixture.wavs[record["wav"]]] if task.hears else []
            sequence = compose(task, fixture.vocab, clips=clips, user_text=record.get("text"))
            prompt = decoder.embed_prompts(fixture.network, [sequence], fixture.vocab)[0]
            found = [close(f"{name} inputs_embeds", prompt, stored, ACTIVATIONS)]
        penalty = record.get("generate_kwargs", {}).get("repetition_penalty", 1.0)
        sampling = Sampling(greedy=True, repetition_penalty=float(penalty))
        rules = [NoLongRuns(), WindowLimit()] if record.get("ngram") else []
        if task.speaks and task.answers_text and (rule := age_rule(fixture)) is not None:
            rules.insert(0, rule)
        found += self.steps(name, task.answers_text, sampling, rules)
        if record["min_top2_gap"] < SURE_GAP:
            reason = f"smallest gap {record['min_top2_gap']:.1e}: rounding decides"
            return [*found, not_compared(f"{name} ids", reason)]
        limits = decoder.Limits(record["limit_tokens"], record["limit_tokens"])
        answer = decoder.Answer(task, fixture.vocab, sampling, rules, limits)
        ids = [token.id for _, token in decoder.decode(fixture.network, [prompt], [answer])]
        return [*found, exact(f"{name} ids", ids, record["ids"])]

    def steps(self, name: str, has_text: bool, sampling: Sampling, rules: list[Rule]) -> list[Row]:
        """The scores of every step, from the stored prompt and the stored ids before it."""
        network, ids, texts = self.fixture.network, self.record["ids"], self.record["n_text_steps"]
        joint = [number if place < texts else self.fixture.vocab.joint(number)
                 for place, number in enumerate(ids)]  # fmt: skip
        before = network.embed_ids(torch.tensor(joint[:-1], dtype=torch.long))
        embedded = torch.cat((torch.from_numpy(self.arrays["inputs_embeds"]), before))[None]
        places = torch.arange(embedded.shape[1])[None]
        states = network.run(embedded, torch.zeros_like(places), places)[0, -len(ids) :]
        found, best, scores = [], [], []
        for step, state in enumerate(states):
            in_speech = step >= texts
            logits = network.logits_speech(state) if in_speech else network.logits_text(state)
            if step == 0:
                ours = {"first_logits": logits, "first_logits_max": logits.max()}
                if has_text:
                    ours["first_logits_cols"] = logits[self.fixture.columns["text_cols"]]
                found += [close(f"{name} {key}", values, self.arrays[key], ACTIVATIONS)
                          for key, values in ours.items() if key in self.arrays]  # fmt: skip
            history = ids[texts:step] if in_speech else ids[:step]
            logits = sampling.penalise(torch.tensor(sorted(set(history)), dtype=torch.long), logits)
            for rule in rules:
                logits = rule(history, logits) if rule.in_speech == in_speech else logits
            top = logits.topk(2)
            scores.append(top.values)
            best.append(top.indices[0])
        if "step_top_scores" in self.arrays:
            theirs = self.arrays["step_top_scores"]
            sure = theirs[:, 0] - theirs[:, 1] >= SURE_GAP
            found.append(close(f"{name} step_top_scores", torch.stack(scores), theirs, ACTIVATIONS))
            found.append(exact(f"{name} step_top best ids", torch.stack(best)[sure],
                               self.arrays["step_top"][sure, 0]))  # fmt: skip
        return found


def greedy_runs(fixture: Fixture) -> list[Row]:
    """generate.json with its arrays."""
    whole, found = fixture.arrays("generate.npz"), []
    for name, record in fixture.json("generate.json").items():
        arrays = {key.removeprefix(f"{name}/"): values for key, values in whole.items()
                  if key.startswith(f"{name}/")}  # fmt: skip
        found += GreedyRun(fixture, name, record, arrays).rows()
    return found


def age_rule(fixture: Fixture) -> AllowedAfter | None:
    """The age rule, its cue from token_ids.json; the ids it leaves are those of processors.json."""
    calls = fixture.json("processors.json").get("age_tag_sequence_of_calls_without_reset", [])
    left = [call["finite"] for call in calls if call["finite"] != "all"]
    return AllowedAfter(fixture.vocab.encode(AGE_CUE), left[0]) if left else None


def processors(fixture: Fixture) -> list[Row]:
    """processors.json: which speech ids the run limits forbid, which ids the age rule leaves."""
    tables = fixture.json("processors.json")
    if not tables:
        return []
    cases, rule, wrong = tables["ngram_phase_on"], age_rule(fixture), [0, 0]
    for case in cases:
        logits = torch.zeros(max(fixture.vocab.speech_head_rows, PUBLISHED_HEAD_ROWS))
        for limit in (NoLongRuns(), WindowLimit()):
            logits = limit(case["ids"], logits)
        wrong[0] += torch.isinf(logits).nonzero()[:, 0].tolist() != sorted(case["blocked"])
    calls = tables["age_tag_sequence_of_calls_without_reset"]
    for call in calls:
        logits = torch.zeros(fixture.vocab.text_rows)
        wanted, allowed = call["finite"], rule(call["ids"], logits) if rule else logits
        left = (~torch.isinf(allowed)).nonzero()[:, 0].tolist()
        same = len(left) == len(logits) if wanted == "all" else left == sorted(wanted)
        wrong[1] += not same or len(logits) - len(left) != call["n_inf"]
    return [
        Row("processors ngram_phase_on", float(wrong[0]), 0.0, f"of {len(cases)} histories"),
        Row("processors age_tag_sequence", float(wrong[1]), 0.0, f"of {len(calls)} calls"),
    ]
