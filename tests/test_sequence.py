"""Claims about rows: one layout for training and for use, nothing lost on the way to a batch."""

import pytest
import torch

from osum_echat.errors import CheckpointError, DataError
from osum_echat.records import Turn
from osum_echat.sequence import IGNORED, NEXT_CLAUSE, clip_steps, collate, compose, interleave
from osum_echat.tasks import SWITCH, TASKS, TURN_END, USER_START
from osum_echat.vocab import Vocab
from tests.letters import Letters, letter_vocab

VOCAB = letter_vocab()
EDGE = VOCAB.joint(VOCAB.speech_edge)


def mel(frames: int = 20) -> torch.Tensor:
    return torch.full((frames, 4), float(frames))


def parts(task, history=(), frames=20, text="ok", speech=(1,) * 30):
    """The arguments of a row with its answer, and of the same row without."""
    earlier = [mel(40) for turn in history if turn.audio]
    asked = {"clips": [*earlier, *([mel(frames)] if task.hears else [])], "history": history,
             "user_text": "words" if task.user_text else None}  # fmt: skip
    answer = {"answer_text": text if task.answers_text else None,
              "answer_speech": speech if task.speaks else None}  # fmt: skip
    return asked, {**asked, **answer}


HISTORY = (Turn(b"wav", None, "hello", (3, 4)), Turn(None, "typed", "yes"))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("history", [(), HISTORY])
def test_the_row_without_answer_begins_the_row_with_it(name, history):
    asked, answered = parts(TASKS[name], history)
    start, whole = compose(TASKS[name], VOCAB, **asked), compose(TASKS[name], VOCAB, **answered)
    assert whole.ids[: len(start)] == start.ids
    assert len(whole) > len(start) and whole.spans == start.spans
    assert not any(whole.trained[: len(start) - (not TASKS[name].answers_text)])
    assert all(whole.trained[len(start) :])


def test_interleave_alternates_six_and_eighteen_and_clip_steps_halve_three_times():
    assert interleave([1] * 8, [2] * 50) == [1] * 6 + [2] * 18 + [1] * 2 + [2] * 32
    assert [clip_steps(frames) for frames in (1, 8, 9, 310, 740)] == [1, 1, 2, 39, 93]


def test_an_earlier_turn_may_have_been_typed():
    """Clips of earlier turns, as all layouts, are compared with upstream's rows: tests.parity."""
    row = compose(TASKS["s2s_history"], VOCAB, clips=[mel(20)], history=HISTORY[1:])
    texts = (TASKS["s2s_history"].opening, "typed", TURN_END, SWITCH, "yes", TURN_END, USER_START)
    expected = [number for text in texts for number in VOCAB.encode(text)]
    assert row.ids[: len(expected)] == expected and not any(row.trained)


def test_aligned_rows_put_each_piece_before_its_speech_clause_after_clause():
    """A talker's row: all it has spoken before is trained as the last clause is."""
    task, clause = TASKS["tts_streaming"], Turn(None, None, "ab", (5, 6, 7), (0, 2))
    row = compose(task, VOCAB, history=[clause], user_text="c", answer_text="c",
                  answer_speech=(8,), speech_starts=(1,))  # fmt: skip
    a, b, c = VOCAB.encode("abc")
    first = (EDGE, a, *map(VOCAB.joint, (5, 6)), b, VOCAB.joint(7), VOCAB.text_end, EDGE)
    last = (EDGE, VOCAB.joint(8), c, VOCAB.text_end, EDGE)
    fixed = [VOCAB.encode(text) for text in (task.opening, "ab", SWITCH, NEXT_CLAUSE, "c", SWITCH)]
    opening, said, switch, after, again, switch = fixed
    assert tuple(row.ids) == (*opening, *said, *switch, *first, *after, *again, *switch, *last)
    spoken = [ids for ids, trained in zip(row.ids, row.trained, strict=True) if trained]
    assert tuple(spoken) == first + last
    start = compose(task, VOCAB, history=[clause], user_text="c")
    assert row.ids[: len(start)] == start.ids


@pytest.mark.parametrize(
    ("starts", "message"), [((0,), "1 speech_starts for 2"), ((2, 1), "rise"), ((0, 9), "rise")]
)
def test_an_alignment_that_does_not_fit_is_refused(starts, message):
    with pytest.raises(DataError, match=message):
        compose(TASKS["tts_streaming"], VOCAB, user_text="ab", answer_text="ab",
                answer_speech=(5, 6, 7), speech_starts=starts)  # fmt: skip


def test_a_forced_opening_is_where_the_answer_begins():
    asked, answered = parts(TASKS["s2t_think"], text="<think>hm")
    start = compose(TASKS["s2t_think"], VOCAB, **asked, opening="<think>")
    whole = compose(TASKS["s2t_think"], VOCAB, **answered, opening="<think>")
    assert whole.ids[: len(start)] == start.ids
    with pytest.raises(DataError, match="does not begin with '<think>I'"):
        compose(TASKS["s2t_think"], VOCAB, **answered, opening="<think>I")


def test_unknown_labels_are_not_trained_and_end_nothing():
    row = compose(TASKS["understand"], VOCAB, clips=[mel()], answer_text="<&&><&&>")
    answer = [(number, trained) for number, trained in zip(row.ids, row.trained, strict=True)][-6:]
    less, more = ord("<"), ord(">")
    known = [(less, True), (VOCAB.unknown_label, False), (more, True)]
    assert answer == known * 2
    spoken = compose(TASKS["s2s"], VOCAB, clips=[mel()], answer_text="<&&>", answer_speech=(1,))
    assert VOCAB.text_end in spoken.ids[-4:]


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("s2s", {"clips": []}, "needs the user's audio"), ("t2t", {"clips": [mel()]}, "1 clips more"),
    ("s2s", {"answer_text": "x"}, "needs answer_speech"),
    ("tts", {"answer_text": "x", "answer_speech": (1,)}, "give its words as user_text"),
    ("tts", {"answer_speech": (64,)}, "speech code 64, need 0 to 63"),
    ("s2s_streaming", {"answer_text": "long words", "answer_speech": (1,) * 20},
     "11 text tokens to interleave with 22 speech tokens"),
    ("s2s_history", {"history": (Turn(reply_text="x"),)}, "neither audio nor text"),
    ("s2s_history", {"clips": [], "history": HISTORY}, "fewer clips than earlier turns"),
])  # fmt: skip
def test_parts_that_do_not_fit_the_task_are_refused(name, changes, message):
    asked, _ = parts(TASKS[name])
    with pytest.raises(DataError, match=f"k9: .*{message}"):
        compose(TASKS[name], VOCAB, **{**asked, **changes}, key="k9")


def test_collate_puts_everything_in_its_place():
    answer = {"answer_text": "ok", "answer_speech": (5,)}
    heard = compose(TASKS["s2s"], VOCAB, clips=[mel(20)], **answer, key="a")
    read = compose(TASKS["t2t"], VOCAB, user_text="hi", answer_text="yo", key="b")
    batch = collate([[read, heard], [read]], VOCAB)
    size = len(read) + len(heard)
    assert batch.keys == [["b", "a"], ["b"]] and batch.tasks == [["t2t", "s2s"], ["t2t"]]
    assert batch.ids.shape == (2, size) and batch.ids[0].tolist() == read.ids + heard.ids
    assert batch.valid.sum(1).tolist() == [size, len(read)]
    assert batch.positions[0].tolist() == [*range(len(read)), *range(len(heard))]
    assert batch.segments[1].tolist() == [0] * len(read) + [-1] * len(heard)
    assert batch.joint[0].tolist() == [False] * len(read) + [True] * len(heard)
    assert (batch.targets[0] != IGNORED).tolist() == read.trained + heard.trained
    assert (batch.targets[1, len(read) :] == IGNORED).all()
    (span,) = batch.spans
    assert (span.row, span.start) == (0, len(read) + heard.spans[0].start)
    assert batch.mels is not None and batch.mels.shape == (1, 20, 4)
    parts = [compose(TASKS["s2t"], VOCAB, clips=[mel(size)]) for size in (20, 12)]
    padded = collate([[one] for one in parts], VOCAB)
    assert padded.mels is not None and padded.mels[1, 12:].abs().sum() == 0
    assert padded.mel_lengths.tolist() == [20, 12]


def test_a_batch_without_clips_has_no_mels_and_moves_whole():
    batch = collate([[compose(TASKS["t2t"], VOCAB, user_text="hi", key="3")]], VOCAB).to("cpu")
    assert batch.mels is None and len(batch.mel_lengths) == 0 and batch.keys == [["3"]]


# The id space: marks found by name, text and speech never overlap.

def test_text_and_speech_share_one_id_space_and_marks_are_found_by_name():
    vocab = letter_vocab(speech_codes=8)
    assert (vocab.speech_edge, vocab.audio_begin, vocab.audio_end) == (8, 9, 10)
    assert (vocab.speech_rows, vocab.speech_head_rows) == (11, 9)
    for number in range(vocab.speech_rows):
        joint = vocab.joint(number)
        assert vocab.is_speech(joint) and vocab.speech(joint) == number
    assert not vocab.is_speech(vocab.text_rows - 1)
    for number in (-1, 11):
        with pytest.raises(DataError, match="need 0 to 10"):
            vocab.joint(number)
    vocab = letter_vocab()
    assert vocab.decode([*vocab.encode("<|im_start|>hi"), vocab.text_end, vocab.joint(3)]) == "hi"
    assert vocab.encode("a&&b")[1] == vocab.unknown_label


def test_a_tokenizer_without_the_end_mark_or_a_directory_without_one_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"<\|im_end\|> is 10 pieces, need one"):
        Vocab(Letters(marks=()), 300)
    with pytest.raises(CheckpointError, match="no such directory"):
        Vocab.from_directory(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        Vocab.from_directory(tmp_path)


def test_a_hugging_face_tokenizer_drops_chat_marks_but_keeps_labels(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(("hi", "there", "[UNK]"))}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<|im_start|>", "<|im_end|>", "<think>", "&&"])
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]").save_pretrained(tmp_path)
    vocab = Vocab.from_directory(tmp_path, text_rows=16)
    assert (vocab.text_end, vocab.unknown_label, vocab.text_rows) == (4, 6, 16)
    assert vocab.decode([3, 5, 0, 1, 4, 12, 20]).split() == ["<think>", "hi", "there"]
    assert Vocab.from_directory(tmp_path).text_rows == 7
    with pytest.raises(CheckpointError, match="has 7 ids, the model's text table 5 rows"):
        Vocab.from_directory(tmp_path, text_rows=5)
