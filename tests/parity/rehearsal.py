"""Training rows: composed here, compared with upstream's padded batches on their real positions."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osum_echat.records import Turn
from osum_echat.sequence import IGNORED, Batch, Sequence, collate, compose
from osum_echat.tasks import Task, task_for
from tests.parity.fixture import Fixture
from tests.parity.hearing import ACTIVATIONS, SURE_GAP
from tests.parity.rows import OTHERWISE, Row, close, exact, not_compared

TASK_OF = {                         # upstream's output types
    "text": "<TRANSCRIBE>", "s2t_chat": "s2t", "s2t_chat_fake": "s2t_fake",
    "s2t_chat_think": "s2t_think", "text2text": "t2t", "text2token": "tts",
    "text2token_streaming": "tts_streaming", "speech2text_token": "s2s",
    "speech2text_token_think": "s2s_think", "speech2text_token_history": "s2s_history",
    "speech2text_token_streaming": "s2s_streaming",
}
PER_POSITION = ("last_hidden", "text_logits_cols", "speech_logits_cols", "text_lse", "speech_lse")


@dataclass(frozen=True, slots=True)
class Case:
    """One stored batch: its arrays, the words behind its ids, its task and histories."""

    name: str
    task: Task
    arrays: dict[str, np.ndarray]
    words: dict[str, Any]
    histories: list[list[dict[str, Any]]]

    @classmethod
    def read(cls, fixture: Fixture, name: str, words: dict[str, Any]) -> "Case":
        task = task_for(TASK_OF[words["losses"][name]["output_type"]])
        arrays = fixture.arrays(f"train_{name}.npz")
        histories = words["history_partial" if "partial" in name else "history_full"]
        return cls(name, task, arrays, words, histories if task.name == "s2s_history" else [])

    def ids(self, what: str, row: int) -> list[int]:
        """The ids of one input of one row, padding cut off."""
        lengths = self.arrays.get(f"in_{what}_lengths", self.arrays.get(f"in_{what}_length"))
        assert lengths is not None, f"train_{self.name}.npz: no lengths of {what}"
        return self.arrays[f"in_{what}"][row, : lengths[row]].tolist()

    def text(self, fixture: Fixture, ids: list[int]) -> str | None:
        """The text of train.json that has these ids."""
        pools = ("texts", "think_texts", "prompts", "text2text_prompts")
        texts = [text for pool in pools for text in self.words.get(pool, [])]
        return next((text for text in texts if list(fixture.vocab.encode(text)) == ids), None)


def rows(fixture: Fixture) -> list[Row]:
    """All rows of train.json and its arrays."""
    if not fixture.has("train.json"):
        return []
    words = fixture.json("train.json")
    found = []
    for name in words["losses"]:
        if not fixture.has(f"train_{name}.npz"):
            found.append(not_compared(f"train {name}", "its arrays are not in the directory"))
            continue
        case = Case.read(fixture, name, words)
        for row in range(len(case.arrays["attention_mask"])):
            found += _row(fixture, case, row)
        found.append(not_compared(f"train {name} loss, gradients",
                                  f"{OTHERWISE}upstream's padding between segments is in them"))
    return found


def _why_not(case: Case, row: int) -> str | None:
    """Why upstream's row cannot be ours."""
    if case.histories and not case.histories[row] and any(case.histories):
        return f"{OTHERWISE}an empty history inserts nothing"
    frames = case.arrays["in_feats_lengths"]
    if case.task.hears and frames[row] % 2 and frames[row] != frames.max():
        return f"{OTHERWISE}the padded length changes the encoder's stride parity"
    return None


def _row(fixture: Fixture, case: Case, row: int) -> list[Row]:
    name = f"train {case.name}[{row}]"
    reason = _why_not(case, row)
    if reason:
        return [not_compared(name, reason)]
    sequence, answer_start = _compose(fixture, case, row)
    if sequence is None:
        return [Row(name, float("inf"), 0.0, "train.json has no text with its ids")]
    batch = collate([[sequence]], fixture.vocab)
    unknown = fixture.vocab.unknown_label
    hidden_labels = batch.ids.eq(-1 if unknown is None else unknown)
    hidden_labels[:, :answer_start] = False
    seen = ~hidden_labels[0]
    mask = torch.from_numpy(case.arrays["attention_mask"][row])
    theirs = {key: torch.from_numpy(case.arrays[key][row])[mask]
              for key in ("inputs_embeds", *PER_POSITION) if key in case.arrays}
    if int(mask.sum()) != int(seen.sum()):
        return [Row(name, float("inf"), 0.0,
                    f"ours has {int(seen.sum())} tokens, theirs {int(mask.sum())}")]
    found = [exact(f"{name} targets", batch.targets[0][seen], _targets(fixture, case, row)[mask])]
    ours = _states(fixture, batch, hidden_labels, theirs["inputs_embeds"])
    if "position_ids" in case.arrays:
        count = torch.arange(int(seen.sum()))
        found.append(exact(f"{name} position_ids", count, case.arrays["position_ids"][row][mask]))
    found += [close(f"{name} {key}", ours[key][seen], values, ACTIVATIONS)
              for key, values in theirs.items()]
    found += _best(case, name, ours, seen, mask, row)
    return found + (_whole_logits(case, name, ours, seen, mask) if row == 0 else [])


def _best(case: Case, name: str, ours: dict[str, Tensor], seen: Tensor, mask: Tensor,
          row: int) -> list[Row]:
    """The best id of each head, where the second is not too near."""
    found = []
    for kind in ("text", "speech"):
        if f"{kind}_argmax" not in case.arrays:
            continue
        top = ours[f"{kind}_logits"][seen].topk(2)
        sure = top.values[:, 0] - top.values[:, 1] >= SURE_GAP
        theirs = torch.from_numpy(case.arrays[f"{kind}_argmax"][row])[mask]
        found.append(exact(f"{name} {kind}_argmax", top.indices[sure, 0], theirs[sure]))
    return found


def _targets(fixture: Fixture, case: Case, row: int) -> Tensor:
    """Unshifted targets in the joint space: (tokens,)."""
    if "target_full" in case.arrays:
        return torch.from_numpy(case.arrays["target_full"][row])
    count = len(case.arrays["attention_mask"])
    shifted = torch.from_numpy(case.arrays["target_shifted_flat"]).view(count, -1)[row]
    return torch.cat((torch.tensor([IGNORED]), shifted))


def _compose(fixture: Fixture, case: Case, row: int) -> tuple[Sequence | None, int]:
    """Our row with the answer, and where the answer begins; None if a text is not known."""
    task, feats = case.task, sorted(fixture.wavs.values(), key=len, reverse=True)
    label = case.ids("target", row)
    answer = case.text(fixture, label[:-1])
    history = [Turn(b"", None, turn["txt"], tuple(turn["speech_token"][1:-1]))
               for turn in (case.histories[row] if case.histories else [])]
    clips = [fixture.wavs[turn["feat_from"].removesuffix("_feat")]
             [turn["start"] : turn["start"] + turn["frames"]]
             for turn in (case.histories[row] if case.histories else [])]
    if task.hears:
        clips.append(feats[row][: case.arrays["in_feats_lengths"][row]])
    asked: str | None = None
    if task.user_text and not task.speaks and "in_prompt" in case.arrays:
        asked = case.text(fixture, case.ids("prompt", row))
        if asked is None:
            return None, 0
    elif task.user_text and task.speaks:
        asked = answer
    if answer is None:
        return None, 0
    speech = tuple(case.ids("speech_tokens", row)[1:-1]) if task.speaks else None
    start = compose(task, fixture.vocab, clips=clips, history=history, user_text=asked)
    whole = compose(task, fixture.vocab, clips=clips, history=history, user_text=asked,
                    answer_text=answer if task.answers_text else None, answer_speech=speech)
    return whole, len(start)


@torch.inference_mode()
def _states(fixture: Fixture, batch: Batch, hidden_labels: Tensor,
            given: Tensor) -> dict[str, Tensor]:
    """What the model makes of the row: each (tokens, ...).

    Hidden states and logits start from the given embeddings (tokens seen, width), so that the
    rounding of the audio path, which the logits magnify twentyfold, is not counted against them.
    """
    network, columns = fixture.network, fixture.columns
    embedded = network.embed(batch)
    start = embedded.clone()
    start[0, ~hidden_labels[0]] = given
    hide = hidden_labels if bool(hidden_labels.any()) else None
    hidden = network(batch, embedded=start, hide_unknown=hide)[0]
    text, speech = network.logits_text(hidden), network.logits_speech(hidden)
    return {
        "inputs_embeds": embedded[0],
        "last_hidden": hidden,
        "text_logits_cols": text[:, columns["text_cols"]],
        "speech_logits_cols": speech[:, columns["speech_cols"]],
        "text_lse": text.logsumexp(-1), "speech_lse": speech.logsumexp(-1),
        "text_logits": text, "speech_logits": speech,
    }


def _whole_logits(case: Case, name: str, ours: dict[str, Tensor], seen: Tensor,
                  mask: Tensor) -> list[Row]:
    """All logits at the one position where they are stored."""
    found = []
    for kind in ("text", "speech"):
        stored = case.arrays.get(f"{kind}_logits_row")
        if stored is None or not stored.size:
            continue
        place = int(mask[: int(case.arrays["row_pos"]) + 1].sum()) - 1
        found.append(close(f"{name} {kind}_logits_row", ours[f"{kind}_logits"][seen][place],
                           stored, ACTIVATIONS))
    return found
