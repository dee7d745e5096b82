"""Every word of the page, in English and Chinese."""

from osum_echat.errors import InputError, OsumError
from osum_echat.records import LIST_KEYS

LANGUAGES = {"en": "English", "zh": "中文"}
FIRST = "en"
TASK = "task_"                  # begins the key of a menu item
# key -> English, Chinese
_TABLE = {
    "subtitle": ("It hears what you say and how you say it, and answers in kind.",
                 "听见你说的话,也听见你说话的语气,并以同样的关怀回答。"),
    "language": ("Language", "语言"),
    "task": ("Task", "任务"),
    "listen_for": ("Listen for", "要听出的内容"),
    "clip": ("Your voice: record it or drop a file", "你的声音:录音或拖入文件"),
    "text_tts": ("Words to speak", "要朗读的文字"),
    "text_t2t": ("Your question", "你的问题"),
    "text_free": ("Your own prompt for the recording", "对这段录音的自定义提示词"),
    "hint_tts": ("What shall it say? Our own models also take a style: <CHEERFUL>What good news!",
                 "想让它说什么?自带的模型还可指定风格:<CHEERFUL>What good news!"),
    "hint_t2t": ("Ask something in writing", "用文字提问"),
    "hint_free": ("What do you want to know about the recording?", "你想知道这段录音的什么?"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "reset": ("New chat", "新对话"),
    "samples": ("Recordings to try", "示例录音"),
    "models": ("Models (several answer side by side)", "模型(多选则并排回答)"),
    "voice": ("Voice of the reply", "回复的音色"),
    "own_voice": ("the model's own", "模型自带"),
    "voice_clip": ("…or a voice like this recording (up to 30 s)", "……或模仿这段录音(最长 30 秒)"),
    "remembers": ("Remember the earlier turns", "记住前几轮"),
    "hear": ("Always tell the words heard (costs a second pass)", "总是给出听到的文字(多算一遍)"),
    "greedy": ("Greedy: no chance in the text and speech", "贪心解码:不随机"),
    "seed": ("Seed", "随机种子"),
    "more": ("More settings", "更多设置"),
    "limits": ("Recordings up to {seconds:g} s and {megabytes:g} MB. Nothing is stored unless you "
               "judge a reply: then the recording and the reply are saved on this server.",
               "录音最长 {seconds:g} 秒、{megabytes:g} MB。"
               "只有在评价回复时,录音与回复才会保存在本服务器上。"),
    "about_small": ("A small model: it knows English only, mishears, and is not to be relied on "
                    "for facts or in an emergency.",
                    "这是一个小模型:只懂英语,会听错;事实与紧急情况请勿依赖它。"),
    "about_tiny": ("The tiny model understands its synthetic world of 1,300 words, not people.",
                   "tiny 模型只懂 1300 个词的合成小世界,听不懂真人。"),
    # menu
    "task_s2s_think": ("Talk · think, then answer in speech", "共情语音对话(先思考)"),
    "task_s2s": ("Talk · answer in speech at once", "共情语音对话(直接回答)"),
    "task_s2t_think": ("Talk · think, then answer in text", "语音到文字对话(先思考)"),
    "task_s2t": ("Talk · answer in text at once", "语音到文字对话(直接回答)"),
    "task_listen": ("Listen · words and labels", "听写与标签(可组合)"),
    "task_asr_punctuation": ("Listen · words with punctuation", "带标点的听写"),
    "task_asr_align": ("Listen · words with times", "带时间戳的听写"),
    "task_asr_reply": ("Listen · words, then a reply", "听写并回答"),
    "task_caption": ("Listen · describe the sound", "声音描述"),
    "task_free": ("Listen · with your own prompt", "自定义提示词"),
    "task_tts": ("Speak · text to speech", "语音合成"),
    "task_t2t": ("Write · text to text", "文字对话"),
    # labels and kinds of thought
    "words": ("words", "文字"), "emotion": ("emotion", "情感"), "age": ("age", "年龄"),
    "gender": ("gender", "性别"), "event": ("sound", "声音事件"), "style": ("style", "风格"),
    "label": ("thinks by labels", "标签思考"), "natural": ("thinks in plain words", "自然语言思考"),
    "either": ("thinks in its own way", "按自身方式思考"),
    # replies
    "empty": ("Record or choose a sound, then send it.", "录音或选择一个声音文件,然后发送。"),
    "you": ("You", "你"),
    "heard": ("Heard", "听到"),
    "thought": ("Thought", "思考"),
    "thinking": ("Thinking …", "思考中……"),
    "details": ("Pictures and timings", "频谱与用时"),
    "raw": ("As the model wrote it", "模型原文"),
    "working": ("answering …", "回答中……"),
    "stopped": ("stopped", "已停止"),
    "silent": ("(no words)", "(没有文字)"),
    "spectrogram": ("Log-mel spectrogram", "对数梅尔频谱"),
    "question_sound": ("Question", "提问"), "reply_sound": ("Reply", "回复"),
    "save": ("Save conversation", "保存对话"),
    "note": ("A note on a reply, if you like: it is sent with the next thumb up or down",
             "对回复的说明(可选):随下一次点赞或点踩一起发送"),
    "saved": ("Thank you, saved.", "谢谢,已保存。"),
    "encode": ("hearing", "编码"), "prefill": ("reading", "预填充"),
    "first_text": ("first word", "首字"),
    "first_speech_token": ("first speech token", "首个语音单元"),
    "first_audio": ("first sound", "首段声音"), "total": ("whole reply", "总计"),
    # problems
    "no_clip": ("Record something or choose a sound file first.", "请先录音或选择声音文件。"),
    "no_text": ("Write a text first.", "请先输入文字。"),
    "no_model": ("Tick one model or more.", "请至少勾选一个模型。"),
    "no_label": ("Tick the words or a label to listen for.", "请至少勾选一项要听出的内容。"),
    "long_text": ("The text has {found} characters; shorten it to {most} or fewer.",
                  "文字有 {found} 个字符,请缩短到 {most} 个以内。"),
    "long_clip": ("{name} lasts {found} s; at most {most} s: cut it, or say it in several turns.",
                  "{name} 长 {found} 秒,最长 {most} 秒:请截短,或分几轮说。"),
    "large_clip": ("{name} has {found} MB; at most {most} MB: cut it, or save it as mp3.",
                   "{name} 有 {found} MB,最大 {most} MB:请截短,或存为 mp3。"),
    "bad_clip": ("{detail}", "这个声音文件无法使用:{detail}"),
}  # fmt: skip


def word(key: str, language: str) -> str:
    """One word or sentence; its gaps are filled by `.format`.

    Tasks and labels that are not in the table go by their names.
    """
    name = key.removeprefix(TASK)
    if key not in _TABLE and (key.startswith(TASK) or name in LIST_KEYS):
        return name
    return _TABLE[key][list(LANGUAGES).index(language)]


class Refused(InputError):
    """A question over the limits; a page tells the reason in its own language."""

    def __init__(self, reason: str, **values: object) -> None:
        super().__init__(word(reason, FIRST).format(**values))
        self.reason, self.values = reason, values


def words(language: str) -> dict[str, str]:
    """All of them."""
    return {key: word(key, language) for key in _TABLE}


def problem(error: OsumError, language: str) -> str:
    """What went wrong, in the reader's language where the page knows the case."""
    if isinstance(error, Refused):
        return word(error.reason, language).format(**error.values)
    return str(error)


def preferred(accepted: str) -> str:
    """The language of a browser's Accept-Language header: the first one that the page speaks."""
    for part in accepted.lower().split(","):
        language = part.strip()[:2]
        if language in LANGUAGES:
            return language
    return FIRST
